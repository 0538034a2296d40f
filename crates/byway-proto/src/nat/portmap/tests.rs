use std::{collections::BTreeMap, vec};

use proptest::prelude::*;

use super::*;
use crate::wire::{natpmp, pcp};

const UDP: Port = Port { transport: Transport::Udp, number: 4433 };
const TCP: Port = Port { transport: Transport::Tcp, number: 4433 };

fn gateway() -> Gateway {
    Gateway { addr: [10, 1, 0, 254].into(), scope: 0, local: [10, 1, 0, 2].into() }
}

fn gateway_v6() -> Gateway {
    Gateway { addr: "fe80::1".parse().unwrap(), scope: 2, local: "2001:db8::2".parse().unwrap() }
}

fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

/// A gateway that answers by the book, with what is needed to make it misbehave.
#[derive(Debug, Clone)]
struct Router {
    pcp: bool,
    natpmp: bool,
    upnp: bool,
    external: IpAddr,
    /// When it started, for its epoch.
    started: Instant,
    lifetime: Duration,
    refuse: Option<pcp::Refusal>,
    /// External ports of other machines. PCP and NAT-PMP then give the one after it, UPnP says so.
    taken: Vec<u16>,
    permanent_only: bool,
    deaf: bool,
    mapped: BTreeMap<Port, u16>,
}

impl Default for Router {
    fn default() -> Self {
        Router {
            pcp: false,
            natpmp: false,
            upnp: false,
            external: [198, 51, 100, 9].into(),
            started: Instant::START,
            lifetime: LIFETIME,
            refuse: None,
            taken: Vec::new(),
            permanent_only: false,
            deaf: false,
            mapped: BTreeMap::new(),
        }
    }
}

impl Router {
    fn free(&self, wish: u16) -> u16 {
        (wish..).find(|port| !self.taken.contains(port)).unwrap()
    }

    fn assign(&mut self, port: Port, wish: u16, lifetime: Duration) -> (u16, Duration) {
        if lifetime.is_zero() {
            self.mapped.remove(&port);
            return (0, Duration::ZERO);
        }
        let external = self.free(wish);
        self.mapped.insert(port, external);
        (external, lifetime.min(self.lifetime))
    }

    fn answer(&mut self, datagram: &[u8], now: Instant) -> Option<Vec<u8>> {
        let epoch = now.since(self.started).as_secs() as u32;
        match datagram[0] {
            pcp::VERSION if self.pcp => {
                let request = pcp::decode_request(datagram).unwrap();
                if let (Some(refusal), pcp::Body::Map(_)) = (self.refuse, request.body) {
                    return Some(pcp::refuse(datagram, refusal, secs(30), epoch));
                }
                let (mut body, mut lifetime) = (request.body, Duration::ZERO);
                if let pcp::Body::Map(map) = &mut body {
                    let port = Port { transport: map.transport, number: map.internal_port };
                    let (external, granted) = self.assign(port, map.external.port(), request.lifetime);
                    (map.external, lifetime) = (SocketAddr::new(self.external, external), granted);
                }
                Some(pcp::encode_response(&pcp::Response { outcome: Ok(()), lifetime, epoch, body }))
            }
            pcp::VERSION if self.natpmp => Some(natpmp::refuse(datagram, natpmp::Refusal::UnsupportedVersion, epoch)),
            natpmp::VERSION if self.natpmp => {
                let body = match natpmp::decode_request(datagram).unwrap() {
                    natpmp::Request::ExternalAddress => match self.external {
                        IpAddr::V4(ip) => natpmp::Body::ExternalAddress(ip),
                        IpAddr::V6(_) => unreachable!(),
                    },
                    natpmp::Request::Map(map) => {
                        let port = Port { transport: map.transport, number: map.internal_port };
                        let (external_port, lifetime) = self.assign(port, map.external_port, map.lifetime);
                        natpmp::Body::Map(natpmp::Map { external_port, lifetime, ..map })
                    }
                };
                Some(natpmp::encode_response(&natpmp::Response { epoch, body }))
            }
            natpmp::VERSION if self.pcp => {
                Some(pcp::refuse(datagram, pcp::Refusal::UnsupportedVersion, Duration::ZERO, epoch))
            }
            _ => None,
        }
    }

