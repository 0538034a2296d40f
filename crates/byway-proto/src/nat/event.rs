//! What goes into the agent and what comes out of it.

use alloc::vec::Vec;
use core::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use super::NatReport;
use crate::PeerId;

/// A UDP socket of this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SocketId(pub u32);

impl SocketId {
    /// The node's own socket of the destination's family; the agent numbers the others and never uses a number twice.
    pub const MAIN: SocketId = SocketId(0);
}

/// Numbers the sockets that the agent has opened, of which the survey's are some.
#[derive(Debug, Default)]
pub struct SocketIds {
    last: u32,
}

impl SocketIds {
    /// A number that no socket of this node ever had.
    pub fn next_id(&mut self) -> SocketId {
        self.last = self.last.wrapping_add(1).max(1); // at 1,000 sockets a second the numbers last for 50 days, sockets do not
        SocketId(self.last)
    }
}

/// A connection with a peer, numbered by the driver, which never uses a number twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkId(pub u64);

/// What the driver tells the agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// The STUN servers of both families from now on, in order of preference; those known already are asked again
    /// only if there was nobody to compare their answers with.
    Servers(Vec<SocketAddr>),
    /// The node is on another network: what was learned about the last one is void. With the addresses of its interfaces.
    Network(Vec<IpAddr>),
    /// The answer to [`Output::Open`], given before anything else: where the socket is bound, or `None` if the system
    /// refused.
    Opened {
        /// The socket.
        socket: SocketId,
        /// Its own address.
        local: Option<SocketAddr>,
    },
    /// A STUN message came in by a socket, from whomever: a server may answer from elsewhere (RFC 5780), and this node reaches
    /// itself through a NAT that hairpins. What was not asked for is ignored.
    Stun {
        /// The socket it came in by.
        socket: SocketId,
        /// Where it came from.
        from: SocketAddr,
        /// The message.
        datagram: Vec<u8>,
    },
    /// The gateway's own public address, as it told by a port mapping protocol; `None` once none tells it.
    External(Option<IpAddr>),
    /// Ask one server of each family whether the node's own socket is seen where it was; one packet, which also keeps the mapping.
    Refresh,
    /// A connection is established: its control stream carries [`Signal`]s, and its probe keys exist.
    Up {
        /// The connection.
        link: LinkId,
        /// Whom it is with.
        peer: PeerId,
        /// Whether this side dialled it.
        dialled: bool,
        /// Whether the two are on one machine, or otherwise known to each other over loopback.
        loopback: bool,
    },
    /// What the peer's survey found.
    Theirs {
        /// The connection.
        link: LinkId,
        /// The report, as the peer tells it.
        report: NatReport,
    },
    /// Where the peer says it may be reached; replaces what it said before.
    Candidates {
        /// The connection.
        link: LinkId,
        /// The addresses, unchecked.
        addrs: Vec<SocketAddr>,
    },
    /// The peer's part of a punch.
    Signal {
        /// The connection.
        link: LinkId,
        /// What it says.
        signal: Signal,
    },
    /// An authentic pong came in that the peer's route machine does not know.
    Pong {
        /// The connection.
        link: LinkId,
        /// The socket it came in by.
        socket: SocketId,
        /// Where it came from.
        from: SocketAddr,
        /// The ping's transaction id.
        txid: u64,
    },
    /// A peer has answered the node's own socket on a direct route, and says where the ping came from.
    Observed {
        /// The connection.
        link: LinkId,
        /// The route's other end.
        remote: SocketAddr,
        /// What the peer says, unchecked.
        addr: SocketAddr,
    },
    /// Somebody who is no peer has answered the node's own socket, and says where the ping came from.
    Mapped {
        /// What it says, unchecked.
        addr: SocketAddr,
    },
    /// A direct route is proven both ways, or another one carries the connection: everything under way for this link stops, and its
    /// sockets close but the one in use.
    Direct {
        /// The connection.
        link: LinkId,
        /// The socket that the route uses.
        socket: SocketId,
        /// The route's other end.
        remote: SocketAddr,
    },
    /// The connection has no direct route any more.
    Relayed {
        /// The connection.
        link: LinkId,
    },
    /// A route on a socket that the agent opened is gone: the socket may close.
    Unused {
        /// The socket.
        socket: SocketId,
    },
    /// The share of probes lost on the link's relay route, in thousandths: told about once a second during a punch.
    RelayLoss {
        /// The connection.
        link: LinkId,
        /// 0 to 1,000.
        per_mille: u16,
    },
    /// The connection is over; no later output names it.
    Forget {
        /// The connection.
        link: LinkId,
    },
    /// The time of `poll_timeout` has come.
    Timeout,
}

