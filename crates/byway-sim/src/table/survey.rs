//! What the shipping survey says of each kind of simulated NAT, in the words of `byway check`.
//!
//! `cargo xtask lab` asks the same of nftables, under the same names: where the verdicts differ, the simulator's NATs are not the
//! real ones.

use std::{fmt, time::Duration};

use byway::{
    BindError, Identity, Node,
    nat::{self, FamilyReport},
};
use byway_proto::addr::HostAddr;
use serde::Serialize;
use tokio::time;

use super::{
    config,
    matrix::{Kind, behind},
};
use crate::{Filtering, Link, Mapping, NatConfig, Ports, StunServer, World};

/// How long a survey may take: what a filter keeps away is waited for in turn, some seconds each, and an idle mapping is left
/// alone for 15 s, then for longer and longer, up to 4 minutes.
const PATIENCE: Duration = Duration::from_secs(10 * 60);

/// How often the node is asked whether it still waits for something.
const TICK: Duration = Duration::from_millis(100);

/// The verdict on one kind of NAT; `None` is what was not learned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Row {
    /// The kind's name.
    pub nat: &'static str,
    /// Whether any server answered.
    pub udp: bool,
    /// Whether nobody translates.
    pub untranslated: bool,
    /// What a mapping depends on.
    pub mapping: Option<&'static str>,
    /// What the filter depends on.
    pub filtering: Option<&'static str>,
    /// How ports are allotted.
    pub ports: Option<&'static str>,
    /// From one port to the next, where they are counted.
    pub step: Option<i16>,
    /// Whether hosts behind it reach each other by its outer address.
    pub hairpin: Option<bool>,
    /// The longest time that an idle mapping was seen to survive, in seconds.
    pub lifetime_s: Option<u64>,
}

/// Why there is no verdict.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SurveyError {
    /// The node did not start.
    #[error("the node did not start: {0}")]
    Bind(#[from] BindError),
    /// The STUN server did not start.
    #[error("the STUN server did not start: {0}")]
    Stun(#[from] std::io::Error),
    /// The name is none of [`names`].
    #[error("no NAT is called `{0}`; choose from {known}", known = names().join(", "))]
    Unknown(String),
}

/// The NATs by name, each from the host outwards: the kinds of the matrix, and what these leave out.
fn subjects() -> Vec<(&'static str, Vec<NatConfig>)> {
    let with = |change: fn(&mut NatConfig)| {
        let mut nat = NatConfig::port_restricted();
        change(&mut nat);
        vec![nat]
    };
    let dependent = |filtering| {
        let mapping = Mapping::AddressDependent;
        vec![NatConfig { mapping, filtering, ports: Ports::Random, ..NatConfig::port_restricted() }]
    };
    let symmetric = |filtering| vec![NatConfig { filtering, ..NatConfig::symmetric(Ports::Random) }];
    let others = [
        ("full-cone-random", with(|nat| (nat.filtering, nat.ports) = (Filtering::EndpointIndependent, Ports::Random))),
        (
            "full-cone-hairpin",
            with(|nat| {
                (nat.filtering, nat.ports, nat.hairpin) = (Filtering::EndpointIndependent, Ports::Random, true);
            }),
        ),
        (
            "address-restricted-random",
            with(|nat| (nat.filtering, nat.ports) = (Filtering::AddressDependent, Ports::Random)),
        ),
        ("port-restricted-random", with(|nat| nat.ports = Ports::Random)),
        ("port-restricted-hairpin", with(|nat| nat.hairpin = true)),
        ("address-dependent", dependent(Filtering::AddressAndPortDependent)),
        ("address-dependent-open", dependent(Filtering::EndpointIndependent)),
        ("address-dependent-address-filter", dependent(Filtering::AddressDependent)),
        ("symmetric-step-4", vec![NatConfig::symmetric(Ports::Sequential { step: 4 })]),
        ("symmetric-preserving", vec![NatConfig::symmetric(Ports::Preserving)]),
        ("port-restricted-10s", with(|nat| nat.timeout = Duration::from_secs(10))),
        ("symmetric-open", symmetric(Filtering::EndpointIndependent)),
        ("symmetric-address-filter", symmetric(Filtering::AddressDependent)),
    ];
    Kind::ALL.into_iter().map(|kind| (kind.name(), kind.nats())).chain(others).collect()
}

/// The names of all kinds.
pub fn names() -> Vec<&'static str> {
    subjects().into_iter().map(|(name, _)| name).collect()
}

/// Puts a node behind the NAT of this name, with one STUN server in the core, and gives its verdict.
///
/// # Errors
///
/// If there is no such NAT, or the node or the server does not start.
pub fn run(name: &str, seed: u64) -> Result<Row, SurveyError> {
    let found = subjects().into_iter().find(|(known, _)| *known == name);
    let (name, nats) = found.ok_or_else(|| SurveyError::Unknown(name.to_owned()))?;
    World::run(seed, |world| async move { survey(&world, name, nats).await })
}

