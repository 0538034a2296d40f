//! How often an idle route is pinged, so that the NATs on its way do not forget it.
//!
//! Where a server was there to ask, the NAT survey knows how long the node's own NAT keeps an idle mapping, and says so by
//! [`Input::KeepAlive`](super::Input::KeepAlive). It knows nothing of the peer's, and without a server nothing at all. So a connection
//! learns by itself: a keep-alive that finds the way closed halves the interval, some that are answered lengthen it
//! by a quarter, never beyond what the survey or the configuration says and never close to what failed within the hour.

use core::time::Duration;

use super::{Paths, WARM, event::RouteId};
use crate::Instant;

/// The least interval: NATs need no more, no mapping that lives for less is worth its packets, and zero would spin.
pub(super) const MIN_INTERVAL: Duration = Duration::from_secs(1);

/// Keep-alives answered in a row after which a longer interval is tried, and after which one death of the way has another cause: too
/// long an interval fails each time.
const HELD: u32 = 8;

/// How long an interval that failed is remembered: by then the line may be another one.
const MEMORY: Duration = Duration::from_secs(3_600);

/// A route that answers again only after this long was out, which tells nothing about mappings.
const OUTAGE: Duration = Duration::from_secs(15);

/// Before any keep-alive was sent.
const NOTHING: (RouteId, u32) = (RouteId(0), 0);

/// Pings in a row that are not lost by chance: at 1 % loss on four links two are in one of 600 intervals.
const LOST: u32 = 2;

/// The interval between keep-alives.
#[derive(Debug)]
pub(super) struct KeepAlive {
    /// The configuration's.
    configured: Duration,
    /// The longest that is allowed.
    most: Duration,
    every: Duration,
    /// What was too long, and when.
    failed: Option<(Duration, Instant)>,
    /// Answered keep-alives in a row.
    held: u32,
    /// The last one was lost, or found the way closed that had stayed open at this interval: that may have been chance, or a mapping's
    /// death of age.
    suspect: bool,
    /// The route that is kept open, and how often the way stayed open at this interval.
    open: (RouteId, u32),
    /// The one under way: the connection was idle before.
    asked: Option<(RouteId, Instant)>,
}

impl KeepAlive {
    pub(super) fn new(configured: Duration) -> Self {
        let most = configured.max(MIN_INTERVAL);
        KeepAlive {
            configured: most,
            most,
            every: most,
            failed: None,
            held: 0,
            suspect: false,
            open: NOTHING,
            asked: None,
        }
    }

    pub(super) fn every(&self) -> Duration {
        self.every
    }

    /// No longer interval than the survey's is allowed from now on, or than the configuration's if that is shorter than the default;
    /// one that was found too long does not come back by that.
    pub(super) fn set_most(&mut self, surveyed: Option<Duration>) {
        let bound = if self.configured < WARM { self.configured } else { Duration::MAX };
        self.most = surveyed.map_or(self.configured, |surveyed| surveyed.clamp(MIN_INTERVAL, bound));
        self.every = if self.failed.is_some() { self.every.min(self.most) } else { self.most };
    }

    /// In another network nothing has failed yet.
    pub(super) fn forget(&mut self) {
        *self =
            KeepAlive { every: self.most, failed: None, held: 0, suspect: false, open: NOTHING, asked: None, ..*self };
    }

    /// A keep-alive leaves on an idle route.
    pub(super) fn ask(&mut self, route: RouteId, now: Instant) {
        if self.open.0 != route {
            self.open = (route, 0);
        }
        self.asked = self.asked.filter(|(asked, _)| *asked == route).or(Some((route, now)));
    }

    /// Takes in that the route has answered a ping of `sent`, after so many in a row were lost.
    pub(super) fn answered(&mut self, route: RouteId, sent: Instant, lost: u32, now: Instant) {
        let Some((_, asked)) = self.asked.take_if(|(asked, _)| *asked == route) else { return };
        match () {
            () if sent <= asked => self.hold(now), // however late: the way was open
            () if now.since(asked) >= OUTAGE => {}
            () if lost >= LOST => self.blame(now),
            () if self.suspect => self.fail(now),
            () => self.doubt(),
        }
    }

    /// The way had been closed when the keep-alive under way came there.
    pub(super) fn closed(&mut self, route: RouteId, now: Instant) {
        if self.asked.take_if(|(asked, at)| *asked == route && now.since(*at) < OUTAGE).is_some() {
            self.blame(now);
        }
    }

    /// The route is no more.
    pub(super) fn drop_route(&mut self, route: RouteId) {
        self.asked.take_if(|(asked, _)| *asked == route);
    }

