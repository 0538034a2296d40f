//! A relay whose process has no file descriptor left goes on accepting: over UDP at once, over TCP as soon as there is one.

use std::{
    env,
    fs::File,
    io::{BufRead, BufReader, Write},
    process::{Command, Stdio},
    time::Duration,
};

use byway::{Node, RelayConfig, Ticket};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    runtime::Runtime,
    time,
};

use crate::common::{V4, config};

/// Set for the process that plays the relay.
const CHILD: &str = "BYWAY_FILES_CHILD";

/// Descriptors that it may have: a runtime, two sockets and standard streams take about a dozen.
const LIMIT: u32 = 64;

/// The relay: says where it is, takes all descriptors, gives them back when it is told to, and ends with its standard input.
#[test]
fn relay_without_descriptors() {
    if env::var_os(CHILD).is_none() {
        return;
    }
    Runtime::new().unwrap().block_on(async {
        let mut settings = config(9, V4);
        settings.relay = Some(RelayConfig::default());
        let node = Node::bind(settings).await.unwrap();
        let mut taken = Vec::new();
        while let Ok(file) = File::open("/dev/null") {
            taken.push(file);
        }
        println!("\nrelay {}", node.ticket());
        let mut lines = std::io::stdin().lines();
        tokio::task::block_in_place(|| lines.next());
        drop(taken);
        tokio::task::block_in_place(|| lines.next());
    });
}

#[test]
fn a_relay_out_of_file_descriptors_goes_on_accepting() {
    let mut relay = Command::new("sh")
        .args(["-c", &format!("ulimit -n {LIMIT}; exec \"$0\" --exact files::relay_without_descriptors --nocapture")])
        .arg(env::current_exe().unwrap())
        .env(CHILD, "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = relay.stdin.take().unwrap();
    let mut lines = BufReader::new(relay.stdout.take().unwrap()).lines().map_while(Result::ok);
    let ticket: Ticket = lines.find_map(|line| line.strip_prefix("relay ").map(|it| it.parse().unwrap())).unwrap();
    Runtime::new().unwrap().block_on(async {
        let addr = ticket.addrs[0];
        let client = Node::bind(config(1, V4)).await.unwrap();
        client.dial(&ticket).await.expect("UDP needs no descriptor");
        // The kernel takes the connection; nobody can accept it.
        let mut waiting = TcpStream::connect(addr).await.unwrap();
        waiting.write_all(b"no TLS at all").await.unwrap();
        let mut answer = [0; 64];
        let early = time::timeout(Duration::from_millis(700), waiting.read(&mut answer)).await;
        assert!(early.is_err(), "{early:?}: there were descriptors left");
        stdin.write_all(b"give them back\n").unwrap();
        let late = time::timeout(Duration::from_secs(10), waiting.read(&mut answer)).await;
        assert!(late.is_ok(), "nobody accepts any more");
        let again = Node::bind(config(2, V4)).await.unwrap();
        again.dial(&ticket).await.unwrap();
    });
    drop(stdin);
    assert!(relay.wait().unwrap().success());
}
