//! The operating system's network, with the datagrams counted that are sent.

use std::{
    io::{self, IoSliceMut},
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
};

use byway::net::{BoxFuture, Interface, Net, RecvMeta, TcpListener, TcpStream, Transmit, UdpSocket, os::Os};

#[derive(Debug)]
pub(crate) struct Counting(Arc<AtomicU64>);

#[derive(Debug)]
struct Socket {
    socket: Arc<dyn UdpSocket>,
    sent: Arc<AtomicU64>,
}

impl Counting {
    /// A network that adds to `sent`.
    pub(crate) fn new(sent: &Arc<AtomicU64>) -> Self {
        Counting(Arc::clone(sent))
    }
}

impl Net for Counting {
    fn bind_udp(&self, addr: SocketAddr) -> io::Result<Arc<dyn UdpSocket>> {
        Ok(Arc::new(Socket { socket: Os.bind_udp(addr)?, sent: Arc::clone(&self.0) }))
    }

    fn connect_tcp(&self, addr: SocketAddr) -> BoxFuture<'_, io::Result<Box<dyn TcpStream>>> {
        Os.connect_tcp(addr)
    }

    fn listen_tcp(&self, addr: SocketAddr) -> BoxFuture<'_, io::Result<Box<dyn TcpListener>>> {
        Os.listen_tcp(addr)
    }

    fn resolve<'a>(&'a self, host: &'a str, port: u16) -> BoxFuture<'a, io::Result<Vec<SocketAddr>>> {
        Os.resolve(host, port)
    }

    fn interfaces(&self) -> Vec<Interface> {
        Os.interfaces()
    }

    fn changed(&self) -> BoxFuture<'_, ()> {
        Os.changed()
    }
}

impl UdpSocket for Socket {
    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.socket.try_send(transmit)?;
        let segments = transmit.segment_size.map_or(1, |size| transmit.contents.len().div_ceil(size));
        self.sent.fetch_add(segments as u64, Ordering::Relaxed);
        Ok(())
    }

    fn writable(self: Arc<Self>) -> BoxFuture<'static, io::Result<()>> {
        Arc::clone(&self.socket).writable()
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        self.socket.poll_recv(cx, bufs, meta)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.socket.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.socket.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.socket.may_fragment()
    }
}
