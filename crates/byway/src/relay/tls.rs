//! TLS 1.3 on TCP between a relay and its clients.
//!
//! It is there to pass for the TLS that such networks let through. A relay proves its key as it does in QUIC, or shows a
//! public certificate to clients that know it by a `wss://` name; either way the QUIC connection inside proves the key.

use std::{
    io::{self, ErrorKind},
    sync::Arc,
};

use byway_proto::PeerId;
use rustls::{
    AlertDescription, CertificateError, ClientConfig, Error, RootCertStore, ServerConfig,
    client::Resumption,
    pki_types::{InvalidDnsNameError, ServerName},
    server::{Acceptor, AlwaysResolvesServerRawPublicKeys},
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{LazyConfigAcceptor, TlsConnector, client, server};

use crate::{
    config::Config,
    quic::tls::{Time, Verifier, certified_key, provider, server_name},
};

/// The application protocol of clients that pin the relay's key.
const ALPN: &[u8] = b"byway-relay/1";

/// That of clients that trust a public certificate: a web server may stand between.
const ALPN_HTTP: &[u8] = b"http/1.1";

/// TLS as a relay speaks it.
#[derive(Debug, Clone)]
pub(crate) struct RelayTls {
    pinned: Arc<ServerConfig>,
    public: Option<Arc<ServerConfig>>,
}

impl RelayTls {
    pub(crate) fn new(config: &Config) -> Result<Self, Error> {
        let provider = Arc::new(provider());
        let key = Arc::new(certified_key(&config.identity, &provider)?);
        let builder = || {
            ServerConfig::builder_with_details(Arc::clone(&provider), Arc::new(Time(config.clock.clone())))
                .with_protocol_versions(&[&rustls::version::TLS13])
                .map(|builder| builder.with_no_client_auth())
        };
        let pinned = builder()?.with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(key)));
        let public = match &config.tls.certificate {
            Some(certificate) => Some(builder()?.with_single_cert(certificate.chain.clone(), certificate.key())?),
            None => None,
        };
        let finish = |mut config: ServerConfig, alpn: &[u8]| {
            config.alpn_protocols = vec![alpn.to_vec()];
            config.send_tls13_tickets = 0; // a resumed handshake takes as many round trips
            Arc::new(config)
        };
        Ok(RelayTls { pinned: finish(pinned, ALPN), public: public.map(|public| finish(public, ALPN_HTTP)) })
    }

    /// Greets a client with what it can check.
    pub(crate) async fn accept<S>(&self, stream: S) -> io::Result<server::TlsStream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let start = LazyConfigAcceptor::new(Acceptor::default(), stream).await?;
        let pins = start.client_hello().alpn().is_some_and(|mut offered| offered.any(|alpn| alpn == ALPN));
        let config = self.public.as_ref().filter(|_| !pins).unwrap_or(&self.pinned);
        start.into_stream(Arc::clone(config)).await
    }
}

/// TLS as a relay's client speaks it.
#[derive(Debug, Clone)]
pub(crate) struct ClientTls {
    pinned: Arc<ClientConfig>,
    public: Arc<ClientConfig>,
}

impl ClientTls {
    pub(crate) fn new(config: &Config) -> Result<Self, Error> {
        let provider = Arc::new(provider());
        let builder = || {
            ClientConfig::builder_with_details(Arc::clone(&provider), Arc::new(Time(config.clock.clone())))
                .with_protocol_versions(&[&rustls::version::TLS13])
        };
        let verifier = Arc::new(Verifier { provider: Arc::clone(&provider), own: None });
        let mut pinned = builder()?.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth();
        pinned.alpn_protocols = vec![ALPN.to_vec()];
        pinned.enable_sni = false; // the name tells the relay's key
        let mut roots = RootCertStore::from_iter(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
        for root in &config.tls.roots.0 {
            roots.add(root.clone())?;
        }
        let mut public = builder()?.with_root_certificates(roots).with_no_client_auth();
        public.alpn_protocols = vec![ALPN_HTTP.to_vec()];
        for config in [&mut pinned, &mut public] {
            config.resumption = Resumption::disabled();
        }
        Ok(ClientTls { pinned: Arc::new(pinned), public: Arc::new(public) })
    }

    /// Shakes hands with a relay that proves its key, or if `name` is given a certificate for that name.
    pub(crate) async fn connect<S>(
        &self,
        stream: S,
        relay: PeerId,
        name: Option<&str>,
    ) -> Result<client::TlsStream<S>, TlsError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let (config, name) = match name {
            Some(name) => (&self.public, name.to_owned()),
            None => (&self.pinned, server_name(relay)),
        };
        let name = ServerName::try_from(name)?;
        let connected = TlsConnector::from(Arc::clone(config)).connect(name, stream).await;
        connected.map_err(TlsError::from)
    }
}

