//! Which relays the links to peers go by, as the agreement of both sides' relays changes.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use byway_proto::{
    Instant, PeerAddr, PeerId,
    addr::{HostAddr, candidate::is_probeable},
    relay::{Opener, ways},
};

use super::table::Wanted;
use crate::{agent::Command as AgentCommand, core::Core, event::PathKind, link::Link};

/// How long a relay that a link leaves may still bring the peer's datagrams: it leaves at about the same time.
const LEAVE: Duration = Duration::from_secs(1);

/// The first and the longest pause before a link is looked at again whose new relays do not carry it yet.
const AGAIN: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(16));

/// The links that are on the move from one relay to another; at most one entry a link, and a few a relay that it leaves.
#[derive(Debug, Default)]
pub(super) struct Links {
    /// Links that wait for their new relays, since when to look again, and the pause before.
    waiting: BTreeMap<PeerId, (Instant, Duration)>,
    /// Relays that links leave, and when that ends.
    leaving: BTreeMap<(PeerId, PeerId), Instant>,
}

impl Links {
    /// Looks at all links that are due, and says when to look again.
    pub(super) async fn review(&mut self, core: &Arc<Core>, mut due: BTreeSet<PeerId>) -> Option<Instant> {
        let now = core.mux.now();
        due.extend(self.waiting.iter().filter(|(_, (at, _))| *at <= now).map(|(peer, _)| *peer));
        due.extend(self.leaving.iter().filter(|(_, at)| **at <= now).map(|((peer, _), _)| *peer));
        for peer in due {
            match core.switch.link(peer) {
                Some(link) if self.review_link(core, &link).await => {
                    let pause = self.waiting.get(&peer).map_or(AGAIN.0, |(_, pause)| (*pause * 2).min(AGAIN.1));
                    self.waiting.insert(peer, (now + pause, pause));
                }
                Some(_) => drop(self.waiting.remove(&peer)),
                None => {
                    self.waiting.remove(&peer);
                    self.leaving.retain(|(left, _), _| *left != peer);
                }
            }
        }
        let waiting = self.waiting.values().map(|(at, _)| *at);
        waiting.chain(self.leaving.values().copied()).min()
    }

    /// Opens the relays that a link should go by and leaves the others once it can; `true` if it cannot yet.
    async fn review_link(&mut self, core: &Arc<Core>, link: &Arc<Link>) -> bool {
        let Some(told) = link.relays().clone() else { return false };
        let loopback = link.track.knows_this_machine();
        let told: Vec<PeerAddr> = told.into_iter().filter_map(|relay| usable(relay, loopback)).collect();
        let ours: Vec<PeerId> = core.relays.registered().iter().map(|relay| relay.id).collect();
        let living = told.iter().map(|relay| relay.id).filter(|relay| *relay != core.id());
        let theirs: Vec<PeerId> = living.filter(|relay| !core.relays.is_failing(*relay)).collect();
        let wanted = ways(&ours, &theirs, link.dialled);
        let used = core.relays.of_track(&link.track);
        for (relay, _) in wanted.iter().filter(|(_, opener)| *opener == Opener::Us) {
            if !used.iter().any(|(id, _)| id == relay)
                && let Some(relay) = told.iter().find(|told| told.id == *relay)
            {
                let track = Arc::downgrade(&link.track);
                let wanted = Wanted { peer: link.peer, track, notes: Arc::default() };
                core.relays.open_spare(core, relay, wanted, loopback);
            }
        }
        let is_wanted = |relay: &PeerId| wanted.iter().any(|(id, _)| id == relay);
        self.leaving.retain(|(peer, relay), _| *peer != link.peer || !is_wanted(relay));
        let surplus: Vec<_> = used.into_iter().filter(|(relay, _)| !is_wanted(relay)).collect();
        if surplus.is_empty() || wanted.is_empty() {
            return false; // with nothing better known, a relay that is silent may still come back
        }
        let addrs: Vec<SocketAddr> = surplus.iter().filter_map(|(_, addr)| *addr).collect();
        let routes = core.agent.report(link.track.alias()).await;
        let stays = |path: PathKind, remote| path == PathKind::Direct || !addrs.contains(&remote);
        if !routes.iter().any(|route| route.proven && route.alive && stays(route.path, route.remote)) {
            return true;
        }
        for (relay, addr) in surplus {
            self.leave(core, link, relay, addr).await;
        }
        false
    }

    /// Sends nothing by a relay any more, and a while later takes nothing that comes by it either.
    async fn leave(&mut self, core: &Core, link: &Link, relay: PeerId, addr: Option<SocketAddr>) {
        let now = core.mux.now();
        let alias = link.track.alias();
        let key = (link.peer, relay);
        let at = *self.leaving.entry(key).or_insert(now + LEAVE);
        let vias = link.track.vias().into_iter().filter(|via| via.is_relay() && Some(via.remote()) == addr);
        for via in vias {
            let (alias, for_good) = (alias, at <= now);
            core.agent.send(AgentCommand::Leave { alias, via, for_good }).await;
        }
        if at <= now {
            self.leaving.remove(&key);
            core.relays.release_at(relay, alias);
        }
    }
}

/// A relay that a peer told, with the addresses that a peer may have this node send to; names are judged when they are known.
fn usable(mut relay: PeerAddr, loopback: bool) -> Option<PeerAddr> {
    relay.addrs.retain(|addr| match addr {
        HostAddr::Socket(addr) => is_probeable(*addr, loopback).is_ok(),
        HostAddr::Name(..) | HostAddr::Wss(..) => true,
    });
    (!relay.addrs.is_empty()).then_some(relay)
}
