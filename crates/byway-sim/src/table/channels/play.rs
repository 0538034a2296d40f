//! One run of one case.

use std::{panic, time::Duration};

use bytes::Bytes;
use byway::{Channel, Class, Identity, Node, PeerId, Peers, Protocol, Receiver, Sender, To};
use byway_proto::Rng;
use tokio::{
    task::JoinSet,
    time::{self, Instant},
};

use super::{Case, ChannelsError, Scenario};
use crate::{Host, Link, Queue, World, table};

/// The line's rate in bits per second.
const RATE: u64 = 100_000_000;

/// Each access link's delay: a quarter of the round trip.
const DELAY: Duration = Duration::from_millis(5);

/// Surveys, the MTU search and slow start are over by then.
const SETTLE: Duration = Duration::from_secs(3);

/// How long shares and bulk are counted.
const COUNT: Duration = Duration::from_secs(10);

/// Between two messages whose time is taken.
const EVERY: Duration = Duration::from_millis(10);

/// Messages whose time is taken on the idle line, and beside what disturbs them: 20 s.
const MESSAGES: usize = 2_000;

/// As many as go out while a reader stalls, for a minute.
const STALLED_MESSAGES: usize = 6_000;

/// Bytes of such a message.
const SMALL: usize = 100;

/// Bytes of a quiet peer's message, which are two packets: of those, one in fifty loses one where one packet in a hundred is lost. Whether that
/// befalls the slowest hundredth of messages of one packet is a coin's toss.
const PAIR: usize = 2_000;

/// Bytes of a bulk message.
const LARGE: usize = 16 << 10;

/// Bytes of a message at a slow reader, and how long that takes for each.
const SLOW: (usize, Duration) = (64 << 10, Duration::from_millis(20));

/// Peers that share a receiver with the flooding one.
const QUIET: usize = 99;

/// Messages that a receiver under a flood takes in a millisecond.
const TAKEN: usize = 16;

/// Between two of a protocol's comings and goings.
const CHURN: Duration = Duration::from_millis(100);

/// Plays a case once, in a world of its own; its value.
pub(super) fn play(case: Case, seed: u64) -> Result<f64, ChannelsError> {
    World::run(seed, |world| async move {
        match case.scenario {
            Scenario::Shares => shares(&world, case).await,
            Scenario::Bulk => bulk(&world, case).await,
            Scenario::Control => control(&world, case).await,
            Scenario::StalledReader => stalled_reader(&world, case).await,
            Scenario::PanickingHandler => panicking_handler(&world, case).await,
            Scenario::FloodingPeer => flooding_peer(&world, case).await,
            Scenario::RegisterUnderLoad => register_under_load(&world, case).await,
            Scenario::SlowReader => slow_reader(&world, case).await,
        }
    })
}

/// A node, and its ends of the channels.
struct End {
    node: Node,
    tx: Vec<Sender>,
    rx: Vec<Receiver>,
    peers: Peers,
}

impl End {
    async fn start(world: &World, host: &Host, channels: &[Channel], rng: &mut Rng) -> Result<Self, ChannelsError> {
        let mut config = table::config(world, Identity::from_seed(rng.bytes()), rng);
        config.ipv6 = None;
        let node = Node::bind_on(host.net(), config).await?;
        let mut protocol = Protocol::new("channels", 1..=1);
        let (tx, rx) = channels.iter().map(|channel| protocol.channel(channel.clone())).unzip();
        let peers = node.register(protocol).expect("the protocol is a valid one, and the node's first");
        Ok(End { node, tx, rx, peers })
    }
}

