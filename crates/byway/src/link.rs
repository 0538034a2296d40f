//! One connection to one peer: a writer that owns what is sent, and readers of what comes in.

pub(crate) mod datagrams;
pub(crate) mod establish;
pub(crate) mod inbox;
pub(crate) mod outbox;
pub(crate) mod queue;
pub(crate) mod readers;
pub(crate) mod stripe;
pub(crate) mod tally;
pub(crate) mod writer;

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use byway_proto::{
    PeerAddr, PeerId,
    hello::{Agreed, Control, Hello},
};
use quinn::Connection;
use tokio::time::Instant;

use self::{
    outbox::{CONTROL, Outbox, Pushed},
    queue::FrameQueue,
    tally::Tally,
};
use crate::{
    gone::Gone,
    net::track::Track,
    protocol::OpenError,
    stream::{self, STREAM_QUEUE, Stream},
    watched::Watched,
};

/// An established connection, after both hellos.
#[derive(Debug)]
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
}

impl Link {
    pub(crate) fn hello(&self) -> MutexGuard<'_, Hello> {
        self.hello.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn relays(&self) -> MutexGuard<'_, Option<Vec<PeerAddr>>> {
        self.relays.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn withdrawn(&self) -> MutexGuard<'_, BTreeSet<u32>> {
        self.withdrawn.lock().unwrap_or_else(PoisonError::into_inner)
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

    /// Waits until the connection has ended, and tells why.
    pub(crate) async fn ended(&self) -> Gone {
        let error = self.connection.closed().await;
        let ours = self.ended.lock().unwrap_or_else(PoisonError::into_inner).clone();
        ours.unwrap_or_else(|| error.into())
    }

    /// Opens a byte stream that begins with `header`.
    pub(crate) async fn open_stream(&self, header: Bytes, tally: Arc<Tally>) -> Result<Stream, OpenError> {
        let (send, recv) = self.connection.open_bi().await.map_err(|error| OpenError::Gone(error.into()))?;
        let received = stream::received(&send);
        let mut queue = FrameQueue::new(usize::MAX, STREAM_QUEUE);
        queue.push_raw(&header);
        let key = self.outbox.open_stream(queue, send, Arc::clone(&tally)).ok_or(OpenError::TooMany(self.peer))?;
        tally.sent(1, 0);
        Ok(Stream::new((Arc::clone(&self.outbox), key), recv, received, tally))
    }
}
