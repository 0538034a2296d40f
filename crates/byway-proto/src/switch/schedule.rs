//! Whom to dial when: persistent peers for ever, peers out of the book while there is room, and now and then a feeler.

use alloc::{collections::BTreeMap, vec::Vec};
use core::time::Duration;

use super::{Cause, Class, Switch, SwitchConfig};
use crate::{
    Instant, PeerId, Rng, UnixTime,
    book::{Book, Contact, Group, Side, Wanted},
};

/// First wait before a persistent peer is dialled again; doubles each time, up to [`MAX_RECONNECT`].
pub const RECONNECT: Duration = Duration::from_secs(1);

/// Longest wait before a persistent peer is dialled again; it is never given up.
pub const MAX_RECONNECT: Duration = Duration::from_secs(300);

/// Dials out of the book under way at once: enough to fill 32 slots in half a minute when two of three answer nobody.
pub const CHOICES_AT_ONCE: usize = 8;

/// How often somebody whom others named is dialled just to see, while all slots are taken: the old table stays fresh.
pub const FEELER_EVERY: Duration = Duration::from_secs(120);

/// How soon the book is asked again when it had nobody.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// How soon a seed calls on a peer again.
const CRAWL_AGAIN: Duration = Duration::from_secs(120);

/// How soon another seed is asked, in the mean; up to half of it earlier or later, so that nodes that started together and were
/// one too many do not come back together.
const SEED_AGAIN: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(super) struct Schedule {
    persistent: BTreeMap<PeerId, Persistent>,
    seeds: Vec<Contact>,
    /// Peers to begin with.
    anchors: Vec<PeerId>,
    next_choice: Instant,
    next_feeler: Instant,
    next_seed: Instant,
}

#[derive(Debug)]
struct Persistent {
    contact: Contact,
    /// Dials in vain since the last link.
    failures: u32,
    /// Links, one after the other, that did not hold for [`STEADY`](super::STEADY).
    brief: u32,
    next: Instant,
}

impl Schedule {
    pub(super) fn new(config: &SwitchConfig, anchors: &[PeerId], now: Instant) -> Self {
        let persistent = config.persistent.iter().map(|addr| {
            let contact = Contact::from(addr.clone());
            (addr.id, Persistent { contact, failures: 0, brief: 0, next: now })
        });
        Schedule {
            persistent: persistent.collect(),
            seeds: config.seeds.iter().cloned().map(Contact::from).collect(),
            anchors: anchors.to_vec(),
            next_choice: now,
            next_feeler: now + FEELER_EVERY,
            next_seed: now,
        }
    }

    pub(super) fn is_persistent(&self, peer: PeerId) -> bool {
        self.persistent.contains_key(&peer)
    }

    /// Where a persistent peer is configured to be.
    pub(super) fn contact_of(&self, peer: PeerId) -> Option<Contact> {
        self.persistent.get(&peer).map(|it| it.contact.clone())
    }

    /// When a persistent peer is dialled next.
    pub(super) fn next_of(&self, peer: PeerId) -> Option<Instant> {
        self.persistent.get(&peer).map(|it| it.next)
    }

    pub(super) fn due(&self, is_engaged: impl Fn(PeerId) -> bool, discover: bool) -> Option<(Instant, &'static str)> {
        let persistent = self.persistent.iter().filter(|(peer, _)| !is_engaged(**peer)).map(|(_, it)| it.next).min();
        let choice = discover.then_some((self.next_choice.min(self.next_feeler), "choice out of the book"));
        persistent.map(|at| (at, "persistent peer")).into_iter().chain(choice).min()
    }

    /// There may be somebody to choose now.
    pub(super) fn wake(&mut self, now: Instant) {
        self.next_choice = self.next_choice.min(now);
    }

    pub(super) fn connected(&mut self, peer: PeerId) {
        if let Some(it) = self.persistent.get_mut(&peer) {
            it.failures = 0;
        }
    }

    /// A link is gone, which `held` for a while or did not: its slot is free, or its peer is to be had back.
    pub(super) fn lost(&mut self, peer: PeerId, held: bool, rng: &mut Rng, now: Instant) {
        let Some(it) = self.persistent.get_mut(&peer) else { return self.wake(now) };
        if held {
            it.brief = 0;
        }
        it.next = now + wait(it.brief, rng);
        if !held {
            it.brief = it.brief.saturating_add(1);
        }
    }

    pub(super) fn failed(&mut self, peer: PeerId, cause: Cause, rng: &mut Rng, now: Instant) {
        if let Some(it) = self.persistent.get_mut(&peer) {
            it.next = now + wait(it.failures, rng);
            it.failures = it.failures.saturating_add(1);
        }
        if matches!(cause, Cause::Chosen | Cause::Seed) {
            self.wake(now);
        }
    }
}

