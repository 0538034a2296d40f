//! The packet path over a socket that exists only here.

use std::{
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    task::{Wake, Waker},
    time::Duration,
};

use byway_proto::{
    PeerId,
    gate::{GateConfig, STRAY_RATE_PER_SOURCE, STUN_RATE_PER_SOURCE, Source},
    hello::Control,
    paths::{Plan, RouteId, RouteSet},
    relay::{Input, RelayConfig},
    wire::{fragment, probe, relay_data, relay_data::AllocId},
};

use super::*;
use crate::{
    config::Config,
    identity::Identity,
    net::{
        UdpSocket,
        track::{State, Track},
    },
    quic::endpoint::Endpoint,
    tasks::Tasks,
};

const ALLOC: AllocId = AllocId(0x0102_0304_0506_0708);
const OTHER: AllocId = AllocId(0x1112_1314_1516_1718);

#[tokio::test]
async fn one_buffer_of_everything_is_sorted_by_segment() {
    let mut bench = Bench::new(Welcome::Everyone);
    let peer = bench.peer(1, &[v4(1)]);
    let [short, long, last] = [short(1, 60), long(0xe0, &cid(1), 60), short(1, 40)];
    let (stun, probe, junk) = (padded(stun::binding_request([7; 12]), 60), probe(1, 60), vec![0x05; 60]);
    let relayed = relayed(ALLOC, &self::short(1, 51));
    let segments = [&short, &stun, &probe, &junk, &long, &relayed, &last];
    bench.v4.arrive(v4(1), 60, &segments.map(Vec::as_slice).concat());
    assert_eq!(bench.receive(), [(peer.alias(), 60, [short, long, last].concat())]);
    assert_eq!(bench.control(), [(Via::Direct(v4(1)), probe)]);
    assert_eq!(bench.dropped(Dropped::Junk), 2, "only a relay answers STUN");
    assert_eq!(bench.dropped(Dropped::NotOurRelay), 1);
}

#[tokio::test]
async fn relayed_segments_of_two_peers_in_one_buffer_lose_their_prefix_and_part() {
    let bench = Bench::new(Welcome::Everyone);
    assert!(bench.mux.routes.add_relay(v4(9)));
    let one = bench.peer_via(1, &[Via::Relay(v4(9), ALLOC)]);
    let two = bench.peer_via(2, &[Via::Relay(v4(9), OTHER)]);
    let segments = [
        relayed(ALLOC, &short(1, 51)),
        relayed(OTHER, &short(2, 51)),
        relayed(ALLOC, &short(1, 51)),
        relayed(OTHER, &short(2, 33)),
    ];
    bench.v4.arrive(v4(9), 60, &segments.concat());
    assert_eq!(bench.receive(), [(one.alias(), 51, [short(1, 51), short(1, 51)].concat())]);
    assert_eq!(bench.receive(), [(two.alias(), 51, short(2, 51)), (two.alias(), 33, short(2, 33))]);
    assert_eq!(bench.receive(), []);
}

#[tokio::test]
async fn a_longer_segment_behind_a_shorter_one_gets_a_buffer_of_its_own() {
    let bench = Bench::new(Welcome::Everyone);
    assert!(bench.mux.routes.add_relay(v4(9)));
    let peer = bench.peer_via(1, &[Via::Relay(v4(9), ALLOC)]);
    // The whole of a fragmented datagram is longer than its halves.
    let whole = short(1, 90);
    let [first, second] = fragment::split(&whole, key_id(1), 1);
    let len = 9 + first.len();
    let buffer = [relayed(ALLOC, &first), relayed(ALLOC, &short(1, len - 9)), relayed(ALLOC, &second)].concat();
    bench.v4.arrive(v4(9), len, &buffer);
    assert_eq!(bench.receive(), [(peer.alias(), len - 9, short(1, len - 9))]);
    assert_eq!(bench.receive(), [(peer.alias(), 90, whole)]);
}

#[tokio::test]
async fn forged_alias_sources_are_dropped() {
    let bench = Bench::new(Welcome::Everyone);
    let peer = bench.peer(1, &[v4(1)]);
    bench.v6.arrive(peer.alias(), 50, &[short(1, 50), short(1, 50), short(1, 20)].concat());
    assert_eq!(bench.receive(), []);
    assert_eq!(bench.dropped(Dropped::ForgedAlias), 3);
}

#[tokio::test]
async fn datagrams_from_the_outside_that_claim_to_come_over_a_websocket_are_dropped() {
    let bench = Bench::new(Welcome::Everyone);
    let websocket: SocketAddr = "[100:0:0:1::]:1".parse().unwrap();
    let _peer = bench.peer(1, &[websocket]);
    bench.v6.arrive(websocket, 50, &short(1, 50));
    assert_eq!(bench.receive(), []);
    assert_eq!(bench.dropped(Dropped::ForgedAlias), 1);
}

#[tokio::test]
async fn a_datagram_larger_than_any_peer_sends_is_dropped() {
    let bench = Bench::new(Welcome::Everyone);
    let _peer = bench.peer(1, &[v4(1)]);
    bench.v4.arrive(v4(1), 40_000, &short(1, 40_000));
    assert_eq!(bench.receive(), []);
    assert_eq!(bench.dropped(Dropped::TooLarge), 1);
}

