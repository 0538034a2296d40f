//! What a NAT remembers: mappings, and the sessions that opened them.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use self::lease::Lease;
use super::{Filtering, Mapping, NatConfig, Ports};
use crate::{noise::Noise, rule::Transport, time::Time, trace::DropReason};

pub(crate) mod lease;

/// How long an idle TCP mapping lives: 2 hours 4 minutes (RFC 5382 §5).
pub(crate) const TCP_TIMEOUT: Duration = Duration::from_secs(7_440);

/// Lowest outer port that a NAT hands out: below lie the well-known ports (RFC 4787 §4.2.1).
const MIN_PORT: u16 = 1_024;

/// How many ports there are from [`MIN_PORT`] on.
const PORTS: u32 = u16::MAX as u32 - MIN_PORT as u32 + 1;

/// How often a random port is drawn before the next free one is taken, so that a nearly full NAT still answers.
const MAX_DRAWS: usize = 64;

/// Mappings of other hosts that are counted one by one after a silence: once through all ports, the counter may stand
/// anywhere.
const MAX_OTHERS: u32 = 1 << 16;

/// The translation table of one NAT.
#[derive(Debug)]
pub(crate) struct Table {
    pub(crate) config: NatConfig,
    outward: BTreeMap<MappingKey, u16>,
    inward: BTreeMap<(Transport, u16), Mapped>,
    /// Sessions over all mappings, at most `config.max_sessions`.
    sessions: usize,
    noise: Noise,
    last_port: u16,
    /// When a host that the world does not have opens its next mapping.
    other_due: Time,
    started: Time,
}

/// What packets must have in common to share a mapping; the parts that do not matter are `None`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct MappingKey {
    transport: Transport,
    inner: SocketAddr,
    remote_ip: Option<IpAddr>,
    remote_port: Option<u16>,
}

#[derive(Debug)]
struct Mapped {
    key: MappingKey,
    /// While it lasts, everybody may send to the port, and silence does not end the mapping.
    lease: Option<Lease>,
    made: Time,
    used: Time,
    sessions: BTreeMap<SocketAddr, Session>,
}

#[derive(Debug)]
struct Session {
    used: Time,
    answered: bool,
}

impl Table {
    /// An empty table.
    pub(crate) fn new(config: NatConfig, mut noise: Noise) -> Self {
        let last_port = any_port(&mut noise);
        let other_due = Time::START + noise.wait(config.background);
        Table {
            config,
            outward: BTreeMap::new(),
            inward: BTreeMap::new(),
            sessions: 0,
            noise,
            last_port,
            other_due,
            started: Time::START,
        }
    }

    /// The outer port for a packet from `inner` to `remote`, mapped anew if need be.
    pub(crate) fn outbound(
        &mut self,
        now: Time,
        transport: Transport,
        inner: SocketAddr,
        remote: SocketAddr,
    ) -> Result<u16, DropReason> {
        let key = self.key(transport, inner, remote);
        let timeout = self.timeout(transport);
        if let Some(port) = self.leased(now, transport, inner)
            && let Some(session) = self.session_mut(transport, port, remote)
            && now.since(session.used) < timeout
        {
            session.used = now;
            return Ok(port); // an answer leaves by the port that the question came to
        }
        let port = match self.outward.get(&key).copied().filter(|port| self.is_alive(now, transport, *port)) {
            Some(port) => port,
            None => self.map(now, key)?,
        };
        self.open_session(now, (transport, port), remote);
        Ok(port)
    }

    /// Opens a session of a mapping that is alive, or uses it.
    fn open_session(&mut self, now: Time, at: (Transport, u16), remote: SocketAddr) {
        if self.session_mut(at.0, at.1, remote).is_none() {
            self.make_room(now, at.1);
            self.sessions += 1;
        }
        let mapped = self.inward.get_mut(&at).expect("alive, and spared by make_room");
        mapped.used = now;
        mapped.sessions.entry(remote).or_insert(Session { used: now, answered: false }).used = now;
    }

    fn session_mut(&mut self, transport: Transport, port: u16, remote: SocketAddr) -> Option<&mut Session> {
        self.inward.get_mut(&(transport, port))?.sessions.get_mut(&remote)
    }

