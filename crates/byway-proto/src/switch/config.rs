//! The limits of a switch, and whom they do not concern.

use alloc::{collections::BTreeSet, vec::Vec};

use crate::{PeerAddr, PeerId};

/// Peers with slots of their own, at most: they are named by hand.
pub const MAX_SPECIAL: usize = 1_024;

/// What a switch keeps to.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct SwitchConfig {
    /// Peers connected at once, at most, whoever wanted them: at about 100 KiB each, 512 are 50 MiB.
    pub max_peers: usize,
    /// How many of [`SwitchConfig::max_peers`] are kept for persistent and unconditional peers; nobody else takes them.
    pub reserved: usize,
    /// One of so many peers is dialled out of the book, the others may come in: 16 makes 32 of 512, so that four prefixes
    /// with one slot each stay below 15 %.
    pub dial_ratio: usize,
    /// Peers dialled out of the book in one group of addresses; private ones are not counted.
    pub chosen_per_group: usize,
    /// Peers that came in from one group of addresses, in percent of all that may; private ones are not counted.
    pub inbound_per_group: usize,
    /// Dial peers out of the book.
    pub discover: bool,
    /// Keep nobody, dial everybody in turn: for a node whose only purpose is to name others.
    pub seed: bool,
    /// Take and tell addresses that no router of the internet knows: for a network that is private as a whole.
    pub local: bool,
    /// Ask filters before a stranger is let in.
    pub filtered: bool,
    /// Peers that are dialled for ever.
    pub persistent: Vec<PeerAddr>,
    /// Peers that are always let in.
    pub unconditional: BTreeSet<PeerId>,
    /// Peers that stand in no book and are told to nobody.
    pub private: BTreeSet<PeerId>,
    /// Peers that know others, asked when the book has nobody.
    pub seeds: Vec<PeerAddr>,
}

impl Default for SwitchConfig {
    fn default() -> Self {
        SwitchConfig {
            max_peers: 512,
            reserved: 64,
            dial_ratio: 16,
            chosen_per_group: 1,
            inbound_per_group: 25,
            discover: false,
            seed: false,
            local: false,
            filtered: false,
            persistent: Vec::new(),
            unconditional: BTreeSet::new(),
            private: BTreeSet::new(),
            seeds: Vec::new(),
        }
    }
}

impl SwitchConfig {
    /// Peers that may be dialled out of the book.
    pub fn max_chosen(&self) -> usize {
        if self.discover { (self.max_peers / self.dial_ratio.max(1)).max(1) } else { 0 }
    }

    /// Peers without a slot of their own.
    pub(super) fn max_general(&self) -> usize {
        self.max_peers.saturating_sub(self.reserved)
    }

    /// Peers that may come in without being asked: what is left is for those that are dialled.
    pub fn max_inbound(&self) -> usize {
        self.max_general().saturating_sub(self.max_chosen())
    }

    /// Peers of one group of addresses that may come in.
    pub(super) fn max_inbound_of_group(&self) -> usize {
        (self.max_inbound() * self.inbound_per_group / 100).max(1)
    }

    /// Checks what no type can.
    pub fn check(&self) -> Result<(), SwitchConfigError> {
        let persistent = self.persistent.iter().map(|peer| &peer.id);
        let special: BTreeSet<_> = persistent.chain(&self.unconditional).collect();
        if self.reserved > MAX_SPECIAL || self.reserved >= self.max_peers {
            return Err(SwitchConfigError::Reserved { reserved: self.reserved, max: self.max_peers });
        }
        if special.len() > self.reserved {
            return Err(SwitchConfigError::Special { special: special.len(), reserved: self.reserved });
        }
        if self.dial_ratio == 0 || self.chosen_per_group == 0 || self.inbound_per_group == 0 {
            return Err(SwitchConfigError::Zero);
        }
        Ok(())
    }
}

/// Limits that contradict each other.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SwitchConfigError {
    /// No slot is left for others.
    #[error("{reserved} of {max} peers are reserved; reserve fewer, at most {MAX_SPECIAL}")]
    Reserved {
        /// How many are.
        reserved: usize,
        /// Of how many.
        max: usize,
    },
    /// More peers with a slot of their own than there are such slots.
    #[error("{special} peers are persistent or unconditional, and {reserved} slots are reserved; reserve as many")]
    Special {
        /// How many there are.
        special: usize,
        /// How many slots.
        reserved: usize,
    },
    /// A limit of 0 that would let nobody in.
    #[error("`dial_ratio` and the limits for one group of addresses must be at least 1")]
    Zero,
}
