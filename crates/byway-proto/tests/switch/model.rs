//! The switch against what it owes, whatever happens: bytes in, promises held.
//!
//! The model plays the shell: it carries out what the machine says, knows each link's stage, and counts for itself.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    time::Duration,
};

use byway_proto::{
    Instant, PeerAddr, PeerId, UnixTime,
    book::{Ban, Book, BookConfig, ClaimRecord, Contact, Group, Record},
    gate::HANDSHAKE_TOTAL,
    switch::{By, Class, Close, DialFailure, DialId, Input, KnockId, LinkId, Output, Switch, SwitchConfig, Up},
};

const PERSISTENT: u8 = 1;
const FRIEND: u8 = 2;
const OWN: u8 = 100;

/// Turns without progress after which the machine would keep its driver busy for nothing.
const MAX_TURNS: usize = 16;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Offered,
    Init,
    Added,
}

struct Model {
    switch: Switch,
    config: SwitchConfig,
    now: Instant,
    named: u64,
    dials: Vec<(DialId, PeerId)>,
    answered: Vec<(DialId, PeerId)>,
    asked: Vec<(KnockId, PeerId)>,
    admitted: Vec<(KnockId, PeerId, Instant)>,
    knocking: BTreeMap<KnockId, PeerId>,
    links: BTreeMap<LinkId, (PeerId, Stage)>,
    bans: BTreeMap<PeerId, UnixTime>,
    added: BTreeSet<LinkId>,
    removed: BTreeSet<LinkId>,
    stopped: bool,
}

/// Does to a switch what the bytes say.
///
/// # Panics
///
/// Panics where the switch does what it must not.
pub(crate) fn run(bytes: &[u8]) {
    let mut config = SwitchConfig::default();
    (config.max_peers, config.reserved, config.dial_ratio, config.inbound_per_group) = (12, 3, 3, 50);
    (config.discover, config.filtered) = (true, bytes.first().is_some_and(|byte| byte.is_multiple_of(2)));
    config.persistent = vec![PeerAddr::new(peer(PERSISTENT), [addr(PERSISTENT)])];
    config.unconditional = [peer(FRIEND)].into();
    config.check().expect("the limits fit each other");
    let book = Book::new(BookConfig::default(), peer(OWN), [1; 32]);
    let switch = Switch::new(config.clone(), peer(OWN), book, &[2; 32], (UnixTime(1_000_000), Instant::START));
    let mut model = Model {
        switch,
        config,
        now: Instant::START,
        named: 0,
        dials: Vec::new(),
        answered: Vec::new(),
        asked: Vec::new(),
        admitted: Vec::new(),
        knocking: BTreeMap::new(),
        links: BTreeMap::new(),
        bans: BTreeMap::new(),
        added: BTreeSet::new(),
        removed: BTreeSet::new(),
        stopped: false,
    };
    for step in bytes.chunks_exact(3) {
        let [what, n, a] = *step else { return };
        model.step(what, n, a);
        model.check();
    }
    model.stopped = true;
    model.feed(Input::Stop);
    assert!(model.links.values().all(|(_, stage)| *stage == Stage::Offered));
    assert_eq!(model.added, model.removed, "every link that was added is removed, once");
    assert_eq!(model.switch.poll_timeout(), None);
}