#[tokio::test]
async fn one_handshake_from_two_spoofed_sources_earns_neither_more_than_three_times() {
    let bench = Bench::new(Welcome::Everyone);
    bench.v4.arrive(v4(1), 1_200, &long(0xc0, &[5; 12], 1_200));
    let [(alias, ..)] = bench.receive()[..] else { panic!("one stranger") };
    for _ in 0..5 {
        bench.send(alias, &long(0xc0, &[6; 8], 1_200), None).unwrap();
    }
    assert_eq!(bench.v4.bytes_to(v4(1)), 3_600);
    bench.v4.arrive(v4(2), 1_200, &long(0xc0, &[5; 12], 1_200)); // gets what was sent so far
    bench.v4.arrive(v4(3), 50, &long(0xe0, &[5; 12], 50));
    assert_eq!(bench.receive().len(), 2);
    for _ in 0..5 {
        bench.send(alias, &long(0xe0, &[6; 8], 40), None).unwrap();
        bench.send(alias, &long(0xe0, &[6; 8], 1_200), None).unwrap();
    }
    assert_eq!(bench.v4.bytes_to(v4(1)), 3_600);
    assert_eq!(bench.v4.bytes_to(v4(2)), 3_600);
    assert!((40..=150).contains(&bench.v4.bytes_to(v4(3))), "{} bytes", bench.v4.bytes_to(v4(3)));
}

#[tokio::test]
async fn a_stranger_from_another_place_does_not_join_an_established_connection() {
    let bench = Bench::new(Welcome::Everyone);
    let peer = bench.peer(1, &[v4(1)]);
    bench.v4.arrive(v4(2), 1_200, &long(0xc0, &cid(1), 1_200));
    bench.v4.arrive(v4(2), 50, &short(1, 50));
    assert_eq!(bench.receive(), []);
    assert_eq!(bench.dropped(Dropped::UnknownSource), 2);
    assert_eq!(peer.vias(), [Via::Direct(v4(1))]);
}

