//! Mappings that die of age.

use super::*;
use crate::wire::stun;

/// A connection on its direct route by the node's own socket, whose NAT ends every mapping at 100 s: that has just been learned.
fn aged() -> Agent {
    let mut agent = between(AgentConfig::default(), home(OURS), home(THEIRS));
    agent.handle_input(Input::Servers([addr("203.0.113.1:3478")].into()), at(0));
    agent.handle_input(direct(LINK, SocketId::MAIN), at(0));
    run(&mut agent, at(0));
    for second in 0..=200 {
        let seen = SocketAddr::new(addr(OURS).ip(), addr(OURS).port() + second as u16 / 100);
        agent.handle_input(Input::Mapped { addr: seen }, at(second * 1_000));
    }
    let early = run(&mut agent, at(200_000));
    assert!(opened(&early).is_empty(), "nothing is due yet");
    agent
}

/// The pings, signals and questions to servers among these.
fn pinged(outputs: &[(Instant, Output)]) -> Vec<(SocketId, SocketAddr, u64)> {
    let ping = |(_, output): &(Instant, Output)| match output {
        Output::Ping { socket, to, txid, .. } => Some((*socket, *to, *txid)),
        _ => None,
    };
    outputs.iter().filter_map(ping).collect()
}

fn renewed(outputs: &[Output]) -> Option<SocketId> {
    outputs.iter().find_map(|output| match output {
        Output::Renew { link: LINK, socket, remote } if *remote == addr(THEIRS) => Some(*socket),
        _ => None,
    })
}

/// Lets time pass until a renewal begins; when, and by what.
fn begun(agent: &mut Agent, from: u64) -> (u64, Vec<(Instant, Output)>) {
    let moments = (from..from + 100_000).step_by(100);
    let run = |ms| (ms, run(agent, at(ms)));
    moments.map(run).find(|(_, outputs)| !opened(outputs).is_empty()).unwrap()
}

/// Lets the next renewal succeed by its first ping; when that was, and the fresh socket.
fn renew(agent: &mut Agent, from: u64) -> (u64, SocketId) {
    let (ms, outputs) = begun(agent, from);
    let fresh = *opened(&outputs).first().unwrap();
    let (socket, to, txid) = pinged(&outputs)[0];
    assert_eq!((socket, to), (fresh, addr(THEIRS)));
    agent.handle_input(Input::Pong { link: LINK, socket: fresh, from: addr(THEIRS), txid }, at(ms + 50));
    let outputs = drain(agent);
    assert_eq!(renewed(&outputs), Some(fresh), "{outputs:?}");
    agent.handle_input(direct(LINK, fresh), at(ms + 60));
    (ms, fresh)
}

#[test]
fn a_direct_route_gets_a_fresh_mapping_before_its_own_dies_and_that_one_again() {
    let mut agent = aged();
    let (when, first) = renew(&mut agent, 200_000);
    assert!((268_000..280_000).contains(&when), "the mapping since 200 s dies at 299 s: {when}");
    let (next, second) = renew(&mut agent, when + 100);
    assert!((68_000..80_000).contains(&(next - when)) && first != second, "{next}");
    let closed = drain(&mut agent).contains(&Output::Close { socket: first });
    assert!(closed, "the last one is of no more use");
}

#[test]
fn a_renewal_waits_until_the_peers_own_has_settled() {
    let mut agent = aged();
    let (ms, outputs) = begun(&mut agent, 200_000);
    let remote = addr("198.51.100.1:61000");
    agent.handle_input(Input::Direct { link: LINK, socket: SocketId::MAIN, remote }, at(ms));
    assert!(drain(&mut agent).contains(&Output::Close { socket: *opened(&outputs).first().unwrap() }));
    let (again, outputs) = begun(&mut agent, ms + 100);
    assert!((ms + 4_000..ms + 15_000).contains(&again), "{ms} {again}");
    assert_eq!(pinged(&outputs)[0].1, remote);

    let mut agent = aged();
    run(&mut agent, at(281_000)); // four fifths of its life are over
    agent.handle_input(Input::Direct { link: LINK, socket: SocketId::MAIN, remote }, at(281_000));
    drain(&mut agent);
    let (again, _) = begun(&mut agent, 281_000);
    assert_eq!(again, 285_000);
}

