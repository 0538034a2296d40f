//! What a node tells a command, and what a command prints with `--json`; `docs/cli.md` explains each field.

pub(crate) mod book;
pub(crate) mod channel;
pub(crate) mod nat;

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use serde::{Deserialize, Serialize};

use self::{
    channel::Channel,
    nat::{Check, Family, Mapping, Nat, Why, WhyNot},
};
use crate::failure::Failure;

/// One object of the control socket and of `--json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(crate) enum Event {
    /// Who this node is.
    Id { id: String },
    /// The demo's web server listens here.
    Http { address: SocketAddr },
    /// The node runs.
    Node { id: String, addresses: Vec<SocketAddr> },
    /// The node relays for others, at this address.
    Relay { address: String },
    /// The node's figures are told here, by HTTP.
    Metrics { address: SocketAddr },
    /// The node is registered at a relay: peers can reach it there.
    RelayUp { relay: String },
    /// The node is not registered at a relay.
    RelayDown { relay: String, message: String },
    /// A connection with a peer began.
    PeerUp { peer: String, path: Path },
    /// A connection with a peer ended.
    PeerDown { peer: String, message: String },
    /// A way to a peer has answered, for the first time or again.
    PathUp { peer: String, path: Path, remote: SocketAddr },
    /// A way to a peer answers no longer.
    PathDown { peer: String, path: Path, remote: SocketAddr },
    /// Another way carries a peer's connection from now on.
    PathBest { peer: String, path: Path, remote: SocketAddr, why: String },
    /// No way to a peer has answered since then, in seconds of Unix time.
    Stalled { peer: String, since_s: f64 },
    /// A way to a peer answers again.
    Resumed { peer: String, after_s: f64 },
    /// A service is offered, and this ticket leads to it.
    Ticket { service: String, ticket: String, open: bool },
    /// A peer has used the ticket; it alone can use it from now on.
    Redeemed { service: String, peer: String },
    /// A local port leads to a peer's service.
    Listening { peer: String, service: String, address: SocketAddr },
    /// The peer is being dialled.
    Dialling { peer: String },
    /// The peer answered, so many milliseconds after the dial began.
    Connected { peer: String, path: Path, ms: f64 },
    /// The connection moved to another path, so many milliseconds after the dial began.
    Path { peer: String, path: Path, ms: f64 },
    /// The connection is gone; a new dial follows.
    Gone { peer: String, reason: String, message: String },
    /// The dial failed; the next one follows after so many milliseconds.
    Unreachable { peer: String, message: String, retry_ms: u64 },
    /// One connection through the tunnel could not be made.
    SessionFailed { peer: String, service: String, message: String },
    /// The pipe is open; frames follow on the control socket.
    Piping { peer: String },
    /// A ping was answered.
    Pong { peer: String, seq: u32, rtt_ms: f64, path: Path },
    /// A ping was not answered.
    NoPong { peer: String, seq: u32, message: String },
    /// All pings are through; the times are `null` if none was answered.
    Pinged { peer: String, sent: u32, answered: u32, min_ms: Option<f64>, mean_ms: Option<f64>, max_ms: Option<f64> },
    /// How fast the load of one direction went in the last second.
    Measuring { peer: String, direction: String, mbit_s: f64 },
    /// What the line to a peer carries.
    Measured(Box<Measured>),
    /// This many servers are asked how the NATs behave, for this many seconds at most.
    Checking { servers: usize, wait_s: u64 },
    /// How the NATs behave.
    Check(Box<Check>),
    /// The survey has learned something new.
    NatChanged { families: Vec<Family> },
    /// A gateway forwards the node's port, of UDP or of TCP.
    MappingAdded { gateway: IpAddr, transport: String, external: SocketAddr, by: String, carrier: bool },
    /// A gateway no longer does.
    MappingLost { gateway: IpAddr, transport: String, message: String },
    /// Why a peer is reached as it is.
    Why(Box<Why>),
    /// Why a peer is not connected.
    WhyNot(WhyNot),
    /// What the node knows and does.
    Status(Box<Status>),
    /// The configuration was read again.
    Reloaded(Reloaded),
    /// The address book, for a person.
    PeerList {
        /// Its peers.
        peers: Vec<book::Known>,
    },
    /// The address book, for another node.
    PeerBook {
        /// Its peers.
        peers: Vec<book::Known>,
    },
    /// Something was done to the address book.
    PeersChanged {
        /// What, in words.
        message: String,
    },
    /// The work is done. Never printed.
    Done,
    /// The command fails.
    Error(Failure),
}

/// By what way a peer is connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Path {
    /// From machine to machine.
    Direct,
    /// Through a relay.
    Relay,
}

/// What a node knows and does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Status {
    #[serde(flatten)]
    pub(crate) node: Own,
    pub(crate) relays: Vec<Registration>,
    pub(crate) peers: Vec<Peer>,
    /// How the NATs behave, and what the looking for direct paths has cost.
    pub(crate) nat: Nat,
    /// What the gateways forward by themselves.
    pub(crate) mappings: Vec<Mapping>,
    pub(crate) serving: Vec<Serving>,
    pub(crate) reaching: Vec<Reaching>,
    pub(crate) relaying: Option<Relaying>,
    /// What messages that are not read yet take of this process.
    #[serde(default)]
    pub(crate) memory: Memory,
    /// Datagrams that were not carried on, by reason; reasons without any are left out.
    pub(crate) dropped: BTreeMap<String, u64>,
    /// The processes that use this node; the first one runs it.
    pub(crate) processes: Vec<Process>,
}

