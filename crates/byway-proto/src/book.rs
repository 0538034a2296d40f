//! The address book: where peers may be, who said so, and what came of trying.
//!
//! What others say of peers stands in the *new* table, peers that this node has reached in the *old* one. Both are
//! divided into buckets by a hash under a key of this node's own, so that nobody can aim at a bucket: who names peers
//! fills [`SOURCE_BUCKETS`] of [`NEW_BUCKETS`] buckets of the new table at most, and peers of one [`Group`] of addresses
//! [`GROUP_BUCKETS`] of [`OLD_BUCKETS`] of the old one. A choice is made among groups first, then within one: an
//! operator's chances grow with the groups it has, not with the addresses.
//!
//! The book has no timers and no randomness of its own, and it does not dial. It is kept in rows ([`Record`]) that the caller stores.

mod ban;
mod choose;
mod contact;
mod group;
mod import;
mod marks;
mod record;
mod table;
#[cfg(test)]
mod tests;

use alloc::{
    collections::{BTreeMap, BTreeSet},
    vec::Vec,
};
use core::{net::SocketAddr, time::Duration};

pub use ban::{Ban, MAX_BAN_REASON, MAX_BANS};
pub use choose::{MAX_TELL, Side, Wanted};
pub use contact::{Contact, MAX_CLAIM_ADDRS, MAX_CLAIM_RELAYS};
pub use group::{Group, ParseGroupError};
pub use import::Import;
pub(crate) use record::ContactRow;
pub use record::{Change, ClaimRecord, Head, MAX_CHANGED, MAX_ROW, Record};
pub use table::BUCKET;
use table::{Places, Slot, Table};

use crate::{PeerId, UnixTime};

/// Buckets of the new table: 16,384 places, at about 400 bytes each 6 MiB. Far more than a node dials in its life, so that a flood
/// needs many sources before it meets what is there.
pub const NEW_BUCKETS: usize = 256;

/// Buckets of the new table that one source group fills: an eighth.
pub const SOURCE_BUCKETS: usize = 32;

/// Buckets of the old table: 4,096 peers that were reached, months of a busy node.
pub const OLD_BUCKETS: usize = 64;

/// Buckets of the old table that peers of one group fill: a sixteenth.
pub const GROUP_BUCKETS: usize = 4;

/// Places in the new table for peers of one group, whoever names them: a thirty-second.
pub const GROUP_CLAIMS: usize = 512;

/// Source groups whose word about one peer is kept: whoever holds four prefixes and lies from all of them does not silence
/// the fifth source.
pub const MAX_CLAIMS: usize = 8;

/// Peers that are dialled first after a restart: two that stood before it are a way back that nobody could choose for us.
pub const MAX_ANCHORS: usize = 2;

/// The node's own addresses that are known to be no peer's.
pub const MAX_OWN: usize = 64;

/// Dials of a peer that was never reached before its place may be taken.
const HOPELESS: u32 = 3;

/// Dials of a peer that was reached once, without success for [`FRESH`], before it is let go.
const GIVEN_UP: u32 = 10;

/// How long a success counts: a laptop that is taken on a journey comes back within a week.
const FRESH: Duration = Duration::from_secs(7 * 86_400);

/// How long what was never tried is kept once its place is wanted: addresses of homes change within a month.
const STALE: Duration = Duration::from_secs(30 * 86_400);

/// An entry that was dialled just now is not judged yet.
const JUST_TRIED: Duration = Duration::from_secs(60);

/// First wait after a dial that failed; doubles up to [`MAX_RETRY`].
const RETRY: Duration = Duration::from_secs(30);

/// Longest wait between two dials of one peer out of the book.
const MAX_RETRY: Duration = Duration::from_secs(3_600);

/// What a book keeps to.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct BookConfig {
    /// Takes and tells addresses that no router of the internet knows: for a network that is private as a whole.
    pub local: bool,
    /// Peers that are neither kept nor told nor exported; bans on them are kept.
    pub hidden: BTreeSet<PeerId>,
}

