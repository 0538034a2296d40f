//! Small links: what does not fit is split, and nothing stalls.

use std::time::Duration;

use bytes::Bytes;
use byway::{PathKind, PeerAddr, Protocol};
use byway_sim::{Host, Link, Queue, World};
use tokio::time::{self, Instant};

use crate::common::{PORT, Peer, config, exchange, ms, peer, relay, scenario, secs};

/// The smallest IPv6 link (RFC 8200 §5).
const SMALL: usize = 1_280;

async fn pair(hosts: &[Host; 3], relay_only: bool) -> (Peer, Peer, byway::Node) {
    let (relay, addr) = relay(&hosts[2], config(9)).await;
    let [config_a, config_b] = [1, 2].map(|n| {
        let mut config = config(n).relay_at(addr.clone());
        config.relay_only = relay_only;
        config
    });
    let (mut a, mut b) = (peer(&hosts[0], config_a).await, peer(&hosts[1], config_b).await);
    a.registered().await;
    b.registered().await;
    a.node.dial(b.node.ticket()).await.unwrap();
    a.up().await;
    b.up().await;
    (a, b, relay)
}

fn hosts(world: &World) -> [Host; 3] {
    ["a", "b", "relay"].map(|name| world.host(name))
}

/// Sends `count` messages of 64 KiB; the longest silence at the receiver, and the time until all were there.
async fn bulk(a: &Peer, b: &mut Peer, count: u8) -> (Duration, Duration) {
    let (tx, to) = (a.tx.clone(), b.id());
    let sending = tokio::spawn(async move {
        for n in 0..count {
            tx.send_wait(to, Bytes::from(vec![n; 64 << 10])).await.unwrap();
        }
    });
    let start = Instant::now();
    let (mut last, mut longest) = (start, Duration::ZERO);
    for n in 0..count {
        let (_, message) = time::timeout(secs(20), b.rx.recv()).await.expect("the flow has stopped").unwrap();
        assert!(message.len() == 64 << 10 && message.iter().all(|byte| *byte == n), "message {n} is wrong");
        longest = longest.max(last.elapsed());
        last = Instant::now();
    }
    sending.await.unwrap();
    (longest, start.elapsed())
}

#[test]
fn a_relayed_handshake_and_bulk_pass_links_of_1280_bytes() {
    scenario(1, secs(120), |world| async move {
        let hosts = hosts(&world);
        hosts.iter().for_each(|host| host.edit_link(|link| link.mtu = SMALL));
        let (mut a, mut b, _relay) = pair(&hosts, true).await;
        exchange(&mut a, &mut b).await;
        let (longest, all) = bulk(&a, &mut b, 64).await;
        println!("4 MiB in {all:?}, longest silence {longest:?}");
        assert!(longest < secs(2), "{longest:?}");
        assert_eq!(a.path().await, Some(PathKind::Relay));
    });
}

#[test]
fn bulk_goes_on_when_the_new_path_carries_less_than_the_old_one() {
    scenario(2, secs(120), |world| async move {
        let hosts = hosts(&world);
        let line = Link::standard().rate(20_000_000).queue(Queue::Time(ms(100)));
        hosts.iter().for_each(|host| host.set_link(line.clone()));
        hosts[2].edit_link(|link| link.mtu = SMALL);
        let (mut a, mut b, _relay) = pair(&hosts, false).await;
        exchange(&mut a, &mut b).await;
        time::sleep(secs(5)).await; // both routes are measured
        a.goes(PathKind::Direct, secs(1)).await;
        let (longest, _) = bulk(&a, &mut b, 64).await; // QUIC has found out that datagrams of 1,443 bytes pass
        assert!(longest < secs(1), "{longest:?}");
        let routes = a.node.status().await.peers[0].routes.clone();
        let mtu = |path| routes.iter().find(|route| route.path == path).unwrap().mtu;
        assert_eq!((mtu(PathKind::Direct), mtu(PathKind::Relay)), (1_443, 1_200));
        let cut = async {
            time::sleep(ms(500)).await;
            drop(world.cut(&hosts[0], &hosts[1]));
        };
        let ((longest, all), ()) = tokio::join!(bulk(&a, &mut b, 64), cut);
        println!("4 MiB in {all:?}, longest silence {longest:?}");
        assert!(longest < secs(2), "{longest:?}");
        assert_eq!(a.path().await, Some(PathKind::Relay));
    });
}

#[test]
fn what_a_dialler_says_first_fits_one_packet() {
    scenario(1, secs(60), |world| async move {
        let hosts = hosts(&world);
        hosts.iter().for_each(|host| host.edit_link(|link| link.mtu = SMALL));
        let (_relay, addr) = relay(&hosts[2], config(9)).await;
        // A hello of 900 bytes, and 300 that tell of the relay: together no packet of 1,200 bytes holds them.
        let name = ["x".repeat(61).as_str(); 4].join(".");
        world.name(&name, hosts[2].addr());
        let named = PeerAddr { id: addr.id, addrs: vec![format!("{name}:{PORT}").parse().unwrap()] };
        let (a, b) = (peer(&hosts[0], config(1).relay_at(named)).await, peer(&hosts[1], config(2)).await);
        let protocol = |n| a.node.register(Protocol::new(format!("{n:030}"), 1..=1)).unwrap();
        let _protocols: Vec<_> = (0..21).map(protocol).collect();
        a.registered().await;
        let start = Instant::now();
        a.node.dial(b.node.ticket()).await.unwrap();
        assert!(start.elapsed() < ms(300), "{:?}: halves came before the key for them", start.elapsed());
        time::sleep(secs(5)).await;
        let routes = &a.node.status().await.peers[0].routes;
        assert!(routes.iter().any(|route| route.path == PathKind::Relay), "the relay was not told: {routes:#?}");
    });
}
