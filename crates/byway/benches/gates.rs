//! The benchmarks of the gates: Byway beside the bare libraries, over real loopback sockets, in one process.
//!
//! `cargo xtask bench [--only NAME] [--json]`. Each side of a connection has a thread and a current-thread runtime of its
//! own. The runs of all libraries take turns, so that a slow moment of the machine hits all of them; a row is the
//! median. Lost, doubled or reordered messages end the benchmark with a panic; a low ratio does not, for the machine may
//! be busy.

#![expect(clippy::print_stdout, reason = "rows go to stdout, progress to stderr")]

#[path = "gates/bare.rs"]
mod bare;
#[path = "gates/child.rs"]
mod child;
#[path = "gates/counting.rs"]
mod counting;
#[path = "gates/end.rs"]
mod end;
#[path = "gates/load.rs"]
mod load;
#[path = "gates/many.rs"]
mod many;
#[path = "gates/node.rs"]
mod node;
#[path = "gates/relay.rs"]
mod relay;
#[path = "gates/tls.rs"]
mod tls;

use std::{env, process::ExitCode, time::Duration};

use self::{
    bare::{noq::Noq, quinn::Quinn},
    end::{Figure, run},
    load::{Load, Work},
    node::Byway,
};

/// Runs of each library, of which the median counts.
const RUNS: usize = 5;

/// Runs of ping-pong: more and shorter, for its 99th percentile feels everything else that the machine does.
const PINGPONG_RUNS: usize = 15;

/// What there is to run.
const BENCHES: [Bench; 11] = [
    Bench { rows: &["bulk"], measure: bulk },
    Bench { rows: &["messages-64B"], measure: || messages("messages-64B", Load::messages(64, 4_000_000)) },
    Bench { rows: &["messages-1KiB"], measure: || messages("messages-1KiB", Load::messages(1 << 10, 500_000)) },
    Bench { rows: &["messages-64KiB"], measure: || messages("messages-64KiB", Load::messages(64 << 10, 10_000)) },
    Bench { rows: &["pingpong-p50", "pingpong-p99"], measure: pingpong },
    Bench { rows: &["broadcast-100"], measure: broadcast },
    Bench { rows: &["handshakes"], measure: handshakes },
    Bench { rows: &["idle-peer", "idle-peer-packets"], measure: idle_peer },
    Bench { rows: &["relay", "relay-bulk"], measure: relayed },
    Bench { rows: &["relay-memory-1k"], measure: || relay_memory("relay-memory-1k", 1_000) },
    Bench { rows: &["relay-memory-10k"], measure: || relay_memory("relay-memory-10k", 10_000) },
];

/// Bytes of one bulk run, as the gate has it.
const BULK: u64 = 1 << 30;

/// Round trips of one ping-pong run.
const ROUND_TRIPS: usize = 5_000;

/// The names of rows, which `--only` chooses from, and what measures them.
struct Bench {
    rows: &'static [&'static str],
    measure: fn() -> Vec<Row>,
}

/// One line of the result; a `ratio` above 1 says that ours is better. Where nothing stands beside it, `theirs` is not a number.
struct Row {
    bench: &'static str,
    unit: &'static str,
    ours: f64,
    peer: &'static str,
    theirs: f64,
    ratio: f64,
}

fn main() -> ExitCode {
    child::play();
    let (only, json) = match arguments(env::args().skip(1)) {
        Ok(arguments) => arguments,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::from(2);
        }
    };
    let wanted = |name: &str| only.as_deref().is_none_or(|only| is_part(name, only));
    for Bench { rows, measure } in BENCHES {
        if rows.iter().any(|name| wanted(name)) {
            eprintln!("{}", rows.join(", "));
            measure().iter().filter(|row| wanted(row.bench)).for_each(|row| row.print(json));
        }
    }
    ExitCode::SUCCESS
}

/// Whether `--only` means this row: by its name or by what its name begins with.
fn is_part(name: &str, only: &str) -> bool {
    name.strip_prefix(only).is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
}

/// What `--only` names, and whether `--json` was given.
fn arguments(mut given: impl Iterator<Item = String>) -> Result<(Option<String>, bool), String> {
    let (mut only, mut json) = (None, false);
    while let Some(argument) = given.next() {
        match argument.as_str() {
            "--json" => json = true,
            "--bench" => {} // cargo's own
            "--only" => only = given.next(),
            _ => return Err(format!("unknown argument {argument}; there are --only NAME and --json")),
        }
    }
    let names = BENCHES.map(|bench| bench.rows).concat();
    match only {
        Some(only) if !names.iter().any(|name| is_part(name, &only)) => {
            Err(format!("no benchmark {only}; there are {names:?}"))
        }
        only => Ok((only, json)),
    }
}

fn bulk() -> Vec<Row> {
    let work = Work::Send(Load::bulk(BULK));
    let mib = |figure: &Figure| (BULK >> 20) as f64 / figure.cpu.as_secs_f64();
    let [ours, quinn, noq] = interleaved(RUNS, [run::<Byway>, run::<Quinn>, run::<Noq>], work)
        .map(|figures| median(figures.iter().map(mib)));
    let row = |peer, theirs| Row { bench: "bulk", unit: "MiB/CPU-s", ours, peer, theirs, ratio: ours / theirs };
    vec![row("quinn", quinn), row("noq", noq)]
}

