//! One run of one case.

use std::time::Duration;

use byway::PathKind;
use tokio::time;
use tracing::debug;

use super::{
    Case, FailoverError, Stack,
    flow::{DATAGRAMS, Ledger, Phase},
    scene::Scene,
    wire::BIN,
};
use crate::{Packet, Rule, Verdict, World, noise::Noise};

/// The flows run for this long before anything happens, and up to a second longer.
const WARM: Duration = Duration::from_secs(5);

/// How long a run is watched afterwards.
const WATCH: Duration = Duration::from_secs(10);

/// How long everything is dead in `blackout`.
const OUTAGE: Duration = Duration::from_secs(20);

/// How long a connection idles before its path dies in `idle-death`, and then, up to this much longer, before it speaks.
const IDLE: Duration = Duration::from_secs(20);

/// A long run.
const LONG: Duration = Duration::from_secs(600);

/// How long what was written may take to arrive.
const DRAIN: Duration = Duration::from_secs(300);

/// The new line is filled when this much of it …
const FILLED: f64 = 0.9;

/// … is used for this long.
const FILLED_FOR: Duration = Duration::from_millis(50);

/// A line of which less than this is used in the end was never filled.
const USED: f64 = 0.75;

/// A switch is to blame for gaps that touch this much time before and after it: the doubt that led to it, and the repair.
const AROUND: Duration = Duration::from_secs(1);

/// A switch that lengthened no receiver's gap by more than this cost nothing.
const NO_COST: Duration = Duration::from_millis(100);

/// What a run came to.
#[derive(Debug, Clone, Default)]
pub(super) struct Outcome {
    /// The longest gap that an application saw; `None` where it never ended.
    pub(super) stall: Option<Duration>,
    pub(super) lost_bytes: u64,
    pub(super) duplicated_bytes: u64,
    pub(super) lost_datagrams: u64,
    /// Datagrams that were sent while their direction stood still, and the others.
    pub(super) datagrams: (u64, u64),
    pub(super) errors: u64,
    pub(super) lost_connections: u64,
    /// Switches of the side that switched more often.
    pub(super) switches: u64,
    /// The same of those that cost more than [`NO_COST`].
    pub(super) costly: u64,
    pub(super) copied_pct: f64,
    /// Bytes that applications received while the flows ran.
    pub(super) received: u64,
    /// How long the flows ran.
    pub(super) lasted: Duration,
    pub(super) settle: Option<Duration>,
}

/// Plays a case once, in a world of its own.
pub(super) fn run(case: Case, stack: Stack, seed: u64, hedging: bool) -> Result<Outcome, FailoverError> {
    World::run(seed, |world| async move {
        let scene = match stack {
            Stack::Byway => Scene::start(&world, case, hedging).await?,
            Stack::Bare => Scene::start_bare(&world, case).await?,
        };
        let Some(scene) = scene else {
            return Ok(Outcome { lost_connections: 1, ..Outcome::default() });
        };
        play(scene, case).await
    })
}

async fn play(mut scene: Scene, case: Case) -> Result<Outcome, FailoverError> {
    let world = scene.world.clone();
    let began = world.elapsed();
    if case == Case::IdleDeath {
        time::sleep(IDLE).await;
    } else {
        scene.enter(Phase::Go);
        let jitter = Duration::from_millis(scene.rng.below(1_000));
        time::sleep(if case.is_long() { Duration::ZERO } else { WARM + jitter }).await;
    }
    let event = world.elapsed();
    happen(&mut scene, case).await?;
    let counts_from = world.elapsed(); // nearly all happens at once
    time::sleep(if case.is_long() { LONG } else { WATCH }).await;
    let end = world.elapsed();
    let received = scene.book.read().iter().flatten().map(|ledger| ledger.received).sum();
    let mut outcome = Outcome {
        received,
        copied_pct: scene.wire.copied_pct(),
        switches: (0..2).map(|side| scene.switches(side, began).len() as u64).max().unwrap_or(0),
        settle: settle(&scene, case, event, end),
        lasted: end - began,
        ..Outcome::default()
    };
    scene.enter(Phase::Stop);
    scene.drain(DRAIN).await;
    outcome.lost_connections = scene.lost_connections();
    outcome.stall = (outcome.lost_connections == 0).then_some(Duration::ZERO);
    if case.is_quiet() {
        outcome.costly = costly(&scene, began, end);
    }
    for (flow, directions) in scene.book.read().iter().enumerate() {
        directions.iter().for_each(|ledger| outcome.take(flow, ledger, case, (counts_from, end)));
    }
    debug!(%case, seed = world.seed(), switches = ?[0, 1].map(|side| scene.switches(side, event)), ?event, ?outcome, "run");
    Ok(outcome)
}

impl Outcome {
    /// Takes in what one direction of a flow came to.
    fn take(&mut self, flow: usize, ledger: &Ledger, case: Case, (from, end): (Duration, Duration)) {
        let stall = stall(ledger, case, from, end);
        debug!(flow, ?stall, received = ledger.received, "direction");
        self.errors += ledger.errors;
        if flow == DATAGRAMS {
            let (since, until) = match case {
                _ if case.is_long() => (end, Duration::ZERO),
                Case::IdleDeath => (from, end),
                _ => ledger.longest_gap(from, end),
            };
            let (within, other) = ledger.datagrams.in_and_out(since, until);
            self.datagrams = (self.datagrams.0 + within, self.datagrams.1 + other);
            self.lost_datagrams += ledger.datagrams.lost();
            self.errors += ledger.datagrams.doubled();
            if case == Case::IdleDeath && stall.is_none() {
                return; // there is one datagram, and it may be lost
            }
        } else {
            self.lost_bytes += ledger.lost();
            self.duplicated_bytes += ledger.duplicated;
        }
        self.stall = self.stall.zip(stall).map(|(worst, stall)| worst.max(stall));
    }
}

