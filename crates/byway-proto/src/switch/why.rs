//! Why a peer is not dialled now.

use super::{Cause, Class, Switch, schedule::crawled_until};
use crate::{Instant, PeerId, UnixTime};

/// Why the switch does not dial a peer at this moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NotDialing {
    /// The node is closing.
    #[error("the node is closing")]
    Stopped,
    /// It is the node itself.
    #[error("it is this node itself; dial another peer")]
    Itself,
    /// It is connected.
    #[error("it is connected")]
    Connected,
    /// A dial is under way.
    #[error("a dial is under way; wait for it")]
    UnderWay(Cause),
    /// It is banned.
    #[error("it is banned; `byway peers unban` lets it in again")]
    Banned {
        /// When the ban ends.
        until: UnixTime,
    },
    /// It is persistent, and was tried in vain a short while ago.
    #[error("it did not answer, and will be dialled again; it is never given up")]
    Waiting {
        /// When it is dialled again.
        until: Instant,
    },
    /// It stands in the book, and was tried in vain a short while ago.
    #[error("it did not answer, and rests for a while; dial it by hand to try at once")]
    Resting {
        /// When it may be chosen again.
        until: UnixTime,
    },
    /// This node is a seed, which goes round, and called on it a short while ago.
    #[error("this node is a seed, and called on it a short while ago")]
    Recent {
        /// When it may be chosen again.
        until: UnixTime,
    },
    /// It is unconditional: let in whenever it comes, and never chosen.
    #[error("it is unconditional, which lets it in and dials it never; dial it by hand, or make it persistent")]
    Unconditional,
    /// There is no slot.
    #[error("there are as many peers as this node takes; raise the limit or wait until one leaves")]
    Full,
    /// There is no slot for its group of addresses.
    #[error("its group of addresses has as many peers as it may; raise the limit if that is one network of yours")]
    GroupFull,
    /// Peers are dialled by hand only.
    #[error("this node dials only what it is told to; dial it, or switch discovery on")]
    NoDiscovery,
    /// It stands in no book.
    #[error("nobody has named it, and no address of it is known; dial it by a ticket")]
    Unknown,
    /// Nothing stands against it but chance.
    #[error("it is one of those from which the next choice is made")]
    NotChosen,
}

impl Switch {
    /// Why a peer is not dialled, or not dialled again, at this moment.
    pub fn why_not_dialing(&self, peer: PeerId, now: Instant) -> NotDialing {
        if let Some(why) = self.refuses(peer, now) {
            return why;
        }
        if self.by_peer.contains_key(&peer) {
            return NotDialing::Connected;
        }
        if let Some(dial) = self.dials.get(&peer) {
            return NotDialing::UnderWay(dial.cause);
        }
        if let Some(until) = self.schedule.next_of(peer) {
            return NotDialing::Waiting { until };
        }
        let group = self.book.contact(peer).map(|contact| contact.group());
        let group = match group {
            None => return NotDialing::Unknown,
            Some(_) if !self.config.discover => return NotDialing::NoDiscovery,
            Some(_) if self.config.unconditional.contains(&peer) => return NotDialing::Unconditional,
            Some(group) => group,
        };
        if let Some(until) = self.book.rests_until(peer, self.unix(now)) {
            return NotDialing::Resting { until };
        }
        if let Some(until) = crawled_until(&self.config, &self.book, peer, self.unix(now)) {
            return NotDialing::Recent { until };
        }
        match group {
            _ if !self.seats.has_room(Class::Chosen) => NotDialing::Full,
            Some(group) if self.seats.is_group_full(Class::Chosen, group) => NotDialing::GroupFull,
            _ => NotDialing::NotChosen,
        }
    }

    /// What stands against dialling a peer even when the program asks for it.
    pub(super) fn refuses(&self, peer: PeerId, now: Instant) -> Option<NotDialing> {
        match self.book.banned(peer, self.unix(now)) {
            _ if self.stopped => Some(NotDialing::Stopped),
            _ if peer == self.own_id => Some(NotDialing::Itself),
            Some(ban) => Some(NotDialing::Banned { until: ban.until }),
            None => None,
        }
    }
}
