//! The flows that run at once, and the book of what each receiver saw.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    sync::watch,
    time,
};

use super::datagrams::Tally;
use crate::World;

/// Flows: the byte stream, the datagrams, the TCP connection.
pub(super) const FLOWS: usize = 3;

/// Which of them are the datagrams.
pub(super) const DATAGRAMS: usize = 1;

/// Bytes of a light flow's write, and of a datagram.
pub(super) const UNIT: usize = 64;

/// Bytes of a greedy flow's write.
const CHUNK: usize = 16 << 10;

/// How one direction of a flow is fed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pace {
    /// As much as is taken.
    Greedy,
    /// A unit, and another one after this time.
    Every(Duration),
    /// A unit, and another one when it was answered.
    Ask,
    /// A unit for each that came in.
    Answer,
    /// One unit.
    Once,
}

/// What the flows do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Phase {
    /// Nothing yet.
    Wait,
    /// Writing.
    Go,
    /// Writing no more; what was written still arrives.
    Stop,
}

/// Follows the phase.
#[derive(Debug, Clone)]
pub(super) struct Phases(pub(super) watch::Receiver<Phase>);

impl Phases {
    pub(super) async fn reach(&mut self, phase: Phase) {
        let _ = self.0.wait_for(|now| *now >= phase).await; // the run that sent them is over
    }

    pub(super) fn now(&self) -> Phase {
        *self.0.borrow()
    }
}

/// One direction of one flow, as its two ends saw it.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    pub(super) written: u64,
    pub(super) received: u64,
    /// Bytes that were skipped.
    pub(super) skipped: u64,
    /// Bytes that came again.
    pub(super) duplicated: u64,
    pub(super) errors: u64,
    /// The datagrams, of which the figures above say nothing but what was received.
    pub(super) datagrams: Tally,
    /// When something arrived, since the world began, and how many bytes; at most one entry a millisecond.
    pub(super) arrivals: Vec<(Duration, u64)>,
    /// The word that comes next, and what is there of it.
    expected: u64,
    partial: Vec<u8>,
}

impl Ledger {
    /// Bytes that never arrived, once nothing more can.
    pub(super) fn lost(&self) -> u64 {
        self.skipped.max(self.written.saturating_sub(self.received - self.duplicated))
    }

    /// The longest time without an arrival that ended after `from`, or had not ended at `end`: its two ends.
    pub(super) fn longest_gap(&self, from: Duration, end: Duration) -> (Duration, Duration) {
        let mut times: Vec<Duration> = self.arrivals.iter().map(|(at, _)| *at).filter(|at| *at <= end).collect();
        times.push(end);
        let gaps = times.windows(2).map(|pair| (pair[0], pair[1])).filter(|(_, until)| *until > from);
        gaps.max_by_key(|(since, until)| *until - *since).unwrap_or((end, end))
    }

    /// The longest time without an arrival of which a part lies between `from` and `to`; one that goes on counts up to `end`.
    pub(super) fn gap_around(&self, (from, to): (Duration, Duration), end: Duration) -> Duration {
        let first = self.arrivals.partition_point(|(at, _)| *at <= from).saturating_sub(1);
        let last = self.arrivals.partition_point(|(at, _)| *at < to);
        let within = self.arrivals.get(first..=last).or_else(|| self.arrivals.get(first..)).unwrap_or_default();
        let goes_on = Some(end).filter(|_| last == self.arrivals.len());
        let times: Vec<Duration> = within.iter().map(|(at, _)| *at).chain(goes_on).collect();
        times.windows(2).map(|pair| pair[1].saturating_sub(pair[0])).max().unwrap_or_default()
    }

    /// The median of the longest gaps around times of `width`, one after another, between `from` and `end`.
    pub(super) fn usual_gap(&self, width: Duration, from: Duration, end: Duration) -> Duration {
        let times = (0..).map(|n| from + width * n).take_while(|at| *at + width <= end);
        let mut gaps: Vec<Duration> = times.map(|at| self.gap_around((at, at + width), end)).collect();
        gaps.sort_unstable();
        gaps.get(gaps.len() / 2).copied().unwrap_or_default()
    }

