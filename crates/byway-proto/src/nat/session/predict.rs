//! Prediction: one NAT gives each destination another port, but the next one is known.
//!
//! The hard side learns where its NAT's counter stands by asking servers from one fresh socket, and opens another one
//! towards the easy side in the same instant, before other hosts can move the counter. It tells the easy side which
//! ports that socket can have got; the easy side probes them from its own socket, whose public port is fixed.

use alloc::vec::Vec;
use core::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use super::{Asked, LINGER, Next, Rounds, StunMessage, Target, Tries, Turn, aimed, at_port, earlier};
use crate::{
    Instant,
    nat::{
        Outcome, Signal, SocketId,
        budget::{Denied, Purpose},
    },
};

/// How often the hard side tries, with fresh sockets each time.
const ATTEMPTS: u32 = 3;

/// From one attempt to the next: two round trips over the relay and to the peer at 100 ms each, and the probes' three rounds.
const ATTEMPT_SPACING: Duration = Duration::from_millis(550);

/// How often the hard side's socket pings while it waits, so that a lost opener is made good before the probes end.
const OPENER_SPACING: Duration = Duration::from_millis(150);

/// How often the easy side probes each port.
const ROUNDS: u32 = 3;

/// The time between rounds: they reach beyond a burst of losses.
const ROUND_SPACING: Duration = Duration::from_millis(150);

/// The attempts whose ports are probed at one time: one is under way, the last one may be answered late.
const MAX_TARGETS: usize = 2;

/// The hard side.
#[derive(Debug)]
pub(in crate::nat) struct Predict {
    target: Target,
    tries: Tries<Attempt>,
}

#[derive(Debug)]
struct Attempt {
    number: u32,
    /// Reads the counter; `None` where the NAT keeps the socket's own port.
    meter: Option<SocketId>,
    /// Is to be met.
    door: SocketId,
    asked: Option<Asked>,
    told: bool,
    next_opener: Instant,
}

impl Predict {
    pub(in crate::nat) fn new(target: Target) -> Self {
        Predict { target, tries: Tries::new(ATTEMPTS, ATTEMPT_SPACING) }
    }

    pub(super) fn act(&mut self, turn: &mut Turn<'_>) -> Next {
        let (target, now) = (self.target, turn.now);
        let Some(step) = target.step else { return Next::Over(Outcome::NoBudget) };
        let (attempt, end) = match self.tries.turn(|_| false, || Attempt::begin(step, target, turn), now) {
            Ok(attempt) => attempt,
            Err(outcome) => return Next::Over(outcome),
        };
        match attempt.act(target.public, turn) {
            Ok(next) => Next::At(earlier(next, end)),
            Err(outcome) => Next::Over(outcome),
        }
    }

    pub(super) fn stun(&mut self, message: &StunMessage<'_>, turn: &mut Turn<'_>) {
        let Some(attempt) = self.tries.current() else { return };
        let (Some(asked), Some(step)) = (&attempt.asked, self.target.step) else { return };
        let Some((seen, later)) = asked.answer(message) else { return };
        turn.host.heard_server(message.from);
        if attempt.told {
            return;
        }
        // the door's mapping followed those to the servers asked later; one of these may not have been made, and other
        // hosts may have taken some
        let expected = later + 1;
        let mut ahead: Vec<i32> = [expected, expected + 1, expected - 1, expected + 2].into();
        ahead.retain(|it| *it > 0);
        let ports = ahead.into_iter().filter_map(|it| aimed(seen.port(), it * i32::from(step))).collect();
        attempt.tell(seen.ip(), ports, turn);
    }
}

impl Attempt {
    fn begin(step: i16, target: Target, turn: &mut Turn<'_>) -> Option<Self> {
        let ipv6 = target.public.is_ipv6();
        let meter = if step == 0 { None } else { Some(turn.open(ipv6)?) };
        let door = turn.open(ipv6)?;
        let number = turn.flight.next_attempt();
        Some(Attempt { number, meter, door, asked: None, told: false, next_opener: turn.now })
    }

