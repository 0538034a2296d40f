//! What strangers may cost: admission before authentication, and the budgets of what is not proven yet.
//!
//! Four questions, in the order in which a packet meets them. May a packet of an unknown connection be answered
//! ([`Gate::stray`], per source and in all), or a relay's STUN question ([`Gate::stun`], likewise)? May this Initial reach QUIC at all ([`Gate::initial`], per source)? May the
//! connection that QUIC would make of it begin ([`Gate::admit`])? May we answer there ([`Credit`], three times what came,
//! RFC 9000 §8.1)? [`Backlog`] bounds what waits for a connection that is already made. Who is banned or over a limit of
//! peers is not asked here: that needs a name, and a name needs a handshake.

mod answers;
mod backlog;
mod credit;
mod source;

use alloc::collections::BTreeMap;
use core::time::Duration;

use answers::Answers;
pub use answers::{STRAY_RATE, STRAY_RATE_PER_SOURCE, STUN_RATE, STUN_RATE_PER_SOURCE};
pub use backlog::{BACKLOG, BACKLOG_WINDOW, Backlog};
pub use credit::Credit;
use source::Sources;
pub use source::{MAX_SOURCES, Source};

use crate::{schedule::Bucket, time::Instant};

/// A handshake that hears nothing for this long is given up; five round trips of a bad line.
pub const HANDSHAKE_IDLE: Duration = Duration::from_secs(5);

/// A handshake that takes longer than this is given up, whatever it hears.
pub const HANDSHAKE_TOTAL: Duration = Duration::from_secs(10);

/// Finished handshakes that may wait to be accepted; the next stranger gets CONNECTION_REFUSED (RFC 9000 §20.1).
pub const ACCEPT_QUEUE: usize = 32;

/// Handshakes under way at once; at about 50 KiB each (keys, one stream of handshake bytes) this is 13 MiB.
pub const HALF_OPEN: usize = 256;

/// Handshakes under way above which an unproven source must show by a Retry that it receives (RFC 9000 §8.1.2).
pub const RETRY_ABOVE: usize = 64;

/// Handshakes of one source under way; a quarter of all, so that four sources are needed to fill the gate.
pub const HALF_OPEN_PER_SOURCE: usize = 64;

/// Handshakes of one source above which it must answer a Retry: a forger then cannot use up the share of an
/// address that is not its own.
pub const RETRY_ABOVE_PER_SOURCE: usize = 8;

/// Handshakes under way through one relay, whose allocations are sources of their own; half of all.
pub const HALF_OPEN_PER_RELAY: usize = 128;

/// Initial datagrams a second from one source: a dial sends two to four.
pub const INITIAL_RATE: u64 = 32;

/// Initial datagrams at once from one source: an office behind one address that comes back after an outage.
pub const INITIAL_BURST: u64 = 64;

/// The smallest datagram that may carry an Initial (RFC 9000 §14.1).
pub const MIN_INITIAL: usize = 1_200;

/// Answers a second (Retry or refusal) to sources that may be forged: 1,000 of them are below 1 Mbit/s.
pub const ANSWER_RATE: u64 = 1_000;

/// The limits of a [`Gate`]; benches and relays raise them.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct GateConfig {
    /// Initial datagrams a second from one source.
    pub initial_rate: u64,
    /// Initial datagrams at once from one source.
    pub initial_burst: u64,
    /// Handshakes under way at once.
    pub half_open: usize,
    /// Handshakes under way above which an unproven source gets a Retry.
    pub retry_above: usize,
    /// Handshakes of one source under way at once.
    pub half_open_per_source: usize,
    /// Handshakes of one source above which it gets a Retry while unproven.
    pub retry_above_per_source: usize,
    /// Handshakes under way at once through one relay.
    pub half_open_per_relay: usize,
    /// Answers a second, and at once, to unproven sources.
    pub answer_rate: u64,
}

