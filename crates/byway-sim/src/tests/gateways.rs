//! Hosts that ask their NAT to map ports.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use byway_proto::wire::{natpmp, pcp};
use tokio::time::timeout;

use super::{bind, ms, next};
use crate::{Gateway, Host, Manner, Nat, NatConfig, Ports, UdpSocket, World};

/// A hard NAT that maps ports, a host behind it whose socket has port 5,000, and another one that asks.
struct Home {
    nat: Nat,
    inner: Host,
    socket: Arc<UdpSocket>,
    asking: Arc<UdpSocket>,
    stranger: Arc<UdpSocket>,
}

fn home(world: &World, gateway: Gateway) -> Home {
    let mut config = NatConfig::symmetric(Ports::Random);
    config.gateway = Some(gateway);
    let nat = world.nat("home", config);
    let inner = nat.host("inner");
    let (socket, asking, stranger) = (bind(&inner, 5_000), bind(&inner, 5_001), bind(&world.host("stranger"), 9));
    Home { nat, inner, socket, asking, stranger }
}

fn with(edit: impl FnOnce(&mut Gateway)) -> Gateway {
    let mut gateway = Gateway::default();
    edit(&mut gateway);
    gateway
}

fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

impl Home {
    async fn ask(&self, request: &[u8]) -> Option<(Vec<u8>, SocketAddr)> {
        self.asking.send_to(request, (self.nat.inner_addr(), pcp::PORT).into()).unwrap();
        let mut buf = [0; 1_200];
        let (len, from) = timeout(ms(100), self.asking.recv_from(&mut buf)).await.ok()?.unwrap();
        Some((buf[..len].to_vec(), from))
    }

    async fn pcp(&self, external: u16, lifetime: Duration, nonce: u8) -> Result<(u16, Duration), pcp::Refusal> {
        let external = SocketAddr::from(([0; 4], external));
        let map = pcp::Map { nonce: [nonce; 12], transport: pcp::Transport::Udp, internal_port: 5_000, external };
        let request = pcp::Request { client: self.inner.addr(), lifetime, body: pcp::Body::Map(map) };
        let (answer, from) = self.ask(&pcp::encode_request(&request)).await.expect("an answer");
        assert_eq!(from, (self.nat.inner_addr(), pcp::PORT).into());
        let response = pcp::decode_response(&answer).unwrap();
        let pcp::Body::Map(map) = response.body else { panic!("{response:?}") };
        response.outcome?;
        assert_eq!((map.nonce, map.external.ip()), ([nonce; 12], self.nat.addr()));
        Ok((map.external.port(), response.lifetime))
    }

    async fn natpmp(&self, request: natpmp::Request) -> natpmp::Response {
        let (answer, _) = self.ask(&natpmp::encode_request(&request)).await.expect("an answer");
        natpmp::decode_response(&answer).unwrap()
    }

    /// Whether a stranger's packet to an outer port arrives.
    async fn is_open(&self, port: u16) -> bool {
        self.stranger.send_to(b"x", (self.nat.addr(), port).into()).unwrap();
        next(&self.socket).await.is_some()
    }
}

#[test]
fn a_mapped_port_is_open_to_strangers_until_its_lifetime_is_over() {
    World::run(1, |world| async move {
        let home = home(&world, Gateway::default());
        assert!(!home.is_open(7_000).await);
        assert_eq!(home.pcp(7_000, secs(200), 1).await, Ok((7_000, secs(200))));
        assert!(home.is_open(7_000).await);
        let other = SocketAddr::new(world.host("other").addr(), 9);
        home.socket.send_to(b"elsewhere", other).unwrap();
        tokio::time::sleep(secs(190)).await;
        assert!(home.is_open(7_000).await, "silence does not end a lease");
        assert_eq!(home.pcp(7_000, secs(100), 1).await, Ok((7_000, secs(100))));
        tokio::time::sleep(secs(98)).await;
        assert!(home.is_open(7_000).await, "it was renewed");
        tokio::time::sleep(secs(121)).await;
        assert!(!home.is_open(7_000).await);
    });
}

