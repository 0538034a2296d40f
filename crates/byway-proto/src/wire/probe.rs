//! Probes: small authenticated datagrams that prove a route, measure it and carry doubt.
//!
//! Only the two ends of a connection can make them: the keys come out of its TLS handshake and die with it. Each
//! direction has its own key, so that a probe sent back to its sender is worth nothing. A pong is never longer than
//! its ping.

use alloc::vec::Vec;
use core::{fmt, net::SocketAddr};

use crate::addr::{MAX_SOCKET_ADDR_LEN, decode_socket_addr, encode_socket_addr};

/// The first byte of a probe.
pub const FIRST_BYTE: u8 = 0x80;

/// The label under which both ends export the bytes of [`ProbeKey::derive`] from TLS (RFC 8446 §7.5); the context is empty.
pub const EXPORT_LABEL: &[u8] = b"EXPORTER-byway-probe-1";

/// How many bytes both ends export: key id, dialler's key, acceptor's key.
pub const EXPORT_LEN: usize = 72;

/// The bytes of the tag: 128 bits, as much as QUIC's own packets have.
pub const TAG_LEN: usize = 16;

/// The shortest ping, in bytes: as long as the longest pong, so that no answer is larger than its question.
pub const MIN_PING_LEN: usize = HEADER_LEN + MAX_SOCKET_ADDR_LEN + TAG_LEN;

/// The longest probe that we send, in bytes: the payload of an Ethernet frame, more than any route of ours carries.
pub const MAX_PROBE_LEN: usize = 1_500;

/// How far behind the newest probe another may arrive: at the fastest pace (50 ms a ping) 256 are 12 s of one route, 1.2 s of ten.
pub const REPLAY_WINDOW: u64 = 256;

/// First byte, key id, sequence number, kind, transaction id.
const HEADER_LEN: usize = 1 + 8 + 8 + 1 + 8;

const KIND_PING: u8 = 0;
const KIND_DOUBTING_PING: u8 = 1;
const KIND_PONG: u8 = 2;
const NO_ADDRESS: u8 = 0;

/// One end's keys for the probes of one connection.
#[derive(Clone, PartialEq, Eq)]
pub struct ProbeKey {
    /// Names the connection in every probe and fragment, in both directions.
    pub id: [u8; 8],
    /// Keys the tags of the probes that this end sends.
    pub send: [u8; 32],
    /// Keys the tags of the probes that this end receives.
    pub recv: [u8; 32],
}

impl ProbeKey {
    /// The keys of the dialling or the accepting end, from what TLS exports under [`EXPORT_LABEL`].
    pub fn derive(exported: &[u8; EXPORT_LEN], dialer: bool) -> Self {
        let mut key = ProbeKey { id: [0; 8], send: [0; 32], recv: [0; 32] };
        let (of_dialer, of_acceptor) =
            if dialer { (&mut key.send, &mut key.recv) } else { (&mut key.recv, &mut key.send) };
        let parts = key.id.iter_mut().chain(of_dialer).chain(of_acceptor);
        for (to, from) in parts.zip(exported) {
            *to = *from;
        }
        key
    }
}

impl fmt::Debug for ProbeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ProbeKey({:016x})", u64::from_be_bytes(self.id)) // the keys are secret
    }
}

/// What a probe says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ProbeKind {
    /// "Answer on the route on which this came."
    Ping {
        /// Whether the sender doubts its selected route.
        doubt: bool,
    },
    /// The answer, with the ping's transaction id.
    Pong {
        /// The address from which the ping came, unless it came through a relay.
        observed: Option<SocketAddr>,
    },
}

/// One probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Probe {
    /// Counts the probes that one end sends under one key, over all routes; never repeats.
    pub seq: u64,
    /// Ping or pong.
    pub kind: ProbeKind,
    /// Chosen at random by the pinging end and repeated in the pong.
    pub txid: [u8; 8],
}

