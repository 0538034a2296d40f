//! What two nodes tell each other of their NATs.
//!
//! A behaviour is a number and 0 stands for "not learned", as does every number that this version does not know: a newer
//! peer may have learned what we cannot use.

use alloc::vec::Vec;
use core::{net::IpAddr, time::Duration};

use super::{read_addr, write_addr};
use crate::{
    hello::{ControlError, Garbled},
    nat::{FamilyReport, Filtering, MAX_GUESSES, Mapping, NatReport, Ports, Signal},
};

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Report {
    #[prost(message, optional, tag = "1")]
    ipv4: Option<Family>,
    #[prost(message, optional, tag = "2")]
    ipv6: Option<Family>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Family {
    #[prost(bytes = "vec", optional, tag = "1")]
    public: Option<Vec<u8>>,
    #[prost(bool, tag = "2")]
    untranslated: bool,
    #[prost(uint32, tag = "3")]
    mapping: u32,
    #[prost(uint32, tag = "4")]
    filtering: u32,
    #[prost(uint32, tag = "5")]
    ports: u32,
    #[prost(sint32, tag = "6")]
    step: i32,
    #[prost(bool, optional, tag = "7")]
    hairpin: Option<bool>,
    #[prost(uint64, optional, tag = "8")]
    lifetime_ms: Option<u64>,
    #[prost(bool, optional, tag = "9")]
    carrier: Option<bool>,
}

/// All signals of a punch; each kind uses what it needs.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Punch {
    #[prost(uint32, tag = "1")]
    pub(super) kind: u32,
    #[prost(uint32, tag = "2")]
    pub(super) attempt: u32,
    #[prost(bytes = "vec", tag = "3")]
    pub(super) ip: Vec<u8>,
    #[prost(uint32, tag = "4")]
    pub(super) base: u32,
    #[prost(sint32, tag = "5")]
    pub(super) step: i32,
    #[prost(uint32, repeated, tag = "6")]
    pub(super) ports: Vec<u32>,
}

const PRESERVING: u32 = 1;
const SEQUENTIAL: u32 = 2;
const RANDOM: u32 = 3;

const COUNTER: u32 = 1;
const GUESS: u32 = 2;
const SPRAY: u32 = 3;
const GO: u32 = 4;
const BUSY: u32 = 5;

impl From<&NatReport> for Report {
    fn from(report: &NatReport) -> Self {
        Report { ipv4: report.ipv4.as_ref().map(Family::from), ipv6: report.ipv6.as_ref().map(Family::from) }
    }
}

impl Report {
    pub(super) fn read(self) -> Result<NatReport, ControlError> {
        let read = |family: Option<Family>| family.map(Family::read).transpose();
        Ok(NatReport { ipv4: read(self.ipv4)?, ipv6: read(self.ipv6)? })
    }
}

impl From<&FamilyReport> for Family {
    fn from(report: &FamilyReport) -> Self {
        let (ports, step) = match report.ports {
            None => (0, 0),
            Some(Ports::Preserving) => (PRESERVING, 0),
            Some(Ports::Sequential { step }) => (SEQUENTIAL, step.into()),
            Some(Ports::Random) => (RANDOM, 0),
        };
        Family {
            public: report.public.as_ref().map(write_addr),
            untranslated: report.untranslated,
            mapping: report.mapping.map_or(0, |mapping| match mapping {
                Mapping::EndpointIndependent => 1,
                Mapping::AddressDependent => 2,
                Mapping::AddressAndPortDependent => 3,
            }),
            filtering: report.filtering.map_or(0, |filtering| match filtering {
                Filtering::EndpointIndependent => 1,
                Filtering::AddressDependent => 2,
                Filtering::AddressAndPortDependent => 3,
            }),
            ports,
            step,
            hairpin: report.hairpin,
            lifetime_ms: report.lifetime.map(|lifetime| u64::try_from(lifetime.as_millis()).unwrap_or(u64::MAX)),
            carrier: report.carrier,
        }
    }
}

