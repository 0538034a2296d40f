//! Whom to dial next, and whom to tell of.

use alloc::{collections::BTreeSet, vec::Vec};

use super::{Book, Contact, Entry, Group, table::Slot, table::Table};
use crate::{PeerId, Rng, UnixTime};

/// Peers that are told at once: a selection fits one message of peer exchange, and harvesting a book takes many of them.
pub const MAX_TELL: usize = 64;

/// Peers that are told however small the book is.
const MIN_TELL: usize = 32;

/// The share of the book that is told at once, in percent, as the ancestor has it.
const TELL_PERCENT: usize = 23;

/// Which table a choice is made from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Side {
    /// Peers that are known from hearsay: a feeler's.
    New,
    /// Peers that were reached before.
    Old,
    /// The new table with this probability in percent, else the old one; the other if there is nobody.
    Either(u8),
}

/// Whom a choice is made among.
pub struct Wanted<'a> {
    /// The table.
    pub side: Side,
    /// Groups of addresses that have peers enough; [`Group::LOCAL`] is not asked about.
    pub taken: &'a dyn Fn(Group) -> bool,
    /// Peers that are out of question, such as connected ones.
    pub skip: &'a dyn Fn(PeerId) -> bool,
}

impl core::fmt::Debug for Wanted<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Wanted").field("side", &self.side).finish_non_exhaustive()
    }
}

impl Book {
    /// A peer to dial: a random group of addresses first, then a random peer of it. Banned peers, and those that were tried
    /// in vain a short while ago, are not chosen.
    pub fn choose(&self, wanted: &Wanted<'_>, now: UnixTime, rng: &mut Rng) -> Option<(Contact, Group)> {
        let tables = match wanted.side {
            Side::New => [Some(&self.new), None],
            Side::Old => [Some(&self.old), None],
            Side::Either(percent) if rng.below(100) < u64::from(percent) => [Some(&self.new), Some(&self.old)],
            Side::Either(_) => [Some(&self.old), Some(&self.new)],
        };
        let slot = tables.into_iter().flatten().find_map(|table| self.choose_in(table, wanted, now, rng))?;
        Some((self.entries.get(&slot.peer)?.contact(), slot.group))
    }

    /// What a peer is told of others: a random selection, half of it at least from peers that this node has reached.
    pub fn tell(&self, asker: PeerId, now: UnixTime, rng: &mut Rng) -> Vec<Contact> {
        let count = (self.len() * TELL_PERCENT / 100).clamp(MIN_TELL, MAX_TELL);
        let mut told = Vec::new();
        let mut known: Vec<_> = peers(&self.old).into_iter().collect();
        let mut heard: Vec<_> = peers(&self.new).into_iter().collect();
        shuffle(&mut known, rng);
        shuffle(&mut heard, rng);
        // Half for each side; what one side lacks is filled from the other.
        let from_new = heard.len().min((count / 2).max(count.saturating_sub(known.len())));
        known.truncate(count - from_new);
        heard.truncate(from_new);
        for peer in known.into_iter().chain(heard).filter(|peer| *peer != asker) {
            let entry = self.entries.get(&peer).filter(|entry| !entry.is_bad(now) || entry.proven.is_some());
            if let Some(contact) = entry.and_then(|it| self.tellable(it)) {
                told.push(contact);
            }
        }
        told
    }

    /// What may be told of a peer: addresses and no names, and none of a private network unless all of it is one.
    fn tellable(&self, entry: &Entry) -> Option<Contact> {
        entry.contact().as_claim(self.config.local, &BTreeSet::new()).ok()
    }

    fn choose_in(&self, table: &Table, wanted: &Wanted<'_>, now: UnixTime, rng: &mut Rng) -> Option<Slot> {
        let is_fit = |slot: &&Slot| {
            let rests = self.entries.get(&slot.peer).is_none_or(|entry| entry.rests_until(now).is_some());
            !rests && !(wanted.skip)(slot.peer) && self.banned(slot.peer, now).is_none()
        };
        let is_open = |group: Group| group == Group::LOCAL || !(wanted.taken)(group);
        let fit = |(group, slots): &(Group, &[Slot])| is_open(*group) && slots.iter().any(|slot| is_fit(&slot));
        let groups: Vec<_> = table.groups().filter(fit).collect();
        let (_, slots) = *groups.get(draw(groups.len(), rng))?;
        let slots: Vec<_> = slots.iter().filter(is_fit).collect();
        slots.get(draw(slots.len(), rng)).map(|slot| **slot)
    }
}

fn peers(table: &Table) -> BTreeSet<PeerId> {
    table.groups().flat_map(|(_, slots)| slots.iter().map(|slot| slot.peer)).collect()
}

fn draw(len: usize, rng: &mut Rng) -> usize {
    rng.below(len as u64) as usize
}

fn shuffle(peers: &mut [PeerId], rng: &mut Rng) {
    for at in (1..peers.len()).rev() {
        peers.swap(at, draw(at + 1, rng));
    }
}
