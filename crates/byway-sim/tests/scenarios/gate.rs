//! Strangers at the gate.

use std::net::SocketAddr;

use byway::{DialError, Target};
use byway_sim::NatConfig;
use tokio::{task::JoinSet, time::Instant};

use crate::common::{PORT, config, exchange, peer, scenario, secs};

#[test]
fn two_hundred_handshakes_from_one_source_do_not_keep_an_honest_one_out() {
    scenario(1, secs(120), |world| async move {
        let server = peer(&world.host("server"), config(1)).await;
        let ticket = server.node.ticket();
        // All of them behind one address.
        let nat = world.nat("crowd", NatConfig::default());
        let mut crowd = JoinSet::new();
        for n in 0..200_u8 {
            let member = peer(&nat.host(&format!("member {n}")), config(10 + n)).await;
            let ticket = ticket.clone();
            crowd.spawn(async move { (member.node.dial(ticket).await.is_ok(), member) });
        }
        let mut honest = peer(&world.host("honest"), config(2)).await;
        let start = Instant::now();
        honest.node.dial(&ticket).await.unwrap();
        let honest_after = start.elapsed();
        honest.up().await;
        let mut admitted = Vec::new();
        while let Some(member) = crowd.join_next().await {
            let (is_in, member) = member.unwrap();
            if is_in {
                admitted.push(member);
            }
        }
        let dropped = server.node.status().await.dropped;
        println!("honest after {honest_after:?}, {} of 200 from the crowd, dropped {dropped:?}", admitted.len());
        assert!(honest_after < secs(1), "{honest_after:?}");
        assert!(dropped.iter().any(|(why, count)| *why == "initial_rate" && *count > 50), "{dropped:?}");
        assert!(admitted.len() >= 32, "the budget is for those who ask in good faith, too: {}", admitted.len());
        assert_eq!(server.node.peers().len(), admitted.len() + 1);
    });
}

#[test]
fn a_node_that_does_not_accept_is_silent_to_strangers() {
    scenario(1, secs(60), |world| async move {
        let (host_a, host_b) = (world.host("a"), world.host("b"));
        let mut config_b = config(2);
        config_b.accept = false;
        let (mut a, mut b) = (peer(&host_a, config(1)).await, peer(&host_b, config_b).await);
        assert!(matches!(a.node.dial(b.node.ticket()).await, Err(DialError::Unreached { .. })));
        assert_eq!(host_b.traffic().sent, 0, "it answered");
        // An unknown version asks for an answer, too (RFC 9000 §6.1).
        let stranger = host_a.bind_udp("0.0.0.0:0".parse().unwrap()).unwrap();
        let mut initial = vec![0; 1_200];
        initial[..7].copy_from_slice(&[0xc0, 0x1a, 0x2a, 0x3a, 0x4a, 8, 1]);
        stranger.send_to(&initial, SocketAddr::new(host_b.addr(), PORT)).unwrap();
        tokio::time::sleep(secs(1)).await;
        assert_eq!(host_b.traffic().sent, 0, "it answered");
        // It dials as any other.
        b.node.dial(Target::from(&a.node.ticket())).await.unwrap();
        b.up().await;
        a.up().await;
        exchange(&mut a, &mut b).await;
    });
}
