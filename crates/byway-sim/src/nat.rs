//! Network address translators, by the axes of RFC 4787.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::Duration,
};

use crate::{
    fabric::NodeId,
    host::Host,
    link::Link,
    world::{Direction, Shared},
};

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

    /// Its name in this world's rules.
    pub fn id(&self) -> NodeId {
        self.id
    }

    /// Its address in the network above it: what others see its hosts by.
    pub fn addr(&self) -> IpAddr {
        self.shared.look(|fabric| fabric.topology.nat_mut(self.id).outer.into())
    }

    /// Replaces its access link, both directions; packets under way keep to the old one.
    pub fn set_link(&self, link: Link) {
        self.edit_link(|old| *old = link.clone());
    }

    /// Changes its access link, both directions.
    pub fn edit_link(&self, mut edit: impl FnMut(&mut Link)) {
        self.shared.edit_pipe(self.id, Direction::Up, &mut edit);
        self.shared.edit_pipe(self.id, Direction::Down, &mut edit);
    }

    /// Changes the direction away from its hosts.
    pub fn edit_uplink(&self, mut edit: impl FnMut(&mut Link)) {
        self.shared.edit_pipe(self.id, Direction::Up, &mut edit);
    }

    /// Changes the direction towards its hosts.
    pub fn edit_downlink(&self, mut edit: impl FnMut(&mut Link)) {
        self.shared.edit_pipe(self.id, Direction::Down, &mut edit);
    }

    /// Switches it off: what would pass it is dropped in silence. Its hosts still reach each other.
    pub fn set_down(&self) {
        self.shared.enter(|fabric, _| fabric.topology.node_mut(self.id).off = true);
    }

    /// Switches it on again, with the mappings it had.
    pub fn set_up(&self) {
        self.shared.enter(|fabric, _| fabric.topology.node_mut(self.id).off = false);
    }

    /// Forgets all mappings, as a router does that restarts.
    pub fn forget_mappings(&self) {
        self.shared.enter(|fabric, _| fabric.topology.nat_mut(self.id).table.clear());
    }

    /// How many mappings are alive.
    pub fn mappings(&self) -> usize {
        self.shared.enter(|fabric, now| fabric.topology.nat_mut(self.id).table.alive(now))
    }
}

impl fmt::Debug for Nat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Nat").field(&self.shared.name_of(self.id)).finish()
    }
}

/// How a NAT translates IPv4; IPv6 passes it unchanged.
///
/// The default is the common home router: one mapping per inner socket, packets only from those that were sent to.
/// Other kinds differ in one field or two:
///
/// ```
/// use byway_sim::{Filtering, Mapping, NatConfig, Ports};
///
/// let mut symmetric = NatConfig::port_restricted();
/// symmetric.mapping = Mapping::AddressAndPortDependent;
/// symmetric.ports = Ports::Random;
/// assert_eq!(NatConfig::default().filtering, Filtering::AddressAndPortDependent);
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct NatConfig {
    /// Which packets of one inner socket share an outer port.
    pub mapping: Mapping,
    /// Who may send to an outer port.
    pub filtering: Filtering,
    /// Which outer port a new mapping gets.
    pub ports: Ports,
    /// Whether hosts behind the NAT reach each other by its outer address (RFC 4787 §6); off by default.
    pub hairpin: bool,
    /// How long a UDP mapping, and the leave to send through it, lives without being used; 2 minutes by default
    /// (RFC 4787 §4.3). TCP mappings live for 2 hours 4 minutes.
    pub timeout: Duration,
    /// Whether packets from outside count as use; off by default.
    pub inbound_refresh: bool,
    /// Most pairs of (mapping, remote) at once, 1,024 by default; when full, the oldest that was never answered
    /// goes first, then the oldest.
    pub max_sessions: usize,
    /// The /24 of the inner network; `None` gives each NAT one of its own in 10.0.0.0/8. Two NATs may have the same.
    pub lan: Option<Ipv4Addr>,
}

/// Which packets of one inner socket share an outer port (RFC 4787 §4.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Mapping {
    /// All of them.
    EndpointIndependent,
    /// Those to one address.
    AddressDependent,
    /// Those to one address and port ("symmetric").
    AddressAndPortDependent,
}

/// Who may send to an outer port (RFC 4787 §5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Filtering {
    /// Everybody ("full cone").
    EndpointIndependent,
    /// Addresses that were sent to from it.
    AddressDependent,
    /// Address-and-port pairs that were sent to from it.
    AddressAndPortDependent,
}

/// Which outer port a new mapping gets (RFC 4787 §4.2); a taken one is passed over upwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Ports {
    /// The inner port.
    Preserving,
    /// The one after the last, from a random start.
    Sequential,
    /// Any from 1,024 on.
    Random,
}

impl NatConfig {
    /// Endpoint-independent mapping, address-and-port-dependent filtering: the common home router.
    pub const fn port_restricted() -> Self {
        NatConfig {
            mapping: Mapping::EndpointIndependent,
            filtering: Filtering::AddressAndPortDependent,
            ports: Ports::Preserving,
            hairpin: false,
            timeout: Duration::from_secs(120),
            inbound_refresh: false,
            max_sessions: 1_024,
            lan: None,
        }
    }

    /// As [`NatConfig::port_restricted`], but addresses once sent to may answer from any port.
    pub const fn address_restricted() -> Self {
        let mut config = Self::port_restricted();
        config.filtering = Filtering::AddressDependent;
        config
    }

    /// As [`NatConfig::port_restricted`], but everybody may send to a mapped port.
    pub const fn full_cone() -> Self {
        let mut config = Self::port_restricted();
        config.filtering = Filtering::EndpointIndependent;
        config
    }

    /// A mapping per destination address and port, with `ports` to choose from: the hard kind.
    pub const fn symmetric(ports: Ports) -> Self {
        let mut config = Self::port_restricted();
        config.mapping = Mapping::AddressAndPortDependent;
        config.ports = ports;
        config
    }
}

impl Default for NatConfig {
    fn default() -> Self {
        Self::port_restricted()
    }
}
