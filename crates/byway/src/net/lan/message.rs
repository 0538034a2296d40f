//! The multicast DNS messages of finding a peer (RFC 6762, in the form of RFC 6763): one question, and its answer.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use byway_proto::id::LAN_NAME_LEN;
use simple_dns::{
    CLASS, Name, OPCODE, Packet, PacketFlag, QTYPE, Question, RCODE, ResourceRecord, SimpleDnsError, TYPE,
    rdata::{A, AAAA, RData, SRV},
};

/// The longest message that is read, in bytes: ours have at most 300, and none needs more than one packet.
pub(super) const MAX_MESSAGE: usize = 1_472;

/// Questions and records in one message; others are not ours.
const MAX_ENTRIES: usize = 32;

/// Addresses in one answer: two of each family.
pub(super) const MAX_ADDRS: usize = 4;

/// How long others may remember an answer, in seconds (RFC 6762 §10).
const TTL: u32 = 120;

/// The service, and the domain of the link.
const SUFFIX: [&[u8]; 3] = [b"_byway", b"_udp", b"local"];

/// What a message says, as far as it concerns Byway.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Message {
    /// Where are these peers? Their names on the network.
    Where(Vec<String>),
    /// A peer, by its name on the network, is at these addresses.
    There(Vec<(String, Vec<SocketAddr>)>),
}

/// Asks where the peer of this name is.
pub(super) fn question(name: &str) -> Result<Vec<u8>, SimpleDnsError> {
    let mut packet = Packet::new_query(0); // RFC 6762 §18.1
    let full = full_name(name);
    packet.questions.push(Question::new(Name::new(&full)?, QTYPE::TYPE(TYPE::SRV), CLASS::IN.into(), false));
    packet.build_bytes_vec()
}

/// Says that the peer of this name is at `addrs`, all of one port; the first [`MAX_ADDRS`] are told.
pub(super) fn answer(name: &str, addrs: &[SocketAddr]) -> Result<Vec<u8>, SimpleDnsError> {
    let port = addrs.first().map_or(0, SocketAddr::port);
    let (full, host) = (full_name(name), format!("{name}.local"));
    let (full, host) = (Name::new(&full)?, Name::new(&host)?);
    let mut packet = Packet::new_reply(0);
    packet.set_flags(PacketFlag::AUTHORITATIVE_ANSWER);
    let record = |name: &Name<'_>, data| {
        // The name is this node's alone: what others remember of it is out of date.
        ResourceRecord::new(name.clone().into_owned(), CLASS::IN, TTL, data).with_cache_flush(true)
    };
    let service = SRV { priority: 0, weight: 0, port, target: host.clone() };
    packet.answers.push(record(&full, RData::SRV(service)));
    packet.additional_records.extend(addrs.iter().take(MAX_ADDRS).map(|addr| match addr {
        SocketAddr::V4(addr) => record(&host, RData::A(A { address: addr.ip().to_bits() })),
        SocketAddr::V6(addr) => record(&host, RData::AAAA(AAAA { address: addr.ip().to_bits() })),
    }));
    packet.build_bytes_vec_compressed()
}

/// Reads a message of one's own link; `None` if it is damaged or says nothing of Byway.
pub(super) fn parse(bytes: &[u8]) -> Option<Message> {
    // The counts decide how much memory is taken, and the link's other chatter is not worth taking apart.
    let entries =
        bytes.get(4..12)?.chunks(2).map(|count| count.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte)));
    let concerns_us = bytes.windows(SUFFIX[0].len()).any(|part| part.eq_ignore_ascii_case(SUFFIX[0]));
    if bytes.len() > MAX_MESSAGE || entries.sum::<usize>() > MAX_ENTRIES || !concerns_us {
        return None;
    }
    let packet = Packet::parse(bytes).ok()?;
    if packet.opcode() != OPCODE::StandardQuery || packet.rcode() != RCODE::NoError {
        return None; // RFC 6762 §18.3, §18.11
    }
    if packet.has_flags(PacketFlag::RESPONSE) {
        let records = || packet.answers.iter().chain(&packet.additional_records);
        let there = records().filter_map(|record| {
            let RData::SRV(service) = &record.rdata else { return None };
            let addrs = records().filter(|other| other.name == service.target).filter_map(|other| match &other.rdata {
                RData::A(A { address }) => Some((Ipv4Addr::from_bits(*address), service.port).into()),
                RData::AAAA(AAAA { address }) => Some((Ipv6Addr::from_bits(*address), service.port).into()),
                _ => None,
            });
            Some((short_name(&record.name)?, addrs.take(MAX_ADDRS).collect()))
        });
        return Some(Message::There(there.collect()));
    }
    let is_known = |name: &String| {
        // RFC 6762 §7.1: whoever asks knows it already.
        let mut known = packet.answers.iter().filter(|record| record.ttl >= TTL / 2);
        known.any(|record| matches!(record.rdata, RData::SRV(_)) && short_name(&record.name).as_ref() == Some(name))
    };
    let asked = packet.questions.iter().filter(|question| {
        matches!(question.qtype, QTYPE::TYPE(TYPE::SRV) | QTYPE::ANY) // no other type exists under the name
    });
    Some(Message::Where(
        asked.filter_map(|question| short_name(&question.qname)).filter(|name| !is_known(name)).collect(),
    ))
}

fn full_name(name: &str) -> String {
    format!("{name}._byway._udp.local")
}

