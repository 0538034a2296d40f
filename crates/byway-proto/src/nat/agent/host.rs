//! What all connections of a host share: its budget, its sockets' numbers, its report and its outputs.

use alloc::{collections::VecDeque, vec::Vec};
use core::net::SocketAddr;

use super::{AgentConfig, MAX_MAPPINGS, MAX_PER_SECOND, MAX_PROBES, flight::Flight};
use crate::{
    Instant, Rng,
    nat::{
        LinkId, NatReport, Output, SocketId,
        budget::{Budget, Denied, Purpose},
    },
};

/// The most servers that are kept: two answers make a verdict, the others stand in for dead ones.
const MAX_SERVERS: usize = 8;

#[derive(Debug)]
pub(in crate::nat) struct Host {
    pub(in crate::nat) config: AgentConfig,
    pub(in crate::nat) budget: Budget,
    pub(in crate::nat) rng: Rng,
    pub(in crate::nat) report: NatReport,
    pub(in crate::nat) servers: Vec<SocketAddr>,
    /// Bounded by what one input can cause: the packets of a second and the sockets of a punch, for the driver drains it.
    pub(in crate::nat) outputs: VecDeque<Output>,
}

impl Host {
    pub(super) fn new(mut config: AgentConfig, seed: &[u8; 32]) -> Self {
        let limits = &mut config.budget;
        limits.mappings = limits.mappings.min(MAX_MAPPINGS);
        limits.probes = limits.probes.min(MAX_PROBES);
        limits.per_second = limits.per_second.min(MAX_PER_SECOND);
        Host {
            budget: Budget::new(limits.clone()),
            config,
            rng: Rng::new(seed, "nat agent"),
            report: NatReport::default(),
            servers: Vec::new(),
            outputs: VecDeque::new(),
        }
    }

    pub(super) fn set_servers(&mut self, servers: &[SocketAddr]) {
        self.servers = servers.iter().copied().take(MAX_SERVERS).collect();
    }

    /// Sends a ping, if the budget allows it.
    pub(in crate::nat) fn ping(
        &mut self,
        flight: &mut Flight,
        purpose: Purpose,
        (socket, to): (SocketId, SocketAddr),
        now: Instant,
    ) -> Result<(), Denied> {
        self.budget.take(purpose, &mut flight.allowance, now)?;
        *if purpose == Purpose::Candidate { &mut flight.pings } else { &mut flight.others } += 1;
        let txid = self.rng.next_u64();
        flight.send(txid, socket, to, now);
        self.outputs.push_back(Output::Ping { link: flight.link, socket, to, txid, hop_limit: None });
        Ok(())
    }

    /// Takes back what names a connection that is over.
    pub(super) fn forget(&mut self, gone: LinkId) {
        self.outputs.retain(|output| match output {
            Output::Ping { link, .. } | Output::Route { link, .. } | Output::Signal { link, .. } => *link != gone,
            Output::Open { .. } | Output::Close { .. } | Output::Stun { .. } | Output::Report(_) => true,
        });
    }
}
