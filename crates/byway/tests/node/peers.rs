//! Who is let in and who is not, over this machine's own sockets.

use std::{fs, path::Path, time::Duration};

use byway::{
    DialError, Filter, Gone, HostAddr, Node, NotDialing, OpenError, PeerAddr, PeerEvent, PeerId, UnixTime,
    book::{Contact, Record},
    store::Store,
};
use tokio::time;

use crate::common::{Peer, V4, addr_of, config, connected, until};

#[tokio::test]
async fn a_ban_closes_the_connection_and_outlives_a_restart_and_both_sides_are_told() {
    let dir = std::env::temp_dir().join(format!("byway-peers-{}", std::process::id()));
    fs::create_dir_all(&dir).unwrap();
    let mut settings = config(1, V4);
    settings.store = Some(dir.join("book.rows"));
    let mut a = Peer::bind(settings.clone()).await;
    let mut b = Peer::bind(config(2, V4)).await;
    b.node.dial(a.node.ticket()).await.unwrap();
    a.up().await;
    b.up().await;
    a.node.ban(b.id(), UnixTime::NEVER, "by hand").await.unwrap();
    for peer in [&mut a, &mut b] {
        assert!(matches!(peer.peers.next().await, Some(PeerEvent::Down { reason: Gone::Banned, .. })));
    }
    assert!(matches!(a.node.dial(b.node.ticket()).await, Err(DialError::Banned(peer)) if peer == b.id()));
    a.node.close().await;
    settings.port = a.node.port();
    drop(a); // and its socket
    let again = rebind(settings).await;
    let refused = b.node.dial(again.ticket()).await.unwrap_err();
    assert!(matches!(refused, DialError::Hello { reason: Gone::Banned, .. }), "{refused}");
    assert!(matches!(again.why_not_dialing(b.id()).await, Some(NotDialing::Banned { .. })));
    let known = again.known_peers().await;
    assert!(matches!(&known[..], [Record { ban: Some(ban), .. }] if ban.why == "by hand"));
    assert!(again.unban(b.id()).await.unwrap() && !again.unban(b.id()).await.unwrap());
    b.node.dial(again.ticket()).await.unwrap();
    again.close().await;
    let _ = fs::remove_dir_all(dir);
}

#[tokio::test]
async fn a_stream_to_a_peer_that_is_being_sent_away_is_refused_for_that_and_not_for_too_many() {
    let (a, b) = connected(V4).await;
    assert!(a.node.disconnect(b.id(), 1, "enough"));
    let refused = a.peers.open(b.id()).await.unwrap_err();
    assert_eq!(refused, OpenError::Gone(Gone::Disconnected));
}

/// The port and the file of a node that has just closed.
async fn rebind(settings: byway::Config) -> Node {
    for _ in 0..100 {
        if let Ok(node) = Node::bind(settings.clone()).await {
            return node;
        }
        time::sleep(Duration::from_millis(20)).await;
    }
    Node::bind(settings).await.unwrap()
}

/// Whether a node's file tells of a peer: a copy of it does, for the file is the node's while it runs.
fn is_stored(file: &Path, peer: PeerId) -> bool {
    let copy = file.with_extension("copy");
    fs::copy(file, &copy).unwrap();
    let opened = Store::open(&copy, UnixTime(1)); // the last copy may be closing still
    opened.is_ok_and(|(_, opened)| opened.records.iter().any(|record| record.peer == peer))
}

