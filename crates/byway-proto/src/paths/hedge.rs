//! Detection and hedging: silence is noticed, every route is tried at once, and a pong decides.

use core::time::Duration;

use super::{
    Paths,
    event::{HedgeWhy, Output, RouteId, Why},
    route::Route,
};
use crate::Instant;

/// The spacing of a hedge's first pings: 50 ms finds a live route well before the decision, three lost pings included.
const BURST_SPACING: Duration = Duration::from_millis(50);

/// How many pings of a hedge come at that spacing: they last until the decision on a route of 100 ms.
const BURST_PINGS: u32 = 8;

/// The spacing that follows: a route that comes back is noticed within half a second …
const SEARCH_SPACING: Duration = Duration::from_millis(500);

/// … for this long; an outage that lasts longer is a matter of minutes rather than seconds.
const SEARCH_FOR: Duration = Duration::from_secs(30);

/// The spacing after that: a restarted relay is found by one such ping, and the peer behind it by another …
const OUTAGE_SPACING: Duration = Duration::from_secs(1);

/// … until the outage is this old; the connection itself gives up minutes later.
const OUTAGE_FOR: Duration = Duration::from_secs(300);

/// The spacing for the rest: what a sleeping peer's battery and our own can bear.
const LONG_OUTAGE_SPACING: Duration = Duration::from_secs(10);

/// How much longer than an answer may take the selected route is waited for: three more pings. Deciding without it
/// gave 18 false switches in six minutes at 3 % loss; as copies go out on every route, the wait costs nearly nothing.
const SLACK: Duration = Duration::from_millis(150);

/// How much longer a hedge asks before it copies if the last ones were false alarms: a pong on the selected route takes a
/// round trip, and this much more where its line is loaded.
const SCARED_SLACK: Duration = Duration::from_millis(50);

/// After this long without a false alarm one of them is forgotten.
const SCARE_LIFE: Duration = Duration::from_secs(20);

/// The most false alarms remembered: after two quiet minutes all are forgotten.
const MAX_SCARES: u32 = 6;

/// No route has answered for this long: users are told.
pub const STALLED_AFTER: Duration = Duration::from_secs(3);

/// How many of the latest datagrams go out again with each ping of a burst and at a decision: QUIC declares the ones
/// before them lost as soon as these are acknowledged.
const LATEST: usize = 2;

/// How many go out again with each later ping, while nothing answers: a peer or relay that was restarted meanwhile says so
/// only to a datagram of QUIC's (RFC 9000 §10.3), and QUIC's own next one may be many seconds away by then.
const SEARCH_LATEST: usize = 1;

/// A hedge under way.
#[derive(Debug)]
pub(super) struct Hedge {
    pub(super) since: Instant,
    pub(super) why: HedgeWhy,
    /// Whether the pings carry the doubt flag from the start: not if the peer's doubt began the hedge, or two sides
    /// that hear each other badly would keep each other hedging.
    doubt: bool,
    next: Instant,
    pings: u32,
    /// When copying begins; `None` once it has.
    copies_at: Option<Instant>,
    /// Another route that answered, the first of them, and when.
    elsewhere: Option<(RouteId, Instant)>,
    /// Another route on which the peer was heard, the first of them, and until when that is enough to rely on it.
    heard: Option<(RouteId, Instant)>,
}

impl Hedge {
    /// Whether copies go out.
    pub(super) fn is_copying(&self) -> bool {
        self.copies_at.is_none()
    }

    /// Notes that there is no such route any more.
    pub(super) fn forget(&mut self, route: RouteId) {
        self.elsewhere.take_if(|(elsewhere, _)| *elsewhere == route);
        self.heard.take_if(|(heard, _)| *heard == route);
    }

    /// The route that carries the connection instead of the silent one until the hedge ends. After a handshake the copies go
    /// on: by then no route is more likely to be the right one than another.
    pub(super) fn instead(&self, now: Instant) -> Option<RouteId> {
        let heard = self.heard.filter(|(_, until)| now < *until);
        self.elsewhere.or(heard).map(|(route, _)| route).filter(|_| self.why != HedgeWhy::Established)
    }
}

/// False alarms of late: on a line where they are frequent a hedge asks first and copies later.
#[derive(Debug, Default)]
pub(super) struct Scares {
    count: u32,
    latest: Instant,
}

impl Scares {
    fn add(&mut self, now: Instant) {
        self.count = (self.current(now) + 1).min(MAX_SCARES);
        self.latest = now;
    }

