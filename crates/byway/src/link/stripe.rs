//! One channel over several streams, where the line holds more than one stream's window (`docs/wire.md`, "Streams").
//!
//! A channel's bytes are cut into segments of [`SEGMENT`] bytes. After each stands one byte that names the stripe on which
//! the next segment lies; stripe 0 is the stream on which the channel began. The reader goes from stream to stream, so the
//! messages stay in order, and what comes before its turn waits inside QUIC's windows.

use std::{
    collections::{BTreeMap, VecDeque},
    pin::pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes, BytesMut};
use quinn::{Connection, ConnectionError, ReadError, RecvStream, SendStream, VarInt, WriteError};

use super::queue::put_varint;
use crate::{
    gone::Gone,
    net::BoxFuture,
    quic::endpoint::{MAX_STREAMS, STREAM_WINDOW},
    watched::Watched,
};

/// Bytes between two changes of the stream: long enough for one byte and one write to be nothing, and a sixteenth of a
/// stream's window, so that all windows fill alike.
pub(crate) const SEGMENT: usize = 256 << 10;

/// Streams of one channel: their windows fill a line of 1 Gbit/s at 100 ms, and are half of the connection's, so that a
/// channel which nobody reads leaves the other half to the others.
pub(crate) const MAX_STRIPES: usize = 4;

/// Streams beyond the first, of all channels of a link together. The windows of eight are the connection's, so more bring nothing at one time; and
/// each is one of those that the peer allows, without which another channel cannot even begin.
pub(super) const MAX_FURTHER: usize = 32;
const _: () = assert!(MAX_FURTHER <= MAX_WAITING && MAX_FURTHER < MAX_STREAMS as usize / 2);

/// In place of a protocol's number, which counts from 1, at the beginning of a further stream of a channel.
pub(crate) const STRIPE: u64 = 0;

/// Further streams that wait for their channel's reader: twice as many as this node opens, for those of a channel that was begun anew may be among
/// them.
const MAX_WAITING: usize = 64;

/// Chunks taken from QUIC at once.
const CHUNKS: usize = 32;

/// Streams that make sense with this congestion window: twice as much is sent before the first hole is filled.
pub(crate) fn wanted(congestion_window: u64) -> usize {
    let windows = congestion_window.saturating_mul(2) / u64::from(STREAM_WINDOW);
    usize::try_from(windows).unwrap_or(usize::MAX).saturating_add(1).min(MAX_STRIPES)
}

/// Of the `wanted` streams those that a channel may have which has `own` beyond its first, while all channels together have `all` such.
pub(super) fn allowed(wanted: usize, own: usize, all: usize) -> usize {
    wanted.min(1 + own + MAX_FURTHER.saturating_sub(all))
}

/// The sending side of a channel.
pub(super) struct Stripes {
    connection: Connection,
    streams: Vec<SendStream>,
    /// What the first stream begins with.
    header: Bytes,
    current: usize,
    /// Bytes until the end of the segment.
    left: usize,
    opening: Option<Opening>,
    priority: i32,
}

/// A stream on its way into [`Stripes`].
enum Opening {
    Stream(BoxFuture<'static, Result<SendStream, ConnectionError>>),
    /// It is open, and has to say what it is.
    Header(SendStream, VecDeque<Bytes>),
}

impl Stripes {
    /// A channel whose first stream begins with `header`; it is opened when there is something to send.
    pub(super) fn new(connection: Connection, header: Bytes, priority: i32) -> Self {
        let streams = Vec::with_capacity(1); // most channels never need a second one
        Stripes { connection, streams, header, current: 0, left: SEGMENT, opening: None, priority }
    }

    /// Writes from the front of `held` to as many streams as there are, opening more until there are `wanted`; how many
    /// bytes were taken.
    pub(super) fn poll_write(
        &mut self,
        held: &mut VecDeque<Bytes>,
        wanted: usize,
        cx: &mut Context<'_>,
    ) -> Poll<Result<usize, WriteError>> {
        let grown = self.poll_grow(wanted, cx)?;
        if self.streams.is_empty() {
            ready!(grown);
        }
        if self.left == 0 {
            let next = (self.current + 1) % self.streams.len();
            let named = u8::try_from(next).expect("there are fewer streams than a byte can name");
            ready!(write(&mut self.streams[self.current], &mut [Bytes::copy_from_slice(&[named])].into(), 1, cx))?;
            (self.current, self.left) = (next, SEGMENT);
        }
        let written = ready!(write(&mut self.streams[self.current], held, self.left, cx))?;
        self.left -= written;
        Poll::Ready(Ok(written))
    }

