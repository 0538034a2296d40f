//! A cable with delay, rate, loss and jitter, for kernels that have no netem: two TAP devices, and this process between them.
//!
//! The process makes both devices in its own namespace; they are moved from there, and stay its own. It ends with the
//! namespace, as every process of the lab does.

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    path::Path,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use serde_json::json;
use tun_rs::{DeviceBuilder, Layer, SyncDevice};

use crate::{
    Stop,
    lab::{network::Namespace, process::Service, traffic},
    number,
};

/// The devices, as they are called until they are moved.
pub(crate) const ENDS: [&str; 2] = ["wire0", "wire1"];
/// What makes TAP devices.
const TUN: &str = "/dev/net/tun";
/// Room for a frame: an Ethernet header, a VLAN tag, and the kernel's usual 1,500 bytes; larger ones cannot be on the line.
const FRAME: usize = 1_518;
/// The frames in flight in one direction; 1 Gbit/s of whole frames over 500 ms. A frame beyond them is dropped.
const FRAMES: usize = 1 << 16;
/// The frames that wait in the kernel for this process: what 1 Gbit/s brings while it waits a tenth of a second for a processor.
const KERNEL_QUEUE: u32 = 10_000;
/// How long a device that is being moved is left alone: the kernel answers with errors meanwhile.
const MOVING: Duration = Duration::from_millis(20);
/// How long the process may take to make its devices.
const START_LIMIT: Duration = Duration::from_secs(5);

/// What both directions do to frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Line {
    /// From end to end.
    pub(crate) delay: Duration,
    pub(crate) mbit_s: u64,
    /// How long a frame may wait for the rate; one that would wait longer is dropped.
    pub(crate) queue: Duration,
    /// Frames of a million that are lost behind the queue, each by itself.
    pub(crate) loss: u64,
    /// The most that is added to the delay, each value equally likely; a frame may overtake another.
    pub(crate) jitter: Duration,
    /// Decides about loss and jitter.
    pub(crate) seed: u64,
}

impl Line {
    fn words(&self) -> [String; 6] {
        let Line { delay, mbit_s, queue, loss, jitter, seed } = *self;
        let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        [micros(delay), mbit_s, micros(queue), loss, micros(jitter), seed].map(|number| number.to_string())
    }

    fn parse(words: &[String]) -> Result<Self, Stop> {
        let at = |at, name| number(name, words.get(at));
        let micros = |place, name| at(place, name).map(Duration::from_micros);
        Ok(Line {
            delay: micros(0, "the delay")?,
            mbit_s: at(1, "the rate")?.max(1),
            queue: micros(2, "the queue")?,
            loss: at(3, "the loss")?,
            jitter: micros(4, "the jitter")?,
            seed: at(5, "the seed")?,
        })
    }
}

/// Starts the wire in `machine`, where both of its ends then are.
pub(crate) fn start(machine: &Namespace, line: &Line, dir: &Path) -> Result<Service, Stop> {
    if !Path::new(TUN).exists() {
        return Err(Stop::Skipped(format!("no {TUN} here, so no TAP device: the kernel or the container lacks it")));
    }
    let words = line.words();
    let words: Vec<&str> = ["wire"].into_iter().chain(words.iter().map(String::as_str)).collect();
    let mut service = traffic::start(machine, &words, "wire", dir)?;
    service.event(START_LIMIT, "ready", |_| true)?;
    Ok(service)
}

/// The role: carries frames until it is ended.
pub(crate) fn run(args: &[String]) -> Result<(), Stop> {
    let line = Line::parse(args)?;
    let tap = |name: &str| {
        let device = DeviceBuilder::new().name(name).layer(Layer::L2).enable(false).tx_queue_len(KERNEL_QUEUE);
        let device = device.build_sync().map(Arc::new);
        device.map_err(|error| Stop::Failed(format!("cannot make the TAP device {name} with {TUN}: {error}")))
    };
    let ends = [tap(ENDS[0])?, tap(ENDS[1])?];
    let mut writers = Vec::new();
    for (from, seed) in [(0, line.seed), (1, !line.seed)] {
        let flight = Arc::new(Flight::default());
        let (near, far) = (Arc::clone(&ends[from]), Arc::clone(&ends[1 - from]));
        let (fate, sender) = (Fate::new(Line { seed, ..line }, Instant::now()), Arc::clone(&flight));
        thread::spawn(move || read(&near, fate, &sender));
        writers.push(thread::spawn(move || write(&far, &flight)));
    }
    traffic::say(&json!({"event": "ready"}));
    for writer in writers {
        let _ = writer.join();
    }
    Err(Stop::Failed("the wire's threads have ended".into()))
}

/// What becomes of the frames of one direction.
#[derive(Debug)]
struct Fate {
    line: Line,
    /// When the last admitted frame has left the queue.
    idle_at: Instant,
    random: u64,
}

impl Fate {
    fn new(line: Line, now: Instant) -> Self {
        Fate { line, idle_at: now, random: line.seed }
    }

    /// When a frame of `length` bytes that comes at `now` is at the far end; `None` if it is dropped or lost.
    fn admit(&mut self, now: Instant, length: usize) -> Option<Instant> {
        let begins = self.idle_at.max(now);
        if begins - now > self.line.queue {
            return None;
        }
        self.idle_at = begins + Duration::from_nanos(length as u64 * 8_000 / self.line.mbit_s);
        if self.below(1_000_000) < self.line.loss {
            return None;
        }
        let jitter = u64::try_from(self.line.jitter.as_nanos()).unwrap_or(u64::MAX);
        Some(self.idle_at + self.line.delay + Duration::from_nanos(self.below(jitter.saturating_add(1))))
    }

