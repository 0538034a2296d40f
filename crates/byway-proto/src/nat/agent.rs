//! The agent: one for each node, it finds ways to the peers that reach it only through a relay.
//!
//! ```text
//! loop {
//!     while let Some(output) = agent.poll_output() {
//!         carry it out; Output::Open: bind the socket, then agent.handle_input(Input::Opened { .. }) at once
//!     }
//!     wait for: agent.poll_timeout() → Input::Timeout; STUN, pongs, the control streams → their inputs
//! }
//! ```
//!
//! Every address that an authenticated peer reports is pinged, on a short schedule. Where both reports say that this
//! cannot be enough, the plan that [`plan`](super::plan) names is carried out as well. Whatever leaves passes
//! the budget, so that a peer who lies can make this host send 250 packets a second at most, to addresses that may be
//! probed, and 1,200 guesses in any 20 s, to one address that it names as its own.

mod challenge;
mod config;
mod flight;
mod host;
mod link;

use alloc::collections::BTreeMap;

pub use config::{AgentConfig, AgentConfigError, BudgetConfig, ChallengeConfig, ScanConfig};
pub(super) use config::{MAX_MAPPINGS, MAX_PER_SECOND, MAX_PROBES};

use super::{Counters, Explanation, Input, LinkId, NatReport, Output};
use crate::Instant;
use host::Host;
use link::Link;

/// The most connections that are helped at one time: a node has no more peers that it must reach; the others stay on their relay.
pub const MAX_LINKS: usize = 16_384;

/// The agent of one node.
#[derive(Debug)]
pub struct Agent {
    host: Host,
    links: BTreeMap<LinkId, Link>,
    now: Instant,
}

impl Agent {
    /// An agent that knows nothing yet; `seed` is the source of its transaction ids and guesses.
    ///
    /// Values out of range in `config`, which [`AgentConfig::check`] finds, are taken as the nearest that are in range
    /// where a budget is concerned.
    pub fn new(config: AgentConfig, seed: &[u8; 32], now: Instant) -> Self {
        Agent { host: Host::new(config, seed), links: BTreeMap::new(), now }
    }

    /// Takes in what happened; drain [`poll_output`](Self::poll_output) to `None` after every input.
    pub fn handle_input(&mut self, input: Input, now: Instant) {
        self.now = self.now.max(now); // a clock reading taken before the last one must not reopen a window
        let now = self.now;
        match input {
            Input::Servers(servers) => self.host.set_servers(&servers),
            Input::Network(_) => {
                for link in self.links.values_mut() {
                    link.change_network(&mut self.host, now);
                }
            }
            Input::Up { link, dialled: _, loopback } => {
                if self.links.len() < MAX_LINKS && !self.links.contains_key(&link) {
                    self.links.insert(link, Link::new(link, loopback, now));
                }
            }
            Input::Forget { link } => {
                if let Some(mut gone) = self.links.remove(&link) {
                    gone.close(&mut self.host, now);
                }
                self.host.forget(link);
            }
            Input::Timeout => {
                for link in self.links.values_mut().filter(|link| link.due().is_some_and(|(at, _)| at <= now)) {
                    link.act(&mut self.host, now);
                }
            }
            Input::Theirs { link, report } => self.with(link, |link, host| link.set_theirs(report, host, now)),
            Input::Candidates { link, addrs } => self.with(link, |link, host| link.set_candidates(&addrs, host, now)),
            Input::Pong { link, socket, from, txid } => {
                self.with(link, |link, host| link.pong(txid, (socket, from), host, now));
            }
            Input::Direct { link, socket } => self.with(link, |link, host| link.set_direct(socket, host, now)),
            Input::Relayed { link } => self.with(link, |link, host| link.set_relayed(host, now)),
            Input::Opened { .. } | Input::Stun { .. } | Input::External(_) | Input::Signal { .. } => {}
            Input::Unused { .. } | Input::RelayLoss { .. } => {}
        }
    }

    /// The next decision, in the order in which they are to be carried out.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.host.outputs.pop_front()
    }

    /// When the agent wants [`Input::Timeout`], and what for.
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        self.links.values().filter_map(Link::due).min_by_key(|(at, _)| *at)
    }

    /// What is known about the NATs between this node and the core.
    pub fn report(&self) -> &NatReport {
        &self.host.report
    }

    /// What traversal has cost so far.
    pub fn counters(&self) -> Counters {
        self.host.budget.counters()
    }

    /// Why the connection is direct or not; `None` if it is not known.
    pub fn explain(&self, link: LinkId) -> Option<Explanation> {
        self.links.get(&link).map(|link| link.explain(&self.host, self.now))
    }

    fn with(&mut self, link: LinkId, act: impl FnOnce(&mut Link, &mut Host)) {
        if let Some(link) = self.links.get_mut(&link) {
            act(link, &mut self.host);
        }
    }
}

#[cfg(test)]
mod tests;
