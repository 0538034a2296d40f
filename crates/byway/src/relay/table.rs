//! The relays of a node: those that it was told to choose from, those that tickets and peers named, and the task that keeps
//! it registered at two.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak, atomic::AtomicBool},
    time::Duration,
};

use byway_proto::{
    Instant, PeerAddr, PeerId,
    addr::HostAddr,
    hello::MAX_TOLD_RELAYS,
    relay::homes::{Homes, MAX_RELAYS, Plan, Report},
    ticket,
};
use tokio::{
    sync::{Notify, mpsc},
    time,
};

use super::{client, links::Links, tls::ClientTls};
use crate::{
    config::{Config, ConfigError},
    core::Core,
    dial::Notes,
    net::{track::Track, wss::is_virtual},
    status::RelayStatus,
    switch::Command as SwitchCommand,
};

/// Relays that a node is connected to at once: its own, those being measured, and those that tickets and peers named.
const MAX_CLIENTS: usize = 16;

/// Relays beyond which none is connected to for a second route's sake: the rest is for dials.
const MAX_SPARE: usize = 12;

/// Requests to one relay's task that may wait.
const COMMANDS: usize = 64;

/// The relays of a node.
#[derive(Debug)]
pub(crate) struct Relays {
    pub(super) tls: ClientTls,
    /// The last relay was reached over TLS alone: others may be sooner if TLS is begun at once.
    pub(super) is_udp_blocked: AtomicBool,
    clients: Mutex<BTreeMap<PeerId, Entry>>,
    choice: Mutex<Choice>,
    /// Links whose relays are to be looked at; at most one entry a link.
    dirty: Mutex<BTreeSet<PeerId>>,
    changed: Notify,
}

/// The relays to choose from.
#[derive(Debug, Default)]
struct Choice {
    configured: Vec<PeerAddr>,
    homes: Homes,
}

#[derive(Debug, Clone)]
struct Entry {
    commands: mpsc::Sender<Command>,
    shared: Arc<Shared>,
}

/// What a relay's task shares with the others.
#[derive(Debug, Default)]
pub(super) struct Shared {
    state: Mutex<State>,
    /// Told when the task is to look at its orders.
    pub(super) poked: Notify,
    /// Told when the node may be elsewhere, so that what failed is worth another try.
    pub(super) elsewhere: Notify,
}

/// What a relay's task tells of itself, and is told.
#[derive(Debug, Default)]
pub(super) struct State {
    /// To register, and to stay registered.
    pub(super) home: bool,
    /// To measure the way there once.
    pub(super) measure: bool,
    /// Whoever named it may name loopback addresses: the user did, or a ticket.
    pub(super) loopback: bool,
    /// Where the user says now that it is; taken at the next attempt.
    pub(super) addrs: Vec<HostAddr>,
    pub(super) addr: Option<SocketAddr>,
    pub(super) observed: Option<SocketAddr>,
    pub(super) registered: bool,
    /// It does not answer at present, or is about to stop.
    pub(super) failing: bool,
    pub(super) words: String,
    pub(super) alias: Option<SocketAddr>,
    /// The connections to peers that want to go by it.
    pub(super) users: BTreeSet<SocketAddr>,
}

/// A peer that is to be reached through a relay, for one connection.
#[derive(Debug)]
pub(crate) struct Wanted {
    pub(crate) peer: PeerId,
    pub(crate) track: Weak<Track>,
    pub(crate) notes: Arc<Notes>,
}

/// What a relay's task is asked.
pub(super) enum Command {
    /// Reach a peer through this relay, which may be found at these addresses too.
    Open { wanted: Wanted, addrs: Vec<HostAddr> },
    /// The connection with this alias is over, or goes by other relays.
    Release { alias: SocketAddr },
}

