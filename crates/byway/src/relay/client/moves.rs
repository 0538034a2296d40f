//! Where the relay sees this node, as that changes.

use std::{net::SocketAddr, sync::Arc};

use byway_proto::{Instant, schedule::Bucket};

use super::{Client, Lost};
use crate::{agent::Command as AgentCommand, link::Link, net::wss::is_virtual, switch::Command as SwitchCommand};

/// How often per second a relay may see this node elsewhere, and how often at once: all peers are told each time. A line
/// that goes to and fro between two ways does so less often.
const RATE: (u64, u64) = (1, 16);

/// The moves of this node that one relay still may tell of.
#[derive(Debug)]
pub(super) struct Moves(Bucket);

impl Moves {
    pub(super) fn new(now: Instant) -> Self {
        Moves(Bucket::new(RATE.0, RATE.1, now))
    }

    /// Notes one more move; `false` if no node moves that often.
    fn are_credible(&mut self, now: Instant) -> bool {
        self.0.take(1, now)
    }
}

impl Client {
    /// The relay sees this node at another address now, perhaps of the other family.
    pub(super) async fn moved(
        &mut self,
        link: &Arc<Link>,
        addr: &mut SocketAddr,
        observed: SocketAddr,
    ) -> Result<(), Lost> {
        let old = std::mem::replace(addr, self.seen_from(link, *addr, observed));
        let seen_before = {
            let mut state = self.shared.lock();
            state.addr = Some(*addr);
            state.observed.replace(observed)
        };
        if old == *addr && seen_before == Some(observed) {
            return Ok(()); // it was asked again in a doubt, and there is nothing to tell
        }
        if !self.moves.are_credible(self.core.mux.now()) {
            let why = "it sees this node at another address every moment; use another relay".into();
            return Err(Lost { why, is_refused: true });
        }
        self.note_seen(*addr, observed).await;
        if old == *addr {
            self.core.switch.send(SwitchCommand::Announce).await;
            return Ok(());
        }
        self.core.mux.routes.remove_relay(old);
        self.settle(link, *addr).await;
        Ok(())
    }

    /// Notes where the relay sees this node. If that is another address than it was, the router has a new one, or is another.
    pub(super) async fn note_seen(&mut self, addr: SocketAddr, observed: SocketAddr) {
        let ip = observed.ip();
        if is_virtual(addr) {
            return; // a proxy's, perhaps
        }
        let before = self.seen.replace(ip).filter(|before| before.is_ipv4() == ip.is_ipv4());
        if before.is_some_and(|before| before != ip) {
            self.core.agent.send(AgentCommand::SeenElsewhere(ip)).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_relay_that_sees_the_node_elsewhere_every_moment_is_not_believed() {
        let mut moves = Moves::new(Instant::START);
        let at = |n: u32| Instant::START + Duration::from_millis(10) * n;
        let believed = (0..1_000).filter(|n| moves.are_credible(at(*n))).count() as u64;
        assert!((RATE.1..RATE.1 + 10).contains(&believed), "{believed} in ten seconds");
        assert!(moves.are_credible(at(1_200)), "a pause makes up for it");
    }
}
