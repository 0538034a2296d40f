//! The NAT Port Mapping Protocol (RFC 6886): external address and mappings, both halves.
//!
//! It is version 0 of what [`pcp`](super::pcp) is version 2 of, on the same port; IPv4 only, and without a nonce: an answer
//! is known by its source and by the internal port.

use alloc::vec::Vec;
use core::{net::Ipv4Addr, time::Duration};

use super::pcp::{Transport, seconds, whole_seconds};

/// The version that RFC 6886 defines.
pub const VERSION: u8 = 0;

const RESPONSE: u8 = 0x80;
const EXTERNAL_ADDRESS: u8 = 0;
const MAP_UDP: u8 = 1;
const MAP_TCP: u8 = 2;

/// What a client asks (RFC 6886 §3.2, §3.3): 2 or 12 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// The gateway's external address.
    ExternalAddress,
    /// A mapping; with a lifetime of zero its removal (§3.4).
    Map(Map),
}

/// A mapping, as asked for or as made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Map {
    /// Whose port it is.
    pub transport: Transport,
    /// The client's port.
    pub internal_port: u16,
    /// The external port: suggested in a request (0 for no preference), assigned in a response.
    pub external_port: u16,
    /// How long it lives, in whole seconds.
    pub lifetime: Duration,
}

/// What a gateway answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Response {
    /// Seconds since the gateway lost its mappings (RFC 6886 §3.6).
    pub epoch: u32,
    /// The answer.
    pub body: Body,
}

/// The part of an answer that belongs to its opcode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Body {
    /// The gateway's external address.
    ExternalAddress(Ipv4Addr),
    /// The mapping is made.
    Map(Map),
    /// The gateway did not tell its external address.
    AddressRefused(Refusal),
    /// The gateway did not make the mapping.
    MapRefused {
        /// Whose port it was.
        transport: Transport,
        /// The client's port, where the gateway repeats it.
        internal_port: Option<u16>,
        /// The reason.
        refusal: Refusal,
    },
}

/// Why a gateway did not do what was asked (RFC 6886 §3.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// Code 1.
    #[error("the gateway speaks another version of NAT-PMP")]
    UnsupportedVersion,
    /// Code 2.
    #[error("the gateway forbids port mapping; allow NAT-PMP or UPnP for this machine in its settings")]
    NotAuthorized,
    /// Code 3.
    #[error("the gateway has no external address; check its internet connection")]
    NetworkFailure,
    /// Code 4.
    #[error("the gateway has no room for another mapping; asked again later")]
    OutOfResources,
    /// Code 5.
    #[error("the gateway does not know this NAT-PMP operation")]
    UnsupportedOpcode,
    /// A code that RFC 6886 does not define.
    #[error("the gateway refuses with NAT-PMP result {0}, which this version of Byway does not know")]
    Other(u16),
}

impl Refusal {
    const fn code(self) -> u16 {
        match self {
            Refusal::UnsupportedVersion => 1,
            Refusal::NotAuthorized => 2,
            Refusal::NetworkFailure => 3,
            Refusal::OutOfResources => 4,
            Refusal::UnsupportedOpcode => 5,
            Refusal::Other(code) => code,
        }
    }

    /// `None` for success.
    const fn from_code(code: u16) -> Option<Self> {
        Some(match code {
            0 => return None,
            1 => Refusal::UnsupportedVersion,
            2 => Refusal::NotAuthorized,
            3 => Refusal::NetworkFailure,
            4 => Refusal::OutOfResources,
            5 => Refusal::UnsupportedOpcode,
            other => Refusal::Other(other),
        })
    }
}

/// Why a gateway does not carry out what it received.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// Too short, too long, or itself a response: it gets silence.
    #[error("not a NAT-PMP request; no answer is due")]
    NotARequest,
    /// The client's mistake: it is answered by [`refuse`].
    #[error("the client's request is refused: {0}")]
    Refused(Refusal),
}

