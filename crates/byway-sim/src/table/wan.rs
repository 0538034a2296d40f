//! How fast bulk goes over bad lines, with the shipping defaults, beside bare quinn with its own.
//!
//! Each run is a world of its own: two hosts with one bottleneck between them, and a flow from one to the other over one
//! channel. A flow alone is timed from its first byte until all that it was to transfer has arrived; flows that share the
//! line, while both run. What waits at the bottleneck is read every millisecond.

mod case;
mod flow;

use std::{fmt, time::Duration};

use byway::{BindError, DialError};
use serde::Serialize;
use tokio::time::{self, Instant};

pub use self::case::{Case, UnknownCase};
use self::{case::Beside, flow::Flow};
use super::in_threads;
pub use crate::bare::BareError;
use crate::{Host, World};

/// A flow alone that has not transferred everything by then is judged by what has arrived.
const LIMIT: Duration = Duration::from_secs(300);

/// How long a flow runs beside CUBIC.
const SHARED: Duration = Duration::from_secs(60);

/// When the second of two flows of ours begins, and from when until when after that both are measured.
const SECOND: (Duration, Duration, Duration) =
    (Duration::from_secs(5), Duration::from_secs(20), Duration::from_secs(50));

/// How often the queue is read: the simulated clock's tick.
const TICK: Duration = Duration::from_millis(1);

/// What to measure.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Runs a case, each with a seed of its own.
    pub runs: u64,
    /// The first run's seed; the others follow it.
    pub seed: u64,
    /// The lines.
    pub cases: Vec<Case>,
    /// Threads that share the runs; rows do not depend on it.
    pub jobs: usize,
}

/// What the runs on one line came to: medians.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// The line.
    pub case: Case,
    /// What arrived at the application, in Mbit/s.
    pub mbit_s: f64,
    /// The same for bare quinn; `None` where flows share the line.
    pub bare_mbit_s: Option<f64>,
    /// The same for the flow beside ours; `None` where there is none.
    pub other_mbit_s: Option<f64>,
    /// The mean round-trip time of the line, its queue included, while ours ran.
    pub srtt_mean_ms: f64,
    /// The 99th percentile of the time that a packet had to wait at the bottleneck.
    pub queue_p99_ms: f64,
}

