//! The engine: carries packets hop by hop, in the order of (time, order of arrival).
//!
//! Hosts and NATs form a tree whose root is the public core. A packet *climbs* its sender's uplink, is translated by
//! each NAT it leaves, *turns* where the destination lies below, and *descends* to it. Every hop that takes time is one
//! event; hops that take none happen at once. There is no task and no timer per packet.

use std::{
    collections::BTreeMap,
    mem,
    net::{IpAddr, SocketAddr},
    task::{Context, Waker},
};

use bytes::Bytes;
use quinn::udp::EcnCodepoint;
use tracing::trace;

use self::topology::{Role, Topology};
use crate::{
    agenda::Agenda,
    link::Load,
    noise::Noise,
    rule::{Packet, Rules, Transport, Verdict},
    socket::{Arrival, Inboxes},
    tcp::segments::{Connections, Segment},
    time::Time,
    trace::{DropReason, Trace},
};

mod ports;
pub(crate) mod topology;

/// A host or a NAT of one world.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub(crate) u32);

/// A network and everything under way in it.
#[derive(Debug)]
pub(crate) struct Fabric {
    pub(crate) topology: Topology,
    pub(crate) rules: Rules,
    pub(crate) trace: Trace,
    pub(crate) inboxes: Inboxes,
    pub(crate) connections: Connections,
    pub(crate) names: BTreeMap<String, Vec<IpAddr>>,
    agenda: Agenda<Event>,
    /// Whom to wake once the fabric is unlocked.
    wakes: Vec<Waker>,
    driver: Option<Waker>,
    /// The tick for which the driver's timer is set; `u64::MAX` if it is not.
    armed: u64,
    closed: bool,
}

/// Something that happens at a moment.
#[derive(Debug)]
enum Event {
    /// A packet is through with its hop.
    Hop(Flight),
    /// A lost TCP segment is sent again.
    Resend(Flight),
    /// A host's uplink has room again.
    Writable(NodeId),
}

/// A packet on its way.
#[derive(Debug)]
pub(crate) struct Flight {
    /// Source, as translated so far.
    pub(crate) from: SocketAddr,
    /// Destination, as translated so far.
    pub(crate) to: SocketAddr,
    /// The host that sent it, or the NAT that answers.
    pub(crate) sender: NodeId,
    /// The hop it is on.
    pub(crate) stage: Stage,
    /// What it carries.
    pub(crate) body: Body,
}

/// The hop a packet is on.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Stage {
    /// Not on its way yet.
    Sent,
    /// On the uplink of this node.
    Climbing(NodeId),
    /// About to descend to this node, perhaps held back by a rule.
    Turning(NodeId),
    /// On the downlink of this node, or turned back (hairpin) at it.
    Descending(NodeId),
}

/// What a packet carries.
#[derive(Debug)]
pub(crate) enum Body {
    /// A UDP datagram.
    Datagram { payload: Bytes, ecn: Option<EcnCodepoint> },
    /// A TCP segment.
    Segment(Box<Segment>),
}

impl Fabric {
    /// A network without hosts.
    pub(crate) fn new(seed: u64) -> Self {
        Fabric {
            topology: Topology::new(Noise::new(seed)),
            rules: Rules::default(),
            trace: Trace::new(),
            inboxes: Inboxes::default(),
            connections: Connections::default(),
            names: BTreeMap::new(),
            agenda: Agenda::new(),
            wakes: Vec::new(),
            driver: None,
            armed: u64::MAX,
            closed: false,
        }
    }

    /// Lets happen what is due at `now`.
    pub(crate) fn advance(&mut self, now: Time) {
        while let Some((due, event)) = self.agenda.pop_due(now) {
            match event {
                Event::Hop(flight) => self.proceed(due, flight),
                Event::Resend(flight) => self.launch(due, flight),
                Event::Writable(host) => self.wake_writers(due, host),
            }
        }
    }

    /// Remembers the driver to wake when an earlier event turns up; when the next event is due.
    pub(crate) fn arm(&mut self, driver: &Waker) -> Option<Time> {
        if !self.driver.as_ref().is_some_and(|known| known.will_wake(driver)) {
            self.driver = Some(driver.clone());
        }
        let due = self.agenda.next_due();
        self.armed = due.map_or(u64::MAX, Time::tick);
        due
    }

    /// Carries nothing any more, so that what tasks do while they are torn down is not part of the run.
    pub(crate) fn close(&mut self) {
        self.closed = true;
    }

    /// Takes those who wait to be woken, once the fabric is unlocked.
    pub(crate) fn take_wakes(&mut self) -> Vec<Waker> {
        mem::take(&mut self.wakes)
    }

