//! The one gate through which every packet and every socket of a punch must pass.

use alloc::collections::VecDeque;
use core::time::Duration;

use super::{LinkId, agent::BudgetConfig, turns::Turns};
use crate::{Instant, PeerId};

/// The least time between the end of one hard punch of this host and the start of the next.
pub(super) const HARD_GAP: Duration = Duration::from_secs(20);

/// A dial's allowance is renewed after this long at the earliest, should its connection fall back to the relay or its peer
/// report something new.
pub(super) const RENEWAL: Duration = Duration::from_secs(600);

/// The most guesses of one dial at ports that the peer predicted by itself.
pub(super) const MAX_PREDICTED: u32 = 64;

/// The share of one dial in the packets of a second, as far as they are pings to reported addresses: 125 of 250, and a peer's 18
/// addresses take 54 of them. So one peer that names ever new ones leaves the others as much.
const PING_SHARE: u32 = 2;

const SECOND: Duration = Duration::from_secs(1);

/// What traversal has cost this host so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counters {
    /// The most sockets that one dial opened to punch, at most 256.
    pub mappings_max_per_dial: u32,
    /// The most packets that one dial sent to ports that nobody reported or observed, at most 1,200.
    pub probes_max_per_dial: u32,
    /// The most guesses, openers and candidate pings within any second, at most 250.
    pub per_second_max: u32,
    /// All sockets opened to punch.
    pub mappings: u64,
    /// All guesses.
    pub probes: u64,
    /// All openers.
    pub openers: u64,
    /// All pings to addresses that a peer reported.
    pub pings: u64,
    /// All packets of the port scan, which are no guesses of a dial's allowance.
    pub scanned: u64,
    /// How often a packet had to wait because the second was full.
    pub deferred: u64,
    /// Hard punches begun: many ports, two predictions, scans.
    pub hard_punches: u64,
}

/// What a packet is, for the budget.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// A ping to an address that the peer reported.
    Candidate,
    /// A packet that opens this side's NAT towards an address that the peer reported.
    Opener,
    /// A ping to a port that the peer predicted.
    Predicted,
    /// A ping to a port that somebody guessed.
    Guess,
    /// A ping of the port scan.
    Scan,
}

impl Purpose {
    /// Whether nobody reported or observed the address.
    fn is_guess(self) -> bool {
        matches!(self, Purpose::Predicted | Purpose::Guess)
    }
}

/// Why a packet may not leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Denied {
    /// Not before this time.
    Until(Instant),
    /// Not at all: the dial's allowance is spent.
    Spent,
}

/// What one dial has used.
#[derive(Debug, Clone)]
pub(super) struct Allowance {
    since: Instant,
    mappings: u32,
    probes: u32,
    predicted: u32,
    /// When what was turned away may come back, of its pings and of its punch.
    turns: [Instant; 2],
    /// Since when its pings are counted, for a second, and how many there are.
    pings: (Instant, u32),
}

impl Allowance {
    pub(super) fn new(now: Instant) -> Self {
        let turns = [Instant::START; 2];
        Allowance { since: now, mappings: 0, probes: 0, predicted: 0, turns, pings: (now, 0) }
    }

    /// A new allowance, unless this one is too young for that.
    pub(super) fn renew(&mut self, now: Instant) {
        if now.since(self.since) >= RENEWAL {
            *self = Allowance::new(now);
        }
    }

    pub(super) fn mappings(&self) -> u32 {
        self.mappings
    }

    pub(super) fn probes(&self) -> u32 {
        self.probes
    }
}

/// The limits of this host and how much of them is in use.
#[derive(Debug)]
pub(super) struct Budget {
    limits: BudgetConfig,
    /// When each packet of the last second left; never longer than the limit.
    sent: VecDeque<Instant>,
    /// When each guess of the last [`HARD_GAP`] left; never longer than the limit.
    guessed: VecDeque<Instant>,
    /// When the next ping to a reported address that is turned away may come back, and the next packet of a punch: what a
    /// punch sends is worth nothing seconds later, so it does not stand in line behind all other connections' pings.
    queues: [Instant; 2],
    /// The connection of the hard punch under way, and what all punches had cost when it began.
    hard: Option<(LinkId, u64)>,
    hard_from: Instant,
    turns: Turns,
    counters: Counters,
}

impl Budget {
    pub(super) fn new(limits: BudgetConfig) -> Self {
        Budget {
            limits,
            sent: VecDeque::new(),
            guessed: VecDeque::new(),
            queues: [Instant::START; 2],
            hard: None,
            hard_from: Instant::START,
            turns: Turns::default(),
            counters: Counters::default(),
        }
    }

    pub(super) fn counters(&self) -> Counters {
        self.counters
    }

