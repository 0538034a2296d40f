//! Who may use a relay.

use alloc::vec::Vec;

use super::{Link, RelayServer};
use crate::{
    gate::Source,
    relay::{CloseReason, Output, RelayConfig, fair::Fair},
    schedule::Bucket,
    time::Instant,
};

impl RelayServer {
    pub(super) fn connected(&mut self, conn: u64, link: Link, now: Instant) {
        self.disconnected(conn, now);
        if let Some(older) = self.unregistered.get(&link.peer).copied() {
            self.close(older, CloseReason::Replaced, now);
        }
        if let Some(reason) = self.refusal(&link) {
            self.counters.refused += 1;
            self.outputs.push_back(Output::Close { conn, reason });
        } else {
            *self.sources.entry(link.source).or_insert(0) += 1;
            self.unregistered.insert(link.peer, conn);
            self.links.insert(conn, link);
        }
    }

    /// Why a link is not taken in, if it is not.
    fn refusal(&self, link: &Link) -> Option<CloseReason> {
        if self.config.access.admits(&link.peer) { self.want_of_room(link) } else { Some(CloseReason::Stranger) }
    }

    fn want_of_room(&self, link: &Link) -> Option<CloseReason> {
        if self.draining {
            return Some(CloseReason::Draining);
        }
        // A client that comes back by another way keeps its place; see `unregistered` for how many that can be.
        if self.clients.of_peer(&link.peer).is_some() {
            return None;
        }
        let of_source = self.sources.get(&link.source).copied().unwrap_or(0);
        if self.links.len() >= self.config.max_clients {
            Some(CloseReason::Full)
        } else if of_source >= self.config.max_clients_per_source {
            Some(CloseReason::Crowded)
        } else {
            None
        }
    }

    /// A link no longer comes from this address.
    pub(super) fn leave_source(&mut self, source: Source) {
        if let Some(count) = self.sources.get_mut(&source) {
            *count -= 1;
            if *count == 0 {
                self.sources.remove(&source);
            }
        }
    }

    /// Has other limits and serves others from now on; links of those who may not stay are closed.
    pub(super) fn configure(&mut self, config: RelayConfig, now: Instant) {
        let stun_port = self.config.stun_port;
        let old = core::mem::replace(&mut self.config, RelayConfig { stun_port, ..config });
        let config = &self.config;
        if old.total_rate != config.total_rate {
            self.fair = config.total_rate.map(|rate| Fair::new(rate, now));
        }
        let strangers = self.links.iter().filter(|(_, link)| !config.access.admits(&link.peer));
        let strangers: Vec<u64> = strangers.map(|(conn, _)| *conn).collect();
        let (rate, burst) = (config.client_rate, config.client_burst);
        let is_other_rate = (old.client_rate, old.client_burst) != (rate, burst);
        for conn in strangers {
            self.close(conn, CloseReason::Stranger, now);
        }
        if !is_other_rate {
            return;
        }
        for client in self.clients.all_mut() {
            client.bytes = Bucket::new(rate, burst, now);
        }
        let registered = self.clients.all_mut().filter_map(|client| client.conn.zip(client.addr()));
        for (conn, addr) in registered.collect::<Vec<_>>() {
            self.tell_registered(conn, addr);
        }
    }
}
