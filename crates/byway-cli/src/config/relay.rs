//! The configuration's part about relaying for others: for whom, and how much.

use std::{collections::BTreeSet, time::Duration};

use byway::{Access, PeerId, RelayConfig};
use serde::{Deserialize, Deserializer, de};

use super::{Within, set};

/// Bytes a second of one Mbit/s.
const MBIT: u64 = 125_000;

/// How much time of its rate one client may send at once, and the least that this may be: a batch as kernels join them, twice.
const BURST: (Duration, u64) = (Duration::from_millis(80), 128 << 10);

/// The table `[relay]`; what is left out has the library's default.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RelayTable {
    /// Whether this node relays for others, and for whom.
    access: Option<RelayFor>,
    /// For whom it relays if that is for friends.
    #[serde(deserialize_with = "friends")]
    friends: BTreeSet<PeerId>,
    /// What one client may send.
    client_mbit_s: Option<Within<1, 100_000>>,
    /// What all clients together may send; unset, anything.
    total_mbit_s: Option<Within<10, 1_000_000>>,
    /// Clients at once.
    clients: Option<Within<1, 100_000>>,
    /// Those of one IPv4 address, or of one IPv6 /64.
    clients_per_source: Option<Within<1, 100_000>>,
    /// Peers that one client may reach.
    peers_per_client: Option<Within<1, 65_536>>,
}

/// For whom a node relays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum RelayFor {
    /// For nobody.
    Off,
    /// For the peers that `friends` lists.
    Friends,
    /// For everyone.
    Everyone,
}

impl RelayTable {
    /// How a node relays, if it does. Whoever starts a relay means it: that command relays for everyone unless told for whom.
    pub(crate) fn config(&self, is_relay_command: bool) -> Option<RelayConfig> {
        let mut config = RelayConfig::default();
        config.access = match self.access {
            Some(RelayFor::Friends) => Access::Friends(self.friends.clone()),
            Some(RelayFor::Everyone) => Access::Everyone,
            Some(RelayFor::Off) | None if is_relay_command => Access::Everyone,
            Some(RelayFor::Off) | None => return None,
        };
        if let Some(Within(mbit_s)) = self.client_mbit_s {
            config.client_rate = mbit_s * MBIT;
            config.client_burst = (config.client_rate * BURST.0.as_millis() as u64 / 1_000).max(BURST.1);
        }
        config.total_rate = self.total_mbit_s.map(|Within(mbit_s)| mbit_s * MBIT);
        set(&mut config.max_clients, self.clients);
        set(&mut config.max_clients_per_source, self.clients_per_source);
        set(&mut config.max_allocations_per_client, self.peers_per_client);
        Some(config)
    }

    /// What differs in another version of the table: the key, and how.
    pub(super) fn changes(&self, new: &Self) -> Vec<(&'static str, String)> {
        let limit = |limit: Option<u64>| limit.map_or_else(|| "default".into(), |limit| limit.to_string());
        let access = |table: &Self| match table.access {
            None => "default",
            Some(RelayFor::Off) => "off",
            Some(RelayFor::Friends) => "friends",
            Some(RelayFor::Everyone) => "everyone",
        };
        let values = |table: &Self| {
            [
                ("relay.access", access(table).to_owned()),
                ("relay.client_mbit_s", limit(table.client_mbit_s.map(|n| n.0))),
                ("relay.total_mbit_s", limit(table.total_mbit_s.map(|n| n.0))),
                ("relay.clients", limit(table.clients.map(|n| n.0))),
                ("relay.clients_per_source", limit(table.clients_per_source.map(|n| n.0))),
                ("relay.peers_per_client", limit(table.peers_per_client.map(|n| n.0))),
            ]
        };
        let changed = values(self).into_iter().zip(values(new)).filter(|(old, new)| old != new);
        let mut changes: Vec<_> = changed.map(|((key, old), (_, new))| (key, format!("{old} -> {new}"))).collect();
        changes.extend(super::difference(&self.friends, &new.friends).map(|what| ("relay.friends", what)));
        changes
    }
}

fn friends<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeSet<PeerId>, D::Error> {
    let texts = Vec::<String>::deserialize(deserializer)?;
    let parse = |text: &String| text.parse().map_err(|error| format!("friend {text:?}: {error}"));
    texts.iter().map(parse).collect::<Result<_, _>>().map_err(de::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_limit_reaches_the_relay_within_what_the_library_takes() {
        let parse = |text: &str| toml::from_str::<RelayTable>(text).unwrap().config(true).unwrap();
        assert_eq!(parse(""), RelayConfig::default());
        let least = "client_mbit_s = 1\ntotal_mbit_s = 10\nclients = 1\nclients_per_source = 1\npeers_per_client = 1";
        let most = "client_mbit_s = 100000\ntotal_mbit_s = 1000000\nclients = 100000\nclients_per_source = 100000\n\
                    peers_per_client = 65536";
        for text in [least, most] {
            parse(text).check().unwrap();
        }
        let config = parse(least);
        assert_eq!((config.client_rate, config.client_burst, config.total_rate), (MBIT, BURST.1, Some(10 * MBIT)));
        let limits = (config.max_clients, config.max_clients_per_source, config.max_allocations_per_client);
        assert_eq!(limits, (1, 1, 1));
    }
}
