//! Channels whose messages are QUIC datagrams (RFC 9221): each by itself, once or never, in any order.
//!
//! A datagram is the protocol's number, the channel's number and the message (`docs/wire.md`, "Datagrams"). QUIC sends
//! datagrams before streams and would drop the oldest to make room for a new one, so it is given one only when the
//! schedule says so and while its short buffer has room: what waits, waits in the lane, where order is ours.

use std::{
    collections::{BTreeMap, VecDeque},
    pin::pin,
    sync::{Arc, atomic::Ordering::Relaxed},
    task::{Context, Poll},
};

use bytes::{Bytes, BytesMut};
use byway_proto::hello::{Agreed, MAX_DECLARED};
use futures_util::FutureExt;
use quinn::{Connection, SendDatagramError, WriteError};

use super::{
    Link,
    budget::Held,
    pace::Pace,
    queue::{CHUNK, MAX_HEADER, QUIET_CHUNK, put_varint, take_varint},
    readers::Scope,
    tally::{Refused, Tally},
};
use crate::{
    event::Direction,
    gone::Gone,
    metrics::Dropped,
    net::{BoxFuture, mux::Mux},
    protocol::{Delivery, Registered},
};

/// Bytes of datagrams inside QUIC: they go before all streams, so this is how long they can keep a control message
/// waiting, 7 ms at 20 Mbit/s; and eleven full packets, so that QUIC's task need not be woken for each.
pub(crate) const SEND_BUFFER: usize = 16 << 10;

/// Room in that buffer when nothing is in it: QUIC takes off what the record of one more datagram needs.
pub(crate) const EMPTY_BUFFER: usize = SEND_BUFFER - 64;

/// A datagram of no protocol, by which a peer for which nothing moves asks: QUIC acknowledges it even where no stream has room for
/// a byte, and the node answers by a sign that it reads, unless its channels' readers wait.
const NOTHING: u8 = 0;

/// Bytes of datagrams that QUIC keeps until the link's reader takes them: what a line of 1 Gbit/s brings within 2 ms. It
/// drops the oldest beyond that.
pub(crate) const RECEIVE_BUFFER: usize = 256 << 10;

/// Bytes of a datagram that every packet has room for, whatever its path: 1,200 less the headers of packet and frame.
pub(crate) const SURE: usize = 1_162;

/// Datagrams that the reader takes before it looks after other things.
const TURN: usize = 64;

/// Channels whose counts and rates the link's reader remembers: as many as there are at once. Only those of protocols that are registered no more
/// come on top, and give way.
const MAX_FED: usize = MAX_DECLARED;

/// What stands in front of each message of a channel.
pub(crate) fn header(protocol: u32, channel: u32) -> Bytes {
    let mut header = BytesMut::with_capacity(2 * MAX_HEADER);
    put_varint(&mut header, protocol.into());
    put_varint(&mut header, channel.into());
    header.freeze()
}

/// Sends what the peer acknowledges and no protocol reads, unless datagrams are on their way anyhow.
pub(super) fn ask(connection: &Connection) {
    if connection.datagram_send_buffer_space() >= EMPTY_BUFFER {
        let _ = connection.send_datagram(Bytes::from_static(&[NOTHING])); // a peer that takes none says nothing by it
    }
}

/// A bounded queue of datagrams, with their headers.
#[derive(Debug)]
pub(crate) struct DatagramQueue {
    header: Bytes,
    waiting: VecDeque<Bytes>,
    bytes: usize,
    /// Memory that the next datagrams share.
    memory: BytesMut,
    max_messages: usize,
    max_bytes: usize,
}

impl DatagramQueue {
    /// A queue that takes messages while it holds fewer than `max_messages` and `max_bytes`.
    pub(crate) fn new(header: Bytes, max_messages: usize, max_bytes: usize) -> Self {
        DatagramQueue { header, waiting: VecDeque::new(), bytes: 0, memory: BytesMut::new(), max_messages, max_bytes }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Datagrams that wait, and their bytes.
    pub(super) fn waiting(&self) -> (usize, usize) {
        (self.waiting.len(), self.bytes)
    }

    pub(super) fn len(&self) -> usize {
        self.bytes
    }

    pub(super) fn has_room(&self) -> bool {
        self.waiting.len() < self.max_messages && self.bytes < self.max_bytes
    }

    /// Appends a message; `false` if there is no room.
    pub(super) fn push(&mut self, message: &[u8]) -> bool {
        if !self.has_room() {
            return false;
        }
        let len = self.header.len() + message.len();
        if self.memory.capacity() < len {
            let shared = if self.waiting.is_empty() { QUIET_CHUNK } else { CHUNK };
            self.memory = BytesMut::with_capacity(shared.max(len));
        }
        self.memory.extend_from_slice(&self.header);
        self.memory.extend_from_slice(message);
        self.bytes += len;
        self.waiting.push_back(self.memory.split().freeze());
        true
    }

    /// Takes datagrams from the front until they have `budget` bytes or more.
    pub(super) fn take(&mut self, budget: usize, out: &mut VecDeque<Bytes>) {
        let mut taken = 0;
        while taken < budget
            && let Some(datagram) = self.waiting.pop_front()
        {
            taken += datagram.len();
            out.push_back(datagram);
        }
        self.bytes -= taken;
    }
}

/// The sending side of a channel.
pub(super) struct Outgoing {
    connection: Connection,
    mux: Arc<Mux>,
    tally: Arc<Tally>,
    /// The front datagram, once QUIC had no room for it.
    waiting: Option<BoxFuture<'static, Result<(), SendDatagramError>>>,
}

impl Outgoing {
    pub(super) fn new(connection: Connection, mux: Arc<Mux>, tally: Arc<Tally>) -> Self {
        Outgoing { connection, mux, tally, waiting: None }
    }

