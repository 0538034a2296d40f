//! Which way leads through two NATs, from how they behave, not from what their types are called.

use core::fmt;

use super::{FamilyReport, Filtering, Mapping, Ports};

/// One of two peers, seen from one of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Side {
    /// This one.
    Ours,
    /// The other one.
    Theirs,
}

impl Side {
    /// The same side, seen from the other peer.
    pub const fn mirrored(self) -> Self {
        match self {
            Side::Ours => Side::Theirs,
            Side::Theirs => Side::Ours,
        }
    }
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if *self == Side::Ours { "this side" } else { "the peer's side" })
    }
}

/// How to get through, for one address family.
///
/// Pings to every reported address are no plan: they are sent whatever it says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Plan {
    /// One side can be reached by anybody at its public address.
    Direct,
    /// Both sides ping the other's public address: each ping opens the own NAT for the other's. Also what is tried
    /// while a report leaves something open.
    SimultaneousOpen,
    /// The next public ports of the hard side's NAT are known in advance: the other side probes those.
    Predict {
        /// The side whose NAT gives each destination another port.
        hard: Side,
    },
    /// The next public ports of both NATs are known in advance: each side aims many sockets at one port.
    PredictBoth,
    /// The hard side opens many ports nobody knows, and the other guesses until it meets one.
    Spray {
        /// The side whose NAT gives each destination another port.
        hard: Side,
    },
    /// Nothing leads through within any sensible budget.
    RelayOnly(Obstacle),
}

/// Why only the relay is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Obstacle {
    /// No server answered over UDP: a firewall drops it.
    UdpBlocked {
        /// On this side.
        ours: bool,
        /// On the peer's side.
        theirs: bool,
    },
    /// Both NATs give each destination another port, and one of them a random one: an even chance takes 54,000 probes.
    Unpredictable {
        /// This side's ports are random.
        ours: bool,
        /// The peer's ports are random.
        theirs: bool,
    },
}

/// The plan that follows from how both sides' NATs behave.
///
/// Both sides come to the same plan, each seeing itself as [`Side::Ours`]. What is not known never leads to a guess,
/// with one exception: a filter of unknown kind is taken for the strictest, for so are most.
pub fn plan(ours: &FamilyReport, theirs: &FamilyReport) -> Plan {
    let (Some(our_public), Some(their_public)) = (ours.public, theirs.public) else {
        let (ours, theirs) = (ours.public.is_none(), theirs.public.is_none());
        return Plan::RelayOnly(Obstacle::UdpBlocked { ours, theirs });
    };
    let (our_ports, their_ports) = (port(ours), port(theirs));
    let open = |report: &FamilyReport, public| {
        public == Some(Public::Fixed) && report.filtering == Some(Filtering::EndpointIndependent)
    };
    if open(ours, our_ports) || open(theirs, their_ports) {
        return Plan::Direct;
    }
    let behind_one_nat = our_public.ip() == their_public.ip();
    match (our_ports, their_ports) {
        // a port of our own NAT's address is reached through hairpinning, if at all; a host's own address is enough
        _ if behind_one_nat => Plan::SimultaneousOpen,
        (Some(Public::Fixed), Some(hard)) => guess(ours, hard, Side::Theirs),
        (Some(hard), Some(Public::Fixed)) => guess(theirs, hard, Side::Ours),
        (Some(Public::Next), Some(Public::Next)) => Plan::PredictBoth,
        (Some(ours), Some(theirs)) => {
            let (ours, theirs) = (ours == Public::Random, theirs == Public::Random);
            Plan::RelayOnly(Obstacle::Unpredictable { ours, theirs })
        }
        (None, _) | (_, None) => Plan::SimultaneousOpen,
    }
}

/// The public port from which a peer will hear this side.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Public {
    /// The one that the servers saw.
    Fixed,
    /// One that can be worked out just before.
    Next,
    Random,
}

fn port(report: &FamilyReport) -> Option<Public> {
    if report.untranslated || report.mapping == Some(Mapping::EndpointIndependent) {
        return Some(Public::Fixed);
    }
    report.mapping?;
    Some(match report.ports? {
        Ports::Preserving | Ports::Sequential { .. } => Public::Next,
        Ports::Random => Public::Random,
    })
}

