//! Why two peers do not fit, in a form that both can read.

use alloc::{
    format,
    string::{String, ToString},
};
use core::{fmt, str::FromStr};

use thiserror::Error;

use super::{Goodbye, MAX_AGENT, MAX_DECLARED, MAX_NAME, MAX_PROTOCOLS};

/// Why the two hellos do not make a link.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Refusal {
    /// The peers belong to different networks.
    #[error("the peer belongs to network {theirs:?}, we to {ours:?}: join the same network")]
    OtherNetwork {
        /// Our network.
        ours: String,
        /// The other side's network.
        theirs: String,
    },
    /// One side cannot do without a protocol that the other does not speak.
    #[error("protocol {name:?} is required by {required_by} and unknown to the other: register it on both sides")]
    MissingProtocol {
        /// The protocol's name.
        name: String,
        /// Who requires it.
        required_by: Side,
    },
    /// Both speak a required protocol, but no version of it in common.
    #[error("no common version of protocol {name:?}: we speak {ours}, the peer {theirs}: update the older side")]
    NoCommonVersion {
        /// The protocol's name.
        name: String,
        /// Our versions.
        ours: Versions,
        /// The other side's versions.
        theirs: Versions,
    },
    /// Both speak a required protocol, but disagree on how one of its channels is delivered.
    #[error(
        "channel {channel} of protocol {name:?} is delivered as datagrams by {datagrams_at} and as a stream by the other: \
         declare the same delivery on both sides"
    )]
    OtherDelivery {
        /// The protocol's name.
        name: String,
        /// The channel's number.
        channel: u32,
        /// Who delivers it as datagrams.
        datagrams_at: Side,
    },
    /// The other side's hello is malformed.
    #[error("the peer misbehaved, its hello {0}: report it to the makers of the peer's software")]
    PeerMisbehaved(HelloFault),
    /// Our own hello is malformed.
    #[error("our own hello {0}: correct what is registered on this node")]
    ApiMisuse(HelloFault),
}

impl Refusal {
    /// What to tell the other side.
    pub fn to_goodbye(&self) -> Goodbye {
        let (code, detail) = match self {
            Refusal::OtherNetwork { ours, theirs } => (OTHER_NETWORK, format!("{ours} {theirs}")),
            Refusal::MissingProtocol { name, required_by: Side::Ours } => (MISSING_AT_READER, name.clone()),
            Refusal::MissingProtocol { name, required_by: Side::Theirs } => (MISSING_AT_WRITER, name.clone()),
            Refusal::NoCommonVersion { name, ours, theirs } => (NO_COMMON_VERSION, format!("{name} {ours} {theirs}")),
            Refusal::OtherDelivery { name, channel, datagrams_at: Side::Ours } => {
                (DATAGRAMS_AT_WRITER, format!("{name} {channel}"))
            }
            Refusal::OtherDelivery { name, channel, datagrams_at: Side::Theirs } => {
                (DATAGRAMS_AT_READER, format!("{name} {channel}"))
            }
            Refusal::PeerMisbehaved(fault) => (READER_MISBEHAVED, fault.to_text()),
            Refusal::ApiMisuse(fault) => (WRITER_MISBEHAVED, fault.to_text()),
        };
        Goodbye { code, detail }
    }

    /// What the other side's words mean for us; `None` if they are not a refusal of a hello.
    pub fn from_goodbye(goodbye: &Goodbye) -> Option<Self> {
        let detail = goodbye.detail.as_str();
        let written = match goodbye.code {
            OTHER_NETWORK => {
                let (ours, theirs) = detail.split_once(' ')?;
                Refusal::OtherNetwork { ours: ours.into(), theirs: theirs.into() }
            }
            MISSING_AT_READER => Refusal::MissingProtocol { name: detail.into(), required_by: Side::Ours },
            MISSING_AT_WRITER => Refusal::MissingProtocol { name: detail.into(), required_by: Side::Theirs },
            NO_COMMON_VERSION => {
                let (name, versions) = detail.split_once(' ')?;
                let (ours, theirs) = versions.split_once(' ')?;
                let (ours, theirs) = (ours.parse().ok()?, theirs.parse().ok()?);
                Refusal::NoCommonVersion { name: name.into(), ours, theirs }
            }
            DATAGRAMS_AT_WRITER | DATAGRAMS_AT_READER => {
                let (name, channel) = detail.split_once(' ')?;
                let datagrams_at = if goodbye.code == DATAGRAMS_AT_WRITER { Side::Ours } else { Side::Theirs };
                Refusal::OtherDelivery { name: name.into(), channel: channel.parse().ok()?, datagrams_at }
            }
            READER_MISBEHAVED => Refusal::PeerMisbehaved(HelloFault::from_text(detail)?),
            WRITER_MISBEHAVED => Refusal::ApiMisuse(HelloFault::from_text(detail)?),
            _ => return None,
        };
        Some(written.mirrored())
    }

