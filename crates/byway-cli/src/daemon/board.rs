//! What is going on, for `status` to read: whoever does something puts it up and takes it down at the end.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// Things going on, in the order in which they began; bounded by what puts them up.
#[derive(Debug)]
pub(super) struct Board<T>(Arc<Mutex<BTreeMap<u64, T>>>);

/// One thing on a [`Board`] while it goes on.
#[derive(Debug)]
pub(super) struct Entry<T> {
    board: Board<T>,
    number: u64,
}

impl<T> Default for Board<T> {
    fn default() -> Self {
        Board(Arc::default())
    }
}

impl<T: Clone> Board<T> {
    /// Puts something up until the entry is dropped.
    pub(super) fn put(&self, thing: T) -> Entry<T> {
        let mut things = self.lock();
        let number = things.last_key_value().map_or(0, |(last, _)| last + 1);
        things.insert(number, thing);
        Entry { board: Board(Arc::clone(&self.0)), number }
    }

    /// All that is going on.
    pub(super) fn read(&self) -> Vec<T> {
        self.lock().values().cloned().collect()
    }
}

impl<T> Board<T> {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Entry<T> {
    /// Changes what the board says.
    pub(super) fn update(&self, change: impl FnOnce(&mut T)) {
        if let Some(thing) = self.board.lock().get_mut(&self.number) {
            change(thing);
        }
    }
}

impl<T> Drop for Entry<T> {
    fn drop(&mut self) {
        self.board.lock().remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_ended_is_not_on_the_board() {
        let board = Board::default();
        let first = board.put("first");
        let second = board.put("second");
        second.update(|text| *text = "changed");
        assert_eq!(board.read(), ["first", "changed"]);
        drop(first);
        assert_eq!(board.read(), ["changed"]);
        let third = board.put("third");
        drop(second);
        assert_eq!(board.read(), ["third"]);
        drop(third);
        assert!(board.read().is_empty());
    }
}
