//! A world: one seed, one clock, one network.

use std::{
    fmt,
    future::Future,
    net::IpAddr,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    task::{Context, Poll, Waker},
    time::Duration,
};

use byway_proto::Rng;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::{
    fabric::{Fabric, NodeId},
    host::Host,
    link::Link,
    nat::{Nat, NatConfig},
    rule::{Packet, Rule, Verdict},
    time::Time,
    trace::{Counters, TraceHash},
};

/// A network in memory; clones are handles to the same one.
///
/// Everything that happens in it follows from its seed and from what the tasks of the runtime do, in one order: two
/// runs of one seed send the same packets at the same times ([`World::hash`]). What makes a run differ all the same
/// are other sources of chance in the tasks: `tokio::select!` without `biased`, hash maps that are iterated, threads.
#[derive(Clone)]
pub struct World {
    shared: Arc<Shared>,
}

impl World {
    /// Runs `scenario` in a world of its own, on a single-threaded runtime whose clock is paused: time passes only
    /// while every task waits for it. The runtime has no I/O driver: real sockets do not work in it.
    ///
    /// ```
    /// use std::time::Duration;
    /// use byway_sim::World;
    ///
    /// let elapsed = World::run(1, |world| async move {
    ///     tokio::time::sleep(Duration::from_secs(3_600)).await; // takes no time at all
    ///     world.elapsed()
    /// });
    /// assert_eq!(elapsed, Duration::from_secs(3_600));
    /// ```
    pub fn run<F, Fut>(seed: u64, scenario: F) -> Fut::Output
    where
        F: FnOnce(World) -> Fut,
        Fut: Future,
    {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .expect("a runtime without I/O asks nothing of the system");
        runtime.block_on(async {
            let world = World::new(seed);
            let output = scenario(world.clone()).await;
            world.shared.look(Fabric::close); // what tasks send while they are torn down belongs to no run
            output
        })
    }

    /// A world in the present runtime, which must be single-threaded, and paused (`start_paused`) for its seed to mean
    /// anything.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime with time enabled.
    pub fn new(seed: u64) -> Self {
        let fabric = Mutex::new(Fabric::new(seed));
        let shared = Arc::new(Shared { fabric, start: Instant::now(), seed });
        let sleep = Box::pin(sleep_until(shared.start));
        tokio::spawn(Driver { shared: Arc::downgrade(&shared), sleep });
        World { shared }
    }

    /// Attaches a host to the core, with a public IPv4 address and a [`Link::standard`].
    pub fn host(&self, name: &str) -> Host {
        let id = self.shared.look(|fabric| fabric.topology.add_host(name, None, Link::standard()));
        Host::new(Arc::clone(&self.shared), id)
    }

    /// Attaches a NAT to the core, with a public IPv4 address and a [`Link::standard`].
    pub fn nat(&self, name: &str, config: NatConfig) -> Nat {
        let id = self.shared.look(|fabric| fabric.topology.add_nat(name, None, Link::standard(), config));
        Nat::new(Arc::clone(&self.shared), id)
    }

    /// Lets `name` resolve to `addr`, besides what it resolves to already.
    pub fn name(&self, name: &str, addr: IpAddr) {
        self.shared.look(|fabric| fabric.names.entry(name.to_owned()).or_default().push(addr));
    }

    /// Lets `name` resolve to nothing any more.
    pub fn forget_name(&self, name: &str) {
        self.shared.look(|fabric| fabric.names.remove(name));
    }

    /// Puts a rule into force until it is [lifted](ActiveRule::lift).
    ///
    /// ```
    /// use byway_sim::{Packet, Verdict, World};
    ///
    /// World::run(1, |world| async move {
    ///     let small = world.rule(|packet: &Packet<'_>| match packet.payload.len() {
    ///         0..=1_200 => Verdict::Pass,
    ///         _ => Verdict::Drop,
    ///     });
    ///     small.lift();
    /// });
    /// ```
    pub fn rule(&self, rule: impl Rule + 'static) -> ActiveRule {
        let id = self.shared.enter(|fabric, _| fabric.rules.add(Box::new(rule)));
        ActiveRule { shared: Arc::clone(&self.shared), id }
    }

