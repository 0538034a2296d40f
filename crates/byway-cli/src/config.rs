//! The configuration file: what a node is told once instead of at every start.

pub(crate) mod link;
pub(crate) mod metrics;
pub(crate) mod nat;
pub(crate) mod peers;
pub(crate) mod relay;
pub(crate) mod tls;

use std::{
    collections::BTreeSet,
    fs, io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
};

use byway::{Access, Config, HostAddr, Identity, PeerAddr, RelayConfig, TlsConfig, nat::AgentConfig};
use byway_proto::ticket::is_service_name;
use serde::{Deserialize, Deserializer, de};

use self::{
    link::LinkTable,
    metrics::{MetricsAddr, MetricsTable},
    nat::{NatBudget, NatTable},
    peers::PeersTable,
    relay::RelayTable,
    tls::TlsTable,
};
use crate::{args::ServerChoice, failure::Failure, store, target::Upstream};

/// The UDP port of a relay that was told none: an operator opens it in a firewall before the first start.
pub(crate) const RELAY_PORT: u16 = 4477;

/// How much of a wrong line an error repeats, in characters.
const MAX_QUOTED: usize = 60;

/// `byway.toml`; `docs/cli.md` explains each key.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct FileConfig {
    /// Only peers of the same network talk to each other.
    pub(crate) network: Option<String>,
    /// The UDP port; unset, the one remembered in the data directory.
    pub(crate) port: Option<u16>,
    /// IPv4 on or off, or the address to listen on.
    pub(crate) ipv4: Family<Ipv4Addr>,
    /// IPv6 on or off, or the address to listen on.
    pub(crate) ipv6: Family<Ipv6Addr>,
    /// Where to register.
    #[serde(deserialize_with = "relays")]
    pub(crate) relays: Vec<PeerAddr>,
    /// Never reach a peer directly.
    pub(crate) relay_only: bool,
    /// Servers that tell how the NATs behave, beside the relays.
    #[serde(deserialize_with = "stun")]
    pub(crate) stun: Vec<HostAddr>,
    /// Ask the gateways to forward the node's port; unset, yes.
    pub(crate) port_mapping: Option<bool>,
    /// How much of the limits of `nat` is used.
    pub(crate) nat_budget: NatBudget,
    /// How direct paths are looked for.
    pub(crate) nat: NatTable,
    /// Look for peers on the local network; unset, yes.
    pub(crate) lan: Option<bool>,
    /// Whether this node relays for others, for whom, and how much.
    pub(crate) relay: RelayTable,
    /// How relays are reached over TLS.
    tls: TlsTable,
    /// How many peers there may be, who is special, who is let in.
    pub(crate) peers: PeersTable,
    /// What one peer may send, be sent, and make this node keep.
    link: LinkTable,
    /// Where the node's figures are told.
    pub(crate) metrics: MetricsTable,
    /// What `byway up` serves.
    pub(crate) serve: Vec<Served>,
    /// Where it was read from.
    #[serde(skip)]
    path: Option<PathBuf>,
}

/// A family's switch: `true`, `false` or an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(untagged, expecting = "expected true, false or an address of this family in quotes")]
pub(crate) enum Family<A> {
    /// On at every address, or off.
    Switch(bool),
    /// On at one address.
    At(A),
}

impl<A> Default for Family<A> {
    fn default() -> Self {
        Family::Switch(true)
    }
}

/// An entry of `[[serve]]`: what `byway serve` takes as arguments.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Served {
    /// The service's name in tickets.
    #[serde(deserialize_with = "service_name")]
    pub(crate) name: String,
    /// Where it leads.
    #[serde(with = "store::text")]
    pub(crate) to: Upstream,
    /// Let in whoever knows the ticket.
    #[serde(default)]
    pub(crate) open: bool,
    /// Leave this machine's addresses out of the ticket.
    #[serde(default)]
    pub(crate) hide_addresses: bool,
}

