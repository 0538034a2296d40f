//! The fuzz targets of `fuzz/`, each for a short while. They need nightly Rust and cargo-fuzz.

use std::{fs, thread};

use crate::{Stop, command, number, root};

/// How long each target runs, in seconds.
const SECONDS: u64 = 12;
/// What one input may take, in seconds: the parsers are linear in at most a few KiB.
const INPUT_LIMIT: u64 = 5;
/// What a target may use of memory, in MiB, the sanitizer's own share included.
const MEMORY_LIMIT: u64 = 1_024;

/// Targets that run at a time: each keeps one core busy.
const AT_ONCE: usize = 2;

/// Builds all targets and runs them, or those that are named, until one finds a fault.
pub(crate) fn run(args: &[String]) -> Result<(), Stop> {
    let (seconds, named) = match args {
        [option, rest @ ..] if option == "--seconds" => (number(option, rest.first())?, rest.get(1..).unwrap_or(&[])),
        _ => (SECONDS, args),
    };
    let all = targets()?;
    if let Some(unknown) = named.iter().find(|name| !all.contains(name)) {
        return Err(Stop::Usage(format!("no target `{unknown}`; there are {}", all.join(", "))));
    }
    if !command::works(&mut command::cargo("+nightly --version")) {
        return Err(Stop::Skipped("no nightly Rust here: rustup toolchain install nightly".into()));
    }
    if !command::works(&mut command::cargo("+nightly fuzz --version")) {
        return Err(Stop::Skipped("no cargo-fuzz here: cargo install cargo-fuzz".into()));
    }
    command::pass(&mut command::cargo("+nightly fuzz build"))?;
    for targets in if named.is_empty() { &all } else { named }.chunks(AT_ONCE) {
        println!("fuzz targets {}, {seconds} s", targets.join(" and "));
        let limits = format!("-max_total_time={seconds} -timeout={INPUT_LIMIT} -rss_limit_mb={MEMORY_LIMIT}");
        let fuzz = |target: &String| {
            let args = format!("+nightly fuzz run {target} -- {limits} -verbosity=0 -print_final_stats=1");
            command::pass(&mut command::cargo(&args))
        };
        let ended: Vec<_> = thread::scope(|scope| {
            let running: Vec<_> = targets.iter().map(|target| scope.spawn(move || fuzz(target))).collect();
            running.into_iter().map(|one| one.join().expect("a target's failure is no panic here")).collect()
        });
        ended.into_iter().collect::<Result<(), Stop>>()?;
    }
    Ok(())
}

fn targets() -> Result<Vec<String>, Stop> {
    let dir = root().join("fuzz/fuzz_targets");
    let entries = fs::read_dir(&dir).map_err(|e| Stop::Failed(format!("cannot read {}: {e}", dir.display())))?;
    let files = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    let mut names: Vec<String> = files.filter_map(|file| Some(file.strip_suffix(".rs")?.to_owned())).collect();
    names.sort();
    Ok(names)
}
