//! Which route is pinged how often while nothing is in doubt.

use core::time::Duration;

use super::{
    Paths,
    event::{DropWhy, Output, RouteId, RouteKind, RouteSet},
    route::Route,
};
use crate::Instant;

/// A connection is busy until it has sent nothing for this long: covers the pauses of an interactive user, and the two
/// seconds that a return takes.
const BUSY_FOR: Duration = Duration::from_secs(5);

/// The spacing on the selected route while busy: keeps its round-trip time, and with it the patience, up to date.
const SELECTED_SPACING: Duration = Duration::from_secs(1);

/// The spacing on the selected route after a lost ping: three in a row decide, and a relay that was restarted is found
/// out by that alone.
const LOST_SPACING: Duration = Duration::from_millis(300);

/// The spacing on a better route: eight pongs in the two seconds that a return must span, five of which are needed.
const BETTER_SPACING: Duration = Duration::from_millis(250);

/// The spacing on a dead route at first: it doubles with every try …
const DEAD_SPACING: Duration = Duration::from_secs(1);

/// … up to this.
const MAX_DEAD_SPACING: Duration = Duration::from_secs(60);

/// Tries after which a dead direct route is forgotten: about eight minutes of a busy connection. A relay's route is
/// not: its allocation lives elsewhere, and its owner removes it.
const DEAD_TRIES: u32 = 12;

/// The spacing on a route that has not answered yet: as on a better one …
const NEW_SPACING: Duration = BETTER_SPACING;

/// … for so long; what has not answered by then probably will not.
const NEW_FOR: Duration = Duration::from_secs(2);

/// The spacing that follows.
const UNANSWERED_SPACING: Duration = Duration::from_secs(1);

/// How long a route has to answer for the first time before it is forgotten: longer than any punch.
const UNANSWERED_FOR: Duration = Duration::from_secs(10);

/// The least pause before a ping answers a ping on a route that is not proven, or dead, here: the peer cannot make us
/// send more than this, and one.
const PING_BACK_SPACING: Duration = Duration::from_millis(50);

impl Paths {
    /// Sends a ping on a route that may have been removed meanwhile.
    pub(super) fn ping(&mut self, route: RouteId, doubt: bool, now: Instant) {
        self.send_ping(route, doubt, false, now);
    }

    /// Sends a padded ping, which finds out whether the route carries full datagrams.
    pub(super) fn ping_padded(&mut self, route: RouteId, now: Instant) {
        self.send_ping(route, false, true, now);
    }

    fn send_ping(&mut self, route: RouteId, doubt: bool, padded: bool, now: Instant) {
        let txid = self.rng.next_u64();
        if let Some(known) = self.routes.get_mut(&route) {
            known.ping(txid, padded, now);
            self.outputs.push_back(Output::Ping { route, txid, doubt, padded });
        }
    }

    /// Sends the pings that are due.
    pub(super) fn ping_due(&mut self, now: Instant) {
        let standby = self.standby();
        for id in self.route_set().iter() {
            let Some(route) = self.routes.get(&id) else { continue };
            let probe = route.next_mtu_probe().is_some_and(|at| now >= at);
            let due = self.next_ping(route, standby).is_some_and(|(at, _)| now >= at);
            let revival = due && route.standing.dead;
            if probe {
                self.ping_padded(id, now);
            }
            if due && self.selected == Some(id) && !self.is_busy(now) {
                self.keep_alive.ask(id, now);
            }
            if due {
                self.ping(id, false, now);
            }
            if let Some(route) = self.routes.get_mut(&id).filter(|_| revival) {
                route.standing.tries = route.standing.tries.saturating_add(1);
            }
        }
    }

    /// Finds out whether routes carry full datagrams whole, now that there is one to be carried.
    pub(super) fn mind_size(&mut self, split: RouteSet, now: Instant) {
        for id in split.iter() {
            if self.routes.get(&id).is_some_and(|route| route.is_proven() && route.mtu.is_untried()) {
                self.ping_padded(id, now);
            }
        }
    }

    /// When the next ping is due on any route, and why.
    pub(super) fn ping_timeout(&self) -> Option<(Instant, &'static str)> {
        let standby = self.standby();
        let probe = |route: &Route| route.next_mtu_probe().map(|at| (at, "mtu probe"));
        let due = self.routes.values().flat_map(|route| [self.next_ping(route, standby), probe(route)]);
        due.flatten().min_by_key(|(at, _)| *at)
    }

