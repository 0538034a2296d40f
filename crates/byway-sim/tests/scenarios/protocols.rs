//! Protocols that come and go while peers are connected, and that fail.

use byway::{
    Channel, Event, Gone, Node, OnFailure, PeerEvent, PeerId, Peers, Protocol, Receiver, Refusal, Sender, Streams, To,
};
use byway_sim::Host;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time,
};

use crate::common::{Peer, config, ms, peer, scenario, secs};

/// A protocol of one channel, with byte streams.
struct Spoken {
    tx: Sender,
    rx: Receiver,
    peers: Peers,
    streams: Streams,
}

fn speak(node: &Node, name: &str) -> Spoken {
    let mut protocol = Protocol::new(name, 1..=1);
    let (tx, rx) = protocol.channel(Channel::new(1));
    let streams = protocol.streams();
    Spoken { tx, rx, peers: node.register(protocol).unwrap(), streams }
}

async fn bind(host: &Host, n: u8) -> Node {
    Node::bind_on(host.net(), config(n)).await.unwrap()
}

/// A message of each side to the other.
async fn exchange(a: (&mut Spoken, PeerId), b: (&mut Spoken, PeerId)) {
    assert_eq!(a.0.tx.send(&To::Peer(b.1), "hello".into()).queued, 1);
    assert_eq!(b.0.tx.send(&To::Peer(a.1), "hello".into()).queued, 1);
    assert_eq!(b.0.rx.recv().await, Some((a.1, "hello".into())));
    assert_eq!(a.0.rx.recv().await, Some((b.1, "hello".into())));
}

async fn echo(a: &mut Peer, b: &mut Peer) {
    assert_eq!(a.tx.send(&To::Peer(b.id()), "still here?".into()).queued, 1);
    assert_eq!(b.rx.recv().await, Some((a.id(), "still here?".into())));
}

#[test]
fn protocols_come_and_go_while_peers_are_connected() {
    scenario(1, secs(1_200), |world| async move {
        let (mut a, mut b) = (peer(&world.host("a"), config(1)).await, peer(&world.host("b"), config(2)).await);
        a.node.dial(b.node.ticket()).await.unwrap();
        a.up().await;
        b.up().await;
        let mut theirs = speak(&b.node, "chat");
        // More often than a link has lanes, so that none may be left behind.
        for _ in 0..1_030 {
            let mut ours = speak(&a.node, "chat");
            assert_eq!(ours.peers.next().await, Some(PeerEvent::Up { peer: b.id(), version: 1 }));
            assert_eq!(theirs.peers.next().await, Some(PeerEvent::Up { peer: a.id(), version: 1 }));
            exchange((&mut ours, a.id()), (&mut theirs, b.id())).await;
            for _ in 0..3 {
                assert_eq!(ours.tx.send(&To::All, "queued before the end".into()).queued, 1);
            }
            assert!(a.node.unregister("chat"));
            assert!(!a.node.unregister("chat"));
            let down = |peer| Some(PeerEvent::Down { peer, reason: Gone::Unregistered });
            assert_eq!(ours.peers.next().await, down(b.id()));
            assert_eq!(ours.peers.next().await, None);
            assert_eq!(ours.rx.recv().await, None);
            assert!(ours.streams.accept().await.is_none());
            assert_eq!(ours.tx.send(&To::All, "nobody".into()), Default::default());
            assert_eq!(theirs.peers.next().await, down(a.id()));
            for _ in 0..3 {
                assert_eq!(theirs.rx.recv().await, Some((a.id(), "queued before the end".into())));
            }
            echo(&mut a, &mut b).await;
        }
    });
}

#[test]
fn a_protocol_registered_during_the_handshake_is_not_missed() {
    scenario(1, secs(60), |world| async move {
        let (a, b) = (bind(&world.host("a"), 1).await, bind(&world.host("b"), 2).await);
        let mut theirs = speak(&b, "chat");
        let (dialler, ticket) = (a.clone(), b.ticket());
        let dial = tokio::spawn(async move { dialler.dial(ticket).await });
        time::sleep(ms(120)).await; // our hello is on its way
        let mut ours = speak(&a, "chat");
        dial.await.unwrap().unwrap();
        let up = |peer| Some(PeerEvent::Up { peer, version: 1 });
        assert_eq!(time::timeout(secs(5), ours.peers.next()).await, Ok(up(b.id())));
        assert_eq!(time::timeout(secs(5), theirs.peers.next()).await, Ok(up(a.id())));
    });
}

