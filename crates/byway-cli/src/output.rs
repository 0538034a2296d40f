//! What a command prints: results on standard output, everything else on standard error, or JSON.

use std::{
    io::{self, IsTerminal, Write},
    sync::OnceLock,
    time::SystemTime,
};

use crate::{
    cmd,
    control::event::{Event, Path, Serving},
    failure::Failure,
    nat_words,
};

/// Why standard output has not taken a result, once it has not.
static UNWRITTEN: OnceLock<String> = OnceLock::new();

/// Whether all results were written, as far as anybody wanted to read them.
pub(crate) fn written() -> Result<(), Failure> {
    UNWRITTEN.get().map_or(Ok(()), |why| {
        Err(Failure::here(format!("standard output did not take everything: {why}; what it has is not whole")))
    })
}

/// Where a command's words go.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    json: bool,
}

impl Output {
    /// Human words, or JSON.
    pub(crate) fn new(json: bool) -> Self {
        Output { json }
    }

    /// Whether JSON was asked for.
    pub(crate) fn is_json(self) -> bool {
        self.json
    }

    /// Prints what happened in the form that was asked for.
    pub(crate) fn event(self, event: &Event) {
        if self.json {
            if let Ok(line) = serde_json::to_string(event) {
                self.result(&line);
            }
            return;
        }
        match describe(event) {
            Words::Result(line) => self.result(&line),
            Words::Note(line) => self.note(&line),
            Words::ResultAndNote(result, note) => {
                self.note(&note);
                self.result(&result);
            }
            Words::None => {}
        }
    }

    /// Prints a result. A reader that has gone away has what it wanted.
    pub(crate) fn result(self, line: &str) {
        let mut out = io::stdout().lock();
        if let Err(error) = writeln!(out, "{line}").and_then(|()| out.flush())
            && error.kind() != io::ErrorKind::BrokenPipe
        {
            let _ = UNWRITTEN.set(error.to_string()); // the first one is the cause
        }
    }

    /// Prints what a person may want to know.
    pub(crate) fn note(self, line: &str) {
        let _ = writeln!(io::stderr().lock(), "{line}");
    }

    /// Prints why the command fails.
    pub(crate) fn failure(self, failure: &Failure) {
        if self.json {
            self.event(&Event::Error(failure.clone()));
        }
        self.note(&format!("byway: {failure}"));
    }

    /// Prints why a pipe fails; standard output is the peer's bytes, JSON or not.
    pub(crate) fn failure_of_pipe(self, failure: &Failure) {
        match serde_json::to_string(&Event::Error(failure.clone())) {
            Ok(line) if self.json => self.note(&line),
            _ => self.note(&format!("byway: {failure}")),
        }
    }

    /// Whether a person watches the progress.
    pub(crate) fn shows_progress(self) -> bool {
        !self.json && io::stderr().is_terminal()
    }
}

/// What a person reads of an event.
#[derive(Debug, PartialEq, Eq)]
enum Words {
    Result(String),
    Note(String),
    /// The result first asks for an explanation, which is no part of it.
    ResultAndNote(String, String),
    None,
}

fn describe(event: &Event) -> Words {
    let text = match event {
        Event::Ticket { ticket, open, service } => {
            let whom = if *open {
                "whoever knows this ticket can reach"
            } else {
                "the first machine that uses this ticket, and no other, can reach"
            };
            let note = format!("{whom} `{service}`, by `byway reach` and the ticket:");
            return Words::ResultAndNote(ticket.clone(), note);
        }
        Event::Relay { address } => {
            let note = "relaying; nodes use it with --relay, or with `relays` in their configuration:";
            return Words::ResultAndNote(address.clone(), note.into());
        }
        Event::Listening { address, peer, service } => {
            let note = format!("this local address leads to `{service}` of {}:", short(peer));
            return Words::ResultAndNote(address.to_string(), note);
        }
        Event::Pong { seq, rtt_ms, path, .. } => {
            return Words::Result(format!("{seq}: {rtt_ms:.1} ms {}", way(*path)));
        }
        Event::Id { id } => return Words::Result(id.clone()),
        Event::NoPong { seq, message, .. } => return Words::Result(format!("{seq}: no answer: {message}")),
        Event::Pinged { sent, answered, min_ms, mean_ms, max_ms, .. } => {
            let times = [min_ms, mean_ms, max_ms].map(|ms| ms.map_or_else(|| "-".into(), |ms| format!("{ms:.1}")));
            return Words::Result(format!("{answered} of {sent} answered; least, mean, most: {} ms", times.join(", ")));
        }
        Event::PeerList { peers } => return Words::Result(cmd::peers::describe(peers, SystemTime::now())),
        Event::PeerBook { peers } => return Words::Result(serde_json::to_string_pretty(peers).unwrap_or_default()),
        Event::PeersChanged { message } => message.clone(),
        Event::Reloaded(reloaded) => return Words::Result(cmd::reload::describe(reloaded)),
        Event::Measured(measured) => return Words::Result(cmd::bench::describe(measured)),
        Event::Status(_) | Event::Check(_) | Event::Why(_) | Event::WhyNot(_) | Event::Done | Event::Error(_) => {
            return Words::None;
        } // each has a place of its own
        other => note(other),
    };
    Words::Note(text)
}

