//! Relays over TLS on TCP, for networks that block UDP.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::SystemTime,
};

use byway::{Certificate, Config, HttpProxy, PathKind, PeerAddr, Roots, TlsConfig, WallClock};
use byway_proto::addr::HostAddr;
use byway_sim::{Host, NatConfig, Packet, Transport, Verdict, World};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::{self, Instant},
};

use crate::common::{Peer, config, config_anew, exchange, flows, kill, ms, peer, relay, scenario, secs};

/// How long a dial between strangers may take where UDP is blocked (`docs/nat.md`).
const DIAL: u64 = 3;

pub(crate) fn office(world: &World, name: &str) -> Host {
    world.nat(name, NatConfig::udp_blocked()).host(name)
}

pub(crate) fn home(world: &World, name: &str) -> Host {
    world.nat(name, NatConfig::port_restricted()).host(name)
}

pub(crate) async fn client(host: &Host, n: u8, relay: &PeerAddr) -> Peer {
    peer(host, config(n).relay_at(relay.clone())).await
}

/// Dials, and waits for the first message each way.
async fn meet(a: &mut Peer, b: &mut Peer) -> std::time::Duration {
    let start = Instant::now();
    a.node.dial(b.node.ticket()).await.unwrap();
    a.up().await;
    b.up().await;
    exchange(a, b).await;
    start.elapsed()
}

pub(crate) async fn is_over_tls(node: &Peer) -> bool {
    node.node.status().await.relays[0].over_tls
}

#[test]
fn a_node_whose_network_blocks_udp_is_reached_and_reaches_others_within_three_seconds() {
    for seed in 0..5 {
        scenario(seed, secs(60), |world| async move {
            let (_relay, addr) = relay(&world.host("relay"), config(9)).await;
            let mut a = client(&office(&world, "a"), 1, &addr).await;
            let mut b = client(&home(&world, "b"), 2, &addr).await;
            a.registered().await;
            b.registered().await;
            assert!(is_over_tls(&a).await && !is_over_tls(&b).await);
            let took = if seed % 2 == 0 { meet(&mut a, &mut b).await } else { meet(&mut b, &mut a).await };
            println!("{took:?}");
            assert!(took < secs(DIAL), "seed {seed}: {took:?}");
            assert_eq!((a.path().await, b.path().await), (Some(PathKind::Relay), Some(PathKind::Relay)));
        });
    }
}

#[test]
fn two_nodes_without_udp_meet_within_three_seconds_also_at_a_relay_that_the_dialler_did_not_know() {
    for seed in 0..5 {
        scenario(seed, secs(60), |world| async move {
            let (_relay, addr) = relay(&world.host("relay"), config(9)).await;
            let is_known = seed % 2 == 0;
            let host = office(&world, "a");
            let mut a = if is_known { client(&host, 1, &addr).await } else { peer(&host, config(1)).await };
            let mut b = client(&office(&world, "b"), 2, &addr).await;
            a.registered().await;
            b.registered().await;
            let took = meet(&mut a, &mut b).await;
            println!("{took:?}");
            assert!(took < secs(DIAL), "seed {seed}: {took:?}");
        });
    }
}

#[test]
fn no_address_inside_a_node_is_told_to_anybody() {
    scenario(1, secs(60), |world| async move {
        let (relay, addr) = relay(&world.host("relay"), config(9)).await;
        let mut a = client(&office(&world, "a"), 1, &addr).await;
        let mut b = client(&home(&world, "b"), 2, &addr).await;
        a.registered().await;
        b.registered().await;
        meet(&mut a, &mut b).await;
        let is_inside = |told: &SocketAddr| told.to_string().starts_with("[100:0:0:1:");
        assert!(!a.node.addrs().iter().any(is_inside), "{:?}", a.node.addrs());
        let status = a.node.status().await;
        assert_eq!((status.relays[0].addr, status.relays[0].observed), (addr.socket_addrs().next(), None));
        assert!(!relay.status().await.peers.iter().flat_map(|peer| &peer.routes).any(|route| is_inside(&route.remote)));
        assert!(b.node.status().await.peers[0].routes.iter().all(|route| !is_inside(&route.remote)));
    });
}

