//! The configuration's part about metrics: where they are told, and of whom.

use std::{
    fmt,
    net::{Ipv4Addr, SocketAddr},
    str::FromStr,
};

use byway::MAX_METRIC_PEERS;
use serde::Deserialize;

use super::Within;

/// The table `[metrics]`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct MetricsTable {
    /// Where Prometheus asks; without it nobody is told anything.
    pub(crate) listen: Option<MetricsAddr>,
    /// How many peers have figures of their own.
    peers: Option<Within<0, { MAX_METRIC_PEERS as u64 }>>,
}

impl MetricsTable {
    /// How many peers have figures of their own: none unless told.
    pub(crate) fn peers(&self) -> usize {
        self.peers.map_or(0, |Within(peers)| usize::try_from(peers).unwrap_or(MAX_METRIC_PEERS))
    }
}

/// Where metrics are told: an address, or a port at 127.0.0.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct MetricsAddr(pub(crate) SocketAddr);

impl FromStr for MetricsAddr {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(port) = text.parse::<u16>() {
            return Ok(MetricsAddr((Ipv4Addr::LOCALHOST, port).into()));
        }
        let addr = text.parse().map(MetricsAddr);
        addr.map_err(|_| format!("{text:?} is no address; write IP:PORT, such as 127.0.0.1:9464, or a port alone"))
    }
}

impl TryFrom<String> for MetricsAddr {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl fmt::Display for MetricsAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_alone_stays_on_this_machine() {
        assert_eq!("9464".parse(), Ok(MetricsAddr("127.0.0.1:9464".parse().unwrap())));
        assert_eq!("[::]:1".parse(), Ok(MetricsAddr("[::]:1".parse().unwrap())));
        assert!("localhost:1".parse::<MetricsAddr>().unwrap_err().contains("127.0.0.1:9464"));
    }
}
