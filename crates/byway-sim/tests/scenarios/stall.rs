//! A program that takes none of its messages: what that costs the peers whose they are, where its protocol says so.

use std::time::Duration;

use bytes::Bytes;
use byway::{
    Channel, Delivery, Event, Gone, OnFailure, PeerEvent, PeerId, Peers, Protocol, Receiver, SendError, Sender, To,
};
use byway_sim::World;
use tokio::time::{self, Instant};

use crate::common::{Peer, config, exchange, ms, peer, scenario, secs};

/// How long the program may take nothing.
const ALLOWED: Duration = Duration::from_secs(30);

/// A protocol of one channel.
struct Spoken {
    tx: Sender,
    rx: Receiver,
    peers: Peers,
}

fn speak(at: &Peer, mut protocol: Protocol, channel: Channel) -> Spoken {
    let (tx, rx) = protocol.channel(channel);
    Spoken { tx, rx, peers: at.node.register(protocol).unwrap() }
}

fn orders() -> Protocol {
    Protocol::new("orders", 1..=1)
}

async fn two(world: &World) -> (Peer, Peer) {
    (peer(&world.host("a"), config(1)).await, peer(&world.host("b"), config(2)).await)
}

async fn connect(from: &mut Peer, to: &mut Peer) {
    from.node.dial(to.node.ticket()).await.unwrap();
    assert_eq!((from.up().await, to.up().await), (to.id(), from.id()));
}

impl Spoken {
    async fn up(&mut self) -> PeerId {
        match self.peers.next().await {
            Some(PeerEvent::Up { peer, .. }) => peer,
            other => panic!("{other:?} instead of a peer that comes up"),
        }
    }

    async fn down(&mut self) -> (PeerId, Gone) {
        match self.peers.next().await {
            Some(PeerEvent::Down { peer, reason }) => (peer, reason),
            other => panic!("{other:?} instead of a peer that goes"),
        }
    }

    fn send(&self, text: &'static str) {
        assert_eq!(self.tx.send(&To::All, text.into()).queued, 1);
    }
}

/// Waits until a protocol fails with a peer; which, with whom and why.
async fn failure(at: &mut Peer) -> (String, PeerId, String) {
    loop {
        if let Event::ProtocolFailed { peer, protocol, why } = at.events.recv().await.expect("the node runs") {
            return (protocol, peer, why);
        }
    }
}

/// Asserts that no protocol has failed since it was asked last.
async fn nothing_fails(at: &mut Peer) {
    let failed = time::timeout(ms(1), failure(at)).await;
    assert!(failed.is_err(), "{failed:?}");
}

#[test]
fn a_program_that_stalls_costs_the_peers_that_wait_the_protocol_and_nothing_else() {
    scenario(1, secs(600), |world| async move {
        let (mut a, mut b) = two(&world).await;
        let mut c = peer(&world.host("c"), config(3)).await;
        let mut ours = speak(&a, orders().stalled_after(ALLOWED, OnFailure::DropProtocol), Channel::new(1));
        let mut theirs = [speak(&b, orders(), Channel::new(1)), speak(&c, orders(), Channel::new(1))];
        connect(&mut b, &mut a).await;
        connect(&mut c, &mut a).await;
        assert_eq!((ours.up().await, ours.up().await), (b.id(), c.id()));
        assert_eq!((theirs[0].up().await, theirs[1].up().await), (a.id(), a.id()));
        ["one", "two", "three"].into_iter().for_each(|text| theirs[0].send(text));
        time::sleep(secs(1)).await;
        // All three are in its hands, and it takes one of them.
        assert_eq!(ours.rx.recv().await, Some((b.id(), "one".into())));
        time::sleep(ALLOWED - secs(2)).await;
        assert!(ours.peers.contains(b.id()), "it may take so long");
        exchange(&mut b, &mut a).await;
        assert_eq!(ours.down().await, (b.id(), Gone::Failed("orders".into())));
        assert_eq!(theirs[0].down().await, (a.id(), Gone::Unregistered));
        let (protocol, with, why) = failure(&mut a).await;
        assert_eq!((&*protocol, with), ("orders", b.id()));
        assert!(why.starts_with("this node's program took no message from channel 1 for 30s"), "{why}");
        // Nobody else has noticed, not even this peer's other protocol.
        exchange(&mut b, &mut a).await;
        exchange(&mut c, &mut a).await;
        theirs[1].send("four");
        for (from, text) in [(&b, "two"), (&b, "three"), (&c, "four")] {
            assert_eq!(ours.rx.recv().await, Some((from.id(), text.into())));
        }
        time::sleep(2 * ALLOWED).await;
        assert!(ours.peers.contains(c.id()), "nothing waits");
        nothing_fails(&mut a).await; // it failed once
        // It is spoken again on the next connection.
        assert!(b.node.disconnect(a.id(), 0, "once more"));
        b.down().await;
        a.down().await;
        connect(&mut b, &mut a).await;
        assert_eq!((ours.up().await, theirs[0].up().await), (b.id(), a.id()));
        theirs[0].send("five");
        assert_eq!(ours.rx.recv().await, Some((b.id(), "five".into())));
    });
}

