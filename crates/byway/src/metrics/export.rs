//! A node's figures in the text form that Prometheus reads (exposition format 0.0.4); `docs/operate.md` explains each.
//!
//! All figures exist already where they belong; this only names and prints them, so it needs no registry.

use std::{
    collections::BTreeMap,
    fmt::{self, Write},
};

use crate::{
    event::PathKind,
    node::Node,
    status::{ChannelStatus, NodeStatus, PeerStatus},
};

/// The most peers that have figures of their own: each has seven lines in every answer.
pub const MAX_METRIC_PEERS: usize = 1_000;

/// A node's figures at one moment; `Display` prints them as Prometheus reads them.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use byway::{Config, Identity, Node};
///
/// let node = Node::bind(Config::new(Identity::generate()).listen(([127, 0, 0, 1], 0).into())).await?;
/// let text = node.metrics(0).await.to_string(); // to be served as `text/plain; version=0.0.4`
/// assert!(text.contains("\nbyway_peers{path=\"direct\"} 0\n"));
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Metrics(String);

/// A figure that is exported: its name, its kind, its meaning.
struct Family(&'static str, &'static str, &'static str);

const FAMILIES: [Family; 31] = [
    Family("byway_info", "gauge", "Always 1; the label tells the version."),
    Family("byway_uptime_seconds", "gauge", "How long the node has been running."),
    Family("byway_peers", "gauge", "Connected peers, by what their connections go through."),
    Family(
        "byway_connections",
        "gauge",
        "Connections the packet path knows: peers, relays, those being made or just ended.",
    ),
    Family("byway_relays", "gauge", "Relays where the node wants to be registered, by whether it is."),
    Family("byway_port_mappings", "gauge", "Gateways that forward the node's port."),
    Family("byway_events_total", "counter", "What has happened to the node, by kind of event."),
    Family("byway_events_missed_total", "counter", "Events lost to listeners that read too slowly."),
    Family("byway_dropped_total", "counter", "Datagrams not carried on and handshakes turned away, by reason."),
    Family("byway_channel_messages_total", "counter", "Messages of a channel; of byte streams, those opened."),
    Family("byway_channel_bytes_total", "counter", "Bytes of a channel, or of a protocol's byte streams."),
    Family("byway_channel_dropped_total", "counter", "Messages of a channel that were not carried, by reason."),
    Family("byway_channel_waiting_messages", "gauge", "Messages that wait to be sent, or to be read."),
    Family("byway_channel_waiting_bytes", "gauge", "Bytes that wait to be sent, or to be read."),
    Family("byway_punch_sockets_total", "counter", "Sockets opened to get through NATs."),
    Family("byway_punch_guesses_total", "counter", "Packets sent to ports that were guessed."),
    Family("byway_punch_pings_total", "counter", "Pings to addresses that peers told."),
    Family("byway_punch_deferred_total", "counter", "Packets that waited because a second's budget was spent."),
    Family("byway_punch_hard_total", "counter", "Punches that took many ports or guesses."),
    Family("byway_relay_clients", "gauge", "Clients that are registered at this node's relay."),
    Family("byway_relay_pairs", "gauge", "Pairs of clients that this node forwards for."),
    Family("byway_relay_datagrams_total", "counter", "Datagrams that this node has forwarded."),
    Family("byway_relay_bytes_total", "counter", "Bytes that this node has forwarded."),
    Family("byway_peer_connected_seconds", "gauge", "How long a peer has been connected."),
    Family("byway_peer_direct", "gauge", "1 if the connection to a peer takes no relay, else 0."),
    Family("byway_peer_rtt_seconds", "gauge", "Round-trip time of the path to a peer."),
    Family("byway_peer_loss_ratio", "gauge", "Share of lost probes on the path to a peer."),
    Family(
        "byway_peer_goodput_bytes_per_second",
        "gauge",
        "What the path to a peer was seen to deliver at most of late.",
    ),
    Family("byway_peer_bytes_total", "counter", "Bytes of all channels and streams of a peer since it is connected."),
    Family(
        "byway_peer_dropped_total",
        "counter",
        "Messages of all channels of a peer that were not carried since it is connected.",
    ),
    Family("byway_peers_unlisted", "gauge", "Connected peers without figures of their own."),
];

impl Node {
    /// The node's figures for Prometheus; up to `peers` connected peers, at most [`MAX_METRIC_PEERS`], have figures of their own,
    /// the first in the order of their ids. Without any nothing tells who they are, and there are as many lines however many connect.
    pub async fn metrics(&self, peers: usize) -> Metrics {
        let (status, mut totals) = (self.status().await, self.core().registry.channels(None));
        add_waiting(&mut totals, &status);
        let events = &self.core().events;
        let mut page = Page::default();
        node(&mut page, &status);
        for (event, count) in events.counts() {
            page.put("byway_events_total", &[("event", event)], count as f64);
        }
        page.put("byway_events_missed_total", &[], events.missed() as f64);
        totals.iter().for_each(|channel| totals_of(&mut page, channel));
        let listed = peers.min(MAX_METRIC_PEERS).min(status.peers.len());
        status.peers[..listed].iter().for_each(|status| peer(&mut page, status));
        if peers > 0 {
            page.put("byway_peers_unlisted", &[], (status.peers.len() - listed) as f64);
        }
        Metrics(page.print())
    }
}

fn node(page: &mut Page, status: &NodeStatus) {
    page.put("byway_info", &[("version", env!("CARGO_PKG_VERSION"))], 1.0);
    page.put("byway_uptime_seconds", &[], status.uptime.as_secs_f64());
    for (word, path) in [("direct", Some(PathKind::Direct)), ("relay", Some(PathKind::Relay)), ("none", None)] {
        let count = status.peers.iter().filter(|peer| peer.path == path).count();
        page.put("byway_peers", &[("path", word)], count as f64);
    }
    page.put("byway_connections", &[], status.aliases as f64);
    for (word, registered) in [("yes", true), ("no", false)] {
        let count = status.relays.iter().filter(|relay| relay.home && relay.registered == registered).count();
        page.put("byway_relays", &[("registered", word)], count as f64);
    }
    let mapped = status.mappings.iter().filter(|mapping| mapping.external.is_some()).count();
    page.put("byway_port_mappings", &[], mapped as f64);
    for (reason, count) in &status.dropped {
        page.put("byway_dropped_total", &[("reason", reason)], *count as f64);
    }
    let spent = &status.nat.spent;
    page.put("byway_punch_sockets_total", &[], spent.mappings as f64);
    page.put("byway_punch_guesses_total", &[], spent.probes as f64);
    page.put("byway_punch_pings_total", &[], spent.pings as f64);
    page.put("byway_punch_deferred_total", &[], spent.deferred as f64);
    page.put("byway_punch_hard_total", &[], spent.hard_punches as f64);
    if let Some(relay) = &status.serving {
        page.put("byway_relay_clients", &[], relay.clients as f64);
        page.put("byway_relay_pairs", &[], relay.allocations as f64);
        page.put("byway_relay_datagrams_total", &[], relay.datagrams as f64);
        page.put("byway_relay_bytes_total", &[], relay.bytes as f64);
    }
}

fn totals_of(page: &mut Page, channel: &ChannelStatus) {
    let name = channel.channel.map_or_else(|| "streams".into(), |channel| channel.to_string());
    let labels = [("protocol", channel.protocol.as_str()), ("channel", &name)];
    for (direction, flow) in [("sent", &channel.sent), ("received", &channel.received)] {
        let labels = [labels[0], labels[1], ("direction", direction)];
        page.put("byway_channel_messages_total", &labels, flow.messages as f64);
        page.put("byway_channel_bytes_total", &labels, flow.bytes as f64);
        page.put("byway_channel_waiting_messages", &labels, flow.waiting_messages as f64);
        page.put("byway_channel_waiting_bytes", &labels, flow.waiting_bytes as f64);
    }
    for (reason, count) in &channel.dropped {
        page.put("byway_channel_dropped_total", &[labels[0], labels[1], ("reason", reason)], *count as f64);
    }
}

/// What waits for all peers together, added to what was carried for them.
fn add_waiting(totals: &mut [ChannelStatus], status: &NodeStatus) {
    for channel in status.peers.iter().flat_map(|peer| &peer.channels) {
        let is_same =
            |total: &&mut ChannelStatus| (&total.protocol, total.channel) == (&channel.protocol, channel.channel);
        let Some(total) = totals.iter_mut().find(is_same) else { continue };
        for (total, flow) in [(&mut total.sent, &channel.sent), (&mut total.received, &channel.received)] {
            total.waiting_messages += flow.waiting_messages;
            total.waiting_bytes += flow.waiting_bytes;
        }
    }
}

fn peer(page: &mut Page, status: &PeerStatus) {
    let id = status.id.to_string();
    let label = ("peer", id.as_str());
    page.put("byway_peer_connected_seconds", &[label], status.connected.as_secs_f64());
    page.put("byway_peer_direct", &[label], f64::from(u8::from(status.path == Some(PathKind::Direct))));
    if let Some(route) = status.routes.iter().find(|route| route.selected) {
        page.put("byway_peer_loss_ratio", &[label], route.loss);
        if let Some(rtt) = route.rtt {
            page.put("byway_peer_rtt_seconds", &[label], rtt.as_secs_f64());
        }
        if let Some(goodput) = route.goodput {
            page.put("byway_peer_goodput_bytes_per_second", &[label], goodput as f64);
        }
    }
    let sum = |of: fn(&ChannelStatus) -> u64| status.channels.iter().map(of).sum::<u64>() as f64;
    page.put("byway_peer_bytes_total", &[label, ("direction", "sent")], sum(|channel| channel.sent.bytes));
    page.put("byway_peer_bytes_total", &[label, ("direction", "received")], sum(|channel| channel.received.bytes));
    page.put("byway_peer_dropped_total", &[label], sum(|channel| channel.dropped.iter().map(|(_, count)| count).sum()));
}

/// The lines of each family that has any.
#[derive(Default)]
struct Page(BTreeMap<&'static str, String>);

impl Page {
    fn put(&mut self, name: &'static str, labels: &[(&str, &str)], value: f64) {
        debug_assert!(FAMILIES.iter().any(|family| family.0 == name), "{name} is not listed");
        let lines = self.0.entry(name).or_default();
        let labels: Vec<_> = labels.iter().map(|(label, text)| format!("{label}=\"{}\"", Escaped(text))).collect();
        let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
        let _ = writeln!(lines, "{name}{labels} {value}"); // a string takes everything
    }

    fn print(self) -> String {
        let mut page = String::new();
        for Family(name, kind, help) in FAMILIES {
            if let Some(lines) = self.0.get(name) {
                let _ = write!(page, "# HELP {name} {help}\n# TYPE {name} {kind}\n{lines}"); // as above
            }
        }
        page
    }
}

/// A label's value, with the three characters escaped that end it otherwise.
struct Escaped<'a>(&'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|found| match found {
            '\\' | '"' => write!(f, "\\{found}"),
            '\n' => f.write_str("\\n"),
            _ => f.write_char(found),
        })
    }
}

