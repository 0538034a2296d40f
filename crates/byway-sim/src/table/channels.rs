//! Channels beside each other: what each gets of the line, and what one costs the others.
//!
//! Two nodes on a line of 100 Mbit/s and 20 ms of round trip, with a queue of 20 or 100 ms and no loss, or 1 % each way. All
//! figures are the receiving application's. A ratio is the 99th percentile of the time that messages of 100 bytes take, to the
//! same on an idle line; one goes out every 10 ms.
//!
//! | case | value |
//! |---|---|
//! | `shares-1-2-7` | three channels with these weights that are never empty: the largest error of a share in percent of it |
//! | `bulk` | Mbit/s of one channel |
//! | `control-p99` | the ratio of a control channel beside a bulk channel that is never empty |
//! | `stalled-reader` | the ratio of a second channel of the same class while nobody reads the first one for 60 s |
//! | `panicking-handler` | the same while the first one's receiver is lost to a panic, and its sender goes on |
//! | `flooding-peer` | the ratio of messages of 2,000 bytes of 99 peers while a hundredth sends to the same receiver more than that can take, 16,000 messages a second |
//! | `register-under-load` | the ratio of a control channel beside bulk, while both nodes register and unregister another protocol ten times a second |
//! | `slow-reader` | the ratio of a second channel of the same class while the first one, which is never empty, has a reader that takes 20 ms for each message of 64 KiB |

mod play;

use std::{fmt, str::FromStr, time::Duration};

use byway::BindError;
use serde::Serialize;

use super::in_threads;
use crate::noise::Noise;

/// What to measure.
#[derive(Debug, Clone)]
pub struct Plan {
    /// What all runs follow from.
    pub seed: u64,
    /// The cases, in the order of their rows.
    pub cases: Vec<Case>,
    /// Threads that share the runs; rows do not depend on it.
    pub jobs: usize,
}

/// Why nothing was measured.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ChannelsError {
    /// A node did not start.
    #[error("a node did not start: {0}")]
    Bind(#[from] BindError),
    /// A node did not reach another one.
    #[error("no connection: {0}")]
    Dial(#[from] byway::DialError),
}

/// What one channel does to others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scenario {
    Shares,
    Bulk,
    Control,
    StalledReader,
    PanickingHandler,
    FloodingPeer,
    RegisterUnderLoad,
    SlowReader,
}

/// A scenario on a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Case {
    scenario: Scenario,
    queue: Duration,
    lossy: bool,
}

/// One figure, and whether it is good enough.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// The case.
    pub case: String,
    /// The share's largest error in percent, Mbit/s, or the ratio to the idle line.
    pub value: f64,
    /// What it has to reach: Mbit/s at least this, the others at most.
    pub gate: f64,
    /// Whether it does.
    pub pass: bool,
}

/// Measures the cases of `plan`, and hands each row to `row`.
///
/// # Errors
///
/// If the nodes of a run did not connect.
pub fn run(plan: &Plan, row: impl FnMut(&Row)) -> Result<(), ChannelsError> {
    let measure = |number: u64| -> Result<(u64, Row), ChannelsError> {
        let case = plan.cases[number as usize];
        let place = Case::all().iter().position(|one| *one == case).unwrap_or(0);
        let seed = Noise::new(plan.seed ^ (0xc4a2 + place as u64)).next();
        Ok((number, Row::of(case, play::play(case, seed)?)))
    };
    let mut rows = in_threads(plan.jobs, plan.cases.len() as u64, measure)?;
    rows.sort_by_key(|(number, _)| *number);
    rows.iter().map(|(_, row)| row).for_each(row);
    Ok(())
}

impl Scenario {
    const ALL: [Scenario; 8] = [
        Scenario::Shares,
        Scenario::Bulk,
        Scenario::Control,
        Scenario::StalledReader,
        Scenario::PanickingHandler,
        Scenario::FloodingPeer,
        Scenario::RegisterUnderLoad,
        Scenario::SlowReader,
    ];

