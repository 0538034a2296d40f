//! Verdicts against a fake NAT, and the ancestor's defects (ids as in `docs/heritage.md`).

use alloc::{vec, vec::Vec};
use core::{net::SocketAddr, time::Duration};

use proptest::prelude::*;

use super::{
    Survey,
    ask::MAX_PACKETS,
    fake::{Nat, PRIVATE, PUBLIC, PUBLIC_IPV6, Server, World, server},
};
use crate::{
    Instant,
    nat::{FamilyReport, Filtering, Input, Mapping, Output, Ports, SocketId, SocketIds},
    wire::stun::{Request, Response, binding_response},
};

const MAPPINGS: [Mapping; 3] =
    [Mapping::EndpointIndependent, Mapping::AddressDependent, Mapping::AddressAndPortDependent];
const FILTERINGS: [Filtering; 3] =
    [Filtering::EndpointIndependent, Filtering::AddressDependent, Filtering::AddressAndPortDependent];

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// Two relays, which answer plain requests, and to other ports.
fn relays() -> Vec<Server> {
    plain_servers().into_iter().map(|server| Server { elsewhere: true, ..server }).collect()
}

/// Two servers that answer plain requests only.
fn plain_servers() -> Vec<Server> {
    vec![server("203.0.113.1:4433"), server("203.0.113.2:4433")]
}

/// Two relays and a server that can do what RFC 5780 says.
fn servers() -> Vec<Server> {
    let full = Server { other: Some("203.0.113.4:3479".parse().unwrap()), ..server("203.0.113.3:3478") };
    [relays(), vec![full]].concat()
}

fn home() -> Nat {
    Nat::new(Mapping::EndpointIndependent, Filtering::AddressAndPortDependent, Ports::Preserving)
}

fn symmetric(ports: Ports) -> Nat {
    Nat::new(Mapping::AddressAndPortDependent, Filtering::AddressAndPortDependent, ports)
}

fn ipv4(world: &World) -> FamilyReport {
    world.survey.report().ipv4.clone().unwrap_or_default()
}

/// Wrong and open verdicts among `runs` of each behaviour.
fn errors(loss: u64, runs: u64) -> (Vec<alloc::string::String>, u64) {
    let (mut wrong, mut open) = (Vec::new(), 0);
    let ports = |seed: u64| {
        let step = [1, 2, -1, 4][seed as usize % 4];
        [Ports::Preserving, Ports::Sequential { step }, Ports::Random]
    };
    for seed in 0..runs {
        for (mapping, filtering, ports) in MAPPINGS
            .into_iter()
            .flat_map(|m| FILTERINGS.map(|f| (m, f)))
            .flat_map(|(m, f)| ports(seed).map(|p| (m, f, p)))
        {
            let mut world = World::new(Some(Nat::new(mapping, filtering, ports)), servers(), seed);
            world.loss = loss;
            world.start(ms(10_000));
            let found = ipv4(&world);
            assert!(world.sent.len() <= MAX_PACKETS as usize);
            let told = [
                found.mapping.map(|found| found == mapping),
                found.filtering.map(|found| found == filtering),
                found.ports.map(|found| found == ports),
            ];
            if told.contains(&Some(false)) {
                wrong.push(std::format!("{seed}: {mapping:?} {filtering:?} {ports:?}: {found:?}"));
            }
            open += u64::from(told.contains(&None));
        }
    }
    (wrong, open)
}

#[test]
fn every_behaviour_is_found_without_loss() {
    assert_eq!(errors(0, 200), (vec![], 0));
}

#[test]
fn every_behaviour_is_found_at_five_per_cent_loss() {
    let (wrong, open) = errors(50, 200);
    assert!(wrong.is_empty(), "{} of 5,400: {wrong:#?}", wrong.len());
    assert!(open <= 5, "{open} of 5,400 left open");
}

#[test]
fn the_first_report_needs_two_answers_and_no_more() {
    for nat in [home(), symmetric(Ports::Random), symmetric(Ports::Sequential { step: 1 })] {
        let mut world = World::new(Some(nat.clone()), relays(), 1);
        world.servers.push(Server { alive: false, ..server("203.0.113.9:1") });
        world.start(ms(100));
        let (at, report) = world.reports[0].clone();
        let first = report.ipv4.unwrap();
        assert_eq!(at, ms(1_050));
        assert_eq!((first.mapping, first.ports), (Some(nat.mapping), Some(nat.ports)));
        assert_eq!(world.open.len(), 1, "the burst's sockets are closed");
    }
}

