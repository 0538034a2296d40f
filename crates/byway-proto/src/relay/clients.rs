//! The clients of a relay, found by peer, by address and, on the packet path, by slot.

use alloc::{
    collections::{BTreeMap, BTreeSet},
    vec::Vec,
};
use core::net::SocketAddr;

use super::{FAREWELL, fair::Spent};
use crate::{id::PeerId, schedule::Bucket, time::Instant, wire::relay_data::AllocId};

/// A client's place in the table, as long as the client is remembered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Slot(usize);

#[cfg(test)]
pub(super) fn slots(count: usize) -> Vec<Slot> {
    (0..count).map(Slot).collect()
}

/// A peer that has registered; it is remembered without a link as long as it has allocations.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) peer: PeerId,
    pub(super) instance: u64,
    /// The link over which it is registered; without one it is absent.
    pub(super) conn: Option<u64>,
    /// Set through [`Clients::set_addr`] only.
    addr: Option<SocketAddr>,
    pub(super) absent_since: Instant,
    /// Where it was when its link ended.
    pub(super) left: Option<SocketAddr>,
    /// Bytes that it may send.
    pub(super) bytes: Bucket,
    /// What it has of the rate that all share.
    pub(super) spent: Spent,
    /// Allocations that it may open.
    pub(super) opens: Bucket,
    /// Allocations of which it is an end.
    pub(super) allocs: BTreeSet<AllocId>,
    /// How many of them it has opened.
    pub(super) opened: usize,
}

impl Client {
    /// An absent client without allocations.
    pub(super) fn new(peer: PeerId, instance: u64, bytes: Bucket, opens: Bucket) -> Self {
        Client {
            peer,
            instance,
            conn: None,
            addr: None,
            absent_since: Instant::START,
            left: None,
            bytes,
            spent: Spent::default(),
            opens,
            allocs: BTreeSet::new(),
            opened: 0,
        }
    }

    pub(super) fn addr(&self) -> Option<SocketAddr> {
        self.addr
    }

    /// Whether what comes from an address now is its: it is there, or was a moment ago.
    pub(super) fn sends_from(&self, addr: SocketAddr, now: Instant) -> bool {
        let is_leaving = self.conn.is_none() && now.since(self.absent_since) < FAREWELL;
        self.addr == Some(addr) || is_leaving && self.left == Some(addr)
    }
}

/// The table of clients; an address belongs to one client at most.
#[derive(Debug, Default)]
pub(super) struct Clients {
    slots: Vec<Option<Client>>,
    free: Vec<Slot>,
    by_peer: BTreeMap<PeerId, Slot>,
    by_addr: BTreeMap<SocketAddr, Slot>,
}

impl Clients {
    pub(super) fn len(&self) -> usize {
        self.by_peer.len()
    }

    pub(super) fn present(&self) -> usize {
        self.by_addr.len()
    }

    pub(super) fn of_peer(&self, peer: &PeerId) -> Option<Slot> {
        self.by_peer.get(peer).copied()
    }

    pub(super) fn of_addr(&self, addr: SocketAddr) -> Option<Slot> {
        self.by_addr.get(&addr).copied()
    }

    pub(super) fn at(&self, slot: Slot) -> Option<&Client> {
        self.slots.get(slot.0)?.as_ref()
    }

    pub(super) fn at_mut(&mut self, slot: Slot) -> Option<&mut Client> {
        self.slots.get_mut(slot.0)?.as_mut()
    }

    pub(super) fn all_mut(&mut self) -> impl Iterator<Item = &mut Client> {
        self.slots.iter_mut().flatten()
    }

    /// Remembers a client whose peer is not in the table.
    pub(super) fn insert(&mut self, client: Client) -> Slot {
        let peer = client.peer;
        let slot = match self.free.pop() {
            Some(slot) => {
                if let Some(place) = self.slots.get_mut(slot.0) {
                    *place = Some(client);
                }
                slot
            }
            None => {
                self.slots.push(Some(client));
                Slot(self.slots.len() - 1)
            }
        };
        self.by_peer.insert(peer, slot);
        slot
    }

    pub(super) fn remove(&mut self, slot: Slot) -> Option<Client> {
        self.set_addr(slot, None);
        let client = self.slots.get_mut(slot.0)?.take()?;
        self.by_peer.remove(&client.peer);
        self.free.push(slot);
        Some(client)
    }

    /// Gives the client an address, or takes it away; whoever had the address before, loses it: it was proven last here.
    pub(super) fn set_addr(&mut self, slot: Slot, addr: Option<SocketAddr>) {
        let old = self.at(slot).and_then(Client::addr);
        if old == addr {
            return;
        }
        if let Some(old) = old {
            self.by_addr.remove(&old);
        }
        if let Some(addr) = addr
            && let Some(loser) = self.by_addr.insert(addr, slot)
            && let Some(loser) = self.at_mut(loser)
        {
            loser.addr = None;
        }
        if let Some(client) = self.at_mut(slot) {
            client.addr = addr;
        }
    }

    /// The client that has been absent for the longest time.
    pub(super) fn longest_absent(&self) -> Option<Slot> {
        let absent = self.by_peer.values().filter_map(|slot| Some((self.at(*slot)?, *slot)));
        let absent = absent.filter(|(client, _)| client.conn.is_none());
        absent.min_by_key(|(client, _)| client.absent_since).map(|(_, slot)| slot)
    }
}
