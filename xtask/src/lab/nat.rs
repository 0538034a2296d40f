//! What a router of the lab does to packets, by the axes of RFC 4787, as an nftables rule set.
//!
//! Connection tracking alone is address-and-port-dependent. Maps that the rules fill themselves make it softer: `out`
//! remembers the outer port of an inner socket, `in` lets strangers in. They are written after translation, per packet,
//! so that traffic keeps them alive. IPv6 is never translated, only kept from letting strangers in.

use std::{fmt::Write as _, net::Ipv4Addr};

/// How long the maps keep an unused entry, in seconds: RFC 4787 §4.3 asks for at least two minutes.
const LIFETIME: u32 = 120;
/// How many entries a map holds: one for each port.
const ENTRIES: u32 = 65_535;
/// Where sequential outer ports begin, and how many there are before the first comes again.
const SEQUENCE: (u32, u32) = (20_000, 4_000);
/// The words that pick UDP.
const UDP: &str = "meta l4proto udp";

/// The rules of a router that is switched off: nothing passes, and nothing is tracked.
pub(crate) const CLOSED: &str = "flush ruleset
table inet closed {
 chain in { type filter hook prerouting priority raw; policy drop; }
 chain out { type filter hook output priority raw; policy drop; }
}
";

/// On which part of the remote side a mapping or a filter depends (RFC 4787 §4.1, §5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Depends {
    /// On none.
    Nothing,
    /// On the address.
    Address,
    /// On the address and the port.
    AddressAndPort,
}

impl Depends {
    /// The word that `byway check` and RFC 4787 use.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Depends::Nothing => "endpoint-independent",
            Depends::Address => "address-dependent",
            Depends::AddressAndPort => "address-and-port-dependent",
        }
    }
}

/// Which outer port a new mapping gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ports {
    /// The inner one, or a random one if another mapping has it.
    Preserving,
    /// The last one and so many more.
    Sequential(u32),
    /// Any.
    Random,
}

/// What happens to UDP from inside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Udp {
    /// It passes.
    Passes,
    /// It vanishes.
    Dropped,
    /// It is answered by an ICMP error.
    Rejected,
}

/// What becomes of packets from outside that belong to no mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Strays {
    /// They vanish.
    Dropped,
    /// They are answered by an ICMP error.
    Rejected,
    /// The router itself takes them, as some do: such a packet then occupies the mapping that the inner host would get.
    Taken,
}

/// A router's behaviour; the default is the common home router.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Nat {
    /// Which packets of one inner socket share an outer port.
    pub(crate) mapping: Depends,
    /// Who may send to an outer port.
    pub(crate) filtering: Depends,
    /// Which outer port a new mapping gets.
    pub(crate) ports: Ports,
    /// Whether inner hosts reach each other by outer addresses.
    pub(crate) hairpin: bool,
    /// What happens to UDP from inside.
    pub(crate) udp: Udp,
    /// What becomes of packets from outside that belong to no mapping.
    pub(crate) strays: Strays,
    /// Whether there are the chains that miniupnpd fills.
    pub(crate) has_gateway: bool,
}

impl Default for Nat {
    fn default() -> Self {
        Nat {
            mapping: Depends::Nothing,
            filtering: Depends::AddressAndPort,
            ports: Ports::Preserving,
            hairpin: false,
            udp: Udp::Passes,
            strays: Strays::Dropped,
            has_gateway: false,
        }
    }
}

impl Nat {
    /// A NAT by its three main axes.
    pub(crate) fn new(mapping: Depends, filtering: Depends, ports: Ports) -> Self {
        Nat { mapping, filtering, ports, ..Nat::default() }
    }

    /// The whole rule set of a router with interfaces `wan` and `lan`, whose outer address is `outer`.
    pub(crate) fn rules(&self, outer: Ipv4Addr) -> String {
        let mut text = String::from("flush ruleset\n");
        text += &table("inet", "filter", &self.filter());
        text += &table("ip", "nat", &[self.maps(), self.inward(outer), self.outward(outer), self.remember()].concat());
        if self.has_gateway {
            text += &table("inet", "upnpnat", &gateway());
        }
        text
    }

