use alloc::vec::Vec;
use core::net::Ipv4Addr;

use super::*;
use crate::{
    PeerAddr,
    book::{BookConfig, Group},
};

fn at(secs: u64) -> Instant {
    Instant::after_start(Duration::from_secs(secs))
}

fn peer(n: u32) -> PeerId {
    let mut key = [0; 32];
    key[..4].copy_from_slice(&n.to_be_bytes());
    PeerId::ed25519(key)
}

fn group(n: u32) -> Group {
    let [_, _, a, b] = n.to_be_bytes();
    Group::of(Ipv4Addr::new(40 + a, b, 0, 1).into())
}

fn addr(n: u32) -> PeerAddr {
    let [_, _, a, b] = n.to_be_bytes();
    PeerAddr::new(peer(n), [core::net::SocketAddr::from((Ipv4Addr::new(40 + a, b, 0, 1), 7))])
}

fn contact(n: u32) -> Contact {
    Contact::from(addr(n))
}

const OWN: u32 = 500;

struct Rig {
    switch: Switch,
    links: u64,
}

impl Rig {
    fn new(change: impl FnOnce(&mut SwitchConfig)) -> Self {
        let mut config = SwitchConfig::default();
        change(&mut config);
        config.check().unwrap();
        Rig::with(config, Book::new(BookConfig::default(), peer(OWN), [1; 32]))
    }

    fn with(config: SwitchConfig, book: Book) -> Self {
        Rig { switch: Switch::new(config, peer(OWN), book, &[2; 32], (UnixTime(1_000), at(0))), links: 0 }
    }

    fn feed(&mut self, input: Input, now: Instant) -> Vec<Output> {
        self.switch.handle_input(input, now);
        core::iter::from_fn(|| self.switch.poll_output()).collect()
    }

    fn knock(&mut self, n: u32, knock: u64, now: Instant) -> Vec<Output> {
        let input = Input::Knock { knock: KnockId(knock), peer: peer(n), instance: 1, from: group(n) };
        self.feed(input, now)
    }

    fn establish(&mut self, n: u32, by: By, instance: u64, now: Instant) -> (LinkId, Vec<Output>) {
        self.links += 1;
        let link = LinkId(self.links);
        (link, self.feed(Input::Established(Up { link, peer: peer(n), instance, by, group: group(n) }), now))
    }

    /// A stranger comes in, if it is let in.
    fn enter(&mut self, n: u32, now: Instant) -> Option<LinkId> {
        let knock = u64::from(n) + 1_000;
        if !self.knock(n, knock, now).contains(&Output::Admit { knock: KnockId(knock) }) {
            return None;
        }
        let (link, outputs) = self.establish(n, By::Knock(KnockId(knock)), 1, now);
        outputs.contains(&Output::Added { link }).then_some(link)
    }

    fn dials(outputs: &[Output]) -> Vec<(DialId, PeerId, Cause)> {
        let dial = |output: &Output| match output {
            Output::Dial { dial, contact, cause } => Some((*dial, contact.peer, *cause)),
            _ => None,
        };
        outputs.iter().filter_map(dial).collect()
    }

    fn begin(&mut self, n: u32, now: Instant) -> DialId {
        let outputs = self.feed(Input::Dial { contact: contact(n) }, now);
        Rig::dials(&outputs).first().expect("a dial").0
    }
}

#[test]
fn a_banned_peer_is_neither_let_in_nor_dialled_until_the_ban_ends() {
    let mut rig = Rig::new(|_| {});
    let link = rig.enter(1, at(0)).unwrap();
    let ban = Input::Ban { peer: peer(1), until: UnixTime(1_060), why: "spam".into() };
    let outputs = rig.feed(ban, at(0));
    let why = Close::Banned;
    assert_eq!(outputs, [Output::Close { link, why: why.clone() }, Output::Removed { link, why: Some(why.clone()) }]);
    assert_eq!(rig.knock(1, 7, at(59)), [Output::TurnAway { knock: KnockId(7), why }]);
    let outputs = rig.feed(Input::Dial { contact: contact(1) }, at(59));
    let until = UnixTime(1_060);
    assert_eq!(outputs, [Output::NotDialled { peer: peer(1), why: NotDialing::Banned { until } }]);
    assert!(rig.enter(1, at(60)).is_some());
}

