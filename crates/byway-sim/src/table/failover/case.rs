//! The cases of the table.

use std::{fmt, str::FromStr, time::Duration};

use serde::{Serialize, Serializer};

use super::flow::Pace;
use crate::{Link, Queue};

/// Loss of each host's access link, in each direction.
const LOSS: f64 = 0.01;

/// The rate of each host's access link in bits per second, in each direction.
const RATE: u64 = 20_000_000;

/// What `flap` loses of the direct path.
const FLAP: f64 = 0.17;

/// What happens to a connection's paths; [the module](super) says what each case does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[expect(missing_docs, reason = "the table in the module's documentation tells more than a line each could")]
pub enum Case {
    DeathUp,
    DeathDown,
    DeathBoth,
    DeathPingpong,
    OneWayUp,
    OneWayDown,
    MappingLost,
    RelayDeath,
    Blackout,
    OnlyRelayRestarts,
    IdleDeath,
    NetworkChange,
    NoDeathLoss1,
    NoDeathLoss3,
    NoDeathJitter5,
    NoDeathBloat,
    NoDeathBurst,
    NoDeathIdle,
    Flap,
    Upgrade,
    Downgrade,
    Mtu,
}

/// What is written into each flow.
#[derive(Debug, Clone, Copy)]
pub(super) struct Load {
    /// The byte stream, from a to b and from b to a.
    pub(super) stream: [Pace; 2],
    /// The same for datagrams and for the TCP connection.
    pub(super) others: [Pace; 2],
}

impl Case {
    /// All cases, in the order of the table.
    pub const ALL: [Case; 22] = [
        Case::DeathUp,
        Case::DeathDown,
        Case::DeathBoth,
        Case::DeathPingpong,
        Case::OneWayUp,
        Case::OneWayDown,
        Case::MappingLost,
        Case::RelayDeath,
        Case::Blackout,
        Case::OnlyRelayRestarts,
        Case::IdleDeath,
        Case::NetworkChange,
        Case::NoDeathLoss1,
        Case::NoDeathLoss3,
        Case::NoDeathJitter5,
        Case::NoDeathBloat,
        Case::NoDeathBurst,
        Case::NoDeathIdle,
        Case::Flap,
        Case::Upgrade,
        Case::Downgrade,
        Case::Mtu,
    ];

