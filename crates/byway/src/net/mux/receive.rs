//! The way in.

use std::{
    io::{self, IoSliceMut},
    net::SocketAddr,
    ops::Range,
    sync::{Arc, PoisonError, atomic::Ordering},
    task::{Context, Poll},
};

use byway_proto::{
    Instant,
    nat::SocketId,
    paths::{RouteId, SMALL},
    wire::{
        self, Kind, fragment, probe,
        quic::{self, CID_LEN, LongHeader, LongKind},
    },
};
use quinn::udp::RecvMeta;

use super::{MAX_DATAGRAM, Mux, Welcome};
use crate::{
    metrics::Dropped,
    net::{
        UdpSocket,
        routes::{Via, is_alias},
        sockets::Which,
        track::{State, Track},
        wss::is_virtual,
    },
};

/// Datagrams that wait for a buffer of their own: reassembled ones, and those of a second peer in one receive buffer.
/// One full receive of 32 buffers of 64 segments fits.
const SPILL_QUEUE: usize = 2_048;

/// Receives without a datagram for QUIC before the task yields: a flood of junk must not occupy it.
const MAX_EMPTY_RECEIVES: usize = 16;

/// The smallest UDP payload that may carry an Initial (RFC 9000 §14.1).
const MIN_INITIAL: usize = 1_200;

/// While the node's own sockets always have something, the others get a turn once in so many.
const FURTHER_TURN: usize = 32;

/// What one socket had.
enum Received {
    /// It will wake us.
    Nothing,
    /// So many buffers for QUIC.
    Kept(usize),
}

/// Datagrams of one receive buffer, for one alias, moved to the buffer's front.
struct Run {
    alias: SocketAddr,
    stride: usize,
    len: usize,
    /// A shorter datagram ends a run: only the last segment of a buffer may be short.
    open: bool,
}

