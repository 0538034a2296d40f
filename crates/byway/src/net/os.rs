//! The operating system's network.

use std::{
    io::{self, IoSliceMut},
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};

use quinn::udp::{RecvMeta, Transmit, UdpSocketState};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf},
    net,
};
use tracing::{debug, warn};

use super::{BoxFuture, Net, TcpListener, TcpStream, UdpSocket};

/// Wanted size of a UDP socket's kernel buffers in bytes: 7 MiB hold 60 ms of a gigabit line.
pub const SOCKET_BUFFER: usize = 7 << 20;

/// Below this size in bytes bursts are lost inside the machine, which looks like loss on the network.
const SMALL_BUFFER: usize = 1 << 20;

/// How often the list of interfaces is compared with the last one.
const INTERFACE_POLL: Duration = Duration::from_secs(2);

/// The network of the operating system.
#[derive(Debug, Clone, Copy, Default)]
pub struct Os;

impl Net for Os {
    fn bind_udp(&self, addr: SocketAddr) -> io::Result<Arc<dyn UdpSocket>> {
        let socket = Socket::new(Domain::for_address(addr), Type::DGRAM, Some(Protocol::UDP))?;
        if addr.is_ipv6() {
            socket.set_only_v6(true)?; // one socket per family: the IPv4 socket has the same port
        }
        socket.set_nonblocking(true)?;
        socket.bind(&addr.into())?;
        let socket: std::net::UdpSocket = socket.into();
        let state = UdpSocketState::new((&socket).into())?;
        set_buffers(&state, &socket);
        Ok(Arc::new(OsUdpSocket {
            max_gso: state.max_gso_segments(),
            state: Mutex::new(Arc::new(state)),
            io: net::UdpSocket::from_std(socket)?,
        }))
    }

    fn connect_tcp(&self, addr: SocketAddr) -> BoxFuture<'_, io::Result<Box<dyn TcpStream>>> {
        Box::pin(async move {
            let stream = net::TcpStream::connect(addr).await?;
            stream.set_nodelay(true)?;
            Ok(Box::new(OsTcpStream(stream)) as Box<dyn TcpStream>)
        })
    }

    fn listen_tcp(&self, addr: SocketAddr) -> BoxFuture<'_, io::Result<Box<dyn TcpListener>>> {
        Box::pin(async move {
            let listener = net::TcpListener::bind(addr).await?;
            Ok(Box::new(OsTcpListener(listener)) as Box<dyn TcpListener>)
        })
    }

    fn resolve<'a>(&'a self, host: &'a str, port: u16) -> BoxFuture<'a, io::Result<Vec<SocketAddr>>> {
        Box::pin(async move { Ok(net::lookup_host((host, port)).await?.collect()) })
    }

    fn interfaces(&self) -> Vec<IpAddr> {
        let mut addrs: Vec<IpAddr> = match if_addrs::get_if_addrs() {
            Ok(interfaces) => interfaces.into_iter().filter(|i| i.is_oper_up()).map(|i| i.ip()).collect(),
            Err(error) => {
                warn!(%error, "cannot list this machine's interfaces; peers will learn no local address");
                Vec::new()
            }
        };
        addrs.sort_unstable();
        addrs.dedup();
        addrs
    }

    fn changed(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            let before = self.interfaces();
            loop {
                tokio::time::sleep(INTERFACE_POLL).await;
                if self.interfaces() != before {
                    return;
                }
            }
        })
    }
}

/// Asks the kernel for large buffers and says once if it grants much less.
fn set_buffers(state: &UdpSocketState, socket: &std::net::UdpSocket) {
    // The kernel clamps to its limit without an error, hence the reading back.
    let _ = state.set_send_buffer_size(socket.into(), SOCKET_BUFFER);
    let _ = state.set_recv_buffer_size(socket.into(), SOCKET_BUFFER);
    let granted = state.recv_buffer_size(socket.into()).unwrap_or(0);
    if granted < SMALL_BUFFER {
        debug!(granted, wanted = SOCKET_BUFFER, "small UDP receive buffer: raise net.core.rmem_max for fast lines");
    }
}

#[derive(Debug)]
struct OsUdpSocket {
    io: net::UdpSocket,
    /// Rebuilt when the kernel refused a plain datagram: one refusal turns offload off for good in the old state.
    state: Mutex<Arc<UdpSocketState>>,
    max_gso: usize,
}

impl OsUdpSocket {
    fn state(&self) -> Arc<UdpSocketState> {
        Arc::clone(&self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Gives the socket a fresh offload state, so that one bad destination does not slow down all others.
    fn rebuild(&self) {
        if let Ok(fresh) = UdpSocketState::new((&self.io).into()) {
            *self.state.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(fresh);
        }
    }
}

impl UdpSocket for OsUdpSocket {
    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let state = self.state();
        let sent = self.io.try_io(Interest::WRITABLE, || state.try_send((&self.io).into(), transmit));
        if sent.is_err() && state.max_gso_segments() < self.max_gso {
            self.rebuild();
        }
        sent
    }

    fn writable(self: Arc<Self>) -> BoxFuture<'static, io::Result<()>> {
        Box::pin(async move { self.io.writable().await })
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let state = self.state();
        loop {
            ready!(self.io.poll_recv_ready(cx))?;
            match self.io.try_io(Interest::READABLE, || state.recv((&self.io).into(), bufs, meta)) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return Poll::Ready(result),
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.io.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.max_gso
    }

    fn max_receive_segments(&self) -> usize {
        self.state().gro_segments()
    }

    fn may_fragment(&self) -> bool {
        self.state().may_fragment()
    }
}

#[derive(Debug)]
struct OsTcpStream(net::TcpStream);

impl TcpStream for OsTcpStream {
    fn peer_addr(&self) -> io::Result<SocketAddr> {
        self.0.peer_addr()
    }

    fn reset(self: Box<Self>) {
        // With a linger time of zero the kernel answers the close with RST instead of FIN.
        let _ = SockRef::from(&self.0).set_linger(Some(Duration::ZERO));
    }
}

impl AsyncRead for OsTcpStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for OsTcpStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

#[derive(Debug)]
struct OsTcpListener(net::TcpListener);

impl TcpListener for OsTcpListener {
    fn accept(&self) -> BoxFuture<'_, io::Result<Box<dyn TcpStream>>> {
        Box::pin(async move {
            let (stream, _) = self.0.accept().await?;
            stream.set_nodelay(true)?;
            Ok(Box::new(OsTcpStream(stream)) as Box<dyn TcpStream>)
        })
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }
}
