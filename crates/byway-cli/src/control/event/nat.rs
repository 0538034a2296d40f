//! What a node tells of its NATs, of what they mean, and of what was tried against them.

use std::net::{IpAddr, SocketAddr};

use byway::nat::{self, FamilyReport, NatReport};
use serde::{Deserialize, Serialize};

use super::Path;

/// What `check` has found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Check {
    pub(crate) families: Vec<Family>,
    /// What the gateways forward by themselves.
    pub(crate) mappings: Vec<Mapping>,
    pub(crate) servers: Vec<Server>,
    /// What to expect with typical peers.
    pub(crate) outlook: Vec<Prospect>,
    /// What was still unknown when the time was up.
    pub(crate) awaited: Option<String>,
}

/// What stands between the node and the core over one address family; `null` is what was not learned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Family {
    pub(crate) family: Ip,
    /// The node's address as servers see it, if UDP gets through; of a peer only if it is in use.
    pub(crate) public: Option<SocketAddr>,
    /// Whether any server answered.
    pub(crate) udp: bool,
    pub(crate) untranslated: bool,
    pub(crate) mapping: Option<Dependence>,
    pub(crate) filtering: Option<Dependence>,
    pub(crate) ports: Option<Ports>,
    pub(crate) step: Option<i16>,
    pub(crate) hairpin: Option<bool>,
    pub(crate) lifetime_s: Option<u64>,
    pub(crate) carrier: Option<bool>,
}

/// An address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Ip {
    Ipv4,
    Ipv6,
}

/// What mapping or filtering depends on (RFC 4787).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Dependence {
    EndpointIndependent,
    AddressDependent,
    AddressAndPortDependent,
}

/// Which public port a new mapping gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Ports {
    Preserving,
    Sequential,
    Random,
}

/// The node's port at one gateway.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Mapping {
    pub(crate) gateway: IpAddr,
    pub(crate) external: Option<SocketAddr>,
    /// The protocol that the gateway was asked in.
    pub(crate) by: Option<String>,
    pub(crate) carrier: bool,
    pub(crate) expires_s: Option<u64>,
    pub(crate) state: String,
}

/// A server that was asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Server {
    /// A relay's id, or a STUN server's host and port.
    pub(crate) name: String,
    pub(crate) relay: bool,
    pub(crate) state: String,
}

/// What to expect with one kind of peer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Prospect {
    pub(crate) family: Ip,
    pub(crate) peer: String,
    /// `null` if too little is known.
    pub(crate) path: Option<Path>,
    pub(crate) how: String,
}

/// What the looking for direct paths has found and cost.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Nat {
    pub(crate) families: Vec<Family>,
    /// The most sockets that one dial has opened.
    pub(crate) mappings: u32,
    /// The most guesses of one dial.
    pub(crate) probes: u32,
    /// The most packets in any second.
    pub(crate) pps: u32,
}

/// Why a peer is reached as it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Why {
    pub(crate) peer: String,
    pub(crate) path: Path,
    /// The reason in one sentence.
    pub(crate) answer: String,
    pub(crate) ours: Vec<Family>,
    /// `null` if the peer has not told.
    pub(crate) theirs: Option<Vec<Family>>,
    pub(crate) plans: Vec<Plan>,
    /// Addresses of the peer that are pinged.
    pub(crate) candidates: usize,
    /// Addresses that the peer told and that are not, each with its reason; without the addresses.
    pub(crate) refused: Vec<String>,
    pub(crate) attempts: Vec<Attempt>,
    pub(crate) remedies: Vec<String>,
}

/// Why a peer is not connected.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct WhyNot {
    pub(crate) peer: String,
    /// Why it is not dialled at this moment, in one sentence.
    pub(crate) answer: String,
    /// In how many seconds it may be dialled again by itself; `null` if it is not, or nothing stands against it.
    pub(crate) again_s: Option<f64>,
    /// Addresses and relays of it that are known.
    pub(crate) addresses: usize,
    /// Dials since the last success.
    pub(crate) attempts: u32,
    /// The last dial and the last success, in seconds since 1970.
    pub(crate) tried: Option<u64>,
    pub(crate) good: Option<u64>,
}

/// What follows from both sides' NATs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Plan {
    pub(crate) family: Ip,
    pub(crate) plan: String,
}

/// One attempt at a direct path.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Attempt {
    pub(crate) means: String,
    pub(crate) ago_s: f64,
    pub(crate) took_ms: f64,
    pub(crate) mappings: u32,
    pub(crate) probes: u32,
    pub(crate) packets: u32,
    pub(crate) outcome: String,
}

impl Family {
    /// The families of which something is known.
    pub(crate) fn list(report: &NatReport) -> Vec<Family> {
        let families = [(Ip::Ipv4, &report.ipv4), (Ip::Ipv6, &report.ipv6)];
        families.into_iter().filter_map(|(family, found)| Some(Family::new(family, found.as_ref()?))).collect()
    }

    fn new(family: Ip, found: &FamilyReport) -> Self {
        let (ports, step) = match found.ports {
            Some(nat::Ports::Preserving) => (Some(Ports::Preserving), None),
            Some(nat::Ports::Sequential { step }) => (Some(Ports::Sequential), Some(step)),
            Some(nat::Ports::Random) => (Some(Ports::Random), None),
            _ => (None, None),
        };
        Family {
            family,
            public: found.public,
            udp: found.public.is_some(),
            untranslated: found.untranslated,
            mapping: found.mapping.and_then(|mapping| match mapping {
                nat::Mapping::EndpointIndependent => Some(Dependence::EndpointIndependent),
                nat::Mapping::AddressDependent => Some(Dependence::AddressDependent),
                nat::Mapping::AddressAndPortDependent => Some(Dependence::AddressAndPortDependent),
                _ => None,
            }),
            filtering: found.filtering.and_then(|filtering| match filtering {
                nat::Filtering::EndpointIndependent => Some(Dependence::EndpointIndependent),
                nat::Filtering::AddressDependent => Some(Dependence::AddressDependent),
                nat::Filtering::AddressAndPortDependent => Some(Dependence::AddressAndPortDependent),
                _ => None,
            }),
            ports,
            step,
            hairpin: found.hairpin,
            lifetime_s: found.lifetime.map(|lifetime| lifetime.as_secs()),
            carrier: found.carrier,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_family_has_the_documented_form() {
        let ipv4 = FamilyReport {
            public: Some("192.0.2.1:9".parse().unwrap()),
            mapping: Some(nat::Mapping::AddressAndPortDependent),
            filtering: Some(nat::Filtering::AddressDependent),
            ports: Some(nat::Ports::Sequential { step: -2 }),
            lifetime: Some(Duration::from_secs(30)),
            ..FamilyReport::default()
        };
        let families = Family::list(&NatReport { ipv4: Some(ipv4), ipv6: None });
        let text = r#"[{"family":"ipv4","public":"192.0.2.1:9","udp":true,"untranslated":false,"mapping":"address-and-port-dependent","filtering":"address-dependent","ports":"sequential","step":-2,"hairpin":null,"lifetime_s":30,"carrier":null}]"#;
        assert_eq!(serde_json::to_string(&families).unwrap(), text);
    }
}
