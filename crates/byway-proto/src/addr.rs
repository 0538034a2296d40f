//! Where a peer may be reached: addresses as text and as bytes, and which of them may be probed.

pub mod candidate;
pub mod interface;

use alloc::{
    borrow::ToOwned,
    format,
    string::{String, ToString},
    vec::Vec,
};
use core::{
    fmt,
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

use crate::id::{ParseIdError, PeerId};

/// The most addresses in one [`PeerAddr`]: two families on a few interfaces, public and private; more are dead weight in a dial.
pub const MAX_ADDRS: usize = 8;

/// The longest host name in bytes (RFC 1035 §2.3.4, without the root's length byte and dot).
pub const MAX_NAME_LEN: usize = 253;

/// The most bytes that [`encode_socket_addr`] writes: family, IPv6 address, port.
pub const MAX_SOCKET_ADDR_LEN: usize = 19;

const FAMILY_NAME: u8 = 1;
const FAMILY_WSS: u8 = 2;
const FAMILY_IPV4: u8 = 4;
const FAMILY_IPV6: u8 = 6;
/// What precedes the name of a relay that shows a certificate for it.
const WSS: &str = "wss://";

const MAX_LABEL_LEN: usize = 63;

/// A host and a port, by address or by name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HostAddr {
    /// An address, ready to be dialled.
    Socket(SocketAddr),
    /// A name to resolve (lower case, at most [`MAX_NAME_LEN`] bytes, as [`HostAddr::name`] checks) and a port.
    Name(String, u16),
    /// A relay's name, as in [`HostAddr::Name`], and a TCP port where it shows a public certificate for that name; there it
    /// is reached over TLS alone. As text `wss://name:port`.
    Wss(String, u16),
}

impl HostAddr {
    /// A host name and a port; the name is checked (RFC 1123 §2.1, underscores allowed) and put in lower case.
    pub fn name(name: &str, port: u16) -> Result<Self, ParseHostAddrError> {
        if port == 0 {
            return Err(ParseHostAddrError::PortZero);
        }
        if !is_host_name(name) {
            return Err(ParseHostAddrError::Name(shortened(name)));
        }
        Ok(HostAddr::Name(name.to_ascii_lowercase(), port))
    }

    /// The address, if no name has to be resolved first.
    pub const fn socket_addr(&self) -> Option<SocketAddr> {
        match self {
            HostAddr::Socket(addr) => Some(*addr),
            HostAddr::Name(..) | HostAddr::Wss(..) => None,
        }
    }

    /// The name for which the host has to show a public certificate, where that is how it proves itself.
    pub fn tls_name(&self) -> Option<&str> {
        match self {
            HostAddr::Wss(name, _) => Some(name),
            HostAddr::Socket(_) | HostAddr::Name(..) => None,
        }
    }

    /// Host and port as HTTP writes them (RFC 9110 §7.2).
    pub fn authority(&self) -> String {
        match self {
            HostAddr::Socket(addr) => addr.to_string(),
            HostAddr::Name(name, port) | HostAddr::Wss(name, port) => format!("{name}:{port}"),
        }
    }

    /// The port.
    pub const fn port(&self) -> u16 {
        match self {
            HostAddr::Socket(addr) => addr.port(),
            HostAddr::Name(_, port) | HostAddr::Wss(_, port) => *port,
        }
    }
}

impl From<SocketAddr> for HostAddr {
    fn from(addr: SocketAddr) -> Self {
        HostAddr::Socket(addr)
    }
}

impl fmt::Display for HostAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HostAddr::Socket(addr) => write!(f, "{addr}"),
            HostAddr::Name(name, port) => write!(f, "{name}:{port}"),
            HostAddr::Wss(name, port) => write!(f, "{WSS}{name}:{port}"),
        }
    }
}

impl FromStr for HostAddr {
    type Err = ParseHostAddrError;

