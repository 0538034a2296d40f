//! Every check, in one list: the only home of what continuous integration does.

use std::time::{Duration, Instant};

use crate::{Stop, bench, command, demo, fuzz, heritage, interop, lab, no_std, sim, sizes};

/// One check.
struct Step {
    name: &'static str,
    what: &'static str,
    run: fn() -> Result<(), Stop>,
}

/// The steps, quick ones first.
const STEPS: &[Step] = &[
    Step { name: "fmt", what: "cargo fmt --all --check, and in fuzz/", run: fmt },
    Step { name: "sizes", what: "cargo xtask sizes", run: sizes::run },
    Step { name: "heritage", what: "cargo xtask heritage", run: heritage::run },
    Step { name: "clippy", what: "cargo clippy --workspace --all-targets -- -D warnings", run: clippy },
    Step { name: "doc", what: "RUSTDOCFLAGS='-D warnings' cargo doc --workspace --no-deps", run: doc },
    Step { name: "no-std", what: "cargo xtask no-std", run: no_std::run },
    Step { name: "test", what: "cargo test --workspace", run: test },
    Step { name: "sim", what: "cargo xtask sim", run: || sim::run(&[]) },
    Step { name: "demo", what: "cargo xtask demo", run: demo::run },
    Step { name: "lab", what: "cargo xtask lab", run: || lab::run(&[]) },
    Step { name: "interop", what: "cargo xtask interop", run: interop },
    Step { name: "bench", what: "cargo xtask bench, in its short form", run: bench_short },
    Step { name: "fuzz", what: "cargo xtask fuzz", run: || fuzz::run(&[]) },
];

/// How a step ended, and after how long.
struct Ended {
    name: &'static str,
    result: Result<(), Stop>,
    took: Duration,
}

/// Runs all steps, or those that are named; one that fails does not stop the others.
pub(crate) fn run(names: &[String]) -> Result<(), Stop> {
    if let Some(unknown) = names.iter().find(|name| STEPS.iter().all(|step| step.name != **name)) {
        let known: Vec<&str> = STEPS.iter().map(|step| step.name).collect();
        return Err(Stop::Usage(format!("no step `{unknown}`; there are {}", known.join(", "))));
    }
    let wanted = |step: &&Step| names.is_empty() || names.iter().any(|name| name == step.name);
    let ended: Vec<Ended> = STEPS.iter().filter(wanted).map(run_step).collect();
    println!();
    for step in &ended {
        println!("{}", step.line());
    }
    summary(&ended)
}

fn run_step(step: &Step) -> Ended {
    println!("\n=== {}: {}", step.name, step.what);
    let started = Instant::now();
    let ended = Ended { name: step.name, result: (step.run)(), took: started.elapsed() };
    println!("{}", ended.line());
    ended
}

impl Ended {
    fn line(&self) -> String {
        let (word, why) = match &self.result {
            Ok(()) => ("ok", ""),
            Err(Stop::Skipped(why)) => ("skipped", why.as_str()),
            Err(Stop::Failed(why) | Stop::Usage(why)) => ("FAILED", why.as_str()),
        };
        format!("{:<8} {word:<8} {:>6.1} s  {why}", self.name, self.took.as_secs_f64()).trim_end().to_owned()
    }
}

/// Prints how many steps ended how; fails if one did.
fn summary(ended: &[Ended]) -> Result<(), Stop> {
    let names = |wanted: fn(&Stop) -> bool| -> Vec<&str> {
        ended.iter().filter(|step| step.result.as_ref().is_err_and(wanted)).map(|step| step.name).collect()
    };
    let skipped = names(|stop| matches!(stop, Stop::Skipped(_)));
    let failed = names(|stop| !matches!(stop, Stop::Skipped(_)));
    let passed = ended.len() - skipped.len() - failed.len();
    let took: Duration = ended.iter().map(|step| step.took).sum();
    let mut text = format!("{passed} ok");
    for (names, word) in [(&skipped, "skipped"), (&failed, "FAILED")] {
        if !names.is_empty() {
            text += &format!(", {} {word} ({})", names.len(), names.join(", "));
        }
    }
    text += &format!(", {:.0} s", took.as_secs_f64());
    if failed.is_empty() {
        println!("check: ok: {text}");
        return Ok(());
    }
    Err(Stop::Failed(text))
}

fn fmt() -> Result<(), Stop> {
    command::pass(&mut command::cargo("fmt --all --check"))?;
    command::pass(&mut command::cargo("fmt --manifest-path fuzz/Cargo.toml --check"))
}

fn clippy() -> Result<(), Stop> {
    command::pass(&mut command::cargo("clippy --workspace --all-targets -- -D warnings"))
}

/// Building from nothing takes several times as long as the tests themselves, and has a limit of its own.
fn test() -> Result<(), Stop> {
    command::pass(&mut command::cargo("test --workspace --no-run"))?;
    command::pass(&mut command::cargo("test --workspace"))
}

fn doc() -> Result<(), Stop> {
    command::pass(command::cargo("doc --workspace --no-deps").env("RUSTDOCFLAGS", "-D warnings"))
}

fn bench_short() -> Result<(), Stop> {
    bench::run(&bench::SHORT.map(str::to_owned))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(name: &'static str, result: Result<(), Stop>) -> Ended {
        Ended { name, result, took: Duration::from_secs(1) }
    }

    #[test]
    fn one_failed_step_fails_the_whole_and_is_named() {
        let steps = [ended("fmt", Ok(())), ended("demo", Err(Stop::Failed("no row".into())))];
        let Err(Stop::Failed(why)) = summary(&steps) else { panic!("a failed step must fail the whole") };
        assert_eq!(why, "1 ok, 1 FAILED (demo), 2 s");
    }

    #[test]
    fn a_skipped_step_does_not_fail_the_whole() {
        let lab = ended("lab", Err(Stop::Skipped("no kernel".into())));
        assert!(lab.line().contains("skipped") && lab.line().ends_with("no kernel"));
        assert_eq!(summary(&[ended("fmt", Ok(())), lab]), Ok(()));
    }

    #[test]
    fn an_unknown_step_is_refused_before_anything_runs() {
        assert!(matches!(run(&["fmt".into(), "frm".into()]), Err(Stop::Usage(_))));
    }
}