    fn filter(&self) -> String {
        let mut forward = vec!["ct state established,related accept"];
        match self.udp {
            Udp::Passes => {}
            Udp::Dropped => forward.insert(0, "iifname lan oifname wan meta l4proto udp drop"),
            Udp::Rejected => forward.insert(0, "iifname lan oifname wan meta l4proto udp reject"),
        }
        forward.extend(["iifname lan accept", "ct status dnat accept"]);
        let mut input = vec!["iifname wan meta l4proto { icmp, icmpv6 } accept"];
        match self.strays {
            Strays::Dropped => input.push("iifname wan ct state new,invalid drop"),
            Strays::Rejected => input.push("iifname wan ct state new,invalid reject"),
            Strays::Taken => {}
        }
        let mut chains = String::new();
        if self.has_gateway {
            chains += &chain::<&str>("miniupnpd", "", &[]);
            forward.push("jump miniupnpd");
        }
        chains += &chain("forward", "type filter hook forward priority 0; policy drop;", &forward);
        chains + &chain("input", "type filter hook input priority 0; policy accept;", &input)
    }

    fn maps(&self) -> String {
        let mut text = String::new();
        let mut map = |name: &str, of: &str| {
            let kind = if of.contains(" : ") { "map" } else { "set" };
            let _ = writeln!(
                text,
                "{kind} {name} {{ type {of}; flags dynamic,timeout; timeout {LIFETIME}s; size {ENTRIES}; }}"
            );
        };
        match self.mapping {
            Depends::Nothing => map("out", "ipv4_addr . inet_service : inet_service"),
            Depends::Address => map("out", "ipv4_addr . inet_service . ipv4_addr : inet_service"),
            Depends::AddressAndPort => {}
        }
        if self.knows_owners() {
            map("owner", "inet_service : ipv4_addr . inet_service");
        }
        if self.filtering == Depends::Address {
            map("in", "ipv4_addr . inet_service : ipv4_addr . inet_service");
        }
        if self.ports == Ports::Preserving {
            map("taken", "inet_service");
        }
        text
    }

    /// Whether a packet to an outer port must find its inner socket without regard to who sent it.
    fn knows_owners(&self) -> bool {
        self.filtering == Depends::Nothing || self.hairpin
    }

    fn inward(&self, outer: Ipv4Addr) -> String {
        let mut rules = Vec::new();
        match self.filtering {
            Depends::Nothing => {
                rules.push(format!("iifname wan ip daddr {outer} {UDP} dnat ip to udp dport map @owner"));
            }
            Depends::Address => {
                rules.push(format!("iifname wan ip daddr {outer} {UDP} dnat ip to ip saddr . udp dport map @in"));
            }
            Depends::AddressAndPort => {}
        }
        if self.hairpin {
            rules.push(format!("iifname lan ip daddr {outer} {UDP} dnat ip to udp dport map @owner"));
        }
        chain("inward", "type nat hook prerouting priority dstnat;", &rules)
    }

    fn outward(&self, outer: Ipv4Addr) -> String {
        let known = match self.mapping {
            Depends::Nothing => Some("ip saddr . udp sport map @out"),
            Depends::Address => Some("ip saddr . udp sport . ip daddr map @out"),
            Depends::AddressAndPort => None,
        };
        let fresh: Vec<String> = match self.ports {
            Ports::Preserving => {
                vec![format!("{UDP} udp sport @taken masquerade random,fully-random"), "masquerade".into()]
            }
            Ports::Random => vec![format!("{UDP} masquerade random,fully-random")],
            Ports::Sequential(step) => vec![format!("{UDP} snat to {outer} : {}", sequence(step))],
        };
        let mut rules: Vec<String> = known.iter().map(|port| format!("{UDP} snat to {outer} : {port}")).collect();
        rules.extend(fresh);
        rules.push("masquerade".into());
        let mut rules: Vec<String> = rules.iter().map(|rule| format!("oifname wan {rule}")).collect();
        if self.hairpin {
            let turned = format!("iifname lan oifname lan ct status dnat {UDP} snat to {outer}");
            if self.mapping == Depends::Nothing {
                rules.push(format!("{turned} : ip saddr . udp sport map @out"));
            }
            rules.push(turned);
        }
        chain("outward", "type nat hook postrouting priority srcnat;", &rules)
    }

