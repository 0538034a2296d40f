//! Carries out what the NAT agent decides: sockets, STUN messages, pings and signals.

mod servers;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::{IpAddr, SocketAddr},
    sync::{Arc, PoisonError},
    time::Duration,
};

use byway_proto::{
    Instant, PeerId,
    addr::interface::{Interface, InterfaceKind},
    hello::Control,
    nat::{self, Input, LinkId, NatReport, Output, SocketId},
};
use tracing::debug;

pub(crate) use self::servers::ServerSource;
use self::servers::Servers;
use super::{Agent, Found, peer::AgentPeer};
use crate::{
    event::Event,
    net::{Net, mux::ControlDatagram, routes::Via},
    switch::SwitchRef,
};

/// How often the NAT machine is told of the relay route's loss.
const LOSS_SPACING: Duration = Duration::from_secs(1);

/// The first and the longest pause before a survey that nobody answered is made again.
const RESURVEY: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(3_600));

/// How soon after a survey has begun a relay's word that the node is elsewhere is a reason for another one.
const ELSEWHERE: Duration = Duration::from_secs(10);

/// How often a server is asked again where no lifetime of mappings is known: RFC 8445 §14 has 15 s for keep-alives.
const REFRESH: Duration = Duration::from_secs(15);

/// How much later the peer must have been heard elsewhere than on a route whose socket the NAT machine is done with, before that
/// is given up: a punch may bring several routes, of which both sides have chosen theirs by then.
const SURPLUS: Duration = Duration::from_secs(10);

/// Keep-alives for each lifetime of a mapping: one may be lost, and the next one still comes in time.
const KEEP_ALIVES: u32 = 3;

/// The least and the longest pause between keep-alives: no mapping that lives for less is worth its packets, and behind
/// one NAT of several whose lifetime was not seen yet a mapping may die sooner.
const KEEP_ALIVE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// How often an idle route is pinged; `None` until the lifetime of mappings is known.
fn keep_alive(report: &NatReport) -> Option<Duration> {
    let lifetimes = [&report.ipv4, &report.ipv6].into_iter().flatten().filter_map(|family| family.lifetime);
    lifetimes.min().map(|lifetime| (lifetime / KEEP_ALIVES).clamp(KEEP_ALIVE.0, KEEP_ALIVE.1))
}

/// The NAT agent, and what belongs to its decisions.
pub(super) struct Traversal {
    pub(super) machine: nat::Agent,
    pub(super) net: Arc<dyn Net>,
    switch: SwitchRef,
    found: Arc<Found>,
    servers: Servers,
    /// The connections to peers whose paths the machine looks for.
    links: BTreeMap<LinkId, (SocketAddr, PeerId)>,
    numbers: BTreeMap<SocketAddr, LinkId>,
    /// Links numbered so far.
    numbered: u64,
    /// Sockets that the machine is done with, while a route still uses them.
    closing: BTreeSet<SocketId>,
    /// Whether one of them may have no route any more.
    may_close: bool,
    /// When those that are still in use are looked at again.
    look_at_surplus: Option<Instant>,
    /// What carrying out a decision has led to; each decision leads to one input at most.
    inputs: VecDeque<Input>,
    acting: bool,
    /// When the machine was last told of the relay route's loss.
    loss_told: Instant,
    resurvey: Resurvey,
}

/// When the survey is made again, or a part of it.
struct Resurvey {
    /// When one that nobody answered is, and the pause after that.
    at: Option<Instant>,
    pause: Duration,
    /// When the last one began, and on which interfaces.
    began: Instant,
    interfaces: Vec<Interface>,
    /// The address where a relay sees the node instead, and when that is a reason for another one.
    elsewhere: Option<(IpAddr, Instant)>,
    /// When a server is asked whether the node is still seen where it was.
    refresh: Option<Instant>,
}

impl Resurvey {
    const NONE: Resurvey = Resurvey {
        at: None,
        pause: RESURVEY.0,
        began: Instant::START,
        interfaces: Vec::new(),
        elsewhere: None,
        refresh: None,
    };

    fn next(&self) -> Option<Instant> {
        let elsewhere = self.elsewhere.map(|(_, at)| at);
        [self.at, elsewhere, self.refresh].into_iter().flatten().min()
    }
}

impl Traversal {
    pub(super) fn new(machine: nat::Agent, net: Arc<dyn Net>, switch: SwitchRef, found: Arc<Found>) -> Self {
        Traversal {
            machine,
            net,
            switch,
            found,
            servers: Servers::default(),
            links: BTreeMap::new(),
            numbers: BTreeMap::new(),
            numbered: 0,
            closing: BTreeSet::new(),
            may_close: false,
            look_at_surplus: None,
            inputs: VecDeque::new(),
            acting: false,
            loss_told: Instant::START,
            resurvey: Resurvey::NONE,
        }
    }

