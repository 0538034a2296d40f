//! Peers on one LAN: found by id alone, met directly behind one NAT, and not misled by neighbours that lie.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use byway::{Config, DialError, PathKind, PeerId, Target, Ticket};
use byway_sim::{Host, Nat, NatConfig, Packet, UdpSocket, Verdict, World};
use tokio::time::{self, Instant};

use crate::common::{PORT, Peer, config, exchange, ms, peer, relay, scenario, secs};

const GROUP: &str = "224.0.0.251:5353";

/// Two nodes behind one NAT that does not hairpin.
async fn home(world: &World, config: impl Fn(u8) -> Config) -> (Nat, Peer, Peer) {
    let nat = world.nat("home", NatConfig::default());
    let (host_a, host_b) = (nat.host("a"), nat.host("b"));
    (nat, peer(&host_a, config(1)).await, peer(&host_b, config(2)).await)
}

fn listener(host: &Host) -> Arc<UdpSocket> {
    host.join(GROUP.parse().unwrap(), host.addr()).unwrap()
}

/// A question for a name with one label in front of the service, or for the service itself.
fn question(label: &str, kind: u8) -> Vec<u8> {
    let mut bytes = vec![0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    let labels = [label, "_byway", "_udp", "local"];
    for label in labels.iter().filter(|label| !label.is_empty()) {
        bytes.push(label.len() as u8);
        bytes.extend(label.as_bytes());
    }
    bytes.extend([0, 0, kind, 0, 1]);
    bytes
}

/// Says in answer to `question` that the peer is at `addr`, which names the host after the service.
fn forged(question: &[u8], addr: SocketAddr) -> Vec<u8> {
    let IpAddr::V4(ip) = addr.ip() else { panic!("{addr} is not of IPv4") };
    let name = [&question[12..question.len() - 4]].concat();
    let mut bytes = vec![0, 0, 0x84, 0, 0, 0, 0, 2, 0, 0, 0, 0];
    bytes.extend([&name[..], &[0, 33, 0, 1, 0, 0, 0, 120], &((6 + name.len()) as u16).to_be_bytes()].concat());
    bytes.extend([&[0, 0, 0, 0][..], &addr.port().to_be_bytes(), &name].concat());
    bytes.extend([&name[..], &[0, 1, 0, 1, 0, 0, 0, 120, 0, 4], &ip.octets()].concat());
    bytes
}

/// Datagrams that arrive until nothing does for `quiet`.
async fn heard(socket: &UdpSocket, quiet: Duration) -> Vec<(Vec<u8>, SocketAddr)> {
    let (mut all, mut buf) = (Vec::new(), [0; 2_000]);
    while let Ok(received) = time::timeout(quiet, socket.recv_from(&mut buf)).await {
        let (length, from) = received.unwrap();
        all.push((buf[..length].to_vec(), from));
    }
    all
}

/// Whether a multicast is an answer.
fn is_answer(message: &[u8]) -> bool {
    message[2] & 0x80 != 0
}

async fn dials(a: &mut Peer, b: &mut Peer, target: impl Into<Target>) -> Duration {
    let start = Instant::now();
    a.node.dial(target).await.unwrap();
    let took = start.elapsed();
    assert_eq!(a.up().await, b.id());
    b.up().await;
    exchange(a, b).await;
    assert_eq!(a.path().await, Some(PathKind::Direct));
    took
}

#[test]
fn two_hosts_meet_on_the_lan_by_id_alone_without_internet() {
    scenario(1, secs(30), |world| async move {
        let (nat, mut a, mut b) = home(&world, config).await;
        nat.set_down();
        let id = b.id();
        let took = dials(&mut a, &mut b, id).await;
        println!("found and connected after {took:?}");
        assert!(took < ms(20), "{took:?}");
    });
}

#[test]
fn two_hosts_behind_one_nat_leave_the_relay_a_lan_round_trip_after_the_candidates_arrive() {
    scenario(1, secs(30), |world| async move {
        let (_relay, addr) = relay(&world.host("relay"), config(9)).await;
        let nat = world.nat("home", NatConfig::default());
        let hosts = ["a", "b"].map(|name| nat.host(name));
        hosts.iter().for_each(|host| host.edit_link(|link| link.delay = ms(2)));
        let lan = ms(2 * 2 * 2); // there and back, over two links each
        let [config_a, config_b] = [1, 2].map(|n| {
            let mut config = config(n).relay_at(addr.clone());
            config.lan = false; // so that they meet at the relay first
            config
        });
        let (mut a, mut b) = (peer(&hosts[0], config_a).await, peer(&hosts[1], config_b).await);
        a.registered().await;
        b.registered().await;
        let relayed = a.node.status().await.relays[0].rtt.unwrap_or_default();
        assert!(relayed > 2 * lan);
        let mut ticket = Ticket::new(b.id());
        ticket.relays = vec![addr];
        let start = Instant::now();
        a.node.dial(ticket).await.unwrap();
        let dialled = start.elapsed();
        a.up().await;
        b.up().await;
        // What b tells arrives with its hello, by which the link is up.
        a.goes(PathKind::Direct, lan + ms(20)).await;
        println!("up after {dialled:?}, direct after {:?}; LAN {lan:?}, relay {relayed:?}", start.elapsed());
        let status = a.node.status().await;
        let remote = status.peers[0].routes.iter().find(|route| route.selected).unwrap().remote;
        assert!(matches!(remote.ip(), IpAddr::V4(ip) if ip.is_private()), "{remote}");
    });
}

#[test]
fn a_direct_connection_moves_to_the_lan_when_an_address_there_is_told_later() {
    scenario(1, secs(60), |world| async move {
        let (_relay, addr) = relay(&world.host("relay"), config(9)).await;
        let mut hairpin = NatConfig::full_cone(); // so that the new address is heard directly before it is told
        hairpin.hairpin = true;
        let nat = world.nat("home", hairpin);
        let hosts = ["a", "b"].map(|name| nat.host(name));
        hosts.iter().for_each(|host| host.edit_link(|link| link.delay = ms(2)));
        let (outer, apart) = (nat.addr(), [hosts[0].addr(), hosts[1].addr()]);
        world.rule(move |packet: &Packet<'_>| match [packet.from.ip(), packet.to.ip()] {
            [_, to] if to == outer => Verdict::Delay(ms(20)),
            ips if ips.iter().all(|ip| apart.contains(ip)) => Verdict::Drop,
            _ => Verdict::Pass,
        });
        let [config_a, config_b] = [1, 2].map(|n| {
            let mut config = config(n).relay_at(addr.clone());
            config.lan = false;
            config
        });
        let (mut a, mut b) = (peer(&hosts[0], config_a).await, peer(&hosts[1], config_b).await);
        a.registered().await;
        b.registered().await;
        a.node.dial(b.node.ticket()).await.unwrap();
        a.up().await;
        b.up().await;
        a.goes(PathKind::Direct, secs(5)).await;
        let remote = async |a: &Peer| {
            let status = a.node.status().await;
            status.peers[0].routes.iter().find(|route| route.selected).unwrap().remote.ip()
        };
        time::sleep(secs(10)).await;
        assert_eq!(remote(&a).await, outer);
        let lan = hosts[1].renumber();
        for _ in 0..50 {
            exchange(&mut a, &mut b).await;
            time::sleep(ms(100)).await;
        }
        assert_eq!(remote(&a).await, lan);
    });
}