#[tokio::test]
async fn a_hedged_second_copy_never_makes_quic_wait() {
    let bench = Bench::new(Welcome::Everyone);
    let peer = bench.peer(1, &[v4(1), v6(1)]);
    state(&peer, |state| state.plan = Plan::Several([RouteId(0), RouteId(1)].into_iter().collect::<RouteSet>()));
    bench.v6.fill();
    bench.send(peer.alias(), &short(1, 100), None).unwrap();
    assert_eq!((bench.v4.bytes_to(v4(1)), bench.v6.bytes_to(v6(1))), (100, 0));
    assert_eq!(bench.dropped(Dropped::SocketFull), 1);
    // If the first refuses, there is no copy yet, for QUIC sends it again.
    bench.v6.accept();
    bench.v4.fill();
    assert_eq!(bench.send(peer.alias(), &short(1, 100), None).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    assert_eq!(bench.v6.bytes_to(v6(1)), 0);
}

#[tokio::test]
async fn a_full_socket_blocks_its_own_connections_and_wakes_them() {
    let bench = Bench::new(Welcome::Everyone);
    let (over_v4, over_v6) = (bench.peer(1, &[v4(1)]), bench.peer(2, &[v6(2)]));
    let (mut one, mut two) = (Conn::new(&bench), Conn::new(&bench));
    bench.v4.fill();
    assert!(one.may_send(), "nothing was refused yet");
    assert!(bench.send(over_v4.alias(), &short(1, 50), None).is_err());
    assert!(!one.may_send());
    assert!(two.may_send());
    bench.send(over_v6.alias(), &short(2, 50), None).unwrap();
    assert!(two.may_send());
    assert_eq!((one.wakes(), two.wakes()), (0, 0));
    bench.v4.accept();
    assert_eq!((one.wakes(), two.wakes()), (1, 0));
    assert!(one.may_send());
    bench.send(over_v4.alias(), &short(1, 50), None).unwrap();
}

#[tokio::test]
async fn an_answer_to_a_stranger_that_does_not_fit_blocks_no_connection() {
    let bench = Bench::new(Welcome::Everyone);
    let over_v6 = bench.peer(2, &[v6(2)]);
    let mut conn = Conn::new(&bench);
    bench.v4.fill();
    assert!(bench.send(v4(77), &short(9, 50), None).is_err(), "QUIC sends such an answer without asking, and once");
    assert_eq!(bench.dropped(Dropped::SocketFull), 1);
    assert!(conn.may_send());
    bench.send(over_v6.alias(), &short(2, 50), None).unwrap();
}

#[tokio::test]
async fn errors_of_sending_and_receiving_are_loss_to_quic() {
    let bench = Bench::new(Welcome::Everyone);
    let peer = bench.peer(1, &[v4(1)]);
    for errno in [90, 22, 111] {
        // EMSGSIZE, EINVAL, ECONNREFUSED
        bench.v4.refuse_with(errno);
        bench.send(peer.alias(), &short(1, 100), Some(50)).unwrap();
        bench.v4.fail(errno);
        assert_eq!(bench.receive(), []);
    }
    assert_eq!(bench.dropped(Dropped::SendError), 3);
    assert_eq!(bench.dropped(Dropped::ReceiveError), 3);
    bench.v4.accept();
    bench.send(peer.alias(), &short(1, 100), None).unwrap();
    assert_eq!(bench.v4.bytes_to(v4(1)), 100);
}

#[tokio::test]
async fn a_batch_through_a_relay_is_one_send_with_a_prefix_for_each_segment() {
    let bench = Bench::new(Welcome::Everyone);
    let peer = bench.peer_via(1, &[Via::Relay(v4(9), ALLOC)]);
    let batch = [short(1, 100), short(1, 100), short(1, 30)];
    bench.send(peer.alias(), &batch.concat(), Some(100)).unwrap();
    let laid = batch.map(|datagram| relayed(ALLOC, &datagram)).concat();
    assert_eq!(bench.v4.sent(), [(v4(9), laid, Some(109))]);
}

#[tokio::test(start_paused = true)]
async fn packets_of_unknown_connections_get_few_answers_none_larger_than_its_question() {
    for via in [Via::Direct(v4(1)), Via::Relay(v4(9), ALLOC)] {
        let bench = Bench::new(Welcome::Everyone);
        assert!(bench.mux.routes.add_relay(v4(9)));
        let _endpoint = bench.endpoint();
        let question = |len| padded([&[0x40][..], &bench.mux.routes.draw_cid()].concat(), len);
        for len in (20..220).chain(20..220).chain(20..220) {
            bench.v4.arrive_via(via, &question(len));
            bench.v4.arrive_via(via, &short(9, len)); // never was a connection here
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
        let answers = bench.v4.sent();
        let most = answers.iter().map(|(_, bytes, _)| bytes.len()).max();
        assert!(
            (1..=STRAY_RATE_PER_SOURCE.1 as usize + 2).contains(&answers.len()),
            "{via:?}: {} answers",
            answers.len()
        );
        assert!(most < Some(220 + 9 * usize::from(via.is_relay())), "{via:?}: {most:?} bytes");
        assert!(answers.iter().all(|(to, ..)| *to == via.remote()));
        assert!(bench.dropped(Dropped::StrangerRate) > 0);
        assert_eq!(bench.dropped(Dropped::UnknownConnection), 600);
        let other = if via.is_relay() { Via::Relay(v4(9), OTHER) } else { Via::Direct(v4(2)) };
        bench.v4.arrive_via(other, &question(50));
        tokio::time::sleep(Duration::from_millis(10)).await;
        assert_eq!(bench.v4.sent().len(), 1, "{other:?} has a share of its own");
        bench.v4.arrive_via(via, &question(21));
        tokio::time::sleep(Duration::from_secs(1)).await;
        let answers = bench.v4.sent();
        assert!(answers.iter().all(|(_, bytes, _)| bytes.len() < 21 + 9), "{answers:?}");
    }
}

#[tokio::test]
async fn packets_under_a_peers_forged_address_do_not_fill_its_backlog() {
    let bench = Bench::new(Welcome::Everyone);
    let peer = bench.peer(1, &[v4(1)]);
    bench.mux.routes.learn_route(Via::Direct(v4(1)), &peer);
    let mut passed = 0;
    for n in 0..20_000_u64 {
        let mut forged = short(0, 60);
        forged[1..9].copy_from_slice(&(1 << 40 | n).to_be_bytes());
        bench.v4.arrive(v4(1), 60, &forged);
        passed += bench.receive().len();
    }
    assert!((1..100).contains(&passed), "{passed} may be a stateless reset");
    bench.v4.arrive(v4(1), 60, &short(1, 60));
    assert_eq!(bench.receive(), [(peer.alias(), 60, short(1, 60))]);
}

#[tokio::test]
async fn strangers_probes_do_not_reach_the_agent() {
    let mut bench = Bench::new(Welcome::Everyone);
    let _peer = bench.peer(1, &[v4(1)]);
    for _ in 0..2 * AGENT_QUEUE {
        bench.v4.arrive(v4(2), 60, &probe(66, 60));
        bench.receive();
    }
    bench.v4.arrive(v4(1), 60, &probe(1, 60));
    bench.receive();
    assert_eq!(bench.control(), [(Via::Direct(v4(1)), probe(1, 60))]);
    assert_eq!(bench.dropped(Dropped::UnknownProbe), 2 * AGENT_QUEUE as u64);
}

#[tokio::test]
async fn a_relay_answers_stun_within_a_rate() {
    let mut bench = Bench::new(Welcome::Everyone);
    bench.relay(&[]);
    for _ in 0..10_000 {
        bench.v4.arrive(v4(1), 20, &stun::binding_request([7; 12]));
        bench.receive();
    }
    let answers = bench.v4.sent();
    let burst = STUN_RATE_PER_SOURCE.1 as usize;
    assert!((burst..10_000).contains(&answers.len()), "{} answers", answers.len());
    assert_eq!(stun::parse_response(&answers[0].1, &[7; 12]), Some(v4(1)));
    assert_eq!(bench.dropped(Dropped::StunRate), 10_000 - answers.len() as u64);
    let other: SocketAddr = ([198, 51, 100, 7], 9).into();
    bench.v4.arrive(other, 20, &stun::binding_request([9; 12]));
    bench.receive();
    let answers = bench.v4.sent();
    assert!(answers.iter().any(|(to, ..)| *to == other), "one source's flood keeps no answer from another");
    bench.mux.send_stun(SocketId::MAIN, v4(2), &stun::binding_request([8; 12]));
    let own = stun::binding_response([8; 12], v4(3));
    bench.v4.arrive(v4(2), own.len(), &own);
    assert_eq!(bench.receive(), []);
    assert_eq!(bench.control().len(), 1, "what strangers ask keeps no answer from the relay's own survey");
}

#[tokio::test]
async fn a_relay_answers_to_the_port_that_is_asked_for_and_from_nowhere_else() {
    let bench = Bench::new(Welcome::Everyone);
    bench.relay(&[]);
    let plain = stun::Request { txid: [7; 12], response_port: Some(777), ..stun::Request::default() };
    for refused in [
        stun::Request { response_port: Some(0), ..plain },
        stun::Request { change_port: true, ..plain },
        stun::Request { change_ip: true, response_port: None, ..plain },
    ] {
        let refused = refused.to_bytes();
        bench.v4.arrive(v4(1), refused.len(), &refused);
        assert_eq!(bench.receive(), []);
    }
    assert_eq!(bench.v4.sent(), []);
    let asked = plain.to_bytes();
    bench.v4.arrive(v4(1), asked.len(), &asked);
    assert_eq!(bench.receive(), []);
    let [(to, answer, None)] = &bench.v4.sent()[..] else { panic!("one answer") };
    assert_eq!(*to, SocketAddr::new(v4(1).ip(), 777));
    assert_eq!(stun::parse_response(answer, &[7; 12]), Some(v4(1)), "it tells from where the question came");
}

#[tokio::test]
async fn a_run_of_one_allocation_is_forwarded_as_one_send_and_others_by_themselves() {
    let bench = Bench::new(Welcome::Everyone);
    bench.relay(&[(1, 2, ALLOC), (1, 3, OTHER)]);
    let [a, b] = [relayed(ALLOC, &short(1, 51)), relayed(OTHER, &short(1, 51))];
    let last = relayed(OTHER, &short(1, 20));
    bench.v4.arrive(v4(1), 60, &[&a[..], &a, &a, &b, &a, &b, &last].concat());
    assert_eq!(bench.receive(), []);
    assert_eq!(
        bench.v4.sent(),
        [
            (v4(2), [&a[..], &a, &a].concat(), Some(60)),
            (v4(3), b.clone(), None),
            (v4(2), a, None),
            (v4(3), [b, last].concat(), Some(60)),
        ]
    );
}

#[tokio::test]
async fn a_relay_that_holds_a_datagram_sets_its_timer() {
    let bench = Bench::new(Welcome::Everyone);
    bench.relay(&[(1, 2, ALLOC)]);
    bench.v4.arrive(v4(1), 60, &relayed(OTHER, &short(1, 51)));
    assert_eq!(bench.receive(), []);
    let relaying = bench.mux.relay.get().unwrap();
    assert_eq!(relaying.server.lock().unwrap().held(), 1);
    tokio::time::timeout(Duration::from_secs(1), relaying.changed.notified()).await.unwrap();
}

#[tokio::test]
async fn a_full_socket_at_a_relay_is_loss_and_counted() {
    let bench = Bench::new(Welcome::Everyone);
    bench.relay(&[(1, 2, ALLOC)]);
    let peer = bench.peer(7, &[v6(7)]);
    bench.v4.fill();
    bench.v4.arrive(v4(1), 60, &relayed(ALLOC, &short(1, 51)));
    assert_eq!(bench.receive(), []);
    assert_eq!(bench.dropped(Dropped::SocketFull), 1);
    assert!(Conn::new(&bench).may_send());
    bench.send(peer.alias(), &short(7, 50), None).unwrap();
}

#[tokio::test]
async fn a_relay_that_is_another_relays_client_gets_what_that_one_forwards() {
    let bench = Bench::new(Welcome::Everyone);
    bench.relay(&[(1, 2, OTHER)]);
    assert!(bench.mux.routes.add_relay(v4(9)));
    let peer = bench.peer_via(7, &[Via::Relay(v4(9), ALLOC)]);
    bench.v4.arrive(v4(9), 60, &relayed(ALLOC, &short(7, 51)));
    assert_eq!(bench.receive(), [(peer.alias(), 51, short(7, 51))]);
    assert_eq!(bench.v4.sent(), []);
}

#[tokio::test]
async fn a_node_that_is_not_registered_there_ignores_relayed_data() {
    let bench = Bench::new(Welcome::Everyone);
    bench.v4.arrive(v4(1), 1_209, &relayed(ALLOC, &long(0xc0, &[5; 12], 1_200)));
    assert_eq!(bench.receive(), []);
    assert_eq!(bench.dropped(Dropped::NotOurRelay), 1);
    assert_eq!((bench.v4.sent(), bench.mux.routes.read().len()), (vec![], 0));
}

#[tokio::test]
async fn a_node_that_only_dials_is_silent_towards_strangers_handshakes() {
    for (welcome, relay, expected) in [
        (Welcome::Nobody, false, 0),
        (Welcome::Nobody, true, 0),
        (Welcome::Relayed, false, 0),
        (Welcome::Relayed, true, 1),
        (Welcome::Everyone, true, 1),
    ] {
        let bench = Bench::new(welcome);
        bench.mux.routes.add_relay(v4(9));
        let via = if relay { Via::Relay(v4(9), ALLOC) } else { Via::Direct(v4(1)) };
        bench.v4.arrive_via(via, &long(0xc0, &[5; 12], 1_200));
        assert_eq!(bench.receive().len(), expected, "{welcome:?}, relayed: {relay}");
    }
}

#[tokio::test]
async fn a_route_is_a_socket_and_a_remote() {
    let mut bench = Bench::new(Welcome::Everyone);
    let further = Arc::new(Fake::default());
    bench.mux.sockets.add(SocketId(7), Arc::clone(&further) as _);
    let peer = bench.peer_via(1, &[Via::Punched(SocketId(7), v4(1))]);
    bench.send(peer.alias(), &short(1, 60), None).unwrap();
    assert_eq!((further.sent().len(), bench.v4.sent().len()), (1, 0));
    further.arrive(v4(1), 60, &short(1, 60));
    assert_eq!(bench.receive(), [(peer.alias(), 60, short(1, 60))]);
    bench.v4.arrive(v4(1), 60, &short(1, 60));
    assert_eq!((bench.receive(), bench.dropped(Dropped::UnknownSource)), (vec![], 1));
    further.arrive(v4(1), 60, &probe(1, 60));
    assert_eq!(bench.receive(), []);
    assert_eq!(bench.control(), [(Via::Punched(SocketId(7), v4(1)), probe(1, 60))]);
    further.arrive(v4(2), 1_200, &long(0xc0, &[5; 12], 1_200));
    assert_eq!(
        (bench.receive(), bench.dropped(Dropped::UnknownHandshake)),
        (vec![], 1),
        "strangers are not its business"
    );
    bench.mux.sockets.remove(SocketId(7));
    bench.send(peer.alias(), &short(1, 60), None).unwrap();
    assert_eq!((bench.v4.sent().len(), bench.dropped(Dropped::NoSocket)), (0, 1));
}

#[tokio::test]
async fn a_socket_that_is_added_while_quic_waits_is_received_from() {
    let bench = Bench::new(Welcome::Everyone);
    let peer = bench.peer_via(1, &[Via::Punched(SocketId(7), v4(1))]);
    let wakes = Arc::new(Wakes::default());
    assert_eq!(bench.receive_or_wake(&Waker::from(Arc::clone(&wakes))), []);
    let further = Arc::new(Fake::default());
    bench.mux.sockets.add(SocketId(7), Arc::clone(&further) as _);
    assert_eq!(wakes.0.load(Ordering::Relaxed), 1);
    assert_eq!(bench.receive_or_wake(&Waker::from(Arc::clone(&wakes))), []);
    further.arrive(v4(1), 60, &short(1, 60));
    assert!(wakes.0.load(Ordering::Relaxed) > 1);
    assert_eq!(bench.receive(), [(peer.alias(), 60, short(1, 60))]);
}

#[tokio::test]
async fn a_socket_that_is_added_while_the_others_are_looked_at_is_received_from() {
    let bench = Bench::new(Welcome::Everyone);
    let peer = bench.peer_via(1, &[Via::Punched(SocketId(8), v4(1))]);
    let (looked_at, added) = (Arc::new(Fake::default()), Arc::new(Fake::default()));
    added.arrive(v4(1), 60, &short(1, 60));
    let (mux, late) = (Arc::clone(&bench.mux), Arc::clone(&added));
    bench.mux.sockets.add(SocketId(7), Arc::clone(&looked_at) as _);
    looked_at.when_idle(move || assert!(mux.sockets.add(SocketId(8), late as _)));
    let wakes = Arc::new(Wakes::default());
    assert_eq!(bench.receive_or_wake(&Waker::from(Arc::clone(&wakes))), []);
    assert_eq!(wakes.0.load(Ordering::Relaxed), 1, "nothing else would");
    assert_eq!(bench.receive(), [(peer.alias(), 60, short(1, 60))]);
}

#[tokio::test]
async fn every_further_socket_gets_its_turn() {
    let bench = Bench::new(Welcome::Everyone);
    let fakes: Vec<_> = (1..=4).map(|_| Arc::new(Fake::default())).collect();
    let ids = || (1..).map(SocketId);
    let vias: Vec<Via> = ids().take(4).map(|id| Via::Punched(id, v4(1))).collect();
    let peer = bench.peer_via(1, &vias);
    for (id, fake) in ids().zip(&fakes) {
        bench.mux.sockets.add(id, Arc::clone(fake) as _);
        (0..20).for_each(|_| fake.arrive(v4(1), 60, &short(1, 60)));
    }
    let received: usize = (0..4).map(|_| bench.receive().len()).sum();
    assert_eq!(received, 16);
    let left: Vec<usize> = fakes.iter().map(|fake| fake.arriving.lock().unwrap().len()).collect();
    assert_eq!(left, [16; 4], "each was received from once");
    assert!(peer.lock().routes().all(|(_, slot)| slot.heard.is_some()));
}

#[tokio::test]
async fn stun_reaches_the_agent_as_the_answer_to_its_question_only_however_much_else_comes() {
    let mut bench = Bench::new(Welcome::Everyone);
    let answer = stun::binding_response([7; 12], v4(3));
    bench.v4.arrive(v4(1), answer.len(), &answer);
    assert_eq!((bench.receive(), bench.control(), bench.dropped(Dropped::Junk)), (vec![], vec![], 1));
    bench.mux.send_stun(SocketId::MAIN, v4(1), &stun::binding_request([7; 12]));
    let flood = stun::binding_response([8; 12], v4(3));
    for _ in 0..10_000 {
        bench.v4.arrive(v4(1), flood.len(), &flood);
        bench.receive();
    }
    bench.v4.arrive(v4(1), answer.len(), &answer);
    assert_eq!(bench.receive(), []);
    assert_eq!(bench.control(), [(Via::Direct(v4(1)), answer)]);
    assert_eq!(bench.dropped(Dropped::Junk), 10_001);
}

#[tokio::test]
async fn a_relays_own_question_that_comes_back_is_handed_to_its_agent() {
    let mut bench = Bench::new(Welcome::Everyone);
    bench.relay(&[]);
    let question = stun::binding_request([7; 12]);
    bench.mux.send_stun(SocketId::MAIN, v4(1), &question);
    assert_eq!(bench.v4.sent().len(), 1);
    bench.v4.arrive(v4(1), question.len(), &question);
    assert_eq!((bench.receive(), bench.control()), (vec![], vec![(Via::Direct(v4(1)), question)]));
    assert_eq!(bench.v4.sent(), []);
}

#[tokio::test]
async fn signs_of_life_wait_for_a_lock_that_is_taken() {
    let bench = Bench::new(Welcome::Everyone);
    let peer = bench.peer(1, &[v4(1)]);
    bench.v4.arrive(v4(1), 60, &short(1, 60));
    let taken = std::sync::Barrier::new(2);
    let received = std::thread::scope(|scope| {
        scope.spawn(|| {
            let _state = peer.lock();
            taken.wait();
            std::thread::sleep(Duration::from_millis(50));
        });
        taken.wait();
        bench.receive()
    });
    assert_eq!(received, [(peer.alias(), 60, short(1, 60))]);
    assert!(peer.lock().routes().all(|(_, slot)| slot.heard.is_some()));
}

#[tokio::test]
async fn what_strangers_send_is_counted_and_logged_at_the_finest_level_alone() {
    let bench = Bench::new(Welcome::Everyone);
    bench.relay(&[]);
    let stun = stun::binding_response([7; 12], v4(3));
    let all =
        [short(9, 60), long(0xe0, &cid(9), 60), probe(9, 60), relayed(ALLOC, &short(9, 51)), vec![0x05; 60], stun];
    let lines = Lines::default();
    tracing::subscriber::with_default(lines.clone(), || {
        for datagram in &all {
            bench.v4.arrive(v4(1), datagram.len(), datagram);
            bench.receive();
        }
        assert_eq!(lines.0.load(Ordering::Relaxed), 0);
        tracing::debug!("one that counts");
    });
    assert_eq!(lines.0.load(Ordering::Relaxed), 1);
    assert_eq!((bench.dropped(Dropped::Junk), bench.dropped(Dropped::UnknownProbe)), (2, 1));
}

/// Counts what is logged, but for the finest level.
#[derive(Clone, Default)]
struct Lines(Arc<AtomicUsize>);

impl tracing::Subscriber for Lines {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        *metadata.level() < tracing::Level::TRACE
    }

    fn event(&self, _: &tracing::Event<'_>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn enter(&self, _: &tracing::span::Id) {}

    fn exit(&self, _: &tracing::span::Id) {}
}

/// A mux over one socket for each family.
struct Bench {
    mux: Arc<Mux>,
    agent: mpsc::Receiver<ControlDatagram>,
    v4: Arc<Fake>,
    v6: Arc<Fake>,
}

impl Bench {
    fn new(welcome: Welcome) -> Self {
        let (v4, v6) = (Arc::new(Fake::default()), Arc::new(Fake::default()));
        let sockets = Sockets::new(Some(Arc::clone(&v4) as _), Some(Arc::clone(&v6) as _));
        let routes = Routes::new(&[1; 32], [2; 32]);
        let gate = Gate::new(GateConfig::default(), [3; 32]);
        let (mux, agent) = Mux::new(sockets, routes, gate, Clock::start(), welcome);
        Bench { mux, agent, v4, v6 }
    }

    /// An established peer that is found by `cid(n)` and `key_id(n)`; its first route is selected.
    fn peer(&self, n: u8, addrs: &[SocketAddr]) -> Arc<Track> {
        self.peer_via(n, &addrs.iter().copied().map(Via::Direct).collect::<Vec<_>>())
    }

    fn peer_via(&self, n: u8, vias: &[Via]) -> Arc<Track> {
        let track = self.mux.routes.dial(self.mux.now());
        state(&track, |state| {
            vias.iter().for_each(|via| assert!(state.add(*via, true).is_some()));
            state.established = true;
            state.selected = Some(RouteId(0));
            state.plan = Plan::One(RouteId(0));
        });
        self.mux.routes.learn_cid(&cid(n), &track);
        self.mux.routes.learn_probe_key(key_id(n), &track);
        track
    }

    /// Makes this node a relay, with a client at `v4(n)` for each number, and with allocations between them.
    fn relay(&self, allocations: &[(u8, u8, AllocId)]) {
        let mut server = RelayServer::new(RelayConfig::default(), self.mux.now());
        let now = self.mux.now();
        let id = |n: u8| PeerId::ed25519([n; 32]);
        for n in allocations.iter().flat_map(|(a, b, _)| [*a, *b]).collect::<std::collections::BTreeSet<u8>>() {
            let conn = u64::from(n);
            let (addr, source) = (v4(n), Source::of(v4(n)));
            server.handle_input(Input::Connected { conn, peer: id(n), instance: 1, addr, source }, now);
            server.handle_input(Input::Control { conn, message: Control::Register }, now);
        }
        for (a, b, alloc) in allocations {
            let message = Control::Open { alloc: *alloc, peer: id(*b) };
            server.handle_input(Input::Control { conn: u64::from(*a), message }, now);
        }
        let relaying = Relaying { server: Mutex::new(server), changed: Notify::new() };
        assert!(self.mux.relay.set(Arc::new(relaying)).is_ok());
    }

    /// QUIC itself, which answers what belongs to no connection.
    fn endpoint(&self) -> Endpoint {
        let config = Config::new(Identity::from_seed([4; 32]));
        Endpoint::new(&config, &[4; 32], Arc::clone(&self.mux), &Tasks::new()).unwrap()
    }

    fn receive(&self) -> Vec<(SocketAddr, usize, Vec<u8>)> {
        self.receive_or_wake(Waker::noop())
    }

    fn receive_or_wake(&self, waker: &Waker) -> Vec<(SocketAddr, usize, Vec<u8>)> {
        let mut buffers = vec![vec![0; 65_536]; 4];
        let mut bufs: Vec<IoSliceMut<'_>> = buffers.iter_mut().map(|buf| IoSliceMut::new(buf)).collect();
        let mut meta = [RecvMeta::default(); 4];
        let mut cx = Context::from_waker(waker);
        match self.mux.poll_recv(&mut cx, &mut bufs, &mut meta) {
            Poll::Pending => Vec::new(),
            Poll::Ready(received) => {
                let count = received.expect("QUIC is never told of an error");
                assert!(count > 0, "QUIC would spin");
                let received = meta[..count].iter().zip(&buffers);
                received.map(|(meta, buf)| (meta.addr, meta.stride, buf[..meta.len].to_vec())).collect()
            }
        }
    }

    fn send(&self, to: SocketAddr, contents: &[u8], segment_size: Option<usize>) -> io::Result<()> {
        self.mux.try_send(&Transmit { destination: to, ecn: None, contents, segment_size, src_ip: None })
    }

    fn control(&mut self) -> Vec<(Via, Vec<u8>)> {
        std::iter::from_fn(|| self.agent.try_recv().ok()).map(|datagram| (datagram.via, datagram.bytes)).collect()
    }

    fn dropped(&self, why: Dropped) -> u64 {
        self.mux.counters.of(why)
    }
}

/// What quinn's driver of one connection does around a send.
struct Conn {
    poller: Pin<Box<dyn UdpPoller>>,
    wakes: Arc<Wakes>,
}

#[derive(Default)]
struct Wakes(AtomicUsize);

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

impl Conn {
    fn new(bench: &Bench) -> Self {
        Conn { poller: Arc::clone(&bench.mux).create_io_poller(), wakes: Arc::default() }
    }

    fn may_send(&mut self) -> bool {
        let waker = Waker::from(Arc::clone(&self.wakes));
        self.poller.as_mut().poll_writable(&mut Context::from_waker(&waker)).is_ready()
    }

    fn wakes(&self) -> usize {
        self.wakes.0.load(Ordering::Relaxed)
    }
}

/// A socket whose network is this test.
#[derive(Debug, Default)]
struct Fake {
    arriving: Mutex<VecDeque<Result<Arriving, i32>>>,
    sent: Mutex<Vec<Sending>>,
    refusal: Mutex<Option<i32>>,
    full: AtomicBool,
    room: Notify,
    readers: Mutex<Vec<Waker>>,
    when_idle: Mutex<Option<Meanwhile>>,
}

/// What happens while a socket is looked at that has nothing.
struct Meanwhile(Box<dyn FnOnce() + Send>);

impl fmt::Debug for Meanwhile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Meanwhile")
    }
}

