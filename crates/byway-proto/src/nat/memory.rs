//! What worked, and what did not, between this host's networks and its peers'.

use alloc::collections::BTreeMap;
use core::net::IpAddr;

use super::{Means, Plan, budget::RENEWAL};
use crate::Instant;

/// The most pairs of networks that are remembered: more than a host has peers whose NATs are that hard.
const MAX_PAIRS: usize = 256;

/// Two networks, by this host's and the peer's public address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Pair(pub(super) IpAddr, pub(super) IpAddr);

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

    pub(super) fn succeed(&mut self, pair: Pair, means: Means, plan: Option<Plan>, now: Instant) {
        self.remember(pair, Past { at: now, worked: Some((means, plan)), failed: false });
    }

    /// What worked once and does not now is not preferred any more.
    pub(super) fn fail(&mut self, pair: Pair, now: Instant) {
        self.remember(pair, Past { at: now, worked: None, failed: true });
    }

    fn remember(&mut self, pair: Pair, past: Past) {
        self.pairs.insert(pair, past);
        if self.pairs.len() > MAX_PAIRS {
            let oldest = self.pairs.iter().min_by_key(|(_, past)| past.at).map(|(pair, _)| *pair);
            oldest.map(|oldest| self.pairs.remove(&oldest));
        }
    }
}
