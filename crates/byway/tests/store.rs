//! The store on a real disk: killed at any moment, damaged in any way.
#![allow(clippy::unwrap_used)] // a test may panic

use std::{
    collections::BTreeMap,
    env, fs,
    io::{BufRead, BufReader, Write},
    net::SocketAddr,
    path::PathBuf,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use byway::{
    PeerAddr, PeerId, UnixTime,
    book::{Book, BookConfig, Change, Contact, Head, Record},
    store::{Store, StoreError},
};
use byway_proto::Rng;

/// Kills of the writer; each comes at another moment of a commit.
const KILLS: u32 = 200;

/// Peers whose rows are written again and again.
const PEERS: u64 = 4_000;

/// Callers that wait for the writer at once, and rows of each.
const CALLERS: u64 = 16;
const ROWS: u64 = 16;

/// What is acknowledged each second at least.
const RATE: f64 = 1_000.0;

const NOW: UnixTime = UnixTime(1_800_000_000);

/// What the child finds its file by.
const FILE: &str = "BYWAY_STORE_FILE";

#[test]
fn every_acknowledged_row_survives_200_kills_at_random_moments() {
    let scratch = Scratch::new("kills");
    let file = scratch.file();
    let mut acknowledged: BTreeMap<u64, u64> = BTreeMap::new();
    let (mut rows, mut alive) = (0u64, Duration::ZERO);
    for round in 0..KILLS {
        let mut writer = Command::new(env::current_exe().unwrap())
            .args(["--exact", "writer", "--ignored", "--nocapture"])
            .env(FILE, &file)
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(writer.stdout.take().unwrap()).lines();
        let ack = |line: String| line.strip_prefix("acknowledged ").map(|number| number.parse::<u64>().unwrap());
        let first = lines.by_ref().map_while(Result::ok).find_map(ack).expect("the writer opens the store and writes");
        let started = Instant::now();
        let reader = std::thread::spawn(move || lines.map_while(Result::ok).filter_map(ack).collect::<Vec<_>>());
        std::thread::sleep(Duration::from_micros(u64::from(round * 7_919 % 60_000)));
        writer.kill().unwrap(); // SIGKILL
        alive += started.elapsed();
        writer.wait().unwrap();
        for number in reader.join().unwrap().into_iter().chain([first]) {
            rows += ROWS;
            acknowledged.extend((number..number + ROWS).map(|number| (number % PEERS, number)));
        }
        let (store, opened) = Store::open(&file, NOW).unwrap();
        assert_eq!((opened.aside, opened.unread), (None, 0), "round {round}");
        let stored: BTreeMap<_, _> = opened.records.iter().map(|record| (record.peer, record.added.0)).collect();
        for (n, number) in &acknowledged {
            let found = stored.get(&peer(*n)).copied();
            assert!(found >= Some(*number), "round {round}: row {n} is {found:?}, and {number} was acknowledged");
        }
        drop(store);
    }
    let rate = rows as f64 / alive.as_secs_f64();
    println!("{rows} rows acknowledged in {alive:?} over {KILLS} lives: {rate:.0} a second");
    assert!(rate >= RATE, "{rate:.0} a second");
}

/// The process that is killed: rows with rising numbers, each told once it is acknowledged.
#[test]
#[ignore = "a child of another test"]
fn writer() {
    let Some(file) = env::var_os(FILE) else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let (store, opened) = open_patiently(&PathBuf::from(file));
        let begin = opened.records.iter().map(|record| record.added.0 + 1).max().unwrap_or(1).next_multiple_of(ROWS);
        let mut callers = tokio::task::JoinSet::new();
        for caller in 0..CALLERS {
            let store = store.clone();
            callers.spawn(async move {
                for turn in 0.. {
                    let number = begin + (turn * CALLERS + caller) * ROWS;
                    store.save((number..number + ROWS).map(row).collect()).await.unwrap();
                    let mut out = std::io::stdout().lock();
                    if writeln!(out, "acknowledged {number}").and_then(|()| out.flush()).is_err() {
                        return; // nobody listens any more: the end is near
                    }
                }
            });
        }
        while callers.join_next().await.is_some() {}
    });
}

/// The parent's handle to the same file may be closing still.
fn open_patiently(file: &std::path::Path) -> (Store, byway::store::Opened) {
    let end = Instant::now() + Duration::from_secs(10);
    loop {
        match Store::open(file, NOW) {
            Err(StoreError::InUse(_)) if Instant::now() < end => std::thread::sleep(Duration::from_millis(1)),
            opened => return opened.unwrap(),
        }
    }
}

/// Damages of a real file, each opened, written to and opened again.
const DAMAGES: u64 = 2_000;

