//! `byway status`: what the node knows and does.

use comfy_table::{Table, presets::NOTHING};

use super::Shell;
use crate::{
    control::{
        Event, Request,
        event::{
            Path, Peer, Route, Status,
            channel::{Channel, Flow},
            nat::Mapping,
        },
    },
    failure::Failure,
    nat_words::line,
    output::{audience, short},
    session::{self, Session},
};

/// Prints the status once; it needs a node that runs.
pub(super) async fn run(shell: Shell) -> Result<(), Failure> {
    let dir = session::data_dir(&shell.global)?;
    let mut session = Session::attach(&dir, "status").await?;
    session.request(&Request::Status).await?;
    while let Some(event) = session.next().await? {
        match event {
            Event::Status(status) if !shell.output.is_json() => shell.output.result(&describe(&status)),
            event => shell.output.event(&event),
        }
    }
    Ok(())
}

/// What is told of each way to a peer.
pub(super) const ROUTE_COLUMNS: [&str; 8] = ["id", "path", "route", "rtt", "loss", "sent", "received", "why"];

/// What is told of each channel that was ever used.
const CHANNEL_COLUMNS: [&str; 9] = ["id", "channel", "class", "sent", "per s", "waits", "received", "per s", "waits"];

fn describe(status: &Status) -> String {
    let mut parts = vec![head(status)];
    let mut part = |title: &str, columns: &[&str], rows: Vec<Vec<String>>| {
        if !rows.is_empty() {
            parts.push(format!("{title}\n{}", table(columns, rows)));
        }
    };
    let relays = status.relays.iter().map(|relay| {
        let address = relay.address.map_or_else(|| "-".into(), |address| address.to_string());
        vec![short(&relay.id).into(), address, relay.state.clone(), ms(relay.rtt_ms)]
    });
    part("relays", &["id", "address", "state", "rtt"], relays.collect());
    part("port mapping", &["gateway", "forwards", "by", "state"], status.mappings.iter().map(mapping_row).collect());
    let serving = status
        .serving
        .iter()
        .map(|serving| vec![serving.name.clone(), serving.to.clone(), audience(serving), serving.sessions.to_string()]);
    part("serving", &["name", "leads to", "for", "sessions"], serving.collect());
    let reaching = status.reaching.iter().map(|reaching| {
        let state = if reaching.connected { "connected" } else { "dialling" };
        let (peer, service) = (short(&reaching.peer).into(), reaching.service.clone());
        vec![reaching.address.to_string(), peer, service, state.into(), reaching.sessions.to_string()]
    });
    part("reaching", &["at", "peer", "service", "state", "sessions"], reaching.collect());
    part("peers", &ROUTE_COLUMNS, status.peers.iter().flat_map(peer_rows).collect());
    part("channels", &CHANNEL_COLUMNS, status.peers.iter().flat_map(channel_rows).collect());
    let dropped = status.dropped.iter().map(|(why, count)| vec![why.clone(), count.to_string()]);
    part("dropped datagrams", &["reason", "count"], dropped.collect());
    parts.join("\n\n")
}

fn head(status: &Status) -> String {
    let addresses: Vec<String> = status.node.addresses.iter().map(ToString::to_string).collect();
    let processes: Vec<String> = status.processes.iter().map(|one| format!("{} ({})", one.command, one.pid)).collect();
    let mut rows = vec![
        ["node".into(), status.node.id.clone()],
        ["version".into(), status.node.version.clone()],
        ["network".into(), status.node.network.clone()],
        ["data".into(), status.node.data_dir.clone()],
        ["up for".into(), format!("{:.0} s", status.node.uptime_s)],
        ["listens on".into(), addresses.join(", ")],
        ["NAT".into(), line(&status.nat.families)],
        ["used by".into(), processes.join(", ")],
    ];
    if let Some(relaying) = &status.relaying {
        let (clients, pairs, size) = (relaying.clients, relaying.allocations, bytes(relaying.bytes));
        rows.push(["relays for".into(), format!("{clients} nodes, {pairs} pairs; {size} so far")]);
    }
    let memory = &status.memory;
    if memory.peak > 0 {
        let (used, limit, peak) = (bytes(memory.used), bytes(memory.limit), bytes(memory.peak));
        rows.push(["not read yet".into(), format!("{used} of {limit} at most; {peak} once")]);
    }
    table(&[], rows.into_iter().map(Vec::from).collect())
}

fn peer_rows(peer: &Peer) -> Vec<Vec<String>> {
    let id = short(&peer.id).to_owned();
    if peer.routes.is_empty() {
        return vec![vec![id, peer.path.map_or("-", word).into()]];
    }
    peer.routes.iter().map(|route| route_row(id.clone(), route)).collect()
}

