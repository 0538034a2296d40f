//! What a machine's own interfaces are, as far as reaching it and finding its neighbours goes.

use core::net::IpAddr;

/// An address of one of this machine's interfaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub struct Interface {
    /// The address.
    pub ip: IpAddr,
    /// How many leading bits the interface's neighbours share with it.
    pub prefix: u8,
    /// The system's number of the interface; addresses of one interface have the same.
    pub index: u32,
    /// What the interface leads to.
    pub kind: InterfaceKind,
}

/// What an interface leads to; the better an offer to peers, the earlier it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum InterfaceKind {
    /// A network outside this machine: wired, wireless, or what a virtual machine takes for that.
    Physical,
    /// Containers and virtual machines on this machine.
    Container,
    /// A tunnel: a VPN or a dial-up line.
    Tunnel,
    /// This machine.
    Loopback,
}

/// Names that container runtimes and hypervisors give to their bridges and virtual cables.
const CONTAINER: [&str; 11] =
    ["docker", "br-", "veth", "virbr", "vnet", "lxc", "lxd", "cni", "nerdctl", "podman", "vmnet"];

/// Names of tunnels; `pg` is our ancestor's.
const TUNNEL: [&str; 11] = ["wg", "tun", "tap", "tailscale", "zt", "utun", "ppp", "ipsec", "nebula", "nordlynx", "pg"];

impl Interface {
    /// An address with its prefix length in bits, on interface `index`.
    pub const fn new(ip: IpAddr, prefix: u8, index: u32, kind: InterfaceKind) -> Self {
        Interface { ip, prefix, index, kind }
    }

    /// Whether `other` is reached without a router: it shares this address's prefix, or is link-local of the same family.
    pub fn is_on_link(&self, other: IpAddr) -> bool {
        match (self.ip, other.to_canonical()) {
            (IpAddr::V4(own), IpAddr::V4(other)) => {
                let differing = (own.to_bits() ^ other.to_bits()).leading_zeros();
                differing >= u32::from(self.prefix) || other.is_link_local()
            }
            (IpAddr::V6(own), IpAddr::V6(other)) => {
                let differing = (own.to_bits() ^ other.to_bits()).leading_zeros();
                differing >= u32::from(self.prefix) || other.is_unicast_link_local()
            }
            _ => false,
        }
    }

    /// Whether other machines may share the link, and not only one: a physical one whose prefix holds several addresses.
    pub fn is_lan(&self) -> bool {
        let longest = if self.ip.is_ipv4() { 30 } else { 126 };
        self.kind == InterfaceKind::Physical && self.prefix <= longest
    }
}

impl InterfaceKind {
    /// What an interface of this name leads to. Names decide, for the system does not tell a bridge of containers from one
    /// of cables; a `point_to_point` link without a telling name is a tunnel.
    pub fn of(name: &str, ip: IpAddr, point_to_point: bool) -> Self {
        let begins = |prefixes: &[&str]| prefixes.iter().any(|prefix| name.starts_with(prefix));
        if ip.is_loopback() {
            InterfaceKind::Loopback
        } else if begins(&CONTAINER) {
            InterfaceKind::Container
        } else if point_to_point || begins(&TUNNEL) {
            InterfaceKind::Tunnel
        } else {
            InterfaceKind::Physical
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn interface(ip: &str, prefix: u8) -> Interface {
        Interface::new(ip.parse().unwrap(), prefix, 2, InterfaceKind::Physical)
    }

    #[test]
    fn names_tell_containers_and_tunnels_from_real_networks() {
        let kind = |name| InterfaceKind::of(name, "10.0.0.1".parse().unwrap(), false);
        for name in ["docker0", "br-1f2e3d", "veth12ab", "virbr0", "vnet3", "lxcbr0", "lxdbr0", "cni0", "nerdctl0"] {
            assert_eq!(kind(name), InterfaceKind::Container, "{name}");
        }
        for name in ["wg0", "wg-home", "tun0", "tap1", "tailscale0", "zt7nnig26", "utun4", "ppp0", "pg0"] {
            assert_eq!(kind(name), InterfaceKind::Tunnel, "{name}");
        }
        for name in ["eth0", "enp3s0", "wlan0", "wlp2s0", "en0", "br0", "bond0", "a", "lan", "thunderbolt0"] {
            assert_eq!(kind(name), InterfaceKind::Physical, "{name}");
        }
        assert_eq!(InterfaceKind::of("x", "10.0.0.1".parse().unwrap(), true), InterfaceKind::Tunnel);
        assert_eq!(InterfaceKind::of("lo", "127.0.0.1".parse().unwrap(), false), InterfaceKind::Loopback);
    }

    #[test]
    fn neighbours_share_the_prefix_or_are_link_local() {
        let on_link = |own: &str, prefix, other: &str| interface(own, prefix).is_on_link(other.parse().unwrap());
        assert!(on_link("192.168.1.2", 24, "192.168.1.255"));
        assert!(!on_link("192.168.1.2", 24, "192.168.2.2"));
        assert!(!on_link("192.168.1.2", 32, "192.168.1.3"));
        assert!(on_link("192.168.1.2", 0, "8.8.8.8"));
        assert!(on_link("192.168.1.2", 24, "169.254.7.7"));
        assert!(on_link("192.168.1.2", 24, "::ffff:192.168.1.9"));
        assert!(!on_link("192.168.1.2", 24, "fd00::1"));
        assert!(on_link("fd00::2", 64, "fd00::ffff"));
        assert!(on_link("fd00::2", 64, "fe80::1"));
        assert!(!on_link("fd00::2", 64, "fd00:0:0:1::1"));
    }

    #[test]
    fn a_prefix_for_one_host_and_a_tunnel_are_no_lan() {
        assert!(interface("192.168.1.2", 24).is_lan());
        assert!(!interface("192.168.1.2", 32).is_lan());
        assert!(!interface("2001:db8::1", 128).is_lan());
        let tunnel = Interface { kind: InterfaceKind::Tunnel, ..interface("10.0.0.1", 8) };
        assert!(!tunnel.is_lan());
    }

    proptest! {
        #[test]
        fn no_prefix_length_is_too_long(own: IpAddr, other: IpAddr, prefix: u8) {
            let own = Interface::new(own, prefix, 1, InterfaceKind::Physical);
            prop_assert!(prefix > 32 || own.is_on_link(own.ip) || own.ip != own.ip.to_canonical());
            own.is_on_link(other);
        }
    }
}