/// Why a line was not measured.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WanError {
    /// A node did not start.
    #[error("a node did not start: {0}")]
    Bind(#[from] BindError),
    /// A dial failed.
    #[error("a dial failed: {0}")]
    Dial(#[from] DialError),
    /// Bare QUIC failed.
    #[error("{0}")]
    Bare(#[from] BareError),
}

/// Who sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stack {
    Byway,
    Bare,
}

/// What one run came to.
#[derive(Debug, Clone, Default)]
struct Outcome {
    mbit_s: f64,
    other_mbit_s: f64,
    srtt_mean_ms: f64,
    queue_p99_ms: f64,
}

/// Measures the lines of `plan` in order and hands each row to `row` as soon as it is complete.
///
/// # Errors
///
/// If a node does not start, or does not reach the other.
pub fn run(plan: &Plan, mut row: impl FnMut(&Row)) -> Result<(), WanError> {
    for case in &plan.cases {
        let stacks: &[Stack] =
            if case.beside == Beside::Nobody { &[Stack::Byway, Stack::Bare] } else { &[Stack::Byway] };
        let runs: Vec<_> = (0..plan.runs).flat_map(|run| stacks.iter().map(move |stack| (*stack, run))).collect();
        let outcomes = measure_all(plan, *case, &runs)?;
        let of = |stack| outcomes.iter().filter(move |(of, _)| *of == stack).map(|(_, outcome)| outcome.clone());
        row(&Row::of(*case, &of(Stack::Byway).collect::<Vec<_>>(), &of(Stack::Bare).collect::<Vec<_>>()));
    }
    Ok(())
}

/// The outcomes of all runs on one line.
fn measure_all(plan: &Plan, case: Case, runs: &[(Stack, u64)]) -> Result<Vec<(Stack, Outcome)>, WanError> {
    in_threads(plan.jobs, runs.len() as u64, |number| {
        let (stack, run) = runs[number as usize];
        let seed = plan.seed.wrapping_add(run);
        Ok((stack, World::run(seed, |world| async move { measure(&world, case, stack).await })?))
    })
}

async fn measure(world: &World, case: Case, stack: Stack) -> Result<Outcome, WanError> {
    let hosts = case.hosts(world);
    let mut first = match stack {
        Stack::Byway => Flow::byway(world, &hosts, "first").await?,
        Stack::Bare => Flow::bare(world, &hosts, "first").await?,
    };
    let mut second = match case.beside {
        Beside::Nobody => None,
        Beside::Cubic => Some(Flow::bare(world, &hosts, "second").await?),
        Beside::Byway => Some(Flow::byway(world, &hosts, "second").await?),
    };
    let mut line = Watch::new(case, &hosts[0]);
    first.start();
    let Some(second) = &mut second else {
        let took = line.until(LIMIT, || first.arrived() >= case.bytes()).await;
        return Ok(line.outcome(rate(first.arrived(), took), 0.0));
    };
    let mut warm_up = Duration::ZERO;
    let mut measured = SHARED;
    if case.beside == Beside::Byway {
        line.until(SECOND.0, || false).await;
        (warm_up, measured) = (SECOND.1, SECOND.2 - SECOND.1);
    }
    second.start();
    line.until(warm_up, || false).await;
    let before = (first.arrived(), second.arrived());
    let took = line.until(measured, || false).await;
    let mbit_s = [first.arrived() - before.0, second.arrived() - before.1].map(|bytes| rate(bytes, took));
    Ok(line.outcome(mbit_s[0], mbit_s[1]))
}

/// Reads the queue of the bottleneck while time passes.
struct Watch {
    case: Case,
    sender: Host,
    waits: Vec<Duration>,
}

impl Watch {
    fn new(case: Case, sender: &Host) -> Self {
        Watch { case, sender: sender.clone(), waits: Vec::new() }
    }

    /// Watches for `limit`, or until `done`; how long that took.
    async fn until(&mut self, limit: Duration, done: impl Fn() -> bool) -> Duration {
        let start = Instant::now();
        while start.elapsed() < limit && !done() {
            time::sleep(TICK).await;
            self.waits.push(self.case.queueing(self.sender.backlog()));
        }
        start.elapsed()
    }

    fn outcome(mut self, mbit_s: f64, other_mbit_s: f64) -> Outcome {
        let in_ms = |time: Duration| time.as_secs_f64() * 1_000.0;
        let mean = in_ms(self.waits.iter().sum()) / self.waits.len().max(1) as f64;
        self.waits.sort_unstable();
        let p99 = self.waits.get(self.waits.len() * 99 / 100).copied().unwrap_or_default();
        Outcome { mbit_s, other_mbit_s, srtt_mean_ms: in_ms(self.case.idle_rtt()) + mean, queue_p99_ms: in_ms(p99) }
    }
}

/// Mbit/s.
fn rate(bytes: u64, time: Duration) -> f64 {
    bytes as f64 * 8.0 / 1e6 / time.as_secs_f64().max(1e-9)
}

impl Row {
    fn of(case: Case, byway: &[Outcome], bare: &[Outcome]) -> Self {
        let mid = |outcomes: &[Outcome], figure: fn(&Outcome) -> f64| {
            let mut figures: Vec<f64> = outcomes.iter().map(figure).collect();
            figures.sort_by(f64::total_cmp);
            figures.get(figures.len() / 2).map_or(0.0, |figure| (figure * 10.0).round() / 10.0)
        };
        let alone = case.beside == Beside::Nobody;
        Row {
            case,
            mbit_s: mid(byway, |outcome| outcome.mbit_s),
            bare_mbit_s: alone.then(|| mid(bare, |outcome| outcome.mbit_s)),
            other_mbit_s: (!alone).then(|| mid(byway, |outcome| outcome.other_mbit_s)),
            srtt_mean_ms: mid(byway, |outcome| outcome.srtt_mean_ms),
            queue_p99_ms: mid(byway, |outcome| outcome.queue_p99_ms),
        }
    }

    /// In what the row falls short of its gate; empty if it does not.
    pub fn shortfalls(&self) -> Vec<String> {
        self.case.shortfalls(self)
    }

    /// The heading of [`Row`]'s lines, plain and as Markdown.
    pub fn heading(markdown: bool) -> String {
        let columns = ["Mbit/s", "bare quinn", "other", "mean RTT ms", "queue p99 ms"];
        if markdown {
            let rule = "---|".repeat(columns.len() + 2);
            return format!("| case | {} | gate |\n|{rule}", columns.join(" | "));
        }
        let columns: String = columns.iter().map(|name| format!(" {name:>12}")).collect();
        format!("{:<15}{columns}  gate", "case")
    }

    /// The row as a line of Markdown.
    pub fn to_markdown(&self) -> String {
        format!("| {} | {} | {} |", self.case, self.figures().join(" | "), self.judgement())
    }

    fn figures(&self) -> [String; 5] {
        let figures =
            [Some(self.mbit_s), self.bare_mbit_s, self.other_mbit_s, Some(self.srtt_mean_ms), Some(self.queue_p99_ms)];
        figures.map(|figure| figure.map_or_else(|| "–".to_owned(), |figure| format!("{figure:.1}")))
    }

    fn judgement(&self) -> String {
        let shortfalls = self.shortfalls();
        if shortfalls.is_empty() { "pass".into() } else { format!("falls short: {}", shortfalls.join(", ")) }
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<15}", self.case.name())?;
        self.figures().iter().try_for_each(|figure| write!(f, " {figure:>12}"))?;
        write!(f, "  {}", self.judgement())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_the_median_of_its_runs() {
        let outcomes = [90.0, 10.0, 80.0].map(|mbit_s| Outcome { mbit_s, ..Outcome::default() });
        let row = Row::of(Case::ALL[0], &outcomes, &outcomes[..1]);
        assert_eq!((row.mbit_s, row.bare_mbit_s, row.other_mbit_s), (80.0, Some(90.0), None));
    }

    #[test]
    fn rows_have_the_fields_of_the_gate() {
        let json = serde_json::to_value(Row::of(Case::ALL[9], &[], &[])).unwrap();
        let fields: Vec<_> = json.as_object().unwrap().keys().cloned().collect();
        assert_eq!(fields.len(), 6);
        assert_eq!(json["case"], "vs-cubic-100");
        assert!(json["bare_mbit_s"].is_null() && json["other_mbit_s"].is_number());
    }
}