#[test]
fn a_ticket_whose_addresses_are_out_of_date_leads_to_the_peer_on_the_lan() {
    scenario(1, secs(60), |world| async move {
        let (nat, mut a, mut b) = home(&world, config).await;
        let other = peer(&nat.host("other"), config(3)).await;
        let mut ticket = Ticket::new(b.id());
        // Nobody has the first; the second now belongs to another node.
        ticket.addrs = vec!["10.0.0.200:4000".parse().unwrap(), other.node.addrs()[0]];
        let took = dials(&mut a, &mut b, ticket).await;
        assert!(took < ms(50), "{took:?}");
        assert!(other.node.peers().is_empty());
    });
}

#[test]
fn a_question_or_an_answer_that_gets_lost_is_made_up_for() {
    for (lost, limit) in [(1, ms(150)), (2, ms(1_200))] {
        scenario(1, secs(60), |world| async move {
            let (_nat, mut a, mut b) = home(&world, config).await;
            let mut left = lost;
            world.rule(move |packet: &Packet<'_>| {
                let hit = packet.to.ip().is_multicast() && left > 0;
                left -= i32::from(hit);
                if hit { Verdict::Drop } else { Verdict::Pass }
            });
            let mut ticket = Ticket::new(b.id());
            ticket.addrs = vec!["10.0.0.200:4000".parse().unwrap()];
            let took = dials(&mut a, &mut b, ticket).await;
            assert!(took < limit, "{took:?} with {lost} lost");
        });
    }
}

