//! TLS 1.3 with raw public keys (RFC 7250): both sides prove an Ed25519 key, and no certificate is involved.

use std::{fmt, sync::Arc, time::SystemTime};

use byway_proto::{KeyKind, PeerId};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, ServerConfig, SignatureScheme,
    client::{
        AlwaysResolvesClientRawPublicKeys,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, ring, verify_tls13_signature_with_raw_key},
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, SubjectPublicKeyInfoDer, UnixTime},
    server::{
        AlwaysResolvesServerRawPublicKeys,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    sign::CertifiedKey,
    time_provider::TimeProvider,
};

use crate::{config::WallClock, identity::Identity};

/// The one application protocol of byway peers.
pub(crate) const ALPN: &[u8] = b"byway/1";

/// What precedes the key in a SubjectPublicKeyInfo of Ed25519 (RFC 8410 §4).
const SPKI_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// What precedes the seed in a PKCS#8 private key of Ed25519 (RFC 8410 §7).
const PKCS8_PREFIX: [u8; 16] =
    [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];

/// The end of every server name: none of them is ever resolved or sent.
const NAME_SUFFIX: &str = ".byway.invalid";

/// TLS as a server and as a client, for one identity; the client's is shared by all dials, for it keeps the tickets.
pub(crate) fn configs(identity: &Identity, clock: &WallClock) -> Result<(ServerConfig, ClientConfig), Error> {
    let provider = Arc::new(provider());
    let key = Arc::new(certified_key(identity, &provider)?);
    let time = Arc::new(Time(clock.clone()));
    let verifier = Arc::new(Verifier { provider: Arc::clone(&provider), own: Some(identity.id()) });
    let tls13 = &[&rustls::version::TLS13];

    let mut server = ServerConfig::builder_with_details(Arc::clone(&provider), Arc::clone(&time) as _)
        .with_protocol_versions(tls13)?
        .with_client_cert_verifier(Arc::clone(&verifier) as _)
        .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(Arc::clone(&key))));
    server.alpn_protocols = vec![ALPN.to_vec()];
    server.send_tls13_tickets = 1; // a peer has one connection at a time, which brings the ticket for the next

    let mut client = ClientConfig::builder_with_details(provider, time)
        .with_protocol_versions(tls13)?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(key)));
    client.alpn_protocols = vec![ALPN.to_vec()];
    client.enable_sni = false; // the name tells the peer's key
    Ok((server, client))
}

/// The server name that stands for a peer: tickets are cached by it, and the verifier reads the expected key from it.
pub(crate) fn server_name(peer: PeerId) -> String {
    // A DNS label has at most 63 characters (RFC 1035 §2.3.4); a peer's text form is shorter.
    format!("{peer}{NAME_SUFFIX}")
}

/// The peer whose key the other side has proven.
pub(crate) fn peer_id(connection: &quinn::Connection) -> Option<PeerId> {
    let identity = connection.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    parse_spki(identity.first()?)
}

pub(crate) fn provider() -> CryptoProvider {
    let aes = ring::cipher_suite::TLS13_AES_128_GCM_SHA256;
    let chacha = ring::cipher_suite::TLS13_CHACHA20_POLY1305_SHA256;
    // AES is 3.5 times as fast as ChaCha20 where the CPU has instructions for it, and much slower elsewhere.
    let cipher_suites = if has_aes() { vec![aes, chacha] } else { vec![chacha, aes] };
    CryptoProvider { cipher_suites, ..ring::default_provider() }
}

fn has_aes() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("aes");
    #[cfg(target_arch = "aarch64")]
    return std::arch::is_aarch64_feature_detected!("aes");
    #[allow(unreachable_code)]
    false
}

pub(crate) fn certified_key(identity: &Identity, provider: &CryptoProvider) -> Result<CertifiedKey, Error> {
    let pkcs8 = [&PKCS8_PREFIX[..], identity.seed()].concat();
    let key = provider.key_provider.load_private_key(PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(pkcs8)))?;
    let spki = [&SPKI_PREFIX[..], identity.id().as_bytes()].concat();
    Ok(CertifiedKey::new(vec![CertificateDer::from(spki)], key))
}

fn parse_spki(spki: &[u8]) -> Option<PeerId> {
    let key = spki.strip_prefix(&SPKI_PREFIX)?;
    Some(PeerId::ed25519(key.try_into().ok()?))
}

/// Checks raw public keys: a server must have the key that its name tells, a client may have any.
#[derive(Debug)]
pub(crate) struct Verifier {
    pub(crate) provider: Arc<CryptoProvider>,
    /// The node's own key, which is refused for a reason of its own where another one is expected.
    pub(crate) own: Option<PeerId>,
}

impl Verifier {
    fn verify(
        &self,
        message: &[u8],
        spki: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let spki = SubjectPublicKeyInfoDer::from(spki.as_ref());
        verify_tls13_signature_with_raw_key(message, &spki, signature, &self.provider.signature_verification_algorithms)
    }
}

fn no_tls12() -> Error {
    Error::General("TLS 1.2 is never spoken here".into())
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let proven = parse_spki(end_entity).ok_or(CertificateError::BadEncoding)?;
        let expected = match name {
            ServerName::DnsName(name) => name.as_ref().strip_suffix(NAME_SUFFIX).and_then(|id| id.parse().ok()),
            _ => None,
        };
        if expected == Some(proven) {
            Ok(ServerCertVerified::assertion())
        } else if self.own == Some(proven) {
            Err(CertificateError::ApplicationVerificationFailure.into())
        } else {
            Err(CertificateError::NotValidForName.into())
        }
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verify(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

impl ClientCertVerifier for Verifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        match parse_spki(end_entity).map(|id| id.kind()) {
            Some(KeyKind::Ed25519) => Ok(ClientCertVerified::assertion()),
            _ => Err(CertificateError::BadEncoding.into()),
        }
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verify(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

/// The node's wall clock, for the age of tickets.
#[derive(Clone)]
pub(crate) struct Time(pub(crate) WallClock);

impl TimeProvider for Time {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(self.0.now().duration_since(SystemTime::UNIX_EPOCH).ok()?))
    }
}

impl fmt::Debug for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Time")
    }
}
