//! A sealed packet on its way through a relay: nine bytes in front, like the channel number of TURN (RFC 8656 §12.4).

use core::fmt;

/// The first byte of relayed data.
pub const FIRST_BYTE: u8 = 0x81;

/// The bytes before the sealed packet: [`FIRST_BYTE`], allocation id.
pub const PREFIX_LEN: usize = 9;

/// A pair of peers at one relay: 64 random bits that the dialling peer chose, so that a stranger cannot guess them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AllocId(pub u64);

impl fmt::Display for AllocId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for AllocId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Reads the allocation id and the sealed packet, which is never empty.
#[inline]
pub fn parse(datagram: &[u8]) -> Option<(AllocId, &[u8])> {
    let (prefix, packet) = datagram.split_first_chunk::<PREFIX_LEN>()?;
    let [FIRST_BYTE, id @ ..] = *prefix else {
        return None;
    };
    (!packet.is_empty()).then_some((AllocId(u64::from_be_bytes(id)), packet))
}

/// What to put before a sealed packet.
#[inline]
pub fn prefix(alloc: AllocId) -> [u8; PREFIX_LEN] {
    let [a, b, c, d, e, f, g, h] = alloc.0.to_be_bytes();
    [FIRST_BYTE, a, b, c, d, e, f, g, h]
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::{format, vec::Vec};
    use proptest::prelude::*;

    const GOLDEN: [u8; 12] = [0x81, 1, 2, 3, 4, 5, 6, 7, 8, 0x40, 0xaa, 0xbb];

    #[test]
    fn bytes_are_the_documented_ones() {
        let alloc = AllocId(0x0102_0304_0506_0708);
        assert_eq!(prefix(alloc), GOLDEN[..PREFIX_LEN]);
        assert_eq!(parse(&GOLDEN), Some((alloc, &GOLDEN[PREFIX_LEN..])));
        assert_eq!(format!("{alloc}"), "0102030405060708");
    }

    #[test]
    fn an_empty_or_foreign_packet_is_none() {
        assert_eq!(parse(&GOLDEN[..PREFIX_LEN]), None);
        assert_eq!(parse(&GOLDEN[..4]), None);
        assert_eq!(parse(&[0x80; 40]), None);
    }

    proptest! {
        #[test]
        fn packets_round_trip(id: u64, packet in prop::collection::vec(any::<u8>(), 1..100)) {
            let datagram = [&prefix(AllocId(id))[..], &packet].concat();
            prop_assert_eq!(parse(&datagram), Some((AllocId(id), &packet[..])));
        }

        #[test]
        fn no_bytes_panic(datagram: Vec<u8>) {
            let _ = parse(&datagram);
            let _ = parse(&[&[FIRST_BYTE], &datagram[..]].concat());
        }
    }
}
