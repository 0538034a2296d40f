//! This node as a client of relays: one task a relay registers, opens allocations, and registers anew when the relay
//! or the way to it was lost.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Weak},
    time::Duration,
};

use byway_proto::{
    PeerAddr,
    addr::{HostAddr, MAX_ADDRS},
    hello::Control,
    paths::PathsConfig,
    relay::homes::Report,
    wire::relay_data::AllocId,
};
use tokio::{
    sync::mpsc,
    time::{self, Instant},
};
use tracing::{debug, info};

use self::{allocations::Allocation, moves::Moves};
use super::table::{Command, Shared};
use crate::{
    agent::{Command as AgentCommand, ServerSource},
    core::Core,
    event::Event,
    gone::Gone,
    link::{Link, establish::Established, readers, writer},
    net::{track::Track, wss::is_virtual},
    switch::{Command as SwitchCommand, FromLink},
};

mod allocations;
mod connect;
mod line;
mod moves;

/// Control messages of one relay that may wait.
const CONTROL: usize = 64;

/// How often an idle connection to a relay is pinged: it keeps the way back through NATs, and finds out within seconds that
/// the relay is gone. With traffic, the first unanswered datagram has it asked at once.
const PING: Duration = Duration::from_secs(5);

/// Pauses between attempts to register: the first, and the longest, so that a relay that was away for long is found
/// again within seconds. An attempt is one handshake, which backs off by itself.
const RETRY: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(2));

/// The longest pause after a relay has said that it does not serve this node: that takes its operator to change.
const REFUSED: Duration = Duration::from_secs(60);

/// The same for a relay that somebody has named and that has never served this node: there may be none, and each attempt
/// sends some dozens of packets to whoever is there.
const NAMED: Duration = Duration::from_secs(30);

/// How long a relay that is no home stays connected without an allocation.
const IDLE: Duration = Duration::from_secs(60);

/// The same for a relay that is about to stop: by then the peers have moved as well.
const MOVED: Duration = Duration::from_secs(2);

/// How long a relay may take to answer a registration.
const REGISTER_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a relay that is in doubt has to answer before another one is looked for: eight pings, one every 50 ms.
const SILENCE: Duration = Duration::from_millis(400);

/// The route machine's settings for a relay's own connection.
pub(crate) fn paths() -> PathsConfig {
    let mut config = PathsConfig::default();
    config.warm = PING;
    config
}

/// One relay's task: it ends when nobody needs the relay any more.
pub(super) async fn run(core: Arc<Core>, relay: PeerAddr, shared: Arc<Shared>, commands: mpsc::Receiver<Command>) {
    let (allocations, guests) = (BTreeMap::new(), BTreeMap::new());
    let (silence, moves) = (Silence::None, Moves::new(core.mux.now()));
    let client = Client {
        core,
        relay,
        shared,
        commands,
        allocations,
        guests,
        idle_since: None,
        silence,
        is_draining: false,
        seen: None,
        moves,
        is_known: false,
    };
    client.run().await;
}

struct Client {
    core: Arc<Core>,
    relay: PeerAddr,
    shared: Arc<Shared>,
    commands: mpsc::Receiver<Command>,
    allocations: BTreeMap<AllocId, Allocation>,
    /// Ways that connected peers opened to this node, which comes to no other relay for their sake: it stays while they are there.
    guests: BTreeMap<AllocId, Weak<Track>>,
    idle_since: Option<Instant>,
    silence: Silence,
    /// It said that it will stop.
    is_draining: bool,
    /// Where it saw this node last over UDP.
    seen: Option<IpAddr>,
    moves: Moves,
    /// It has served this node before.
    is_known: bool,
}

/// Why a relay is not in use.
struct Lost {
    why: String,
    /// It said so itself, so that it is asked again at ever longer intervals; also where another node of this identity
    /// registered, for the two would take turns.
    is_refused: bool,
}

impl From<String> for Lost {
    fn from(why: String) -> Self {
        Lost { why, is_refused: false }
    }
}

impl From<Gone> for Lost {
    fn from(gone: Gone) -> Self {
        Lost {
            why: gone.to_string(),
            is_refused: matches!(gone, Gone::Unserved(_) | Gone::Refused(_) | Gone::Replaced),
        }
    }
}

/// Whether the relay answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Silence {
    None,
    /// Its route is in doubt; this is when that will have lasted too long.
    Until(Instant),
    /// It does not; others were told.
    Told,
}

