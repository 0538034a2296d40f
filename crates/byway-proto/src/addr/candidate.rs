//! Which addresses may be probed at all, whoever reported them.
//!
//! A peer's candidates are its own claim: without this check it could point our probes at this machine, at its cloud's
//! metadata service or at everybody on the link.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The prefix of our aliases (discard-only, RFC 6666): inside the node such an address names a peer, so no packet leaves for it.
pub const ALIAS_PREFIX: [u16; 4] = [0x0100, 0, 0, 0];

/// The prefix of the addresses that name a WebSocket inside a node (dummy, RFC 9780), which do not leave it either.
pub const WEBSOCKET_PREFIX: [u16; 4] = [0x0100, 0, 0, 1];

/// Addresses at which clouds hand credentials to the machine itself: the common one, Azure, Alibaba, Oracle.
const METADATA_IPV4: [Ipv4Addr; 4] = [
    Ipv4Addr::new(169, 254, 169, 254),
    Ipv4Addr::new(168, 63, 129, 16),
    Ipv4Addr::new(100, 100, 100, 200),
    Ipv4Addr::new(192, 0, 0, 192),
];

/// The same over IPv6: Amazon, Google.
const METADATA_IPV6: [Ipv6Addr; 2] =
    [Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254), Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254)];

/// Why an address is never probed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum Refused {
    /// The port is 0.
    #[error("port 0 is no destination")]
    PortZero,
    /// `0.0.0.0/8` or `::` (RFC 1122 §3.2.1.3, RFC 4291 §2.5.2).
    #[error("the unspecified address is no destination")]
    Unspecified,
    /// This machine itself, where that was not allowed.
    #[error(
        "a loopback address is probed only if the ticket names one, or both peers reached their relay over loopback"
    )]
    Loopback,
    /// `169.254.0.0/16` or `fe80::/10` (RFC 3927, RFC 4291 §2.5.6).
    #[error("link-local addresses are never probed")]
    LinkLocal,
    /// `224.0.0.0/4` or `ff00::/8` (RFC 5771, RFC 4291 §2.7).
    #[error("multicast addresses are never probed")]
    Multicast,
    /// `255.255.255.255` (RFC 919).
    #[error("broadcast addresses are never probed")]
    Broadcast,
    /// A cloud's metadata service.
    #[error("cloud metadata services are never probed")]
    Metadata,
    /// An address under [`ALIAS_PREFIX`] or [`WEBSOCKET_PREFIX`].
    #[error("addresses of 100::/63 have a meaning inside a node only and are no destination")]
    Alias,
}

/// Whether `addr` may ever be probed; loopback addresses only if `loopback_ok`.
///
/// IPv4 addresses inside IPv6 ones (mapped, compatible, NAT64, 6to4) are judged as what they lead to.
pub fn is_probeable(addr: SocketAddr, loopback_ok: bool) -> Result<(), Refused> {
    if addr.port() == 0 {
        return Err(Refused::PortZero);
    }
    let refused = match addr.ip() {
        IpAddr::V4(ip) => refused_ipv4(ip),
        IpAddr::V6(ip) => refused_ipv6(ip).or_else(|| embedded_ipv4(ip).and_then(refused_ipv4)),
    };
    match refused {
        Some(Refused::Loopback) if loopback_ok => Ok(()),
        Some(reason) => Err(reason),
        None => Ok(()),
    }
}

fn refused_ipv4(ip: Ipv4Addr) -> Option<Refused> {
    match ip {
        _ if METADATA_IPV4.contains(&ip) => Some(Refused::Metadata),
        _ if ip.octets().starts_with(&[0]) => Some(Refused::Unspecified),
        _ if ip.is_loopback() => Some(Refused::Loopback),
        _ if ip.is_link_local() => Some(Refused::LinkLocal),
        _ if ip.is_multicast() => Some(Refused::Multicast),
        _ if ip.is_broadcast() => Some(Refused::Broadcast),
        _ => None,
    }
}

fn refused_ipv6(ip: Ipv6Addr) -> Option<Refused> {
    match ip {
        _ if METADATA_IPV6.contains(&ip) => Some(Refused::Metadata),
        _ if ip.is_unspecified() => Some(Refused::Unspecified),
        _ if ip.is_loopback() => Some(Refused::Loopback),
        _ if ip.is_unicast_link_local() => Some(Refused::LinkLocal),
        _ if ip.is_multicast() => Some(Refused::Multicast),
        _ if [ALIAS_PREFIX, WEBSOCKET_PREFIX].iter().any(|prefix| ip.segments().starts_with(prefix)) => {
            Some(Refused::Alias)
        }
        _ => None,
    }
}

