//! What a relay's operator decides.

use alloc::{
    collections::BTreeSet,
    string::{String, ToString},
};
use core::{ops::RangeInclusive, time::Duration};

use super::{
    ALLOCATION_IDLE, CLIENT_BURST, CLIENT_RATE, MAX_ALLOCATIONS, MAX_ALLOCATIONS_PER_CLIENT, MAX_CLIENTS,
    MAX_CLIENTS_PER_SOURCE,
};
use crate::id::PeerId;

/// The largest batch of datagrams that a kernel joins; a rate has to let it pass whole, or it never passes.
const MAX_BATCH: u64 = 1 << 16;

/// For whom a relay forwards.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Access {
    /// For everyone.
    #[default]
    Everyone,
    /// For these peers; both ends of what is forwarded must be among them.
    Friends(BTreeSet<PeerId>),
}

impl Access {
    /// Whether a peer may register.
    pub fn admits(&self, peer: &PeerId) -> bool {
        match self {
            Access::Everyone => true,
            Access::Friends(friends) => friends.contains(peer),
        }
    }
}

/// The limits of a [`RelayServer`](super::RelayServer).
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct RelayConfig {
    /// For whom it forwards.
    pub access: Access,
    /// Links from one source, an IPv4 address or an IPv6 /64.
    pub max_clients_per_source: usize,
    /// Bytes a second of all clients together, shared among them by max-min fairness; `None` for no such limit.
    pub total_rate: Option<u64>,
    /// Links, and clients that are remembered.
    pub max_clients: usize,
    /// Allocations that one client may have opened.
    pub max_allocations_per_client: usize,
    /// Allocations in all.
    pub max_allocations: usize,
    /// After how long without data an allocation is forgotten.
    pub allocation_idle: Duration,
    /// Bytes a second that one client may send, prefixes included, both for itself and in answer to others.
    pub client_rate: u64,
    /// Bytes that one client may send at once.
    pub client_burst: u64,
    /// Another port that answers STUN, as clients are told; the node sets it to the one that it opened.
    pub stun_port: Option<u16>,
}

impl Default for RelayConfig {
    fn default() -> Self {
        RelayConfig {
            access: Access::Everyone,
            max_clients_per_source: MAX_CLIENTS_PER_SOURCE,
            total_rate: None,
            max_clients: MAX_CLIENTS,
            max_allocations_per_client: MAX_ALLOCATIONS_PER_CLIENT,
            max_allocations: MAX_ALLOCATIONS,
            allocation_idle: ALLOCATION_IDLE,
            client_rate: CLIENT_RATE,
            client_burst: CLIENT_BURST,
            stun_port: None,
        }
    }
}

impl RelayConfig {
    /// Says whether every value lies in its range.
    pub fn check(&self) -> Result<(), RelayConfigError> {
        let counts = [
            ("max_clients", self.max_clients),
            ("max_clients_per_source", self.max_clients_per_source),
            ("max_allocations_per_client", self.max_allocations_per_client),
            ("max_allocations", self.max_allocations),
        ];
        for (key, found) in counts {
            in_range(key, found as u64, 1..=1 << 20)?;
        }
        in_range("client_rate", self.client_rate, 1_000..=1 << 40)?;
        in_range("client_burst", self.client_burst, MAX_BATCH..=1 << 40)?;
        in_range("total_rate", self.total_rate.unwrap_or(CLIENT_RATE), 10 * MAX_BATCH..=1 << 40)?;
        in_range("allocation_idle in seconds", self.allocation_idle.as_secs(), 10..=86_400)
    }
}

/// A setting of a relay lies outside its range.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the relay's {key} is {found}, but its range is {range}; correct it in the configuration")]
pub struct RelayConfigError {
    /// The setting.
    pub key: &'static str,
    /// Its value.
    pub found: u64,
    /// What it may be.
    pub range: String,
}

fn in_range(key: &'static str, found: u64, range: RangeInclusive<u64>) -> Result<(), RelayConfigError> {
    let (least, most) = (range.start().to_string(), range.end().to_string());
    match range.contains(&found) {
        true => Ok(()),
        false => Err(RelayConfigError { key, found, range: least + " to " + &most }),
    }
}
