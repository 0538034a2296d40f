//! What a run sends, and how the receiver knows that it is all there.

use std::{
    sync::OnceLock,
    time::{Duration, Instant},
};

use bytes::{BufMut, Bytes, BytesMut};
use cpu_time::ProcessTime;

/// One part in this many is sent before the clock starts, so that windows are open.
const WARM_UP: u64 = 16;

/// Messages of a run that carry the time at which they were made: reading the clock for each would cost too much.
const STAMPED: u64 = 1 << 16;

/// What a run does.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Work {
    /// One side sends, the other receives.
    Send(Load),
    /// A message of 64 bytes to and fro, this many times.
    PingPong(usize),
}

/// Messages of one size.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Load {
    pub(crate) size: usize,
    pub(crate) count: u64,
    /// The content does not matter: what arrives is counted, not checked.
    pub(crate) bulk: bool,
}

impl Load {
    pub(crate) fn messages(size: usize, count: u64) -> Self {
        Load { size, count: count + count / WARM_UP, bulk: false }
    }

    pub(crate) fn bulk(bytes: u64) -> Self {
        let size = 64 << 10;
        let count = bytes / size as u64;
        Load { size, count: count + count / WARM_UP, bulk: true }
    }

    /// Messages that are sent before the clock starts.
    pub(crate) fn warm_up(self) -> u64 {
        self.count / (WARM_UP + 1)
    }

    /// Messages that are sent while it runs.
    pub(crate) fn measured(self) -> u64 {
        self.count - self.warm_up()
    }

    /// A message by itself.
    pub(crate) fn message(self, number: u64) -> Bytes {
        let mut message = BytesMut::with_capacity(self.size);
        self.put(number, &mut message);
        message.freeze()
    }

    /// Appends a message to `out`: its number, its time if it is one of the stamped, and zeros.
    pub(crate) fn put(self, number: u64, out: &mut BytesMut) {
        out.put_u64_le(number);
        let stamped = number.is_multiple_of((self.count / STAMPED).max(1));
        out.put_u64_le(if stamped { nanos() } else { 0 });
        out.put_bytes(0, self.size - 16);
    }
}

/// A moment, in the time of the wall and of the process.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mark {
    wall: Instant,
    cpu: ProcessTime,
}

impl Mark {
    pub(crate) fn now() -> Self {
        Mark { wall: Instant::now(), cpu: ProcessTime::now() }
    }

    /// Time of the wall and of the process since then.
    pub(crate) fn elapsed(self) -> (Duration, Duration) {
        (self.wall.elapsed(), self.cpu.elapsed())
    }
}

/// Checks that the messages of a load arrive complete and in order, and takes the time.
#[derive(Debug)]
pub(crate) struct Check {
    load: Load,
    next: u64,
    bytes: u64,
    /// When the warm-up had arrived.
    pub(crate) start: Option<Mark>,
    pub(crate) latencies: Vec<Duration>,
}

impl Check {
    pub(crate) fn new(load: Load) -> Self {
        Check { load, next: 0, bytes: 0, start: None, latencies: Vec::new() }
    }

    /// Whether everything has arrived.
    pub(crate) fn is_done(&self) -> bool {
        self.next >= self.load.count
    }

    /// Takes one message.
    pub(crate) fn message(&mut self, message: &[u8]) {
        assert_eq!(message.len(), self.load.size, "message {} has another length", self.next);
        let word = |at: usize| u64::from_le_bytes(message[at..at + 8].try_into().expect("eight bytes"));
        assert_eq!(word(0), self.next, "a message was lost, doubled or reordered");
        if word(8) != 0 && self.start.is_some() {
            let latency = nanos() - word(8);
            self.latencies.push(Duration::from_nanos(latency));
        }
        self.count();
    }

    /// Takes bytes of a bulk load.
    pub(crate) fn bulk(&mut self, len: usize) {
        self.bytes += len as u64;
        while !self.is_done() && self.bytes >= (self.next + 1) * self.load.size as u64 {
            self.count();
        }
    }

    fn count(&mut self) {
        self.next += 1;
        if self.next == self.load.warm_up() {
            self.start = Some(Mark::now());
        }
    }
}

/// Nanoseconds since the first call, and never 0.
fn nanos() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    1 + START.get_or_init(Instant::now).elapsed().as_nanos() as u64
}
