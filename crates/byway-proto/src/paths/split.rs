//! Two sides that send by different routes, neither of which is better.
//!
//! Answers then come where they say nothing about the route that they answer, so that every silence has to be asked about, and
//! a death is noticed only after twice the patience. So the side that was dialled takes the dialler's route; and either side takes a
//! direct route that has come up since it chose its own, for the peer has moved there for a reason: its mapping is about to end.

use alloc::boxed::Box;
use core::time::Duration;

use super::{
    Paths,
    event::{RouteId, RouteKind, Why},
    route::Route,
};
use crate::Instant;

/// How much younger than one's own choice a route must be for that: a round trip and more, for both sides come to know of a route
/// within one, and else each might take the other's for the younger.
const YOUNGER_BY: Duration = Duration::from_secs(2);

/// For how long the peer is heard elsewhere only before its choice is taken over: longer than it doubts a route.
const SPLIT_FOR: Duration = Duration::from_secs(1);

impl Paths {
    /// Takes over the peer's choice, if this is the side to do so and its own is no better; `heard` is when QUIC's datagrams
    /// were last heard on each route.
    pub(super) fn mind_split(&mut self, heard: &[(RouteId, Instant)], now: Instant) {
        let Some(selected) = self.selected_route().filter(|_| self.hedge.is_none()) else { return };
        let elsewhere = heard.iter().filter(|(route, _)| *route != selected.id).max_by_key(|(route, at)| (*at, *route));
        let Some((to, latest)) = elsewhere else { return };
        let here = heard.iter().find(|(route, _)| *route == selected.id).map(|(_, at)| *at);
        let since = here.max(Some(selected.standing.selected_at)).unwrap_or_default();
        let is_split = latest.since(since) >= SPLIT_FOR;
        let peers = self.routes.get(to).map(Box::as_ref).filter(|route| route.is_proven() && !route.standing.dead);
        let peers = peers.filter(|route| now >= route.standing.barred && !selected.rivals(route));
        let both_direct = |route: &&Route| [route.kind, selected.kind] == [RouteKind::Direct; 2];
        let is_news =
            peers.filter(both_direct).is_some_and(|route| route.added >= selected.standing.selected_at + YOUNGER_BY);
        let peers = peers.filter(|_| self.bias.gives_way || is_news);
        if let Some(to) = peers.filter(|_| is_split).map(|route| route.id) {
            self.select(to, Why::Followed, now);
        }
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::{
        super::{Input, Output, PathsConfig, Sample},
        *,
    };

    const ROUTES: [RouteId; 2] = [RouteId(0), RouteId(1)];

    fn at(ms: u64) -> Instant {
        Instant::after_start(Duration::from_millis(ms))
    }

    /// What comes of it if the first route of these kinds is selected and the peer is heard on the second for two seconds,
    /// and `both` every half a second on the first too.
    fn split(kinds: [RouteKind; 2], gives_way: bool, both: bool) -> Vec<Output> {
        let mut paths = Paths::new(PathsConfig::default(), &[1; 32], at(0));
        for (route, kind) in ROUTES.into_iter().zip(kinds) {
            paths.handle_input(
                Input::Add { route, kind, trusted: true, rtt: Some(Duration::from_millis(100)) },
                at(1_000),
            );
        }
        if gives_way {
            paths.handle_input(Input::GiveWay, at(1_000));
        }
        paths.handle_input(Input::Established { heard: ROUTES[0] }, at(1_000));
        let txid = core::iter::from_fn(|| paths.poll_output()).find_map(|output| match output {
            Output::Ping { route: RouteId(0), txid, .. } => Some(txid),
            _ => None,
        });
        paths.handle_input(Input::Pong { route: ROUTES[0], txid: txid.unwrap() }, at(1_100));
        let _ = core::iter::from_fn(|| paths.poll_output()).count();
        for ms in (1_200..3_200).step_by(20) {
            let here = at(if both { ms / 500 * 500 } else { 1_100 });
            let sample = Sample { heard: alloc::vec![(ROUTES[0], here), (ROUTES[1], at(ms))], ..Sample::default() };
            paths.handle_input(Input::Sample(sample), at(ms));
        }
        core::iter::from_fn(|| paths.poll_output()).filter(|output| matches!(output, Output::Selected { .. })).collect()
    }

    #[test]
    fn the_dialled_side_takes_over_the_diallers_route_if_its_own_is_no_better() {
        let relays = [RouteKind::Relay; 2];
        let [from, to] = ROUTES;
        let followed = Output::Selected { from: Some(from), to, why: Why::Followed, hedge_began: None };
        assert_eq!(split(relays, true, false), [followed]);
        assert_eq!(split(relays, false, false), [], "the dialler stays");
        assert_eq!(split(relays, true, true), [], "the peer only copies");
        assert_eq!(split([RouteKind::Direct, RouteKind::Relay], true, false), [], "its own is better");
    }

    /// What comes of it if the peer is heard on a route that came up so many seconds after this side had chosen its own.
    fn younger(seconds: u64, kinds: [RouteKind; 2]) -> Vec<Output> {
        let mut paths = Paths::new(PathsConfig::default(), &[1; 32], at(0));
        let add = |route, kind| Input::Add { route, kind, trusted: true, rtt: Some(Duration::from_millis(100)) };
        paths.handle_input(add(ROUTES[0], kinds[0]), at(1_000));
        paths.handle_input(Input::Established { heard: ROUTES[0] }, at(1_000));
        let start = 1_000 + seconds * 1_000;
        paths.handle_input(add(ROUTES[1], kinds[1]), at(start));
        let _ = core::iter::from_fn(|| paths.poll_output()).count();
        for ms in (start..start + 2_000).step_by(20) {
            let sample =
                Sample { heard: alloc::vec![(ROUTES[0], at(1_000)), (ROUTES[1], at(ms))], ..Sample::default() };
            paths.handle_input(Input::Sample(sample), at(ms));
        }
        core::iter::from_fn(|| paths.poll_output()).filter(|output| matches!(output, Output::Selected { .. })).collect()
    }

    #[test]
    fn either_side_takes_a_direct_route_that_came_up_long_after_its_choice_and_to_which_the_peer_has_moved() {
        let [from, to] = ROUTES;
        let followed = Output::Selected { from: Some(from), to, why: Why::Followed, hedge_began: None };
        assert_eq!(younger(20, [RouteKind::Direct; 2]), [followed]);
        assert_eq!(younger(1, [RouteKind::Direct; 2]), [], "both may be from one search");
        assert_eq!(younger(20, [RouteKind::Relay; 2]), [], "a relay's mapping is the relay's business");
    }
}
