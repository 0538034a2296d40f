//! STUN's binding request and response (RFC 8489), and nothing else of it: "from which address do I seem to come?"

use alloc::vec::Vec;
use core::net::{IpAddr, SocketAddr};

const COOKIE: u32 = 0x2112_a442;
const HEADER_LEN: usize = 20;
const BINDING_REQUEST: u16 = 0x0001;
const BINDING_RESPONSE: u16 = 0x0101;
const XOR_MAPPED_ADDRESS: u16 = 0x0020;
const FAMILY_IPV4: u8 = 1;
const FAMILY_IPV6: u8 = 2;

/// The longest binding response that we send, in bytes (to an IPv6 address); the request has 20.
pub const MAX_RESPONSE_LEN: usize = 44;

/// Whether a datagram has STUN's magic cookie in its place (RFC 8489 §5).
#[inline]
pub fn has_cookie(datagram: &[u8]) -> bool {
    matches!(datagram, [_, _, _, _, cookie @ ..] if cookie.starts_with(&COOKIE.to_be_bytes()))
}

/// A binding request without attributes: 20 bytes.
pub fn binding_request(txid: [u8; 12]) -> Vec<u8> {
    header(BINDING_REQUEST, 0, &txid)
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
    let (family, ip) = match addr.ip().to_canonical() {
        IpAddr::V4(ip) => (FAMILY_IPV4, Vec::from(ip.octets())),
        IpAddr::V6(ip) => (FAMILY_IPV6, Vec::from(ip.octets())),
    };
    let value_len = if family == FAMILY_IPV4 { 8_u16 } else { 20 };
    let mut message = header(BINDING_RESPONSE, 4 + value_len, &txid);
    message.extend(XOR_MAPPED_ADDRESS.to_be_bytes());
    message.extend(value_len.to_be_bytes());
    message.extend([0, family]);
    message.extend(xor(&addr.port().to_be_bytes(), &txid));
    message.extend(xor(&ip, &txid));
    message
}

/// The address that a server has seen, if this is its well-formed answer to our request `txid`.
///
/// `None` also if an attribute that a client must understand is unknown (RFC 8489 §6.3.3).
pub fn parse_response(datagram: &[u8], txid: &[u8; 12]) -> Option<SocketAddr> {
    let (received, attributes) = parse_message(datagram, BINDING_RESPONSE)?;
    if received != *txid {
        return None;
    }
    let mut seen = None;
    for attribute in Attributes(attributes) {
        match attribute? {
            (XOR_MAPPED_ADDRESS, value) => seen = seen.or(Some(xor_mapped_address(value, txid)?)),
            (kind, _) if kind >= FIRST_OPTIONAL || kind <= LAST_OF_RFC_3489 => {}
            _ => return None,
        }
    }
    seen
}

/// Attributes from here on may be ignored (RFC 8489 §14).
const FIRST_OPTIONAL: u16 = 0x8000;

/// Up to here lie MAPPED-ADDRESS, SOURCE-ADDRESS and others of RFC 3489 §11.2, which servers still add for old clients.
const LAST_OF_RFC_3489: u16 = 0x000b;

fn header(kind: u16, attributes_len: u16, txid: &[u8; 12]) -> Vec<u8> {
    let mut message = Vec::with_capacity(MAX_RESPONSE_LEN);
    message.extend(kind.to_be_bytes());
    message.extend(attributes_len.to_be_bytes());
    message.extend(COOKIE.to_be_bytes());
    message.extend(txid);
    message
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

fn xor_mapped_address(value: &[u8], txid: &[u8; 12]) -> Option<SocketAddr> {
    let ([_, family, port @ ..], ip) = value.split_first_chunk::<4>()?;
    let port: [u8; 2] = xor(port, txid).collect::<Vec<_>>().try_into().ok()?;
    let ip: Vec<u8> = xor(ip, txid).collect();
    let ip = match *family {
        FAMILY_IPV4 => IpAddr::from(<[u8; 4]>::try_from(ip).ok()?),
        FAMILY_IPV6 => IpAddr::from(<[u8; 16]>::try_from(ip).ok()?).to_canonical(),
        _ => return None,
    };
    Some(SocketAddr::new(ip, u16::from_be_bytes(port)))
}

/// Hides or reveals an address: XOR with cookie and transaction id, so that no NAT rewrites what looks like an address (RFC 8489 §14.2).
fn xor<'a>(bytes: &'a [u8], txid: &'a [u8; 12]) -> impl Iterator<Item = u8> + 'a {
    bytes.iter().zip(COOKIE.to_be_bytes().into_iter().chain(*txid)).map(|(byte, mask)| byte ^ mask)
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
        fn no_bytes_panic(datagram: Vec<u8>, attributes: Vec<u8>, kind in prop::sample::select(&[1, 0x101][..])) {
            let _ = (parse_request(&datagram), parse_response(&datagram, &[0; 12]), has_cookie(&datagram));
            let mut message = header(kind, attributes.len() as u16, &[7; 12]);
            message.extend(attributes);
            let _ = (parse_request(&message), parse_response(&message, &[7; 12]));
        }
    }
}
