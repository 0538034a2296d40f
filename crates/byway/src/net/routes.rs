//! Which peer a packet belongs to, and by which routes that peer's packets travel.
//!
//! QUIC sees one address per connection for life, an **alias** that names the peer (`spec`: `ARCHITECTURE.md`). Only
//! this file knows what aliases look like: IPv6 addresses of the discard prefix `100::/64` (RFC 6666) whose host bits
//! an outsider cannot guess.

use std::{
    collections::{HashMap, VecDeque},
    hash::{BuildHasherDefault, Hasher},
    net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6},
    sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard},
    time::Duration,
};

use byway_proto::{
    Instant, Rng,
    nat::SocketId,
    wire::{quic::CID_LEN, relay_data::AllocId},
};

use super::track::Track;

/// The first 64 bits of every alias: the discard-only prefix, which no network routes.
const ALIAS_PREFIX: [u16; 4] = [0x100, 0, 0, 0];

/// Most aliases of which QUIC makes no connection yet; the oldest make room. Bounds what strangers can occupy.
pub(crate) const MAX_STRANGERS: usize = 1_024;

/// How long a stranger's alias is kept if there is room: as long as a Retry token is good.
const STRANGER_LIFE: Duration = Duration::from_secs(15);

/// Ways through relays that are remembered until a connection goes by them: as many dials may be under way.
const MAX_OPENED: usize = 64;

/// Most connection ids of one alias that lead to it; a handshake needs two (RFC 9000 §7.2), a Retry adds one.
pub(crate) const MAX_CIDS: usize = 8;

/// Bytes of a connection id that are its tag.
const CID_TAG: usize = 3;

/// Most connections that share a route; the oldest make room. Two nodes may each have dialled the other, and each may be
/// the other's relay.
const MAX_SHARING: usize = 4;

/// Most relays from which relayed datagrams are taken: two warm ones, and those that tickets named.
pub(crate) const MAX_RELAYS: usize = 16;

/// A way to a peer: where a datagram goes on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Via {
    /// To the peer's own address.
    Direct(SocketAddr),
    /// To the peer's own address, from a socket that was opened to get through a NAT.
    Punched(SocketId, SocketAddr),
    /// To a relay, which forwards it by the allocation's id.
    Relay(SocketAddr, AllocId),
}

impl Via {
    /// The address that the kernel sees.
    pub(crate) fn remote(self) -> SocketAddr {
        match self {
            Via::Direct(addr) | Via::Punched(_, addr) | Via::Relay(addr, _) => addr,
        }
    }

    /// The way straight to `addr` from a socket of ours.
    pub(crate) fn straight(socket: SocketId, addr: SocketAddr) -> Via {
        if socket == SocketId::MAIN { Via::Direct(addr) } else { Via::Punched(socket, addr) }
    }

    /// The socket that it leaves by.
    pub(crate) fn socket(self) -> SocketId {
        match self {
            Via::Punched(socket, _) => socket,
            Via::Direct(_) | Via::Relay(..) => SocketId::MAIN,
        }
    }

    /// The peer's own address, unless a relay stands between.
    pub(crate) fn peer_addr(self) -> Option<SocketAddr> {
        match self {
            Via::Direct(addr) | Via::Punched(_, addr) => Some(addr),
            Via::Relay(..) => None,
        }
    }

    /// Whether a relay carries it.
    pub(crate) fn is_relay(self) -> bool {
        matches!(self, Via::Relay(..))
    }
}

/// The table of aliases: read on every packet, written when connections come and go.
#[derive(Debug)]
pub(crate) struct Routes {
    table: RwLock<Table>,
    fresh: Mutex<Rng>,
    /// Keys the aliases of strangers, so that address-validation tokens stay valid over a restart.
    key: [u8; 32],
}

/// What [`Routes`] holds, under one lock.
#[derive(Debug, Default)]
pub(crate) struct Table {
    by_alias: HashMap<(u64, u16), Arc<Track>, BuildHasherDefault<Unguessable>>,
    by_cid: HashMap<[u8; CID_LEN], Arc<Track>, BuildHasherDefault<Unguessable>>,
    /// Connection ids of another length, which a dialling peer chose for its first packets.
    by_initial: HashMap<Vec<u8>, Arc<Track>>,
    by_probe_key: HashMap<[u8; 8], Arc<Track>, BuildHasherDefault<Unguessable>>,
    /// Established connections by route, the newest last: QUIC deals connection ids out that only the peer gets to see,
    /// and a stateless reset carries none.
    by_route: HashMap<Via, Vec<Arc<Track>>>,
    strangers: VecDeque<(Instant, SocketAddr)>,
    relays: Vec<SocketAddr>,
    /// Ways through relays that were opened lately, by this node or to it.
    opened: VecDeque<Via>,
}

