//! Where a peer says it may be reached, and the pings to those addresses.

use alloc::vec::Vec;
use core::net::SocketAddr;

use super::{
    Host, Packet,
    challenge::Challenge,
    flight::{Flight, PATIENCE},
};
use crate::{
    Instant,
    addr::candidate::{Refused, is_probeable},
    nat::{
        NatReport, SocketId,
        budget::{Denied, Purpose},
        candidates::is_private,
    },
};

/// The most addresses of one peer that are pinged: as many as a control message holds, and the public ones of its report.
const MAX_CANDIDATES: usize = 18;

/// The addresses of one peer.
#[derive(Debug, Default)]
pub(super) struct Candidates {
    told: Vec<SocketAddr>,
    refused: Vec<(SocketAddr, Refused)>,
    /// In the order in which they are pinged.
    challenges: Vec<Challenge>,
    /// When the last ping left.
    last: Option<Instant>,
}

impl Candidates {
    pub(super) fn tell(&mut self, addrs: &[SocketAddr]) {
        self.told = addrs.iter().copied().take(MAX_CANDIDATES).collect();
    }

    /// The addresses that are pinged.
    pub(super) fn addrs(&self) -> impl Iterator<Item = SocketAddr> + '_ {
        self.challenges.iter().map(|challenge| challenge.to)
    }

    /// The addresses that may not be, and why.
    pub(super) fn refused(&self) -> &[(SocketAddr, Refused)] {
        &self.refused
    }

    /// The next [`Candidates::list`] begins anew with every address.
    pub(super) fn restart(&mut self) {
        self.challenges.clear();
        self.last = None;
    }

    /// A direct route was found: addresses that were pinged are pinged no more. Others may lead to a better one.
    pub(super) fn settle(&mut self) {
        self.challenges.iter_mut().filter(|challenge| challenge.is_begun()).for_each(Challenge::end);
    }

    /// An answer came from this address.
    pub(super) fn answered(&mut self, from: SocketAddr) {
        self.challenges.iter_mut().filter(|challenge| challenge.to == from).for_each(Challenge::end);
    }

    /// Brings the pings in line with what the peer said last: addresses that stay keep their place in the schedule.
    /// Says whether there are new ones.
    pub(super) fn list(&mut self, theirs: Option<&NatReport>, loopback: bool, host: &mut Host, now: Instant) -> bool {
        let theirs = theirs.iter().flat_map(|report| [&report.ipv4, &report.ipv6]).flatten();
        let public: Vec<SocketAddr> = theirs.filter_map(|it| it.public).collect();
        let ours = [host.public(false), host.public(true)];
        let mut wanted: Vec<SocketAddr> = Vec::new();
        self.refused.clear();
        for addr in public.iter().chain(&self.told) {
            let addr = SocketAddr::new(addr.ip().to_canonical(), addr.port());
            match is_probeable(addr, loopback) {
                _ if wanted.contains(&addr) || ours.contains(&Some(addr)) || !host.reaches(addr) => {}
                Ok(()) => wanted.push(addr),
                Err(why) => self.refused.push((addr, why)),
            }
        }
        wanted.truncate(MAX_CANDIDATES);
        // a private address may be reached all the same, through a VPN, but is the less likely one
        wanted.sort_by_key(|addr| is_private(addr.ip()) || addr.ip().is_loopback());
        let known = core::mem::take(&mut self.challenges);
        let is_known = |addr: &SocketAddr| known.iter().any(|challenge| challenge.to == *addr);
        let begun = !wanted.iter().all(is_known);
        self.challenges.extend(wanted.into_iter().map(|to| {
            let known = known.iter().find(|challenge| challenge.to == to).cloned();
            known.unwrap_or_else(|| Challenge::new(to, &host.config.challenge, &mut host.rng, now))
        }));
        begun
    }

    /// Until when an answer to the last ping may come in; `None` if none has left.
    pub(super) fn answers_until(&self) -> Option<Instant> {
        self.last.map(|last| last + PATIENCE)
    }

    /// Sends the pings that are due; says when the next are, `None` after the last.
    pub(super) fn ping(&mut self, flight: &mut Flight, host: &mut Host, now: Instant) -> Option<Instant> {
        let mut denied = None;
        for challenge in &mut self.challenges {
            if challenge.due(&host.config.challenge).is_none_or(|at| at > now) {
                continue;
            }
            let packet =
                Packet { purpose: Purpose::Candidate, socket: SocketId::MAIN, to: challenge.to, hop_limit: None };
            match host.ping(flight, &packet, now) {
                Ok(()) => {
                    challenge.count(&host.config.challenge, now);
                    self.last = Some(now);
                }
                Err(Denied::Until(at)) => {
                    denied = Some(at);
                    break;
                }
                Err(Denied::Spent) => return None,
            }
        }
        let scheduled = self.challenges.iter().filter_map(|challenge| challenge.due(&host.config.challenge));
        let next = scheduled.filter(|at| *at > now).min();
        denied.into_iter().chain(next).min()
    }
}
