//! Our STUN questions that may still be answered: nothing else that looks like STUN reaches the agent.

use std::{collections::VecDeque, time::Duration};

use byway_proto::Instant;

/// Questions that are remembered: those of two surveys and a hundred punches. One more takes the place of the oldest.
const MAX_QUESTIONS: usize = 256;

/// How long an answer is waited for.
const WAIT: Duration = Duration::from_secs(10);

/// Datagrams taken for each time that a question is sent: its answer, a second one by a network that doubles packets, and
/// the question itself, come back by a hairpin.
const ANSWERS: u8 = 3;

/// The transaction ids under way, in the order in which they expire.
///
/// An id has 96 random bits (RFC 8489 §5), so that who does not see our packets cannot use up what an answer needs.
#[derive(Debug, Default)]
pub(super) struct Questions(VecDeque<Question>);

#[derive(Debug)]
struct Question {
    txid: [u8; 12],
    until: Instant,
    answers: u8,
}

impl Questions {
    /// Remembers that `txid` is asked now, for the first time or again.
    pub(super) fn asked(&mut self, txid: [u8; 12], now: Instant) {
        self.0.retain(|question| question.txid != txid && now < question.until);
        if self.0.len() == MAX_QUESTIONS {
            self.0.pop_front();
        }
        self.0.push_back(Question { txid, until: now + WAIT, answers: ANSWERS });
    }

    /// Whether a message of this transaction may be an answer; that counts as one.
    pub(super) fn take(&mut self, txid: &[u8; 12], now: Instant) -> bool {
        let question = self.0.iter_mut().find(|question| question.txid == *txid && now < question.until);
        question.is_some_and(|question| {
            let taken = question.answers > 0;
            question.answers = question.answers.saturating_sub(1);
            taken
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Instant = Instant::START;

    #[test]
    fn only_what_was_asked_is_taken_and_that_a_few_times() {
        let mut questions = Questions::default();
        questions.asked([1; 12], START);
        assert!(!questions.take(&[2; 12], START));
        assert_eq!((0..5).filter(|_| questions.take(&[1; 12], START)).count(), usize::from(ANSWERS));
        questions.asked([1; 12], START);
        assert!(questions.take(&[1; 12], START), "who asks again may be answered again");
        assert!(!questions.take(&[1; 12], START + WAIT), "not for ever");
    }

    #[test]
    fn the_oldest_question_makes_room() {
        let mut questions = Questions::default();
        let txid = |n: usize| std::array::from_fn(|at| n.to_be_bytes().get(at).copied().unwrap_or_default());
        for n in 0..=MAX_QUESTIONS {
            questions.asked(txid(n), START);
        }
        assert_eq!(questions.0.len(), MAX_QUESTIONS);
        assert!(!questions.take(&txid(0), START));
        assert!(questions.take(&txid(1), START) && questions.take(&txid(MAX_QUESTIONS), START));
    }
}