    /// Opens streams, one at a time, until there are `wanted` that have said what they are.
    fn poll_grow(&mut self, wanted: usize, cx: &mut Context<'_>) -> Poll<Result<(), WriteError>> {
        while self.streams.len() < wanted.min(MAX_STRIPES) {
            let connection = &self.connection;
            match self.opening.get_or_insert_with(|| {
                let connection = connection.clone();
                Opening::Stream(Box::pin(async move { connection.open_uni().await }))
            }) {
                Opening::Stream(opening) => {
                    let stream = ready!(opening.as_mut().poll(cx)).map_err(WriteError::ConnectionLost)?;
                    let _ = stream.set_priority(self.priority); // between two classes QUIC decides packet by packet
                    let header = match self.streams.first() {
                        Some(first) => header(first, self.streams.len()),
                        None => self.header.clone(),
                    };
                    self.opening = Some(Opening::Header(stream, [header].into()));
                }
                Opening::Header(stream, header) => {
                    ready!(write(stream, header, usize::MAX, cx))?;
                    if header.is_empty()
                        && let Some(Opening::Header(stream, _)) = self.opening.take()
                    {
                        self.streams.push(stream);
                    }
                }
            }
        }
        Poll::Ready(Ok(()))
    }

    /// The stream on which the next bytes go, if it is open.
    pub(super) fn current(&mut self) -> Option<&mut SendStream> {
        self.streams.get_mut(self.current)
    }

    /// Streams beyond the first, with the one that is being opened.
    pub(super) fn further(&self) -> usize {
        (self.streams.len() + usize::from(self.opening.is_some())).saturating_sub(1)
    }

    pub(super) fn streams(&mut self) -> &mut [SendStream] {
        &mut self.streams
    }
}

/// What a further stream begins with: whose it is, and which.
fn header(first: &SendStream, index: usize) -> Bytes {
    let mut header = BytesMut::new();
    put_varint(&mut header, STRIPE);
    put_varint(&mut header, VarInt::from(first.id()).into_inner());
    put_varint(&mut header, index as u64);
    header.freeze()
}

/// Writes up to `limit` bytes from the front of `held`, as far as the stream takes them; how many were taken.
pub(super) fn write(
    stream: &mut SendStream,
    held: &mut VecDeque<Bytes>,
    limit: usize,
    cx: &mut Context<'_>,
) -> Poll<Result<usize, WriteError>> {
    let chunks = within(held, limit);
    let written = ready!(pin!(stream.write_chunks(&mut held.make_contiguous()[..chunks])).poll(cx))?;
    held.drain(..written.chunks);
    Poll::Ready(Ok(written.bytes))
}

/// How many chunks from the front hold no more than `limit` bytes; a longer first one is cut.
fn within(held: &mut VecDeque<Bytes>, limit: usize) -> usize {
    let mut sum = 0;
    let fits = |chunk: &&Bytes| {
        sum += chunk.len();
        sum <= limit
    };
    let count = held.iter().take_while(fits).count();
    if count > 0 {
        return count;
    }
    let Some(first) = held.front_mut() else { return 0 };
    let head = first.split_to(limit);
    held.push_front(head);
    1
}

/// Further streams whose channel's reader has not asked for them yet, by the channel's first stream and the stripe's number.
#[derive(Debug, Default)]
pub(crate) struct Waiting(Watched<BTreeMap<(u64, u64), RecvStream>>);

impl Waiting {
    /// Keeps a stream for its channel's reader, or stops it if [`MAX_WAITING`] wait already.
    pub(crate) fn put(&self, first: u64, index: u64, stream: RecvStream) {
        self.0.change(|waiting| {
            if waiting.len() < MAX_WAITING {
                waiting.insert((first, index), stream);
            }
        });
    }

    /// Waits for a stream, as long as the connection lasts: an outage may hold it up for minutes.
    async fn take(&self, first: u64, index: u64, connection: &Connection) -> Option<RecvStream> {
        tokio::select! {
            biased;
            stream = self.0.wait_to_take(|waiting| waiting.remove(&(first, index))) => Some(stream),
            _ = connection.closed() => None,
        }
    }

    /// Forgets what waits for a channel that is over.
    fn forget(&self, first: u64) {
        self.0.read().retain(|(of, _), _| *of != first);
    }
}

/// The receiving side of a channel.
pub(crate) struct Incoming<'a> {
    waiting: &'a Waiting,
    connection: &'a Connection,
    first: u64,
    streams: BTreeMap<u8, Tail>,
    current: u8,
    left: usize,
}

/// A stream, and what was taken from it beyond the segment that is being read: a few packets.
struct Tail {
    stream: RecvStream,
    taken: VecDeque<Bytes>,
}

