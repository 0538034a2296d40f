//! How old a mapping of this node's NAT gets, whatever passes through it.
//!
//! Some carriers end every mapping at a fixed age. Whoever answers the node's own socket says where it was seen; if that is another
//! port although the last answer was a moment ago, the mapping in between has died of age, or its router has restarted. Two in
//! a row that got equally old tell which.
//!
//! It is learned only where all that the node sends shares one public port, for elsewhere each observer sees another, and for
//! IPv4: nobody translates the ports of IPv6. Peers may lie: where another one still sees the mapping that is said to be gone, it is
//! not; and the least age that is believed bounds what the lie of the only one costs.

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

/// An answer comes so much later than the keep-alive, whose interval is that third.
const SLACK: Duration = Duration::from_secs(1);

/// Ages that differ by less than this fraction are equal: the moment of death is known to a ping's distance.
const TOLERANCE: u32 = 10;

/// For so long an answer that still shows the mapping before is late; after that, who said that it is gone was wrong.
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
    /// When it was first told, and when last.
    told: Instant,
    heard: Instant,
    before: Option<Before>,
}

/// The mapping before.
#[derive(Debug, Clone, Copy)]
struct Before {
    addr: SocketAddr,
    born: Option<Instant>,
    /// How old it got.
    lived: Option<Duration>,
}

impl Ages {
    /// The node is on another network.
    pub(super) fn begin(&mut self, now: Instant) {
        (self.since, self.mapping) = (now, None);
    }

    /// Takes in where an answer to the node's own socket was sent to; says whether that changes when mappings are to be renewed.
    pub(super) fn hear(&mut self, addr: SocketAddr, report: Option<&FamilyReport>, now: Instant) -> bool {
        let addr = SocketAddr::new(addr.ip().to_canonical(), addr.port());
        let Some(report) = report.filter(|it| it.mapping == Some(Behaviour::EndpointIndependent) && !it.untranslated)
        else {
            return false;
        };
        let is_ours = report.public.is_some_and(|public| public.ip().to_canonical() == addr.ip());
        if !is_ours || addr.is_ipv6() || is_private(addr.ip()) {
            return false;
        }
        let Some(mapping) = self.mapping.as_mut().filter(|mapping| mapping.addr.ip() == addr.ip()) else {
            let born = (report.public == Some(addr)).then_some(self.since);
            self.mapping = Some(Mapping { addr, born, told: now, heard: now, before: None });
            return self.known.contains_key(&addr.ip());
        };
        if mapping.addr == addr {
            mapping.heard = now;
            let born = mapping.born;
            return self.outlived(addr.ip(), born, now);
        }
        if let Some(before) = mapping.before.filter(|before| before.addr == addr) {
            if now.since(mapping.told) >= LATE {
                *mapping = Mapping { addr, born: before.born, told: now, heard: now, before: None };
            }
            return false;
        }
        let flowing = FLOWING.max(report.lifetime.unwrap_or_default() / 3 + SLACK);
        let lived = mapping.born.filter(|_| now.since(mapping.heard) <= flowing).map(|born| mapping.heard.since(born));
        let earlier = mapping.before.and_then(|before| before.lived);
        let before = Some(Before { addr: mapping.addr, born: mapping.born, lived });
        *mapping = Mapping { addr, born: Some(now), told: now, heard: now, before };
        let learned = lived.zip(earlier).filter(|(a, b)| a.abs_diff(*b) <= (*a.max(b)) / TOLERANCE);
        let age = learned.map(|(a, b)| a.min(b)).filter(|age| (MIN_AGE..=MAX_AGE).contains(age));
        if let Some(age) = age {
            if self.known.len() >= MAX_NETWORKS && !self.known.contains_key(&addr.ip()) {
                self.known.pop_first(); // any of them: a phone comes to few networks with a fixed age
            }
            self.known.insert(addr.ip(), age);
        }
        self.known.contains_key(&addr.ip())
    }

    /// Forgets the age of a network where a mapping has got far older than that: two restarts of a router were like one.
    fn outlived(&mut self, ip: IpAddr, born: Option<Instant>, now: Instant) -> bool {
        let Some((age, born)) = self.known.get(&ip).copied().zip(born) else { return false };
        now > born + age * 5 / 4 && self.known.remove(&ip).is_some()
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
    fn a_peer_that_lies_teaches_no_age_while_an_honest_one_is_heard() {
        let (mut it, easy) = (Ages::default(), report(Behaviour::EndpointIndependent));
        for second in 0..900 {
            it.hear(addr(1), Some(&easy), at(second));
            if (100..800).contains(&second) && second % 5 == 0 {
                it.hear(addr(2 + (second / 70) as u16), Some(&easy), at(second));
            }
        }
        assert_eq!((it.of(addr(1).ip()), it.born()), (None, Some(at(0))));
    }

    #[test]
    fn an_address_that_is_not_the_nodes_own_is_nobodys_mapping() {
        let (mut it, easy) = (Ages::default(), report(Behaviour::EndpointIndependent));
        it.begin(at(0));
        it.hear(addr(1), Some(&easy), at(1));
        it.hear(addr(2), Some(&easy), at(100));
        it.hear(SocketAddr::from(([198, 51, 100, 1], 7)), Some(&easy), at(500)); // seen by a peer behind another line
        it.hear(addr(2), Some(&easy), at(501));
        assert_eq!(it.born(), Some(at(100)));
    }

    #[test]
    fn an_age_that_a_mapping_outlives_is_forgotten() {
        let easy = report(Behaviour::EndpointIndependent);
        assert_eq!(learned(&[600, 600, 700], 1, &easy), Some(Duration::from_secs(599)));
        assert_eq!(learned(&[600, 600, 1_000], 1, &easy), None, "it was two restarts of the router");
    }

    #[test]
    fn a_mapping_older_than_a_day_and_one_of_a_private_address_tell_nothing() {
        let easy = report(Behaviour::EndpointIndependent);
        assert_eq!(
            learned(&[90_000, 90_000], 60, &FamilyReport { lifetime: Some(Duration::from_secs(240)), ..easy }),
            None
        );
        let (mut it, private) = (Ages::default(), SocketAddr::from(([10, 0, 0, 1], 7)));
        it.hear(private, Some(&FamilyReport { public: Some(private), ..easy }), at(1));
        assert_eq!(it.born(), None);
    }

    #[test]
    fn a_mapping_made_anew_where_the_age_is_known_is_news() {
        let (mut it, easy) = (Ages::default(), report(Behaviour::EndpointIndependent));
        for second in 0..=240 {
            it.hear(addr(1 + second as u16 / 120), Some(&easy), at(second));
        }
        it.begin(at(300));
        assert!(it.hear(addr(3), Some(&easy), at(301)), "somebody has to look when it is to be renewed");
        assert!(!it.hear(addr(3), Some(&easy), at(302)));
        assert!(it.hear(addr(4), Some(&easy), at(400)));
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
