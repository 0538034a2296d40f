//! Who is connected: limits, reserved slots, bans, filters, the tie of simultaneous dials, and whom to dial when.
//!
//! ```text
//! a stranger with a proven key:  Knock → (Ask → Filtered) → Admit | TurnAway
//! a dial:                        Dial → Answered → GoOn → Established | DialFailed
//! a link:                        Established → Init → Added → Close and Removed, or Ended → Removed; or Reject
//! ```
//!
//! Outputs are to be carried out in their order: that is what makes [`Output::Removed`] the last word on a link, and the
//! first one on a newer link to the same peer come after it. The machine holds the [`Book`]; where peers are that nobody
//! named here, it asks there.

mod config;
mod event;
mod import;
mod knocks;
mod schedule;
mod seats;
#[cfg(test)]
mod tests;
mod why;

use alloc::{
    boxed::Box,
    collections::{BTreeMap, VecDeque},
    vec::Vec,
};
use core::time::Duration;

pub use config::{MAX_SPECIAL, SwitchConfig, SwitchConfigError};
pub use event::{By, Cause, Close, DialFailure, DialId, Input, KnockId, LinkId, Output, Up};
pub use import::Imported;
pub use knocks::{FILTER_DEADLINE, MAX_KNOCKS};
pub use schedule::{CHOICES_AT_ONCE, FEELER_EVERY, MAX_RECONNECT, RECONNECT};
pub use seats::Class;
pub use why::NotDialing;

use crate::{
    Instant, PeerId, Rng, UnixTime,
    book::{Book, Contact, Group, MAX_ANCHORS},
    gate::HANDSHAKE_TOTAL,
};
use knocks::Knocks;
use schedule::Schedule;
use seats::{Seat, Seats};

/// Dials under way at once, whoever wants them: each has a socket's share of packets and a handshake in memory.
pub const MAX_DIALS: usize = 1_024;

/// A link that held so long has shown that the peer wants it; a shorter one counts as a dial in vain, or a peer that hangs up
/// at once would be dialled as fast as the network carries it.
pub const STEADY: Duration = Duration::from_secs(60);

/// Who is connected to one node.
#[derive(Debug)]
pub struct Switch {
    config: SwitchConfig,
    own_id: PeerId,
    book: Book,
    /// What calendar time it was when.
    wall: (UnixTime, Instant),
    links: BTreeMap<LinkId, Link>,
    by_peer: BTreeMap<PeerId, LinkId>,
    /// Each by itself in memory: a node of the map has room for eleven.
    dials: BTreeMap<PeerId, Box<Dial>>,
    knocks: Knocks,
    seats: Seats,
    schedule: Schedule,
    rng: Rng,
    next_dial: u64,
    /// A few for each input, a few a link for [`Input::Stop`]; drained after each.
    outputs: VecDeque<Output>,
    stopped: bool,
}

#[derive(Debug, Clone, Copy)]
struct Link {
    peer: PeerId,
    instance: u64,
    dialled: bool,
    since: Instant,
    seat: Seat,
}

#[derive(Debug)]
struct Dial {
    id: DialId,
    contact: Contact,
    cause: Cause,
    /// What it will take if it succeeds; a feeler takes nothing.
    seat: Option<Seat>,
    /// The peer has answered: an incoming connection of the same peer is the duplicate, if our id is the smaller.
    answered: bool,
    /// An incoming connection of the same peer was let in first.
    yielded: bool,
    /// What whoever joined it has named beside; dialled if it fails.
    more: Option<Contact>,
}

impl Dial {
    /// Keeps what this dial does not have.
    fn keep(&mut self, mut named: Contact) {
        named.addrs.retain(|addr| !self.contact.addrs.contains(addr));
        named.relays.retain(|relay| !self.contact.relays.contains(relay));
        if !named.is_empty() {
            self.more.get_or_insert_with(|| Contact::new(named.peer)).merge(&named);
        }
    }
}

impl Switch {
    /// A switch without links, whose book is `book`; `wall` is the calendar time at `now`.
    ///
    /// Values out of range in `config`, which [`SwitchConfig::check`] finds, are the caller's mistake; no limit is exceeded for them.
    pub fn new(
        config: SwitchConfig,
        own_id: PeerId,
        mut book: Book,
        seed: &[u8; 32],
        wall: (UnixTime, Instant),
    ) -> Self {
        config.private.iter().for_each(|peer| book.hide(*peer));
        let schedule = Schedule::new(&config, book.anchors(), wall.1);
        Switch {
            seats: Seats::new(&config),
            config,
            own_id,
            book,
            wall,
            links: BTreeMap::new(),
            by_peer: BTreeMap::new(),
            dials: BTreeMap::new(),
            knocks: Knocks::default(),
            schedule,
            rng: Rng::new(seed, "switch"),
            next_dial: 0,
            outputs: VecDeque::new(),
            stopped: false,
        }
    }

