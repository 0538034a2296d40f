use alloc::{collections::BTreeSet, vec, vec::Vec};
use core::{net::SocketAddr, time::Duration};

use super::*;
use crate::nat::{FamilyReport, Filtering, Mapping, Means, Outcome, Plan, Ports, Remedy, Side, Signal};
use crate::{
    PeerId,
    hello::{Control, ControlCodec},
};

mod renewal;

const LINK: LinkId = LinkId(1);

fn at(ms: u64) -> Instant {
    Instant::after_start(Duration::from_millis(ms))
}

fn addr(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// A connection with a peer of its own.
fn up(link: LinkId) -> Input {
    with_peer(link, link.0)
}

fn with_peer(link: LinkId, peer: u64) -> Input {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&peer.to_be_bytes());
    Input::Up { link, peer: PeerId::ed25519(key), dialled: true, loopback: false }
}

fn direct(link: LinkId, socket: SocketId) -> Input {
    Input::Direct { link, socket, remote: addr(THEIRS) }
}

fn agent() -> Agent {
    let mut agent = Agent::new(AgentConfig::default(), &[1; 32], at(0));
    agent.handle_input(up(LINK), at(0));
    agent
}

/// What leaves now; every socket opens.
fn drain(agent: &mut Agent) -> Vec<Output> {
    let mut all = Vec::new();
    while let Some(output) = agent.poll_output() {
        if let Output::Open { socket, .. } = output {
            let local = SocketAddr::new(addr("192.168.1.2:1").ip(), 20_000 + socket.0 as u16);
            let now = agent.now;
            agent.handle_input(Input::Opened { socket, local: Some(local) }, now);
        }
        all.push(output);
    }
    all
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
        agent.handle_input(up(LINK), at(0));
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
    agent.handle_input(direct(LINK, SocketId::MAIN), at(60));
    assert_eq!(agent.poll_timeout(), None);
    assert!(agent.explain(LINK).unwrap().direct);
}

#[test]
fn a_route_to_one_peer_does_not_end_the_pings_to_another_at_the_same_address() {
    let mut agent = agent();
    let other = LinkId(2);
    agent.handle_input(up(other), at(0));
    agent.handle_input(candidates(&["192.0.2.1:5"]), at(0));
    agent.handle_input(Input::Candidates { link: other, addrs: vec![addr("192.0.2.1:5")] }, at(0));
    let begun = run(&mut agent, at(0));
    let (socket, from) = (SocketId::MAIN, addr("192.0.2.1:5"));
    let ping_of = |of: LinkId| {
        begun.iter().find_map(|(_, output)| match output {
            Output::Ping { link, txid, .. } if *link == of => Some(*txid),
            _ => None,
        })
    };
    assert!(ping_of(LINK).is_some());
    agent.handle_input(Input::Pong { link: other, socket, from, txid: ping_of(other).unwrap() }, at(1));
    agent.handle_input(Input::Direct { link: other, socket, remote: from }, at(1));
    let left = run(&mut agent, at(60_000));
    let of_other = left.iter().any(|(_, output)| matches!(output, Output::Ping { link, .. } if *link == other));
    assert_eq!((pings(&left).len(), of_other), (5, false));
}

