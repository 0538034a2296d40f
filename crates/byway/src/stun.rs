//! The STUN servers that the user names.

use std::{io, sync::Arc, time::Duration};

use byway_proto::addr::HostAddr;
use futures_util::future::join_all;

use crate::{
    agent::{self, ServerSource},
    core::Core,
};

/// Addresses of one STUN server that are asked: one of each family.
const MAX_ADDRS: usize = 2;

/// The first and the longest pause before a name that does not resolve is looked up again: at the start the network may be away.
const RETRY: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(300));

/// Tells the agent of the STUN servers that the configuration names, each as soon as its name resolves.
pub(crate) async fn tell_all(core: Arc<Core>) {
    join_all(core.config.stun.iter().map(async |server| {
        let mut pause = RETRY.0;
        while let Err(error) = tell(&core, server).await {
            if pause == RETRY.0 {
                tracing::warn!(%error, "a STUN server's name does not resolve; check `stun`, and that this machine's DNS works");
            }
            tokio::select! {
                biased;
                () = core.tasks.stopped() => return,
                () = tokio::time::sleep(pause) => pause = (pause * 2).min(RETRY.1),
                () = core.net.changed() => pause = RETRY.0 * 2,
            }
        }
    }))
    .await;
}

/// Tells the agent the addresses of a STUN server; whoever uses relays alone asks nobody.
pub(crate) async fn tell(core: &Core, server: &HostAddr) -> io::Result<()> {
    let addrs = match server {
        _ if core.config.relay_only => return Ok(()),
        HostAddr::Socket(addr) => vec![*addr],
        HostAddr::Name(name, port) | HostAddr::Wss(name, port) => core.net.resolve(name, *port).await?,
    };
    let (source, addrs) = (ServerSource::Listed, addrs.into_iter().take(MAX_ADDRS).collect());
    core.agent.send(agent::Command::Servers { source, addrs }).await;
    Ok(())
}