impl Client {
    async fn run(mut self) {
        let tasks = self.core.tasks.clone();
        let mut pause = RETRY.0;
        loop {
            let before = pause;
            let outcome = tokio::select! {
                biased;
                () = tasks.stopped() => return,
                outcome = self.session(&mut pause) => outcome,
            };
            let Err(Lost { why, is_refused }) = outcome else {
                self.lost("not in use".into());
                if self.core.relays.remove(self.relay.id, &self.commands) {
                    return self.name_servers(Vec::new()).await;
                }
                continue;
            };
            if self.silence != Silence::Told {
                info!(relay = ?self.relay.id, "not registered at the relay");
                self.core.events.send(Event::RelayDown { relay: self.relay.id, why: why.clone() });
            }
            debug!(relay = ?self.relay.id, %why, "why not"); // it may tell the relay's name
            for allocation in self.allocations.values() {
                allocation.wanted.notes.add(format!("relay {:?}: {why}", self.relay.id));
            }
            let most = longest_pause(is_refused, self.is_known || self.shared.lock().home);
            if is_refused {
                pause = before; // that it was registered for a moment is no success
            }
            pause = pause.min(most);
            self.lost(match pause.as_secs() {
                0 => format!("{why}; trying again"),
                s => format!("{why}; trying again in {s} s"),
            });
            {
                let mut state = self.shared.lock();
                (state.failing, state.measure) = (true, false);
            }
            self.core.relays.note(&self.core, self.relay.id, Report::Failed);
            let wake = Instant::now() + pause;
            pause = (pause * 2).min(most);
            let given_up =
                tokio::select! { biased; () = tasks.stopped() => return, given_up = self.wait(wake) => given_up };
            if given_up && self.core.relays.remove(self.relay.id, &self.commands) {
                return self.name_servers(Vec::new()).await;
            }
        }
    }

    /// Notes that there is no connection.
    fn lost(&mut self, words: String) {
        (self.silence, self.is_draining, self.idle_since) = (Silence::None, false, None);
        let mut state = self.shared.lock();
        (state.addr, state.observed, state.alias) = (None, None, None);
        state.registered = false;
        state.words = words;
    }

    fn is_needed(&self) -> bool {
        self.shared.lock().home || !self.allocations.is_empty() || !self.guests.is_empty()
    }

    /// Collects requests until `wake`; `true` if nobody needs the relay any more.
    async fn wait(&mut self, wake: Instant) -> bool {
        loop {
            self.forget_dead();
            if !self.is_needed() && self.commands.is_empty() {
                return true;
            }
            tokio::select! {
                biased;
                () = time::sleep_until(wake) => return false,
                () = self.shared.elsewhere.notified() => return false,
                () = self.shared.poked.notified() => {}
                Some(command) = self.commands.recv() => drop(self.note(command)),
            }
        }
    }

    /// Connects, registers, and serves requests until the connection ends; `Ok` if the relay is no longer needed.
    async fn session(&mut self, pause: &mut Duration) -> Result<(), Lost> {
        let (established, mut addr, ways) = self.connect().await?;
        let link = Arc::clone(&established.link);
        self.answers(link.connection.rtt());
        self.forget_dead();
        if !self.is_needed() && self.commands.is_empty() {
            link.close(Gone::Closed); // it was measured, which is all
            self.core.retire(&link.track);
            return Ok(());
        }
        let (control, mut from_link) = mpsc::channel(CONTROL);
        let Established { recv, codec, .. } = established;
        self.core.tasks.spawn(writer::run(Arc::clone(&link), Arc::clone(&self.core.mux), None));
        self.core.tasks.spawn(readers::run(Arc::clone(&link), recv, codec, self.core.scope(control)));
        link.control(&Control::Register);
        let tending = ways.tend(Arc::clone(&link), Arc::clone(&self.shared));
        let serving = async {
            self.register(&link, &mut addr, &mut from_link).await?;
            *pause = RETRY.0;
            self.serve(&link, &mut addr, &mut from_link).await
        };
        let outcome = tokio::select! { biased; outcome = serving => outcome, why = tending => Err(why.into()) };
        self.core.mux.routes.remove_relay(addr);
        link.close(Gone::Closed);
        link.outbox.close();
        self.core.retire(&link.track);
        outcome
    }

    /// Tells how far the relay is, which may make it a home.
    fn answers(&self, rtt: Duration) {
        self.shared.lock().measure = false;
        self.core.relays.note(&self.core, self.relay.id, Report::Answers(rtt));
        self.core.relays.plan(&self.core);
    }