#[test]
fn a_neighbour_that_lies_neither_connects_nor_delays() {
    scenario(1, secs(60), |world| async move {
        let (nat, mut a, mut b) = home(&world, config).await;
        let victim = peer(&nat.host("victim"), config(3)).await;
        let liar = nat.host("liar");
        let late = b.node.addrs()[0].ip();
        world.rule(move |packet: &Packet<'_>| {
            if packet.from.ip() == late { Verdict::Delay(ms(5)) } else { Verdict::Pass } // the lie comes first
        });
        let socket = listener(&liar);
        let addr = SocketAddr::new(victim.node.addrs()[0].ip(), PORT);
        let outside = world.host("outside");
        let _open = outside.bind_udp(SocketAddr::new(outside.addr(), PORT)).unwrap();
        let elsewhere = SocketAddr::new(outside.addr(), PORT);
        tokio::spawn(async move {
            let mut buf = [0; 2_000];
            while let Ok((length, from)) = socket.recv_from(&mut buf).await {
                if !is_answer(&buf[..length]) && from.ip() != liar.addr() {
                    socket.send_to(&forged(&buf[..length], addr), GROUP.parse().unwrap()).unwrap();
                    socket.send_to(&forged(&buf[..length], elsewhere), GROUP.parse().unwrap()).unwrap();
                }
            }
        });
        let id = b.id();
        let took = dials(&mut a, &mut b, id).await;
        println!("connected after {took:?} in spite of the lie");
        assert!(took < ms(100), "{took:?}");
        assert!(victim.node.peers().is_empty());
        time::sleep(ms(500)).await; // what is on its way to the core takes a while
        assert_eq!(outside.traffic().received, 0, "a lie aims a node at somebody outside");
    });
}

#[test]
fn a_host_of_another_lan_hears_nothing() {
    scenario(1, secs(30), |world| async move {
        let (nat, a, b) = home(&world, config).await;
        let (near, far) = (nat.host("near"), world.nat("elsewhere", NatConfig::default()).host("far"));
        let core = world.host("core");
        let sockets = [&near, &far, &core].map(listener);
        a.node.dial(b.id()).await.unwrap();
        assert!(!heard(&sockets[0], ms(200)).await.is_empty());
        for socket in &sockets[1..] {
            assert_eq!(heard(socket, ms(200)).await, []);
        }
    });
}

