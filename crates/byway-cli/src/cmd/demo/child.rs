//! A part of the demo: a process of this same program.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{self, ChildStdin, ChildStdout},
    sync::mpsc,
    time,
};

use super::super::Shell;
use crate::{control::Event, datadir::DataDir, failure::Failure};

/// How long a part may take to say what the others need.
const WORD_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a part may take to end by itself; a draining relay takes three seconds.
const END_TIMEOUT: Duration = Duration::from_secs(5);

/// Events of a part that nobody has looked at yet.
const EVENTS: usize = 256;

/// A running part. Dropping it ends the process.
pub(super) struct Child {
    name: &'static str,
    pub(super) pid: u32,
    pub(super) dir: DataDir,
    process: process::Child,
    /// Its end asks the process to end. Kept apart: waiting for the process would close it.
    stdin: Option<ChildStdin>,
    told: mpsc::Receiver<(Instant, Event)>,
}

impl Child {
    /// Starts `byway NAME ARGS...` with a data directory of its own.
    pub(super) fn spawn(shell: &Shell, name: &'static str, dir: DataDir, args: &[&str]) -> Result<Self, Failure> {
        let failed = |error: io::Error| Failure::here(format!("cannot start `byway {name}`: {error}"));
        let mut command = process::Command::new(env::current_exe().map_err(failed)?);
        command.arg("--data-dir").arg(dir.path()).arg("--config").arg(dir.path().join("byway.toml"));
        // A demo that is killed takes its parts along: their standard input ends.
        command.args(["--json", "--until-stdin-closes", name]).args(args);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        match shell.global.verbose {
            0 => command.stderr(Stdio::null()),
            level => command.arg(format!("-{}", "v".repeat(level.into()))),
        };
        let mut process = command.spawn().map_err(failed)?;
        let pid = process.id().unwrap_or_default();
        let (tell, told) = mpsc::channel(EVENTS);
        if let Some(stdout) = process.stdout.take() {
            tokio::spawn(listen(stdout, tell));
        }
        let stdin = process.stdin.take();
        Ok(Child { name, pid, dir, process, stdin, told })
    }

    /// Waits for the event that `find` looks for; returns what it finds, and when it was told.
    pub(super) async fn wait_for<T>(
        &mut self,
        mut find: impl FnMut(&Event) -> Option<T>,
    ) -> Result<(Instant, T), Failure> {
        let name = self.name;
        let search = async {
            while let Some((at, event)) = self.told.recv().await {
                if let Event::Error(failure) = &event {
                    return Err(Failure::new(failure.code, format!("`byway {name}`: {failure}")));
                }
                if let Some(found) = find(&event) {
                    return Ok((at, found));
                }
            }
            Err(Failure::here(format!("`byway {name}` ended unexpectedly; run the demo with -v to see why")))
        };
        let silent = || Failure::here(format!("`byway {name}` does not get ready; run the demo with -v to see why"));
        time::timeout(WORD_TIMEOUT, search).await.unwrap_or_else(|_| Err(silent()))
    }

    /// Waits until the process ends, which it should not.
    pub(super) async fn ended(&mut self) -> Failure {
        let name = self.name;
        match self.process.wait().await {
            Ok(status) => Failure::here(format!("`byway {name}` ended unexpectedly ({status})")),
            Err(error) => Failure::here(format!("`byway {name}` is lost: {error}")),
        }
    }

    /// Asks the process to end, and kills it if it does not.
    pub(super) async fn end(&mut self) {
        drop(self.stdin.take());
        if time::timeout(END_TIMEOUT, self.process.wait()).await.is_err() {
            let _ = self.process.kill().await; // it has ended just now, then
        }
    }
}

/// Passes on what the process tells; what it says in other words is not for us.
async fn listen(stdout: ChildStdout, tell: mpsc::Sender<(Instant, Event)>) {
    let mut lines = BufReader::new(stdout).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        if let Ok(event) = serde_json::from_str(&line) {
            // Whoever reads no more must not stop the process by a full pipe.
            let _ = tell.try_send((Instant::now(), event));
        }
    }
}

/// A temporary directory that no other user can enter, removed at the end.
pub(super) struct Scratch(PathBuf);

impl Scratch {
    pub(super) fn new() -> Result<Self, Failure> {
        let mut number = [0; 4];
        getrandom::fill(&mut number).map_err(|error| Failure::here(format!("no randomness: {error}")))?;
        let path = env::temp_dir().join(format!("byway-demo-{:08x}", u32::from_be_bytes(number)));
        let mut builder = fs::DirBuilder::new();
        #[cfg(unix)]
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        builder
            .create(&path)
            .map_err(|error| Failure::here(format!("cannot make {}: {error}; set TMPDIR", path.display())))?;
        Ok(Scratch(path))
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            tracing::warn!(%error, "the demo's temporary directory is left behind");
        }
    }
}
