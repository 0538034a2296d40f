//! The one place where packets come in and go out: QUIC's socket, with a peer's real routes under it.
//!
//! In: kernel → first byte of each segment → alias lookup → QUIC, with no task between. Out: QUIC → alias lookup →
//! the selected route, or all of them while it is doubted. What is not QUIC goes to the agent's bounded queue.

mod questions;
mod receive;
mod relayed;
mod send;

use std::{
    cell::Cell,
    collections::{BTreeSet, VecDeque},
    fmt,
    io::{self, IoSliceMut},
    net::{Ipv6Addr, SocketAddr},
    pin::Pin,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicU32, AtomicUsize},
    },
    task::{Context, Poll},
};

use byway_proto::{
    Instant,
    gate::{Gate, Source},
    nat::SocketId,
    relay::RelayServer,
    wire::stun,
};
use quinn::{
    AsyncUdpSocket, UdpPoller,
    udp::{RecvMeta, Transmit},
};
use tokio::sync::{Notify, mpsc};

use self::{questions::Questions, send::Sent};
use super::{
    BoxFuture,
    routes::{Routes, Via},
    sockets::{Sockets, Which},
};
use crate::{
    config::Config,
    metrics::{Counters, Dropped},
};

/// Datagrams for the agent that may wait: probes of 64 peers, four each.
pub(crate) const AGENT_QUEUE: usize = 256;

/// The largest UDP payload that is received: an Ethernet frame's.
pub(crate) const MAX_DATAGRAM: u16 = 1_500;

/// The clock of one node: the runtime's, counted from the node's start.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock(tokio::time::Instant);

impl Clock {
    pub(crate) fn start() -> Self {
        Clock(tokio::time::Instant::now())
    }

    pub(crate) fn now(&self) -> Instant {
        Instant::after_start(self.0.elapsed())
    }

    /// The runtime's moment for one of the node's.
    pub(crate) fn at(&self, instant: Instant) -> tokio::time::Instant {
        self.0 + instant.since_start()
    }

    /// The node's moment for one of the runtime's.
    pub(crate) fn of(&self, instant: std::time::Instant) -> Instant {
        Instant::after_start(instant.saturating_duration_since(self.0.into_std()))
    }
}

/// A datagram that is not QUIC's.
#[derive(Debug)]
pub(crate) struct ControlDatagram {
    pub(crate) via: Via,
    pub(crate) bytes: Vec<u8>,
}

/// Our sockets, seen by QUIC as one.
pub(crate) struct Mux {
    pub(crate) sockets: Sockets,
    pub(crate) routes: Routes,
    pub(crate) counters: Counters,
    pub(crate) clock: Clock,
    welcome: Welcome,
    pub(crate) gate: Mutex<Gate>,
    /// Set while this node relays for others.
    pub(crate) relay: OnceLock<Arc<Relaying>>,
    /// Tells the agent that a peer has something unanswered.
    pub(crate) woken: Woken,
    control: mpsc::Sender<ControlDatagram>,
    questions: Mutex<Questions>,
    spill: Mutex<VecDeque<(SocketAddr, Vec<u8>)>>,
    turn: AtomicUsize,
    /// The further socket that was received from last.
    further: AtomicU32,
}

/// Whose handshakes are answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Welcome {
    Everyone,
    /// Those that come through a relay.
    Relayed,
    Nobody,
}

impl Welcome {
    pub(crate) fn of(config: &Config) -> Self {
        match (config.accept, config.relay_only) {
            (false, _) => Welcome::Nobody,
            (true, true) => Welcome::Relayed,
            (true, false) => Welcome::Everyone,
        }
    }
}

/// The relay of this node, as the packet path uses it.
#[derive(Debug)]
pub(crate) struct Relaying {
    pub(crate) server: Mutex<RelayServer>,
    /// Told when the machine's timer may have changed.
    pub(crate) changed: Notify,
}

/// The aliases whose tracks ask to be looked at: no more than there are tracks.
#[derive(Debug, Default)]
pub(crate) struct Woken {
    aliases: Mutex<BTreeSet<SocketAddr>>,
    pub(crate) notify: Notify,
}

impl Woken {
    pub(crate) fn push(&self, alias: SocketAddr) {
        self.aliases.lock().unwrap_or_else(PoisonError::into_inner).insert(alias);
        self.notify.notify_one();
    }

