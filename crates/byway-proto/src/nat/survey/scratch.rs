//! What one fresh socket finds out after the first report: filtering (RFC 5780 §4.4), hairpinning, the mappings' lifetime.

use core::{net::SocketAddr, time::Duration};

use super::{
    ask::{Ask, Asks, Purpose, Tools},
    lifetime::Lifetime,
};
use crate::nat::{Filtering, Ports, SocketId};

/// A server that answers from two addresses and two ports (RFC 5780).
#[derive(Debug, Clone, Copy)]
pub(super) struct Behind {
    pub(super) server: SocketAddr,
    /// The server's other address with its other port.
    pub(super) other: SocketAddr,
    /// Whether [`Behind::other`] and the server's own address with the other port were heard at all.
    pub(super) other_answers: bool,
    pub(super) port_answers: bool,
}

impl Behind {
    /// The server's own address with its other port.
    pub(super) fn other_port(&self) -> SocketAddr {
        SocketAddr::new(self.server.ip(), self.other.port())
    }
}

/// Whether something came through.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Through {
    #[default]
    Untried,
    Awaited,
    Yes,
    No,
    /// The request was not sent often enough, or not understood.
    Unknown,
}

/// What is to be found out.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted {
    /// The server to be seen by.
    pub(super) server: SocketAddr,
    pub(super) filtering: Option<Behind>,
    /// The public address at which the node tries to reach itself.
    pub(super) hairpin: Option<SocketAddr>,
    pub(super) ports: Option<Ports>,
}

/// The scratch socket.
#[derive(Debug)]
pub(super) struct Scratch {
    socket: SocketId,
    open: bool,
    wanted: Wanted,
    from_any_address: Through,
    from_any_port: Through,
    hairpin: Through,
    lifetime: Option<Lifetime>,
}

impl Scratch {
    pub(super) fn open(wanted: Wanted, ipv6: bool, tools: &mut Tools<'_>) -> Self {
        let socket = tools.open(ipv6);
        Scratch {
            socket,
            open: false,
            wanted,
            from_any_address: Through::Untried,
            from_any_port: Through::Untried,
            hairpin: Through::Untried,
            lifetime: None,
        }
    }

    pub(super) fn socket(&self) -> SocketId {
        self.socket
    }

    pub(super) fn opened(&mut self, asks: &mut Asks, tools: &mut Tools<'_>) {
        if core::mem::replace(&mut self.open, true) {
            return;
        }
        if let Some(behind) = self.wanted.filtering {
            self.from_any_address = Through::Awaited;
            self.from_any_port = Through::Awaited;
            let ask = |purpose, from, change_ip| {
                let mut ask = Ask::new(purpose, self.socket, behind.server);
                (ask.from, ask.request.change_ip, ask.request.change_port) = (from, change_ip, true);
                ask
            };
            asks.begin(ask(Purpose::FromAnyAddress, behind.other, true), tools);
            asks.begin(ask(Purpose::FromAnyPort, behind.other_port(), false), tools);
        }
        if self.wanted.hairpin.is_some() {
            self.hairpin = Through::Awaited;
            asks.begin(Ask::new(Purpose::Scratch, self.socket, self.wanted.server), tools);
        }
    }

    /// Takes in the answer to a request of this socket's, or about it.
    pub(super) fn answered(&mut self, purpose: Purpose, mapped: SocketAddr, asks: &mut Asks, tools: &mut Tools<'_>) {
        match (purpose, &mut self.lifetime) {
            (Purpose::FromAnyAddress, _) => self.from_any_address = Through::Yes,
            (Purpose::FromAnyPort, _) => self.from_any_port = Through::Yes,
            (Purpose::Hairpin, _) => self.hairpin = Through::Yes,
            (Purpose::Scratch, Some(lifetime)) => lifetime.seen(mapped, asks, tools),
            (Purpose::Scratch, None) => self.reach_ourselves(mapped, asks, tools),
            (Purpose::Idle, Some(lifetime)) => lifetime.reached(true, asks, tools),
            _ => {}
        }
        if self.hairpin == Through::Yes {
            asks.cancel(Purpose::Hairpin);
        }
        if self.from_any_address == Through::Yes {
            asks.cancel(Purpose::FromAnyPort);
        }
    }