    fn upnp(&mut self, request: UpnpRequest) -> UpnpAnswer {
        match request {
            _ if !self.upnp => UpnpAnswer::NotFound("no answer to M-SEARCH".into()),
            UpnpRequest::Find => UpnpAnswer::Found,
            UpnpRequest::Add { port, external, .. } if self.taken.contains(&external) => {
                UpnpAnswer::Refused { port, refusal: UpnpRefusal::Taken }
            }
            UpnpRequest::Add { port, lifetime: Some(_), .. } if self.permanent_only => {
                UpnpAnswer::Refused { port, refusal: UpnpRefusal::PermanentOnly }
            }
            UpnpRequest::Add { port, external, .. } => {
                self.mapped.insert(port, external);
                UpnpAnswer::Added { port, external: SocketAddr::new(self.external, external) }
            }
            UpnpRequest::Remove { port, .. } => {
                self.mapped.remove(&port);
                UpnpAnswer::Removed { port }
            }
        }
    }
}

/// The machine, its clock and its gateways.
struct World {
    machine: PortMap,
    now: Instant,
    routers: BTreeMap<Gateway, Router>,
    /// Datagrams and UPnP requests that left, with their time.
    sent: Vec<(Instant, Vec<u8>)>,
    asked: Vec<UpnpRequest>,
    told: Vec<Output>,
}

impl World {
    fn new(ports: &[Port], routers: impl IntoIterator<Item = (Gateway, Router)>) -> Self {
        let machine = PortMap::new(ports.iter().copied(), &[7; 32], Instant::START);
        let routers: BTreeMap<_, _> = routers.into_iter().collect();
        let mut world = World { machine, now: Instant::START, routers, sent: vec![], asked: vec![], told: vec![] };
        let gateways = world.routers.keys().copied().collect();
        world.input(Input::Gateways(gateways));
        world
    }

    /// One port at one gateway.
    fn with(router: Router) -> Self {
        World::new(&[UDP], [(gateway(), router)])
    }

    fn router(&mut self) -> &mut Router {
        self.routers.first_entry().unwrap().into_mut()
    }

    fn input(&mut self, input: Input) {
        self.machine.handle_input(input, self.now);
        while let Some(output) = self.machine.poll_output() {
            let answer = match output {
                Output::Send { gateway, datagram } => {
                    self.sent.push((self.now, datagram.clone()));
                    let router = self.routers.get_mut(&gateway).filter(|router| !router.deaf);
                    let from = SocketAddr::new(gateway.addr, pcp::PORT);
                    router.and_then(|router| router.answer(&datagram, self.now)).map(|datagram| Input::Datagram {
                        local: gateway.local,
                        from,
                        datagram,
                    })
                }
                Output::Upnp { gateway, request } => {
                    self.asked.push(request.clone());
                    let router = self.routers.get_mut(&gateway).filter(|router| !router.deaf);
                    router.map(|router| Input::Upnp { gateway, answer: router.upnp(request) })
                }
                told => {
                    self.told.push(told);
                    None
                }
            };
            if let Some(answer) = answer {
                self.machine.handle_input(answer, self.now);
            }
        }
    }

    /// Lets time pass, with all timers.
    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some((at, _)) = self.machine.poll_timeout()
            && at <= end
        {
            self.now = self.now.max(at);
            self.input(Input::Timeout);
            let next = self.machine.poll_timeout();
            assert!(next.is_none_or(|(next, _)| next > self.now), "a timer that stays due: {next:?}");
        }
        self.now = end;
    }

    fn mapped(&self) -> Vec<Mapping> {
        self.machine.mappings().collect()
    }

    fn told(&mut self) -> Vec<Output> {
        core::mem::take(&mut self.told)
    }

    fn lost(&mut self) -> Vec<Why> {
        self.told()
            .into_iter()
            .filter_map(|output| if let Output::Lost { why, .. } = output { Some(why) } else { None })
            .collect()
    }

    fn refused(&mut self) -> Vec<Why> {
        let why = |output| if let Output::Refused { why, .. } = output { Some(why) } else { None };
        self.told().into_iter().filter_map(why).collect()
    }
}

