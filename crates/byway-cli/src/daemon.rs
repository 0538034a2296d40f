//! The node of a data directory, and the commands attached to it.
//!
//! The process that holds the data directory's lock runs it, whatever command that process is; all commands, that
//! process's own among them, speak with it over the control socket alone.

mod attend;
mod bench;
mod board;
mod check;
mod metrics;
mod peers;
mod ping;
mod pipe;
mod reach;
mod reload;
mod serve;
mod status;
mod why;

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use byway::{
    BindError, DialError, Event as NodeEvent, Gone, HostAddr, Identity, MAX_STUN, Node, PathKind, PeerAddr, PeerId,
    Ticket,
    nat::NatReport,
    net::{Net, os::Os},
    tunnel::{Tunnel, TunnelError},
};
use interprocess::local_socket::tokio::Listener;
use tokio::{sync::watch, task::JoinSet, time};

use self::board::Board;
use crate::{
    accept,
    bench::{self as line, Answers, Bench},
    config::{FileConfig, Settings, metrics::MetricsAddr},
    control::{
        event::{Path, Process, Reaching, Serving},
        local,
    },
    datadir::{DataDir, Lock},
    failure::{Exit, Failure, printable},
    grants::Grants,
    known::KnownPeers,
    target::Destination,
};

/// Processes that may be attached at once: a person's terminals and scripts, not a swarm.
const MAX_ATTACHED: usize = 256;

/// How long the system may take to resolve a STUN server's name; less than a command has for its greeting.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(4);

/// How long attached commands have to take their last word.
const FAREWELL: Duration = Duration::from_secs(1);

/// How long a relay that was asked to end goes on for its clients, which look for another one meanwhile.
const DRAIN: Duration = Duration::from_secs(3);

/// How often a draining relay looks whether its clients have gone.
const DRAIN_POLL: Duration = Duration::from_millis(50);

/// How long the first ticket of a node without relays waits for the word of a STUN server where the node is seen from.
const SEEN: Duration = Duration::from_secs(2);

/// What the node and the commands' work share.
pub(crate) struct Daemon {
    node: Node,
    tunnel: Tunnel,
    bench: Bench,
    net: Arc<dyn Net>,
    dir: DataDir,
    settings: Settings,
    /// The configuration that is in force, as the file had it.
    file: Mutex<FileConfig>,
    /// The configured relays, then those that commands brought.
    relays: Mutex<Vec<PeerAddr>>,
    /// The configured STUN servers, then those that commands brought.
    stun: Mutex<Vec<HostAddr>>,
    grants: Mutex<Grants>,
    known: Mutex<KnownPeers>,
    processes: Board<Process>,
    serving: Board<Serving>,
    reaching: Board<Reaching>,
    /// Why all work has to end, once it has to.
    end: watch::Sender<Option<Failure>>,
}

/// The node while this process runs it.
pub(crate) struct Running {
    daemon: Arc<Daemon>,
    attached: JoinSet<()>,
    _lock: Lock,
}

impl Running {
    /// Starts the node of `dir` for the command named `command`.
    pub(crate) async fn start(
        dir: DataDir,
        lock: Lock,
        mut settings: Settings,
        command: &str,
    ) -> Result<Self, Failure> {
        let identity = Identity::load_or_create(&dir.key_file()).map_err(Failure::here)?;
        let (grants, known) = (Grants::open(&dir)?, KnownPeers::open(&dir)?);
        let asked = match settings.metrics.listen {
            Some(MetricsAddr(addr)) => Some(metrics::listen(addr).await?),
            None => None,
        };
        let listens = asked.as_ref().and_then(|listener| listener.local_addr().ok());
        settings.metrics.listen = listens.map(MetricsAddr); // the port that the system chose, if it was to
        let mut config = settings.node_config(identity, dir.remembered_port());
        config.store = Some(dir.book_file());
        let net: Arc<dyn Net> = Arc::new(Os);
        let node = Node::bind_on(Arc::clone(&net), config).await.map_err(|error| bind_failure(&error))?;
        dir.remember_port(node.port())?;
        let tunnel = Tunnel::new(&node).map_err(Failure::here)?;
        let (bench, answers) = line::register(&node).map_err(Failure::here)?;
        let listener = local::bind(&dir)?;
        let daemon = Arc::new(Daemon {
            node,
            tunnel,
            bench,
            net,
            dir,
            relays: Mutex::new(settings.relays.clone()),
            stun: Mutex::new(settings.stun.clone()),
            file: Mutex::new(settings.file.clone()),
            settings,
            grants: Mutex::new(grants),
            known: Mutex::new(known),
            processes: Board::default(),
            serving: Board::default(),
            reaching: Board::default(),
            end: watch::Sender::new(None),
        });
        let mut attached = JoinSet::new();
        if matches!(command, "up" | "relay") {
            attached.spawn(reload::watch(Arc::clone(&daemon))); // others end with their terminal
        }
        attached.spawn(take_commands(Arc::clone(&daemon), listener, command.to_owned()));
        attached.spawn(answer_measurements(Arc::clone(&daemon), answers));
        if let Some(asked) = asked {
            attached.spawn(metrics::run(Arc::clone(&daemon), asked));
        }
        Ok(Running { daemon, attached, _lock: lock })
    }

