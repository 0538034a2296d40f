//! What crosses the network, as seen in the core: copies, and how much of a line is used.
//!
//! Packets are sealed, but a copy of a datagram has the bytes of the first one: what was seen before within
//! [`MEMORY`] packets of the same sender is a copy.

use std::{
    collections::{HashSet, VecDeque},
    hash::{BuildHasher, BuildHasherDefault, DefaultHasher},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use byway_proto::wire::{self, Kind, relay_data};

use crate::{NodeId, Packet, Rule, Transport, Verdict};

/// Packets of one sender that are remembered: seconds of a full line of 20 Mbit/s, longer than any hedge waits.
const MEMORY: usize = 20_000;

/// IP and UDP headers, which use the line too.
const HEADERS: u64 = 28;

/// The resolution of a line's use.
pub(super) const BIN: Duration = Duration::from_millis(10);

/// What the two hosts have sent; clones see the same.
#[derive(Debug, Clone, Default)]
pub(super) struct Wire(Arc<Mutex<[Sent; 2]>>);

/// What one host has sent to the other, whichever way.
#[derive(Debug, Default)]
struct Sent {
    bytes: u64,
    copied: u64,
    seen: Memory,
    /// Bytes that came past the last server on their way, copies left out, by [`BIN`].
    bins: Vec<u64>,
    delivered: Memory,
}

/// Hashes of the packets seen last.
#[derive(Debug, Default)]
struct Memory {
    hashes: HashSet<u64>,
    order: VecDeque<u64>,
}

/// The rule behind a [`Wire`], which lets everything pass.
#[derive(Debug)]
pub(super) struct Eye {
    wire: Wire,
    hosts: [NodeId; 2],
    relays: Vec<NodeId>,
}

impl Wire {
    pub(super) fn new(hosts: [NodeId; 2], relays: Vec<NodeId>) -> (Self, Eye) {
        let wire = Wire::default();
        (wire.clone(), Eye { wire, hosts, relays })
    }

    /// The share of bytes that were copies, in percent.
    pub(super) fn copied_pct(&self) -> f64 {
        let sides = self.lock();
        let (bytes, copied) = sides.iter().fold((0, 0), |sum, side| (sum.0 + side.bytes, sum.1 + side.copied));
        100.0 * copied as f64 / (bytes.max(1)) as f64
    }

    /// Bits per second that reached the other host from host `side` between two moments.
    pub(super) fn rate(&self, side: usize, from: Duration, to: Duration) -> f64 {
        let bin = |at: Duration| (at.as_millis() / BIN.as_millis()) as usize;
        let bins: u64 = self.lock()[side].bins.iter().take(bin(to)).skip(bin(from)).sum();
        bins as f64 * 8.0 / (to - from).as_secs_f64()
    }

    fn lock(&self) -> MutexGuard<'_, [Sent; 2]> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Rule for Eye {
    fn verdict(&mut self, packet: &Packet<'_>) -> Verdict {
        let inner = relay_data::parse(packet.payload).map_or(packet.payload, |(_, inner)| inner);
        if packet.transport != Transport::Udp || matches!(wire::classify(inner), Kind::Stun) {
            return Verdict::Pass;
        }
        let probe = wire::classify(inner) == Kind::Probe;
        let (from_relay, to_relay) =
            (self.relays.contains(&packet.sender), packet.receiver.is_some_and(|to| self.relays.contains(&to)));
        let sender = self.hosts.iter().position(|host| *host == packet.sender);
        let receiver = self.hosts.iter().position(|host| Some(*host) == packet.receiver);
        let relayed = packet.payload.len() != inner.len();
        if (to_relay || from_relay) && !relayed {
            return Verdict::Pass; // between a node and its relay
        }
        let hash = BuildHasherDefault::<DefaultHasher>::default().hash_one(inner);
        let mut sides = self.wire.lock();
        if let Some(side) = sender {
            let size = packet.payload.len() as u64 + HEADERS;
            let sent = &mut sides[side];
            sent.bytes += size;
            if !sent.seen.add(hash) {
                sent.copied += size;
            }
        }
        if let Some(side) = receiver.map(|receiver| 1 - receiver).filter(|_| !probe) {
            let sent = &mut sides[side];
            if sent.delivered.add(hash) {
                let bin = (packet.time.as_millis() / BIN.as_millis()) as usize;
                if sent.bins.len() <= bin {
                    sent.bins.resize(bin + 1, 0);
                }
                sent.bins[bin] += packet.payload.len() as u64 + HEADERS;
            }
        }
        Verdict::Pass
    }
}

impl Memory {
    /// Notes a packet; `false` if it was seen before.
    fn add(&mut self, hash: u64) -> bool {
        let new = self.hashes.insert(hash);
        if new {
            self.order.push_back(hash);
            if self.order.len() > MEMORY
                && let Some(oldest) = self.order.pop_front()
            {
                self.hashes.remove(&oldest);
            }
        }
        new
    }
}
