//! What a node's parts share.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use byway_proto::{
    PeerId, Rng,
    addr::candidate::is_probeable,
    book::Group,
    hello::{Candidates, Control, Hello, Limits, MAX_CANDIDATES},
    nat::candidates::{Sources, candidates},
    paths::PathsConfig,
};
use tokio::time;
use tracing::warn;

use crate::{
    agent::{AgentRef, Command, Up},
    config::Config,
    event::{Event, Events},
    gone::Gone,
    link::{
        Link,
        establish::{self, Introduced},
        readers::Scope,
    },
    metrics::Dropped,
    net::{Interface, InterfaceKind, Net, lan::LanRef, mux::Mux, portmap::PortMappings, routes::Via, track::Track},
    protocol::{MAX_MESSAGE, Registry},
    quic::endpoint::{Endpoint, MAX_STREAMS},
    relay::{server::RelayShell, table::Relays},
    switch::SwitchRef,
    tasks::Tasks,
};

/// How long an alias outlives its connection: the goodbye must still leave, and be repeated (RFC 9000 §10.2).
const LINGER: Duration = Duration::from_secs(3);

/// Everything a node's tasks share.
#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) config: Config,
    /// Drawn anew at each start, so that peers can tell a restarted node.
    pub(crate) instance: u64,
    pub(crate) net: Arc<dyn Net>,
    pub(crate) mux: Arc<Mux>,
    pub(crate) endpoint: Endpoint,
    pub(crate) agent: AgentRef,
    pub(crate) registry: Arc<Registry>,
    pub(crate) switch: SwitchRef,
    pub(crate) relays: Relays,
    pub(crate) port_mappings: PortMappings,
    pub(crate) lan: LanRef,
    pub(crate) serving: Option<Arc<RelayShell>>,
    pub(crate) events: Events,
    pub(crate) tasks: Tasks,
    pub(crate) rng: Mutex<Rng>,
}

impl Core {
    pub(crate) fn id(&self) -> PeerId {
        self.config.identity.id()
    }

    pub(crate) fn draw(&self) -> u64 {
        self.rng.lock().unwrap_or_else(PoisonError::into_inner).next_u64()
    }

    /// What this node says of itself; `relay` says that the link is for relaying.
    pub(crate) fn hello(&self, relay: bool) -> Hello {
        Hello {
            agent: self.config.agent.clone(),
            network: self.config.network.clone(),
            instance: self.instance,
            relay,
            protocols: self.registry.announced(),
            limits: Limits { max_message: MAX_MESSAGE as u64, max_streams: u64::from(MAX_STREAMS) },
        }
    }

    /// What this node says to a connected peer: the protocols that failed with it are spoken no more.
    pub(crate) fn hello_to(&self, link: &Link) -> Hello {
        let mut hello = self.hello(false);
        hello.protocols.retain(|protocol| !link.withdrawn().contains(&protocol.id));
        hello
    }

    /// The group of addresses at a way's other end: the relay's, if it is one.
    pub(crate) fn group(&self, via: Option<Via>) -> Group {
        let remote = via.map(|via| self.mux.sockets.wss().behind(via.remote()));
        remote.map_or(Group::LOCAL, |remote| Group::of(remote.ip()))
    }

    /// What a peer needs to know for a direct path.
    pub(crate) fn introduction(&self, track: &Track) -> Introduced {
        let edition = self.switch.edition(); // first: what changes from here on is told again
        let addrs = self.addrs(track.knows_this_machine());
        let mut rest = Vec::new();
        if !addrs.is_empty() {
            rest.push(Control::Candidates(Candidates { addrs, generation: 0 }));
        }
        if !self.config.relay_only {
            rest.push(Control::NatReport(self.agent.nat_report()));
        }
        let relays = self.relays.registered();
        // A peer that is told none takes that for none; one on the way here shows that it may believe otherwise.
        if !relays.is_empty() || track.vias().iter().any(|via| via.is_relay()) {
            rest.push(Control::Relays(relays));
        }
        Introduced { edition, rest, ..Introduced::default() }
    }

    /// What a link's readers need; control messages go to `control`.
    pub(crate) fn scope(&self, control: tokio::sync::mpsc::Sender<crate::switch::FromLink>) -> Scope {
        Scope { registry: Arc::clone(&self.registry), tasks: self.tasks.clone(), mux: Arc::clone(&self.mux), control }
    }