#[test]
fn an_answer_leaves_by_the_port_that_was_mapped() {
    World::run(1, |world| async move {
        let home = home(&world, Gateway::default());
        home.pcp(7_000, secs(3_600), 1).await.unwrap();
        home.stranger.send_to(b"x", (home.nat.addr(), 7_000).into()).unwrap();
        let from = next(&home.socket).await.unwrap();
        home.socket.send_to(b"y", from).unwrap();
        assert_eq!(next(&home.stranger).await, Some((home.nat.addr(), 7_000).into()));
    });
}

#[test]
fn a_lease_is_changed_by_its_owner_only_and_ends_when_he_says_so() {
    World::run(1, |world| async move {
        let home = home(&world, Gateway::default());
        home.pcp(7_000, secs(3_600), 1).await.unwrap();
        assert_eq!(home.pcp(7_000, secs(3_600), 2).await, Err(pcp::Refusal::NotAuthorized));
        assert_eq!(home.pcp(7_000, Duration::ZERO, 2).await, Err(pcp::Refusal::NotAuthorized));
        assert!(home.is_open(7_000).await);
        assert_eq!(home.pcp(7_000, Duration::ZERO, 1).await.map(|grant| grant.1), Ok(Duration::ZERO));
        let other = bind(&world.host("other"), 9);
        other.send_to(b"x", (home.nat.addr(), 7_000).into()).unwrap();
        assert_eq!(next(&home.socket).await, None);
    });
}

#[test]
fn a_taken_port_is_replaced_or_refused() {
    for refuses_taken in [false, true] {
        World::run(1, |world| async move {
            let home = home(&world, with(|gateway| gateway.refuses_taken = refuses_taken));
            let map = natpmp::Map {
                transport: pcp::Transport::Udp,
                internal_port: 6_000,
                external_port: 7_000,
                lifetime: secs(60),
            };
            home.natpmp(natpmp::Request::Map(map)).await;
            let expected = if refuses_taken { Err(pcp::Refusal::CannotProvideExternal) } else { Ok((7_001, secs(60))) };
            assert_eq!(home.pcp(7_000, secs(60), 1).await, expected);
        });
    }
}

#[test]
fn natpmp_tells_the_address_maps_and_counts_its_epoch_from_the_restart() {
    World::run(1, |world| async move {
        let home = home(&world, with(|gateway| gateway.pcp = false));
        tokio::time::sleep(secs(50)).await;
        let response = home.natpmp(natpmp::Request::ExternalAddress).await;
        let natpmp::Body::ExternalAddress(external) = response.body else { panic!("{response:?}") };
        assert_eq!((home.nat.addr(), response.epoch), (external.into(), 50));
        let map =
            natpmp::Map { transport: pcp::Transport::Udp, internal_port: 5_000, external_port: 0, lifetime: secs(600) };
        let response = home.natpmp(natpmp::Request::Map(map)).await;
        assert_eq!(response.body, natpmp::Body::Map(natpmp::Map { external_port: 5_000, ..map }));
        assert!(home.is_open(5_000).await);
        home.nat.forget_mappings();
        assert!(!home.is_open(5_000).await);
        assert_eq!(home.natpmp(natpmp::Request::ExternalAddress).await.epoch, 1);
        let pcp = pcp::Request { client: home.inner.addr(), lifetime: secs(1), body: pcp::Body::Announce };
        let (answer, _) = home.ask(&pcp::encode_request(&pcp)).await.unwrap();
        assert_eq!(pcp::decode_response(&answer), Err(pcp::ResponseError::OtherVersion(0)));
    });
}