/// Writes a probe; a ping is filled up to `pad_to` bytes within [`MIN_PING_LEN`] to [`MAX_PROBE_LEN`], a pong is not.
pub fn encode(probe: &Probe, key: &ProbeKey, pad_to: usize) -> Vec<u8> {
    let len = match probe.kind {
        ProbeKind::Ping { .. } => pad_to.clamp(MIN_PING_LEN, MAX_PROBE_LEN),
        ProbeKind::Pong { .. } => MIN_PING_LEN,
    };
    let mut datagram = Vec::with_capacity(len);
    datagram.push(FIRST_BYTE);
    datagram.extend(key.id);
    datagram.extend(probe.seq.to_be_bytes());
    datagram.push(match probe.kind {
        ProbeKind::Ping { doubt: false } => KIND_PING,
        ProbeKind::Ping { doubt: true } => KIND_DOUBTING_PING,
        ProbeKind::Pong { .. } => KIND_PONG,
    });
    datagram.extend(probe.txid);
    match probe.kind {
        ProbeKind::Ping { .. } => datagram.resize(len - TAG_LEN, 0),
        ProbeKind::Pong { observed: Some(addr) } => encode_socket_addr(&addr, &mut datagram),
        ProbeKind::Pong { observed: None } => datagram.push(NO_ADDRESS),
    }
    datagram.extend(tag(&datagram, &key.send));
    datagram
}

/// The id of the key that a datagram claims to be made with; nothing is proven yet.
#[inline]
pub fn peek_key_id(datagram: &[u8]) -> Option<[u8; 8]> {
    match datagram.first_chunk::<9>()? {
        [FIRST_BYTE, id @ ..] => Some(*id),
        _ => None,
    }
}

/// Reads a probe and proves that the other end made it; whether it is a replay, [`ReplayWindow`] tells.
///
/// Bytes between the last field and the tag are authenticated and ignored: room for fields to come.
pub fn decode(datagram: &[u8], key: &ProbeKey) -> Result<Probe, ProbeError> {
    if peek_key_id(datagram).ok_or(ProbeError::Malformed)? != key.id {
        return Err(ProbeError::OtherKey);
    }
    let (signed, received) = datagram.split_last_chunk::<TAG_LEN>().ok_or(ProbeError::Malformed)?;
    if !same_tag(*received, tag(signed, &key.recv)) {
        return Err(ProbeError::Forged);
    }
    parse_signed(signed).ok_or(ProbeError::Malformed)?
}

/// Why a datagram is not a probe of this connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProbeError {
    /// It is too short, or its fields contradict each other.
    #[error("malformed probe: dropped")]
    Malformed,
    /// It names another key.
    #[error("probe of another connection: dropped; look its key id up first")]
    OtherKey,
    /// Its tag is wrong.
    #[error("probe not made by the peer, or damaged: dropped")]
    Forged,
    /// The peer made it, but this version does not know its kind.
    #[error("probe of unknown kind {0} from a newer peer: ignored")]
    UnknownKind(u8),
}

/// The sequence numbers already seen from one end: each is accepted once, unless it is more than [`REPLAY_WINDOW`] behind the newest.
#[derive(Debug, Clone, Default)]
pub struct ReplayWindow {
    /// One bit per sequence number, at its remainder by [`REPLAY_WINDOW`].
    seen: [u64; (REPLAY_WINDOW / 64) as usize],
    newest: Option<u64>,
}

impl ReplayWindow {
    /// Nothing seen yet.
    pub const fn new() -> Self {
        ReplayWindow { seen: [0; (REPLAY_WINDOW / 64) as usize], newest: None }
    }

    /// Whether a probe with this number, which [`decode`] has proven, is new; notes it.
    pub fn accept(&mut self, seq: u64) -> bool {
        match self.newest {
            Some(newest) if seq > newest => {
                let skipped = (seq - newest).min(REPLAY_WINDOW);
                (0..skipped).for_each(|back| self.clear(seq.wrapping_sub(back)));
                self.newest = Some(seq);
            }
            Some(newest) if newest - seq >= REPLAY_WINDOW => return false,
            Some(_) => {}
            None => self.newest = Some(seq),
        }
        self.note(seq)
    }

    fn clear(&mut self, seq: u64) {
        if let Some(word) = self.word(seq) {
            *word &= !(1 << (seq % 64));
        }
    }

    fn note(&mut self, seq: u64) -> bool {
        let Some(word) = self.word(seq) else {
            return false;
        };
        let bit = 1 << (seq % 64);
        let new = *word & bit == 0;
        *word |= bit;
        new
    }

    fn word(&mut self, seq: u64) -> Option<&mut u64> {
        self.seen.get_mut((seq % REPLAY_WINDOW / 64) as usize)
    }
}

