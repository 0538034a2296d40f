//! Counters of what was dropped, and why.

mod export;

use std::sync::atomic::{AtomicU64, Ordering};

pub use self::export::{MAX_METRIC_PEERS, Metrics};

/// Why a datagram was not carried on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Dropped {
    /// Its first byte belongs to no protocol of ours.
    Junk,
    /// Its source pretends to be an alias, or one of our WebSockets.
    ForgedAlias,
    /// Its family is switched off, or it leads to an address that no socket can reach.
    NoSocket,
    /// The kernel refused to send it.
    SendError,
    /// The socket's send buffer was full, and a copy took another route.
    SocketFull,
    /// The kernel failed to receive.
    ReceiveError,
    /// It would have amplified a stranger's traffic (RFC 9000 §8.1).
    Amplification,
    /// Its connection has not yet taken what it was given.
    Backlog,
    /// A handshake packet of no known connection.
    UnknownHandshake,
    /// A known connection's packet from a source that is no route of it.
    UnknownSource,
    /// Too many packets of unknown connections to answer them all.
    StrangerRate,
    /// One source began too many handshakes.
    InitialRate,
    /// A second Retry (RFC 9000 §17.2.5).
    SecondRetry,
    /// Relayed data from an address where this node is not registered.
    NotOurRelay,
    /// Relayed data that this relay does not forward.
    NotForwarded,
    /// The queue to the agent task was full.
    AgentQueue,
    /// The queue of datagrams that need a buffer of their own was full.
    SpillQueue,
    /// A copy beyond the budget of a dial.
    DialBudget,
    /// A copy beyond the budget of an established connection's doubts.
    HedgeBudget,
    /// Too large for its route, and not to be split before the connection is established; or larger than any peer sends.
    TooLarge,
    /// The alias names no connection any more.
    DeadAlias,
    /// A packet of a connection that this node never had.
    UnknownConnection,
    /// A probe of no connection.
    UnknownProbe,
    /// A probe that its connection's key did not make, or that came before.
    BadProbe,
    /// A ping from a new source of a peer that has as many routes as it may have.
    NoRoom,
    /// Too many STUN requests to answer them all.
    StunRate,
    /// A datagram of a channel that this node does not have, or whose protocol the peer has not announced yet.
    UnknownChannel,
    /// A datagram of a channel whose receiver is behind, or for which the node's memory for messages had no room.
    ChannelFull,
    /// A datagram that came faster than the rate of its channel or its peer.
    OverRate,
    /// A datagram of a channel that no longer fit the connection's packets when its turn came.
    DatagramTooLarge,
}

impl Dropped {
    /// Every reason, in the order of the counters.
    pub const ALL: [Dropped; 30] = [
        Dropped::Junk,
        Dropped::ForgedAlias,
        Dropped::NoSocket,
        Dropped::SendError,
        Dropped::SocketFull,
        Dropped::ReceiveError,
        Dropped::Amplification,
        Dropped::Backlog,
        Dropped::UnknownHandshake,
        Dropped::UnknownSource,
        Dropped::StrangerRate,
        Dropped::InitialRate,
        Dropped::SecondRetry,
        Dropped::NotOurRelay,
        Dropped::NotForwarded,
        Dropped::AgentQueue,
        Dropped::SpillQueue,
        Dropped::DialBudget,
        Dropped::HedgeBudget,
        Dropped::TooLarge,
        Dropped::DeadAlias,
        Dropped::UnknownConnection,
        Dropped::UnknownProbe,
        Dropped::BadProbe,
        Dropped::NoRoom,
        Dropped::StunRate,
        Dropped::UnknownChannel,
        Dropped::ChannelFull,
        Dropped::OverRate,
        Dropped::DatagramTooLarge,
    ];

    /// The reason's name in `status --json`.
    pub fn name(self) -> &'static str {
        match self {
            Dropped::Junk => "junk",
            Dropped::ForgedAlias => "forged_alias",
            Dropped::NoSocket => "no_socket",
            Dropped::SendError => "send_error",
            Dropped::SocketFull => "socket_full",
            Dropped::ReceiveError => "receive_error",
            Dropped::Amplification => "amplification",
            Dropped::Backlog => "backlog",
            Dropped::UnknownHandshake => "unknown_handshake",
            Dropped::UnknownSource => "unknown_source",
            Dropped::StrangerRate => "stranger_rate",
            Dropped::InitialRate => "initial_rate",
            Dropped::SecondRetry => "second_retry",
            Dropped::NotOurRelay => "not_our_relay",
            Dropped::NotForwarded => "not_forwarded",
            Dropped::AgentQueue => "agent_queue",
            Dropped::SpillQueue => "spill_queue",
            Dropped::DialBudget => "dial_budget",
            Dropped::HedgeBudget => "hedge_budget",
            Dropped::TooLarge => "too_large",
            Dropped::DeadAlias => "dead_alias",
            Dropped::UnknownConnection => "unknown_connection",
            Dropped::UnknownProbe => "unknown_probe",
            Dropped::BadProbe => "bad_probe",
            Dropped::NoRoom => "no_room_for_route",
            Dropped::StunRate => "stun_rate",
            Dropped::UnknownChannel => "unknown_channel",
            Dropped::ChannelFull => "channel_full",
            Dropped::OverRate => "over_rate",
            Dropped::DatagramTooLarge => "datagram_too_large",
        }
    }
}

/// How many datagrams were dropped for each reason since the node started.
#[derive(Debug, Default)]
pub(crate) struct Counters([AtomicU64; Dropped::ALL.len()]);

impl Counters {
    /// Counts one datagram.
    pub(crate) fn count(&self, why: Dropped) {
        self.add(why, 1);
    }

    /// Counts several datagrams.
    pub(crate) fn add(&self, why: Dropped, datagrams: u64) {
        self.0[why as usize].fetch_add(datagrams, Ordering::Relaxed);
    }

    /// How many were dropped for this reason.
    pub(crate) fn of(&self, why: Dropped) -> u64 {
        self.0[why as usize].load(Ordering::Relaxed)
    }
}
