//! The one place where packets come in and go out: QUIC's socket, with a peer's real routes under it.
//!
//! In: kernel → first byte of each segment → alias lookup → QUIC, with no task between. Out: QUIC → alias lookup →
//! the selected route, or all of them while it is doubted. What is not QUIC goes to the agent's bounded queue.

mod receive;
mod send;

use std::{
    cell::Cell,
    collections::VecDeque,
    fmt,
    io::{self, IoSliceMut},
    net::{Ipv6Addr, SocketAddr},
    pin::Pin,
    sync::{Arc, Mutex, OnceLock, PoisonError, atomic::AtomicUsize},
    task::{Context, Poll},
};

use byway_proto::{Instant, gate::Gate, relay::RelayServer, schedule::Bucket};
use quinn::{
    AsyncUdpSocket, UdpPoller,
    udp::{RecvMeta, Transmit},
};
use tokio::sync::{Notify, mpsc};

use super::{
    BoxFuture, UdpSocket,
    routes::{Routes, Via},
};
use crate::metrics::{Counters, Dropped};

/// Datagrams for the agent that may wait: probes of 64 peers, four each.
pub(crate) const AGENT_QUEUE: usize = 256;

/// Answers to packets of unknown connections per second (stateless resets, RFC 9000 §10.3), and how many at once: each
/// is shorter than its question, and a restarted relay owes one to every client.
const STRANGER_RATE: (u64, u64) = (1_000, 200);

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
}

/// A datagram that is not QUIC's.
#[derive(Debug)]
pub(crate) struct ControlDatagram {
    pub(crate) via: Via,
    pub(crate) bytes: Vec<u8>,
    pub(crate) at: Instant,
}

/// Our sockets, seen by QUIC as one.
pub(crate) struct Mux {
    pub(crate) sockets: Sockets,
    pub(crate) routes: Routes,
    pub(crate) counters: Counters,
    pub(crate) clock: Clock,
    /// Strangers are answered through relays only.
    relay_only: bool,
    pub(crate) gate: Mutex<Gate>,
    /// Set while this node relays for others.
    pub(crate) relay: OnceLock<Arc<Mutex<RelayServer>>>,
    /// Tells the agent that a peer has something unanswered.
    pub(crate) woken: Woken,
    control: mpsc::Sender<ControlDatagram>,
    strangers: Mutex<Bucket>,
    spill: Mutex<VecDeque<(SocketAddr, Vec<u8>)>>,
    turn: AtomicUsize,
}

/// One socket per address family.
#[derive(Debug, Clone)]
pub(crate) struct Sockets {
    pub(crate) v4: Option<Arc<dyn UdpSocket>>,
    pub(crate) v6: Option<Arc<dyn UdpSocket>>,
}

/// The aliases whose tracks ask to be watched; each is in it at most once, so the table bounds it.
#[derive(Debug, Default)]
pub(crate) struct Woken {
    aliases: Mutex<Vec<SocketAddr>>,
    pub(crate) notify: Notify,
}

impl Woken {
    pub(crate) fn push(&self, alias: SocketAddr) {
        self.aliases.lock().unwrap_or_else(PoisonError::into_inner).push(alias);
        self.notify.notify_one();
    }

    pub(crate) fn take(&self) -> Vec<SocketAddr> {
        std::mem::take(&mut *self.aliases.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Sockets {
    /// The socket that reaches `addr`, and its number.
    pub(crate) fn towards(&self, addr: SocketAddr) -> Option<(usize, &Arc<dyn UdpSocket>)> {
        match addr {
            SocketAddr::V4(_) => self.v4.as_ref().map(|socket| (0, socket)),
            SocketAddr::V6(_) => self.v6.as_ref().map(|socket| (1, socket)),
        }
    }

    fn nth(&self, number: usize) -> Option<&Arc<dyn UdpSocket>> {
        if number == 0 { self.v4.as_ref() } else { self.v6.as_ref() }
    }

    fn all(&self) -> impl Iterator<Item = &Arc<dyn UdpSocket>> {
        self.v4.iter().chain(&self.v6)
    }
}

impl Mux {
    /// A mux over `sockets`, and the queue from which the agent takes what is not QUIC's.
    pub(crate) fn new(
        sockets: Sockets,
        routes: Routes,
        gate: Gate,
        clock: Clock,
        relay_only: bool,
    ) -> (Arc<Mux>, mpsc::Receiver<ControlDatagram>) {
        let (control, agent) = mpsc::channel(AGENT_QUEUE);
        let mux = Mux {
            sockets,
            routes,
            counters: Counters::default(),
            clock,
            relay_only,
            gate: Mutex::new(gate),
            relay: OnceLock::new(),
            woken: Woken::default(),
            control,
            strangers: Mutex::new(Bucket::new(STRANGER_RATE.0, STRANGER_RATE.1, clock.now())),
            spill: Mutex::default(),
            turn: AtomicUsize::new(0),
        };
        (Arc::new(mux), agent)
    }

    /// Hands a datagram to the agent, or counts it.
    fn to_agent(&self, via: Via, bytes: &[u8], at: Instant) {
        let datagram = ControlDatagram { via, bytes: bytes.to_vec(), at };
        if self.control.try_send(datagram).is_err() {
            self.counters.count(Dropped::AgentQueue);
        }
    }

    /// Whether one more packet of an unknown connection may be answered.
    fn may_answer_stranger(&self, now: Instant) -> bool {
        let may = self.strangers.lock().unwrap_or_else(PoisonError::into_inner).take(1, now);
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
        Box::pin(Poller { sockets: self.sockets.clone(), waiting: Mutex::new(None) })
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.send(transmit)
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
        let port = self.sockets.all().next().map_or(Ok(0), |socket| socket.local_addr().map(|addr| addr.port()))?;
        Ok((Ipv6Addr::UNSPECIFIED, port).into())
    }

    fn max_transmit_segments(&self) -> usize {
        self.sockets.all().map(|socket| socket.max_transmit_segments()).min().unwrap_or(1)
    }

    fn max_receive_segments(&self) -> usize {
        self.sockets.all().map(|socket| socket.max_receive_segments()).max().unwrap_or(1)
    }

    fn may_fragment(&self) -> bool {
        self.sockets.all().any(|socket| socket.may_fragment())
    }
}

thread_local! {
    /// The socket that just refused a datagram. QUIC asks its connection's poller right after that, on the same thread,
    /// and neither call says which connection it is for.
    static BLOCKED: Cell<Option<usize>> = const { Cell::new(None) };
}

/// Waits for the socket that blocked one connection; always ready otherwise.
struct Poller {
    sockets: Sockets,
    waiting: Mutex<Option<BoxFuture<'static, io::Result<()>>>>,
}

impl UdpPoller for Poller {
    fn poll_writable(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let waiting = this.waiting.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some(socket) = BLOCKED.take().and_then(|number| this.sockets.nth(number)) {
            *waiting = Some(Arc::clone(socket).writable());
        }
        let Some(future) = waiting else { return Poll::Ready(Ok(())) };
        match future.as_mut().poll(cx) {
            Poll::Pending => Poll::Pending,
            // A failing socket must not end the connection: the next send counts its error.
            Poll::Ready(_) => {
                *waiting = None;
                Poll::Ready(Ok(()))
            }
        }
    }
}

impl fmt::Debug for Poller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Poller")
    }
}
