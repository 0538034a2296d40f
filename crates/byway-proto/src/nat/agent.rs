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
//! probed, and 1,200 guesses in any 20 s, to public addresses that it names as its own.

mod candidates;
mod challenge;
mod config;
mod flight;
mod host;
mod link;
mod renewal;
mod search;
mod trial;

use alloc::{
    boxed::Box,
    collections::{BTreeMap, BTreeSet},
    vec::Vec,
};
use core::net::SocketAddr;

pub use config::{AgentConfig, AgentConfigError, BudgetConfig, ChallengeConfig, ScanConfig};
use config::{MAX_MAPPINGS, MAX_PER_SECOND, MAX_PROBES};
pub(super) use flight::Flight;
pub(super) use host::{Host, Packet};

use super::{
    Counters, Explanation, Input, LinkId, NatReport, Output, SocketId, observed::Observed, session::StunMessage,
    survey::Survey,
};
use crate::{Instant, UnixTime};
use link::Link;

/// The most connections that are helped at one time: a node has no more peers that it must reach; the others stay on their relay.
pub const MAX_LINKS: usize = 16_384;

/// The agent of one node.
#[derive(Debug)]
pub struct Agent {
    survey: Survey,
    host: Host,
    /// Each by itself in memory: a node of the map has room for eleven.
    links: BTreeMap<LinkId, Box<Link>>,
    /// When each link wants to act; one entry for each that does.
    timers: BTreeSet<(Instant, LinkId)>,
    observed: Observed,
    now: Instant,
}

impl Agent {
    /// An agent that knows nothing yet; `seed` is the source of its transaction ids and guesses.
    ///
    /// Values out of range in `config`, which [`AgentConfig::check`] finds, are taken as the nearest that are in range
    /// where a budget is concerned.
    pub fn new(config: AgentConfig, seed: &[u8; 32], now: Instant) -> Self {
        Agent {
            survey: Survey::new(seed),
            host: Host::new(config, seed),
            links: BTreeMap::new(),
            timers: BTreeSet::new(),
            observed: Observed::default(),
            now,
        }
    }

    /// Takes in what happened; drain [`poll_output`](Self::poll_output) to `None` after every input.
    pub fn handle_input(&mut self, input: Input, now: Instant) {
        self.now = self.now.max(now); // a clock reading taken before the last one must not reopen a window
        let now = self.now;
        self.survey(&input, now);
        if let Some(network) = self.survey.moved() {
            self.handle_input(Input::Network(network), now);
        }
        match input {
            Input::Servers(servers) => self.host.set_servers(&servers),
            Input::Network(ips) => {
                self.host.set_families(&ips);
                self.host.ages.begin(now);
                if self.observed.forget() {
                    self.host.outputs.push_back(Output::Observed(Vec::new()));
                }
                self.with_all(|link, host| link.change_network(host, now));
            }
            Input::Up { link, peer, dialled: _, loopback } => {
                if self.links.len() < MAX_LINKS && !self.links.contains_key(&link) {
                    self.links.insert(link, Box::new(Link::new((link, peer), loopback, now)));
                }
            }
            Input::Forget { link } => {
                if let Some(mut gone) = self.links.remove(&link) {
                    gone.due().map(|(at, _)| self.timers.remove(&(at, link)));
                    gone.close(&mut self.host, now);
                }
                self.host.forget(link);
            }
            Input::Timeout => {
                let due: Vec<_> = self.timers.range(..=(now, LinkId(u64::MAX))).map(|(_, link)| *link).collect();
                due.into_iter().for_each(|link| self.with(link, |link, host| link.act(host, now)));
            }
            Input::Theirs { link, report } => self.with(link, |link, host| link.set_theirs(report, host, now)),
            Input::Candidates { link, addrs } => self.with(link, |link, host| link.set_candidates(&addrs, host, now)),
            Input::Pong { link, socket, from, txid } => {
                self.with(link, |link, host| link.pong(txid, (socket, from), host, now));
            }
            Input::Observed { link, remote, addr } => {
                if let Some(link) = self.links.get(&link) {
                    self.observed.hear(link.peer, remote, addr, now);
                }
                self.mapped(addr, now);
            }
            Input::Mapped { addr } => self.mapped(addr, now),
            Input::Direct { link, socket, remote } => {
                self.with(link, |link, host| link.set_direct((socket, remote), host, now));
            }
            Input::Relayed { link } => self.with(link, |link, host| link.set_relayed(host, now)),
            Input::RelayLoss { link, per_mille } => {
                self.with(link, |link, host| link.set_relay_loss(per_mille, host, now));
            }
            Input::Signal { link, signal } => self.with(link, |link, host| link.signal(&signal, host, now)),
            Input::Opened { socket, local } => {
                if local.is_none() {
                    // what is not open need not be closed: the punch may have ended before the system was asked
                    self.host.outputs.retain(|output| *output != Output::Close { socket });
                }
                self.with_owner(socket, |link, host| link.opened(socket, local, host, now));
            }
            Input::Unused { socket } => self.with_owner(socket, |link, host| link.unused(socket, host)),
            Input::Stun { socket, from, datagram } => {
                let message = StunMessage { socket, from, datagram: &datagram };
                self.with_owner(socket, |link, host| link.stun(&message, host, now));
            }
            Input::External(_) | Input::Refresh => {}
        }
        // a server's word, which is about to come, counts for more
        if self.survey.awaits().is_none() {
            let told = self.observed.poll(&self.host.report, now);
            self.host.outputs.extend(told.map(Output::Observed));
        }
    }

