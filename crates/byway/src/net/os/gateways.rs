//! This machine's default gateways.
//!
//! Linux's routing tables are read from `/proc`. Other systems have no table that can be read without privileges and
//! without a library for each: there none is found, and no ports are mapped.

use std::{
    fs::File,
    io::Read,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use byway_proto::nat::{candidates::is_private, portmap::Gateway};
use if_addrs::{IfAddr, Interface};

/// How much of a routing table is read, in bytes: the default route of a machine with a full table stands first.
const MAX_TABLE: u64 = 1 << 20;

/// Addresses of ours that one IPv6 gateway is asked for: a fixed one and a temporary one (RFC 8981).
const MAX_LOCALS: usize = 2;

/// "Leads to a gateway" and "is up" (`RTF_GATEWAY | RTF_UP` of `linux/route.h`).
const GATEWAY_UP: u32 = 0x3;

/// A default route.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Route {
    metric: u32,
    gateway: IpAddr,
    interface: String,
}

/// The default gateways, IPv4 before IPv6, in the order of their metrics.
pub(super) fn gateways() -> Vec<Gateway> {
    let (ipv4, ipv6) = (read("/proc/net/route"), read("/proc/net/ipv6_route"));
    let mut routes: Vec<Route> = ipv4.lines().filter_map(route_v4).collect();
    routes.sort();
    let mut routes_v6: Vec<Route> = ipv6.lines().filter_map(route_v6).collect();
    routes_v6.sort();
    routes.extend(routes_v6);
    if routes.is_empty() {
        return Vec::new();
    }
    let interfaces = if_addrs::get_if_addrs().unwrap_or_default();
    routes.iter().flat_map(|route| seen_from(route, &interfaces)).collect()
}

/// A table as text; empty where there is none.
fn read(path: &str) -> String {
    let mut text = String::new();
    let read = File::open(path).and_then(|file| file.take(MAX_TABLE).read_to_string(&mut text));
    if read.is_err() {
        text.clear();
    }
    text
}

/// A line of `/proc/net/route`: interface, destination, gateway, flags, 2 counters, metric, mask; addresses are in hex, in
/// the machine's byte order.
fn route_v4(line: &str) -> Option<Route> {
    let fields: Vec<&str> = line.split_ascii_whitespace().collect();
    let [interface, destination, gateway, flags, _, _, metric, mask, ..] = fields[..] else { return None };
    let hex = |text: &str| u32::from_str_radix(text, 16).ok();
    let is_default = hex(destination)? == 0 && hex(mask)? == 0;
    let gateway = Ipv4Addr::from(hex(gateway)?.to_ne_bytes());
    let usable = is_default && hex(flags)? & GATEWAY_UP == GATEWAY_UP && !gateway.is_unspecified();
    usable.then(|| Route { metric: metric.parse().unwrap_or(0), gateway: gateway.into(), interface: interface.into() })
}

/// A line of `/proc/net/ipv6_route`: destination and its length, source and its length, gateway, metric, 2 counters,
/// flags, interface; all in hex.
fn route_v6(line: &str) -> Option<Route> {
    let fields: Vec<&str> = line.split_ascii_whitespace().collect();
    let [destination, length, _, _, gateway, metric, _, _, flags, interface] = fields[..] else { return None };
    let hex = |text: &str| u32::from_str_radix(text, 16).ok();
    let address = |text: &str| u128::from_str_radix(text, 16).ok().map(Ipv6Addr::from);
    let is_default = address(destination)?.is_unspecified() && hex(length)? == 0;
    let gateway = address(gateway)?;
    let usable = is_default && hex(flags)? & GATEWAY_UP == GATEWAY_UP && !gateway.is_unspecified();
    usable.then(|| Route { metric: hex(metric).unwrap_or(0), gateway: gateway.into(), interface: interface.into() })
}

