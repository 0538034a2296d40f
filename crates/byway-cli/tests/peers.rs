//! `byway peers` as its users meet it: separate processes, one of which is killed.
#![allow(clippy::unwrap_used)] // a test's way to fail

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
};

use serde_json::Value;

#[test]
fn peers_are_added_dialled_banned_exported_and_imported_and_a_ban_outlives_a_kill() {
    let scratch = Scratch::new("walk");
    let friend = scratch.id("friend");
    let node = scratch.up("node");
    let address = format!("{friend}@198.51.100.1:4242");
    assert!(scratch.run("node", &["peers", "add", &address], "").status.success());
    let listed = scratch.json("node", &["peers", "list"]);
    assert_eq!(listed["peers"][0]["proven"]["addrs"][0], "198.51.100.1:4242", "{listed}");
    let exported = scratch.run("node", &["--plain", "peers", "export"], "");
    let exported = String::from_utf8(exported.stdout).unwrap();
    assert!(scratch.run("node", &["peers", "ban", &friend, "--why", "spam"], "").status.success());
    drop(node); // SIGKILL
    let _node = scratch.up("node");
    let listed = scratch.json("node", &["peers", "list"]);
    assert_eq!(listed["peers"][0]["ban"]["why"], "spam", "{listed}");
    let refused = scratch.run("node", &["peers", "add", &address], "");
    assert_eq!(refused.status.code(), Some(2), "{refused:?}");
    let unbanned = scratch.run("node", &["peers", "unban", &friend[..10]], ""); // as `list` shows it
    assert!(unbanned.status.success(), "{unbanned:?}");
    assert_eq!(scratch.run("node", &["peers", "unban", &friend], "").status.code(), Some(2));
    let _other = scratch.up("other");
    let imported = scratch.run("other", &["peers", "import"], &exported);
    assert!(imported.status.success(), "{imported:?}");
    assert_eq!(scratch.json("other", &["peers", "list"])["peers"][0]["peer"], friend);
    assert_eq!(scratch.run("other", &["peers", "import"], "nonsense").status.code(), Some(2));
    let status = scratch.json("other", &["status"]);
    let (other, at) = (status["id"].as_str().unwrap(), status["addresses"][0].as_str().unwrap());
    assert!(scratch.run("node", &["peers", "add", &format!("{other}@{at}")], "").status.success());
    let pinged = scratch.run("node", &["ping", other, "--count", "1"], "");
    assert!(pinged.status.success(), "{pinged:?}");
}

#[test]
fn an_address_book_that_is_damaged_is_moved_aside_and_its_owner_is_told() {
    let scratch = Scratch::new("damaged");
    drop(scratch.up("node"));
    fs::write(scratch.0.join("node/book.rows"), [b'x'; 600]).unwrap();
    let mut check = scratch.command("node", &["check"]); // which starts the node, and has nobody to ask
    let told = check.env_remove("BYWAY_LOG").stdin(Stdio::null()).output().unwrap();
    let stderr = String::from_utf8_lossy(&told.stderr);
    assert!(stderr.contains("WARN") && stderr.contains("book.rows"), "{stderr}");
    assert!(!stderr.contains('\u{1b}'), "colours in what is no terminal: {stderr:?}");
    let mut files = fs::read_dir(scratch.0.join("node")).unwrap().filter_map(Result::ok);
    assert!(files.any(|file| file.file_name().to_string_lossy().starts_with("book.rows.damaged-")));
}

struct Scratch(PathBuf);

/// A node that is killed at the end.
struct Up(Child);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("byway-peers-{}-{name}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        fs::write(path.join("loopback.toml"), "ipv4 = \"127.0.0.1\"\nipv6 = false\n").unwrap();
        Scratch(path)
    }

    /// `--plain` stands for no `--json`.
    fn command(&self, dir: &str, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_byway"));
        let args: Vec<_> = args.iter().map(|arg| if *arg == "--plain" { "-v" } else { arg }).collect();
        command.current_dir(&self.0).args(["--data-dir", dir, "--config", "loopback.toml"]);
        if !args.contains(&"-v") {
            command.arg("--json");
        }
        command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn run(&self, dir: &str, args: &[&str], input: &str) -> Output {
        let mut child = self.command(dir, args).spawn().unwrap();
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes()); // it may not read
        child.wait_with_output().unwrap()
    }

    fn json(&self, dir: &str, args: &[&str]) -> Value {
        let output = self.run(dir, args, "");
        serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"))
    }

    fn id(&self, dir: &str) -> String {
        self.json(dir, &["id"])["id"].as_str().unwrap().to_owned()
    }

    fn up(&self, dir: &str) -> Up {
        let mut child = self.command(dir, &["up"]).stderr(Stdio::null()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        assert!(lines.any(|line| line.contains("\"event\":\"node\"")), "it starts");
        std::thread::spawn(move || lines.for_each(drop));
        Up(child)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
