//! The protocols of one node, and which connected peers speak them.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use bytes::{Bytes, BytesMut};
use byway_proto::{
    PeerId,
    hello::{Agreed, Announced, MAX_NAME, MAX_PROTOCOLS},
    schedule::{ChannelKey, Share},
};
use tokio::sync::{Notify, mpsc};

use super::{Channel, MAX_CHANNELS, MAX_MESSAGE, Protocol};
use crate::{
    gone::Gone,
    link::{
        Link,
        inbox::Inbox,
        outbox::{Outlet, Pushed},
        queue::{FrameQueue, put_varint},
    },
    stream::Stream,
};

/// A registered protocol.
#[derive(Debug)]
pub(crate) struct Registered {
    pub(crate) id: u32,
    name: String,
    min: u32,
    max: u32,
    required: bool,
    channels: BTreeMap<u32, (Channel, Arc<Inbox>)>,
    pub(crate) streams: Option<mpsc::Sender<(PeerId, Stream)>>,
    members: RwLock<BTreeMap<PeerId, Member>>,
    events: Mutex<VecDeque<PeerEvent>>,
    changed: Notify,
}

/// A connected peer that speaks a protocol.
#[derive(Debug, Clone)]
pub(crate) struct Member {
    pub(crate) link: Arc<Link>,
    /// Our own number of the protocol, which our streams carry.
    ours: u32,
    version: u32,
}

/// A peer came or went.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum PeerEvent {
    /// The peer is connected and speaks the protocol.
    Up {
        /// The peer.
        peer: PeerId,
        /// The version both sides speak.
        version: u32,
    },
    /// The peer is gone.
    Down {
        /// The peer.
        peer: PeerId,
        /// The reason.
        reason: Gone,
    },
}

/// The peers that speak a registered protocol.
#[derive(Debug)]
pub struct Peers {
    protocol: Arc<Registered>,
    closed: Arc<Notify>,
    registry: Arc<Registry>,
}

/// Why a byte stream cannot be opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The peer is not connected, or does not speak the protocol.
    #[error("{0} is not connected or does not speak the protocol; dial it first")]
    Absent(PeerId),
    /// The connection ended meanwhile.
    #[error("the connection ended: {0}")]
    Gone(Gone),
    /// The link has as many streams as it may have.
    #[error("too many streams to {0} are open; close some")]
    TooMany(PeerId),
}

/// Why a protocol cannot be registered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RegisterError {
    /// The name is empty, too long, or has characters other than visible ASCII.
    #[error("protocol name {0:?} must have 1 to {MAX_NAME} visible ASCII characters")]
    Name(String),
    /// The name is taken.
    #[error("a protocol {0:?} is registered already")]
    Taken(String),
    /// The range of versions is empty, or begins at 0.
    #[error("protocol {0:?} must have a range of versions that begins at 1 or more")]
    Versions(String),
    /// A channel occurs twice, or is out of bounds.
    #[error("channel {channel} of protocol {name:?}: {what}")]
    Channel {
        /// The protocol.
        name: String,
        /// The channel.
        channel: u32,
        /// What is wrong with it.
        what: &'static str,
    },
    /// Too many protocols or channels.
    #[error("a node has at most {MAX_PROTOCOLS} protocols of {MAX_CHANNELS} channels each")]
    TooMany,
    /// The node is closed.
    #[error("the node is closed")]
    Closed,
}

/// The protocols of one node.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    protocols: RwLock<BTreeMap<u32, Arc<Registered>>>,
    closed: Mutex<Option<Arc<Notify>>>,
}