/// Does what the case is about.
async fn happen(scene: &mut Scene, case: Case) -> Result<(), FailoverError> {
    let world = scene.world.clone();
    let [a, b] = scene.hosts.clone();
    match case {
        Case::DeathUp | Case::DeathDown | Case::DeathBoth | Case::DeathPingpong | Case::Downgrade | Case::Mtu => {
            scene.cut = Some(world.cut(&a, &b));
        }
        Case::OneWayUp => scene.cut = Some(world.cut_one_way(&a, &b)),
        Case::OneWayDown => scene.cut = Some(world.cut_one_way(&b, &a)),
        Case::MappingLost => scene.nats[0].iter().for_each(crate::Nat::forget_mappings),
        Case::RelayDeath => {
            let relay = scene.relay_in_use().await;
            scene.relays[relay].host.set_down();
        }
        Case::Blackout => {
            let dead = a.id();
            let dark = world.rule(move |packet: &Packet<'_>| {
                if packet.sender == dead || packet.receiver == Some(dead) { Verdict::Drop } else { Verdict::Pass }
            });
            time::sleep(OUTAGE).await;
            let direct_is_back = scene.rng.below(2) != 0;
            match scene.relays.first() {
                Some(relay) if direct_is_back => scene.cut = Some(world.cut(&a, &relay.host)),
                Some(_) => scene.cut = Some(world.cut(&a, &b)),
                None => {} // bare QUIC has one path
            }
            dark.lift();
        }
        Case::OnlyRelayRestarts => scene.restart_relay(0).await?,
        Case::IdleDeath => {
            scene.cut = Some(world.cut(&a, &b));
            let wait = scene.rng.below(IDLE.as_millis() as u64);
            time::sleep(Duration::from_millis(wait)).await;
            scene.enter(Phase::Go);
        }
        Case::NetworkChange => {
            a.renumber();
        }
        Case::Upgrade => {
            scene.cut.take().into_iter().for_each(crate::ActiveRule::lift);
            b.add_ipv4(); // a new candidate, which is told and pinged
        }
        Case::Flap => {
            for (from, to) in [(&a, &b), (&b, &a)] {
                let noise = Noise::new(scene.rng.next_u64());
                world.rule(Bursts { from: from.id(), to: to.id(), bad: false, noise });
            }
        }
        _ => {}
    }
    Ok(())
}

/// The longest gap in one direction of a flow, as the case counts it; `None` if it never ended.
fn stall(ledger: &Ledger, case: Case, from: Duration, end: Duration) -> Option<Duration> {
    match case {
        Case::Blackout | Case::IdleDeath => ledger.first_after(from),
        _ => {
            let (since, until) = ledger.longest_gap(from, end);
            Some(until - since)
        }
    }
}

/// How many switches of the side that made more of them lengthened somebody's gaps, beside what is usual in the run.
fn costly(scene: &Scene, began: Duration, end: Duration) -> u64 {
    let book = scene.book.read();
    let ledgers: Vec<(&Ledger, Duration)> =
        book.iter().flatten().map(|ledger| (ledger, ledger.usual_gap(2 * AROUND, began, end))).collect();
    let cost = |at: Duration| {
        let time = (at.saturating_sub(AROUND), at + AROUND);
        let costs = ledgers.iter().map(|(ledger, usual)| ledger.gap_around(time, end).saturating_sub(*usual));
        costs.max().unwrap_or_default()
    };
    let count = |side: usize| {
        let switches = scene.switches(side, began).into_iter().filter(|(at, _)| *at <= end);
        let costs: Vec<Duration> = switches.map(|(at, _)| cost(at)).collect();
        debug!(side, ?costs, "switches for nothing");
        costs.into_iter().filter(|cost| *cost > NO_COST).count() as u64
    };
    count(0).max(count(1))
}

/// How long after its switch a's new line was filled.
fn settle(scene: &Scene, case: Case, event: Duration, end: Duration) -> Option<Duration> {
    if !case.settles() {
        return None;
    }
    let wanted = if case == Case::Upgrade { PathKind::Direct } else { PathKind::Relay };
    let (switched, _) = scene.switches(0, event).into_iter().find(|(_, path)| *path == wanted)?;
    let line = scene.wire.rate(0, end - WATCH / 2, end).min(case.new_rate() as f64);
    if line < USED * case.new_rate() as f64 {
        return None;
    }
    let mut from = switched;
    while from + FILLED_FOR <= end {
        if scene.wire.rate(0, from, from + FILLED_FOR) >= FILLED * line {
            return Some(from + FILLED_FOR - switched);
        }
        from += BIN;
    }
    None
}

/// Loses spells of 20 packets, 17 % of all, on one direction of the direct path.
struct Bursts {
    from: crate::NodeId,
    to: crate::NodeId,
    bad: bool,
    noise: Noise,
}

impl Rule for Bursts {
    fn verdict(&mut self, packet: &Packet<'_>) -> Verdict {
        if packet.sender != self.from || packet.receiver != Some(self.to) {
            return Verdict::Pass;
        }
        self.bad = if self.bad { !self.noise.chance(0.05) } else { self.noise.chance(0.01) };
        if self.bad { Verdict::Drop } else { Verdict::Pass }
    }
}
