//! The owner's say about peers.

use std::sync::Arc;

use byway::{PeerAddr, PeerId, UnixTime, book::Record};

use super::{Daemon, attend::Report};
use crate::{
    control::{
        Event,
        event::book::{Known, PeersAsk},
    },
    failure::Failure,
};

/// Does what is asked, and tells what came of it.
pub(super) async fn run(daemon: Arc<Daemon>, ask: PeersAsk, report: Report) -> Result<(), Failure> {
    let node = &daemon.node;
    let id = |text: &str| text.parse::<PeerId>().map_err(Failure::usage);
    let what = match ask {
        PeersAsk::List | PeersAsk::Export => {
            let peers = node.known_peers().await.iter().map(Known::from).collect();
            report.tell(match ask {
                PeersAsk::List => Event::PeerList { peers },
                _ => Event::PeerBook { peers },
            });
            return Ok(());
        }
        PeersAsk::Add { peer } => {
            let addr: PeerAddr = peer.parse().map_err(Failure::usage)?;
            let short = addr.id.short();
            node.add_peer(addr.into()).await.map_err(Failure::usage)?;
            format!("{short} is in the address book")
        }
        PeersAsk::Ban { peer, until, why } => {
            let peer = id(&peer)?;
            if peer == node.id() {
                return Err(Failure::usage("that is this node itself; name a peer"));
            }
            node.ban(peer, until.map_or(UnixTime::NEVER, UnixTime), why).await.map_err(Failure::here)?;
            format!("{} is banned", peer.short())
        }
        PeersAsk::Unban { peer } => {
            let peer = id(&peer)?;
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
            let taken = node.import_peers(records).await.map_err(Failure::here)?;
            format!("{taken} of {total} peers were imported; the others are this node, private, or found no place")
        }
    };
    report.tell(Event::PeersChanged { message: what });
    Ok(())
}
