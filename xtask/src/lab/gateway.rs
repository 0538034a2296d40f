//! Port mappings at a real miniupnpd, in each of its dialects alone.
//!
//! A mapping counts when a packet that nobody has asked for, from a machine that the node never talked to, arrives at the
//! node's port; its removal counts when one no longer does. What the gateway answered does not matter.

use std::{fs, thread, time::Duration};

use crate::{
    Stop,
    lab::{
        Lab, Outcome, Scenario,
        nat::Nat,
        network::{CARRIER, Namespace, Plan},
        node::Node,
        process::{self, Service},
        traffic,
    },
};

/// How long a node may take to get its mapping.
pub(crate) const MAP_LIMIT: Duration = Duration::from_secs(10);
/// How long a packet may take to arrive; the lab has no delay.
const ARRIVAL_LIMIT: Duration = Duration::from_secs(1);
/// The longest lease of the gateway whose leases run out, in seconds.
const SHORT_LEASE: u64 = 10;
/// How long the renewals of a short lease are watched: until it had run out twice.
const RENEWAL_WATCH: Duration = Duration::from_secs(2 * SHORT_LEASE + 3);
/// How long after a restart of the router the mapping may take to come back: its leases are for an hour, but the node asks for
/// the gateway's epoch every 60 s.
const RESTART_LIMIT: Duration = Duration::from_secs(65);
/// How long the gateway has been up when the node meets it: an epoch may lag by an eighth and two seconds (RFC 6886 §3.6), so
/// that a restart just after the first answer cannot be told from a slow clock.
const UPTIME: Duration = Duration::from_secs(12);
/// How long a gateway that refuses is watched.
const REFUSAL_WATCH: Duration = Duration::from_secs(4);

/// What the gateway speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dialect {
    UpnpIgd,
    NatPmp,
    Pcp,
}

/// What the scenario is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Story {
    /// The mapping is made, and removed with the node.
    MadeAndRemoved,
    /// The gateway's leases run out soon.
    Renewed,
    /// The gateway has no public address itself, and refuses.
    Refused,
    /// The gateway restarts, and has forgotten everything.
    Restarted,
}

/// Each dialect alone, then short leases, routers that restart, gateways behind a carrier, a relay's TCP port, a pinhole for IPv6.
pub(crate) fn scenarios() -> Vec<Scenario> {
    use Dialect::{NatPmp, Pcp, UpnpIgd};
    let scenario = |name: &str, dialect: Dialect, story: Story| Scenario {
        name: "gateway",
        a: name.to_owned(),
        b: String::new(),
        plan: Plan { carrier: [story == Story::Refused, false], ..Plan::default() },
        breaks: false,
        run: Box::new(move |lab| run(lab, dialect, story)),
    };
    let relay = Scenario { run: Box::new(relay), ..scenario("relay-tcp", Pcp, Story::MadeAndRemoved) };
    let ipv6 = Plan { ipv6: true, ..Plan::default() };
    let pinhole = Scenario { plan: ipv6, run: Box::new(pinhole), ..scenario("pinhole", Pcp, Story::MadeAndRemoved) };
    vec![
        scenario("upnp-igd", UpnpIgd, Story::MadeAndRemoved),
        scenario("nat-pmp", NatPmp, Story::MadeAndRemoved),
        scenario("pcp", Pcp, Story::MadeAndRemoved),
        scenario("short-lease", Pcp, Story::Renewed),
        scenario("restart", NatPmp, Story::Restarted),
        scenario("behind-carrier", Pcp, Story::Refused),
        relay,
        pinhole,
    ]
}