/// Where from, in segments of which size, and what.
type Arriving = (SocketAddr, usize, Vec<u8>);

/// Where to, what, and in segments of which size.
type Sending = (SocketAddr, Vec<u8>, Option<usize>);

impl Fake {
    fn arrive(&self, from: SocketAddr, stride: usize, bytes: &[u8]) {
        self.arriving.lock().unwrap().push_back(Ok((from, stride, bytes.to_vec())));
        self.readers.lock().unwrap().drain(..).for_each(Waker::wake);
    }

    fn arrive_via(&self, via: Via, datagram: &[u8]) {
        let bytes = match via {
            Via::Direct(_) | Via::Punched(..) => datagram.to_vec(),
            Via::Relay(_, id) => relayed(id, datagram),
        };
        self.arrive(via.remote(), bytes.len(), &bytes);
    }

    fn fail(&self, errno: i32) {
        self.arriving.lock().unwrap().push_back(Err(errno));
    }

    fn when_idle(&self, meanwhile: impl FnOnce() + Send + 'static) {
        *self.when_idle.lock().unwrap() = Some(Meanwhile(Box::new(meanwhile)));
    }

    fn fill(&self) {
        self.full.store(true, Ordering::Relaxed);
    }

    fn refuse_with(&self, errno: i32) {
        *self.refusal.lock().unwrap() = Some(errno);
    }

