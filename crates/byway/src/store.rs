//! The file that keeps the address book, and what was learned about networks, over restarts and crashes.
//!
//! One thread writes. All that waits for it is written at once, and acknowledged when it is on the disk: a caller that
//! was told so finds it again whatever happens to the process. A file that is damaged is moved aside, and a new one begun with
//! what is whole of it.

mod log;

use std::{
    io,
    path::{Path, PathBuf},
    thread,
};

use byway_proto::{
    UnixTime,
    book::{Change, Head, Record},
};
use tokio::sync::{mpsc, oneshot};
use tracing::warn;

use self::log::{Log, Row, Rows};

/// Callers that may wait for the writer; the next one keeps its rows, which are in the book anyway.
const QUEUE: usize = 64;

/// Rows that are written at once: that costs the disk one flush, whatever it holds, and a row about 400 bytes.
const MAX_BATCH: usize = 8_192;

/// The table of the peers' rows, by the bytes of their ids.
const PEERS: u8 = 1;

/// The table of the book's own row, whose key is empty.
const HEAD: u8 = 2;

/// The table of what was learned about networks: one row, whose key is empty.
const NAT: u8 = 3;

/// Why the store cannot be used.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// Another process has the file.
    #[error("{0} is in use by another process; stop it, or choose another file")]
    InUse(PathBuf),
    /// The file cannot be opened, created or moved.
    #[error("cannot use {path}: {what}; check its directory and its permissions")]
    File {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        what: String,
    },
    /// Writing failed.
    #[error("cannot write to the store: {0}; check that the disk is neither full nor failing")]
    Write(String),
    /// As many callers wait for the disk as may.
    #[error("too many wait for the disk; what was asked is in force, and is stored with what they wait for")]
    Busy,
    /// The store is closed.
    #[error("the store is closed")]
    Closed,
}

/// Writes to an open store; the last handle closes it. A node does all this itself
/// ([`Config::store`](crate::Config::store)).
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use byway::book::{Book, BookConfig, Contact};
/// use byway::{HostAddr, Identity, WallClock, store::Store};
///
/// # let dir = std::env::temp_dir().join(format!("byway-doc-store-{}", std::process::id()));
/// # std::fs::create_dir_all(&dir)?;
/// # let path = dir.join("book.rows");
/// let now = WallClock::default().unix();
/// let (store, opened) = Store::open(&path, now)?;
/// assert!(opened.records.is_empty(), "the next time they are there");
/// let mut book = Book::new(BookConfig::default(), Identity::generate().id(), [7; 32]);
/// let home: HostAddr = "home.example:4433".parse()?;
/// book.add(Contact { addrs: vec![home], ..Contact::new(Identity::generate().id()) }, now)?;
/// store.save(book.take_changes(100)).await?; // it is on the disk
/// # std::fs::remove_dir_all(dir)?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Store {
    jobs: mpsc::Sender<Job>,
}

/// What a store held when it was opened.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct Opened {
    /// The book's own row.
    pub head: Option<Head>,
    /// The peers' rows.
    pub records: Vec<Record>,
    /// What was learned about networks.
    pub nat: Option<Vec<u8>>,
    /// Rows that could not be read, and are left out.
    pub unread: usize,
    /// Where the file was moved that was damaged; the rows are what was whole of it.
    pub aside: Option<PathBuf>,
}

/// What is to be written at once, and who is told of it.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) rows: Vec<Change>,
    nat: Option<Vec<u8>>,
    pub(crate) done: oneshot::Sender<Result<(), StoreError>>,
}

impl Store {
    /// Opens a store, and makes it if there is none. A file that is damaged is moved aside; `now` goes into its new name.
    /// Blocks while the file is read.
    pub fn open(path: &Path, now: UnixTime) -> Result<(Store, Opened), StoreError> {
        let (log, rows, aside) = Log::open(path, now)?;
        let (jobs, waiting) = mpsc::channel(QUEUE);
        let thread = thread::Builder::new().name("byway-store".into()).spawn(move || write(log, waiting));
        thread.map_err(|error: io::Error| StoreError::File { path: path.into(), what: error.to_string() })?;
        Ok((Store { jobs }, Opened { aside, ..Opened::from(rows) }))
    }

    /// Writes rows; returns when they are on the disk.
    pub async fn save(&self, rows: Vec<Change>) -> Result<(), StoreError> {
        let (done, saved) = oneshot::channel();
        self.jobs.send(Job { rows, nat: None, done }).await.map_err(|_| StoreError::Closed)?;
        saved.await.unwrap_or(Err(StoreError::Closed))
    }

    /// Writes what was learned about networks, if there is something, without waiting; asks for nothing while many wait.
    pub(crate) fn keep(&self, nat: impl FnOnce() -> Option<Vec<u8>>) {
        if let Ok(place) = self.jobs.try_reserve()
            && let Some(nat) = nat()
        {
            place.send(Job { rows: Vec::new(), nat: Some(nat), done: oneshot::channel().0 });
        }
    }
}

impl From<Rows> for Opened {
    fn from(rows: Rows) -> Self {
        let mut opened = Opened::default();
        for ((table, _), value) in rows {
            match table {
                HEAD => opened.head = Head::from_bytes(&value),
                NAT => opened.nat = Some(value),
                PEERS => match Record::from_bytes(&value) {
                    Some(record) => opened.records.push(record),
                    None => opened.unread += 1,
                },
                _ => {} // a newer version's, and kept for it
            }
        }
        opened
    }
}