fn run(lab: &Lab, dialect: Dialect, story: Story) -> Result<Outcome, Stop> {
    lab.network.router("ra").load(&Nat { has_gateway: true, ..Nat::default() })?;
    let gateway = start(lab, dialect, story)?;
    if story == Story::Restarted {
        thread::sleep(UPTIME);
    }
    let refuses = story == Story::Refused;
    let relay = if refuses { Some(Node::relay(lab)?) } else { None };
    let (node, _) = match &relay {
        Some((_, address)) => Node::serve(lab, "ha", address)?,
        None => Node::alone(lab, "ha")?,
    };
    let inner = node.port()?;
    let host = lab.network.host("ha");
    let limit = if story == Story::Refused { REFUSAL_WATCH } else { MAP_LIMIT };
    let made = process::timed(|| process::wait_for(limit, || mapped_port(lab, inner).transpose()).transpose());
    if refuses {
        return refused(&node, made.0?);
    }
    let outer = made.0?.ok_or_else(|| {
        Stop::Failed(format!("the gateway has no rule for the node's port {inner} after {} s", limit.as_secs()))
    })?;
    watch(host, inner)?;
    if !arrives(lab, outer)? {
        return Err(Stop::Failed(format!("a packet to the mapped port {outer} does not arrive at port {inner}")));
    }
    if story == Story::Renewed {
        thread::sleep(RENEWAL_WATCH);
        if !arrives(lab, outer)? {
            return Err(Stop::Failed(format!("the lease of {SHORT_LEASE} s ran out: port {outer} leads nowhere now")));
        }
    }
    let (_gateway, again) = match story {
        Story::Restarted => restart(lab, dialect, gateway, outer)?,
        _ => (gateway, String::new()),
    };
    drop(node);
    if arrives(lab, outer)? {
        return Err(Stop::Failed(format!("the node is closed, but packets to port {outer} still arrive at its host")));
    }
    let note = format!("port {outer} leads to {inner}; removed with the node{again}");
    Ok(Outcome { took: Some(made.1), note, ..Outcome::default() })
}

/// A gateway without a public address forwards nothing, and nothing is told of it but the carrier's address.
fn refused(node: &Node, mapped: Option<u16>) -> Result<Outcome, Stop> {
    if let Some(port) = mapped {
        return Err(Stop::Failed(format!("port {port} is mapped, though the gateway has no public address")));
    }
    let status = node.status()?;
    let told = status["mappings"].as_array().is_some_and(|list| list.iter().any(|it| !it["external"].is_null()));
    let seen = status["nat"]["families"][0]["public"].as_str().unwrap_or_default();
    if told || !seen.starts_with(&CARRIER[0].to_string()) {
        return Err(Stop::Failed(format!("a mapping is told, or the carrier's address is not: {status}")));
    }
    Ok(Outcome { note: format!("refused; the node is seen at {seen}"), ..Outcome::default() })
}

/// A relay at home: its TCP port is mapped as its UDP port is, and a stranger's connection arrives.
fn relay(lab: &Lab) -> Result<Outcome, Stop> {
    lab.network.router("ra").load(&Nat { has_gateway: true, ..Nat::default() })?;
    let _gateway = start(lab, Dialect::Pcp, Story::MadeAndRemoved)?;
    let relay = Node::relay_on(lab, "ha")?.0;
    let inner = relay.port()?;
    let find = || mapping(lab, "tcp", inner).transpose();
    let (outer, took) = process::timed(|| process::wait_for(MAP_LIMIT, find).transpose());
    let outer =
        outer?.ok_or_else(|| Stop::Failed(format!("the gateway has no rule for the relay's TCP port {inner}")))?;
    if !opens(lab, outer)? {
        return Err(Stop::Failed(format!("a TCP connection to the mapped port {outer} does not reach the relay")));
    }
    drop(relay);
    if mapping(lab, "tcp", inner)?.is_some() || opens(lab, outer)? {
        return Err(Stop::Failed(format!("the relay is closed, but TCP port {outer} still leads to its host")));
    }
    Ok(Outcome {
        took: Some(took),
        note: format!("TCP port {outer} leads to {inner}; removed with the relay"),
        ..Outcome::default()
    })
}

