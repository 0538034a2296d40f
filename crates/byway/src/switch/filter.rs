//! The program's own say in who is let in: by where it comes from, before it has proven anything, and by who it is, after.

use std::{fmt, future::Future, net::SocketAddr, pin::Pin, sync::Arc};

use byway_proto::PeerId;

type Verdict = Pin<Box<dyn Future<Output = Result<(), String>> + Send>>;

/// Asked about each stranger that has proven its key, before anything is told to it; peers that the owner named are not
/// asked about. It has three seconds ([`FILTER_DEADLINE`](byway_proto::switch::FILTER_DEADLINE)); a filter that is
/// silent refuses. While it thinks nobody else waits.
///
/// ```
/// use byway::{Config, Filter, Identity};
///
/// let mut config = Config::new(Identity::generate());
/// config.filter = Some(Filter::new(|candidate| async move {
///     match candidate.connected.len() {
///         0..100 => Ok(()),
///         _ => Err(format!("a hundred are here already; come back later, {}", candidate.peer.short())),
///     }
/// }));
/// ```
#[derive(Clone)]
pub struct Filter(Arc<dyn Fn(Candidate) -> Verdict + Send + Sync>);

/// A stranger that wants to come in.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Candidate {
    /// Its key.
    pub peer: PeerId,
    /// Where it comes from; its relay, if it is relayed.
    pub remote: Option<SocketAddr>,
    /// It comes by a relay.
    pub relayed: bool,
    /// The addresses at which the connected peers are now, and those strangers that came before it and are not refused yet;
    /// relayed ones are left out.
    pub connected: Vec<SocketAddr>,
}

impl Filter {
    /// A filter of one's own; the text of a refusal is told to the peer.
    pub fn new<F>(judge: impl Fn(Candidate) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<(), String>> + Send + 'static,
    {
        Filter(Arc::new(move |candidate| Box::pin(judge(candidate))))
    }

    /// Lets one peer in from each IP address. Relayed peers are not counted, for their addresses are not known; peers
    /// behind one NAT or carrier shut each other out.
    pub fn one_per_ip() -> Self {
        Filter::new(|candidate| async move {
            let Some(remote) = candidate.remote.filter(|_| !candidate.relayed) else { return Ok(()) };
            match candidate.connected.iter().any(|other| other.ip() == remote.ip()) {
                true => Err("another peer is connected from the same address".into()),
                false => Ok(()),
            }
        })
    }

    pub(super) async fn judge(&self, candidate: Candidate) -> Result<(), String> {
        (self.0)(candidate).await
    }
}

type Welcome = Pin<Box<dyn Future<Output = bool> + Send>>;

/// Asked where each stranger comes from, before its handshake begins: peers and, at a relay, its clients. It has three seconds
/// ([`FILTER_DEADLINE`](byway_proto::switch::FILTER_DEADLINE)), a filter that is silent or panics refuses, and whoever is refused hears
/// nothing. While it thinks, the stranger counts as a handshake under way, of which there are
/// [`HALF_OPEN`](byway_proto::gate::HALF_OPEN) at most, and nobody else waits.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let on_loopback = || Config::new(Identity::generate()).listen(([127, 0, 0, 1], 0).into());
/// use byway::{Config, Identity, Node, SourceFilter};
///
/// let mut config = on_loopback();
/// config.source_filter = Some(SourceFilter::new(|origin| async move {
///     origin.relayed || origin.remote.is_ipv4() // a question to somebody else may take its time here
/// }));
/// let node = Node::bind(config).await?;
/// Node::bind(on_loopback()).await?.dial(node.ticket()).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct SourceFilter(Arc<dyn Fn(Origin) -> Welcome + Send + Sync>);

/// Where a stranger comes from. Its address has not been proven, unless many handshakes were under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Origin {
    /// Its address; its relay's, if it is relayed.
    pub remote: SocketAddr,
    /// It comes by a relay.
    pub relayed: bool,
}

impl SourceFilter {
    /// A filter of one's own; `false` refuses.
    pub fn new<F>(judge: impl Fn(Origin) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = bool> + Send + 'static,
    {
        SourceFilter(Arc::new(move |origin| Box::pin(judge(origin))))
    }

    pub(crate) async fn judge(&self, origin: Origin) -> bool {
        (self.0)(origin).await
    }
}

impl fmt::Debug for SourceFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SourceFilter")
    }
}

impl fmt::Debug for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Filter")
    }
}
