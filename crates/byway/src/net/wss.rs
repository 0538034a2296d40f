//! UDP datagrams over WebSockets on TLS, for networks that let no UDP through: one binary message is one datagram.
//!
//! To the mux this is one more socket, whose remotes are [virtual addresses](is_virtual), one for each WebSocket. What can
//! wait is dropped instead, as a full UDP socket would: behind a lost TCP segment old datagrams are worth less than new
//! ones that come by another way.

use std::{
    collections::HashMap,
    io::{self, IoSliceMut},
    net::{Ipv6Addr, SocketAddr, SocketAddrV6},
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use byway_proto::addr::candidate::WEBSOCKET_PREFIX;
use futures_util::{
    Sink, SinkExt, StreamExt,
    stream::{SplitSink, SplitStream},
};
use quinn::udp::{RecvMeta, Transmit};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::{mpsc, watch},
    time,
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Message,
        protocol::{Role, WebSocketConfig},
    },
};

use super::{BoxFuture, UdpSocket, mux::MAX_DATAGRAM};

/// The port of every virtual address; any but 0 would do.
const PORT: u16 = 1;

/// Datagrams that wait for one WebSocket: 30 ms of a 100 Mbit/s line. A longer queue would be delay and nothing else.
const OUTBOX: usize = 256;

/// Datagrams of all WebSockets that wait for the mux; a connection that finds no room waits for its turn, which stops its
/// TCP and no other.
const INBOX: usize = 256;

/// Datagrams that are written before the line is flushed.
const BATCH: usize = 32;

/// How long one batch may take to leave: whoever takes less than 10 kB/s off us is too slow for any connection.
const STALL: Duration = Duration::from_secs(5);

/// How long a WebSocket may be silent: several of the keep-alives of a relay's client.
const IDLE: Duration = Duration::from_secs(60);

/// Bytes that are read, and written, at once: a few datagrams. A relay has both for every client.
const BUFFER: usize = 4 << 10;

/// Most bytes that wait to be written: a batch.
const MAX_WRITE_BUFFER: usize = BATCH * 2_048 + BUFFER;

/// Whether an address names a WebSocket of this node. No datagram from the outside may claim to come from one, and nobody
/// is told of one as an address of a peer's.
pub(crate) fn is_virtual(addr: SocketAddr) -> bool {
    number(addr).is_some()
}

fn number(addr: SocketAddr) -> Option<u64> {
    let SocketAddr::V6(addr) = addr else { return None };
    let [a, b, c, d, e, f, g, h] = addr.ip().segments();
    let number = [e, f, g, h].into_iter().fold(0, |number, part| number << 16 | u64::from(part));
    ([a, b, c, d] == WEBSOCKET_PREFIX).then_some(number)
}

fn virtual_addr(number: u64) -> SocketAddr {
    let [a, b, c, d] = WEBSOCKET_PREFIX;
    let [e, f, g, h] = [48, 32, 16, 0].map(|shift| (number >> shift) as u16);
    SocketAddrV6::new(Ipv6Addr::new(a, b, c, d, e, f, g, h), PORT, 0, 0).into()
}

/// All WebSockets of a node, as one socket.
#[derive(Debug)]
pub(crate) struct WssSocket {
    connections: RwLock<HashMap<u64, Connection>>,
    /// How many there ever were; a number is never used again.
    numbered: AtomicU64,
    inlet: mpsc::Sender<Arrived>,
    inbox: Mutex<mpsc::Receiver<Arrived>>,
    counters: Counters,
}

/// What was lost here, apart from what the mux counts.
#[derive(Debug, Default)]
struct Counters {
    full: AtomicU64,
    evicted: AtomicU64,
}

#[derive(Debug)]
struct Connection {
    outbox: mpsc::Sender<Bytes>,
    /// The other end of the TCP connection.
    remote: SocketAddr,
    /// Whether somebody who has proven who he is goes by it.
    vouched: watch::Sender<bool>,
}

/// A datagram from a WebSocket.
#[derive(Debug)]
struct Arrived {
    from: SocketAddr,
    datagram: Bytes,
}

/// Why a WebSocket has ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Ended {
    #[error("the other side has closed the WebSocket")]
    Closed,
    #[error("nothing came over the WebSocket for {} s", IDLE.as_secs())]
    Idle,
    #[error("the other side takes its datagrams too slowly: a batch did not leave within {} s", STALL.as_secs())]
    Slow,
    #[error("the other side sent a message that is no datagram")]
    NoDatagram,
    #[error("{0}")]
    Broken(#[from] tokio_tungstenite::tungstenite::Error),
}

