//! The protocol `bench`, in which two nodes measure the line between them, and its answering side.
//!
//! The words travel on an interactive channel, the load on a bulk channel beside it. Words: [`Word`] as JSON, at most
//! [`MAX_WORD`] bytes. Only one measurement is answered at a time, for [`MAX_SECONDS`] a direction at most, and only to peers
//! that hold a ticket.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use byway::{Channel, Class, DEFAULT_WEIGHT, Node, PeerId, PeersHandle, Protocol, Receiver, RegisterError, Sender, To};
use serde::{Deserialize, Serialize};
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{self, Instant},
};

use crate::store::Secret;

/// The longest measurement of one direction: a guest must not occupy a line for longer.
pub(crate) const MAX_SECONDS: u64 = 60;

/// How long the answering side is reserved for one peer that does not say goodbye: both directions, and the rest.
const RESERVED: Duration = Duration::from_secs(4 * MAX_SECONDS);

/// From one echo to the next: two hundred make a percentile in a few seconds.
pub(crate) const ECHO_INTERVAL: Duration = Duration::from_millis(20);

/// Echoes under way; one that takes 20 s is lost.
const MAX_ECHOES: usize = 1_000;

/// One message of the load: large enough that framing costs nothing, small beside any line's window.
const BLOCK: usize = 16 << 10;

/// Bytes of the load that wait on this side of the line: what is not needed to fill it only delays the end.
const QUEUE: usize = 1 << 20;

/// The longest word in bytes; none comes near it.
const MAX_WORD: usize = 1_024;

/// Words that wait for the measuring side: echoes, the most frequent of them, come fifty times a second.
const WORDS: usize = 256;

/// What the two sides say to each other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Word {
    /// Say `Echoed` at once.
    Echo(u64),
    Echoed(u64),
    /// I want to measure, and hold this ticket: answer with `Ready` or `Refused`.
    Ask(Option<Claim>),
    Ready,
    Refused(String),
    /// What I send is to be counted from now on: answer with `Ready`, for the load takes another channel.
    Up,
    /// Send to me for so many seconds.
    Down(u64),
    /// I have sent so many bytes.
    Sent(u64),
    /// All of them have come.
    Received(u64),
    /// I measure no more.
    Bye,
}

/// What makes a stranger known: the ticket of a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Claim {
    pub(crate) service: String,
    pub(crate) secret: Secret,
}

/// The node's end of the protocol.
pub(crate) struct Bench {
    words: Sender,
    load: Sender,
    peers: PeersHandle,
    shared: Arc<Shared>,
}

/// What the measuring and the answering side share, for one receiver has the words of both.
#[derive(Debug, Default)]
struct Shared {
    /// Whom this node measures, and who takes what it says.
    asking: Mutex<Option<(PeerId, mpsc::Sender<Word>)>>,
    /// Load that came from that peer.
    received: AtomicU64,
}

/// Answers measurements until the node is closed.
pub(crate) struct Answers {
    words: (Sender, Receiver),
    load: (Sender, Receiver),
    shared: Arc<Shared>,
    guest: Option<Guest>,
    sending: JoinSet<()>,
}

/// The peer that measures this node.
struct Guest {
    peer: PeerId,
    until: Instant,
    received: u64,
    /// How much it says that it has sent.
    sent: Option<u64>,
}

/// A measurement of one peer, which ends when this is dropped.
pub(crate) struct Measurement<'a> {
    bench: &'a Bench,
    peer: PeerId,
    words: mpsc::Receiver<Word>,
    /// Echoes under way.
    echoes: VecDeque<(u64, Instant)>,
    next: u64,
    took: Vec<Duration>,
}

