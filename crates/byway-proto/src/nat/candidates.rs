//! Where peers may reach this node, best first: what is told to them and written into tickets.
//!
//! The order serves a dial, which sends to the first addresses first. The cap is shared by turns, so that a machine with
//! hundreds of container bridges still tells its one address that matters.

use alloc::{collections::BTreeMap, vec::Vec};
use core::net::{IpAddr, SocketAddr};

use crate::addr::{
    candidate::is_probeable,
    interface::{Interface, InterfaceKind},
};

/// Addresses of one interface and family that are offered: a fixed one and a temporary one (RFC 8981).
pub const MAX_PER_INTERFACE: usize = 2;

/// What is known of where this node may be reached.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// Ports that gateways have mapped.
    pub mapped: Vec<SocketAddr>,
    /// The interfaces that this node listens on, with its port there.
    pub interfaces: Vec<(Interface, u16)>,
    /// Where relays and servers saw this node's packets come from.
    pub observed: Vec<SocketAddr>,
    /// Where peers did; believed only as far as no relay and no server knows another public address of that family.
    pub witnessed: Vec<SocketAddr>,
    /// Whether IPv4 is on.
    pub ipv4: bool,
    /// Whether IPv6 is on.
    pub ipv6: bool,
    /// Whether loopback addresses are of use to who is told.
    pub loopback: bool,
}

/// Kinds of candidates, the best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// Everybody can send to it: a gateway was asked.
    Mapped,
    /// A public address of this machine.
    Public,
    /// The outside of a NAT, which lets in whom it likes.
    Observed,
    /// The same, as peers say.
    Witnessed,
    /// An address for the neighbours; also the outside of a NAT behind another NAT.
    Private,
    /// An address for this machine's containers.
    Container,
    /// An address inside a VPN, which may not want to carry one more.
    Tunnel,
    /// This machine.
    Loopback,
}

/// At most `limit` candidates, best first, none twice. While there is room, every class gets as many as any other.
pub fn candidates(sources: &Sources, limit: usize) -> Vec<SocketAddr> {
    let mut classes: BTreeMap<Class, Vec<SocketAddr>> = BTreeMap::new();
    let mut sorted: Vec<(Class, SocketAddr)> = classified(sources);
    sorted.sort_by_key(|(class, _)| *class); // stable: within a class in the order of the sources
    let mut seen = Vec::new();
    for (class, addr) in sorted {
        let is_on = if addr.is_ipv4() { sources.ipv4 } else { sources.ipv6 };
        if is_on && is_probeable(addr, sources.loopback).is_ok() && !seen.contains(&addr) {
            seen.push(addr);
            classes.entry(class).or_default().push(addr);
        }
    }
    let mut shares: BTreeMap<Class, usize> = BTreeMap::new();
    let mut left = limit.min(seen.len());
    while left > 0 {
        for (class, addrs) in &classes {
            let share = shares.entry(*class).or_default();
            if left > 0 && *share < addrs.len() {
                *share += 1;
                left -= 1;
            }
        }
    }
    classes
        .iter()
        .flat_map(|(class, addrs)| addrs.iter().copied().take(shares.get(class).copied().unwrap_or(0)))
        .collect()
}

/// Every source's addresses with their class; interfaces take turns, so that no class consists of one interface.
fn classified(sources: &Sources) -> Vec<(Class, SocketAddr)> {
    let outside = |addr: &SocketAddr, public| {
        let addr = SocketAddr::new(addr.ip().to_canonical(), addr.port());
        let class = match () {
            () if addr.ip().is_loopback() => Class::Loopback,
            () if is_private(addr.ip()) => Class::Private,
            () => public,
        };
        (class, addr)
    };
    let mut all: Vec<_> = sources.mapped.iter().map(|addr| outside(addr, Class::Mapped)).collect();
    let mut counts: BTreeMap<(u32, InterfaceKind, bool), usize> = BTreeMap::new();
    let mut turns = Vec::new();
    for (interface, port) in &sources.interfaces {
        let count = counts.entry((interface.index, interface.kind, interface.ip.is_ipv4())).or_default();
        *count += 1;
        if *count <= MAX_PER_INTERFACE {
            let class = match interface.kind {
                _ if interface.ip.is_loopback() => Class::Loopback,
                InterfaceKind::Physical if is_private(interface.ip) => Class::Private,
                InterfaceKind::Physical => Class::Public,
                InterfaceKind::Container => Class::Container,
                InterfaceKind::Tunnel => Class::Tunnel,
                InterfaceKind::Loopback => Class::Loopback,
            };
            turns.push((*count, interface.index, (class, SocketAddr::new(interface.ip, *port))));
        }
    }
    turns.sort_by_key(|(count, index, _)| (*count, *index));
    all.extend(turns.into_iter().map(|(.., candidate)| candidate));
    let observed: Vec<_> = sources.observed.iter().map(|addr| outside(addr, Class::Observed)).collect();
    let is_refuted = |witnessed: SocketAddr| {
        let mut known =
            observed.iter().filter(|(class, addr)| *class == Class::Observed && addr.is_ipv4() == witnessed.is_ipv4());
        known.clone().next().is_some() && known.all(|(_, addr)| addr.ip() != witnessed.ip())
    };
    let witnessed = sources.witnessed.iter().map(|addr| outside(addr, Class::Witnessed));
    let witnessed: Vec<_> =
        witnessed.filter(|(class, addr)| *class != Class::Witnessed || !is_refuted(*addr)).collect();
    all.extend(observed.into_iter().chain(witnessed));
    all
}

