//! The address book against what it owes, whatever it is told: bytes in, promises held.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    time::Duration,
};

use byway_proto::{
    PeerId, Rng, UnixTime,
    addr::HostAddr,
    book::{
        BUCKET, Ban, Book, BookConfig, Change, ClaimRecord, Contact, GROUP_BUCKETS, GROUP_CLAIMS, Group, Import,
        MAX_TELL, NEW_BUCKETS, OLD_BUCKETS, Record, Side, Wanted,
    },
};

struct Model {
    book: Book,
    now: UnixTime,
    rng: Rng,
    bans: BTreeMap<PeerId, UnixTime>,
    rows: BTreeMap<PeerId, Record>,
}

/// Does to a book what the bytes say.
///
/// # Panics
///
/// Panics where the book does what it must not.
pub(crate) fn run(bytes: &[u8]) {
    let hidden = peer(250);
    let config = BookConfig::default();
    let mut model = Model {
        book: Book::new(config, peer(255), [1; 32]),
        now: UnixTime(1_000_000),
        rng: Rng::new(&[2; 32], "model"),
        bans: BTreeMap::new(),
        rows: BTreeMap::new(),
    };
    model.book.hide(hidden);
    for step in bytes.chunks_exact(4) {
        let [what, n, a, b] = *step else { return };
        model.step(what, peer(n), a, b);
        model.check(hidden);
    }
}

impl Model {
    fn step(&mut self, what: u8, peer: PeerId, a: u8, b: u8) {
        let (contact, now) = (contact(peer, a, b), self.now);
        let group = contact.group().expect("it has an address");
        match what % 11 {
            0..=2 => drop(self.book.insert(&contact, Group::of(Ipv4Addr::new(30, b, 0, 1).into()), now)),
            3 => self.book.good(contact, group, now),
            4 => self.book.attempted(peer, now),
            5 => {
                let until = now + Duration::from_secs(60) * u32::from(a);
                if self.book.ban(peer, until, "model") {
                    self.bans.insert(peer, until);
                }
            }
            6 => {
                self.book.unban(peer, now);
                self.bans.remove(&peer);
            }
            7 => {
                self.now = now + Duration::from_secs(u64::from(a) * u64::from(b));
                self.book.expire(self.now);
                self.bans.retain(|_, until| self.now < *until);
            }
            8 => self.choose(a, b),
            9 => self.import(contact, a, b),
            _ => {
                let _ = self.book.add(contact, now);
            }
        }
    }

    /// Takes over a row that another node might export.
    fn import(&mut self, contact: Contact, a: u8, b: u8) {
        let (peer, now) = (contact.peer, self.now);
        let group = contact.group().expect("it has an address");
        let until = now + Duration::from_secs(60) * u32::from(b % 8);
        let is_banned = a.is_multiple_of(2);
        let is_proven = a.is_multiple_of(3);
        let claims = [9, 10].map(|n| ClaimRecord { source: self::group(n), contact: contact.clone() });
        let record = Record {
            peer,
            proven: is_proven.then(|| (contact.clone(), group)),
            claims: if is_proven { Vec::new() } else { claims.into() },
            attempts: u32::from(b),
            tried: b.is_multiple_of(3).then_some(now),
            good: b.is_multiple_of(5).then_some(now),
            added: now,
            ban: is_banned.then(|| Ban { until, why: "elsewhere".into(), contact: Some(contact) }),
        };
        let ours = self.bans.get(&peer).copied().filter(|until| now < *until);
        let theirs = is_banned.then_some(until).filter(|until| now < *until);
        let became = self.book.import(record, now);
        if peer == self::peer(255) {
            return assert_eq!(became, Import::Refused);
        }
        self.bans.remove(&peer);
        self.bans.extend(ours.max(theirs).map(|until| (peer, until)));
        match became {
            Import::Banned { until } => assert!(theirs == Some(until) && ours < theirs),
            Import::StaysBanned => assert!(ours.is_some() && ours >= theirs),
            _ => assert_eq!((ours, theirs), (None, None)),
        }
    }

    fn choose(&mut self, a: u8, b: u8) {
        let side = match a % 3 {
            0 => Side::New,
            1 => Side::Old,
            _ => Side::Either(b % 101),
        };
        let (taken, skipped) = (group(a), peer(b));
        let wanted = Wanted { side, taken: &|it| it == taken, skip: &|it| it == skipped };
        if let Some((contact, group)) = self.book.choose(&wanted, self.now, &mut self.rng) {
            assert!(!self.bans.contains_key(&contact.peer), "a banned peer was chosen");
            assert!(contact.peer != skipped && group != taken);
            assert!(self.book.rests_until(contact.peer, self.now).is_none());
        }
    }

    fn check(&mut self, hidden: PeerId) {
        for change in self.book.take_changes(usize::MAX) {
            match change {
                Change::Peer(record) => drop(self.rows.insert(record.peer, *record)),
                Change::Gone(peer) => drop(self.rows.remove(&peer)),
                _ => {}
            }
        }
        assert!(self.book.records().eq(self.rows.values().cloned()), "the rows are the book");
        let (new, old) = self.book.places();
        assert!(new <= NEW_BUCKETS * BUCKET && old <= OLD_BUCKETS * BUCKET);
        let (mut claimed, mut proven) = (BTreeMap::<Group, usize>::new(), BTreeMap::<Group, usize>::new());
        for record in self.book.records() {
            assert!(record.peer != peer(255) && (record.peer != hidden || record.ban.is_some()));
            assert!(record.peer != hidden || record.ban.as_ref().is_none_or(|ban| ban.contact.is_none()));
            assert_eq!(record.ban.is_some(), self.bans.contains_key(&record.peer));
            assert!(record.ban.is_none() || record.proven.is_none() && record.claims.is_empty());
            let group = |contact: &Contact| contact.group().expect("it has an address");
            record.claims.iter().for_each(|it| *claimed.entry(group(&it.contact)).or_default() += 1);
            record.proven.iter().for_each(|it| *proven.entry(it.1).or_default() += 1);
        }
        assert_eq!((claimed.values().sum::<usize>(), proven.values().sum::<usize>()), (new, old));
        assert!(claimed.values().all(|count| *count <= GROUP_CLAIMS));
        assert!(proven.values().all(|count| *count <= GROUP_BUCKETS * BUCKET));
        let told = self.book.tell(peer(0), self.now, &mut self.rng);
        let distinct: BTreeSet<_> = told.iter().map(|contact| contact.peer).collect();
        assert!(told.len() <= MAX_TELL && distinct.len() == told.len());
        assert!(told.iter().all(|it| it.peer != peer(0) && !self.bans.contains_key(&it.peer)));
    }
}

fn peer(n: u8) -> PeerId {
    PeerId::ed25519([n; 32])
}

/// Few groups, so that they meet.
fn group(a: u8) -> Group {
    Group::of(Ipv4Addr::new(40, a % 5, 0, 1).into())
}

fn contact(peer: PeerId, a: u8, b: u8) -> Contact {
    let addr = HostAddr::Socket((Ipv4Addr::new(40, a % 5, a, b), 7).into());
    Contact { addrs: vec![addr], ..Contact::new(peer) }
}
