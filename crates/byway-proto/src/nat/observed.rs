//! Where peers see this node's packets come from: one more way to learn the outside of a NAT, where no relay or server tells it.
//!
//! Whatever is believed here is told to all peers, and they ping it. So a peer that lies must gain little: each has one
//! address in each family, only a few are told, and those seldom; they are no address that the node's NATs are guessed
//! at; and nothing is believed against what a server says. An address lasts as long as its peer goes on seeing it.

use alloc::{collections::BTreeMap, vec::Vec};
use core::{net::SocketAddr, time::Duration};

use super::{FamilyReport, Mapping, NatReport, candidates::is_private};
use crate::{Instant, PeerId, addr::candidate::is_probeable};

/// Peers whose word is kept for each family: of more than these nothing new is to be learned.
const MAX_WITNESSES: usize = 64;

/// Addresses of each family that are told: the node's own, and one more while a NAT that has forgotten it gives it another.
pub(super) const MAX_TOLD: usize = 2;

/// An address that its peer has not seen for this long is none: even a route that is idle is pinged once a minute.
const LIFE: Duration = Duration::from_secs(300);

/// What is told changes no sooner: each change costs every peer six pings to what is new, wherever a liar has it lead.
pub(super) const SPACING: Duration = Duration::from_secs(60);

/// What peers have said.
#[derive(Debug, Default)]
pub(super) struct Observed {
    ipv4: BTreeMap<PeerId, Witness>,
    ipv6: BTreeMap<PeerId, Witness>,
    told: Vec<SocketAddr>,
    told_at: Option<Instant>,
    /// What should be told differs from what is, but the time has not come.
    is_pending: bool,
}

/// What one peer has said last.
#[derive(Debug, Clone, Copy)]
struct Witness {
    addr: SocketAddr,
    /// When it said so first, and last.
    since: Instant,
    last: Instant,
}

impl Observed {
    /// A peer at `remote` has answered the node's own socket, and says that the ping came from `addr`.
    pub(super) fn hear(&mut self, peer: PeerId, remote: SocketAddr, addr: SocketAddr, now: Instant) {
        let [remote, addr] = [remote, addr].map(|it| SocketAddr::new(it.ip().to_canonical(), it.port()));
        // who is out in the core does not see a private address, nor a neighbour the NAT's outside
        let fits = remote.is_ipv4() == addr.is_ipv4() && is_private(remote.ip()) == is_private(addr.ip());
        if !fits || is_probeable(addr, false).is_err() {
            return;
        }
        let family = if addr.is_ipv4() { &mut self.ipv4 } else { &mut self.ipv6 };
        let known = family.get(&peer).filter(|known| known.addr == addr).map(|known| known.since);
        if family.contains_key(&peer) || family.len() < MAX_WITNESSES {
            family.insert(peer, Witness { addr, since: known.unwrap_or(now), last: now });
        }
    }

    /// The node is on another network; says whether anything was told of the last one.
    pub(super) fn forget(&mut self) -> bool {
        !core::mem::take(self).told.is_empty()
    }

    /// What is to be told from now on, if that is something else than before.
    pub(super) fn poll(&mut self, report: &NatReport, now: Instant) -> Option<Vec<SocketAddr>> {
        for family in [&mut self.ipv4, &mut self.ipv6] {
            family.retain(|_, witness| now.since(witness.last) < LIFE);
        }
        let mut told = believed(&self.ipv4, report.ipv4.as_ref());
        told.extend(believed(&self.ipv6, report.ipv6.as_ref()));
        self.is_pending = told != self.told;
        if !self.is_pending || self.next_change().is_some_and(|at| now < at) {
            return None;
        }
        self.is_pending = false;
        self.told_at = Some(now);
        self.told.clone_from(&told);
        Some(told)
    }

    /// When [`Observed::poll`] has something to do.
    pub(super) fn timeout(&self) -> Option<Instant> {
        let fade = [&self.ipv4, &self.ipv6].into_iter().flat_map(BTreeMap::values).map(|witness| witness.last + LIFE);
        fade.chain(self.next_change().filter(|_| self.is_pending)).min()
    }

    fn next_change(&self) -> Option<Instant> {
        self.told_at.map(|at| at + SPACING)
    }
}

