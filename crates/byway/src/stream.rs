//! A byte stream to a peer: ordered, reliable, each direction ended by itself.

use std::{
    fmt,
    future::Future,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use byway_proto::schedule::ChannelKey;
use quinn::{RecvStream, SendStream, VarInt};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{self, Sleep},
};

use crate::{
    link::{
        outbox::{End, Outbox, Pushed},
        pace::Pace,
        tally::Tally,
    },
    net::BoxFuture,
};

/// Bytes of one stream that wait for the link's writer.
pub(crate) const STREAM_QUEUE: usize = 256 << 10;

/// The most bytes that one write takes.
const MAX_WRITE: usize = 64 << 10;

/// The code with which a half that is dropped before its end tells the other side so.
const ABANDONED: u32 = 1;

/// A byte stream to a peer.
///
/// Writing waits for the link, reading for the peer. `shutdown` ends the writing half: the peer reads an end of file
/// after all bytes. A stream that is dropped before that reads as a reset at the peer.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let on_loopback = || Config::new(Identity::generate()).listen(([127, 0, 0, 1], 0).into());
/// use byway::{Config, Identity, Node, Protocol};
/// use tokio::io::{AsyncReadExt, AsyncWriteExt};
///
/// let (a, b) = (Node::bind(on_loopback()).await?, Node::bind(on_loopback()).await?);
/// let mut theirs = Protocol::new("copy", 1..=1);
/// let mut opened = theirs.streams();
/// let (mut peers, _theirs) = (a.register(Protocol::new("copy", 1..=1))?, b.register(theirs)?);
/// let peer = a.dial(b.ticket()).await?;
/// peers.next().await;
/// let mut stream = peers.open(peer).await?;
/// stream.write_all(b"all of it").await?;
/// stream.shutdown().await?;
/// let (_, mut there) = opened.accept().await.ok_or("the node is closed")?;
/// let mut all = Vec::new();
/// there.read_to_end(&mut all).await?;
/// assert_eq!(all, b"all of it");
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Stream {
    read: ReadHalf,
    write: WriteHalf,
}

/// The reading half of a [`Stream`].
pub struct ReadHalf {
    stream: RecvStream,
    pace: Pace,
    /// Until the peer's rate lets more be read.
    waiting: Option<Pin<Box<Sleep>>>,
    tally: Arc<Tally>,
}

/// The writing half of a [`Stream`].
pub struct WriteHalf {
    outbox: Arc<Outbox>,
    key: ChannelKey,
    waiting: Option<BoxFuture<'static, ()>>,
    ended: bool,
    /// Until it is known: whether the peer has received everything.
    received: Result<bool, BoxFuture<'static, bool>>,
}

impl Stream {
    pub(crate) fn new(
        (outbox, key): (Arc<Outbox>, ChannelKey),
        read: ReadHalf,
        received: BoxFuture<'static, bool>,
    ) -> Self {
        let write = WriteHalf { outbox, key, waiting: None, ended: false, received: Err(received) };
        Stream { read, write }
    }

    /// The two halves, for two tasks.
    pub fn into_split(self) -> (ReadHalf, WriteHalf) {
        (self.read, self.write)
    }
}

impl ReadHalf {
    pub(crate) fn new(stream: RecvStream, pace: Pace, tally: Arc<Tally>) -> Self {
        ReadHalf { stream, pace, waiting: None, tally }
    }

    /// Tells the peer to stop writing; its next write fails.
    pub fn stop(&mut self, code: u32) {
        let _ = self.stream.stop(VarInt::from_u32(code)); // an error says that it has ended already
    }

    /// Waits until the peer resets its writing half; never returns if the peer ends it well.
    pub async fn reset(&mut self) {
        if !matches!(self.stream.received_reset().await, Ok(Some(_)) | Err(_)) {
            std::future::pending::<()>().await;
        }
    }
}

impl WriteHalf {
    /// Ends the half at once: the peer reads a reset, and what is queued is lost.
    pub fn reset(&mut self, code: u32) {
        self.ended = true;
        self.outbox.end(self.key, End::Reset(VarInt::from_u32(code)));
    }

