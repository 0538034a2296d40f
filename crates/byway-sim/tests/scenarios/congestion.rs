//! The congestion control follows the connection from route to route.

use std::time::Duration;

use bytes::Bytes;
use byway::PathKind;
use byway_sim::{Link, Queue, World};
use tokio::{
    task::JoinHandle,
    time::{self, Instant},
};

use crate::common::{Peer, config, ms, peer, relay, scenario, secs};

/// How long after a switch 90 % of the new line is used; on a slow route that was never used before, what was lost on the
/// old one has to be sent again while the flow still starts.
const SETTLE: Duration = Duration::from_millis(500);
const SETTLE_UNKNOWN: Duration = Duration::from_millis(1_200);

/// The share of a line that is payload: packets of 1,471 bytes carry 1,408.
const PAYLOAD: f64 = 0.95;

/// Over this time a rate is taken.
const SPAN: Duration = Duration::from_millis(200);

/// What arrived when.
type Arrivals = Vec<(Instant, usize)>;

/// When the line of `mbit_s` was used to 90 % from, after `switched`.
fn settled(arrivals: &Arrivals, switched: Instant, mbit_s: f64) -> Duration {
    let wanted = 0.9 * PAYLOAD * mbit_s * 1e6 / 8.0 * SPAN.as_secs_f64();
    let bytes = |from: Instant| {
        let span = arrivals.iter().filter(|(at, _)| (from..from + SPAN).contains(at));
        span.map(|(_, bytes)| *bytes as f64).sum::<f64>()
    };
    let moments = (0..500).map(|n| ms(10 * n));
    moments.into_iter().find(|after| bytes(switched + *after) >= wanted).expect("it settles within 5 s")
}

/// When the connection takes the path of this kind.
async fn switched(peer: &Peer, kind: PathKind) -> Instant {
    while peer.path().await != Some(kind) {
        time::sleep(ms(5)).await; // the flow goes on, so that the dead route is looked after
    }
    Instant::now()
}

/// Saturates the connection from `a` to `b` for `limit`.
fn saturate(a: &Peer, b: Peer, limit: Duration) -> JoinHandle<Arrivals> {
    let (tx, to) = (a.tx.clone(), b.id());
    tokio::spawn(async move { while tx.send_wait(to, Bytes::from(vec![0; 8_192])).await.is_ok() {} });
    tokio::spawn(async move {
        let (mut b, end, mut arrivals) = (b, Instant::now() + limit, Arrivals::new());
        while let Ok(Some((_, message))) = time::timeout_at(end, b.rx.recv()).await {
            arrivals.push((Instant::now(), message.len()));
        }
        arrivals
    })
}

/// Direct: 10 ms and 100 Mbit/s. By the relay: 100 ms and 20 Mbit/s.
async fn pair(world: &World) -> ([byway_sim::Host; 3], Peer, Peer, byway::Node) {
    let hosts = ["a", "b", "relay"].map(|name| world.host(name));
    let line = |delay, mbit_s: u64| {
        Link::lan().delay(Duration::from_micros(delay)).rate(mbit_s * 1_000_000).queue(Queue::Time(ms(100)))
    };
    hosts[0].set_link(line(2_500, 100));
    hosts[1].set_link(line(2_500, 100));
    hosts[2].set_link(line(22_500, 20));
    let (relay, addr) = relay(&hosts[2], config(9)).await;
    let [config_a, config_b] = [1, 2].map(|n| config(n).relay_at(addr.clone()));
    let (mut a, mut b) = (peer(&hosts[0], config_a).await, peer(&hosts[1], config_b).await);
    a.registered().await;
    b.registered().await;
    a.node.dial(b.node.ticket()).await.unwrap();
    a.up().await;
    b.up().await;
    time::sleep(secs(2)).await;
    a.goes(PathKind::Direct, secs(5)).await;
    (hosts, a, b, relay)
}

#[test]
fn a_faster_route_and_one_that_is_known_are_full_within_half_a_second_of_the_switch() {
    for seed in 0..3 {
        scenario(seed, secs(120), |world| async move {
            let (hosts, a, b, _relay) = pair(&world).await;
            let flow = saturate(&a, b, secs(40));
            let mut switches = Vec::new();
            for returns in [true, false] {
                time::sleep(secs(3)).await;
                let cut = world.cut(&hosts[0], &hosts[1]);
                switches.push((switched(&a, PathKind::Relay).await, 20.0));
                time::sleep(secs(3)).await;
                if returns {
                    cut.lift();
                    switches.push((switched(&a, PathKind::Direct).await, 100.0));
                }
            }
            let arrivals = flow.await.unwrap();
            let took: Vec<_> = switches.iter().map(|(at, mbit_s)| settled(&arrivals, *at, *mbit_s)).collect();
            println!("seed {seed}: {took:?}");
            let [unknown, up, known] = took[..] else { panic!("{took:?}") };
            assert!(
                unknown <= SETTLE_UNKNOWN && up <= SETTLE && known <= SETTLE,
                "seed {seed}: down, up, down: {took:?}"
            );
        });
    }
}