    fn current(&self, now: Instant) -> u32 {
        let forgotten = now.since(self.latest).as_secs() / SCARE_LIFE.as_secs();
        self.count.saturating_sub(u32::try_from(forgotten).unwrap_or(u32::MAX))
    }
}

/// Unanswered sends, as of the latest sample.
#[derive(Debug)]
pub(super) struct Silence {
    /// The first that called for an answer.
    urgent: Option<Instant>,
    /// The first that need not have been answered on the selected route: a tiny one, or one after which the peer was
    /// heard on another route (it may just have selected that one).
    mild: Option<Instant>,
    /// When a ping asked about mild silence.
    asked: Option<Instant>,
    /// Marks from before this are void.
    answered: Instant,
}

impl Silence {
    /// Everything sent before `now` is answered, or no answer is expected any more.
    pub(super) fn answered(now: Instant) -> Self {
        Silence { urgent: None, mild: None, asked: None, answered: now }
    }

    /// Takes over a sample's marks; `elsewhere` is when the peer was last heard on a route that is not selected.
    pub(super) fn observe(&mut self, large: Option<Instant>, small: Option<Instant>, elsewhere: Option<Instant>) {
        let live = |mark: &Instant| *mark >= self.answered;
        let (large, small) = (large.filter(live), small.filter(live));
        let excused = large.filter(|mark| elsewhere.is_some_and(|heard| heard >= *mark));
        self.urgent = if excused.is_some() { None } else { large };
        self.mild = [small, excused].into_iter().flatten().min();
        // a mark younger than the question: what the question was about has been answered
        self.asked = self.asked.filter(|asked| self.mild.is_some_and(|mark| mark <= *asked));
    }

    /// When the silence will have lasted for `patience`, and whether a hedge rather than a question is due then.
    fn deadline(&self, patience: Duration) -> Option<(Instant, Option<HedgeWhy>)> {
        let urgent = self.urgent.map(|mark| (mark + patience, Some(HedgeWhy::Silence)));
        let mild = match self.asked {
            Some(asked) => Some((asked + patience, Some(HedgeWhy::Asked))),
            None => self.mild.map(|mark| (mark + patience, None)),
        };
        [urgent, mild].into_iter().flatten().min_by_key(|(at, _)| *at)
    }
}

impl Paths {
    /// Does what silence on the selected route calls for.
    pub(super) fn mind_silence(&mut self, now: Instant) {
        let Some((_, patience)) = self.watched() else { return };
        match self.silence.deadline(patience) {
            Some((at, Some(why))) if now >= at => self.start_hedge(why, true, now),
            Some((at, None)) if now >= at => {
                self.silence.asked = Some(now);
                self.selected.into_iter().for_each(|route| self.ping(route, false, now));
            }
            _ => {}
        }
        let idle = !self.is_busy(now);
        let silent = self.selected_route().is_some_and(Route::is_silent);
        if idle && silent {
            self.start_hedge(HedgeWhy::PingsLost, true, now);
        }
    }

    /// When the track is to be looked at next.
    pub(super) fn next_look(&self) -> Option<Instant> {
        let (_, patience) = self.watched()?;
        self.silence.deadline(patience).map(|(at, _)| at)
    }

    /// The selected route and its patience, while silence there would mean something.
    fn watched(&self) -> Option<(RouteId, Duration)> {
        let route = self.selected_route().filter(|_| self.established.is_some() && self.hedge.is_none())?;
        Some((route.id, route.patience()))
    }

    /// The peer doubts: unless we know better, its doubt is ours.
    pub(super) fn mind_doubt(&mut self, now: Instant) {
        let Some((_, patience)) = self.watched() else { return };
        let Some(route) = self.selected_route() else { return };
        // the doubt may be about the route that was left just now
        let known = route.proof.unwrap_or_default().max(route.standing.selected_at);
        if now.since(known) > patience {
            self.start_hedge(HedgeWhy::PeerDoubts, false, now);
        }
    }

