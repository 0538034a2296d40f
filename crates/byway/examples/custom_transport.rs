//! A transport of your own below Byway, here with every datagram masked: `cargo run -p byway --example custom_transport`
#![allow(clippy::print_stdout)] // an example shows what it does

use std::{
    io::{self, IoSliceMut},
    net::SocketAddr,
    sync::Arc,
    task::{Context, Poll, ready},
};

use byway::{
    Config, Identity, Node,
    net::{BoxFuture, Interface, Net, RecvMeta, TcpListener, TcpStream, Transmit, UdpSocket, os::Os},
};

#[derive(Debug)]
struct Masked(Os);

#[derive(Debug)]
struct MaskedSocket(Arc<dyn UdpSocket>);

impl Net for Masked {
    fn bind_udp(&self, addr: SocketAddr) -> io::Result<Arc<dyn UdpSocket>> {
        Ok(Arc::new(MaskedSocket(self.0.bind_udp(addr)?)))
    }
    fn connect_tcp(&self, addr: SocketAddr) -> BoxFuture<'_, io::Result<Box<dyn TcpStream>>> {
        self.0.connect_tcp(addr)
    }
    fn listen_tcp(&self, addr: SocketAddr) -> BoxFuture<'_, io::Result<Box<dyn TcpListener>>> {
        self.0.listen_tcp(addr)
    }
    fn resolve<'a>(&'a self, host: &'a str, port: u16) -> BoxFuture<'a, io::Result<Vec<SocketAddr>>> {
        self.0.resolve(host, port)
    }
    fn interfaces(&self) -> Vec<Interface> {
        self.0.interfaces()
    }
    fn changed(&self) -> BoxFuture<'_, ()> {
        self.0.changed()
    }
}

impl UdpSocket for MaskedSocket {
    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let masked: Vec<u8> = transmit.contents.iter().map(|byte| byte ^ 0xa5).collect();
        let Transmit { destination, ecn, segment_size, src_ip, .. } = *transmit;
        self.0.try_send(&Transmit { destination, ecn, contents: &masked, segment_size, src_ip })
    }
    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let count = ready!(self.0.poll_recv(cx, bufs, meta))?;
        for (buf, meta) in bufs.iter_mut().zip(meta).take(count) {
            buf[..meta.len].iter_mut().for_each(|byte| *byte ^= 0xa5);
        }
        Poll::Ready(Ok(count))
    }
    fn writable(self: Arc<Self>) -> BoxFuture<'static, io::Result<()>> {
        Arc::clone(&self.0).writable()
    }
    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }
    fn max_receive_segments(&self) -> usize {
        self.0.max_receive_segments()
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let config = || Config::new(Identity::generate()).listen(([127, 0, 0, 1], 0).into());
    let a = Node::bind_on(Arc::new(Masked(Os)), config()).await?;
    let b = Node::bind_on(Arc::new(Masked(Os)), config()).await?;
    let peer = a.dial(b.ticket()).await?;
    println!("connected to {peer} under a mask, round trip {:?}", a.ping(peer).await?.rtt);
    Ok(())
}
