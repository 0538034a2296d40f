//! One channel's stream, read into its inbox message by message.

use std::{
    collections::VecDeque,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use quinn::VarInt;
use tokio::{
    sync,
    time::{self, Instant},
};

use super::{
    Link,
    budget::{self, Held, SMALL},
    inbox::Inbox,
    pace::Pace,
    queue,
    readers::UNKNOWN,
    stripe::Incoming,
    tally::Tally,
};
use crate::{gone::Gone, net::mux::MAX_DATAGRAM};

/// Messages that are taken out of a stream's bytes before they are paid for: as many empty ones as are paid for at once. An empty message is one
/// byte on the stream, and its place in the batch, which no budget counts, is thirty.
const MAX_BATCH: usize = SMALL / budget::cost(0);

/// Bytes of a stream up to this many may be a piece of what the system received at once, up to 64 KiB in one allocation. What is longer, QUIC has
/// put together by itself.
const PACKET: usize = MAX_DATAGRAM as usize;

/// How often it is looked, once a half message is old, whether somebody waits for its memory.
const LOOK: Duration = Duration::from_secs(1);

/// Reads one channel's messages until it ends, or nobody reads them.
pub(super) struct Messages<'a> {
    pub(super) link: &'a Link,
    pub(super) inbox: &'a Inbox,
    pub(super) frames: Frames,
    pub(super) held: Held,
    /// Held by the reader of this peer's that waits for memory: the others come after it.
    pub(super) turn: Arc<sync::Mutex<()>>,
    pub(super) pace: Pace,
    pub(super) tally: Arc<Tally>,
    /// Is told of each message.
    pub(super) told: &'a (dyn Fn(&Bytes) + Sync),
}

impl Messages<'_> {
    pub(super) async fn read(&mut self, incoming: &mut Incoming<'_>) -> Result<(), Gone> {
        loop {
            if !self.deliver().await {
                incoming.stop(VarInt::from_u32(UNKNOWN));
                return Ok(());
            }
            let mut read = 0;
            if let Some(len) = self.frames.wanted {
                self.take(budget::cost(len)).await;
                self.frames.begin(len);
            } else if self.frames.chunk.is_empty() {
                if !self.next(incoming).await? {
                    return Ok(());
                }
                read = self.frames.chunk.len();
            }
            self.frames.split()?;
            while self.frames.wanted.is_none()
                && self.frames.chunk.is_empty()
                && self.pace.until().is_none()
                && incoming.is_ready()
                && let Some(bytes) = incoming.next(self.pace.piece()).await?
            {
                read += bytes.len();
                self.pace.take(bytes.len());
                self.frames.feed(bytes);
                self.frames.split()?;
            }
            self.tally.received(self.frames.batch.len(), read);
            self.frames.batch.iter().for_each(self.told);
        }
    }

    /// Pays for the messages that came whole, and puts all into the inbox; `false` if nobody will read them.
    async fn deliver(&mut self) -> bool {
        let mut batch = std::mem::take(&mut self.frames.batch);
        while !batch.is_empty() {
            // The first one may have been paid for while it was in the making.
            let (mut paid, mut count) = (std::mem::take(&mut self.frames.paid), 0);
            let mut bytes = 0;
            for message in &batch {
                let cost = budget::cost(message.len());
                if count > 0 && bytes + cost > SMALL {
                    break;
                }
                (bytes, count) = (bytes + cost, count + 1);
                if paid {
                    (paid, bytes) = (false, 0);
                }
            }
            if bytes > 0 {
                self.take(bytes).await;
            }
            let mut some =
                if count == batch.len() { std::mem::take(&mut batch) } else { batch.drain(..count).collect() };
            let behind = Behind::new(self.link);
            let delivered = self.inbox.deliver(&mut some, &mut self.held).await;
            drop(behind);
            let Some(waited) = delivered else { return false };
            if waited {
                self.pace.sign(); // its program takes something, if slowly
            }
            if batch.is_empty() {
                self.frames.batch = some; // keeps its memory
                return true;
            }
        }
        self.frames.batch = batch;
        true
    }

    async fn take(&mut self, bytes: usize) {
        let (inbox, peer) = (self.inbox, self.link.peer);
        let _behind = Behind::new(self.link);
        self.held.take(bytes, || inbox.is_empty_of(peer), &self.turn).await;
    }

    /// Waits for the next bytes; `false` if there are no more.
    async fn next(&mut self, incoming: &mut Incoming<'_>) -> Result<bool, Gone> {
        if self.pace.until().is_some() {
            self.pace.wait().await;
            self.frames.began = Instant::now();
        }
        let bytes = {
            let mut next = pin!(incoming.next(self.pace.piece()));
            if self.frames.partial.is_none() {
                next.await?
            } else {
                let (budget, began) = (self.held.budget(), self.frames.began);
                loop {
                    if budget.is_overdue(self.link.peer, began.elapsed()) {
                        return Err(Gone::Unfinished);
                    }
                    let look = (began + budget.unfinished_after).max(Instant::now() + LOOK);
                    if let Ok(bytes) = time::timeout_at(look, &mut next).await {
                        break bytes?;
                    }
                }
            }
        };
        let Some(bytes) = bytes else { return Ok(false) };
        self.pace.take(bytes.len());
        self.frames.feed(bytes);
        Ok(true)
    }
}

