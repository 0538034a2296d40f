//! The lab's network: namespaces, the links between them, routers. None of it touches the machine's own interfaces.
//!
//! ```text
//! ha  ha2          hb
//!  └─┬─┘            │
//!    ra (NAT)      rb (NAT)      10.1.0.0/24 and 10.2.0.0/24 behind them
//!    │              │
//!   (ca)           (cb)          carrier NATs, where a side has one; 100.64.0.0/24 behind them
//!    └──── inet ────┘            a bridge: the public network, 11.0.0.0/24 and 2600:11::/64
//!      │    │    │
//!    stun relay open             public machines
//! ```
//!
//! The public addresses are ones that no RFC reserves, for a gateway refuses to map ports at others.

use std::{collections::BTreeMap, net::Ipv4Addr, process::Command, time::Duration};

use crate::{
    Stop,
    lab::{
        nat::{self, Nat},
        process,
    },
};

/// What the names of all namespaces begin with.
pub(crate) const PREFIX: &str = "bylab-";
/// How long the kernel may take until a new link carries packets; it looks about once a second.
const LINK_LIMIT: Duration = Duration::from_secs(5);
/// A bridge drops its frames on their way into the address translation of its own namespace, and neighbours that are
/// known beforehand need no detection of duplicates.
const SYSCTLS: [&str; 6] = [
    "net.bridge.bridge-nf-call-iptables=0",
    "net.bridge.bridge-nf-call-ip6tables=0",
    "net.bridge.bridge-nf-call-arptables=0",
    "net.ipv6.conf.all.accept_dad=0",
    "net.ipv6.conf.default.accept_dad=0",
    "net.ipv4.icmp_ratelimit=0",
];

/// Where the routers' default route leads.
const INET: Ipv4Addr = Ipv4Addr::new(11, 0, 0, 1);
/// The public machine with two addresses, where the STUN server is.
pub(crate) const STUN: [Ipv4Addr; 2] = [Ipv4Addr::new(11, 0, 0, 10), Ipv4Addr::new(11, 0, 0, 11)];
/// The outer addresses of routers A and B.
pub(crate) const OUTER: [Ipv4Addr; 2] = [Ipv4Addr::new(11, 0, 0, 101), Ipv4Addr::new(11, 0, 0, 102)];
/// The outer addresses of the carriers of A and B.
pub(crate) const CARRIER: [Ipv4Addr; 2] = [Ipv4Addr::new(11, 0, 0, 103), Ipv4Addr::new(11, 0, 0, 104)];
/// The home routers' outer addresses behind a carrier.
const BEHIND_CARRIER: [Ipv4Addr; 2] = [Ipv4Addr::new(100, 64, 0, 2), Ipv4Addr::new(100, 64, 0, 3)];

/// A carrier's inner address.
const CARRIER_INNER: Ipv4Addr = Ipv4Addr::new(100, 64, 0, 1);

/// Which network to build.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    /// Whether A, B are behind a carrier's NAT.
    pub(crate) carrier: [bool; 2],
    /// Whether B's carrier is A's.
    pub(crate) one_carrier: bool,
    /// Whether there is IPv6, stateful firewalls between.
    pub(crate) ipv6: bool,
}

/// A network namespace.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Namespace {
    name: String,
}

impl Namespace {
    /// A new one with nothing in it, which the end of the lab removes.
    pub(crate) fn new(name: &str) -> Result<Self, Stop> {
        let namespace = Namespace { name: format!("{PREFIX}{name}") };
        process::run(Command::new("ip").args(["netns", "add", &namespace.name]), "")?;
        process::run(namespace.command("sysctl").args(["-e", "-q", "-w"]).args(SYSCTLS), "")?;
        Ok(namespace)
    }

    /// A program that runs in it.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name, program]);
        command
    }

    /// Runs lines of `ip`, one command each.
    pub(crate) fn ip(&self, lines: &str) -> Result<(), Stop> {
        process::run(Command::new("ip").args(["-n", &self.name, "-batch", "-"]), lines).map(drop)
    }

    /// Runs lines of `nft`.
    pub(crate) fn nft(&self, rules: &str) -> Result<(), Stop> {
        process::run(self.command("nft").args(["-f", "-"]), rules).map(drop)
    }

    /// Moves its `interface` into `other`, where it is called `eth0`.
    pub(crate) fn give(&self, interface: &str, other: &Namespace) -> Result<(), Stop> {
        self.ip(&format!("link set {interface} netns {} name eth0\n", other.name))
    }

    fn forward(&self) -> Result<(), Stop> {
        let both = ["net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"];
        process::run(self.command("sysctl").args(["-q", "-w"]).args(both), "").map(drop)
    }

    /// Whether the kernel has taken note that all its links are up; packets are dropped before.
    fn is_up(&self) -> bool {
        let links = process::run(Command::new("ip").args(["-n", &self.name, "-o", "link"]), "");
        links.is_ok_and(|links| links.lines().all(|line| line.contains("LOOPBACK") || line.contains("state UP")))
    }
}

