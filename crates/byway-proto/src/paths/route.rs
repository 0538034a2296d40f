//! What the machine knows of one route: its pings, its measures, its standing.

use alloc::collections::VecDeque;
use core::time::Duration;

use super::{
    event::{RouteId, RouteKind},
    goodput::Carried,
};
use crate::Instant;

/// The least time to wait for an answer: covers the peer's delayed acknowledgement (25 ms) and a scheduling hiccup on
/// a route whose own round trip is short.
pub(super) const MIN_PATIENCE: Duration = Duration::from_millis(150);

/// Stands for the round-trip time before the first pong; what QUIC's connections start with too.
pub(super) const INITIAL_RTT: Duration = Duration::from_millis(100);

/// The longest round trip believed, and how long a ping is remembered: an answer later than this says that the
/// machine slept, not how long the route is.
pub(super) const MAX_RTT: Duration = Duration::from_secs(10);

/// The most pings of one route that wait for an answer: the burst of a hedge and four seconds of what follows it, so
/// that a round trip of four seconds can still be measured.
pub(super) const MAX_PINGS: usize = 16;

/// Pings in a row that a standby may leave unanswered before it counts as dead: at 3 % loss each way a false verdict
/// comes once in 5,000 pings.
const MISSES_TO_DEATH: u32 = 3;

/// Pongs in a row that a better route needs before it is selected …
pub(super) const ROW_PONGS: u32 = 5;

/// … and the least time that the row must span: a route that flaps faster than this never gets selected.
pub(super) const ROW_SPAN: Duration = Duration::from_secs(2);

/// A pause between two pongs that breaks the row: what was true before an idle time need not be true after it; longer
/// than the keep-alive spacing, so that a return needs no traffic.
const ROW_GAP: Duration = Duration::from_secs(30);

/// How long a route that the connection has left must wait for its return, doubled with every further time.
const BAR: Duration = Duration::from_secs(2);

/// The most doublings of [`BAR`]: two minutes keep a flapping route below one switch a minute.
const MAX_FLAPS: u32 = 7;

/// So long as the selected route, and one earlier leave is forgiven.
const FORGIVEN_AFTER: Duration = Duration::from_secs(60);

/// Pings closer together are one sample of the route's loss: a hedge's burst is lost or answered as one.
const SAMPLE_SPACING: Duration = Duration::from_millis(200);

/// How often a padded ping is tried: with 3 % loss each way, a route that carries it is missed once in 5,000.
const MTU_TRIES: u8 = 3;

/// The time between two padded pings: longer than the routes' round trips, so that a lost one is known to be lost.
const MTU_SPACING: Duration = Duration::from_secs(1);

/// One route and its record.
#[derive(Debug)]
pub(super) struct Route {
    pub(super) id: RouteId,
    pub(super) kind: RouteKind,
    pub(super) trusted: bool,
    pub(super) added: Instant,
    pub(super) peer: Presence,
    /// The latest scheduled or hedged ping; padded ones apart.
    pub(super) last_ping: Option<Instant>,
    pub(super) proven_since: Option<Instant>,
    /// When the latest ping that was answered had left.
    pub(super) proof: Option<Instant>,
    pub(super) srtt: Option<Duration>,
    pub(super) tally: Tally,
    pub(super) row: Row,
    pub(super) carried: Carried,
    pub(super) standing: Standing,
    pub(super) mtu: MtuProbe,
    pings: VecDeque<Ping>,
}

/// Where the peer is.
#[derive(Debug, Default)]
pub(super) struct Presence {
    /// When it was last heard on the route, as far as is known.
    pub(super) heard: Option<Instant>,
    /// When its first ping came by the route, if that is how the route came to be.
    pub(super) asked: Option<Instant>,
    /// Whether any ping of its came by the route.
    pub(super) has_pinged: bool,
}

/// Lost pings.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// Their smoothed share, in thousandths.
    pub(super) loss: u16,
    /// How many in a row.
    pub(super) misses: u32,
    /// When the latest ping that counts left.
    latest: Option<Instant>,
}

/// Pongs in a row.
#[derive(Debug, Default)]
pub(super) struct Row {
    pub(super) pongs: u32,
    since: Instant,
    latest: Instant,
}

