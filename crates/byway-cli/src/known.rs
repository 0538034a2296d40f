//! The peers that this node has been given tickets of, so that `peer/name` finds them later.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    time::{SystemTime, UNIX_EPOCH},
};

use byway_proto::{PeerAddr, PeerId, Ticket};
use serde::{Deserialize, Serialize};

use crate::{
    datadir::DataDir,
    failure::Failure,
    store::{self, Secret},
    target::{Destination, PeerName},
};

/// The file, in the data directory.
const FILE: &str = "peers.json";

/// The most peers that are remembered; the one that was not used for longest gives way.
const MAX_PEERS: usize = 1_024;

/// The most services that are remembered of one peer, for the same reason as [`MAX_PEERS`].
const MAX_SERVICES: usize = 256;

/// All peers that this node knows.
#[derive(Debug)]
pub(crate) struct KnownPeers {
    dir: DataDir,
    peers: BTreeMap<String, Known>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Known {
    addrs: Vec<SocketAddr>,
    relays: Vec<String>,
    services: BTreeMap<String, Reached>,
    /// Seconds since 1970 when a command last named this peer.
    used: u64,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Reached {
    secret: Option<Secret>,
    /// The local port that led there last.
    port: Option<u16>,
}

impl KnownPeers {
    /// Reads the peers of a data directory.
    pub(crate) fn open(dir: &DataDir) -> Result<Self, Failure> {
        Ok(KnownPeers { dir: dir.clone(), peers: store::load(dir, FILE)? })
    }

    /// All that is known of a destination, as a ticket. What a ticket says is remembered.
    pub(crate) fn find(&mut self, destination: &Destination, now: SystemTime) -> Result<Ticket, Failure> {
        match destination {
            Destination::Ticket(ticket) => {
                self.remember(ticket, now)?;
                Ok((**ticket).clone())
            }
            Destination::Known { peer, service } => self.recall(peer, service.clone()),
        }
    }

    /// Whether this node was ever given a ticket of `peer`.
    pub(crate) fn is_known(&self, peer: PeerId) -> bool {
        self.peers.contains_key(&peer.to_string())
    }

    /// The local port that led to this service last.
    pub(crate) fn port(&self, peer: PeerId, service: &str) -> Option<u16> {
        self.peers.get(&peer.to_string())?.services.get(service)?.port
    }

    /// Remembers the local port that leads to this service.
    pub(crate) fn remember_port(&mut self, peer: PeerId, service: &str, port: u16) -> Result<(), Failure> {
        if self.port(peer, service) == Some(port) {
            return Ok(());
        }
        let known = self.peers.entry(peer.to_string()).or_default();
        known.services.entry(service.to_owned()).or_default().port = Some(port);
        self.save()
    }

    fn recall(&self, name: &PeerName, service: Option<String>) -> Result<Ticket, Failure> {
        let mut ids = self.peers.keys().filter_map(|id| id.parse().ok()).filter(|id| name.matches(id));
        let id: PeerId = match (name, ids.next(), ids.next()) {
            (_, Some(id), None) => id,
            (PeerName::Id(id), _, _) => *id, // it may be connected, or registered at our relay
            (PeerName::Prefix(prefix), None, _) => {
                return Err(Failure::usage(format!(
                    "no known peer's id begins with {prefix:?}; reach it by a ticket first, or write the whole id"
                )));
            }
            (PeerName::Prefix(prefix), Some(_), Some(_)) => {
                return Err(Failure::usage(format!("several peers' ids begin with {prefix:?}; write more of it")));
            }
        };
        let mut ticket = Ticket::new(id);
        if let Some(known) = self.peers.get(&id.to_string()) {
            ticket.addrs.clone_from(&known.addrs);
            ticket.relays = known.relays.iter().filter_map(|relay| relay.parse().ok()).collect();
            let reached = service.as_ref().and_then(|service| known.services.get(service));
            ticket.secret = reached.and_then(|reached| reached.secret).map(|secret| secret.0);
        }
        ticket.service = service;
        Ok(ticket)
    }

    fn remember(&mut self, ticket: &Ticket, now: SystemTime) -> Result<(), Failure> {
        let name = ticket.peer.to_string();
        if !self.peers.contains_key(&name) && self.peers.len() >= MAX_PEERS {
            let oldest = self.peers.iter().min_by_key(|(_, known)| known.used).map(|(name, _)| name.clone());
            oldest.and_then(|oldest| self.peers.remove(&oldest));
        }
        let known = self.peers.entry(name).or_default();
        known.addrs.clone_from(&ticket.addrs);
        known.relays = ticket.relays.iter().map(PeerAddr::to_string).collect();
        known.used = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        if let Some(service) = &ticket.service {
            if known.services.len() >= MAX_SERVICES && !known.services.contains_key(service) {
                known.services.pop_first();
            }
            known.services.entry(service.clone()).or_default().secret = ticket.secret.map(Secret);
        }
        self.save()
    }

    fn save(&self) -> Result<(), Failure> {
        store::save(&self.dir, FILE, &self.peers)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::datadir::tests::Scratch;

    fn ticket(byte: u8) -> Ticket {
        let mut ticket = Ticket::new(PeerId::ed25519([byte; 32]));
        ticket.addrs = vec!["192.0.2.1:4433".parse().unwrap()];
        ticket.relays = vec![PeerAddr::new(PeerId::ed25519([9; 32]), ["192.0.2.9:1".parse::<SocketAddr>().unwrap()])];
        ticket.service = Some("web".into());
        ticket.secret = Some([byte; 16]);
        ticket
    }

    fn find(known: &mut KnownPeers, text: &str) -> Result<Ticket, Failure> {
        known.find(&text.parse().unwrap(), UNIX_EPOCH)
    }

    #[test]
    fn a_tickets_peer_is_found_again_by_its_id_or_the_beginning_of_it() {
        let Scratch(dir) = &Scratch::new("known");
        let given = ticket(1);
        find(&mut KnownPeers::open(dir).unwrap(), &given.to_string()).unwrap();
        let mut known = KnownPeers::open(dir).unwrap();
        assert_eq!(find(&mut known, &format!("{}/web", given.peer)).unwrap(), given);
        assert_eq!(find(&mut known, &format!("{}/web", given.peer.short())).unwrap(), given);
        let other = find(&mut known, &format!("{}/files", given.peer)).unwrap();
        assert_eq!((other.addrs, other.service, other.secret), (given.addrs, Some("files".into()), None));
    }

    #[test]
    fn an_unknown_id_may_be_dialled_and_an_unknown_beginning_may_not() {
        let Scratch(dir) = &Scratch::new("known-unknown");
        let mut known = KnownPeers::open(dir).unwrap();
        let id = PeerId::ed25519([3; 32]);
        assert_eq!(find(&mut known, &id.to_string()).unwrap(), Ticket::new(id));
        assert!(find(&mut known, &id.short()).unwrap_err().message.contains("ticket first"));
    }

    #[test]
    fn the_local_port_is_remembered_for_each_service() {
        let Scratch(dir) = &Scratch::new("known-port");
        let mut known = KnownPeers::open(dir).unwrap();
        find(&mut known, &ticket(1).to_string()).unwrap();
        known.remember_port(ticket(1).peer, "web", 8080).unwrap();
        let known = KnownPeers::open(dir).unwrap();
        assert_eq!(known.port(ticket(1).peer, "web"), Some(8080));
        assert_eq!(known.port(ticket(1).peer, "files"), None);
    }

    #[test]
    fn the_peer_unused_for_longest_gives_way() {
        let Scratch(dir) = &Scratch::new("known-full");
        let mut known = KnownPeers::open(dir).unwrap();
        for number in 0..MAX_PEERS {
            let used = 10 + number as u64;
            known.peers.insert(format!("{number}"), Known { used, ..Known::default() });
        }
        let now = UNIX_EPOCH + Duration::from_secs(1_000_000);
        known.find(&Destination::Ticket(Box::new(ticket(1))), now).unwrap();
        assert_eq!(known.peers.len(), MAX_PEERS);
        assert!(!known.peers.contains_key("0") && known.peers.contains_key("1"));
    }
}
