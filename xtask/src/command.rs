//! Runs one command of a check: no input, a time limit, and nothing left behind when the limit is hit.

use std::{
    collections::BTreeMap,
    env, fs,
    io::Read,
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use crate::{Stop, root};

/// No command of a check needs longer on two cores, a build from nothing included.
pub(crate) const LIMIT: Duration = Duration::from_secs(15 * 60);
/// How long a command that is told to stop may take to do so.
const GRACE: Duration = Duration::from_secs(5);
/// How often a running command is looked at.
const TICK: Duration = Duration::from_millis(20);
/// No check prints more than this where its output is read; the rest is ignored.
const MAX_OUTPUT: u64 = 16 << 20;

/// A `cargo` command in the root of the repository; `args` are separated by single spaces.
pub(crate) fn cargo(args: &str) -> Command {
    program("cargo", args)
}

/// A command in the root of the repository, without what `cargo run` adds to the environment: build scripts that
/// watch these variables would run again each time.
pub(crate) fn program(name: &str, args: &str) -> Command {
    let mut command = Command::new(name);
    command.args(args.split(' ')).current_dir(root()).stdin(Stdio::null());
    for (key, _) in env::vars_os() {
        let name = key.to_string_lossy();
        if name == "CARGO" || name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_") {
            command.env_remove(&key);
        }
    }
    command
}

/// Runs a command to its end and wants 0 from it.
pub(crate) fn pass(command: &mut Command) -> Result<(), Stop> {
    let status = wait(command, LIMIT)?;
    if status.success() { Ok(()) } else { Err(failed(command, status)) }
}

/// As [`pass`], but lets the command say with exit code 3 that it has nothing to run.
pub(crate) fn pass_or_skip(command: &mut Command) -> Result<(), Stop> {
    let status = wait(command, LIMIT)?;
    match status.code() {
        Some(0) => Ok(()),
        Some(3) => Err(Stop::Skipped(format!("`{}` ended with 3, its reason is above", line(command)))),
        _ => Err(failed(command, status)),
    }
}

/// Runs a command that must end with 0 within `limit`, and gives what it wrote to stdout.
pub(crate) fn output(command: &mut Command, limit: Duration) -> Result<String, Stop> {
    command.stdout(Stdio::piped());
    let mut child = spawn(command)?;
    let pipe = child.stdout.take();
    let reader = thread::spawn(move || {
        let mut out = String::new();
        pipe.map(|pipe| pipe.take(MAX_OUTPUT).read_to_string(&mut out)).transpose().map(|_| out)
    });
    let status = finish(command, &mut child, limit)?;
    let out = reader.join().expect("the reader does not panic: it only fills a string");
    if !status.success() {
        return Err(failed(command, status));
    }
    out.map_err(|e| Stop::Failed(format!("the output of `{}` is not text: {e}", line(command))))
}

/// Whether a command can be run here and ends with 0; what it prints is dropped.
pub(crate) fn works(command: &mut Command) -> bool {
    command.stdout(Stdio::null()).stderr(Stdio::null());
    wait(command, LIMIT).is_ok_and(|status| status.success())
}

fn wait(command: &mut Command, limit: Duration) -> Result<ExitStatus, Stop> {
    let mut child = spawn(command)?;
    finish(command, &mut child, limit)
}

fn spawn(command: &mut Command) -> Result<Child, Stop> {
    command.spawn().map_err(|e| Stop::Failed(format!("cannot start `{}`: {e}", line(command))))
}

fn finish(command: &Command, child: &mut Child, limit: Duration) -> Result<ExitStatus, Stop> {
    match wait_until(child, Instant::now() + limit) {
        Ok(Some(status)) => Ok(status),
        Ok(None) => {
            stop(child);
            Err(Stop::Failed(format!("`{}` was stopped: not done after {} s", line(command), limit.as_secs())))
        }
        Err(e) => Err(Stop::Failed(format!("cannot wait for `{}`: {e}", line(command)))),
    }
}

fn wait_until(child: &mut Child, deadline: Instant) -> std::io::Result<Option<ExitStatus>> {
    loop {
        let status = child.try_wait()?;
        if status.is_some() || Instant::now() >= deadline {
            return Ok(status);
        }
        thread::sleep(TICK);
    }
}

