//! The simulator's tables in their short forms: at scale, one seed gives one hash in two processes and another seed
//! another; every pair of NATs comes to what a few dials must show; bulk keeps bad lines full; channels get their shares and
//! leave each other alone; a path's death is a pause, and where nothing dies nothing switches; strangers become one graph.

use serde_json::Value;

use crate::{Stop, command, number, rows};

/// How many nodes the short form has.
const NODES: u64 = 1_000;
/// What the faster of two equal runs of the short form may take, in seconds.
const WALL_LIMIT: f64 = 15.0;

/// Dials of each pair of NATs.
const DIALS: u64 = 5;

/// Lines of the wan table in its short form: loss, reordering, a short queue, and CUBIC beside the flow.
const LINES: [&str; 4] = ["loss-3", "jitter-2", "shallow", "vs-cubic-50"];

/// Runs the scale table three times, the matrix, the wan table, the channels table, failovers, peer exchange and the soak; `--nodes N` runs the first alone in
/// another size, and with it lifts the time limit.
pub(crate) fn run(args: &[String]) -> Result<(), Stop> {
    let nodes = match args {
        [] => NODES,
        [option, value] if option == "--nodes" => number(option, Some(value))?,
        _ => return Err(Stop::Usage(format!("what is `{}`?", args.join(" ")))),
    };
    let (first, again, other) = (scale(nodes, 1)?, scale(nodes, 1)?, scale(nodes, 2)?);
    for row in [&first, &again, &other] {
        check_row(row, nodes)?;
    }
    let mut claims = rows::Claims::new(&first);
    claims.is("hash", again["hash"].clone());
    claims.holds(first["hash"] != other["hash"], "seeds 1 and 2 give the same hash");
    let fastest = [&first, &again].iter().filter_map(|row| row["wall_s"].as_f64()).fold(f64::INFINITY, f64::min);
    let in_time = nodes != NODES || fastest <= WALL_LIMIT;
    claims.holds(in_time, &format!("the faster run took {fastest:.1} s, limit {WALL_LIMIT} s"));
    claims.finish("two runs with seed 1 and one with seed 2")?;
    if !args.is_empty() {
        return Ok(());
    }
    matrix()?;
    wan()?;
    channels()?;
    failover()?;
    exchange()?;
    soak()
}

/// A thousand nodes that know one seed alone; the command fails if they are not one graph after ten simulated minutes.
fn exchange() -> Result<(), Stop> {
    command::pass(&mut command::cargo("run --release -p byway-sim -- exchange --nodes 1000 --seed 1 --json"))
}

/// Deaths, a smaller line, and ten minutes each of a quiet line and of a bad one.
fn failover() -> Result<(), Stop> {
    let cases = ["death-up", "death-pingpong", "one-way-down", "idle-death", "mtu", "no-death-idle", "flap"];
    let cases: String = cases.iter().map(|case| format!(" --case {case}")).collect();
    let args = format!("run --release -p byway-sim -- failover --runs 2 --seed 1 --json --check{cases}");
    command::pass(&mut command::cargo(&args))
}

/// Six hours of ten nodes, in which no connection may be lost.
fn soak() -> Result<(), Stop> {
    command::pass(&mut command::cargo(
        "run --release -p byway-sim -- soak --hours 6 --nodes 10 --seed 1 --json --check",
    ))
}

/// The rows that fall short are told on stderr by the command itself.
fn wan() -> Result<(), Stop> {
    let cases = LINES.map(|line| format!("--case {line}")).join(" ");
    let args = format!("run --release -p byway-sim -- wan --runs 1 --seed 1 --json --check {cases}");
    command::pass(&mut command::cargo(&args))
}

fn channels() -> Result<(), Stop> {
    command::pass(&mut command::cargo("run --release -p byway-sim -- channels --seed 1 --json --check"))
}

/// The rows that are wrong are told on stderr by the command itself.
fn matrix() -> Result<(), Stop> {
    let args = format!("run --release -p byway-sim -- matrix --runs {DIALS} --seed 1 --json --check");
    command::pass(&mut command::cargo(&args))
}

fn scale(nodes: u64, seed: u64) -> Result<Value, Stop> {
    let args = format!("run --release -p byway-sim -- scale --nodes {nodes} --seed {seed} --json");
    let row = rows::last(&command::output(&mut command::cargo(&args), command::LIMIT)?)?;
    println!("seed {seed}: {row}");
    Ok(row)
}

fn check_row(row: &Value, nodes: u64) -> Result<(), Stop> {
    let mut claims = rows::Claims::new(row);
    claims.is("nodes", nodes);
    // Each node dials four others; the few pairs that dial each other share a connection.
    claims.at_least("connections", 3.0 * nodes as f64);
    claims.at_least("messages", 30.0 * nodes as f64);
    claims.at_least("wall_s", 0.0);
    claims.at_least("rss_mib", 0.0);
    claims.holds(row["hash"].as_str().is_some_and(|hash| !hash.is_empty()), "`hash` is no text");
    claims.finish("a row of the scale table")
}