    pub(super) fn link(&self, alias: SocketAddr) -> Option<LinkId> {
        self.numbers.get(&alias).copied()
    }

    /// How often the idle routes of a peer are pinged.
    pub(super) fn keep_alive(&self) -> Option<Duration> {
        keep_alive(&self.found.report.read())
    }

    /// When time is to pass for the machine.
    pub(super) fn next(&self) -> Option<Instant> {
        let machine = self.machine.poll_timeout().map(|(at, _)| at);
        [machine, self.resurvey.next(), self.look_at_surplus].into_iter().flatten().min()
    }

    /// Where no server answers in any family, the survey is made again some day: the network may have been away. Behind a NAT
    /// a server is asked again and again, for nothing else keeps the mapping that a node without relays tells of, and shows
    /// whether the router has got another address.
    fn plan_resurvey(&mut self, report: &NatReport, now: Instant) {
        let mut known = [&report.ipv4, &report.ipv6].into_iter().flatten().peekable();
        if known.peek().is_some() && known.clone().all(|family| family.public.is_none()) {
            self.resurvey.at.get_or_insert(now + self.resurvey.pause);
        } else {
            (self.resurvey.at, self.resurvey.pause) = (None, RESURVEY.0);
        }
        let translated = known.any(|family| family.public.is_some() && !family.untranslated);
        self.resurvey.refresh = translated.then(|| now + keep_alive(report).unwrap_or(REFRESH));
    }

    fn alias(&self, link: LinkId) -> Option<SocketAddr> {
        self.links.get(&link).map(|(alias, _)| *alias)
    }
}

impl Agent {
    /// Lets the NAT machine act, and carries out what it decides.
    pub(super) fn traverse(&mut self, input: Input) {
        self.traversal.inputs.push_back(input);
        if std::mem::replace(&mut self.traversal.acting, true) {
            return; // a decision that is being carried out led here
        }
        while let Some(input) = self.traversal.inputs.pop_front() {
            self.traversal.machine.handle_input(input, self.mux.now());
            while let Some(output) = self.traversal.machine.poll_output() {
                self.traverse_by(output);
            }
            self.close_sockets();
        }
        if let Some(store) = &self.store {
            store.keep(|| self.traversal.machine.memory(self.mux.now(), self.clock.unix()));
        }
        self.traversal.acting = false;
    }

    /// Lets time pass for the NAT machine; while it makes a hard punch it learns what that does to the relay route.
    pub(super) fn traverse_time(&mut self) {
        let now = self.mux.now();
        let alias = self.traversal.machine.punching().and_then(|link| self.traversal.alias(link));
        if let Some(alias) = alias
            && now.since(self.traversal.loss_told) >= LOSS_SPACING
            && let Some(per_mille) = self.peers.get(&alias).and_then(|peer| peer.relay_loss())
        {
            self.traversal.loss_told = now;
            self.traverse_link(alias, |link| Input::RelayLoss { link, per_mille });
        }
        self.resurvey(now);
        if self.traversal.look_at_surplus.take_if(|at| *at <= now).is_some() {
            self.leave_surplus();
        }
        self.traverse(Input::Timeout);
    }

    /// Does what is due of the survey once more.
    fn resurvey(&mut self, now: Instant) {
        let Resurvey { at, pause, .. } = &mut self.traversal.resurvey;
        if at.is_some_and(|at| at <= now) {
            *at = Some(now + *pause);
            *pause = (*pause * 2).min(RESURVEY.1);
            self.network_changed();
        }
        if let Some((ip, _)) = self.traversal.resurvey.elsewhere.take_if(|(_, at)| *at <= now) {
            self.seen_elsewhere(ip);
        }
        if self.traversal.resurvey.refresh.take_if(|at| *at <= now).is_some() {
            let every = self.traversal.keep_alive().unwrap_or(REFRESH);
            self.traversal.resurvey.refresh = Some(now + every);
            if !self.traversal.servers.has_home() {
                self.traverse(Input::Refresh); // a relay would say so itself
            }
        }
    }

    /// A relay sees the node at another address than it did: the survey is made anew, unless it knows that, or has only just
    /// begun and is about to.
    pub(super) fn seen_elsewhere(&mut self, ip: IpAddr) {
        let now = self.mux.now();
        let known = {
            let report = self.traversal.found.report.read();
            if ip.is_ipv4() { &report.ipv4 } else { &report.ipv6 }.as_ref().and_then(|family| family.public)
        };
        let from = self.traversal.resurvey.began + ELSEWHERE;
        if known.is_none_or(|public| public.ip() == ip) {
            self.traversal.resurvey.elsewhere = None;
        } else if now < from {
            self.traversal.resurvey.elsewhere = Some((ip, from));
        } else {
            debug!("seen at another address than before");
            self.doubt_network();
        }
    }

