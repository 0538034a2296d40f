//! The machine of a relay.

mod admission;
mod allocations;

use alloc::{
    collections::{BTreeMap, VecDeque},
    vec::Vec,
};
use core::{net::SocketAddr, time::Duration};

use super::{
    CloseReason, Forward, Input, Load, MAX_UNANSWERED, OPEN_BURST, OPEN_RATE, Output, RelayConfig, RelayCounters,
    RelayDrop, SWEEP,
    clients::{Client, Clients, Slot},
    fair::Fair,
    held::Held,
};
use crate::{gate::Source, hello::Control, id::PeerId, schedule::Bucket, time::Instant, wire::relay_data::AllocId};

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
    /// How many links come from each source.
    sources: BTreeMap<Source, usize>,
    fair: Option<Fair>,
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
    source: Source,
}

#[derive(Debug)]
struct Allocation {
    opener: Slot,
    other: Slot,
    /// When it last carried data, or was opened.
    used: Instant,
    /// What the opener has sent, as long as the other end has not answered.
    unanswered: Option<u64>,
}

impl RelayServer {
    /// A relay without clients.
    pub fn new(config: RelayConfig, now: Instant) -> Self {
        RelayServer {
            fair: config.total_rate.map(|rate| Fair::new(rate, now)),
            config,
            links: BTreeMap::new(),
            unregistered: BTreeMap::new(),
            clients: Clients::default(),
            sources: BTreeMap::new(),
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
            Input::Connected { conn, peer, instance, addr, source } => {
                self.connected(conn, Link { peer, instance, addr, source }, now);
            }
            Input::Disconnected { conn } => self.disconnected(conn, now),
            Input::Rebound { conn, addr, source } => self.rebound(conn, addr, source),
            Input::Control { conn, message: Control::Register } => self.register(conn, now),
            Input::Control { conn, message: Control::Open { alloc, peer } } => self.open(conn, alloc, peer, now),
            Input::Control { .. } => self.counters.control_ignored += 1,
            Input::Drain { within } => self.drain(within, now),
            Input::Configure(config) => self.configure(config, now),
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
        let is_at = |slot: Slot| self.clients.at(slot).is_some_and(|client| client.sends_from(from, now));
        let (sender, receiver) = if is_at(allocation.opener) {
            (allocation.opener, allocation.other)
        } else if is_at(allocation.other) {
            (allocation.other, allocation.opener)
        } else {
            return Err(RelayDrop::NotInPair);
        };
        let to = self.clients.at(receiver).and_then(Client::addr).ok_or(RelayDrop::PeerAbsent)?;
        let (slot, len) = (sender, load.len as u64);
        if sender == allocation.other {
            allocation.unanswered = None;
        } else if let Some(sent) = &mut allocation.unanswered {
            *sent = sent.saturating_add(len);
            if *sent > MAX_UNANSWERED {
                return Err(RelayDrop::Unanswered);
            }
        }
        let sender = self.clients.at_mut(slot).ok_or(RelayDrop::NotInPair)?;
        let shared = self.fair.as_mut().is_none_or(|fair| fair.take(slot, &mut sender.spent, len, now));
        if !shared || !sender.bytes.take(len, now) {
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
        let len = bytes.len() as u64;
        let shared = self.fair.as_mut().is_none_or(|fair| fair.take(slot, &mut client.spent, len, now));
        if !shared || !client.bytes.take(len, now) {
            return Err(RelayDrop::RateLimited);
        }
        self.held.push(id, slot, bytes, now)?;
        self.counters.datagrams_held += 1;
        Ok(())
    }

    /// Forgets a link; its client stays, absent, if it has allocations.
    fn disconnected(&mut self, conn: u64, now: Instant) {
        let Some(link) = self.links.remove(&conn) else {
            return;
        };
        self.leave_source(link.source);
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
        client.left = client.addr();
        let idle = client.allocs.is_empty();
        self.clients.set_addr(slot, None);
        self.orphan(slot);
        if idle {
            self.clients.remove(slot);
        }
    }

    fn rebound(&mut self, conn: u64, addr: SocketAddr, source: Source) {
        let Some(link) = self.links.get_mut(&conn) else {
            return;
        };
        link.addr = addr;
        let old = core::mem::replace(&mut link.source, source);
        *self.sources.entry(source).or_insert(0) += 1;
        self.leave_source(old);
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
        let Some(&Link { peer, instance, addr, .. }) = self.links.get(&conn) else {
            self.counters.control_ignored += 1;
            return;
        };
        if self.draining {
            let known = self.clients.of_peer(&peer).and_then(|slot| self.clients.at_mut(slot));
            if known.is_some_and(|client| client.conn == Some(conn)) {
                self.tell_registered(conn, addr); // it asks again, and has until the deadline as before
            } else {
                self.close(conn, CloseReason::Draining, now);
            }
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
mod tests;