#[test]
fn strangers_questions_get_silence_and_a_peers_one_answer_a_second() {
    scenario(1, secs(60), |world| async move {
        let (nat, a, _b) = home(&world, config).await;
        let socket = listener(&nat.host("stranger"));
        let group: SocketAddr = GROUP.parse().unwrap();
        let other_name = PeerId::ed25519([9; 32]).lan_name("byway");
        let other_network = a.id().lan_name("another");
        let name = a.id().lan_name("byway");
        for message in [question("", 12), question(&other_name, 33), question(&other_network, 33), question(&name, 1)] {
            socket.send_to(&message, group).unwrap();
        }
        assert!(heard(&socket, secs(1)).await.iter().all(|(message, _)| !is_answer(message)));
        // From another port, as simple resolvers ask.
        let simple = nat.host("simple").bind_udp("0.0.0.0:0".parse().unwrap()).unwrap();
        simple.send_to(&question(&name, 33), group).unwrap();
        assert_eq!(heard(&simple, secs(1)).await, []);
        assert!(heard(&socket, secs(1)).await.iter().all(|(message, _)| !is_answer(message)));
        for _ in 0..100 {
            socket.send_to(&question(&name, 33), group).unwrap();
            time::sleep(ms(10)).await;
        }
        let answers = heard(&socket, secs(2)).await.into_iter().filter(|(message, _)| is_answer(message));
        let answers: Vec<_> = answers.collect();
        assert_eq!(answers.len(), 1);
        assert!(answers[0].0.len() < 300);
        assert_eq!(answers[0].1.ip(), a.node.addrs()[0].ip());
    });
}

#[test]
fn a_flood_of_garbage_hurts_nobody() {
    scenario(1, secs(60), |world| async move {
        let (nat, mut a, mut b) = home(&world, config).await;
        let socket = listener(&nat.host("noisy"));
        let mut rng = world.rng("garbage");
        tokio::spawn(async move {
            let group = GROUP.parse().unwrap();
            loop {
                for _ in 0..20 {
                    let mut bytes = question("_byway", 33);
                    bytes.resize(12 + rng.below(1_400) as usize, 0xc0);
                    for _ in 0..8 {
                        let at = rng.below(bytes.len() as u64) as usize;
                        bytes[at] = rng.next_u64() as u8;
                    }
                    socket.send_to(&bytes, group).unwrap();
                }
                time::sleep(ms(1)).await;
            }
        });
        time::sleep(ms(200)).await;
        let id = b.id();
        let took = dials(&mut a, &mut b, id).await;
        assert!(took < ms(50), "{took:?}");
    });
}

#[test]
fn a_node_that_does_not_use_the_lan_is_silent_on_it() {
    scenario(1, secs(30), |world| async move {
        for relay_only in [false, true] {
            let (nat, a, b) = home(&world, |n| {
                let mut config = config(n);
                (config.lan, config.relay_only) = (relay_only, relay_only);
                config
            })
            .await;
            let socket = listener(&nat.host("c"));
            let start = Instant::now();
            assert!(matches!(a.node.dial(b.id()).await, Err(DialError::NoWay(_))));
            assert_eq!(start.elapsed(), Duration::ZERO);
            socket.send_to(&question(&b.id().lan_name("byway"), 33), GROUP.parse().unwrap()).unwrap();
            assert_eq!(heard(&socket, secs(1)).await.len(), 1); // its own question
        }
    });
}

#[test]
fn a_peer_that_is_not_there_is_given_up_after_half_a_second() {
    scenario(1, secs(30), |world| async move {
        let (_nat, a, _b) = home(&world, config).await;
        let start = Instant::now();
        let error = a.node.dial(PeerId::ed25519([9; 32])).await.unwrap_err();
        assert!(matches!(error, DialError::NoWay(_)), "{error}");
        assert!((ms(500)..ms(510)).contains(&start.elapsed()), "{:?}", start.elapsed());
    });
}

#[test]
fn a_host_that_changes_its_network_is_found_in_the_new_one() {
    scenario(1, secs(30), |world| async move {
        let nat = world.nat("home", NatConfig::default());
        let (host_a, host_b) = (nat.host("a"), nat.host("b"));
        let (mut a, mut b) = (peer(&host_a, config(1)).await, peer(&host_b, config(2)).await);
        host_b.renumber();
        time::sleep(ms(10)).await;
        let id = b.id();
        let took = dials(&mut a, &mut b, id).await;
        assert!(took < ms(20), "{took:?}");
    });
}
