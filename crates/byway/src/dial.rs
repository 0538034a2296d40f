//! Dialling: one QUIC connection, whose first packets go to every address and relay of the peer at once.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use byway_proto::{PeerAddr, PeerId, Ticket, hello::Hello};
use tokio::time;
use tracing::debug;

use crate::{
    agent::Command,
    core::Core,
    gone::Gone,
    link::establish::{self, ControlStream, Established, Introduced},
    net::{routes::Via, track::Track},
    quic::endpoint::HandshakeError,
    relay::table::Wanted,
};

/// Addresses of one peer that a dial sends its first packets to: each gets a copy of everything until one answers.
pub const MAX_DIAL_ADDRS: usize = 8;

/// Relays of one peer that a dial uses.
pub const MAX_DIAL_RELAYS: usize = 3;

/// Bytes of the dialler's hello and introduction that leave at once: a packet with them and QUIC's own first frames fits every route.
/// What does not has to be split, and the other side may not have the key by which it puts the halves together.
const FIRST_FLIGHT: usize = 1_000;

/// How long the LAN may take to answer for a peer of which no address and no relay is known: two questions, so that one lost
/// packet costs nothing, and an answer from a slow wireless network.
const LAN_WAIT: Duration = Duration::from_millis(500);

/// Addresses at which another key answered that a dial goes on without: more than one that changed hands is a neighbour
/// that lies.
const MAX_IMPOSTORS: usize = 4;

/// Things that went wrong on the way, kept for the error's text.
const MAX_NOTES: usize = 8;

/// Whom to dial, and by which ways.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let on_loopback = || Config::new(Identity::generate()).listen(([127, 0, 0, 1], 0).into());
/// use byway::{Config, Identity, Node, PeerAddr, Target};
///
/// let (a, b) = (Node::bind(on_loopback()).await?, Node::bind(on_loopback()).await?);
/// let mut target = Target::from(b.id()); // a ticket and a `PeerAddr` are targets, too
/// target.addrs = b.addrs();
/// # let relay = format!("{}@127.0.0.1:9", Identity::generate().id());
/// target.relays.push(relay.parse::<PeerAddr>()?); // where it may be registered
/// assert_eq!(a.dial(target).await?, b.id());
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Target {
    /// The peer.
    pub peer: PeerId,
    /// Its addresses; loopback addresses are used, for whoever named them here knows the machine.
    pub addrs: Vec<SocketAddr>,
    /// Relays where it may be registered.
    pub relays: Vec<PeerAddr>,
}

impl From<PeerId> for Target {
    /// A peer that is connected already, stands in the address book, or is registered at one of this node's own relays.
    fn from(peer: PeerId) -> Self {
        Target { peer, addrs: Vec::new(), relays: Vec::new() }
    }
}

impl From<&PeerAddr> for Target {
    fn from(addr: &PeerAddr) -> Self {
        Target { peer: addr.id, addrs: addr.socket_addrs().collect(), relays: Vec::new() }
    }
}

impl From<PeerAddr> for Target {
    fn from(addr: PeerAddr) -> Self {
        Target::from(&addr)
    }
}

impl From<&Ticket> for Target {
    fn from(ticket: &Ticket) -> Self {
        Target { peer: ticket.peer, addrs: ticket.addrs.clone(), relays: ticket.relays.clone() }
    }
}

impl From<Ticket> for Target {
    fn from(ticket: Ticket) -> Self {
        Target::from(&ticket)
    }
}

