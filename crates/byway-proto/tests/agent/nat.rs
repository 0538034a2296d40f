//! A NAT by the axes of RFC 4787, and what two of them allow.

use std::{
    collections::{BTreeMap, HashSet},
    net::{IpAddr, SocketAddr},
};

use byway_proto::{
    Instant, Rng,
    nat::{Filtering, Mapping, Ports},
};

/// A NAT by the axes of RFC 4787.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NatKind {
    pub(crate) mapping: Mapping,
    pub(crate) filtering: Filtering,
    pub(crate) ports: Ports,
}

/// A NAT of one host; nothing expires, for a run takes seconds.
pub(super) struct Nat {
    kind: NatKind,
    pub(super) ip: IpAddr,
    /// Inside address, and as much of the destination as the mapping depends on; to the public port.
    mappings: BTreeMap<(SocketAddr, Option<IpAddr>, u16), u16>,
    /// Public port to inside address.
    inside: BTreeMap<u16, SocketAddr>,
    sent_to: HashSet<(u16, SocketAddr)>,
    counter: u16,
    counted: Instant,
}

/// The milliseconds for which others' mappings are counted; those of an hour lead nowhere else than those of some seconds.
const MAX_SLICES: u64 = 5_000;

impl Nat {
    pub(super) fn new(kind: NatKind, ip: IpAddr, rng: &mut Rng) -> Self {
        let counter = 1_024 + rng.below(60_000) as u16;
        let (mappings, inside) = (BTreeMap::new(), BTreeMap::new());
        Nat { kind, ip, mappings, inside, sent_to: HashSet::new(), counter, counted: Instant::START }
    }

    /// The public address of what a host sends.
    pub(super) fn out(&mut self, from: SocketAddr, to: SocketAddr, now: Instant, rng: &mut Rng) -> SocketAddr {
        let key = match self.kind.mapping {
            Mapping::EndpointIndependent => (from, None, 0),
            Mapping::AddressDependent => (from, Some(to.ip()), 0),
            _ => (from, Some(to.ip()), to.port()),
        };
        let port = match self.mappings.get(&key) {
            Some(port) => *port,
            None => self.new_port(from, now, rng),
        };
        self.mappings.insert(key, port);
        self.inside.insert(port, from);
        self.sent_to.insert((port, to));
        SocketAddr::new(self.ip, port)
    }

    fn new_port(&mut self, from: SocketAddr, now: Instant, rng: &mut Rng) -> u16 {
        let random = |rng: &mut Rng| 1_024 + rng.below(64_512) as u16;
        let mut port = match self.kind.ports {
            Ports::Preserving => from.port(),
            Ports::Sequential { step } => {
                // 5 mappings a second by other hosts, Poisson by thin slices
                let slices = (now.since(self.counted).as_millis() as u64).min(MAX_SLICES);
                let others = (0..slices).filter(|_| rng.below(200) == 0).count() as i32;
                self.counted = now;
                let next = i32::from(self.counter) + (others + 1) * i32::from(step);
                self.counter = (1_024 + (next - 1_024).rem_euclid(64_512)) as u16;
                self.counter
            }
            _ => random(rng),
        };
        while self.inside.contains_key(&port) {
            port = random(rng);
        }
        port
    }

    /// Where a packet from outside goes, if it may come in.
    pub(super) fn lets_in(&self, from: SocketAddr, port: u16) -> Option<SocketAddr> {
        let inside = *self.inside.get(&port)?;
        let mut sent = self.sent_to.iter().filter(|(by, _)| *by == port).map(|(_, to)| *to);
        let open = match self.kind.filtering {
            Filtering::EndpointIndependent => true,
            Filtering::AddressDependent => sent.any(|to| to.ip() == from.ip()),
            _ => sent.any(|to| to == from),
        };
        open.then_some(inside)
    }
}

/// Whether two hosts come to a direct path without a guess, by the axes alone; byway-sim's `oracle` says why.
pub(super) fn meet_without_guessing([a, b]: [NatKind; 2]) -> bool {
    let steady = |nat: NatKind| nat.mapping <= Mapping::AddressDependent;
    let any_port = |nat: NatKind| nat.filtering <= Filtering::AddressDependent;
    let everybody = |nat: NatKind| nat.filtering == Filtering::EndpointIndependent;
    let hears = |a, b| everybody(a) && any_port(b);
    match [a, b].map(|nat| nat.mapping == Mapping::EndpointIndependent) {
        [true, true] => true,
        [true, false] => any_port(a),
        [false, true] => any_port(b),
        [false, false] => (hears(a, b) || hears(b, a)) && (steady(a) || steady(b)),
    }
}

/// Whether nothing leads through within any budget: both ports of every path would have to be hit at once.
pub(super) fn never_meet(kinds: [NatKind; 2]) -> bool {
    let strict = |nat: &NatKind| {
        (nat.mapping, nat.filtering) == (Mapping::AddressAndPortDependent, Filtering::AddressAndPortDependent)
    };
    kinds.iter().all(strict) && kinds.iter().any(|nat| nat.ports == Ports::Random)
}
