//! The way to a relay over TLS, for networks without UDP: TCP, perhaps through a proxy, TLS, WebSocket.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use byway_proto::{
    PeerAddr,
    addr::{HostAddr, candidate::is_probeable},
};
use futures_util::{StreamExt, stream::FuturesUnordered};
use tokio::{sync::oneshot, time};
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::connect::MAX_ADDRS;
use crate::{
    config::HttpProxy,
    core::Core,
    net::{BoxFuture, TcpStream, http, wss::WebSocket},
    relay,
};

/// How long one attempt may take: a TCP segment that was lost twice, on a slow line, in each of four round trips.
const OPENING: Duration = Duration::from_secs(5);

/// An open line to a relay. It is closed shortly after this is dropped.
#[derive(Debug)]
pub(super) struct Line {
    /// The address under which the mux knows it.
    pub(super) addr: SocketAddr,
    needed: oneshot::Sender<()>,
}

impl Line {
    /// Opens a line by whichever of the relay's addresses answers first.
    pub(super) async fn open(core: &Arc<Core>, relay: &PeerAddr, loopback: bool) -> Result<Line, String> {
        let mut attempts: FuturesUnordered<_> = destinations(core, relay, loopback)
            .await
            .into_iter()
            .map(|to| async move {
                let opening = time::timeout(OPENING, open(core, relay, &to)).await;
                let opened = opening.unwrap_or_else(|_| Err(format!("no answer within {} s", OPENING.as_secs())));
                opened.map_err(|why| format!("{}: {why}", to.host))
            })
            .collect();
        let mut why = "it has no address that this node can connect to".to_owned();
        while let Some(attempt) = attempts.next().await {
            match attempt {
                Ok(websocket) => return Ok(Line::start(core, websocket)),
                Err(failure) => why = failure,
            }
        }
        Err(why)
    }

    fn start(core: &Arc<Core>, websocket: WebSocket<TlsStream<Box<dyn TcpStream>>>) -> Line {
        let addr = websocket.addr();
        let (needed, unneeded) = oneshot::channel();
        let carrying = Arc::clone(core);
        core.tasks.spawn(async move {
            let unneeded = async { drop(unneeded.await) };
            relay::carry(&carrying, websocket, unneeded).await;
        });
        Line { addr, needed }
    }

    /// Waits until it is no longer open.
    pub(super) async fn ended(&mut self) {
        self.needed.closed().await;
    }
}

/// One of a relay's addresses, as TCP goes there.
struct Destination {
    /// As the relay's address has it, for a proxy and for errors.
    host: HostAddr,
    /// Where to connect: to the host itself, or to the proxy.
    addrs: Vec<SocketAddr>,
}

/// Where to connect, by name where a proxy resolves it.
async fn destinations(core: &Core, relay: &PeerAddr, loopback: bool) -> Vec<Destination> {
    let mut all = Vec::new();
    for host in relay.addrs.iter().take(MAX_ADDRS) {
        let proxy = core.config.tls.proxy_for(host);
        if proxy.is_some() && matches!(host, HostAddr::Socket(addr) if is_probeable(*addr, loopback).is_err()) {
            continue; // a proxy would go there for whoever named the relay
        }
        let (near, loopback) = proxy.map_or((host, Some(loopback)), |proxy| (&proxy.host, None));
        let addrs = core.resolve(near, loopback).await.unwrap_or_default();
        match proxy {
            Some(_) => all.push(Destination { host: host.clone(), addrs }),
            None => all.extend(addrs.into_iter().map(|addr| Destination { host: host.clone(), addrs: vec![addr] })),
        }
    }
    all.truncate(MAX_ADDRS);
    all
}

async fn open(
    core: &Core,
    relay: &PeerAddr,
    to: &Destination,
) -> Result<WebSocket<TlsStream<Box<dyn TcpStream>>>, String> {
    let stream = connect(core, to, core.config.tls.proxy_for(&to.host)).await?;
    let remote = stream.peer_addr().map_err(|error| error.to_string())?;
    let mut stream = core.relays.tls.connect(stream, relay.id, to.host.tls_name()).await.map_err(|e| e.to_string())?;
    let key = u128::from(core.draw()) << 64 | u128::from(core.draw());
    let authority = to.host.authority();
    let rest = http::upgrade(&mut stream, &authority, key.to_be_bytes()).await.map_err(|error| error.to_string())?;
    Ok(core.mux.sockets.open_wss(stream, rest, Role::Client, remote).await)
}

/// Connects by TCP, to the relay or through the proxy.
async fn connect(core: &Core, to: &Destination, proxy: Option<&HttpProxy>) -> Result<Box<dyn TcpStream>, String> {
    let mut result = Err("the name does not resolve".to_owned());
    for addr in &to.addrs {
        let connecting: BoxFuture<'_, _> = core.net.connect_tcp(*addr);
        result = connecting.await.map_err(|error| error.to_string());
        if result.is_ok() {
            break;
        }
    }
    let Some(proxy) = proxy else { return result };
    let mut stream = result.map_err(|why| format!("proxy {proxy} cannot be reached: {why}; check `proxy`"))?;
    let tunnelled = http::tunnel(&mut stream, &to.host.authority(), proxy.login.as_deref()).await;
    tunnelled.map_err(|error| format!("proxy {proxy}: {error}"))?;
    Ok(stream)
}
