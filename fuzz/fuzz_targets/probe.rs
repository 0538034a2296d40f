//! No bytes make the probe decoder panic, none pass without the key, and what the peer signed reads the same again.
#![no_main]

use byway_proto::wire::probe::{EXPORT_LEN, ProbeError, ProbeKey, ReplayWindow, TAG_LEN, decode, encode, peek_key_id};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let exported = std::array::from_fn::<u8, EXPORT_LEN, _>(|at| at as u8);
    let (ours, theirs) = (ProbeKey::derive(&exported, true), ProbeKey::derive(&exported, false));
    assert!(decode(bytes, &ours).is_err(), "a probe that nobody signed");
    assert!(peek_key_id(bytes).is_none_or(|id| bytes[1..].starts_with(&id)));

    let signed = sign(bytes, &theirs);
    match decode(&signed, &ours) {
        Ok(probe) => {
            let again = encode(&probe, &theirs, signed.len());
            assert_eq!(decode(&again, &ours), Ok(probe));
            assert!(decode(&again, &theirs).is_err(), "a probe that came back to its sender");
            let mut window = ReplayWindow::new();
            assert!(window.accept(probe.seq) && !window.accept(probe.seq));
        }
        Err(error) => assert_ne!(error, ProbeError::Forged),
    }
});

/// Puts the peer's key id and tag around `body`, so that the fuzzer reaches what lies behind the proof.
fn sign(body: &[u8], key: &ProbeKey) -> Vec<u8> {
    let mut datagram = [&[0x80], &key.id[..], body].concat();
    let tag = blake3::keyed_hash(&key.send, &datagram);
    datagram.extend(&tag.as_bytes()[..TAG_LEN]);
    datagram
}
