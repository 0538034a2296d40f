//! What happens next: events ordered by (time, order of arrival), kept in reused slots.

use std::{cmp::Reverse, collections::BinaryHeap};

use crate::time::Time;

/// Most events that wait at one time. Four million datagrams in flight are 0.5 GiB of bookkeeping; whoever reaches
/// that has a loop, and should see drops rather than a dead machine.
const MAX_EVENTS: usize = 1 << 22;

/// Events that wait for their time.
#[derive(Debug)]
pub(crate) struct Agenda<E> {
    heap: BinaryHeap<Reverse<(Time, u64, u32)>>,
    slots: Vec<Option<E>>,
    free: Vec<u32>,
    sequence: u64,
}

impl<E> Agenda<E> {
    /// An agenda without events.
    pub(crate) fn new() -> Self {
        Agenda { heap: BinaryHeap::new(), slots: Vec::new(), free: Vec::new(), sequence: 0 }
    }

    /// Whether [`MAX_EVENTS`] wait.
    pub(crate) fn is_full(&self) -> bool {
        self.heap.len() >= MAX_EVENTS
    }

    /// Adds an event; events of one moment happen in the order in which they were added.
    pub(crate) fn push(&mut self, due: Time, event: E) {
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None => {
                self.slots.push(None);
                (self.slots.len() - 1) as u32
            }
        };
        self.slots[slot as usize] = Some(event);
        self.heap.push(Reverse((due, self.sequence, slot)));
        self.sequence += 1;
    }

    /// Takes the first event that is due at `now`.
    pub(crate) fn pop_due(&mut self, now: Time) -> Option<(Time, E)> {
        if self.next_due()? > now {
            return None;
        }
        let Reverse((due, _, slot)) = self.heap.pop()?;
        self.free.push(slot);
        let event = self.slots[slot as usize].take().expect("every entry of the heap owns a filled slot");
        Some((due, event))
    }

    /// When the first event is due.
    pub(crate) fn next_due(&self) -> Option<Time> {
        self.heap.peek().map(|Reverse((due, ..))| *due)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn events_of_one_moment_keep_their_order() {
        let mut agenda = Agenda::new();
        let at = |ms| Time::after_start(Duration::from_millis(ms));
        for (due, event) in [(2, 'c'), (1, 'a'), (2, 'd'), (1, 'b')] {
            agenda.push(at(due), event);
        }
        let order: String = std::iter::from_fn(|| agenda.pop_due(at(2))).map(|(_, event)| event).collect();
        assert_eq!(order, "abcd");
    }

    #[test]
    fn slots_are_reused() {
        let mut agenda = Agenda::new();
        for n in 0..100 {
            agenda.push(Time::START, n);
            assert_eq!(agenda.pop_due(Time::START), Some((Time::START, n)));
        }
        assert_eq!(agenda.slots.len(), 1);
    }
}