/// Registers the protocol.
pub(crate) fn register(node: &Node) -> Result<(Bench, Answers), RegisterError> {
    let mut protocol = Protocol::new("bench", 1..=1);
    let words = Channel::new(1).share(Class::Interactive, DEFAULT_WEIGHT).max_message(MAX_WORD);
    let mut load = Channel::new(2).max_message(BLOCK);
    load.queue_bytes = QUEUE;
    let (words, load) = (protocol.channel(words), protocol.channel(load));
    let peers = node.register(protocol)?.handle();
    let shared = Arc::<Shared>::default();
    let bench = Bench { words: words.0.clone(), load: load.0.clone(), peers, shared: Arc::clone(&shared) };
    Ok((bench, Answers { words, load, shared, guest: None, sending: JoinSet::new() }))
}

fn say(words: &Sender, peer: PeerId, word: &Word) {
    // A word that finds no room is missed like a lost echo; whoever waits for one has a deadline.
    let _ = words.send(&To::Peer(peer), Bytes::from(serde_json::to_vec(word).unwrap_or_default()));
}

/// Sends load to one peer.
pub(crate) struct Load {
    sender: Sender,
    peer: PeerId,
}

impl Load {
    /// Sends for a while, or until the peer is gone; `sent` counts bytes.
    pub(crate) async fn send(&self, lasts: Duration, sent: &AtomicU64) {
        let block = Bytes::from_static(&[0x5a; BLOCK]);
        let sending = async {
            while self.sender.send_wait(self.peer, block.clone()).await.is_ok() {
                sent.fetch_add(BLOCK as u64, Ordering::Relaxed);
            }
        };
        let _ = time::timeout(lasts, sending).await;
    }
}

impl Shared {
    fn asking(&self) -> MutexGuard<'_, Option<(PeerId, mpsc::Sender<Word>)>> {
        self.asking.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Answers {
    /// Answers the peers that `may_ask` lets in.
    pub(crate) async fn run(mut self, may_ask: impl Fn(PeerId, Option<Claim>) -> bool) {
        loop {
            tokio::select! {
                biased;
                word = self.words.1.recv() => match word {
                    Some((peer, word)) => self.heard(peer, &word, &may_ask),
                    None => return,
                },
                load = self.load.1.recv() => match load {
                    Some((peer, block)) => self.loaded(peer, block.len() as u64),
                    None => return,
                },
                Some(_) = self.sending.join_next() => {}
            }
        }
    }

    fn heard(&mut self, peer: PeerId, word: &[u8], may_ask: &impl Fn(PeerId, Option<Claim>) -> bool) {
        let Ok(word) = serde_json::from_slice(word) else { return };
        let guest = self.guest.as_mut().filter(|guest| guest.peer == peer);
        match (word, guest) {
            (Word::Echo(n), _) => say(&self.words.0, peer, &Word::Echoed(n)),
            (Word::Ask(claim), _) => self.admit(peer, may_ask(peer, claim)),
            (Word::Up, Some(guest)) => {
                (guest.received, guest.sent) = (0, None);
                say(&self.words.0, peer, &Word::Ready);
            }
            (Word::Down(seconds), Some(_)) => self.send(peer, Duration::from_secs(seconds.clamp(1, MAX_SECONDS))),
            (Word::Sent(bytes), Some(guest)) => {
                guest.sent = Some(bytes);
                self.acknowledge();
            }
            (Word::Bye, Some(_)) => {
                self.guest = None;
                self.sending.abort_all();
            }
            (word, _) => {
                if let Some((_, words)) = self.shared.asking().as_ref().filter(|(asked, _)| *asked == peer) {
                    let _ = words.try_send(word); // as with `say`
                }
            }
        }
    }

    fn admit(&mut self, peer: PeerId, may_ask: bool) {
        let now = Instant::now();
        let is_taken = self.guest.as_ref().is_some_and(|guest| guest.peer != peer && guest.until > now);
        let answer = if !may_ask {
            Word::Refused("it is measured only by peers that hold a ticket with a secret, and services of `byway serve --open` have none; ask \
             there for a ticket of `byway serve` without --open".into())
        } else if is_taken {
            Word::Refused("another peer measures it now; try again in a minute".into())
        } else {
            self.sending.abort_all();
            self.guest = Some(Guest { peer, until: now + RESERVED, received: 0, sent: None });
            Word::Ready
        };
        say(&self.words.0, peer, &answer);
    }

    fn send(&mut self, peer: PeerId, lasts: Duration) {
        if !self.sending.is_empty() {
            return; // it asks twice
        }
        let (words, load) = (self.words.0.clone(), Load { sender: self.load.0.clone(), peer });
        self.sending.spawn(async move {
            let sent = AtomicU64::new(0);
            load.send(lasts, &sent).await;
            say(&words, peer, &Word::Sent(sent.into_inner()));
        });
    }

    fn loaded(&mut self, peer: PeerId, bytes: u64) {
        match self.guest.as_mut().filter(|guest| guest.peer == peer) {
            Some(guest) => {
                guest.received += bytes;
                self.acknowledge();
            }
            None if self.shared.asking().as_ref().is_some_and(|(asked, _)| *asked == peer) => {
                self.shared.received.fetch_add(bytes, Ordering::Relaxed);
            }
            None => {} // nobody asked for it
        }
    }

    fn acknowledge(&mut self) {
        let Some(guest) = &mut self.guest else { return };
        if guest.sent.is_some_and(|sent| guest.received >= sent) {
            guest.sent = None;
            say(&self.words.0, guest.peer, &Word::Received(guest.received));
        }
    }
}

impl Bench {
    /// Whether the peer is connected and answers measurements at all.
    pub(crate) fn is_spoken_by(&self, peer: PeerId) -> bool {
        self.peers.contains(peer)
    }

