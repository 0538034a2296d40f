//! The route machine of one peer: which real routes QUIC's datagrams take.
//!
//! QUIC knows one address for the peer; below it there are several routes, one of them *selected*. Both sides run
//! this machine, each selects its own route. The machine never sees a packet: the packet path keeps a small track,
//! of which the agent task feeds in a [`Sample`] at the machine's timers, and pings travel through the agent.
//!
//! ```text
//! loop {
//!     while let Some(output) = paths.poll_output() { carry it out }
//!     tell the mux whether paths.watching(), then read the track once more if it is not
//!     wait for: paths.poll_timeout() or the mux's wake-up → Input::Sample(read the track)
//!               a probe → Input::Ping, Input::Pong;  the agent → Input::Add, Input::Remove
//! }
//! ```
//!
//! Order of events on a death: an answer is missing for [patience](Paths::patience) → *hedge* (pings with the doubt
//! flag and copies of every datagram on every proven route) → an answer on another route: no more copies, that one carries
//! all → a pong on the selected route: stay; pongs only elsewhere: switch. A doubting ping makes the other side hedge too, which solves deaths of one direction only.

mod budget;
mod event;
mod goodput;
mod hedge;
mod keep_alive;
mod pings;
mod renewal;
mod route;
mod split;
mod status;

use alloc::{boxed::Box, collections::BTreeMap, collections::VecDeque};
use core::time::Duration;

pub use budget::Budget;
pub use event::{DropWhy, HedgeWhy, Input, Output, Plan, RouteId, RouteKind, RouteSet, SMALL, Sample, Why};
pub use status::RouteStatus;

use crate::{Instant, Rng};
pub use hedge::STALLED_AFTER;
use hedge::{Hedge, Scares, Silence};
use keep_alive::KeepAlive;
use route::{Answer, INITIAL_RTT, MIN_PATIENCE, Route};

/// The most routes a peer may have: four addresses of each of two socket families and two relays, with room for NATs
/// that show a new address now and then; a hedge copies to all of them, hence no more.
pub const MAX_ROUTES: usize = 16;

/// The most decisions waiting to be carried out: several times what one input can cause. A driver that does not drain
/// them loses the oldest.
pub const MAX_OUTPUTS: usize = 16 * MAX_ROUTES;

/// For how long after the handshake copies go to routes that have not answered a ping yet, unless one has: the
/// handshake may have been heard on a route that works one way only.
const PROVING_FOR: Duration = Duration::from_secs(1);

/// How long a route has to answer before another newcomer may take its place: three pings of a far peer.
const TIME_TO_ANSWER: Duration = Duration::from_secs(3);

/// How often an idle route is pinged unless configured: below the 30 s after which home routers begin to forget UDP mappings, with
/// two pings to lose.
const WARM: Duration = Duration::from_secs(10);

/// What an operator may change about the route machine.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct PathsConfig {
    /// How often the selected route and one standby are pinged while the connection is idle: by default 10 s, until the NAT's own
    /// lifetime is known. Shorter than that, it is a bound for what is learned; never less than one second.
    pub warm: Duration,
    /// Whether the selected route is ever doubted: without that nothing is copied, and nothing survives its death. For
    /// measuring what the copies cost.
    pub hedging: bool,
}

impl Default for PathsConfig {
    fn default() -> Self {
        PathsConfig { warm: WARM, hedging: true }
    }
}

/// The route machine of one peer.
#[derive(Debug)]
pub struct Paths {
    config: PathsConfig,
    rng: Rng,
    /// Each by itself in memory: a node of the map has room for eleven, and most peers have one.
    routes: BTreeMap<RouteId, Box<Route>>,
    selected: Option<RouteId>,
    why: Option<Why>,
    established: Option<Instant>,
    hedge: Option<Hedge>,
    silence: Silence,
    scares: Scares,
    last_sent: Option<Instant>,
    /// Users were told that nothing answers.
    stalled: bool,
    bias: Bias,
    keep_alive: KeepAlive,
    plan: Plan,
    outputs: VecDeque<Output>,
}

/// What bears on the choice of the route beside what is known of the routes.
#[derive(Debug, Default)]
struct Bias {
    /// Whether a direct route has ever been selected.
    had_direct: bool,
    /// Whether the peer's choice counts where neither side's is better.
    gives_way: bool,
    /// The route to which the connection is to go once it is proven.
    renewal: Option<RouteId>,
}

impl Paths {
    /// A machine without routes, in dialling mode; `seed` is the source of its transaction ids. Marks of a track that
    /// are older than `now` do not count.
    pub fn new(config: PathsConfig, seed: &[u8; 32], now: Instant) -> Self {
        Paths {
            keep_alive: KeepAlive::new(config.warm),
            config,
            rng: Rng::new(seed, "paths"),
            routes: BTreeMap::new(),
            selected: None,
            why: None,
            established: None,
            hedge: None,
            silence: Silence::answered(now),
            scares: Scares::default(),
            last_sent: None,
            stalled: false,
            bias: Bias::default(),
            plan: Plan::All,
            outputs: VecDeque::new(),
        }
    }

