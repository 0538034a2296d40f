//! Peer exchange: whatever a peer sends is read or refused, read again as it was written, and never more than was allowed.
#![no_main]

use byway_proto::{
    Instant, PeerId,
    pex::{Input, MAX_PEX_MESSAGE, Message, Output, Pex, PexConfig},
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let peer = PeerId::ed25519([1; 32]);
    if let Ok(Some(message)) = Message::from_bytes(bytes, peer) {
        let written = message.to_bytes();
        assert!(written.len() <= MAX_PEX_MESSAGE);
        assert_eq!(Message::from_bytes(&written, peer), Ok(Some(message)));
    }
    let mut pex = Pex::new(PexConfig::default(), &[1; 32], Instant::START);
    pex.handle_input(Input::Up { peer }, Instant::START);
    let mut heard = 0;
    for bytes in bytes.split(|byte| *byte == 0xff) {
        pex.handle_input(Input::Received { peer, bytes }, Instant::START);
        while let Some(output) = pex.poll_output() {
            heard += usize::from(matches!(output, Output::Heard { ref contacts, .. } if contacts.len() != 1));
        }
    }
    assert!(heard <= 1, "one question, one list");
});
