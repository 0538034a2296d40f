//! From a QUIC connection to a link: the hellos of both sides, then the link's tasks.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, OnceLock, atomic::AtomicUsize},
    time::Duration,
};

use byway_proto::{
    PeerId,
    gate::HANDSHAKE_IDLE,
    hello::{Agreed, Announced, Control, ControlCodec, Hello, agree},
    schedule::{Class, Share},
    wire::probe,
};
use quinn::{Connection, RecvStream, SendStream};
use tokio::time;

use super::{
    Link,
    outbox::{CONTROL, NewLane, Outbox, Outlet},
    queue::FrameQueue,
    stripe::Waiting,
    writer,
};
use crate::{gone::Gone, net::track::Track, quic::tls, watched::Watched};

/// Control messages, and bytes of them, that wait for the writer: a peer that reads nothing for so long is not alive.
const CONTROL_QUEUE: (usize, usize) = (256, 256 << 10);

/// Longest wait for the other side's hello, or for our own to leave.
const HELLO_TIMEOUT: Duration = HANDSHAKE_IDLE;

/// A control stream, with its codec, before the link's tasks take it over.
pub(crate) struct ControlStream {
    send: SendStream,
    pub(crate) recv: RecvStream,
    pub(crate) codec: ControlCodec,
    introduced: Introduced,
}

/// What the other side was told of this node along with the hello, before there was a link.
#[derive(Debug, Default)]
pub(crate) struct Introduced {
    /// The protocols that the hello tells.
    pub(crate) protocols: Vec<Announced>,
    /// Of what all peers are told ([`SwitchRef::edition`](crate::switch::SwitchRef::edition)).
    pub(crate) edition: u64,
    /// What there was no room for.
    pub(crate) rest: Vec<Control>,
}

impl ControlStream {
    /// The dialling side opens it; it is the connection's first stream.
    pub(crate) async fn open(connection: &Connection) -> Result<Self, Gone> {
        let (send, recv) = time::timeout(HELLO_TIMEOUT, connection.open_bi()).await.map_err(|_| Gone::TimedOut)??;
        Ok(ControlStream { send, recv, codec: ControlCodec::new(), introduced: Introduced::default() })
    }

    pub(crate) async fn accept(connection: &Connection) -> Result<Self, Gone> {
        let (send, recv) = time::timeout(HELLO_TIMEOUT, connection.accept_bi()).await.map_err(|_| Gone::TimedOut)??;
        Ok(ControlStream { send, recv, codec: ControlCodec::new(), introduced: Introduced::default() })
    }

    /// Says our hello, and of this node what finds room in `room` bytes behind it; the rest is left for the link to say.
    pub(crate) async fn say(&mut self, hello: Hello, introduction: Introduced, room: usize) -> Result<(), Gone> {
        let frame = |message: &Control| message.to_frame().map_err(|error| Gone::Lost(error.to_string()));
        self.introduced =
            Introduced { protocols: hello.protocols.clone(), edition: introduction.edition, rest: Vec::new() };
        let mut frames = frame(&Control::Hello(hello))?;
        for message in introduction.rest {
            let next = frame(&message)?;
            if self.introduced.rest.is_empty() && frames.len() + next.len() <= room {
                frames.extend(next);
            } else {
                self.introduced.rest.push(message);
            }
        }
        let said = time::timeout(HELLO_TIMEOUT, self.send.write_all(&frames)).await;
        said.map_err(|_| Gone::TimedOut)?.map_err(|error| Gone::Lost(error.to_string()))
    }

    pub(crate) async fn hear(&mut self) -> Result<Hello, Gone> {
        match time::timeout(HELLO_TIMEOUT, next(&mut self.recv, &mut self.codec)).await {
            Ok(Ok(Control::Hello(hello))) => Ok(hello),
            Ok(Ok(_)) => Err(Gone::Misbehaved("the first control message is not a hello".into())),
            Ok(Err(gone)) => Err(gone),
            Err(_) => Err(Gone::TimedOut),
        }
    }
}

/// The next control message.
pub(crate) async fn next(recv: &mut RecvStream, codec: &mut ControlCodec) -> Result<Control, Gone> {
    loop {
        if let Some(message) = codec.next().map_err(|error| Gone::Misbehaved(error.to_string()))? {
            return Ok(message);
        }
        match recv.read_chunk(byway_proto::hello::MAX_CONTROL_FRAME, true).await {
            Ok(Some(chunk)) => codec.push(&chunk.bytes),
            Ok(None) => return Err(Gone::Misbehaved("the control stream was ended".into())),
            Err(quinn::ReadError::ConnectionLost(error)) => return Err(error.into()),
            Err(error) => return Err(Gone::Misbehaved(error.to_string())),
        }
    }
}

/// What both speak, or the refusal; a refused connection is closed with it.
pub(crate) fn agreed(connection: &Connection, ours: &Hello, theirs: &Hello) -> Result<Agreed, Gone> {
    agree(ours, theirs).map_err(|refusal| {
        let gone = Gone::Refused(refusal);
        gone.close(connection);
        gone
    })
}

/// The link, and what its control reader needs.
pub(crate) struct Established {
    pub(crate) link: Arc<Link>,
    pub(crate) recv: RecvStream,
    pub(crate) codec: ControlCodec,
    pub(crate) introduced: Introduced,
}

impl Established {
    /// A link over an agreed connection, with its writer still to be run.
    pub(crate) fn new(
        connection: Connection,
        track: Arc<Track>,
        control: ControlStream,
        hello: Hello,
        agreed: Agreed,
    ) -> Option<Self> {
        let peer = tls::peer_id(&connection)?;
        let dialled = track.lock().dialled;
        let outbox = Arc::new(Outbox::new());
        let share = Share { class: Class::Control, weight: 1 };
        let _ = control.send.set_priority(writer::priority(Class::Control)); // the stream is open
        let queue = FrameQueue::new(CONTROL_QUEUE.0, CONTROL_QUEUE.1).into();
        outbox.open(CONTROL, NewLane { share, rate: None, queue, outlet: Outlet::Open(control.send), tally: None });
        let link = Link {
            peer,
            dialled,
            connection,
            track,
            outbox,
            since: time::Instant::now(),
            hello: hello.into(),
            agreed: Watched::new(agreed),
            stripes: Waiting::default(),
            relays: None.into(),
            withdrawn: BTreeSet::new().into(),
            ended: None.into(),
            leaving: Mutex::default(),
            behind: AtomicUsize::new(0),
            receive: OnceLock::new(),
        };
        let ControlStream { recv, codec, introduced, .. } = control;
        Some(Established { link: Arc::new(link), recv, codec, introduced })
    }
}

/// The bytes that both sides of a connection, and nobody else, can derive the probe keys from.
pub(crate) fn export(connection: &Connection) -> Option<[u8; probe::EXPORT_LEN]> {
    let mut exported = [0; probe::EXPORT_LEN];
    connection.export_keying_material(&mut exported, probe::EXPORT_LABEL, b"").ok()?;
    Some(exported)
}

/// The peer's key, once TLS has proven it.
pub(crate) fn proven_peer(connection: &Connection) -> Result<PeerId, Gone> {
    tls::peer_id(connection).ok_or_else(|| Gone::Misbehaved("no key was proven".into()))
}