impl Routes {
    pub(crate) fn new(seed: &[u8; 32], key: [u8; 32]) -> Self {
        Routes { table: RwLock::default(), fresh: Mutex::new(Rng::new(seed, "aliases")), key }
    }

    /// The table, for looking up.
    pub(crate) fn read(&self) -> RwLockReadGuard<'_, Table> {
        self.table.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, Table> {
        self.table.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new alias for a peer that this node dials.
    pub(crate) fn dial(&self, now: Instant) -> Arc<Track> {
        let mut table = self.write();
        let alias = loop {
            let mut fresh = self.fresh.lock().unwrap_or_else(PoisonError::into_inner);
            let alias = alias(fresh.next_u64(), fresh.below(u64::from(u16::MAX)) as u16 + 1);
            if table.by_alias(alias).is_none() {
                break alias;
            }
        };
        let track = Arc::new(Track::dialled(alias, now));
        table.insert(&track);
        track
    }

    /// The alias of a stranger: a keyed hash of where it comes from, so that a token that QUIC gave to it is worth nothing
    /// elsewhere, and is still good after the alias has made room for others. Where several connections come from one
    /// address, the port tells them apart.
    ///
    /// `None` if one address has a connection for every port there is.
    pub(crate) fn stranger(&self, via: Via, now: Instant) -> Option<Arc<Track>> {
        let (host, first) = self.hash(via);
        let mut table = self.write();
        let ports = (0..=u16::MAX).map(|n| first.wrapping_add(n)).filter(|port| *port != 0);
        let alias = ports.map(|port| alias(host, port)).find(|alias| table.by_alias(*alias).is_none())?;
        let track = Arc::new(Track::accepted(alias, via, now));
        table.insert(&track);
        table.strangers.push_back((now, alias));
        table.evict_strangers(now);
        Some(track)
    }

    /// The connection that a stranger is making by `via`, of the first few from there.
    pub(crate) fn begun_by(&self, via: Via) -> Option<Arc<Track>> {
        let (host, first) = self.hash(via);
        let table = self.read();
        let ports = (0..MAX_SHARING as u16).map(|n| first.wrapping_add(n));
        let tracks = ports.filter_map(|port| table.by_alias(alias(host, port)));
        tracks.rev().find(|track| !track.lock().established).cloned()
    }

    /// Host bits that depend on the source's IP, or its relay and allocation, and a port that depends on its port too.
    fn hash(&self, via: Via) -> (u64, u16) {
        let mut hash = blake3::Hasher::new_keyed(&self.key);
        match via.remote().ip() {
            IpAddr::V4(ip) => hash.update(&ip.octets()),
            IpAddr::V6(ip) => hash.update(&ip.octets()),
        };
        if let Via::Relay(_, id) = via {
            hash.update(&id.0.to_be_bytes());
        }
        let host = *hash.finalize().as_bytes().first_chunk().expect("32 bytes hold 8");
        hash.update(&via.remote().port().to_be_bytes());
        let port = *hash.finalize().as_bytes().first_chunk().expect("32 bytes hold 2");
        (u64::from_be_bytes(host), u16::from_be_bytes(port))
    }

    /// Leads packets with this connection id, which our own generator drew, to `track`.
    pub(crate) fn learn_cid(&self, cid: &[u8], track: &Arc<Track>) {
        if let Ok(cid) = <[u8; CID_LEN]>::try_from(cid)
            && track.remember_cid(&cid)
        {
            self.write().by_cid.insert(cid, Arc::clone(track));
        }
    }

    /// Leads further packets of a handshake that a stranger began with this connection id to `track`.
    pub(crate) fn learn_initial(&self, cid: &[u8], track: &Arc<Track>) {
        if track.remember_cid(cid) {
            self.write().by_initial.insert(cid.to_vec(), Arc::clone(track));
        }
    }

    /// Leads packets that carry no known connection id but came by `via` to `track`, which was heard there.
    pub(crate) fn learn_route(&self, via: Via, track: &Arc<Track>) {
        let mut table = self.write();
        let sharing = table.by_route.entry(via).or_default();
        sharing.retain(|known| !Arc::ptr_eq(known, track));
        if sharing.len() >= MAX_SHARING {
            sharing.remove(0);
        }
        sharing.push(Arc::clone(track));
    }

    /// A connection id for QUIC to deal out: random, with a tag by which this node knows it again, also after a restart.
    pub(crate) fn draw_cid(&self) -> [u8; CID_LEN] {
        let mut cid = self.fresh.lock().unwrap_or_else(PoisonError::into_inner).bytes();
        self.tag_cid(&mut cid);
        cid
    }

    /// Whether this node once drew a connection id. Who has not seen it cannot make one up but by chance, one in 2^24.
    pub(crate) fn is_own_cid(&self, cid: [u8; CID_LEN]) -> bool {
        let mut tagged = cid;
        self.tag_cid(&mut tagged);
        tagged == cid
    }

    fn tag_cid(&self, cid: &mut [u8; CID_LEN]) {
        let (random, tag) = cid.split_at_mut(CID_LEN - CID_TAG);
        let hash = blake3::Hasher::new_keyed(&self.key).update(b"connection id").update(random).finalize();
        tag.copy_from_slice(&hash.as_bytes()[..CID_TAG]);
    }

    /// The connection to which a packet with an unknown connection id of ours goes that came by `via`.
    ///
    /// The peer has left the id of the handshake for one that it was told in secret, as servers do, once and for all:
    /// further packets with this id are this connection's, too. Of several it is the one with the fewest ids, the newest
    /// of these.
    pub(crate) fn adopt_cid(&self, cid: [u8; CID_LEN], via: Via) -> Option<Arc<Track>> {
        let mut table = self.write();
        let track = table.by_route(via).iter().rev().min_by_key(|track| track.cid_count()).cloned()?;
        if track.remember_cid(&cid) {
            table.by_cid.insert(cid, Arc::clone(&track));
        }
        Some(track)
    }

    /// Forgets that `via` leads to `track`.
    pub(crate) fn forget_route(&self, via: Via, track: &Arc<Track>) {
        self.write().forget_route(via, track);
    }

    /// Forgets that any route leads to `track`.
    pub(crate) fn forget_routes(&self, track: &Arc<Track>) {
        let vias = track.vias();
        let mut table = self.write();
        vias.into_iter().for_each(|via| table.forget_route(via, track));
    }

    /// Leads probes and fragments with this key id to `track`.
    pub(crate) fn learn_probe_key(&self, id: [u8; 8], track: &Arc<Track>) {
        track.set_probe_key(id);
        self.write().by_probe_key.insert(id, Arc::clone(track));
    }

    /// Forgets an alias and everything that led to it.
    pub(crate) fn remove(&self, alias: SocketAddr) {
        self.write().remove(alias);
    }

    /// Takes relayed datagrams from `relay`; `false` if that would be more than [`MAX_RELAYS`].
    pub(crate) fn add_relay(&self, relay: SocketAddr) -> bool {
        let relays = &mut self.write().relays;
        if !relays.contains(&relay) {
            if relays.len() >= MAX_RELAYS {
                return false;
            }
            relays.push(relay);
        }
        true
    }

    /// Takes no more relayed datagrams from `relay`.
    pub(crate) fn remove_relay(&self, relay: SocketAddr) {
        self.write().relays.retain(|r| *r != relay);
    }

    /// Notes that a way through a relay is open.
    pub(crate) fn opened(&self, via: Via) {
        let opened = &mut self.write().opened;
        if opened.len() >= MAX_OPENED {
            opened.pop_front();
        }
        opened.push_back(via);
    }
}

impl Table {
    /// How many aliases there are.
    pub(crate) fn len(&self) -> usize {
        self.by_alias.len()
    }

