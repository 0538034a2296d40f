//! What the command line points at: a local service, a peer, a peer's service.

use std::{fmt, str::FromStr};

use byway_proto::{PeerId, Ticket, addr::HostAddr, id, ticket::is_service_name};

/// Where `serve` leads: a TCP service, usually on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Upstream(HostAddr);

impl Upstream {
    /// The host as the resolver takes it, and the port.
    pub(crate) fn host_and_port(&self) -> (String, u16) {
        match &self.0 {
            HostAddr::Socket(addr) => (addr.ip().to_string(), addr.port()),
            HostAddr::Name(name, port) | HostAddr::Wss(name, port) => (name.clone(), *port),
        }
    }
}

impl FromStr for Upstream {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let Some(host) = text.strip_prefix("tcp:") else {
            return Err(format!(
                "{text:?} does not say what to serve; write tcp:HOST:PORT, such as tcp:127.0.0.1:8080"
            ));
        };
        host.parse().map(Upstream).map_err(|error: byway_proto::addr::ParseHostAddrError| error.to_string())
    }
}

impl fmt::Display for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "tcp:{}", self.0)
    }
}

/// Whom `reach`, `pipe` and `ping` are to find.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Destination {
    /// All that the other side wrote down.
    Ticket(Box<Ticket>),
    /// Somebody whom this node knows already, and perhaps one of their services.
    Known {
        /// A peer id, or enough of its beginning.
        peer: PeerName,
        /// The service after the slash.
        service: Option<String>,
    },
}

/// A peer as a user writes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum PeerName {
    /// The whole id.
    Id(PeerId),
    /// The beginning of an id, at least [`MIN_PREFIX`] characters.
    Prefix(String),
}

/// The shortest beginning of an id that may stand for it: what every table prints is [`id::SHORT_LEN`].
pub(crate) const MIN_PREFIX: usize = 6;

impl PeerName {
    /// Whether `id` may be meant.
    pub(crate) fn matches(&self, id: &PeerId) -> bool {
        match self {
            PeerName::Id(own) => own == id,
            PeerName::Prefix(prefix) => id.to_string().starts_with(prefix.as_str()),
        }
    }
}

impl FromStr for PeerName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let lower = text.to_ascii_lowercase();
        let is_prefix = (MIN_PREFIX..id::TEXT_LEN).contains(&lower.len())
            && lower.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'2'..=b'7'));
        match lower.parse() {
            Ok(id) => Ok(PeerName::Id(id)),
            // Nobody types 50 characters and means a prefix: that is an id with its end cut off.
            Err(_) if is_prefix && lower.len() <= id::TEXT_LEN / 2 => Ok(PeerName::Prefix(lower)),
            Err(error) => Err(error.to_string()),
        }
    }
}

impl fmt::Display for PeerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PeerName::Id(id) => id.fmt(f),
            PeerName::Prefix(prefix) => f.write_str(prefix),
        }
    }
}

impl FromStr for Destination {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        if looks_like_ticket(text) {
            return text.parse().map(|ticket| Destination::Ticket(Box::new(ticket))).map_err(|e| format!("{e}"));
        }
        let (peer, service) = match text.split_once('/') {
            Some((peer, service)) => (peer, Some(service)),
            None => (text, None),
        };
        if let Some(name) = service.filter(|name| !is_service_name(name)) {
            return Err(format!("{name:?} cannot be a service's name; use letters, digits and -_.:/"));
        }
        let peer = peer
            .parse()
            .map_err(|error| format!("this is neither a ticket (which begins with byway1) nor a peer: {error}"))?;
        Ok(Destination::Known { peer, service: service.map(str::to_owned) })
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Destination::Ticket(ticket) => ticket.fmt(f),
            Destination::Known { peer, service: None } => peer.fmt(f),
            Destination::Known { peer, service: Some(service) } => write!(f, "{peer}/{service}"),
        }
    }
}

/// Whether a ticket was meant, however damaged: `1` occurs in no peer id.
fn looks_like_ticket(text: &str) -> bool {
    let start: String = text.chars().filter(|found| !found.is_whitespace()).take(6).collect();
    start.to_ascii_lowercase().starts_with("byway1")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id() -> PeerId {
        PeerId::ed25519([7; 32])
    }

    #[test]
    fn upstreams_take_names_and_both_families() {
        for text in ["tcp:localhost:80", "tcp:127.0.0.1:8080", "tcp:[::1]:22"] {
            assert_eq!(text.parse::<Upstream>().unwrap().to_string(), text);
        }
        assert_eq!("tcp:[::1]:22".parse::<Upstream>().unwrap().host_and_port(), ("::1".into(), 22));
    }

    #[test]
    fn an_upstream_without_scheme_or_port_says_what_to_write() {
        assert!("localhost:80".parse::<Upstream>().unwrap_err().contains("tcp:HOST:PORT"));
        assert!("tcp:localhost".parse::<Upstream>().unwrap_err().contains("no port"));
        assert!("udp:localhost:80".parse::<Upstream>().is_err());
    }

    #[test]
    fn destinations_are_tickets_ids_or_the_beginning_of_ids() {
        let mut ticket = Ticket::new(id());
        ticket.service = Some("web".into());
        let text = ticket.to_string();
        assert_eq!(text.parse(), Ok(Destination::Ticket(Box::new(ticket.clone()))));
        assert_eq!(format!(" {}\n", text.to_uppercase()).parse(), Ok(Destination::Ticket(Box::new(ticket))));
        let known = |peer, service: Option<&str>| Destination::Known { peer, service: service.map(str::to_owned) };
        assert_eq!(id().to_string().parse(), Ok(known(PeerName::Id(id()), None)));
        assert_eq!(format!("{}/web", id()).parse(), Ok(known(PeerName::Id(id()), Some("web"))));
        let short = PeerName::Prefix(id().short());
        assert!(short.matches(&id()));
        assert_eq!(format!("{}/a/b", id().short()).parse(), Ok(known(short, Some("a/b"))));
    }

    #[test]
    fn a_cut_id_is_an_error_and_not_a_prefix() {
        let text = id().to_string();
        assert!(text[..50].parse::<Destination>().unwrap_err().contains("truncated"));
        assert!("abc".parse::<Destination>().is_err());
        assert!("".parse::<Destination>().is_err());
        assert!(format!("{text}/").parse::<Destination>().unwrap_err().contains("name"));
    }

    #[test]
    fn a_damaged_ticket_is_told_from_a_peer() {
        let text = Ticket::new(id()).to_string();
        assert!(text[..20].parse::<Destination>().unwrap_err().contains("truncated"));
        assert!(format!("{text}a").parse::<Destination>().unwrap_err().contains("ticket"));
    }
}
