//! TCP, as far as a node needs it: ordered bytes both ways, half-close, reset, refusal, and the path's delay.
//!
//! Segments travel as packets do, through the same links, NATs and rules. A segment that is lost is sent again, for the
//! simulator knows that it was lost; there is no congestion control, only a window, and no acknowledgement but the
//! window's. Good enough to carry a relay's frames where UDP is blocked; not a model of TCP's throughput.

use std::{
    fmt,
    future::poll_fn,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use byway::net::{self, BoxFuture};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::{fabric::NodeId, world::Shared};

pub(crate) mod segments;

/// A TCP connection of a simulated host; made by [`Host::connect_tcp`](crate::Host::connect_tcp) and
/// [`TcpListener::accept`].
///
/// Up to 1 MiB that the other side has not read yet fits into it. Dropping it closes it, with a reset if something
/// arrived that nobody read.
pub struct TcpStream {
    shared: Arc<Shared>,
    key: u64,
    local: SocketAddr,
    remote: SocketAddr,
}

impl TcpStream {
    /// Connects from a host.
    pub(crate) async fn connect(shared: &Arc<Shared>, host: NodeId, remote: SocketAddr) -> io::Result<Self> {
        let (key, local) = shared.enter(|fabric, now| fabric.tcp_connect(now, host, remote))?;
        let stream = TcpStream { shared: Arc::clone(shared), key, local, remote };
        poll_fn(|cx| stream.shared.look(|fabric| fabric.tcp_connected(stream.key, cx))).await?;
        Ok(stream)
    }

    /// The address of this side.
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// The address of the other side, as seen from here.
    pub fn peer_addr(&self) -> SocketAddr {
        self.remote
    }

    /// Closes both directions at once so that the other side sees a reset, not an end of file.
    pub fn reset(self) {
        self.shared.enter(|fabric, now| fabric.tcp_reset(now, self.key));
    }
}

impl AsyncRead for TcpStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.shared.enter(|fabric, now| fabric.tcp_read(now, self.key, cx, buf))
    }
}

impl AsyncWrite for TcpStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.shared.enter(|fabric, now| fabric.tcp_write(now, self.key, cx, buf))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(())) // what is written is on its way
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.shared.enter(|fabric, now| fabric.tcp_finish(now, self.key));
        Poll::Ready(Ok(()))
    }
}

impl net::TcpStream for TcpStream {
    fn peer_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.remote)
    }

    fn reset(self: Box<Self>) {
        TcpStream::reset(*self);
    }
}

impl Drop for TcpStream {
    fn drop(&mut self) {
        self.shared.enter(|fabric, now| fabric.tcp_close(now, self.key));
    }
}

impl fmt::Debug for TcpStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TcpStream").field("local", &self.local).field("remote", &self.remote).finish()
    }
}

/// A TCP listener of a simulated host; made by [`Host::listen_tcp`](crate::Host::listen_tcp). Up to 128 connections
/// wait to be accepted; more wait outside.
pub struct TcpListener {
    shared: Arc<Shared>,
    host: NodeId,
    key: u64,
    local: SocketAddr,
}

impl TcpListener {
    /// Listens on a host.
    pub(crate) fn bind(shared: &Arc<Shared>, host: NodeId, addr: SocketAddr) -> io::Result<Self> {
        let (key, local) = shared.look(|fabric| fabric.tcp_listen(host, addr))?;
        Ok(TcpListener { shared: Arc::clone(shared), host, key, local })
    }

    /// Waits for the next connection.
    ///
    /// # Errors
    ///
    /// None today; the signature is that of other listeners.
    pub async fn accept(&self) -> io::Result<TcpStream> {
        let (key, local, remote) = poll_fn(|cx| self.shared.look(|fabric| fabric.tcp_accept(self.key, cx))).await;
        Ok(TcpStream { shared: Arc::clone(&self.shared), key, local, remote })
    }

    /// The address the listener is bound to.
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }
}

impl net::TcpListener for TcpListener {
    fn accept(&self) -> BoxFuture<'_, io::Result<Box<dyn net::TcpStream>>> {
        Box::pin(async move { Ok(Box::new(TcpListener::accept(self).await?) as Box<dyn net::TcpStream>) })
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.local)
    }
}

impl Drop for TcpListener {
    fn drop(&mut self) {
        self.shared.enter(|fabric, now| fabric.tcp_unlisten(now, self.host, self.key, self.local.port()));
    }
}

impl fmt::Debug for TcpListener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("TcpListener").field(&self.local).finish()
    }
}
