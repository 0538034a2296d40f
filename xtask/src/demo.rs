//! The main job on real sockets: `byway demo`, over the direct path and over the relay only, held to what it claims.

use std::{
    collections::BTreeSet,
    path::Path,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::{Stop, command, rows};

/// What crosses from the HTTP service to the file.
const BYTES: u64 = 64 << 20;
/// The whole run, after the build.
const RUN_LIMIT: Duration = Duration::from_secs(15);
/// When a run that does not end is stopped: late enough to see its own timeouts and messages.
const STOP_AFTER: Duration = Duration::from_secs(60);
/// The processes that the demo consists of.
const PARTS: [&str; 4] = ["relay", "serve", "reach", "http"];

/// Runs the demo twice and checks each row it prints.
pub(crate) fn run() -> Result<(), Stop> {
    command::pass(&mut command::cargo("build --release"))?;
    one("run --release -- demo --once --json", check_direct)?;
    one("run --release -- demo --once --relay-only --json", check_relayed)
}

fn one(args: &str, check: impl Fn(&mut rows::Claims<'_>, &Value)) -> Result<(), Stop> {
    let started = Instant::now();
    let output = command::output(&mut command::cargo(args), STOP_AFTER)?;
    let took = started.elapsed();
    let row = rows::last(&output)?;
    println!("{row} ({:.1} s)", took.as_secs_f64());
    let mut claims = rows::Claims::new(&row);
    check_common(&mut claims, &row);
    check(&mut claims, &row);
    claims.holds(took <= RUN_LIMIT, &format!("the run took {:.1} s, limit {RUN_LIMIT:?}", took.as_secs_f64()));
    claims.finish(&format!("cargo {args}"))
}

fn check_common(claims: &mut rows::Claims<'_>, row: &Value) {
    claims.is("ok", true);
    claims.is("sha256_match", true);
    claims.is("bytes", BYTES);
    claims.at_least("first_byte_ms", 0.0);
    let pids: BTreeSet<u64> = PARTS.iter().filter_map(|part| row["pids"][part].as_u64()).collect();
    claims.holds(pids.len() == PARTS.len(), "`pids` does not name four processes");
    let left = pids.iter().any(|pid| Path::new(&format!("/proc/{pid}")).exists());
    claims.holds(!left, "a process of the demo outlives it");
}

fn check_direct(claims: &mut rows::Claims<'_>, _: &Value) {
    claims.is("path", "direct");
    claims.at_least("direct_ms", 0.0);
    claims.at_least("relay_bytes", 1.0);
}

fn check_relayed(claims: &mut rows::Claims<'_>, row: &Value) {
    claims.is("path", "relay");
    claims.holds(row["direct_ms"].is_null(), "`direct_ms` is set, though only the relay may be used");
    // All bytes crossed the relay at least once, in packets that weigh a little more than what they carry.
    claims.at_least("relay_bytes", BYTES as f64);
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const NOT_A_PID: u64 = u64::MAX - 8;

    fn verdict(row: &Value, check: impl Fn(&mut rows::Claims<'_>, &Value)) -> Result<(), Stop> {
        let mut claims = rows::Claims::new(row);
        check_common(&mut claims, row);
        check(&mut claims, row);
        claims.finish("demo")
    }

    fn row(path: &str, relay_bytes: u64, direct_ms: Option<u64>) -> Value {
        let pids = json!({"relay": NOT_A_PID, "serve": NOT_A_PID + 1, "reach": NOT_A_PID + 2, "http": NOT_A_PID + 3});
        json!({"ok": true, "bytes": BYTES, "sha256_match": true, "first_byte_ms": 3, "direct_ms": direct_ms,
            "path": path, "relay_bytes": relay_bytes, "pids": pids})
    }

    #[test]
    fn a_relay_that_carried_nothing_is_a_fault() {
        assert_eq!(verdict(&row("direct", 9_000, Some(40)), check_direct), Ok(()));
        assert!(verdict(&row("direct", 0, Some(40)), check_direct).is_err());
        assert_eq!(verdict(&row("relay", BYTES + 9, None), check_relayed), Ok(()));
        assert!(verdict(&row("relay", 9_000, None), check_relayed).is_err());
    }

    #[test]
    fn parts_that_share_a_process_are_a_fault() {
        let mut row = row("direct", 9_000, Some(40));
        row["pids"]["http"] = row["pids"]["serve"].clone();
        assert!(verdict(&row, check_direct).is_err());
    }
}
