//! Two NAT agents behind two NATs, under fake time, and a watch over each.
//!
//! Each host has an access link, of 25 ms unless the conditions say otherwise, that loses packets in each direction on the inside of
//! its NAT, the hardest place: a lost opener opens nothing. The peer's report arrives 200 ms after the dial, over a relay whose path
//! takes 50 ms one way.
#![allow(dead_code)] // each user takes a part of it

mod chaos;
mod nat;
mod watch;
mod world;

use std::time::Duration;

use byway_proto::nat::{Filtering, Mapping, Ports};

use self::{
    chaos::Chaos,
    nat::{meet_without_guessing, never_meet},
    watch::Watch,
    world::{DIAL, MET, World, at},
};
pub(crate) use self::{
    nat::NatKind,
    world::{Conditions, Ran},
};

/// How long two hosts that need no guess may take, from when each knows of the other, in milliseconds.
const GATE: u64 = 2_000;

/// For how long a dial is looked at, in milliseconds: a hard punch, and what follows it.
const END: u64 = 12_000;

/// The same where trouble is without bounds.
const WILD_END: u64 = 900_000;

/// Two hosts that dial at once, for so many milliseconds, and nothing else.
pub(crate) fn punch(kinds: [NatKind; 2], seed: u64, end: u64) -> Ran {
    let mut world = World::new(kinds, Conditions::default(), seed, Chaos::new(&[], false));
    world.dial(end);
    let ran = world.ran();
    ran.counters.iter().for_each(Watch::check_counters);
    ran
}

/// A dial between two NATs, and trouble of every kind, as the bytes say.
///
/// # Panics
///
/// Panics where an agent does what it must not, or two that can meet do not in time.
pub(crate) fn run(bytes: &[u8]) {
    let mut header = Chaos::new(bytes, false);
    let kinds = [kind(&mut header), kind(&mut header)];
    let conditions = Conditions {
        loss: [0, 10, 10, 50][usize::from(header.byte() % 4)],
        // with one more lost, all pings of the gate's time could be
        most_lost: 3,
        delay: Duration::from_millis(1 + u64::from(header.byte() % 75)),
        jitter: u64::from(header.byte()) * 2,
        refused: [0, 0, 0, 13][usize::from(header.byte() % 4)],
    };
    let is_wild = header.byte() >= 0xa0;
    let seed = u64::from_le_bytes([0; 8].map(|_: u8| header.byte()));
    let rest = header.rest();
    let mut world = World::new(kinds, conditions, seed, Chaos::new(rest, is_wild));
    let end = if is_wild { WILD_END } else { END };
    world.dial(end);
    let ran = world.ran();
    ran.counters.iter().for_each(Watch::check_counters);
    if world.chaos.is_bearable() && meet_without_guessing(kinds) {
        let gate = Duration::from_millis(MET - DIAL + GATE);
        assert!(ran.direct.is_some_and(|it| it <= gate), "{kinds:?} {conditions:?}: direct {:?}", ran.direct);
    }
    if rest.is_empty() && never_meet(kinds) {
        assert!(ran.counters.iter().all(|it| it.probes == 0), "{kinds:?}: guesses that cannot help");
    }
    world.forget_all(at(DIAL + end));
}

fn kind(header: &mut Chaos<'_>) -> NatKind {
    const MAPPINGS: [Mapping; 3] =
        [Mapping::EndpointIndependent, Mapping::AddressDependent, Mapping::AddressAndPortDependent];
    const FILTERINGS: [Filtering; 3] =
        [Filtering::EndpointIndependent, Filtering::AddressDependent, Filtering::AddressAndPortDependent];
    const PORTS: [Ports; 4] =
        [Ports::Preserving, Ports::Random, Ports::Sequential { step: 1 }, Ports::Sequential { step: -3 }];
    let mut draw = |count: usize| usize::from(header.byte()) % count;
    NatKind { mapping: MAPPINGS[draw(3)], filtering: FILTERINGS[draw(3)], ports: PORTS[draw(4)] }
}
