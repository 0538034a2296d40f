//! Strangers that begin and do not go on: each is gone after the handshake's limits, and counted.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::Duration};

use byway::{Identity, PeerAddr, RelayConfig};
use byway_proto::hello::{Control, Hello, Limits};
use quinn::crypto::rustls::QuicClientConfig;
use rustls::{
    DigitallySignedStruct, Error, SignatureScheme,
    client::{
        AlwaysResolvesClientRawPublicKeys,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime},
    sign::CertifiedKey,
};
use tokio::{net::UdpSocket, time};

use crate::common::{Peer, V4, addr_of, config, connected, count, until};

/// A silent handshake is given up after 5 s, any after 10 s, and its alias 3 s later; the rest is for a busy machine.
const IDLE: (Duration, Duration) = (Duration::from_millis(4_500), Duration::from_secs(12));
const TOTAL: (Duration, Duration) = (Duration::from_millis(4_500), Duration::from_secs(16));

#[tokio::test]
async fn a_client_that_is_silent_after_its_first_packet_is_gone_and_counted() {
    let node = Peer::bind(config(2, V4)).await.node;
    let silent = UdpSocket::bind((V4, 0)).await.unwrap();
    silent.send_to(&initials(1).await[0], addr_of(&node)).await.unwrap();
    gone_within(&node, IDLE).await;
}

#[tokio::test]
async fn a_client_that_opens_no_control_stream_is_gone_and_counted() {
    let node = Peer::bind(config(2, V4)).await.node;
    let connection = foreign(&node).await;
    gone_within(&node, TOTAL).await;
    assert!(connection.close_reason().is_some());
}

#[tokio::test]
async fn a_client_that_never_says_hello_is_gone_and_counted() {
    let node = Peer::bind(config(2, V4)).await.node;
    let connection = foreign(&node).await;
    let (mut control, _answers) = connection.open_bi().await.unwrap();
    control.write_all(&[0]).await.unwrap(); // so that the other side sees the stream
    gone_within(&node, TOTAL).await;
    assert!(connection.close_reason().is_some());
}

#[tokio::test]
async fn a_client_that_is_just_quick_enough_at_each_step_is_gone_after_the_total_and_counted() {
    let node = Peer::bind(config(2, V4)).await.node;
    let (start, slow) = (time::Instant::now(), slow_path(addr_of(&node), Duration::from_millis(4_500)).await);
    let slowly = async {
        let connection = foreign_at(slow).await;
        time::sleep_until(start + Duration::from_millis(8_500)).await;
        let (mut control, _answers) = connection.open_bi().await.unwrap();
        // A frame of 16,000 bytes, one at a time.
        let mut bytes = [0x3e, 0x80].into_iter().chain(std::iter::repeat(0));
        while control.write_all(&[bytes.next().unwrap()]).await.is_ok() {
            time::sleep(Duration::from_millis(100)).await;
        }
    };
    let gone = until(&node, Duration::from_millis(11_500), |status| count(status, "handshake_failed") == 1);
    tokio::join!(slowly, gone);
    assert!(start.elapsed() > Duration::from_millis(9_500), "after {:?}", start.elapsed());
}

#[tokio::test]
async fn no_more_handshakes_than_the_cap_are_under_way_and_the_others_are_counted() {
    let mut settings = config(2, V4);
    settings.gate.half_open = 4;
    let node = Peer::bind(settings).await.node;
    let mut silent = Vec::new();
    for initial in initials(12).await {
        let socket = UdpSocket::bind((V4, 0)).await.unwrap();
        socket.send_to(&initial, addr_of(&node)).await.unwrap();
        silent.push(socket);
    }
    until(&node, Duration::from_secs(2), |status| count(status, "handshake_retried") == 8).await;
    until(&node, IDLE.1, |status| count(status, "handshake_failed") == 4).await;
    // Each was answered, with no more than three times what it said.
    for socket in silent {
        let (mut bytes, mut buf) = (0, [0; 2_048]);
        while let Ok(len) = socket.try_recv(&mut buf) {
            bytes += len;
        }
        assert!((1..=3_600).contains(&bytes), "{bytes} bytes");
    }
}

