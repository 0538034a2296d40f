//! How a connection survives its paths: what applications saw while routes died, came back, got worse or better.
//!
//! Each run is a world of its own: two nodes on the standard network, each behind an access link of 25 ms, 20 Mbit/s, 100 ms
//! of queue and 1 % loss each way, and a relay in the core. Once they are connected and their surveys are done, a byte
//! stream, a channel of numbered datagrams and a TCP connection through the tunnel run at once, all in both directions;
//! every byte is checked. Deaths are silent. Traffic is *up* from a to b.
//!
//! | case | streams (datagrams and TCP: 64 bytes every 20 ms each way) | what happens |
//! |---|---|---|
//! | `death-up`, `death-down`, `death-both` | as much as goes up, down, both ways; 64 bytes every 20 ms the other way | the direct path dies, both ways |
//! | `death-pingpong` | 64 bytes each way in turns, the other flows too | the same |
//! | `one-way-up`, `one-way-down` | as much as goes up | the direct path dies upwards, downwards |
//! | `mapping-lost` | as much as goes both ways | both are at home; a's router forgets all mappings, the relay's too, and makes others |
//! | `relay-death` | both ways | no direct path, two relays: the one in use dies |
//! | `blackout` | both ways | a is cut off for 20 s, then either the relay or the direct path is back; counts from there |
//! | `only-relay-restarts` | both ways | no direct path; the relay is killed and started anew at the same address |
//! | `idle-death` | 64 bytes each way, once | after 20 s without a word the direct path dies; up to 20 s later all flows speak, and from there it counts |
//! | `network-change` | both ways | b is at home, a's address becomes another one |
//! | `no-death-…` | both ways; `-idle` 64 bytes every 7 s | nothing for ten minutes: 1 % and 3 % loss, 5 ms of jitter with reordering, a queue of 1 s, loss in spells of 20 packets (1 %) |
//! | `flap` | up | for ten minutes the direct path loses 17 % of its packets in spells of 20, each direction by itself |
//! | `upgrade` | up | a relay of 100 ms and 20 Mbit/s; then a direct path of 10 ms and 100 Mbit/s opens |
//! | `downgrade` | up | the direct path of the same network dies |
//! | `mtu` | up | the direct path dies; the relay carries IP packets of 1,280 bytes |
//!
//! The stall of a run is the longest gap that any of the six receivers saw from the event on. `settle_ms` runs from a's
//! switch to the end of the first 50 ms in which the new line carries 90 % of what it carries in the end; a line of which
//! less than 75 % is used in the end counts as never filled. Copies are recognised on the wire.
//!
//! **Datagrams.** One that arrives twice is an error. `lost_datagrams` must not exceed what the outages and the lines explain:
//! of each direction of each run all that were sent during its longest gap, or up to 250 ms before it, for so long a datagram
//! may be on its way; and of the other *n* those that links lose with probability *p* (1.99 % with two links of 1 %), a quarter
//! more for full queues, and four standard deviations: 1.25 *n p* + 4 √(*n p*). Where nothing dies there is no gap. Who asks in
//! turns asks again after 200 ms without an answer; the one datagram of `idle-death` counts for the stall only if it arrives.
//!
//! **False switches.** Where nothing dies every switch is for nothing. It counts if it cost more than 100 ms: if the longest gap
//! that any of the six receivers saw between a second before and a second after it, or that began or ended there, is longer by so
//! much than that receiver's gaps are as a rule, which is the median of the longest in each two seconds of the run.
//!
//! **Bare.** `--stack bare` plays the same with one connection of bare quinn and its defaults on the direct path, b without a
//! router, and a second stream in the place of the TCP connection. A stall is infinite where the connection is lost; cases
//! about relays, another path or hedging have no figures.

mod case;
mod datagrams;
mod flow;
mod gate;
mod run;
mod scene;
mod wire;

use std::{
    fmt, io,
    str::FromStr,
    sync::{Mutex, PoisonError, mpsc},
    thread,
    time::Duration,
};

use byway::BindError;
use serde::Serialize;

