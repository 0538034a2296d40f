//! How old a mapping of this node's NAT gets, whatever passes through it.
//!
//! Some carriers end every mapping at a fixed age. Whoever answers the node's own socket says where it was seen; if that is another
//! port although the last answer was a moment ago, the mapping in between has died of age, or its router has restarted. Two in
//! a row that got equally old tell which.
//!
//! It is learned only where all that the node sends shares one public port, for elsewhere each observer sees another, and for
//! IPv4: nobody translates the ports of IPv6. Peers may lie; the least age that is believed bounds what a lie costs.

use alloc::collections::BTreeMap;
use core::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use super::{FamilyReport, Mapping as Behaviour, candidates::is_private};
use crate::Instant;

/// The least age that is acted upon: a fresh socket for each connection and minute is all that a direct path is worth.
const MIN_AGE: Duration = Duration::from_secs(60);

/// The greatest: a day without a change of the line is rare enough.
const MAX_AGE: Duration = Duration::from_secs(24 * 3_600);

/// The most networks of this host whose age is remembered: a home, an office, a phone's and some of cafés.
const MAX_NETWORKS: usize = 16;

/// After so long without an answer a mapping may have died of idleness, unless idle ones are known to live three times as long.
const FLOWING: Duration = Duration::from_secs(3);

/// Ages that differ by less than this fraction are equal: the moment of death is known to a ping's distance.
const TOLERANCE: u32 = 10;

/// For so long an answer that still shows the mapping before is late rather than news.
const LATE: Duration = Duration::from_secs(10);

/// The age at which mappings end, as far as it is known.
#[derive(Debug, Default)]
pub(super) struct Ages {
    /// When the node came to the present network.
    since: Instant,
    mapping: Option<Mapping>,
    /// By this host's public address.
    known: BTreeMap<IpAddr, Duration>,
}

/// The mapping of the node's own socket.
#[derive(Debug, Clone, Copy)]
struct Mapping {
    addr: SocketAddr,
    /// When it was made, if that is known.
    born: Option<Instant>,
    heard: Instant,
    /// The one before, and how old it got.
    before: Option<(SocketAddr, Option<Duration>)>,
}

impl Ages {
    /// The node is on another network.
    pub(super) fn begin(&mut self, now: Instant) {
        (self.since, self.mapping) = (now, None);
    }

    /// Takes in where an answer to the node's own socket was sent to; says whether an age was learned from it.
    pub(super) fn hear(&mut self, addr: SocketAddr, report: Option<&FamilyReport>, now: Instant) -> bool {
        let addr = SocketAddr::new(addr.ip().to_canonical(), addr.port());
        let Some(report) = report.filter(|it| it.mapping == Some(Behaviour::EndpointIndependent) && !it.untranslated)
        else {
            return false;
        };
        if addr.is_ipv6() || is_private(addr.ip()) {
            return false;
        }
        let Some(mapping) = self.mapping.as_mut().filter(|mapping| mapping.addr.ip() == addr.ip()) else {
            let born = (report.public == Some(addr)).then_some(self.since);
            self.mapping = Some(Mapping { addr, born, heard: now, before: None });
            return false;
        };
        if mapping.addr == addr {
            mapping.heard = now;
            return false;
        }
        let is_late = |(before, _): (SocketAddr, _)| before == addr && now.since(mapping.heard) < LATE;
        if mapping.before.is_some_and(is_late) {
            return false;
        }
        let flowing = FLOWING.max(report.lifetime.unwrap_or_default() / 3);
        let lived = mapping.born.filter(|_| now.since(mapping.heard) <= flowing).map(|born| mapping.heard.since(born));
        let before = mapping.before.and_then(|(_, lived)| lived);
        *mapping = Mapping { addr, born: Some(now), heard: now, before: Some((mapping.addr, lived)) };
        let learned = lived.zip(before).filter(|(a, b)| a.abs_diff(*b) <= (*a.max(b)) / TOLERANCE);
        let age = learned.map(|(a, b)| a.min(b)).filter(|age| (MIN_AGE..=MAX_AGE).contains(age));
        if let Some(age) = age {
            if self.known.len() >= MAX_NETWORKS && !self.known.contains_key(&addr.ip()) {
                self.known.pop_first();
            }
            self.known.insert(addr.ip(), age);
        }
        age.is_some()
    }