impl Default for GateConfig {
    fn default() -> Self {
        GateConfig {
            initial_rate: INITIAL_RATE,
            initial_burst: INITIAL_BURST,
            half_open: HALF_OPEN,
            retry_above: RETRY_ABOVE,
            half_open_per_source: HALF_OPEN_PER_SOURCE,
            retry_above_per_source: RETRY_ABOVE_PER_SOURCE,
            half_open_per_relay: HALF_OPEN_PER_RELAY,
            answer_rate: ANSWER_RATE,
        }
    }
}

/// Decides which strangers may begin a handshake.
#[derive(Debug)]
pub struct Gate {
    config: GateConfig,
    sources: Sources,
    /// In the order of their beginning, because ids count upwards.
    half_open: BTreeMap<HandshakeId, Handshake>,
    next_id: u64,
    accept_queue: usize,
    answers: Bucket,
    strays: Answers,
    stun: Answers,
    counters: GateCounters,
}

impl Gate {
    /// A gate that has seen nobody; the seed keeps strangers from choosing with whom they share a slot of the table of
    /// sources.
    pub fn new(config: GateConfig, seed: [u8; 32]) -> Self {
        Gate {
            sources: Sources::new(seed),
            half_open: BTreeMap::new(),
            next_id: 0,
            accept_queue: 0,
            answers: Bucket::new(config.answer_rate, config.answer_rate, Instant::START),
            strays: Answers::new(seed, STRAY_RATE, STRAY_RATE_PER_SOURCE),
            stun: Answers::new(seed, STUN_RATE, STUN_RATE_PER_SOURCE),
            counters: GateCounters::default(),
            config,
        }
    }

    /// Decides whether a packet of a connection that this node does not know may be answered.
    pub fn stray(&mut self, source: Source, now: Instant) -> bool {
        self.strays.take(source, now)
    }

    /// Decides whether a STUN question may be answered.
    pub fn stun(&mut self, source: Source, now: Instant) -> bool {
        self.stun.take(source, now)
    }

    /// Decides whether a datagram of `len` bytes with an Initial that belongs to no known connection may reach QUIC.
    pub fn initial(&mut self, source: Source, len: usize, now: Instant) -> Result<(), DropReason> {
        if len < MIN_INITIAL {
            self.counters.undersized += 1;
            return Err(DropReason::Undersized);
        }
        let (rate, burst) = (self.config.initial_rate, self.config.initial_burst);
        if !self.sources.bucket(source, now, || Bucket::new(rate, burst, now)).take(1, now) {
            self.counters.over_source_budget += 1;
            return Err(DropReason::SourceBudget);
        }
        Ok(())
    }

    /// Decides whether a handshake may begin; `validated` says that the source has shown a token of ours.
    ///
    /// After [`Verdict::Accept`] the caller owes one call of [`Gate::handshake_done`] or [`Gate::handshake_failed`]; one
    /// that never comes is assumed [`HANDSHAKE_TOTAL`] later.
    pub fn admit(&mut self, source: Source, validated: bool, now: Instant) -> Verdict {
        self.forget_overdue(now);
        let load = self.load(source);
        let refusal = self.refusal(&load);
        // A Retry costs us nothing to keep, so a full gate still lets an unproven source prove itself meanwhile.
        let retry = !validated
            && refusal != Some(RefuseReason::AcceptQueueFull)
            && (refusal.is_some()
                || load.all >= self.config.retry_above
                || load.source >= self.config.retry_above_per_source);
        if (retry || refusal.is_some()) && !validated && !self.answers.take(1, now) {
            self.counters.over_answer_budget += 1;
            return Verdict::Drop(DropReason::AnswerBudget);
        }
        if retry {
            self.counters.retried += 1;
            return Verdict::Retry;
        }
        if let Some(reason) = refusal {
            self.counters.refused += 1;
            return Verdict::Refuse(reason);
        }
        let id = HandshakeId(self.next_id);
        self.next_id += 1;
        self.half_open.insert(id, Handshake { source, began: now });
        self.counters.accepted += 1;
        Verdict::Accept(id)
    }

