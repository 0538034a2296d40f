//! What a node tells of itself while it runs.

use std::{
    array, fmt,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, OnceLock, Weak,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
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
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use byway::{Config, Event, Identity, Node};
///
/// # let on_loopback = || Config::new(Identity::generate()).listen(([127, 0, 0, 1], 0).into());
/// let (a, b) = (Node::bind(on_loopback()).await?, Node::bind(on_loopback()).await?);
/// let mut events = a.events();
/// a.dial(b.ticket()).await?;
/// while let Some(event) = events.recv().await {
///     match event {
///         Event::PeerUp { peer } if peer == b.id() => break,
///         Event::Missed(count) => println!("{count} events came faster than they were read"),
///         _ => {} // there will be more kinds
///     }
/// }
/// # Ok(())
/// # }
/// ```
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
    /// A protocol's task for a peer failed ([`Peers::run`](crate::Peers::run)), or its state of the peer panicked when it was made
    /// or dropped ([`Protocol::slot`](crate::Protocol::slot)), or this node's program took none of its messages though some of the
    /// peer waited ([`Protocol::stalled_after`](crate::Protocol::stalled_after)).
    ProtocolFailed {
        /// The peer.
        peer: PeerId,
        /// The protocol's name.
        protocol: String,
        /// The error, the panic's message, or which channel stood still and what to do.
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
    /// A message has left for a peer's queue, or has come from it; told only with
    /// [`Config::message_events`](crate::Config::message_events).
    Message {
        /// The peer.
        peer: PeerId,
        /// The protocol's name.
        protocol: String,
        /// The channel's number.
        channel: u32,
        /// The message's length in bytes.
        len: usize,
        /// Whether this node sends it or has received it.
        direction: Direction,
    },
    /// The listener was too slow, and this many events are lost to it.
    Missed(u64),
}

/// Which way a message goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Direction {
    /// From this node to the peer.
    Sent,
    /// From the peer to this node.
    Received,
}

/// The kinds of events, as the metrics name them, in the order of [`Event::kind`].
pub(crate) const KINDS: [&str; 14] = [
    "peer_up",
    "peer_down",
    "protocol_failed",
    "path_up",
    "path_down",
    "path_best",
    "stalled",
    "resumed",
    "relay_up",
    "relay_down",
    "nat_changed",
    "mapping_added",
    "mapping_lost",
    "message",
];

impl Event {
    /// Its place among the [`KINDS`]; none for what one listener alone is told.
    fn kind(&self) -> Option<usize> {
        Some(match self {
            Event::PeerUp { .. } => 0,
            Event::PeerDown { .. } => 1,
            Event::ProtocolFailed { .. } => 2,
            Event::PathUp { .. } => 3,
            Event::PathDown { .. } => 4,
            Event::PathBest { .. } => 5,
            Event::Stalled { .. } => 6,
            Event::Resumed { .. } => 7,
            Event::RelayUp { .. } => 8,
            Event::RelayDown { .. } => 9,
            Event::NatChanged(_) => 10,
            Event::MappingAdded { .. } => 11,
            Event::MappingLost { .. } => 12,
            Event::Message { .. } => 13,
            Event::Missed(_) => return None,
        })
    }
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

/// Sends events to every listener there is, and counts them. The queue takes 100 KiB, so it is made for the first listener.
#[derive(Debug, Clone, Default)]
pub(crate) struct Events(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    listeners: OnceLock<broadcast::Sender<Event>>,
    counts: [AtomicU64; KINDS.len()],
    missed: AtomicU64,
}

impl Events {
    pub(crate) fn send(&self, event: Event) {
        if let Some(kind) = event.kind() {
            self.0.counts[kind].fetch_add(1, Relaxed);
        }
        if let Some(listeners) = self.0.listeners.get() {
            let _ = listeners.send(event); // they may have gone
        }
    }

    pub(crate) fn subscribe(&self) -> EventStream {
        let events = self.0.listeners.get_or_init(|| broadcast::Sender::new(EVENT_QUEUE)).subscribe();
        EventStream { events, missed: 0, node: Arc::downgrade(&self.0) }
    }

    /// How often each kind of event has happened.
    pub(crate) fn counts(&self) -> [(&'static str, u64); KINDS.len()] {
        array::from_fn(|kind| (KINDS[kind], self.0.counts[kind].load(Relaxed)))
    }

    /// Events that listeners have missed, those of all listeners added up.
    pub(crate) fn missed(&self) -> u64 {
        self.0.missed.load(Relaxed)
    }
}

/// A node's events from the moment of subscription on.
#[derive(Debug)]
pub struct EventStream {
    events: broadcast::Receiver<Event>,
    missed: u64,
    node: Weak<Shared>,
}

impl EventStream {
    /// Waits for the next event; `None` once the node is gone. A listener that lags [`EVENT_QUEUE`] events behind is
    /// told how many it missed.
    pub async fn recv(&mut self) -> Option<Event> {
        match self.events.recv().await {
            Ok(event) => Some(event),
            Err(RecvError::Lagged(missed)) => {
                self.missed += missed;
                if let Some(node) = self.node.upgrade() {
                    node.missed.fetch_add(missed, Relaxed);
                }
                Some(Event::Missed(missed))
            }
            Err(RecvError::Closed) => None,
        }
    }

    /// How many events this listener has missed so far.
    pub fn missed(&self) -> u64 {
        self.missed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_slow_listener_is_told_how_many_events_it_has_missed_and_the_node_counts_them() {
        let events = Events::default();
        let peer = PeerId::ed25519([7; 32]);
        events.send(Event::PeerUp { peer }); // to nobody, but it happened
        let (mut slow, mut quick) = (events.subscribe(), events.subscribe());
        for _ in 0..EVENT_QUEUE + 10 {
            events.send(Event::PeerUp { peer });
            assert!(matches!(quick.recv().await, Some(Event::PeerUp { .. })));
        }
        assert!(matches!(slow.recv().await, Some(Event::Missed(10))));
        for _ in 0..EVENT_QUEUE {
            assert!(matches!(slow.recv().await, Some(Event::PeerUp { .. })));
        }
        assert_eq!((slow.missed(), quick.missed(), events.missed()), (10, 0, 10));
        assert_eq!(events.counts()[0], ("peer_up", EVENT_QUEUE as u64 + 11));
        drop(events);
        assert!(slow.recv().await.is_none());
    }
}
