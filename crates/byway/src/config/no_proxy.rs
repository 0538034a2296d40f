//! Hosts that are reached without the proxy.

use std::{net::IpAddr, str::FromStr};

use byway_proto::addr::HostAddr;

/// Most entries of one list: more than environments hold.
const MAX_ENTRIES: usize = 256;

/// Hosts that a proxy does not lead to, as the variable `NO_PROXY` lists them, separated by commas: a name stands for itself and for
/// all names that end with it, `10.0.0.0/8` for a network, `*` for everything; a port may follow. Loopback is always among them.
///
/// A name is not resolved to compare it with networks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NoProxy(Vec<Entry>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    hosts: Hosts,
    /// Without one, every port.
    port: Option<u16>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Hosts {
    All,
    /// The name, and what ends with a dot and the name.
    Domain(String),
    /// Addresses that have these leading bits in common.
    Network(IpAddr, u8),
}

impl NoProxy {
    /// Whether this host is reached without a proxy.
    pub(crate) fn covers(&self, host: &HostAddr) -> bool {
        let is_loopback = match host {
            HostAddr::Socket(addr) => addr.ip().to_canonical().is_loopback(),
            HostAddr::Name(name, _) | HostAddr::Wss(name, _) => name == "localhost",
        };
        is_loopback || self.0.iter().any(|entry| entry.covers(host))
    }
}

impl Entry {
    fn covers(&self, host: &HostAddr) -> bool {
        let covers_host = match (&self.hosts, host) {
            (Hosts::All, _) => true,
            (Hosts::Domain(domain), HostAddr::Name(name, _) | HostAddr::Wss(name, _)) => {
                name.strip_suffix(domain.as_str()).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
            }
            (Hosts::Network(network, bits), HostAddr::Socket(addr)) => {
                let ((network, width), (addr, other)) = (number(*network), number(addr.ip().to_canonical()));
                width == other && (network ^ addr).checked_shr(width - u32::from(*bits)).unwrap_or(0) == 0
            }
            _ => false,
        };
        covers_host && self.port.is_none_or(|port| port == host.port())
    }
}

/// An address as a number, and how many bits it has.
fn number(addr: IpAddr) -> (u128, u32) {
    match addr {
        IpAddr::V4(addr) => (u32::from(addr).into(), 32),
        IpAddr::V6(addr) => (addr.into(), 128),
    }
}

impl FromStr for NoProxy {
    type Err = ParseNoProxyError;

    fn from_str(text: &str) -> Result<Self, ParseNoProxyError> {
        let entries: Vec<_> = text.split(',').map(str::trim).filter(|entry| !entry.is_empty()).collect();
        if entries.len() > MAX_ENTRIES {
            return Err(ParseNoProxyError::TooMany(entries.len()));
        }
        entries.into_iter().map(entry).collect::<Result<_, _>>().map(NoProxy)
    }
}

fn entry(text: &str) -> Result<Entry, ParseNoProxyError> {
    let wrong = || ParseNoProxyError::Entry(text.chars().take(64).collect());
    let whole = |addr: IpAddr| Hosts::Network(addr.to_canonical(), number(addr.to_canonical()).1 as u8);
    if let Ok(addr) = text.parse::<std::net::SocketAddr>() {
        return Ok(Entry { hosts: whole(addr.ip()), port: Some(addr.port()) });
    }
    if let Ok(addr) = text.trim_matches(['[', ']']).parse::<IpAddr>() {
        return Ok(Entry { hosts: whole(addr), port: None });
    }
    if let Some((addr, bits)) = text.split_once('/') {
        let addr: IpAddr = addr.parse().map_err(|_| wrong())?;
        let bits = bits.parse().ok().filter(|bits| u32::from(*bits) <= number(addr).1).ok_or_else(wrong)?;
        return Ok(Entry { hosts: Hosts::Network(addr, bits), port: None });
    }
    let (name, port) = match text.rsplit_once(':') {
        Some((name, port)) => (name, Some(port.parse().map_err(|_| wrong())?)),
        None => (text, None),
    };
    let name = name.strip_prefix("*.").or(name.strip_prefix('.')).unwrap_or(name);
    let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
    match &*name {
        "" => Err(wrong()),
        "*" => Ok(Entry { hosts: Hosts::All, port }),
        _ => Ok(Entry { hosts: Hosts::Domain(name), port }),
    }
}

/// Why a text is not a [`NoProxy`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ParseNoProxyError {
    /// An entry is neither a name nor an address nor a network.
    #[error("{0:?} names no host; write a name, an address or a network such as 10.0.0.0/8")]
    Entry(String),
    /// The list is too long.
    #[error("it lists {0} hosts; keep at most {MAX_ENTRIES}")]
    TooMany(usize),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_networks_and_ports_are_reached_without_the_proxy_and_nothing_else_is() {
        let list: NoProxy =
            "corp.example, *.Lab.example,10.0.0.0/8,192.0.2.7,[2001:db8::1]:443,one.example:443".parse().unwrap();
        let covered = |host: &str| list.covers(&host.parse().unwrap());
        for host in [
            "corp.example:1",
            "relay.corp.example:1",
            "wss://a.lab.example:443",
            "10.9.9.9:1",
            "192.0.2.7:80",
            "[2001:db8::1]:443",
            "one.example:443",
            "127.0.0.1:1",
            "[::1]:1",
            "localhost:1",
            "[::ffff:10.0.0.1]:1",
        ] {
            assert!(covered(host), "{host}");
        }
        for host in [
            "xcorp.example:1",
            "example:1",
            "11.0.0.1:1",
            "192.0.2.8:80",
            "[2001:db8::1]:444",
            "one.example:80",
            "[a00::1]:1",
        ] {
            assert!(!covered(host), "{host}");
        }
    }

    #[test]
    fn a_star_is_everything_and_nothing_is_nothing() {
        let host: HostAddr = "relay.example:1".parse().unwrap();
        assert!("*".parse::<NoProxy>().unwrap().covers(&host) && "0.0.0.0/0".parse::<NoProxy>().is_ok());
        assert!(!" , ".parse::<NoProxy>().unwrap().covers(&host));
    }

    #[test]
    fn what_names_no_host_is_refused() {
        for wrong in ["10.0.0.0/33", "a/8", "host:port", "."] {
            assert_eq!(wrong.parse::<NoProxy>(), Err(ParseNoProxyError::Entry(wrong.into())));
        }
        assert_eq!("a,".repeat(257).parse::<NoProxy>(), Err(ParseNoProxyError::TooMany(257)));
    }
}