impl Shared {
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Relays {
    pub(crate) fn new(config: &Config) -> Result<Self, rustls::Error> {
        Ok(Relays {
            tls: ClientTls::new(config)?,
            is_udp_blocked: AtomicBool::new(false),
            clients: Mutex::default(),
            choice: Mutex::default(),
            dirty: Mutex::default(),
            changed: Notify::new(),
        })
    }

    /// Replaces the relays to choose from.
    pub(crate) fn set(&self, relays: &[PeerAddr], now: Instant) {
        let mut choice = self.choice();
        let before = std::mem::replace(&mut choice.configured, relays.to_vec());
        choice.homes.set(relays.iter().map(|relay| relay.id), now);
        drop(choice);
        let clients = self.clients();
        for relay in relays.iter().filter(|relay| !before.contains(relay)) {
            if let Some(entry) = clients.get(&relay.id) {
                entry.shared.lock().addrs.clone_from(&relay.addrs);
                entry.shared.elsewhere.notify_one();
            }
        }
        self.changed.notify_one();
    }

    /// Adds a relay to choose from; nothing if it is on the list already.
    pub(crate) fn add(&self, relay: &PeerAddr, now: Instant) -> Result<(), ConfigError> {
        let mut relays = self.choice().configured.clone();
        if relays.iter().any(|known| known.id == relay.id) {
            return Ok(());
        }
        if relays.len() >= MAX_RELAYS {
            return Err(ConfigError::TooManyRelays(relays.len() + 1));
        }
        relays.push(relay.clone());
        self.set(&relays, now);
        Ok(())
    }

    /// Takes in what a relay's task found out.
    pub(super) fn note(&self, core: &Core, relay: PeerId, report: Report) {
        self.choice().homes.note(relay, report, core.mux.now());
        self.changed.notify_one();
    }

    /// The node may be elsewhere now.
    pub(crate) fn network_changed(&self, now: Instant) {
        self.choice().homes.network_changed(now);
        self.clients().values().for_each(|entry| entry.shared.elsewhere.notify_one());
        self.changed.notify_one();
    }

    /// A link has come up, or its peer has told its relays.
    pub(crate) fn review(&self, peer: PeerId) {
        self.dirty().insert(peer);
        self.changed.notify_one();
    }

    /// Asks for a way to a peer through `relay`; the agent is told of it once there is one.
    pub(crate) fn open(&self, core: &Arc<Core>, relay: &PeerAddr, wanted: Wanted) {
        self.open_within(core, relay, wanted, (MAX_CLIENTS, true));
    }

    /// The same at a relay that a connected peer has told, for a second way to it.
    pub(super) fn open_spare(&self, core: &Arc<Core>, relay: &PeerAddr, wanted: Wanted, loopback: bool) {
        self.open_within(core, relay, wanted, (MAX_SPARE, loopback));
    }

    fn open_within(&self, core: &Arc<Core>, relay: &PeerAddr, wanted: Wanted, limits: (usize, bool)) {
        let notes = Arc::clone(&wanted.notes);
        let mut clients = self.clients(); // held until the request is queued, so that the task does not go before
        let open = Command::Open { wanted, addrs: relay.addrs.clone() };
        match Self::client(&mut clients, core, relay, limits) {
            Some(client) if client.commands.try_send(open).is_ok() => {}
            Some(_) => notes.add(format!("relay {:?} is busy with other dials", relay.id)),
            None => notes.add(format!("relay {:?} is one more than the {} that a node uses", relay.id, limits.0)),
        }
    }

    /// Gives up a connection's allocations.
    pub(crate) fn release(&self, alias: SocketAddr) {
        for entry in self.clients().values() {
            // A full queue keeps the allocation until the relay forgets it as idle.
            let _ = entry.commands.try_send(Command::Release { alias });
        }
    }

    /// Gives up a connection's allocation at one relay.
    pub(super) fn release_at(&self, relay: PeerId, alias: SocketAddr) {
        if let Some(entry) = self.clients().get(&relay) {
            let _ = entry.commands.try_send(Command::Release { alias }); // as above
        }
    }

    /// Where this node's datagrams come from, as its relays see it.
    pub(crate) fn observed(&self) -> Vec<SocketAddr> {
        self.clients()
            .values()
            .filter_map(|entry| entry.shared.lock().observed)
            .filter(|addr| !is_virtual(*addr))
            .collect()
    }

    /// Where peers find this node, for a ticket: the relays where it is registered, and the one that would take a place.
    pub(crate) fn promised(&self) -> Vec<PeerAddr> {
        let choice = self.choice();
        choice.addrs(choice.homes.by_promise(), ticket::MAX_RELAYS)
    }

    /// Where this node is registered now, the nearest first.
    pub(crate) fn registered(&self) -> Vec<PeerAddr> {
        let choice = self.choice();
        choice.addrs(choice.homes.registered(), MAX_TOLD_RELAYS)
    }

    /// Whether it is known that nobody can be reached by this relay now.
    pub(super) fn is_failing(&self, relay: PeerId) -> bool {
        self.clients().get(&relay).is_some_and(|entry| entry.shared.lock().failing)
    }

    /// The relays that a connection uses or wants to use, with their addresses if they are known.
    pub(super) fn of_track(&self, track: &Track) -> Vec<(PeerId, Option<SocketAddr>)> {
        let (alias, vias) = (track.alias(), track.vias());
        let clients = self.clients();
        let uses = |(id, entry): (&PeerId, &Entry)| {
            let state = entry.shared.lock();
            let by = vias.iter().any(|via| via.is_relay() && Some(via.remote()) == state.addr);
            (by || state.users.contains(&alias)).then_some((*id, state.addr))
        };
        clients.iter().filter_map(uses).collect()
    }

    pub(crate) async fn status(&self, core: &Core) -> Vec<RelayStatus> {
        let mut all: Vec<(RelayStatus, Option<SocketAddr>)> = self
            .clients()
            .iter()
            .map(|(id, entry)| {
                let state = entry.shared.lock();
                let over_tls = state.addr.is_some_and(is_virtual);
                let words = match over_tls && state.registered {
                    true => "registered over TLS, for UDP gets no answer there".into(),
                    false => state.words.clone(),
                };
                let status = RelayStatus {
                    id: *id,
                    addr: state.addr.map(|addr| core.mux.sockets.wss().behind(addr)),
                    home: state.home,
                    over_tls,
                    registered: state.registered,
                    observed: state.observed.filter(|_| !over_tls),
                    state: words,
                    rtt: None,
                };
                (status, state.alias)
            })
            .collect();
        for (status, alias) in &mut all {
            if let Some(alias) = alias {
                status.rtt = core.agent.report(*alias).await.iter().find(|r| r.selected).and_then(|r| r.rtt);
            }
        }
        all.into_iter().map(|(status, _)| status).collect()
    }

    /// Takes a relay's task off the list, so that the next request starts another one; `false` if it is needed again.
    pub(super) fn remove(&self, relay: PeerId, commands: &mpsc::Receiver<Command>) -> bool {
        let mut clients = self.clients();
        let is_needed = !commands.is_empty()
            || clients.get(&relay).is_some_and(|entry| {
                let state = entry.shared.lock();
                state.home || state.measure
            });
        if !is_needed {
            clients.remove(&relay);
        }
        !is_needed
    }

    /// The relay's task, started if there is none; `None` if there are `most` already.
    fn client<'a>(
        clients: &'a mut BTreeMap<PeerId, Entry>,
        core: &Arc<Core>,
        relay: &PeerAddr,
        (most, loopback): (usize, bool),
    ) -> Option<&'a Entry> {
        let is_known = clients.get(&relay.id).is_some_and(|entry| !entry.commands.is_closed());
        if !is_known {
            if clients.len() >= most && !clients.contains_key(&relay.id) {
                return None;
            }
            let (commands, receiver) = mpsc::channel(COMMANDS);
            let shared = Arc::new(Shared::default());
            {
                let mut state = shared.lock();
                (state.words, state.loopback) = ("connecting".into(), loopback); // before the task looks at its addresses
            }
            clients.insert(relay.id, Entry { commands, shared: Arc::clone(&shared) });
            core.tasks.spawn(client::run(Arc::clone(core), relay.clone(), shared, receiver));
        }
        clients.get(&relay.id).inspect(|entry| entry.shared.lock().loopback |= loopback)
    }

    /// Decides anew, at once; when it may decide otherwise.
    pub(crate) fn plan(&self, core: &Arc<Core>) -> Option<Instant> {
        let now = core.mux.now();
        let (plan, next) = {
            let homes = &mut self.choice().homes;
            (homes.plan(now), homes.poll_timeout(now).map(|(at, _)| at))
        };
        self.carry_out(core, &plan);
        next
    }

    /// Tells the tasks what the plan wants of them.
    fn carry_out(&self, core: &Arc<Core>, plan: &Plan) {
        let configured = self.choice().configured.clone();
        let mut full = Vec::new();
        {
            let mut clients = self.clients();
            for relay in configured {
                let (home, measure) = (plan.homes.contains(&relay.id), plan.measure.contains(&relay.id));
                if !home && !measure && !clients.contains_key(&relay.id) {
                    continue;
                }
                match Self::client(&mut clients, core, &relay, (MAX_CLIENTS, true)) {
                    Some(entry) => entry.shared.order(home, measure),
                    None => full.push(relay.id),
                }
            }
            let others = clients.iter().filter(|(id, _)| !plan.homes.contains(id));
            others.for_each(|(_, entry)| entry.shared.order(false, false)); // of a relay that is no longer on the list
        }
        full.into_iter().for_each(|relay| self.note(core, relay, Report::Failed));
    }

    fn clients(&self) -> MutexGuard<'_, BTreeMap<PeerId, Entry>> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn choice(&self) -> MutexGuard<'_, Choice> {
        self.choice.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn dirty(&self) -> MutexGuard<'_, BTreeSet<PeerId>> {
        self.dirty.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    /// Tells the task whether its relay is a home, and perhaps to measure.
    fn order(&self, home: bool, measure: bool) {
        let mut state = self.lock();
        let news = state.home != home || measure && !state.measure;
        state.home = home;
        state.measure |= measure;
        drop(state);
        if news {
            self.poked.notify_one();
        }
    }
}

