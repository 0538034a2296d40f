//! Which NATs let two nodes meet: every kind of NAT against every other, in both orders, dialled many times.
//!
//! Each run is a world of its own: a relay and two STUN servers in the core, two nodes behind their NATs on the standard
//! network with 1 % loss, registered, strangers to each other. One dials with the other's ticket; from the moment they
//! are connected both send a message every 20 ms. `watch` proves at the packets which message crossed no relay.

mod dial;
mod gate;
mod kind;
mod watch;

use std::{fmt, time::Duration};

use serde::Serialize;

use self::dial::Outcome;
pub(super) use self::kind::behind;
pub use self::{dial::MatrixError, gate::Gate, kind::Kind};
use super::in_threads;
use crate::noise::Noise;

/// What to measure.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Dials a pair.
    pub runs: u64,
    /// What all runs follow from.
    pub seed: u64,
    /// Ordered pairs, the dialling side first.
    pub pairs: Vec<(Kind, Kind)>,
    /// Threads that share the runs; rows do not depend on it.
    pub jobs: usize,
}

/// What the runs of one ordered pair came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Row {
    /// What the dialling node is behind.
    pub a: Kind,
    /// What the other is behind.
    pub b: Kind,
    /// Dials.
    pub runs: u64,
    /// Those that were direct within the row's time.
    pub direct: u64,
    /// Those that were not, but where a byte arrived.
    pub relayed: u64,
    /// Those where none did.
    pub failed: u64,
    /// Milliseconds from the dial until one byte each way had crossed directly: the median over all runs where the gate
    /// is 100 %, over direct runs elsewhere; `None` where it is infinite or there is none.
    pub p50_ms: Option<u64>,
    /// The same, the 99th percentile.
    pub p99_ms: Option<u64>,
    /// Milliseconds from the dial until the first byte arrived by any path: the 99th percentile over all runs.
    pub relay_p99_ms: Option<u64>,
    /// The most guesses that one host sent in one run.
    pub probes_max: u64,
    /// The most sockets that one host opened for the punch in one run.
    pub mappings_max: u64,
    /// The most guesses, openers and candidate pings that one host sent within one second.
    pub pps_max: u64,
}

/// Measures the pairs of `plan` in order and hands each row to `row` as soon as it is complete.
///
/// # Errors
///
/// If a node does not start.
pub fn run(plan: &Plan, mut row: impl FnMut(&Row)) -> Result<(), MatrixError> {
    for &(a, b) in &plan.pairs {
        let outcomes = in_threads(plan.jobs, plan.runs, |run| dial::run(a, b, seed_of(plan.seed, a, b, run)))?;
        row(&Row::of(a, b, &outcomes));
    }
    Ok(())
}

/// A seed for each run, which does not depend on which others are made.
fn seed_of(seed: u64, a: Kind, b: Kind, run: u64) -> u64 {
    [(a as u64) << 8 | b as u64, run].into_iter().fold(seed, |seed, part| Noise::new(seed).next() ^ part)
}

impl Row {
    fn of(a: Kind, b: Kind, outcomes: &[Outcome]) -> Self {
        let count = |matches: fn(&Outcome) -> bool| outcomes.iter().filter(|outcome| matches(outcome)).count() as u64;
        let most = |figure: fn(&Outcome) -> u64| outcomes.iter().map(figure).max().unwrap_or(0);
        let mut direct: Vec<_> = outcomes.iter().map(|outcome| outcome.direct).collect();
        if !Gate::of(a, b).is_certain() {
            direct.retain(Option::is_some);
        }
        Row {
            a,
            b,
            runs: outcomes.len() as u64,
            direct: count(|outcome| outcome.direct.is_some()),
            relayed: count(|outcome| outcome.direct.is_none() && outcome.first_byte.is_some()),
            failed: count(|outcome| outcome.direct.is_none() && outcome.first_byte.is_none()),
            p50_ms: percentile(&direct, 50),
            p99_ms: percentile(&direct, 99),
            relay_p99_ms: percentile(&outcomes.iter().map(|outcome| outcome.first_byte).collect::<Vec<_>>(), 99),
            probes_max: most(|outcome| outcome.probes),
            mappings_max: most(|outcome| outcome.mappings),
            pps_max: most(|outcome| outcome.pps),
        }
    }

    /// In what the row falls short of its gate; empty if it does not.
    pub fn shortfalls(&self) -> Vec<String> {
        Gate::of(self.a, self.b).shortfalls(self)
    }

    /// What even a few runs show to be wrong: a failure, a budget overrun, more misses than chance explains; empty if
    /// nothing is.
    pub fn breaches(&self) -> Vec<String> {
        Gate::of(self.a, self.b).breaches(self)
    }