    /// Ends a handshake that has succeeded; an id that is not under way is ignored.
    pub fn handshake_done(&mut self, id: HandshakeId) {
        if self.half_open.remove(&id).is_some() {
            self.counters.done += 1;
        }
    }

    /// Ends a handshake that has failed or run out of time; an id that is not under way is ignored.
    pub fn handshake_failed(&mut self, id: HandshakeId) {
        if self.half_open.remove(&id).is_some() {
            self.counters.failed += 1;
        }
    }

    /// Tells how many finished handshakes wait to be accepted now.
    pub fn set_accept_queue(&mut self, waiting: usize) {
        self.accept_queue = waiting;
    }

    /// Handshakes under way.
    pub fn half_open(&self) -> usize {
        self.half_open.len()
    }

    /// What the gate has decided so far.
    pub fn counters(&self) -> &GateCounters {
        &self.counters
    }

    fn refusal(&self, load: &Load) -> Option<RefuseReason> {
        if self.accept_queue >= ACCEPT_QUEUE {
            Some(RefuseReason::AcceptQueueFull)
        } else if load.all >= self.config.half_open {
            Some(RefuseReason::TooManyHandshakes)
        } else if load.source >= self.config.half_open_per_source || load.relay >= self.config.half_open_per_relay {
            Some(RefuseReason::TooManyFromSource)
        } else {
            None
        }
    }

    /// Counts the handshakes under way; a walk over at most `half_open` entries, once per new connection.
    fn load(&self, source: Source) -> Load {
        let mut load = Load { all: self.half_open.len(), source: 0, relay: 0 };
        for handshake in self.half_open.values() {
            load.source += usize::from(handshake.source == source);
            load.relay += usize::from(source.relay().is_some() && handshake.source.relay() == source.relay());
        }
        load
    }

    fn forget_overdue(&mut self, now: Instant) {
        while let Some(oldest) = self.half_open.first_entry() {
            if now.since(oldest.get().began) < HANDSHAKE_TOTAL {
                break;
            }
            oldest.remove();
            self.counters.overdue += 1;
        }
    }
}

/// Names a handshake that [`Gate::admit`] has accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HandshakeId(u64);

/// What is to be done with a stranger's first packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
// Exhaustive: the caller must do something with each of the four.
pub enum Verdict {
    /// Begin the handshake, and report its end under this id.
    Accept(HandshakeId),
    /// Answer with a Retry packet (RFC 9000 §8.1.2).
    Retry,
    /// Answer with CONNECTION_REFUSED.
    Refuse(RefuseReason),
    /// Answer nothing.
    Drop(DropReason),
}

/// Why a stranger is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum RefuseReason {
    /// [`ACCEPT_QUEUE`] finished handshakes wait already.
    AcceptQueueFull,
    /// As many handshakes as allowed are under way.
    TooManyHandshakes,
    /// As many handshakes as one source, or one relay, may have are under way.
    TooManyFromSource,
}

/// Why a stranger's datagram is dropped without an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum DropReason {
    /// The datagram is smaller than [`MIN_INITIAL`].
    Undersized,
    /// The source has used up its Initial datagrams.
    SourceBudget,
    /// All answers of this second to unproven sources are used up.
    AnswerBudget,
}

/// What a [`Gate`] has decided so far, in datagrams or handshakes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct GateCounters {
    /// Handshakes that were let in.
    pub accepted: u64,
    /// Sources that were asked to prove themselves.
    pub retried: u64,
    /// Sources that were refused.
    pub refused: u64,
    /// Handshakes that have succeeded.
    pub done: u64,
    /// Handshakes that have failed.
    pub failed: u64,
    /// Handshakes whose end was never reported.
    pub overdue: u64,
    /// Datagrams dropped as [`DropReason::Undersized`].
    pub undersized: u64,
    /// Datagrams dropped as [`DropReason::SourceBudget`].
    pub over_source_budget: u64,
    /// Datagrams dropped as [`DropReason::AnswerBudget`].
    pub over_answer_budget: u64,
}

