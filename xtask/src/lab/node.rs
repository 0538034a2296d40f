//! The shipping binary on the machines of the lab.

use std::{path::PathBuf, process::Command, time::Duration};

use serde_json::Value;

use crate::{
    Stop,
    lab::{Lab, network::Namespace, process, process::Service, traffic},
};

/// How long a node may take to start, and to register at its relay.
const START_LIMIT: Duration = Duration::from_secs(8);
/// How long a dial may take until any path carries it.
pub(crate) const DIAL_LIMIT: Duration = Duration::from_secs(10);
/// How long an exchange without trouble may take.
const EXCHANGE_LIMIT: Duration = Duration::from_secs(15);
/// How long `byway check` may take: its own limit, and a start.
const CHECK_LIMIT: Duration = Duration::from_secs(18);
/// What the logs hold that a failure prints.
const LOG: &str = "byway=debug,byway_proto=debug";
/// Where `reach` opens its port.
const REACHED: &str = "127.0.0.1:7001";

/// A node: a process of `byway`, and where its data is.
#[derive(Debug)]
pub(crate) struct Node {
    service: Service,
    machine: Namespace,
    byway: PathBuf,
    data: PathBuf,
}

impl Node {
    fn start(lab: &Lab, machine: &str, args: &[&str]) -> Result<Self, Stop> {
        Node::start_with(lab, machine, args, None)
    }

    fn start_with(lab: &Lab, machine: &str, args: &[&str], proxy: Option<&str>) -> Result<Self, Stop> {
        let namespace = lab.network.host(machine).clone();
        let data = lab.dir.join(machine);
        let mut node = command(&namespace, &lab.byway, &data);
        node.arg("--until-stdin-closes").args(args).env("BYWAY_LOG", LOG).env("NO_COLOR", "1");
        node.envs(proxy.map(|proxy| ("HTTPS_PROXY", proxy)));
        let service = Service::start(&mut node, machine, &lab.dir)?;
        Ok(Node { service, machine: namespace, byway: lab.byway.clone(), data })
    }

    /// A relay on the relay's machine, and its address; the same as before if there was one in this scenario.
    pub(crate) fn relay(lab: &Lab) -> Result<(Self, String), Stop> {
        Node::relay_on(lab, "relay")
    }

    /// A relay on `machine`, and its address as it knows it.
    pub(crate) fn relay_on(lab: &Lab, machine: &str) -> Result<(Self, String), Stop> {
        let mut node = Node::start(lab, machine, &["relay"])?;
        let event = node.service.event(START_LIMIT, "relay", |_| true)?;
        let address = event["address"].as_str().unwrap_or_default().to_owned();
        Ok((node, address))
    }

    /// A node that serves the echo on its machine, registered at `relay`, and its ticket.
    pub(crate) fn serve(lab: &Lab, machine: &str, relay: &str) -> Result<(Self, String), Stop> {
        let to = format!("tcp:{}", traffic::ECHO);
        let mut node = Node::start(lab, machine, &["serve", "echo", &to, "--open", "--relay", relay])?;
        let event = node.service.event(START_LIMIT, "ticket", |_| true)?;
        node.service.event(START_LIMIT, "relay_up", |_| true)?;
        let ticket = event["ticket"].as_str().unwrap_or_default().to_owned();
        Ok((node, ticket))
    }

    /// A node without a relay that serves the echo, and its ticket.
    pub(crate) fn alone(lab: &Lab, machine: &str) -> Result<(Self, String), Stop> {
        let to = format!("tcp:{}", traffic::ECHO);
        let mut node = Node::start(lab, machine, &["serve", "echo", &to, "--open"])?;
        let event = node.service.event(START_LIMIT, "ticket", |_| true)?;
        Ok((node, event["ticket"].as_str().unwrap_or_default().to_owned()))
    }

    /// The UDP port of its IPv4 socket, which every node keeps in its data directory.
    pub(crate) fn port(&self) -> Result<u16, Stop> {
        let text = std::fs::read_to_string(self.data.join("port")).unwrap_or_default();
        text.trim().parse().map_err(|_| Stop::Failed(format!("{} holds no port", self.data.join("port").display())))
    }

    /// A node that dials the holder of `ticket`, registered at `relay` if there is one.
    pub(crate) fn reach(lab: &Lab, machine: &str, relay: Option<&str>, ticket: &str) -> Result<Self, Stop> {
        let mut args = vec!["reach", ticket, "--listen", REACHED];
        args.extend(relay.iter().flat_map(|relay| ["--relay", relay]));
        Node::start(lab, machine, &args)
    }

    /// A node that dials the holder of `ticket`, and gets to the relay through a proxy.
    pub(crate) fn reach_through(
        lab: &Lab,
        machine: &str,
        relay: &str,
        ticket: &str,
        proxy: &str,
    ) -> Result<Self, Stop> {
        Node::start_with(lab, machine, &["reach", ticket, "--listen", REACHED, "--relay", relay], Some(proxy))
    }

