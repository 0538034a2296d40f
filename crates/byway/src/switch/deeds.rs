//! Carrying out what the machine says.

use std::{pin::pin, sync::Arc, time::Duration};

use byway_proto::{
    addr::HostAddr,
    book::Contact,
    hello::Control,
    switch::{By, Cause, Close, DialId, FILTER_DEADLINE, KnockId, LinkId, Output},
};
use tokio::time;
use tracing::{debug, info};

use super::{Candidate, Command, Shell, SwitchRef, dials::Asker, reason};
use crate::{
    core::Core,
    dial::{self, DialError, MAX_DIAL_ADDRS, Target},
    event::Event,
    gone::Gone,
    link::{Link, establish::Introduced, readers, writer},
};

/// How long a dial that was refused as a duplicate waits for the other side's connection.
const DUPLICATE_WAIT: Duration = Duration::from_secs(5);

/// How long the names of one peer may take to resolve before it is dialled without them.
const RESOLVE: Duration = Duration::from_secs(5);

impl Shell {
    pub(super) fn carry_out(&mut self, output: Output) {
        match output {
            Output::Dial { dial, contact, cause } => self.begin(dial, contact, cause),
            Output::GoOn { dial, goes_on } => Asker::tell(&mut self.going, dial, goes_on),
            Output::Connected { peer } => self.answer(peer, &Ok(peer)),
            Output::NotDialled { peer, why } => self.answer(peer, &Err(reason::not_dialled(peer, why))),
            Output::Ask { knock, .. } => self.ask(knock),
            Output::Admit { knock } => {
                let told = self.doors.remove(&knock).is_some_and(|door| door.reply.send(Ok(knock)).is_ok());
                if !told {
                    // It has gone meanwhile. The machine is in the middle of its say: tell it afterwards.
                    self.later(Command::KnockOver(knock));
                }
            }
            Output::TurnAway { knock, why } => {
                debug!(%why, "stranger turned away");
                self.coming.remove(&knock);
                if let Some(door) = self.doors.remove(&knock) {
                    let _ = door.reply.send(Err(reason::gone(why))); // it may have gone meanwhile
                }
            }
            Output::Init { link } => self.init(link),
            Output::Added { link } => self.added(link),
            Output::Reject { link, why } => self.reject(link, why),
            Output::Close { link, why } => {
                if let Some(link) = self.links.get(&link) {
                    link.close(reason::gone(why));
                }
            }
            Output::Removed { link, why } => self.removed(link, why),
            other => debug!(?other, "the switch asks for what this version does not know"),
        }
    }

    fn begin(&mut self, dial: DialId, contact: Contact, cause: Cause) {
        debug!(peer = ?contact.peer, ?cause, "dialling");
        self.waiting.entry(contact.peer).or_default().dial = Some(dial); // somebody may join it later
        let core = Arc::clone(&self.core);
        core.switch.dials().begin(dial);
        self.core.tasks.spawn(async move {
            let target = resolve(&core, contact).await;
            let peer = target.peer;
            let error = match dial::dial(&core, target, core.switch.goes_on(dial)).await {
                Ok(established) => return core.switch.up(established, By::Dial(dial)).await,
                Err(error) => error,
            };
            if let DialError::Hello { reason: Gone::Duplicate, .. } = &error {
                time::sleep(DUPLICATE_WAIT).await;
            }
            debug!(?peer, %error, "dial failed");
            core.switch.send(Command::DialFailed { dial, error }).await;
        });
    }

    fn ask(&mut self, knock: KnockId) {
        let (Some(door), Some(filter)) = (self.doors.get(&knock), self.core.config.filter.clone()) else {
            return self.later(Command::Filtered { knock, verdict: Ok(()) });
        };
        let wss = self.core.mux.sockets.wss();
        let straight = self.links.values().filter_map(|link| link.track.via()).filter(|via| !via.is_relay());
        let linked = straight.map(|via| wss.behind(via.remote()));
        let before = self.coming.range(..knock).map(|(_, (remote, _))| *remote);
        let connected = linked.chain(before).collect();
        let candidate = Candidate {
            peer: door.knock.peer,
            remote: door.knock.via.map(|via| self.core.mux.sockets.wss().behind(via.remote())),
            relayed: door.knock.via.is_some_and(|via| via.is_relay()),
            connected,
        };
        let switch = self.core.switch.clone();
        self.core.tasks.spawn(async move {
            // The machine has its own clock for it; this only ends the task.
            if let Ok(verdict) = time::timeout(FILTER_DEADLINE, filter.judge(candidate)).await {
                switch.send(Command::Filtered { knock, verdict }).await;
            }
        });
    }

    /// Sends the switch a request of its own.
    fn later(&self, command: Command) {
        let switch = self.core.switch.clone();
        self.core.tasks.spawn(async move { switch.send(command).await });
    }

