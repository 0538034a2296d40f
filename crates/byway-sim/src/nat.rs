//! Network address translators, by the axes of RFC 4787.

use std::{fmt, net::IpAddr, sync::Arc, time::Duration};

pub use self::{
    config::{Filtering, Mapping, NatConfig, Ports},
    gateway::{Gateway, Manner},
};
use crate::{attachment::attachment, fabric::NodeId, host::Host, link::Link, world::Shared};

mod config;
pub(crate) mod firewall;
mod gateway;
pub(crate) mod table;

/// A NAT, and the network behind it; made by [`World::nat`](crate::World::nat).
///
/// The hosts behind it share its access link, and reach each other without it.
///
/// ```
/// use byway_sim::{NatConfig, World};
///
/// World::run(1, |world| async move {
///     let home = world.nat("home", NatConfig::default());
///     let laptop = home.host("laptop");
///     assert_eq!(laptop.addr().to_string(), "10.0.0.2");
///     assert_ne!(laptop.addr(), home.addr());
/// });
/// ```
#[derive(Clone)]
pub struct Nat {
    shared: Arc<Shared>,
    id: NodeId,
}

impl Nat {
    pub(crate) fn new(shared: Arc<Shared>, id: NodeId) -> Self {
        Nat { shared, id }
    }

    /// Attaches a host with a private address, by a link without delay ([`Link::lan`]).
    ///
    /// # Panics
    ///
    /// If 253 nodes are attached already.
    pub fn host(&self, name: &str) -> Host {
        let id = self.shared.look(|fabric| fabric.topology.add_host(name, Some(self.id), Link::lan()));
        Host::new(Arc::clone(&self.shared), id)
    }

    /// Attaches another NAT behind this one, by a [`Link::standard`]: this one is then the carrier's, and usually has
    /// its own link set to [`Link::lan`].
    ///
    /// # Panics
    ///
    /// If 253 nodes are attached already.
    pub fn nat(&self, name: &str, config: NatConfig) -> Nat {
        let id = self.shared.look(|fabric| fabric.topology.add_nat(name, Some(self.id), Link::standard(), config));
        Nat::new(Arc::clone(&self.shared), id)
    }

    /// Its address in the network below it, where it maps ports if it does ([`NatConfig::gateway`]).
    pub fn inner_addr(&self) -> IpAddr {
        self.shared.look(|fabric| fabric.topology.nat_mut(self.id).inner().into())
    }

    /// Its address in the network above it: what others see its hosts by.
    pub fn addr(&self) -> IpAddr {
        self.shared.look(|fabric| fabric.topology.nat_mut(self.id).outer.into())
    }

    /// Its IPv6 address in the network below it, where it opens pinholes if it does ([`NatConfig::gateway`]).
    pub fn inner_ipv6(&self) -> IpAddr {
        self.shared.look(|fabric| fabric.topology.nat_mut(self.id).inner_ipv6().into())
    }

    /// Forgets all mappings, leased ones and pinholes too, and begins a new epoch, as a router does that restarts.
    pub fn forget_mappings(&self) {
        self.shared.enter(|fabric, now| fabric.topology.nat_mut(self.id).restart(now));
    }

    /// Gives it another address in the network above it, as a new line or a new lease does, and forgets all mappings.
    pub fn renumber(&self) -> IpAddr {
        self.shared.enter(|fabric, now| fabric.topology.renumber_nat(self.id, now).into())
    }

    /// How long idle mappings live from now on ([`NatConfig::timeout`]).
    pub fn set_timeout(&self, timeout: Duration) {
        self.shared.enter(|fabric, _| fabric.topology.nat_mut(self.id).table.config.timeout = timeout);
    }

    /// How many ports it has mapped, and pinholes opened, because its hosts asked for it.
    pub fn mapped_ports(&self) -> usize {
        self.shared.enter(|fabric, now| {
            let nat = fabric.topology.nat_mut(self.id);
            nat.table.leases(now) + nat.firewall.pinholes(now)
        })
    }

    /// How many mappings are alive.
    pub fn mappings(&self) -> usize {
        self.shared.enter(|fabric, now| fabric.topology.nat_mut(self.id).table.alive(now))
    }
}

attachment!(Nat);

impl fmt::Debug for Nat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Nat").field(&self.shared.name_of(self.id)).finish()
    }
}
