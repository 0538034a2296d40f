//! One connection to one peer: a writer that owns what is sent, and readers of what comes in.

pub(crate) mod budget;
pub(crate) mod datagrams;
pub(crate) mod establish;
pub(crate) mod inbox;
mod messages;
pub(crate) mod outbox;
pub(crate) mod pace;
mod patience;
pub(crate) mod queue;
pub(crate) mod readers;
pub(crate) mod remains;
pub(crate) mod spool;
pub(crate) mod stripe;
pub(crate) mod tally;
pub(crate) mod writer;

use std::{
    collections::BTreeSet,
    fmt,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, atomic::AtomicUsize},
    time::Duration,
};

use bytes::Bytes;
use byway_proto::{
    PeerAddr, PeerId,
    hello::{Agreed, Control, Hello},
    schedule::ChannelKey,
};
use futures_util::future::join_all;
use quinn::Connection;
use tokio::time::{self, Instant};

use self::{
    outbox::{CONTROL, Outbox, Pushed},
    pace::{Pace, Shared},
    queue::FrameQueue,
    spool::Spool,
    tally::Tally,
};
use crate::{
    config::LinkConfig,
    gone::Gone,
    net::{BoxFuture, mux::Clock, track::Track},
    protocol::{Channel, OpenError, STREAM_SHARE},
    stream::{self, ReadHalf, STREAM_QUEUE, Stream},
    watched::Watched,
};

/// How often it is looked whether the last datagrams have left: QUIC tells nobody.
const LOOK: Duration = Duration::from_millis(2);

/// An established connection, after both hellos.
pub(crate) struct Link {
    pub(crate) peer: PeerId,
    /// This node dialled.
    pub(crate) dialled: bool,
    pub(crate) connection: Connection,
    pub(crate) track: Arc<Track>,
    pub(crate) outbox: Arc<Outbox>,
    pub(crate) since: Instant,
    /// What the peer said of itself last.
    hello: Mutex<Hello>,
    /// What both speak; changes when either side registers a protocol.
    pub(crate) agreed: Watched<Agreed>,
    /// Further streams of channels, until their readers ask for them.
    pub(crate) stripes: stripe::Waiting,
    /// The relays at which the peer said that it is registered, once it has.
    relays: Mutex<Option<Vec<PeerAddr>>>,
    /// Our numbers of registered protocols that are not spoken with this peer, for they failed.
    withdrawn: Mutex<BTreeSet<u32>>,
    /// Why this side closed the connection, if it did.
    ended: Mutex<Option<Gone>>,
    /// What tells, while the link is drained, whether the peer has received what was sent.
    leaving: Mutex<Vec<BoxFuture<'static, bool>>>,
    /// Readers of its channels that wait for the program, or for memory.
    behind: AtomicUsize,
    /// What its readers may take in all.
    receive: OnceLock<Shared>,
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").field("peer", &self.peer).field("dialled", &self.dialled).finish_non_exhaustive()
    }
}

impl Link {
    pub(crate) fn hello(&self) -> MutexGuard<'_, Hello> {
        self.hello.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn relays(&self) -> MutexGuard<'_, Option<Vec<PeerAddr>>> {
        self.relays.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// At most one for each stream of a lane.
    fn leaving(&self) -> MutexGuard<'_, Vec<BoxFuture<'static, bool>>> {
        self.leaving.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn withdrawn(&self) -> MutexGuard<'_, BTreeSet<u32>> {
        self.withdrawn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets the peer's limits, before anything is sent or read.
    pub(crate) fn limit(&self, config: &LinkConfig, spool: &Arc<Spool>, clock: Clock) {
        self.outbox.limit(config.send_rate, spool);
        self.receive.get_or_init(|| Shared::new(clock, config.receive_rate));
    }

    /// How fast a byte stream may be read.
    pub(crate) fn pace(&self) -> Pace {
        Pace::new(STREAM_SHARE.class, None, self.shared(), Arc::clone(&self.track))
    }

    /// How fast a reader may take what comes in on a channel of a protocol, which has our number.
    pub(crate) fn pace_of(&self, protocol: u32, channel: &Channel) -> Pace {
        let shared = self.shared();
        let own = channel.receive_rate.map(|rate| shared.of_channel(ChannelKey(protocol, channel.id), rate));
        Pace::new(channel.share.class, own, shared, Arc::clone(&self.track))
    }

    fn shared(&self) -> Shared {
        self.receive.get_or_init(|| Shared::new(Clock::start(), None)).clone()
    }

    /// Queues a message on the control stream; `false` if the peer has not read for so long that there is no room.
    pub(crate) fn control(&self, message: &Control) -> bool {
        match message.to_frame() {
            Ok(frame) => self.outbox.push_raw(CONTROL, &Bytes::from(frame)) != Pushed::Full,
            Err(error) => {
                tracing::warn!(%error, "control message not sent");
                true
            }
        }
    }

    /// Closes the connection and tells the peer why.
    pub(crate) fn close(&self, reason: Gone) {
        reason.close(&self.connection);
        self.ended.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(reason);
    }

    /// Lets nothing more in and waits, at most for `deadline`, until the peer has received what is queued on channels and on
    /// byte streams that their users have ended, and the last datagrams have left.
    pub(crate) async fn flush(&self, deadline: Duration) {
        self.outbox.drain();
        let flushed = async {
            self.outbox.drained().await;
            let leaving = std::mem::take(&mut *self.leaving());
            join_all(leaving).await;
            while self.connection.datagram_send_buffer_space() < datagrams::EMPTY_BUFFER
                && self.connection.close_reason().is_none()
            {
                time::sleep(LOOK).await;
            }
        };
        let _ = time::timeout(deadline, flushed).await; // who does not read loses the rest
    }

    /// Waits until the connection has ended, and tells why.
    pub(crate) async fn ended(&self) -> Gone {
        let error = self.connection.closed().await;
        let ours = self.ended.lock().unwrap_or_else(PoisonError::into_inner).clone();
        ours.unwrap_or_else(|| error.into())
    }

    /// Why there is no lane for a stream: the connection is about to end, or has, or too many are open.
    fn takes_no_stream(&self) -> OpenError {
        let ours = self.ended.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let gone = ours.or_else(|| self.connection.close_reason().map(Gone::from));
        match gone.or_else(|| self.outbox.is_draining().then_some(Gone::Disconnected)) {
            Some(gone) => OpenError::Gone(gone),
            None => OpenError::TooMany(self.peer),
        }
    }

    /// Opens a byte stream that begins with `header`.
    pub(crate) async fn open_stream(&self, header: Bytes, tally: Arc<Tally>) -> Result<Stream, OpenError> {
        let (send, recv) = self.connection.open_bi().await.map_err(|error| OpenError::Gone(error.into()))?;
        let received = stream::received(&send);
        let mut queue = FrameQueue::new(usize::MAX, STREAM_QUEUE);
        queue.push_raw(&header);
        let key = self.outbox.open_stream(queue, send, Arc::clone(&tally)).ok_or_else(|| self.takes_no_stream())?;
        tally.sent(1, 0);
        let read = ReadHalf::new(recv, self.pace(), tally);
        Ok(Stream::new((Arc::clone(&self.outbox), key), read, received))
    }
}