    /// Writes down what translation has decided: for packets that began inside, and for the answers to others.
    fn remember(&self) -> String {
        let mut entries = Vec::new();
        let (inner, peer) = ("ct original ip saddr . ct original proto-src", "ct original ip daddr");
        let (answerer, stranger) = ("ct reply ip saddr . ct reply proto-src", "ct original ip saddr");
        match self.mapping {
            Depends::Nothing => entries.push(("out", inner.to_owned(), answerer.to_owned(), Which::PortOfSocket)),
            Depends::Address => {
                entries.push((
                    "out",
                    format!("{inner} . {peer}"),
                    format!("{answerer} . {stranger}"),
                    Which::PortOfSocket,
                ));
            }
            Depends::AddressAndPort => {}
        }
        if self.knows_owners() {
            entries.push(("owner", String::new(), String::new(), Which::SocketOfPort));
        }
        if self.filtering == Depends::Address {
            entries.push(("in", format!("{peer} . "), format!("{stranger} . "), Which::SocketOfPort));
        }
        let mut rules = Vec::new();
        let mut rule = |direction: &str, map: &str, entry: &str| {
            let updates = format!("{UDP} ct direction {direction} update @{map} {{ {entry} }}");
            rules.push(format!("oifname wan {updates}"));
            if self.hairpin && direction == "original" {
                rules.push(format!("iifname lan oifname lan ct status snat {updates}"));
            }
        };
        for (map, ours, theirs, which) in entries {
            let (began_inside, began_outside) = match which {
                Which::PortOfSocket => {
                    (format!("{ours} : ct reply proto-dst"), format!("{theirs} : ct original proto-dst"))
                }
                Which::SocketOfPort => (
                    format!("{ours}ct reply proto-dst : {inner}"),
                    format!("{theirs}ct original proto-dst : {answerer}"),
                ),
            };
            rule("original", map, &began_inside);
            rule("reply", map, &began_outside);
        }
        if self.ports == Ports::Preserving {
            rule("original", "taken", "ct reply proto-dst");
        }
        chain("remember", "type filter hook postrouting priority srcnat + 10;", &rules)
    }
}

/// Which way round a map of [`Nat::remember`] is.
#[derive(Debug, Clone, Copy)]
enum Which {
    PortOfSocket,
    SocketOfPort,
}

/// A counter that nft turns into ports. Its number is in the machine's byte order, a port in the network's: used without
/// the map, it would step by 256.
fn sequence(step: u32) -> String {
    let (first, room) = SEQUENCE;
    let count = room / step.max(1);
    let ports: Vec<String> = (0..count).map(|at| format!("{at} : {}", first + at * step)).collect();
    format!("numgen inc mod {count} map {{ {} }}", ports.join(", "))
}

fn gateway() -> String {
    [
        chain::<&str>("prerouting_miniupnpd", "", &[]),
        chain::<&str>("postrouting_miniupnpd", "", &[]),
        chain("inward", "type nat hook prerouting priority dstnat - 1;", &["jump prerouting_miniupnpd"]),
        chain("outward", "type nat hook postrouting priority srcnat - 1;", &["jump postrouting_miniupnpd"]),
    ]
    .concat()
}

fn table(family: &str, name: &str, body: &str) -> String {
    format!("table {family} {name} {{\n{body}}}\n")
}

fn chain<R: AsRef<str>>(name: &str, hook: &str, rules: &[R]) -> String {
    let lines: String = rules.iter().map(|rule| format!("  {}\n", rule.as_ref())).collect();
    format!(" chain {name} {{\n  {hook}\n{lines} }}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTER: Ipv4Addr = Ipv4Addr::new(11, 0, 0, 101);

    #[test]
    fn a_rule_set_replaces_the_one_before() {
        assert!(Nat::default().rules(OUTER).starts_with("flush ruleset\n"));
    }

    #[test]
    fn only_what_an_axis_needs_is_remembered() {
        let hardest = Nat::new(Depends::AddressAndPort, Depends::AddressAndPort, Ports::Random).rules(OUTER);
        assert!(!hardest.contains("map @") && !hardest.contains("update"), "{hardest}");
        let softest = Nat::new(Depends::Nothing, Depends::Nothing, Ports::Random).rules(OUTER);
        assert!(softest.contains("map @out") && softest.contains("map @owner"), "{softest}");
    }

    #[test]
    fn strangers_to_the_router_are_dropped_unless_it_takes_them() {
        let drop = "iifname wan ct state new,invalid drop";
        assert!(Nat::default().rules(OUTER).contains(drop));
        assert!(!Nat { strays: Strays::Taken, ..Nat::default() }.rules(OUTER).contains(drop));
    }

    #[test]
    fn sequential_ports_go_up_by_the_step() {
        assert!(sequence(3).starts_with("numgen inc mod 1333 map { 0 : 20000, 1 : 20003, "));
    }
}
