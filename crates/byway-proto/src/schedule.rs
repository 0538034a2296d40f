//! What is sent next: the order among a link's channels, and the token bucket of every rate.
//!
//! Classes are strict: control before interactive before bulk. Inside a class the ready channels take turns by weighted
//! deficit round robin (Shreedhar and Varghese, 1995), counted in rounds: in one round each channel may send
//! [`QUANTUM`] bytes times its weight. Writing a message past its turn is allowed and paid back in later rounds.

mod bucket;

use alloc::collections::{BTreeMap, VecDeque};

pub use bucket::{Bucket, LEAST_BURST, Rate, RateError, SMALL_BURST};
use thiserror::Error;

/// Bytes that a channel of weight 1 may send in one round: a few packets, so that a round of many channels stays short.
pub const QUANTUM: u32 = 4_096;

/// The largest weight that counts; a turn is then 1 MiB, about 80 ms at 100 Mbit/s, which is what the others wait.
pub const MAX_WEIGHT: u16 = 256;

/// Channels in one schedule: 64 protocols of 64 channels each, more than a link announces.
pub const MAX_CHANNELS: usize = 4_096;

/// How urgent a channel is; a class is served only while no better one is ready.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
// Exhaustive: three strict classes are the design, and every match must order them.
pub enum Class {
    /// Small and rare: what keeps a link and its protocols alive.
    Control,
    /// Small messages that someone waits for.
    Interactive,
    /// Everything else.
    #[default]
    Bulk,
}

/// A channel's class and its weight inside the class.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    /// The strict class.
    pub class: Class,
    /// The share among ready channels of the same class; 0 counts as 1, more than [`MAX_WEIGHT`] as that.
    pub weight: u16,
}

/// Names a channel on a link: the protocol's number and the channel's number inside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChannelKey(pub u32, pub u32);

/// Why a channel was not added.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum AddError {
    /// The schedule holds [`MAX_CHANNELS`] already.
    #[error("this link has {MAX_CHANNELS} channels already: register fewer channels")]
    TooManyChannels,
}

/// The order in which the ready channels of one link send.
#[derive(Debug, Default)]
pub struct Schedule {
    channels: BTreeMap<ChannelKey, Turn>,
    control: Ring,
    interactive: Ring,
    bulk: Ring,
}

impl Schedule {
    /// A schedule without channels.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a channel that has nothing to send yet, or changes the share of one that is there.
    pub fn add(&mut self, key: ChannelKey, share: Share) -> Result<(), AddError> {
        if !self.channels.contains_key(&key) && self.channels.len() >= MAX_CHANNELS {
            return Err(AddError::TooManyChannels);
        }
        let was_ready = self.remove(key);
        let round = self.ring(share.class).round;
        let grant = i64::from(QUANTUM) * i64::from(share.weight.clamp(1, MAX_WEIGHT));
        self.channels.insert(key, Turn { class: share.class, grant, left: grant, round, ready: false });
        if was_ready {
            self.ready(key);
        }
        Ok(())
    }

    /// Forgets a channel; says whether it was ready.
    pub fn remove(&mut self, key: ChannelKey) -> bool {
        let Some(turn) = self.channels.remove(&key) else {
            return false;
        };
        if turn.ready {
            self.ring(turn.class).leave(key);
        }
        turn.ready
    }

    /// Says that the channel has something to send; repeating it changes nothing.
    pub fn ready(&mut self, key: ChannelKey) {
        let Some(turn) = self.channels.get_mut(&key) else {
            return;
        };
        if turn.ready {
            return;
        }
        turn.ready = true;
        let class = turn.class;
        self.ring(class).queue.push_back(key);
    }

