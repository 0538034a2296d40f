//! Punches through NATs: what they reach, what they cost, and what they leave alone.

use std::{
    cell::RefCell,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use byway::{Config, Node, PathKind};
use byway_proto::addr::HostAddr;
use byway_sim::{Host, Link, Nat, NatConfig, Ports, Punch, StunServer, UdpSocket, World, can_punch};
use tokio::{
    task::JoinHandle,
    time::{self, Instant},
};

use crate::common::{Peer, config, exchange, ms, peer, relay, scenario, secs};

/// How long nodes run before one dials: by then they know their NATs.
const SETTLE: Duration = Duration::from_secs(4);

/// Of 240 sockets that 240 guesses meet at once, 0.9 on average, each is a route for as long as it lasts; more than these
/// are one in a million.
const MOST_MET: usize = 8;

/// Two strangers that know one relay and two STUN servers.
struct Strangers {
    a: Peer,
    b: Peer,
    hosts: [Host; 2],
    /// Open sockets before the dial.
    sockets: [usize; 2],
    _core: (Node, [StunServer; 2]),
}

fn random() -> NatConfig {
    NatConfig::symmetric(Ports::Random)
}

/// A NAT that numbers its mappings, behind which other hosts open 5 a second.
fn sequential() -> NatConfig {
    let mut nat = NatConfig::symmetric(Ports::Sequential { step: 1 });
    nat.background = 5;
    nat
}

impl Strangers {
    async fn behind(world: &World, nats: [NatConfig; 2]) -> Self {
        let [a, b] = nats;
        let hosts = [world.nat("nat a", a).host("a"), world.nat("nat b", b).host("b")];
        Self::on(world, hosts, |_| {}).await
    }

    /// Starts a node on each host, the first as `change` has it, and waits until they are ready.
    async fn on(world: &World, hosts: [Host; 2], change: impl FnOnce(&mut Config)) -> Self {
        let core = ["relay", "stun 1", "stun 2"].map(|name| {
            let host = world.host(name);
            host.set_link(Link::lan());
            host
        });
        let (relay, addr) = relay(&core[0], config(9)).await;
        let stun = [StunServer::start(&core[1]).unwrap(), StunServer::start(&core[2]).unwrap()];
        let mut configs = [1, 2].map(|n| {
            let mut config = config(n).relay_at(addr.clone());
            config.seed = Some([world.seed() as u8 ^ (n << 6); 32]);
            config.stun = stun.iter().map(|server| HostAddr::Socket(server.addr())).collect();
            config
        });
        change(&mut configs[0]);
        let [first, second] = configs;
        let (a, b) = (peer(&hosts[0], first).await, peer(&hosts[1], second).await);
        a.registered().await;
        b.registered().await;
        time::sleep(SETTLE).await;
        let sockets = [hosts[0].sockets(), hosts[1].sockets()];
        Strangers { a, b, hosts, sockets, _core: (relay, stun) }
    }

    async fn dial(&mut self) {
        self.a.node.dial(self.b.node.ticket()).await.unwrap();
        self.a.up().await;
        self.b.up().await;
    }

    /// Dials, and waits until both go directly; how long that took, or `None` if not within `limit`.
    async fn punch(&mut self, limit: Duration) -> Option<Duration> {
        let start = Instant::now();
        self.dial().await;
        let both = async {
            while self.a.path().await != Some(PathKind::Direct) || self.b.path().await != Some(PathKind::Direct) {
                time::sleep(ms(20)).await;
            }
        };
        time::timeout_at(start + limit, both).await.ok()?;
        let took = start.elapsed();
        exchange(&mut self.a, &mut self.b).await;
        Some(took)
    }

    /// Sockets that are open in excess of those before the dial.
    fn further(&self) -> [usize; 2] {
        [0, 1].map(|side| self.hosts[side].sockets().saturating_sub(self.sockets[side]))
    }

    /// What the punch has cost each side: sockets, guesses. It panics if a budget was overrun.
    async fn cost(&self) -> [(u64, u64); 2] {
        let mut cost = [(0, 0); 2];
        for (node, cost) in [&self.a.node, &self.b.node].into_iter().zip(&mut cost) {
            let spent = node.status().await.nat.spent;
            assert!(spent.mappings_max_per_dial <= 256, "{spent:?}");
            assert!(spent.probes_max_per_dial <= 1_200, "{spent:?}");
            assert!(spent.per_second_max <= 250, "{spent:?}");
            *cost = (spent.mappings, spent.probes);
        }
        cost
    }

    /// Waits until a hard punch is under way: one side has opened its many sockets.
    async fn punching(&self) {
        let start = Instant::now();
        while self.further().iter().max() < Some(&200) {
            assert!(start.elapsed() < secs(5), "no hard punch within 5 s: {:?}", self.further());
            time::sleep(ms(5)).await;
        }
    }
}

/// Punches in five worlds: all but one have to be direct within `limit`, for chance has a part in it, and none may guess
/// more often than `guesses`. All sockets are closed then but `left` a side, which routes go by.
fn punches(nats: [NatConfig; 2], limit: Duration, guesses: u64, left: usize) {
    let times = RefCell::new(Vec::new());
    for seed in 1..=5 {
        let (nats, times) = (nats.clone(), &times);
        scenario(seed, secs(60), |world| async move {
            let mut strangers = Strangers::behind(&world, nats).await;
            let took = strangers.punch(limit).await;
            let cost = strangers.cost().await;
            assert!(cost.iter().all(|cost| cost.1 <= guesses), "seed {seed}: {cost:?}");
            times.borrow_mut().push(took);
            if took.is_some() {
                time::sleep(secs(3)).await;
                let further = strangers.further();
                assert!(further.iter().all(|count| *count <= left), "seed {seed}: sockets left open: {further:?}");
            }
        });
    }
    let direct = times.borrow().iter().flatten().count();
    assert!(direct >= 4, "direct within {limit:?}: {times:?}");
}

#[test]
fn random_ports_and_a_strict_filter_meet_within_five_seconds_and_what_was_not_met_is_closed() {
    punches([random(), NatConfig::port_restricted()], secs(5), 1_200, MOST_MET);
    punches([NatConfig::port_restricted(), random()], secs(5), 1_200, MOST_MET);
}

#[test]
fn sequential_ports_and_a_strict_filter_meet_within_two_seconds_and_64_guesses() {
    punches([sequential(), NatConfig::port_restricted()], secs(2), 64, 1);
    punches([NatConfig::port_restricted(), sequential()], secs(2), 64, 1);
}

#[test]
fn sequential_ports_on_both_sides_meet_within_three_seconds() {
    punches([sequential(), sequential()], secs(3), 1_200, 1);
}

#[test]
fn random_ports_on_both_sides_stay_relayed_and_nobody_guesses() {
    for other in [random(), sequential()] {
        scenario(1, secs(60), |world| async move {
            let mut strangers = Strangers::behind(&world, [random(), other]).await;
            assert_eq!(strangers.punch(secs(30)).await, None);
            assert_eq!(strangers.cost().await, [(0, 0); 2]);
            assert_eq!(strangers.further(), [0, 0]);
            exchange(&mut strangers.a, &mut strangers.b).await;
        });
    }
}

#[test]
fn one_side_that_wants_no_punch_is_enough_for_no_guesses() {
    let relay_only: fn(&mut Config) = |config| config.relay_only = true;
    let no_budget: fn(&mut Config) = |config| {
        let budget = &mut config.nat.budget;
        (budget.mappings, budget.probes, budget.per_second) = (0, 0, 0);
    };
    let easy = NatConfig::port_restricted();
    for (ours, theirs) in [(random(), easy.clone()), (easy, random()), (sequential(), sequential())] {
        for change in [relay_only, no_budget] {
            let (ours, theirs) = (ours.clone(), theirs.clone());
            scenario(1, secs(60), |world| async move {
                let hosts = [world.nat("nat a", ours).host("a"), world.nat("nat b", theirs).host("b")];
                let mut strangers = Strangers::on(&world, hosts, change).await;
                strangers.dial().await;
                time::sleep(secs(30)).await;
                let [ours, theirs] = strangers.cost().await;
                assert_eq!((ours, theirs.1), ((0, 0), 0));
                assert_eq!(strangers.a.path().await, Some(PathKind::Relay));
                exchange(&mut strangers.a, &mut strangers.b).await;
            });
        }
    }
}

#[test]
fn a_change_of_network_during_a_punch_costs_neither_the_connection_nor_sockets() {
    for side in [0, 1] {
        scenario(1, secs(120), |world| async move {
            let mut strangers = Strangers::behind(&world, [random(), NatConfig::port_restricted()]).await;
            strangers.dial().await;
            strangers.punching().await;
            strangers.hosts[side].renumber();
            time::sleep(secs(30)).await;
            exchange(&mut strangers.a, &mut strangers.b).await;
            let further = strangers.further();
            assert!(further.iter().all(|count| *count <= MOST_MET), "sockets left open: {further:?}");
            strangers.cost().await;
        });
    }
}

#[test]
fn a_peer_that_goes_during_a_punch_leaves_no_sockets_behind() {
    scenario(1, secs(60), |world| async move {
        let mut strangers = Strangers::behind(&world, [random(), NatConfig::port_restricted()]).await;
        strangers.dial().await;
        strangers.punching().await;
        strangers.b.node.close().await;
        strangers.a.down().await;
        time::sleep(ms(100)).await;
        assert_eq!(strangers.further()[0], 0);
    });
    scenario(2, secs(60), |world| async move {
        let mut strangers = Strangers::behind(&world, [random(), NatConfig::port_restricted()]).await;
        strangers.dial().await;
        strangers.punching().await;
        strangers.hosts[1].set_down(); // silently
        time::sleep(secs(15)).await;
        assert_eq!(strangers.further()[0], 0);
    });
}

#[test]
fn two_homes_of_one_carrier_meet_where_it_hairpins() {
    for hairpin in [true, false] {
        scenario(1, secs(60), |world| async move {
            let mut config = NatConfig::port_restricted();
            (config.hairpin, config.ports) = (hairpin, Ports::Random);
            let carrier = world.nat("carrier", config);
            let hosts = ["a", "b"].map(|name| carrier.nat(name, NatConfig::port_restricted()).host(name));
            let possible = can_punch(&hosts[0].side(), &hosts[1].side()) == Punch::WithoutGuessing;
            assert_eq!(possible, hairpin);
            let mut strangers = Strangers::on(&world, hosts, |_| {}).await;
            assert_eq!(strangers.punch(secs(10)).await.is_some(), possible);
            assert_eq!(strangers.cost().await.map(|cost| cost.1), [0, 0]);
            exchange(&mut strangers.a, &mut strangers.b).await;
        });
    }
}

/// Sockets on each side of a [`Crowd`].
const SOCKETS: u16 = 30;

/// What others do behind a router while a node behind it punches: 900 sessions that are idle, and a bystander.
struct Crowd {
    clients: Vec<Arc<UdpSocket>>,
    /// Sockets in the core, each with where the clients' packets came from.
    servers: Vec<(Arc<UdpSocket>, Vec<SocketAddr>)>,
    /// A packet each way once a second, until the crowd is asked what it has lost.
    talk: JoinHandle<()>,
    /// The seconds in which a packet of the bystander was lost, or its public address changed.
    lost: Arc<Mutex<Vec<u64>>>,
}

fn bind(host: &Host, port: u16) -> Arc<UdpSocket> {
    host.bind_udp(SocketAddr::new(host.addr(), port)).unwrap()
}

/// Where the next datagram comes from, if one comes soon.
async fn receive(socket: &UdpSocket) -> Option<SocketAddr> {
    time::timeout(ms(500), socket.recv_from(&mut [0; 64])).await.ok().map(|received| received.unwrap().1)
}

impl Crowd {
    async fn behind(world: &World, router: &Nat) -> Self {
        let (inside, core) = (router.host("crowd"), world.host("server"));
        let clients: Vec<_> = (0..SOCKETS).map(|n| bind(&inside, 6_000 + n)).collect();
        let mut servers: Vec<_> = (0..SOCKETS).map(|n| (bind(&core, 7_000 + n), Vec::new())).collect();
        for (server, heard) in &mut servers {
            let to = server.local_addr();
            clients.iter().for_each(|client| client.send_to(b"question", to).unwrap());
            for _ in &clients {
                heard.push(receive(server).await.unwrap());
            }
        }
        let bystander = (bind(&router.host("bystander"), 6_000), bind(&core, 8_000));
        let lost = Arc::default();
        let talk = tokio::spawn(talk(bystander, Arc::clone(&lost)));
        let crowd = Crowd { clients, servers, talk, lost };
        assert_eq!(crowd.admitted().await, SESSIONS);
        crowd
    }

    /// Sends a packet into each of the idle sessions; how many arrive.
    async fn admitted(&self) -> usize {
        for (server, heard) in &self.servers {
            heard.iter().for_each(|to| server.send_to(b"answer", *to).unwrap());
        }
        let mut admitted = 0;
        for client in &self.clients {
            while receive(client).await.is_some() {
                admitted += 1;
            }
        }
        admitted
    }

    /// How many of the idle sessions still admit their server, and in which seconds the bystander lost something.
    async fn survived(self) -> (usize, Vec<u64>) {
        self.talk.abort();
        (self.admitted().await, self.lost.lock().unwrap().clone())
    }
}

async fn talk((client, server): (Arc<UdpSocket>, Arc<UdpSocket>), lost: Arc<Mutex<Vec<u64>>>) {
    let to = server.local_addr();
    let mut first = None;
    for second in 0.. {
        client.send_to(b"up", to).unwrap();
        let from = receive(&server).await;
        from.iter().for_each(|from| server.send_to(b"down", *from).unwrap());
        let back = receive(&client).await;
        if back.is_none() || from != *first.get_or_insert(from) {
            lost.lock().unwrap().push(second);
        }
        time::sleep(secs(1)).await;
    }
}

/// Idle sessions in a [`Crowd`].
const SESSIONS: usize = SOCKETS as usize * SOCKETS as usize;

#[test]
fn a_hard_punch_costs_others_behind_a_router_of_1024_sessions_nothing() {
    for (role, ours, theirs) in
        [("hard side", random(), NatConfig::port_restricted()), ("easy side", NatConfig::port_restricted(), random())]
    {
        scenario(1, secs(1_000), |world| async move {
            assert_eq!(ours.max_sessions, 1_024);
            let router = world.nat("router", ours);
            let hosts = [router.host("a"), world.nat("other", theirs).host("b")];
            let mut strangers = Strangers::on(&world, hosts, |_| {}).await;
            let crowd = Crowd::behind(&world, &router).await;
            let took = strangers.punch(secs(10)).await;
            time::sleep(secs(10)).await;
            let [ours, theirs] = strangers.cost().await;
            println!("{role}: direct after {took:?}, sockets and guesses {ours:?}, of the other side {theirs:?}");
            let spent = if role == "hard side" { ours.0 } else { ours.1 };
            assert!(spent >= 240, "that was no hard punch");
            let (survived, lost) = crowd.survived().await;
            assert_eq!((survived, lost), (SESSIONS, vec![]), "{role}");
        });
    }
}
