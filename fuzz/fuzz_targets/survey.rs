//! The NAT survey among lying servers, lost packets and jumping clocks: a bounded cost, no timer that has passed, no panic.
#![no_main]

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

use byway_proto::{
    Instant,
    addr::decode_socket_addr,
    nat::{Input, Output, SocketId, SocketIds, Survey},
    wire::stun::{Request, Response},
};
use libfuzzer_sys::fuzz_target;

/// What the survey may send for each address family in one network.
const MAX_PACKETS: usize = 64;

/// The servers' addresses are few, so that an input often names one that was asked.
fn server(byte: u8) -> SocketAddr {
    SocketAddr::from(([203, 0, 113, byte % 4], 3_478 + u16::from(byte % 3)))
}

fuzz_target!(|bytes: &[u8]| {
    let mut survey = Survey::new(&[5; 32]);
    let (mut ids, mut now) = (SocketIds::default(), Instant::START);
    let mut asked: Vec<(SocketId, SocketAddr, Request)> = Vec::new();
    let mut open = BTreeSet::from([SocketId::MAIN]);
    let mut packets = [0; 2];
    let own = IpAddr::from(Ipv4Addr::new(192, 168, 1, 2));
    let mut rest = bytes;
    while let Some(([kind, a, b], tail)) = rest.split_first_chunk::<3>() {
        let addr =
            decode_socket_addr(tail).map_or(SocketAddr::from(([198, 51, 100, 7], u16::from(*a))), |(addr, _)| addr);
        rest = tail;
        let input = match kind % 8 {
            0 => {
                packets = [0; 2];
                Input::Network(vec![own, addr.ip()])
            }
            1 => Input::Servers(vec![server(*a), server(*b), addr]),
            2 => Input::External(Some(addr.ip())),
            3 => Input::Stun { socket: SocketId::MAIN, from: addr, datagram: tail.to_vec() },
            4 | 5 if !asked.is_empty() => {
                let (socket, to, request) = asked[usize::from(*a) % asked.len()];
                let from = if b % 4 == 0 { addr } else { to };
                let other = (b % 3 == 0).then(|| server(*b));
                let datagram = Response { txid: request.txid, mapped: addr, origin: None, other }.to_bytes();
                Input::Stun { socket, from, datagram }
            }
            6 if !asked.is_empty() => {
                let (_, to, request) = asked[usize::from(*a) % asked.len()];
                Input::Stun { socket: SocketId(u32::from(*b)), from: to, datagram: request.to_bytes() }
            }
            _ => {
                now += Duration::from_millis(u64::from(*a) * u64::from(*b));
                Input::Timeout
            }
        };
        survey.handle_input(&input, &mut ids, now);
        while let Some(output) = survey.poll_output() {
            match output {
                Output::Open { socket, .. } => {
                    let local = (a % 5 != 0).then(|| SocketAddr::new(own, 40_000));
                    if local.is_some() {
                        assert!(open.insert(socket), "numbers are used once");
                    }
                    survey.handle_input(&Input::Opened { socket, local }, &mut ids, now);
                }
                Output::Close { socket } => drop(open.remove(&socket)),
                Output::Stun { socket, to, datagram } => {
                    assert!(open.contains(&socket), "sent by a socket that is not open");
                    packets[usize::from(to.is_ipv6())] += 1;
                    asked.push((socket, to, Request::parse(&datagram).expect("a request")));
                }
                Output::Report(_) => {}
                other => panic!("{other:?} is not the survey's"),
            }
        }
        assert!(packets.iter().all(|sent| *sent <= MAX_PACKETS), "{packets:?}");
        assert!(open.len() <= 12, "{open:?}");
        assert!(survey.poll_timeout().is_none_or(|(at, _)| at > now), "{:?}", survey.poll_timeout());
    }
});
