//! The README's walk-through as three processes with a data directory each, and what a crash of any of them does.
#![allow(clippy::unwrap_used, reason = "a test may fail by panicking")]

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

/// What the service answers to every connection: enough for many packets.
const ANSWER: usize = 300_000;

/// Time in which everything must work again after a crash. The promise is five seconds; a busy machine gets slack.
const RECOVERY: Duration = Duration::from_secs(20);

/// A process of ours, and the lines that it prints.
struct Process {
    child: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Process {
    /// Starts `byway` on loopback alone; it ends with this test whatever happens.
    fn start(home: &Path, name: &str, args: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_byway"))
            .args(["--until-stdin-closes", "--config"])
            // Nodes may be told to use relays alone; a relay has to be reached directly.
            .arg(home.join(if name == "relay" { "relay.toml" } else { "byway.toml" }))
            .arg("--data-dir")
            .arg(home.join(name))
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Process { child, lines }
    }

    fn line(&mut self) -> String {
        self.lines.next().expect("the process printed its result").unwrap()
    }

    /// Ends it as a crash would: SIGKILL, no goodbye.
    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn home(name: &str, relay_only: bool) -> PathBuf {
    // Control sockets have short paths, so the directory is the system's temporary one.
    let home = std::env::temp_dir().join(format!("byway-{name}-{}", std::process::id()));
    let _ = fs::remove_dir_all(&home);
    fs::create_dir_all(&home).unwrap();
    let config = format!("ipv4 = \"127.0.0.1\"\nipv6 = false\nrelay_only = {relay_only}\n");
    fs::write(home.join("byway.toml"), config).unwrap();
    fs::write(home.join("relay.toml"), "ipv4 = \"127.0.0.1\"\nipv6 = false\n").unwrap();
    home
}

/// A service that answers every connection with the same bytes once it has read a line.
fn service() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            thread::spawn(move || {
                let mut line = String::new();
                let mut stream = BufReader::new(stream);
                if stream.read_line(&mut line).is_ok() && line == "give\n" {
                    let _ = stream.get_mut().write_all(&answer());
                }
            });
        }
    });
    addr
}

fn answer() -> Vec<u8> {
    (0..ANSWER).map(|n| (n * 7 % 251) as u8).collect()
}

/// Asks the service at the end of the tunnel; `None` if the connection broke.
fn ask(addr: SocketAddr) -> Option<Vec<u8>> {
    let mut stream = TcpStream::connect(addr).ok()?;
    stream.set_read_timeout(Some(RECOVERY)).ok()?;
    stream.write_all(b"give\n").ok()?;
    let mut got = Vec::new();
    stream.read_to_end(&mut got).ok()?;
    Some(got)
}

fn works(addr: SocketAddr, after: &str) {
    let start = Instant::now();
    loop {
        if ask(addr).is_some_and(|got| got == answer()) {
            return;
        }
        assert!(start.elapsed() < RECOVERY, "no answer {after}");
        thread::sleep(Duration::from_millis(50));
    }
}

fn walk(name: &str, relay_only: bool) {
    let home = home(name, relay_only);
    let to = format!("tcp:{}", service());
    let relay_at = |listen: &str| Process::start(&home, "relay", &["relay", "--listen", listen]);
    let mut relay = relay_at("127.0.0.1:0");
    let relay_addr = relay.line();
    let listen = relay_addr.split_once('@').expect("a relay prints its key and its address").1.to_owned();

    let mut serve = Process::start(&home, "serve", &["serve", "web", &to, "--relay", &relay_addr]);
    let ticket = serve.line();
    let mut reach = Process::start(&home, "reach", &["reach", &ticket]);
    let local: SocketAddr = reach.line().parse().unwrap();
    works(local, "at first");

    serve.kill();
    let serve = Process::start(&home, "serve", &["serve", "web", &to, "--relay", &relay_addr]);
    works(local, "after serve was killed and started again");

    relay.kill();
    let relay = relay_at(&listen);
    works(local, "after the relay was killed and started again");

    reach.kill();
    let mut reach = Process::start(&home, "reach", &["reach", &ticket, "--listen", &local.to_string()]);
    assert_eq!(reach.line(), local.to_string());
    works(local, "after reach was killed and started again, with the ticket it had redeemed");

    drop((serve, relay, reach));
    fs::remove_dir_all(home).unwrap();
}

#[test]
fn any_of_the_three_may_crash_and_come_back_while_the_path_is_direct() {
    walk("direct", false);
}

#[test]
fn any_of_the_three_may_crash_and_come_back_while_all_goes_through_the_relay() {
    walk("relayed", true);
}

#[test]
fn a_ticket_that_another_machine_has_redeemed_is_refused_with_a_reason() {
    let home = home("refused", false);
    let to = format!("tcp:{}", service());
    let mut serve = Process::start(&home, "serve", &["serve", "web", &to]);
    let ticket = serve.line();
    let mut first = Process::start(&home, "first", &["reach", &ticket]);
    works(first.line().parse().unwrap(), "for the first");
    let second = Command::new(env!("CARGO_BIN_EXE_byway"))
        .arg("--config")
        .arg(home.join("byway.toml"))
        .arg("--data-dir")
        .arg(home.join("second"))
        .args(["reach", &ticket])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    assert_eq!(second.status.code(), Some(5), "{said}");
    assert!(said.contains("new one"), "{said}");
    drop((serve, first));
    fs::remove_dir_all(home).unwrap();
}
