use alloc::{collections::BTreeSet, format, string::ToString, vec::Vec};
use core::{net::Ipv4Addr, time::Duration};

use proptest::prelude::*;

use super::*;
use crate::{PeerAddr, Rng, addr::HostAddr};

const NOW: UnixTime = UnixTime(1_800_000_000);
const DAY: Duration = Duration::from_secs(86_400);

fn peer(n: u32) -> PeerId {
    let mut key = [7; 32];
    key[..4].copy_from_slice(&n.to_be_bytes());
    PeerId::ed25519(key)
}

fn at(n: u32, a: u8, b: u8) -> Contact {
    let [_, _, c, d] = n.to_be_bytes();
    let addr = HostAddr::Socket((Ipv4Addr::new(a, b, c, d), 4_242).into());
    Contact { peer: peer(n), addrs: [addr].into(), relays: Vec::new() }
}

fn source(a: u8, b: u8) -> Group {
    Group::of(Ipv4Addr::new(a, b, 0, 0).into())
}

fn book() -> Book {
    Book::new(BookConfig::default(), peer(u32::MAX), [3; 32])
}

fn anybody<'a>(side: Side) -> Wanted<'a> {
    Wanted { side, taken: &|_| false, skip: &|_| false }
}

fn reach(book: &mut Book, n: u32, a: u8, b: u8) {
    book.good(at(n, a, b), source(a, b), NOW);
}

#[test]
fn a_reached_peer_that_has_to_make_room_is_known_still() {
    let mut book = book();
    (0..2_000).for_each(|n| reach(&mut book, n, 198, 51));
    let (new, old) = book.places();
    assert!(old > 200 && old <= GROUP_BUCKETS * BUCKET, "{old}");
    assert_eq!(new, BUCKET, "the demoted ones fill the bucket of their group");
    let demoted = (0..2_000).filter(|n| book.contact(peer(*n)).is_some() && !book.is_proven(peer(*n)));
    let demoted: Vec<_> = demoted.collect();
    assert_eq!(demoted.len(), BUCKET);
    assert!(demoted.iter().all(|n| book.record(peer(*n)).unwrap().good == Some(NOW)), "and keep their past");
}

#[test]
fn a_group_that_is_large_pushes_out_its_own_and_nobody_else() {
    let mut book = book();
    let honest: Vec<_> = (0..200).map(|n| (n, 60 + (n / 100) as u8, (n % 100) as u8)).collect();
    honest.iter().for_each(|(n, a, b)| reach(&mut book, *n, *a, *b));
    for n in 1_000..20_000 {
        reach(&mut book, n, 198, 51);
    }
    assert!(honest.iter().all(|(n, ..)| book.is_proven(peer(*n))));
}

#[test]
fn a_good_mark_keeps_a_peers_place_and_a_bad_one_lets_it_rest_for_an_hour() {
    let (mut book, hour) = (book(), Duration::from_secs(3_600));
    reach(&mut book, 0, 198, 51);
    // Without the mark it would be the first to make room: it was reached before all others.
    book.mark(peer(0), true, NOW + DAY);
    (1..2_000).for_each(|n| reach(&mut book, n, 198, 51));
    assert!(book.is_proven(peer(0)));
    book.mark(peer(0), false, NOW + DAY);
    assert_eq!(book.rests_until(peer(0), NOW + DAY), Some(NOW + DAY + hour));
    assert!(book.is_proven(peer(0)) && book.rests_until(peer(0), NOW + DAY + hour).is_none());
    // Who was only heard of gains nothing by a good word, and loses by a bad one.
    book.insert(&at(9_000, 203, 9), source(203, 9), NOW).unwrap();
    let before = book.record(peer(9_000));
    book.mark(peer(9_000), true, NOW);
    assert_eq!(book.record(peer(9_000)), before);
    book.mark(peer(9_000), false, NOW);
    assert_eq!(book.rests_until(peer(9_000), NOW), Some(NOW + hour));
}

