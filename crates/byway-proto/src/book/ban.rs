//! Peers that are not let in, nor dialled, until a date.

use alloc::{collections::BTreeMap, string::String};

use super::Contact;
use crate::{PeerId, UnixTime, text::prefix};

/// Bans kept at once; past that the one that ends first gives way. Keys cost an attacker nothing, so a longer list would
/// not stop it, and limits by prefix do.
pub const MAX_BANS: usize = 4_096;

/// Bytes of a ban's reason; longer ones are cut.
pub const MAX_BAN_REASON: usize = 200;

/// A ban.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ban {
    /// When it ends; [`UnixTime::NEVER`] if it does not.
    pub until: UnixTime,
    /// Why it was spoken, at most [`MAX_BAN_REASON`] bytes.
    pub why: String,
    /// Where the peer was to be found before, if anywhere: it is known again once the ban ends.
    pub contact: Option<Contact>,
}

impl Ban {
    pub(super) fn new(until: UnixTime, why: &str, contact: Option<Contact>) -> Self {
        Ban { until, why: prefix(why, MAX_BAN_REASON).into(), contact }
    }
}

/// Speaks a ban in `bans`; returns whom it had to let go for it.
pub(super) fn speak(bans: &mut BTreeMap<PeerId, Ban>, peer: PeerId, ban: Ban) -> Option<PeerId> {
    let is_full = bans.len() >= MAX_BANS && !bans.contains_key(&peer);
    let first = is_full.then(|| bans.iter().min_by_key(|(_, ban)| ban.until).map(|(peer, _)| *peer)).flatten();
    first.map(|first| bans.remove(&first));
    bans.insert(peer, ban);
    first
}
