//! The scale table is a function of its seed.

use byway_sim::{World, table::scale};

#[test]
fn fifty_nodes_of_one_seed_send_the_same_packets_twice_and_of_another_seed_others() {
    let run = |seed| scale::run(50, seed, |_| {}).unwrap();
    let (first, again, other) = (run(1), run(1), run(2));
    assert_eq!(first.hash, again.hash);
    assert_ne!(first.hash, other.hash);
    assert!(first.connections >= 150, "{first}");
    assert_eq!(first.messages, 10 * first.connections as u64);
}

#[test]
fn nodes_that_close_send_the_same_packets_every_time() {
    let run = || {
        World::run(1, |world| async move {
            let hub = crate::common::peer(&world.host("hub"), crate::common::config(0)).await;
            let mut spokes = Vec::new();
            for n in 1..20 {
                let spoke = crate::common::peer(&world.host("spoke"), crate::common::config(n)).await;
                spoke.node.dial(hub.node.ticket()).await.unwrap();
                spokes.push(spoke);
            }
            hub.node.close().await;
            for spoke in spokes {
                spoke.node.close().await;
            }
            world.hash()
        })
    };
    let first = run();
    for _ in 0..10 {
        assert_eq!(run(), first);
    }
}
