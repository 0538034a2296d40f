use core::net::Ipv4Addr;

use proptest::prelude::*;

use super::*;
use crate::{
    PeerAddr,
    addr::HostAddr,
    book::{MAX_CLAIM_ADDRS, MAX_CLAIM_RELAYS, MAX_TELL},
};

fn at(secs: u64) -> Instant {
    Instant::after_start(Duration::from_secs(secs))
}

fn peer(n: u8) -> PeerId {
    PeerId::ed25519([n; 32])
}

fn contact(n: u8) -> Contact {
    let addr = |d| HostAddr::Socket((Ipv4Addr::new(198, 51, 100, d), 1_000).into());
    let relay = |n| PeerAddr::new(peer(n), (0..MAX_CLAIM_RELAYS as u8).map(addr));
    Contact {
        peer: peer(n),
        addrs: (0..MAX_CLAIM_ADDRS as u8).map(addr).collect(),
        relays: (0..MAX_CLAIM_RELAYS as u8).map(relay).collect(),
    }
}

fn pex(seed: bool) -> Pex {
    Pex::new(PexConfig { seed }, &[1; 32], at(0))
}

fn feed(pex: &mut Pex, input: Input<'_>, now: Instant) -> Vec<Output> {
    pex.handle_input(input, now);
    core::iter::from_fn(|| pex.poll_output()).collect()
}

fn receive(pex: &mut Pex, n: u8, message: &Message, now: Instant) -> Vec<Output> {
    feed(pex, Input::Received { peer: peer(n), bytes: &message.to_bytes() }, now)
}

fn asks(outputs: &[Output]) -> usize {
    let ask = Message::Ask.to_bytes();
    outputs.iter().filter(|it| matches!(it, Output::Send { bytes, .. } if *bytes == ask)).count()
}

#[test]
fn a_new_peer_is_told_who_we_are_and_asked_whom_it_knows() {
    let mut pex = pex(false);
    assert!(feed(&mut pex, Input::Own(Some(contact(9))), at(0)).is_empty());
    let outputs = feed(&mut pex, Input::Up { peer: peer(1) }, at(0));
    let own = Output::Send { peer: peer(1), bytes: Message::Own(contact(9)).to_bytes() };
    assert_eq!(outputs, [own, Output::Send { peer: peer(1), bytes: Message::Ask.to_bytes() }]);
    let told = receive(&mut pex, 1, &Message::Tell([contact(5)].into()), at(1));
    assert_eq!(told, [Output::Heard { peer: peer(1), contacts: [contact(5)].into() }]);
}

#[test]
fn a_peer_that_says_without_end_where_it_is_is_heard_now_and_then() {
    let mut pex = pex(false);
    feed(&mut pex, Input::Up { peer: peer(1) }, at(0));
    let mut heard = 0;
    for second in 0..60 {
        for n in 0..100 {
            let outputs = receive(&mut pex, 1, &Message::Own(contact(n)), at(second));
            assert!(!outputs.iter().any(|it| matches!(it, Output::Misbehaved { .. })));
            heard += outputs.iter().filter(|it| matches!(it, Output::Heard { .. })).count();
        }
    }
    assert!((12..=15).contains(&heard), "{heard}");
}

#[test]
fn who_asks_too_early_gets_no_answer_and_loses_nothing_by_it() {
    let mut pex = pex(false);
    feed(&mut pex, Input::Up { peer: peer(1) }, at(0));
    let answers = |pex: &mut Pex, now| receive(pex, 1, &Message::Ask, now) == [Output::Answer { peer: peer(1) }];
    assert_eq!((0..100).filter(|_| answers(&mut pex, at(0))).count() as u64, ANSWER_BURST);
    assert!(!answers(&mut pex, at(ANSWER_EVERY.as_secs() - 1)));
    assert!(answers(&mut pex, at(ANSWER_EVERY.as_secs())));
    assert_eq!(pex.len(), 1);
}

