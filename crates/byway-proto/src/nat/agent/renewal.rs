//! When a direct route gets a fresh mapping, and what the peer does for that.

use core::{net::SocketAddr, time::Duration};

use super::{host::Host, link::Link};
use crate::{
    Instant,
    nat::{
        Output, Signal, SocketId,
        session::{Probe, Renew, Session, StunMessage, Turn},
    },
};

/// The share of its life in percent after which a mapping is renewed at the latest: the last fifth has room for all tries.
const RENEW_AFTER: u32 = 80;

/// How much earlier it may be, at random, or two sides whose mappings began together would stay in step, and each renew what the
/// other is about to leave.
const EARLIER: u64 = 10;

/// How long a route is left alone after the connection has come to it: until the peer goes by it too, and would take a further one
/// for younger than its own.
const SETTLE: Duration = Duration::from_secs(4);

/// The tries for one mapping …
const TRIES: u32 = 3;

/// … and the share of its life between two of them.
const RETRY_AFTER: u32 = 20;

/// The direct route that carries a connection, and its mapping.
#[derive(Debug)]
pub(super) struct Renewal {
    pub(super) socket: SocketId,
    remote: SocketAddr,
    /// When a socket of ours other than the node's own was opened.
    born: Option<Instant>,
    /// The share of its mapping's life in percent after which it is renewed.
    after: u32,
    tries: u32,
    not_before: Instant,
    renew: Option<(Renew, Instant)>,
}

impl Renewal {
    pub(super) fn new(
        (socket, remote): (SocketId, SocketAddr),
        born: Option<Instant>,
        host: &mut Host,
        now: Instant,
    ) -> Self {
        let after = RENEW_AFTER - host.rng.below(EARLIER + 1) as u32;
        Renewal { socket, remote, born, after, tries: 0, not_before: now + SETTLE, renew: None }
    }

    /// When the socket was opened, if it is the one that was to become a route, or the route's.
    pub(super) fn born(&self, socket: SocketId) -> Option<Instant> {
        let fresh = self.renew.as_ref().filter(|(renew, _)| renew.socket == socket).map(|(_, born)| *born);
        fresh.or(self.born.filter(|_| self.socket == socket))
    }

    /// Whether a fresh socket is on its way to becoming a route.
    pub(super) fn is_running(&self) -> bool {
        self.renew.is_some()
    }

    /// When the route is to be renewed: within the last part of its mapping's life, if it is known how long that is.
    fn due(&self, host: &Host, now: Instant) -> Option<Instant> {
        let public = host.public(self.remote.is_ipv6())?;
        let age = host.ages.of(public.ip()).filter(|_| self.tries < TRIES)?;
        let born = if self.socket == SocketId::MAIN { host.ages.born() } else { self.born }?;
        let due = (born + age / 100 * self.after).max(self.not_before);
        (now < born + age).then_some(due)
    }
}

impl Link {
    /// Renews the direct route's mapping if that is due; says when there is something to do next.
    pub(super) fn renew(&mut self, host: &mut Host, now: Instant) -> Option<Instant> {
        let renewal = self.renewal.as_mut()?;
        if let Some((renew, _)) = &mut renewal.renew {
            if let Some(at) = renew.act(&mut Turn { host, flight: &mut self.flight, now }) {
                return Some(at.max(now + Duration::from_nanos(1)));
            }
            renewal.renew = None;
            self.close_unused(host);
        }
        let renewal = self.renewal.as_mut()?;
        let due = renewal.due(host, now)?;
        if now < due {
            return Some(due);
        }
        let age = host.ages.of(host.public(renewal.remote.is_ipv6())?.ip())?;
        renewal.tries += 1;
        renewal.not_before = now + age / RETRY_AFTER;
        self.flight.allowance.renew(now);
        let begun = Renew::begin(renewal.remote, &mut Turn { host, flight: &mut self.flight, now })?;
        renewal.renew = Some((begun, now));
        Some(now)
    }

    /// A server has seen the fresh socket.
    pub(super) fn renewal_seen(&mut self, message: &StunMessage<'_>, host: &mut Host, now: Instant) {
        if let Some((renew, _)) = self.renewal.as_mut().and_then(|renewal| renewal.renew.as_mut()) {
            renew.stun(message, &mut Turn { host, flight: &mut self.flight, now });
        }
    }

    /// The fresh socket was answered: the connection is to go by it from now on.
    pub(super) fn renewed(&mut self, socket: SocketId, remote: SocketAddr, host: &mut Host) {
        let fresh = self.renewal.as_ref().and_then(|renewal| renewal.renew.as_ref());
        if fresh.is_some_and(|(renew, _)| renew.socket == socket) {
            host.outputs.push_back(Output::Renew { link: self.flight.link, socket, remote });
        }
    }

    /// The peer renews its mapping: its new port is probed from the socket that the route uses.
    pub(super) fn help_to_renew(&mut self, signal: &Signal, now: Instant) {
        // the route's socket may have closed with it, before the driver has told of another route
        let is_open = |socket: &SocketId| *socket == SocketId::MAIN || self.flight.sockets.contains_key(socket);
        let Some(socket) = self.renewal.as_ref().map(|renewal| renewal.socket).filter(is_open) else { return };
        if matches!(signal, Signal::Guess { .. }) {
            if self.search.session.is_none() {
                self.flight.allowance.renew(now);
                self.start(Session::Probe(Probe::new(socket, now)), None, now);
            }
            if let Some((session, _)) = &mut self.search.session {
                session.signal(signal, now);
            }
        }
    }
}
