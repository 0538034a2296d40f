//! A node that has run out of file descriptors for a moment.
#![cfg(unix)]
#![allow(clippy::unwrap_used)] // a test's way to fail

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::mpsc::{self, Receiver},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

/// File descriptors that the node may have, and connections that take them all.
const LIMIT: usize = 128;
const CONNECTIONS: usize = LIMIT + 32;

/// What the test waits for at most.
const SOON: Duration = Duration::from_secs(30);

#[test]
fn every_listener_of_a_node_that_was_out_of_file_descriptors_takes_connections_again() {
    let scratch = Scratch::new();
    let target = echo_server();
    let mut up = scratch.start("node", &["up", "--metrics", "0"]);
    let metrics = up.event("metrics")["address"].as_str().unwrap().to_owned();
    let mut serve = scratch.start("serve", &["serve", "echo", &target]);
    let ticket = serve.event("ticket")["ticket"].as_str().unwrap().to_owned();
    let mut reach = scratch.start("node", &["reach", &ticket]);
    let port = reach.event("listening")["address"].as_str().unwrap().to_owned();
    assert_echo(&port);

    let held: Vec<_> = (0..CONNECTIONS).map(|_| TcpStream::connect(&port).unwrap()).collect();
    up.warns("cannot take a connection");
    let mut asking = TcpStream::connect(&metrics).unwrap();
    asking.set_read_timeout(Some(SOON)).unwrap();
    asking.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    up.warns("cannot take a request");
    let status = scratch.command("node", &["status"]).spawn().unwrap();
    up.warns("cannot take a command");
    drop(held);

    let mut answer = String::new();
    asking.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    let status = status.wait_with_output().unwrap();
    assert!(status.status.success(), "{status:?}");
    assert_echo(&port);
}

/// A TCP service that sends back what it got once it got all of it; its target.
fn echo_server() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let target = format!("tcp:{}", listener.local_addr().unwrap());
    thread::spawn(move || {
        for stream in listener.incoming() {
            thread::spawn(move || {
                let (mut stream, mut bytes) = (stream.unwrap(), Vec::new());
                let _ = stream.read_to_end(&mut bytes).and_then(|_| stream.write_all(&bytes)); // some are broken off
            });
        }
    });
    target
}

/// A connection to `port` comes through before long.
fn assert_echo(port: &str) {
    let began = Instant::now();
    loop {
        match echo(port) {
            Ok(answer) if answer == b"hello" => return,
            other => assert!(began.elapsed() < SOON, "{other:?} after {:?}", began.elapsed()),
        }
        thread::sleep(Duration::from_millis(20));
    }
}

fn echo(port: &str) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(port)?;
    stream.set_read_timeout(Some(SOON))?;
    stream.write_all(b"hello")?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(answer)
}

/// A directory for the data directories, removed at the end.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        let path = std::env::temp_dir().join(format!("byway-descriptors-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        fs::write(path.join("loopback.toml"), "ipv4 = \"127.0.0.1\"\nipv6 = false\n").unwrap();
        Scratch(path)
    }

    /// `byway --json ARGS...` with the data directory `dir`, on loopback; `node` has few file descriptors.
    fn command(&self, dir: &str, args: &[&str]) -> Command {
        let mut command = Command::new("sh");
        let limit = if dir == "node" { format!("ulimit -n {LIMIT} && ") } else { String::new() };
        let script = limit + "exec \"$0\" \"$@\"";
        command.current_dir(&self.0).args(["-c", &script, env!("CARGO_BIN_EXE_byway")]);
        command.args(["--json", "--data-dir", dir, "--config", "loopback.toml"]).args(args);
        command.env("BYWAY_LOG", "warn").env("NO_COLOR", "1");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn start(&self, dir: &str, args: &[&str]) -> Process {
        let mut child = self.command(dir, args).spawn().unwrap();
        let (tell, events) = mpsc::channel();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                let _ = tell.send(serde_json::from_str(&line).unwrap()); // nobody may wait for it any more
            }
        });
        let (warn, warnings) = mpsc::channel();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                let _ = warn.send(line); // as above
            }
        });
        Process { child, events, warnings }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A running command. Dropping it kills it.
struct Process {
    child: Child,
    events: Receiver<Value>,
    warnings: Receiver<String>,
}

impl Process {
    /// Waits for an event of this kind.
    fn event(&mut self, kind: &str) -> Value {
        loop {
            let event = self.events.recv_timeout(SOON).unwrap_or_else(|error| panic!("no `{kind}` event: {error}"));
            if event["event"] == kind {
                return event;
            }
        }
    }

    /// Waits for a warning with these words.
    fn warns(&self, words: &str) {
        let warned = std::iter::from_fn(|| self.warnings.recv_timeout(SOON).ok()).any(|line| line.contains(words));
        assert!(warned, "it did not say {words:?}");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