/// One way to a peer, under [`ROUTE_COLUMNS`].
pub(super) fn route_row(id: String, route: &Route) -> Vec<String> {
    let mark = if route.selected { "in use" } else { "spare" };
    vec![
        id,
        format!("{} ({mark})", word(route.path)),
        route.remote.to_string(),
        ms(route.rtt_ms),
        format!("{:.0} %", route.loss * 100.0),
        bytes(route.bytes_sent),
        bytes(route.bytes_received),
        route.why.clone(),
    ]
}

fn channel_rows(peer: &Peer) -> Vec<Vec<String>> {
    let flow = |flow: &Flow| [bytes(flow.bytes), bytes(flow.bytes_s as u64), bytes(flow.waiting_bytes)];
    let row = |channel: &Channel| {
        let head = vec![short(&peer.id).to_owned(), channel.name(), channel.class.clone()];
        [head, flow(&channel.sent).into(), flow(&channel.received).into()].concat()
    };
    peer.channels.iter().filter(|channel| channel.is_used()).map(row).collect()
}

/// What a gateway does with the node's port.
pub(super) fn mapping_row(mapping: &Mapping) -> Vec<String> {
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".into());
    let external = mapping.external.map(|external| external.to_string());
    vec![mapping.gateway.to_string(), or_dash(external), or_dash(mapping.by.clone()), mapping.state.clone()]
}

/// Rows in columns, with a heading if there is one.
pub(super) fn table(columns: &[&str], rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_preset(NOTHING);
    if !columns.is_empty() {
        table.set_header(columns);
    }
    table.add_rows(rows);
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>().join("\n")
}

pub(super) fn word(path: Path) -> &'static str {
    match path {
        Path::Direct => "direct",
        Path::Relay => "relay",
    }
}

pub(super) fn ms(value: Option<f64>) -> String {
    value.map_or_else(|| "-".into(), |ms| format!("{ms:.1} ms"))
}

/// A number of bytes as a person reads it.
pub(super) fn bytes(bytes: u64) -> String {
    indicatif::BinaryBytes(bytes).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::event::{Memory, Own, Registration, Serving, nat::Nat};

    fn status() -> Status {
        Status {
            node: Own {
                id: "ahlvvgabqkyq".into(),
                version: "0.1.0".into(),
                network: "byway".into(),
                data_dir: "/d".into(),
                uptime_s: 3.2,
                addresses: vec!["127.0.0.1:9".parse().unwrap()],
                protocols: Vec::new(),
            },
            relays: Vec::new(),
            peers: Vec::new(),
            nat: Nat::default(),
            mappings: Vec::new(),
            serving: Vec::new(),
            reaching: Vec::new(),
            relaying: None,
            memory: Memory::default(),
            dropped: [("junk".to_owned(), 3)].into(),
            processes: Vec::new(),
        }
    }

    #[test]
    fn parts_without_content_are_left_out() {
        let text = describe(&status());
        assert!(text.contains("ahlvvgabqkyq") && text.contains("junk"), "{text}");
        assert!(!text.contains("serving") && !text.contains("peers"), "{text}");
    }

    #[test]
    fn every_part_has_its_rows() {
        let mut status = status();
        let relay = Registration {
            id: "relayrelayrelay".into(),
            address: None,
            home: true,
            registered: false,
            over_tls: false,
            observed: None,
            state: "connecting".into(),
            rtt_ms: None,
        };
        status.relays.push(relay);
        let (name, to) = ("web".into(), "tcp:a:1".into());
        status.serving.push(Serving { name, to, open: false, holders: 1, sessions: 2 });
        let idle = Channel { protocol: "chat".into(), channel: Some(1), ..Channel::default() };
        let mut busy = Channel { channel: None, class: "bulk".into(), ..idle.clone() };
        busy.received = Flow { bytes: 2_048, bytes_s: 1_024.0, ..Flow::default() };
        status.peers.push(Peer {
            id: "peerpeerpeer".into(),
            agent: String::new(),
            path: None,
            rtt_ms: None,
            connected_s: 1.0,
            protocols: Vec::new(),
            channels: vec![idle, busy],
            routes: Vec::new(),
        });
        let text = describe(&status);
        assert!(text.contains("relayrelay  ") && text.contains("connecting") && text.contains("1 peer"), "{text}");
        assert!(text.contains("chat/streams  bulk") && text.contains("2.00 KiB  1.00 KiB"), "{text}");
        assert!(!text.contains("chat/1"), "{text}");
    }
}
