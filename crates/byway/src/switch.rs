//! The one task that knows which peers are connected: it dials each once, keeps one link a peer, and tells the
//! protocols who comes and goes.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use byway_proto::{
    PeerId,
    gate::{ACCEPT_QUEUE, HANDSHAKE_TOTAL},
    hello::{Candidates, Control, Hello, agree},
};
use quinn::VarInt;
use tokio::{
    sync::{mpsc, oneshot},
    time,
};
use tracing::{debug, info, warn};

use crate::{
    agent::Command as AgentCommand,
    core::Core,
    dial::{self, DialError, Target},
    event::Event,
    gone::Gone,
    link::{
        Link,
        establish::Established,
        outbox::End,
        readers::{self, UNKNOWN},
        writer,
    },
    net::track::Track,
    protocol::OnFailure,
};

/// Requests that may wait; whoever sends the next one waits.
const COMMANDS: usize = 256;

/// Control messages of all peers that may wait.
const CONTROL: usize = 256;

/// Callers that may wait for one dial.
const MAX_WAITERS: usize = 64;

/// How long a dial that was refused as a duplicate waits for the other side's connection.
const DUPLICATE_WAIT: Duration = Duration::from_secs(5);

/// A control message, and the link it came by.
pub(crate) type FromLink = (Arc<Link>, Control);

/// What the switch is asked.
pub(crate) enum Command {
    Dial {
        target: Target,
        reply: oneshot::Sender<Result<PeerId, DialError>>,
    },
    /// A dial's peer has answered and proven its key; may the dial go on?
    Handshaken {
        peer: PeerId,
        number: u64,
        reply: oneshot::Sender<bool>,
    },
    Dialled {
        peer: PeerId,
        number: u64,
        result: Result<(), DialError>,
    },
    /// May the incoming connection of this peer, with this instance, go on?
    Vet {
        peer: PeerId,
        instance: u64,
        reply: oneshot::Sender<Result<(), Gone>>,
    },
    /// A link's connection has ended.
    Ended {
        link: Arc<Link>,
        reason: Gone,
    },
    /// A protocol's task for a peer failed.
    Failed(Failure),
    /// The node's protocols or addresses have changed.
    Announce,
    /// The node is registered at other relays.
    TellRelays,
    /// A relay says that a peer registered with this instance.
    Anew {
        peer: PeerId,
        instance: u64,
    },
}

/// A protocol's task for a link's peer failed.
pub(crate) struct Failure {
    pub(crate) link: Arc<Link>,
    pub(crate) protocol: u32,
    pub(crate) why: String,
    pub(crate) on_failure: OnFailure,
}

/// Reaches the switch from any task.
#[derive(Debug, Clone)]
pub(crate) struct SwitchRef {
    commands: mpsc::Sender<Command>,
    /// Links that wait to be taken in; full, the gate refuses further strangers.
    ups: mpsc::Sender<Established>,
    links: Arc<Mutex<BTreeMap<PeerId, Arc<Link>>>>,
}

/// The receiving ends of a [`SwitchRef`].
pub(crate) struct Inlets {
    commands: mpsc::Receiver<Command>,
    ups: mpsc::Receiver<Established>,
}

impl SwitchRef {
    pub(crate) fn new() -> (Self, Inlets) {
        let (commands, commands_in) = mpsc::channel(COMMANDS);
        let (ups, ups_in) = mpsc::channel(ACCEPT_QUEUE);
        (SwitchRef { commands, ups, links: Arc::default() }, Inlets { commands: commands_in, ups: ups_in })
    }

    /// Sends a request; lost if the node is closing.
    pub(crate) async fn send(&self, command: Command) {
        let _ = self.commands.send(command).await;
    }

    pub(crate) async fn dial(&self, target: Target) -> Result<PeerId, DialError> {
        let (reply, result) = oneshot::channel();
        self.send(Command::Dial { target, reply }).await;
        result.await.unwrap_or(Err(DialError::Closed))
    }

    pub(crate) async fn vet(&self, peer: PeerId, instance: u64) -> Result<(), Gone> {
        let (reply, verdict) = oneshot::channel();
        self.send(Command::Vet { peer, instance, reply }).await;
        verdict.await.unwrap_or(Err(Gone::Closed))
    }

    async fn handshaken(&self, peer: PeerId, number: u64) -> bool {
        let (reply, verdict) = oneshot::channel();
        self.send(Command::Handshaken { peer, number, reply }).await;
        verdict.await.unwrap_or(false)
    }