/// Whether a route may be relied on.
#[derive(Debug, Default)]
pub(super) struct Standing {
    pub(super) dead: bool,
    /// Pings sent to see whether a dead route answers again.
    pub(super) tries: u32,
    /// How often the connection has left it, as far as that is not forgiven yet.
    pub(super) flaps: u32,
    /// No return before this.
    pub(super) barred: Instant,
    pub(super) selected_at: Instant,
}

/// The search for a route that carries full datagrams.
#[derive(Debug, Default)]
pub(super) struct MtuProbe {
    tries: u8,
    last: Instant,
    pub(super) proven: bool,
}

#[derive(Debug)]
struct Ping {
    txid: u64,
    sent: Instant,
    padded: bool,
    /// Whether its fate is one sample of the route's loss.
    counts: bool,
    /// Counted as lost; kept for the round-trip time that a late answer tells.
    overdue: bool,
}

/// What a pong told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Answer {
    /// When its ping had left.
    pub(super) sent: Instant,
    /// Whether it is the route's first.
    pub(super) first: bool,
    /// Whether it proves for the first time that full datagrams pass.
    pub(super) mtu_proven: bool,
}

impl Route {
    pub(super) fn new(id: RouteId, kind: RouteKind, trusted: bool, now: Instant) -> Self {
        Route {
            id,
            kind,
            trusted,
            added: now,
            peer: Presence::default(),
            last_ping: None,
            proven_since: None,
            proof: None,
            srtt: None,
            tally: Tally::default(),
            row: Row::default(),
            carried: Carried::default(),
            standing: Standing::default(),
            mtu: MtuProbe::default(),
            pings: VecDeque::new(),
        }
    }

    /// How long an answer may take before its absence means something.
    pub(super) fn patience(&self) -> Duration {
        (self.rtt() * 3 / 2).max(MIN_PATIENCE)
    }

    /// The smoothed round-trip time, or what stands for it.
    pub(super) fn rtt(&self) -> Duration {
        self.srtt.unwrap_or(INITIAL_RTT)
    }

    pub(super) fn is_proven(&self) -> bool {
        self.proven_since.is_some()
    }

    pub(super) fn score(&self) -> Score {
        self.score_with(0, Duration::ZERO)
    }

    /// The score with more loss and a longer round trip than was measured.
    fn score_with(&self, loss: u16, rtt: Duration) -> Score {
        let relayed = if self.kind == RouteKind::Relay { self.rtt() / 2 + RELAY_HANDICAP } else { Duration::ZERO };
        let delay = Delay::of(self.rtt() + relayed + rtt);
        Score { loss: Loss::of(self.tally.loss.saturating_add(loss)), delay, kind: self.kind }
    }

    /// Notes that a probe from before the route's time came back after `rtt`.
    pub(super) fn prove(&mut self, rtt: Duration, now: Instant) {
        self.srtt = Some(rtt);
        self.proven_since = Some(now);
        self.proof = Some(now - rtt);
        self.last_ping = self.proof;
        self.row.extend(now);
    }

    /// Whether the route is better than the selected one even if its own measures flatter it; what either delivers counts
    /// for more than its pings.
    ///
    /// The handicap is the hysteresis: of two routes with like measures, neither is better by this rule.
    pub(super) fn rivals(&self, selected: &Route) -> bool {
        if self.carried.is_outdone_by(&selected.carried) {
            return false;
        }
        selected.carried.is_outdone_by(&self.carried)
            || self.score_with(LOSS_HANDICAP, self.rtt() / 2) < selected.score()
    }

    /// Notes that a ping leaves.
    pub(super) fn ping(&mut self, txid: u64, padded: bool, now: Instant) {
        if self.pings.len() >= MAX_PINGS {
            self.pings.pop_front().into_iter().for_each(|ping| self.lose(&ping));
        }
        let counts = !padded && self.tally.latest.is_none_or(|latest| now.since(latest) >= SAMPLE_SPACING);
        if counts {
            self.tally.latest = Some(now);
        }
        self.pings.push_back(Ping { txid, sent: now, padded, counts, overdue: false });
        if padded {
            self.mtu.tries += 1;
            self.mtu.last = now;
        } else {
            self.last_ping = Some(now);
        }
    }

    /// When the next ping that is not answered until then counts as lost.
    pub(super) fn next_expiry(&self) -> Option<Instant> {
        let waiting = self.pings.iter().filter(|ping| !ping.overdue && !ping.padded);
        waiting.map(|ping| ping.sent + self.overdue_after()).min()
    }