impl WssSocket {
    pub(crate) fn new() -> Self {
        let (inlet, inbox) = mpsc::channel(INBOX);
        WssSocket {
            connections: RwLock::default(),
            numbered: AtomicU64::new(0),
            inlet,
            inbox: Mutex::new(inbox),
            counters: Counters::default(),
        }
    }

    /// Takes in a connection on which both sides have agreed to speak WebSocket; `part` is what was read too much.
    /// `remote` is the other end of its TCP connection.
    pub(super) async fn open<S>(
        self: &Arc<Self>,
        stream: S,
        part: Vec<u8>,
        role: Role,
        remote: SocketAddr,
    ) -> WebSocket<S>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let config = WebSocketConfig::default()
            .read_buffer_size(BUFFER)
            .write_buffer_size(BUFFER)
            .max_write_buffer_size(MAX_WRITE_BUFFER)
            .max_frame_size(Some(MAX_DATAGRAM.into()))
            .max_message_size(Some(MAX_DATAGRAM.into()));
        let stream = WebSocketStream::from_partially_read(stream, part, role, Some(config)).await;
        let (outbox, queue) = mpsc::channel(OUTBOX);
        let number = self.numbered.fetch_add(1, Ordering::Relaxed);
        let mut connections = self.connections.write().unwrap_or_else(PoisonError::into_inner);
        let (vouched, vouching) = watch::channel(false);
        connections.insert(number, Connection { outbox, remote, vouched });
        let seat = Seat { socket: Arc::clone(self), number };
        WebSocket { stream, queue, seat, vouching }
    }

    /// The other end of the TCP connection that a virtual address stands for; any other address as it is.
    pub(crate) fn behind(&self, addr: SocketAddr) -> SocketAddr {
        let Some(number) = number(addr) else { return addr };
        let connections = self.connections.read().unwrap_or_else(PoisonError::into_inner);
        connections.get(&number).map_or(addr, |connection| connection.remote)
    }

    /// Notes whether somebody who has proven who he is goes by a virtual address; nothing for any other address.
    pub(crate) fn vouch(&self, addr: SocketAddr, is_known: bool) {
        let connections = self.connections.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(connection) = number(addr).and_then(|number| connections.get(&number)) {
            connection.vouched.send_replace(is_known);
        }
    }

    /// Whether a virtual address still leads somewhere.
    pub(crate) fn is_open(&self, addr: SocketAddr) -> bool {
        let connections = self.connections.read().unwrap_or_else(PoisonError::into_inner);
        number(addr).is_some_and(|number| connections.contains_key(&number))
    }

    /// What was dropped or turned away, by reason.
    pub(crate) fn dropped(&self) -> [(&'static str, u64); 2] {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        [("wss_queue", count(&self.counters.full)), ("wss_slow", count(&self.counters.evicted))]
    }
}

impl UdpSocket for WssSocket {
    /// Never says `WouldBlock`: one slow connection must not stop the others.
    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let connections = self.connections.read().unwrap_or_else(PoisonError::into_inner);
        let connection = number(transmit.destination).and_then(|number| connections.get(&number));
        let connection = connection.ok_or(io::ErrorKind::NotConnected)?;
        let segment = transmit.segment_size.unwrap_or(transmit.contents.len()).max(1);
        let count = transmit.contents.len().div_ceil(segment);
        // What does not fit is not copied: one datagram that waits keeps the memory of its whole batch.
        let fits = connection.outbox.capacity().min(count);
        let batch = Bytes::copy_from_slice(&transmit.contents[..transmit.contents.len().min(fits * segment)]);
        let datagrams = (0..fits).map(|n| batch.slice(n * segment..batch.len().min((n + 1) * segment)));
        let taken = datagrams.filter_map(|datagram| connection.outbox.try_send(datagram).ok()).count();
        self.counters.full.fetch_add((count - taken) as u64, Ordering::Relaxed);
        Ok(())
    }

    fn writable(self: Arc<Self>) -> BoxFuture<'static, io::Result<()>> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let mut inbox = self.inbox.lock().unwrap_or_else(PoisonError::into_inner);
        let mut count = 0;
        for (buf, meta) in bufs.iter_mut().zip(meta) {
            // The sender that this socket keeps never lets the queue end.
            let Poll::Ready(Some(Arrived { from, datagram })) = inbox.poll_recv(cx) else { break };
            let len = datagram.len().min(buf.len());
            buf[..len].copy_from_slice(&datagram[..len]);
            *meta = RecvMeta { addr: from, len, stride: len, ecn: None, dst_ip: None };
            count += 1;
        }
        if count == 0 { Poll::Pending } else { Poll::Ready(Ok(count)) }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Err(io::ErrorKind::AddrNotAvailable.into())
    }

    fn max_transmit_segments(&self) -> usize {
        1
    }

    fn max_receive_segments(&self) -> usize {
        1
    }

    fn may_fragment(&self) -> bool {
        false
    }
}

