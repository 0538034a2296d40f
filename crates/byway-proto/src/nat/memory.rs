//! What worked, and what did not, between this host's networks and its peers', and how long its networks keep a mapping.
//!
//! It outlives the process where the node has a store: [`Memory::to_bytes`] is what is kept.

mod row;

use alloc::{collections::BTreeMap, vec::Vec};
use core::{net::IpAddr, time::Duration};

use super::{Means, NatReport, Plan, budget::RENEWAL, candidates::is_private};
use crate::{Instant, PeerId, UnixTime};

/// The most pairs of networks that are remembered: more than a host has peers whose NATs are that hard.
const MAX_PAIRS: usize = 256;

/// The most of them with one peer, for it may name any address as its own: a home, an office, a phone and one more.
const MAX_PAIRS_OF_A_PEER: usize = 4;

/// The most networks of this host whose mappings' lifetime is remembered.
const MAX_NETWORKS: usize = 16;

/// For how long anything is remembered: by then a line has another address, or another router.
const KEEP: Duration = Duration::from_secs(30 * 24 * 3_600);

/// A peer and two networks, by this host's and by the peer's public address. What one peer tells of an address says nothing about
/// another one behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Pair {
    pub(super) peer: PeerId,
    pub(super) ours: IpAddr,
    pub(super) theirs: IpAddr,
}

/// What was learned; of pairs and of networks the oldest is forgotten first.
#[derive(Debug, Default)]
pub(super) struct Memory {
    pairs: BTreeMap<Pair, Past>,
    /// By this host's public address: how long an idle mapping lives there, and when that is forgotten.
    networks: BTreeMap<IpAddr, (Duration, Instant)>,
    /// Whether there is something new since this was last written down.
    changed: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Past {
    /// When it is forgotten.
    until: Instant,
    /// What led to a direct route, by which plan.
    worked: Option<(Means, Option<Plan>)>,
    /// Until when nothing but pings is worth a try, for the last attempt failed.
    barred: Option<Instant>,
}

impl Memory {
    /// What led through last time.
    pub(super) fn worked(&self, pair: Pair) -> Option<(Means, Option<Plan>)> {
        self.pairs.get(&pair)?.worked
    }

    /// Until when nothing but pings is worth a try, for the last attempt failed.
    pub(super) fn barred(&self, pair: Pair) -> Option<Instant> {
        self.pairs.get(&pair)?.barred
    }

    /// A punch led to a route, whose other end is at the pair's address.
    pub(super) fn succeed(&mut self, pair: Pair, means: Means, plan: Option<Plan>, now: Instant) {
        self.remember(pair, Past { until: now + KEEP, worked: Some((means, plan)), barred: None });
    }

    /// What worked once and does not now is not preferred any more.
    pub(super) fn fail(&mut self, pair: Pair, now: Instant) {
        self.remember(pair, Past { until: now + KEEP, worked: None, barred: Some(now + RENEWAL) });
    }

    /// Learns from what a survey has found, and adds to it what an earlier one found in the same network but this one has not
    /// yet, for that takes minutes.
    pub(super) fn complete(&mut self, mut report: NatReport, now: Instant) -> NatReport {
        for family in [&mut report.ipv4, &mut report.ipv6].into_iter().flatten() {
            let Some(ip) = family.public.map(|public| public.ip()).filter(|ip| !is_private(*ip)) else { continue };
            match (family.lifetime, self.networks.get(&ip)) {
                (Some(found), known)
                    if known.is_none_or(|(known, until)| *known != found || *until < now + KEEP / 2) =>
                {
                    self.set_network(ip, found, now + KEEP);
                    self.changed = true;
                }
                (None, Some((known, until))) if *until > now => family.lifetime = Some(*known),
                _ => {}
            }
        }
        report
    }

    /// What was learned, as bytes, if anything was since the last call.
    pub(super) fn poll(&mut self, now: Instant, wall: UnixTime) -> Option<Vec<u8>> {
        core::mem::take(&mut self.changed).then(|| row::to_bytes(self, now, wall))
    }

    /// Adds what an earlier process wrote down; bytes that make no sense are passed over. `wall` is the calendar's `now`.
    pub(super) fn recall(&mut self, bytes: &[u8], now: Instant, wall: UnixTime) {
        row::read(self, bytes, now, wall);
    }