#[test]
fn a_peer_whose_ban_ends_is_known_again() {
    let mut book = book();
    reach(&mut book, 1, 198, 51);
    book.ban(peer(1), NOW + DAY, "sent garbage");
    assert!(book.banned(peer(1), NOW).is_some() && book.contact(peer(1)).is_none());
    book.expire(NOW + DAY);
    assert_eq!(book.banned(peer(1), NOW + DAY), None);
    assert_eq!(book.contact(peer(1)), Some(at(1, 198, 51)));
    assert!(book.choose(&anybody(Side::New), NOW + DAY, &mut Rng::new(&[0; 32], "")).is_some());
}

#[test]
fn of_two_bans_the_one_that_ends_later_holds_and_no_import_lets_in_who_is_banned() {
    let row = |until: Option<UnixTime>| {
        let mut other = book();
        reach(&mut other, 1, 66, 6);
        until.map(|until| other.ban(peer(1), until, "there"));
        other.record(peer(1)).unwrap()
    };
    let mut ours = book();
    reach(&mut ours, 1, 198, 51);
    ours.ban(peer(1), NOW + DAY, "here");
    for until in [None, Some(NOW), Some(NOW + DAY)] {
        assert_eq!(ours.import(row(until), NOW), Import::StaysBanned, "{until:?}");
        assert_eq!(ours.banned(peer(1), NOW).unwrap().why, "here");
        assert!(ours.is_empty() && ours.tell(peer(9), NOW, &mut Rng::new(&[0; 32], "")).is_empty());
    }
    assert!(!ours.restore(row(None), NOW) && ours.is_empty());
    let longer = Import::Banned { until: NOW + 2 * DAY };
    assert_eq!(ours.import(row(Some(NOW + 2 * DAY)), NOW), longer);
    assert_eq!(ours.banned(peer(1), NOW).unwrap().why, "there");
    ours.expire(NOW + 2 * DAY);
    assert_eq!(ours.contact(peer(1)), Some(at(1, 198, 51)), "what was known here is known again");
    // A ban that is over counts for nothing, whether this book or the row has it.
    ours.ban(peer(1), NOW + DAY, "here");
    assert_eq!(ours.import(row(None), NOW + DAY), Import::Known);
    let mut over = row(None);
    over.ban = Some(Ban::new(NOW, "there", None));
    assert_eq!(ours.import(over, NOW), Import::Known);
    assert_eq!(ours.contact(peer(1)), Some(at(1, 66, 6)));
}

#[test]
fn a_row_that_is_longer_than_a_store_takes_is_not_imported() {
    let name = |n: usize| -> HostAddr {
        let label = "x".repeat(60);
        format!("x{n}.{label}.{label}.{label}.{label}:1").parse().unwrap()
    };
    let contact = Contact {
        peer: peer(1),
        addrs: (0..8).map(name).collect(),
        relays: (2..5).map(|n| PeerAddr::new(peer(n), (0..8).map(name))).collect(),
    };
    let row = |claims: u8| {
        let claim = |a: u8| ClaimRecord { source: source(60 + a, 1), contact: contact.clone() };
        let claims = (0..claims).map(claim).collect();
        Record { peer: peer(1), proven: None, claims, attempts: 0, tried: None, good: None, added: NOW, ban: None }
    };
    let mut book = book();
    assert_eq!(book.import(row(8), NOW), Import::Refused);
    assert!(book.is_empty());
    assert_eq!(book.import(row(1), NOW), Import::Known);
    let stored = book.record(peer(1)).unwrap().to_bytes();
    assert!(stored.len() > 8_000 && Record::from_bytes(&stored).is_some(), "{}", stored.len());
}