    /// The peer that an alias names.
    pub(crate) fn by_alias(&self, alias: SocketAddr) -> Option<&Arc<Track>> {
        self.by_alias.get(&alias_key(alias)?)
    }

    /// The peer to which short headers with this connection id go.
    pub(crate) fn by_cid(&self, cid: &[u8; CID_LEN]) -> Option<&Arc<Track>> {
        self.by_cid.get(cid)
    }

    /// The peer to which long headers with this connection id go.
    pub(crate) fn by_long_cid(&self, cid: &[u8]) -> Option<&Arc<Track>> {
        let own = <[u8; CID_LEN]>::try_from(cid).ok().and_then(|cid| self.by_cid.get(&cid));
        own.or_else(|| self.by_initial.get(cid))
    }

    /// The established connections that were heard on this route, the newest last.
    pub(crate) fn by_route(&self, via: Via) -> &[Arc<Track>] {
        self.by_route.get(&via).map_or(&[], Vec::as_slice)
    }

    /// Whether what comes by a way through a relay is for this node.
    pub(crate) fn ends_here(&self, via: Via) -> bool {
        !self.by_route(via).is_empty() || self.opened.contains(&via)
    }

    fn forget_route(&mut self, via: Via, track: &Arc<Track>) {
        let Some(sharing) = self.by_route.get_mut(&via) else { return };
        sharing.retain(|known| !Arc::ptr_eq(known, track));
        if sharing.is_empty() {
            self.by_route.remove(&via);
        }
    }