    /// The inner socket for a packet from `remote` to the outer `port`, if the filter lets it in.
    pub(crate) fn inbound(
        &mut self,
        now: Time,
        transport: Transport,
        port: u16,
        remote: SocketAddr,
    ) -> Result<SocketAddr, DropReason> {
        if !self.is_alive(now, transport, port) {
            return Err(DropReason::NoMapping);
        }
        if self.is_leased(now, transport, port) && self.session_mut(transport, port, remote).is_none() {
            self.open_session(now, (transport, port), remote);
        }
        let timeout = self.timeout(transport);
        let leased = self.is_leased(now, transport, port);
        let refresh = self.config.inbound_refresh;
        let mapped = self.inward.get_mut(&(transport, port)).ok_or(DropReason::NoMapping)?;
        let filtering = if leased {
            Filtering::EndpointIndependent
        } else if self.outward.get(&mapped.key) == Some(&port) {
            self.config.filtering
        } else {
            Filtering::AddressAndPortDependent // a lease is over: who talks may go on, nobody may begin
        };
        let admitted = match filtering {
            Filtering::EndpointIndependent => true,
            Filtering::AddressDependent => {
                let ports = SocketAddr::new(remote.ip(), 0)..=SocketAddr::new(remote.ip(), u16::MAX);
                mapped.sessions.range(ports).any(|(_, session)| now.since(session.used) < timeout)
            }
            Filtering::AddressAndPortDependent => {
                mapped.sessions.get(&remote).is_some_and(|session| now.since(session.used) < timeout)
            }
        };
        if !admitted {
            return Err(DropReason::Filtered);
        }
        if refresh {
            mapped.used = now;
        }
        if let Some(session) = mapped.sessions.get_mut(&remote) {
            session.answered = true;
            if refresh {
                session.used = now;
            }
        }
        Ok(mapped.key.inner)
    }

    /// The inner socket behind an outer port, whoever asks.
    pub(crate) fn inner(&self, transport: Transport, port: u16) -> Option<SocketAddr> {
        self.inward.get(&(transport, port)).map(|mapped| mapped.key.inner)
    }

    /// How many mappings are alive.
    pub(crate) fn alive(&self, now: Time) -> usize {
        self.inward.keys().filter(|(transport, port)| self.is_alive(now, *transport, *port)).count()
    }

    /// When it began, empty.
    pub(crate) fn started(&self) -> Time {
        self.started
    }

    /// Forgets everything, as a router does that restarts.
    pub(crate) fn restart(&mut self, now: Time) {
        self.started = now;
        self.outward.clear();
        self.inward.clear();
        self.sessions = 0;
    }

    fn key(&self, transport: Transport, inner: SocketAddr, remote: SocketAddr) -> MappingKey {
        let (remote_ip, remote_port) = match self.config.mapping {
            Mapping::EndpointIndependent => (None, None),
            Mapping::AddressDependent => (Some(remote.ip()), None),
            Mapping::AddressAndPortDependent => (Some(remote.ip()), Some(remote.port())),
        };
        MappingKey { transport, inner, remote_ip, remote_port }
    }

    fn timeout(&self, transport: Transport) -> Duration {
        match transport {
            Transport::Udp => self.config.timeout,
            Transport::Tcp => TCP_TIMEOUT,
        }
    }

    fn is_alive(&self, now: Time, transport: Transport, port: u16) -> bool {
        let timeout = self.timeout(transport);
        let max_age = self.config.max_age.filter(|_| transport == Transport::Udp).unwrap_or(Duration::MAX);
        self.inward.get(&(transport, port)).is_some_and(|mapped| {
            mapped.is_leased(now) || (now.since(mapped.used) < timeout && now.since(mapped.made) < max_age)
        })
    }

    /// Maps an outer port for `key`, in place of an expired mapping if there is one.
    fn map(&mut self, now: Time, key: MappingKey) -> Result<u16, DropReason> {
        if let Some(expired) = self.outward.get(&key).copied() {
            self.forget(key.transport, expired);
        }
        let wish = match self.config.ports {
            Ports::Preserving => key.inner.port(),
            Ports::Sequential { step } => {
                self.count_others(now, step);
                step_port(self.last_port, step)
            }
            Ports::Random => self.draw_port(key.transport),
        };
        let port = self.free_port(now, key.transport, wish).ok_or(DropReason::NoPort)?;
        self.last_port = port;
        self.forget(key.transport, port);
        self.outward.insert(key, port);
        self.inward.insert(
            (key.transport, port),
            Mapped { key, lease: None, made: now, used: now, sessions: BTreeMap::new() },
        );
        Ok(port)
    }

    /// Moves the counter on by what other hosts have opened since the last mapping.
    fn count_others(&mut self, now: Time, step: i16) {
        let rate = self.config.background;
        for _ in 0..MAX_OTHERS {
            if rate == 0 || self.other_due > now {
                return;
            }
            self.last_port = step_port(self.last_port, step);
            self.other_due = self.other_due + self.noise.wait(rate);
        }
        self.other_due = now + self.noise.wait(rate);
    }

