//! A file of rows that only grows: each row with its checksum, the last one of a key counts. Once most of it is old, what
//! counts is written to a new file that takes its place.
//!
//! Nothing in it is believed without its checksum, so damage costs the rows that it hits, whatever it is. A file whose end
//! was cut off in the middle of a row is what a crash leaves behind; anything else that is no row is damage.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, BufWriter, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use byway_proto::{UnixTime, book::MAX_ROW};
use tracing::warn;

use super::StoreError;

/// Every row begins with it, so that the next whole one is found behind damage; the digit is the format's version.
const MARK: [u8; 4] = *b"BwR1";

/// Mark, kind, table, length of the key (2) and of the value (4), checksum (8).
const HEADER: usize = 20;

/// Where the checksum stands, which is over all that is before and behind it.
const CHECK: usize = 12;

const PUT: u8 = 0;
const GONE: u8 = 1;

/// The longest value: far more than the longest row of the address book.
const MAX_VALUE: usize = 1 << 16;
const _: () = assert!(MAX_VALUE > MAX_ROW);

/// The largest file: twice what 25,000 rows of 5 KiB take, of which most have a tenth. It is in memory while it is read.
const MAX_FILE: u64 = 256 << 20;

/// What a file may grow by, beside as much as it holds, before it is written anew: then that is rare for small files too.
const SLACK: u64 = 1 << 20;

/// Places that look like a row and are none before the search for the next whole one ends: marks are rare by chance, and each costs
/// a checksum.
const MAX_FALSE: usize = 4_096;

/// Damaged files that are kept of one second.
const MAX_ASIDE: u32 = 100;

/// What the file that takes a file's place is called until it does.
const FRESH: &str = ".new";

/// What counts, by table and key.
pub(super) type Rows = BTreeMap<(u8, Vec<u8>), Vec<u8>>;

/// A row to be written; without a value its key is forgotten.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) table: u8,
    /// At most 65,535 bytes.
    pub(super) key: Vec<u8>,
    /// At most [`MAX_VALUE`] bytes.
    pub(super) value: Option<Vec<u8>>,
}

/// An open file, which no other process uses.
#[derive(Debug)]
pub(super) struct Log {
    path: PathBuf,
    file: File,
    /// Bytes of whole rows.
    end: u64,
    /// A write failed half way: there may be bytes behind the end.
    torn: bool,
    /// The file's name is on the disk, too.
    named: bool,
    /// The size from which it is written anew.
    tidy_at: u64,
    /// Beside the file, for that is replaced now and then; the system lets go of it however the process ends.
    _lock: File,
}

/// What a file holds.
#[derive(Debug, Default)]
struct Scan {
    rows: Rows,
    /// Where the last whole row ends.
    end: usize,
    /// Something is neither a row nor the beginning of the last one.
    damaged: bool,
}

impl Log {
    /// Opens a file, or makes it, and reads it. A damaged one is moved aside, and what is whole of it goes into a new one.
    pub(super) fn open(path: &Path, now: UnixTime) -> Result<(Log, Rows, Option<PathBuf>), StoreError> {
        let lock = lock(path)?;
        let opened = Log::read(path, now, lock);
        opened.map_err(|error| StoreError::File { path: path.into(), what: error.to_string() })
    }

    fn read(path: &Path, now: UnixTime, lock: File) -> io::Result<(Log, Rows, Option<PathBuf>)> {
        let mut file = open(path)?;
        let scan = match file.metadata()?.len() {
            0..=MAX_FILE => scan(&read(&mut file)?),
            _ => Scan { damaged: true, ..Scan::default() },
        };
        let mut aside = None;
        if scan.damaged {
            file = write_fresh(path, &scan.rows)?;
            let to = move_aside(path, now)?;
            put_in_place(path)?;
            warn!(
                file = %path.display(), aside = %to.display(), rows = scan.rows.len(),
                "the store is damaged; begun anew with what is whole of it"
            );
            aside = Some(to);
        } else {
            file.set_len(scan.end as u64)?;
        }
        let (end, tidy_at) = (file.metadata()?.len(), tidy_at(&scan.rows));
        let log = Log { path: path.into(), file, end, torn: false, named: false, tidy_at, _lock: lock };
        Ok((log, scan.rows, aside))
    }

