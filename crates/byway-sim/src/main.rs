//! The simulator's command: each subcommand makes one table of measurements.

use std::{cell::Cell, process::ExitCode};

use byway_sim::table::{
    channels, exchange, failover,
    matrix::{self, Kind, Plan},
    scale, soak, survey,
    wan::{self, Case},
};
use clap::{Args, Parser, Subcommand};
use serde::Serialize;
use tokio::time::Instant;
use tracing_subscriber::{
    EnvFilter,
    fmt::{format::Writer, time::FormatTime},
};

/// Measures Byway's shipping stack on a network in memory; one seed gives one result
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    table: Table,
}

#[derive(Debug, Subcommand)]
enum Table {
    /// Every kind of NAT against every other, in both orders: who meets directly, how soon, with how many guesses
    Matrix {
        /// Dials a pair
        #[arg(long, default_value_t = 20)]
        runs: u64,
        /// Only these ordered pairs, each as `A,B`; A dials
        #[arg(long, value_parser = parse_pair)]
        pair: Vec<(Kind, Kind)>,
        /// Threads that share the runs; the rows do not depend on it
        #[arg(long, default_value_t = 2)]
        jobs: usize,
        /// Print the table as Markdown
        #[arg(long, conflicts_with = "json")]
        markdown: bool,
        /// Fail if a row shows what even a few runs must not: failures, budgets overrun, misses beyond chance
        #[arg(long)]
        check: bool,
        #[command(flatten)]
        common: Common,
    },
    /// What the node's survey says of each kind of NAT, as `byway check` would
    Survey {
        /// Only these kinds
        #[arg(long)]
        nat: Vec<String>,
        #[command(flatten)]
        common: Common,
    },
    /// How fast bulk goes over bad lines, beside bare quinn
    Wan {
        /// Runs a case, each with a seed of its own; rows are medians
        #[arg(long, default_value_t = 5)]
        runs: u64,
        /// Only these lines
        #[arg(long)]
        case: Vec<Case>,
        /// Threads that share the runs; the rows do not depend on it
        #[arg(long, default_value_t = 2)]
        jobs: usize,
        /// Print the table as Markdown
        #[arg(long, conflicts_with = "json")]
        markdown: bool,
        /// Fail if a row falls short of its gate
        #[arg(long)]
        check: bool,
        #[command(flatten)]
        common: Common,
    },
    /// What applications see while a connection's paths die, return, get worse or better
    Failover {
        /// Runs a case; cases of ten minutes have one
        #[arg(long, default_value_t = 20)]
        runs: u64,
        /// Only these cases
        #[arg(long)]
        case: Vec<failover::Case>,
        /// What is measured: Byway, or for comparison bare quinn on one route
        #[arg(long, default_value = "byway")]
        stack: failover::Stack,
        /// Threads that share the runs; the rows do not depend on it
        #[arg(long, default_value_t = 2)]
        jobs: usize,
        /// Print the table as Markdown
        #[arg(long, conflicts_with = "json")]
        markdown: bool,
        /// Fail if a row shows what even a few runs must not: anything lost, doubled or in error, figures twice the gate's
        #[arg(long)]
        check: bool,
        #[command(flatten)]
        common: Common,
    },
    /// Channels beside each other: shares of the line, and what one channel costs the others
    Channels {
        /// Only these cases
        #[arg(long)]
        case: Vec<channels::Case>,
        /// Threads that share the cases; the rows do not depend on it
        #[arg(long, default_value_t = 2)]
        jobs: usize,
        /// Print the table as Markdown
        #[arg(long, conflicts_with = "json")]
        markdown: bool,
        /// Fail if a row falls short of its gate
        #[arg(long)]
        check: bool,
        #[command(flatten)]
        common: Common,
    },
    /// Days of roaming, forgetful NATs and restarted relays: what is lost, what it costs to be idle, whether memory grows
    Soak {
        /// Simulated hours, the last of them quiet; at least 2
        #[arg(long, default_value_t = 24)]
        hours: u64,
        /// How many nodes, at least 4
        #[arg(long, default_value_t = 50)]
        nodes: usize,
        /// Fail if a connection is lost
        #[arg(long)]
        check: bool,
        #[command(flatten)]
        common: Common,
    },
    /// How soon nodes that know one seed alone are one connected graph by peer exchange; fails if they are not after 10 minutes
    Exchange {
        /// How many nodes beside the seed
        #[arg(long, default_value_t = 1_000)]
        nodes: usize,
        #[command(flatten)]
        common: Common,
    },
    /// Many nodes in one process: each dials 4 others, and every connection echoes 10 messages
    Scale {
        /// How many nodes, at least 5
        #[arg(long, default_value_t = 1_000)]
        nodes: usize,
        #[command(flatten)]
        common: Common,
    },
}