fn messages(bench: &'static str, load: Load) -> Vec<Row> {
    let [ours, theirs] = interleaved(RUNS, [run::<Byway>, run::<Quinn>], Work::Send(load));
    for (who, figures) in [("byway", &ours), ("quinn", &theirs)] {
        let p99 = median(figures.iter().map(|figure| millis(figure.percentile(0.99))));
        let cpu = median(figures.iter().map(|figure| figure.cpu.as_secs_f64() * 1e9 / load.measured() as f64));
        eprintln!("{bench}: {who}: p99 latency {p99:.3} ms with full queues, {cpu:.0} CPU-ns a message");
    }
    let rate = |figure: &Figure| load.measured() as f64 / figure.wall.as_secs_f64();
    let [ours, theirs] = [ours, theirs].map(|figures| median(figures.iter().map(rate)));
    vec![Row { bench, unit: "messages/s", ours, peer: "quinn", theirs, ratio: ours / theirs }]
}

fn pingpong() -> Vec<Row> {
    let [ours, theirs] = interleaved(PINGPONG_RUNS, [run::<Byway>, run::<Quinn>], Work::PingPong(ROUND_TRIPS));
    let row = |bench, share| {
        let [ours, theirs] =
            [&ours, &theirs].map(|figures| median(figures.iter().map(|f| 1e3 * millis(f.percentile(share)))));
        Row { bench, unit: "µs", ours, peer: "quinn", theirs, ratio: theirs / ours }
    };
    vec![row("pingpong-p50", 0.50), row("pingpong-p99", 0.99)]
}

fn broadcast() -> Vec<Row> {
    let rate = median((0..RUNS).map(|_| many::broadcast()));
    vec![Row::alone("broadcast-100", "messages/s", rate)]
}

fn handshakes() -> Vec<Row> {
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..RUNS {
        ours.push(many::handshakes());
        theirs.push(many::bare::handshakes());
    }
    let [ours, theirs] = [ours, theirs].map(|rates| median(rates.into_iter()));
    vec![Row { bench: "handshakes", unit: "1/CPU-s", ours, peer: "quinn", theirs, ratio: ours / theirs }]
}

fn idle_peer() -> Vec<Row> {
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..RUNS {
        ours.push(many::memory());
        theirs.push(many::bare::memory());
    }
    let [ours, theirs] = [ours, theirs].map(|sizes| median(sizes.into_iter()));
    let memory = Row { bench: "idle-peer", unit: "KiB", ours, peer: "quinn", theirs, ratio: theirs / ours };
    vec![memory, Row::alone("idle-peer-packets", "packets/h", many::packets_an_hour())]
}

fn relayed() -> Vec<Row> {
    let (mut relayed, mut direct) = (Vec::new(), Vec::new());
    for _ in 0..RUNS {
        relayed.push(relay::forward());
        direct.push(relay::bulk(None));
    }
    let rate = median(relayed.iter().map(|run| run.gbit_a_core));
    let (ours, theirs) = (median(relayed.iter().map(|run| run.mib_s)), median(direct.into_iter()));
    vec![
        Row::alone("relay", "Gbit/s a core", rate),
        Row { bench: "relay-bulk", unit: "MiB/s", ours, peer: "direct", theirs, ratio: ours / theirs },
    ]
}

fn relay_memory(bench: &'static str, clients: usize) -> Vec<Row> {
    vec![Row::alone(bench, "KiB a client", relay::memory(clients))]
}

/// The figures of as many runs of each library; each round begins with another one.
fn interleaved<const N: usize>(runs: usize, libraries: [fn(Work) -> Figure; N], work: Work) -> [Vec<Figure>; N] {
    let mut figures = [const { Vec::new() }; N];
    for round in 0..runs {
        for turn in 0..N {
            let which = (round + turn) % N;
            figures[which].push(libraries[which](work));
        }
    }
    figures
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

impl Row {
    fn alone(bench: &'static str, unit: &'static str, ours: f64) -> Self {
        Row { bench, unit, ours, peer: "", theirs: f64::NAN, ratio: f64::NAN }
    }

    fn print(&self, json: bool) {
        let Row { bench, unit, ours, peer, theirs, ratio } = self;
        match (json, theirs.is_nan()) {
            (true, true) => println!(
                r#"{{"bench":"{bench}","unit":"{unit}","ours":{ours:.1},"peer":null,"theirs":null,"ratio":null}}"#
            ),
            (true, false) => println!(
                r#"{{"bench":"{bench}","unit":"{unit}","ours":{ours:.1},"peer":"{peer}","theirs":{theirs:.1},"ratio":{ratio:.3}}}"#
            ),
            (false, true) => println!("{bench:<16} {ours:>12.1} {unit}"),
            (false, false) => {
                println!("{bench:<16} {ours:>12.1} {unit:<11} {peer:<6} {theirs:>12.1}   ratio {ratio:.3}");
            }
        }
    }
}
