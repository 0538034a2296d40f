//! The lines of the table, and what is asked of a flow on each.

use std::{fmt, str::FromStr, time::Duration};

use serde::{Serialize, Serializer};

use super::Row;
use crate::{Host, Link, Queue, World};

/// One line of the table: a bottleneck, and who shares it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Case {
    name: &'static str,
    /// The bottleneck's rate in Mbit/s.
    mbit_s: u64,
    /// Round-trip time without queue and jitter.
    rtt: Duration,
    /// What may wait at the bottleneck.
    queue: Duration,
    fault: Fault,
    pub(super) beside: Beside,
    /// What a run transfers, in MB.
    megabytes: u64,
    gate: Gate,
}

/// What is wrong with a line, in both directions.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fault {
    Nothing,
    /// Each packet is lost with this probability.
    Loss(f64),
    /// Spells of loss, by the probabilities that one begins and that it ends (Gilbert-Elliott).
    Burst(f64, f64),
    /// Each packet is late by up to this, and may be overtaken.
    Jitter(Duration),
}

/// Who uses the line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Beside {
    /// One flow, alone.
    Nobody,
    /// A flow of bare quinn, whose default is CUBIC, from the same moment on.
    Cubic,
    /// Another flow of Byway, begun 5 s later.
    Byway,
}

/// What a row must reach.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Gate {
    /// Mbit/s of every flow of ours, and of CUBIC beside it.
    mbit_s: f64,
    srtt_ms: Option<f64>,
}

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// The usual line: 100 Mbit/s, 50 ms, a queue of 100 ms; 100 MB.
const fn case(name: &'static str, fault: Fault, mbit_s: f64) -> Case {
    let gate = Gate { mbit_s, srtt_ms: None };
    Case { name, mbit_s: 100, rtt: ms(50), queue: ms(100), fault, beside: Beside::Nobody, megabytes: 100, gate }
}

const fn queue(name: &'static str, queue: Duration, beside: Beside, mbit_s: f64) -> Case {
    Case { queue, beside, ..case(name, Fault::Nothing, mbit_s) }
}

const fn fast(name: &'static str, line: u64, fault: Fault, mbit_s: f64) -> Case {
    Case { mbit_s: line, rtt: ms(63), megabytes: line, ..case(name, fault, mbit_s) }
}

impl Case {
    /// All cases, in the order of the table.
    pub const ALL: [Case; 16] = [
        case("clean", Fault::Nothing, 85.0),
        case("loss-1", Fault::Loss(0.01), 85.0),
        case("loss-3", Fault::Loss(0.03), 80.0),
        case("burst", Fault::Burst(0.0005, 0.2), 85.0),
        case("jitter-0.5", Fault::Jitter(Duration::from_micros(500)), 85.0),
        case("jitter-2", Fault::Jitter(ms(2)), 85.0),
        case("jitter-5", Fault::Jitter(ms(5)), 80.0),
        queue("shallow", ms(10), Beside::Nobody, 80.0),
        Case { gate: Gate { mbit_s: 85.0, srtt_ms: Some(80.0) }, ..queue("bloat", ms(1_000), Beside::Nobody, 85.0) },
        queue("vs-cubic-100", ms(100), Beside::Cubic, 30.0),
        queue("vs-cubic-50", ms(50), Beside::Cubic, 30.0),
        queue("vs-cubic-25", ms(25), Beside::Cubic, 30.0),
        queue("two", ms(100), Beside::Byway, 45.0),
        fast("gbit", 1_000, Fault::Nothing, 800.0),
        fast("gbit-loss-1e-5", 1_000, Fault::Loss(1e-5), 800.0),
        fast("5gbit", 5_000, Fault::Nothing, 0.0),
    ];

    /// Its name in rows and on the command line.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Two hosts with the line between them; what the first sends meets the bottleneck.
    pub(super) fn hosts(&self, world: &World) -> [Host; 2] {
        let hosts = [world.host("sender"), world.host("receiver")];
        let lan = Link::lan().delay(self.rtt / 4);
        hosts[1].set_link(lan.clone());
        hosts[0].set_link(match self.fault {
            Fault::Nothing => lan,
            Fault::Loss(probability) => lan.loss(probability),
            Fault::Burst(begin, end) => lan.burst(begin, end),
            Fault::Jitter(most) => lan.jitter(most, true),
        });
        let (rate, queue) = (self.mbit_s * 1_000_000, Queue::Time(self.queue));
        hosts[0].edit_uplink(|link| *link = link.clone().rate(rate).queue(queue));
        hosts
    }

    /// Bytes that a run transfers.
    pub(super) fn bytes(&self) -> u64 {
        self.megabytes * 1_000_000
    }

    /// How long `bytes` take at the bottleneck.
    pub(super) fn queueing(&self, bytes: usize) -> Duration {
        Duration::from_nanos(bytes as u64 * 8_000 / self.mbit_s)
    }

    /// The mean round-trip time while the queue is empty.
    pub(super) fn idle_rtt(&self) -> Duration {
        match self.fault {
            Fault::Jitter(most) => self.rtt + most, // half of it each way
            _ => self.rtt,
        }
    }

    /// In what `row` falls short; empty if it does not.
    pub(super) fn shortfalls(&self, row: &Row) -> Vec<String> {
        let Gate { mbit_s, srtt_ms } = self.gate;
        let mut short = Vec::new();
        for (what, found) in [("mbit_s", Some(row.mbit_s)), ("other_mbit_s", row.other_mbit_s)] {
            if let Some(found) = found.filter(|found| *found < mbit_s) {
                short.push(format!("{what} {found:.1} < {mbit_s}"));
            }
        }
        if let Some(most) = srtt_ms.filter(|most| row.srtt_mean_ms > *most) {
            short.push(format!("srtt_mean_ms {:.1} > {most}", row.srtt_mean_ms));
        }
        short
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl Serialize for Case {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name)
    }
}

impl FromStr for Case {
    type Err = UnknownCase;

    fn from_str(name: &str) -> Result<Self, UnknownCase> {
        Case::ALL.into_iter().find(|case| case.name == name).ok_or_else(|| UnknownCase(name.to_owned()))
    }
}

/// A name that no case has.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no line is called `{0}`; choose from {known}", known = Case::ALL.map(|case| case.name).join(", "))]
pub struct UnknownCase(String);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_unknown_ones_are_refused() {
        for case in Case::ALL {
            assert_eq!(case.name.parse(), Ok(case));
        }
        assert!("loss-2".parse::<Case>().unwrap_err().to_string().contains("loss-1"));
    }

    #[test]
    fn a_row_is_held_to_both_flows_and_to_the_delay() {
        let row = Row { mbit_s: 29.0, other_mbit_s: Some(60.0), ..Row::of(Case::ALL[9], &[], &[]) };
        assert_eq!(row.shortfalls(), ["mbit_s 29.0 < 30"]);
        let row = Row { mbit_s: 40.0, other_mbit_s: Some(20.0), ..Row::of(Case::ALL[9], &[], &[]) };
        assert_eq!(row.shortfalls(), ["other_mbit_s 20.0 < 30"]);
        let bloat = Case::ALL[8];
        let row = Row { mbit_s: 90.0, srtt_mean_ms: 290.0, ..Row::of(bloat, &[], &[]) };
        assert_eq!(row.shortfalls(), ["srtt_mean_ms 290.0 > 80"]);
    }
}
