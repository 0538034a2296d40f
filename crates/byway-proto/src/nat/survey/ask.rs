//! Requests under way: sent again until they are answered, and each answered once.

use alloc::{
    collections::VecDeque,
    vec::{self, Vec},
};
use core::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use crate::{
    Instant, Rng,
    nat::{Output, SocketId, SocketIds},
    wire::stun,
};

/// The most packets that one survey sends for one address family, whatever servers answer or claim: two relays take 22 in
/// the first minute, a server that knows RFC 5780 some 20 more.
pub(super) const MAX_PACKETS: u32 = 64;

/// The pauses between one transmission and the next: RFC 8489 §6.2.1 begins with 500 ms and takes 39.5 s to give up, which is
/// too long for a peer who waits. At 5 % loss each way five tries all fail once in 100,000 times.
const PAUSES: [Duration; 4] =
    [Duration::from_millis(250), Duration::from_millis(250), Duration::from_millis(500), Duration::from_millis(750)];

/// How long the last transmission's answer may take: a way over a satellite and back, and as much again.
const LAST_WAIT: Duration = Duration::from_millis(1_250);

/// What a request wants to find out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// How the node's own socket is seen.
    Main,
    /// How a fresh socket is seen; sent once, for the order of new mappings is what counts.
    Fresh,
    /// Whether a server's other address answers, and how it sees the node's own socket.
    Other,
    /// How the scratch socket is seen.
    Scratch,
    /// Whether the server's other address gets through to the scratch socket.
    FromAnyAddress,
    /// Whether the server's other port gets through to the scratch socket.
    FromAnyPort,
    /// Whether the node reaches itself at its public address.
    Hairpin,
    /// Whether a server still reaches the scratch socket's idle mapping.
    Idle,
}

impl Purpose {
    /// How often the request is sent at most.
    fn tries(self) -> usize {
        match self {
            Purpose::Fresh => 1,
            _ => PAUSES.len() + 1,
        }
    }
}

/// A request under way.
#[derive(Debug)]
pub(super) struct Ask {
    pub(super) purpose: Purpose,
    /// The socket that sends it.
    pub(super) socket: SocketId,
    /// The socket at which the answer comes in.
    pub(super) receiver: SocketId,
    pub(super) to: SocketAddr,
    /// Where the answer comes from.
    pub(super) from: SocketAddr,
    pub(super) request: stun::Request,
    sent: usize,
    /// When it is sent again, or given up.
    next: Instant,
}

impl Ask {
    /// Asks `to` by `socket`, which also gets the answer.
    pub(super) fn new(purpose: Purpose, socket: SocketId, to: SocketAddr) -> Self {
        let request = stun::Request::default();
        Ask { purpose, socket, receiver: socket, to, from: to, request, sent: 0, next: Instant::START }
    }

    /// Whether the request was sent as often as it should, so that silence means something.
    pub(super) fn is_conclusive(&self) -> bool {
        self.sent == self.purpose.tries()
    }
}

/// What a step of the survey may use.
pub(super) struct Tools<'a> {
    pub(super) outputs: &'a mut VecDeque<Output>,
    pub(super) sockets: &'a mut SocketIds,
    pub(super) rng: &'a mut Rng,
    /// The addresses of the node's interfaces.
    pub(super) interfaces: &'a [IpAddr],
    pub(super) now: Instant,
}

impl Tools<'_> {
    pub(super) fn open(&mut self, ipv6: bool) -> SocketId {
        let socket = self.sockets.next_id();
        self.outputs.push_back(Output::Open { socket, ipv6 });
        socket
    }

    /// Whether the node is heard on its own machine alone, so that its servers are there too.
    pub(super) fn loopback_only(&self) -> bool {
        self.interfaces.iter().all(IpAddr::is_loopback)
    }

    pub(super) fn close(&mut self, socket: SocketId) {
        self.outputs.push_back(Output::Close { socket });
    }
}

/// The requests under way of one address family, bounded by [`MAX_PACKETS`].
#[derive(Debug, Default)]
pub(super) struct Asks {
    list: Vec<Ask>,
    packets: u32,
}

impl Asks {
    /// Sends a request, with a transaction id of its own.
    pub(super) fn begin(&mut self, mut ask: Ask, tools: &mut Tools<'_>) {
        ask.request.txid = tools.rng.bytes();
        ask.next = tools.now;
        Self::transmit(&mut ask, &mut self.packets, tools);
        self.list.push(ask);
    }

    /// Takes out the request that this message answers, if any: the right socket, source and transaction id, once.
    pub(super) fn answered(&mut self, socket: SocketId, from: SocketAddr, txid: &[u8; 12]) -> Option<Ask> {
        self.take(|ask| ask.receiver == socket && ask.from == from && ask.request.txid == *txid)
    }

    /// Takes out the request whose answer should have come from elsewhere: the server has not understood it.
    pub(super) fn misunderstood(&mut self, socket: SocketId, from: SocketAddr, txid: &[u8; 12]) -> Option<Ask> {
        self.take(|ask| ask.socket == socket && ask.to == from && ask.from != from && ask.request.txid == *txid)
    }

    /// Takes out the request to ourselves that came in by `socket`.
    pub(super) fn came_home(&mut self, socket: SocketId, txid: &[u8; 12]) -> Option<Ask> {
        self.take(|ask| ask.purpose == Purpose::Hairpin && ask.socket != socket && ask.request.txid == *txid)
    }

    /// Sends again what is due, and takes out what is not answered.
    pub(super) fn expired(&mut self, tools: &mut Tools<'_>) -> vec::IntoIter<Ask> {
        let mut expired = Vec::new();
        for mut ask in core::mem::take(&mut self.list) {
            if ask.next > tools.now {
                self.list.push(ask);
            } else if ask.sent < ask.purpose.tries() && self.packets < MAX_PACKETS {
                Self::transmit(&mut ask, &mut self.packets, tools);
                self.list.push(ask);
            } else {
                expired.push(ask);
            }
        }
        expired.into_iter()
    }

    pub(super) fn cancel(&mut self, purpose: Purpose) {
        self.list.retain(|ask| ask.purpose != purpose);
    }

    /// Whether this server is being asked for this.
    pub(super) fn is_asked(&self, purpose: Purpose, server: SocketAddr) -> bool {
        self.list.iter().any(|ask| ask.purpose == purpose && ask.to == server)
    }

    pub(super) fn any(&self, purpose: Purpose) -> bool {
        self.list.iter().any(|ask| ask.purpose == purpose)
    }

    pub(super) fn next(&self) -> Option<Instant> {
        self.list.iter().map(|ask| ask.next).min()
    }

    fn take(&mut self, which: impl Fn(&Ask) -> bool) -> Option<Ask> {
        self.list.iter().position(which).map(|at| self.list.swap_remove(at))
    }

    fn transmit(ask: &mut Ask, packets: &mut u32, tools: &mut Tools<'_>) {
        let pause = PAUSES.get(ask.sent).filter(|_| ask.sent + 1 < ask.purpose.tries());
        ask.next = tools.now + *pause.unwrap_or(&LAST_WAIT);
        if *packets == MAX_PACKETS {
            return; // given up at its next turn, and not conclusive
        }
        *packets += 1;
        ask.sent += 1;
        let datagram = ask.request.to_bytes();
        tools.outputs.push_back(Output::Stun { socket: ask.socket, to: ask.to, datagram });
    }
}