impl Family {
    fn read(self) -> Result<FamilyReport, ControlError> {
        Ok(FamilyReport {
            public: self.public.as_deref().map(read_addr).transpose()?,
            untranslated: self.untranslated,
            mapping: match self.mapping {
                1 => Some(Mapping::EndpointIndependent),
                2 => Some(Mapping::AddressDependent),
                3 => Some(Mapping::AddressAndPortDependent),
                _ => None,
            },
            filtering: match self.filtering {
                1 => Some(Filtering::EndpointIndependent),
                2 => Some(Filtering::AddressDependent),
                3 => Some(Filtering::AddressAndPortDependent),
                _ => None,
            },
            ports: match self.ports {
                PRESERVING => Some(Ports::Preserving),
                SEQUENTIAL => Some(Ports::Sequential { step: read_step(self.step)? }),
                RANDOM => Some(Ports::Random),
                _ => None,
            },
            hairpin: self.hairpin,
            lifetime: self.lifetime_ms.map(Duration::from_millis),
            carrier: self.carrier,
        })
    }
}

impl Punch {
    pub(super) fn from_signal(signal: &Signal) -> Result<Self, ControlError> {
        Ok(match signal {
            Signal::Counter { attempt, ip, base, step } => Punch {
                base: u32::from(*base),
                step: i32::from(*step),
                ip: write_ip(*ip),
                ..Punch::new(COUNTER, *attempt)
            },
            Signal::Guess { ports, .. } if ports.len() > MAX_GUESSES => return Err(ControlError::TooManyGuesses),
            Signal::Guess { attempt, ip, ports } => Punch {
                ip: write_ip(*ip),
                ports: ports.iter().map(|port| u32::from(*port)).collect(),
                ..Punch::new(GUESS, *attempt)
            },
            Signal::Spray { attempt } => Punch::new(SPRAY, *attempt),
            Signal::Go { attempt, ip } => Punch { ip: write_ip(*ip), ..Punch::new(GO, *attempt) },
            Signal::Busy { attempt } => Punch::new(BUSY, *attempt),
        })
    }

    fn new(kind: u32, attempt: u32) -> Self {
        Punch { kind, attempt, ..Punch::default() }
    }

    /// The signal, or `None` if it is of a kind that this version does not know.
    pub(super) fn read(self) -> Result<Option<Signal>, ControlError> {
        let attempt = self.attempt;
        Ok(Some(match self.kind {
            COUNTER => Signal::Counter {
                attempt,
                ip: read_ip(&self.ip)?,
                base: read_port(self.base)?,
                step: i16::try_from(self.step).map_err(|_| ControlError::PeerMisbehaved(Garbled::Step))?, // 0: keeps the port
            },
            GUESS if self.ports.len() > MAX_GUESSES => return Err(ControlError::PeerMisbehaved(Garbled::Guesses)),
            GUESS => {
                let ports = self.ports.iter().map(|port| read_port(*port)).collect::<Result<_, _>>()?;
                Signal::Guess { attempt, ip: read_ip(&self.ip)?, ports }
            }
            SPRAY => Signal::Spray { attempt },
            GO => Signal::Go { attempt, ip: read_ip(&self.ip)? },
            BUSY => Signal::Busy { attempt },
            _ => return Ok(None),
        }))
    }
}

fn write_ip(ip: IpAddr) -> Vec<u8> {
    match ip.to_canonical() {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

fn read_ip(bytes: &[u8]) -> Result<IpAddr, ControlError> {
    let ipv4 = || <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    let ip = ipv4().or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from));
    ip.map(|ip| ip.to_canonical()).map_err(|_| ControlError::PeerMisbehaved(Garbled::Address))
}

fn read_port(port: u32) -> Result<u16, ControlError> {
    u16::try_from(port).ok().filter(|port| *port != 0).ok_or(ControlError::PeerMisbehaved(Garbled::Port))
}

/// A counter moves, and no port is further away than 32,768.
fn read_step(step: i32) -> Result<i16, ControlError> {
    i16::try_from(step).ok().filter(|step| *step != 0).ok_or(ControlError::PeerMisbehaved(Garbled::Step))
}
