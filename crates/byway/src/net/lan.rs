//! Peers on the same link, found by multicast DNS (RFC 6762): for two nodes that know each other's id and nothing else.
//!
//! A node announces nothing. It answers a question for its own name, which only who knows its id can ask
//! ([`PeerId::lan_name`]); so that name needs no probing (RFC 6762 §8.1), for nobody else can have it. What an answer says
//! is tried, not believed: TLS proves the key. Answers are not kept beyond the dial that asked.

mod message;

use std::{
    collections::BTreeMap,
    future::poll_fn,
    io::{self, IoSliceMut},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{
        Arc, Weak,
        atomic::{AtomicUsize, Ordering},
    },
    task::Poll,
    time::Duration,
};

use byway_proto::{PeerId, addr::candidate::is_probeable};
use quinn::udp::{RecvMeta, Transmit};
use tokio::{
    sync::mpsc,
    time::{self, Instant},
};
use tracing::debug;

use self::message::{MAX_MESSAGE, Message};
use super::{Interface, UdpSocket, routes::Via, track::Track};
use crate::{core::Core, dial};

/// Multicast DNS's port, of questions and of answers (RFC 6762 §5.2, §6).
const PORT: u16 = 5353;

/// Multicast DNS's groups (RFC 6762 §3).
const GROUP_V4: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(224, 0, 0, 251)), PORT);
const GROUP_V6: SocketAddr = SocketAddr::new(IpAddr::V6(Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0xfb)), PORT);

/// When a dial asks, counted from its begin: the second question makes up for a lost packet, the third for a lost answer,
/// which is not repeated within [`ANSWER_EVERY`], the last for a peer that starts just now.
const QUESTIONS: [Duration; 4] =
    [Duration::ZERO, Duration::from_millis(100), Duration::from_millis(1_100), Duration::from_millis(3_100)];

/// How long answers to the last question are waited for: every host of a link answers within 500 ms (RFC 6762 §6).
const LAST_WAIT: Duration = Duration::from_secs(1);

/// An answer is not sent twice on one link within this time (RFC 6762 §6).
const ANSWER_EVERY: Duration = Duration::from_secs(1);

/// Requests that may wait; a dial with another one waits for its turn.
const COMMANDS: usize = 64;

/// Dials that ask at once; a further one does without.
const MAX_ASKING: usize = 256;

/// Sockets: one for each interface and family, more than any machine has cables.
const MAX_LINKS: usize = 8;

/// Addresses that one dial takes from all answers together, and from those of one host: half of a connection's routes, so
/// that hosts that lie leave room for what the ticket and the relays say.
const MAX_FOUND: usize = 8;
const MAX_FOUND_OF_HOST: usize = 4;

/// How long a message waits for a full socket before it is given up.
const SEND_WAIT: Duration = Duration::from_millis(100);

/// Reaches the task that asks the link.
#[derive(Debug)]
pub(crate) struct LanRef {
    commands: mpsc::Sender<Command>,
    links: Arc<AtomicUsize>,
}

/// The receiving end of a [`LanRef`].
pub(crate) struct Inlet {
    commands: mpsc::Receiver<Command>,
    links: Arc<AtomicUsize>,
}

enum Command {
    /// Find a peer for a dial; the addresses in `not` are somebody else's.
    Ask { peer: PeerId, track: Weak<Track>, not: Vec<SocketAddr> },
    /// The interfaces may have changed.
    Renew,
}

impl LanRef {
    pub(crate) fn new() -> (Self, Inlet) {
        let (commands, inlet) = mpsc::channel(COMMANDS);
        let links = Arc::default();
        (LanRef { commands, links: Arc::clone(&links) }, Inlet { commands: inlet, links })
    }

    /// Has a dial's peer looked for; whatever is found becomes a route of the dial, unless it is among `not`. `false` if
    /// this node is on no LAN, or does not use it.
    pub(crate) async fn ask(&self, peer: PeerId, track: &Arc<Track>, not: &[SocketAddr]) -> bool {
        let ask = Command::Ask { peer, track: Arc::downgrade(track), not: not.to_vec() };
        self.links.load(Ordering::Relaxed) > 0 && self.commands.send(ask).await.is_ok()
    }

    /// Says that the interfaces may have changed.
    pub(crate) async fn renew(&self) {
        let _ = self.commands.send(Command::Renew).await; // the LAN may be switched off
    }
}

/// Joins the links of this machine and starts the task; with the LAN switched off, does nothing.
pub(crate) fn start(core: &Arc<Core>, inlet: Inlet) {
    if !core.config.lan || core.config.relay_only {
        return;
    }
    let name = core.id().lan_name(&core.config.network);
    let mut lan = Lan { core: Arc::clone(core), name, links: Vec::new(), count: inlet.links, asking: Vec::new() };
    lan.renew();
    core.tasks.spawn(lan.run(inlet.commands));
}

