//! Taking over another node's address book, with its bans.

use alloc::vec::Vec;

use super::Switch;
use crate::{
    Instant,
    book::{Import, Record},
};

/// What came of the rows of another node's address book.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Imported {
    /// Peers that are known now, as the rows have them.
    pub known: usize,
    /// Peers that are banned now, as they are there.
    pub banned: usize,
    /// Peers that are banned here and stay so, for they are not banned there, or no longer than here.
    pub stay_banned: usize,
    /// Rows that were not taken over: of the node itself or of private peers, senseless, or without a place.
    pub refused: usize,
}

impl Switch {
    /// Takes over rows that another node has exported; who is banned by one has its link closed. Drain [`Switch::poll_output`] to `None`
    /// after it, as after an input.
    pub fn import(&mut self, records: Vec<Record>, now: Instant) -> Imported {
        let wall = self.unix(now);
        let mut imported = Imported::default();
        for record in records {
            let peer = record.peer;
            match self.book.import(record, wall) {
                Import::Known => imported.known += 1,
                Import::Banned { until } => {
                    imported.banned += 1;
                    self.shut_out(peer, until, now);
                }
                Import::StaysBanned => imported.stay_banned += 1,
                Import::Refused => imported.refused += 1,
            }
        }
        self.schedule.wake(now);
        imported
    }
}