    /// Whether it reaches its relay over TLS.
    pub(crate) fn is_over_tls(&self) -> Result<bool, Stop> {
        Ok(self.status()?["relays"][0]["over_tls"] == true)
    }

    /// Waits for the first connection: the path, and the time since the dial began.
    pub(crate) fn connected(&mut self) -> Result<(String, Duration), Stop> {
        let event = self.service.event(DIAL_LIMIT, "connected", |_| true)?;
        let ms = event["ms"].as_f64().unwrap_or(f64::INFINITY);
        let took = Duration::try_from_secs_f64(ms / 1e3).unwrap_or(Duration::MAX);
        Ok((event["path"].as_str().unwrap_or_default().to_owned(), took))
    }

    /// Whether this node sends directly to `peer`.
    pub(crate) fn is_direct_to(&self, peer: &str) -> Result<bool, Stop> {
        let status = self.status()?;
        let peers = status["peers"].as_array().map(Vec::as_slice).unwrap_or_default();
        Ok(peers.iter().any(|one| one["id"] == peer && one["path"] == "direct"))
    }

    /// Whether this node, which reaches a peer, sends to it directly.
    pub(crate) fn is_direct(&self) -> Result<bool, Stop> {
        let status = self.status()?;
        let peer = status["reaching"][0]["peer"].as_str().unwrap_or_default();
        self.is_direct_to(peer)
    }

    /// Its id.
    pub(crate) fn id(&self) -> Result<String, Stop> {
        Ok(self.status()?["id"].as_str().unwrap_or_default().to_owned())
    }

    /// What `byway status` tells.
    pub(crate) fn status(&self) -> Result<Value, Stop> {
        let text = process::run(command(&self.machine, &self.byway, &self.data).arg("status"), "")?;
        let status = text.lines().filter_map(|line| serde_json::from_str(line).ok()).next_back();
        status.ok_or_else(|| Stop::Failed("`byway status --json` printed no object".into()))
    }

    /// Moves `messages` across and back through the port of `reach`; gives the longest pause.
    pub(crate) fn exchange(&self, lab: &Lab, messages: u64) -> Result<Duration, Stop> {
        let mut exchange = self.begin_exchange(lab, messages, 0)?;
        finish_exchange(&mut exchange, EXCHANGE_LIMIT)
    }

    /// Begins to move messages, one each `interval` milliseconds.
    pub(crate) fn begin_exchange(&self, lab: &Lab, messages: u64, interval: u64) -> Result<Service, Stop> {
        let words = ["exchange", REACHED, &messages.to_string(), &interval.to_string()];
        traffic::start(&self.machine, &words, "exchange", &lab.dir)
    }

    /// Ends it as a power cut would.
    pub(crate) fn kill(self) {
        self.service.kill();
    }

    /// The bytes that this node, a relay, has forwarded.
    pub(crate) fn relayed(&self) -> Result<u64, Stop> {
        let status = self.status()?;
        let bytes = status["relaying"]["bytes"].as_u64();
        bytes.ok_or_else(|| Stop::Failed("the relay's status tells no `relaying.bytes`".into()))
    }
}

/// Waits for the end of an exchange; gives the longest pause.
pub(crate) fn finish_exchange(exchange: &mut Service, limit: Duration) -> Result<Duration, Stop> {
    let event = exchange.event(limit, "exchanged", |_| true)?;
    Ok(Duration::from_millis(event["longest_ms"].as_u64().unwrap_or(u64::MAX)))
}

/// What `byway check` on `machine` finds by asking a STUN server.
pub(crate) fn check(lab: &Lab, machine: &str, server: &str) -> Result<Value, Stop> {
    let mut check = command(lab.network.host(machine), &lab.byway, &lab.dir.join("check"));
    check.args(["check", "--stun", server]).env("BYWAY_LOG", LOG).env("NO_COLOR", "1");
    Service::start(&mut check, "check", &lab.dir)?.event(CHECK_LIMIT, "check", |_| true)
}

/// An echo server on `machine`.
pub(crate) fn echo(lab: &Lab, machine: &str) -> Result<Service, Stop> {
    let mut echo = traffic::start(lab.network.host(machine), &["echo"], "echo", &lab.dir)?;
    echo.event(START_LIMIT, "listening", |_| true)?;
    Ok(echo)
}

/// The command under test, with a data directory of its own.
pub(crate) fn command(machine: &Namespace, byway: &std::path::Path, data: &std::path::Path) -> Command {
    let mut command = machine.command(&byway.to_string_lossy());
    command.arg("--json").arg("--data-dir").arg(data);
    // No configuration of the machine's owner, and nothing of the environment's choice.
    command.arg("--config").arg("/dev/null");
    command
}
