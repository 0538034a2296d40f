//! UDP sockets.

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    future::poll_fn,
    io::{self, IoSliceMut},
    net::{IpAddr, SocketAddr},
    sync::Arc,
    task::{Context, Poll, Waker, ready},
};

use bytes::Bytes;
use byway::net::{self, BoxFuture};
use quinn::udp::{EcnCodepoint, RecvMeta, Transmit};

use crate::{
    fabric::{Body, Fabric, Flight, NodeId, Stage, enlist},
    time::Time,
    world::Shared,
};

/// Bytes that a socket's inbox holds before further datagrams are dropped: what a node asks its system for, and more
/// than 5 Gbit/s bring within one millisecond tick.
pub const MAX_INBOX: usize = 4 * 1024 * 1024;

/// What a datagram in an inbox costs on top of its payload, so that empty ones cannot pile up without end.
const ARRIVAL_COST: usize = 128;

/// Longest payload of a UDP datagram over IPv4: 65,535 bytes less 20 of IP and 8 of UDP header.
const MAX_PAYLOAD: usize = 65_507;

/// Most segments in one [`Transmit`], as on Linux.
const MAX_SEGMENTS: usize = 64;

/// A UDP socket of a simulated host; made by [`Host::bind_udp`](crate::Host::bind_udp).
///
/// Sending never waits unless the host has a send buffer ([`Host::set_send_buffer`](crate::Host::set_send_buffer)):
/// what the network has no room for is dropped there. The inbox holds [`MAX_INBOX`] bytes.
pub struct UdpSocket {
    shared: Arc<Shared>,
    host: NodeId,
    key: u64,
    local: SocketAddr,
}

impl UdpSocket {
    /// Opens a socket on a host.
    pub(crate) fn bind(shared: &Arc<Shared>, host: NodeId, addr: SocketAddr) -> io::Result<Self> {
        let (key, local) = shared.look(|fabric| {
            let role = fabric.topology.host_mut(host);
            if !addr.ip().is_unspecified() && !role.is_own(addr.ip()) {
                return Err(io::Error::from(io::ErrorKind::AddrNotAvailable));
            }
            let key = fabric.inboxes.next;
            let port = role.udp.bind(addr, key).ok_or(io::ErrorKind::AddrInUse)?;
            role.traffic.sockets += 1;
            fabric.inboxes.open();
            Ok((key, SocketAddr::new(addr.ip(), port)))
        })?;
        Ok(UdpSocket { shared: Arc::clone(shared), host, key, local })
    }

    /// Opens a socket that hears a multicast group and sends from one of the host's addresses.
    pub(crate) fn join(shared: &Arc<Shared>, host: NodeId, group: SocketAddr, from: IpAddr) -> io::Result<Self> {
        if !group.ip().is_multicast() || group.is_ipv4() != from.is_ipv4() {
            return Err(io::Error::from(io::ErrorKind::InvalidInput));
        }
        let key = shared.look(|fabric| {
            let role = fabric.topology.host_mut(host);
            if !role.is_own(from) {
                return Err(io::Error::from(io::ErrorKind::AddrNotAvailable));
            }
            let key = fabric.inboxes.next;
            role.groups.push((group, key));
            fabric.inboxes.open();
            Ok(key)
        })?;
        Ok(UdpSocket { shared: Arc::clone(shared), host, key, local: SocketAddr::new(from, group.port()) })
    }

    /// Sends one datagram; it may get lost, also silently for want of a route.
    ///
    /// # Errors
    ///
    /// `InvalidInput` if the address family is not the socket's, the port is 0 or `payload` exceeds 65,507 bytes;
    /// `WouldBlock` if the host has a send buffer and it is full.
    pub fn send_to(&self, payload: &[u8], to: SocketAddr) -> io::Result<()> {
        let transmit = Transmit { destination: to, ecn: None, contents: payload, segment_size: None, src_ip: None };
        net::UdpSocket::try_send(self, &transmit)
    }

    /// Waits for the next datagram; its length and source. What does not fit into `buf` is cut off.
    ///
    /// # Errors
    ///
    /// None today; the signature is that of other UDP sockets.
    pub async fn recv_from(&self, buf: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        poll_fn(|cx| {
            let mut meta = [RecvMeta::default()];
            ready!(net::UdpSocket::poll_recv(self, cx, &mut [IoSliceMut::new(buf)], &mut meta))?;
            Poll::Ready(Ok((meta[0].len, meta[0].addr)))
        })
        .await
    }

    /// The address the socket is bound to.
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// Refuses what an operating system refuses.
    fn check(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let to = transmit.destination;
        let segment = transmit.segment_size.unwrap_or(transmit.contents.len());
        let split = transmit.segment_size.is_some();
        let problem = if to.is_ipv4() != self.local.is_ipv4() {
            "the destination is not of the socket's address family"
        } else if to.port() == 0 || to.ip().is_unspecified() {
            "the destination has no address or no port"
        } else if segment > MAX_PAYLOAD || transmit.contents.len() > MAX_PAYLOAD {
            "the payload is longer than UDP can carry"
        } else if split && (segment == 0 || transmit.contents.len().div_ceil(segment) > MAX_SEGMENTS) {
            "the payload has empty segments or more than 64"
        } else {
            return Ok(());
        };
        Err(io::Error::new(io::ErrorKind::InvalidInput, problem))
    }