    /// The way was closed: for too long an interval, or where that has held for long, because a mapping has died of age, a cable was
    /// pulled, the peer has moved.
    fn blame(&mut self, now: Instant) {
        if self.open.1 >= HELD && !self.suspect {
            self.doubt();
        } else {
            self.fail(now);
        }
    }

    fn doubt(&mut self) {
        (self.suspect, self.held) = (true, 0);
    }

    fn fail(&mut self, now: Instant) {
        self.failed = Some((self.every, now));
        self.every = (self.every / 2).max(MIN_INTERVAL);
        (self.held, self.suspect, self.open.1) = (0, false, 0);
    }

    fn hold(&mut self, now: Instant) {
        self.suspect = false;
        self.open.1 = self.open.1.saturating_add(1);
        self.held += 1;
        if self.held < HELD {
            return;
        }
        self.held = 0;
        self.failed.take_if(|(_, at)| now.since(*at) >= MEMORY);
        let longer = (self.every * 5 / 4).min(self.most);
        if self.failed.is_none_or(|(failed, _)| longer <= failed * 3 / 4) {
            self.open.1 *= u32::from(longer == self.every);
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
        keep.set_most(Some(secs(60)));
        assert_eq!(keep.every(), secs(60));
        idle(&mut keep, 1, secs(6), &mut now);
        keep.set_most(Some(secs(40)));
        assert_eq!(keep.every(), secs(30));
        keep.set_most(Some(secs(5)));
        assert_eq!(keep.every(), secs(5));
        keep.set_most(Some(secs(60)));
        assert_eq!(keep.every(), secs(5));
        assert_eq!(KeepAlive::new(Duration::ZERO).every(), MIN_INTERVAL);
    }

    #[test]
    fn an_interval_that_the_operator_wants_shorter_than_the_default_stays_so() {
        let mut keep = KeepAlive::new(secs(2));
        keep.set_most(None);
        assert_eq!(keep.every(), secs(2));
        keep.set_most(Some(secs(60)));
        assert_eq!(keep.every(), secs(2));
        keep.set_most(Some(secs(1)));
        assert_eq!(keep.every(), secs(1));
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

    #[test]
    fn mappings_that_die_of_age_are_not_pinged_more_often() {
        let (mut keep, mut now) = (KeepAlive::new(secs(10)), Instant::START);
        for _ in 0..12 {
            idle(&mut keep, 60, secs(600), &mut now);
            now += keep.every();
            keep.ask(ROUTE, now);
            keep.closed(ROUTE, now);
        }
        assert_eq!(keep.every(), secs(10));
    }

    #[test]
    fn a_longer_interval_and_another_route_have_to_prove_themselves_first() {
        let (mut keep, mut now) = (KeepAlive::new(secs(20)), Instant::START);
        keep.every = secs(10);
        idle(&mut keep, HELD, secs(600), &mut now);
        assert_eq!(keep.every(), secs(10) * 5 / 4);
        idle(&mut keep, 1, secs(11), &mut now);
        assert_eq!(keep.every(), secs(10) * 5 / 8, "too long at the first try");

        let (mut keep, mut now) = (KeepAlive::new(secs(10)), Instant::START);
        idle(&mut keep, 60, secs(600), &mut now);
        keep.ask(RouteId(1), now);
        keep.closed(RouteId(1), now);
        assert_eq!(keep.every(), secs(5));
    }

    #[test]
    fn a_late_answer_to_the_keep_alive_itself_shows_that_the_way_was_open() {
        let (mut keep, mut now) = (KeepAlive::new(secs(10)), Instant::START);
        for _ in 0..20 {
            now += keep.every();
            keep.ask(ROUTE, now);
            keep.answered(ROUTE, now, 2, now + Duration::from_millis(750)); // a radio that wakes up
        }
        assert_eq!(keep.every(), secs(10));
    }

    #[test]
    fn the_first_question_after_an_idle_time_is_the_one_that_counts() {
        let (mut keep, now) = (KeepAlive::new(secs(10)), Instant::START + secs(100));
        for _ in 0..2 {
            keep.ask(ROUTE, now);
            keep.ask(ROUTE, now + secs(1)); // the second went through what the first had opened
            keep.answered(ROUTE, now + secs(1), 1, now + secs(1));
        }
        assert_eq!(keep.every(), secs(5));
    }

    #[test]
    fn a_route_that_was_closed_after_an_outage_tells_nothing() {
        let (mut keep, now) = (KeepAlive::new(secs(10)), Instant::START + secs(100));
        for _ in 0..3 {
            keep.ask(ROUTE, now);
            keep.closed(ROUTE, now + OUTAGE);
            keep.drop_route(ROUTE);
        }
        assert_eq!((keep.every(), keep.suspect), (secs(10), false));
    }
}