#[test]
fn a_connection_over_tls_goes_on_after_its_relay_was_killed_and_started_anew() {
    scenario(1, secs(300), |world| async move {
        let host = world.host("relay");
        let (_old, addr) = relay(&host, config(9)).await;
        let mut a = client(&office(&world, "a"), 1, &addr).await;
        let mut b = client(&office(&world, "b"), 2, &addr).await;
        a.registered().await;
        b.registered().await;
        meet(&mut a, &mut b).await;
        let successor = world.host("successor");
        let restart = async {
            time::sleep(secs(2)).await;
            kill(&host, &successor);
            relay(&successor, config_anew(9)).await
        };
        let (seen, _new) = tokio::join!(flows(&mut a, &mut b, 300, ms(100)), restart);
        println!("{seen:?}");
        seen.iter().for_each(|gap| assert!(*gap < secs(5), "{seen:?}"));
        assert!(a.pending().await.is_empty() && b.pending().await.is_empty(), "the connection did not last");
    });
}

#[test]
fn a_relayed_connection_moves_to_tls_when_udp_stops_and_back_when_it_returns() {
    scenario(1, secs(600), |world| async move {
        let (_relay, addr) = relay(&world.host("relay"), config(9)).await;
        let only_relayed = |n| {
            let mut config = config(n).relay_at(addr.clone());
            config.relay_only = true;
            config
        };
        let host = home(&world, "a");
        let mut a = peer(&host, only_relayed(1)).await;
        let mut b = peer(&home(&world, "b"), only_relayed(2)).await;
        a.registered().await;
        b.registered().await;
        meet(&mut a, &mut b).await;
        let side = host.id();
        let block = async {
            time::sleep(secs(2)).await;
            let is_its = move |packet: &Packet<'_>| packet.sender == side || packet.receiver == Some(side);
            world.rule(move |packet: &Packet<'_>| match packet.transport {
                Transport::Udp if is_its(packet) => Verdict::Drop,
                _ => Verdict::Pass,
            })
        };
        let (seen, blocked) = tokio::join!(flows(&mut a, &mut b, 300, ms(100)), block);
        println!("{seen:?}");
        seen.iter().for_each(|gap| assert!(*gap < secs(8), "{seen:?}"));
        assert!(is_over_tls(&a).await && !is_over_tls(&b).await);
        blocked.lift();
        let lifted = Instant::now();
        while is_over_tls(&a).await {
            assert!(lifted.elapsed() < secs(150), "still over TLS");
            exchange(&mut a, &mut b).await;
            time::sleep(ms(100)).await;
        }
        println!("back after {:?}", lifted.elapsed());
        exchange(&mut a, &mut b).await;
        assert!(a.pending().await.is_empty() && b.pending().await.is_empty(), "the connection did not last");
    });
}

#[test]
fn a_node_in_another_network_looks_for_the_way_back_to_udp_at_once() {
    scenario(1, secs(600), |world| async move {
        let (_relay, addr) = relay(&world.host("relay"), config(9)).await;
        let host = home(&world, "a");
        let side = host.id();
        let is_its = move |packet: &Packet<'_>| packet.sender == side || packet.receiver == Some(side);
        let blocked = world.rule(move |packet: &Packet<'_>| match packet.transport {
            Transport::Udp if is_its(packet) => Verdict::Drop,
            _ => Verdict::Pass,
        });
        let a = client(&host, 1, &addr).await;
        a.registered().await;
        assert!(is_over_tls(&a).await);
        time::sleep(secs(300)).await; // the next look by itself would be minutes away
        blocked.lift();
        host.renumber();
        let moved = Instant::now();
        while is_over_tls(&a).await {
            assert!(moved.elapsed() < secs(10), "still over TLS");
            time::sleep(ms(100)).await;
        }
        println!("{:?}", moved.elapsed());
    });
}

#[test]
fn a_relay_that_needs_no_proxy_is_reached_without_it() {
    scenario(1, secs(60), |world| async move {
        let (_relay, addr) = relay(&world.host("relay"), config(9)).await;
        let ip = addr.socket_addrs().next().unwrap().ip();
        let nobody: HttpProxy = format!("http://{}:1", world.host("no proxy").addr()).parse().unwrap();
        let mut config = config(1).relay_at(addr);
        config.tls.proxy = Some(nobody);
        config.tls.no_proxy = format!("elsewhere.example,{ip}").parse().unwrap();
        let a = peer(&office(&world, "a"), config).await;
        a.registered().await;
        assert!(is_over_tls(&a).await);
    });
}