    fn accept(&self) {
        self.full.store(false, Ordering::Relaxed);
        *self.refusal.lock().unwrap() = None;
        self.room.notify_waiters();
    }

    /// What was sent since the last call.
    fn sent(&self) -> Vec<Sending> {
        std::mem::take(&mut *self.sent.lock().unwrap())
    }

    fn bytes_to(&self, addr: SocketAddr) -> usize {
        self.sent.lock().unwrap().iter().filter(|(to, ..)| *to == addr).map(|(_, bytes, _)| bytes.len()).sum()
    }
}

impl UdpSocket for Fake {
    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        if self.full.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        if let Some(errno) = *self.refusal.lock().unwrap() {
            return Err(io::Error::from_raw_os_error(errno));
        }
        self.sent.lock().unwrap().push((transmit.destination, transmit.contents.to_vec(), transmit.segment_size));
        Ok(())
    }

    fn writable(self: Arc<Self>) -> BoxFuture<'static, io::Result<()>> {
        Box::pin(async move {
            while self.full.load(Ordering::Relaxed) {
                self.room.notified().await;
            }
            Ok(())
        })
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let mut arriving = self.arriving.lock().unwrap();
        if let Some(Err(errno)) = arriving.front() {
            let errno = *errno;
            arriving.pop_front();
            return Poll::Ready(Err(io::Error::from_raw_os_error(errno)));
        }
        let mut count = 0;
        while count < bufs.len()
            && let Some(Ok((addr, stride, bytes))) = arriving.pop_front_if(|next| next.is_ok())
        {
            bufs[count][..bytes.len()].copy_from_slice(&bytes);
            meta[count] = RecvMeta { addr, len: bytes.len(), stride, ecn: None, dst_ip: None };
            count += 1;
        }
        if count == 0 {
            self.readers.lock().unwrap().push(cx.waker().clone());
            if let Some(Meanwhile(meanwhile)) = self.when_idle.lock().unwrap().take() {
                meanwhile();
            }
            return Poll::Pending;
        }
        Poll::Ready(Ok(count))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(v4(0))
    }

    fn max_transmit_segments(&self) -> usize {
        10
    }

    fn max_receive_segments(&self) -> usize {
        64
    }

    fn may_fragment(&self) -> bool {
        false
    }
}

