//! The address book: no inputs in any order break a limit, choose a banned peer or leave a row behind; its rows are total.
#![no_main]

#[path = "../../crates/byway-proto/tests/book/model.rs"]
mod model;

use byway_proto::book::{Head, Record};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _ = Head::from_bytes(bytes);
    if let Some(record) = Record::from_bytes(bytes) {
        assert_eq!(Record::from_bytes(&record.to_bytes()), Some(record));
    }
    model::run(bytes);
});