use self::run::Outcome;
pub use self::{
    case::{Case, UnknownCase},
    gate::Gate,
};
use super::matrix::percentile;
pub use crate::bare::BareError;
use crate::noise::Noise;

/// What to measure.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Runs a case; long cases have one.
    pub runs: u64,
    /// What all runs follow from.
    pub seed: u64,
    /// The cases, in the order of their rows.
    pub cases: Vec<Case>,
    /// What is measured.
    pub stack: Stack,
    /// Threads that share the runs; rows do not depend on it.
    pub jobs: usize,
}

/// What is measured.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Stack {
    /// The shipping node.
    #[default]
    Byway,
    /// Bare quinn, on one route.
    Bare,
}

impl FromStr for Stack {
    type Err = UnknownStack;

    fn from_str(name: &str) -> Result<Self, UnknownStack> {
        match name {
            "byway" => Ok(Stack::Byway),
            "bare" => Ok(Stack::Bare),
            _ => Err(UnknownStack(name.to_owned())),
        }
    }
}

/// A name that no stack has.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no stack is called `{0}`; choose `byway` or `bare`")]
pub struct UnknownStack(String);

/// Why nothing was measured.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FailoverError {
    /// A node did not start.
    #[error("a node did not start: {0}")]
    Bind(#[from] BindError),
    /// A flow did not begin.
    #[error("a flow did not begin: {0}")]
    Flow(String),
    /// A TCP connection on one host, or a socket, did not come to be.
    #[error("a socket or a TCP connection within a host failed: {0}")]
    Tcp(#[from] io::Error),
    /// Bare QUIC did not connect.
    #[error(transparent)]
    Bare(#[from] BareError),
}

/// What the runs of one case came to; `None` where a figure does not apply, or is infinite.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// The case.
    pub case: Case,
    /// What was measured.
    pub stack: Stack,
    /// Runs.
    pub runs: u64,
    /// The stall in milliseconds: the median.
    pub p50_ms: Option<u64>,
    /// The 99th percentile.
    pub p99_ms: Option<u64>,
    /// Bytes of streams that never arrived.
    pub lost_bytes: Option<u64>,
    /// Bytes of streams that arrived twice.
    pub duplicated_bytes: Option<u64>,
    /// Datagrams that never arrived.
    pub lost_datagrams: Option<Lost>,
    /// Errors that applications saw, datagrams that arrived twice among them.
    pub errors: Option<u64>,
    /// Runs in which the connection ended, or never came to be.
    pub lost_connections: Option<u64>,
    /// Switches for nothing that cost somebody more than 100 ms, of the side that made more of them.
    pub false_switches: Option<u64>,
    /// The share of copies in the bytes sent, in percent.
    pub copied_pct: Option<f64>,
    /// What applications received, in percent of the same run without hedging.
    pub goodput_pct: Option<f64>,
    /// Switches a minute, of the side that made more.
    pub switches_per_min: Option<f64>,
    /// How soon the new line was filled, in milliseconds: the 99th percentile.
    pub settle_ms: Option<u64>,
}

/// Datagrams that never arrived; in rows their number alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(into = "u64")]
pub struct Lost {
    /// How many.
    pub count: u64,
    /// How many may be lost for a reason; [the module](self) gives the rule.
    pub explained: u64,
}

impl From<Lost> for u64 {
    fn from(lost: Lost) -> u64 {
        lost.count
    }
}

/// One piece of work: a run of a case, with its hedges or without.
#[derive(Debug, Clone, Copy)]
struct Item {
    place: usize,
    case: Case,
    run: u64,
    hedging: bool,
}

/// What became of it.
type Done = (Item, Result<Outcome, FailoverError>);

/// Measures the cases of `plan` and hands each row to `row` as soon as it, and all before it, are complete.
///
/// # Errors
///
/// If a run could not begin.
pub fn run(plan: &Plan, mut row: impl FnMut(&Row)) -> Result<(), FailoverError> {
    let items: Vec<Item> = plan.cases.iter().enumerate().flat_map(|(place, case)| items(plan, place, *case)).collect();
    let total: Vec<usize> =
        (0..plan.cases.len()).map(|place| items.iter().filter(|item| item.place == place).count()).collect();
    let queue = Mutex::new(items.into_iter());
    let (done, results) = mpsc::channel::<Done>();
    thread::scope(|scope| {
        for _ in 0..plan.jobs.max(1) {
            let (done, queue, seed, stack) = (done.clone(), &queue, plan.seed, plan.stack);
            scope.spawn(move || {
                let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).next();
                while let Some(item) = next() {
                    let outcome = run::run(item.case, stack, seed_of(seed, item.case, item.run), item.hedging);
                    if done.send((item, outcome)).is_err() {
                        return; // an earlier run failed
                    }
                }
            });
        }
        drop(done);
        let mut outcomes: Vec<Vec<(Item, Outcome)>> = vec![Vec::new(); plan.cases.len()];
        let mut told = 0;
        let mut tell = |outcomes: &mut [Vec<(Item, Outcome)>]| {
            while let Some(complete) = outcomes.get_mut(told).filter(|part| part.len() == total[told]) {
                complete.sort_by_key(|(item, _)| (!item.hedging, item.run));
                row(&Row::of(plan.cases[told], plan.stack, complete));
                told += 1;
            }
        };
        tell(&mut outcomes); // a case without runs is complete
        for (item, outcome) in results {
            outcomes[item.place].push((item, outcome?));
            tell(&mut outcomes);
        }
        Ok(())
    })
}