    fn from_str(text: &str) -> Result<Self, ParseHostAddrError> {
        let text = text.trim();
        if let Some(rest) = text.strip_prefix(WSS) {
            return match rest.parse()? {
                HostAddr::Name(name, port) => Ok(HostAddr::Wss(name, port)),
                _ => Err(ParseHostAddrError::WssName(shortened(rest))),
            };
        }
        if let Ok(addr) = text.parse::<SocketAddr>() {
            return if addr.port() == 0 { Err(ParseHostAddrError::PortZero) } else { Ok(HostAddr::Socket(addr)) };
        }
        if text.parse::<IpAddr>().is_ok() {
            return Err(ParseHostAddrError::NoPort(shortened(text)));
        }
        let (name, port) = text.rsplit_once(':').ok_or_else(|| ParseHostAddrError::NoPort(shortened(text)))?;
        let port = port.parse().map_err(|_| ParseHostAddrError::Port(shortened(port)))?;
        HostAddr::name(name, port)
    }
}

/// Why a text is not a [`HostAddr`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ParseHostAddrError {
    /// There is no port.
    #[error("address {0:?} has no port; write host:port, an IPv6 address in brackets")]
    NoPort(String),
    /// The port is not a number up to 65,535.
    #[error("port {0:?} is not a number from 1 to 65535; correct the address")]
    Port(String),
    /// The port is 0.
    #[error("port 0 cannot be reached; write the port that the host listens on")]
    PortZero,
    /// The host is neither an address nor a name.
    #[error("{0:?} is neither an IP address nor a host name; correct it, an international name in its xn-- form")]
    Name(String),
    /// A certificate is to be for an address, not a name.
    #[error("wss://{0} needs a name, for a certificate is for one; without wss:// the relay's key is enough")]
    WssName(String),
}

/// A peer and where it may be reached; relays are written this way too.
///
/// As text `id@host:port,host:port`, or the id alone if no address is known.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerAddr {
    /// Who it is.
    pub id: PeerId,
    /// Where it may be; the first [`MAX_ADDRS`] are used.
    pub addrs: Vec<HostAddr>,
}

impl PeerAddr {
    /// A peer and its addresses; those after the first [`MAX_ADDRS`] are left out.
    pub fn new(id: PeerId, addrs: impl IntoIterator<Item = impl Into<HostAddr>>) -> Self {
        PeerAddr { id, addrs: addrs.into_iter().take(MAX_ADDRS).map(Into::into).collect() }
    }

    /// The addresses that need no resolving.
    pub fn socket_addrs(&self) -> impl Iterator<Item = SocketAddr> + '_ {
        self.addrs.iter().filter_map(HostAddr::socket_addr)
    }

    /// The binary form of tickets and control messages: the id, then the host addresses to the end. A name that no
    /// resolver takes is left out.
    pub(crate) fn to_wire(&self) -> Vec<u8> {
        let mut wire = Vec::from(self.id.to_wire());
        for addr in self.addrs.iter().take(MAX_ADDRS) {
            encode_host_addr(addr, &mut wire);
        }
        wire
    }

    /// Reads what [`PeerAddr::to_wire`] wrote; `None` also if there are more than [`MAX_ADDRS`] addresses.
    pub(crate) fn from_wire(wire: &[u8]) -> Option<Self> {
        let (id, mut rest) = wire.split_first_chunk::<{ PeerId::WIRE_LEN }>()?;
        let mut peer = PeerAddr { id: PeerId::from_wire(id)?, addrs: Vec::new() };
        while !rest.is_empty() {
            let (addr, after) = decode_host_addr(rest).filter(|_| peer.addrs.len() < MAX_ADDRS)?;
            peer.addrs.push(addr);
            rest = after;
        }
        Some(peer)
    }
}

impl fmt::Display for PeerAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.id)?;
        for (position, addr) in self.addrs.iter().take(MAX_ADDRS).enumerate() {
            let separator = if position == 0 { '@' } else { ',' };
            write!(f, "{separator}{addr}")?;
        }
        Ok(())
    }
}

impl FromStr for PeerAddr {
    type Err = ParsePeerAddrError;

    fn from_str(text: &str) -> Result<Self, ParsePeerAddrError> {
        let Some((id, list)) = text.split_once('@') else {
            return Ok(PeerAddr { id: text.parse()?, addrs: Vec::new() });
        };
        let id = id.parse()?;
        let mut addrs = Vec::new();
        for addr in list.split(',') {
            if addrs.len() == MAX_ADDRS {
                return Err(ParsePeerAddrError::TooMany);
            }
            addrs.push(addr.parse()?);
        }
        Ok(PeerAddr { id, addrs })
    }
}

