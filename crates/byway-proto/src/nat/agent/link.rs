//! One connection, and what is done to give it a direct route.

use alloc::{collections::VecDeque, vec::Vec};
use core::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use super::{challenge::Challenge, flight::Flight, host::Host};
use crate::{
    Instant,
    addr::candidate::{Refused, is_probeable},
    nat::{
        Attempt, Explanation, FamilyReport, LinkId, Means, NatReport, Outcome, Output, Plan, Remedy, SocketId,
        budget::{Denied, Purpose},
        plan,
    },
};

/// The most addresses of one peer that are pinged: as many as a control message holds, and the public ones of its report.
const MAX_CANDIDATES: usize = 18;

/// The most attempts that are remembered for an explanation: several hours' worth.
const MAX_ATTEMPTS: usize = 16;

/// How long the driver has to take a route that was found, before the search goes on.
const CONFIRMATION: Duration = Duration::from_secs(2);

/// One connection with a peer.
#[derive(Debug)]
pub(super) struct Link {
    flight: Flight,
    loopback: bool,
    standing: Standing,
    theirs: Option<NatReport>,
    told: Vec<SocketAddr>,
    refused: Vec<(SocketAddr, Refused)>,
    /// In the order in which they are pinged.
    challenges: Vec<Challenge>,
    pinging: Option<Trial>,
    attempts: VecDeque<Attempt>,
    due: Option<(Instant, &'static str)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    Relayed,
    /// A route was handed out at this time; the driver is to say whether it does.
    Found(Instant),
    Direct,
}

impl Link {
    pub(super) fn new(id: LinkId, loopback: bool, now: Instant) -> Self {
        Link {
            flight: Flight::new(id, now),
            loopback,
            standing: Standing::Relayed,
            theirs: None,
            told: Vec::new(),
            refused: Vec::new(),
            challenges: Vec::new(),
            pinging: None,
            attempts: VecDeque::new(),
            due: None,
        }
    }

    /// When [`Link::act`] wants to be called, and what for.
    pub(super) fn due(&self) -> Option<(Instant, &'static str)> {
        self.due
    }

    pub(super) fn set_theirs(&mut self, report: NatReport, host: &mut Host, now: Instant) {
        self.theirs = Some(report);
        self.list_candidates(host, now);
        self.act(host, now);
    }

    pub(super) fn set_candidates(&mut self, addrs: &[SocketAddr], host: &mut Host, now: Instant) {
        self.told = addrs.iter().copied().take(MAX_CANDIDATES).collect();
        self.list_candidates(host, now);
        self.act(host, now);
    }

    /// An authentic pong came in. It proves the pair of socket and address that its ping went by, and no other.
    pub(super) fn pong(&mut self, txid: u64, (socket, from): (SocketId, SocketAddr), host: &mut Host, now: Instant) {
        let Some(rtt) = self.flight.answer(txid, (socket, from), now) else { return };
        host.outputs.push_back(Output::Route { link: self.flight.link, socket, remote: from, rtt });
        if self.standing == Standing::Relayed {
            self.standing = Standing::Found(now);
        }
        self.act(host, now);
    }

    pub(super) fn set_direct(&mut self, _socket: SocketId, host: &mut Host, now: Instant) {
        self.standing = Standing::Direct;
        self.end_pinging(Outcome::Direct, now);
        self.act(host, now);
    }

    pub(super) fn set_relayed(&mut self, host: &mut Host, now: Instant) {
        if self.standing == Standing::Direct {
            self.standing = Standing::Relayed;
            self.flight.allowance.renew(now);
            self.restart(host, now);
        }
    }

    pub(super) fn change_network(&mut self, host: &mut Host, now: Instant) {
        self.flight.clear();
        self.end_pinging(Outcome::Overtaken, now);
        if self.standing != Standing::Direct {
            self.standing = Standing::Relayed;
            self.restart(host, now);
        }
    }

    /// The connection is over.
    pub(super) fn close(&mut self, _host: &mut Host, _now: Instant) {}

    /// Sends what is due.
    pub(super) fn act(&mut self, host: &mut Host, now: Instant) {
        if let Standing::Found(since) = self.standing {
            if now.since(since) < CONFIRMATION {
                self.due = Some((since + CONFIRMATION, "confirmation of a route"));
                return;
            }
            self.standing = Standing::Relayed;
        }
        self.due = match self.standing {
            Standing::Direct => None,
            _ => self.ping_due(host, now).map(|at| (at, "candidate ping")),
        };
    }

    fn ping_due(&mut self, host: &mut Host, now: Instant) -> Option<Instant> {
        let mut denied = None;
        for challenge in &mut self.challenges {
            if challenge.due(&host.config.challenge).is_none_or(|at| at > now) {
                continue;
            }
            match host.ping(&mut self.flight, Purpose::Candidate, (SocketId::MAIN, challenge.to), now) {
                Ok(()) => challenge.count(&host.config.challenge, now),
                Err(Denied::Until(at)) => {
                    denied = Some(at);
                    break;
                }
                Err(Denied::Spent) => return None,
            }
        }
        let scheduled = self.challenges.iter().filter_map(|challenge| challenge.due(&host.config.challenge));
        let next = scheduled.filter(|at| denied.is_none() || *at > now).min();
        denied.into_iter().chain(next).min()
    }

