//! The port mapping service of a NAT: PCP (RFC 6887) and NAT-PMP (RFC 6886) on port 5351 of its inner address; over IPv6,
//! where nothing is mapped, PCP opens pinholes in the firewall.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

use byway_proto::wire::{
    natpmp,
    pcp::{self, NONCE_LEN, PORT},
};

use super::{
    firewall::Firewall,
    table::{
        Table,
        lease::{Lease, LeaseError, LeaseRequest},
    },
};
use crate::{fabric::topology::NatRole, rule::Transport, time::Time};

/// What a permanent lease is said to last: the most that fits (RFC 6887 §7.2).
const PERMANENT: Duration = Duration::from_secs(u32::MAX as u64);

/// A NAT's port mapping service. By default it speaks both dialects, is honest, and grants up to a day.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Gateway {
    /// Whether it speaks PCP.
    pub pcp: bool,
    /// Whether it speaks NAT-PMP.
    pub natpmp: bool,
    /// The longest lifetime that it grants.
    pub max_lifetime: Duration,
    /// Whether it refuses an external port that is taken; otherwise it gives the next free one.
    pub refuses_taken: bool,
    /// Whether it can be relied upon.
    pub manner: Manner,
}

/// Whether a gateway can be relied upon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Manner {
    /// It does what it says.
    Honest,
    /// It does what it says, but knows permanent leases only, whatever is asked.
    Permanent,
    /// It says that it did what it was asked, and maps nothing.
    Boastful,
    /// It does what it is asked, but answers from the last address of its network instead of its own.
    Astray,
    /// It never answers.
    Deaf,
}

/// What a host asks for, in both dialects.
#[derive(Debug)]
struct Wish {
    transport: Transport,
    inner: SocketAddr,
    /// 0 for no preference.
    port: u16,
    lifetime: Duration,
    nonce: [u8; NONCE_LEN],
}

/// What was granted.
#[derive(Debug)]
struct Grant {
    port: u16,
    lifetime: Duration,
}

impl Default for Gateway {
    fn default() -> Self {
        Gateway {
            pcp: true,
            natpmp: true,
            max_lifetime: Duration::from_secs(86_400),
            refuses_taken: false,
            manner: Manner::Honest,
        }
    }
}

impl Gateway {
    fn grant(&self, table: &mut Table, now: Time, wish: &Wish) -> Result<Grant, LeaseError> {
        if wish.lifetime.is_zero() {
            if self.manner != Manner::Boastful {
                table.release(wish.transport, wish.inner, &wish.nonce)?;
            }
            return Ok(Grant { port: 0, lifetime: Duration::ZERO });
        }
        let lifetime = self.lifetime(wish);
        let port = if wish.port == 0 { wish.inner.port() } else { wish.port };
        if self.manner == Manner::Boastful {
            return Ok(Grant { port, lifetime });
        }
        let lease = Lease { until: now + lifetime, nonce: wish.nonce };
        let Wish { transport, inner, .. } = *wish;
        let port = table.lease(now, LeaseRequest { transport, inner, port, strict: self.refuses_taken, lease })?;
        Ok(Grant { port, lifetime })
    }

    /// The same over IPv6, where the outer port is the inner one.
    fn open(&self, firewall: &mut Firewall, now: Time, wish: &Wish) -> Result<Grant, LeaseError> {
        let inner = (wish.transport, wish.inner);
        let lifetime = if wish.lifetime.is_zero() { Duration::ZERO } else { self.lifetime(wish) };
        match (self.manner, lifetime.is_zero()) {
            (Manner::Boastful, _) => {}
            (_, true) => firewall.close(inner, &wish.nonce)?,
            (_, false) => firewall.open(now, inner, Lease { until: now + lifetime, nonce: wish.nonce })?,
        }
        Ok(Grant { port: wish.inner.port(), lifetime })
    }

    fn lifetime(&self, wish: &Wish) -> Duration {
        match self.manner {
            Manner::Permanent => PERMANENT,
            _ => wish.lifetime.min(self.max_lifetime),
        }
    }
}

