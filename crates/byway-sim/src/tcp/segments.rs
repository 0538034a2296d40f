//! The fabric's half of TCP: connections, and the segments between them.
//!
//! The simulator knows what becomes of each segment, so none is ever duplicated: a lost one is sent again by the
//! fabric itself, and arrivals need no more than putting in order.

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    net::SocketAddr,
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::{Buf, Bytes};
use tokio::io::ReadBuf;

use crate::{
    fabric::{Body, Fabric, Flight, NodeId, Stage, enlist},
    time::Time,
};

/// Bytes on the way to a reader, or waiting for it: what most systems grow a buffer to on a fast path.
const WINDOW: usize = 1024 * 1024;

/// Payload of a segment on a path with an MTU of 1,500 bytes.
const MAX_SEGMENT: usize = 1_448;

/// Connections that wait to be accepted, as Linux has it by default for small servers.
const BACKLOG: usize = 128;

/// Wait before a lost segment is sent again for the first time: Linux's shortest.
const FIRST_RETRY: Duration = Duration::from_millis(200);

/// Longest wait before a lost segment is sent again; the wait doubles up to it.
const LONGEST_RETRY: Duration = Duration::from_secs(10);

/// How often a segment is sent before the connection is given up: after about 100 s.
const MAX_TRIES: u8 = 16;

/// A TCP segment.
#[derive(Debug)]
pub(crate) struct Segment {
    sender: NodeId,
    /// Source as its sender knows it, for sending it again.
    from: SocketAddr,
    /// Destination as its sender knows it.
    to: SocketAddr,
    sequence: u64,
    kind: Kind,
    /// How often it was lost.
    pub(crate) tries: u8,
}

/// What a segment says. `SynAck`, `Data` and `Fin` are put in order, the others take effect as they arrive.
#[derive(Debug)]
enum Kind {
    /// May I connect?
    Syn,
    /// You may.
    SynAck,
    /// Bytes.
    Data(Bytes),
    /// No more bytes will come.
    Fin,
    /// So many bytes were read: send more.
    Credit(usize),
    /// The connection is over.
    Rst,
}

/// The TCP connections and listeners of all hosts; looked up by key.
#[derive(Debug, Default)]
pub(crate) struct Connections {
    halves: BTreeMap<u64, Half>,
    listeners: BTreeMap<u64, Listener>,
    next: u64,
}

/// One side of a connection.
#[derive(Debug)]
struct Half {
    host: NodeId,
    local: SocketAddr,
    remote: SocketAddr,
    phase: Phase,
    next_out: u64,
    next_in: u64,
    /// What arrived before its turn; at most a window of it.
    early: BTreeMap<u64, Kind>,
    unread: VecDeque<Bytes>,
    /// Bytes read that the other side was not told of.
    uncredited: usize,
    /// Bytes sent that the other side has not read.
    in_flight: usize,
    finished: bool,
    peer_finished: bool,
    /// Nobody holds the stream any more; what was written is still delivered.
    orphan: bool,
    waiters: Vec<Waker>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Connecting,
    Open,
    Failed(io::ErrorKind),
}

#[derive(Debug, Default)]
struct Listener {
    pending: VecDeque<u64>,
    waiters: Vec<Waker>,
}

impl Segment {
    /// The bytes it carries.
    pub(crate) fn payload(&self) -> &[u8] {
        match &self.kind {
            Kind::Data(payload) => payload,
            _ => &[],
        }
    }

    /// How many bytes it carries.
    pub(crate) fn len(&self) -> usize {
        self.payload().len()
    }
}

impl From<Box<Segment>> for Flight {
    fn from(segment: Box<Segment>) -> Self {
        let (from, to, sender) = (segment.from, segment.to, segment.sender);
        Flight { from, to, sender, stage: Stage::Sent, body: Body::Segment(segment) }
    }
}

