//! Reach any machine by its public key: directly where the network allows it, through an end-to-end-blind relay where
//! it does not, over one QUIC connection that carries many isolated protocols.
//!
//! A [`Node`] is one identity on one port. Protocols are registered at it, each with channels for messages and, if it
//! wants them, byte streams; peers are dialled by [`Ticket`].
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use byway::{Channel, Config, Identity, Node, Protocol, To};
//!
//! # let other = Node::bind(Config::new(Identity::generate()).listen(([127, 0, 0, 1], 0).into())).await?;
//! # let mut chat = Protocol::new("chat", 1..=1);
//! # let (answer, mut questions) = chat.channel(Channel::new(1));
//! # let _peers = other.register(chat)?;
//! # let ticket = other.ticket();
//! # tokio::spawn(async move {
//! #     let (peer, _) = questions.recv().await.unwrap();
//! #     let _ = answer.send(&peer.into(), "hello yourself".into());
//! # });
//! let config = Config::new(Identity::generate());
//! # let config = config.listen(([127, 0, 0, 1], 0).into());
//! let node = Node::bind(config).await?;
//! let mut chat = Protocol::new("chat", 1..=2);
//! let (tx, mut rx) = chat.channel(Channel::new(1));
//! let mut peers = node.register(chat)?;
//! node.dial(ticket).await?; // which the other machine's `node.ticket()` gave
//! peers.next().await; // up
//! let _ = tx.send(&To::All, "hello".into()); // never waits
//! while let Some((peer, message)) = rx.recv().await {
//!     println!("{peer}: {message:?}");
//! #     break;
//! }
//! # Ok(())
//! # }
//! ```

mod accept;
mod agent;
mod config;
mod core;
mod dial;
mod event;
mod gone;
mod identity;
mod link;
mod metrics;
pub mod net;
mod node;
mod protocol;
mod quic;
mod relay;
mod status;
pub mod store;
mod stream;
mod stun;
mod switch;
mod tasks;
pub mod tunnel;
mod wait;
mod watched;

pub use byway_proto::{
    PeerAddr, PeerId, Ticket, UnixTime,
    addr::HostAddr,
    book,
    gate::GateConfig,
    hello::Refusal,
    nat,
    paths::PathsConfig,
    relay::{Access, RelayConfig, RelayConfigError, homes::MAX_RELAYS},
    schedule::{Class, Rate, RateError, Share},
    switch::{Imported, NotDialing, SwitchConfig, SwitchConfigError},
};

pub use self::{
    config::{
        Certificate, Config, ConfigError, DEFAULT_NETWORK, HttpProxy, LinkConfig, LinkConfigError, MAX_NETWORK,
        MAX_STUN, NoProxy, ParseNoProxyError, ParseProxyError, PemError, Roots, TlsConfig, WallClock,
    },
    dial::{DialError, MAX_DIAL_ADDRS, MAX_DIAL_RELAYS, Target},
    event::{Direction, EVENT_QUEUE, Event, EventStream, PathKind},
    gone::Gone,
    identity::{Identity, IdentityError},
    metrics::{Dropped, MAX_METRIC_PEERS, Metrics},
    node::{BindError, MAX_WHY, Node, Peer, PingError, Pong},
    protocol::{
        Channel, DEFAULT_WEIGHT, Delivery, LARGEST_DATAGRAM, MAX_ABOUT, MAX_CHANNELS, MAX_DATAGRAM, MAX_MESSAGE,
        Malformed, Message, OnFailure, OpenError, PeerEvent, Peers, PeersHandle, Protocol, Receiver, RegisterError,
        STREAM_BACKLOG, SendError, Sender, Sent, Slot, Streams, To, TypedReceiver, TypedSender,
    },
    quic::endpoint::EndpointError,
    status::{
        ChannelStatus, Flow, MappingStatus, MemoryStatus, NatStatus, NodeStatus, PeerStatus, ProtocolStatus,
        RelayServerStatus, RelayStatus, RouteReport,
    },
    stream::{ReadHalf, Stream, WriteHalf},
    switch::{AddPeerError, Candidate, Filter, Origin, SourceFilter},
};

/// The README's example, which is to compile.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct Readme;
