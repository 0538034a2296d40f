//! This node as a client of relays: one task a relay registers, opens allocations, and registers anew when the relay
//! or the way to it was lost.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use byway_proto::{
    PeerAddr, PeerId,
    hello::{Control, OpenFailure},
    paths::PathsConfig,
    wire::relay_data::AllocId,
};
use tokio::{
    sync::mpsc,
    time::{self, Instant},
};
use tracing::{debug, info};

use crate::{
    agent::Command as AgentCommand,
    core::Core,
    dial::{self, Notes},
    event::Event,
    gone::Gone,
    link::{Link, readers, writer},
    net::{routes::Via, track::Track},
    status::RelayStatus,
    switch::{Command as SwitchCommand, FromLink},
};

mod connect;

/// Relays that a node uses at once, its own and those that tickets named.
pub(crate) const MAX_CLIENTS: usize = 8;

/// Peers that a node reaches through one relay.
const MAX_ALLOCATIONS: usize = 256;

/// Requests to one relay's task that may wait.
const COMMANDS: usize = 64;

/// Control messages of one relay that may wait.
const CONTROL: usize = 64;

/// How often a registered node pings its relay, which is how it learns within seconds that the relay is gone.
const PING: Duration = Duration::from_secs(2);

/// Pauses between attempts to register: the first, and the longest, so that a relay that was away for long is found
/// again within seconds. An attempt is one handshake, which backs off by itself.
const RETRY: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(2));

/// How often an allocation is opened again whose peer was not registered.
const REOPEN: Duration = Duration::from_millis(500);

/// How long a relay that only a ticket named stays connected without an allocation.
const IDLE: Duration = Duration::from_secs(60);

/// How long a relay may take to answer a registration.
const REGISTER_TIMEOUT: Duration = Duration::from_secs(5);

/// The route machine's settings for a relay's own connection.
pub(crate) fn paths() -> PathsConfig {
    let mut config = PathsConfig::default();
    config.warm = PING;
    config
}

/// The relays of a node.
#[derive(Debug, Default)]
pub(crate) struct Relays {
    clients: Mutex<BTreeMap<PeerId, Entry>>,
}

#[derive(Debug)]
struct Entry {
    commands: mpsc::Sender<Command>,
    state: Arc<Mutex<State>>,
}

/// What a relay's task tells of itself.
#[derive(Debug, Default)]
struct State {
    addr: Option<SocketAddr>,
    observed: Option<SocketAddr>,
    registered: bool,
    words: String,
    alias: Option<SocketAddr>,
}

/// A peer that is to be reached through a relay, for one connection.
#[derive(Debug)]
pub(crate) struct Wanted {
    pub(crate) peer: PeerId,
    pub(crate) track: Weak<Track>,
    pub(crate) notes: Arc<Notes>,
}

enum Command {
    /// Reach a peer through this relay.
    Open(Wanted),
    /// The connection with this alias is over.
    Release { alias: SocketAddr },
}

impl Relays {
    fn clients(&self) -> MutexGuard<'_, BTreeMap<PeerId, Entry>> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Registers at a relay, and stays registered.
    pub(crate) fn add_home(&self, core: &Arc<Core>, relay: &PeerAddr) {
        Self::client(&mut self.clients(), core, relay, true);
    }

    /// Asks for a way to a peer through `relay`; the agent is told of it once there is one.
    pub(crate) fn open(&self, core: &Arc<Core>, relay: &PeerAddr, wanted: Wanted) {
        let notes = Arc::clone(&wanted.notes);
        let mut clients = self.clients(); // held until the request is queued, so that the task does not go before
        match Self::client(&mut clients, core, relay, false) {
            Some(client) if client.try_send(Command::Open(wanted)).is_ok() => {}
            Some(_) => notes.add(format!("relay {:?} is busy with other dials", relay.id)),
            None => notes.add(format!("relay {:?} is one more than the {MAX_CLIENTS} that a node uses", relay.id)),
        }
    }

    /// Gives up a connection's allocations.
    pub(crate) fn release(&self, alias: SocketAddr) {
        for entry in self.clients().values() {
            // A full queue keeps the allocation until the relay forgets it as idle.
            let _ = entry.commands.try_send(Command::Release { alias });
        }
    }

