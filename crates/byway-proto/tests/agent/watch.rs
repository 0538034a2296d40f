//! What an agent owes its host and its peers, whatever it is told: each of its decisions is held against that.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use byway_proto::{
    Instant,
    addr::candidate::is_probeable,
    nat::{Counters, Input, LinkId, Output, SocketId},
};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const GAP: Duration = Duration::from_secs(20);

/// More than one input can cause: the packets of a second, the sockets of a punch opened and closed, and the survey's.
const MAX_OUTPUTS: usize = 2_000;

/// Pings remembered: those of the longest time in which one may be answered, and a second more.
const PINGS: usize = 1_024;

/// A ping that has left: its connection, its pair of socket and address, its transaction id.
pub(super) type Ping = (LinkId, SocketId, SocketAddr, u64);

/// Knows which sockets are open, which connections exist and what each peer has told, and counts packets by itself.
#[derive(Default)]
pub(super) struct Watch {
    pub(super) links: BTreeMap<LinkId, Told>,
    /// Sockets that are open, by the driver's view; the value says whether it told so.
    pub(super) sockets: BTreeMap<SocketId, bool>,
    pub(super) pings: VecDeque<Ping>,
    numbers: BTreeSet<SocketId>,
    second: VecDeque<Instant>,
    guesses: VecDeque<Instant>,
    /// When addresses that peers observed were last told.
    observed: Option<Instant>,
    now: Instant,
    /// Decisions since the last input.
    count: usize,
}

#[derive(Default)]
pub(super) struct Told {
    addrs: BTreeSet<SocketAddr>,
    ips: BTreeSet<IpAddr>,
}

impl Watch {
    /// The agent is about to be told this.
    pub(super) fn told(&mut self, input: &Input, now: Instant) {
        self.now = self.now.max(now);
        self.count = 0;
        match input {
            Input::Up { link, .. } => {
                self.links.entry(*link).or_default();
            }
            Input::Forget { link } => {
                self.links.remove(link);
            }
            Input::Theirs { link, report } => {
                let public = [&report.ipv4, &report.ipv6].into_iter().flatten().filter_map(|it| it.public);
                self.told_addrs(*link, &public.collect::<Vec<_>>());
            }
            Input::Candidates { link, addrs } => self.told_addrs(*link, addrs),
            Input::Network(_) => self.observed = None,
            Input::Opened { socket, local: Some(_) } => {
                self.sockets.insert(*socket, true);
            }
            Input::Opened { socket, local: None } => {
                self.sockets.remove(socket);
            }
            _ => {}
        }
    }

    fn told_addrs(&mut self, link: LinkId, addrs: &[SocketAddr]) {
        if let Some(told) = self.links.get_mut(&link) {
            told.addrs.extend(addrs);
            told.ips.extend(addrs.iter().map(SocketAddr::ip));
        }
    }

    /// The agent has decided this.
    ///
    /// # Panics
    ///
    /// Panics where it must not.
    pub(super) fn check(&mut self, output: &Output) {
        self.count += 1;
        assert!(self.count < MAX_OUTPUTS, "one input causes too much");
        match output {
            Output::Open { socket, .. } => {
                assert!(*socket != SocketId::MAIN && self.numbers.insert(*socket), "a number is used twice");
                self.sockets.insert(*socket, false);
            }
            Output::Close { socket } => assert!(self.sockets.remove(socket).is_some(), "{socket:?} is not open"),
            Output::Stun { socket, .. } => self.check_socket(*socket),
            Output::Ping { link, socket, to, txid, .. } => {
                self.check_socket(*socket);
                self.check_ping(*link, *to);
                self.pings.push_back((*link, *socket, *to, *txid));
                self.pings.drain(..self.pings.len().saturating_sub(PINGS));
            }
            Output::Route { link, socket, remote, .. } => {
                self.check_socket(*socket);
                self.check_link(*link);
                let pinged = self.pings.iter().any(|it| (it.0, it.1, it.2) == (*link, *socket, *remote));
                assert!(pinged, "a route to {remote}, which was not pinged");
            }
            Output::Renew { link, socket, .. } => {
                self.check_socket(*socket);
                self.check_link(*link);
            }
            Output::Signal { link, .. } => self.check_link(*link),
            Output::Report(_) => {}
            Output::Observed(addrs) => self.check_observed(addrs),
        }
    }

    fn check_observed(&mut self, addrs: &[SocketAddr]) {
        assert!(addrs.iter().all(|addr| is_probeable(*addr, false).is_ok()), "{addrs:?}");
        let of_ipv4 = addrs.iter().filter(|addr| addr.is_ipv4()).count();
        assert!(of_ipv4 <= 2 && addrs.len() - of_ipv4 <= 2, "{addrs:?}");
        if addrs.is_empty() && self.observed.is_none() {
            return; // a change of network is told at once
        }
        let last = self.observed.replace(self.now);
        assert!(last.is_none_or(|last| self.now.since(last) >= MINUTE), "told again within a minute");
    }

    fn check_link(&self, link: LinkId) {
        assert!(self.links.contains_key(&link), "{link:?} is over");
    }

    fn check_socket(&self, socket: SocketId) {
        assert!(socket == SocketId::MAIN || self.sockets.get(&socket) == Some(&true), "{socket:?} is not open");
    }

    fn check_ping(&mut self, link: LinkId, to: SocketAddr) {
        let told = self.links.get(&link).expect("a ping for a connection that is over");
        assert_eq!(is_probeable(to, false), Ok(()));
        assert!(told.ips.contains(&to.ip()), "{to} is not the peer's");
        let now = self.now;
        let count = |ring: &mut VecDeque<Instant>, window: Duration| {
            ring.push_back(now);
            while ring.front().is_some_and(|at| now.since(*at) > window) {
                ring.pop_front();
            }
            ring.len()
        };
        assert!(count(&mut self.second, SECOND) <= 250, "more than 250 packets in a second");
        if !told.addrs.contains(&to) {
            assert!(count(&mut self.guesses, GAP) <= 1_200, "more than 1,200 guesses in 20 s");
        }
    }

    /// What the agent itself counts.
    pub(super) fn check_counters(counters: &Counters) {
        assert!(counters.mappings_max_per_dial <= 256 && counters.probes_max_per_dial <= 1_200, "{counters:?}");
        assert!(counters.per_second_max <= 250, "{counters:?}");
    }
}