/// The address book of one node.
#[derive(Debug)]
pub struct Book {
    config: BookConfig,
    own_id: PeerId,
    own: BTreeSet<SocketAddr>,
    places: Places,
    entries: BTreeMap<PeerId, Entry>,
    new: Table,
    old: Table,
    bans: BTreeMap<PeerId, Ban>,
    anchors: Vec<PeerId>,
    /// Peers whose row has changed since it was taken, at most [`MAX_CHANGED`].
    changed: BTreeSet<PeerId>,
    head_changed: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    /// Set if the peer stands in the old table.
    proven: Option<Proven>,
    /// What others say; empty if the peer stands in the old table.
    claims: Vec<Claim>,
    /// Dials since the last success.
    attempts: u32,
    tried: Option<UnixTime>,
    good: Option<UnixTime>,
    added: UnixTime,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Proven {
    contact: Contact,
    group: Group,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Claim {
    source: Group,
    group: Group,
    contact: Contact,
}

/// Why the book does not take what it was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refused {
    /// It is the node itself.
    #[error("it is this node itself")]
    Itself,
    /// The peer is configured as private.
    #[error("the peer is private, and is kept in no book")]
    Hidden,
    /// The peer is banned.
    #[error("the peer is banned; unban it first")]
    Banned,
    /// None of the addresses can be dialled from here.
    #[error("none of its addresses can be dialled from here")]
    NoAddress,
    /// The peer is known, from better sources or from as many as are kept.
    #[error("the peer is known already")]
    Known,
    /// There are as many peers of this group of addresses as are kept.
    #[error("there are enough peers of this group of addresses")]
    GroupFull,
    /// The places for what this source says are taken by peers that may still be good.
    #[error("the places for this source are taken")]
    BucketFull,
}

impl Book {
    /// An empty book of the node `own_id`; `key` decides who shares a bucket with whom and has to stay the same over restarts.
    pub fn new(config: BookConfig, own_id: PeerId, key: [u8; 32]) -> Self {
        Book {
            config,
            own_id,
            own: BTreeSet::new(),
            places: Places { key },
            entries: BTreeMap::new(),
            new: Table::new(NEW_BUCKETS),
            old: Table::new(OLD_BUCKETS),
            bans: BTreeMap::new(),
            anchors: Vec::new(),
            changed: BTreeSet::new(),
            head_changed: true,
        }
    }

    /// Takes over what an authenticated peer, seen from `source`, says of `contact.peer`, itself included.
    pub fn insert(&mut self, contact: &Contact, source: Group, now: UnixTime) -> Result<(), Refused> {
        self.check(contact.peer)?;
        let contact = contact.as_claim(self.config.local, &self.own)?;
        let group = contact.group().ok_or(Refused::NoAddress)?;
        if let Some(entry) = self.entries.get_mut(&contact.peer) {
            // Whoever was reached keeps the addresses at which it was: nobody else's word moves it.
            if entry.proven.is_some() {
                return Err(Refused::Known);
            }
            if let Some(claim) = entry.claims.iter_mut().find(|claim| claim.source == source && claim.group == group) {
                if claim.contact != contact {
                    let peer = contact.peer;
                    claim.contact = contact;
                    self.touch(peer);
                }
                return Ok(());
            }
            if entry.claims.len() >= MAX_CLAIMS || entry.claims.iter().any(|claim| claim.source == source) {
                return Err(Refused::Known);
            }
        }
        self.claim(Claim { source, group, contact }, now)
    }

    /// Takes over the owner's own word, which counts as if the peer had been reached; names are kept.
    pub fn add(&mut self, contact: Contact, now: UnixTime) -> Result<(), Refused> {
        self.check(contact.peer)?;
        let contact = contact.bounded();
        let group = contact.group().unwrap_or(Group::LOCAL);
        self.prove(contact, group, now);
        Ok(())
    }

    /// Forgets a peer, but not its ban.
    pub fn forget(&mut self, peer: PeerId) {
        let Some(entry) = self.entries.remove(&peer) else { return };
        self.touch(peer);
        for claim in &entry.claims {
            self.new.remove(self.places.new_bucket(&claim.slot()), claim.slot());
        }
        if let Some(proven) = &entry.proven {
            self.old.remove(self.places.old_bucket(&proven.slot()), proven.slot());
        }
    }

    /// Keeps a peer out until `until`, whether it is known or not; `false` for the node itself.
    pub fn ban(&mut self, peer: PeerId, until: UnixTime, why: &str) -> bool {
        if peer == self.own_id {
            return false;
        }
        let known = self.entries.get(&peer).map(Entry::contact);
        let before = self.bans.get(&peer).and_then(|ban| ban.contact.clone());
        self.forget(peer);
        let let_go = ban::speak(&mut self.bans, peer, Ban::new(until, why, known.or(before)));
        let_go.into_iter().chain([peer]).for_each(|peer| self.touch(peer));
        true
    }

