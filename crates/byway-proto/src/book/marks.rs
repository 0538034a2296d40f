//! What was learned of a peer: reached, dialled, not there, of use.

use super::{Book, Contact, Group};
use crate::{PeerId, UnixTime};

/// As many dials in vain as one that another key answered, or a bad mark, counts for: the wait after them is [`MAX_RETRY`].
const MISPLACED: u32 = 8;

impl Book {
    /// The peer was reached at an address of `group`, and `contact` is what it says of itself.
    pub fn good(&mut self, contact: Contact, group: Group, now: UnixTime) {
        let peer = contact.peer;
        if self.check(peer).is_err() {
            return;
        }
        self.prove(contact.bounded(), group, now);
        if let Some(entry) = self.entries.get_mut(&peer) {
            (entry.attempts, entry.tried, entry.good) = (0, Some(now), Some(now));
        }
    }

    /// The peer is being dialled; a success is told by [`Book::good`].
    pub fn attempted(&mut self, peer: PeerId, now: UnixTime) {
        let Some(entry) = self.entries.get_mut(&peer) else { return };
        entry.attempts = entry.attempts.saturating_add(1);
        let is_over = entry.proven.is_some() && entry.is_bad(now);
        entry.tried = Some(now);
        self.touch(peer);
        if is_over {
            self.forget(peer);
        }
    }

    /// Another key answered where the peer was said to be. Unless this node has met it before, it rests for as long as any, and its
    /// place may be taken; it is not forgotten, for whoever named it would name it again, and it would be dialled again.
    pub fn misplaced(&mut self, peer: PeerId, now: UnixTime) {
        if !self.is_proven(peer) {
            self.mark(peer, false, now);
        }
    }

    /// The program's word on a peer. One that was of use keeps its place before others that were reached; who was never reached gains
    /// nothing by it. One that was not rests for as long as any.
    pub fn mark(&mut self, peer: PeerId, of_use: bool, now: UnixTime) {
        let Some(entry) = self.entries.get_mut(&peer).filter(|entry| !of_use || entry.proven.is_some()) else { return };
        match of_use {
            true => (entry.attempts, entry.good) = (0, Some(now)),
            false => (entry.attempts, entry.tried) = (entry.attempts.max(MISPLACED), Some(now)),
        }
        self.touch(peer);
    }
}
