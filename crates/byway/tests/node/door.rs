//! The TCP door of a relay as strangers find it.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use byway::{Certificate, RelayConfig};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, pem::PemObject},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::common::{Peer, V4, addr_of, config};

const CA: &[u8] = include_bytes!("../../../byway-sim/tests/scenarios/certs/ca.pem");
const CHAIN: &[u8] = include_bytes!("../../../byway-sim/tests/scenarios/certs/relay.pem");
const KEY: &[u8] = include_bytes!("../../../byway-sim/tests/scenarios/certs/relay.key");

/// A WebSocket to a relay, by hand.
async fn websocket(to: SocketAddr) -> TlsStream<TcpStream> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(CA).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = ClientConfig::builder_with_provider(provider).with_protocol_versions(&[&rustls::version::TLS13]).unwrap();
    let connector = TlsConnector::from(Arc::new(tls.with_root_certificates(roots).with_no_client_auth()));
    let tcp = TcpStream::connect(to).await.unwrap();
    let mut stream = connector.connect("relay.example".try_into().unwrap(), tcp).await.unwrap();
    let request = "GET /byway/1 HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                   Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 101");
    stream
}

#[tokio::test]
async fn a_websocket_over_which_nobody_proves_who_he_is_ends_though_it_is_busy() {
    let mut settings = config(9, V4);
    settings.relay = Some(RelayConfig::default());
    settings.tls.certificate = Some(Certificate::from_pem(CHAIN, KEY).unwrap());
    let relay = Peer::bind(settings).await.node;
    let mut stranger = websocket(addr_of(&relay)).await;
    let opened = time::Instant::now();
    let mut bytes = [0; 256];
    // Pings are what keeps a WebSocket alive.
    while stranger.write_all(&[0x89, 0x80, 0, 0, 0, 0]).await.is_ok() {
        if let Ok(Ok(0) | Err(_)) = time::timeout(Duration::from_millis(200), stranger.read(&mut bytes)).await {
            break;
        }
        time::sleep(Duration::from_millis(200)).await;
        assert!(opened.elapsed() < Duration::from_secs(20), "a stranger keeps its place");
    }
    assert!(opened.elapsed() > Duration::from_secs(5), "a slow client has that long");
}
