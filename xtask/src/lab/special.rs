//! Pairs that the traversal table does not have: neighbours, IPv6 between firewalls, routers with a flaw.

use crate::{
    Stop,
    lab::{
        Lab, Outcome, Scenario,
        meet::{Expected, meet},
        nat::{Depends, Nat, Ports, Strays},
        network::{OUTER, Plan},
        process,
    },
};

/// How many hops the packets have that open a mapping towards the peer.
const OPENER_HOPS: u8 = 5;
/// How many sockets must open by such packets: the hard side opens 240 in the first second, and a lucky guess ends that early.
const OPENERS: usize = 16;

/// One case: the routers' rules, and who meets whom.
#[derive(Debug, Clone, Copy)]
struct Case {
    name: &'static str,
    plan: Plan,
    routers: &'static [&'static str],
    nat: Nat,
    hosts: [&'static str; 2],
    expected: Expected,
}

fn cases() -> Vec<Case> {
    let home = Nat::default();
    let carrier = Nat { ports: Ports::Random, ..home };
    let symmetric = Nat::new(Depends::AddressAndPort, Depends::AddressAndPort, Ports::Random);
    let same_nat = Case {
        name: "same-nat",
        plan: Plan::default(),
        routers: &["ra"],
        nat: home,
        hosts: ["ha", "ha2"],
        expected: Expected::Direct,
    };
    let one_carrier = Case {
        name: "one-carrier",
        plan: Plan { carrier: [true; 2], one_carrier: true, ipv6: false },
        routers: &["ra", "rb", "ca"],
        nat: carrier,
        hosts: ["ha", "hb"],
        expected: Expected::Relay,
    };
    vec![
        same_nat,
        Case { name: "same-nat-hairpin", nat: Nat { hairpin: true, ..home }, ..same_nat },
        // Both interfaces' addresses are the only way there is.
        Case { name: "same-symmetric-nat", nat: symmetric, ..same_nat },
        // No public address is common to both; only the carrier could turn the packets around.
        one_carrier,
        Case {
            name: "one-carrier-hairpin",
            nat: Nat { hairpin: true, ..carrier },
            expected: Expected::Direct,
            ..one_carrier
        },
        // The IPv4 NATs allow nothing, so that a direct path is one through both firewalls.
        Case {
            name: "ipv6-firewalls",
            plan: Plan { ipv6: true, ..Plan::default() },
            routers: &["ra", "rb"],
            nat: symmetric,
            hosts: ["ha", "hb"],
            expected: Expected::Direct,
        },
        // An early packet from outside costs the sender an ICMP error, and nothing else.
        Case {
            name: "routers-reject-strays",
            plan: Plan::default(),
            routers: &["ra", "rb"],
            nat: Nat { strays: Strays::Rejected, ..home },
            hosts: ["ha", "hb"],
            expected: Expected::Direct,
        },
        // An early packet from outside takes the port away from the mapping that it was meant for.
        Case {
            name: "routers-take-strays",
            plan: Plan::default(),
            routers: &["ra", "rb"],
            nat: Nat { strays: Strays::Taken, ..home },
            hosts: ["ha", "hb"],
            expected: Expected::Either,
        },
    ]
}

/// One scenario for each case.
pub(crate) fn scenarios() -> Vec<Scenario> {
    let scenario = |case: Case| Scenario {
        name: "special",
        a: case.name.to_owned(),
        b: String::new(),
        plan: case.plan,
        breaks: false,
        run: Box::new(move |lab| run(lab, &case)),
    };
    let openers = Scenario {
        name: "special",
        a: "openers".into(),
        b: String::new(),
        plan: Plan::default(),
        breaks: false,
        run: Box::new(openers),
    };
    cases().into_iter().map(scenario).chain([openers]).collect()
}

/// The packets by which the hard side of a punch opens its mappings are of few hops: a router's counter sees one from each socket.
fn openers(lab: &Lab) -> Result<Outcome, Stop> {
    lab.network.router("ra").load(&Nat::default())?;
    let hard = lab.network.router("rb");
    hard.load(&Nat::new(Depends::AddressAndPort, Depends::AddressAndPort, Ports::Random))?;
    hard.namespace.nft(&format!(
        "table inet openers {{\nset sockets {{ type inet_service; flags dynamic; counter; }}\n\
         chain seen {{\ntype filter hook prerouting priority -500;\n\
         iifname lan ip ttl {OPENER_HOPS} ip daddr {} meta l4proto udp update @sockets {{ udp sport }}\n}}\n}}\n",
        OUTER[0]
    ))?;
    let outcome = meet(lab, ["ha", "hb"], Expected::Luck(3))?;
    let seen = process::run(hard.namespace.command("nft").args(["list", "set", "inet", "openers", "sockets"]), "")?;
    let sockets = seen.matches("counter packets").count();
    if sockets < OPENERS {
        let say = format!(
            "of {OPENERS} sockets and more, {sockets} have sent a packet of {OPENER_HOPS} hops to the peer's NAT"
        );
        return Err(Stop::Failed(say));
    }
    let note = format!("{}; {sockets} sockets opened with {OPENER_HOPS} hops", outcome.note);
    Ok(Outcome { note, ..outcome })
}

fn run(lab: &Lab, case: &Case) -> Result<Outcome, Stop> {
    for router in case.routers {
        lab.network.router(router).load(&case.nat)?;
    }
    meet(lab, case.hosts, case.expected)
}