impl fmt::Display for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::{Channel, Config, Identity, Protocol};

    /// The manual, whose table has a row for each name.
    const MANUAL: &str = include_str!("../../../../docs/operate.md");

    #[test]
    fn the_manual_lists_exactly_the_names_that_are_exported() {
        let rows = MANUAL.lines().filter_map(|line| line.strip_prefix("| `byway_"));
        let listed: Vec<_> =
            rows.filter_map(|row| row.split_once('`')).map(|(name, _)| format!("byway_{name}")).collect();
        let exported: BTreeSet<_> = FAMILIES.iter().map(|family| family.0.to_owned()).collect();
        assert_eq!(listed.iter().cloned().collect::<BTreeSet<_>>(), exported);
        assert_eq!(listed.len(), FAMILIES.len(), "no name twice");
        for Family(name, kind, _) in FAMILIES {
            assert_eq!(
                name.ends_with("_total"),
                kind == "counter",
                "{name}: the suffix of counters, and of nothing else"
            );
        }
    }

    #[test]
    fn a_label_may_have_any_value() {
        let mut page = Page::default();
        page.put("byway_info", &[("version", "a\"b\\c\nd")], 1.0);
        assert!(page.print().ends_with("\nbyway_info{version=\"a\\\"b\\\\c\\nd\"} 1\n"));
    }

    #[tokio::test]
    async fn every_line_belongs_to_a_family_and_peers_are_named_only_on_demand() {
        let node = |n| async move {
            let config = Config::new(Identity::from_seed([n; 32])).listen(([127, 0, 0, 1], 0).into());
            let node = Node::bind(config).await.unwrap();
            let mut chat = Protocol::new("chat\"", 1..=1);
            let channel = chat.channel(Channel::new(1));
            (node.clone(), node.register(chat).unwrap(), channel)
        };
        let (mut a, b) = (node(1).await, node(2).await);
        a.0.dial(b.0.ticket()).await.unwrap();
        a.1.next().await;
        assert_eq!(a.2.0.send(&crate::To::All, "hello".into()).queued, 1);
        let plain = a.0.metrics(0).await.to_string();
        assert!(!plain.contains(&b.0.id().to_string()) && !plain.contains("byway_peer_"), "{plain}");
        assert!(plain.contains("byway_events_total{event=\"peer_up\"} 1\n"), "{plain}");
        let labels = "protocol=\"chat\\\"\",channel=\"1\",direction=\"sent\"";
        assert!(plain.contains(&format!("byway_channel_messages_total{{{labels}}} ")), "{plain}");
        let named = a.0.metrics(1).await.to_string();
        assert!(named.contains(&format!("byway_peer_direct{{peer=\"{}\"}}", b.0.id())), "{named}");
        assert!(named.contains("byway_peers_unlisted 0\n"), "{named}");
        let mut family = "";
        for line in named.lines() {
            match line.strip_prefix("# TYPE ") {
                Some(of) => family = of.split_once(' ').unwrap().0,
                None if line.starts_with('#') => {}
                None => {
                    assert!(line.starts_with(family), "{line} in {family}");
                    assert!(line.rsplit_once(' ').unwrap().1.parse::<f64>().is_ok(), "{line}");
                }
            }
        }
    }
}
