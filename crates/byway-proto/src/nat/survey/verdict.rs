//! What the observations say. A lost packet can only leave a verdict open, never turn it.

use alloc::{collections::BTreeSet, vec::Vec};
use core::{net::SocketAddr, time::Duration};

use crate::{
    Instant,
    nat::{Mapping, Ports, SocketId},
};

/// Observations of one socket are compared if no more time than this lies between them: the shortest-lived mapping of
/// a usable NAT lives longer.
pub(super) const COMPARABLE: Duration = Duration::from_secs(10);

/// The largest step of a counter that is believed. Two random ports are as close once in 1,000 times; three ports agree on a step
/// once in 10 million.
const MAX_STEP: i32 = 32;

/// Other hosts' mappings between two of ours that are still seen through.
const MAX_BETWEEN: i32 = 8;

/// How one server saw one socket.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seen {
    pub(super) socket: SocketId,
    pub(super) server: SocketAddr,
    pub(super) mapped: SocketAddr,
    pub(super) at: Instant,
}

/// The mapping behaviour (RFC 4787 §4.1), by comparing how different servers saw one socket.
///
/// Where servers differ by address only, a difference is called address-and-port-dependent: who then relies on less than is
/// true loses nothing. Where they differ by port only, as with a single relay, a NAT that makes no difference is called
/// endpoint-independent, for those that look at the address alone are rare: who then relies on it loses some pings.
pub(super) fn mapping(seen: &[Seen]) -> Option<Mapping> {
    // of all pairs: (servers share an address, mappings are equal)
    let mut pairs = BTreeSet::new();
    for (index, a) in seen.iter().enumerate() {
        for b in seen.iter().skip(index + 1) {
            let together = a.at.since(b.at).max(b.at.since(a.at)) <= COMPARABLE;
            if a.socket == b.socket && a.server != b.server && together {
                pairs.insert((a.server.ip() == b.server.ip(), a.mapped == b.mapped));
            }
        }
    }
    let (by_port, by_addr) = (pairs.contains(&(true, false)), pairs.contains(&(false, false)));
    let (not_by_port, not_by_addr) = (pairs.contains(&(true, true)), pairs.contains(&(false, true)));
    match () {
        () if by_port => Some(Mapping::AddressAndPortDependent),
        () if by_addr && not_by_port => Some(Mapping::AddressDependent),
        () if by_addr => Some(Mapping::AddressAndPortDependent),
        () if not_by_addr || not_by_port => Some(Mapping::EndpointIndependent),
        () => None,
    }
}

/// What one request of a burst showed, in the order in which they were sent.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sample {
    pub(super) socket: SocketId,
    /// The socket's own port.
    pub(super) local: u16,
    pub(super) server: SocketAddr,
    /// The mapping's port; `None` if no answer came.
    pub(super) port: Option<u16>,
}

/// What bursts of new mappings have shown about port allocation.
#[derive(Debug, Clone, Default)]
pub(super) struct Spread {
    /// Sockets whose first mapping was seen, and how many of these mappings have the socket's own port.
    sockets: usize,
    preserved: usize,
    /// From each new mapping to the next one, where both were seen.
    steps: Vec<i32>,
}

impl Spread {
    /// Adds a burst; `mapping` tells which of its requests made a new mapping.
    pub(super) fn add(&mut self, samples: &[Sample], mapping: Option<Mapping>) {
        let shares = |a: &Sample, b: &Sample| match mapping {
            _ if a.socket != b.socket => false,
            Some(Mapping::EndpointIndependent) => true,
            Some(Mapping::AddressDependent) => a.server.ip() == b.server.ip(),
            Some(Mapping::AddressAndPortDependent) | None => a.server == b.server,
        };
        let mut last: Option<u16> = None;
        for (index, sample) in samples.iter().enumerate() {
            let earlier = samples.get(..index).unwrap_or_default();
            if earlier.iter().any(|other| shares(other, sample)) {
                continue; // no new mapping
            }
            if let (Some(before), Some(port)) = (last, sample.port) {
                self.steps.push(i32::from(port) - i32::from(before));
            }
            last = sample.port;
            if !earlier.iter().any(|other| other.socket == sample.socket) {
                let mut same = samples.iter().filter(|other| shares(other, sample));
                let port = same.find_map(|other| other.port);
                self.sockets += usize::from(port.is_some());
                self.preserved += usize::from(port == Some(sample.local));
            }
        }
    }

