//! Keeping the book on the disk, and the owner's words about it.

use std::time::Duration;

use byway_proto::{
    UnixTime,
    book::{Book, Change, Contact, Record, Refused},
    switch::Input,
};
use tokio::{sync::oneshot, time};
use tracing::warn;

use super::{Command, Shell};
use crate::store::{Store, StoreError};

/// How long a change that nobody waits for may wait for others: what a crash may lose.
const FLUSH_EVERY: Duration = Duration::from_secs(1);

/// Rows that are handed over at once.
const MAX_ROWS: usize = 4_096;

/// How long a closing node waits for its last rows.
const LAST_ROWS: Duration = Duration::from_secs(1);

/// Why a peer was not added to the address book.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum AddPeerError {
    /// The book does not take it.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// It was not stored.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The node is closed.
    #[error("the node is closed")]
    Closed,
}

/// The store, if there is one, and when it is written to next.
pub(super) struct Keeper {
    store: Option<Store>,
    next: time::Instant,
}

impl Keeper {
    pub(super) fn new(store: Option<Store>) -> Self {
        Keeper { store, next: time::Instant::now() }
    }

    /// Writes all that has changed; done when it is on the disk, or at once if there is no store.
    fn save(&self, book: &mut Book) -> impl Future<Output = Result<(), StoreError>> + Send + use<> {
        let store = self.store.clone();
        let mut batches: Vec<Vec<Change>> = Vec::new();
        while book.has_changed() {
            batches.push(book.take_changes(MAX_ROWS));
        }
        async move {
            let Some(store) = store else { return Ok(()) };
            for rows in batches {
                store.save(rows).await?;
            }
            Ok(())
        }
    }

    /// Writes what is left when the node closes.
    async fn finish(&self, book: &mut Book) {
        if book.has_changed() {
            let _ = time::timeout(LAST_ROWS, self.save(book)).await; // a disk that does not answer holds up no close
        }
    }
}

impl Shell {
    /// When changes are to be written; `None` if there is no store.
    pub(super) fn flush_at(&self) -> Option<time::Instant> {
        self.keeper.store.is_some().then_some(self.keeper.next)
    }

    /// Writes what has changed, without waiting for it.
    pub(super) fn flush(&mut self) {
        self.keeper.next = time::Instant::now() + FLUSH_EVERY;
        if !self.machine.book().has_changed() {
            return;
        }
        let saved = self.keeper.save(self.machine.book_mut());
        self.core.tasks.spawn(async move {
            if let Err(error) = saved.await {
                warn!(%error, "the address book is not stored");
            }
        });
    }

    /// Writes what is left when the node closes.
    pub(super) async fn finish(&mut self) {
        self.keeper.finish(self.machine.book_mut()).await;
    }

    /// What the owner says about peers.
    pub(super) fn keep(&mut self, command: Command) {
        self.set_clock();
        let now = self.machine.unix(self.core.mux.now());
        match command {
            Command::Ban { peer, until, why, reply } => {
                self.feed(Input::Ban { peer, until, why });
                self.saved(reply, Ok);
            }
            Command::Unban { peer, reply } => {
                let was = self.machine.book().banned(peer, UnixTime(0)).is_some();
                self.feed(Input::Unban { peer });
                self.saved(reply, move |()| Ok(was));
            }
            Command::AddPeer { contact, reply } => self.add(contact, now, reply),
            Command::Import { records, reply } => {
                let book = self.machine.book_mut();
                let taken = records.into_iter().filter(|record| book.restore(record.clone(), now)).count();
                self.saved(reply, move |()| Ok(taken));
            }
            Command::Tell { asker, reply } => {
                let _ = reply.send(self.machine.book().tell(asker, now, &mut self.rng)); // who asked may have gone
            }
            Command::Heard { peer, contacts, reply } => {
                let from = self.core.switch.link(peer).map(|link| self.core.group(link.track.via()));
                if let Some(from) = from {
                    self.machine.handle_input(Input::Own(self.core.addrs(false)), self.core.mux.now());
                    self.feed(Input::Heard { from, contacts });
                }
                let _ = reply.send(self.machine.book().len()); // who asked may have gone
            }
            Command::Records { reply } => {
                let records: Vec<Record> = self.machine.book().records().collect();
                let _ = reply.send(records); // who asked may have gone
            }
            _ => {}
        }
    }

    fn add(&mut self, contact: Contact, now: UnixTime, reply: oneshot::Sender<Result<(), AddPeerError>>) {
        match self.machine.book_mut().add(contact, now) {
            Ok(()) => self.saved(reply, Ok),
            Err(refused) => drop(reply.send(Err(refused.into()))),
        }
    }

    /// Answers once everything is on the disk.
    fn saved<T: Send + 'static, E: From<StoreError> + Send + 'static>(
        &mut self,
        reply: oneshot::Sender<Result<T, E>>,
        then: impl FnOnce(()) -> Result<T, E> + Send + 'static,
    ) {
        let saved = self.keeper.save(self.machine.book_mut());
        self.core.tasks.spawn(async move {
            let _ = reply.send(saved.await.map_err(E::from).and_then(then)); // who asked may have gone
        });
    }
}

#[cfg(test)]
mod tests {
    use byway_proto::{PeerId, book::BookConfig};
    use futures_util::FutureExt;

    use super::*;

    /// A book with so many rows to be written, its own among them.
    fn changed(rows: usize) -> Book {
        let mut book = Book::new(BookConfig::default(), PeerId::ed25519([0xff; 32]), [1; 32]);
        for n in 1..rows as u64 {
            let mut key = [0; 32];
            key[..8].copy_from_slice(&n.to_be_bytes());
            book.ban(PeerId::ed25519(key), UnixTime(2), "");
        }
        book
    }

    #[test]
    fn rows_are_handed_over_so_many_at_once_and_the_next_once_those_are_on_the_disk() {
        let (store, mut waiting) = Store::on_dead_disk();
        let mut book = changed(MAX_ROWS + 1);
        let mut saved = Box::pin(Keeper::new(Some(store)).save(&mut book));
        assert!(!book.has_changed(), "what changes from here on is the next one's to write");
        assert!((&mut saved).now_or_never().is_none());
        assert_eq!((waiting(), waiting()), (Some(MAX_ROWS), None));
    }

    #[tokio::test(start_paused = true)]
    async fn a_disk_that_does_not_answer_holds_up_no_close() {
        let (store, mut waiting) = Store::on_dead_disk();
        let (keeper, start) = (Keeper::new(Some(store)), time::Instant::now());
        keeper.finish(&mut changed(2)).await;
        assert_eq!(waiting(), Some(2));
        assert!((LAST_ROWS..2 * LAST_ROWS).contains(&start.elapsed()), "{:?}", start.elapsed());
    }
}