impl Choice {
    fn addrs(&self, ids: Vec<PeerId>, most: usize) -> Vec<PeerAddr> {
        let addr = |id: PeerId| self.configured.iter().find(|relay| relay.id == id).cloned();
        ids.into_iter().filter_map(addr).take(most).collect()
    }
}

/// Keeps the node registered at two relays, and each link on two, until the node is closed.
pub(crate) async fn run(core: Arc<Core>) {
    let relays = &core.relays;
    let mut told = Vec::new();
    let mut links = Links::default();
    let mut stopped = pin!(core.tasks.stopped());
    loop {
        let next = relays.plan(&core);
        let registered = relays.registered();
        let mut due = std::mem::take(&mut *relays.dirty());
        if told != registered {
            told = registered;
            // Without any there is nothing to tell: peers find the old ones dead by themselves, or back. Once there is one again,
            // it is news to those who came meanwhile.
            if !told.is_empty() {
                core.switch.send(SwitchCommand::TellRelays).await;
                due.extend(core.switch.links().iter().map(|link| link.peer));
            }
        }
        let again = links.review(&core, due).await;
        let wake = next.into_iter().chain(again).min().map(|at| core.mux.clock.at(at.max(core.mux.now() + TURN)));
        tokio::select! {
            biased;
            () = &mut stopped => return,
            () = time::sleep_until(wake.unwrap_or_else(time::Instant::now)), if wake.is_some() => {}
            () = relays.changed.notified() => {}
        }
    }
}

/// The least pause between two looks that nothing called for.
const TURN: Duration = Duration::from_millis(1);