/// A sender and a receiver, connected and at rest, and the receiver's id.
async fn pair(world: &World, case: Case, channels: &[Channel]) -> Result<(End, End, PeerId), ChannelsError> {
    let mut rng = world.rng("channels");
    let [from, to] = ["sender", "receiver"].map(|name| world.host(name));
    from.set_link(line(case));
    to.set_link(Link::lan().delay(DELAY));
    let mut sender = End::start(world, &from, channels, &mut rng).await?;
    let receiver = End::start(world, &to, channels, &mut rng).await?;
    let id = sender.node.dial(receiver.node.ticket()).await?;
    let _ = sender.peers.next().await; // it is up
    time::sleep(SETTLE).await;
    Ok((sender, receiver, id))
}

fn line(case: Case) -> Link {
    let line = Link::lan().delay(DELAY).rate(RATE).queue(Queue::Time(case.queue));
    if case.lossy { line.loss(0.01) } else { line }
}

async fn shares(world: &World, case: Case) -> Result<f64, ChannelsError> {
    let weights = [1, 2, 7];
    let channels = [1, 2, 3].map(|id| Channel::new(id).share(Class::Bulk, weights[id as usize - 1]));
    let (sender, receiver, to) = pair(world, case, &channels).await?;
    let mut tasks = JoinSet::new();
    sender.tx.iter().for_each(|tx| saturate(&mut tasks, tx, to, LARGE));
    let (from, until) = (Instant::now() + SETTLE, Instant::now() + SETTLE + COUNT);
    let mut counting = JoinSet::new();
    for (rx, weight) in receiver.rx.into_iter().zip(weights) {
        counting.spawn(async move { (weight, count(rx, from, until).await) });
    }
    let counts = counting.join_all().await;
    let all: u64 = counts.iter().map(|(_, bytes)| bytes).sum();
    let errors = counts.iter().map(|(weight, bytes)| {
        let share = *bytes as f64 / all.max(1) as f64;
        (share / (f64::from(*weight) / 10.0) - 1.0).abs() * 100.0
    });
    Ok(errors.fold(0.0, f64::max))
}

async fn bulk(world: &World, case: Case) -> Result<f64, ChannelsError> {
    let (sender, mut receiver, to) = pair(world, case, &[Channel::new(1)]).await?;
    let mut tasks = JoinSet::new();
    saturate(&mut tasks, &sender.tx[0], to, LARGE);
    let from = Instant::now() + SETTLE;
    let bytes = count(receiver.rx.remove(0), from, from + COUNT).await;
    Ok(bytes as f64 * 8.0 / COUNT.as_secs_f64() / 1e6)
}

async fn control(world: &World, case: Case) -> Result<f64, ChannelsError> {
    let (sender, mut receiver, to) = pair(world, case, &control_and_bulk()).await?;
    let (bulk, control) = (receiver.rx.remove(1), &mut receiver.rx[0]);
    let calm = p99(&sender.tx[0], control, to, MESSAGES).await;
    let mut tasks = JoinSet::new();
    saturate(&mut tasks, &sender.tx[1], to, LARGE);
    tasks.spawn(read(bulk));
    time::sleep(SETTLE).await;
    Ok(ratio(p99(&sender.tx[0], control, to, MESSAGES).await, calm))
}

async fn stalled_reader(world: &World, case: Case) -> Result<f64, ChannelsError> {
    let (sender, mut receiver, to) = pair(world, case, &[Channel::new(1), Channel::new(2)]).await?;
    let calm = p99(&sender.tx[1], &mut receiver.rx[1], to, MESSAGES).await;
    // Until all queues on the way to the reader are full, and nothing moves any more.
    while time::timeout(SETTLE, sender.tx[0].send_wait(to, vec![0; LARGE].into())).await.is_ok() {}
    Ok(ratio(p99(&sender.tx[1], &mut receiver.rx[1], to, STALLED_MESSAGES).await, calm))
}