#[test]
fn two_sides_that_began_together_do_not_stay_in_step() {
    let mut times: Vec<u64> = Vec::new();
    let (mut agent, mut now) = (aged(), 200_000);
    for _ in 0..6 {
        let (when, _) = renew(&mut agent, now);
        times.push((when - now) / 1_000);
        now = when + 100;
    }
    times.dedup();
    assert!(times.len() > 3, "{times:?}");
}

#[test]
fn the_peer_is_told_where_the_fresh_socket_is_seen() {
    let mut agent = aged();
    let (ms, outputs) = begun(&mut agent, 200_000);
    let (socket, to, request) = outputs
        .iter()
        .find_map(|(_, output)| match output {
            Output::Stun { socket, to, datagram } if *socket != SocketId::MAIN => {
                Some((*socket, *to, datagram.clone()))
            }
            _ => None,
        })
        .unwrap();
    let seen = addr("192.0.2.1:61000");
    let datagram = stun::binding_response(stun::parse_request(&request).unwrap(), seen);
    agent.handle_input(Input::Stun { socket, from: to, datagram }, at(ms + 50));
    let said = drain(&mut agent).into_iter().find_map(|output| match output {
        Output::Signal { signal: Signal::Guess { ip, ports, .. }, .. } => Some((ip, ports)),
        _ => None,
    });
    assert_eq!(said, Some((seen.ip(), vec![61_000])));
}

#[test]
fn a_renewal_that_nobody_answers_is_tried_three_times_and_leaves_no_socket() {
    let mut agent = aged();
    let outputs = run(&mut agent, at(400_000));
    let sockets = opened(&outputs);
    assert_eq!(sockets.len(), 3);
    assert!(pinged(&outputs).len() <= 36, "{}", pinged(&outputs).len());
    for socket in sockets {
        assert!(outputs.iter().any(|(_, output)| *output == Output::Close { socket }), "{socket:?}");
    }
}

#[test]
fn a_connection_that_goes_by_a_relay_renews_nothing() {
    let mut agent = aged();
    agent.handle_input(Input::Relayed { link: LINK }, at(201_000));
    agent.handle_input(Input::Candidates { link: LINK, addrs: vec![] }, at(201_000));
    assert!(opened(&run(&mut agent, at(300_000))).is_empty());

    let mut agent = aged();
    let (ms, outputs) = begun(&mut agent, 200_000);
    agent.handle_input(Input::Relayed { link: LINK }, at(ms));
    assert!(drain(&mut agent).contains(&Output::Close { socket: *opened(&outputs).first().unwrap() }));
}

#[test]
fn the_port_of_a_peers_fresh_mapping_is_probed_from_the_socket_of_the_route() {
    let mut agent = between(AgentConfig::default(), home(OURS), home(THEIRS));
    agent.handle_input(direct(LINK, SocketId::MAIN), at(0));
    run(&mut agent, at(10_000));
    let guess = |ip: &str| Signal::Guess { attempt: 1, ip: addr(ip).ip(), ports: vec![61_000] };
    say(&mut agent, LINK, guess("203.0.113.66:1"), 10_000);
    assert_eq!(pinged(&run(&mut agent, at(10_500))), [], "that is not the peer");
    say(&mut agent, LINK, guess(THEIRS), 11_000);
    let outputs = pinged(&run(&mut agent, at(20_000)));
    assert_eq!(outputs.len(), 3);
    let fresh = SocketAddr::new(addr(THEIRS).ip(), 61_000);
    assert!(outputs.iter().all(|(socket, to, _)| (*socket, *to) == (SocketId::MAIN, fresh)), "{outputs:?}");
    assert!(agent.explain(LINK).unwrap().attempts.iter().all(|attempt| attempt.means == Means::Pings));
}

