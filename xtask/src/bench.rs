//! The benchmarks: `byway`'s bench `gates`, with the arguments as they come.

use crate::{Stop, command, root};

/// The one benchmark that continuous integration runs: quick, and it crosses every layer.
pub(crate) const SHORT: [&str; 3] = ["--only", "messages-64B", "--json"];

/// Runs the bench and passes its verdict on.
pub(crate) fn run(args: &[String]) -> Result<(), Stop> {
    if !root().join("crates/byway/benches/gates.rs").exists() {
        return Err(Stop::Skipped("no benchmark exists yet (crates/byway/benches/gates.rs)".into()));
    }
    command::pass_or_skip(command::cargo("bench -p byway --bench gates --").args(args))
}
