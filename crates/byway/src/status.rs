//! What a node says of itself when asked.

use std::{
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
    time::Duration,
};

use byway_proto::{
    PeerId,
    nat::{
        Counters, NatReport,
        portmap::{Dialect, Transport},
    },
    schedule::Share,
};

use crate::{event::PathKind, protocol::Delivery};

/// A node's state at one moment.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let on_loopback = || Config::new(Identity::generate()).listen(([127, 0, 0, 1], 0).into());
/// use byway::{Config, Identity, Node};
///
/// let (a, b) = (Node::bind(on_loopback()).await?, Node::bind(on_loopback()).await?);
/// a.dial(b.ticket()).await?;
/// let status = a.status().await;
/// println!("{} at {:?}, for {:?}", status.id, status.addrs, status.uptime);
/// for peer in &status.peers {
///     println!("{}: {:?}, round trip {:?}", peer.id, peer.path, peer.rtt);
/// }
/// for (why, count) in &status.dropped {
///     println!("{count} datagrams were dropped: {why}");
/// }
/// assert_eq!(status.peers.len(), 1);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct NodeStatus {
    /// The node.
    pub id: PeerId,
    /// What it tells peers that it is.
    pub agent: String,
    /// The network it belongs to.
    pub network: String,
    /// Where peers may reach it.
    pub addrs: Vec<SocketAddr>,
    /// How long it has been running.
    pub uptime: Duration,
    /// The relays it uses, in the order of their ids.
    pub relays: Vec<RelayStatus>,
    /// The node's port at each gateway that was asked for it.
    pub mappings: Vec<MappingStatus>,
    /// The protocols it speaks, in the order of their registration.
    pub protocols: Vec<ProtocolStatus>,
    /// The peers it is connected to, in the order of their ids.
    pub peers: Vec<PeerStatus>,
    /// What stands between it and the core, and what the looking for direct paths has cost.
    pub nat: NatStatus,
    /// What it relays for others, if it does.
    pub serving: Option<RelayServerStatus>,
    /// Datagrams dropped and handshakes turned away since the start, by reason; reasons that never occurred are left out.
    pub dropped: Vec<(&'static str, u64)>,
    /// What comes in as messages and takes memory.
    pub memory: MemoryStatus,
    /// Connections that the packet path knows: those of peers and relays, those being made, and those that ended just now.
    pub aliases: usize,
}

/// The memory of messages in the making and of those that wait for the program ([`LinkConfig::memory`](crate::LinkConfig)), and of
/// what waits to be sent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct MemoryStatus {
    /// Bytes in use.
    pub used: usize,
    /// The most bytes that were in use at once since the start.
    pub peak: usize,
    /// Bytes that may be in use, beside a little that each peer has in any case.
    pub limit: usize,
    /// How often messages of a peer had to wait for memory since the start.
    pub waits: u64,
    /// Bytes that wait to be sent to all peers, to 16 KiB a channel.
    pub sending: usize,
    /// Bytes that may ([`LinkConfig::send_memory`](crate::LinkConfig)).
    pub sending_limit: usize,
}

/// What a node knows of its NATs.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct NatStatus {
    /// What its survey has found.
    pub report: NatReport,
    /// What the looking for direct paths has cost so far.
    pub spent: Counters,
    /// What the report still lacks and may get within seconds, if anything.
    pub awaited: Option<&'static str>,
}

/// A relay as this node uses it.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct RelayStatus {
    /// The relay.
    pub id: PeerId,
    /// Its address in use, once known.
    pub addr: Option<SocketAddr>,
    /// Whether it is one of those that this node wants to be registered at; others are there for a peer's sake.
    pub home: bool,
    /// Whether it is reached over TLS on TCP, for UDP does not get there.
    pub over_tls: bool,
    /// Whether this node is registered there.
    pub registered: bool,
    /// Where this node's datagrams come from, as the relay sees it; `None` over TLS.
    pub observed: Option<SocketAddr>,
    /// Its state in words.
    pub state: String,
    /// The round-trip time of probes to it.
    pub rtt: Option<Duration>,
}

