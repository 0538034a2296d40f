//! Whether a gateway has lost its mappings, as its epoch tells.

use crate::Instant;

/// What the epoch was, and when.
#[derive(Debug, Clone, Copy)]
pub(super) struct Epoch {
    server: u64,
    client: Instant,
}

impl Epoch {
    pub(super) fn new(server: u32, now: Instant) -> Self {
        Epoch { server: server.into(), client: now }
    }

    /// Whether a later epoch over PCP says that the state is lost (RFC 6887 §8.5): the two clocks may drift apart by a
    /// sixteenth and two seconds.
    pub(super) fn lost_by_pcp(self, later: Epoch) -> bool {
        let client = later.client.since(self.client).as_secs();
        let Some(server) = (later.server + 1).checked_sub(self.server) else { return true };
        let server = server.saturating_sub(1);
        client + 2 < server - server / 16 || server + 2 < client - client / 16
    }

    /// Whether a later epoch over NAT-PMP says so (RFC 6886 §3.6): it is behind by more than an eighth and two seconds.
    pub(super) fn lost_by_natpmp(self, later: Epoch) -> bool {
        let client = later.client.since(self.client).as_secs();
        later.server + 2 < self.server + client * 7 / 8
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::time::Duration;

    fn at(server: u32, client: u64) -> Epoch {
        Epoch::new(server, Instant::after_start(Duration::from_secs(client)))
    }

    #[test]
    fn steady_clocks_lose_nothing() {
        let steady =
            [(100, 0), (101, 1), (99, 0), (103, 1), (100, 2), (160, 60), (158, 60), (3_700, 3_600), (3_600, 3_650)];
        for (server, client) in steady {
            assert!(!at(100, 0).lost_by_pcp(at(server, client)), "{server} {client}");
            assert!(!at(100, 0).lost_by_natpmp(at(server, client)), "{server} {client}");
        }
    }

    #[test]
    fn epoch_that_begins_again_loses_all() {
        for (server, client) in [(0, 60), (3, 60), (98, 0), (90, 0)] {
            assert!(at(100, 0).lost_by_pcp(at(server, client)), "{server} {client}");
        }
        for (server, client) in [(0, 60), (3, 60), (90, 0)] {
            assert!(at(100, 0).lost_by_natpmp(at(server, client)), "{server} {client}");
        }
    }

    #[test]
    fn leap_ahead_loses_all_over_pcp_only() {
        assert!(at(100, 0).lost_by_pcp(at(500, 60)));
        assert!(!at(100, 0).lost_by_natpmp(at(500, 60)));
    }
}