/// IPv6 behind a firewall: nothing is translated, but the gateway must be asked to let strangers in (RFC 6887 §13).
fn pinhole(lab: &Lab) -> Result<Outcome, Stop> {
    lab.network.router("ra").load(&Nat { has_gateway: true, ..Nat::default() })?;
    let _gateway = start(lab, Dialect::Pcp, Story::MadeAndRemoved)?;
    let (node, _) = Node::alone(lab, "ha")?;
    let inner = node.port()?;
    count_from(lab.network.host("ha"), &format!("ip6 saddr {STRANGER6}"), inner)?;
    let target = format!("[{HOST6}]:{inner}");
    let let_in = || reaches(lab, &target).map(|yes| yes.then_some(())).transpose();
    let (open, took) = process::timed(|| process::wait_for(MAP_LIMIT, let_in).transpose());
    open?.ok_or_else(|| Stop::Failed(format!("no packet of a stranger reaches {target}: there is no pinhole")))?;
    drop(node);
    if reaches(lab, &target)? {
        return Err(Stop::Failed(format!("the node is closed, but strangers' packets still reach {target}")));
    }
    Ok(Outcome {
        took: Some(took),
        note: format!("strangers reach {target}; closed with the node"),
        ..Outcome::default()
    })
}

/// Switches the router off and on: rules, mappings and the gateway's epoch begin anew. The port has to come back by itself.
fn restart(lab: &Lab, dialect: Dialect, gateway: Service, outer: u16) -> Result<(Service, String), Stop> {
    gateway.kill();
    lab.network.router("ra").load(&Nat { has_gateway: true, ..Nat::default() })?;
    if arrives(lab, outer)? {
        return Err(Stop::Failed(format!("the router has restarted, but port {outer} still leads to the host")));
    }
    let gateway = start(lab, dialect, Story::Restarted)?;
    let (back, took) = process::timed(|| {
        process::wait_for(RESTART_LIMIT, || arrives(lab, outer).map(|yes| yes.then_some(())).transpose()).transpose()
    });
    back?.ok_or_else(|| {
        Stop::Failed(format!("port {outer} leads nowhere {} s after the router's restart", RESTART_LIMIT.as_secs()))
    })?;
    Ok((gateway, format!("; back {:.1} s after a restart", took.as_secs_f64())))
}

/// Starts miniupnpd on router A, for UPnP.
pub(crate) fn miniupnpd(lab: &Lab) -> Result<Service, Stop> {
    start(lab, Dialect::UpnpIgd, Story::MadeAndRemoved)
}

/// Starts miniupnpd on router A; the router drops the other dialects' questions.
fn start(lab: &Lab, dialect: Dialect, story: Story) -> Result<Service, Stop> {
    let router = &lab.network.router("ra").namespace;
    let yes = |yes: bool| if yes { "yes" } else { "no" };
    let upnp = dialect == Dialect::UpnpIgd;
    let mut settings = format!(
        "ext_ifname=wan\nlistening_ip=lan\nenable_upnp={}\nenable_natpmp={}\nupnp_nat_table_name=upnpnat\nmin_lifetime={SHORT_LEASE}\n",
        yes(upnp),
        yes(!upnp)
    );
    if lab.network.plan().ipv6 {
        settings += "ipv6_disable=no\next_ifname6=wan\n";
    }
    if story == Story::Renewed {
        settings += &format!("max_lifetime={}\n", SHORT_LEASE + 1);
    }
    // The first byte of a question is its version: 0 is NAT-PMP (RFC 6886 §3.1), 2 is PCP (RFC 6887 §7.1).
    let other = if dialect == Dialect::NatPmp { 2 } else { 0 };
    if !upnp {
        router.nft(&format!("insert rule inet filter input udp dport 5351 @th,64,8 {other} drop\n"))?;
    }
    let file = lab.dir.join("miniupnpd.conf");
    fs::write(&file, settings).map_err(|error| Stop::Failed(format!("cannot write {}: {error}", file.display())))?;
    let mut command = router.command("miniupnpd");
    command.arg("-d").arg("-f").arg(&file).arg("-P").arg(lab.dir.join("miniupnpd.pid"));
    let service = Service::start(&mut command, "miniupnpd", &lab.dir)?;
    let port = if upnp { ":1900" } else { ":5351" };
    let bound = || {
        let sockets = process::run(router.command("ss").args(["-H", "-u", "-l", "-n"]), "").unwrap_or_default();
        sockets.contains(port).then_some(())
    };
    process::wait_for(ARRIVAL_LIMIT * 5, bound)
        .ok_or_else(|| Stop::Failed(format!("miniupnpd does not listen on {port}: its log is above")))?;
    Ok(service)
}

