//! The one task that looks after routes: it runs every peer's route machine, sends and answers probes, and carries the
//! machines' decisions to the packet path.

mod peer;
mod traversal;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use byway_proto::{
    Instant, Rng,
    nat::{self, AgentConfig, Explanation, NatReport, Signal},
    paths::{Input, PathsConfig, RouteKind},
    wire::probe,
};
use tokio::sync::{Notify, mpsc, oneshot};
use tracing::debug;

pub(crate) use self::traversal::ServerSource;
use self::{
    peer::{AgentPeer, Pong},
    traversal::Traversal,
};
use crate::{
    config::WallClock,
    event::{Events, PathKind},
    net::{
        Net,
        mux::{ControlDatagram, Mux},
        routes::Via,
        track::Track,
        wss::is_virtual,
    },
    status::{NatStatus, RouteReport},
    store::Store,
    switch::SwitchRef,
    tasks::Tasks,
    wait::{Alarm, Seldom},
    watched::Watched,
};

/// Requests to the agent that may wait; whoever sends the next one waits.
const COMMANDS: usize = 64;

/// Datagrams, or requests, taken from their queue before other duties get a turn.
const BATCH: usize = 32;

/// Time that passed unnoticed, or a timer that is late by this much, means that the machine was asleep: more than a busy
/// machine or a correction of its clock explains.
const SLEPT: Duration = Duration::from_secs(5);

/// What the rest of the node asks of the agent.
pub(crate) enum Command {
    /// A connection is established: run its routes.
    Up(Box<Up>),
    /// A connection has ended.
    Down { alias: SocketAddr },
    /// The peer may be reached by this route.
    AddRoute { track: Arc<Track>, via: Via },
    /// The connection is to leave this way: nothing is sent by it, and `for_good` nothing taken that comes by it.
    Leave { alias: SocketAddr, via: Via, for_good: bool },
    /// Ping a connection's idle routes this often.
    KeepAlive { alias: SocketAddr, every: Duration },
    /// Tell the routes of a connection.
    Report { alias: SocketAddr, reply: oneshot::Sender<Vec<RouteReport>> },
    /// The peer's survey has found this.
    Theirs { alias: SocketAddr, report: NatReport },
    /// The peer says that it may be reached at these addresses.
    Candidates { alias: SocketAddr, addrs: Vec<SocketAddr> },
    /// The peer's part of a punch.
    Signal { alias: SocketAddr, signal: Signal },
    /// These addresses answer STUN, and none that the source has named before.
    Servers { source: ServerSource, addrs: Vec<SocketAddr> },
    /// The gateway says that this is its own public address; `None` if none says so any more.
    External(Option<IpAddr>),
    /// A relay sees this node at this address, and saw it at another one before.
    SeenElsewhere(IpAddr),
    /// Tell why a connection is direct or is not.
    Explain { alias: SocketAddr, reply: oneshot::Sender<Option<Explanation>> },
    /// Tell what is known of the NATs.
    Nat { reply: oneshot::Sender<NatStatus> },
    /// Measure the selected route with a probe of its own.
    Ping { alias: SocketAddr, reply: oneshot::Sender<PingReport> },
}

/// A newly established connection.
pub(crate) struct Up {
    pub(crate) track: Arc<Track>,
    /// Bytes exported from the TLS session, from which both sides derive the probe keys.
    pub(crate) exported: [u8; probe::EXPORT_LEN],
    pub(crate) config: PathsConfig,
    /// The peer whose path changes are told; `None` for the connection to a relay.
    pub(crate) told: Option<byway_proto::PeerId>,
    /// How long QUIC's handshake took there and back.
    pub(crate) rtt: Duration,
    /// The peer is to be reached through relays alone, and must not learn where this node is.
    pub(crate) relayed: bool,
}

/// What a ping found.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PingReport {
    pub(crate) rtt: Duration,
    pub(crate) path: PathKind,
}

/// Sends requests to the agent.
#[derive(Debug, Clone)]
pub(crate) struct AgentRef {
    commands: mpsc::Sender<Command>,
    found: Arc<Found>,
}

/// What the NAT agent has found out, for whoever becomes a peer.
#[derive(Debug, Default)]
struct Found {
    report: Watched<NatReport>,
    /// Where peers see this node's own socket, as far as they are believed.
    observed: Mutex<Vec<SocketAddr>>,
    /// That it has changed, for the one task that tells the peers: kept while it does not wait.
    observes: Notify,
}

