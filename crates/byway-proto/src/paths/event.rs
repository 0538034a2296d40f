//! What goes into the route machine and what comes out of it.

use alloc::vec::Vec;
use core::{fmt, time::Duration};

use crate::{Instant, congestion::Delivery};

/// Names one route of one peer: a small index, stable while the route lives, reused only after its removal.
///
/// Ids must be below [`RouteId::LIMIT`]; the machine refuses others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RouteId(pub u8);

impl RouteId {
    /// Ids run from 0 to one less than this: twice the most routes a peer may have, so that a newcomer has an id
    /// while the machine decides which route makes room for it.
    pub const LIMIT: u8 = 32;
}

impl fmt::Display for RouteId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A set of routes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RouteSet(u32);

impl RouteSet {
    /// Whether `route` is in the set.
    pub fn contains(self, route: RouteId) -> bool {
        self.0 & Self::bit(route) != 0
    }

    /// Adds `route`; ids of [`RouteId::LIMIT`] or more are ignored.
    pub fn insert(&mut self, route: RouteId) {
        self.0 |= Self::bit(route);
    }

    /// How many routes the set has.
    pub fn len(self) -> usize {
        self.0.count_ones() as usize
    }

    /// Whether the set has no route.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The routes of the set, in order of their ids.
    pub fn iter(self) -> impl Iterator<Item = RouteId> {
        (0..RouteId::LIMIT).map(RouteId).filter(move |route| self.contains(*route))
    }

    fn bit(route: RouteId) -> u32 {
        1u32.checked_shl(u32::from(route.0)).unwrap_or(0)
    }
}

impl FromIterator<RouteId> for RouteSet {
    fn from_iter<I: IntoIterator<Item = RouteId>>(routes: I) -> Self {
        let mut set = RouteSet::default();
        routes.into_iter().for_each(|route| set.insert(route));
        set
    }
}

/// What a route goes through, best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RouteKind {
    /// Straight from socket to socket.
    Direct,
    /// Through a relay.
    Relay,
}

impl fmt::Display for RouteKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            RouteKind::Direct => "direct",
            RouteKind::Relay => "relay",
        })
    }
}

/// What the agent task tells the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// A route has come into being; may come before or after [`Input::Established`].
    Add {
        /// The new route's id; an id already in use is ignored.
        route: RouteId,
        /// What it goes through.
        kind: RouteKind,
        /// Whether we chose to send there (a dial's candidate, the peer's authenticated report) or merely heard from
        /// there; a trusted route takes the place of an unproven, untrusted one when the table is full.
        trusted: bool,
        /// How long an authenticated probe took there and back just now, if one did: then the route is proven already.
        rtt: Option<Duration>,
    },
    /// A route is gone (its socket or its relay is); never needed after an [`Output::Drop`].
    Remove {
        /// The route that is gone.
        route: RouteId,
    },
    /// The machine's network may be another one, or it has slept: nothing known of any route can be relied on.
    NetworkChanged,
    /// How often the node's own NAT needs an idle route to be pinged, if that is known; the connection may find that it has to be
    /// more often.
    KeepAlive(Option<Duration>),
    /// The peer sees this route come from another port than before: told before the [`Input::Pong`] by which it says so.
    Remapped {
        /// The route.
        route: RouteId,
    },
    /// The peer has dialled: where it sends by another route and neither is better, this side takes the peer's.
    GiveWay,
    /// The selected route will die of age: this one is to carry the connection as soon as it is proven.
    Renew {
        /// The fresh route.
        route: RouteId,
    },
    /// QUIC's handshake is complete and probe keys exist; until then every datagram goes out on every route.
    Established {
        /// The route on which the handshake was last heard.
        heard: RouteId,
    },
    /// What the packet path saw; due whenever [`Paths::poll_timeout`](super::Paths::poll_timeout) says so, and when
    /// the mux wakes the agent. Everything that is due is done on this input.
    Sample(Sample),
    /// A pong came in on a route, authenticated.
    Pong {
        /// The route on which it came.
        route: RouteId,
        /// The transaction id that it repeats.
        txid: u64,
    },
    /// A ping came in on a route, authenticated; the agent answers it by itself, at once, on the same route.
    Ping {
        /// The route on which it came.
        route: RouteId,
        /// Whether the peer doubts the route that it has selected.
        doubt: bool,
    },
}