/// A proxy that opens tunnels for `login`, to port 4000 alone.
async fn proxy(host: &Host, login: Option<&'static str>) -> HttpProxy {
    let listener = host.listen_tcp((host.addr(), 3_128).into()).unwrap();
    let net = host.net();
    tokio::spawn(async move {
        loop {
            let (mut client, net) = (listener.accept().await.unwrap(), Arc::clone(&net));
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    let Ok(byte) = client.read_u8().await else { return };
                    head.push(byte);
                }
                let head = String::from_utf8(head).unwrap();
                let target = head.strip_prefix("CONNECT ").unwrap().split(' ').next().unwrap();
                let refusal = match login {
                    Some(login) if !head.contains(&format!("Basic {login}\r\n")) => Some("407 Who are you"),
                    _ if !target.ends_with(":4000") => Some("403 Not there"),
                    _ => None,
                };
                if let Some(refusal) = refusal {
                    return client.write_all(format!("HTTP/1.1 {refusal}\r\n\r\n").as_bytes()).await.unwrap();
                }
                let (name, port) = target.rsplit_once(':').unwrap();
                let to = net.resolve(name, port.parse().unwrap()).await.unwrap()[0];
                let mut server = net.connect_tcp(to).await.unwrap();
                client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
            });
        }
    });
    let login = if login.is_some() { "me:pass@" } else { "" };
    format!("http://{login}{}:3128", host.addr()).parse().unwrap()
}

/// What a node says of its relay when it is not registered.
async fn complaint(node: &Peer) -> String {
    time::sleep(secs(7)).await;
    let relay = node.node.status().await.relays.remove(0);
    assert!(!relay.registered, "{relay:?}");
    relay.state
}

#[test]
fn a_proxy_leads_to_the_relay_where_nothing_else_gets_out() {
    scenario(1, secs(60), |world| async move {
        let (_relay, addr) = relay(&world.host("relay"), config(9)).await;
        world.name("relay.example", addr.socket_addrs().next().unwrap().ip());
        let gate = world.host("proxy");
        let tls = TlsConfig::default();
        let (office, proxy) = (office(&world, "a"), proxy(&gate, Some("bWU6cGFzcw==")).await);
        let (side, gate) = (office.id(), gate.id());
        world.rule(move |packet: &Packet<'_>| match packet.sender == side && packet.receiver != Some(gate) {
            true => Verdict::Drop,
            false => Verdict::Pass,
        });
        let by_name = PeerAddr::new(addr.id, ["relay.example:4000".parse::<HostAddr>().unwrap()]);
        let through = |n, relay: PeerAddr| {
            let mut config = config(n).relay_at(relay);
            config.tls = tls.clone();
            config.tls.proxy = Some(proxy.clone());
            config
        };
        let mut a = peer(&office, through(1, by_name)).await;
        let mut b = client(&home(&world, "b"), 2, &addr).await;
        a.registered().await;
        b.registered().await;
        assert!(is_over_tls(&a).await);
        assert!(meet(&mut b, &mut a).await < secs(DIAL));
    });
}

#[test]
fn no_proxy_is_asked_for_an_address_that_no_relay_has() {
    scenario(1, secs(60), |world| async move {
        let trap = PeerAddr::new(config(9).identity.id(), [SocketAddr::from(([169, 254, 169, 254], 80))]);
        let mut config = config(1).relay_at(trap);
        config.tls.proxy = Some(proxy(&world.host("proxy"), None).await);
        let said = complaint(&peer(&office(&world, "a"), config).await).await;
        assert!(said.contains("no address that this node can"), "{said}");
    });
}

#[test]
fn a_proxy_that_refuses_and_one_that_is_not_there_are_named_with_what_to_do() {
    scenario(1, secs(60), |world| async move {
        let (_relay, addr) = relay(&world.host("relay"), config(9)).await;
        let strict = proxy(&world.host("proxy"), Some("somebody else")).await;
        let elsewhere = PeerAddr::new(addr.id, [SocketAddr::new(addr.socket_addrs().next().unwrap().ip(), 22)]);
        let lax = proxy(&world.host("lax proxy"), None).await;
        let nobody: HttpProxy = format!("http://{}:1", world.host("no proxy").addr()).parse().unwrap();
        let cases = [
            (strict, addr.clone(), "user name and a password"),
            (lax, elsewhere, "refused to lead there (\"403 Not there\")"),
            (nobody, addr, "cannot be reached: connection refused; check `proxy`"),
        ];
        for (n, (proxy, relay, expected)) in (1..).zip(cases) {
            let mut config = config(n).relay_at(relay);
            config.tls.proxy = Some(proxy);
            let node = peer(&office(&world, &format!("office {n}")), config).await;
            let said = complaint(&node).await;
            assert!(said.contains(expected), "{said}");
        }
    });
}