impl Model {
    fn step(&mut self, what: u8, n: u8, a: u8) {
        match what % 15 {
            0 => self.feed(Input::Dial { contact: contact(n % 110) }),
            1 if !self.dials.is_empty() => {
                let (dial, peer) = self.dials.swap_remove(usize::from(n) % self.dials.len());
                self.answered.push((dial, peer));
                self.feed(Input::Answered { dial });
            }
            2 => self.fail(n, a),
            3 if !self.answered.is_empty() => {
                let (dial, peer) = self.answered.swap_remove(usize::from(n) % self.answered.len());
                self.establish(peer, By::Dial(dial), a);
            }
            4 | 5 => self.knock(n % 110, a),
            6 if !self.asked.is_empty() => {
                let (knock, _) = self.asked.swap_remove(usize::from(n) % self.asked.len());
                let verdict = if a.is_multiple_of(4) { Err("no".into()) } else { Ok(()) };
                self.feed(Input::Filtered { knock, verdict });
            }
            7 | 8 if !self.admitted.is_empty() => {
                let (knock, peer, _) = self.admitted.swap_remove(usize::from(n) % self.admitted.len());
                self.knocking.remove(&knock);
                self.establish(peer, By::Knock(knock), a);
            }
            9 if !self.links.is_empty() => {
                let link = *self.links.keys().nth(usize::from(n) % self.links.len()).expect("below the length");
                if self.links.get(&link).is_some_and(|(_, stage)| *stage == Stage::Added) {
                    self.feed(Input::Ended { link });
                }
            }
            10 => {
                let (peer, until) = (peer(n % 110), self.switch.unix(self.now) + Duration::from_secs(u64::from(a)));
                if peer != self::peer(OWN) {
                    self.bans.remove(&peer); // the later word holds, even if it is over at once
                    self.bans.extend((a > 0).then_some((peer, until)));
                }
                self.feed(Input::Ban { peer, until, why: "model".into() });
            }
            11 => {
                self.bans.remove(&peer(n % 110));
                self.feed(Input::Unban { peer: peer(n % 110) });
            }
            12 => self.feed(Input::Heard { from: group(a), contacts: (0..n % 8).map(|it| contact(it * 13)).collect() }),
            13 => self.import(n % 110, a),
            _ => self.wait(Duration::from_millis(u64::from(n) * u64::from(a))),
        }
    }

    /// Takes over a row that another node might export.
    fn import(&mut self, n: u8, a: u8) {
        let (peer, now) = (peer(n), self.switch.unix(self.now));
        let until = now + Duration::from_secs(u64::from(a / 2));
        let record = Record {
            peer,
            proven: None,
            claims: vec![ClaimRecord { source: group(a), contact: contact(n) }],
            attempts: 0,
            tried: None,
            good: None,
            added: now,
            ban: a.is_multiple_of(2).then(|| Ban { until, why: "elsewhere".into(), contact: None }),
        };
        let theirs = record.ban.as_ref().map(|ban| ban.until).filter(|until| now < *until);
        let expected = self.bans.get(&peer).copied().max(theirs);
        if peer != self::peer(OWN) {
            self.bans.extend(expected.map(|until| (peer, until)));
        }
        self.switch.import(vec![record], self.now);
        self.feed(Input::Timeout); // what it says is carried out
    }

    fn fail(&mut self, n: u8, a: u8) {
        let why = [DialFailure::Unreached, DialFailure::OtherKey, DialFailure::Refused][usize::from(a) % 3];
        let dials = if a.is_multiple_of(2) { &mut self.dials } else { &mut self.answered };
        if !dials.is_empty() {
            let (dial, _) = dials.swap_remove(usize::from(n) % dials.len());
            self.feed(Input::DialFailed { dial, why });
        }
    }

    fn knock(&mut self, n: u8, a: u8) {
        self.named += 1;
        let knock = KnockId(self.named);
        self.knocking.insert(knock, peer(n));
        self.feed(Input::Knock { knock, peer: peer(n), instance: u64::from(a % 2), from: group(n) });
        let is_free = !self.bans.contains_key(&peer(n)) && self.switch.class(peer(n)).is_none();
        if n == FRIEND && is_free && !self.answered.iter().any(|it| it.1 == peer(n)) {
            assert!(self.admitted.iter().any(|it| it.0 == knock), "a friend is let in whoever else is there");
        }
    }

    fn establish(&mut self, peer: PeerId, by: By, a: u8) {
        self.named += 1;
        let link = LinkId(self.named);
        self.links.insert(link, (peer, Stage::Offered));
        let group = group(if a.is_multiple_of(5) { a } else { peer.as_bytes()[0] });
        self.feed(Input::Established(Up { link, peer, instance: u64::from(a % 2), by, group }));
        let stage = self.links.get(&link).map(|it| it.1);
        assert_ne!(stage, Some(Stage::Offered), "a link is taken in or rejected at once");
        if peer == self::peer(FRIEND) && !self.bans.contains_key(&peer) {
            assert_eq!(stage, Some(Stage::Added));
        }
    }