async fn panicking_handler(world: &World, case: Case) -> Result<f64, ChannelsError> {
    let (sender, mut receiver, to) = pair(world, case, &[Channel::new(1), Channel::new(2)]).await?;
    let calm = p99(&sender.tx[1], &mut receiver.rx[1], to, MESSAGES).await;
    let mut handled = receiver.rx.remove(0);
    let handler = tokio::spawn(async move {
        let _ = handled.recv().await;
        panic::resume_unwind(Box::new("the handler fails")); // as `panic!`, without its words on stderr
    });
    let mut tasks = JoinSet::new();
    let tx = sender.tx[0].clone();
    tasks.spawn(async move {
        loop {
            let _ = tx.send(&To::Peer(to), vec![0; LARGE].into()); // nobody can take them any more
            time::sleep(EVERY).await;
        }
    });
    let beside = p99(&sender.tx[1], &mut receiver.rx[0], to, MESSAGES).await;
    let panicked = handler.await.is_err_and(|error| error.is_panic());
    Ok(if panicked { ratio(beside, calm) } else { f64::INFINITY })
}

async fn flooding_peer(world: &World, case: Case) -> Result<f64, ChannelsError> {
    let mut rng = world.rng("channels");
    let host = world.host("receiver");
    host.set_link(Link::lan().delay(DELAY));
    let mut receiver = End::start(world, &host, &[Channel::new(1)], &mut rng).await?;
    let (to, ticket) = (receiver.node.id(), receiver.node.ticket());
    let mut senders = Vec::new();
    for number in 0..=QUIET {
        let host = world.host(&format!("sender {number}"));
        host.set_link(line(case));
        let mut sender = End::start(world, &host, &[Channel::new(1)], &mut rng).await?;
        sender.node.dial(ticket.clone()).await?;
        let _ = sender.peers.next().await;
        senders.push(sender);
    }
    time::sleep(SETTLE).await;
    let quiet = &senders[1..];
    let calm = flooded(quiet, &mut receiver.rx[0], to, &mut rng).await;
    let mut tasks = JoinSet::new();
    saturate(&mut tasks, &senders[0].tx[0], to, SMALL);
    let mut taken = 0;
    let from = Instant::now();
    while from.elapsed() < SETTLE {
        let _ = receiver.rx[0].recv().await;
        taken += 1;
        if taken % TAKEN == 0 {
            time::sleep(Duration::from_millis(1)).await;
        }
    }
    Ok(ratio(flooded(quiet, &mut receiver.rx[0], to, &mut rng).await, calm))
}

/// The 99th percentile of the messages of all quiet peers, at a receiver that takes 16 in a millisecond.
async fn flooded(quiet: &[End], rx: &mut Receiver, to: PeerId, rng: &mut Rng) -> Duration {
    let (start, each) = (Instant::now(), MESSAGES / QUIET + 1);
    let mut tasks = JoinSet::new();
    for sender in quiet {
        let (tx, pause) = (sender.tx[0].clone(), EVERY * QUIET as u32);
        let first = Duration::from_millis(rng.below(pause.as_millis() as u64));
        tasks.spawn(async move {
            time::sleep(first).await;
            for _ in 0..each {
                let _ = tx.send(&To::Peer(to), stamped(start, PAIR)); // its queue holds a thousand
                time::sleep(pause).await;
            }
        });
    }
    let (mut took, mut taken) = (Vec::new(), 0);
    while took.len() < each * quiet.len() {
        let Some((_, message)) = rx.recv().await else { break };
        took.extend(time_of(&message, start));
        taken += 1;
        if taken % TAKEN == 0 {
            time::sleep(Duration::from_millis(1)).await;
        }
    }
    percentile_99(took)
}

