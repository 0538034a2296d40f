//! A relay's decisions: who may have datagrams forwarded, to whom, and how much.
//!
//! Control is an ordinary authenticated link: a client registers, and opens allocations to other clients. Data is plain
//! UDP, `[0x81][allocation id][sealed packet]`, forwarded one to one between the two registered addresses of an
//! allocation, unchanged and with the same id both ways, like TURN's ChannelData (RFC 8656 §12). The relay cannot read
//! it, never answers it, and forwards nothing that does not come from the address of an authenticated client.

mod clients;
mod config;
mod fair;
mod held;
pub mod homes;
mod server;
mod ways;

use alloc::vec::Vec;
use core::{net::SocketAddr, time::Duration};

pub use config::{Access, RelayConfig, RelayConfigError};
pub use held::{MAX_HELD, MAX_HELD_BYTES, MAX_HELD_PER_ALLOCATION, MAX_HELD_PER_CLIENT};
pub use server::RelayServer;
pub use ways::{Opener, ways};

use crate::{gate::Source, hello::Control, id::PeerId};

/// Links to the relay, and clients that it remembers: at about 400 bytes each this is 4 MB beside their QUIC state.
pub const MAX_CLIENTS: usize = 10_000;

/// Allocations that one client may have opened: as many peers as a busy node talks to through one relay.
pub const MAX_ALLOCATIONS_PER_CLIENT: usize = 256;

/// Allocations in all: at about 150 bytes each this is 10 MB.
pub const MAX_ALLOCATIONS: usize = 65_536;

/// An allocation that carried nothing for this long is forgotten: longer than a standby route stays unprobed.
pub const ALLOCATION_IDLE: Duration = Duration::from_secs(300);

/// How often idle allocations are looked for; they live for up to this much longer.
pub const SWEEP: Duration = Duration::from_secs(30);

/// How long datagrams of an unknown allocation wait for its `Open`, which travels beside them.
pub const HOLD: Duration = Duration::from_millis(200);

/// Allocations that one client may open at once: all of them, after a relay has restarted.
pub const OPEN_BURST: u64 = MAX_ALLOCATIONS_PER_CLIENT as u64;

/// Allocations that one client may open a second; each costs a message to somebody else.
pub const OPEN_RATE: u64 = 32;

/// Bytes a second that one client may send: 100 Mbit/s.
pub const CLIENT_RATE: u64 = 12_500_000;

/// Bytes that one client may send at once: 80 ms at [`CLIENT_RATE`], a window's worth.
pub const CLIENT_BURST: u64 = 1_000_000;

/// Bytes that the opener of an allocation may send before the other end has sent any there: some dials' first packets. Nobody has
/// to take more than that from a stranger whom he does not answer.
pub const MAX_UNANSWERED: u64 = 64 << 10;

/// How long a client whose link has ended may still send what it has to say to its peers: a node that closes says goodbye to all at once,
/// and its goodbyes to peers may come behind the one to its relay.
pub const FAREWELL: Duration = Duration::from_secs(1);

/// Links from one source, an IPv4 address or an IPv6 /64: a carrier's NAT has many customers behind one.
pub const MAX_CLIENTS_PER_SOURCE: usize = 1_000;

/// What happens to a relay, apart from data.
///
/// Addresses must be in one form throughout, here and in [`RelayServer::forward`]: either all IPv4 addresses plain or all
/// mapped into IPv6.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Input {
    /// A link has come up whose hellos agreed on relaying.
    Connected {
        /// The caller's number for the link, never used again.
        conn: u64,
        /// Who is at the other end.
        peer: PeerId,
        /// Its instance (see [`Hello::instance`](crate::hello::Hello::instance)).
        instance: u64,
        /// Whence its packets come.
        addr: SocketAddr,
        /// As whose it counts: that of the address, or of what stands behind it.
        source: Source,
    },
    /// A link is gone.
    Disconnected {
        /// The link.
        conn: u64,
    },
    /// The packets of a link come from another address now, which is proven.
    Rebound {
        /// The link.
        conn: u64,
        /// Its new address.
        addr: SocketAddr,
        /// As whose it counts now.
        source: Source,
    },
    /// A message came on a link's control stream.
    Control {
        /// The link.
        conn: u64,
        /// The message; all but `Register` and `Open` are counted and ignored.
        message: Control,
    },
    /// The relay will stop: new clients and allocations are refused, what there is goes on for a while.
    Drain {
        /// After how long all links are closed.
        within: Duration,
    },
    /// From now on it has these settings; links of those whom it no longer serves are closed, all others stay, whatever a limit says.
    /// Its other port for STUN stays as it is.
    Configure(RelayConfig),
    /// The time that [`RelayServer::poll_timeout`] named has come.
    Timeout,
}

