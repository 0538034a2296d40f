//! Two nodes behind two NATs: directly where the NATs allow it, over the relay elsewhere.

use std::fmt;

use crate::{
    Stop,
    lab::{
        Lab, Outcome, Scenario,
        meet::{Expected, meet},
        nat::{Depends, Nat, Ports},
        network::Plan,
        survey,
    },
};

use Depends::{Address, AddressAndPort, Nothing};

/// What stands between a host and the public network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Open,
    FullCone,
    AddressRestricted,
    PortRestricted,
    SymmetricSequential,
    SymmetricRandom,
    CgnatPortRestricted,
    UdpBlocked,
}

use Kind::*;

/// The kinds of the traversal table, in its order.
const KINDS: [Kind; 8] = [
    Open,
    FullCone,
    AddressRestricted,
    PortRestricted,
    SymmetricSequential,
    SymmetricRandom,
    CgnatPortRestricted,
    UdpBlocked,
];

impl Kind {
    /// Its NATs, from the host outwards: those that the survey has been seen to judge as in the simulator.
    fn nats(self) -> Vec<Nat> {
        survey::named(&self.to_string())
    }

    fn expected(self, other: Kind) -> Expected {
        if self == UdpBlocked || other == UdpBlocked {
            return Expected::Tls;
        }
        let open = Nat::new(Nothing, Nothing, Ports::Preserving);
        let [a, b] = [self, other].map(|kind| kind.nats().last().copied().unwrap_or(open));
        if lets_in(&a, &b) || lets_in(&b, &a) {
            return Expected::Direct;
        }
        let counts = |nat: &Nat| matches!(nat.ports, Ports::Sequential(_));
        match (a.mapping == Nothing, b.mapping == Nothing) {
            (true, true) => Expected::Direct,
            (true, false) if counts(&b) => Expected::Luck(1),
            (false, true) if counts(&a) => Expected::Luck(1),
            (true, false) | (false, true) => Expected::Luck(2),
            (false, false) if counts(&a) && counts(&b) => Expected::Luck(2),
            (false, false) => Expected::Relay,
        }
    }
}

/// Whether `near` lets in what the host behind `far` sends to the address that a STUN server saw, once both have sent.
fn lets_in(near: &Nat, far: &Nat) -> bool {
    match (near.filtering, near.mapping) {
        (Nothing, _) | (Address, Nothing) => true,
        (AddressAndPort, Nothing) => far.mapping == Nothing,
        _ => false, // the mapping towards the peer is not the one that the STUN server saw
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Open => "open",
            FullCone => "full-cone",
            AddressRestricted => "address-restricted",
            PortRestricted => "port-restricted",
            SymmetricSequential => "symmetric-sequential",
            SymmetricRandom => "symmetric-random",
            CgnatPortRestricted => "cgnat-port-restricted",
            UdpBlocked => "udp-blocked",
        })
    }
}

/// One scenario for each ordered pair: a dials b. Sorted by the network they need.
pub(crate) fn scenarios() -> Vec<Scenario> {
    let pairs = KINDS.iter().flat_map(|a| KINDS.iter().map(|b| (*a, *b)));
    let mut scenarios: Vec<Scenario> = pairs.map(|(a, b)| scenario(a, b)).collect();
    scenarios.sort_by_key(|scenario| scenario.plan.carrier);
    scenarios
}

fn scenario(a: Kind, b: Kind) -> Scenario {
    let plan = Plan { carrier: [a, b].map(|kind| kind == CgnatPortRestricted), ..Plan::default() };
    let run = Box::new(move |lab: &Lab| pair(lab, a, b));
    Scenario { name: "pair", a: a.to_string(), b: b.to_string(), plan, breaks: false, run }
}

fn pair(lab: &Lab, a: Kind, b: Kind) -> Result<Outcome, Stop> {
    let [dialler, server] = [(a, "ha", "ra", "ca", "stun"), (b, "hb", "rb", "cb", "open")].map(
        |(kind, host, router, carrier, public)| -> Result<&str, Stop> {
            let nats = kind.nats();
            for (router, nat) in [router, carrier].iter().zip(&nats) {
                lab.network.router(router).load(nat)?;
            }
            Ok(if nats.is_empty() { public } else { host })
        },
    );
    meet(lab, [dialler?, server?], a.expected(b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_but_open_has_nats() {
        for kind in KINDS {
            let layers = [usize::from(kind != Open), 2][usize::from(kind == CgnatPortRestricted)];
            assert_eq!(kind.nats().len(), layers, "{kind}");
        }
    }

    #[test]
    fn one_soft_side_is_enough_and_two_restricted_ones_meet() {
        for kind in [Open, FullCone, AddressRestricted] {
            for other in KINDS.into_iter().filter(|other| *other != UdpBlocked) {
                assert_eq!((kind.expected(other), other.expected(kind)), (Expected::Direct, Expected::Direct));
            }
        }
        assert_eq!(PortRestricted.expected(CgnatPortRestricted), Expected::Direct);
    }

    #[test]
    fn a_port_that_cannot_be_known_takes_luck_or_the_relay() {
        assert_eq!(PortRestricted.expected(SymmetricRandom), Expected::Luck(2));
        assert_eq!(SymmetricSequential.expected(CgnatPortRestricted), Expected::Luck(1));
        assert_eq!(SymmetricSequential.expected(SymmetricSequential), Expected::Luck(2));
        assert_eq!(SymmetricRandom.expected(SymmetricSequential), Expected::Relay);
        assert_eq!(SymmetricRandom.expected(SymmetricRandom), Expected::Relay);
        assert_eq!(Open.expected(UdpBlocked), Expected::Tls);
    }
}
