//! The protocols of one node, and which connected peers speak them.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use byway_proto::{
    PeerId,
    hello::{Agreed, Announced, MAX_DECLARED, MAX_NAME, MAX_PROTOCOLS},
    schedule::{ChannelKey, RateError, Share},
    text::prefix,
};
use quinn::VarInt;
use tokio::sync::{Notify, mpsc};

use super::{
    About, Channel, Delivery, LARGEST_DATAGRAM, MAX_ABOUT, MAX_CHANNELS, MAX_DATAGRAM, MAX_MESSAGE, PeerEvent,
    Protocol,
    run::guarded,
    slot::{self, PerPeer},
    stall::Stall,
    stats::Tallies,
};
use crate::{
    config::LinkConfig,
    event::Events,
    gone::Gone,
    link::{
        Link,
        budget::Budget,
        datagrams::{self, DatagramQueue},
        inbox::Inbox,
        outbox::{End, NewLane, Outlet, Pushed},
        queue::{FrameQueue, Queue},
        readers::UNKNOWN,
        remains::Remains,
        spool::Spool,
        tally::Refused,
    },
    status::{MemoryStatus, ProtocolStatus},
    stream::Stream,
};

/// A registered protocol.
pub(crate) struct Registered {
    pub(crate) id: u32,
    pub(crate) name: String,
    min: u32,
    max: u32,
    required: bool,
    pub(super) channels: BTreeMap<u32, (Channel, Arc<Inbox>)>,
    streams: Mutex<Option<mpsc::Sender<(PeerId, Stream)>>>,
    slots: Vec<Arc<dyn PerPeer>>,
    about: Option<About>,
    pub(super) stall: Option<Stall>,
    members: RwLock<BTreeMap<PeerId, Member>>,
    events: Mutex<VecDeque<PeerEvent>>,
    pub(super) changed: Notify,
    /// What was carried for all peers.
    pub(super) tallies: Arc<Tallies>,
    /// Where messages are told, if they are.
    pub(super) told: Option<Events>,
}

/// A connected peer that speaks a protocol.
#[derive(Debug, Clone)]
pub(crate) struct Member {
    pub(crate) link: Arc<Link>,
    /// Our own number of the protocol, which our streams carry.
    pub(super) ours: u32,
    pub(super) version: u32,
    /// The first number of the lanes of its channels: of its own for each time that the peer joins, for the lanes of the time
    /// before may still be ending.
    pub(super) lanes: u32,
    pub(super) tallies: Arc<Tallies>,
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
    /// A channel's rate is of no use.
    #[error("channel {channel} of protocol {name:?}: {why}")]
    Rate {
        /// The protocol.
        name: String,
        /// The channel.
        channel: u32,
        /// What is wrong with it.
        why: RateError,
    },
    /// The time for which a program may take nothing is out of its range.
    #[error("protocol {0:?}: `stalled_after` is {1:?}; choose between 1 s and 1 h, or leave it out")]
    Stall(String, Duration),
    /// Too many protocols or channels.
    #[error("a node has at most {MAX_PROTOCOLS} protocols of {MAX_CHANNELS} channels each, and {MAX_DECLARED} in all")]
    TooMany,
    /// The node is closed.
    #[error("the node is closed")]
    Closed,
}

/// A protocol whose own code failed with a peer, and the words of its panic.
pub(crate) type Failed = (Arc<Registered>, String);

/// How the lanes of a protocol end that is not spoken with a peer any more.
pub(crate) const UNSPOKEN: End = End::Reset(VarInt::from_u32(UNKNOWN));

/// The protocols of one node.
#[derive(Debug)]
pub(crate) struct Registry {
    /// The memory of what comes in on all channels.
    pub(crate) budget: Arc<Budget>,
    /// The memory of what waits to be sent to all peers.
    pub(crate) spool: Arc<Spool>,
    /// The peers' connections that have ended with something left to hand over.
    pub(crate) remains: Remains,
    protocols: RwLock<BTreeMap<u32, Arc<Registered>>>,
    /// The last numbers given to a protocol, and to a member's lanes; none is given twice, for streams of what had it may still
    /// be on their way. 0 is the control stream's.
    last: AtomicU32,
    last_lanes: AtomicU32,
    closed: Mutex<Option<Arc<Notify>>>,
    /// Where messages are told, if they are.
    told: Option<Events>,
}