/// A reader that may have to wait for the program, or for memory.
struct Behind<'a>(&'a AtomicUsize);

impl<'a> Behind<'a> {
    fn new(link: &'a Link) -> Self {
        link.behind.fetch_add(1, Relaxed);
        Behind(&link.behind)
    }
}

impl Drop for Behind<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

/// Takes messages out of a stream's bytes.
pub(super) struct Frames {
    max: usize,
    /// Bytes that are not split yet.
    chunk: Bytes,
    /// Nothing but these bytes is in their memory.
    is_own: bool,
    /// The length of a message that begins in them and ends behind them: it waits for its memory.
    wanted: Option<usize>,
    /// A message whose bytes have not all come: what is there, and how many are missing.
    partial: Option<(BytesMut, usize)>,
    /// Since when the peer could have sent them.
    began: Instant,
    /// A length of which not all bytes have come.
    header: BytesMut,
    batch: VecDeque<Bytes>,
    /// The first message of the batch was in the making before, and its memory was taken then.
    paid: bool,
}

impl Frames {
    pub(super) fn new(max: usize) -> Self {
        Frames {
            max,
            chunk: Bytes::new(),
            is_own: true,
            wanted: None,
            partial: None,
            began: Instant::now(),
            header: BytesMut::new(),
            batch: VecDeque::new(),
            paid: false,
        }
    }

    /// Takes in the stream's next bytes, when those before are split.
    fn feed(&mut self, bytes: Bytes) {
        self.is_own = bytes.len() > PACKET;
        self.chunk = bytes;
    }

    /// Splits the bytes that are there, up to a message that needs memory, or until the batch has [`MAX_BATCH`].
    fn split(&mut self) -> Result<(), Gone> {
        while !self.chunk.is_empty() && self.batch.len() < MAX_BATCH {
            if let Some((message, missing)) = &mut self.partial {
                let part = self.chunk.split_to(self.chunk.len().min(*missing));
                message.extend_from_slice(&part);
                *missing -= part.len();
                if *missing == 0 {
                    let message = std::mem::take(message).freeze();
                    self.partial = None;
                    self.paid |= self.batch.is_empty();
                    self.batch.push_back(message);
                }
                continue;
            }
            let Some(len) = self.length() else { return Ok(()) };
            let len = usize::try_from(len).unwrap_or(usize::MAX);
            if len > self.max {
                return Err(Gone::Misbehaved(format!("a message of {len} bytes on a channel for {}", self.max)));
            }
            if self.chunk.len() < len {
                self.wanted = Some(len);
                return Ok(());
            }
            if !std::mem::replace(&mut self.is_own, true) {
                // A message of a few bytes must not keep all alive that was received with it, which nobody has paid for.
                self.chunk = Bytes::copy_from_slice(&self.chunk);
            }
            self.batch.push_back(self.chunk.split_to(len));
        }
        Ok(())
    }

    /// Begins the message that was wanted, now that its memory is taken.
    fn begin(&mut self, len: usize) {
        self.wanted = None;
        self.began = Instant::now();
        self.partial = Some((BytesMut::with_capacity(len), len));
    }

    /// The next message's length, if all its bytes are there.
    fn length(&mut self) -> Option<u64> {
        if self.header.is_empty() {
            if let Some(len) = queue::take_varint(&mut self.chunk) {
                return Some(len);
            }
            self.header.extend_from_slice(&self.chunk);
            self.chunk.clear();
            return None;
        }
        while !self.chunk.is_empty() {
            self.header.extend_from_slice(&self.chunk.split_to(1));
            let mut whole = Bytes::copy_from_slice(&self.header);
            if let Some(len) = queue::take_varint(&mut whole) {
                self.header.clear();
                return Some(len);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_messages_are_taken_out_than_are_paid_for_at_once() {
        let mut frames = Frames::new(10);
        frames.feed(Bytes::from(vec![0; 3 * MAX_BATCH])); // so many empty messages
        let mut taken = 0;
        while !frames.chunk.is_empty() {
            frames.split().unwrap();
            assert!(frames.batch.len() <= MAX_BATCH, "{}", frames.batch.len());
            taken += frames.batch.len();
            frames.batch.clear();
        }
        assert_eq!(taken, 3 * MAX_BATCH);
        assert!(frames.batch.capacity() * size_of::<Bytes>() <= SMALL);
    }

    #[test]
    fn a_message_keeps_nothing_alive_but_the_piece_of_its_stream() {
        let received = Bytes::from([&[1, 7][..], &[2, 8, 9], &[40, 1]].concat());
        let memory = received.as_ptr_range();
        let mut frames = Frames::new(100);
        frames.feed(received.clone());
        frames.split().unwrap();
        assert_eq!(frames.batch, [&[7][..], &[8, 9]]);
        assert_eq!(frames.wanted, Some(40));
        assert!(frames.batch.iter().all(|message| !memory.contains(&message.as_ptr())));
        drop(received); // until here its memory is nobody else's
    }
}
