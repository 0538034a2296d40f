//! A relay's door for clients without UDP: TCP on the port that it has for UDP, TLS, one WebSocket a client.

use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use byway_proto::{gate::Source, relay::MAX_CLIENTS};
use tokio::time;
use tokio_tungstenite::tungstenite::protocol::Role;
use tracing::{debug, warn};

use super::tls::RelayTls;
use crate::{
    core::Core,
    net::{TcpListener, TcpStream, http},
};

/// Connections of one source, an address or an IPv6 /64, at once: the people of an office share one.
const MAX_PER_SOURCE: usize = 256;

/// Connections of which nobody has proven yet who is there, of one source and in all; each may cost a signature. When a relay
/// comes back, whoever is turned away here is let in half a second later.
const MAX_GREETING: (usize, usize) = (32, 512);

/// How long TLS and the request for a WebSocket may take: four round trips, with a lost segment in each.
const GREETING: Duration = Duration::from_secs(5);

/// How long a client may then take to connect over its WebSocket and prove its key: a QUIC handshake with three lost packets.
const PROOF: Duration = Duration::from_secs(10);

/// The pause after the system refused to hand out a connection, mostly for want of file descriptors.
const PAUSE: Duration = Duration::from_millis(100);

/// Who is connected.
#[derive(Debug, Default)]
struct Guests {
    by_source: BTreeMap<Source, Count>,
    all: Count,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Count {
    connections: usize,
    /// Those of them of which nobody has proven yet who is there.
    greeting: usize,
}

/// Listens where the relay's UDP sockets do, and gives the ports where it does. A port that another program has costs the clients
/// without UDP only.
pub(crate) async fn start(core: &Arc<Core>) -> Result<Vec<u16>, rustls::Error> {
    let tls = RelayTls::new(&core.config)?;
    let mut ports = Vec::new();
    let guests = Arc::new(Mutex::new(Guests::default()));
    for addr in core.mux.sockets.own().filter_map(|socket| socket.local_addr().ok()) {
        match core.net.listen_tcp(addr).await {
            Ok(listener) => {
                let door = Door { core: Arc::clone(core), tls: tls.clone(), guests: Arc::clone(&guests) };
                core.tasks.spawn(door.keep(listener));
                ports.push(addr.port());
            }
            Err(error) => warn!(
                %error,
                port = addr.port(),
                "no TCP listener: clients whose network blocks UDP cannot use this relay; free the port or choose another"
            ),
        }
    }
    Ok(ports)
}

/// What every connection needs.
#[derive(Clone)]
struct Door {
    core: Arc<Core>,
    tls: RelayTls,
    guests: Arc<Mutex<Guests>>,
}

impl Door {
    async fn keep(self, listener: Box<dyn TcpListener>) {
        loop {
            let accepted = tokio::select! {
                biased;
                () = self.core.tasks.stopped() => return,
                accepted = listener.accept() => accepted,
            };
            match accepted.and_then(|stream| Ok((stream.peer_addr()?, stream))) {
                Ok((remote, stream)) => match Seat::take(&self.guests, remote) {
                    Some(seat) => self.core.tasks.spawn(self.clone().serve(stream, remote, seat)),
                    None => {
                        debug!(%remote, "one TCP connection too many");
                        stream.reset();
                    }
                },
                Err(error) => {
                    debug!(%error, "no TCP connection");
                    time::sleep(PAUSE).await;
                }
            }
        }
    }

    /// Greets a client, and carries its datagrams until it goes.
    async fn serve(self, stream: Box<dyn TcpStream>, remote: SocketAddr, mut seat: Seat) {
        let greeted = async {
            let mut stream = self.tls.accept(stream).await?;
            let rest = http::accept(&mut stream).await.map_err(io::Error::other)?;
            Ok::<_, io::Error>(self.core.mux.sockets.open_wss(stream, rest, Role::Server, remote).await)
        };
        let greeted = tokio::select! {
            biased;
            () = self.core.tasks.stopped() => return,
            greeted = time::timeout(GREETING, greeted) => greeted,
        };
        match greeted.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
            Ok(websocket) => {
                debug!(%remote, addr = %websocket.addr(), "client over TLS");
                let mut vouching = websocket.vouching();
                let unneeded = async move {
                    let proof = time::timeout(PROOF, vouching.wait_for(|is_known| *is_known)).await;
                    if proof.is_ok_and(|known| known.is_ok()) {
                        seat.greeted();
                        let _ = vouching.wait_for(|is_known| !is_known).await; // its link is over
                    }
                };
                super::carry(&self.core, websocket, unneeded).await;
            }
            Err(error) => debug!(%remote, %error, "no client over TLS"),
        }
    }
}

