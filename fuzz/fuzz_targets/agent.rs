//! Two NAT agents between two NATs and a crowd of liars: they meet in time, and break no budget, whatever they are told.
#![no_main]

#[path = "../../crates/byway-proto/tests/agent/model.rs"]
mod model;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| model::run(bytes));