    /// The next decision, in the order in which they are to be carried out.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.host.outputs.pop_front()
    }

    /// When the agent wants [`Input::Timeout`], and what for.
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        let link = self.timers.first().and_then(|(_, link)| self.links.get(link)?.due());
        let observed = self.observed.timeout().filter(|_| self.survey.awaits().is_none());
        let observed = observed.map(|at| (at, "addresses that peers observed"));
        link.into_iter().chain(self.survey.poll_timeout()).chain(observed).min_by_key(|(at, _)| *at)
    }

    /// What is known about the NATs between this node and the core.
    pub fn report(&self) -> &NatReport {
        &self.host.report
    }

    /// What [`report`](Self::report) still lacks and may get within seconds.
    pub fn awaits(&self) -> Option<&'static str> {
        self.survey.awaits()
    }

    /// What traversal has cost so far.
    pub fn counters(&self) -> Counters {
        self.host.budget.counters()
    }

    /// Takes in what an earlier process had learned, as [`memory`](Self::memory) gave it; call it before anything else. `wall` is
    /// what the calendar shows at `now`.
    pub fn recall(&mut self, memory: &[u8], now: Instant, wall: UnixTime) {
        self.host.memory.recall(memory, now, wall);
    }

    /// All that was learned about networks (what worked between them, what did not, how long they keep a mapping), to be
    /// kept for the next process; at most 40 KiB, and `None` if nothing is new since the last call.
    pub fn memory(&mut self, now: Instant, wall: UnixTime) -> Option<Vec<u8>> {
        self.host.memory.poll(now, wall)
    }

    /// The connection for which this host makes a hard punch now: the loss of its relay route should be told once a second.
    pub fn punching(&self) -> Option<LinkId> {
        self.host.budget.hard()
    }

    /// Why the connection is direct or not; `None` if it is not known.
    pub fn explain(&self, link: LinkId) -> Option<Explanation> {
        self.links.get(&link).map(|link| link.explain(&self.host, self.now))
    }

    /// Gives the survey its part of an input, and takes over what it has found.
    fn survey(&mut self, input: &Input, now: Instant) {
        let before = self.survey.report().clone();
        self.survey.handle_input(input, &mut self.host.sockets, now);
        while let Some(output) = self.survey.poll_output() {
            self.host.outputs.push_back(match output {
                Output::Report(report) => Output::Report(self.host.memory.complete(report, now)),
                other => other,
            });
        }
        if before != *self.survey.report() {
            let report = self.host.memory.complete(self.survey.report().clone(), now);
            self.set_report(report, now);
        }
    }

    /// An answer to the node's own socket was sent there.
    fn mapped(&mut self, addr: SocketAddr, now: Instant) {
        let report = self.host.report.ipv4.clone();
        if self.host.ages.hear(addr, report.as_ref(), now) {
            self.with_all(|link, host| link.act(host, now));
        }
    }

    fn set_report(&mut self, report: NatReport, now: Instant) {
        self.host.report = report;
        self.with_all(|link, host| link.act(host, now));
    }

    fn with_owner(&mut self, socket: SocketId, act: impl FnOnce(&mut Link, &mut Host)) {
        if let Some(owner) = self.host.owners.get(&socket) {
            self.with(*owner, act);
        }
    }

    fn with_all(&mut self, mut act: impl FnMut(&mut Link, &mut Host)) {
        let links: Vec<_> = self.links.keys().copied().collect();
        links.into_iter().for_each(|link| self.with(link, &mut act));
    }

    /// Lets a connection act, and sets its timer.
    fn with(&mut self, id: LinkId, act: impl FnOnce(&mut Link, &mut Host)) {
        let Some(link) = self.links.get_mut(&id) else { return };
        let before = link.due();
        act(link, &mut self.host);
        if link.due() != before {
            before.map(|(at, _)| self.timers.remove(&(at, id)));
            link.due().map(|(at, _)| self.timers.insert((at, id)));
        }
    }
}

#[cfg(test)]
mod tests;