#[test]
fn what_is_late_for_a_protocol_never_reaches_the_next_one() {
    scenario(1, secs(60), |world| async move {
        let (host_a, host_b) = (world.host("a"), world.host("b"));
        let (a, b) = (bind(&host_a, 1).await, bind(&host_b, 2).await);
        let (mut theirs, mut next) = (speak(&b, "chat"), speak(&b, "next"));
        let ours = speak(&a, "chat");
        a.dial(b.ticket()).await.unwrap();
        theirs.peers.next().await;
        // The message, first of its stream, is lost; what is said on the control stream overtakes it.
        let lost = world.cut_one_way(&host_a, &host_b);
        assert_eq!(ours.tx.send(&To::All, "for chat alone".into()).queued, 1);
        time::sleep(ms(60)).await;
        lost.lift();
        a.unregister("chat");
        let ours = speak(&a, "next");
        next.peers.next().await;
        time::sleep(secs(5)).await;
        assert_eq!(next.rx.try_recv(), None);
        assert_eq!(ours.tx.send(&To::All, "for next".into()).queued, 1);
        assert_eq!(next.rx.recv().await, Some((a.id(), "for next".into())));
    });
}

#[test]
fn unregistering_what_the_peer_requires_ends_the_connection_with_that_reason() {
    scenario(1, secs(60), |world| async move {
        let (a, b) = (bind(&world.host("a"), 1).await, bind(&world.host("b"), 2).await);
        let mut needs = b.register(Protocol::new("chat", 1..=1).required()).unwrap();
        let _ours = speak(&a, "chat");
        a.dial(b.ticket()).await.unwrap();
        needs.next().await;
        a.unregister("chat");
        let Some(PeerEvent::Down { reason, .. }) = needs.next().await else { panic!("the peer is still there") };
        assert!(matches!(&reason, Gone::Refused(Refusal::MissingProtocol { name, .. }) if name == "chat"), "{reason}");
    });
}

#[test]
fn a_task_that_panics_costs_its_peer_the_protocol_and_nothing_else() {
    scenario(1, secs(60), |world| async move {
        let (mut a, mut b) = (peer(&world.host("a"), config(1)).await, peer(&world.host("b"), config(2)).await);
        let mut c = peer(&world.host("c"), config(3)).await;
        let mut frail = Protocol::new("frail", 1..=1);
        let mut streams = frail.streams();
        let frail = a.node.register(frail).unwrap();
        let (opener, doomed) = (frail.handle(), b.id());
        tokio::spawn(frail.run(OnFailure::DropProtocol, move |peer, _| {
            let opener = opener.clone();
            async move {
                time::sleep(secs(1)).await;
                assert_ne!(peer, doomed, "not this one");
                let mut stream = opener.open(peer).await.map_err(|error| error.to_string())?;
                stream.write_all(b"well").await.map_err(|error| error.to_string())?;
                stream.shutdown().await.map_err(|error| error.to_string())
            }
        }));
        tokio::spawn(async move { while streams.accept().await.is_some() {} });
        let mut theirs = [speak(&b.node, "frail"), speak(&c.node, "frail")];
        for other in [&mut b, &mut c] {
            other.node.dial(a.node.ticket()).await.unwrap();
            other.up().await;
            a.up().await;
        }
        let up = Some(PeerEvent::Up { peer: a.id(), version: 1 });
        assert_eq!(theirs[0].peers.next().await, up);
        assert_eq!(theirs[1].peers.next().await, up);
        assert_eq!(theirs[0].peers.next().await, Some(PeerEvent::Down { peer: a.id(), reason: Gone::Unregistered }));
        loop {
            let event = a.events.recv().await.unwrap();
            if let Event::ProtocolFailed { peer, protocol, why } = event {
                assert_eq!((peer, &*protocol), (b.id(), "frail"));
                assert!(why.contains("not this one"), "{why}");
                break;
            }
        }
        // The other peer's task did its work, and both connections serve the other protocol.
        let (from, mut stream) = theirs[1].streams.accept().await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        assert_eq!((from, &*text), (a.id(), "well"));
        assert!(theirs[1].peers.contains(a.id()));
        echo(&mut b, &mut a).await;
        echo(&mut c, &mut a).await;
        // It is spoken again on the next connection.
        assert!(b.node.disconnect(a.id(), 0, "once more"));
        b.down().await;
        b.node.dial(a.node.ticket()).await.unwrap();
        assert_eq!(theirs[0].peers.next().await, up);
    });
}

/// Waits until a protocol fails with a peer.
async fn failure(at: &mut Peer) -> (PeerId, String, String) {
    loop {
        let event = at.events.recv().await.expect("the node runs");
        if let Event::ProtocolFailed { peer, protocol, why } = event {
            return (peer, protocol, why);
        }
    }
}