    fn next_ping(&self, route: &Route, standby: Option<RouteId>) -> Option<(Instant, &'static str)> {
        let established = self.established?;
        let selected = self.selected_route()?;
        let Some(last) = route.last_ping else { return Some((route.added.max(established), "first ping")) };
        let born = route.added.max(established);
        if !route.is_proven() && last < born + UNANSWERED_FOR {
            let spacing = if last < born + NEW_FOR { NEW_SPACING } else { UNANSWERED_SPACING };
            return Some((last + spacing, "ping of a new route"));
        }
        let busy_until = self.last_sent.map_or(Instant::START, |sent| sent + BUSY_FOR);
        let while_busy = |spacing: Duration, why| Some((last + spacing, why)).filter(|(at, _)| *at <= busy_until);
        let kept_warm = Some((last + self.keep_alive_interval(), "keep-alive ping"));
        if route.id == selected.id {
            if route.tally.misses > 0 {
                return Some((last + LOST_SPACING, "ping after a lost one"));
            }
            // a rival is measured as often: the older measure of two would lose by its age
            let spacing = if self.is_rivalled() { BETTER_SPACING } else { SELECTED_SPACING };
            return while_busy(spacing, "ping of the selected route").or(kept_warm);
        }
        let wanted = if route.standing.dead {
            while_busy(dead_spacing(route.standing.tries), "ping of a dead route")
        } else if route.rivals(selected) {
            let barred = last + BETTER_SPACING < route.standing.barred;
            let spacing = if barred { DEAD_SPACING } else { BETTER_SPACING };
            while_busy(spacing, "ping of a better route")
        } else {
            None
        };
        wanted.or(kept_warm.filter(|_| standby == Some(route.id)))
    }

    /// Whether a living route seems better than the selected one.
    fn is_rivalled(&self) -> bool {
        let rivals =
            |selected: &Route| self.routes.values().any(|route| !route.standing.dead && route.rivals(selected));
        self.selected_route().is_some_and(rivals)
    }

    /// Whether QUIC has sent anything of late.
    pub(super) fn is_busy(&self, now: Instant) -> bool {
        self.last_sent.is_some_and(|sent| now <= sent + BUSY_FOR)
    }

    /// A ping came in: a route that we do not rely on may do after all. The peer's first is answered with one at once: ours
    /// from before may have been there earlier than the peer's keys, and until one is answered a handshake's copies go on.
    pub(super) fn ping_back(&mut self, route: RouteId, now: Instant) {
        let Some(known) = self.routes.get_mut(&route) else { return };
        let is_first = !core::mem::replace(&mut known.peer.has_pinged, true);
        known.peer.heard = Some(now);
        if known.is_proven() && !known.standing.dead {
            return;
        }
        if !known.is_proven() && !known.trusted {
            known.peer.asked.get_or_insert(now);
        }
        known.standing.tries = 0;
        if is_first || known.last_ping.is_none_or(|last| now >= last + PING_BACK_SPACING) {
            self.ping(route, false, now);
        }
    }

    /// Forgets the routes that do not answer.
    pub(super) fn drop_silent(&mut self, now: Instant) {
        for id in self.route_set().iter() {
            let hopeless = self.routes.get(&id).filter(|_| self.selected != Some(id)).and_then(|route| {
                let dead = route.standing.dead && route.kind == RouteKind::Direct && route.standing.tries >= DEAD_TRIES;
                let never = self.give_up_at(route).is_some_and(|at| now >= at);
                if never { Some(DropWhy::NeverAnswered) } else { dead.then_some(DropWhy::Dead) }
            });
            if let Some(why) = hopeless {
                self.forget(id, why, now);
            }
        }
    }

    /// When the next route that has never answered is to be forgotten.
    pub(super) fn drop_timeout(&self) -> Option<(Instant, &'static str)> {
        let others = self.routes.values().filter(|route| self.selected != Some(route.id));
        others.filter_map(|route| self.give_up_at(route)).min().map(|at| (at, "give up a new route"))
    }

    fn give_up_at(&self, route: &Route) -> Option<Instant> {
        let born = self.established?.max(route.added);
        (!route.is_proven()).then_some(born + UNANSWERED_FOR)
    }
}

fn dead_spacing(tries: u32) -> Duration {
    (DEAD_SPACING * (1 << tries.min(6))).min(MAX_DEAD_SPACING)
}
