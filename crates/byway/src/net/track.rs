//! What the packet path knows of one alias: its routes, which of them are in use, and what went out unanswered.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use byway_proto::{
    Instant,
    gate::{Backlog, Credit},
    paths::{Budget, Plan, RouteId, SMALL, Sample},
    schedule::Bucket,
    wire::{fragment::Reassembly, relay_data::AllocId},
};
use tokio::sync::Notify;

use super::routes::{MAX_CIDS, Via};
use crate::{
    quic::{congestion::Line, endpoint::PACKET_THRESHOLD},
    watched::Watched,
};

/// Most routes to one peer on the packet path: the route machine keeps half as many, and may prefer a newcomer.
pub(crate) const MAX_ROUTES: usize = RouteId::LIMIT as usize;

/// The UDP payload in bytes that every route is trusted to carry before a padded probe proved more (RFC 9000 §14.1).
pub(crate) const MIN_MTU: u16 = 1_200;

/// Bytes that count as received on a dial's candidate before it answered: with the factor of three (RFC 9000 §8.1) a dial
/// sends at most 16 full datagrams to an address that never answers, whoever named it.
const DIAL_CREDIT: usize = 16 * 1_200 / 3;

/// Datagrams kept for a replay: those that QUIC does not yet take for lost when it hears of the last one. All before are
/// sent anew at once then.
pub(crate) const RING: usize = PACKET_THRESHOLD as usize;

/// Of a batch that leaves faster than this, only the last two datagrams are worth a replay: the acknowledgement of the
/// highest packet number makes QUIC see the rest as lost.
const RING_WINDOW: Duration = Duration::from_millis(1);

/// Datagrams handed to QUIC that its connection has not taken yet; past this they are dropped, for QUIC's own queue has
/// no bound. 8,192 full datagrams are 12 MB, one window of a 1 Gbit/s line at 100 ms.
const MAX_BACKLOG: u64 = 8_192;

/// Packets of unknown connections that QUIC sees from one peer's route per second, and at once: one of them may be a
/// stateless reset, and a restarted peer sends one for each packet that it gets.
const RESET_RATE: (u64, u64) = (10, 10);

/// One alias's state on the packet path.
#[derive(Debug)]
pub(crate) struct Track {
    alias: SocketAddr,
    state: Mutex<State>,
    /// Tells the congestion control which route carries the connection.
    pub(crate) line: Arc<Line>,
    /// Told when QUIC's queue needs to be measured.
    pub(crate) backlog: Notify,
    /// Told when another route was selected.
    pub(crate) moved: Notify,
    /// Told when the route that carries the connection may have become a proven one.
    pub(crate) settled: Notify,
    /// Told when packets arrive again after an outage: QUIC's own next one may be many seconds away.
    pub(crate) revived: Notify,
    /// Whether a relay's own connection has something unanswered that should have been answered.
    pub(crate) silent: Watched<bool>,
}

/// The mutable half of a [`Track`].
#[derive(Debug)]
pub(crate) struct State {
    /// This node dialled: its routes are candidates it chose itself.
    pub(crate) dialled: bool,
    /// QUIC makes a connection of it: whoever ends that connection gives the alias up.
    pub(crate) admitted: bool,
    pub(crate) established: bool,
    pub(crate) slots: Vec<Option<Slot>>,
    /// The route that carries the connection; `None` before the handshake is done.
    pub(crate) selected: Option<RouteId>,
    /// The routes that a datagram takes: all of them while dialling, several while the selected one is doubted.
    pub(crate) plan: Plan,
    pub(crate) unanswered: Unanswered,
    /// The agent looks at this track by itself; otherwise the first unanswered datagram wakes it.
    pub(crate) watched: bool,
    pub(crate) copies: Copies,
    intake: Intake,
    pub(crate) reassembly: Reassembly,
    pub(crate) fragments: u32,
    pub(crate) retried: bool,
    cids: Vec<Vec<u8>>,
    probe_key: Option<[u8; 8]>,
}