/// The packet path's record of one peer, read at the machine's timers.
///
/// The mux sets a mark when a datagram goes out and the mark is empty, and empties both marks when a QUIC datagram
/// comes in on the selected route (any route while the plan is [`Plan::All`]) and on [`Output::ClearUnanswered`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sample {
    /// When the first unanswered datagram larger than [`SMALL`] bytes left.
    pub unanswered_large: Option<Instant>,
    /// When the first unanswered datagram of at most [`SMALL`] bytes left.
    pub unanswered_small: Option<Instant>,
    /// When any datagram of QUIC's last left; tells a busy connection from an idle one.
    pub last_sent: Option<Instant>,
    /// When a QUIC datagram was last heard on each route; routes never heard from are left out.
    pub heard: Vec<(RouteId, Instant)>,
    /// What the selected route delivered, if that was measured anew since the last sample.
    pub delivery: Option<Delivery>,
    /// Routes for which a datagram had to be split, for they are not known to carry it whole.
    pub split: RouteSet,
}

/// The largest datagram that may stay unanswered for long without meaning anything: a bare acknowledgement or a
/// PING frame, which the other side has no reason to answer at once.
pub const SMALL: usize = 48;

/// What the mux does with each datagram of QUIC's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plan {
    /// Send it on this route.
    One(RouteId),
    /// Send a copy on each of these (a hedge; two or more); a [`Sample`] is due when something comes by another route than
    /// the selected one.
    Several(RouteSet),
    /// Send it on this route, which answers, although another is selected, which does not (the rest of a hedge): the line
    /// in front of both has better to carry than copies that are most likely lost.
    Instead(RouteId),
    /// Send a copy on every route there is, also on routes the machine has not been told of (a dial;
    /// also what is told when the last route is gone).
    All,
}

/// What the machine has decided.
///
/// Exhaustive on purpose: a driver that skips a decision is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Send an authenticated ping.
    Ping {
        /// The route to send it on.
        route: RouteId,
        /// The transaction id that its pong repeats.
        txid: u64,
        /// Whether to set the doubt flag.
        doubt: bool,
        /// Whether to pad it to the largest datagram QUIC may send, to learn if the route carries that much.
        padded: bool,
    },
    /// From now on send like this.
    Plan(Plan),
    /// Send datagrams of the ring again.
    Replay {
        /// The route to send them on.
        route: RouteId,
        /// How many at most, the latest ones; `usize::MAX` for all.
        last: usize,
        /// Those that first left longer ago than this are left out.
        max_age: Duration,
        /// Whether they come out of the [`Budget`](super::Budget); those of a long search are few by themselves.
        budgeted: bool,
    },
    /// Everything sent so far is answered, or no answer is expected any more: empty the track's marks.
    ClearUnanswered,
    /// Another route carries the connection from now on.
    Selected {
        /// The route that did so far; `None` if there was none.
        from: Option<RouteId>,
        /// The route that does now.
        to: RouteId,
        /// The reason.
        why: Why,
        /// When the hedge that this ended began: the moment from which the old route's acknowledgements and losses
        /// say nothing about the new one.
        hedge_began: Option<Instant>,
    },
    /// A hedge has begun: copies go out on every proven route.
    Hedged(HedgeWhy),
    /// The hedge is over, with or without a switch.
    Unhedged,
    /// No route has answered for [`STALLED_AFTER`](super::STALLED_AFTER): the connection waits for one that does.
    Stalled {
        /// When the doubt began.
        since: Instant,
    },
    /// A route answers again after [`Output::Stalled`].
    Resumed,
    /// The route has answered for the first time, or again after its death.
    Up {
        /// The route.
        route: RouteId,
    },
    /// The route answers no longer.
    Down {
        /// The route.
        route: RouteId,
    },
    /// The route carried a padded ping there and its pong back.
    MtuProven {
        /// The route that carries full datagrams.
        route: RouteId,
    },
    /// The machine has forgotten the route; the driver forgets it too, and may use its id again.
    Drop {
        /// The route that is no more.
        route: RouteId,
        /// The reason.
        why: DropWhy,
    },
}