#[test]
fn an_address_dependent_nat_is_known_by_two_ports_of_one_server() {
    let nat = Nat::new(Mapping::AddressDependent, Filtering::AddressDependent, Ports::Random);
    let mut world = World::new(Some(nat.clone()), relays(), 1);
    world.start(ms(5_000));
    let found = ipv4(&world);
    assert_eq!((found.mapping, found.filtering), (Some(Mapping::AddressAndPortDependent), None), "the safe reading");
    let two_ports = [relays(), vec![server("203.0.113.1:4434")]].concat();
    let mut world = World::new(Some(nat), two_ports, 1);
    world.start(ms(5_000));
    assert_eq!(ipv4(&world).mapping, Some(Mapping::AddressDependent));
}

#[test]
fn one_server_tells_address_and_ports_but_no_mapping() {
    let mut world = World::new(Some(symmetric(Ports::Sequential { step: 1 })), relays()[..1].to_vec(), 1);
    world.start(ms(5_000));
    let found = ipv4(&world);
    assert_eq!((found.mapping, found.ports), (None, Some(Ports::Sequential { step: 1 })));
    assert_eq!(found.public.unwrap().ip(), PUBLIC);
    // a second one completes it, however late
    world.run(ms(60_000));
    world.servers = relays();
    world.input(Input::Servers(relays().iter().map(|server| server.addr).collect()));
    world.run(ms(1_000));
    assert_eq!(ipv4(&world).mapping, Some(Mapping::AddressAndPortDependent));
}

#[test]
fn one_relay_of_two_ports_tells_easy_nats_from_hard_ones() {
    let addr = relays()[0].addr;
    let second = Server { addr: SocketAddr::new(addr.ip(), addr.port() + 1), ..relays()[0] };
    let servers = vec![relays()[0], second];
    for (nat, mapping) in [
        (home(), Mapping::EndpointIndependent),
        (symmetric(Ports::Random), Mapping::AddressAndPortDependent),
        (symmetric(Ports::Sequential { step: 1 }), Mapping::AddressAndPortDependent),
    ] {
        let ports = nat.ports;
        let mut world = World::new(Some(nat), servers.clone(), 1);
        world.start(ms(1_000));
        assert_eq!((ipv4(&world).mapping, ipv4(&world).ports), (Some(mapping), Some(ports)));
    }
}

#[test]
fn an_untranslated_host_is_found_and_left_alone() {
    let mut world = World::new(None, servers(), 1);
    world.start(ms(600_000));
    let found = ipv4(&world);
    assert_eq!(found.public, Some((PUBLIC, 4_433).into()));
    assert!(found.untranslated);
    assert_eq!((found.mapping, found.ports), (Some(Mapping::EndpointIndependent), Some(Ports::Preserving)));
    assert_eq!((found.filtering, found.lifetime), (Some(Filtering::EndpointIndependent), None));
    assert!(world.sent.iter().all(|(at, ..)| *at < ms(8_000)), "nothing keeps asking");
    assert_eq!(world.open.len(), 1);
}

/// B1.
#[test]
fn late_stun_reply_is_ignored() {
    let mut world = World::new(Some(home()), relays(), 1);
    world.start(ms(5_000));
    let before = (world.survey.report().clone(), world.reports.len());
    let replies: Vec<_> = world.sent.clone();
    let liar: SocketAddr = "198.51.100.99:1".parse().unwrap();
    for (_, socket, to, datagram) in replies {
        let txid = Request::parse(&datagram).unwrap().txid;
        for _ in 0..2 {
            world.input(Input::Stun { socket, from: to, datagram: binding_response(txid, liar) });
        }
    }
    assert_eq!((world.survey.report().clone(), world.reports.len()), before);
}