/// What a relay wants done.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Output {
    /// Send a message on a link's control stream.
    Send {
        /// The link.
        conn: u64,
        /// The message.
        message: Control,
    },
    /// Send a datagram that was held.
    Transmit {
        /// The receiver.
        to: SocketAddr,
        /// The whole datagram, prefix included.
        bytes: Vec<u8>,
    },
    /// Close a link; the machine has forgotten it already.
    Close {
        /// The link.
        conn: u64,
        /// Why.
        reason: CloseReason,
    },
}

/// Why a relay closes a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
#[non_exhaustive]
pub enum CloseReason {
    /// The same peer has registered over another link.
    #[error("the same identity has registered again from elsewhere: run one node per identity")]
    Replaced,
    /// The relay has as many clients as it may.
    #[error("the relay is full: use another relay")]
    Full,
    /// The relay serves its operator's friends, and the peer is none.
    #[error("the relay serves its friends only: ask its operator to add this node's id, or use another relay")]
    Stranger,
    /// As many clients as may come from one address.
    #[error("the relay has too many clients from this address: use another relay")]
    Crowded,
    /// The relay is about to stop.
    #[error("the relay is about to stop: use another relay")]
    Draining,
}

/// The size of what came: one datagram, or several that the kernel has joined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Load {
    /// Bytes in all, each datagram's prefix included.
    pub len: usize,
    /// Datagrams.
    pub segments: usize,
}

/// What is to be done with datagrams of one allocation.
// Exhaustive: the caller's packet path must do something with each of the three.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Forward {
    /// Send them on, unchanged.
    To(SocketAddr),
    /// Give each to [`RelayServer::hold`]: the allocation is not open yet.
    Hold,
    /// Do nothing; they are counted.
    Drop(RelayDrop),
}

/// Why a relay did not forward a datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum RelayDrop {
    /// The allocation is unknown and no client has the sender's address.
    Stranger,
    /// The sender's address is not one of the allocation's two.
    NotInPair,
    /// The other end has not answered yet, and has been sent enough.
    Unanswered,
    /// The sender's client has used up its bytes.
    RateLimited,
    /// The other end has no link to the relay at present.
    PeerAbsent,
    /// No more may be held, for this allocation, for this client or in all, or the datagram is too long to be held.
    HoldFull,
    /// No `Open` came in time.
    HoldExpired,
    /// The allocation was refused, opened by somebody else, or its client went away.
    HoldOrphaned,
}

/// What a relay has done so far.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RelayCounters {
    /// Bytes forwarded, prefixes included.
    pub bytes_forwarded: u64,
    /// Datagrams forwarded.
    pub datagrams_forwarded: u64,
    /// Datagrams that were held, whatever became of them.
    pub datagrams_held: u64,
    /// Links refused.
    pub refused: u64,
    /// Registrations, repeated ones included.
    pub registered: u64,
    /// Allocations opened, repeated ones not included.
    pub opened: u64,
    /// Allocations refused.
    pub open_refused: u64,
    /// Allocations that were idle, or whose relay or ends went away.
    pub forgotten: u64,
    /// Messages of unknown links, and messages that are not for a relay.
    pub control_ignored: u64,
    /// Datagrams dropped.
    pub drops: RelayDrops,
}

/// Datagrams that a relay has dropped, by [`RelayDrop`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RelayDrops {
    /// Dropped as [`RelayDrop::Stranger`].
    pub stranger: u64,
    /// Dropped as [`RelayDrop::NotInPair`].
    pub not_in_pair: u64,
    /// Dropped as [`RelayDrop::Unanswered`].
    pub unanswered: u64,
    /// Dropped as [`RelayDrop::RateLimited`].
    pub rate_limited: u64,
    /// Dropped as [`RelayDrop::PeerAbsent`].
    pub peer_absent: u64,
    /// Dropped as [`RelayDrop::HoldFull`].
    pub hold_full: u64,
    /// Dropped as [`RelayDrop::HoldExpired`].
    pub hold_expired: u64,
    /// Dropped as [`RelayDrop::HoldOrphaned`].
    pub hold_orphaned: u64,
}

impl RelayDrops {
    /// Datagrams dropped for any reason.
    pub fn total(&self) -> u64 {
        let RelayDrops { stranger, not_in_pair, unanswered, .. } = self;
        let RelayDrops { rate_limited, peer_absent, hold_full, hold_expired, hold_orphaned, .. } = self;
        stranger + not_in_pair + unanswered + rate_limited + peer_absent + hold_full + hold_expired + hold_orphaned
    }

    fn count(&mut self, reason: RelayDrop, datagrams: usize) {
        let counter = match reason {
            RelayDrop::Stranger => &mut self.stranger,
            RelayDrop::NotInPair => &mut self.not_in_pair,
            RelayDrop::Unanswered => &mut self.unanswered,
            RelayDrop::RateLimited => &mut self.rate_limited,
            RelayDrop::PeerAbsent => &mut self.peer_absent,
            RelayDrop::HoldFull => &mut self.hold_full,
            RelayDrop::HoldExpired => &mut self.hold_expired,
            RelayDrop::HoldOrphaned => &mut self.hold_orphaned,
        };
        *counter += datagrams as u64;
    }
}