    /// How long after `from` something arrived.
    pub(super) fn first_after(&self, from: Duration) -> Option<Duration> {
        self.arrivals.iter().map(|(at, _)| *at).find(|at| *at >= from).map(|at| at - from)
    }

    /// Takes in bytes, which are the little-endian numbers of the flow's words.
    fn take(&mut self, bytes: &[u8], now: Duration) {
        self.arrive(bytes.len(), now);
        self.partial.extend_from_slice(bytes);
        let whole = self.partial.len() / 8 * 8;
        for word in self.partial[..whole].chunks_exact(8) {
            let number = word.try_into().map_or(0, u64::from_le_bytes);
            if number < self.expected {
                self.duplicated += 8;
            } else {
                self.skipped += (number - self.expected) * 8;
                self.expected = number + 1;
            }
        }
        self.partial.drain(..whole);
    }

    fn arrive(&mut self, bytes: usize, now: Duration) {
        self.received += bytes as u64;
        match self.arrivals.last_mut() {
            Some((at, sum)) if at.as_millis() == now.as_millis() => *sum += bytes as u64,
            _ => self.arrivals.push((now, bytes as u64)),
        }
    }
}

/// `len` bytes of a flow from `offset` on.
fn pattern(offset: u64, len: usize) -> Vec<u8> {
    (offset..offset + len as u64).map(|at| (at / 8).to_le_bytes()[(at % 8) as usize]).collect()
}

/// The ledgers of a run, by flow and direction; clones are the same book.
#[derive(Debug, Clone)]
pub(super) struct Book {
    world: World,
    ledgers: Arc<Mutex<[[Ledger; 2]; FLOWS]>>,
}

impl Book {
    pub(super) fn new(world: &World) -> Self {
        Book { world: world.clone(), ledgers: Arc::default() }
    }

    pub(super) fn read(&self) -> MutexGuard<'_, [[Ledger; 2]; FLOWS]> {
        self.ledgers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The page of one end of a flow: host `side` writes one direction and reads the other.
    pub(super) fn page(&self, flow: usize, side: usize) -> Page {
        Page { book: self.clone(), flow, side }
    }
}

/// Where one end of a flow writes down what it does.
#[derive(Debug, Clone)]
pub(super) struct Page {
    book: Book,
    flow: usize,
    side: usize,
}

impl Page {
    fn written(&self, bytes: usize) {
        self.book.read()[self.flow][self.side].written += bytes as u64;
    }

    fn received(&self, bytes: &[u8]) {
        let now = self.book.world.elapsed();
        self.book.read()[self.flow][1 - self.side].take(bytes, now);
    }

    /// Notes that a datagram is sent; its number.
    pub(super) fn send_datagram(&self) -> u64 {
        let now = self.book.world.elapsed();
        self.book.read()[self.flow][self.side].datagrams.send(now)
    }

    pub(super) fn datagram_arrived(&self, message: &[u8]) {
        let now = self.book.world.elapsed();
        let number = message.first_chunk().map_or(u64::MAX, |number| u64::from_le_bytes(*number));
        let ledger = &mut self.book.read()[self.flow][1 - self.side];
        ledger.arrive(message.len(), now);
        ledger.datagrams.arrive(number);
    }

    pub(super) fn error(&self) {
        self.book.read()[self.flow][self.side].errors += 1;
    }
}

/// Plays one end of a byte stream or a TCP connection until both directions have ended.
pub(super) async fn play(
    mut read: impl AsyncRead + Unpin,
    mut write: impl AsyncWrite + Unpin,
    pace: Pace,
    mut phases: Phases,
    page: Page,
) {
    match pace {
        Pace::Ask | Pace::Answer => turns(&mut read, &mut write, pace, &mut phases, &page).await,
        _ => {
            tokio::join!(speak(&mut write, pace, &mut phases, &page), listen(&mut read, &page));
        }
    }
}