    /// Has everybody in `waiters` woken.
    pub(crate) fn wake(&mut self, waiters: &mut Vec<Waker>) {
        self.wakes.append(waiters);
    }

    /// Sends a packet off from its sender.
    pub(crate) fn launch(&mut self, now: Time, flight: Flight) {
        if self.closed {
            return;
        }
        self.trace.sent(now, flight.from, flight.to, flight.body.len());
        self.count_sent(&flight);
        trace!(at = now.micros(), from = %flight.from, to = %flight.to, length = flight.body.len(), "packet sent");
        let node = self.topology.node(flight.sender);
        let Role::Host(host) = &node.role else { return };
        if node.off {
            self.discard(now, flight, DropReason::Down);
        } else if flight.is_multicast() {
            if let Some(own) = flight.copy() {
                self.deliver(now, flight.sender, own);
            }
            self.climb(now, flight.sender, flight);
        } else if host.is_own(flight.to.ip()) {
            self.deliver(now, flight.sender, flight);
        } else if flight.from.ip().is_loopback() || !host.is_own(flight.from.ip()) {
            self.discard(now, flight, DropReason::NoRoute);
        } else {
            self.climb(now, flight.sender, flight);
        }
    }

    /// Has `waiter` woken when the uplink of `host` holds at most half of its send buffer.
    pub(crate) fn wait_writable(&mut self, now: Time, host: NodeId, waiter: &mut Context<'_>) {
        let node = self.topology.node_mut(host);
        let Role::Host(role) = &mut node.role else { return };
        enlist(&mut role.writers, waiter);
        if mem::replace(&mut role.writable_due, true) {
            return;
        }
        let due = node.up.drained_to(now, role.send_buffer.unwrap_or(usize::MAX) / 2);
        self.push(due, Event::Writable(host));
    }

    /// Drops a packet and says why; a TCP segment is sent again later.
    pub(crate) fn discard(&mut self, now: Time, flight: Flight, reason: DropReason) {
        trace!(at = now.micros(), from = %flight.from, to = %flight.to, ?reason, "packet dropped");
        match flight.body {
            Body::Datagram { .. } => self.trace.dropped(reason),
            Body::Segment(segment) => self.segment_lost(now, segment),
        }
    }

    /// Sends a TCP segment again at `due`.
    pub(crate) fn resend(&mut self, due: Time, flight: Flight) {
        self.push(due, Event::Resend(flight));
    }

    /// Calls a waiting event; the driver hears of it if it comes before everything known.
    fn push(&mut self, due: Time, event: Event) {
        if due.tick() < self.armed {
            self.armed = due.tick();
            self.wakes.extend(self.driver.clone());
        }
        self.agenda.push(due, event);
    }

    fn wake_writers(&mut self, now: Time, host: NodeId) {
        let node = self.topology.node_mut(host);
        let Role::Host(role) = &mut node.role else { return };
        let limit = role.send_buffer.unwrap_or(usize::MAX) / 2;
        let due = node.up.drained_to(now, limit);
        if due > now {
            self.push(due, Event::Writable(host));
            return;
        }
        role.writable_due = false;
        self.wakes.append(&mut role.writers);
    }

    /// Continues a packet that is through with its hop.
    fn proceed(&mut self, now: Time, flight: Flight) {
        match flight.stage {
            Stage::Sent => self.launch(now, flight),
            Stage::Climbing(node) => self.leave(now, node, flight),
            Stage::Turning(node) => self.descend(now, node, flight),
            Stage::Descending(node) => self.enter(now, node, flight),
        }
    }

    fn climb(&mut self, now: Time, node: NodeId, mut flight: Flight) {
        flight.stage = Stage::Climbing(node);
        let out = self.topology.node_mut(node).up.admit(now, flight.load());
        self.travel(now, out, flight);
    }

    fn descend(&mut self, now: Time, node: NodeId, mut flight: Flight) {
        flight.stage = Stage::Descending(node);
        let out = self.topology.node_mut(node).down.admit(now, flight.load());
        self.travel(now, out, flight);
    }

    fn travel(&mut self, now: Time, out: Result<Time, DropReason>, flight: Flight) {
        match out {
            Ok(due) if due <= now => self.proceed(now, flight),
            Ok(_) if self.agenda.is_full() => self.discard(now, flight, DropReason::Overload),
            Ok(due) => self.push(due, Event::Hop(flight)),
            Err(reason) => self.discard(now, flight, reason),
        }
    }

