//! Peer exchange: one conversation about addresses with each connected peer.
//!
//! A peer says where it is itself to be found ([`Message::Own`], once, and again when that changes), asks
//! ([`Message::Ask`]) and is told ([`Message::Tell`]). The rules are made so that no honest node breaks one: who asks too
//! early gets no answer, a list that nobody asked for, or that comes late, is not read, and neither costs anybody the
//! connection. Only what no correct peer sends does: see [`PexFault`].
//!
//! The machine knows no addresses; [`Book`](crate::book::Book) does. A *seed* has no other business than this: it asks whomever it
//! reaches, answers who reaches it, and hangs up.

mod message;
#[cfg(test)]
mod tests;

use alloc::{
    collections::{BTreeMap, VecDeque},
    vec::Vec,
};
use core::time::Duration;

pub use message::{MAX_PEX_MESSAGE, Message, PexFault};

use crate::{Instant, PeerId, Rng, book::Contact, schedule::Bucket};

/// Conversations at one time: more than a node has peers.
pub const MAX_PEX_PEERS: usize = 4_096;

/// How long an answer may take; a late one is not read.
pub const ANSWER_DUE: Duration = Duration::from_secs(30);

/// Time between two questions to one peer. Its budget for us refills in half of that.
pub const ASK_AGAIN: Duration = Duration::from_secs(60);

/// Time between two questions, to whichever peer, while the book wants more.
pub const ASK_HUNGRY: Duration = Duration::from_secs(5);

/// Time between two questions while the book is well filled: addresses age over hours.
pub const ASK_FED: Duration = Duration::from_secs(600);

/// Questions of one peer that are answered at once: reconnects and a change of version count as one conversation to nobody.
pub const ANSWER_BURST: u64 = 3;

/// Time in which one more question of a peer is answered.
pub const ANSWER_EVERY: Duration = Duration::from_secs(30);

/// Times that a peer may say at once where it is.
pub const OWN_BURST: u64 = 3;

/// Time in which a peer may say once more where it is: nodes look at their addresses every ten seconds, and what a peer says
/// costs a look into the book.
pub const OWN_EVERY: Duration = Duration::from_secs(5);

/// How long a seed lets its answer travel before it hangs up.
pub const SEED_LINGER: Duration = Duration::from_secs(3);

/// How long a seed keeps a peer that neither asks nor answers.
pub const SEED_STAY: Duration = Duration::from_secs(60);

/// How a node exchanges peers.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct PexConfig {
    /// Answer, ask, and hang up: a node whose only purpose is to name others.
    pub seed: bool,
}

/// What happens to the machine.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Input<'a> {
    /// A peer that speaks the protocol is connected.
    Up {
        /// The peer.
        peer: PeerId,
    },
    /// It no longer is.
    Down {
        /// The peer.
        peer: PeerId,
    },
    /// It sent a message.
    Received {
        /// The peer.
        peer: PeerId,
        /// The message.
        bytes: &'a [u8],
    },
    /// Where this node may be reached, for peers to tell others; `None` if they shall not.
    Own(Option<Contact>),
    /// Whether the book wants more peers than it has.
    Hungry(bool),
    /// The time that [`Pex::poll_timeout`] named has come.
    Timeout,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Output {
    /// Send this.
    Send {
        /// To whom.
        peer: PeerId,
        /// The message, at most [`MAX_PEX_MESSAGE`] bytes.
        bytes: Vec<u8>,
    },
    /// Choose what to tell this peer, and send it as a [`Message::Tell`].
    Answer {
        /// The peer that asked.
        peer: PeerId,
    },
    /// Peers that this one named; itself among them, if it said where it is.
    Heard {
        /// Who said it.
        peer: PeerId,
        /// What it said.
        contacts: Vec<Contact>,
    },
    /// The peer broke the protocol: close the connection.
    Misbehaved {
        /// The peer.
        peer: PeerId,
        /// What it did.
        fault: PexFault,
    },
    /// This seed is done with the peer.
    HangUp {
        /// The peer.
        peer: PeerId,
    },
}

/// The conversations of one node.
#[derive(Debug)]
pub struct Pex {
    config: PexConfig,
    rng: Rng,
    own: Option<Contact>,
    hungry: bool,
    peers: BTreeMap<PeerId, Talk>,
    next_ask: Instant,
    outputs: VecDeque<Output>,
}

#[derive(Debug)]
struct Talk {
    /// When this node may ask again.
    ask_at: Instant,
    /// Until when an answer is read.
    due: Option<Instant>,
    answers: Bucket,
    /// What it says of itself.
    owns: Bucket,
    /// When a seed hangs up.
    hang_up: Option<Instant>,
}

impl Pex {
    /// A machine without conversations.
    pub fn new(config: PexConfig, seed: &[u8; 32], now: Instant) -> Self {
        Pex {
            config,
            rng: Rng::new(seed, "pex"),
            own: None,
            hungry: true,
            peers: BTreeMap::new(),
            next_ask: now,
            outputs: VecDeque::new(),
        }
    }