    /// Tries every route at once; a no-op while that is being done, and without a selected route.
    pub(super) fn start_hedge(&mut self, why: HedgeWhy, doubt: bool, now: Instant) {
        let Some(selected) = self.selected_route().filter(|_| self.hedge.is_none()) else { return };
        if !self.config.hedging && why != HedgeWhy::Established {
            self.silence = Silence::answered(now);
            return self.outputs.push_back(Output::ClearUnanswered);
        }

        let scared = why.is_guess() && self.scares.current(now) > 0;
        let copies_at = scared.then(|| now + selected.rtt() + SCARED_SLACK);
        let next = now + BURST_SPACING;
        self.hedge = Some(Hedge { since: now, why, doubt, next, pings: 0, copies_at, elsewhere: None, heard: None });
        self.outputs.push_back(Output::Hedged(why));
        self.tell_plan(now);
        self.ping_all(doubt, now);
        if !scared && why != HedgeWhy::Established {
            // the dial has copied everything to every route already
            self.replay_young(now);
        }
    }

    /// The network may be another one: what a hedge has found out so far says nothing any more.
    pub(super) fn doubt_all(&mut self, now: Instant) {
        if self.established.is_none() {
            return;
        }
        self.forget_goodput();
        self.keep_alive.forget();
        match &mut self.hedge {
            Some(hedge) => {
                if hedge.why.is_guess() {
                    (hedge.why, hedge.doubt) = (HedgeWhy::NetworkChanged, true);
                    hedge.copies_at = hedge.copies_at.map(|_| now);
                }
                (hedge.since, hedge.next, hedge.pings) = (now, now, 0);
                (hedge.elsewhere, hedge.heard) = (None, None);
            }
            None => self.start_hedge(HedgeWhy::NetworkChanged, true, now),
        }
        self.continue_hedge(now);
    }

    /// Sends what may have been lost on the selected route again, wherever the hedge sends new datagrams.
    fn replay_young(&mut self, now: Instant) {
        let Some((selected, hedge)) = self.selected_route().zip(self.hedge.as_ref()) else { return };
        let young = selected.patience() + selected.rtt() * 3 / 2 + now.since(hedge.since);
        self.replay_hedged(usize::MAX, young, true, now);
    }

    /// Notes on which other route the peer is heard since the hedge began: it doubts too, or has left already, and what it says
    /// there calls for more than a few datagrams. Whether the way there works as well its pongs must show in time.
    pub(super) fn hear_elsewhere(&mut self) {
        let Some(hedge) = self.hedge.as_ref().filter(|hedge| hedge.heard.is_none()) else { return };
        let since = hedge.since;
        let others = self.routes.values().filter(|route| Some(route.id) != self.selected && route.is_proven());
        let heard = others.filter(|route| route.peer.heard.is_some_and(|heard| heard > since));
        let first = heard.min_by_key(|route| (route.peer.heard, route.id));
        let heard = first.and_then(|route| Some((route.id, route.peer.heard? + route.patience())));
        if let Some(hedge) = &mut self.hedge {
            hedge.heard = heard;
        }
    }

    /// Goes on with the hedge under way.
    pub(super) fn continue_hedge(&mut self, now: Instant) {
        self.decide(now);
        if let Some(hedge) = self.hedge.as_mut().filter(|hedge| hedge.copies_at.is_some_and(|at| now >= at)) {
            hedge.copies_at = None;
            self.tell_plan(now);
            self.replay_young(now);
        }
        self.mind_stall(now);
        let patience = self.patience();
        let Some(hedge) = self.hedge.as_mut().filter(|hedge| now >= hedge.next) else { return };
        hedge.pings = hedge.pings.saturating_add(1);
        let age = now.since(hedge.since);
        hedge.next = now
            + match hedge.pings {
                0..BURST_PINGS => BURST_SPACING,
                _ if age < SEARCH_FOR => SEARCH_SPACING,
                _ if age < OUTAGE_FOR => OUTAGE_SPACING,
                _ => LONG_OUTAGE_SPACING,
            };
        // a doubt that a whole round of pings could not settle is our own, whoever began it
        let doubt = hedge.doubt || age >= patience;
        let is_burst = hedge.pings <= BURST_PINGS;
        let replay = match hedge.why {
            HedgeWhy::Established => 0,
            _ if !hedge.is_copying() => 0,
            _ if is_burst => LATEST,
            _ => SEARCH_LATEST,
        };
        self.ping_all(doubt, now);
        if replay > 0 {
            self.replay_hedged(replay, Duration::MAX, is_burst, now);
        }
        self.tell_plan(now);
    }

    /// When the hedge wants to go on, and why.
    pub(super) fn hedge_timeout(&self) -> Option<(Instant, &'static str)> {
        let hedge = self.hedge.as_ref()?;
        let decision = self.alternative(hedge.since).and(self.decision_at()).map(|at| (at, "hedge decision"));
        let copies = hedge.copies_at.map(|at| (at, "hedge copies"));
        [Some((hedge.next, "hedge ping")), decision, copies].into_iter().flatten().min_by_key(|(at, _)| *at)
    }