fn pcp() -> Router {
    Router { pcp: true, ..Router::default() }
}

fn natpmp() -> Router {
    Router { natpmp: true, ..Router::default() }
}

fn upnp() -> Router {
    Router { upnp: true, ..Router::default() }
}

#[test]
fn each_dialect_alone_maps_the_port() {
    for (router, by) in [(pcp(), Dialect::Pcp), (natpmp(), Dialect::NatPmp), (upnp(), Dialect::Upnp)] {
        let mut world = World::with(router);
        world.pass(secs(1));
        let [mapping] = world.mapped()[..] else { panic!("{by}: {:?}", world.told) };
        assert_eq!((mapping.by, mapping.external), (by, "198.51.100.9:4433".parse().unwrap()));
        assert!(!mapping.carrier);
        assert_eq!(world.told(), [Output::Mapped(mapping)]);
    }
}

#[test]
fn first_dialect_that_answers_is_asked_and_the_others_make_no_mapping() {
    let mut world = World::with(Router { pcp: true, natpmp: true, upnp: true, ..Router::default() });
    world.pass(secs(30));
    assert_eq!(world.mapped().len(), 1);
    let maps = world.sent.iter().filter(|(_, datagram)| datagram.len() > 24 || datagram.len() == 12);
    assert_eq!(maps.count(), 1);
    assert_eq!(world.asked, [UpnpRequest::Find]);
}

#[test]
fn dialect_that_refuses_is_followed_by_the_next() {
    let router = Router { refuse: Some(pcp::Refusal::NotAuthorized), upnp: true, ..pcp() };
    let mut world = World::with(router);
    world.pass(secs(1));
    assert_eq!(world.mapped()[0].by, Dialect::Upnp);
}

#[test]
fn gateway_that_speaks_one_version_only_is_not_asked_in_the_other_again() {
    for (router, unspoken) in [(pcp(), natpmp::VERSION), (natpmp(), pcp::VERSION)] {
        let mut world = World::with(router);
        world.pass(secs(50));
        assert_eq!(world.sent.iter().filter(|(_, datagram)| datagram[0] == unspoken).count(), 1);
    }
}

#[test]
fn udp_and_tcp_ports_are_mapped_each() {
    for router in [pcp(), natpmp(), upnp()] {
        let mut world = World::new(&[UDP, TCP], [(gateway(), router)]);
        world.pass(secs(1));
        let ports: Vec<Port> = world.mapped().iter().map(|mapping| mapping.port).collect();
        assert_eq!(ports, [UDP, TCP]);
    }
}

#[test]
fn silent_gateway_costs_eight_datagrams_and_then_rests_for_an_hour() {
    let mut world = World::with(Router { deaf: true, ..Router::default() });
    world.pass(secs(3_500));
    assert_eq!(world.sent.len(), usize::from(PACKETS_TO_A_SILENT_GATEWAY));
    assert_eq!(world.refused(), [Why::Silent]);
    world.pass(secs(200));
    assert_eq!(world.sent.len(), 2 * usize::from(PACKETS_TO_A_SILENT_GATEWAY));
}

#[test]
fn requests_are_repeated_at_the_intervals_of_the_rfcs() {
    let mut world = World::with(Router { deaf: true, ..Router::default() });
    world.pass(secs(60));
    let times = |version: u8| -> Vec<u64> {
        let of = world.sent.iter().filter(|(_, datagram)| datagram[0] == version);
        of.map(|(at, _)| at.since_start().as_millis() as u64).collect()
    };
    assert_eq!(times(natpmp::VERSION), [0, 250, 750, 1_750, 3_750]);
    let [first, second, third] = times(pcp::VERSION)[..] else { panic!() };
    assert_eq!(first, 0);
    assert!((2_700..=3_300).contains(&second) && (5_400..=6_600).contains(&(third - second)));
}

