//! The owner's say about peers.

use std::{collections::BTreeSet, sync::Arc};

use byway::{Imported, Node, PeerAddr, PeerId, UnixTime, book::Record};

use super::{Daemon, attend::Report};
use crate::{
    control::{
        Event,
        event::book::{Known, PeersAsk},
    },
    failure::Failure,
    target::PeerName,
};

/// Does what is asked, and tells what came of it.
pub(super) async fn run(daemon: Arc<Daemon>, ask: PeersAsk, report: Report) -> Result<(), Failure> {
    let node = &daemon.node;
    let what = match ask {
        PeersAsk::List => {
            report.tell(Event::PeerList { peers: rows(&node.known_peers().await) });
            return Ok(());
        }
        PeersAsk::Export => {
            report.tell(Event::PeerBook { peers: rows(&node.export_peers().await) });
            return Ok(());
        }
        PeersAsk::Add { peer } => {
            let addr: PeerAddr = peer.parse().map_err(Failure::usage)?;
            let short = addr.id.short();
            node.add_peer(addr.into()).await.map_err(Failure::usage)?;
            format!("{short} is in the address book")
        }
        PeersAsk::Ban { peer, until, why } => {
            let peer = find(node, &peer).await?;
            if peer == node.id() {
                return Err(Failure::usage("that is this node itself; name a peer"));
            }
            node.ban(peer, until.map_or(UnixTime::NEVER, UnixTime), why).await.map_err(Failure::here)?;
            format!("{} is banned", peer.short())
        }
        PeersAsk::Unban { peer } => {
            let peer = find(node, &peer).await?;
            let was = node.unban(peer).await.map_err(Failure::here)?;
            if !was {
                return Err(Failure::usage(format!("{} is not banned; `byway peers list` tells who is", peer.short())));
            }
            format!("{} is let in again", peer.short())
        }
        PeersAsk::Import { peers } => {
            let total = peers.len();
            let records: Result<Vec<Record>, String> = peers.iter().map(Known::read).collect();
            let records = records.map_err(|why| Failure::usage(format!("{why}; nothing was imported")))?;
            imported(&node.import_peers(records).await.map_err(Failure::here)?, total)
        }
    };
    report.tell(Event::PeersChanged { message: what });
    Ok(())
}

/// The peer that is meant: by the beginning of its id, one that is connected or that the book has.
async fn find(node: &Node, text: &str) -> Result<PeerId, Failure> {
    let name: PeerName = text.parse().map_err(Failure::usage)?;
    if let PeerName::Id(id) = name {
        return Ok(id);
    }
    let mut known: BTreeSet<PeerId> = node.known_peers().await.iter().map(|record| record.peer).collect();
    known.extend(node.peers());
    one_of(&name, &known)
}

fn one_of(name: &PeerName, known: &BTreeSet<PeerId>) -> Result<PeerId, Failure> {
    let mut meant = known.iter().filter(|id| name.matches(id));
    match (meant.next(), meant.next()) {
        (Some(id), None) => Ok(*id),
        (Some(_), Some(_)) => Err(Failure::usage(format!("several peers' ids begin with {name}; write more of it"))),
        (None, _) => Err(Failure::usage(format!(
            "no peer that is connected or in the address book has an id that begins with {name}; write the whole id"
        ))),
    }
}

fn rows(records: &[Record]) -> Vec<Known> {
    records.iter().map(Known::from).collect()
}

/// What came of an import of `total` rows.
fn imported(imported: &Imported, total: usize) -> String {
    let rest = [
        (imported.banned, "banned now, as they are there"),
        (imported.stay_banned, "banned here, which holds"),
        (imported.refused, "this node, private, or without a place"),
    ];
    let rest = rest.into_iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("; {what}: {count}"));
    format!("{} of {total} peers were imported{}", imported.known, rest.collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_beginning_of_an_id_means_a_peer_if_no_other_one_begins_so() {
        let known: BTreeSet<PeerId> = (0..40).map(|byte| PeerId::ed25519([byte; 32])).collect();
        let id = PeerId::ed25519([7; 32]);
        assert_eq!(one_of(&id.short().parse().unwrap(), &known), Ok(id));
        let none = one_of(&PeerId::ed25519([77; 32]).short().parse().unwrap(), &known).unwrap_err();
        assert!(none.message.contains("write the whole id"), "{none}");
        let several = one_of(&PeerName::Prefix("a".into()), &known).unwrap_err();
        assert!(several.message.contains("write more of it"), "{several}");
    }

    #[test]
    fn an_import_tells_what_it_did_with_bans() {
        let mut came = Imported::default();
        (came.known, came.banned) = (5, 0);
        assert_eq!(imported(&came, 5), "5 of 5 peers were imported");
        (came.banned, came.stay_banned, came.refused) = (2, 1, 3);
        let expected = "5 of 11 peers were imported; banned now, as they are there: 2; banned here, which holds: 1; \
                        this node, private, or without a place: 3";
        assert_eq!(imported(&came, 11), expected);
    }
}
