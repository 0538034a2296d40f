//! The survey of one address family.

use alloc::vec::Vec;
use core::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use super::{
    ask::{Ask, Asks, Purpose, Tools},
    burst::Burst,
    scratch::{Behind, Scratch, Wanted},
    verdict::{self, Seen, Spread},
};
use crate::{
    Instant,
    addr::candidate::is_probeable,
    nat::{FamilyReport, Mapping, Output, Ports, SocketId, candidates::is_private},
    wire::stun,
};

/// The most servers that are asked: two answers make a verdict, the others stand in for dead ones. Two relays of two ports each
/// leave room for two that were configured.
const MAX_SERVERS: usize = 6;

/// For how long the first report waits, once the mapping behaviour is known, for what left in the same moment.
const SETTLE: Duration = Duration::from_millis(20);

/// Bursts in one survey: the second one is for networks that lose much, or servers that were known too late.
const MAX_BURSTS: u8 = 2;

/// Observations kept: what the bursts and the node's own socket can bring in.
const MAX_SEEN: usize = 32;

/// The survey of one address family in one network.
#[derive(Debug, Default)]
pub(super) struct Family {
    ipv6: bool,
    /// Those asked, best first.
    servers: Vec<SocketAddr>,
    asks: Asks,
    seen: Vec<Seen>,
    burst: Option<Burst>,
    bursts: u8,
    /// What past bursts have shown.
    spread: Spread,
    behind: Option<Behind>,
    scratch: Option<Scratch>,
    scratched: bool,
    /// When the first report is due at the latest.
    settle_at: Option<Instant>,
    settled: bool,
    refresh: Refresh,
    /// Whether there is something to report.
    ready: bool,
    found: FamilyReport,
}

/// Whether the node is still seen where it was.
#[derive(Debug, Default)]
struct Refresh {
    /// The server that was asked last, and the request's transaction id.
    asked: Option<(SocketAddr, [u8; 12])>,
    /// It is not.
    moved: bool,
}

impl Family {
    pub(super) fn new(ipv6: bool) -> Self {
        Family { ipv6, ..Family::default() }
    }

    /// What was found, as soon as that is worth telling.
    pub(super) fn report(&self) -> Option<&FamilyReport> {
        Some(&self.found).filter(|_| self.ready)
    }

    /// Whether the first report is still to come.
    pub(super) fn is_under_way(&self) -> bool {
        !self.ready && !self.servers.is_empty()
    }

