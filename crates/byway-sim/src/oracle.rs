//! What can be: whether two hosts can have a direct path, told from how their NATs behave.
//!
//! A path is a pair of endpoints (p, q), each of them what the other host sends to and receives from (RFC 8445
//! §7.2.5.2.1 demands the same of a candidate pair). Before it, each side knows of the other what a server in the core
//! saw of it, and afterwards whatever it receives packets from.
//!
//! - If both mappings are independent of the endpoint, p and q are what the server saw: both send, which opens both
//!   filters.
//! - If only one is, its p is known, and the other's first packet to p comes from q: it is let in unless p's filter
//!   asks for q's very port.
//! - If neither is, the first news of any port must come in by what the server saw, where only a filter that admits
//!   everybody lets it in; the answer must pass a filter that does not ask for the port. And if each port depended on
//!   the other, no first packet would ever have the right source.
//!
//! Where that fails, one side may guess a port of the other's: among many that the other opens, or the one that follows
//! from a counter.

use crate::{Filtering, Mapping, NatConfig, NodeId, Ports};

/// How two hosts can come to a direct path over UDP; the best comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Punch {
    /// By sending to addresses that were reported or observed.
    WithoutGuessing,
    /// By finding one port among 64,512 where many are open, or by foretelling one on each side. A counter that other
    /// hosts move faster than a round trip lasts cannot be foretold; this is not weighed here.
    ByGuessing,
    /// Not within any budget: two unknown ports would have to be hit at once, or UDP is blocked.
    Never,
}

/// What stands between a host and the core.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Side {
    /// From the host outwards; what has no id is shared with nobody.
    nats: Vec<(Option<NodeId>, NatConfig)>,
    ipv6: bool,
}

impl Side {
    /// A host behind these NATs, listed from the host outwards; behind none it is public.
    pub fn behind(nats: impl IntoIterator<Item = NatConfig>) -> Self {
        Side { nats: nats.into_iter().map(|nat| (None, nat)).collect(), ipv6: false }
    }

    /// The same host with a public IPv6 address besides.
    pub fn with_ipv6(mut self) -> Self {
        self.ipv6 = true;
        self
    }

    /// A host of a world: see [`Host::side`](crate::Host::side).
    pub(crate) fn of(nats: Vec<(NodeId, NatConfig)>, ipv6: bool) -> Self {
        Side { nats: nats.into_iter().map(|(id, nat)| (Some(id), nat)).collect(), ipv6 }
    }

    /// How many NATs there are.
    pub fn depth(&self) -> usize {
        self.nats.len()
    }

    fn configs(&self) -> impl Iterator<Item = &NatConfig> {
        self.nats.iter().map(|(_, nat)| nat)
    }
}

/// How `a` and `b` can come to a direct path; the order of the two does not matter.
///
/// ```
/// use byway_sim::{NatConfig, Ports, Punch, Side, can_punch};
///
/// let home = Side::behind([NatConfig::port_restricted()]);
/// let office = Side::behind([NatConfig::symmetric(Ports::Random)]);
/// assert_eq!(can_punch(&home, &home), Punch::WithoutGuessing);
/// assert_eq!(can_punch(&home, &office), Punch::ByGuessing);
/// assert_eq!(can_punch(&office, &office), Punch::Never);
/// ```
pub fn can_punch(a: &Side, b: &Side) -> Punch {
    let outwards = a.nats.iter().rev().zip(b.nats.iter().rev());
    let shared = outwards.take_while(|(a, b)| a.0.is_some() && a.0 == b.0).count();
    let (own_a, own_b) = (a.nats.len() - shared, b.nats.len() - shared);
    if !a.configs().take(own_a).chain(b.configs().take(own_b)).all(|nat| nat.udp) {
        return Punch::Never;
    }
    // Whoever sits in the network that both share, the core or a LAN, is reached at its own address.
    if own_a == 0 || own_b == 0 || (a.ipv6 && b.ipv6) {
        return Punch::WithoutGuessing;
    }
    if shared > 0 {
        // What the server saw is an address of the outermost NAT, so that is where the packets must turn.
        let turns = a.nats.last().is_some_and(|(_, outermost)| outermost.hairpin);
        if !turns || !a.configs().all(|nat| nat.udp) {
            return Punch::Never;
        }
    }
    let (a, b) = (Chain::of(a.configs()), Chain::of(b.configs()));
    if a.is_met(&b) {
        Punch::WithoutGuessing
    } else if a.may_guess(&b) || b.may_guess(&a) || (a.is_foretold() && b.is_foretold()) {
        Punch::ByGuessing
    } else {
        Punch::Never
    }
}

/// Several NATs in a row, seen as one: it depends on whatever one of them depends on.
#[derive(Debug)]
struct Chain {
    mapping: Mapping,
    filtering: Filtering,
    /// Whether the outermost port of a new mapping follows from nothing.
    random: bool,
}

impl Chain {
    fn of<'a>(nats: impl Iterator<Item = &'a NatConfig>) -> Self {
        let none =
            Chain { mapping: Mapping::EndpointIndependent, filtering: Filtering::EndpointIndependent, random: false };
        nats.fold(none, |inner, nat| Chain {
            mapping: inner.mapping.max(nat.mapping),
            filtering: inner.filtering.max(nat.filtering),
            random: match nat.ports {
                Ports::Preserving => inner.random,
                Ports::Sequential { .. } => false,
                Ports::Random => true,
            },
        })
    }

    /// Whether the two need no guess.
    fn is_met(&self, other: &Chain) -> bool {
        match (self.is_independent(), other.is_independent()) {
            (true, true) => true,
            (true, false) => self.admits_any_port(),
            (false, true) => other.admits_any_port(),
            (false, false) => {
                let hears = |x: &Chain, y: &Chain| x.admits_everybody() && y.admits_any_port();
                (hears(self, other) || hears(other, self)) && (self.is_steady() || other.is_steady())
            }
        }
    }

    /// Whether it is enough that this side hits one of the ports that `other` has opened towards it.
    fn may_guess(&self, other: &Chain) -> bool {
        if self.is_independent() || other.is_independent() {
            return true; // one port is known for good, so only the other is to be found
        }
        // The hit gets in, and the answer either leaves by the port that was hit or may come from another.
        let answered = other.is_steady() || (self.is_steady() && self.admits_any_port());
        // Our steady port was heard before, so what they open is open to it.
        let known = self.is_steady() && other.admits_everybody();
        (other.admits_any_port() && answered) || known
    }

    fn is_independent(&self) -> bool {
        self.mapping == Mapping::EndpointIndependent
    }

    /// Whether all packets to one peer leave by one port.
    fn is_steady(&self) -> bool {
        self.mapping <= Mapping::AddressDependent
    }

    fn is_foretold(&self) -> bool {
        !self.random
    }

    fn admits_everybody(&self) -> bool {
        self.filtering == Filtering::EndpointIndependent
    }

    /// Whether who was sent to may answer from any port.
    fn admits_any_port(&self) -> bool {
        self.filtering <= Filtering::AddressDependent
    }
}

#[cfg(test)]
mod tests;