    async fn register(
        &mut self,
        link: &Arc<Link>,
        addr: &mut SocketAddr,
        from_link: &mut mpsc::Receiver<FromLink>,
    ) -> Result<(), Lost> {
        let deadline = Instant::now() + REGISTER_TIMEOUT;
        loop {
            tokio::select! {
                biased;
                reason = link.ended() => return Err(reason.into()),
                () = time::sleep_until(deadline) => return Err("it did not answer the registration".to_owned().into()),
                Some((_, message)) = from_link.recv() => {
                    if let Control::Registered { observed, stun_port, .. } = message {
                        *addr = self.seen_from(link, *addr, observed);
                        self.shared.lock().observed = Some(observed);
                        self.note_seen(*addr, observed).await;
                        self.registered(link, *addr);
                        self.settle(link, *addr).await;
                        self.tell_servers(*addr, stun_port).await;
                        return Ok(());
                    }
                }
            }
        }
    }

    fn registered(&mut self, link: &Link, addr: SocketAddr) {
        {
            let mut state = self.shared.lock();
            (state.addr, state.alias) = (Some(addr), Some(link.track.alias()));
            (state.registered, state.failing) = (true, false);
            state.words = "registered".into();
        }
        (self.silence, self.is_known) = (Silence::None, true);
        self.core.relays.note(&self.core, self.relay.id, Report::Registered);
        info!(relay = ?self.relay.id, "registered at the relay");
        self.core.events.send(Event::RelayUp { relay: self.relay.id });
    }

    /// Nothing is heard from the relay; it keeps its place here, for an outage ends more often than a relay dies.
    fn fell_silent(&mut self) {
        self.silence = Silence::Told;
        let why = "it does not answer".to_owned();
        {
            let mut state = self.shared.lock();
            (state.registered, state.failing) = (false, true);
            state.words = format!("{why}; waiting for it");
        }
        self.core.relays.note(&self.core, self.relay.id, Report::Silent);
        info!(relay = ?self.relay.id, "the relay does not answer");
        self.core.events.send(Event::RelayDown { relay: self.relay.id, why });
    }

    /// Opens all allocations at `addr`, and tells the peers where the relay sees this node: they may reach it there.
    async fn settle(&mut self, link: &Arc<Link>, addr: SocketAddr) {
        self.core.mux.routes.add_relay(addr);
        self.allocations.values_mut().for_each(Allocation::hope);
        for id in self.allocations.keys().copied().collect::<Vec<_>>() {
            self.open(link, addr, id).await;
        }
        self.core.switch.send(SwitchCommand::Announce).await;
    }

    /// The relay answers STUN at these addresses, and at no other.
    async fn name_servers(&self, addrs: Vec<SocketAddr>) {
        let home = self.shared.lock().home;
        let source = if home { ServerSource::Home } else { ServerSource::Foreign }(self.relay.id);
        self.core.agent.send(AgentCommand::Servers { source, addrs }).await;
    }

    /// The relay tells a survey how this node's NATs behave.
    async fn tell_servers(&self, addr: SocketAddr, stun_port: Option<u16>) {
        if self.core.config.relay_only || is_virtual(addr) {
            return; // over TLS no NAT is seen
        }
        let second = stun_port.map(|port| SocketAddr::new(addr.ip(), port));
        self.name_servers([Some(addr), second].into_iter().flatten().collect()).await;
    }

    async fn serve(
        &mut self,
        link: &Arc<Link>,
        addr: &mut SocketAddr,
        from_link: &mut mpsc::Receiver<FromLink>,
    ) -> Result<(), Lost> {
        let mut silent = false;
        loop {
            self.forget_dead();
            let idle_end = self.idle_end();
            let reopen = self.allocations.values().filter_map(|allocation| allocation.reopen).min();
            let patience = if let Silence::Until(until) = self.silence { Some(until) } else { None };
            tokio::select! {
                biased;
                reason = link.ended() => return Err(reason.into()),
                () = at(idle_end) => return Ok(()),
                () = at(patience) => self.fell_silent(),
                now = link.track.silent.wait(|now| (*now != silent).then_some(*now)) => {
                    silent = now;
                    match (silent, self.silence) {
                        (true, Silence::None) => self.silence = Silence::Until(Instant::now() + SILENCE),
                        (false, Silence::Told) => self.registered(link, *addr),
                        (false, _) => self.silence = Silence::None,
                        _ => {}
                    }
                }
                () = at(reopen) => self.reopen(link, *addr).await,
                Some((_, message)) = from_link.recv() => match message {
                    Control::Registered { observed, .. } => self.moved(link, addr, observed).await?,
                    message => self.control(message).await,
                },
                () = self.shared.poked.notified() => self.obey(link).await,
                Some(command) = self.commands.recv() => if let Some(new) = self.note(command) {
                    self.open(link, *addr, new).await;
                }
            }
        }
    }