    /// A packet has come up from `node` to the NAT above it, or to the core.
    fn leave(&mut self, now: Time, node: NodeId, mut flight: Flight) {
        if flight.is_multicast() {
            // A router passes nothing on that is for the link alone.
            let neighbours = self.topology.neighbours(node, flight.to).into_iter();
            let copies: Vec<_> = neighbours.filter_map(|next| Some((next, flight.copy()?))).collect();
            return copies.into_iter().for_each(|(next, copy)| self.turn(now, next, Stage::Turning(next), copy));
        }
        let above = self.topology.node(node).parent;
        if let Some(next) = self.topology.below(above, flight.to.ip()) {
            return self.turn(now, next, Stage::Turning(next), flight);
        }
        let Some(nat) = above else { return self.discard(now, flight, DropReason::NoRoute) };
        let node = self.topology.node_mut(nat);
        let Role::Nat(role) = &mut node.role else { return };
        if node.off {
            return self.discard(now, flight, DropReason::Down);
        }
        if flight.to.ip() == role.inner() || flight.to.ip() == role.inner_ipv6() {
            return self.ask_gateway(now, nat, flight);
        }
        if !role.table.config.udp && flight.body.transport() == Transport::Udp {
            return self.discard(now, flight, DropReason::UdpBlocked);
        }
        if flight.to.is_ipv6() {
            let inner = (flight.body.transport(), flight.from);
            role.firewall.outbound(&role.table.config, now, inner, flight.to);
            return self.climb(now, nat, flight);
        }
        let hairpin = flight.to.ip() == role.outer;
        if hairpin && !role.table.config.hairpin {
            return self.discard(now, flight, DropReason::Hairpin);
        }
        match role.table.outbound(now, flight.body.transport(), flight.from, flight.to) {
            Ok(port) => flight.from = SocketAddr::new(role.outer.into(), port),
            Err(reason) => return self.discard(now, flight, reason),
        }
        if hairpin {
            self.turn(now, nat, Stage::Descending(nat), flight);
        } else {
            self.climb(now, nat, flight);
        }
    }

    /// A packet is for the NAT itself: if its port mapping service has an answer, that descends again.
    fn ask_gateway(&mut self, now: Time, nat: NodeId, flight: Flight) {
        let Role::Nat(role) = &mut self.topology.node_mut(nat).role else { return };
        let Body::Datagram { payload, .. } = &flight.body else {
            return self.discard(now, flight, DropReason::NoSocket);
        };
        let Some((from, answer)) = role.serve(now, flight.to, flight.from, payload) else {
            return self.discard(now, flight, DropReason::NoSocket);
        };
        let Some(next) = self.topology.below(Some(nat), flight.from.ip()) else { return };
        self.trace.sent(now, from, flight.from, answer.len());
        let body = Body::Datagram { payload: answer.into(), ecn: None };
        self.turn(
            now,
            next,
            Stage::Turning(next),
            Flight { from, to: flight.from, sender: nat, stage: Stage::Sent, body },
        );
    }

    /// A packet turns from climbing to descending below `next`, where it goes on in `stage`: here the rules see it.
    fn turn(&mut self, now: Time, next: NodeId, stage: Stage, mut flight: Flight) {
        flight.stage = stage;
        if self.rules.is_empty() {
            return self.proceed(now, flight);
        }
        let packet = Packet {
            time: now.since_start(),
            sender: flight.sender,
            receiver: self.topology.locate(next, flight.body.transport(), flight.to),
            from: flight.from,
            to: flight.to,
            transport: flight.body.transport(),
            payload: flight.body.payload(),
        };
        match self.rules.judge(&packet) {
            Verdict::Pass => self.proceed(now, flight),
            Verdict::Delay(delay) => self.travel(now, Ok(now + delay), flight),
            Verdict::Drop => self.discard(now, flight, DropReason::Rule),
        }
    }

    /// A packet has come down to `node`.
    fn enter(&mut self, now: Time, node: NodeId, mut flight: Flight) {
        let below = self.topology.node_mut(node);
        if below.off {
            return self.discard(now, flight, DropReason::Down);
        }
        let Role::Nat(role) = &mut below.role else { return self.deliver(now, node, flight) };
        if !role.table.config.udp && flight.body.transport() == Transport::Udp {
            return self.discard(now, flight, DropReason::UdpBlocked);
        }
        if flight.to.is_ipv4() {
            match role.table.inbound(now, flight.body.transport(), flight.to.port(), flight.from) {
                Ok(inner) => flight.to = inner,
                Err(reason) => return self.discard(now, flight, reason),
            }
        } else {
            let config = &role.table.config;
            let inner = (flight.body.transport(), flight.to);
            if config.ipv6_firewall && !role.firewall.admits(config, now, inner, flight.from) {
                return self.discard(now, flight, DropReason::Filtered);
            }
        }
        match self.topology.below(Some(node), flight.to.ip()) {
            Some(next) => self.descend(now, next, flight),
            None => self.discard(now, flight, DropReason::NoRoute),
        }
    }

