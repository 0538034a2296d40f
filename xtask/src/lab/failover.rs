//! What breaks while bytes flow: the application may notice a pause, and nothing else.

use std::{net::Ipv4Addr, thread, time::Duration};

use crate::{
    Stop,
    lab::{
        Lab, Outcome, Scenario,
        meet::Pair,
        nat::{Depends, Nat, Ports},
        network::{OUTER, Plan},
        node::{Node, finish_exchange},
    },
};

/// The flow: so many messages, one each so many milliseconds.
const FLOW: (u64, u64) = (400, 10);
/// How long it flows until something breaks.
const BEFORE: Duration = Duration::from_secs(1);
/// How long a link is cut.
const CUT: Duration = Duration::from_secs(1);
/// The longest pause that passes: what the failover gates grant the slowest, a relay that has to start again.
const PAUSE_LIMIT: Duration = Duration::from_secs(3);
/// How long the flow may take in all.
const LIMIT: Duration = Duration::from_secs(25);
/// Another outer address for router A.
const MOVED: Ipv4Addr = Ipv4Addr::new(11, 0, 0, 141);

/// What breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Break {
    DirectPath,
    Link,
    Mappings,
    Address,
    Relay,
    RelayInUse,
}

use Break::*;

impl Break {
    fn name(self) -> &'static str {
        match self {
            DirectPath => "direct-path-dies",
            Link => "link-down",
            Mappings => "conntrack-flush",
            Address => "address-change",
            Relay => "relay-killed",
            RelayInUse => "relay-in-use-restarts",
        }
    }

    /// Whether the bytes cross the relay before it happens.
    fn is_relayed(self) -> bool {
        self == RelayInUse
    }
}

/// The homes' NAT: a mapping that is lost comes back with another port.
fn home() -> Nat {
    Nat { ports: Ports::Random, ..Nat::default() }
}

/// One scenario for each thing that breaks.
pub(crate) fn scenarios() -> Vec<Scenario> {
    let scenario = |what: Break| Scenario {
        name: "failover",
        a: what.name().to_owned(),
        b: String::new(),
        plan: Plan::default(),
        breaks: true,
        run: Box::new(move |lab| run(lab, what)),
    };
    [DirectPath, Link, Mappings, Address, Relay, RelayInUse].into_iter().map(scenario).collect()
}

fn run(lab: &Lab, what: Break) -> Result<Outcome, Stop> {
    let symmetric = Nat::new(Depends::AddressAndPort, Depends::AddressAndPort, Ports::Random);
    let nat = if what.is_relayed() { symmetric } else { home() };
    for router in ["ra", "rb"] {
        lab.network.router(router).load(&nat)?;
    }
    let mut pair = Pair::connect(lab, ["ha", "hb"])?;
    if !what.is_relayed() {
        pair.must_become_direct()?;
    }
    let mut flow = pair.reaching.begin_exchange(lab, FLOW.0, FLOW.1)?;
    flow.event(LIMIT, "first", |_| true)?;
    thread::sleep(BEFORE);
    inflict(lab, what, &mut pair)?;
    let pause = finish_exchange(&mut flow, LIMIT)?;
    if pause > PAUSE_LIMIT {
        let (pause, limit) = (pause.as_millis(), PAUSE_LIMIT.as_millis());
        return Err(Stop::Failed(format!("all came back, but after a pause of {pause} ms; {limit} are allowed")));
    }
    let path = match pair.reaching.is_direct()? {
        true => "direct",
        false => "relay",
    };
    let note = format!("the longest pause of {} messages; all came back", FLOW.0);
    Ok(Outcome { path: Some(path), took: Some(pause), note })
}

fn inflict(lab: &Lab, what: Break, pair: &mut Pair) -> Result<(), Stop> {
    let router = lab.network.router("ra");
    match what {
        DirectPath => {
            // In silence, and on the way: neither router nor host can know.
            let [a, b] = OUTER;
            let ends = format!("{{ {a}, {b} }}");
            let cut = format!("type filter hook forward priority 0;\nip saddr {ends} ip daddr {ends} drop\n");
            lab.network.host("inet").nft(&format!("table bridge cut {{\nchain cut {{\n{cut}}}\n}}\n"))
        }
        Link => {
            router.unplug()?;
            thread::sleep(CUT);
            router.plug()
        }
        Mappings => router.load(&home()),
        Address => router.renumber(MOVED, &home()),
        Relay | RelayInUse => {
            if let Some(relay) = pair.relay.take() {
                relay.kill();
            }
            if what == RelayInUse {
                pair.relay = Some(Node::relay(lab)?.0);
            }
            Ok(())
        }
    }
}
