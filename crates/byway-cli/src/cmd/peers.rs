//! `byway peers`: the address book.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use comfy_table::{Table, presets::NOTHING};
use tokio::io::AsyncReadExt;

use super::{Followed, Shell, interrupted};
use crate::{
    args::PeersCommand,
    control::{
        Request,
        event::book::{Known, PeersAsk},
    },
    failure::{Failure, printable},
    output::short,
    session::{self, Session},
};

/// The longest book that is read, in bytes: 20,000 peers with all that is said of them.
const MAX_BOOK: u64 = 16 << 20;

/// Does something with the address book of a node that runs.
pub(super) async fn run(mut shell: Shell, command: PeersCommand) -> Result<(), Failure> {
    let ask = match command {
        PeersCommand::List => PeersAsk::List,
        PeersCommand::Export => PeersAsk::Export,
        PeersCommand::Add { peer } => PeersAsk::Add { peer: peer.to_string() },
        PeersCommand::Ban { peer, hours, why } => {
            PeersAsk::Ban { peer: peer.to_string(), until: hours.map(|hours| in_hours(SystemTime::now(), hours)), why }
        }
        PeersCommand::Unban { peer } => PeersAsk::Unban { peer: peer.to_string() },
        PeersCommand::Import => PeersAsk::Import { peers: read().await? },
    };
    let dir = session::data_dir(&shell.global)?;
    let session = Session::attach(&dir, "peers").await?;
    match shell.follow(session, &Request::Peers { ask }).await? {
        Followed::Done => Ok(()),
        Followed::Stopped => Err(interrupted()),
    }
}

fn in_hours(now: SystemTime, hours: u64) -> u64 {
    let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    (now + Duration::from_secs(hours.saturating_mul(3_600))).as_secs()
}

/// What `export` has printed: JSON, one peer a line, or an array of them.
async fn read() -> Result<Vec<Known>, Failure> {
    let mut text = String::new();
    tokio::io::stdin().take(MAX_BOOK).read_to_string(&mut text).await.map_err(Failure::here)?;
    parse(&text)
}

fn parse(text: &str) -> Result<Vec<Known>, Failure> {
    let wrong = |error: serde_json::Error| {
        Failure::usage(format!("this is not what `byway peers export` prints: {error}; nothing was imported"))
    };
    serde_json::from_str(text).map_err(wrong)
}

/// The list for a person.
pub(crate) fn describe(peers: &[Known]) -> String {
    if peers.is_empty() {
        return "the address book is empty".into();
    }
    let mut table = Table::new();
    table.load_preset(NOTHING).set_header(["id", "known from", "addresses", "dials", "state"]);
    for peer in peers {
        let from = if peer.proven.is_some() { "reached or named here" } else { "others" };
        let state = match &peer.ban {
            // Somebody else may have written it, whose export was imported.
            Some(ban) if ban.until.is_none() => format!("banned: {}", printable(&ban.why)),
            Some(ban) => format!("banned until {}: {}", ban.until.unwrap_or_default(), printable(&ban.why)),
            None if peer.good.is_some() => "good".into(),
            None => "not reached yet".into(),
        };
        let from = if peer.ban.is_some() { "-" } else { from };
        let addresses = peer.addresses().join(", ");
        table.add_row([short(&peer.peer), from, &addresses, &peer.attempts.to_string(), &state]);
    }
    table.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_export_is_told_and_an_export_is_read() {
        assert!(parse("nonsense").unwrap_err().message.contains("nothing was imported"));
        let peers = parse(r#"[{"peer":"x","attempts":2,"claims":[{"source":"local","addrs":["198.51.100.1:7"]}]}]"#);
        let peers = peers.unwrap();
        assert_eq!(peers[0].addresses(), ["198.51.100.1:7"]);
        assert!(describe(&peers).contains("198.51.100.1:7"));
        assert_eq!(describe(&[]), "the address book is empty");
    }

    #[test]
    fn an_imported_ban_cannot_command_the_terminal() {
        for until in ["null", "7"] {
            let row = format!(r#"[{{"peer":"x","ban":{{"until":{until},"why":"a\u001b]0;b\u0007"}}}}]"#);
            let shown = describe(&parse(&row).unwrap());
            assert!(shown.contains("]0;b") && !shown.contains(['\u{1b}', '\u{7}']), "{shown:?}");
        }
    }
}
