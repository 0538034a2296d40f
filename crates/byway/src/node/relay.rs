//! Relays and STUN servers while the node runs: those that it uses, and the relay that it is.

use std::{io, time::Duration};

use byway_proto::{
    PeerAddr,
    addr::HostAddr,
    relay::{RelayConfig, homes::MAX_RELAYS},
};

use super::Node;
use crate::{config::ConfigError, stun};

impl Node {
    /// Chooses from a further relay, as if it had been configured; an error says that there are
    /// [`MAX_RELAYS`](crate::MAX_RELAYS) already.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let on_loopback = || Config::new(Identity::generate()).listen(([127, 0, 0, 1], 0).into());
    /// use byway::{Config, Event, Identity, Node, PeerAddr, RelayConfig};
    ///
    /// let mut config = on_loopback(); // of another machine
    /// config.relay = Some(RelayConfig::default());
    /// let relay = Node::bind(config).await?;
    /// let node = Node::bind(on_loopback()).await?;
    /// let mut events = node.events();
    /// node.add_relay(&PeerAddr::new(relay.id(), relay.addrs()))?;
    /// while !matches!(events.recv().await, Some(Event::RelayUp { .. })) {}
    /// assert_eq!(node.ticket().relays.len(), 1, "peers are told of it");
    /// # Ok(())
    /// # }
    /// ```
    pub fn add_relay(&self, relay: &PeerAddr) -> Result<(), ConfigError> {
        self.core.relays.add(relay, self.core.mux.now())
    }

    /// Asks a further STUN server, as if it had been configured; an error says that its name does not resolve.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let on_loopback = || Config::new(Identity::generate()).listen(([127, 0, 0, 1], 0).into());
    /// use byway::{Config, HostAddr, Identity, Node};
    ///
    /// let node = Node::bind(on_loopback()).await?;
    /// let server: HostAddr = "127.0.0.1:3478".parse()?; // `stun.example:3478` is resolved first
    /// node.add_stun(&server).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn add_stun(&self, server: &HostAddr) -> io::Result<()> {
        stun::tell(&self.core, server).await
    }

    /// Replaces the relays to choose from; connections that use one that is no longer among them move to another.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let on_loopback = || Config::new(Identity::generate()).listen(([127, 0, 0, 1], 0).into());
    /// # let text = format!("{}@127.0.0.1:9", Identity::generate().id());
    /// use byway::{Config, ConfigError, Identity, Node, PeerAddr};
    ///
    /// let node = Node::bind(on_loopback()).await?;
    /// let relay: PeerAddr = text.parse()?; // `ID@relay.example:4477`
    /// node.set_relays(&[relay])?;
    /// let own = PeerAddr::new(node.id(), node.addrs());
    /// assert_eq!(node.set_relays(&[own]), Err(ConfigError::OwnRelay));
    /// node.set_relays(&[])?; // none any more
    /// # Ok(())
    /// # }
    /// ```
    pub fn set_relays(&self, relays: &[PeerAddr]) -> Result<(), ConfigError> {
        if relays.len() > MAX_RELAYS {
            return Err(ConfigError::TooManyRelays(relays.len()));
        }
        if relays.iter().any(|relay| relay.id == self.id()) {
            return Err(ConfigError::OwnRelay);
        }
        self.core.relays.set(relays, self.core.mux.now());
        Ok(())
    }

    /// Gives this node's relay other settings: limits hold for new clients, rates for all at once, and links of those whom it no
    /// longer serves are closed. Nothing if the node is no relay; it becomes one only by
    /// [`Config::relay`](crate::Config::relay).
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let on_loopback = || Config::new(Identity::generate()).listen(([127, 0, 0, 1], 0).into());
    /// # let friend = Identity::generate().id();
    /// use byway::{Access, Config, Identity, Node, RelayConfig};
    ///
    /// let mut config = on_loopback();
    /// config.relay = Some(RelayConfig::default());
    /// let relay = Node::bind(config).await?;
    /// let mut limits = RelayConfig::default();
    /// limits.access = Access::Friends([friend].into());
    /// limits.total_rate = Some(10_000_000); // bytes a second
    /// relay.set_relay(limits)?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn set_relay(&self, config: RelayConfig) -> Result<(), ConfigError> {
        config.check()?;
        if let Some(shell) = &self.core.serving {
            shell.configure(&self.core, config);
        }
        Ok(())
    }

    /// Tells the clients of a relay that it will stop within `deadline`, and takes no new ones.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let on_loopback = || Config::new(Identity::generate()).listen(([127, 0, 0, 1], 0).into());
    /// # use byway::{Config, Identity, Node, RelayConfig};
    /// # let mut config = on_loopback();
    /// # config.relay = Some(RelayConfig::default());
    /// # let relay = Node::bind(config).await?;
    /// use std::time::Duration;
    ///
    /// let deadline = Duration::from_millis(100); // half a minute, where clients have to move
    /// relay.drain(deadline);
    /// tokio::time::sleep(deadline).await;
    /// relay.close().await;
    /// # Ok(())
    /// # }
    /// ```
    pub fn drain(&self, deadline: Duration) {
        if let Some(shell) = &self.core.serving {
            shell.drain(&self.core, deadline);
        }
    }
}