#[test]
fn no_gateway_costs_nothing() {
    let mut world = World::new(&[UDP, TCP], []);
    world.pass(secs(86_400));
    assert_eq!((world.sent.len(), world.asked.len(), world.machine.poll_timeout()), (0, 0, None));
    let mut world = World::new(&[], [(gateway(), pcp())]);
    world.pass(secs(86_400));
    assert_eq!((world.sent.len(), world.asked.len(), world.machine.poll_timeout()), (0, 0, None));
}

#[test]
fn answer_from_anybody_but_the_gateway_is_not_believed() {
    for router in [pcp(), natpmp()] {
        let mut world = World::with(Router { deaf: true, ..router.clone() });
        let mut honest = router;
        for (_, datagram) in world.sent.clone() {
            let Some(datagram) = honest.answer(&datagram, world.now) else { continue };
            for (local, from) in [
                ([10, 1, 0, 2], "10.1.0.7:5351"),
                ([10, 1, 0, 2], "10.1.0.254:5350"),
                ([10, 9, 0, 2], "10.1.0.254:5351"),
            ] {
                let (local, from) = (local.into(), from.parse().unwrap());
                world.input(Input::Datagram { local, from, datagram: datagram.clone() });
            }
        }
        assert!(world.mapped().is_empty());
        let asked = world.sent.iter().filter(|(_, datagram)| datagram.len() > 2 && datagram.len() != 24);
        assert_eq!(asked.count(), 0, "a forged answer led to a request");
    }
}

#[test]
fn answer_with_another_nonce_or_port_is_not_believed() {
    let mut world = World::with(pcp());
    world.router().deaf = true;
    let before = world.mapped();
    let map = pcp::Map {
        nonce: [9; 12],
        transport: Transport::Udp,
        internal_port: 4433,
        external: "203.0.113.66:1".parse().unwrap(),
    };
    let body = pcp::Body::Map(map);
    let forged = pcp::encode_response(&pcp::Response { outcome: Ok(()), lifetime: secs(60), epoch: 0, body });
    let from = SocketAddr::new(gateway().addr, pcp::PORT);
    world.input(Input::Datagram { local: gateway().local, from, datagram: forged });
    assert_eq!(world.mapped(), before);

    let mut world = World::with(natpmp());
    let before = world.mapped();
    let map = natpmp::Map { transport: Transport::Udp, internal_port: 99, external_port: 1, lifetime: secs(60) };
    let forged = natpmp::encode_response(&natpmp::Response { epoch: 0, body: natpmp::Body::Map(map) });
    world.input(Input::Datagram { local: gateway().local, from, datagram: forged });
    assert_eq!(world.mapped(), before);
}

#[test]
fn another_external_port_than_asked_is_accepted() {
    for router in [pcp(), natpmp()] {
        let mut world = World::with(Router { taken: vec![4433], ..router });
        world.pass(secs(1));
        assert_eq!(world.mapped()[0].external.port(), 4434);
    }
}

#[test]
fn next_of_twenty_external_ports_is_tried_when_one_is_taken() {
    let mut world = World::with(Router { taken: (4433..4433 + 19).collect(), ..upnp() });
    world.pass(secs(1));
    assert_eq!(world.mapped()[0].external.port(), 4433 + 19);

    let mut world = World::with(Router { taken: (4433..4433 + 20).collect(), ..upnp() });
    world.pass(secs(30));
    assert_eq!(world.refused(), [Why::PortsTaken]);
    assert_eq!(world.asked.len(), 1 + usize::from(EXTERNAL_PORTS));
}

#[test]
fn external_ports_wrap_above_the_well_known_ones() {
    let port = Port { transport: Transport::Udp, number: 65_530 };
    let mut world = World::new(&[port], [(gateway(), Router { taken: (65_530..=65_535).collect(), ..upnp() })]);
    world.pass(secs(1));
    assert_eq!(world.mapped()[0].external.port(), 1_024);
}