    /// The same refusal as the other side sees it.
    pub fn mirrored(self) -> Self {
        match self {
            Refusal::OtherNetwork { ours, theirs } => Refusal::OtherNetwork { ours: theirs, theirs: ours },
            Refusal::MissingProtocol { name, required_by } => {
                Refusal::MissingProtocol { name, required_by: required_by.other() }
            }
            Refusal::NoCommonVersion { name, ours, theirs } => {
                Refusal::NoCommonVersion { name, ours: theirs, theirs: ours }
            }
            Refusal::OtherDelivery { name, channel, datagrams_at } => {
                Refusal::OtherDelivery { name, channel, datagrams_at: datagrams_at.other() }
            }
            Refusal::PeerMisbehaved(fault) => Refusal::ApiMisuse(fault),
            Refusal::ApiMisuse(fault) => Refusal::PeerMisbehaved(fault),
        }
    }
}

/// One of the two sides of a link.
// Exhaustive: a link has two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// This side.
    Ours,
    /// The other side.
    Theirs,
}

impl Side {
    fn other(self) -> Self {
        match self {
            Side::Ours => Side::Theirs,
            Side::Theirs => Side::Ours,
        }
    }
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Side::Ours => "us",
            Side::Theirs => "the peer",
        })
    }
}

/// A range of versions, both ends included; its text form is `1-3`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Versions {
    /// The lowest version.
    pub min: u32,
    /// The highest version.
    pub max: u32,
}

impl fmt::Display for Versions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.min, self.max)
    }
}

impl FromStr for Versions {
    type Err = ParseVersionsError;

    fn from_str(text: &str) -> Result<Self, ParseVersionsError> {
        let (min, max) = text.split_once('-').ok_or(ParseVersionsError)?;
        let parse = |number: &str| number.parse().map_err(|_| ParseVersionsError);
        Ok(Versions { min: parse(min)?, max: parse(max)? })
    }
}

/// A text is not a range of versions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("not a range of versions: write it as 1-3")]
pub struct ParseVersionsError;

/// What is wrong with a hello.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum HelloFault {
    /// The software's name is too long.
    #[error("has an agent of more than {MAX_AGENT} bytes")]
    BadAgent,
    /// The network's name is too long or not visible ASCII.
    #[error("has a network name that is not at most {MAX_NAME} bytes of visible ASCII")]
    BadNetwork,
    /// There are more protocols than allowed.
    #[error("announces {0} protocols, more than {MAX_PROTOCOLS}")]
    TooManyProtocols(usize),
    /// A protocol's name is empty, too long or not visible ASCII.
    #[error("names protocol number {index} by something other than 1 to {MAX_NAME} bytes of visible ASCII")]
    BadName {
        /// The protocol's place in the list, counted from 0.
        index: usize,
    },
    /// A protocol's versions begin at 0 or end before they begin.
    #[error("announces the impossible versions {versions} of protocol {name:?}")]
    BadVersions {
        /// The protocol's name.
        name: String,
        /// What was announced.
        versions: Versions,
    },
    /// Two protocols have the same name.
    #[error("announces protocol {0:?} twice")]
    DuplicateName(String),
    /// Two protocols have the same number.
    #[error("uses number {0} for two protocols")]
    DuplicateId(u32),
    /// There are more channels than allowed.
    #[error("declares {0} channels, more than {MAX_DECLARED}")]
    TooManyChannels(usize),
    /// A protocol declares a channel twice.
    #[error("declares channel {channel} of protocol {name:?} twice")]
    DuplicateChannel {
        /// The protocol's name.
        name: String,
        /// The channel's number.
        channel: u32,
    },
}

