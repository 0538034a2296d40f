//! Routes, their probes and their sockets, without a peer at the other end.

use std::time::SystemTime;

use byway_proto::{
    gate::{Gate, GateConfig},
    nat::AgentConfig,
    paths::PathsConfig,
    wire::probe::{self, Probe, ProbeKey, ProbeKind},
};

use super::*;
use crate::{
    agent::Up,
    config::WallClock,
    event::Events,
    metrics::Dropped,
    net::{
        UdpSocket,
        mux::{Clock, Mux, Welcome},
        os::Os,
        routes::Routes,
        sockets::Sockets,
    },
};

const SOCKET: SocketId = SocketId(5);

fn agent() -> Agent {
    let gate = Gate::new(GateConfig::default(), [3; 32]);
    let routes = Routes::new(&[1; 32], [2; 32]);
    let (mux, _) = Mux::new(Sockets::new(None, None), routes, gate, Clock::start(), Welcome::Nobody);
    let machine = nat::Agent::new(AgentConfig::default(), &[1; 32], mux.now());
    let traversal = Traversal::new(machine, Arc::new(Os), SwitchRef::new().0, Arc::default());
    let (clock, looked) = (WallClock::default(), (SystemTime::UNIX_EPOCH, Instant::START));
    let (peers, timers) = (BTreeMap::new(), BTreeSet::new());
    Agent {
        mux,
        events: Events::default(),
        rng: byway_proto::Rng::new(&[1; 32], "agent"),
        peers,
        timers,
        traversal,
        clock,
        looked,
        store: None,
    }
}

fn socket() -> Arc<dyn UdpSocket> {
    Os.bind_udp(([127, 0, 0, 1], 0).into()).unwrap()
}

/// A peer with routes by [`SOCKET`] to these ports.
fn peer(agent: &mut Agent, ports: &[u16]) -> SocketAddr {
    let track = agent.mux.routes.dial(agent.mux.now());
    let alias = track.alias();
    for port in ports {
        track.lock().add(Via::Punched(SOCKET, ([192, 0, 2, 1], *port).into()), true).unwrap();
    }
    let up = Up {
        track,
        exported: [7; probe::EXPORT_LEN],
        config: PathsConfig::default(),
        told: None,
        rtt: Duration::ZERO,
        relayed: false,
    };
    agent.peers.insert(alias, Box::new(AgentPeer::new(up, &[1; 32], agent.mux.now())));
    alias
}

#[tokio::test]
async fn a_socket_stays_open_until_its_last_route_is_gone() {
    let mut agent = agent();
    assert!(agent.mux.sockets.add(SOCKET, socket()));
    let alias = peer(&mut agent, &[1, 2, 3]);
    agent.traversal.closing.insert(SOCKET); // the machine is done with it
    let track = Arc::clone(&agent.peers[&alias].track);
    let routes: Vec<_> = track.lock().routes().map(|(route, _)| route).collect();
    for (gone, route) in routes.into_iter().enumerate() {
        assert_eq!(agent.mux.sockets.count(), 1, "{gone} of 3 routes are gone");
        track.lock().remove(route);
        agent.unused(SOCKET);
    }
    assert_eq!((agent.mux.sockets.count(), agent.traversal.closing.len()), (0, 0));
}

#[tokio::test]
async fn what_a_punch_leaves_is_closed_but_for_the_sockets_in_use() {
    let mut agent = agent();
    peer(&mut agent, &[1]);
    for n in 1..=20 {
        assert!(agent.mux.sockets.add(SocketId(n), socket()));
        agent.traverse_by(Output::Close { socket: SocketId(n) });
    }
    agent.close_sockets();
    assert_eq!((agent.mux.sockets.count(), agent.mux.sockets.further(SOCKET).is_some()), (1, true));
}

