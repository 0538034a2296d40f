//! How a NAT behaves, by the axes of RFC 4787.

use std::{net::Ipv4Addr, time::Duration};

use super::Gateway;

/// How a NAT treats IPv4, and what its firewall does with IPv6, which it does not translate.
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
    /// Mappings per second that hosts which the world does not have open through it, at random moments (a Poisson
    /// process); 0 by default. They take no place in the table, but a sequential NAT counts them.
    pub background: u32,
    /// Whether UDP passes, of IPv6 too; on by default. TCP always does.
    pub udp: bool,
    /// Whether hosts behind the NAT reach each other by its outer address (RFC 4787 §6); off by default.
    pub hairpin: bool,
    /// How long a UDP mapping, and the leave to send through it, lives without being used; 2 minutes by default
    /// (RFC 4787 §4.3). TCP mappings live for 2 hours 4 minutes.
    pub timeout: Duration,
    /// Whether packets from outside count as use; off by default.
    pub inbound_refresh: bool,
    /// How long a UDP mapping lives at most, whatever passes, as some carriers have it; `None`, as by default, is for ever.
    /// The next packet from inside is mapped anew, to the port that [`NatConfig::ports`] gives then.
    pub max_age: Option<Duration>,
    /// Most sessions, that is pairs of (mapping, remote), at once; 1,024 by default. When they are full, what has
    /// expired goes first, then the oldest that was never answered, then the oldest.
    pub max_sessions: usize,
    /// The /24 of the inner network; `None` gives each NAT one of its own in 10.0.0.0/8. Two NATs may have the same.
    pub lan: Option<Ipv4Addr>,
    /// How it maps ports for who asks it; `None`, as by default, is not at all.
    pub gateway: Option<Gateway>,
    /// Whether unsolicited IPv6 stays outside, as at homes (RFC 6092); on by default. Who was sent to may answer, by the same
    /// filtering and timeout as over IPv4; a gateway that speaks PCP opens pinholes.
    pub ipv6_firewall: bool,
}

/// Which packets of one inner socket share an outer port (RFC 4787 §4.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
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
    /// The last mapping's plus `step`, from a random start; 65,535 is followed by 1,024.
    Sequential {
        /// Negative where the NAT counts down.
        step: i16,
    },
    /// Any from 1,024 on, each as likely as the others.
    Random,
}

impl NatConfig {
    /// Endpoint-independent mapping, address-and-port-dependent filtering: the common home router.
    pub const fn port_restricted() -> Self {
        NatConfig {
            mapping: Mapping::EndpointIndependent,
            filtering: Filtering::AddressAndPortDependent,
            ports: Ports::Preserving,
            background: 0,
            udp: true,
            hairpin: false,
            timeout: Duration::from_secs(120),
            inbound_refresh: false,
            max_age: None,
            max_sessions: 1_024,
            lan: None,
            gateway: None,
            ipv6_firewall: true,
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

    /// As [`NatConfig::port_restricted`], but it lets no UDP through.
    pub const fn udp_blocked() -> Self {
        let mut config = Self::port_restricted();
        config.udp = false;
        config
    }
}

impl Default for NatConfig {
    fn default() -> Self {
        Self::port_restricted()
    }
}