#[test]
fn only_ones_own_address_is_mapped() {
    World::run(1, |world| async move {
        let home = home(&world, Gateway::default());
        let other = home.nat.host("other");
        let request = pcp::Request { client: other.addr(), lifetime: secs(60), body: pcp::Body::Announce };
        let (answer, _) = home.ask(&pcp::encode_request(&request)).await.unwrap();
        assert_eq!(pcp::decode_response(&answer).unwrap().outcome, Err(pcp::Refusal::AddressMismatch));
    });
}

#[test]
fn gateways_that_cannot_be_relied_upon_do_as_they_are_told() {
    let open_for = |manner| {
        World::run(1, |world| async move {
            let home = home(&world, with(|gateway| gateway.manner = manner));
            let granted = home.pcp(7_000, secs(60), 1).await.unwrap().1;
            (granted, home.is_open(7_000).await)
        })
    };
    assert_eq!(open_for(Manner::Honest), (secs(60), true));
    assert_eq!(open_for(Manner::Permanent), (secs(u64::from(u32::MAX)), true));
    assert_eq!(open_for(Manner::Boastful), (secs(60), false));
    World::run(1, |world| async move {
        let request = natpmp::encode_request(&natpmp::Request::ExternalAddress);
        let deaf = home(&world, with(|gateway| gateway.manner = Manner::Deaf));
        assert_eq!(deaf.ask(&request).await, None);
        let astray = home(&world, with(|gateway| gateway.manner = Manner::Astray));
        assert_ne!(astray.ask(&request).await.unwrap().1.ip(), astray.nat.inner_addr());
        assert_eq!(deaf.inner.net().gateways()[0].addr, deaf.nat.inner_addr());
        assert_eq!(world.host("public").net().gateways(), []);
    });
}

#[test]
fn a_pinhole_lets_strangers_in_over_ipv6_until_it_ends_or_is_closed() {
    World::run(1, |world| async move {
        let home = home(&world, Gateway::default());
        let inner = home.inner.add_ipv6();
        let socket = home.inner.bind_udp((inner, 5_000).into()).unwrap();
        let asking = home.inner.bind_udp((inner, 5_001).into()).unwrap();
        let outside = world.host("outside");
        let stranger = outside.bind_udp((outside.add_ipv6(), 9).into()).unwrap();
        let ask = async |lifetime, nonce| {
            let external = SocketAddr::from(([0_u16; 8], 0));
            let map = pcp::Map { nonce: [nonce; 12], transport: pcp::Transport::Udp, internal_port: 5_000, external };
            let request = pcp::Request { client: inner.into(), lifetime, body: pcp::Body::Map(map) };
            let gateway = SocketAddr::new(home.nat.inner_ipv6(), pcp::PORT);
            asking.send_to(&pcp::encode_request(&request), gateway).unwrap();
            let mut buf = [0; 1_200];
            let (len, from) = timeout(ms(100), asking.recv_from(&mut buf)).await.unwrap().unwrap();
            assert_eq!(from, gateway);
            pcp::decode_response(&buf[..len]).unwrap()
        };
        let is_open = async || {
            stranger.send_to(b"x", (inner, 5_000).into()).unwrap();
            next(&socket).await.is_some()
        };
        assert!(!is_open().await);
        let granted = ask(secs(600), 1).await;
        let pcp::Body::Map(map) = granted.body else { panic!("{granted:?}") };
        assert_eq!((granted.outcome, map.external), (Ok(()), (inner, 5_000).into()));
        assert!(is_open().await);
        assert_eq!(home.nat.mapped_ports(), 1);
        assert_eq!(ask(Duration::ZERO, 2).await.outcome, Err(pcp::Refusal::NotAuthorized));
        assert_eq!(ask(Duration::ZERO, 1).await.outcome, Ok(()));
        assert!(!is_open().await);
        ask(secs(60), 2).await.outcome.unwrap();
        assert!(is_open().await);
        tokio::time::sleep(secs(60)).await;
        assert!(!is_open().await);
        assert_eq!(home.nat.mapped_ports(), 0);
    });
}
