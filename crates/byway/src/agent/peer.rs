//! One peer's routes, as the agent keeps them.

mod probes;

use std::{collections::VecDeque, net::SocketAddr, sync::Arc, time::Duration};

use byway_proto::{
    Instant, PeerId,
    nat::SocketId,
    paths::{Budget, DropWhy, HedgeWhy, Input, Output, Paths, Plan, RouteId, RouteKind, Sample},
    wire::probe::{Probe, ProbeKey, ProbeKind, ReplayWindow},
};
use tokio::sync::oneshot;
use tracing::debug;

use super::{PingReport, Up, added, kind_of};
use crate::{
    config::WallClock,
    event::{Event, PathKind},
    net::{mux::Mux, routes::Via, track::Track},
    quic::endpoint::MAX_MTU,
    status::RouteReport,
};

/// Pings of the user's that wait for their pong.
const MAX_USER_PINGS: usize = 16;

/// A pong later than this is none.
const USER_PING_LIFE: Duration = Duration::from_secs(10);

/// After this silence the datagrams kept for a replay are given back.
const RING_LIFE: Duration = Duration::from_secs(5);

/// One peer's route machine, and what it needs to act.
pub(super) struct AgentPeer {
    pub(super) track: Arc<Track>,
    pub(super) key: ProbeKey,
    pub(super) told: Option<PeerId>,
    /// The timer that is set for this peer.
    pub(super) timer: Instant,
    /// The relays on the way to a peer that is in doubt, until the agent has taken notice.
    pub(super) silent_relays: Vec<SocketAddr>,
    /// What users are told, until the agent has told it.
    pub(super) events: Vec<Event>,
    /// Sockets whose routes were dropped, until the agent has taken notice.
    pub(super) unused: Vec<SocketId>,
    pub(super) outside: Outside,
    relayed: bool,
    detour: Detour,
    /// Since when no route answers, if users were told so.
    stalled: Option<Instant>,
    paths: Paths,
    window: ReplayWindow,
    seq: u64,
    pings: VecDeque<(u64, Instant, RouteId, oneshot::Sender<PingReport>)>,
}

/// Where this node is seen, and what the NAT agent knows of it.
#[derive(Debug, Default)]
pub(super) struct Outside {
    /// What a pong is to others than the route machine, until the agent has taken notice.
    pub(super) pong: Option<Pong>,
    /// Where the peer saw the selected route come from.
    seen: Option<(RouteId, SocketAddr)>,
    /// The direct route that the agent was told of.
    direct: Option<(SocketId, SocketAddr)>,
}

/// What a pong tells the NAT agent.
#[derive(Debug, Clone, Copy)]
pub(super) enum Pong {
    /// It came by a way that is no route, or by a further socket, which may be there to renew one.
    Stray { via: Via, txid: u64 },
    /// A peer at `remote` sees the node's own socket at `addr`.
    Observed { remote: SocketAddr, addr: SocketAddr },
    /// A relay does.
    Mapped { addr: SocketAddr },
}

/// When the hedge under way began, and the route that carries the connection meanwhile, if one does.
#[derive(Debug)]
struct Detour {
    since: Instant,
    by: Option<RouteId>,
}

impl AgentPeer {
    pub(super) fn new(up: Up, seed: &[u8; 32], now: Instant) -> Self {
        let dialled = up.track.lock().dialled;
        AgentPeer {
            key: ProbeKey::derive(&up.exported, dialled),
            paths: Paths::new(up.config, seed, now),
            track: up.track,
            told: up.told,
            timer: Instant::START,
            silent_relays: Vec::new(),
            events: Vec::new(),
            detour: Detour { since: now, by: None },
            stalled: None,
            unused: Vec::new(),
            outside: Outside::default(),
            relayed: up.relayed,
            window: ReplayWindow::new(),
            seq: 0,
            pings: VecDeque::new(),
        }
    }