    fn restart(&mut self, host: &mut Host, now: Instant) {
        self.challenges.clear();
        self.list_candidates(host, now);
        self.act(host, now);
    }

    /// Brings the challenges in line with what the peer said last: addresses that stay keep their place in the schedule.
    fn list_candidates(&mut self, host: &mut Host, now: Instant) {
        let theirs = self.theirs.iter().flat_map(|report| [&report.ipv4, &report.ipv6]).flatten();
        let public: Vec<SocketAddr> = theirs.filter_map(|it| it.public).collect();
        let ours = [&host.report.ipv4, &host.report.ipv6].map(|it| it.as_ref().and_then(|it| it.public));
        let mut wanted: Vec<SocketAddr> = Vec::new();
        self.refused.clear();
        for addr in public.iter().chain(&self.told) {
            let addr = SocketAddr::new(addr.ip().to_canonical(), addr.port());
            match is_probeable(addr, self.loopback) {
                _ if wanted.contains(&addr) || ours.contains(&Some(addr)) => {}
                Ok(()) => wanted.push(addr),
                Err(why) => self.refused.push((addr, why)),
            }
        }
        wanted.truncate(MAX_CANDIDATES);
        // a private address may be reached all the same, through a VPN, but is the less likely one
        wanted.sort_by_key(|addr| is_private(addr.ip()));
        let begun = wanted.iter().any(|addr| self.challenges.iter().all(|it| it.to != *addr));
        let known = core::mem::take(&mut self.challenges);
        self.challenges.extend(wanted.into_iter().map(|to| {
            let known = known.iter().find(|it| it.to == to).cloned();
            known.unwrap_or_else(|| Challenge::new(to, &host.config.challenge, &mut host.rng, now))
        }));
        if begun && self.standing != Standing::Direct && self.pinging.is_none() {
            self.pinging = Some(Trial::new(Means::Pings, &self.flight, now));
        }
    }

    fn end_pinging(&mut self, outcome: Outcome, now: Instant) {
        if let Some(trial) = self.pinging.take() {
            self.remember(trial.attempt(&self.flight, outcome, now));
        }
    }

    fn remember(&mut self, attempt: Attempt) {
        if self.attempts.len() >= MAX_ATTEMPTS {
            self.attempts.pop_front();
        }
        self.attempts.push_back(attempt);
    }

    pub(super) fn explain(&self, host: &Host, now: Instant) -> Explanation {
        let theirs = self.theirs.as_ref();
        let plans = plans(&host.report, theirs);
        let running = self.pinging.iter().map(|trial| trial.attempt(&self.flight, Outcome::Running, now));
        let [ipv4, ipv6] = plans;
        Explanation {
            direct: self.standing == Standing::Direct,
            ours: host.report.clone(),
            theirs: self.theirs.clone(),
            ipv4,
            ipv6,
            candidates: self.challenges.iter().map(|it| it.to).collect(),
            refused: self.refused.clone(),
            attempts: self.attempts.iter().copied().chain(running).collect(),
            remedies: Remedy::find(&host.report, theirs, plans),
        }
    }
}

/// The plans for IPv4 and IPv6, as far as both sides have told.
fn plans(ours: &NatReport, theirs: Option<&NatReport>) -> [Option<Plan>; 2] {
    let both = |ours: &Option<FamilyReport>, theirs: Option<&Option<FamilyReport>>| {
        Some(plan(ours.as_ref()?, theirs?.as_ref()?))
    };
    [both(&ours.ipv4, theirs.map(|it| &it.ipv4)), both(&ours.ipv6, theirs.map(|it| &it.ipv6))]
}

/// Whether only somebody on the same network, or on the same carrier's, can mean this address (RFC 1918, RFC 6598, RFC 4193).
fn is_private(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => {
            let shared = matches!(ip.octets(), [100, second, ..] if second & 0xc0 == 64);
            ip.is_private() || ip.is_loopback() || shared
        }
        IpAddr::V6(ip) => ip.is_unique_local() || ip.is_loopback(),
    }
}

/// An attempt under way: what had been spent when it began.
#[derive(Debug)]
struct Trial {
    means: Means,
    began: Instant,
    mappings: u32,
    probes: u32,
    packets: u32,
}

impl Trial {
    fn new(means: Means, flight: &Flight, now: Instant) -> Self {
        let (mappings, probes) = (flight.allowance.mappings(), flight.allowance.probes());
        Trial { means, began: now, mappings, probes, packets: packets(means, flight) }
    }

    fn attempt(&self, flight: &Flight, outcome: Outcome, now: Instant) -> Attempt {
        let pings = self.means == Means::Pings;
        let spent = |now: u32, then: u32| if pings { 0 } else { now.saturating_sub(then) };
        Attempt {
            means: self.means,
            began: self.began,
            took: now.since(self.began),
            mappings: spent(flight.allowance.mappings(), self.mappings),
            probes: spent(flight.allowance.probes(), self.probes),
            packets: packets(self.means, flight).saturating_sub(self.packets),
            outcome,
        }
    }
}

fn packets(means: Means, flight: &Flight) -> u32 {
    if means == Means::Pings { flight.pings } else { flight.others }
}
