//! Who may use a service: the secrets of its tickets, and the peers that have redeemed one.
//!
//! A secret is bound, for good, to the first peer that redeems it. That is written to disk before the peer is let in,
//! so that no crash lets a second one in with the same ticket.

use std::collections::BTreeMap;

use byway_proto::PeerId;
use serde::{Deserialize, Serialize};

use crate::{
    datadir::DataDir,
    failure::Failure,
    store::{self, Secret},
};

/// The file, in the data directory.
const FILE: &str = "tickets.json";

/// The most peers that may hold a redeemed ticket of one service: past that, they are a public, for which there is `--open`.
const MAX_PEERS: usize = 4_096;

/// The most services that the file keeps: more than anybody names by hand.
const MAX_SERVICES: usize = 1_024;

/// The grants of all services of one node.
#[derive(Debug)]
pub(crate) struct Grants {
    dir: DataDir,
    services: BTreeMap<String, Granted>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Granted {
    /// What the next ticket carries.
    unredeemed: Option<Secret>,
    /// By peer, the secret that it has redeemed.
    peers: BTreeMap<String, Secret>,
}

/// What became of a peer's wish to use a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It has redeemed a ticket before.
    Known,
    /// It has redeemed the ticket now.
    Redeemed,
    /// It holds no ticket, or one that belongs to somebody else.
    Refused,
}

impl Grants {
    /// Reads the grants of a data directory.
    pub(crate) fn open(dir: &DataDir) -> Result<Self, Failure> {
        Ok(Grants { dir: dir.clone(), services: store::load(dir, FILE)? })
    }

    /// The secret for the next ticket of `service`: the last one until somebody redeems it.
    pub(crate) fn next_secret(&mut self, service: &str) -> Result<[u8; 16], Failure> {
        if let Some(secret) = self.services.get(service).and_then(|granted| granted.unredeemed) {
            return Ok(secret.0);
        }
        if self.services.len() >= MAX_SERVICES && !self.services.contains_key(service) {
            let path = self.dir.path().join(FILE);
            let path = path.display();
            return Err(Failure::here(format!(
                "{path} holds {MAX_SERVICES} services; take out those no longer served"
            )));
        }
        let secret = Secret::random()?;
        let mut changed = self.services.clone();
        changed.entry(service.to_owned()).or_default().unredeemed = Some(secret);
        self.commit(changed)?;
        Ok(secret.0)
    }

    /// Decides whether `peer` may use `service`, and binds the ticket's secret to it if it is the first to bring it.
    pub(crate) fn redeem(&mut self, service: &str, peer: PeerId, secret: Option<[u8; 16]>) -> Result<Verdict, Failure> {
        let Some(granted) = self.services.get(service) else {
            return Ok(Verdict::Refused);
        };
        if self.knows(service, peer) {
            return Ok(Verdict::Known);
        }
        let matches = |expected: &Secret| secret.is_some_and(|brought| same(&brought, &expected.0));
        let Some(secret) = granted.unredeemed.filter(matches) else {
            return Ok(Verdict::Refused);
        };
        if granted.peers.len() >= MAX_PEERS {
            return Err(Failure::here(format!("{MAX_PEERS} peers hold tickets of {service}; serve it with --open")));
        }
        let mut changed = self.services.clone();
        let entry = changed.entry(service.to_owned()).or_default();
        entry.unredeemed = None;
        entry.peers.insert(peer.to_string(), secret);
        self.commit(changed)?;
        Ok(Verdict::Redeemed)
    }

    /// Whether `peer` has redeemed a ticket of `service`.
    pub(crate) fn knows(&self, service: &str, peer: PeerId) -> bool {
        self.services.get(service).is_some_and(|granted| granted.peers.contains_key(&peer.to_string()))
    }

    /// Whether `peer` has redeemed a ticket of any service.
    pub(crate) fn is_holder(&self, peer: PeerId) -> bool {
        let peer = peer.to_string();
        self.services.values().any(|granted| granted.peers.contains_key(&peer))
    }

