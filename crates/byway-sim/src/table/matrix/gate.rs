//! What a row has to reach.

use std::time::Duration;

use super::{Kind, Row};
use crate::{Mapping, Ports, Punch, can_punch};

/// Most sockets that a host may open for a punch.
const MAPPINGS: u64 = 256;

/// Most guesses of a host.
const PROBES: u64 = 1_200;

/// Most probes of a host within a second.
const PPS: u64 = 250;

/// How long a run waits for a direct path where all runs must have one, and for a first byte everywhere: a failure is then
/// one for good.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// After how long a run without a direct path is over where there can be none: long enough to see that nobody guesses.
const RELAYED: Duration = Duration::from_secs(3);

/// What the runs of one pair have to reach.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Gate {
    /// How long after the dial a path still counts as direct.
    pub within: Duration,
    /// Direct runs of 1,000.
    pub direct: u64,
    /// The median time to a direct path, in milliseconds.
    pub p50_ms: Option<u64>,
    /// Its 99th percentile, in milliseconds.
    pub p99_ms: Option<u64>,
    /// The 99th percentile of the time to the first byte, in milliseconds.
    pub relay_p99_ms: Option<u64>,
    /// Most guesses of a host.
    pub probes: u64,
}

impl Gate {
    /// The gate of an ordered pair; both orders have the same.
    pub fn of(a: Kind, b: Kind) -> Self {
        let any = Gate { within: PATIENCE, direct: 0, p50_ms: None, p99_ms: None, relay_p99_ms: None, probes: PROBES };
        let seconds = Duration::from_secs;
        match can_punch(&a.side(), &b.side()) {
            Punch::WithoutGuessing => {
                let homes = (a, b) == (Kind::PortRestricted, Kind::PortRestricted);
                Gate { direct: 1_000, p50_ms: homes.then_some(450), p99_ms: Some(2_000), ..any }
            }
            Punch::ByGuessing if has(a, b, |ports| ports == Ports::Random) => {
                Gate { within: seconds(5), direct: 980, ..any }
            }
            Punch::ByGuessing if is_symmetric(a) && is_symmetric(b) => Gate { within: seconds(3), direct: 950, ..any },
            Punch::ByGuessing => Gate { within: seconds(2), direct: 950, probes: 64, ..any },
            Punch::Never if a == Kind::UdpBlocked || b == Kind::UdpBlocked => {
                Gate { relay_p99_ms: Some(3_000), probes: 0, ..any }
            }
            Punch::Never => Gate { within: RELAYED, relay_p99_ms: Some(1_000), probes: 0, ..any },
        }
    }

    /// Whether every run has to be direct.
    pub fn is_certain(&self) -> bool {
        self.direct == 1_000
    }

    /// Whether none can be.
    pub fn is_relayed(&self) -> bool {
        self.direct == 0
    }

    /// In what `row` falls short.
    pub(crate) fn shortfalls(&self, row: &Row) -> Vec<String> {
        let mut shortfalls = Vec::new();
        if row.direct * 1_000 < self.direct * row.runs {
            shortfalls.push(format!("direct {} < {:.1} %", row.direct, self.direct as f64 / 10.0));
        }
        if row.failed > 0 {
            shortfalls.push(format!("{} failed", row.failed));
        }
        for (name, figure, most) in [
            ("p50", row.p50_ms, self.p50_ms),
            ("p99", row.p99_ms, self.p99_ms),
            ("relay p99", row.relay_p99_ms, self.relay_p99_ms),
        ] {
            if let Some(most) = most
                && figure.is_none_or(|figure| figure > most)
            {
                shortfalls.push(format!("{name} > {most} ms"));
            }
        }
        shortfalls.extend(self.overruns(row));
        shortfalls
    }

