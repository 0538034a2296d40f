//! Datagrams that are ahead of their allocation's `Open`.

use alloc::{
    collections::{BTreeMap, BTreeSet},
    vec::Vec,
};

use super::{HOLD, RelayDrop, clients::Slot};
use crate::{time::Instant, wire::relay_data::AllocId};

/// Datagrams held for one allocation: a dial's first flight, twice.
pub const MAX_HELD_PER_ALLOCATION: usize = 8;

/// Datagrams held for one client, so that no client takes the room of all: 8 dials at once.
pub const MAX_HELD_PER_CLIENT: usize = 64;

/// Datagrams held in all: 6 MB of [`MAX_HELD_BYTES`] each.
pub const MAX_HELD: usize = 4_096;

/// Bytes of one held datagram: what an Ethernet link carries.
pub const MAX_HELD_BYTES: usize = 1_500;

/// All held datagrams.
#[derive(Debug, Default)]
pub(super) struct Held {
    allocations: BTreeMap<AllocId, Waiting>,
    /// The same allocations, the oldest first.
    order: BTreeSet<(Instant, AllocId)>,
    per_client: BTreeMap<Slot, usize>,
    total: usize,
}

/// The held datagrams of one allocation, all from one client.
#[derive(Debug)]
struct Waiting {
    client: Slot,
    since: Instant,
    datagrams: Vec<Vec<u8>>,
}

impl Held {
    /// Whether one more datagram of the client may be held.
    pub(super) fn has_room(&self, id: AllocId, client: Slot) -> bool {
        let fits = match self.allocations.get(&id) {
            Some(waiting) => waiting.client == client && waiting.datagrams.len() < MAX_HELD_PER_ALLOCATION,
            None => true,
        };
        fits && self.total < MAX_HELD && self.of_client(client) < MAX_HELD_PER_CLIENT
    }

    /// Holds a datagram from now on.
    pub(super) fn push(&mut self, id: AllocId, client: Slot, bytes: &[u8], now: Instant) -> Result<(), RelayDrop> {
        if bytes.len() > MAX_HELD_BYTES || !self.has_room(id, client) {
            return Err(RelayDrop::HoldFull);
        }
        let waiting = self.allocations.entry(id).or_insert_with(|| {
            self.order.insert((now, id));
            Waiting { client, since: now, datagrams: Vec::new() }
        });
        waiting.datagrams.push(bytes.to_vec());
        *self.per_client.entry(client).or_insert(0) += 1;
        self.total += 1;
        Ok(())
    }

    /// Whose datagrams are held for an allocation.
    pub(super) fn owner(&self, id: AllocId) -> Option<Slot> {
        self.allocations.get(&id).map(|waiting| waiting.client)
    }

    /// Takes out what is held for an allocation, and whose it is.
    pub(super) fn take(&mut self, id: AllocId) -> Option<(Slot, Vec<Vec<u8>>)> {
        let Waiting { client, since, datagrams } = self.allocations.remove(&id)?;
        self.order.remove(&(since, id));
        self.total -= datagrams.len();
        if let Some(count) = self.per_client.get_mut(&client) {
            *count -= datagrams.len();
            if *count == 0 {
                self.per_client.remove(&client);
            }
        }
        Some((client, datagrams))
    }

    /// Drops what has been held for [`HOLD`], and says how many datagrams that were.
    pub(super) fn expire(&mut self, now: Instant) -> usize {
        let mut dropped = 0;
        while let Some((since, id)) = self.order.first().copied()
            && since + HOLD <= now
        {
            dropped += self.take(id).map_or(0, |(_, datagrams)| datagrams.len());
        }
        dropped
    }

    /// Drops what one client has sent, and says how many datagrams that were.
    pub(super) fn forget(&mut self, client: Slot) -> usize {
        if self.of_client(client) == 0 {
            return 0;
        }
        let ids = self.allocations.iter().filter(|(_, waiting)| waiting.client == client).map(|(id, _)| *id);
        let ids: Vec<_> = ids.collect();
        ids.into_iter().filter_map(|id| self.take(id)).map(|(_, datagrams)| datagrams.len()).sum()
    }

    /// When the oldest is dropped.
    pub(super) fn expires_at(&self) -> Option<Instant> {
        self.order.first().map(|(since, _)| *since + HOLD)
    }

    /// Datagrams held.
    pub(super) fn len(&self) -> usize {
        self.total
    }

    fn of_client(&self, client: Slot) -> usize {
        self.per_client.get(&client).copied().unwrap_or(0)
    }
}