impl FileConfig {
    /// Reads the file that the user named, or the usual one if it exists.
    pub(crate) fn load(
        named: Option<&Path>,
        usual: impl FnOnce() -> Result<PathBuf, Failure>,
    ) -> Result<Self, Failure> {
        let path = match named {
            Some(path) => path.to_owned(),
            None => usual()?,
        };
        let mut config = match fs::read_to_string(&path) {
            Ok(text) => Self::parse(&text, &path)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound && named.is_none() => FileConfig::default(),
            Err(error) => {
                let (path, hint) = (path.display(), "name another with --config");
                return Err(Failure::usage(format!("cannot read the configuration {path}: {error}; {hint}")));
            }
        };
        let dir = path.parent().unwrap_or(Path::new(""));
        config.tls.read(dir).map_err(|why| Failure::usage(format!("configuration {}: {why}", path.display())))?;
        config.path = Some(path);
        Ok(config)
    }

    /// Reads the same file once more; one that is not there says nothing.
    pub(crate) fn read_again(&self) -> Result<Self, Failure> {
        let path = self.path.clone();
        Self::load(None, || path.ok_or_else(|| Failure::usage("there is no configuration to read again")))
    }

    /// What differs in another version of the file and can be taken over while the node runs: the key, and how.
    pub(crate) fn changes(&self, new: &Self) -> Vec<(&'static str, String)> {
        let ids = |config: &Self| config.relays.iter().map(PeerAddr::to_string).collect();
        let relays = difference(&ids(self), &ids(new)).map(|what| ("relays", what));
        relays.into_iter().chain(self.relay.changes(&new.relay)).collect()
    }

    /// The keys whose change takes effect with the next start only.
    pub(crate) fn needs_restart(&self, new: &Self) -> Vec<&'static str> {
        let keys = [
            ("network", self.network != new.network),
            ("port", self.port != new.port),
            ("ipv4", self.ipv4 != new.ipv4),
            ("ipv6", self.ipv6 != new.ipv6),
            ("relay_only", self.relay_only != new.relay_only),
            ("stun", self.stun != new.stun),
            ("port_mapping", self.port_mapping != new.port_mapping),
            ("nat_budget", self.nat_budget != new.nat_budget),
            ("nat", self.nat != new.nat),
            ("lan", self.lan != new.lan),
            ("tls", self.tls != new.tls),
            ("peers", self.peers != new.peers),
            ("link", self.link != new.link),
            ("metrics", self.metrics != new.metrics),
            ("serve", self.serve != new.serve),
        ];
        keys.into_iter().filter_map(|(key, changed)| changed.then_some(key)).collect()
    }

    fn parse(text: &str, path: &Path) -> Result<Self, Failure> {
        let config: FileConfig = toml::from_str(text).map_err(|error| {
            let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
            let number = before.matches('\n').count();
            let line: String = text.lines().nth(number).unwrap_or_default().trim().chars().take(MAX_QUOTED).collect();
            let (path, what) = (path.display(), error.message().trim().replace('\n', "; "));
            Failure::usage(format!("configuration {path}, line {} ({line}): {what}", number + 1))
        })?;
        let checked = config
            .nat
            .check()
            .and_then(|()| config.link.check())
            .and_then(|()| config.peers.check(config.network.as_deref()));
        checked.map_err(|why| Failure::usage(format!("configuration {}: {why}", path.display())))?;
        let mut names: Vec<&str> = config.serve.iter().map(|served| served.name.as_str()).collect();
        names.sort_unstable();
        match names.windows(2).find_map(|pair| (pair[0] == pair[1]).then_some(pair[0])) {
            Some(name) => Err(Failure::usage(format!(
                "configuration {}: [[serve]] names {name:?} twice; give each service a name of its own",
                path.display()
            ))),
            None => Ok(config),
        }
    }
}

/// What a node is started with: the configuration, and what the command line says over it.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Settings {
    network: Option<String>,
    ipv4: Family<Ipv4Addr>,
    ipv6: Family<Ipv6Addr>,
    port: Port,
    /// Relays to register at.
    pub(crate) relays: Vec<PeerAddr>,
    /// Never reach a peer directly.
    pub(crate) relay_only: bool,
    /// Servers that tell how the NATs behave, those of the command line left out: their command brings them.
    pub(crate) stun: Vec<HostAddr>,
    /// Ask the gateways to forward the node's port, unless this says no.
    port_mapping: Option<bool>,
    /// How direct paths are looked for.
    pub(crate) nat: AgentConfig,
    lan: Option<bool>,
    tls: TlsConfig,
    /// The command is there to relay for others.
    pub(crate) relay: bool,
    /// How this node relays for others, if it does.
    relaying: Option<RelayConfig>,
    /// Where the node's figures are told.
    pub(crate) metrics: MetricsTable,
    /// What the file said.
    pub(crate) file: FileConfig,
}

