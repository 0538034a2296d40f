//! Ports that the gateway forwards to this node: asked for by PCP (RFC 6887), NAT-PMP (RFC 6886) and UPnP-IGD, kept alive,
//! made again when the gateway has restarted, removed at the end.
//!
//! All dialects are asked **who is there** at once, and the first that answers is asked for the ports. The mappings themselves
//! are not raced: a gateway keeps one table for all dialects, so that removing the loser's entry would remove the winner's.
//! The machine speaks PCP and NAT-PMP itself; UPnP is HTTP and XML, which the driver speaks for it.
//!
//! A mapping is the gateway's word only. Whether packets come through is found out by those who use it.

mod epoch;
mod gateway;
mod lease;
#[cfg(test)]
mod tests;

use alloc::{collections::VecDeque, string::String, vec::Vec};
use core::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use self::gateway::AtGateway;
use super::candidates::is_private;
use crate::{
    Instant, Rng,
    addr::candidate::is_probeable,
    wire::{natpmp, pcp},
};

pub use crate::wire::pcp::Transport;

/// Gateways that are asked: a machine with two lines and both families has four.
pub const MAX_GATEWAYS: usize = 4;

/// Ports that are mapped at each gateway.
pub const MAX_PORTS: usize = 4;

/// What a mapping is asked for: long enough that renewals are rare, short enough that what a crashed node leaves behind
/// is gone within the hour.
pub const LIFETIME: Duration = Duration::from_secs(3_600);

/// External ports that are tried until one is free: the internal port and those after it.
pub const EXTERNAL_PORTS: u16 = 20;

/// How often one NAT-PMP request is sent: after 250 ms, and then after twice as long each time. RFC 6886 §3.1 would have
/// nine, which is two minutes for a gateway that is not there.
pub const NATPMP_TRIES: u8 = 5;

/// How often one PCP request is sent: after 3 s, and then after twice as long each time (RFC 6887 §8.1.1, which sets no limit).
pub const PCP_TRIES: u8 = 3;

/// Most datagrams that a gateway costs which answers nothing, until [`SILENT_RETRY`] or another network.
pub const PACKETS_TO_A_SILENT_GATEWAY: u8 = NATPMP_TRIES + PCP_TRIES;

/// When a gateway that answered nothing is asked again: somebody may have switched port mapping on.
pub const SILENT_RETRY: Duration = Duration::from_secs(3_600);

/// When a gateway that refused is asked again: at first, doubled each time, and at most.
pub const REFUSED_RETRY: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(3_600));

/// How often a gateway is asked for its epoch, which tells whether it has restarted and lost its mappings; one datagram each.
pub const CHECK: Duration = Duration::from_secs(60);

/// How often UPnP mappings, for which there is no epoch, are simply made again.
pub const UPNP_REFRESH: Duration = Duration::from_secs(300);

/// Shortest pause between two renewals, however short a lifetime the gateway grants.
pub const MIN_RENEWAL: Duration = Duration::from_secs(4);

/// How long the driver may take for a UPnP request before the machine goes on without it: searching takes 3 s, the requests after
/// it 2 s each.
pub const UPNP_TIMEOUT: Duration = Duration::from_secs(10);

/// How long closing waits for the gateways to confirm removals.
pub const CLOSE_DEADLINE: Duration = Duration::from_secs(1);

/// A way out of this machine: a gateway and the address of ours that it sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Gateway {
    /// The gateway's address on the link.
    pub addr: IpAddr,
    /// The interface's index where `addr` is link-local (RFC 4007), otherwise 0.
    pub scope: u32,
    /// This machine's address towards it; of the same family.
    pub local: IpAddr,
}

/// A port of this node that should be reachable from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Port {
    /// Whose port it is.
    pub transport: Transport,
    /// Its number; never 0.
    pub number: u16,
}

/// The protocol that made a mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Dialect {
    /// PCP (RFC 6887).
    Pcp,
    /// NAT-PMP (RFC 6886).
    NatPmp,
    /// UPnP's Internet Gateway Device, version 1 or 2.
    Upnp,
}

impl core::fmt::Display for Dialect {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Dialect::Pcp => "PCP",
            Dialect::NatPmp => "NAT-PMP",
            Dialect::Upnp => "UPnP",
        })
    }
}

/// A port that a gateway says it forwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mapping {
    /// The gateway.
    pub gateway: Gateway,
    /// Our port.
    pub port: Port,
    /// Where the outside reaches it, as far as the gateway knows. The port may be another than ours.
    pub external: SocketAddr,
    /// How it was made.
    pub by: Dialect,
    /// When it ends unless it is renewed; `None` if never.
    pub expires: Option<Instant>,
    /// The gateway's own address is not a public one: it stands behind another NAT, often a carrier's, and the mapping
    /// leads no further than that.
    pub carrier: bool,
}