/// Why a dial failed; the variant names the stage.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let on_loopback = || Config::new(Identity::generate()).listen(([127, 0, 0, 1], 0).into());
/// use byway::{Config, DialError, Identity, Node};
///
/// let node = Node::bind(on_loopback()).await?;
/// match node.dial(node.ticket()).await {
///     Ok(peer) => println!("{peer} is connected"),
///     Err(DialError::SelfDial) => println!("that was this node's own ticket"),
///     Err(error) => return Err(error.into()), // its text says what to do
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum DialError {
    /// The node dialled its own key.
    #[error("this is the node itself; dial another peer")]
    SelfDial,
    /// There is neither an address nor a relay to try, and nobody on the LAN is the peer.
    #[error(
        "no way to reach {0} is known: it has no address and no relay, and does not answer on this network; ask it for a new ticket, or give both sides a relay"
    )]
    NoWay(PeerId),
    /// Nobody answered, or what answered was not the peer.
    #[error("{peer} was not reached ({what}){notes}; check that it runs, and ask it for a new ticket")]
    Unreached {
        /// The peer.
        peer: PeerId,
        /// What QUIC says.
        what: String,
        /// What was learned on the way.
        notes: String,
    },
    /// Somebody else answered where the peer was said to be, and nobody elsewhere.
    #[error(
        "another key than {peer}'s answered at its address{notes}; the address has changed hands, or whoever named it was wrong: ask the peer for a new ticket"
    )]
    OtherKey {
        /// The peer.
        peer: PeerId,
        /// What was learned on the way.
        notes: String,
    },
    /// The peer answered, and the hellos did not fit.
    #[error("{peer} was reached, but the two nodes cannot talk: {reason}")]
    Hello {
        /// The peer.
        peer: PeerId,
        /// The reason.
        reason: Gone,
    },
    /// The peer is banned.
    #[error("{0} is banned here; unban it first (`byway peers unban`)")]
    Banned(PeerId),
    /// There is no slot for another peer.
    #[error("this node has as many peers as it takes; raise `max_peers` or disconnect one, then dial {0} again")]
    Full(PeerId),
    /// Too many dials wait for this peer already.
    #[error("too many dials of {0} wait already; wait for one of them")]
    TooMany(PeerId),
    /// The node is closed.
    #[error("the node is closed")]
    Closed,
}

/// What was learned while dialling, for the error's text.
#[derive(Debug, Default)]
pub(crate) struct Notes(Mutex<Vec<String>>);

impl Notes {
    pub(crate) fn add(&self, note: String) {
        let mut notes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if notes.len() < MAX_NOTES && !notes.contains(&note) {
            notes.push(note);
        }
    }

    fn text(&self) -> String {
        let notes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        notes.iter().map(|note| format!("; {note}")).collect()
    }
}

/// Makes a link to a peer. Once it has answered and proven its key, `goes_on` says whether the link is still wanted.
pub(crate) async fn dial(
    core: &Arc<Core>,
    target: Target,
    goes_on: impl Future<Output = bool>,
) -> Result<Established, DialError> {
    let peer = target.peer;
    let (track, connection) = connect(core, target).await?;
    if !goes_on.await {
        Gone::Duplicate.close(&connection);
        core.retire(&track);
        return Err(DialError::Hello { peer, reason: Gone::Duplicate });
    }
    let result = hello(core, &track, connection, core.hello(false)).await;
    result.map_err(|reason| {
        core.retire(&track);
        DialError::Hello { peer, reason }
    })
}

/// Makes a connection whose other side has proven the peer's key. Where another key answers, the dial goes on without
/// that address: it has changed hands, or a neighbour lied.
async fn connect(core: &Arc<Core>, mut target: Target) -> Result<(Arc<Track>, quinn::Connection), DialError> {
    let peer = target.peer;
    let mut impostors: Vec<SocketAddr> = Vec::new();
    let mut last = DialError::NoWay(peer);
    loop {
        let track = core.mux.routes.dial(core.mux.now());
        let notes = Arc::new(Notes::default());
        let ways = begin(core, &target, &track, &notes);
        let is_asked = core.lan.ask(peer, &track, &impostors).await;
        if ways == 0 && !is_asked {
            core.mux.routes.remove(track.alias());
            return Err(last);
        }
        let Some(result) = handshake(core, &track, peer, ways == 0).await else {
            core.retire(&track);
            return Err(last);
        };
        let error = match result {
            Ok(connection) => return Ok((track, connection)),
            Err(error) => error,
        };
        core.retire(&track);
        let is_other = matches!(error, HandshakeError::WrongPeer | HandshakeError::Itself);
        let impostor = is_other.then(|| first_heard(&track)).flatten();
        if matches!(error, HandshakeError::Itself) {
            notes.add("the key is this node's own".into());
            impostor.into_iter().for_each(|addr| core.switch.add_own(addr));
        }
        last = match error {
            HandshakeError::Connection(error) => match Gone::from(error) {
                Gone::Lost(_) | Gone::TimedOut if !impostors.is_empty() => other_key(peer, &notes),
                reason @ (Gone::Lost(_) | Gone::TimedOut) => unreached(peer, &reason, &notes),
                reason => DialError::Hello { peer, reason },
            },
            HandshakeError::WrongPeer | HandshakeError::Itself => other_key(peer, &notes),
            error => unreached(peer, &error, &notes),
        };
        let Some(impostor) = impostor.filter(|_| impostors.len() < MAX_IMPOSTORS) else { return Err(last) };
        debug!(alias = %track.alias(), "another key answered; dialling without its address");
        impostors.push(impostor);
        // What was found on the way is kept; the LAN does not repeat it at once.
        let found = track.vias().into_iter().filter(|via| !via.is_relay()).map(Via::remote);
        let others: Vec<_> = found.filter(|addr| !target.addrs.contains(addr)).collect();
        target.addrs.extend(others);
        target.addrs.retain(|addr| !impostors.contains(addr));
    }
}