/// The peer's part of a full name, in lower case.
fn short_name(name: &Name<'_>) -> Option<String> {
    let mut labels = name.as_bytes();
    let first = labels.next().filter(|label| label.len() == LAN_NAME_LEN)?;
    let is_ours = SUFFIX.iter().all(|part| labels.next().is_some_and(|label| label.eq_ignore_ascii_case(part)));
    if !is_ours || labels.next().is_some() {
        return None;
    }
    Some(std::str::from_utf8(first).ok()?.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: &str = "abcdefghijklmnopqrstuvwxyz";

    fn addrs(texts: &[&str]) -> Vec<SocketAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn bytes_are_the_documented_ones() {
        let hex = |bytes: Vec<u8>| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let label = "1a6162636465666768696a6b6c6d6e6f707172737475767778797a";
        let full = format!("{label}065f6279776179045f756470056c6f63616c00");
        assert_eq!(hex(question(NAME).unwrap()), format!("000000000001000000000000{full}00210001"));
        let records = "002180010000007800280000000011511a6162636465666768696a6b6c6d6e6f707172737475767778797a056c6f63616c001a6162636465666768696a6b6c6d6e6f707172737475767778797ac03300018001000000780004c0a80102";
        let told = hex(answer(NAME, &addrs(&["192.168.1.2:4433"])).unwrap());
        assert_eq!(told, format!("000084000000000100000001{full}{records}"));
    }

    #[test]
    fn a_question_is_read_again() {
        let bytes = question(NAME).unwrap();
        assert_eq!(bytes.len(), 12 + 27 + 7 + 5 + 6 + 1 + 4);
        assert_eq!(parse(&bytes), Some(Message::Where(vec![NAME.into()])));
    }

    #[test]
    fn an_answer_is_read_again_and_fits_a_small_datagram() {
        let addrs = addrs(&["192.168.1.2:4433", "10.0.0.1:4433", "[fd00::1]:4433", "[fd00::2]:4433", "10.0.0.2:4433"]);
        let bytes = answer(NAME, &addrs).unwrap();
        assert!(bytes.len() <= 300, "{}", bytes.len());
        assert_eq!(parse(&bytes), Some(Message::There(vec![(NAME.into(), addrs[..MAX_ADDRS].to_vec())])));
    }

    #[test]
    fn names_are_compared_without_regard_to_case() {
        let bytes = question(NAME).unwrap().to_ascii_uppercase();
        assert_eq!(parse(&bytes), Some(Message::Where(vec![NAME.into()])));
    }

    #[test]
    fn other_names_and_types_concern_nobody_here() {
        for name in ["abc._byway._udp.local", "a._ipp._tcp.local", &format!("{NAME}._byway._udp.local.x")] {
            let mut packet = Packet::new_query(0);
            let asked = Question::new(Name::new(name).unwrap(), QTYPE::TYPE(TYPE::SRV), CLASS::IN.into(), false);
            packet.questions.push(asked);
            let message = parse(&packet.build_bytes_vec().unwrap());
            assert!(matches!(&message, None | Some(Message::Where(_))));
            assert!(!matches!(message, Some(Message::Where(names)) if !names.is_empty()), "{name}");
        }
        let full = full_name(NAME);
        let mut packet = Packet::new_query(0);
        packet.questions.push(Question::new(Name::new(&full).unwrap(), QTYPE::TYPE(TYPE::A), CLASS::IN.into(), false));
        assert_eq!(parse(&packet.build_bytes_vec().unwrap()), Some(Message::Where(Vec::new())));
    }

    #[test]
    fn who_knows_the_answer_is_not_told_again() {
        let known = answer(NAME, &addrs(&["10.0.0.1:1"])).unwrap();
        let mut packet = Packet::parse(&known).unwrap().into_reply();
        packet.remove_flags(PacketFlag::RESPONSE);
        let full = full_name(NAME);
        packet.questions.push(Question::new(Name::new(&full).unwrap(), QTYPE::ANY, CLASS::IN.into(), false));
        assert_eq!(parse(&packet.build_bytes_vec().unwrap()), Some(Message::Where(Vec::new())));
    }

    #[test]
    fn counts_are_checked_before_memory_is_taken() {
        let mut bytes = question(NAME).unwrap();
        bytes[6..8].copy_from_slice(&[0xff, 0xff]);
        assert_eq!(parse(&bytes), None);
        let mut long = question(NAME).unwrap();
        long.resize(MAX_MESSAGE + 1, 0);
        assert_eq!(parse(&long), None);
    }

    #[test]
    fn damaged_messages_do_not_panic() {
        let mut rng = byway_proto::Rng::new(&[7; 32], "damage");
        let whole = [question(NAME).unwrap(), answer(NAME, &addrs(&["10.0.0.1:1", "[fd00::1]:1"])).unwrap()];
        for _ in 0..50_000 {
            let mut bytes = whole[rng.below(2) as usize].clone();
            for _ in 0..=rng.below(4) {
                let at = rng.below(bytes.len() as u64) as usize;
                bytes[at] = rng.next_u64() as u8;
            }
            bytes.truncate(rng.below(bytes.len() as u64 + 1) as usize);
            parse(&bytes);
        }
    }

    #[test]
    fn a_message_full_of_pointers_is_read_in_no_time() {
        // Each name points at the one before it, the most work that the format allows.
        let mut bytes = vec![0, 0, 0, 0, 0, MAX_ENTRIES as u8, 0, 0, 0, 0, 0, 0, 6];
        bytes.extend(b"_byway\0");
        while bytes.len() + 2 < MAX_MESSAGE - 200 {
            let to = (bytes.len() - if bytes.len() == 20 { 8 } else { 2 }) as u16 | 0xc000;
            bytes.extend(to.to_be_bytes());
        }
        let started = std::time::Instant::now();
        (0..1_000).for_each(|_| drop(parse(&bytes)));
        assert!(started.elapsed() < std::time::Duration::from_secs(5), "{:?}", started.elapsed());
    }
}