/// The addresses that most peers have seen, of those that as many have the one that was seen first: so a liar takes nobody's
/// place by speaking last.
fn believed(witnesses: &BTreeMap<PeerId, Witness>, report: Option<&FamilyReport>) -> Vec<SocketAddr> {
    let mapping = report.and_then(|report| report.mapping);
    if mapping.is_some_and(|mapping| mapping != Mapping::EndpointIndependent) {
        return Vec::new(); // what one peer sees leads nobody else through such a NAT
    }
    let public = report.and_then(|report| report.public);
    let mut seen: BTreeMap<SocketAddr, (usize, Instant)> = BTreeMap::new();
    for witness in witnesses.values() {
        let is_known = public == Some(witness.addr);
        let is_refuted = public.is_some_and(|public| {
            public.ip() != witness.addr.ip() && is_private(public.ip()) == is_private(witness.addr.ip())
        });
        if !is_known && !is_refuted {
            let (count, since) = seen.entry(witness.addr).or_insert((0, witness.since));
            *count += 1;
            *since = witness.since.min(*since);
        }
    }
    let mut seen: Vec<_> = seen.into_iter().collect();
    seen.sort_by_key(|(addr, (count, since))| (core::cmp::Reverse(*count), *since, *addr));
    seen.into_iter().map(|(addr, _)| addr).take(MAX_TOLD).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    const REMOTE: &str = "198.51.100.9:4000";

    fn at(secs: u64) -> Instant {
        Instant::after_start(Duration::from_secs(secs))
    }

    fn addr(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn peer(n: u8) -> PeerId {
        PeerId::ed25519([n; 32])
    }

    /// A peer somewhere in the core sees this address.
    fn see(observed: &mut Observed, n: u8, seen: &str, now: Instant) {
        let remote = if addr(seen).is_ipv4() { REMOTE } else { "[2001:db8::9]:4000" };
        observed.hear(peer(n), addr(remote), addr(seen), now);
    }

    fn nothing() -> NatReport {
        NatReport::default()
    }

    fn report(public: &str, mapping: Mapping) -> NatReport {
        let family = FamilyReport { public: Some(addr(public)), mapping: Some(mapping), ..FamilyReport::default() };
        NatReport { ipv4: Some(family), ipv6: None }
    }

    #[test]
    fn what_one_peer_sees_is_told_where_no_server_tells_anything() {
        let mut observed = Observed::default();
        assert_eq!((observed.poll(&nothing(), at(0)), observed.timeout()), (None, None));
        see(&mut observed, 1, "203.0.113.1:7", at(1));
        see(&mut observed, 1, "[2001:db8::1]:7", at(1));
        let told = vec![addr("203.0.113.1:7"), addr("[2001:db8::1]:7")];
        assert_eq!(observed.poll(&nothing(), at(1)), Some(told));
        assert_eq!(observed.poll(&nothing(), at(2)), None, "once");
    }

    #[test]
    fn nonsense_is_not_even_kept() {
        let mut observed = Observed::default();
        for (remote, seen) in [
            (REMOTE, "192.168.1.2:4"),
            (REMOTE, "100.64.0.2:4"),
            ("192.168.1.9:4", "203.0.113.1:4"),
            (REMOTE, "[2001:db8::1]:4"),
            ("[2001:db8::9]:4", "203.0.113.1:4"),
            (REMOTE, "203.0.113.1:0"),
            (REMOTE, "127.0.0.1:4"),
            (REMOTE, "224.0.0.1:4"),
            ("192.168.1.9:4", "169.254.169.254:80"),
            ("[2001:db8::9]:4", "[100:0:0:1::5]:4"),
            ("[2001:db8::9]:4", "[ff02::1]:4"),
        ] {
            observed.hear(peer(1), addr(remote), addr(seen), at(0));
            assert_eq!((observed.poll(&nothing(), at(0)), observed.timeout()), (None, None), "{seen} from {remote}");
        }
        observed.hear(peer(1), addr("192.168.1.9:4"), addr("[::ffff:192.168.1.2]:4"), at(0));
        assert_eq!(observed.poll(&nothing(), at(0)), Some(vec![addr("192.168.1.2:4")]), "a neighbour sees the LAN");
    }

    #[test]
    fn a_peer_is_believed_less_than_a_server() {
        let mut observed = Observed::default();
        see(&mut observed, 1, "203.0.113.66:7", at(0));
        see(&mut observed, 2, "203.0.113.1:7", at(0));
        see(&mut observed, 3, "203.0.113.1:8", at(0));
        let easy = report("203.0.113.1:7", Mapping::EndpointIndependent);
        assert_eq!(
            observed.poll(&easy, at(0)),
            Some(vec![addr("203.0.113.1:8")]),
            "another port of that address is left"
        );
        for hard in [Mapping::AddressDependent, Mapping::AddressAndPortDependent] {
            let mut observed = Observed::default();
            see(&mut observed, 2, "203.0.113.1:8", at(0));
            assert_eq!(observed.poll(&report("203.0.113.1:7", hard), at(0)), None, "{hard:?}");
        }
    }

    #[test]
    fn a_peer_has_one_address_in_each_family_and_few_are_told() {
        let mut observed = Observed::default();
        for port in 1..100 {
            see(&mut observed, 1, &alloc::format!("203.0.113.1:{port}"), at(0));
        }
        assert_eq!(observed.poll(&nothing(), at(0)), Some(vec![addr("203.0.113.1:99")]));
        for n in 2..200 {
            see(&mut observed, n, &alloc::format!("203.0.113.{n}:{n}"), at(1));
            see(&mut observed, n, &alloc::format!("[2001:db8::{n}]:{n}"), at(1));
        }
        assert_eq!((observed.ipv4.len(), observed.ipv6.len()), (MAX_WITNESSES, MAX_WITNESSES));
        let told = observed.poll(&nothing(), at(60)).unwrap();
        assert_eq!(told.iter().filter(|addr| addr.is_ipv4()).count(), MAX_TOLD);
        assert_eq!(told.len(), 2 * MAX_TOLD);
    }

    #[test]
    fn a_liar_takes_nobodys_place() {
        let mut observed = Observed::default();
        see(&mut observed, 9, "203.0.113.1:7", at(0));
        for n in 1..=5 {
            see(&mut observed, n, &alloc::format!("192.0.2.{n}:80"), at(1));
        }
        assert_eq!(observed.poll(&nothing(), at(1)).unwrap(), [addr("203.0.113.1:7"), addr("192.0.2.1:80")]);
        see(&mut observed, 5, "192.0.2.4:80", at(2));
        let told = observed.poll(&nothing(), at(61)).unwrap();
        assert_eq!(told, [addr("192.0.2.4:80"), addr("203.0.113.1:7")], "two saw the same");
    }

    #[test]
    fn what_is_told_changes_once_a_minute_however_often_a_peer_changes_its_word() {
        let mut observed = Observed::default();
        let mut changes = Vec::new();
        for ms in 0..600_000_u64 {
            let now = Instant::after_start(Duration::from_millis(ms));
            if ms % 100 == 0 {
                see(&mut observed, 1, &alloc::format!("203.0.113.1:{}", 1 + ms / 100), now);
            }
            if observed.poll(&nothing(), now).is_some() {
                changes.push(now);
            }
            assert!(observed.timeout().is_none_or(|at| at > now));
        }
        assert_eq!(changes.len(), 10);
        assert!(changes.windows(2).all(|pair| pair[1].since(pair[0]) >= SPACING));
    }

    #[test]
    fn an_address_that_nobody_sees_any_more_is_withdrawn_after_five_minutes() {
        let mut observed = Observed::default();
        see(&mut observed, 1, "203.0.113.1:7", at(0));
        observed.poll(&nothing(), at(0)).unwrap();
        see(&mut observed, 1, "203.0.113.1:7", at(200));
        assert_eq!((observed.poll(&nothing(), at(499)), observed.timeout()), (None, Some(at(500))));
        assert_eq!((observed.poll(&nothing(), at(500)), observed.timeout()), (Some(vec![]), None));
    }

    #[test]
    fn another_network_is_another_outside() {
        let mut observed = Observed::default();
        assert!(!observed.forget());
        see(&mut observed, 1, "203.0.113.1:7", at(0));
        observed.poll(&nothing(), at(0)).unwrap();
        assert!(observed.forget());
        assert_eq!((observed.poll(&nothing(), at(0)), observed.timeout()), (None, None));
    }
}