    /// What the report still lacks and may get within seconds.
    pub(super) fn awaits(&self) -> Option<&'static str> {
        let any = |purposes: &[Purpose]| purposes.iter().any(|purpose| self.asks.any(*purpose));
        if self.is_under_way() || any(&[Purpose::Main]) {
            Some("an answer of each server")
        } else if self.burst.is_some() || any(&[Purpose::Fresh]) {
            Some("how the NAT numbers its ports")
        } else if any(&[Purpose::Other, Purpose::FromAnyAddress, Purpose::FromAnyPort]) {
            Some("how the NAT filters")
        } else if any(&[Purpose::Hairpin]) {
            Some("whether the node reaches itself")
        } else {
            None
        }
    }

    /// Asks these servers, all at once; those known already only if their answers were not enough.
    pub(super) fn ask(&mut self, listed: &[SocketAddr], tools: &mut Tools<'_>) {
        let mut known = self.servers.clone();
        for server in listed.iter().filter(|server| server.is_ipv6() == self.ipv6) {
            if known.len() < MAX_SERVERS
                && !known.contains(server)
                && is_probeable(*server, tools.loopback_only()).is_ok()
            {
                known.push(*server);
            }
        }
        if known.len() == self.servers.len() || self.found.mapping.is_some() {
            return;
        }
        self.servers = known;
        for server in &self.servers {
            let compared = self.seen.iter().any(|seen| {
                seen.socket == SocketId::MAIN
                    && seen.server == *server
                    && tools.now.since(seen.at) < verdict::COMPARABLE
            });
            if !compared && !self.asks.is_asked(Purpose::Main, *server) {
                self.asks.begin(Ask::new(Purpose::Main, SocketId::MAIN, *server), tools);
            }
        }
        if self.burst.is_none() && self.found.ports.is_none() {
            self.open_burst(tools);
        }
    }

    /// Takes in that a socket is open, or was refused.
    pub(super) fn opened(&mut self, socket: SocketId, local: Option<SocketAddr>, tools: &mut Tools<'_>) {
        if let Some(burst) = &mut self.burst
            && burst.opened(socket, local, &mut self.asks, tools)
        {
            return;
        }
        match self.scratch.take_if(|scratch| scratch.socket() == socket) {
            Some(mut scratch) if local.is_some() => {
                scratch.opened(&mut self.asks, tools);
                self.scratch = Some(scratch);
            }
            _ => {}
        }
    }

    /// Takes in a server's response; whatever was not asked for is ignored.
    pub(super) fn respond(
        &mut self,
        (socket, from): (SocketId, SocketAddr),
        response: &stun::Response,
        tools: &mut Tools<'_>,
    ) {
        let refreshes = self.refresh.asked.take_if(|asked| socket == SocketId::MAIN && *asked == (from, response.txid));
        if refreshes.is_some() {
            self.refreshed(response.mapped, tools);
        } else if let Some(ask) = self.asks.answered(socket, from, &response.txid) {
            self.take_answer(&ask, response, tools);
        } else if self.asks.misunderstood(socket, from, &response.txid).is_some()
            && let Some(scratch) = &mut self.scratch
        {
            scratch.misunderstood(&mut self.asks);
        }
    }

    /// Takes in a request, which is of interest if it is our own.
    pub(super) fn come_home(&mut self, socket: SocketId, request: &stun::Request, tools: &mut Tools<'_>) {
        if let Some(ask) = self.asks.came_home(socket, &request.txid)
            && let Some(scratch) = &mut self.scratch
        {
            scratch.answered(ask.purpose, ask.to, &mut self.asks, tools);
        }
    }

    /// Asks the best server that has answered once more; what is lost is made good by the next request.
    pub(super) fn refresh(&mut self, tools: &mut Tools<'_>) {
        let server = self.servers.iter().find(|server| self.has_answered(server)).copied();
        let Some(server) = server.filter(|_| self.ready && !self.found.untranslated) else { return };
        let request = stun::Request { txid: tools.rng.bytes(), ..stun::Request::default() };
        self.refresh.asked = Some((server, request.txid));
        tools.outputs.push_back(Output::Stun { socket: SocketId::MAIN, to: server, datagram: request.to_bytes() });
    }

    /// Whether a server has seen the node's own socket at another address than before; told once.
    pub(super) fn take_moved(&mut self) -> bool {
        core::mem::take(&mut self.refresh.moved)
    }

    /// Does what is due, and draws conclusions.
    pub(super) fn tick(&mut self, tools: &mut Tools<'_>) {
        for ask in self.asks.expired(tools) {
            if let Some(scratch) = &mut self.scratch {
                scratch.expired(&ask, &mut self.asks, tools);
            }
        }
        self.conclude(tools);
        self.end_burst(tools);
        self.conclude(tools);
        self.decide_ready();
        self.use_scratch(tools);
    }

    pub(super) fn timeout(&self) -> Option<(Instant, &'static str)> {
        let settled = self.settle_at.filter(|_| !self.settled);
        let times = [
            (self.asks.next(), "ask again, or give up"),
            (settled, "report what is known"),
            (self.scratch.as_ref().and_then(Scratch::next), "look whether an idle mapping lives"),
        ];
        times.into_iter().filter_map(|(at, why)| Some((at?, why))).min_by_key(|(at, _)| *at)
    }

    /// Closes what is open; the network is gone.
    pub(super) fn close(mut self, tools: &mut Tools<'_>) {
        if let Some(burst) = self.burst.take() {
            burst.close(&mut self.asks, tools);
        }
        if let Some(scratch) = self.scratch {
            tools.close(scratch.socket());
        }
    }

    /// Takes in whether the carrier translates too.
    pub(super) fn set_carrier(&mut self, carrier: Option<bool>) {
        self.found.carrier = carrier;
    }

    /// The node's public address, as far as it is known.
    pub(super) fn public(&self) -> Option<SocketAddr> {
        self.found.public
    }

    /// The NAT has numbered the socket's port anew, or has another address itself.
    fn refreshed(&mut self, mapped: SocketAddr, tools: &Tools<'_>) {
        match self.found.public {
            _ if !self.is_believed(mapped, tools) => {}
            Some(public) if public.ip() != mapped.ip() => self.refresh.moved = true,
            _ => self.found.public = Some(mapped),
        }
    }

    fn has_answered(&self, server: &SocketAddr) -> bool {
        self.seen.iter().any(|seen| (seen.socket, seen.server) == (SocketId::MAIN, *server))
    }

    /// Behind a NAT a private address is somebody's lie, or of use within his walls only.
    fn is_believed(&self, mapped: SocketAddr, tools: &Tools<'_>) -> bool {
        mapped.is_ipv6() == self.ipv6
            && is_probeable(mapped, tools.loopback_only()).is_ok()
            && (tools.interfaces.contains(&mapped.ip()) || !is_private(mapped.ip()))
    }

    fn take_answer(&mut self, ask: &Ask, response: &stun::Response, tools: &mut Tools<'_>) {
        let mapped = response.mapped;
        let (now, socket, server) = (tools.now, ask.socket, ask.to);
        let observed = match ask.purpose {
            Purpose::Main | Purpose::Fresh | Purpose::Other => true,
            Purpose::Scratch | Purpose::FromAnyAddress | Purpose::FromAnyPort | Purpose::Hairpin | Purpose::Idle => {
                false
            }
        };
        if !observed {
            if let Some(scratch) = &mut self.scratch {
                scratch.answered(ask.purpose, mapped, &mut self.asks, tools);
            }
            return;
        }
        if !self.is_believed(mapped, tools) {
            return;
        }
        self.seen.retain(|seen| (seen.socket, seen.server) != (socket, server));
        if self.seen.len() < MAX_SEEN {
            self.seen.push(Seen { socket, server, mapped, at: now });
        }
        match ask.purpose {
            Purpose::Main => {
                self.found.public.get_or_insert(mapped);
                self.look_behind(ask, response, tools);
            }
            Purpose::Other => {
                if let Some(behind) = &mut self.behind {
                    behind.other_answers |= server == behind.other;
                    behind.port_answers |= server == behind.other_port();
                }
            }
            _ => {
                if let Some(burst) = &mut self.burst {
                    burst.answered(ask, mapped);
                }
            }
        }
    }

    /// Asks the first server that has other addresses at those too. It could name a victim's: that costs it a handful of packets
    /// of 20 bytes.
    fn look_behind(&mut self, ask: &Ask, response: &stun::Response, tools: &mut Tools<'_>) {
        let Some(other) = response.other.filter(|_| self.behind.is_none()) else { return };
        let server = ask.to;
        if other.is_ipv6() != self.ipv6
            || other.ip() == server.ip()
            || other.port() == server.port()
            || is_probeable(other, false).is_err()
            || is_private(other.ip()) != is_private(server.ip())
        {
            return;
        }
        let behind = Behind { server, other, other_answers: false, port_answers: false };
        for to in [behind.other, behind.other_port()] {
            self.asks.begin(Ask::new(Purpose::Other, SocketId::MAIN, to), tools);
        }
        self.behind = Some(behind);
    }

    fn conclude(&mut self, tools: &Tools<'_>) {
        let mut spread = self.spread.clone();
        let mapping = verdict::mapping(&self.seen);
        if let Some(burst) = &self.burst {
            spread.add(burst.samples(), mapping);
        }
        self.found.untranslated = self.found.public.is_some_and(|public| tools.interfaces.contains(&public.ip()));
        if self.found.untranslated {
            self.found.mapping = Some(Mapping::EndpointIndependent);
            self.found.ports = Some(Ports::Preserving);
        } else {
            self.found.mapping = mapping.or(self.found.mapping);
            let last = self.burst.is_none() && self.bursts == MAX_BURSTS;
            self.found.ports = spread.ports(last).or(self.found.ports);
        }
        if self.found.mapping.is_some() {
            self.settle_at.get_or_insert(tools.now + SETTLE);
        }
        if self.settle_at.is_some_and(|at| at <= tools.now) {
            self.settled = true;
        }
        if let Some(scratch) = &self.scratch {
            self.found.filtering = scratch.filtering(self.behind).or(self.found.filtering);
            self.found.hairpin = scratch.hairpin().or(self.found.hairpin);
            self.found.lifetime = scratch.lifetime().or(self.found.lifetime);
        }
    }

    fn end_burst(&mut self, tools: &mut Tools<'_>) {
        let Some(burst) = &self.burst else { return };
        let enough = self.settled && self.found.ports.is_some();
        if !enough && !burst.is_over(&self.asks) {
            return;
        }
        if let Some(burst) = self.burst.take() {
            self.spread.add(burst.samples(), self.found.mapping);
            burst.close(&mut self.asks, tools);
        }
        if self.found.ports.is_none() && self.found.public.is_some() && self.bursts < MAX_BURSTS {
            self.open_burst(tools);
        }
    }

    /// Those that have answered are asked first.
    fn open_burst(&mut self, tools: &mut Tools<'_>) {
        let answered = |server: &&SocketAddr| self.seen.iter().any(|seen| seen.server == **server);
        let (alive, silent): (Vec<_>, Vec<_>) = self.servers.iter().partition::<Vec<_>, _>(answered);
        let servers = if alive.is_empty() { silent } else { alive };
        self.burst = Some(Burst::open(servers.into_iter().copied(), self.ipv6, tools));
        self.bursts = self.bursts.saturating_add(1);
    }

    fn decide_ready(&mut self) {
        let waits_for_main = self.asks.any(Purpose::Main);
        self.ready |= match (self.found.public, self.found.mapping) {
            (None, _) => !self.servers.is_empty() && !waits_for_main,
            (Some(_), Some(_)) => self.settled || self.burst.is_none(),
            (Some(_), None) => !waits_for_main && self.burst.is_none(),
        };
    }

    /// Opens the scratch socket once all servers had their say, and closes it as soon as it has served.
    fn use_scratch(&mut self, tools: &mut Tools<'_>) {
        if let Some(scratch) = &mut self.scratch {
            scratch.tick(&mut self.asks, tools);
            let others = self.asks.any(Purpose::Other);
            if let Some(done) = self.scratch.take_if(|scratch| !others && scratch.is_done(&self.asks)) {
                tools.close(done.socket());
            }
            return;
        }
        let all_said = self.behind.is_some() || !self.asks.any(Purpose::Main);
        let hairpin = self.found.public.filter(|_| !self.found.untranslated);
        let useful = hairpin.is_some() || (self.behind.is_some() && self.found.public.is_some());
        if !self.ready || self.scratched || !all_said || self.burst.is_some() || !useful {
            return;
        }
        // of those that answered the best: the node's own relay, if it has one, which sends to other ports too
        let answered = self.servers.iter().find(|server| self.has_answered(server)).copied();
        if let Some(server) = self.behind.map(|behind| behind.server).or(answered) {
            let wanted = Wanted { server, filtering: self.behind, hairpin, ports: self.found.ports };
            self.scratch = Some(Scratch::open(wanted, self.ipv6, tools));
            self.scratched = true;
        }
    }
}

/// Whether this is an address that carriers give to those behind their NAT (RFC 6598).
pub(super) fn is_carriers(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V4(ip) if ip.to_bits() >> 22 == 0x6440_0000 >> 22)
}
