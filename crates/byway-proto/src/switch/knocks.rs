//! Strangers at the door: asked about, let in or turned away, and a slot held for those let in.

use alloc::{collections::BTreeMap, string::String, vec::Vec};
use core::time::Duration;

use super::{Class, Close, HELD, KnockId, Output, Switch, seats::Seat};
use crate::{
    Instant, PeerId,
    book::Group,
    gate::{ACCEPT_QUEUE, HALF_OPEN},
};

/// How long a filter may think: well below the 5 s that the other side waits for our hello.
pub const FILTER_DEADLINE: Duration = Duration::from_secs(3);

/// Strangers at the door at once: no more than the gate lets through, and those that wait to be taken in.
pub const MAX_KNOCKS: usize = HALF_OPEN + ACCEPT_QUEUE;

#[derive(Debug, Default)]
pub(super) struct Knocks(BTreeMap<KnockId, Knock>);

#[derive(Debug)]
struct Knock {
    peer: PeerId,
    instance: u64,
    from: Group,
    stage: Stage,
}

#[derive(Debug, Clone, Copy)]
enum Stage {
    /// The filters are asked; an answer is due then.
    Asked(Instant),
    /// Let in; the slot is held until then.
    Admitted(Instant, Option<Seat>),
}

impl Knocks {
    /// The next time at which something is overdue.
    pub(super) fn due(&self) -> Option<(Instant, &'static str)> {
        let due = |knock: &Knock| match knock.stage {
            Stage::Asked(at) => (at, "filter"),
            Stage::Admitted(at, _) => (at, "slot held for a stranger"),
        };
        self.0.values().map(due).min()
    }

    /// Those whose filter has not answered in time.
    pub(super) fn overdue(&self, now: Instant) -> Vec<KnockId> {
        let over = |(_, knock): &(&KnockId, &Knock)| matches!(knock.stage, Stage::Asked(at) if at <= now);
        self.0.iter().filter(over).map(|(id, _)| *id).collect()
    }

    /// Those that were let in and never came.
    pub(super) fn forgotten(&self, now: Instant) -> Vec<KnockId> {
        let over = |(_, knock): &(&KnockId, &Knock)| matches!(knock.stage, Stage::Admitted(at, _) if at <= now);
        self.0.iter().filter(over).map(|(id, _)| *id).collect()
    }

    /// Takes all out.
    pub(super) fn clear(&mut self) -> Vec<(KnockId, Option<Seat>)> {
        core::mem::take(&mut self.0).into_iter().map(|(id, knock)| (id, knock.seat())).collect()
    }
}

impl Knock {
    fn seat(&self) -> Option<Seat> {
        match self.stage {
            Stage::Asked(_) => None,
            Stage::Admitted(_, seat) => seat,
        }
    }
}

impl Switch {
    pub(super) fn knock(&mut self, id: KnockId, (peer, instance): (PeerId, u64), from: Group, now: Instant) {
        self.leave_door(id);
        let crowded = self.knocks.0.len() >= MAX_KNOCKS && !self.is_special(peer);
        let why = self.unwelcome(peer, instance, from, now).or(crowded.then_some(Close::Full));
        if let Some(why) = why {
            return self.outputs.push_back(Output::TurnAway { knock: id, why });
        }
        // Whom the owner named is not asked about.
        let asks = self.config.filtered && !self.is_special(peer) && !self.dials.contains_key(&peer);
        let stage = Stage::Asked(now + FILTER_DEADLINE);
        self.knocks.0.insert(id, Knock { peer, instance, from, stage });
        if asks {
            self.outputs.push_back(Output::Ask { knock: id, peer });
        } else {
            self.admit(id, now);
        }
    }

    pub(super) fn filtered(&mut self, id: KnockId, verdict: Result<(), String>, now: Instant) {
        if !self.knocks.0.get(&id).is_some_and(|knock| matches!(knock.stage, Stage::Asked(_))) {
            return; // too late, or never asked
        }
        match verdict {
            Ok(()) => self.admit(id, now),
            Err(why) => self.turn_away(id, Close::Filtered(why)),
        }
    }

    pub(super) fn turn_away(&mut self, id: KnockId, why: Close) {
        if self.knocks.0.remove(&id).is_some() {
            self.outputs.push_back(Output::TurnAway { knock: id, why });
        }
    }

    /// A stranger that was let in has gone: our own dial of it, which had given way, may go on.
    pub(super) fn knock_over(&mut self, id: KnockId) {
        let peer = self.knocks.0.get(&id).map(|knock| knock.peer);
        self.leave_door(id);
        let dial = peer.and_then(|peer| self.dials.get_mut(&peer));
        let is_admitted = |knock: &Knock| Some(knock.peer) == peer && matches!(knock.stage, Stage::Admitted(..));
        if let Some(dial) = dial
            && !self.knocks.0.values().any(is_admitted)
        {
            dial.yielded = false;
        }
    }

    /// A stranger's link is there, or never will be.
    pub(super) fn leave_door(&mut self, id: KnockId) {
        let knock = self.knocks.0.remove(&id);
        self.seats.free(knock.and_then(|knock| knock.seat()));
    }

    /// Much may have happened while a filter thought, so all is asked again.
    fn admit(&mut self, id: KnockId, now: Instant) {
        let Some(Knock { peer, instance, from, .. }) = self.knocks.0.get(&id) else { return };
        let (peer, instance, group) = (*peer, *instance, *from);
        if let Some(why) = self.unwelcome(peer, instance, group, now) {
            return self.turn_away(id, why);
        }
        let seat = (!self.is_expected(peer)).then_some(Seat { class: Class::Inbound, group });
        if seat.is_some_and(|seat| !self.seats.take(seat)) {
            return self.turn_away(id, Close::Full);
        }
        if let Some(knock) = self.knocks.0.get_mut(&id) {
            knock.stage = Stage::Admitted(now + HELD, seat);
        }
        if let Some(dial) = self.dials.get_mut(&peer) {
            dial.yielded = true;
        }
        self.outputs.push_back(Output::Admit { knock: id });
    }

    /// Why a stranger is not let in.
    fn unwelcome(&self, peer: PeerId, instance: u64, group: Group, now: Instant) -> Option<Close> {
        let seat = Seat { class: Class::Inbound, group };
        let full = || !self.seats.has_room(seat.class) || self.seats.is_group_full(seat.class, group);
        match peer {
            _ if self.stopped => Some(Close::Stopped),
            _ if peer == self.own_id => Some(Close::Itself),
            _ if self.book.banned(peer, self.unix(now)).is_some() => Some(Close::Banned),
            _ if self.is_duplicate(peer, instance, now) => Some(Close::Duplicate),
            _ if !self.is_expected(peer) && full() => Some(Close::Full),
            _ => None,
        }
    }

    /// Whether a link to the peer has a slot whoever comes: one of its own, or that of a dial or link that it replaces.
    fn is_expected(&self, peer: PeerId) -> bool {
        let dial = self.dials.get(&peer).is_some_and(|dial| dial.seat.is_some());
        self.is_special(peer) || dial || self.by_peer.contains_key(&peer)
    }
}
