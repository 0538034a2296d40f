//! Keeping the book on the disk, and the owner's words about it.

use std::{collections::VecDeque, pin::Pin, time::Duration};

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

/// The longest pause before rows that did not reach the disk are tried again: it begins with [`FLUSH_EVERY`] and doubles, for a full disk
/// is seldom emptied within a second.
const MAX_PAUSE: Duration = Duration::from_secs(60);

/// Callers that may wait for rows that are not under way yet: programs ban in a loop, but not faster than a disk answers.
const MAX_CALLERS: usize = 1_024;

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

/// Who waits until something is on the disk.
type Caller = Box<dyn FnOnce(Result<(), StoreError>) + Send>;

/// Rows on their way to the disk.
type Writing = Pin<Box<dyn Future<Output = Result<(), Unwritten>> + Send>>;

/// Rows that did not reach the disk.
#[derive(Debug)]
pub(super) struct Unwritten {
    rows: Vec<Change>,
    error: StoreError,
}

/// The one way of the book's rows to the store, if there is one: what is under way is waited for before newer rows follow, or an older
/// row of a peer could take the place of a newer one.
pub(super) struct Keeper {
    store: Option<Store>,
    /// When it is written to next, unless somebody waits for it earlier.
    next: time::Instant,
    /// How long it is left alone if it fails now.
    pause: Duration,
    writing: Option<Writing>,
    /// Who waits for the rows that are under way.
    served: Vec<Caller>,
    /// Who waits for rows that are not under way yet, at most [`MAX_CALLERS`].
    waiting: Vec<Caller>,
}

impl Keeper {
    pub(super) fn new(store: Option<Store>) -> Self {
        let next = time::Instant::now();
        Keeper { store, next, pause: FLUSH_EVERY, writing: None, served: Vec::new(), waiting: Vec::new() }
    }

    /// When changes are to be written that nobody waits for; `None` if there is no store, or rows are under way.
    pub(super) fn due(&self) -> Option<time::Instant> {
        (self.store.is_some() && self.writing.is_none()).then_some(self.next)
    }

    /// Writes what has changed, without waiting for it.
    pub(super) fn flush(&mut self, book: &mut Book) {
        self.next = time::Instant::now() + FLUSH_EVERY;
        self.write(book);
    }

    /// Tells a caller once all that has changed is on the disk, or at once if there is no store.
    fn serve(&mut self, caller: Caller, book: &mut Book) {
        if self.waiting.len() >= MAX_CALLERS {
            return caller(Err(StoreError::Busy));
        }
        self.waiting.push(caller);
        self.write(book);
    }

    /// Sends all that has changed on its way, unless rows are under way.
    fn write(&mut self, book: &mut Book) {
        if self.writing.is_some() {
            return;
        }
        let callers = std::mem::take(&mut self.waiting);
        let Some(store) = self.store.clone().filter(|_| book.has_changed()) else {
            return callers.into_iter().for_each(|caller| caller(Ok(())));
        };
        let mut batches = VecDeque::new();
        while book.has_changed() {
            batches.push_back(book.take_changes(MAX_ROWS));
        }
        self.served = callers;
        self.writing = Some(Box::pin(write(store, batches)));
    }

    /// Waits until it is known what became of the rows under way, which [`Keeper::settle`] is to be told; for ever if there are none.
    pub(super) async fn written(&mut self) -> Result<(), Unwritten> {
        match &mut self.writing {
            Some(writing) => writing.await,
            None => std::future::pending().await,
        }
    }

    /// The rows under way are on the disk, or failed: then they are tried again after a pause, as they are by then.
    pub(super) fn settle(&mut self, written: Result<(), Unwritten>, book: &mut Book) {
        self.writing = None;
        let result = match written {
            Ok(()) => {
                self.pause = FLUSH_EVERY;
                Ok(())
            }
            Err(Unwritten { rows, error }) => {
                warn!(%error, again_in = ?self.pause, "the address book is not stored");
                book.put_back(rows);
                self.next = time::Instant::now() + self.pause;
                self.pause = (2 * self.pause).min(MAX_PAUSE);
                Err(error)
            }
        };
        std::mem::take(&mut self.served).into_iter().for_each(|caller| caller(result.clone()));
        if !self.waiting.is_empty() {
            self.write(book);
        }
    }

