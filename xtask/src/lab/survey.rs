//! What a NAT is, by several judges: the axes it was made from, coturn's client, and `byway check`. All must agree, or
//! the NATs of the lab, of the simulator and of our survey are not the same.

use std::fmt;

use crate::{
    Stop,
    lab::{
        Lab, Outcome, Scenario, coturn,
        nat::{Depends, Nat, Ports, Udp},
        network::Plan,
    },
};

use Depends::{Address, AddressAndPort, Nothing};

/// Every NAT that is surveyed.
fn kinds() -> Vec<(&'static str, Nat)> {
    let seq = Ports::Sequential(1);
    let (same, random) = (Ports::Preserving, Ports::Random);
    vec![
        ("full-cone", Nat::new(Nothing, Nothing, same)),
        ("full-cone-random", Nat::new(Nothing, Nothing, random)),
        ("full-cone-hairpin", Nat { hairpin: true, ..Nat::new(Nothing, Nothing, random) }),
        ("address-restricted", Nat::new(Nothing, Address, same)),
        ("address-restricted-random", Nat::new(Nothing, Address, random)),
        ("port-restricted", Nat::new(Nothing, AddressAndPort, same)),
        ("port-restricted-random", Nat::new(Nothing, AddressAndPort, random)),
        ("port-restricted-hairpin", Nat { hairpin: true, ..Nat::new(Nothing, AddressAndPort, same) }),
        ("address-dependent", Nat::new(Address, AddressAndPort, random)),
        ("symmetric-random", Nat::new(AddressAndPort, AddressAndPort, random)),
        ("symmetric-sequential", Nat::new(AddressAndPort, AddressAndPort, seq)),
        ("symmetric-step-4", Nat::new(AddressAndPort, AddressAndPort, Ports::Sequential(4))),
        ("symmetric-preserving", Nat::new(AddressAndPort, AddressAndPort, same)),
        ("udp-dropped", Nat { udp: Udp::Dropped, ..Nat::default() }),
        ("udp-rejected", Nat { udp: Udp::Rejected, ..Nat::default() }),
    ]
}

/// One scenario for each NAT.
pub(crate) fn scenarios() -> Vec<Scenario> {
    let scenario = |(name, nat): (&'static str, Nat)| Scenario {
        name: "survey",
        a: name.to_owned(),
        b: String::new(),
        plan: Plan::default(),
        breaks: false,
        run: Box::new(move |lab| survey(lab, &nat)),
    };
    kinds().into_iter().map(scenario).collect()
}

fn survey(lab: &Lab, nat: &Nat) -> Result<Outcome, Stop> {
    lab.network.router("ra").load(nat)?;
    let _server = coturn::serve(lab.network.host("stun"), &lab.dir)?;
    let judges = [("the rules", declared(nat)), ("coturn", coturn::discover(lab.network.host("ha"))?.into())];
    let [(_, wanted), ..] = &judges;
    if judges.iter().any(|(_, verdict)| verdict != wanted) {
        let says: Vec<String> = judges.iter().map(|(judge, verdict)| format!("{judge}: {verdict}")).collect();
        return Err(Stop::Failed(format!("the judges differ: {}", says.join("; "))));
    }
    Ok(Outcome { note: wanted.to_string(), ..Outcome::default() })
}

/// What a judge says of a NAT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// UDP does not pass.
    NoUdp,
    /// Its mapping and its filtering.
    Behaves(Depends, Depends),
}

impl From<Option<(Depends, Depends)>> for Verdict {
    fn from(found: Option<(Depends, Depends)>) -> Self {
        found.map_or(Verdict::NoUdp, |(mapping, filtering)| Verdict::Behaves(mapping, filtering))
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Verdict::NoUdp => f.write_str("no UDP"),
            Verdict::Behaves(mapping, filtering) => {
                write!(f, "{} mapping, {} filtering", mapping.word(), filtering.word())
            }
        }
    }
}

fn declared(nat: &Nat) -> Verdict {
    match nat.udp {
        Udp::Passes => Verdict::Behaves(nat.mapping, nat.filtering),
        Udp::Dropped | Udp::Rejected => Verdict::NoUdp,
    }
}
