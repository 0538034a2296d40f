//! What the node knows and does, once or as it happens.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime},
};

use byway::{
    Event as NodeEvent, Gone, MappingStatus, MemoryStatus, NatStatus, NodeStatus, PeerId, PeerStatus, ProtocolStatus,
    RelayStatus, RouteReport,
};

use super::{Daemon, attend::Report};
use crate::{
    config::metrics::MetricsAddr,
    control::{
        Event,
        event::{
            Memory, Own, Peer, Registration, Relaying, Route, Spoken, Status, milliseconds,
            nat::{Family, Mapping, Nat},
        },
    },
    failure::{Failure, printable},
};

/// Reads the state of everything.
pub(super) async fn read(daemon: &Daemon) -> Status {
    let node: NodeStatus = daemon.node.status().await;
    let own = Own {
        id: node.id.to_string(),
        version: env!("CARGO_PKG_VERSION").into(),
        network: node.network,
        data_dir: daemon.dir.path().display().to_string(),
        uptime_s: seconds(node.uptime),
        addresses: node.addrs,
        protocols: node.protocols.into_iter().map(spoken).collect(),
    };
    Status {
        node: own,
        relays: node.relays.iter().map(registration).collect(),
        peers: node.peers.into_iter().map(peer).collect(),
        nat: nat(&node.nat),
        mappings: mappings(&node.mappings),
        serving: daemon.serving.read(),
        reaching: daemon.reaching.read(),
        relaying: node.serving.map(|relay| Relaying {
            clients: relay.clients as u64,
            allocations: relay.allocations as u64,
            bytes: relay.bytes,
            datagrams: relay.datagrams,
        }),
        memory: memory(node.memory),
        dropped: node.dropped.into_iter().map(|(why, count)| (why.to_owned(), count)).collect(),
        processes: daemon.processes.read(),
    }
}

fn registration(relay: &RelayStatus) -> Registration {
    Registration {
        id: relay.id.to_string(),
        address: relay.addr,
        home: relay.home,
        registered: relay.registered,
        over_tls: relay.over_tls,
        observed: relay.observed,
        state: printable(&relay.state),
        rtt_ms: relay.rtt.map(milliseconds),
    }
}

fn memory(memory: MemoryStatus) -> Memory {
    Memory {
        used: memory.used as u64,
        peak: memory.peak as u64,
        limit: memory.limit as u64,
        waits: memory.waits,
        sending: memory.sending as u64,
        sending_limit: memory.sending_limit as u64,
    }
}

/// What the gateways forward.
pub(super) fn mappings(gateways: &[MappingStatus]) -> Vec<Mapping> {
    let mapping = |mapping: &MappingStatus| Mapping {
        gateway: mapping.gateway,
        external: mapping.external,
        by: mapping.by.map(|by| by.to_string()),
        carrier: mapping.carrier,
        expires_s: mapping.expires.map(|expires| expires.as_secs()),
        state: printable(&mapping.state),
    };
    gateways.iter().map(mapping).collect()
}

fn nat(nat: &NatStatus) -> Nat {
    Nat {
        families: Family::list(&nat.report),
        mappings: nat.spent.mappings_max_per_dial,
        probes: nat.spent.probes_max_per_dial,
        pps: nat.spent.per_second_max,
    }
}

fn peer(peer: PeerStatus) -> Peer {
    Peer {
        id: peer.id.to_string(),
        agent: printable(&peer.agent),
        path: peer.path.map(Into::into),
        rtt_ms: peer.rtt.map(milliseconds),
        connected_s: seconds(peer.connected),
        protocols: peer.protocols.into_iter().map(spoken).collect(),
        channels: peer.channels.into_iter().map(Into::into).collect(),
        routes: peer.routes.into_iter().map(route).collect(),
    }
}

fn spoken(protocol: ProtocolStatus) -> Spoken {
    Spoken {
        name: protocol.name,
        versions: [*protocol.versions.start(), *protocol.versions.end()],
        about: printable(&protocol.about),
    }
}

fn route(route: RouteReport) -> Route {
    Route {
        path: route.path.into(),
        remote: route.remote,
        selected: route.selected,
        alive: route.alive,
        rtt_ms: route.rtt.map(milliseconds),
        loss: route.loss,
        goodput_s: route.goodput,
        mtu: route.mtu,
        bytes_sent: route.bytes_sent,
        bytes_received: route.bytes_received,
        why: route.why,
    }
}

/// To the millisecond.
fn seconds(duration: Duration) -> f64 {
    duration.as_millis() as f64 / 1e3
}

