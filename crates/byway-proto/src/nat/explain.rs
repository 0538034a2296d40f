//! Why a connection is direct or not, for a person who wants it to be.

use alloc::vec::Vec;
use core::{fmt, net::SocketAddr, time::Duration};

use super::{
    FamilyReport, NatReport,
    punch::{Obstacle, Plan, Side},
};
use crate::{Instant, addr::candidate::Refused};

/// What was found, planned and tried between this node and one peer.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Explanation {
    /// Whether the connection has a direct route.
    pub direct: bool,
    /// What this side's survey found.
    pub ours: NatReport,
    /// What the peer's survey found; `None` if it has not told.
    pub theirs: Option<NatReport>,
    /// The plan over IPv4; `None` while a side has not told.
    pub ipv4: Option<Plan>,
    /// The plan over IPv6; `None` while a side has not told.
    pub ipv6: Option<Plan>,
    /// The addresses of the peer that are pinged.
    pub candidates: Vec<SocketAddr>,
    /// The addresses that the peer told and that are not.
    pub refused: Vec<(SocketAddr, Refused)>,
    /// What was tried, oldest first; the last one may still run.
    pub attempts: Vec<Attempt>,
    /// What would mend it, most promising first.
    pub remedies: Vec<Remedy>,
}

/// One attempt at a direct route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Attempt {
    /// What was tried.
    pub means: Means,
    /// When it began.
    pub began: Instant,
    /// How long it took, or has taken so far.
    pub took: Duration,
    /// Sockets opened for it.
    pub mappings: u32,
    /// Packets sent to ports that nobody reported or observed.
    pub probes: u32,
    /// All packets sent to the peer for it.
    pub packets: u32,
    /// How it ended.
    pub outcome: Outcome,
}

/// What an attempt consists of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Means {
    /// Pings to every address that the peer told.
    Pings,
    /// Probes to the ports that the hard side's NAT will give out next.
    Prediction,
    /// The same with a hard NAT on both sides.
    Predictions,
    /// Many guesses at many open ports.
    Spray,
    /// The ports around the peer's known one.
    Scan,
}

/// How an attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Outcome {
    /// It has not.
    Running,
    /// The connection became direct meanwhile.
    Direct,
    /// No answer came.
    NoAnswer,
    /// The peer was busy with another punch, or did not want one.
    PeerBusy,
    /// The budget did not allow it.
    NoBudget,
    /// It was stopped because the relay began to lose packets: somebody's NAT or line had enough.
    RelaySuffered,
    /// The node went to another network, or the peer told something new.
    Overtaken,
}

/// What would help.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Remedy {
    /// UDP has to pass the firewall.
    AllowUdp(Side),
    /// A port mapping makes the NAT's behaviour irrelevant.
    MapPort(Side),
    /// A carrier's NAT cannot be configured by its customer.
    LeaveCarrierNat(Side),
    /// Addresses that nobody translates.
    Ipv6(Side),
    /// Nothing is known about the NAT without two servers that tell what they see.
    MoreServers(Side),
    /// The configuration forbids what might have worked.
    RaiseBudget,
}

impl Remedy {
    /// What would help between these two sides.
    pub(super) fn find(
        ours: &NatReport,
        theirs: Option<&NatReport>,
        plans: [Option<Plan>; 2],
        attempts: &[Attempt],
    ) -> Vec<Remedy> {
        let mut remedies = Vec::new();
        let told = theirs.map_or((None, None), |it| (it.ipv4.as_ref(), it.ipv6.as_ref()));
        let sides = [(Side::Ours, (ours.ipv4.as_ref(), ours.ipv6.as_ref())), (Side::Theirs, told)];
        let named = |side| plans.into_iter().flatten().any(|plan| is_fault_of(plan, side));
        for (side, (ipv4, ipv6)) in sides {
            if ipv4.or(ipv6).is_none() {
                remedies.push(Remedy::MoreServers(side));
                continue;
            }
            let blocked = |it: Option<&FamilyReport>| it.is_none_or(|it| it.public.is_none());
            if blocked(ipv4) && blocked(ipv6) {
                remedies.push(Remedy::AllowUdp(side));
            } else if ipv4.is_some_and(|it| it.carrier == Some(true)) && named(side) {
                remedies.push(Remedy::LeaveCarrierNat(side));
            } else if named(side) {
                remedies.push(Remedy::MapPort(side));
            }
        }
        for (side, (_, ipv6)) in sides {
            if ipv6.is_none_or(|it| it.public.is_none()) {
                remedies.push(Remedy::Ipv6(side));
            }
        }
        if attempts.iter().any(|attempt| attempt.outcome == Outcome::NoBudget) {
            remedies.push(Remedy::RaiseBudget);
        }
        remedies.sort_unstable();
        remedies
    }
}

/// Whether this side's NAT makes the plan as hard as it is; where both fixed ports should do, either may open one.
fn is_fault_of(plan: Plan, side: Side) -> bool {
    match plan {
        Plan::Direct => false,
        Plan::Predict { hard } | Plan::Spray { hard } => hard == side,
        Plan::RelayOnly(Obstacle::UdpBlocked { .. }) => false,
        Plan::SimultaneousOpen | Plan::PredictBoth | Plan::RelayOnly(Obstacle::Unpredictable { .. }) => true,
    }
}

impl fmt::Display for Remedy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Remedy::AllowUdp(side) => write!(f, "let UDP pass the firewall on {side}"),
            Remedy::MapPort(side) => {
                write!(f, "on {side}, forward the node's UDP port at the router, or switch on its PCP, NAT-PMP or UPnP")
            }
            Remedy::LeaveCarrierNat(side) => {
                write!(f, "on {side}, ask the carrier for a public address: its NAT cannot be configured from inside")
            }
            Remedy::Ipv6(side) => write!(f, "use IPv6 on {side}: nobody translates its addresses"),
            Remedy::MoreServers(side) => {
                write!(
                    f,
                    "on {side}, add a second relay or STUN server: one NAT looks like another without two answers"
                )
            }
            Remedy::RaiseBudget => f.write_str("raise nat_budget in the configuration: it forbids what might work"),
        }
    }
}

impl fmt::Display for Means {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Means::Pings => "pings to the peer's addresses",
            Means::Prediction => "a predicted port",
            Means::Predictions => "predicted ports on both sides",
            Means::Spray => "many ports",
            Means::Scan => "port scan",
        })
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Outcome::Running => "under way",
            Outcome::Direct => "direct",
            Outcome::NoAnswer => "no answer",
            Outcome::PeerBusy => "the peer was busy",
            Outcome::NoBudget => "not allowed by the budget",
            Outcome::RelaySuffered => "stopped: the relay began to lose packets",
            Outcome::Overtaken => "overtaken by a change of network",
        })
    }
}
