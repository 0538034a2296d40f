//! `byway why`: why a peer is reached directly, or why it is not; why it is not connected.

use byway::WallClock;

use super::{Shell, status::table};
use crate::{
    args::WhyArgs,
    control::{
        Event, Request,
        event::nat::{Attempt, Family, Why, WhyNot},
    },
    failure::Failure,
    nat_words::{name, properties},
    output::{short, way},
    session::{self, Session},
};

/// Prints the reason once; it needs a node that runs.
pub(super) async fn run(shell: Shell, args: WhyArgs) -> Result<(), Failure> {
    let to = args.to.parse().map_err(Failure::usage)?;
    let dir = session::data_dir(&shell.global)?;
    let mut session = Session::attach(&dir, "why").await?;
    session.request(&Request::Why { to }).await?;
    while let Some(event) = session.next().await? {
        match event {
            Event::Why(why) if !shell.output.is_json() => shell.output.result(&describe(&why)),
            Event::WhyNot(why) if !shell.output.is_json() => shell.output.result(&describe_not(&why)),
            event => shell.output.event(&event),
        }
    }
    Ok(())
}

fn describe(why: &Why) -> String {
    let mut parts = vec![format!("{} is reached {}: {}", short(&why.peer), way(why.path), why.answer)];
    parts.extend(reports(why));
    if !why.plans.is_empty() {
        let rows = why.plans.iter().map(|plan| vec![name(plan.family).into(), plan.plan.clone()]).collect();
        parts.push(format!("what follows from both reports\n{}", table(&[], rows)));
    }
    if !why.attempts.is_empty() {
        let columns = ["means", "began", "took", "addresses", "sockets", "guesses", "packets", "outcome"];
        let rows = why.attempts.iter().map(|attempt| attempt_row(attempt, why.candidates)).collect();
        parts.push(format!("what was tried\n{}", table(&columns, rows)));
    }
    if !why.refused.is_empty() {
        let rows = why.refused.iter().map(|why| vec![format!("- {why}")]).collect();
        parts.push(format!("addresses that the peer told and that are not tried\n{}", table(&[], rows)));
    }
    if !why.remedies.is_empty() {
        let rows = why.remedies.iter().map(|remedy| vec![format!("- {remedy}")]).collect();
        parts.push(format!("what would help\n{}", table(&[], rows)));
    }
    parts.join("\n\n")
}

fn describe_not(why: &WhyNot) -> String {
    let ago = |at: Option<u64>| {
        let now = WallClock::default().unix().0;
        at.map_or_else(|| "not that the address book knows".into(), |at| format!("{} s ago", now.saturating_sub(at)))
    };
    let mut rows = vec![
        vec!["addresses known".into(), why.addresses.to_string()],
        vec!["last reached".into(), ago(why.good)],
        vec!["last dialled".into(), ago(why.tried)],
        vec!["dials in vain since".into(), why.attempts.to_string()],
    ];
    if let Some(again) = why.again_s {
        rows.push(vec!["may be dialled in".into(), format!("{again:.0} s")]);
    }
    format!("{} is not dialled: {}\n\n{}", short(&why.peer), why.answer, table(&[], rows))
}

/// Both reports side by side, one table for each family that either side has told of.
fn reports(why: &Why) -> Vec<String> {
    use crate::control::event::nat::Ip;
    let of = |families: &[Family], ip| families.iter().find(|family| family.family == ip).cloned();
    let theirs = why.theirs.as_deref().unwrap_or_default();
    let pairs = [Ip::Ipv4, Ip::Ipv6].map(|ip| (ip, of(&why.ours, ip), of(theirs, ip)));
    let told = pairs.into_iter().filter(|(_, ours, theirs)| ours.is_some() || theirs.is_some());
    told.map(|(ip, ours, theirs)| {
        let (ours, theirs) = (ours.as_ref().map(properties), theirs.as_ref().map(properties));
        let (ours, theirs) = (ours.unwrap_or_default(), theirs.unwrap_or_default());
        let longer = if ours.len() < theirs.len() { &theirs } else { &ours };
        let value = |side: &[crate::nat_words::Property], name| {
            side.iter().find(|it| it.name == name).map_or_else(|| "-".to_owned(), |it| it.value.clone())
        };
        let rows = longer.iter().map(|it| vec![it.name.into(), value(&ours, it.name), value(&theirs, it.name)]);
        table(&[name(ip), "this side", "the peer's side"], rows.collect())
    })
    .collect()
}

fn attempt_row(attempt: &Attempt, candidates: usize) -> Vec<String> {
    vec![
        attempt.means.clone(),
        format!("{:.0} s ago", attempt.ago_s),
        format!("{:.1} s", attempt.took_ms / 1e3),
        candidates.to_string(),
        attempt.mappings.to_string(),
        attempt.probes.to_string(),
        attempt.packets.to_string(),
        attempt.outcome.clone(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        control::event::{
            Path,
            nat::{Ip, Plan},
        },
        nat_words::tests::hard,
    };

    #[test]
    fn a_peer_that_stands_in_no_address_book_is_not_said_to_have_never_been_reached() {
        let why = WhyNot {
            peer: "ahlvvgabqkyqahlv".into(),
            answer: "because".into(),
            again_s: None,
            addresses: 2,
            attempts: 0,
            tried: None,
            good: None,
        };
        let text = describe_not(&why);
        assert_eq!(text.matches("not that the address book knows").count(), 2, "{text}");
    }

    #[test]
    fn the_answer_comes_first_and_the_remedies_last() {
        let why = Why {
            peer: "ahlvvgabqkyqahlv".into(),
            path: Path::Relay,
            answer: "because".into(),
            ours: vec![hard()],
            theirs: Some(vec![Family { public: None, udp: false, ..hard() }]),
            plans: vec![Plan { family: Ip::Ipv4, plan: "relay only".into() }],
            candidates: 2,
            refused: vec!["port 0 is no destination".into()],
            attempts: vec![Attempt {
                means: "many ports".into(),
                ago_s: 3.0,
                took_ms: 5_000.0,
                mappings: 256,
                probes: 1_200,
                packets: 1_300,
                outcome: "no answer".into(),
            }],
            remedies: vec!["use IPv6".into()],
        };
        let text = describe(&why);
        assert!(text.starts_with("ahlvvgabqk is reached over the relay: because\n"), "{text}");
        assert!(text.ends_with("- use IPv6") && text.contains("the peer's side") && text.contains("1200"), "{text}");
    }
}