/// The IPv4 destination of a packet to `ip`, where a host or a gateway translates (RFC 4291 §2.5.5, RFC 6052 §2.1, RFC 3056 §2);
/// not for `::` and `::1`, which are IPv6's own.
pub(crate) fn embedded_ipv4(ip: Ipv6Addr) -> Option<Ipv4Addr> {
    let ipv4 = |high: u16, low: u16| Ipv4Addr::from_bits((u32::from(high) << 16) | u32::from(low));
    match ip.segments() {
        [0, 0, 0, 0, 0, 0, 0, 0 | 1] => None,
        [0, 0, 0, 0, 0, 0 | 0xffff, high, low] => Some(ipv4(high, low)),
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => Some(ipv4(high, low)),
        [0x2002, high, low, ..] => Some(ipv4(high, low)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn judge(addr: &str) -> Result<(), Refused> {
        is_probeable(addr.parse().unwrap(), false)
    }

    #[test]
    fn ordinary_addresses_are_probed() {
        for addr in [
            "192.168.1.2:1",
            "10.0.0.1:65535",
            "100.64.0.1:4433",
            "203.0.113.9:80",
            "[2001:db8::1]:443",
            "[fd00::1]:443",
            "[::ffff:192.0.2.1]:443",
            "[64:ff9b::192.0.2.1]:443",
        ] {
            assert_eq!(judge(addr), Ok(()), "{addr}");
        }
    }

    #[test]
    fn special_addresses_are_refused_with_their_reason() {
        for (addr, reason) in [
            ("192.0.2.1:0", Refused::PortZero),
            ("0.0.0.0:1", Refused::Unspecified),
            ("0.1.2.3:1", Refused::Unspecified),
            ("[::]:1", Refused::Unspecified),
            ("127.9.9.9:1", Refused::Loopback),
            ("[::1]:1", Refused::Loopback),
            ("169.254.1.1:1", Refused::LinkLocal),
            ("[fe80::1]:1", Refused::LinkLocal),
            ("[febf::1]:1", Refused::LinkLocal),
            ("224.0.0.251:5353", Refused::Multicast),
            ("[ff02::fb]:5353", Refused::Multicast),
            ("255.255.255.255:1", Refused::Broadcast),
            ("169.254.169.254:80", Refused::Metadata),
            ("[fd00:ec2::254]:80", Refused::Metadata),
            ("[fd20:ce::254]:80", Refused::Metadata),
            ("[100::1234:0:0:1]:1", Refused::Alias),
            ("[100::1:0:0:0:1]:1", Refused::Alias),
        ] {
            assert_eq!(judge(addr), Err(reason), "{addr}");
        }
    }

    #[test]
    fn ipv4_inside_ipv6_is_judged_as_ipv4() {
        for addr in ["[::ffff:169.254.169.254]:80", "[64:ff9b::169.254.169.254]:80", "[2002:a9fe:a9fe::1]:80"] {
            assert_eq!(judge(addr), Err(Refused::Metadata), "{addr}");
        }
        assert_eq!(judge("[::ffff:127.0.0.1]:80"), Err(Refused::Loopback));
        assert_eq!(judge("[::127.0.0.1]:80"), Err(Refused::Loopback));
        assert_eq!(judge("[::ffff:255.255.255.255]:80"), Err(Refused::Broadcast));
    }

    #[test]
    fn loopback_is_probed_where_allowed_and_nothing_else_is() {
        for addr in ["127.0.0.1:1", "[::1]:1", "[::ffff:127.0.0.1]:1"] {
            assert_eq!(is_probeable(addr.parse().unwrap(), true), Ok(()), "{addr}");
        }
        assert_eq!(is_probeable("169.254.169.254:80".parse().unwrap(), true), Err(Refused::Metadata));
        assert_eq!(is_probeable("127.0.0.1:0".parse().unwrap(), true), Err(Refused::PortZero));
    }

    proptest! {
        #[test]
        fn allowing_loopback_changes_loopback_only(addr: SocketAddr) {
            let (strict, lax) = (is_probeable(addr, false), is_probeable(addr, true));
            prop_assert!(strict == lax || strict == Err(Refused::Loopback));
        }
    }
}