#[test]
fn router_with_permanent_leases_only_gets_one_and_is_rid_of_it_at_the_end() {
    let mut world = World::with(Router { permanent_only: true, ..upnp() });
    world.pass(secs(1));
    assert_eq!(world.mapped()[0].expires, None);
    world.pass(secs(86_400));
    assert_eq!(world.mapped().len(), 1);
    world.input(Input::Close);
    assert!(world.router().mapped.is_empty());
    assert_eq!(world.told().last(), Some(&Output::Closed));
}

#[test]
fn mapping_is_renewed_between_a_half_and_five_eighths_of_its_lifetime() {
    for router in [pcp(), natpmp()] {
        let mut world = World::with(Router { lifetime: secs(800), ..router });
        let first = world.mapped()[0].expires.unwrap();
        let longer = |datagram: &[u8]| datagram.len() == 60 || datagram.len() == 12;
        world.pass(secs(399));
        assert_eq!(world.sent.iter().filter(|(_, datagram)| longer(datagram)).count(), 1);
        world.pass(secs(102));
        assert_eq!(world.sent.iter().filter(|(_, datagram)| longer(datagram)).count(), 2);
        assert!(world.mapped()[0].expires.unwrap() >= first + secs(400));
        assert_eq!(world.lost(), []);
    }
}

#[test]
fn renewal_is_repeated_until_the_mapping_expires_and_then_told_as_lost() {
    let mut world = World::with(Router { lifetime: secs(800), ..pcp() });
    world.router().deaf = true;
    let before = world.sent.len();
    world.pass(secs(799));
    let renewals = world.sent[before..].iter().filter(|(_, datagram)| datagram.len() == 60).count();
    assert!((4..=9).contains(&renewals), "{renewals}");
    assert_eq!((world.mapped().len(), world.lost()), (1, vec![]));
    world.pass(secs(2));
    assert_eq!((world.mapped().len(), world.lost()), (0, vec![Why::Expired]));
    world.router().deaf = false;
    world.pass(secs(10));
    assert_eq!(world.mapped().len(), 1);
}

#[test]
fn renewal_that_the_gateway_misses_once_loses_nothing() {
    let mut world = World::with(Router { lifetime: secs(800), ..natpmp() });
    world.pass(secs(390));
    world.router().deaf = true;
    world.pass(secs(120));
    world.router().deaf = false;
    world.pass(secs(400));
    assert_eq!((world.mapped().len(), world.lost()), (1, vec![]));
}

#[test]
fn gateway_that_restarts_is_noticed_within_a_minute_and_mapped_again_at_once() {
    for router in [pcp(), natpmp()] {
        let mut world = World::new(&[UDP, TCP], [(gateway(), router)]);
        world.pass(secs(600));
        let now = world.now;
        world.router().started = now;
        world.router().mapped.clear();
        world.pass(CHECK);
        assert_eq!(world.router().mapped.len(), 2);
        assert_eq!(world.lost(), [Why::Restarted, Why::Restarted]);
        assert_eq!(world.mapped().len(), 2);
    }
}

#[test]
fn restart_that_the_answer_to_a_renewal_tells_costs_no_second_request() {
    for router in [pcp(), natpmp()] {
        let mut world = World::with(Router { lifetime: secs(50), ..router });
        let now = world.now;
        world.pass(secs(20));
        world.router().started = now + secs(20);
        let before = world.sent.len();
        world.pass(secs(15)); // its renewal comes before the next check
        assert_eq!((world.sent.len() - before, world.lost().len(), world.mapped().len()), (1, 0, 1));
    }
}

#[test]
fn restarted_gateway_is_asked_for_the_same_external_port() {
    let mut world = World::with(Router { taken: vec![4433], ..pcp() });
    world.pass(secs(600));
    let now = world.now;
    (world.router().started, world.router().taken) = (now, vec![]);
    world.pass(CHECK);
    assert_eq!(world.mapped()[0].external.port(), 4434);
}

#[test]
fn check_costs_one_datagram_a_minute() {
    let mut world = World::with(pcp());
    let before = world.sent.len();
    world.pass(secs(600));
    assert_eq!(world.sent.len() - before, 10);
}

