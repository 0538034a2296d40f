//! The command line of Byway: serve here, reach there, relay in between.

mod accept;
mod args;
mod bench;
mod cmd;
mod config;
mod control;
mod daemon;
mod datadir;
mod failure;
mod grants;
mod http;
mod known;
mod nat_words;
mod output;
mod session;
mod signals;
mod store;
mod target;

use std::io::IsTerminal;

use clap::Parser;
use tracing_subscriber::EnvFilter;

use crate::{
    args::{Cli, Command},
    failure::Failure,
    output::Output,
};

fn main() {
    let cli = Cli::parse();
    let output = Output::new(cli.global.json);
    let is_pipe = matches!(cli.command, Command::Pipe(_));
    start_log(cli.global.verbose, output);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let result = match &runtime {
        Ok(runtime) => runtime.block_on(cmd::run(cli)),
        Err(error) => Err(Failure::here(format!("the system gives no threads: {error}; close other programs"))),
    };
    let code = match result.and_then(|()| output::written()) {
        Ok(()) => 0,
        Err(failure) => {
            match is_pipe {
                true => output.failure_of_pipe(&failure),
                false => output.failure(&failure),
            }
            u8::from(failure.code)
        }
    };
    // Dropping the runtime would wait for a read of standard input that may never end.
    std::process::exit(i32::from(code));
}

/// Logs to standard error: warnings, and more for each `-v` or as `BYWAY_LOG` says.
fn start_log(verbose: u8, output: Output) {
    let level = match verbose {
        0 => "error,byway=warn,byway_proto=warn",
        1 => "info",
        2 => "byway=debug,byway_proto=debug,info",
        _ => "byway=trace,byway_proto=trace,debug",
    };
    let told = std::env::var("BYWAY_LOG").ok();
    let filter = match told.as_deref().map(EnvFilter::try_new) {
        None => EnvFilter::new(level),
        Some(Ok(filter)) => filter,
        Some(Err(error)) => {
            output.note(&format!("byway: BYWAY_LOG does not count, for it is no filter such as byway=debug ({error})"));
            EnvFilter::new(level)
        }
    };
    let colours = std::io::stderr().is_terminal(); // a file is read without them
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colours).with_writer(std::io::stderr);
    let _ = log.try_init();
}
