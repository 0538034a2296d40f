//! The file that keeps the address book, and what was learned about networks, over restarts and crashes (redb).
//!
//! One thread writes. All that waits for it is committed at once, and acknowledged when it is on the disk: a caller that
//! was told so finds it again whatever happens to the process. A file that cannot be read is moved aside and a new one begun,
//! because a node without its book still runs.

use std::{
    fs::{self, File, OpenOptions},
    io,
    panic::{self, AssertUnwindSafe},
    path::{Path, PathBuf},
    thread,
};

use byway_proto::{
    UnixTime,
    book::{Change, Head, Record},
};
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition, TableError, backends::FileBackend};
use tokio::sync::{mpsc, oneshot};
use tracing::warn;

/// Callers that may wait for the writer; the next one keeps its rows, which are in the book anyway.
const QUEUE: usize = 64;

/// Rows in one commit: a commit costs the disk one flush, whatever it holds, and a row about 400 bytes.
const MAX_BATCH: usize = 8_192;

/// What redb may keep in memory of the file: the book itself is in memory, so that hardly anything is read twice.
const CACHE: usize = 1 << 20;

/// A peer's row, by the bytes of its id.
const PEERS: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("peers");

/// The book's own row.
const HEAD: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("head");

/// The one key of [`HEAD`].
const BOOK: &str = "book";

/// What was learned about networks, in one row.
const NAT: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("nat");

/// The one key of [`NAT`].
const MEMORY: &str = "memory";

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
    /// A commit failed.
    #[error("cannot write to the store: {0}; check that the disk is neither full nor failing")]
    Write(String),
    /// The store is closed.
    #[error("the store is closed")]
    Closed,
}

/// Writes to an open store; the last handle closes it.
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
    /// Where the file was moved that could not be opened.
    pub aside: Option<PathBuf>,
}

#[derive(Debug)]
struct Job {
    rows: Vec<Change>,
    nat: Option<Vec<u8>>,
    done: oneshot::Sender<Result<(), StoreError>>,
}

impl Store {
    /// Opens a store, and makes it if there is none. A file that is damaged is moved aside; `now` goes into its new name.
    /// Blocks while the file is read.
    pub fn open(path: &Path, now: UnixTime) -> Result<(Store, Opened), StoreError> {
        let (database, opened) = match read(path) {
            Ok(read) => read,
            Err(Unread::Refused(error)) => return Err(error),
            Err(Unread::Damaged(what)) => {
                let aside = move_aside(path, now)?;
                warn!(file = %path.display(), aside = %aside.display(), %what, "the store is damaged; begun anew");
                match read(path) {
                    Ok((database, opened)) => (database, Opened { aside: Some(aside), ..opened }),
                    Err(Unread::Refused(error)) => return Err(error),
                    Err(Unread::Damaged(what)) => return Err(StoreError::File { path: path.into(), what }),
                }
            }
        };
        let (jobs, waiting) = mpsc::channel(QUEUE);
        let thread = thread::Builder::new().name("byway-store".into()).spawn(move || write(&database, waiting));
        thread.map_err(|error| file_error(path, &error))?;
        Ok((Store { jobs }, opened))
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

/// Why a file was not read.
enum Unread {
    /// It is damaged: another can take its place.
    Damaged(String),
    /// It may be whole: nothing is done to it.
    Refused(StoreError),
}

/// Opens the file and reads all of it.
fn read(path: &Path) -> Result<(Database, Opened), Unread> {
    let file = open(path).map_err(|error| Unread::Refused(file_error(path, &error)))?;
    // A library's panic over a damaged file shall not take the node with it.
    let read = panic::catch_unwind(|| {
        let mut database = database(path, file)?;
        database.check_integrity().map_err(damaged)?; // all checksums: a bit that fell over shows here, and nowhere else
        let opened = rows(&database).map_err(damaged)?;
        Ok((database, opened))
    });
    read.unwrap_or_else(|_| Err(Unread::Damaged("its structure makes no sense".into())))
}

fn open(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)
}

fn database(path: &Path, file: File) -> Result<Database, Unread> {
    let in_use = || Unread::Refused(StoreError::InUse(path.into()));
    let backend = FileBackend::new(file).map_err(|error| match error {
        redb::DatabaseError::DatabaseAlreadyOpen => in_use(),
        error => Unread::Refused(StoreError::File { path: path.into(), what: error.to_string() }),
    })?;
    Database::builder().set_cache_size(CACHE).create_with_backend(backend).map_err(|error| match error {
        redb::DatabaseError::DatabaseAlreadyOpen => in_use(),
        redb::DatabaseError::Storage(redb::StorageError::Io(error)) if !is_damage(&error) => {
            Unread::Refused(file_error(path, &error))
        }
        error => damaged(error),
    })
}

/// Whether an error of the file system means that the contents are wrong, not the access.
fn is_damage(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidInput)
}

