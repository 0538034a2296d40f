//! The machine of a relay.

use alloc::{
    collections::{BTreeMap, VecDeque},
    vec::Vec,
};
use core::{net::SocketAddr, time::Duration};

use super::{
    CloseReason, Forward, Input, Load, OPEN_BURST, OPEN_RATE, Output, RelayConfig, RelayCounters, RelayDrop, SWEEP,
    clients::{Client, Clients, Slot},
    held::Held,
};
use crate::{
    hello::{Control, OpenFailure},
    id::PeerId,
    schedule::Bucket,
    time::Instant,
    wire::relay_data::AllocId,
};

/// A relay without its sockets and links.
///
/// Allocations belong to two *peers*, not to their links: they outlive a lost link, a new address and a restart of either
/// end, until they have been idle for [`ALLOCATION_IDLE`](super::ALLOCATION_IDLE). That holds for a restart too (another
/// instance), so that packets of the other end still arrive, and the new process can answer them with a stateless reset.
///
/// The newest registration of a peer wins. Presence costs nothing: a registered client is never dropped for being idle,
/// an absent one is forgotten with its last allocation.
#[derive(Debug)]
pub struct RelayServer {
    config: RelayConfig,
    /// All links, registered or not.
    links: BTreeMap<u64, Link>,
    /// The newest link of each peer that has not registered over it: with a registered one, a peer has two at most.
    unregistered: BTreeMap<PeerId, u64>,
    clients: Clients,
    allocations: BTreeMap<AllocId, Allocation>,
    held: Held,
    /// Grows by one per allocation and link at most in one input, and is drained after each.
    outputs: VecDeque<Output>,
    next_sweep: Instant,
    draining: bool,
    drained_at: Option<Instant>,
    counters: RelayCounters,
}

#[derive(Debug)]
struct Link {
    peer: PeerId,
    instance: u64,
    addr: SocketAddr,
}

#[derive(Debug)]
struct Allocation {
    opener: Slot,
    other: Slot,
    /// When it last carried data, or was opened.
    used: Instant,
}

impl RelayServer {
    /// A relay without clients.
    pub fn new(config: RelayConfig, now: Instant) -> Self {
        RelayServer {
            config,
            links: BTreeMap::new(),
            unregistered: BTreeMap::new(),
            clients: Clients::default(),
            allocations: BTreeMap::new(),
            held: Held::default(),
            outputs: VecDeque::new(),
            next_sweep: now + SWEEP,
            draining: false,
            drained_at: None,
            counters: RelayCounters::default(),
        }
    }

    /// Says what to do with `segments` datagrams of one allocation, `len` bytes in all, that came from one address.
    ///
    /// This is the packet path: it allocates nothing, whoever sends.
    pub fn forward(&mut self, from: SocketAddr, id: AllocId, load: Load, now: Instant) -> Forward {
        match self.route(from, id, load, now) {
            Ok(forward) => forward,
            Err(reason) => {
                self.counters.drops.count(reason, load.segments);
                Forward::Drop(reason)
            }
        }
    }

    /// Keeps one datagram, prefix included, for which [`RelayServer::forward`] said [`Forward::Hold`].
    ///
    /// If the allocation has been opened meanwhile the datagram is sent on instead.
    pub fn hold(&mut self, from: SocketAddr, id: AllocId, bytes: &[u8], now: Instant) -> Result<(), RelayDrop> {
        let load = Load { len: bytes.len(), segments: 1 };
        let result = match self.route(from, id, load, now) {
            Ok(Forward::To(to)) => {
                self.outputs.push_back(Output::Transmit { to, bytes: bytes.to_vec() });
                Ok(())
            }
            Ok(Forward::Hold) => self.keep(from, id, bytes, now),
            Ok(Forward::Drop(reason)) | Err(reason) => Err(reason),
        };
        if let Err(reason) = result {
            self.counters.drops.count(reason, 1);
        }
        result
    }

    /// Takes in what has happened; drain [`RelayServer::poll_output`] after each call.
    pub fn handle_input(&mut self, input: Input, now: Instant) {
        match input {
            Input::Connected { conn, peer, instance, addr } => self.connected(conn, Link { peer, instance, addr }, now),
            Input::Disconnected { conn } => self.disconnected(conn, now),
            Input::Rebound { conn, addr } => self.rebound(conn, addr),
            Input::Control { conn, message: Control::Register } => self.register(conn, now),
            Input::Control { conn, message: Control::Open { alloc, peer } } => self.open(conn, alloc, peer, now),
            Input::Control { .. } => self.counters.control_ignored += 1,
            Input::Drain { within } => self.drain(within, now),
            Input::Timeout => {}
        }
        self.on_time(now);
    }

