//! This node as a relay: the pure machine, its clients' links, and its timer. Data never comes here: the mux forwards.

use std::{
    collections::BTreeMap,
    fmt,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use byway_proto::{
    gate::Source,
    nat::SocketId,
    relay::{CloseReason, Input, Output, RelayConfig, RelayServer},
};
use tokio::{
    sync::{Notify, mpsc},
    time,
};

use crate::{
    agent::Command as AgentCommand,
    core::Core,
    gone::Gone,
    link::{Link, establish::Established, readers, writer},
    net::{
        Net,
        mux::{Mux, Relaying},
    },
    status::RelayServerStatus,
    switch::FromLink,
};

/// Control messages of all clients that may wait.
const CONTROL: usize = 256;

/// How often a relay pings an idle client, which is told of relays that died by pings of its own: only to notice routes that
/// came back.
const PING: Duration = Duration::from_secs(120);

/// How long a client's link may take until its client has answered on the route that carries it: a ping that is lost often.
const PROOF: Duration = Duration::from_secs(10);

/// The sockets of a relay's second port: the agent counts its own from below.
const SECOND: [SocketId; 2] = [SocketId(u32::MAX), SocketId(u32::MAX - 1)];

/// Opens the port after the relay's own, or else any other, for STUN alone; with one server of two ports a client sees
/// whether its NAT gives each destination another mapping.
fn open_second_port(mux: &Mux, net: &dyn Net) -> Option<u16> {
    let mut second = None;
    for (id, own) in SECOND.into_iter().zip(mux.sockets.own()) {
        let bound = own.local_addr().ok()?;
        let wished = second.or(bound.port().checked_add(1)).unwrap_or(0);
        let opened = net.bind_udp(SocketAddr::new(bound.ip(), wished)).or_else(|error| match second {
            None => net.bind_udp(SocketAddr::new(bound.ip(), 0)),
            Some(_) => Err(error), // clients are told of one port for both families
        });
        let Ok(socket) = opened else { continue };
        second = second.or(socket.local_addr().ok().map(|addr| addr.port()));
        mux.sockets.add(id, socket);
    }
    second
}

/// The relay of a node.
pub(crate) struct RelayShell {
    relaying: Arc<Relaying>,
    links: Mutex<Links>,
    control: mpsc::Sender<FromLink>,
}

#[derive(Default)]
struct Links {
    by_number: BTreeMap<u64, Arc<Link>>,
    /// The same links, by what names their connection.
    numbers: BTreeMap<SocketAddr, u64>,
    next: u64,
}

impl RelayShell {
    /// A relay whose data the mux forwards from now on.
    pub(crate) fn new(mut config: RelayConfig, mux: &Mux, net: &dyn Net) -> (Arc<Self>, mpsc::Receiver<FromLink>) {
        config.stun_port = open_second_port(mux, net);
        let server = Mutex::new(RelayServer::new(config, mux.now()));
        let relaying = Arc::new(Relaying { server, changed: Notify::new() });
        // A mux is made for one node, which makes one relay.
        let _ = mux.relay.set(Arc::clone(&relaying));
        let (control, from_links) = mpsc::channel(CONTROL);
        (Arc::new(RelayShell { relaying, links: Mutex::default(), control }), from_links)
    }

    fn links(&self) -> MutexGuard<'_, Links> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn server(&self) -> MutexGuard<'_, RelayServer> {
        self.relaying.server.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Serves clients until the node is closed.
    pub(crate) async fn run(self: Arc<Self>, core: Arc<Core>, mut from_links: mpsc::Receiver<FromLink>) {
        loop {
            let next = self.server().poll_timeout().map(|(at, _)| core.mux.clock.at(at));
            tokio::select! {
                biased;
                () = core.tasks.stopped() => return,
                () = time::sleep_until(next.unwrap_or_else(time::Instant::now)), if next.is_some() => {
                    self.input(&core, Input::Timeout);
                }
                () = self.relaying.changed.notified() => {}
                Some((link, message)) = from_links.recv() => {
                    if let Some(conn) = self.number(&link) {
                        self.input(&core, Input::Control { conn, message });
                    }
                }
            }
        }
    }

    /// Takes in a client's link.
    pub(crate) fn accept(self: &Arc<Self>, core: &Arc<Core>, established: Established) {
        let Established { link, recv, codec, .. } = established;
        let Some(via) = link.track.via() else { return core.retire(&link.track) };
        let conn = {
            let mut links = self.links();
            links.next += 1;
            let conn = links.next;
            links.by_number.insert(conn, Arc::clone(&link));
            links.numbers.insert(link.track.alias(), conn);
            conn
        };
        // Its client pings, and more often than that.
        core.agent.try_send(AgentCommand::KeepAlive { alias: link.track.alias(), every: PING });
        core.mux.sockets.wss().vouch(via.remote(), true);
        let instance = link.hello().instance;
        let (addr, source) = (via.remote(), source_of(core, via.remote()));
        self.input(core, Input::Connected { conn, peer: link.peer, instance, addr, source });
        core.tasks.spawn(writer::run(Arc::clone(&link), Arc::clone(&core.mux), None));
        let (shell, core) = (Arc::clone(self), Arc::clone(core));
        core.tasks.clone().spawn(async move {
            // Its messages are read no sooner: whoever registers is sent data, and a handshake's source may be forged.
            let proof = tokio::select! {
                biased;
                _ = link.connection.closed() => None,
                proof = time::timeout(PROOF, link.track.settles(None)) => proof.ok(),
            };
            match proof {
                Some(proven) => {
                    if proven != addr {
                        shell.moved(&core, conn, proven);
                    }
                    let scope = core.scope(shell.control.clone());
                    core.tasks.spawn(readers::run(Arc::clone(&link), recv, codec, scope));
                    shell.watch(&core, conn, &link, proven).await;
                }
                None => {
                    link.close(Gone::TimedOut); // nothing if it has ended
                    shell.over(&core, conn, &link, addr);
                }
            }
        });
    }

    /// Follows a client to new addresses, until its link ends.
    async fn watch(&self, core: &Arc<Core>, conn: u64, link: &Link, mut addr: SocketAddr) {
        loop {
            addr = tokio::select! {
                biased;
                _ = link.connection.closed() => break,
                now = link.track.settles(Some(addr)) => now,
            };
            self.moved(core, conn, addr);
        }
        self.over(core, conn, link, addr);
    }

    /// A client is at another address now.
    fn moved(&self, core: &Core, conn: u64, addr: SocketAddr) {
        core.mux.sockets.wss().vouch(addr, true);
        self.input(core, Input::Rebound { conn, addr, source: source_of(core, addr) });
    }

    /// A client's link, last at `addr`, has ended.
    fn over(&self, core: &Arc<Core>, conn: u64, link: &Link, addr: SocketAddr) {
        {
            let mut links = self.links();
            links.by_number.remove(&conn);
            links.numbers.remove(&link.track.alias());
        }
        link.outbox.close();
        core.mux.sockets.wss().vouch(addr, false);
        self.input(core, Input::Disconnected { conn });
        core.retire(&link.track);
    }

    /// Has these settings from now on.
    pub(crate) fn configure(&self, core: &Core, config: RelayConfig) {
        self.input(core, Input::Configure(config));
    }

    /// Tells all clients that the relay will stop, and stops within `deadline`.
    pub(crate) fn drain(&self, core: &Core, deadline: Duration) {
        self.input(core, Input::Drain { within: deadline });
    }

    pub(crate) fn status(&self) -> RelayServerStatus {
        let server = self.server();
        RelayServerStatus {
            clients: server.clients(),
            allocations: server.allocations(),
            datagrams: server.counters().datagrams_forwarded,
            bytes: server.counters().bytes_forwarded,
        }
    }

    /// What was not forwarded, by reason.
    pub(crate) fn dropped(&self) -> [(&'static str, u64); 8] {
        let server = self.server();
        let drops = &server.counters().drops;
        [
            ("relay_stranger", drops.stranger),
            ("relay_not_in_pair", drops.not_in_pair),
            ("relay_unanswered", drops.unanswered),
            ("relay_rate_limited", drops.rate_limited),
            ("relay_peer_absent", drops.peer_absent),
            ("relay_hold_full", drops.hold_full),
            ("relay_hold_expired", drops.hold_expired),
            ("relay_hold_orphaned", drops.hold_orphaned),
        ]
    }

    fn number(&self, link: &Arc<Link>) -> Option<u64> {
        self.links().numbers.get(&link.track.alias()).copied()
    }

    /// Tells the machine something, and does what it wants done.
    fn input(&self, core: &Core, input: Input) {
        let mut outputs = Vec::new();
        {
            let mut server = self.server();
            server.handle_input(input, core.mux.now());
            while let Some(output) = server.poll_output() {
                outputs.push(output);
            }
        }
        for output in outputs {
            match output {
                Output::Send { conn, message } => {
                    if let Some(link) = self.links().by_number.get(&conn).filter(|link| !link.control(&message)) {
                        link.close(Gone::Unserved(
                            "it read too slowly what the relay had to say: it registers anew".into(),
                        ));
                    }
                }
                Output::Transmit { to, bytes } => core.mux.send_raw(to, &bytes),
                Output::Close { conn, reason } => {
                    if let Some(link) = self.links().by_number.get(&conn) {
                        link.close(closing(reason));
                    }
                }
                other => tracing::warn!(?other, "the relay wants something that its shell does not know"),
            }
        }
        self.relaying.changed.notify_one();
    }
}

/// Whose an address is: that of the TCP connection, where it stands for one.
fn source_of(core: &Core, addr: SocketAddr) -> Source {
    Source::of(core.mux.sockets.wss().behind(addr))
}

fn closing(reason: CloseReason) -> Gone {
    match reason {
        CloseReason::Replaced => Gone::Replaced,
        _ => Gone::Unserved(reason.to_string()),
    }
}

impl fmt::Debug for RelayShell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RelayShell")
    }
}