/// Why a text is not a [`PeerAddr`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ParsePeerAddrError {
    /// What stands before the `@` is not a peer id.
    #[error(transparent)]
    Id(#[from] ParseIdError),
    /// One of the addresses is wrong.
    #[error(transparent)]
    Address(#[from] ParseHostAddrError),
    /// There are more than [`MAX_ADDRS`] addresses.
    #[error("a peer has at most {MAX_ADDRS} addresses; keep the best ones")]
    TooMany,
}

/// Appends an address in the one binary form of tickets, probes and control messages: family (4 or 6), address, port, big endian.
///
/// An IPv4 address mapped into IPv6 is written as IPv4; scope id and flow label mean nothing to another host and are dropped.
pub fn encode_socket_addr(addr: &SocketAddr, out: &mut Vec<u8>) {
    match addr.ip().to_canonical() {
        IpAddr::V4(ip) => {
            out.push(FAMILY_IPV4);
            out.extend(ip.octets());
        }
        IpAddr::V6(ip) => {
            out.push(FAMILY_IPV6);
            out.extend(ip.octets());
        }
    }
    out.extend(addr.port().to_be_bytes());
}

/// Reads what [`encode_socket_addr`] wrote; also returns the bytes after it.
///
/// An IPv4 address that somebody mapped into IPv6 comes back as IPv4.
pub fn decode_socket_addr(bytes: &[u8]) -> Option<(SocketAddr, &[u8])> {
    let (family, rest) = bytes.split_first()?;
    let (ip, rest) = match *family {
        FAMILY_IPV4 => rest.split_first_chunk::<4>().map(|(ip, rest)| (IpAddr::from(*ip), rest))?,
        FAMILY_IPV6 => rest.split_first_chunk::<16>().map(|(ip, rest)| (IpAddr::from(*ip).to_canonical(), rest))?,
        _ => return None,
    };
    let (port, rest) = rest.split_first_chunk::<2>()?;
    Some((SocketAddr::new(ip, u16::from_be_bytes(*port)), rest))
}

/// Appends an address, or a name as family 1 (2 for [`HostAddr::Wss`]), length byte, name, port; `false` (nothing written) if the name is not valid.
pub fn encode_host_addr(addr: &HostAddr, out: &mut Vec<u8>) -> bool {
    match addr {
        HostAddr::Socket(addr) => encode_socket_addr(addr, out),
        HostAddr::Name(name, port) | HostAddr::Wss(name, port) => {
            let family = if addr.tls_name().is_some() { FAMILY_WSS } else { FAMILY_NAME };
            let (true, Ok(len)) = (is_host_name(name), u8::try_from(name.len())) else {
                return false;
            };
            out.extend([family, len]);
            out.extend(name.to_ascii_lowercase().bytes());
            out.extend(port.to_be_bytes());
        }
    }
    true
}

/// Reads what [`encode_host_addr`] wrote; also returns the bytes after it.
pub fn decode_host_addr(bytes: &[u8]) -> Option<(HostAddr, &[u8])> {
    let Some(([family @ (FAMILY_NAME | FAMILY_WSS), len], rest)) = bytes.split_first_chunk::<2>() else {
        return decode_socket_addr(bytes).map(|(addr, rest)| (HostAddr::Socket(addr), rest));
    };
    let (name, rest) = rest.split_at_checked(usize::from(*len))?;
    let (port, rest) = rest.split_first_chunk::<2>()?;
    let name = core::str::from_utf8(name).ok()?;
    let host = if *family == FAMILY_WSS { HostAddr::Wss } else { HostAddr::Name };
    is_host_name(name).then(|| (host(name.to_ascii_lowercase(), u16::from_be_bytes(*port)), rest))
}

/// Whether `name` is a host name. One whose last label is a number is a mistyped IPv4 address (RFC 1123 §2.1).
fn is_host_name(name: &str) -> bool {
    let is_label = |label: &str| {
        (1..=MAX_LABEL_LEN).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let ends_in_number = name.rsplit('.').next().is_some_and(|last| last.bytes().all(|byte| byte.is_ascii_digit()));
    name.len() <= MAX_NAME_LEN && name.split('.').all(is_label) && !ends_in_number
}

/// What an error repeats of a wrong text: enough to recognise it, never a screenful.
fn shortened(text: &str) -> String {
    const MAX_QUOTED_CHARS: usize = 64;
    match text.char_indices().nth(MAX_QUOTED_CHARS) {
        Some(_) => text.chars().take(MAX_QUOTED_CHARS).chain(['…']).collect(),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::net::{Ipv6Addr, SocketAddrV6};
    use proptest::prelude::*;

    fn id() -> PeerId {
        PeerId::ed25519([7; 32])
    }

    fn sockets() -> impl Strategy<Value = SocketAddr> {
        (any::<IpAddr>(), 1..=u16::MAX).prop_map(|(ip, port)| SocketAddr::new(ip.to_canonical(), port))
    }

    fn hosts() -> impl Strategy<Value = HostAddr> {
        prop_oneof![
            sockets().prop_map(HostAddr::Socket),
            ("[a-z0-9]{1,20}(\\.[a-z0-9]{1,9}){0,3}\\.[a-z]{2,8}", 1..=u16::MAX).prop_map(|(name, port)| {
                if port % 2 == 0 { HostAddr::Name(name, port) } else { HostAddr::Wss(name, port) }
            }),
        ]
    }

    #[test]
    fn socket_addresses_have_the_documented_bytes() {
        let mut bytes = Vec::new();
        encode_socket_addr(&"192.0.2.1:4433".parse().unwrap(), &mut bytes);
        assert_eq!(bytes, [4, 192, 0, 2, 1, 0x11, 0x51]);
        bytes.clear();
        encode_socket_addr(&"[2001:db8::1]:443".parse().unwrap(), &mut bytes);
        assert_eq!(bytes, [6, 0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 0xbb]);
        assert_eq!(bytes.len(), MAX_SOCKET_ADDR_LEN);
    }

    #[test]
    fn host_names_have_the_documented_bytes() {
        let mut bytes = Vec::new();
        assert!(encode_host_addr(&"Relay.example:443".parse().unwrap(), &mut bytes));
        assert_eq!(bytes, b"\x01\x0drelay.example\x01\xbb");
        bytes.clear();
        assert!(encode_host_addr(&"wss://Relay.example:443".parse().unwrap(), &mut bytes));
        assert_eq!(bytes, b"\x02\x0drelay.example\x01\xbb");
        bytes.clear();
        assert!(!encode_host_addr(&HostAddr::Name("not a name".into(), 1), &mut bytes));
    }

    #[test]
    fn scope_is_dropped_and_mapped_ipv4_is_written_as_ipv4() {
        let mut bytes = Vec::new();
        let scoped = SocketAddrV6::new(Ipv6Addr::LOCALHOST, 80, 5, 9);
        encode_socket_addr(&scoped.into(), &mut bytes);
        assert_eq!(decode_socket_addr(&bytes), Some(("[::1]:80".parse().unwrap(), &[][..])));
        bytes.clear();
        encode_socket_addr(&"[::ffff:10.0.0.1]:80".parse().unwrap(), &mut bytes);
        assert_eq!(bytes, [4, 10, 0, 0, 1, 0, 80]);
    }

    #[test]
    fn mapped_ipv4_cannot_be_smuggled_in_as_ipv6() {
        let bytes = [6, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 169, 254, 169, 254, 0, 80];
        assert_eq!(decode_socket_addr(&bytes), Some(("169.254.169.254:80".parse().unwrap(), &[][..])));
    }

    #[test]
    fn peer_addresses_mix_addresses_and_names() {
        let text = format!("{}@192.0.2.1:4433,[2001:db8::1]:443,relay.example:7,wss://relay.example:443", id());
        let addr: PeerAddr = text.parse().unwrap();
        assert_eq!(addr.addrs[2], HostAddr::Name("relay.example".into(), 7));
        assert_eq!(addr.addrs[3].tls_name(), Some("relay.example"));
        assert_eq!(addr.socket_addrs().count(), 2);
        assert_eq!(addr.to_string(), text);
    }

    #[test]
    fn a_peer_without_addresses_is_its_id() {
        let addr = PeerAddr::new(id(), Vec::<SocketAddr>::new());
        assert_eq!(addr.to_string(), id().to_string());
        assert_eq!(id().to_string().parse(), Ok(addr));
    }

    #[test]
    fn errors_name_the_wrong_part() {
        let parse = |rest: &str| format!("{}{rest}", id()).parse::<PeerAddr>().unwrap_err();
        let wrong = |error| ParsePeerAddrError::Address(error);
        assert_eq!("x@1.2.3.4:5".parse::<PeerAddr>(), Err(ParseIdError::Truncated { found: 1 }.into()));
        assert_eq!(parse("@"), wrong(ParseHostAddrError::NoPort("".into())));
        assert_eq!(parse("@2001:db8::1"), wrong(ParseHostAddrError::NoPort("2001:db8::1".into())));
        assert_eq!(parse("@1.2.3.4"), wrong(ParseHostAddrError::NoPort("1.2.3.4".into())));
        assert_eq!(parse("@1.2.3.4:0"), wrong(ParseHostAddrError::PortZero));
        assert_eq!(parse("@host:0"), wrong(ParseHostAddrError::PortZero));
        assert_eq!(parse("@host:70000"), wrong(ParseHostAddrError::Port("70000".into())));
        assert_eq!(parse("@1.2.3.400:5"), wrong(ParseHostAddrError::Name("1.2.3.400".into())));
        assert_eq!(parse("@wss://1.2.3.4:5"), wrong(ParseHostAddrError::WssName("1.2.3.4:5".into())));
        assert_eq!(parse("@1.2.3.4:5,"), wrong(ParseHostAddrError::NoPort("".into())));
        let nine = ["1.2.3.4:5"; 9].join(",");
        assert_eq!(parse(&format!("@{nine}")), ParsePeerAddrError::TooMany);
    }

    #[test]
    fn names_that_no_resolver_takes_are_refused() {
        let long_label = "a".repeat(64);
        let long_name = ["abcdefg"; 32].join(".");
        for name in ["", ".", "a..b", "-a", "a-", "a b", "bücher.example", "a.1", "1", &long_label, &long_name] {
            assert!(HostAddr::name(name, 1).is_err(), "{name}");
        }
        for name in ["a", "relay-1.example", "_x.y", "xn--bcher-kva.example", &long_label[..63]] {
            assert!(HostAddr::name(name, 1).is_ok(), "{name}");
        }
    }

    #[test]
    fn errors_quote_at_most_a_line() {
        let error = HostAddr::name(&"é".repeat(1000), 1).unwrap_err();
        assert!(error.to_string().chars().count() < 200);
    }

    proptest! {
        #[test]
        fn socket_addresses_round_trip(addr in sockets(), tail: Vec<u8>) {
            let mut bytes = Vec::new();
            encode_socket_addr(&addr, &mut bytes);
            prop_assert!(bytes.len() <= MAX_SOCKET_ADDR_LEN);
            bytes.extend(&tail);
            prop_assert_eq!(decode_socket_addr(&bytes), Some((addr, &tail[..])));
        }

        #[test]
        fn host_addresses_round_trip(addr in hosts(), tail: Vec<u8>) {
            let mut bytes = Vec::new();
            prop_assert!(encode_host_addr(&addr, &mut bytes));
            bytes.extend(&tail);
            prop_assert_eq!(decode_host_addr(&bytes), Some((addr.clone(), &tail[..])));
            prop_assert_eq!(addr.to_string().parse(), Ok(addr));
        }

        #[test]
        fn peer_addresses_round_trip(key: [u8; 32], addrs in prop::collection::vec(hosts(), 0..=MAX_ADDRS)) {
            let addr = PeerAddr::new(PeerId::ed25519(key), addrs);
            prop_assert_eq!(addr.to_string().parse(), Ok(addr));
        }

        #[test]
        fn no_bytes_and_no_text_panic(bytes: Vec<u8>, text: String) {
            let _ = (decode_socket_addr(&bytes), decode_host_addr(&bytes));
            let _ = (text.parse::<HostAddr>(), text.parse::<PeerAddr>());
            let _ = format!("{}@{text}", id()).parse::<PeerAddr>();
        }
    }
}