/// What the agent needs to start.
pub(crate) struct Setup {
    pub(crate) mux: Arc<Mux>,
    pub(crate) net: Arc<dyn Net>,
    pub(crate) datagrams: mpsc::Receiver<ControlDatagram>,
    pub(crate) events: Events,
    pub(crate) switch: SwitchRef,
    pub(crate) nat: AgentConfig,
    pub(crate) seed: [u8; 32],
    pub(crate) clock: WallClock,
    /// Where what is learned about networks is kept, and what there is of it.
    pub(crate) store: Option<Store>,
    pub(crate) learned: Option<Vec<u8>>,
}

impl AgentRef {
    /// Sends a request; lost if the node is closing.
    pub(crate) async fn send(&self, command: Command) {
        let _ = self.commands.send(command).await;
    }

    /// Sends a request that may be lost while many others wait.
    pub(crate) fn try_send(&self, command: Command) {
        let _ = self.commands.try_send(command);
    }

    /// The routes of a connection; empty if there is no such connection.
    pub(crate) async fn report(&self, alias: SocketAddr) -> Vec<RouteReport> {
        let (reply, report) = oneshot::channel();
        self.send(Command::Report { alias, reply }).await;
        report.await.unwrap_or_default()
    }

    /// What the survey of this node's NATs knows.
    pub(crate) fn nat_report(&self) -> NatReport {
        self.found.report.read().clone()
    }

    /// Where peers see this node's own socket, as far as they are believed.
    pub(crate) fn observed(&self) -> Vec<SocketAddr> {
        self.found.observed.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until that has changed.
    pub(crate) async fn observes(&self) {
        self.found.observes.notified().await;
    }

    /// Why a connection is direct or is not; `None` if it is gone.
    pub(crate) async fn explain(&self, alias: SocketAddr) -> Option<Explanation> {
        let (reply, explanation) = oneshot::channel();
        self.send(Command::Explain { alias, reply }).await;
        explanation.await.ok().flatten()
    }

    /// What is known of the NATs, and what the looking for paths has cost.
    pub(crate) async fn nat(&self) -> NatStatus {
        let (reply, status) = oneshot::channel();
        self.send(Command::Nat { reply }).await;
        status.await.unwrap_or_default()
    }

    /// Measures the selected route; `None` if the connection is gone.
    pub(crate) async fn ping(&self, alias: SocketAddr) -> Option<PingReport> {
        let (reply, report) = oneshot::channel();
        self.send(Command::Ping { alias, reply }).await;
        report.await.ok()
    }
}

/// What the agent's task seldom sees.
#[derive(Clone, Copy)]
enum Rare {
    Stopped,
    /// Interfaces have come or gone.
    Changed,
}

/// The state that the task owns.
struct Agent {
    mux: Arc<Mux>,
    events: Events,
    /// Each peer's machine gets a seed of its own.
    rng: Rng,
    /// Each by itself in memory: a node of the map has room for eleven.
    peers: BTreeMap<SocketAddr, Box<AgentPeer>>,
    /// When each machine wants to be called; one entry for each peer that has a timer.
    timers: BTreeSet<(Instant, SocketAddr)>,
    traversal: Traversal,
    clock: WallClock,
    /// When the agent last looked at either clock.
    looked: (SystemTime, Instant),
    /// Where what the NAT machine learns is kept for the next process.
    store: Option<Store>,
}

/// Starts the agent's task.
pub(crate) fn spawn(setup: Setup, tasks: &Tasks) -> AgentRef {
    let Setup { mux, net, datagrams, events, switch, nat, seed, clock, store, learned } = setup;
    let (sender, commands) = mpsc::channel(COMMANDS);
    let found = Arc::new(Found::default());
    let mut machine = nat::Agent::new(nat, &Rng::new(&seed, "nat").bytes(), mux.now());
    if let Some(learned) = learned {
        machine.recall(&learned, mux.now(), clock.unix());
    }
    let traversal = Traversal::new(machine, net, switch, Arc::clone(&found));
    let (peers, timers, looked) = (BTreeMap::new(), BTreeSet::new(), (clock.now(), mux.now()));
    let agent = Agent { mux, events, rng: Rng::new(&seed, "agent"), peers, timers, traversal, clock, looked, store };
    tasks.spawn(agent.run(commands, datagrams, tasks.clone()));
    AgentRef { commands: sender, found }
}

impl Agent {
    async fn run(
        mut self,
        mut commands: mpsc::Receiver<Command>,
        mut datagrams: mpsc::Receiver<ControlDatagram>,
        tasks: Tasks,
    ) {
        let mux = Arc::clone(&self.mux);
        let mut batch = Vec::with_capacity(BATCH);
        let net = Arc::clone(&self.traversal.net);
        let mut asked = Vec::with_capacity(BATCH);
        let mut seldom = Seldom::new();
        seldom.add(|| tasks.stopped(), Rare::Stopped);
        seldom.add(|| net.changed(), Rare::Changed);
        let (mut timer, mut traverse) = (Alarm::new(), Alarm::new());
        self.network_changed();
        loop {
            self.mind_sleep();
            timer.set(self.timers.first().map(|(at, _)| mux.clock.at(*at)));
            traverse.set(self.traversal.next().map(|at| mux.clock.at(at)));
            tokio::select! {
                biased;
                Some(event) = seldom.next() => match event {
                    Rare::Stopped => return,
                    Rare::Changed => self.interfaces_changed(),
                },
                () = timer.rings() => self.timeout(),
                () = mux.woken.notify.notified() => self.woken(),
                () = traverse.rings() => self.traverse_time(),
                count = commands.recv_many(&mut asked, BATCH) => {
                    if count == 0 {
                        return; // nobody is left who could ask
                    }
                    asked.drain(..).for_each(|command| self.command(command));
                }
                count = datagrams.recv_many(&mut batch, BATCH) => {
                    if count == 0 {
                        return; // the mux is gone
                    }
                    batch.drain(..).for_each(|datagram| self.datagram(datagram));
                }
            }
        }
    }