/// The state that the task owns.
struct Lan {
    core: Arc<Core>,
    name: String,
    links: Vec<Link>,
    /// How many links there are, for [`LanRef::ask`].
    count: Arc<AtomicUsize>,
    asking: Vec<Asking>,
}

/// An interface in one family.
struct Link {
    /// The interface's addresses of both families.
    interfaces: Vec<Interface>,
    group: SocketAddr,
    socket: Arc<dyn UdpSocket>,
    answered: Option<Instant>,
}

/// A dial that looks for its peer.
struct Asking {
    name: String,
    track: Weak<Track>,
    not: Vec<SocketAddr>,
    /// The host that named it, and the address.
    found: Vec<(IpAddr, SocketAddr)>,
    began: Instant,
    /// Questions sent.
    sent: usize,
}

impl Lan {
    async fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        let core = Arc::clone(&self.core);
        let mut buf = vec![0; 2 * MAX_MESSAGE];
        loop {
            let next = self.asking.iter().map(Asking::due).min();
            tokio::select! {
                biased;
                () = core.tasks.stopped() => return,
                () = time::sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => self.ask().await,
                Some(command) = commands.recv() => self.command(command),
                (at, received) = receive(&self.links, &mut buf) => match received {
                    Ok(meta) => self.heard(at, &buf, &meta).await,
                    Err(error) => {
                        debug!(%error, "a link's multicast cannot be heard any more");
                        self.links.remove(at);
                        self.tell_count();
                    }
                },
            }
        }
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Renew => self.renew(),
            Command::Ask { peer, track, not } if self.asking.len() < MAX_ASKING => {
                let name = peer.lan_name(&self.core.config.network);
                let (found, began) = (Vec::new(), Instant::now());
                self.asking.push(Asking { name, track, not, found, began, sent: 0 });
            }
            Command::Ask { .. } => debug!("too many dials ask the LAN already"),
        }
    }

    /// Joins the links that have come up and leaves those that are gone.
    fn renew(&mut self) {
        let mut old = std::mem::take(&mut self.links);
        for (group, interfaces) in wanted(&self.core) {
            if let Some(at) = old.iter().position(|link| link.group == group && link.interfaces == interfaces) {
                self.links.push(old.swap_remove(at));
                continue;
            }
            let Some(own) = interfaces.iter().find(|interface| interface.ip.is_ipv4() == group.is_ipv4()) else {
                continue;
            };
            match self.core.net.bind_multicast(group, own) {
                Ok(socket) => self.links.push(Link { interfaces, group, socket, answered: None }),
                Err(error) => debug!(%error, index = own.index, "peers on this link will not be found"),
            }
        }
        self.tell_count();
    }

    fn tell_count(&self) {
        self.count.store(self.links.len(), Ordering::Relaxed);
    }

    /// Sends the questions that are due, and forgets dials that are done.
    async fn ask(&mut self) {
        let now = Instant::now();
        let mut due = Vec::new();
        self.asking.retain_mut(|asking| {
            let Some(track) = asking.track.upgrade() else { return false };
            if asking.due() > now {
                return true;
            }
            // Its last answers are still of use: they lead past a relay.
            let goes_on = asking.sent < QUESTIONS.len();
            if goes_on && !track.lock().established {
                due.push(asking.name.clone());
            }
            asking.sent += 1;
            goes_on
        });
        due.dedup();
        for name in due {
            let Ok(question) = message::question(&name) else { continue };
            for link in &self.links {
                link.send(&question).await;
            }
        }
    }

    /// Takes in what has come by the link at `at`.
    async fn heard(&mut self, at: usize, buf: &[u8], meta: &RecvMeta) {
        let link = &self.links[at];
        let is_ours = meta.dst_ip.is_none_or(|ip| ip.to_canonical() == link.group.ip());
        // RFC 6762 §6.7, §11: another port is a simple resolver, which is not served; another network is a stranger.
        if meta.addr.port() != PORT || !link.is_on_link(meta.addr.ip()) || !is_ours {
            return;
        }
        let buf = &buf[..meta.len.min(buf.len())];
        for datagram in buf.chunks(meta.stride.max(1)) {
            match message::parse(datagram) {
                Some(Message::Where(names)) if names.contains(&self.name) => self.answer(at).await,
                Some(Message::There(found)) => {
                    for (name, addrs) in found {
                        self.found(at, meta.addr.ip(), &name, &addrs).await;
                    }
                }
                _ => {}
            }
        }
    }

    /// Says on a link where this node is on it.
    async fn answer(&mut self, at: usize) {
        let now = Instant::now();
        let sockets = &self.core.mux.sockets; // of one port
        let bound = sockets.v4.as_ref().or(sockets.v6.as_ref()).and_then(|socket| socket.local_addr().ok());
        let link = &mut self.links[at];
        let Some(port) = bound.map(|bound| bound.port()) else { return };
        let is_early = link.answered.is_some_and(|answered| now - answered < ANSWER_EVERY);
        if is_early || !self.core.config.accept {
            return;
        }
        link.answered = Some(now);
        let addrs: Vec<SocketAddr> = link.interfaces.iter().map(|own| SocketAddr::new(own.ip, port)).collect();
        if let Ok(answer) = message::answer(&self.name, &addrs) {
            link.send(&answer).await;
        }
    }

    /// Adds to the dials of a peer what a host said of it: addresses on its own link only, so that nobody is aimed at
    /// from another network.
    async fn found(&mut self, at: usize, host: IpAddr, name: &str, addrs: &[SocketAddr]) {
        let link = &self.links[at];
        for asking in self.asking.iter_mut().filter(|asking| asking.name == name) {
            let Some(track) = asking.track.upgrade() else { continue };
            for addr in addrs.iter().copied().filter(|addr| link.is_on_link(addr.ip())) {
                let of_host = asking.found.iter().filter(|(source, _)| *source == host).count();
                let has_room = asking.found.len() < MAX_FOUND && of_host < MAX_FOUND_OF_HOST;
                let is_new = !asking.not.contains(&addr) && !asking.found.contains(&(host, addr));
                if has_room && is_new && self.core.may_probe(addr, false) {
                    asking.found.push((host, addr));
                    debug!(alias = %track.alias(), "a peer was found on the LAN");
                    dial::add_route(&self.core, &track, Via::Direct(addr)).await;
                }
            }
        }
    }
}

