//! The way out.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use byway_proto::{
    Instant,
    nat::SocketId,
    paths::{Plan, RouteId},
    wire::{fragment, quic, relay_data},
};
use quinn::udp::Transmit;

use super::Mux;
use crate::{
    metrics::Dropped,
    net::{
        routes::{Via, is_alias},
        sockets::Which,
        track::{State, Track},
    },
};

/// What became of one route's copy of a batch.
pub(super) enum Sent {
    /// It left, or was lost on the way: QUIC deals with loss.
    Yes,
    /// This socket is full.
    Blocked(Which),
}

impl Mux {
    /// Sends what QUIC hands over. No error is passed on: it would end the connection.
    pub(super) fn send(&self, transmit: &Transmit<'_>) -> Sent {
        if !is_alias(transmit.destination) {
            return self.put(SocketId::MAIN, transmit.destination, transmit.contents, transmit.segment_size);
        }
        let Some(track) = self.routes.read().by_alias(transmit.destination).cloned() else {
            self.counters.count(Dropped::DeadAlias);
            return Sent::Yes;
        };
        if transmit.contents.first().is_some_and(|first| first & 0x80 != 0)
            && let Some(header) = quic::parse_long(transmit.contents)
        {
            self.routes.learn_cid(header.scid, &track);
        }
        let now = self.clock.now();
        let segment = transmit.segment_size.unwrap_or(transmit.contents.len()).max(1);
        let mut state = track.lock();
        let wake = match self.send_on_routes(&mut state, transmit.contents, segment, now) {
            blocked @ Sent::Blocked(_) => return blocked,
            Sent::Yes => {
                state.copies.ring.keep(transmit.contents, segment, now);
                state.sent(segment.min(transmit.contents.len()), now)
            }
        };
        drop(state);
        if wake {
            self.woken.push(track.alias());
        }
        Sent::Yes
    }

    /// Sends again what was sent last, on one route; `age` leaves out what is older. What is `budgeted` stays within the
    /// connection's budget of copies.
    pub(crate) fn replay(&self, track: &Arc<Track>, route: RouteId, (last, age): (usize, Duration), budgeted: bool) {
        let now = self.clock.now();
        let mut state = track.lock();
        let datagrams: Vec<Vec<u8>> = state.copies.ring.last(last, age, now).map(<[u8]>::to_vec).collect();
        for datagram in datagrams {
            if budgeted && !state.copies.budget.copy(datagram.len(), now) {
                self.counters.count(Dropped::HedgeBudget);
                continue;
            }
            // A replay is a copy: where the socket is full, it is lost.
            if let Sent::Blocked(_) = self.send_on(&mut state, route, &datagram, datagram.len()) {
                self.counters.count(Dropped::SocketFull);
            }
        }
    }

    /// Sends a datagram of ours, past QUIC; lost where the socket is full.
    pub(crate) fn send_control(&self, via: Via, datagram: &[u8]) {
        let sent = match via {
            Via::Direct(addr) => self.put(SocketId::MAIN, addr, datagram, None),
            Via::Punched(socket, addr) => self.put(socket, addr, datagram, None),
            Via::Relay(addr, id) => self.put(SocketId::MAIN, addr, &[&relay_data::prefix(id), datagram].concat(), None),
        };
        if let Sent::Blocked(_) = sent {
            self.counters.count(Dropped::SocketFull);
        }
    }

    /// Sends a datagram of ours that may pass no more than `hop_limit` routers, where the socket is not shared.
    pub(crate) fn send_limited(&self, via: Via, datagram: &[u8], hop_limit: Option<u8>) {
        match (via, hop_limit) {
            (Via::Punched(id, addr), Some(limit)) if is_sendable(addr) => {
                let transmit =
                    Transmit { destination: addr, ecn: None, contents: datagram, segment_size: None, src_ip: None };
                let sent = self.sockets.further(id).map(|socket| socket.try_send_limited(&transmit, limit));
                if sent.is_none_or(|sent| sent.is_err()) {
                    self.counters.count(Dropped::SendError);
                }
            }
            _ => self.send_control(via, datagram),
        }
    }

    /// One copy on each route in use. The first decides whether QUIC has to wait: were a copy to decide, QUIC would
    /// send the first one twice.
    fn send_on_routes(&self, state: &mut State, contents: &[u8], segment: usize, now: Instant) -> Sent {
        let selected = match state.plan {
            Plan::Instead(route) => Some(route),
            _ => state.selected,
        };
        let first = selected.or_else(|| state.routes().next().map(|(route, _)| route));
        let Some(first) = first else { return Sent::Yes };
        if let Sent::Blocked(socket) = self.send_on(state, first, contents, segment) {
            return Sent::Blocked(socket);
        }
        state.copies.budget.earn(contents.len(), now);
        if let Plan::One(_) | Plan::Instead(_) = state.plan {
            return Sent::Yes;
        }
        for index in 0..state.slots.len() {
            let route = RouteId(index as u8);
            let is_used = match state.plan {
                Plan::Several(routes) => routes.contains(route),
                _ => true,
            };
            if !is_used || route == first || state.slot(route).is_none() {
                continue;
            }
            if state.established && !state.copies.budget.copy(contents.len(), now) {
                self.counters.add(Dropped::HedgeBudget, contents.len().div_ceil(segment) as u64);
                continue;
            }
            if let Sent::Blocked(_) = self.send_on(state, route, contents, segment) {
                self.counters.count(Dropped::SocketFull);
            }
        }
        Sent::Yes
    }

