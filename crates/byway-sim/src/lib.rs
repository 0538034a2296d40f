//! A network in memory, for tests of Byway and of your own protocol.
//!
//! A [`World`] has hosts, NATs and links with delay, jitter, loss, rate and queue. It runs on tokio's paused clock:
//! an hour of silence takes no time, and one seed gives one run, packet by packet ([`World::hash`]). A [`Host`] gives
//! you UDP and TCP sockets; [`Host::net`] gives a Byway node the network it runs on.
//!
//! ```
//! use std::time::Duration;
//! use byway_sim::{DropReason, Link, World};
//!
//! # fn main() -> std::io::Result<()> {
//! World::run(7, |world| async move {
//!     let (alice, bob) = (world.host("alice"), world.host("bob"));
//!     alice.set_link(Link::standard().loss(0.3));
//!     let from = alice.bind_udp("0.0.0.0:0".parse().expect("an address"))?;
//!     let to = bob.bind_udp("0.0.0.0:7".parse().expect("an address"))?;
//!
//!     let mut buf = [0; 1_500];
//!     let received = loop {
//!         from.send_to(b"anybody there?", (bob.addr(), 7).into())?;
//!         match tokio::time::timeout(Duration::from_millis(200), to.recv_from(&mut buf)).await {
//!             Ok(received) => break received?,
//!             Err(_) => continue, // lost: once more
//!         }
//!     };
//!     assert_eq!(received, (14, (alice.addr(), from.local_addr().port()).into()));
//!     assert_eq!(world.counters().dropped(DropReason::Loss), world.counters().sent - 1);
//!     Ok(())
//! })
//! # }
//! ```
//!
//! # The standard network
//!
//! The core is free and without limits. Each host ([`World::host`]) has a public address and an access link of 25 ms
//! one way ([`Link::standard`]); so has each NAT ([`World::nat`]), whose hosts ([`Nat::host`]) have private addresses
//! and no delay among themselves. Host to host and back takes 100 ms, from behind NATs too.
//!
//! # NATs
//!
//! A [`NatConfig`] describes a NAT by the axes of RFC 4787: what its mappings and its filter depend on, and which port a
//! new mapping gets; NATs behind NATs are carrier NATs. [`can_punch`] tells what is possible between two hosts, a
//! [`StunServer`] what a survey can find out.
//!
//! # Time
//!
//! The network is exact to the nanosecond, but tasks see time in whole milliseconds, for tokio's timers round up: a
//! packet that takes 25.3 ms is received at 26.
//!
//! # What it is not
//!
//! There is no ICMP: what cannot be delivered disappears, and [`Counters`] say why. Addresses cannot be spoofed.

mod agenda;
mod attachment;
mod bare;
mod fabric;
mod host;
mod link;
mod nat;
mod noise;
mod oracle;
mod rule;
mod socket;
mod stun;
pub mod table;
mod tcp;
#[cfg(test)]
mod tests;
mod time;
mod trace;
mod world;

pub use fabric::NodeId;
pub use host::{Host, Traffic};
pub use link::{Link, Loss, Queue};
pub use nat::{Filtering, Gateway, Manner, Mapping, Nat, NatConfig, Ports};
pub use oracle::{Punch, Side, can_punch};
pub use rule::{Packet, Rule, Transport, Verdict};
pub use socket::{MAX_INBOX, UdpSocket};
pub use stun::StunServer;
pub use tcp::{TcpListener, TcpStream};
pub use trace::{Counters, DropReason, TraceHash};
pub use world::{ActiveRule, World};
