//! What the loop of a task waits for, made once and not anew at each turn: most turns have to do with none of it.

use std::{
    future::poll_fn,
    pin::Pin,
    task::{Poll, ready},
};

use futures_util::{
    StreamExt,
    stream::{self, BoxStream, SelectAll},
};
use tokio::time::{self, Instant, Sleep};

/// A time that is set anew at each turn, and mostly to the same.
pub(crate) struct Alarm {
    sleep: Pin<Box<Sleep>>,
    /// `None` if it rings no more.
    at: Option<Instant>,
}

impl Alarm {
    pub(crate) fn new() -> Self {
        Alarm { sleep: Box::pin(time::sleep_until(Instant::now())), at: None }
    }

    pub(crate) fn set(&mut self, at: Option<Instant>) {
        if let Some(at) = at.filter(|_| self.at != at) {
            self.sleep.as_mut().reset(at);
        }
        self.at = at;
    }

    /// Waits for the time, once for each time that is set; for ever if there is none.
    pub(crate) async fn rings(&mut self) {
        poll_fn(|cx| {
            if self.at.is_none() {
                return Poll::Pending;
            }
            ready!(self.sleep.as_mut().poll(cx));
            self.at = None;
            Poll::Ready(())
        })
        .await;
    }
}

/// Events that seldom happen; as long as none does, looking for them costs next to nothing.
pub(crate) struct Seldom<'a, E>(SelectAll<BoxStream<'a, E>>);

impl<'a, E: Copy + Send + 'a> Seldom<'a, E> {
    pub(crate) fn new() -> Self {
        Seldom(SelectAll::new())
    }

    /// Says `event` each time that what `wait` begins has ended. It is begun anew before the event is told, so that nothing is missed
    /// between two.
    pub(crate) fn add<W>(&mut self, wait: impl Fn() -> W + Send + 'a, event: E)
    where
        W: Future<Output = ()> + Send + 'a,
    {
        let waits = stream::unfold((wait(), wait), move |(waiting, wait)| async move {
            waiting.await;
            Some((event, (wait(), wait)))
        });
        self.0.push(waits.boxed());
    }

    /// The next event; `None` if there is nothing to wait for.
    pub(crate) async fn next(&mut self) -> Option<E> {
        self.0.next().await
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicUsize, Ordering},
        time::Duration,
    };

    use tokio::sync::Notify;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn an_alarm_rings_at_the_time_that_was_set_last_and_once() {
        let mut alarm = Alarm::new();
        let start = Instant::now();
        alarm.set(Some(start + 5 * SECOND));
        assert!(time::timeout(SECOND, alarm.rings()).await.is_err());
        alarm.set(Some(start + 3 * SECOND));
        alarm.set(Some(start + 3 * SECOND));
        alarm.rings().await;
        assert_eq!(start.elapsed(), 3 * SECOND);
        assert!(time::timeout(9 * SECOND, alarm.rings()).await.is_err(), "the time that was set before counts no more");
        alarm.set(Some(start + 3 * SECOND));
        time::timeout(Duration::ZERO, alarm.rings()).await.expect("that time has passed");
        alarm.set(Some(start + 20 * SECOND));
        alarm.set(None);
        assert!(time::timeout(30 * SECOND, alarm.rings()).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn what_seldom_happens_is_told_each_time() {
        let (notify, begun) = (Notify::new(), AtomicUsize::new(0));
        let mut seldom = Seldom::new();
        assert_eq!(seldom.next().await, None);
        seldom.add(|| time::sleep(2 * SECOND), "time");
        seldom.add(
            || {
                begun.fetch_add(1, Ordering::Relaxed);
                notify.notified()
            },
            "word",
        );
        assert!(time::timeout(SECOND, seldom.next()).await.is_err());
        notify.notify_one();
        assert_eq!(seldom.next().await, Some("word"));
        assert_eq!(begun.load(Ordering::Relaxed), 2, "waiting for the next word begins before this one is told");
        assert_eq!(seldom.next().await, Some("time"));
        notify.notify_one();
        assert_eq!(seldom.next().await, Some("word"));
        assert_eq!(seldom.next().await, Some("time"));
    }
}