/// Whether an address means something in one network only: RFC 1918, RFC 6598 (a carrier's NAT, not a public address),
/// RFC 4193, and link-local ones.
pub fn is_private(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(ip) => {
            let [first, second, ..] = ip.octets();
            ip.is_private() || ip.is_link_local() || (first == 100 && second & 0xc0 == 64)
        }
        IpAddr::V6(ip) => ip.is_unique_local() || ip.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::{format, vec};
    use proptest::prelude::*;

    fn on(ip: &str, index: u32, kind: InterfaceKind) -> (Interface, u16) {
        (Interface::new(ip.parse().unwrap(), 24, index, kind), 4)
    }

    fn sources() -> Sources {
        use InterfaceKind::{Container, Loopback, Physical, Tunnel};
        Sources {
            mapped: vec!["203.0.113.1:9".parse().unwrap()],
            interfaces: vec![
                on("127.0.0.1", 1, Loopback),
                on("10.8.0.2", 3, Tunnel),
                on("172.17.0.1", 4, Container),
                on("192.168.1.2", 2, Physical),
                on("fd00::2", 2, Physical),
                on("2001:db8::2", 2, Physical),
            ],
            observed: vec!["203.0.113.1:7".parse().unwrap(), "192.168.1.2:4".parse().unwrap()],
            witnessed: Vec::new(),
            ipv4: true,
            ipv6: true,
            loopback: true,
        }
    }

    fn texts(sources: &Sources, limit: usize) -> Vec<alloc::string::String> {
        candidates(sources, limit).iter().map(|addr| format!("{addr}")).collect()
    }

    #[test]
    fn public_comes_before_private_before_containers_before_vpns() {
        let expected = [
            "203.0.113.1:9",
            "[2001:db8::2]:4",
            "203.0.113.1:7",
            "192.168.1.2:4",
            "[fd00::2]:4",
            "172.17.0.1:4",
            "10.8.0.2:4",
            "127.0.0.1:4",
        ];
        assert_eq!(texts(&sources(), 16), expected);
    }

    #[test]
    fn a_carriers_address_is_private() {
        let mut sources = sources();
        sources.mapped = vec!["100.64.3.4:5".parse().unwrap()];
        assert_eq!(texts(&sources, 3)[0], "[2001:db8::2]:4");
        assert!(is_private("100.127.255.255".parse().unwrap()) && !is_private("100.128.0.0".parse().unwrap()));
    }

    #[test]
    fn a_family_that_is_off_never_appears() {
        let sources = Sources { ipv4: false, ..sources() };
        assert_eq!(texts(&sources, 16), ["[2001:db8::2]:4", "[fd00::2]:4"]);
    }

    #[test]
    fn loopback_appears_only_where_it_is_of_use() {
        let sources = Sources { loopback: false, ..sources() };
        assert!(candidates(&sources, 16).iter().all(|addr| !addr.ip().is_loopback()));
    }

    #[test]
    fn a_hundred_containers_push_out_nothing() {
        let mut sources = sources();
        let bridges = (0..100).map(|n| on(&format!("172.18.{n}.1"), 10 + n, InterfaceKind::Container));
        sources.interfaces.extend(bridges);
        let told = texts(&sources, 16);
        assert_eq!(told.len(), 16);
        for other in texts(&self::sources(), 16) {
            assert!(told.contains(&other), "{other} is missing: {told:?}");
        }
    }

    #[test]
    fn an_interface_with_many_addresses_takes_turns_with_the_others() {
        let many = (0..50).map(|n| on(&format!("fd00::{n:x}"), 2, InterfaceKind::Physical));
        let other = on("192.168.9.9", 7, InterfaceKind::Physical);
        let sources = Sources { interfaces: many.chain([other]).collect(), ..sources() };
        let told = candidates(&sources, 16);
        assert!(told.contains(&"192.168.9.9:4".parse().unwrap()));
        assert_eq!(told.iter().filter(|addr| addr.is_ipv6()).count(), MAX_PER_INTERFACE);
        let ips = ["192.168.1.2", "192.168.1.3"].map(|ip| on(ip, 2, InterfaceKind::Physical));
        let sources = Sources {
            interfaces: ips.into_iter().chain([on("192.168.9.9", 7, InterfaceKind::Physical)]).collect(),
            ipv4: true,
            ..Sources::default()
        };
        assert_eq!(texts(&sources, 16), ["192.168.1.2:4", "192.168.9.9:4", "192.168.1.3:4"]);
    }

    #[test]
    fn an_address_from_two_sources_ranks_as_the_better_of_them() {
        let vpn = on("203.0.113.7", 4, InterfaceKind::Tunnel);
        let observed = vec!["203.0.113.7:4".parse().unwrap()];
        let interfaces = vec![on("192.168.1.2", 2, InterfaceKind::Physical), vpn];
        let sources = Sources { interfaces, observed, ipv4: true, ..Sources::default() };
        assert_eq!(texts(&sources, 16), ["203.0.113.7:4", "192.168.1.2:4"]);
    }

    #[test]
    fn what_peers_saw_ranks_behind_what_relays_did_and_is_not_believed_against_them() {
        let witnessed = ["198.51.100.6:1", "203.0.113.1:8", "[2001:db8::6]:2", "10.7.7.7:3"];
        let sources = Sources { witnessed: witnessed.map(|addr| addr.parse().unwrap()).to_vec(), ..sources() };
        let outside = texts(&sources, 16)[2..6].to_vec();
        assert_eq!(outside, ["203.0.113.1:7", "203.0.113.1:8", "[2001:db8::6]:2", "192.168.1.2:4"]);
        assert!(texts(&sources, 16).contains(&"10.7.7.7:3".into()));
        let unseen = Sources { observed: Vec::new(), ..sources };
        assert_eq!(texts(&unseen, 16)[2], "198.51.100.6:1", "nobody else knows one");
    }

    fn kinds() -> impl Strategy<Value = InterfaceKind> {
        use InterfaceKind::{Container, Loopback, Physical, Tunnel};
        prop_oneof![Just(Physical), Just(Container), Just(Tunnel), Just(Loopback)]
    }

    prop_compose! {
        fn any_sources()(
            mapped: Vec<SocketAddr>,
            observed: Vec<SocketAddr>,
            witnessed: Vec<SocketAddr>,
            interfaces in prop::collection::vec((any::<IpAddr>(), 0..6u32, kinds(), any::<u16>()), 0..40),
            ipv4: bool,
            ipv6: bool,
            loopback: bool,
        ) -> Sources {
            let interfaces = interfaces.into_iter();
            let interfaces = interfaces.map(|(ip, index, kind, port)| (Interface::new(ip, 24, index, kind), port)).collect();
            Sources { mapped, interfaces, observed, witnessed, ipv4, ipv6, loopback }
        }
    }

    proptest! {
        #[test]
        fn the_limit_the_families_and_the_ban_on_unprobeable_addresses_hold(sources in any_sources(), limit in 0..40usize) {
            let told = candidates(&sources, limit);
            prop_assert!(told.len() <= limit);
            for (position, addr) in told.iter().enumerate() {
                prop_assert!(is_probeable(*addr, sources.loopback).is_ok());
                let is_on = if addr.is_ipv4() { sources.ipv4 } else { sources.ipv6 };
                prop_assert!(is_on);
                prop_assert!(!told[..position].contains(addr));
            }
        }

        #[test]
        fn no_class_gets_two_more_than_another_that_has_some_left(sources in any_sources(), limit in 0..40usize) {
            let (told, all) = (candidates(&sources, limit), candidates(&sources, usize::MAX));
            let mut class_of: BTreeMap<SocketAddr, Class> = BTreeMap::new();
            for (class, addr) in classified(&sources) {
                let best = class_of.entry(addr).or_insert(class);
                *best = class.min(*best);
            }
            let count = |list: &[SocketAddr]| {
                let mut counts = BTreeMap::new();
                list.iter().for_each(|addr| *counts.entry(class_of[addr]).or_insert(0) += 1);
                counts
            };
            let (got, had): (BTreeMap<_, usize>, BTreeMap<_, usize>) = (count(&told), count(&all));
            let most = got.values().max().copied().unwrap_or(0);
            for (class, had) in had {
                let got = got.get(&class).copied().unwrap_or(0);
                prop_assert!(got == had || got + 1 >= most, "{class:?}: {got} of {had}, another has {most}");
            }
            prop_assert_eq!(told.len(), limit.min(all.len()));
        }

        #[test]
        fn the_order_depends_on_the_classes_alone(sources in any_sources(), limit in 0..40usize) {
            let (told, all) = (candidates(&sources, limit), candidates(&sources, usize::MAX));
            let places: Vec<_> = told.iter().map(|addr| all.iter().position(|other| other == addr)).collect();
            prop_assert!(places.is_sorted());
        }
    }
}