    /// The peer whose probes carry this key id.
    pub(crate) fn by_probe_key(&self, id: [u8; 8]) -> Option<&Arc<Track>> {
        self.by_probe_key.get(&id)
    }

    /// Whether this node is registered at a relay with this address.
    pub(crate) fn is_relay(&self, addr: SocketAddr) -> bool {
        self.relays.contains(&addr)
    }

    fn insert(&mut self, track: &Arc<Track>) {
        let key = alias_key(track.alias()).expect("Routes makes every alias with the alias prefix");
        self.by_alias.insert(key, Arc::clone(track));
    }

    fn remove(&mut self, alias: SocketAddr) {
        let Some(track) = alias_key(alias).and_then(|key| self.by_alias.remove(&key)) else { return };
        // Another connection may own by now, or may always have owned, what once led here.
        let is_its = |owner: Option<&Arc<Track>>| owner.is_some_and(|owner| Arc::ptr_eq(owner, &track));
        for cid in track.cids() {
            if let Ok(own) = <[u8; CID_LEN]>::try_from(cid.as_slice())
                && is_its(self.by_cid.get(&own))
            {
                self.by_cid.remove(&own);
            }
            if is_its(self.by_initial.get(&cid)) {
                self.by_initial.remove(&cid);
            }
        }
        if let Some(id) = track.probe_key().filter(|id| is_its(self.by_probe_key.get(id))) {
            self.by_probe_key.remove(&id);
        }
        for via in track.vias() {
            self.forget_route(via, &track);
        }
        self.strangers.retain(|(_, stranger)| *stranger != alias);
    }

