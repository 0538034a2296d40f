//! New mappings made in a known order within a moment: how the NAT allots ports shows only between neighbours.

use alloc::vec::Vec;
use core::net::SocketAddr;

use super::{
    ask::{Ask, Asks, Purpose, Tools},
    verdict::Sample,
};
use crate::nat::SocketId;

/// Fresh sockets in a burst. A NAT with endpoint-independent mapping makes one new mapping for each: three distances, of which one
/// may be lost.
const SOCKETS: usize = 4;

/// Servers that each socket asks: two show a difference, more would only fill the NAT's table.
const SERVERS: usize = 2;

#[derive(Debug)]
struct Fresh {
    socket: SocketId,
    /// Its own port; `None` until it is open.
    local: Option<u16>,
}

/// A burst under way.
#[derive(Debug)]
pub(super) struct Burst {
    sockets: Vec<Fresh>,
    servers: Vec<SocketAddr>,
    /// Sockets of which the driver has not said yet whether they are open.
    awaited: usize,
    samples: Vec<Sample>,
}

impl Burst {
    /// Opens sockets to ask the first of these servers by.
    pub(super) fn open(servers: impl Iterator<Item = SocketAddr>, ipv6: bool, tools: &mut Tools<'_>) -> Self {
        let sockets = (0..SOCKETS).map(|_| Fresh { socket: tools.open(ipv6), local: None }).collect();
        Burst { sockets, servers: servers.take(SERVERS).collect(), awaited: SOCKETS, samples: Vec::new() }
    }

    /// Takes in that a socket is open, or refused; false if it is none of this burst. The last one fires the burst.
    pub(super) fn opened(
        &mut self,
        socket: SocketId,
        local: Option<SocketAddr>,
        asks: &mut Asks,
        tools: &mut Tools<'_>,
    ) -> bool {
        let Some(at) = self.sockets.iter().position(|fresh| fresh.socket == socket) else {
            return false;
        };
        match (local, self.sockets.get_mut(at)) {
            (Some(local), Some(fresh)) => fresh.local = Some(local.port()),
            _ => drop(self.sockets.remove(at)),
        }
        self.awaited = self.awaited.saturating_sub(1);
        if self.awaited == 0 && self.samples.is_empty() {
            // server by server, so that the new mappings of one that is dead lie together
            for server in &self.servers {
                for fresh in &self.sockets {
                    let (socket, local, server) = (fresh.socket, fresh.local.unwrap_or_default(), *server);
                    self.samples.push(Sample { socket, local, server, port: None });
                    asks.begin(Ask::new(Purpose::Fresh, socket, server), tools);
                }
            }
        }
        true
    }

    pub(super) fn answered(&mut self, ask: &Ask, mapped: SocketAddr) {
        let sample = self.samples.iter_mut().find(|sample| sample.socket == ask.socket && sample.server == ask.to);
        if let Some(sample) = sample {
            sample.port = Some(mapped.port());
        }
    }

    /// What came back so far, in the order in which the requests left.
    pub(super) fn samples(&self) -> &[Sample] {
        &self.samples
    }

    /// Whether all requests are out and none is awaited any more.
    pub(super) fn is_over(&self, asks: &Asks) -> bool {
        self.awaited == 0 && !asks.any(Purpose::Fresh)
    }

    /// Ends the burst.
    pub(super) fn close(self, asks: &mut Asks, tools: &mut Tools<'_>) {
        asks.cancel(Purpose::Fresh);
        for fresh in self.sockets {
            tools.close(fresh.socket);
        }
    }
}