    /// Ends a ban; what was known of the peer before is known again, unless it is private.
    pub fn unban(&mut self, peer: PeerId, now: UnixTime) -> bool {
        let Some(ban) = self.bans.remove(&peer) else { return false };
        self.touch(peer);
        if let Some(contact) = ban.contact.filter(|_| self.check(peer).is_ok()) {
            let group = contact.group().unwrap_or(Group::LOCAL);
            let _ = self.claim(Claim { source: group, group, contact }, now); // its places may be taken
        }
        true
    }

    /// Ends the bans whose time has come.
    pub fn expire(&mut self, now: UnixTime) {
        let over: Vec<_> = self.bans.iter().filter(|(_, ban)| ban.until <= now).map(|(peer, _)| *peer).collect();
        for peer in over {
            self.unban(peer, now);
        }
    }

    /// The ban on a peer, if there is one that is not over.
    pub fn banned(&self, peer: PeerId, now: UnixTime) -> Option<&Ban> {
        self.bans.get(&peer).filter(|ban| now < ban.until)
    }

    /// Peers that are not kept, told or exported; those that are known are forgotten.
    pub fn hide(&mut self, peer: PeerId) {
        self.forget(peer);
        self.config.hidden.insert(peer);
        if self.bans.get_mut(&peer).is_some_and(|ban| ban.contact.take().is_some()) {
            self.touch(peer);
        }
    }

    /// The node's own addresses, the first [`MAX_OWN`]: whoever names one as a peer's is not believed.
    pub fn set_own(&mut self, addrs: impl IntoIterator<Item = SocketAddr>) {
        self.own = addrs.into_iter().take(MAX_OWN).collect();
    }

    /// The peers that are dialled first after a restart.
    pub fn anchors(&self) -> &[PeerId] {
        &self.anchors
    }

    /// Names the peers that are to be dialled first after a restart; the first [`MAX_ANCHORS`] count.
    pub fn set_anchors(&mut self, mut anchors: Vec<PeerId>) {
        anchors.truncate(MAX_ANCHORS);
        if anchors != self.anchors {
            (self.anchors, self.head_changed) = (anchors, true);
        }
    }

    /// Where a peer may be reached, as far as anybody said.
    pub fn contact(&self, peer: PeerId) -> Option<Contact> {
        self.entries.get(&peer).map(Entry::contact)
    }

    /// Whether this node has reached the peer, or its owner named it.
    pub fn is_proven(&self, peer: PeerId) -> bool {
        self.entries.get(&peer).is_some_and(|entry| entry.proven.is_some())
    }

    /// Until when the peer is not dialled out of the book, for it was tried in vain.
    pub fn rests_until(&self, peer: PeerId, now: UnixTime) -> Option<UnixTime> {
        self.entries.get(&peer).and_then(|entry| entry.rests_until(now))
    }

    /// When the peer was dialled last.
    pub fn tried(&self, peer: PeerId) -> Option<UnixTime> {
        self.entries.get(&peer)?.tried
    }

    /// Peers that are known, banned ones not counted.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether no peer is known.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Places taken in the new and in the old table.
    pub fn places(&self) -> (usize, usize) {
        (self.new.len(), self.old.len())
    }

    fn check(&self, peer: PeerId) -> Result<(), Refused> {
        match peer {
            _ if peer == self.own_id => Err(Refused::Itself),
            _ if self.config.hidden.contains(&peer) => Err(Refused::Hidden),
            _ if self.bans.contains_key(&peer) => Err(Refused::Banned),
            _ => Ok(()),
        }
    }

    /// Puts a claim into the new table. A full bucket lets go of what is not worth a dial, or is known from elsewhere too;
    /// never of what may still be good, or whoever talks most would choose what is known.
    fn claim(&mut self, claim: Claim, now: UnixTime) -> Result<(), Refused> {
        let slot = claim.slot();
        if claim.group != Group::LOCAL && self.new.of_group(claim.group).len() >= GROUP_CLAIMS {
            return Err(Refused::GroupFull);
        }
        let bucket = self.places.new_bucket(&slot);
        if !self.new.insert(bucket, slot) {
            let spare = |slot: &&Slot| {
                self.entries.get(&slot.peer).is_none_or(|entry| entry.is_bad(now) || entry.claims.len() > 1)
            };
            let spare = *self.new.bucket(bucket).iter().find(spare).ok_or(Refused::BucketFull)?;
            self.withdraw(spare);
            self.new.insert(bucket, slot);
        }
        self.touch(slot.peer);
        self.entries.entry(slot.peer).or_insert_with(|| Entry::new(now)).claims.push(claim);
        Ok(())
    }

