//! The project's own checks; `cargo xtask check` runs them all, and so does `.ci/run`.
//!
//! Exit codes: 0 passed, 1 failed, 2 wrong usage, 3 skipped because this machine or this version of the project has
//! nothing to run, with the reason printed.
#![allow(clippy::print_stdout)] // A command-line tool: its result is what it prints.

use std::{env, path::PathBuf, process::ExitCode};

mod bench;
mod check;
mod command;
mod demo;
mod fuzz;
mod heritage;
mod lab;
mod no_std;
mod rows;
mod sim;
mod sizes;

const USAGE: &str = "usage: cargo xtask <command>
  check [STEP...]                   everything that continuous integration runs, or the named steps of it
  sizes                             files of at most 500 lines, functions of at most 80, structs of at most 15 fields
  heritage                          every test that docs/heritage.md names exists
  no-std                            byway-proto and all that it links stand without std
  sim [--nodes N]                   the simulator's tables: one seed, one hash, in two processes; every pair of NATs
  demo                              the main job, over the direct path and over the relay only
  lab [--only SCENARIO] [--keep] [--json]
                                    scenarios on a real kernel, in network namespaces; needs root
  interop                           scenarios with foreign peers
  bench [--only NAME] [--json]      benchmarks beside other libraries; the arguments go to the bench as they are
  fuzz [--seconds N] [TARGET...]    each fuzz target, or the named ones, for N seconds (default 20)";

/// Why a check did not pass.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Stop {
    /// There is nothing to run here and now; says why.
    Skipped(String),
    /// The check found a fault; says which, and what to do.
    Failed(String),
    /// The command line makes no sense; says where.
    Usage(String),
}

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    let Some((name, args)) = args.split_first() else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    match run(name, args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Stop::Failed(why)) => {
            eprintln!("{name}: FAILED: {why}");
            ExitCode::from(1)
        }
        Err(Stop::Usage(why)) => {
            eprintln!("{name}: {why}\n{USAGE}");
            ExitCode::from(2)
        }
        Err(Stop::Skipped(why)) => {
            eprintln!("{name}: skipped: {why}");
            ExitCode::from(3)
        }
    }
}

fn run(name: &str, args: &[String]) -> Result<(), Stop> {
    match name {
        "check" => check::run(args),
        "bench" => bench::run(args),
        "fuzz" => fuzz::run(args),
        "sim" => sim::run(args),
        "sizes" | "heritage" | "no-std" | "demo" if !args.is_empty() => {
            Err(Stop::Usage(format!("takes no arguments, got `{}`", args.join(" "))))
        }
        "sizes" => sizes::run(),
        "heritage" => heritage::run(),
        "no-std" => no_std::run(),
        "demo" => demo::run(),
        "lab" => lab::run(args),
        "interop" => interop(),
        _ => Err(Stop::Usage("no such command".into())),
    }
}

fn interop() -> Result<(), Stop> {
    Err(Stop::Skipped("no scenario with a foreign peer exists yet".into()))
}

/// The root of the repository: where cargo found this crate, one level up.
fn root() -> PathBuf {
    let here = env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    let mut root = PathBuf::from(here);
    root.pop();
    root
}

/// Reads `text` as the whole number that `option` wants.
fn number(option: &str, text: Option<&String>) -> Result<u64, Stop> {
    text.and_then(|text| text.parse().ok()).ok_or_else(|| Stop::Usage(format!("{option} wants a whole number")))
}
