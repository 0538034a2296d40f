//! What happened: one hash over everything that was sent, and a count of everything that was dropped.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
};

use crate::time::Time;

/// Bytes gathered before they are hashed: many records per call keep BLAKE3 on its wide path.
const BATCH: usize = 32 * 1024;

/// The fingerprint of a run: two runs that sent the same packets at the same times have the same one.
///
/// BLAKE3 over (time in µs, from, to, length) of every UDP datagram and TCP segment sent, in the order of sending and
/// with addresses as the sender saw them. Displays as 64 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct TraceHash([u8; 32]);

impl TraceHash {
    /// The 32 bytes of the hash.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for TraceHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for TraceHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TraceHash({self})")
    }
}

/// Why a UDP datagram did not arrive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum DropReason {
    /// A link lost it ([`Link::loss`](crate::Link)).
    Loss,
    /// It found a link's queue full ([`Link::queue`](crate::Link)).
    QueueFull,
    /// It was longer than a link's MTU ([`Link::mtu`](crate::Link)).
    TooLong,
    /// A [`Rule`](crate::Rule) said so.
    Rule,
    /// Its sender, its receiver or a NAT on its way was down.
    Down,
    /// Nobody has the destination address, or the sender has no address of that family.
    NoRoute,
    /// No socket is bound to the destination port.
    NoSocket,
    /// The receiving socket's inbox was full.
    InboxFull,
    /// It came to a NAT's port that nothing is mapped to.
    NoMapping,
    /// A NAT's filter did not let its source in.
    Filtered,
    /// A NAT had no port left for a new mapping.
    NoPort,
    /// It went from inside a NAT to the NAT's own outer address, and the NAT has no hairpin.
    Hairpin,
    /// A NAT on its way lets no UDP through.
    UdpBlocked,
    /// The simulator held too many events at once.
    Overload,
}

impl DropReason {
    const COUNT: usize = DropReason::Overload as usize + 1;
}

/// What a world has carried so far.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counters {
    /// UDP datagrams that sockets sent; each segment of a batch counts.
    pub sent: u64,
    /// Bytes of payload in them.
    pub sent_bytes: u64,
    /// UDP datagrams that reached a socket's inbox.
    pub delivered: u64,
    /// TCP segments sent, repetitions not counted.
    pub segments: u64,
    /// TCP segments that were lost on their way and sent again.
    pub resent: u64,
    drops: [u64; DropReason::COUNT],
}

impl Counters {
    /// UDP datagrams dropped for one reason.
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.drops[reason as usize]
    }

    /// UDP datagrams dropped for any reason.
    pub fn dropped_total(&self) -> u64 {
        self.drops.iter().sum()
    }
}

/// The running hash and counters of a world.
#[derive(Debug)]
pub(crate) struct Trace {
    hasher: blake3::Hasher,
    batch: Vec<u8>,
    pub(crate) counters: Counters,
}

impl Trace {
    /// A trace of nothing.
    pub(crate) fn new() -> Self {
        Trace { hasher: blake3::Hasher::new(), batch: Vec::with_capacity(BATCH), counters: Counters::default() }
    }

    /// Records what was sent.
    pub(crate) fn sent(&mut self, now: Time, from: SocketAddr, to: SocketAddr, length: usize) {
        let mut record = [0; 48];
        record[..8].copy_from_slice(&now.micros().to_le_bytes());
        write_addr(&mut record[8..26], from);
        write_addr(&mut record[26..44], to);
        record[44..].copy_from_slice(&(length as u32).to_le_bytes());
        self.batch.extend_from_slice(&record);
        if self.batch.len() + record.len() > BATCH {
            self.hasher.update(&self.batch);
            self.batch.clear();
        }
    }

    /// Counts a dropped datagram.
    pub(crate) fn dropped(&mut self, reason: DropReason) {
        self.counters.drops[reason as usize] += 1;
    }

    /// The hash of everything recorded so far.
    pub(crate) fn hash(&self) -> TraceHash {
        TraceHash(*self.hasher.clone().update(&self.batch).finalize().as_bytes())
    }
}

/// Writes 16 bytes of address (IPv4 as `::ffff:a.b.c.d`) and the port.
fn write_addr(out: &mut [u8], addr: SocketAddr) {
    let ip = match addr.ip() {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    };
    out[..16].copy_from_slice(&ip.octets());
    out[16..18].copy_from_slice(&addr.port().to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(trace: &mut Trace, n: u16) {
        let from = SocketAddr::from(([11, 0, 0, 1], n));
        trace.sent(Time::START, from, SocketAddr::from(([11, 0, 0, 2], 1)), 3);
    }

    #[test]
    fn hash_does_not_depend_on_batches_or_on_being_asked() {
        let (mut asked, mut silent) = (Trace::new(), Trace::new());
        for n in 0..2_000 {
            record(&mut asked, n);
            record(&mut silent, n);
            asked.hash();
        }
        assert_eq!(asked.hash(), silent.hash());
        record(&mut asked, 0);
        assert_ne!(asked.hash(), silent.hash());
    }
}