    /// The channel whose turn it is, over all classes, and how many bytes (at least 1) it may send.
    ///
    /// The answer stays the same until [`Schedule::spent`] is told of it or a better class becomes ready.
    #[expect(
        clippy::should_implement_trait,
        reason = "it is a question, not an iterator: asking twice gives one answer"
    )]
    pub fn next(&mut self) -> Option<(ChannelKey, usize)> {
        [Class::Control, Class::Interactive, Class::Bulk].into_iter().find_map(|class| self.next_of(class))
    }

    /// The channel whose turn it is inside one class, and how many bytes (at least 1) it may send.
    pub fn next_of(&mut self, class: Class) -> Option<(ChannelKey, usize)> {
        for _ in 0..self.ring(class).queue.len() {
            let key = *self.ring(class).queue.front()?;
            let left = self.left(key)?;
            if left > 0 {
                return Some((key, usize::try_from(left).unwrap_or(usize::MAX)));
            }
            self.ring(class).queue.rotate_left(1);
        }
        // Everyone ready has had its turn: go on to the first round in which someone may send again.
        let turns = self.ring_ref(class).queue.iter().filter_map(|key| self.channels.get(key));
        let skip = turns.map(Turn::rounds_of_debt).min()?;
        let round = self.ring(class).round.saturating_add(skip);
        self.ring(class).round = round;
        let ring = self.ring_ref(class);
        let at = ring.queue.iter().position(|key| self.channels.get(key).is_some_and(|t| t.left_at(ring.round) > 0))?;
        self.ring(class).queue.rotate_left(at);
        let key = *self.ring(class).queue.front()?;
        Some((key, usize::try_from(self.left(key)?).unwrap_or(usize::MAX)))
    }

    /// Says how many bytes the channel has sent, more or less than its turn, and whether it has more.
    pub fn spent(&mut self, key: ChannelKey, bytes: usize, still_ready: bool) {
        if self.left(key).is_none() {
            return;
        }
        let Some(turn) = self.channels.get_mut(&key) else {
            return;
        };
        turn.left = turn.left.saturating_sub(i64::try_from(bytes).unwrap_or(i64::MAX));
        if turn.ready && !still_ready {
            turn.ready = false;
            let class = turn.class;
            self.ring(class).leave(key);
        } else if still_ready {
            self.ready(key);
        }
    }

    /// Brings the channel's turn up to the present round and says what is left of it.
    fn left(&mut self, key: ChannelKey) -> Option<i64> {
        let class = self.channels.get(&key)?.class;
        let round = self.ring(class).round;
        let turn = self.channels.get_mut(&key)?;
        turn.left = turn.left_at(round);
        turn.round = round;
        Some(turn.left)
    }

    fn ring(&mut self, class: Class) -> &mut Ring {
        match class {
            Class::Control => &mut self.control,
            Class::Interactive => &mut self.interactive,
            Class::Bulk => &mut self.bulk,
        }
    }

    fn ring_ref(&self, class: Class) -> &Ring {
        match class {
            Class::Control => &self.control,
            Class::Interactive => &self.interactive,
            Class::Bulk => &self.bulk,
        }
    }
}

/// The ready channels of one class, in the order of their turns.
#[derive(Debug, Default)]
struct Ring {
    queue: VecDeque<ChannelKey>,
    round: u64,
}

impl Ring {
    fn leave(&mut self, key: ChannelKey) {
        if self.queue.front() == Some(&key) {
            self.queue.pop_front();
        } else {
            self.queue.retain(|k| *k != key);
        }
    }
}

/// What a channel may still send.
#[derive(Debug)]
struct Turn {
    class: Class,
    /// Bytes gained a round.
    grant: i64,
    /// Bytes left in `round`; negative when it has sent ahead.
    left: i64,
    round: u64,
    ready: bool,
}

impl Turn {
    /// An idle channel pays back its debt but saves nothing: it starts with one round's grant at most.
    fn left_at(&self, round: u64) -> i64 {
        let rounds = i64::try_from(round.saturating_sub(self.round)).unwrap_or(i64::MAX);
        self.left.saturating_add(self.grant.saturating_mul(rounds)).min(self.grant)
    }