impl Mux {
    /// Receives datagrams for QUIC, each with its peer's alias as source. Never `Ready(Ok(0))`, which would spin.
    pub(super) fn receive(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        for _ in 0..MAX_EMPTY_RECEIVES {
            let spilled = self.take_spilled(bufs, meta);
            if spilled > 0 {
                return Poll::Ready(Ok(spilled));
            }
            // Start with the other socket each time, so that one cannot starve the other.
            let turn = self.turn.fetch_add(1, Ordering::Relaxed);
            let mut idle = true;
            let added = self.sockets.added(); // before they are looked at: those that are added from now on wake us
            let mut main = self.sockets.main();
            main.rotate_left(turn % 3);
            for socket in main.into_iter().flatten() {
                match self.receive_from(socket, cx, bufs, meta) {
                    Received::Nothing => {}
                    Received::Kept(0) => idle = false,
                    Received::Kept(kept) => return Poll::Ready(Ok(kept)),
                }
            }
            if self.sockets.count() > 0 && (idle || turn.is_multiple_of(FURTHER_TURN)) {
                match self.receive_further(cx, bufs, meta) {
                    Received::Nothing => {}
                    Received::Kept(0) => idle = false,
                    Received::Kept(kept) => return Poll::Ready(Ok(kept)),
                }
            }
            if idle {
                self.sockets.await_more(cx, added);
                return Poll::Pending; // every socket has registered the waker
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Receives from the further sockets in turn until one has something.
    fn receive_further(&self, cx: &mut Context<'_>, bufs: &mut [IoSliceMut<'_>], meta: &mut [RecvMeta]) -> Received {
        let mut last = SocketId(self.further.load(Ordering::Relaxed));
        for _ in 0..self.sockets.count() {
            let Some((id, socket)) = self.sockets.after(last) else { break };
            last = id;
            if let received @ Received::Kept(_) = self.receive_from((Which::Further(id), &*socket), cx, bufs, meta) {
                self.further.store(id.0, Ordering::Relaxed);
                return received;
            }
        }
        Received::Nothing
    }

    fn receive_from(
        &self,
        (which, socket): (Which, &dyn UdpSocket),
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Received {
        match socket.poll_recv(cx, bufs, meta) {
            Poll::Pending => Received::Nothing,
            Poll::Ready(Ok(count)) => Received::Kept(self.sort(which, bufs, meta, count)),
            Poll::Ready(Err(error)) => {
                // An ICMP answer to an earlier datagram, or a passing fault: to QUIC it is loss.
                tracing::trace!(%error, "receive failed");
                self.counters.count(Dropped::ReceiveError);
                Received::Kept(0)
            }
        }
    }

    /// Sorts received buffers: QUIC's stay, with aliases as sources, at the front of `bufs`; returns how many.
    fn sort(&self, which: Which, bufs: &mut [IoSliceMut<'_>], meta: &mut [RecvMeta], count: usize) -> usize {
        let now = self.clock.now();
        let mut kept = 0;
        for index in 0..count.min(bufs.len()).min(meta.len()) {
            let Some(run) = self.sort_segments(which, &mut bufs[index], &meta[index], now) else { continue };
            meta[index].addr = run.alias;
            meta[index].len = run.len;
            meta[index].stride = run.stride;
            meta[index].ecn = None; // marks belong to a route, and QUIC does not know which one it was
            meta[index].dst_ip = None;
            bufs.swap(kept, index);
            meta.swap(kept, index);
            kept += 1;
        }
        kept
    }

    /// Sorts the segments of one buffer; those of the first alias stay, moved to the front.
    fn sort_segments(&self, which: Which, buf: &mut [u8], meta: &RecvMeta, now: Instant) -> Option<Run> {
        let (id, source) = (which.id(), canonical(meta.addr));
        let (len, stride) = (meta.len.min(buf.len()), meta.stride.max(1));
        // Such names are ours to give: nobody outside has one.
        if is_alias(source) || is_virtual(source) != (which == Which::Wss) {
            self.counters.add(Dropped::ForgedAlias, len.div_ceil(stride) as u64);
            return None;
        }
        let mut run: Option<Run> = None;
        let mut start = 0;
        while start < len {
            let end = len.min(start + stride);
            if end - start > usize::from(MAX_DATAGRAM) {
                self.counters.count(Dropped::TooLarge); // no peer sends that much, and every queue counts datagrams
                start = end;
                continue;
            }
            if id == SocketId::MAIN
                && wire::classify(&buf[start..end]) == Kind::RelayData
                && let Some(forwarded) = self.forward_run(source, &buf[start..len], stride, now)
            {
                start += forwarded;
                continue;
            }
            if let Some((alias, inner)) = self.sort_segment(Via::straight(id, source), &buf[start..end], now) {
                self.keep(buf, start + inner.start..start + inner.end, alias, &mut run);
            }
            start = end;
        }
        run
    }

    /// Appends a datagram to the buffer's run, or to the spill queue if it does not fit there.
    fn keep(&self, buf: &mut [u8], datagram: Range<usize>, alias: SocketAddr, run: &mut Option<Run>) {
        let len = datagram.len();
        match run {
            None => {
                buf.copy_within(datagram, 0);
                *run = Some(Run { alias, stride: len, len, open: true });
            }
            Some(run) if run.open && run.alias == alias && len <= run.stride => {
                if run.len != datagram.start {
                    buf.copy_within(datagram, run.len);
                }
                run.len += len;
                run.open = len == run.stride;
            }
            Some(_) => self.spill(alias, buf[datagram].to_vec()),
        }
    }

    /// Says whose one datagram is, and which part of it is QUIC's; takes care of what is not QUIC's.
    fn sort_segment(&self, via: Via, segment: &[u8], now: Instant) -> Option<(SocketAddr, Range<usize>)> {
        match (wire::classify(segment), via) {
            (Kind::RelayData, Via::Direct(relay)) => self.sort_relayed(relay, segment, now),
            (kind, via) => {
                let alias = self.sort_inner(via, kind, segment, now)?;
                Some((alias, 0..segment.len()))
            }
        }
    }

    pub(super) fn sort_inner(&self, via: Via, kind: Kind, datagram: &[u8], now: Instant) -> Option<SocketAddr> {
        match kind {
            Kind::QuicShort => self.sort_short(via, datagram, now),
            Kind::QuicLong => self.sort_long(via, datagram, now),
            Kind::Probe => {
                // What no key of ours made must not take the agent's time and room.
                let known =
                    probe::peek_key_id(datagram).is_some_and(|id| self.routes.read().by_probe_key(id).is_some());
                if known {
                    self.to_agent(via, datagram);
                } else {
                    self.note_early(via);
                    self.counters.count(Dropped::UnknownProbe);
                }
                None
            }
            Kind::Stun => {
                self.sort_stun(via, datagram, now);
                None
            }
            Kind::Fragment => {
                self.reassemble(via, datagram, now);
                None
            }
            _ => {
                self.counters.count(Dropped::Junk);
                None
            }
        }
    }

    fn sort_short(&self, via: Via, datagram: &[u8], now: Instant) -> Option<SocketAddr> {
        let Some(cid) = quic::short_dcid(datagram) else {
            self.counters.count(Dropped::Junk);
            return None;
        };
        if let Some(track) = self.routes.read().by_cid(&cid) {
            return self.deliver(track, via, datagram.len(), now);
        }
        if !self.routes.is_own_cid(cid) {
            return self.sort_reset(via, datagram, now);
        }
        if let Some(track) = self.routes.adopt_cid(cid, via) {
            return self.deliver(&track, via, datagram.len(), now);
        }
        // QUIC answers it with a stateless reset, by the way it came: a peer learns so that this node was restarted.
        if !self.may_answer_stranger(via, now) {
            return None;
        }
        match via {
            Via::Direct(source) => Some(source),
            Via::Punched(..) => None, // QUIC would answer from another socket
            Via::Relay(..) => {
                let track = self.routes.stranger(via, now)?;
                self.deliver(&track, via, datagram.len(), now)
            }
        }
    }

    /// A packet whose connection id this node never drew may still be a stateless reset (RFC 9000 §10.3) for one of the
    /// connections on this route; each has to be asked, for QUIC knows the token by the alias.
    fn sort_reset(&self, via: Via, datagram: &[u8], now: Instant) -> Option<SocketAddr> {
        let table = self.routes.read();
        let sharing = table.by_route(via);
        if sharing.is_empty() {
            self.counters.count(Dropped::UnknownConnection);
            return None;
        }
        let mut asked = None;
        for track in sharing {
            if !track.lock().may_be_reset(now) {
                self.counters.count(Dropped::StrangerRate);
            } else if asked.is_none() {
                asked = Some(track.alias());
            } else {
                self.spill(track.alias(), datagram.to_vec());
            }
        }
        asked
    }

    fn sort_long(&self, via: Via, datagram: &[u8], now: Instant) -> Option<SocketAddr> {
        let Some(header) = quic::parse_long(datagram) else {
            self.counters.count(Dropped::Junk);
            return None;
        };
        let known = self.routes.read().by_long_cid(header.dcid).cloned();
        let track = match known {
            Some(track) => track,
            None => self.begin(via, &header, datagram.len(), now)?,
        };
        let is_copy = |state: &State| state.established && state.find(via).is_some();
        if header.kind == LongKind::Initial && is_copy(&track.lock()) {
            self.counters.count(Dropped::UnknownHandshake); // a late copy, which QUIC would take for a new handshake
            return None;
        }
        if header.kind == LongKind::Retry && std::mem::replace(&mut track.lock().retried, true) {
            self.counters.count(Dropped::SecondRetry);
            return None;
        }
        let new = self.attach(&track, via);
        let alias = self.deliver(&track, via, datagram.len(), now);
        if let Some(route) = new {
            // After the datagram itself was credited to the route.
            self.replay(&track, route, (usize::MAX, now.since_start()), false);
        }
        alias
    }

    /// A handshake may come by several routes at once; each is answered, within what it may be sent. Tells the route that
    /// lacks the answers given so far.
    fn attach(&self, track: &Track, via: Via) -> Option<RouteId> {
        let mut state = track.lock();
        // Whoever uses relays alone answers by relays alone, though a peer that knows its address tries that as well.
        let relayed = self.welcome != Welcome::Everyone && state.routes().all(|(_, slot)| slot.via.is_relay());
        if state.established || (relayed && !via.is_relay()) {
            return None;
        }
        let route = state.add(via, false)?;
        (!state.dialled).then_some(route)
    }

    /// Lets a stranger's Initial begin a handshake, if the gate allows it.
    fn begin(&self, via: Via, header: &LongHeader<'_>, len: usize, now: Instant) -> Option<Arc<Track>> {
        let wanted = match self.welcome {
            _ if via.socket() != SocketId::MAIN => false, // it was opened for somebody in particular
            Welcome::Everyone => true,
            Welcome::Relayed => via.is_relay(),
            Welcome::Nobody => false,
        };
        if header.kind != LongKind::Initial || len < MIN_INITIAL || !wanted {
            self.counters.count(Dropped::UnknownHandshake);
            return None;
        }
        let source = self.source_of(via);
        let admitted = self.gate.lock().unwrap_or_else(PoisonError::into_inner).initial(source, len, now);
        if admitted.is_err() {
            self.counters.count(Dropped::InitialRate);
            return None;
        }
        let track = self.routes.stranger(via, now)?;
        self.routes.learn_initial(header.dcid, &track);
        Some(track)
    }

    /// Notes a datagram on its peer's track; the alias, if QUIC may have it.
    fn deliver(&self, track: &Arc<Track>, via: Via, len: usize, now: Instant) -> Option<SocketAddr> {
        let mut state = track.lock();
        let Some(route) = state.find(via) else {
            self.counters.count(Dropped::UnknownSource);
            return None;
        };
        if state.heard(route, len, now) {
            self.woken.push(track.alias());
        }
        if len > SMALL {
            track.line.hear();
        }
        let (admitted, measure) = state.admit();
        drop(state);
        if measure {
            track.backlog.notify_one();
        }
        if !admitted {
            self.counters.count(Dropped::Backlog);
            return None;
        }
        Some(track.alias())
    }

    /// A probe of a peer whose handshake is not over here yet is lost; it is answered with one of ours once there is a key.
    fn note_early(&self, via: Via) {
        let Some(track) = self.routes.begun_by(via) else { return };
        let mut state = track.lock();
        if let Some(route) = state.find(via)
            && let Some(slot) = state.slot_mut(route)
        {
            slot.early = true;
        }
    }

    /// Puts the second half of a split datagram to its first.
    fn reassemble(&self, via: Via, datagram: &[u8], now: Instant) {
        let Some(half) = fragment::parse(datagram) else {
            self.counters.count(Dropped::Junk);
            return;
        };
        let track = self.routes.read().by_probe_key(half.key_id).cloned();
        let Some(track) = track else {
            self.counters.count(Dropped::UnknownSource);
            return;
        };
        let mut state = track.lock();
        if state.find(via).is_none() {
            self.counters.count(Dropped::UnknownSource);
            return;
        }
        let whole = state.reassembly.push(half, now);
        drop(state);
        let Some(whole) = whole else { return };
        if !matches!(wire::classify(&whole), Kind::QuicShort | Kind::QuicLong) {
            self.counters.count(Dropped::Junk);
        } else if let Some(alias) = self.deliver(&track, via, whole.len(), now) {
            self.spill(alias, whole);
        }
    }

    fn spill(&self, alias: SocketAddr, datagram: Vec<u8>) {
        let mut spill = self.spill.lock().unwrap_or_else(PoisonError::into_inner);
        if spill.len() < SPILL_QUEUE {
            spill.push_back((alias, datagram));
        } else {
            self.counters.count(Dropped::SpillQueue);
        }
    }

    fn take_spilled(&self, bufs: &mut [IoSliceMut<'_>], meta: &mut [RecvMeta]) -> usize {
        let mut spill = self.spill.lock().unwrap_or_else(PoisonError::into_inner);
        let mut count = 0;
        for (buf, meta) in bufs.iter_mut().zip(meta) {
            let Some((alias, datagram)) = spill.pop_front() else { break };
            let len = datagram.len().min(buf.len());
            buf[..len].copy_from_slice(&datagram[..len]);
            *meta = RecvMeta { addr: alias, len, stride: len.max(1), ecn: None, dst_ip: None };
            count += 1;
        }
        count
    }
}

/// IPv4 in its own form, whatever the socket says, and no scope: one peer's address must always look the same.
fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

const _: () = assert!(CID_LEN == 8, "short headers are parsed with our own connection id length");
