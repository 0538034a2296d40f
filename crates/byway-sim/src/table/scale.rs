//! How many nodes fit into one process: each dials a few others, and over every connection messages are echoed.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    time::{Duration, Instant},
};

use bytes::Bytes;
use byway::{
    BindError, Channel, DialError, Identity, Node, PeerEvent, PeerId, Peers, Protocol, Receiver, Sender, Ticket, To,
};
use byway_proto::Rng;
use serde::Serialize;
use tokio::{sync::mpsc, task::JoinSet, time};

use super::{config, memory_kib};
use crate::World;

/// Nodes that each node dials.
const DIALS: usize = 4;

/// Messages that are echoed over each connection, each sent when the one before has come back.
const ECHOES: u32 = 10;

/// Bytes of a message.
const MESSAGE: usize = 64;

/// The dials begin within this many milliseconds, each at a moment of its own.
const SPREAD_MS: u64 = 1_000;

/// What the run may take on the simulated clock: whoever needs longer has lost a message for good.
const LIMIT: Duration = Duration::from_secs(60);

/// The channels of questions and of answers.
const CHANNELS: (u32, u32) = (1, 2);

/// What a run found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// Nodes that ran.
    pub nodes: usize,
    /// Connections between them at the end.
    pub connections: usize,
    /// Messages that came back as they were sent.
    pub messages: u64,
    /// Seconds that the run took on the real clock, with its tidying up.
    pub wall_s: f64,
    /// The most memory in MiB that this process has ever used; `None` where the system does not tell.
    pub rss_mib: Option<f64>,
    /// The hash over everything sent, which the seed decides.
    pub hash: String,
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Row { nodes, connections, messages, wall_s, rss_mib, hash } = self;
        let rss = rss_mib.map_or_else(|| "unknown".to_owned(), |mib| format!("{mib:.0}"));
        writeln!(f, "{:>7} {:>11} {:>9} {:>7} {:>7}  hash", "nodes", "connections", "messages", "wall_s", "rss_mib")?;
        write!(f, "{nodes:>7} {connections:>11} {messages:>9} {wall_s:>7.1} {rss:>7}  {hash}")
    }
}

