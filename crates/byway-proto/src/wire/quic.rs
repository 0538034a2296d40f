//! As much of QUIC's headers as the mux needs to find a packet's connection.

/// The length in bytes of the connection ids that our endpoints choose; fixed, because a short header does not tell it (RFC 9000 §17.3.1).
pub const CID_LEN: usize = 8;

/// The longest connection id of QUIC version 1 in bytes (RFC 9000 §17.2).
pub const MAX_CID_LEN: usize = 20;

/// QUIC version 1 (RFC 9000 §15), the only one that we speak.
pub const VERSION_1: u32 = 1;

const LONG_HEADER: u8 = 0x80;
const FIXED_BIT: u8 = 0x40;

/// The type of a packet with a long header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LongKind {
    /// The first packets of a handshake (RFC 9000 §17.2.2).
    Initial,
    /// Early data (RFC 9000 §17.2.3).
    ZeroRtt,
    /// The rest of a handshake (RFC 9000 §17.2.4).
    Handshake,
    /// A server's demand to prove an address (RFC 9000 §17.2.5).
    Retry,
    /// A server's list of versions (RFC 9000 §17.2.1).
    VersionNegotiation,
    /// A packet of a version that we do not speak, so that its type is unknown (RFC 8999 §5.1).
    OtherVersion,
}

/// The part of a long header that all versions share (RFC 8999 §5.1), and the packet's type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LongHeader<'a> {
    /// The packet's type.
    pub kind: LongKind,
    /// The version; 0 in a version negotiation.
    pub version: u32,
    /// The connection id that the receiver chose, or a client's random first one; at most [`MAX_CID_LEN`] bytes in version 1, else 255.
    pub dcid: &'a [u8],
    /// The connection id that the sender chose, with the same limits.
    pub scid: &'a [u8],
}

/// Reads the long header at the start of a datagram; later packets in the same datagram have the same `dcid` (RFC 9000 §12.2).
#[inline]
pub fn parse_long(datagram: &[u8]) -> Option<LongHeader<'_>> {
    let (first, rest) = datagram.split_first()?;
    if first & (LONG_HEADER | FIXED_BIT) != LONG_HEADER | FIXED_BIT {
        return None;
    }
    let (version, rest) = rest.split_first_chunk::<4>()?;
    let version = u32::from_be_bytes(*version);
    let (dcid, rest) = connection_id(rest)?;
    let (scid, _) = connection_id(rest)?;
    let kind = match (version, (first >> 4) & 0b11) {
        (0, _) => LongKind::VersionNegotiation,
        (VERSION_1, _) if dcid.len() > MAX_CID_LEN || scid.len() > MAX_CID_LEN => return None,
        (VERSION_1, 0) => LongKind::Initial,
        (VERSION_1, 1) => LongKind::ZeroRtt,
        (VERSION_1, 2) => LongKind::Handshake,
        (VERSION_1, _) => LongKind::Retry,
        _ => LongKind::OtherVersion,
    };
    Some(LongHeader { kind, version, dcid, scid })
}

/// Reads the destination connection id of a packet with a short header, if an endpoint of ours chose it.
#[inline]
pub fn short_dcid(datagram: &[u8]) -> Option<[u8; CID_LEN]> {
    let (first, rest) = datagram.split_first()?;
    if first & (LONG_HEADER | FIXED_BIT) != FIXED_BIT {
        return None;
    }
    rest.first_chunk().copied()
}