/// What QUIC may still be handed for one alias.
#[derive(Debug)]
struct Intake {
    backlog: Backlog,
    /// The backlog is being measured.
    asked: bool,
    resets: Bucket,
}

/// A route as the packet path needs it.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) via: Via,
    /// The largest UDP payload known to pass, without a relay's prefix.
    pub(crate) mtu: u16,
    /// Something had to be split for it.
    pub(crate) split: bool,
    /// A probe came by it before there was a key to check it with.
    pub(crate) early: bool,
    /// An authenticated probe was answered on it.
    pub(crate) proven: bool,
    /// What an unproven route may be sent (RFC 9000 §8.1).
    pub(crate) credit: Credit,
    pub(crate) heard: Option<Instant>,
    pub(crate) bytes_sent: u64,
    pub(crate) bytes_received: u64,
}

/// The oldest datagrams to which no answer came yet.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Unanswered {
    pub(crate) large: Option<Instant>,
    pub(crate) small: Option<Instant>,
    pub(crate) last_sent: Option<Instant>,
}

/// What may be sent a second time, and how much of it.
#[derive(Debug)]
pub(crate) struct Copies {
    pub(crate) ring: Ring,
    /// Of no concern before the handshake is done: a dial has a budget of its own.
    pub(crate) budget: Budget,
}

/// The last datagrams sent, for a replay on another route.
#[derive(Debug, Default)]
pub(crate) struct Ring {
    /// Datagrams that most likely carry data.
    kept: VecDeque<(Instant, Vec<u8>)>,
    /// The last one that was too small for that. Bare acknowledgements go out all the time while the other side sends, and
    /// earn no answer by which QUIC would see what is lost.
    small: Option<(Instant, Vec<u8>)>,
    window_start: Instant,
    window_count: usize,
}

impl Track {
    pub(super) fn dialled(alias: SocketAddr, now: Instant) -> Self {
        Track::new(alias, true, now)
    }

    pub(super) fn accepted(alias: SocketAddr, via: Via, now: Instant) -> Self {
        let track = Track::new(alias, false, now);
        track.lock().add(via, false);
        track
    }

    fn new(alias: SocketAddr, dialled: bool, now: Instant) -> Self {
        let state = State {
            dialled,
            admitted: dialled,
            established: false,
            slots: Vec::new(),
            selected: None,
            plan: Plan::All,
            unanswered: Unanswered::default(),
            watched: false,
            copies: Copies { ring: Ring { window_start: now, ..Ring::default() }, budget: Budget::new(now) },
            intake: Intake {
                backlog: Backlog::new(MAX_BACKLOG, now),
                asked: false,
                resets: Bucket::new(RESET_RATE.0, RESET_RATE.1, now),
            },
            reassembly: Reassembly::default(),
            fragments: 0,
            retried: false,
            cids: Vec::new(),
            probe_key: None,
        };
        Track {
            alias,
            state: Mutex::new(state),
            line: Arc::default(),
            backlog: Notify::new(),
            moved: Notify::new(),
            settled: Notify::new(),
            revived: Notify::new(),
            silent: Watched::default(),
        }
    }