#[tokio::test]
async fn a_route_that_a_punch_left_over_is_given_up_once_the_peer_is_heard_elsewhere() {
    let mut agent = agent();
    assert!(agent.mux.sockets.add(SOCKET, socket()));
    let alias = peer(&mut agent, &[1, 2]);
    agent.traverse_by(Output::Close { socket: SOCKET });
    agent.close_sockets();
    let track = Arc::clone(&agent.peers[&alias].track);
    let main = track.lock().add(Via::Direct(([192, 0, 2, 1], 3).into()), true).unwrap();
    let hear = |port, secs| {
        let mut state = track.lock();
        let route = state.routes().find(|(_, slot)| slot.via.remote().port() == port).unwrap().0;
        state.slot_mut(route).unwrap().heard = Some(Instant::after_start(Duration::from_secs(secs)));
    };
    let left = |agent: &mut Agent| {
        agent.leave_surplus();
        track.vias().iter().map(|via| via.remote().port()).collect::<Vec<_>>()
    };
    track.lock().selected = Some(main);
    hear(1, 5);
    assert_eq!(left(&mut agent), [1, 2, 3], "the peer may be idle");
    hear(3, 14);
    assert_eq!(left(&mut agent), [1, 3], "the peer was heard here of late");
    assert!(agent.traversal.look_at_surplus.is_some());
    hear(3, 15);
    assert_eq!((left(&mut agent), agent.mux.sockets.count()), (vec![3], 0));
}

#[tokio::test]
async fn a_connection_that_is_over_closes_the_sockets_of_its_routes() {
    let mut agent = agent();
    assert!(agent.mux.sockets.add(SOCKET, socket()));
    let alias = peer(&mut agent, &[1, 2]);
    agent.traverse_by(Output::Close { socket: SOCKET });
    agent.close_sockets();
    assert_eq!(agent.mux.sockets.count(), 1);
    agent.command(crate::agent::Command::Down { alias });
    assert_eq!((agent.mux.sockets.count(), agent.traversal.closing.len()), (0, 0));
}

/// A connection that may use relays alone, or any way, and what its other end sends as its first and second probe.
fn prober(relayed: bool) -> (Agent, AgentPeer, impl Fn(u64, ProbeKind) -> ControlDatagram) {
    let agent = agent();
    let (track, exported) = (agent.mux.routes.dial(agent.mux.now()), [7; probe::EXPORT_LEN]);
    let up = Up { track, exported, config: PathsConfig::default(), told: None, rtt: Duration::ZERO, relayed };
    let peer = AgentPeer::new(up, &[1; 32], agent.mux.now());
    let key = ProbeKey::derive(&exported, false);
    let send = move |seq, kind| {
        let bytes = probe::encode(&Probe { seq, kind, txid: [9; 8] }, &key, 0);
        ControlDatagram { via: Via::Direct(([192, 0, 2, 1], 5).into()), bytes }
    };
    (agent, peer, send)
}

#[tokio::test]
async fn a_ping_by_a_new_way_makes_a_route_that_nothing_but_an_answer_to_ours_proves() {
    let (agent, mut peer, send) = prober(false);
    let observed = Some(([198, 51, 100, 1], 7).into());
    for (seq, kind) in [(1, ProbeKind::Ping { doubt: false }), (2, ProbeKind::Pong { observed })] {
        peer.probe(&agent.mux, &send(seq, kind), agent.mux.now());
        let proven: Vec<_> = peer.track.lock().routes().map(|(_, slot)| slot.proven).collect();
        assert_eq!(proven, [false], "{kind:?}");
    }
}

#[tokio::test]
async fn a_node_that_uses_relays_alone_drops_probes_that_come_directly() {
    let (agent, mut peer, send) = prober(true);
    peer.probe(&agent.mux, &send(1, ProbeKind::Ping { doubt: false }), agent.mux.now());
    assert_eq!(peer.track.vias(), []);
    assert_eq!(agent.mux.counters.of(Dropped::UnknownSource), 1);
}
