//! The simulator's command: each subcommand makes one table of measurements.

use std::process::ExitCode;

use byway_sim::table::scale;
use clap::{Args, Parser, Subcommand};
use serde::Serialize;
use tracing_subscriber::EnvFilter;

/// Measures Byway's shipping stack on a network in memory; one seed gives one result
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    table: Table,
}

#[derive(Debug, Subcommand)]
enum Table {
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
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).without_time().init();
    let Table::Scale { nodes, common } = Cli::parse().table;
    match scale::run(nodes, common.seed, |what| eprintln!("scale: {what}")) {
        Ok(row) => print(&row, common.json),
        Err(error) => {
            eprintln!("scale, seed {}: {error}", common.seed);
            ExitCode::FAILURE
        }
    }
}

#[expect(clippy::print_stdout, reason = "rows are what the command is for")]
fn print(row: &(impl Serialize + std::fmt::Display), json: bool) -> ExitCode {
    if json {
        println!("{}", serde_json::to_string(row).expect("a row has neither maps nor values that JSON lacks"));
    } else {
        println!("{row}");
    }
    ExitCode::SUCCESS
}