    pub(crate) fn alias(&self) -> SocketAddr {
        self.alias
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether QUIC makes, or has made, a connection of it.
    pub(crate) fn is_admitted(&self) -> bool {
        self.lock().admitted
    }

    /// Notes that the connection has taken `datagrams` since it was made.
    pub(crate) fn consumed(&self, datagrams: u64, now: Instant) {
        let mut state = self.lock();
        state.intake.backlog.consumed(datagrams, now);
        state.intake.asked = false;
    }

    pub(crate) fn cids(&self) -> Vec<Vec<u8>> {
        self.lock().cids.clone()
    }

    pub(super) fn cid_count(&self) -> usize {
        self.lock().cids.len()
    }

    /// Where this peer's packets go now, if any route is known.
    pub(crate) fn via(&self) -> Option<Via> {
        let state = self.lock();
        let heard = || state.routes().max_by_key(|(_, slot)| slot.heard).map(|(_, slot)| slot.via);
        state.selected.and_then(|route| state.slot(route)).map(|slot| slot.via).or_else(heard)
    }

    pub(crate) fn vias(&self) -> Vec<Via> {
        self.lock().routes().map(|(_, slot)| slot.via).collect()
    }

    /// Whether both nodes run on one machine: the peer, or its relay, is reached over loopback.
    pub(crate) fn knows_this_machine(&self) -> bool {
        self.vias().iter().any(|via| via.remote().ip().is_loopback())
    }

    /// Whether the peer has answered by an allocation. That there is one is the relay's word alone until then.
    pub(crate) fn is_carried_by(&self, id: AllocId) -> bool {
        let state = self.lock();
        state.routes().any(|(_, slot)| slot.proven && matches!(slot.via, Via::Relay(_, known) if known == id))
    }

    /// The ways by which something came from this peer.
    pub(crate) fn heard_vias(&self) -> Vec<Via> {
        self.lock().routes().filter(|(_, slot)| slot.heard.is_some()).map(|(_, slot)| slot.via).collect()
    }

    /// Notes that a route is the peer's; `true` if that is new.
    pub(crate) fn prove(&self, route: RouteId) -> bool {
        let is_new = self.lock().slot_mut(route).is_some_and(|slot| !std::mem::replace(&mut slot.proven, true));
        if is_new {
            self.settled.notify_one();
        }
        is_new
    }

    /// Waits until the connection goes by a proven route to another address than `known`, which may be so already.
    pub(crate) async fn settles(&self, known: Option<SocketAddr>) -> SocketAddr {
        loop {
            if let Some(now) = self.proven_remote().filter(|now| Some(*now) != known) {
                return now;
            }
            self.settled.notified().await;
        }
    }

    /// Where the connection goes, if the peer has shown that it is there.
    fn proven_remote(&self) -> Option<SocketAddr> {
        let state = self.lock();
        let slot = state.slot(state.selected?)?;
        slot.proven.then(|| slot.via.remote())
    }

    pub(crate) fn probe_key(&self) -> Option<[u8; 8]> {
        self.lock().probe_key
    }

    pub(super) fn set_probe_key(&self, id: [u8; 8]) {
        self.lock().probe_key = Some(id);
    }

    /// Notes a connection id that leads here; `false` if it is known or one too many.
    pub(super) fn remember_cid(&self, cid: &[u8]) -> bool {
        let cids = &mut self.lock().cids;
        let new = cids.len() < MAX_CIDS && !cids.iter().any(|known| known == cid);
        if new {
            cids.push(cid.to_vec());
        }
        new
    }
}

impl State {
    /// Adds a route; `None` if it is there already or there are [`MAX_ROUTES`].
    pub(crate) fn add(&mut self, via: Via, proven: bool) -> Option<RouteId> {
        if self.find(via).is_some() {
            return None;
        }
        let mut credit = Credit::default();
        if self.dialled {
            credit.received(DIAL_CREDIT);
        }
        let slot = Slot {
            via,
            mtu: MIN_MTU,
            split: false,
            early: false,
            proven,
            credit,
            heard: None,
            bytes_sent: 0,
            bytes_received: 0,
        };
        let free = self.slots.iter().position(Option::is_none);
        let index = match free {
            Some(index) => index,
            None if self.slots.len() < MAX_ROUTES => {
                self.slots.push(None);
                self.slots.len() - 1
            }
            None => return None,
        };
        self.slots[index] = Some(slot);
        Some(RouteId(index as u8))
    }

    pub(crate) fn remove(&mut self, route: RouteId) {
        if let Some(slot) = self.slots.get_mut(usize::from(route.0)) {
            *slot = None;
        }
        // The next route with this id is another one.
        self.selected.take_if(|selected| *selected == route);
    }