    fn overdue_after(&self) -> Duration {
        (self.patience() * 2).min(MAX_RTT)
    }

    /// Counts pings that should have been answered by now as lost, and forgets what is too old.
    pub(super) fn expire(&mut self, now: Instant) {
        self.carried.expire(now);
        let overdue_after = self.overdue_after();
        let mut pings = core::mem::take(&mut self.pings);
        // room for the two pings that may follow, so that sending them changes no measure that it was decided by
        while pings.len() > MAX_PINGS - 2 {
            pings.pop_front().into_iter().for_each(|ping| self.lose(&ping));
        }
        for ping in &mut pings {
            if now.since(ping.sent) >= overdue_after {
                self.lose(ping);
                ping.overdue = true;
            }
        }
        pings.retain(|ping| now.since(ping.sent) <= MAX_RTT);
        self.pings = pings;
    }

    /// Takes in a pong; `None` if it answers no ping of this route.
    pub(super) fn pong(&mut self, txid: u64, now: Instant) -> Option<Answer> {
        self.expire(now);
        let at = self.pings.iter().position(|ping| ping.txid == txid)?;
        let ping = self.pings.remove(at)?;
        let rtt = now.since(ping.sent);
        self.srtt = Some(self.srtt.map_or(rtt, |srtt| (srtt * 3 + rtt) / 4));
        let first = self.proven_since.is_none();
        self.proven_since.get_or_insert(now);
        self.proof = self.proof.max(Some(ping.sent));
        if self.standing.dead {
            // what was lost while it was dead says nothing about the route that came back
            self.standing.dead = false;
            self.tally.loss = 0;
            self.row.pongs = 0;
        } else if !ping.overdue && ping.counts {
            self.tally.loss -= self.tally.loss / LOSS_WEIGHT;
        }
        self.peer.heard = Some(now);
        self.standing.tries = 0;
        self.tally.misses = 0;
        self.row.extend(now);
        let mtu_proven = ping.padded && !self.mtu.proven;
        self.mtu.proven |= ping.padded;
        Some(Answer { sent: ping.sent, first, mtu_proven })
    }

    /// Whether the row of pongs, and the time since its death, allow the route to be selected again.
    pub(super) fn may_return(&self, now: Instant) -> bool {
        let row = &self.row;
        row.pongs >= ROW_PONGS && row.latest.since(row.since) >= ROW_SPAN && now >= self.standing.barred
    }

    /// Notes that the route carries the connection from now on.
    pub(super) fn take_over(&mut self, now: Instant) {
        self.standing.selected_at = now;
        self.standing.dead = false;
        self.standing.tries = 0;
    }

    /// Notes that the route died while it carried the connection.
    pub(super) fn die(&mut self, now: Instant) {
        self.leave(now);
        self.standing.dead = true;
        self.standing.tries = 0;
        self.row.pongs = 0;
    }

    /// Notes that the connection leaves the route, which bars its return; every time for longer.
    pub(super) fn leave(&mut self, now: Instant) {
        let lived = now.since(self.standing.selected_at);
        let forgiven = u32::try_from(lived.as_secs() / FORGIVEN_AFTER.as_secs()).unwrap_or(u32::MAX);
        self.standing.flaps = (self.standing.flaps.saturating_sub(forgiven) + 1).min(MAX_FLAPS);
        self.standing.barred = now + BAR * (1 << (self.standing.flaps - 1));
    }

    /// Gives up relying on a standby that leaves its pings unanswered; whether it has just done so.
    pub(super) fn bury(&mut self) -> bool {
        let dies = self.is_proven() && self.tally.misses >= MISSES_TO_DEATH && !self.standing.dead;
        if dies {
            self.standing.dead = true;
            self.standing.tries = 0;
        }
        dies
    }

    /// Whether as many pings in a row went unanswered as make a standby count as dead.
    pub(super) fn is_silent(&self) -> bool {
        self.tally.misses >= MISSES_TO_DEATH
    }

    /// When the padded ping is due again; the first one follows the route's first pong at once, or, where the handshake has proven the
    /// route, the first datagram that it may be too small for.
    pub(super) fn next_mtu_probe(&self) -> Option<Instant> {
        let is_due = self.is_proven() && !self.mtu.proven && (1..MTU_TRIES).contains(&self.mtu.tries);
        is_due.then_some(self.mtu.last + MTU_SPACING)
    }

