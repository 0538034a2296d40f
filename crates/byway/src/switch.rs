//! The one task that knows which peers are connected: it carries out what the machine of `byway_proto::switch` decides,
//! and tells the protocols who comes and goes.

mod command;
mod control;
mod deeds;
mod dials;
pub(crate) mod exchange;
mod filter;
mod keeper;
mod reason;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use byway_proto::{
    Instant, PeerId, Rng,
    book::{Book, Contact, MAX_OWN},
    gate::{ACCEPT_QUEUE, HANDSHAKE_TOTAL},
    hello::Control,
    switch::{By, DialFailure, DialId, FILTER_DEADLINE, Input, KnockId, LinkId, Switch, Up},
};
use tokio::sync::{mpsc, oneshot};

pub(crate) use self::command::{Command, Failure, Knock};
use self::{
    dials::{Asker, Dials},
    keeper::Keeper,
};
pub use self::{
    filter::{Candidate, Filter, Origin, SourceFilter},
    keeper::AddPeerError,
};
use crate::{
    core::Core,
    dial::{DialError, Target},
    gone::Gone,
    link::{
        Link,
        establish::{Established, Introduced},
    },
    store::Store,
    wait::{Alarm, Seldom},
};

/// Requests that may wait; whoever sends the next one waits.
const COMMANDS: usize = 256;

/// Control messages of all peers that may wait.
const CONTROL: usize = 256;

/// Callers that may wait for one dial.
const MAX_WAITERS: usize = 64;

/// Control messages that are taken with the hello that they came with, without a way through the link's reader: a node says
/// three at most of its own accord.
const MAX_BEHIND: usize = 3;

/// A control message, and the link it came by.
pub(crate) type FromLink = (Arc<Link>, Control);

/// Reaches the switch from any task.
#[derive(Debug, Clone)]
pub(crate) struct SwitchRef {
    commands: mpsc::Sender<Command>,
    /// Links that wait to be taken in; full, the gate refuses further strangers.
    ups: mpsc::Sender<(Established, By)>,
    links: Arc<Mutex<BTreeMap<PeerId, Arc<Link>>>>,
    dials: Arc<Mutex<Dials>>,
    /// Counts what this node has told all its peers of itself.
    edition: Arc<AtomicU64>,
    /// Addresses at which this node met itself, at most [`MAX_OWN`]; none of them is dialled until the network changes.
    own: Arc<Mutex<BTreeSet<SocketAddr>>>,
}

/// The receiving ends of a [`SwitchRef`].
pub(crate) struct Inlets {
    commands: mpsc::Receiver<Command>,
    ups: mpsc::Receiver<(Established, By)>,
}

impl SwitchRef {
    pub(crate) fn new() -> (Self, Inlets) {
        let (commands, commands_in) = mpsc::channel(COMMANDS);
        let (ups, ups_in) = mpsc::channel(ACCEPT_QUEUE);
        (
            SwitchRef {
                commands,
                ups,
                links: Arc::default(),
                dials: Arc::default(),
                edition: Arc::default(),
                own: Arc::default(),
            },
            Inlets { commands: commands_in, ups: ups_in },
        )
    }

    /// Sends a request; lost if the node is closing.
    pub(crate) async fn send(&self, command: Command) {
        let _ = self.commands.send(command).await;
    }

    /// Sends a request and waits for the answer; `None` if the node is closing.
    pub(crate) async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Option<T> {
        let (reply, answer) = oneshot::channel();
        self.send(command(reply)).await;
        answer.await.ok()
    }

    pub(crate) async fn dial(&self, target: Target) -> Result<PeerId, DialError> {
        self.ask(|reply| Command::Dial { target, reply }).await.unwrap_or(Err(DialError::Closed))
    }

    /// Whether a dial whose peer has answered is still wanted.
    async fn goes_on(&self, dial: DialId) -> bool {
        if self.dials().goes_on(dial) {
            return true;
        }
        self.ask(|reply| Command::Handshaken { dial, reply }).await.unwrap_or(false)
    }

    pub(crate) async fn vet(&self, knock: Knock) -> Result<KnockId, Gone> {
        self.ask(|reply| Command::Vet { knock, reply }).await.unwrap_or(Err(Gone::Closed))
    }

    pub(crate) async fn up(&self, established: Established, by: By) {
        let _ = self.ups.send((established, by)).await; // only a closing node takes none
    }

