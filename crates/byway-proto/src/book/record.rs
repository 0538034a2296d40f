//! The book as plain data: one row for each peer, and one for the book itself.

use alloc::{
    boxed::Box,
    string::{String, ToString},
    vec::Vec,
};

use prost::Message;

use super::{BUCKET, Ban, Book, Claim, Contact, Entry, Group, MAX_BANS, MAX_CLAIMS, NEW_BUCKETS, OLD_BUCKETS, ban};
use crate::{
    PeerAddr, PeerId, UnixTime,
    addr::{HostAddr, MAX_ADDRS, decode_host_addr, encode_host_addr},
    hello::MAX_TOLD_RELAYS,
};

/// Rows that may wait to be taken: those of all peers and bans that fit a book, and as many of peers that have gone.
pub const MAX_CHANGED: usize = 2 * ((NEW_BUCKETS + OLD_BUCKETS) * BUCKET + MAX_BANS);

/// Bytes of the longest row. What a book comes to know by itself makes two thirds of it at most: eight names and three relays of eight names each,
/// and seven claims. Only a row that somebody wrote by hand is longer, and a store that cannot take one takes none of those beside it.
pub const MAX_ROW: usize = 16 << 10;

/// What belongs to the book as a whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// The key of the buckets; whoever has it can aim at them.
    pub key: [u8; 32],
    /// The peers to dial first after a restart.
    pub anchors: Vec<PeerId>,
}

/// All that is known of one peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Who it is.
    pub peer: PeerId,
    /// Where it was reached, and in which group; or the owner's word.
    pub proven: Option<(Contact, Group)>,
    /// What others say of it.
    pub claims: Vec<ClaimRecord>,
    /// Dials since the last success.
    pub attempts: u32,
    /// The last dial.
    pub tried: Option<UnixTime>,
    /// The last success.
    pub good: Option<UnixTime>,
    /// When it was first heard of.
    pub added: UnixTime,
    /// The ban on it.
    pub ban: Option<Ban>,
}

/// What somebody says of a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimRecord {
    /// The group of who said it.
    pub source: Group,
    /// What was said.
    pub contact: Contact,
}

/// A row that is to be stored.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Change {
    /// The book's own row.
    Head(Head),
    /// A peer's row.
    Peer(Box<Record>),
    /// A peer's row goes.
    Gone(PeerId),
}

impl Book {
    /// The book's own row.
    pub fn head(&self) -> Head {
        Head { key: self.places.key, anchors: self.anchors.clone() }
    }

    /// All rows, in the order of the peers' ids.
    pub fn records(&self) -> impl Iterator<Item = Record> {
        let banned = self.bans.keys().filter(|peer| !self.entries.contains_key(peer));
        let mut peers: Vec<_> = self.entries.keys().chain(banned).copied().collect();
        peers.sort();
        peers.into_iter().filter_map(|peer| self.record(peer))
    }

    /// What is known of one peer.
    pub fn record(&self, peer: PeerId) -> Option<Record> {
        let ban = self.bans.get(&peer).cloned();
        let entry = match self.entries.get(&peer) {
            Some(entry) => entry.clone(),
            None if ban.is_some() => Entry::new(UnixTime(0)),
            None => return None,
        };
        let claim = |claim: Claim| ClaimRecord { source: claim.source, contact: claim.contact };
        Some(Record {
            peer,
            proven: entry.proven.map(|it| (it.contact, it.group)),
            claims: entry.claims.into_iter().map(claim).collect(),
            attempts: entry.attempts,
            tried: entry.tried,
            good: entry.good,
            added: entry.added,
            ban,
        })
    }

    /// Whether there are rows for [`Book::take_changes`].
    pub fn has_changed(&self) -> bool {
        self.head_changed || !self.changed.is_empty()
    }

    /// At most `limit` rows that have changed since they were last taken.
    pub fn take_changes(&mut self, limit: usize) -> Vec<Change> {
        let mut changes = Vec::new();
        if limit > 0 && core::mem::take(&mut self.head_changed) {
            changes.push(Change::Head(self.head()));
        }
        while changes.len() < limit
            && let Some(peer) = self.changed.pop_first()
        {
            changes.push(self.record(peer).map_or(Change::Gone(peer), |record| Change::Peer(Box::new(record))));
        }
        changes
    }