    /// Whether this packet may leave now; if so, it counts.
    pub(super) fn take(&mut self, purpose: Purpose, dial: &mut Allowance, now: Instant) -> Result<(), Denied> {
        if let Err(denied) = self.check(purpose, dial, now) {
            let Denied::Until(at) = denied else { return Err(denied) };
            self.counters.deferred += 1;
            // one after the other: did all come back at once, each packet would cost as much work as there are connections
            let ([pings, punches], [ping, punch]) = (&mut self.queues, &mut dial.turns);
            let (queue, turn) = if purpose == Purpose::Candidate { (pings, ping) } else { (punches, punch) };
            // a dial keeps its place: a peer that speaks has it try again, and must not make the line longer
            if *turn <= now {
                *turn = at.max(*queue);
                *queue = *turn + SECOND / self.limits.per_second.max(1);
            }
            return Err(Denied::Until(*turn));
        }
        self.sent.push_back(now);
        self.counters.per_second_max = self.counters.per_second_max.max(self.sent.len() as u32);
        if purpose == Purpose::Candidate {
            let (since, pings) = dial.pings;
            dial.pings = if now.since(since) < SECOND { (since, pings.saturating_add(1)) } else { (now, 1) };
        }
        if purpose.is_guess() {
            self.guessed.push_back(now);
            dial.probes += 1;
            dial.predicted += u32::from(purpose == Purpose::Predicted);
            self.counters.probes_max_per_dial = self.counters.probes_max_per_dial.max(dial.probes);
        }
        *match purpose {
            Purpose::Candidate => &mut self.counters.pings,
            Purpose::Opener => &mut self.counters.openers,
            Purpose::Predicted | Purpose::Guess => &mut self.counters.probes,
            Purpose::Scan => &mut self.counters.scanned,
        } += 1;
        Ok(())
    }

    /// Whether this packet might leave now.
    pub(super) fn check(&mut self, purpose: Purpose, dial: &Allowance, now: Instant) -> Result<(), Denied> {
        let guess = purpose.is_guess();
        if self.limits.per_second == 0
            || (guess && dial.probes >= self.limits.probes)
            || (purpose == Purpose::Predicted && dial.predicted >= MAX_PREDICTED)
        {
            return Err(Denied::Spent);
        }
        let full = |ring: &mut VecDeque<Instant>, limit: u32, window: Duration| {
            while ring.front().is_some_and(|at| now.since(*at) > window) {
                ring.pop_front();
            }
            // the first moment at which the oldest is no longer within the window, both ends of which count
            ring.front().filter(|_| ring.len() >= limit as usize).map(|at| *at + window + Duration::from_nanos(1))
        };
        let second = full(&mut self.sent, self.limits.per_second, SECOND);
        let gap = guess.then(|| full(&mut self.guessed, self.limits.probes, HARD_GAP)).flatten();
        let (since, pings) = dial.pings;
        let share = self.limits.per_second.div_ceil(PING_SHARE);
        let is_spent = purpose == Purpose::Candidate && pings >= share && now.since(since) < SECOND;
        let own = is_spent.then(|| since + SECOND);
        second.max(gap).max(own).map_or(Ok(()), |until| Err(Denied::Until(until)))
    }

    /// Whether this dial may open another socket, and send from it.
    pub(super) fn has_mapping(&self, dial: &Allowance) -> bool {
        dial.mappings < self.limits.mappings && self.limits.per_second > 0
    }

    /// Whether this dial may open another socket; if so, it counts.
    pub(super) fn take_mapping(&mut self, dial: &mut Allowance) -> bool {
        let granted = dial.mappings < self.limits.mappings;
        if granted {
            dial.mappings += 1;
            self.counters.mappings += 1;
            self.counters.mappings_max_per_dial = self.counters.mappings_max_per_dial.max(dial.mappings);
        }
        granted
    }

    /// Whose hard punch is under way.
    pub(super) fn hard(&self) -> Option<LinkId> {
        self.hard.map(|(link, _)| link)
    }

    /// Begins a hard punch, of which a host has one at a time; otherwise says when the next may begin at the earliest.
    pub(super) fn begin_hard(&mut self, (link, peer): (LinkId, PeerId), now: Instant) -> Result<(), Instant> {
        let begun = match self.hard {
            Some((holder, _)) if holder == link => return Ok(()),
            Some(_) => Err(now + HARD_GAP),
            None if now < self.hard_from => Err(self.hard_from),
            None => self.turns.take(peer, now),
        };
        match begun {
            Ok(()) => {
                self.hard = Some((link, self.cost()));
                self.counters.hard_punches += 1;
            }
            Err(at) => self.turns.wait(peer, at, now),
        }
        begun
    }

    /// The peer needs no hard punch any more.
    pub(super) fn leave(&mut self, peer: PeerId) {
        self.turns.leave(peer);
    }

    /// Ends this connection's hard punch, if it has one. One that the peer declined has cost nothing, and nobody else waits
    /// for it: a peer that only says that it wants one must not keep the others from theirs.
    pub(super) fn end_hard(&mut self, link: LinkId, now: Instant) {
        if let Some((_, cost)) = self.hard.take_if(|(holder, _)| *holder == link)
            && cost != self.cost()
        {
            self.hard_from = now + HARD_GAP;
        }
    }

    /// Everything but pings to reported addresses.
    fn cost(&self) -> u64 {
        let Counters { mappings, probes, openers, scanned, .. } = self.counters;
        mappings + probes + openers + scanned
    }
}
