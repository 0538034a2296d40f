//! A dial between two hosts of the lab, and the proof of the path that its bytes take.

use std::time::{Duration, Instant};

use crate::{
    Stop,
    lab::{
        Lab, Outcome,
        node::{self, Node},
        process::{self, Service},
        traffic,
    },
};

/// How long after the first connection a pair may take to become direct where no guessing is needed.
const DIRECT_LIMIT: Duration = Duration::from_secs(4);
/// How long a pair that must stay on the relay is watched.
const RELAY_WATCH: Duration = Duration::from_secs(1);
/// How long a dial may take where UDP is blocked.
pub(crate) const TLS_LIMIT: Duration = Duration::from_secs(3);
/// How long after the first connection a guess may take: the traversal's gates ask for 5 s, and two processors run all hosts.
const LUCK_LIMIT: Duration = Duration::from_secs(6);
/// What crosses each way to prove a path, in messages of 1 KiB.
const MESSAGES: u64 = 256;

/// What must become of a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Expected {
    /// A direct path, for no port must be guessed.
    Direct,
    /// A direct path by guessing ports, in one of so many dials: a dial can miss by chance.
    Luck(u32),
    /// A direct path or the relay, as the packets' order has it.
    Either,
    /// The relay.
    Relay,
    /// The relay over TLS.
    Tls,
}

/// Two nodes that are connected, one of them serving the echo.
#[derive(Debug)]
pub(crate) struct Pair {
    /// The node that dialled, and has a port to the echo.
    pub(crate) reaching: Node,
    serving: Node,
    /// The path of the first connection, and how long it took.
    first: (String, Duration),
    dialled: Instant,
    /// The relay of both; it ends after them, for it gives those that it still serves three seconds to go elsewhere.
    pub(crate) relay: Option<Node>,
    /// Ends with the pair.
    _echo: Service,
}

impl Pair {
    /// Lets the first host dial the second, both registered at one relay.
    pub(crate) fn connect(lab: &Lab, [dialler, server]: [&str; 2]) -> Result<Self, Stop> {
        let (relay, address) = Node::relay(lab)?;
        let echo = node::echo(lab, server)?;
        let (serving, ticket) = Node::serve(lab, server, &address)?;
        let mut reaching = Node::reach(lab, dialler, Some(&address), &ticket)?;
        let first = reaching.connected()?;
        let dialled = Instant::now().checked_sub(first.1).unwrap_or_else(Instant::now);
        Ok(Pair { relay: Some(relay), reaching, serving, first, dialled, _echo: echo })
    }

    /// Waits until both ends send directly; gives the time since the dial began, `None` if it takes more than `limit`.
    pub(crate) fn becomes_direct(&self, limit: Duration) -> Result<Option<Duration>, Stop> {
        let (a, b) = (&self.reaching, &self.serving);
        let ids = [a.id()?, b.id()?];
        let direct = || Ok::<bool, Stop>(a.is_direct_to(&ids[1])? && b.is_direct_to(&ids[0])?);
        let found =
            process::wait_for(limit, || direct().map(|direct| direct.then(|| self.dialled.elapsed())).transpose());
        found.transpose()
    }

    /// As [`becomes_direct`](Self::becomes_direct), where nothing stands in the way.
    pub(crate) fn must_become_direct(&self) -> Result<Duration, Stop> {
        self.becomes_direct(DIRECT_LIMIT)?.ok_or_else(|| {
            let limit = DIRECT_LIMIT.as_secs();
            Stop::Failed(format!("not direct in both directions after {limit} s, though no port need be guessed"))
        })
    }

    /// Moves bytes both ways; gives how many, and how many the relay forwarded meanwhile.
    fn move_bytes(&self, lab: &Lab) -> Result<(u64, u64), Stop> {
        let relayed = || self.relay.as_ref().map_or(Ok(0), Node::relayed);
        let before = relayed()?;
        self.reaching.exchange(lab, MESSAGES)?;
        Ok((MESSAGES * traffic::MESSAGE as u64, relayed()? - before))
    }
}

/// Lets the first host dial a service of the second, and sees that bytes take the path that they should.
pub(crate) fn meet(lab: &Lab, hosts: [&str; 2], expected: Expected) -> Result<Outcome, Stop> {
    let (mut pair, mut dials) = (Pair::connect(lab, hosts)?, 1);
    let direct = match expected {
        Expected::Direct => Some(pair.must_become_direct()?),
        Expected::Luck(limit) => {
            let mut direct = pair.becomes_direct(LUCK_LIMIT)?;
            while direct.is_none() && dials < limit {
                drop(pair); // its nodes have the ports that the next ones want
                (pair, dials) = (Pair::connect(lab, hosts)?, dials + 1);
                direct = pair.becomes_direct(LUCK_LIMIT)?;
            }
            let limit = LUCK_LIMIT.as_secs();
            Some(direct.ok_or_else(|| Stop::Failed(format!("not direct within {limit} s of any of {dials} dials")))?)
        }
        Expected::Either | Expected::Relay | Expected::Tls => pair.becomes_direct(RELAY_WATCH)?,
    };
    if matches!(expected, Expected::Relay | Expected::Tls) && direct.is_some() {
        return Err(Stop::Failed("direct, which the rules do not allow: the lab's NAT is wrong".into()));
    }
    if expected == Expected::Tls {
        if !(pair.reaching.is_over_tls()? || pair.serving.is_over_tls()?) {
            return Err(Stop::Failed("neither node says that it reaches its relay over TLS".into()));
        }
        if pair.first.1 > TLS_LIMIT {
            let (took, limit) = (pair.first.1.as_millis(), TLS_LIMIT.as_millis());
            return Err(Stop::Failed(format!("connected after {took} ms, more than {limit}")));
        }
    }
    let (across, forwarded) = pair.move_bytes(lab)?;
    let (first, connected) = &pair.first;
    match direct {
        Some(_) if forwarded > across / 4 => {
            Err(Stop::Failed(format!("{across} bytes crossed on a direct path, but the relay forwarded {forwarded}")))
        }
        Some(took) => {
            let note = format!("{first} after {} ms, in dial {dials}", connected.as_millis());
            Ok(Outcome { path: Some("direct"), took: Some(took), note })
        }
        None if forwarded < across => {
            Err(Stop::Failed(format!("{across} bytes crossed on the relay, but it forwarded {forwarded}")))
        }
        None => Ok(Outcome { path: Some("relay"), took: Some(*connected), note: String::new() }),
    }
}