/// The plan between a side with a fixed public port and another.
fn guess(easy: &FamilyReport, other: Public, hard: Side) -> Plan {
    // where the port does not matter to the easy side's filter, the other side's pings come in from whatever port
    let indifferent = matches!(easy.filtering, Some(Filtering::EndpointIndependent | Filtering::AddressDependent));
    match other {
        _ if indifferent => Plan::SimultaneousOpen,
        Public::Fixed => Plan::SimultaneousOpen,
        Public::Next => Plan::Predict { hard },
        Public::Random => Plan::Spray { hard },
    }
}

impl Plan {
    /// The same plan, seen from the other peer.
    pub const fn mirrored(self) -> Self {
        match self {
            Plan::Predict { hard } => Plan::Predict { hard: hard.mirrored() },
            Plan::Spray { hard } => Plan::Spray { hard: hard.mirrored() },
            Plan::RelayOnly(Obstacle::UdpBlocked { ours, theirs }) => {
                Plan::RelayOnly(Obstacle::UdpBlocked { ours: theirs, theirs: ours })
            }
            Plan::RelayOnly(Obstacle::Unpredictable { ours, theirs }) => {
                Plan::RelayOnly(Obstacle::Unpredictable { ours: theirs, theirs: ours })
            }
            Plan::Direct | Plan::SimultaneousOpen | Plan::PredictBoth => self,
        }
    }