#[test]
fn a_full_list_of_bans_gives_way_to_an_imported_one_only_if_that_ends_later() {
    let mut book = book();
    for n in 0..MAX_BANS as u32 {
        book.ban(peer(n), NOW + DAY, "here");
    }
    let mut import = |n: u32, until: UnixTime| {
        let mut other = self::book();
        other.ban(peer(n), until, "there");
        book.import(other.record(peer(n)).unwrap(), NOW)
    };
    assert_eq!(import(5_000, NOW + DAY), Import::Refused);
    assert_eq!(import(5_001, UnixTime::NEVER), Import::Banned { until: UnixTime::NEVER });
    assert_eq!(book.records().count(), MAX_BANS);
}

#[test]
fn a_private_peer_is_in_no_book_while_it_is_banned_nor_when_that_ends() {
    let hidden = || Book::new(BookConfig { hidden: [peer(1)].into(), local: false }, peer(u32::MAX), [3; 32]);
    let mut other = book();
    reach(&mut other, 1, 198, 51);
    other.ban(peer(1), NOW + DAY, "there");
    let row = other.record(peer(1)).unwrap();
    let mut restored = hidden();
    assert!(restored.restore(row.clone(), NOW));
    let mut imported = hidden();
    assert_eq!(imported.import(row, NOW), Import::Banned { until: NOW + DAY });
    let mut late = other; // it was banned before it was private
    late.hide(peer(1));
    for mut book in [restored, imported, late] {
        assert!(book.banned(peer(1), NOW).is_some_and(|ban| ban.contact.is_none()));
        assert!(book.records().count() == 1 && book.exports().next().is_none());
        book.expire(NOW + DAY);
        assert!(book.is_empty() && book.records().next().is_none());
    }
    // Whatever a ban holds, its end puts no private peer into a table.
    let mut book = hidden();
    book.bans.insert(peer(1), Ban::new(NOW, "by hand", Some(at(1, 198, 51))));
    assert!(book.unban(peer(1), NOW) && book.is_empty());
}

#[test]
fn a_peer_that_was_never_heard_of_can_be_banned() {
    let mut book = book();
    book.ban(peer(1), UnixTime::NEVER, "by hand");
    assert_eq!(book.insert(&at(1, 198, 51), source(9, 9), NOW), Err(Refused::Banned));
    assert_eq!(book.add(at(1, 198, 51), NOW), Err(Refused::Banned));
    book.good(at(1, 198, 51), source(198, 51), NOW);
    assert!(book.is_empty());
    assert!(book.unban(peer(1), NOW) && book.insert(&at(1, 198, 51), source(9, 9), NOW).is_ok());
}

#[test]
fn a_restart_keeps_bans_anchors_and_every_place() {
    let mut book = book();
    for n in 0..2_000 {
        let _ = book.insert(&at(n, 100 + (n % 50) as u8, 1), source(20 + (n % 7) as u8, 1), NOW);
    }
    (2_000..2_300).for_each(|n| reach(&mut book, n, 60, (n % 200) as u8));
    book.ban(peer(5_000), NOW + DAY, "by hand");
    book.ban(peer(2_001), NOW + DAY, "known");
    book.set_anchors([peer(2_002)].into());
    let mut again = Book::new(BookConfig::default(), peer(u32::MAX), book.head().key);
    again.set_anchors(Head::from_bytes(&book.head().to_bytes()).unwrap().anchors);
    for record in book.records() {
        assert_eq!(Record::from_bytes(&record.to_bytes()), Some(record.clone()));
        assert!(again.restore(record, NOW));
    }
    assert_eq!(again.records().collect::<Vec<_>>(), book.records().collect::<Vec<_>>());
    assert_eq!((again.places(), again.anchors()), (book.places(), book.anchors()));
    for bucket in 0..NEW_BUCKETS {
        let set = |book: &Book| book.new.bucket(bucket).iter().map(|slot| slot.peer).collect::<BTreeSet<_>>();
        assert_eq!(set(&again), set(&book), "bucket {bucket}");
    }
}

#[test]
fn a_bucket_takes_64_and_not_one_more() {
    let mut book = book();
    let taken = (0..200).filter(|n| book.insert(&at(*n, 198, 51), source(9, 9), NOW).is_ok()).count();
    assert_eq!(taken, BUCKET);
    assert_eq!(book.insert(&at(999, 198, 51), source(9, 9), NOW), Err(Refused::BucketFull));
}