/// Tells what happens until the node ends.
pub(super) async fn watch(daemon: Arc<Daemon>, report: Report) -> Result<(), Failure> {
    let mut events = daemon.node.events();
    let status = daemon.node.status().await;
    report.tell(Event::Node { id: status.id.to_string(), addresses: status.addrs.clone() });
    if daemon.settings.relay {
        let address = daemon.relay_address();
        report.tell(Event::Relay { address });
    }
    if let Some(MetricsAddr(address)) = daemon.settings.metrics.listen {
        report.tell(Event::Metrics { address });
    }
    let mut relays = Relays::new(&status, &report);
    while let Some(event) = events.recv().await {
        match event {
            NodeEvent::PeerUp { peer } => {
                report.tell(Event::PeerUp { peer: peer.to_string(), path: daemon.path(peer).await });
            }
            NodeEvent::PeerDown { peer, reason } => {
                report.tell(peer_down(peer, &reason));
            }
            NodeEvent::MappingAdded { gateway, transport, external, by, carrier, .. } => {
                let (transport, by) = (transport.to_string(), by.to_string());
                report.tell(Event::MappingAdded { gateway, transport, external, by, carrier });
                if daemon.settings.relay && !carrier {
                    report.tell(Event::Relay { address: daemon.relay_address() }); // with what others can reach
                }
            }
            NodeEvent::MappingLost { gateway, transport, why, .. } => {
                let (transport, message) = (transport.to_string(), printable(&why));
                report.tell(Event::MappingLost { gateway, transport, message });
            }
            NodeEvent::NatChanged(found) => report.tell(Event::NatChanged { families: Family::list(&found) }),
            event => match path_event(&event) {
                Some(event) => report.tell(event),
                None => relays.tell(&event, &report),
            },
        }
    }
    Err(Failure::here("the node is closed"))
}

/// That a connection ended; the peer may have written the reason.
fn peer_down(peer: PeerId, reason: &Gone) -> Event {
    Event::PeerDown { peer: peer.to_string(), message: printable(&reason.to_string()) }
}

/// What a command tells of the ways to a peer.
pub(super) fn path_event(event: &NodeEvent) -> Option<Event> {
    Some(match event {
        NodeEvent::PathUp { peer, path, remote } => {
            Event::PathUp { peer: peer.to_string(), path: (*path).into(), remote: *remote }
        }
        NodeEvent::PathDown { peer, path, remote } => {
            Event::PathDown { peer: peer.to_string(), path: (*path).into(), remote: *remote }
        }
        NodeEvent::PathBest { peer, path, remote, why } => {
            Event::PathBest { peer: peer.to_string(), path: (*path).into(), remote: *remote, why: why.clone() }
        }
        NodeEvent::Stalled { peer, since } => {
            let since = since.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            Event::Stalled { peer: peer.to_string(), since_s: seconds(since) }
        }
        NodeEvent::Resumed { peer, after } => Event::Resumed { peer: peer.to_string(), after_s: seconds(*after) },
        _ => return None,
    })
}

/// Tells how the node stands with its relays until it ends.
pub(super) async fn watch_relays(daemon: Arc<Daemon>, report: Report) -> Result<(), Failure> {
    let mut events = daemon.node.events();
    let mut relays = Relays::new(&daemon.node.status().await, &report);
    while let Some(event) = events.recv().await {
        relays.tell(&event, &report);
    }
    Err(Failure::here("the node is closed"))
}

/// What was told last of each relay, so that the same trouble is told once; as many as the node has relays.
struct Relays(BTreeMap<PeerId, Option<String>>);

impl Relays {
    fn new(status: &NodeStatus, report: &Report) -> Self {
        let mut relays = Relays(BTreeMap::new());
        for relay in status.relays.iter().filter(|relay| relay.registered) {
            relays.tell(&NodeEvent::RelayUp { relay: relay.id }, report);
        }
        relays
    }

    fn tell(&mut self, event: &NodeEvent, report: &Report) {
        let (relay, trouble) = match event {
            NodeEvent::RelayUp { relay } => (*relay, None),
            NodeEvent::RelayDown { relay, why } => (*relay, Some(printable(why))),
            _ => return,
        };
        if self.0.insert(relay, trouble.clone()).is_some_and(|told| told == trouble) {
            return;
        }
        let relay = relay.to_string();
        report.tell(match trouble {
            None => Event::RelayUp { relay },
            Some(message) => Event::RelayDown { relay, message },
        });
    }
}

impl Daemon {
    /// What others have to name to use this node as their relay.
    fn relay_address(&self) -> String {
        byway::PeerAddr::new(self.node.id(), self.node.addrs()).to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peers_last_word_cannot_command_the_terminal() {
        let reason = Gone::Dismissed { code: 1, why: "a\u{1b}]0;b\u{7}\n".into() };
        let Event::PeerDown { message, .. } = peer_down(PeerId::ed25519([7; 32]), &reason) else { unreachable!() };
        assert!(message.contains("]0;b") && !message.contains(char::is_control), "{message:?}");
    }
}