    /// Tells users that nothing answers, once it has been so for long enough.
    fn mind_stall(&mut self, now: Instant) {
        let Some(hedge) = self.hedge.as_ref().filter(|_| !self.stalled) else { return };
        if now.since(hedge.since) >= STALLED_AFTER && hedge.elsewhere.is_none() {
            self.stalled = true;
            self.outputs.push_back(Output::Stalled { since: hedge.since });
        }
    }

    /// A pong came in to a ping that left at `sent`: does it end the hedge under way?
    pub(super) fn weigh_pong(&mut self, route: RouteId, sent: Instant, now: Instant) {
        if let Some(hedge) = self.hedge.as_mut().filter(|hedge| sent >= hedge.since) {
            if self.selected == Some(route) {
                let is_alarm = hedge.why.is_guess();
                self.end_hedge(now);
                if is_alarm {
                    self.scares.add(now);
                }
                self.replay(route, LATEST, Duration::MAX, true);
            } else {
                hedge.elsewhere.get_or_insert((route, now));
                hedge.copies_at = hedge.copies_at.map(|at| at.min(now + SCARED_SLACK));
            }
        }
        self.decide(now);
    }

    fn end_hedge(&mut self, now: Instant) {
        self.hedge = None;
        self.outputs.push_back(Output::Unhedged);
        self.tell_plan(now);
    }

    /// Leaves the selected route if it has been silent for long enough while another one answered.
    fn decide(&mut self, now: Instant) {
        let Some(since) = self.hedge.as_ref().map(|hedge| hedge.since) else { return };
        let Some(to) = self.alternative(since).filter(|_| self.decision_at().is_some_and(|at| now >= at)) else {
            return;
        };
        let proven = self.selected_route().is_some_and(Route::is_proven);
        if let Some(route) = self.selected.and_then(|id| self.routes.get_mut(&id)) {
            route.die(now);
            self.outputs.push_back(Output::Down { route: route.id });
        }
        self.scares = Scares::default();
        self.select(to, if proven { Why::Silent } else { Why::Unproven }, now);
    }

    /// When the silence of the selected route decides: after its patience and the slack, and not before another route
    /// has answered for as long as the slack. Where a line that all routes share was out for a while, the first answer
    /// after it is as likely to come by one route as by the other.
    fn decision_at(&self) -> Option<Instant> {
        let hedge = self.hedge.as_ref()?;
        let waited = hedge.since + self.selected_route()?.patience() + SLACK;
        Some(hedge.elsewhere.map_or(waited, |(_, heard)| waited.max(heard + SLACK)))
    }

    /// The best of the other routes that have answered a ping sent since the hedge began.
    fn alternative(&self, since: Instant) -> Option<RouteId> {
        self.best(|route| Some(route.id) != self.selected && route.proof.is_some_and(|proof| proof >= since))
    }

    /// Sends the latest datagrams again wherever the hedge sends new ones, the silent route excepted unless it is the
    /// only one: there, a peer behind a NAT that has forgotten us learns of our new address by the ping before them, and one
    /// that has restarted says so to them alone. So they go there whatever the budget while the connection is idle, and earns nothing.
    fn replay_hedged(&mut self, last: usize, max_age: Duration, budgeted: bool, now: Instant) {
        let selected = self.selected;
        let others = self.proven();
        let mut alone = true;
        for route in others.iter().filter(|route| Some(*route) != selected) {
            alone = false;
            self.replay(route, last, max_age, budgeted);
        }
        if let Some(route) = selected.filter(|_| alone) {
            self.replay(route, LATEST.min(last), Duration::MAX, budgeted && self.is_busy(now));
        }
    }

    /// Sends the latest datagrams again after a hedge ended in a switch.
    pub(super) fn replay_latest(&mut self, route: RouteId) {
        self.replay(route, LATEST, Duration::MAX, true);
    }

    fn replay(&mut self, route: RouteId, last: usize, max_age: Duration, budgeted: bool) {
        self.outputs.push_back(Output::Replay { route, last, max_age, budgeted });
    }

    fn ping_all(&mut self, doubt: bool, now: Instant) {
        for route in self.route_set().iter() {
            self.ping(route, doubt, now);
        }
    }
}