    /// Drops everything between two hosts, in both directions and without a sign, until the rule is lifted. Packets
    /// through a relay are between each host and the relay, not between the two.
    pub fn cut(&self, a: &Host, b: &Host) -> ActiveRule {
        let (a, b) = (a.id(), b.id());
        self.rule(move |packet: &Packet<'_>| match packet.receiver {
            Some(to) if (packet.sender, to) == (a, b) || (packet.sender, to) == (b, a) => Verdict::Drop,
            _ => Verdict::Pass,
        })
    }

    /// Drops everything that `from` sends to `to`, but nothing of what `to` sends to `from`.
    pub fn cut_one_way(&self, from: &Host, to: &Host) -> ActiveRule {
        let (from, to) = (from.id(), to.id());
        self.rule(move |packet: &Packet<'_>| match packet.receiver {
            Some(receiver) if packet.sender == from && receiver == to => Verdict::Drop,
            _ => Verdict::Pass,
        })
    }

    /// Random numbers for one purpose of the scenario's own, such as the keys of its nodes.
    pub fn rng(&self, purpose: &str) -> Rng {
        let mut seed = [0; 32];
        seed[..8].copy_from_slice(&self.shared.seed.to_le_bytes());
        Rng::new(&seed, purpose)
    }

    /// The seed of this world.
    pub fn seed(&self) -> u64 {
        self.shared.seed
    }

    /// How long the world has been running, on its own clock.
    pub fn elapsed(&self) -> Duration {
        self.shared.now().since_start()
    }

    /// The hash over everything sent so far.
    pub fn hash(&self) -> TraceHash {
        self.shared.look(|fabric| fabric.trace.hash())
    }

    /// What was sent, delivered and dropped so far.
    pub fn counters(&self) -> Counters {
        self.shared.enter(|fabric, _| fabric.trace.counters.clone())
    }
}

impl fmt::Debug for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("World").field("seed", &self.shared.seed).finish_non_exhaustive()
    }
}

/// A rule in force. Dropping this leaves it in force.
#[derive(Debug)]
pub struct ActiveRule {
    shared: Arc<Shared>,
    id: u64,
}

impl ActiveRule {
    /// Takes the rule out of force.
    pub fn lift(self) {
        let rule = self.shared.enter(|fabric, _| fabric.rules.remove(self.id));
        drop(rule); // unlocked: the rule may own anything
    }
}

/// The network and its clock.
pub(crate) struct Shared {
    fabric: Mutex<Fabric>,
    start: Instant,
    seed: u64,
}

impl Shared {
    /// Brings the network up to the present, does `work` in it, and wakes whom that concerns.
    pub(crate) fn enter<R>(&self, work: impl FnOnce(&mut Fabric, Time) -> R) -> R {
        let now = self.now();
        let mut fabric = self.lock();
        fabric.advance(now);
        let result = work(&mut fabric, now);
        let wakes = fabric.take_wakes();
        drop(fabric);
        wakes.into_iter().for_each(Waker::wake); // unlocked: a waker may run or drop anything
        result
    }

    /// Does `work` that needs neither the present time nor wakes anybody.
    pub(crate) fn look<R>(&self, work: impl FnOnce(&mut Fabric) -> R) -> R {
        work(&mut self.lock())
    }

    /// The name that a node was given.
    pub(crate) fn name_of(&self, node: NodeId) -> String {
        self.look(|fabric| fabric.topology.node(node).name.clone())
    }

    fn now(&self) -> Time {
        Time::after_start(Instant::now().saturating_duration_since(self.start))
    }

    /// A rule that panicked leaves the network between two hops, where it is sound: the lock's poison is ignored so
    /// that tearing down reports the first panic only.
    fn lock(&self) -> MutexGuard<'_, Fabric> {
        self.fabric.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("seed", &self.seed).finish_non_exhaustive()
    }
}

/// The one task of a world: lets happen what is due.
struct Driver {
    shared: Weak<Shared>,
    sleep: Pin<Box<Sleep>>,
}

impl Future for Driver {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            let Some(shared) = self.shared.upgrade() else { return Poll::Ready(()) };
            let Some(due) = shared.enter(|fabric, _| fabric.arm(cx.waker())) else { return Poll::Pending };
            let due = shared.start + due.since_start();
            self.sleep.as_mut().reset(due);
            if self.sleep.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
        }
    }
}
