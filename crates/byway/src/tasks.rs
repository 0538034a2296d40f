//! Every task of a node, so that closing the node can wait for all of them.

use std::{
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    task::{AbortHandle, JoinSet},
    time,
};

use crate::watched::Watched;

/// The tasks of one node.
#[derive(Debug, Clone)]
pub(crate) struct Tasks {
    set: Arc<Mutex<JoinSet<()>>>,
    /// QUIC's own tasks. The endpoint's ends with its last handle only, which the node keeps: it is never waited for.
    drivers: Arc<Mutex<JoinSet<()>>>,
    stop: Arc<Watched<bool>>,
}

impl Tasks {
    pub(crate) fn new() -> Self {
        Tasks { set: Arc::default(), drivers: Arc::default(), stop: Arc::default() }
    }

    /// Runs `future` until it ends or the node's tasks are aborted.
    pub(crate) fn spawn(&self, future: impl Future<Output = ()> + Send + 'static) {
        self.spawn_abortable(future);
    }

    /// As [`spawn`](Self::spawn); what ends the task earlier, unless the node stops and it was not begun.
    pub(crate) fn spawn_abortable(&self, future: impl Future<Output = ()> + Send + 'static) -> Option<AbortHandle> {
        let mut set = lock(&self.set);
        let stopped = *self.stop.read();
        (!stopped).then(|| set.spawn(future))
    }

    /// Runs `future` even while stopping: the QUIC endpoint still says goodbye then.
    pub(crate) fn spawn_driver(&self, future: impl Future<Output = ()> + Send + 'static) {
        lock(&self.drivers).spawn(future);
    }

    /// Tells all tasks to stop.
    pub(crate) fn stop(&self) {
        self.stop.set(true);
    }

    /// Waits until the tasks were told to stop.
    pub(crate) async fn stopped(&self) {
        self.stop.wait(|stop| stop.then_some(())).await;
    }

    /// Waits for all tasks to end, at most for `deadline`, then aborts the rest and QUIC's own.
    pub(crate) async fn join(&self, deadline: Duration) {
        let mut set = std::mem::take(&mut *lock(&self.set));
        if time::timeout(deadline, async { while set.join_next().await.is_some() {} }).await.is_err() {
            set.shutdown().await;
        }
        let mut drivers = std::mem::take(&mut *lock(&self.drivers));
        drivers.shutdown().await;
    }
}

/// The set, without what has ended, which needs no place in it.
fn lock(set: &Mutex<JoinSet<()>>) -> MutexGuard<'_, JoinSet<()>> {
    let mut set = set.lock().unwrap_or_else(PoisonError::into_inner);
    while let Some(ended) = set.try_join_next() {
        if let Err(error) = ended
            && error.is_panic()
        {
            tracing::error!(%error, "a task of the node panicked, which is a bug; please report it");
        }
    }
    set
}
