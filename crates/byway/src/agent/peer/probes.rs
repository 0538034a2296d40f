//! One peer's probes: those that come in, and those that leave.

use std::net::SocketAddr;

use byway_proto::{
    Instant,
    paths::{Input, RouteId},
    wire::probe::{self, Probe, ProbeKind},
};
use tokio::sync::oneshot;

use super::{AgentPeer, MAX_USER_PINGS, PingReport, Pong, USER_PING_LIFE};
use crate::{
    agent::kind_of,
    event::PathKind,
    metrics::Dropped,
    net::{
        mux::{ControlDatagram, Mux},
        routes::Via,
        wss::is_virtual,
    },
};

impl AgentPeer {
    /// Takes a probe in, if it is authentic and new.
    pub(in crate::agent) fn probe(&mut self, mux: &Mux, datagram: &ControlDatagram, now: Instant) {
        let decoded = probe::decode(&datagram.bytes, &self.key).ok();
        let Some(probe) = decoded.filter(|probe| self.window.accept(probe.seq)) else {
            return mux.counters.count(Dropped::BadProbe);
        };
        if self.relayed && !datagram.via.is_relay() {
            return mux.counters.count(Dropped::UnknownSource);
        }
        let txid = u64::from_be_bytes(probe.txid);
        let known = self.track.lock().find(datagram.via);
        match probe.kind {
            ProbeKind::Ping { doubt } => {
                // An authentic ping from a new source is a new way to the peer: its NAT has a new mapping, or it punched.
                let route = match known {
                    Some(route) => Some(route),
                    None => self.add_route(datagram.via, false, now),
                };
                // A peer that is answered sends its packets this way, which are refused where no route is.
                let Some(route) = route.filter(|route| self.paths.knows(*route)) else {
                    return mux.counters.count(Dropped::NoRoom);
                };
                let observed = datagram.via.peer_addr().filter(|addr| !is_virtual(*addr));
                self.send(mux, datagram.via, ProbeKind::Pong { observed }, probe.txid);
                self.paths.handle_input(Input::Ping { route, doubt }, now);
            }
            ProbeKind::Pong { observed } => {
                let Some(route) = known else {
                    self.outside.pong = Some(Pong::Stray { via: datagram.via, txid });
                    return;
                };
                self.answer_user(txid, route, now);
                if observed.is_some_and(|addr| self.sees_anew(route, addr)) {
                    self.paths.handle_input(Input::Remapped { route }, now);
                }
                if !self.paths.proven().contains(route) {
                    self.sample(now); // whether the peer has moved here depends on what was heard elsewhere
                }
                self.paths.handle_input(Input::Pong { route, txid }, now);
                // a proven route's other end is no forged one; a further socket's outside is no place for others to go
                if let (Via::Direct(remote), Some(addr)) = (datagram.via, observed)
                    && !is_virtual(remote)
                    && self.paths.proven().contains(route)
                {
                    let peer = self.told.is_some();
                    self.outside.pong =
                        Some(if peer { Pong::Observed { remote, addr } } else { Pong::Mapped { addr } });
                }
                if let Via::Punched(..) = datagram.via {
                    self.outside.pong = Some(Pong::Stray { via: datagram.via, txid });
                }
                // Only a pong to a ping of ours proves a route: a peer must not prove a forged source.
                if self.paths.proven().contains(route) && self.track.prove(route) {
                    mux.routes.learn_route(datagram.via, &self.track);
                }
            }
        }
    }

    /// Whether the peer sees the selected route come from elsewhere than it did last time.
    fn sees_anew(&mut self, route: RouteId, addr: SocketAddr) -> bool {
        if self.paths.selected() != Some(route) {
            return false;
        }
        let before = self.outside.seen.replace((route, addr));
        before.is_some_and(|(seen, before)| seen == route && before != addr)
    }

    /// Sends a ping of the NAT agent's, on no route yet; an opener need not arrive.
    pub(in crate::agent) fn probe_for(&mut self, mux: &Mux, via: Via, txid: u64, hop_limit: Option<u8>) {
        self.seq += 1;
        let probe = Probe { seq: self.seq, kind: ProbeKind::Ping { doubt: false }, txid: txid.to_be_bytes() };
        mux.send_limited(via, &probe::encode(&probe, &self.key, 0), hop_limit);
    }

    /// Sends a ping for the user on the selected route.
    pub(in crate::agent) fn ping(&mut self, mux: &Mux, reply: oneshot::Sender<PingReport>, now: Instant) {
        self.pings.retain(|(_, at, ..)| now.since(*at) < USER_PING_LIFE);
        let Some(route) = self.paths.selected().filter(|_| self.pings.len() < MAX_USER_PINGS) else { return };
        let Some(via) = self.track.lock().slot(route).map(|slot| slot.via) else { return };
        // The machine draws its transaction ids at random over the whole range; these count from the top.
        let txid = u64::MAX - self.seq;
        self.pings.push_back((txid, now, route, reply));
        self.send(mux, via, ProbeKind::Ping { doubt: false }, txid.to_be_bytes());
    }

    fn answer_user(&mut self, txid: u64, route: RouteId, now: Instant) {
        let Some(at) = self.pings.iter().position(|(id, ..)| *id == txid) else { return };
        let Some((_, sent, _, reply)) = self.pings.remove(at) else { return };
        let path = self.track.lock().slot(route).map_or(PathKind::Direct, |slot| kind_of(slot.via).into());
        let _ = reply.send(PingReport { rtt: now.since(sent), path }); // whoever asked may have given up
    }

    pub(super) fn send(&mut self, mux: &Mux, via: Via, kind: ProbeKind, txid: [u8; 8]) {
        self.send_padded(mux, via, Probe { seq: self.seq + 1, kind, txid }, 0);
    }

    pub(super) fn send_padded(&mut self, mux: &Mux, via: Via, probe: Probe, len: usize) {
        self.seq = probe.seq;
        mux.send_control(via, &probe::encode(&probe, &self.key, len));
    }
}