    /// Whether pings to the reported addresses are all there is to it.
    pub const fn is_cheap(self) -> bool {
        matches!(self, Plan::Direct | Plan::SimultaneousOpen)
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Plan::Direct => f.write_str("direct: anybody reaches one of the two at its public address"),
            Plan::SimultaneousOpen => f.write_str("simultaneous open: each side pings the other's addresses"),
            Plan::Predict { hard } => {
                write!(f, "prediction: the NAT of {hard} gives each destination another port, but in order")
            }
            Plan::PredictBoth => {
                f.write_str("prediction on both sides: each NAT gives each destination another port, but in order")
            }
            Plan::Spray { hard } => {
                write!(f, "many ports: the NAT of {hard} gives each destination another port at random")
            }
            Plan::RelayOnly(obstacle) => write!(f, "relay only: {obstacle}"),
        }
    }
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Obstacle::UdpBlocked { ours: true, theirs: true } => f.write_str("UDP gets through on neither side"),
            Obstacle::UdpBlocked { ours: true, .. } => f.write_str("UDP does not get through on this side"),
            Obstacle::UdpBlocked { .. } => f.write_str("UDP does not get through on the peer's side"),
            Obstacle::Unpredictable { ours: true, theirs: true } => {
                f.write_str("both NATs give each destination another port at random")
            }
            Obstacle::Unpredictable { ours, .. } => {
                let random = if *ours { Side::Ours } else { Side::Theirs };
                write!(f, "both NATs give each destination another port, that of {random} at random")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::*;

    fn reports() -> Vec<FamilyReport> {
        let mappings = [
            None,
            Some(Mapping::EndpointIndependent),
            Some(Mapping::AddressDependent),
            Some(Mapping::AddressAndPortDependent),
        ];
        let filterings = [
            None,
            Some(Filtering::EndpointIndependent),
            Some(Filtering::AddressDependent),
            Some(Filtering::AddressAndPortDependent),
        ];
        let ports = [
            None,
            Some(Ports::Preserving),
            Some(Ports::Sequential { step: 1 }),
            Some(Ports::Sequential { step: -2 }),
            Some(Ports::Random),
        ];
        let mut all = Vec::new();
        for public in [None, Some("192.0.2.1:5".parse().unwrap())] {
            for untranslated in [false, true] {
                for mapping in mappings {
                    for filtering in filterings {
                        for ports in ports {
                            let found = FamilyReport {
                                public,
                                untranslated,
                                mapping,
                                filtering,
                                ports,
                                ..FamilyReport::default()
                            };
                            all.push(found);
                        }
                    }
                }
            }
        }
        all
    }

    fn elsewhere(report: &FamilyReport) -> FamilyReport {
        let public = report.public.map(|_| "198.51.100.1:6".parse().unwrap());
        FamilyReport { public, ..report.clone() }
    }

    #[test]
    fn both_sides_come_to_the_same_plan() {
        for a in reports() {
            for b in reports() {
                let b = elsewhere(&b);
                assert_eq!(plan(&a, &b), plan(&b, &a).mirrored(), "{a:?} {b:?}");
            }
        }
    }

    #[test]
    fn many_ports_are_tried_only_between_a_fixed_port_and_random_ones() {
        let fixed = |it: &FamilyReport| it.untranslated || it.mapping == Some(Mapping::EndpointIndependent);
        let hard = |it: &FamilyReport| !it.untranslated && it.mapping.is_some() && !fixed(it);
        for a in reports() {
            for b in reports() {
                let b = elsewhere(&b);
                match plan(&a, &b) {
                    Plan::Spray { hard: Side::Theirs } => {
                        assert!(fixed(&a) && hard(&b) && b.ports == Some(Ports::Random));
                    }
                    Plan::Spray { hard: Side::Ours } => {
                        assert!(fixed(&b) && hard(&a) && a.ports == Some(Ports::Random));
                    }
                    Plan::Predict { hard: Side::Theirs } => assert!(fixed(&a) && hard(&b)),
                    Plan::Predict { hard: Side::Ours } => assert!(fixed(&b) && hard(&a)),
                    Plan::PredictBoth => assert!(hard(&a) && hard(&b)),
                    Plan::RelayOnly(Obstacle::UdpBlocked { ours, theirs }) => {
                        assert_eq!((ours, theirs), (a.public.is_none(), b.public.is_none()));
                    }
                    Plan::RelayOnly(Obstacle::Unpredictable { ours, theirs }) => {
                        assert!(hard(&a) && hard(&b) && (ours || theirs));
                        assert_eq!((ours, theirs), (a.ports == Some(Ports::Random), b.ports == Some(Ports::Random)));
                    }
                    Plan::Direct | Plan::SimultaneousOpen => {}
                }
            }
        }
    }

    #[test]
    fn no_port_of_the_own_public_address_is_guessed() {
        for a in reports() {
            for b in reports() {
                let plan = plan(&a, &b);
                assert!(plan.is_cheap() || matches!(plan, Plan::RelayOnly(Obstacle::UdpBlocked { .. })));
            }
        }
    }

    #[test]
    fn the_types_of_the_field_lead_where_its_arithmetic_says() {
        use Filtering::{AddressAndPortDependent as Apdf, AddressDependent as Adf, EndpointIndependent as Eif};
        use Mapping::{AddressAndPortDependent as Apdm, EndpointIndependent as Eim};
        let nat = |mapping, filtering, ports| FamilyReport {
            public: Some("192.0.2.1:5".parse().unwrap()),
            mapping: Some(mapping),
            filtering: Some(filtering),
            ports: Some(ports),
            ..FamilyReport::default()
        };
        let home = nat(Eim, Apdf, Ports::Preserving);
        let restricted = nat(Eim, Adf, Ports::Random);
        let cone = nat(Eim, Eif, Ports::Preserving);
        let counting = nat(Apdm, Apdf, Ports::Sequential { step: 1 });
        let random = nat(Apdm, Apdf, Ports::Random);
        let server = FamilyReport { public: home.public, untranslated: true, ..FamilyReport::default() };
        let blocked = FamilyReport::default();
        let unknown_filter = FamilyReport { filtering: None, ..home.clone() };
        let both_random = Plan::RelayOnly(Obstacle::Unpredictable { ours: true, theirs: true });
        for (a, b, expected) in [
            (&cone, &random, Plan::Direct),
            (&home, &home, Plan::SimultaneousOpen),
            (&server, &home, Plan::SimultaneousOpen),
            (&restricted, &random, Plan::SimultaneousOpen),
            (&home, &counting, Plan::Predict { hard: Side::Theirs }),
            (&home, &random, Plan::Spray { hard: Side::Theirs }),
            (&unknown_filter, &random, Plan::Spray { hard: Side::Theirs }),
            (&counting, &counting, Plan::PredictBoth),
            (&random, &random, both_random),
            (&counting, &random, Plan::RelayOnly(Obstacle::Unpredictable { ours: false, theirs: true })),
            (&home, &blocked, Plan::RelayOnly(Obstacle::UdpBlocked { ours: false, theirs: true })),
        ] {
            assert_eq!(plan(a, &elsewhere(b)), expected);
        }
    }
}