    fn lose(&mut self, ping: &Ping) {
        if ping.overdue || ping.padded {
            return; // counted already; or lost for its size, which says nothing about the route
        }
        if ping.counts {
            self.tally.loss += (1000 - self.tally.loss.min(1000)) / LOSS_WEIGHT;
        }
        self.tally.misses = self.tally.misses.saturating_add(1);
        self.row.pongs = 0;
    }
}

impl MtuProbe {
    pub(super) fn is_untried(&self) -> bool {
        self.tries == 0
    }
}

impl Row {
    fn extend(&mut self, now: Instant) {
        if self.pongs == 0 || now.since(self.latest) > ROW_GAP {
            self.pongs = 0;
            self.since = now;
        }
        self.latest = now;
        self.pongs = self.pongs.saturating_add(1);
    }
}

/// How good a route is, best first: loss decides, then delay, then the kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Score {
    loss: Loss,
    delay: Delay,
    kind: RouteKind,
}

/// What a relay's round trip is raised by before it is compared: a direct path costs nobody anything and shows nobody who
/// talks to whom, so that it may be slower, but not twice as slow.
const RELAY_HANDICAP: Duration = Duration::from_millis(50);

/// How many pings of a hundred are lost, there and back; best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Loss {
    /// Up to what radio links show on a normal day.
    Low,
    /// Noticed by every application.
    High,
    /// Hardly usable.
    Severe,
}

/// The inverse weight of one ping in the smoothed loss: half a minute of a busy route's pings. With half of it two routes whose
/// links lose 3 % looked so unlike that one in three connections left a good route within ten minutes, with this one in a
/// hundred.
const LOSS_WEIGHT: u16 = 32;

/// What a rival's loss is raised by before it is compared, in thousandths. Four links of 3 % each lose 115, and the smoothed
/// figure strays by 56: both must stray by two and more at once for a false comparison.
const LOSS_HANDICAP: u16 = 200;

impl Loss {
    fn of(thousandths: u16) -> Self {
        match thousandths {
            0..300 => Loss::Low,
            300..600 => Loss::High,
            _ => Loss::Severe,
        }
    }
}

/// How long a round trip takes, in steps that double: 0 is below 8 ms, 1 below 16 ms, and so on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Delay(u32);

