//! What comes in on a link: the control stream, and the streams that the peer opens.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use byway_proto::{
    PeerId,
    hello::{Agreed, Control, ControlCodec},
};
use quinn::{RecvStream, SendStream, VarInt};
use tokio::{sync::mpsc, time};

use super::{
    Link, datagrams, establish,
    inbox::Inbox,
    queue,
    stripe::{Incoming, STRIPE},
    tally::Tally,
};
use crate::{
    event::Direction,
    gone::Gone,
    link::queue::FrameQueue,
    net::mux::Mux,
    protocol::{Delivery, Registered, Registry},
    quic::endpoint::CONNECTION_WINDOW,
    stream::{self, STREAM_QUEUE, Stream},
    tasks::Tasks,
};

/// How long a stream of a protocol that is not known yet waits: its announcement travels on another stream.
const ANNOUNCE_WAIT: Duration = Duration::from_secs(2);

/// How long a stream may take to say what it is for.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// Messages up to this many bytes get their memory at once; larger ones as their bytes arrive.
const EAGER: usize = 64 << 10;

/// How long a stream waits for a place among those to be accepted: a burst of one peer's is over by then, and must not cost
/// another peer its own. As many wait as QUIC lets peers open.
const ACCEPT_WAIT: Duration = Duration::from_secs(1);

/// Code with which a stream is stopped whose protocol or channel is not spoken here.
pub(crate) const UNKNOWN: u32 = 2;

/// Code with which a stream is stopped because too many wait to be accepted.
pub(crate) const BUSY: u32 = 3;

/// What a link's readers need of the node.
#[derive(Clone)]
pub(crate) struct Scope {
    pub(crate) registry: Arc<Registry>,
    pub(crate) tasks: Tasks,
    pub(crate) mux: Arc<Mux>,
    /// Takes the control messages that are not the link's own business.
    pub(crate) control: mpsc::Sender<(Arc<Link>, Control)>,
}

/// Reads everything that the peer sends until the connection ends or the peer breaks the protocol.
pub(crate) async fn run(link: Arc<Link>, mut recv: RecvStream, mut codec: ControlCodec, scope: Scope) {
    let mut window = CONNECTION_WINDOW;
    let mut datagrams = datagrams::Incoming::new(&link, &scope);
    loop {
        tokio::select! {
            biased;
            _ = link.connection.closed() => return,
            () = link.track.revived.notified() => {
                // A packet that QUIC makes now, for its window has grown by a byte: its acknowledgement is the first that tells
                // of the path as it is, and shows that all before are lost. QUIC has no word to ask for one.
                window = window.saturating_add(1);
                link.connection.set_receive_window(VarInt::from_u32(window));
            }
            () = link.track.backlog.notified() => {
                let taken = link.connection.stats().udp_rx.datagrams;
                link.track.consumed(taken, scope.mux.now());
            }
            message = establish::next(&mut recv, &mut codec) => match message {
                // The node's duties, and with them this peer's next messages, wait for room in its queue.
                Ok(message) => drop(scope.control.send((Arc::clone(&link), message)).await),
                Err(gone) => return link.close(gone),
            },
            Ok(stream) = link.connection.accept_uni() => {
                scope.tasks.spawn(channel(Arc::clone(&link), stream, scope.clone()));
            }
            Ok((send, recv)) = link.connection.accept_bi() => {
                scope.tasks.spawn(byte_stream(Arc::clone(&link), send, recv, scope.clone()));
            }
            Ok(datagram) = link.connection.read_datagram() => {
                if let Err(gone) = datagrams.take(datagram) {
                    return link.close(gone);
                }
            }
        }
    }
}

/// Reads one channel's messages into its protocol's inbox, or keeps a further stream of one for its reader.
async fn channel(link: Arc<Link>, mut stream: RecvStream, scope: Scope) {
    let Some(theirs) = varint(&mut stream).await else { return };
    if theirs == STRIPE {
        return stripe(&link, stream).await;
    }
    let Some(protocol) = protocol(&link, theirs, &mut stream, &scope).await else { return };
    let Some(id) = varint(&mut stream).await.and_then(|id| u32::try_from(id).ok()) else { return };
    let Some((channel, inbox)) = protocol.channel(id).filter(|(channel, _)| channel.delivery == Delivery::Stream)
    else {
        let _ = stream.stop(VarInt::from_u32(UNKNOWN));
        return;
    };
    let mut frames = Frames::new(channel.max_message, protocol.tally(&link, Some(id)));
    let mut incoming = Incoming::new(&link.stripes, &link.connection, stream);
    let told = |message: &Bytes| protocol.tell_message(link.peer, id, message.len(), Direction::Received);
    let read = messages((link.peer, inbox), &mut incoming, &mut frames, told).await;
    inbox.orphan(link.peer);
    if let Err(gone) = read {
        link.close(gone);
    }
}

async fn stripe(link: &Link, mut stream: RecvStream) {
    let Some(first) = varint(&mut stream).await else { return };
    let Some(index) = varint(&mut stream).await else { return };
    link.stripes.put(first, index, stream);
}

