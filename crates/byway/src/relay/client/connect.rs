//! The control connection to a relay.

use std::{net::SocketAddr, sync::Arc};

use byway_proto::addr::{HostAddr, candidate::is_probeable};

use super::Client;
use crate::{dial, gone::Gone, link::establish::Established, net::routes::Via};

/// Addresses of one relay that are tried at once.
const MAX_ADDRS: usize = 4;

impl Client {
    pub(super) async fn connect(&mut self) -> Result<(Established, SocketAddr), String> {
        let core = Arc::clone(&self.core);
        let addrs = self.resolve().await?;
        let track = core.mux.routes.dial(core.mux.now());
        for addr in &addrs {
            track.lock().add(Via::Direct(*addr), false);
        }
        let connected = async {
            let connection = core.endpoint.dial(&track, self.relay.id).await.map_err(|e| e.to_string())?;
            dial::hello(&core, &track, connection, core.hello(true)).await.map_err(|e| e.to_string())
        };
        let result = connected.await.and_then(|established| {
            let offers = established.link.agreed.read().relay;
            if !offers {
                established.link.close(Gone::Closed);
                return Err("the node there does not relay; use another relay".to_owned());
            }
            let via = established.link.track.via().ok_or("no route is left")?;
            Ok((established, via.remote()))
        });
        if result.is_err() {
            core.retire(&track);
        }
        result
    }

    async fn resolve(&self) -> Result<Vec<SocketAddr>, String> {
        let mut addrs = Vec::new();
        for host in &self.relay.addrs {
            match host {
                HostAddr::Socket(addr) => addrs.push(*addr),
                HostAddr::Name(name, port) => {
                    let found = self.core.net.resolve(name, *port).await;
                    addrs.extend(found.map_err(|error| format!("cannot resolve {name}: {error}"))?);
                }
            }
        }
        // A ticket or a peer may name any relay, and a relay's name may lead anywhere.
        let loopback = self.shared.lock().loopback;
        addrs.retain(|addr| self.core.mux.sockets.towards(*addr).is_some() && is_probeable(*addr, loopback).is_ok());
        addrs.truncate(MAX_ADDRS);
        if addrs.is_empty() { Err("it has no address that this node can send to".into()) } else { Ok(addrs) }
    }
}
