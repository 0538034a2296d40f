//! How the NATs between this node and the core behave, and what that means with typical peers.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use byway::{
    HostAddr, NodeStatus,
    nat::{BudgetConfig, FamilyReport, Filtering, Mapping, NatReport, Obstacle, Plan, Ports, plan},
};
use tokio::time::{self, Instant};

use super::{Daemon, attend::Report, lock, status::mappings};
use crate::{
    control::{
        Event,
        event::{
            Path,
            nat::{Check, Family, Ip, Prospect, Server},
        },
    },
    failure::{Exit, Failure, printable},
};

/// How often the survey is looked at; what it waits for has to be over twice in a row, for a relay that has just registered
/// this node names its second port in a moment.
const POLL: Duration = Duration::from_millis(100);

/// How long a relay may take to register this node once the survey waits for nobody else: a dead one takes for ever.
const REGISTRATION: Duration = Duration::from_secs(3);

/// Waits for the survey's verdict, for `wait` at most, and tells it.
pub(super) async fn run(daemon: Arc<Daemon>, wait: Duration, report: Report) -> Result<(), Failure> {
    if daemon.settings.relay_only {
        let why = "this node is told to use relays only, so it asks nobody how its NATs behave; run `byway check` without \
                   relay_only, with another --data-dir if a node runs";
        return Err(Failure::usage(why));
    }
    let (stun, unresolved) = ask_all(&daemon).await;
    let relays = lock(&daemon.relays).len();
    if relays + stun.len() == 0 {
        let why = "there is nobody to ask how the NATs behave; name a relay with --relay or a STUN server with --stun, or \
                   put one into the configuration (`relays`, `stun`)";
        return Err(Failure::usage(why));
    }
    if let Some(why) = unresolved.first().filter(|_| relays + stun.len() == unresolved.len()) {
        return Err(Failure::new(Exit::Unreachable, why));
    }
    report.tell(Event::Checking { servers: relays + stun.len(), wait_s: wait.as_secs() });
    let (status, awaited) = verdict(&daemon, wait).await;
    let families = Family::list(&status.nat.report);
    if families.is_empty() {
        return Err(Failure::new(Exit::Unreachable, silence(&status, awaited)));
    }
    report.tell(Event::Check(Box::new(Check {
        families,
        mappings: mappings(&status.mappings),
        outlook: outlook(&reachable(&status), &daemon.settings.nat.budget),
        servers: servers(&status, stun),
        awaited: awaited.map(str::to_owned),
    })));
    Ok(())
}

/// Asks every STUN server, and relays before they have registered this node: where UDP is blocked they never will. Gives the STUN
/// servers' states, and why some cannot be asked.
async fn ask_all(daemon: &Daemon) -> (Vec<Server>, Vec<String>) {
    let relays: Vec<HostAddr> = lock(&daemon.relays).iter().flat_map(|relay| relay.addrs.clone()).collect();
    for relay in &relays {
        let _ = daemon.ask(relay).await; // the relay's own state tells of it
    }
    let (mut servers, mut unresolved) = (Vec::new(), Vec::new());
    let stun = lock(&daemon.stun).clone();
    for server in stun {
        let asked = daemon.ask(&server).await;
        let state = if asked.is_ok() { "asked" } else { "no address" };
        servers.push(Server { name: server.to_string(), relay: false, state: state.into() });
        unresolved.extend(asked.err());
    }
    (servers, unresolved)
}

/// The node's state once the survey has its verdict, or once the time is up, with what it still waits for then.
async fn verdict(daemon: &Daemon, wait: Duration) -> (NodeStatus, Option<&'static str>) {
    let (began, mut idle) = (Instant::now(), 0);
    loop {
        let status = daemon.node.status().await;
        let unknown = status.nat.report == NatReport::default();
        let relays = &status.relays;
        let nowhere = !relays.is_empty() && !relays.iter().any(|relay| relay.registered);
        let registering = nowhere || relays.iter().any(|relay| relay.home && !relay.registered);
        let awaited = match status.nat.awaited {
            Some(what) => Some(what),
            None if began.elapsed() >= REGISTRATION => None,
            None if registering => Some("the registration at a relay"),
            None => unknown.then_some("an answer of any server"),
        };
        idle = if awaited.is_none() { idle + 1 } else { 0 };
        if idle == 2 || began.elapsed() >= wait {
            return (status, awaited);
        }
        time::sleep(POLL).await;
    }
}

fn silence(status: &NodeStatus, awaited: Option<&'static str>) -> String {
    if status.relays.iter().any(|relay| relay.addr.is_some_and(|addr| addr.ip().is_loopback())) {
        return "a relay on this machine's loopback tells nothing of NATs; name one on another machine with --relay, or a STUN \
                server with --stun"
            .into();
    }
    let relays = status.relays.iter().map(|relay| format!("; relay {}: {}", relay.id.short(), printable(&relay.state)));
    let relays: String = relays.collect();
    format!(
        "nothing was learned within the time given (still waiting for {}{relays}); check the servers' addresses and this \
         machine's network, or give it more time with --wait",
        awaited.unwrap_or("an answer of any server")
    )
}

fn servers(status: &NodeStatus, stun: Vec<Server>) -> Vec<Server> {
    let relays = status.relays.iter().map(|relay| Server {
        name: relay.id.to_string(),
        relay: true,
        state: printable(&relay.state),
    });
    relays.chain(stun).collect()
}

/// The report as peers meet it: a port that the gateway forwards lets everybody in, if the address that the gateway tells is the one
/// that the core sees.
fn reachable(status: &NodeStatus) -> NatReport {
    let forwarded = status.mappings.iter().filter(|mapping| !mapping.carrier).filter_map(|mapping| mapping.external);
    with_forwarded(status.nat.report.clone(), forwarded)
}