    /// A machine that has slept may be anywhere, and NATs have forgotten it.
    fn mind_sleep(&mut self) {
        let (wall, now) = (self.clock.now(), self.mux.now());
        let (wall_before, before) = std::mem::replace(&mut self.looked, (wall, now));
        let counted = now.since(before);
        let uncounted = wall.duration_since(wall_before).unwrap_or_default().saturating_sub(counted);
        let overslept = self.timers.first().map_or(Duration::ZERO, |(due, _)| now.since(*due));
        if uncounted >= SLEPT || overslept >= SLEPT {
            debug!(?uncounted, ?overslept, "awake again");
            self.doubt_network();
        }
    }

    /// The node may be on another network: it is surveyed anew, and every route of every peer is asked at once.
    fn doubt_network(&mut self) {
        self.network_changed();
        for alias in self.peers.keys().copied().collect::<Vec<_>>() {
            self.with(alias, AgentPeer::network_changed);
        }
    }

    fn timeout(&mut self) {
        let now = self.mux.now();
        while let Some(&(at, alias)) = self.timers.first()
            && at <= now
        {
            self.timers.pop_first();
            self.with(alias, |peer, now| peer.sample(now));
        }
    }

    fn woken(&mut self) {
        for alias in self.mux.woken.take() {
            self.with(alias, |peer, now| peer.sample(now));
        }
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Up(up) => self.up(*up),
            Command::Down { alias } => {
                if let Some(peer) = self.peers.remove(&alias) {
                    self.timers.remove(&(peer.timer, alias));
                    self.end_traversal(alias, &peer.track.vias());
                }
            }
            Command::Theirs { alias, report } => self.traverse_link(alias, |link| nat::Input::Theirs { link, report }),
            Command::Candidates { alias, addrs } => {
                self.traverse_link(alias, |link| nat::Input::Candidates { link, addrs });
            }
            Command::Signal { alias, signal } => self.traverse_link(alias, |link| nat::Input::Signal { link, signal }),
            Command::Servers { source, addrs } => self.set_servers(source, addrs),
            Command::External(ip) => self.traverse(nat::Input::External(ip)),
            Command::SeenElsewhere(ip) => self.seen_elsewhere(ip),
            Command::Explain { alias, reply } => {
                let link = self.traversal.link(alias);
                let _ = reply.send(link.and_then(|link| self.traversal.machine.explain(link)));
            }
            Command::Nat { reply } => {
                let machine = &self.traversal.machine;
                let (report, spent) = (machine.report().clone(), machine.counters());
                let _ = reply.send(NatStatus { report, spent, awaited: machine.awaits() });
            }
            Command::AddRoute { track, via } => self.add_route(&track, via),
            Command::Leave { alias, via, for_good } => {
                let mux = Arc::clone(&self.mux);
                self.with(alias, |peer, now| peer.leave(&mux, via, for_good, now));
            }
            Command::KeepAlive { alias, every } => self.with(alias, |peer, now| peer.keep_alive(Some(every), now)),
            Command::Report { alias, reply } => {
                let report = self.peers.get(&alias).map(|peer| peer.report(self.mux.now())).unwrap_or_default();
                let _ = reply.send(report); // whoever asked may have given up
            }
            Command::Ping { alias, reply } => {
                let mux = Arc::clone(&self.mux);
                self.with(alias, |peer, now| peer.ping(&mux, reply, now));
            }
        }
    }

