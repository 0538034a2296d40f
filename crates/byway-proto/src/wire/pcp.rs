//! The Port Control Protocol (RFC 6887): opcodes MAP and ANNOUNCE, both halves, no options.
//!
//! Both halves, because the simulator's gateways speak it too. Options are left out on purpose: without THIRD_PARTY nobody
//! can ask for another host, and without PREFER_FAILURE another external port than the suggested one is a success.

use alloc::vec::Vec;
use core::{
    net::{IpAddr, Ipv6Addr, SocketAddr},
    time::Duration,
};

/// The UDP port of a gateway, for PCP (RFC 6887 §19.1) and NAT-PMP (RFC 6886 §9) alike.
pub const PORT: u16 = 5351;

/// The version that RFC 6887 defines; NAT-PMP is version 0 of the same port.
pub const VERSION: u8 = 2;

/// The longest message in bytes, either way (RFC 6887 §7).
pub const MAX_LEN: usize = 1_100;

/// Length of a nonce in bytes (RFC 6887 §11.1).
pub const NONCE_LEN: usize = 12;

const HEADER_LEN: usize = 24;
const MAP_LEN: usize = 36;
const RESPONSE: u8 = 0x80;
const ANNOUNCE: u8 = 0;
const MAP: u8 = 1;

/// Options from here on may be ignored by a server (RFC 6887 §7.3).
const FIRST_OPTIONAL: u8 = 128;

/// What a port belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Transport {
    /// UDP, protocol 17.
    Udp,
    /// TCP, protocol 6.
    Tcp,
}

impl Transport {
    const fn number(self) -> u8 {
        match self {
            Transport::Udp => 17,
            Transport::Tcp => 6,
        }
    }

    const fn from_number(number: u8) -> Option<Self> {
        match number {
            17 => Some(Transport::Udp),
            6 => Some(Transport::Tcp),
            _ => None,
        }
    }
}

impl core::fmt::Display for Transport {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Transport::Udp => "udp",
            Transport::Tcp => "tcp",
        })
    }
}

/// What a client asks (RFC 6887 §7.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// The client's own address, by which the server sees whether a NAT lies between them (§8.1).
    pub client: IpAddr,
    /// How long the mapping is to live, in whole seconds; zero removes it (§15).
    pub lifetime: Duration,
    /// What is asked.
    pub body: Body,
}

/// What a server answers (RFC 6887 §7.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Response {
    /// Whether it did what was asked.
    pub outcome: Result<(), Refusal>,
    /// How long the mapping, or the refusal, holds, in whole seconds.
    pub lifetime: Duration,
    /// Seconds since the server lost its mappings (§8.5).
    pub epoch: u32,
    /// The assignment; in a refusal what had been asked.
    pub body: Body,
}

/// The part of a message that belongs to its opcode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Body {
    /// A question for the epoch (RFC 6887 §14.1).
    Announce,
    /// A mapping.
    Map(Map),
}

/// The body of MAP (RFC 6887 §11.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Map {
    /// Proves that the answer is to this question, and that who changes a mapping has made it.
    pub nonce: [u8; NONCE_LEN],
    /// Whose port it is.
    pub transport: Transport,
    /// The client's port.
    pub internal_port: u16,
    /// The external address: suggested in a request (unspecified, or port 0, for no preference), assigned in a response.
    pub external: SocketAddr,
}