fn other_key(peer: PeerId, notes: &Notes) -> DialError {
    DialError::OtherKey { peer, notes: notes.text() }
}

fn unreached(peer: PeerId, what: &impl ToString, notes: &Notes) -> DialError {
    DialError::Unreached { peer, what: what.to_string(), notes: notes.text() }
}

/// Waits for the handshake; `None` if no way has turned up in time where there was none to begin with.
async fn handshake(
    core: &Core,
    track: &Track,
    peer: PeerId,
    is_lost: bool,
) -> Option<Result<quinn::Connection, HandshakeError>> {
    let handshake = core.endpoint.dial(track, peer);
    tokio::pin!(handshake);
    if is_lost {
        tokio::select! {
            biased;
            result = &mut handshake => return Some(result),
            () = time::sleep(LAN_WAIT) => if track.vias().is_empty() { return None },
        }
    }
    Some(handshake.await)
}

/// The address that something came from first: there QUIC's other side sits.
fn first_heard(track: &Track) -> Option<SocketAddr> {
    let state = track.lock();
    let heard = state.routes().filter_map(|(_, slot)| Some((slot.heard?, slot.via)));
    heard.filter(|(_, via)| !via.is_relay()).min_by_key(|(at, _)| *at).map(|(_, via)| via.remote())
}

/// Adds the first ways and asks for the others; returns how many there may be.
fn begin(core: &Arc<Core>, target: &Target, track: &Arc<Track>, notes: &Arc<Notes>) -> usize {
    let mut ways = 0;
    let own = core.switch.own().clone();
    let open = target.addrs.iter().filter(|addr| core.may_probe(**addr, true) && !own.contains(*addr));
    for addr in open.take(MAX_DIAL_ADDRS) {
        ways += usize::from(track.lock().add(Via::Direct(*addr), false).is_some());
    }
    // A peer known by its key alone may be registered where this node is.
    let relays = if target.relays.is_empty() { core.relays.promised() } else { target.relays.clone() };
    for relay in relays.iter().take(MAX_DIAL_RELAYS) {
        let wanted = Wanted { peer: target.peer, track: Arc::downgrade(track), notes: Arc::clone(notes) };
        core.relays.open(core, relay, wanted);
        ways += 1;
    }
    ways
}

/// Exchanges hellos as the dialling side.
pub(crate) async fn hello(
    core: &Arc<Core>,
    track: &Arc<Track>,
    connection: quinn::Connection,
    ours: Hello,
) -> Result<Established, Gone> {
    let peer = establish::proven_peer(&connection)?;
    let (config, told) =
        if ours.relay { (crate::relay::client::paths(), None) } else { (core.config.paths.clone(), Some(peer)) };
    core.run_routes(track, &connection, config, told).await?;
    let mut control = ControlStream::open(&connection).await?;
    // without waiting for the other hello: that is a round trip
    let introduction = if told.is_some() { core.introduction(track) } else { Introduced::default() };
    control.say(ours.clone(), introduction, FIRST_FLIGHT).await?;
    let theirs = control.hear().await?;
    let agreed = establish::agreed(&connection, &ours, &theirs)?;
    Established::new(connection, Arc::clone(track), control, theirs, agreed).ok_or(Gone::SelfDial)
}

/// Tells the agent of a further way to a peer.
pub(crate) async fn add_route(core: &Core, track: &Arc<Track>, via: Via) {
    core.agent.send(Command::AddRoute { track: Arc::clone(track), via }).await;
}
