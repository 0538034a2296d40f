//! Protocols: what two peers speak over their one connection, each with channels and byte streams of its own.

mod peers;
mod registry;
mod run;
mod slot;
mod stall;
mod stats;
mod typed;

use std::{
    fmt,
    ops::RangeInclusive,
    sync::{Arc, OnceLock},
};

use bytes::Bytes;
use byway_proto::{
    PeerId,
    schedule::{Class, Rate, Share},
};
use tokio::sync::mpsc;

pub(crate) use self::registry::{Failed, Member, Registered, Registry, STREAM_SHARE, UNSPOKEN};
pub use self::{
    peers::{OpenError, PeerEvent, Peers, PeersHandle},
    registry::RegisterError,
    run::OnFailure,
    slot::Slot,
    typed::{Malformed, Message, TypedReceiver, TypedSender},
};
use self::{slot::PerPeer, stall::Stall};
use crate::{
    event::Direction,
    link::{
        datagrams,
        inbox::{Hand, Inbox},
        outbox::Pushed,
        queue::MAX_HEADER,
        tally::Refused,
    },
    net::track::MIN_MTU,
    quic::endpoint::MAX_MTU,
    stream::Stream,
};

/// Channels of one protocol.
pub const MAX_CHANNELS: usize = 64;

/// The largest message in bytes that a channel may be set to.
pub const MAX_MESSAGE: usize = 16 << 20;

/// The largest message in bytes that a datagram carries on every path; up to [`LARGEST_DATAGRAM`] may fit as well.
pub const MAX_DATAGRAM: usize = datagrams::SURE - 2 * MAX_HEADER;

/// The largest message in bytes that a datagram carries on a path with the largest packets, 1,443 bytes.
pub const LARGEST_DATAGRAM: usize = MAX_DATAGRAM + (MAX_MTU - MIN_MTU) as usize;

/// A channel's weight unless it says otherwise: 64 KiB a turn, so that a lone channel costs few turns.
pub const DEFAULT_WEIGHT: u16 = 16;

/// Byte streams that peers opened and nobody has accepted yet, for one protocol.
pub const STREAM_BACKLOG: usize = 64;

/// The most bytes of what a protocol says about itself or a peer in the node's status.
pub const MAX_ABOUT: usize = 1_024;

/// What a protocol says about itself, or about a peer.
pub(crate) type About = Box<dyn Fn(Option<PeerId>) -> String + Send + Sync>;

/// A protocol's name, versions, channels and streams, before it is registered at a node.
///
/// ```
/// use byway::{Channel, Class, Protocol};
///
/// let mut files = Protocol::new("files", 1..=3).required().about(|peer| match peer {
///     None => "40 files".into(),
///     Some(peer) => format!("{} has them all", peer.short()),
/// });
/// let (ask, asked) = files.channel(Channel::new(1).share(Class::Interactive, 1));
/// let (tell, told) = files.channel(Channel::new(2).max_message(256 << 10));
/// let uploads = files.streams(); // byte streams that peers open
/// ```
pub struct Protocol {
    pub(crate) name: String,
    pub(crate) versions: RangeInclusive<u32>,
    pub(crate) required: bool,
    pub(crate) channels: Vec<(Channel, Arc<Inbox>)>,
    pub(crate) streams: Option<mpsc::Sender<(PeerId, Stream)>>,
    pub(crate) slots: Vec<Arc<dyn PerPeer>>,
    pub(crate) about: Option<About>,
    pub(crate) stall: Option<Stall>,
    pub(crate) registered: Arc<OnceLock<Arc<Registered>>>,
}

/// How a channel behaves.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Channel {
    /// Its number within the protocol.
    pub id: u32,
    /// Whether its messages arrive in order and whole, or each by itself or never.
    pub delivery: Delivery,
    /// Its class and its weight within the class.
    pub share: Share,
    /// Messages that may wait, per peer and direction.
    pub queue: usize,
    /// The largest message in bytes.
    pub max_message: usize,
    /// Bytes that may wait, per peer and direction; one message more may be on top.
    pub queue_bytes: usize,
    /// What is sent to each peer at most; no limit if `None`. A message counts with what stands in front of it.
    pub send_rate: Option<Rate>,
    /// What is taken from each peer at most, with twice the burst, for the network may bunch what was sent evenly. What
    /// comes faster waits at the sender; datagrams are dropped and counted.
    pub receive_rate: Option<Rate>,
}

