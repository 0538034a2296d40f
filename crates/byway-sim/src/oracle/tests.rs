use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};

use super::*;
use crate::{World, nat::table::Table, noise::Noise, rule::Transport, time::Time};

const MAPPINGS: [Mapping; 3] =
    [Mapping::EndpointIndependent, Mapping::AddressDependent, Mapping::AddressAndPortDependent];

const FILTERINGS: [Filtering; 3] =
    [Filtering::EndpointIndependent, Filtering::AddressDependent, Filtering::AddressAndPortDependent];

const PORTS: [Ports; 3] = [Ports::Preserving, Ports::Sequential { step: 1 }, Ports::Random];

/// Rounds after which nothing new can be learned that matters: a port that is heard of is answered in the next.
const ROUNDS: usize = 6;

fn kinds() -> impl Iterator<Item = NatConfig> {
    let axes = MAPPINGS.into_iter().flat_map(|m| FILTERINGS.into_iter().flat_map(move |f| PORTS.map(|p| (m, f, p))));
    axes.map(|(mapping, filtering, ports)| NatConfig { mapping, filtering, ports, ..NatConfig::default() })
}

/// Two hosts with one socket each, behind tables of the simulated NAT, that try by brute force.
struct Trial {
    /// One table each, or one for both.
    tables: Vec<Table>,
    /// What each side knows of the other.
    known: [BTreeSet<SocketAddr>; 2],
    /// Every (source, destination) that was let in.
    admitted: BTreeSet<(SocketAddr, SocketAddr)>,
    /// Sources and destinations of what each side sent.
    sent: [BTreeSet<(SocketAddr, SocketAddr)>; 2],
}

impl Trial {
    fn new(configs: &[&NatConfig]) -> Self {
        let table = |(n, config): (usize, &&NatConfig)| Table::new((*config).clone(), Noise::new(n as u64 + 1));
        let tables = configs.iter().enumerate().map(table).collect();
        let empty = || [BTreeSet::new(), BTreeSet::new()];
        let mut trial =
            Trial { tables, known: [BTreeSet::new(), BTreeSet::new()], admitted: BTreeSet::new(), sent: empty() };
        let server = SocketAddr::from(([11, 9, 9, 9], 3_478));
        let seen = [0, 1].map(|side| trial.source(side, server));
        trial.known = [BTreeSet::from([seen[1]]), BTreeSet::from([seen[0]])];
        trial
    }

    fn outer(&self, side: usize) -> IpAddr {
        IpAddr::from([11, 0, 0, side.min(self.tables.len() - 1) as u8 + 1])
    }

    fn inner(side: usize) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, side as u8 + 2], 5_000))
    }

    fn source(&mut self, side: usize, to: SocketAddr) -> SocketAddr {
        let table = side.min(self.tables.len() - 1);
        let port = self.tables[table].outbound(Time::START, Transport::Udp, Self::inner(side), to).unwrap();
        SocketAddr::new(self.outer(side), port)
    }

    fn send(&mut self, side: usize, to: SocketAddr) {
        let from = self.source(side, to);
        self.sent[side].insert((from, to));
        let table = (1 - side).min(self.tables.len() - 1);
        let inner = self.tables[table].inbound(Time::START, Transport::Udp, to.port(), from);
        if inner == Ok(Self::inner(1 - side)) {
            self.admitted.insert((from, to));
            self.known[1 - side].insert(from);
        }
    }

    /// Both sides send to all they know until nothing can change any more; whether they have met.
    fn settle(&mut self) -> bool {
        for _ in 0..ROUNDS {
            for side in [0, 1] {
                self.known[side].clone().into_iter().for_each(|to| self.send(side, to));
            }
        }
        self.admitted.iter().any(|(p, q)| self.admitted.contains(&(*q, *p)))
    }

    /// Whether they meet if one of them is told a port that the other has opened towards it.
    fn settle_with_one_guess(configs: &[&NatConfig]) -> bool {
        let opened = |side: usize| {
            let mut trial = Trial::new(configs);
            trial.settle();
            let ports: BTreeSet<_> = trial.sent[1 - side].iter().map(|(from, _)| *from).collect();
            ports
        };
        let mut guesses = [0, 1].into_iter().flat_map(|side| opened(side).into_iter().map(move |port| (side, port)));
        guesses.any(|(side, port)| {
            let mut trial = Trial::new(configs); // the same noise: the same ports
            trial.settle();
            trial.known[side].insert(port);
            trial.settle()
        })
    }
}