    /// After how many rounds the channel may send again: at least 1.
    fn rounds_of_debt(&self) -> u64 {
        self.left.min(0).unsigned_abs() / self.grant.unsigned_abs().max(1) + 1
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    const A: ChannelKey = ChannelKey(1, 1);
    const B: ChannelKey = ChannelKey(1, 2);
    const C: ChannelKey = ChannelKey(2, 1);

    #[test]
    fn an_idle_schedule_has_nothing_next() {
        let mut schedule = Schedule::new();
        assert_eq!(schedule.next(), None);
        schedule.add(A, bulk(1)).unwrap();
        assert_eq!(schedule.next(), None);
        schedule.ready(B); // never added
        assert_eq!(schedule.next(), None);
    }

    #[test]
    fn weights_one_two_seven_share_as_one_two_seven() {
        for size in [100, 1_200, 5_000, 100_000] {
            let mut schedule = schedule_of(&[(A, bulk(1)), (B, bulk(2)), (C, bulk(7))]);
            let sent = serve(&mut schedule, size, 40_000_000);
            for (key, share) in [(A, 0.1), (B, 0.2), (C, 0.7)] {
                let got = sent[&key] as f64 / 40_000_000.0;
                assert!((got - share).abs() < 0.01, "{key:?} got {got} at message size {size}");
            }
        }
    }

    #[test]
    fn control_is_served_before_bulk_and_interactive_between() {
        let mut schedule = schedule_of(&[(A, bulk(256))]);
        schedule.add(B, Share { class: Class::Interactive, weight: 1 }).unwrap();
        schedule.add(C, Share { class: Class::Control, weight: 1 }).unwrap();
        assert_eq!(schedule.next().unwrap().0, A);
        schedule.ready(B);
        assert_eq!(schedule.next().unwrap().0, B);
        schedule.ready(C);
        assert_eq!(schedule.next().unwrap().0, C);
        assert_eq!(schedule.next_of(Class::Bulk).unwrap().0, A);
        schedule.spent(C, 10, false);
        schedule.spent(B, 10, false);
        assert_eq!(schedule.next().unwrap().0, A);
    }

    #[test]
    fn a_channel_keeps_its_turn_until_it_is_spent() {
        let mut schedule = schedule_of(&[(A, bulk(1)), (B, bulk(1))]);
        assert_eq!(schedule.next(), Some((A, QUANTUM as usize)));
        schedule.spent(A, 1_000, true);
        assert_eq!(schedule.next(), Some((A, QUANTUM as usize - 1_000)));
        schedule.spent(A, QUANTUM as usize, true);
        assert_eq!(schedule.next(), Some((B, QUANTUM as usize)));
    }

    #[test]
    fn going_idle_and_ready_again_gains_nothing() {
        let mut schedule = schedule_of(&[(A, bulk(1)), (B, bulk(1))]);
        let mut sent = BTreeMap::from([(A, 0u32), (B, 0)]);
        for _ in 0..100_000 {
            let (key, _) = schedule.next().unwrap();
            *sent.get_mut(&key).unwrap() += 1_000;
            schedule.spent(key, 1_000, key == B);
            schedule.ready(A);
        }
        assert!(sent[&A].abs_diff(sent[&B]) < 20_000, "{sent:?}");
    }

    #[test]
    fn a_newly_ready_channel_waits_for_one_turn_at_most() {
        let mut schedule = schedule_of(&[(A, bulk(1))]);
        serve(&mut schedule, 1_200, 10_000_000);
        schedule.add(B, bulk(1)).unwrap();
        schedule.ready(B);
        let mut before_b = 0;
        while schedule.next().unwrap().0 == A {
            schedule.spent(A, 1_200, true);
            before_b += 1_200;
        }
        assert!(before_b <= QUANTUM + 1_200);
    }

    #[test]
    fn a_channel_that_was_idle_for_long_has_one_turn_as_any_other() {
        let mut schedule = schedule_of(&[(A, bulk(1)), (B, bulk(1))]);
        schedule.spent(A, 0, false);
        serve(&mut schedule, 1_200, 10_000_000);
        schedule.ready(A);
        let turn = loop {
            match schedule.next().unwrap() {
                (A, turn) => break turn,
                (key, turn) => schedule.spent(key, turn, true),
            }
        };
        assert!(turn <= QUANTUM as usize, "{turn}");
    }

    #[test]
    fn a_debt_of_gigabytes_is_paid_back_without_a_long_loop() {
        let mut schedule = schedule_of(&[(A, bulk(1)), (B, bulk(1))]);
        schedule.next();
        schedule.spent(A, 1 << 40, true);
        assert_eq!(schedule.next().unwrap().0, B);
        schedule.spent(B, 1 << 41, true);
        assert_eq!(schedule.next().unwrap().0, A);
    }

    #[test]
    fn a_removed_channel_is_never_next() {
        let mut schedule = schedule_of(&[(A, bulk(1)), (B, bulk(1))]);
        assert!(schedule.remove(A));
        assert!(!schedule.remove(A));
        schedule.spent(A, 10, true);
        schedule.ready(A);
        assert_eq!(serve(&mut schedule, 1_000, 10_000).get(&A), None);
    }

    #[test]
    fn a_changed_share_counts_from_then_on() {
        let mut schedule = schedule_of(&[(A, bulk(1)), (B, bulk(1))]);
        schedule.add(A, bulk(3)).unwrap();
        let sent = serve(&mut schedule, 1_000, 4_000_000);
        assert!(sent[&A].abs_diff(3_000_000) < 30_000, "{sent:?}");
    }

    #[test]
    fn channels_past_the_cap_are_refused() {
        let mut schedule = Schedule::new();
        for n in 0..MAX_CHANNELS as u32 {
            schedule.add(ChannelKey(0, n), bulk(1)).unwrap();
        }
        assert_eq!(schedule.add(A, bulk(1)), Err(AddError::TooManyChannels));
        assert_eq!(schedule.add(ChannelKey(0, 7), bulk(2)), Ok(()));
    }

    #[derive(Debug, Clone)]
    enum Step {
        Add(u32, u16, u8),
        Remove(u32),
        Ready(u32),
        Serve(usize, bool),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0u32..6, any::<u16>(), 0u8..3).prop_map(|(k, w, c)| Step::Add(k, w, c)),
            (0u32..6).prop_map(Step::Remove),
            (0u32..6).prop_map(Step::Ready),
            (prop_oneof![0usize..10_000, any::<usize>()], any::<bool>()).prop_map(|(n, r)| Step::Serve(n, r)),
        ]
    }

    proptest! {
        #[test]
        fn something_is_next_exactly_while_something_is_ready(steps in prop::collection::vec(step(), 0..200)) {
            let mut schedule = Schedule::new();
            let mut model = BTreeMap::<ChannelKey, (Class, bool)>::new();
            for step in steps {
                match step {
                    Step::Add(k, weight, c) => {
                        let key = ChannelKey(0, k);
                        let class = [Class::Control, Class::Interactive, Class::Bulk][c as usize];
                        schedule.add(key, Share { class, weight }).unwrap();
                        let ready = model.get(&key).is_some_and(|m| m.1);
                        model.insert(key, (class, ready));
                    }
                    Step::Remove(k) => {
                        let was = model.remove(&ChannelKey(0, k)).is_some_and(|m| m.1);
                        prop_assert_eq!(schedule.remove(ChannelKey(0, k)), was);
                    }
                    Step::Ready(k) => {
                        schedule.ready(ChannelKey(0, k));
                        if let Some(m) = model.get_mut(&ChannelKey(0, k)) {
                            m.1 = true;
                        }
                    }
                    Step::Serve(bytes, still) => {
                        let best = model.values().filter(|m| m.1).map(|m| m.0).min();
                        let next = schedule.next();
                        prop_assert_eq!(next.map(|(key, _)| model[&key]), best.map(|class| (class, true)));
                        if let Some((key, quantum)) = next {
                            prop_assert!(quantum > 0);
                            schedule.spent(key, bytes, still);
                            model.get_mut(&key).unwrap().1 = still;
                        }
                    }
                }
            }
        }

        #[test]
        fn shares_follow_weights_at_any_message_size(
            weights in prop::collection::vec(1u16..20, 2..6), size in 1usize..20_000,
        ) {
            let channels: Vec<_> =
                weights.iter().enumerate().map(|(i, w)| (ChannelKey(0, i as u32), bulk(*w))).collect();
            let total: usize = weights.iter().map(|w| usize::from(*w)).sum();
            let rounds = 50 * (1 + size / QUANTUM as usize);
            let goal = rounds * total * QUANTUM as usize;
            let sent = serve(&mut schedule_of(&channels), size, goal);
            for (key, share) in channels {
                let fair = goal * usize::from(share.weight) / total;
                let slack = size + 2 * QUANTUM as usize * usize::from(share.weight) + fair / 20;
                prop_assert!(sent.get(&key).copied().unwrap_or(0).abs_diff(fair) <= slack, "{:?} of {}", sent, goal);
            }
        }
    }

    fn bulk(weight: u16) -> Share {
        Share { class: Class::Bulk, weight }
    }

    fn schedule_of(channels: &[(ChannelKey, Share)]) -> Schedule {
        let mut schedule = Schedule::new();
        for (key, share) in channels {
            schedule.add(*key, *share).unwrap();
        }
        for (key, _) in channels {
            schedule.ready(*key);
        }
        schedule
    }

    /// Serves messages of one size until `total` bytes are sent; every channel always has more.
    fn serve(schedule: &mut Schedule, size: usize, total: usize) -> BTreeMap<ChannelKey, usize> {
        let mut sent = BTreeMap::new();
        let mut sum = 0;
        while sum < total {
            let (key, quantum) = schedule.next().unwrap();
            let bytes = quantum.div_ceil(size) * size;
            *sent.entry(key).or_insert(0) += bytes;
            sum += bytes;
            schedule.spent(key, bytes, true);
        }
        sent
    }
}
