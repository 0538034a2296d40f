//! Whole worlds, through the public face.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::time::timeout;

use crate::{Host, UdpSocket};

mod determinism;
mod gateways;
mod links;
mod nats;
mod sockets;
mod streams;

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn bind(host: &Host, port: u16) -> Arc<UdpSocket> {
    host.bind_udp(SocketAddr::from(([0; 4], port))).unwrap()
}

fn at(host: &Host, port: u16) -> SocketAddr {
    SocketAddr::new(host.addr(), port)
}

/// The source of the next datagram, if one comes within a second.
async fn next(socket: &UdpSocket) -> Option<SocketAddr> {
    let mut buf = [0; 2_000];
    timeout(ms(1_000), socket.recv_from(&mut buf)).await.ok().map(|received| received.unwrap().1)
}

/// Everything that is in the inbox `wait` from now, as the first byte of each datagram.
async fn drain(socket: &UdpSocket, wait: Duration) -> Vec<u8> {
    tokio::time::sleep(wait).await;
    let mut buf = [0; 2_000];
    let mut firsts = Vec::new();
    while timeout(Duration::ZERO, socket.recv_from(&mut buf)).await.is_ok() {
        firsts.push(buf[0]);
    }
    firsts
}

/// A run that hangs on the real clock instead of passing on the paused one would make the suite useless.
#[test]
fn an_hour_of_traffic_takes_seconds() {
    let began = Instant::now();
    crate::World::run(1, |world| async move {
        let (a, b) = (world.host("a"), world.host("b"));
        let (from, to) = (bind(&a, 1), bind(&b, 1));
        for _ in 0..36_000 {
            from.send_to(b"tick", at(&b, 1)).unwrap();
            assert!(next(&to).await.is_some());
            tokio::time::sleep(ms(50)).await;
        }
        assert_eq!(world.elapsed().as_secs(), 3_600);
    });
    assert!(began.elapsed() < Duration::from_secs(30));
}