    /// Forgets strangers of whom QUIC makes no connection: the old ones, and the oldest when there are too many.
    fn evict_strangers(&mut self, now: Instant) {
        while let Some(&(since, alias)) = self.strangers.front() {
            // The gate bounds the admitted ones: a flood of strangers must not push out a handshake that is under way.
            if self.by_alias(alias).is_none_or(|track| track.is_admitted()) {
                self.strangers.pop_front();
            } else if now.since(since) > STRANGER_LIFE || self.strangers.len() > MAX_STRANGERS {
                self.remove(alias);
            } else {
                return;
            }
        }
    }
}

/// Whether an address is an alias; a packet from the outside must never claim to come from one.
pub(crate) fn is_alias(addr: SocketAddr) -> bool {
    alias_key(addr).is_some()
}

fn alias(host: u64, port: u16) -> SocketAddr {
    let [a, b, c, d] = ALIAS_PREFIX;
    let [e, f, g, h] = [48, 32, 16, 0].map(|shift| (host >> shift) as u16);
    // Flow information and scope stay zero: QUIC compares addresses bit by bit.
    SocketAddrV6::new(Ipv6Addr::new(a, b, c, d, e, f, g, h), port, 0, 0).into()
}

fn alias_key(addr: SocketAddr) -> Option<(u64, u16)> {
    let SocketAddr::V6(addr) = addr else { return None };
    let [a, b, c, d, e, f, g, h] = addr.ip().segments();
    ([a, b, c, d] == ALIAS_PREFIX)
        .then(|| ([e, f, g, h].into_iter().fold(0, |host, part| host << 16 | u64::from(part)), addr.port()))
}

/// Hashes keys that this node drew at random, so that nobody else can make them collide.
#[derive(Debug, Default)]
pub(crate) struct Unguessable(u64);

impl Hasher for Unguessable {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word.iter_mut().zip(chunk).for_each(|(to, from)| *to = *from);
            self.write_u64(u64::from_le_bytes(word));
        }
    }

    fn write_u16(&mut self, n: u16) {
        self.write_u64(u64::from(n));
    }

    fn write_u64(&mut self, n: u64) {
        self.0 = self.0.rotate_left(29) ^ n;
    }

    fn write_usize(&mut self, n: usize) {
        self.write_u64(n as u64); // the length that arrays hash first
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_left_of_a_thousand_connections() {
        let routes = routes();
        for n in 0..1_000 {
            let (via, track) = match n % 3 {
                0 => (Via::Direct(addr(n)), routes.dial(at(n))),
                1 => (Via::Direct(addr(n)), routes.stranger(Via::Direct(addr(n)), at(n)).unwrap()),
                _ => (relayed(n), routes.stranger(relayed(n), at(n)).unwrap()),
            };
            routes.learn_initial(&[n as u8; 20], &track);
            routes.learn_initial(&u64::from(n).to_be_bytes(), &track);
            routes.learn_cid(&u64::from(n + 5_000).to_be_bytes(), &track);
            routes.learn_probe_key(u64::from(n).to_be_bytes(), &track);
            track.lock().add(via, false);
            track.lock().admitted = true;
            routes.learn_route(via, &track);
            if n >= 100 {
                routes.remove(track.alias());
            }
        }
        let aliases: Vec<SocketAddr> = routes.read().by_alias.values().map(|track| track.alias()).collect();
        assert_eq!(aliases.len(), 100);
        aliases.into_iter().for_each(|alias| routes.remove(alias));
        let table = routes.read();
        let sizes = [table.by_alias.len(), table.by_cid.len(), table.by_initial.len(), table.by_probe_key.len()];
        assert_eq!((sizes, table.by_route.len(), table.strangers.len()), ([0; 4], 0, 0));
    }

    #[test]
    fn a_flood_of_strangers_pushes_out_no_handshake_under_way() {
        let routes = routes();
        let honest = routes.stranger(Via::Direct(addr(1)), at(0)).unwrap();
        honest.lock().admitted = true;
        for n in 2..10_000 {
            routes.stranger(Via::Direct(addr(n)), at(n)).unwrap();
        }
        assert!(routes.read().by_alias(honest.alias()).is_some());
        assert!(routes.read().len() <= MAX_STRANGERS + 2);
        assert!(routes.read().strangers.len() <= MAX_STRANGERS + 1);
    }

    #[test]
    fn a_retry_is_good_although_its_alias_was_forgotten() {
        let routes = routes();
        let first = routes.stranger(Via::Direct(addr(1)), at(0)).unwrap().alias();
        for n in 2..10_000 {
            routes.stranger(Via::Direct(addr(n)), at(n)).unwrap();
        }
        assert!(routes.read().by_alias(first).is_none());
        assert_eq!(routes.stranger(Via::Direct(addr(1)), at(10_000)).unwrap().alias(), first);
        // QUIC tells connections from one address apart by the alias.
        let second = routes.stranger(Via::Direct(addr(1)), at(10_000)).unwrap().alias();
        assert_eq!((second.ip(), second == first), (first.ip(), false));
        assert_ne!(routes.stranger(relayed(1), at(10_000)).unwrap().alias().ip(), first.ip());
    }

    #[test]
    fn connection_ids_are_known_again_and_not_made_up() {
        let (before, after) = (routes(), Routes::new(&[9; 32], [2; 32]));
        let drawn: Vec<_> = (0..1_000).map(|_| before.draw_cid()).collect();
        assert!(drawn.iter().all(|cid| after.is_own_cid(*cid)));
        assert!(!drawn.iter().any(|cid| Routes::new(&[9; 32], [3; 32]).is_own_cid(*cid)));
        assert!(!(0..10_000_u64).any(|n| after.is_own_cid((n << 24).to_be_bytes())));
    }

    #[test]
    fn what_a_stranger_chose_does_not_remove_what_is_anothers() {
        let routes = routes();
        let (victim, stranger) = (routes.dial(at(0)), routes.stranger(Via::Direct(addr(1)), at(0)).unwrap());
        routes.learn_initial(&[7; 8], &stranger);
        routes.learn_cid(&[7; 8], &victim);
        routes.remove(stranger.alias());
        assert!(routes.read().by_cid(&[7; 8]).is_some());
    }

    fn routes() -> Routes {
        Routes::new(&[1; 32], [2; 32])
    }

    fn addr(n: u32) -> SocketAddr {
        (std::net::Ipv4Addr::from_bits(0x0b00_0000 + n), 4_000).into()
    }

    fn relayed(n: u32) -> Via {
        Via::Relay(addr(0), AllocId(n.into()))
    }

    fn at(ms: u32) -> Instant {
        Instant::after_start(Duration::from_millis(ms.into()))
    }
}
