//! What one peer may send and be sent.

use std::time::Duration;

use byway_proto::schedule::{Rate, RateError};

use crate::{
    link::budget::{RESERVE, SMALL},
    protocol::MAX_MESSAGE,
};

/// Memory of one peer unless it is told otherwise: three of the largest messages, or 57 of the usual largest ones, beside
/// the reserve for small ones.
const PEER_MEMORY: usize = 64 << 20;

/// The least memory of one peer: one of the largest messages with its overhead, beside the reserve.
const LEAST_PEER_MEMORY: usize = 24 << 20;
const _: () = assert!(LEAST_PEER_MEMORY > RESERVE + MAX_MESSAGE + SMALL);

/// Memory of all peers: eight that use theirs up.
const MEMORY: usize = 512 << 20;

/// What may wait for all peers to be sent: a hundred channels with full queues.
const SEND_MEMORY: usize = 512 << 20;

/// The least of that: a channel's queue as of the default has room.
const LEAST_SEND_MEMORY: usize = 4 << 20;

/// How long a peer may take for a message, unless it is told otherwise, while others wait for its memory: the largest one needs
/// 7 s at 20 Mbit/s.
const UNFINISHED_AFTER: Duration = Duration::from_secs(30);

/// The range of that.
const UNFINISHED_RANGE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(3_600));

/// How long a peer may take nothing, unless it is told otherwise: twice the minute for which a program may stall without
/// anybody's notice.
const EVICT_AFTER: Duration = Duration::from_secs(120);

/// The range of that.
const EVICT_RANGE: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(3_600));

/// How long the end of a connection waits for what is queued: 5 MB at 20 Mbit/s, and nobody minds the pause.
const FLUSH: Duration = Duration::from_secs(2);

/// The longest such wait: a node has to close.
const MAX_FLUSH: Duration = Duration::from_secs(60);

/// Limits on each peer's connection.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::time::Duration;
/// use byway::{BindError, Config, Identity, Node, Rate};
///
/// let mut config = Config::new(Identity::generate());
/// config.link.send_rate = Some(Rate::new(2_000_000).burst(500_000)); // bytes a second, and at once
/// config.link.evict_after = Some(Duration::from_secs(30));
/// config.link.peer_memory = 32 << 20;
/// config.link.memory = 16 << 20; // a mistake: all have less than one
/// assert!(matches!(Node::bind(config).await, Err(BindError::Config(_))));
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct LinkConfig {
    /// What is sent to each peer in all; no limit if `None`. Control messages count, but do not wait.
    pub send_rate: Option<Rate>,
    /// What is taken from each peer in all, datagrams and byte streams too; no limit if `None`. What comes faster waits at
    /// the peer; datagrams are dropped.
    pub receive_rate: Option<Rate>,
    /// Bytes of one peer's messages in the making and of those that wait for the program; at least 24 MiB, so that the largest
    /// message has room. QUIC's windows, 33 MiB a peer, come on top. A peer whose memory is used up waits.
    pub peer_memory: usize,
    /// The same for all peers together; 256 KiB of each peer may come on top, so that no peer waits for another one. At least
    /// [`LinkConfig::peer_memory`].
    pub memory: usize,
    /// Bytes of messages and byte streams that may wait to be sent, of all peers together, beside 64 KiB of each channel and stream, so
    /// that no peer waits for another one; at least 4 MiB. A message to many peers counts for each. Where it is used up, a
    /// channel is full though its own queue is not.
    pub send_memory: usize,
    /// How long a peer may take for one message while somebody waits for memory that it holds, before its connection is ended
    /// with [`Gone::Unfinished`](crate::Gone::Unfinished): 1 s to 1 h, and in addition as long as all that it holds takes at
    /// 8 Mbit/s, or at 512 kbit/s while only its own messages wait.
    pub unfinished_after: Duration,
    /// How long a peer may take nothing of what waits for it before its connection is ended with
    /// [`Gone::Unread`](crate::Gone::Unread): 10 s to 1 h, or never if `None`. Time in which no way to it answers does not
    /// count, and a channel that nobody reads does not either as long as anything else goes on. Byte streams that are paused never
    /// count, whatever they keep waiting. A program that takes fewer
    /// than 32 messages in this time looks like one that takes none.
    pub evict_after: Option<Duration>,
    /// How long the end of a connection waits for what is queued ([`Node::disconnect`](crate::Node::disconnect)); at most
    /// a minute.
    pub flush: Duration,
}

impl Default for LinkConfig {
    fn default() -> Self {
        LinkConfig {
            send_rate: None,
            receive_rate: None,
            peer_memory: PEER_MEMORY,
            memory: MEMORY,
            send_memory: SEND_MEMORY,
            unfinished_after: UNFINISHED_AFTER,
            evict_after: Some(EVICT_AFTER),
            flush: FLUSH,
        }
    }
}

/// A limit that cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LinkConfigError {
    /// A rate is of no use.
    #[error("`link.{name}`: {why}")]
    Rate {
        /// The setting.
        name: &'static str,
        /// What is wrong with it.
        why: RateError,
    },
    /// The largest message would have no room.
    #[error("`link.peer_memory` is {0} bytes; the largest message needs {LEAST_PEER_MEMORY}")]
    PeerMemory(usize),
    /// One peer would have more than all.
    #[error("`link.memory` is {0} bytes, less than `link.peer_memory`; raise the one or lower the other")]
    Memory(usize),
    /// Too little may wait to be sent.
    #[error("`link.send_memory` is {0} bytes; choose {LEAST_SEND_MEMORY} at least")]
    SendMemory(usize),
    /// The time that a peer has for one message is out of its range.
    #[error("`link.unfinished_after` is {0:?}; choose between 1 s and 1 h")]
    UnfinishedAfter(Duration),
    /// The time for which a peer may take nothing is out of its range.
    #[error("`link.evict_after` is {0:?}; choose between 10 s and 1 h, or switch it off")]
    EvictAfter(Duration),
    /// The end of a connection would wait for too long.
    #[error("`link.flush` is {0:?}; choose at most a minute")]
    Flush(Duration),
}

impl LinkConfig {
    pub(super) fn check(&self) -> Result<(), LinkConfigError> {
        for (name, rate) in [("send_rate", self.send_rate), ("receive_rate", self.receive_rate)] {
            rate.map_or(Ok(()), Rate::check).map_err(|why| LinkConfigError::Rate { name, why })?;
        }
        if self.peer_memory < LEAST_PEER_MEMORY {
            return Err(LinkConfigError::PeerMemory(self.peer_memory));
        }
        if self.memory < self.peer_memory {
            return Err(LinkConfigError::Memory(self.memory));
        }
        if self.send_memory < LEAST_SEND_MEMORY {
            return Err(LinkConfigError::SendMemory(self.send_memory));
        }
        if !(UNFINISHED_RANGE.0..=UNFINISHED_RANGE.1).contains(&self.unfinished_after) {
            return Err(LinkConfigError::UnfinishedAfter(self.unfinished_after));
        }
        if let Some(after) = self.evict_after.filter(|after| !(EVICT_RANGE.0..=EVICT_RANGE.1).contains(after)) {
            return Err(LinkConfigError::EvictAfter(after));
        }
        if self.flush > MAX_FLUSH {
            return Err(LinkConfigError::Flush(self.flush));
        }
        Ok(())
    }
}