    /// Writes rows; they are on the disk when it returns. After an error none of them is.
    pub(super) fn append(&mut self, rows: &[Row]) -> io::Result<()> {
        let mut bytes = Vec::new();
        rows.iter().try_for_each(|row| encode(row, &mut bytes))?;
        if self.end + bytes.len() as u64 > self.tidy_at
            && let Err(error) = self.tidy()
        {
            warn!(%error, file = %self.path.display(), "the store is not written anew, and grows");
            self.tidy_at = (self.tidy_at + SLACK).min(MAX_FILE);
        }
        if self.end + bytes.len() as u64 > MAX_FILE {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, "it holds all it can"));
        }
        if self.torn {
            self.file.set_len(self.end)?;
        }
        self.torn = true;
        self.file.seek(SeekFrom::Start(self.end))?;
        self.file.write_all(&bytes)?;
        self.file.sync_data()?;
        if !self.named {
            sync_directory(&self.path)?;
            self.named = true;
        }
        self.torn = false;
        self.end += bytes.len() as u64;
        Ok(())
    }

    /// Writes what counts to a new file that takes this one's place. What is damaged is left for the next start, which
    /// moves it aside.
    fn tidy(&mut self) -> io::Result<()> {
        let mut bytes = read(&mut self.file)?;
        bytes.truncate(self.end as usize);
        let scan = scan(&bytes);
        if scan.damaged || scan.end as u64 != self.end {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "it is damaged; restart to keep what is whole of it",
            ));
        }
        let fresh = write_fresh(&self.path, &scan.rows)?;
        let end = fresh.metadata()?.len();
        put_in_place(&self.path)?;
        (self.file, self.end, self.tidy_at) = (fresh, end, tidy_at(&scan.rows));
        (self.torn, self.named) = (false, false);
        Ok(())
    }
}

/// The size at which a file with these rows is written anew.
fn tidy_at(rows: &Rows) -> u64 {
    let size: usize = rows.iter().map(|((_, key), value)| HEADER + key.len() + value.len()).sum();
    (2 * size as u64 + SLACK).min(MAX_FILE)
}

fn encode(row: &Row, out: &mut Vec<u8>) -> io::Result<()> {
    let value = row.value.as_deref().unwrap_or_default();
    let too_long = || io::Error::new(io::ErrorKind::InvalidInput, "a row is too long to be stored");
    let key_len = u16::try_from(row.key.len()).map_err(|_| too_long())?;
    if value.len() > MAX_VALUE {
        return Err(too_long());
    }
    let begin = out.len();
    out.extend(MARK);
    out.extend([if row.value.is_some() { PUT } else { GONE }, row.table]);
    out.extend(key_len.to_le_bytes());
    out.extend((value.len() as u32).to_le_bytes());
    let check = checksum(&out[begin..], &row.key, value);
    out.extend(check);
    out.extend(&row.key);
    out.extend(value);
    Ok(())
}

fn checksum(head: &[u8], key: &[u8], value: &[u8]) -> [u8; HEADER - CHECK] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(head).update(key).update(value); // the head says where the key ends
    let mut check = [0; HEADER - CHECK];
    hasher.finalize_xof().fill(&mut check);
    check
}

/// What stands at the beginning of some bytes.
enum Found<'a> {
    /// A row, and its length.
    Row {
        kind: u8,
        table: u8,
        key: &'a [u8],
        value: &'a [u8],
        len: usize,
    },
    /// The beginning of a row that goes on behind the end.
    Cut,
    Nothing,
}

fn decode(bytes: &[u8]) -> Found<'_> {
    let Some((head, rest)) = bytes.split_at_checked(HEADER) else {
        let is_mark = bytes.iter().zip(MARK).all(|(byte, mark)| *byte == mark);
        return if is_mark { Found::Cut } else { Found::Nothing };
    };
    let &[m0, m1, m2, m3, kind, table, k0, k1, v0, v1, v2, v3, ..] = head else { return Found::Nothing };
    let key_len = usize::from(u16::from_le_bytes([k0, k1]));
    let value_len = u32::from_le_bytes([v0, v1, v2, v3]) as usize;
    if [m0, m1, m2, m3] != MARK || kind > GONE || value_len > MAX_VALUE {
        return Found::Nothing;
    }
    let Some((key, rest)) = rest.split_at_checked(key_len) else { return Found::Cut };
    let Some((value, _)) = rest.split_at_checked(value_len) else { return Found::Cut };
    if checksum(&head[..CHECK], key, value) != head[CHECK..] {
        return Found::Nothing;
    }
    Found::Row { kind, table, key, value, len: HEADER + key_len + value_len }
}

