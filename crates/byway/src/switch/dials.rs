//! Dials that go on without waiting for the switch's task.

use std::{collections::BTreeSet, mem};

use byway_proto::switch::{DialId, Input};
use tokio::sync::oneshot;

/// Dials that nothing has been heard against since they began, and those of them that have gone on. Both change under one
/// lock, so that the machine knows who has gone on before it hears of anything that speaks against it.
#[derive(Debug, Default)]
pub(super) struct Dials {
    /// None that is not under way: the end of any dial empties it.
    free: BTreeSet<DialId>,
    /// Of these the machine does not know yet.
    answered: Vec<DialId>,
}

impl Dials {
    pub(super) fn begin(&mut self, dial: DialId) {
        self.free.insert(dial);
    }

    /// Whether a dial that was answered goes on at once; if not, it has to ask.
    pub(super) fn goes_on(&mut self, dial: DialId) -> bool {
        let goes_on = self.free.remove(&dial);
        if goes_on {
            self.answered.push(dial);
        }
        goes_on
    }

    /// The dials that have gone on, of which the machine is to hear before `input`.
    pub(super) fn before(&mut self, input: &Input) -> Vec<DialId> {
        if !matches!(input, Input::Dial { .. } | Input::Wall(_) | Input::Timeout) {
            self.free.clear(); // it may speak against any of them
        }
        mem::take(&mut self.answered)
    }
}

/// A dial that waits for its word.
#[derive(Debug)]
pub(super) struct Asker {
    pub(super) dial: DialId,
    pub(super) reply: oneshot::Sender<bool>,
}

impl Asker {
    /// Tells who asked whether `dial` goes on, if that is the dial it asked about: the machine speaks of those that have gone
    /// on without asking first.
    pub(super) fn tell(asker: &mut Option<Asker>, dial: DialId, goes_on: bool) {
        if let Some(asker) = asker.take_if(|asker| asker.dial == dial) {
            let _ = asker.reply.send(goes_on); // the dial may have been given up
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dial_that_asks_is_not_told_the_word_on_another() {
        let (reply, mut answer) = oneshot::channel();
        let mut asker = Some(Asker { dial: DialId(1), reply });
        Asker::tell(&mut asker, DialId(2), true);
        assert!(answer.try_recv().is_err(), "dial 2 had gone on without asking");
        Asker::tell(&mut asker, DialId(1), false);
        assert_eq!(answer.try_recv(), Ok(false));
    }

    #[test]
    fn a_dial_asks_once_anything_was_heard_that_may_speak_against_it() {
        let mut dials = Dials::default();
        dials.begin(DialId(1));
        dials.begin(DialId(2));
        assert_eq!(dials.before(&Input::Timeout), []);
        assert!(dials.goes_on(DialId(1)));
        assert_eq!(dials.before(&Input::Stop), [DialId(1)], "the machine hears of it first");
        assert!(!dials.goes_on(DialId(2)));
        assert_eq!(dials.before(&Input::Timeout), []);
    }
}
