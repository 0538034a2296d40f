//! The first byte decides, each parser agrees with that decision, and what it reads can be written again.
#![no_main]

use byway_proto::{
    Instant,
    wire::{Kind, classify, fragment, natpmp, pcp, quic, relay_data, stun},
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|datagram: &[u8]| {
    let kind = classify(datagram);
    quic_headers(datagram, kind);
    relayed(datagram, kind);
    fragments(datagram, kind);
    port_mapping(datagram);
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

fn port_mapping(datagram: &[u8]) {
    if let Ok(request) = pcp::decode_request(datagram) {
        assert_eq!(pcp::decode_request(&pcp::encode_request(&request)), Ok(request));
    }
    if let Ok(response) = pcp::decode_response(datagram) {
        assert_eq!(pcp::decode_response(&pcp::encode_response(&response)), Ok(response));
    }
    if let Ok(request) = natpmp::decode_request(datagram) {
        assert_eq!(natpmp::encode_request(&request).len(), datagram.len());
    }
    if let Ok(response) = natpmp::decode_response(datagram) {
        assert_eq!(natpmp::decode_response(&natpmp::encode_response(&response)), Ok(response));
    }
}