    fn act(&mut self, easy: SocketAddr, turn: &mut Turn<'_>) -> Result<Option<Instant>, Outcome> {
        let ready =
            turn.bound(self.door).zip(self.meter.map_or(Some(self.door), |meter| turn.bound(meter).map(|_| meter)));
        let Some((local, _)) = ready else { return Ok(None) };
        if turn.now < self.next_opener {
            return Ok(Some(self.next_opener));
        }
        match turn.host.budget.check(Purpose::Opener, &turn.flight.allowance, turn.now) {
            Ok(()) => {}
            Err(Denied::Until(at)) => return Ok(Some(at)),
            Err(Denied::Spent) => return Err(Outcome::NoBudget),
        }
        let first = !self.told && self.asked.is_none();
        if first && let Some(meter) = self.meter {
            // in the order in which the NAT is to count, with nothing between them
            self.asked = Some(turn.ask(meter, easy.is_ipv6()));
        }
        let _ = turn.opener(self.door, easy, first);
        self.next_opener = turn.now + OPENER_SPACING;
        if first && self.meter.is_none() {
            let public = turn.host.public(easy.is_ipv6());
            if let Some(public) = public {
                self.tell(public.ip(), [local.port()].into(), turn);
            }
        }
        Ok(Some(self.next_opener))
    }

    fn tell(&mut self, ip: IpAddr, ports: Vec<u16>, turn: &mut Turn<'_>) {
        self.told = true;
        turn.say(Signal::Guess { attempt: self.number, ip, ports });
    }
}

/// The easy side.
#[derive(Debug)]
pub(in crate::nat) struct Probe {
    /// The socket whose public port the hard side knows.
    socket: SocketId,
    targets: Vec<Ports>,
    end: Instant,
}

#[derive(Debug)]
struct Ports {
    attempt: u32,
    ip: IpAddr,
    ports: Vec<u16>,
    rounds: Rounds,
}

impl Probe {
    pub(in crate::nat) fn new(socket: SocketId, now: Instant) -> Self {
        Probe { socket, targets: Vec::new(), end: now + LINGER }
    }

    /// Probes these ports as well, unless they belong to an attempt that is over.
    pub(super) fn add(&mut self, attempt: u32, ip: IpAddr, ports: &[u16], now: Instant) {
        if self.targets.iter().any(|it| it.attempt >= attempt) {
            return;
        }
        if self.targets.len() >= MAX_TARGETS {
            self.targets.remove(0);
        }
        let ports: Vec<u16> = ports.iter().copied().filter(|port| *port != 0).take(MAX_PORTS).collect();
        self.targets.push(Ports { attempt, ip, ports, rounds: Rounds::new(ROUNDS, ROUND_SPACING, now) });
        self.end = now + ROUND_SPACING * ROUNDS + LINGER;
    }

    pub(super) fn act(&mut self, turn: &mut Turn<'_>) -> Next {
        let mut next = None;
        for target in &mut self.targets {
            match target.act(self.socket, turn) {
                Ok(Some(at)) => next = Some(earlier(next, at)),
                Ok(None) => {}
                Err(outcome) => return Next::Over(outcome),
            }
        }
        if turn.now >= self.end { Next::Over(Outcome::NoAnswer) } else { Next::At(earlier(next, self.end)) }
    }
}

/// The ports of one attempt that are probed: with [`ROUNDS`] and [`ATTEMPTS`] no more than a dial's 64.
const MAX_PORTS: usize = 7;

impl Ports {
    fn act(&mut self, socket: SocketId, turn: &mut Turn<'_>) -> Result<Option<Instant>, Outcome> {
        let (ip, ports) = (self.ip, &self.ports);
        self.rounds.act(ports.len(), turn.now, |position| match ports.get(position) {
            Some(port) => turn.ping(Purpose::Predicted, socket, at_port(ip, *port)),
            None => Ok(()),
        })
    }
}
