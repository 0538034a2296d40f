//! Named services over byte streams: one side listens under a name, the other dials peer and name.
//!
//! Each session is one byte stream of the protocol [`PROTOCOL`]. It begins with a length-prefixed header (who wants what,
//! and with which ticket) and its answer; after that the bytes are the application's. A session lives as long as the
//! connection that carries it, and the connection outlives its paths. What becomes of a service when its process
//! restarts is for the caller to decide: a dead connection is [`TunnelError::Gone`], and a new dial may follow.

mod forward;
mod header;
mod listen;

use std::{fmt, io, sync::Arc, time::Duration};

use byway_proto::{PeerId, ticket::is_service_name};
use tokio::time;

pub use self::{
    forward::Forwarded,
    listen::{Access, Knock, ListenError, Listener, MAX_WAITING_KNOCKS, Session},
};
use self::{
    header::{Answer, Code, Open},
    listen::Services,
};
use crate::{
    net::TcpStream,
    node::Node,
    protocol::{OpenError, PeersHandle, Protocol, RegisterError},
    stream::Stream,
    tasks::Tasks,
};

/// The protocol's name in the hello.
pub const PROTOCOL: &str = "tunnel";

/// How long a dial waits for the other side's answer, which may have to open a connection of its own first.
pub const DIAL_TIMEOUT: Duration = Duration::from_secs(10);

/// The code of a reset that passes on a reset (TCP RST) of the connection behind a session.
pub const RESET_BEHIND: u32 = 2;

/// Offers and dials named services on one node.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let on_loopback = || Config::new(Identity::generate()).listen(([127, 0, 0, 1], 0).into());
/// use byway::{Config, Identity, Node, tunnel::{Access, Tunnel}};
/// use tokio::io::{AsyncReadExt, AsyncWriteExt};
///
/// let (a, b) = (Node::bind(on_loopback()).await?, Node::bind(on_loopback()).await?);
/// let (here, there) = (Tunnel::new(&a)?, Tunnel::new(&b)?);
/// let mut greeter = there.listen("greeter", Access::Anyone)?;
/// tokio::spawn(async move {
///     while let Some(mut session) = greeter.accept().await {
///         let _ = session.stream.write_all(b"hello").await; // an error says that the peer has gone
///         let _ = session.stream.shutdown().await;
///     }
/// });
/// let peer = a.dial(b.ticket()).await?;
/// let mut words = String::new();
/// here.dial(peer, "greeter", None).await?.read_to_string(&mut words).await?;
/// assert_eq!(words, "hello");
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Tunnel {
    peers: PeersHandle,
    services: Arc<Services>,
    /// Ends the task that takes sessions when the last tunnel and listener are gone.
    tasks: Arc<Tasks>,
}

/// Why a session could not be opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TunnelError {
    /// The name cannot be a service's.
    #[error("{0:?} cannot name a service; use 1 to 64 letters, digits and -_.:/")]
    Name(String),
    /// The peer is not connected, or offers no services at all.
    #[error("{0} is not connected or offers no services; dial it first")]
    Absent(PeerId),
    /// The peer does not offer this service.
    #[error("the peer has no service {0:?}; ask there for the name, or for a new ticket")]
    NoSuchService(String),
    /// The peer does not let this node use the service.
    #[error(
        "the peer does not grant {0:?}: the ticket was used by another machine or withdrawn; ask there for a new one"
    )]
    NotGranted(String),
    /// The peer has as many sessions as it takes.
    #[error("the peer has as many sessions of {0:?} as it takes; try again later")]
    Busy(String),
    /// The peer could not reach what the service leads to.
    #[error("the peer cannot reach what {service:?} leads to ({detail}); it has to be started there")]
    Unavailable {
        /// The service.
        service: String,
        /// What the peer says.
        detail: String,
    },
    /// The connection ended before the answer.
    #[error("the connection ended before the peer answered ({0}); dial again")]
    Gone(String),
    /// The peer did not answer within [`DIAL_TIMEOUT`].
    #[error("the peer did not answer within {DIAL_TIMEOUT:?}; try again")]
    Timeout,
    /// The peer's answer makes no sense.
    #[error("the peer's answer is not of this protocol ({0}); update the older side")]
    Malformed(String),
}