#[test]
fn changed_external_address_is_told() {
    let mut world = World::with(natpmp());
    world.router().external = [198, 51, 100, 77].into();
    world.pass(CHECK);
    assert_eq!(world.mapped()[0].external, "198.51.100.77:4433".parse().unwrap());
    assert!(matches!(world.told()[..], [Output::Mapped(_), Output::Mapped(_)]));
    world.router().external = [100, 64, 0, 5].into();
    world.pass(CHECK);
    assert!(world.mapped()[0].carrier, "it stands behind another NAT now");
    let mut world = World::with(upnp());
    world.router().external = [198, 51, 100, 77].into();
    world.pass(UPNP_REFRESH);
    assert_eq!(world.mapped()[0].external, "198.51.100.77:4433".parse().unwrap());
}

#[test]
fn mapping_behind_another_nat_is_told_as_such() {
    for (external, carrier) in [([100, 64, 0, 5], true), ([192, 168, 1, 5], true), ([198, 51, 100, 9], false)] {
        for router in [pcp(), natpmp(), upnp()] {
            let mut world = World::with(Router { external: external.into(), ..router });
            world.pass(secs(1));
            assert_eq!(world.mapped()[0].carrier, carrier, "{external:?}");
        }
    }
}

#[test]
fn closing_removes_all_mappings_in_every_dialect() {
    for router in [pcp(), natpmp(), upnp()] {
        let mut world = World::new(&[UDP, TCP], [(gateway(), router)]);
        world.pass(secs(1));
        assert_eq!(world.router().mapped.len(), 2);
        world.input(Input::Close);
        assert_eq!(world.router().mapped.len(), 0);
        assert_eq!(world.told().last(), Some(&Output::Closed));
        assert_eq!(world.machine.poll_timeout(), None);
    }
}

#[test]
fn closing_waits_no_longer_than_its_deadline_for_a_gateway_that_is_gone() {
    for router in [pcp(), natpmp(), upnp()] {
        let mut world = World::with(router);
        world.pass(secs(1));
        world.router().deaf = true;
        let before = world.sent.len() + world.asked.len();
        world.input(Input::Close);
        world.pass(CLOSE_DEADLINE);
        assert_eq!(world.told().last(), Some(&Output::Closed));
        assert!((1..=3).contains(&(world.sent.len() + world.asked.len() - before)));
        let sent = world.sent.len();
        world.pass(secs(86_400));
        world.input(Input::Gateways(vec![gateway()]));
        assert_eq!((world.sent.len(), world.told()), (sent, vec![]));
    }
}

#[test]
fn removal_that_is_lost_is_sent_again() {
    let mut world = World::with(pcp());
    world.router().deaf = true;
    world.input(Input::Close);
    world.router().deaf = false;
    world.pass(secs(1));
    assert!(world.router().mapped.is_empty());
}

#[test]
fn gateways_that_are_told_while_the_node_closes_are_not_asked() {
    let other = Gateway { addr: [192, 168, 7, 1].into(), scope: 0, local: [192, 168, 7, 20].into() };
    let mut world = World::with(pcp());
    world.routers.insert(other, pcp());
    world.routers.values_mut().for_each(|router| router.deaf = true);
    world.input(Input::Close);
    let removals = world.sent.len();
    world.input(Input::Gateways(vec![gateway(), other]));
    assert_eq!(world.sent.len(), removals);
}

#[test]
fn request_under_way_is_taken_back_at_the_close() {
    let mut world = World::with(Router { deaf: true, ..pcp() });
    let announce = world.sent[0].1.clone();
    world.router().deaf = false;
    let answer = world.router().answer(&announce, Instant::START).unwrap();
    world.router().deaf = true;
    let from = SocketAddr::new(gateway().addr, pcp::PORT);
    world.input(Input::Datagram { local: gateway().local, from, datagram: answer });
    world.input(Input::Close);
    let last = pcp::decode_request(&world.sent.last().unwrap().1).unwrap();
    assert!(matches!(last.body, pcp::Body::Map(_)) && last.lifetime.is_zero());
}