fn items(plan: &Plan, place: usize, case: Case) -> Vec<Item> {
    let runs = match plan.stack {
        Stack::Bare if !case.has_bare() => 0,
        _ if case.is_long() => 1,
        _ => plan.runs,
    };
    let with = (0..runs).map(|run| Item { place, case, run, hedging: true });
    let without =
        (case.is_quiet() && plan.stack == Stack::Byway).then_some(Item { place, case, run: 0, hedging: false });
    with.chain(without).collect()
}

/// A seed for each run, which does not depend on which others are made.
fn seed_of(seed: u64, case: Case, run: u64) -> u64 {
    [0xfa11 + case as u64, run].into_iter().fold(seed, |seed, part| Noise::new(seed).next() ^ part)
}

impl Row {
    fn of(case: Case, stack: Stack, outcomes: &[(Item, Outcome)]) -> Self {
        let with: Vec<&Outcome> =
            outcomes.iter().filter(|(item, _)| item.hedging).map(|(_, outcome)| outcome).collect();
        let without = outcomes.iter().find(|(item, _)| !item.hedging).map(|(_, outcome)| outcome);
        let sum = |figure: fn(&Outcome) -> u64| with.iter().map(|outcome| figure(outcome)).sum::<u64>();
        let stalls: Vec<Option<Duration>> = with.iter().map(|outcome| outcome.stall).collect();
        let settles: Vec<Option<Duration>> = with.iter().map(|outcome| outcome.settle).collect();
        let ratio = |part: f64, whole: f64| (part / whole.max(f64::MIN_POSITIVE) * 100.0).round() / 100.0;
        let minutes = with.iter().map(|outcome| outcome.lasted.as_secs_f64() / 60.0).sum::<f64>();
        let is_byway = stack == Stack::Byway;
        let quiet = |figure: f64| (case.is_quiet() && is_byway).then_some(figure);
        let told = |figure: u64| (!with.is_empty()).then_some(figure);
        Row {
            case,
            stack,
            runs: with.len() as u64,
            p50_ms: percentile(&stalls, 50).filter(|_| !case.is_long()),
            p99_ms: percentile(&stalls, 99).filter(|_| !case.is_long()),
            lost_bytes: told(sum(|outcome| outcome.lost_bytes)),
            duplicated_bytes: told(sum(|outcome| outcome.duplicated_bytes)),
            lost_datagrams: told(sum(|outcome| outcome.lost_datagrams)).map(|count| Lost {
                count,
                explained: explained(
                    sum(|outcome| outcome.datagrams.0),
                    sum(|outcome| outcome.datagrams.1),
                    case.path_loss(),
                ),
            }),
            errors: told(sum(|outcome| outcome.errors)),
            lost_connections: told(sum(|outcome| outcome.lost_connections)),
            false_switches: (case.is_quiet() && is_byway).then(|| sum(|outcome| outcome.costly)),
            copied_pct: quiet(ratio(with.iter().map(|outcome| outcome.copied_pct).sum(), with.len() as f64)),
            goodput_pct: without
                .map(|without| ratio(100.0 * sum(|outcome| outcome.received) as f64, without.received as f64)),
            switches_per_min: (case == Case::Flap && is_byway)
                .then(|| ratio(sum(|outcome| outcome.switches) as f64, minutes)),
            settle_ms: percentile(&settles, 99).filter(|_| case.settles()),
        }
    }

