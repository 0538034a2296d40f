//! A link: what lies between a host, or a NAT, and the network above it.

use std::time::Duration;

use crate::{noise::Noise, time::Time, trace::DropReason};

/// One direction of a link, or both alike: delay, jitter, loss, rate, queue, order and MTU.
///
/// ```
/// use std::time::Duration;
/// use byway_sim::{Link, Queue};
///
/// let home = Link::standard()
///     .loss(0.01)
///     .rate(20_000_000)
///     .queue(Queue::Time(Duration::from_millis(50)));
/// assert_eq!(home.delay, Duration::from_millis(25));
/// ```
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Link {
    /// How long a packet travels. Tasks see arrivals at the next whole millisecond; the network itself is exact.
    pub delay: Duration,
    /// Most extra delay; each packet draws its own, uniformly.
    pub jitter: Duration,
    /// Whether jitter lets packets overtake each other; otherwise a packet waits for the one sent before it.
    pub reorder: bool,
    /// Which packets get lost. A lost packet has used the link's rate.
    pub loss: Loss,
    /// Bits per second, IP and transport headers counted; `None` is no limit.
    pub rate: Option<u64>,
    /// How much may wait for the rate; what comes on top is dropped. Meaningless without a rate.
    pub queue: Queue,
    /// Longest IP packet (20 or 40 bytes of IP header, 8 of UDP, payload); longer datagrams are dropped. TCP adapts
    /// its segments to it.
    pub mtu: usize,
}

/// How much may wait in front of a link that has a rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Queue {
    /// What the link carries in this time.
    Time(Duration),
    /// This many bytes.
    Bytes(usize),
}

/// Which packets a link loses.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Loss {
    /// Each packet with this probability, independently.
    Random(f64),
    /// All packets of a bad spell (the Gilbert model): before each packet a spell begins with probability `begin` or,
    /// during one, ends with probability `end`.
    Burst {
        /// Probability that a spell begins at a packet.
        begin: f64,
        /// Probability that a spell ends at a packet; 1/`end` packets is its mean length.
        end: f64,
    },
}

impl Link {
    /// A link without delay, loss or limits but an MTU of 1,500 bytes: what hosts behind a NAT are attached by.
    pub const fn lan() -> Self {
        Link {
            delay: Duration::ZERO,
            jitter: Duration::ZERO,
            reorder: false,
            loss: Loss::Random(0.0),
            rate: None,
            queue: Queue::Time(Duration::from_millis(100)),
            mtu: 1_500,
        }
    }

    /// The access link of the standard network: 25 ms one way, else as [`Link::lan`].
    pub const fn standard() -> Self {
        Self::lan().delay(Duration::from_millis(25))
    }

    /// Sets the one-way delay.
    pub const fn delay(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }

    /// Sets the most extra delay, and whether it lets packets overtake each other.
    pub const fn jitter(mut self, jitter: Duration, reorder: bool) -> Self {
        self.jitter = jitter;
        self.reorder = reorder;
        self
    }

    /// Sets independent loss with this probability (0.01 is 1 %).
    pub const fn loss(mut self, probability: f64) -> Self {
        self.loss = Loss::Random(probability);
        self
    }

    /// Sets loss in bursts; see [`Loss::Burst`].
    pub const fn burst(mut self, begin: f64, end: f64) -> Self {
        self.loss = Loss::Burst { begin, end };
        self
    }

    /// Sets the rate in bits per second; 0 lets nothing through.
    pub const fn rate(mut self, bits_per_second: u64) -> Self {
        self.rate = Some(bits_per_second);
        self
    }

    /// Sets how much may wait for the rate.
    pub const fn queue(mut self, queue: Queue) -> Self {
        self.queue = queue;
        self
    }

    /// Sets the longest IP packet in bytes.
    pub const fn mtu(mut self, bytes: usize) -> Self {
        self.mtu = bytes;
        self
    }
}

impl Default for Link {
    fn default() -> Self {
        Self::standard()
    }
}

/// One direction of a link in use.
#[derive(Debug)]
pub(crate) struct Pipe {
    pub(crate) link: Link,
    noise: Noise,
    /// When the last admitted packet will have left the queue.
    idle_at: Time,
    /// When the last admitted packet arrives; later ones wait for it unless the link reorders.
    last_arrival: Time,
    bad_spell: bool,
}

/// What a pipe needs to know of a packet.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Load {
    /// Bytes of the IP packet.
    pub(crate) size: usize,
    /// Whether the MTU applies.
    pub(crate) rigid: bool,
}

impl Pipe {
    /// A pipe that nothing has passed yet.
    pub(crate) fn new(link: Link, noise: Noise) -> Self {
        Pipe { link, noise, idle_at: Time::START, last_arrival: Time::START, bad_spell: false }
    }

    /// Sends a packet in at `now`: when it comes out, or why not.
    pub(crate) fn admit(&mut self, now: Time, load: Load) -> Result<Time, DropReason> {
        if load.rigid && load.size > self.link.mtu {
            return Err(DropReason::TooLong);
        }
        let left = self.pass_queue(now, load.size)?;
        if self.loses() {
            return Err(DropReason::Loss);
        }
        let arrival = left + self.link.delay + self.noise.up_to(self.link.jitter);
        if self.link.reorder {
            return Ok(arrival);
        }
        self.last_arrival = self.last_arrival.max(arrival);
        Ok(self.last_arrival)
    }

    /// Bytes that wait for the rate at `now`.
    pub(crate) fn backlog(&self, now: Time) -> usize {
        bytes_in(self.link.rate.unwrap_or(0), self.idle_at.since(now))
    }

