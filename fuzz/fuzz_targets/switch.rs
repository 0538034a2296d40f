//! The switch: no inputs in any order exceed a limit, let a banned peer in, or end a link's life twice.
#![no_main]

#[path = "../../crates/byway-proto/tests/switch/model.rs"]
mod model;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| model::run(bytes));