fn state<T>(track: &Track, act: impl FnOnce(&mut State) -> T) -> T {
    act(&mut track.lock())
}

fn v4(n: u8) -> SocketAddr {
    ([192, 0, 2, n], 4_000).into()
}

fn v6(n: u16) -> SocketAddr {
    ([0x2001, 0xdb8, 0, 0, 0, 0, 0, n], 4_000).into()
}

fn cid(n: u8) -> [u8; 8] {
    [n; 8]
}

fn key_id(n: u8) -> [u8; 8] {
    [0xa0 ^ n; 8]
}

/// A packet with a short header for the connection `cid(n)`.
fn short(n: u8, len: usize) -> Vec<u8> {
    padded([&[0x40][..], &cid(n)].concat(), len)
}

/// A packet of version 1 with a long header.
fn long(first: u8, dcid: &[u8], len: usize) -> Vec<u8> {
    padded([&[first, 0, 0, 0, 1, dcid.len() as u8][..], dcid, &[8], &[0x77; 8]].concat(), len)
}

fn probe(n: u8, len: usize) -> Vec<u8> {
    padded([&[probe::FIRST_BYTE][..], &key_id(n)].concat(), len)
}

fn relayed(id: AllocId, datagram: &[u8]) -> Vec<u8> {
    [&relay_data::prefix(id)[..], datagram].concat()
}

fn padded(mut datagram: Vec<u8>, len: usize) -> Vec<u8> {
    datagram.resize(len, 0x55);
    datagram
}