#[test]
fn closing_with_nothing_mapped_is_over_at_once() {
    let mut world = World::with(Router { deaf: true, ..Router::default() });
    world.input(Input::Close);
    assert_eq!(world.told(), [Output::Closed]);
}

#[test]
fn refused_port_is_asked_for_again_ever_more_rarely() {
    let mut world = World::with(Router { refuse: Some(pcp::Refusal::NoResources), ..pcp() });
    world.pass(secs(86_400));
    let refused = world.refused();
    assert!(refused.iter().all(|why| *why == Why::Pcp(pcp::Refusal::NoResources)));
    assert!((20..=32).contains(&refused.len()), "{}", refused.len());
    world.router().refuse = None;
    world.pass(secs(3_700));
    assert_eq!(world.mapped().len(), 1);
}

#[test]
fn other_network_loses_the_mappings_and_asks_its_own_gateway() {
    let other = Gateway { addr: [192, 168, 7, 1].into(), scope: 0, local: [192, 168, 7, 20].into() };
    let mut world = World::with(pcp());
    world.routers.insert(other, natpmp());
    world.input(Input::Gateways(vec![other]));
    assert_eq!(world.lost(), [Why::NetworkChanged]);
    world.pass(secs(1));
    assert_eq!(world.mapped()[0].gateway, other);
}

#[test]
fn same_gateway_after_a_network_change_is_asked_at_once() {
    let mut world = World::with(pcp());
    world.pass(secs(30));
    world.router().mapped.clear();
    world.input(Input::Gateways(vec![gateway()]));
    assert_eq!(world.router().mapped.len(), 1);

    let mut world = World::with(Router { deaf: true, ..pcp() });
    world.pass(secs(100));
    world.router().deaf = false;
    world.input(Input::Gateways(vec![gateway()]));
    assert_eq!(world.mapped().len(), 1);
}

#[test]
fn each_of_two_gateways_maps_the_port() {
    let second = Gateway { addr: [10, 2, 0, 1].into(), scope: 0, local: [10, 2, 0, 2].into() };
    let mut world = World::new(&[UDP], [(gateway(), pcp()), (second, natpmp())]);
    world.pass(secs(1));
    assert_eq!(world.mapped().len(), 2);
}

#[test]
fn gateways_beyond_the_limit_and_of_mixed_families_are_not_asked() {
    let gateways: Vec<Gateway> =
        (0..20).map(|n| Gateway { addr: [10, 1, n, 1].into(), scope: 0, local: [10, 1, n, 2].into() }).collect();
    let mut world = World::new(&[UDP], gateways.iter().map(|gateway| (*gateway, pcp())));
    assert_eq!(world.mapped().len(), MAX_GATEWAYS);
    world.told();
    let mut world = World::new(&[UDP], [(Gateway { local: [10, 1, 0, 2].into(), ..gateway_v6() }, pcp())]);
    world.pass(secs(60));
    assert!(world.sent.is_empty());
}

#[test]
fn ipv6_pinhole_is_asked_for_by_pcp_alone() {
    let router = Router { external: "2001:db8::2".parse().unwrap(), upnp: true, ..pcp() };
    let mut world = World::new(&[UDP], [(gateway_v6(), router)]);
    world.pass(secs(60));
    assert_eq!(world.mapped()[0].external, "[2001:db8::2]:4433".parse().unwrap());
    assert!(world.asked.is_empty());
    assert!(world.sent.iter().all(|(_, datagram)| datagram[0] == pcp::VERSION));
}

#[test]
fn gateway_that_grants_a_second_is_not_asked_every_second() {
    let mut world = World::with(Router { lifetime: secs(1), ..pcp() });
    let before = world.sent.len();
    world.pass(secs(600));
    assert!(world.sent.len() - before <= 600 / 4 + 10);
}

