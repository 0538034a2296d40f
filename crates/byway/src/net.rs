//! The seam between Byway and a network: the operating system's ([`os`]), or one in memory (`byway-sim`).
//!
//! Everything that the node knows of the outside world passes through [`Net`] and [`UdpSocket`]; nothing else in this
//! crate opens a socket, resolves a name or lists an interface.

pub(crate) mod http;
pub(crate) mod lan;
pub(crate) mod mux;
pub mod os;
pub(crate) mod portmap;
pub(crate) mod routes;
pub(crate) mod sockets;
pub(crate) mod track;
pub(crate) mod wss;

use std::{
    fmt::Debug,
    future::Future,
    io::{self, IoSliceMut},
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

pub use byway_proto::{
    addr::interface::{Interface, InterfaceKind},
    nat::portmap::{Dialect, Gateway, Port, Transport, UpnpAnswer, UpnpRefusal, UpnpRequest},
};
pub use quinn::udp::{RecvMeta, Transmit};
use tokio::io::{AsyncRead, AsyncWrite};

/// A boxed future, as the object-safe seams return it.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A network: what a node may ask of the machine it runs on.
pub trait Net: Debug + Send + Sync + 'static {
    /// Opens a UDP socket on `addr`; port 0 lets the network choose one. An IPv6 socket takes IPv6 only.
    fn bind_udp(&self, addr: SocketAddr) -> io::Result<Arc<dyn UdpSocket>>;

    /// Opens a UDP socket that hears what the link of `interface` sends to `group`, this machine included, and that sends
    /// there with the interface's address and a TTL of 255. Other programs may hear the same group and port.
    fn bind_multicast(&self, group: SocketAddr, interface: &Interface) -> io::Result<Arc<dyn UdpSocket>> {
        let (_, _) = (group, interface);
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Opens a TCP connection to `addr`.
    fn connect_tcp(&self, addr: SocketAddr) -> BoxFuture<'_, io::Result<Box<dyn TcpStream>>>;

    /// Opens a TCP listener on `addr`; port 0 lets the network choose one.
    fn listen_tcp(&self, addr: SocketAddr) -> BoxFuture<'_, io::Result<Box<dyn TcpListener>>>;

    /// The addresses of `host`, a name or a literal address, each with `port`.
    fn resolve<'a>(&'a self, host: &'a str, port: u16) -> BoxFuture<'a, io::Result<Vec<SocketAddr>>>;

    /// The addresses of this machine's interfaces that are up, loopback included, in a stable order.
    fn interfaces(&self) -> Vec<Interface>;

    /// Waits until the answer of [`Net::interfaces`] may have changed since this call; any number of callers may wait at once.
    fn changed(&self) -> BoxFuture<'_, ()>;

    /// The default gateways of this machine, the preferred one first; each is asked to map ports.
    fn gateways(&self) -> Vec<Gateway> {
        Vec::new()
    }

    /// What speaks UPnP with the gateways, for one node; `None` where nothing does.
    fn upnp(&self) -> Option<Arc<dyn Upnp>> {
        None
    }
}

/// Speaks UPnP-IGD with gateways: HTTP and XML, which a simulated network need not have.
pub trait Upnp: Debug + Send + Sync + 'static {
    /// Carries out a request, within [`UPNP_TIMEOUT`](byway_proto::nat::portmap::UPNP_TIMEOUT). Only the gateway's own address may be
    /// spoken with, whoever else answers.
    fn request(self: Arc<Self>, gateway: Gateway, request: UpnpRequest) -> BoxFuture<'static, UpnpAnswer>;
}

/// A UDP socket with segmentation offload, as far as its network has it.
pub trait UdpSocket: Debug + Send + Sync + 'static {
    /// Sends what `transmit` holds, or says `WouldBlock`.
    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()>;

    /// As [`UdpSocket::try_send`], but the datagram passes `hop_limit` routers at most, where the network can see to that.
    /// Sends of other tasks by the same socket must not overlap.
    fn try_send_limited(&self, transmit: &Transmit<'_>, hop_limit: u8) -> io::Result<()> {
        let _ = hop_limit;
        self.try_send(transmit)
    }

    /// Waits until [`UdpSocket::try_send`] is worth another try; any number of callers may wait at once.
    fn writable(self: Arc<Self>) -> BoxFuture<'static, io::Result<()>>;

    /// Receives into `bufs`; `meta` tells of each buffer its source, length and segment size. Never `Ready(Ok(0))`.
    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>>;

    /// The address the socket is bound to.
    fn local_addr(&self) -> io::Result<SocketAddr>;

    /// How many segments one [`Transmit`] may hold; one, unless the network has an offload for more.
    fn max_transmit_segments(&self) -> usize {
        1
    }

    /// How many segments one receive buffer may hold.
    fn max_receive_segments(&self) -> usize;

    /// Whether the network may split a datagram on its way (`false` where "don't fragment" is set). If it may, no larger
    /// datagrams than 1,200 bytes are tried.
    fn may_fragment(&self) -> bool {
        true
    }
}

/// A TCP connection: reading, writing, and a half-close by `poll_shutdown`.
pub trait TcpStream: AsyncRead + AsyncWrite + Debug + Send + Sync + Unpin + 'static {
    /// The address of the other side.
    fn peer_addr(&self) -> io::Result<SocketAddr>;

    /// Closes both directions at once so that the other side sees a reset (RST), not an end of file.
    fn reset(self: Box<Self>);
}

/// A TCP listener.
pub trait TcpListener: Debug + Send + Sync + 'static {
    /// Waits for the next connection.
    fn accept(&self) -> BoxFuture<'_, io::Result<Box<dyn TcpStream>>>;

    /// The address the listener is bound to.
    fn local_addr(&self) -> io::Result<SocketAddr>;
}
