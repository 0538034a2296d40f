//! The control connection to a relay: made over UDP, or over TLS where UDP gives no answer, and kept on the better one.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError, atomic::Ordering},
    time::Duration,
};

use byway_proto::{
    PeerAddr,
    addr::{HostAddr, candidate::is_probeable},
    hello::Control,
};
use tokio::time::{self, Instant};
use tracing::debug;

use super::{super::table::Shared, Client, Lost, line::Line};
use crate::{
    core::Core,
    dial,
    gone::Gone,
    link::{Link, establish::Established},
    net::{routes::Via, track::Track, wss::is_virtual},
};

/// Addresses of one relay that are tried at once.
pub(super) const MAX_ADDRS: usize = 4;

/// How long UDP alone has to bring an answer: one lost packet, repeated after 300 ms, and 400 ms on the way. The rest of the 3 s
/// that a dial may take without UDP is for TCP, TLS, WebSocket and QUIC, one after the other.
const UDP_FIRST: Duration = Duration::from_millis(700);

/// The pause after a failed attempt to open a line, while UDP goes on.
const REOPEN: Duration = Duration::from_millis(500);

/// How often a live connection is looked at.
const LOOK: Duration = Duration::from_millis(500);

/// How many looks in a row must find UDP silent before TLS is tried beside it, which costs one TCP connection.
const SILENT_LOOKS: u32 = 2;

/// After how many times as many it is tried again at the latest.
const TLS_LOOKS: u32 = 32;

/// How many looks pass between reminders to a relay that goes on sending over TLS where UDP works again.
const LAGGING_LOOKS: u32 = 8;

/// The first and the longest pause between attempts to get from TLS back to UDP; one attempt is some 16 probes.
const UDP_AGAIN: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(600));

impl Client {
    /// Makes the connection; also returns where to send relayed data, and by which ways the relay may be reached.
    pub(super) async fn connect(&mut self) -> Result<(Established, SocketAddr, Ways), Lost> {
        let core = Arc::clone(&self.core);
        let told = std::mem::take(&mut self.shared.lock().addrs);
        self.learn(told);
        let addrs = self.resolve().await;
        let track = core.mux.routes.dial(core.mux.now());
        for addr in addrs.iter().flatten() {
            track.lock().add(Via::Direct(*addr), false);
        }
        let connected = async {
            let connection = core.endpoint.dial(&track, self.relay.id).await.map_err(|e| Lost::from(e.to_string()))?;
            dial::hello(&core, &track, connection, core.hello(true)).await.map_err(Lost::from)
        };
        let loopback = self.shared.lock().loopback;
        let opening = Opening { core: &core, relay: &self.relay, loopback, track: &track, why: Mutex::new(None) };
        let mut line = None;
        let result = {
            let opened = async {
                let opened = opening.open(addrs.is_err()).await;
                line = Some(opened);
                std::future::pending::<Infallible>().await
            };
            tokio::select! { biased; result = connected => result, never = opened => match never {} }
        };
        let result = result.map_err(|lost| match opening.why.lock().unwrap_or_else(PoisonError::into_inner).take() {
            _ if lost.is_refused => lost,
            Some(over_tls) => format!("{}; over TLS, {over_tls}", lost.why).into(),
            None => addrs.as_ref().err().cloned().map_or(lost, Lost::from),
        });
        let result = result.and_then(|established| {
            let offers = established.link.agreed.read().relay;
            if !offers {
                established.link.close(Gone::Closed);
                return Err(Lost { why: "the node there does not relay; use another relay".into(), is_refused: true });
            }
            let via = established.link.track.via().ok_or_else(|| Lost::from("no route is left".to_owned()))?;
            let is_udp_silent = !track.heard_vias().iter().any(|via| !is_virtual(via.remote()));
            core.relays.is_udp_blocked.store(is_udp_silent, Ordering::Relaxed);
            let (core, relay) = (Arc::clone(&core), self.relay.clone());
            Ok((established, via.remote(), Ways { core, relay, loopback, udp: addrs.unwrap_or_default(), line }))
        });
        if let Ok((_, addr, ways)) = &result
            && is_virtual(*addr)
            && !core.config.relay_only
        {
            // Over TLS the relay sees no NAT, but the survey learns from its silence that UDP is blocked.
            self.name_servers(ways.udp.clone()).await;
        }
        if result.is_err() {
            core.retire(&track);
        }
        result
    }

    /// The relay's addresses for UDP.
    async fn resolve(&self) -> Result<Vec<SocketAddr>, String> {
        let loopback = self.shared.lock().loopback;
        let (mut addrs, mut why) = (Vec::new(), None);
        for host in self.relay.addrs.iter().filter(|host| host.tls_name().is_none()) {
            match self.core.resolve(host, Some(loopback)).await {
                Ok(found) => addrs.extend(found),
                Err(error) => why = Some(format!("cannot resolve {host}: {error}")),
            }
        }
        addrs.truncate(MAX_ADDRS);
        let none = || why.unwrap_or_else(|| "it has no address that this node can send to".into());
        if addrs.is_empty() { Err(none()) } else { Ok(addrs) }
    }
}

