//! Direct paths that are quick to ping and carry next to nothing.

use std::time::Duration;

use bytes::Bytes;
use byway::{Event, PathKind};
use byway_sim::{Host, Link, NodeId, Packet, Queue, Rule, Verdict, World};
use tokio::time::{self, Instant};

use crate::common::{Peer, config, ms, peer, relay, scenario, secs};

/// The rate of each host's line in bits per second, and what a shaper lets through between the two peers.
const LINE: u64 = 20_000_000;
const SHAPED: u64 = 1_000_000;

/// The longest that a packet waits in the shaper.
const QUEUE: Duration = Duration::from_millis(50);

/// Shapes what goes straight from one peer to the other, as networks do that do not like UDP between homes.
struct Shaper {
    hosts: [NodeId; 2],
    rate: u64,
    free: [Duration; 2],
}

impl Rule for Shaper {
    fn verdict(&mut self, packet: &Packet<'_>) -> Verdict {
        let [from, to] =
            [Some(packet.sender), packet.receiver].map(|node| self.hosts.iter().position(|host| Some(*host) == node));
        let (Some(from), Some(_)) = (from, to) else { return Verdict::Pass };
        let free = self.free[from].max(packet.time);
        if free - packet.time > QUEUE {
            return Verdict::Drop;
        }
        self.free[from] = free + Duration::from_secs_f64((packet.payload.len() + 28) as f64 * 8.0 / self.rate as f64);
        Verdict::Delay(free - packet.time)
    }
}

/// Two peers that have a direct path and a relay, and lines of [`LINE`]; between the two only `direct` bits a second pass.
async fn pair(world: &World, direct: u64) -> (Peer, Peer, byway::Node, [Host; 3]) {
    let hosts = ["a", "b", "relay"].map(|name| world.host(name));
    hosts[..2].iter().for_each(|host| host.set_link(Link::standard().rate(LINE).queue(Queue::Time(ms(100)))));
    world.rule(Shaper { hosts: [hosts[0].id(), hosts[1].id()], rate: direct, free: [Duration::ZERO; 2] });
    let (relay, addr) = relay(&hosts[2], config(9)).await;
    let mut a = peer(&hosts[0], config(1).relay_at(addr.clone())).await;
    let mut b = peer(&hosts[1], config(2).relay_at(addr)).await;
    a.registered().await;
    b.registered().await;
    a.node.dial(b.node.ticket()).await.unwrap();
    a.up().await;
    b.up().await;
    a.goes(PathKind::Direct, secs(5)).await;
    b.goes(PathKind::Direct, secs(5)).await;
    time::sleep(secs(5)).await; // both routes are measured
    (a, b, relay, hosts)
}

/// What of a saturating flow arrives within `time`, in Mbit/s for each ten seconds, and the switches of the sender meanwhile.
async fn saturate(a: &mut Peer, b: &mut Peer, time: Duration) -> (Vec<f64>, Vec<(u64, String)>) {
    let (tx, to, mut events) = (a.tx.clone(), b.id(), a.node.events());
    let start = Instant::now();
    let sending = tokio::spawn(async move { while tx.send_wait(to, Bytes::from(vec![7; 16 << 10])).await.is_ok() {} });
    let mut tens = vec![0.0; (time.as_secs() / 10) as usize];
    let mut switches = Vec::new();
    loop {
        tokio::select! {
            event = events.recv() => if let Some(Event::PathBest { path, why, .. }) = event {
                switches.push((start.elapsed().as_secs(), format!("{path}: {why}")));
            },
            Some((_, message)) = b.rx.recv() => if let Some(ten) = tens.get_mut((start.elapsed().as_secs() / 10) as usize) {
                *ten += message.len() as f64 * 8e-7;
            },
            () = time::sleep_until(start + time) => break,
        }
    }
    sending.abort();
    (tens, switches)
}

#[test]
fn a_direct_path_that_carries_a_twentieth_of_the_relay_is_left_for_it() {
    for seed in 1..=2 {
        scenario(seed, secs(400), |world| async move {
            let (mut a, mut b, _relay, _) = pair(&world, SHAPED).await;
            let (tens, switches) = saturate(&mut a, &mut b, secs(120)).await;
            println!("seed {seed}: {tens:.1?} {switches:?}");
            assert!(tens[1..6].iter().all(|rate| *rate > 15.0), "seed {seed}: {tens:?}");
            assert!(tens.iter().sum::<f64>() > 16.0 * tens.len() as f64, "the looks back cost too much: {tens:?}");
            assert!(switches.len() <= 3, "seed {seed}: {switches:?}");
            assert_eq!(a.path().await, Some(PathKind::Relay));
        });
    }
}

#[test]
fn a_direct_path_that_is_as_slow_as_the_relay_is_kept_after_one_try() {
    scenario(4, secs(400), |world| async move {
        let (mut a, mut b, _relay, hosts) = pair(&world, LINE).await;
        hosts[..2].iter().for_each(|host| host.edit_link(|link| link.rate = Some(SHAPED)));
        let (tens, switches) = saturate(&mut a, &mut b, secs(120)).await;
        println!("{tens:.2?} {switches:?}");
        assert!(switches.len() <= 2, "{switches:?}");
        assert_eq!(a.path().await, Some(PathKind::Direct));
        assert!(tens[2..].iter().all(|rate| *rate > 0.8), "{tens:?}");
    });
}

#[test]
fn a_slow_direct_path_is_kept_while_the_application_sends_less_than_it_carries() {
    scenario(5, secs(400), |world| async move {
        let (a, mut b, _relay, _) = pair(&world, SHAPED).await;
        let mut events = a.node.events();
        let to = b.id();
        crate::common::flow(&a.tx, &mut b.rx, to, 6_000, ms(20)).await;
        let moved = |event| matches!(event, Some(Event::PathBest { .. }));
        while let Ok(event) = time::timeout(Duration::ZERO, events.recv()).await {
            assert!(!moved(event), "an application of a few kbit/s has left the direct path");
        }
    });
}