/// Stops a child and all its descendants, politely first. Elsewhere than on Linux only the child itself is known.
fn stop(child: &mut Child) {
    let family = descendants(child.id());
    signal("TERM", family.keys());
    // A child that cannot be waited for is gone, which is what is wanted.
    let _ = wait_until(child, Instant::now() + GRACE);
    let now = processes();
    let alive = family.iter().filter(|(pid, process)| now.get(pid).is_some_and(|it| it.started == process.started));
    signal("KILL", alive.map(|(pid, _)| pid));
    let _ = child.kill();
    let _ = child.wait();
}

fn signal<'a>(name: &str, pids: impl Iterator<Item = &'a u32>) {
    let pids: Vec<String> = pids.map(u32::to_string).collect();
    if !pids.is_empty() {
        let script = format!("kill -{name} {} 2>/dev/null", pids.join(" "));
        // A process that has ended by itself in the meantime makes this fail, and that is fine.
        let _ = Command::new("sh").args(["-c", &script]).stdin(Stdio::null()).status();
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Process {
    parent: u32,
    /// Tells a process from a later one with the same number.
    started: String,
}

/// The process `pid` and all that it started, directly or not.
fn descendants(pid: u32) -> BTreeMap<u32, Process> {
    let all = processes();
    let mut family: BTreeMap<u32, Process> = all.get(&pid).map(|it| (pid, it.clone())).into_iter().collect();
    loop {
        let before = family.len();
        let more = all.iter().filter(|(_, it)| family.contains_key(&it.parent));
        let more: Vec<_> = more.map(|(pid, it)| (*pid, it.clone())).collect();
        family.extend(more);
        if family.len() == before {
            return family;
        }
    }
}

/// Every process of this machine, from `/proc`; none where there is no such place.
fn processes() -> BTreeMap<u32, Process> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter_map(|pid| Some((pid, process(pid)?))).collect()
}

fn process(pid: u32) -> Option<Process> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command's name, in parentheses, may itself hold spaces and parentheses.
    let (_, rest) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    Some(Process { parent: fields.get(1)?.parse().ok()?, started: (*fields.get(19)?).to_owned() })
}

fn failed(command: &Command, status: ExitStatus) -> Stop {
    Stop::Failed(format!("`{}`: {status}", line(command)))
}

/// The command as one would type it.
fn line(command: &Command) -> String {
    let words = [command.get_program()].into_iter().chain(command.get_args());
    words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_is_what_the_command_wrote() {
        assert_eq!(output(&mut program("echo", "a b"), LIMIT), Ok("a b\n".to_owned()));
    }

    #[test]
    fn only_exit_code_three_counts_as_skipped() {
        let run = |code: u8| pass_or_skip(Command::new("sh").args(["-c", &format!("exit {code}")]));
        assert_eq!(run(0), Ok(()));
        assert!(matches!(run(3), Err(Stop::Skipped(_))));
        assert!(matches!(run(4), Err(Stop::Failed(_))));
        assert!(matches!(pass(Command::new("sh").args(["-c", "exit 3"])), Err(Stop::Failed(_))));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_command_over_its_limit_is_stopped_with_its_children() {
        let script = "sleep 300 & echo $!; wait";
        let mut child = Command::new("sh").args(["-c", script]).stdout(Stdio::piped()).spawn().unwrap();
        let mut first = [0; 16];
        let length = child.stdout.as_mut().unwrap().read(&mut first).unwrap();
        let sleeper: u32 = std::str::from_utf8(&first[..length]).unwrap().trim().parse().unwrap();
        assert!(descendants(child.id()).contains_key(&sleeper));
        stop(&mut child);
        let left = || fs::read_to_string(format!("/proc/{sleeper}/stat")).unwrap_or_default();
        let (killed, is_gone) = (Instant::now(), || left().is_empty() || left().contains(") Z "));
        while !is_gone() {
            assert!(killed.elapsed() < GRACE, "{}", left()); // a killed process takes a moment to end
            thread::sleep(Duration::from_millis(1));
        }
    }
}
