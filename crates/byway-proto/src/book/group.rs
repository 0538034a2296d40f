//! Which addresses are likely to be one operator's.

use core::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use crate::addr::candidate::embedded_ipv4;

/// Addresses that whoever has one of them easily has all of: an IPv4 /16, an IPv6 /32 (a provider's usual allocation), or
/// everything that is not routed on the internet.
///
/// Text: `203.0.0.0/16`, `2001:db8::/32`, `local`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Group([u8; Group::LEN]);

impl Group {
    /// The bytes of [`Group::to_bytes`]: a kind, then the prefix.
    pub const LEN: usize = 6;

    /// All addresses that no router of the internet knows: private, loopback, link-local, a carrier's own.
    pub const LOCAL: Group = Group([0; Group::LEN]);

    /// The group of an address. IPv4 inside IPv6 (mapped, NAT64, 6to4, Teredo) is judged as IPv4, so that one IPv4 address
    /// does not stand in many groups.
    pub fn of(ip: IpAddr) -> Self {
        match ip.to_canonical() {
            IpAddr::V4(ip) => Group::of_ipv4(ip),
            IpAddr::V6(ip) => match embedded_ipv4(ip).or_else(|| teredo_client(ip)) {
                Some(inner) => Group::of_ipv4(inner),
                None => Group::of_ipv6(ip),
            },
        }
    }

    /// The binary form; differs for different groups.
    pub fn to_bytes(self) -> [u8; Group::LEN] {
        self.0
    }

    fn of_ipv4(ip: Ipv4Addr) -> Self {
        let [a, b, ..] = ip.octets();
        let is_carrier = a == 100 && (64..128).contains(&b); // RFC 6598
        let is_bench = a == 198 && (b == 18 || b == 19); // RFC 2544
        let own = ip.is_private() || ip.is_loopback() || ip.is_link_local() || a == 0;
        if own || is_carrier || is_bench { Group::LOCAL } else { Group([V4, a, b, 0, 0, 0]) }
    }

    fn of_ipv6(ip: Ipv6Addr) -> Self {
        if ip.is_unspecified() || ip.is_loopback() || ip.is_unique_local() || ip.is_unicast_link_local() {
            return Group::LOCAL;
        }
        let [a, b, c, d, e, ..] = ip.octets();
        // One provider of tunnels serves everybody from one /32, a customer gets a /48 or longer.
        let more = if [a, b, c, d] == TUNNEL_BROKER { e & 0xf0 } else { 0 };
        Group([V6, a, b, c, d, more])
    }
}

impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [kind, a, b, c, d, e] = self.0;
        match kind {
            V4 => write!(f, "{}/16", Ipv4Addr::new(a, b, 0, 0)),
            V6 => {
                let ip = Ipv6Addr::from([a, b, c, d, e, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
                write!(f, "{ip}/{}", if [a, b, c, d] == TUNNEL_BROKER { 36 } else { 32 })
            }
            _ => f.write_str("local"),
        }
    }
}

impl fmt::Debug for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Group {
    type Err = ParseGroupError;

    fn from_str(text: &str) -> Result<Self, ParseGroupError> {
        if text == "local" {
            return Ok(Group::LOCAL);
        }
        let (ip, _length) = text.split_once('/').ok_or(ParseGroupError)?;
        ip.parse().map(Group::of).map_err(|_| ParseGroupError)
    }
}

/// A text is not a [`Group`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a group of addresses: write it as 203.0.0.0/16, 2001:db8::/32 or local")]
pub struct ParseGroupError;

/// The IPv4 address of a Teredo client, which its IPv6 address hides by inverting it (RFC 4380 §4).
fn teredo_client(ip: Ipv6Addr) -> Option<Ipv4Addr> {
    match ip.segments() {
        [0x2001, 0, .., high, low] => Some(Ipv4Addr::from_bits(!((u32::from(high) << 16) | u32::from(low)))),
        _ => None,
    }
}

const V4: u8 = 4;
const V6: u8 = 6;
const TUNNEL_BROKER: [u8; 4] = [0x20, 0x01, 0x04, 0x70];

#[cfg(test)]
mod tests {
    use alloc::string::ToString;

    use super::*;

    fn group(ip: &str) -> std::string::String {
        let group = Group::of(ip.parse().unwrap());
        assert_eq!(group.to_string().parse(), Ok(group));
        group.to_string()
    }

    #[test]
    fn a_group_is_what_one_operator_gets_together() {
        for (ip, expected) in [
            ("203.0.113.9", "203.0.0.0/16"),
            ("::ffff:203.0.113.9", "203.0.0.0/16"),
            ("64:ff9b::203.0.113.9", "203.0.0.0/16"),
            ("2002:cb00:7109::1", "203.0.0.0/16"),
            ("2001:0:1:2:3:4:34ff:8ef6", "203.0.0.0/16"),
            ("2a00:1450:4001::1", "2a00:1450::/32"),
            ("2001:470:1f0b::1", "2001:470:1000::/36"),
            ("10.1.2.3", "local"),
            ("100.64.0.1", "local"),
            ("198.18.0.1", "local"),
            ("127.0.0.1", "local"),
            ("fd00::1", "local"),
            ("fe80::1", "local"),
        ] {
            assert_eq!(group(ip), expected, "{ip}");
        }
    }
}