    pub(crate) async fn up(&self, established: Established) {
        let _ = self.ups.send(established).await; // only a closing node takes none
    }

    /// How many links wait to be taken in.
    pub(crate) fn waiting(&self) -> usize {
        self.ups.max_capacity() - self.ups.capacity()
    }

    /// The connected peers, in the order of their ids.
    pub(crate) fn links(&self) -> Vec<Arc<Link>> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    pub(crate) fn link(&self, peer: PeerId) -> Option<Arc<Link>> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner).get(&peer).cloned()
    }
}

/// A dial under way. Of two simultaneous ones exactly one ends as a link, before anybody is told of either: each side's
/// switch decides in one order between "my dial was answered" and "the other side's hello is there".
struct Dial {
    number: u64,
    waiters: Vec<oneshot::Sender<Result<PeerId, DialError>>>,
    /// The peer has answered it: an incoming connection of the same peer is the duplicate, if our id is the smaller.
    handshaken: bool,
    /// An incoming connection of the same peer was let in first.
    yielded: bool,
}

struct Switch {
    core: Arc<Core>,
    dials: BTreeMap<PeerId, Dial>,
    control: mpsc::Sender<FromLink>,
    generation: u64,
    /// Dials begun so far.
    dialled: u64,
}

/// Runs the switch until the node is closed.
pub(crate) async fn run(core: Arc<Core>, mut inlets: Inlets) {
    let (control, mut from_links) = mpsc::channel(CONTROL);
    let mut switch = Switch { core: Arc::clone(&core), dials: BTreeMap::new(), control, generation: 0, dialled: 0 };
    // Kept over the turns: a change that falls between two waits would be missed, for each begins with what it finds.
    let mut changed = core.net.changed();
    core.lan.renew().await; // what has changed since the LAN was joined
    loop {
        tokio::select! {
            biased;
            () = core.tasks.stopped() => break,
            () = &mut changed => {
                changed = core.net.changed();
                core.relays.network_changed(core.mux.now());
                switch.announce();
                core.lan.renew().await;
            }
            Some(command) = inlets.commands.recv() => switch.command(command),
            Some(established) = inlets.ups.recv() => switch.up(established),
            Some((link, message)) = from_links.recv() => switch.control(&link, message).await,
        }
    }
    drop(changed);
    let links = std::mem::take(&mut *core.switch.links.lock().unwrap_or_else(PoisonError::into_inner));
    for link in links.into_values() {
        link.close(Gone::Closed);
        core.registry.gone(&link, &Gone::Closed);
    }
    core.registry.close();
}

impl Switch {
    fn command(&mut self, command: Command) {
        match command {
            Command::Dial { target, reply } => self.dial(target, reply),
            Command::Handshaken { peer, number, reply } => {
                let dial = self.dials.get_mut(&peer).filter(|dial| dial.number == number && !dial.yielded);
                let goes_on = dial.map(|dial| dial.handshaken = true).is_some();
                let _ = reply.send(goes_on); // the dial may have been given up
            }
            Command::Dialled { peer, number, result } => self.dialled(peer, number, result),
            Command::Vet { peer, instance, reply } => drop(reply.send(self.vet(peer, instance))),
            Command::Ended { link, reason } => self.ended(&link, reason),
            Command::Failed(failure) => self.failed(failure),
            Command::Announce => self.announce(),
            Command::TellRelays => {
                let relays = Control::Relays(self.core.relays.registered());
                for link in self.core.switch.links() {
                    link.control(&relays);
                }
            }
            Command::Anew { peer, instance } => {
                if let Some(link) = self.core.switch.link(peer).filter(|link| link.hello().instance != instance) {
                    link.close(Gone::Restarted);
                }
            }
        }
    }

