//! STUN from strangers: an answer is short and reads back, and no bytes make either parser panic.
#![no_main]

use std::net::SocketAddr;

use byway_proto::{
    addr::decode_socket_addr,
    wire::{Kind, classify, stun},
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Some(request) = stun::Request::parse(bytes) {
        assert_eq!(stun::Request::parse(&request.to_bytes()), Some(request));
    }
    if let Some(response) = stun::Response::parse(bytes) {
        assert_eq!(stun::Response::parse(&response.to_bytes()), Some(response));
    }
    if let Some(txid) = stun::parse_request(bytes) {
        assert_eq!(classify(bytes), Kind::Stun);
        answered(txid, SocketAddr::from(([192, 0, 2, 1], 9)));
    }
    if let Some((txid, rest)) = bytes.split_first_chunk::<12>() {
        if let Some((addr, _)) = decode_socket_addr(rest) {
            answered(*txid, addr);
        }
        // The fuzzer cannot guess a transaction id: give it the one that the message itself holds.
        let held = bytes.get(8..20).and_then(|held| held.try_into().ok());
        if let Some(addr) = held.and_then(|held: [u8; 12]| stun::parse_response(bytes, &held)) {
            assert_eq!(classify(bytes), Kind::Stun);
            answered(*txid, addr);
        }
    }
});

fn answered(txid: [u8; 12], addr: SocketAddr) {
    let answer = stun::binding_response(txid, addr);
    assert!(answer.len() <= stun::MAX_RESPONSE_LEN);
    assert_eq!(classify(&answer), Kind::Stun);
    assert_eq!(stun::parse_response(&answer, &txid), Some(addr));
}