fn connection_id(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (len, rest) = bytes.split_first()?;
    rest.split_at_checked(usize::from(*len))
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;
    use proptest::prelude::*;

    /// The client Initial of RFC 9001 §A.2, as far as its header goes.
    const RFC_9001_INITIAL: [u8; 22] =
        [0xc0, 0, 0, 0, 1, 8, 0x83, 0x94, 0xc8, 0xf0, 0x3e, 0x51, 0x57, 0x08, 0, 0, 0x44, 0x9e, 0x7b, 0x9a, 0xec, 0x34];
    /// The Retry of RFC 9001 §A.4, as far as its token.
    const RFC_9001_RETRY: [u8; 20] =
        [0xff, 0, 0, 0, 1, 0, 8, 0xf0, 0x67, 0xa5, 0x50, 0x2a, 0x42, 0x62, 0xb5, 0x74, 0x6f, 0x6b, 0x65, 0x6e];

    fn long(first: u8, version: u32, dcid: &[u8], scid: &[u8], tail: &[u8]) -> Vec<u8> {
        let (dcid_len, scid_len) = ([dcid.len() as u8], [scid.len() as u8]);
        [&[first], &version.to_be_bytes()[..], &dcid_len, dcid, &scid_len, scid, tail].concat()
    }

    #[test]
    fn rfc_9001_packets_are_read() {
        let initial = parse_long(&RFC_9001_INITIAL).unwrap();
        assert_eq!((initial.kind, initial.version), (LongKind::Initial, VERSION_1));
        assert_eq!((initial.dcid, initial.scid), (&RFC_9001_INITIAL[6..14], &[][..]));
        let retry = parse_long(&RFC_9001_RETRY).unwrap();
        assert_eq!((retry.kind, retry.dcid, retry.scid), (LongKind::Retry, &[][..], &RFC_9001_RETRY[7..15]));
    }

    #[test]
    fn types_follow_the_two_bits_in_version_1() {
        let kind = |first, version| parse_long(&long(first, version, &[1], &[2], &[])).map(|header| header.kind);
        assert_eq!(kind(0xc0, 1), Some(LongKind::Initial));
        assert_eq!(kind(0xd0, 1), Some(LongKind::ZeroRtt));
        assert_eq!(kind(0xe0, 1), Some(LongKind::Handshake));
        assert_eq!(kind(0xf0, 1), Some(LongKind::Retry));
        assert_eq!(kind(0xf0, 0), Some(LongKind::VersionNegotiation));
        assert_eq!(kind(0xd0, 0x6b33_43cf), Some(LongKind::OtherVersion));
        assert_eq!(kind(0x80, 1), None);
        assert_eq!(kind(0x40, 1), None);
    }

    #[test]
    fn long_connection_ids_are_for_other_versions_only() {
        let parse = |version, len| parse_long(&long(0xc0, version, &[5; 255][..len], &[], &[])).map(|h| h.dcid.len());
        assert_eq!(parse(1, 20), Some(20));
        assert_eq!(parse(1, 21), None);
        assert_eq!(parse(9, 255), Some(255));
    }

    #[test]
    fn truncated_headers_are_none() {
        let whole = long(0xc0, 1, &[1; 8], &[2; 8], &[]);
        assert!(parse_long(&whole).is_some());
        for len in 0..whole.len() {
            assert_eq!(parse_long(&whole[..len]), None);
        }
    }

    #[test]
    fn short_headers_carry_our_id_length() {
        let datagram = [0x43, 1, 2, 3, 4, 5, 6, 7, 8, 9];
        assert_eq!(short_dcid(&datagram), Some([1, 2, 3, 4, 5, 6, 7, 8]));
        assert_eq!(short_dcid(&datagram[..9]), Some([1, 2, 3, 4, 5, 6, 7, 8]));
        assert_eq!(short_dcid(&datagram[..8]), None);
        assert_eq!(short_dcid(&[0xc3; 20]), None);
        assert_eq!(short_dcid(&[0x03; 20]), None);
    }

    proptest! {
        #[test]
        fn long_headers_round_trip(
            first in 0xc0..=0xff_u8,
            version: u32,
            dcid in prop::collection::vec(any::<u8>(), 0..=20),
            scid in prop::collection::vec(any::<u8>(), 0..=20),
            tail: Vec<u8>,
        ) {
            let datagram = long(first, version, &dcid, &scid, &tail);
            let header = parse_long(&datagram).unwrap();
            prop_assert_eq!((header.version, header.dcid, header.scid), (version, &dcid[..], &scid[..]));
        }

        #[test]
        fn no_bytes_panic(datagram: Vec<u8>, first in 0xc0..=0xff_u8) {
            let _ = (parse_long(&datagram), short_dcid(&datagram));
            let _ = parse_long(&[&[first, 0, 0, 0, 1], &datagram[..]].concat());
        }
    }
}