    /// In what the row falls short of its gate; empty if it does not, or if it is for comparison only.
    pub fn shortfalls(&self) -> Vec<String> {
        self.shortfalls_with(1)
    }

    /// What even a few runs must not show: anything lost, doubled or in error, and stalls of twice the gate.
    pub fn breaches(&self) -> Vec<String> {
        self.shortfalls_with(2)
    }

    fn shortfalls_with(&self, leave: u64) -> Vec<String> {
        if self.stack == Stack::Byway { Gate::of(self.case).shortfalls(self, leave) } else { Vec::new() }
    }

    /// Datagrams that neither an outage nor the loss of the links explains.
    fn unexplained_datagrams(&self) -> Option<u64> {
        self.lost_datagrams.map(|lost| lost.count.saturating_sub(lost.explained))
    }

    /// The heading of [`Row`]'s lines, plain and as Markdown.
    pub fn heading(markdown: bool) -> String {
        let columns = [
            "p50",
            "p99",
            "lost",
            "doubled",
            "datagrams",
            "errors",
            "ended",
            "false",
            "copied %",
            "goodput %",
            "per min",
            "settle",
        ];
        if markdown {
            let rule = "---|".repeat(columns.len() + 3);
            return format!("| case | runs | {} | gate |\n|{rule}", columns.join(" | "));
        }
        let numbers: String = columns.iter().map(|name| format!(" {name:>9}")).collect();
        format!("{:<20} {:>5}{numbers}  gate", "case", "runs")
    }

    /// The row as a line of Markdown.
    pub fn to_markdown(&self) -> String {
        format!("| {} | {} | {} | {} |", self.case, self.runs, self.figures().join(" | "), self.judgement())
    }

    fn figures(&self) -> [String; 12] {
        fn told<T: fmt::Display>(figure: Option<T>) -> String {
            figure.map_or_else(|| "–".to_owned(), |figure| figure.to_string())
        }
        [
            told(self.p50_ms),
            told(self.p99_ms),
            told(self.lost_bytes),
            told(self.duplicated_bytes),
            told(self.lost_datagrams.map(|lost| lost.count)),
            told(self.errors),
            told(self.lost_connections),
            told(self.false_switches),
            told(self.copied_pct),
            told(self.goodput_pct),
            told(self.switches_per_min),
            told(self.settle_ms),
        ]
    }

    fn judgement(&self) -> String {
        if self.stack != Stack::Byway {
            return "–".into();
        }
        let shortfalls = self.shortfalls();
        if shortfalls.is_empty() { "pass".into() } else { format!("falls short: {}", shortfalls.join(", ")) }
    }
}

/// How many datagrams an outage and lossy links explain; [the module](self) gives the rule.
fn explained(in_outages: u64, others: u64, loss: f64) -> u64 {
    let expected = others as f64 * loss;
    in_outages + (1.25 * expected + 4.0 * expected.sqrt()).ceil() as u64
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<20} {:>5}", self.case.name(), self.runs)?;
        self.figures().iter().try_for_each(|figure| write!(f, " {figure:>9}"))?;
        write!(f, "  {}", self.judgement())
    }
}

#[cfg(test)]
mod tests;