    /// The next thing to do.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When the machine wants [`Input::Timeout`], and why.
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        let sweep = (!self.allocations.is_empty()).then_some((self.next_sweep, "idle allocations"));
        let held = self.held.expires_at().map(|at| (at, "held datagrams"));
        let drained = self.drained_at.map(|at| (at, "drain"));
        [held, sweep, drained].into_iter().flatten().min()
    }

    /// What the relay has done so far.
    pub fn counters(&self) -> &RelayCounters {
        &self.counters
    }

    /// Clients that are registered now.
    pub fn clients(&self) -> usize {
        self.clients.present()
    }

    /// Allocations that exist now.
    pub fn allocations(&self) -> usize {
        self.allocations.len()
    }

    /// Datagrams that are held now.
    pub fn held(&self) -> usize {
        self.held.len()
    }

    fn route(&mut self, from: SocketAddr, id: AllocId, load: Load, now: Instant) -> Result<Forward, RelayDrop> {
        let Some(allocation) = self.allocations.get_mut(&id) else {
            let client = self.clients.of_addr(from).ok_or(RelayDrop::Stranger)?;
            let room = self.held.has_room(id, client);
            return if room { Ok(Forward::Hold) } else { Err(RelayDrop::HoldFull) };
        };
        let is_at = |slot: Slot| self.clients.at(slot).is_some_and(|client| client.addr() == Some(from));
        let (sender, receiver) = if is_at(allocation.opener) {
            (allocation.opener, allocation.other)
        } else if is_at(allocation.other) {
            (allocation.other, allocation.opener)
        } else {
            return Err(RelayDrop::NotInPair);
        };
        let to = self.clients.at(receiver).and_then(Client::addr).ok_or(RelayDrop::PeerAbsent)?;
        let sender = self.clients.at_mut(sender).ok_or(RelayDrop::NotInPair)?;
        if !sender.bytes.take(load.len as u64, now) {
            return Err(RelayDrop::RateLimited);
        }
        allocation.used = now;
        self.counters.bytes_forwarded += load.len as u64;
        self.counters.datagrams_forwarded += load.segments as u64;
        Ok(Forward::To(to))
    }

    /// Holding costs the client its bytes at once; sending on later is then free.
    fn keep(&mut self, from: SocketAddr, id: AllocId, bytes: &[u8], now: Instant) -> Result<(), RelayDrop> {
        let slot = self.clients.of_addr(from).ok_or(RelayDrop::Stranger)?;
        let client = self.clients.at_mut(slot).ok_or(RelayDrop::Stranger)?;
        if !client.bytes.take(bytes.len() as u64, now) {
            return Err(RelayDrop::RateLimited);
        }
        self.held.push(id, slot, bytes, now)?;
        self.counters.datagrams_held += 1;
        Ok(())
    }

    fn connected(&mut self, conn: u64, link: Link, now: Instant) {
        self.disconnected(conn, now);
        if let Some(older) = self.unregistered.get(&link.peer).copied() {
            self.close(older, CloseReason::Replaced, now);
        }
        if self.draining {
            self.outputs.push_back(Output::Close { conn, reason: CloseReason::Draining });
        } else if self.links.len() >= self.config.max_clients && self.clients.of_peer(&link.peer).is_none() {
            // A client that comes back by another way keeps its place; see `unregistered` for how many that can be.
            self.outputs.push_back(Output::Close { conn, reason: CloseReason::Full });
        } else {
            self.unregistered.insert(link.peer, conn);
            self.links.insert(conn, link);
        }
    }

    /// Forgets a link; its client stays, absent, if it has allocations.
    fn disconnected(&mut self, conn: u64, now: Instant) {
        let Some(link) = self.links.remove(&conn) else {
            return;
        };
        self.no_longer_unregistered(&link.peer, conn);
        self.outputs.retain(|output| match output {
            Output::Send { conn: to, .. } | Output::Close { conn: to, .. } => *to != conn,
            Output::Transmit { .. } => true,
        });
        let Some(slot) = self.clients.of_peer(&link.peer) else {
            return;
        };
        let Some(client) = self.clients.at_mut(slot).filter(|client| client.conn == Some(conn)) else {
            return;
        };
        client.conn = None;
        client.absent_since = now;
        let idle = client.allocs.is_empty();
        self.clients.set_addr(slot, None);
        self.orphan(slot);
        if idle {
            self.clients.remove(slot);
        }
    }

    fn rebound(&mut self, conn: u64, addr: SocketAddr) {
        let Some(link) = self.links.get_mut(&conn) else {
            return;
        };
        link.addr = addr;
        if let Some(slot) = self.client_of(conn) {
            self.clients.set_addr(slot, Some(addr));
            // It has to send its data from there.
            self.tell_registered(conn, addr);
        }
    }

    fn tell_registered(&mut self, conn: u64, observed: SocketAddr) {
        let (max_rate, stun_port) = (self.config.client_rate, self.config.stun_port);
        let message = Control::Registered { observed, max_rate, stun_port };
        self.outputs.push_back(Output::Send { conn, message });
    }

    fn register(&mut self, conn: u64, now: Instant) {
        let Some(&Link { peer, instance, addr }) = self.links.get(&conn) else {
            self.counters.control_ignored += 1;
            return;
        };
        if self.draining {
            self.close(conn, CloseReason::Draining, now);
            return;
        }
        let Some(slot) = self.clients.of_peer(&peer).or_else(|| self.add_client(peer, instance, now)) else {
            self.close(conn, CloseReason::Full, now);
            return;
        };
        self.no_longer_unregistered(&peer, conn);
        let Some(client) = self.clients.at_mut(slot) else {
            return;
        };
        let replaced = client.conn.replace(conn).filter(|old| *old != conn);
        let restarted = core::mem::replace(&mut client.instance, instance) != instance;
        self.clients.set_addr(slot, Some(addr));
        if let Some(old) = replaced {
            self.close(old, CloseReason::Replaced, now);
        }
        self.counters.registered += 1;
        self.tell_registered(conn, addr);
        if restarted {
            self.tell_others(slot, |alloc| Control::PeerAnew { alloc, peer, instance });
        }
    }

    fn open(&mut self, conn: u64, alloc: AllocId, peer: PeerId, now: Instant) {
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
            self.allocations.insert(alloc, Allocation { opener, other, used: now });
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

    fn drain(&mut self, within: Duration, now: Instant) {
        let until = now + within;
        if self.draining && self.drained_at.is_none_or(|earlier| earlier <= until) {
            return;
        }
        self.draining = true;
        self.drained_at = Some(until);
        for conn in self.links.keys() {
            self.outputs.push_back(Output::Send { conn: *conn, message: Control::Drain { deadline: within } });
        }
    }

    fn on_time(&mut self, now: Instant) {
        let expired = self.held.expire(now);
        self.counters.drops.count(RelayDrop::HoldExpired, expired);
        if now >= self.next_sweep {
            self.next_sweep = now + SWEEP;
            let idle = self.config.allocation_idle;
            let ids = self.allocations.iter().filter(|(_, a)| now.since(a.used) >= idle).map(|(id, _)| *id);
            for id in ids.collect::<Vec<_>>() {
                self.forget(id);
            }
        }
        if self.drained_at.is_some_and(|until| until <= now) {
            self.drained_at = None;
            for conn in self.links.keys().copied().collect::<Vec<_>>() {
                self.close(conn, CloseReason::Draining, now);
            }
            for id in self.allocations.keys().copied().collect::<Vec<_>>() {
                self.forget(id);
            }
        }
    }

    /// Forgets an allocation, tells the ends that are present, and forgets those that were remembered only for it.
    fn forget(&mut self, id: AllocId) {
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

    /// Makes an absent client for a peer, if need be in place of the one that has been absent for the longest time.
    fn add_client(&mut self, peer: PeerId, instance: u64, now: Instant) -> Option<Slot> {
        if self.clients.len() >= self.config.max_clients {
            let oldest = self.clients.longest_absent()?;
            for id in self.clients.at(oldest)?.allocs.clone() {
                self.forget(id);
            }
        }
        let bytes = Bucket::new(self.config.client_rate, self.config.client_burst, now);
        let opens = Bucket::new(OPEN_RATE, OPEN_BURST, now);
        Some(self.clients.insert(Client::new(peer, instance, bytes, opens)))
    }

    /// The link is no longer one that has not registered.
    fn no_longer_unregistered(&mut self, peer: &PeerId, conn: u64) {
        if self.unregistered.get(peer) == Some(&conn) {
            self.unregistered.remove(peer);
        }
    }

    /// The client that is registered over a link.
    fn client_of(&self, conn: u64) -> Option<Slot> {
        let slot = self.clients.of_peer(&self.links.get(&conn)?.peer)?;
        self.clients.at(slot).filter(|client| client.conn == Some(conn)).map(|_| slot)
    }

    fn close(&mut self, conn: u64, reason: CloseReason, now: Instant) {
        self.disconnected(conn, now);
        self.outputs.push_back(Output::Close { conn, reason });
    }

    fn tell_others(&mut self, slot: Slot, message: impl Fn(AllocId) -> Control) {
        let Some(client) = self.clients.at(slot) else {
            return;
        };
        for id in &client.allocs {
            let Some(Allocation { opener, other, .. }) = self.allocations.get(id) else {
                continue;
            };
            let far = if *opener == slot { *other } else { *opener };
            if let Some(conn) = self.clients.at(far).and_then(|client| client.conn) {
                self.outputs.push_back(Output::Send { conn, message: message(*id) });
            }
        }
    }

    fn orphan(&mut self, client: Slot) {
        let dropped = self.held.forget(client);
        self.counters.drops.count(RelayDrop::HoldOrphaned, dropped);
    }

    fn drop_held(&mut self, id: AllocId) {
        let dropped = self.held.take(id).map_or(0, |(_, datagrams)| datagrams.len());
        self.counters.drops.count(RelayDrop::HoldOrphaned, dropped);
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec;
    use core::net::Ipv4Addr;

    use proptest::prelude::*;

    use super::*;
    use crate::relay::{
        ALLOCATION_IDLE, HOLD, MAX_ALLOCATIONS_PER_CLIENT, MAX_HELD, MAX_HELD_BYTES, MAX_HELD_PER_ALLOCATION,
        MAX_HELD_PER_CLIENT,
    };

    const ID: AllocId = AllocId(77);

    #[test]
    fn datagrams_go_to_the_other_end_and_back_under_one_id() {
        let mut relay = Bench::with_pair();
        assert_eq!(relay.data(1, ID), Forward::To(addr(2)));
        assert_eq!(relay.data(2, ID), Forward::To(addr(1)));
        let counters = relay.server.counters();
        assert_eq!((counters.datagrams_forwarded, counters.bytes_forwarded), (2, 2_400));
    }

    #[test]
    fn a_batch_counts_its_datagrams() {
        let mut relay = Bench::with_pair();
        let forward = relay.server.forward(addr(1), ID, Load { len: 12_000, segments: 10 }, relay.now);
        assert_eq!(forward, Forward::To(addr(2)));
        assert_eq!(relay.server.counters().datagrams_forwarded, 10);
    }

    #[test]
    fn the_other_end_is_told_who_opened() {
        let mut relay = Bench::with_clients(&[1, 2]);
        let opened = Control::Opened { alloc: ID, peer: peer(1), instance: 100 };
        assert_eq!(relay.open(1, ID, 2), [Output::Send { conn: 2, message: opened }]);
    }

    #[test]
    fn a_client_learns_its_address_and_its_rate() {
        let mut relay = Bench::with_clients(&[]);
        relay.connect(1, 1, 100);
        let max_rate = relay.config().client_rate;
        let registered = Control::Registered { observed: addr(1), max_rate, stun_port: None };
        assert_eq!(relay.control(1, Control::Register), [Output::Send { conn: 1, message: registered }]);
    }

    #[test]
    fn strangers_and_third_clients_get_nothing_through() {
        let mut relay = Bench::with_pair();
        relay.client(3);
        assert_eq!(relay.data(9, ID), Forward::Drop(RelayDrop::NotInPair));
        assert_eq!(relay.data(3, ID), Forward::Drop(RelayDrop::NotInPair));
        assert_eq!(relay.data(9, AllocId(1)), Forward::Drop(RelayDrop::Stranger));
        let drops = &relay.server.counters().drops;
        assert_eq!((drops.not_in_pair, drops.stranger, drops.total()), (2, 1, 3));
    }

    #[test]
    fn a_link_that_has_not_registered_is_a_stranger() {
        let mut relay = Bench::with_clients(&[2]);
        relay.connect(1, 1, 100);
        assert_eq!(relay.data(1, ID), Forward::Drop(RelayDrop::Stranger));
        assert_eq!(relay.open(1, ID, 2), [failed(1, ID, 2, OpenFailure::Misuse)]);
    }

    #[test]
    fn a_client_that_sends_too_much_is_slowed_and_its_peer_is_not() {
        let mut relay = Bench::with_pair();
        let sent = (0..10_000).filter(|_| matches!(relay.data(1, ID), Forward::To(_))).count();
        assert_eq!(sent as u64, relay.config().client_burst / 1_200);
        assert_eq!(relay.data(1, ID), Forward::Drop(RelayDrop::RateLimited));
        assert_eq!(relay.data(2, ID), Forward::To(addr(1)));
        relay.wait(Duration::from_secs(1));
        assert_eq!(relay.data(1, ID), Forward::To(addr(2)));
    }

    #[test]
    fn data_ahead_of_its_open_is_held_and_then_sent_on_in_order() {
        let mut relay = Bench::with_clients(&[1, 2]);
        for n in 0..3 {
            assert_eq!(relay.data(1, ID), Forward::Hold);
            relay.server.hold(addr(1), ID, &[n; 50], relay.now).unwrap();
        }
        let outputs = relay.open(1, ID, 2);
        let sent: Vec<_> = outputs[1..].to_vec();
        let expected: Vec<_> = (0..3).map(|n| Output::Transmit { to: addr(2), bytes: vec![n; 50] }).collect();
        assert_eq!(sent, expected);
        assert_eq!(relay.server.held(), 0);
        assert_eq!(relay.server.hold(addr(1), ID, &[9; 50], relay.now), Ok(()));
        assert_eq!(relay.drained(), [Output::Transmit { to: addr(2), bytes: vec![9; 50] }]);
    }

    #[test]
    fn held_data_is_dropped_after_200_ms() {
        let mut relay = Bench::with_clients(&[1, 2]);
        relay.hold(1, ID).unwrap();
        assert_eq!(relay.server.poll_timeout(), Some((relay.now + HOLD, "held datagrams")));
        relay.wait(HOLD - Duration::from_millis(1));
        assert_eq!(relay.server.held(), 1);
        relay.wait(Duration::from_millis(1));
        assert_eq!((relay.server.held(), relay.server.counters().drops.hold_expired), (0, 1));
        assert_eq!(relay.server.poll_timeout(), None);
    }

    #[test]
    fn held_data_is_not_sent_on_when_somebody_else_opens() {
        let mut relay = Bench::with_clients(&[1, 2, 3]);
        relay.hold(1, ID).unwrap();
        assert_eq!(relay.open(3, ID, 2).len(), 1);
        assert_eq!(relay.server.counters().drops.hold_orphaned, 1);
    }

    #[test]
    fn a_refused_open_drops_what_was_held_for_it() {
        let mut relay = Bench::with_clients(&[1, 3]);
        relay.hold(1, ID).unwrap();
        assert_eq!(relay.open(3, ID, 2), [failed(3, ID, 2, OpenFailure::NotRegistered)]);
        assert_eq!(relay.server.held(), 1, "another client's refusal is no reason");
        assert_eq!(relay.open(1, ID, 2), [failed(1, ID, 2, OpenFailure::NotRegistered)]);
        assert_eq!(relay.server.held(), 0);
    }

    #[test]
    fn holding_is_bounded_by_allocation_client_and_in_all() {
        let mut relay = Bench::with_clients(&(0..80).collect::<Vec<_>>());
        for _ in 0..MAX_HELD_PER_ALLOCATION {
            relay.hold(1, ID).unwrap();
        }
        assert_eq!(relay.data(1, ID), Forward::Drop(RelayDrop::HoldFull));
        relay.wait(HOLD);
        for client in 0..80 {
            for n in 0..100 {
                let _ = relay.hold(client, AllocId(1_000 + u64::from(client) * 100 + n));
            }
            assert!(relay.server.held() <= (usize::from(client) + 1) * MAX_HELD_PER_CLIENT);
        }
        assert_eq!(relay.server.held(), MAX_HELD);
        relay.wait(HOLD);
        let long = [0; MAX_HELD_BYTES + 1];
        assert_eq!(relay.server.hold(addr(1), ID, &long, relay.now), Err(RelayDrop::HoldFull));
        assert_eq!(relay.server.hold(addr(200), ID, &[0; 9], relay.now), Err(RelayDrop::Stranger));
    }

    #[test]
    fn opening_again_changes_nothing_for_the_pair_and_fails_for_others() {
        let mut relay = Bench::with_pair();
        relay.client(3);
        assert_eq!(relay.open(1, ID, 2).len(), 1);
        assert_eq!(relay.open(2, ID, 1).len(), 1);
        assert_eq!(relay.open(3, ID, 2), [failed(3, ID, 2, OpenFailure::Taken)]);
        assert_eq!(relay.open(1, ID, 3), [failed(1, ID, 3, OpenFailure::Taken)]);
        assert_eq!((relay.server.allocations(), relay.server.counters().opened), (1, 1));
    }

    #[test]
    fn nobody_opens_to_itself() {
        let mut relay = Bench::with_clients(&[1]);
        assert_eq!(relay.open(1, ID, 1), [failed(1, ID, 1, OpenFailure::Misuse)]);
    }

    #[test]
    fn allocations_are_bounded_by_client_and_in_all() {
        let mut relay = Bench::with_clients(&[1, 2]);
        for n in 0..MAX_ALLOCATIONS_PER_CLIENT as u64 {
            relay.open(1, AllocId(n), 2);
        }
        relay.wait(Duration::from_secs(10));
        assert_eq!(relay.open(1, AllocId(9_999), 2), [failed(1, AllocId(9_999), 2, OpenFailure::TooMany)]);
        assert!(matches!(relay.open(2, AllocId(9_999), 1)[..], [Output::Send { conn: 1, .. }]));

        let mut relay = Bench::new(RelayConfig { max_allocations: 1, ..RelayConfig::default() }, &[1, 2, 3]);
        relay.open(1, ID, 2);
        assert_eq!(relay.open(3, AllocId(1), 2), [failed(3, AllocId(1), 2, OpenFailure::TooMany)]);
    }

    #[test]
    fn opening_is_limited_a_second() {
        let mut relay = Bench::with_clients(&[1, 2]);
        let told = (0..1_000).map(|_| relay.open(1, ID, 2)).filter(|o| matches!(o[0], Output::Send { conn: 2, .. }));
        assert_eq!(told.count() as u64, OPEN_BURST);
    }

    #[test]
    fn the_newest_registration_wins() {
        let mut relay = Bench::with_pair();
        relay.connect_at(10, 1, 100, addr(11));
        assert_eq!(relay.data(1, ID), Forward::To(addr(2)), "connecting alone changes nothing");
        let outputs = relay.control(10, Control::Register);
        assert_eq!(outputs[0], Output::Close { conn: 1, reason: CloseReason::Replaced });
        assert_eq!(outputs.len(), 2, "the same instance is no news to the others");
        assert_eq!(relay.data(1, ID), Forward::Drop(RelayDrop::NotInPair));
        assert_eq!(relay.data(2, ID), Forward::To(addr(11)));
        relay.input(Input::Disconnected { conn: 1 });
        assert_eq!(relay.data(2, ID), Forward::To(addr(11)), "the old link's end is not the new one's");
    }

    #[test]
    fn allocations_outlive_a_restart_and_the_other_end_is_told() {
        let mut relay = Bench::with_pair();
        relay.input(Input::Disconnected { conn: 1 });
        assert_eq!(relay.data(2, ID), Forward::Drop(RelayDrop::PeerAbsent));
        relay.connect_at(10, 1, 555, addr(11));
        let anew = Control::PeerAnew { alloc: ID, peer: peer(1), instance: 555 };
        assert_eq!(relay.control(10, Control::Register)[1..], [Output::Send { conn: 2, message: anew }]);
        assert_eq!(relay.data(2, ID), Forward::To(addr(11)));
    }

    #[test]
    fn a_new_address_takes_the_place_of_the_old() {
        let mut relay = Bench::with_pair();
        let told = relay.input(Input::Rebound { conn: 1, addr: addr(11) });
        let registered =
            Control::Registered { observed: addr(11), max_rate: relay.config().client_rate, stun_port: None };
        assert_eq!(told, [Output::Send { conn: 1, message: registered }]);
        assert_eq!(relay.data(2, ID), Forward::To(addr(11)));
        assert_eq!(relay.data(1, ID), Forward::Drop(RelayDrop::NotInPair));
    }

    #[test]
    fn an_address_belongs_to_who_proved_it_last() {
        let mut relay = Bench::with_pair();
        relay.connect_at(10, 3, 100, addr(1));
        relay.control(10, Control::Register);
        assert_eq!(relay.data(2, ID), Forward::Drop(RelayDrop::PeerAbsent));
        assert_eq!(relay.data(1, ID), Forward::Drop(RelayDrop::NotInPair));
    }

    #[test]
    fn registering_again_does_not_refill_the_rate() {
        let mut relay = Bench::with_pair();
        while relay.data(1, ID) == Forward::To(addr(2)) {}
        relay.connect(10, 1, 100);
        relay.control(10, Control::Register);
        assert_eq!(relay.data(1, ID), Forward::Drop(RelayDrop::RateLimited));
    }

    #[test]
    fn idle_allocations_are_forgotten_and_busy_ones_are_not() {
        let mut relay = Bench::with_pair();
        relay.client(3);
        relay.open(3, AllocId(3), 2);
        for _ in 0..20 {
            relay.wait(ALLOCATION_IDLE / 10);
            assert_eq!(relay.data(3, AllocId(3)), Forward::To(addr(2)));
        }
        assert_eq!((relay.server.allocations(), relay.server.counters().forgotten), (1, 1));
        assert_eq!(relay.data(1, ID), Forward::Hold);
    }

    #[test]
    fn both_ends_are_told_of_a_forgotten_allocation() {
        let mut relay = Bench::with_pair();
        relay.now += ALLOCATION_IDLE;
        relay.server.handle_input(Input::Timeout, relay.now);
        let told = [failed(1, ID, 2, OpenFailure::Idle), failed(2, ID, 1, OpenFailure::Idle)];
        assert_eq!(relay.drained(), told);
    }

    #[test]
    fn an_absent_client_is_forgotten_with_its_last_allocation() {
        let mut relay = Bench::with_pair();
        relay.input(Input::Disconnected { conn: 1 });
        assert_eq!((relay.server.clients(), relay.server.clients.len()), (1, 2));
        relay.wait(ALLOCATION_IDLE + SWEEP);
        assert_eq!(relay.server.clients.len(), 1);
        relay.input(Input::Disconnected { conn: 2 });
        assert_eq!(relay.server.clients.len(), 0);
    }

    #[test]
    fn a_full_relay_refuses_links_and_gives_the_place_of_the_absent_to_newcomers() {
        let mut relay = Bench::new(RelayConfig { max_clients: 2, ..RelayConfig::default() }, &[1, 2]);
        assert_eq!(relay.connect(3, 3, 100), [Output::Close { conn: 3, reason: CloseReason::Full }]);
        relay.connect(10, 1, 100);
        assert_eq!(relay.control(10, Control::Register).len(), 2, "who is a client already may come back");
        relay.open(10, ID, 2);
        relay.input(Input::Disconnected { conn: 10 });
        relay.connect(3, 3, 100);
        assert_eq!(relay.control(3, Control::Register)[0], failed(2, ID, 1, OpenFailure::Idle));
        assert_eq!((relay.server.clients(), relay.server.allocations()), (2, 0));
    }

    #[test]
    fn one_identity_cannot_take_all_links() {
        let mut relay = Bench::with_clients(&[1]);
        for conn in 10..1_000 {
            relay.connect_at(conn, 1, 100, addr(11));
        }
        assert_eq!(relay.server.links.len(), 2);
    }

    #[test]
    fn draining_refuses_what_is_new_and_closes_at_the_deadline() {
        let mut relay = Bench::with_pair();
        relay.connect(3, 3, 100);
        let within = Duration::from_secs(30);
        let told: Vec<_> =
            (1..4).map(|conn| Output::Send { conn, message: Control::Drain { deadline: within } }).collect();
        assert_eq!(relay.input(Input::Drain { within }), told);
        assert_eq!(relay.input(Input::Drain { within }), []);
        let closed = |conn| Output::Close { conn, reason: CloseReason::Draining };
        assert_eq!(relay.connect(4, 4, 100), [closed(4)]);
        assert_eq!(relay.control(3, Control::Register), [closed(3)]);
        assert_eq!(relay.open(1, AllocId(9), 2), [failed(1, AllocId(9), 2, OpenFailure::Draining)]);
        assert_eq!(relay.data(1, ID), Forward::To(addr(2)));
        relay.now += within;
        assert_eq!(relay.input(Input::Timeout), [closed(1), closed(2)]);
        assert_eq!((relay.server.allocations(), relay.server.clients.len()), (0, 0));
        assert_eq!(relay.server.poll_timeout(), None);
        assert_eq!(relay.connect(5, 5, 100), [closed(5)]);
    }

    #[test]
    fn messages_that_are_not_for_a_relay_are_counted() {
        let mut relay = Bench::with_clients(&[1]);
        assert_eq!(relay.control(1, Control::Drain { deadline: HOLD }), []);
        assert_eq!(relay.control(50, Control::Register), []);
        assert_eq!(relay.open(50, ID, 1), []);
        assert_eq!(relay.server.counters().control_ignored, 3);
    }

    #[test]
    fn a_flood_of_strangers_costs_no_memory() {
        let mut relay = Bench::with_pair();
        for n in 0..100_000 {
            let from = SocketAddr::from((Ipv4Addr::from_bits(n), 7));
            assert!(matches!(relay.server.forward(from, AllocId(n.into()), LOAD, relay.now), Forward::Drop(_)));
            assert!(relay.server.hold(from, AllocId(n.into()), &[0; 1_200], relay.now).is_err());
        }
        assert_eq!((relay.server.held(), relay.server.allocations(), relay.server.clients.len()), (0, 1, 2));
        assert_eq!(relay.server.counters().drops.total(), 200_000);
    }

    #[derive(Debug, Clone)]
    enum Step {
        Connect { conn: u64, peer: u8, instance: u64, addr: u8 },
        Disconnect(u64),
        Rebound(u64, u8),
        Register(u64),
        Open(u64, u64, u8),
        Data(u8, u64),
        Wait(u64),
        Drain,
    }

    fn step() -> impl Strategy<Value = Step> {
        let (conn, who, id) = (0u64..6, 0u8..5, 0u64..4);
        prop_oneof![
            4 => (conn.clone(), who.clone(), 0u64..2, who.clone())
                .prop_map(|(conn, peer, instance, addr)| Step::Connect { conn, peer, instance, addr }),
            1 => conn.clone().prop_map(Step::Disconnect),
            1 => (conn.clone(), who.clone()).prop_map(|(conn, addr)| Step::Rebound(conn, addr)),
            6 => conn.clone().prop_map(Step::Register),
            6 => (conn, id.clone(), who.clone()).prop_map(|(conn, id, peer)| Step::Open(conn, id, peer)),
            12 => (0u8..8, id).prop_map(|(from, id)| Step::Data(from, id)),
            2 => (0u64..200_000).prop_map(Step::Wait),
            1 => prop::bool::weighted(0.05).prop_map(|drain| if drain { Step::Drain } else { Step::Wait(1) }),
        ]
    }

    /// What must be true, told from inputs and outputs alone.
    #[derive(Default)]
    struct Model {
        links: BTreeMap<u64, (PeerId, SocketAddr)>,
        /// The link over which each peer is registered.
        registered: BTreeMap<PeerId, u64>,
        pairs: BTreeMap<AllocId, [PeerId; 2]>,
    }

    impl Model {
        fn addr_of(&self, peer: &PeerId) -> Option<SocketAddr> {
            Some(self.links.get(self.registered.get(peer)?)?.1)
        }

        fn forget(&mut self, conn: u64) {
            self.links.remove(&conn);
            self.registered.retain(|_, over| *over != conn);
        }

        fn may_go(&self, id: AllocId, from: Option<SocketAddr>, to: SocketAddr) -> bool {
            let Some([a, b]) = self.pairs.get(&id) else { return false };
            let (a, b) = (self.addr_of(a), self.addr_of(b));
            let fits = |x, y| y == Some(to) && (from.is_none() || x == from);
            fits(a, b) || fits(b, a)
        }

        fn check(&mut self, outputs: &[Output], step: &Step) {
            for output in outputs {
                match output {
                    Output::Send { conn, message } => {
                        assert!(self.links.contains_key(conn), "{message:?} to a link that is gone, after {step:?}");
                        match message {
                            Control::Registered { .. } => {
                                self.registered.insert(self.links[conn].0, *conn);
                            }
                            Control::Opened { alloc, peer, .. } => {
                                let pair = [*peer, self.links[conn].0];
                                let known = self.pairs.entry(*alloc).or_insert(pair);
                                assert!(*known == pair || *known == [pair[1], pair[0]], "an allocation changed hands");
                            }
                            Control::OpenFailed { alloc, reason: OpenFailure::Idle, .. } => {
                                self.pairs.remove(alloc);
                            }
                            _ => {}
                        }
                    }
                    Output::Close { conn, .. } => self.forget(*conn),
                    Output::Transmit { to, bytes } => {
                        let id = AllocId(bytes[0].into());
                        assert!(self.may_go(id, None, *to), "held data to {to}, after {step:?}");
                    }
                }
            }
        }
    }

    proptest! {
        #[test]
        fn data_stays_in_its_pair_and_nothing_goes_to_a_link_that_is_gone(steps in prop::collection::vec(step(), 0..300)) {
            let config = RelayConfig { max_clients: 4, max_allocations: 3, ..RelayConfig::default() };
            let mut relay = Bench::new(config, &[]);
            let mut model = Model::default();
            for step in steps {
                let outputs = match step {
                    Step::Connect { conn, peer: who, instance, addr: at } => {
                        model.forget(conn);
                        model.links.insert(conn, (peer(who), addr(at)));
                        relay.connect_at(conn, who, instance, addr(at))
                    }
                    Step::Disconnect(conn) => {
                        model.forget(conn);
                        relay.input(Input::Disconnected { conn })
                    }
                    Step::Rebound(conn, at) => {
                        if let Some(link) = model.links.get_mut(&conn) {
                            link.1 = addr(at);
                        }
                        relay.input(Input::Rebound { conn, addr: addr(at) })
                    }
                    Step::Register(conn) => relay.control(conn, Control::Register),
                    Step::Open(conn, id, who) => relay.open(conn, AllocId(id), who),
                    Step::Data(from, id) => {
                        let known = model.links.values().any(|link| link.1 == addr(from));
                        let before = relay.server.held();
                        match relay.data(from, AllocId(id)) {
                            Forward::To(to) => prop_assert!(model.may_go(AllocId(id), Some(addr(from)), to)),
                            Forward::Hold => drop(relay.server.hold(addr(from), AllocId(id), &[id as u8; 9], relay.now)),
                            Forward::Drop(_) => {}
                        }
                        prop_assert!(known || relay.server.held() == before, "a stranger cost memory");
                        relay.drained()
                    }
                    Step::Wait(ms) => {
                        relay.now += Duration::from_millis(ms);
                        relay.input(Input::Timeout)
                    }
                    Step::Drain => relay.input(Input::Drain { within: Duration::from_secs(10) }),
                };
                model.check(&outputs, &step);
                // Both ends of an allocation may be absent when it is forgotten: then nobody is told.
                model.pairs.retain(|id, _| relay.server.allocations.contains_key(id));
                prop_assert!(relay.server.allocations() <= 3 && relay.server.links.len() <= 8);
                prop_assert!(relay.server.clients.len() <= 4);
                prop_assert!(relay.server.held() <= 4 * MAX_HELD_PER_ALLOCATION);
                prop_assert!(relay.server.poll_timeout().is_none_or(|(at, _)| at > relay.now || at + SWEEP > relay.now));
            }
        }
    }

    const LOAD: Load = Load { len: 1_200, segments: 1 };

    /// A relay with clients whose link, peer and address have the same number.
    struct Bench {
        server: RelayServer,
        now: Instant,
    }

    impl Bench {
        fn new(config: RelayConfig, clients: &[u8]) -> Self {
            let mut bench = Bench { server: RelayServer::new(config, Instant::START), now: Instant::START };
            for client in clients {
                bench.client(*client);
            }
            bench
        }

        fn with_clients(clients: &[u8]) -> Self {
            Bench::new(RelayConfig::default(), clients)
        }

        /// Clients 1 and 2 with one allocation.
        fn with_pair() -> Self {
            let mut bench = Bench::with_clients(&[1, 2]);
            bench.open(1, ID, 2);
            bench
        }

        fn config(&self) -> &RelayConfig {
            &self.server.config
        }

        fn client(&mut self, n: u8) {
            assert_eq!(self.connect(n.into(), n, 100), []);
            assert_eq!(self.control(n.into(), Control::Register).len(), 1);
        }

        fn connect(&mut self, conn: u64, who: u8, instance: u64) -> Vec<Output> {
            self.connect_at(conn, who, instance, addr(who))
        }

        fn connect_at(&mut self, conn: u64, who: u8, instance: u64, addr: SocketAddr) -> Vec<Output> {
            self.input(Input::Connected { conn, peer: peer(who), instance, addr })
        }

        fn open(&mut self, conn: u64, alloc: AllocId, other: u8) -> Vec<Output> {
            self.control(conn, Control::Open { alloc, peer: peer(other) })
        }

        fn control(&mut self, conn: u64, message: Control) -> Vec<Output> {
            self.input(Input::Control { conn, message })
        }

        fn input(&mut self, input: Input) -> Vec<Output> {
            self.server.handle_input(input, self.now);
            self.drained()
        }

        fn drained(&mut self) -> Vec<Output> {
            core::iter::from_fn(|| self.server.poll_output()).collect()
        }

        fn data(&mut self, from: u8, id: AllocId) -> Forward {
            self.server.forward(addr(from), id, LOAD, self.now)
        }

        fn hold(&mut self, from: u8, id: AllocId) -> Result<(), RelayDrop> {
            self.server.hold(addr(from), id, &[0; 9], self.now)
        }

        fn wait(&mut self, time: Duration) {
            self.now += time;
            self.input(Input::Timeout);
        }
    }

    fn failed(conn: u64, alloc: AllocId, other: u8, reason: OpenFailure) -> Output {
        Output::Send { conn, message: Control::OpenFailed { alloc, peer: peer(other), reason } }
    }

    fn peer(n: u8) -> PeerId {
        PeerId::ed25519([n; 32])
    }

    fn addr(n: u8) -> SocketAddr {
        (Ipv4Addr::new(192, 0, 2, n), 1_000).into()
    }
}
