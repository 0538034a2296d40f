//! What a NAT is, by several judges: the axes it was made from, coturn's client, and `byway check`. All must agree, or
//! the NATs of the lab, of the simulator and of our survey are not the same.

use std::{fmt, thread};

use serde_json::{Value, json};

use crate::{
    Stop,
    lab::{
        Lab, Outcome, Scenario, coturn,
        nat::{Depends, Nat, Ports, Udp},
        network::{Plan, STUN},
        node, process,
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
    let server = format!("{}:{}", STUN[0], coturn::PORT);
    // At once, for both spend seconds waiting for what a filter keeps away; from two hosts, whose sockets share no mapping.
    let (theirs, (check, took)) = thread::scope(|scope| {
        let theirs = scope.spawn(|| coturn::discover(lab.network.host("ha2")));
        let ours = process::timed(|| node::check(lab, "ha", &server));
        (theirs.join(), ours)
    });
    let theirs = theirs.unwrap_or_else(|_| Err(Stop::Failed("the one who asks coturn panicked".into())));
    let (theirs, found) = (Verdict::from(theirs?), ipv4(&check?)?);
    let wanted = declared(nat);
    let differing: Vec<String> = wanted
        .iter()
        .filter(|(property, value)| found[*property] != *value)
        .map(|(property, value)| format!("{property}: the rules {value}, byway check {}", found[*property]))
        .chain((theirs != Verdict::of(nat)).then(|| format!("the rules {}, coturn {theirs}", Verdict::of(nat))))
        .collect();
    if !differing.is_empty() {
        return Err(Stop::Failed(format!("the judges differ: {}", differing.join("; "))));
    }
    Ok(Outcome { took: Some(took), note: theirs.to_string(), ..Outcome::default() })
}

/// What `byway check` must print of this NAT.
fn declared(nat: &Nat) -> Vec<(&'static str, Value)> {
    if nat.udp != Udp::Passes {
        return vec![("udp", json!(false)), ("mapping", Value::Null)];
    }
    let (ports, step) = match nat.ports {
        Ports::Preserving => ("preserving", None),
        Ports::Sequential(step) => ("sequential", Some(step)),
        Ports::Random => ("random", None),
    };
    vec![
        ("udp", json!(true)),
        ("untranslated", json!(false)),
        ("mapping", json!(nat.mapping.word())),
        ("filtering", json!(nat.filtering.word())),
        ("ports", json!(ports)),
        ("step", json!(step)),
        ("hairpin", json!(nat.hairpin)),
    ]
}

/// What a check has found over IPv4.
fn ipv4(check: &Value) -> Result<Value, Stop> {
    let mut families = check["families"].as_array().into_iter().flatten();
    let found = families.find(|family| family["family"] == "ipv4").cloned();
    found.ok_or_else(|| Stop::Failed(format!("`byway check` tells nothing of IPv4: {check}")))
}

/// What a judge says of a NAT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// UDP does not pass.
    NoUdp,
    /// Its mapping and its filtering.
    Behaves(Depends, Depends),
}

impl Verdict {
    /// What the rules make of it.
    fn of(nat: &Nat) -> Self {
        match nat.udp {
            Udp::Passes => Verdict::Behaves(nat.mapping, nat.filtering),
            Udp::Dropped | Udp::Rejected => Verdict::NoUdp,
        }
    }
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
