//! When a direct route gets a fresh mapping, and what the peer does for that.

use core::{net::SocketAddr, time::Duration};

use super::{host::Host, link::Link};
use crate::{
    Instant,
    nat::{
        Output, Signal, SocketId,
        candidates::is_private,
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

/// … and the share of its life in percent between two of them.
const RETRY_AFTER: u32 = 5;

/// The direct route that carries a connection, and its mapping.
#[derive(Debug)]
pub(super) struct Renewal {
    pub(super) socket: SocketId,
    remote: SocketAddr,
    /// When a socket of ours other than the node's own was opened.
    born: Option<Instant>,
    /// The share of its mapping's life in percent after which it is renewed.
    after: u32,
    /// Which mapping was tried to be renewed, and how often.
    tried: (Option<Instant>, u32),
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
        Renewal { socket, remote, born, after, tried: (None, 0), not_before: now + SETTLE, renew: None }
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

    /// What was under way belongs to another network.
    pub(super) fn abandon(&mut self) {
        (self.renew, self.tried) = (None, (None, 0));
    }

    /// How old the route's mapping gets, if it has one and all get equally old.
    fn age(&self, host: &Host) -> Option<Duration> {
        let is_inside = is_private(self.remote.ip()) || self.remote.ip().is_loopback();
        host.ages.of(host.public(self.remote.is_ipv6())?.ip()).filter(|_| !is_inside)
    }

    /// When the route is to be renewed: within the last part of its mapping's life, if it is known how long that is.
    fn due(&self, host: &Host, now: Instant) -> Option<Instant> {
        let age = self.age(host)?;
        let born = self.mapped_at(age, host, now)?;
        let due = (born + age / 100 * self.after).max(self.not_before);
        (self.tries(Some(born)) < TRIES && now < born + age).then_some(due)
    }

    /// How often it was tried to renew the mapping made at that time.
    fn tries(&self, born: Option<Instant>) -> u32 {
        if self.tried.0 == born { self.tried.1 } else { 0 }
    }

    /// When the mapping that follows is made, where nobody tells.
    fn next_life(&self, age: Duration, host: &Host, now: Instant) -> Option<Instant> {
        self.mapped_at(age, host, now).filter(|_| self.socket != SocketId::MAIN).map(|born| born + age)
    }

    /// When the route's mapping was made: the first by a further socket as that was opened, and each next one as the last died.
    fn mapped_at(&self, age: Duration, host: &Host, now: Instant) -> Option<Instant> {
        if self.socket == SocketId::MAIN {
            return host.ages.born();
        }
        let born = self.born?;
        let lives = now.since(born).as_millis() / age.as_millis().max(1);
        Some(born + age * u32::try_from(lives).ok()?)
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
        let age = renewal.age(host)?;
        let Some(due) = renewal.due(host, now) else { return renewal.next_life(age, host, now) };
        if now < due {
            return Some(due);
        }
        let born = renewal.mapped_at(age, host, now);
        renewal.tried = (born, renewal.tries(born) + 1);
        renewal.not_before = now + age / 100 * RETRY_AFTER;
        self.flight.allowance.renew(now);
        let Some(begun) = Renew::begin(renewal.remote, &mut Turn { host, flight: &mut self.flight, now }) else {
            return renewal.due(host, now).or(renewal.next_life(age, host, now)); // no socket may be had now
        };
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
