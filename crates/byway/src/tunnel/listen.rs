//! The services that a node offers, and the task that takes sessions for them.

use std::{
    collections::BTreeMap,
    fmt, io,
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use byway_proto::{PeerId, ticket::is_service_name};
use futures_util::FutureExt;
use tokio::{
    sync::mpsc::{self, error::TrySendError},
    task::JoinSet,
    time,
};

use super::header::{self, Answer, Code, Open};
use crate::{
    protocol::{Peers, Streams},
    stream::Stream,
    tasks::Tasks,
};

/// How long a peer may take to say what it wants after opening a stream: one round trip of the worst path, and reserve.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);

/// Sessions whose header is awaited, of one peer and of all: a silent peer must not take the places of the others. QUIC lets a
/// peer open 100 at first.
const MAX_HEADERS_PER_PEER: usize = 128;
const MAX_HEADERS: usize = 1_024;

/// Services of one node: more than anybody offers by hand, and a bound for a program gone wild.
const MAX_SERVICES: usize = 1_024;

/// Sessions that a listener has not taken yet; the peer of the next one is told that it is busy.
pub const MAX_WAITING_KNOCKS: usize = 64;

/// Who may use a service.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let on_loopback = || Config::new(Identity::generate()).listen(([127, 0, 0, 1], 0).into());
/// # use byway::{Config, Identity, Node, tunnel::Tunnel};
/// # let (a, b) = (Node::bind(on_loopback()).await?, Node::bind(on_loopback()).await?);
/// # let (here, there) = (Tunnel::new(&a)?, Tunnel::new(&b)?);
/// # let friend = Identity::generate().id();
/// use std::sync::Arc;
/// use byway::tunnel::{Access, TunnelError};
///
/// let secret = [7; 16]; // out of a ticket
/// let access = Access::Granted(Arc::new(move |peer, brought| peer == friend || brought == Some(secret)));
/// let _listener = there.listen("files", access)?;
/// let peer = a.dial(b.ticket()).await?;
/// let refused = here.knock(peer, "files", None).await;
/// assert_eq!(refused, Err(TunnelError::NotGranted("files".into())));
/// here.knock(peer, "files", Some(secret)).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
#[non_exhaustive]
pub enum Access {
    /// Every peer.
    Anyone,
    /// The peers for which this says so, told the peer and the secret of the ticket that it brings. It may block shortly. If it
    /// panics, that session is dropped.
    Granted(Arc<dyn Fn(PeerId, Option<[u8; 16]>) -> bool + Send + Sync>),
}

/// Why a service cannot be offered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ListenError {
    /// The name cannot be a service's.
    #[error("{0:?} cannot name a service; use 1 to 64 letters, digits and -_.:/")]
    Name(String),
    /// The node offers a service of this name already.
    #[error("this node offers {0:?} already; choose another name")]
    Taken(String),
    /// The node offers as many services as it can.
    #[error("a node offers at most {MAX_SERVICES} services; stop one")]
    TooMany,
}

/// A service while it is offered.
#[derive(Debug)]
pub struct Listener {
    name: String,
    knocks: mpsc::Receiver<Knock>,
    services: Arc<Services>,
    _tasks: Arc<Tasks>,
}

/// A peer that may use the service and waits for the answer.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let on_loopback = || Config::new(Identity::generate()).listen(([127, 0, 0, 1], 0).into());
/// # use byway::{Config, Identity, Node, tunnel::{Access, Tunnel, TunnelError}};
/// # let (a, b) = (Node::bind(on_loopback()).await?, Node::bind(on_loopback()).await?);
/// # let (here, there) = (Tunnel::new(&a)?, Tunnel::new(&b)?);
/// # let web = "127.0.0.1:1"; // where nothing runs
/// let mut listener = there.listen("web", Access::Anyone)?;
/// tokio::spawn(async move {
///     while let Some(knock) = listener.knocked().await {
///         match tokio::net::TcpStream::connect(web).await {
///             Ok(_web) => drop(knock.accept().await), // a session, to copy both ways
///             Err(error) => knock.turn_away(&error.to_string()).await,
///         }
///     }
/// });
/// # let peer = a.dial(b.ticket()).await?;
/// # let turned_away = here.dial(peer, "web", None).await;
/// # assert!(matches!(turned_away, Err(TunnelError::Unavailable { .. })));
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Knock {
    peer: PeerId,
    stream: Stream,
}

/// One byte stream between a peer and a service.
#[derive(Debug)]
#[non_exhaustive]
pub struct Session {
    /// The peer.
    pub peer: PeerId,
    /// The bytes.
    pub stream: Stream,
}

impl Listener {
    /// The service's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Waits for the next session; `None` once the node is closed.
    pub async fn accept(&mut self) -> Option<Session> {
        loop {
            // A peer that went away before its answer was no session.
            if let Ok(session) = self.knocked().await?.accept().await {
                return Some(session);
            }
        }
    }

    /// Waits for the next peer that may use the service, before it is told so; `None` once the node is closed.
    pub async fn knocked(&mut self) -> Option<Knock> {
        self.knocks.recv().await
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.services.lock().remove(&self.name);
    }
}