#[test]
fn late_grant_of_another_dialect_is_removed_unless_it_is_the_same_mapping() {
    let from = SocketAddr::new(gateway().addr, pcp::PORT);
    for (external_port, removed) in [(4433, false), (5000, true)] {
        let mut world = World::with(natpmp());
        let nonce = {
            // Drawn first thing for the first port of the first gateway.
            crate::Rng::new(&[7; 32], "port mapping").bytes()
        };
        let external = SocketAddr::new([198, 51, 100, 9].into(), external_port);
        let map = pcp::Map { nonce, transport: Transport::Udp, internal_port: 4433, external };
        let body = pcp::Body::Map(map);
        let late = pcp::encode_response(&pcp::Response { outcome: Ok(()), lifetime: secs(60), epoch: 0, body });
        let before = world.sent.len();
        world.input(Input::Datagram { local: gateway().local, from, datagram: late });
        assert_eq!(world.mapped()[0].by, Dialect::NatPmp);
        assert_eq!(world.sent.len() - before, usize::from(removed));
    }
}

#[test]
fn upnp_request_without_an_answer_does_not_hold_up_the_machine() {
    let mut world = World::with(upnp());
    world.router().deaf = true;
    world.pass(UPNP_REFRESH + secs(3_700));
    assert!(world.mapped().is_empty());
    assert!(world.lost().contains(&Why::Expired));
}

#[test]
fn addresses_that_nobody_outside_can_reach_are_not_public() {
    for ip in [
        "10.1.2.3",
        "172.16.0.1",
        "192.168.0.1",
        "100.64.0.1",
        "100.127.9.9",
        "169.254.1.1",
        "0.0.0.0",
        "fd00::1",
        "fe80::1",
        "::",
    ] {
        assert!(!is_public(ip.parse().unwrap()), "{ip}");
    }
    for ip in ["11.0.0.101", "100.63.0.1", "100.128.0.1", "198.51.100.9", "2001:db8::1"] {
        assert!(is_public(ip.parse().unwrap()), "{ip}");
    }
}

fn any_input() -> impl Strategy<Value = (u8, u16, Vec<u8>, u64)> {
    (0..10_u8, any::<u16>(), any::<Vec<u8>>(), 0..5_000_u64)
}

proptest! {
    /// Whatever comes in whatever order: no panic, no timer that stays due, no flood.
    #[test]
    fn any_order_of_inputs_is_survived(inputs in prop::collection::vec(any_input(), 0..60), flaky: bool) {
        let mut world = World::new(&[UDP, TCP], [(gateway(), Router { pcp: true, natpmp: flaky, upnp: true, ..Router::default() })]);
        let from = SocketAddr::new(gateway().addr, pcp::PORT);
        for (kind, number, bytes, pause) in inputs {
            let now = world.now;
            match kind {
                0 => world.input(Input::Datagram { local: gateway().local, from, datagram: bytes }),
                1 => world.router().deaf = number % 2 == 0,
                2 => (world.router().started, world.router().lifetime) = (now, secs(number.into())),
                3 => world.router().refuse = (number % 2 == 0).then_some(pcp::Refusal::Other(number as u8 | 1)),
                4 => world.router().taken = (number..number.saturating_add(30)).collect(),
                5 => world.input(Input::Gateways(vec![gateway()])),
                6 => world.input(Input::Gateways(vec![])),
                7 if pause == 0 => world.input(Input::Close),
                8 => {
                    let refusal = UpnpRefusal::Other("no".into());
                    world.input(Input::Upnp { gateway: gateway(), answer: UpnpAnswer::Refused { port: UDP, refusal } });
                }
                9 => world.input(Input::Upnp { gateway: gateway(), answer: UpnpAnswer::Found }),
                _ => {}
            }
            let before = world.sent.len();
            world.pass(secs(pause));
            prop_assert!(world.sent.len() - before <= 60 + pause as usize);
        }
        world.input(Input::Close);
        world.pass(CLOSE_DEADLINE);
        prop_assert_eq!(world.told.iter().filter(|output| **output == Output::Closed).count(), 1);
        prop_assert_eq!(world.machine.poll_timeout(), None);
    }
}