    pub(crate) fn take(&self) -> BTreeSet<SocketAddr> {
        std::mem::take(&mut *self.aliases.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Mux {
    /// A mux over `sockets`, and the queue from which the agent takes what is not QUIC's.
    pub(crate) fn new(
        sockets: Sockets,
        routes: Routes,
        gate: Gate,
        clock: Clock,
        welcome: Welcome,
    ) -> (Arc<Mux>, mpsc::Receiver<ControlDatagram>) {
        let (control, agent) = mpsc::channel(AGENT_QUEUE);
        let mux = Mux {
            sockets,
            routes,
            counters: Counters::default(),
            clock,
            welcome,
            gate: Mutex::new(gate),
            relay: OnceLock::new(),
            woken: Woken::default(),
            control,
            questions: Mutex::default(),
            spill: Mutex::default(),
            turn: AtomicUsize::new(0),
            further: AtomicU32::new(0),
        };
        (Arc::new(mux), agent)
    }

    /// Hands a datagram to the agent, or counts it.
    fn to_agent(&self, via: Via, bytes: &[u8]) {
        let datagram = ControlDatagram { via, bytes: bytes.to_vec() };
        if self.control.try_send(datagram).is_err() {
            self.counters.count(Dropped::AgentQueue);
        }
    }

    /// Sends a STUN question of the agent's; what comes back for it goes to the agent.
    pub(crate) fn send_stun(&self, socket: SocketId, to: SocketAddr, datagram: &[u8]) {
        if let Some(txid) = stun::txid(datagram) {
            self.questions.lock().unwrap_or_else(PoisonError::into_inner).asked(txid, self.clock.now());
        }
        self.send_control(Via::straight(socket, to), datagram);
    }

    /// What belongs to a question of ours goes to the agent: its answer, or the question itself, come back by a hairpin.
    /// A relay also tells its clients which address their datagrams come from (RFC 8489 §3); never one that is relayed
    /// itself, for that would be its relay's.
    fn sort_stun(&self, via: Via, datagram: &[u8], now: Instant) {
        let Some(from) = via.peer_addr() else { return self.counters.count(Dropped::Junk) };
        let is_ours = |txid| self.questions.lock().unwrap_or_else(PoisonError::into_inner).take(&txid, now);
        if stun::txid(datagram).is_some_and(is_ours) {
            return self.to_agent(via, datagram);
        }
        let asked = self.relay.get().and_then(|_| stun::Request::parse(datagram)).filter(stun::Request::is_from_here);
        let Some(asked) = asked else { return self.counters.count(Dropped::Junk) };
        if !self.gate.lock().unwrap_or_else(PoisonError::into_inner).stun(self.source_of(via), now) {
            return self.counters.count(Dropped::StunRate);
        }
        // To another port of the same address it goes if that is asked for: so a client learns how long its NAT keeps a mapping.
        let to = SocketAddr::new(from.ip(), asked.response_port.unwrap_or(from.port()));
        self.send_control(Via::straight(via.socket(), to), &stun::binding_response(asked.txid, from));
    }

    /// Whom the gate takes the sender of a datagram for.
    pub(crate) fn source_of(&self, via: Via) -> Source {
        match via {
            Via::Direct(addr) | Via::Punched(_, addr) => Source::of(self.sockets.wss().behind(addr)),
            Via::Relay(relay, id) => Source::relayed(relay, id),
        }
    }

    /// Whether one more packet of an unknown connection may be answered.
    fn may_answer_stranger(&self, via: Via, now: Instant) -> bool {
        let may = self.gate.lock().unwrap_or_else(PoisonError::into_inner).stray(self.source_of(via), now);
        if !may {
            self.counters.count(Dropped::StrangerRate);
        }
        may
    }
}

impl fmt::Debug for Mux {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mux").field("sockets", &self.sockets).finish_non_exhaustive()
    }
}

impl AsyncUdpSocket for Mux {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Poller { mux: self, waiting: Mutex::new(None) })
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let asked = TURN.replace(Turn::Nobody) == Turn::Asked;
        let Sent::Blocked(socket) = self.send(transmit) else { return Ok(()) };
        if asked {
            TURN.set(Turn::Blocked(socket));
        } else {
            self.counters.count(Dropped::SocketFull); // an answer to a stranger, which QUIC does not repeat
        }
        Err(io::ErrorKind::WouldBlock.into())
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        self.receive(cx, bufs, meta)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        // QUIC must take us for an IPv6 socket, for aliases are IPv6 addresses.
        let port = self.sockets.own().next().map_or(Ok(0), |socket| socket.local_addr().map(|addr| addr.port()))?;
        Ok((Ipv6Addr::UNSPECIFIED, port).into())
    }

    fn max_transmit_segments(&self) -> usize {
        self.sockets.own().map(|socket| socket.max_transmit_segments()).min().unwrap_or(1)
    }

    fn max_receive_segments(&self) -> usize {
        self.sockets.own().map(|socket| socket.max_receive_segments()).max().unwrap_or(1)
    }

    fn may_fragment(&self) -> bool {
        self.sockets.own().any(|socket| socket.may_fragment())
    }
}

/// Which connection's turn it is. QUIC asks the connection's poller, sends, and if that was refused asks again, all on one
/// thread; but no call says which connection it is for, and answers to strangers are sent without asking.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Turn {
    #[default]
    Nobody,
    /// A poller was asked last, and let its connection send.
    Asked,
    /// This socket refused what that connection sent.
    Blocked(Which),
}

thread_local! {
    static TURN: Cell<Turn> = const { Cell::new(Turn::Nobody) };
}

/// Waits for the socket that blocked one connection; always ready otherwise.
struct Poller {
    mux: Arc<Mux>,
    waiting: Mutex<Option<BoxFuture<'static, io::Result<()>>>>,
}

impl UdpPoller for Poller {
    fn poll_writable(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let waiting = this.waiting.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Turn::Blocked(which) = TURN.take()
            && let Some(socket) = this.mux.sockets.get(which)
        {
            *waiting = Some(socket.writable());
        }
        if let Some(future) = waiting
            && future.as_mut().poll(cx).is_pending()
        {
            return Poll::Pending;
        }
        // A failing socket must not end the connection: the next send counts its error.
        *waiting = None;
        TURN.set(Turn::Asked);
        Poll::Ready(Ok(()))
    }
}

impl fmt::Debug for Poller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Poller")
    }
}

#[cfg(test)]
mod tests;
