//! Mappings that a host has asked for.

use std::{collections::BTreeMap, net::SocketAddr};

use byway_proto::wire::pcp::NONCE_LEN;

use super::{Mapped, MappingKey, Table};
use crate::{rule::Transport, time::Time};

/// Most leases at once; home routers have room for about as many.
pub(crate) const MAX_LEASES: usize = 128;

/// A lease: while it lasts, everybody may send to the port, and silence does not end the mapping.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Lease {
    /// When it ends.
    pub(crate) until: Time,
    /// What proves that who changes it has made it (RFC 6887 §11.1).
    pub(crate) nonce: [u8; NONCE_LEN],
}

/// A lease that is asked for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LeaseRequest {
    pub(crate) transport: Transport,
    pub(crate) inner: SocketAddr,
    /// The outer port that would be best.
    pub(crate) port: u16,
    /// Whether no other will do.
    pub(crate) strict: bool,
    pub(crate) lease: Lease,
}

/// Why a port was not leased.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LeaseError {
    /// The outer port belongs to another socket.
    Taken,
    /// There are [`MAX_LEASES`], or no port is free.
    Full,
    /// Somebody else has made the lease.
    NotOwner,
}

impl Table {
    /// Leases an outer port, or prolongs the lease of its inner socket.
    pub(crate) fn lease(&mut self, now: Time, request: LeaseRequest) -> Result<u16, LeaseError> {
        let LeaseRequest { transport, inner, port, strict, lease } = request;
        if let Some(port) = self.leased(now, transport, inner) {
            let mapped = self.inward.get_mut(&(transport, port)).ok_or(LeaseError::Full)?;
            if mapped.lease.is_some_and(|old| old.nonce != lease.nonce) {
                return Err(LeaseError::NotOwner);
            }
            mapped.lease = Some(lease);
            return Ok(port);
        }
        if self.leases(now) >= MAX_LEASES {
            return Err(LeaseError::Full);
        }
        // What the socket has mapped by sending is its own, to be leased on top.
        let own = self.inward.get_mut(&(transport, port)).filter(|mapped| mapped.key.inner == inner);
        if let Some(mapped) = own {
            mapped.lease = Some(lease);
            return Ok(port);
        }
        let free = self.free_port(now, transport, port).ok_or(LeaseError::Full)?;
        if strict && free != port {
            return Err(LeaseError::Taken);
        }
        self.forget(transport, free);
        let key = MappingKey { transport, inner, remote_ip: None, remote_port: None };
        let mapped = Mapped { key, lease: Some(lease), made: now, used: now, sessions: BTreeMap::new() };
        self.inward.insert((transport, free), mapped);
        Ok(free)
    }

    /// Ends the lease of an inner socket, or of all sockets of its host if its port is 0; nothing to end is fine.
    pub(crate) fn release(
        &mut self,
        transport: Transport,
        inner: SocketAddr,
        nonce: &[u8; NONCE_LEN],
    ) -> Result<(), LeaseError> {
        let whole_host = inner.port() == 0;
        let asked = |key: &MappingKey| {
            key.transport == transport && (key.inner == inner || (whole_host && key.inner.ip() == inner.ip()))
        };
        for mapped in self.inward.values_mut().filter(|mapped| asked(&mapped.key)) {
            if mapped.lease.is_some_and(|lease| lease.nonce != *nonce) {
                return Err(LeaseError::NotOwner);
            }
            mapped.lease = None;
        }
        Ok(())
    }

    /// How many leases last.
    pub(crate) fn leases(&self, now: Time) -> usize {
        self.inward.values().filter(|mapped| mapped.is_leased(now)).count()
    }

    /// The port that is leased for an inner socket.
    pub(super) fn leased(&self, now: Time, transport: Transport, inner: SocketAddr) -> Option<u16> {
        self.config.gateway.as_ref()?;
        let leased = |mapped: &Mapped| mapped.key.inner == inner && mapped.is_leased(now);
        self.inward.iter().find(|(at, mapped)| at.0 == transport && leased(mapped)).map(|(at, _)| at.1)
    }

    /// Whether an outer port is leased.
    pub(super) fn is_leased(&self, now: Time, transport: Transport, port: u16) -> bool {
        self.inward.get(&(transport, port)).is_some_and(|mapped| mapped.is_leased(now))
    }
}

impl Mapped {
    /// Whether its lease lasts.
    pub(super) fn is_leased(&self, now: Time) -> bool {
        self.lease.is_some_and(|lease| now < lease.until)
    }
}