impl Delay {
    fn of(rtt: Duration) -> Self {
        let steps = u64::try_from(rtt.as_millis() / 8).unwrap_or(u64::MAX);
        Delay(u64::BITS - steps.leading_zeros())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Instant {
        Instant::after_start(Duration::from_millis(ms))
    }

    fn answering(kind: RouteKind, rtt: u64) -> Route {
        let mut route = Route::new(RouteId(0), kind, true, at(0));
        route.ping(1, false, at(0));
        route.pong(1, at(rtt)).unwrap();
        route
    }

    #[test]
    fn a_relay_rivals_a_direct_path_only_where_it_is_far_better_and_like_delays_do_not_rival() {
        let near = answering(RouteKind::Direct, 30);
        let twin = answering(RouteKind::Direct, 34);
        let far = answering(RouteKind::Direct, 500);
        let relay = answering(RouteKind::Relay, 2);
        let alike = answering(RouteKind::Relay, 30);
        assert!(relay.rivals(&far) && !far.rivals(&relay));
        assert!(near.rivals(&far) && !far.rivals(&near));
        assert!(near.rivals(&alike) && !relay.rivals(&near) && !alike.rivals(&near));
        assert!(!near.rivals(&twin) && !twin.rivals(&near));
        let mut lossy = answering(RouteKind::Direct, 30);
        lossy.tally.loss = 310;
        assert!(alike.rivals(&lossy) && !lossy.rivals(&alike));
    }

    #[test]
    fn of_two_routes_whose_links_lose_as_much_neither_looks_far_worse_by_chance() {
        let mut rng = crate::Rng::new(&[7; 32], "pings");
        let mut left = 0;
        for _ in 0..100 {
            let (mut selected, mut standby) = (answering(RouteKind::Direct, 100), answering(RouteKind::Relay, 100));
            left += usize::from((2..700).any(|second| {
                for (route, every) in [(&mut selected, 1), (&mut standby, 10)] {
                    if second % every == 0 {
                        route.ping(second, false, at(second * 1_000));
                        if rng.below(1_000) >= 115 {
                            route.pong(second, at(second * 1_000 + 100)); // four links of 3 %
                        }
                        route.expire(at(second * 1_000 + 900));
                    }
                }
                standby.rivals(&selected)
            }));
        }
        assert!(left <= 5, "{left} of 100 connections would leave a route that is as good as the other");
    }

    #[test]
    fn late_pong_still_measures_the_round_trip() {
        let mut route = answering(RouteKind::Direct, 50);
        route.ping(2, false, at(1_000));
        route.expire(at(1_400));
        assert_eq!((route.tally.misses, route.row.pongs), (1, 0));
        assert!(route.pong(2, at(2_000)).is_some());
        assert_eq!(route.srtt, Some(Duration::from_micros(287_500)));
        assert_eq!((route.tally.misses, route.row.pongs), (0, 1));
    }

    #[test]
    fn only_the_latest_pings_are_remembered() {
        let mut route = answering(RouteKind::Direct, 50);
        for txid in 0..100 {
            route.ping(1_000 + txid, false, at(100));
        }
        assert_eq!(route.pings.len(), MAX_PINGS);
        assert!(route.pong(1_000, at(150)).is_none());
        assert!(route.pong(1_099, at(150)).is_some());
        assert!(route.pong(1_099, at(150)).is_none(), "a pong counts once");
    }

    #[test]
    fn each_early_death_bars_for_longer_and_a_long_life_is_forgiven() {
        let mut route = answering(RouteKind::Direct, 50);
        let mut now = at(1_000);
        let mut bars = [Duration::ZERO; 4];
        for bar in &mut bars {
            route.take_over(now);
            now += Duration::from_secs(5);
            route.die(now);
            *bar = route.standing.barred.since(now);
        }
        assert_eq!(bars.map(|bar| bar.as_secs()), [2, 4, 8, 16]);
        route.take_over(now);
        now += Duration::from_secs(600);
        route.die(now);
        assert_eq!(route.standing.barred.since(now).as_secs(), 2);
        for _ in 0..30 {
            route.take_over(now);
            route.die(now);
        }
        assert_eq!(route.standing.barred.since(now).as_secs(), 128, "it is not given up");
    }

    #[test]
    fn a_return_takes_five_pongs_in_a_row_without_a_long_pause() {
        let after = |spacing: u64, count: u64| {
            let mut route = answering(RouteKind::Direct, 50);
            route.row.pongs = 0;
            for n in 1..=count {
                route.ping(n + 1, false, at(n * spacing));
                route.pong(n + 1, at(n * spacing + 50)).unwrap();
            }
            route.may_return(at(count * spacing + 50))
        };
        assert!(!after(1_000, 4) && after(1_000, 5));
        assert!(after(10_000, 5) && !after(40_000, 5), "what was true before an idle time need not be true after it");
    }

    #[test]
    fn a_burst_of_lost_pings_is_one_sample_of_loss_or_two() {
        let mut route = answering(RouteKind::Direct, 50);
        (0..8).for_each(|n| route.ping(10 + n, false, at(1_000 + n * 49)));
        route.expire(at(5_000));
        assert_eq!(route.tally.misses, 8);
        assert!(route.tally.loss < 150, "{}", route.tally.loss);
    }

    #[test]
    fn a_rival_must_lose_less_by_a_fifth() {
        let lossy = |loss| {
            let mut route = answering(RouteKind::Direct, 50);
            route.tally.loss = loss;
            route
        };
        assert!(lossy(90).rivals(&lossy(310)));
        assert!(!lossy(110).rivals(&lossy(310)), "the measures of two like routes stray as much");
    }

    #[test]
    fn padded_pings_stop_after_three_tries_and_do_not_count_as_loss() {
        let mut route = answering(RouteKind::Direct, 50);
        let mut now = at(50);
        route.ping(10, true, now);
        for txid in 11..13 {
            now = route.next_mtu_probe().unwrap();
            route.ping(txid, true, now);
        }
        assert_eq!(now, at(2_050));
        assert_eq!(route.next_mtu_probe(), None);
        route.expire(at(9_000));
        assert_eq!((route.tally.loss, route.tally.misses), (0, 0));
    }
}
