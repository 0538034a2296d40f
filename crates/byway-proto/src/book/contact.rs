//! A peer and the ways to it, as one writes them down.

use alloc::{collections::BTreeSet, vec::Vec};
use core::net::SocketAddr;

use super::{Group, Refused};
use crate::{
    PeerAddr, PeerId,
    addr::{HostAddr, MAX_ADDRS, candidate::is_probeable},
    hello::MAX_TOLD_RELAYS,
};

/// Addresses that are kept of what somebody says about another peer: both ways into a home, and a spare.
pub const MAX_CLAIM_ADDRS: usize = 4;

/// Relays that are kept of what somebody says about another peer: a node is registered at two.
pub const MAX_CLAIM_RELAYS: usize = 2;

/// A peer, and where it may be reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contact {
    /// Who it is.
    pub peer: PeerId,
    /// Its addresses, best first, at most [`MAX_ADDRS`]; names are resolved at each dial.
    pub addrs: Vec<HostAddr>,
    /// Relays where it may be registered, at most [`MAX_TOLD_RELAYS`].
    pub relays: Vec<PeerAddr>,
}

impl Contact {
    /// A peer of which no address is known.
    pub fn new(peer: PeerId) -> Self {
        Contact { peer, addrs: Vec::new(), relays: Vec::new() }
    }

    /// Whether neither an address nor a relay is known.
    pub(crate) fn is_empty(&self) -> bool {
        self.addrs.is_empty() && self.relays.is_empty()
    }

    /// The group of its first address, or else of its first relay's; `None` if it is known by names alone.
    pub fn group(&self) -> Option<Group> {
        let relayed = || self.relays.iter().flat_map(PeerAddr::socket_addrs).next();
        let first = self.addrs.iter().find_map(HostAddr::socket_addr).or_else(relayed)?;
        Some(Group::of(first.ip()))
    }

    /// What is taken over of somebody's word: addresses of one group, that of the first, so that a claim cannot stand in
    /// one group and lead to another; no names, for strangers do not choose what this host resolves; and nothing of this node's own.
    pub(super) fn as_claim(&self, local: bool, own: &BTreeSet<SocketAddr>) -> Result<Contact, Refused> {
        let fits = |addr: &SocketAddr| {
            let routed = local || Group::of(addr.ip()) != Group::LOCAL;
            routed && is_probeable(*addr, local).is_ok() && !own.contains(addr)
        };
        let mut addrs: Vec<_> = self.addrs.iter().filter_map(HostAddr::socket_addr).filter(fits).collect();
        if let Some(first) = addrs.first().map(|addr| Group::of(addr.ip())) {
            addrs.retain(|addr| Group::of(addr.ip()) == first);
        }
        addrs.truncate(MAX_CLAIM_ADDRS);
        let relay = |relay: &PeerAddr| {
            let addrs: Vec<_> = relay.socket_addrs().filter(fits).take(MAX_CLAIM_RELAYS).collect();
            (!addrs.is_empty()).then(|| PeerAddr::new(relay.id, addrs))
        };
        let relays: Vec<_> = self.relays.iter().filter_map(relay).take(MAX_CLAIM_RELAYS).collect();
        if addrs.is_empty() && relays.is_empty() {
            return Err(Refused::NoAddress);
        }
        Ok(Contact { peer: self.peer, addrs: addrs.into_iter().map(HostAddr::from).collect(), relays })
    }

    /// Adds what another contact of the same peer knows, within the limits.
    pub(crate) fn merge(&mut self, other: &Contact) {
        for addr in &other.addrs {
            if self.addrs.len() < MAX_ADDRS && !self.addrs.contains(addr) {
                self.addrs.push(addr.clone());
            }
        }
        for relay in &other.relays {
            if self.relays.len() < MAX_TOLD_RELAYS && self.relays.iter().all(|known| known.id != relay.id) {
                self.relays.push(relay.clone());
            }
        }
    }

    /// The contact, cut to its limits.
    pub(super) fn bounded(mut self) -> Self {
        self.addrs.truncate(MAX_ADDRS);
        self.relays.truncate(MAX_TOLD_RELAYS);
        self
    }
}

impl From<PeerAddr> for Contact {
    fn from(addr: PeerAddr) -> Self {
        Contact { peer: addr.id, addrs: addr.addrs, relays: Vec::new() }.bounded()
    }
}
