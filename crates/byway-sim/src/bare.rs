//! Bare quinn on a simulated host, with the library's own defaults: what our tables compare Byway with.

use std::{
    fmt,
    io::{self, IoSliceMut},
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
};

use byway::net::{BoxFuture, Net, UdpSocket};
use quinn::{
    AsyncUdpSocket, ClientConfig, ConnectError, Connection, ConnectionError, Endpoint, EndpointConfig, ServerConfig,
    TokioRuntime, UdpPoller,
    crypto::rustls::{QuicClientConfig, QuicServerConfig},
    rustls::{
        self, DigitallySignedStruct, SignatureScheme,
        client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        crypto::{CryptoProvider, ring, verify_tls13_signature_with_raw_key},
        pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, SubjectPublicKeyInfoDer, UnixTime},
        server::AlwaysResolvesServerRawPublicKeys,
        sign::CertifiedKey,
    },
    udp::{RecvMeta, Transmit},
};

/// An Ed25519 private key in PKCS#8 (RFC 8410 §7), without its 32 bytes of seed. Whose key it is does not matter here.
const PKCS8_PREFIX: [u8; 16] =
    [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];

/// The name that is dialled; nobody checks it.
const NAME: &str = "bare.invalid";

/// Why a bare connection was not made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BareError {
    /// The network refused the socket.
    #[error("bare QUIC got no socket: {0}")]
    Io(#[from] io::Error),
    /// The dial was not begun.
    #[error("bare QUIC did not dial: {0}")]
    Connect(#[from] ConnectError),
    /// The handshake failed.
    #[error("bare QUIC lost its connection: {0}")]
    Connection(#[from] ConnectionError),
}

/// Opens an endpoint on `addr` that dials, and accepts as well.
pub(crate) fn endpoint(net: &dyn Net, addr: SocketAddr, seed: [u8; 32]) -> io::Result<Endpoint> {
    let mut config = EndpointConfig::default();
    config.rng_seed(Some(seed));
    let server = ServerConfig::with_crypto(Arc::new(server_tls()));
    let socket = Arc::new(Socket(net.bind_udp(addr)?));
    Endpoint::new_with_abstract_socket(config, Some(server), socket, Arc::new(TokioRuntime))
}

/// Makes a connection to the endpoint on `addr`.
pub(crate) async fn dial(endpoint: &Endpoint, addr: SocketAddr) -> Result<Connection, BareError> {
    let client = ClientConfig::new(Arc::new(client_tls()));
    Ok(endpoint.connect_with(client, addr, NAME)?.await?)
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn server_tls() -> QuicServerConfig {
    let provider = provider();
    let pkcs8 = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from([&PKCS8_PREFIX[..], &[7; 32]].concat()));
    let key = provider.key_provider.load_private_key(pkcs8).expect("32 bytes are an Ed25519 key");
    let spki = key.public_key().expect("ring derives the public key").to_vec();
    let key = Arc::new(CertifiedKey::new(vec![CertificateDer::from(spki)], key));
    let tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("the provider has ciphers of TLS 1.3")
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(key)));
    QuicServerConfig::try_from(tls).expect("ring has AES-128-GCM")
}

fn client_tls() -> QuicClientConfig {
    let provider = provider();
    let tls = rustls::ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("the provider has ciphers of TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyKey(provider)))
        .with_no_client_auth();
    QuicClientConfig::try_from(tls).expect("ring has AES-128-GCM")
}

/// Takes every server that has the key it shows.
#[derive(Debug)]
struct AnyKey(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyKey {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("QUIC has no TLS 1.2".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        spki: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let spki = SubjectPublicKeyInfoDer::from(spki.as_ref());
        verify_tls13_signature_with_raw_key(message, &spki, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

/// A socket of Byway's seam as quinn wants it.
#[derive(Debug)]
struct Socket(Arc<dyn UdpSocket>);

impl AsyncUdpSocket for Socket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Poller { socket: Arc::clone(&self.0), waiting: Mutex::new(None) })
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.0.try_send(transmit)
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        self.0.poll_recv(cx, bufs, meta)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.0.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.0.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.0.may_fragment()
    }
}

/// Waits for one connection until the socket takes more.
struct Poller {
    socket: Arc<dyn UdpSocket>,
    /// Locked by nobody: the future is not `Sync`, but quinn wants the poller to be.
    waiting: Mutex<Option<BoxFuture<'static, io::Result<()>>>>,
}

impl UdpPoller for Poller {
    fn poll_writable(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Poller { socket, waiting } = self.get_mut();
        let waiting = waiting.get_mut().unwrap_or_else(PoisonError::into_inner);
        let future = waiting.get_or_insert_with(|| Arc::clone(socket).writable());
        let result = ready!(future.as_mut().poll(cx));
        *waiting = None;
        Poll::Ready(result)
    }
}

impl fmt::Debug for Poller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Poller")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::World;

    #[test]
    fn bare_quinn_speaks_over_the_simulated_network() {
        let elapsed = World::run(1, |world| async move {
            let (alice, bob) = (world.host("alice"), world.host("bob"));
            let open = |host: &crate::Host, n| endpoint(&*host.net(), ([0, 0, 0, 0], 4_000).into(), [n; 32]);
            let (dialling, listening) = (open(&alice, 1).unwrap(), open(&bob, 2).unwrap());
            let addr = (bob.addr(), 4_000).into();
            let accept = async { listening.accept().await.unwrap().await.unwrap() };
            let (dialled, accepted) = tokio::join!(dial(&dialling, addr), accept);
            let dialled = dialled.unwrap();
            let mut stream = dialled.open_uni().await.unwrap();
            stream.write_all(b"hello").await.unwrap();
            stream.finish().unwrap();
            let said = accepted.accept_uni().await.unwrap().read_to_end(16).await.unwrap();
            assert_eq!(said, b"hello");
            world.elapsed()
        });
        assert!(elapsed.as_millis() <= 200, "one round trip of 100 ms and one way more: {elapsed:?}");
    }
}