    /// When the connection is given up if nobody needs the relay; at once if it does not answer.
    fn idle_end(&mut self) -> Option<Instant> {
        let needed = self.is_needed();
        self.idle_since = if needed { None } else { self.idle_since.or(Some(Instant::now())) };
        let linger = match self.silence {
            _ if self.is_draining => MOVED,
            Silence::Told => Duration::ZERO,
            _ => IDLE,
        };
        self.idle_since.map(|since| since + linger)
    }

    /// Does what was ordered: to measure, and to say that there is nothing to be done to be registered.
    async fn obey(&self, link: &Link) {
        let is_settled = {
            let state = self.shared.lock();
            state.home && state.registered && !state.failing
        };
        if is_settled {
            self.core.relays.note(&self.core, self.relay.id, Report::Registered);
        }
        if std::mem::take(&mut self.shared.lock().measure) {
            let routes = self.core.agent.report(link.track.alias()).await;
            let rtt = routes.iter().find(|route| route.selected).and_then(|route| route.rtt);
            let rtt = rtt.unwrap_or_else(|| link.connection.rtt());
            self.core.relays.note(&self.core, self.relay.id, Report::Answers(rtt));
        }
    }

    /// Takes a request in; the allocation that is to be opened, if one is.
    fn note(&mut self, command: Command) -> Option<AllocId> {
        match command {
            Command::Open { wanted, addrs } => {
                self.learn(addrs);
                self.want(wanted)
            }
            Command::Release { alias } => {
                self.release(alias);
                None
            }
        }
    }

    /// Notes further addresses of the relay; the newest are tried first, for whoever named the others may have lied.
    fn learn(&mut self, addrs: Vec<HostAddr>) {
        let new: Vec<_> = addrs.into_iter().filter(|addr| !self.relay.addrs.contains(addr)).collect();
        self.relay.addrs.splice(0..0, new);
        self.relay.addrs.truncate(MAX_ADDRS);
    }

    /// Where to send relayed data: a relay forwards only what comes from where it sees this node, be that over IPv4, IPv6 or TLS.
    fn seen_from(&self, link: &Link, addr: SocketAddr, observed: SocketAddr) -> SocketAddr {
        let is_open = |addr| !is_virtual(addr) || self.core.mux.sockets.wss().is_open(addr);
        let kind = |addr: SocketAddr| (addr.is_ipv4(), is_virtual(addr));
        let fits = |addr: &SocketAddr| kind(*addr) == kind(observed) && is_open(*addr);
        let routes = link.track.lock();
        [addr].into_iter().chain(routes.routes().map(|(_, slot)| slot.via.remote())).find(fits).unwrap_or(addr)
    }

    async fn control(&mut self, message: Control) {
        match message {
            Control::OpenFailed { alloc, peer, reason } => self.open_failed(alloc, peer, reason).await,
            Control::Opened { alloc, peer, .. } => self.opened(alloc, peer).await,
            Control::PeerAnew { alloc, peer, instance } => self.anew(alloc, peer, instance).await,
            Control::Drain { deadline } => {
                info!(relay = ?self.relay.id, ?deadline, "the relay will stop");
                self.is_draining = true;
                {
                    let mut state = self.shared.lock();
                    state.failing = true;
                    state.words = "about to stop; moving to another".into();
                }
                self.core.relays.note(&self.core, self.relay.id, Report::Drains);
            }
            other => debug!(relay = ?self.relay.id, ?other, "control message is not for a client"),
        }
    }
}

/// Waits for a moment; for ever without one.
async fn at(moment: Option<Instant>) {
    match moment {
        Some(moment) => time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

/// The longest pause before a relay is looked for again; `is_known` says that it has served this node, or that the user named it.
fn longest_pause(is_refused: bool, is_known: bool) -> Duration {
    match (is_refused, is_known) {
        (true, _) => REFUSED,
        (false, true) => RETRY.1,
        (false, false) => NAMED,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_somebody_named_as_a_relays_is_soon_sent_to_seldom() {
        assert_eq!(longest_pause(false, false), NAMED);
        assert_eq!(longest_pause(false, true), RETRY.1, "a relay that was away is found again within seconds");
        assert_eq!([longest_pause(true, false), longest_pause(true, true)], [REFUSED; 2]);
    }
}
