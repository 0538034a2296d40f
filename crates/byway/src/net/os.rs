//! The operating system's network.

mod gateways;
mod upnp;

use std::{
    io::{self, IoSliceMut},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6},
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};

use if_addrs::IfAddr;
use quinn::udp::{RecvMeta, Transmit, UdpSocketState};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf},
    net,
    time::{self, Instant},
};
use tracing::{debug, warn};

use super::{BoxFuture, Gateway, Interface, InterfaceKind, Net, TcpListener, TcpStream, UdpSocket, Upnp};

/// Wanted size of a UDP socket's kernel buffers in bytes: 7 MiB hold 60 ms of a gigabit line.
pub const SOCKET_BUFFER: usize = 7 << 20;

/// Below this size in bytes bursts are lost inside the machine, which looks like loss on the network.
const SMALL_BUFFER: usize = 1 << 20;

/// How many routers an ordinary datagram may pass (IANA's recommended default).
const HOP_LIMIT: u32 = 64;

/// TCP connections that the kernel keeps until they are accepted.
const TCP_BACKLOG: i32 = 1_024;

/// How often the list of interfaces is compared with the last one.
const INTERFACE_POLL: Duration = Duration::from_secs(2);

/// How old a list of interfaces may be that is given out again: each peer is told of them, and to list them costs as much as a
/// tenth of a handshake. A change is noticed later than that anyhow.
const INTERFACES_AGE: Duration = Duration::from_millis(500);

/// The machine's interfaces, when they were listed last; one list for all nodes of a process.
static INTERFACES: Mutex<Option<(Instant, Vec<Interface>)>> = Mutex::new(None);

/// What multicast DNS is sent with, so that receivers can tell that no router passed it on (RFC 6762 §11).
const MULTICAST_TTL: u32 = 255;

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
        Ok(Arc::new(OsUdpSocket::new(socket, state)?))
    }

    fn bind_multicast(&self, group: SocketAddr, interface: &Interface) -> io::Result<Arc<dyn UdpSocket>> {
        let socket: std::net::UdpSocket = multicast_socket(group, interface)?.into();
        let state = UdpSocketState::new((&socket).into())?;
        Ok(Arc::new(OsUdpSocket::new(socket, state)?))
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
            let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
            if addr.is_ipv6() {
                socket.set_only_v6(true)?;
            }
            #[cfg(unix)]
            socket.set_reuse_address(true)?; // connections of the last process that are not forgotten yet
            socket.set_nonblocking(true)?;
            socket.bind(&addr.into())?;
            socket.listen(TCP_BACKLOG)?;
            Ok(Box::new(OsTcpListener(net::TcpListener::from_std(socket.into())?)) as Box<dyn TcpListener>)
        })
    }

    fn resolve<'a>(&'a self, host: &'a str, port: u16) -> BoxFuture<'a, io::Result<Vec<SocketAddr>>> {
        Box::pin(async move { Ok(net::lookup_host((host, port)).await?.collect()) })
    }

    fn interfaces(&self) -> Vec<Interface> {
        let mut listed = INTERFACES.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let (_, interfaces) = match listed.take() {
            Some((at, interfaces)) if now.saturating_duration_since(at) < INTERFACES_AGE => {
                listed.insert((at, interfaces))
            }
            _ => listed.insert((now, list_interfaces())),
        };
        interfaces.clone()
    }

    fn changed(&self) -> BoxFuture<'_, ()> {
        let before = self.interfaces(); // now, not at the first poll: a change between the two would be missed
        Box::pin(async move {
            loop {
                time::sleep(INTERFACE_POLL).await;
                if self.interfaces() != before {
                    return;
                }
            }
        })
    }

    fn gateways(&self) -> Vec<Gateway> {
        gateways::gateways()
    }

    fn upnp(&self) -> Option<Arc<dyn Upnp>> {
        Some(Arc::<upnp::OsUpnp>::default())
    }
}

fn list_interfaces() -> Vec<Interface> {
    let mut addrs: Vec<Interface> = match if_addrs::get_if_addrs() {
        Ok(interfaces) => interfaces.iter().filter(|i| i.is_oper_up()).map(interface).collect(),
        Err(error) => {
            warn!(%error, "cannot list this machine's interfaces; peers will learn no local address");
            Vec::new()
        }
    };
    addrs.sort_unstable();
    addrs.dedup();
    addrs
}