fn certified(n: u8) -> Config {
    let mut config = config(n);
    let (chain, key) = (include_bytes!("certs/relay.pem"), include_bytes!("certs/relay.key"));
    config.tls.certificate = Some(Certificate::from_pem(chain, key).unwrap());
    config
}

#[test]
fn a_relay_with_a_public_certificate_is_reached_by_its_name_and_by_its_key() {
    scenario(1, secs(60), |world| async move {
        let (_relay, addr) = relay(&world.host("relay"), certified(9)).await;
        world.name("relay.example", addr.socket_addrs().next().unwrap().ip());
        let named = PeerAddr::new(addr.id, ["wss://relay.example:4000".parse::<HostAddr>().unwrap()]);
        let mut config = config(1).relay_at(named);
        config.tls.roots = Roots::from_pem(include_bytes!("certs/ca.pem")).unwrap();
        let mut a = peer(&home(&world, "a"), config).await;
        let mut b = client(&office(&world, "b"), 2, &addr).await;
        a.registered().await;
        b.registered().await;
        assert!(is_over_tls(&a).await && is_over_tls(&b).await);
        assert!(meet(&mut a, &mut b).await < secs(DIAL));
    });
}

#[test]
fn a_wrong_certificate_is_refused_by_name_and_a_wrong_key_as_such() {
    scenario(1, secs(60), |world| async move {
        let (_relay, addr) = relay(&world.host("relay"), certified(9)).await;
        let ip = addr.socket_addrs().next().unwrap().ip();
        world.name("relay.example", ip);
        world.name("other.example", ip);
        let at = |id, host: &str| PeerAddr::new(id, [host.parse::<HostAddr>().unwrap()]);
        let stranger = config(8).identity.id();
        let roots = Roots::from_pem(include_bytes!("certs/ca.pem")).unwrap();
        let cases = [
            (at(addr.id, "wss://other.example:4000"), roots, "certificate is for relay.example, not for other.example"),
            (at(addr.id, "wss://relay.example:4000"), Roots::default(), "nobody that this node trusts"),
            (at(stranger, "relay.example:4000"), Roots::default(), "another key than the relay's answers TLS there"),
        ];
        for (n, (relay, roots, expected)) in (1..).zip(cases) {
            let mut config = config(n).relay_at(relay);
            config.tls.roots = roots;
            let node = peer(&office(&world, &format!("office {n}")), config).await;
            let said = complaint(&node).await;
            assert!(said.contains(expected), "{said}");
        }
    });
}

#[test]
fn a_certificate_counts_from_its_first_day_to_its_last_by_the_clock_of_who_looks_at_it() {
    scenario(1, secs(60), |world| async move {
        let (_relay, addr) = relay(&world.host("relay"), certified(9)).await;
        world.name("relay.example", addr.socket_addrs().next().unwrap().ip());
        let named = PeerAddr::new(addr.id, ["wss://relay.example:4000".parse::<HostAddr>().unwrap()]);
        for (n, now, expected) in [(1, 1_000_000_000, "is not valid yet"), (2, 5_000_000_000, "has expired")] {
            let mut config = config(n).relay_at(named.clone());
            config.tls.roots = Roots::from_pem(include_bytes!("certs/ca.pem")).unwrap();
            config.clock = WallClock::new(move || SystemTime::UNIX_EPOCH + secs(now));
            let said = complaint(&peer(&office(&world, &format!("office {n}")), config).await).await;
            assert!(said.contains(expected), "{said}");
        }
    });
}