/// The node's port at one gateway.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct MappingStatus {
    /// The gateway.
    pub gateway: IpAddr,
    /// Whose port it is.
    pub transport: Transport,
    /// The node's port.
    pub port: u16,
    /// The external address and port while it is mapped, as the gateway tells them.
    pub external: Option<SocketAddr>,
    /// The protocol that the gateway was asked in.
    pub by: Option<Dialect>,
    /// The gateway itself stands behind another NAT: the mapping leads no further than that.
    pub carrier: bool,
    /// How long the mapping lives unless it is renewed; `None` also for one without an end.
    pub expires: Option<Duration>,
    /// The state in words; while it is not mapped why, and what may be done.
    pub state: String,
}

/// A connected peer.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct PeerStatus {
    /// The peer.
    pub id: PeerId,
    /// What it says it is.
    pub agent: String,
    /// What its connection goes through now.
    pub path: Option<PathKind>,
    /// The round-trip time of the selected route.
    pub rtt: Option<Duration>,
    /// How long it has been connected.
    pub connected: Duration,
    /// Whether this node dialled.
    pub dialled: bool,
    /// The protocols that both speak.
    pub protocols: Vec<ProtocolStatus>,
    /// The channels of these protocols, and after each protocol's its byte streams together.
    pub channels: Vec<ChannelStatus>,
    /// Every route to it.
    pub routes: Vec<RouteReport>,
}

/// What a channel has carried since the peer speaks its protocol.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct ChannelStatus {
    /// The protocol's name.
    pub protocol: String,
    /// The channel's number; `None` stands for all byte streams of the protocol.
    pub channel: Option<u32>,
    /// How its messages are delivered.
    pub delivery: Delivery,
    /// Its class, and its weight within the class.
    pub share: Share,
    /// What has left the queue, and what waits in it.
    pub sent: Flow,
    /// What has come in, and what waits for the receiver.
    pub received: Flow,
    /// Messages that were not carried, by reason; reasons that never occurred are left out. A message that was sent without
    /// waiting while the queue was full is one; a sender that waits loses none.
    pub dropped: Vec<(&'static str, u64)>,
}

/// One direction of a channel. Of byte streams, `messages` counts those that this side (sent) or the peer (received) opened.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
#[non_exhaustive]
pub struct Flow {
    /// Messages in all.
    pub messages: u64,
    /// Bytes in all, with the few in front of each message that tell its length or its channel.
    pub bytes: u64,
    /// Messages that wait now.
    pub waiting_messages: usize,
    /// Bytes that wait now.
    pub waiting_bytes: usize,
    /// Messages per second, a mean over the last one to three seconds.
    pub messages_per_second: f64,
    /// Bytes per second, a mean over the last one to three seconds.
    pub bytes_per_second: f64,
}

/// A protocol of a node, or as it is spoken with one peer.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ProtocolStatus {
    /// Its name.
    pub name: String,
    /// The versions that this node speaks; with a peer the one that both do.
    pub versions: RangeInclusive<u32>,
    /// What it says ([`Protocol::about`](crate::Protocol::about)); empty if it says nothing.
    pub about: String,
}

/// One route to a peer.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct RouteReport {
    /// What it goes through.
    pub path: PathKind,
    /// The address that packets are sent to: the peer's or the relay's.
    pub remote: SocketAddr,
    /// Its smoothed round-trip time, once probes measured it.
    pub rtt: Option<Duration>,
    /// The share of lost probes, from 0 to 1.
    pub loss: f64,
    /// Bytes per second that it was seen to deliver at most of late, or within ten minutes if it carries nothing now; `None`
    /// unless it has had something to carry.
    pub goodput: Option<u64>,
    /// The largest UDP payload in bytes known to pass.
    pub mtu: u16,
    /// Whether it carries the connection.
    pub selected: bool,
    /// Whether it answers, as far as is known.
    pub alive: bool,
    /// Whether it ever answered a probe.
    pub proven: bool,
    /// Why it carries the connection, or why it does not.
    pub why: String,
    /// Bytes sent on it.
    pub bytes_sent: u64,
    /// Bytes received on it.
    pub bytes_received: u64,
}

/// What a node relays for others.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct RelayServerStatus {
    /// Registered clients.
    pub clients: usize,
    /// Pairs of clients that it forwards for.
    pub allocations: usize,
    /// Datagrams forwarded since the start.
    pub datagrams: u64,
    /// Bytes forwarded since the start, prefixes included.
    pub bytes: u64,
}
