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

#[tokio::test]
async fn a_damaged_file_is_moved_aside_and_a_new_one_begun() {
    let scratch = Scratch::new("damage");
    let file = scratch.file();
    let (store, _) = Store::open(&file, NOW).unwrap();
    let head = Head { key: [9; 32], anchors: vec![peer(1)] };
    let rows = [Change::Head(head.clone())].into_iter().chain((0..500).map(row)).collect();
    store.save(rows).await.unwrap();
    drop(store);
    let (store, opened) = open_patiently(&file);
    assert_eq!((opened.head, opened.records.len()), (Some(head), 500));
    drop(store);
    drop(open_patiently(&file));
    let whole = fs::read(&file).unwrap();
    let mut damages: Vec<Vec<u8>> = vec![
        b"not a database at all".to_vec(),
        vec![0; whole.len()],
        vec![0xff; 4_096],
        whole[..whole.len() / 2].to_vec(),
        whole[..100].to_vec(),
    ];
    // Any byte of it, and stretches.
    for n in 0..60usize {
        let mut bytes = whole.clone();
        let at = n * 7_919 % bytes.len();
        let end = (at + 1 + n * 13).min(bytes.len());
        bytes[at..end].iter_mut().for_each(|byte| *byte = !*byte);
        damages.push(bytes);
    }
    let mut aside = 0;
    for (n, damage) in damages.into_iter().enumerate() {
        fs::write(&file, damage).unwrap();
        let (store, opened) = open_patiently(&file);
        aside += usize::from(opened.aside.as_ref().is_some_and(|aside| aside.exists()));
        assert!(opened.aside.is_some() || opened.records.len() + opened.unread <= 500, "damage {n}");
        store.save(vec![row(1)]).await.unwrap_or_else(|error| println!("damage {n}: {error}"));
        drop(store);
        drop(open_patiently(&file));
    }
    assert!(aside >= 4, "{aside}");
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
        self.0.join("book.redb")
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