#[test]
fn state_of_a_peer_that_panics_when_it_is_made_costs_the_peer_the_protocol_and_nothing_else() {
    scenario(1, secs(60), |world| async move {
        let (mut a, mut b) = (peer(&world.host("a"), config(1)).await, peer(&world.host("b"), config(2)).await);
        let mut c = peer(&world.host("c"), config(3)).await;
        let doomed = b.id();
        let mut frail = Protocol::new("frail", 1..=1);
        let (_tx, mut rx) = frail.channel(Channel::new(1));
        let first = frail.slot(|_| 0_u32);
        let _second = frail.slot(move |peer| assert_ne!(peer, doomed, "not this one"));
        let mut ours = a.node.register(frail).unwrap();
        let mut theirs = [speak(&b.node, "frail"), speak(&c.node, "frail")];
        for _ in 0..2 {
            b.node.dial(a.node.ticket()).await.unwrap();
            assert_eq!((a.up().await, b.up().await), (b.id(), a.id()));
            let (peer, protocol, why) = failure(&mut a).await;
            assert_eq!((peer, &*protocol), (b.id(), "frail"));
            assert!(why.contains("not this one"), "{why}");
            time::sleep(secs(1)).await;
            assert!(!theirs[0].peers.contains(a.id()), "the other side is told");
            assert_eq!(first.with(b.id(), |count| *count), None, "what was made before is dropped");
            echo(&mut b, &mut a).await;
            assert!(b.node.disconnect(a.id(), 0, "once more"));
            a.down().await;
            b.down().await;
        }
        // Another peer has the protocol, and the first one was never told as one that does.
        c.node.dial(a.node.ticket()).await.unwrap();
        assert_eq!(ours.next().await, Some(PeerEvent::Up { peer: c.id(), version: 1 }));
        assert_eq!(theirs[1].peers.next().await, Some(PeerEvent::Up { peer: a.id(), version: 1 }));
        assert_eq!(theirs[1].tx.send(&To::All, "well".into()).queued, 1);
        assert_eq!(rx.recv().await, Some((c.id(), "well".into())));
        assert_eq!(first.with(c.id(), |count| *count), Some(0));
        echo(&mut c, &mut a).await;
    });
}

#[test]
fn a_task_that_fails_with_its_connection_brings_no_peer_back() {
    scenario(1, secs(120), |world| async move {
        let (mut a, mut b) = (peer(&world.host("a"), config(1)).await, peer(&world.host("b"), config(2)).await);
        let _theirs = speak(&b.node, "frail");
        // The more turns the task takes to fail, the later the switch hears of it.
        for turns in 0..6 {
            let frail = a.node.register(Protocol::new("frail", 1..=1)).unwrap();
            let opener = frail.handle();
            tokio::spawn(frail.run(OnFailure::DropProtocol, move |peer, _| {
                let opener = opener.clone();
                async move {
                    let mut stream = opener.open(peer).await.map_err(|error| error.to_string())?;
                    stream.write_all(b"well").await.map_err(|error| error.to_string())?;
                    let read = stream.read_u8().await.map_err(|error| error.to_string());
                    for _ in 0..turns {
                        let _ = tokio::spawn(async {}).await;
                    }
                    read.map(|_| ())
                }
            }));
            b.node.dial(a.node.ticket()).await.unwrap();
            assert_eq!((a.up().await, b.up().await), (b.id(), a.id()));
            time::sleep(secs(1)).await;
            assert!(b.node.disconnect(a.id(), 0, "once more"));
            a.down().await;
            b.down().await;
            time::sleep(secs(1)).await;
            assert_eq!((a.pending().await, a.node.peers()), (vec![], vec![]), "{turns} turns");
            assert!(a.node.unregister("frail"));
        }
    });
}

/// State that panics when it is dropped.
struct Brittle;

impl Drop for Brittle {
    fn drop(&mut self) {
        panic!("it breaks");
    }
}

#[test]
fn state_of_a_peer_that_panics_when_it_is_dropped_harms_nobody_else() {
    scenario(1, secs(60), |world| async move {
        let (mut a, mut b) = (peer(&world.host("a"), config(1)).await, peer(&world.host("b"), config(2)).await);
        let mut brittle = Protocol::new("brittle", 1..=1);
        let _first = brittle.slot(|_| Brittle);
        let second = brittle.slot(|_| 0_u32);
        let mut ours = a.node.register(brittle).unwrap();
        let _theirs = speak(&b.node, "brittle");
        let up = Some(PeerEvent::Up { peer: b.id(), version: 1 });
        for last in [false, true] {
            b.node.dial(a.node.ticket()).await.unwrap();
            assert_eq!((a.up().await, b.up().await, ours.next().await), (b.id(), a.id(), up.clone()));
            assert_eq!(second.with(b.id(), |count| *count), Some(0));
            if last {
                assert!(a.node.unregister("brittle"));
            } else {
                assert!(b.node.disconnect(a.id(), 0, "once more"));
            }
            let (peer, protocol, why) = failure(&mut a).await;
            assert_eq!((peer, &*protocol), (b.id(), "brittle"));
            assert!(why.contains("it breaks"), "{why}");
            assert!(matches!(ours.next().await, Some(PeerEvent::Down { .. })));
            assert_eq!(second.with(b.id(), |count| *count), None, "it is dropped all the same");
            if !last {
                a.down().await;
                b.down().await;
            }
        }
        assert_eq!(ours.next().await, None);
        echo(&mut b, &mut a).await;
    });
}