    /// Waits until the peer has received all bytes and the end that `shutdown` set, and then says `true`; `false` if that
    /// cannot happen any more. Closing the node before loses what the peer has not received.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let on_loopback = || Config::new(Identity::generate()).listen(([127, 0, 0, 1], 0).into());
    /// # use byway::{Config, Identity, Node, Protocol};
    /// # use tokio::io::AsyncWriteExt;
    /// # let (a, b) = (Node::bind(on_loopback()).await?, Node::bind(on_loopback()).await?);
    /// # let mut theirs = Protocol::new("copy", 1..=1);
    /// # let _opened = theirs.streams();
    /// # let (mut peers, _theirs) = (a.register(Protocol::new("copy", 1..=1))?, b.register(theirs)?);
    /// # let peer = a.dial(b.ticket()).await?;
    /// # peers.next().await;
    /// let (_read, mut write) = peers.open(peer).await?.into_split();
    /// write.write_all(b"all of it").await?;
    /// write.shutdown().await?;
    /// assert!(write.acknowledged().await, "it has arrived");
    /// a.close().await;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn acknowledged(&mut self) -> bool {
        if let Err(received) = &mut self.received {
            self.received = Ok(received.await);
        }
        matches!(self.received, Ok(true))
    }

    fn poll_push(&mut self, cx: &mut Context<'_>, bytes: &Bytes) -> Poll<io::Result<usize>> {
        loop {
            if let Some(waiting) = &mut self.waiting {
                if waiting.as_mut().poll(cx).is_pending() {
                    return Poll::Pending;
                }
                self.waiting = None;
            }
            // Listening begins before trying, so that no notice is missed between the two.
            let Some(space) = self.outbox.space(self.key) else { return Poll::Ready(Err(gone())) };
            let space = space.notified_owned();
            match self.outbox.push_raw(self.key, bytes) {
                Pushed::Queued => return Poll::Ready(Ok(bytes.len())),
                Pushed::Closed | Pushed::TooLarge(_) => return Poll::Ready(Err(gone())),
                Pushed::Full => self.waiting = Some(Box::pin(space)),
            }
        }
    }
}

/// Tells whether the peer has received all of a stream, once that is known.
pub(crate) fn received(stream: &SendStream) -> BoxFuture<'static, bool> {
    let stopped = stream.stopped();
    Box::pin(async move { matches!(stopped.await, Ok(None)) })
}

fn gone() -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, "the peer stopped reading, or the connection is gone")
}

impl AsyncRead for ReadHalf {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let half = &mut *self;
        while let Some(until) = half.pace.until() {
            let waiting = half.waiting.insert(Box::pin(time::sleep_until(until)));
            ready!(waiting.as_mut().poll(cx));
        }
        half.waiting = None;
        if !half.pace.is_limited() {
            let before = buf.filled().len();
            let read = Pin::new(&mut half.stream).poll_read(cx, buf);
            if read.is_ready() {
                half.tally.received(0, buf.filled().len() - before);
            }
            return read;
        }
        // No more at once than a channel's reader takes, for both have the peer's rate in turn.
        let mut some = ReadBuf::new(buf.initialize_unfilled_to(buf.remaining().min(half.pace.piece())));
        ready!(Pin::new(&mut half.stream).poll_read(cx, &mut some))?;
        let count = some.filled().len();
        buf.advance(count);
        half.pace.take(count);
        half.tally.received(0, count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for WriteHalf {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.ended {
            return Poll::Ready(Err(gone()));
        }
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        // While waiting, the bytes are copied once per attempt; attempts are as rare as the queue's drains.
        let bytes = Bytes::copy_from_slice(&buf[..buf.len().min(MAX_WRITE)]);
        self.poll_push(cx, &bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(())) // the writer sends what is queued without being asked
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !std::mem::replace(&mut self.ended, true) {
            self.outbox.end(self.key, End::Finish);
        }
        Poll::Ready(Ok(()))
    }
}

impl Drop for WriteHalf {
    fn drop(&mut self) {
        if !self.ended {
            self.reset(ABANDONED);
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.read).poll_read(cx, buf)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.write).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.write).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.write).poll_shutdown(cx)
    }
}

impl fmt::Debug for ReadHalf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReadHalf").field("stream", &self.stream.id()).finish()
    }
}

impl fmt::Debug for WriteHalf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WriteHalf").field("lane", &self.key).finish_non_exhaustive()
    }
}