#[test]
fn a_program_that_stalls_costs_the_connection_where_its_protocol_says_so_and_for_datagrams_too() {
    scenario(1, secs(600), |world| async move {
        let (mut a, mut b) = two(&world).await;
        let channel = || Channel::new(7).delivery(Delivery::Datagram);
        let mut ours = speak(&a, orders().stalled_after(ALLOWED, OnFailure::DropPeer), channel());
        let mut theirs = speak(&b, orders(), channel());
        connect(&mut b, &mut a).await;
        assert_eq!((ours.up().await, theirs.up().await), (b.id(), a.id()));
        theirs.send("take me");
        let failed = Gone::Failed("orders".into());
        assert_eq!((a.down().await, b.down().await), (failed.clone(), failed));
        let (_, with, why) = failure(&mut a).await;
        assert_eq!(with, b.id());
        assert!(why.contains("channel 7"), "{why}");
        // The message still waits, for a peer that is not there.
        time::sleep(2 * ALLOWED).await;
        nothing_fails(&mut a).await;
        assert_eq!(ours.rx.recv().await, Some((b.id(), "take me".into())));
    });
}

#[test]
fn who_waits_to_send_to_a_program_that_stalls_is_told_and_other_protocols_go_on_meanwhile() {
    scenario(1, secs(600), |world| async move {
        let (mut a, mut b) = two(&world).await;
        let _ours = speak(&a, orders().stalled_after(ALLOWED, OnFailure::DropProtocol), Channel::new(1));
        let mut theirs = speak(&b, orders(), Channel::new(1));
        connect(&mut b, &mut a).await;
        assert_eq!(theirs.up().await, a.id());
        // Until its queues are full all the way, and nothing moves any more.
        let mut moved = Instant::now();
        while moved.elapsed() < secs(5) {
            if theirs.tx.send(&To::All, Bytes::from(vec![1; 50_000])).queued == 1 {
                moved = Instant::now();
            } else {
                time::sleep(ms(10)).await;
            }
        }
        let (tx, to) = (theirs.tx.clone(), a.id());
        let waiting = tokio::spawn(async move { tx.send_wait(to, "last".into()).await });
        exchange(&mut b, &mut a).await;
        assert!(!waiting.is_finished());
        assert_eq!(waiting.await.unwrap(), Err(SendError::Absent(to)));
        exchange(&mut b, &mut a).await;
        assert_eq!((a.node.peers(), b.node.peers()), (vec![b.id()], vec![a.id()]));
    });
}

#[test]
fn a_program_that_is_slow_does_not_stall_however_long_its_peers_wait() {
    scenario(1, secs(6_000), |world| async move {
        let (mut a, mut b) = two(&world).await;
        let mut c = peer(&world.host("c"), config(3)).await;
        // More waits than there is room for, and what comes in one turn is more than it takes in the time.
        let slow = orders().stalled_after(ALLOWED, OnFailure::DropPeer);
        let mut ours = speak(&a, slow, Channel::new(1).queue(64));
        let mut theirs = [speak(&b, orders(), Channel::new(1)), speak(&c, orders(), Channel::new(1))];
        connect(&mut b, &mut a).await;
        connect(&mut c, &mut a).await;
        assert_eq!((theirs[0].up().await, theirs[1].up().await), (a.id(), a.id()));
        (0..100).for_each(|_| theirs[0].send("one of many"));
        time::sleep(secs(1)).await;
        theirs[1].send("the only one");
        let mut order = Vec::new();
        for _ in 0..101 {
            time::sleep(ALLOWED - secs(2)).await;
            order.push(ours.rx.recv().await.unwrap().0);
        }
        let before = order.iter().position(|from| *from == c.id());
        assert!(before.is_some_and(|before| before > 2), "{before:?}: it waits for longer than a program may stall");
        assert_eq!(ours.peers.list().len(), 2);
        nothing_fails(&mut a).await;
    });
}

#[test]
fn a_program_may_take_nothing_for_an_hour_unless_its_protocol_says_otherwise() {
    scenario(1, secs(4_000), |world| async move {
        let (mut a, mut b) = two(&world).await;
        let mut ours = speak(&a, orders(), Channel::new(1));
        let mut theirs = speak(&b, orders(), Channel::new(1));
        connect(&mut b, &mut a).await;
        assert_eq!((ours.up().await, theirs.up().await), (b.id(), a.id()));
        theirs.send("take me");
        time::sleep(secs(3_600)).await;
        assert!(ours.peers.contains(b.id()));
        assert_eq!(ours.rx.recv().await, Some((b.id(), "take me".into())));
    });
}