    /// When at most `bytes` will wait, if nothing more comes.
    pub(crate) fn drained_to(&self, now: Time, bytes: usize) -> Time {
        let rate = self.link.rate.unwrap_or(0);
        let excess = self.backlog(now).saturating_sub(bytes);
        if excess == 0 { now } else { now + transmission(rate, excess) }
    }

    /// When a packet of `size` bytes has left the queue.
    fn pass_queue(&mut self, now: Time, size: usize) -> Result<Time, DropReason> {
        let Some(rate) = self.link.rate else { return Ok(now) };
        if rate == 0 {
            return Err(DropReason::QueueFull);
        }
        let full = match self.link.queue {
            Queue::Time(most) => self.idle_at.since(now) > most,
            Queue::Bytes(most) => self.backlog(now) + size > most.max(size),
        };
        if full {
            return Err(DropReason::QueueFull);
        }
        self.idle_at = self.idle_at.max(now) + transmission(rate, size);
        Ok(self.idle_at)
    }

    fn loses(&mut self) -> bool {
        match self.link.loss {
            Loss::Random(probability) => self.noise.chance(probability),
            Loss::Burst { begin, end } => {
                let turns = self.noise.chance(if self.bad_spell { end } else { begin });
                self.bad_spell ^= turns;
                self.bad_spell
            }
        }
    }
}

/// How long `bytes` take at `rate` bits per second, which is not 0.
fn transmission(rate: u64, bytes: usize) -> Duration {
    Duration::from_nanos((bytes as u64).saturating_mul(8_000_000_000) / rate.max(1))
}

/// How many bytes pass in `time` at `rate` bits per second.
fn bytes_in(rate: u64, time: Duration) -> usize {
    (u128::from(rate) * time.as_nanos() / 8_000_000_000) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pipe(link: Link) -> Pipe {
        Pipe::new(link, Noise::new(7))
    }

    fn load(size: usize) -> Load {
        Load { size, rigid: true }
    }

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn delay_is_exact() {
        let arrival = pipe(Link::lan().delay(Duration::from_micros(25_300))).admit(Time::START, load(100));
        assert_eq!(arrival, Ok(Time::after_start(Duration::from_micros(25_300))));
    }

    #[test]
    fn loss_stays_near_its_probability() {
        let mut pipe = pipe(Link::lan().loss(0.03));
        let lost = (0..100_000).filter(|_| pipe.admit(Time::START, load(100)).is_err()).count();
        assert!((2_800..3_200).contains(&lost), "{lost} of 100,000");
    }

    #[test]
    fn bursts_have_their_mean_length_and_share() {
        let mut pipe = pipe(Link::lan().burst(0.01, 0.2));
        let fates: Vec<bool> = (0..200_000).map(|_| pipe.admit(Time::START, load(100)).is_err()).collect();
        let lost = fates.iter().filter(|lost| **lost).count();
        let spells = fates.windows(2).filter(|pair| !pair[0] && pair[1]).count();
        assert!((8_500..10_500).contains(&lost), "{lost}: 0.01 / 0.21 of 200,000 is 9,524");
        assert!((4.5..5.5).contains(&(lost as f64 / spells as f64)));
    }

    #[test]
    fn rate_spaces_packets_and_queue_bounds_the_wait() {
        let mut pipe = pipe(Link::lan().rate(8_000_000).queue(Queue::Time(ms(10)))); // 1,000 bytes a millisecond
        let arrivals: Vec<_> = (0..20).map(|_| pipe.admit(Time::START, load(1_000))).collect();
        assert_eq!(arrivals[4], Ok(Time::after_start(ms(5))));
        assert_eq!(arrivals[10], Ok(Time::after_start(ms(11))));
        assert_eq!(arrivals[11], Err(DropReason::QueueFull));
        let later = Time::after_start(ms(3));
        assert_eq!(pipe.admit(later, load(1_000)), Ok(Time::after_start(ms(12))));
    }

    #[test]
    fn queue_in_bytes_holds_that_many() {
        let mut pipe = pipe(Link::lan().rate(8_000_000).queue(Queue::Bytes(5_000)));
        let admitted = (0..20).filter(|_| pipe.admit(Time::START, load(1_000)).is_ok()).count();
        assert_eq!(admitted, 5);
        assert_eq!(pipe.backlog(Time::START), 5_000);
        assert_eq!(pipe.drained_to(Time::START, 2_000), Time::after_start(ms(3)));
    }

    #[test]
    fn jitter_reorders_only_where_asked() {
        let overtakes = |reorder| {
            let mut pipe = pipe(Link::standard().jitter(ms(5), reorder));
            let arrivals: Vec<_> =
                (0..1_000).map(|n| pipe.admit(Time::after_start(Duration::from_micros(n * 100)), load(100))).collect();
            arrivals.windows(2).filter(|pair| pair[1] < pair[0]).count()
        };
        assert_eq!(overtakes(false), 0);
        assert!(overtakes(true) > 300);
    }

    #[test]
    fn only_rigid_packets_are_too_long() {
        let mut pipe = pipe(Link::lan().mtu(1_280));
        assert_eq!(pipe.admit(Time::START, load(1_281)), Err(DropReason::TooLong));
        assert_eq!(pipe.admit(Time::START, load(1_280)), Ok(Time::START));
        assert_eq!(pipe.admit(Time::START, Load { size: 1_500, rigid: false }), Ok(Time::START));
    }
}
