//! Prediction on both sides: each NAT gives each destination another port, but in order.
//!
//! Each side reads its counter and tells it. Both then open many sockets towards *one* port of the other, eight
//! mappings ahead: whichever of the own sockets gets the port eight ahead is met by the other side's.

use alloc::vec::Vec;
use core::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use super::{Asked, Next, Rounds, StunMessage, Target, Tries, Turn, aimed, at_port, earlier};
use crate::{
    Instant,
    nat::{Outcome, Signal, SocketId, budget::Purpose},
};

/// How many mappings ahead of the counter both sides aim: other hosts may take up to seven before the sockets open, at 5 a second
/// in more than a second.
pub(super) const AIM: i32 = 8;

/// How many sockets: the one that is aimed at lies in the middle.
const SOCKETS: usize = 16;

/// How often both sides try.
const ATTEMPTS: u32 = 2;

/// From one attempt to the next: server, relay, four rounds and a round trip between the peers.
const ATTEMPT_SPACING: Duration = Duration::from_millis(800);

/// How often each socket pings.
const ROUNDS: u32 = 4;

/// The time between rounds.
const ROUND_SPACING: Duration = Duration::from_millis(120);

/// Either side.
#[derive(Debug)]
pub(in crate::nat) struct Meet {
    target: Target,
    tries: Tries<Attempt>,
    /// The attempt, address and port that the peer told last.
    theirs: Option<(u32, IpAddr, Option<u16>)>,
    declined: bool,
}

#[derive(Debug)]
struct Attempt {
    number: u32,
    meter: SocketId,
    asked: Option<Asked>,
    told: bool,
    sockets: Vec<SocketId>,
    rounds: Rounds,
}

impl Meet {
    pub(in crate::nat) fn new(target: Target) -> Self {
        Meet { target, tries: Tries::new(ATTEMPTS, ATTEMPT_SPACING), theirs: None, declined: false }
    }

    /// Where the peer's socket will be.
    pub(super) fn counter(&mut self, attempt: u32, ip: IpAddr, port: Option<u16>) {
        if self.theirs.is_none_or(|(last, ..)| attempt > last) {
            self.theirs = Some((attempt, ip, port));
        }
    }

    /// The peer will not take part.
    pub(super) fn decline(&mut self) {
        self.declined = true;
    }

    pub(super) fn act(&mut self, turn: &mut Turn<'_>) -> Next {
        let Some(step) = self.target.step else { return Next::Over(Outcome::NoBudget) };
        if self.declined {
            return Next::Over(Outcome::PeerBusy);
        }
        let (target, theirs) = (self.target, self.theirs.map_or(0, |(theirs, ..)| theirs));
        let now = turn.now;
        let ahead = |attempt: &Attempt| theirs > attempt.number;
        let (attempt, end) = match self.tries.turn(ahead, || Attempt::begin(target, theirs, turn), now) {
            Ok(attempt) => attempt,
            Err(outcome) => return Next::Over(outcome),
        };
        let aim = self.theirs.filter(|(theirs, ..)| *theirs == attempt.number);
        let aim = aim.and_then(|(_, ip, port)| Some(at_port(ip, port?)));
        match attempt.act(step, aim, turn) {
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
        let Some(base) = aimed(seen.port(), later * i32::from(step)) else { return };
        attempt.told = true;
        turn.say(Signal::Counter { attempt: attempt.number, ip: seen.ip(), base, step });
    }
}

impl Attempt {
    fn begin(target: Target, theirs: u32, turn: &mut Turn<'_>) -> Option<Self> {
        let meter = turn.open(target.public.is_ipv6())?;
        let number = turn.flight.join_attempt(theirs);
        Some(Attempt {
            number,
            meter,
            asked: None,
            told: false,
            sockets: Vec::new(),
            rounds: Rounds::new(ROUNDS, ROUND_SPACING, turn.now),
        })
    }

    fn act(&mut self, step: i16, aim: Option<SocketAddr>, turn: &mut Turn<'_>) -> Result<Option<Instant>, Outcome> {
        let Some(local) = turn.bound(self.meter) else { return Ok(None) };
        let ipv6 = local.is_ipv6();
        if step == 0 && !self.told {
            // the NAT keeps the port of a socket's first mapping: this one's, if it does not ask anybody
            let Some(public) = turn.host.public(ipv6) else { return Err(Outcome::Overtaken) };
            self.told = true;
            let attempt = self.number;
            turn.say(Signal::Counter { attempt, ip: public.ip(), base: local.port(), step });
        } else if step != 0 && self.asked.is_none() {
            self.asked = Some(turn.ask(self.meter, ipv6));
        }
        let Some(aim) = aim.filter(|_| self.told) else { return Ok(None) };
        if self.sockets.is_empty() {
            match step {
                0 => self.sockets.push(self.meter),
                _ => self.sockets.extend((0..SOCKETS).map_while(|_| turn.open(ipv6))),
            }
        }
        if self.sockets.iter().any(|socket| turn.is_pending(*socket)) {
            return Ok(None);
        }
        let sockets = &self.sockets;
        self.rounds.act(sockets.len(), turn.now, |position| match sockets.get(position) {
            Some(socket) if turn.bound(*socket).is_some() => turn.ping(Purpose::Guess, *socket, aim),
            _ => Ok(()), // the system refused it
        })
    }
}
