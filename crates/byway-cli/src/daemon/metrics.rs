//! The node's figures for Prometheus, over HTTP to whoever reaches the address.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time,
};

use super::Daemon;
use crate::{accept, failure::Failure, http::read_head};

/// Requests that are answered at once: a few servers, of which each asks one at a time.
const MAX_REQUESTS: usize = 8;

/// How long one request may take, its answer included.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Listens where the figures are told.
pub(super) async fn listen(addr: SocketAddr) -> Result<TcpListener, Failure> {
    TcpListener::bind(addr).await.map_err(|error| {
        let why = match error.kind() {
            io::ErrorKind::AddrInUse => "another program uses it; stop that, or choose another".into(),
            _ => format!("{error}; choose another"),
        };
        Failure::here(format!("metrics cannot be told at {addr}: {why}, with --metrics or `metrics.listen`"))
    })
}

/// Tells them until the node ends.
pub(super) async fn run(daemon: Arc<Daemon>, listener: TcpListener) {
    let mut requests = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            _ = daemon.ended() => return,
            Some(_) = requests.join_next() => {} // a broken connection is its client's affair
            (stream, _) = accept::next("request", || listener.accept()), if requests.len() < MAX_REQUESTS => {
                let daemon = Arc::clone(&daemon);
                requests.spawn(async move { time::timeout(TIMEOUT, answer(stream, &daemon)).await });
            }
        }
    }
}

async fn answer(stream: TcpStream, daemon: &Daemon) -> io::Result<()> {
    let mut stream = BufReader::new(stream);
    let Some(head) = read_head(&mut stream).await? else { return Ok(()) };
    let request: Vec<&str> = head[0].split(' ').collect();
    let (status, body) = match request[..] {
        ["GET" | "HEAD", "/metrics", _] => {
            ("200 OK", daemon.node.metrics(daemon.settings.metrics.peers()).await.to_string())
        }
        ["GET" | "HEAD", ..] => ("404 Not Found", "the metrics are at /metrics\n".into()),
        _ => ("405 Method Not Allowed", String::new()),
    };
    let length = body.len();
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\nContent-Length: {length}\r\n\
         Cache-Control: no-store\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await?;
    if request[0] != "HEAD" {
        stream.write_all(body.as_bytes()).await?;
    }
    stream.shutdown().await
}