impl Tunnel {
    /// Makes the node take sessions; once for each node.
    pub fn new(node: &Node) -> Result<Self, RegisterError> {
        let mut protocol = Protocol::new(PROTOCOL, 1..=1);
        let streams = protocol.streams();
        let peers = node.register(protocol)?;
        let handle = peers.handle();
        let services = Arc::new(Services::default());
        let tasks = Tasks::new();
        tasks.spawn(listen::take_sessions(peers, streams, Arc::clone(&services)));
        Ok(Tunnel { peers: handle, services, tasks: Arc::new(tasks) })
    }

    /// Offers a service under `name` until the listener is dropped.
    pub fn listen(&self, name: &str, access: Access) -> Result<Listener, ListenError> {
        Services::listen(&self.services, Arc::clone(&self.tasks), name, access)
    }

    /// Opens a session with a service of a connected peer, with the secret of a ticket if there is one.
    pub async fn dial(&self, peer: PeerId, name: &str, secret: Option<[u8; 16]>) -> Result<Stream, TunnelError> {
        self.ask(peer, name, Open::new(name, secret, false)).await
    }

    /// Asks whether a service of a connected peer may be used, and redeems the ticket's secret, without a session.
    pub async fn knock(&self, peer: PeerId, name: &str, secret: Option<[u8; 16]>) -> Result<(), TunnelError> {
        self.ask(peer, name, Open::new(name, secret, true)).await.map(drop)
    }

    /// Copies both ways between a session and a TCP connection until both directions have ended, or one has broken.
    ///
    /// The end of one direction ends it on the other side and leaves the opposite one open. A reset, like the loss of the
    /// connection, resets the other side: an end of file always means that all bytes have arrived.
    pub async fn forward(&self, stream: Stream, tcp: Box<dyn TcpStream>) -> Forwarded {
        forward::forward(stream, tcp).await
    }

    async fn ask(&self, peer: PeerId, name: &str, open: Open) -> Result<Stream, TunnelError> {
        if !is_service_name(name) {
            return Err(TunnelError::Name(name.to_owned()));
        }
        let asked = async {
            let mut stream = self.peers.open(peer).await.map_err(|error| match error {
                OpenError::Absent(peer) => TunnelError::Absent(peer),
                OpenError::TooMany(_) => TunnelError::Busy(name.to_owned()),
                error => TunnelError::Gone(error.to_string()),
            })?;
            header::write(&mut stream, &open).await.map_err(|error| broken(&error, name))?;
            let answer: Answer = header::read(&mut stream).await.map_err(|error| broken(&error, name))?;
            judge(&answer, name).map(|()| stream)
        };
        time::timeout(DIAL_TIMEOUT, asked).await.unwrap_or(Err(TunnelError::Timeout))
    }
}

fn judge(answer: &Answer, name: &str) -> Result<(), TunnelError> {
    let service = name.to_owned();
    match answer.code() {
        Some(Code::Accepted) => Ok(()),
        Some(Code::NoSuchService) => Err(TunnelError::NoSuchService(service)),
        Some(Code::NotGranted) => Err(TunnelError::NotGranted(service)),
        Some(Code::Busy) => Err(TunnelError::Busy(service)),
        Some(Code::Unavailable) => Err(TunnelError::Unavailable { service, detail: answer.detail() }),
        None => Err(TunnelError::Malformed(format!("code {}: {}", answer.code, answer.detail()))),
    }
}

fn broken(error: &io::Error, name: &str) -> TunnelError {
    match error.kind() {
        io::ErrorKind::InvalidData => TunnelError::Malformed(error.to_string()),
        // A reset without an answer: the peer has no room even to say so.
        io::ErrorKind::ConnectionReset => TunnelError::Busy(name.to_owned()),
        _ => TunnelError::Gone(error.to_string()),
    }
}

impl fmt::Debug for Tunnel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tunnel").field("services", &self.services).finish_non_exhaustive()
    }
}