    /// The number of what all peers were told last: a peer that was told that before it had a link was told all.
    pub(crate) fn edition(&self) -> u64 {
        self.edition.load(Ordering::Acquire)
    }

    /// Notes that all peers are about to be told something anew.
    pub(crate) fn next_edition(&self) {
        self.edition.fetch_add(1, Ordering::Release);
    }

    /// Notes an address that leads back to this node.
    pub(crate) fn add_own(&self, addr: SocketAddr) {
        let mut own = self.own();
        if own.len() < MAX_OWN {
            own.insert(addr);
        }
    }

    /// The addresses that lead back to this node, beside those that it knows itself by.
    pub(crate) fn own(&self) -> MutexGuard<'_, BTreeSet<SocketAddr>> {
        self.own.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many links wait to be taken in.
    pub(crate) fn waiting(&self) -> usize {
        self.ups.max_capacity() - self.ups.capacity()
    }

    /// The connected peers, in the order of their ids.
    pub(crate) fn links(&self) -> Vec<Arc<Link>> {
        self.table().values().cloned().collect()
    }

    pub(crate) fn link(&self, peer: PeerId) -> Option<Arc<Link>> {
        self.table().get(&peer).cloned()
    }

    fn dials(&self) -> MutexGuard<'_, Dials> {
        self.dials.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn table(&self) -> MutexGuard<'_, BTreeMap<PeerId, Arc<Link>>> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A dial, and who waits for it.
#[derive(Default)]
struct Waiting {
    dial: Option<DialId>,
    callers: Vec<Caller>,
}

/// Who waits for a dial, for two at most.
struct Caller {
    reply: oneshot::Sender<Result<PeerId, DialError>>,
    /// One has failed already.
    again: bool,
}

/// A stranger that waits for a word.
struct Door {
    knock: Knock,
    reply: oneshot::Sender<Result<KnockId, Gone>>,
}

/// What the switch begins with.
pub(crate) struct Setup {
    pub(crate) book: Book,
    pub(crate) seed: [u8; 32],
    pub(crate) store: Option<Store>,
}

/// The machine, and what belongs to its names.
struct Shell {
    core: Arc<Core>,
    machine: Switch,
    keeper: Keeper,
    /// What is told of the book is drawn from it.
    rng: Rng,
    control: mpsc::Sender<FromLink>,
    generation: u64,
    links: BTreeMap<LinkId, Arc<Link>>,
    /// The link that the machine is told of now.
    offered: Option<(LinkId, Established)>,
    /// What the link that is taken in now was told.
    introduced: Introduced,
    /// Why the link ended that the machine is told of now.
    ended: Option<Gone>,
    waiting: BTreeMap<PeerId, Waiting>,
    /// The dial that waits for its word now.
    going: Option<Asker>,
    doors: BTreeMap<KnockId, Door>,
    /// Strangers that are not refused and have no link yet, with the addresses that filters are told of them, and when they came:
    /// for a slot is held for none of them longer than for a handshake.
    coming: BTreeMap<KnockId, (SocketAddr, Instant)>,
    named: u64,
}

/// What the switch's task seldom sees.
#[derive(Clone, Copy)]
enum Rare {
    Stopped,
    /// Interfaces have come or gone.
    Changed,
    /// Peers see this node elsewhere.
    Observed,
}

/// Runs the switch until the node is closed.
pub(crate) async fn run(core: Arc<Core>, mut inlets: Inlets, setup: Setup) {
    let (control, mut from_links) = mpsc::channel(CONTROL);
    let mut shell = Shell::new(&core, setup, control);
    let mut seldom = Seldom::new();
    seldom.add(|| core.tasks.stopped(), Rare::Stopped);
    seldom.add(|| core.net.changed(), Rare::Changed);
    seldom.add(|| core.agent.observes(), Rare::Observed);
    let (mut timer, mut flush) = (Alarm::new(), Alarm::new());
    core.lan.renew().await; // what has changed since the LAN was joined
    shell.feed(Input::Timeout);
    loop {
        timer.set(shell.machine.poll_timeout().map(|(at, _)| core.mux.clock.at(at)));
        flush.set(shell.keeper.due());
        tokio::select! {
            biased;
            Some(event) = seldom.next() => match event {
                Rare::Stopped => break,
                Rare::Changed => {
                    core.relays.network_changed(core.mux.now());
                    core.switch.own().clear();
                    shell.announce();
                    core.lan.renew().await;
                }
                Rare::Observed => {
                    core.switch.next_edition();
                    core.switch.links().iter().for_each(|link| shell.tell_candidates(link));
                }
            },
            () = timer.rings() => {
                shell.set_clock();
                shell.feed(Input::Timeout);
            }
            () = flush.rings() => shell.keeper.flush(shell.machine.book_mut()),
            written = shell.keeper.written() => shell.keeper.settle(written, shell.machine.book_mut()),
            Some(command) = inlets.commands.recv() => shell.command(command),
            Some((established, by)) = inlets.ups.recv() => shell.up(established, by).await,
            Some((link, message)) = from_links.recv() => shell.control(&link, message).await,
        }
    }
    drop(seldom);
    shell.feed(Input::Stop);
    core.registry.close();
    shell.keeper.finish(shell.machine.book_mut()).await;
}

impl Shell {
    fn new(core: &Arc<Core>, setup: Setup, control: mpsc::Sender<FromLink>) -> Self {
        let mut limits = core.config.peers.clone();
        limits.filtered = core.config.filter.is_some();
        limits.discover |= core.config.peer_exchange;
        let wall = (core.config.clock.unix(), core.mux.now());
        Shell {
            machine: Switch::new(limits, core.id(), setup.book, &setup.seed, wall),
            keeper: Keeper::new(setup.store),
            rng: Rng::new(&setup.seed, "told"),
            core: Arc::clone(core),
            control,
            generation: 0,
            links: BTreeMap::new(),
            offered: None,
            introduced: Introduced::default(),
            ended: None,
            waiting: BTreeMap::new(),
            going: None,
            doors: BTreeMap::new(),
            coming: BTreeMap::new(),
            named: 0,
        }
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Dial { target, reply } => self.dial(target, reply),
            Command::Handshaken { dial, reply } => {
                self.going = Some(Asker { dial, reply });
                self.feed(Input::Answered { dial });
            }
            Command::DialFailed { dial, error } => self.dial_failed(dial, error),
            Command::Vet { knock, reply } => self.vet(knock, reply),
            Command::KnockOver(knock) => {
                self.coming.remove(&knock);
                self.feed(Input::KnockOver { knock });
            }
            Command::Filtered { knock, verdict } => self.feed(Input::Filtered { knock, verdict }),
            Command::Moved(link) => self.moved(&link),
            Command::Ended { link, reason } => self.ended(&link, reason),
            Command::Failed(failure) => self.failed(failure),
            Command::Announce => self.announce(),
            Command::TellRelays => {
                let relays = Control::Relays(self.core.relays.registered());
                self.core.switch.next_edition();
                for link in self.core.switch.links() {
                    link.control(&relays);
                }
            }
            Command::Anew { peer, instance } => {
                if let Some(link) = self.core.switch.link(peer).filter(|link| link.hello().instance != instance) {
                    link.close(Gone::Restarted);
                }
            }
            command @ (Command::Ban { .. }
            | Command::Unban { .. }
            | Command::AddPeer { .. }
            | Command::Mark(..)
            | Command::Import { .. }
            | Command::Tell { .. }
            | Command::Heard { .. }
            | Command::Records { .. }
            | Command::Exports { .. }) => self.keep(command),
            Command::Disconnect(peer) => self.feed(Input::Disconnect { peer }),
            Command::WhyNot { peer, reply } => {
                let _ = reply.send(self.machine.why_not_dialing(peer, self.core.mux.now())); // who asked may have gone
            }
        }
    }