/// How the messages of a channel are delivered; both sides have to say the same.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Delivery {
    /// In order, each once, as long as the connection lasts; a full receiver makes the sender wait.
    #[default]
    Stream,
    /// Each by itself: in any order, once or never, and never repeated. A message is lost with its packet, and dropped
    /// where the receiver's queue is full.
    Datagram,
}

impl Channel {
    /// A bulk channel for messages of up to 1 MiB, of which 1,024 or 4 MiB may wait.
    pub fn new(id: u32) -> Self {
        Channel {
            id,
            delivery: Delivery::Stream,
            share: Share { class: Class::Bulk, weight: DEFAULT_WEIGHT },
            queue: 1_024,
            max_message: 1 << 20,
            queue_bytes: 4 << 20,
            send_rate: None,
            receive_rate: None,
        }
    }

    /// Limits how fast messages go to each peer, and how fast they are taken from each; the fields are the two by
    /// themselves. A message that is larger than the burst passes, and the next ones wait the longer.
    ///
    /// ```
    /// use byway::{Channel, Rate};
    ///
    /// let backups = Channel::new(1).rate(Rate::new(1_000_000)); // bytes a second
    /// let mut asked = Channel::new(2);
    /// asked.receive_rate = Some(Rate::new(10_000).burst(100_000)); // whoever asks more waits
    /// ```
    pub fn rate(mut self, rate: Rate) -> Self {
        (self.send_rate, self.receive_rate) = (Some(rate), Some(rate));
        self
    }

    /// Changes how messages are delivered; datagrams limit [`Channel::max_message`] to [`MAX_DATAGRAM`].
    ///
    /// ```
    /// use byway::{Channel, Class, Delivery, Protocol};
    ///
    /// let mut game = Protocol::new("game", 1..=1);
    /// let positions = Channel::new(1).delivery(Delivery::Datagram).share(Class::Interactive, 1).queue(32);
    /// let (tx, rx) = game.channel(positions); // a position that is late is worth nothing
    /// let (orders, results) = game.channel(Channel::new(2));
    /// ```
    pub fn delivery(mut self, delivery: Delivery) -> Self {
        self.delivery = delivery;
        if delivery == Delivery::Datagram {
            self.max_message = self.max_message.min(MAX_DATAGRAM);
        }
        self
    }

    /// Changes the class and the weight within it.
    pub fn share(mut self, class: Class, weight: u16) -> Self {
        self.share = Share { class, weight };
        self
    }

    /// Changes how many messages may wait.
    pub fn queue(mut self, messages: usize) -> Self {
        self.queue = messages;
        self
    }

    /// Changes the largest message in bytes; at most [`MAX_MESSAGE`], of datagrams [`LARGEST_DATAGRAM`].
    pub fn max_message(mut self, bytes: usize) -> Self {
        self.max_message = bytes;
        self
    }
}

impl Protocol {
    /// A protocol that speaks `versions`, both ends included; versions begin at 1.
    pub fn new(name: impl Into<String>, versions: RangeInclusive<u32>) -> Self {
        Protocol {
            name: name.into(),
            versions,
            required: false,
            channels: Vec::new(),
            streams: None,
            slots: Vec::new(),
            about: None,
            stall: None,
            registered: Arc::default(),
        }
    }

    /// Refuses peers that do not speak the protocol.
    pub fn required(mut self) -> Self {
        self.required = true;
        self
    }

    /// Adds a channel.
    pub fn channel(&mut self, channel: Channel) -> (Sender, Receiver) {
        let inbox = Arc::new(Inbox::new(channel.queue, channel.queue_bytes));
        self.channels.push((channel.clone(), Arc::clone(&inbox)));
        let sender = Sender { channel, protocol: Arc::clone(&self.registered) };
        (sender, Receiver { inbox, turn: Hand::default() })
    }

    /// Takes byte streams that peers open; without this they are refused.
    pub fn streams(&mut self) -> Streams {
        let (sender, receiver) = mpsc::channel(STREAM_BACKLOG);
        self.streams = Some(sender);
        Streams(receiver)
    }