    pub(crate) fn find(&self, via: Via) -> Option<RouteId> {
        // The selected route first: almost every packet comes by it.
        if let Some(selected) = self.selected
            && self.slot(selected).is_some_and(|slot| slot.via == via)
        {
            return Some(selected);
        }
        let index = self.slots.iter().position(|slot| slot.as_ref().is_some_and(|slot| slot.via == via))?;
        Some(RouteId(index as u8))
    }

    pub(crate) fn slot(&self, route: RouteId) -> Option<&Slot> {
        self.slots.get(usize::from(route.0))?.as_ref()
    }

    pub(crate) fn slot_mut(&mut self, route: RouteId) -> Option<&mut Slot> {
        self.slots.get_mut(usize::from(route.0))?.as_mut()
    }

    /// The routes, with their ids.
    pub(crate) fn routes(&self) -> impl Iterator<Item = (RouteId, &Slot)> {
        self.slots.iter().enumerate().filter_map(|(i, slot)| Some((RouteId(i as u8), slot.as_ref()?)))
    }

    /// Notes that something was sent; `true` if the agent must be woken to look after it.
    pub(crate) fn sent(&mut self, largest: usize, now: Instant) -> bool {
        self.unanswered.last_sent = Some(now);
        let first = if largest > SMALL { &mut self.unanswered.large } else { &mut self.unanswered.small };
        if first.is_none() {
            *first = Some(now);
        }
        let wake = self.established && !self.watched;
        self.watched |= wake;
        wake
    }

    /// Notes that something is split for `route`; the first time the agent is to look whether it has to be.
    pub(crate) fn must_split(&mut self, route: RouteId) {
        if self.slot_mut(route).is_some_and(|slot| !std::mem::replace(&mut slot.split, true)) {
            self.watched = false;
        }
    }

    /// Notes that `bytes` came by `route`; `true` if the agent must be woken to draw a conclusion from it.
    pub(crate) fn heard(&mut self, route: RouteId, bytes: usize, now: Instant) -> bool {
        if self.plan == Plan::All || self.selected == Some(route) {
            self.answered();
        }
        if let Some(slot) = self.slot_mut(route) {
            slot.heard = Some(now);
            slot.bytes_received += bytes as u64;
            if !slot.proven {
                slot.credit.received(bytes);
            }
        }
        matches!(self.plan, Plan::Several(_)) && self.selected != Some(route)
    }

    /// Everything sent so far counts as answered.
    pub(crate) fn answered(&mut self) {
        self.unanswered.large = None;
        self.unanswered.small = None;
    }

    /// The key id of this peer's probes and fragments, once there is one.
    pub(crate) fn probe_key_id(&self) -> Option<[u8; 8]> {
        self.probe_key
    }

    pub(crate) fn sample(&self) -> Sample {
        Sample {
            unanswered_large: self.unanswered.large,
            unanswered_small: self.unanswered.small,
            last_sent: self.unanswered.last_sent,
            heard: self.routes().filter_map(|(route, slot)| Some((route, slot.heard?))).collect(),
            delivery: None,
            split: self.routes().filter(|(_, slot)| slot.split).map(|(route, _)| route).collect(),
        }
    }

    /// Whether one more datagram may wait inside QUIC, and whether its queue should be measured now.
    pub(crate) fn admit(&mut self) -> (bool, bool) {
        let ask = self.intake.backlog.waiting() > MAX_BACKLOG / 4 && !self.intake.asked;
        self.intake.asked |= ask;
        (self.intake.backlog.deliver(), ask)
    }

