//! The configuration, read again while the node runs, without a connection lost: by `byway reload`, or on SIGHUP.

use std::sync::Arc;

use byway::PeerAddr;

use super::{Daemon, lock};
use crate::{
    config::FileConfig,
    control::event::{Change, Reloaded},
    failure::Failure,
    signals,
};

/// Reads the configuration again whenever a signal asks for it, until the node ends.
pub(super) async fn watch(daemon: Arc<Daemon>) {
    let mut hangups = signals::Hangups::listen();
    loop {
        tokio::select! {
            biased;
            _ = daemon.ended() => return,
            () = hangups.next() => {}
        }
        match daemon.reload() {
            Ok(Reloaded { changed, restart }) => {
                let changed: Vec<_> = changed.iter().map(|change| &*change.key).collect();
                tracing::info!(changed = changed.join(", "), "the configuration was read again");
                if !restart.is_empty() {
                    tracing::warn!(keys = restart.join(", "), "these keys take effect with the next start only");
                }
            }
            Err(failure) => tracing::warn!(%failure, "the configuration was not taken over"),
        }
    }
}

impl Daemon {
    /// Reads the configuration again, and lets the node follow what may change while it runs: all of that or nothing.
    pub(super) fn reload(&self) -> Result<Reloaded, Failure> {
        let mut known = lock(&self.file);
        let stays = |failure: Failure| {
            Failure::new(failure.code, format!("{failure}; the node goes on with the configuration that it had"))
        };
        let new = known.read_again().map_err(stays)?;
        self.follow(&known, &new).map_err(stays)?;
        let changes = known.changes(&new).into_iter();
        let mut changed: Vec<_> = changes.map(|(key, what)| Change { key: key.into(), what }).collect();
        let mut restart: Vec<_> = self.settings.file.needs_restart(&new).into_iter().map(String::from).collect();
        if self.settings.needs_restart_to_relay(&new) {
            changed.retain(|change| !change.key.starts_with("relay."));
            restart.push("relay".into());
        }
        *known = new;
        Ok(Reloaded { changed, restart })
    }

    /// Follows the file's relays, beside those that commands brought, and how it wants others relayed.
    fn follow(&self, old: &FileConfig, new: &FileConfig) -> Result<(), Failure> {
        let mut relays = lock(&self.relays);
        let brought = relays.iter().filter(|relay| !old.relays.iter().any(|known| known.id == relay.id)).cloned();
        let mut next: Vec<PeerAddr> = new.relays.clone();
        let brought: Vec<_> = brought.filter(|relay| !next.iter().any(|known| known.id == relay.id)).collect();
        next.extend(brought);
        self.node.set_relays(&next).map_err(Failure::usage)?;
        *relays = next;
        if let Some(config) = self.settings.relaying_by(new) {
            self.node.set_relay(config).map_err(Failure::usage)?;
        }
        Ok(())
    }
}