fn interface(interface: &if_addrs::Interface) -> Interface {
    let prefix = match &interface.addr {
        IfAddr::V4(addr) => addr.prefixlen,
        IfAddr::V6(addr) => addr.prefixlen,
    };
    let kind = InterfaceKind::of(&interface.name, interface.ip(), interface.is_p2p());
    Interface::new(interface.ip(), prefix, interface.index.unwrap_or(0), kind)
}

fn multicast_socket(group: SocketAddr, interface: &Interface) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(group), Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_nonblocking(true)?;
    socket.set_reuse_address(true)?; // the system's own responder has the port too
    #[cfg(any(target_vendor = "apple", target_os = "freebsd", target_os = "netbsd", target_os = "openbsd"))]
    socket.set_reuse_port(true)?;
    match (group.ip(), interface.ip) {
        (IpAddr::V4(ip), IpAddr::V4(own)) => {
            socket.join_multicast_v4(&ip, &own)?;
            socket.set_multicast_if_v4(&own)?;
            socket.set_multicast_ttl_v4(MULTICAST_TTL)?;
            socket.set_multicast_loop_v4(true)?;
            #[cfg(target_os = "linux")]
            socket.set_multicast_all_v4(false)?; // what other sockets joined on other interfaces is not ours
        }
        (IpAddr::V6(ip), IpAddr::V6(_)) => {
            socket.set_only_v6(true)?;
            socket.join_multicast_v6(&ip, interface.index)?;
            socket.set_multicast_if_v6(interface.index)?;
            socket.set_multicast_hops_v6(MULTICAST_TTL)?;
            socket.set_multicast_loop_v6(true)?;
            #[cfg(target_os = "linux")]
            socket.set_multicast_all_v6(false)?;
        }
        _ => return Err(io::Error::new(io::ErrorKind::InvalidInput, "the group is not of the interface's family")),
    }
    // Bound to the group, the socket takes no unicast away from the system's own responder; Windows cannot do that.
    let addr = match group {
        SocketAddr::V4(_) if cfg!(windows) => (Ipv4Addr::UNSPECIFIED, group.port()).into(),
        SocketAddr::V6(_) if cfg!(windows) => (Ipv6Addr::UNSPECIFIED, group.port()).into(),
        SocketAddr::V4(_) => group,
        SocketAddr::V6(group) => SocketAddrV6::new(*group.ip(), group.port(), 0, interface.index).into(),
    };
    socket.bind(&addr.into())?;
    Ok(socket)
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
    /// As the system named it at the start, which does not change.
    local: SocketAddr,
    /// Rebuilt when a refusal was the destination's fault: each turns offload off for good in the old state.
    state: Mutex<Arc<UdpSocketState>>,
}

impl OsUdpSocket {
    fn new(socket: std::net::UdpSocket, state: UdpSocketState) -> io::Result<Self> {
        let local = socket.local_addr()?;
        Ok(OsUdpSocket { io: net::UdpSocket::from_std(socket)?, local, state: Mutex::new(Arc::new(state)) })
    }

