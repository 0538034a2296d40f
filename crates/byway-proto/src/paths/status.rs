//! What the machine tells a user about its routes.

use alloc::{
    format,
    string::{String, ToString},
    vec::Vec,
};
use core::time::Duration;

use super::{
    Paths,
    event::{RouteId, RouteKind},
    route::{ROW_PONGS, Route},
};
use crate::Instant;

/// What `byway why` tells of one route.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct RouteStatus {
    /// The route.
    pub route: RouteId,
    /// What it goes through.
    pub kind: RouteKind,
    /// The smoothed round-trip time of its pings.
    pub srtt: Option<Duration>,
    /// The share of its pings that was lost of late, in thousandths.
    pub loss: u16,
    /// Bytes per second that it is remembered to have delivered at most while it carried the connection.
    pub goodput: Option<u64>,
    /// When it first answered.
    pub proven_since: Option<Instant>,
    /// When the latest of its pings that was answered had left.
    pub last_proof: Option<Instant>,
    /// Whether it answers, as far as is known.
    pub alive: bool,
    /// Whether a full datagram has come through.
    pub mtu_proven: bool,
    /// Whether it carries the connection.
    pub selected: bool,
    /// Why it is, or is not, the selected one.
    pub why: String,
}

impl Paths {
    /// One entry per route, in order of their ids.
    pub fn status(&self, now: Instant) -> Vec<RouteStatus> {
        let entry = |route: &Route| RouteStatus {
            route: route.id,
            kind: route.kind,
            srtt: route.srtt,
            loss: route.tally.loss,
            goodput: route.carried.most(),
            proven_since: route.proven_since,
            last_proof: route.proof,
            alive: route.is_proven() && !route.standing.dead,
            mtu_proven: route.mtu.proven,
            selected: self.selected == Some(route.id),
            why: self.explain(route, now),
        };
        self.routes.values().map(|route| entry(route)).collect()
    }

    /// Pings in a row that the selected route has not answered, if a relay carries the connection.
    pub fn relay_misses(&self) -> Option<u32> {
        self.selected_route().filter(|route| route.kind == RouteKind::Relay).map(|route| route.tally.misses)
    }

    fn explain(&self, route: &Route, now: Instant) -> String {
        let Some(selected) = self.selected_route() else {
            return "dialling: every route carries every datagram until the handshake is done".to_string();
        };
        if route.id == selected.id {
            let because = self.why.map_or_else(String::new, |why| format!(" because {why}"));
            let doubt = self.hedge.as_ref().map_or_else(String::new, |hedge| {
                format!("; in doubt for {:.1} s: {}", now.since(hedge.since).as_secs_f32(), hedge.why)
            });
            return format!("selected{because}{doubt}");
        }
        if !route.is_proven() {
            return format!("has not answered for {} s", now.since(route.added).as_secs());
        }
        if route.standing.dead {
            let silent = route.proof.map_or(0, |proof| now.since(proof).as_secs());
            return format!("dead: last answered a ping of {silent} s ago");
        }
        if let Some((limit, most)) = outdone(route, selected) {
            return format!(
                "standby: slower, it delivered {limit:.1} Mbit/s where the selected one delivered {most:.1}"
            );
        }
        if !route.rivals(selected) {
            return "standby: no better than the selected one".to_string();
        }
        let barred = route.standing.barred.since(now);
        if barred.is_zero() {
            format!("better, has to last: {} of {ROW_PONGS} pongs in a row", route.row.pongs.min(ROW_PONGS))
        } else {
            format!("better, but barred for {} s: it was left {} times of late", barred.as_secs(), route.standing.flaps)
        }
    }
}

/// What a route delivered that is standby for that reason, and what the selected one did, in Mbit/s.
fn outdone(route: &Route, selected: &Route) -> Option<(f64, f64)> {
    let rates = route.carried.limit().zip(selected.carried.most());
    let rates = rates.filter(|_| route.carried.is_outdone_by(&selected.carried));
    rates.map(|(limit, most)| (limit as f64 * 8e-6, most as f64 * 8e-6))
}
