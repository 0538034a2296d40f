//! What a node can be told, with defaults that need no tuning.

use std::{
    fmt,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use byway_proto::{
    PeerAddr, UnixTime,
    addr::HostAddr,
    gate::GateConfig,
    nat::{AgentConfig, AgentConfigError},
    paths::PathsConfig,
    relay::{RelayConfig, RelayConfigError, homes::MAX_RELAYS},
    switch::{SwitchConfig, SwitchConfigError},
};

pub use self::{
    link::{LinkConfig, LinkConfigError},
    no_proxy::{NoProxy, ParseNoProxyError},
    tls::{Certificate, HttpProxy, ParseProxyError, PemError, Roots, TlsConfig},
};
use crate::{
    identity::Identity,
    switch::{Filter, SourceFilter},
};

mod link;
mod no_proxy;
mod tls;

/// Longest name of a network in bytes.
pub const MAX_NETWORK: usize = 64;

/// The network of nodes that name none.
pub const DEFAULT_NETWORK: &str = "byway";

/// Most STUN servers that a node is told: two would do, and some may be down.
pub const MAX_STUN: usize = 4;

/// Everything a node needs to start.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use byway::{Config, Filter, Identity};
///
/// # let path = std::env::temp_dir().join(format!("byway-doc-{}.key", std::process::id()));
/// # let relay = format!("{}@relay.example:4477", Identity::generate().id());
/// let mut config = Config::new(Identity::load_or_create(&path)?).relay_at(relay.parse()?);
/// config.network = "chess".into();
/// config.port = 4_433;
/// config.peers.max_peers = 100;
/// config.peers.reserved = 10;
/// config.filter = Some(Filter::one_per_ip());
/// # std::fs::remove_file(path)?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Config {
    /// The node's key.
    pub identity: Identity,
    /// Only peers of the same network talk to each other; at most [`MAX_NETWORK`] bytes.
    pub network: String,
    /// The IPv4 address to listen on, or `None` to neither bind, advertise nor answer IPv4.
    pub ipv4: Option<Ipv4Addr>,
    /// The IPv6 address to listen on, or `None` to neither bind, advertise nor answer IPv6.
    pub ipv6: Option<Ipv6Addr>,
    /// The UDP port, the same for both families; 0 lets the system choose.
    pub port: u16,
    /// Use another port when [`Config::port`] is taken: for a port that was merely remembered.
    pub any_port: bool,
    /// Relays to choose from, at most [`MAX_RELAYS`]: the node registers at the nearest two, so that peers can reach it
    /// behind a NAT.
    pub relays: Vec<PeerAddr>,
    /// Servers that tell the node how its NATs behave (STUN, RFC 8489), besides its relays; at most [`MAX_STUN`].
    pub stun: Vec<HostAddr>,
    /// How, and at what cost, direct paths are looked for.
    pub nat: AgentConfig,
    /// Relay for others.
    pub relay: Option<RelayConfig>,
    /// How relays are reached over TLS where UDP is blocked, and how this one is.
    pub tls: TlsConfig,
    /// Reach peers through relays only, never directly.
    pub relay_only: bool,
    /// Ask the gateways to forward the node's port (PCP, NAT-PMP, UPnP), and to stop when it closes. A node that listens on
    /// loopback alone asks nobody.
    pub port_mapping: bool,
    /// Look for peers on the local network by multicast DNS, and answer there to peers that know this node's id;
    /// [`Config::relay_only`] switches it off.
    pub lan: bool,
    /// Answer strangers' handshakes; a node that only dials stays silent.
    pub accept: bool,
    /// How long a connection outlives the silence of all its routes; 10 s to 1 h.
    pub idle_timeout: Duration,
    /// How many peers there may be, whom to dial without being asked, and whom the limits do not concern.
    pub peers: SwitchConfig,
    /// Asked where each stranger comes from, before its handshake begins.
    pub source_filter: Option<SourceFilter>,
    /// What each peer may send and be sent.
    pub link: LinkConfig,
    /// Asked about each stranger before it is let in.
    pub filter: Option<Filter>,
    /// Tell peers of each other, and dial out of the book ([`SwitchConfig::discover`]). Off, for a node that joins its
    /// owner's machines has nobody to gossip with; it needs a [`Config::network`] of your own, because everybody's private
    /// nodes share the default one.
    pub peer_exchange: bool,
    /// The file that keeps the address book and the bans over restarts; without one they end with the node.
    pub store: Option<PathBuf>,
    /// Limits on strangers.
    pub gate: GateConfig,
    /// The route machine's settings.
    pub paths: PathsConfig,
    /// The source of all randomness but TLS's; `None` asks the operating system.
    pub seed: Option<[u8; 32]>,
    /// The wall clock.
    pub clock: WallClock,
    /// Tell of each message that is sent or received ([`Event::Message`](crate::Event::Message)): to look for mistakes, for it costs
    /// as much as a small message does, and listeners that do not keep up miss other events, too.
    pub message_events: bool,
    /// What this program is, as told to peers and shown by their `status`.
    pub agent: String,
}