    fn up(&mut self, up: Up) {
        let alias = up.track.alias();
        let seed = self.rng.bytes();
        let now = self.mux.now();
        let rtt = up.rtt;
        let peer = Box::new(AgentPeer::new(up, &seed, now));
        self.mux.routes.learn_probe_key(peer.key.id, &peer.track);
        for via in peer.track.heard_vias() {
            self.mux.routes.learn_route(via, &peer.track);
        }
        self.peers.insert(alias, peer);
        let mut unheard = Vec::new();
        let every = self.traversal.keep_alive();
        self.with(alias, |peer, now| {
            unheard = peer.begin(rtt, now);
            if peer.told.is_some() {
                peer.keep_alive(every, now);
            }
        });
        self.begin_traversal(alias, unheard);
    }

    fn add_route(&mut self, track: &Arc<Track>, via: Via) {
        let alias = track.alias();
        if self.peers.contains_key(&alias) {
            self.with(alias, |peer, now| {
                peer.add_route(via, true, now);
            });
            return;
        }
        // Not established yet: a dial's further candidate gets what was sent so far.
        let added = {
            let mut state = track.lock();
            if state.established || !state.dialled { None } else { state.add(via, false) }
        };
        if let Some(route) = added {
            self.mux.replay(track, route, (usize::MAX, self.mux.now().since_start()), false);
        }
    }

    fn datagram(&mut self, datagram: ControlDatagram) {
        let Some(id) = probe::peek_key_id(&datagram.bytes) else { return self.stun(datagram) };
        let track = self.mux.routes.read().by_probe_key(id).cloned();
        let Some(track) = track else { return };
        let mux = Arc::clone(&self.mux);
        self.with(track.alias(), |peer, now| peer.probe(&mux, &datagram, now));
    }

    /// Lets a peer's machine act, carries out what it decides, and sets its next timer.
    fn with(&mut self, alias: SocketAddr, act: impl FnOnce(&mut AgentPeer, Instant)) {
        let now = self.mux.now();
        let Some(peer) = self.peers.get_mut(&alias) else { return };
        act(peer, now);
        let mut changed = peer.carry_out(&self.mux, &self.clock);
        if peer.fell_asleep_too_early() {
            peer.sample(now);
            changed = peer.carry_out(&self.mux, &self.clock).or(changed);
        }
        self.timers.remove(&(peer.timer, alias));
        if let Some(at) = peer.next_timer(now) {
            peer.timer = at;
            self.timers.insert((at, alias));
        }
        peer.events.drain(..).for_each(|event| self.events.send(event));
        let silent_relays = std::mem::take(&mut peer.silent_relays);
        let (direct, pong, unused) = (peer.direct_anew(), peer.outside.pong.take(), std::mem::take(&mut peer.unused));
        if let Some((socket, remote)) = direct {
            self.traverse_link(alias, |link| nat::Input::Direct { link, socket, remote });
        } else if changed == Some(PathKind::Relay) {
            self.traverse_link(alias, |link| nat::Input::Relayed { link });
        }
        match pong {
            Some(Pong::Stray { via, txid }) => {
                if let Some(from) = via.peer_addr() {
                    self.traverse_link(alias, |link| nat::Input::Pong { link, socket: via.socket(), from, txid });
                }
            }
            Some(Pong::Observed { remote, addr }) => {
                self.traverse_link(alias, |link| nat::Input::Observed { link, remote, addr });
            }
            Some(Pong::Mapped { addr }) => self.traverse(nat::Input::Mapped { addr }),
            None => {}
        }
        unused.into_iter().for_each(|socket| self.unused(socket));
        silent_relays.into_iter().for_each(|relay| self.doubt_relay(relay));
    }

    /// A peer behind a relay has gone silent. Perhaps the relay has, and its own connection is too idle to notice; or our NAT
    /// has forgotten us, and the relay forwards nothing before it has learned of our new address by a probe.
    fn doubt_relay(&mut self, relay: SocketAddr) {
        let links: Vec<SocketAddr> =
            self.mux.routes.read().by_route(Via::Direct(relay)).iter().map(|track| track.alias()).collect();
        for alias in links {
            self.with(alias, AgentPeer::doubt);
        }
    }
}

/// What kind of route a way is.
fn kind_of(via: Via) -> RouteKind {
    // A relay itself is better reached over UDP than over TLS.
    if via.is_relay() || is_virtual(via.remote()) { RouteKind::Relay } else { RouteKind::Direct }
}

/// The machine's word for a route that came into being.
fn added(route: byway_proto::paths::RouteId, via: Via, trusted: bool, rtt: Option<Duration>) -> Input {
    Input::Add { route, kind: kind_of(via), trusted, rtt }
}
