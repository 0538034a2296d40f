//! Why a peer is reached as it is.

use std::{net::IpAddr, sync::Arc, time::Duration};

use byway::{
    NodeStatus, NotDialing, PathKind, PeerId, UnixTime, WallClock,
    nat::{self, Explanation, Outcome},
};

use super::{Daemon, attend::Report};
use crate::{
    control::{
        Event,
        event::{
            Path, milliseconds,
            nat::{Attempt, Family, Ip, Plan, Why, WhyNot},
        },
    },
    failure::{Exit, Failure},
    target::{Destination, PeerName},
};

/// Tells why a peer is reached directly, or why it is not; of one that is not connected, why it is not dialled.
pub(super) async fn run(daemon: Arc<Daemon>, to: Destination, report: Report) -> Result<(), Failure> {
    let peer = find(&daemon, &to)?;
    let Some(explanation) = daemon.node.why(peer).await else {
        let (why_not, hint) = not_connected(&daemon, &to, peer).await;
        report.tell(Event::WhyNot(why_not));
        return Err(Failure::new(Exit::Unreachable, format!("{} is not connected{hint}", peer.short())));
    };
    let status = daemon.node.status().await;
    report.tell(Event::Why(Box::new(why(&explanation, &status, peer, daemon.settings.relay_only))));
    Ok(())
}

/// The peer that is meant: one that is connected, or one that is known.
fn find(daemon: &Daemon, to: &Destination) -> Result<PeerId, Failure> {
    let peer = match to {
        Destination::Ticket(ticket) => ticket.peer,
        Destination::Known { peer: PeerName::Id(id), .. } => *id,
        Destination::Known { peer: name, .. } => {
            let connected = daemon.node.peers();
            let mut meant = connected.iter().filter(|id| name.matches(id));
            match (meant.next(), meant.next()) {
                (Some(id), None) => *id,
                (Some(_), Some(_)) => {
                    return Err(Failure::usage(format!("several peers' ids begin with {name}; write more of it")));
                }
                (None, _) => daemon.find(to)?.peer,
            }
        }
    };
    match peer == daemon.node.id() {
        true => Err(Failure::usage("that is this node itself; name a peer, as `byway status` lists them")),
        false => Ok(peer),
    }
}

/// Why a peer is not connected, and what to do about it.
async fn not_connected(daemon: &Daemon, to: &Destination, peer: PeerId) -> (WhyNot, String) {
    let node = &daemon.node;
    let record = node.known_peers().await.into_iter().find(|record| record.peer == peer);
    let ticket = daemon.find(to).ok();
    let why = node.why_not_dialing(peer).await.unwrap_or(NotDialing::Stopped);
    let (uptime, now) = (node.status().await.uptime, WallClock::default().unix());
    let left = |until: UnixTime| (until != UnixTime::NEVER).then(|| until.0.saturating_sub(now.0) as f64);
    let again_s = match why {
        NotDialing::Banned { until } | NotDialing::Resting { until } | NotDialing::Recent { until } => left(until),
        NotDialing::Waiting { until } => Some(until.since_start().saturating_sub(uptime).as_secs_f64().round()),
        _ => None,
    };
    let told = ticket.as_ref().map_or(0, |ticket| ticket.addrs.len() + ticket.relays.len());
    let booked = record.as_ref().map_or(0, |record| {
        let claims = record.claims.iter().map(|claim| &claim.contact);
        let contacts = record.proven.iter().map(|(contact, _)| contact).chain(claims);
        contacts.map(|contact| contact.addrs.len() + contact.relays.len()).max().unwrap_or_default()
    });
    let id = peer.to_string();
    let is_reached_for = daemon.reaching.read().iter().any(|reaching| reaching.peer == id);
    let answer = answer(&why, is_reached_for, told + booked > 0);
    let hint = match why {
        NotDialing::Unknown | NotDialing::NoDiscovery if is_reached_for => {
            "; `byway reach` says what it finds; check that the peer and its relay run".into()
        }
        NotDialing::Banned { .. } => format!("; `byway peers unban {peer}` lets it in again"),
        NotDialing::UnderWay(_) | NotDialing::Connected => "; ask again in a few seconds".into(),
        _ if told + booked == 0 => "; ask there for a ticket, and `byway ping` or `byway reach` it by that".into(),
        _ => {
            format!("; `byway ping {peer}` tries at once, and a persistent peer is tried for ever (`peers.persistent`)")
        }
    };
    let why_not = WhyNot {
        peer: peer.to_string(),
        answer,
        again_s,
        addresses: told.max(booked),
        attempts: record.as_ref().map_or(0, |record| record.attempts),
        tried: record.as_ref().and_then(|record| record.tried).map(|at| at.0),
        good: record.as_ref().and_then(|record| record.good).map(|at| at.0),
    };
    (why_not, hint)
}

