//! Two sides that send by different routes, neither of which is better.
//!
//! Answers then come where they say nothing about the route that they answer, so that every silence has to be asked about, and
//! a death is noticed only after twice the patience. So the side that was dialled takes the dialler's route.

use core::time::Duration;

use super::{
    Paths,
    event::{RouteId, Why},
};
use crate::Instant;

/// For how long the peer is heard elsewhere only before its choice is taken over: longer than it doubts a route.
const SPLIT_FOR: Duration = Duration::from_secs(1);

impl Paths {
    /// Takes over the peer's choice, if this is the side to do so and its own is no better; `heard` is when QUIC's datagrams
    /// were last heard on each route.
    pub(super) fn mind_split(&mut self, heard: &[(RouteId, Instant)], now: Instant) {
        let Some(selected) = self.selected_route().filter(|_| self.gives_way && self.hedge.is_none()) else { return };
        let elsewhere = heard.iter().filter(|(route, _)| *route != selected.id).max_by_key(|(route, at)| (*at, *route));
        let Some((to, latest)) = elsewhere else { return };
        let here = heard.iter().find(|(route, _)| *route == selected.id).map(|(_, at)| *at);
        let since = here.max(Some(selected.standing.selected_at)).unwrap_or_default();
        let is_split = latest.since(since) >= SPLIT_FOR;
        let peers = self.routes.get(to).filter(|route| route.is_proven() && !route.standing.dead);
        let peers = peers.filter(|route| now >= route.standing.barred && !selected.rivals(route));
        if let Some(to) = peers.filter(|_| is_split).map(|route| route.id) {
            self.select(to, Why::Followed, now);
        }
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::{
        super::{Input, Output, PathsConfig, RouteKind, Sample},
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
}