fn note(event: &Event) -> String {
    match event {
        Event::Node { id, addresses } => {
            let list: Vec<String> = addresses.iter().map(ToString::to_string).collect();
            format!("this node is {id}\nit listens on {}", list.join(", "))
        }
        Event::Metrics { address } => format!("metrics are told at http://{address}/metrics"),
        Event::RelayUp { relay } => {
            format!("registered at relay {}: peers can reach this node through it", short(relay))
        }
        Event::RelayDown { relay, message } => {
            let hint = "check its id and address, that it runs, and that UDP may pass; trying again";
            format!("not registered at relay {}: {message}; {hint}", short(relay))
        }
        Event::PeerUp { peer, path } => format!("{} connected {}", short(peer), way(*path)),
        Event::PeerDown { peer, message } => format!("{} is gone: {message}", short(peer)),
        Event::PathUp { peer, path: Path::Direct, remote } => format!("{} answers at {remote}", short(peer)),
        Event::PathUp { peer, path: Path::Relay, remote } => {
            format!("{} answers through the relay at {remote}", short(peer))
        }
        Event::PathDown { peer, remote, .. } => format!("the way to {} by {remote} answers no longer", short(peer)),
        Event::PathBest { peer, path, why, .. } => format!("{} is reached {} now: {why}", short(peer), way(*path)),
        Event::Stalled { peer, .. } => {
            format!("nothing comes from {} by any way; the connection waits, and nothing is lost", short(peer))
        }
        Event::Resumed { peer, after_s } => format!("{} answers again after {after_s:.1} s", short(peer)),
        Event::Redeemed { service, peer } => {
            format!("{} has used the ticket for `{service}`; the next one is for another peer:", short(peer))
        }
        Event::Dialling { peer } => format!("dialling {}", short(peer)),
        Event::Connected { peer, path, ms } => format!("connected to {} {} after {ms:.0} ms", short(peer), way(*path)),
        Event::Path { peer, path: Path::Direct, ms } => {
            format!("{} is reached directly now, {ms:.0} ms after the dial began", short(peer))
        }
        Event::Path { peer, path: Path::Relay, .. } => {
            format!("the direct way to {} is lost; the connection goes on over the relay", short(peer))
        }
        Event::Gone { peer, message, .. } => format!("{}: {message}; dialling again", short(peer)),
        Event::Unreachable { message, retry_ms, .. } => {
            format!("{message}; trying again in {:.1} s", *retry_ms as f64 / 1e3)
        }
        Event::SessionFailed { peer, service, message } => {
            format!("no connection with {} for `{service}`: {message}", short(peer))
        }
        Event::NatChanged { families } => format!("NAT: {}", nat_words::line(families)),
        Event::Checking { servers: 1, wait_s } => format!("asking one server, for {wait_s} s at most"),
        Event::Checking { servers, wait_s } => format!("asking {servers} servers, for {wait_s} s at most"),
        Event::MappingAdded { gateway, transport, external, by, carrier } => {
            let but = if *carrier { ", but another NAT stands before it" } else { "" };
            format!("the gateway {gateway} forwards {transport} to {external} to this node ({by}){but}")
        }
        Event::MappingLost { gateway, transport, message } => {
            format!("the gateway {gateway} forwards no {transport}: {message}")
        }
        Event::Measuring { direction, mbit_s, .. } => format!("{direction}: {mbit_s:.1} Mbit/s"),
        Event::Piping { peer } => format!("connected to {}", short(peer)),
        _ => String::new(),
    }
}

/// The beginning of an id: enough for a line of text.
pub(crate) fn short(id: &str) -> &str {
    id.get(..byway_proto::id::SHORT_LEN).unwrap_or(id)
}

/// A path as the end of a sentence.
pub(crate) fn way(path: Path) -> &'static str {
    match path {
        Path::Direct => "directly",
        Path::Relay => "over the relay",
    }
}

/// Who may use a service, in a word or two.
pub(crate) fn audience(serving: &Serving) -> String {
    match (serving.open, serving.holders) {
        (true, _) => "anyone".into(),
        (false, 1) => "1 peer".into(),
        (false, holders) => format!("{holders} peers"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_results_go_to_standard_output() {
        let ticket = Event::Ticket { service: "web".into(), ticket: "byway1x".into(), open: false };
        assert!(matches!(describe(&ticket), Words::ResultAndNote(result, _) if result == "byway1x"));
        let listening =
            Event::Listening { peer: "p".into(), service: "s".into(), address: "127.0.0.1:8".parse().unwrap() };
        assert!(matches!(describe(&listening), Words::ResultAndNote(result, _) if result == "127.0.0.1:8"));
        for event in [
            Event::Dialling { peer: "p".into() },
            Event::RelayUp { relay: "r".into() },
            Event::Gone { peer: "p".into(), reason: "restarted".into(), message: "it was restarted".into() },
            Event::Connected { peer: "p".into(), path: Path::Relay, ms: 3.2 },
        ] {
            assert!(matches!(describe(&event), Words::Note(note) if !note.is_empty()), "{event:?}");
        }
    }
}