    /// Ends all work, tells the attached commands why, and closes the node.
    pub(crate) async fn stop(mut self, command: &str) {
        self.drain().await;
        let pid = std::process::id();
        let why = format!(
            "the node was stopped with the process that ran it (`byway {command}`, {pid}); start this command again"
        );
        self.daemon.end.send_replace(Some(Failure::new(Exit::NoNode, why)));
        let farewell = async { while self.attached.join_next().await.is_some() {} };
        if time::timeout(FAREWELL, farewell).await.is_err() {
            self.attached.shutdown().await;
        }
        self.daemon.node.close().await;
        if let Ok(socket) = self.daemon.dir.socket() {
            let _ = std::fs::remove_file(socket); // the next process would replace it
        }
    }

    /// Lets a relay's clients look for another one before it goes.
    async fn drain(&self) {
        let node = &self.daemon.node;
        if !self.daemon.settings.relay {
            return;
        }
        node.drain(DRAIN);
        let gone = async {
            while node.status().await.serving.is_some_and(|relay| relay.clients > 0) {
                time::sleep(DRAIN_POLL).await;
            }
        };
        let _ = time::timeout(DRAIN, gone).await;
    }
}

/// Lets peers measure the line until the node ends.
async fn answer_measurements(daemon: Arc<Daemon>, answers: Answers) {
    tokio::select! {
        biased;
        _ = daemon.ended() => {}
        () = answers.run(|peer, claim| self::bench::may_ask(&daemon, peer, claim)) => {}
    }
}

/// Attends to commands until the node ends.
async fn take_commands(daemon: Arc<Daemon>, listener: Listener, owner: String) {
    let mut commands = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            _ = daemon.ended() => break,
            Some(_) = commands.join_next() => {}
            connection = accept::next("command", || local::accept(&listener)), if commands.len() < MAX_ATTACHED => {
                commands.spawn(attend::attend(Arc::clone(&daemon), connection, owner.clone()));
            }
        }
    }
    while commands.join_next().await.is_some() {}
}

impl Daemon {
    /// Waits until all work has to end.
    async fn ended(&self) -> Failure {
        let mut end = self.end.subscribe();
        let why = end.wait_for(Option::is_some).await.ok().and_then(|why| why.clone());
        match why {
            Some(why) => why,
            None => std::future::pending().await, // nobody can end it any more
        }
    }

    /// All that is known of a destination.
    fn find(&self, destination: &Destination) -> Result<Ticket, Failure> {
        lock(&self.known).find(destination, SystemTime::now())
    }

    /// Waits until STUN servers have said where this node is seen from, if its tickets can name nothing better: no relay that
    /// would tell their holders.
    async fn wait_until_seen(&self) {
        if !lock(&self.relays).is_empty() || lock(&self.stun).is_empty() || self.settings.relay_only {
            return;
        }
        let is_seen = |report: &NatReport| {
            [&report.ipv4, &report.ipv6].into_iter().flatten().any(|family| family.public.is_some())
        };
        let mut events = self.node.events(); // before the report is read: what changes from here on is told
        let seen = async {
            let mut is_told = is_seen(&self.node.status().await.nat.report);
            while !is_told && let Some(event) = events.recv().await {
                is_told = matches!(event, NodeEvent::NatChanged(report) if is_seen(&report));
            }
        };
        let _ = time::timeout(SEEN, seen).await; // a ticket of local addresses is better than none
    }