    /// Keeps state about each peer, made by `make` when it comes. If that panics, or the state does when it is dropped, the
    /// protocol is not spoken with this peer any more, as after [`OnFailure::DropProtocol`].
    pub fn slot<T: Send + 'static>(&mut self, make: impl Fn(PeerId) -> T + Send + Sync + 'static) -> Slot<T> {
        let slot = Slot::new(make);
        self.slots.push(slot.states());
        slot
    }

    /// What the node's status says of the protocol (asked with `None`) and of each peer that speaks it, in up to
    /// [`MAX_ABOUT`] bytes; `about` must not wait. If it panics, that is said instead.
    pub fn about(mut self, about: impl Fn(Option<PeerId>) -> String + Send + Sync + 'static) -> Self {
        self.about = Some(Box::new(about));
        self
    }
}

impl fmt::Debug for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Protocol").field("name", &self.name).field("versions", &self.versions).finish_non_exhaustive()
    }
}

/// To whom a message goes.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum To {
    /// To every peer that speaks the protocol now.
    All,
    /// To one peer.
    Peer(PeerId),
    /// To each of these peers.
    Peers(Vec<PeerId>),
}

impl From<PeerId> for To {
    fn from(peer: PeerId) -> Self {
        To::Peer(peer)
    }
}

/// What became of a message.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[must_use]
pub struct Sent {
    /// Peers for which it was queued.
    pub queued: usize,
    /// Peers for which it was not, because their queue is full or the message too large.
    pub full: usize,
    /// Peers for which it was not, because they are not connected or do not speak the protocol.
    pub absent: usize,
}

impl Sent {
    fn count(&mut self, pushed: Pushed) {
        match pushed {
            Pushed::Queued => self.queued += 1,
            Pushed::Full | Pushed::TooLarge(_) => self.full += 1,
            Pushed::Closed => self.absent += 1,
        }
    }
}

/// Why a message was not sent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SendError {
    /// The peer is not connected, or does not speak the protocol.
    #[error("{0} is not connected or does not speak the protocol; dial it first")]
    Absent(PeerId),
    /// The message is larger than the channel allows, or, on a channel of datagrams, than the connection's packets hold.
    #[error(
        "a message of {len} bytes is too large, at most {max} fit now; raise `max_message` on both sides, and send by \
         stream what no packet holds"
    )]
    TooLarge {
        /// The message's length.
        len: usize,
        /// The limit, which for datagrams follows the path.
        max: usize,
    },
}

/// Sends on one channel.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let on_loopback = || Config::new(Identity::generate()).listen(([127, 0, 0, 1], 0).into());
/// use byway::{Channel, Config, Identity, Node, Protocol, To};
///
/// let (a, b) = (Node::bind(on_loopback()).await?, Node::bind(on_loopback()).await?);
/// let chat = || {
///     let mut chat = Protocol::new("chat", 1..=1);
///     let (tx, rx) = chat.channel(Channel::new(1));
///     (chat, tx, rx)
/// };
/// let ((ours, tx, _), (theirs, _, mut rx)) = (chat(), chat());
/// let (mut peers, _peers) = (a.register(ours)?, b.register(theirs)?);
/// let peer = a.dial(b.ticket()).await?;
/// peers.next().await; // it is up, and speaks the protocol
/// let sent = tx.send(&To::All, "to whom it may concern".into());
/// assert_eq!((sent.queued, sent.full), (1, 0));
/// tx.send_wait(peer, "to you, whenever there is room".into()).await?;
/// assert_eq!(rx.recv().await, Some((a.id(), "to whom it may concern".into())));
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Sender {
    channel: Channel,
    protocol: Arc<OnceLock<Arc<Registered>>>,
}

impl Sender {
    /// Queues a message without ever waiting, and says for how many peers; a message larger than `max_message` counts as
    /// full everywhere.
    pub fn send(&self, to: &To, message: Bytes) -> Sent {
        let mut sent = Sent::default();
        let Some(protocol) = self.protocol.get() else { return sent };
        let push = |member: &Member| self.push_or_drop(protocol, member, &message);
        let mut send = |peer| sent.count(protocol.with_member(peer, push).unwrap_or(Pushed::Closed));
        match to {
            To::Peer(peer) => send(*peer),
            To::Peers(peers) => peers.iter().copied().for_each(send),
            To::All => protocol.each_member(|member| sent.count(push(member))),
        }
        sent
    }

