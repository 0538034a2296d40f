//! The port scan: pings to the ports around the one at which the servers saw the peer.
//!
//! It meets a NAT that gives each destination another port not far from the last. Off unless the configuration says so.

use core::net::SocketAddr;

use super::{LINGER, Next, Turn, at_port};
use crate::{
    Instant,
    nat::{
        Outcome, ScanConfig, SocketId,
        budget::{Denied, Purpose},
    },
};

/// Either side.
#[derive(Debug)]
pub(in crate::nat) struct Scan {
    around: SocketAddr,
    config: ScanConfig,
    began: Instant,
    sent: u32,
    last: Instant,
}

impl Scan {
    pub(in crate::nat) fn new(around: SocketAddr, config: ScanConfig, now: Instant) -> Self {
        Scan { around, config, began: now, sent: 0, last: now }
    }

    pub(super) fn act(&mut self, turn: &mut Turn<'_>) -> Next {
        let range = (turn.host.config.lowest_port.max(1), turn.host.config.highest_port);
        let count = self.config.count.min(u32::from(range.1.saturating_sub(range.0)) + 1);
        while self.sent < count {
            let due = self.began + self.config.duration.mul_f64(f64::from(self.sent) / f64::from(count));
            if turn.now < due {
                return Next::At(due);
            }
            let to = at_port(self.around.ip(), port(self.around.port(), self.config.offset, self.sent, range));
            match turn.ping(Purpose::Scan, SocketId::MAIN, to) {
                Ok(()) => self.sent += 1,
                Err(Denied::Until(at)) => return Next::At(at),
                Err(Denied::Spent) => return Next::Over(Outcome::NoBudget),
            }
            self.last = turn.now;
        }
        let end = self.last + LINGER;
        if turn.now >= end { Next::Over(Outcome::NoAnswer) } else { Next::At(end) }
    }
}

/// The `index`th port of the scan; after the highest of the range follows the lowest, before the lowest lies the highest.
fn port(base: u16, offset: i32, index: u32, (lowest, highest): (u16, u16)) -> u16 {
    let size = i64::from(highest) - i64::from(lowest) + 1;
    if size <= 0 {
        return lowest;
    }
    let ahead = i64::from(base) + i64::from(offset) + i64::from(index) - i64::from(lowest);
    let port = i64::from(lowest) + ahead.rem_euclid(size);
    u16::try_from(port).unwrap_or(lowest)
}

#[cfg(test)]
mod tests {
    use alloc::{collections::BTreeSet, vec::Vec};

    use super::*;

    const RANGE: (u16, u16) = (1_024, u16::MAX);

    #[test]
    fn a_scan_covers_exactly_its_ports_and_wraps_at_both_ends() {
        let all = |base, offset, count| (0..count).map(|index| port(base, offset, index, RANGE)).collect::<Vec<_>>();
        let middle = all(30_000, -1_000, 3_000);
        assert_eq!((middle.len(), middle[0], middle[2_999]), (3_000, 29_000, 31_999));
        assert_eq!(all(1_500, -1_000, 1_001)[..2], [65_012, 65_013]);
        assert_eq!(all(1_500, -1_000, 1_001)[523..525], [65_535, 1_024]);
        assert_eq!(all(65_535, 0, 2), [65_535, 1_024]);
        for (base, offset) in [(1, -65_535), (65_535, 65_535), (1_024, 0)] {
            let ports = all(base, offset, 64_512);
            assert_eq!(ports.iter().collect::<BTreeSet<_>>().len(), 64_512, "no port twice");
            assert!(ports.iter().all(|port| *port >= 1_024));
        }
    }
}