    /// Writes what is left when the node closes.
    pub(super) async fn finish(&mut self, book: &mut Book) {
        let rest = async {
            loop {
                self.write(book);
                if self.writing.is_none() {
                    return;
                }
                let written = self.written().await;
                let has_failed = written.is_err();
                self.settle(written, book);
                if has_failed {
                    return;
                }
            }
        };
        let _ = time::timeout(LAST_ROWS, rest).await; // a disk that does not answer holds up no close
    }
}

async fn write(store: Store, mut batches: VecDeque<Vec<Change>>) -> Result<(), Unwritten> {
    while let Some(rows) = batches.pop_front() {
        if let Err(error) = store.save(rows.clone()).await {
            batches.push_front(rows);
            return Err(Unwritten { rows: batches.into_iter().flatten().collect(), error });
        }
    }
    Ok(())
}

impl Shell {
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
            Command::Mark(peer, of_use) => self.machine.book_mut().mark(peer, of_use, now),
            Command::Import { records, reply } => {
                let imported = self.machine.import(records, self.core.mux.now());
                self.feed(Input::Timeout); // whoever is banned by it is sent away
                self.saved(reply, move |()| Ok(imported));
            }
            Command::Tell { asker, reply } => {
                let _ = reply.send(self.machine.book().tell(asker, now, &mut self.rng)); // who asked may have gone
            }
            Command::Heard { peer, contacts, reply } => {
                let from = self.core.switch.link(peer).map(|link| self.core.group(link.track.via()));
                if let Some(from) = from {
                    let own =
                        self.core.addrs(false).into_iter().chain(self.core.switch.own().iter().copied()).collect();
                    self.machine.handle_input(Input::Own(own), self.core.mux.now());
                    self.feed(Input::Heard { from, contacts });
                }
                let _ = reply.send(self.machine.book().len()); // who asked may have gone
            }
            Command::Records { reply } => {
                let records: Vec<Record> = self.machine.book().records().collect();
                let _ = reply.send(records); // who asked may have gone
            }
            Command::Exports { reply } => {
                let _ = reply.send(self.machine.book().exports().collect()); // who asked may have gone
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
        let caller = move |result: Result<(), StoreError>| {
            let _ = reply.send(result.map_err(E::from).and_then(then)); // who asked may have gone
        };
        self.keeper.serve(Box::new(caller), self.machine.book_mut());
    }
}

#[cfg(test)]
mod tests {
    use byway_proto::{PeerId, book::BookConfig};
    use tokio::sync::mpsc;

    use super::*;
    use crate::store::Job;

    fn peer(n: u32) -> PeerId {
        let mut key = [0; 32];
        key[..4].copy_from_slice(&n.to_be_bytes());
        PeerId::ed25519(key)
    }

    /// A book, and what keeps it in a store whose disk is the test.
    fn rig() -> (Keeper, Book, mpsc::Receiver<Job>) {
        let (store, jobs) = Store::by_hand();
        (Keeper::new(Some(store)), Book::new(BookConfig::default(), peer(u32::MAX), [1; 32]), jobs)
    }

    /// Somebody who waits, and where the answer comes.
    fn caller() -> (Caller, oneshot::Receiver<Result<(), StoreError>>) {
        let (reply, answer) = oneshot::channel();
        (Box::new(move |result| drop(reply.send(result))), answer)
    }

    /// Plays the disk until nothing is under way; the rows that came, in their order.
    async fn play(
        keeper: &mut Keeper,
        book: &mut Book,
        jobs: &mut mpsc::Receiver<Job>,
        result: Result<(), StoreError>,
    ) -> Vec<Change> {
        let mut rows = Vec::new();
        while keeper.writing.is_some() {
            tokio::select! {
                biased;
                written = keeper.written() => keeper.settle(written, book),
                Some(job) = jobs.recv() => {
                    rows.extend(job.rows);
                    job.done.send(result.clone()).unwrap();
                }
            }
        }
        rows
    }

    fn full() -> Result<(), StoreError> {
        Err(StoreError::Write("the disk is full".into()))
    }

