//! Why a peer went, in words that reach the other side unchanged.

use byway_proto::hello::{Goodbye, Refusal};
use quinn::{ConnectionError, VarInt};

/// Codes of a goodbye; those below are refusals of a hello.
const DUPLICATE: u32 = 16;
const CLOSED: u32 = 17;
const MISBEHAVED: u32 = 18;
const SELF: u32 = 19;
const REPLACED: u32 = 20;
const RESTARTED: u32 = 21;
const UNSERVED: u32 = 22;
const FAILED: u32 = 23;
const BANNED: u32 = 24;
const FULL: u32 = 25;
const FILTERED: u32 = 26;
const DISCONNECTED: u32 = 27;
const FELT: u32 = 28;
const UNREAD: u32 = 29;
const UNFINISHED: u32 = 30;

/// The first code of an application's own reasons.
const DISMISSED: u32 = 1 << 16;

/// Why a connection to a peer ended.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let on_loopback = || Config::new(Identity::generate()).listen(([127, 0, 0, 1], 0).into());
/// use byway::{Config, Event, Gone, Identity, Node};
///
/// let (a, b) = (Node::bind(on_loopback()).await?, Node::bind(on_loopback()).await?);
/// let mut events = a.events();
/// b.dial(a.ticket()).await?;
/// while !matches!(events.recv().await, Some(Event::PeerUp { .. })) {}
/// b.disconnect(a.id(), 7, "the game is over");
/// let reason = loop {
///     if let Some(Event::PeerDown { reason, .. }) = events.recv().await {
///         break reason;
///     }
/// };
/// assert_eq!(reason, Gone::Dismissed { code: 7, why: "the game is over".into() });
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Gone {
    /// One side closed its node.
    #[error("the node was closed")]
    Closed,
    /// The peer's process was started anew; dial it again.
    #[error("the peer was restarted")]
    Restarted,
    /// A newer connection to the same peer took its place.
    #[error("a newer connection took its place")]
    Replaced,
    /// Both sides dialled at once, and the other connection is kept.
    #[error("both sides dialled at once, and the other connection is kept")]
    Duplicate,
    /// All routes were silent for longer than the idle timeout.
    #[error("nothing was heard for longer than the idle timeout")]
    TimedOut,
    /// One side does not accept the other's hello.
    #[error("{0}")]
    Refused(Refusal),
    /// A node dialled itself.
    #[error("this is the node itself")]
    SelfDial,
    /// A relay does not serve this node; the text says why, and what to do.
    #[error("{0}")]
    Unserved(String),
    /// The peer is busy: it has as many handshakes or connections as it takes.
    #[error("the peer refused the connection: it is busy")]
    Busy,
    /// One side has banned the other.
    #[error("the peer is banned")]
    Banned,
    /// One side has as many peers as it takes.
    #[error("there are as many peers as the node takes")]
    Full,
    /// A filter of one side refused the other; the text says why.
    #[error("a filter refused the peer: {0}")]
    Filtered(String),
    /// The program of one side wanted the other gone.
    #[error("the program closed the connection")]
    Disconnected,
    /// One side only looked whether the other is there.
    #[error("it was only to see whether somebody is there")]
    Felt,
    /// One side took nothing of what the other had for it, for longer than that waits
    /// ([`LinkConfig::evict_after`](crate::LinkConfig::evict_after)).
    #[error("one side read nothing of what waited for it for too long; let its program take messages sooner")]
    Unread,
    /// One side had begun messages and not ended them while the other's memory for messages was used up
    /// ([`LinkConfig::unfinished_after`](crate::LinkConfig::unfinished_after)).
    #[error(
        "messages were begun and not ended while the other side's memory for them was used up; send fewer large ones at \
         once, or raise `link.peer_memory` and `link.memory` there"
    )]
    Unfinished,
    /// One side broke the protocol.
    #[error("the protocol was broken: {0}")]
    Misbehaved(String),
    /// A protocol of this name failed at one side, which gave up speaking it with the other one, or the whole connection
    /// ([`OnFailure`](crate::OnFailure)).
    #[error("protocol {0:?} failed at the program of one side, whose event `ProtocolFailed` says why")]
    Failed(String),
    /// An application ended it ([`Node::disconnect`](crate::Node::disconnect)).
    #[error("ended by the application with code {code}: {why}")]
    Dismissed {
        /// The application's code.
        code: u16,
        /// Its reason.
        why: String,
    },
    /// The connection goes on; only the protocol is not spoken any more.
    #[error("the protocol is not spoken any more")]
    Unregistered,
    /// QUIC gave the connection up.
    #[error("the connection was lost: {0}")]
    Lost(String),
}