impl Registry {
    fn read(&self) -> RwLockReadGuard<'_, BTreeMap<u32, Arc<Registered>>> {
        self.protocols.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, BTreeMap<u32, Arc<Registered>>> {
        self.protocols.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a protocol; the caller tells the peers.
    pub(crate) fn register(self: &Arc<Self>, protocol: Protocol) -> Result<Peers, RegisterError> {
        check(&protocol)?;
        let mut protocols = self.write();
        if protocols.len() >= MAX_PROTOCOLS {
            return Err(RegisterError::TooMany);
        }
        if protocols.values().any(|known| known.name == protocol.name) {
            return Err(RegisterError::Taken(protocol.name));
        }
        // Lane (0, 0) is the control stream's, so protocols count from 1.
        let id = protocols.last_key_value().map_or(1, |(last, _)| last + 1);
        let registered = Arc::new(Registered {
            id,
            name: protocol.name,
            min: *protocol.versions.start(),
            max: *protocol.versions.end(),
            required: protocol.required,
            channels: protocol.channels.into_iter().map(|(channel, inbox)| (channel.id, (channel, inbox))).collect(),
            streams: protocol.streams,
            members: RwLock::default(),
            events: Mutex::default(),
            changed: Notify::new(),
        });
        protocols.insert(id, Arc::clone(&registered));
        // A protocol is registered once: `register` takes it by value.
        let _ = protocol.registered.set(Arc::clone(&registered));
        drop(protocols);
        let mut closed = self.closed.lock().unwrap_or_else(PoisonError::into_inner);
        let closed = Arc::clone(closed.get_or_insert_default());
        Ok(Peers { protocol: registered, closed, registry: Arc::clone(self) })
    }

    /// What a hello says of the protocols.
    pub(crate) fn announced(&self) -> Vec<Announced> {
        let announce = |p: &Arc<Registered>| Announced {
            id: p.id,
            name: p.name.clone(),
            min: p.min,
            max: p.max,
            required: p.required,
        };
        self.read().values().map(announce).collect()
    }

    /// The protocol with this number of ours.
    pub(crate) fn by_id(&self, id: u32) -> Option<Arc<Registered>> {
        self.read().get(&id).cloned()
    }

    /// Brings the protocols' members up to what was agreed with a peer.
    pub(crate) fn agreed(&self, link: &Arc<Link>, agreed: &Agreed) {
        let protocols = self.read();
        for spoken in &agreed.protocols {
            if let Some(protocol) = protocols.get(&spoken.ours) {
                protocol.join(link, spoken.ours, spoken.version);
            }
        }
    }

    /// Removes a link's peer from all protocols.
    pub(crate) fn gone(&self, link: &Arc<Link>, reason: &Gone) {
        for protocol in self.read().values() {
            protocol.leave(link, reason);
        }
    }

    /// Ends all receivers.
    pub(crate) fn close(&self) {
        let protocols = std::mem::take(&mut *self.write());
        for protocol in protocols.values() {
            protocol.channels.values().for_each(|(_, inbox)| inbox.close());
            protocol.changed.notify_waiters();
        }
        if let Some(closed) = &*self.closed.lock().unwrap_or_else(PoisonError::into_inner) {
            closed.notify_waiters();
        }
    }

    fn has(&self, protocol: &Arc<Registered>) -> bool {
        self.read().contains_key(&protocol.id)
    }
}

fn check(protocol: &Protocol) -> Result<(), RegisterError> {
    let name = &protocol.name;
    if name.is_empty() || name.len() > MAX_NAME || !name.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(RegisterError::Name(name.clone()));
    }
    if *protocol.versions.start() == 0 || protocol.versions.is_empty() {
        return Err(RegisterError::Versions(name.clone()));
    }
    if protocol.channels.len() > MAX_CHANNELS {
        return Err(RegisterError::TooMany);
    }
    for (index, (channel, _)) in protocol.channels.iter().enumerate() {
        let wrong = |what| Err(RegisterError::Channel { name: name.clone(), channel: channel.id, what });
        if protocol.channels.iter().skip(index + 1).any(|(other, _)| other.id == channel.id) {
            return wrong("it occurs twice; give each channel a number of its own");
        }
        if channel.max_message > MAX_MESSAGE {
            return wrong("`max_message` is above 16 MiB; use a byte stream for larger things");
        }
        if channel.queue == 0 || channel.queue_bytes == 0 {
            return wrong("its queue has no room; give it at least one message and one byte");
        }
    }
    Ok(())
}

impl Registered {
    /// The channel with this number.
    pub(crate) fn channel(&self, id: u32) -> Option<&(Channel, Arc<Inbox>)> {
        self.channels.get(&id)
    }

    /// The peer, if it is connected and speaks the protocol.
    pub(crate) fn member(&self, peer: PeerId) -> Option<Member> {
        self.members().get(&peer).cloned()
    }

    /// Does something with the peer, if it is connected and speaks the protocol; without a clone, for it is done for
    /// every message.
    pub(crate) fn with_member<T>(&self, peer: PeerId, act: impl FnOnce(&Member) -> T) -> Option<T> {
        self.members().get(&peer).map(act)
    }

    /// Does something with every peer that speaks the protocol.
    pub(crate) fn each_member(&self, mut act: impl FnMut(&Member)) {
        self.members().values().for_each(&mut act);
    }

    fn members(&self) -> RwLockReadGuard<'_, BTreeMap<PeerId, Member>> {
        self.members.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn join(&self, link: &Arc<Link>, ours: u32, version: u32) {
        let peer = link.peer;
        let mut members = self.members.write().unwrap_or_else(PoisonError::into_inner);
        if members.get(&peer).is_some_and(|member| Arc::ptr_eq(&member.link, link)) {
            return;
        }
        members.insert(peer, Member { link: Arc::clone(link), ours, version });
        drop(members);
        self.tell(PeerEvent::Up { peer, version });
    }

