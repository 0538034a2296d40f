//! Proof at the packets: which message crossed without a relay, and what a host has sent to find the other.
//!
//! Packets are sealed, so nobody can see which of them holds a message. But a message that was handed over at `t` is held
//! by none that left earlier. If it has arrived although nothing that could hold it has left its sender for the relay
//! since `t`, it came another way: straight.

use std::{
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use byway_proto::wire::{self, Kind, relay_data};

use crate::{Link, NodeId, Packet, Rule, Transport, Verdict};

/// Bytes of a message: more than anything but messages and padded probes has.
pub(crate) const MESSAGE: usize = 400;

/// What lies between a host and the core, where packets are seen.
const ACCESS: Duration = Link::standard().delay;

/// What the two hosts of a run have sent; clones see the same.
#[derive(Debug, Clone)]
pub(crate) struct Watch(Arc<Mutex<[Sent; 2]>>);

/// What one host has sent, as seen in the core.
#[derive(Debug, Default)]
struct Sent {
    /// When the last packet that can hold a message left for a server.
    last_relayed: Option<Duration>,
    /// When the last such packet left that reaches the other host by itself.
    last_straight: Option<Duration>,
    /// Guesses: packets to an address that belongs neither to a server nor to the other host, nor to a port that a NAT
    /// has mapped to it. The few that hit such a port are not among them.
    guesses: u64,
}

/// The rule behind a [`Watch`], which lets everything pass.
#[derive(Debug)]
pub(crate) struct Eye {
    watch: Watch,
    hosts: [NodeId; 2],
    servers: Vec<NodeId>,
}

impl Watch {
    /// Watches two hosts; `servers` are relays and STUN servers.
    pub(crate) fn new(hosts: [NodeId; 2], servers: Vec<NodeId>) -> (Self, Eye) {
        let watch = Watch(Arc::default());
        (watch.clone(), Eye { watch, hosts, servers })
    }

    /// Whether a message that host `side` handed over at `since`, and that has arrived, crossed no relay.
    pub(crate) fn was_straight(&self, side: usize, since: Duration) -> bool {
        let sent = &self.lock()[side];
        sent.last_straight.is_some_and(|left| left >= since) && sent.last_relayed.is_none_or(|left| left < since)
    }

    /// Guesses of host `side`.
    pub(crate) fn guesses(&self, side: usize) -> u64 {
        self.lock()[side].guesses
    }

    fn lock(&self) -> MutexGuard<'_, [Sent; 2]> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Rule for Eye {
    fn verdict(&mut self, packet: &Packet<'_>) -> Verdict {
        let Some(side) = self.hosts.iter().position(|host| *host == packet.sender) else { return Verdict::Pass };
        if packet.transport != Transport::Udp {
            return Verdict::Pass;
        }
        let left = packet.time.saturating_sub(ACCESS);
        let to_server = packet.receiver.is_some_and(|receiver| self.servers.contains(&receiver));
        let to_other = packet.receiver == Some(self.hosts[1 - side]);
        let sent = &mut self.watch.lock()[side];
        if can_hold_message(packet.payload) {
            if to_other {
                sent.last_straight = Some(left);
            } else {
                sent.last_relayed = Some(left);
            }
        }
        let elsewhere = !to_server && !to_other && packet.to.ip() != packet.from.ip(); // a survey may ask itself
        sent.guesses += u64::from(elsewhere && is_public(packet.to.ip()));
        Verdict::Pass
    }
}

/// Whether a datagram is large enough for a message, and of a sort that carries any.
fn can_hold_message(datagram: &[u8]) -> bool {
    let inner = relay_data::parse(datagram).map_or(datagram, |(_, inner)| inner);
    datagram.len() >= MESSAGE && wire::classify(inner) != Kind::Probe
}

/// Whether an address can be in the core: packets to others go nowhere.
fn is_public(ip: IpAddr) -> bool {
    !matches!(ip, IpAddr::V4(ip) if ip.is_private() || ip.is_loopback() || ip.is_link_local())
}
