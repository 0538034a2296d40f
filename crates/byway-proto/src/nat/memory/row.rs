//! The memory as bytes: what an earlier process wrote is material to judge, as all input is.

use alloc::{
    string::{String, ToString},
    vec::Vec,
};
use core::{net::IpAddr, time::Duration};

use prost::Message;

use super::{KEEP, MAX_NETWORKS, MAX_PAIRS, Memory, Pair, Past};
use crate::{
    Instant, PeerId, UnixTime,
    nat::{Means, Plan, Side, budget::RENEWAL},
};

/// The shortest and the longest lifetime of a mapping that a survey can have found.
const LIFETIMES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(240));

/// The means by their numbers.
const MEANS: [Means; 5] = [Means::Pings, Means::Prediction, Means::Predictions, Means::Spray, Means::Scan];

/// The plans by their numbers; 0 is none, and no other one has worked ever.
const PLANS: [Option<Plan>; 8] = [
    None,
    Some(Plan::Direct),
    Some(Plan::SimultaneousOpen),
    Some(Plan::Predict { hard: Side::Ours }),
    Some(Plan::Predict { hard: Side::Theirs }),
    Some(Plan::PredictBoth),
    Some(Plan::Spray { hard: Side::Ours }),
    Some(Plan::Spray { hard: Side::Theirs }),
];

#[derive(Clone, PartialEq, Message)]
struct MemoryRow {
    #[prost(message, repeated, tag = "1")]
    pairs: Vec<PairRow>,
    #[prost(message, repeated, tag = "2")]
    networks: Vec<NetworkRow>,
}

/// Times are Unix's, in seconds.
#[derive(Clone, PartialEq, Message)]
struct PairRow {
    #[prost(bytes = "vec", tag = "1")]
    peer: Vec<u8>,
    #[prost(string, tag = "2")]
    ours: String,
    #[prost(string, tag = "3")]
    theirs: String,
    /// One more than the number of what worked; 0 if nothing did.
    #[prost(uint32, tag = "4")]
    means: u32,
    #[prost(uint32, tag = "5")]
    plan: u32,
    #[prost(uint64, tag = "6")]
    until: u64,
    /// 0 if it is not barred.
    #[prost(uint64, tag = "7")]
    barred: u64,
}

#[derive(Clone, PartialEq, Message)]
struct NetworkRow {
    #[prost(string, tag = "1")]
    ip: String,
    #[prost(uint32, tag = "2")]
    lifetime_ms: u32,
    #[prost(uint64, tag = "3")]
    until: u64,
}

/// Everything that is not over, at most 40 KiB.
pub(super) fn to_bytes(memory: &Memory, now: Instant, wall: UnixTime) -> Vec<u8> {
    let unix = |at: Instant| (wall + at.since(now)).0;
    let pairs = memory.pairs.iter().filter(|(_, past)| past.until > now).map(|(pair, past)| PairRow {
        peer: pair.peer.to_wire().to_vec(),
        ours: pair.ours.to_string(),
        theirs: pair.theirs.to_string(),
        means: past.worked.map_or(0, |(means, _)| number(&MEANS, &means) + 1),
        plan: past.worked.map_or(0, |(_, plan)| number(&PLANS, &plan)),
        until: unix(past.until),
        barred: past.barred.filter(|barred| *barred > now).map_or(0, unix),
    });
    let networks = memory.networks.iter().filter(|(_, (_, until))| *until > now);
    let networks = networks.map(|(ip, (lifetime, until))| NetworkRow {
        ip: ip.to_string(),
        lifetime_ms: u32::try_from(lifetime.as_millis()).unwrap_or(u32::MAX),
        until: unix(*until),
    });
    MemoryRow { pairs: pairs.collect(), networks: networks.collect() }.encode_to_vec()
}

/// Adds what is not over by now, and for no longer than it would be remembered if it had been learned now.
pub(super) fn read(memory: &mut Memory, bytes: &[u8], now: Instant, wall: UnixTime) {
    let Ok(row) = MemoryRow::decode(bytes) else { return };
    let left = |until: u64, most: Duration| {
        let left = UnixTime(until).since(wall).min(most);
        (!left.is_zero()).then(|| now + left)
    };
    for row in row.pairs.into_iter().take(MAX_PAIRS) {
        let read = || {
            let (ours, theirs) = (row.ours.parse().ok()?, row.theirs.parse().ok()?);
            let pair = Pair { peer: PeerId::from_wire(&row.peer)?, ours, theirs };
            let means = row.means.checked_sub(1).and_then(|number| MEANS.get(number as usize));
            let plan = PLANS.get(row.plan as usize).copied().flatten();
            let worked = means.map(|means| (*means, plan));
            Some((pair, Past { until: left(row.until, KEEP)?, worked, barred: left(row.barred, RENEWAL) }))
        };
        if let Some((pair, past)) = read() {
            memory.set_pair(pair, past);
        }
    }
    for row in row.networks.into_iter().take(MAX_NETWORKS) {
        let lifetime = Duration::from_millis(row.lifetime_ms.into());
        let sound = (LIFETIMES.0..=LIFETIMES.1).contains(&lifetime);
        if let (true, Ok(ip), Some(until)) = (sound, row.ip.parse::<IpAddr>(), left(row.until, KEEP)) {
            memory.set_network(ip, lifetime, until);
        }
    }
}

fn number<T: PartialEq>(all: &[T], one: &T) -> u32 {
    all.iter().position(|known| known == one).unwrap_or(0) as u32
}
