//! STUN's binding request and response (RFC 8489): "from which address do I seem to come?"
//!
//! [`Request`] and [`Response`] add what RFC 5780 needs to learn how a NAT behaves. Of it our relays do RESPONSE-PORT only.

use alloc::vec::Vec;
use core::net::{IpAddr, SocketAddr};

const COOKIE: u32 = 0x2112_a442;
const HEADER_LEN: usize = 20;
const BINDING_REQUEST: u16 = 0x0001;
const BINDING_RESPONSE: u16 = 0x0101;
const CHANGE_REQUEST: u16 = 0x0003;
const XOR_MAPPED_ADDRESS: u16 = 0x0020;
const PADDING: u16 = 0x0026;
const RESPONSE_PORT: u16 = 0x0027;
const RESPONSE_ORIGIN: u16 = 0x802b;
const OTHER_ADDRESS: u16 = 0x802c;
/// The flags of CHANGE-REQUEST (RFC 5780 §7.2).
const CHANGE_IP: u8 = 4;
const CHANGE_PORT: u8 = 2;
const FAMILY_IPV4: u8 = 1;
const FAMILY_IPV6: u8 = 2;

/// The longest binding response that we send, in bytes (to an IPv6 address); the request has 20.
pub const MAX_RESPONSE_LEN: usize = 44;

/// Whether a datagram has STUN's magic cookie in its place (RFC 8489 §5).
#[inline]
pub fn has_cookie(datagram: &[u8]) -> bool {
    matches!(datagram, [_, _, _, _, cookie @ ..] if cookie.starts_with(&COOKIE.to_be_bytes()))
}

/// The transaction id that a datagram has, if it is as long as STUN's header (RFC 8489 §5).
pub fn txid(datagram: &[u8]) -> Option<[u8; 12]> {
    datagram.get(8..HEADER_LEN)?.try_into().ok()
}

/// A binding request without attributes: 20 bytes.
pub fn binding_request(txid: [u8; 12]) -> Vec<u8> {
    header(BINDING_REQUEST, &txid)
}

/// The transaction id of a well-formed binding request.
///
/// `None` also for one with an attribute that the server must understand: RFC 8489 §6.3.1 asks for an error response,
/// but strangers who want more than their address get silence.
pub fn parse_request(datagram: &[u8]) -> Option<[u8; 12]> {
    let (txid, attributes) = parse_message(datagram, BINDING_REQUEST)?;
    let mut attributes = Attributes(attributes);
    attributes.all(|attribute| attribute.is_some_and(|(kind, _)| kind >= FIRST_OPTIONAL)).then_some(txid)
}

/// The answer to a binding request that came from `addr`: one XOR-MAPPED-ADDRESS (RFC 8489 §14.2), 32 or 44 bytes.
pub fn binding_response(txid: [u8; 12], addr: SocketAddr) -> Vec<u8> {
    Response { txid, mapped: addr, origin: None, other: None }.to_bytes()
}

/// The address that a server has seen, if this is its well-formed answer to our request `txid`.
///
/// `None` also if an attribute that a client must understand is unknown (RFC 8489 §6.3.3).
pub fn parse_response(datagram: &[u8], txid: &[u8; 12]) -> Option<SocketAddr> {
    Response::parse(datagram).filter(|response| response.txid == *txid).map(|response| response.mapped)
}

/// A binding request, and from where and to where it wants its answer (RFC 5780 §7).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Request {
    /// Repeated in the answer.
    pub txid: [u8; 12],
    /// Answer from the server's other IP address.
    pub change_ip: bool,
    /// Answer from the server's other port.
    pub change_port: bool,
    /// Answer to this port of the address that the request came from.
    pub response_port: Option<u16>,
}

