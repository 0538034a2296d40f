//! One connection, and what is done to give it a direct route.

use alloc::{
    collections::{BTreeSet, VecDeque},
    vec::Vec,
};
use core::{net::SocketAddr, time::Duration};

use super::{candidates::Candidates, flight::Flight, host::Host, renewal::Renewal, search::Search, trial::Trial};
use crate::{
    Instant, PeerId,
    nat::{
        Attempt, Explanation, LinkId, Means, NatReport, Outcome, Output, Remedy, Signal, SocketId,
        session::{Binding, Next, StunMessage, Turn},
    },
};

/// The most attempts that are remembered for an explanation: several hours' worth.
const MAX_ATTEMPTS: usize = 16;

/// After addresses were pinged in vain, they are again after this long, then twice as long and so on: firewalls change.
const FIRST_RETRY: Duration = Duration::from_secs(60);

/// How often that time doubles: up to half an hour.
const MAX_DOUBLINGS: u32 = 5;

/// How long the driver has to take a route that was found, before the search goes on.
const CONFIRMATION: Duration = Duration::from_secs(2);

/// One connection with a peer.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) peer: PeerId,
    pub(super) flight: Flight,
    pub(super) loopback: bool,
    standing: Standing,
    pub(super) theirs: Option<NatReport>,
    pub(super) candidates: Candidates,
    pinging: Option<Trial>,
    pub(super) search: Search,
    /// Of the direct route, while one carries the connection.
    pub(super) renewal: Option<Renewal>,
    /// Sockets of routes that were handed out.
    in_use: BTreeSet<SocketId>,
    attempts: VecDeque<Attempt>,
    /// How often all addresses were pinged in vain, and when they are again.
    vain: u32,
    again: Option<Instant>,
    due: Option<(Instant, &'static str)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    Relayed,
    /// A route was handed out at this time; the driver is to say whether it does.
    Found(Instant),
    /// By a route to this address.
    Direct(SocketAddr),
}

impl Link {
    pub(super) fn new((id, peer): (LinkId, PeerId), loopback: bool, now: Instant) -> Self {
        Link {
            peer,
            flight: Flight::new(id, now),
            loopback,
            standing: Standing::Relayed,
            theirs: None,
            candidates: Candidates::default(),
            pinging: None,
            search: Search::default(),
            renewal: None,
            in_use: BTreeSet::new(),
            attempts: VecDeque::new(),
            vain: 0,
            again: None,
            due: None,
        }
    }

    /// When [`Link::act`] wants to be called, and what for.
    pub(super) fn due(&self) -> Option<(Instant, &'static str)> {
        self.due
    }

    pub(super) fn is_relayed(&self) -> bool {
        self.standing == Standing::Relayed
    }

    fn is_direct(&self) -> bool {
        matches!(self.standing, Standing::Direct(_))
    }

    pub(super) fn set_theirs(&mut self, report: NatReport, host: &mut Host, now: Instant) {
        self.theirs = Some(report);
        self.list_candidates(host, now);
        self.act(host, now);
    }

    pub(super) fn set_candidates(&mut self, addrs: &[SocketAddr], host: &mut Host, now: Instant) {
        self.candidates.tell(addrs);
        self.list_candidates(host, now);
        self.act(host, now);
    }

    pub(super) fn signal(&mut self, signal: &Signal, host: &mut Host, now: Instant) {
        self.hear(signal, host, now);
        self.act(host, now);
    }

    /// An authentic pong came in. It proves the pair of socket and address that its ping went by, and no other.
    pub(super) fn pong(&mut self, txid: u64, (socket, from): (SocketId, SocketAddr), host: &mut Host, now: Instant) {
        // an answer may have come in just before its socket was closed
        let open = socket == SocketId::MAIN || self.flight.sockets.contains_key(&socket);
        let Some(rtt) = self.flight.answer(txid, (socket, from), now).filter(|_| open) else { return };
        host.outputs.push_back(Output::Route { link: self.flight.link, socket, remote: from, rtt });
        if self.flight.sockets.contains_key(&socket) {
            self.in_use.insert(socket);
        }
        match self.standing {
            Standing::Relayed => self.standing = Standing::Found(now),
            Standing::Found(_) => {}
            Standing::Direct(_) => {
                self.candidates.answered(from);
                self.renewed(socket, from, host);
            }
        }
        self.act(host, now);
    }