async fn speak(write: &mut (impl AsyncWrite + Unpin), pace: Pace, phases: &mut Phases, page: &Page) {
    let mut stop = phases.clone();
    phases.reach(Phase::Go).await;
    let mut offset = 0;
    loop {
        let bytes = pattern(offset, if pace == Pace::Greedy { CHUNK } else { UNIT });
        let written = tokio::select! {
            biased;
            () = stop.reach(Phase::Stop) => break,
            written = write.write(&bytes) => written,
        };
        let Ok(written) = written else { return page.error() };
        page.written(written);
        offset += written as u64;
        let pause = match pace {
            Pace::Greedy => continue,
            Pace::Every(pause) => pause,
            _ => Duration::MAX,
        };
        let _ = time::timeout(pause, stop.reach(Phase::Stop)).await;
    }
    if write.shutdown().await.is_err() {
        page.error();
    }
}

async fn listen(read: &mut (impl AsyncRead + Unpin), page: &Page) {
    let mut buffer = vec![0; CHUNK];
    loop {
        match read.read(&mut buffer).await {
            Ok(0) => return,
            Ok(count) => page.received(&buffer[..count]),
            Err(_) => return page.error(),
        }
    }
}

/// A unit each way, in turns.
async fn turns(
    read: &mut (impl AsyncRead + Unpin),
    write: &mut (impl AsyncWrite + Unpin),
    pace: Pace,
    phases: &mut Phases,
    page: &Page,
) {
    let mut stop = phases.clone();
    phases.reach(Phase::Go).await;
    let (mut offset, mut heard) = (0, 0);
    let mut buffer = [0; UNIT];
    let mut mine = pace == Pace::Ask;
    loop {
        if mine {
            if write.write_all(&pattern(offset, UNIT)).await.is_err() {
                return page.error();
            }
            page.written(UNIT);
            offset += UNIT as u64;
        }
        let count = tokio::select! {
            biased;
            () = stop.reach(Phase::Stop), if pace == Pace::Ask => break,
            count = read.read(&mut buffer) => count,
        };
        match count {
            Ok(0) => break,
            Ok(count) => {
                page.received(&buffer[..count]);
                heard += count;
                mine = heard >= UNIT;
                heard %= UNIT;
            }
            Err(_) => return page.error(),
        }
    }
    if write.shutdown().await.is_err() {
        page.error();
    }
    listen(read, page).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn a_gap_counts_where_it_touches_a_time_and_is_held_against_the_usual_one() {
        let mut ledger = Ledger::default();
        (0..100).filter(|n| !(50..58).contains(n)).for_each(|n| ledger.take(&pattern(n * 8, 8), ms(n * 20)));
        let end = ms(2_000);
        assert_eq!(ledger.gap_around((ms(100), ms(200)), end), ms(20));
        assert_eq!(ledger.gap_around((ms(1_100), ms(1_110)), end), ms(180), "from 980 to 1,160");
        assert_eq!(ledger.gap_around((ms(1_150), ms(1_400)), end), ms(180), "its end lies within");
        assert_eq!(ledger.gap_around((ms(800), ms(990)), end), ms(180), "its beginning does");
        assert_eq!(ledger.gap_around((ms(1_160), ms(1_400)), end), ms(20));
        assert_eq!(ledger.gap_around((ms(1_900), ms(2_500)), ms(3_000)), ms(1_020), "nothing came any more");
        assert_eq!(ledger.usual_gap(ms(200), ms(0), end), ms(20));
        assert_eq!(Ledger::default().gap_around((ms(1), ms(2)), end), ms(0));
    }

    #[test]
    fn what_is_skipped_or_comes_again_is_counted_however_it_is_cut() {
        let mut ledger = Ledger { written: 64, ..Ledger::default() };
        let bytes = pattern(0, 64);
        ledger.take(&bytes[..13], ms(1));
        ledger.take(&bytes[13..32], ms(1));
        ledger.take(&bytes[16..32], ms(2));
        ledger.take(&bytes[48..], ms(9));
        assert_eq!((ledger.duplicated, ledger.skipped, ledger.lost()), (16, 16, 16));
        assert_eq!(ledger.arrivals.len(), 3);
        assert_eq!(ledger.longest_gap(ms(2), ms(10)), (ms(2), ms(9)));
        assert_eq!(ledger.longest_gap(ms(2), ms(30)), (ms(9), ms(30)));
        assert_eq!((ledger.first_after(ms(3)), ledger.first_after(ms(10))), (Some(ms(6)), None));
    }
}