    /// Hands the routes of the handshake to the machine; returns the addresses of a peer's ticket that have not answered
    /// yet, for they are candidates as any other.
    pub(super) fn begin(&mut self, rtt: Duration, now: Instant) -> Vec<SocketAddr> {
        let mut state = self.track.lock();
        state.established = true;
        state.copies.budget = Budget::new(now);
        let dialled = state.dialled;
        let mut unheard = Vec::new();
        if self.told.is_some() {
            let silent = state.routes().filter(|(_, slot)| slot.heard.is_none());
            let silent: Vec<_> = silent.filter_map(|(route, slot)| Some((route, slot.via.peer_addr()?))).collect();
            silent.iter().for_each(|(route, _)| state.remove(*route));
            unheard = silent.into_iter().map(|(_, addr)| addr).collect();
        }
        let is_asked = state.routes().any(|(_, slot)| slot.early);
        let routes: Vec<_> = state.routes().map(|(route, slot)| (route, slot.via, slot.heard)).collect();
        drop(state);
        if let [(route, _, Some(_))] = routes[..] {
            // Nothing else was heard, so the handshake's answer went this way and was understood at its end: the peer is there
            // (RFC 9000 §8.1), and what follows must not wait for a ping that may get lost.
            self.track.prove(route);
        }
        // Where both sides sent by one way alone, the handshake has shown that it leads there and back, and measured it. A peer that asks
        // is not sure, and its question is lost.
        let is_shown = self.told.is_some() && unheard.is_empty() && routes.len() == 1 && !is_asked;
        for &(route, via, heard) in &routes {
            let rtt = heard.filter(|_| is_shown && kind_of(via) == RouteKind::Direct).map(|_| rtt);
            self.paths.handle_input(added(route, via, dialled, rtt), now);
        }
        if !dialled {
            self.paths.handle_input(Input::GiveWay, now);
        }
        if let Some((heard, ..)) = routes.iter().max_by_key(|(_, via, heard)| (*heard, !via.is_relay())) {
            self.paths.handle_input(Input::Established { heard: *heard }, now);
        }
        unheard
    }

    /// Adds a way to the peer, unless it is there already.
    pub(super) fn add_route(&mut self, via: Via, trusted: bool, now: Instant) -> Option<RouteId> {
        let route = self.track.lock().add(via, false)?;
        self.paths.handle_input(added(route, via, trusted, None), now);
        Some(route)
    }

    /// Adds a way to the peer on which a probe has come back, or proves the one that is there.
    pub(super) fn add_proven(&mut self, mux: &Mux, via: Via, rtt: Duration, now: Instant) {
        let Some(route) = self.track.lock().add(via, false) else { return };
        let kind = kind_of(via);
        self.paths.handle_input(Input::Add { route, kind, trusted: true, rtt: Some(rtt) }, now);
        if self.track.prove(route) {
            mux.routes.learn_route(via, &self.track);
        }
    }

    /// The connection is to go by this way once it is proven, for the mapping of the one that carries it dies of age.
    pub(super) fn renew(&mut self, via: Via, now: Instant) {
        let Some(route) = self.track.lock().find(via) else { return };
        self.paths.handle_input(Input::Renew { route }, now);
    }

    /// The direct route that carries the connection, if it is another one than the NAT agent knows of.
    pub(super) fn direct_anew(&mut self) -> Option<(SocketId, SocketAddr)> {
        let state = self.track.lock();
        let selected = state.selected.and_then(|route| state.slot(route)).map(|slot| slot.via);
        let direct = selected.filter(|via| !via.is_relay()).map(|via| (via.socket(), via.remote()));
        drop(state);
        let before = std::mem::replace(&mut self.outside.direct, direct);
        direct.filter(|_| before != direct)
    }

    /// Sends nothing by a way any more; `for_good`, takes nothing that comes by it either.
    pub(super) fn leave(&mut self, mux: &Mux, via: Via, for_good: bool, now: Instant) {
        let Some(route) = self.track.lock().find(via) else { return };
        self.paths.handle_input(Input::Remove { route }, now);
        if for_good {
            self.track.lock().remove(route);
            mux.routes.forget_route(via, &self.track);
        }
    }

    /// The node's NAT needs the connection's idle routes to be pinged this often, as far as that is known.
    pub(super) fn keep_alive(&mut self, every: Option<Duration>, now: Instant) {
        self.paths.handle_input(Input::KeepAlive(every), now);
    }

    /// The sockets that the routes leave by.
    pub(super) fn sockets(&self) -> Vec<SocketId> {
        self.track.lock().routes().map(|(_, slot)| slot.via.socket()).filter(|id| *id != SocketId::MAIN).collect()
    }

    /// The routes by sockets of these that are not selected, while the peer was heard elsewhere so much later.
    pub(super) fn surplus(&self, of: impl Fn(SocketId) -> bool, later: Duration) -> Vec<Via> {
        let state = self.track.lock();
        let elsewhere =
            state.routes().filter(|(_, slot)| !of(slot.via.socket())).filter_map(|(_, slot)| slot.heard).max();
        let Some(elsewhere) = elsewhere else { return Vec::new() };
        let surplus = state.routes().filter(|(route, slot)| {
            let silent = slot.heard.is_none_or(|heard| elsewhere.since(heard) >= later);
            of(slot.via.socket()) && state.selected != Some(*route) && silent
        });
        surplus.map(|(_, slot)| slot.via).collect()
    }

