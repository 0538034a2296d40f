//! The stateful IPv6 firewall of a home router (RFC 6092): what was begun inside may be answered, the rest stays out.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use super::{
    Filtering, NatConfig,
    table::{
        TCP_TIMEOUT,
        lease::{Lease, LeaseError, MAX_LEASES},
    },
};
use crate::{rule::Transport, time::Time};

/// A transport and a socket inside.
type Inner = (Transport, SocketAddr);

/// What one firewall remembers.
#[derive(Debug, Default)]
pub(crate) struct Firewall {
    /// Whom each socket inside has sent to, and when last.
    sessions: BTreeMap<Inner, BTreeMap<SocketAddr, Time>>,
    /// Sessions over all sockets, at most [`NatConfig::max_sessions`].
    count: usize,
    /// Sockets that everybody may send to.
    pinholes: BTreeMap<Inner, Lease>,
}

impl Firewall {
    /// A packet goes out.
    pub(crate) fn outbound(&mut self, config: &NatConfig, now: Time, inner: Inner, remote: SocketAddr) {
        let opened = self.sessions.entry(inner).or_default().insert(remote, now).is_none();
        self.count += usize::from(opened);
        if self.count > config.max_sessions.max(1) {
            self.make_room(config, now);
        }
    }

    /// Whether a packet from `remote` may come in, by the same filtering as the NAT's.
    pub(crate) fn admits(&mut self, config: &NatConfig, now: Time, inner: Inner, remote: SocketAddr) -> bool {
        if self.pinholes.get(&inner).is_some_and(|lease| now < lease.until) {
            return true;
        }
        let timeout = timeout(config, inner.0);
        let Some(remotes) = self.sessions.get_mut(&inner) else { return false };
        let mut alive = remotes.iter().filter(|(_, used)| now.since(**used) < timeout).map(|(remote, _)| *remote);
        let admitted = match config.filtering {
            Filtering::EndpointIndependent => alive.next().is_some(),
            Filtering::AddressDependent => alive.any(|it| it.ip() == remote.ip()),
            Filtering::AddressAndPortDependent => alive.any(|it| it == remote),
        };
        if admitted && config.inbound_refresh && remotes.contains_key(&remote) {
            remotes.insert(remote, now);
        }
        admitted
    }

    /// Opens a socket to everybody, or for longer (RFC 6887 §11).
    pub(crate) fn open(&mut self, now: Time, inner: Inner, lease: Lease) -> Result<(), LeaseError> {
        self.pinholes.retain(|_, lease| now < lease.until);
        match self.pinholes.get(&inner) {
            Some(old) if old.nonce != lease.nonce => return Err(LeaseError::NotOwner),
            None if self.pinholes.len() >= MAX_LEASES => return Err(LeaseError::Full),
            _ => {}
        }
        self.pinholes.insert(inner, lease);
        Ok(())
    }

    /// Closes it again; what is not open is fine.
    pub(crate) fn close(&mut self, inner: Inner, nonce: &[u8]) -> Result<(), LeaseError> {
        if self.pinholes.get(&inner).is_some_and(|lease| lease.nonce != nonce) {
            return Err(LeaseError::NotOwner);
        }
        self.pinholes.remove(&inner);
        Ok(())
    }

    /// How many sockets are open to everybody.
    pub(crate) fn pinholes(&self, now: Time) -> usize {
        self.pinholes.values().filter(|lease| now < lease.until).count()
    }

    /// Forgets everything, as a router does that restarts.
    pub(crate) fn restart(&mut self) {
        *self = Firewall::default();
    }

    /// Removes what has expired, or else the oldest session.
    fn make_room(&mut self, config: &NatConfig, now: Time) {
        for ((transport, _), remotes) in &mut self.sessions {
            let timeout = timeout(config, *transport);
            remotes.retain(|_, used| now.since(*used) < timeout);
        }
        let all = self.sessions.iter().flat_map(|(inner, remotes)| remotes.iter().map(move |it| (inner, it)));
        let count = all.clone().count();
        if count > config.max_sessions.max(1) {
            let oldest = all.min_by_key(|(_, (_, used))| **used).map(|(inner, (remote, _))| (*inner, *remote));
            if let Some((inner, remote)) = oldest {
                self.sessions.get_mut(&inner).map(|remotes| remotes.remove(&remote));
            }
        }
        self.sessions.retain(|_, remotes| !remotes.is_empty());
        self.count = self.sessions.values().map(BTreeMap::len).sum();
    }
}

fn timeout(config: &NatConfig, transport: Transport) -> Duration {
    match transport {
        Transport::Udp => config.timeout,
        Transport::Tcp => TCP_TIMEOUT,
    }
}
