//! The command line as its users meet it: separate processes, real sockets, kills.
#![allow(clippy::unwrap_used)] // a test's way to fail

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Output, Stdio},
    sync::mpsc::{self, Receiver},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

/// Within which everything works again after a kill: the promise is five seconds, a busy machine gets slack.
const AGAIN: Duration = Duration::from_secs(15);

/// What a test waits for at most.
const SOON: Duration = Duration::from_secs(30);

#[test]
fn each_of_three_processes_may_be_killed_and_comes_back() {
    walk("walk", &[]);
}

#[test]
fn each_of_three_processes_may_be_killed_and_comes_back_while_all_goes_through_the_relay() {
    walk("relayed", &["--relay-only"]);
}

fn walk(name: &str, options: &[&str]) {
    let scratch = Scratch::new(name);
    let echo = Echo::start();
    let mut relay = scratch.start("relay", &["relay", "--listen", "127.0.0.1:0"]);
    let address = relay.event("relay")["address"].as_str().unwrap().to_owned();
    let target = echo.target();
    let serve_args = [&["serve", "echo", &target, "--relay", &address, "--hide-addresses"][..], options].concat();
    let mut serve = scratch.start("serve", &serve_args);
    let ticket = serve.event("ticket")["ticket"].as_str().unwrap().to_owned();
    serve.event("relay_up");
    let reach_args = [&["reach", &ticket][..], options].concat();
    let mut reach = scratch.start("reach", &reach_args);
    let port = reach.event("listening")["address"].as_str().unwrap().to_owned();
    assert_echo(&port);

    serve.kill();
    let mut serve = scratch.start("serve", &serve_args);
    let fresh = serve.event("ticket")["ticket"].as_str().unwrap().to_owned();
    assert_ne!(fresh, ticket, "the first ticket was used");
    assert_echo(&port);
    assert_eq!(reach.event("gone")["reason"], "restarted");

    relay.kill();
    let mut relay = scratch.start("relay", &["relay", "--listen", "127.0.0.1:0"]);
    assert_eq!(relay.event("relay")["address"], address.as_str(), "a relay keeps its port and key");
    assert_echo(&port);

    // The used ticket is good for the peer that used it, and the local port is the same.
    reach.kill();
    let mut reach = scratch.start("reach", &reach_args);
    assert_eq!(reach.event("listening")["address"], port.as_str());
    assert_echo(&port);
    let status = scratch.json("reach", &["status"]);
    assert_eq!(status["reaching"][0]["connected"], true);
    assert_eq!(status["peers"].as_array().unwrap().len(), 1);
}

#[test]
fn a_ticket_admits_one_machine_and_the_next_ticket_another() {
    let scratch = Scratch::new("ticket");
    let echo = Echo::start();
    let mut serve = scratch.start("serve", &["serve", "echo", &echo.target()]);
    let ticket = serve.event("ticket")["ticket"].as_str().unwrap().to_owned();
    let mut first = scratch.start("first", &["reach", &ticket]);
    assert_echo(first.event("listening")["address"].as_str().unwrap());
    let second = scratch.run("second", &["reach", &ticket]);
    assert_eq!(second.status.code(), Some(5), "{second:?}");
    serve.event("redeemed");
    let next = serve.event("ticket")["ticket"].as_str().unwrap().to_owned();
    let mut second = scratch.start("second", &["reach", &next]);
    assert_echo(second.event("listening")["address"].as_str().unwrap());
    // Later by name alone.
    let peer = second.event("dialling")["peer"].as_str().unwrap().to_owned();
    second.stop();
    let mut second = scratch.start("second", &["reach", &format!("{}/echo", &peer[..10])]);
    assert_echo(second.event("listening")["address"].as_str().unwrap());
}

#[test]
fn a_later_process_attaches_and_is_told_when_the_first_ends() {
    let scratch = Scratch::new("attach");
    let echo = Echo::start();
    let mut up = scratch.start("node", &["up"]);
    let id = up.event("node")["id"].as_str().unwrap().to_owned();
    let mut serve = scratch.start("node", &["serve", "echo", &echo.target(), "--open"]);
    let ticket = serve.event("ticket")["ticket"].as_str().unwrap().to_owned();
    let status = scratch.json("node", &["status"]);
    assert_eq!((status["id"].as_str(), status["serving"][0]["name"].as_str()), (Some(id.as_str()), Some("echo")));
    assert_eq!(scratch.run("node", &["up"]).status.code(), Some(1), "one node a data directory");
    let mut reach = scratch.start("other", &["reach", &ticket]);
    assert_echo(reach.event("listening")["address"].as_str().unwrap());
    up.stop();
    assert_eq!(serve.event("error")["code"], 3);
    assert_eq!(serve.ended(), Some(3));
    assert_eq!(scratch.run("node", &["status"]).status.code(), Some(3));
}