/// Why a run found nothing.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ScaleError {
    /// A node cannot dial four others.
    #[error("{0} nodes are too few: each dials {DIALS} others")]
    TooFew(usize),
    /// A node did not start.
    #[error("a node did not start: {0}")]
    Bind(#[from] BindError),
    /// A dial failed.
    #[error("a dial failed: {0}")]
    Dial(#[from] DialError),
    /// An answer was not what was asked.
    #[error("{from:?} answered something else than it was asked by {to:?}")]
    WrongAnswer {
        /// Who answered.
        from: PeerId,
        /// Who asked.
        to: PeerId,
    },
    /// Answers are missing.
    #[error("only {done} of {nodes} nodes had all their answers within {LIMIT:?}")]
    Unanswered {
        /// Nodes that had theirs.
        done: usize,
        /// All nodes.
        nodes: usize,
    },
    /// Two nodes that should be connected are not, or the other way round.
    #[error("{found} connections instead of {wanted}")]
    Connections {
        /// Connections at the end.
        found: usize,
        /// Pairs of which one dialled the other.
        wanted: usize,
    },
}

/// Runs `nodes` nodes of the shipping stack on the standard network, and tells `progress` what goes on.
///
/// # Errors
///
/// If a node does not start, is not reached, or gives a wrong answer or none.
pub fn run(nodes: usize, seed: u64, progress: impl Fn(&str)) -> Result<Row, ScaleError> {
    if nodes <= DIALS {
        return Err(ScaleError::TooFew(nodes));
    }
    let start = Instant::now();
    let mut row = World::run(seed, |world| async move { play(&world, nodes, &progress).await })?;
    row.wall_s = start.elapsed().as_millis() as f64 / 1_000.0;
    row.rss_mib = memory_kib("VmHWM").map(|kib| (kib / 102.4).round() / 10.0);
    Ok(row)
}

async fn play(world: &World, nodes: usize, progress: &impl Fn(&str)) -> Result<Row, ScaleError> {
    let mut rng = world.rng("scale");
    let mut speakers = Vec::with_capacity(nodes);
    for n in 0..nodes {
        speakers.push(Speaker::start(world, n, &mut rng).await?);
    }
    progress(&format!("{nodes} nodes are up"));
    let graph = graph(nodes, &mut rng);
    let tickets: Vec<Ticket> = speakers.iter().map(|speaker| speaker.node.ticket()).collect();
    let handles: Vec<Node> = speakers.iter().map(|speaker| speaker.node.clone()).collect();

    let (mut dials, mut talks) = (JoinSet::new(), JoinSet::new());
    let (done, mut finished) = mpsc::channel(1);
    for (n, mut speaker) in speakers.into_iter().enumerate() {
        for &to in &graph[n] {
            let (node, ticket) = (speaker.node.clone(), tickets[to].clone());
            let delay = Duration::from_millis(rng.below(SPREAD_MS));
            dials.spawn(async move {
                time::sleep(delay).await;
                node.dial(ticket).await
            });
        }
        // Of two that dial each other, one asks.
        let asked = graph[n].iter().filter(|to| n < **to || !graph[**to].contains(&n));
        speaker.ask(asked.map(|to| tickets[*to].peer), n);
        talks.spawn(speaker.talk(done.clone()));
    }
    drop(done);
    let limit = time::Instant::now() + LIMIT;
    while let Some(dialled) = dials.join_next().await {
        dialled.expect("nobody aborts a dial, and none panics")?;
    }
    progress("all dials have succeeded");
    let mut count = 0;
    while count < nodes {
        match time::timeout_at(limit, finished.recv()).await {
            Ok(Some(Ok(()))) => count += 1,
            Ok(Some(Err(error))) => return Err(error),
            Ok(None) | Err(_) => return Err(ScaleError::Unanswered { done: count, nodes }),
        }
    }
    progress("all messages have come back");
    let pairs: BTreeSet<_> =
        graph.iter().enumerate().flat_map(|(n, to)| to.iter().map(move |to| (n.min(*to), n.max(*to)))).collect();
    let connections = handles.iter().map(|node| node.peers().len()).sum::<usize>() / 2;
    if connections != pairs.len() {
        return Err(ScaleError::Connections { found: connections, wanted: pairs.len() });
    }
    let messages = connections as u64 * u64::from(ECHOES);
    Ok(Row { nodes, connections, messages, wall_s: 0.0, rss_mib: None, hash: world.hash().to_string() })
}

/// Whom each node dials.
fn graph(nodes: usize, rng: &mut Rng) -> Vec<BTreeSet<usize>> {
    let mut others = |n: usize| {
        let mut to = BTreeSet::new();
        while to.len() < DIALS {
            let other = rng.below(nodes as u64) as usize;
            if other != n {
                to.insert(other);
            }
        }
        to
    };
    (0..nodes).map(&mut others).collect()
}

/// A node that echoes what it is asked, and asks.
struct Speaker {
    node: Node,
    peers: Peers,
    questions: (Sender, Receiver),
    answers: (Sender, Receiver),
    /// The peers still to be asked, and the question that each has now.
    open: BTreeMap<PeerId, Question>,
}

/// A question: who asks, and the how manieth it is.
#[derive(Debug, Clone, Copy)]
struct Question {
    asker: u32,
    number: u32,
}

impl Speaker {
    async fn start(world: &World, n: usize, rng: &mut Rng) -> Result<Self, BindError> {
        let config = config(world, Identity::from_seed(rng.bytes()), rng);
        let node = Node::bind_on(world.host(&format!("node {n}")).net(), config).await?;
        let mut echo = Protocol::new("echo", 1..=1);
        let (questions, answers) = (echo.channel(Channel::new(CHANNELS.0)), echo.channel(Channel::new(CHANNELS.1)));
        let peers = node.register(echo).expect("the protocol is a valid one, and the node's first");
        Ok(Speaker { node, peers, questions, answers, open: BTreeMap::new() })
    }

    /// Has these peers asked as soon as they are connected.
    fn ask(&mut self, peers: impl Iterator<Item = PeerId>, n: usize) {
        self.open = peers.map(|peer| (peer, Question { asker: n as u32, number: 0 })).collect();
    }

    /// Echoes and asks for ever; says once that all answers are there.
    async fn talk(mut self, done: mpsc::Sender<Result<(), ScaleError>>) {
        let mut told = false;
        loop {
            if self.open.is_empty() && !told {
                told = true;
                let _ = done.send(Ok(())).await; // the run may be over
            }
            tokio::select! {
                biased;
                Some((peer, question)) = self.questions.1.recv() => {
                    let _ = self.answers.0.send(&To::Peer(peer), question); // lost with its connection: asked again
                }
                Some((peer, answer)) = self.answers.1.recv() => {
                    if let Err(error) = self.check(peer, &answer) {
                        let _ = done.send(Err(error)).await;
                        return;
                    }
                }
                // Of two connections that were made at once one is closed: what it carried is asked again.
                Some(PeerEvent::Up { peer, .. }) = self.peers.next() => self.put_question(peer),
            }
        }
    }

    fn put_question(&self, peer: PeerId) {
        if let Some(question) = self.open.get(&peer) {
            let _ = self.questions.0.send(&To::Peer(peer), question.message());
        }
    }

    /// Compares an answer with its question, and asks the next one.
    fn check(&mut self, peer: PeerId, answer: &Bytes) -> Result<(), ScaleError> {
        let wrong = Err(ScaleError::WrongAnswer { from: peer, to: self.node.id() });
        let Some(question) = self.open.get_mut(&peer) else { return wrong };
        if *answer != question.message() {
            return wrong;
        }
        question.number += 1;
        if question.number == ECHOES {
            self.open.remove(&peer);
        } else {
            self.put_question(peer);
        }
        Ok(())
    }
}

impl Question {
    fn message(self) -> Bytes {
        let word = (u64::from(self.asker) << 32 | u64::from(self.number)).to_be_bytes();
        word.iter().copied().cycle().take(MESSAGE).collect()
    }
}