impl<'a> Incoming<'a> {
    pub(crate) fn new(waiting: &'a Waiting, connection: &'a Connection, stream: RecvStream) -> Self {
        let first = VarInt::from(stream.id()).into_inner();
        let streams = BTreeMap::from([(0, Tail { stream, taken: VecDeque::new() })]);
        Incoming { waiting, connection, first, streams, current: 0, left: SEGMENT }
    }

    /// The channel's next bytes, at least one and at most `limit`; `None` once it has ended.
    pub(crate) async fn next(&mut self, limit: usize) -> Result<Option<Bytes>, Gone> {
        loop {
            if self.left == 0 {
                let Some(mut named) = self.take(1).await? else { return Ok(None) };
                self.turn_to(named.get_u8()).await?;
                continue;
            }
            let Some(bytes) = self.take(self.left.min(limit)).await? else { return Ok(None) };
            self.left -= bytes.len();
            return Ok(Some(bytes));
        }
    }

    /// Whether [`Incoming::next`] has bytes without waiting for the network.
    pub(crate) fn is_ready(&self) -> bool {
        self.streams.get(&self.current).is_some_and(|tail| !tail.taken.is_empty())
    }

    /// At least one and at most `limit` bytes of the current stream; `None` where it ended, or was reset: a peer that gives
    /// a channel up may begin it anew on another stream.
    async fn take(&mut self, limit: usize) -> Result<Option<Bytes>, Gone> {
        let Some(tail) = self.streams.get_mut(&self.current) else { return Ok(None) };
        loop {
            if let Some(chunk) = tail.taken.front_mut() {
                let bytes = chunk.split_to(chunk.len().min(limit));
                if chunk.is_empty() {
                    tail.taken.pop_front();
                }
                return Ok(Some(bytes));
            }
            let mut chunks = [const { Bytes::new() }; CHUNKS];
            match tail.stream.read_chunks(&mut chunks).await {
                Ok(Some(count)) => tail.taken.extend(chunks.into_iter().take(count).filter(|chunk| !chunk.is_empty())),
                Ok(None) | Err(ReadError::Reset(_) | ReadError::ConnectionLost(_)) => return Ok(None),
                Err(error) => return Err(Gone::Lost(error.to_string())),
            }
        }
    }

    async fn turn_to(&mut self, index: u8) -> Result<(), Gone> {
        if usize::from(index) >= MAX_STRIPES {
            return Err(Gone::Misbehaved(format!("a channel on stripe {index} of {MAX_STRIPES}")));
        }
        if !self.streams.contains_key(&index)
            && let Some(stream) = self.waiting.take(self.first, index.into(), self.connection).await
        {
            self.streams.insert(index, Tail { stream, taken: VecDeque::new() });
        }
        (self.current, self.left) = (index, SEGMENT);
        Ok(())
    }

    /// Tells the peer that nobody reads the channel.
    pub(crate) fn stop(&mut self, code: VarInt) {
        for tail in self.streams.values_mut() {
            let _ = tail.stream.stop(code); // an error says that the stream is over already
        }
    }
}

impl Drop for Incoming<'_> {
    fn drop(&mut self) {
        self.waiting.forget(self.first);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_ends_with_its_segment() {
        let mut held: VecDeque<Bytes> = [10, 0, 20, 30].map(|len| Bytes::from(vec![len; usize::from(len)])).into();
        assert_eq!(within(&mut held, 100), 4);
        assert_eq!(within(&mut held, 30), 3);
        assert_eq!(within(&mut held, 29), 2);
        assert_eq!(within(&mut held, 7), 1);
        assert_eq!(held.iter().map(Bytes::len).collect::<Vec<_>>(), [7, 3, 0, 20, 30]);
        assert_eq!(within(&mut VecDeque::new(), 7), 0);
    }

    #[test]
    fn streams_are_as_many_as_twice_the_congestion_window_needs() {
        let window = u64::from(STREAM_WINDOW);
        assert_eq!([0, window / 2 - 1, window / 2, window, u64::MAX].map(wanted), [1, 1, 2, 3, MAX_STRIPES]);
    }
    #[test]
    fn all_channels_together_have_so_many_further_streams_and_none_loses_what_it_has() {
        assert_eq!(allowed(4, 0, 0), 4);
        assert_eq!(allowed(4, 0, MAX_FURTHER - 2), 3);
        assert_eq!(allowed(4, 0, MAX_FURTHER), 1);
        assert_eq!(allowed(4, 2, MAX_FURTHER), 3);
        assert_eq!(allowed(1, 2, 3), 1, "the line has become shorter");
    }
}