#[tokio::test]
async fn a_node_that_only_dials_does_not_answer() {
    let mut settings = config(2, V4);
    settings.accept = false;
    let node = Peer::bind(settings).await.node;
    let stranger = UdpSocket::bind((V4, 0)).await.unwrap();
    stranger.send_to(&initials(1).await[0], addr_of(&node)).await.unwrap();
    until(&node, Duration::from_secs(2), |status| count(status, "unknown_handshake") == 1).await;
    let answer = time::timeout(Duration::from_millis(500), stranger.recv_from(&mut [0; 2_048])).await;
    assert!(answer.is_err(), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slowed_client_of_a_relay_does_not_delay_a_direct_path() {
    let mut slow = RelayConfig::default();
    (slow.client_rate, slow.client_burst) = (50_000, 1 << 16);
    let (relay, at) = crate::common::relay(9, slow).await;
    let (mut a, mut b) = connected(V4).await;
    b.node.add_relay(&at).unwrap();
    let mut settings = config(3, V4).relay_at(at);
    settings.relay_only = true;
    let mut c = Peer::bind(settings).await;
    // So may be the third: it has heard of the relay from its peer.
    for client in [&b.node, &c.node] {
        until(client, Duration::from_secs(5), |status| status.relays.iter().any(|relay| relay.registered)).await;
    }
    let mut ticket = b.node.ticket();
    ticket.relays = c.node.ticket().relays;
    c.node.dial(ticket).await.unwrap();
    c.up().await;
    let (to, tx) = (b.id(), c.tx.clone());
    let flood = tokio::spawn(async move { while tx.send_wait(to, vec![0; 10_000].into()).await.is_ok() {} });
    let (mut longest, end) = (Duration::ZERO, time::Instant::now() + Duration::from_secs(3));
    while time::Instant::now() < end {
        longest = longest.max(direct(&mut a, &mut b).await);
    }
    assert!(count(&relay.status().await, "relay_rate_limited") > 0, "the relay had nothing to slow");
    println!("the longest round trip on the direct path took {longest:?}");
    assert!(longest < Duration::from_millis(250), "{longest:?}");
    flood.abort();
}

#[tokio::test]
async fn a_client_that_does_not_read_what_its_relay_says_is_told_why_it_is_closed() {
    let (relay, at) = crate::common::relay(9, RelayConfig::default()).await;
    let mut transport = quinn::TransportConfig::default();
    transport.stream_receive_window(1_024_u32.into());
    let connection = foreign_with(at.socket_addrs().next().unwrap(), transport).await;
    let (mut control, mut answers) = connection.open_bi().await.unwrap();
    let hello = Hello {
        network: config(1, V4).network,
        relay: true,
        limits: Limits { max_message: 1 << 20, max_streams: 64 },
        ..Hello::default()
    };
    control.write_all(&Control::Hello(hello).to_frame().unwrap()).await.unwrap();
    answers.read_exact(&mut [0; 1]).await.unwrap(); // the relay's hello has come; nothing more is read
    let register = Control::Register.to_frame().unwrap().repeat(1_000);
    let flood = async { while control.write_all(&register).await.is_ok() {} };
    let closed = async { tokio::join!(connection.closed(), flood).0 };
    let why = time::timeout(Duration::from_secs(20), closed).await.unwrap();
    let quinn::ConnectionError::ApplicationClosed(closed) = why else { panic!("{why}") };
    let why = String::from_utf8_lossy(&closed.reason);
    assert!(why.contains("read too slowly what the relay had to say"), "{why}");
    until(&relay, Duration::from_secs(2), |status| status.serving.as_ref().is_some_and(|it| it.clients == 0)).await;
}

/// A message there and one back, while a third node's messages come in as well.
async fn direct(a: &mut Peer, b: &mut Peer) -> Duration {
    let start = time::Instant::now();
    let from = a.id();
    a.tx.send_wait(b.id(), "ping".into()).await.unwrap();
    while b.rx.recv().await.unwrap().0 != from {}
    b.tx.send_wait(a.id(), "pong".into()).await.unwrap();
    a.rx.recv().await.unwrap();
    start.elapsed()
}

/// Waits until a node has given its only stranger up, neither too soon nor too late.
async fn gone_within(node: &byway::Node, (soonest, latest): (Duration, Duration)) {
    until(node, Duration::from_secs(2), |status| status.aliases == 1).await;
    let start = time::Instant::now();
    until(node, latest, |status| count(status, "handshake_failed") == 1).await;
    assert!(start.elapsed() > soonest, "after {:?}", start.elapsed());
    until(node, latest, |status| status.aliases == 0).await;
    // It still takes others in.
    let mut other = Peer::bind(config(5, V4)).await;
    other.node.dial(node.ticket()).await.unwrap();
    other.up().await;
}

/// First packets of real dials.
async fn initials(count: usize) -> Vec<Vec<u8>> {
    let tap = UdpSocket::bind((V4, 0)).await.unwrap();
    let dialler = Peer::bind(config(77, V4)).await.node;
    for n in 0..count {
        let nobody = PeerAddr::new(Identity::from_seed([100 + n as u8; 32]).id(), [tap.local_addr().unwrap()]);
        let dialler = dialler.clone();
        tokio::spawn(async move { dialler.dial(nobody).await });
    }
    let mut initials = BTreeMap::new();
    while initials.len() < count {
        let mut buf = [0; 2_048];
        let (len, _) = tap.recv_from(&mut buf).await.unwrap();
        initials.entry(buf[6..14].to_vec()).or_insert_with(|| buf[..len].to_vec()); // by destination connection id
    }
    initials.into_values().collect()
}

/// A connection that has proven a key and stops there.
async fn foreign(node: &byway::Node) -> quinn::Connection {
    foreign_at(addr_of(node)).await
}

/// An address from which a client's first packet gets to `node` at once, and all others once `pause` is over.
async fn slow_path(node: SocketAddr, pause: Duration) -> SocketAddr {
    let path = UdpSocket::bind((V4, 0)).await.unwrap();
    let addr = path.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut client, mut held, mut buf) = (None, Vec::new(), [0; 2_048]);
        let end = time::Instant::now() + pause;
        loop {
            let (len, from) = tokio::select! {
                biased;
                () = time::sleep_until(end), if !held.is_empty() => {
                    for datagram in held.drain(..) {
                        let datagram: Vec<u8> = datagram;
                        path.send_to(&datagram, node).await.unwrap();
                    }
                    continue;
                }
                received = path.recv_from(&mut buf) => received.unwrap(),
            };
            let to = if from == node { client } else { Some(node) };
            if from != node && client.replace(from).is_some() && time::Instant::now() < end {
                held.push(buf[..len].to_vec());
            } else if let Some(to) = to {
                path.send_to(&buf[..len], to).await.unwrap();
            }
        }
    });
    addr
}