    /// Its name in rows and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Case::DeathUp => "death-up",
            Case::DeathDown => "death-down",
            Case::DeathBoth => "death-both",
            Case::DeathPingpong => "death-pingpong",
            Case::OneWayUp => "one-way-up",
            Case::OneWayDown => "one-way-down",
            Case::MappingLost => "mapping-lost",
            Case::RelayDeath => "relay-death",
            Case::Blackout => "blackout",
            Case::OnlyRelayRestarts => "only-relay-restarts",
            Case::IdleDeath => "idle-death",
            Case::NetworkChange => "network-change",
            Case::NoDeathLoss1 => "no-death-loss-1",
            Case::NoDeathLoss3 => "no-death-loss-3",
            Case::NoDeathJitter5 => "no-death-jitter-5",
            Case::NoDeathBloat => "no-death-bloat",
            Case::NoDeathBurst => "no-death-burst",
            Case::NoDeathIdle => "no-death-idle",
            Case::Flap => "flap",
            Case::Upgrade => "upgrade",
            Case::Downgrade => "downgrade",
            Case::Mtu => "mtu",
        }
    }

    /// Whether nothing dies in it: ten minutes, compared with the same ten minutes without hedging.
    pub fn is_quiet(self) -> bool {
        (Case::NoDeathLoss1..=Case::NoDeathIdle).contains(&self)
    }

    /// Whether one long run tells it all.
    pub fn is_long(self) -> bool {
        self.is_quiet() || self == Case::Flap
    }

    /// Whether it measures how soon the new line is filled.
    pub(super) fn settles(self) -> bool {
        matches!(self, Case::Upgrade | Case::Downgrade | Case::Mtu)
    }

    /// Whether the connection has a direct path before anything happens.
    pub(super) fn begins_direct(self) -> bool {
        !matches!(self, Case::RelayDeath | Case::OnlyRelayRestarts | Case::Upgrade)
    }

    /// How many relays there are.
    pub(super) fn relays(self) -> usize {
        if self == Case::RelayDeath { 2 } else { 1 }
    }

    /// Which of the hosts are behind home routers.
    pub(super) fn behind_nat(self) -> [bool; 2] {
        match self {
            Case::MappingLost => [true, true],
            Case::NetworkChange => [false, true],
            _ => [false, false],
        }
    }

    /// Each host's access link.
    pub(super) fn access(self) -> Link {
        let link = Link::standard().loss(LOSS).rate(RATE);
        match self {
            Case::NoDeathLoss3 => link.loss(3.0 * LOSS),
            Case::NoDeathJitter5 => link.jitter(Duration::from_millis(5), true),
            Case::NoDeathBloat => link.queue(Queue::Time(Duration::from_secs(1))),
            Case::NoDeathBurst => link.burst(0.000_5, 0.05), // spells of 20 packets, 1 % of all
            Case::Upgrade | Case::Downgrade => link.delay(Duration::from_micros(2_500)).rate(5 * RATE),
            _ => link,
        }
    }

    /// Each relay's link.
    pub(super) fn relay_link(self) -> Link {
        match self {
            Case::Upgrade | Case::Downgrade => Link::lan().delay(Duration::from_micros(22_500)).rate(RATE),
            Case::Mtu => Link::lan().mtu(1_280),
            _ => Link::lan(),
        }
    }

    /// The rate in bits per second of the line that a case moves to.
    pub(super) fn new_rate(self) -> u64 {
        if self == Case::Upgrade { 5 * RATE } else { RATE }
    }

    /// The chance that a packet is lost between the hosts while no path is dead.
    pub(super) fn path_loss(self) -> f64 {
        let link = if self == Case::NoDeathLoss3 { 3.0 * LOSS } else { LOSS };
        let spells = if self == Case::Flap { FLAP } else { 0.0 };
        1.0 - (1.0 - link) * (1.0 - link) * (1.0 - spells)
    }

    /// Whether a connection of bare QUIC, which has one path, can be in it.
    pub(super) fn has_bare(self) -> bool {
        self.begins_direct() && !matches!(self, Case::Downgrade | Case::Mtu)
    }

    /// What the flows carry.
    pub(super) fn load(self) -> Load {
        let (greedy, light) = (Pace::Greedy, Pace::Every(Duration::from_millis(20)));
        let both = |pace| Load { stream: [pace; 2], others: [pace; 2] };
        match self {
            Case::DeathPingpong => Load { stream: [Pace::Ask, Pace::Answer], others: [Pace::Ask, Pace::Answer] },
            Case::IdleDeath => both(Pace::Once),
            Case::NoDeathIdle => both(Pace::Every(Duration::from_secs(7))),
            Case::DeathDown => Load { stream: [light, greedy], others: [light; 2] },
            Case::DeathUp | Case::OneWayUp | Case::OneWayDown | Case::Flap => {
                Load { stream: [greedy, light], others: [light; 2] }
            }
            Case::Upgrade | Case::Downgrade | Case::Mtu => Load { stream: [greedy, light], others: [light; 2] },
            _ => Load { stream: [greedy; 2], others: [light; 2] },
        }
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Serialize for Case {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl FromStr for Case {
    type Err = UnknownCase;

    fn from_str(name: &str) -> Result<Self, UnknownCase> {
        Case::ALL.into_iter().find(|case| case.name() == name).ok_or_else(|| UnknownCase(name.to_owned()))
    }
}

/// A name that no case has.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no case is called `{0}`; choose from {known}", known = Case::ALL.map(Case::name).join(", "))]
pub struct UnknownCase(String);
