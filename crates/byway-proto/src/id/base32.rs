//! Bytes as text that people copy: base32 (RFC 4648 §6) in lower case without padding, and the checksum that guards it.

use alloc::{string::String, vec::Vec};

const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
const CHAR_BITS: u32 = 5;

/// The bytes of the checksum.
pub(crate) const CHECKSUM_LEN: usize = 2;

/// What [`decode`] has read.
pub(crate) struct Decoded {
    /// The whole bytes.
    pub(crate) bytes: Vec<u8>,
    /// How many characters there were.
    pub(crate) chars: usize,
    /// The bits after the last whole byte; zero in everything that [`encode`] wrote.
    pub(crate) spare: u8,
}

/// A character outside the alphabet.
pub(crate) struct WrongCharacter {
    /// The character.
    pub(crate) found: char,
    /// Where it stands, counted from 1.
    pub(crate) at: usize,
}

/// How many characters [`encode`] makes of `bytes` bytes.
pub(crate) const fn encoded_len(bytes: usize) -> usize {
    bytes.saturating_mul(8).div_ceil(CHAR_BITS as usize)
}

/// Writes bytes as lower-case base32 without padding.
pub(crate) fn encode(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(encoded_len(bytes.len()));
    let (mut pending, mut bits) = (0_u32, 0);
    for byte in bytes {
        pending = (pending << 8) | u32::from(*byte);
        bits += 8;
        while bits >= CHAR_BITS {
            bits -= CHAR_BITS;
            text.push(letter(pending >> bits));
        }
        pending &= (1 << bits) - 1;
    }
    if bits > 0 {
        text.push(letter(pending << (CHAR_BITS - bits)));
    }
    text
}

/// Reads base32 of either case; the caller bounds how many characters there can be.
pub(crate) fn decode(text: impl Iterator<Item = char>) -> Result<Decoded, WrongCharacter> {
    let mut decoded = Decoded { bytes: Vec::new(), chars: 0, spare: 0 };
    let (mut pending, mut bits) = (0_u32, 0);
    for found in text {
        decoded.chars += 1;
        let value = value(found).ok_or(WrongCharacter { found, at: decoded.chars })?;
        pending = (pending << CHAR_BITS) | value;
        bits += CHAR_BITS;
        if bits >= 8 {
            bits -= 8;
            decoded.bytes.push((pending >> bits) as u8);
            pending &= (1 << bits) - 1;
        }
    }
    decoded.spare = pending as u8;
    Ok(decoded)
}

/// Appends the checksum of all that `bytes` holds.
pub(crate) fn push_checksum(bytes: &mut Vec<u8>) {
    bytes.extend(crc16(bytes).to_be_bytes());
}

/// What stands before the checksum, if the checksum fits it.
pub(crate) fn split_checksum(bytes: &[u8]) -> Option<&[u8]> {
    let (body, checksum) = bytes.split_last_chunk::<CHECKSUM_LEN>()?;
    (crc16(body).to_be_bytes() == *checksum).then_some(body)
}

/// CRC-16 with polynomial 0x1021, initial value 0xffff, neither reflected nor inverted.
///
/// A truncated hash would miss one mistyped character in 65,536. A cyclic code misses none: every error within 16 neighbouring bits,
/// hence one wrong character or two swapped neighbours, changes it (and other errors all but one time in 65,536).
fn crc16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0xffff, |crc, byte| {
        (0..8).fold(
            crc ^ (u16::from(*byte) << 8),
            |crc, _| {
                if crc & 0x8000 == 0 { crc << 1 } else { (crc << 1) ^ 0x1021 }
            },
        )
    })
}

fn letter(value: u32) -> char {
    let index = value as usize % ALPHABET.len();
    char::from(*ALPHABET.get(index).expect("the index is below the alphabet's length"))
}

fn value(found: char) -> Option<u32> {
    match found.to_ascii_lowercase() {
        letter @ 'a'..='z' => Some(letter as u32 - 'a' as u32),
        digit @ '2'..='7' => Some(digit as u32 - '2' as u32 + 26),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;
    use proptest::prelude::*;

    #[test]
    fn rfc_4648_vectors_hold() {
        let vectors = [
            ("", ""),
            ("f", "my"),
            ("fo", "mzxq"),
            ("foo", "mzxw6"),
            ("foob", "mzxw6yq"),
            ("fooba", "mzxw6ytb"),
            ("foobar", "mzxw6ytboi"),
        ];
        for (bytes, text) in vectors {
            assert_eq!(encode(bytes.as_bytes()), text);
            assert_eq!(decode(text.chars()).ok().map(|decoded| decoded.bytes), Some(Vec::from(bytes)));
        }
    }

    #[test]
    fn checksum_has_the_catalogued_check_value() {
        assert_eq!(crc16(b"123456789"), 0x29b1);
    }

    proptest! {
        #[test]
        fn bytes_round_trip(bytes: Vec<u8>) {
            let text = encode(&bytes);
            prop_assert_eq!(text.len(), encoded_len(bytes.len()));
            let decoded = decode(text.to_uppercase().chars()).ok().unwrap();
            prop_assert_eq!((decoded.bytes, decoded.chars, decoded.spare), (bytes, text.len(), 0));
        }

        #[test]
        fn checksum_fits_only_what_it_was_made_of(bytes: Vec<u8>, at: prop::sample::Index, flip in 1..=255_u8) {
            let mut guarded = bytes.clone();
            push_checksum(&mut guarded);
            prop_assert_eq!(split_checksum(&guarded), Some(&bytes[..]));
            let at = at.index(guarded.len());
            guarded[at] ^= flip;
            prop_assert_eq!(split_checksum(&guarded), None);
        }
    }
}
