//! How a command fails: one sentence for a person, one code for a script.

use std::{fmt, process::ExitCode};

use serde::{Deserialize, Serialize};

/// Why a command ends, as its exit code; `docs/cli.md` explains each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "u8", from = "u8")]
pub(crate) enum Exit {
    /// Something on this machine failed.
    Failed,
    /// The command line, a ticket or the configuration makes no sense.
    Usage,
    /// No node runs in this data directory, or it stopped while the command was attached to it.
    NoNode,
    /// The peer or the relay cannot be reached.
    Unreachable,
    /// The peer was reached and said no.
    Refused,
    /// The user stopped a command before its work was done.
    Interrupted,
}

impl From<Exit> for u8 {
    fn from(exit: Exit) -> u8 {
        match exit {
            Exit::Failed => 1,
            Exit::Usage => 2,
            Exit::NoNode => 3,
            Exit::Unreachable => 4,
            Exit::Refused => 5,
            Exit::Interrupted => 130, // as a shell reports SIGINT
        }
    }
}

impl From<u8> for Exit {
    /// What this version does not know is a plain failure.
    fn from(code: u8) -> Exit {
        match code {
            2 => Exit::Usage,
            3 => Exit::NoNode,
            4 => Exit::Unreachable,
            5 => Exit::Refused,
            130 => Exit::Interrupted,
            _ => Exit::Failed,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(u8::from(exit))
    }
}

/// The end of a command that did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Failure {
    /// For scripts.
    pub(crate) code: Exit,
    /// For people: what happened, whose fault it is, what to do next.
    pub(crate) message: String,
}

impl Failure {
    /// A failure with this code and text.
    pub(crate) fn new(code: Exit, message: impl fmt::Display) -> Self {
        Failure { code, message: message.to_string() }
    }

    /// Something on this machine failed.
    pub(crate) fn here(message: impl fmt::Display) -> Self {
        Failure::new(Exit::Failed, message)
    }

    /// The user has to write something else.
    pub(crate) fn usage(message: impl fmt::Display) -> Self {
        Failure::new(Exit::Usage, message)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// What a peer or another program has written, safe to print on a terminal: no control characters, and no more than our own
/// longest errors have.
pub(crate) fn printable(text: &str) -> String {
    const MAX_CHARS: usize = 300;
    let clean = |found: char| if found.is_control() { '\u{fffd}' } else { found };
    let mut chars = text.chars();
    let mut shown: String = chars.by_ref().take(MAX_CHARS).map(clean).collect();
    if chars.next().is_some() {
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_survive_the_control_socket() {
        for exit in [Exit::Failed, Exit::Usage, Exit::NoNode, Exit::Unreachable, Exit::Refused, Exit::Interrupted] {
            assert_eq!(Exit::from(u8::from(exit)), exit);
        }
        assert_eq!(Exit::from(77), Exit::Failed);
    }

    #[test]
    fn what_a_peer_writes_cannot_command_the_terminal() {
        assert_eq!(printable("a\u{1b}[2Jb\n"), "a\u{fffd}[2Jb\u{fffd}");
        assert_eq!(printable(&"x".repeat(300)), "x".repeat(300));
        assert_eq!(printable(&"x".repeat(10_000)), format!("{}…", "x".repeat(300)));
    }
}