/// The most ports in one [`Signal::Guess`]: all the guesses that one dial may spend on a NAT that counts.
pub const MAX_GUESSES: usize = 64;

/// What one side of a punch tells the other on the control stream.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Signal {
    /// "My NAT's counter stands here; meet me at the port that follows from it."
    Counter {
        /// Counts the attempts between these two; both sides use the higher number.
        attempt: u32,
        /// The sender's public address.
        ip: IpAddr,
        /// The port of the mapping that was made last.
        base: u16,
        /// What the next one adds; 0 where the NAT keeps the socket's own port.
        step: i16,
    },
    /// "My sockets are open towards you, probably at these ports: probe them."
    Guess {
        /// The attempt.
        attempt: u32,
        /// The sender's public address.
        ip: IpAddr,
        /// The ports, likeliest first, at most [`MAX_GUESSES`].
        ports: Vec<u16>,
    },
    /// "Let us try many ports: will you?" From the side whose public port is known.
    Spray {
        /// The attempt.
        attempt: u32,
    },
    /// "Begin; I am opening my sockets." The answer to [`Signal::Spray`], or to nothing.
    Go {
        /// The attempt.
        attempt: u32,
        /// The sender's public address.
        ip: IpAddr,
    },
    /// "Not now": another punch is under way, or the budget is spent.
    Busy {
        /// The attempt.
        attempt: u32,
    },
}

/// What the agent has decided.
///
/// Exhaustive on purpose: a driver that skips a decision is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Open a socket of this family on any port, with the buffers of the node's own, and say so by [`Input::Opened`] before the next
    /// output is taken.
    Open {
        /// The new socket.
        socket: SocketId,
        /// IPv6, or IPv4.
        ipv6: bool,
    },
    /// Close a socket that was opened.
    Close {
        /// The socket.
        socket: SocketId,
    },
    /// Send a STUN message.
    Stun {
        /// By this socket.
        socket: SocketId,
        /// To this server.
        to: SocketAddr,
        /// The message.
        datagram: Vec<u8>,
    },
    /// Send an authenticated ping.
    Ping {
        /// Of this connection.
        link: LinkId,
        /// By this socket.
        socket: SocketId,
        /// To this address.
        to: SocketAddr,
        /// The transaction id that its pong repeats.
        txid: u64,
        /// How many routers it may pass, where the system can say so for one packet: an opener need not arrive.
        hop_limit: Option<u8>,
    },
    /// A ping was answered: hand the route to the peer's route machine.
    Route {
        /// The connection.
        link: LinkId,
        /// The route's socket.
        socket: SocketId,
        /// The route's other end.
        remote: SocketAddr,
        /// How long the answer took.
        rtt: Duration,
    },
    /// The mapping of the direct route dies of age before long: once this one is proven, the connection is to go by it.
    Renew {
        /// The connection.
        link: LinkId,
        /// The new route's socket.
        socket: SocketId,
        /// The new route's other end.
        remote: SocketAddr,
    },
    /// Tell the peer on the control stream.
    Signal {
        /// The connection.
        link: LinkId,
        /// What to say.
        signal: Signal,
    },
    /// The survey has found something new: tell every peer, and the node's user.
    Report(NatReport),
    /// These are where peers see the node's own socket from now on, as far as they are believed and nobody else tells it: at most
    /// two of each family. To be offered as candidates, and told to every peer.
    Observed(Vec<SocketAddr>),
}