    /// Where this node's datagrams come from, as its relays see it.
    pub(crate) fn observed(&self) -> Vec<SocketAddr> {
        self.clients().values().filter_map(|entry| lock(&entry.state).observed).collect()
    }

    pub(crate) async fn status(&self, core: &Core) -> Vec<RelayStatus> {
        let mut all: Vec<(RelayStatus, Option<SocketAddr>)> = self
            .clients()
            .iter()
            .map(|(id, entry)| {
                let state = lock(&entry.state);
                let (addr, observed, registered) = (state.addr, state.observed, state.registered);
                let words = state.words.clone();
                (RelayStatus { id: *id, addr, registered, observed, state: words, rtt: None }, state.alias)
            })
            .collect();
        for (status, alias) in &mut all {
            if let Some(alias) = alias {
                status.rtt = core.agent.report(*alias).await.iter().find(|r| r.selected).and_then(|r| r.rtt);
            }
        }
        all.into_iter().map(|(status, _)| status).collect()
    }

    fn client(
        clients: &mut BTreeMap<PeerId, Entry>,
        core: &Arc<Core>,
        relay: &PeerAddr,
        home: bool,
    ) -> Option<mpsc::Sender<Command>> {
        if let Some(entry) = clients.get(&relay.id).filter(|entry| !entry.commands.is_closed()) {
            return Some(entry.commands.clone());
        }
        if clients.len() >= MAX_CLIENTS && !clients.contains_key(&relay.id) {
            return None;
        }
        let (commands, receiver) = mpsc::channel(COMMANDS);
        let state = Arc::new(Mutex::new(State { words: "connecting".into(), ..State::default() }));
        clients.insert(relay.id, Entry { commands: commands.clone(), state: Arc::clone(&state) });
        let client = Client {
            core: Arc::clone(core),
            relay: relay.clone(),
            home,
            state,
            commands: receiver,
            allocations: BTreeMap::new(),
            idle_since: None,
        };
        core.tasks.spawn(client.run());
        Some(commands)
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A way to one peer through the relay.
struct Allocation {
    wanted: Wanted,
    /// To be opened again at this time.
    reopen: Option<Instant>,
}

/// One relay's task.
struct Client {
    core: Arc<Core>,
    relay: PeerAddr,
    home: bool,
    state: Arc<Mutex<State>>,
    commands: mpsc::Receiver<Command>,
    allocations: BTreeMap<AllocId, Allocation>,
    idle_since: Option<Instant>,
}

impl Client {
    async fn run(mut self) {
        let tasks = self.core.tasks.clone();
        let mut pause = RETRY.0;
        loop {
            let outcome = tokio::select! {
                biased;
                () = tasks.stopped() => return,
                outcome = self.session(&mut pause) => outcome,
            };
            let Err(why) = outcome else {
                if self.remove() {
                    return;
                }
                continue;
            };
            info!(relay = ?self.relay.id, "not registered at the relay");
            debug!(relay = ?self.relay.id, %why, "why not"); // it may tell the relay's name
            self.core.events.send(Event::RelayDown { relay: self.relay.id, why: why.clone() });
            for allocation in self.allocations.values() {
                allocation.wanted.notes.add(format!("relay {:?}: {why}", self.relay.id));
            }
            let state = State { words: format!("{why}; trying again"), ..State::default() };
            *lock(&self.state) = state;
            let wake = Instant::now() + pause;
            pause = (pause * 2).min(RETRY.1);
            let given_up =
                tokio::select! { biased; () = tasks.stopped() => return, given_up = self.wait(wake) => given_up };
            if given_up && self.remove() {
                return;
            }
        }
    }

    /// Collects requests until `wake`; `true` if nobody needs the relay any more.
    async fn wait(&mut self, wake: Instant) -> bool {
        loop {
            self.forget_dead();
            if !self.home && self.allocations.is_empty() && self.commands.is_empty() {
                return true;
            }
            tokio::select! {
                biased;
                () = time::sleep_until(wake) => return false,
                Some(command) = self.commands.recv() => self.note(command),
            }
        }
    }

    /// Takes this task off the list, so that the next request starts another one; `false` if a request came meanwhile.
    fn remove(&mut self) -> bool {
        let mut clients = self.core.relays.clients();
        let idle = self.commands.is_empty();
        if idle {
            clients.remove(&self.relay.id);
        }
        idle
    }

    /// Connects, registers, and serves requests until the connection ends; `Ok` if the relay is no longer needed.
    async fn session(&mut self, pause: &mut Duration) -> Result<(), String> {
        let (established, mut addr) = self.connect().await?;
        let link = Arc::clone(&established.link);
        let (control, mut from_link) = mpsc::channel(CONTROL);
        self.core.tasks.spawn(writer::run(link.connection.clone(), Arc::clone(&link.outbox)));
        let scope = self.core.scope(control);
        self.core.tasks.spawn(readers::run(Arc::clone(&link), established.recv, established.codec, scope));
        link.control(&Control::Register);
        let served = self.register(&link, &mut addr, &mut from_link).await;
        if served.is_ok() {
            *pause = RETRY.0;
        }
        let outcome = match served {
            Ok(()) => self.serve(&link, &mut addr, &mut from_link).await,
            Err(why) => Err(why),
        };
        self.core.mux.routes.remove_relay(addr);
        link.close(Gone::Closed);
        link.outbox.close();
        self.core.retire(&link.track);
        outcome
    }

    async fn register(
        &mut self,
        link: &Arc<Link>,
        addr: &mut SocketAddr,
        from_link: &mut mpsc::Receiver<FromLink>,
    ) -> Result<(), String> {
        let deadline = Instant::now() + REGISTER_TIMEOUT;
        loop {
            tokio::select! {
                biased;
                reason = link.ended() => return Err(reason.to_string()),
                () = time::sleep_until(deadline) => return Err("it did not answer the registration".into()),
                Some((_, message)) = from_link.recv() => {
                    if let Control::Registered { observed, stun_port, .. } = message {
                        *addr = seen_from(link, *addr, observed);
                        self.registered(link, *addr, observed);
                        self.settle(link, *addr).await;
                        self.tell_servers(*addr, stun_port).await;
                        return Ok(());
                    }
                }
            }
        }
    }

    fn registered(&self, link: &Link, addr: SocketAddr, observed: SocketAddr) {
        let (addr, observed, alias) = (Some(addr), Some(observed), Some(link.track.alias()));
        *lock(&self.state) = State { addr, observed, registered: true, words: "registered".into(), alias };
        info!(relay = ?self.relay.id, "registered at the relay");
        self.core.events.send(Event::RelayUp { relay: self.relay.id });
    }

    /// Opens all allocations at `addr`, and tells the peers where the relay sees this node: they may reach it there.
    async fn settle(&mut self, link: &Arc<Link>, addr: SocketAddr) {
        self.core.mux.routes.add_relay(addr);
        for id in self.allocations.keys().copied().collect::<Vec<_>>() {
            self.open(link, addr, id).await;
        }
        self.core.switch.send(SwitchCommand::Announce).await;
    }

    /// The relay sees this node at another address now, perhaps of the other family.
    async fn moved(&mut self, link: &Arc<Link>, addr: &mut SocketAddr, observed: SocketAddr) {
        let old = std::mem::replace(addr, seen_from(link, *addr, observed));
        lock(&self.state).addr = Some(*addr);
        lock(&self.state).observed = Some(observed);
        if old == *addr {
            return self.core.switch.send(SwitchCommand::Announce).await;
        }
        self.core.mux.routes.remove_relay(old);
        self.settle(link, *addr).await;
    }

    /// The relay tells a survey how this node's NATs behave.
    async fn tell_servers(&self, addr: SocketAddr, stun_port: Option<u16>) {
        if self.core.config.relay_only {
            return;
        }
        let second = stun_port.map(|port| SocketAddr::new(addr.ip(), port));
        for server in [Some(addr), second].into_iter().flatten() {
            self.core.agent.send(AgentCommand::Server(server)).await;
        }
    }

    async fn serve(
        &mut self,
        link: &Arc<Link>,
        addr: &mut SocketAddr,
        from_link: &mut mpsc::Receiver<FromLink>,
    ) -> Result<(), String> {
        loop {
            self.forget_dead();
            let needed = self.home || !self.allocations.is_empty();
            self.idle_since = if needed { None } else { self.idle_since.or(Some(Instant::now())) };
            let idle_end = self.idle_since.map(|since| since + IDLE);
            let reopen = self.allocations.values().filter_map(|allocation| allocation.reopen).min();
            tokio::select! {
                biased;
                reason = link.ended() => return Err(reason.to_string()),
                () = time::sleep_until(idle_end.unwrap_or_else(Instant::now)), if idle_end.is_some() => return Ok(()),
                () = time::sleep_until(reopen.unwrap_or_else(Instant::now)), if reopen.is_some() => {
                    self.reopen(link, *addr).await;
                }
                Some((_, message)) = from_link.recv() => match message {
                    Control::Registered { observed, .. } => self.moved(link, addr, observed).await,
                    message => self.control(message).await,
                },
                Some(command) = self.commands.recv() => {
                    let before: Vec<AllocId> = self.allocations.keys().copied().collect();
                    self.note(command);
                    let new: Vec<AllocId> =
                        self.allocations.keys().filter(|id| !before.contains(id)).copied().collect();
                    for id in new {
                        self.open(link, *addr, id).await;
                    }
                }
            }
        }
    }

    fn note(&mut self, command: Command) {
        match command {
            Command::Open(wanted) if self.allocations.len() < MAX_ALLOCATIONS => {
                self.allocations.insert(AllocId(self.core.draw()), Allocation { wanted, reopen: None });
            }
            Command::Open(wanted) => {
                wanted.notes.add(format!("relay {:?} carries {MAX_ALLOCATIONS} connections already", self.relay.id));
            }
            Command::Release { alias } => {
                let is_over = |a: &Allocation| a.wanted.track.upgrade().is_none_or(|track| track.alias() == alias);
                self.allocations.retain(|_, allocation| !is_over(allocation));
            }
        }
    }

    fn forget_dead(&mut self) {
        self.allocations.retain(|_, allocation| allocation.wanted.track.strong_count() > 0);
    }

    /// Opens an allocation; data may follow at once, for the relay holds it until the message is there.
    async fn open(&mut self, link: &Link, addr: SocketAddr, id: AllocId) {
        let Some(allocation) = self.allocations.get_mut(&id) else { return };
        allocation.reopen = None;
        link.control(&Control::Open { alloc: id, peer: allocation.wanted.peer });
        if let Some(track) = allocation.wanted.track.upgrade() {
            dial::add_route(&self.core, &track, Via::Relay(addr, id)).await;
        }
    }

    async fn reopen(&mut self, link: &Link, addr: SocketAddr) {
        let now = Instant::now();
        let due: Vec<AllocId> =
            self.allocations.iter().filter(|(_, a)| a.reopen.is_some_and(|at| at <= now)).map(|(id, _)| *id).collect();
        for id in due {
            self.open(link, addr, id).await;
        }
    }

    async fn control(&mut self, message: Control) {
        match message {
            Control::OpenFailed { alloc, reason, .. } => {
                let Some(allocation) = self.allocations.get_mut(&alloc) else { return };
                allocation.wanted.notes.add(format!("relay {:?}: {reason}", self.relay.id));
                // The peer may be about to register; other reasons do not pass.
                if matches!(reason, OpenFailure::NotRegistered | OpenFailure::Idle) {
                    allocation.reopen = Some(Instant::now() + REOPEN);
                }
            }
            Control::Opened { alloc, peer, .. } => self.opened(alloc, peer).await,
            Control::PeerAnew { peer, instance, .. } => {
                self.core.switch.send(SwitchCommand::Anew { peer, instance }).await;
            }
            Control::Drain { deadline } => info!(relay = ?self.relay.id, ?deadline, "the relay will stop"),
            other => debug!(relay = ?self.relay.id, ?other, "control message is not for a client"),
        }
    }

    /// A peer opened a way to this node; if they are connected already, it is one more.
    async fn opened(&self, id: AllocId, peer: PeerId) {
        let (Some(link), Some(addr)) = (self.core.switch.link(peer), lock(&self.state).addr) else { return };
        let (track, via) = (Arc::clone(&link.track), Via::Relay(addr, id));
        self.core.agent.send(AgentCommand::AddRoute { track, via }).await;
    }
}

/// Where to send relayed data: a relay forwards only what comes from where it sees this node, in the family of its choice.
fn seen_from(link: &Link, addr: SocketAddr, observed: SocketAddr) -> SocketAddr {
    let fits = |addr: &SocketAddr| addr.is_ipv4() == observed.is_ipv4();
    let routes = link.track.lock();
    [addr].into_iter().chain(routes.routes().map(|(_, slot)| slot.via.remote())).find(fits).unwrap_or(addr)
}
