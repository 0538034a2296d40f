//! What a node tells of itself while it runs.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    sync::{Arc, OnceLock},
    time::{Duration, SystemTime},
};

use byway_proto::{
    PeerId,
    nat::{
        NatReport,
        portmap::{Dialect, Transport},
    },
    paths::RouteKind,
};
use tokio::sync::broadcast::{self, error::RecvError};

use crate::gone::Gone;

/// Events that a slow listener may lag behind before it misses some.
pub const EVENT_QUEUE: usize = 1_024;

/// Something that happened to a node.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Event {
    /// A peer is connected.
    PeerUp {
        /// The peer.
        peer: PeerId,
    },
    /// A peer is no longer connected.
    PeerDown {
        /// The peer.
        peer: PeerId,
        /// The reason.
        reason: Gone,
    },
    /// A protocol's task for a peer failed ([`Peers::run`](crate::Peers::run)).
    ProtocolFailed {
        /// The peer.
        peer: PeerId,
        /// The protocol's name.
        protocol: String,
        /// The error, or the panic's message.
        why: String,
    },
    /// A way to a peer has answered, for the first time or again.
    PathUp {
        /// The peer.
        peer: PeerId,
        /// What it goes through.
        path: PathKind,
        /// The address that packets are sent to: the peer's or the relay's.
        remote: SocketAddr,
    },
    /// A way to a peer answers no longer.
    PathDown {
        /// The peer.
        peer: PeerId,
        /// What it goes through.
        path: PathKind,
        /// The address that packets were sent to: the peer's or the relay's.
        remote: SocketAddr,
    },
    /// Another way carries a peer's connection from now on.
    PathBest {
        /// The peer.
        peer: PeerId,
        /// What it goes through.
        path: PathKind,
        /// The address that packets are sent to: the peer's or the relay's.
        remote: SocketAddr,
        /// The reason.
        why: String,
    },
    /// No way to a peer has answered for three seconds. The connection waits for one that does, for as long as
    /// [`Config::idle_timeout`](crate::Config::idle_timeout) says; nothing that was sent is lost by then.
    Stalled {
        /// The peer.
        peer: PeerId,
        /// When the first of what is unanswered was sent, give or take a round trip.
        since: SystemTime,
    },
    /// A way to a peer answers again after [`Event::Stalled`].
    Resumed {
        /// The peer.
        peer: PeerId,
        /// How long none did.
        after: Duration,
    },
    /// The node is registered at a relay.
    RelayUp {
        /// The relay.
        relay: PeerId,
    },
    /// The node is no longer registered at a relay, or could not register; it keeps trying.
    RelayDown {
        /// The relay.
        relay: PeerId,
        /// The reason.
        why: String,
    },
    /// The survey has learned something new about what stands between the node and the core.
    NatChanged(NatReport),
    /// A gateway forwards the node's port, or does so otherwise than before.
    MappingAdded {
        /// The gateway.
        gateway: IpAddr,
        /// Whose port it is.
        transport: Transport,
        /// The node's port.
        port: u16,
        /// The external address and port, as the gateway tells them.
        external: SocketAddr,
        /// The protocol that the gateway was asked in.
        by: Dialect,
        /// The gateway itself stands behind another NAT, so that the external address is not a public one.
        carrier: bool,
    },
    /// A gateway no longer forwards the node's port; the node asks again by itself.
    MappingLost {
        /// The gateway.
        gateway: IpAddr,
        /// Whose port it is.
        transport: Transport,
        /// The node's port.
        port: u16,
        /// The reason, and what may be done.
        why: String,
    },
    /// The listener was too slow, and this many events are lost to it.
    Missed(u64),
}

/// What a connection's packets go through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum PathKind {
    /// Straight from machine to machine.
    Direct,
    /// Through a relay, which sees sealed packets only.
    Relay,
}

impl From<RouteKind> for PathKind {
    fn from(kind: RouteKind) -> Self {
        match kind {
            RouteKind::Direct => PathKind::Direct,
            RouteKind::Relay => PathKind::Relay,
        }
    }
}

impl fmt::Display for PathKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            PathKind::Direct => "direct",
            PathKind::Relay => "relay",
        })
    }
}

/// Sends events to every listener there is. The queue takes 100 KiB, so it is made for the first listener.
#[derive(Debug, Clone, Default)]
pub(crate) struct Events(Arc<OnceLock<broadcast::Sender<Event>>>);

impl Events {
    pub(crate) fn send(&self, event: Event) {
        if let Some(listeners) = self.0.get() {
            let _ = listeners.send(event); // they may have gone
        }
    }

    pub(crate) fn subscribe(&self) -> EventStream {
        EventStream(self.0.get_or_init(|| broadcast::Sender::new(EVENT_QUEUE)).subscribe())
    }
}

/// A node's events from the moment of subscription on.
#[derive(Debug)]
pub struct EventStream(broadcast::Receiver<Event>);

impl EventStream {
    /// Waits for the next event; `None` once the node is gone. A listener that lags [`EVENT_QUEUE`] events behind is
    /// told how many it missed.
    pub async fn recv(&mut self) -> Option<Event> {
        match self.0.recv().await {
            Ok(event) => Some(event),
            Err(RecvError::Lagged(missed)) => Some(Event::Missed(missed)),
            Err(RecvError::Closed) => None,
        }
    }
}
