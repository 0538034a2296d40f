//! The one task that sends to a peer: it owns every stream's sending half, and decides what goes next.

use std::{
    collections::{BTreeMap, VecDeque},
    future::{Future, poll_fn},
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use byway_proto::schedule::{ChannelKey, Class};
use quinn::{Connection, SendStream, WriteError};
use tokio::time::{self, Instant, Sleep};

use super::{
    Link,
    datagrams::{self, Outgoing},
    outbox::{End, Next, Outbox, Outlet, STREAMS, Turn},
    patience::{Patience, Shown, Verdict},
    stripe::{self, Stripes},
};
use crate::{
    gone::Gone,
    net::{BoxFuture, mux::Mux},
    quic::endpoint::SEND_WINDOW,
    stream::received,
};

/// Turns before the writer lets other tasks run.
const TURNS: usize = 64;

/// How often the window of unacknowledged bytes is fitted to the path.
const FIT_INTERVAL: Duration = Duration::from_millis(10);

/// Bytes that may always sit inside QUIC: less would leave a fast line idle between two turns.
const MIN_WINDOW: u64 = 256 << 10;

/// What may sit inside QUIC while something urgent waits behind bulk: control and interactive queues are short.
const URGENT_WINDOW: u64 = 64 << 20;

/// A bulk lane that has no more than this is no bulk now: its bytes go past what others have inside QUIC.
const SPARSE: usize = 4 << 10;

/// How often a lane's bytes may do so: one that always has a little is bulk too, and its weight is what it gets.
const SPARSE_INTERVAL: Duration = Duration::from_millis(10);

/// Sends what the link's outbox holds until the connection or the outbox is closed.
/// `evict_after` is how long the peer may take nothing of it.
pub(crate) async fn run(link: Arc<Link>, mux: Arc<Mux>, evict_after: Option<Duration>) {
    let connection = link.connection.clone();
    let mut writer = Writer {
        connection: connection.clone(),
        outbox: Arc::clone(&link.outbox),
        link,
        mux,
        lanes: BTreeMap::new(),
        blocked: Vec::new(),
        scratch: VecDeque::new(),
        window: SEND_WINDOW,
        fitted: Instant::now(),
        stripes: 1,
        further: 0,
        timer: None,
        patience: Patience::new(evict_after),
        moved: false,
    };
    let mut closed = pin!(connection.closed());
    poll_fn(|cx| match writer.poll(cx) {
        Poll::Ready(()) => Poll::Ready(()),
        Poll::Pending => closed.as_mut().poll(cx).map(drop),
    })
    .await;
    writer.outbox.close();
}

struct Writer {
    connection: Connection,
    outbox: Arc<Outbox>,
    link: Arc<Link>,
    mux: Arc<Mux>,
    /// Each by itself in memory: a node of the map has room for eleven.
    lanes: BTreeMap<ChannelKey, Box<Lane>>,
    /// Lanes whose turn has not ended because QUIC took no more, in the order of their turns: out of order, a lane would
    /// get its next turn while another still waits with its last.
    blocked: Vec<ChannelKey>,
    scratch: VecDeque<Bytes>,
    window: u64,
    fitted: Instant,
    /// Streams that a channel of bulk may take.
    stripes: usize,
    /// Streams beyond the first that all channels have.
    further: usize,
    /// Ends when there is something to do that nobody else wakes this task for.
    timer: Option<Pin<Box<Sleep>>>,
    patience: Patience,
    /// QUIC has taken something since the peer's patience was looked at.
    moved: bool,
}

/// Where a lane leads, and what the lane's last turn left unsent because the stream could take no more.
struct Lane {
    class: Class,
    stream: Stream,
    held: VecDeque<Bytes>,
    end: Option<End>,
    /// This turn is all that the lane has, it is little, and none went past the others a moment ago.
    is_sparse: bool,
    /// When its bytes last went past what others have inside QUIC.
    passed: Option<Instant>,
}

enum Stream {
    /// A byte stream, or the control stream.
    Single(SendStream),
    Channel(Stripes),
    Datagrams(Outgoing),
}

/// How far a lane got.
enum Progress {
    /// Everything of this turn was sent.
    Sent,
    /// QUIC takes no more now.
    Blocked,
    /// The stream is over.
    Ended,
}

impl Writer {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.fit_window();
        for key in std::mem::take(&mut self.blocked) {
            self.write(key, cx);
        }
        for _ in 0..TURNS {
            if self.outbox.is_closed() {
                return Poll::Ready(());
            }
            match self.outbox.next(self.mux.now(), &mut self.scratch, cx.waker()) {
                Next::Turn(turn) => {
                    let key = turn.key;
                    self.take(turn);
                    self.write(key, cx);
                }
                Next::Wait(until) => {
                    let look = match self.look() {
                        Verdict::Over => {
                            self.link.close(Gone::Unread);
                            return Poll::Ready(());
                        }
                        Verdict::Look(at) => Some(at),
                        Verdict::Ask(at) => {
                            datagrams::ask(&self.connection);
                            Some(at)
                        }
                        Verdict::Fine => None,
                    };
                    let rate = until.map(|until| self.mux.clock.at(until));
                    if !rate.into_iter().chain(look).min().is_some_and(|until| self.is_past(until, cx)) {
                        return Poll::Pending;
                    }
                }
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Whether the peer takes what waits for it.
    fn look(&mut self) -> Verdict {
        let moved = std::mem::take(&mut self.moved);
        // A byte stream may be paused as long as its user likes.
        if self.blocked.iter().all(|key| key.0 == STREAMS) {
            self.patience.renew();
            return Verdict::Fine;
        }
        if moved {
            return self.patience.moved(Instant::now());
        }
        let frames = self.connection.stats().frame_rx;
        let shown = Shown { reads: frames.max_data + frames.max_stream_data, hears: frames.acks };
        self.patience.look(Instant::now(), shown)
    }

    /// Whether a moment has come; if not, this task is woken then.
    fn is_past(&mut self, until: Instant, cx: &mut Context<'_>) -> bool {
        let timer = self.timer.get_or_insert_with(|| Box::pin(time::sleep_until(until)));
        if timer.deadline() != until {
            timer.as_mut().reset(until);
        }
        timer.as_mut().poll(cx).is_ready()
    }

    /// Takes a lane's turn into the writer's own hands.
    fn take(&mut self, turn: Turn) {
        if let Some(outlet) = turn.stream {
            let stream = match outlet {
                Outlet::Open(stream) => Stream::Single(stream),
                Outlet::Uni(header) => {
                    Stream::Channel(Stripes::new(self.connection.clone(), header, priority(turn.class)))
                }
                Outlet::Datagrams(tally) => {
                    Stream::Datagrams(Outgoing::new(self.connection.clone(), Arc::clone(&self.mux), tally))
                }
            };
            let lane =
                Lane { class: turn.class, stream, held: VecDeque::new(), end: None, is_sparse: false, passed: None };
            self.lanes.insert(turn.key, Box::new(lane));
        }
        if let Some(lane) = self.lanes.get_mut(&turn.key) {
            lane.held.append(&mut self.scratch);
            lane.end = turn.end;
            let is_little = turn.emptied && lane.held.iter().map(Bytes::len).sum::<usize>() <= SPARSE;
            lane.is_sparse = is_little && lane.passed.is_none_or(|at| at.elapsed() >= SPARSE_INTERVAL);
        }
        self.scratch.clear();
    }

    /// Gives QUIC what a lane holds, as far as QUIC takes it.
    fn write(&mut self, key: ChannelKey, cx: &mut Context<'_>) {
        let Some(lane) = self.lanes.get_mut(&key) else {
            self.outbox.remove(key);
            return;
        };
        if let Some(End::Reset(_)) = self.outbox.end_of(key) {
            lane.held.clear(); // a reset does not wait for flow control
            lane.end = self.outbox.end_of(key);
        }
        let is_datagrams = matches!(lane.stream, Stream::Datagrams(_));
        let waits =
            lane.is_bulk() && if is_datagrams { self.is_window_awaited(cx) } else { self.are_datagrams_awaited() };
        if waits {
            return self.blocked.push(key);
        }
        let Some(lane) = self.lanes.get_mut(&key) else { return };
        let had = lane.stream.further();
        let stripes = if lane.class == Class::Bulk { stripe::allowed(self.stripes, had, self.further) } else { 1 };
        let waiting = lane.held.len();
        let front = lane.held.front().map(Bytes::len);
        let mut progress = lane.poll(stripes, cx);
        if matches!(progress, Progress::Blocked) && !is_datagrams && !lane.is_bulk() {
            // What is urgent, or little, must not wait for bulk that is inside QUIC already, least of all where the line has
            // just become another one; and bulk must not slip in behind it.
            lane.passed = Some(Instant::now());
            self.connection.set_send_window(URGENT_WINDOW);
            progress = lane.poll(stripes, cx);
            self.connection.set_send_window(self.window);
        }
        self.further = (self.further + lane.stream.further()).saturating_sub(had);
        self.moved |= lane.held.len() != waiting || lane.held.front().map(Bytes::len) != front;
        match progress {
            Progress::Sent => self.outbox.done(key),
            Progress::Blocked => self.blocked.push(key),
            Progress::Ended => {
                if let Some(lane) = self.lanes.remove(&key) {
                    self.further = self.further.saturating_sub(lane.stream.further());
                    if self.outbox.is_draining() {
                        self.link.leaving().extend(lane.stream.received());
                    }
                }
                self.outbox.remove(key);
            }
        }
    }

    /// Whether bulk datagrams, whose turn was before, wait for room inside QUIC; it comes soon, for QUIC sends them first.
    fn are_datagrams_awaited(&self) -> bool {
        let waits = |lane: &Lane| lane.is_bulk() && matches!(lane.stream, Stream::Datagrams(_));
        self.blocked.iter().any(|key| self.lanes.get(key).is_some_and(|lane| waits(lane)))
    }

    /// Whether a bulk stream waits for room inside QUIC: it had its turn before, and bulk datagrams, for which QUIC has room
    /// of its own, would else take the whole line. A stream that waits for its reader does not count.
    fn is_window_awaited(&mut self, cx: &mut Context<'_>) -> bool {
        let waits = |lane: &Lane| lane.is_bulk() && !matches!(lane.stream, Stream::Datagrams(_));
        let waiting: Vec<_> =
            self.blocked.iter().filter(|key| self.lanes.get(key).is_some_and(|lane| waits(lane))).collect();
        if waiting.is_empty() {
            return false;
        }
        self.connection.set_send_window(URGENT_WINDOW);
        let mut lanes = waiting.into_iter();
        let awaited = lanes.any(|key| self.lanes.get_mut(key).is_some_and(|lane| lane.stream.has_credit(cx)));
        self.connection.set_send_window(self.window);
        awaited
    }

    /// Lets as much sit inside QUIC as fills the line, and little enough that the schedule decides what goes next.
    fn fit_window(&mut self) {
        let now = Instant::now();
        if now - self.fitted < FIT_INTERVAL {
            return;
        }
        self.fitted = now;
        self.stripes = stripe::wanted(self.link.track.line.window());
        let window = self.link.track.line.send_window().clamp(MIN_WINDOW, URGENT_WINDOW - 1);
        if window.abs_diff(self.window) > self.window / 8 {
            self.window = window;
            self.connection.set_send_window(window);
        }
    }
}

impl Lane {
    /// Whether it has so much to send that it has to wait for its turn inside QUIC, too.
    fn is_bulk(&self) -> bool {
        self.class == Class::Bulk && !self.is_sparse
    }

    fn poll(&mut self, stripes: usize, cx: &mut Context<'_>) -> Progress {
        while !self.held.is_empty() {
            match self.stream.poll_write(&mut self.held, stripes, cx) {
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(_)) => return Progress::Ended, // the peer stopped the stream, or the connection is over
                Poll::Pending => return Progress::Blocked,
            }
        }
        let Some(end) = self.end else { return Progress::Sent };
        self.stream.end(end);
        Progress::Ended
    }
}

impl Stream {
    /// Writes from the front of `held`; how many bytes of it were taken.
    fn poll_write(
        &mut self,
        held: &mut VecDeque<Bytes>,
        stripes: usize,
        cx: &mut Context<'_>,
    ) -> Poll<Result<usize, WriteError>> {
        match self {
            Stream::Single(stream) => stripe::write(stream, held, usize::MAX, cx),
            Stream::Channel(channel) => channel.poll_write(held, stripes, cx),
            Stream::Datagrams(datagrams) => datagrams.poll_write(held, cx),
        }
    }

    /// Whether the peer lets it send more now.
    fn has_credit(&mut self, cx: &mut Context<'_>) -> bool {
        let stream = match self {
            Stream::Single(stream) => Some(stream),
            Stream::Channel(channel) => channel.current(),
            Stream::Datagrams(_) => None,
        };
        stream.is_some_and(|stream| matches!(pin!(stream.write(&[])).poll(cx), Poll::Ready(Ok(_))))
    }

    /// Streams beyond the first.
    fn further(&self) -> usize {
        match self {
            Stream::Channel(channel) => channel.further(),
            Stream::Single(_) | Stream::Datagrams(_) => 0,
        }
    }

    /// What tells whether the peer has received what was sent, of each stream.
    fn received(mut self) -> Vec<BoxFuture<'static, bool>> {
        let streams = match &mut self {
            Stream::Single(stream) => std::slice::from_mut(stream),
            Stream::Channel(channel) => channel.streams(),
            Stream::Datagrams(_) => &mut [],
        };
        streams.iter().map(|stream| received(stream)).collect()
    }

    fn end(&mut self, end: End) {
        let streams = match self {
            Stream::Single(stream) => std::slice::from_mut(stream),
            Stream::Channel(channel) => channel.streams(),
            Stream::Datagrams(_) => &mut [],
        };
        for stream in streams {
            // An error says that the stream is over already.
            let _ = match end {
                End::Finish => stream.finish(),
                End::Reset(code) => stream.reset(code),
            };
        }
    }
}

/// QUIC's priority of a class's streams.
pub(crate) fn priority(class: Class) -> i32 {
    match class {
        Class::Control => 2,
        Class::Interactive => 1,
        Class::Bulk => 0,
    }
}
