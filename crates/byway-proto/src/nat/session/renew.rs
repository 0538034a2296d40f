//! A fresh mapping for a direct route, before its old one dies of age.
//!
//! The side whose mapping ages opens a further socket, asks a server how that is seen, and pings the peer from there, which opens
//! its own NAT. It tells the peer the new port, as a prediction does; the peer probes that, which opens the peer's NAT.

use core::{net::SocketAddr, time::Duration};

use super::{Asked, LINGER, StunMessage, Turn};
use crate::{
    Instant,
    nat::{
        Signal, SocketId,
        budget::{Denied, Purpose},
    },
};

/// The time between two pings to the peer …
const SPACING: Duration = Duration::from_millis(200);

/// … of which so many leave: the server's answer, the way of the port to the peer and that of its probe back take a second on a
/// slow line, and one of each may be lost.
const PINGS: u32 = 12;

/// The pings after which the server is asked again, if it has not answered.
const ASK_AGAIN: u32 = 4;

/// A fresh socket on its way to becoming a route.
#[derive(Debug)]
pub(in crate::nat) struct Renew {
    pub(in crate::nat) socket: SocketId,
    pub(in crate::nat) remote: SocketAddr,
    attempt: u32,
    asked: Option<Asked>,
    told: bool,
    pings: u32,
    next: Instant,
}

impl Renew {
    /// Opens a socket towards the peer's end of the route; `None` if there may be no more.
    pub(in crate::nat) fn begin(remote: SocketAddr, turn: &mut Turn<'_>) -> Option<Self> {
        let socket = turn.open(remote.is_ipv6())?;
        let attempt = turn.flight.next_attempt();
        Some(Renew { socket, remote, attempt, asked: None, told: false, pings: 0, next: turn.now })
    }

    /// Does what is due; says when it wants the next turn, `None` once it is over.
    pub(in crate::nat) fn act(&mut self, turn: &mut Turn<'_>) -> Option<Instant> {
        if turn.is_pending(self.socket) {
            return Some(turn.now + SPACING);
        }
        turn.bound(self.socket)?;
        if turn.now < self.next {
            return Some(self.next);
        }
        if self.pings >= PINGS {
            return None;
        }
        match turn.ping(Purpose::Candidate, self.socket, self.remote) {
            Ok(()) => {}
            Err(Denied::Until(at)) => return Some(at),
            Err(Denied::Spent) => return None,
        }
        if !self.told && self.pings.is_multiple_of(ASK_AGAIN) {
            self.asked = Some(turn.ask(self.socket, self.remote.is_ipv6()));
        }
        self.pings += 1;
        self.next = turn.now + if self.pings < PINGS { SPACING } else { LINGER };
        Some(self.next)
    }

    /// Takes in how a server sees the new socket, and tells the peer.
    pub(in crate::nat) fn stun(&mut self, message: &StunMessage<'_>, turn: &mut Turn<'_>) {
        let Some((seen, _)) = self.asked.as_ref().and_then(|asked| asked.answer(message)) else { return };
        turn.host.heard_server(message.from);
        if !core::mem::replace(&mut self.told, true) {
            turn.say(Signal::Guess { attempt: self.attempt, ip: seen.ip(), ports: [seen.port()].into() });
        }
    }
}
