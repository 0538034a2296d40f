//! The kinds of NAT in the table.

use std::{fmt, str::FromStr};

use serde::Serialize;

use crate::{Host, Link, NatConfig, Ports, Side, World};

/// Loss of each access link, in each direction.
const LOSS: f64 = 0.01;

/// Mappings per second that other hosts open behind a sequential NAT.
const BACKGROUND: u32 = 5;

/// What a node is behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Kind {
    /// Nothing: a public address.
    Open,
    /// Endpoint-independent mapping and filtering.
    FullCone,
    /// Endpoint-independent mapping, address-dependent filtering.
    AddressRestricted,
    /// Endpoint-independent mapping, address-and-port-dependent filtering: the usual home.
    PortRestricted,
    /// A mapping per destination, numbered one by one.
    SymmetricSequential,
    /// A mapping per destination, its port drawn from 1,024–65,535.
    SymmetricRandom,
    /// A home behind a carrier's NAT, both port-restricted; the carrier draws its ports.
    CgnatPortRestricted,
    /// A NAT that lets no UDP through.
    UdpBlocked,
}

impl Kind {
    /// All kinds, in the order of the table.
    pub const ALL: [Kind; 8] = [
        Kind::Open,
        Kind::FullCone,
        Kind::AddressRestricted,
        Kind::PortRestricted,
        Kind::SymmetricSequential,
        Kind::SymmetricRandom,
        Kind::CgnatPortRestricted,
        Kind::UdpBlocked,
    ];

    /// All ordered pairs, in the order of the table.
    pub fn pairs() -> Vec<(Kind, Kind)> {
        Kind::ALL.into_iter().flat_map(|a| Kind::ALL.map(|b| (a, b))).collect()
    }

    /// Its name in rows and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Open => "open",
            Kind::FullCone => "full-cone",
            Kind::AddressRestricted => "address-restricted",
            Kind::PortRestricted => "port-restricted",
            Kind::SymmetricSequential => "symmetric-sequential",
            Kind::SymmetricRandom => "symmetric-random",
            Kind::CgnatPortRestricted => "cgnat-port-restricted",
            Kind::UdpBlocked => "udp-blocked",
        }
    }

    /// Its NATs, from the host outwards.
    pub(crate) fn nats(self) -> Vec<NatConfig> {
        match self {
            Kind::Open => vec![],
            Kind::FullCone => vec![NatConfig::full_cone()],
            Kind::AddressRestricted => vec![NatConfig::address_restricted()],
            Kind::PortRestricted => vec![NatConfig::port_restricted()],
            Kind::SymmetricSequential => {
                let mut nat = NatConfig::symmetric(Ports::Sequential { step: 1 });
                nat.background = BACKGROUND;
                vec![nat]
            }
            Kind::SymmetricRandom => vec![NatConfig::symmetric(Ports::Random)],
            Kind::CgnatPortRestricted => {
                let mut carrier = NatConfig::port_restricted();
                carrier.ports = Ports::Random;
                vec![NatConfig::port_restricted(), carrier]
            }
            Kind::UdpBlocked => vec![NatConfig::udp_blocked()],
        }
    }

    /// The same for the oracle.
    pub(crate) fn side(self) -> Side {
        Side::behind(self.nats())
    }

    /// A host behind these NATs, with one access link that loses packets between it and the core.
    pub(crate) fn host(self, world: &World, name: &str) -> Host {
        behind(world, name, self.nats(), &Link::standard().loss(LOSS))
    }
}

/// A host behind `nats`, which are told from the host outwards, with one link `access` between it and the core.
pub(crate) fn behind(world: &World, name: &str, nats: Vec<NatConfig>, access: &Link) -> Host {
    let mut above: Option<crate::Nat> = None;
    for (distance, config) in nats.into_iter().enumerate().rev() {
        let nat = match &above {
            Some(above) => above.nat(name, config),
            None => world.nat(name, config),
        };
        nat.set_link(if distance == 0 { access.clone() } else { Link::lan() });
        above = Some(nat);
    }
    match above {
        Some(nat) => nat.host(name),
        None => {
            let host = world.host(name);
            host.set_link(access.clone());
            host
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Kind {
    type Err = UnknownKind;

    fn from_str(name: &str) -> Result<Self, UnknownKind> {
        Kind::ALL.into_iter().find(|kind| kind.name() == name).ok_or_else(|| UnknownKind(name.to_owned()))
    }
}

/// A name that no kind has.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no kind of NAT is called `{0}`; choose from {known}", known = Kind::ALL.map(Kind::name).join(", "))]
pub struct UnknownKind(String);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_rows() {
        for kind in Kind::ALL {
            assert_eq!(kind.name().parse(), Ok(kind));
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.name());
        }
        assert!("symmetric".parse::<Kind>().unwrap_err().to_string().contains("symmetric-random"));
        assert_eq!(Kind::pairs().len(), 64);
    }

    #[test]
    fn a_host_stands_behind_the_nats_of_its_kind() {
        World::run(1, |world| async move {
            for kind in Kind::ALL {
                let host = kind.host(&world, kind.name());
                assert_eq!(host.side().depth(), kind.nats().len(), "{kind}");
                assert_eq!(host.addr().to_string().starts_with("11."), kind == Kind::Open);
            }
        });
    }
}