    /// Takes in that a request was given up.
    pub(super) fn expired(&mut self, ask: &Ask, asks: &mut Asks, tools: &mut Tools<'_>) {
        let silence = if ask.is_conclusive() { Through::No } else { Through::Unknown };
        match (ask.purpose, &mut self.lifetime) {
            (Purpose::FromAnyAddress, _) => self.from_any_address = silence,
            (Purpose::FromAnyPort, _) => self.from_any_port = silence,
            // the two directions expire together, the last one concludes
            (Purpose::Hairpin, _) if !asks.any(Purpose::Hairpin) => self.hairpin = silence,
            (Purpose::Scratch, None) => self.hairpin = Through::Unknown,
            (Purpose::Idle, Some(lifetime)) if ask.is_conclusive() => lifetime.reached(false, asks, tools),
            (Purpose::Scratch | Purpose::Idle, Some(lifetime)) => lifetime.stop(),
            _ => {}
        }
    }

    /// The server answered from the address it was asked at, so it does not do what RFC 5780 says.
    pub(super) fn misunderstood(&mut self, asks: &mut Asks) {
        asks.cancel(Purpose::FromAnyAddress);
        asks.cancel(Purpose::FromAnyPort);
        (self.from_any_address, self.from_any_port) = (Through::Unknown, Through::Unknown);
    }

    /// Goes on to the lifetime when the rest is known.
    pub(super) fn tick(&mut self, asks: &mut Asks, tools: &mut Tools<'_>) {
        let busy = [Purpose::FromAnyAddress, Purpose::FromAnyPort, Purpose::Hairpin, Purpose::Scratch];
        match &mut self.lifetime {
            Some(lifetime) => lifetime.tick(asks, tools),
            None if self.open && self.wanted.hairpin.is_some() && !busy.iter().any(|purpose| asks.any(*purpose)) => {
                let way = (self.socket, self.wanted.server);
                let elsewhere = self.wanted.filtering.is_some();
                self.lifetime = Some(Lifetime::begin(way, self.wanted.ports, elsewhere, asks, tools));
            }
            None => {}
        }
    }

    pub(super) fn is_done(&self, asks: &Asks) -> bool {
        match &self.lifetime {
            Some(lifetime) => lifetime.is_done(),
            None => {
                let filtering = asks.any(Purpose::FromAnyAddress) || asks.any(Purpose::FromAnyPort);
                self.open && self.wanted.hairpin.is_none() && !filtering
            }
        }
    }

    pub(super) fn next(&self) -> Option<crate::Instant> {
        self.lifetime.as_ref().and_then(Lifetime::next)
    }

    /// The filtering behaviour; silence counts only from an address that answers otherwise.
    pub(super) fn filtering(&self, behind: Option<Behind>) -> Option<Filtering> {
        let behind = behind?;
        match (self.from_any_address, self.from_any_port) {
            (Through::Yes, _) => Some(Filtering::EndpointIndependent),
            (Through::No, Through::Yes) if behind.other_answers => Some(Filtering::AddressDependent),
            (Through::No, Through::No) if behind.other_answers && behind.port_answers => {
                Some(Filtering::AddressAndPortDependent)
            }
            _ => None,
        }
    }

    pub(super) fn hairpin(&self) -> Option<bool> {
        match self.hairpin {
            Through::Yes => Some(true),
            Through::No => Some(false),
            Through::Untried | Through::Awaited | Through::Unknown => None,
        }
    }

    pub(super) fn lifetime(&self) -> Option<Duration> {
        self.lifetime.as_ref().and_then(Lifetime::found)
    }

    /// Both sockets ask each other at their public addresses, so that neither's filter stands in the way.
    fn reach_ourselves(&mut self, mapped: SocketAddr, asks: &mut Asks, tools: &mut Tools<'_>) {
        if let Some(public) = self.wanted.hairpin {
            asks.begin(Ask::new(Purpose::Hairpin, self.socket, public), tools);
            asks.begin(Ask::new(Purpose::Hairpin, SocketId::MAIN, mapped), tools);
        }
    }
}
