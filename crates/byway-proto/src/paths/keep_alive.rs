//! How often an idle route is pinged, so that the NATs on its way do not forget it.
//!
//! Where a server was there to ask, the NAT survey knows how long the node's own NAT keeps an idle mapping, and says so by
//! [`Input::KeepAlive`](super::Input::KeepAlive). It knows nothing of the peer's, and without a server nothing at all. So a connection
//! learns by itself: a keep-alive that finds the way closed halves the interval, some that are answered lengthen it
//! by a quarter, never beyond what the survey or the configuration says and never close to what failed within the hour.

use core::time::Duration;

use super::{Paths, event::RouteId};
use crate::Instant;

/// The least interval: NATs need no more, no mapping that lives for less is worth its packets, and zero would spin.
pub(super) const MIN_INTERVAL: Duration = Duration::from_secs(1);

/// Keep-alives answered in a row after which a longer interval is tried.
const HELD: u32 = 8;

/// How long an interval that failed is remembered: by then the line may be another one.
const MEMORY: Duration = Duration::from_secs(3_600);

/// A route that answers again only after this long was out, which tells nothing about mappings.
const OUTAGE: Duration = Duration::from_secs(15);

/// Pings in a row that are not lost by chance: at 1 % loss on four links two are in one of 600 intervals.
const LOST: u32 = 2;

/// The interval between keep-alives.
#[derive(Debug)]
pub(super) struct KeepAlive {
    /// The longest that is allowed.
    most: Duration,
    every: Duration,
    /// What was too long, and when.
    failed: Option<(Duration, Instant)>,
    /// Answered keep-alives in a row.
    held: u32,
    /// The last one was lost, which may have been chance.
    suspect: bool,
    /// The one under way: the connection was idle before.
    asked: Option<(RouteId, Instant)>,
}

impl KeepAlive {
    pub(super) fn new(most: Duration) -> Self {
        let most = most.max(MIN_INTERVAL);
        KeepAlive { most, every: most, failed: None, held: 0, suspect: false, asked: None }
    }

    pub(super) fn every(&self) -> Duration {
        self.every
    }

    /// No longer interval than this is allowed from now on; one that was found too long does not come back by that.
    pub(super) fn set_most(&mut self, most: Duration) {
        self.most = most.max(MIN_INTERVAL);
        self.every = if self.failed.is_some() { self.every.min(self.most) } else { self.most };
    }

    /// In another network nothing has failed yet.
    pub(super) fn forget(&mut self) {
        *self = KeepAlive::new(self.most);
    }

    /// A keep-alive leaves on an idle route.
    pub(super) fn ask(&mut self, route: RouteId, now: Instant) {
        self.asked = self.asked.filter(|(asked, _)| *asked == route).or(Some((route, now)));
    }

    /// Takes in that the route has answered a ping of `sent`, after so many in a row were lost.
    pub(super) fn answered(&mut self, route: RouteId, sent: Instant, lost: u32, now: Instant) {
        let Some((_, asked)) = self.asked.take_if(|(asked, _)| *asked == route) else { return };
        match () {
            () if sent <= asked && lost == 0 => self.hold(now),
            () if now.since(asked) >= OUTAGE => {}
            () if lost >= LOST || self.suspect => self.fail(now),
            () => (self.suspect, self.held) = (true, 0),
        }
    }

    /// The way had been closed when the keep-alive under way came there.
    pub(super) fn closed(&mut self, route: RouteId, now: Instant) {
        if self.asked.take_if(|(asked, at)| *asked == route && now.since(*at) < OUTAGE).is_some() {
            self.fail(now);
        }
    }

    fn fail(&mut self, now: Instant) {
        self.failed = Some((self.every, now));
        self.every = (self.every / 2).max(MIN_INTERVAL);
        (self.held, self.suspect) = (0, false);
    }

    fn hold(&mut self, now: Instant) {
        self.suspect = false;
        self.held += 1;
        if self.held < HELD {
            return;
        }
        self.held = 0;
        self.failed.take_if(|(_, at)| now.since(*at) >= MEMORY);
        let longer = (self.every * 5 / 4).min(self.most);
        if self.failed.is_none_or(|(failed, _)| longer <= failed * 3 / 4) {
            self.every = longer;
        }
    }
}

impl Paths {
    /// The interval between keep-alives. That of the dialled side is a tenth shorter: in step, the pings of one side would always find
    /// open what the other's have just opened, and never see that it had been closed.
    pub(super) fn keep_alive_interval(&self) -> Duration {
        let every = self.keep_alive.every();
        if self.bias.gives_way { every - every / 10 } else { every }
    }