impl Request {
    /// The request as a datagram, at most 36 bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut message = header(BINDING_REQUEST, &self.txid);
        let flags = CHANGE_IP * u8::from(self.change_ip) + CHANGE_PORT * u8::from(self.change_port);
        if flags != 0 {
            push_attribute(&mut message, CHANGE_REQUEST, &[0, 0, 0, flags]);
        }
        if let Some(port) = self.response_port {
            let [high, low] = port.to_be_bytes();
            push_attribute(&mut message, RESPONSE_PORT, &[high, low, 0, 0]);
        }
        message
    }

    /// Whether a server of one address and port can answer it: from where it was asked, to a port that there is.
    pub fn is_from_here(&self) -> bool {
        !self.change_ip && !self.change_port && self.response_port != Some(0)
    }

    /// A well-formed binding request; `None` also for one with an attribute of neither RFC that a server must understand.
    ///
    /// PADDING is passed over: an answer shall not be longer than its address needs.
    pub fn parse(datagram: &[u8]) -> Option<Request> {
        let (txid, attributes) = parse_message(datagram, BINDING_REQUEST)?;
        let mut request = Request { txid, ..Request::default() };
        for attribute in Attributes(attributes) {
            match attribute? {
                (CHANGE_REQUEST, [_, _, _, flags]) => {
                    request.change_ip = flags & CHANGE_IP != 0;
                    request.change_port = flags & CHANGE_PORT != 0;
                }
                (RESPONSE_PORT, [high, low, ..]) => request.response_port = Some(u16::from_be_bytes([*high, *low])),
                (PADDING, _) => {}
                (kind, _) if kind >= FIRST_OPTIONAL => {}
                _ => return None,
            }
        }
        Some(request)
    }
}

/// The answer to a binding request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Response {
    /// That of the request.
    pub txid: [u8; 12],
    /// From where the request came (XOR-MAPPED-ADDRESS).
    pub mapped: SocketAddr,
    /// From where the server says that it answers (RFC 5780 §7.3).
    pub origin: Option<SocketAddr>,
    /// The server's other IP address and other port, of which all four combinations answer (RFC 5780 §7.4).
    pub other: Option<SocketAddr>,
}

impl Response {
    /// The response as a datagram, at most [`MAX_RESPONSE_LEN`] bytes if neither `origin` nor `other` is told, else 92.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut message = header(BINDING_RESPONSE, &self.txid);
        push_attribute(&mut message, XOR_MAPPED_ADDRESS, &mask(&address(self.mapped), &self.txid));
        for (kind, addr) in [(RESPONSE_ORIGIN, self.origin), (OTHER_ADDRESS, self.other)] {
            if let Some(addr) = addr {
                push_attribute(&mut message, kind, &address(addr));
            }
        }
        message
    }

    /// A well-formed success response; `None` also if an attribute that a client must understand is unknown (RFC 8489 §6.3.3).
    pub fn parse(datagram: &[u8]) -> Option<Response> {
        let (txid, attributes) = parse_message(datagram, BINDING_RESPONSE)?;
        let (mut mapped, mut origin, mut other) = (None, None, None);
        for attribute in Attributes(attributes) {
            match attribute? {
                (XOR_MAPPED_ADDRESS, value) => mapped = mapped.or(Some(parse_address(&mask(value, &txid))?)),
                (RESPONSE_ORIGIN, value) => origin = parse_address(value),
                (OTHER_ADDRESS, value) => other = parse_address(value),
                (PADDING, _) => {}
                (kind, _) if kind >= FIRST_OPTIONAL || kind <= LAST_OF_RFC_3489 => {}
                _ => return None,
            }
        }
        Some(Response { txid, mapped: mapped?, origin, other })
    }
}

/// Attributes from here on may be ignored (RFC 8489 §14).
const FIRST_OPTIONAL: u16 = 0x8000;

/// Up to here lie MAPPED-ADDRESS, SOURCE-ADDRESS and others of RFC 3489 §11.2, which servers still add for old clients.
const LAST_OF_RFC_3489: u16 = 0x000b;

fn header(kind: u16, txid: &[u8; 12]) -> Vec<u8> {
    let mut message = Vec::with_capacity(MAX_RESPONSE_LEN);
    message.extend(kind.to_be_bytes());
    message.extend([0, 0]);
    message.extend(COOKIE.to_be_bytes());
    message.extend(txid);
    message
}

/// Appends an attribute of a few bytes, a multiple of four, and counts it in the header.
fn push_attribute(message: &mut Vec<u8>, kind: u16, value: &[u8]) {
    message.extend(kind.to_be_bytes());
    message.extend((value.len() as u16).to_be_bytes());
    message.extend(value);
    let len = (message.len() - HEADER_LEN) as u16;
    if let Some([l0, l1]) = message.get_mut(2..4) {
        [*l0, *l1] = len.to_be_bytes();
    }
}

/// The transaction id and the attributes of a message of this kind, if its length is right (RFC 8489 §5).
fn parse_message(datagram: &[u8], kind: u16) -> Option<([u8; 12], &[u8])> {
    let (header, attributes) = datagram.split_first_chunk::<HEADER_LEN>()?;
    let (fixed, txid) = header.split_first_chunk::<8>()?;
    let [k0, k1, l0, l1, cookie @ ..] = *fixed;
    let len = usize::from(u16::from_be_bytes([l0, l1]));
    let fits = u16::from_be_bytes([k0, k1]) == kind && u32::from_be_bytes(cookie) == COOKIE && len == attributes.len();
    Some((txid.try_into().ok().filter(|_| fits)?, attributes))
}