#[test]
fn a_mapping_made_anew_may_be_tried_three_times_again() {
    let mut agent = aged();
    assert_eq!(opened(&run(&mut agent, at(299_500))).len(), 3);
    let seen = SocketAddr::new(addr(OURS).ip(), addr(OURS).port() + 3);
    agent.handle_input(Input::Mapped { addr: seen }, at(300_000)); // the route has outlived its mapping
    let (when, _) = begun(&mut agent, 300_000);
    assert!((368_000..381_000).contains(&when), "{when}");
}

#[test]
fn a_further_socket_whose_mapping_died_is_renewed_before_the_next_one_dies() {
    let mut agent = aged();
    let (when, _) = renew(&mut agent, 200_000);
    let failed = opened(&run(&mut agent, at(when + 100_000)));
    assert_eq!(failed.len(), 3, "nobody answered");
    let next = opened(&run(&mut agent, at(when + 197_000)));
    assert_eq!(next.len(), 3, "and the mapping made after that has its own tries");
}

#[test]
fn routes_that_no_nat_is_on_are_not_renewed() {
    for remote in ["192.168.1.9:4000", "127.0.0.1:4000"] {
        let mut agent = aged();
        agent.handle_input(Input::Direct { link: LINK, socket: SocketId::MAIN, remote: addr(remote) }, at(201_000));
        assert!(opened(&run(&mut agent, at(400_000))).is_empty(), "{remote}");
    }
}

#[test]
fn a_connection_that_comes_to_another_network_and_back_renews_its_mapping() {
    let mut agent = aged();
    agent.handle_input(Input::Network(vec![addr(OURS).ip()]), at(210_000));
    run(&mut agent, at(211_000));
    agent.set_report(NatReport::default(), at(211_000));
    run(&mut agent, at(240_000)); // the survey finds no server here
    agent.set_report(home(OURS), at(240_000));
    for second in 241..=245 {
        let seen = SocketAddr::new(addr(OURS).ip(), addr(OURS).port());
        agent.handle_input(Input::Mapped { addr: seen }, at(second * 1_000));
    }
    let (when, _) = begun(&mut agent, 245_000);
    assert!((278_000..291_000).contains(&when), "{when}");
}

#[test]
fn servers_that_answer_a_renewal_are_asked_by_the_next_one() {
    let mut agent = aged();
    let servers = [1, 2, 3, 4].map(|n: u8| SocketAddr::from(([203, 0, 113, n], 3_478)));
    agent.handle_input(Input::Servers(servers.into()), at(200_100));
    run(&mut agent, at(200_100));
    let mut asked = Vec::new();
    let mut from = 200_100;
    for _ in 0..3 {
        let (ms, outputs) = begun(&mut agent, from);
        let questions: Vec<_> = outputs
            .iter()
            .filter_map(|(_, output)| match output {
                Output::Stun { socket, to, datagram } if *socket != SocketId::MAIN => {
                    Some((*socket, *to, stun::parse_request(datagram).unwrap()))
                }
                _ => None,
            })
            .collect();
        asked.push(questions.iter().map(|(_, to, _)| *to).collect::<Vec<_>>());
        for (socket, to, txid) in questions {
            let datagram = stun::binding_response(txid, addr("192.0.2.1:61000"));
            agent.handle_input(Input::Stun { socket, from: to, datagram }, at(ms + 20));
        }
        from = ms + 4_500;
        run(&mut agent, at(from));
    }
    assert_eq!(asked[0], asked[1]);
}

#[test]
fn a_renewal_under_way_ends_with_the_network() {
    let mut agent = aged();
    let (ms, outputs) = begun(&mut agent, 200_000);
    let fresh = *opened(&outputs).first().unwrap();
    agent.handle_input(Input::Network(vec![addr("192.168.7.2:0").ip()]), at(ms + 10));
    let outputs = run(&mut agent, at(ms + 3_000));
    assert!(outputs.iter().any(|(_, output)| *output == Output::Close { socket: fresh }), "{outputs:?}");
    assert!(pinged(&outputs).iter().all(|(socket, ..)| *socket != fresh), "{outputs:?}");
}
