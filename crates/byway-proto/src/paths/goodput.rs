//! What routes deliver: a route that is quick to ping may carry next to nothing.
//!
//! Pings are small and few, and say nothing about a line that is throttled. So each route remembers what it delivered while it
//! carried the connection: at most, whatever held the flow; and what was its limit, if for seconds there was more to send. A
//! route whose limit is half of what another one has delivered is worse than that one, until the memory of either fades.
//! Where the limit is low and nothing is known of another route, that one is tried.

use core::time::Duration;

use super::{
    Paths,
    event::{RouteId, Why},
    route::Route,
};
use crate::{Instant, congestion::Delivery};

/// How long the path must have been the limit before its rate counts: three spans of a second, of which the best counts.
const LIMITED_FOR: Duration = Duration::from_secs(3);

/// How many times as much a route must have delivered to be better: like lines with other users on them differ by less.
const FACTOR: u64 = 2;

/// How long it is remembered what a route delivered, and that it was tried: a longer time ago says little about now.
const MEMORY: Duration = Duration::from_secs(600);

/// How long it is remembered that a route was too slow, doubled each time that it is found to be so again: what throttled it may
/// be over, but to see that costs the connection five seconds of its speed.
const SLOW_FOR: Duration = Duration::from_secs(60);

/// The most doublings of [`SLOW_FOR`]: half an hour keeps the cost of looking again below half a percent.
const MAX_DOUBLINGS: u32 = 5;

/// Bytes per second below which a route of which nothing is known is worth a try: 2 Mbit/s, which a line has only where it
/// is throttled or bad. At what an ordinary line carries a try would more often than not cost the relay something for nothing.
const LOW: u64 = 250_000;

/// How long a try lasts at least: until its start is over and the route's limit was seen.
const TRY_FOR: Duration = Duration::from_secs(10);

/// What one route delivered while it carried the connection, in bytes per second.
#[derive(Debug, Default)]
pub(super) struct Carried {
    /// The most, and when it was.
    most: Option<(u64, Instant)>,
    /// When there was last more to send than it took, so that what it delivers is known.
    full: Option<Instant>,
    /// What it was limited to, and how long that is remembered.
    limit: Option<(u64, Instant)>,
    /// How often in a row the connection left it because of that.
    slow: u32,
    /// When it was last tried for the sake of it.
    tried: Option<Instant>,
}

impl Carried {
    /// Whether the other route has delivered far more than this one can.
    pub(super) fn is_outdone_by(&self, other: &Carried) -> bool {
        let (limit, most) = (self.limit.map(|(rate, _)| rate), other.most.map(|(rate, _)| rate));
        limit.zip(most).is_some_and(|(limit, most)| most >= limit.saturating_mul(FACTOR))
    }

    /// What the route is remembered to have delivered at most.
    pub(super) fn most(&self) -> Option<u64> {
        self.most.map(|(rate, _)| rate)
    }

    /// What the route is remembered to be limited to.
    pub(super) fn limit(&self) -> Option<u64> {
        self.limit.map(|(rate, _)| rate)
    }

    /// How often in a row the connection left the route because it was slow.
    #[cfg(test)]
    pub(super) fn slow_times(&self) -> u32 {
        self.slow
    }

    /// Forgets what is too old to say anything.
    pub(super) fn expire(&mut self, now: Instant) {
        self.most.take_if(|(_, at)| now.since(*at) >= MEMORY);
        self.full.take_if(|at| now.since(*at) >= MEMORY);
        self.tried.take_if(|at| now.since(*at) >= MEMORY);
        self.limit.take_if(|(_, until)| now >= *until);
    }

    /// Notes that the connection leaves the route for one that is faster, or may be.
    pub(super) fn leave(&mut self, now: Instant) {
        let memory = SLOW_FOR * (1 << self.slow.min(MAX_DOUBLINGS));
        self.slow = (self.slow + 1).min(MAX_DOUBLINGS);
        self.limit = self.limit.map(|(rate, _)| (rate, now + memory));
    }

    pub(super) fn note(&mut self, delivery: &Delivery, now: Instant) {
        let is_limit = delivery.limited_for >= LIMITED_FOR;
        if is_limit || self.most.is_none_or(|(most, _)| delivery.rate >= most) {
            self.most = Some((delivery.rate, now));
        }
        if is_limit {
            self.limit = Some((delivery.rate, now + SLOW_FOR));
            self.full = Some(now);
        } else {
            self.limit.take_if(|(limit, _)| delivery.rate > *limit); // it was none
        }
    }
}

impl Paths {
    /// Takes in what the selected route delivers.
    pub(super) fn mind_goodput(&mut self, delivery: Option<&Delivery>, now: Instant) {
        let Some(delivery) = delivery.filter(|_| self.hedge.is_none()) else { return };
        let Some(selected) = self.selected.and_then(|id| self.routes.get_mut(&id)) else { return };
        selected.carried.note(delivery, now);
        let (id, limit) = (selected.id, selected.carried.limit());
        let Some(limit) = limit.filter(|_| delivery.limited_for >= LIMITED_FOR) else { return };
        let outdone =
            |selected: &Route| self.routes.values().any(|route| selected.carried.is_outdone_by(&route.carried));
        if self.selected_route().is_some_and(outdone) {
            return; // it is rivalled, and left as soon as the other one has shown that it answers
        }
        let fresh = 2 * self.keep_alive_interval();
        let tried = self.routes.values().any(|route| route.carried.tried.is_some());
        let next = self.best(|route| route.id != id && route.may_be_tried(fresh, now));
        match next.filter(|_| limit < LOW && !tried) {
            Some(to) => self.try_out(id, to, now),
            None => self.forgive(id),
        }
    }

    /// Finds out what a route delivers of which that is not known; the one before waits for as long as that takes.
    fn try_out(&mut self, from: RouteId, to: RouteId, now: Instant) {
        if let Some(left) = self.routes.get_mut(&from) {
            left.leave(now);
            left.carried.leave(now);
            left.standing.barred = left.standing.barred.max(now + TRY_FOR);
        }
        if let Some(tried) = self.routes.get_mut(&to) {
            tried.carried.tried = Some(now);
        }
        self.select(to, Why::Tried, now);
    }

    /// A route that is as good as any is not slow any more.
    fn forgive(&mut self, route: RouteId) {
        if let Some(route) = self.routes.get_mut(&route) {
            route.carried.slow = 0;
        }
    }

    /// In another network the routes are others.
    pub(super) fn forget_goodput(&mut self) {
        self.routes.values_mut().for_each(|route| route.carried = Carried::default());
    }
}

impl Route {
    /// Whether it is not known what the route can deliver, and nothing speaks against finding out.
    fn may_be_tried(&self, fresh: Duration, now: Instant) -> bool {
        let answers = self.proof.is_some_and(|proof| now.since(proof) < fresh) && self.tally.misses == 0;
        answers && !self.standing.dead && self.carried.full.is_none() && now >= self.standing.barred
    }
}