#[test]
fn one_key_is_one_peer_however_its_id_is_written() {
    let mut book = book();
    let upper: PeerId = peer(1).to_string().to_uppercase().parse().unwrap();
    book.insert(&Contact { peer: upper, ..at(1, 198, 51) }, source(9, 9), NOW).unwrap();
    book.insert(&at(1, 198, 51), source(8, 8), NOW).unwrap();
    assert_eq!(book.len(), 1);
}

#[test]
fn hearsay_does_not_move_a_peer_that_was_reached() {
    let mut book = book();
    reach(&mut book, 1, 198, 51);
    assert_eq!(book.insert(&at(1, 66, 66), source(66, 66), NOW), Err(Refused::Known));
    assert_eq!(book.contact(peer(1)), Some(at(1, 198, 51)));
}

#[test]
fn liars_from_four_prefixes_do_not_silence_the_next_source() {
    let mut book = book();
    (0..4).for_each(|n| book.insert(&at(1, 66, n), source(66, n), NOW).unwrap());
    book.insert(&at(1, 198, 51), source(9, 9), NOW).unwrap();
    assert!(book.contact(peer(1)).unwrap().addrs.contains(&at(1, 198, 51).addrs[0]));
}

#[test]
fn one_source_fills_an_eighth_of_the_new_table_at_most() {
    let mut book = book();
    for n in 0..60_000 {
        let _ = book.insert(&at(n, 1 + (n % 90) as u8, (n / 90 % 250) as u8), source(66, 66), NOW);
    }
    let filled = (0..NEW_BUCKETS).filter(|bucket| !book.new.bucket(*bucket).is_empty()).count();
    assert!(filled <= SOURCE_BUCKETS, "{filled}");
    assert!(filled > SOURCE_BUCKETS / 2, "{filled}: the test is meant to flood");
}

#[test]
fn a_group_has_its_share_of_the_new_table_whoever_names_it() {
    let mut book = book();
    for n in 0..20_000 {
        let _ = book.insert(&at(n, 198, 51), source((n % 200) as u8 + 20, (n / 200) as u8), NOW);
    }
    assert_eq!(book.places().0, GROUP_CLAIMS);
}

#[test]
fn a_full_bucket_gives_up_what_is_hopeless_and_nothing_else() {
    let mut book = book();
    (0..BUCKET as u32).for_each(|n| book.insert(&at(n, 198, 51), source(9, 9), NOW).unwrap());
    (0..HOPELESS).for_each(|_| book.attempted(peer(3), NOW));
    assert_eq!(book.insert(&at(99, 198, 51), source(9, 9), NOW), Err(Refused::BucketFull), "it may answer yet");
    book.insert(&at(99, 198, 51), source(9, 9), NOW + JUST_TRIED).unwrap();
    assert!(book.contact(peer(3)).is_none());
    assert_eq!(book.len(), BUCKET);
}

#[test]
fn private_peers_own_addresses_names_and_private_networks_are_not_taken() {
    let mut book = Book::new(BookConfig { hidden: [peer(1)].into(), local: false }, peer(0), [3; 32]);
    book.set_own(["198.51.100.1:7".parse().unwrap()]);
    let contact = |n, addrs: &[&str]| Contact {
        addrs: addrs.iter().map(|addr| addr.parse().unwrap()).collect(),
        ..Contact::new(peer(n))
    };
    let mut insert = |contact: Contact| book.insert(&contact, source(9, 9), NOW);
    assert_eq!(insert(at(0, 198, 51)), Err(Refused::Itself));
    assert_eq!(insert(at(1, 198, 51)), Err(Refused::Hidden));
    for addr in ["10.0.0.1:1", "127.0.0.1:1", "169.254.169.254:80", "198.51.100.1:7", "evil.example:1"] {
        assert_eq!(insert(contact(2, &[addr])), Err(Refused::NoAddress), "{addr}");
    }
    assert_eq!(insert(contact(2, &["evil.example:1", "203.0.113.1:1", "66.66.1.1:1"])), Ok(()));
    assert_eq!(book.contact(peer(2)), Some(contact(2, &["203.0.113.1:1"])), "addresses of one group, and no names");
    book.hide(peer(2));
    assert!(book.records().next().is_none());
}

