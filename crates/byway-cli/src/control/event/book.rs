//! The address book as JSON: what `byway peers` asks, and what it is told and writes.

use byway::{
    PeerAddr, UnixTime,
    book::{Ban, ClaimRecord, Contact, Record},
};
use byway_proto::addr::{HostAddr, MAX_ADDRS};
use serde::{Deserialize, Serialize};

/// What is to be done with the address book.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
pub(crate) enum PeersAsk {
    /// Tell it to a person.
    List,
    /// Tell it for another node.
    Export,
    /// Write a peer into it.
    Add {
        /// The peer and its addresses, as text.
        peer: String,
    },
    /// Keep a peer out.
    Ban {
        /// Its id.
        peer: String,
        /// Until when, in seconds since 1970; for good without it.
        until: Option<u64>,
        /// The owner's reason.
        why: String,
    },
    /// Let a peer in again.
    Unban {
        /// Its id.
        peer: String,
    },
    /// Take over rows of another book.
    Import {
        /// The rows.
        peers: Vec<Known>,
    },
}

/// A peer in the address book.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Known {
    /// Its id.
    pub(crate) peer: String,
    /// Where it was reached, or the owner's word.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) proven: Option<Place>,
    /// What others say of it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) claims: Vec<Said>,
    /// Dials since the last success.
    pub(crate) attempts: u32,
    /// The last dial, in seconds since 1970.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) tried: Option<u64>,
    /// The last success, in seconds since 1970.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) good: Option<u64>,
    /// When it was first heard of, in seconds since 1970.
    pub(crate) added: u64,
    /// The ban on it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) ban: Option<Banned>,
}

/// Where a peer is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Place {
    /// The group of addresses that it counts to, such as `203.0.0.0/16`.
    pub(crate) group: String,
    /// Its addresses.
    pub(crate) addrs: Vec<String>,
    /// Its relays.
    pub(crate) relays: Vec<String>,
}

/// What somebody says of a peer.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Said {
    /// The group of addresses of who says it.
    pub(crate) source: String,
    /// Addresses.
    pub(crate) addrs: Vec<String>,
    /// Relays.
    pub(crate) relays: Vec<String>,
}

/// A ban.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Banned {
    /// When it ends, in seconds since 1970; never without it.
    pub(crate) until: Option<u64>,
    /// The owner's reason.
    pub(crate) why: String,
}

impl From<&Record> for Known {
    fn from(record: &Record) -> Self {
        Known {
            peer: record.peer.to_string(),
            proven: record.proven.as_ref().map(|(contact, group)| Place {
                group: group.to_string(),
                addrs: texts(&contact.addrs),
                relays: texts(&contact.relays),
            }),
            claims: record.claims.iter().map(Said::from).collect(),
            attempts: record.attempts,
            tried: record.tried.map(|at| at.0),
            good: record.good.map(|at| at.0),
            added: record.added.0,
            ban: record.ban.as_ref().map(|ban| Banned {
                until: (ban.until != UnixTime::NEVER).then_some(ban.until.0),
                why: ban.why.clone(),
            }),
        }
    }
}

impl From<&ClaimRecord> for Said {
    fn from(ClaimRecord { source, contact }: &ClaimRecord) -> Self {
        Said { source: source.to_string(), addrs: texts(&contact.addrs), relays: texts(&contact.relays) }
    }
}

impl Known {
    /// The row; the text says what is wrong with it.
    pub(crate) fn read(&self) -> Result<Record, String> {
        let peer = self.peer.parse().map_err(|error| format!("{:?}: {error}", self.peer))?;
        let contact = |addrs: &[String], relays: &[String]| {
            let wrong = |error: String| format!("{}: {error}", self.peer);
            Ok::<_, String>(Contact {
                peer,
                addrs: parse::<HostAddr>(addrs).map_err(wrong)?,
                relays: parse::<PeerAddr>(relays).map_err(wrong)?,
            })
        };
        let proven = match &self.proven {
            Some(place) => {
                let group = place.group.parse().map_err(|error| format!("{}: {error}", self.peer))?;
                Some((contact(&place.addrs, &place.relays)?, group))
            }
            None => None,
        };
        let claim = |said: &Said| {
            let source = said.source.parse().map_err(|error| format!("{}: {error}", self.peer))?;
            Ok::<_, String>(ClaimRecord { source, contact: contact(&said.addrs, &said.relays)? })
        };
        let ban = |ban: &Banned| Ban {
            until: ban.until.map_or(UnixTime::NEVER, UnixTime),
            why: ban.why.clone(),
            contact: None,
        };
        Ok(Record {
            peer,
            proven,
            claims: self.claims.iter().map(claim).collect::<Result<_, _>>()?,
            attempts: self.attempts,
            tried: self.tried.map(UnixTime),
            good: self.good.map(UnixTime),
            added: UnixTime(self.added),
            ban: self.ban.as_ref().map(ban),
        })
    }

    /// All addresses that anybody named.
    pub(crate) fn addresses(&self) -> Vec<String> {
        let said = self.claims.iter().flat_map(|said| &said.addrs);
        let mut all: Vec<_> = self.proven.iter().flat_map(|place| &place.addrs).chain(said).cloned().collect();
        all.dedup();
        all.truncate(MAX_ADDRS);
        all
    }
}

fn texts(of: &[impl ToString]) -> Vec<String> {
    of.iter().map(ToString::to_string).collect()
}

fn parse<T: std::str::FromStr<Err: std::fmt::Display>>(texts: &[String]) -> Result<Vec<T>, String> {
    texts.iter().map(|text| text.parse().map_err(|error| format!("{text:?}: {error}"))).collect()
}

#[cfg(test)]
mod tests {
    use byway::book::Group;

    use super::*;

    #[test]
    fn rows_are_read_as_they_were_written() {
        let peer = byway::PeerId::ed25519([7; 32]);
        let addr: HostAddr = "home.example:7".parse().unwrap();
        let contact = Contact { addrs: vec![addr], ..Contact::new(peer) };
        let record = Record {
            peer,
            proven: Some((contact.clone(), Group::LOCAL)),
            claims: vec![ClaimRecord { source: Group::of([198, 51, 100, 1].into()), contact }],
            attempts: 3,
            tried: Some(UnixTime(5)),
            good: None,
            added: UnixTime(4),
            ban: Some(Ban { until: UnixTime::NEVER, why: "by hand".into(), contact: None }),
        };
        assert_eq!(Known::from(&record).read(), Ok(record.clone()));
        let json = serde_json::to_string(&Known::from(&record)).unwrap();
        assert_eq!(serde_json::from_str::<Known>(&json).unwrap().read(), Ok(record));
        let wrong = Known { peer: "x".into(), ..Known::default() };
        assert!(wrong.read().unwrap_err().starts_with("\"x\": peer id is truncated"));
    }
}
