//! Which two clients an allocation joins, from its opening to its end.

use core::net::SocketAddr;

use super::{Allocation, RelayServer};
use crate::{
    hello::{Control, OpenFailure},
    id::PeerId,
    relay::{
        Output, RelayDrop,
        clients::{Client, Slot},
    },
    time::Instant,
    wire::relay_data::AllocId,
};

impl RelayServer {
    pub(super) fn open(&mut self, conn: u64, alloc: AllocId, peer: PeerId, now: Instant) {
        if !self.links.contains_key(&conn) {
            self.counters.control_ignored += 1;
            return;
        }
        let (opener, other) = match self.may_open(conn, alloc, &peer, now) {
            Ok(ends) => ends,
            Err(reason) => {
                self.counters.open_refused += 1;
                if !self.allocations.contains_key(&alloc) && self.client_of(conn) == self.held.owner(alloc) {
                    self.drop_held(alloc);
                }
                self.outputs.push_back(Output::Send { conn, message: Control::OpenFailed { alloc, peer, reason } });
                return;
            }
        };
        if let Some(known) = self.allocations.get_mut(&alloc) {
            known.used = now;
        } else {
            self.allocations.insert(alloc, Allocation { opener, other, used: now, unanswered: Some(0) });
            self.counters.opened += 1;
            for slot in [opener, other] {
                if let Some(client) = self.clients.at_mut(slot) {
                    client.allocs.insert(alloc);
                    client.opened += usize::from(slot == opener);
                }
            }
        }
        let opened = self.clients.at(opener).map(|c| Control::Opened { alloc, peer: c.peer, instance: c.instance });
        let other = self.clients.at(other);
        if let (Some(message), Some(conn)) = (opened, other.and_then(|c| c.conn)) {
            self.outputs.push_back(Output::Send { conn, message });
        }
        let to = other.and_then(Client::addr);
        self.release(alloc, opener, to);
    }

    /// The two ends of an allocation that a client may open, or has open.
    fn may_open(
        &mut self,
        conn: u64,
        alloc: AllocId,
        peer: &PeerId,
        now: Instant,
    ) -> Result<(Slot, Slot), OpenFailure> {
        let slot = self.client_of(conn).ok_or(OpenFailure::Misuse)?;
        let opener = self.clients.at_mut(slot).ok_or(OpenFailure::Misuse)?;
        if opener.peer == *peer {
            return Err(OpenFailure::Misuse);
        }
        if !opener.opens.take(1, now) {
            return Err(OpenFailure::TooMany);
        }
        let full = opener.opened >= self.config.max_allocations_per_client
            || self.allocations.len() >= self.config.max_allocations;
        let other = self.clients.of_peer(peer);
        match self.allocations.get(&alloc) {
            Some(known) => {
                let pair = Some(slot).zip(other);
                if pair != Some((known.opener, known.other)) && pair != Some((known.other, known.opener)) {
                    return Err(OpenFailure::Taken);
                }
            }
            None if self.draining => return Err(OpenFailure::Draining),
            None if full => return Err(OpenFailure::TooMany),
            None => {}
        }
        let other = other.filter(|other| self.clients.at(*other).is_some_and(|client| client.conn.is_some()));
        Ok((slot, other.ok_or(OpenFailure::NotRegistered)?))
    }

    /// Sends on what was held for an allocation, if its opener sent it.
    fn release(&mut self, alloc: AllocId, opener: Slot, to: Option<SocketAddr>) {
        let Some((client, datagrams)) = self.held.take(alloc) else {
            return;
        };
        let Some(to) = to.filter(|_| client == opener) else {
            self.counters.drops.count(RelayDrop::HoldOrphaned, datagrams.len());
            return;
        };
        for bytes in datagrams {
            self.counters.bytes_forwarded += bytes.len() as u64;
            self.counters.datagrams_forwarded += 1;
            self.outputs.push_back(Output::Transmit { to, bytes });
        }
    }

    /// Forgets an allocation, tells the ends that are present, and forgets those that were remembered only for it.
    pub(super) fn forget(&mut self, id: AllocId) {
        let Some(Allocation { opener, other, .. }) = self.allocations.remove(&id) else {
            return;
        };
        self.counters.forgotten += 1;
        for (slot, far) in [(opener, other), (other, opener)] {
            let far = self.clients.at(far).map(|client| client.peer);
            let Some(client) = self.clients.at_mut(slot) else {
                continue;
            };
            client.allocs.remove(&id);
            client.opened -= usize::from(slot == opener);
            if let (Some(conn), Some(peer)) = (client.conn, far) {
                let message = Control::OpenFailed { alloc: id, peer, reason: OpenFailure::Idle };
                self.outputs.push_back(Output::Send { conn, message });
            }
        }
        for slot in [opener, other] {
            if self.clients.at(slot).is_some_and(|client| client.conn.is_none() && client.allocs.is_empty()) {
                self.clients.remove(slot);
            }
        }
    }
}