/// Why a route was selected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Why {
    /// The handshake was last heard on it.
    Handshake,
    /// It is the first direct route of a connection that so far had only a relay.
    FirstDirect,
    /// It scored better for long enough.
    Better,
    /// It delivered far more than the one before can.
    Faster,
    /// The one before delivers little, and what this one delivers is not known.
    Tried,
    /// The peer was heard on it, and no longer on the one before: its address has changed.
    Moved,
    /// The peer sends by it, and the one before was no better.
    Followed,
    /// The NAT mapping of the one before is about to die of age.
    Renewed,
    /// It answered and the selected route did not.
    Silent,
    /// It has answered and the selected route never has.
    Unproven,
    /// The selected route was removed.
    Removed,
    /// There was no other.
    Only,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Why::Handshake => "the handshake was heard on it",
            Why::FirstDirect => "it is the first direct route",
            Why::Better => "it proved better than the one before",
            Why::Faster => "it delivered far more than the one before can",
            Why::Tried => "the one before delivers little, and what this one delivers is not known",
            Why::Moved => "the peer has moved there",
            Why::Followed => "the peer sends by it, and the one before was no better",
            Why::Renewed => "the NAT mapping of the one before was about to end",
            Why::Silent => "it answered when the one before went silent",
            Why::Unproven => "it answers and the one before never did",
            Why::Removed => "the one before was removed",
            Why::Only => "it is the only one",
        })
    }
}

/// Why a hedge began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum HedgeWhy {
    /// The handshake is done and no route has been proven yet.
    Established,
    /// Datagrams on the selected route went unanswered.
    Silence,
    /// Datagrams too small to call for an answer went unanswered, and so did a ping.
    Asked,
    /// Keep-alive pings on the selected route went unanswered while the connection was idle.
    PingsLost,
    /// The peer doubts, and our own proof is too old to contradict it.
    PeerDoubts,
    /// The selected route was removed, and the next one may be stale.
    Removed,
    /// This machine's network may have changed.
    NetworkChanged,
}

impl HedgeWhy {
    /// Whether it follows from silence, which may turn out to be a false alarm.
    pub(super) fn is_guess(self) -> bool {
        !matches!(self, HedgeWhy::Established | HedgeWhy::Removed | HedgeWhy::NetworkChanged)
    }
}

impl fmt::Display for HedgeWhy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            HedgeWhy::Established => "no route is proven yet",
            HedgeWhy::Silence => "no answer to what was sent",
            HedgeWhy::Asked => "no answer to a ping that asked",
            HedgeWhy::PingsLost => "no answer to keep-alive pings",
            HedgeWhy::PeerDoubts => "the peer doubts",
            HedgeWhy::Removed => "the selected route was removed",
            HedgeWhy::NetworkChanged => "the network may have changed",
        })
    }
}

/// Why the machine forgot a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum DropWhy {
    /// The table is full of routes that are worth more, or the id is out of range.
    Full,
    /// It never answered.
    NeverAnswered,
    /// It answered once, but not for minutes of trying.
    Dead,
}

impl fmt::Display for DropWhy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DropWhy::Full => "there are too many routes",
            DropWhy::NeverAnswered => "it never answered",
            DropWhy::Dead => "it stopped answering",
        })
    }
}