async fn foreign_at(addr: SocketAddr) -> quinn::Connection {
    foreign_with(addr, quinn::TransportConfig::default()).await
}

async fn foreign_with(addr: SocketAddr, mut transport: quinn::TransportConfig) -> quinn::Connection {
    let identity = Identity::from_seed([66; 32]);
    let pkcs8 = [&[0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20][..], &[66; 32]].concat();
    let spki = [&[0x30, 0x2a, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 3, 0x21, 0][..], identity.id().as_bytes()].concat();
    let provider = Arc::new(ring::default_provider());
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(pkcs8));
    let key = CertifiedKey::new(vec![CertificateDer::from(spki)], provider.key_provider.load_private_key(key).unwrap());
    let mut tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody))
        .with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(Arc::new(key))));
    tls.alpn_protocols = vec![b"byway/1".to_vec()];
    transport.keep_alive_interval(Some(Duration::from_secs(1)));
    let mut client = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()));
    client.transport_config(Arc::new(transport));
    let mut endpoint = quinn::EndpointConfig::default();
    endpoint.grease_quic_bit(false);
    let socket = std::net::UdpSocket::bind((V4, 0)).unwrap();
    let endpoint = quinn::Endpoint::new(endpoint, None, socket, Arc::new(quinn::TokioRuntime)).unwrap();
    endpoint.connect_with(client, addr, "foreign.invalid").unwrap().await.unwrap()
}

/// Believes every server.
#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.3 only".into()))
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}
