//! This program once more, as a process of its own whose memory can be told from that of its clients.

use std::{
    env, fs,
    io::{BufRead, BufReader, Write},
    process::{Command, Stdio},
};

use tokio::runtime;

use crate::{many, relay};

/// With this argument and a role, the process tells an address and ends with its input.
const BE: &str = "--be=";

/// A running process of this program; it ends when this is dropped.
pub(crate) struct Child(std::process::Child);

impl Child {
    /// Starts one, and gives the address that it tells.
    pub(crate) fn start(role: &str) -> (Child, String) {
        let mut child = Command::new(env::current_exe().expect("this program has a name"))
            .arg(format!("{BE}{role}"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("it starts once more");
        let mut line = String::new();
        let mut told = BufReader::new(child.stdout.take().expect("it is piped"));
        told.read_line(&mut line).expect("it tells its address");
        (Child(child), line.trim().to_owned())
    }

    /// KiB of memory that the process has resident.
    pub(crate) fn rss_kib(&self) -> f64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.0.id())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(f64::NAN)
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

/// Plays the role that the arguments name, if they name one.
pub(crate) fn play() {
    let Some(role) = env::args().find_map(|argument| argument.strip_prefix(BE).map(str::to_owned)) else { return };
    let runtime = runtime::Builder::new_current_thread().enable_all().build().expect("a runtime starts");
    runtime.block_on(async {
        let (addr, _alive): (String, Box<dyn Send>) = match role.as_str() {
            "relay" => {
                let (node, addr) = relay::relay().await;
                (addr.to_string(), Box::new(node))
            }
            "node" => {
                let member = many::listener().await;
                (member.node.ticket().to_string(), Box::new(member))
            }
            "quinn" => (many::bare::listener().await.to_string(), Box::new(())),
            role => panic!("there is no role {role}"),
        };
        println!("{addr}");
        let _ = std::io::stdout().flush();
        let ended = tokio::task::spawn_blocking(|| std::io::stdin().read_line(&mut String::new()));
        let _ = ended.await;
    });
    std::process::exit(0);
}