/// Why there is no mapping, or no longer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Why {
    /// Nothing answered.
    #[error(
        "the gateway answers neither PCP, NAT-PMP nor UPnP; switch one of them on in its settings, or forward the port by hand"
    )]
    Silent,
    /// Refused over PCP.
    #[error(transparent)]
    Pcp(#[from] pcp::Refusal),
    /// Refused over NAT-PMP.
    #[error(transparent)]
    NatPmp(#[from] natpmp::Refusal),
    /// Refused over UPnP, in the gateway's words.
    #[error("the gateway refuses over UPnP: {0}")]
    Upnp(String),
    /// Other machines have all external ports that were tried.
    #[error("other machines hold the external port and the {} after it; choose another port", EXTERNAL_PORTS - 1)]
    PortsTaken,
    /// The gateway has lost its mappings; they are being made again.
    #[error("the gateway has restarted; the port is being mapped again")]
    Restarted,
    /// No renewal was answered in time.
    #[error("the gateway answered no renewal, and the mapping's time is over; it is asked anew")]
    Expired,
    /// The machine has left the gateway's network.
    #[error("this machine is on another network now")]
    NetworkChanged,
    /// The node closes.
    #[error("the node is closing")]
    Closed,
}

/// What the machine is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// The network is this one from now on, or may be: all its gateways, of which the first [`MAX_GATEWAYS`] count. What was mapped
    /// at a gateway that stays is renewed at once.
    Gateways(Vec<Gateway>),
    /// A datagram came to the socket bound to `local`.
    Datagram {
        /// The socket's address.
        local: IpAddr,
        /// The sender.
        from: SocketAddr,
        /// What it sent.
        datagram: Vec<u8>,
    },
    /// What became of an [`Output::Upnp`].
    Upnp {
        /// The gateway.
        gateway: Gateway,
        /// The answer.
        answer: UpnpAnswer,
    },
    /// Remove everything, for at most [`CLOSE_DEADLINE`].
    Close,
    /// The time of `poll_timeout` has come.
    Timeout,
}

/// What the driver does over UPnP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UpnpRequest {
    /// Find the gateway's control URL; to be answered by `Found` or `Failed`.
    Find,
    /// Map a port, or renew it; to be answered by `Added` or `Failed`.
    Add {
        /// The port.
        port: Port,
        /// The wanted external port.
        external: u16,
        /// For how long; `None` for ever.
        lifetime: Option<Duration>,
    },
    /// Remove a mapping; to be answered by `Removed`, whether it succeeded or not.
    Remove {
        /// The port.
        port: Port,
        /// Its external port.
        external: u16,
    },
}

/// What a gateway said over UPnP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UpnpAnswer {
    /// It is there.
    Found,
    /// It is not there, or does not speak UPnP.
    NotFound(String),
    /// The port is mapped.
    Added {
        /// The port.
        port: Port,
        /// The external address and port.
        external: SocketAddr,
    },
    /// The port is not mapped.
    Refused {
        /// The port.
        port: Port,
        /// The reason.
        refusal: UpnpRefusal,
    },
    /// The mapping is gone, as far as the gateway said anything.
    Removed {
        /// The port.
        port: Port,
    },
}

/// Why a gateway maps no port over UPnP, as far as that matters for the next attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UpnpRefusal {
    /// Another machine has the external port (error 718).
    Taken,
    /// Only mappings without an end are made (error 725).
    PermanentOnly,
    /// Anything else, in words.
    Other(String),
}

/// What the machine has decided.
///
/// Exhaustive on purpose: a driver that skips a decision is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Send a datagram to [`pcp::PORT`] of the gateway, from its `local` address.
    Send {
        /// The gateway.
        gateway: Gateway,
        /// What to send.
        datagram: Vec<u8>,
    },
    /// Do this over UPnP, without making anything else wait.
    Upnp {
        /// The gateway.
        gateway: Gateway,
        /// What to do.
        request: UpnpRequest,
    },
    /// A port is mapped, or mapped otherwise than before, or the mapping was renewed.
    Mapped(Mapping),
    /// A mapping that was told is none any more.
    Lost {
        /// The gateway.
        gateway: Gateway,
        /// The port.
        port: Port,
        /// The reason.
        why: Why,
    },
    /// A gateway that was asked for a port did not map it; it is asked again later.
    Refused {
        /// The gateway.
        gateway: Gateway,
        /// The port.
        port: Port,
        /// The reason.
        why: Why,
    },
    /// Everything is removed, or the deadline is over. The last output.
    Closed,
}

