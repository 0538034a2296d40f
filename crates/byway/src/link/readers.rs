//! What comes in on a link: the control stream, and the streams that the peer opens.

use std::{sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use byway_proto::hello::{Agreed, Control, ControlCodec};
use quinn::{RecvStream, SendStream, VarInt};
use tokio::{sync::mpsc, time};

use super::{
    Link,
    budget::Held,
    datagrams, establish,
    messages::{Frames, Messages},
    queue,
    stripe::{Incoming, STRIPE},
};
use crate::{
    event::Direction,
    link::queue::FrameQueue,
    net::mux::Mux,
    protocol::{Delivery, Registered, Registry},
    quic::endpoint::{CONNECTION_WINDOW, FIRST_STREAMS, MAX_STREAMS},
    stream::{self, ReadHalf, STREAM_QUEUE, Stream},
    tasks::Tasks,
};

/// How long a stream of a protocol that is not known yet waits: its announcement travels on another stream.
const ANNOUNCE_WAIT: Duration = Duration::from_secs(2);

/// How long a stream may take to say what it is for.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

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

/// How many streams the peer has opened, of those that it may at first.
#[derive(Default)]
struct Allowance(u32);

impl Allowance {
    /// Counts one more; `true` once, when the peer has shown that it needs as many as there may be.
    fn is_used(&mut self) -> bool {
        self.0 = self.0.saturating_add(1);
        self.0 == FIRST_STREAMS / 2
    }
}

/// Reads everything that the peer sends until the connection ends or the peer breaks the protocol.
pub(crate) async fn run(link: Arc<Link>, mut recv: RecvStream, mut codec: ControlCodec, scope: Scope) {
    let mut window = CONNECTION_WINDOW;
    let mut datagrams = datagrams::Incoming::new(&link, &scope);
    let (mut one_way, mut both_ways) = (Allowance::default(), Allowance::default());
    loop {
        tokio::select! {
            biased;
            _ = link.connection.closed() => return datagrams.rest(),
            () = link.track.revived.notified() => {
                // A packet that QUIC makes now, for its window has grown by a byte: its acknowledgement is the first that tells
                // of the path as it is, and shows that all before are lost. QUIC has no word to ask for one. To the peer it is
                // a sign that this side reads.
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
                if one_way.is_used() {
                    link.connection.set_max_concurrent_uni_streams(VarInt::from_u32(MAX_STREAMS));
                }
                scope.tasks.spawn(channel(Arc::clone(&link), stream, scope.clone()));
            }
            Ok((send, recv)) = link.connection.accept_bi() => {
                if both_ways.is_used() {
                    link.connection.set_max_concurrent_bi_streams(VarInt::from_u32(MAX_STREAMS));
                }
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
    let mut messages = Messages {
        link: &link,
        inbox,
        frames: Frames::new(channel.max_message),
        held: Held::nothing(&scope.registry.budget, link.peer),
        turn: scope.registry.budget.turn(link.peer),
        pace: link.pace_of(protocol.id, channel),
        tally: protocol.tally(&link, Some(id)),
        told: &|message| protocol.tell_message(link.peer, id, message.len(), Direction::Received),
    };
    let mut incoming = Incoming::new(&link.stripes, &link.connection, stream);
    let read = tokio::select! {
        biased;
        // First, for what has come whole before the connection's end is handed over.
        read = messages.read(&mut incoming) => read,
        () = scope.registry.remains.are_over(link.peer, &link.connection) => Ok(()),
    };
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
        let read = ReadHalf::new(recv, link.pace(), tally);
        place.send((link.peer, Stream::new((Arc::clone(&link.outbox), key), read, received)));
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