    /// Takes in what happened; drain [`Pex::poll_output`] to `None` after every input.
    pub fn handle_input(&mut self, input: Input<'_>, now: Instant) {
        match input {
            Input::Up { peer } => self.up(peer, now),
            Input::Down { peer } => drop(self.peers.remove(&peer)),
            Input::Received { peer, bytes } => self.received(peer, bytes, now),
            Input::Own(own) => self.set_own(own),
            Input::Hungry(hungry) if hungry && !self.hungry => {
                (self.hungry, self.next_ask) = (true, now);
            }
            Input::Hungry(hungry) => self.hungry = hungry,
            Input::Timeout => {}
        }
        self.on_time(now);
    }

    /// The next thing to do.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When the machine wants [`Input::Timeout`], and why.
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        let first = self.peers.values().map(|talk| talk.ask_at).min();
        let ask = first.map(|first| (first.max(self.next_ask), "question"));
        let hang_up = self.peers.values().filter_map(|talk| talk.hang_up).min().map(|at| (at, "seed hangs up"));
        ask.into_iter().chain(hang_up).min()
    }

    /// Conversations under way.
    pub fn len(&self) -> usize {
        self.peers.len()
    }

    /// Whether there is no conversation.
    pub fn is_empty(&self) -> bool {
        self.peers.is_empty()
    }

    fn up(&mut self, peer: PeerId, now: Instant) {
        if self.peers.len() >= MAX_PEX_PEERS {
            return;
        }
        let answers = Bucket::new(1, ANSWER_BURST * ANSWER_EVERY.as_secs(), now);
        let owns = Bucket::new(1, OWN_BURST * OWN_EVERY.as_secs(), now);
        let hang_up = self.config.seed.then_some(now + SEED_STAY);
        self.peers.insert(peer, Talk { ask_at: now, due: None, answers, owns, hang_up });
        self.introduce(peer);
    }

    fn set_own(&mut self, own: Option<Contact>) {
        if own != self.own {
            self.own = own;
            let peers: Vec<_> = self.peers.keys().copied().collect();
            peers.into_iter().for_each(|peer| self.introduce(peer));
        }
    }

    fn introduce(&mut self, peer: PeerId) {
        if let Some(own) = &self.own {
            self.outputs.push_back(Output::Send { peer, bytes: Message::Own(own.clone()).to_bytes() });
        }
    }

    fn received(&mut self, peer: PeerId, bytes: &[u8], now: Instant) {
        let Some(talk) = self.peers.get_mut(&peer) else { return };
        match Message::from_bytes(bytes, peer) {
            Ok(Some(Message::Ask)) => {
                if talk.answers.take(ANSWER_EVERY.as_secs(), now) {
                    self.outputs.push_back(Output::Answer { peer });
                    if self.config.seed {
                        talk.hang_up = Some(now + SEED_LINGER);
                    }
                }
            }
            Ok(Some(Message::Tell(contacts))) => {
                if talk.due.take().is_some_and(|due| now <= due) {
                    self.outputs.push_back(Output::Heard { peer, contacts });
                    if self.config.seed {
                        talk.hang_up = talk.hang_up.map(|at| at.min(now + SEED_LINGER));
                    }
                }
            }
            Ok(Some(Message::Own(contact))) if talk.owns.take(OWN_EVERY.as_secs(), now) => {
                self.outputs.push_back(Output::Heard { peer, contacts: [contact].into() });
            }
            Ok(Some(Message::Own(_))) => {} // it says so far too often
            Ok(None) => {}                  // of a later version
            Err(fault) => {
                self.peers.remove(&peer);
                self.outputs.push_back(Output::Misbehaved { peer, fault });
            }
        }
    }

    fn on_time(&mut self, now: Instant) {
        let over = |(_, talk): &(&PeerId, &Talk)| talk.hang_up.is_some_and(|at| at <= now);
        let over: Vec<_> = self.peers.iter().filter(over).map(|(peer, _)| *peer).collect();
        for peer in over {
            self.peers.remove(&peer);
            self.outputs.push_back(Output::HangUp { peer });
        }
        if self.next_ask > now {
            return;
        }
        // A seed asks everybody, for it will not keep them; others ask one at a time.
        let ready: Vec<_> = self.peers.iter().filter(|(_, it)| it.ask_at <= now).map(|(peer, _)| *peer).collect();
        if self.config.seed {
            ready.into_iter().for_each(|peer| self.ask(peer, now));
        } else if let Some(peer) = ready.get(self.rng.below(ready.len() as u64) as usize).copied() {
            self.ask(peer, now);
            self.next_ask = now + if self.hungry { ASK_HUNGRY } else { ASK_FED };
        }
    }

    fn ask(&mut self, peer: PeerId, now: Instant) {
        if let Some(talk) = self.peers.get_mut(&peer) {
            talk.due = Some(now + ANSWER_DUE);
            talk.ask_at = now + ASK_AGAIN;
            self.outputs.push_back(Output::Send { peer, bytes: Message::Ask.to_bytes() });
        }
    }
}
