//! What another node's book knew, beside what this one knows: bans first.

use super::{Book, MAX_BANS, Record};
use crate::UnixTime;

/// What became of a row of another book.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Import {
    /// The peer is known now, as the row has it.
    Known,
    /// The peer is banned now, as it is there.
    Banned {
        /// When that ends.
        until: UnixTime,
    },
    /// The peer is banned here, and stays so: not at all there, or no longer than here.
    StaysBanned,
    /// The row cannot stand in this book, or finds no place.
    Refused,
}

impl Book {
    /// Takes a row over that was exported elsewhere. Of two bans the one that ends later holds, one that is over counts for nothing, and
    /// no row lets in who is banned here.
    pub fn import(&mut self, mut record: Record, now: UnixTime) -> Import {
        let peer = record.peer;
        if peer == self.own_id || !record.is_sound() {
            return Import::Refused;
        }
        if self.bans.get(&peer).is_some_and(|ban| ban.until <= now) {
            self.unban(peer, now);
        }
        let ours = self.bans.get(&peer).map(|ban| ban.until);
        let Some(theirs) = record.ban.take().filter(|ban| now < ban.until) else {
            return if ours.is_some() {
                Import::StaysBanned
            } else if self.restore(record, now) {
                Import::Known
            } else {
                Import::Refused
            };
        };
        if ours.is_some_and(|until| theirs.until <= until) {
            return Import::StaysBanned;
        }
        let is_full = ours.is_none() && self.bans.len() >= MAX_BANS;
        if is_full && self.bans.values().all(|ban| theirs.until <= ban.until) {
            return Import::Refused;
        }
        self.ban(peer, theirs.until, &theirs.why);
        let is_hidden = self.config.hidden.contains(&peer);
        if let Some(ban) = self.bans.get_mut(&peer).filter(|ban| ban.contact.is_none() && !is_hidden) {
            ban.contact = theirs.contact;
        }
        Import::Banned { until: theirs.until }
    }
}