#[test]
fn a_stranger_that_was_let_in_and_never_came_holds_back_no_dial_of_ours() {
    let mut rig = Rig::new(|_| {});
    let dial = rig.begin(1, at(0));
    assert_eq!(rig.knock(1, 7, at(0)), [Output::Admit { knock: KnockId(7) }]);
    rig.feed(Input::Timeout, Instant::START + HELD);
    assert_eq!(rig.feed(Input::Answered { dial }, Instant::START + HELD), [Output::GoOn { dial, goes_on: true }]);
}

#[test]
fn an_imported_ban_ends_the_link_and_the_dial_of_its_peer() {
    let mut other = Book::new(BookConfig::default(), peer(600), [1; 32]);
    (1..4).for_each(|n| other.add(contact(n), UnixTime(1_000)).unwrap());
    (1..3).for_each(|n| assert!(other.ban(peer(n), UnixTime::NEVER, "spam")));
    let mut rig = Rig::new(|_| {});
    let link = rig.enter(1, at(0)).unwrap();
    rig.begin(2, at(0));
    let here = Input::Ban { peer: peer(3), until: UnixTime(2_000), why: "here".into() };
    rig.feed(here, at(0));
    let mut rows: Vec<_> = other.exports().collect();
    rows.push(other.record(peer(1)).unwrap());
    let imported = rig.switch.import(rows, at(0));
    assert_eq!(imported, Imported { banned: 2, stay_banned: 2, ..Imported::default() });
    let (why, until) = (Close::Banned, UnixTime::NEVER);
    let expected = [
        Output::Close { link, why: why.clone() },
        Output::Removed { link, why: Some(why.clone()) },
        Output::NotDialled { peer: peer(2), why: NotDialing::Banned { until } },
    ];
    assert_eq!(rig.feed(Input::Timeout, at(0)), expected);
    assert_eq!(rig.knock(1, 7, at(1)), [Output::TurnAway { knock: KnockId(7), why }]);
    assert_eq!(rig.switch.import([other.record(peer(3)).unwrap()].into(), at(1_000)).known, 1, "its ban is over");
}

#[test]
fn a_peer_banned_while_its_dial_is_under_way_never_comes_up() {
    let mut rig = Rig::new(|_| {});
    let dial = rig.begin(1, at(0));
    rig.feed(Input::Ban { peer: peer(1), until: UnixTime::NEVER, why: "spam".into() }, at(0));
    assert_eq!(rig.feed(Input::Answered { dial }, at(1)), [Output::GoOn { dial, goes_on: false }]);
    let (link, outputs) = rig.establish(1, By::Dial(dial), 1, at(1));
    assert_eq!(outputs, [Output::Reject { link, why: Close::Banned }]);
}

#[test]
fn friends_and_persistent_peers_find_their_slots_under_attack() {
    let mut rig = Rig::new(|config| {
        config.unconditional = [peer(9_000)].into();
        config.persistent = [addr(9_001)].into();
    });
    let entered = (1_000..3_000).filter(|n| rig.enter(*n, at(0)).is_some()).count();
    assert_eq!(entered, rig.switch.config.max_inbound());
    assert_eq!(rig.switch.count(Class::Inbound), 448);
    assert!(rig.enter(9_000, at(1)).is_some() && rig.enter(9_001, at(1)).is_some());
    assert_eq!(rig.switch.count(Class::Reserved), 2);
}

#[test]
fn strangers_that_were_let_in_and_never_come_hold_their_slots_for_ten_seconds_only() {
    let mut rig = Rig::new(|config| (config.max_peers, config.reserved) = (5, 1));
    let admitted = |rig: &mut Rig, now| {
        (1..20).filter(|n| rig.knock(*n, u64::from(*n), now) == [Output::Admit { knock: KnockId((*n).into()) }]).count()
    };
    assert_eq!(admitted(&mut rig, at(0)), 4);
    assert_eq!(rig.switch.poll_timeout(), Some((at(10), "slot held for a stranger")));
    rig.feed(Input::Timeout, at(10));
    assert_eq!(admitted(&mut rig, at(10)), 4);
}

#[test]
fn one_prefix_takes_a_quarter_of_what_may_come_in() {
    let mut rig = Rig::new(|_| {});
    let from = group(1);
    let admitted = (1..1_000u32).filter(|n| {
        let input = Input::Knock { knock: KnockId((*n).into()), peer: peer(*n), instance: 1, from };
        rig.feed(input, at(0)) == [Output::Admit { knock: KnockId((*n).into()) }]
    });
    assert_eq!(admitted.count(), 112);
    assert!(rig.enter(2_000, at(0)).is_some());
}