    /// The heading of [`Row`]'s lines, plain and as Markdown.
    pub fn heading(markdown: bool) -> String {
        let columns = ["a", "b", "direct", "relayed", "failed", "p50", "p99", "relay p99", "probes", "mappings", "pps"];
        if markdown {
            let rule = "---|".repeat(columns.len() + 1);
            return format!("| {} | gate |\n|{rule}", columns.join(" | "));
        }
        let [a, b, numbers @ ..] = columns;
        let numbers: String = numbers.iter().map(|name| format!(" {name:>9}")).collect();
        format!("{a:<21} {b:<21}{numbers}  gate")
    }

    /// The row as a line of Markdown.
    pub fn to_markdown(&self) -> String {
        format!("| {} | {} | {} | {} |", self.a, self.b, self.figures().join(" | "), self.judgement())
    }

    fn figures(&self) -> [String; 9] {
        let ms = |figure: Option<u64>| figure.map_or_else(|| "–".to_owned(), |ms| ms.to_string());
        [
            self.direct.to_string(),
            self.relayed.to_string(),
            self.failed.to_string(),
            ms(self.p50_ms),
            ms(self.p99_ms),
            ms(self.relay_p99_ms),
            self.probes_max.to_string(),
            self.mappings_max.to_string(),
            self.pps_max.to_string(),
        ]
    }

    fn judgement(&self) -> String {
        let shortfalls = self.shortfalls();
        if shortfalls.is_empty() { "pass".into() } else { format!("falls short: {}", shortfalls.join(", ")) }
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<21} {:<21}", self.a.name(), self.b.name())?;
        self.figures().iter().try_for_each(|figure| write!(f, " {figure:>9}"))?;
        write!(f, "  {}", self.judgement())
    }
}

/// The nearest-rank percentile in milliseconds; `None` counts as infinite.
pub(super) fn percentile(times: &[Option<Duration>], percent: usize) -> Option<u64> {
    let mut times: Vec<Duration> = times.iter().map(|time| time.unwrap_or(Duration::MAX)).collect();
    times.sort_unstable();
    let rank = (times.len() * percent).div_ceil(100).checked_sub(1)?;
    times.get(rank).filter(|time| **time != Duration::MAX).map(|time| time.as_millis() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(direct: Option<u64>, first_byte: Option<u64>) -> Outcome {
        let [direct, first_byte] = [direct, first_byte].map(|ms| ms.map(Duration::from_millis));
        Outcome { direct, first_byte, ..Outcome::default() }
    }

    #[test]
    fn a_failed_run_counts_as_infinite_where_all_must_be_direct() {
        let mut outcomes: Vec<_> = (1..=99).map(|ms| outcome(Some(ms), Some(1))).collect();
        outcomes.push(outcome(None, None));
        let row = Row::of(Kind::Open, Kind::Open, &outcomes);
        assert_eq!((row.p50_ms, row.p99_ms, row.relay_p99_ms), (Some(50), Some(99), Some(1)));
        outcomes.push(outcome(None, Some(7)));
        let row = Row::of(Kind::Open, Kind::Open, &outcomes);
        assert_eq!((row.direct, row.relayed, row.failed), (99, 1, 1));
        assert_eq!((row.p50_ms, row.p99_ms, row.relay_p99_ms), (Some(51), None, Some(7)));
        let row = Row::of(Kind::PortRestricted, Kind::SymmetricRandom, &outcomes);
        assert_eq!((row.p50_ms, row.p99_ms), (Some(50), Some(99)));
        assert!(!row.shortfalls().is_empty());
    }

    #[test]
    fn seeds_of_runs_differ_and_do_not_depend_on_each_other() {
        let seeds = |seed| (0..100).map(move |run| seed_of(seed, Kind::Open, Kind::FullCone, run));
        let mut all: Vec<u64> = seeds(1).chain(seeds(2)).collect();
        all.push(seed_of(1, Kind::FullCone, Kind::Open, 0));
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 201);
    }

    #[test]
    fn what_a_relay_carries_is_not_direct_and_nobody_guesses_where_that_is_vain() {
        let hard = Kind::SymmetricRandom;
        let mut rows = Vec::new();
        run(&Plan { runs: 5, seed: 1, pairs: vec![(hard, hard)], jobs: 1 }, |row| rows.push(row.clone())).unwrap();
        let [row] = &rows[..] else { panic!("{rows:?}") };
        assert_eq!((row.direct, row.relayed, row.failed, row.probes_max), (0, 5, 0, 0), "{row:?}");
        assert_eq!((row.p50_ms, row.relay_p99_ms.is_some()), (None, true));
    }

    #[test]
    fn rows_do_not_depend_on_the_number_of_threads() {
        let row = |jobs| {
            let plan = Plan { runs: 6, seed: 1, pairs: vec![(Kind::PortRestricted, Kind::SymmetricSequential)], jobs };
            let mut rows = Vec::new();
            run(&plan, |row| rows.push(row.clone())).unwrap();
            rows.pop().unwrap()
        };
        let (one, three) = (row(1), row(3));
        assert_eq!(one.runs, 6);
        assert_eq!(format!("{one:?}"), format!("{three:?}"));
    }
}