/// Which UDP port a node listens on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Port {
    /// The remembered one; a relay's was given to others, so that it must be that one.
    #[default]
    Usual,
    /// The remembered one if it is free.
    Any,
    /// This one, and no other.
    Exactly(u16),
}

impl Settings {
    /// A node with the relays of the configuration and of the command line.
    pub(crate) fn new(file: &FileConfig, choice: &ServerChoice) -> Self {
        let mut relays = file.relays.clone();
        for relay in &choice.servers.relays {
            match relays.iter_mut().find(|known| known.id == relay.id) {
                Some(known) => known.clone_from(relay),
                None => relays.push(relay.clone()),
            }
        }
        Settings {
            network: file.network.clone(),
            ipv4: file.ipv4,
            ipv6: file.ipv6,
            port: file.port.filter(|port| *port != 0).map_or(Port::Usual, Port::Exactly),
            relays,
            relay_only: file.relay_only || choice.relay_only,
            stun: file.stun.clone(),
            port_mapping: file.port_mapping,
            nat: file.nat.agent(file.nat_budget),
            lan: file.lan,
            tls: file.tls.config.clone(),
            relay: false,
            relaying: file.relay.config(false),
            metrics: file.metrics,
            file: file.clone(),
        }
    }

    /// The same, with its figures told at `addr` if one is named.
    pub(crate) fn metrics_at(mut self, addr: Option<MetricsAddr>) -> Self {
        self.metrics.listen = addr.or(self.metrics.listen);
        self
    }

    /// A node that relays for others, at one address if one is named.
    pub(crate) fn relaying(file: &FileConfig, listen: Option<SocketAddr>) -> Self {
        let relaying = file.relay.config(true);
        let mut settings = Settings { relay: true, relaying, ..Settings::new(file, &ServerChoice::default()) };
        match listen {
            Some(SocketAddr::V4(addr)) => {
                (settings.ipv4, settings.ipv6) = (Family::At(*addr.ip()), Family::Switch(false));
            }
            Some(SocketAddr::V6(addr)) => {
                (settings.ipv4, settings.ipv6) = (Family::Switch(false), Family::At(*addr.ip()));
            }
            None => {}
        }
        if let Some(addr) = listen {
            settings.port = if addr.port() == 0 { Port::Any } else { Port::Exactly(addr.port()) };
        }
        settings
    }

    /// How a running node is to relay once the file says this: for nobody if it is to stop; `None` if nothing can change, for only
    /// a node that relays from its start does so.
    pub(crate) fn relaying_by(&self, file: &FileConfig) -> Option<RelayConfig> {
        let mut nobody = self.relaying.clone()?;
        nobody.access = Access::Friends(BTreeSet::new());
        Some(file.relay.config(self.relay).unwrap_or(nobody))
    }

    /// Whether the node has to be started anew to relay as the file says.
    pub(crate) fn needs_restart_to_relay(&self, file: &FileConfig) -> bool {
        self.relaying.is_none() && file.relay.config(self.relay).is_some()
    }

    /// What the library is told.
    pub(crate) fn node_config(&self, identity: Identity, remembered: Option<u16>) -> Config {
        let mut config = Config::new(identity);
        if let Some(network) = &self.network {
            config.network.clone_from(network);
        }
        config.ipv4 = self.ipv4.address(Ipv4Addr::UNSPECIFIED);
        config.ipv6 = self.ipv6.address(Ipv6Addr::UNSPECIFIED);
        (config.port, config.any_port) = match self.port {
            Port::Exactly(port) => (port, false),
            Port::Usual if self.relay => (remembered.unwrap_or(RELAY_PORT), false),
            Port::Usual | Port::Any => (remembered.unwrap_or(0), true),
        };
        config.relays.clone_from(&self.relays);
        config.relay.clone_from(&self.relaying);
        config.relay_only = self.relay_only;
        config.stun.clone_from(&self.stun);
        config.port_mapping = self.port_mapping.unwrap_or(config.port_mapping);
        config.nat.clone_from(&self.nat);
        config.lan = self.lan.unwrap_or(config.lan);
        config.tls.clone_from(&self.tls);
        config.link = self.file.link.config();
        self.file.peers.apply(&mut config);
        config
    }
}