#[test]
fn a_pipe_carries_both_directions_to_the_last_byte() {
    let scratch = Scratch::new("pipe");
    let bytes: Vec<u8> = (0..3_000_000_u32).map(|number| (number >> 7) as u8).collect();
    fs::write(scratch.0.join("bytes"), &bytes).unwrap();
    let file = || fs::File::open(scratch.0.join("bytes")).unwrap();
    let mut taking = scratch.command("taking", &["pipe"]);
    let mut taking = taking.stdin(file()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(taking.stderr.take().unwrap()).read_line(&mut line).unwrap();
    let ticket = serde_json::from_str::<Value>(&line).unwrap()["ticket"].as_str().unwrap().to_owned();
    let mut dialling = scratch.command("dialling", &["pipe", &ticket]);
    let dialling = dialling.stdin(file()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let taken = thread::spawn(move || taking.wait_with_output().unwrap());
    let dialled = dialling.wait_with_output().unwrap();
    let taken = taken.join().unwrap();
    assert_eq!((dialled.status.code(), taken.status.code()), (Some(0), Some(0)));
    assert!(dialled.stdout == bytes && taken.stdout == bytes);
}

#[test]
fn a_pipe_that_fails_puts_nothing_among_the_bytes_on_standard_output() {
    let scratch = Scratch::new("pipe-fails");
    let failed = scratch.run("a", &["pipe", "some-body/web"]);
    assert_eq!((failed.status.code(), failed.stdout.as_slice()), (Some(2), &b""[..]));
    let told: Value = serde_json::from_slice(&failed.stderr).unwrap();
    assert_eq!((told["event"].as_str(), told["code"].as_u64()), (Some("error"), Some(2)));
}

#[cfg(target_os = "linux")]
#[test]
fn a_result_that_a_full_disk_did_not_take_is_a_failure_and_a_reader_that_has_gone_is_none() {
    let scratch = Scratch::new("full");
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let failed = scratch.command("a", &["id"]).stdout(full).stderr(Stdio::piped()).output().unwrap();
    let stderr = String::from_utf8_lossy(&failed.stderr).into_owned();
    assert_eq!(failed.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("standard output did not take everything"), "{stderr}");
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    assert_eq!(scratch.command("a", &["id"]).stdout(writer).output().unwrap().status.code(), Some(0));
}

#[cfg(unix)]
#[test]
fn an_import_that_waits_for_its_book_ends_at_the_first_signal() {
    let scratch = Scratch::new("import-stops");
    let mut import = scratch.command("a", &["peers", "import"]);
    let mut import = import.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    thread::sleep(Duration::from_millis(500)); // until it listens for signals
    assert!(Command::new("kill").args(["-INT", &import.id().to_string()]).status().unwrap().success());
    let began = Instant::now();
    let ended = loop {
        match import.try_wait().unwrap() {
            Some(ended) => break ended.code(),
            None if began.elapsed() > SOON => {
                import.kill().unwrap();
                panic!("the signal was ignored");
            }
            None => thread::sleep(Duration::from_millis(20)),
        }
    };
    assert!(ended.is_none_or(|code| code == 130), "{ended:?}"); // none: it was too slow to listen
}

#[test]
fn a_node_is_stopped_while_its_tickets_still_wait_for_a_stun_server() {
    let scratch = Scratch::new("up-stops");
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut config = fs::read_to_string(scratch.0.join("loopback.toml")).unwrap();
    config.push_str(&format!("stun = [\"{}\"]\n", silent.local_addr().unwrap()));
    for name in ["a", "b", "c", "d", "e", "f", "g", "h"] {
        config.push_str(&format!("[[serve]]\nname = \"{name}\"\nto = \"tcp:127.0.0.1:1\"\n"));
    }
    fs::write(scratch.0.join("slow.toml"), config).unwrap();
    let mut up = scratch.start("node", &["--config", "slow.toml", "up"]);
    up.event("ticket"); // each takes two seconds
    let began = Instant::now();
    up.stop();
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
}

#[test]
fn a_log_filter_that_makes_no_sense_is_told() {
    let scratch = Scratch::new("log");
    let told = scratch.command("a", &["id"]).env("BYWAY_LOG", "byway=loud").output().unwrap();
    assert_eq!(told.status.code(), Some(0));
    assert!(String::from_utf8_lossy(&told.stderr).contains("BYWAY_LOG does not count"), "{told:?}");
}

#[test]
fn the_demo_does_what_it_claims_and_leaves_nothing_behind() {
    let scratch = Scratch::new("demo");
    let mut command = scratch.command("none", &["demo", "--once"]);
    let output = command.env("TMPDIR", &scratch.0).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let row: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((row["ok"].as_bool(), row["path"].as_str()), (Some(true), Some("direct")), "{row}");
    assert!(row["relay_bytes"].as_u64().unwrap() > 0, "{row}");
    let left: Vec<_> =
        fs::read_dir(&scratch.0).unwrap().filter_map(Result::ok).map(|entry| entry.file_name()).collect();
    assert!(left.iter().all(|name| !name.to_string_lossy().contains("demo")), "{left:?}");
}

#[test]
fn a_check_against_a_relay_on_loopback_finds_an_address_that_nobody_translates() {
    let scratch = Scratch::new("check");
    let mut relay = scratch.start("relay", &["relay", "--listen", "127.0.0.1:0"]);
    let address = relay.event("relay")["address"].as_str().unwrap().to_owned();
    let check = scratch.json("alone", &["check", "--relay", &address]);
    let family = &check["families"][0];
    assert_eq!((family["family"].as_str(), family["untranslated"].as_bool()), (Some("ipv4"), Some(true)), "{check}");
    assert!(family["public"].as_str().unwrap().starts_with("127.0.0.1:"), "{check}");
    assert_eq!(check["outlook"][0]["path"], "direct", "{check}");
    assert_eq!(check["servers"][0]["state"], "registered", "{check}");
    // A node that runs already tells the same of its own port, also through a STUN server that the command brings.
    let mut up = scratch.start("node", &["up"]);
    let port = up.event("node")["addresses"][0].clone();
    let stun = address.split_once('@').unwrap().1;
    let check = scratch.json("node", &["check", "--stun", stun]);
    assert_eq!(check["families"][0]["public"], port, "{check}");
    assert_eq!(up.event("nat_changed")["families"][0]["untranslated"], true);
    assert_eq!(scratch.json("node", &["status"])["nat"]["families"][0]["public"], port);
}

#[test]
fn a_check_that_nobody_answers_ends_in_time_and_says_so() {
    let scratch = Scratch::new("silent");
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let server = silent.local_addr().unwrap().to_string();
    let began = Instant::now();
    let check = scratch.json("a", &["check", "--stun", &server]);
    assert_eq!(
        (check["families"][0]["public"].clone(), check["families"][0]["udp"].as_bool()),
        (Value::Null, Some(false))
    );
    assert_eq!(check["outlook"][0]["path"], "relay", "{check}");
    assert!(began.elapsed() < Duration::from_secs(12), "{:?}", began.elapsed());
    let hasty = scratch.run("a", &["check", "--stun", &server, "--wait", "1"]);
    let stderr = String::from_utf8_lossy(&hasty.stderr).into_owned();
    assert_eq!(hasty.status.code(), Some(4), "{stderr}");
    assert!(stderr.contains("--wait") && stderr.contains("an answer of each server"), "{stderr}");
}

#[test]
fn a_running_relay_follows_its_configuration_and_keeps_the_last_good_one() {
    let scratch = Scratch::new("reload");
    let file = scratch.0.join("loopback.toml");
    let base = fs::read_to_string(&file).unwrap();
    let write = |more: &str| fs::write(&file, format!("{base}{more}")).unwrap();
    let reload = || {
        let output = scratch.run("relay", &["reload"]);
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code(), serde_json::from_slice::<Value>(&output.stdout).unwrap(), stderr)
    };
    assert_eq!(scratch.run("relay", &["reload"]).status.code(), Some(3), "there is no node yet");
    let mut relay = scratch.start("relay", &["relay", "--listen", "127.0.0.1:0"]);
    let address = relay.event("relay")["address"].as_str().unwrap().to_owned();
    let mut client = scratch.start("client", &["serve", "echo", "tcp:127.0.0.1:1", "--relay", &address]);
    client.event("relay_up");
    let id = scratch.json("client", &["id"])["id"].as_str().unwrap().to_owned();

    write(&format!("relay = {{ access = \"friends\", friends = [\"{id}\"], client_mbit_s = 5 }}\n"));
    let (code, told, _) = reload();
    let keys: Vec<_> =
        told["changed"].as_array().unwrap().iter().map(|change| change["key"].as_str().unwrap()).collect();
    assert_eq!((code, keys), (Some(0), vec!["relay.access", "relay.client_mbit_s", "relay.friends"]), "{told}");
    assert_eq!(told["changed"][1]["what"], "default -> 5");

    write("relay.client_mbit_s = 0\n");
    let (code, told, stderr) = reload();
    assert_eq!((code, told["code"].as_u64()), (Some(2), Some(2)), "{told}");
    for part in ["loopback.toml, line 3", "out of its range, 1 to 100000", "goes on with the configuration that it had"]
    {
        assert!(stderr.contains(part), "{stderr}");
    }
    assert_eq!(scratch.json("relay", &["status"])["relaying"]["clients"], 1, "the friend has stayed");

    write("port = 9\n");
    #[cfg(unix)]
    {
        let pid = relay.child.id().to_string();
        assert!(Command::new("kill").args(["-HUP", &pid]).status().unwrap().success());
        let began = Instant::now();
        while reload().1["changed"] != Value::Array(Vec::new()) {
            assert!(began.elapsed() < SOON, "the signal was not followed");
        }
    }
    assert_eq!(reload().1["restart"], serde_json::json!(["port"]), "until it is started anew");
    write("relay.access = \"friends\"\n");
    reload();
    assert!(client.event("relay_down")["message"].as_str().unwrap().contains("serves its friends only"));
}

#[test]
fn a_bench_measures_both_directions_and_a_stranger_is_refused() {
    let scratch = Scratch::new("bench");
    let echo = Echo::start();
    let mut serve = scratch.start("serve", &["serve", "echo", &echo.target()]);
    let ticket = serve.event("ticket")["ticket"].as_str().unwrap().to_owned();
    let measured = scratch.run("first", &["bench", &ticket, "--seconds", "1", "--json"]);
    assert_eq!(measured.status.code(), Some(0), "{measured:?}");
    let told = String::from_utf8(measured.stdout).unwrap();
    let last: Value = serde_json::from_str(told.lines().last().unwrap()).unwrap();
    assert_eq!(last["event"], "measured");
    for direction in ["up", "down"] {
        assert!(last[direction]["bytes"].as_u64().unwrap() > 1 << 20, "{last}");
        assert!(last[direction]["mbit_s"].as_f64().unwrap() > 1.0, "{last}");
        assert!(last[direction]["delay"]["p99_ms"].as_f64().unwrap() > 0.0, "{last}");
    }
    assert!(last["idle"]["p50_ms"].as_f64().unwrap() > 0.0 && last["routes"][0]["selected"] == true, "{last}");
    // The ticket is the first one's now.
    let stranger = scratch.run("second", &["bench", &ticket, "--seconds", "1"]);
    assert_eq!(stranger.status.code(), Some(5), "{stranger:?}");
    assert!(String::from_utf8_lossy(&stranger.stderr).contains("ticket"), "{stranger:?}");
}

#[test]
fn why_says_that_two_nodes_on_one_machine_need_no_relay() {
    let scratch = Scratch::new("why");
    let echo = Echo::start();
    let mut relay = scratch.start("relay", &["relay", "--listen", "127.0.0.1:0"]);
    let address = relay.event("relay")["address"].as_str().unwrap().to_owned();
    let mut serve = scratch.start("serve", &["serve", "echo", &echo.target(), "--relay", &address]);
    let ticket = serve.event("ticket")["ticket"].as_str().unwrap().to_owned();
    serve.event("relay_up");
    let mut other = scratch.start("reach", &["up"]);
    other.event("node");
    let early = scratch.run("reach", &["why", &ticket]);
    assert_eq!(early.status.code(), Some(4), "{early:?}");
    assert!(String::from_utf8_lossy(&early.stderr).contains("byway ping"), "{early:?}");
    let told = String::from_utf8_lossy(&early.stdout).into_owned();
    let why_not: Value = serde_json::from_str(told.lines().next().unwrap()).unwrap();
    assert_eq!((why_not["event"].as_str(), why_not["attempts"].as_u64()), (Some("why_not"), Some(0)), "{told}");
    assert!(why_not["answer"].as_str().unwrap().contains("no command of this node reaches for it"), "{told}");
    assert!(why_not["addresses"].as_u64().unwrap() > 0, "{told}");
    let mut reach = scratch.start("reach", &["reach", &ticket]);
    assert_echo(reach.event("listening")["address"].as_str().unwrap());
    let peer = reach.event("dialling")["peer"].as_str().unwrap().to_owned();
    let why = scratch.json("reach", &["why", &peer[..10]]);
    assert_eq!((why["path"].as_str(), why["peer"].as_str()), (Some("direct"), Some(peer.as_str())), "{why}");
    assert!(why["answer"].as_str().unwrap().contains("this machine"), "{why}");
    assert_eq!(why["remedies"].as_array().unwrap().len(), 0, "{why}");
    // The served side was never told of its peer by a ticket, but is connected to it.
    let id = other.event("peer_up")["peer"].as_str().map(|_| scratch.json("reach", &["id"])).unwrap();
    let seen = scratch.json("serve", &["why", &id["id"].as_str().unwrap()[..10]]);
    assert_eq!(seen["path"], "direct", "{seen}");
}

/// One request to a web server; the whole answer.
fn get(address: &str, request: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(format!("{request}\r\nHost: x\r\n\r\n").as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn prometheus_reads_what_a_node_tells_and_a_taken_address_is_an_error() {
    let scratch = Scratch::new("metrics");
    let mut up = scratch.start("node", &["up", "--metrics", "0"]);
    let free = up.event("metrics")["address"].as_str().unwrap().to_owned();
    let answer = get(&free, "GET /metrics HTTP/1.1");
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.contains("version=0.0.4"), "{answer}");
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.contains(&format!("Content-Length: {}\r\n", body.len())), "{head}");
    assert!(body.contains("\nbyway_peers{path=\"direct\"} 0\n"), "{body}");
    assert!(get(&free, "HEAD /metrics HTTP/1.1").ends_with("\r\n\r\n"));
    assert!(get(&free, "GET / HTTP/1.1").starts_with("HTTP/1.1 404"));
    assert!(get(&free, "POST /metrics HTTP/1.1").starts_with("HTTP/1.1 405"));
    let port = free.rsplit_once(':').unwrap().1;
    let second = scratch.run("second", &["up", "--metrics", port]);
    let stderr = String::from_utf8_lossy(&second.stderr).into_owned();
    assert_eq!(second.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains(&free) && stderr.contains("another program uses it"), "{stderr}");
}

#[test]
fn bad_input_has_its_exit_code_and_says_what_to_do() {
    let scratch = Scratch::new("bad");
    let mut up = scratch.start("node", &["up"]);
    let node = up.event("node");
    let id = node["id"].as_str().unwrap();
    let port = node["addresses"][0].as_str().unwrap().rsplit_once(':').unwrap().1;
    fs::write(scratch.0.join("taken.toml"), format!("ipv4 = \"127.0.0.1\"\nipv6 = false\nport = {port}\n")).unwrap();
    fs::write(scratch.0.join("nat.toml"), "nat.probes = 1201\n").unwrap();
    fs::write(scratch.0.join("typo.toml"), "prot = 1\n").unwrap();
    fs::create_dir(scratch.0.join("damaged")).unwrap();
    fs::write(scratch.0.join("damaged/identity.key"), "byway-key-1 ed25519\nabc\n").unwrap();
    let long = "x".repeat(110);
    for (dir, args, code, hint) in [
        ("a", &["reach", "byway1abcdef"][..], 2, "copy all of it"),
        ("a", &["reach", "some-body/web"], 2, "neither a ticket"),
        ("a", &["ping", "abcdefgh"], 2, "by a ticket first"),
        ("node", &["status", "--watch"], 2, "byway status --json"),
        ("a", &["up", "--metrics", "localhost:1"], 2, "127.0.0.1:9464"),
        ("a", &["status"], 3, "byway up"),
        ("node", &["relay"], 1, "another --data-dir"),
        ("a", &["--config", "taken.toml", "up"], 1, "in use"),
        ("a", &["--config", "typo.toml", "up"], 2, "`prot`"),
        ("a", &["--config", "missing.toml", "up"], 2, "missing.toml"),
        ("damaged", &["up"], 1, "backup"),
        (&long, &["up"], 1, "shorter --data-dir"),
        ("a", &["pipe", "--hide-addresses"], 2, "needs a relay"),
        ("a", &["check"], 2, "name a relay"),
        ("a", &["check", "--stun", "stun.invalid:3478"], 4, "stun.invalid:3478"),
        ("a", &["check", "--stun", "127.0.0.1"], 2, "no port"),
        ("a", &["--config", "taken.toml", "check", "--stun", "127.0.0.1:9"], 1, "in use"),
        ("a", &["--config", "nat.toml", "up"], 2, "nat.probes is 1201, but its range is 0 to 1200"),
        ("a", &["why", "abcdefgh"], 3, "byway up"),
        ("node", &["why", "abcdefgh"], 2, "by a ticket first"),
        ("node", &["why", "some-body"], 2, "neither a ticket"),
        ("node", &["why", id], 2, "this node itself"),
    ] {
        let output = scratch.run(dir, args);
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{args:?}: {stderr}");
        assert!(stderr.contains(hint), "{args:?}: {stderr}");
    }
}

/// A directory for the data directories of one test, removed at the end.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("byway-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        fs::write(path.join("loopback.toml"), "ipv4 = \"127.0.0.1\"\nipv6 = false\n").unwrap();
        Scratch(path)
    }

    /// `byway --json ARGS...` with the data directory `dir`, on loopback unless the arguments name a configuration.
    fn command(&self, dir: &str, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_byway"));
        command.current_dir(&self.0).args(["--json", "--data-dir", dir]).args(args);
        if !args.contains(&"--config") {
            command.args(["--config", "loopback.toml"]);
        }
        command
    }

    fn run(&self, dir: &str, args: &[&str]) -> Output {
        self.command(dir, args).stdin(Stdio::null()).output().unwrap()
    }

    fn json(&self, dir: &str, args: &[&str]) -> Value {
        let output = self.run(dir, args);
        serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"))
    }

    fn start(&self, dir: &str, args: &[&str]) -> Process {
        let mut command = self.command(dir, args);
        command.arg("--until-stdin-closes").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (tell, events) = mpsc::channel();
        thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                let _ = tell.send(serde_json::from_str(&line).unwrap());
            }
        });
        Process { stdin: child.stdin.take(), child, events }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(Path::new(&self.0));
    }
}