#[test]
fn an_address_that_the_route_leads_to_is_no_candidate() {
    let mut agent = agent();
    agent.handle_input(Input::Direct { link: LINK, socket: SocketId::MAIN, remote: addr("192.0.2.1:5") }, at(0));
    agent.handle_input(candidates(&["192.0.2.1:5", "192.0.2.2:5"]), at(1));
    let sent = pings(&run(&mut agent, at(60_000)));
    assert!(!sent.is_empty() && sent.iter().all(|(_, to)| *to == addr("192.0.2.2:5")), "{sent:?}");
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
        agent.handle_input(up(link), at(0));
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

const OURS: &str = "192.0.2.1:7777";
const THEIRS: &str = "198.51.100.1:7777";

#[test]
fn connections_that_wait_for_a_full_second_come_back_one_after_the_other() {
    const LINKS: u64 = 2_000;
    let mut agent = Agent::new(AgentConfig::default(), &[1; 32], at(0));
    for n in 0..LINKS {
        let (link, now) = (LinkId(n), at(n)); // not all in one moment: packets leave and may leave again all the time
        run(&mut agent, now);
        agent.handle_input(up(link), now);
        agent.handle_input(Input::Candidates { link, addrs: [addr("192.0.2.1:5")].into() }, now);
    }
    run(&mut agent, at(20_000));
    let Counters { pings, deferred, per_second_max, .. } = agent.counters();
    assert!(pings > 4_900, "{pings} in 20 s");
    assert_eq!(per_second_max, 250);
    assert!(deferred < 2 * (pings + LINKS), "{pings} packets were tried {deferred} times in vain");
}

#[test]
fn a_peer_that_speaks_while_the_second_is_full_does_not_make_the_others_wait() {
    let mut agent = Agent::new(AgentConfig::default(), &[1; 32], at(0));
    let addrs = |first: u16| (first..first + 10).map(|port| SocketAddr::new(addr("192.0.2.1:1").ip(), port)).collect();
    for n in 0..40 {
        agent.handle_input(up(LinkId(n)), at(0));
        agent.handle_input(Input::Candidates { link: LinkId(n), addrs: addrs(1) }, at(0));
    }
    for n in 0..10_000 {
        agent.handle_input(Input::Candidates { link: LinkId(0), addrs: addrs(n + 2) }, at(1));
        drain(&mut agent);
    }
    agent.handle_input(up(LinkId(99)), at(2));
    agent.handle_input(Input::Candidates { link: LinkId(99), addrs: vec![addr(THEIRS)] }, at(2));
    let sent = pings(&run(&mut agent, at(5_000)));
    assert!(sent.iter().any(|(_, to)| *to == addr(THEIRS)), "40 s in line behind one peer's words");
}

#[test]
fn a_peer_that_names_ever_new_addresses_leaves_the_others_half_of_each_second() {
    let mut agent = Agent::new(AgentConfig::default(), &[1; 32], at(0));
    agent.handle_input(up(LINK), at(0));
    for n in 0..1_500 {
        let addrs = (0..10).map(|port| SocketAddr::new(addr("192.0.2.1:1").ip(), 1 + 10 * n + port)).collect();
        let now = at(u64::from(n));
        run(&mut agent, now);
        agent.handle_input(Input::Candidates { link: LINK, addrs }, now);
    }
    drain(&mut agent);
    agent.handle_input(up(LinkId(99)), at(1_500));
    agent.handle_input(Input::Candidates { link: LinkId(99), addrs: vec![addr(THEIRS)] }, at(1_500));
    assert_eq!(pings(&run(&mut agent, at(1_500))).iter().filter(|(_, to)| *to == addr(THEIRS)).count(), 1);
}

fn report(public: &str, mapping: Mapping, ports: Ports) -> NatReport {
    let found = FamilyReport {
        public: Some(addr(public)),
        mapping: Some(mapping),
        filtering: Some(Filtering::AddressAndPortDependent),
        ports: Some(ports),
        ..FamilyReport::default()
    };
    NatReport { ipv4: Some(found), ipv6: None }
}

fn home(public: &str) -> NatReport {
    report(public, Mapping::EndpointIndependent, Ports::Preserving)
}

fn random(public: &str) -> NatReport {
    report(public, Mapping::AddressAndPortDependent, Ports::Random)
}

fn counting(public: &str) -> NatReport {
    report(public, Mapping::AddressAndPortDependent, Ports::Sequential { step: 1 })
}

#[test]
fn what_a_nat_that_keeps_ports_tells_of_its_counter_is_understood() {
    let keeping = report("192.0.2.1:5", Mapping::AddressAndPortDependent, Ports::Preserving);
    let mut agent = between(AgentConfig::default(), keeping, counting("198.51.100.1:5"));
    let told = signals(&run(&mut agent, at(100)));
    let [(_, signal @ Signal::Counter { step: 0, .. })] = &told[..] else { panic!("{told:?}") };
    let mut codec = ControlCodec::new();
    codec.push(&Control::Punch(signal.clone()).to_frame().unwrap());
    assert_eq!(codec.next(), Ok(Some(Control::Punch(signal.clone()))));
}

/// An agent between two NATs that are known.
fn between(config: AgentConfig, ours: NatReport, theirs: NatReport) -> Agent {
    let mut agent = Agent::new(config, &[1; 32], at(0));
    agent.handle_input(up(LINK), at(0));
    agent.set_report(ours, at(0));
    agent.handle_input(Input::Theirs { link: LINK, report: theirs }, at(0));
    agent
}

fn say(agent: &mut Agent, link: LinkId, signal: Signal, ms: u64) {
    agent.handle_input(Input::Signal { link, signal }, at(ms));
}

fn opened(outputs: &[(Instant, Output)]) -> BTreeSet<SocketId> {
    let open = |(_, output): &(Instant, Output)| match output {
        Output::Open { socket, .. } => Some(*socket),
        _ => None,
    };
    outputs.iter().filter_map(open).collect()
}

fn closed(outputs: &[(Instant, Output)]) -> BTreeSet<SocketId> {
    let close = |(_, output): &(Instant, Output)| match output {
        Output::Close { socket } => Some(*socket),
        _ => None,
    };
    outputs.iter().filter_map(close).collect()
}

fn signals(outputs: &[(Instant, Output)]) -> Vec<(LinkId, Signal)> {
    let said = |(_, output): &(Instant, Output)| match output {
        Output::Signal { link, signal } => Some((*link, signal.clone())),
        _ => None,
    };
    outputs.iter().filter_map(said).collect()
}

fn guesses(outputs: &[(Instant, Output)]) -> Vec<(Instant, SocketAddr)> {
    pings(outputs).into_iter().filter(|(_, to)| *to != addr(THEIRS)).collect()
}

const GO: fn(&mut Agent, u64) = |agent, ms| say(agent, LINK, Signal::Go { attempt: 1, ip: addr(THEIRS).ip() }, ms);

#[test]
fn the_hard_side_really_opens_256_sockets_towards_the_peer() {
    let mut agent = between(AgentConfig::default(), random(OURS), home(THEIRS));
    run(&mut agent, at(90));
    say(&mut agent, LINK, Signal::Spray { attempt: 1 }, 100);
    let at_once = run(&mut agent, at(150));
    assert_eq!(signals(&at_once), [(LINK, Signal::Go { attempt: 1, ip: addr(OURS).ip() })]);
    assert_eq!(opened(&at_once).len(), 240);
    let openers = |outputs: &[(Instant, Output)], hops: Option<u8>| {
        let by = |(_, output): &(Instant, Output)| match output {
            Output::Ping { socket, to, hop_limit, .. } if *hop_limit == hops && *socket != SocketId::MAIN => {
                assert_eq!(*to, addr(THEIRS));
                Some(*socket)
            }
            _ => None,
        };
        outputs.iter().filter_map(by).collect::<BTreeSet<_>>()
    };
    assert_eq!(openers(&at_once, Some(5)), opened(&at_once));
    let later = run(&mut agent, at(20_000));
    assert_eq!(opened(&later).len(), 16);
    assert_eq!(openers(&later, None).len(), 256, "each once more, for those that were lost");
    assert_eq!(closed(&later).len(), 256, "nobody came");
    assert_eq!(agent.counters().mappings_max_per_dial, 256);
}

#[test]
fn guesses_lie_in_the_whole_range_and_none_is_repeated() {
    let mut agent = between(AgentConfig::default(), home(OURS), random(THEIRS));
    let asked = run(&mut agent, at(50));
    assert_eq!(signals(&asked), [(LINK, Signal::Spray { attempt: 1 })]);
    GO(&mut agent, 100);
    let all = guesses(&run(&mut agent, at(20_000)));
    let ports: BTreeSet<u16> = all.iter().map(|(_, to)| to.port()).collect();
    assert_eq!((all.len(), ports.len()), (1_200, 1_200));
    assert!(ports.iter().all(|port| *port >= 1_024) && ports.iter().any(|port| *port > 64_511));
    assert!(all.last().unwrap().0 < at(4_300), "all within five seconds of the dial");
    assert_eq!(agent.counters().probes_max_per_dial, 1_200);
}

#[test]
fn a_candidate_that_aims_us_at_a_victim_costs_it_at_most_1200_guesses_in_20_s_and_250_packets_a_second() {
    let mut agent = Agent::new(AgentConfig::default(), &[1; 32], at(0));
    agent.set_report(home(OURS), at(0));
    let victim = addr(THEIRS);
    let links: Vec<LinkId> = (0..20).map(LinkId).collect();
    let mut all = Vec::new();
    for (index, link) in links.iter().enumerate() {
        let now = at(index as u64 * 100);
        agent.handle_input(up(*link), now);
        let lie = if index % 2 == 0 { random(THEIRS) } else { counting(THEIRS) };
        agent.handle_input(Input::Theirs { link: *link, report: lie }, now);
        let addrs = (1..=16).map(|port| SocketAddr::new(victim.ip(), port)).collect();
        agent.handle_input(Input::Candidates { link: *link, addrs }, now);
        all.extend(run(&mut agent, now + Duration::from_millis(99)));
    }
    for second in 2..120 {
        all.extend(run(&mut agent, at(second * 1_000)));
        for link in &links {
            let ports: Vec<u16> = (1..=64).map(|it| it * 97 + second as u16).collect();
            let (attempt, ip) = (second as u32, victim.ip());
            say(&mut agent, *link, Signal::Guess { attempt, ip, ports }, second * 1_000);
            say(&mut agent, *link, Signal::Go { attempt, ip }, second * 1_000);
        }
    }
    let sent = pings(&all);
    assert!(sent.iter().all(|(_, to)| to.ip() == victim.ip()), "nobody else gets any");
    let times: Vec<_> = sent.iter().map(|(at, _)| *at).collect();
    assert!(times.windows(251).all(|it| it[250].since(it[0]) > Duration::from_secs(1)));
    let guessed: Vec<_> = sent.iter().filter(|(_, to)| to.port() > 16 && *to != victim).map(|(at, _)| *at).collect();
    assert!(guessed.len() > 1_200, "the test is worth something: {}", guessed.len());
    assert!(guessed.windows(1_201).all(|it| it[1_200].since(it[0]) > Duration::from_secs(20)));
    assert!(agent.counters().probes_max_per_dial <= 1_200);
}

#[test]
fn ports_are_guessed_of_the_address_that_the_peer_reported_and_of_no_other() {
    for ip in ["203.0.113.9", "192.0.2.1", "10.0.0.1", "169.254.169.254", "127.0.0.1"] {
        let mut agent = between(AgentConfig::default(), home(OURS), random(THEIRS));
        run(&mut agent, at(50));
        say(&mut agent, LINK, Signal::Go { attempt: 1, ip: ip.parse().unwrap() }, 60);
        say(&mut agent, LINK, Signal::Guess { attempt: 1, ip: ip.parse().unwrap(), ports: vec![5; 64] }, 60);
        assert_eq!(guesses(&run(&mut agent, at(1_900))), [], "{ip}");
    }
}

#[test]
fn the_own_public_address_is_neither_pinged_nor_guessed() {
    let mut agent = between(AgentConfig::default(), home(OURS), random("192.0.2.1:9"));
    agent.handle_input(candidates(&[OURS]), at(0));
    let outputs = run(&mut agent, at(10_000));
    assert!(pings(&outputs).iter().all(|(_, to)| *to == addr("192.0.2.1:9")), "a neighbour's, by hairpinning");
    assert_eq!(signals(&outputs), []);
}

#[test]
fn a_host_does_one_hard_punch_at_a_time_and_the_next_20_s_later() {
    let mut agent = between(AgentConfig::default(), random(OURS), home(THEIRS));
    let other = LinkId(2);
    agent.handle_input(up(other), at(0));
    agent.handle_input(Input::Theirs { link: other, report: home("203.0.113.5:5") }, at(0));
    run(&mut agent, at(0));
    let answer = |agent: &mut Agent, link, ms| {
        say(agent, link, Signal::Spray { attempt: 1 }, ms);
        let answered = signals(&run(agent, at(ms)));
        matches!(answered[..], [(to, Signal::Go { .. })] if to == link)
    };
    assert!(answer(&mut agent, LINK, 10));
    assert!(!answer(&mut agent, other, 20));
    agent.handle_input(direct(LINK, SocketId::MAIN), at(1_000));
    assert!(!answer(&mut agent, other, 20_900));
    assert!(answer(&mut agent, other, 21_001));
}

#[test]
fn a_peer_that_declines_keeps_no_other_from_a_hard_punch() {
    let mut agent = between(AgentConfig::default(), home(OURS), random(THEIRS));
    assert!(matches!(signals(&run(&mut agent, at(0)))[..], [(LINK, Signal::Spray { .. })]));
    say(&mut agent, LINK, Signal::Busy { attempt: 1 }, 10);
    let other = LinkId(2);
    agent.handle_input(up(other), at(20));
    agent.handle_input(Input::Theirs { link: other, report: random("203.0.113.5:5") }, at(20));
    let asked = signals(&run(&mut agent, at(1_000)));
    assert!(matches!(asked[..], [(link, Signal::Spray { .. })] if link == other), "{asked:?}");
}

#[test]
fn success_closes_every_socket_but_the_one_in_use() {
    let mut agent = between(AgentConfig::default(), random(OURS), home(THEIRS));
    say(&mut agent, LINK, Signal::Spray { attempt: 1 }, 0);
    let begun = run(&mut agent, at(500));
    let used = *opened(&begun).last().unwrap();
    agent.handle_input(direct(LINK, used), at(600));
    let ended = run(&mut agent, at(30_000));
    assert_eq!(closed(&ended).len(), 239);
    assert!(!closed(&ended).contains(&used) && pings(&ended).is_empty());
    agent.handle_input(Input::Unused { socket: used }, at(31_000));
    assert_eq!(drain(&mut agent), [Output::Close { socket: used }]);
    let why = agent.explain(LINK).unwrap();
    assert_eq!(why.attempts.last().unwrap().outcome, Outcome::Direct);
}

#[test]
fn an_address_told_while_direct_is_pinged_and_those_before_are_not() {
    let mut agent = agent();
    agent.handle_input(candidates(&["192.0.2.1:5"]), at(0));
    run(&mut agent, at(10));
    agent.handle_input(direct(LINK, SocketId::MAIN), at(20));
    agent.handle_input(candidates(&["192.0.2.1:5", "10.0.0.7:5"]), at(1_000));
    let sent = run(&mut agent, at(20_000));
    let later = pings(&sent);
    assert_eq!((later.len(), later[0].0), (6, at(1_000)));
    assert!(later.iter().all(|(_, to)| *to == addr("10.0.0.7:5")), "{later:?}");
}

#[test]
fn an_address_that_answers_while_direct_becomes_a_route_and_is_left_alone() {
    let mut agent = agent();
    agent.handle_input(direct(LINK, SocketId::MAIN), at(0));
    agent.handle_input(candidates(&["10.0.0.7:5"]), at(0));
    let sent = run(&mut agent, at(0));
    let txid = sent.iter().find_map(|(_, output)| match output {
        Output::Ping { txid, .. } => Some(*txid),
        _ => None,
    });
    let pong = Input::Pong { link: LINK, socket: SocketId::MAIN, from: addr("10.0.0.7:5"), txid: txid.unwrap() };
    agent.handle_input(pong, at(2));
    let after = run(&mut agent, at(20_000));
    assert!(matches!(after[..], [(_, Output::Route { .. })]), "{after:?}");
    assert!(agent.explain(LINK).unwrap().direct);
}

#[test]
fn a_server_that_does_not_answer_gives_way_to_others() {
    let mut agent = between(AgentConfig::default(), counting(OURS), home(THEIRS));
    let servers = ["203.0.113.1:1", "203.0.113.1:2", "203.0.113.2:1", "203.0.113.2:2"].map(addr);
    agent.handle_input(Input::Servers(servers.to_vec()), at(0));
    let asked = |sent: &[(Instant, Output)]| {
        let stun = |(_, output): &(Instant, Output)| match output {
            Output::Stun { to, .. } => Some(*to),
            _ => None,
        };
        sent.iter().filter_map(stun).collect::<Vec<_>>()
    };
    let mut sent = asked(&run(&mut agent, at(540)));
    assert_eq!(sent.split_off(sent.len() - 2), servers[..2]);
    for from in &servers[..2] {
        let forged = Input::Stun { socket: SocketId::MAIN, from: *from, datagram: vec![0; 20] };
        agent.handle_input(forged, at(541)); // who can forge their address makes no server of them
    }
    assert_eq!(asked(&run(&mut agent, at(900))), servers[2..]);
}

#[test]
fn a_punch_stops_when_the_relay_begins_to_lose_packets() {
    let mut agent = between(AgentConfig::default(), home(OURS), random(THEIRS));
    let loss =
        |agent: &mut Agent, per_mille, ms| agent.handle_input(Input::RelayLoss { link: LINK, per_mille }, at(ms));
    run(&mut agent, at(0));
    loss(&mut agent, 20, 0);
    GO(&mut agent, 50);
    run(&mut agent, at(900));
    loss(&mut agent, 69, 1_000);
    loss(&mut agent, 70, 1_010);
    loss(&mut agent, 20, 1_020);
    loss(&mut agent, 100, 1_030);
    assert!(guesses(&run(&mut agent, at(1_500))).len() > 200, "one bad reading is none");
    loss(&mut agent, 100, 1_600);
    assert_eq!(guesses(&run(&mut agent, at(60_000))), []);
    let outcome = agent.explain(LINK).unwrap().attempts.iter().find(|it| it.means == Means::Spray).map(|it| it.outcome);
    assert_eq!(outcome, Some(Outcome::RelaySuffered));
}

#[test]
fn what_failed_between_two_networks_is_not_tried_again_for_ten_minutes() {
    let mut agent = between(AgentConfig::default(), home(OURS), random(THEIRS));
    run(&mut agent, at(0));
    GO(&mut agent, 50);
    run(&mut agent, at(10_000));
    let other = LinkId(2);
    agent.handle_input(with_peer(other, LINK.0), at(40_000));
    agent.handle_input(Input::Theirs { link: other, report: random(THEIRS) }, at(40_000));
    let asks = |outputs: &[(Instant, Output)]| signals(outputs).len();
    assert_eq!(asks(&run(&mut agent, at(600_000))), 0);
    assert_eq!(asks(&run(&mut agent, at(615_000))), 1);
}

#[test]
fn what_worked_between_two_networks_is_tried_even_while_a_survey_leaves_it_open() {
    let mut agent = between(AgentConfig::default(), home(OURS), random(THEIRS));
    run(&mut agent, at(0));
    GO(&mut agent, 50);
    agent.handle_input(direct(LINK, SocketId::MAIN), at(100));
    let other = LinkId(2);
    let mut vague = random(THEIRS);
    vague.ipv4.as_mut().unwrap().ports = None;
    agent.handle_input(with_peer(other, LINK.0), at(30_000));
    agent.handle_input(Input::Theirs { link: other, report: vague }, at(30_000));
    assert!(matches!(signals(&run(&mut agent, at(30_000)))[..], [(LinkId(2), Signal::Spray { .. })]));
}

#[test]
fn a_budget_of_zero_switches_off_what_it_limits() {
    let with = |change: fn(&mut BudgetConfig), ours, theirs| {
        let mut config = AgentConfig::default();
        change(&mut config.budget);
        let mut agent = between(config, ours, theirs);
        say(&mut agent, LINK, Signal::Spray { attempt: 1 }, 10);
        GO(&mut agent, 20);
        let outputs = run(&mut agent, at(20_000));
        (opened(&outputs).len(), guesses(&outputs).len(), pings(&outputs).len())
    };
    assert_eq!(with(|it| it.mappings = 0, random(OURS), home(THEIRS)), (0, 0, 6));
    assert_eq!(with(|it| it.mappings = 10, random(OURS), home(THEIRS)), (10, 0, 6 + 20));
    assert_eq!(with(|it| it.probes = 0, home(OURS), random(THEIRS)), (0, 0, 6));
    assert_eq!(with(|it| it.probes = 10, home(OURS), random(THEIRS)), (0, 10, 6 + 10));
    assert_eq!(with(|it| it.per_second = 0, home(OURS), random(THEIRS)), (0, 0, 0));
}

#[test]
fn the_scan_is_off_unless_configured_and_then_covers_its_ports_after_everything_else() {
    let scanned = |scan| {
        let mut agent = between(AgentConfig { scan, ..AgentConfig::default() }, random(OURS), random(THEIRS));
        guesses(&run(&mut agent, at(60_000)))
    };
    assert_eq!(scanned(None), []);
    let all = scanned(Some(ScanConfig::default()));
    let ports: BTreeSet<u16> = all.iter().map(|(_, to)| to.port()).collect();
    assert_eq!((*ports.first().unwrap(), *ports.last().unwrap(), ports.len()), (6_777, 9_776, 2_999));
    assert!(all[0].0 > at(3_000), "pings come first");
    assert!(all.windows(251).all(|it| it[250].0.since(it[0].0) > Duration::from_secs(1)));
}

#[test]
fn a_connection_that_is_over_leaves_no_socket_and_is_named_no_more() {
    let mut agent = between(AgentConfig::default(), random(OURS), home(THEIRS));
    let begun = run(&mut agent, at(0));
    say(&mut agent, LINK, Signal::Spray { attempt: 1 }, 10);
    agent.handle_input(Input::Forget { link: LINK }, at(10)); // nothing was drained yet
    let rest: Vec<_> = drain(&mut agent).into_iter().map(|output| (at(10), output)).collect();
    assert!(pings(&rest).is_empty() && signals(&rest).is_empty() && opened(&begun).is_empty());
    assert_eq!(opened(&rest), closed(&rest));
    assert_eq!((agent.poll_timeout(), agent.explain(LINK)), (None, None));
}

#[test]
fn an_explanation_names_the_side_the_attempts_and_what_would_mend_it() {
    let mut agent = between(AgentConfig::default(), home(OURS), random(THEIRS));
    run(&mut agent, at(0));
    GO(&mut agent, 50);
    run(&mut agent, at(20_000));
    let why = agent.explain(LINK).unwrap();
    assert_eq!((why.direct, why.ipv4, why.ipv6), (false, Some(Plan::Spray { hard: Side::Theirs }), None));
    let told: Vec<_> = why.attempts.iter().map(|it| (it.means, it.probes, it.packets, it.outcome)).collect();
    assert!(told.contains(&(Means::Pings, 0, 6, Outcome::NoAnswer)), "{told:?}");
    assert!(told.contains(&(Means::Spray, 1_200, 1_200, Outcome::NoAnswer)), "{told:?}");
    assert_eq!(why.remedies, [Remedy::MapPort(Side::Theirs), Remedy::Ipv6(Side::Ours), Remedy::Ipv6(Side::Theirs)]);
    let text = std::string::ToString::to_string(&why.ipv4.unwrap());
    assert_eq!(text, "many ports: the NAT of the peer's side gives each destination another port at random");
}

#[test]
fn an_answer_by_a_socket_that_was_closed_meanwhile_makes_no_route() {
    let mut agent = between(AgentConfig::default(), random(OURS), home(THEIRS));
    say(&mut agent, LINK, Signal::Spray { attempt: 1 }, 0);
    let sent = run(&mut agent, at(0)).into_iter().find_map(|(_, output)| match output {
        Output::Ping { socket, txid, .. } if socket != SocketId::MAIN => Some((socket, txid)),
        _ => None,
    });
    let (socket, txid) = sent.unwrap();
    agent.handle_input(direct(LINK, SocketId::MAIN), at(100));
    assert_eq!(drain(&mut agent).len(), 240, "all closed");
    agent.handle_input(Input::Pong { link: LINK, socket, from: addr(THEIRS), txid }, at(101));
    assert_eq!(drain(&mut agent), []);
}

#[test]
fn a_peer_without_a_port_of_its_own_gets_no_opener() {
    let mut agent = between(AgentConfig::default(), random(OURS), home("198.51.100.1:0"));
    say(&mut agent, LINK, Signal::Spray { attempt: 1 }, 0);
    let outputs = run(&mut agent, at(10_000));
    assert_eq!(signals(&outputs), [(LINK, Signal::Busy { attempt: 1 })]);
    assert_eq!((opened(&outputs).len(), pings(&outputs).len()), (0, 0));
}

#[test]
fn a_peer_that_lies_bars_no_hard_punch_to_another_at_the_address_that_it_named() {
    let mut agent = between(AgentConfig::default(), home(OURS), random(THEIRS));
    run(&mut agent, at(0));
    GO(&mut agent, 50);
    run(&mut agent, at(10_000)); // nobody is there: it is not the liar's address
    let honest = LinkId(2);
    agent.handle_input(up(honest), at(40_000));
    agent.handle_input(Input::Theirs { link: honest, report: random(THEIRS) }, at(40_000));
    assert!(matches!(signals(&run(&mut agent, at(40_000)))[..], [(LinkId(2), Signal::Spray { .. })]));
}

#[test]
fn a_route_to_another_address_than_the_punch_aimed_at_is_not_its_merit() {
    for (remote, merit) in [("10.0.0.5:7777", false), ("198.51.100.1:1025", true)] {
        let mut agent = between(AgentConfig::default(), home(OURS), random(THEIRS));
        run(&mut agent, at(0));
        agent.handle_input(Input::Direct { link: LINK, socket: SocketId::MAIN, remote: addr(remote) }, at(100));
        let again = LinkId(2);
        let mut vague = random(THEIRS);
        vague.ipv4.as_mut().unwrap().ports = None;
        agent.handle_input(with_peer(again, LINK.0), at(30_000));
        agent.handle_input(Input::Theirs { link: again, report: vague }, at(30_000));
        assert_eq!(signals(&run(&mut agent, at(30_000))).len(), usize::from(merit), "{remote}");
    }
}

#[test]
fn a_peer_that_always_wants_a_hard_punch_leaves_every_second_one_to_another() {
    let mut agent = between(AgentConfig::default(), random(OURS), home(THEIRS));
    let mut turns = [0, 0];
    for second in 0..300_u64 {
        // one asks all the time, the other comes back 20 to 25 s later, as it was told; each by a new connection, for one dial
        // may not open so many sockets twice
        let greedy = (0, second);
        let honest = (1, second);
        for (who, number) in [Some(greedy), Some(honest).filter(|_| second % 23 == 7)].into_iter().flatten() {
            let link = LinkId(10 + 2 * number + who);
            let now = second * 1_000 + who;
            agent.handle_input(with_peer(link, 10 + who), at(now));
            agent.handle_input(Input::Theirs { link, report: home(THEIRS) }, at(now));
            say(&mut agent, link, Signal::Spray { attempt: 1 }, now);
            let said = signals(&run(&mut agent, at(now)));
            turns[who as usize] += said.iter().filter(|(_, signal)| matches!(signal, Signal::Go { .. })).count();
        }
        run(&mut agent, at(second * 1_000 + 999));
    }
    assert!(turns[0] + turns[1] >= 8 && turns[1] >= 4, "{turns:?}");
}

#[test]
fn what_a_punch_sends_does_not_wait_behind_the_pings_of_other_connections() {
    let mut agent = between(AgentConfig::default(), home(OURS), counting(THEIRS));
    for number in 10..2_010 {
        let link = LinkId(number);
        agent.handle_input(up(link), at(0));
        agent.handle_input(Input::Candidates { link, addrs: vec![addr("192.0.2.9:5")] }, at(0));
    }
    run(&mut agent, at(500));
    let ip = addr(THEIRS).ip();
    say(&mut agent, LINK, Signal::Guess { attempt: 1, ip, ports: vec![1_111, 2_222] }, 500);
    let mut sent = guesses(&run(&mut agent, at(1_600)));
    sent.retain(|(_, to)| to.ip() == ip);
    assert_eq!(sent.len(), 6, "two ports in three rounds, as soon as the second is over");
    assert!(sent.windows(3).all(|it| it[2].0.since(it[0].0) >= Duration::from_millis(150)));
}

#[test]
fn pings_are_told_as_unanswered_once_no_answer_may_come_any_more() {
    let mut agent = agent();
    agent.handle_input(candidates(&["192.0.2.1:5"]), at(0));
    let last = pings(&run(&mut agent, at(5_000))).last().unwrap().0;
    let outcome = |agent: &mut Agent, now| {
        run(agent, now);
        agent.explain(LINK).unwrap().attempts.last().unwrap().outcome
    };
    assert_eq!(outcome(&mut agent, last), Outcome::Running);
    assert_eq!(outcome(&mut agent, last + Duration::from_millis(2_999)), Outcome::Running);
    assert_eq!(outcome(&mut agent, last + Duration::from_millis(3_000)), Outcome::NoAnswer);
}

#[test]
fn an_address_of_a_family_without_a_socket_is_not_pinged() {
    let mut agent = agent();
    let ips = ["192.168.1.2", "127.0.0.1", "::1", "fe80::2"];
    agent.handle_input(Input::Network(ips.iter().map(|ip| ip.parse().unwrap()).collect()), at(0));
    let mut theirs = home(THEIRS);
    theirs.ipv6 = Some(FamilyReport { public: Some(addr("[2001:db8::1]:5")), ..FamilyReport::default() });
    agent.handle_input(Input::Theirs { link: LINK, report: theirs }, at(0));
    agent.handle_input(candidates(&["[2001:db8::2]:5"]), at(0));
    let sent = pings(&run(&mut agent, at(1_000)));
    assert!(!sent.is_empty() && sent.iter().all(|(_, to)| to.is_ipv4()), "{sent:?}");
}

fn observed(link: LinkId, remote: &str, seen: &str) -> Input {
    Input::Observed { link, remote: addr(remote), addr: addr(seen) }
}

#[test]
fn where_a_peer_sees_the_node_is_told_until_the_network_changes() {
    let mut agent = agent();
    agent.handle_input(observed(LinkId(7), "198.51.100.1:5", "203.0.113.1:7"), at(0));
    assert_eq!(drain(&mut agent), [], "nobody has that connection");
    agent.handle_input(observed(LINK, "198.51.100.1:5", "203.0.113.1:7"), at(0));
    assert_eq!(drain(&mut agent), [Output::Observed(vec![addr("203.0.113.1:7")])]);
    agent.handle_input(Input::Network(vec![addr("192.168.1.2:1").ip()]), at(10));
    assert_eq!(drain(&mut agent), [Output::Observed(vec![])]);
    agent.handle_input(observed(LINK, "198.51.100.1:5", "203.0.113.2:7"), at(20));
    assert_eq!(drain(&mut agent), [Output::Observed(vec![addr("203.0.113.2:7")])]);
    agent.handle_input(Input::Forget { link: LINK }, at(30));
    let later = run(&mut agent, at(3_600_000));
    assert_eq!(later, [(at(300_020), Output::Observed(vec![]))], "it fades with the peer that saw it");
    assert_eq!(agent.poll_timeout(), None);
}

#[test]
fn what_a_peer_sees_waits_for_the_word_of_the_servers_that_were_asked() {
    let mut agent = agent();
    agent.handle_input(Input::Network(vec![addr("192.168.1.2:1").ip()]), at(0));
    agent.handle_input(Input::Servers(vec![addr("198.51.100.7:3478"), addr("198.51.100.8:3478")]), at(0));
    agent.handle_input(observed(LINK, "198.51.100.1:5", "203.0.113.1:7"), at(0));
    let is_told = |outputs: &[(Instant, Output)]| {
        outputs.iter().find(|(_, output)| matches!(output, Output::Observed(_))).map(|(at, _)| *at)
    };
    let mut told = is_told(&run(&mut agent, at(500)));
    assert_eq!(told, None, "they may answer yet");
    told = is_told(&run(&mut agent, at(60_000)));
    assert!(told.is_some(), "no server has answered");
}

#[test]
fn an_address_that_a_peer_saw_is_no_one_that_others_guess_at() {
    let mut agent = agent();
    agent.handle_input(observed(LINK, "198.51.100.1:5", "203.0.113.66:7"), at(0));
    drain(&mut agent);
    assert_eq!(agent.report(), &NatReport::default(), "guesses go to what reports name");
}
