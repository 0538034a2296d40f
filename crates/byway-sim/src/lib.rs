//! A network in memory, for tests of Byway and of your own protocol.
//!
//! A [`World`] has hosts, NATs and links with delay, jitter, loss, rate and queue. It runs on tokio's paused clock:
//! an hour of silence takes no time, and one seed gives one run, packet by packet ([`World::hash`]). A [`Host`] gives
//! you UDP and TCP sockets; [`Host::net`] gives a Byway node the network it runs on.
//!
//! Your protocol on the shipping node, from behind a NAT over a bad line:
//!
//! ```
//! use byway::{Channel, Config, Identity, Node, Protocol};
//! use byway_sim::{Host, Link, NatConfig, World};
//!
//! /// A node of your protocol. Its key and its chance follow from `n`, so that a run can be had again.
//! async fn node(host: &Host, n: u8) -> (Node, byway::Sender, byway::Receiver, byway::Peers) {
//!     let mut config = Config::new(Identity::from_seed([n; 32]));
//!     (config.seed, config.ipv6) = (Some([n; 32]), None);
//!     let node = Node::bind_on(host.net(), config).await.expect("the host has a network");
//!     let mut count = Protocol::new("count", 1..=1);
//!     let (tx, rx) = count.channel(Channel::new(1));
//!     let peers = node.register(count).expect("the name is free");
//!     (node, tx, rx, peers)
//! }
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
//! let run = || World::run(7, |world| async move {
//!     let home = world.nat("router", NatConfig::port_restricted());
//!     home.set_link(Link::standard().rate(20_000_000).loss(0.02));
//!     let (laptop, tx, _rx, _peers) = node(&home.host("laptop"), 1).await;
//!     let (server, _tx, mut rx, _theirs) = node(&world.host("server"), 2).await;
//!     let peer = laptop.dial(server.ticket()).await?;
//!     for n in 0..100_u8 {
//!         tx.send_wait(peer, vec![n].into()).await?;
//!         let (_, message) = rx.recv().await.ok_or("the node is closed")?;
//!         assert_eq!(message[..], [n], "each arrives, and in order");
//!     }
//!     Ok::<_, Box<dyn std::error::Error + Send + Sync>>(world.hash())
//! });
//! assert_eq!(run()?, run()?, "one seed, one run");
//! # Ok(())
//! # }
//! ```
//!
//! Or nothing but the network:
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