    /// The share of the last four pings that were lost on the relay route which carries the connection, in thousandths; a
    /// single one is none, for every line loses one now and then.
    pub(super) fn relay_loss(&self) -> Option<u16> {
        let misses = self.paths.relay_misses()?.min(4) as u16;
        Some(if misses < 2 { 0 } else { misses * 250 })
    }

    /// The socket of the selected route, if it is a direct one.
    pub(super) fn direct(&self) -> Option<(SocketId, SocketAddr)> {
        self.track.via().filter(|via| !via.is_relay()).map(|via| (via.socket(), via.remote()))
    }

    /// Lets the machine look at what the packet path saw.
    pub(super) fn sample(&mut self, now: Instant) {
        let mut state = self.track.lock();
        let sample = Sample { delivery: self.track.line.take_delivery(), ..state.sample() };
        if sample.last_sent.is_none_or(|sent| now.since(sent) > RING_LIFE) {
            state.copies.ring.shrink();
        }
        drop(state);
        self.paths.handle_input(Input::Sample(sample), now);
    }

    /// Asks the peer whether it is still there, unless it has just shown that.
    pub(super) fn doubt(&mut self, now: Instant) {
        if let Some(route) = self.paths.selected() {
            self.paths.handle_input(Input::Ping { route, doubt: true }, now);
        }
    }

    /// The network may be another one, or this machine has slept: every route is asked at once.
    pub(super) fn network_changed(&mut self, now: Instant) {
        self.paths.handle_input(Input::NetworkChanged, now);
    }

    /// Does what the machine decided; the kind of path, if another one carries the connection now.
    pub(super) fn carry_out(&mut self, mux: &Mux, clock: &WallClock) -> Option<PathKind> {
        let mut changed = None;
        while let Some(output) = self.paths.poll_output() {
            match output {
                Output::Ping { route, txid, doubt, padded } => {
                    let via = self.track.lock().slot(route).map(|slot| slot.via);
                    let len = if padded { usize::from(MAX_MTU) } else { 0 };
                    let (seq, kind) = (self.seq + 1, ProbeKind::Ping { doubt });
                    if let Some(via) = via {
                        self.send_padded(mux, via, Probe { seq, kind, txid: txid.to_be_bytes() }, len);
                    }
                }
                Output::Plan(plan) => self.apply(plan, mux.now()),
                Output::Replay { route, last, max_age, budgeted } => {
                    mux.replay(&self.track, route, (last, max_age), budgeted);
                }
                Output::ClearUnanswered => self.track.lock().answered(),
                Output::Selected { from, to, why, hedge_began } => {
                    self.track.lock().selected = Some(to);
                    self.track.settled.notify_one();
                    if self.detour.by.take() != Some(to) {
                        if from.is_some() || hedge_began.is_some() {
                            self.revive_by(to, hedge_began, mux.now());
                        } else {
                            self.carry_by(to, None, mux.now()); // the handshake's own route: nothing is lost yet
                        }
                    }
                    if from.is_some() || self.track.vias().len() > 1 {
                        self.track.moved.notify_one(); // the only way of all is known
                    }
                    changed = self.selected(from, to).or(changed);
                    debug!(alias = %self.track.alias(), %why, path = ?changed, "route selected");
                    self.tell(to, |peer, path, remote| Event::PathBest { peer, path, remote, why: why.to_string() });
                }
                Output::Hedged(why) => {
                    debug!(alias = %self.track.alias(), %why, "hedging");
                    self.detour.since = mux.now();
                    if why != HedgeWhy::Established {
                        self.silent_relays = self.relays();
                        self.set_silent(true);
                    }
                }
                Output::Unhedged => {
                    debug!(alias = %self.track.alias(), "no longer hedging");
                    self.set_silent(false);
                    // without a switch: the selected route answers after all
                    if let (Some(_), Some(selected)) = (self.detour.by.take(), self.paths.selected()) {
                        self.revive_by(selected, None, mux.now());
                    }
                }
                Output::Up { route } => self.tell(route, |peer, path, remote| Event::PathUp { peer, path, remote }),
                Output::Down { route } => {
                    self.tell(route, |peer, path, remote| Event::PathDown { peer, path, remote });
                }
                Output::Stalled { since } => {
                    self.stalled = Some(since);
                    let since = clock.now() - mux.now().since(since);
                    self.events.extend(self.told.map(|peer| Event::Stalled { peer, since }));
                }
                Output::Resumed => {
                    if let Some(route) = self.paths.selected() {
                        self.revive_by(route, Some(mux.now()), mux.now());
                    }
                    let after = self.stalled.take().map_or(Duration::ZERO, |since| mux.now().since(since));
                    self.events.extend(self.told.map(|peer| Event::Resumed { peer, after }));
                }
                Output::MtuProven { route } => {
                    if let Some(slot) = self.track.lock().slot_mut(route) {
                        slot.mtu = MAX_MTU;
                    }
                }
                Output::Drop { route, why } => self.drop_route(mux, route, why),
            }
        }
        self.track.lock().watched = self.paths.watching();
        changed
    }