impl HelloFault {
    fn to_text(&self) -> String {
        match self {
            HelloFault::BadAgent => "agent".into(),
            HelloFault::BadNetwork => "network".into(),
            HelloFault::TooManyProtocols(count) => format!("protocols {count}"),
            HelloFault::BadName { index } => format!("name {index}"),
            HelloFault::BadVersions { name, versions } => format!("versions {versions} {name}"),
            HelloFault::DuplicateName(name) => format!("same-name {name}"),
            HelloFault::DuplicateId(id) => format!("same-id {id}"),
            HelloFault::TooManyChannels(count) => format!("channels {count}"),
            HelloFault::DuplicateChannel { name, channel } => format!("same-channel {channel} {name}"),
        }
    }

    fn from_text(text: &str) -> Option<Self> {
        let (kind, rest) = text.split_once(' ').unwrap_or((text, ""));
        Some(match kind {
            "agent" => HelloFault::BadAgent,
            "network" => HelloFault::BadNetwork,
            "protocols" => HelloFault::TooManyProtocols(rest.parse().ok()?),
            "name" => HelloFault::BadName { index: rest.parse().ok()? },
            "versions" => {
                let (versions, name) = rest.split_once(' ')?;
                HelloFault::BadVersions { name: name.to_string(), versions: versions.parse().ok()? }
            }
            "same-name" => HelloFault::DuplicateName(rest.into()),
            "same-id" => HelloFault::DuplicateId(rest.parse().ok()?),
            "channels" => HelloFault::TooManyChannels(rest.parse().ok()?),
            "same-channel" => {
                let (channel, name) = rest.split_once(' ')?;
                HelloFault::DuplicateChannel { name: name.to_string(), channel: channel.parse().ok()? }
            }
            _ => return None,
        })
    }
}

// Codes of a Goodbye; 1 to 15 are refusals of a hello. "Writer" is who sends the goodbye.
const OTHER_NETWORK: u32 = 1;
const MISSING_AT_READER: u32 = 2;
const MISSING_AT_WRITER: u32 = 3;
const NO_COMMON_VERSION: u32 = 4;
const READER_MISBEHAVED: u32 = 5;
const WRITER_MISBEHAVED: u32 = 6;
const DATAGRAMS_AT_READER: u32 = 7;
const DATAGRAMS_AT_WRITER: u32 = 8;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_refusal_is_read_as_its_mirror_image() {
        let versions = Versions { min: 1, max: u32::MAX };
        for refusal in [
            Refusal::OtherNetwork { ours: "".into(), theirs: "b".into() },
            Refusal::OtherNetwork { ours: "a".into(), theirs: "".into() },
            Refusal::MissingProtocol { name: "chat".into(), required_by: Side::Ours },
            Refusal::MissingProtocol { name: "chat".into(), required_by: Side::Theirs },
            Refusal::NoCommonVersion { name: "chat".into(), ours: versions, theirs: Versions { min: 2, max: 3 } },
            Refusal::PeerMisbehaved(HelloFault::BadAgent),
            Refusal::ApiMisuse(HelloFault::BadNetwork),
            Refusal::PeerMisbehaved(HelloFault::TooManyProtocols(65)),
            Refusal::PeerMisbehaved(HelloFault::BadName { index: 3 }),
            Refusal::PeerMisbehaved(HelloFault::BadVersions { name: "a".into(), versions }),
            Refusal::PeerMisbehaved(HelloFault::DuplicateName("a".into())),
            Refusal::PeerMisbehaved(HelloFault::DuplicateId(9)),
            Refusal::PeerMisbehaved(HelloFault::TooManyChannels(9)),
            Refusal::PeerMisbehaved(HelloFault::DuplicateChannel { name: "a".into(), channel: 9 }),
            Refusal::OtherDelivery { name: "chat".into(), channel: 3, datagrams_at: Side::Ours },
            Refusal::OtherDelivery { name: "chat".into(), channel: 3, datagrams_at: Side::Theirs },
        ] {
            assert_eq!(Refusal::from_goodbye(&refusal.to_goodbye()), Some(refusal.clone().mirrored()));
            assert_eq!(refusal.clone().mirrored().mirrored(), refusal);
        }
    }

    proptest! {
        #[test]
        fn no_goodbye_panics(code in 0u32..10, detail in ".{0,60}|[a-z-]{1,9} [0-9-]{0,9} ?[a-z]{0,3}") {
            let _ = Refusal::from_goodbye(&Goodbye { code, detail });
        }
    }
}
