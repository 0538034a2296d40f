//! The channel of datagrams: each has a number, may be lost, and must not come twice.

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use byway::{PeerId, Receiver, Sender, To};
use quinn::Connection;
use tokio::time;

use super::flow::{Pace, Page, Phase, Phases, UNIT};

/// The longest that a datagram is on its way: the path's delay and two full queues.
const TRIP: Duration = Duration::from_millis(250);

/// Who asks and is not answered, asks again after two round trips: either datagram may be lost.
const ASK_AGAIN: Duration = Duration::from_millis(200);

/// An answer that comes sooner than this after the last question is one to a question before it.
const TURN: Duration = Duration::from_millis(50);

/// The datagrams of one direction, by number: when each was sent, and whether it arrived.
#[derive(Debug, Default)]
pub(super) struct Tally {
    sent: Vec<(Duration, bool)>,
    doubled: u64,
}

impl Tally {
    /// Notes that one is sent; its number.
    pub(super) fn send(&mut self, now: Duration) -> u64 {
        self.sent.push((now, false));
        self.sent.len() as u64 - 1
    }

    /// Notes that one has arrived.
    pub(super) fn arrive(&mut self, number: u64) {
        match self.sent.get_mut(number as usize) {
            Some((_, arrived @ false)) => *arrived = true,
            _ => self.doubled += 1, // a number that was never sent is no better
        }
    }

    /// How many arrived twice.
    pub(super) fn doubled(&self) -> u64 {
        self.doubled
    }

    /// How many never arrived.
    pub(super) fn lost(&self) -> u64 {
        self.sent.iter().filter(|(_, arrived)| !arrived).count() as u64
    }

    /// How many were sent, in the outage and at other times, if nothing arrived between `from` and `to`.
    pub(super) fn in_and_out(&self, from: Duration, to: Duration) -> (u64, u64) {
        let within = |at: Duration| at + TRIP > from && at < to;
        let within = self.sent.iter().filter(|(at, _)| within(*at)).count() as u64;
        (within, self.sent.len() as u64 - within)
    }
}

/// One end of the channel.
#[expect(clippy::large_enum_variant, reason = "a scene has four of them")]
pub(super) enum Voice {
    Byway { tx: Sender, rx: Receiver, to: PeerId },
    Bare(Connection),
}

impl Voice {
    fn say(&self, message: Bytes) -> bool {
        match self {
            Voice::Byway { tx, to, .. } => tx.send(&To::Peer(*to), message).queued == 1,
            Voice::Bare(connection) => connection.send_datagram(message).is_ok(),
        }
    }

    async fn hear(&mut self) -> Option<Bytes> {
        match self {
            Voice::Byway { rx, .. } => rx.recv().await.map(|(_, message)| message),
            Voice::Bare(connection) => connection.read_datagram().await.ok(),
        }
    }
}

/// Plays one end of the channel until it is aborted, or the connection ends.
pub(super) async fn talk(mut voice: Voice, pace: Pace, mut phases: Phases, page: Page) {
    phases.reach(Phase::Go).await;
    let say = |voice: &Voice| {
        let mut message = BytesMut::with_capacity(UNIT);
        message.put_u64_le(page.send_datagram());
        message.resize(UNIT, 0);
        if !voice.say(message.freeze()) {
            page.error();
        }
    };
    if pace != Pace::Answer {
        say(&voice);
    }
    let pause = match pace {
        Pace::Every(pause) => pause,
        Pace::Ask => ASK_AGAIN,
        _ => Duration::MAX,
    };
    let mut said = time::Instant::now();
    loop {
        let next = said.checked_add(pause).unwrap_or_else(|| said + Duration::from_secs(86_400));
        let speaks = phases.now() < Phase::Stop;
        tokio::select! {
            biased;
            heard = voice.hear() => {
                let Some(message) = heard else { return };
                page.datagram_arrived(&message);
                let asks_next = pace == Pace::Ask && said.elapsed() >= TURN;
                if speaks && (asks_next || pace == Pace::Answer) {
                    say(&voice);
                    said = time::Instant::now();
                }
            }
            () = time::sleep_until(next), if speaks => {
                say(&voice);
                said = next; // what is late now must not make the others late
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_lost_doubled_and_sent_in_an_outage_is_counted() {
        let ms = Duration::from_millis;
        let mut tally = Tally::default();
        for n in 0..100 {
            assert_eq!(tally.send(ms(20 * n)), n);
        }
        (0..50).chain(60..100).for_each(|n| tally.arrive(n));
        assert_eq!((tally.lost(), tally.doubled()), (10, 0));
        tally.arrive(7);
        tally.arrive(1_000);
        assert_eq!((tally.lost(), tally.doubled()), (10, 2));
        assert_eq!(tally.in_and_out(ms(1_030), ms(1_250)), (23, 77), "those of 800 to 1,240 ms");
    }
}