#[tokio::test]
async fn a_damaged_file_is_moved_aside_and_a_new_one_begun_with_what_is_whole_of_it() {
    let scratch = Scratch::new("damage");
    let file = scratch.file();
    let (store, _) = Store::open(&file, NOW).unwrap();
    let head = Head { key: [9; 32], anchors: vec![peer(1)] };
    store.save([Change::Head(head.clone())].into_iter().chain((0..500).map(row)).collect()).await.unwrap();
    store.save((250..300).map(|n| Change::Gone(peer(n))).collect()).await.unwrap();
    drop(store);
    let (store, opened) = open_patiently(&file);
    assert_eq!((opened.head, opened.records.len(), opened.aside), (Some(head), 450, None));
    drop(store);
    let whole = fs::read(&file).unwrap();
    let (mut aside, mut lost) = (0, 0);
    let mut random = Rng::new(&[3; 32], "damages");
    for n in 0..DAMAGES {
        fs::write(&file, damage(&whole, n, &mut random)).unwrap();
        let (store, opened) = open_patiently(&file);
        let moved = opened.aside.is_some_and(|aside| aside.exists() && fs::remove_file(aside).is_ok());
        aside += u64::from(moved);
        let records: BTreeMap<_, _> = opened.records.into_iter().map(|record| (record.peer, record)).collect();
        assert_eq!(opened.unread, 0, "damage {n}");
        assert!(records.values().all(|record| record.added.0 < 500), "damage {n} invents a row");
        lost += 450usize.saturating_sub(records.len());
        store.save(vec![row(PEERS + 3)]).await.unwrap();
        drop(store);
        let (_store, opened) = open_patiently(&file);
        assert_eq!((opened.aside, opened.unread), (None, 0), "damage {n}: the new file is whole");
        let again: BTreeMap<_, _> = opened.records.into_iter().map(|record| (record.peer, record)).collect();
        assert!(records.iter().all(|(peer, record)| again.get(peer) == Some(record) || *peer == self::peer(3)));
        assert_eq!(again.get(&peer(3)).map(|record| record.added.0), Some(PEERS + 3), "damage {n}");
    }
    println!("{aside} of {DAMAGES} moved aside, {} rows of 450 lost in the mean", lost as u64 / DAMAGES);
    assert!(aside >= DAMAGES / 2, "{aside}");
}

/// A file that is not what it was.
fn damage(whole: &[u8], n: u64, random: &mut Rng) -> Vec<u8> {
    let mut bytes = whole.to_vec();
    let at = random.below(bytes.len() as u64) as usize;
    let end = (at + 1 + random.below(8_192) as usize).min(bytes.len());
    match n % 8 {
        0 => {
            (0..=random.below(4)).for_each(|_| bytes[random.below(whole.len() as u64) as usize] ^= 1 << random.below(8))
        }
        1 => bytes.truncate(at),
        2 => bytes[at / 4_096 * 4_096..].iter_mut().take(4_096).for_each(|byte| *byte = 0),
        3 => bytes[at..end].fill_with(|| random.below(256) as u8),
        4 => drop(bytes.drain(at..end)),
        5 => bytes.extend((at..end).map(|_| random.below(256) as u8)),
        6 => bytes.fill(random.below(256) as u8),
        _ => {
            bytes =
                b"redb\x1a\x0a\xa9\x0d\x0a".iter().copied().chain((0..end).map(|_| random.below(256) as u8)).collect()
        }
    }
    bytes
}

#[test]
fn a_store_has_one_process_and_is_its_owners() {
    let scratch = Scratch::new("one");
    let (_store, _) = Store::open(&scratch.file(), NOW).unwrap();
    assert!(matches!(Store::open(&scratch.file(), NOW), Err(StoreError::InUse(_))));
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        assert_eq!(fs::metadata(scratch.file()).unwrap().permissions().mode() & 0o777, 0o600);
    }
    let nowhere = scratch.0.join("missing").join("book");
    assert!(matches!(Store::open(&nowhere, NOW), Err(StoreError::File { .. })));
}

fn peer(n: u64) -> PeerId {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&n.to_be_bytes());
    PeerId::ed25519(key)
}

/// A row whose number is its date.
fn row(number: u64) -> Change {
    let id = peer(number % PEERS);
    let addr = SocketAddr::from(([198, 51, 100, 1], 4_242));
    let mut book = Book::new(BookConfig::default(), peer(u64::MAX), [1; 32]);
    book.add(Contact::from(PeerAddr::new(id, [addr])), UnixTime(number)).unwrap();
    let record: Record = book.record(id).unwrap();
    Change::Peer(Box::new(record))
}

/// A directory that goes with the test.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = env::temp_dir().join(format!("byway-store-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Scratch(path)
    }

    fn file(&self) -> PathBuf {
        self.0.join("book.rows")
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