#[derive(Debug)]
struct Handshake {
    source: Source,
    began: Instant,
}

/// Handshakes under way: all, from one source, through its relay.
struct Load {
    all: usize,
    source: usize,
    relay: usize,
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use proptest::prelude::*;

    use super::*;
    use crate::wire::relay_data::AllocId;

    #[test]
    fn an_initial_below_1200_bytes_is_dropped() {
        let mut gate = gate();
        assert_eq!(gate.initial(v4(1), 1_199, at(0)), Err(DropReason::Undersized));
        assert_eq!(gate.initial(v4(1), 1_200, at(0)), Ok(()));
        assert_eq!(gate.counters().undersized, 1);
    }

    #[test]
    fn a_source_that_uses_up_its_initials_waits_and_others_do_not() {
        let mut gate = gate();
        let passed = (0..1_000).filter(|_| gate.initial(v4(1), 1_200, at(0)).is_ok()).count();
        assert_eq!(passed, INITIAL_BURST as usize);
        assert_eq!(gate.initial(v4(1), 1_200, at(0)), Err(DropReason::SourceBudget));
        assert_eq!(gate.initial(v4(2), 1_200, at(0)), Ok(()));
        let later = (0..1_000).filter(|_| gate.initial(v4(1), 1_200, at(1_000)).is_ok()).count();
        assert_eq!(later, INITIAL_RATE as usize);
    }

    #[test]
    fn quiet_times_need_no_retry() {
        let mut gate = gate();
        assert!(matches!(gate.admit(v4(1), false, at(0)), Verdict::Accept(_)));
    }

    #[test]
    fn above_64_handshakes_an_unproven_source_must_prove_itself() {
        let mut gate = gate();
        fill(&mut gate, RETRY_ABOVE);
        assert_eq!(gate.admit(v4(9_000), false, at(0)), Verdict::Retry);
        assert!(matches!(gate.admit(v4(9_000), true, at(0)), Verdict::Accept(_)));
    }

    #[test]
    fn a_full_gate_refuses_the_proven_and_lets_the_unproven_prove_themselves() {
        let mut gate = gate();
        fill(&mut gate, HALF_OPEN);
        assert_eq!(gate.admit(v4(9_000), true, at(0)), Verdict::Refuse(RefuseReason::TooManyHandshakes));
        assert_eq!(gate.admit(v4(9_000), false, at(0)), Verdict::Retry);
        assert_eq!(gate.half_open(), HALF_OPEN);
    }

    #[test]
    fn a_forger_cannot_fill_the_share_of_another_address() {
        let mut gate = gate();
        let forged = (0..1_000).filter(|_| accepted(gate.admit(v4(1), false, at(0)))).count();
        assert_eq!(forged, RETRY_ABOVE_PER_SOURCE);
        assert!(accepted(gate.admit(v4(1), true, at(0))));
    }

    #[test]
    fn one_proven_source_cannot_fill_the_gate() {
        let mut gate = gate();
        let own = (0..1_000).filter(|_| accepted(gate.admit(v4(1), true, at(0)))).count();
        assert_eq!(own, HALF_OPEN_PER_SOURCE);
        assert_eq!(gate.admit(v4(1), true, at(0)), Verdict::Refuse(RefuseReason::TooManyFromSource));
        assert!(accepted(gate.admit(v4(2), true, at(0))));
    }

    #[test]
    fn one_relay_with_many_allocations_cannot_fill_the_gate() {
        let mut gate = gate();
        let relayed = |n| Source::relayed((Ipv4Addr::new(192, 0, 2, 1), 443).into(), AllocId(n));
        let own = (0..1_000).filter(|n| accepted(gate.admit(relayed(*n), true, at(0)))).count();
        assert_eq!(own, HALF_OPEN_PER_RELAY);
        assert!(accepted(gate.admit(v4(2), true, at(0))));
    }