    fn draw_port(&mut self, transport: Transport) -> u16 {
        let mut port = MIN_PORT;
        for _ in 0..MAX_DRAWS {
            port = any_port(&mut self.noise);
            if !self.inward.contains_key(&(transport, port)) {
                break;
            }
        }
        port
    }

    /// The first port from `wish` upwards, wrapping, that nothing alive is mapped to.
    fn free_port(&self, now: Time, transport: Transport, wish: u16) -> Option<u16> {
        let start = wish.max(MIN_PORT);
        (start..=u16::MAX).chain(MIN_PORT..start).find(|port| !self.is_alive(now, transport, *port))
    }

    /// Makes room for one more session without touching the mapping that asks for it.
    fn make_room(&mut self, now: Time, asking: u16) {
        if self.sessions < self.config.max_sessions.max(1) {
            return;
        }
        self.purge(now, asking);
        while self.sessions >= self.config.max_sessions.max(1) {
            let oldest = self
                .inward
                .iter()
                .flat_map(|(at, mapped)| mapped.sessions.iter().map(move |(remote, session)| (at, remote, session)))
                .min_by_key(|(_, _, session)| (session.answered, session.used))
                .map(|(at, remote, _)| (*at, *remote));
            let Some((at, remote)) = oldest else { return };
            self.end_session(at, remote, asking);
        }
    }

    fn end_session(&mut self, at: (Transport, u16), remote: SocketAddr, asking: u16) {
        let Some(mapped) = self.inward.get_mut(&at) else { return };
        if mapped.sessions.remove(&remote).is_some() {
            self.sessions -= 1;
        }
        if mapped.sessions.is_empty() && mapped.lease.is_none() && at.1 != asking {
            self.forget(at.0, at.1);
        }
    }

    /// Removes mappings whose time is over, except the one that asks, and sessions whose time is over.
    fn purge(&mut self, now: Time, asking: u16) {
        let over: Vec<_> = self.inward.keys().copied().filter(|(t, port)| !self.is_alive(now, *t, *port)).collect();
        for (transport, port) in over.into_iter().filter(|(_, port)| *port != asking) {
            self.forget(transport, port);
        }
        let udp = self.timeout(Transport::Udp);
        for mapped in self.inward.values_mut() {
            let timeout = if mapped.key.transport == Transport::Udp { udp } else { TCP_TIMEOUT };
            mapped.sessions.retain(|_, session| now.since(session.used) < timeout);
        }
        self.sessions = self.inward.values().map(|mapped| mapped.sessions.len()).sum();
    }

    fn forget(&mut self, transport: Transport, port: u16) {
        if let Some(mapped) = self.inward.remove(&(transport, port)) {
            self.sessions -= mapped.sessions.len();
            if self.outward.get(&mapped.key) == Some(&port) {
                self.outward.remove(&mapped.key);
            }
        }
    }
}

/// The port `step` after `port`, in the circle of those that a NAT hands out.
fn step_port(port: u16, step: i16) -> u16 {
    let offset = i32::from(port - MIN_PORT) + i32::from(step);
    MIN_PORT + offset.rem_euclid(PORTS as i32) as u16
}