/// What streams and listeners ask for.
impl Fabric {
    /// Begins a connection: its key and local address.
    pub(crate) fn tcp_connect(&mut self, now: Time, host: NodeId, remote: SocketAddr) -> io::Result<(u64, SocketAddr)> {
        let role = self.topology.host_mut(host);
        let any: SocketAddr = if remote.is_ipv4() { ([0; 4], 0).into() } else { ([0_u16; 8], 0).into() };
        let source = role.source(any.ip(), remote.ip()).ok_or(io::ErrorKind::AddrNotAvailable)?;
        let connections = &role.connections;
        let is_free = |_: &_, port| !connections.contains_key(&(SocketAddr::new(source, port), remote));
        let port = role.tcp.dynamic(is_free).ok_or(io::ErrorKind::AddrInUse)?;
        let local = SocketAddr::new(source, port);
        let key = self.tcp_open(host, local, remote, Phase::Connecting);
        self.tcp_send(now, key, Kind::Syn);
        Ok((key, local))
    }

    /// Whether a connection is open by now.
    pub(crate) fn tcp_connected(&mut self, key: u64, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let half = self.half(key);
        match half.phase {
            Phase::Open => Poll::Ready(Ok(())),
            Phase::Failed(kind) => Poll::Ready(Err(kind.into())),
            Phase::Connecting => {
                enlist(&mut half.waiters, cx);
                Poll::Pending
            }
        }
    }

    /// Opens a listener: its key and address.
    pub(crate) fn tcp_listen(&mut self, host: NodeId, addr: SocketAddr) -> io::Result<(u64, SocketAddr)> {
        let role = self.topology.host_mut(host);
        if !addr.ip().is_unspecified() && !role.is_own(addr.ip()) {
            return Err(io::ErrorKind::AddrNotAvailable.into());
        }
        let key = self.connections.fresh_key();
        let port = role.tcp.bind(addr, key).ok_or(io::ErrorKind::AddrInUse)?;
        self.connections.listeners.insert(key, Listener::default());
        Ok((key, SocketAddr::new(addr.ip(), port)))
    }

    /// The next connection of a listener: its key, local and remote address.
    pub(crate) fn tcp_accept(&mut self, key: u64, cx: &mut Context<'_>) -> Poll<(u64, SocketAddr, SocketAddr)> {
        let Connections { halves, listeners, .. } = &mut self.connections;
        let listener = listeners.get_mut(&key).expect("a listener's state lives as long as its handle");
        while let Some(next) = listener.pending.pop_front() {
            if let Some(half) = halves.get(&next) {
                return Poll::Ready((next, half.local, half.remote));
            }
        }
        enlist(&mut listener.waiters, cx);
        Poll::Pending
    }

    /// Closes a listener, and resets what nobody has accepted.
    pub(crate) fn tcp_unlisten(&mut self, now: Time, host: NodeId, key: u64, port: u16) {
        self.topology.host_mut(host).tcp.release(port, key);
        let Some(listener) = self.connections.listeners.remove(&key) else { return };
        for pending in listener.pending {
            self.tcp_reset(now, pending);
            self.tcp_close(now, pending);
        }
    }

    /// Reads what has arrived.
    pub(crate) fn tcp_read(
        &mut self,
        now: Time,
        key: u64,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let half = self.half(key);
        let before = buf.remaining();
        while let Some(first) = half.unread.front_mut().filter(|_| buf.remaining() > 0) {
            let count = first.len().min(buf.remaining());
            buf.put_slice(&first[..count]);
            first.advance(count);
            if first.is_empty() {
                half.unread.pop_front();
            }
        }
        let read = before - buf.remaining();
        if read == 0 && before > 0 {
            return match half.phase {
                _ if half.peer_finished => Poll::Ready(Ok(())),
                Phase::Failed(kind) => Poll::Ready(Err(kind.into())),
                Phase::Connecting | Phase::Open => {
                    enlist(&mut half.waiters, cx);
                    Poll::Pending
                }
            };
        }
        half.uncredited += read;
        let due = half.unread.is_empty() || half.uncredited >= WINDOW / 4;
        if due && half.uncredited > 0 && !half.peer_finished && half.phase == Phase::Open {
            let credit = std::mem::take(&mut half.uncredited);
            self.tcp_send(now, key, Kind::Credit(credit));
        }
        Poll::Ready(Ok(()))
    }