/// Why a server did not do what was asked (RFC 6887 §7.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// Code 1.
    #[error("the gateway speaks another version of PCP")]
    UnsupportedVersion,
    /// Code 2.
    #[error("the gateway forbids port mapping; allow PCP, NAT-PMP or UPnP for this machine in its settings")]
    NotAuthorized,
    /// Code 3.
    #[error("the gateway calls our request malformed, which is a bug of ours or of its firmware")]
    Malformed,
    /// Code 4.
    #[error("the gateway does not know this PCP operation")]
    UnsupportedOpcode,
    /// Code 5.
    #[error("the gateway does not know a PCP option of the request")]
    UnsupportedOption,
    /// Code 6.
    #[error("the gateway calls a PCP option malformed")]
    MalformedOption,
    /// Code 7.
    #[error("the gateway has no working network outside; check its internet connection")]
    NetworkFailure,
    /// Code 8.
    #[error("the gateway has no room for another mapping; asked again later")]
    NoResources,
    /// Code 9.
    #[error("the gateway maps no ports of this transport")]
    UnsupportedProtocol,
    /// Code 10.
    #[error("this machine has as many mappings as the gateway grants; remove some of other programs")]
    UserExceededQuota,
    /// Code 11.
    #[error("the gateway cannot give the external address or port that was suggested")]
    CannotProvideExternal,
    /// Code 12.
    #[error("another NAT lies between this machine and the gateway; map ports at the nearer one")]
    AddressMismatch,
    /// Code 13.
    #[error("the gateway grants no more remote peers for this mapping")]
    ExcessiveRemotePeers,
    /// A code of later days.
    #[error("the gateway refuses with PCP result {0}, which this version of Byway does not know")]
    Other(u8),
}

impl Refusal {
    const fn code(self) -> u8 {
        match self {
            Refusal::UnsupportedVersion => 1,
            Refusal::NotAuthorized => 2,
            Refusal::Malformed => 3,
            Refusal::UnsupportedOpcode => 4,
            Refusal::UnsupportedOption => 5,
            Refusal::MalformedOption => 6,
            Refusal::NetworkFailure => 7,
            Refusal::NoResources => 8,
            Refusal::UnsupportedProtocol => 9,
            Refusal::UserExceededQuota => 10,
            Refusal::CannotProvideExternal => 11,
            Refusal::AddressMismatch => 12,
            Refusal::ExcessiveRemotePeers => 13,
            Refusal::Other(code) => code,
        }
    }

    const fn from_code(code: u8) -> Result<(), Self> {
        Err(match code {
            0 => return Ok(()),
            1 => Refusal::UnsupportedVersion,
            2 => Refusal::NotAuthorized,
            3 => Refusal::Malformed,
            4 => Refusal::UnsupportedOpcode,
            5 => Refusal::UnsupportedOption,
            6 => Refusal::MalformedOption,
            7 => Refusal::NetworkFailure,
            8 => Refusal::NoResources,
            9 => Refusal::UnsupportedProtocol,
            10 => Refusal::UserExceededQuota,
            11 => Refusal::CannotProvideExternal,
            12 => Refusal::AddressMismatch,
            13 => Refusal::ExcessiveRemotePeers,
            other => Refusal::Other(other),
        })
    }
}

/// Why a server does not carry out what it received.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// Too short to be a request, or itself a response: it gets silence (RFC 6887 §8.2).
    #[error("not a PCP request; no answer is due")]
    NotARequest,
    /// The client's mistake: it is answered by [`refuse`].
    #[error("the client's request is refused: {0}")]
    Refused(Refusal),
}

/// Why a client does not believe what it received.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ResponseError {
    /// The server answers in this version only; version 0 is NAT-PMP.
    #[error("the gateway speaks version {0} of the protocol, not {VERSION}")]
    OtherVersion(u8),
    /// Not a response to any request of ours.
    #[error("the gateway's message is no PCP response, or a malformed one; its firmware is at fault")]
    Malformed,
}

/// Writes a request: 24 bytes, or 60 with a mapping.
pub fn encode_request(request: &Request) -> Vec<u8> {
    let mut message = Vec::with_capacity(HEADER_LEN + MAP_LEN);
    message.extend([VERSION, opcode(&request.body), 0, 0]);
    message.extend(whole_seconds(request.lifetime).to_be_bytes());
    message.extend(ip_bytes(request.client));
    encode_body(&request.body, &mut message);
    message
}