impl NatRole {
    /// Answers a datagram that a host behind the NAT has sent to its inner address: whence, and what.
    pub(crate) fn serve(
        &mut self,
        now: Time,
        to: SocketAddr,
        from: SocketAddr,
        message: &[u8],
    ) -> Option<(SocketAddr, Vec<u8>)> {
        let gateway = self.table.config.gateway.clone()?;
        if to.port() != PORT || gateway.manner == Manner::Deaf {
            return None;
        }
        let is_pcp = message.first().is_some_and(|version| *version >= pcp::VERSION);
        // Who speaks one dialect only refuses the other in its own (RFC 6886 §3.5, RFC 6887 §9).
        let answer = if gateway.pcp && (is_pcp || !gateway.natpmp || from.is_ipv6()) {
            self.serve_pcp(now, &gateway, from, message)
        } else if gateway.natpmp && from.is_ipv4() {
            self.serve_natpmp(now, &gateway, from, message)
        } else {
            None
        };
        let [a, b, c, _] = self.inner().octets();
        let source = match gateway.manner {
            Manner::Astray => IpAddr::V4(Ipv4Addr::new(a, b, c, 254)),
            _ => to.ip(),
        };
        Some((SocketAddr::new(source, PORT), answer?))
    }

    fn serve_pcp(&mut self, now: Time, gateway: &Gateway, from: SocketAddr, message: &[u8]) -> Option<Vec<u8>> {
        let epoch = self.epoch(now);
        let refuse = |refusal| Some(pcp::refuse(message, refusal, Duration::from_secs(30), epoch));
        let request = match pcp::decode_request(message) {
            Ok(request) => request,
            Err(pcp::RequestError::Refused(refusal)) => return refuse(refusal),
            Err(pcp::RequestError::NotARequest) => return None,
        };
        if request.client != from.ip() {
            return refuse(pcp::Refusal::AddressMismatch);
        }
        let done =
            |lifetime, body| Some(pcp::encode_response(&pcp::Response { outcome: Ok(()), lifetime, epoch, body }));
        let pcp::Body::Map(map) = request.body else { return done(Duration::ZERO, request.body) };
        let wish = Wish {
            transport: transport_of(map.transport),
            inner: SocketAddr::new(from.ip(), map.internal_port),
            port: map.external.port(),
            lifetime: request.lifetime,
            nonce: map.nonce,
        };
        let granted = match from.ip() {
            IpAddr::V4(_) => gateway.grant(&mut self.table, now, &wish),
            IpAddr::V6(_) => gateway.open(&mut self.firewall, now, &wish),
        };
        match granted {
            Ok(Grant { port, lifetime }) => {
                let ip = if from.is_ipv4() { IpAddr::V4(self.outer) } else { from.ip() };
                let external = SocketAddr::new(ip, port);
                done(lifetime, pcp::Body::Map(pcp::Map { external, ..map }))
            }
            Err(LeaseError::Taken) => refuse(pcp::Refusal::CannotProvideExternal),
            Err(LeaseError::Full) => refuse(pcp::Refusal::NoResources),
            Err(LeaseError::NotOwner) => refuse(pcp::Refusal::NotAuthorized),
        }
    }

    fn serve_natpmp(&mut self, now: Time, gateway: &Gateway, from: SocketAddr, message: &[u8]) -> Option<Vec<u8>> {
        let epoch = self.epoch(now);
        let body = match natpmp::decode_request(message) {
            Ok(natpmp::Request::ExternalAddress) => natpmp::Body::ExternalAddress(self.outer),
            Ok(natpmp::Request::Map(map)) => {
                let wish = Wish {
                    transport: transport_of(map.transport),
                    inner: SocketAddr::new(from.ip(), map.internal_port),
                    port: map.external_port,
                    lifetime: map.lifetime,
                    nonce: [0; NONCE_LEN], // the dialect has none
                };
                match gateway.grant(&mut self.table, now, &wish) {
                    Ok(Grant { port, lifetime }) => {
                        natpmp::Body::Map(natpmp::Map { external_port: port, lifetime, ..map })
                    }
                    Err(error) => natpmp::Body::MapRefused {
                        transport: map.transport,
                        internal_port: Some(map.internal_port),
                        refusal: match error {
                            LeaseError::NotOwner => natpmp::Refusal::NotAuthorized,
                            LeaseError::Taken | LeaseError::Full => natpmp::Refusal::OutOfResources,
                        },
                    },
                }
            }
            Err(natpmp::RequestError::Refused(refusal)) => return Some(natpmp::refuse(message, refusal, epoch)),
            Err(natpmp::RequestError::NotARequest) => return None,
        };
        Some(natpmp::encode_response(&natpmp::Response { epoch, body }))
    }

    /// Seconds since the NAT has lost its mappings (RFC 6887 §8.5).
    fn epoch(&self, now: Time) -> u32 {
        u32::try_from(now.since(self.table.started()).as_secs()).unwrap_or(u32::MAX)
    }
}

fn transport_of(transport: pcp::Transport) -> Transport {
    match transport {
        pcp::Transport::Udp => Transport::Udp,
        pcp::Transport::Tcp => Transport::Tcp,
    }
}
