//! A local port that leads to a peer's service, across restarts of the peer and changes of the path.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use byway::{
    Event as NodeEvent, Gone, PeerId, Ticket,
    net::{TcpListener, TcpStream},
    tunnel::TunnelError,
};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{self, Instant},
};

use super::{
    Daemon,
    attend::{Report, no_service},
    board::Entry,
    dial_failure, lock,
    serve::MAX_SESSIONS,
    status::path_event,
    tunnel_failure,
};
use crate::{
    accept,
    control::{
        Event,
        event::{Path, Reaching, milliseconds},
    },
    failure::{Exit, Failure, printable},
    target::Destination,
};

/// How long a TCP connection waits for its session, over however many connections to the peer.
const SESSION_DEADLINE: Duration = Duration::from_secs(10);

/// How long after a connection began its peer may not know a service yet: it is starting.
const STARTING: Duration = Duration::from_secs(3);

/// The pause before a session is tried again: the news that the connection is gone is on its way.
const SESSION_RETRY: Duration = Duration::from_millis(50);

/// Pauses between dials: the first, and the longest, which bounds how late a peer that came back is noticed.
const DIAL_RETRY: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(2));

/// The pause after the peer has closed its node: it is not gone yet, and not soon back.
const CLOSED_PAUSE: Duration = Duration::from_millis(500);

/// When the connection began, while there is one.
type Link = Option<Instant>;

/// One port and the service it leads to.
struct Way {
    daemon: Arc<Daemon>,
    ticket: Ticket,
    service: String,
    report: Report,
    entry: Entry<Reaching>,
}

/// Keeps a local port open until the command is gone or the node ends.
pub(super) async fn run(
    daemon: Arc<Daemon>,
    to: Destination,
    listen: Option<SocketAddr>,
    report: Report,
) -> Result<(), Failure> {
    let ticket = daemon.find(&to)?;
    let service = ticket.service.clone().ok_or_else(no_service)?;
    if ticket.peer == daemon.node.id() {
        return Err(Failure::usage(
            "this ticket is this machine's own; use it on another one, or with another --data-dir",
        ));
    }
    let listener = open_port(&daemon, ticket.peer, &service, listen).await?;
    let address = listener.local_addr().map_err(|error| Failure::here(format!("the local port is gone: {error}")))?;
    lock(&daemon.known).remember_port(ticket.peer, &service, address.port())?;
    let peer = ticket.peer.to_string();
    let reaching = Reaching { peer: peer.clone(), service: service.clone(), address, connected: false, sessions: 0 };
    let entry = daemon.reaching.put(reaching);
    report.tell(Event::Listening { peer, service: service.clone(), address });
    let way = Arc::new(Way { daemon, ticket, service, report, entry });
    let (link, linked) = watch::channel(None);
    tokio::select! {
        biased;
        result = way.keep_connected(&link) => result,
        result = take_connections(&way, &*listener, linked) => result,
    }
}

/// Opens the port that was asked for, or the one that led there last, or any.
async fn open_port(
    daemon: &Daemon,
    peer: PeerId,
    service: &str,
    listen: Option<SocketAddr>,
) -> Result<Box<dyn TcpListener>, Failure> {
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let mut wanted = listen.unwrap_or(any);
    if wanted.port() == 0
        && let Some(port) = lock(&daemon.known).port(peer, service)
    {
        wanted.set_port(port);
    }
    match daemon.net.listen_tcp(wanted).await {
        Ok(listener) => Ok(listener),
        Err(_) if listen.is_none_or(|asked| asked.port() == 0) => {
            let any = SocketAddr::new(wanted.ip(), 0);
            daemon.net.listen_tcp(any).await.map_err(|error| port_failure(any, &error))
        }
        Err(error) => Err(port_failure(wanted, &error)),
    }
}

fn port_failure(addr: SocketAddr, error: &io::Error) -> Failure {
    Failure::here(format!("cannot listen on {addr}: {error}; choose another address with --listen"))
}

async fn take_connections(
    way: &Arc<Way>,
    listener: &dyn TcpListener,
    linked: watch::Receiver<Link>,
) -> Result<(), Failure> {
    let mut sessions: JoinSet<()> = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            Some(_) = sessions.join_next() => {}
            tcp = accept::next("connection", || listener.accept()) => match sessions.len() {
                MAX_SESSIONS.. => tcp.reset(),
                _ => drop(sessions.spawn(Arc::clone(way).session(tcp, linked.clone()))),
            }
        }
        way.entry.update(|reaching| reaching.sessions = sessions.len() as u64);
    }
}

impl Way {
    fn peer(&self) -> String {
        self.ticket.peer.to_string()
    }

    /// Dials, and dials again whenever the connection is gone. Returns only if the peer refuses this node.
    async fn keep_connected(&self, link: &watch::Sender<Link>) -> Result<(), Failure> {
        let (mut pause, mut admitted) = (DIAL_RETRY.0, false);
        loop {
            // Listening begins before dialling, so that no change is missed.
            let mut events = self.daemon.node.events();
            let began = Instant::now();
            self.report.tell(Event::Dialling { peer: self.peer() });
            let failure = match self.connect(&mut admitted, began, link).await {
                Ok(path) => {
                    pause = DIAL_RETRY.0;
                    let reason = self.follow(&mut events, began, path).await;
                    self.set_link(link, None);
                    self.tell_gone(&reason);
                    if reason == Gone::Closed {
                        time::sleep(CLOSED_PAUSE).await;
                    }
                    continue;
                }
                Err(failure) if failure.code == Exit::Refused && !admitted => return Err(failure),
                Err(failure) => failure,
            };
            self.set_link(link, None);
            let retry_ms = pause.as_millis() as u64;
            self.report.tell(Event::Unreachable { peer: self.peer(), message: failure.message, retry_ms });
            time::sleep(pause).await;
            pause = (pause * 2).min(DIAL_RETRY.1);
        }
    }

