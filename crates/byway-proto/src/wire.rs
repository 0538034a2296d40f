//! The datagrams on our UDP sockets, and how the first byte tells them apart (in the manner of RFC 7983).
//!
//! `docs/wire.md` draws the layouts. Everything here is total: any bytes give an answer, none panic. [`classify`],
//! [`quic::parse_long`], [`quic::short_dcid`], [`relay_data::parse`] and [`fragment::parse`] run for each packet and allocate nothing.

pub mod fragment;
pub mod natpmp;
pub mod pcp;
pub mod probe;
pub mod quic;
pub mod relay_data;
pub mod stun;

/// What a received datagram is, by its first byte (and for STUN its cookie); its contents are not yet looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// `00……` with STUN's magic cookie (RFC 8489 §5): see [`stun`].
    Stun,
    /// `01……`: a QUIC packet with a short header (RFC 9000 §17.3).
    QuicShort,
    /// `11……`: a QUIC packet with a long header (RFC 9000 §17.2); a sender that clears the fixed bit is not understood.
    QuicLong,
    /// `0x80`: see [`probe`].
    Probe,
    /// `0x81`: see [`relay_data`].
    RelayData,
    /// `0x82`: see [`fragment`].
    Fragment,
    /// Anything else. Answers to port-mapping requests land here too: they are known by their source, before the first byte.
    Junk,
}

/// Tells what a datagram is.
#[inline]
pub fn classify(datagram: &[u8]) -> Kind {
    let Some(first) = datagram.first() else {
        return Kind::Junk;
    };
    match first >> 6 {
        0b01 => Kind::QuicShort,
        0b11 => Kind::QuicLong,
        0b00 if stun::has_cookie(datagram) => Kind::Stun,
        _ => match *first {
            probe::FIRST_BYTE => Kind::Probe,
            relay_data::FIRST_BYTE => Kind::RelayData,
            fragment::FIRST_BYTE => Kind::Fragment,
            _ => Kind::Junk,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;
    use proptest::prelude::*;

    #[test]
    fn first_byte_decides() {
        for first in 0..=u8::MAX {
            let expected = match first {
                0x40..=0x7f => Kind::QuicShort,
                0xc0..=0xff => Kind::QuicLong,
                0x80 => Kind::Probe,
                0x81 => Kind::RelayData,
                0x82 => Kind::Fragment,
                _ => Kind::Junk,
            };
            assert_eq!(classify(&[first]), expected, "{first:#x}");
            assert_eq!(classify(&[&[first][..], &[0; 40]].concat()), expected, "{first:#x}");
        }
    }

    #[test]
    fn stun_is_known_by_its_cookie() {
        assert_eq!(classify(&stun::binding_request([7; 12])), Kind::Stun);
        assert_eq!(classify(&stun::binding_response([7; 12], "192.0.2.1:1".parse().unwrap())), Kind::Stun);
        assert_eq!(classify(&stun::binding_request([7; 12])[..7]), Kind::Junk);
    }

    #[test]
    fn nothing_is_junk() {
        assert_eq!(classify(&[]), Kind::Junk);
    }

    proptest! {
        #[test]
        fn no_bytes_panic(datagram: Vec<u8>) {
            classify(&datagram);
        }
    }
}