/// Reads a request, as a server does. Optional options are ignored, all others refused.
pub fn decode_request(message: &[u8]) -> Result<Request, RequestError> {
    let [version, opcode, ..] = *message else { return Err(RequestError::NotARequest) };
    if opcode & RESPONSE != 0 {
        return Err(RequestError::NotARequest);
    }
    if version != VERSION {
        return Err(RequestError::Refused(Refusal::UnsupportedVersion));
    }
    if message.len() > MAX_LEN || !message.len().is_multiple_of(4) {
        return Err(RequestError::Refused(Refusal::Malformed));
    }
    let malformed = RequestError::Refused(Refusal::Malformed);
    let ([_, _, _, _, lifetime @ ..], rest) = message.split_first_chunk::<8>().ok_or(malformed)?;
    let (client, rest) = rest.split_first_chunk::<16>().ok_or(malformed)?;
    let (body, options) = match opcode {
        ANNOUNCE => (Body::Announce, rest),
        MAP => {
            let (map, options) = rest.split_first_chunk::<MAP_LEN>().ok_or(malformed)?;
            (Body::Map(decode_map(map).ok_or(RequestError::Refused(Refusal::UnsupportedProtocol))?), options)
        }
        _ => return Err(RequestError::Refused(Refusal::UnsupportedOpcode)),
    };
    check_options(options).map_err(RequestError::Refused)?;
    Ok(Request { client: ip_of(client), lifetime: seconds(*lifetime), body })
}

/// Writes a response: 24 bytes, or 60 with a mapping.
pub fn encode_response(response: &Response) -> Vec<u8> {
    let result = response.outcome.err().map_or(0, Refusal::code);
    let mut message = Vec::with_capacity(HEADER_LEN + MAP_LEN);
    message.extend([VERSION, RESPONSE | opcode(&response.body), 0, result]);
    message.extend(whole_seconds(response.lifetime).to_be_bytes());
    message.extend(response.epoch.to_be_bytes());
    message.resize(HEADER_LEN, 0);
    encode_body(&response.body, &mut message);
    message
}

/// The refusal of a request, whatever it holds: it is sent back with another header (RFC 6887 §8.3), padded to the next
/// four bytes, cut to [`MAX_LEN`].
pub fn refuse(request: &[u8], refusal: Refusal, retry_after: Duration, epoch: u32) -> Vec<u8> {
    let opcode = request.get(1).copied().unwrap_or(0);
    let mut message = Vec::with_capacity(request.len().min(MAX_LEN).next_multiple_of(4));
    message.extend([VERSION, RESPONSE | opcode, 0, refusal.code()]);
    message.extend(whole_seconds(retry_after).to_be_bytes());
    message.extend(epoch.to_be_bytes());
    message.resize(HEADER_LEN, 0);
    message.extend(request.iter().skip(HEADER_LEN).take(MAX_LEN - HEADER_LEN));
    message.resize(message.len().next_multiple_of(4), 0);
    message
}

/// Reads a response, as a client does. Options, of which it asked none, are ignored.
pub fn decode_response(message: &[u8]) -> Result<Response, ResponseError> {
    match message {
        [version, _, ..] if *version != VERSION => return Err(ResponseError::OtherVersion(*version)),
        [_, opcode, ..] if opcode & RESPONSE != 0 && message.len() <= MAX_LEN && message.len().is_multiple_of(4) => {}
        _ => return Err(ResponseError::Malformed),
    }
    let (header, rest) = message.split_first_chunk::<HEADER_LEN>().ok_or(ResponseError::Malformed)?;
    let [_, opcode, _, result, l0, l1, l2, l3, e0, e1, e2, e3, ..] = *header;
    let body = match opcode & !RESPONSE {
        ANNOUNCE => Body::Announce,
        MAP => rest.first_chunk().and_then(decode_map).map(Body::Map).ok_or(ResponseError::Malformed)?,
        _ => return Err(ResponseError::Malformed),
    };
    Ok(Response {
        outcome: Refusal::from_code(result),
        lifetime: seconds([l0, l1, l2, l3]),
        epoch: u32::from_be_bytes([e0, e1, e2, e3]),
        body,
    })
}

/// Whole seconds as they go on the wire, the longest that fit where there are more.
pub(super) fn whole_seconds(lifetime: Duration) -> u32 {
    u32::try_from(lifetime.as_secs()).unwrap_or(u32::MAX)
}

pub(super) fn seconds(bytes: [u8; 4]) -> Duration {
    Duration::from_secs(u32::from_be_bytes(bytes).into())
}

const fn opcode(body: &Body) -> u8 {
    match body {
        Body::Announce => ANNOUNCE,
        Body::Map(_) => MAP,
    }
}