    /// Dials once, and asks the first time whether the service may be used, so that the user learns it now.
    async fn connect(&self, admitted: &mut bool, began: Instant, link: &watch::Sender<Link>) -> Result<Path, Failure> {
        let (node, peer) = (&self.daemon.node, self.ticket.peer);
        node.dial(&self.ticket).await.map_err(|error| dial_failure(&error))?;
        let path = self.daemon.path(peer).await;
        self.report.tell(Event::Connected { peer: self.peer(), path, ms: milliseconds(began.elapsed()) });
        self.set_link(link, Some(Instant::now()));
        if !*admitted {
            match self.daemon.tunnel.knock(peer, &self.service, self.ticket.secret).await {
                Ok(()) => *admitted = true,
                // No answer is no refusal: the connection's own end will tell, or the sessions.
                Err(TunnelError::Gone(_) | TunnelError::Absent(_) | TunnelError::Timeout | TunnelError::Busy(_)) => {}
                Err(error) => return Err(tunnel_failure(&error)),
            }
        }
        Ok(path)
    }

    /// Tells how the path changes, until the connection is gone.
    async fn follow(&self, events: &mut byway::EventStream, began: Instant, mut path: Path) -> Gone {
        loop {
            match events.recv().await {
                Some(NodeEvent::PathBest { peer, path: new, .. }) if peer == self.ticket.peer => {
                    let new = Path::from(new);
                    if new != path {
                        path = new;
                        let ms = milliseconds(began.elapsed());
                        self.report.tell(Event::Path { peer: self.peer(), path, ms });
                    }
                }
                Some(event @ (NodeEvent::Stalled { peer, .. } | NodeEvent::Resumed { peer, .. }))
                    if peer == self.ticket.peer =>
                {
                    path_event(&event).into_iter().for_each(|event| self.report.tell(event));
                }
                Some(NodeEvent::PeerDown { peer, reason }) if peer == self.ticket.peer => return reason,
                Some(NodeEvent::Missed(_)) if !self.daemon.node.peers().contains(&self.ticket.peer) => {
                    return Gone::Lost("it went unnoticed".into());
                }
                Some(_) => {}
                None => return Gone::Closed,
            }
        }
    }

    fn tell_gone(&self, reason: &Gone) {
        self.report.tell(gone(self.peer(), reason));
    }

    fn set_link(&self, link: &watch::Sender<Link>, state: Link) {
        link.send_replace(state);
        self.entry.update(|reaching| reaching.connected = state.is_some());
    }

    /// Carries one TCP connection. Until the peer takes it, it waits for however many connections that needs.
    async fn session(self: Arc<Self>, tcp: Box<dyn TcpStream>, linked: watch::Receiver<Link>) {
        let opened = time::timeout(SESSION_DEADLINE, self.open(linked)).await;
        let waited = || Failure::here(format!("no connection within {SESSION_DEADLINE:?}"));
        match opened.unwrap_or_else(|_| Err(waited())) {
            Ok(stream) => drop(self.daemon.tunnel.forward(stream, tcp).await),
            Err(failure) => {
                tcp.reset();
                let (peer, service, message) = (self.peer(), self.service.clone(), failure.message);
                self.report.tell(Event::SessionFailed { peer, service, message });
            }
        }
    }

    async fn open(&self, mut linked: watch::Receiver<Link>) -> Result<byway::Stream, Failure> {
        loop {
            let since = match linked.wait_for(Option::is_some).await {
                Ok(link) => *link,
                Err(_) => return Err(Failure::here("the port was closed")),
            };
            match self.daemon.tunnel.dial(self.ticket.peer, &self.service, self.ticket.secret).await {
                Ok(stream) => return Ok(stream),
                Err(TunnelError::Gone(_) | TunnelError::Absent(_) | TunnelError::Busy(_)) => {}
                Err(TunnelError::NoSuchService(_)) if since.is_some_and(|since| since.elapsed() < STARTING) => {}
                Err(error) => return Err(tunnel_failure(&error)),
            }
            time::sleep(SESSION_RETRY).await;
        }
    }
}

/// That the connection ended; the peer may have written the reason.
fn gone(peer: String, reason: &Gone) -> Event {
    let word = match reason {
        Gone::Restarted => "restarted",
        Gone::Closed => "closed",
        Gone::TimedOut => "timed_out",
        Gone::Replaced => "replaced",
        Gone::Refused(_) => "refused",
        _ => "lost",
    };
    Event::Gone { peer, reason: word.into(), message: printable(&reason.to_string()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peers_last_word_cannot_command_the_terminal() {
        let reason = Gone::Filtered("a\u{1b}]0;b\u{7}\n".into());
        let Event::Gone { reason, message, .. } = gone("p".into(), &reason) else { unreachable!() };
        assert!(reason == "lost" && message.contains("]0;b") && !message.contains(char::is_control), "{message:?}");
    }
}