    /// Takes rows back that were taken and could not be stored; what they are by then is taken again.
    pub fn put_back(&mut self, rows: impl IntoIterator<Item = Change>) {
        for row in rows {
            match row {
                Change::Head(_) => self.head_changed = true,
                Change::Peer(record) => self.touch(record.peer),
                Change::Gone(peer) => self.touch(peer),
            }
        }
    }

    /// Notes that a peer's row has changed. Where nobody takes rows, those of peers that have gone give way: at worst such a peer
    /// is known again after a restart.
    pub(super) fn touch(&mut self, peer: PeerId) {
        if self.changed.len() >= MAX_CHANGED {
            let Book { changed, entries, bans, .. } = self;
            changed.retain(|peer| entries.contains_key(peer) || bans.contains_key(peer));
        }
        self.changed.insert(peer);
    }

    /// The rows for another node's [`Book::import`]: all but those of private peers, banned or not.
    pub fn exports(&self) -> impl Iterator<Item = Record> {
        self.records().filter(|record| !self.config.hidden.contains(&record.peer))
    }

    /// Takes a row over that was stored, with its ban, whenever that ends; `false` if it cannot stand in this book or finds no place.
    pub fn restore(&mut self, record: Record, now: UnixTime) -> bool {
        let peer = record.peer;
        let is_hidden = self.config.hidden.contains(&peer);
        let is_kept_out = record.ban.is_none() && (is_hidden || self.bans.contains_key(&peer));
        self.touch(peer); // what finds no place here has none in the store either
        if peer == self.own_id || is_kept_out || !record.is_sound() {
            return false;
        }
        self.forget(peer);
        if let Some(mut ban) = record.ban {
            ban.contact = ban.contact.filter(|_| !is_hidden);
            let let_go = ban::speak(&mut self.bans, peer, ban);
            let_go.into_iter().chain([peer]).for_each(|peer| self.touch(peer));
            return true;
        }
        match record.proven {
            Some((contact, group)) => self.prove(contact, group, record.added),
            None => {
                for ClaimRecord { source, contact } in record.claims.into_iter().take(MAX_CLAIMS) {
                    let group = contact.group().unwrap_or(Group::LOCAL);
                    let _ = self.claim(Claim { source, group, contact }, now); // some may find no place
                }
            }
        }
        let Some(entry) = self.entries.get_mut(&peer) else { return false };
        (entry.attempts, entry.tried, entry.good) = (record.attempts, record.tried, record.good);
        entry.added = record.added;
        self.touch(peer);
        true
    }
}

impl Record {
    /// Whether the row is about one peer, and within the limits.
    pub(super) fn is_sound(&self) -> bool {
        let claims = self.claims.iter().map(|claim| &claim.contact);
        let ban = self.ban.iter().filter_map(|ban| ban.contact.as_ref());
        let mut contacts = self.proven.iter().map(|(contact, _)| contact).chain(claims).chain(ban);
        let is_within =
            |it: &Contact| it.peer == self.peer && it.addrs.len() <= MAX_ADDRS && it.relays.len() <= MAX_TOLD_RELAYS;
        contacts.all(is_within) && self.to_bytes().len() <= MAX_ROW
    }

    /// The row's bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let claim = |claim: &ClaimRecord| ClaimRow {
            source: claim.source.to_string(),
            contact: Some(ContactRow::from(&claim.contact)),
        };
        let row = Row {
            peer: self.peer.to_wire().to_vec(),
            proven: self.proven.as_ref().map(|(contact, _)| ContactRow::from(contact)),
            group: self.proven.as_ref().map(|(_, group)| group.to_string()).unwrap_or_default(),
            claims: self.claims.iter().map(claim).collect(),
            attempts: self.attempts,
            tried: self.tried.map_or(0, |at| at.0),
            good: self.good.map_or(0, |at| at.0),
            added: self.added.0,
            ban: self.ban.as_ref().map(|ban| BanRow {
                until: ban.until.0,
                why: ban.why.clone(),
                contact: ban.contact.as_ref().map(ContactRow::from),
            }),
        };
        row.encode_to_vec()
    }

    /// Reads what [`Record::to_bytes`] wrote; `None` if it is nothing of the kind.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let row = Row::decode(bytes).ok()?;
        let peer = PeerId::from_wire(&row.peer)?;
        let time = |secs: u64| (secs != 0).then_some(UnixTime(secs));
        let claim = |claim: ClaimRow| {
            Some(ClaimRecord { source: claim.source.parse().ok()?, contact: claim.contact?.read(peer)? })
        };
        let record = Record {
            peer,
            proven: match row.proven {
                Some(contact) => Some((contact.read(peer)?, row.group.parse().ok()?)),
                None => None,
            },
            claims: row.claims.into_iter().take(MAX_CLAIMS).map(claim).collect::<Option<_>>()?,
            attempts: row.attempts,
            tried: time(row.tried),
            good: time(row.good),
            added: UnixTime(row.added),
            ban: match row.ban {
                Some(BanRow { until, why, contact }) => {
                    let contact = contact.map(|contact| contact.read(peer).ok_or(())).transpose().ok()?;
                    Some(Ban::new(UnixTime(until), &why, contact))
                }
                None => None,
            },
        };
        record.is_sound().then_some(record)
    }
}