#[test]
fn a_filter_that_does_not_answer_is_a_refusal_after_three_seconds() {
    let mut rig = Rig::new(|config| config.filtered = true);
    let knock = KnockId(1);
    assert_eq!(rig.knock(1, 1, at(0)), [Output::Ask { knock, peer: peer(1) }]);
    assert_eq!(rig.switch.poll_timeout(), Some((at(3), "filter")));
    let outputs = rig.feed(Input::Timeout, at(3));
    assert_eq!(outputs, [Output::TurnAway { knock, why: Close::FilterTimeout }]);
    assert!(rig.feed(Input::Filtered { knock, verdict: Ok(()) }, at(4)).is_empty(), "too late");
    rig.knock(1, 2, at(5));
    let verdict = Err("one a household".into());
    let outputs = rig.feed(Input::Filtered { knock: KnockId(2), verdict }, at(5));
    assert_eq!(outputs, [Output::TurnAway { knock: KnockId(2), why: Close::Filtered("one a household".into()) }]);
}

#[test]
fn a_slow_filter_holds_up_nobody_else() {
    let mut rig = Rig::new(|config| {
        config.filtered = true;
        config.unconditional = [peer(9)].into();
    });
    (1..5).for_each(|n| drop(rig.knock(n, n.into(), at(0))));
    let outputs = rig.feed(Input::Filtered { knock: KnockId(3), verdict: Ok(()) }, at(0));
    assert_eq!(outputs, [Output::Admit { knock: KnockId(3) }]);
    assert!(rig.enter(9, at(0)).is_some());
}

#[test]
fn of_two_simultaneous_dials_the_answered_one_of_the_smaller_id_stays() {
    for (other, goes_on) in [(OWN + 1, true), (OWN - 1, false)] {
        let mut rig = Rig::new(|_| {});
        let dial = rig.begin(other, at(0));
        assert_eq!(rig.feed(Input::Answered { dial }, at(0)), [Output::GoOn { dial, goes_on: true }]);
        let outputs = rig.knock(other, 1, at(0));
        let why = Close::Duplicate;
        let turned_away = outputs == [Output::TurnAway { knock: KnockId(1), why }];
        assert_eq!(turned_away, goes_on, "{outputs:?}");
    }
    let mut rig = Rig::new(|_| {});
    let dial = rig.begin(OWN + 1, at(0));
    assert_eq!(rig.knock(OWN + 1, 1, at(0)), [Output::Admit { knock: KnockId(1) }], "nobody has answered yet");
    assert_eq!(rig.feed(Input::Answered { dial }, at(0)), [Output::GoOn { dial, goes_on: false }]);
}

#[test]
fn a_newer_link_begins_after_the_older_one_is_removed() {
    let mut rig = Rig::new(|_| {});
    let old = rig.enter(1, at(0)).unwrap();
    rig.knock(1, 5, at(20));
    let (link, outputs) = rig.establish(1, By::Knock(KnockId(5)), 2, at(20));
    let why = Close::Restarted;
    let removed = Output::Removed { link: old, why: Some(why.clone()) };
    assert_eq!(outputs, [Output::Close { link: old, why }, removed, Output::Init { link }, Output::Added { link }]);
    assert!(rig.feed(Input::Ended { link: old }, at(21)).is_empty(), "the old one's end is old news");
    assert_eq!(rig.feed(Input::Ended { link }, at(21)), [Output::Removed { link, why: None }]);
}

#[test]
fn a_dial_that_fails_is_followed_by_one_to_what_those_who_joined_it_have_named() {
    let mut rig = Rig::new(|config| config.persistent = [addr(1)].into());
    let dead = Rig::dials(&rig.feed(Input::Timeout, at(0)))[0].0;
    let named = Contact { peer: peer(1), ..contact(2) };
    for joining in [contact(1), named.clone()] {
        assert!(rig.feed(Input::Dial { contact: joining }, at(1)).is_empty());
    }
    let outputs = rig.feed(Input::DialFailed { dial: dead, why: DialFailure::Unreached }, at(2));
    let [Output::Dial { dial: second, contact: then, cause: Cause::Asked }] = &outputs[..] else {
        panic!("{outputs:?}")
    };
    assert_eq!(*then, named);
    let outputs = rig.feed(Input::DialFailed { dial: *second, why: DialFailure::Unreached }, at(3));
    assert!(outputs.is_empty(), "{outputs:?}");
    // Whoever answered and would not have it is not asked at its other addresses.
    let dial = rig.begin(3, at(3));
    rig.feed(Input::Dial { contact: Contact { peer: peer(3), ..contact(4) } }, at(3));
    let outputs = rig.feed(Input::DialFailed { dial, why: DialFailure::Refused }, at(3));
    assert!(outputs.is_empty(), "{outputs:?}");
}