    /// Queues a message for one peer, waiting while its queue is full.
    pub async fn send_wait(&self, peer: PeerId, message: Bytes) -> Result<(), SendError> {
        let absent = || SendError::Absent(peer);
        let protocol = self.protocol.get().ok_or_else(absent)?;
        loop {
            let mut pushed = self.push(protocol, peer, &message);
            if pushed == Pushed::Full {
                let space = protocol.with_member(peer, |member| member.space(&self.channel));
                let Some(space) = space.ok_or_else(absent)? else { continue };
                // Listening begins before trying again, so that no notice is missed between the two.
                let space = space.notified();
                pushed = self.push(protocol, peer, &message);
                if pushed == Pushed::Full {
                    space.await;
                    continue;
                }
            }
            return match pushed {
                Pushed::Queued => Ok(()),
                Pushed::TooLarge(max) => Err(SendError::TooLarge { len: message.len(), max }),
                Pushed::Full | Pushed::Closed => Err(absent()),
            };
        }
    }

    fn push(&self, protocol: &Registered, peer: PeerId, message: &Bytes) -> Pushed {
        protocol.with_member(peer, |member| self.push_to(protocol, member, message)).unwrap_or(Pushed::Closed)
    }

    fn push_to(&self, protocol: &Registered, member: &Member, message: &Bytes) -> Pushed {
        let max = self.channel.max_message;
        let pushed = if message.len() > max { Pushed::TooLarge(max) } else { member.push(&self.channel, message) };
        match pushed {
            Pushed::Queued => protocol.tell_message(member.link.peer, self.channel.id, message.len(), Direction::Sent),
            Pushed::TooLarge(_) => member.refuse(&self.channel, Refused::TooLarge),
            Pushed::Full | Pushed::Closed => {}
        }
        pushed
    }

    /// As [`Sender::push_to`], for a message that is lost if there is no room.
    fn push_or_drop(&self, protocol: &Registered, member: &Member, message: &Bytes) -> Pushed {
        let pushed = self.push_to(protocol, member, message);
        if pushed == Pushed::Full {
            member.refuse(&self.channel, Refused::QueueFull);
        }
        pushed
    }
}

impl fmt::Debug for Sender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sender").field("channel", &self.channel.id).finish_non_exhaustive()
    }
}

/// Receives on one channel from all peers in turn, so that a flooding one starves nobody.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let on_loopback = || Config::new(Identity::generate()).listen(([127, 0, 0, 1], 0).into());
/// use byway::{Channel, Config, Identity, Node, Protocol};
///
/// let node = Node::bind(on_loopback()).await?;
/// let mut echo = Protocol::new("echo", 1..=1);
/// let (tx, mut rx) = echo.channel(Channel::new(1));
/// let _peers = node.register(echo)?;
/// tokio::spawn(async move {
///     while let Some((peer, message)) = rx.recv().await {
///         let _ = tx.send(&peer.into(), message); // a peer that does not read loses its echoes
///     }
/// });
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Receiver {
    inbox: Arc<Inbox>,
    turn: Hand,
}

impl Receiver {
    /// Waits for the next message; `None` once the protocol is unregistered or the node closed, and everything was read. Cancelling it loses nothing.
    pub async fn recv(&mut self) -> Option<(PeerId, Bytes)> {
        loop {
            if let Some(message) = self.turn.pop() {
                return Some(message);
            }
            self.inbox.take(&mut self.turn).await?;
        }
    }

    /// The next message if there is one already.
    pub fn try_recv(&mut self) -> Option<(PeerId, Bytes)> {
        self.turn.pop().or_else(|| {
            self.inbox.try_take(&mut self.turn);
            self.turn.pop()
        })
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.inbox.abandon();
    }
}

/// Byte streams that peers open; [`Stream`] has an example.
#[derive(Debug)]
pub struct Streams(mpsc::Receiver<(PeerId, Stream)>);

impl Streams {
    /// Waits for the next stream; `None` once the protocol is unregistered or the node closed.
    pub async fn accept(&mut self) -> Option<(PeerId, Stream)> {
        self.0.recv().await
    }
}
