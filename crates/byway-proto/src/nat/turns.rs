//! Whose turn a hard punch is: a host makes one at a time, and no peer has two while another one waits.

use alloc::collections::BTreeMap;
use core::time::Duration;

use super::budget::HARD_GAP;
use crate::{Instant, PeerId};

/// The most peers that are kept apart; of more, those that were not heard of for longest count as new.
const MAX_PEERS: usize = 256;

/// How much later than it was told one that was turned away may come back: where its peer asks for it, up to 5 s, and the way there.
const RETURN: Duration = Duration::from_secs(7);

/// Who had a turn, and who waits for one.
#[derive(Debug, Default)]
pub(super) struct Turns {
    peers: BTreeMap<PeerId, Past>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Past {
    /// When its last turn began.
    last: Option<Instant>,
    /// Until when a turn is kept for it.
    waits: Option<Instant>,
}

impl Turns {
    /// Begins a turn of this peer's, unless one waits whose last turn was earlier; then says until when.
    pub(super) fn take(&mut self, peer: PeerId, now: Instant) -> Result<(), Instant> {
        let last = self.peers.get(&peer).and_then(|past| past.last);
        let earlier = |(other, past): (&PeerId, &Past)| (*other != peer && past.last < last).then_some(past.waits)?;
        match self.peers.iter().filter_map(earlier).filter(|until| *until > now).max() {
            Some(until) => Err(until),
            None => {
                self.note(peer, Past { last: Some(now), waits: None });
                Ok(())
            }
        }
    }

    /// Keeps a turn for a peer that was turned away until `at`.
    pub(super) fn wait(&mut self, peer: PeerId, at: Instant, now: Instant) {
        let last = self.peers.get(&peer).and_then(|past| past.last);
        self.note(peer, Past { last, waits: Some(at.max(now + HARD_GAP) + RETURN) });
    }

    /// The peer needs no turn any more.
    pub(super) fn leave(&mut self, peer: PeerId) {
        if let Some(past) = self.peers.get_mut(&peer) {
            past.waits = None;
        }
    }

    fn note(&mut self, peer: PeerId, past: Past) {
        self.peers.insert(peer, past);
        if self.peers.len() > MAX_PEERS {
            let oldest = self.peers.iter().min_by_key(|(_, past)| past.last.max(past.waits)).map(|(peer, _)| *peer);
            oldest.map(|oldest| self.peers.remove(&oldest));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(secs: u64) -> Instant {
        Instant::after_start(Duration::from_secs(secs))
    }

    fn peer(number: u8) -> PeerId {
        PeerId::ed25519([number; 32])
    }

    #[test]
    fn two_that_always_want_a_turn_have_them_by_turns() {
        let mut turns = Turns::default();
        let had: alloc::vec::Vec<u8> = (0..10)
            .map(|round| {
                let now = at(round * 25);
                let first = turns.take(peer(1), now);
                let second = if first.is_ok() { None } else { Some(turns.take(peer(2), now)) };
                turns.wait(peer(1), now + HARD_GAP, now);
                turns.wait(peer(2), now + HARD_GAP, now);
                if second.is_none() { 1 } else { 2 }
            })
            .collect();
        assert_eq!(had, [1, 2, 1, 2, 1, 2, 1, 2, 1, 2]);
    }

    #[test]
    fn one_that_waited_and_never_comes_back_or_leaves_keeps_nobody() {
        let mut turns = Turns::default();
        assert_eq!(turns.take(peer(1), at(0)), Ok(()));
        turns.wait(peer(2), at(20), at(0));
        assert_eq!(turns.take(peer(1), at(20)), Err(at(27)));
        assert_eq!(turns.take(peer(1), at(27)), Ok(()));
        turns.wait(peer(2), at(50), at(27));
        turns.leave(peer(2));
        assert_eq!(turns.take(peer(1), at(50)), Ok(()));
    }

    #[test]
    fn as_many_are_kept_apart_as_the_limit_says() {
        let mut turns = Turns::default();
        for number in 0..2_000_u16 {
            let mut key = [0; 32];
            key[..2].copy_from_slice(&number.to_be_bytes());
            turns.wait(PeerId::ed25519(key), at(u64::from(number)), at(u64::from(number)));
        }
        assert_eq!(turns.peers.len(), MAX_PEERS);
    }
}
