//! A datagram in two halves, for a route that carries less than the connection's packets: QUIC's packet size is one per connection,
//! a route's is its own.

use alloc::{collections::VecDeque, vec::Vec};
use core::time::Duration;

use crate::time::Instant;

/// The first byte of a half datagram.
pub const FIRST_BYTE: u8 = 0x82;

/// The bytes before the half: first byte, key id, fragment id, index.
pub const PREFIX_LEN: usize = 1 + 8 + 4 + 1;

/// The longest half in bytes: half of the largest datagram that an Ethernet frame carries; a longer one is not ours.
pub const MAX_HALF_LEN: usize = 750;

/// How many datagrams wait for their other half: one flight of ten and half of the next. 16 × 750 B are 12 KB a peer.
pub const MAX_PENDING: usize = 16;

/// How long a half waits for the other: several round trips, far below the time in which fragment ids repeat.
pub const MAX_AGE: Duration = Duration::from_secs(1);

/// Half a datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fragment<'a> {
    /// Names the connection ([`ProbeKey::id`](super::probe::ProbeKey)).
    pub key_id: [u8; 8],
    /// Names the datagram within the connection and direction.
    pub frag_id: u32,
    /// Whether this is the second half.
    pub second: bool,
    /// The bytes, 1 to [`MAX_HALF_LEN`].
    pub half: &'a [u8],
}

/// Splits a datagram of 2 to 2 × [`MAX_HALF_LEN`] bytes in halves of equal length (the first has the odd byte).
///
/// The receiver drops the halves of a datagram outside these limits.
pub fn split(datagram: &[u8], key_id: [u8; 8], frag_id: u32) -> [Vec<u8>; 2] {
    let (first, second) = datagram.split_at_checked(datagram.len().div_ceil(2)).unwrap_or((datagram, &[]));
    [(0, first), (1, second)].map(|(index, half)| {
        let mut fragment = Vec::with_capacity(PREFIX_LEN.saturating_add(half.len()));
        fragment.push(FIRST_BYTE);
        fragment.extend(key_id);
        fragment.extend(frag_id.to_be_bytes());
        fragment.push(index);
        fragment.extend(half);
        fragment
    })
}

/// Reads a half datagram.
#[inline]
pub fn parse(datagram: &[u8]) -> Option<Fragment<'_>> {
    let (prefix, half) = datagram.split_first_chunk::<PREFIX_LEN>()?;
    let [FIRST_BYTE, k0, k1, k2, k3, k4, k5, k6, k7, f0, f1, f2, f3, index @ (0 | 1)] = *prefix else {
        return None;
    };
    (1..=MAX_HALF_LEN).contains(&half.len()).then_some(Fragment {
        key_id: [k0, k1, k2, k3, k4, k5, k6, k7],
        frag_id: u32::from_be_bytes([f0, f1, f2, f3]),
        second: index == 1,
        half,
    })
}

/// The halves of one peer's datagrams that wait for the other half: at most [`MAX_PENDING`], each at most [`MAX_AGE`].
///
/// Halves are not authenticated (the packet they make up is, by QUIC), so whoever owns this looks the key id up first.
#[derive(Debug, Clone, Default)]
pub struct Reassembly {
    /// Oldest first.
    pending: VecDeque<Pending>,
}

#[derive(Debug, Clone)]
struct Pending {
    key_id: [u8; 8],
    frag_id: u32,
    second: bool,
    half: Vec<u8>,
    arrived: Instant,
}

impl Reassembly {
    /// Nothing waits.
    pub const fn new() -> Self {
        Reassembly { pending: VecDeque::new() }
    }

    /// Takes a half; returns the datagram if it was the missing one. When there is no room, the oldest half goes.
    pub fn push(&mut self, fragment: Fragment<'_>, now: Instant) -> Option<Vec<u8>> {
        self.pending.retain(|pending| now.since(pending.arrived) <= MAX_AGE);
        let same = |pending: &Pending| (pending.key_id, pending.frag_id) == (fragment.key_id, fragment.frag_id);
        match self.pending.iter().position(same) {
            Some(position) => self.complete(position, fragment),
            None => {
                self.keep(fragment, now);
                None
            }
        }
    }

    /// How many halves wait.
    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    fn complete(&mut self, position: usize, fragment: Fragment<'_>) -> Option<Vec<u8>> {
        if self.pending.get(position)?.second == fragment.second {
            return None; // the same half again
        }
        let other = self.pending.remove(position)?;
        let (first, second) =
            if fragment.second { (&other.half[..], fragment.half) } else { (fragment.half, &other.half[..]) };
        Some([first, second].concat())
    }