    fn state(&self) -> Arc<UdpSocketState> {
        Arc::clone(&self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Gives the socket a fresh offload state, so that one bad destination does not slow down all others.
    fn rebuild(&self) {
        if let Ok(fresh) = UdpSocketState::new((&self.io).into()) {
            *self.state.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(fresh);
        }
    }

    fn send(&self, state: &UdpSocketState, transmit: &Transmit<'_>) -> io::Result<()> {
        let send = || state.try_send((&self.io).into(), transmit);
        match self.io.try_io(Interest::WRITABLE, send) {
            // The runtime does not know yet that a new socket can send; of a full one it has just learned.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => send(),
            sent => sent,
        }
    }

    /// Sends without offload. What follows the first datagram is lost where the socket is full: to say so would send the
    /// first one twice.
    fn send_each(&self, state: &UdpSocketState, transmit: &Transmit<'_>, segment: usize) -> io::Result<()> {
        let mut datagrams = transmit.contents.chunks(segment);
        let mut send = |contents| self.send(state, &Transmit { contents, segment_size: None, ..*transmit });
        datagrams.next().map_or(Ok(()), &mut send)?;
        datagrams.for_each(|datagram| drop(send(datagram)));
        Ok(())
    }
}

impl UdpSocket for OsUdpSocket {
    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let state = self.state();
        let segment = transmit.segment_size.filter(|segment| *segment < transmit.contents.len());
        let offload = state.max_gso_segments() > 1;
        let mut sent = match segment.filter(|_| !offload) {
            Some(segment) => self.send_each(&state, transmit, segment),
            None => self.send(&state, transmit),
        };
        // The kernel says the same of an offload that it lacks and of a destination that cannot be: a datagram by itself
        // tells which.
        if offload && state.max_gso_segments() == 1 {
            if let Some(segment) = segment {
                sent = self.send_each(&state, transmit, segment);
            }
            if sent.is_err() {
                self.rebuild();
            }
        }
        sent
    }

    fn try_send_limited(&self, transmit: &Transmit<'_>, hop_limit: u8) -> io::Result<()> {
        let socket = SockRef::from(&self.io);
        let set = |limit| match transmit.destination {
            SocketAddr::V4(_) => socket.set_ttl_v4(limit),
            SocketAddr::V6(_) => socket.set_unicast_hops_v6(limit),
        };
        set(hop_limit.into())?;
        let sent = self.try_send(transmit);
        set(HOP_LIMIT)?;
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
        Ok(self.local)
    }

    fn max_transmit_segments(&self) -> usize {
        self.state().max_gso_segments()
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

#[cfg(test)]
mod tests {
    use super::*;

    /// More segments than the kernel takes at once (UDP_MAX_SEGMENTS is 64 or 128).
    const TOO_MANY: usize = 200;

    #[tokio::test]
    async fn a_batch_that_the_kernel_does_not_segment_is_sent_datagram_by_datagram() {
        let (from, to) = (socket(), socket());
        for _ in 0..2 {
            let contents = [7; 10 * TOO_MANY];
            from.try_send(&transmit(to.local_addr().unwrap(), &contents, Some(10))).unwrap();
            assert_eq!(receive(&*to).await, contents.len());
        }
    }

    #[tokio::test]
    async fn a_new_socket_sends_at_once_and_may_bound_the_hops() {
        let (from, to) = (socket(), socket());
        let transmit = transmit(to.local_addr().unwrap(), &[7; 100], None);
        from.try_send_limited(&transmit, 1).unwrap();
        from.try_send(&transmit).unwrap();
        assert_eq!(receive(&*to).await, 200);
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn a_destination_that_cannot_be_does_not_cost_the_socket_its_offload() {
        let (from, to) = (socket(), socket());
        let segments = from.max_transmit_segments();
        let outside = SocketAddr::from(([192, 0, 2, 1], 4_000)); // a loopback socket cannot send there: EINVAL
        for segment in [None, Some(10)] {
            from.try_send(&transmit(outside, &[7; 100], segment)).unwrap_err();
            assert_eq!(from.max_transmit_segments(), segments);
        }
        from.try_send(&transmit(to.local_addr().unwrap(), &[7; 100], Some(10))).unwrap();
        assert_eq!(receive(&*to).await, 100);
    }

    #[tokio::test(start_paused = true)]
    async fn a_list_of_interfaces_is_given_out_again_for_half_a_second() {
        let old = vec![Interface::new([192, 0, 2, 1].into(), 24, 1, InterfaceKind::Physical)];
        *INTERFACES.lock().unwrap() = Some((Instant::now(), old.clone()));
        time::advance(INTERFACES_AGE - Duration::from_millis(1)).await;
        assert_eq!(Os.interfaces(), old);
        time::advance(Duration::from_millis(1)).await;
        assert_ne!(Os.interfaces(), old);
    }

    fn socket() -> Arc<dyn UdpSocket> {
        Os.bind_udp((Ipv4Addr::LOCALHOST, 0).into()).unwrap()
    }

    fn transmit(destination: SocketAddr, contents: &[u8], segment_size: Option<usize>) -> Transmit<'_> {
        Transmit { destination, ecn: None, contents, segment_size, src_ip: None }
    }

    /// Bytes that arrive until nothing does for a while.
    async fn receive(socket: &dyn UdpSocket) -> usize {
        let mut total = 0;
        let mut buf = vec![0; 65_536];
        let mut meta = [RecvMeta::default()];
        let mut one = async || {
            let mut bufs = [IoSliceMut::new(&mut buf)];
            std::future::poll_fn(|cx| socket.poll_recv(cx, &mut bufs, &mut meta)).await.unwrap();
            meta[0].len
        };
        while let Ok(len) = tokio::time::timeout(Duration::from_millis(100), one()).await {
            total += len;
        }
        total
    }
}