#[test]
fn whoever_is_dialled_by_its_id_alone_is_looked_for_where_it_is_known_to_be() {
    let mut rig = Rig::new(|config| config.persistent = [addr(1)].into());
    let dial = Rig::dials(&rig.feed(Input::Timeout, at(0)))[0].0;
    rig.feed(Input::DialFailed { dial, why: DialFailure::Unreached }, at(0));
    rig.switch.book_mut().add(contact(2), UnixTime(1_000)).unwrap();
    rig.feed(Input::Heard { from: group(9), contacts: [contact(3)].into() }, at(0));
    let relayed = Contact { relays: [addr(9)].into(), ..Contact::new(peer(4)) };
    rig.switch.book_mut().add(relayed.clone(), UnixTime(1_000)).unwrap();
    let mut last = None;
    for known in [contact(1), contact(2), contact(3), Contact::new(peer(5)), relayed] {
        let outputs = rig.feed(Input::Dial { contact: Contact::new(known.peer) }, at(0));
        let [Output::Dial { dial, contact: dialled, cause: Cause::Asked }] = &outputs[..] else {
            panic!("{outputs:?}")
        };
        assert_eq!(*dialled, known);
        last = Some(*dial);
    }
    // Where it was registered it may be no longer, and at one of this node's own relays instead.
    let why = DialFailure::Unreached;
    let outputs = rig.feed(Input::DialFailed { dial: last.unwrap(), why }, at(1));
    let [Output::Dial { dial, contact: dialled, .. }] = &outputs[..] else { panic!("{outputs:?}") };
    assert_eq!(*dialled, Contact::new(peer(4)));
    let outputs = rig.feed(Input::DialFailed { dial: *dial, why }, at(1));
    assert!(Rig::dials(&outputs).iter().all(|it| it.1 != peer(4)), "{outputs:?}");
}

#[test]
fn the_node_itself_is_never_dialled_nor_let_in() {
    let mut rig = Rig::new(|config| config.discover = true);
    let outputs = rig.feed(Input::Heard { from: group(1), contacts: [contact(OWN)].into() }, at(0));
    assert!(outputs.is_empty() && rig.switch.book().is_empty());
    let outputs = rig.feed(Input::Dial { contact: contact(OWN) }, at(0));
    assert_eq!(outputs, [Output::NotDialled { peer: peer(OWN), why: NotDialing::Itself }]);
    assert_eq!(rig.knock(OWN, 1, at(0)), [Output::TurnAway { knock: KnockId(1), why: Close::Itself }]);
    // Whoever names the node's own address as another's is not believed either.
    let own = addr(7).socket_addrs().collect();
    rig.feed(Input::Own(own), at(0));
    assert!(rig.feed(Input::Heard { from: group(1), contacts: [contact(7)].into() }, at(1)).is_empty());
}

#[test]
fn a_persistent_peer_is_dialled_for_ever_with_waits_of_five_minutes_at_most() {
    let mut rig = Rig::new(|config| {
        config.persistent = [PeerAddr { id: peer(1), addrs: ["home.example:7".parse().unwrap()].into() }].into();
    });
    let mut now = at(0);
    let (mut dialled, mut last, mut longest) = (0, at(0), Duration::ZERO);
    while now < at(7 * 86_400) {
        for output in rig.feed(Input::Timeout, now) {
            let Output::Dial { dial, contact, cause: Cause::Persistent } = output else { panic!("{output:?}") };
            assert_eq!(contact.addrs, ["home.example:7".parse().unwrap()], "the name is resolved anew each time");
            (dialled, longest, last) = (dialled + 1, longest.max(now.since(last)), now);
            assert!(rig.feed(Input::DialFailed { dial, why: DialFailure::Unreached }, now).is_empty());
        }
        now = rig.switch.poll_timeout().expect("it is never given up").0;
    }
    assert!(longest <= MAX_RECONNECT, "{longest:?}");
    assert!((2_000..3_000).contains(&dialled), "{dialled}");
}