    /// Gives QUIC the front datagram of `held`; how many bytes it had.
    pub(super) fn poll_write(
        &mut self,
        held: &mut VecDeque<Bytes>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<usize, WriteError>> {
        let Some(datagram) = held.front() else { return Poll::Ready(Ok(0)) };
        let mut sent = match &mut self.waiting {
            Some(waiting) => waiting.as_mut().poll(cx),
            None => pin!(self.connection.send_datagram_wait(datagram.clone())).poll(cx),
        };
        if sent.is_pending() && self.waiting.is_none() {
            let (connection, datagram) = (self.connection.clone(), datagram.clone());
            let waiting = self.waiting.insert(Box::pin(async move { connection.send_datagram_wait(datagram).await }));
            sent = waiting.as_mut().poll(cx);
        }
        let Poll::Ready(sent) = sent else { return Poll::Pending };
        self.waiting = None;
        let len = held.pop_front().map_or(0, |datagram| datagram.len());
        match sent {
            Ok(()) => Poll::Ready(Ok(len)),
            Err(SendDatagramError::ConnectionLost(error)) => Poll::Ready(Err(WriteError::ConnectionLost(error))),
            // It was measured when it was queued; meanwhile packets have become smaller.
            Err(_) => {
                self.mux.counters.count(Dropped::DatagramTooLarge);
                self.tally.refused(Refused::Outgrown);
                Poll::Ready(Ok(0))
            }
        }
    }
}

/// The receiving side of a link's datagrams.
pub(super) struct Incoming<'a> {
    link: &'a Link,
    scope: &'a Scope,
    /// Protocols and channels, by our numbers, that this peer has sent to.
    fed: BTreeMap<(u32, u32), Fed>,
    held: Held,
    /// By which the peer is told that this side reads.
    pace: Pace,
}

/// A channel of datagrams: what it has carried, and how fast it takes more.
struct Fed {
    tally: Arc<Tally>,
    pace: Pace,
}

impl<'a> Incoming<'a> {
    pub(super) fn new(link: &'a Link, scope: &'a Scope) -> Self {
        let held = Held::nothing(&scope.registry.budget, link.peer);
        Incoming { link, scope, fed: BTreeMap::new(), held, pace: link.pace() }
    }

    /// Takes a datagram, and those that are there behind it, to their channels; an error says what the peer did wrong.
    pub(super) fn take(&mut self, first: Bytes) -> Result<(), Gone> {
        self.deliver(first)?;
        for _ in 1..TURN {
            let Some(Ok(datagram)) = self.link.connection.read_datagram().now_or_never() else { break };
            self.deliver(datagram)?;
        }
        Ok(())
    }

    /// Takes those that came before the connection's end.
    pub(super) fn rest(&mut self) {
        while let Some(Ok(datagram)) = self.link.connection.read_datagram().now_or_never() {
            if self.deliver(datagram).is_err() {
                return;
            }
        }
    }

    fn deliver(&mut self, mut message: Bytes) -> Result<(), Gone> {
        if message[..] == [NOTHING] {
            self.asked();
            return Ok(());
        }
        let len = message.len();
        let Some((protocol, id)) = self.channel(&mut message) else {
            self.scope.mux.counters.count(Dropped::UnknownChannel);
            return Ok(());
        };
        let Some((channel, inbox)) = protocol.channel(id).filter(|(channel, _)| channel.delivery == Delivery::Datagram)
        else {
            self.scope.mux.counters.count(Dropped::UnknownChannel);
            return Ok(());
        };
        if message.len() > channel.max_message {
            let (len, max) = (message.len(), channel.max_message);
            return Err(Gone::Misbehaved(format!("a message of {len} bytes on a channel for {max}")));
        }
        if !self.fed.contains_key(&(protocol.id, id)) {
            let registry = &self.scope.registry;
            make_room(&mut self.fed, |protocol| registry.by_id(protocol).is_some());
        }
        let fed = self.fed.entry((protocol.id, id)).or_insert_with(|| Fed {
            tally: protocol.tally(self.link, Some(id)),
            pace: self.link.pace_of(protocol.id, channel),
        });
        if fed.pace.until().is_some() {
            fed.tally.refused(Refused::OverRate);
            self.scope.mux.counters.count(Dropped::OverRate);
            return Ok(());
        }
        let length = message.len();
        fed.pace.spend(length);
        // What was received with it, up to 64 KiB in one allocation, does not wait with it for the program.
        if inbox.offer(Bytes::copy_from_slice(&message), &mut self.held) {
            fed.tally.received(1, len);
            protocol.tell_message(self.link.peer, id, length, Direction::Received);
        } else {
            fed.tally.refused(Refused::ReceiverBehind);
            self.scope.mux.counters.count(Dropped::ChannelFull);
        }
        Ok(())
    }