/// Why a client does not believe what it received.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ResponseError {
    /// The gateway answers in this version only; version 2 is PCP.
    #[error("the gateway speaks version {0} of the protocol, not {VERSION}")]
    OtherVersion(u8),
    /// Not a response to any request of ours.
    #[error("the gateway's message is no NAT-PMP response, or a malformed one; its firmware is at fault")]
    Malformed,
}

/// Writes a request: 2 bytes, or 12 for a mapping.
pub fn encode_request(request: &Request) -> Vec<u8> {
    let mut message = Vec::with_capacity(12);
    match request {
        Request::ExternalAddress => message.extend([VERSION, EXTERNAL_ADDRESS]),
        Request::Map(map) => {
            message.extend([VERSION, opcode(map.transport), 0, 0]);
            encode_map(map, &mut message);
        }
    }
    message
}

/// Reads a request, as a gateway does.
pub fn decode_request(message: &[u8]) -> Result<Request, RequestError> {
    match *message {
        [_, opcode, ..] if opcode & RESPONSE != 0 => Err(RequestError::NotARequest),
        [version, _, ..] if version != VERSION => Err(RequestError::Refused(Refusal::UnsupportedVersion)),
        [_, EXTERNAL_ADDRESS] => Ok(Request::ExternalAddress),
        [_, EXTERNAL_ADDRESS, ..] => Err(RequestError::NotARequest),
        [_, opcode @ (MAP_UDP | MAP_TCP), _, _, ref rest @ ..] => {
            rest.try_into().ok().map(|map| Request::Map(decode_map(opcode, map))).ok_or(RequestError::NotARequest)
        }
        [_, MAP_UDP | MAP_TCP, ..] => Err(RequestError::NotARequest),
        [_, _, ..] => Err(RequestError::Refused(Refusal::UnsupportedOpcode)),
        _ => Err(RequestError::NotARequest),
    }
}

/// Writes an answer: 12 bytes with the address, 16 with a mapping or its refusal, 8 without either.
pub fn encode_response(response: &Response) -> Vec<u8> {
    let mut message = Vec::with_capacity(16);
    let mut header = |opcode: u8, refusal: Option<Refusal>| {
        message.extend([VERSION, RESPONSE | opcode]);
        message.extend(refusal.map_or(0, Refusal::code).to_be_bytes());
        message.extend(response.epoch.to_be_bytes());
    };
    match response.body {
        Body::ExternalAddress(ip) => {
            header(EXTERNAL_ADDRESS, None);
            message.extend(ip.octets());
        }
        Body::Map(map) => {
            header(opcode(map.transport), None);
            encode_map(&map, &mut message);
        }
        Body::AddressRefused(refusal) => {
            header(EXTERNAL_ADDRESS, Some(refusal));
            message.extend([0; 4]);
        }
        Body::MapRefused { transport, internal_port, refusal } => {
            header(opcode(transport), Some(refusal));
            if let Some(internal_port) = internal_port {
                let map = Map { transport, internal_port, external_port: 0, lifetime: Duration::ZERO };
                encode_map(&map, &mut message);
            }
        }
    }
    message
}

/// The refusal of a request that cannot be read (RFC 6886 §3.5): 8 bytes.
pub fn refuse(request: &[u8], refusal: Refusal, epoch: u32) -> Vec<u8> {
    let mut message = Vec::with_capacity(8);
    message.extend([VERSION, RESPONSE | request.get(1).copied().unwrap_or(0)]);
    message.extend(refusal.code().to_be_bytes());
    message.extend(epoch.to_be_bytes());
    message
}

