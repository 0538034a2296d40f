//! Which punch one connection begins, and when.

use core::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use super::{host::Host, link::Link, trial::Trial};
use crate::{
    Instant,
    addr::candidate::is_probeable,
    nat::{
        FamilyReport, Filtering, Means, NatReport, Outcome, Plan, Side, Signal, SocketId,
        budget::HARD_GAP,
        candidates::is_private,
        memory::Pair,
        plan,
        session::{Bait, Guess, Meet, Predict, Probe, Scan, Session, Target, Turn},
    },
};

/// How long pings have before many ports are opened, where the filter of the side with the fixed port is not known: it may
/// let every port of an address in, which a round trip shows.
const GRACE: Duration = Duration::from_millis(150);

/// A punch stops when the relay route loses so much more than at its begin, in thousandths: a NAT's table or a line is full.
const SUFFERING: u16 = 50;

/// As often in a row: a single lost probe is none.
const SUFFERING_TIMES: u32 = 2;

/// The search for a way other than by pings.
#[derive(Debug, Default)]
pub(super) struct Search {
    pub(super) session: Option<(Session, Trial)>,
    /// The networks and the plan that it belongs to.
    of: Option<(Pair, Option<Plan>)>,
    /// No punch of ours begins before this time.
    not_before: Instant,
    /// The last punch got no answer: the scan, where one is configured, is all that is left.
    last_rung: bool,
    /// The relay route's loss when the punch had just begun, which is when it is told for the first time.
    loss_before: Option<u16>,
    bad_losses: u32,
}

impl Search {
    /// Takes in the relay route's loss; says whether the punch under way is to blame.
    pub(super) fn suffers(&mut self, per_mille: u16) -> bool {
        let before = *self.loss_before.get_or_insert(per_mille);
        self.bad_losses = if per_mille >= before.saturating_add(SUFFERING) { self.bad_losses + 1 } else { 0 };
        self.bad_losses >= SUFFERING_TIMES
    }
}

/// What can be done for one family beyond pings.
struct Chance {
    plan: Plan,
    pair: Pair,
    /// The peer's public address.
    target: SocketAddr,
}

impl Link {
    /// Begins the punch that is due, if one is; says when the next will be. `pinging`: whether pings are still to come.
    pub(super) fn begin_search(&mut self, pinging: bool, host: &mut Host, now: Instant) -> Option<Instant> {
        if self.search.session.is_some() || !self.is_relayed() {
            return None;
        }
        let plans = plans(&host.report, self.theirs.as_ref());
        let cheap = plans.into_iter().flatten().any(Plan::is_cheap);
        let mut next = None;
        for (ipv6, plan) in [(false, plans[0]), (true, plans[1])] {
            let Some(chance) = plan.and_then(|plan| self.chance(plan, ipv6, host)) else { continue };
            let known = host.memory.worked(chance.pair);
            let scan = self.search.last_rung && host.config.scan.is_some();
            let means = if scan { Some(Means::Scan) } else { means(&chance, known.map(|(means, _)| means), host) };
            let Some(means) = means else { continue };
            // a scan is the last resort, and where a ping may do, it comes first
            let wait = pinging && known.is_none() && (cheap || means == Means::Scan);
            let barred = host.memory.barred(chance.pair).filter(|_| !scan);
            let from = self.search.not_before.max(barred.unwrap_or(now));
            if wait {
                continue;
            }
            if from > now {
                next = Some(next.map_or(from, |next: Instant| next.min(from)));
                continue;
            }
            match self.begin(means, &chance, host, now) {
                Ok(()) => return None,
                Err(at) => next = Some(next.map_or(at, |next: Instant| next.min(at))),
            }
        }
        next
    }

    fn chance(&self, plan: Plan, ipv6: bool, host: &Host) -> Option<Chance> {
        let target = public(self.theirs.as_ref(), ipv6)?;
        let ours = host.public(ipv6)?;
        let pair = Pair { peer: self.peer, ours: ours.ip(), theirs: target.ip() };
        // what worked between the two networks is known better than what a survey left open
        let remembered = host.memory.worked(pair).and_then(|(_, plan)| plan);
        let plan = remembered.filter(|_| plan == Plan::SimultaneousOpen).unwrap_or(plan);
        let probeable = is_probeable(target, false).is_ok() && self.is_guessable(target.ip(), host);
        probeable.then_some(Chance { plan, pair, target })
    }