    fn init(&mut self, id: LinkId) {
        let Some((_, established)) = self.offered.take() else { return };
        let (link, core) = (Arc::clone(&established.link), Arc::clone(&self.core));
        self.links.insert(id, Arc::clone(&link));
        link.limit(&core.config.link, &core.registry.spool, core.mux.clock);
        core.switch.set_link(&link);
        // Before the first message can come in, so that each protocol's state of the peer is there.
        let agreed = link.agreed.read().clone();
        let failed = core.registry.agreed(&link, &agreed);
        if !failed.is_empty() {
            self.withdraw(&link, failed);
            self.agree(&link);
        }
        self.introduced = established.introduced;
        let evict_after = core.config.link.evict_after;
        core.tasks.spawn(writer::run(Arc::clone(&link), Arc::clone(&core.mux), evict_after));
        let scope = core.scope(self.control.clone());
        let switch = core.switch.clone();
        core.tasks.spawn(async move {
            let mut reading = pin!(readers::run(Arc::clone(&link), established.recv, established.codec, scope));
            loop {
                tokio::select! {
                    biased;
                    () = &mut reading => break,
                    () = link.track.moved.notified() => switch.send(Command::Moved(Arc::clone(&link))).await,
                }
            }
            let reason = link.ended().await;
            switch.send(Command::Ended { link, reason }).await;
        });
    }

    fn added(&mut self, id: LinkId) {
        let Some(link) = self.links.get(&id).cloned() else { return };
        let (core, peer) = (Arc::clone(&self.core), link.peer);
        info!(peer = ?peer, dialled = link.dialled, "peer connected");
        core.events.send(Event::PeerUp { peer });
        let Introduced { protocols, edition, rest } = std::mem::take(&mut self.introduced);
        if protocols != core.registry.announced() {
            link.control(&Control::Hello(core.hello_to(&link))); // a protocol came or went during the handshake
            self.agree(&link);
        }
        if edition == core.switch.edition() {
            for message in &rest {
                link.control(message);
            }
        } else {
            self.tell_candidates(&link); // something of it changed during the handshake
            link.control(&Control::Relays(core.relays.registered()));
        }
        self.answer(peer, &Ok(peer));
    }

    fn reject(&mut self, _: LinkId, why: Close) {
        let Some((_, established)) = self.offered.take() else { return };
        let link = established.link;
        debug!(peer = ?link.peer, %why, "link not taken in");
        let reason = reason::gone(why);
        link.close(reason.clone());
        self.core.retire(&link.track);
        if self.core.switch.link(link.peer).is_none() {
            self.answer(link.peer, &Err(DialError::Hello { peer: link.peer, reason }));
        }
    }

    fn removed(&mut self, id: LinkId, why: Option<Close>) {
        let ended = self.ended.take();
        let Some(link) = self.links.remove(&id) else { return };
        let reason = why.map(reason::gone).or(ended).unwrap_or(Gone::Closed);
        self.core.switch.forget_link(&link);
        info!(peer = ?link.peer, %reason, "peer gone");
        link.outbox.close();
        for (protocol, why) in self.core.registry.gone(&link, &reason) {
            self.core.tell_failure(link.peer, &protocol.name, why);
        }
        self.core.events.send(Event::PeerDown { peer: link.peer, reason });
        self.core.retire(&link.track);
    }
}

/// A target with the names resolved that resolve in time; what they stood for the last time is not remembered.
async fn resolve(core: &Core, contact: Contact) -> Target {
    let mut target = Target::from(contact.peer);
    target.relays = contact.relays;
    let names = contact.addrs.iter().filter_map(|addr| match addr {
        HostAddr::Name(name, port) => Some((name, *port)),
        _ => None,
    });
    target.addrs.extend(contact.addrs.iter().filter_map(HostAddr::socket_addr));
    let deadline = time::Instant::now() + RESOLVE;
    for (name, port) in names {
        match time::timeout_at(deadline, core.net.resolve(name, port)).await {
            Ok(Ok(addrs)) => target.addrs.extend(addrs.into_iter().take(MAX_DIAL_ADDRS)),
            Ok(Err(error)) => debug!(%error, "a peer's name does not resolve"),
            Err(_) => debug!("a peer's name does not resolve in time"),
        }
    }
    target
}

impl SwitchRef {
    fn set_link(&self, link: &Arc<Link>) {
        self.table().insert(link.peer, Arc::clone(link));
    }

    fn forget_link(&self, link: &Arc<Link>) {
        let mut links = self.table();
        if links.get(&link.peer).is_some_and(|known| Arc::ptr_eq(known, link)) {
            links.remove(&link.peer);
        }
    }
}

impl From<Target> for Contact {
    fn from(target: Target) -> Self {
        let addrs = target.addrs.into_iter().map(HostAddr::from).collect();
        Contact { peer: target.peer, addrs, relays: target.relays }
    }
}
