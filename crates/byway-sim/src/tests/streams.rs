//! TCP connections.

use std::io::ErrorKind;

use byway::net::Net;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{at, ms};
use crate::{Host, Link, NatConfig, TcpListener, TcpStream, World};

fn listen(host: &Host) -> TcpListener {
    host.listen_tcp(([0; 4], 80).into()).unwrap()
}

async fn pair(from: &Host, to: &Host) -> (TcpStream, TcpStream) {
    let listener = listen(to);
    let client = from.connect_tcp(at(to, 80)).await.unwrap();
    (client, listener.accept().await.unwrap())
}

#[test]
fn bytes_arrive_in_order_over_a_lossy_reordering_link() {
    World::run(1, |world| async move {
        let (a, b) = (world.host("a"), world.host("b"));
        a.set_link(Link::standard().loss(0.1).jitter(ms(10), true));
        let (mut client, mut server) = pair(&a, &b).await;
        let sent: Vec<u8> = (0..3_000_000_u32).map(|n| (n / 7) as u8).collect();
        let expected = sent.clone();
        tokio::spawn(async move {
            client.write_all(&sent).await.unwrap();
            client.shutdown().await.unwrap();
        });
        let mut received = Vec::new();
        server.read_to_end(&mut received).await.unwrap();
        assert!(received == expected);
        assert!(world.counters().resent > 100);
    });
}

#[test]
fn connecting_takes_one_round_trip_and_bytes_half_of_one() {
    World::run(1, |world| async move {
        let (a, b) = (world.host("a"), world.host("b"));
        let (mut client, mut server) = pair(&a, &b).await;
        assert_eq!(world.elapsed(), ms(100));
        assert_eq!((client.peer_addr(), server.peer_addr()), (at(&b, 80), client.local_addr()));
        client.write_all(b"hello").await.unwrap();
        server.read_exact(&mut [0; 5]).await.unwrap();
        assert_eq!(world.elapsed(), ms(150));
    });
}

#[test]
fn half_close_ends_one_direction_only() {
    World::run(1, |world| async move {
        let (mut client, mut server) = pair(&world.host("a"), &world.host("b")).await;
        client.write_all(b"question").await.unwrap();
        client.shutdown().await.unwrap();
        assert_eq!(client.write(b"x").await.unwrap_err().kind(), ErrorKind::BrokenPipe);
        let mut question = String::new();
        server.read_to_string(&mut question).await.unwrap();
        server.write_all(b"answer").await.unwrap();
        drop(server);
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert_eq!((question.as_str(), answer.as_str()), ("question", "answer"));
    });
}

#[test]
fn reset_is_an_error_on_the_other_side() {
    World::run(1, |world| async move {
        let (client, mut server) = pair(&world.host("a"), &world.host("b")).await;
        client.reset();
        assert_eq!(server.read(&mut [0; 1]).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
        assert_eq!(server.write(b"x").await.unwrap_err().kind(), ErrorKind::ConnectionReset);
    });
}

#[test]
fn dropping_unread_bytes_resets() {
    World::run(1, |world| async move {
        let (mut client, server) = pair(&world.host("a"), &world.host("b")).await;
        client.write_all(b"nobody reads this").await.unwrap();
        tokio::time::sleep(ms(100)).await;
        drop(server);
        assert_eq!(client.read(&mut [0; 1]).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
    });
}

#[test]
fn writing_to_a_dropped_stream_resets() {
    World::run(1, |world| async move {
        let (mut client, server) = pair(&world.host("a"), &world.host("b")).await;
        drop(server);
        assert_eq!(client.read(&mut [0; 1]).await.unwrap(), 0);
        client.write_all(b"too late").await.unwrap();
        tokio::time::sleep(ms(200)).await;
        assert_eq!(client.write(b"x").await.unwrap_err().kind(), ErrorKind::ConnectionReset);
    });
}

#[test]
fn connection_is_refused_where_nobody_listens() {
    World::run(1, |world| async move {
        let (a, b) = (world.host("a"), world.host("b"));
        assert_eq!(a.connect_tcp(at(&b, 80)).await.unwrap_err().kind(), ErrorKind::ConnectionRefused);
        assert_eq!(world.elapsed(), ms(100));
        b.set_down();
        assert_eq!(a.connect_tcp(at(&b, 80)).await.unwrap_err().kind(), ErrorKind::TimedOut);
    });
}

#[test]
fn closed_listener_resets_whom_it_has_not_accepted() {
    World::run(1, |world| async move {
        let (a, b) = (world.host("a"), world.host("b"));
        let listener = listen(&b);
        let mut client = a.connect_tcp(at(&b, 80)).await.unwrap();
        drop(listener);
        assert_eq!(client.read(&mut [0; 1]).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
        let again = listen(&b);
        assert_eq!(again.local_addr().port(), 80);
    });
}

#[test]
fn writer_waits_for_the_reader() {
    World::run(1, |world| async move {
        let (mut client, mut server) = pair(&world.host("a"), &world.host("b")).await;
        let writing = tokio::spawn(async move { client.write_all(&[7; 1024 * 1024 + 1]).await });
        tokio::time::sleep(ms(60_000)).await;
        assert!(!writing.is_finished());
        let mut buf = vec![0; 1024 * 1024 + 1];
        server.read_exact(&mut buf).await.unwrap();
        writing.await.unwrap().unwrap();
    });
}

#[test]
fn cut_delays_a_connection_and_kills_it_at_last() {
    World::run(1, |world| async move {
        let (a, b) = (world.host("a"), world.host("b"));
        let (mut client, mut server) = pair(&a, &b).await;
        let cut = world.cut(&a, &b);
        client.write_all(b"x").await.unwrap();
        tokio::time::sleep(ms(5_000)).await;
        cut.lift();
        server.read_exact(&mut [0; 1]).await.unwrap();
        assert!(world.elapsed() < ms(10_000));
        let _stays = world.cut(&a, &b);
        client.write_all(b"x").await.unwrap();
        assert_eq!(client.read(&mut [0; 1]).await.unwrap_err().kind(), ErrorKind::TimedOut);
    });
}

#[test]
fn nat_lets_connections_out_but_not_in() {
    World::run(1, |world| async move {
        let home = world.nat("home", NatConfig::default());
        let (inner, server) = (home.host("inner"), world.host("server"));
        let (mut client, mut accepted) = pair(&inner, &server).await;
        assert_eq!(accepted.peer_addr().ip(), home.addr());
        client.write_all(b"x").await.unwrap();
        accepted.read_exact(&mut [0; 1]).await.unwrap();
        let _listener = listen(&inner);
        let blocked = server.connect_tcp((home.addr(), 80).into()).await;
        assert_eq!(blocked.unwrap_err().kind(), ErrorKind::TimedOut);
    });
}

#[test]
fn seam_carries_a_stream_over_loopback() {
    World::run(1, |world| async move {
        let net: std::sync::Arc<dyn Net> = world.host("a").net();
        let listener = net.listen_tcp("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let mut client = net.connect_tcp(listener.local_addr().unwrap()).await.unwrap();
        let mut server = listener.accept().await.unwrap();
        client.write_all(b"x").await.unwrap();
        server.read_exact(&mut [0; 1]).await.unwrap();
        assert_eq!(client.peer_addr().unwrap(), listener.local_addr().unwrap());
        client.reset();
        assert_eq!(server.read(&mut [0; 1]).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
        assert_eq!(world.elapsed(), ms(0));
    });
}