    /// A number below `limit`, by SplitMix64; the bias is of no account for limits as small as these.
    fn below(&mut self, limit: u64) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.random ^ (self.random >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % limit.max(1)
    }
}

/// A frame under way; the number keeps those of the same instant in order.
type Frame = Reverse<(Instant, u64, Box<[u8]>)>;

/// The frames of one direction.
#[derive(Debug, Default)]
struct Flight {
    /// At most [`FRAMES`].
    frames: Mutex<BinaryHeap<Frame>>,
    sooner: Condvar,
}

impl Flight {
    fn frames(&self) -> MutexGuard<'_, BinaryHeap<Frame>> {
        self.frames.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send(&self, at: Instant, number: u64, frame: &[u8]) {
        let mut frames = self.frames();
        if frames.len() >= FRAMES {
            return;
        }
        let is_next = frames.peek().is_none_or(|Reverse((next, ..))| at < *next);
        frames.push(Reverse((at, number, frame.into())));
        drop(frames);
        if is_next {
            self.sooner.notify_one();
        }
    }

    /// Waits until a frame is at the far end.
    fn arrival(&self) -> Box<[u8]> {
        let mut frames = self.frames();
        loop {
            let wait = frames.peek().map(|Reverse((at, ..))| at.saturating_duration_since(Instant::now()));
            frames = match (wait, &self.sooner) {
                (Some(Duration::ZERO), _) => match frames.pop() {
                    Some(Reverse((_, _, frame))) => return frame,
                    None => frames,
                },
                (Some(wait), sooner) => sooner.wait_timeout(frames, wait).unwrap_or_else(PoisonError::into_inner).0,
                (None, sooner) => sooner.wait(frames).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }
}

fn read(near: &SyncDevice, mut fate: Fate, flight: &Flight) {
    let mut frame = [0; FRAME];
    for number in 0_u64.. {
        match near.recv(&mut frame) {
            Ok(length) => {
                if let Some(at) = fate.admit(Instant::now(), length) {
                    flight.send(at, number, frame.get(..length).unwrap_or_default());
                }
            }
            Err(_) => thread::sleep(MOVING),
        }
    }
}

fn write(far: &SyncDevice, flight: &Flight) {
    loop {
        // A device that is down refuses frames, and a cable without a far end loses them.
        let _ = far.send(&flight.arrival());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: Line = Line {
        delay: Duration::from_millis(25),
        mbit_s: 100,
        queue: Duration::from_millis(100),
        loss: 0,
        jitter: Duration::ZERO,
        seed: 1,
    };

    /// When each of `count` frames of 1,250 bytes (0.1 ms at 100 Mbit/s) arrives that come `apart`.
    fn arrivals(line: Line, count: u32, apart: Duration) -> Vec<Option<Duration>> {
        let start = Instant::now();
        let mut fate = Fate::new(line, start);
        let frames = (0..count).map(|at| fate.admit(start + apart * at, 1_250));
        frames.map(|at| at.map(|at| at - start)).collect()
    }

    #[test]
    fn frames_leave_at_the_rate_and_arrive_after_the_delay() {
        let ms = |tenths: u64| Some(Duration::from_micros(25_000 + 100 * tenths));
        assert_eq!(arrivals(LINE, 3, Duration::ZERO), [ms(1), ms(2), ms(3)]);
        assert_eq!(arrivals(LINE, 2, Duration::from_millis(1)), [ms(1), ms(11)]);
    }

    #[test]
    fn a_frame_that_would_wait_longer_than_the_queue_is_dropped() {
        let burst = arrivals(LINE, 2_000, Duration::ZERO);
        assert_eq!(burst.iter().position(Option::is_none), Some(1_001));
        assert_eq!(burst.iter().flatten().count(), 1_001);
    }

    #[test]
    fn one_frame_of_a_hundred_is_lost_and_the_same_ones_with_the_same_seed() {
        let line = Line { loss: 10_000, ..LINE };
        let run = |seed| arrivals(Line { seed, ..line }, 100_000, Duration::from_millis(1));
        let lost = run(1).iter().filter(|at| at.is_none()).count();
        assert!((900..1_100).contains(&lost), "{lost}");
        assert_eq!(run(1), run(1));
        assert_ne!(run(1), run(2));
    }

    #[test]
    fn jitter_lets_frames_overtake_and_stays_below_its_limit() {
        let jitter = Duration::from_micros(500);
        let frames = arrivals(Line { jitter, ..LINE }, 1_000, Duration::from_micros(100));
        let frames: Vec<Duration> = frames.into_iter().flatten().collect();
        assert!(frames.windows(2).any(|pair| pair[1] < pair[0]));
        let late = |at: usize| frames[at] - LINE.delay - Duration::from_micros(100) * (at as u32 + 1);
        assert!((0..frames.len()).all(|at| late(at) <= jitter));
    }

    #[test]
    fn a_frame_that_overtakes_is_written_first() {
        let (flight, now) = (Flight::default(), Instant::now());
        flight.send(now + Duration::from_millis(5), 0, b"late");
        flight.send(now, 1, b"soon");
        assert_eq!([&*flight.arrival(), &*flight.arrival()], [b"soon", b"late"]);
        assert!(now.elapsed() >= Duration::from_millis(5));
    }

    #[test]
    fn the_process_gets_the_line_that_was_asked_for() {
        let line = Line { loss: 10_000, jitter: Duration::from_micros(500), ..LINE };
        assert_eq!(Line::parse(&line.words()), Ok(line));
        assert!(matches!(Line::parse(&[]), Err(Stop::Usage(_))));
    }
}