    #[test]
    fn a_full_accept_queue_refuses_everyone() {
        let mut gate = gate();
        gate.set_accept_queue(ACCEPT_QUEUE);
        assert_eq!(gate.admit(v4(1), false, at(0)), Verdict::Refuse(RefuseReason::AcceptQueueFull));
        assert_eq!(gate.admit(v4(1), true, at(0)), Verdict::Refuse(RefuseReason::AcceptQueueFull));
        gate.set_accept_queue(ACCEPT_QUEUE - 1);
        assert!(accepted(gate.admit(v4(1), false, at(0))));
    }

    #[test]
    fn answers_to_forged_sources_are_limited_a_second() {
        let mut gate = gate();
        fill(&mut gate, HALF_OPEN);
        let answers = (0..5_000).filter(|n| gate.admit(v4(10_000 + n), false, at(0)) == Verdict::Retry).count();
        assert_eq!(answers as u64, ANSWER_RATE);
        assert_eq!(gate.admit(v4(1), false, at(0)), Verdict::Drop(DropReason::AnswerBudget));
        assert_eq!(gate.counters().over_answer_budget, 4_001);
    }

    #[test]
    fn done_and_failed_handshakes_make_room_once() {
        let mut gate = gate();
        let Verdict::Accept(first) = gate.admit(v4(1), false, at(0)) else { panic!("refused") };
        let Verdict::Accept(second) = gate.admit(v4(1), false, at(0)) else { panic!("refused") };
        gate.handshake_done(first);
        gate.handshake_failed(first);
        assert_eq!(gate.half_open(), 1);
        gate.handshake_failed(second);
        assert_eq!(gate.half_open(), 0);
        assert_eq!((gate.counters().done, gate.counters().failed), (1, 1));
    }

    #[test]
    fn a_handshake_whose_end_is_never_reported_is_forgotten() {
        let mut gate = gate();
        fill(&mut gate, HALF_OPEN);
        assert!(accepted(gate.admit(v4(9_000), true, at(10_000))));
        assert_eq!(gate.half_open(), 1);
        assert_eq!(gate.counters().overdue, HALF_OPEN as u64);
    }

    proptest! {
        #[test]
        fn the_limits_hold_whatever_happens(steps in prop::collection::vec((0u8..4, 0u32..40, any::<bool>()), 0..2_000)) {
            let mut gate = gate();
            let mut open = std::vec::Vec::new();
            let mut now = at(0);
            for (what, n, flag) in steps {
                match what {
                    0 | 1 => {
                        let source = if flag {
                            v4(n)
                        } else {
                            Source::relayed((Ipv4Addr::LOCALHOST, 1).into(), AllocId(n.into()))
                        };
                        if let Verdict::Accept(id) = gate.admit(source, n % 3 != 0, now) {
                            open.push(id);
                        }
                    }
                    2 if flag => now += Duration::from_millis(n.into()),
                    2 => gate.set_accept_queue(n as usize),
                    _ => {
                        if let Some(id) = open.pop() {
                            gate.handshake_failed(id);
                        }
                    }
                }
                prop_assert!(gate.half_open() <= HALF_OPEN);
                let load = gate.load(v4(n));
                prop_assert!(load.source <= HALF_OPEN_PER_SOURCE);
            }
        }
    }

    fn gate() -> Gate {
        Gate::new(GateConfig::default(), [7; 32])
    }

    fn fill(gate: &mut Gate, handshakes: usize) {
        for n in 0..handshakes {
            assert!(accepted(gate.admit(v4(n as u32), true, at(0))));
        }
    }

    fn accepted(verdict: Verdict) -> bool {
        matches!(verdict, Verdict::Accept(_))
    }

    fn v4(n: u32) -> Source {
        Source::of((Ipv4Addr::from_bits(0x0b00_0000 + n), 4_242).into())
    }

    fn at(ms: u64) -> Instant {
        Instant::after_start(Duration::from_millis(ms))
    }
}
