//! A service of this node: who may use it, and what it leads to.

use std::{future::Future, io, net::SocketAddr, sync::Arc, time::Duration};

use byway::{
    PeerId,
    net::TcpStream,
    tunnel::{Access, Knock, ListenError},
};
use tokio::{task::JoinSet, time};

use super::{Daemon, attend::Report, board::Entry, lock};
use crate::{
    control::{Event, event::Serving},
    failure::{Failure, printable},
    grants::Verdict,
    target::Upstream,
};

/// Sessions of one service at once: a browser opens 6, a busy site some hundreds; each costs up to 256 KiB.
pub(super) const MAX_SESSIONS: usize = 1_024;

/// How long what the service leads to may take to answer; less than the dialling side waits for us.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// What to serve.
#[derive(Debug, Clone)]
pub(super) struct Offer {
    pub(super) name: String,
    pub(super) to: Upstream,
    pub(super) open: bool,
    pub(super) hide_addresses: bool,
}

/// Serves until the command is gone or the node ends.
pub(super) async fn run(daemon: Arc<Daemon>, offer: Offer, report: Report) -> Result<(), Failure> {
    let access = if offer.open { Access::Anyone } else { granted(&daemon, &offer, &report) };
    let mut listener = daemon.tunnel.listen(&offer.name, access).map_err(|error| match error {
        ListenError::Name(_) => Failure::usage(error),
        error => Failure::here(error),
    })?;
    daemon.wait_until_seen().await;
    tell_ticket(&daemon, &offer, &report)?;
    let holders = lock(&daemon.grants).holders(&offer.name) as u64;
    let (name, to) = (offer.name.clone(), offer.to.to_string());
    let entry = daemon.serving.put(Serving { name, to, open: offer.open, holders, sessions: 0 });
    let mut watch = pin_watch(&daemon, &report);
    let mut sessions: JoinSet<()> = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            Some(_) = sessions.join_next() => count(&daemon, &entry, &offer, sessions.len()),
            result = &mut watch => return result,
            knock = listener.knocked() => {
                let Some(knock) = knock else { return Err(Failure::here("the node is closed")) };
                if sessions.len() >= MAX_SESSIONS {
                    sessions.spawn(knock.turn_away_busy());
                } else {
                    sessions.spawn(session(Arc::clone(&daemon), offer.clone(), knock, report.clone()));
                }
                count(&daemon, &entry, &offer, sessions.len());
            }
        }
    }
}

/// Tells the state of the relays, on which it depends whether a peer can come.
fn pin_watch(
    daemon: &Arc<Daemon>,
    report: &Report,
) -> std::pin::Pin<Box<dyn Future<Output = Result<(), Failure>> + Send>> {
    Box::pin(super::status::watch_relays(Arc::clone(daemon), report.clone()))
}

fn count(daemon: &Daemon, entry: &Entry<Serving>, offer: &Offer, sessions: usize) {
    let holders = lock(&daemon.grants).holders(&offer.name) as u64;
    entry.update(|serving| (serving.sessions, serving.holders) = (sessions as u64, holders));
}

/// Prints the ticket that the next peer may use.
fn tell_ticket(daemon: &Daemon, offer: &Offer, report: &Report) -> Result<(), Failure> {
    let secret = if offer.open { None } else { Some(lock(&daemon.grants).next_secret(&offer.name)?) };
    let ticket = daemon.ticket(&offer.name, secret, offer.hide_addresses)?;
    report.tell(Event::Ticket { service: offer.name.clone(), ticket: ticket.to_string(), open: offer.open });
    Ok(())
}

/// Lets in who has redeemed a ticket of this service, or does so now.
fn granted(daemon: &Arc<Daemon>, offer: &Offer, report: &Report) -> Access {
    let (daemon, offer, report) = (Arc::downgrade(daemon), offer.clone(), report.clone());
    Access::Granted(Arc::new(move |peer: PeerId, secret| {
        let Some(daemon) = daemon.upgrade() else { return false };
        if lock(&daemon.grants).knows(&offer.name, peer) {
            return true;
        }
        // Binding a ticket to a peer waits for the disk.
        let verdict = tokio::task::block_in_place(|| lock(&daemon.grants).redeem(&offer.name, peer, secret));
        match verdict {
            Ok(Verdict::Known) => true,
            Ok(Verdict::Refused) => {
                let message = "it brought no ticket, or one that another machine has used".into();
                report.tell(Event::SessionFailed { peer: peer.to_string(), service: offer.name.clone(), message });
                false
            }
            Ok(Verdict::Redeemed) => {
                report.tell(Event::Redeemed { service: offer.name.clone(), peer: peer.to_string() });
                if let Err(failure) = tell_ticket(&daemon, &offer, &report) {
                    tracing::warn!(%failure, "no further ticket");
                }
                true
            }
            Err(failure) => {
                tracing::warn!(%failure, "a ticket could not be redeemed");
                false
            }
        }
    }))
}

/// Carries one session between the peer and what the service leads to.
async fn session(daemon: Arc<Daemon>, offer: Offer, knock: Knock, report: Report) {
    let (peer, service) = (knock.peer().to_string(), offer.name.clone());
    let failed = |message: String| report.tell(Event::SessionFailed { peer, service, message });
    let connected = time::timeout(CONNECT_TIMEOUT, connect(&daemon, &offer.to)).await;
    let tcp = match connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
        Ok(tcp) => tcp,
        Err(error) => {
            failed(format!("{} does not answer ({error}); start what listens there", offer.to));
            return knock.turn_away(&error.kind().to_string()).await; // its address is none of the peer's business
        }
    };
    match knock.accept().await {
        Ok(session) => drop(daemon.tunnel.forward(session.stream, tcp).await),
        Err(error) => failed(printable(&format!("it went away ({error})"))),
    }
}

async fn connect(daemon: &Daemon, to: &Upstream) -> io::Result<Box<dyn TcpStream>> {
    let (host, port) = to.host_and_port();
    let addrs: Vec<SocketAddr> = daemon.net.resolve(&host, port).await?;
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for addr in addrs {
        match daemon.net.connect_tcp(addr).await {
            Ok(tcp) => return Ok(tcp),
            Err(error) => last = error,
        }
    }
    Err(last)
}