/// One connection's place; whoever drops it gives it up.
#[derive(Debug)]
struct Seat {
    guests: Arc<Mutex<Guests>>,
    source: Source,
    is_greeting: bool,
}

impl Seat {
    fn take(guests: &Arc<Mutex<Guests>>, remote: SocketAddr) -> Option<Seat> {
        let source = Source::of(remote);
        let mut guests_now = lock(guests);
        let Guests { by_source, all } = &mut *guests_now;
        let its = by_source.get(&source).copied().unwrap_or_default();
        let is_room = all.connections < MAX_CLIENTS && its.connections < MAX_PER_SOURCE;
        if !is_room || its.greeting >= MAX_GREETING.0 || all.greeting >= MAX_GREETING.1 {
            return None;
        }
        for count in [by_source.entry(source).or_default(), all] {
            count.connections += 1;
            count.greeting += 1;
        }
        Some(Seat { guests: Arc::clone(guests), source, is_greeting: true })
    }

    fn greeted(&mut self) {
        if std::mem::take(&mut self.is_greeting) {
            self.counts(|count| count.greeting -= 1);
        }
    }

    fn counts(&self, change: impl Fn(&mut Count)) {
        let mut guests = lock(&self.guests);
        change(&mut guests.all);
        if let Some(its) = guests.by_source.get_mut(&self.source) {
            change(its);
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.greeted();
        self.counts(|count| count.connections -= 1);
        let mut guests = lock(&self.guests);
        if guests.by_source.get(&self.source).is_some_and(|count| count.connections == 0) {
            guests.by_source.remove(&self.source);
        }
    }
}

fn lock(guests: &Mutex<Guests>) -> MutexGuard<'_, Guests> {
    guests.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(host: u8) -> SocketAddr {
        ([192, 0, 2, host], 1).into()
    }

    #[test]
    fn one_source_takes_no_more_than_its_share_and_gives_it_back() {
        let guests = Arc::default();
        let greeted = |host| {
            let mut seat = Seat::take(&guests, addr(host))?;
            seat.greeted();
            Some(seat)
        };
        let mut seats: Vec<_> = (0..MAX_PER_SOURCE).map(|_| greeted(1).unwrap()).collect();
        assert!(greeted(1).is_none() && greeted(2).is_some());
        seats.pop();
        assert!(greeted(1).is_some());
        drop(seats);
        assert!(lock(&guests).by_source.is_empty());
        assert_eq!(lock(&guests).all, Count::default());
    }

    #[test]
    fn all_together_take_no_more_places_than_the_relay_has() {
        let guests = Arc::default();
        let take = |n: usize| {
            let mut seat = Seat::take(&guests, addr((n / MAX_PER_SOURCE) as u8))?;
            seat.greeted();
            Some(seat)
        };
        let seats: Vec<_> = (0..MAX_CLIENTS).map(|n| take(n).unwrap()).collect();
        assert!(take(MAX_CLIENTS).is_none());
        drop(seats);
        assert!(take(MAX_CLIENTS).is_some());
    }

    #[test]
    fn only_so_many_greet_at_once_from_wherever_they_come() {
        let guests = Arc::default();
        let (share, all) = MAX_GREETING;
        let take = |n: usize| Seat::take(&guests, addr((n / share) as u8));
        let seats: Vec<_> = (0..share).map(|n| take(n).unwrap()).collect();
        assert!(take(0).is_none(), "one source has only so many");
        let others: Vec<_> = (share..all).map(|n| take(n).unwrap()).collect();
        assert!(take(all).is_none(), "and so have all");
        drop((seats, others));
        assert!(take(0).is_some());
    }
}
