//! What the switch is told, and what it says.

use alloc::{string::String, vec::Vec};
use core::net::SocketAddr;

use super::NotDialing;
use crate::{
    PeerId, UnixTime,
    book::{Contact, Group},
};

/// Names a link; the caller numbers them upwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct LinkId(pub u64);

/// Names a dial; the machine numbers them upwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct DialId(pub u64);

/// Names an incoming connection whose other side has proven its key; the caller numbers them upwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct KnockId(pub u64);

/// What happens to the switch.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Input {
    /// The program wants a peer to be connected; [`Output::Connected`], [`Output::NotDialled`], or a dial follows, unless one is
    /// under way. If that fails, what it did not have is dialled next.
    Dial {
        /// Whom, and where it may be; without any address, it is looked for where the book has it.
        contact: Contact,
    },
    /// A dial's peer has answered and proven its key; [`Output::GoOn`] follows.
    Answered {
        /// The dial.
        dial: DialId,
    },
    /// A dial has ended without a link. Another one may follow, to what was named meanwhile.
    DialFailed {
        /// The dial.
        dial: DialId,
        /// How.
        why: DialFailure,
    },
    /// An incoming connection has proven its key and told its instance: may it go on?
    Knock {
        /// The connection.
        knock: KnockId,
        /// The peer.
        peer: PeerId,
        /// The instance in its hello.
        instance: u64,
        /// Where it comes from: its group, or its relay's.
        from: Group,
    },
    /// A filter's answer to [`Output::Ask`]; the text says why not.
    Filtered {
        /// The connection.
        knock: KnockId,
        /// The answer.
        verdict: Result<(), String>,
    },
    /// An incoming connection has come to nothing after [`Output::Admit`], or before any answer.
    KnockOver {
        /// The connection.
        knock: KnockId,
    },
    /// Both hellos are agreed; [`Output::Init`] or [`Output::Reject`] follows.
    Established(Up),
    /// A link goes by another address now.
    Moved {
        /// The link.
        link: LinkId,
        /// The group of that address.
        group: Group,
    },
    /// A link's connection is over.
    Ended {
        /// The link.
        link: LinkId,
    },
    /// A connected peer has named others, or itself.
    Heard {
        /// The group of the address that it is connected from.
        from: Group,
        /// What it said.
        contacts: Vec<Contact>,
    },
    /// Keep a peer out from now on.
    Ban {
        /// The peer.
        peer: PeerId,
        /// When that ends.
        until: UnixTime,
        /// The reason, for the owner.
        why: String,
    },
    /// Let a peer in again.
    Unban {
        /// The peer.
        peer: PeerId,
    },
    /// The program wants a peer to be gone; a persistent one is dialled again.
    Disconnect {
        /// The peer.
        peer: PeerId,
    },
    /// The calendar time now: at the start, and whenever it may have jumped.
    Wall(UnixTime),
    /// The node's own addresses, which are nobody else's.
    Own(Vec<SocketAddr>),
    /// Close everything, and begin nothing more.
    Stop,
    /// The time that [`Switch::poll_timeout`](super::Switch::poll_timeout) named has come.
    Timeout,
}

/// A link that both sides agreed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Up {
    /// Its name.
    pub link: LinkId,
    /// The peer.
    pub peer: PeerId,
    /// The instance in the peer's hello.
    pub instance: u64,
    /// How it came to be.
    pub by: By,
    /// Where its other end is: the group of its address, or its relay's.
    pub group: Group,
}

/// How a link came to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "a link has two ends")]
pub enum By {
    /// This node dialled.
    Dial(DialId),
    /// The peer did.
    Knock(KnockId),
}

/// Why a dial came to nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum DialFailure {
    /// Nobody answered.
    Unreached,
    /// Somebody else's key answered.
    OtherKey,
    /// The peer answered, and would not have it.
    Refused,
    /// The node itself answered.
    Itself,
}

/// Why a dial was begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Cause {
    /// The program asked for it.
    Asked,
    /// The peer is one of the persistent ones.
    Persistent,
    /// The book named it.
    Chosen,
    /// The book is empty, and this peer knows others.
    Seed,
    /// To see whether somebody is there whom others named.
    Feeler,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Output {
    /// Dial; names are to be resolved anew each time.
    Dial {
        /// The dial's name.
        dial: DialId,
        /// Whom, and where it may be.
        contact: Contact,
        /// Why.
        cause: Cause,
    },
    /// Whether a dial that was answered may go on.
    GoOn {
        /// The dial.
        dial: DialId,
        /// If not, the connection is the duplicate, or no longer wanted.
        goes_on: bool,
    },
    /// The peer that the program wants is connected already.
    Connected {
        /// The peer.
        peer: PeerId,
    },
    /// The peer that the program wants is not dialled, or its dial is given up.
    NotDialled {
        /// The peer.
        peer: PeerId,
        /// Why.
        why: NotDialing,
    },
    /// Ask the filters about an incoming connection; [`Input::Filtered`] is due within
    /// [`FILTER_DEADLINE`](super::FILTER_DEADLINE).
    Ask {
        /// The connection.
        knock: KnockId,
        /// The peer.
        peer: PeerId,
    },
    /// An incoming connection may go on; a slot is held for it.
    Admit {
        /// The connection.
        knock: KnockId,
    },
    /// An incoming connection may not go on: close it with this reason.
    TurnAway {
        /// The connection.
        knock: KnockId,
        /// Why.
        why: Close,
    },
    /// A link is taken in: its protocols may be prepared, and messages may come.
    Init {
        /// The link.
        link: LinkId,
    },
    /// A link counts from now on: tell everybody.
    Added {
        /// The link.
        link: LinkId,
    },
    /// A link is not taken in: close it with this reason; nobody is told.
    Reject {
        /// The link.
        link: LinkId,
        /// Why.
        why: Close,
    },
    /// Close a link's connection with this reason.
    Close {
        /// The link.
        link: LinkId,
        /// Why.
        why: Close,
    },
    /// A link no longer counts: tell everybody, and forget it. The last word on it.
    Removed {
        /// The link.
        link: LinkId,
        /// Why; `None` if its connection ended by itself.
        why: Option<Close>,
    },
}

/// Why the switch closes a connection; the reason goes to the other side unchanged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Close {
    /// The node is closing.
    #[error("the node is closed")]
    Stopped,
    /// The peer is banned.
    #[error("the peer is banned")]
    Banned,
    /// There is no slot for it.
    #[error("there are as many peers as this node takes")]
    Full,
    /// A filter would not have it.
    #[error("a filter refused: {0}")]
    Filtered(String),
    /// A filter did not answer in time.
    #[error("a filter did not answer in time")]
    FilterTimeout,
    /// Both sides dialled, and the other connection is kept.
    #[error("both sides dialled at once, and the other connection is kept")]
    Duplicate,
    /// A newer connection of the same process took its place.
    #[error("a newer connection took its place")]
    Replaced,
    /// The peer's process was started anew.
    #[error("the peer was restarted")]
    Restarted,
    /// It is the node itself.
    #[error("it is the node itself")]
    Itself,
    /// The program wanted the peer gone.
    #[error("the program closed it")]
    Asked,
    /// It was only to see whether somebody is there.
    #[error("it was only to see whether somebody is there")]
    Felt,
}