    /// A NAT of ours gave the route another outer port: the ping that is being answered found no mapping any more.
    pub(super) fn remapped(&mut self, route: RouteId, now: Instant) {
        self.keep_alive.closed(route, now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROUTE: RouteId = RouteId(0);

    fn secs(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// So many intervals on a way that stays open for `lives` after each packet: the intervals, the last one first.
    fn idle(keep: &mut KeepAlive, intervals: u32, lives: Duration, now: &mut Instant) {
        for _ in 0..intervals {
            *now += keep.every();
            keep.ask(ROUTE, *now);
            let asked = *now;
            if keep.every() <= lives {
                keep.answered(ROUTE, asked, 0, *now + Duration::from_millis(50));
            } else {
                *now += secs(1);
                keep.answered(ROUTE, *now, 2, *now); // the third ping of ours went through what the first had opened
            }
        }
    }

    #[test]
    fn an_interval_that_the_way_does_not_survive_is_halved_and_lengthened_with_care() {
        let (mut keep, mut now) = (KeepAlive::new(secs(10)), Instant::START);
        idle(&mut keep, 1, secs(6), &mut now);
        assert_eq!(keep.every(), secs(5));
        idle(&mut keep, 200, secs(6), &mut now);
        assert!((secs(3)..secs(6)).contains(&keep.every()), "{:?}", keep.every());
        let settled = keep.every();
        idle(&mut keep, 100, secs(6), &mut now);
        assert_eq!(keep.every(), settled, "nothing is tried that failed within the hour");
    }

    #[test]
    fn a_way_that_closes_at_once_is_pinged_each_second_at_most() {
        let (mut keep, mut now) = (KeepAlive::new(secs(10)), Instant::START);
        idle(&mut keep, 20, Duration::ZERO, &mut now);
        assert_eq!(keep.every(), MIN_INTERVAL);
    }

    #[test]
    fn what_failed_is_forgotten_after_an_hour_and_in_another_network() {
        let (mut keep, mut now) = (KeepAlive::new(secs(10)), Instant::START);
        idle(&mut keep, 1, secs(6), &mut now);
        idle(&mut keep, 1_500, secs(600), &mut now);
        assert_eq!(keep.every(), secs(10), "and never beyond what is allowed");
        idle(&mut keep, 1, secs(6), &mut now);
        keep.forget();
        assert_eq!(keep.every(), secs(10));
    }

    #[test]
    fn one_lost_ping_is_chance_and_two_intervals_in_a_row_are_not() {
        let (mut keep, now) = (KeepAlive::new(secs(10)), Instant::START + secs(100));
        let lose_one = |keep: &mut KeepAlive| {
            keep.ask(ROUTE, now);
            keep.answered(ROUTE, now + secs(1), 1, now + secs(1));
        };
        lose_one(&mut keep);
        assert_eq!(keep.every(), secs(10));
        keep.ask(ROUTE, now);
        keep.answered(ROUTE, now, 0, now);
        lose_one(&mut keep);
        assert_eq!(keep.every(), secs(10));
        lose_one(&mut keep);
        assert_eq!(keep.every(), secs(5));
    }

    #[test]
    fn an_outage_tells_nothing() {
        let (mut keep, now) = (KeepAlive::new(secs(10)), Instant::START + secs(100));
        keep.ask(ROUTE, now);
        keep.answered(ROUTE, now + OUTAGE, 40, now + OUTAGE);
        assert_eq!(keep.every(), secs(10));
    }

    #[test]
    fn the_surveys_word_bounds_what_was_learned_and_does_not_undo_it() {
        let (mut keep, mut now) = (KeepAlive::new(secs(10)), Instant::START);
        keep.set_most(secs(60));
        assert_eq!(keep.every(), secs(60));
        idle(&mut keep, 1, secs(6), &mut now);
        keep.set_most(secs(40));
        assert_eq!(keep.every(), secs(30));
        keep.set_most(secs(5));
        assert_eq!(keep.every(), secs(5));
        keep.set_most(secs(60));
        assert_eq!(keep.every(), secs(5));
        assert_eq!(KeepAlive::new(Duration::ZERO).every(), MIN_INTERVAL);
    }

    #[test]
    fn a_new_outer_port_tells_that_the_way_was_closed_only_after_a_silence() {
        let (mut keep, now) = (KeepAlive::new(secs(10)), Instant::START + secs(100));
        keep.closed(ROUTE, now);
        assert_eq!(keep.every(), secs(10), "the mapping died while packets passed");
        keep.ask(ROUTE, now);
        keep.closed(ROUTE, now);
        keep.answered(ROUTE, now, 0, now);
        assert_eq!((keep.every(), keep.held), (secs(5), 0));
    }
}
