//! What comes through a relay, and what this node forwards as one.

use std::{net::SocketAddr, ops::Range, sync::PoisonError};

use byway_proto::{
    Instant,
    relay::{Forward, Load},
    wire::{
        self, Kind,
        relay_data::{self, PREFIX_LEN},
    },
};

use super::Mux;
use crate::{metrics::Dropped, net::routes::Via};

impl Mux {
    pub(super) fn sort_relayed(
        &self,
        relay: SocketAddr,
        segment: &[u8],
        now: Instant,
    ) -> Option<(SocketAddr, Range<usize>)> {
        if !self.routes.read().is_relay(relay) {
            self.counters.count(Dropped::NotOurRelay);
            return None;
        }
        let (id, inner) = relay_data::parse(segment)?;
        let alias = match wire::classify(inner) {
            // Nothing else is relayed: an answer to STUN would go to the wrong place.
            kind @ (Kind::QuicShort | Kind::QuicLong | Kind::Probe | Kind::Fragment) => {
                self.sort_inner(Via::Relay(relay, id), kind, inner, now)?
            }
            _ => {
                self.counters.count(Dropped::Junk);
                return None;
            }
        };
        Some((alias, PREFIX_LEN..segment.len()))
    }

    /// Forwards the datagrams at the front of `segments` that have one allocation, if this node relays for it; returns
    /// how many bytes it took care of.
    pub(super) fn forward_run(
        &self,
        source: SocketAddr,
        segments: &[u8],
        stride: usize,
        now: Instant,
    ) -> Option<usize> {
        let relay = self.relay.get()?;
        let (id, _) = relay_data::parse(segments.get(..stride.min(segments.len()))?)?;
        let len = segments
            .chunks(stride)
            .take_while(|s| relay_data::parse(s).is_some_and(|(i, _)| i == id))
            .map(<[u8]>::len)
            .sum();
        let run = &segments[..len];
        let count = run.len().div_ceil(stride);
        let mut server = relay.server.lock().unwrap_or_else(PoisonError::into_inner);
        match server.forward(source, id, Load { len: run.len(), segments: count }, now) {
            Forward::To(to) => {
                drop(server);
                self.forward(to, run, (count > 1).then_some(stride));
            }
            // A relay may itself be another relay's client, and each the other's.
            Forward::Hold if self.routes.read().ends_here(Via::Relay(source, id)) => return None,
            // What cannot be held is counted by the machine.
            Forward::Hold => {
                for datagram in run.chunks(stride) {
                    let _ = server.hold(source, id, datagram, now);
                }
                relay.changed.notify_one();
            }
            Forward::Drop(_) if self.routes.read().is_relay(source) => return None,
            Forward::Drop(_) => self.counters.add(Dropped::NotForwarded, count as u64),
        }
        Some(len)
    }
}