    /// A packet has reached its host.
    fn deliver(&mut self, now: Time, host: NodeId, flight: Flight) {
        let Flight { from, to, sender, stage, body } = flight;
        let (payload, ecn) = match body {
            Body::Segment(segment) => return self.segment_arrived(now, host, (from, to), segment),
            Body::Datagram { payload, ecn } => (payload, ecn),
        };
        let Role::Host(role) = &mut self.topology.node_mut(host).role else { return };
        if to.ip().is_multicast() {
            let hears = |(group, key): &(SocketAddr, u64)| (*group == to).then_some(*key);
            let keys: Vec<u64> = role.groups.iter().filter_map(hears).collect();
            let arrival = || Arrival { from, to: to.ip(), payload: payload.clone(), ecn };
            return keys.into_iter().for_each(|key| self.hear(host, key, arrival()));
        }
        let Some(inbox) = role.udp.find(to).and_then(|key| self.inboxes.get_mut(key)) else {
            let body = Body::Datagram { payload, ecn };
            return self.discard(now, Flight { from, to, sender, stage, body }, DropReason::NoSocket);
        };
        let length = payload.len() as u64;
        match inbox.push(Arrival { from, to: to.ip(), payload, ecn }) {
            Ok(()) => {
                role.traffic.received += 1;
                role.traffic.received_bytes += length;
                self.trace.counters.delivered += 1;
                self.wakes.append(&mut inbox.waiters);
            }
            Err(Arrival { payload, .. }) => {
                let body = Body::Datagram { payload, ecn };
                self.discard(now, Flight { from, to, sender, stage, body }, DropReason::InboxFull);
            }
        }
    }

    /// A multicast has reached one of the sockets that hear its group; one whose inbox is full misses it.
    fn hear(&mut self, host: NodeId, key: u64, arrival: Arrival) {
        let length = arrival.payload.len() as u64;
        let Some(inbox) = self.inboxes.get_mut(key) else { return };
        if inbox.push(arrival).is_err() {
            return self.trace.dropped(DropReason::InboxFull);
        }
        self.wakes.append(&mut inbox.waiters);
        let traffic = &mut self.topology.host_mut(host).traffic;
        traffic.received += 1;
        traffic.received_bytes += length;
        self.trace.counters.delivered += 1;
    }

    fn count_sent(&mut self, flight: &Flight) {
        let counters = &mut self.trace.counters;
        match &flight.body {
            Body::Segment(segment) if segment.tries > 0 => counters.resent += 1,
            Body::Segment(_) => counters.segments += 1,
            Body::Datagram { payload, .. } => {
                counters.sent += 1;
                counters.sent_bytes += payload.len() as u64;
                if let Role::Host(host) = &mut self.topology.node_mut(flight.sender).role {
                    host.traffic.sent += 1;
                    host.traffic.sent_bytes += payload.len() as u64;
                }
            }
        }
    }
}

impl Flight {
    /// Whether everybody on the link that listens gets it.
    fn is_multicast(&self) -> bool {
        self.to.ip().is_multicast() && matches!(self.body, Body::Datagram { .. })
    }

    /// A copy for one of several receivers; segments have one receiver.
    fn copy(&self) -> Option<Flight> {
        let Body::Datagram { payload, ecn } = &self.body else { return None };
        Some(Flight { body: Body::Datagram { payload: payload.clone(), ecn: *ecn }, ..*self })
    }

    /// What a pipe needs to know of this packet.
    fn load(&self) -> Load {
        let ip = if self.to.is_ipv4() { 20 } else { 40 };
        match &self.body {
            Body::Datagram { payload, .. } => Load { size: ip + 8 + payload.len(), rigid: true },
            Body::Segment(segment) => Load { size: ip + 20 + segment.len(), rigid: false },
        }
    }
}

impl Body {
    fn transport(&self) -> Transport {
        match self {
            Body::Datagram { .. } => Transport::Udp,
            Body::Segment(_) => Transport::Tcp,
        }
    }

    fn payload(&self) -> &[u8] {
        match self {
            Body::Datagram { payload, .. } => payload,
            Body::Segment(segment) => segment.payload(),
        }
    }

    fn len(&self) -> usize {
        self.payload().len()
    }
}

/// Adds the task behind `waiter` unless it is there already.
pub(crate) fn enlist(waiters: &mut Vec<Waker>, waiter: &Context<'_>) {
    if !waiters.iter().any(|known| known.will_wake(waiter.waker())) {
        waiters.push(waiter.waker().clone());
    }
}
