//! A punch under way: what one side of it does beyond pinging the addresses that it was told.
//!
//! | plan | hard side | easy side |
//! |---|---|---|
//! | prediction | [`Predict`] | [`Probe`] |
//! | prediction on both sides | [`Meet`] | [`Meet`] |
//! | many ports | [`Bait`] | [`Guess`] |
//! | port scan | [`Scan`] | [`Scan`] |
//! | a fresh mapping | [`Renew`] | [`Probe`] |

mod guess;
mod meet;
mod predict;
mod renew;
mod scan;

use core::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

pub(super) use guess::{Bait, Guess};
pub(super) use meet::Meet;
pub(super) use predict::{Predict, Probe};
pub(super) use renew::Renew;
pub(super) use scan::Scan;

use super::{
    Means, Outcome, Output, Ports, Signal, SocketId,
    agent::{Flight, Host, Packet},
    budget::{Denied, Purpose},
};
use crate::{Instant, wire::stun};

/// An opener passes this many routers: those of a home and of a carrier before its NAT, but seldom the peer's NAT, which may
/// take a packet that it does not expect amiss. Later openers pass all, for those whose own NAT stands further out.
pub(super) const OPENER_HOPS: u8 = 5;

/// The servers that are asked from one socket: the first answer is taken, so one request may be lost.
const ASKED: usize = 2;

/// What a punch may use for one turn.
pub(super) struct Turn<'a> {
    pub(super) host: &'a mut Host,
    pub(super) flight: &'a mut Flight,
    pub(super) now: Instant,
}

/// Where a socket stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Binding {
    /// The driver has not answered yet.
    Asked,
    /// It is bound to this address.
    Bound(SocketAddr),
}

impl Turn<'_> {
    /// A new socket; `None` if the dial may not open any more.
    fn open(&mut self, ipv6: bool) -> Option<SocketId> {
        if !self.host.budget.take_mapping(&mut self.flight.allowance) {
            return None;
        }
        let socket = self.host.sockets.next_id();
        self.host.owners.insert(socket, self.flight.link);
        self.flight.sockets.insert(socket, Binding::Asked);
        self.host.outputs.push_back(Output::Open { socket, ipv6 });
        Some(socket)
    }

    /// Where a socket is bound; `None` also if the system refused it.
    fn bound(&self, socket: SocketId) -> Option<SocketAddr> {
        match self.flight.sockets.get(&socket) {
            Some(Binding::Bound(local)) => Some(*local),
            Some(Binding::Asked) | None => None,
        }
    }

    fn is_pending(&self, socket: SocketId) -> bool {
        self.flight.sockets.get(&socket) == Some(&Binding::Asked)
    }

    fn ping(&mut self, purpose: Purpose, socket: SocketId, to: SocketAddr) -> Result<(), Denied> {
        self.host.ping(self.flight, &Packet { purpose, socket, to, hop_limit: None }, self.now)
    }

    /// Opens this side's NAT for packets that come back to `socket` from `to`.
    fn opener(&mut self, socket: SocketId, to: SocketAddr, first: bool) -> Result<(), Denied> {
        let hop_limit = first.then_some(OPENER_HOPS);
        self.host.ping(self.flight, &Packet { purpose: Purpose::Opener, socket, to, hop_limit }, self.now)
    }

    pub(super) fn say(&mut self, signal: Signal) {
        self.host.outputs.push_back(Output::Signal { link: self.flight.link, signal });
    }

    /// Asks servers of the family from `socket`, in the order in which the NAT will count.
    fn ask(&mut self, socket: SocketId, ipv6: bool) -> Asked {
        let requests = self.host.ask_servers::<ASKED>(ipv6).map(|server| {
            let (to, txid) = (server?, self.host.rng.bytes());
            let datagram = stun::binding_request(txid);
            self.host.outputs.push_back(Output::Stun { socket, to, datagram });
            Some((to, txid))
        });
        Asked { socket, requests }
    }
}

/// Requests to servers by one socket.
#[derive(Debug, Clone)]
struct Asked {
    socket: SocketId,
    requests: [Option<(SocketAddr, [u8; 12])>; ASKED],
}

impl Asked {
    /// The public address that a server saw, and how many of the servers were asked after it.
    fn answer(&self, message: &StunMessage<'_>) -> Option<(SocketAddr, i32)> {
        if message.socket != self.socket {
            return None;
        }
        let mut later = self.requests.iter().flatten().count() as i32;
        for (server, txid) in self.requests.iter().flatten() {
            later -= 1;
            if *server == message.from {
                return stun::parse_response(message.datagram, txid).map(|seen| (seen, later));
            }
        }
        None
    }
}

/// A STUN message that came in by a punch's socket.
pub(super) struct StunMessage<'a> {
    pub(super) socket: SocketId,
    pub(super) from: SocketAddr,
    pub(super) datagram: &'a [u8],
}

/// What a punch wants after a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// Another turn at this time.
    At(Instant),
    /// Nothing any more.
    Over(Outcome),
}

/// One side of a punch.
#[derive(Debug)]
pub(super) enum Session {
    Predict(Predict),
    Probe(Probe),
    Meet(Meet),
    Bait(Bait),
    Guess(Guess),
    Scan(Scan),
}

impl Session {
    pub(super) fn means(&self) -> Means {
        match self {
            Session::Predict(_) | Session::Probe(_) => Means::Prediction,
            Session::Meet(_) => Means::Predictions,
            Session::Bait(_) | Session::Guess(_) => Means::Spray,
            Session::Scan(_) => Means::Scan,
        }
    }