/// Why TLS with a relay failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TlsError {
    #[error(
        "another key than the relay's answers TLS there; check the relay's id, or whether a proxy opens TLS on its way"
    )]
    WrongKey,
    #[error(
        "its certificate is for {presented}, not for {expected}; correct the relay's wss:// name, or its certificate"
    )]
    WrongName { expected: String, presented: String },
    #[error(
        "nobody that this node trusts has signed its certificate; name its authority in `roots`, or get a public one"
    )]
    UnknownIssuer,
    #[error("its certificate has expired; renew it at the relay, or check this machine's clock")]
    Expired,
    #[error("its certificate is not valid yet; check this machine's clock, or the certificate")]
    NotYetValid,
    #[error("its certificate was revoked; get a new one at the relay")]
    Revoked,
    #[error(
        "its certificate is an authority's own, as self-signed ones are, which no server may show; have the relay's name signed by it, \
         or leave out wss:// so that the relay proves its key"
    )]
    Authority,
    #[error("it speaks TLS, but not as a relay ({0:?}); check host and port")]
    NoRelay(AlertDescription),
    #[error("it does not speak TLS; check host and port, or whether a portal answers in the relay's place")]
    NoTls,
    #[error(
        "it hung up during the TLS handshake; check host and port, or whether a firewall cuts off what it does not know"
    )]
    HungUp,
    #[error("TLS: {0}")]
    Tls(Error),
    #[error("the relay's name is none that a certificate can have")]
    Name(#[from] InvalidDnsNameError),
    #[error("TLS: {0}")]
    Io(io::Error),
}

impl From<io::Error> for TlsError {
    fn from(error: io::Error) -> Self {
        match error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
            Some(Error::InvalidCertificate(invalid)) => match invalid {
                CertificateError::NotValidForName => TlsError::WrongKey,
                CertificateError::NotValidForNameContext { expected, presented } => {
                    TlsError::WrongName { expected: expected.to_str().into_owned(), presented: names(presented) }
                }
                CertificateError::UnknownIssuer => TlsError::UnknownIssuer,
                CertificateError::Expired | CertificateError::ExpiredContext { .. } => TlsError::Expired,
                CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => TlsError::NotYetValid,
                CertificateError::Revoked => TlsError::Revoked,
                CertificateError::Other(other) if other.to_string().contains("CaUsedAsEndEntity") => {
                    TlsError::Authority
                }
                other => TlsError::Tls(Error::InvalidCertificate(other.clone())),
            },
            Some(Error::AlertReceived(alert)) => TlsError::NoRelay(*alert),
            Some(Error::InvalidMessage(_)) => TlsError::NoTls,
            Some(other) => TlsError::Tls(other.clone()),
            None if matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset) => TlsError::HungUp,
            None => TlsError::Io(error),
        }
    }
}

/// The names in a certificate; the library writes them as `DnsName("relay.example")`.
fn names(presented: &[String]) -> String {
    let plain = |name: &String| name.split('"').nth(1).unwrap_or(name).to_owned();
    let names: Vec<_> = presented.iter().map(plain).collect();
    if names.is_empty() { "no name".into() } else { names.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The server's name that a relay's client sends in clear.
    async fn told(name: Option<&str>) -> Option<String> {
        let tls = ClientTls::new(&Config::new(crate::Identity::from_seed([1; 32]))).unwrap();
        let (client, server) = tokio::io::duplex(1 << 16);
        let connecting = tls.connect(client, PeerId::ed25519([7; 32]), name);
        let hello = async {
            let start = LazyConfigAcceptor::new(Acceptor::default(), server).await.unwrap();
            start.client_hello().server_name().map(str::to_owned)
        };
        tokio::join!(connecting, hello).1
    }

    #[tokio::test]
    async fn nobody_on_the_way_is_told_which_key_a_client_looks_for() {
        assert_eq!(told(None).await, None);
        assert_eq!(told(Some("relay.example")).await.as_deref(), Some("relay.example"));
    }
}
