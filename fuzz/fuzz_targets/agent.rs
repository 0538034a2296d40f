//! The NAT agent: no inputs in any order break its budget, close a socket twice or name a connection that is over.
#![no_main]

#[path = "../../crates/byway-proto/tests/agent/model.rs"]
mod model;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| model::run(bytes));