    fn remember(&mut self, pair: Pair, past: Past) {
        self.changed = true;
        self.set_pair(pair, past);
    }

    fn set_pair(&mut self, pair: Pair, past: Past) {
        self.pairs.insert(pair, past);
        let of_peer = |it: &(&Pair, &Past)| it.0.peer == pair.peer;
        if self.pairs.iter().filter(of_peer).count() > MAX_PAIRS_OF_A_PEER {
            self.forget_oldest(of_peer);
        } else if self.pairs.len() > MAX_PAIRS {
            self.forget_oldest(|_| true);
        }
    }

    fn set_network(&mut self, ip: IpAddr, lifetime: Duration, until: Instant) {
        self.networks.insert(ip, (lifetime, until));
        if self.networks.len() > MAX_NETWORKS {
            let oldest = self.networks.iter().min_by_key(|(_, (_, until))| *until).map(|(ip, _)| *ip);
            oldest.map(|oldest| self.networks.remove(&oldest));
        }
    }

    fn forget_oldest(&mut self, among: impl Fn(&(&Pair, &Past)) -> bool) {
        let oldest = self.pairs.iter().filter(|it| among(it)).min_by_key(|(_, past)| past.until).map(|(pair, _)| *pair);
        oldest.map(|oldest| self.pairs.remove(&oldest));
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use proptest::prelude::*;

    use super::*;
    use crate::nat::{FamilyReport, Side};

    const WALL: UnixTime = UnixTime(1_800_000_000);

    fn pair(peer: u8, address: u8) -> Pair {
        Pair {
            peer: PeerId::ed25519([peer; 32]),
            ours: IpAddr::from([192, 0, 2, 1]),
            theirs: IpAddr::from([198, 51, 100, address]),
        }
    }

    fn at(secs: u64) -> Instant {
        Instant::after_start(Duration::from_secs(secs))
    }

    fn report(public: &str, lifetime: Option<u64>) -> NatReport {
        let public = Some(public.parse().unwrap());
        let lifetime = lifetime.map(Duration::from_secs);
        NatReport { ipv4: Some(FamilyReport { public, lifetime, ..FamilyReport::default() }), ipv6: None }
    }

    fn lifetime(report: &NatReport) -> Option<u64> {
        report.ipv4.as_ref()?.lifetime.map(|lifetime| lifetime.as_secs())
    }

    /// What a process that starts `later` knows, when its own clock shows `now`.
    fn restarted(memory: &mut Memory, stopped: Instant, later: u64, now: Instant) -> Memory {
        let bytes = memory.poll(stopped, WALL).unwrap();
        let mut next = Memory::default();
        next.recall(&bytes, now, WALL + Duration::from_secs(later));
        next
    }

    #[test]
    fn a_peer_that_names_many_addresses_displaces_its_own_only() {
        let mut memory = Memory::default();
        memory.fail(pair(1, 0), at(0));
        for address in 0..=255 {
            memory.fail(pair(2, address), at(1 + u64::from(address)));
        }
        assert_eq!(memory.pairs.len(), 1 + MAX_PAIRS_OF_A_PEER);
        assert!(memory.barred(pair(1, 0)).is_some() && memory.barred(pair(2, 255)).is_some());
        for peer in 3..=255 {
            (0..2).for_each(|address| memory.fail(pair(peer, address), at(300 + u64::from(peer))));
        }
        assert_eq!(memory.pairs.len(), MAX_PAIRS);
        assert!(memory.barred(pair(1, 0)).is_none() && memory.barred(pair(255, 1)).is_some());
    }

    #[test]
    fn what_worked_and_what_did_not_is_known_after_a_restart() {
        let mut memory = Memory::default();
        let plans = [None, Some(Plan::SimultaneousOpen), Some(Plan::Predict { hard: Side::Theirs })];
        for (n, plan) in (1..).zip(plans) {
            memory.succeed(pair(n, n), Means::Spray, plan, at(1_000));
        }
        memory.fail(pair(9, 9), at(1_000));
        let next = restarted(&mut memory, at(1_100), 200, at(5));
        for (n, plan) in (1..).zip(plans) {
            assert_eq!(next.worked(pair(n, n)), Some((Means::Spray, plan)));
        }
        // of ten minutes 100 s had passed when it was written, and 200 s until it was read
        assert_eq!(next.barred(pair(9, 9)), Some(at(5 + 300)));
        assert_eq!(memory.poll(at(1_200), WALL), None, "nothing is new");
    }

    #[test]
    fn what_is_a_month_old_is_forgotten_whatever_the_calendar_says() {
        let mut memory = Memory::default();
        memory.succeed(pair(1, 1), Means::Spray, None, at(0));
        let month = KEEP.as_secs();
        assert!(restarted(&mut memory, at(0), month - 1, at(0)).worked(pair(1, 1)).is_some());
        memory.changed = true;
        assert_eq!(restarted(&mut memory, at(0), month, at(0)).worked(pair(1, 1)), None);
        memory.fail(pair(1, 1), at(0));
        let bytes = memory.poll(at(0), WALL).unwrap();
        let mut next = Memory::default();
        next.recall(&bytes, at(0), UnixTime(0)); // a calendar that was set back
        let past = next.pairs[&pair(1, 1)];
        assert_eq!((past.until, past.barred), (at(month), Some(at(RENEWAL.as_secs()))));
    }

    #[test]
    fn a_lifetime_found_in_a_network_is_known_there_at_once_the_next_time() {
        let mut memory = Memory::default();
        assert_eq!(lifetime(&memory.complete(report("198.51.100.7:1", None), at(0))), None);
        memory.complete(report("198.51.100.7:1", Some(15)), at(60));
        let mut next = restarted(&mut memory, at(60), 60, at(0));
        assert_eq!(lifetime(&next.complete(report("198.51.100.7:2", None), at(1))), Some(15));
        assert_eq!(lifetime(&next.complete(report("198.51.100.8:2", None), at(1))), None, "another network");
        assert_eq!(lifetime(&next.complete(report("198.51.100.7:2", Some(60)), at(2))), Some(60), "found anew");
        assert_eq!(lifetime(&next.complete(report("198.51.100.7:2", None), at(3))), Some(60));
        assert_eq!(lifetime(&next.complete(report("198.51.100.7:2", None), at(3) + KEEP)), None);
        assert_eq!(lifetime(&next.complete(report("10.0.0.1:2", Some(5)), at(4))), Some(5));
        assert_eq!(lifetime(&next.complete(report("10.0.0.1:2", None), at(5))), None, "10.0.0.1 is everywhere");
    }

    #[test]
    fn many_networks_displace_the_oldest() {
        let mut memory = Memory::default();
        for n in 0..=MAX_NETWORKS as u64 {
            memory.complete(report(&alloc::format!("198.51.100.{n}:1"), Some(15)), at(n));
        }
        assert_eq!(memory.networks.len(), MAX_NETWORKS);
        assert_eq!(lifetime(&memory.complete(report("198.51.100.0:1", None), at(99))), None);
    }

    proptest! {
        /// No bytes make it panic, grow beyond its bounds, or remember for longer than it would by itself.
        #[test]
        fn no_bytes_make_it_remember_more(bytes: Vec<u8>, cut in 0usize..2_000, flip in 0usize..2_000, wall: u64) {
            let mut memory = Memory::default();
            (0..40).for_each(|n| memory.fail(pair(n, n), at(u64::from(n))));
            memory.complete(report("198.51.100.7:1", Some(15)), at(60));
            let mut own = memory.poll(at(60), WALL).unwrap();
            own.truncate(cut.max(1));
            if let Some(byte) = own.get_mut(flip) {
                *byte ^= 0x55;
            }
            let mut next = Memory::default();
            for bytes in [bytes, own, vec![0xff; 100]] {
                next.recall(&bytes, at(7), UnixTime(wall));
            }
            prop_assert!(next.pairs.len() <= MAX_PAIRS && next.networks.len() <= MAX_NETWORKS);
            for past in next.pairs.values() {
                prop_assert!(past.until <= at(7) + KEEP && past.barred.is_none_or(|at_| at_ <= at(7) + RENEWAL));
            }
            prop_assert!(next.networks.values().all(|(_, until)| *until <= at(7) + KEEP));
        }
    }
}