    /// Tells the machine what happened, and does what it says.
    fn feed(&mut self, input: Input) {
        let gone_on = self.core.switch.dials().before(&input);
        let gone_on = gone_on.into_iter().map(|dial| Input::Answered { dial });
        gone_on.chain([input]).for_each(|input| self.handle(input));
    }

    fn handle(&mut self, input: Input) {
        self.machine.handle_input(input, self.core.mux.now());
        while let Some(output) = self.machine.poll_output() {
            self.carry_out(output);
        }
    }

    /// The calendar may have been set, or have gone on while the machine slept.
    fn set_clock(&mut self) {
        self.machine.handle_input(Input::Wall(self.core.config.clock.unix()), self.core.mux.now());
    }

    fn dial(&mut self, target: Target, reply: oneshot::Sender<Result<PeerId, DialError>>) {
        let waiting = self.waiting.entry(target.peer).or_default();
        if waiting.callers.len() >= MAX_WAITERS {
            return drop(reply.send(Err(DialError::TooMany(target.peer))));
        }
        waiting.callers.push(Caller { reply, again: false });
        self.set_clock();
        self.feed(Input::Dial { contact: Contact::from(target) });
    }

    fn dial_failed(&mut self, dial: DialId, error: DialError) {
        let why = match &error {
            DialError::Hello { reason: Gone::SelfDial, .. } | DialError::SelfDial => DialFailure::Itself,
            DialError::Hello { .. } => DialFailure::Refused,
            DialError::OtherKey { .. } => DialFailure::OtherKey,
            _ => DialFailure::Unreached,
        };
        let peer = self.waiting.iter().find(|(_, waiting)| waiting.dial == Some(dial)).map(|(peer, _)| *peer);
        self.feed(Input::DialFailed { dial, why });
        let Some(peer) = peer else { return };
        match self.waiting.get_mut(&peer) {
            Some(waiting) if waiting.dial != Some(dial) => {
                // Another one is under way, to what this one did not have.
                let (told, kept): (Vec<_>, _) =
                    std::mem::take(&mut waiting.callers).into_iter().partition(|caller| caller.again);
                told.into_iter().for_each(|caller: Caller| drop(caller.reply.send(Err(error.clone()))));
                waiting.callers = kept;
                waiting.callers.iter_mut().for_each(|caller| caller.again = true);
            }
            _ => self.answer(peer, &Err(error)),
        }
    }