    /// What even a few runs show to be wrong: a failure, a budget overrun, more misses than chance explains. Times are
    /// not judged.
    pub(crate) fn breaches(&self, row: &Row) -> Vec<String> {
        let mut breaches = self.overruns(row);
        if row.failed > 0 {
            breaches.push(format!("{} of {} runs failed", row.failed, row.runs));
        }
        let expected = row.runs * (1_000 - self.direct) / 1_000;
        let luck = u64::from(!self.is_certain()); // a miss more than expected
        if row.direct + expected + luck < row.runs && !self.is_relayed() {
            breaches.push(format!("direct in {} of {} runs only", row.direct, row.runs));
        }
        breaches
    }

    /// The budgets that a run has overrun.
    fn overruns(&self, row: &Row) -> Vec<String> {
        let budgets = [
            ("probes", row.probes_max, self.probes),
            ("mappings", row.mappings_max, MAPPINGS),
            ("pps", row.pps_max, PPS),
        ];
        let over = budgets.into_iter().filter(|(_, figure, most)| figure > most);
        over.map(|(name, _, most)| format!("{name} > {most}")).collect()
    }
}

/// Whether one of the two is behind a symmetric NAT that chooses its ports so.
fn has(a: Kind, b: Kind, choice: fn(Ports) -> bool) -> bool {
    [a, b].into_iter().filter(|kind| is_symmetric(*kind)).any(|kind| kind.nats().iter().any(|nat| choice(nat.ports)))
}

fn is_symmetric(kind: Kind) -> bool {
    kind.nats().iter().any(|nat| nat.mapping != Mapping::EndpointIndependent)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_runs_show_a_breach_of_what_is_certain_and_of_budgets_but_no_bad_luck() {
        let row = |a, b, direct, failed, probes_max| Row {
            a,
            b,
            runs: 5,
            direct,
            relayed: 5 - direct - failed,
            failed,
            p50_ms: None,
            p99_ms: None,
            relay_p99_ms: None,
            probes_max,
            mappings_max: 0,
            pps_max: 0,
        };
        let count = |row: Row| Gate::of(row.a, row.b).breaches(&row).len();
        let (open, easy, hard) = (Kind::Open, Kind::PortRestricted, Kind::SymmetricRandom);
        assert_eq!([5, 4].map(|direct| count(row(open, hard, direct, 0, 0))), [0, 1]);
        assert_eq!([5, 4, 3].map(|direct| count(row(easy, hard, direct, 0, 1_200))), [0, 0, 1]);
        assert_eq!([0, 1].map(|failed| count(row(hard, hard, 0, failed, 0))), [0, 1]);
        assert_eq!([(hard, 1), (easy, 1_201)].map(|(a, probes)| count(row(a, hard, 5, 0, probes))), [1, 1]);
    }

    #[test]
    fn gates_are_the_documented_ones() {
        use Kind::*;
        for (a, b) in Kind::pairs() {
            assert_eq!(Gate::of(a, b), Gate::of(b, a));
        }
        let certain = |a, b| Gate::of(a, b).is_certain();
        for kind in Kind::ALL {
            assert_eq!([Open, FullCone, AddressRestricted].map(|easy| certain(easy, kind)), [kind != UdpBlocked; 3]);
        }
        assert!(certain(PortRestricted, CgnatPortRestricted) && certain(CgnatPortRestricted, CgnatPortRestricted));
        assert_eq!(Gate::of(PortRestricted, PortRestricted).p50_ms, Some(450));
        let figures = |a, b| {
            let gate = Gate::of(a, b);
            (gate.direct, gate.within.as_secs(), gate.probes)
        };
        for home in [PortRestricted, CgnatPortRestricted] {
            assert_eq!(figures(home, SymmetricRandom), (980, 5, 1_200));
            assert_eq!(figures(home, SymmetricSequential), (950, 2, 64));
        }
        assert_eq!(figures(SymmetricSequential, SymmetricSequential), (950, 3, 1_200));
        for b in [SymmetricRandom, SymmetricSequential] {
            assert_eq!(figures(SymmetricRandom, b), (0, 3, 0));
            assert_eq!(Gate::of(SymmetricRandom, b).relay_p99_ms, Some(1_000));
        }
        assert_eq!(Gate::of(UdpBlocked, Open).relay_p99_ms, Some(3_000));
    }
}