/// A router with NAT.
#[derive(Debug, Clone)]
pub(crate) struct Router {
    /// Where it is.
    pub(crate) namespace: Namespace,
    /// Its outer address.
    pub(crate) outer: Ipv4Addr,
}

impl Router {
    /// Makes it behave as `nat`, with no memory of what was.
    pub(crate) fn load(&self, nat: &Nat) -> Result<(), Stop> {
        // A packet between the two halves of a restart would bring old mappings back.
        self.namespace.nft(nat::CLOSED)?;
        process::run(self.namespace.command("conntrack").arg("-F"), "")?;
        self.namespace.nft(&nat.rules(self.outer))
    }

    /// From now on it forgets a mapping of UDP that was not used for so many seconds.
    pub(crate) fn forget_after(&self, seconds: u64) -> Result<(), Stop> {
        let settings = ["", "_stream"].map(|kind| format!("net.netfilter.nf_conntrack_udp_timeout{kind}={seconds}"));
        process::run(self.namespace.command("sysctl").args(["-q", "-w"]).args(settings), "").map(drop)
    }

    /// Gives it another outer address, as a provider does over night; it then behaves as `nat`.
    pub(crate) fn renumber(&self, outer: Ipv4Addr, nat: &Nat) -> Result<(), Stop> {
        self.namespace
            .ip(&format!("addr flush dev wan\naddr add {outer}/24 dev wan\nroute add default via {INET}\n"))?;
        Router { outer, ..self.clone() }.load(nat)
    }

    /// Cuts its outer link.
    pub(crate) fn unplug(&self) -> Result<(), Stop> {
        self.namespace.ip("link set wan down\n")
    }

    /// Mends its outer link.
    pub(crate) fn plug(&self) -> Result<(), Stop> {
        // The kernel drops the routes of a link that goes down; a router's dialler puts them back.
        self.namespace.ip(&format!("link set wan up\nroute replace default via {INET}\n"))
    }
}

/// Where a router's outer side leads.
#[derive(Debug, Clone, Copy)]
struct Uplink {
    /// The namespace above it, and the bridge there.
    far: &'static str,
    bridge: &'static str,
    /// Its own address there.
    outer: Ipv4Addr,
    gateway: Ipv4Addr,
}

/// The network of a scenario.
#[derive(Debug)]
pub(crate) struct Network {
    plan: Plan,
    namespaces: BTreeMap<&'static str, Namespace>,
    routers: BTreeMap<&'static str, Router>,
}

impl Network {
    /// Builds it, and waits until its links carry packets.
    pub(crate) fn build(plan: Plan) -> Result<Self, Stop> {
        remove_all()?;
        let mut network = Network { plan, namespaces: BTreeMap::new(), routers: BTreeMap::new() };
        network.public()?;
        for side in 0..2 {
            network.side(side)?;
        }
        let all: Vec<&Namespace> = network.namespaces.values().collect();
        let slow = process::wait_for(LINK_LIMIT, || all.iter().all(|one| one.is_up()).then_some(())).is_none();
        if slow {
            return Err(Stop::Failed(format!("the lab's links are not up after {} s", LINK_LIMIT.as_secs())));
        }
        Ok(network)
    }

    /// What it was built from.
    pub(crate) fn plan(&self) -> Plan {
        self.plan
    }

    /// The machine of this name.
    pub(crate) fn host(&self, name: &str) -> &Namespace {
        &self.namespaces[name]
    }

    /// The router of this name.
    pub(crate) fn router(&self, name: &str) -> &Router {
        &self.routers[name]
    }

    fn public(&mut self) -> Result<(), Stop> {
        let inet = self.namespace("inet")?;
        inet.forward()?;
        // A bridge's own choice of address changes with its ports, and its neighbours would not know.
        inet.ip("link add br0 address 02:00:00:00:00:01 type bridge\nlink set br0 up\nlink set lo up\naddr add 11.0.0.1/24 dev br0\n\
                 addr add 2600:11::1/64 dev br0 nodad\n")?;
        for (name, last) in [("stun", 10), ("relay", 20), ("open", 30)] {
            let host = self.namespace(name)?;
            self.join(&host, "eth0", "inet", "br0")?;
            let next = last + 1;
            host.ip(&format!(
                "link set lo up\naddr add 11.0.0.{last}/24 dev eth0\nroute add default via 11.0.0.1\n{}",
                if name == "stun" { format!("addr add 11.0.0.{next}/24 dev eth0\n") } else { String::new() }
            ))?;
            if self.plan.ipv6 {
                host.ip(&format!("addr add 2600:11::{last}/64 dev eth0 nodad\nroute add ::/0 via 2600:11::1\n"))?;
            }
        }
        Ok(())
    }