/// The outer port that the gateway's rules lead to port `inner` of the host.
pub(crate) fn mapped_port(lab: &Lab, inner: u16) -> Result<Option<u16>, Stop> {
    mapping(lab, "udp", inner)
}

fn mapping(lab: &Lab, transport: &str, inner: u16) -> Result<Option<u16>, Stop> {
    let router = &lab.network.router("ra").namespace;
    let rules =
        process::run(router.command("nft").args(["list", "chain", "inet", "upnpnat", "prerouting_miniupnpd"]), "")?;
    // UPnP's rules name the protocol, PCP's look at the header's byte.
    let (target, number) = (format!("10.1.0.2:{inner}"), if transport == "tcp" { " 0x6 " } else { " 0x11 " });
    let names = |line: &str| line.contains(&format!("{transport} dport ")) || line.contains(number);
    let rule = rules.lines().find(|line| line.contains(&target) && names(line));
    let port = rule.and_then(|rule| rule.split("dport ").nth(1)?.split_whitespace().next()?.parse().ok());
    Ok(port)
}

/// Counts what comes to `port` of a host from the machine that it never talked to.
pub(crate) fn watch(host: &Namespace, port: u16) -> Result<(), Stop> {
    count_from(host, &format!("ip saddr {STRANGER}"), port)
}

fn count_from(host: &Namespace, source: &str, port: u16) -> Result<(), Stop> {
    host.nft(&format!(
        "flush ruleset\ntable inet watch {{\nchain arrivals {{\ntype filter hook input priority 0;\n\
         {source} udp dport {port} counter\n}}\n}}\n"
    ))
}

/// The address of the machine `open`.
const STRANGER: &str = "11.0.0.30";
const STRANGER6: &str = "2600:11::30";

/// The IPv6 address of the host `ha`.
const HOST6: &str = "2600:11:0:a::2";

/// Whether a TCP connection from the stranger to the router's `port` is taken by anybody.
fn opens(lab: &Lab, port: u16) -> Result<bool, Stop> {
    let target = format!("{}:{port}", lab.network.router("ra").outer);
    let mut knock = traffic::start(lab.network.host("open"), &["knock", &target], "knock", &lab.dir)?;
    Ok(knock.event(ARRIVAL_LIMIT * 3, "knocked", |_| true)?["open"] == true)
}

/// Whether a packet from there to the router's `port` arrives at the host.
pub(crate) fn arrives(lab: &Lab, port: u16) -> Result<bool, Stop> {
    reaches(lab, &format!("{}:{port}", lab.network.router("ra").outer))
}

/// Whether what the stranger sends to `target` is counted at the host.
fn reaches(lab: &Lab, target: &str) -> Result<bool, Stop> {
    let count = || -> Result<u64, Stop> {
        let rules = process::run(lab.network.host("ha").command("nft").args(["list", "ruleset"]), "")?;
        let packets = rules.split("counter packets ").nth(1).and_then(|rest| rest.split_whitespace().next());
        packets.and_then(|packets| packets.parse().ok()).ok_or_else(|| Stop::Failed("the counter is gone".into()))
    };
    let before = count()?;
    let mut poke = traffic::start(lab.network.host("open"), &["poke", target], "poke", &lab.dir)?;
    poke.event(ARRIVAL_LIMIT, "poked", |_| true)?;
    let arrived = || count().map(|now| (now > before).then_some(())).transpose();
    Ok(process::wait_for(ARRIVAL_LIMIT, arrived).transpose()?.is_some())
}