/// Reads all whole rows, and over what is none.
fn scan(bytes: &[u8]) -> Scan {
    let mut scan = Scan::default();
    let (mut at, mut cut, mut false_marks) = (0, false, 0);
    while at < bytes.len() && false_marks <= MAX_FALSE {
        match decode(&bytes[at..]) {
            Found::Row { kind, table, key, value, len } => {
                match kind {
                    PUT => drop(scan.rows.insert((table, key.to_vec()), value.to_vec())),
                    _ => drop(scan.rows.remove(&(table, key.to_vec()))),
                }
                scan.damaged |= at != scan.end;
                at += len;
                (scan.end, cut) = (at, false);
                continue;
            }
            Found::Cut => cut |= at == scan.end,
            Found::Nothing => {}
        }
        false_marks += 1;
        let next = bytes[at + 1..].windows(MARK.len()).position(|it| it == MARK);
        at = next.map_or(bytes.len(), |next| at + 1 + next);
    }
    scan.damaged |= scan.end < bytes.len() && !cut;
    scan
}

/// Nobody else opens a store while this file is locked.
fn lock(path: &Path) -> Result<File, StoreError> {
    let beside = beside(path, ".lock");
    let error = |error: io::Error| StoreError::File { path: beside.clone(), what: error.to_string() };
    let file = open(&beside).map_err(error)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(StoreError::InUse(path.into())),
        Err(TryLockError::Error(it)) => Err(error(it)),
    }
}

fn open(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)
}

fn read(file: &mut File) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.rewind()?;
    file.take(MAX_FILE).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The path of a file in the same directory.
fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(suffix);
    path.with_file_name(name)
}

/// Writes what counts to a new file, which does not have its name yet.
fn write_fresh(path: &Path, rows: &Rows) -> io::Result<File> {
    let mut file = open(&beside(path, FRESH))?;
    file.set_len(0)?; // left by a crash
    let mut out = BufWriter::new(&mut file);
    let mut bytes = Vec::new();
    for ((table, key), value) in rows {
        bytes.clear();
        encode(&Row { table: *table, key: key.clone(), value: Some(value.clone()) }, &mut bytes)?;
        out.write_all(&bytes)?;
    }
    out.flush()?;
    drop(out);
    file.sync_all()?;
    Ok(file)
}

/// Gives the new file its name.
fn put_in_place(path: &Path) -> io::Result<()> {
    fs::rename(beside(path, FRESH), path)
}