/// What every table takes.
#[derive(Debug, Args)]
struct Common {
    /// Where all random numbers but TLS's come from
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Print one JSON object a row on stdout
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    let filter = EnvFilter::from_default_env(); // RUST_LOG, for whoever looks into one seed
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_timer(VirtualTime).init();
    match Cli::parse().table {
        Table::Matrix { runs, pair, jobs, markdown, check, common } => {
            let pairs = if pair.is_empty() { Kind::pairs() } else { pair };
            matrix(&Plan { runs, seed: common.seed, pairs, jobs }, &Form { json: common.json, markdown, check })
        }
        Table::Survey { nat, common } => {
            let names = if nat.is_empty() { survey::names().into_iter().map(str::to_owned).collect() } else { nat };
            survey(&names, &common)
        }
        Table::Wan { runs, case, jobs, markdown, check, common } => {
            let cases = if case.is_empty() { Case::ALL.to_vec() } else { case };
            wan(&wan::Plan { runs, seed: common.seed, cases, jobs }, &Form { json: common.json, markdown, check })
        }
        Table::Failover { runs, case, stack, jobs, markdown, check, common } => {
            let cases = if case.is_empty() { failover::Case::ALL.to_vec() } else { case };
            let plan = failover::Plan { runs, seed: common.seed, cases, stack, jobs };
            failover(&plan, &Form { json: common.json, markdown, check })
        }
        Table::Channels { case, jobs, markdown, check, common } => {
            let cases = if case.is_empty() { channels::Case::all() } else { case };
            let form = Form { json: common.json, markdown, check };
            channels(&channels::Plan { seed: common.seed, cases, jobs }, &form)
        }
        Table::Soak { hours, nodes, check, common } => {
            match soak::run(hours, nodes, common.seed, |what| eprintln!("soak: {what}")) {
                Ok(row) => {
                    print_row(&row, common.json);
                    if check && row.connections_lost > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS }
                }
                Err(error) => {
                    eprintln!("soak, seed {}: {error}", common.seed);
                    ExitCode::FAILURE
                }
            }
        }
        Table::Exchange { nodes, common } => {
            let row = exchange::run(nodes, common.seed, |what| eprintln!("exchange: {what}"));
            one_row("exchange", row, &common)
        }
        Table::Scale { nodes, common } => {
            let row = scale::run(nodes, common.seed, |what| eprintln!("scale: {what}"));
            one_row("scale", row, &common)
        }
    }
}

/// A table of one row.
fn one_row(
    name: &str,
    row: Result<impl Serialize + std::fmt::Display, impl std::fmt::Display>,
    common: &Common,
) -> ExitCode {
    match row {
        Ok(row) => {
            print_row(&row, common.json);
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{name}, seed {}: {error}", common.seed);
            ExitCode::FAILURE
        }
    }
}

/// Stamps log lines with the virtual time since the thread's first.
struct VirtualTime;

impl FormatTime for VirtualTime {
    fn format_time(&self, writer: &mut Writer<'_>) -> std::fmt::Result {
        thread_local!(static FIRST: Cell<Option<Instant>> = const { Cell::new(None) });
        let now = Instant::now();
        let first = FIRST.get().filter(|first| *first <= now).unwrap_or(now);
        FIRST.set(Some(first));
        write!(writer, "{:9.3}", (now - first).as_secs_f64())
    }
}

/// How a table is told.
struct Form {
    json: bool,
    markdown: bool,
    /// Whether breaches are told too, and make the command fail.
    check: bool,
}