    /// Begins to measure a peer; `None` while this node measures another one.
    pub(crate) fn measure(&self, peer: PeerId) -> Option<Measurement<'_>> {
        let mut asking = self.shared.asking();
        if asking.is_some() {
            return None;
        }
        let (sender, words) = mpsc::channel(WORDS);
        *asking = Some((peer, sender));
        Some(Measurement { bench: self, peer, words, echoes: VecDeque::new(), next: 0, took: Vec::new() })
    }
}

impl Measurement<'_> {
    pub(crate) fn say(&self, word: &Word) {
        say(&self.bench.words, self.peer, word);
    }

    /// What sends load to the peer.
    pub(crate) fn load(&self) -> Load {
        Load { sender: self.bench.load.clone(), peer: self.peer }
    }

    /// Load that came since the last call of [`Measurement::forget_received`].
    pub(crate) fn received(&self) -> u64 {
        self.bench.shared.received.load(Ordering::Relaxed)
    }

    pub(crate) fn forget_received(&self) {
        self.bench.shared.received.store(0, Ordering::Relaxed);
    }

    /// The peer's next word but echoes, which are measured; `None` at `deadline`.
    pub(crate) async fn hear(&mut self, deadline: Instant) -> Option<Word> {
        loop {
            let echo = self.echoes.back().map_or_else(Instant::now, |(_, sent)| *sent + ECHO_INTERVAL);
            tokio::select! {
                biased;
                word = self.words.recv() => match word? {
                    Word::Echoed(n) => self.echoed(n),
                    word => return Some(word),
                },
                () = time::sleep_until(deadline) => return None,
                () = time::sleep_until(echo) => self.echo(),
            }
        }
    }

    fn echo(&mut self) {
        if self.echoes.len() >= MAX_ECHOES {
            self.echoes.pop_front();
        }
        self.echoes.push_back((self.next, Instant::now()));
        self.say(&Word::Echo(self.next));
        self.next += 1;
    }

    fn echoed(&mut self, n: u64) {
        if let Some((_, sent)) = self.echoes.iter().find(|(echo, _)| *echo == n) {
            self.took.push(sent.elapsed());
        }
    }

    /// How long the echoes took that came back since the last call, the shortest first.
    pub(crate) fn take_echoes(&mut self) -> Vec<Duration> {
        self.took.sort();
        std::mem::take(&mut self.took)
    }
}

impl Drop for Measurement<'_> {
    fn drop(&mut self) {
        self.say(&Word::Bye);
        *self.bench.shared.asking() = None;
    }
}