/// Makes a file's name as durable as its contents.
fn sync_directory(path: &Path) -> io::Result<()> {
    if cfg!(unix) {
        let directory = path.parent().filter(|it| !it.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(directory)?.sync_all()?;
    }
    Ok(()) // elsewhere a directory cannot be opened
}

/// Gives a file that is to be replaced another name, too; until then it keeps the old one, so that a crash in between costs nothing.
fn move_aside(path: &Path, now: UnixTime) -> io::Result<PathBuf> {
    let names = (0..MAX_ASIDE).map(|n| match n {
        0 => beside(path, &format!(".damaged-{}", now.0)),
        n => beside(path, &format!(".damaged-{}-{n}", now.0)),
    });
    let free = names.into_iter().find(|name| !name.exists());
    let aside = free.ok_or_else(|| io::Error::other("too many damaged files are beside it; move them away"))?;
    fs::hard_link(path, &aside).or_else(|_| fs::rename(path, &aside))?; // not every file system has links
    Ok(aside)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // a test may panic

    use std::collections::{BTreeMap, BTreeSet};

    use byway_proto::Rng;

    use super::*;

    /// Rows as a book leaves them behind: most keys several times, some gone; with where each row begins.
    fn written() -> (Vec<Row>, Vec<u8>, Vec<usize>) {
        let mut rng = Rng::new(&[7; 32], "rows");
        let (mut rows, mut bytes, mut begins) = (Vec::new(), Vec::new(), Vec::new());
        for n in 0..400u64 {
            let key = rng.below(150).to_be_bytes().to_vec();
            let value = (rng.below(8) > 0).then(|| n.to_be_bytes().repeat(1 + rng.below(60) as usize));
            rows.push(Row { table: rng.below(2) as u8, key, value });
            begins.push(bytes.len());
            encode(rows.last().unwrap(), &mut bytes).unwrap();
        }
        begins.push(bytes.len());
        (rows, bytes, begins)
    }

    /// Damages some bytes somehow; returns the stretch of the old ones that is no longer what it was.
    fn damage(bytes: &mut Vec<u8>, rng: &mut Rng) -> std::ops::Range<usize> {
        let at = rng.below(bytes.len() as u64) as usize;
        let end = (at + 1 + rng.below(3_000) as usize).min(bytes.len());
        match rng.below(7) {
            0 => bytes[at] ^= 1 << rng.below(8),
            1 => bytes.truncate(at),
            2 => bytes[at..end].fill(0),
            3 => bytes[at..end].fill_with(|| rng.below(256) as u8),
            4 => drop(bytes.drain(at..end)),
            5 => drop(bytes.splice(at..at, (0..end - at).map(|n| MARK[n % 4]).collect::<Vec<_>>())),
            _ => bytes[at..end].fill_with(|| MARK[rng.below(4) as usize]),
        }
        match bytes.len() {
            len if len == at => at..usize::MAX,
            _ => at..end,
        }
    }

    #[test]
    fn no_damage_invents_a_row_or_costs_one_that_it_does_not_hit() {
        let (rows, whole, begins) = written();
        let mut last: BTreeMap<_, usize> = BTreeMap::new();
        let mut values: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
        for (n, row) in rows.iter().enumerate() {
            last.insert((row.table, row.key.clone()), n);
            values.entry((row.table, row.key.clone())).or_default().extend(row.value.clone());
        }
        let undamaged = scan(&whole);
        assert!(!undamaged.damaged && undamaged.end == whole.len() && undamaged.rows.len() > 100);
        let mut rng = Rng::new(&[8; 32], "damages");
        let mut noticed = 0;
        for n in 0..20_000 {
            let mut bytes = whole.clone();
            let hit = damage(&mut bytes, &mut rng);
            let found = scan(&bytes);
            for (key, value) in &found.rows {
                assert!(values.get(key).is_some_and(|values| values.contains(value)), "damage {n} invents a row");
            }
            for (key, row) in &last {
                if begins[*row + 1] <= hit.start || begins[*row] >= hit.end {
                    assert_eq!(found.rows.get(key), rows[*row].value.as_ref(), "damage {n} at {hit:?} costs row {row}");
                }
            }
            assert!(found.end <= bytes.len());
            noticed += usize::from(found.damaged);
        }
        assert!(noticed > 15_000, "{noticed}"); // a file that was cut off looks like one after a crash
    }

    #[test]
    fn a_row_that_a_crash_cut_off_is_no_damage_and_makes_room() {
        let (_, whole, begins) = written();
        let before = begins[begins.len() - 2];
        for len in before..whole.len() {
            let found = scan(&whole[..len]);
            assert!(!found.damaged && found.end == before, "{len}");
        }
    }

    #[test]
    fn garbage_of_any_kind_is_read_in_bounded_time() {
        let mut rng = Rng::new(&[9; 32], "garbage");
        for _ in 0..200 {
            let len = rng.below(10_000) as usize;
            let garbage: Vec<u8> = (0..len).map(|_| rng.below(256) as u8).collect();
            let found = scan(&garbage);
            assert!(found.rows.is_empty() && found.end == 0);
        }
        // Marks that promise the longest values: each would cost a checksum over 64 KiB.
        let mut promise = MARK.to_vec();
        promise.extend([PUT, 0, 0, 0]);
        promise.extend((MAX_VALUE as u32).to_le_bytes());
        let mut promises = promise.repeat(100_000);
        encode(&row(1, 10), &mut promises).unwrap();
        let found = scan(&promises);
        assert!(found.damaged && found.rows.is_empty(), "the search ends before it comes to the row");
    }

    fn row(key: u8, len: usize) -> Row {
        Row { table: 0, key: vec![key], value: Some(vec![key; len]) }
    }

    /// A file in a directory of its own, which goes with the test.
    struct Place(PathBuf);

    impl Place {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("byway-log-{name}-{}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            Place(path)
        }

        fn open(&self) -> (Log, Rows, Option<PathBuf>) {
            Log::open(&self.0.join("rows"), UnixTime(7)).unwrap()
        }
    }

    impl Drop for Place {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn what_a_failed_write_left_behind_is_gone_with_the_next_one() {
        let place = Place::new("torn");
        let (mut log, ..) = place.open();
        log.append(&[row(1, 10)]).unwrap();
        log.file.write_all(&[0xee; 500]).unwrap(); // as far as the disk had room
        log.torn = true;
        log.append(&[row(2, 10)]).unwrap();
        drop(log);
        let (_, rows, aside) = place.open();
        assert_eq!((rows.len(), aside), (2, None));
    }

    #[test]
    fn a_file_grows_by_what_counts_and_some_slack_and_keeps_every_row() {
        let place = Place::new("tidy");
        let (mut log, ..) = place.open();
        for n in 0..200u8 {
            log.append(&[row(n % 4, 50_000), row(4 + n % 2, 10)]).unwrap();
        }
        let size = fs::metadata(place.0.join("rows")).unwrap().len();
        assert!(size <= 2 * 4 * 51_000 + SLACK, "{size}");
        drop(log);
        let (_, rows, aside) = place.open();
        assert_eq!((rows.len(), aside), (6, None));
        assert!(rows.iter().all(|((_, key), value)| value.iter().all(|byte| *byte == key[0])));
    }

    #[test]
    fn what_is_too_large_is_refused_and_nothing_of_it_written() {
        let place = Place::new("large");
        let (mut log, ..) = place.open();
        assert!(log.append(&[row(1, 10), row(2, MAX_VALUE + 1)]).is_err());
        log.append(&[row(3, MAX_VALUE)]).unwrap();
        (log.end, log.tidy_at) = (MAX_FILE, u64::MAX);
        assert_eq!(log.append(&[row(4, 1)]).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
        drop(log);
        let (_, rows, aside) = place.open();
        assert_eq!((rows.len(), aside), (1, None));
    }

    #[test]
    fn two_damaged_files_of_one_second_are_both_kept() {
        let place = Place::new("aside");
        let mut kept = Vec::new();
        for n in 0..2 {
            fs::write(place.0.join("rows"), [n; 100]).unwrap();
            kept.push(place.open().2.unwrap());
        }
        assert!((0..2).all(|n| fs::read(&kept[usize::from(n)]).unwrap() == [n; 100]), "{kept:?}");
    }

    #[test]
    fn as_many_damaged_files_of_one_second_are_kept_as_are_allowed_and_the_next_one_is_left_alone() {
        let place = Place::new("many");
        let path = place.0.join("rows");
        for n in 0..=MAX_ASIDE {
            fs::write(&path, [1; 100]).unwrap();
            assert_eq!(Log::open(&path, UnixTime(7)).is_ok(), n < MAX_ASIDE, "{n}");
        }
        assert_eq!(fs::read(&path).unwrap(), [1; 100]);
    }

    #[test]
    fn a_length_that_no_row_has_is_damage_and_no_row_that_a_crash_cut_off() {
        let mut bytes = Vec::new();
        encode(&row(1, 10), &mut bytes).unwrap();
        bytes[CHECK - 1] = 0xff; // the highest byte of the value's length
        assert!(scan(&bytes).damaged);
    }

    #[test]
    fn a_file_that_is_larger_than_any_is_moved_aside_unread() {
        let place = Place::new("huge");
        place.open().0.append(&[row(1, 10)]).unwrap();
        let file = OpenOptions::new().write(true).open(place.0.join("rows")).unwrap();
        file.set_len(MAX_FILE + 1).unwrap(); // a hole, which takes no room on the disk
        let (_, rows, aside) = place.open();
        assert!(rows.is_empty() && aside.is_some());
    }

    #[test]
    fn a_file_that_is_damaged_meanwhile_grows_and_its_damage_is_told_at_the_next_start() {
        let place = Place::new("rotten");
        let (mut log, ..) = place.open();
        log.append(&[row(1, 100), row(2, 100)]).unwrap();
        log.file.seek(SeekFrom::Start(HEADER as u64 + 50)).unwrap();
        log.file.write_all(&[0xee]).unwrap();
        log.tidy_at = 0;
        log.append(&[row(3, 100)]).unwrap();
        assert_eq!(log.tidy_at, SLACK, "it is not read anew for each row");
        drop(log);
        let (_, rows, aside) = place.open();
        assert_eq!((rows.len(), aside.is_some()), (2, true));
    }
}
