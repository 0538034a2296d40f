use alloc::{vec, vec::Vec};
use core::{net::SocketAddr, time::Duration};

use super::*;
use crate::nat::SocketId;

const LINK: LinkId = LinkId(1);

fn at(ms: u64) -> Instant {
    Instant::after_start(Duration::from_millis(ms))
}

fn addr(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn agent() -> Agent {
    let mut agent = Agent::new(AgentConfig::default(), &[1; 32], at(0));
    agent.handle_input(Input::Up { link: LINK, dialled: true, loopback: false }, at(0));
    agent
}

fn drain(agent: &mut Agent) -> Vec<Output> {
    core::iter::from_fn(|| agent.poll_output()).collect()
}

/// Everything that leaves until `end`, with its time.
fn run(agent: &mut Agent, end: Instant) -> Vec<(Instant, Output)> {
    let mut all: Vec<_> = drain(agent).into_iter().map(|output| (agent.now, output)).collect();
    while let Some((at, _)) = agent.poll_timeout().filter(|(at, _)| *at <= end) {
        agent.handle_input(Input::Timeout, at);
        all.extend(drain(agent).into_iter().map(|output| (at, output)));
    }
    all
}

fn pings(outputs: &[(Instant, Output)]) -> Vec<(Instant, SocketAddr)> {
    let ping = |(at, output): &(Instant, Output)| match output {
        Output::Ping { to, .. } => Some((*at, *to)),
        _ => None,
    };
    outputs.iter().filter_map(ping).collect()
}

fn candidates(addrs: &[&str]) -> Input {
    Input::Candidates { link: LINK, addrs: addrs.iter().map(|it| addr(it)).collect() }
}

#[test]
fn a_candidate_is_pinged_at_the_times_that_the_ancestor_chose() {
    let golden = [0.0, 0.20, 0.53, 1.07, 1.97, 3.46];
    for seed in 0..100 {
        let mut agent = Agent::new(AgentConfig::default(), &[seed; 32], at(0));
        agent.handle_input(Input::Up { link: LINK, dialled: true, loopback: false }, at(0));
        agent.handle_input(candidates(&["192.0.2.1:5"]), at(0));
        let sent = pings(&run(&mut agent, at(60_000)));
        let times: Vec<f64> = sent.iter().map(|(at, _)| at.since_start().as_secs_f64()).collect();
        assert_eq!(times.len(), golden.len());
        let stretch = times[1] / 0.2;
        assert!((1.0..1.25).contains(&stretch));
        for (time, golden) in times.iter().zip(golden) {
            assert!((time / stretch - golden).abs() < 0.01, "{times:?}");
        }
    }
}

#[test]
fn the_first_pong_of_a_pair_makes_a_route_and_others_make_none() {
    let mut agent = agent();
    agent.handle_input(candidates(&["192.0.2.1:5"]), at(0));
    let outputs = drain(&mut agent);
    let [Output::Ping { txid, socket: SocketId::MAIN, .. }] = outputs[..] else { panic!("{outputs:?}") };
    let pong = |socket, from: &str, txid| Input::Pong { link: LINK, socket, from: addr(from), txid };
    // B12, B13: another socket, another address or another ping proves nothing about this pair
    for wrong in [
        pong(SocketId(7), "192.0.2.1:5", txid),
        pong(SocketId::MAIN, "192.0.2.1:6", txid),
        pong(SocketId::MAIN, "192.0.2.1:5", txid ^ 1),
        Input::Pong { link: LinkId(2), socket: SocketId::MAIN, from: addr("192.0.2.1:5"), txid },
    ] {
        agent.handle_input(wrong, at(40));
        assert_eq!(drain(&mut agent), []);
    }
    agent.handle_input(pong(SocketId::MAIN, "192.0.2.1:5", txid), at(50));
    let route = Output::Route {
        link: LINK,
        socket: SocketId::MAIN,
        remote: addr("192.0.2.1:5"),
        rtt: Duration::from_millis(50),
    };
    assert_eq!(drain(&mut agent), [route]);
    agent.handle_input(pong(SocketId::MAIN, "192.0.2.1:5", txid), at(51));
    assert_eq!(drain(&mut agent), []);
    agent.handle_input(Input::Direct { link: LINK, socket: SocketId::MAIN }, at(60));
    assert_eq!(agent.poll_timeout(), None);
    assert!(agent.explain(LINK).unwrap().direct);
}

#[test]
fn a_route_to_one_peer_does_not_end_the_pings_to_another_at_the_same_address() {
    let mut agent = agent();
    let other = LinkId(2);
    agent.handle_input(Input::Up { link: other, dialled: false, loopback: false }, at(0));
    agent.handle_input(candidates(&["192.0.2.1:5"]), at(0));
    agent.handle_input(Input::Candidates { link: other, addrs: vec![addr("192.0.2.1:5")] }, at(0));
    agent.handle_input(Input::Direct { link: other, socket: SocketId::MAIN }, at(1));
    assert_eq!(pings(&run(&mut agent, at(60_000))).len(), 1 + 6);
}

#[test]
fn new_candidates_are_pinged_and_those_still_there_go_on_where_they_were() {
    let mut agent = agent();
    agent.handle_input(candidates(&["192.0.2.1:5"]), at(0));
    agent.handle_input(candidates(&["192.0.2.1:5", "192.0.2.1:5", "[::ffff:192.0.2.1]:5", "192.0.2.2:5"]), at(100));
    let sent = pings(&run(&mut agent, at(60_000)));
    let count = |text| sent.iter().filter(|(_, to)| *to == addr(text)).count();
    assert_eq!((count("192.0.2.1:5"), count("192.0.2.2:5")), (6, 6));
}

#[test]
fn public_addresses_go_first_and_what_may_not_be_probed_never() {
    let mut agent = agent();
    agent.handle_input(
        candidates(&["10.0.0.1:5", "127.0.0.1:5", "169.254.169.254:80", "100.64.0.1:5", "192.0.2.1:5", "224.0.0.1:5"]),
        at(0),
    );
    let sent: Vec<_> = pings(&run(&mut agent, at(0))).into_iter().map(|(_, to)| to).collect();
    assert_eq!(sent, [addr("192.0.2.1:5"), addr("10.0.0.1:5"), addr("100.64.0.1:5")]);
    assert_eq!(agent.explain(LINK).unwrap().refused.len(), 3);
}

#[test]
fn inputs_about_an_unknown_connection_leave_no_state() {
    let mut agent = Agent::new(AgentConfig::default(), &[1; 32], at(0));
    for number in 0..5_000 {
        let link = LinkId(number);
        agent.handle_input(Input::Candidates { link, addrs: vec![addr("192.0.2.1:5")] }, at(0));
        agent.handle_input(Input::Pong { link, socket: SocketId::MAIN, from: addr("192.0.2.1:5"), txid: 1 }, at(0));
    }
    assert_eq!((drain(&mut agent), agent.links.len(), agent.poll_timeout()), (vec![], 0, None));
}

#[test]
fn a_full_second_defers_pings_and_drops_none() {
    let mut agent = Agent::new(AgentConfig::default(), &[1; 32], at(0));
    for number in 0..100 {
        let link = LinkId(number);
        agent.handle_input(Input::Up { link, dialled: true, loopback: false }, at(0));
        let addrs = (1..=10).map(|port| SocketAddr::new(addr("192.0.2.1:1").ip(), port)).collect();
        agent.handle_input(Input::Candidates { link, addrs }, at(0));
    }
    let times: Vec<_> = pings(&run(&mut agent, at(60_000))).into_iter().map(|(at, _)| at).collect();
    assert_eq!(times.len(), 100 * 10 * 6);
    for window in times.windows(251) {
        assert!(window[250].since(window[0]) > Duration::from_secs(1));
    }
    assert_eq!(agent.counters().per_second_max, 250);
}