async fn register_under_load(world: &World, case: Case) -> Result<f64, ChannelsError> {
    let (sender, mut receiver, to) = pair(world, case, &control_and_bulk()).await?;
    let (bulk, control) = (receiver.rx.remove(1), &mut receiver.rx[0]);
    let calm = p99(&sender.tx[0], control, to, MESSAGES).await;
    let mut tasks = JoinSet::new();
    saturate(&mut tasks, &sender.tx[1], to, LARGE);
    tasks.spawn(read(bulk));
    let nodes = [sender.node.clone(), receiver.node.clone()];
    tasks.spawn(async move {
        loop {
            for node in &nodes {
                let mut other = Protocol::new("other", 1..=1);
                let _channel = other.channel(Channel::new(1));
                let _peers = node.register(other);
            }
            time::sleep(CHURN / 2).await;
            for node in &nodes {
                node.unregister("other");
            }
            time::sleep(CHURN / 2).await;
        }
    });
    time::sleep(SETTLE).await;
    Ok(ratio(p99(&sender.tx[0], control, to, MESSAGES).await, calm))
}

async fn slow_reader(world: &World, case: Case) -> Result<f64, ChannelsError> {
    let (sender, mut receiver, to) = pair(world, case, &[Channel::new(1), Channel::new(2)]).await?;
    let (mut slow, beside) = (receiver.rx.remove(0), &mut receiver.rx[0]);
    let calm = p99(&sender.tx[1], beside, to, MESSAGES).await;
    let mut tasks = JoinSet::new();
    saturate(&mut tasks, &sender.tx[0], to, SLOW.0);
    tasks.spawn(async move {
        while slow.recv().await.is_some() {
            time::sleep(SLOW.1).await;
        }
    });
    time::sleep(SETTLE).await;
    Ok(ratio(p99(&sender.tx[1], beside, to, MESSAGES).await, calm))
}

fn control_and_bulk() -> [Channel; 2] {
    [Channel::new(1).share(Class::Control, 1), Channel::new(2)]
}

/// Sends as much as is taken.
fn saturate(tasks: &mut JoinSet<()>, tx: &Sender, to: PeerId, len: usize) {
    let (tx, message) = (tx.clone(), Bytes::from(vec![0; len]));
    tasks.spawn(async move { while tx.send_wait(to, message.clone()).await.is_ok() {} });
}

/// Takes what comes.
async fn read(mut rx: Receiver) {
    while rx.recv().await.is_some() {}
}

/// Bytes that arrive from one moment to another.
async fn count(mut rx: Receiver, from: Instant, until: Instant) -> u64 {
    let mut bytes = 0;
    while let Ok(Some((_, message))) = time::timeout_at(until, rx.recv()).await {
        if Instant::now() >= from {
            bytes += message.len() as u64;
        }
    }
    bytes
}

/// Sends `count` small messages; how long the slowest but one percent took.
async fn p99(tx: &Sender, rx: &mut Receiver, to: PeerId, count: usize) -> Duration {
    let (tx, start) = (tx.clone(), Instant::now());
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        for _ in 0..count {
            if tx.send_wait(to, stamped(start, SMALL)).await.is_err() {
                return;
            }
            time::sleep(EVERY).await;
        }
    });
    let mut took = Vec::new();
    while took.len() < count {
        let Some((_, message)) = rx.recv().await else { break };
        took.extend(time_of(&message, start));
    }
    percentile_99(took)
}

/// A message that says when it was made; it is never all zeros.
fn stamped(start: Instant, len: usize) -> Bytes {
    let mut message = vec![0; len];
    message[..8].copy_from_slice(&(start.elapsed().as_micros() as u64).to_be_bytes());
    message[8] = 1;
    message.into()
}

/// How long such a message took; `None` if it is another one.
fn time_of(message: &[u8], start: Instant) -> Option<Duration> {
    let (stamp, rest) = message.split_first_chunk()?;
    let sent = Duration::from_micros(u64::from_be_bytes(*stamp));
    (rest.first() == Some(&1)).then(|| start.elapsed().saturating_sub(sent))
}

fn percentile_99(mut took: Vec<Duration>) -> Duration {
    took.sort();
    took.get(took.len() * 99 / 100).copied().unwrap_or(Duration::MAX)
}

fn ratio(beside: Duration, calm: Duration) -> f64 {
    beside.as_secs_f64() / calm.as_secs_f64()
}
