//! Every scenario of the shipping node on the simulated network, in one program: it is linked once.
#![allow(clippy::unwrap_used)] // a test may panic

mod budget;
mod common;
mod congestion;
mod datagrams;
mod dial;
mod eviction;
mod examples;
mod exchange;
mod fallback;
mod families;
mod flush;
mod gate;
mod gateway;
mod goodput;
mod isolation;
mod keepalive;
mod lan;
mod memory;
mod mtu;
mod observed;
mod outage;
mod protocols;
mod punch;
mod rates;
mod reach;
mod relay_rules;
mod relays;
mod renewal;
mod restart;
mod resurvey;
mod scale;
mod stats;
mod stripes;
mod switch;
mod tcp_relay;