/// A wait that doubles, up to a quarter shorter, so that peers that lost each other do not meet in the same rhythm for ever.
fn wait(failures: u32, rng: &mut Rng) -> Duration {
    let full = RECONNECT.saturating_mul(1 << failures.min(16)).min(MAX_RECONNECT);
    full - Duration::from_millis(rng.below(full.as_millis() as u64 / 4))
}

/// Until when a seed leaves a peer alone, for it goes round, and has just spoken with it.
pub(super) fn crawled_until(config: &SwitchConfig, book: &Book, peer: PeerId, wall: UnixTime) -> Option<UnixTime> {
    let tried = book.tried(peer).filter(|tried| config.seed && wall.since(*tried) < CRAWL_AGAIN)?;
    Some(tried + CRAWL_AGAIN)
}

impl Switch {
    pub(super) fn dial_persistent(&mut self, now: Instant) {
        let due = |(peer, it): &(&PeerId, &Persistent)| it.next <= now && !self.is_engaged(**peer);
        let due: Vec<_> = self.schedule.persistent.iter().filter(due).map(|(_, it)| it.contact.clone()).collect();
        for contact in due {
            let peer = contact.peer;
            let banned = self.book.banned(peer, self.unix(now)).is_some();
            if banned || peer == self.own_id || !self.dial(contact, Group::LOCAL, Cause::Persistent, now) {
                self.schedule.failed(peer, Cause::Persistent, &mut self.rng, now);
            }
        }
    }

    pub(super) fn dial_chosen(&mut self, now: Instant) {
        if self.schedule.next_feeler <= now {
            self.schedule.next_feeler = now + FEELER_EVERY;
            self.feel(now);
        }
        if self.schedule.next_choice > now {
            return;
        }
        self.schedule.next_choice = now + LOOK_AGAIN;
        while self.seats.has_room(Class::Chosen) && self.choices_under_way() < CHOICES_AT_ONCE {
            let Some((contact, group)) = self.choose(now) else {
                return self.ask_seed(now);
            };
            if !self.dial(contact, group, Cause::Chosen, now) {
                return;
            }
        }
    }

    fn choices_under_way(&self) -> usize {
        self.dials.values().filter(|dial| matches!(dial.cause, Cause::Chosen | Cause::Seed)).count()
    }

    /// The next peer out of the book: an anchor, or one by chance. The more are connected, the rather somebody new.
    fn choose(&mut self, now: Instant) -> Option<(Contact, Group)> {
        while let Some(anchor) = self.schedule.anchors.pop() {
            let contact = self.book.contact(anchor).filter(|_| !self.is_engaged(anchor) && !self.is_special(anchor));
            let placed = contact.map(|contact| (contact.group().unwrap_or(Group::LOCAL), contact));
            if let Some((group, contact)) = placed.filter(|(group, _)| !self.seats.is_group_full(Class::Chosen, *group))
            {
                return Some((contact, group));
            }
        }
        let percent = (self.seats.taken(Class::Chosen).min(8) * 10 + 10) as u8;
        self.pick(Side::Either(percent), now)
    }

    fn pick(&mut self, side: Side, now: Instant) -> Option<(Contact, Group)> {
        let wall = self.unix(now);
        let Switch { book, seats, by_peer, dials, schedule, config, rng, .. } = self;
        let taken = |group| seats.is_group_full(Class::Chosen, group);
        let skip = |peer| {
            let special = schedule.is_persistent(peer) || config.unconditional.contains(&peer);
            special
                || crawled_until(config, book, peer, wall).is_some()
                || by_peer.contains_key(&peer)
                || dials.contains_key(&peer)
        };
        book.choose(&Wanted { side, taken: &taken, skip: &skip }, wall, rng)
    }

    fn feel(&mut self, now: Instant) {
        let is_under_way = self.dials.values().any(|dial| dial.cause == Cause::Feeler);
        if !is_under_way
            && !self.seats.has_room(Class::Chosen)
            && let Some((contact, group)) = self.pick(Side::New, now)
        {
            self.dial(contact, group, Cause::Feeler, now);
        }
    }

    fn ask_seed(&mut self, now: Instant) {
        if self.schedule.next_seed > now {
            return;
        }
        let open = self.schedule.seeds.iter().filter(|seed| !self.is_engaged(seed.peer) && seed.peer != self.own_id);
        let open: Vec<_> = open.cloned().collect();
        if let Some(seed) = open.get(self.rng.below(open.len() as u64) as usize).cloned() {
            let spread = Duration::from_millis(self.rng.below(SEED_AGAIN.as_millis() as u64));
            self.schedule.next_seed = now + SEED_AGAIN / 2 + spread;
            let group = seed.group().unwrap_or(Group::LOCAL);
            self.dial(seed, group, Cause::Seed, now);
        }
    }
}
