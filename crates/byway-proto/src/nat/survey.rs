//! The survey: what stands between this node and the core, learned by asking servers from several sockets.
//!
//! All servers are asked at once, and the first report comes as soon as two of them have answered. What takes longer refines it:
//! filtering and hairpinning within seconds, the lifetime of mappings within minutes. It is done once for each network, by
//! at most 64 packets for each address family.
//!
//! What servers say is a claim. An answer counts if it comes from the server that was asked, to the socket that asked, with the
//! transaction id of a request that is still open; and once.

mod ask;
mod burst;
mod family;
mod lifetime;
mod scratch;
mod verdict;

use alloc::{collections::VecDeque, vec::Vec};
use core::net::{IpAddr, SocketAddr};

use super::{Input, NatReport, Output, SocketIds, candidates::is_private};
use crate::{Instant, Rng, wire::stun};
use ask::Tools;
use family::{Family, is_carriers};

/// The most servers that are remembered, of which each family asks its first six.
const MAX_LISTED: usize = 16;

/// The most addresses of interfaces that are remembered; machines with more are routers.
const MAX_INTERFACES: usize = 64;

/// The survey of one node, a part of its agent.
#[derive(Debug)]
pub struct Survey {
    rng: Rng,
    /// `None` until the driver has named the network.
    interfaces: Option<Vec<IpAddr>>,
    servers: Vec<SocketAddr>,
    /// The gateway's own public address.
    external: Option<IpAddr>,
    ipv4: Family,
    ipv6: Family,
    report: NatReport,
    told: NatReport,
    /// Bounded by what one input can cause: the packets and sockets of one moment, for the driver drains it.
    outputs: VecDeque<Output>,
}

impl Survey {
    /// A survey that begins when it is told of a network and of servers; `seed` is the source of its transaction ids.
    pub fn new(seed: &[u8; 32]) -> Self {
        Survey {
            rng: Rng::new(seed, "nat survey"),
            interfaces: None,
            servers: Vec::new(),
            external: None,
            ipv4: Family::new(false),
            ipv6: Family::new(true),
            report: NatReport::default(),
            told: NatReport::default(),
            outputs: VecDeque::new(),
        }
    }

    /// Takes in what happened; inputs that are not the survey's are ignored. Drain [`poll_output`](Self::poll_output) to `None` after
    /// every input.
    pub fn handle_input(&mut self, input: &Input, sockets: &mut SocketIds, now: Instant) {
        match input {
            Input::Servers(servers) => self.servers = servers.iter().copied().take(MAX_LISTED).collect(),
            Input::Network(ips) => {
                self.interfaces = Some(ips.iter().map(IpAddr::to_canonical).take(MAX_INTERFACES).collect());
            }
            _ => {}
        }
        let Some(interfaces) = &self.interfaces else { return };
        let (outputs, rng) = (&mut self.outputs, &mut self.rng);
        let tools = &mut Tools { outputs, sockets, rng, interfaces, now };
        match input {
            Input::Network(_) => {
                core::mem::replace(&mut self.ipv4, Family::new(false)).close(tools);
                core::mem::replace(&mut self.ipv6, Family::new(true)).close(tools);
            }
            Input::External(ip) => self.external = *ip,
            Input::Refresh => {
                self.ipv4.refresh(tools);
                self.ipv6.refresh(tools);
            }
            Input::Opened { socket, local } => {
                self.ipv4.opened(*socket, *local, tools);
                self.ipv6.opened(*socket, *local, tools);
            }
            Input::Stun { socket, from, datagram } => {
                let from = SocketAddr::new(from.ip().to_canonical(), from.port());
                let family = if from.is_ipv6() { &mut self.ipv6 } else { &mut self.ipv4 };
                if let Some(response) = stun::Response::parse(datagram) {
                    family.respond((*socket, from), &response, tools);
                } else if let Some(request) = stun::Request::parse(datagram) {
                    family.come_home(*socket, &request, tools);
                }
            }
            Input::Servers(_) | Input::Timeout => {}
            _ => return,
        }
        for (family, usable) in [
            (&mut self.ipv4, interfaces.iter().any(|ip| ip.is_ipv4() && leads_out(ip, tools))),
            (&mut self.ipv6, interfaces.iter().any(|ip| ip.is_ipv6() && leads_out(ip, tools))),
        ] {
            if usable {
                family.ask(&self.servers, tools);
            }
            family.tick(tools);
        }
        self.ipv4.set_carrier(carrier(interfaces, self.external, self.ipv4.public()));
        self.tell();
    }

    /// The interfaces of the network, once after a server has seen the node's own socket at another address than before: the
    /// survey is of no worth, and is to begin anew.
    pub(super) fn moved(&mut self) -> Option<Vec<IpAddr>> {
        let moved = [&mut self.ipv4, &mut self.ipv6].map(Family::take_moved);
        moved.contains(&true).then(|| self.interfaces.clone()).flatten()
    }

    /// The next decision, in the order in which they are to be carried out.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When the survey wants [`Input::Timeout`], and what for.
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        [self.ipv4.timeout(), self.ipv6.timeout()].into_iter().flatten().min_by_key(|(at, _)| *at)
    }

    /// What the report still lacks and may get within seconds; the lifetime of mappings, which takes minutes, is not waited for.
    pub fn awaits(&self) -> Option<&'static str> {
        self.ipv4.awaits().or(self.ipv6.awaits())
    }

    /// What was found in this network so far.
    pub fn report(&self) -> &NatReport {
        &self.report
    }

    /// Tells what is new. Of a new network nothing is told before something is known: what peers know of the last one serves
    /// them until then.
    fn tell(&mut self) {
        self.report = NatReport { ipv4: self.ipv4.report().cloned(), ipv6: self.ipv6.report().cloned() };
        let nothing_yet = self.report == NatReport::default();
        let under_way = self.ipv4.is_under_way() || self.ipv6.is_under_way();
        if self.report != self.told && !(nothing_yet && under_way) {
            self.told = self.report.clone();
            self.outputs.push_back(Output::Report(self.report.clone()));
        }
    }
}

/// Whether packets of an interface with this address get to where the servers are.
fn leads_out(ip: &IpAddr, tools: &Tools<'_>) -> bool {
    tools.loopback_only() || is_outward(ip)
}

/// Whether packets of an interface with this address may leave its link.
pub(super) fn is_outward(ip: &IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => !ip.is_loopback() && !ip.is_link_local(),
        IpAddr::V6(ip) => !ip.is_loopback() && !ip.is_unicast_link_local(),
    }
}

/// Whether a carrier's NAT stands behind the gateway: the gateway's own address is none that the core knows, or another one
/// than the core sees; or all interfaces have carriers' addresses (one that has is a VPN's).
fn carrier(interfaces: &[IpAddr], external: Option<IpAddr>, public: Option<SocketAddr>) -> Option<bool> {
    let public = public?;
    let mut outward = interfaces.iter().filter(|ip| ip.is_ipv4() && is_outward(ip)).peekable();
    if outward.peek().is_some() && outward.all(|ip| is_carriers(*ip)) {
        return Some(true);
    }
    let external = external.filter(IpAddr::is_ipv4)?;
    Some(is_private(external) || external != public.ip())
}

#[cfg(test)]
mod fake;
#[cfg(test)]
mod tests;
