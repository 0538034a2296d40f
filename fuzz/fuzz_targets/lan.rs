//! Multicast DNS: what any neighbour sends is read within bounds, and what is read can be said again.
#![no_main]

#[path = "../../crates/byway/src/net/lan/message.rs"]
mod message;

use libfuzzer_sys::fuzz_target;
use message::{MAX_ADDRS, MAX_MESSAGE, Message};

fuzz_target!(|bytes: &[u8]| {
    let Some(parsed) = message::parse(bytes) else { return };
    assert!(bytes.len() <= MAX_MESSAGE);
    match parsed {
        Message::Where(names) => {
            for name in names.into_iter().filter(is_plain) {
                let again = message::question(&name).expect("a label can be asked for");
                assert_eq!(message::parse(&again), Some(Message::Where(vec![name])));
            }
        }
        Message::There(found) => {
            for (name, addrs) in found.into_iter().filter(|(name, _)| is_plain(name)) {
                assert!(addrs.len() <= MAX_ADDRS);
                let again = message::answer(&name, &addrs).expect("what was told can be told");
                assert!(again.len() <= 300);
                assert_eq!(message::parse(&again), Some(Message::There(vec![(name, addrs)])));
            }
        }
    }
});

/// Whether a name may be a peer's: a neighbour's labels may hold anything, dots too.
fn is_plain(name: &String) -> bool {
    name.bytes().all(|byte| byte.is_ascii_alphanumeric())
}