    fn drop_route(&mut self, mux: &Mux, route: RouteId, why: DropWhy) {
        debug!(alias = %self.track.alias(), %why, "route dropped");
        let via = self.track.lock().slot(route).map(|slot| slot.via);
        self.track.lock().remove(route);
        if let Some(via) = via {
            mux.routes.forget_route(via, &self.track);
            self.unused.push(via.socket());
        }
    }

    /// Tells users of a route, if the peer is one whose routes are told.
    fn tell(&mut self, route: RouteId, event: impl FnOnce(PeerId, PathKind, SocketAddr) -> Event) {
        let via = self.track.lock().slot(route).map(|slot| slot.via);
        if let (Some(peer), Some(via)) = (self.told, via) {
            self.events.push(event(peer, kind_of(via).into(), via.remote()));
        }
    }

    /// Tells whoever uses a relay whether it is in doubt.
    fn set_silent(&self, silent: bool) {
        if self.told.is_none() {
            self.track.silent.set(silent);
        }
    }

    /// The relays to ask: the one that carries the connection, or all that could.
    fn relays(&self) -> Vec<SocketAddr> {
        let selected = self.track.via().filter(|via| via.is_relay());
        let asked = selected.map_or_else(|| self.track.vias(), |via| vec![via]);
        asked.into_iter().filter(|via| via.is_relay()).map(Via::remote).collect()
    }

    fn apply(&mut self, plan: Plan, now: Instant) {
        let mut state = self.track.lock();
        state.plan = plan;
        match plan {
            Plan::One(route) => state.selected = Some(route),
            Plan::Instead(route) => {
                drop(state);
                debug!(alias = %self.track.alias(), ?route, "sending by a route that answers");
                self.detour.by = Some(route);
                self.revive_by(route, Some(self.detour.since), now);
            }
            Plan::Several(_) | Plan::All => {}
        }
    }

    /// Tells congestion control that packets go by `route`, and since when if a silence ends.
    fn carry_by(&self, route: RouteId, silent: Option<Instant>, now: Instant) {
        let via = self.track.lock().slot(route).map(|slot| slot.via);
        if let Some(via) = via {
            self.track.line.select(via, silent, now);
        }
    }

    /// As [`carry_by`](Self::carry_by), after a time of loss; QUIC then sends a packet of now, by which it learns what is lost.
    fn revive_by(&self, route: RouteId, silent: Option<Instant>, now: Instant) {
        self.carry_by(route, silent, now);
        self.track.revived.notify_one();
    }

    fn selected(&self, from: Option<RouteId>, to: RouteId) -> Option<PathKind> {
        let state = self.track.lock();
        let kind = |route| state.slot(route).map(|slot| PathKind::from(kind_of(slot.via)));
        let (before, after) = (from.and_then(kind), kind(to));
        after.filter(|_| before != after)
    }

    /// Whether something left unanswered between the machine's last look and its falling asleep.
    pub(super) fn fell_asleep_too_early(&self) -> bool {
        let state = self.track.lock();
        !state.watched && (state.unanswered.large.is_some() || state.unanswered.small.is_some())
    }

    /// When the machine wants to look next, if it does.
    pub(super) fn next_timer(&self, now: Instant) -> Option<Instant> {
        let (at, _) = self.paths.poll_timeout()?;
        Some(at.max(now))
    }

    /// What `status` and `why` tell of the routes.
    pub(super) fn report(&self, now: Instant) -> Vec<RouteReport> {
        let state = self.track.lock();
        let reports = self.paths.status(now).into_iter().filter_map(|route| {
            let slot = state.slot(route.route)?;
            Some(RouteReport {
                path: if route.kind == RouteKind::Relay { PathKind::Relay } else { PathKind::Direct },
                remote: slot.via.remote(),
                rtt: route.srtt,
                loss: f64::from(route.loss) / 1_000.0,
                goodput: if route.selected { self.track.line.goodput() } else { route.goodput },
                mtu: slot.mtu,
                selected: route.selected,
                alive: route.alive,
                proven: route.proven_since.is_some(),
                why: route.why,
                bytes_sent: slot.bytes_sent,
                bytes_received: slot.bytes_received,
            })
        });
        reports.collect()
    }
}