#[test]
fn two_nodes_that_keep_the_rules_always_answer_each_other() {
    let (mut a, mut b) = (pex(false), pex(false));
    feed(&mut a, Input::Hungry(true), at(0));
    let mut asked = 0;
    feed(&mut b, Input::Up { peer: peer(1) }, at(0));
    for second in 0..3_600 {
        let input = if second == 0 { Input::Up { peer: peer(2) } } else { Input::Timeout };
        for _ in 0..asks(&feed(&mut a, input, at(second))) {
            asked += 1;
            assert!(receive(&mut b, 1, &Message::Ask, at(second)).contains(&Output::Answer { peer: peer(1) }));
        }
    }
    assert_eq!(asked, 60);
}

#[test]
fn questions_are_rare_while_the_book_is_full_and_begin_at_once_when_it_wants_more() {
    let mut pex = pex(false);
    let first: usize = (0..100).map(|n| asks(&feed(&mut pex, Input::Up { peer: peer(n) }, at(0)))).sum();
    let ticks = |pex: &mut Pex, seconds: core::ops::Range<u64>| {
        seconds.map(|second| asks(&feed(pex, Input::Timeout, at(second)))).sum::<usize>()
    };
    assert_eq!((first, ticks(&mut pex, 1..60)), (1, 11), "one each five seconds");
    assert_eq!(asks(&feed(&mut pex, Input::Hungry(false), at(60))), 1);
    assert_eq!(ticks(&mut pex, 61..600), 0);
    assert_eq!(asks(&feed(&mut pex, Input::Hungry(true), at(600))), 1);
    assert_eq!(ticks(&mut pex, 601..660), 11);
}

#[test]
fn a_list_that_nobody_asked_for_or_that_comes_late_or_twice_is_not_read() {
    let mut pex = pex(false);
    feed(&mut pex, Input::Up { peer: peer(1) }, at(0));
    let tell = Message::Tell([contact(5)].into());
    assert!(receive(&mut pex, 2, &tell, at(1)).is_empty(), "of a stranger");
    assert_eq!(receive(&mut pex, 1, &tell, at(1)).len(), 1);
    assert!(receive(&mut pex, 1, &tell, at(1)).is_empty(), "twice");
    assert_eq!(asks(&feed(&mut pex, Input::Timeout, at(60))), 1);
    assert!(receive(&mut pex, 1, &tell, at(91)).is_empty(), "late");
    assert_eq!(pex.len(), 1);
}

#[test]
fn only_what_no_correct_peer_sends_ends_the_connection() {
    for (bytes, fault) in [
        (alloc::vec![0xff; 10], PexFault::Garbled),
        (alloc::vec![0; MAX_PEX_MESSAGE + 1], PexFault::TooLong),
        (message::tests::forge(MAX_TELL + 1), PexFault::TooMany),
    ] {
        let mut pex = pex(false);
        feed(&mut pex, Input::Up { peer: peer(1) }, at(0));
        let outputs = feed(&mut pex, Input::Received { peer: peer(1), bytes: &bytes }, at(1));
        assert_eq!(outputs, [Output::Misbehaved { peer: peer(1), fault }]);
        assert!(pex.is_empty());
    }
}

#[test]
fn a_seed_answers_and_hangs_up() {
    let mut seed = pex(true);
    feed(&mut seed, Input::Up { peer: peer(1) }, at(0));
    assert_eq!(receive(&mut seed, 1, &Message::Ask, at(1)), [Output::Answer { peer: peer(1) }]);
    assert!(feed(&mut seed, Input::Timeout, at(3)).is_empty());
    assert_eq!(seed.poll_timeout(), Some((at(4), "seed hangs up")));
    assert_eq!(feed(&mut seed, Input::Timeout, at(4)), [Output::HangUp { peer: peer(1) }]);
    assert_eq!(seed.poll_timeout(), None);
}

