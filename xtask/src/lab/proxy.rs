//! An office that lets nothing out but what its HTTP proxy passes on: a real tinyproxy, which opens tunnels (CONNECT).

use std::{fs, time::Duration};

use crate::{
    Stop,
    lab::{
        Lab, Outcome, Scenario,
        meet::TLS_LIMIT,
        nat::Nat,
        network::Plan,
        node::{self, Node},
        process::{self, Service},
        traffic,
    },
};

/// Where the proxy listens, on the public machine `open`.
const PROXY: &str = "11.0.0.30:3128";
/// The port of the relay, the only one to which the proxy leads.
const RELAY_PORT: u16 = 4477;
/// How long the proxy may take to start.
const START_LIMIT: Duration = Duration::from_secs(5);
/// Messages that cross each way.
const MESSAGES: u64 = 256;

/// A host in the office dials one behind an ordinary home router.
pub(crate) fn scenario() -> Scenario {
    let plan = Plan::default();
    Scenario { name: "special", a: "connect-proxy".into(), b: String::new(), plan, breaks: false, run: Box::new(run) }
}

fn run(lab: &Lab) -> Result<Outcome, Stop> {
    let _proxy = tinyproxy(lab)?;
    let (office, home) = (lab.network.router("ra"), lab.network.router("rb"));
    let (ip, port) = PROXY.split_once(':').unwrap_or_default();
    office.load(&Nat::default())?;
    office.namespace.nft(&format!(
        "insert rule inet filter forward iifname lan drop\n\
         insert rule inet filter forward iifname lan ip daddr {ip} tcp dport {port} accept\n"
    ))?;
    home.load(&Nat::default())?;

    let (relay, address) = Node::relay(lab)?;
    let _echo = node::echo(lab, "hb")?;
    let (_serving, ticket) = Node::serve(lab, "hb", &address)?;
    let mut reaching = Node::reach_through(lab, "ha", &address, &ticket, &format!("http://{PROXY}"))?;
    let (path, took) = reaching.connected()?;
    if path != "relay" || !reaching.is_over_tls()? {
        return Err(Stop::Failed(format!("connected by `{path}`, not by the relay over TLS")));
    }
    if took > TLS_LIMIT {
        let limit = TLS_LIMIT.as_millis();
        return Err(Stop::Failed(format!("connected after {} ms, more than {limit}", took.as_millis())));
    }
    let before = relay.relayed()?;
    reaching.exchange(lab, MESSAGES)?;
    let (across, forwarded) = (MESSAGES * traffic::MESSAGE as u64, relay.relayed()? - before);
    if forwarded < across {
        return Err(Stop::Failed(format!("{across} bytes crossed, but the relay forwarded {forwarded}")));
    }
    Ok(Outcome { path: Some("relay"), took: Some(took), note: "through tinyproxy".into() })
}

fn tinyproxy(lab: &Lab) -> Result<Service, Stop> {
    let machine = lab.network.host("open");
    let (ip, port) = PROXY.split_once(':').unwrap_or_default();
    let config = lab.dir.join("tinyproxy.conf");
    let text = format!("Port {port}\nListen {ip}\nTimeout 600\nMaxClients 32\nConnectPort {RELAY_PORT}\n");
    fs::write(&config, text).map_err(|error| Stop::Failed(format!("cannot write {}: {error}", config.display())))?;
    let mut command = machine.command("tinyproxy");
    command.arg("-d").arg("-c").arg(&config);
    let service = Service::start(&mut command, "tinyproxy", &lab.dir)?;
    let listens = || {
        let sockets = process::run(machine.command("ss").args(["-H", "-t", "-l", "-n"]), "").unwrap_or_default();
        sockets.contains(PROXY).then_some(())
    };
    let limit = START_LIMIT.as_secs();
    let started = process::wait_for(START_LIMIT, listens);
    started.ok_or_else(|| Stop::Failed(format!("tinyproxy does not listen after {limit} s: its log is below")))?;
    Ok(service)
}
