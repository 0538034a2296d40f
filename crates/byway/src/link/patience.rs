//! How long a peer may take nothing of what waits for it.
//!
//! What counts is time in which the peer's QUIC answered: an outage is no reluctance. What ends the count is a byte that QUIC
//! took of anything, or a sign that the peer reads ([`super::readers`]): a slow program is no reluctance either, and one
//! channel that nobody reads is none as long as others go on. A byte stream may be paused for hours, as TCP may: it does not count, for
//! it holds no more than its own short queue. If byte streams alone keep channels waiting, for they hold the connection's window, the
//! peer says when asked that it reads ([`super::datagrams`]). The end of an outage begins the count anew, for the peer's first word
//! then is a window grown by a byte.

use std::time::Duration;

use tokio::time::Instant;

/// How often the peer is asked whether it is there, while it takes nothing: the count is as precise as that.
const LOOK: Duration = Duration::from_secs(5);

/// How soon it is looked whether what moved a moment ago still does: nobody wakes the writer because nothing moves.
const SOON: Duration = Duration::from_secs(1);

/// What is left of a peer's time.
#[derive(Debug)]
pub(super) struct Patience {
    limit: Option<Duration>,
    spent: Duration,
    /// When it was looked last, while something waits and nothing moves, and at what.
    looked: Option<(Instant, Shown)>,
    /// When to look next after something has moved.
    soon: Option<Instant>,
}

/// What a peer has shown so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shown {
    /// How often that it reads.
    pub(super) reads: u64,
    /// How often that it hears us.
    pub(super) hears: u64,
}

/// What comes of a look at a peer that takes nothing.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// There is nothing to wait for.
    Fine,
    /// Look again then.
    Look(Instant),
    /// The same, and ask the peer for an answer.
    Ask(Instant),
    /// It has taken nothing for as long as it may.
    Over,
}

impl Patience {
    pub(super) fn new(limit: Option<Duration>) -> Self {
        Patience { limit, spent: Duration::ZERO, looked: None, soon: None }
    }

    /// Nothing waits for the peer.
    pub(super) fn renew(&mut self) {
        (self.spent, self.looked, self.soon) = (Duration::ZERO, None, None);
    }

    /// The peer has taken something, and more waits.
    pub(super) fn moved(&mut self, now: Instant) -> Verdict {
        if self.limit.is_none() {
            return Verdict::Fine;
        }
        (self.spent, self.looked) = (Duration::ZERO, None);
        Verdict::Look(*self.soon.insert(self.soon.filter(|at| *at > now).unwrap_or(now + SOON)))
    }

    /// Something waits and nothing moved.
    pub(super) fn look(&mut self, now: Instant, shown: Shown) -> Verdict {
        let Some(limit) = self.limit else { return Verdict::Fine };
        if let Some(soon) = self.soon.filter(|at| *at > now) {
            return Verdict::Look(soon);
        }
        if let Some((looked, before)) = self.looked {
            if before.reads != shown.reads {
                self.spent = Duration::ZERO;
            } else if now < looked + LOOK {
                return Verdict::Look(looked + LOOK);
            } else if before.hears != shown.hears {
                self.spent += now - looked;
            }
        }
        self.looked = Some((now, shown));
        if self.spent >= limit { Verdict::Over } else { Verdict::Ask(now + LOOK) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Looks every five seconds; after how many seconds the time is over.
    fn over(limit: u64, reads: impl Fn(u64) -> u64, hears: impl Fn(u64) -> u64) -> Option<u64> {
        let (mut patience, start) = (Patience::new(Some(Duration::from_secs(limit))), Instant::now());
        let shown = |second| Shown { reads: reads(second), hears: hears(second) };
        let at = |second| start + Duration::from_secs(second);
        (0..1_000).step_by(5).find(|second| patience.look(at(*second), shown(*second)) == Verdict::Over)
    }

    #[test]
    fn time_in_which_the_peer_does_not_answer_does_not_count_and_a_sign_of_reading_begins_it_anew() {
        assert_eq!(over(120, |_| 0, |second| second), Some(120));
        assert_eq!(over(120, |_| 0, |second| if (50..250).contains(&second) { 50 } else { second }), Some(315));
        assert_eq!(over(120, |_| 0, |_| 0), None);
        assert_eq!(over(120, |second| second / 100, |second| second), None);
        assert_eq!(over(120, |second| u64::from(second >= 100), |second| second), Some(220));
    }

    #[test]
    fn what_was_taken_begins_it_anew_and_without_a_limit_it_never_ends() {
        let (mut patience, start) = (Patience::new(Some(LOOK)), Instant::now());
        let shown = |hears| Shown { reads: 0, hears };
        assert_eq!(patience.look(start, shown(0)), Verdict::Ask(start + LOOK));
        assert_eq!(patience.look(start + LOOK / 2, shown(1)), Verdict::Look(start + LOOK));
        patience.renew();
        assert_eq!(patience.look(start + LOOK, shown(1)), Verdict::Ask(start + 2 * LOOK));
        assert_eq!(
            patience.moved(start + LOOK),
            Verdict::Look(start + LOOK + SOON),
            "nobody else would wake the writer"
        );
        assert_eq!(patience.moved(start + LOOK + SOON / 2), Verdict::Look(start + LOOK + SOON), "the same timer");
        assert_eq!(
            patience.look(start + LOOK + SOON / 2, shown(2)),
            Verdict::Look(start + LOOK + SOON),
            "no question yet"
        );
        assert_eq!(patience.look(start + LOOK + SOON, shown(2)), Verdict::Ask(start + 2 * LOOK + SOON));
        assert_eq!(patience.look(start + 2 * LOOK + SOON, shown(3)), Verdict::Over);
        assert_eq!(Patience::new(None).moved(start), Verdict::Fine);
        assert_eq!(Patience::new(None).look(start, shown(0)), Verdict::Fine);
    }
}