/// A connection's place among the others; whoever drops it gives it up.
#[derive(Debug)]
struct Seat {
    socket: Arc<WssSocket>,
    number: u64,
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut connections = self.socket.connections.write().unwrap_or_else(PoisonError::into_inner);
        connections.remove(&self.number);
    }
}

/// One WebSocket, which carries datagrams while [`WebSocket::run`] is polled.
#[derive(Debug)]
pub(crate) struct WebSocket<S> {
    stream: WebSocketStream<S>,
    queue: mpsc::Receiver<Bytes>,
    seat: Seat,
    vouching: watch::Receiver<bool>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> WebSocket<S> {
    /// The address under which the mux knows it.
    pub(crate) fn addr(&self) -> SocketAddr {
        virtual_addr(self.seat.number)
    }

    /// Tells whether somebody who has proven who he is goes by it.
    pub(crate) fn vouching(&self) -> watch::Receiver<bool> {
        self.vouching.clone()
    }

    /// Carries datagrams until the connection ends.
    pub(crate) async fn run(self) -> Ended {
        let WebSocket { stream, queue, seat, .. } = self;
        let (sink, stream) = stream.split();
        let ended = tokio::select! {
            biased;
            ended = receive(stream, &seat) => ended,
            ended = send(sink, queue) => ended,
        };
        if let Ended::Slow = ended {
            seat.socket.counters.evicted.fetch_add(1, Ordering::Relaxed);
        }
        ended
    }
}

async fn receive<S: AsyncRead + AsyncWrite + Unpin>(mut stream: SplitStream<WebSocketStream<S>>, seat: &Seat) -> Ended {
    let from = virtual_addr(seat.number);
    loop {
        let datagram = match time::timeout(IDLE, stream.next()).await {
            Err(_) => return Ended::Idle,
            Ok(None | Some(Ok(Message::Close(_)))) => return Ended::Closed,
            Ok(Some(Err(error))) => return error.into(),
            Ok(Some(Ok(Message::Binary(datagram)))) if !datagram.is_empty() => datagram,
            Ok(Some(Ok(Message::Ping(_) | Message::Pong(_)))) => continue, // the library answers
            Ok(Some(Ok(_))) => return Ended::NoDatagram,
        };
        if seat.socket.inlet.send(Arrived { from, datagram }).await.is_err() {
            return Ended::Closed; // the node is gone
        }
    }
}

async fn send<S: AsyncRead + AsyncWrite + Unpin>(
    mut sink: SplitSink<WebSocketStream<S>, Message>,
    mut queue: mpsc::Receiver<Bytes>,
) -> Ended {
    let mut batch = Vec::with_capacity(BATCH);
    while queue.recv_many(&mut batch, BATCH).await > 0 {
        match time::timeout(STALL, write(&mut sink, batch.drain(..))).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return error.into(),
            Err(_) => return Ended::Slow,
        }
    }
    Ended::Closed // the seat is gone
}

