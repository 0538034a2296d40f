//! Two hosts on one LAN that has no way to the internet, and a ticket that leads nowhere any more.

use std::{net::Ipv4Addr, thread, time::Duration};

use crate::{
    Stop,
    lab::{
        Lab, Outcome, Scenario,
        nat::Nat,
        network::Plan,
        node::{self, Node},
    },
};

/// What the serving host's address becomes once its ticket is out, as a new lease may have it.
const MOVED: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 77);
/// How long a node may take to see that: it looks every two seconds.
const NOTICE: Duration = Duration::from_millis(2_500);
/// What crosses each way, in messages of 1 KiB.
const MESSAGES: u64 = 64;

/// The one scenario: nothing but multicast DNS can tell where the peer is.
pub(crate) fn scenarios() -> Vec<Scenario> {
    let name = "without-internet".to_owned();
    vec![Scenario { name: "lan", a: name, b: String::new(), plan: Plan::default(), breaks: true, run: Box::new(run) }]
}

fn run(lab: &Lab) -> Result<Outcome, Stop> {
    let router = lab.network.router("ra");
    router.load(&Nat::default())?;
    router.unplug()?;
    let _echo = node::echo(lab, "ha2")?;
    let (_serving, ticket) = Node::alone(lab, "ha2")?;
    let host = lab.network.host("ha2");
    host.ip(&format!(
        "addr flush dev eth0 scope global\naddr add {MOVED}/24 dev eth0\nroute add default via 10.1.0.1\n"
    ))?;
    thread::sleep(NOTICE);
    let mut reaching = Node::reach(lab, "ha", None, &ticket)?;
    let (path, took) = reaching.connected()?;
    reaching.exchange(lab, MESSAGES)?;
    if path != "direct" {
        return Err(Stop::Failed(format!("the path is called {path}, though there is no relay")));
    }
    let note = "the ticket's addresses were gone; found by id".into();
    Ok(Outcome { path: Some("direct"), took: Some(took), note })
}