/// The node itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Own {
    pub(crate) id: String,
    pub(crate) version: String,
    pub(crate) network: String,
    pub(crate) data_dir: String,
    pub(crate) uptime_s: f64,
    pub(crate) addresses: Vec<SocketAddr>,
    #[serde(default)]
    pub(crate) protocols: Vec<Spoken>,
}

/// A relay that the node uses.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Registration {
    pub(crate) id: String,
    pub(crate) address: Option<SocketAddr>,
    /// It is one of those where the node wants to be registered.
    pub(crate) home: bool,
    pub(crate) registered: bool,
    /// Whether it is reached over TLS, for UDP gets no answer there.
    #[serde(default)]
    pub(crate) over_tls: bool,
    /// Where this node's datagrams come from, as the relay sees it.
    pub(crate) observed: Option<SocketAddr>,
    pub(crate) state: String,
    pub(crate) rtt_ms: Option<f64>,
}

/// A connected peer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Peer {
    pub(crate) id: String,
    pub(crate) agent: String,
    pub(crate) path: Option<Path>,
    pub(crate) rtt_ms: Option<f64>,
    pub(crate) connected_s: f64,
    /// What both speak.
    #[serde(default)]
    pub(crate) protocols: Vec<Spoken>,
    /// The channels of these, and their byte streams.
    #[serde(default)]
    pub(crate) channels: Vec<Channel>,
    pub(crate) routes: Vec<Route>,
}

/// A protocol, as the node speaks it, or with one peer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Spoken {
    pub(crate) name: String,
    pub(crate) versions: [u32; 2],
    /// What the protocol says of itself, or of the peer.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) about: String,
}

/// One way to a connected peer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Route {
    pub(crate) path: Path,
    pub(crate) remote: SocketAddr,
    pub(crate) selected: bool,
    pub(crate) alive: bool,
    pub(crate) rtt_ms: Option<f64>,
    pub(crate) loss: f64,
    /// What it was seen to deliver at most of late, in bytes per second.
    #[serde(default)]
    pub(crate) goodput_s: Option<u64>,
    pub(crate) mtu: u16,
    pub(crate) bytes_sent: u64,
    pub(crate) bytes_received: u64,
    pub(crate) why: String,
}

/// What the line to a peer carries.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Measured {
    pub(crate) peer: String,
    /// The path in use at the end.
    pub(crate) path: Option<Path>,
    /// How long each direction was loaded.
    pub(crate) seconds: u64,
    /// Round trips of small messages without load; `None` if none came back.
    pub(crate) idle: Option<Delay>,
    pub(crate) up: Direction,
    pub(crate) down: Direction,
    /// Every way to the peer, with its own measures.
    pub(crate) routes: Vec<Route>,
}

/// One direction under load.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Direction {
    pub(crate) mbit_s: f64,
    pub(crate) bytes: u64,
    /// Round trips of small messages meanwhile.
    pub(crate) delay: Option<Delay>,
}

/// Percentiles of round trips.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Delay {
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
}

/// A service that the node offers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Serving {
    pub(crate) name: String,
    pub(crate) to: String,
    pub(crate) open: bool,
    /// Peers that hold a redeemed ticket.
    pub(crate) holders: u64,
    pub(crate) sessions: u64,
}

/// A local port that leads to a peer's service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Reaching {
    pub(crate) peer: String,
    pub(crate) service: String,
    pub(crate) address: SocketAddr,
    pub(crate) connected: bool,
    pub(crate) sessions: u64,
}

/// What the node has relayed for others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Relaying {
    pub(crate) clients: u64,
    pub(crate) allocations: u64,
    pub(crate) bytes: u64,
    pub(crate) datagrams: u64,
}

/// The memory of messages in the making, of those that are not read yet, and of what waits to be sent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Memory {
    pub(crate) used: u64,
    pub(crate) peak: u64,
    pub(crate) limit: u64,
    /// How often a peer had to wait for some.
    pub(crate) waits: u64,
    /// What waits to be sent to all peers, and what may.
    pub(crate) sending: u64,
    pub(crate) sending_limit: u64,
}

/// What became of a configuration that was read again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Reloaded {
    /// What has changed and holds from now on.
    pub(crate) changed: Vec<Change>,
    /// Keys that have changed and take effect with the next start only.
    pub(crate) restart: Vec<String>,
}

/// A key of the configuration that has changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Change {
    pub(crate) key: String,
    /// How: the value before and after, or how many entries of a list came and went.
    pub(crate) what: String,
}

/// A process that uses the node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Process {
    pub(crate) pid: u32,
    pub(crate) command: String,
}

/// A duration as the events write it: milliseconds, to the microsecond.
pub(crate) fn milliseconds(duration: std::time::Duration) -> f64 {
    duration.as_micros() as f64 / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::Exit;

    #[test]
    fn events_have_the_documented_form() {
        let event = Event::Connected { peer: "a".into(), path: Path::Direct, ms: 1.5 };
        let json = serde_json::to_string(&event).unwrap();
        assert_eq!(json, r#"{"event":"connected","peer":"a","path":"direct","ms":1.5}"#);
        let event = Event::Error(Failure::new(Exit::Refused, "no"));
        assert_eq!(serde_json::to_string(&event).unwrap(), r#"{"event":"error","code":5,"message":"no"}"#);
        assert_eq!(serde_json::from_str::<Event>(r#"{"event":"done"}"#).unwrap(), Event::Done);
    }
}