    /// Takes in what happened; drain [`poll_output`](Self::poll_output) to `None` after every input.
    pub fn handle_input(&mut self, input: Input, now: Instant) {
        match input {
            Input::Add { route, kind, trusted, rtt } => {
                let mut new = Route::new(route, kind, trusted, now);
                if let Some(rtt) = rtt {
                    new.prove(rtt, now);
                }
                self.add(new, now);
            }
            Input::Remove { route } => self.remove(route, now),
            Input::NetworkChanged => self.doubt_all(now),
            Input::KeepAlive(every) => self.keep_alive.set_most(every),
            Input::Remapped { route } => self.remapped(route, now),
            Input::GiveWay => self.bias.gives_way = true,
            Input::Renew { route } => self.renew_by(route, now),
            Input::Established { heard } => self.establish(heard, now),
            Input::Sample(sample) => self.look(&sample, now),
            Input::Pong { route, txid } => self.pong(route, txid, now),
            Input::Ping { route, doubt } => {
                self.ping_back(route, now);
                if doubt {
                    self.mind_doubt(now);
                }
            }
        }
        self.tell_plan(now);
        while self.outputs.len() > MAX_OUTPUTS {
            self.outputs.pop_front();
        }
    }

    /// The next decision, in the order in which they are to be carried out.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When the machine wants its next [`Input::Sample`], and why.
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        self.established?;
        let work = match &self.hedge {
            Some(_) => [self.hedge_timeout(), None],
            None => [self.next_look().map(|at| (at, "look for answers")), self.ping_timeout()],
        };
        // a lost keep-alive is followed up at once, not when the next one is due
        let lost = self.selected_route().filter(|_| self.hedge.is_none()).and_then(Route::next_expiry);
        let lost = lost.map(|at| (at, "pong overdue"));
        work.into_iter().chain([lost, self.drop_timeout()]).flatten().min_by_key(|(at, _)| *at)
    }

    /// Whether the machine will look at the track by itself; if not, the mux must wake the agent (for an
    /// [`Input::Sample`]) as soon as a datagram leaves while both marks of the track are empty.
    pub fn watching(&self) -> bool {
        self.established.is_none() || self.hedge.is_some() || self.next_look().is_some()
    }

    /// What the mux does with each datagram, as last told by [`Output::Plan`]; [`Plan::All`] at first.
    pub fn plan(&self) -> Plan {
        self.plan
    }

    /// The route that carries the connection; `None` while dialling and when there is no route at all.
    pub fn selected(&self) -> Option<RouteId> {
        self.selected
    }

    /// Whether there is such a route: one that found no room is none.
    pub fn knows(&self, route: RouteId) -> bool {
        self.routes.contains_key(&route)
    }

    /// The routes that have answered a ping: they work both ways, and their addresses are the peer's.
    pub fn proven(&self) -> RouteSet {
        self.routes.values().filter(|route| route.is_proven()).map(|route| route.id).collect()
    }

    /// How long an answer on the selected route may take before its absence means something: 1.5 smoothed round
    /// trips, at least 150 ms. (Shorter gave false hedges, longer only longer stalls.)
    pub fn patience(&self) -> Duration {
        self.selected_route().map_or((INITIAL_RTT * 3 / 2).max(MIN_PATIENCE), Route::patience)
    }

    fn add(&mut self, route: Route, now: Instant) {
        let (id, trusted, proven) = (route.id, route.trusted, route.is_proven());
        if self.routes.contains_key(&id) {
            return;
        }
        if id.0 >= RouteId::LIMIT {
            return self.outputs.push_back(Output::Drop { route: id, why: DropWhy::Full });
        }
        if self.routes.len() >= MAX_ROUTES {
            match self.least_wanted(trusted, now) {
                Some(least) => self.forget(least, DropWhy::Full, now),
                None => return self.outputs.push_back(Output::Drop { route: id, why: DropWhy::Full }),
            }
        }
        self.routes.insert(id, Box::new(route));
        if self.established.is_none() {
            return; // the dial is the packet path's: it copies to all, and replays to what it hears from
        }
        if self.selected.is_none() {
            self.select(id, Why::Only, now);
            self.start_hedge(HedgeWhy::Removed, true, now);
        } else if proven {
            self.ping_padded(id, now);
            self.take_first_direct(id, now);
        } else {
            self.ping(id, false, now);
        }
    }

    /// Which route makes room for a new one: the newest that nobody vouches for, neither we, by choosing to send there, nor
    /// it, by answering; else the one that has been dead for longest. For a newcomer that is no better nobody goes at
    /// once, or one peer's pings from many sources would drive each other out before any is answered.
    fn least_wanted(&self, for_trusted: bool, now: Instant) -> Option<RouteId> {
        let others = || self.routes.values().map(Box::as_ref).filter(|route| self.selected != Some(route.id));
        let had_time = |route: &&Route| for_trusted || now.since(route.added) >= TIME_TO_ANSWER;
        let unknown = others().filter(|route| !route.trusted && !route.is_proven()).filter(had_time);
        let dead = others().filter(|route| route.standing.dead && route.kind == RouteKind::Direct);
        let newest = unknown.max_by_key(|route| (route.added, route.id));
        newest.or_else(|| dead.min_by_key(|route| (route.proof, route.id))).map(|route| route.id)
    }

    fn forget(&mut self, route: RouteId, why: DropWhy, now: Instant) {
        self.outputs.push_back(Output::Drop { route, why });
        self.remove(route, now);
    }

    fn remove(&mut self, route: RouteId, now: Instant) {
        self.keep_alive.drop_route(route); // its id may be another's soon
        self.bias.renewal.take_if(|renewal| *renewal == route);
        if let Some(hedge) = &mut self.hedge {
            hedge.forget(route);
        }
        if self.routes.remove(&route).is_none() || self.selected != Some(route) {
            return;
        }
        match self.best(|_| true) {
            Some(next) => {
                self.select(next, Why::Removed, now);
                self.start_hedge(HedgeWhy::Removed, true, now);
            }
            None => {
                self.selected = None;
                self.silence = Silence::answered(now);
                if self.hedge.take().is_some() {
                    self.outputs.push_back(Output::Unhedged);
                }
            }
        }
    }

    fn establish(&mut self, heard: RouteId, now: Instant) {
        if self.established.is_some() {
            return;
        }
        self.established = Some(now);
        let known = Some(heard).filter(|heard| self.routes.contains_key(heard));
        let Some(first) = known.or_else(|| self.best(|_| true)) else { return };
        self.select(first, Why::Handshake, now);
        if self.routes.len() > 1 {
            self.start_hedge(HedgeWhy::Established, false, now);
        } else if self.proven().contains(first) {
            self.outputs.push_back(Output::Up { route: first }); // the handshake has shown what a ping would
        } else {
            self.ping(first, false, now);
        }
    }

    fn look(&mut self, sample: &Sample, now: Instant) {
        self.last_sent = self.last_sent.max(sample.last_sent);
        if self.established.is_none() {
            return;
        }
        let elsewhere = sample.heard.iter().filter(|(route, _)| Some(*route) != self.selected).map(|(_, at)| *at).max();
        self.silence.observe(sample.unanswered_large, sample.unanswered_small, elsewhere);
        for (route, at) in &sample.heard {
            if let Some(route) = self.routes.get_mut(route) {
                route.peer.heard = route.peer.heard.max(Some(*at));
            }
        }
        for route in self.routes.values_mut() {
            route.expire(now);
            if self.selected != Some(route.id) && route.bury() {
                self.outputs.push_back(Output::Down { route: route.id });
            }
        }
        self.mind_size(sample.split, now);
        if self.hedge.is_some() {
            self.hear_elsewhere();
            self.continue_hedge(now);
        } else {
            self.mind_silence(now);
        }
        self.mind_split(&sample.heard, now);
        self.mind_goodput(sample.delivery.as_ref(), now);
        if self.hedge.is_none() {
            self.ping_due(now);
        }
        self.drop_silent(now); // last, for a route that was just left may be one to drop
    }

    fn pong(&mut self, route: RouteId, txid: u64, now: Instant) {
        let Some(known) = self.routes.get_mut(&route) else { return };
        let (was_dead, lost) = (known.standing.dead, known.tally.misses);
        let Some(Answer { sent, first, mtu_proven }) = known.pong(txid, now) else { return };
        if first || was_dead {
            self.outputs.push_back(Output::Up { route });
        }
        if core::mem::take(&mut self.stalled) {
            self.outputs.push_back(Output::Resumed);
        }
        if mtu_proven {
            self.outputs.push_back(Output::MtuProven { route });
        }
        if first {
            self.ping_padded(route, now);
        }
        self.keep_alive.answered(route, sent, lost, now);
        if self.selected == Some(route) {
            self.silence = Silence::answered(now);
            self.outputs.push_back(Output::ClearUnanswered);
        }
        if self.take_first_direct(route, now) || first && self.follow(route, now) {
            return;
        }
        self.weigh_pong(route, sent, now);
        self.renew(now);
        self.improve(now);
    }

    /// The first direct route of a connection that so far had only a relay is worth more than certainty about it.
    fn take_first_direct(&mut self, route: RouteId, now: Instant) -> bool {
        let direct = self.routes.get(&route).is_some_and(|route| route.kind == RouteKind::Direct);
        let relayed = self.selected_route().is_some_and(|route| route.kind == RouteKind::Relay);
        let first = direct && relayed && !self.bias.had_direct;
        if first {
            self.select(route, Why::FirstDirect, now);
        }
        first
    }

    /// Goes where the peer has gone: to a route that the peer came up with and that has just proven itself, if nothing was
    /// heard on the selected one of the same kind since. A NAT that has forgotten a mapping, or a host that has changed its
    /// address, does not come back to the old one.
    fn follow(&mut self, route: RouteId, now: Instant) -> bool {
        let Some((new, selected)) = self.routes.get(&route).zip(self.selected_route()) else { return false };
        let moved = new.kind == selected.kind
            && new.id != selected.id
            && new.peer.asked.is_some_and(|asked| selected.peer.heard.is_none_or(|heard| heard < asked));
        if moved {
            self.select(route, Why::Moved, now);
        }
        moved
    }

    /// Moves to a better route, if one has proven itself for long enough.
    fn improve(&mut self, now: Instant) {
        let Some(selected) = self.selected_route().filter(|_| self.hedge.is_none()) else { return };
        let unproven_for = now.since(self.established.unwrap_or(now).max(selected.standing.selected_at));
        let (to, why) = if !selected.is_proven() && unproven_for >= selected.patience() * 2 {
            (self.best(|route| route.is_proven() && !route.standing.dead), Why::Unproven)
        } else {
            (self.best(|route| route.rivals(selected) && route.may_return(now)), Why::Better)
        };
        let Some(to) = to else { return };
        let outdone = self.routes.get(&to).is_some_and(|to| selected.carried.is_outdone_by(&to.carried));
        let why = if outdone { Why::Faster } else { why };
        if let Some(left) = self.selected.and_then(|left| self.routes.get_mut(&left)) {
            left.leave(now);
            if outdone {
                left.carried.leave(now);
            }
        }
        self.select(to, why, now);
    }

    fn select(&mut self, to: RouteId, why: Why, now: Instant) {
        let Some(route) = self.routes.get_mut(&to) else { return };
        route.take_over(now);
        self.bias.had_direct |= route.kind == RouteKind::Direct;
        let from = self.selected.replace(to);
        if let Some(left) = from.filter(|_| matches!(why, Why::Silent | Why::Moved)) {
            self.keep_alive.closed(left, now);
        }
        self.why = Some(why);
        let hedge_began = self.hedge.take().map(|hedge| hedge.since);
        self.outputs.push_back(Output::Selected { from, to, why, hedge_began });
        if hedge_began.is_some() {
            self.outputs.push_back(Output::Unhedged);
        }
        self.tell_plan(now);
        self.silence = Silence::answered(now);
        self.outputs.push_back(Output::ClearUnanswered);
        if hedge_began.is_some() {
            self.replay_latest(to);
        }
    }

    /// Tells the plan if it has changed.
    fn tell_plan(&mut self, now: Instant) {
        let plan = match (self.established, self.selected) {
            (Some(established), Some(selected)) => self.plan_after(established, selected, now),
            _ => Plan::All,
        };
        if plan != self.plan {
            self.plan = plan;
            self.outputs.push_back(Output::Plan(plan));
        }
    }

    fn plan_after(&self, established: Instant, selected: RouteId, now: Instant) -> Plan {
        let mut set = self.proven();
        if !self.hedge.as_ref().is_some_and(Hedge::is_copying) {
            return Plan::One(selected);
        }
        if set.is_empty() && now < established + PROVING_FOR {
            return Plan::All;
        }
        if let Some(instead) = self.hedge.as_ref().and_then(|hedge| hedge.instead(now)) {
            return Plan::Instead(instead);
        }
        set.insert(selected);
        if set.len() == 1 { Plan::One(selected) } else { Plan::Several(set) }
    }

    fn route_set(&self) -> RouteSet {
        self.routes.keys().copied().collect()
    }

    fn selected_route(&self) -> Option<&Route> {
        self.routes.get(&self.selected?).map(Box::as_ref)
    }

    /// The route to keep warm beside the selected one: the best living one, else the best that ever answered.
    fn standby(&self) -> Option<RouteId> {
        self.best(|route| Some(route.id) != self.selected && route.is_proven())
    }

    /// The best route of those wanted: proven before unproven, living before dead, then by score.
    fn best(&self, wanted: impl Fn(&Route) -> bool) -> Option<RouteId> {
        let rank = |route: &&Route| (!route.is_proven(), route.standing.dead, route.score(), route.rtt(), route.id);
        self.routes.values().map(Box::as_ref).filter(|route| wanted(route)).min_by_key(rank).map(|route| route.id)
    }
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod two_sides;