#[test]
fn the_owners_word_keeps_names_and_is_not_told_on() {
    let mut book = book();
    let named = Contact { addrs: ["home.example:1".parse().unwrap()].into(), ..Contact::new(peer(1)) };
    book.add(named.clone(), NOW).unwrap();
    assert_eq!(book.contact(peer(1)), Some(named));
    assert!(book.tell(peer(9), NOW, &mut Rng::new(&[0; 32], "")).is_empty());
}

#[test]
fn what_failed_rests_longer_each_time_and_an_hour_at_most() {
    let mut book = book();
    reach(&mut book, 1, 198, 51);
    let mut rests = Vec::new();
    for _ in 0..9 {
        book.attempted(peer(1), NOW);
        rests.push(book.rests_until(peer(1), NOW).unwrap().since(NOW).as_secs());
    }
    assert_eq!(rests, [30, 60, 120, 240, 480, 960, 1_920, 3_600, 3_600]);
    let mut rng = Rng::new(&[0; 32], "");
    assert!(book.choose(&anybody(Side::Old), NOW, &mut rng).is_none());
    assert!(book.choose(&anybody(Side::Old), NOW + MAX_RETRY, &mut rng).is_some());
    reach(&mut book, 1, 198, 51);
    assert_eq!(book.rests_until(peer(1), NOW), None);
}

#[test]
fn a_reached_peer_that_is_gone_for_good_is_forgotten() {
    let mut book = book();
    reach(&mut book, 1, 198, 51);
    let later = |n: u32| NOW + FRESH + DAY + MAX_RETRY * n;
    (0..GIVEN_UP).for_each(|n| book.attempted(peer(1), later(n)));
    assert!(book.contact(peer(1)).is_none());
}

#[test]
fn changes_are_rows_that_rebuild_the_book() {
    let mut book = book();
    let mut rows: BTreeMap<PeerId, Record> = BTreeMap::new();
    let mut heads = 0;
    for n in 0..3_000u32 {
        match n % 5 {
            0 => reach(&mut book, n, 60, (n % 200) as u8),
            1 => assert!(book.ban(peer(n / 2), NOW + DAY, "test")),
            2 => book.forget(peer(n / 3)),
            _ => drop(book.insert(&at(n, (n % 90) as u8 + 1, 1), source((n % 9) as u8 + 1, 1), NOW)),
        }
        for change in book.take_changes(100) {
            match change {
                Change::Head(_) => heads += 1,
                Change::Peer(record) => drop(rows.insert(record.peer, *record)),
                Change::Gone(peer) => drop(rows.remove(&peer)),
            }
        }
    }
    assert_eq!(heads, 1);
    assert_eq!(rows.into_values().collect::<Vec<_>>(), book.records().collect::<Vec<_>>());
}

#[test]
fn rows_that_could_not_be_stored_are_taken_again_as_they_are_by_then() {
    let mut book = book();
    reach(&mut book, 1, 60, 1);
    reach(&mut book, 2, 60, 2);
    let taken = book.take_changes(10);
    book.ban(peer(1), UnixTime::NEVER, "meanwhile");
    book.put_back(taken);
    let expected = [
        Change::Head(book.head()),
        Change::Peer(book.record(peer(1)).unwrap().into()),
        Change::Peer(book.record(peer(2)).unwrap().into()),
    ];
    assert_eq!(book.take_changes(10), expected);
    book.forget(peer(2));
    let gone = book.take_changes(10);
    book.put_back(gone);
    assert_eq!(book.take_changes(10), [Change::Gone(peer(2))]);
    assert!(!book.has_changed());
}