/// The route's gateway, with each address of its interface that is of use: of IPv4 the one in the gateway's network, of IPv6
/// global ones, for no other has anybody outside to let in.
fn seen_from(route: &Route, interfaces: &[Interface]) -> Vec<Gateway> {
    let on_it = || interfaces.iter().filter(|interface| interface.name == route.interface);
    let local = |ip: IpAddr, index: Option<u32>| {
        let link_local = matches!(route.gateway, IpAddr::V6(ip) if ip.is_unicast_link_local());
        Gateway { addr: route.gateway, scope: index.filter(|_| link_local).unwrap_or(0), local: ip }
    };
    match route.gateway {
        IpAddr::V4(gateway) => {
            let ours = |interface: &&Interface| match &interface.addr {
                IfAddr::V4(addr) => {
                    addr.ip.to_bits() & addr.netmask.to_bits() == gateway.to_bits() & addr.netmask.to_bits()
                }
                IfAddr::V6(_) => false,
            };
            let any = on_it().find(ours).or_else(|| on_it().find(|interface| interface.ip().is_ipv4()));
            any.map(|interface| local(interface.ip(), interface.index)).into_iter().collect()
        }
        IpAddr::V6(_) => {
            let ours = on_it().filter(|interface| interface.ip().is_ipv6() && !is_private(interface.ip()));
            ours.take(MAX_LOCALS).map(|interface| local(interface.ip(), interface.index)).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use if_addrs::{IfOperStatus, Ifv4Addr, Ifv6Addr};

    use super::*;

    fn hex(ip: [u8; 4]) -> String {
        format!("{:08X}", u32::from_ne_bytes(ip))
    }

    fn interface(name: &str, addr: IfAddr) -> Interface {
        Interface { name: name.into(), addr, index: Some(7), oper_status: IfOperStatus::Up, is_p2p: false }
    }

    fn v4(name: &str, ip: [u8; 4]) -> Interface {
        let netmask = [255, 255, 255, 0].into();
        interface(name, IfAddr::V4(Ifv4Addr { ip: ip.into(), netmask, prefixlen: 24, broadcast: None }))
    }

    fn v6(name: &str, ip: &str) -> Interface {
        let netmask = "ffff:ffff:ffff:ffff::".parse().unwrap();
        interface(name, IfAddr::V6(Ifv6Addr { ip: ip.parse().unwrap(), netmask, prefixlen: 64, broadcast: None }))
    }

    #[test]
    fn default_route_is_found_wherever_its_gateway_stands() {
        let line = format!("wlan0\t00000000\t{}\t0003\t0\t0\t600\t00000000\t0\t0\t0", hex([192, 168, 7, 254]));
        let route = Route { metric: 600, gateway: [192, 168, 7, 254].into(), interface: "wlan0".into() };
        assert_eq!(route_v4(&line), Some(route.clone()));
        let interfaces = [v4("eth0", [192, 168, 7, 3]), v4("wlan0", [10, 9, 9, 9]), v4("wlan0", [192, 168, 7, 20])];
        let gateway = Gateway { addr: route.gateway, scope: 0, local: [192, 168, 7, 20].into() };
        assert_eq!(seen_from(&route, &interfaces), [gateway]);
    }

    #[test]
    fn routes_that_lead_to_no_gateway_are_passed_over() {
        for line in [
            "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT",
            "eth0\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0",
            "wg0\t00000000\t00000000\t0001\t0\t0\t0\t00000000\t0\t0\t0",
            "eth0\t00000000\t010200C0\t0002\t0\t0\t0\t00000000\t0\t0\t0",
            "eth0\t00000000",
            "",
        ] {
            assert_eq!(route_v4(line), None, "{line}");
        }
    }

    #[test]
    fn link_local_gateway_is_seen_from_global_addresses_alone() {
        let line = "00000000000000000000000000000000 00 00000000000000000000000000000000 00 \
                    fe8000000000000000fc00fffe000001 00000400 00000002 00000000 00000003     eth0";
        let route = route_v6(line).unwrap();
        assert_eq!((route.metric, route.gateway), (1_024, "fe80::fc:ff:fe00:1".parse().unwrap()));
        let interfaces = ["fe80::9", "fd00::9", "2001:db8::9", "2001:db8::8", "2001:db8::7"].map(|ip| v6("eth0", ip));
        let gateways = seen_from(&route, &interfaces);
        let locals: Vec<IpAddr> = gateways.iter().map(|gateway| gateway.local).collect();
        assert_eq!(locals, ["2001:db8::9".parse::<IpAddr>().unwrap(), "2001:db8::8".parse().unwrap()]);
        assert!(gateways.iter().all(|gateway| gateway.scope == 7));
        let other = line.replacen("00000000000000000000000000000000 00", "fe800000000000000000000000000000 40", 1);
        assert_eq!(route_v6(&other), None);
    }
}