impl Link {
    fn is_on_link(&self, ip: IpAddr) -> bool {
        self.interfaces.iter().any(|interface| interface.is_on_link(ip))
    }

    async fn send(&self, contents: &[u8]) {
        let transmit = Transmit { destination: self.group, ecn: None, contents, segment_size: None, src_ip: None };
        let mut sent = self.socket.try_send(&transmit);
        if sent.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock) {
            // The runtime does not know of a fresh socket that it can be written to.
            let _ = time::timeout(SEND_WAIT, Arc::clone(&self.socket).writable()).await;
            sent = self.socket.try_send(&transmit);
        }
        if let Err(error) = sent {
            debug!(%error, "a multicast could not be sent");
        }
    }
}

impl Asking {
    /// When the next question is due, or after the last one the end.
    fn due(&self) -> Instant {
        let last = QUESTIONS[QUESTIONS.len() - 1] + LAST_WAIT;
        self.began + QUESTIONS.get(self.sent).copied().unwrap_or(last)
    }
}

/// The links that this node can be reached on: the group of a family, and the interface's addresses.
fn wanted(core: &Core) -> Vec<(SocketAddr, Vec<Interface>)> {
    let sockets = &core.mux.sockets;
    let listens = |ip: IpAddr| {
        let socket = if ip.is_ipv4() { &sockets.v4 } else { &sockets.v6 };
        let bound = socket.as_ref().and_then(|socket| socket.local_addr().ok());
        bound.is_some_and(|bound| bound.ip().is_unspecified() || bound.ip() == ip)
    };
    let mut by_index: BTreeMap<u32, Vec<Interface>> = BTreeMap::new();
    for interface in core.net.interfaces() {
        let addr = SocketAddr::new(interface.ip, PORT);
        if interface.is_lan() && listens(interface.ip) && is_probeable(addr, false).is_ok() {
            by_index.entry(interface.index).or_default().push(interface);
        }
    }
    let links = by_index.into_values().flat_map(|interfaces| {
        [GROUP_V4, GROUP_V6].into_iter().filter_map(move |group| {
            let has_family = interfaces.iter().any(|interface| interface.ip.is_ipv4() == group.is_ipv4());
            has_family.then(|| (group, interfaces.clone()))
        })
    });
    links.take(MAX_LINKS).collect()
}

/// Waits for the next message; the link that it came by, and what is known of it.
async fn receive(links: &[Link], buf: &mut [u8]) -> (usize, io::Result<RecvMeta>) {
    poll_fn(|cx| {
        for (at, link) in links.iter().enumerate() {
            let mut meta = [RecvMeta::default()];
            if let Poll::Ready(result) = link.socket.poll_recv(cx, &mut [IoSliceMut::new(buf)], &mut meta) {
                return Poll::Ready((at, result.map(|_| meta[0])));
            }
        }
        Poll::Pending
    })
    .await
}