impl<A: Copy> Family<A> {
    fn address(self, any: A) -> Option<A> {
        match self {
            Family::Switch(on) => on.then_some(any),
            Family::At(address) => Some(address),
        }
    }
}

/// A number that lies in a range, or the file is refused with the line where it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "i64")]
struct Within<const LEAST: u64, const MOST: u64>(u64);

impl<const LEAST: u64, const MOST: u64> TryFrom<i64> for Within<LEAST, MOST> {
    type Error = String;

    fn try_from(found: i64) -> Result<Self, String> {
        let within = u64::try_from(found).ok().filter(|found| (LEAST..=MOST).contains(found));
        within.map(Within).ok_or_else(|| format!("{found} is out of its range, {LEAST} to {MOST}"))
    }
}

fn set<const LEAST: u64, const MOST: u64>(limit: &mut usize, told: Option<Within<LEAST, MOST>>) {
    if let Some(Within(told)) = told {
        *limit = usize::try_from(told).unwrap_or(usize::MAX);
    }
}

/// How many entries of a list came, and how many went.
fn difference<T: Ord>(old: &BTreeSet<T>, new: &BTreeSet<T>) -> Option<String> {
    let (added, removed) = (new.difference(old).count(), old.difference(new).count());
    (added + removed > 0).then(|| format!("{added} added, {removed} removed"))
}

fn relays<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<PeerAddr>, D::Error> {
    let texts = Vec::<String>::deserialize(deserializer)?;
    let parse = |text: &String| {
        let relay: PeerAddr = text.parse().map_err(|error| format!("relay {text:?}: {error}"))?;
        match relay.addrs.is_empty() {
            true => Err(format!("relay {text:?} has no address; write id@host:port, as `byway relay` prints it")),
            false => Ok(relay),
        }
    };
    texts.iter().map(parse).collect::<Result<_, _>>().map_err(de::Error::custom)
}

fn stun<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<HostAddr>, D::Error> {
    let texts = Vec::<String>::deserialize(deserializer)?;
    let parse = |text: &String| text.parse().map_err(|error| format!("STUN server {text:?}: {error}"));
    texts.iter().map(parse).collect::<Result<_, _>>().map_err(de::Error::custom)
}

