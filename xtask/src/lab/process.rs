//! Programs of a scenario: short ones that are waited for, and services that run beside it.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::Stop;

/// No short program of the lab needs longer.
pub(crate) const LIMIT: Duration = Duration::from_secs(20);
/// How long a service that is told to stop may take.
const GRACE: Duration = Duration::from_secs(4);
/// How often a file or a process is looked at.
const TICK: Duration = Duration::from_millis(5);
/// How many of a service's last lines a failure prints.
const TAIL: usize = 12;

/// Runs a short program to its end with `input`, and gives what it wrote to standard output.
pub(crate) fn run(command: &mut Command, input: &str) -> Result<String, Stop> {
    let name = line(command);
    let failed = |why: String| Stop::Failed(format!("`{name}`: {why}"));
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| failed(format!("cannot start: {error}")))?;
    let pipe = child.stdin.take();
    let fed = pipe.map(|mut pipe| pipe.write_all(input.as_bytes())).transpose();
    // The program's output fits the pipes of those that are called here; one that does not end is killed.
    if !ends(&mut child, LIMIT) {
        let _ = child.kill();
        let _ = child.wait();
        return Err(failed(format!("not done after {} s, killed", LIMIT.as_secs())));
    }
    let output = child.wait_with_output().map_err(|error| failed(error.to_string()))?;
    if !output.status.success() {
        return Err(failed(format!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim())));
    }
    fed.map_err(|error| failed(format!("took no input: {error}")))?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Waits until `done` gives something, looking often; `None` after `limit`.
pub(crate) fn wait_for<T>(limit: Duration, mut done: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + limit;
    loop {
        let found = done();
        if found.is_some() || Instant::now() >= deadline {
            return found;
        }
        thread::sleep(TICK);
    }
}

/// How long something took.
pub(crate) fn timed<T>(what: impl FnOnce() -> T) -> (T, Duration) {
    let started = Instant::now();
    (what(), started.elapsed())
}

fn ends(child: &mut Child, limit: Duration) -> bool {
    // A child that cannot be waited for is gone.
    wait_for(limit, || (!matches!(child.try_wait(), Ok(None))).then_some(())).is_some()
}

/// A program that runs beside a scenario; what it prints goes to files. It ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Service {
    name: String,
    child: Child,
    output: PathBuf,
    /// How much of the output has been looked at.
    read: usize,
}

impl Service {
    /// Starts `command`; its files are `dir/name.out` and `dir/name.log`.
    pub(crate) fn start(command: &mut Command, name: &str, dir: &Path) -> Result<Self, Stop> {
        let (output, log) = (dir.join(format!("{name}.out")), dir.join(format!("{name}.log")));
        let files = || -> io::Result<(File, File)> {
            fs::create_dir_all(dir)?;
            Ok((File::create(&output)?, File::create(&log)?))
        };
        let failed = |error| Stop::Failed(format!("cannot start {name} (`{}`): {error}", line(command)));
        let (out, err) = files().map_err(failed)?;
        let spawned = command.stdin(Stdio::piped()).stdout(out).stderr(err).spawn();
        let child =
            spawned.map_err(|error| Stop::Failed(format!("cannot start {name} (`{}`): {error}", line(command))))?;
        Ok(Service { name: name.to_owned(), child, output, read: 0 })
    }

    /// Waits for the first new line that `wanted` takes; lines before it are passed over.
    pub(crate) fn line<T>(
        &mut self,
        limit: Duration,
        what: &str,
        wanted: impl Fn(&str) -> Option<T>,
    ) -> Result<T, Stop> {
        let (mut read, output, child) = (self.read, &self.output, &mut self.child);
        let mut ended = None;
        let found = wait_for(limit, || {
            // What it wrote before it ended counts: look at it once more after its end.
            let over = ended.is_some();
            ended = child.try_wait().ok().flatten();
            let text = fs::read_to_string(output).unwrap_or_default();
            while let Some(end) = text.get(read..).and_then(|rest| rest.find('\n')) {
                let line = text.get(read..read + end).unwrap_or_default();
                read += end + 1;
                if let Some(found) = wanted(line) {
                    return Some(Some(found));
                }
            }
            over.then_some(None)
        });
        self.read = read;
        let ended = ended
            .map_or_else(|| format!("after {} s", limit.as_secs()), |status| format!("before it ended ({status})"));
        found.flatten().ok_or_else(|| Stop::Failed(format!("{} did not say `{what}` {ended}", self.name)))
    }

    /// Waits for a line that is a JSON object whose field `event` is `event`, and `holds` of it.
    pub(crate) fn event(
        &mut self,
        limit: Duration,
        event: &str,
        holds: impl Fn(&Value) -> bool,
    ) -> Result<Value, Stop> {
        self.line(limit, event, |line| {
            let value: Value = serde_json::from_str(line).ok()?;
            (value["event"] == event && holds(&value)).then_some(value)
        })
    }
}

impl Service {
    /// Ends it without giving it a chance to say so.
    pub(crate) fn kill(mut self) {
        // One that has ended already is what is wanted.
        let _ = self.child.kill();
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // Its input stays open: a node whose input ends closes, and a signal then tells it to leave at once.
        let pid = self.child.id().to_string();
        if !ends(&mut self.child, Duration::ZERO) {
            let _ = Command::new("kill").args(["-TERM", &pid]).status();
        }
        if !ends(&mut self.child, GRACE) {
            let _ = self.child.kill();
        }
        let _ = self.child.wait();
    }
}

/// Prints the last lines of every file that the services of a scenario wrote, to standard error.
pub(crate) fn print_tails(dir: &Path) {
    let files = fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut files: Vec<PathBuf> = files.filter(|path| path.is_file()).collect();
    files.sort();
    for file in files {
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let bytes = fs::read(&file).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<&str> = text.lines().collect();
        for line in lines.iter().skip(lines.len().saturating_sub(TAIL)) {
            eprintln!("    {name}: {line}");
        }
    }
}

/// The command as one would type it.
fn line(command: &Command) -> String {
    let words = [command.get_program()].into_iter().chain(command.get_args());
    words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}
