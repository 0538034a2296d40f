//! What worked, and what did not, between this host's networks and its peers'.

use alloc::collections::BTreeMap;
use core::net::IpAddr;

use super::{Means, Plan, budget::RENEWAL};
use crate::{Instant, PeerId};

/// The most pairs of networks that are remembered: more than a host has peers whose NATs are that hard.
const MAX_PAIRS: usize = 256;

/// The most of them with one peer, for it may name any address as its own: a home, an office, a phone and one more.
const MAX_PAIRS_OF_A_PEER: usize = 4;

/// A peer and two networks, by this host's and by the peer's public address. What one peer tells of an address says nothing about
/// another one behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Pair {
    pub(super) peer: PeerId,
    pub(super) ours: IpAddr,
    pub(super) theirs: IpAddr,
}

/// What was learned about pairs of networks; the oldest is forgotten first.
#[derive(Debug, Default)]
pub(super) struct Memory {
    pairs: BTreeMap<Pair, Past>,
}

#[derive(Debug, Clone, Copy)]
struct Past {
    at: Instant,
    /// What led to a direct route, by which plan.
    worked: Option<(Means, Option<Plan>)>,
    failed: bool,
}

impl Memory {
    /// What led through last time.
    pub(super) fn worked(&self, pair: Pair) -> Option<(Means, Option<Plan>)> {
        self.pairs.get(&pair)?.worked
    }

    /// Until when nothing but pings is worth a try, for the last attempt failed.
    pub(super) fn barred(&self, pair: Pair) -> Option<Instant> {
        self.pairs.get(&pair).filter(|past| past.failed).map(|past| past.at + RENEWAL)
    }

    /// A punch led to a route, whose other end is at the pair's address.
    pub(super) fn succeed(&mut self, pair: Pair, means: Means, plan: Option<Plan>, now: Instant) {
        self.remember(pair, Past { at: now, worked: Some((means, plan)), failed: false });
    }

    /// What worked once and does not now is not preferred any more.
    pub(super) fn fail(&mut self, pair: Pair, now: Instant) {
        self.remember(pair, Past { at: now, worked: None, failed: true });
    }

    fn remember(&mut self, pair: Pair, past: Past) {
        self.pairs.insert(pair, past);
        let of_peer = |it: &(&Pair, &Past)| it.0.peer == pair.peer;
        if self.pairs.iter().filter(of_peer).count() > MAX_PAIRS_OF_A_PEER {
            self.forget_oldest(of_peer);
        } else if self.pairs.len() > MAX_PAIRS {
            self.forget_oldest(|_| true);
        }
    }

    fn forget_oldest(&mut self, among: impl Fn(&(&Pair, &Past)) -> bool) {
        let oldest = self.pairs.iter().filter(|it| among(it)).min_by_key(|(_, past)| past.at).map(|(pair, _)| *pair);
        oldest.map(|oldest| self.pairs.remove(&oldest));
    }
}

#[cfg(test)]
mod tests {
    use core::time::Duration;

    use super::*;

    #[test]
    fn a_peer_that_names_many_addresses_displaces_its_own_only() {
        let mut memory = Memory::default();
        let pair = |peer, address| Pair {
            peer: PeerId::ed25519([peer; 32]),
            ours: IpAddr::from([192, 0, 2, 1]),
            theirs: IpAddr::from([198, 51, 100, address]),
        };
        let at = |secs| Instant::after_start(Duration::from_secs(secs));
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
}