    /// Tells everybody who waits for a peer what became of it.
    fn answer(&mut self, peer: PeerId, result: &Result<PeerId, DialError>) {
        let waiting = self.waiting.remove(&peer).unwrap_or_default();
        waiting.callers.into_iter().for_each(|caller| drop(caller.reply.send(result.clone())));
    }

    fn vet(&mut self, knock: Knock, reply: oneshot::Sender<Result<KnockId, Gone>>) {
        let Knock { peer, instance, via } = knock;
        // A link whose end was not told yet is no reason against a new one.
        let over = self.core.switch.link(peer).and_then(|link| link.connection.close_reason().map(|why| (link, why)));
        if let Some((link, why)) = over {
            self.ended(&link, why.into());
        }
        let id = KnockId(self.name());
        let now = self.core.mux.now();
        self.coming.retain(|_, (_, since)| now.since(*since) < FILTER_DEADLINE + HANDSHAKE_TOTAL);
        if let Some(via) = via.filter(|via| !via.is_relay()) {
            self.coming.insert(id, (self.core.mux.sockets.wss().behind(via.remote()), now));
        }
        self.doors.insert(id, Door { knock, reply });
        let from = self.core.group(via);
        self.feed(Input::Knock { knock: id, peer, instance, from });
    }

    async fn up(&mut self, mut established: Established, by: By) {
        let (id, link) = (LinkId(self.name()), Arc::clone(&established.link));
        let behind: Vec<Control> = established.codec.complete().take(MAX_BEHIND).collect();
        if let By::Knock(knock) = by {
            self.coming.remove(&knock);
        }
        let (peer, instance, group) = (link.peer, link.hello().instance, self.core.group(link.track.via()));
        self.offered = Some((id, established));
        self.feed(Input::Established(Up { link: id, peer, instance, by, group }));
        for message in behind {
            if !self.links.contains_key(&id) || link.connection.close_reason().is_some() {
                return; // not taken in, or gone again
            }
            self.control(&link, message).await;
        }
    }

    /// The name of a link that is not forgotten.
    fn link(&self, link: &Arc<Link>) -> Option<LinkId> {
        self.links.iter().find(|(_, known)| Arc::ptr_eq(known, link)).map(|(id, _)| *id)
    }

    fn moved(&mut self, link: &Arc<Link>) {
        let Some(id) = self.link(link) else { return };
        let group = self.core.group(link.track.via());
        self.feed(Input::Moved { link: id, group });
    }

    fn ended(&mut self, link: &Arc<Link>, reason: Gone) {
        let Some(link) = self.link(link) else { return };
        self.ended = Some(reason);
        self.feed(Input::Ended { link });
    }

    fn name(&mut self) -> u64 {
        self.named += 1;
        self.named
    }
}
