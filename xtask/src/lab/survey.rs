//! What a NAT is, by several judges: the axes it was made from, coturn's client, `byway check`, and the same survey in the
//! simulator behind the NAT of the same name. All must agree, or the NATs of the lab, of the simulator and of our survey are
//! not the same.

use std::{fmt, process::Command, thread, time::Duration};

use serde_json::{Value, json};

use crate::{
    Stop,
    lab::{
        Lab, Outcome, Scenario, coturn,
        nat::{Depends, Nat, Ports, Udp},
        network::{Plan, STUN},
        node::{self, Node},
        process,
    },
    rows,
};

use Depends::{Address, AddressAndPort, Nothing};

/// How long the router that forgets keeps an idle mapping, in seconds, as the simulator's `port-restricted-10s`.
const LIFETIME: u64 = 10;
/// How long the search for that may take: a wait of 15 s is too long, half of it is not.
const LIFETIME_WATCH: Duration = Duration::from_secs(60);

/// Every NAT that is surveyed, by the simulator's name for it, from the host outwards.
fn kinds() -> Vec<(&'static str, Vec<Nat>)> {
    let one = |mapping, filtering, ports| vec![Nat::new(mapping, filtering, ports)];
    let hairpin = |filtering, ports| vec![Nat { hairpin: true, ..Nat::new(Nothing, filtering, ports) }];
    let seq = Ports::Sequential(1);
    let (same, random) = (Ports::Preserving, Ports::Random);
    let home = Nat::new(Nothing, AddressAndPort, same);
    vec![
        ("full-cone", one(Nothing, Nothing, same)),
        ("full-cone-random", one(Nothing, Nothing, random)),
        ("full-cone-hairpin", hairpin(Nothing, random)),
        ("address-restricted", one(Nothing, Address, same)),
        ("address-restricted-random", one(Nothing, Address, random)),
        ("port-restricted", vec![home]),
        ("port-restricted-random", one(Nothing, AddressAndPort, random)),
        ("port-restricted-hairpin", hairpin(AddressAndPort, same)),
        ("address-dependent", one(Address, AddressAndPort, random)),
        ("address-dependent-open", one(Address, Nothing, random)),
        ("address-dependent-address-filter", one(Address, Address, random)),
        ("symmetric-random", one(AddressAndPort, AddressAndPort, random)),
        ("symmetric-sequential", one(AddressAndPort, AddressAndPort, seq)),
        ("symmetric-step-4", one(AddressAndPort, AddressAndPort, Ports::Sequential(4))),
        ("symmetric-preserving", one(AddressAndPort, AddressAndPort, same)),
        // A port of its own for each destination, and yet open to others: what no common NAT does, and RFC 4787 has words for.
        ("symmetric-open", one(AddressAndPort, Nothing, random)),
        ("symmetric-address-filter", one(AddressAndPort, Address, random)),
        ("udp-blocked", vec![Nat { udp: Udp::Dropped, ..Nat::default() }]),
        ("cgnat-port-restricted", vec![home, Nat { ports: random, ..home }]),
    ]
}

/// The NATs of this name, none for who stands behind nothing.
pub(crate) fn named(name: &str) -> Vec<Nat> {
    kinds().into_iter().find(|(known, _)| *known == name).map(|(_, nats)| nats).unwrap_or_default()
}

/// One scenario for each NAT, and one for a NAT that says that it lets no UDP pass, for which the simulator has no words.
pub(crate) fn scenarios() -> Vec<Scenario> {
    let scenario = |name: &str, simulated: &'static str, nats: Vec<Nat>| Scenario {
        name: "survey",
        a: name.to_owned(),
        b: String::new(),
        plan: Plan { carrier: [nats.len() > 1, false], ..Plan::default() },
        breaks: false,
        run: Box::new(move |lab| survey(lab, simulated, &nats)),
    };
    let rejecting = Nat { udp: Udp::Rejected, ..Nat::default() };
    let all = kinds().into_iter().map(|(name, nats)| scenario(name, name, nats));
    let forgetful = Scenario { breaks: true, run: Box::new(lifetime), ..scenario("lifetime", "", vec![]) };
    all.chain([scenario("udp-rejected", "udp-blocked", vec![rejecting]), forgetful]).collect()
}

/// A router that forgets idle mappings after ten seconds, which only a node that stays can learn.
fn lifetime(lab: &Lab) -> Result<Outcome, Stop> {
    let router = lab.network.router("ra");
    router.load(&Nat::default())?;
    router.forget_after(LIFETIME)?;
    let (_relay, address) = Node::relay(lab)?;
    let (node, _) = Node::serve(lab, "ha", &address)?;
    let found = || Ok(ipv4(&node.status()?["nat"])?["lifetime_s"].as_u64());
    let (found, took) = process::timed(|| process::wait_for(LIFETIME_WATCH, || found().transpose()).transpose());
    let found = json!(found?);
    let simulated = simulate(lab, "port-restricted-10s")?["lifetime_s"].clone();
    if found != simulated || found.as_u64().is_none_or(|seconds| seconds >= LIFETIME) {
        return Err(Stop::Failed(format!(
            "idle mappings live {LIFETIME} s; the node says {found} behind nftables, {simulated} in the simulator"
        )));
    }
    let note = format!("idle mappings live {LIFETIME} s: at least {found} s, here and in the simulator");
    Ok(Outcome { took: Some(took), note, ..Outcome::default() })
}

fn survey(lab: &Lab, simulated: &str, nats: &[Nat]) -> Result<Outcome, Stop> {
    for (router, nat) in ["ra", "ca"].iter().zip(nats) {
        lab.network.router(router).load(nat)?;
    }
    let nat = nats.last().ok_or_else(|| Stop::Failed("there is no NAT to survey".into()))?;
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
    let simulated = simulate(lab, simulated)?;
    let wanted = declared(nat);
    let differs = |who: &str, verdict: &Value| -> Vec<String> {
        let differing = wanted.iter().filter(|(property, value)| verdict[*property] != *value);
        differing
            .map(|(property, value)| format!("{property}: the rules {value}, {who} {}", verdict[*property]))
            .collect()
    };
    let mut differing = [differs("byway check", &found), differs("the simulator", &simulated)].concat();
    differing.extend((theirs != Verdict::of(nat)).then(|| format!("the rules {}, coturn {theirs}", Verdict::of(nat))));
    if !differing.is_empty() {
        return Err(Stop::Failed(format!("the judges differ: {}", differing.join("; "))));
    }
    let note = format!("{theirs}; nftables, the simulator and coturn alike");
    Ok(Outcome { took: Some(took), note, ..Outcome::default() })
}

/// What the survey says behind the simulator's NAT of this name.
fn simulate(lab: &Lab, name: &str) -> Result<Value, Stop> {
    let mut command = Command::new(&lab.simulator);
    rows::last(&process::run(command.args(["survey", "--json", "--nat", name]), "")?)
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
