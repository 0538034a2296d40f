//! What the switch is asked.

use std::sync::Arc;

use byway_proto::{
    PeerId, UnixTime,
    book::{Contact, Record},
    switch::{DialId, Imported, KnockId, NotDialing},
};
use tokio::sync::oneshot;

use super::AddPeerError;
use crate::{
    dial::{DialError, Target},
    gone::Gone,
    link::Link,
    net::routes::Via,
    protocol::OnFailure,
    store::StoreError,
};

/// A stranger with a proven key.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Knock {
    pub(crate) peer: PeerId,
    /// The instance in its hello.
    pub(crate) instance: u64,
    /// By which way it came.
    pub(crate) via: Option<Via>,
}

/// What the switch is asked.
pub(crate) enum Command {
    Dial {
        target: Target,
        reply: oneshot::Sender<Result<PeerId, DialError>>,
    },
    /// A dial's peer has answered and proven its key; may the dial go on?
    Handshaken {
        dial: DialId,
        reply: oneshot::Sender<bool>,
    },
    /// A dial has come to nothing.
    DialFailed {
        dial: DialId,
        error: DialError,
    },
    /// May an incoming connection go on?
    Vet {
        knock: Knock,
        reply: oneshot::Sender<Result<KnockId, Gone>>,
    },
    /// An incoming connection that might go on has come to nothing.
    KnockOver(KnockId),
    Filtered {
        knock: KnockId,
        verdict: Result<(), String>,
    },
    /// A link goes by another route.
    Moved(Arc<Link>),
    /// A link's connection has ended.
    Ended {
        link: Arc<Link>,
        reason: Gone,
    },
    /// A protocol failed with a peer.
    Failed(Failure),
    /// The node's protocols or addresses have changed.
    Announce,
    /// The node is registered at other relays.
    TellRelays,
    /// A relay says that a peer registered with this instance.
    Anew {
        peer: PeerId,
        instance: u64,
    },
    /// Keep a peer out; the answer comes when that is on the disk.
    Ban {
        peer: PeerId,
        until: UnixTime,
        why: String,
        reply: oneshot::Sender<Result<(), StoreError>>,
    },
    Unban {
        peer: PeerId,
        reply: oneshot::Sender<Result<bool, StoreError>>,
    },
    /// Take the owner's word for where a peer is.
    AddPeer {
        contact: Contact,
        reply: oneshot::Sender<Result<(), AddPeerError>>,
    },
    /// Take rows over that were exported elsewhere.
    Import {
        records: Vec<Record>,
        reply: oneshot::Sender<Result<Imported, StoreError>>,
    },
    /// What a peer that asks is told of others.
    Tell {
        asker: PeerId,
        reply: oneshot::Sender<Vec<Contact>>,
    },
    /// What a peer says of itself and others; the answer is how many peers are known now.
    Heard {
        peer: PeerId,
        contacts: Vec<Contact>,
        reply: oneshot::Sender<usize>,
    },
    /// All that is known of peers.
    Records {
        reply: oneshot::Sender<Vec<Record>>,
    },
    /// What another node may take over of it.
    Exports {
        reply: oneshot::Sender<Vec<Record>>,
    },
    /// The program's word on a peer: it was of use, or was not.
    Mark(PeerId, bool),
    Disconnect(PeerId),
    WhyNot {
        peer: PeerId,
        reply: oneshot::Sender<NotDialing>,
    },
}

/// A protocol failed with a link's peer: its task did, or its program took nothing of what waits.
pub(crate) struct Failure {
    pub(crate) link: Arc<Link>,
    pub(crate) protocol: u32,
    pub(crate) why: String,
    pub(crate) on_failure: OnFailure,
}
