//! One gateway: which dialects it speaks, and the ports that it is asked for.

mod answers;

use alloc::vec::Vec;
use core::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use super::{
    CHECK, Dialect, Gateway, LIFETIME, Mapping, Output, Port, Turn, UpnpRequest, Why,
    epoch::Epoch,
    lease::{Grant, Granted, Lease, State, Tries, Wish},
};
use crate::{
    Instant, Rng,
    wire::{natpmp, pcp},
};

/// In the order in which they are preferred where several are spoken: PCP's answers are the hardest to forge.
const DIALECTS: [Dialect; 3] = [Dialect::Pcp, Dialect::NatPmp, Dialect::Upnp];

/// A gateway as the machine knows it.
#[derive(Debug)]
pub(super) struct AtGateway {
    pub(super) gateway: Gateway,
    pcp: Spoken,
    natpmp: Spoken,
    upnp: Spoken,
    pcp_epoch: Option<Epoch>,
    natpmp_epoch: Option<Epoch>,
    /// The gateway's external address as NAT-PMP told it: its mappings do not.
    external: Option<Ipv4Addr>,
    leases: Vec<Lease>,
    check_at: Option<Instant>,
}

/// Whether a dialect is spoken.
#[derive(Debug, Clone, Copy)]
enum Spoken {
    No,
    Asking(Tries),
    Yes,
}

impl AtGateway {
    pub(super) fn new(gateway: Gateway, ports: &[Port], rng: &mut Rng) -> Self {
        AtGateway {
            gateway,
            pcp: Spoken::No,
            natpmp: Spoken::No,
            upnp: Spoken::No,
            pcp_epoch: None,
            natpmp_epoch: None,
            external: None,
            leases: ports.iter().map(|port| Lease::new(*port, rng)).collect(),
            check_at: None,
        }
    }

    /// Asks which dialects are spoken, of those not known to be. IPv6 has PCP alone.
    pub(super) fn discover(&mut self, turn: &mut Turn<'_>) {
        if self.leases.is_empty() {
            return;
        }
        let ipv4 = self.gateway.addr.is_ipv4();
        for by in DIALECTS.into_iter().filter(|by| ipv4 || *by == Dialect::Pcp) {
            if matches!(self.spoken(by), Spoken::No) {
                *self.spoken(by) = Spoken::Asking(Tries::first(by, turn));
                self.ask_whether(by, turn);
            }
        }
    }

    /// The network may be another one, with the same gateway: nothing that was learned is sure.
    pub(super) fn ask_again(&mut self, turn: &mut Turn<'_>) {
        for index in 0..self.leases.len() {
            let Some(lease) = self.leases.get_mut(index) else { return };
            match lease.state {
                State::Held { .. } => self.renew(index, turn),
                State::Resting { .. } => lease.begin_anew(),
                _ => {}
            }
        }
        self.discover(turn);
        self.settle(turn);
    }

    pub(super) fn datagram(&mut self, datagram: &[u8], turn: &mut Turn<'_>) {
        match pcp::decode_response(datagram) {
            Ok(response) => self.pcp_response(&response, turn),
            Err(pcp::ResponseError::OtherVersion(natpmp::VERSION)) => {
                if let Ok(response) = natpmp::decode_response(datagram) {
                    self.natpmp_response(&response, turn);
                }
            }
            // PCP of another version than RFC 6887's.
            Err(pcp::ResponseError::OtherVersion(_)) => self.pcp = Spoken::No,
            Err(pcp::ResponseError::Malformed) => {}
        }
        self.settle(turn);
    }

    pub(super) fn timeout(&mut self, turn: &mut Turn<'_>) {
        for by in DIALECTS {
            let Spoken::Asking(mut tries) = *self.spoken(by) else { continue };
            if turn.now >= tries.next {
                let more = tries.again(by, turn);
                *self.spoken(by) = if more { Spoken::Asking(tries) } else { Spoken::No };
                if more {
                    self.ask_whether(by, turn);
                }
            }
        }
        for index in 0..self.leases.len() {
            self.lease_timeout(index, turn);
        }
        if self.check_at.is_some_and(|at| turn.now >= at) {
            self.check(turn);
        }
        self.settle(turn);
    }

    /// The gateway is out of reach: its mappings are lost, and nothing is sent.
    pub(super) fn leave(&mut self, turn: &mut Turn<'_>) {
        for index in 0..self.leases.len() {
            self.tell_lost(index, Why::NetworkChanged, turn);
        }
    }

    pub(super) fn close(&mut self, turn: &mut Turn<'_>) {
        (self.pcp, self.natpmp, self.upnp, self.check_at) = (Spoken::No, Spoken::No, Spoken::No, None);
        for index in 0..self.leases.len() {
            self.tell_lost(index, Why::Closed, turn);
            if self.leases.get_mut(index).is_some_and(|lease| lease.remove(turn.now)) {
                self.send_removal(index, turn);
            }
        }
    }