    /// Takes in what happened; drain [`Switch::poll_output`] to `None` after every input.
    pub fn handle_input(&mut self, input: Input, now: Instant) {
        match input {
            Input::Dial { contact } => self.asked(contact, now),
            Input::Answered { dial } => self.answered(dial, now),
            Input::DialFailed { dial, why } => self.dial_failed(dial, why, now),
            Input::Knock { knock, peer, instance, from } => self.knock(knock, (peer, instance), from, now),
            Input::Filtered { knock, verdict } => self.filtered(knock, verdict, now),
            Input::KnockOver { knock } => self.knock_over(knock),
            Input::Established(up) => self.established(up, now),
            Input::Moved { link, group } => self.moved(link, group),
            Input::Ended { link } => self.ended(link, None, now),
            Input::Heard { from, contacts } => {
                let wall = self.unix(now);
                for contact in contacts {
                    let _ = self.book.insert(&contact, from, wall); // what does not fit is not needed
                }
                self.schedule.wake(now);
            }
            Input::Ban { peer, until, why } => self.ban(peer, until, &why, now),
            Input::Unban { peer } => drop(self.book.unban(peer, self.unix(now))),
            Input::Disconnect { peer } => self.close(peer, Close::Asked, now),
            Input::Wall(wall) => self.wall = (wall, now),
            Input::Own(addrs) => self.book.set_own(addrs),
            Input::Stop => self.stop(now),
            Input::Timeout => {}
        }
        self.on_time(now);
    }