async fn survey(world: &World, name: &'static str, nats: Vec<NatConfig>) -> Result<Row, SurveyError> {
    let mut rng = world.rng("survey");
    let core = world.host("stun");
    core.set_link(Link::lan());
    let server = StunServer::start(&core)?;
    let host = behind(world, name, nats, &Link::standard());
    let mut config = config(world, Identity::from_seed(rng.bytes()), &mut rng);
    config.ipv6 = None;
    config.stun = vec![HostAddr::Socket(server.addr())];
    let node = Node::bind_on(host.net(), config).await?;
    let done = async {
        loop {
            time::sleep(TICK).await;
            let status = node.status().await.nat;
            let lifetime = status.report.ipv4.and_then(|found| found.lifetime);
            if status.awaited.is_none() && lifetime.is_some() {
                return;
            }
        }
    };
    let _ = time::timeout(PATIENCE, done).await; // what is still open then is told as not learned
    let report = node.status().await.nat.report.ipv4.unwrap_or_default();
    node.close().await;
    Ok(Row::of(name, &report))
}

impl Row {
    fn of(nat: &'static str, report: &FamilyReport) -> Self {
        let (ports, step) = match report.ports {
            Some(nat::Ports::Preserving) => (Some("preserving"), None),
            Some(nat::Ports::Sequential { step }) => (Some("sequential"), Some(step)),
            Some(nat::Ports::Random) => (Some("random"), None),
            _ => (None, None),
        };
        Row {
            nat,
            udp: report.public.is_some(),
            untranslated: report.untranslated,
            mapping: report.mapping.and_then(mapping_word),
            filtering: report.filtering.and_then(filtering_word),
            ports,
            step,
            hairpin: report.hairpin,
            lifetime_s: report.lifetime.map(|lifetime| lifetime.as_secs()),
        }
    }

    /// The heading of [`Row`]'s lines.
    pub fn heading() -> String {
        let [nat, mapping, filtering, ports] = ["nat", "mapping", "filtering", "ports"];
        format!("{nat:<26} {mapping:<27} {filtering:<27} {ports:<14} {:<12} lifetime", "hairpin")
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.udp {
            return write!(f, "{:<26} no UDP", self.nat);
        }
        let word = |word: Option<&'static str>| word.unwrap_or("not learned");
        let step = self.step.map(|step| format!(" {step:+}")).unwrap_or_default();
        let ports = format!("{}{step}", word(self.ports));
        let hairpin = word(self.hairpin.map(|yes| if yes { "yes" } else { "no" }));
        let lifetime = self.lifetime_s.map_or_else(|| "not learned".into(), |seconds| format!("{seconds} s"));
        let (nat, mapping, filtering) = (self.nat, word(self.mapping), word(self.filtering));
        write!(f, "{nat:<26} {mapping:<27} {filtering:<27} {ports:<14} {hairpin:<12} {lifetime}")
    }
}

/// `None` for a behaviour that this table does not know.
fn mapping_word(mapping: nat::Mapping) -> Option<&'static str> {
    Some(match mapping {
        nat::Mapping::EndpointIndependent => "endpoint-independent",
        nat::Mapping::AddressDependent => "address-dependent",
        nat::Mapping::AddressAndPortDependent => "address-and-port-dependent",
        _ => return None,
    })
}

fn filtering_word(filtering: nat::Filtering) -> Option<&'static str> {
    Some(match filtering {
        nat::Filtering::EndpointIndependent => "endpoint-independent",
        nat::Filtering::AddressDependent => "address-dependent",
        nat::Filtering::AddressAndPortDependent => "address-and-port-dependent",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a NAT was made from, as a row would tell it.
    fn declared(name: &'static str, nats: &[NatConfig]) -> Row {
        let nothing = Row { nat: name, ..Row::of(name, &FamilyReport::default()) };
        let Some(outermost) = nats.last() else { return Row { udp: true, untranslated: true, ..nothing } };
        if !outermost.udp {
            return nothing;
        }
        let (ports, step) = match outermost.ports {
            Ports::Preserving => ("preserving", None),
            Ports::Sequential { step } => ("sequential", Some(step)),
            Ports::Random => ("random", None),
        };
        Row {
            udp: true,
            mapping: Some(match outermost.mapping {
                Mapping::EndpointIndependent => "endpoint-independent",
                Mapping::AddressDependent => "address-dependent",
                Mapping::AddressAndPortDependent => "address-and-port-dependent",
            }),
            filtering: Some(match outermost.filtering {
                Filtering::EndpointIndependent => "endpoint-independent",
                Filtering::AddressDependent => "address-dependent",
                Filtering::AddressAndPortDependent => "address-and-port-dependent",
            }),
            ports: Some(ports),
            step,
            hairpin: Some(outermost.hairpin),
            lifetime_s: Some(if outermost.timeout.as_secs() == 10 { 7 } else { 60 }), // 7.5 s, and 120 s is too late
            ..nothing
        }
    }

    #[test]
    fn the_survey_finds_of_every_nat_what_it_was_made_from() {
        for (name, nats) in subjects().into_iter().filter(|(_, nats)| !nats.is_empty()) {
            assert_eq!(run(name, 1).unwrap(), declared(name, &nats));
        }
        assert!(matches!(run("semetric", 1), Err(SurveyError::Unknown(_))));
    }

    #[test]
    fn who_stands_behind_nothing_is_told_so() {
        let row = run("open", 1).unwrap();
        assert!(row.udp && row.untranslated, "{row}");
    }
}
