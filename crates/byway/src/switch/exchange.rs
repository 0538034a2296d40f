//! Peer exchange on a running node: the protocol [`NAME`], between the machine of `byway_proto::pex` and the address book.

use std::{sync::Arc, time::Duration};

use byway_proto::{
    PeerId,
    addr::{HostAddr, MAX_ADDRS},
    book::Contact,
    pex::{Input, MAX_PEX_MESSAGE, Message, Output, Pex, PexConfig},
    schedule::Class,
};
use tokio::time;
use tracing::debug;

use super::Command;
use crate::{
    core::Core,
    gone::Gone,
    protocol::{Channel, PeerEvent, Peers, Protocol, Receiver, Sender, To},
};

/// The protocol's name in a hello.
pub(crate) const NAME: &str = "byway.pex";

/// Messages of one peer that may wait: an introduction, a question and an answer, and as many again.
const QUEUE: usize = 8;

/// A book with fewer peers wants more.
const HUNGRY: usize = 1_000;

/// How often the node's own addresses are looked at.
const LOOK: Duration = Duration::from_secs(10);

/// What the exchange needs to run.
pub(crate) struct Exchange {
    peers: Peers,
    tx: Sender,
    rx: Receiver,
    machine: Pex,
}

impl Exchange {
    /// Registers the protocol; before the first peer is connected.
    pub(crate) fn new(core: &Core, seed: &[u8; 32]) -> Option<Self> {
        let mut protocol = Protocol::new(NAME, 1..=1);
        let channel = Channel::new(1).share(Class::Bulk, 1).queue(QUEUE).max_message(MAX_PEX_MESSAGE);
        let (tx, rx) = protocol.channel(channel);
        let registered = core.registry.register(protocol).ok()?; // nobody else takes a name that begins with the crate's
        let peers = Peers::new(registered, Arc::clone(&core.registry), core.tasks.clone(), core.switch.clone());
        let mut config = PexConfig::default();
        config.seed = core.config.peers.seed;
        Some(Exchange { peers, tx, rx, machine: Pex::new(config, seed, core.mux.now()) })
    }

    /// Converses with all peers until the node is closed.
    pub(crate) async fn run(mut self, core: Arc<Core>) {
        let mut look = time::interval(LOOK);
        loop {
            let due = self.machine.poll_timeout().map(|(at, _)| core.mux.clock.at(at));
            tokio::select! {
                biased;
                () = core.tasks.stopped() => return,
                () = time::sleep_until(due.unwrap_or_else(time::Instant::now)), if due.is_some() => {
                    self.feed(&core, Input::Timeout).await;
                }
                _ = look.tick() => {
                    let own = own(&core);
                    self.feed(&core, Input::Own(own)).await;
                }
                event = self.peers.next() => match event {
                    Some(PeerEvent::Up { peer, .. }) => self.feed(&core, Input::Up { peer }).await,
                    Some(PeerEvent::Down { peer, .. }) => self.feed(&core, Input::Down { peer }).await,
                    None => return,
                },
                message = self.rx.recv() => {
                    let Some((peer, bytes)) = message else { return };
                    self.feed(&core, Input::Received { peer, bytes: &bytes }).await;
                }
            }
        }
    }

    async fn feed(&mut self, core: &Core, input: Input<'_>) {
        self.machine.handle_input(input, core.mux.now());
        let mut known = None;
        while let Some(output) = self.machine.poll_output() {
            match output {
                Output::Send { peer, bytes } => self.send(peer, bytes),
                Output::Answer { peer } => {
                    let told = core.switch.ask(|reply| Command::Tell { asker: peer, reply }).await;
                    self.send(peer, Message::Tell(told.unwrap_or_default()).to_bytes());
                }
                Output::Heard { peer, contacts } => {
                    known = core.switch.ask(|reply| Command::Heard { peer, contacts, reply }).await;
                }
                Output::Misbehaved { peer, fault } => {
                    if let Some(link) = core.switch.link(peer) {
                        link.close(Gone::Misbehaved(fault.to_string()));
                    }
                }
                Output::HangUp { peer } => core.switch.send(Command::Disconnect(peer)).await,
                other => debug!(?other, "peer exchange asks for what this version does not know"),
            }
        }
        if let Some(known) = known {
            self.machine.handle_input(Input::Hungry(known < HUNGRY), core.mux.now());
        }
    }

    /// A peer that does not read misses what is said to it, and is asked or told again.
    fn send(&self, peer: PeerId, bytes: Vec<u8>) {
        if self.tx.send(&To::Peer(peer), bytes.into()).queued == 0 {
            debug!(?peer, "message of peer exchange not sent");
        }
    }
}

/// Where others may send peers to; nobody is sent to a node that answers no strangers.
fn own(core: &Core) -> Option<Contact> {
    if !core.config.accept {
        return None;
    }
    let mut own = Contact::new(core.id());
    own.addrs = core.addrs(core.config.peers.local).into_iter().take(MAX_ADDRS).map(HostAddr::from).collect();
    own.relays = core.relays.promised();
    Some(own)
}
