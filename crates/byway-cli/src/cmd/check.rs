//! `byway check`: how the NATs between this machine and the internet behave, and what that means.

use super::{
    Shell, interrupted,
    status::{mapping_row, table},
};
use crate::{
    args::{CheckArgs, ServerChoice},
    control::{
        Event, Request,
        event::nat::{Check, Family, Prospect},
    },
    failure::Failure,
    nat_words::{name, properties},
    session::Session,
};

/// Prints the report once the survey has its verdict.
pub(super) async fn run(mut shell: Shell, args: CheckArgs) -> Result<(), Failure> {
    let choice = ServerChoice { servers: args.servers, relay_only: false };
    let mut session = shell.open("check", &choice).await?;
    let result = print(&mut shell, &mut session, args.wait).await;
    session.end().await;
    result
}

async fn print(shell: &mut Shell, session: &mut Session, wait_s: u64) -> Result<(), Failure> {
    session.request(&Request::Check { wait_s }).await?;
    loop {
        let event = tokio::select! {
            biased;
            () = shell.stop.requested() => return Err(interrupted()),
            event = session.next() => event?,
        };
        match event {
            Some(Event::Checking { .. }) if shell.output.is_json() => {} // scripts get one object
            Some(Event::Check(check)) if !shell.output.is_json() => shell.output.result(&describe(&check)),
            Some(event) => shell.output.event(&event),
            None => return Ok(()),
        }
    }
}

fn describe(check: &Check) -> String {
    let mut parts: Vec<String> = check.families.iter().map(|family| describe_family(family, &check.outlook)).collect();
    if !check.mappings.is_empty() {
        let rows = check.mappings.iter().map(mapping_row).collect();
        parts.push(format!("port mapping\n{}", table(&["gateway", "forwards", "by", "state"], rows)));
    }
    let servers = check.servers.iter().map(|server| {
        let kind = if server.relay { "relay" } else { "STUN" };
        vec![server.name.clone(), kind.into(), server.state.clone()]
    });
    parts.push(format!("servers\n{}", table(&["name", "kind", "state"], servers.collect())));
    if let Some(awaited) = &check.awaited {
        parts.push(format!("the time was up while this was open: {awaited}; --wait gives more"));
    }
    parts.join("\n\n")
}

fn describe_family(family: &Family, outlook: &[Prospect]) -> String {
    let rows = properties(family).into_iter().map(|it| vec![it.name.into(), it.value, it.meaning.into()]);
    let prospects: Vec<&Prospect> = outlook.iter().filter(|prospect| prospect.family == family.family).collect();
    format!("{}\n{}\n{}", name(family.family), table(&[], rows.collect()), conclude(&prospects))
}

/// What to expect with whom, in one sentence.
fn conclude(prospects: &[&Prospect]) -> String {
    match prospects {
        [first, rest @ ..] if rest.iter().all(|prospect| prospect.how == first.how) => {
            format!("with all peers: {}", first.how)
        }
        prospects => {
            let each = prospects.iter().map(|prospect| format!("behind {}: {}", prospect.peer, prospect.how));
            format!("with peers {}", each.collect::<Vec<_>>().join("; "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        control::event::{
            Path,
            nat::{Ip, Server},
        },
        nat_words::tests::hard,
    };

    fn prospect(peer: &str, how: &str) -> Prospect {
        Prospect { family: Ip::Ipv4, peer: peer.into(), path: Some(Path::Direct), how: how.into() }
    }

    #[test]
    fn a_report_ends_with_what_it_means() {
        let check = Check {
            families: vec![hard()],
            mappings: Vec::new(),
            servers: vec![Server { name: "stun.example:3478".into(), relay: false, state: "asked".into() }],
            outlook: vec![prospect("home routers", "direct"), prospect("others", "relay only")],
            awaited: Some("how the NAT filters".into()),
        };
        let text = describe(&check);
        let meant = "with peers behind home routers: direct; behind others: relay only";
        assert!(text.contains(meant) && text.contains("--wait") && text.contains("stun.example:3478"), "{text}");
        let same = [prospect("home routers", "direct"), prospect("others", "direct")];
        assert_eq!(conclude(&same.iter().collect::<Vec<_>>()), "with all peers: direct");
    }
}
