//! What a gateway's answers mean, dialect by dialect.

use core::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use super::{
    super::{
        Dialect, LIFETIME, Output, Port, Turn, UpnpAnswer, UpnpRefusal, Why,
        epoch::Epoch,
        is_public,
        lease::{Grant, Lease, State},
    },
    AtGateway, Spoken,
};
use crate::wire::{
    natpmp::{self, Body, Refusal},
    pcp,
};

impl AtGateway {
    pub(in crate::nat::portmap) fn upnp(&mut self, answer: UpnpAnswer, turn: &mut Turn<'_>) {
        let by_port = |leases: &[Lease], port| leases.iter().position(|lease| lease.port == port);
        match answer {
            UpnpAnswer::Found if matches!(self.upnp, Spoken::Asking(_)) => self.upnp = Spoken::Yes,
            UpnpAnswer::Found => {}
            UpnpAnswer::NotFound(_) => self.upnp = Spoken::No,
            UpnpAnswer::Added { port, external } => {
                if let Some(index) = by_port(&self.leases, port)
                    && let Some(lease) = self.leases.get(index)
                {
                    let lifetime = (!lease.permanent).then_some(LIFETIME);
                    self.granted(index, Grant { by: Dialect::Upnp, external, lifetime }, turn);
                }
            }
            UpnpAnswer::Refused { port, refusal } => {
                if let Some(index) = by_port(&self.leases, port)
                    && let Some(lease) = self.leases.get_mut(index)
                {
                    let asking = matches!(lease.state, State::Asking { by: Dialect::Upnp, .. });
                    let why = match refusal {
                        UpnpRefusal::PermanentOnly if asking && !lease.permanent => {
                            lease.permanent = true;
                            return self.ask(index, Dialect::Upnp, turn);
                        }
                        UpnpRefusal::Taken => Why::PortsTaken,
                        UpnpRefusal::PermanentOnly => Why::Upnp("it makes no mapping, with an end or without".into()),
                        UpnpRefusal::Other(words) => Why::Upnp(words),
                    };
                    self.refused(index, Dialect::Upnp, (why, Duration::ZERO), turn);
                }
            }
            UpnpAnswer::Removed { port } => {
                if let Some(lease) = by_port(&self.leases, port).and_then(|index| self.leases.get_mut(index))
                    && matches!(lease.state, State::Removing { by: Dialect::Upnp, .. })
                {
                    lease.state = State::Gone;
                }
            }
        }
        self.settle(turn);
    }

    pub(super) fn pcp_response(&mut self, response: &pcp::Response, turn: &mut Turn<'_>) {
        let index = match &response.body {
            pcp::Body::Announce => None,
            pcp::Body::Map(map) => {
                let ours = |lease: &Lease| {
                    (lease.nonce, lease.port.transport, lease.port.number)
                        == (map.nonce, map.transport, map.internal_port)
                };
                let Some(index) = self.leases.iter().position(ours) else { return };
                Some(index)
            }
        };
        if response.outcome == Err(pcp::Refusal::UnsupportedVersion) {
            // What a server that speaks PCP only answers to NAT-PMP (RFC 6887 §9).
            self.natpmp = Spoken::No;
            return;
        }
        let epoch = Epoch::new(response.epoch, turn.now);
        if self.pcp_epoch.replace(epoch).is_some_and(|earlier| earlier.lost_by_pcp(epoch)) {
            self.restarted(Dialect::Pcp, index, turn);
        }
        if matches!(self.pcp, Spoken::Asking(_)) {
            self.pcp = Spoken::Yes;
        }
        match (index, &response.body, response.outcome) {
            (Some(index), pcp::Body::Map(map), Ok(())) => {
                let (external, lifetime) = (map.external, Some(response.lifetime));
                self.granted(index, Grant { by: Dialect::Pcp, external, lifetime }, turn);
            }
            (Some(index), _, Err(refusal)) => {
                let why = match refusal {
                    pcp::Refusal::CannotProvideExternal => Why::PortsTaken,
                    other => Why::Pcp(other),
                };
                self.refused(index, Dialect::Pcp, (why, response.lifetime), turn);
            }
            _ => {}
        }
    }

    pub(super) fn natpmp_response(&mut self, response: &natpmp::Response, turn: &mut Turn<'_>) {
        let of_port = |leases: &[Lease], transport, number| {
            let asked = |lease: &Lease| lease.port == Port { transport, number } && lease.was_asked(Dialect::NatPmp);
            leases.iter().position(asked)
        };
        if let Body::AddressRefused(Refusal::UnsupportedVersion)
        | Body::MapRefused { refusal: Refusal::UnsupportedVersion, .. } = response.body
        {
            self.pcp = Spoken::No; // it speaks NAT-PMP only (RFC 6887 §9)
            return;
        }
        let index = match response.body {
            Body::Map(map) => match of_port(&self.leases, map.transport, map.internal_port) {
                None => return,
                some => some,
            },
            _ => None,
        };
        let epoch = Epoch::new(response.epoch, turn.now);
        if self.natpmp_epoch.replace(epoch).is_some_and(|earlier| earlier.lost_by_natpmp(epoch)) {
            self.restarted(Dialect::NatPmp, index, turn);
        }
        match response.body {
            Body::ExternalAddress(ip) => {
                if matches!(self.natpmp, Spoken::Asking(_)) {
                    self.natpmp = Spoken::Yes;
                }
                self.natpmp_external(ip, turn);
            }
            Body::AddressRefused(refusal) => {
                self.natpmp = Spoken::No;
                for lease in self.leases.iter_mut().filter(|lease| matches!(lease.state, State::Waiting)) {
                    lease.note_refusal(Why::NatPmp(refusal), Duration::ZERO);
                }
            }
            Body::Map(map) => {
                let external =
                    SocketAddr::new(self.external.unwrap_or(Ipv4Addr::UNSPECIFIED).into(), map.external_port);
                if let Some(index) = index {
                    let lifetime = Some(map.lifetime);
                    self.granted(index, Grant { by: Dialect::NatPmp, external, lifetime }, turn);
                }
            }
            Body::MapRefused { transport, internal_port, refusal } => {
                let named = internal_port.and_then(|number| of_port(&self.leases, transport, number));
                let asking = |lease: &Lease| {
                    lease.port.transport == transport
                        && matches!(lease.state, State::Asking { by: Dialect::NatPmp, .. })
                };
                // A gateway that does not say which port it means can mean only one that is being asked for.
                if let Some(index) = named.or_else(|| self.leases.iter().position(asking)) {
                    let why = match refusal {
                        Refusal::OutOfResources => Why::PortsTaken,
                        other => Why::NatPmp(other),
                    };
                    self.refused(index, Dialect::NatPmp, (why, Duration::ZERO), turn);
                }
            }
        }
    }

    /// The gateway has another address outside than before: its NAT-PMP mappings have moved with it.
    fn natpmp_external(&mut self, ip: Ipv4Addr, turn: &mut Turn<'_>) {
        if self.external.replace(ip) == Some(ip) {
            return;
        }
        for lease in &mut self.leases {
            if let State::Held { mapping, .. } = &mut lease.state
                && mapping.by == Dialect::NatPmp
            {
                mapping.external.set_ip(ip.into());
                mapping.carrier = !is_public(ip.into());
                turn.out.push_back(Output::Mapped(*mapping));
            }
        }
    }
}