/// Reads an answer, as a client does. Of a refusal the first 8 bytes are enough: gateways differ in what follows.
pub fn decode_response(message: &[u8]) -> Result<Response, ResponseError> {
    let ([version, opcode, r0, r1, epoch @ ..], rest) = message.split_first_chunk::<8>().ok_or(match message {
        [version, ..] if *version != VERSION => ResponseError::OtherVersion(*version),
        _ => ResponseError::Malformed,
    })?;
    if *version != VERSION {
        return Err(ResponseError::OtherVersion(*version));
    }
    let refusal = Refusal::from_code(u16::from_be_bytes([*r0, *r1]));
    // Whatever is asked, another version is refused with opcode 0, without the response bit (RFC 6886 §3.5).
    if opcode & RESPONSE == 0 && refusal != Some(Refusal::UnsupportedVersion) {
        return Err(ResponseError::Malformed);
    }
    let body = match (opcode & !RESPONSE, refusal) {
        (EXTERNAL_ADDRESS, None) => {
            let ip: [u8; 4] = rest.try_into().map_err(|_| ResponseError::Malformed)?;
            Body::ExternalAddress(ip.into())
        }
        (EXTERNAL_ADDRESS, Some(refusal)) => Body::AddressRefused(refusal),
        (opcode @ (MAP_UDP | MAP_TCP), None) => {
            Body::Map(decode_map(opcode, rest.try_into().map_err(|_| ResponseError::Malformed)?))
        }
        (opcode @ (MAP_UDP | MAP_TCP), Some(refusal)) => Body::MapRefused {
            transport: transport(opcode),
            internal_port: rest.first_chunk().map(|port| u16::from_be_bytes(*port)),
            refusal,
        },
        _ => return Err(ResponseError::Malformed),
    };
    Ok(Response { epoch: u32::from_be_bytes(*epoch), body })
}

const fn opcode(transport: Transport) -> u8 {
    match transport {
        Transport::Udp => MAP_UDP,
        Transport::Tcp => MAP_TCP,
    }
}

const fn transport(opcode: u8) -> Transport {
    if opcode == MAP_TCP { Transport::Tcp } else { Transport::Udp }
}

fn encode_map(map: &Map, message: &mut Vec<u8>) {
    message.extend(map.internal_port.to_be_bytes());
    message.extend(map.external_port.to_be_bytes());
    message.extend(whole_seconds(map.lifetime).to_be_bytes());
}