    fn name(self) -> &'static str {
        match self {
            Scenario::Shares => "shares-1-2-7",
            Scenario::Bulk => "bulk",
            Scenario::Control => "control-p99",
            Scenario::StalledReader => "stalled-reader",
            Scenario::PanickingHandler => "panicking-handler",
            Scenario::FloodingPeer => "flooding-peer",
            Scenario::RegisterUnderLoad => "register-under-load",
            Scenario::SlowReader => "slow-reader",
        }
    }
}

impl Case {
    /// All cases, in the order of the table.
    pub fn all() -> Vec<Case> {
        let lines = [(20, false), (20, true), (100, false), (100, true)];
        let on_all =
            |scenario| lines.map(|(queue, lossy)| Case { scenario, queue: Duration::from_millis(queue), lossy });
        Scenario::ALL.into_iter().flat_map(on_all).collect()
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (queue, loss) = (self.queue.as_millis(), u8::from(self.lossy));
        write!(f, "{}-q{queue}-loss-{loss}", self.scenario.name())
    }
}

impl FromStr for Case {
    type Err = UnknownCase;

    fn from_str(name: &str) -> Result<Self, UnknownCase> {
        Case::all().into_iter().find(|case| case.to_string() == name).ok_or_else(|| UnknownCase(name.to_owned()))
    }
}

/// A name that no case has.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no case is called `{0}`; they are NAME-qQUEUE-loss-PERCENT, such as bulk-q20-loss-1")]
pub struct UnknownCase(String);

impl Row {
    fn of(case: Case, value: f64) -> Self {
        let gate = match case.scenario {
            Scenario::Shares => 5.0,
            Scenario::Bulk => 85.0,
            _ => 2.0,
        };
        let pass = if case.scenario == Scenario::Bulk { value >= gate } else { value <= gate };
        Row { case: case.to_string(), value: (value * 100.0).round() / 100.0, gate, pass }
    }

    /// The heading of [`Row`]'s lines, plain and as Markdown.
    pub fn heading(markdown: bool) -> String {
        if markdown {
            return "| case | value | gate | |\n|---|---|---|---|".into();
        }
        format!("{:<36} {:>8} {:>6}", "case", "value", "gate")
    }

    /// The row as a line of Markdown.
    pub fn to_markdown(&self) -> String {
        format!("| {} | {} | {} | {} |", self.case, self.value, self.gate, self.judgement())
    }

    fn judgement(&self) -> &'static str {
        if self.pass { "pass" } else { "falls short" }
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<36} {:>8} {:>6}  {}", self.case, self.value, self.gate, self.judgement())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_have_the_names_and_fields_of_the_gate() {
        let cases = Case::all();
        assert_eq!(cases.len(), 32);
        for case in &cases {
            assert_eq!(case.to_string().parse(), Ok(*case));
        }
        let row = serde_json::to_value(Row::of(cases[3], 5.004)).unwrap();
        assert_eq!(
            row,
            serde_json::json!({
                "case": "shares-1-2-7-q100-loss-1", "value": 5.0, "gate": 5.0, "pass": false
            })
        );
        assert!(Row::of(cases[4], 85.0).pass && !Row::of(cases[4], 84.9).pass);
    }

    fn passes(case: &str) {
        let mut rows = Vec::new();
        let cases = vec![case.parse().unwrap()];
        run(&Plan { seed: 1, cases, jobs: 1 }, |row| rows.push(row.clone())).unwrap();
        assert!(rows[0].pass, "{rows:?}");
    }

    #[test]
    fn the_least_weight_gets_its_share_and_no_more() {
        passes("shares-1-2-7-q20-loss-1");
    }

    #[test]
    fn a_reader_that_takes_20_ms_for_each_64_kib_costs_another_channel_nothing() {
        passes("slow-reader-q20-loss-0");
    }

    #[test]
    fn a_panicking_handler_costs_another_channel_nothing() {
        passes("panicking-handler-q20-loss-0");
    }
}