impl Gone {
    /// What to close a connection with.
    pub(crate) fn to_goodbye(&self) -> Goodbye {
        let (code, detail) = match self {
            Gone::Refused(refusal) => return refusal.to_goodbye(),
            Gone::Duplicate => (DUPLICATE, String::new()),
            Gone::Misbehaved(detail) => (MISBEHAVED, detail.clone()),
            Gone::Unserved(why) => (UNSERVED, why.clone()),
            Gone::SelfDial => (SELF, String::new()),
            Gone::Banned => (BANNED, String::new()),
            Gone::Full => (FULL, String::new()),
            Gone::Filtered(why) => (FILTERED, why.clone()),
            Gone::Disconnected => (DISCONNECTED, String::new()),
            Gone::Felt => (FELT, String::new()),
            Gone::Unread => (UNREAD, String::new()),
            Gone::Unfinished => (UNFINISHED, String::new()),
            Gone::Replaced => (REPLACED, String::new()),
            Gone::Restarted => (RESTARTED, String::new()),
            Gone::Failed(protocol) => (FAILED, protocol.clone()),
            Gone::Dismissed { code, why } => (DISMISSED + u32::from(*code), why.clone()),
            Gone::Unregistered | Gone::Closed | Gone::Busy | Gone::TimedOut | Gone::Lost(_) => (CLOSED, String::new()),
        };
        Goodbye { code, detail }
    }

    fn from_goodbye(goodbye: &Goodbye) -> Self {
        match goodbye.code {
            DUPLICATE => Gone::Duplicate,
            CLOSED => Gone::Closed,
            MISBEHAVED => Gone::Misbehaved(goodbye.detail.clone()),
            UNSERVED => Gone::Unserved(goodbye.detail.clone()),
            SELF => Gone::SelfDial,
            BANNED => Gone::Banned,
            FULL => Gone::Full,
            FILTERED => Gone::Filtered(goodbye.detail.clone()),
            DISCONNECTED => Gone::Disconnected,
            FELT => Gone::Felt,
            UNREAD => Gone::Unread,
            UNFINISHED => Gone::Unfinished,
            REPLACED => Gone::Replaced,
            RESTARTED => Gone::Restarted,
            FAILED => Gone::Failed(goodbye.detail.clone()),
            code if code >= DISMISSED
                && let Ok(code) = u16::try_from(code - DISMISSED) =>
            {
                Gone::Dismissed { code, why: goodbye.detail.clone() }
            }
            code => match Refusal::from_goodbye(goodbye) {
                Some(refusal) => Gone::Refused(refusal),
                None => Gone::Lost(format!("closed by the peer with code {code}")),
            },
        }
    }

    /// Closes a connection for this reason.
    pub(crate) fn close(&self, connection: &quinn::Connection) {
        let goodbye = self.to_goodbye();
        connection.close(VarInt::from_u32(goodbye.code), goodbye.detail.as_bytes());
    }
}

impl From<ConnectionError> for Gone {
    fn from(error: ConnectionError) -> Self {
        match error {
            ConnectionError::ApplicationClosed(close) => Gone::from_goodbye(&Goodbye {
                code: u64::from(close.error_code).try_into().unwrap_or(u32::MAX),
                detail: String::from_utf8_lossy(&close.reason).into_owned(),
            }),
            ConnectionError::ConnectionClosed(close)
                if close.error_code == quinn::TransportErrorCode::CONNECTION_REFUSED =>
            {
                Gone::Busy
            }
            // A stateless reset: the peer's process does not know the connection any more (RFC 9000 §10.3).
            ConnectionError::Reset => Gone::Restarted,
            ConnectionError::TimedOut => Gone::TimedOut,
            ConnectionError::LocallyClosed => Gone::Closed,
            error => Gone::Lost(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_arrives_as_it_was_sent() {
        for reason in [
            Gone::Duplicate,
            Gone::Closed,
            Gone::Misbehaved("a byte too many".into()),
            Gone::SelfDial,
            Gone::Replaced,
            Gone::Restarted,
            Gone::Unserved("friends only".into()),
            Gone::Banned,
            Gone::Full,
            Gone::Filtered("one a household".into()),
            Gone::Disconnected,
            Gone::Felt,
            Gone::Unread,
            Gone::Unfinished,
            Gone::Failed("chat".into()),
            Gone::Dismissed { code: 7, why: "bye".into() },
        ] {
            assert_eq!(Gone::from_goodbye(&reason.to_goodbye()), reason);
        }
    }
}
