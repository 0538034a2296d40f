//! Carriers whose mappings die at an age, whatever passes through them.

use std::time::Duration;

use byway::PathKind;
use byway_sim::{NatConfig, Ports, World};
use tokio::time;

use crate::common::{Peer, config, flows, ms, peer, relay, scenario, secs};

/// The age at which the carrier's mappings die.
const AGE: Duration = Duration::from_secs(90);

/// A peer behind a carrier and one at home, or behind another carrier, on a direct path, and their relay.
async fn pair(world: &World, carrier_dials: bool, both: bool) -> (Peer, Peer, byway::Node) {
    let (relay, addr) = relay(&world.host("relay"), config(9)).await;
    let mut carrier = NatConfig::port_restricted();
    carrier.ports = Ports::Random;
    carrier.max_age = Some(AGE);
    let mut home = NatConfig::port_restricted();
    if both {
        home.ports = Ports::Random;
        home.max_age = Some(AGE + secs(17));
    }
    let mut a = peer(&world.nat("carrier", carrier).host("a"), config(1).relay_at(addr.clone())).await;
    let mut b = peer(&world.nat("home", home).host("b"), config(2).relay_at(addr)).await;
    a.registered().await;
    b.registered().await;
    if carrier_dials {
        a.node.dial(b.node.ticket()).await.unwrap();
    } else {
        b.node.dial(a.node.ticket()).await.unwrap();
    }
    a.up().await;
    b.up().await;
    a.goes(PathKind::Direct, secs(10)).await;
    b.goes(PathKind::Direct, secs(10)).await;
    (a, b, relay)
}

#[test]
fn a_connection_through_a_carrier_that_ends_mappings_at_an_age_moves_to_a_fresh_one_before_and_does_not_stall() {
    for (seed, carrier_dials, both) in [(1, true, false), (2, false, false), (3, true, true), (4, false, true)] {
        scenario(seed, secs(1_000), |world| async move {
            let (mut a, mut b, _relay) = pair(&world, carrier_dials, both).await;
            let learning = flows(&mut a, &mut b, 13_000, ms(20)).await; // three mappings
            println!("while it learns: {learning:?}");
            time::sleep(secs(1)).await;
            let gaps = flows(&mut a, &mut b, 15_000, ms(20)).await; // three more
            println!("afterwards: {gaps:?}");
            assert!(gaps.iter().all(|gap| *gap < ms(150)), "a stall: {gaps:?}");
            assert_eq!((a.path().await, b.path().await), (Some(PathKind::Direct), Some(PathKind::Direct)));
        });
    }
}
