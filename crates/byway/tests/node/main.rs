//! Nodes over real sockets on this machine, in one program, which is linked once; tests that measure the memory of their
//! process are programs of their own.
#![allow(clippy::unwrap_used)] // a test may panic

#[path = "../common/mod.rs"]
mod common;
mod door;
mod examples;
#[cfg(unix)] // where a limit can be set for a child
mod files;
mod peers;
mod strangers;
mod swaps;
mod tunnel;