    /// Interfaces have come or gone. A bridge for containers leads nowhere, and is none of the survey's business.
    pub(super) fn interfaces_changed(&mut self) {
        let outward = |interfaces: &[Interface]| -> Vec<Interface> {
            let is_inner = |kind| matches!(kind, InterfaceKind::Container | InterfaceKind::Loopback);
            interfaces.iter().filter(|interface| !is_inner(interface.kind)).copied().collect()
        };
        let (before, now) = (&self.traversal.resurvey.interfaces, self.traversal.net.interfaces());
        let is_inner = *before != now && outward(before) == outward(&now);
        self.traversal.resurvey.interfaces = now;
        if !is_inner {
            self.doubt_network();
        }
    }

    /// The same for what concerns one connection; nothing if it is not a peer's.
    pub(super) fn traverse_link(&mut self, alias: SocketAddr, input: impl FnOnce(LinkId) -> Input) {
        if let Some(link) = self.traversal.link(alias) {
            self.traverse(input(link));
        }
    }

    fn traverse_by(&mut self, output: Output) {
        match output {
            Output::Open { socket, ipv6 } => {
                let local = self.open(socket, ipv6);
                self.traversal.machine.handle_input(Input::Opened { socket, local }, self.mux.now());
            }
            Output::Close { socket } => {
                self.traversal.closing.insert(socket);
                self.traversal.may_close = true;
            }
            Output::Stun { socket, to, datagram } => self.mux.send_stun(socket, to, &datagram),
            Output::Ping { link, socket, to, txid, hop_limit } => {
                let Some(alias) = self.traversal.alias(link) else { return };
                let mux = Arc::clone(&self.mux);
                self.with(alias, |peer, _| peer.probe_for(&mux, Via::straight(socket, to), txid, hop_limit));
            }
            Output::Route { link, socket, remote, rtt } => {
                let Some(alias) = self.traversal.alias(link) else { return };
                let mux = Arc::clone(&self.mux);
                self.with(alias, |peer, now| peer.add_proven(&mux, Via::straight(socket, remote), rtt, now));
            }
            Output::Renew { link, socket, remote } => {
                let Some(alias) = self.traversal.alias(link) else { return };
                self.with(alias, |peer, now| peer.renew(Via::straight(socket, remote), now));
            }
            Output::Signal { link, signal } => self.tell(link, &Control::Punch(signal)),
            Output::Report(report) => {
                self.traversal.found.report.set(report.clone());
                self.traversal.switch.next_edition();
                let links: Vec<LinkId> = self.traversal.links.keys().copied().collect();
                links.into_iter().for_each(|link| self.tell(link, &Control::NatReport(report.clone())));
                self.keep_alive(&report);
                self.traversal.plan_resurvey(&report, self.mux.now());
                self.events.send(Event::NatChanged(report));
            }
            Output::Observed(addrs) => {
                debug!(count = addrs.len(), "told where peers see this node");
                *self.traversal.found.observed.lock().unwrap_or_else(PoisonError::into_inner) = addrs;
                self.traversal.found.observes.notify_one();
            }
        }
    }

    /// Pings idle routes as often as the mappings on their way need.
    fn keep_alive(&mut self, report: &NatReport) {
        let every = keep_alive(report);
        for (alias, _) in self.traversal.links.values().copied().collect::<Vec<_>>() {
            self.with(alias, |peer, now| peer.keep_alive(every, now));
        }
    }

    /// Opens a socket beside the node's own of the same family.
    fn open(&self, socket: SocketId, ipv6: bool) -> Option<SocketAddr> {
        let own = if ipv6 { self.mux.sockets.v6.as_ref() } else { self.mux.sockets.v4.as_ref() };
        let ip = own?.local_addr().ok()?.ip();
        let opened = self.traversal.net.bind_udp(SocketAddr::new(ip, 0)).and_then(|opened| {
            let local = opened.local_addr()?;
            Ok((opened, local))
        });
        match opened {
            Ok((opened, local)) => self.mux.sockets.add(socket, opened).then_some(local),
            Err(error) => {
                debug!(%error, "no further socket");
                None
            }
        }
    }

    /// Says something on a link's control stream; before the hellos there is none, and after its end nobody listens.
    fn tell(&self, link: LinkId, message: &Control) {
        let Some((alias, peer)) = self.traversal.links.get(&link) else { return };
        if let Some(link) = self.traversal.switch.link(*peer).filter(|link| link.track.alias() == *alias) {
            link.control(message);
        }
    }