    pub(super) fn opened(&mut self, socket: SocketId, local: Option<SocketAddr>, host: &mut Host, now: Instant) {
        match local {
            Some(local) => {
                self.flight.sockets.insert(socket, Binding::Bound(local));
            }
            None => {
                self.flight.sockets.remove(&socket);
                host.owners.remove(&socket);
            }
        }
        self.act(host, now);
    }

    pub(super) fn stun(&mut self, message: &StunMessage<'_>, host: &mut Host, now: Instant) {
        self.renewal_seen(message, host, now);
        if let Some((session, _)) = self.search.session.as_mut().filter(|_| self.standing == Standing::Relayed) {
            session.stun(message, &mut Turn { host, flight: &mut self.flight, now });
            self.act(host, now);
        }
    }

    /// The route on a socket is gone.
    pub(super) fn unused(&mut self, socket: SocketId, host: &mut Host) {
        self.in_use.remove(&socket);
        self.close_unused(host);
    }

    pub(super) fn set_direct(&mut self, (socket, remote): (SocketId, SocketAddr), host: &mut Host, now: Instant) {
        self.standing = Standing::Direct(remote);
        let born = self.renewal.as_ref().and_then(|renewal| renewal.born(socket));
        self.renewal = Some(Renewal::new((socket, remote), born, host, now));
        self.succeed(remote, host, now);
        host.budget.leave(self.peer);
        self.in_use.clear();
        if self.flight.sockets.contains_key(&socket) {
            self.in_use.insert(socket);
        }
        self.candidates.settle();
        self.end_pinging(Outcome::Direct, now);
        self.end_search(Outcome::Direct, host, now);
        self.close_unused(host);
        self.act(host, now);
    }

    pub(super) fn set_relayed(&mut self, host: &mut Host, now: Instant) {
        if self.is_direct() {
            self.standing = Standing::Relayed;
            self.renewal = None;
            self.close_unused(host);
            self.flight.allowance.renew(now);
            self.restart(host, now);
        }
    }

    pub(super) fn set_relay_loss(&mut self, per_mille: u16, host: &mut Host, now: Instant) {
        if self.search.session.is_some() && self.search.suffers(per_mille) {
            self.end_search(Outcome::RelaySuffered, host, now);
            self.close_unused(host);
        }
        self.act(host, now);
    }

    pub(super) fn change_network(&mut self, host: &mut Host, now: Instant) {
        self.flight.clear();
        self.end_pinging(Outcome::Overtaken, now);
        self.end_search(Outcome::Overtaken, host, now);
        if let Some(renewal) = &mut self.renewal {
            renewal.abandon();
        }
        self.close_unused(host);
        if !self.is_direct() {
            self.standing = Standing::Relayed;
            self.restart(host, now);
        }
    }

    /// The connection is over.
    pub(super) fn close(&mut self, host: &mut Host, now: Instant) {
        self.in_use.clear();
        host.budget.leave(self.peer);
        self.end_search(Outcome::Overtaken, host, now);
        self.close_unused(host);
    }

    /// Does what is due.
    pub(super) fn act(&mut self, host: &mut Host, now: Instant) {
        if let Standing::Found(since) = self.standing {
            if now.since(since) < CONFIRMATION {
                self.due = Some((since + CONFIRMATION, "confirmation of a route"));
                return;
            }
            self.standing = Standing::Relayed;
        }
        if self.is_direct() {
            // an address that the peer tells only now may be a better one: its own in the network that both are in
            let ping = self.candidates.ping(&mut self.flight, host, now).map(|at| (at, "candidate ping"));
            let probe = self.punch(host, now).map(|at| (at, "probe of the peer's fresh mapping"));
            let renew = self.renew(host, now).map(|at| (at, "fresh mapping"));
            self.due = [ping, probe, renew].into_iter().flatten().min_by_key(|(at, _)| *at);
            return;
        }
        if self.again.is_some_and(|at| at <= now) {
            self.begin_pinging(host, now);
        }
        let ping = self.candidates.ping(&mut self.flight, host, now);
        let begin = self.begin_search(ping.is_some(), host, now);
        let answers = if ping.is_none() { self.await_answers(now) } else { None };
        let punch = self.punch(host, now).map(|at| (at, "punch"));
        let ping = ping.map(|at| (at, "candidate ping"));
        let begin = begin.map(|at| (at, "begin of a punch"));
        let again = self.again.map(|at| (at, "pings anew"));
        let answers = answers.map(|at| (at, "answers to pings"));
        self.due = [ping, answers, begin, punch, again].into_iter().flatten().min_by_key(|(at, _)| *at);
    }

