//! The ways to peers that go through one relay.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use byway_proto::{
    PeerId,
    hello::{Control, OpenFailure},
    wire::relay_data::AllocId,
};
use tokio::time::Instant;

use super::Client;
use crate::{
    agent::Command as AgentCommand, dial, link::Link, net::routes::Via, relay::table::Wanted,
    switch::Command as SwitchCommand,
};

/// Peers that a node reaches through one relay, and as many that reach it.
const MAX_ALLOCATIONS: usize = 256;

/// The first and the longest pause before an allocation is opened again whose peer was not registered: it may be about to
/// register, or be gone for good.
const REOPEN: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(8));

/// A way to one peer through the relay.
pub(super) struct Allocation {
    pub(super) wanted: Wanted,
    /// To be opened again at this time.
    pub(super) reopen: Option<Instant>,
    /// The pause before that.
    pause: Duration,
}

impl Allocation {
    /// The relay is a new one: the peer may be about to register there.
    pub(super) fn hope(&mut self) {
        self.pause = REOPEN.0;
    }

    fn alias(&self) -> Option<SocketAddr> {
        self.wanted.track.upgrade().map(|track| track.alias())
    }
}

impl Client {
    /// Notes that a peer is to be reached; the allocation to open for it, unless there is one.
    pub(super) fn want(&mut self, wanted: Wanted) -> Option<AllocId> {
        let alias = wanted.track.upgrade()?.alias();
        if self.allocations.values().any(|allocation| allocation.alias() == Some(alias)) {
            return None;
        }
        if self.allocations.len() >= MAX_ALLOCATIONS {
            wanted.notes.add(format!("relay {:?} carries {MAX_ALLOCATIONS} connections already", self.relay.id));
            return None;
        }
        let id = AllocId(self.core.draw());
        self.allocations.insert(id, Allocation { wanted, reopen: None, pause: REOPEN.0 });
        self.shared.lock().users.insert(alias);
        Some(id)
    }

    /// Gives up what a connection has here.
    pub(super) fn release(&mut self, alias: SocketAddr) {
        self.guests.retain(|_, track| track.upgrade().is_some_and(|track| track.alias() != alias));
        self.allocations.retain(|_, allocation| allocation.alias().is_some_and(|known| known != alias));
        self.tell_users();
    }

    pub(super) fn forget_dead(&mut self) {
        self.guests.retain(|_, track| track.strong_count() > 0);
        let before = self.allocations.len();
        self.allocations.retain(|_, allocation| allocation.wanted.track.strong_count() > 0);
        if self.allocations.len() != before {
            self.tell_users();
        }
    }

    fn tell_users(&self) {
        self.shared.lock().users = self.allocations.values().filter_map(Allocation::alias).collect();
    }

    /// Opens an allocation; data may follow at once, for the relay holds it until the message is there.
    pub(super) async fn open(&mut self, link: &Link, addr: SocketAddr, id: AllocId) {
        let Some(allocation) = self.allocations.get_mut(&id) else { return };
        allocation.reopen = None;
        link.control(&Control::Open { alloc: id, peer: allocation.wanted.peer });
        self.core.mux.routes.opened(Via::Relay(addr, id));
        if let Some(track) = allocation.wanted.track.upgrade() {
            dial::add_route(&self.core, &track, Via::Relay(addr, id)).await;
        }
    }

    pub(super) async fn reopen(&mut self, link: &Link, addr: SocketAddr) {
        let now = Instant::now();
        let due: Vec<AllocId> =
            self.allocations.iter().filter(|(_, a)| a.reopen.is_some_and(|at| at <= now)).map(|(id, _)| *id).collect();
        for id in due {
            self.open(link, addr, id).await;
        }
    }

    /// The relay does not forward, or no longer.
    pub(super) async fn open_failed(&mut self, id: AllocId, peer: PeerId, reason: OpenFailure) {
        let Some(allocation) = self.allocations.get_mut(&id) else {
            return self.forgotten(id, peer).await;
        };
        allocation.wanted.notes.add(format!("relay {:?}: {reason}", self.relay.id));
        let pause = match reason {
            OpenFailure::Idle => REOPEN.0,
            // It may be for a rate that others use up.
            OpenFailure::NotRegistered | OpenFailure::TooMany => {
                let next = (allocation.pause * 2).min(REOPEN.1);
                std::mem::replace(&mut allocation.pause, next)
            }
            _ => return, // other reasons do not pass
        };
        allocation.reopen = Some(Instant::now() + pause);
    }

    /// An allocation that the peer opened is no more; if it still wants it, it opens it again.
    async fn forgotten(&mut self, id: AllocId, peer: PeerId) {
        self.guests.remove(&id);
        let (Some(link), Some(addr)) = (self.core.switch.link(peer), self.shared.lock().addr) else { return };
        let (alias, via) = (link.track.alias(), Via::Relay(addr, id));
        self.core.agent.send(AgentCommand::Leave { alias, via, for_good: true }).await;
    }

    /// The relay says that a peer was restarted, which ends the link to it. It is believed of those alone whose packets it
    /// carries: a peer may have named any relay, and that one any peer.
    pub(super) async fn anew(&self, id: AllocId, peer: PeerId, instance: u64) {
        let Some(link) = self.core.switch.link(peer) else { return };
        let is_own = self.allocations.get(&id).is_some_and(|own| own.alias() == Some(link.track.alias()));
        if is_own || link.track.is_carried_by(id) {
            self.core.switch.send(SwitchCommand::Anew { peer, instance }).await;
        }
    }

    /// A peer opened a way to this node; if they are connected already, it is one more. Of two that both sides opened, not
    /// knowing of each other's, the dialling side's is kept.
    pub(super) async fn opened(&mut self, id: AllocId, peer: PeerId) {
        let Some(addr) = self.shared.lock().addr else { return };
        self.core.mux.routes.opened(Via::Relay(addr, id));
        let Some(link) = self.core.switch.link(peer) else { return };
        let alias = link.track.alias();
        let own = self.allocations.iter().find(|(own, a)| **own != id && a.alias() == Some(alias)).map(|(own, _)| *own);
        if let Some(own) = own {
            if link.dialled {
                return;
            }
            self.release(alias);
            let via = Via::Relay(addr, own);
            self.core.agent.send(AgentCommand::Leave { alias, via, for_good: true }).await;
        }
        let (track, via) = (Arc::clone(&link.track), Via::Relay(addr, id));
        if self.guests.len() < MAX_ALLOCATIONS {
            self.guests.insert(id, Arc::downgrade(&track));
        }
        self.core.agent.send(AgentCommand::AddRoute { track, via }).await;
    }
}
