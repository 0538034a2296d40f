//! At which of its relays a node is registered: the nearest two that answer. It moves when one of them dies, is about to
//! stop, or is clearly farther away than another; not for less, for a move costs every peer a new allocation.
//!
//! ```text
//! loop {
//!     let plan = homes.plan(now); register at plan.homes, leave the others, measure plan.measure
//!     wait for: homes.poll_timeout() or something to note
//! }
//! ```

use alloc::vec::Vec;
use core::{cmp::Reverse, time::Duration};

use crate::{id::PeerId, time::Instant};

/// Relays that a node may be told to choose from.
pub const MAX_RELAYS: usize = 8;

/// Relays at which a node is registered while it has so many: one that dies then costs its peers a switch, not a dial.
pub const WARM: usize = 2;

/// How long a relay may take to take a node in before another one is tried beside it: three round trips on a slow line.
const PATIENCE: Duration = Duration::from_secs(1);

/// How much nearer another relay must be: this part of the round-trip time …
const NEARER_PART: u32 = 5;

/// … and this much. Two measures of one path differ by less.
const NEARER: Duration = Duration::from_millis(10);

/// How often relays in reserve are measured again: a handshake each, so rarely.
const MEASURE: Duration = Duration::from_secs(30 * 60);

/// The first and the longest pause before a relay in reserve that did not answer is measured again.
const RETRY: (Duration, Duration) = (Duration::from_secs(30), MEASURE);

/// What a relay's task has found out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Report {
    /// It answers, after this round trip.
    Answers(Duration),
    /// The node is registered there, or is heard there again.
    Registered,
    /// The node is registered there, but nothing is heard any more.
    Silent,
    /// It was not reached, or it refused.
    Failed,
    /// It is about to stop.
    Drains,
}

/// What a node is to do with its relays.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Plan {
    /// Where to be registered, or to try to.
    pub homes: Vec<PeerId>,
    /// Which to measure now.
    pub measure: Vec<PeerId>,
}

/// The relays of a node, and its choice among them.
#[derive(Debug, Default)]
pub struct Homes {
    relays: Vec<Relay>,
}

#[derive(Debug)]
struct Relay {
    id: PeerId,
    /// The node is registered there, or tries to be.
    home: bool,
    state: State,
    rtt: Option<Duration>,
    /// Measures in a row that failed.
    failures: u32,
    /// When to measure it next; `None` while that is being done.
    measure_at: Option<Instant>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Not asked yet, or asked since then.
    Trying(Instant),
    /// It answered when it was asked last, and the node is not registered there.
    Reserve,
    Registered(Instant),
    Down,
    Draining,
}

impl Homes {
    /// Replaces the list; what is known of those that stay is kept. Those after the first [`MAX_RELAYS`] are left out.
    pub fn set(&mut self, ids: impl IntoIterator<Item = PeerId>, now: Instant) {
        let mut old = core::mem::take(&mut self.relays);
        for id in ids.into_iter().take(MAX_RELAYS) {
            let known = old.iter().position(|relay| relay.id == id).map(|at| old.remove(at));
            let relay = known.unwrap_or(Relay {
                id,
                home: false,
                state: State::Trying(now),
                rtt: None,
                failures: 0,
                measure_at: Some(now),
            });
            if !self.relays.iter().any(|relay| relay.id == id) {
                self.relays.push(relay);
            }
        }
    }

    /// Takes in what was found out about a relay; nothing if it is not on the list.
    pub fn note(&mut self, id: PeerId, report: Report, now: Instant) {
        let Some(relay) = self.relays.iter_mut().find(|relay| relay.id == id) else { return };
        match report {
            Report::Answers(rtt) => {
                relay.rtt = Some(rtt);
                relay.failures = 0;
                relay.measure_at = Some(now + MEASURE);
                if !relay.home {
                    relay.state = State::Reserve;
                }
            }
            Report::Registered if relay.home => relay.register(now),
            Report::Registered => relay.state = State::Reserve, // for a peer's sake
            Report::Silent => relay.state = State::Down,
            Report::Failed => {
                relay.state = State::Down;
                let pause = (RETRY.0 * (1 << relay.failures.min(16))).min(RETRY.1);
                relay.failures = relay.failures.saturating_add(1);
                relay.measure_at = Some(now + pause);
            }
            Report::Drains => relay.state = State::Draining,
        }
    }

    /// The node may be elsewhere now: everything is measured again.
    pub fn network_changed(&mut self, now: Instant) {
        for relay in &mut self.relays {
            relay.failures = 0;
            relay.measure_at = relay.measure_at.map(|_| now);
        }
    }

    /// Decides; the same again until something is noted or [`Homes::poll_timeout`] has come, but for what to measure.
    pub fn plan(&mut self, now: Instant) -> Plan {
        self.fill(now);
        self.trim(now);
        self.improve(now);
        let mut plan = Plan::default();
        for relay in &mut self.relays {
            let is_choice = !relay.home || matches!(relay.state, State::Registered(_));
            if is_choice && relay.measure_at.is_some_and(|at| at <= now) {
                relay.measure_at = None;
                plan.measure.push(relay.id);
            }
            if relay.home {
                plan.homes.push(relay.id);
            }
        }
        plan
    }