    /// Lets time pass, and gives the machine its turns.
    fn wait(&mut self, wait: Duration) {
        let until = self.now + wait;
        let mut turns = 0;
        while let Some((due, _)) = self.switch.poll_timeout().filter(|(due, _)| *due <= until) {
            turns = if due > self.now { 0 } else { turns + 1 };
            assert!(turns < MAX_TURNS, "the machine asks for the same turn again and again");
            self.now = self.now.max(due);
            self.expire();
            self.feed(Input::Timeout);
        }
        self.now = until;
        self.expire();
        self.feed(Input::Timeout);
    }

    /// What ends by itself.
    fn expire(&mut self) {
        let (now, wall) = (self.now, self.switch.unix(self.now));
        self.bans.retain(|_, until| wall < *until);
        self.admitted.retain(|it| now.since(it.2) < HANDSHAKE_TOTAL);
    }

    fn feed(&mut self, input: Input) {
        self.switch.handle_input(input, self.now);
        while let Some(output) = self.switch.poll_output() {
            self.carry_out(output);
        }
    }

    fn carry_out(&mut self, output: Output) {
        match output {
            Output::Dial { dial, contact, .. } => {
                assert!(!self.bans.contains_key(&contact.peer) && contact.peer != peer(OWN) && !self.stopped);
                self.dials.push((dial, contact.peer));
            }
            Output::GoOn { dial, goes_on: false } => self.answered.retain(|it| it.0 != dial),
            Output::Ask { knock, peer } => self.asked.push((knock, peer)),
            Output::Admit { knock } => {
                let peer = self.knocking[&knock];
                assert!(!self.bans.contains_key(&peer));
                self.asked.retain(|it| it.0 != knock);
                self.admitted.push((knock, peer, self.now));
            }
            Output::TurnAway { knock, .. } => {
                assert!(self.knocking.remove(&knock).is_some(), "turned away once");
                self.asked.retain(|it| it.0 != knock);
                self.admitted.retain(|it| it.0 != knock);
            }
            Output::Init { link } => {
                let peer = self.links[&link].0;
                let others = self.links.values().filter(|it| it.0 == peer && it.1 != Stage::Offered).count();
                assert_eq!(others, 0, "one link a peer, and none before the last is removed");
                self.stage(link, Stage::Offered, Stage::Init);
            }
            Output::Added { link } => {
                self.stage(link, Stage::Init, Stage::Added);
                assert!(self.added.insert(link));
            }
            Output::Close { link, .. } => assert_eq!(self.links[&link].1, Stage::Added),
            Output::Reject { link, .. } => assert_eq!(self.links.remove(&link).map(|it| it.1), Some(Stage::Offered)),
            Output::Removed { link, why } => {
                assert_eq!(self.links.remove(&link).map(|it| it.1), Some(Stage::Added), "removed last");
                assert!(self.removed.insert(link), "removed once");
                assert!(why != Some(Close::Stopped) || self.stopped);
            }
            _ => {}
        }
    }

    fn stage(&mut self, link: LinkId, from: Stage, to: Stage) {
        let known = self.links.get_mut(&link).expect("a link that was offered");
        assert_eq!(std::mem::replace(&mut known.1, to), from);
    }

    fn check(&self) {
        let count = |class| self.switch.count(class);
        let general = count(Class::Asked) + count(Class::Chosen) + count(Class::Inbound);
        assert!(general <= self.config.max_peers - self.config.reserved);
        assert!(count(Class::Chosen) <= self.config.max_chosen());
        assert!(count(Class::Inbound) <= self.config.max_inbound());
        assert!(general + count(Class::Reserved) <= self.config.max_peers);
        for (peer, stage) in self.links.values() {
            assert!(*stage == Stage::Offered || !self.bans.contains_key(peer), "a banned peer is up");
        }
        let up = self.links.values().filter(|it| it.1 == Stage::Added).count();
        assert_eq!(up, general + count(Class::Reserved), "nobody is counted who is not there");
    }
}

fn peer(n: u8) -> PeerId {
    PeerId::ed25519([n; 32])
}

/// Few groups, so that they meet.
fn group(n: u8) -> Group {
    Group::of(Ipv4Addr::new(40, n % 7, 0, 1).into())
}

fn addr(n: u8) -> std::net::SocketAddr {
    (Ipv4Addr::new(40, n % 7, n, 1), 7).into()
}

fn contact(n: u8) -> Contact {
    Contact::from(PeerAddr::new(peer(n), [addr(n)]))
}