fn decode_map(opcode: u8, bytes: &[u8; 8]) -> Map {
    let [i0, i1, e0, e1, lifetime @ ..] = *bytes;
    Map {
        transport: transport(opcode),
        internal_port: u16::from_be_bytes([i0, i1]),
        external_port: u16::from_be_bytes([e0, e1]),
        lifetime: seconds(lifetime),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MAP: Map = Map {
        transport: Transport::Udp,
        internal_port: 4433,
        external_port: 50_000,
        lifetime: Duration::from_secs(3_600),
    };

    #[test]
    fn bytes_are_the_documented_ones() {
        assert_eq!(encode_request(&Request::ExternalAddress), [0, 0]);
        let map = [0x11, 0x51, 0xc3, 0x50, 0, 0, 0x0e, 0x10];
        assert_eq!(encode_request(&Request::Map(MAP)), [&[0, 1, 0, 0][..], &map].concat());
        let tcp = Map { transport: Transport::Tcp, ..MAP };
        assert_eq!(encode_request(&Request::Map(tcp))[..2], [0, 2]);
        let response = |body| encode_response(&Response { epoch: 7, body });
        assert_eq!(
            response(Body::ExternalAddress([198, 51, 100, 9].into())),
            [0, 128, 0, 0, 0, 0, 0, 7, 198, 51, 100, 9]
        );
        assert_eq!(response(Body::Map(MAP)), [&[0, 129, 0, 0, 0, 0, 0, 7][..], &map].concat());
        assert_eq!(response(Body::AddressRefused(Refusal::NetworkFailure))[..8], [0, 128, 0, 3, 0, 0, 0, 7]);
    }

    #[test]
    fn pcp_request_is_refused_by_its_version() {
        let asked = [2, 1, 0, 0, 0, 0, 0, 0];
        assert_eq!(decode_request(&asked), Err(RequestError::Refused(Refusal::UnsupportedVersion)));
        let refused = refuse(&asked, Refusal::UnsupportedVersion, 9);
        assert_eq!(refused, [0, 129, 0, 1, 0, 0, 0, 9]);
        let refusal = Refusal::UnsupportedVersion;
        let body = Body::MapRefused { transport: Transport::Udp, internal_port: None, refusal };
        assert_eq!(decode_response(&refused), Ok(Response { epoch: 9, body }));
        let by_the_letter = [0, 0, 0, 1, 0, 0, 0, 9];
        let body = Body::AddressRefused(refusal);
        assert_eq!(decode_response(&by_the_letter), Ok(Response { epoch: 9, body }));
    }

    #[test]
    fn answer_of_a_pcp_gateway_names_its_version() {
        assert_eq!(decode_response(&[2, 128, 0, 1]), Err(ResponseError::OtherVersion(2)));
        assert_eq!(decode_response(&[2; 24]), Err(ResponseError::OtherVersion(2)));
    }

    #[test]
    fn wrong_lengths_are_not_believed() {
        for body in [Body::ExternalAddress([198, 51, 100, 9].into()), Body::Map(MAP)] {
            let message = encode_response(&Response { epoch: 7, body });
            for len in 0..message.len() {
                assert_eq!(decode_response(&message[..len]), Err(ResponseError::Malformed), "{len}");
            }
        }
        let message = encode_request(&Request::Map(MAP));
        for len in [0, 1, 2, 3, 11] {
            assert_eq!(decode_request(&message[..len]), Err(RequestError::NotARequest), "{len}");
        }
        assert_eq!(decode_response(&message), Err(ResponseError::Malformed));
        let mut asked = encode_response(&Response { epoch: 7, body: Body::Map(MAP) });
        asked[1] &= !RESPONSE;
        assert_eq!(decode_response(&asked), Err(ResponseError::Malformed));
        assert_eq!(decode_request(&[0, 9]), Err(RequestError::Refused(Refusal::UnsupportedOpcode)));
    }

    fn any_map() -> impl Strategy<Value = Map> {
        any::<(bool, u16, u16, u32)>().prop_map(|(udp, internal_port, external_port, secs)| Map {
            transport: if udp { Transport::Udp } else { Transport::Tcp },
            internal_port,
            external_port,
            lifetime: Duration::from_secs(secs.into()),
        })
    }

    fn any_response_body() -> impl Strategy<Value = Body> {
        let refusal = || (1..=u16::MAX).prop_map(|code| Refusal::from_code(code).unwrap());
        prop_oneof![
            any::<Ipv4Addr>().prop_map(Body::ExternalAddress),
            any_map().prop_map(Body::Map),
            refusal().prop_map(Body::AddressRefused),
            (any::<bool>(), any::<Option<u16>>(), refusal()).prop_map(|(udp, internal_port, refusal)| {
                let transport = if udp { Transport::Udp } else { Transport::Tcp };
                Body::MapRefused { transport, internal_port, refusal }
            }),
        ]
    }

    proptest! {
        #[test]
        fn messages_round_trip(map in any_map(), body in any_response_body(), epoch: u32) {
            prop_assert_eq!(decode_request(&encode_request(&Request::Map(map))), Ok(Request::Map(map)));
            let response = Response { epoch, body };
            prop_assert_eq!(decode_response(&encode_response(&response)), Ok(response));
        }

        #[test]
        fn no_bytes_panic(mut message: Vec<u8>, opcode: u8) {
            let _ = (decode_request(&message), decode_response(&message));
            if let [version, code, ..] = message.as_mut_slice() {
                (*version, *code) = (VERSION, opcode);
            }
            let _ = (decode_request(&message), decode_response(&message), refuse(&message, Refusal::Other(9), 1));
        }
    }
}