impl Head {
    /// The row's bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let anchors = self.anchors.iter().map(|peer| peer.to_wire().to_vec()).collect();
        HeadRow { key: self.key.to_vec(), anchors }.encode_to_vec()
    }

    /// Reads what [`Head::to_bytes`] wrote; `None` if it is nothing of the kind.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let row = HeadRow::decode(bytes).ok()?;
        let anchors = row.anchors.iter().map(|peer| PeerId::from_wire(peer)).collect::<Option<Vec<_>>>()?;
        Some(Head { key: row.key.try_into().ok()?, anchors })
    }
}

#[derive(Clone, PartialEq, Message)]
struct HeadRow {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
    #[prost(bytes = "vec", repeated, tag = "2")]
    anchors: Vec<Vec<u8>>,
}

#[derive(Clone, PartialEq, Message)]
struct Row {
    #[prost(bytes = "vec", tag = "1")]
    peer: Vec<u8>,
    #[prost(message, optional, tag = "2")]
    proven: Option<ContactRow>,
    #[prost(string, tag = "3")]
    group: String,
    #[prost(message, repeated, tag = "4")]
    claims: Vec<ClaimRow>,
    #[prost(uint32, tag = "5")]
    attempts: u32,
    #[prost(uint64, tag = "6")]
    tried: u64,
    #[prost(uint64, tag = "7")]
    good: u64,
    #[prost(uint64, tag = "8")]
    added: u64,
    #[prost(message, optional, tag = "9")]
    ban: Option<BanRow>,
}

#[derive(Clone, PartialEq, Message)]
struct ClaimRow {
    #[prost(string, tag = "1")]
    source: String,
    #[prost(message, optional, tag = "2")]
    contact: Option<ContactRow>,
}

#[derive(Clone, PartialEq, Message)]
struct BanRow {
    #[prost(uint64, tag = "1")]
    until: u64,
    #[prost(string, tag = "2")]
    why: String,
    #[prost(message, optional, tag = "3")]
    contact: Option<ContactRow>,
}

/// A contact without its peer, in rows and in the messages of peer exchange.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct ContactRow {
    #[prost(bytes = "vec", repeated, tag = "1")]
    pub(crate) addrs: Vec<Vec<u8>>,
    #[prost(bytes = "vec", repeated, tag = "2")]
    pub(crate) relays: Vec<Vec<u8>>,
}

impl From<&Contact> for ContactRow {
    fn from(contact: &Contact) -> Self {
        let addr = |addr: &HostAddr| {
            let mut wire = Vec::new();
            encode_host_addr(addr, &mut wire).then_some(wire)
        };
        ContactRow {
            addrs: contact.addrs.iter().take(MAX_ADDRS).filter_map(addr).collect(),
            relays: contact.relays.iter().take(MAX_TOLD_RELAYS).map(PeerAddr::to_wire).collect(),
        }
    }
}

impl ContactRow {
    /// The contact; `None` if it is garbled or over its limits.
    pub(crate) fn read(&self, peer: PeerId) -> Option<Contact> {
        if self.addrs.len() > MAX_ADDRS || self.relays.len() > MAX_TOLD_RELAYS {
            return None;
        }
        let addr = |wire: &Vec<u8>| decode_host_addr(wire).filter(|(_, rest)| rest.is_empty()).map(|(addr, _)| addr);
        let addrs = self.addrs.iter().map(addr).collect::<Option<_>>()?;
        let relays = self.relays.iter().map(|wire| PeerAddr::from_wire(wire)).collect::<Option<_>>()?;
        Some(Contact { peer, addrs, relays })
    }
}