#[test]
fn state_of_a_peer_may_be_made_with_the_nodes_help() {
    scenario(1, secs(60), |world| async move {
        let (mut a, mut b) = (peer(&world.host("a"), config(1)).await, peer(&world.host("b"), config(2)).await);
        let node = a.node.clone();
        let mut asking = Protocol::new("asking", 1..=1);
        let slot = asking.slot(move |_| node.register(Protocol::new("another", 1..=1)).is_ok());
        let _ours = a.node.register(asking).unwrap();
        let _theirs = speak(&b.node, "asking");
        b.node.dial(a.node.ticket()).await.unwrap();
        assert_eq!((a.up().await, b.up().await), (b.id(), a.id()));
        assert_eq!(slot.with(b.id(), |registered| *registered), Some(true));
        a.node.close().await; // the protocol keeps a handle to its node
    });
}

#[test]
fn reasons_arrive_at_the_other_side_unchanged() {
    scenario(1, secs(60), |world| async move {
        let (mut a, mut b) = (peer(&world.host("a"), config(1)).await, peer(&world.host("b"), config(2)).await);
        let dismissed = Gone::Dismissed { code: 65_535, why: "the game is over".into() };
        b.node.dial(a.node.ticket()).await.unwrap();
        a.up().await;
        b.up().await;
        assert!(a.node.disconnect(b.id(), 65_535, "the game is over"));
        assert_eq!((a.down().await, b.down().await), (dismissed.clone(), dismissed.clone()));
        loop {
            let event = b.events.recv().await.unwrap();
            if let Event::PeerDown { reason, .. } = event {
                assert_eq!(reason, dismissed);
                break;
            }
        }
        assert!(!a.node.disconnect(b.id(), 1, "it is gone already"));

        let failing = a.node.register(Protocol::new("ledger", 1..=1)).unwrap();
        tokio::spawn(failing.run(OnFailure::DropPeer, |_, _| async {
            time::sleep(secs(1)).await;
            Err::<(), _>("it does not add up")
        }));
        let _theirs = speak(&b.node, "ledger");
        b.node.dial(a.node.ticket()).await.unwrap();
        a.up().await;
        b.up().await;
        let failed = Gone::Failed("ledger".into());
        assert_eq!((a.down().await, b.down().await), (failed.clone(), failed));
    });
}

#[test]
fn a_slot_is_there_before_the_first_message_and_fresh_for_each_connection() {
    scenario(1, secs(60), |world| async move {
        let (a, b) = (bind(&world.host("a"), 1).await, bind(&world.host("b"), 2).await);
        let mut counting = Protocol::new("count", 2..=3);
        let (_tx, mut rx) = counting.channel(Channel::new(1));
        let seen = counting.slot(|_| 0_u32);
        let shown = seen.clone();
        let about = move |peer| match peer {
            Some(peer) => format!("{} seen {}", shown.with(peer, |seen| *seen).unwrap(), "é".repeat(2_000)),
            None => "counts".to_owned(),
        };
        let mut peers = a.register(counting.about(about)).unwrap();
        let mut asking = Protocol::new("count", 1..=2);
        let (tx, _rx) = asking.channel(Channel::new(1));
        let mut theirs = b.register(asking).unwrap();
        for _ in 0..2 {
            b.dial(a.ticket()).await.unwrap();
            theirs.next().await;
            for n in 1..=3 {
                assert_eq!(tx.send(&To::All, "one more".into()).queued, 1);
                let (from, _) = rx.recv().await.unwrap();
                assert_eq!(seen.with(from, |seen| (*seen += 1, *seen).1), Some(n));
            }
            let status = a.status().await;
            assert_eq!((&*status.protocols[0].about, status.protocols[0].versions.clone()), ("counts", 2..=3));
            let spoken = &status.peers[0].protocols[0];
            assert_eq!((&*spoken.name, spoken.versions.clone()), ("count", 2..=2));
            assert!(spoken.about.starts_with("3 seen é") && spoken.about.len() <= byway::MAX_ABOUT, "{}", spoken.about);
            b.disconnect(a.id(), 0, "");
            theirs.next().await;
            assert!(matches!(peers.next().await, Some(PeerEvent::Up { .. })));
            assert!(matches!(peers.next().await, Some(PeerEvent::Down { .. })));
            assert_eq!(seen.with(b.id(), |seen| *seen), None);
        }
    });
}
