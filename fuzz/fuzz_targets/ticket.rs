//! What people paste: tickets, peer ids and addresses. What is read is written and read again without change.
#![no_main]

use std::{
    fmt::{Debug, Display},
    str::FromStr,
};

use byway_proto::{
    PeerAddr, PeerId, Ticket,
    ticket::{MAX_TICKET_CHARS, VERSION},
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(text) = std::str::from_utf8(bytes) {
        same_again::<PeerId>(text);
        same_again::<PeerAddr>(text);
        ticket(text);
    }
    ticket(&sealed(bytes));
    let peer = PeerId::ed25519([7; 32]).to_wire();
    ticket(&sealed(&[&[1, peer.len() as u8], &peer[..], bytes].concat()));
});

fn ticket(text: &str) {
    if let Some(written) = same_again::<Ticket>(text) {
        assert!(written.len() <= MAX_TICKET_CHARS, "{} characters", written.len());
        assert!(written.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit()));
    }
}

fn same_again<T: FromStr<Err: Display> + Display + PartialEq + Debug>(text: &str) -> Option<String> {
    match text.parse::<T>() {
        Ok(value) => {
            let written = value.to_string();
            let again = written.parse::<T>().unwrap_or_else(|e| panic!("{written}: {e}"));
            assert_eq!(again, value);
            Some(written)
        }
        Err(error) => {
            assert!(!error.to_string().is_empty());
            None
        }
    }
}

/// A body of fields with the version, length and checksum of a real ticket around it, so that the fuzzer reaches its fields.
fn sealed(body: &[u8]) -> String {
    let mut bytes = vec![VERSION];
    let mut len = body.len();
    while len >= 0x80 {
        bytes.push(len as u8 | 0x80);
        len >>= 7;
    }
    bytes.push(len as u8);
    bytes.extend(body);
    bytes.extend(crc16(&bytes).to_be_bytes());
    format!("byway1{}", base32(&bytes))
}

fn crc16(bytes: &[u8]) -> u16 {
    let bit = |crc: u16| (crc << 1) ^ if crc & 0x8000 == 0 { 0 } else { 0x1021 };
    bytes.iter().fold(0xffff, |crc, byte| (0..8).fold(crc ^ (u16::from(*byte) << 8), |crc, _| bit(crc)))
}

fn base32(bytes: &[u8]) -> String {
    let bits: Vec<u8> = bytes.iter().flat_map(|byte| (0..8).rev().map(move |bit| byte >> bit & 1)).collect();
    let letters = bits.chunks(5).map(|bits| (0..5).fold(0, |sum, at| sum * 2 + bits.get(at).copied().unwrap_or(0)));
    letters.map(|value| char::from(b"abcdefghijklmnopqrstuvwxyz234567"[usize::from(value)])).collect()
}