    fn dial(&mut self, target: Target, reply: oneshot::Sender<Result<PeerId, DialError>>) {
        let peer = target.peer;
        if peer == self.core.id() {
            return drop(reply.send(Err(DialError::SelfDial)));
        }
        if self.core.switch.link(peer).is_some() {
            return drop(reply.send(Ok(peer)));
        }
        let under_way = self.dials.contains_key(&peer);
        self.dialled += u64::from(!under_way);
        let number = self.dialled;
        let dial = self.dials.entry(peer).or_insert_with(|| Dial {
            number,
            waiters: Vec::new(),
            handshaken: false,
            yielded: false,
        });
        if dial.waiters.len() >= MAX_WAITERS {
            return drop(reply.send(Err(DialError::TooMany(peer))));
        }
        dial.waiters.push(reply);
        if !under_way {
            let core = Arc::clone(&self.core);
            self.core.tasks.spawn(async move {
                let goes_on = core.switch.handshaken(peer, number);
                let result = match dial::dial(&core, target, goes_on).await {
                    Ok(established) => {
                        core.switch.up(established).await;
                        Ok(())
                    }
                    Err(DialError::Hello { reason: Gone::Duplicate, .. }) => {
                        time::sleep(DUPLICATE_WAIT).await;
                        Err(DialError::Hello { peer, reason: Gone::Duplicate })
                    }
                    Err(error) => Err(error),
                };
                core.switch.send(Command::Dialled { peer, number, result }).await;
            });
        }
    }

    fn dialled(&mut self, peer: PeerId, number: u64, result: Result<(), DialError>) {
        // A success is told when its link is taken in.
        let Err(error) = result else { return };
        if self.dials.get(&peer).is_some_and(|dial| dial.number == number)
            && let Some(dial) = self.dials.remove(&peer)
        {
            dial.waiters.into_iter().for_each(|waiter| drop(waiter.send(Err(error.clone()))));
        }
    }

    /// Of two simultaneous dials the one of the smaller id is kept; one that nobody has answered yet may never be, and
    /// gives way. A peer that dials although its connection is older than any dial has lost it, or was restarted.
    fn vet(&mut self, peer: PeerId, instance: u64) -> Result<(), Gone> {
        let is_simultaneous = |link: &Arc<Link>| {
            let same = link.dialled && link.hello().instance == instance;
            same && link.since.elapsed() < HANDSHAKE_TOTAL && link.connection.close_reason().is_none()
        };
        let dial = self.dials.get_mut(&peer);
        let is_answered = dial.as_ref().is_some_and(|dial| dial.handshaken);
        let ours_wins = is_answered || self.core.switch.link(peer).as_ref().is_some_and(is_simultaneous);
        if ours_wins && self.core.id() < peer {
            return Err(Gone::Duplicate);
        }
        if let Some(dial) = dial {
            dial.yielded = true;
        }
        Ok(())
    }

    /// Takes a link in, in the place of an older one to the same peer.
    fn up(&mut self, established: Established) {
        let Established { link, recv, codec, announced } = established;
        let peer = link.peer;
        let core = Arc::clone(&self.core);
        if let Some(old) = core.switch.link(peer) {
            let restarted = old.hello().instance != link.hello().instance;
            let reason = if restarted { Gone::Restarted } else { Gone::Replaced };
            old.close(reason.clone());
            self.ended(&old, reason);
        }
        core.switch.links.lock().unwrap_or_else(PoisonError::into_inner).insert(peer, Arc::clone(&link));
        // Before the first message can come in, so that each protocol's state of the peer is there.
        core.registry.agreed(&link, &link.agreed.read());
        core.tasks.spawn(writer::run(Arc::clone(&link), Arc::clone(&core.mux)));
        core.tasks.spawn(readers::run(Arc::clone(&link), recv, codec, core.scope(self.control.clone())));
        let (watched, watcher) = (Arc::clone(&link), Arc::clone(&core));
        core.tasks.spawn(async move {
            let reason = watched.ended().await;
            watcher.switch.send(Command::Ended { link: watched, reason }).await;
        });
        info!(peer = ?peer, dialled = link.dialled, "peer connected");
        core.events.send(Event::PeerUp { peer });
        if announced != core.registry.announced() {
            link.control(&Control::Hello(core.hello_to(&link))); // a protocol came or went during the handshake
            self.agree(&link);
        }
        self.tell_candidates(&link);
        link.control(&Control::Relays(core.relays.registered()));
        self.resolve(peer);
    }

    fn resolve(&mut self, peer: PeerId) {
        if let Some(dial) = self.dials.remove(&peer) {
            dial.waiters.into_iter().for_each(|waiter| drop(waiter.send(Ok(peer))));
        }
    }