#[test]
fn all_pairs_meet_by_brute_force_exactly_where_the_oracle_says() {
    for (a, b) in kinds().flat_map(|a| kinds().map(move |b| (a.clone(), b))) {
        let says = can_punch(&Side::behind([a.clone()]), &Side::behind([b.clone()]));
        let pair = [&a, &b];
        assert_eq!(Trial::new(&pair).settle(), says == Punch::WithoutGuessing, "{says:?}: {a:?}, {b:?}");
        let both_count = [&a, &b].iter().all(|nat| nat.ports != Ports::Random);
        if says != Punch::WithoutGuessing && !both_count {
            assert_eq!(Trial::settle_with_one_guess(&pair), says == Punch::ByGuessing, "{says:?}: {a:?}, {b:?}");
        }
    }
}

#[test]
fn hosts_behind_one_nat_with_hairpin_meet_exactly_where_the_oracle_says() {
    for mut nat in kinds() {
        nat.hairpin = true;
        // Two networks of one outer NAT, so that they have no address in common but the outermost.
        let carrier = || (NodeId(0), nat.clone());
        let home = |id| (NodeId(id), NatConfig::full_cone());
        let says = can_punch(&Side::of(vec![home(1), carrier()], false), &Side::of(vec![home(2), carrier()], false));
        assert_eq!(Trial::new(&[&nat]).settle(), says == Punch::WithoutGuessing, "{says:?}: {nat:?}");
    }
}

/// Both read their counters, and send to where the other's next mapping will be.
#[test]
fn two_counters_are_foretold_whatever_the_filters() {
    let counting = || kinds().filter(|nat| nat.ports == Ports::Sequential { step: 1 });
    for (a, b) in counting().flat_map(|a| counting().map(move |b| (a.clone(), b))) {
        assert_ne!(can_punch(&Side::behind([a.clone()]), &Side::behind([b.clone()])), Punch::Never);
        let mut trial = Trial::new(&[&a, &b]);
        let next = [0, 1].map(|side| {
            let seen = *trial.known[1 - side].first().unwrap();
            let moves = [&a, &b][side].mapping != Mapping::EndpointIndependent;
            SocketAddr::new(seen.ip(), if moves { seen.port() + 1 } else { seen.port() })
        });
        trial.known = [BTreeSet::from([next[1]]), BTreeSet::from([next[0]])];
        assert!(trial.settle(), "{a:?}, {b:?}");
    }
}

#[test]
fn one_blocked_layer_ends_it_except_on_the_lan() {
    let blocked = || (NodeId(0), NatConfig::udp_blocked());
    let behind = |nats| Side::of(nats, true);
    let public = Side::behind([]).with_ipv6();
    assert_eq!(can_punch(&behind(vec![blocked()]), &public), Punch::Never);
    assert_eq!(can_punch(&behind(vec![(NodeId(1), NatConfig::full_cone()), blocked()]), &public), Punch::Never);
    assert_eq!(can_punch(&behind(vec![blocked()]), &behind(vec![blocked()])), Punch::WithoutGuessing);
}

#[test]
fn a_chain_depends_on_whatever_one_of_its_layers_depends_on() {
    let symmetric = NatConfig::symmetric(Ports::Random);
    let layers = [NatConfig::full_cone(), symmetric.clone(), NatConfig::port_restricted()];
    let home = Side::behind([NatConfig::port_restricted()]);
    assert_eq!(can_punch(&Side::behind(layers), &home), Punch::ByGuessing);
    let mut counting = NatConfig::full_cone();
    counting.ports = Ports::Sequential { step: 1 };
    let counted = Side::behind([symmetric, counting.clone()]); // the outer counter numbers what the inner one draws
    assert_eq!(can_punch(&counted, &counted), Punch::ByGuessing);
    counting.ports = Ports::Random;
    let drawn = Side::behind([NatConfig::symmetric(Ports::Sequential { step: 1 }), counting]);
    assert_eq!(can_punch(&drawn, &drawn), Punch::Never);
}

#[test]
fn hosts_of_a_world_are_described_with_what_they_share() {
    World::run(1, |world| async move {
        let hard = || NatConfig::symmetric(Ports::Random);
        let meet = |hairpin: bool| {
            let mut config = NatConfig::port_restricted();
            config.hairpin = hairpin;
            let carrier = world.nat("carrier", config);
            let homes = ["left", "right"].map(|name| carrier.nat(name, NatConfig::port_restricted()));
            let [left, right] = &homes;
            let (a, b) = (left.host("a"), right.host("b"));
            assert_eq!(can_punch(&a.side(), &left.host("sister").side()), Punch::WithoutGuessing);
            assert_eq!(can_punch(&a.side(), &carrier.host("in between").side()), Punch::WithoutGuessing);
            can_punch(&a.side(), &b.side())
        };
        assert_eq!([meet(false), meet(true)], [Punch::Never, Punch::WithoutGuessing]);
        let [a, b] = ["a", "b"].map(|name| world.nat(name, hard()).host(name));
        assert_eq!(can_punch(&a.side(), &b.side()), Punch::Never);
        for host in [&a, &b] {
            host.add_ipv6();
        }
        assert_eq!(can_punch(&a.side(), &b.side()), Punch::WithoutGuessing);
    });
}