#[test]
fn a_persistent_peer_that_leaves_is_dialled_within_a_second() {
    let mut rig = Rig::new(|config| config.persistent = [addr(1)].into());
    let dial = Rig::dials(&rig.feed(Input::Timeout, at(0)))[0].0;
    let (link, _) = rig.establish(1, By::Dial(dial), 1, at(1));
    assert_eq!(rig.switch.poll_timeout(), None);
    rig.feed(Input::Ended { link }, at(100));
    assert_eq!(Rig::dials(&rig.feed(Input::Timeout, at(101))).len(), 1);
    assert_eq!(rig.switch.why_not_dialing(peer(1), at(101)), NotDialing::UnderWay(Cause::Persistent));
}

/// A book of many peers in many groups, all of which answer.
fn discovering(peers: u32, groups: u32) -> Rig {
    let mut config = SwitchConfig { discover: true, ..SwitchConfig::default() };
    config.seeds = [addr(45_000)].into();
    let mut book = Book::new(BookConfig::default(), peer(OWN), [1; 32]);
    for n in 1_000..1_000 + peers {
        let contact = Contact { peer: peer(n), ..contact(n % groups) };
        let _ = book.insert(&contact, contact.group().unwrap(), UnixTime(1_000)); // some find their bucket full
    }
    Rig::with(config, book)
}

#[test]
fn the_book_fills_its_share_of_the_slots_with_one_peer_a_group() {
    let mut rig = discovering(2_000, 100);
    let mut groups = alloc::collections::BTreeSet::new();
    for second in 0..60 {
        let begun = Rig::dials(&rig.feed(Input::Timeout, at(second)));
        assert!(begun.len() <= CHOICES_AT_ONCE);
        for (dial, peer, cause) in begun {
            assert_eq!(cause, Cause::Chosen);
            let group = rig.switch.book().contact(peer).unwrap().group().unwrap();
            rig.links += 1;
            let up = Up { link: LinkId(rig.links), peer, instance: 1, by: By::Dial(dial), group };
            assert!(rig.feed(Input::Established(up), at(second)).contains(&Output::Added { link: up.link }));
            assert!(groups.insert(group));
        }
    }
    assert_eq!(rig.switch.count(Class::Chosen), 32);
    assert_eq!(rig.switch.book().anchors().len(), MAX_ANCHORS);
    // Full: now and then somebody is dialled to see whether it is there, and let go.
    let begun = Rig::dials(&rig.feed(Input::Timeout, at(180)));
    let [(dial, felt, Cause::Feeler)] = begun[..] else { panic!("{begun:?}") };
    rig.links += 1;
    let link = LinkId(rig.links);
    let up = Up { link, peer: felt, instance: 1, by: By::Dial(dial), group: group(9) };
    assert_eq!(rig.feed(Input::Established(up), at(181)), [Output::Reject { link, why: Close::Felt }]);
    assert!(rig.switch.book().is_proven(felt));
}

#[test]
fn peers_that_do_not_answer_hold_up_no_other_dial_of_a_seed_that_looks_round() {
    let mut rig = discovering(2_000, 100);
    rig.switch.config.seed = true;
    let begun = Rig::dials(&rig.feed(Input::Timeout, at(0)));
    assert_eq!(begun.len(), CHOICES_AT_ONCE);
    // One comes to nothing: the next is begun though the others still wait.
    let failed = Input::DialFailed { dial: begun[0].0, why: DialFailure::Unreached };
    assert_eq!(Rig::dials(&rig.feed(failed, at(1))).len(), 1);
}

#[test]
fn a_peer_that_is_reached_in_a_group_that_is_full_is_not_kept() {
    let mut rig = discovering(2, 2);
    let mut begun = Rig::dials(&rig.feed(Input::Timeout, at(0)));
    begun.retain(|(.., cause)| *cause == Cause::Chosen);
    assert_eq!(begun.len(), 2);
    let mut establish = |(dial, peer, _): (DialId, PeerId, Cause)| {
        rig.links += 1;
        let up = Up { link: LinkId(rig.links), peer, instance: 1, by: By::Dial(dial), group: group(77) };
        rig.feed(Input::Established(up), at(1))
    };
    assert!(establish(begun[0]).iter().any(|it| matches!(it, Output::Added { .. })));
    assert!(establish(begun[1]).iter().any(|it| matches!(it, Output::Reject { why: Close::Full, .. })));
}