    /// How many peers hold a redeemed ticket of `service`.
    pub(crate) fn holders(&self, service: &str) -> usize {
        self.services.get(service).map_or(0, |granted| granted.peers.len())
    }

    /// Writes first: what is not on disk is not granted.
    fn commit(&mut self, changed: BTreeMap<String, Granted>) -> Result<(), Failure> {
        store::save(&self.dir, FILE, &changed)?;
        self.services = changed;
        Ok(())
    }
}

/// Compares without telling by its duration how much was right.
fn same(a: &[u8; 16], b: &[u8; 16]) -> bool {
    a.iter().zip(b).fold(0, |differences, (a, b)| differences | (a ^ b)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datadir::tests::Scratch;

    fn peer(byte: u8) -> PeerId {
        PeerId::ed25519([byte; 32])
    }

    #[test]
    fn a_ticket_lets_in_the_first_who_brings_it_and_nobody_else() {
        let Scratch(dir) = &Scratch::new("grants-first");
        let mut grants = Grants::open(dir).unwrap();
        let secret = grants.next_secret("web").unwrap();
        assert_eq!(grants.redeem("web", peer(1), None), Ok(Verdict::Refused));
        assert_eq!(grants.redeem("web", peer(1), Some([0; 16])), Ok(Verdict::Refused));
        assert_eq!(grants.redeem("files", peer(1), Some(secret)), Ok(Verdict::Refused));
        assert_eq!(grants.redeem("web", peer(1), Some(secret)), Ok(Verdict::Redeemed));
        assert_eq!(grants.redeem("web", peer(2), Some(secret)), Ok(Verdict::Refused));
        assert_eq!(grants.redeem("web", peer(1), Some(secret)), Ok(Verdict::Known));
        assert_eq!(grants.redeem("web", peer(1), None), Ok(Verdict::Known));
        assert_eq!(grants.holders("web"), 1);
    }

    #[test]
    fn a_restart_prints_an_unused_ticket_again_and_keeps_a_used_one() {
        let Scratch(dir) = &Scratch::new("grants-restart");
        let first = Grants::open(dir).unwrap().next_secret("web").unwrap();
        let mut grants = Grants::open(dir).unwrap();
        assert_eq!(grants.next_secret("web").unwrap(), first);
        assert_eq!(grants.redeem("web", peer(1), Some(first)), Ok(Verdict::Redeemed));
        let mut grants = Grants::open(dir).unwrap();
        let second = grants.next_secret("web").unwrap();
        assert_ne!(second, first);
        assert_eq!(grants.redeem("web", peer(1), Some(first)), Ok(Verdict::Known));
        assert_eq!(grants.redeem("web", peer(2), Some(first)), Ok(Verdict::Refused));
        assert_eq!(grants.redeem("web", peer(2), Some(second)), Ok(Verdict::Redeemed));
    }

    #[test]
    fn a_peer_that_is_in_already_does_not_use_up_a_fresh_ticket() {
        let Scratch(dir) = &Scratch::new("grants-fresh");
        let mut grants = Grants::open(dir).unwrap();
        let first = grants.next_secret("web").unwrap();
        grants.redeem("web", peer(1), Some(first)).unwrap();
        let second = grants.next_secret("web").unwrap();
        assert_eq!(grants.redeem("web", peer(1), Some(second)), Ok(Verdict::Known));
        assert_eq!(grants.redeem("web", peer(2), Some(second)), Ok(Verdict::Redeemed));
    }

    #[test]
    fn what_cannot_be_written_is_not_granted() {
        let scratch = Scratch::new("grants-disk");
        let mut grants = Grants::open(&scratch.0).unwrap();
        let secret = grants.next_secret("web").unwrap();
        std::fs::remove_dir_all(scratch.0.path()).unwrap();
        assert!(grants.redeem("web", peer(1), Some(secret)).is_err());
        assert_eq!(grants.holders("web"), 0);
    }
}