    /// Whether nothing is left to be removed.
    pub(super) fn is_empty(&self) -> bool {
        self.leases.iter().all(|lease| matches!(lease.state, State::Gone))
    }

    pub(super) fn mappings(&self) -> impl Iterator<Item = Mapping> {
        self.leases.iter().filter_map(Lease::mapping)
    }

    pub(super) fn next_timer(&self) -> Option<(Instant, &'static str)> {
        let asking = [self.pcp, self.natpmp, self.upnp].into_iter().filter_map(|spoken| match spoken {
            Spoken::Asking(tries) => Some((tries.next, "gateway's first answer")),
            _ => None,
        });
        let check = self.check_at.map(|at| (at, "gateway's epoch"));
        self.leases.iter().filter_map(Lease::next_timer).chain(asking).chain(check).min()
    }

    fn spoken(&mut self, by: Dialect) -> &mut Spoken {
        match by {
            Dialect::Pcp => &mut self.pcp,
            Dialect::NatPmp => &mut self.natpmp,
            Dialect::Upnp => &mut self.upnp,
        }
    }

    fn granted(&mut self, index: usize, grant: Grant, turn: &mut Turn<'_>) {
        let Some(lease) = self.leases.get_mut(index) else { return };
        if grant.lifetime.is_some_and(|lifetime| lifetime.is_zero()) {
            if matches!(lease.state, State::Removing { .. }) {
                lease.state = State::Gone;
            }
            return;
        }
        match lease.grant(self.gateway, grant, turn) {
            Granted::Taken => {
                turn.out.extend(lease.mapping().map(Output::Mapped));
                if grant.by != Dialect::Upnp && self.check_at.is_none() {
                    self.check_at = Some(turn.now + CHECK);
                }
            }
            Granted::Superfluous => self.request(index, grant.by, Wish::Remove(grant.external.port()), turn),
            Granted::Ignored => {}
        }
    }

    fn refused(&mut self, index: usize, by: Dialect, why: (Why, Duration), turn: &mut Turn<'_>) {
        let Some(lease) = self.leases.get_mut(index) else { return };
        match &lease.state {
            State::Removing { .. } => lease.state = State::Gone,
            State::Held { mapping, .. } if mapping.by == by => {
                lease.begin_anew();
                turn.out.push_back(Output::Lost { gateway: self.gateway, port: lease.port, why: why.0 });
                self.discover(turn);
            }
            State::Asking { by: asked, .. } if *asked == by => {
                let next_port = lease.note_refusal(why.0, why.1);
                if next_port {
                    self.ask(index, by, turn);
                }
            }
            _ => {}
        }
    }

    /// The gateway has lost its mappings: they are made again at once, but for the one whose answer told it.
    fn restarted(&mut self, by: Dialect, told_by: Option<usize>, turn: &mut Turn<'_>) {
        for index in 0..self.leases.len() {
            let held = self.leases.get(index).and_then(Lease::mapping).is_some_and(|mapping| mapping.by == by);
            if held && told_by != Some(index) {
                self.tell_lost(index, Why::Restarted, turn);
                self.ask(index, by, turn);
            }
        }
    }

    fn lease_timeout(&mut self, index: usize, turn: &mut Turn<'_>) {
        let Some(lease) = self.leases.get_mut(index) else { return };
        match &mut lease.state {
            State::Resting { until } if turn.now >= *until => {
                lease.begin_anew();
                self.discover(turn);
            }
            State::Asking { by, tries } if turn.now >= tries.next => {
                let by = *by;
                if tries.again(by, turn) {
                    let external = lease.external();
                    self.request(index, by, Wish::Map(external), turn);
                } else {
                    lease.state = State::Waiting;
                    *self.spoken(by) = Spoken::No;
                }
            }
            State::Held { mapping, .. } if mapping.expires.is_some_and(|expires| turn.now >= expires) => {
                self.tell_lost(index, Why::Expired, turn);
                if let Some(lease) = self.leases.get_mut(index) {
                    lease.begin_anew();
                }
                (self.pcp, self.natpmp, self.upnp) = (Spoken::No, Spoken::No, Spoken::No);
                self.discover(turn);
            }
            State::Held { renew_at, .. } if turn.now >= *renew_at => self.renew(index, turn),
            State::Removing { .. } => {
                let again = lease.remove_again(turn.now);
                if again {
                    self.send_removal(index, turn);
                }
            }
            _ => {}
        }
    }

    /// Asks for the epoch in every dialect that holds a mapping.
    fn check(&mut self, turn: &mut Turn<'_>) {
        let holds = |by| self.leases.iter().filter_map(Lease::mapping).any(|mapping| mapping.by == by);
        let used = [Dialect::Pcp, Dialect::NatPmp].map(|by| holds(by).then_some(by));
        used.into_iter().flatten().for_each(|by| self.ask_whether(by, turn));
        self.check_at = used.iter().any(Option::is_some).then_some(turn.now + CHECK);
    }

