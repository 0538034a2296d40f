//! What a survey found out, in the terms of RFC 4787.

use core::{net::SocketAddr, time::Duration};

/// What stands between one node and the core, for each address family that it uses.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NatReport {
    /// IPv4; `None` while unknown, or if the node does not use it.
    pub ipv4: Option<FamilyReport>,
    /// IPv6; `None` while unknown, or if the node does not use it.
    pub ipv6: Option<FamilyReport>,
}

/// What was found for one address family; `None` stands for "not learned".
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FamilyReport {
    /// The node's own socket as the first server that answered saw it; `None` if UDP does not get through.
    pub public: Option<SocketAddr>,
    /// Whether [`FamilyReport::public`] is an address of one of the node's interfaces: nobody translates.
    pub untranslated: bool,
    /// Which packets of one socket share a public port.
    pub mapping: Option<Mapping>,
    /// Whose packets come back in.
    pub filtering: Option<Filtering>,
    /// Which public port a new mapping gets.
    pub ports: Option<Ports>,
    /// Whether the node reaches itself at its public address (RFC 4787 §6).
    pub hairpin: Option<bool>,
    /// How long an idle mapping lives at least.
    pub lifetime: Option<Duration>,
    /// Whether a second NAT stands behind the node's own gateway, as carriers have them (RFC 6888).
    pub carrier: Option<bool>,
}

/// Which packets of one socket share a public port (RFC 4787 §4.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Mapping {
    /// All of them, whomever they go to.
    EndpointIndependent,
    /// Those to one address.
    AddressDependent,
    /// Those to one address and port.
    AddressAndPortDependent,
}

/// Whose packets come back in (RFC 4787 §5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Filtering {
    /// Everybody's.
    EndpointIndependent,
    /// Those of addresses that were sent to.
    AddressDependent,
    /// Those of address-and-port pairs that were sent to.
    AddressAndPortDependent,
}

/// Which public port a new mapping gets (RFC 4787 §4.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Ports {
    /// The socket's own.
    Preserving,
    /// The last mapping's plus this step.
    Sequential {
        /// Never 0; negative where the NAT counts down.
        step: i16,
    },
    /// Any.
    Random,
}
