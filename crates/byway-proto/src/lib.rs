//! Byway's decisions, without I/O: identities, codecs, budgets and the state machines of routes and relays.
//!
//! The crate is `no_std`: it cannot name a socket, a clock, a thread or a hash map with a random order. Time and
//! randomness are arguments ([`Instant`], [`Rng`]). Machines share one shape: `new(config, .., now)`,
//! `handle_input(input, now)`, `poll_output()` (drain to `None` after **every** input) and `poll_timeout()`, which
//! says when the machine wants to be called again, and why.
#![no_std]
#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod addr;
pub mod book;
pub mod congestion;
pub mod gate;
pub mod hello;
pub mod id;
pub mod nat;
pub mod paths;
pub mod pex;
pub mod relay;
pub mod rng;
pub mod schedule;
pub mod switch;
pub mod text;
pub mod ticket;
pub mod time;
pub mod wire;

pub use addr::PeerAddr;
pub use id::{KeyKind, PeerId};
pub use rng::Rng;
pub use ticket::Ticket;
pub use time::{Instant, UnixTime};
