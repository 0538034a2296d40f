//! The pings of one connection that are not answered yet, and what it has spent.

use alloc::collections::BTreeMap;
use core::{net::SocketAddr, time::Duration};

use crate::{
    Instant,
    nat::{LinkId, SocketId, budget::Allowance},
};

/// For how long an answer is waited for: more than any route takes that somebody would want.
const PATIENCE: Duration = Duration::from_secs(3);

/// The most unanswered pings: a host sends 250 a second, so that 750 can be younger than the patience; the rest is slack, so
/// that they need not be sorted out at every one.
const MAX_FLYING: usize = 1_024;

/// What one connection has sent.
#[derive(Debug)]
pub(in crate::nat) struct Flight {
    pub(in crate::nat) link: LinkId,
    pub(in crate::nat) allowance: Allowance,
    /// Pings to addresses that the peer reported.
    pub(in crate::nat) pings: u32,
    /// All other packets.
    pub(in crate::nat) others: u32,
    flying: BTreeMap<u64, Ping>,
}

#[derive(Debug)]
struct Ping {
    socket: SocketId,
    to: SocketAddr,
    at: Instant,
}

impl Flight {
    pub(super) fn new(link: LinkId, now: Instant) -> Self {
        Flight { link, allowance: Allowance::new(now), pings: 0, others: 0, flying: BTreeMap::new() }
    }

    pub(super) fn send(&mut self, txid: u64, socket: SocketId, to: SocketAddr, now: Instant) {
        if self.flying.len() >= MAX_FLYING {
            self.flying.retain(|_, ping| now.since(ping.at) < PATIENCE);
        }
        if self.flying.len() < MAX_FLYING {
            self.flying.insert(txid, Ping { socket, to, at: now });
        }
    }

    /// How long the answer took, if it comes in by the socket, and from the address, of the ping. Further answers of the same
    /// pair are none.
    pub(super) fn answer(
        &mut self,
        txid: u64,
        (socket, from): (SocketId, SocketAddr),
        now: Instant,
    ) -> Option<Duration> {
        let ping = self.flying.get(&txid).filter(|ping| ping.socket == socket && ping.to == from)?;
        let took = now.since(ping.at);
        self.flying.retain(|_, ping| (ping.socket, ping.to) != (socket, from));
        (took < PATIENCE).then_some(took)
    }

    /// Answers are of no use any more.
    pub(super) fn clear(&mut self) {
        self.flying.clear();
    }
}