    /// How ports are allotted (RFC 4787 §4.2); with `last`, also where the evidence is thin.
    pub(super) fn ports(&self, last: bool) -> Option<Ports> {
        if self.preserved >= 2 && 2 * self.preserved > self.sockets {
            return Some(Ports::Preserving);
        }
        let steps = self.steps.len();
        if steps == 0 || (steps == 1 && !last) {
            return None;
        }
        // without the sockets' first mappings it may be a NAT that gives only those the socket's own port
        let random = Some(Ports::Random).filter(|_| self.sockets >= 2);
        let Some(step) = self.step() else { return random };
        // one of our mappings may follow a wrap of the counter or a crowd of others
        let fits = |other: &&i32| *other % step == 0 && (1..=MAX_BETWEEN).contains(&(*other / step));
        match 2 * self.steps.iter().filter(fits).count() {
            fitting if fitting > steps => Some(Ports::Sequential { step: step as i16 }),
            _ => random.filter(|_| last),
        }
    }

    /// The smallest distance between two mappings that a counter may have made: in larger ones other hosts had their share.
    fn step(&self) -> Option<i32> {
        self.steps.iter().copied().filter(|step| (1..=MAX_STEP).contains(&step.abs())).min_by_key(|step| step.abs())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn burst(ports: &[Option<u16>]) -> Spread {
        let sample = |(index, port): (usize, &Option<u16>)| Sample {
            socket: SocketId(1 + index as u32 % 4),
            local: 9,
            server: SocketAddr::from(([192, 0, 2, 1 + (index / 4) as u8], 3_478)),
            port: *port,
        };
        let samples: Vec<Sample> = ports.iter().enumerate().map(sample).collect();
        let mut spread = Spread::default();
        spread.add(&samples, Some(Mapping::AddressAndPortDependent));
        spread
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        /// At most 2 of 7 gaps hold others' mappings, 3 of 8 answers may be lost in a row at the end: always right.
        #[test]
        fn a_counter_is_known_by_its_step_in_spite_of_others(
            start: u16, step in prop::sample::select(&[1i16, 2, 4, 8, -1, -2, 16][..]),
            gaps in prop::sample::subsequence((0..7usize).collect::<Vec<_>>(), 0..=2), others in 1u16..4, lost in 0usize..3,
        ) {
            let mut port = start;
            let mut ports = Vec::new();
            for index in 0..8 {
                let makers = if gaps.contains(&index) { 1 + others } else { 1 };
                ports.push((index < 8 - lost).then_some(port));
                port = port.wrapping_add((step as u16).wrapping_mul(makers));
            }
            prop_assert_eq!(burst(&ports).ports(true), Some(Ports::Sequential { step }));
        }
    }

    #[test]
    fn random_ports_are_taken_for_a_counter_less_than_once_in_20_000_times() {
        let mut rng = crate::Rng::new(&[7; 32], "ports");
        let mut wrong = 0;
        for _ in 0..100_000 {
            let ports: [_; 8] = core::array::from_fn(|_| Some(1_024 + rng.below(64_512) as u16));
            wrong += usize::from(burst(&ports).ports(true) != Some(Ports::Random));
        }
        assert!(wrong < 5, "{wrong} of 100,000");
    }

    #[test]
    fn one_distance_alone_is_evidence_only_in_the_end() {
        let spread = burst(&[Some(5_000), Some(5_001), None]);
        assert_eq!((spread.ports(false), spread.ports(true)), (None, Some(Ports::Sequential { step: 1 })));
        assert_eq!(burst(&[Some(5_000), None, Some(5_001)]).ports(true), None);
    }
}