fn parse_signed(signed: &[u8]) -> Option<Result<Probe, ProbeError>> {
    let (_, rest) = signed.split_first_chunk::<9>()?;
    let (seq, rest) = rest.split_first_chunk::<8>()?;
    let (kind, rest) = rest.split_first()?;
    let (txid, rest) = rest.split_first_chunk::<8>()?;
    let kind = match *kind {
        KIND_PING => ProbeKind::Ping { doubt: false },
        KIND_DOUBTING_PING => ProbeKind::Ping { doubt: true },
        KIND_PONG if *rest.first()? == NO_ADDRESS => ProbeKind::Pong { observed: None },
        KIND_PONG => ProbeKind::Pong { observed: Some(decode_socket_addr(rest)?.0) },
        unknown => return Some(Err(ProbeError::UnknownKind(unknown))),
    };
    Some(Ok(Probe { seq: u64::from_be_bytes(*seq), kind, txid: *txid }))
}

fn tag(signed: &[u8], key: &[u8; 32]) -> [u8; TAG_LEN] {
    let hash = blake3::keyed_hash(key, signed);
    *hash.as_bytes().first_chunk().expect("a BLAKE3 hash is longer than a tag")
}

/// Compares in constant time: an attacker must not learn from the clock how much of a guess was right.
fn same_tag(received: [u8; TAG_LEN], expected: [u8; TAG_LEN]) -> bool {
    let widened = |tag: [u8; TAG_LEN]| {
        let mut wide = [0; blake3::OUT_LEN];
        wide.iter_mut().zip(tag).for_each(|(to, from)| *to = from);
        blake3::Hash::from_bytes(wide)
    };
    widened(received) == widened(expected) // `blake3::Hash` compares in constant time
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::{collections::BTreeSet, format};
    use core::net::IpAddr;
    use proptest::prelude::*;

    fn ends() -> (ProbeKey, ProbeKey) {
        let exported = core::array::from_fn(|i| i as u8);
        (ProbeKey::derive(&exported, true), ProbeKey::derive(&exported, false))
    }

    fn ping(seq: u64) -> Probe {
        Probe { seq, kind: ProbeKind::Ping { doubt: false }, txid: [9; 8] }
    }

    fn pong(observed: Option<&str>) -> Probe {
        Probe { seq: 7, kind: ProbeKind::Pong { observed: observed.map(|addr| addr.parse().unwrap()) }, txid: [9; 8] }
    }

    fn probes() -> impl Strategy<Value = Probe> {
        let addr = (any::<IpAddr>(), any::<u16>()).prop_map(|(ip, port)| SocketAddr::new(ip.to_canonical(), port));
        let kind = prop_oneof![
            any::<bool>().prop_map(|doubt| ProbeKind::Ping { doubt }),
            prop::option::of(addr).prop_map(|observed| ProbeKind::Pong { observed }),
        ];
        (any::<u64>(), kind, any::<[u8; 8]>()).prop_map(|(seq, kind, txid)| Probe { seq, kind, txid })
    }

    #[test]
    fn exported_bytes_are_split_as_documented() {
        let (dialer, acceptor) = ends();
        assert_eq!(dialer.id, [0, 1, 2, 3, 4, 5, 6, 7]);
        assert_eq!((dialer.send[0], dialer.recv[0], dialer.recv[31]), (8, 40, 71));
        assert_eq!((acceptor.id, acceptor.send, acceptor.recv), (dialer.id, dialer.recv, dialer.send));
    }

    #[test]
    fn bytes_are_the_documented_ones() {
        let (dialer, acceptor) = ends();
        assert_eq!(
            hex(&encode(&Probe { seq: 5, ..ping(0) }, &dialer, 0)),
            "8000010203040506070000000000000005000909090909090909000000000000000000000000000000000000009ade286cf2ddcb61a89345651fcad0ea"
        );
        assert_eq!(
            hex(&encode(&pong(Some("192.0.2.1:4433")), &acceptor, 0)),
            "800001020304050607000000000000000702090909090909090904c000020111517f21a1db0bbb8f215a9464a4ca008008"
        );
    }

    #[test]
    fn a_pong_is_never_longer_than_its_ping() {
        let (key, _) = ends();
        assert_eq!(encode(&ping(1), &key, 0).len(), MIN_PING_LEN);
        assert_eq!(encode(&pong(Some("[2001:db8::1]:1")), &key, 1200).len(), MIN_PING_LEN);
        assert_eq!(encode(&pong(None), &key, 1200).len(), 43);
    }

    #[test]
    fn a_padded_ping_has_the_asked_length() {
        let (key, _) = ends();
        assert_eq!(encode(&ping(1), &key, 1443).len(), 1443);
        assert_eq!(encode(&ping(1), &key, usize::MAX).len(), MAX_PROBE_LEN);
    }

    #[test]
    fn a_reflected_probe_is_forged() {
        let (dialer, _) = ends();
        assert_eq!(decode(&encode(&ping(1), &dialer, 0), &dialer), Err(ProbeError::Forged));
    }

    #[test]
    fn another_connections_probe_is_told_apart() {
        let (dialer, mut acceptor) = ends();
        acceptor.id = [1; 8];
        assert_eq!(decode(&encode(&ping(1), &dialer, 0), &acceptor), Err(ProbeError::OtherKey));
        assert_eq!(decode(&[], &acceptor), Err(ProbeError::Malformed));
    }

    #[test]
    fn any_change_in_length_or_content_is_forged() {
        let (dialer, acceptor) = ends();
        let good = encode(&pong(None), &dialer, 0);
        for at in 9..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            assert_eq!(decode(&bad, &acceptor), Err(ProbeError::Forged), "byte {at}");
            assert!(matches!(decode(&good[..at], &acceptor), Err(ProbeError::Forged | ProbeError::Malformed)));
        }
        let longer = [&good[..], &[0]].concat();
        assert_eq!(decode(&longer, &acceptor), Err(ProbeError::Forged));
    }

    #[test]
    fn an_unknown_kind_from_the_peer_is_ignored_by_name() {
        let (dialer, acceptor) = ends();
        let mut datagram = encode(&ping(1), &dialer, 0);
        datagram.truncate(MIN_PING_LEN - TAG_LEN);
        datagram[17] = 77;
        datagram.extend(tag(&datagram, &dialer.send));
        assert_eq!(decode(&datagram, &acceptor), Err(ProbeError::UnknownKind(77)));
    }

    #[test]
    fn debug_text_hides_the_keys() {
        assert_eq!(format!("{:?}", ends().0), "ProbeKey(0001020304050607)");
    }

    #[test]
    fn a_replayed_number_is_refused_and_a_late_one_accepted_once() {
        let mut window = ReplayWindow::new();
        assert!(window.accept(300));
        assert!(!window.accept(300));
        assert!(window.accept(45));
        assert!(!window.accept(45));
        assert!(!window.accept(44));
        assert!(window.accept(301));
        assert!(!window.accept(45));
    }

    #[test]
    fn a_jump_forgets_what_lies_behind_the_window() {
        let mut window = ReplayWindow::new();
        assert!(window.accept(0));
        assert!(window.accept(u64::MAX));
        assert!(window.accept(u64::MAX - 255));
        assert!(!window.accept(u64::MAX - 256));
        assert!(!window.accept(0));
    }

    fn hex(bytes: &[u8]) -> alloc::string::String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    proptest! {
        #[test]
        fn probes_round_trip(probe in probes(), exported in prop::collection::vec(any::<u8>(), EXPORT_LEN), pad_to in 0..2000_usize) {
            let exported: [u8; EXPORT_LEN] = exported.try_into().unwrap();
            let (dialer, acceptor) = (ProbeKey::derive(&exported, true), ProbeKey::derive(&exported, false));
            let datagram = encode(&probe, &dialer, pad_to);
            prop_assert!(datagram.len() <= MAX_PROBE_LEN);
            prop_assert_eq!(peek_key_id(&datagram), Some(acceptor.id));
            prop_assert_eq!(decode(&datagram, &acceptor), Ok(probe));
        }

        #[test]
        fn no_bytes_panic(mut datagram: Vec<u8>, tail: Vec<u8>) {
            let (dialer, acceptor) = ends();
            let _ = decode(&datagram, &acceptor);
            datagram = [&[FIRST_BYTE], &acceptor.id[..], &tail].concat();
            let _ = decode(&datagram, &acceptor);
            datagram.extend(tag(&datagram, &dialer.send)); // what only the peer could send
            let _ = decode(&datagram, &acceptor);
        }

        #[test]
        fn window_agrees_with_a_set_of_all_numbers(seqs in prop::collection::vec(0..2_000_u64, 1..400), base: u32) {
            let (mut window, mut seen) = (ReplayWindow::new(), BTreeSet::new());
            for seq in seqs.into_iter().map(|seq| u64::from(base) + seq) {
                let in_window = seen.last().is_none_or(|newest| seq + REPLAY_WINDOW > *newest);
                let expected = in_window && seen.insert(seq);
                prop_assert_eq!(window.accept(seq), expected);
            }
        }
    }
}