/// The value of MAPPED-ADDRESS and its kin (RFC 8489 §14.1): zero, family, port, address; mapped IPv4 as IPv4.
fn address(addr: SocketAddr) -> Vec<u8> {
    let (family, ip) = match addr.ip().to_canonical() {
        IpAddr::V4(ip) => (FAMILY_IPV4, Vec::from(ip.octets())),
        IpAddr::V6(ip) => (FAMILY_IPV6, Vec::from(ip.octets())),
    };
    let mut value = Vec::from([0, family]);
    value.extend(addr.port().to_be_bytes());
    value.extend(ip);
    value
}

fn parse_address(value: &[u8]) -> Option<SocketAddr> {
    let ([_, family, p0, p1], ip) = value.split_first_chunk::<4>()?;
    let ip = match *family {
        FAMILY_IPV4 => IpAddr::from(<[u8; 4]>::try_from(ip).ok()?),
        FAMILY_IPV6 => IpAddr::from(<[u8; 16]>::try_from(ip).ok()?).to_canonical(),
        _ => return None,
    };
    Some(SocketAddr::new(ip, u16::from_be_bytes([*p0, *p1])))
}

/// Hides or reveals the address in an attribute's value: port and address are each XORed with cookie and transaction id, so that
/// no NAT rewrites what looks like an address (RFC 8489 §14.2).
fn mask(value: &[u8], txid: &[u8; 12]) -> Vec<u8> {
    let mask = || COOKIE.to_be_bytes().into_iter().chain(*txid);
    let masks = [0, 0].into_iter().chain(mask().take(2)).chain(mask());
    value.iter().zip(masks).map(|(byte, mask)| byte ^ mask).collect()
}

/// The attributes of a message, each padded to four bytes (RFC 8489 §14); ends with `None` at a malformed one.
struct Attributes<'a>(&'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = Option<(u16, &'a [u8])>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let attribute = split_attribute(self.0);
        self.0 = attribute.map_or(&[], |(_, _, rest)| rest);
        Some(attribute.map(|(kind, value, _)| (kind, value)))
    }
}

