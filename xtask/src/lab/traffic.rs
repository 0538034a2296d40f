//! The application of the lab: an echo server, and a client that knows which byte must come back.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{
    Stop,
    lab::{network::Namespace, process::Service, role},
    number,
};

/// Where the echo server listens, on the host that serves.
pub(crate) const ECHO: &str = "127.0.0.1:7000";
/// The bytes of a message.
pub(crate) const MESSAGE: usize = 1024;
/// The connections that one echo server takes in its life; a scenario needs a few.
const CONNECTIONS: usize = 64;
/// How many datagrams a stranger sends: a new neighbour may cost the first.
const POKES: usize = 3;
/// How long a connection may take to open: one repetition of a lost packet (RFC 6298 §2.1), and the answer.
const KNOCK_LIMIT: Duration = Duration::from_millis(1_500);
/// How long a byte may be under way until the client takes the connection for dead: longer than any pause that a scenario
/// allows.
const SILENCE: Duration = Duration::from_secs(30);

/// Sends everything back.
pub(crate) fn echo(args: &[String]) -> Result<(), Stop> {
    let at = args.first().map_or(ECHO, String::as_str);
    let listener = TcpListener::bind(at).map_err(|error| Stop::Failed(format!("cannot listen on {at}: {error}")))?;
    say(&json!({"event": "listening"}));
    for stream in listener.incoming().take(CONNECTIONS) {
        let Ok(mut stream) = stream else { continue };
        thread::spawn(move || stream.try_clone().and_then(|mut back| std::io::copy(&mut stream, &mut back)));
    }
    Ok(())
}

/// Sends messages at an interval, and checks and times what comes back: ADDRESS MESSAGES INTERVAL_MS.
pub(crate) fn exchange(args: &[String]) -> Result<(), Stop> {
    let [at, messages, interval] = args else {
        return Err(Stop::Usage("exchange wants ADDRESS MESSAGES INTERVAL_MS".into()));
    };
    let messages = number("MESSAGES", Some(messages))?;
    let interval = Duration::from_millis(number("INTERVAL_MS", Some(interval))?);
    let failed = |what: &str, error: std::io::Error| Stop::Failed(format!("{what}: {error}"));
    let mut stream = TcpStream::connect(at).map_err(|error| failed("cannot connect", error))?;
    stream.set_read_timeout(Some(SILENCE)).map_err(|error| failed("cannot set a time limit", error))?;
    let mut out = stream.try_clone().map_err(|error| failed("cannot share the connection", error))?;
    let writer = thread::spawn(move || -> std::io::Result<()> {
        let started = Instant::now();
        for at in 0..messages {
            let due = interval.saturating_mul(u32::try_from(at).unwrap_or(u32::MAX));
            thread::sleep(due.saturating_sub(started.elapsed()));
            out.write_all(&message(at))?;
        }
        Ok(())
    });
    let (mut last, mut longest) = (Instant::now(), Duration::ZERO);
    let mut received = vec![0; MESSAGE];
    for at in 0..messages {
        stream.read_exact(&mut received).map_err(|error| failed(&format!("no echo of message {at}"), error))?;
        if received != message(at) {
            return Err(Stop::Failed(format!("the echo of message {at} has other bytes")));
        }
        if at == 0 {
            say(&json!({"event": "first"}));
        }
        longest = longest.max(last.elapsed());
        last = Instant::now();
    }
    let sent = writer.join().map_err(|_| Stop::Failed("the writer panicked".into()))?;
    sent.map_err(|error| failed("cannot send", error))?;
    say(&json!({"event": "exchanged", "bytes": messages * MESSAGE as u64, "longest_ms": ms(longest)}));
    Ok(())
}

/// Sends a few datagrams that nobody has asked for: ADDRESS. Their first byte is one that a node drops unread.
pub(crate) fn poke(args: &[String]) -> Result<(), Stop> {
    let [to] = args else { return Err(Stop::Usage("poke wants ADDRESS".into())) };
    let sent = UdpSocket::bind(if to.starts_with('[') { "[::]:0" } else { "0.0.0.0:0" }).and_then(|socket| {
        for _ in 0..POKES {
            socket.send_to(&[0xff; 32], to)?;
        }
        Ok(())
    });
    sent.map_err(|error| Stop::Failed(format!("cannot send to {to}: {error}")))?;
    say(&json!({"event": "poked"}));
    Ok(())
}

/// Tries to open a TCP connection as a stranger does: ADDRESS.
pub(crate) fn knock(args: &[String]) -> Result<(), Stop> {
    let [to] = args else { return Err(Stop::Usage("knock wants ADDRESS".into())) };
    let at: SocketAddr = to.parse().map_err(|_| Stop::Usage(format!("no address: {to}")))?;
    let open = TcpStream::connect_timeout(&at, KNOCK_LIMIT).is_ok();
    say(&json!({"event": "knocked", "open": open}));
    Ok(())
}

/// Bytes that tell their place.
fn message(at: u64) -> Vec<u8> {
    let mut state = at.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (0..MESSAGE)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()[0]
        })
        .collect()
}

fn ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[allow(clippy::print_stdout)] // Read by the lab.
pub(crate) fn say(value: &Value) {
    println!("{value}");
}

/// This program in a role, on a machine of the lab.
pub(crate) fn start(machine: &Namespace, words: &[&str], name: &str, dir: &std::path::Path) -> Result<Service, Stop> {
    let words = role(words)?;
    let mut command: Command = machine.command(&words[0]);
    Service::start(command.args(&words[1..]), name, dir)
}
