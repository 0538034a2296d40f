//! A route whose NAT mapping is about to die of age gives way to a fresh one.

use alloc::boxed::Box;
use core::time::Duration;

use super::{
    Paths,
    event::{RouteId, RouteKind, Why},
    route::Route,
};
use crate::Instant;

/// For how long the connection does not go back to the route that it has left, should the peer still use it: longer than what is
/// left of a mapping that gets half an hour old. Longer before the end of an older one the peer has followed.
const LEFT_FOR: Duration = Duration::from_secs(720);

impl Paths {
    /// Goes to the fresh route as soon as it is proven and nothing is in doubt.
    pub(super) fn renew(&mut self, now: Instant) {
        let Some(to) = self.bias.renewal.filter(|_| self.hedge.is_none()) else { return };
        let living = |route: &&Route| route.is_proven() && !route.standing.dead;
        if self.routes.get(&to).map(Box::as_ref).filter(living).is_none() {
            self.bias.renewal = self.bias.renewal.filter(|to| self.routes.contains_key(to));
            return;
        }
        self.bias.renewal = None;
        let Some(left) = self.selected.and_then(|left| self.routes.get_mut(&left)) else { return };
        if left.id == to || left.kind != RouteKind::Direct {
            return; // it is in use already, or the relay has been chosen for a reason of its own
        }
        left.standing.barred = left.standing.barred.max(now + LEFT_FOR);
        self.select(to, Why::Renewed, now);
    }

    /// Takes in which route is to carry the connection from now on.
    pub(super) fn renew_by(&mut self, route: RouteId, now: Instant) {
        self.bias.renewal = Some(route);
        self.renew(now);
    }
}
