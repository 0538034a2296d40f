//! One seed, one run.

use std::process::Command;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{at, bind, ms};
use crate::{Link, NatConfig, TraceHash, World};

/// A run with loss, jitter, NATs, TCP and answers that depend on arrivals.
fn run(seed: u64) -> TraceHash {
    World::run(seed, |world| async move {
        let server = world.host("server");
        server.set_link(Link::standard().loss(0.05).jitter(ms(7), true).rate(5_000_000));
        let socket = bind(&server, 1);
        tokio::spawn(async move {
            let mut buf = [0; 1_500];
            while let Ok((len, from)) = socket.recv_from(&mut buf).await {
                let _ = socket.send_to(&buf[..len], from);
            }
        });
        let listener = server.listen_tcp(([0; 4], 80).into()).unwrap();
        tokio::spawn(async move {
            while let Ok(mut stream) = listener.accept().await {
                tokio::spawn(async move { stream.write_all(&[1; 50_000]).await });
            }
        });
        let clients: Vec<_> = (0..20).map(|n| tokio::spawn(client(world.clone(), server.clone(), n))).collect();
        for client in clients {
            client.await.unwrap();
        }
        world.hash()
    })
}

async fn client(world: World, server: crate::Host, n: u64) {
    let host = world.nat("home", NatConfig::default()).host("client");
    let socket = bind(&host, 0);
    for round in 0..20 {
        socket.send_to(&[0; 1_000][..round * 40], at(&server, 1)).unwrap();
        let _ = tokio::time::timeout(ms(90 + n), socket.recv_from(&mut [0; 1_500])).await;
    }
    let mut stream = host.connect_tcp(at(&server, 80)).await.unwrap();
    let mut received = Vec::new();
    stream.read_to_end(&mut received).await.unwrap();
    assert_eq!(received.len(), 50_000);
}

#[test]
fn one_seed_gives_one_hash_and_another_seed_another() {
    let first = run(1);
    assert_eq!(run(1), first);
    assert_ne!(run(2), first);
}

#[test]
fn two_processes_agree() {
    let name = "tests::determinism::tells_its_hash";
    let output =
        Command::new(std::env::current_exe().unwrap()).args(["--exact", name, "--nocapture"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains(&format!("hash {}", run(1))), "{text}");
}

/// Read by [`two_processes_agree`].
#[test]
fn tells_its_hash() {
    println!("hash {}", run(1));
}

#[test]
fn what_happens_after_the_scenario_is_not_part_of_the_run() {
    let world = World::run(1, |world| async move {
        let host = world.host("a");
        let listener = host.listen_tcp(([0; 4], 80).into()).unwrap();
        let stream = host.connect_tcp(at(&host, 80)).await.unwrap();
        let accepted = listener.accept().await.unwrap();
        tokio::spawn(async move {
            let _held = (stream, accepted); // dropped, and so closed, when the runtime is
            std::future::pending::<()>().await;
        });
        tokio::task::yield_now().await;
        assert_eq!(world.counters().segments, 2);
        world
    });
    assert_eq!(world.counters().segments, 2);
}