    /// Whether QUIC may look for a stateless reset once more. What is none is never counted by the connection, so it is
    /// kept out of the backlog: otherwise whoever forges the peer's address could fill that up.
    pub(crate) fn may_be_reset(&mut self, now: Instant) -> bool {
        self.intake.resets.take(1, now)
    }
}

impl Ring {
    /// Keeps what a replay may need of the datagrams in `contents`.
    pub(crate) fn keep(&mut self, contents: &[u8], segment: usize, now: Instant) {
        if contents.len() <= SMALL {
            let mut copy = self.small.take().map(|(_, bytes)| bytes).unwrap_or_default();
            copy.clear();
            copy.extend_from_slice(contents);
            self.small = Some((now, copy));
            return;
        }
        let count = contents.len().div_ceil(segment.max(1));
        if now.since(self.window_start) > RING_WINDOW {
            self.window_start = now;
            self.window_count = 0;
        }
        self.window_count += count;
        let keep = if self.window_count <= RING { count } else { 2.min(count) };
        for datagram in contents.chunks(segment.max(1)).skip(count - keep) {
            let mut copy = if self.kept.len() < RING {
                Vec::new()
            } else {
                self.kept.pop_front().map(|(_, bytes)| bytes).unwrap_or_default()
            };
            copy.clear();
            copy.extend_from_slice(datagram);
            self.kept.push_back((now, copy));
        }
    }

    /// The last `count` datagrams with data that are younger than `age`, oldest first, and the one without that followed.
    pub(crate) fn last(&self, count: usize, age: Duration, now: Instant) -> impl Iterator<Item = &[u8]> {
        let skip = self.kept.len().saturating_sub(count);
        // A peer that was restarted answers short packets alone: a late one of the handshake does not stand for them.
        let latest = self.kept.back().filter(|(_, bytes)| is_short(bytes)).map(|(at, _)| *at);
        let small = self.small.iter().filter(move |(at, _)| latest.is_none_or(|latest| *at >= latest));
        let young = move |(at, _): &&(Instant, Vec<u8>)| now.since(*at) <= age;
        self.kept.iter().skip(skip).chain(small).filter(young).map(|(_, bytes)| bytes.as_slice())
    }