    fn send_on(&self, state: &mut State, route: RouteId, contents: &[u8], segment: usize) -> Sent {
        let (dialled, established) = (state.dialled, state.established);
        let Some(slot) = state.slot_mut(route) else { return Sent::Yes };
        if !slot.proven && !slot.credit.may_send(contents.len()) {
            let why = if dialled { Dropped::DialBudget } else { Dropped::Amplification };
            self.counters.add(why, contents.len().div_ceil(segment) as u64);
            return Sent::Yes;
        }
        let (via, mtu) = (slot.via, usize::from(slot.mtu));
        if segment > mtu && established {
            state.must_split(route);
            return self.send_split(state, via, contents, segment);
        }
        let sent = match via {
            Via::Direct(addr) => {
                self.put(SocketId::MAIN, addr, contents, (segment < contents.len()).then_some(segment))
            }
            Via::Punched(socket, addr) => {
                self.put(socket, addr, contents, (segment < contents.len()).then_some(segment))
            }
            Via::Relay(addr, id) => {
                let prefix = relay_data::prefix(id);
                let count = contents.len().div_ceil(segment);
                let mut laid = Vec::with_capacity(contents.len() + count * prefix.len());
                for datagram in contents.chunks(segment) {
                    laid.extend_from_slice(&prefix);
                    laid.extend_from_slice(datagram);
                }
                self.put(SocketId::MAIN, addr, &laid, (count > 1).then_some(segment + prefix.len()))
            }
        };
        if let (Sent::Yes, Some(slot)) = (&sent, state.slot_mut(route)) {
            slot.bytes_sent += contents.len() as u64;
        }
        sent
    }

    /// Sends datagrams that are too large for the route in two halves each.
    fn send_split(&self, state: &mut State, via: Via, contents: &[u8], segment: usize) -> Sent {
        let Some(key) = state.probe_key_id() else {
            self.counters.count(Dropped::TooLarge);
            return Sent::Yes;
        };
        for datagram in contents.chunks(segment) {
            state.fragments = state.fragments.wrapping_add(1);
            for half in fragment::split(datagram, key, state.fragments) {
                self.send_control(via, &half);
            }
        }
        Sent::Yes
    }

    /// Puts one batch on a socket.
    fn put(&self, from: SocketId, addr: SocketAddr, contents: &[u8], segment_size: Option<usize>) -> Sent {
        let further = if from == SocketId::MAIN { None } else { self.sockets.further(from) };
        let chosen = match &further {
            Some(socket) => Some((Which::Further(from), &**socket)),
            None => self.sockets.towards(addr).filter(|_| from == SocketId::MAIN),
        };
        let Some((which, socket)) = chosen.filter(|_| is_sendable(addr)) else {
            self.counters.count(Dropped::NoSocket);
            return Sent::Yes;
        };
        // No source address: one that is no longer ours would turn segmentation offload off for good.
        match socket.try_send(&Transmit { destination: addr, ecn: None, contents, segment_size, src_ip: None }) {
            Ok(()) => Sent::Yes,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Sent::Blocked(which),
            Err(error) => {
                tracing::trace!(%error, "datagram not sent");
                self.counters.count(Dropped::SendError);
                Sent::Yes
            }
        }
    }

    /// Forwards relayed datagrams as they came; lost, and counted, where the socket is full.
    pub(super) fn forward(&self, to: SocketAddr, contents: &[u8], segment_size: Option<usize>) {
        if let Sent::Blocked(_) = self.put(SocketId::MAIN, to, contents, segment_size) {
            self.counters.count(Dropped::SocketFull);
        }
    }

    /// Sends datagrams that the relay held back, each by itself.
    pub(crate) fn send_raw(&self, to: SocketAddr, datagram: &[u8]) {
        self.forward(to, datagram, None);
    }

    /// The moment on the node's clock.
    pub(crate) fn now(&self) -> Instant {
        self.clock.now()
    }
}

/// The kernel answers such a destination with EINVAL, which costs the whole socket its segmentation offload.
fn is_sendable(addr: SocketAddr) -> bool {
    addr.port() != 0 && !addr.ip().is_unspecified()
}
