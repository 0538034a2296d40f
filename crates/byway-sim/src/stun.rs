//! A STUN server that can answer from elsewhere (RFC 5780), for surveys of how a NAT filters.

use std::{io, net::SocketAddr, sync::Arc};

use byway_proto::wire::stun::{Request, Response};
use tokio::task::JoinSet;

use crate::{Host, UdpSocket};

/// The two ports of every address: STUN's own (RFC 8489 §18.6) and the one after it.
const PORTS: [u16; 2] = [3_478, 3_479];

/// Longest request that is read in full: one with all attributes of RFC 5780 has 36 bytes.
const MAX_REQUEST: usize = 1_500;

/// A STUN server on two addresses and two ports of one host, with everything that RFC 5780 asks of it: OTHER-ADDRESS,
/// RESPONSE-ORIGIN, CHANGE-REQUEST and RESPONSE-PORT. It runs until it is dropped.
///
/// Byway's relays answer plain binding requests only, for which any [`Host`] with a node will do.
///
/// ```
/// use byway_sim::{StunServer, World};
///
/// World::run(1, |world| async move {
///     let server = StunServer::start(&world.host("stun")).expect("its ports are free");
///     assert_eq!(server.addr().port(), 3_478);
///     assert_ne!(server.addr().ip(), server.other().ip());
/// });
/// ```
#[derive(Debug)]
pub struct StunServer {
    addr: SocketAddr,
    other: SocketAddr,
    _answering: JoinSet<()>,
}

impl StunServer {
    /// Starts it on `host`, which gets a second IPv4 address for it.
    ///
    /// # Errors
    ///
    /// `AddrInUse` if UDP port 3478 or 3479 is taken.
    pub fn start(host: &Host) -> io::Result<Self> {
        let ips = [host.addr(), host.add_ipv4().into()];
        let addrs = ips.into_iter().flat_map(|ip| PORTS.map(|port| SocketAddr::new(ip, port)));
        let sockets: Vec<_> = addrs.map(|addr| host.bind_udp(addr)).collect::<io::Result<_>>()?;
        let mut answering = JoinSet::new();
        for at in 0..sockets.len() {
            answering.spawn(answer(sockets.clone(), at));
        }
        Ok(StunServer { addr: sockets[0].local_addr(), other: sockets[3].local_addr(), _answering: answering })
    }

    /// Where to ask it first.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Its other address with its other port.
    pub fn other(&self) -> SocketAddr {
        self.other
    }
}

/// Answers what comes to the socket at `at`; its index has a bit for the port and one for the address.
async fn answer(sockets: Vec<Arc<UdpSocket>>, at: usize) {
    let mut buf = [0; MAX_REQUEST];
    while let Ok((len, from)) = sockets[at].recv_from(&mut buf).await {
        let Some(request) = Request::parse(&buf[..len]) else { continue };
        let by = &sockets[at ^ usize::from(request.change_port) ^ (usize::from(request.change_ip) << 1)];
        let (origin, other) = (Some(by.local_addr()), Some(sockets[at ^ 3].local_addr()));
        let response = Response { txid: request.txid, mapped: from, origin, other };
        let to = SocketAddr::new(from.ip(), request.response_port.unwrap_or(from.port()));
        let _ = by.send_to(&response.to_bytes(), to); // a port 0 was asked for: nobody can be answered there
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;
    use crate::{NatConfig, World};

    fn request(change_ip: bool, change_port: bool, response_port: Option<u16>) -> Vec<u8> {
        Request { txid: [7; 12], change_ip, change_port, response_port }.to_bytes()
    }

    /// The answer and whence it comes, if one comes within a second.
    async fn response(socket: &UdpSocket) -> Option<(Response, SocketAddr)> {
        let mut buf = [0; 200];
        let (len, from) = timeout(Duration::from_secs(1), socket.recv_from(&mut buf)).await.ok()?.unwrap();
        Some((Response::parse(&buf[..len]).unwrap(), from))
    }

    #[test]
    fn answers_tell_their_origin_and_the_other_address() {
        World::run(1, |world| async move {
            let (server, client) = (StunServer::start(&world.host("stun")).unwrap(), world.host("client"));
            let socket = client.bind_udp(([0; 4], 5_000).into()).unwrap();
            for (change_ip, change_port) in [(false, false), (false, true), (true, false), (true, true)] {
                socket.send_to(&request(change_ip, change_port, None), server.addr()).unwrap();
                let ip = if change_ip { server.other() } else { server.addr() }.ip();
                let port = if change_port { server.other() } else { server.addr() }.port();
                let origin = SocketAddr::new(ip, port);
                let mapped = (client.addr(), 5_000).into();
                let expected = Response { txid: [7; 12], mapped, origin: Some(origin), other: Some(server.other()) };
                assert_eq!(response(&socket).await, Some((expected, origin)));
            }
            socket.send_to(&request(false, false, None), server.other()).unwrap();
            assert_eq!(response(&socket).await.unwrap().0.other, Some(server.addr()));
        });
    }

    #[test]
    fn answers_go_to_the_port_that_was_asked_for() {
        World::run(1, |world| async move {
            let (server, client) = (StunServer::start(&world.host("stun")).unwrap(), world.host("client"));
            let asking = client.bind_udp(([0; 4], 5_000).into()).unwrap();
            let listening = client.bind_udp(([0; 4], 6_000).into()).unwrap();
            asking.send_to(&request(false, false, Some(6_000)), server.addr()).unwrap();
            let (answer, _) = response(&listening).await.unwrap();
            assert_eq!(answer.mapped, (client.addr(), 5_000).into());
            assert_eq!(response(&asking).await, None);
        });
    }

    #[test]
    fn each_filter_lets_in_what_it_should() {
        let passes = |config: NatConfig| {
            World::run(1, |world| async move {
                let server = StunServer::start(&world.host("stun")).unwrap();
                let socket = world.nat("home", config).host("client").bind_udp(([0; 4], 5_000).into()).unwrap();
                let mut passed = [false; 3];
                for (n, (change_ip, change_port)) in
                    [(false, false), (false, true), (true, true)].into_iter().enumerate()
                {
                    socket.send_to(&request(change_ip, change_port, None), server.addr()).unwrap();
                    passed[n] = response(&socket).await.is_some();
                }
                passed
            })
        };
        assert_eq!(passes(NatConfig::full_cone()), [true, true, true]);
        assert_eq!(passes(NatConfig::address_restricted()), [true, true, false]);
        assert_eq!(passes(NatConfig::port_restricted()), [true, false, false]);
    }
}
