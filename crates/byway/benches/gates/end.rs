//! One run: two ends of a connection, each on a thread and a runtime of its own.

use std::{
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

use tokio::{runtime, sync::Barrier, time};

use crate::load::{Check, Load, Mark, Work};

/// After the handshake: MTU discovery and the first probes are over.
const SETTLE: Duration = Duration::from_millis(300);

/// No run takes so long unless something is stuck.
const LIMIT: Duration = Duration::from_secs(30);

/// Round trips before those that count.
const WARM_UP: usize = 1_000;

/// A way to make a connection between two ends.
pub(crate) trait Library: 'static {
    type Listener;
    type Address: Send + 'static;
    type End: End;

    /// Opens a socket on loopback.
    async fn listen() -> (Self::Listener, Self::Address);

    async fn accept(listener: Self::Listener) -> Self::End;

    async fn dial(address: Self::Address) -> Self::End;
}

/// One end of a connection.
pub(crate) trait End {
    /// Sends a whole load.
    async fn send(&mut self, load: Load);

    /// Receives until `check` has everything.
    async fn receive(&mut self, load: Load, check: &mut Check);

    /// Sends one message and waits for its echo.
    async fn round_trip(&mut self);

    /// Sends messages back as they come.
    async fn echo(&mut self, count: usize);
}

/// What a run took.
#[derive(Debug)]
pub(crate) struct Figure {
    pub(crate) wall: Duration,
    /// User and system time of both ends.
    pub(crate) cpu: Duration,
    /// In ascending order.
    latencies: Vec<Duration>,
}

impl Figure {
    fn new(start: Mark, mut latencies: Vec<Duration>) -> Self {
        let (wall, cpu) = start.elapsed();
        latencies.sort_unstable();
        Figure { wall, cpu, latencies }
    }

    pub(crate) fn percentile(&self, share: f64) -> Duration {
        let last = self.latencies.len().saturating_sub(1);
        self.latencies.get((last as f64 * share) as usize).copied().unwrap_or_default()
    }
}

/// Makes a connection and does the work over it once.
pub(crate) fn run<L: Library>(work: Work) -> Figure {
    let (tell, told) = mpsc::channel();
    let gates = [(); 2].map(|()| Arc::new(Barrier::new(2)));
    let [start, end] = gates.clone();
    let accepting = thread::spawn(move || {
        on_a_runtime(async {
            let (listener, address) = L::listen().await;
            tell.send(address).expect("the dialling side waits for it");
            let mut it = L::accept(listener).await;
            start.wait().await;
            let figure = match work {
                Work::Send(load) => Some(receive(&mut it, load).await),
                Work::PingPong(count) => {
                    it.echo(WARM_UP + count).await;
                    None
                }
            };
            end.wait().await;
            figure
        })
    });
    let [start, end] = gates;
    let address = told.recv().expect("the accepting side listens");
    let dialled = on_a_runtime(async {
        let mut it = L::dial(address).await;
        time::sleep(SETTLE).await;
        start.wait().await;
        let figure = match work {
            Work::Send(load) => {
                it.send(load).await;
                None
            }
            Work::PingPong(count) => Some(ping(&mut it, count).await),
        };
        end.wait().await;
        figure
    });
    let accepted = accepting.join().expect("the accepting side ends well");
    accepted.or(dialled).expect("one of the two sides measures")
}

async fn receive(it: &mut impl End, load: Load) -> Figure {
    let mut check = Check::new(load);
    it.receive(load, &mut check).await;
    assert!(check.is_done());
    Figure::new(check.start.expect("a load is longer than its warm-up"), check.latencies)
}

async fn ping(it: &mut impl End, count: usize) -> Figure {
    for _ in 0..WARM_UP {
        it.round_trip().await;
    }
    let start = Mark::now();
    let mut latencies = Vec::with_capacity(count);
    for _ in 0..count {
        let sent = Instant::now();
        it.round_trip().await;
        latencies.push(sent.elapsed());
    }
    Figure::new(start, latencies)
}

fn on_a_runtime<T>(work: impl Future<Output = T>) -> T {
    let runtime = runtime::Builder::new_current_thread().enable_all().build().expect("a runtime starts");
    runtime.block_on(async { time::timeout(LIMIT, work).await.expect("a run ends within its limit") })
}