    /// Whether ports of this address may be guessed: it is the peer's own public one, by its report, and not ours.
    fn is_guessable(&self, ip: IpAddr, host: &Host) -> bool {
        let theirs = public(self.theirs.as_ref(), ip.is_ipv6()).is_some_and(|it| it.ip() == ip)
            || self.candidates.addrs().any(|it| it.ip() == ip);
        let ours = host.public(ip.is_ipv6()).is_some_and(|it| it.ip() == ip);
        theirs && !ours && !is_private(ip) && is_probeable(SocketAddr::new(ip, 1), false).is_ok()
    }

    fn begin(&mut self, means: Means, chance: &Chance, host: &mut Host, now: Instant) -> Result<(), Instant> {
        if means != Means::Prediction {
            self.begin_hard(host, now)?;
        }
        self.flight.allowance.renew(now);
        let ipv6 = chance.target.is_ipv6();
        let ours = host.family(ipv6);
        let target = Target::new(chance.target, ours.and_then(|it| it.ports));
        let session = match (means, host.config.scan.clone()) {
            (Means::Predictions, _) => Session::Meet(Meet::new(target)),
            (Means::Spray, _) => {
                let filtering = ours.and_then(|it| it.filtering);
                let certain =
                    filtering == Some(Filtering::AddressAndPortDependent) || host.memory.worked(chance.pair).is_some();
                Session::Guess(Guess::new(if certain { now } else { now + GRACE }))
            }
            (Means::Scan, Some(scan)) => Session::Scan(Scan::new(chance.target, scan, now)),
            _ => Session::Predict(Predict::new(target)),
        };
        self.start(session, Some((chance.pair, Some(chance.plan))), now);
        Ok(())
    }

    fn begin_hard(&mut self, host: &mut Host, now: Instant) -> Result<(), Instant> {
        let begun = host.budget.begin_hard((self.flight.link, self.peer), now);
        // those who wait must not all come at once
        begun.map_err(|at| at + Duration::from_millis(host.rng.below(1_000)))
    }

    pub(super) fn start(&mut self, session: Session, of: Option<(Pair, Option<Plan>)>, now: Instant) {
        let trial = Trial::new(session.means(), &self.flight, now);
        self.search.session = Some((session, trial));
        self.search.of = of;
        (self.search.loss_before, self.search.bad_losses) = (None, 0);
    }

    /// Ends the punch under way, if any, and remembers how it ended.
    pub(super) fn end_search(&mut self, outcome: Outcome, host: &mut Host, now: Instant) {
        let Some((session, trial)) = self.search.session.take() else { return };
        let of = self.search.of.take();
        if of.is_some() || outcome != Outcome::NoAnswer {
            self.remember(trial.attempt(&self.flight, outcome, now)); // what only helped the peer to renew its mapping is none
        }
        host.budget.end_hard(self.flight.link, now);
        self.search.last_rung = outcome == Outcome::NoAnswer && session.means() != Means::Scan && of.is_some();
        match outcome {
            Outcome::PeerBusy => {
                self.search.not_before = now + HARD_GAP + Duration::from_millis(host.rng.below(5_000));
            }
            // the side that only answers begins nothing by itself, so that its peer decides when to try again
            Outcome::NoAnswer | Outcome::NoBudget | Outcome::RelaySuffered => {
                if let Some((pair, _)) = of {
                    host.memory.fail(pair, now);
                }
            }
            Outcome::Running | Outcome::Direct | Outcome::Overtaken => {}
        }
    }

    /// Remembers that the punch under way led to a route to `remote`; one that leads elsewhere is not its merit.
    pub(super) fn succeed(&mut self, remote: SocketAddr, host: &mut Host, now: Instant) {
        let Some((session, _)) = &self.search.session else { return };
        if let Some((pair, plan)) = self.search.of.filter(|(pair, _)| pair.theirs == remote.ip().to_canonical()) {
            host.memory.succeed(pair, session.means(), plan, now);
        }
    }