    /// Sends what fits into the window.
    pub(crate) fn tcp_write(
        &mut self,
        now: Time,
        key: u64,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let half = self.half(key);
        if let Phase::Failed(kind) = half.phase {
            return Poll::Ready(Err(kind.into()));
        }
        if half.finished {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let count = buf.len().min(WINDOW - half.in_flight);
        if count == 0 && !buf.is_empty() {
            enlist(&mut half.waiters, cx);
            return Poll::Pending;
        }
        half.in_flight += count;
        let mut rest = Bytes::copy_from_slice(&buf[..count]);
        while !rest.is_empty() {
            let payload = rest.split_to(rest.len().min(MAX_SEGMENT));
            self.tcp_send(now, key, Kind::Data(payload));
        }
        Poll::Ready(Ok(count))
    }

    /// Says that no more bytes will come; does nothing the second time.
    pub(crate) fn tcp_finish(&mut self, now: Time, key: u64) {
        let half = self.half(key);
        if half.phase == Phase::Open && !half.finished {
            half.finished = true;
            self.tcp_send(now, key, Kind::Fin);
        }
    }

    /// Ends a connection at once.
    pub(crate) fn tcp_reset(&mut self, now: Time, key: u64) {
        let half = self.half(key);
        half.unread.clear();
        if !matches!(half.phase, Phase::Failed(_)) {
            self.tcp_send(now, key, Kind::Rst);
            self.tcp_fail(key, io::ErrorKind::ConnectionReset);
        }
    }

    /// Lets go of a stream: it ends in order if everything that has arrived was read, with a reset otherwise.
    pub(crate) fn tcp_close(&mut self, now: Time, key: u64) {
        let half = self.half(key);
        if half.phase == Phase::Open && half.unread.is_empty() {
            self.tcp_finish(now, key);
        } else {
            self.tcp_reset(now, key);
        }
        self.half(key).orphan = true;
        self.tcp_bury(key);
    }
}

/// What becomes of segments.
impl Fabric {
    /// A segment has reached `host`.
    pub(crate) fn segment_arrived(
        &mut self,
        now: Time,
        host: NodeId,
        (from, to): (SocketAddr, SocketAddr),
        segment: Box<Segment>,
    ) {
        if matches!(segment.kind, Kind::Syn) {
            return self.syn_arrived(now, host, (from, to), segment);
        }
        let Some(key) = self.topology.host(host).connections.get(&(to, from)).copied() else {
            if matches!(segment.kind, Kind::SynAck | Kind::Data(_)) {
                self.refuse(now, host, to, from);
            }
            return;
        };
        let half = self.half(key);
        match segment.kind {
            Kind::Rst => {
                let refused = half.phase == Phase::Connecting;
                let kind = if refused { io::ErrorKind::ConnectionRefused } else { io::ErrorKind::ConnectionReset };
                return self.tcp_fail(key, kind);
            }
            Kind::Data(_) if half.orphan => {
                self.tcp_reset(now, key);
                return self.tcp_bury(key);
            }
            Kind::Credit(bytes) => half.in_flight = half.in_flight.saturating_sub(bytes),
            Kind::Syn | Kind::SynAck | Kind::Data(_) | Kind::Fin => {
                half.early.insert(segment.sequence, segment.kind);
                half.put_in_order();
            }
        }
        let mut waiters = std::mem::take(&mut half.waiters);
        self.wake(&mut waiters);
        self.tcp_bury(key);
    }

    /// A segment was lost: it is sent again, or its connection is over.
    pub(crate) fn segment_lost(&mut self, now: Time, mut segment: Box<Segment>) {
        segment.tries += 1;
        if segment.tries >= MAX_TRIES {
            let ends = (segment.from, segment.to);
            if let Some(key) = self.topology.host(segment.sender).connections.get(&ends).copied() {
                self.tcp_fail(key, io::ErrorKind::TimedOut);
            }
            return;
        }
        if matches!(segment.kind, Kind::Rst) {
            return; // the other side asks for it again by whatever it sends next
        }
        let wait = FIRST_RETRY.saturating_mul(1 << u32::from(segment.tries - 1)).min(LONGEST_RETRY);
        self.resend(now + wait, Flight::from(segment));
    }