    /// Forgets a link; harmless if it was forgotten before.
    fn ended(&mut self, link: &Arc<Link>, reason: Gone) {
        let core = &self.core;
        let mut links = core.switch.links.lock().unwrap_or_else(PoisonError::into_inner);
        if !links.get(&link.peer).is_some_and(|known| Arc::ptr_eq(known, link)) {
            return;
        }
        links.remove(&link.peer);
        drop(links);
        info!(peer = ?link.peer, %reason, "peer gone");
        link.outbox.close();
        core.registry.gone(link, &reason);
        core.events.send(Event::PeerDown { peer: link.peer, reason });
        core.retire(&link.track);
    }

    async fn control(&mut self, link: &Arc<Link>, message: Control) {
        match message {
            Control::Hello(hello) => self.hello(link, hello),
            Control::Candidates(candidates) => self.candidates(link, candidates).await,
            // whoever acts on them shows the peer an address
            Control::NatReport(_) | Control::Punch(_) if self.core.config.relay_only => {}
            Control::NatReport(report) => {
                let alias = link.track.alias();
                self.core.agent.send(AgentCommand::Theirs { alias, report }).await;
            }
            Control::Punch(signal) => {
                let alias = link.track.alias();
                self.core.agent.send(AgentCommand::Signal { alias, signal }).await;
            }
            Control::Relays(relays) => {
                *link.relays() = Some(relays);
                self.core.relays.review(link.peer);
            }
            Control::Goodbye(_) => {} // the connection's own close says why
            other => debug!(peer = ?link.peer, ?other, "control message is not for a peer"),
        }
    }

    fn failed(&self, failure: Failure) {
        let Failure { link, protocol, why, on_failure } = failure;
        let Some(protocol) = self.core.registry.by_id(protocol) else { return };
        warn!(peer = ?link.peer, protocol = protocol.name, why, "a protocol's task failed");
        let reason = Gone::Failed(protocol.name.clone());
        self.core.events.send(Event::ProtocolFailed { peer: link.peer, protocol: protocol.name.clone(), why });
        match on_failure {
            OnFailure::DropPeer => link.close(reason),
            OnFailure::DropProtocol => {
                let mut withdrawn = link.withdrawn();
                withdrawn.retain(|id| self.core.registry.by_id(*id).is_some()); // as many as are registered at most
                withdrawn.insert(protocol.id);
                drop(withdrawn);
                protocol.leave(&link, &reason, End::Reset(VarInt::from_u32(UNKNOWN)));
                link.control(&Control::Hello(self.core.hello_to(&link)));
                self.agree(&link);
            }
        }
    }

    /// A peer has registered or unregistered a protocol.
    fn hello(&self, link: &Arc<Link>, hello: Hello) {
        if hello.instance != link.hello().instance {
            return link.close(Gone::Misbehaved("its instance changed within a connection".into()));
        }
        *link.hello() = hello;
        self.agree(link);
    }

    fn agree(&self, link: &Arc<Link>) {
        let theirs = link.hello().clone();
        match agree(&self.core.hello_to(link), &theirs) {
            Ok(agreed) => {
                self.core.registry.agreed(link, &agreed);
                link.agreed.set(agreed);
            }
            Err(refusal) => link.close(Gone::Refused(refusal)),
        }
    }

    /// Tells every peer what this node speaks, and where it may be reached, now.
    fn announce(&mut self) {
        for link in self.core.switch.links() {
            link.control(&Control::Hello(self.core.hello_to(&link)));
            self.agree(&link);
            self.tell_candidates(&link);
        }
    }

    fn tell_candidates(&mut self, link: &Link) {
        self.generation += 1;
        let addrs = self.core.addrs(knows_this_machine(&link.track));
        if !addrs.is_empty() {
            link.control(&Control::Candidates(Candidates { addrs, generation: self.generation }));
        }
        if !self.core.config.relay_only {
            link.control(&Control::NatReport(self.core.agent.nat_report()));
        }
    }

    async fn candidates(&self, link: &Arc<Link>, candidates: Candidates) {
        let loopback = knows_this_machine(&link.track);
        let addrs = candidates.addrs.into_iter().filter(|addr| self.core.may_probe(*addr, loopback)).collect();
        self.core.agent.send(AgentCommand::Candidates { alias: link.track.alias(), addrs }).await;
    }
}

/// Whether a link proves that both nodes run on one machine: it, or its relay, is reached over loopback.
pub(crate) fn knows_this_machine(track: &Track) -> bool {
    track.vias().iter().any(|via| via.remote().ip().is_loopback())
}
