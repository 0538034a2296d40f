//! What peers say on their control streams, and what they are told of this node.

use std::sync::Arc;

use byway_proto::hello::{Candidates, Control, Hello, agree};
use quinn::VarInt;
use tracing::{debug, warn};

use super::{Failure, Shell};
use crate::{
    agent::Command as AgentCommand,
    event::Event,
    gone::Gone,
    link::{Link, outbox::End, readers::UNKNOWN},
    protocol::OnFailure,
};

impl Shell {
    pub(super) async fn control(&mut self, link: &Arc<Link>, message: Control) {
        match message {
            Control::Hello(hello) => self.hello(link, hello),
            Control::Candidates(candidates) => self.candidates(link, candidates).await,
            // whoever acts on them shows the peer an address
            Control::NatReport(_) | Control::Punch(_) if self.core.config.relay_only => {}
            Control::NatReport(report) => {
                let alias = link.track.alias();
                self.core.agent.send(AgentCommand::Theirs { alias, report }).await;
            }
            Control::Punch(signal) => {
                let alias = link.track.alias();
                self.core.agent.send(AgentCommand::Signal { alias, signal }).await;
            }
            Control::Relays(relays) => {
                *link.relays() = Some(relays);
                self.core.relays.review(link.peer);
            }
            Control::Goodbye(_) => {} // the connection's own close says why
            other => debug!(peer = ?link.peer, ?other, "control message is not for a peer"),
        }
    }

    pub(super) fn failed(&self, failure: Failure) {
        let Failure { link, protocol, why, on_failure } = failure;
        let Some(protocol) = self.core.registry.by_id(protocol) else { return };
        warn!(peer = ?link.peer, protocol = protocol.name, why, "a protocol's task failed");
        let reason = Gone::Failed(protocol.name.clone());
        self.core.events.send(Event::ProtocolFailed { peer: link.peer, protocol: protocol.name.clone(), why });
        match on_failure {
            OnFailure::DropPeer => link.close(reason),
            OnFailure::DropProtocol => {
                let mut withdrawn = link.withdrawn();
                withdrawn.retain(|id| self.core.registry.by_id(*id).is_some()); // as many as are registered at most
                withdrawn.insert(protocol.id);
                drop(withdrawn);
                protocol.leave(&link, &reason, End::Reset(VarInt::from_u32(UNKNOWN)));
                link.control(&Control::Hello(self.core.hello_to(&link)));
                self.agree(&link);
            }
        }
    }

    /// A peer has registered or unregistered a protocol.
    fn hello(&self, link: &Arc<Link>, hello: Hello) {
        if hello.instance != link.hello().instance {
            return link.close(Gone::Misbehaved("its instance changed within a connection".into()));
        }
        *link.hello() = hello;
        self.agree(link);
    }

    pub(super) fn agree(&self, link: &Arc<Link>) {
        let theirs = link.hello().clone();
        match agree(&self.core.hello_to(link), &theirs) {
            Ok(agreed) => {
                self.core.registry.agreed(link, &agreed);
                link.agreed.set(agreed);
            }
            Err(refusal) => link.close(Gone::Refused(refusal)),
        }
    }

    /// Tells every peer what this node speaks, and where it may be reached, now.
    pub(super) fn announce(&mut self) {
        self.core.switch.next_edition();
        for link in self.core.switch.links() {
            link.control(&Control::Hello(self.core.hello_to(&link)));
            self.agree(&link);
            self.tell_candidates(&link);
        }
    }

    pub(super) fn tell_candidates(&mut self, link: &Link) {
        self.generation += 1;
        let addrs = self.core.addrs(link.track.knows_this_machine());
        if !addrs.is_empty() {
            link.control(&Control::Candidates(Candidates { addrs, generation: self.generation }));
        }
        if !self.core.config.relay_only {
            link.control(&Control::NatReport(self.core.agent.nat_report()));
        }
    }

    async fn candidates(&mut self, link: &Arc<Link>, candidates: Candidates) {
        let loopback = link.track.knows_this_machine();
        let addrs = candidates.addrs.into_iter().filter(|addr| self.core.may_probe(*addr, loopback)).collect();
        self.core.agent.send(AgentCommand::Candidates { alias: link.track.alias(), addrs }).await;
    }
}