    /// Takes one claim back; a peer of which nothing else is known is forgotten.
    fn withdraw(&mut self, slot: Slot) {
        self.new.remove(self.places.new_bucket(&slot), slot);
        self.touch(slot.peer);
        let Some(entry) = self.entries.get_mut(&slot.peer) else { return };
        entry.claims.retain(|claim| claim.slot() != slot);
        if entry.claims.is_empty() && entry.proven.is_none() {
            self.entries.remove(&slot.peer);
        }
    }

    /// Moves a peer into the old table, out of wherever it stood.
    fn prove(&mut self, contact: Contact, group: Group, now: UnixTime) {
        let peer = contact.peer;
        let mut entry = self.entries.get(&peer).cloned().unwrap_or_else(|| Entry::new(now));
        self.forget(peer);
        entry.claims.clear();
        let proven = Proven { contact, group };
        let slot = proven.slot();
        let bucket = self.places.old_bucket(&slot);
        if !self.old.insert(bucket, slot) {
            if let Some(loser) = self.least_missed(bucket) {
                self.demote(loser, now);
            }
            self.old.insert(bucket, slot);
        }
        entry.proven = Some(proven);
        self.touch(peer);
        self.entries.insert(peer, entry);
    }

    /// Of a full bucket the peer that was reached longest ago, among those of the group that has most places in it: a
    /// group that pushes in pushes out its own.
    fn least_missed(&self, bucket: usize) -> Option<PeerId> {
        let slots = self.old.bucket(bucket);
        let mut counts: BTreeMap<Group, usize> = BTreeMap::new();
        slots.iter().for_each(|slot| *counts.entry(slot.group).or_default() += 1);
        let (largest, _) = counts.into_iter().max_by_key(|(_, count)| *count)?;
        let good = |slot: &&Slot| self.entries.get(&slot.peer).and_then(|entry| entry.good);
        slots.iter().filter(|slot| slot.group == largest).min_by_key(good).map(|slot| slot.peer)
    }

    /// Moves a peer from the old table back to the new one; it is forgotten if there is no place.
    fn demote(&mut self, peer: PeerId, now: UnixTime) {
        let Some(mut entry) = self.entries.get(&peer).cloned() else { return };
        self.forget(peer);
        let Some(Proven { contact, group }) = entry.proven.take() else { return };
        if self.claim(Claim { source: group, group, contact }, now).is_ok()
            && let Some(claimed) = self.entries.get_mut(&peer)
        {
            entry.claims = core::mem::take(&mut claimed.claims);
            *claimed = entry;
        }
    }
}

impl Entry {
    fn new(now: UnixTime) -> Self {
        Entry { proven: None, claims: Vec::new(), attempts: 0, tried: None, good: None, added: now }
    }

    /// Whether the place is better given to another.
    fn is_bad(&self, now: UnixTime) -> bool {
        if self.tried.is_some_and(|tried| now.since(tried) < JUST_TRIED) {
            return false;
        }
        match self.good {
            None if self.proven.is_some() => self.attempts >= GIVEN_UP, // the owner's word
            None => self.attempts >= HOPELESS || now.since(self.added) > STALE,
            Some(good) => self.attempts >= GIVEN_UP && now.since(good) > FRESH,
        }
    }

    fn rests_until(&self, now: UnixTime) -> Option<UnixTime> {
        let doublings = self.attempts.checked_sub(1)?.min(16);
        let until = self.tried? + RETRY.saturating_mul(1 << doublings).min(MAX_RETRY);
        (now < until).then_some(until)
    }

    /// All that is known of the ways to the peer.
    fn contact(&self) -> Contact {
        let mut contacts = self.proven.iter().map(|it| &it.contact).chain(self.claims.iter().map(|it| &it.contact));
        let mut contact = contacts.next().cloned().expect("an entry is proven or claimed");
        contacts.for_each(|other| contact.merge(other));
        contact
    }
}

impl Proven {
    fn slot(&self) -> Slot {
        Slot { peer: self.contact.peer, source: self.group, group: self.group }
    }
}

impl Claim {
    fn slot(&self) -> Slot {
        Slot { peer: self.contact.peer, source: self.source, group: self.group }
    }
}