fn damaged(error: impl ToString) -> Unread {
    Unread::Damaged(error.to_string())
}

fn rows(database: &Database) -> Result<Opened, redb::Error> {
    let transaction = database.begin_read()?;
    let mut opened = Opened::default();
    match transaction.open_table(HEAD) {
        Ok(table) => opened.head = table.get(BOOK)?.and_then(|row| Head::from_bytes(row.value())),
        Err(TableError::TableDoesNotExist(_)) => {}
        Err(error) => return Err(error.into()),
    }
    match transaction.open_table(NAT) {
        Ok(table) => opened.nat = table.get(MEMORY)?.map(|row| row.value().to_vec()),
        Err(TableError::TableDoesNotExist(_)) => {}
        Err(error) => return Err(error.into()),
    }
    let table = match transaction.open_table(PEERS) {
        Ok(table) => table,
        Err(TableError::TableDoesNotExist(_)) => return Ok(opened),
        Err(error) => return Err(error.into()),
    };
    for row in table.iter()? {
        let (_, row) = row?;
        match Record::from_bytes(row.value()) {
            Some(record) => opened.records.push(record),
            None => opened.unread += 1,
        }
    }
    Ok(opened)
}

fn move_aside(path: &Path, now: UnixTime) -> Result<PathBuf, StoreError> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".damaged-{}", now.0));
    let aside = path.with_file_name(name);
    fs::rename(path, &aside).map_err(|error| file_error(path, &error))?;
    Ok(aside)
}

fn file_error(path: &Path, error: &io::Error) -> StoreError {
    StoreError::File { path: path.into(), what: error.to_string() }
}

/// Writes what waits, in one commit each time, until nobody can send more.
fn write(database: &Database, mut jobs: mpsc::Receiver<Job>) {
    while let Some(first) = jobs.blocking_recv() {
        let mut batch = vec![first];
        while batch.iter().map(|job| job.rows.len()).sum::<usize>() < MAX_BATCH
            && let Ok(next) = jobs.try_recv()
        {
            batch.push(next);
        }
        // As when reading: what a library's panic means is that these rows are not stored.
        let result = panic::catch_unwind(AssertUnwindSafe(|| commit(database, &batch)));
        let result = result.map_err(|_| StoreError::Write("the file's structure makes no sense".into()));
        let result = result.and_then(|result| result.map_err(|error| StoreError::Write(error.to_string())));
        if let Err(error) = &result {
            warn!(%error, "rows not stored");
        }
        for job in batch {
            let _ = job.done.send(result.clone()); // who asked may not wait for it
        }
    }
}

fn commit(database: &Database, batch: &[Job]) -> Result<(), redb::Error> {
    let transaction = database.begin_write()?;
    {
        let mut peers = transaction.open_table(PEERS)?;
        let mut head = transaction.open_table(HEAD)?;
        for row in batch.iter().flat_map(|job| &job.rows) {
            match row {
                Change::Head(it) => drop(head.insert(BOOK, it.to_bytes().as_slice())?),
                Change::Peer(it) => drop(peers.insert(it.peer.to_wire().as_slice(), it.to_bytes().as_slice())?),
                Change::Gone(peer) => drop(peers.remove(peer.to_wire().as_slice())?),
                _ => {}
            }
        }
    }
    if let Some(nat) = batch.iter().rev().find_map(|job| job.nat.as_ref()) {
        transaction.open_table(NAT)?.insert(MEMORY, nat.as_slice())?;
    }
    transaction.commit()?; // flushed to the disk before it returns, as is redb's default
    Ok(())
}