    /// What another machine needs to reach a service here.
    fn ticket(&self, service: &str, secret: Option<[u8; 16]>, hide_addresses: bool) -> Result<Ticket, Failure> {
        let mut ticket = self.node.ticket();
        if hide_addresses {
            ticket.addrs.clear();
        }
        if hide_addresses && ticket.relays.is_empty() {
            let why = "a ticket without addresses needs a relay; name one with --relay, or in the configuration";
            return Err(Failure::usage(why));
        }
        ticket.service = Some(service.to_owned());
        ticket.secret = secret;
        Ok(ticket)
    }

    /// Chooses among relays that a command brought, too.
    fn use_relays(&self, texts: &[String]) -> Result<(), Failure> {
        for text in texts {
            let relay: PeerAddr = text.parse().map_err(|error| Failure::usage(format!("relay {text:?}: {error}")))?;
            let mut relays = lock(&self.relays);
            if relays.iter().any(|known| known.id == relay.id) {
                continue;
            }
            self.node.add_relay(&relay).map_err(Failure::usage)?;
            relays.push(relay);
        }
        Ok(())
    }

    /// Asks STUN servers that a command brought.
    async fn use_stun(&self, texts: &[String]) -> Result<(), Failure> {
        for text in texts {
            let server: HostAddr = text.parse().map_err(|error| Failure::usage(format!("--stun {text:?}: {error}")))?;
            if lock(&self.stun).contains(&server) {
                continue;
            }
            if lock(&self.stun).len() >= MAX_STUN {
                return Err(Failure::usage(format!(
                    "the node asks {MAX_STUN} STUN servers already, which is the most"
                )));
            }
            self.ask(&server).await.map_err(|why| Failure::new(Exit::Unreachable, why))?;
            lock(&self.stun).push(server);
        }
        Ok(())
    }

    /// Asks a STUN server, and says why it cannot be asked.
    async fn ask(&self, server: &HostAddr) -> Result<(), String> {
        let asked = time::timeout(RESOLVE_TIMEOUT, self.node.add_stun(server)).await;
        let why = match asked {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {RESOLVE_TIMEOUT:?}"),
        };
        Err(format!(
            "the STUN server {server} has no address ({why}); check its name, and that this machine's DNS works"
        ))
    }

    /// By what way a peer is connected now; the relay unless it is known to be better.
    async fn path(&self, peer: PeerId) -> Path {
        let status = self.node.status().await;
        let path = status.peers.iter().find(|status| status.id == peer).and_then(|status| status.path);
        path.map_or(Path::Relay, Path::from)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl From<PathKind> for Path {
    fn from(kind: PathKind) -> Self {
        match kind {
            PathKind::Direct => Path::Direct,
            _ => Path::Relay,
        }
    }
}

fn bind_failure(error: &BindError) -> Failure {
    match error {
        BindError::Config(error) => Failure::usage(error),
        BindError::PortInUse(_) => Failure::here(format!("{error}, with `port` in the configuration or --listen")),
        error => Failure::here(error),
    }
}

fn dial_failure(error: &DialError) -> Failure {
    let code = match error {
        DialError::SelfDial | DialError::Banned(_) => Exit::Usage,
        DialError::Hello { reason: Gone::Refused(_), .. } => Exit::Refused,
        DialError::TooMany(_) | DialError::Closed => Exit::Failed,
        _ => Exit::Unreachable,
    };
    match error {
        DialError::Unreached { peer, what, notes } => {
            let peer = peer.short();
            let (what, notes) = (printable(what), printable(notes));
            let hint = "check that it and its relay run and that UDP may pass, or ask there for a new ticket";
            Failure::new(code, format!("{peer} was not reached ({what}{notes}); {hint}"))
        }
        DialError::Hello { peer, reason } => {
            let (peer, reason) = (peer.short(), printable(&reason.to_string()));
            Failure::new(code, format!("{peer} was reached, but the two nodes cannot talk: {reason}"))
        }
        error => Failure::new(code, printable(&error.to_string())),
    }
}

fn tunnel_failure(error: &TunnelError) -> Failure {
    let code = match error {
        TunnelError::Name(_) => Exit::Usage,
        TunnelError::Absent(_) | TunnelError::Gone(_) | TunnelError::Timeout => Exit::Unreachable,
        _ => Exit::Refused,
    };
    Failure::new(code, printable(&error.to_string())) // the peer may have written a part of it
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_a_tunnel_failed_cannot_command_the_terminal() {
        let failure = tunnel_failure(&TunnelError::Gone("a\u{1b}]0;b\u{7}\n".into()));
        assert!(failure.message.contains("]0;b") && !failure.message.contains(char::is_control), "{failure:?}");
    }
}