    /// Gives the memory back while the connection is idle, all but the last datagrams: a hedge sends them again, and a
    /// restarted peer answers a short one with a stateless reset, which no probe of ours gets (RFC 9000 §10.3).
    pub(crate) fn shrink(&mut self) {
        if self.kept.len() > 1 {
            let last = self.kept.iter().rposition(|(_, bytes)| is_short(bytes)).unwrap_or(self.kept.len() - 1);
            self.kept = self.kept.swap_remove_back(last).into_iter().collect();
        }
    }
}

/// Whether it begins as a packet of an established connection does (RFC 9000 §17.3).
fn is_short(datagram: &[u8]) -> bool {
    datagram.first().is_some_and(|first| first & 0x80 == 0)
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn the_agent_hears_of_what_comes_by_another_route_while_copies_go_out() {
        let (via, now) = (|n: u16| Via::Direct(([192, 0, 2, 1], n).into()), Instant::START);
        let track = Track::accepted(([0x100, 0, 0, 0, 0, 0, 0, 1], 1).into(), via(1), now);
        let mut state = track.lock();
        let (first, other) = (RouteId(0), state.add(via(2), true).expect("there is room"));
        (state.selected, state.plan) = (Some(first), Plan::One(first));
        assert!(!state.heard(other, 100, now));
        state.plan = Plan::Several([first, other].into_iter().collect());
        assert!(state.heard(other, 100, now) && !state.heard(first, 100, now));
    }

    #[test]
    fn a_relay_carries_a_connection_only_once_the_peer_has_answered_by_it() {
        let (peer, relay): (SocketAddr, SocketAddr) = (([192, 0, 2, 1], 1).into(), ([192, 0, 2, 2], 1).into());
        let alias = ([0x100, 0, 0, 0, 0, 0, 0, 1], 1).into();
        let track = Track::accepted(alias, Via::Direct(peer), Instant::START);
        let route = track.lock().add(Via::Relay(relay, AllocId(7)), false).expect("there is room");
        assert!(!track.is_carried_by(AllocId(7)), "the relay alone says so");
        assert!(track.prove(route) && track.is_carried_by(AllocId(7)));
        assert!(!track.is_carried_by(AllocId(8)));
    }

    #[test]
    fn a_connection_settles_where_the_peer_has_answered_and_not_where_its_handshake_came_from() {
        let (forged, real): (SocketAddr, SocketAddr) = (([192, 0, 2, 1], 1).into(), ([192, 0, 2, 2], 1).into());
        let track = Track::accepted(([0x100, 0, 0, 0, 0, 0, 0, 1], 1).into(), Via::Direct(forged), Instant::START);
        let other = track.lock().add(Via::Direct(real), false).expect("there is room");
        track.lock().selected = Some(RouteId(0));
        let mut settling = std::pin::pin!(track.settles(None));
        assert_eq!(settling.as_mut().now_or_never(), None);
        assert!(track.prove(other));
        assert_eq!(settling.as_mut().now_or_never(), None, "the proven route does not carry it");
        track.lock().selected = Some(other);
        track.settled.notify_one();
        assert_eq!(settling.as_mut().now_or_never(), Some(real));
        assert!(track.prove(RouteId(0)));
        track.lock().selected = Some(RouteId(0));
        assert_eq!(track.settles(Some(real)).now_or_never(), Some(forged), "it had moved before anybody waited");
    }

    #[test]
    fn what_an_idle_connection_replays_has_a_packet_that_a_restarted_peer_answers() {
        let (mut ring, now) = (Ring::default(), Instant::START);
        ring.keep(&[0x41; 600], 600, now);
        ring.keep(&[0xe0; 600], 600, now);
        ring.shrink();
        assert_eq!(ring.last(1, Duration::MAX, now).map(|datagram| datagram[0]).collect::<Vec<_>>(), [0x41]);
        let mut ring = Ring::default();
        ring.keep(&[0x42; SMALL], SMALL, now);
        ring.keep(&[0xe0; 600], 600, now + Duration::from_secs(1));
        assert!(ring.last(1, Duration::MAX, now + Duration::from_secs(1)).any(|datagram| datagram[0] == 0x42));
    }

    #[test]
    fn what_left_longer_ago_than_a_replay_asks_for_is_left_out() {
        let (mut ring, start) = (Ring::default(), Instant::after_start(Duration::from_secs(1)));
        for n in 0..5_u8 {
            ring.keep(&[n; 1_000], 1_000, start + Duration::from_millis(100) * u32::from(n));
        }
        ring.keep(&[9; SMALL], SMALL, start + Duration::from_millis(450));
        let firsts = |age, ms| {
            let now = start + Duration::from_millis(ms);
            ring.last(usize::MAX, Duration::from_millis(age), now).map(|datagram| datagram[0]).collect::<Vec<_>>()
        };
        assert_eq!(firsts(200, 500), [3, 4, 9]);
        assert_eq!(firsts(200, 700), [] as [u8; 0]);
    }

    #[test]
    fn acknowledgements_push_no_data_out_of_a_replay() {
        let (mut ring, now) = (Ring::default(), Instant::after_start(Duration::from_secs(1)));
        ring.keep(&[1; 2_500], 1_000, now);
        for n in 0..100 {
            ring.keep(&[n; SMALL], SMALL, now);
        }
        let lengths = |ring: &Ring, count| ring.last(count, Duration::MAX, now).map(<[u8]>::len).collect::<Vec<_>>();
        assert_eq!(lengths(&ring, usize::MAX), [1_000, 1_000, 500, SMALL]);
        assert_eq!(lengths(&ring, 1), [500, SMALL]);
        ring.keep(&[2; 600], 600, now + Duration::from_millis(1));
        assert_eq!(lengths(&ring, 1), [600], "the acknowledgement is older");
        ring.shrink();
        assert_eq!(lengths(&ring, usize::MAX), [600]);
        ring.keep(&[3; 30], 30, now + Duration::from_millis(2));
        ring.shrink();
        assert_eq!(lengths(&ring, usize::MAX), [600, 30], "it may be what QUIC asks with");
    }
}