    fn syn_arrived(&mut self, now: Time, host: NodeId, (from, to): (SocketAddr, SocketAddr), segment: Box<Segment>) {
        let Some(listener) = self.topology.host(host).tcp.find(to) else {
            return self.refuse(now, host, to, from);
        };
        let waits = self.connections.listeners.get(&listener).map_or(0, |listener| listener.pending.len());
        if waits >= BACKLOG || self.topology.host(host).connections.contains_key(&(to, from)) {
            return self.segment_lost(now, segment);
        }
        let key = self.tcp_open(host, to, from, Phase::Open);
        self.tcp_send(now, key, Kind::SynAck);
        let Some(listener) = self.connections.listeners.get_mut(&listener) else { return };
        listener.pending.push_back(key);
        let mut waiters = std::mem::take(&mut listener.waiters);
        self.wake(&mut waiters);
    }

    /// Answers what belongs to no connection.
    fn refuse(&mut self, now: Time, host: NodeId, from: SocketAddr, to: SocketAddr) {
        let segment = Segment { sender: host, from, to, sequence: 0, kind: Kind::Rst, tries: 0 };
        self.launch(now, Flight::from(Box::new(segment)));
    }

    fn tcp_open(&mut self, host: NodeId, local: SocketAddr, remote: SocketAddr, phase: Phase) -> u64 {
        let key = self.connections.fresh_key();
        self.topology.host_mut(host).connections.insert((local, remote), key);
        self.connections.halves.insert(key, Half::new(host, local, remote, phase));
        key
    }

    fn tcp_send(&mut self, now: Time, key: u64, kind: Kind) {
        let half = self.half(key);
        let ordered = matches!(kind, Kind::SynAck | Kind::Data(_) | Kind::Fin);
        let sequence = half.next_out;
        half.next_out += u64::from(ordered);
        let (sender, from, to) = (half.host, half.local, half.remote);
        self.launch(now, Flight::from(Box::new(Segment { sender, from, to, sequence, kind, tries: 0 })));
    }

    /// Ends a connection for its holder; what has arrived can still be read.
    fn tcp_fail(&mut self, key: u64, kind: io::ErrorKind) {
        let half = self.half(key);
        half.phase = Phase::Failed(kind);
        half.early.clear();
        let (host, ends) = (half.host, (half.local, half.remote));
        let mut waiters = std::mem::take(&mut half.waiters);
        self.wake(&mut waiters);
        self.topology.host_mut(host).connections.remove(&ends);
        self.tcp_bury(key);
    }

    /// Forgets a connection that nobody holds and that has nothing left to do.
    fn tcp_bury(&mut self, key: u64) {
        let Some(half) = self.connections.halves.get(&key).filter(|half| half.orphan) else { return };
        if matches!(half.phase, Phase::Failed(_)) {
            self.connections.halves.remove(&key); // the host has forgotten it already
        } else if half.finished && half.peer_finished {
            self.topology.host_mut(half.host).connections.remove(&(half.local, half.remote));
            self.connections.halves.remove(&key);
        }
    }

    fn half(&mut self, key: u64) -> &mut Half {
        self.connections.halves.get_mut(&key).expect("a connection lives while its host lists it or a stream holds it")
    }
}

impl Connections {
    fn fresh_key(&mut self) -> u64 {
        self.next += 1;
        self.next
    }
}

impl Half {
    fn new(host: NodeId, local: SocketAddr, remote: SocketAddr, phase: Phase) -> Self {
        Half {
            host,
            local,
            remote,
            phase,
            next_out: 0,
            next_in: 0,
            early: BTreeMap::new(),
            unread: VecDeque::new(),
            uncredited: 0,
            in_flight: 0,
            finished: false,
            peer_finished: false,
            orphan: false,
            waiters: Vec::new(),
        }
    }

    /// Takes what is next in order.
    fn put_in_order(&mut self) {
        while let Some(kind) = self.early.remove(&self.next_in) {
            self.next_in += 1;
            match kind {
                Kind::SynAck => self.phase = Phase::Open,
                Kind::Data(payload) => self.unread.push_back(payload),
                Kind::Fin => self.peer_finished = true,
                Kind::Syn | Kind::Credit(_) | Kind::Rst => {} // never put in order
            }
        }
    }
}