#[tokio::test]
async fn a_peer_that_was_reached_is_on_the_disk_a_second_later_and_when_the_node_closes_at_once() {
    for closes in [false, true] {
        let dir = std::env::temp_dir().join(format!("byway-reached-{closes}-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let file = dir.join("book.rows");
        let mut settings = config(1, V4);
        (settings.store, settings.peers.discover) = (Some(file.clone()), true);
        let (a, b) = (Node::bind(settings).await.unwrap(), Node::bind(config(2, V4)).await.unwrap());
        a.dial(b.ticket()).await.unwrap();
        if closes {
            a.close().await;
            assert!(is_stored(&file, b.id()));
        } else {
            let end = time::Instant::now() + Duration::from_secs(5);
            while !is_stored(&file, b.id()) {
                assert!(time::Instant::now() < end, "nobody waits for it, and it is not written");
                time::sleep(Duration::from_millis(100)).await;
            }
        }
        let _ = fs::remove_dir_all(dir);
    }
}

#[tokio::test]
async fn friends_are_let_in_where_strangers_are_told_that_it_is_full() {
    let mut settings = config(1, V4);
    (settings.peers.max_peers, settings.peers.reserved) = (2, 1);
    let friend = Node::bind(config(4, V4)).await.unwrap();
    settings.peers.unconditional = [friend.id()].into();
    let a = Node::bind(settings).await.unwrap();
    let (b, c) = (Node::bind(config(2, V4)).await.unwrap(), Node::bind(config(3, V4)).await.unwrap());
    b.dial(a.ticket()).await.unwrap();
    until(&a, Duration::from_secs(5), |status| status.peers.len() == 1).await;
    let refused = c.dial(a.ticket()).await.unwrap_err();
    assert!(matches!(refused, DialError::Hello { reason: Gone::Full, .. }), "{refused}");
    friend.dial(a.ticket()).await.unwrap();
    until(&a, Duration::from_secs(5), |status| status.peers.len() == 2).await;
}

#[tokio::test]
async fn a_filter_is_asked_about_strangers_and_its_words_reach_them() {
    let mut settings = config(1, V4);
    settings.filter = Some(Filter::one_per_ip());
    let a = Node::bind(settings).await.unwrap();
    let (b, c) = (Node::bind(config(2, V4)).await.unwrap(), Node::bind(config(3, V4)).await.unwrap());
    b.dial(a.ticket()).await.unwrap();
    until(&a, Duration::from_secs(5), |status| status.peers.len() == 1).await;
    let refused = c.dial(a.ticket()).await.unwrap_err();
    let DialError::Hello { reason: Gone::Filtered(why), .. } = refused else { panic!("{refused}") };
    assert_eq!(why, "another peer is connected from the same address");
}

#[tokio::test]
async fn a_persistent_peer_is_found_by_its_name_and_dialled_again_when_it_comes_back() {
    let b = Node::bind(config(2, V4)).await.unwrap();
    let port = addr_of(&b).port();
    let mut settings = config(1, V4);
    let name: HostAddr = format!("localhost:{port}").parse().unwrap();
    settings.peers.persistent = vec![PeerAddr { id: b.id(), addrs: vec![name] }];
    let a = Node::bind(settings).await.unwrap();
    let is_up = |status: &byway::NodeStatus| status.peers.len() == 1;
    until(&a, Duration::from_secs(10), is_up).await;
    b.close().await;
    drop(b); // and its socket
    until(&a, Duration::from_secs(10), |status| status.peers.is_empty()).await;
    let mut settings = config(2, V4);
    settings.port = port;
    let _b = rebind(settings).await;
    until(&a, Duration::from_secs(20), is_up).await;
}

#[tokio::test]
async fn the_owner_writes_peers_into_the_book_and_takes_them_along() {
    let (a, b) = (Node::bind(config(1, V4)).await.unwrap(), Node::bind(config(2, V4)).await.unwrap());
    let contact = PeerAddr::new(config(3, V4).identity.id(), [std::net::SocketAddr::from(([198, 51, 100, 1], 7))]);
    a.add_peer(contact.clone().into()).await.unwrap();
    assert!(a.add_peer(Contact::new(a.id())).await.is_err(), "not itself");
    let known = a.known_peers().await;
    assert_eq!(known[0].proven.as_ref().map(|(known, _)| known.clone()), Some(Contact::from(contact)));
    assert_eq!(b.import_peers(a.export_peers().await).await.unwrap().known, 1);
    assert_eq!(b.known_peers().await, known);
    assert_eq!(b.why_not_dialing(known[0].peer).await, Some(NotDialing::NoDiscovery));
}

#[tokio::test]
async fn a_peer_that_an_import_bans_is_sent_away_and_a_private_one_is_not_exported() {
    let mut settings = config(3, V4);
    let private = config(4, V4).identity.id();
    settings.peers.private = [private].into();
    let other = Node::bind(settings).await.unwrap();
    let mut a = Peer::bind(config(1, V4)).await;
    let mut b = Peer::bind(config(2, V4)).await;
    for peer in [b.id(), private] {
        other.ban(peer, UnixTime::NEVER, "there").await.unwrap();
    }
    assert_eq!(other.known_peers().await.len(), 2);
    let rows = other.export_peers().await;
    assert!(rows.iter().map(|row| row.peer).eq([b.id()]), "{rows:?}");
    a.node.dial(b.node.ticket()).await.unwrap();
    a.up().await;
    b.up().await;
    let imported = a.node.import_peers(rows).await.unwrap();
    assert_eq!((imported.known, imported.banned), (0, 1));
    for peer in [&mut a, &mut b] {
        assert!(matches!(peer.peers.next().await, Some(PeerEvent::Down { reason: Gone::Banned, .. })));
    }
    assert!(matches!(a.node.dial(b.node.ticket()).await, Err(DialError::Banned(peer)) if peer == b.id()));
}

#[tokio::test]
async fn a_peer_is_dialled_by_its_id_alone_where_the_book_has_it() {
    let (a, b) = (Node::bind(config(1, V4)).await.unwrap(), Node::bind(config(2, V4)).await.unwrap());
    a.add_peer(PeerAddr::new(b.id(), [addr_of(&b)]).into()).await.unwrap();
    assert_eq!(a.dial(b.id()).await.unwrap(), b.id());
}

#[tokio::test]
async fn as_many_wait_for_one_dial_as_may_and_the_next_one_is_told() {
    let a = Node::bind(config(1, V4)).await.unwrap();
    let silent = std::net::UdpSocket::bind((V4, 0)).unwrap();
    let target = PeerAddr::new(config(9, V4).identity.id(), [silent.local_addr().unwrap()]);
    let mut dials = tokio::task::JoinSet::new();
    for _ in 0..65 {
        let (a, target) = (a.clone(), target.clone());
        dials.spawn(async move { a.dial(target).await });
    }
    let first = time::timeout(Duration::from_secs(3), dials.join_next()).await;
    let first = first.expect("nobody is told until the dial fails").unwrap().unwrap();
    assert!(matches!(first, Err(DialError::TooMany(peer)) if peer == target.id), "{first:?}");
    a.close().await;
    let mut waited = 0;
    while let Some(dial) = dials.join_next().await {
        assert!(matches!(dial.unwrap(), Err(DialError::Closed)));
        waited += 1;
    }
    assert_eq!(waited, 64);
}

#[tokio::test]
async fn an_address_that_leads_back_to_the_node_itself_is_dialled_once() {
    let a = Node::bind(config(1, V4)).await.unwrap();
    let other = PeerAddr::new(config(9, V4).identity.id(), [addr_of(&a)]);
    let error = a.dial(other.clone()).await.unwrap_err();
    assert!(matches!(error, DialError::OtherKey { .. }), "{error}");
    assert!(error.to_string().contains("the key is this node's own"), "{error}");
    let again = a.dial(other).await.unwrap_err();
    assert!(matches!(again, DialError::NoWay(_)), "{again}");
}
