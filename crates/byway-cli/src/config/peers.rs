//! The configuration's part about peers: how many there may be, who is special, who is let in, who is told of whom.

use byway::{Config, DEFAULT_NETWORK, Filter, PeerAddr, PeerId, SwitchConfig};
use serde::{Deserialize, Deserializer, de};

use super::{Within, set};

/// The table `[peers]`; what is left out has the library's default.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct PeersTable {
    /// Peers at once.
    max: Option<Within<1, 65_536>>,
    /// How many of them are kept for persistent and unconditional ones.
    reserved: Option<Within<0, 1_024>>,
    /// One of so many peers is dialled out of the address book.
    dial_ratio: Option<Within<1, 1_024>>,
    /// Peers of one group of addresses that are dialled out of the book.
    dialled_per_group: Option<Within<1, 1_024>>,
    /// Peers of one group of addresses that may come in, in percent.
    inbound_per_group: Option<Within<1, 100>>,
    /// Peers that are dialled for ever.
    #[serde(deserialize_with = "addresses")]
    persistent: Vec<PeerAddr>,
    /// Peers that are always let in.
    #[serde(deserialize_with = "ids")]
    unconditional: Vec<PeerId>,
    /// Peers that stand in no book and of whom nobody is told.
    #[serde(deserialize_with = "ids")]
    private: Vec<PeerId>,
    /// Let in one peer from each IP address.
    one_per_ip: bool,
    /// Tell peers of each other, and dial those that others named.
    exchange: bool,
    /// Peers that know others.
    #[serde(deserialize_with = "addresses")]
    seeds: Vec<PeerAddr>,
    /// Be such a peer: keep nobody, dial everybody in turn.
    seed: bool,
    /// Take and tell addresses of private networks, too.
    local: bool,
}

impl PeersTable {
    /// What makes no sense, by the names that it has in the file.
    pub(super) fn check(&self, network: Option<&str>) -> Result<(), String> {
        if self.exchange && network.unwrap_or(DEFAULT_NETWORK) == DEFAULT_NETWORK {
            return Err(format!(
                "peers.exchange needs a `network` of your own, for everybody's nodes share {DEFAULT_NETWORK:?}; name one"
            ));
        }
        if let Some(key) = self.needs_exchange().filter(|_| !self.exchange) {
            return Err(format!("peers.{key} does nothing without peers.exchange; switch that on, or take {key} out"));
        }
        self.switch().check().map_err(|why| format!("[peers]: {why}"))
    }

    /// Tells the library.
    pub(super) fn apply(&self, config: &mut Config) {
        config.peers = self.switch();
        config.peer_exchange = self.exchange;
        config.filter = self.one_per_ip.then(Filter::one_per_ip);
    }

    /// A key that only peer exchange gives a meaning.
    fn needs_exchange(&self) -> Option<&'static str> {
        let keys = [
            ("dial_ratio", self.dial_ratio.is_some()),
            ("dialled_per_group", self.dialled_per_group.is_some()),
            ("seeds", !self.seeds.is_empty()),
            ("seed", self.seed),
        ];
        keys.into_iter().find_map(|(key, is_set)| is_set.then_some(key))
    }

    fn switch(&self) -> SwitchConfig {
        let mut config = SwitchConfig::default();
        set(&mut config.max_peers, self.max);
        // A small `max` alone is no contradiction: an eighth is reserved, as of the default.
        let special = self.persistent.len() + self.unconditional.len();
        config.reserved = config.reserved.min((config.max_peers / 8).max(special)).min(config.max_peers.max(1) - 1);
        set(&mut config.reserved, self.reserved);
        set(&mut config.dial_ratio, self.dial_ratio);
        set(&mut config.chosen_per_group, self.dialled_per_group);
        set(&mut config.inbound_per_group, self.inbound_per_group);
        config.persistent.clone_from(&self.persistent);
        config.unconditional = self.unconditional.iter().copied().collect();
        config.private = self.private.iter().copied().collect();
        config.seeds.clone_from(&self.seeds);
        (config.seed, config.local) = (self.seed, self.local);
        config
    }
}

fn addresses<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<PeerAddr>, D::Error> {
    let texts = Vec::<String>::deserialize(deserializer)?;
    let parse = |text: &String| {
        let peer: PeerAddr = text.parse().map_err(|error| format!("peer {text:?}: {error}"))?;
        match peer.addrs.is_empty() {
            true => Err(format!("peer {text:?} has no address; write id@host:port")),
            false => Ok(peer),
        }
    };
    texts.iter().map(parse).collect::<Result<_, _>>().map_err(de::Error::custom)
}

fn ids<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<PeerId>, D::Error> {
    let texts = Vec::<String>::deserialize(deserializer)?;
    let parse = |text: &String| text.parse().map_err(|error| format!("peer {text:?}: {error}"));
    texts.iter().map(parse).collect::<Result<_, _>>().map_err(de::Error::custom)
}

#[cfg(test)]
mod tests {
    use byway::Identity;

    use super::*;

    fn parse(text: &str) -> PeersTable {
        toml::from_str(text).unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    #[test]
    fn every_key_reaches_the_library() {
        let (friend, other) = (PeerId::ed25519([7; 32]), PeerId::ed25519([8; 32]));
        let table = parse(&format!(
            "max = 100\nreserved = 20\ndial_ratio = 4\ndialled_per_group = 2\ninbound_per_group = 50\n\
             persistent = [\"{friend}@friend.example:7\"]\nunconditional = [\"{other}\"]\nprivate = [\"{friend}\"]\n\
             one_per_ip = true\nexchange = true\nseeds = [\"{other}@192.0.2.1:7\"]\nseed = true\nlocal = true"
        ));
        assert_eq!(table.check(Some("mine")), Ok(()));
        let mut config = Config::new(Identity::generate());
        table.apply(&mut config);
        let peers = &config.peers;
        assert_eq!((peers.max_peers, peers.reserved, peers.dial_ratio), (100, 20, 4));
        assert_eq!((peers.chosen_per_group, peers.inbound_per_group), (2, 50));
        assert_eq!((peers.persistent[0].id, peers.seeds[0].id), (friend, other));
        assert!(peers.unconditional.contains(&other) && peers.private.contains(&friend));
        assert!(config.filter.is_some() && config.peer_exchange && peers.seed && peers.local);
        let mut plain = Config::new(Identity::generate());
        PeersTable::default().apply(&mut plain);
        assert!(plain.filter.is_none() && !plain.peer_exchange);
        assert_eq!((plain.peers.max_peers, plain.peers.reserved), (512, 64));
    }

    #[test]
    fn a_small_limit_alone_is_enough() {
        for max in 1..=65 {
            let table = parse(&format!("max = {max}"));
            assert_eq!(table.check(None), Ok(()), "{max}");
            assert_eq!(table.switch().reserved, max / 8);
        }
    }

    #[test]
    fn contradictions_are_told_by_the_names_of_the_file() {
        let peer = format!("{}@192.0.2.1:7", PeerId::ed25519([7; 32]));
        for (text, hint) in [
            ("exchange = true".to_owned(), "peers.exchange needs a `network`"),
            (format!("seeds = [\"{peer}\"]"), "peers.seeds does nothing without peers.exchange"),
            ("max = 10\nreserved = 10".into(), "[peers]: 10 of 10 peers are reserved"),
            (format!("persistent = [\"{peer}\"]\nreserved = 0"), "[peers]: 1 peers are persistent"),
        ] {
            let why = parse(&text).check(None).unwrap_err();
            assert!(why.contains(hint), "{why}");
        }
    }
}