    fn side(&mut self, side: usize) -> Result<(), Stop> {
        let (router, carrier, hosts) = [("ra", "ca", &["ha", "ha2"][..]), ("rb", "cb", &["hb"])][side];
        let inner = format!("10.{}.0", side + 1);
        let mut uplink = Uplink { far: "inet", bridge: "br0", outer: OUTER[side], gateway: INET };
        if self.plan.carrier[side] {
            let carrier = if self.plan.one_carrier { "ca" } else { carrier };
            if !self.routers.contains_key(carrier) {
                self.router_at(carrier, Uplink { outer: CARRIER[side], ..uplink }, "100.64.0")?;
            }
            uplink = Uplink { far: carrier, bridge: "lan", outer: BEHIND_CARRIER[side], gateway: CARRIER_INNER };
        }
        let namespace = self.router_at(router, uplink, &inner)?;
        let lan = ["2600:11:0:a", "2600:11:0:b"][side];
        if self.plan.ipv6 {
            let wan = format!("2600:11::{}", 101 + side);
            namespace.ip(&format!(
                "addr add {wan}/64 dev wan nodad\naddr add {lan}::1/64 dev lan nodad\nroute add ::/0 via 2600:11::1\n"
            ))?;
            self.host("inet").ip(&format!("route add {lan}::/64 via {wan}\n"))?;
        }
        for (at, name) in hosts.iter().enumerate() {
            let host = self.namespace(name)?;
            self.join(&host, "eth0", router, "lan")?;
            let last = at + 2;
            host.ip(&format!(
                "link set lo up\naddr add {inner}.{last}/24 dev eth0\nroute add default via {inner}.1\n"
            ))?;
            if self.plan.ipv6 {
                host.ip(&format!("addr add {lan}::{last}/64 dev eth0 nodad\nroute add ::/0 via {lan}::1\n"))?;
            }
        }
        Ok(())
    }

    fn router_at(&mut self, name: &'static str, uplink: Uplink, inner: &str) -> Result<Namespace, Stop> {
        let namespace = self.namespace(name)?;
        namespace.forward()?;
        let Uplink { far, bridge, outer, gateway } = uplink;
        self.join(&namespace, "wan", far, bridge)?;
        let at = self.namespaces.len();
        namespace.ip(&format!(
            "link add lan address 02:00:00:00:01:{at:02x} type bridge\nlink set lan up\nlink set lo up\naddr add {inner}.1/24 dev lan\n\
             addr add {outer}/24 dev wan\nroute add default via {gateway}\n"
        ))?;
        let router = Router { namespace: namespace.clone(), outer };
        router.load(&Nat::default())?;
        self.routers.insert(name, router);
        Ok(namespace)
    }

    fn namespace(&mut self, name: &'static str) -> Result<Namespace, Stop> {
        let namespace = Namespace::new(name)?;
        self.namespaces.insert(name, namespace.clone());
        Ok(namespace)
    }

    /// Puts a link between `near`, where it is called `interface`, and a bridge in `far`.
    fn join(&self, near: &Namespace, interface: &str, far: &str, bridge: &str) -> Result<(), Stop> {
        let far = self.host(far);
        let port = near.name.strip_prefix(PREFIX).unwrap_or(&near.name);
        let link =
            ["link", "add", interface, "netns", &near.name, "type", "veth", "peer", "name", port, "netns", &far.name];
        process::run(Command::new("ip").args(link), "")?;
        near.ip(&format!("link set {interface} up\n"))?;
        far.ip(&format!("link set {port} master {bridge} up\n"))
    }
}

/// Ends every process in the lab's namespaces, and removes them: also those that a run left which was killed.
pub(crate) fn remove_all() -> Result<(), Stop> {
    let list = process::run(Command::new("ip").args(["netns", "list"]), "")?;
    let names: Vec<&str> = list.lines().filter_map(|line| line.split_whitespace().next()).collect();
    for name in names.iter().filter(|name| name.starts_with(PREFIX)) {
        let pids = process::run(Command::new("ip").args(["netns", "pids", name]), "")?;
        let pids: Vec<&str> = pids.split_whitespace().collect();
        if !pids.is_empty() {
            // One that has ended in the meantime makes this fail, and that is fine.
            let _ = Command::new("kill").arg("-KILL").args(pids).status();
        }
        process::run(Command::new("ip").args(["netns", "delete", name]), "")?;
    }
    Ok(())
}