    /// All pings have left: says until when the last may be answered, and then ends them.
    fn await_answers(&mut self, now: Instant) -> Option<Instant> {
        self.pinging.as_ref()?;
        let until = self.candidates.answers_until();
        if until.is_some_and(|until| now < until) {
            return until;
        }
        self.end_pinging(if until.is_some() { Outcome::NoAnswer } else { Outcome::NoBudget }, now);
        self.again = Some(now + FIRST_RETRY * (1 << self.vain.min(MAX_DOUBLINGS)));
        self.vain += 1;
        None
    }

    /// Gives the punch under way its turn; says when it wants the next.
    fn punch(&mut self, host: &mut Host, now: Instant) -> Option<Instant> {
        let (session, _) = self.search.session.as_mut()?;
        match session.act(&mut Turn { host, flight: &mut self.flight, now }) {
            // never at once again: whoever denied it then does so until time has passed
            Next::At(at) => Some(at.max(now + Duration::from_nanos(1))),
            Next::Over(outcome) => {
                self.end_search(outcome, host, now);
                self.close_unused(host);
                Some(now) // for whatever comes next
            }
        }
    }

    fn restart(&mut self, host: &mut Host, now: Instant) {
        self.vain = 0;
        self.begin_pinging(host, now);
        self.act(host, now);
    }

    fn begin_pinging(&mut self, host: &mut Host, now: Instant) {
        self.again = None;
        self.candidates.restart();
        self.list_candidates(host, now);
    }

    fn list_candidates(&mut self, host: &mut Host, now: Instant) {
        let begun = self.candidates.list(self.theirs.as_ref(), self.loopback, host, now);
        if let Standing::Direct(remote) = self.standing {
            self.candidates.answered(remote); // the route's own pings say more
        } else if begun && self.pinging.is_none() {
            self.pinging = Some(Trial::new(Means::Pings, &self.flight, now));
        }
    }

    pub(super) fn close_unused(&mut self, host: &mut Host) {
        if self.search.session.is_some() || self.renewal.as_ref().is_some_and(Renewal::is_running) {
            return;
        }
        let in_use = &self.in_use;
        self.flight.sockets.retain(|socket, _| {
            let keep = in_use.contains(socket);
            if !keep {
                host.close(*socket);
            }
            keep
        });
    }

    fn end_pinging(&mut self, outcome: Outcome, now: Instant) {
        if let Some(trial) = self.pinging.take() {
            self.remember(trial.attempt(&self.flight, outcome, now));
        }
    }

    pub(super) fn remember(&mut self, attempt: Attempt) {
        if self.attempts.len() >= MAX_ATTEMPTS {
            self.attempts.pop_front();
        }
        self.attempts.push_back(attempt);
    }

    pub(super) fn explain(&self, host: &Host, now: Instant) -> Explanation {
        let theirs = self.theirs.as_ref();
        let [ipv4, ipv6] = super::search::plans(&host.report, theirs);
        let trials = self.pinging.iter().chain(self.search.session.iter().map(|(_, trial)| trial));
        let running = trials.map(|trial| trial.attempt(&self.flight, Outcome::Running, now));
        let attempts: Vec<_> = self.attempts.iter().copied().chain(running).collect();
        Explanation {
            direct: self.is_direct(),
            ours: host.report.clone(),
            theirs: self.theirs.clone(),
            ipv4,
            ipv6,
            candidates: self.candidates.addrs().collect(),
            refused: self.candidates.refused().to_vec(),
            remedies: Remedy::find(&host.report, theirs, [ipv4, ipv6], &attempts),
            attempts,
        }
    }
}