#[test]
fn anchors_are_dialled_first_and_a_seed_when_nobody_else_is_known() {
    let mut rig = discovering(2_000, 100);
    let wall = UnixTime(1_000);
    rig.switch.book_mut().good(contact(40_000), group(40_000), wall);
    rig.switch.book_mut().set_anchors([peer(40_000)].into());
    let book = core::mem::replace(rig.switch.book_mut(), Book::new(BookConfig::default(), peer(OWN), [1; 32]));
    let mut again = Rig::with(rig.switch.config.clone(), book);
    assert_eq!(Rig::dials(&again.feed(Input::Timeout, at(0)))[0].1, peer(40_000));
    let begun = Rig::dials(&rig.feed(Input::Timeout, at(0)));
    assert!(matches!(begun[..], [(_, seed, Cause::Seed)] if seed == peer(45_000)));
}

#[test]
fn whom_no_choice_falls_on_is_told_for_the_reason_that_it_has() {
    for seed in [false, true] {
        let mut rig = Rig::new(|config| {
            (config.discover, config.seed) = (true, seed);
            config.unconditional = [peer(1)].into();
        });
        let heard = Input::Heard { from: group(9), contacts: [contact(1), contact(2)].into() };
        let begun = Rig::dials(&rig.feed(heard, at(0)));
        let [(dial, felt, Cause::Chosen)] = begun[..] else { panic!("{begun:?}") };
        assert_eq!(felt, peer(2));
        assert_eq!(rig.switch.why_not_dialing(peer(1), at(0)), NotDialing::Unconditional);
        let (link, _) = rig.establish(2, By::Dial(dial), 1, at(1));
        rig.feed(Input::Disconnect { peer: peer(2) }, at(31)); // it counts as tried, and rests for half a minute
        assert!(rig.switch.link(peer(2)) != Some(link));
        let at_rest = NotDialing::Resting { until: UnixTime(1_061) };
        assert_eq!(rig.switch.why_not_dialing(peer(2), at(60)), at_rest);
        let recent = NotDialing::Recent { until: UnixTime(1_151) };
        let expected = if seed { recent } else { NotDialing::NotChosen };
        assert_eq!(rig.switch.why_not_dialing(peer(2), at(61)), expected);
        let chosen = Rig::dials(&rig.feed(Input::Timeout, at(61))).iter().any(|it| it.1 == peer(2));
        assert_eq!(chosen, !seed, "and so it is");
    }
}

#[test]
fn nobody_is_dialled_out_of_the_book_unless_discovery_is_on() {
    let mut rig = Rig::new(|_| {});
    rig.feed(Input::Heard { from: group(1), contacts: (1..50).map(contact).collect() }, at(0));
    assert!(rig.feed(Input::Timeout, at(1_000)).is_empty());
    assert_eq!(rig.switch.poll_timeout(), None);
    assert_eq!(rig.switch.why_not_dialing(peer(1), at(0)), NotDialing::NoDiscovery);
    assert_eq!(rig.switch.why_not_dialing(peer(70), at(0)), NotDialing::Unknown);
}

#[test]
fn a_stop_removes_every_link_and_begins_nothing_more() {
    let mut rig = Rig::new(|config| config.persistent = [addr(400)].into());
    let links: Vec<_> = (1..4).filter_map(|n| rig.enter(n, at(0))).collect();
    rig.knock(9, 9, at(0));
    let outputs = rig.feed(Input::Stop, at(1));
    for link in links {
        let closed = outputs.iter().position(|it| *it == Output::Close { link, why: Close::Stopped }).unwrap();
        let removed = outputs.iter().position(|it| *it == Output::Removed { link, why: Some(Close::Stopped) }).unwrap();
        assert!(closed < removed);
    }
    assert!(outputs.contains(&Output::TurnAway { knock: KnockId(9), why: Close::Stopped }));
    assert_eq!(rig.switch.poll_timeout(), None);
    assert!(rig.feed(Input::Timeout, at(1_000)).is_empty());
    assert_eq!(rig.knock(5, 10, at(2)), [Output::TurnAway { knock: KnockId(10), why: Close::Stopped }]);
}

