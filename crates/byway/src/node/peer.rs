//! A connected peer: what is known of the connection, and of what it carries.

use std::sync::Arc;

use byway_proto::PeerId;

use super::Node;
use crate::{core::Core, link::Link, status::PeerStatus};

/// A connection to a peer, which may have ended meanwhile.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let on_loopback = || Config::new(Identity::generate()).listen(([127, 0, 0, 1], 0).into());
/// use byway::{Channel, Config, Identity, Node, Protocol, To};
///
/// let (a, b) = (Node::bind(on_loopback()).await?, Node::bind(on_loopback()).await?);
/// let mut chat = Protocol::new("chat", 1..=1);
/// let (tx, _rx) = chat.channel(Channel::new(1));
/// let mut peers = a.register(chat)?;
/// # let mut theirs = Protocol::new("chat", 1..=1);
/// # let _channel = theirs.channel(Channel::new(1));
/// # let _theirs = b.register(theirs)?;
/// let peer = a.dial(b.ticket()).await?;
/// peers.next().await;
/// let _ = tx.send(&To::All, "hello".into());
/// let stats = a.peer(peer).ok_or("it is gone")?.stats().await;
/// for channel in &stats.channels {
///     println!("{} {:?}: {:?}, dropped {:?}", channel.protocol, channel.channel, channel.sent, channel.dropped);
/// }
/// for route in stats.routes.iter().filter(|route| route.selected) {
///     println!("{}, round trip {:?}, loss {}: {}", route.path, route.rtt, route.loss, route.why);
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Peer {
    core: Arc<Core>,
    link: Arc<Link>,
}

impl Node {
    /// The connection to a peer; `None` if it is not connected.
    pub fn peer(&self, peer: PeerId) -> Option<Peer> {
        let link = self.core.switch.link(peer)?;
        Some(Peer { core: Arc::clone(&self.core), link })
    }
}

impl Peer {
    /// The peer.
    pub fn id(&self) -> PeerId {
        self.link.peer
    }

    /// What each channel has carried and how fast, what waits, what was dropped and why, and every path with its delay and
    /// loss: what [`Node::status`] tells of this peer. Empty of both once the connection has ended.
    pub async fn stats(&self) -> PeerStatus {
        status(&self.core, &self.link).await
    }
}

pub(super) async fn status(core: &Core, link: &Arc<Link>) -> PeerStatus {
    let routes = core.agent.report(link.track.alias()).await;
    let selected = routes.iter().find(|route| route.selected);
    PeerStatus {
        id: link.peer,
        agent: link.hello().agent.clone(),
        path: selected.map(|route| route.path),
        rtt: selected.and_then(|route| route.rtt),
        connected: link.since.elapsed(),
        dialled: link.dialled,
        protocols: core.registry.status(Some(link.peer)),
        channels: core.registry.channels(Some(link.peer)),
        routes,
    }
}
