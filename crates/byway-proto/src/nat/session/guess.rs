//! Many ports: one NAT gives each destination a random port, the other side's port is fixed.
//!
//! The hard side opens many sockets towards the easy side's public address, each with a random public port of its own;
//! the easy side guesses ports until it meets one. With 256 open and 1,200 guessed of 64,512 the chance is 99 %.

use alloc::{collections::BTreeSet, vec::Vec};
use core::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use super::{LINGER, Next, Turn, at_port};
use crate::{
    Instant,
    nat::{
        Outcome, Signal, SocketId,
        budget::{Denied, Purpose},
    },
};

/// Sockets opened at once; with their openers they fill the second, save for ten packets of other work.
const FIRST: usize = 240;

/// Sockets opened a second later.
const SECOND: usize = 16;

/// Guesses at the head of each second: early ones end the punch early.
const BURST: u32 = 240;

/// For how long the hard side keeps its sockets open: five seconds of guesses, the signal's way and the last answer's.
const HOLD: Duration = Duration::from_secs(7);

/// How long the easy side waits for the answer to its question.
const ANSWER: Duration = Duration::from_secs(2);

const PACE: Duration = Duration::from_secs(1);

/// The hard side.
#[derive(Debug)]
pub(in crate::nat) struct Bait {
    easy: SocketAddr,
    began: Instant,
    /// The sockets, and how often each has sent an opener.
    sockets: Vec<(SocketId, u32)>,
    opened: usize,
}

impl Bait {
    pub(in crate::nat) fn new(easy: SocketAddr, now: Instant) -> Self {
        Bait { easy, began: now, sockets: Vec::new(), opened: 0 }
    }

    pub(super) fn act(&mut self, turn: &mut Turn<'_>) -> Next {
        let (now, later) = (turn.now, self.began + PACE);
        let second = now >= later;
        let wanted = if second { FIRST + SECOND } else { FIRST };
        while self.opened < wanted {
            match turn.open(self.easy.is_ipv6()) {
                Some(socket) => self.sockets.push((socket, 0)),
                None if self.sockets.is_empty() => return Next::Over(Outcome::NoBudget),
                None => self.opened = FIRST + SECOND,
            }
            self.opened += 1;
        }
        let end = self.began + HOLD;
        if now >= end {
            return Next::Over(Outcome::NoAnswer);
        }
        // once so that it need not arrive; a second later once more, for those that were lost or did not reach the own NAT
        let rounds = if second { 2 } else { 1 };
        for round in 0..rounds {
            for (socket, sent) in self.sockets.iter_mut().filter(|(_, sent)| *sent == round) {
                if turn.bound(*socket).is_none() {
                    continue;
                }
                match turn.opener(*socket, self.easy, round == 0) {
                    Ok(()) => *sent += 1,
                    Err(Denied::Until(at)) => return Next::At(at.min(end)),
                    Err(Denied::Spent) => return Next::Over(Outcome::NoBudget),
                }
            }
        }
        Next::At(if second { end } else { later })
    }
}

/// The easy side.
#[derive(Debug)]
pub(in crate::nat) struct Guess {
    began: Instant,
    asked: bool,
    declined: bool,
    /// The peer's public address, and when it said so.
    going: Option<(IpAddr, Instant)>,
    tried: BTreeSet<u16>,
    last: Option<Instant>,
}

impl Guess {
    /// A punch that begins, with the question to the peer, at `began`.
    pub(in crate::nat) fn new(began: Instant) -> Self {
        Guess { began, asked: false, declined: false, going: None, tried: BTreeSet::new(), last: None }
    }

    /// The peer's sockets are open.
    pub(super) fn go(&mut self, ip: IpAddr, now: Instant) {
        if self.asked && self.going.is_none() {
            self.going = Some((ip, now));
        }
    }

    /// The peer will not take part.
    pub(super) fn decline(&mut self) {
        self.declined = self.going.is_none();
    }

    pub(super) fn act(&mut self, turn: &mut Turn<'_>) -> Next {
        if self.declined {
            return Next::Over(Outcome::PeerBusy);
        }
        if turn.now < self.began {
            return Next::At(self.began);
        }
        if !self.asked {
            self.asked = true;
            let attempt = turn.flight.next_attempt();
            turn.say(Signal::Spray { attempt });
        }
        match self.going {
            Some((ip, since)) => self.send(ip, since, turn),
            None if turn.now >= self.began + ANSWER => Next::Over(Outcome::PeerBusy),
            None => Next::At(self.began + ANSWER),
        }
    }

    fn send(&mut self, ip: IpAddr, since: Instant, turn: &mut Turn<'_>) -> Next {
        let bursts = turn.now.since(since).as_secs() as u32 + 1;
        while (self.tried.len() as u32) < bursts.saturating_mul(BURST) {
            let Some(port) = self.next_port(turn) else { return self.linger(turn.now) };
            match turn.ping(Purpose::Guess, SocketId::MAIN, at_port(ip, port)) {
                Ok(()) => {
                    self.tried.insert(port);
                    self.last = Some(turn.now);
                }
                Err(Denied::Until(at)) => return Next::At(at),
                Err(Denied::Spent) if self.tried.is_empty() => return Next::Over(Outcome::NoBudget),
                Err(Denied::Spent) => return self.linger(turn.now),
            }
        }
        Next::At(since + PACE * bursts)
    }

    /// A random port that was not tried yet; `None` if all were.
    fn next_port(&self, turn: &mut Turn<'_>) -> Option<u16> {
        let (lowest, highest) = (turn.host.config.lowest_port.max(1), turn.host.config.highest_port);
        let count = u64::from(highest.checked_sub(lowest)?) + 1;
        if self.tried.len() as u64 >= count {
            return None;
        }
        let drawn = lowest + turn.host.rng.below(count) as u16;
        // the next one that is free: of 64,512 ports 1,200 at most are taken, so this changes the odds of none by much
        (drawn..=highest).chain(lowest..drawn).find(|port| !self.tried.contains(port))
    }

    fn linger(&self, now: Instant) -> Next {
        let end = self.last.map_or(now, |last| last + LINGER);
        if now >= end { Next::Over(Outcome::NoAnswer) } else { Next::At(end) }
    }
}