impl Config {
    /// The defaults for `identity`.
    pub fn new(identity: Identity) -> Self {
        Config {
            identity,
            network: DEFAULT_NETWORK.into(),
            ipv4: Some(Ipv4Addr::UNSPECIFIED),
            ipv6: Some(Ipv6Addr::UNSPECIFIED),
            port: 0,
            any_port: false,
            relays: Vec::new(),
            stun: Vec::new(),
            nat: AgentConfig::default(),
            relay: None,
            tls: TlsConfig::default(),
            relay_only: false,
            port_mapping: true,
            lan: true,
            accept: true,
            idle_timeout: Duration::from_secs(300),
            peers: SwitchConfig::default(),
            source_filter: None,
            link: LinkConfig::default(),
            filter: None,
            peer_exchange: false,
            store: None,
            gate: GateConfig::default(),
            paths: PathsConfig::default(),
            seed: None,
            clock: WallClock::default(),
            message_events: false,
            agent: concat!("byway/", env!("CARGO_PKG_VERSION")).into(),
        }
    }

    /// Makes the node listen on one address and use its family alone.
    pub fn listen(mut self, addr: SocketAddr) -> Self {
        (self.ipv4, self.ipv6) = match addr {
            SocketAddr::V4(addr) => (Some(*addr.ip()), None),
            SocketAddr::V6(addr) => (None, Some(*addr.ip())),
        };
        self.port = addr.port();
        self
    }

    /// Adds a relay to register at.
    pub fn relay_at(mut self, relay: PeerAddr) -> Self {
        self.relays.push(relay);
        self
    }

    /// Checks what no type can: a bad value is an error here, never silently replaced.
    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        if self.network.is_empty() || self.network.len() > MAX_NETWORK {
            return Err(ConfigError::Network(self.network.len()));
        }
        if self.ipv4.is_none() && self.ipv6.is_none() {
            return Err(ConfigError::NoFamily);
        }
        if self.relays.len() > MAX_RELAYS {
            return Err(ConfigError::TooManyRelays(self.relays.len()));
        }
        if self.stun.len() > MAX_STUN {
            return Err(ConfigError::TooManyStun(self.stun.len()));
        }
        self.nat.check()?;
        self.peers.check()?;
        self.link.check()?;
        if self.peer_exchange && self.network == DEFAULT_NETWORK {
            return Err(ConfigError::PublicExchange);
        }
        self.relay.as_ref().map_or(Ok(()), RelayConfig::check)?;
        if self.relay_only && self.relays.is_empty() && self.relay.is_some() {
            return Err(ConfigError::RelayOnlyRelay);
        }
        if !(Duration::from_secs(10)..=Duration::from_secs(3600)).contains(&self.idle_timeout) {
            return Err(ConfigError::IdleTimeout(self.idle_timeout));
        }
        if self.relays.iter().any(|relay| relay.id == self.identity.id()) {
            return Err(ConfigError::OwnRelay);
        }
        Ok(())
    }
}

/// A setting that cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The network's name is empty or too long.
    #[error("`network` has {0} bytes; give it a name of 1 to {MAX_NETWORK} bytes")]
    Network(usize),
    /// Both address families are off.
    #[error("both `ipv4` and `ipv6` are off; leave at least one on")]
    NoFamily,
    /// More relays than a node chooses from.
    #[error("`relays` names {0} relays; keep at most {MAX_RELAYS}")]
    TooManyRelays(usize),
    /// More STUN servers than a node asks.
    #[error("`stun` names {0} servers; keep at most {MAX_STUN}")]
    TooManyStun(usize),
    /// A setting of the looking for direct paths is out of its range.
    #[error(transparent)]
    Nat(#[from] AgentConfigError),
    /// A setting of the relay is out of its range.
    #[error(transparent)]
    Relay(#[from] RelayConfigError),
    /// The limits on peers contradict each other.
    #[error(transparent)]
    Peers(#[from] SwitchConfigError),
    /// A limit on each peer's connection is of no use.
    #[error(transparent)]
    Link(#[from] LinkConfigError),
    /// Peer exchange in the network that everybody's private nodes share.
    #[error(
        "`peer_exchange` needs a `network` of your own, for everybody's nodes share \"{DEFAULT_NETWORK}\"; name one"
    )]
    PublicExchange,
    /// A relay that may not be reached directly.
    #[error("a relay cannot be `relay_only` itself; switch one of the two off")]
    RelayOnlyRelay,
    /// An idle timeout outside its range.
    #[error("`idle_timeout` is {0:?}; choose between 10 s and 1 h")]
    IdleTimeout(Duration),
    /// The node's own key among its relays.
    #[error("`relays` names this node itself; take its entry out")]
    OwnRelay,
}

/// Where a node reads the calendar time: for the age of tickets, never for protocol timers.
#[derive(Clone)]
pub struct WallClock(Arc<dyn Fn() -> SystemTime + Send + Sync>);

impl WallClock {
    /// A clock of one's own, as a simulation needs it.
    pub fn new(now: impl Fn() -> SystemTime + Send + Sync + 'static) -> Self {
        WallClock(Arc::new(now))
    }

    /// The time now.
    pub fn now(&self) -> SystemTime {
        (self.0)()
    }

    /// The time now, in seconds since 1970.
    pub fn unix(&self) -> UnixTime {
        let since = self.now().duration_since(SystemTime::UNIX_EPOCH);
        UnixTime(since.map_or(0, |since| since.as_secs()))
    }
}

impl Default for WallClock {
    /// The system's clock.
    fn default() -> Self {
        WallClock::new(SystemTime::now)
    }
}

impl fmt::Debug for WallClock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WallClock")
    }
}