/// B10.
#[test]
fn an_answer_that_comes_before_the_next_request_left_counts() {
    let mut survey = Survey::new(&[1; 32]);
    let mut ids = SocketIds::default();
    let now = Instant::START;
    survey.handle_input(&Input::Network(vec!["192.168.1.2".parse().unwrap()]), &mut ids, now);
    survey.handle_input(&Input::Servers(relays().iter().map(|server| server.addr).collect()), &mut ids, now);
    let mut report = None;
    while let Some(output) = survey.poll_output() {
        match output {
            Output::Open { socket, .. } => {
                survey.handle_input(&Input::Opened { socket, local: None }, &mut ids, now);
            }
            Output::Stun { socket, to, datagram } => {
                let txid = Request::parse(&datagram).unwrap().txid;
                let datagram = binding_response(txid, "198.51.100.7:9".parse().unwrap());
                survey.handle_input(&Input::Stun { socket, from: to, datagram }, &mut ids, now);
            }
            Output::Report(told) => report = Some(told),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(report.unwrap().ipv4.unwrap().mapping, Some(Mapping::EndpointIndependent));
}

/// B11.
#[test]
fn servers_of_the_other_family_and_dead_ones_make_no_verdict() {
    let mut mixed = vec![server("[2001:db8::1]:3478"), Server { alive: false, ..server("203.0.113.9:1") }];
    mixed.extend(relays());
    let mut world = World::new(Some(home()), mixed.clone(), 1);
    world.start(ms(10_000));
    assert_eq!(world.survey.report().ipv6, None, "a host without IPv6 says nothing of it");
    assert!(world.sent.iter().all(|(_, _, to, _)| to.is_ipv4()));

    let mut dual = World::new(Some(home()), mixed, 1);
    dual.input(Input::Servers(dual.servers.iter().map(|server| server.addr).collect()));
    dual.input(Input::Network(vec![PRIVATE.into(), PUBLIC_IPV6.into()]));
    dual.run(ms(10_000));
    let ipv6 = dual.survey.report().ipv6.clone().unwrap();
    assert_eq!((ipv6.public, ipv6.untranslated), (Some((PUBLIC_IPV6, 4_433).into()), true));
    for found in [ipv4(&world), ipv4(&dual)] {
        assert_eq!(found.mapping, Some(Mapping::EndpointIndependent));
        assert_eq!(found.ports, Some(Ports::Preserving));
        assert_eq!(found.public, Some((PUBLIC, 4_433).into()));
    }
}

/// B14.
#[test]
fn an_address_that_nobody_outside_can_reach_is_not_taken_for_public() {
    for lie in ["100.64.0.9:7", "10.1.1.1:7", "127.0.0.1:7", "224.0.0.1:7", "198.51.100.1:0", "169.254.169.254:7"] {
        let mut world = World::new(Some(home()), relays(), 1);
        world.servers[0].lie = Some(lie.parse().unwrap());
        world.start(ms(5_000));
        assert_eq!(ipv4(&world).public, Some((PUBLIC, 4_433).into()), "{lie}");
        world = World::new(Some(home()), relays()[..1].to_vec(), 1);
        world.servers[0].lie = Some(lie.parse().unwrap());
        world.start(ms(5_000));
        assert_eq!(ipv4(&world).public, None, "{lie}");
    }
}

#[test]
fn answers_of_others_are_ignored() {
    let mut world = World::new(Some(home()), relays(), 1);
    world.start(ms(0));
    for (_, socket, to, datagram) in world.sent.clone() {
        let txid = Request::parse(&datagram).unwrap().txid;
        let lie = "198.51.100.99:1".parse().unwrap();
        let datagram = binding_response(txid, lie);
        let elsewhere = SocketAddr::new(to.ip(), to.port() ^ 1);
        world.input(Input::Stun { socket, from: elsewhere, datagram: datagram.clone() });
        world.input(Input::Stun { socket: SocketId(999), from: to, datagram });
        world.input(Input::Stun { socket, from: to, datagram: binding_response([7; 12], lie) });
    }
    world.run(ms(1_000));
    assert_eq!(ipv4(&world).public, Some((PUBLIC, 4_433).into()));
}

#[test]
fn blocked_udp_is_reported_after_three_seconds() {
    let mut world = World::new(Some(home()), relays(), 1);
    world.loss = 1_000;
    world.start(ms(10_000));
    let told: Vec<_> = world.reports.iter().map(|(at, report)| (*at, report.ipv4.clone())).collect();
    assert_eq!(told, [(ms(4_000), Some(FamilyReport::default()))]);
    assert_eq!(world.open.len(), 1);
}

#[test]
fn hairpinning_is_found_whatever_the_filter() {
    for (filtering, hairpin) in FILTERINGS.into_iter().flat_map(|f| [(f, true), (f, false)]) {
        let mut world = World::new(Some(Nat { hairpin, filtering, ..home() }), relays(), 1);
        world.start(ms(8_000));
        assert_eq!(ipv4(&world).hairpin, Some(hairpin), "{filtering:?}");
    }
}

#[test]
fn a_server_that_does_not_do_what_rfc_5780_says_tells_nothing_of_filters() {
    let mut world = World::new(Some(home()), servers(), 1);
    world.start(ms(40));
    world.servers[2].other = None; // it has named another address, and does not answer there
    world.run(ms(10_000));
    assert_eq!(ipv4(&world).filtering, None);

    let mut world = World::new(Some(home()), servers(), 1);
    world.start(ms(110));
    let wants_change = |datagram: &[u8]| Request::parse(datagram).filter(|request| request.change_port);
    let asked: Vec<_> = world.sent.iter().filter_map(|(_, s, to, d)| Some((*s, *to, wants_change(d)?))).collect();
    assert_eq!(asked.len(), 2);
    for (socket, from, request) in asked {
        let datagram = binding_response(request.txid, "198.51.100.7:9".parse().unwrap());
        world.input(Input::Stun { socket, from, datagram }); // it ignores what it was asked for
    }
    world.run(ms(10_000));
    assert_eq!(ipv4(&world).filtering, None);
}

#[test]
fn a_carriers_nat_is_known_by_the_gateways_own_address() {
    for (external, carrier) in
        [("198.51.100.7", false), ("100.64.3.3", true), ("192.168.0.2", true), ("198.51.100.8", true)]
    {
        let mut world = World::new(Some(home()), relays(), 1);
        world.start(ms(1_000));
        assert_eq!(ipv4(&world).carrier, None);
        world.input(Input::External(external.parse().ok()));
        assert_eq!(ipv4(&world).carrier, Some(carrier), "{external}");
    }
    for (interfaces, carrier) in [(&["100.64.0.2"][..], Some(true)), (&["192.168.1.2", "100.99.1.1"], None)] {
        let mut world = World::new(Some(home()), relays(), 1);
        world.input(Input::Servers(relays().iter().map(|server| server.addr).collect()));
        world.input(Input::Network(interfaces.iter().map(|ip| ip.parse().unwrap()).collect()));
        world.run(ms(1_000));
        assert_eq!(ipv4(&world).carrier, carrier, "{interfaces:?}");
    }
}

#[test]
fn the_lifetime_of_mappings_is_learned_by_waiting() {
    let random = Nat { ports: Ports::Random, ..home() };
    for (nat, servers, lives, found) in [
        (home(), servers(), 600, Some(240)),
        (home(), servers(), 100, Some(60)),
        (home(), servers(), 20, Some(15)),
        (home(), servers(), 5, Some(3)),
        (random.clone(), relays(), 100, Some(60)),
        (random.clone(), plain_servers(), 10, Some(7)),
        (symmetric(Ports::Sequential { step: 1 }), plain_servers(), 40, Some(30)),
        (home(), relays(), 100, Some(60)),
        (home(), relays(), 20, Some(15)),
        (home(), relays(), 5, Some(3)),
        (home(), plain_servers(), 100, None), // the same port again, whether the mapping lived or not
    ] {
        for loss in [0, 50] {
            let mut world =
                World::new(Some(Nat { lifetime: Duration::from_secs(lives), ..nat.clone() }), servers.clone(), 7);
            world.loss = loss;
            world.start(Duration::from_secs(900));
            assert_eq!(ipv4(&world).lifetime.map(|lifetime| lifetime.as_secs()), found, "{lives} s, {loss}");
            assert_eq!(world.open.len(), 1, "closed when done");
            let later: Vec<_> = world.sent.iter().filter(|(at, ..)| *at > ms(12_000)).collect();
            for (at, ..) in &later {
                let minute = later.iter().filter(|(other, ..)| other >= at && *other < *at + ms(60_000)).count();
                assert!(minute <= 16, "{minute} packets in a minute");
            }
        }
    }
}

#[test]
fn a_new_network_voids_all_and_the_same_answer_is_not_told_again() {
    let mut world = World::new(Some(home()), relays(), 1);
    world.start(ms(30_000));
    let told = world.reports.len();
    world.start(ms(0));
    assert_eq!(world.survey.report().ipv4, None);
    assert_eq!(world.open.len(), 5, "the old scratch socket is closed, a new burst is open");
    world.run(ms(90));
    let (_, last) = world.reports[told..].first().cloned().unwrap_or_default();
    assert!(last.ipv4.is_none_or(|again| again.hairpin.is_none()), "told anew only because hairpinning is open again");
    let plain = World::new(None, relays(), 1);
    let mut world = plain;
    world.start(ms(10_000));
    assert_eq!(world.reports.len(), 1);
    world.start(ms(10_000));
    assert_eq!(world.reports.len(), 1, "the same answer again");
}

#[test]
fn refused_sockets_leave_a_verdict_by_the_nodes_own() {
    let mut world = World::new(Some(symmetric(Ports::Random)), relays(), 1);
    world.refuses = true;
    world.start(ms(10_000));
    let found = ipv4(&world);
    assert_eq!((found.mapping, found.ports), (Some(Mapping::AddressAndPortDependent), None));
    assert_eq!(found.hairpin, None);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Lying servers, jumping clocks, any network: no panic, no more packets than allowed, no timeout that has passed.
    #[test]
    fn no_server_makes_the_survey_cost_more(
        seed: u64, loss in 0u64..1_000, lies: Vec<Option<SocketAddr>>, others: Vec<SocketAddr>, hairpin: bool,
        jump in 0u64..100_000, forged: Vec<u8>,
    ) {
        let mut world = World::new(Some(Nat { hairpin, ..symmetric(Ports::Random) }), servers(), seed);
        world.loss = loss;
        for (server, lie) in world.servers.iter_mut().zip(lies) {
            server.lie = lie;
        }
        for (server, other) in world.servers.iter_mut().zip(others) {
            server.other = Some(other);
        }
        world.start(ms(3_000));
        world.now += ms(jump);
        world.input(Input::Timeout);
        world.input(Input::Stun { socket: SocketId::MAIN, from: "203.0.113.1:4433".parse().unwrap(), datagram: forged });
        world.run(Duration::from_secs(1_000));
        prop_assert!(world.sent.len() <= MAX_PACKETS as usize);
        prop_assert_eq!(world.open.len(), 1);
    }

    #[test]
    fn no_input_panics(inputs in prop::collection::vec((any::<SocketAddr>(), any::<[u8; 12]>(), 0u8..6, 0u64..5_000), 0..60)) {
        let mut survey = Survey::new(&[3; 32]);
        let (mut ids, mut now) = (SocketIds::default(), Instant::START);
        let mut last = [0; 12];
        for (addr, bytes, kind, pause) in inputs {
            now += ms(pause);
            let input = match kind {
                0 => Input::Network(vec![addr.ip()]),
                1 => Input::Servers(vec![addr; 3]),
                2 => Input::External(Some(addr.ip())),
                3 => Input::Opened { socket: SocketId(bytes[0].into()), local: Some(addr) },
                4 => Input::Timeout,
                _ => {
                    let response = Response { txid: last, mapped: addr, origin: None, other: Some(addr) };
                    Input::Stun { socket: SocketId(bytes[0].into()), from: addr, datagram: response.to_bytes() }
                }
            };
            survey.handle_input(&input, &mut ids, now);
            while let Some(output) = survey.poll_output() {
                if let Output::Stun { datagram, .. } = output {
                    last = Request::parse(&datagram).unwrap().txid;
                }
            }
            prop_assert!(survey.poll_timeout().is_none_or(|(at, _)| at > now || survey.interfaces.is_none()));
        }
    }
}

#[test]
fn a_node_on_loopback_alone_asks_servers_there_and_nobody_else_does() {
    let mut survey = Survey::new(&[7; 32]);
    let mut sockets = SocketIds::default();
    let own: SocketAddr = "127.0.0.1:5".parse().unwrap();
    let server: SocketAddr = "127.0.0.1:9".parse().unwrap();
    let mut ask = |input: Input| {
        survey.handle_input(&input, &mut sockets, Instant::START);
        core::iter::from_fn(|| survey.poll_output()).collect::<Vec<_>>()
    };
    ask(Input::Network(vec![own.ip(), "192.168.1.2".parse().unwrap()]));
    assert_eq!(ask(Input::Servers(vec![server])), []);
    let asked = ask(Input::Network(vec![own.ip()]));
    let datagram = asked.iter().find_map(|output| match output {
        Output::Stun { socket: SocketId::MAIN, datagram, .. } => Some(datagram),
        _ => None,
    });
    let request = Request::parse(datagram.unwrap()).unwrap();
    let datagram = binding_response(request.txid, own);
    ask(Input::Stun { socket: SocketId::MAIN, from: server, datagram });
    assert!(survey.awaits().is_some(), "a fresh socket's answer");
    for socket in sockets_opened(&asked) {
        survey.handle_input(&Input::Opened { socket, local: None }, &mut sockets, Instant::START);
    }
    survey.handle_input(&Input::Timeout, &mut sockets, Instant::START + ms(20));
    let found = survey.report().ipv4.clone().unwrap();
    assert_eq!((found.public, found.untranslated, survey.awaits()), (Some(own), true, None));
}

fn sockets_opened(outputs: &[Output]) -> Vec<SocketId> {
    let opened =
        outputs.iter().map(|output| if let Output::Open { socket, .. } = output { Some(*socket) } else { None });
    opened.flatten().collect()
}