fn encode_body(body: &Body, message: &mut Vec<u8>) {
    let Body::Map(map) = body else { return };
    message.extend(map.nonce);
    message.extend([map.transport.number(), 0, 0, 0]);
    message.extend(map.internal_port.to_be_bytes());
    message.extend(map.external.port().to_be_bytes());
    message.extend(ip_bytes(map.external.ip()));
}

/// `None` for a transport that we do not map.
fn decode_map(bytes: &[u8; MAP_LEN]) -> Option<Map> {
    let (nonce, rest) = bytes.split_first_chunk::<NONCE_LEN>()?;
    let ([number, _, _, _, i0, i1, e0, e1], ip) = rest.split_first_chunk::<8>()?;
    Some(Map {
        nonce: *nonce,
        transport: Transport::from_number(*number)?,
        internal_port: u16::from_be_bytes([*i0, *i1]),
        external: SocketAddr::new(ip_of(ip.first_chunk()?), u16::from_be_bytes([*e0, *e1])),
    })
}

/// IPv4 addresses travel as IPv4-mapped IPv6 addresses (RFC 6887 §5).
fn ip_bytes(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
        IpAddr::V6(ip) => ip.octets(),
    }
}

fn ip_of(bytes: &[u8; 16]) -> IpAddr {
    IpAddr::V6(Ipv6Addr::from(*bytes)).to_canonical()
}