    /// Hands an established connection's routes to the agent.
    pub(crate) async fn run_routes(
        &self,
        track: &Arc<Track>,
        connection: &quinn::Connection,
        config: PathsConfig,
        told: Option<PeerId>,
    ) -> Result<(), Gone> {
        let exported =
            establish::export(connection).ok_or_else(|| Gone::Lost("TLS has no keying material to export".into()))?;
        self.agent
            .send(Command::Up(Box::new(Up {
                track: Arc::clone(track),
                exported,
                config,
                told,
                rtt: connection.rtt(),
                relayed: self.config.relay_only && told.is_some(),
            })))
            .await;
        Ok(())
    }

    /// Gives an alias up once its connection's goodbye had time to leave; its routes are no longer looked after, and
    /// lead nobody to it, at once.
    pub(crate) fn retire(self: &Arc<Self>, track: &Arc<Track>) {
        let (core, alias) = (Arc::clone(self), track.alias());
        core.mux.routes.forget_routes(track);
        self.tasks.spawn(async move {
            core.agent.send(Command::Down { alias }).await;
            tokio::select! {
                biased;
                () = core.tasks.stopped() => return,
                () = time::sleep(LINGER) => {}
            }
            core.relays.release(alias);
            core.mux.routes.remove(alias);
        });
    }

    /// Where peers may reach this node, best first; loopback only if asked for, or if it listens on nothing else.
    pub(crate) fn addrs(&self, loopback: bool) -> Vec<SocketAddr> {
        if self.config.relay_only {
            return Vec::new();
        }
        let sockets = &self.mux.sockets;
        let mut sources =
            Sources { mapped: self.port_mappings.external(), observed: self.relays.observed(), ..Sources::default() };
        let report = self.agent.nat_report();
        sources.observed.extend([report.ipv4, report.ipv6].into_iter().flatten().filter_map(|family| family.public));
        sources.witnessed = self.agent.observed();
        (sources.ipv4, sources.ipv6) = (sockets.v4.is_some(), sockets.v6.is_some());
        let interfaces = self.net.interfaces();
        for bound in [&sockets.v4, &sockets.v6].into_iter().flatten().filter_map(|socket| socket.local_addr().ok()) {
            // A node that listens on this machine alone has nothing else to tell.
            sources.loopback |= loopback || bound.ip().is_loopback();
            let listens = |interface: &&Interface| {
                interface.ip == bound.ip() || bound.ip().is_unspecified() && interface.ip.is_ipv4() == bound.is_ipv4()
            };
            let count = sources.interfaces.len();
            sources.interfaces.extend(interfaces.iter().filter(listens).map(|interface| (*interface, bound.port())));
            if sources.interfaces.len() == count && !bound.ip().is_unspecified() {
                // An address that the list of interfaces lacks, such as 127.0.0.2.
                let kind = InterfaceKind::of("", bound.ip(), false);
                sources.interfaces.push((Interface::new(bound.ip(), 128, 0, kind), bound.port()));
            }
        }
        candidates(&sources, MAX_CANDIDATES)
    }

    /// What was dropped or turned away since the start, by reason.
    pub(crate) fn dropped(&self) -> Vec<(&'static str, u64)> {
        let mut dropped: Vec<_> = Dropped::ALL.into_iter().map(|why| (why.name(), self.mux.counters.of(why))).collect();
        {
            let gate = self.mux.gate.lock().unwrap_or_else(PoisonError::into_inner);
            let counters = gate.counters();
            dropped.extend([
                ("handshake_retried", counters.retried),
                ("handshake_refused", counters.refused),
                ("handshake_failed", counters.failed),
                ("handshake_overdue", counters.overdue),
                ("handshake_unanswered", counters.over_answer_budget),
            ]);
        }
        dropped.extend(self.mux.sockets.wss().dropped());
        if let Some(shell) = &self.serving {
            dropped.extend(shell.dropped());
        }
        dropped.retain(|(_, count)| *count > 0);
        dropped
    }

    /// Tells that a protocol's own code failed with a peer.
    pub(crate) fn tell_failure(&self, peer: PeerId, protocol: &str, why: String) {
        warn!(peer = ?peer, protocol, why, "a protocol failed with a peer");
        self.events.send(Event::ProtocolFailed { peer, protocol: protocol.to_owned(), why });
    }

    /// Whether this node may send to an address that a peer named.
    pub(crate) fn may_probe(&self, addr: SocketAddr, loopback: bool) -> bool {
        !self.config.relay_only && self.mux.sockets.towards(addr).is_some() && is_probeable(addr, loopback).is_ok()
    }
}