    /// How old a mapping gets behind this public address, if all of them get equally old.
    pub(super) fn of(&self, public: IpAddr) -> Option<Duration> {
        self.known.get(&public).copied()
    }

    /// When the mapping of the node's own socket was made.
    pub(super) fn born(&self) -> Option<Instant> {
        self.mapping?.born
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Instant {
        Instant::after_start(Duration::from_secs(seconds))
    }

    fn addr(port: u16) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, 1], port))
    }

    fn report(mapping: Behaviour) -> FamilyReport {
        FamilyReport { public: Some(addr(1)), mapping: Some(mapping), ..FamilyReport::default() }
    }

    /// What is learned if answers come each `every` seconds and the mappings get so old, one after the other.
    fn learned(ages: &[u64], every: u64, report: &FamilyReport) -> Option<Duration> {
        let mut it = Ages::default();
        it.begin(at(0));
        let mut now = 0;
        for (port, age) in (1..).zip(ages) {
            for second in (0..*age).step_by(every as usize) {
                it.hear(addr(port), Some(report), at(now + second));
            }
            now += age;
        }
        it.hear(addr(99), Some(report), at(now));
        it.of(addr(1).ip())
    }

    #[test]
    fn two_mappings_that_got_equally_old_although_packets_passed_tell_the_age() {
        let easy = report(Behaviour::EndpointIndependent);
        assert_eq!(learned(&[600, 600], 1, &easy), Some(Duration::from_secs(599)));
        assert_eq!(learned(&[600], 1, &easy), None, "it may be a router's restart");
        assert_eq!(learned(&[600, 300], 1, &easy), None, "a router that restarts now and then");
        assert_eq!(learned(&[50, 50], 1, &easy), None, "too short to follow");
    }

    #[test]
    fn mappings_that_die_of_idleness_tell_no_age() {
        let mut easy = report(Behaviour::EndpointIndependent);
        assert_eq!(learned(&[600, 600], 30, &easy), None);
        easy.lifetime = Some(Duration::from_secs(120));
        assert_eq!(learned(&[600, 600], 30, &easy), Some(Duration::from_secs(570)), "idle ones live for longer");
    }

    #[test]
    fn where_each_destination_has_a_port_of_its_own_no_age_is_learned() {
        assert_eq!(learned(&[600, 600], 1, &report(Behaviour::AddressAndPortDependent)), None);
    }

    #[test]
    fn another_network_begins_anew_and_remembers_the_last_one() {
        let (mut it, easy) = (Ages::default(), report(Behaviour::EndpointIndependent));
        for second in 0..=240 {
            it.hear(addr(1 + second as u16 / 120), Some(&easy), at(second));
        }
        assert_eq!(it.of(addr(1).ip()), Some(Duration::from_secs(119)));
        it.begin(at(300));
        assert_eq!(it.born(), None);
        it.hear(addr(1), Some(&easy), at(301));
        assert_eq!((it.born(), it.of(addr(1).ip()).is_some()), (Some(at(300)), true));
    }

    #[test]
    fn a_late_answer_from_the_mapping_before_is_no_change_back() {
        let (mut it, easy) = (Ages::default(), report(Behaviour::EndpointIndependent));
        it.hear(addr(1), Some(&easy), at(1));
        it.hear(addr(2), Some(&easy), at(2));
        it.hear(addr(1), Some(&easy), at(3));
        it.hear(addr(2), Some(&easy), at(4));
        assert_eq!(it.born(), Some(at(2)));
    }

    #[test]
    fn networks_are_bounded() {
        let mut it = Ages::default();
        for network in 0..40u8 {
            let addr = |port| SocketAddr::from(([192, 0, 2, network], port));
            let report = FamilyReport { public: Some(addr(1)), ..report(Behaviour::EndpointIndependent) };
            let start = u64::from(network) * 1_000;
            it.begin(at(start));
            for second in 0..=240 {
                it.hear(addr(1 + second as u16 / 120), Some(&report), at(start + second));
            }
        }
        assert_eq!(it.known.len(), MAX_NETWORKS);
    }
}
