//! The project's own measurements, as `byway-sim` prints them: each is a scenario and the row it makes.

pub mod channels;
pub mod exchange;
pub mod failover;
pub mod matrix;
pub mod scale;
pub mod soak;
pub mod survey;
pub mod wan;

use std::{
    fs,
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::SystemTime,
};

use byway::{Config, Identity, WallClock};
use byway_proto::Rng;

use crate::World;

/// The settings of a node whose randomness and calendar are the world's.
fn config(world: &World, identity: Identity, rng: &mut Rng) -> Config {
    let mut config = Config::new(identity);
    config.seed = Some(rng.bytes());
    let clock = world.clone();
    config.clock = WallClock::new(move || SystemTime::UNIX_EPOCH + clock.elapsed());
    config
}

/// The outcomes of `count` runs, which `jobs` threads share, in any order.
fn in_threads<T: Send, E: Send>(
    jobs: usize,
    count: u64,
    run: impl Fn(u64) -> Result<T, E> + Sync,
) -> Result<Vec<T>, E> {
    let next = AtomicU64::new(0);
    let work = || -> Result<Vec<T>, E> {
        let mut outcomes = Vec::new();
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= count {
                return Ok(outcomes);
            }
            outcomes.push(run(number)?);
        }
    };
    let done = thread::scope(|scope| {
        let threads: Vec<_> = (0..jobs.max(1)).map(|_| scope.spawn(work)).collect();
        threads.into_iter().map(|thread| thread.join().expect("a run reports, it does not panic")).collect::<Vec<_>>()
    });
    let mut outcomes = Vec::new();
    for part in done {
        outcomes.append(&mut part?);
    }
    Ok(outcomes)
}

/// What the system says of this process's memory under `name`, in KiB (Linux).
fn memory_kib(name: &str) -> Option<f64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.split_whitespace().next()?.parse().ok()
}
