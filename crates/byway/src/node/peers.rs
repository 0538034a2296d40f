//! The owner's say about peers: whom to know, whom to keep out.

use byway_proto::{
    PeerId, Rng, UnixTime,
    book::{Book, BookConfig, Contact, Record},
    switch::{Imported, NotDialing},
    text::prefix,
};

use super::{MAX_WHY, Node};
use crate::{
    config::Config,
    gone::Gone,
    store::{Opened, Store, StoreError},
    switch::{AddPeerError, Command},
};

impl Node {
    /// Ends the connection to a peer, which is told [`Gone::Dismissed`] with this code and reason; of the reason at most
    /// [`MAX_WHY`] bytes. `false` if the peer is not connected. Nothing more is sent to it, but what is queued already, on
    /// channels and on byte streams that were shut down, arrives first, as far as it does within
    /// [`LinkConfig::flush`](crate::LinkConfig::flush). A program that is behind there has ten seconds for what its channels'
    /// queues have no room for.
    pub fn disconnect(&self, peer: PeerId, code: u16, why: &str) -> bool {
        let why = prefix(why, MAX_WHY).to_owned();
        let Some(link) = self.core.switch.link(peer) else { return false };
        let deadline = self.core.config.link.flush;
        link.outbox.drain(); // nothing that is sent after this call
        self.core.tasks.spawn(async move {
            link.flush(deadline).await;
            link.close(Gone::Dismissed { code, why });
        });
        true
    }

    /// Keeps a peer out until `until` ([`UnixTime::NEVER`] for good) and closes its connection; known or not, connected or not.
    /// Returns when the ban is on the disk, if there is a [`Config::store`](crate::Config::store). After an error it holds all the same, and is
    /// tried again to be stored as long as the node runs.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use byway::{Config, Identity, Node, NotDialing, UnixTime, book::Contact};
    ///
    /// let node = Node::bind(Config::new(Identity::generate()).listen(([127, 0, 0, 1], 0).into())).await?;
    /// let peer = Identity::generate().id();
    /// let home = Contact { addrs: vec!["home.example:4433".parse()?], ..Contact::new(peer) };
    /// node.add_peer(home).await?;
    /// node.ban(peer, UnixTime::NEVER, "spam").await?;
    /// assert!(matches!(node.why_not_dialing(peer).await, Some(NotDialing::Banned { .. })));
    /// assert!(node.unban(peer).await? && node.known_peers().await.len() == 1);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn ban(&self, peer: PeerId, until: UnixTime, why: impl Into<String>) -> Result<(), StoreError> {
        let why = why.into();
        let banned = self.core.switch.ask(|reply| Command::Ban { peer, until, why, reply });
        banned.await.unwrap_or(Err(StoreError::Closed))
    }

    /// Lets a peer in again; `false` if it was not banned.
    pub async fn unban(&self, peer: PeerId) -> Result<bool, StoreError> {
        let unbanned = self.core.switch.ask(|reply| Command::Unban { peer, reply });
        unbanned.await.unwrap_or(Err(StoreError::Closed))
    }

    /// Writes a peer into the address book; names stay names.
    pub async fn add_peer(&self, contact: Contact) -> Result<(), AddPeerError> {
        let added = self.core.switch.ask(|reply| Command::AddPeer { contact, reply });
        added.await.unwrap_or(Err(AddPeerError::Closed))
    }

    /// Tells the address book that a peer was of use: it keeps its place before others that were reached.
    pub async fn mark_good(&self, peer: PeerId) {
        self.core.switch.send(Command::Mark(peer, true)).await;
    }

    /// Tells the address book that a peer was of no use, which is less than a ban: it is not dialled out of the book for an hour,
    /// and is let in all the same. A connection to it goes on.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use byway::{Config, Identity, Node, book::Contact};
    ///
    /// let node = Node::bind(Config::new(Identity::generate()).listen(([127, 0, 0, 1], 0).into())).await?;
    /// let peer = Identity::generate().id();
    /// let home = Contact { addrs: vec!["home.example:4433".parse()?], ..Contact::new(peer) };
    /// node.add_peer(home).await?;
    /// node.mark_bad(peer).await;
    /// node.disconnect(peer, 3, "it has nothing to tell");
    /// assert!(node.known_peers().await[0].tried.is_some());
    /// node.mark_good(peer).await; // it has mended its ways
    /// assert!(node.known_peers().await[0].good.is_some());
    /// # Ok(())
    /// # }
    /// ```
    pub async fn mark_bad(&self, peer: PeerId) {
        self.core.switch.send(Command::Mark(peer, false)).await;
    }

    /// All that the address book knows, bans included, in the order of the peers' ids; of private peers it has their bans alone.
    pub async fn known_peers(&self) -> Vec<Record> {
        self.core.switch.ask(|reply| Command::Records { reply }).await.unwrap_or_default()
    }

    /// What [`Node::import_peers`] of another node may take over: all that the address book knows, but nothing of private peers.
    pub async fn export_peers(&self) -> Vec<Record> {
        self.core.switch.ask(|reply| Command::Exports { reply }).await.unwrap_or_default()
    }

    /// Takes over what another node's address book knew. Of two bans of a peer the one that ends later holds; whoever is banned here stays
    /// so, and a peer that is banned by a row is disconnected as by [`Node::ban`].
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let on_loopback = || Config::new(Identity::generate()).listen(([127, 0, 0, 1], 0).into());
    /// use byway::{Config, Identity, Node, UnixTime};
    ///
    /// let (old, new) = (Node::bind(on_loopback()).await?, Node::bind(on_loopback()).await?);
    /// let peer = Identity::generate().id();
    /// old.ban(peer, UnixTime::NEVER, "spam").await?;
    /// let imported = new.import_peers(old.export_peers().await).await?;
    /// assert_eq!((imported.known, imported.banned), (0, 1));
    /// # Ok(())
    /// # }
    /// ```
    pub async fn import_peers(&self, records: Vec<Record>) -> Result<Imported, StoreError> {
        let imported = self.core.switch.ask(|reply| Command::Import { records, reply });
        imported.await.unwrap_or(Err(StoreError::Closed))
    }

    /// Why a peer is not dialled at this moment; `None` if the node is closed.
    pub async fn why_not_dialing(&self, peer: PeerId) -> Option<NotDialing> {
        self.core.switch.ask(|reply| Command::WhyNot { peer, reply }).await
    }
}

/// What an earlier process has kept, and where this one keeps it.
pub(super) struct Kept {
    pub(super) book: Book,
    pub(super) store: Option<Store>,
    /// What the NAT agent had learned.
    pub(super) learned: Option<Vec<u8>>,
}

/// Opens the store, if the node has one; without it, the book is empty.
pub(super) fn open_store(config: &Config, seed: &[u8; 32]) -> Result<Kept, StoreError> {
    let now = config.clock.unix();
    let (store, opened) = match &config.store {
        Some(path) => Store::open(path, now).map(|(store, opened)| (Some(store), opened))?,
        None => (None, Opened::default()),
    };
    let key = opened.head.as_ref().map_or_else(|| Rng::new(seed, "book").bytes(), |head| head.key);
    let mut limits = BookConfig::default();
    (limits.local, limits.hidden) = (config.peers.local, config.peers.private.clone());
    let mut book = Book::new(limits, config.identity.id(), key);
    for record in opened.records {
        book.restore(record, now);
    }
    if let Some(head) = opened.head {
        book.set_anchors(head.anchors);
    }
    Ok(Kept { book, store, learned: opened.nat })
}