impl Registry {
    pub(crate) fn new(config: &LinkConfig, told: Option<Events>) -> Self {
        Registry {
            budget: Arc::new(Budget::new(config)),
            spool: Spool::new(config.send_memory),
            remains: Remains::default(),
            protocols: RwLock::default(),
            last: AtomicU32::default(),
            last_lanes: AtomicU32::default(),
            closed: Mutex::default(),
            told,
        }
    }

    /// What messages take now, on their way in and out.
    pub(crate) fn memory(&self) -> MemoryStatus {
        MemoryStatus { sending: self.spool.used(), sending_limit: self.spool.limit, ..self.budget.status() }
    }

    fn read(&self) -> RwLockReadGuard<'_, BTreeMap<u32, Arc<Registered>>> {
        self.protocols.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, BTreeMap<u32, Arc<Registered>>> {
        self.protocols.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a protocol; the caller tells the peers.
    pub(crate) fn register(&self, protocol: Protocol) -> Result<Arc<Registered>, RegisterError> {
        check(&protocol)?;
        let mut protocols = self.write();
        let declared: usize = protocols.values().map(|known| known.channels.len()).sum();
        if protocols.len() >= MAX_PROTOCOLS || declared + protocol.channels.len() > MAX_DECLARED {
            return Err(RegisterError::TooMany);
        }
        if protocols.values().any(|known| known.name == protocol.name) {
            return Err(RegisterError::Taken(protocol.name));
        }
        let id = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        let tallies = Tallies::new(protocol.channels.iter().map(|(channel, _)| channel.id));
        let registered = Arc::new(Registered {
            id,
            name: protocol.name,
            min: *protocol.versions.start(),
            max: *protocol.versions.end(),
            required: protocol.required,
            channels: protocol.channels.into_iter().map(|(channel, inbox)| (channel.id, (channel, inbox))).collect(),
            streams: Mutex::new(protocol.streams),
            slots: protocol.slots,
            about: protocol.about,
            stall: protocol.stall,
            members: RwLock::default(),
            events: Mutex::default(),
            changed: Notify::new(),
            tallies,
            told: self.told.clone(),
        });
        protocols.insert(id, Arc::clone(&registered));
        // A protocol is registered once: `register` takes it by value.
        let _ = protocol.registered.set(Arc::clone(&registered));
        Ok(registered)
    }

    /// What is told when the node closes.
    pub(crate) fn closed(&self) -> Arc<Notify> {
        let mut closed = self.closed.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(closed.get_or_insert_default())
    }

    /// Removes a protocol, what was queued on its channels is still sent; `None` if there is none of this name. The caller
    /// tells the peers, and of those with which the protocol's own code failed.
    pub(crate) fn unregister(&self, name: &str) -> Option<Vec<(PeerId, String)>> {
        let mut protocols = self.write();
        let id = protocols.values().find(|known| known.name == name).map(|known| known.id)?;
        let protocol = protocols.remove(&id)?;
        drop(protocols);
        let links: Vec<_> = protocol.members().values().map(|member| Arc::clone(&member.link)).collect();
        let mut failed = Vec::new();
        for link in links {
            let left = protocol.leave(&link, &Gone::Unregistered, End::Finish);
            failed.extend(left.err().map(|why| (link.peer, why)));
        }
        protocol.end();
        Some(failed)
    }

    /// What a hello says of the protocols.
    pub(crate) fn announced(&self) -> Vec<Announced> {
        let announce = |p: &Arc<Registered>| {
            let delivered = |as_: Delivery| {
                let channels = p.channels.values().filter(move |(channel, _)| channel.delivery == as_);
                channels.map(|(channel, _)| channel.id).collect()
            };
            Announced {
                id: p.id,
                name: p.name.clone(),
                min: p.min,
                max: p.max,
                required: p.required,
                streams: delivered(Delivery::Stream),
                datagrams: delivered(Delivery::Datagram),
            }
        };
        self.read().values().map(announce).collect()
    }

    /// The protocol with this number of ours.
    pub(crate) fn by_id(&self, id: u32) -> Option<Arc<Registered>> {
        self.read().get(&id).cloned()
    }

    /// Brings the protocols' members up to what was agreed with a peer; those whose own code failed at that are none.
    pub(crate) fn agreed(&self, link: &Arc<Link>, agreed: &Agreed) -> Vec<Failed> {
        self.each(|protocol| match agreed.protocols.iter().find(|spoken| spoken.ours == protocol.id) {
            Some(spoken) => self.join(protocol, link, spoken.version),
            None => protocol.leave(link, &Gone::Unregistered, UNSPOKEN),
        })
    }

    /// Removes a link's peer from all protocols.
    pub(crate) fn gone(&self, link: &Arc<Link>, reason: &Gone) -> Vec<Failed> {
        self.each(|protocol| protocol.leave(link, reason, UNSPOKEN))
    }

    /// Does something with every protocol, which may run its own code: no lock is held meanwhile.
    fn each(&self, act: impl Fn(&Registered) -> Result<(), String>) -> Vec<Failed> {
        let failed = |protocol: Arc<Registered>| act(&protocol).err().map(|why| (protocol, why));
        self.all().into_iter().filter_map(failed).collect()
    }

    fn join(&self, protocol: &Registered, link: &Arc<Link>, version: u32) -> Result<(), String> {
        let peer = link.peer;
        let is_joined = |member: &Member| Arc::ptr_eq(&member.link, link) && member.version == version;
        if protocol.with_member(peer, is_joined) == Some(true) {
            return Ok(());
        }
        protocol.leave(link, &Gone::Unregistered, UNSPOKEN)?; // it speaks another version now
        slot::init(&protocol.slots, peer)?;
        let protocols = self.read(); // so that it is unregistered before, or with this member
        if !protocols.contains_key(&protocol.id) {
            drop(protocols);
            return slot::remove(&protocol.slots, peer);
        }
        let lanes = self.last_lanes.fetch_add(1, Ordering::Relaxed) + 1;
        let (link, tallies) = (Arc::clone(link), protocol.tallies.of_peer());
        let member = Member { link, ours: protocol.id, version, lanes, tallies };
        protocol.members.write().unwrap_or_else(PoisonError::into_inner).insert(peer, member);
        protocol.tell(PeerEvent::Up { peer, version });
        Ok(())
    }

    /// What `status` tells of the protocols, or of those that a peer speaks.
    pub(crate) fn status(&self, of: Option<PeerId>) -> Vec<ProtocolStatus> {
        let status = |protocol: &Arc<Registered>| {
            let spoken = of.map(|peer| protocol.member(peer).map(|member| member.version));
            let versions = match spoken {
                None => protocol.min..=protocol.max,
                Some(version) => version.map(|version| version..=version)?,
            };
            let say = |about: &About| guarded(|| about(of)).unwrap_or_else(|why| why);
            let about = protocol.about.as_ref().map_or_else(String::new, say);
            Some(ProtocolStatus { name: protocol.name.clone(), versions, about: prefix(&about, MAX_ABOUT).to_owned() })
        };
        self.all().iter().filter_map(status).collect()
    }

    pub(super) fn all(&self) -> Vec<Arc<Registered>> {
        self.read().values().cloned().collect()
    }

    /// Ends all receivers.
    pub(crate) fn close(&self) {
        let protocols = std::mem::take(&mut *self.write());
        protocols.values().for_each(|protocol| protocol.end());
        if let Some(closed) = &*self.closed.lock().unwrap_or_else(PoisonError::into_inner) {
            closed.notify_waiters();
        }
    }

    /// Whether a protocol is still registered.
    pub(super) fn has(&self, protocol: &Registered) -> bool {
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
    protocol.stall.as_ref().map_or(Ok(()), |stall| stall.check(name))?;
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
        if channel.delivery == Delivery::Datagram && channel.max_message > LARGEST_DATAGRAM {
            return wrong("its messages fit no datagram; lower `max_message`, or deliver it as a stream");
        }
        for rate in channel.send_rate.iter().chain(&channel.receive_rate) {
            let wrong = |why| RegisterError::Rate { name: name.clone(), channel: channel.id, why };
            rate.check().map_err(wrong)?;
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

    /// What takes the byte streams that peers open, if the protocol does.
    pub(crate) fn streams(&self) -> Option<mpsc::Sender<(PeerId, Stream)>> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn members(&self) -> RwLockReadGuard<'_, BTreeMap<PeerId, Member>> {
        self.members.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Removes a link's peer; its channels' lanes end in this way. It is removed even if the protocol's own code fails.
    pub(crate) fn leave(&self, link: &Arc<Link>, reason: &Gone, end: End) -> Result<(), String> {
        let peer = link.peer;
        let mut members = self.members.write().unwrap_or_else(PoisonError::into_inner);
        if !members.get(&peer).is_some_and(|member| Arc::ptr_eq(&member.link, link)) {
            return Ok(());
        }
        let member = members.remove(&peer);
        drop(members);
        for (member, channel) in member.iter().flat_map(|member| self.channels.keys().map(move |id| (member, id))) {
            link.outbox.end(ChannelKey(member.lanes, *channel), end);
        }
        self.tell(PeerEvent::Down { peer, reason: reason.clone() });
        slot::remove(&self.slots, peer)
    }

    /// Ends all receivers.
    fn end(&self) {
        self.channels.values().for_each(|(_, inbox)| inbox.close());
        self.stall.iter().for_each(Stall::end);
        self.streams.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.changed.notify_one();
    }

    pub(super) fn events(&self) -> MutexGuard<'_, VecDeque<PeerEvent>> {
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

impl fmt::Debug for Registered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registered").field("id", &self.id).field("name", &self.name).finish_non_exhaustive()
    }
}

impl Member {
    /// Queues a message on a channel to this peer.
    pub(crate) fn push(&self, channel: &Channel, message: &Bytes) -> Pushed {
        let key = ChannelKey(self.lanes, channel.id);
        if channel.delivery == Delivery::Datagram && message.len() > MAX_DATAGRAM {
            let fits = self.link.connection.max_datagram_size().unwrap_or(0);
            let fits = fits.saturating_sub(datagrams::header(self.ours, channel.id).len());
            if message.len() > fits {
                return Pushed::TooLarge(fits);
            }
        }
        match self.link.outbox.push(key, message) {
            // The lane is opened by its first message: an idle channel costs nothing.
            Pushed::Closed if self.open_lane(key, channel) => self.link.outbox.push(key, message),
            pushed => pushed,
        }
    }

    /// What is told when the channel's queue has room again.
    pub(crate) fn space(&self, channel: &Channel) -> Option<Arc<Notify>> {
        self.link.outbox.space(ChannelKey(self.lanes, channel.id))
    }

    /// Counts a message that the channel does not carry.
    pub(super) fn refuse(&self, channel: &Channel, why: Refused) {
        self.tallies.of(Some(channel.id)).refused(why);
    }

    fn open_lane(&self, key: ChannelKey, channel: &Channel) -> bool {
        let (header, tally) = (datagrams::header(self.ours, channel.id), self.tallies.of(Some(channel.id)));
        let (messages, bytes) = (channel.queue, channel.queue_bytes);
        let (queue, outlet) = match channel.delivery {
            Delivery::Stream => (FrameQueue::new(messages, bytes).into(), Outlet::Uni(header)),
            Delivery::Datagram => {
                let queue = Queue::Datagrams(DatagramQueue::new(header, messages, bytes));
                (queue, Outlet::Datagrams(Arc::clone(tally)))
            }
        };
        let tally = Some(Arc::clone(tally));
        self.link.outbox.open(key, NewLane { share: channel.share, rate: channel.send_rate, queue, outlet, tally })
    }
}

/// The share of byte streams.
pub(crate) const STREAM_SHARE: Share =
    Share { class: byway_proto::schedule::Class::Bulk, weight: super::DEFAULT_WEIGHT };

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_channel_out_of_its_bounds_is_refused() {
        let refused = |edit: fn(&mut Channel)| {
            let (mut one, mut channel) = (Protocol::new("one", 1..=1), Channel::new(1));
            edit(&mut channel);
            drop(one.channel(channel));
            check(&one).is_err()
        };
        assert!(!refused(|channel| channel.max_message = MAX_MESSAGE));
        assert!(refused(|channel| channel.max_message = MAX_MESSAGE + 1));
        assert!(refused(|channel| channel.queue = 0) && refused(|channel| channel.queue_bytes = 0));
    }
    #[test]
    fn a_protocol_that_panics_over_what_it_says_of_itself_costs_no_other_its_word() {
        let registry = Registry::new(&LinkConfig::default(), None);
        let faulty = Protocol::new("faulty", 1..=1).about(|_| panic!("no words"));
        let sound = Protocol::new("sound", 1..=1).about(|_| "all is well".into());
        for protocol in [faulty, sound] {
            registry.register(protocol).unwrap();
        }
        let said: Vec<_> = registry.status(None).into_iter().map(|status| status.about).collect();
        assert_eq!(said, ["it panicked: no words", "all is well"]);
    }
}