fn check_options(mut options: &[u8]) -> Result<(), Refusal> {
    while !options.is_empty() {
        let ([code, _, l0, l1], rest) = options.split_first_chunk::<4>().ok_or(Refusal::MalformedOption)?;
        let len = usize::from(u16::from_be_bytes([*l0, *l1])).next_multiple_of(4);
        let (_, rest) = rest.split_at_checked(len).ok_or(Refusal::MalformedOption)?;
        if *code < FIRST_OPTIONAL {
            return Err(Refusal::UnsupportedOption);
        }
        options = rest;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use proptest::prelude::*;

    const NONCE: [u8; 12] = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12];

    fn map(external: &str) -> Map {
        Map { nonce: NONCE, transport: Transport::Udp, internal_port: 4433, external: external.parse().unwrap() }
    }

    fn request() -> Request {
        let body = Body::Map(map("0.0.0.0:4433"));
        Request { client: [10, 1, 0, 2].into(), lifetime: Duration::from_secs(3_600), body }
    }

    fn hex(bytes: &[u8]) -> alloc::string::String {
        bytes.iter().map(|byte| alloc::format!("{byte:02x}")).collect()
    }

    #[test]
    fn bytes_are_the_documented_ones() {
        let mapped = "00000000000000000000ffff";
        let asked = alloc::format!(
            "02010000 00000e10 {mapped}0a010002 0102030405060708090a0b0c 11000000 1151 1151 {mapped}00000000"
        );
        assert_eq!(hex(&encode_request(&request())), asked.replace(' ', ""));
        let answer = Response {
            outcome: Ok(()),
            lifetime: Duration::from_secs(3_600),
            epoch: 7,
            body: Body::Map(map("198.51.100.9:50000")),
        };
        let answered = alloc::format!(
            "02810000 00000e10 00000007 000000000000000000000000 0102030405060708090a0b0c 11000000 1151 c350 {mapped}c6336409"
        );
        assert_eq!(hex(&encode_response(&answer)), answered.replace(' ', ""));
        let announce =
            Request { client: "2001:db8::1".parse().unwrap(), lifetime: Duration::ZERO, body: Body::Announce };
        assert_eq!(hex(&encode_request(&announce)), "020000000000000020010db8000000000000000000000001");
    }

    #[test]
    fn request_for_another_host_is_refused() {
        let mut message = encode_request(&request());
        message.extend([1, 0, 0, 16]); // THIRD_PARTY (RFC 6887 §13.1)
        message.extend([0; 16]);
        assert_eq!(decode_request(&message), Err(RequestError::Refused(Refusal::UnsupportedOption)));
        message[HEADER_LEN + MAP_LEN] = 128;
        assert_eq!(decode_request(&message), Ok(request()));
        message[HEADER_LEN + MAP_LEN + 3] = 17;
        assert_eq!(decode_request(&message), Err(RequestError::Refused(Refusal::MalformedOption)));
    }

    #[test]
    fn mistakes_of_a_client_are_named_and_responses_get_silence() {
        let refused = |message: &[u8]| decode_request(message);
        let good = encode_request(&request());
        assert_eq!(refused(&good[..1]), Err(RequestError::NotARequest));
        let with = |at: usize, byte: u8| {
            let mut message = good.clone();
            message[at] = byte;
            decode_request(&message)
        };
        assert_eq!(with(1, 0x81), Err(RequestError::NotARequest));
        assert_eq!(with(0, 0), Err(RequestError::Refused(Refusal::UnsupportedVersion)));
        assert_eq!(with(1, 2), Err(RequestError::Refused(Refusal::UnsupportedOpcode)));
        assert_eq!(with(36, 1), Err(RequestError::Refused(Refusal::UnsupportedProtocol)));
        assert_eq!(refused(&good[..56]), Err(RequestError::Refused(Refusal::Malformed)));
        assert_eq!(refused(&good[..59]), Err(RequestError::Refused(Refusal::Malformed)));
        assert_eq!(refused(&vec![2; MAX_LEN + 4]), Err(RequestError::Refused(Refusal::Malformed)));
    }

    #[test]
    fn refusal_repeats_the_nonce_of_what_was_asked() {
        let asked = encode_request(&request());
        let refused = refuse(&asked, Refusal::NoResources, Duration::from_secs(30), 9);
        let answer = decode_response(&refused).unwrap();
        assert_eq!((answer.outcome, answer.epoch), (Err(Refusal::NoResources), 9));
        assert_eq!(answer.lifetime, Duration::from_secs(30));
        assert_eq!(answer.body, request().body);
        assert!(refuse(&[9; 3_000], Refusal::Malformed, Duration::ZERO, 0).len() <= MAX_LEN);
    }

    #[test]
    fn answer_of_a_nat_pmp_gateway_names_its_version() {
        assert_eq!(decode_response(&[0, 128, 0, 1, 0, 0, 0, 9]), Err(ResponseError::OtherVersion(0)));
    }

    #[test]
    fn truncated_answers_are_not_believed() {
        let answer = Response {
            outcome: Ok(()),
            lifetime: Duration::ZERO,
            epoch: 0,
            body: Body::Map(map("198.51.100.9:50000")),
        };
        let message = encode_response(&answer);
        for len in 0..message.len() {
            assert_eq!(decode_response(&message[..len]), Err(ResponseError::Malformed), "{len}");
        }
        assert_eq!(decode_response(&encode_request(&request())), Err(ResponseError::Malformed));
    }

    fn any_body() -> impl Strategy<Value = Body> {
        let map = (any::<([u8; 12], bool, u16, IpAddr, u16)>()).prop_map(|(nonce, udp, internal_port, ip, port)| {
            let transport = if udp { Transport::Udp } else { Transport::Tcp };
            Body::Map(Map { nonce, transport, internal_port, external: SocketAddr::new(ip.to_canonical(), port) })
        });
        prop_oneof![Just(Body::Announce), map]
    }

    proptest! {
        #[test]
        fn messages_round_trip(body in any_body(), client: IpAddr, secs: u32, epoch: u32, code: u8) {
            let lifetime = Duration::from_secs(secs.into());
            let request = Request { client: client.to_canonical(), lifetime, body };
            prop_assert_eq!(decode_request(&encode_request(&request)), Ok(request));
            let response = Response { outcome: Refusal::from_code(code), lifetime, epoch, body };
            let message = encode_response(&response);
            prop_assert_eq!(message[3], code);
            prop_assert_eq!(decode_response(&message), Ok(response));
        }

        #[test]
        fn no_bytes_panic(mut message: Vec<u8>, opcode: u8) {
            let _ = (decode_request(&message), decode_response(&message));
            if let [version, code, ..] = message.as_mut_slice() {
                (*version, *code) = (VERSION, opcode);
            }
            let _ = (decode_request(&message), decode_response(&message));
            let refused = refuse(&message, Refusal::Malformed, Duration::MAX, 0);
            prop_assert!(refused.len() <= message.len().next_multiple_of(4).max(HEADER_LEN));
        }
    }
}
