//! `byway peers`: the address book.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use comfy_table::{Table, presets::NOTHING};
use tokio::io::{AsyncRead, AsyncReadExt};

use super::{Followed, Shell, interrupted};
use crate::{
    args::PeersCommand,
    control::{
        MAX_LINE, Request,
        event::book::{Known, PeersAsk},
    },
    failure::{Failure, printable},
    output::short,
    session::{self, Session},
};

/// The longest book that is read, in bytes: as much as the node takes.
const MAX_BOOK: u64 = MAX_LINE as u64;

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
        PeersCommand::Import => PeersAsk::Import { peers: read(tokio::io::stdin()).await? },
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

/// How long it is to a moment in seconds since 1970, rounded up: in days from the third one on.
fn time_left(until: u64, now: u64) -> String {
    match until.saturating_sub(now).div_ceil(3_600) {
        hours @ 0..=48 => format!("{hours} h"),
        hours => format!("{} days", hours.div_ceil(24)),
    }
}

/// What `export` has printed: an array of peers.
async fn read(from: impl AsyncRead + Unpin) -> Result<Vec<Known>, Failure> {
    let mut text = Vec::new();
    let read = from.take(MAX_BOOK + 1).read_to_end(&mut text).await;
    read.map_err(|error| Failure::here(format!("cannot read standard input: {error}; nothing was imported")))?;
    if text.len() as u64 > MAX_BOOK {
        let most = MAX_BOOK >> 20;
        let why = format!("this has more than {most} MiB, and no address book is so long; nothing was imported");
        return Err(Failure::usage(why));
    }
    parse(&text)
}

fn parse(text: &[u8]) -> Result<Vec<Known>, Failure> {
    let wrong = |error: serde_json::Error| {
        Failure::usage(format!("this is not what `byway peers export` prints: {error}; nothing was imported"))
    };
    serde_json::from_slice(text).map_err(wrong)
}

/// The list for a person.
pub(crate) fn describe(peers: &[Known], now: SystemTime) -> String {
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
            Some(ban) => {
                let left = time_left(ban.until.unwrap_or_default(), in_hours(now, 0));
                format!("banned for {left} more: {}", printable(&ban.why))
            }
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
    use crate::failure::Exit;

    #[tokio::test]
    async fn what_is_no_export_is_told_and_an_export_is_read() {
        for wrong in [&b"nonsense"[..], b"\xff\xfe", b""] {
            let failure = read(wrong).await.unwrap_err();
            assert!(failure.code == Exit::Usage && failure.message.contains("peers export"), "{failure}");
            assert!(failure.message.contains("nothing was imported"), "{failure}");
        }
        let peers = br#"[{"peer":"x","attempts":2,"claims":[{"source":"local","addrs":["198.51.100.1:7"]}]}]"#;
        let peers = read(&peers[..]).await.unwrap();
        assert_eq!(peers[0].addresses(), ["198.51.100.1:7"]);
        assert!(describe(&peers, UNIX_EPOCH).contains("198.51.100.1:7"));
        assert_eq!(describe(&[], UNIX_EPOCH), "the address book is empty");
    }

    #[tokio::test]
    async fn a_book_that_is_too_long_is_told_so_and_not_that_it_is_no_book() {
        let failure = read(tokio::io::repeat(b' ')).await.unwrap_err();
        assert!(failure.code == Exit::Usage && failure.message.contains("MiB"), "{failure}");
    }

    #[test]
    fn a_person_reads_how_long_a_ban_lasts_and_not_a_number_of_seconds() {
        let row = br#"[{"peer":"x","ban":{"until":1000010000,"why":"spam"}}]"#;
        let now = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        let peers = parse(row).unwrap();
        for (seconds, left) in [(1_000_000_000, "3 h"), (999_800_000, "3 days"), (2_000_000_000, "0 h")] {
            let shown = describe(&peers, now(seconds));
            assert!(shown.contains(&format!("banned for {left} more: spam")), "{shown}");
        }
        assert_eq!(time_left(u64::MAX - 1, 0), "213503982334602 days");
    }

    #[test]
    fn an_imported_ban_cannot_command_the_terminal() {
        for until in ["null", "7"] {
            let row = format!(r#"[{{"peer":"x","ban":{{"until":{until},"why":"a\u001b]0;b\u0007"}}}}]"#);
            let shown = describe(&parse(row.as_bytes()).unwrap(), UNIX_EPOCH);
            assert!(shown.contains("]0;b") && !shown.contains(['\u{1b}', '\u{7}']), "{shown:?}");
        }
    }
}
