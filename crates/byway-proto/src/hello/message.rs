//! The protobuf messages behind [`Control`], and the way from one to the other.

mod nat;

use alloc::{string::String, vec::Vec};
use core::{net::SocketAddr, time::Duration};

use super::{
    Candidates, Control, ControlError, Garbled, Goodbye, Hello, MAX_CANDIDATES, MAX_DETAIL, MAX_TOLD_RELAYS,
    OpenFailure,
};
use crate::{
    addr::{PeerAddr, decode_socket_addr, encode_socket_addr},
    id::PeerId,
    text::prefix,
    wire::relay_data::AllocId,
};

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Frame {
    #[prost(oneof = "Body", tags = "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13")]
    body: Option<Body>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum Body {
    #[prost(message, tag = "1")]
    Hello(Hello),
    #[prost(message, tag = "2")]
    Candidates(CandidateList),
    #[prost(message, tag = "3")]
    Goodbye(Leave),
    #[prost(message, tag = "4")]
    Register(Empty),
    #[prost(message, tag = "5")]
    Registered(Registered),
    #[prost(message, tag = "6")]
    Open(Allocation),
    #[prost(message, tag = "7")]
    Opened(Allocation),
    #[prost(message, tag = "8")]
    OpenFailed(Allocation),
    #[prost(message, tag = "9")]
    PeerAnew(Allocation),
    #[prost(message, tag = "10")]
    Drain(Drain),
    #[prost(message, tag = "11")]
    NatReport(nat::Report),
    #[prost(message, tag = "12")]
    Punch(nat::Punch),
    #[prost(message, tag = "13")]
    Relays(RelayList),
}

#[derive(Clone, PartialEq, prost::Message)]
struct CandidateList {
    #[prost(bytes = "vec", repeated, tag = "1")]
    addrs: Vec<Vec<u8>>,
    #[prost(uint64, tag = "2")]
    generation: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct RelayList {
    #[prost(bytes = "vec", repeated, tag = "1")]
    relays: Vec<Vec<u8>>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Leave {
    #[prost(uint32, tag = "1")]
    code: u32,
    #[prost(string, tag = "2")]
    detail: String,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
struct Empty {}

#[derive(Clone, PartialEq, prost::Message)]
struct Registered {
    #[prost(bytes = "vec", tag = "1")]
    observed: Vec<u8>,
    #[prost(uint64, tag = "2")]
    max_rate: u64,
    #[prost(uint32, tag = "3")]
    stun_port: u32,
}

/// All messages about one allocation; each uses what it needs.
#[derive(Clone, PartialEq, prost::Message)]
struct Allocation {
    #[prost(fixed64, tag = "1")]
    alloc: u64,
    #[prost(bytes = "vec", tag = "2")]
    peer: Vec<u8>,
    #[prost(fixed64, tag = "3")]
    instance: u64,
    #[prost(uint32, tag = "4")]
    reason: u32,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
struct Drain {
    #[prost(uint64, tag = "1")]
    deadline_ms: u64,
}

impl Frame {
    pub(super) fn from_control(control: &Control) -> Result<Self, ControlError> {
        let body = match control {
            Control::Hello(hello) => Body::Hello(hello.clone()),
            Control::Candidates(Candidates { addrs, .. }) if addrs.len() > MAX_CANDIDATES => {
                return Err(ControlError::TooManyCandidates);
            }
            Control::Candidates(Candidates { addrs, generation }) => {
                let addrs = addrs.iter().map(write_addr).collect();
                Body::Candidates(CandidateList { addrs, generation: *generation })
            }
            Control::Goodbye(Goodbye { code, detail }) => {
                Body::Goodbye(Leave { code: *code, detail: prefix(detail, MAX_DETAIL).into() })
            }
            Control::Register => Body::Register(Empty {}),
            Control::Registered { observed, max_rate, stun_port } => Body::Registered(Registered {
                observed: write_addr(observed),
                max_rate: *max_rate,
                stun_port: stun_port.unwrap_or(0).into(),
            }),
            Control::Open { alloc, peer } => Body::Open(allocation(*alloc, peer)),
            Control::Opened { alloc, peer, instance } => {
                Body::Opened(Allocation { instance: *instance, ..allocation(*alloc, peer) })
            }
            Control::OpenFailed { alloc, peer, reason } => {
                Body::OpenFailed(Allocation { reason: write_reason(*reason), ..allocation(*alloc, peer) })
            }
            Control::PeerAnew { alloc, peer, instance } => {
                Body::PeerAnew(Allocation { instance: *instance, ..allocation(*alloc, peer) })
            }
            Control::Drain { deadline } => {
                Body::Drain(Drain { deadline_ms: u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX) })
            }
            Control::NatReport(report) => Body::NatReport(nat::Report::from(report)),
            Control::Punch(signal) => Body::Punch(nat::Punch::from_signal(signal)?),
            Control::Relays(relays) if relays.len() > MAX_TOLD_RELAYS => return Err(ControlError::TooManyRelays),
            Control::Relays(relays) => {
                Body::Relays(RelayList { relays: relays.iter().map(PeerAddr::to_wire).collect() })
            }
        };
        Ok(Frame { body: Some(body) })
    }

    /// The message, or `None` if it is of a kind that this version does not know.
    pub(super) fn into_control(self) -> Result<Option<Control>, ControlError> {
        let Some(body) = self.body else {
            return Ok(None);
        };
        Ok(Some(match body {
            Body::Hello(hello) => Control::Hello(hello),
            Body::Candidates(list) if list.addrs.len() > MAX_CANDIDATES => {
                return Err(ControlError::PeerMisbehaved(Garbled::Candidates));
            }
            Body::Candidates(CandidateList { addrs, generation }) => {
                let addrs = addrs.iter().map(|addr| read_addr(addr)).collect::<Result<_, _>>()?;
                Control::Candidates(Candidates { addrs, generation })
            }
            Body::Goodbye(Leave { code, detail }) => {
                Control::Goodbye(Goodbye { code, detail: prefix(&detail, MAX_DETAIL).into() })
            }
            Body::Register(Empty {}) => Control::Register,
            Body::Registered(Registered { observed, max_rate, stun_port }) => {
                let stun_port = u16::try_from(stun_port).ok().filter(|port| *port != 0);
                Control::Registered { observed: read_addr(&observed)?, max_rate, stun_port }
            }
            Body::Open(a) => Control::Open { alloc: AllocId(a.alloc), peer: read_peer(&a)? },
            Body::Opened(a) => Control::Opened { alloc: AllocId(a.alloc), peer: read_peer(&a)?, instance: a.instance },
            Body::OpenFailed(a) => {
                Control::OpenFailed { alloc: AllocId(a.alloc), peer: read_peer(&a)?, reason: read_reason(a.reason) }
            }
            Body::PeerAnew(a) => {
                Control::PeerAnew { alloc: AllocId(a.alloc), peer: read_peer(&a)?, instance: a.instance }
            }
            Body::Drain(Drain { deadline_ms }) => Control::Drain { deadline: Duration::from_millis(deadline_ms) },
            Body::NatReport(report) => Control::NatReport(report.read()?),
            Body::Punch(punch) => return Ok(punch.read()?.map(Control::Punch)),
            Body::Relays(RelayList { relays }) => Control::Relays(read_relays(&relays)?),
        }))
    }

    #[cfg(test)]
    pub(super) fn forge_candidates(addrs: &[SocketAddr]) -> Self {
        let addrs = addrs.iter().map(write_addr).collect();
        Frame { body: Some(Body::Candidates(CandidateList { addrs, generation: 0 })) }
    }

    #[cfg(test)]
    pub(super) fn forge_punch(kind: u32, ip: &[u8], ports: Vec<u32>) -> Self {
        let punch = nat::Punch { kind, ip: ip.to_vec(), ports, ..nat::Punch::default() };
        Frame { body: Some(Body::Punch(punch)) }
    }
}

fn allocation(alloc: AllocId, peer: &PeerId) -> Allocation {
    Allocation { alloc: alloc.0, peer: peer.to_wire().to_vec(), instance: 0, reason: 0 }
}

fn read_peer(allocation: &Allocation) -> Result<PeerId, ControlError> {
    PeerId::from_wire(&allocation.peer).ok_or(ControlError::PeerMisbehaved(Garbled::Peer))
}

fn write_addr(addr: &SocketAddr) -> Vec<u8> {
    let mut out = Vec::new();
    encode_socket_addr(addr, &mut out);
    out
}

fn read_relays(relays: &[Vec<u8>]) -> Result<Vec<PeerAddr>, ControlError> {
    let read = || relays.iter().map(|relay| PeerAddr::from_wire(relay)).collect();
    let few = relays.len() <= MAX_TOLD_RELAYS;
    few.then(read).flatten().ok_or(ControlError::PeerMisbehaved(Garbled::Relays))
}

/// Bytes behind the address are for later versions.
fn read_addr(bytes: &[u8]) -> Result<SocketAddr, ControlError> {
    let (addr, _later) = decode_socket_addr(bytes).ok_or(ControlError::PeerMisbehaved(Garbled::Address))?;
    Ok(addr)
}

fn write_reason(reason: OpenFailure) -> u32 {
    match reason {
        OpenFailure::NotRegistered => 1,
        OpenFailure::Taken => 2,
        OpenFailure::TooMany => 3,
        OpenFailure::Draining => 4,
        OpenFailure::Misuse => 5,
        OpenFailure::Idle => 6,
        OpenFailure::Other(code) => code,
    }
}

fn read_reason(code: u32) -> OpenFailure {
    match code {
        1 => OpenFailure::NotRegistered,
        2 => OpenFailure::Taken,
        3 => OpenFailure::TooMany,
        4 => OpenFailure::Draining,
        5 => OpenFailure::Misuse,
        6 => OpenFailure::Idle,
        other => OpenFailure::Other(other),
    }
}