async fn messages(
    (peer, inbox): (PeerId, &Inbox),
    incoming: &mut Incoming<'_>,
    frames: &mut Frames,
    told: impl Fn(&Bytes),
) -> Result<(), Gone> {
    loop {
        if !inbox.deliver(peer, &mut frames.batch).await {
            incoming.stop(VarInt::from_u32(UNKNOWN));
            return Ok(());
        }
        let Some(bytes) = incoming.next().await? else { return Ok(()) };
        let mut read = bytes.len();
        frames.split(bytes)?;
        while incoming.is_ready()
            && let Some(bytes) = incoming.next().await?
        {
            read += bytes.len();
            frames.split(bytes)?;
        }
        frames.tally.received(frames.batch.len(), read);
        frames.batch.iter().for_each(&told);
    }
}

/// Takes messages out of a stream's bytes.
struct Frames {
    max: usize,
    /// A message whose bytes have not all come: what is there, and how many are missing.
    partial: Option<(BytesMut, usize)>,
    /// A length of which not all bytes have come.
    header: BytesMut,
    batch: VecDeque<Bytes>,
    tally: Arc<Tally>,
}

impl Frames {
    fn new(max: usize, tally: Arc<Tally>) -> Self {
        Frames { max, partial: None, header: BytesMut::new(), batch: VecDeque::new(), tally }
    }

    fn split(&mut self, mut chunk: Bytes) -> Result<(), Gone> {
        while !chunk.is_empty() {
            if let Some((message, missing)) = &mut self.partial {
                let part = chunk.split_to(chunk.len().min(*missing));
                message.extend_from_slice(&part);
                *missing -= part.len();
                if *missing == 0 {
                    let message = std::mem::take(message).freeze();
                    self.partial = None;
                    self.batch.push_back(message);
                }
                continue;
            }
            let Some(len) = self.length(&mut chunk) else { return Ok(()) };
            let len = usize::try_from(len).unwrap_or(usize::MAX);
            if len > self.max {
                return Err(Gone::Misbehaved(format!("a message of {len} bytes on a channel for {}", self.max)));
            }
            if chunk.len() >= len {
                self.batch.push_back(chunk.split_to(len));
            } else {
                self.partial = Some((BytesMut::with_capacity(len.min(EAGER)), len));
            }
        }
        Ok(())
    }

    /// The next message's length, if all its bytes are there.
    fn length(&mut self, chunk: &mut Bytes) -> Option<u64> {
        if self.header.is_empty() {
            if let Some(len) = queue::take_varint(chunk) {
                return Some(len);
            }
            self.header.extend_from_slice(chunk);
            chunk.clear();
            return None;
        }
        while !chunk.is_empty() {
            self.header.extend_from_slice(&chunk.split_to(1));
            let mut whole = Bytes::copy_from_slice(&self.header);
            if let Some(len) = queue::take_varint(&mut whole) {
                self.header.clear();
                return Some(len);
            }
        }
        None
    }
}

/// Hands a byte stream that the peer opened to its protocol.
async fn byte_stream(link: Arc<Link>, mut send: SendStream, mut recv: RecvStream, scope: Scope) {
    let protocol = match varint(&mut recv).await {
        Some(theirs) => protocol(&link, theirs, &mut recv, &scope).await,
        None => None,
    };
    let Some(protocol) = protocol else {
        let _ = send.reset(VarInt::from_u32(UNKNOWN));
        return;
    };
    let Some(streams) = protocol.streams() else {
        let _ = recv.stop(VarInt::from_u32(UNKNOWN));
        let _ = send.reset(VarInt::from_u32(UNKNOWN));
        return;
    };
    let Ok(Ok(place)) = time::timeout(ACCEPT_WAIT, streams.reserve()).await else {
        let _ = recv.stop(VarInt::from_u32(BUSY));
        let _ = send.reset(VarInt::from_u32(BUSY));
        return;
    };
    let received = stream::received(&send);
    let queue = FrameQueue::new(usize::MAX, STREAM_QUEUE);
    let tally = protocol.tally(&link, None);
    if let Some(key) = link.outbox.open_stream(queue, send, Arc::clone(&tally)) {
        tally.received(1, 0);
        place.send((link.peer, Stream::new((Arc::clone(&link.outbox), key), recv, received, tally)));
    }
}

/// Which of our protocols a stream is for.
async fn protocol(link: &Link, theirs: u64, stream: &mut RecvStream, scope: &Scope) -> Option<Arc<Registered>> {
    let ours = |agreed: &Agreed| agreed.protocols.iter().find(|p| u64::from(p.theirs) == theirs).map(|p| p.ours);
    let id = time::timeout(ANNOUNCE_WAIT, link.agreed.wait(ours)).await.ok();
    let protocol = id.and_then(|id| scope.registry.by_id(id));
    if protocol.is_none() {
        let _ = stream.stop(VarInt::from_u32(UNKNOWN));
    }
    protocol
}

/// Reads a variable-length integer byte by byte, so that nothing behind it is taken from the stream.
async fn varint(stream: &mut RecvStream) -> Option<u64> {
    let mut bytes = BytesMut::with_capacity(queue::MAX_HEADER);
    let read = async {
        loop {
            let mut byte = [0];
            stream.read_exact(&mut byte).await.ok()?;
            bytes.extend_from_slice(&byte);
            if let Some(value) = queue::take_varint(&mut Bytes::copy_from_slice(&bytes)) {
                return Some(value);
            }
        }
    };
    time::timeout(HEADER_TIMEOUT, read).await.ok().flatten()
}