fn split_attribute(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let ([k0, k1, l0, l1], rest) = bytes.split_first_chunk::<4>()?;
    let len = usize::from(u16::from_be_bytes([*l0, *l1]));
    let (padded, rest) = rest.split_at_checked(len.next_multiple_of(4))?;
    Some((u16::from_be_bytes([*k0, *k1]), padded.get(..len)?, rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// RFC 5769 §2.2: SOFTWARE, XOR-MAPPED-ADDRESS, then MESSAGE-INTEGRITY and FINGERPRINT.
    const RFC_5769_IPV4: [u8; 80] = [
        0x01, 0x01, 0x00, 0x3c, 0x21, 0x12, 0xa4, 0x42, 0xb7, 0xe7, 0xa7, 0x01, 0xbc, 0x34, 0xd6, 0x86, 0xfa, 0x87,
        0xdf, 0xae, 0x80, 0x22, 0x00, 0x0b, 0x74, 0x65, 0x73, 0x74, 0x20, 0x76, 0x65, 0x63, 0x74, 0x6f, 0x72, 0x20,
        0x00, 0x20, 0x00, 0x08, 0x00, 0x01, 0xa1, 0x47, 0xe1, 0x12, 0xa6, 0x43, 0x00, 0x08, 0x00, 0x14, 0x2b, 0x91,
        0xf5, 0x99, 0xfd, 0x9e, 0x90, 0xc3, 0x8c, 0x74, 0x89, 0xf9, 0x2a, 0xf9, 0xba, 0x53, 0xf0, 0x6b, 0xe7, 0xd7,
        0x80, 0x28, 0x00, 0x04, 0xc0, 0x7d, 0x4c, 0x96,
    ];
    const RFC_5769_TXID: [u8; 12] = [0xb7, 0xe7, 0xa7, 0x01, 0xbc, 0x34, 0xd6, 0x86, 0xfa, 0x87, 0xdf, 0xae];
    /// RFC 5769 §2.3: the value of XOR-MAPPED-ADDRESS for `[2001:db8:1234:5678:11:2233:4455:6677]:32853`.
    const RFC_5769_IPV6: [u8; 20] = [
        0x00, 0x02, 0xa1, 0x47, 0x01, 0x13, 0xa9, 0xfa, 0xa5, 0xd3, 0xf1, 0x79, 0xbc, 0x25, 0xf4, 0xb5, 0xbe, 0xd2,
        0xb9, 0xd9,
    ];

    fn with_attribute(mut message: Vec<u8>, kind: u16, value: &[u8]) -> Vec<u8> {
        message.extend(kind.to_be_bytes());
        message.extend((value.len() as u16).to_be_bytes());
        message.extend(value);
        message.resize(message.len().next_multiple_of(4), 0);
        let len = (message.len() - HEADER_LEN) as u16;
        message[2..4].copy_from_slice(&len.to_be_bytes());
        message
    }

    #[test]
    fn bytes_are_the_documented_ones() {
        let request = binding_request([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]);
        assert_eq!(request, [0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]);
        let response = binding_response(RFC_5769_TXID, "192.0.2.1:32853".parse().unwrap());
        assert_eq!(response[..8], [1, 1, 0, 12, 0x21, 0x12, 0xa4, 0x42]);
        assert_eq!(response[8..20], RFC_5769_TXID);
        assert_eq!(response[20..], RFC_5769_IPV4[36..48]);
    }

    #[test]
    fn rfc_5769_responses_are_read_and_written() {
        let ipv4 = "192.0.2.1:32853".parse().unwrap();
        assert_eq!(parse_response(&RFC_5769_IPV4, &RFC_5769_TXID), Some(ipv4));
        let ipv6 = "[2001:db8:1234:5678:11:2233:4455:6677]:32853".parse().unwrap();
        let response = binding_response(RFC_5769_TXID, ipv6);
        assert_eq!(response[24..], RFC_5769_IPV6);
        assert_eq!(response.len(), MAX_RESPONSE_LEN);
        assert_eq!(parse_response(&response, &RFC_5769_TXID), Some(ipv6));
    }

    #[test]
    fn rfc_5780_bytes_are_the_documented_ones() {
        let plain = Request { txid: [9; 12], ..Request::default() };
        assert_eq!(plain.to_bytes(), binding_request([9; 12]));
        let request = Request { change_ip: true, response_port: Some(0x1151), ..plain };
        let header = |kind, len| [&[kind, 1, 0, len, 0x21, 0x12, 0xa4, 0x42][..], &[9; 12]].concat();
        assert_eq!(
            request.to_bytes(),
            [&header(0, 16)[..], &[0, 3, 0, 4, 0, 0, 0, 4, 0, 0x27, 0, 4, 0x11, 0x51, 0, 0]].concat()
        );
        let both = Request { change_port: true, ..request };
        assert_eq!(both.to_bytes()[27], 6);
        assert_eq!(Request { change_port: true, ..plain }.to_bytes()[27], 2);
        let [mapped, origin, other] = ["192.0.2.1:9", "192.0.2.2:3478", "192.0.2.3:3479"].map(|a| a.parse().unwrap());
        let response = Response { txid: [9; 12], mapped, origin: Some(origin), other: Some(other) }.to_bytes();
        assert_eq!(response[..20], header(1, 36));
        assert_eq!(response[32..44], [0x80, 0x2b, 0, 8, 0, 1, 0x0d, 0x96, 192, 0, 2, 2]);
        assert_eq!(response[44..], [0x80, 0x2c, 0, 8, 0, 1, 0x0d, 0x97, 192, 0, 2, 3]);
    }

    #[test]
    fn a_plain_server_is_silent_to_rfc_5780_requests() {
        for request in [
            Request { change_port: true, ..Request::default() },
            Request { response_port: Some(9), ..Request::default() },
        ] {
            assert_eq!(parse_request(&request.to_bytes()), None);
        }
    }

    #[test]
    fn padding_is_passed_over_and_a_malformed_other_address_is_not_given() {
        let padded = with_attribute(binding_request([7; 12]), PADDING, &[0; 100]);
        assert_eq!(Request::parse(&padded), Some(Request { txid: [7; 12], ..Request::default() }));
        assert_eq!(parse_request(&padded), None);
        let response = binding_response([7; 12], "192.0.2.1:9".parse().unwrap());
        let response = with_attribute(with_attribute(response, PADDING, &[0; 5]), OTHER_ADDRESS, &[0, 1, 0]);
        assert_eq!(Response::parse(&response).map(|response| response.other), Some(None));
        let short = with_attribute(binding_request([7; 12]), CHANGE_REQUEST, &[0; 3]);
        assert_eq!(Request::parse(&short), None);
    }

    #[test]
    fn another_transactions_response_is_ignored() {
        assert_eq!(parse_response(&RFC_5769_IPV4, &[7; 12]), None);
        assert_eq!(parse_response(&binding_request(RFC_5769_TXID), &RFC_5769_TXID), None);
    }

    #[test]
    fn optional_attributes_are_ignored_and_unknown_required_ones_are_not() {
        let request = || binding_request([7; 12]);
        assert_eq!(parse_request(&request()), Some([7; 12]));
        assert_eq!(parse_request(&with_attribute(request(), 0x8022, b"abc")), Some([7; 12]));
        assert_eq!(parse_request(&with_attribute(request(), 0x0003, &[0, 0, 0, 6])), None);
        let addr = "192.0.2.1:9".parse().unwrap();
        let response = || binding_response([7; 12], addr);
        assert_eq!(parse_response(&with_attribute(response(), 0x802c, &[0; 8]), &[7; 12]), Some(addr));
        assert_eq!(parse_response(&with_attribute(response(), 0x0004, &[0; 8]), &[7; 12]), Some(addr));
        assert_eq!(parse_response(&with_attribute(response(), 0x7777, &[0; 8]), &[7; 12]), None);
    }

    #[test]
    fn wrong_lengths_are_none() {
        let mut request = binding_request([7; 12]);
        assert_eq!(parse_request(&request[..19]), None);
        request.push(0);
        assert_eq!(parse_request(&request), None);
        let response = binding_response([7; 12], "192.0.2.1:9".parse().unwrap());
        for len in 0..response.len() {
            assert_eq!(parse_response(&response[..len], &[7; 12]), None);
        }
        let long_attribute = with_attribute(binding_request([7; 12]), 0x8000, &[0; 8]);
        let mut lying = long_attribute.clone();
        lying[23] = 9;
        assert_eq!(parse_request(&long_attribute), Some([7; 12]));
        assert_eq!(parse_request(&lying), None);
    }

    #[test]
    fn mapped_ipv4_is_answered_as_ipv4() {
        let response = binding_response([7; 12], "[::ffff:192.0.2.1]:9".parse().unwrap());
        assert_eq!(parse_response(&response, &[7; 12]), Some("192.0.2.1:9".parse().unwrap()));
        assert_eq!(response.len(), 32);
    }

    proptest! {
        #[test]
        fn messages_round_trip(txid: [u8; 12], ip: IpAddr, port: u16) {
            let addr = SocketAddr::new(ip.to_canonical(), port);
            prop_assert_eq!(parse_request(&binding_request(txid)), Some(txid));
            let response = binding_response(txid, addr);
            prop_assert!(response.len() <= MAX_RESPONSE_LEN);
            prop_assert_eq!(parse_response(&response, &txid), Some(addr));
        }

        #[test]
        fn rfc_5780_messages_round_trip(
            txid: [u8; 12], change_ip: bool, change_port: bool, response_port: Option<u16>,
            addrs: (SocketAddr, Option<SocketAddr>, Option<SocketAddr>),
        ) {
            let request = Request { txid, change_ip, change_port, response_port };
            prop_assert_eq!(Request::parse(&request.to_bytes()), Some(request));
            prop_assert!(request.to_bytes().len() <= 36);
            let canonical = |addr: SocketAddr| SocketAddr::new(addr.ip().to_canonical(), addr.port());
            let (mapped, origin, other) = (canonical(addrs.0), addrs.1.map(canonical), addrs.2.map(canonical));
            let response = Response { txid, mapped, origin, other };
            prop_assert_eq!(Response::parse(&response.to_bytes()), Some(response));
            prop_assert!(response.to_bytes().len() <= 92);
        }

        #[test]
        fn no_bytes_panic(datagram: Vec<u8>, attributes: Vec<u8>, kind in prop::sample::select(&[1, 0x101][..])) {
            let _ = (parse_request(&datagram), parse_response(&datagram, &[0; 12]), has_cookie(&datagram));
            let mut message = header(kind, &[7; 12]);
            message[2..4].copy_from_slice(&(attributes.len() as u16).to_be_bytes());
            message.extend(attributes);
            let _ = (parse_request(&message), parse_response(&message, &[7; 12]));
            let _ = (Request::parse(&message), Response::parse(&message));
        }
    }
}