impl Form {
    fn head(&self, heading: &str) {
        if !self.json {
            print_line(heading);
        }
    }

    fn row(&self, row: &(impl Serialize + std::fmt::Display), markdown: impl FnOnce() -> String) {
        if self.markdown {
            print_line(&markdown());
        } else {
            print_row(row, self.json);
        }
    }

    /// How the command ends.
    fn end<E: std::fmt::Display>(
        &self,
        name: &str,
        seed: u64,
        measured: Result<(), E>,
        breaches: &[String],
    ) -> ExitCode {
        if self.check {
            breaches.iter().for_each(|breach| eprintln!("{name}, seed {seed}: {breach}"));
        }
        match measured {
            Ok(()) if self.check && !breaches.is_empty() => ExitCode::FAILURE,
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("{name}, seed {seed}: {error}");
                ExitCode::FAILURE
            }
        }
    }
}

fn matrix(plan: &Plan, form: &Form) -> ExitCode {
    form.head(&matrix::Row::heading(form.markdown));
    let (mut done, mut short, mut breaches) = (0, 0, Vec::new());
    let measured = matrix::run(plan, |row| {
        form.row(row, || row.to_markdown());
        breaches.extend(row.breaches().into_iter().map(|breach| format!("{} × {}: {breach}", row.a, row.b)));
        (done, short) = (done + 1, short + usize::from(!row.shortfalls().is_empty()));
        eprintln!("matrix: {done} of {} rows, {short} fall short", plan.pairs.len());
    });
    form.end("matrix", plan.seed, measured, &breaches)
}

fn survey(names: &[String], common: &Common) -> ExitCode {
    let form = Form { json: common.json, markdown: false, check: false };
    form.head(&survey::Row::heading());
    let measured = names.iter().try_for_each(|name| {
        let row = survey::run(name, common.seed)?;
        print_row(&row, common.json);
        Ok::<(), survey::SurveyError>(())
    });
    form.end("survey", common.seed, measured, &[])
}

fn wan(plan: &wan::Plan, form: &Form) -> ExitCode {
    form.head(&wan::Row::heading(form.markdown));
    let mut short = Vec::new();
    let measured = wan::run(plan, |row| {
        form.row(row, || row.to_markdown());
        short.extend(row.shortfalls().into_iter().map(|shortfall| format!("{}: {shortfall}", row.case)));
    });
    form.end("wan", plan.seed, measured, &short)
}

fn failover(plan: &failover::Plan, form: &Form) -> ExitCode {
    form.head(&failover::Row::heading(form.markdown));
    let (mut done, mut breaches) = (0, Vec::new());
    let measured = failover::run(plan, |row| {
        form.row(row, || row.to_markdown());
        breaches.extend(row.breaches().into_iter().map(|breach| format!("{}: {breach}", row.case)));
        done += 1;
        eprintln!("failover: {done} of {} cases", plan.cases.len());
    });
    form.end("failover", plan.seed, measured, &breaches)
}

fn channels(plan: &channels::Plan, form: &Form) -> ExitCode {
    form.head(&channels::Row::heading(form.markdown));
    let mut short = Vec::new();
    let measured = channels::run(plan, |row| {
        form.row(row, || row.to_markdown());
        if !row.pass {
            short.push(format!("{}: {} instead of {}", row.case, row.value, row.gate));
        }
    });
    form.end("channels", plan.seed, measured, &short)
}

fn parse_pair(text: &str) -> Result<(Kind, Kind), String> {
    let (a, b) = text.split_once(',').ok_or("a pair is two kinds with a comma between them")?;
    let parse = |name: &str| name.parse::<Kind>().map_err(|error| error.to_string());
    Ok((parse(a)?, parse(b)?))
}

fn print_row(row: &(impl Serialize + std::fmt::Display), json: bool) {
    if json {
        print_line(&serde_json::to_string(row).expect("a row has neither maps nor values that JSON lacks"));
    } else {
        print_line(&row.to_string());
    }
}

#[expect(clippy::print_stdout, reason = "rows are what the command is for")]
fn print_line(line: &str) {
    println!("{line}");
}