/// Why a peer is not dialled, where commands are considered, of which the node itself does not know.
fn answer(why: &NotDialing, is_reached_for: bool, has_address: bool) -> String {
    match why {
        NotDialing::Unknown | NotDialing::NoDiscovery if is_reached_for => {
            "`byway reach` has dialled it in vain, and dials again within two seconds".into()
        }
        NotDialing::Unknown | NotDialing::NoDiscovery if has_address => {
            "no command of this node reaches for it now, and nothing else makes the node dial it".into()
        }
        why => why.to_string(),
    }
}

fn why(explanation: &Explanation, status: &NodeStatus, peer: PeerId, relay_only: bool) -> Why {
    let routes = status.peers.iter().find(|status| status.id == peer).map(|status| status.routes.as_slice());
    let routes = routes.unwrap_or_default();
    let selected = routes.iter().find(|route| route.selected);
    let remote = selected.filter(|route| route.path == PathKind::Direct).map(|route| route.remote.ip().to_canonical());
    let theirs = explanation.theirs.as_ref().map(|report| {
        let mut families = Family::list(report);
        for family in &mut families {
            // what `status` shows of the peer and no more
            family.public = family.public.filter(|public| routes.iter().any(|route| route.remote == *public));
        }
        families
    });
    let plans = [(Ip::Ipv4, explanation.ipv4), (Ip::Ipv6, explanation.ipv6)];
    Why {
        peer: peer.to_string(),
        path: if remote.is_some() { Path::Direct } else { Path::Relay },
        answer: match remote {
            Some(ip) => why_direct(explanation, ip),
            None => why_relayed(explanation, relay_only),
        },
        ours: Family::list(&explanation.ours),
        theirs,
        plans: plans.into_iter().filter_map(|(family, plan)| Some(Plan { family, plan: plan?.to_string() })).collect(),
        candidates: explanation.candidates.len(),
        refused: explanation.refused.iter().map(|(_, why)| why.to_string()).collect(),
        attempts: explanation.attempts.iter().map(|it| attempt(it, status.uptime)).collect(),
        remedies: match remote {
            Some(_) => Vec::new(),
            None => explanation.remedies.iter().map(ToString::to_string).collect(),
        },
    }
}

fn why_direct(explanation: &Explanation, remote: IpAddr) -> String {
    let (plan, is_local) = match remote {
        IpAddr::V4(ip) => (explanation.ipv4, ip.is_private() || ip.is_link_local()),
        IpAddr::V6(ip) => (explanation.ipv6, ip.is_unique_local() || ip.is_unicast_link_local()),
    };
    if remote.is_loopback() {
        return "both nodes run on this machine".into();
    }
    match plan {
        _ if is_local => "the peer answers at an address of a private network that both are on".into(),
        Some(plan) if !matches!(plan, nat::Plan::RelayOnly(_)) => plan.to_string(),
        _ => "the peer answers at an address that it told, whatever the reports say".into(),
    }
}

fn why_relayed(explanation: &Explanation, relay_only: bool) -> String {
    if relay_only {
        return "this node is told to use relays only".into();
    }
    let plans: Vec<nat::Plan> = [explanation.ipv4, explanation.ipv6].into_iter().flatten().collect();
    let last = explanation.attempts.last();
    if let Some(running) = last.filter(|attempt| attempt.outcome == Outcome::Running) {
        return format!("a direct path is still looked for, by {}", running.means);
    }
    if let Some(nat::Plan::RelayOnly(obstacle)) = plans.first()
        && plans.iter().all(|plan| matches!(plan, nat::Plan::RelayOnly(_)))
    {
        return obstacle.to_string();
    }
    match (last, &explanation.theirs) {
        (None, _) if explanation.candidates.is_empty() => "the peer has told no address that may be tried".into(),
        (None, _) => "no direct path has been looked for yet".into(),
        (Some(last), None) => format!("{}: {}; the peer has not told how its NATs behave", last.means, last.outcome),
        (Some(last), Some(_)) => {
            let plan = plans.iter().find(|plan| !matches!(plan, nat::Plan::RelayOnly(_)));
            let plan = plan.map_or_else(String::new, |plan| format!(" (the plan was {plan})"));
            format!("{}: {}{plan}", last.means, last.outcome)
        }
    }
}

fn attempt(attempt: &nat::Attempt, uptime: Duration) -> Attempt {
    Attempt {
        means: attempt.means.to_string(),
        ago_s: uptime.saturating_sub(attempt.began.since_start()).as_millis() as f64 / 1e3,
        took_ms: milliseconds(attempt.took),
        mappings: attempt.mappings,
        probes: attempt.probes,
        packets: attempt.packets,
        outcome: attempt.outcome.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_for_which_a_command_reaches_is_not_said_to_be_wanted_by_nobody() {
        for why in [NotDialing::Unknown, NotDialing::NoDiscovery] {
            assert!(answer(&why, true, true).contains("`byway reach` has dialled it in vain"));
            assert!(answer(&why, false, true).contains("no command of this node reaches for it"));
            assert_eq!(answer(&why, false, false), why.to_string());
        }
    }
}