/// Writes what waits, all at once each time, until nobody can send more.
fn write(mut log: Log, mut jobs: mpsc::Receiver<Job>) {
    while let Some(first) = jobs.blocking_recv() {
        let mut batch = vec![first];
        while batch.len() < QUEUE
            && batch.iter().map(|job| job.rows.len()).sum::<usize>() < MAX_BATCH
            && let Ok(next) = jobs.try_recv()
        {
            batch.push(next);
        }
        let nat = batch.iter().rev().find_map(|job| job.nat.clone());
        let nat = nat.map(|memory| Row { table: NAT, key: Vec::new(), value: Some(memory) });
        let rows: Vec<_> = batch.iter().flat_map(|job| &job.rows).filter_map(row).chain(nat).collect();
        let result = log.append(&rows).map_err(|error| StoreError::Write(error.to_string()));
        if let Err(error) = &result {
            warn!(%error, "rows not stored");
        }
        for job in batch {
            let _ = job.done.send(result.clone()); // who asked may not wait for it
        }
    }
}

fn row(change: &Change) -> Option<Row> {
    let (table, key, value) = match change {
        Change::Head(it) => (HEAD, Vec::new(), Some(it.to_bytes())),
        Change::Peer(it) => (PEERS, it.peer.to_wire().to_vec(), Some(it.to_bytes())),
        Change::Gone(peer) => (PEERS, peer.to_wire().to_vec(), None),
        _ => return None,
    };
    Some(Row { table, key, value })
}

#[cfg(test)]
mod tests {
    use byway_proto::PeerId;
    use futures_util::FutureExt;

    use super::*;

    impl Store {
        /// A store whose disk is whoever takes the jobs.
        pub(crate) fn by_hand() -> (Store, mpsc::Receiver<Job>) {
            let (jobs, waiting) = mpsc::channel(QUEUE);
            (Store { jobs }, waiting)
        }
    }

    #[test]
    fn what_was_learned_about_networks_is_not_asked_for_while_many_wait() {
        let (jobs, mut waiting) = mpsc::channel(1);
        let store = Store { jobs };
        store.keep(|| None);
        store.keep(|| Some(vec![1]));
        store.keep(|| unreachable!("there is no room for it"));
        assert_eq!(waiting.try_recv().unwrap().nat, Some(vec![1]));
    }

    #[test]
    fn what_waits_is_written_at_once_up_to_so_many_rows() {
        let dir = std::env::temp_dir().join(format!("byway-batch-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let (log, ..) = Log::open(&dir.join("rows"), UnixTime(1)).unwrap();
        let (jobs, waiting) = mpsc::channel(QUEUE);
        let send = |rows, nat| {
            let (done, saved) = oneshot::channel();
            let rows = vec![Change::Gone(PeerId::ed25519([1; 32])); rows];
            jobs.try_send(Job { rows, nat, done }).unwrap();
            saved
        };
        // A row that is too long fails with all that is written at once with it.
        let too_long = || Some(vec![0; 1 << 17]);
        let mut saved = [send(MAX_BATCH, None), send(MAX_BATCH - 1, None), send(1, too_long()), send(1, None)];
        drop(jobs);
        write(log, waiting);
        assert_eq!(saved.each_mut().map(|saved| saved.try_recv().unwrap().is_ok()), [true, false, false, true]);
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn what_waits_is_written_at_once_up_to_so_many_callers() {
        let dir = std::env::temp_dir().join(format!("byway-callers-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let (log, ..) = Log::open(&dir.join("rows"), UnixTime(1)).unwrap();
        let (jobs, waiting) = mpsc::channel(QUEUE + 1);
        let send = |nat| {
            let (done, saved) = oneshot::channel();
            jobs.try_send(Job { rows: Vec::new(), nat, done }).unwrap();
            saved
        };
        let mut saved: Vec<_> = (0..QUEUE).map(|_| send(None)).collect();
        saved.push(send(Some(vec![0; 1 << 17]))); // too long: it fails with all that is written at once with it
        drop(jobs);
        write(log, waiting);
        let is_saved: Vec<_> = saved.iter_mut().map(|saved| saved.try_recv().unwrap().is_ok()).collect();
        assert_eq!(is_saved.iter().position(|is_saved| !is_saved), Some(QUEUE));
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn so_many_callers_wait_for_the_writer_and_the_next_keeps_its_rows() {
        let dir = std::env::temp_dir().join(format!("byway-queue-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let (store, _) = Store::open(&dir.join("rows"), UnixTime(1)).unwrap();
        assert_eq!(store.jobs.max_capacity(), QUEUE);
        drop(store);
        let (store, mut waiting) = Store::by_hand();
        let mut saves: Vec<_> = (0..=QUEUE).map(|_| Box::pin(store.save(Vec::new()))).collect();
        assert!(saves.iter_mut().all(|save| save.now_or_never().is_none()));
        assert_eq!(store.jobs.capacity(), 0);
        assert_eq!(
            std::iter::from_fn(|| waiting.try_recv().ok()).count(),
            QUEUE,
            "the last one has handed nothing over"
        );
        let _ = std::fs::remove_dir_all(dir); // the writer may be closing the file still
    }
}