impl Knock {
    /// The peer.
    pub fn peer(&self) -> PeerId {
        self.peer
    }

    /// Lets the peer in.
    pub async fn accept(mut self) -> io::Result<Session> {
        header::write(&mut self.stream, &Answer::new(Code::Accepted, "")).await?;
        Ok(Session { peer: self.peer, stream: self.stream })
    }

    /// Tells the peer that what the service leads to cannot be reached; at most 200 characters of `why` are sent.
    pub async fn turn_away(self, why: &str) {
        answer(self.stream, Code::Unavailable, why).await;
    }

    /// Tells the peer that the service has no room for it now.
    pub async fn turn_away_busy(self) {
        answer(self.stream, Code::Busy, "").await;
    }
}

/// The services of one node, by name.
#[derive(Debug, Default)]
pub(super) struct Services(Mutex<BTreeMap<String, Offered>>);

#[derive(Debug, Clone)]
struct Offered {
    access: Access,
    knocks: mpsc::Sender<Knock>,
}

impl Services {
    pub(super) fn listen(
        services: &Arc<Self>,
        tasks: Arc<Tasks>,
        name: &str,
        access: Access,
    ) -> Result<Listener, ListenError> {
        if !is_service_name(name) {
            return Err(ListenError::Name(name.to_owned()));
        }
        let mut offered = services.lock();
        if offered.contains_key(name) {
            return Err(ListenError::Taken(name.to_owned()));
        }
        if offered.len() >= MAX_SERVICES {
            return Err(ListenError::TooMany);
        }
        let (sender, knocks) = mpsc::channel(MAX_WAITING_KNOCKS);
        offered.insert(name.to_owned(), Offered { access, knocks: sender });
        Ok(Listener { name: name.to_owned(), knocks, services: Arc::clone(services), _tasks: tasks })
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Offered>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends all listeners.
    fn close(&self) {
        self.lock().clear();
    }
}

/// Takes sessions until the node is closed.
pub(super) async fn take_sessions(mut peers: Peers, mut streams: Streams, services: Arc<Services>) {
    // Structured: they end with this task at the latest.
    let mut headers: JoinSet<PeerId> = JoinSet::new();
    let mut waiting: BTreeMap<PeerId, usize> = BTreeMap::new();
    loop {
        tokio::select! {
            biased;
            Some(peer) = headers.join_next() => {
                let Ok(peer) = peer else { continue }; // aborted with this task alone
                if let Some(count) = waiting.get_mut(&peer) {
                    *count -= 1;
                    if *count == 0 {
                        waiting.remove(&peer);
                    }
                }
            }
            event = peers.next() => if event.is_none() { break }, // who comes and goes shows at the streams
            opened = streams.accept() => {
                let Some((peer, stream)) = opened else { break };
                let count = waiting.entry(peer).or_default();
                if *count >= MAX_HEADERS_PER_PEER || headers.len() >= MAX_HEADERS {
                    tracing::debug!(?peer, "session dropped: too many wait for their header");
                    continue;
                }
                *count += 1;
                let services = Arc::clone(&services);
                headers.spawn(async move {
                    // Whoever may use a service is the program's to say: if that panics, this session is lost, and nothing of it
                    // is seen again.
                    if AssertUnwindSafe(take_session(peer, stream, &services)).catch_unwind().await.is_err() {
                        tracing::warn!(?peer, "session dropped: the program panicked when it was asked about it");
                    }
                    peer
                });
            }
        }
    }
    services.close();
}

/// Reads what the peer wants and passes the session on, or says why not.
async fn take_session(peer: PeerId, mut stream: Stream, services: &Services) {
    let open = match time::timeout(HEADER_TIMEOUT, header::read::<Open>(&mut stream)).await {
        Ok(Ok(open)) => open,
        Ok(Err(error)) => return tracing::debug!(?peer, %error, "session without a header"),
        Err(_) => return tracing::debug!(?peer, "session without a header in time"),
    };
    let offered = services.lock().get(&open.service).cloned();
    let Some(offered) = offered else { return answer(stream, Code::NoSuchService, "").await };
    let granted = match &offered.access {
        Access::Anyone => true,
        Access::Granted(granted) => granted(peer, open.brought()),
    };
    if !granted {
        return answer(stream, Code::NotGranted, "").await;
    }
    if open.only_ask {
        return answer(stream, Code::Accepted, "").await;
    }
    match offered.knocks.try_send(Knock { peer, stream }) {
        Ok(()) => {}
        Err(TrySendError::Full(knock)) => knock.turn_away_busy().await,
        Err(TrySendError::Closed(knock)) => answer(knock.stream, Code::NoSuchService, "").await,
    }
}

/// Says no more than this, and ends the session.
async fn answer(mut stream: Stream, code: Code, detail: &str) {
    use tokio::io::AsyncWriteExt;
    let said = async {
        header::write(&mut stream, &Answer::new(code, detail)).await?;
        stream.shutdown().await
    };
    // A peer that does not read its answer does not get it.
    let _ = time::timeout(HEADER_TIMEOUT, said).await;
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Access::Anyone => "Anyone",
            Access::Granted(_) => "Granted",
        })
    }
}