impl Core {
    /// The addresses of a relay's host that a node may connect to: a ticket or a peer may name any relay, and a relay's name may
    /// lead anywhere, to this machine if `loopback` allows. With `None` they are the user's own proxy's, and may be any.
    pub(super) async fn resolve(&self, host: &HostAddr, loopback: Option<bool>) -> std::io::Result<Vec<SocketAddr>> {
        let mut addrs = match host {
            HostAddr::Socket(addr) => vec![*addr],
            HostAddr::Name(name, port) | HostAddr::Wss(name, port) => self.net.resolve(name, *port).await?,
        };
        let Some(loopback) = loopback else { return Ok(addrs) };
        addrs.retain(|addr| self.mux.sockets.towards(*addr).is_some() && is_probeable(*addr, loopback).is_ok());
        Ok(addrs)
    }
}

/// The line that is opened beside a handshake over UDP.
struct Opening<'a> {
    core: &'a Arc<Core>,
    relay: &'a PeerAddr,
    loopback: bool,
    track: &'a Arc<Track>,
    /// Why the last attempt failed.
    why: Mutex<Option<String>>,
}

impl Opening<'_> {
    /// Opens a line and lets the handshake use it, unless UDP brings an answer first.
    async fn open(&self, at_once: bool) -> Line {
        if !at_once && !self.core.relays.is_udp_blocked.load(Ordering::Relaxed) {
            time::sleep(UDP_FIRST).await;
            if !self.track.heard_vias().is_empty() {
                return std::future::pending().await;
            }
        }
        loop {
            match Line::open(self.core, self.relay, self.loopback).await {
                Ok(line) => {
                    debug!(relay = ?self.relay.id, "no answer over UDP; trying TLS");
                    dial::add_route(self.core, self.track, Via::Direct(line.addr)).await;
                    return line;
                }
                Err(why) => {
                    debug!(relay = ?self.relay.id, %why, "no line over TLS");
                    *self.why.lock().unwrap_or_else(PoisonError::into_inner) = Some(why);
                    time::sleep(REOPEN).await;
                }
            }
        }
    }
}

/// By which ways a relay may be reached.
pub(super) struct Ways {
    core: Arc<Core>,
    relay: PeerAddr,
    loopback: bool,
    udp: Vec<SocketAddr>,
    line: Option<Line>,
}

impl Ways {
    /// Looks after a live connection until it has to be made anew: opens a line when UDP falls silent, and looks for the way
    /// back to UDP.
    pub(super) async fn tend(mut self, link: Arc<Link>, shared: Arc<Shared>) -> String {
        let (mut udp_again, mut pause) = (Instant::now() + UDP_AGAIN.0, UDP_AGAIN.0);
        let (mut silent, mut lagging) = (0_u32, 0_u32);
        loop {
            tokio::select! {
                biased;
                () = ended(&mut self.line) => self.line = None,
                () = shared.elsewhere.notified() => (udp_again, pause) = (Instant::now(), UDP_AGAIN.0 / 2),
                () = time::sleep(LOOK) => {}
            }
            let is_on_tls = link.track.via().is_some_and(|via| is_virtual(via.remote()));
            if is_on_tls && self.line.is_none() {
                // A relay that was restarted cannot say so on a line that is new to it.
                return "the connection over TLS was cut off".into();
            }
            silent = if *link.track.silent.read() { silent + 1 } else { 0 };
            if silent == 1 {
                // A relay that was restarted answers short packets of a connection that it does not know (RFC 9000 §10.3), and the
                // last ones of an idle connection may all be of its handshake.
                link.control(&Control::Register);
            }
            if self.line.is_none() && may_try_tls(silent) {
                match Line::open(&self.core, &self.relay, self.loopback).await {
                    Ok(line) => {
                        dial::add_route(&self.core, &link.track, Via::Direct(line.addr)).await;
                        self.line = Some(line);
                    }
                    Err(why) => debug!(relay = ?self.relay.id, %why, "no line over TLS"),
                }
            }
            // A relay looks for a better route only while something is said.
            let lags = !is_on_tls && shared.lock().addr.is_some_and(is_virtual);
            lagging = if lags { lagging + 1 } else { 0 };
            if lagging % LAGGING_LOOKS == 1 {
                link.control(&Control::Register);
            }
            if !is_on_tls {
                (udp_again, pause) = (Instant::now() + UDP_AGAIN.0, UDP_AGAIN.0);
            } else if Instant::now() >= udp_again {
                pause = (pause * 2).min(UDP_AGAIN.1);
                udp_again = Instant::now() + pause;
                for addr in &self.udp {
                    dial::add_route(&self.core, &link.track, Via::Direct(*addr)).await;
                }
            }
        }
    }
}

/// Whether a line is to be opened after so many silent looks in a row: at some, ever further apart and at last half a minute.
fn may_try_tls(silent: u32) -> bool {
    let nth = silent / SILENT_LOOKS;
    silent.is_multiple_of(SILENT_LOOKS) && (nth.is_power_of_two() || (nth > 0 && nth.is_multiple_of(TLS_LOOKS)))
}

async fn ended(line: &mut Option<Line>) {
    match line {
        Some(line) => line.ended().await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tls_is_tried_soon_and_in_a_long_silence_seldom() {
        let tries: Vec<u32> = (0..300).filter(|silent| may_try_tls(*silent)).collect();
        assert_eq!(tries, [2, 4, 8, 16, 32, 64, 128, 192, 256]);
    }
}
