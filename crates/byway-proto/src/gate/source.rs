//! Who a stranger is before it has a name, and the bounded table of them.

use alloc::vec::Vec;
use core::net::{IpAddr, SocketAddr};

use crate::{schedule::Bucket, time::Instant, wire::relay_data::AllocId};

/// Where a stranger comes from, as far as it cannot be chosen freely.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Source(Origin);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Origin {
    V4([u8; 4]),
    /// One customer's network: its 64 host bits are free to choose.
    V6Net([u8; 8]),
    Relayed(SocketAddr, AllocId),
}

impl Source {
    /// The source of a datagram that came directly: an IPv4 address or an IPv6 /64, whatever the port.
    pub fn of(addr: SocketAddr) -> Self {
        match addr.ip().to_canonical() {
            IpAddr::V4(ip) => Source(Origin::V4(ip.octets())),
            IpAddr::V6(ip) => {
                let [a, b, c, d, e, f, g, h, ..] = ip.octets();
                Source(Origin::V6Net([a, b, c, d, e, f, g, h]))
            }
        }
    }

    /// The source of a datagram that came through a relay.
    pub fn relayed(relay: SocketAddr, alloc: AllocId) -> Self {
        Source(Origin::Relayed(relay, alloc))
    }

    /// The relay, if the source is behind one.
    pub fn relay(&self) -> Option<SocketAddr> {
        match self.0 {
            Origin::Relayed(relay, _) => Some(relay),
            Origin::V4(_) | Origin::V6Net(_) => None,
        }
    }

    fn hash(&self, key: &[u8; 32]) -> u64 {
        let mut hasher = blake3::Hasher::new_keyed(key);
        match self.0 {
            Origin::V4(ip) => hasher.update(&ip),
            Origin::V6Net(net) => hasher.update(&net),
            Origin::Relayed(_, AllocId(id)) => hasher.update(b"relayed").update(&id.to_le_bytes()),
        };
        let [a, b, c, d, e, f, g, h, ..] = *hasher.finalize().as_bytes();
        u64::from_le_bytes([a, b, c, d, e, f, g, h])
    }
}

/// Sources remembered at once: each has a bucket of about 80 bytes, 400 KiB in all.
pub const MAX_SOURCES: usize = SETS * WAYS;

/// The budgets of the sources seen last: a table of small sets found by a keyed hash, each set least recently used out.
///
/// A forgotten source starts with a full budget. Whoever has so many addresses that it can make us forget has that many
/// budgets anyway, and refusing newcomers instead would let it shut everybody out.
#[derive(Debug)]
pub(super) struct Sources {
    seed: [u8; 32],
    sets: Vec<Vec<Seen>>,
}

impl Sources {
    pub(super) fn new(seed: [u8; 32]) -> Self {
        Sources { seed, sets: Vec::new() }
    }

    /// The source's bucket, made by `fresh` if the source is not remembered.
    pub(super) fn bucket(&mut self, source: Source, now: Instant, fresh: impl FnOnce() -> Bucket) -> &mut Bucket {
        self.sets.resize_with(SETS, Vec::new);
        let index = (source.hash(&self.seed) % SETS as u64) as usize;
        let set = self.sets.get_mut(index).expect("a hash modulo SETS is below SETS");
        let found = set.iter().position(|seen| seen.source == source);
        let at = found.unwrap_or_else(|| {
            if set.len() >= WAYS
                && let Some(oldest) = (0..set.len()).min_by_key(|i| set.get(*i).map(|seen| seen.last))
            {
                set.swap_remove(oldest);
            }
            set.push(Seen { source, last: now, bucket: fresh() });
            set.len() - 1
        });
        let seen = set.get_mut(at).expect("found or just pushed");
        seen.last = now;
        &mut seen.bucket
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.sets.iter().map(Vec::len).sum()
    }
}

#[derive(Debug)]
struct Seen {
    source: Source,
    last: Instant,
    bucket: Bucket,
}

const SETS: usize = 512;
const WAYS: usize = 8;

#[cfg(test)]
mod tests {
    use core::net::{Ipv4Addr, Ipv6Addr};

    use super::*;

    #[test]
    fn a_source_is_an_ipv4_address_whatever_its_port_or_form() {
        let plain = Source::of((Ipv4Addr::new(192, 0, 2, 1), 1).into());
        assert_eq!(plain, Source::of((Ipv4Addr::new(192, 0, 2, 1), 2).into()));
        assert_eq!(plain, Source::of((Ipv4Addr::new(192, 0, 2, 1).to_ipv6_mapped(), 3).into()));
        assert_ne!(plain, Source::of((Ipv4Addr::new(192, 0, 2, 2), 1).into()));
    }

    #[test]
    fn an_ipv6_source_is_its_64_bit_network() {
        let host = |net, host| Source::of((Ipv6Addr::new(0x2001, 0xdb8, 0, net, 0, 0, 0, host), 1).into());
        assert_eq!(host(1, 1), host(1, 2));
        assert_ne!(host(1, 1), host(2, 1));
    }

    #[test]
    fn relayed_sources_differ_by_relay_and_allocation() {
        let relay = SocketAddr::from((Ipv4Addr::new(192, 0, 2, 1), 443));
        let other = SocketAddr::from((Ipv4Addr::new(192, 0, 2, 2), 443));
        assert_ne!(Source::relayed(relay, AllocId(1)), Source::relayed(relay, AllocId(2)));
        assert_ne!(Source::relayed(relay, AllocId(1)), Source::relayed(other, AllocId(1)));
        assert_eq!(Source::relayed(relay, AllocId(1)).relay(), Some(relay));
        assert_eq!(Source::of(relay).relay(), None);
    }

    #[test]
    fn the_table_stays_bounded_and_keeps_who_is_active() {
        let mut sources = Sources::new([1; 32]);
        let bucket = || Bucket::new(0, 10, Instant::START);
        let source = |n: u32| Source::of((Ipv4Addr::from_bits(n), 1).into());
        let mut now = Instant::START;
        for n in 0..100_000 {
            now += core::time::Duration::from_micros(1);
            sources.bucket(source(n), now, bucket);
            sources.bucket(source(0), now, bucket).take(1, now);
        }
        assert!(sources.len() <= MAX_SOURCES);
        assert!(!sources.bucket(source(0), now, bucket).take(1, now), "an active source keeps its empty bucket");
    }
}