    /// Gives waiting ports a dialect to be asked in; where there is none, lets them rest.
    fn settle(&mut self, turn: &mut Turn<'_>) {
        let open = DIALECTS.into_iter().any(|by| matches!(self.spoken(by), Spoken::Asking(_)));
        for index in 0..self.leases.len() {
            let Some(lease) = self.leases.get(index) else { return };
            if !matches!(lease.state, State::Waiting) {
                continue;
            }
            let untried = DIALECTS.map(|by| (by, lease.was_asked(by)));
            let next = untried.into_iter().find(|(by, tried)| !tried && matches!(self.spoken(*by), Spoken::Yes));
            match (next, self.leases.get_mut(index)) {
                (Some((by, _)), _) => self.ask(index, by, turn),
                (None, Some(lease)) if !open => {
                    let (gateway, port, why) = (self.gateway, lease.port, lease.rest(turn.now));
                    turn.out.push_back(Output::Refused { gateway, port, why });
                }
                _ => {}
            }
        }
    }

    fn ask(&mut self, index: usize, by: Dialect, turn: &mut Turn<'_>) {
        let Some(lease) = self.leases.get_mut(index) else { return };
        lease.ask(by, turn);
        let external = lease.external();
        self.request(index, by, Wish::Map(external), turn);
    }

    fn renew(&mut self, index: usize, turn: &mut Turn<'_>) {
        let Some(lease) = self.leases.get_mut(index) else { return };
        lease.renewed(turn.now);
        if let Some(mapping) = lease.mapping() {
            self.request(index, mapping.by, Wish::Map(mapping.external.port()), turn);
        }
    }

    fn send_removal(&self, index: usize, turn: &mut Turn<'_>) {
        if let Some(State::Removing { by, external, .. }) = self.leases.get(index).map(|lease| &lease.state) {
            self.request(index, *by, Wish::Remove(*external), turn);
        }
    }

    /// Asks for a mapping, or for its removal.
    fn request(&self, index: usize, by: Dialect, wish: Wish, turn: &mut Turn<'_>) {
        let Some(lease) = self.leases.get(index) else { return };
        let Port { transport, number } = lease.port;
        // A removal suggests nothing (RFC 6886 §3.4, RFC 6887 §15).
        let (suggested, lifetime) = match wish {
            Wish::Map(external) => (external, LIFETIME),
            Wish::Remove(_) => (0, Duration::ZERO),
        };
        match (by, wish) {
            (Dialect::Pcp, _) => {
                let unspecified: IpAddr = match self.gateway.local {
                    IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
                    IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
                };
                let held = lease.mapping().filter(|_| suggested != 0).map(|mapping| mapping.external.ip());
                let external = SocketAddr::new(held.unwrap_or(unspecified), suggested);
                let map = pcp::Map { nonce: lease.nonce, transport, internal_port: number, external };
                let request = pcp::Request { client: self.gateway.local, lifetime, body: pcp::Body::Map(map) };
                turn.send(self.gateway, pcp::encode_request(&request));
            }
            (Dialect::NatPmp, _) => {
                let map = natpmp::Map { transport, internal_port: number, external_port: suggested, lifetime };
                turn.send(self.gateway, natpmp::encode_request(&natpmp::Request::Map(map)));
            }
            (Dialect::Upnp, Wish::Map(external)) => {
                let lifetime = (!lease.permanent).then_some(lifetime);
                turn.upnp(self.gateway, UpnpRequest::Add { port: lease.port, external, lifetime });
            }
            (Dialect::Upnp, Wish::Remove(external)) => {
                turn.upnp(self.gateway, UpnpRequest::Remove { port: lease.port, external });
            }
        }
    }

    /// Asks a question that any server of this dialect answers, with its epoch.
    fn ask_whether(&self, by: Dialect, turn: &mut Turn<'_>) {
        match by {
            Dialect::Pcp => {
                let announce =
                    pcp::Request { client: self.gateway.local, lifetime: Duration::ZERO, body: pcp::Body::Announce };
                turn.send(self.gateway, pcp::encode_request(&announce));
            }
            Dialect::NatPmp => turn.send(self.gateway, natpmp::encode_request(&natpmp::Request::ExternalAddress)),
            Dialect::Upnp => turn.upnp(self.gateway, UpnpRequest::Find),
        }
    }

    /// Tells that a mapping is none any more, if there is one.
    fn tell_lost(&self, index: usize, why: Why, turn: &mut Turn<'_>) {
        if let Some(mapping) = self.leases.get(index).and_then(Lease::mapping) {
            turn.out.push_back(Output::Lost { gateway: self.gateway, port: mapping.port, why });
        }
    }
}
