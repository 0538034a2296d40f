//! Buckets that a keyed hash fills, with an index by group.

use alloc::{collections::BTreeMap, vec::Vec};

use super::Group;
use crate::PeerId;

/// Entries of one bucket: what one source group, or one address group, can push against at one place.
pub const BUCKET: usize = 64;

/// One place in a table: a peer, and in the new table who named it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Slot {
    pub(super) peer: PeerId,
    /// The group of who named the peer; in the old table the peer's own.
    pub(super) source: Group,
    /// The group of the peer's address.
    pub(super) group: Group,
}

/// A table of buckets.
#[derive(Debug)]
pub(super) struct Table {
    buckets: Vec<Vec<Slot>>,
    groups: BTreeMap<Group, Vec<Slot>>,
}

impl Table {
    pub(super) fn new(buckets: usize) -> Self {
        Table { buckets: (0..buckets).map(|_| Vec::new()).collect(), groups: BTreeMap::new() }
    }

    pub(super) fn len(&self) -> usize {
        self.groups.values().map(Vec::len).sum()
    }

    pub(super) fn of_group(&self, group: Group) -> &[Slot] {
        self.groups.get(&group).map_or(&[], Vec::as_slice)
    }

    /// All groups with an entry, and their entries.
    pub(super) fn groups(&self) -> impl Iterator<Item = (Group, &[Slot])> {
        self.groups.iter().map(|(group, slots)| (*group, slots.as_slice()))
    }

    pub(super) fn bucket(&self, index: usize) -> &[Slot] {
        self.buckets.get(index).map_or(&[], Vec::as_slice)
    }

    /// Puts an entry into a bucket; `false` if that is full.
    pub(super) fn insert(&mut self, index: usize, slot: Slot) -> bool {
        let Some(bucket) = self.buckets.get_mut(index).filter(|bucket| bucket.len() < BUCKET) else { return false };
        bucket.push(slot);
        self.groups.entry(slot.group).or_default().push(slot);
        true
    }

    pub(super) fn remove(&mut self, index: usize, slot: Slot) {
        if let Some(bucket) = self.buckets.get_mut(index) {
            bucket.retain(|other| *other != slot);
        }
        if let Some(slots) = self.groups.get_mut(&slot.group) {
            slots.retain(|other| *other != slot);
            if slots.is_empty() {
                self.groups.remove(&slot.group);
            }
        }
    }
}

/// Where things belong, by a hash that outsiders cannot compute.
#[derive(Debug, Clone, Copy)]
pub(super) struct Places {
    pub(super) key: [u8; 32],
}

impl Places {
    /// The bucket of the new table: few for each source, one for each pair of a source and a group. Private addresses have
    /// no prefixes that would tell operators apart, and are spread by peer.
    pub(super) fn new_bucket(&self, slot: &Slot) -> usize {
        let what = if slot.group == Group::LOCAL { self.of_peer(slot.peer) } else { slot.group.to_bytes() };
        let within = self.hash(b"new within", &slot.source.to_bytes(), &what) % super::SOURCE_BUCKETS as u64;
        self.hash(b"new", &slot.source.to_bytes(), &within.to_be_bytes()) as usize % super::NEW_BUCKETS
    }

    /// The bucket of the old table: few for each group.
    pub(super) fn old_bucket(&self, slot: &Slot) -> usize {
        let what = if slot.group == Group::LOCAL { self.of_peer(slot.peer) } else { slot.group.to_bytes() };
        let within = self.hash(b"old within", &slot.peer.to_wire(), &[]) % super::GROUP_BUCKETS as u64;
        self.hash(b"old", &what, &within.to_be_bytes()) as usize % super::OLD_BUCKETS
    }

    fn of_peer(&self, peer: PeerId) -> [u8; Group::LEN] {
        let [a, b, c, d, e, f, ..] = self.hash(b"peer", &peer.to_wire(), &[]).to_be_bytes();
        [a, b, c, d, e, f]
    }

    /// Each part but the last has a fixed length for its purpose, so that no two inputs read the same.
    fn hash(&self, purpose: &[u8], first: &[u8], second: &[u8]) -> u64 {
        let mut hasher = blake3::Hasher::new_keyed(&self.key);
        hasher.update(purpose).update(b"\0").update(first).update(second);
        let [a, b, c, d, e, f, g, h, ..] = *hasher.finalize().as_bytes();
        u64::from_be_bytes([a, b, c, d, e, f, g, h])
    }
}