    #[tokio::test]
    async fn a_newer_row_of_a_peer_waits_for_the_older_one_that_is_under_way() {
        let (mut keeper, mut book, mut jobs) = rig();
        let last = MAX_ROWS as u32 - 1;
        for n in 0..=last {
            book.ban(peer(n), UnixTime::NEVER, "by hand");
        }
        keeper.flush(&mut book); // two batches, the last of which holds one ban
        book.unban(peer(last), UnixTime(1));
        let (caller, mut answer) = caller();
        keeper.serve(caller, &mut book);
        let rows = play(&mut keeper, &mut book, &mut jobs, Ok(())).await;
        assert_eq!(rows.len(), 1 + MAX_ROWS + 1, "the head, the bans, and one peer again");
        assert!(matches!(&rows[MAX_ROWS], Change::Peer(record) if record.peer == peer(last)));
        assert_eq!(rows[MAX_ROWS + 1], Change::Gone(peer(last)));
        assert!(matches!(answer.try_recv(), Ok(Ok(()))));
        assert!(!book.has_changed() && keeper.due().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn rows_that_do_not_reach_the_disk_are_tried_again_after_pauses_that_grow_to_a_minute() {
        let (mut keeper, mut book, mut jobs) = rig();
        book.ban(peer(1), UnixTime::NEVER, "by hand");
        let (caller, mut answer) = caller();
        keeper.serve(caller, &mut book);
        let rows = play(&mut keeper, &mut book, &mut jobs, full()).await;
        assert!(matches!(&rows[..], [Change::Head(_), Change::Peer(_)]), "{rows:?}");
        assert!(matches!(answer.try_recv(), Ok(Err(StoreError::Write(_)))));
        let mut pauses = Vec::new();
        for _ in 0..8 {
            let due = keeper.due().unwrap();
            pauses.push((due - time::Instant::now()).as_secs());
            time::sleep_until(due).await;
            keeper.flush(&mut book);
            assert_eq!(play(&mut keeper, &mut book, &mut jobs, full()).await, rows);
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60]);
        keeper.flush(&mut book);
        assert_eq!(play(&mut keeper, &mut book, &mut jobs, Ok(())).await, rows);
        assert!(!book.has_changed());
        assert_eq!(keeper.pause, FLUSH_EVERY, "a disk that works again is written to as often as any");
    }

    #[tokio::test]
    async fn what_is_left_when_a_node_closes_is_written_behind_what_is_under_way() {
        let (mut keeper, mut book, mut jobs) = rig();
        keeper.flush(&mut book);
        book.ban(peer(1), UnixTime::NEVER, "by hand");
        let disk = async {
            let mut rows = Vec::new();
            while rows.len() < 2
                && let Some(job) = jobs.recv().await
            {
                rows.extend(job.rows);
                job.done.send(Ok(())).unwrap();
            }
            rows
        };
        let closing = async {
            keeper.finish(&mut book).await;
            drop(keeper); // and nothing more comes
        };
        let ((), rows) = tokio::join!(closing, disk);
        assert!(matches!(&rows[..], [Change::Head(_), Change::Peer(record)] if record.peer == peer(1)), "{rows:?}");
    }

    #[tokio::test]
    async fn as_many_wait_for_the_disk_as_may_and_the_next_one_is_told() {
        let (mut keeper, mut book, mut jobs) = rig();
        keeper.flush(&mut book);
        let mut answers = Vec::new();
        for _ in 0..=MAX_CALLERS {
            let (caller, answer) = caller();
            keeper.serve(caller, &mut book);
            answers.push(answer);
        }
        let mut refused = answers.pop().unwrap();
        assert!(matches!(refused.try_recv(), Ok(Err(StoreError::Busy))));
        play(&mut keeper, &mut book, &mut jobs, Ok(())).await;
        assert!(answers.iter_mut().all(|answer| matches!(answer.try_recv(), Ok(Ok(())))));
    }

    #[tokio::test(start_paused = true)]
    async fn a_disk_that_does_not_answer_holds_up_no_close() {
        let (mut keeper, mut book, mut jobs) = rig();
        book.ban(peer(1), UnixTime::NEVER, "by hand");
        let start = time::Instant::now();
        keeper.finish(&mut book).await;
        assert_eq!(jobs.try_recv().unwrap().rows.len(), 2, "the head and the ban");
        assert!((LAST_ROWS..2 * LAST_ROWS).contains(&start.elapsed()), "{:?}", start.elapsed());
    }
}
