//! Which STUN servers a node asks.

use std::net::SocketAddr;

use byway_proto::PeerId;

/// STUN servers that are asked: two answers make a verdict, and the two ports of each of two relays are four.
const MAX_SERVERS: usize = 8;

/// Addresses of one source: two ports, in two families.
const MAX_OF_SOURCE: usize = 4;

/// From where a node knows STUN servers, those that it prefers first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum ServerSource {
    /// A relay that the node has chosen for itself.
    Home(PeerId),
    /// The user.
    Listed,
    /// A relay of somebody's: what tickets name must not take the places of the node's own.
    Foreign(PeerId),
}

impl ServerSource {
    fn relay(self) -> Option<PeerId> {
        match self {
            ServerSource::Home(relay) | ServerSource::Foreign(relay) => Some(relay),
            ServerSource::Listed => None,
        }
    }
}

/// All that are known, by preference: those of the relays in use, which are bounded elsewhere, and [`MAX_SERVERS`] of the user's.
#[derive(Debug, Default)]
pub(super) struct Servers(Vec<(ServerSource, SocketAddr)>);

impl Servers {
    /// What a source says: a relay in place of what it said before, nothing once it is gone; the user in addition to it.
    pub(super) fn tell(&mut self, source: ServerSource, addrs: impl IntoIterator<Item = SocketAddr>) {
        if let Some(relay) = source.relay() {
            self.0.retain(|(known, _)| known.relay() != Some(relay)); // it may have become a home, or ceased to be one
        }
        for told in addrs.into_iter().take(MAX_OF_SOURCE).map(|addr| (source, addr)) {
            let count = self.0.iter().filter(|(known, _)| *known == source).count();
            if count < MAX_SERVERS && !self.0.contains(&told) {
                self.0.push(told);
            }
        }
        self.0.sort_by_key(|(source, _)| *source);
    }

    /// Whether a relay that the node has chosen for itself sees it over UDP.
    pub(super) fn has_home(&self) -> bool {
        self.0.iter().any(|(source, _)| matches!(source, ServerSource::Home(_)))
    }

    /// The servers to ask, the best first.
    pub(super) fn asked(&self) -> Vec<SocketAddr> {
        let mut asked = Vec::new();
        for (_, addr) in &self.0 {
            if asked.len() < MAX_SERVERS && !asked.contains(addr) {
                asked.push(*addr);
            }
        }
        asked
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn relay(n: u8) -> PeerId {
        PeerId::ed25519([n; 32])
    }

    fn ports(n: u8) -> [SocketAddr; 2] {
        [1, 2].map(|port| SocketAddr::from(([192, 0, 2, n], port)))
    }

    #[test]
    fn relays_of_tickets_leave_room_for_the_nodes_own() {
        let mut servers = Servers::default();
        (1..=9).for_each(|n| servers.tell(ServerSource::Foreign(relay(n)), ports(n)));
        assert_eq!(servers.asked().len(), MAX_SERVERS);
        servers.tell(ServerSource::Listed, ports(20));
        servers.tell(ServerSource::Home(relay(30)), ports(30));
        assert_eq!(servers.asked()[..4], [ports(30), ports(20)].concat());
    }

    #[test]
    fn a_user_who_adds_servers_without_end_is_held_to_as_many_as_are_asked() {
        let mut servers = Servers::default();
        (0..9).for_each(|_| servers.tell(ServerSource::Listed, ports(1)));
        (2..=9).for_each(|n| servers.tell(ServerSource::Listed, ports(n)));
        assert_eq!(servers.asked(), (1..=4).flat_map(ports).collect::<Vec<_>>());
        assert_eq!(servers.0.len(), MAX_SERVERS);
    }

    #[test]
    fn a_relay_that_is_gone_leaves_its_places_to_others() {
        let mut servers = Servers::default();
        (1..=5).for_each(|n| servers.tell(ServerSource::Home(relay(n)), ports(n)));
        assert!(!servers.asked().contains(&ports(5)[0]));
        servers.tell(ServerSource::Foreign(relay(1)), []); // no home any more, then gone
        assert_eq!(servers.asked(), (2..=5).flat_map(ports).collect::<Vec<_>>());
    }
}