    /// The peer's part of a punch, or its wish for one.
    pub(super) fn hear(&mut self, signal: &Signal, host: &mut Host, now: Instant) {
        let (attempt, ip) = match signal {
            Signal::Counter { attempt, ip, .. } | Signal::Guess { attempt, ip, .. } => (*attempt, Some(*ip)),
            Signal::Go { attempt, ip } => (*attempt, Some(*ip)),
            Signal::Spray { attempt } | Signal::Busy { attempt } => (*attempt, None),
        };
        self.flight.hear_attempt(attempt);
        if ip.is_some_and(|ip| !self.is_guessable(ip, host)) {
            return;
        }
        if !self.is_relayed() {
            return self.help_to_renew(signal, now);
        }
        match signal {
            Signal::Guess { .. } if self.search.session.is_none() => {
                let of = ip.and_then(|ip| self.pair(ip, host)).map(|pair| (pair, None));
                self.start(Session::Probe(Probe::new(SocketId::MAIN, now)), of, now);
            }
            Signal::Counter { .. } if self.search.session.is_none() => {
                self.join(Means::Predictions, attempt, host, now)
            }
            Signal::Spray { .. } => return self.join(Means::Spray, attempt, host, now),
            _ => {}
        }
        if let Some((session, _)) = &mut self.search.session {
            session.signal(signal, now);
        }
    }

    fn pair(&self, theirs: IpAddr, host: &Host) -> Option<Pair> {
        Some(Pair { peer: self.peer, ours: host.public(theirs.is_ipv6())?.ip(), theirs })
    }

    /// Takes part in a hard punch that the peer has begun, or says that it cannot be.
    fn join(&mut self, means: Means, attempt: u32, host: &mut Host, now: Instant) {
        let session = self.search.session.is_none().then(|| self.partner(means, host, now)).flatten();
        match session {
            Some((session, of)) => {
                let ip = of.0.ours;
                self.start(session, Some(of), now);
                if means == Means::Spray {
                    self.turn(host, now).say(Signal::Go { attempt, ip });
                }
            }
            None => self.turn(host, now).say(Signal::Busy { attempt }),
        }
    }

    fn partner(&mut self, means: Means, host: &mut Host, now: Instant) -> Option<(Session, (Pair, Option<Plan>))> {
        let plans = plans(&host.report, self.theirs.as_ref());
        let wanted = |plan: Plan| match means {
            Means::Spray => plan == Plan::Spray { hard: Side::Ours },
            _ => plan == Plan::PredictBoth,
        };
        let chances = [(false, plans[0]), (true, plans[1])];
        let mut chances = chances.into_iter().filter_map(|(ipv6, plan)| self.chance(plan?, ipv6, host));
        let chance = chances.find(|chance| wanted(chance.plan))?;
        self.flight.allowance.renew(now);
        if !host.budget.has_mapping(&self.flight.allowance) {
            return None; // the peer would guess at ports that nobody opens
        }
        self.begin_hard(host, now).ok()?;
        let ours = host.family(chance.target.is_ipv6());
        let session = match means {
            Means::Spray => Session::Bait(Bait::new(chance.target, now)),
            _ => Session::Meet(Meet::new(Target::new(chance.target, ours.and_then(|it| it.ports)))),
        };
        Some((session, (chance.pair, Some(chance.plan))))
    }

    fn turn<'a>(&'a mut self, host: &'a mut Host, now: Instant) -> Turn<'a> {
        Turn { host, flight: &mut self.flight, now }
    }
}

/// What this side begins for a plan; `None` if the peer begins, or nothing helps.
fn means(chance: &Chance, known: Option<Means>, host: &Host) -> Option<Means> {
    match chance.plan {
        _ if known == Some(Means::Scan) && host.config.scan.is_some() => Some(Means::Scan),
        Plan::Predict { hard: Side::Ours } => Some(Means::Prediction),
        Plan::PredictBoth => Some(Means::Predictions),
        Plan::Spray { hard: Side::Theirs } => Some(Means::Spray),
        Plan::Predict { .. } | Plan::Spray { .. } => None,
        Plan::Direct | Plan::SimultaneousOpen | Plan::RelayOnly(_) => host.config.scan.as_ref().map(|_| Means::Scan),
    }
}

/// The plans for IPv4 and IPv6, as far as both sides have told.
pub(super) fn plans(ours: &NatReport, theirs: Option<&NatReport>) -> [Option<Plan>; 2] {
    let both = |ours: &Option<FamilyReport>, theirs: Option<&Option<FamilyReport>>| {
        Some(plan(ours.as_ref()?, theirs?.as_ref()?))
    };
    [both(&ours.ipv4, theirs.map(|it| &it.ipv4)), both(&ours.ipv6, theirs.map(|it| &it.ipv6))]
}

fn public(report: Option<&NatReport>, ipv6: bool) -> Option<SocketAddr> {
    let report = report?;
    let family = if ipv6 { report.ipv6.as_ref() } else { report.ipv4.as_ref() };
    family?.public
}
