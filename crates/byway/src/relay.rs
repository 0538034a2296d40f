//! Relays: how a node uses them, and how it is one.

pub(crate) mod client;
mod links;
pub(crate) mod listener;
pub(crate) mod server;
pub(crate) mod table;
pub(crate) mod tls;

use std::{future::Future, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    time,
};
use tracing::debug;

use crate::{core::Core, net::wss::WebSocket};

/// How long a WebSocket stays open after it is no longer needed: the goodbyes of QUIC must still leave.
const LINGER: Duration = Duration::from_secs(1);

/// Carries a WebSocket's datagrams until it ends, or for a little while after `unneeded` or the node's end.
pub(crate) async fn carry<S>(core: &Core, websocket: WebSocket<S>, unneeded: impl Future<Output = ()>)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let addr = websocket.addr();
    let lingered = async {
        tokio::select! {
            biased;
            () = core.tasks.stopped() => {}
            () = unneeded => {}
        }
        time::sleep(LINGER).await;
    };
    tokio::select! {
        biased;
        why = websocket.run() => debug!(%addr, %why, "WebSocket ended"),
        () = lingered => {}
    }
}
