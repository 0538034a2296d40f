//! What a node has learned about networks, and whether its next process knows it.

use std::{thread, time::Duration};

use byway::{Config, Node};
use byway_sim::{Host, NatConfig};
use tokio::time;

use crate::common::{config, config_anew, relay, scenario, secs};

/// Starts a node, and lets it run for `run`; the one before it may still be closing its file, on a thread of real time.
async fn start(host: &Host, config: Config, run: Duration) -> Node {
    for _ in 0..500 {
        if let Ok(node) = Node::bind_on(host.net(), config.clone()).await {
            time::sleep(run).await;
            return node;
        }
        thread::sleep(Duration::from_millis(10));
    }
    Node::bind_on(host.net(), config).await.unwrap()
}

async fn lifetime(node: &Node) -> Option<Duration> {
    node.status().await.nat.report.ipv4.and_then(|it| it.lifetime)
}

#[test]
fn what_a_node_learned_about_its_network_is_known_to_its_next_process() {
    let dir = std::env::temp_dir().join(format!("byway-memory-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let store = |mut config: Config| {
        config.store = Some(dir.join("store"));
        config
    };
    scenario(1, secs(1_000), |world| async move {
        let (_relay, addr) = relay(&world.host("relay"), config(9)).await;
        let mut nat = NatConfig::port_restricted();
        nat.timeout = secs(20);
        let host = world.nat("home", nat).host("a");
        let first = start(&host, store(config(1).relay_at(addr.clone())), secs(5)).await;
        assert_eq!(lifetime(&first).await, None, "it takes a minute");
        time::sleep(secs(120)).await;
        assert_eq!(lifetime(&first).await, Some(secs(15)));
        first.close().await;
        drop(first);
        let again = start(&host, store(config_anew(1).relay_at(addr.clone())), secs(5)).await;
        assert_eq!(lifetime(&again).await, Some(secs(15)), "known at once");
        again.close().await;
        drop(again);
        let without = start(&host, config_anew(1).relay_at(addr), secs(5)).await;
        assert_eq!(lifetime(&without).await, None, "without a store it is learned anew");
    });
    std::fs::remove_dir_all(&dir).unwrap();
}