fn any_port(noise: &mut Noise) -> u16 {
    MIN_PORT + noise.below(u64::from(PORTS)) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    const UDP: Transport = Transport::Udp;

    fn inner(port: u16) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, 2], port))
    }

    fn remote(host: u8, port: u16) -> SocketAddr {
        SocketAddr::from(([11, 0, host, 1], port))
    }

    fn at(secs: u64) -> Time {
        Time::after_start(Duration::from_secs(secs))
    }

    fn table(config: NatConfig) -> Table {
        Table::new(config, Noise::new(3))
    }

    #[test]
    fn endpoint_independent_mapping_keeps_one_port() {
        let mut nat = table(NatConfig::port_restricted());
        let ports = [remote(1, 1), remote(1, 2), remote(2, 1)].map(|to| nat.outbound(at(0), UDP, inner(5_000), to));
        assert_eq!(ports, [Ok(5_000); 3]);
        assert_ne!(nat.outbound(at(0), UDP, inner(5_001), remote(1, 1)), Ok(5_000));
    }

    #[test]
    fn dependent_mappings_differ_by_address_and_by_port() {
        let ports = |mapping| {
            let mut nat = table(NatConfig { mapping, ports: Ports::Sequential { step: 1 }, ..NatConfig::default() });
            let mut port = |to| nat.outbound(at(0), UDP, inner(5_000), to).unwrap();
            let first = port(remote(1, 1));
            [port(remote(1, 2)) - first, port(remote(2, 1)) - first, port(remote(1, 1)) - first]
        };
        assert_eq!(ports(Mapping::AddressDependent), [0, 1, 0]);
        assert_eq!(ports(Mapping::AddressAndPortDependent), [1, 2, 0]);
    }

    #[test]
    fn preserved_port_that_is_taken_is_passed_over() {
        let mut nat = table(NatConfig::port_restricted());
        let other = SocketAddr::from(([10, 0, 0, 3], 5_000));
        assert_eq!(nat.outbound(at(0), UDP, inner(5_000), remote(1, 1)), Ok(5_000));
        assert_eq!(nat.outbound(at(0), UDP, other, remote(1, 1)), Ok(5_001));
    }

    #[test]
    fn random_ports_do_not_follow_each_other() {
        let mut nat = table(NatConfig::symmetric(Ports::Random));
        let ports: Vec<u16> = (0..100).map(|n| nat.outbound(at(0), UDP, inner(1), remote(1, n)).unwrap()).collect();
        assert!(ports.windows(2).all(|pair| pair[1] != step_port(pair[0], 1)));
        assert!(ports.iter().all(|port| *port >= MIN_PORT));
    }

    #[test]
    fn filtering_follows_its_kind() {
        let admitted = |filtering| {
            let mut nat = table(NatConfig { filtering, ..NatConfig::default() });
            let port = nat.outbound(at(0), UDP, inner(5_000), remote(1, 1)).unwrap();
            [remote(1, 1), remote(1, 2), remote(2, 1)].map(|from| nat.inbound(at(0), UDP, port, from).is_ok())
        };
        assert_eq!(admitted(Filtering::EndpointIndependent), [true, true, true]);
        assert_eq!(admitted(Filtering::AddressDependent), [true, true, false]);
        assert_eq!(admitted(Filtering::AddressAndPortDependent), [true, false, false]);
    }

    #[test]
    fn unmapped_port_differs_from_filtered_source() {
        let mut nat = table(NatConfig::default());
        assert_eq!(nat.inbound(at(0), UDP, 5_000, remote(1, 1)), Err(DropReason::NoMapping));
        let port = nat.outbound(at(0), UDP, inner(5_000), remote(1, 1)).unwrap();
        assert_eq!(nat.inbound(at(0), UDP, port, remote(2, 1)), Err(DropReason::Filtered));
        assert_eq!(nat.inbound(at(0), Transport::Tcp, port, remote(1, 1)), Err(DropReason::NoMapping));
    }

    #[test]
    fn mapping_expires_unless_used_from_inside() {
        let mut nat = table(NatConfig::default());
        let port = nat.outbound(at(0), UDP, inner(5_000), remote(1, 1)).unwrap();
        nat.outbound(at(100), UDP, inner(5_000), remote(1, 1)).unwrap();
        assert_eq!(nat.inbound(at(219), UDP, port, remote(1, 1)), Ok(inner(5_000)));
        assert_eq!(nat.inbound(at(220), UDP, port, remote(1, 1)), Err(DropReason::NoMapping));
        assert_eq!(nat.alive(at(220)), 0);
    }

    #[test]
    fn inbound_packets_refresh_only_where_configured() {
        let alive = |inbound_refresh| {
            let mut nat = table(NatConfig { inbound_refresh, ..NatConfig::default() });
            let port = nat.outbound(at(0), UDP, inner(5_000), remote(1, 1)).unwrap();
            nat.inbound(at(100), UDP, port, remote(1, 1)).unwrap();
            nat.inbound(at(200), UDP, port, remote(1, 1)).is_ok()
        };
        assert_eq!([alive(false), alive(true)], [false, true]);
    }

    #[test]
    fn leave_to_send_expires_before_a_mapping_kept_alive_by_others() {
        let mut nat = table(NatConfig::default());
        let port = nat.outbound(at(0), UDP, inner(5_000), remote(1, 1)).unwrap();
        nat.outbound(at(100), UDP, inner(5_000), remote(2, 1)).unwrap();
        assert_eq!(nat.inbound(at(150), UDP, port, remote(1, 1)), Err(DropReason::Filtered));
    }

    #[test]
    fn full_table_evicts_unanswered_sessions_first() {
        let mut nat = table(NatConfig { max_sessions: 3, ..NatConfig::default() });
        let answered = nat.outbound(at(0), UDP, inner(1_024), remote(1, 1)).unwrap();
        nat.inbound(at(0), UDP, answered, remote(1, 1)).unwrap();
        for n in 1..10 {
            nat.outbound(at(n), UDP, inner(2_000 + n as u16), remote(1, 1)).unwrap();
        }
        assert!(nat.inbound(at(10), UDP, answered, remote(1, 1)).is_ok());
        assert_eq!(nat.alive(at(10)), 3);
    }

    #[test]
    fn sequential_ports_keep_their_step_and_wrap_above_the_well_known_ones() {
        let mut nat = table(NatConfig::symmetric(Ports::Sequential { step: 4 }));
        nat.last_port = u16::MAX - 5;
        let ports: Vec<u16> = (0..4).map(|n| nat.outbound(at(0), UDP, inner(1), remote(1, n)).unwrap()).collect();
        assert_eq!(ports, [65_534, 1_026, 1_030, 1_034]);
        assert_eq!(step_port(1_025, -3), 65_534);
    }

    #[test]
    fn other_hosts_move_the_counter_by_a_poisson_process() {
        let mut nat = table(NatConfig { background: 5, ..NatConfig::symmetric(Ports::Sequential { step: 1 }) });
        let port = |nat: &mut Table, n: u64| {
            let to = SocketAddr::from(([11, 0, (n >> 8) as u8, n as u8], 1));
            nat.outbound(at(n), UDP, inner(1), to).unwrap()
        };
        let mut last = port(&mut nat, 0);
        let others: Vec<f64> = (1..4_000)
            .map(|n| {
                let next = port(&mut nat, n);
                let (from, to) = (u32::from(std::mem::replace(&mut last, next)), u32::from(next));
                f64::from((to + PORTS - from - 1) % PORTS)
            })
            .collect();
        let mean = others.iter().sum::<f64>() / others.len() as f64;
        let variance = others.iter().map(|count| (count - mean).powi(2)).sum::<f64>() / others.len() as f64;
        assert!((4.8..5.2).contains(&mean), "{mean} a second instead of 5");
        assert!(
            (4.4..5.6).contains(&variance),
            "a Poisson process has a variance as large as its mean, not {variance}"
        );
        assert_eq!(nat.alive(at(3_999)), 120); // theirs take no place
    }

    #[test]
    fn a_long_silence_costs_one_round_of_the_ports_at_most() {
        let mut nat = table(NatConfig { background: u32::MAX, ..NatConfig::symmetric(Ports::Sequential { step: 1 }) });
        let year = at(365 * 86_400);
        nat.outbound(year, UDP, inner(1), remote(1, 1)).unwrap();
        assert!(nat.other_due >= year);
    }

    #[test]
    fn random_ports_are_drawn_evenly_from_all_that_are_not_well_known() {
        let mut nat = table(NatConfig::symmetric(Ports::Random));
        let mut quarters = [0_u32; 4];
        for n in 0..20_000_u32 {
            let [_, _, high, low] = n.to_be_bytes();
            let to = SocketAddr::from(([11, 0, high, low], 1));
            let port = nat.outbound(at(u64::from(n)), UDP, inner(1), to).unwrap();
            quarters[(u32::from(port - MIN_PORT) * 4 / PORTS) as usize] += 1;
        }
        assert!(quarters.iter().all(|count| (4_750..5_250).contains(count)), "{quarters:?}");
    }

    #[test]
    fn a_storm_of_unanswered_sessions_spares_every_answered_one() {
        let mut nat = table(NatConfig::symmetric(Ports::Random));
        let answered: Vec<_> = (0..100)
            .map(|n| {
                let port = nat.outbound(at(0), UDP, inner(1), remote(1, n)).unwrap();
                assert!(nat.inbound(at(0), UDP, port, remote(1, n)).is_ok());
                (port, remote(1, n))
            })
            .collect();
        for n in 0..5_000 {
            nat.outbound(at(1), UDP, inner(2), remote(2, n)).unwrap();
        }
        assert_eq!(nat.alive(at(1)), 1_024);
        assert!(answered.into_iter().all(|(port, from)| nat.inbound(at(1), UDP, port, from).is_ok()));
    }

    #[test]
    fn an_expired_session_makes_room_before_a_fresh_one() {
        let mut nat = table(NatConfig { max_sessions: 3, ..NatConfig::default() });
        let port = nat.outbound(at(0), UDP, inner(5_000), remote(1, 1)).unwrap();
        nat.inbound(at(0), UDP, port, remote(1, 1)).unwrap();
        for (n, secs) in [(2, 60), (3, 121), (4, 122)] {
            nat.outbound(at(secs), UDP, inner(5_000), remote(1, n)).unwrap();
        }
        let admitted = [1, 2, 3, 4].map(|n| nat.inbound(at(123), UDP, port, remote(1, n)).is_ok());
        assert_eq!(admitted, [false, true, true, true]);
    }
}
