//! A value that tasks wait for.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// As tokio's `watch`, but whoever waits is woken in the order of arrival, not in a random one: a simulated run must
/// follow from its seed.
#[derive(Debug, Default)]
pub(crate) struct Watched<T> {
    value: Mutex<T>,
    changed: Notify,
}

impl<T> Watched<T> {
    pub(crate) fn new(value: T) -> Self {
        Watched { value: Mutex::new(value), changed: Notify::new() }
    }

    pub(crate) fn read(&self) -> MutexGuard<'_, T> {
        self.value.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn set(&self, value: T) {
        *self.read() = value;
        self.changed.notify_waiters();
    }

    /// Changes the value in place.
    pub(crate) fn change(&self, change: impl FnOnce(&mut T)) {
        change(&mut self.read());
        self.changed.notify_waiters();
    }

    /// Waits until `find` finds something in the value.
    pub(crate) async fn wait<R>(&self, find: impl Fn(&T) -> Option<R>) -> R {
        self.wait_to_take(|value| find(value)).await
    }

    /// Waits until `take` finds something in the value, which it may take out.
    pub(crate) async fn wait_to_take<R>(&self, mut take: impl FnMut(&mut T) -> Option<R>) -> R {
        loop {
            // Listening begins before looking, so that no change is missed between the two.
            let changed = self.changed.notified();
            if let Some(found) = take(&mut self.read()) {
                return found;
            }
            changed.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[tokio::test]
    async fn those_who_wait_are_woken_in_the_order_of_their_arrival() {
        let (watched, woken) = (Arc::new(Watched::new(false)), Arc::new(Mutex::new(Vec::new())));
        let mut waiters = tokio::task::JoinSet::new();
        for n in 0..20 {
            let (watched, woken) = (Arc::clone(&watched), Arc::clone(&woken));
            waiters.spawn(async move {
                watched.wait(|value| value.then_some(())).await;
                woken.lock().unwrap().push(n);
            });
        }
        tokio::task::yield_now().await;
        assert!(woken.lock().unwrap().is_empty());
        watched.set(true);
        waiters.join_all().await;
        assert_eq!(*woken.lock().unwrap(), (0..20).collect::<Vec<_>>());
    }
}