/// A running command. Dropping it kills it.
struct Process {
    child: Child,
    stdin: Option<ChildStdin>,
    events: Receiver<Value>,
}

impl Process {
    /// Waits for an event of this kind.
    fn event(&mut self, kind: &str) -> Value {
        loop {
            let event = self.events.recv_timeout(SOON).unwrap_or_else(|error| panic!("no `{kind}` event: {error}"));
            assert!(event["event"] != "error" || kind == "error", "{event}");
            if event["event"] == kind {
                return event;
            }
        }
    }

    /// Ends it as Ctrl-C does.
    fn stop(mut self) {
        assert_eq!(self.ended(), Some(0));
    }

    /// Its exit code; asks it to end first.
    fn ended(&mut self) -> Option<i32> {
        drop(self.stdin.take());
        self.child.wait().unwrap().code()
    }

    /// Ends it without a warning.
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

/// A TCP service that sends back what it got once it got all of it.
struct Echo(String);

impl Echo {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        thread::spawn(move || {
            for stream in listener.incoming() {
                thread::spawn(move || {
                    let (mut stream, mut bytes) = (stream.unwrap(), Vec::new());
                    // Probes and killed peers break connections here; that is theirs to notice.
                    let _ = stream.read_to_end(&mut bytes).and_then(|_| stream.write_all(&bytes));
                });
            }
        });
        Echo(address)
    }

    fn target(&self) -> String {
        format!("tcp:{}", self.0)
    }
}

/// A connection to `port` comes through, at the latest after [`AGAIN`].
fn assert_echo(port: &str) {
    let began = Instant::now();
    loop {
        match echo(port) {
            Ok(answer) if answer == b"hello" => return,
            other => assert!(began.elapsed() < AGAIN, "{other:?} after {:?}", began.elapsed()),
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