#[test]
fn garbage_and_silence_on_the_tcp_port_are_cut_off_and_cost_nobody_else_his_place() {
    scenario(1, secs(60), |world| async move {
        let (_relay, addr) = relay(&world.host("relay"), config(9)).await;
        let to = addr.socket_addrs().next().unwrap();
        let stranger = world.host("stranger");
        let mut streams = Vec::new();
        for n in 0..100 {
            let mut stream = stranger.connect_tcp(to).await.unwrap();
            if n % 2 == 0 {
                let _ = stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await;
            }
            streams.push(stream);
        }
        let a = client(&office(&world, "a"), 1, &addr).await;
        a.registered().await;
        let began = Instant::now();
        for mut stream in streams {
            let mut answer = Vec::new();
            let _ = stream.read_to_end(&mut answer).await;
            assert!(answer.len() < 16, "no more than an alert: {answer:?}");
        }
        assert!(began.elapsed() < secs(6), "{:?}", began.elapsed());
    });
}

#[test]
fn what_answers_in_a_relays_place_is_named_with_what_to_do() {
    scenario(1, secs(120), |world| async move {
        let mut self_signed = config(9);
        let (chain, key) = (include_bytes!("certs/self.pem"), include_bytes!("certs/self.key"));
        self_signed.tls.certificate = Some(Certificate::from_pem(chain, key).unwrap());
        let (_relay, addr) = relay(&world.host("relay"), self_signed).await;
        world.name("relay.example", addr.socket_addrs().next().unwrap().ip());
        let deaf = world.host("deaf");
        let (hangs_up, talks) = [22, 80].map(|port| deaf.listen_tcp((deaf.addr(), port).into()).unwrap()).into();
        tokio::spawn(async move {
            while let Ok(stream) = hangs_up.accept().await {
                drop(stream)
            }
        });
        tokio::spawn(async move {
            while let Ok(mut stream) = talks.accept().await {
                let _ = stream.write_all(b"SSH-2.0-nobody\r\n").await;
            }
        });
        let cases = [
            ("wss://relay.example:4000".to_owned(), "an authority's own, as self-signed ones are"),
            (format!("{}:22", deaf.addr()), "it hung up during the TLS handshake"),
            (format!("{}:80", deaf.addr()), "it does not speak TLS"),
        ];
        for (n, (host, expected)) in (1..).zip(cases) {
            let relay = PeerAddr::new(addr.id, [host.parse::<HostAddr>().unwrap()]);
            let mut config = config(n).relay_at(relay);
            config.tls.roots = Roots::from_pem(include_bytes!("certs/self.pem")).unwrap();
            let said = complaint(&peer(&office(&world, &format!("office {n}")), config).await).await;
            assert!(said.contains(expected), "{said}");
        }
    });
}

/// Counts the packets of TCP that a host sends from now on.
fn count_tcp(world: &World, host: &Host) -> Arc<AtomicUsize> {
    let (sent, side) = (Arc::new(AtomicUsize::new(0)), host.id());
    let counted = Arc::clone(&sent);
    let rule = world.rule(move |packet: &Packet<'_>| {
        let is_its = packet.sender == side && !matches!(packet.transport, Transport::Udp);
        counted.fetch_add(usize::from(is_its), Ordering::Relaxed);
        Verdict::Pass
    });
    std::mem::forget(rule); // to the end of the scenario
    sent
}

#[test]
fn where_udp_works_nobody_connects_by_tcp() {
    scenario(1, secs(60), |world| async move {
        let (_relay, addr) = relay(&world.host("relay"), config(9)).await;
        let host = home(&world, "a");
        let tcp = count_tcp(&world, &host);
        let a = client(&host, 1, &addr).await;
        a.registered().await;
        time::sleep(secs(30)).await;
        assert_eq!((tcp.load(Ordering::Relaxed), is_over_tls(&a).await), (0, false));
    });
}

#[test]
fn a_relays_name_leads_nobody_to_an_address_that_no_relay_has() {
    scenario(1, secs(60), |world| async move {
        let (_relay, addr) = relay(&world.host("relay"), config(9)).await;
        world.name("trap.example", std::net::Ipv4Addr::new(169, 254, 169, 254).into());
        let trap = PeerAddr::new(addr.id, ["trap.example:80".parse::<HostAddr>().unwrap()]);
        let host = office(&world, "a");
        let tcp = count_tcp(&world, &host);
        let said = complaint(&client(&host, 1, &trap).await).await;
        assert!(said.contains("no address that this node can"), "{said}");
        assert_eq!(tcp.load(Ordering::Relaxed), 0);
    });
}
