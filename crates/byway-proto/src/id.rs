//! Who a peer is: a public key, and the one way to write it down.

pub(crate) mod base32;

use alloc::{string::String, vec::Vec};
use core::{fmt, str::FromStr};

/// The characters of a [`PeerId`]'s text: 35 bytes in base32 fill them without a spare bit, so that a key has one text.
pub const TEXT_LEN: usize = 56;

/// The characters of [`PeerId::short`]: 42 bits of the key, enough to tell peers apart by eye, not to prove who one is.
pub const SHORT_LEN: usize = 10;

/// Bytes of a hash that make a name on a local network: too many for two peers to share one, or for anybody to aim at one.
const LAN_NAME_BYTES: usize = 16;

/// The characters of a peer's name on a local network.
pub const LAN_NAME_LEN: usize = base32::encoded_len(LAN_NAME_BYTES);

/// The kind of key that a [`PeerId`] carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum KeyKind {
    /// Ed25519 (RFC 8032), 32 bytes.
    Ed25519,
}

impl KeyKind {
    /// The byte that stands for this kind in text and on the wire.
    pub const fn to_byte(self) -> u8 {
        match self {
            KeyKind::Ed25519 => 1,
        }
    }

    /// The kind that `byte` stands for, if this version knows it.
    pub const fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            1 => Some(KeyKind::Ed25519),
            _ => None,
        }
    }
}

/// A peer's public key: its identity and its name.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerId {
    kind: KeyKind,
    key: [u8; 32],
}

impl PeerId {
    /// The bytes of [`PeerId::to_wire`]: one for the kind, 32 for the key.
    pub const WIRE_LEN: usize = 33;

    /// The peer that holds the private half of this Ed25519 public key (RFC 8032 §5.1.5).
    pub const fn ed25519(key: [u8; 32]) -> Self {
        PeerId { kind: KeyKind::Ed25519, key }
    }

    /// The kind of the key.
    pub const fn kind(&self) -> KeyKind {
        self.kind
    }

    /// The public key itself, without its kind.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.key
    }

    /// The first [`SHORT_LEN`] characters of the text, for logs and tables.
    pub fn short(&self) -> String {
        let mut text = self.text();
        text.truncate(SHORT_LEN);
        text
    }

    /// The peer's name on a local network, a DNS label of [`LAN_NAME_LEN`] characters: whoever knows the id and the network's
    /// name can ask for it, and nobody can tell the id by it.
    pub fn lan_name(&self, network: &str) -> String {
        let mut hash = blake3::Hasher::new_derive_key("byway 1 name on a local network");
        hash.update(&self.to_wire()).update(network.as_bytes()); // the first part has a fixed length
        let mut name = [0; LAN_NAME_BYTES];
        hash.finalize_xof().fill(&mut name);
        base32::encode(&name)
    }

    /// The binary form: kind byte, then key.
    pub fn to_wire(&self) -> [u8; Self::WIRE_LEN] {
        let mut wire = [self.kind.to_byte(); Self::WIRE_LEN];
        for (to, from) in wire.iter_mut().skip(1).zip(self.key) {
            *to = from;
        }
        wire
    }

    /// Reads the binary form; `None` unless there are exactly [`PeerId::WIRE_LEN`] bytes of a known kind.
    pub fn from_wire(wire: &[u8]) -> Option<Self> {
        let (kind, key) = wire.split_first()?;
        Some(PeerId { kind: KeyKind::from_byte(*kind)?, key: key.try_into().ok()? })
    }

    fn text(&self) -> String {
        let mut bytes = Vec::from(self.to_wire());
        base32::push_checksum(&mut bytes);
        base32::encode(&bytes)
    }
}

impl fmt::Display for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.text())
    }
}

impl fmt::Debug for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.short())
    }
}

impl FromStr for PeerId {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        let text = text.trim();
        let decoded = base32::decode(text.chars().take(TEXT_LEN))
            .map_err(|wrong| ParseIdError::Character { found: wrong.found, at: wrong.at })?;
        if decoded.chars < TEXT_LEN {
            return Err(ParseIdError::Truncated { found: decoded.chars });
        }
        if text.chars().nth(TEXT_LEN).is_some() {
            return Err(ParseIdError::TooLong);
        }
        let wire = base32::split_checksum(&decoded.bytes).ok_or(ParseIdError::Mistyped)?;
        let kind = wire.first().copied().unwrap_or_default();
        PeerId::from_wire(wire).ok_or(ParseIdError::UnknownKind(kind))
    }
}