#[test]
fn limits_that_contradict_each_other_are_told() {
    let check = |change: fn(&mut SwitchConfig)| {
        let mut config = SwitchConfig::default();
        change(&mut config);
        config.check()
    };
    assert_eq!(check(|_| {}), Ok(()));
    assert!(check(|config| config.reserved = 512).is_err());
    assert!(check(|config| config.unconditional = (0..65).map(peer).collect()).is_err());
    assert!(check(|config| config.dial_ratio = 0).is_err());
}

#[test]
fn nodes_that_a_seed_had_no_place_for_come_back_each_at_its_own_moment() {
    let mut config = SwitchConfig { discover: true, ..SwitchConfig::default() };
    config.seeds = [addr(45_000)].into();
    let mut moments = Vec::new();
    for seed in 0..16 {
        let book = Book::new(BookConfig::default(), peer(OWN), [1; 32]);
        let switch = Switch::new(config.clone(), peer(OWN), book, &[seed; 32], (UnixTime(1_000), at(0)));
        let mut rig = Rig { switch, links: 0 };
        let first = Rig::dials(&rig.feed(Input::Timeout, at(0)))[0].0;
        rig.feed(Input::DialFailed { dial: first, why: DialFailure::Refused }, at(1));
        let asks = |second: &u64| !Rig::dials(&rig.feed(Input::Timeout, at(*second))).is_empty();
        moments.push((2..200).find(asks).unwrap());
    }
    assert!(moments.iter().all(|second| (30..=100).contains(second)), "{moments:?}");
    moments.sort();
    moments.dedup();
    assert!(moments.len() >= 6, "{moments:?}");
}

#[test]
fn whoever_comes_or_is_asked_for_shares_the_slots_that_are_not_reserved() {
    let mut rig = Rig::new(|config| {
        (config.max_peers, config.reserved) = (6, 2);
        config.unconditional = [peer(90), peer(91)].into();
    });
    assert!(rig.enter(1, at(0)).is_some() && rig.enter(2, at(0)).is_some());
    let dial = rig.begin(3, at(0));
    rig.establish(3, By::Dial(dial), 1, at(0));
    let under_way = rig.begin(4, at(0));
    let full = |n| Output::NotDialled { peer: peer(n), why: NotDialing::Full };
    assert_eq!(rig.feed(Input::Dial { contact: contact(5) }, at(0)), [full(5)], "a dial holds a slot");
    assert_eq!(rig.knock(6, 6, at(0)), [Output::TurnAway { knock: KnockId(6), why: Close::Full }]);
    assert!(rig.enter(90, at(0)).is_some(), "friends have slots of their own");
    let dial = rig.begin(91, at(0));
    assert!(rig.establish(91, By::Dial(dial), 1, at(0)).1.iter().any(|it| matches!(it, Output::Added { .. })));
    rig.feed(Input::DialFailed { dial: under_way, why: DialFailure::Unreached }, at(1));
    assert!(rig.enter(6, at(1)).is_some());
    assert_eq!(rig.feed(Input::Dial { contact: contact(5) }, at(1)), [full(5)], "and friends leave none to others");
}

/// The link that comes of a dial out of the book, if one is among the outputs.
fn chosen(rig: &mut Rig, outputs: &[Output], now: Instant) -> Option<LinkId> {
    let (dial, peer, _) = Rig::dials(outputs).into_iter().find(|(.., cause)| *cause == Cause::Chosen)?;
    rig.links += 1;
    let link = LinkId(rig.links);
    rig.feed(Input::Established(Up { link, peer, instance: 1, by: By::Dial(dial), group: group(1) }), now);
    Some(link)
}