    /// The next thing to do, in the order in which they are to be done.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When the machine wants [`Input::Timeout`], and why.
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        if self.stopped {
            return None;
        }
        let schedule = self.schedule.due(|peer| self.is_engaged(peer), self.config.discover);
        schedule.into_iter().chain(self.knocks.due()).min()
    }

    /// The address book.
    pub fn book(&self) -> &Book {
        &self.book
    }

    /// The address book, to take its changes or to add what its owner names.
    pub fn book_mut(&mut self) -> &mut Book {
        &mut self.book
    }

    /// The calendar time at `now`.
    pub fn unix(&self, now: Instant) -> UnixTime {
        self.wall.0 + now.since(self.wall.1)
    }

    /// The link to a peer, if it is connected.
    pub fn link(&self, peer: PeerId) -> Option<LinkId> {
        self.by_peer.get(&peer).copied()
    }

    /// Links, by who wanted them.
    pub fn count(&self, class: Class) -> usize {
        self.links.values().filter(|link| link.seat.class == class).count()
    }

    /// What to call `peer`'s link: whether it has a slot of its own, and who wanted it.
    pub fn class(&self, peer: PeerId) -> Option<Class> {
        self.links.get(self.by_peer.get(&peer)?).map(|link| link.seat.class)
    }

    fn is_special(&self, peer: PeerId) -> bool {
        self.config.unconditional.contains(&peer) || self.schedule.is_persistent(peer)
    }

    /// Whether the peer is connected or being dialled.
    fn is_engaged(&self, peer: PeerId) -> bool {
        self.by_peer.contains_key(&peer) || self.dials.contains_key(&peer)
    }

    fn asked(&mut self, mut contact: Contact, now: Instant) {
        let peer = contact.peer;
        if self.by_peer.contains_key(&peer) {
            return self.outputs.push_back(Output::Connected { peer });
        }
        if let Some(why) = self.refuses(peer, now) {
            return self.outputs.push_back(Output::NotDialled { peer, why });
        }
        let by_id = contact.is_empty();
        if by_id {
            let known = [self.schedule.contact_of(peer), self.book.contact(peer)];
            known.into_iter().flatten().for_each(|known| contact.merge(&known));
        }
        let group = contact.group().unwrap_or(Group::LOCAL);
        let Some(dial) = self.dials.get_mut(&peer) else {
            // Where its relays have changed, it may still be registered at one of this node's.
            let more = (by_id && !contact.relays.is_empty()).then(|| Contact::new(peer));
            if !self.dial(contact, group, Cause::Asked, now) {
                self.outputs.push_back(Output::NotDialled { peer, why: NotDialing::Full });
            } else if let Some(dial) = self.dials.get_mut(&peer) {
                dial.more = more;
            }
            return;
        };
        dial.keep(contact);
        // The program wants what chance had begun: from now on it is the program's.
        if dial.cause != Cause::Asked && dial.cause != Cause::Persistent {
            self.seats.free(dial.seat.take());
            dial.cause = Cause::Asked;
            let seat = Seat { class: Class::Asked, group };
            dial.seat = self.seats.take(seat).then_some(seat);
        }
    }

    /// Begins a dial; `false` if there is no slot for what would come of it.
    fn dial(&mut self, contact: Contact, group: Group, cause: Cause, now: Instant) -> bool {
        let peer = contact.peer;
        let class = match cause {
            _ if self.is_special(peer) => Class::Reserved,
            Cause::Asked | Cause::Persistent => Class::Asked,
            Cause::Chosen | Cause::Seed | Cause::Feeler => Class::Chosen,
        };
        let seat = (cause != Cause::Feeler).then_some(Seat { class, group });
        if self.dials.len() >= MAX_DIALS || seat.is_some_and(|seat| !self.seats.take(seat)) {
            return false;
        }
        self.next_dial += 1;
        let id = DialId(self.next_dial);
        self.book.attempted(peer, self.unix(now));
        let dial = Dial { id, contact: contact.clone(), cause, seat, answered: false, yielded: false, more: None };
        self.dials.insert(peer, Box::new(dial));
        self.outputs.push_back(Output::Dial { dial: id, contact, cause });
        true
    }

    fn answered(&mut self, id: DialId, now: Instant) {
        let wall = self.unix(now);
        let dial = self.dials.iter_mut().find(|(_, dial)| dial.id == id);
        let wanted = dial.filter(|(peer, dial)| !dial.yielded && self.book.banned(**peer, wall).is_none());
        let goes_on = wanted.map(|(_, dial)| dial.answered = true).is_some() && !self.stopped;
        self.outputs.push_back(Output::GoOn { dial: id, goes_on });
    }

    fn dial_failed(&mut self, id: DialId, why: DialFailure, now: Instant) {
        let Some(peer) = self.dials.iter().find(|(_, dial)| dial.id == id).map(|(peer, _)| *peer) else { return };
        let Some(dial) = self.dials.remove(&peer) else { return };
        self.seats.free(dial.seat);
        match why {
            DialFailure::Itself => self.book.forget(peer),
            DialFailure::OtherKey => self.book.misplaced(peer, self.unix(now)),
            DialFailure::Unreached | DialFailure::Refused => {}
        }
        let more = dial.more.filter(|_| matches!(why, DialFailure::Unreached | DialFailure::OtherKey));
        if let Some(contact) = more {
            let group = contact.group().unwrap_or(Group::LOCAL);
            if self.dial(contact, group, Cause::Asked, now) {
                return;
            }
        }
        self.schedule.failed(peer, dial.cause, &mut self.rng, now);
    }

    fn established(&mut self, up: Up, now: Instant) {
        let Up { link, peer, instance, by, group } = up;
        let dial = self.dials.remove(&peer);
        self.seats.free(dial.as_ref().and_then(|dial| dial.seat));
        if let By::Knock(knock) = by {
            self.leave_door(knock);
        }
        let dialled = matches!(by, By::Dial(_));
        let refused = match peer {
            _ if self.stopped => Some(Close::Stopped),
            _ if peer == self.own_id => Some(Close::Itself),
            _ if self.book.banned(peer, self.unix(now)).is_some() => Some(Close::Banned),
            _ => None,
        };
        if let Some(why) = refused {
            return self.outputs.push_back(Output::Reject { link, why });
        }
        if let Some(dial) = dial.as_ref().filter(|_| dialled && self.config.discover) {
            self.book.good(dial.contact.clone(), group, self.unix(now));
            if dial.cause == Cause::Feeler && !self.by_peer.contains_key(&peer) {
                return self.outputs.push_back(Output::Reject { link, why: Close::Felt });
            }
        }
        let old = self.by_peer.get(&peer).and_then(|id| Some((*id, *self.links.get(id)?)));
        // A link that takes another's place, or comes the other way, is wanted by whoever wanted the first.
        let class = match (old, dial.as_ref().and_then(|dial| dial.seat)) {
            _ if self.is_special(peer) => Class::Reserved,
            (Some((_, old)), _) => old.seat.class,
            (None, Some(seat)) => seat.class,
            (None, None) if dialled => Class::Asked,
            (None, None) => Class::Inbound,
        };
        self.seats.free(old.map(|(_, old)| old.seat));
        let seat = Seat { class, group };
        if !self.seats.take(seat) {
            old.map(|(_, old)| self.seats.take(old.seat));
            return self.outputs.push_back(Output::Reject { link, why: Close::Full });
        }
        if let Some((id, old)) = old {
            let why = if old.instance == instance { Close::Replaced } else { Close::Restarted };
            self.links.remove(&id);
            self.outputs.push_back(Output::Close { link: id, why: why.clone() });
            self.outputs.push_back(Output::Removed { link: id, why: Some(why) });
        }
        self.links.insert(link, Link { peer, instance, dialled, since: now, seat });
        self.by_peer.insert(peer, link);
        self.schedule.connected(peer);
        self.outputs.push_back(Output::Init { link });
        self.outputs.push_back(Output::Added { link });
        self.set_anchors();
    }

    /// A link's other end is now at another address. Nothing is closed for it: that is not the peer's fault.
    fn moved(&mut self, link: LinkId, group: Group) {
        if let Some(link) = self.links.get_mut(&link) {
            let seat = Seat { class: link.seat.class, group };
            self.seats.free(Some(link.seat));
            self.seats.force(seat);
            link.seat = seat;
        }
    }

    fn ended(&mut self, link: LinkId, why: Option<Close>, now: Instant) {
        let Some(gone) = self.links.remove(&link) else { return };
        self.by_peer.remove(&gone.peer);
        self.seats.free(Some(gone.seat));
        let held = now.since(gone.since) >= STEADY;
        if gone.dialled && (why.is_some() || !held) {
            self.book.attempted(gone.peer, self.unix(now)); // whoever hangs up, or is sent away, rests as one that was not reached
        }
        self.outputs.push_back(Output::Removed { link, why });
        if !self.stopped {
            self.schedule.lost(gone.peer, held, &mut self.rng, now);
            self.set_anchors();
        }
    }

    fn close(&mut self, peer: PeerId, why: Close, now: Instant) {
        if let Some(link) = self.link(peer) {
            self.outputs.push_back(Output::Close { link, why: why.clone() });
            self.ended(link, Some(why), now);
        }
    }

    fn ban(&mut self, peer: PeerId, until: UnixTime, why: &str, now: Instant) {
        if self.book.ban(peer, until, why) {
            self.shut_out(peer, until, now);
        }
    }

    /// Ends the dial and the link of a peer that is banned by now.
    fn shut_out(&mut self, peer: PeerId, until: UnixTime, now: Instant) {
        if let Some(dial) = self.dials.remove(&peer) {
            self.seats.free(dial.seat);
            self.outputs.push_back(Output::NotDialled { peer, why: NotDialing::Banned { until } });
        }
        self.close(peer, Close::Banned, now);
    }

    /// Closes every link, in the order of their making; nothing is begun any more.
    fn stop(&mut self, now: Instant) {
        if core::mem::replace(&mut self.stopped, true) {
            return;
        }
        for knock in self.knocks.clear() {
            self.seats.free(knock.1);
            self.outputs.push_back(Output::TurnAway { knock: knock.0, why: Close::Stopped });
        }
        for (peer, dial) in core::mem::take(&mut self.dials) {
            self.seats.free(dial.seat);
            self.outputs.push_back(Output::NotDialled { peer, why: NotDialing::Stopped });
        }
        while let Some(link) = self.links.keys().next().copied() {
            self.outputs.push_back(Output::Close { link, why: Close::Stopped });
            self.ended(link, Some(Close::Stopped), now);
        }
    }

    /// The chosen peers that have been connected longest are the ones to begin with after a restart.
    fn set_anchors(&mut self) {
        if !self.config.discover {
            return;
        }
        let chosen = self.links.values().filter(|link| link.seat.class == Class::Chosen && link.dialled);
        let mut chosen: Vec<_> = chosen.map(|link| (link.since, link.peer)).collect();
        chosen.sort();
        if !chosen.is_empty() {
            self.book.set_anchors(chosen.into_iter().take(MAX_ANCHORS).map(|(_, peer)| peer).collect());
        }
    }

    /// Whether the peer's own dial, answered or kept, is the one that stays: of two simultaneous ones that of the smaller id.
    /// A peer that dials although its link is older than any dial has lost it, or was restarted.
    fn is_duplicate(&self, peer: PeerId, instance: u64, now: Instant) -> bool {
        let link = self.by_peer.get(&peer).and_then(|id| self.links.get(id));
        let simultaneous = |it: &Link| it.dialled && it.instance == instance && now.since(it.since) < HANDSHAKE_TOTAL;
        let ours = self.dials.get(&peer).is_some_and(|dial| dial.answered) || link.is_some_and(simultaneous);
        ours && self.own_id < peer
    }

    fn on_time(&mut self, now: Instant) {
        if self.stopped {
            return;
        }
        for knock in self.knocks.overdue(now) {
            self.turn_away(knock, Close::FilterTimeout);
        }
        for knock in self.knocks.forgotten(now) {
            self.knock_over(knock);
        }
        self.book.expire(self.unix(now));
        self.dial_persistent(now);
        if self.config.discover {
            self.dial_chosen(now);
        }
    }
}

/// How long a slot is held for a stranger that was let in, until its link is there.
const HELD: Duration = HANDSHAKE_TOTAL;