/// Why a text is not a [`PeerId`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ParseIdError {
    /// Characters are missing at the end.
    #[error("peer id is truncated: it has {found} of {TEXT_LEN} characters; copy all of it")]
    Truncated {
        /// How many characters there are.
        found: usize,
    },
    /// There are characters after the id's end.
    #[error("peer id is too long: it goes on after {TEXT_LEN} characters; copy it alone")]
    TooLong,
    /// A character that no id contains.
    #[error(
        "peer id is mistyped: {found:?} (character {at}) is neither a letter nor a digit from 2 to 7; copy it again"
    )]
    Character {
        /// The character.
        found: char,
        /// Where it stands, counted from 1.
        at: usize,
    },
    /// The checksum does not fit the rest.
    #[error("peer id is mistyped: its checksum does not match; copy it again")]
    Mistyped,
    /// The key is of a kind that this version does not know.
    #[error("peer id holds an unknown kind of key ({0}), so a newer byway made it; update byway here")]
    UnknownKind(u8),
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::{
        format,
        string::{String, ToString},
    };
    use proptest::prelude::*;

    /// The public key of RFC 8032 §7.1, test 1.
    const RFC_8032_KEY: [u8; 32] = [
        0xd7, 0x5a, 0x98, 0x01, 0x82, 0xb1, 0x0a, 0xb7, 0xd5, 0x4b, 0xfe, 0xd3, 0xc9, 0x64, 0x07, 0x3a, 0x0e, 0xe1,
        0x72, 0xf3, 0xda, 0xa6, 0x23, 0x25, 0xaf, 0x02, 0x1a, 0x68, 0xf7, 0x07, 0x51, 0x1a,
    ];
    const GOLDEN: &str = "ahlvvgabqkyqvn6vjp7nhslea45a5yls6pnkmizfv4bbu2hxa5irusre";

    #[test]
    fn the_name_on_a_lan_differs_by_peer_and_network() {
        let (a, b) = (PeerId::ed25519([1; 32]), PeerId::ed25519([2; 32]));
        assert_eq!(a.lan_name("byway"), a.lan_name("byway"));
        assert_ne!(a.lan_name("byway"), b.lan_name("byway"));
        assert_ne!(a.lan_name("byway"), a.lan_name("lab"));
        assert_eq!(a.lan_name("").len(), LAN_NAME_LEN);
    }

    #[test]
    fn text_is_the_documented_one() {
        let id = PeerId::ed25519(RFC_8032_KEY);
        assert_eq!(id.to_string(), GOLDEN);
        assert_eq!(id.to_string().len(), TEXT_LEN);
        assert_eq!(GOLDEN.parse(), Ok(id));
        assert_eq!(id.short(), &GOLDEN[..SHORT_LEN]);
        assert_eq!(format!("{id:?}"), id.short());
    }

    #[test]
    fn upper_case_and_outer_blanks_are_accepted() {
        let text = format!(" {}\r\n", GOLDEN.to_uppercase());
        assert_eq!(text.parse(), Ok(PeerId::ed25519(RFC_8032_KEY)));
    }

    #[test]
    fn every_single_mistyped_character_is_caught() {
        let alphabet = "abcdefghijklmnopqrstuvwxyz234567";
        for at in 0..TEXT_LEN {
            for wrong in alphabet.chars().filter(|c| !GOLDEN[at..].starts_with(*c)) {
                let text = format!("{}{wrong}{}", &GOLDEN[..at], &GOLDEN[at + 1..]);
                assert_eq!(text.parse::<PeerId>(), Err(ParseIdError::Mistyped), "{text}");
            }
        }
    }

    #[test]
    fn every_swap_of_two_neighbours_is_caught() {
        for at in 0..TEXT_LEN - 1 {
            let mut swapped = GOLDEN.as_bytes().to_vec();
            swapped.swap(at, at + 1);
            if swapped != GOLDEN.as_bytes() {
                let text = String::from_utf8(swapped).unwrap();
                assert_eq!(text.parse::<PeerId>(), Err(ParseIdError::Mistyped), "{text}");
            }
        }
    }

    #[test]
    fn errors_tell_truncated_from_mistyped_from_unknown() {
        assert_eq!(GOLDEN[..50].parse::<PeerId>(), Err(ParseIdError::Truncated { found: 50 }));
        assert_eq!("".parse::<PeerId>(), Err(ParseIdError::Truncated { found: 0 }));
        assert_eq!(format!("{GOLDEN}a").parse::<PeerId>(), Err(ParseIdError::TooLong));
        let with_zero = format!("ae0{}", &GOLDEN[3..]);
        assert_eq!(with_zero.parse::<PeerId>(), Err(ParseIdError::Character { found: '0', at: 3 }));
        let mut of_the_future = Vec::from(PeerId::ed25519([7; 32]).to_wire());
        of_the_future[0] = 9;
        base32::push_checksum(&mut of_the_future);
        assert_eq!(base32::encode(&of_the_future).parse::<PeerId>(), Err(ParseIdError::UnknownKind(9)));
    }

    #[test]
    fn wire_form_refuses_other_lengths_and_kinds() {
        let wire = PeerId::ed25519([7; 32]).to_wire();
        assert_eq!(PeerId::from_wire(&wire), Some(PeerId::ed25519([7; 32])));
        assert_eq!(PeerId::from_wire(&wire[..32]), None);
        assert_eq!(PeerId::from_wire(&[&wire[..], &[0]].concat()), None);
        assert_eq!(PeerId::from_wire(&[&[0], &wire[1..]].concat()), None);
        assert_eq!(PeerId::from_wire(&[]), None);
    }

    proptest! {
        #[test]
        fn text_and_wire_round_trip(key: [u8; 32]) {
            let id = PeerId::ed25519(key);
            prop_assert_eq!(id.to_string().parse(), Ok(id));
            prop_assert_eq!(PeerId::from_wire(&id.to_wire()), Some(id));
        }

        #[test]
        fn any_mistyped_character_of_any_id_is_caught(key: [u8; 32], at in 0..TEXT_LEN, wrong in "[a-z2-7]") {
            let mut text = PeerId::ed25519(key).to_string();
            prop_assume!(text[at..=at] != wrong);
            text.replace_range(at..=at, &wrong);
            prop_assert_eq!(text.parse::<PeerId>(), Err(ParseIdError::Mistyped));
        }

        #[test]
        fn no_text_panics(text: String) {
            let _ = text.parse::<PeerId>();
        }

        #[test]
        fn whatever_parses_is_the_only_text_of_its_key(text in "[a-zA-Z2-7]{56}") {
            if let Ok(id) = text.parse::<PeerId>() {
                prop_assert_eq!(id.to_string(), text.to_lowercase());
            }
        }
    }
}