    fn keep(&mut self, fragment: Fragment<'_>, now: Instant) {
        while self.pending.len() >= MAX_PENDING {
            self.pending.pop_front();
        }
        self.pending.push_back(Pending {
            key_id: fragment.key_id,
            frag_id: fragment.frag_id,
            second: fragment.second,
            half: fragment.half.to_vec(),
            arrived: now,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use proptest::prelude::*;

    const KEY: [u8; 8] = [1, 2, 3, 4, 5, 6, 7, 8];

    fn at(millis: u64) -> Instant {
        Instant::after_start(Duration::from_millis(millis))
    }

    fn push(reassembly: &mut Reassembly, half: &[u8], now: Instant) -> Option<Vec<u8>> {
        reassembly.push(parse(half).unwrap(), now)
    }

    #[test]
    fn bytes_are_the_documented_ones() {
        let [first, second] = split(&[0x40, 0xaa, 0xbb], KEY, 0x0a0b_0c0d);
        assert_eq!(first, [0x82, 1, 2, 3, 4, 5, 6, 7, 8, 0xa, 0xb, 0xc, 0xd, 0, 0x40, 0xaa]);
        assert_eq!(second, [0x82, 1, 2, 3, 4, 5, 6, 7, 8, 0xa, 0xb, 0xc, 0xd, 1, 0xbb]);
    }

    #[test]
    fn halves_of_several_datagrams_may_mix() {
        let mut reassembly = Reassembly::new();
        let [a0, a1] = split(&[1; 100], KEY, 1);
        let [b0, b1] = split(&[2; 101], KEY, 2);
        assert_eq!(push(&mut reassembly, &b1, at(0)), None);
        assert_eq!(push(&mut reassembly, &a0, at(1)), None);
        assert_eq!(push(&mut reassembly, &b0, at(2)), Some(vec![2; 101]));
        assert_eq!(push(&mut reassembly, &a1, at(3)), Some(vec![1; 100]));
        assert_eq!(reassembly.pending(), 0);
    }

    #[test]
    fn the_same_half_twice_completes_nothing() {
        let mut reassembly = Reassembly::new();
        let [first, second] = split(&[1; 10], KEY, 1);
        assert_eq!(push(&mut reassembly, &first, at(0)), None);
        assert_eq!(push(&mut reassembly, &first, at(0)), None);
        assert_eq!(push(&mut reassembly, &second, at(0)), Some(vec![1; 10]));
    }

    #[test]
    fn another_connections_half_completes_nothing() {
        let mut reassembly = Reassembly::new();
        assert_eq!(push(&mut reassembly, &split(&[1; 10], KEY, 1)[0], at(0)), None);
        assert_eq!(push(&mut reassembly, &split(&[1; 10], [0; 8], 1)[1], at(0)), None);
    }

    #[test]
    fn an_old_half_is_forgotten() {
        let mut reassembly = Reassembly::new();
        let [first, second] = split(&[1; 10], KEY, 1);
        assert_eq!(push(&mut reassembly, &first, at(0)), None);
        assert_eq!(push(&mut reassembly, &second, at(1001)), None);
        assert_eq!(reassembly.pending(), 1);
        assert_eq!(push(&mut reassembly, &first, at(2001)), Some(vec![1; 10]));
    }

    #[test]
    fn the_oldest_half_makes_room() {
        let mut reassembly = Reassembly::new();
        for frag_id in 0..=MAX_PENDING as u32 {
            assert_eq!(push(&mut reassembly, &split(&[1; 10], KEY, frag_id)[0], at(0)), None);
        }
        assert_eq!(reassembly.pending(), MAX_PENDING);
        assert_eq!(push(&mut reassembly, &split(&[1; 10], KEY, 1)[1], at(0)), Some(vec![1; 10]));
        assert_eq!(push(&mut reassembly, &split(&[1; 10], KEY, 0)[1], at(0)), None);
    }

    #[test]
    fn impossible_halves_are_none() {
        let good = split(&[1; 10], KEY, 1)[0].clone();
        assert_eq!(parse(&good[..PREFIX_LEN]), None);
        let mut third = good.clone();
        third[13] = 2;
        assert_eq!(parse(&third), None);
        assert_eq!(parse(&[&good[..], &[0; MAX_HALF_LEN]].concat()), None);
        let mut probe = good;
        probe[0] = 0x80;
        assert_eq!(parse(&probe), None);
    }

    proptest! {
        #[test]
        fn datagrams_round_trip(
            datagram in prop::collection::vec(any::<u8>(), 2..=2 * MAX_HALF_LEN),
            key_id: [u8; 8],
            frag_id: u32,
            swapped: bool,
        ) {
            let mut halves = split(&datagram, key_id, frag_id);
            prop_assert!(halves.iter().all(|half| half.len() <= datagram.len().div_ceil(2) + PREFIX_LEN));
            if swapped {
                halves.reverse();
            }
            let mut reassembly = Reassembly::new();
            prop_assert_eq!(push(&mut reassembly, &halves[0], at(0)), None);
            prop_assert_eq!(push(&mut reassembly, &halves[1], at(900)), Some(datagram));
        }

        #[test]
        fn no_bytes_panic_and_memory_stays_bounded(datagrams: Vec<(Vec<u8>, u16)>, tail: Vec<u8>) {
            let mut reassembly = Reassembly::new();
            let _ = (parse(&tail), split(&tail, KEY, 0));
            for (mut datagram, millis) in datagrams {
                datagram.splice(0..0, [FIRST_BYTE, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0]);
                if let Some(fragment) = parse(&datagram) {
                    reassembly.push(fragment, at(millis.into()));
                }
                prop_assert!(reassembly.pending() <= MAX_PENDING);
            }
        }
    }
}
