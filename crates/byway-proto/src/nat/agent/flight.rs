//! What one connection has under way: its unanswered pings, its sockets, and what it has spent.

use alloc::collections::BTreeMap;
use core::{net::SocketAddr, time::Duration};

use crate::{
    Instant,
    nat::{LinkId, SocketId, budget::Allowance, session::Binding},
};

/// For how long an answer is waited for: more than any route takes that somebody would want.
pub(super) const PATIENCE: Duration = Duration::from_secs(3);

/// The most unanswered pings: a host sends 250 a second, so that 750 can be younger than the patience; the rest is slack, so
/// that they need not be sorted out at every one.
const MAX_FLYING: usize = 1_024;

/// What one connection has under way.
#[derive(Debug)]
pub(in crate::nat) struct Flight {
    pub(in crate::nat) link: LinkId,
    pub(in crate::nat) allowance: Allowance,
    /// The sockets opened for it; as many as the allowance grants, and those in use when it was renewed.
    pub(in crate::nat) sockets: BTreeMap<SocketId, Binding>,
    /// Pings sent to addresses that the peer reported.
    pub(in crate::nat) pings: u32,
    /// All other packets sent.
    pub(in crate::nat) others: u32,
    /// The highest number of an attempt of ours.
    begun: u32,
    /// The highest that the peer has told.
    heard: u32,
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
        Flight {
            link,
            allowance: Allowance::new(now),
            sockets: BTreeMap::new(),
            pings: 0,
            others: 0,
            begun: 0,
            heard: 0,
            flying: BTreeMap::new(),
        }
    }

    /// The number of a new attempt, higher than any that either side has told.
    pub(in crate::nat) fn next_attempt(&mut self) -> u32 {
        self.begun = self.begun.max(self.heard).saturating_add(1);
        self.begun
    }

    /// The number of the peer's attempt, if this side takes part in it only now, otherwise of a new one.
    pub(in crate::nat) fn join_attempt(&mut self, theirs: u32) -> u32 {
        if theirs <= self.begun {
            return self.next_attempt();
        }
        self.begun = theirs;
        theirs
    }

    /// The peer has told of this attempt.
    pub(super) fn hear_attempt(&mut self, theirs: u32) {
        self.heard = self.heard.max(theirs);
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