    /// When [`Homes::plan`] may decide otherwise, and why.
    pub fn poll_timeout(&self, now: Instant) -> Option<(Instant, &'static str)> {
        let waiting = self.relays.iter().filter(|relay| relay.home).filter_map(|relay| match relay.state {
            State::Trying(since) => Some((since + PATIENCE, "a relay is slow")).filter(|(at, _)| *at > now),
            _ => None,
        });
        let measures = self.relays.iter().filter(|relay| !relay.home || matches!(relay.state, State::Registered(_)));
        let measures = measures.filter_map(|relay| Some((relay.measure_at?, "measure a relay")));
        waiting.chain(measures).min()
    }

    /// The relays at which the node is registered, the nearest first.
    pub fn registered(&self) -> Vec<PeerId> {
        let mut registered: Vec<_> = self.relays.iter().filter(|relay| relay.home && relay.is_up()).collect();
        registered.sort_by_key(|relay| relay.distance());
        registered.iter().map(|relay| relay.id).collect()
    }

    /// All relays by how likely a peer finds the node there, also later: homes, then the nearest in reserve.
    pub fn by_promise(&self) -> Vec<PeerId> {
        let mut all: Vec<_> = self.relays.iter().collect();
        all.sort_by_key(|relay| (!relay.is_up(), !relay.home, relay.state != State::Reserve, relay.distance()));
        all.iter().map(|relay| relay.id).collect()
    }

    /// Takes relays from the reserve into the places of those that are missing.
    fn fill(&mut self, now: Instant) {
        while self.relays.iter().filter(|relay| relay.home && relay.is_promising(now)).count() < WARM {
            let reserve = self.relays.iter_mut().filter(|relay| !relay.home && relay.state == State::Reserve);
            if let Some(best) = reserve.min_by_key(|relay| relay.distance()) {
                best.try_home(now);
                continue;
            }
            // Nothing in reserve: all that is left is to try the others again and again.
            let few = self.relays.len() <= WARM;
            for relay in self.relays.iter_mut().filter(|relay| !relay.home) {
                if relay.state == State::Down || few && relay.state != State::Draining {
                    relay.try_home(now);
                }
            }
            return;
        }
    }

    /// Gives up what is no longer needed, once there are two to stay with.
    fn trim(&mut self, now: Instant) {
        let mut up: Vec<(Instant, Option<Duration>, PeerId)> = Vec::new();
        for relay in self.relays.iter().filter(|relay| relay.home) {
            if let State::Registered(since) = relay.state {
                up.push((since, relay.rtt, relay.id));
            }
        }
        if up.len() < WARM {
            return;
        }
        up.sort_unstable();
        let mut stay: Vec<_> = up.drain(..WARM).collect();
        for (since, rtt, id) in up {
            let farthest = stay.iter_mut().max_by_key(|(_, rtt, _)| rtt.unwrap_or(Duration::MAX));
            if let Some(farthest) = farthest.filter(|farthest| is_nearer(rtt, farthest.1)) {
                *farthest = (since, rtt, id);
            }
        }
        let farthest = stay.iter().map(|(_, rtt, _)| rtt.unwrap_or(Duration::MAX)).max();
        for relay in self.relays.iter_mut().filter(|relay| relay.home) {
            let is_better = !relay.is_up() && relay.is_promising(now) && is_nearer(relay.rtt, farthest);
            if !is_better && !stay.iter().any(|(_, _, id)| *id == relay.id) {
                relay.leave(now);
            }
        }
    }

    /// Tries a relay of the reserve that is clearly nearer than one of the two.
    fn improve(&mut self, now: Instant) {
        if self.relays.iter().filter(|relay| relay.home).any(|relay| !relay.is_up()) {
            return;
        }
        let homes = self.relays.iter().filter(|relay| relay.home);
        let Some(farthest) = homes.map(|relay| relay.distance()).max() else { return };
        let reserve = self.relays.iter_mut().filter(|relay| !relay.home && relay.state == State::Reserve);
        let best = reserve.min_by_key(|relay| relay.distance());
        if let Some(best) = best.filter(|best| is_nearer(best.rtt, Some(farthest.0))) {
            best.try_home(now);
        }
    }
}

impl Relay {
    fn is_up(&self) -> bool {
        matches!(self.state, State::Registered(_))
    }

    /// Whether it is one of the two, or may soon be.
    fn is_promising(&self, now: Instant) -> bool {
        match self.state {
            State::Registered(_) => true,
            State::Trying(since) => now.since(since) < PATIENCE,
            State::Reserve | State::Down | State::Draining => false,
        }
    }

    fn distance(&self) -> (Duration, Reverse<PeerId>) {
        (self.rtt.unwrap_or(Duration::MAX), Reverse(self.id))
    }

    fn try_home(&mut self, now: Instant) {
        self.home = true;
        self.state = State::Trying(now);
    }

    fn register(&mut self, now: Instant) {
        self.failures = 0;
        self.measure_at.get_or_insert(now + MEASURE);
        if !self.is_up() {
            self.state = State::Registered(now);
        }
    }

    fn leave(&mut self, now: Instant) {
        self.home = false;
        if self.is_up() {
            self.state = State::Reserve;
            self.measure_at = Some(now + MEASURE);
        } else {
            self.state = State::Down;
            self.measure_at = Some(now + RETRY.0);
        }
    }
}

/// Whether a round-trip time is so much shorter than another one that it is worth a move.
fn is_nearer(rtt: Option<Duration>, than: Option<Duration>) -> bool {
    let (rtt, than) = (rtt.unwrap_or(Duration::MAX), than.unwrap_or(Duration::MAX));
    rtt.saturating_add((than / NEARER_PART).max(NEARER)) < than
}

#[cfg(test)]
mod tests;