    /// A connection to a peer is established; `unheard` are addresses of its ticket that have not answered yet.
    pub(super) fn begin_traversal(&mut self, alias: SocketAddr, unheard: Vec<SocketAddr>) {
        let Some((peer, track)) = self.peers.get(&alias).and_then(|peer| Some((peer.told?, &peer.track))) else {
            return;
        };
        let dialled = track.lock().dialled;
        let loopback = track.vias().iter().any(|via| via.remote().ip().is_loopback());
        self.traversal.numbered += 1;
        let link = LinkId(self.traversal.numbered);
        self.traversal.links.insert(link, (alias, peer));
        self.traversal.numbers.insert(alias, link);
        let direct = self.peers.get(&alias).and_then(|peer| peer.direct());
        self.traverse(Input::Up { link, peer, dialled, loopback });
        if let Some((socket, remote)) = direct {
            self.traverse(Input::Direct { link, socket, remote });
        }
        if !unheard.is_empty() {
            self.traverse(Input::Candidates { link, addrs: unheard });
        }
    }

    /// The connection is over; `vias` were its routes.
    pub(super) fn end_traversal(&mut self, alias: SocketAddr, vias: &[Via]) {
        if let Some(link) = self.traversal.numbers.remove(&alias) {
            self.traversal.links.remove(&link);
            self.traverse(Input::Forget { link });
        }
        vias.iter().for_each(|via| self.unused(via.socket()));
    }

    /// Closes the sockets that the machine is done with and that no route uses; all by one look at the peers, for a punch
    /// leaves hundreds.
    fn close_sockets(&mut self) {
        if !std::mem::take(&mut self.traversal.may_close) {
            return;
        }
        let used: BTreeSet<SocketId> = self.peers.values().flat_map(|peer| peer.sockets()).collect();
        let (closing, sockets) = (&mut self.traversal.closing, &self.mux.sockets);
        closing.retain(|socket| {
            let keep = used.contains(socket);
            if !keep {
                sockets.remove(*socket);
            }
            keep
        });
        if !closing.is_empty() {
            self.traversal.look_at_surplus.get_or_insert(self.mux.now() + SURPLUS);
        }
    }

    /// Gives up the routes on sockets that the machine is done with and that neither side uses.
    fn leave_surplus(&mut self) {
        let closing = &self.traversal.closing;
        let surplus = |peer: &AgentPeer| peer.surplus(|socket| closing.contains(&socket), SURPLUS);
        let left: Vec<_> = self.peers.iter().map(|(alias, peer)| (*alias, surplus(peer))).collect();
        let mux = Arc::clone(&self.mux);
        for (alias, via) in left.into_iter().flat_map(|(alias, vias)| vias.into_iter().map(move |via| (alias, via))) {
            self.with(alias, |peer, now| peer.leave(&mux, via, true, now));
        }
        self.traversal.may_close = true;
        self.close_sockets();
    }

    /// A route on this socket is gone; others may still use it.
    pub(super) fn unused(&mut self, socket: SocketId) {
        if self.traversal.closing.contains(&socket) {
            self.traversal.may_close = true;
            self.close_sockets();
        } else if socket != SocketId::MAIN {
            self.traverse(Input::Unused { socket });
        }
    }

    /// These addresses answer STUN, as far as one source says.
    pub(super) fn set_servers(&mut self, source: ServerSource, addrs: Vec<SocketAddr>) {
        let servers = &mut self.traversal.servers;
        let before = servers.asked();
        servers.tell(source, addrs.into_iter().filter(|addr| self.mux.sockets.towards(*addr).is_some()));
        let now = servers.asked();
        if now != before {
            self.traverse(Input::Servers(now));
        }
    }

    /// The node may be on another network.
    pub(super) fn network_changed(&mut self) {
        let bound = self.mux.sockets.own().filter_map(|socket| socket.local_addr().ok());
        let (any, one): (Vec<IpAddr>, Vec<IpAddr>) = bound.map(|addr| addr.ip()).partition(|ip| ip.is_unspecified());
        let listed = self.traversal.net.interfaces();
        let interfaces = listed.iter().map(|interface| interface.ip);
        let heard = interfaces.filter(|ip| any.iter().any(|bound| bound.is_ipv4() == ip.is_ipv4()));
        let interfaces: Vec<IpAddr> = heard.chain(one).collect();
        (self.traversal.resurvey.began, self.traversal.resurvey.interfaces) = (self.mux.now(), listed);
        self.traverse(Input::Network(interfaces));
    }

    pub(super) fn stun(&mut self, datagram: ControlDatagram) {
        let Some(from) = datagram.via.peer_addr() else { return };
        self.traverse(Input::Stun { socket: datagram.via.socket(), from, datagram: datagram.bytes });
    }
}

#[cfg(test)]
mod tests;