/// The port mappings of one node.
#[derive(Debug)]
pub struct PortMap {
    ports: Vec<Port>,
    rng: Rng,
    gateways: Vec<AtGateway>,
    /// The deadline, once closing.
    closing: Option<Instant>,
    closed: bool,
    out: VecDeque<Output>,
}

impl PortMap {
    /// A machine that keeps these ports mapped, the first [`MAX_PORTS`] of them, once it is told the gateways.
    pub fn new(ports: impl IntoIterator<Item = Port>, seed: &[u8; 32], _now: Instant) -> Self {
        PortMap {
            ports: ports.into_iter().filter(|port| port.number != 0).take(MAX_PORTS).collect(),
            rng: Rng::new(seed, "port mapping"),
            gateways: Vec::new(),
            closing: None,
            closed: false,
            out: VecDeque::new(),
        }
    }

    /// Takes in what happened.
    pub fn handle_input(&mut self, input: Input, now: Instant) {
        if self.closed {
            return;
        }
        let mut turn = Turn { now, rng: &mut self.rng, out: &mut self.out };
        match input {
            Input::Gateways(gateways) if self.closing.is_none() => self.set_gateways(gateways, now),
            Input::Gateways(_) => {}
            Input::Datagram { local, from, datagram } => {
                // An answer is believed from the gateway's own address and port only (RFC 6887 §8.3, RFC 6886 §3.1).
                let asked = |at: &&mut AtGateway| {
                    at.gateway.local == local && at.gateway.addr == from.ip() && from.port() == pcp::PORT
                };
                if let Some(at) = self.gateways.iter_mut().find(asked) {
                    at.datagram(&datagram, &mut turn);
                }
            }
            Input::Upnp { gateway, answer } => {
                if let Some(at) = self.gateways.iter_mut().find(|at| at.gateway == gateway) {
                    at.upnp(answer, &mut turn);
                }
            }
            Input::Close => {
                if self.closing.is_none() {
                    self.closing = Some(now + CLOSE_DEADLINE);
                    for at in &mut self.gateways {
                        at.close(&mut turn);
                    }
                }
            }
            Input::Timeout => {
                for at in &mut self.gateways {
                    at.timeout(&mut turn);
                }
            }
        }
        let over = self.closing.is_some_and(|deadline| now >= deadline);
        if self.closing.is_some() && (over || self.gateways.iter().all(AtGateway::is_empty)) {
            self.closed = true;
            self.gateways.clear();
            self.out.push_back(Output::Closed);
        }
    }

    /// The next decision, until there is none.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.out.pop_front()
    }

    /// When [`Input::Timeout`] is due, and for what.
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        let closing = self.closing.filter(|_| !self.closed).map(|at| (at, "close deadline"));
        self.gateways.iter().filter_map(AtGateway::next_timer).chain(closing).min()
    }

    /// The mappings that there are.
    pub fn mappings(&self) -> impl Iterator<Item = Mapping> {
        self.gateways.iter().flat_map(AtGateway::mappings)
    }

    fn set_gateways(&mut self, mut wanted: Vec<Gateway>, now: Instant) {
        wanted.retain(|gateway| gateway.addr.is_ipv4() == gateway.local.is_ipv4());
        let mut seen = Vec::new();
        wanted.retain(|gateway| {
            seen.len() < MAX_GATEWAYS && !seen.contains(gateway) && {
                seen.push(*gateway);
                true
            }
        });
        let mut turn = Turn { now, rng: &mut self.rng, out: &mut self.out };
        self.gateways.retain_mut(|at| {
            let stays = wanted.contains(&at.gateway);
            if !stays {
                at.leave(&mut turn);
            }
            stays
        });
        for gateway in wanted {
            match self.gateways.iter_mut().find(|at| at.gateway == gateway) {
                Some(at) => at.ask_again(&mut turn),
                None => {
                    let mut at = AtGateway::new(gateway, &self.ports, turn.rng);
                    at.discover(&mut turn);
                    self.gateways.push(at);
                }
            }
        }
    }
}

/// Whether packets from anywhere can be addressed to what a gateway calls its own address.
pub fn is_public(ip: IpAddr) -> bool {
    !is_private(ip) && is_probeable(SocketAddr::new(ip, pcp::PORT), false).is_ok()
}

/// One call of the machine: its time, and where it draws and writes.
struct Turn<'a> {
    now: Instant,
    rng: &'a mut Rng,
    out: &'a mut VecDeque<Output>,
}

impl Turn<'_> {
    fn send(&mut self, gateway: Gateway, datagram: Vec<u8>) {
        self.out.push_back(Output::Send { gateway, datagram });
    }

    fn upnp(&mut self, gateway: Gateway, request: UpnpRequest) {
        self.out.push_back(Output::Upnp { gateway, request });
    }
}