    /// Does what is due.
    pub(super) fn act(&mut self, turn: &mut Turn<'_>) -> Next {
        match self {
            Session::Predict(it) => it.act(turn),
            Session::Probe(it) => it.act(turn),
            Session::Meet(it) => it.act(turn),
            Session::Bait(it) => it.act(turn),
            Session::Guess(it) => it.act(turn),
            Session::Scan(it) => it.act(turn),
        }
    }

    /// A server's answer, by a socket of this punch.
    pub(super) fn stun(&mut self, message: &StunMessage<'_>, turn: &mut Turn<'_>) {
        match self {
            Session::Predict(it) => it.stun(message, turn),
            Session::Meet(it) => it.stun(message, turn),
            Session::Probe(_) | Session::Bait(_) | Session::Guess(_) | Session::Scan(_) => {}
        }
    }

    /// What the peer says to a punch that is under way; the caller has checked that `ip`s are the peer's own.
    pub(super) fn signal(&mut self, signal: &Signal, now: Instant) {
        match (self, signal) {
            (Session::Probe(it), Signal::Guess { attempt, ip, ports }) => it.add(*attempt, *ip, ports, now),
            (Session::Meet(it), Signal::Counter { attempt, ip, base, step }) => {
                it.counter(*attempt, *ip, aimed(*base, i32::from(*step) * meet::AIM));
            }
            (Session::Meet(it), Signal::Busy { .. }) => it.decline(),
            (Session::Guess(it), Signal::Go { ip, .. }) => it.go(*ip, now),
            (Session::Guess(it), Signal::Busy { .. }) => it.decline(),
            _ => {}
        }
    }
}

/// The port that lies so many ports further; `None` if that is none. (Where a NAT's counter begins again is not known.)
fn aimed(base: u16, ahead: i32) -> Option<u16> {
    u16::try_from(i32::from(base) + ahead).ok().filter(|port| *port != 0)
}

/// What a NAT that can be predicted adds for its next mapping; 0 where it keeps the socket's own port.
fn step_of(ports: Option<Ports>) -> Option<i16> {
    match ports? {
        Ports::Preserving => Some(0),
        Ports::Sequential { step } => Some(step),
        Ports::Random => None,
    }
}

/// The other end of a punch, as far as it is known.
#[derive(Debug, Clone, Copy)]
pub(super) struct Target {
    /// Its public address: where the servers saw its own socket.
    pub(super) public: SocketAddr,
    /// What this side's NAT adds for the next mapping, if that can be predicted.
    pub(super) step: Option<i16>,
}

impl Target {
    pub(super) fn new(public: SocketAddr, ports: Option<Ports>) -> Self {
        Target { public, step: step_of(ports) }
    }
}

/// The earlier of two times, of which one may not be.
fn earlier(a: Option<Instant>, b: Instant) -> Instant {
    a.map_or(b, |a| a.min(b))
}

/// An address of the peer's.
fn at_port(ip: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(ip, port)
}

/// Attempts of a punch, one after the other.
#[derive(Debug)]
struct Tries<A> {
    limit: u32,
    spacing: Duration,
    begun: u32,
    /// The last attempt, and when it began.
    current: Option<(Instant, A)>,
}

impl<A> Tries<A> {
    fn new(limit: u32, spacing: Duration) -> Self {
        Tries { limit, spacing, begun: 0, current: None }
    }

    fn current(&mut self) -> Option<&mut A> {
        self.current.as_mut().map(|(_, attempt)| attempt)
    }

    /// The attempt whose turn it is, and its end. A new one begins when the last has had its time, or when it is `overtaken`.
    fn turn(
        &mut self,
        overtaken: impl FnOnce(&A) -> bool,
        begin: impl FnOnce() -> Option<A>,
        now: Instant,
    ) -> Result<(&mut A, Instant), Outcome> {
        let over = |(began, attempt): &(Instant, A)| now >= *began + self.spacing || overtaken(attempt);
        if self.begun < self.limit && self.current.as_ref().is_none_or(over) {
            self.begun += 1;
            match begin() {
                Some(attempt) => self.current = Some((now, attempt)),
                None => self.begun = self.limit,
            }
        }
        let (began, attempt) = self.current.as_mut().ok_or(Outcome::NoBudget)?;
        let linger = if self.begun < self.limit { Duration::ZERO } else { LINGER };
        let end = *began + self.spacing + linger;
        if now >= end { Err(Outcome::NoAnswer) } else { Ok((attempt, end)) }
    }
}

/// Packets that leave in rounds: each of several once in a round, with a pause between rounds.
#[derive(Debug)]
struct Rounds {
    count: u32,
    spacing: Duration,
    /// How many have left, over all rounds.
    sent: u32,
    next: Instant,
}

impl Rounds {
    fn new(count: u32, spacing: Duration, now: Instant) -> Self {
        Rounds { count, spacing, sent: 0, next: now }
    }

    /// Sends what is due of so many packets a round, each by its position; says when to go on, `None` after the last.
    fn act(
        &mut self,
        packets: usize,
        now: Instant,
        mut send: impl FnMut(usize) -> Result<(), Denied>,
    ) -> Result<Option<Instant>, Outcome> {
        let packets = packets as u32;
        while self.sent < packets * self.count {
            let position = self.sent % packets;
            if position == 0 && now < self.next {
                return Ok(Some(self.next));
            }
            match send(position as usize) {
                Ok(()) => {}
                Err(Denied::Until(at)) => return Ok(Some(at)),
                Err(Denied::Spent) => return Err(Outcome::NoBudget),
            }
            if position == 0 {
                self.next = now + self.spacing;
            }
            self.sent += 1;
        }
        Ok(None)
    }
}

/// How long after the last packet an answer may still come.
const LINGER: Duration = Duration::from_millis(1_200);