fn with_forwarded(mut report: NatReport, forwarded: impl Iterator<Item = SocketAddr>) -> NatReport {
    for external in forwarded {
        let family = if external.is_ipv4() { &mut report.ipv4 } else { &mut report.ipv6 };
        let is_seen = |family: &&mut FamilyReport| family.public.is_some_and(|public| public.ip() == external.ip());
        if let Some(family) = family.as_mut().filter(is_seen) {
            family.mapping = Some(Mapping::EndpointIndependent);
            family.filtering = Some(Filtering::EndpointIndependent);
        }
    }
    report
}

/// What most peers are behind.
const TYPICAL: [(&str, Mapping, Ports); 3] = [
    ("home routers", Mapping::EndpointIndependent, Ports::Preserving),
    ("NATs that count their ports", Mapping::AddressAndPortDependent, Ports::Sequential { step: 1 }),
    ("NATs with random ports", Mapping::AddressAndPortDependent, Ports::Random),
];

/// What the plans with typical peers are.
fn outlook(report: &NatReport, budget: &BudgetConfig) -> Vec<Prospect> {
    let mut outlook = Vec::new();
    for (family, ours) in [(Ip::Ipv4, &report.ipv4), (Ip::Ipv6, &report.ipv6)] {
        let Some(ours) = ours else { continue };
        for (peer, mapping, ports) in TYPICAL {
            let theirs = FamilyReport {
                public: Some(elsewhere(family)),
                mapping: Some(mapping),
                ports: Some(ports),
                filtering: Some(Filtering::AddressAndPortDependent),
                ..FamilyReport::default()
            };
            let (path, how) = expect(ours, plan(ours, &theirs), budget);
            outlook.push(Prospect { family, peer: peer.into(), path, how: how.into() });
        }
    }
    outlook
}

/// Any address that is not this node's (RFC 5737, RFC 3849).
fn elsewhere(family: Ip) -> SocketAddr {
    match family {
        Ip::Ipv4 => SocketAddr::from(([192, 0, 2, 1], 9)),
        Ip::Ipv6 => SocketAddr::from(([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1], 9)),
    }
}

fn expect(ours: &FamilyReport, plan: Plan, budget: &BudgetConfig) -> (Option<Path>, &'static str) {
    let fixed = ours.untranslated || ours.mapping == Some(Mapping::EndpointIndependent);
    let is_known = ours.public.is_none() || fixed || (ours.mapping.is_some() && ours.ports.is_some());
    match plan {
        _ if !is_known => (None, "not known: one NAT looks like another without a second server's answer"),
        Plan::Direct | Plan::SimultaneousOpen => (Some(Path::Direct), "direct"),
        Plan::RelayOnly(Obstacle::UdpBlocked { .. }) => (Some(Path::Relay), "relay only: no server answers over UDP"),
        Plan::RelayOnly(_) => (Some(Path::Relay), "relay only"),
        _ if budget.mappings == 0 || budget.probes == 0 => {
            (Some(Path::Relay), "relay only: the budget forbids guesses")
        }
        Plan::Predict { .. } | Plan::PredictBoth => (Some(Path::Direct), "direct as a rule, by predicted ports"),
        Plan::Spray { .. } => (Some(Path::Direct), "direct as a rule, after many guesses"),
        _ => (None, "not known"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expected(ours: FamilyReport, budget: &BudgetConfig) -> Vec<String> {
        let outlook = outlook(&NatReport { ipv4: Some(ours), ipv6: None }, budget);
        outlook.into_iter().map(|prospect| prospect.how).collect()
    }

    fn hard(ports: Ports) -> FamilyReport {
        FamilyReport {
            public: Some("198.51.100.1:7".parse().unwrap()),
            mapping: Some(Mapping::AddressAndPortDependent),
            ports: Some(ports),
            ..FamilyReport::default()
        }
    }

    #[test]
    fn the_outlook_follows_from_the_plans() {
        let budget = BudgetConfig::default();
        assert_eq!(
            expected(hard(Ports::Random), &budget),
            ["direct as a rule, after many guesses", "relay only", "relay only"]
        );
        let home = FamilyReport { mapping: Some(Mapping::EndpointIndependent), ..hard(Ports::Preserving) };
        assert_eq!(
            expected(home, &budget),
            ["direct", "direct as a rule, by predicted ports", "direct as a rule, after many guesses"]
        );
        assert!(expected(FamilyReport::default(), &budget).iter().all(|how| how.contains("no server answers")));
    }

    #[test]
    fn a_forwarded_port_lets_everybody_in_where_the_core_sees_the_gateways_address_and_else_nobody() {
        let report = NatReport { ipv4: Some(hard(Ports::Random)), ipv6: None };
        let outlook = |external: &str| {
            let report = with_forwarded(report.clone(), [external.parse().unwrap()].into_iter());
            outlook(&report, &BudgetConfig::default()).into_iter().map(|prospect| prospect.how).collect::<Vec<_>>()
        };
        assert_eq!(outlook("198.51.100.1:9"), ["direct", "direct", "direct"]);
        assert_eq!(outlook("198.51.100.2:9"), expected(hard(Ports::Random), &BudgetConfig::default()));
    }

    #[test]
    fn what_is_not_known_and_what_the_budget_forbids_is_not_promised() {
        let one_server = FamilyReport { mapping: None, ports: None, ..hard(Ports::Random) };
        assert!(expected(one_server, &BudgetConfig::default()).iter().all(|how| how.starts_with("not known")));
        let mut none = BudgetConfig::default();
        none.probes = 0;
        assert!(expected(hard(Ports::Sequential { step: 1 }), &none)[0].ends_with("forbids guesses"));
    }
}