    /// Answers a peer for which nothing moves. If no channel's reader waits here, what stands still is byte streams, which their users
    /// may pause for hours: the peer has to see that this side reads.
    fn asked(&mut self) {
        if self.link.behind.load(Relaxed) == 0 {
            self.pace.sign();
        }
    }

    /// What the header names: our protocol, and a channel's number.
    fn channel(&self, message: &mut Bytes) -> Option<(Arc<Registered>, u32)> {
        let theirs = take_varint(message)?;
        let channel = u32::try_from(take_varint(message)?).ok()?;
        let ours = |agreed: &Agreed| agreed.protocols.iter().find(|p| u64::from(p.theirs) == theirs).map(|p| p.ours);
        let ours = ours(&self.link.agreed.read())?;
        Some((self.scope.registry.by_id(ours)?, channel))
    }
}

/// Forgets the channels of protocols that are registered no more, if there are [`MAX_FED`]: a protocol that is registered anew has another number.
fn make_room<T>(fed: &mut BTreeMap<(u32, u32), T>, is_registered: impl Fn(u32) -> bool) {
    if fed.len() >= MAX_FED {
        fed.retain(|(protocol, _), _| is_registered(*protocol));
    }
}

impl Drop for Incoming<'_> {
    fn drop(&mut self) {
        for (protocol, channel) in self.fed.keys() {
            if let Some(protocol) = self.scope.registry.by_id(*protocol)
                && let Some((_, inbox)) = protocol.channel(*channel)
            {
                inbox.orphan(self.link.peer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn datagrams_leave_whole_in_order_and_with_their_header() {
        let mut queue = DatagramQueue::new(header(1, 300), 100, 1 << 20);
        assert!(queue.is_empty());
        for n in 0..40 {
            assert!(queue.push(&[n; 1_000]));
        }
        let mut out = VecDeque::new();
        queue.take(1, &mut out);
        assert_eq!(out.len(), 1, "at least one");
        queue.take(2_000, &mut out);
        assert_eq!(out.len(), 3, "and none in pieces");
        queue.take(usize::MAX, &mut out);
        assert!(queue.is_empty() && queue.bytes == 0);
        for (n, datagram) in out.into_iter().enumerate() {
            assert_eq!(datagram[..3], [1, 0x41, 0x2c], "the documented bytes");
            assert_eq!(datagram[3..], [n as u8; 1_000]);
        }
    }

    #[test]
    fn a_full_queue_refuses_the_newest() {
        let mut few = DatagramQueue::new(header(1, 1), 2, 1 << 20);
        assert!(few.push(b"first") && few.push(b"second") && !few.push(b"third"));
        let mut short = DatagramQueue::new(header(1, 1), 100, 1_000);
        assert!(short.push(&[0; 999]) && !short.push(b""));
        let mut out = VecDeque::new();
        few.take(usize::MAX, &mut out);
        assert_eq!(out, [&b"\x01\x01first"[..], &b"\x01\x01second"[..]]);
        assert!(few.push(b"third"));
    }

    #[test]
    fn a_quiet_queue_keeps_little_memory() {
        let mut queue = DatagramQueue::new(header(1, 1), 100, 1 << 20);
        for _ in 0..100 {
            assert!(queue.push(&[7; 100]));
            assert!(queue.memory.capacity() <= QUIET_CHUNK);
            queue.take(usize::MAX, &mut VecDeque::new());
        }
    }
    #[test]
    fn only_channels_of_registered_protocols_are_remembered_once_there_are_many() {
        let mut fed: BTreeMap<_, _> = (1..MAX_FED as u32).map(|protocol| ((protocol, 7), ())).collect();
        make_room(&mut fed, |protocol| protocol == 5);
        assert_eq!(fed.len(), MAX_FED - 1, "there is room");
        fed.insert((u32::MAX, 7), ());
        make_room(&mut fed, |protocol| protocol == 5);
        assert_eq!(fed.into_keys().collect::<Vec<_>>(), [(5, 7)]);
    }
}