#[test]
fn a_seed_asks_all_and_keeps_nobody_that_says_nothing() {
    let mut seed = pex(true);
    let mut asked = 0;
    for n in 1..=50 {
        asked += asks(&feed(&mut seed, Input::Up { peer: peer(n) }, at(0)));
    }
    assert_eq!(asked, 50);
    assert_eq!(feed(&mut seed, Input::Timeout, at(SEED_STAY.as_secs())).len(), 50);
}

#[test]
fn the_layout_on_the_wire_does_not_change() {
    assert_eq!(Message::Ask.to_bytes(), [0x12, 0]);
    let addrs = ["192.0.2.1:9".parse().unwrap()].into();
    let contact = Contact { addrs, ..Contact::new(peer(7)) };
    let own = Message::Own(contact.clone()).to_bytes();
    assert_eq!(own, [0x0a, 9, 0x0a, 7, 4, 192, 0, 2, 1, 0, 9]);
    let mut tell = alloc::vec![0x1a, 48, 0x0a, 46, 0x0a, 33, 1];
    tell.extend([7; 32]);
    tell.extend([0x12, 9, 0x0a, 7, 4, 192, 0, 2, 1, 0, 9]);
    assert_eq!(Message::Tell([contact].into()).to_bytes(), tell);
}

#[test]
fn the_fullest_list_fits_one_message() {
    let full = Message::Tell((0..MAX_TELL as u8).map(contact).collect());
    assert!(full.to_bytes().len() <= MAX_PEX_MESSAGE, "{}", full.to_bytes().len());
    assert_eq!(Message::from_bytes(&full.to_bytes(), peer(1)), Ok(Some(full)));
}

proptest! {
    #[test]
    fn no_bytes_panic_and_what_is_read_is_written_the_same(bytes: Vec<u8>) {
        if let Ok(Some(message)) = Message::from_bytes(&bytes, peer(1)) {
            prop_assert_eq!(Message::from_bytes(&message.to_bytes(), peer(1)), Ok(Some(message)));
        }
    }

    /// The machine never asks a peer twice a minute, and never holds more than it was told of.
    #[test]
    fn no_inputs_in_any_order_break_the_rules(steps in prop::collection::vec((0u8..6, 0u8..8, 0u64..90), 0..300)) {
        let mut pex = pex(steps.len() % 2 == 0);
        let (mut now, mut up) = (0, alloc::collections::BTreeSet::new());
        let mut asked: BTreeMap<u8, u64> = BTreeMap::new();
        for (what, n, wait) in steps {
            let outputs = match what {
                0 => { asked.remove(&n); up.insert(n); feed(&mut pex, Input::Up { peer: peer(n) }, at(now)) }
                1 => { up.remove(&n); feed(&mut pex, Input::Down { peer: peer(n) }, at(now)) }
                2 => receive(&mut pex, n, &Message::Ask, at(now)),
                3 => receive(&mut pex, n, &Message::Tell([contact(n)].into()), at(now)),
                4 => feed(&mut pex, Input::Hungry(wait % 2 == 0), at(now)),
                _ => { now += wait; feed(&mut pex, Input::Timeout, at(now)) }
            };
            for output in outputs {
                match output {
                    Output::Send { peer: to, .. } => {
                        let n = to.as_bytes()[0];
                        prop_assert!(up.contains(&n));
                        prop_assert!(asked.insert(n, now).is_none_or(|last| now - last >= 60));
                    }
                    Output::HangUp { peer } => { up.remove(&peer.as_bytes()[0]); }
                    Output::Answer { peer } | Output::Heard { peer, .. } => prop_assert!(up.contains(&peer.as_bytes()[0])),
                    Output::Misbehaved { .. } => prop_assert!(false, "nobody misbehaved"),
                }
            }
            prop_assert!(pex.len() <= up.len());
            prop_assert!(pex.poll_timeout().is_none_or(|(due, _)| due > at(now)), "no timer is left behind");
        }
    }
}