fn service_name<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let name = String::deserialize(deserializer)?;
    match is_service_name(&name) {
        true => Ok(name),
        false => Err(de::Error::custom(format!("{name:?} cannot name a service; use letters, digits and -_.:/"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<FileConfig, Failure> {
        FileConfig::parse(text, Path::new("/etc/byway.toml"))
    }

    #[test]
    fn every_key_is_understood() {
        let id = byway_proto::PeerId::ed25519([7; 32]);
        let text = format!(
            r#"
            network = "lab"
            port = 4433
            ipv4 = "192.0.2.1"
            ipv6 = false
            relays = ["{id}@relay.example:443"]
            relay_only = true
            lan = false
            relay = {{ access = "friends", friends = ["{id}"], client_mbit_s = 50, clients = 7 }}
            stun = ["stun.example:3478", "192.0.2.9:3478"]
            port_mapping = false
            nat_budget = "low"
            link = {{ send_mbit_s = 20, evict_after_s = false }}
            tls = {{ proxy = "http://proxy.example:3128", cert = "relay.pem", key = "relay.key", roots = "roots.pem" }}
            [nat]
            challenge_retries = 3
            challenge_interval_ms = 150
            challenge_backoff = 2
            mappings = 128
            probes = 400
            per_second = 100
            scan = {{ offset = -50, count = 100, duration_s = 2 }}
            [[serve]]
            name = "web"
            to = "tcp:127.0.0.1:8080"
            [[serve]]
            name = "ssh"
            to = "tcp:localhost:22"
            open = true
            hide_addresses = true
            "#
        );
        let config = parse(&text).unwrap();
        assert_eq!((config.network.as_deref(), config.port), (Some("lab"), Some(4433)));
        assert_eq!(config.ipv4, Family::At("192.0.2.1".parse().unwrap()));
        assert_eq!(config.ipv6, Family::Switch(false));
        assert_eq!(config.relays[0].id, id);
        assert_eq!(config.lan, Some(false));
        let relay = config.relay.config(false).unwrap();
        assert_eq!((relay.access.clone(), relay.max_clients), (Access::Friends([id].into()), 7));
        let started = Settings::relaying(&config, None).relaying;
        assert_eq!(started, Some(relay), "a relay for friends is no relay for strangers");
        assert!(config.relay_only && config.serve[1].open && config.serve[1].hide_addresses);
        assert_eq!(config.serve[0].to, "tcp:127.0.0.1:8080".parse().unwrap());
        assert_eq!(config.stun[0].to_string(), "stun.example:3478");
        let settings = Settings::new(&config, &ServerChoice::default());
        let node = settings.node_config(Identity::generate(), None);
        assert!(!node.port_mapping && node.link.evict_after.is_none() && node.link.send_rate.is_some());
        let nat = config.nat.agent(NatBudget::Normal);
        let challenge = (nat.challenge.retries, nat.challenge.interval.as_millis(), nat.challenge.backoff);
        assert_eq!(challenge, (3, 150, 2.0));
        assert_eq!((nat.budget.mappings, nat.budget.probes, nat.budget.per_second), (128, 400, 100));
        assert_eq!(nat.scan.map(|scan| (scan.offset, scan.count, scan.duration.as_secs())), Some((-50, 100, 2)));
        assert_eq!(
            Settings::new(&config, &ServerChoice::default()).nat.budget.mappings,
            32,
            "a low budget is a quarter"
        );
    }

    #[test]
    fn what_a_running_node_takes_over_and_what_it_cannot_are_named() {
        let id = byway_proto::PeerId::ed25519([7; 32]);
        let old = parse("network = \"a\"\nrelay.access = \"friends\"\nrelay.clients = 5").unwrap();
        let new = format!(
            "relays = [\"{id}@a:1\"]\nnetwork = \"b\"\nlan = false\nlink.flush_ms = 0\nrelay.friends = [\"{id}\"]"
        );
        let new = parse(&new).unwrap();
        assert_eq!(old.needs_restart(&new), ["network", "lan", "link"]);
        let changes = old.changes(&new);
        let expected = [
            ("relays", "1 added, 0 removed"),
            ("relay.access", "friends -> default"),
            ("relay.clients", "5 -> default"),
            ("relay.friends", "1 added, 0 removed"),
        ];
        assert_eq!(changes.iter().map(|(key, what)| (*key, &**what)).collect::<Vec<_>>(), expected);
        let started = Settings::new(&old, &ServerChoice::default());
        let nobody = started.relaying_by(&new).unwrap().access;
        assert_eq!(nobody, Access::Friends(BTreeSet::new()), "a node may stop relaying while it runs");
        let started = Settings::new(&new, &ServerChoice::default());
        assert!(started.needs_restart_to_relay(&old) && started.relaying_by(&old).is_none());
        assert!(new.changes(&new.clone()).is_empty() && new.needs_restart(&new.clone()).is_empty());
    }

    #[test]
    fn no_nat_budget_leaves_nothing_but_pings() {
        let config = parse("nat_budget = \"off\"\nnat.scan = {}\nnat.mappings = 9").unwrap();
        let nat = Settings::new(&config, &ServerChoice::default()).nat;
        assert_eq!((nat.budget.mappings, nat.budget.probes, nat.scan), (0, 0, None));
        assert_eq!(nat.budget.per_second, AgentConfig::default().budget.per_second);
        assert_eq!(nat.challenge, AgentConfig::default().challenge);
    }

    #[test]
    fn an_unknown_key_is_named_with_its_file_and_line() {
        let failure = parse("network = \"a\"\nprot = 1\n").unwrap_err();
        assert!(failure.message.contains("/etc/byway.toml, line 2") && failure.message.contains("`prot`"), "{failure}");
        let failure = parse("[[serve]]\nname = \"a\"\nto = \"tcp:b:1\"\nopne = true\n").unwrap_err();
        assert!(failure.message.contains("`opne`"), "{failure}");
    }

    #[test]
    fn wrong_values_say_what_would_be_right() {
        for (text, hint) in [
            ("ipv4 = \"::1\"", "(ipv4 = \"::1\"): expected true, false or an address of this family"),
            ("port = 70000", "u16"),
            ("relays = [\"abc@1.2.3.4:5\"]", "truncated"),
            ("stun = [\"stun.example\"]", "no port"),
            ("relay = true", "relay = true"),
            ("relay.friends = [\"abc\"]", "friend"),
            (
                "[relay]\nclients = 1\nclient_mbit_s = 0",
                "line 3 (client_mbit_s = 0): 0 is out of its range, 1 to 100000",
            ),
            ("relay.clients = -1", "-1 is out of its range"),
            ("nat_budget = \"none\"", "`normal`, `low`, `off`"),
            ("[nat]\nmappings = 257", "nat.mappings is 257, but its range is 0 to 256"),
            ("[nat]\nchallenge_interval_ms = 1", "nat.challenge_interval_ms is 1ms, but its range is 10 ms to 10 s"),
            ("[nat]\nchallenge_backoff = nan", "nat.challenge_backoff is NaN, but its range is 1 to 4"),
            ("[nat.scan]\ncount = 1", "nat.scan.count is 1, but its range is 32 to 64511"),
            ("[nat]\nprobes = -1", "line 2 (probes = -1)"),
            ("[nat]\nprobe = 1", "`probe`"),
            ("peers.max = 0", "(peers.max = 0): 0 is out of its range, 1 to 65536"),
            ("peers.persistant = []", "`persistant`"),
            ("peers.exchange = true", "/etc/byway.toml: peers.exchange needs a `network` of your own"),
            ("metrics.listen = \"localhost:9464\"", "write IP:PORT"),
            ("metrics.peers = 1001", "1001 is out of its range, 0 to 1000"),
            ("[[serve]]\nname = \"a b\"\nto = \"tcp:b:1\"", "letters"),
            ("[[serve]]\nname = \"a\"\nto = \"b:1\"", "tcp:HOST:PORT"),
            ("[[serve]]\nname = \"a\"\nto = \"tcp:b:1\"\n[[serve]]\nname = \"a\"\nto = \"tcp:b:2\"", "twice"),
        ] {
            let failure = parse(text).unwrap_err();
            assert!(failure.message.contains(hint), "{failure}");
        }
        let id = byway_proto::PeerId::ed25519([7; 32]);
        assert!(parse(&format!("relays = [\"{id}\"]")).unwrap_err().message.contains("no address"));
    }

    #[test]
    fn a_port_that_was_asked_for_is_the_only_one() {
        let config = |settings: &Settings, remembered| {
            let config = settings.node_config(Identity::generate(), remembered);
            (config.port, config.any_port)
        };
        let plain = Settings::default();
        assert_eq!(config(&plain, None), (0, true));
        assert_eq!(config(&plain, Some(5)), (5, true));
        let told = Settings::new(&parse("port = 7").unwrap(), &ServerChoice::default());
        assert_eq!(config(&told, Some(5)), (7, false));
        let relay =
            |listen: Option<&str>| Settings::relaying(&FileConfig::default(), listen.map(|addr| addr.parse().unwrap()));
        assert_eq!(config(&relay(None), None), (RELAY_PORT, false));
        assert_eq!(config(&relay(None), Some(5)), (5, false));
        assert_eq!(config(&relay(Some("127.0.0.1:9")), Some(5)), (9, false));
        assert_eq!(config(&relay(Some("127.0.0.1:0")), Some(5)), (5, true));
    }

    #[test]
    fn listening_at_one_address_switches_the_other_family_off() {
        let settings = Settings::relaying(&FileConfig::default(), Some("[::1]:9".parse().unwrap()));
        let config = settings.node_config(Identity::generate(), None);
        assert_eq!((config.ipv4, config.ipv6), (None, Some(Ipv6Addr::LOCALHOST)));
    }

    #[test]
    fn a_missing_file_is_the_default_unless_it_was_named() {
        let nowhere = PathBuf::from("/nonexistent/byway.toml");
        let usual = FileConfig { path: Some(nowhere.clone()), ..FileConfig::default() };
        assert_eq!(FileConfig::load(None, || Ok(nowhere.clone())), Ok(usual));
        assert!(FileConfig::load(Some(&nowhere), || Ok(nowhere.clone())).is_err());
    }
}