    fn leave(&self, link: &Arc<Link>, reason: &Gone) {
        let peer = link.peer;
        let mut members = self.members.write().unwrap_or_else(PoisonError::into_inner);
        if !members.get(&peer).is_some_and(|member| Arc::ptr_eq(&member.link, link)) {
            return;
        }
        members.remove(&peer);
        drop(members);
        self.tell(PeerEvent::Down { peer, reason: reason.clone() });
    }

    fn events(&self) -> MutexGuard<'_, VecDeque<PeerEvent>> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues an event. A peer that came and went unseen is not told at all, so that at most a Down and an Up wait for
    /// each peer.
    fn tell(&self, event: PeerEvent) {
        let mut events = self.events();
        if let PeerEvent::Down { peer: gone, .. } = &event
            && let Some(up) = events.iter().position(|e| matches!(e, PeerEvent::Up { peer, .. } if peer == gone))
        {
            events.remove(up);
            return;
        }
        events.push_back(event);
        drop(events);
        self.changed.notify_one();
    }
}

impl Member {
    /// Queues a message on a channel to this peer.
    pub(crate) fn push(&self, channel: &Channel, message: &Bytes) -> Pushed {
        let key = ChannelKey(self.ours, channel.id);
        match self.link.outbox.push(key, message) {
            // The lane is opened by its first message: an idle channel costs nothing.
            Pushed::Closed if self.open_lane(key, channel) => self.link.outbox.push(key, message),
            pushed => pushed,
        }
    }

    /// What is told when the channel's queue has room again.
    pub(crate) fn space(&self, channel: &Channel) -> Option<Arc<Notify>> {
        self.link.outbox.space(ChannelKey(self.ours, channel.id))
    }

    fn open_lane(&self, key: ChannelKey, channel: &Channel) -> bool {
        let mut header = BytesMut::new();
        put_varint(&mut header, u64::from(key.0));
        put_varint(&mut header, u64::from(key.1));
        let queue = FrameQueue::new(channel.queue, channel.queue_bytes);
        self.link.outbox.open(key, channel.share, queue, Outlet::Uni(header.freeze()))
    }
}

impl Peers {
    /// Waits until a peer comes or goes; `None` once the node is closed.
    pub async fn next(&mut self) -> Option<PeerEvent> {
        loop {
            let closed = self.closed.notified();
            let changed = self.protocol.changed.notified();
            if let Some(event) = self.protocol.events().pop_front() {
                return Some(event);
            }
            if !self.registry.has(&self.protocol) {
                return None;
            }
            tokio::select! {
                biased;
                () = changed => {}
                () = closed => {}
            }
        }
    }

    /// The peers that speak the protocol now, with the version spoken, in the order of their ids.
    pub fn list(&self) -> Vec<(PeerId, u32)> {
        self.protocol.members().iter().map(|(peer, member)| (*peer, member.version)).collect()
    }

    /// Whether the peer is connected and speaks the protocol.
    pub fn contains(&self, peer: PeerId) -> bool {
        self.protocol.members().contains_key(&peer)
    }

    /// Opens a byte stream to a peer; waits while the peer allows no further one.
    pub async fn open(&self, peer: PeerId) -> Result<Stream, OpenError> {
        self.handle().open(peer).await
    }

    /// What opens streams and tells of peers, for another task.
    pub fn handle(&self) -> PeersHandle {
        PeersHandle { protocol: Arc::clone(&self.protocol) }
    }
}

/// Opens byte streams from any task.
#[derive(Debug, Clone)]
pub struct PeersHandle {
    protocol: Arc<Registered>,
}

impl PeersHandle {
    /// Opens a byte stream to a peer; waits while the peer allows no further one.
    pub async fn open(&self, peer: PeerId) -> Result<Stream, OpenError> {
        let member = self.protocol.member(peer).ok_or(OpenError::Absent(peer))?;
        let mut header = BytesMut::new();
        put_varint(&mut header, u64::from(member.ours));
        member.link.open_stream(header.freeze()).await
    }

    /// Whether the peer is connected and speaks the protocol.
    pub fn contains(&self, peer: PeerId) -> bool {
        self.protocol.members().contains_key(&peer)
    }
}

/// The share of byte streams.
pub(crate) const STREAM_SHARE: Share =
    Share { class: byway_proto::schedule::Class::Bulk, weight: super::DEFAULT_WEIGHT };