    /// Sends the segments of a checked transmit.
    fn launch(&self, fabric: &mut Fabric, now: Time, transmit: &Transmit<'_>) {
        let to = transmit.destination;
        let host = fabric.topology.host(self.host);
        let bound = transmit.src_ip.filter(|ip| host.is_own(*ip)).unwrap_or(self.local.ip());
        // Without an address of the family the packet leaves unspecified, and is dropped for want of a route.
        let source = host.source(bound, to.ip()).unwrap_or(bound);
        let from = SocketAddr::new(source, self.local.port());
        let contents = Bytes::copy_from_slice(transmit.contents);
        let segment = transmit.segment_size.unwrap_or(contents.len()).max(1);
        let mut start = 0;
        loop {
            let end = contents.len().min(start + segment);
            let payload = if end - start == contents.len() { contents.clone() } else { contents.slice(start..end) };
            let body = Body::Datagram { payload, ecn: transmit.ecn };
            fabric.launch(now, Flight { from, to, sender: self.host, stage: Stage::Sent, body });
            start = end;
            if start == contents.len() {
                return;
            }
        }
    }
}

impl net::UdpSocket for UdpSocket {
    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.check(transmit)?;
        self.shared.enter(|fabric, now| {
            if is_blocked(fabric, now, self.host) {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            self.launch(fabric, now, transmit);
            Ok(())
        })
    }

    fn writable(self: Arc<Self>) -> BoxFuture<'static, io::Result<()>> {
        Box::pin(poll_fn(move |cx| {
            self.shared.enter(|fabric, now| {
                if !is_blocked(fabric, now, self.host) {
                    return Poll::Ready(Ok(()));
                }
                fabric.wait_writable(now, self.host, cx);
                Poll::Pending
            })
        }))
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        self.shared.look(|fabric| {
            let inbox = fabric.inboxes.get_mut(self.key).expect("an inbox lives as long as its socket");
            let mut count = 0;
            for (buf, meta) in bufs.iter_mut().zip(meta) {
                let Some(arrival) = inbox.pop() else { break };
                let len = arrival.payload.len().min(buf.len());
                buf[..len].copy_from_slice(&arrival.payload[..len]);
                meta.addr = arrival.from;
                meta.len = len;
                meta.stride = len;
                meta.ecn = arrival.ecn;
                meta.dst_ip = Some(arrival.to);
                count += 1;
            }
            if count == 0 {
                enlist(&mut inbox.waiters, cx);
                return Poll::Pending;
            }
            Poll::Ready(Ok(count))
        })
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.local)
    }

    fn max_transmit_segments(&self) -> usize {
        MAX_SEGMENTS
    }

    fn max_receive_segments(&self) -> usize {
        1
    }

    fn may_fragment(&self) -> bool {
        false
    }
}

impl Drop for UdpSocket {
    fn drop(&mut self) {
        let inbox = self.shared.look(|fabric| {
            let host = fabric.topology.host_mut(self.host);
            host.udp.release(self.local.port(), self.key);
            host.groups.retain(|(_, key)| *key != self.key);
            fabric.inboxes.close(self.key)
        });
        drop(inbox); // unlocked: the wakers in it may own anything
    }
}

impl fmt::Debug for UdpSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("UdpSocket").field(&self.local).finish()
    }
}

/// Whether the uplink of `host` holds more than its send buffer.
fn is_blocked(fabric: &Fabric, now: Time, host: NodeId) -> bool {
    let limit = fabric.topology.host(host).send_buffer;
    limit.is_some_and(|limit| fabric.topology.node(host).up.backlog(now) > limit)
}

/// The inboxes of all open sockets; looked up, never iterated.
#[derive(Debug, Default)]
pub(crate) struct Inboxes {
    inboxes: HashMap<u64, Inbox>,
    next: u64,
}

impl Inboxes {
    /// An open socket's inbox.
    pub(crate) fn get_mut(&mut self, key: u64) -> Option<&mut Inbox> {
        self.inboxes.get_mut(&key)
    }

    fn open(&mut self) {
        self.inboxes.insert(self.next, Inbox::default());
        self.next += 1;
    }

    fn close(&mut self, key: u64) -> Option<Inbox> {
        self.inboxes.remove(&key)
    }
}

/// What has arrived for a socket and was not received yet.
#[derive(Debug, Default)]
pub(crate) struct Inbox {
    queue: VecDeque<Arrival>,
    cost: usize,
    /// Tasks that wait for something to arrive.
    pub(crate) waiters: Vec<Waker>,
}

/// A datagram that has arrived.
#[derive(Debug)]
pub(crate) struct Arrival {
    pub(crate) from: SocketAddr,
    pub(crate) to: IpAddr,
    pub(crate) payload: Bytes,
    pub(crate) ecn: Option<EcnCodepoint>,
}

impl Inbox {
    /// Takes a datagram in, or gives it back if the inbox is full.
    pub(crate) fn push(&mut self, arrival: Arrival) -> Result<(), Arrival> {
        let cost = arrival.payload.len() + ARRIVAL_COST;
        if self.cost + cost > MAX_INBOX {
            return Err(arrival);
        }
        self.cost += cost;
        self.queue.push_back(arrival);
        Ok(())
    }

    fn pop(&mut self) -> Option<Arrival> {
        let arrival = self.queue.pop_front()?;
        self.cost -= arrival.payload.len() + ARRIVAL_COST;
        Some(arrival)
    }
}