#[test]
fn a_peer_out_of_the_book_that_hangs_up_at_once_is_left_alone_for_half_a_minute() {
    let mut rig = discovering(1, 1);
    let wait = |rig: &mut Rig, from: u64| {
        (from..from + 100).find_map(|second| {
            let outputs = rig.feed(Input::Timeout, at(second));
            chosen(rig, &outputs, at(second)).map(|link| (second, link))
        })
    };
    let (_, link) = wait(&mut rig, 0).expect("the one peer is dialled");
    let outputs = rig.feed(Input::Ended { link }, at(1));
    assert!(chosen(&mut rig, &outputs, at(1)).is_none(), "{outputs:?}");
    let (second, link) = wait(&mut rig, 1).expect("it is tried again");
    assert!((31..40).contains(&second), "{second}");
    // One that stayed and was lost is had back at once; one that the program sent away is not.
    let outputs = rig.feed(Input::Ended { link }, at(second + 60));
    assert!(chosen(&mut rig, &outputs, at(second + 60)).is_some(), "{outputs:?}");
    let outputs = rig.feed(Input::Disconnect { peer: peer(1_000) }, at(200));
    assert!(chosen(&mut rig, &outputs, at(200)).is_none(), "{outputs:?}");
    assert!(wait(&mut rig, 200).is_some_and(|(second, _)| second >= 230));
}

#[test]
fn a_persistent_peer_that_hangs_up_each_time_is_dialled_ever_more_rarely() {
    let mut rig = Rig::new(|config| config.persistent = [addr(1)].into());
    let mut now = at(0);
    let mut waits = Vec::new();
    for _ in 0..12 {
        let dial = Rig::dials(&rig.feed(Input::Timeout, now))[0].0;
        let (link, _) = rig.establish(1, By::Dial(dial), 1, now);
        rig.feed(Input::Ended { link }, now);
        let next = rig.switch.poll_timeout().expect("it is never given up").0;
        waits.push(next.since(now));
        now = next;
    }
    assert!(waits[0] <= RECONNECT && waits[11] >= MAX_RECONNECT * 3 / 4, "{waits:?}");
    let dial = Rig::dials(&rig.feed(Input::Timeout, now))[0].0;
    let (link, _) = rig.establish(1, By::Dial(dial), 1, now);
    let later = now + STEADY;
    rig.feed(Input::Ended { link }, later);
    assert!(rig.switch.poll_timeout().unwrap().0.since(later) <= RECONNECT, "one that stayed is had back at once");
}

#[test]
fn an_address_where_another_key_answers_is_dialled_once_an_hour_however_often_it_is_named() {
    let mut rig = Rig::new(|config| config.discover = true);
    let named = || Input::Heard { from: group(9), contacts: [contact(1)].into() };
    let mut dialled = Rig::dials(&rig.feed(named(), at(0)));
    let mut all = 0;
    for second in 1..3_600 {
        if let Some((dial, ..)) = dialled.pop() {
            all += 1;
            rig.feed(Input::DialFailed { dial, why: DialFailure::OtherKey }, at(second));
        }
        dialled = Rig::dials(&rig.feed(named(), at(second)));
    }
    assert_eq!(all, 1);
    assert!(matches!(rig.switch.why_not_dialing(peer(1), at(3_599)), NotDialing::Resting { .. }));
}

#[test]
fn a_dial_goes_on_if_the_stranger_for_which_it_gave_way_never_comes() {
    let mut rig = Rig::new(|_| {});
    let dial = rig.begin(OWN + 1, at(0));
    assert_eq!(rig.knock(OWN + 1, 1, at(0)), [Output::Admit { knock: KnockId(1) }]);
    rig.feed(Input::KnockOver { knock: KnockId(1) }, at(1));
    assert_eq!(rig.feed(Input::Answered { dial }, at(1)), [Output::GoOn { dial, goes_on: true }]);
}

#[test]
fn a_link_counts_in_the_group_of_the_address_that_it_goes_by_now() {
    let mut rig = Rig::new(|config| (config.max_peers, config.reserved, config.inbound_per_group) = (9, 1, 25));
    let relay = group(77);
    let knock = |rig: &mut Rig, n: u32| {
        let knock = KnockId(n.into());
        rig.feed(Input::Knock { knock, peer: peer(n), instance: 1, from: relay }, at(0)) == [Output::Admit { knock }]
    };
    for n in [1, 2] {
        assert!(knock(&mut rig, n));
        rig.links += 1;
        let up =
            Up { link: LinkId(rig.links), peer: peer(n), instance: 1, by: By::Knock(KnockId(n.into())), group: relay };
        rig.feed(Input::Established(up), at(0));
    }
    assert!(!knock(&mut rig, 3), "two of eight come by one relay");
    rig.feed(Input::Moved { link: LinkId(1), group: group(1) }, at(0));
    assert!(knock(&mut rig, 4), "one of them is reached directly by now");
    assert!(!knock(&mut rig, 5));
}