async fn write<E>(
    sink: &mut (impl Sink<Message, Error = E> + Unpin),
    batch: impl Iterator<Item = Bytes>,
) -> Result<(), E> {
    for datagram in batch {
        sink.feed(Message::Binary(datagram)).await?;
    }
    sink.flush().await
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    /// The other end of the TCP connections.
    const REMOTE: ([u8; 4], u16) = ([192, 0, 2, 1], 50_000);

    async fn open(socket: &Arc<WssSocket>, stream: DuplexStream, role: Role) -> WebSocket<DuplexStream> {
        socket.open(stream, Vec::new(), role, REMOTE.into()).await
    }

    /// Two nodes with a WebSocket between them, and its address at each.
    async fn pair(room: usize) -> ([Arc<WssSocket>; 2], [SocketAddr; 2]) {
        let (client, server) = duplex(room);
        let sockets = [(); 2].map(|()| Arc::new(WssSocket::new()));
        let ends = [open(&sockets[0], client, Role::Client).await, open(&sockets[1], server, Role::Server).await];
        let addrs = [ends[0].addr(), ends[1].addr()];
        ends.into_iter().for_each(|end| drop(tokio::spawn(end.run())));
        (sockets, addrs)
    }

    fn send(socket: &WssSocket, to: SocketAddr, contents: &[u8], segment_size: Option<usize>) -> io::Result<()> {
        socket.try_send(&Transmit { destination: to, ecn: None, contents, segment_size, src_ip: None })
    }

    async fn receive_one(socket: &WssSocket) -> (SocketAddr, Vec<u8>) {
        let (mut buf, mut meta) = (vec![0; 2_048], [RecvMeta::default()]);
        let mut bufs = [IoSliceMut::new(&mut buf)];
        std::future::poll_fn(|cx| socket.poll_recv(cx, &mut bufs, &mut meta)).await.unwrap();
        (meta[0].addr, buf[..meta[0].len].to_vec())
    }

    #[tokio::test]
    async fn each_segment_of_a_batch_is_a_datagram_of_its_own_in_both_directions() {
        let ([client, server], [there, back]) = pair(1 << 16).await;
        send(&client, there, &[1, 1, 2, 2, 3], Some(2)).unwrap();
        send(&server, back, &[4; 1_500], None).unwrap();
        for datagram in [&[1, 1][..], &[2, 2], &[3]] {
            assert_eq!(receive_one(&server).await, (back, datagram.to_vec()));
        }
        assert_eq!(receive_one(&client).await, (there, vec![4; 1_500]));
        assert_eq!(server.behind(back), REMOTE.into());
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_nothing_loses_what_does_not_fit_and_then_its_connection() {
        let (client, server) = duplex(1_000);
        let socket = Arc::new(WssSocket::new());
        let slow = open(&socket, server, Role::Server).await;
        let addr = slow.addr();
        for _ in 0..OUTBOX + 10 {
            send(&socket, addr, &[7; 1_200], None).unwrap();
        }
        assert_eq!(socket.dropped()[0], ("wss_queue", 10));
        assert!(matches!(slow.run().await, Ended::Slow));
        assert_eq!(socket.dropped()[1], ("wss_slow", 1));
        assert_eq!(send(&socket, addr, &[7], None).unwrap_err().kind(), io::ErrorKind::NotConnected);
        drop(client);
    }

    #[tokio::test]
    async fn a_batch_that_does_not_fit_takes_no_memory_beyond_what_fits() {
        let (_client, server) = duplex(1_000);
        let socket = Arc::new(WssSocket::new());
        let mut it = open(&socket, server, Role::Server).await;
        let addr = it.addr();
        for _ in 1..OUTBOX {
            send(&socket, addr, &[7; 100], None).unwrap();
        }
        send(&socket, addr, &[7; 60_000], Some(1_200)).unwrap();
        assert_eq!(socket.dropped()[0], ("wss_queue", 49));
        let mut last = None;
        while let Ok(datagram) = it.queue.try_recv() {
            last = Some(datagram);
        }
        assert!(last.unwrap().try_into_mut().unwrap().capacity() < 2_000);
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_connection_ends() {
        let (_client, server) = duplex(1_000);
        let socket = Arc::new(WssSocket::new());
        let start = time::Instant::now();
        assert!(matches!(open(&socket, server, Role::Server).await.run().await, Ended::Idle));
        assert!(start.elapsed() < IDLE + Duration::from_secs(1));
    }

    #[tokio::test]
    async fn one_busy_connection_does_not_keep_others_from_the_inbox() {
        let socket = Arc::new(WssSocket::new());
        let mut clients = Vec::new();
        for n in 0..2 {
            let (client, server) = duplex(1 << 20);
            let other = Arc::new(WssSocket::new());
            let (far, near) = (open(&other, client, Role::Client).await, open(&socket, server, Role::Server).await);
            let addr = far.addr();
            tokio::spawn(far.run());
            tokio::spawn(near.run());
            for _ in 0..if n == 0 { 3 * INBOX } else { 1 } {
                send(&other, addr, &[n], None).unwrap();
                tokio::task::yield_now().await;
            }
            clients.push(other);
        }
        let mut before = 0;
        while receive_one(&socket).await.1 != [1] {
            before += 1;
        }
        assert!(before <= 2 * INBOX, "{before} datagrams came first");
    }

    #[tokio::test]
    async fn garbage_text_and_what_is_longer_than_a_datagram_end_the_connection() {
        let long = [&[0x82, 0xfe, 0x10, 0x00, 0, 0, 0, 0][..], &[0; 4_096]].concat();
        let (text, empty) = ([0x81, 0x81, 0, 0, 0, 0, b'x'], [0x82, 0x80, 0, 0, 0, 0]);
        let no_datagram = |ended: &Ended| matches!(ended, Ended::NoDatagram);
        let broken = |ended: &Ended| matches!(ended, Ended::Broken(_));
        for (bytes, is_expected) in [
            (&text[..], no_datagram as fn(&Ended) -> bool),
            (&empty, no_datagram),
            (&[0xff; 64], broken),
            (&long, broken),
        ] {
            let (mut client, server) = duplex(1 << 16);
            let socket = Arc::new(WssSocket::new());
            client.write_all(bytes).await.unwrap();
            let ended = open(&socket, server, Role::Server).await.run().await;
            assert!(is_expected(&ended), "{ended:?} after {bytes:?}");
            let _ = client.read_u8().await;
        }
    }
}
