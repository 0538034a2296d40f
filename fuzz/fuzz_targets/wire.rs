//! The first byte decides, each parser agrees with that decision, and what it reads can be written again.
#![no_main]

use byway_proto::{
    Instant,
    wire::{Kind, classify, fragment, quic, relay_data, stun},
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|datagram: &[u8]| {
    let kind = classify(datagram);
    quic_headers(datagram, kind);
    relayed(datagram, kind);
    fragments(datagram, kind);
    assert!(stun::parse_request(datagram).is_none() || kind == Kind::Stun);
});

fn quic_headers(datagram: &[u8], kind: Kind) {
    if let Some(header) = quic::parse_long(datagram) {
        assert_eq!(kind, Kind::QuicLong);
        assert!(header.dcid.len() + header.scid.len() < datagram.len());
    }
    if let Some(dcid) = quic::short_dcid(datagram) {
        assert_eq!(kind, Kind::QuicShort);
        assert!(datagram[1..].starts_with(&dcid));
    }
}

fn relayed(datagram: &[u8], kind: Kind) {
    if let Some((alloc, packet)) = relay_data::parse(datagram) {
        assert_eq!(kind, Kind::RelayData);
        assert_eq!([&relay_data::prefix(alloc), packet].concat(), datagram);
    }
}

fn fragments(datagram: &[u8], kind: Kind) {
    if let Some(fragment) = fragment::parse(datagram) {
        assert_eq!(kind, Kind::Fragment);
        let mut reassembly = fragment::Reassembly::new();
        assert_eq!(reassembly.push(fragment, Instant::START), None);
        assert_eq!(reassembly.push(fragment, Instant::START), None);
    }
    if (2..=2 * fragment::MAX_HALF_LEN).contains(&datagram.len()) {
        let mut reassembly = fragment::Reassembly::new();
        let halves = fragment::split(datagram, [7; 8], 9);
        let [first, second] = halves.each_ref().map(|half| fragment::parse(half).expect("a half that we wrote"));
        assert_eq!(reassembly.push(second, Instant::START), None);
        assert_eq!(reassembly.push(first, Instant::START).as_deref(), Some(datagram));
        assert_eq!(reassembly.pending(), 0);
    }
}
