//! What peers say on their control streams, and what they are told of this node.

use std::sync::Arc;

use byway_proto::hello::{Candidates, Control, Hello, agree};
use tracing::debug;

use super::{Failure, Shell};
use crate::{
    agent::Command as AgentCommand,
    gone::Gone,
    link::Link,
    protocol::{Failed, OnFailure, UNSPOKEN},
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
        let reason = Gone::Failed(protocol.name.clone());
        match on_failure {
            OnFailure::DropPeer => {
                self.core.tell_failure(link.peer, &protocol.name, why);
                link.close(reason);
            }
            OnFailure::DropProtocol => {
                let left = protocol.leave(&link, &reason, UNSPOKEN);
                let again = left.err().map(|why| (Arc::clone(&protocol), why));
                self.withdraw(&link, [(protocol, why)].into_iter().chain(again).collect());
                self.agree(&link);
            }
        }
    }

    /// Takes protocols that failed with a peer back for as long as the link lasts; what both speak is to be agreed anew then.
    pub(super) fn withdraw(&self, link: &Link, failed: Vec<Failed>) {
        let mut withdrawn = link.withdrawn();
        withdrawn.retain(|id| self.core.registry.by_id(*id).is_some()); // as many as are registered at most
        withdrawn.extend(failed.iter().map(|(protocol, _)| protocol.id));
        drop(withdrawn);
        for (protocol, why) in failed {
            self.core.tell_failure(link.peer, &protocol.name, why);
        }
        link.control(&Control::Hello(self.core.hello_to(link)));
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
        // A task's failure, or a hello, may be heard of after the end of its link, and makes nobody a member of anything.
        if !self.core.switch.link(link.peer).is_some_and(|known| Arc::ptr_eq(&known, link)) {
            return;
        }
        let theirs = link.hello().clone();
        // It comes to an end: what has failed is withdrawn, and fails no more.
        loop {
            let agreed = match agree(&self.core.hello_to(link), &theirs) {
                Ok(agreed) => agreed,
                Err(refusal) => return link.close(Gone::Refused(refusal)),
            };
            let failed = self.core.registry.agreed(link, &agreed);
            link.agreed.set(agreed);
            if failed.is_empty() {
                return;
            }
            self.withdraw(link, failed);
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