#[test]
fn where_nobody_takes_rows_those_of_peers_that_have_gone_give_way() {
    let mut book = book();
    reach(&mut book, 1, 60, 1);
    book.ban(peer(2), UnixTime::NEVER, "by hand");
    for n in 10..MAX_CHANGED as u32 + 100 {
        reach(&mut book, n, 60, 2);
        book.forget(peer(n));
        assert!(book.changed.len() <= MAX_CHANGED);
    }
    assert!(book.changed.contains(&peer(1)) && book.changed.contains(&peer(2)));
    assert!(book.changed.len() < 1_000, "{}", book.changed.len());
}

/// Four prefixes with addresses without end, which speak first and loudest, against 2,000 honest peers of 300 prefixes. A node
/// with 32 slots runs for four days; honest peers stay for four hours in the mean, the attacker's for ever.
#[test]
fn an_attacker_with_four_prefixes_takes_less_than_15_percent_of_the_outbound_slots() {
    const SLOTS: usize = 32;
    let mut book = book();
    let mut rng = Rng::new(&[9; 32], "eclipse");
    let evil = |n: u32| n >= 1_000_000;
    let honest_at = |n: u32| (20 + (n % 300 / 20) as u8, (n % 20) as u8);
    for n in 0..2_000 {
        let (a, b) = honest_at(n);
        if n % 4 == 0 { reach(&mut book, n, a, b) } else { book.insert(&at(n, a, b), source(a, b), NOW).unwrap_or(()) }
    }
    let mut slots: Vec<(u32, Group)> = Vec::new();
    let (mut held, mut worst) = (0, 0);
    for minute in 0..4 * 24 * 60u32 {
        let now = NOW + Duration::from_secs(60) * minute;
        for n in 0..64 {
            let (from, about) = (source(66, (n % 4) as u8), minute * 64 + n);
            // half of it the attacker's own, half of it honest groups' names for nobody at all
            let lie = if n % 2 == 0 {
                at(1_000_000 + about, 66, (n / 2 % 4) as u8)
            } else {
                at(1 << 30 | about, 20 + (n % 15) as u8, (about % 20) as u8)
            };
            let _ = book.insert(&lie, from, now);
        }
        slots.retain(|(n, _)| evil(*n) || rng.below(240) > 0);
        for _ in 0..4 {
            if slots.len() == SLOTS {
                break;
            }
            let (taken, connected) =
                (|group| slots.iter().any(|it| it.1 == group), |peer_id| slots.iter().any(|it| peer(it.0) == peer_id));
            let wanted = Wanted { side: Side::Either(30), taken: &taken, skip: &connected };
            let Some((contact, group)) = book.choose(&wanted, now, &mut rng) else { break };
            book.attempted(contact.peer, now);
            let n = u32::from_be_bytes(contact.peer.as_bytes()[..4].try_into().unwrap());
            if n < 1 << 30 && (evil(n) || rng.below(3) > 0) {
                book.good(contact, group, now);
                slots.push((n, group));
            }
        }
        let theirs = slots.iter().filter(|(n, _)| evil(*n)).count();
        (held, worst) = (held + theirs, worst.max(theirs));
    }
    let mean = held as f64 / (4 * 24 * 60 * SLOTS) as f64;
    std::println!("mean {:.3} worst {worst} of {SLOTS}, filled {}", mean, slots.len());
    assert!(slots.len() > SLOTS * 3 / 4);
    assert!(worst * 100 < 15 * SLOTS, "{worst} of {SLOTS}");
}

proptest! {
    #[test]
    fn no_bytes_make_a_row_that_panics(bytes: Vec<u8>) {
        let _ = Head::from_bytes(&bytes);
        if let Some(record) = Record::from_bytes(&bytes) {
            prop_assert_eq!(Record::from_bytes(&record.to_bytes()), Some(record.clone()));
            book().restore(record, NOW);
        }
    }
}
