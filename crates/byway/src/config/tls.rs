//! What TLS on TCP may be told: a relay's public certificate, further roots, and the proxy that leads out.

use std::{fmt, str::FromStr, sync::Arc};

use byway_proto::addr::{HostAddr, ParseHostAddrError};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};

use super::NoProxy;

/// Longest `user:password` of a proxy in bytes.
const MAX_LOGIN: usize = 512;

/// How relays are reached over TLS, and how this node is if it is one. The default needs nothing: a relay proves its key.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use byway::{Config, Identity, Roots};
///
/// # let dir = std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../byway-sim/tests/scenarios/certs"));
/// let mut config = Config::new(Identity::generate());
/// config.tls.roots = Roots::from_pem(&std::fs::read(dir.join("ca.pem"))?)?; // an authority of the company's own
/// config.tls.proxy = Some("http://proxy.example:3128".parse()?);
/// config.tls.no_proxy = "relay.lan,10.0.0.0/8".parse()?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct TlsConfig {
    /// As a relay: the certificate for clients that know this relay by a `wss://` name; all others see the node's key.
    pub certificate: Option<Certificate>,
    /// As a client: who may sign the certificates of `wss://` relays, besides Mozilla's list.
    pub roots: Roots,
    /// As a client: the proxy through which TCP connections to relays are made.
    pub proxy: Option<HttpProxy>,
    /// As a client: the relays that are reached without the proxy.
    pub no_proxy: NoProxy,
}

impl TlsConfig {
    /// The proxy by which a host is reached, if one is.
    pub(crate) fn proxy_for(&self, host: &HostAddr) -> Option<&HttpProxy> {
        self.proxy.as_ref().filter(|_| !self.no_proxy.covers(host))
    }
}

/// A certificate chain with its private key.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use byway::{Certificate, Config, Identity, RelayConfig};
///
/// # let dir = std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../byway-sim/tests/scenarios/certs"));
/// let (chain, key) = (std::fs::read(dir.join("relay.pem"))?, std::fs::read(dir.join("relay.key"))?);
/// let mut config = Config::new(Identity::generate());
/// config.relay = Some(RelayConfig::default());
/// config.tls.certificate = Some(Certificate::from_pem(&chain, &key)?); // clients come by `wss://relay.example:4477`
/// # Ok(())
/// # }
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct Certificate {
    pub(crate) chain: Vec<CertificateDer<'static>>,
    key: Arc<PrivateKeyDer<'static>>,
}

impl Certificate {
    /// Reads a chain, the server's own certificate first, and its key (PKCS#8, PKCS#1 or SEC1), both as PEM.
    pub fn from_pem(chain: &[u8], key: &[u8]) -> Result<Self, PemError> {
        let chain = certificates(chain)?;
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| PemError::Key(error.to_string()))?;
        Ok(Certificate { chain, key: Arc::new(key) })
    }

    pub(crate) fn key(&self) -> PrivateKeyDer<'static> {
        self.key.clone_key()
    }
}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificate").field("chain", &self.chain.len()).finish_non_exhaustive()
    }
}

/// Certificates of authorities that are trusted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Roots(pub(crate) Vec<CertificateDer<'static>>);

impl Roots {
    /// Reads one or several certificates as PEM.
    pub fn from_pem(pem: &[u8]) -> Result<Self, PemError> {
        certificates(pem).map(Roots)
    }
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, PemError> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let all = all.map_err(|error| PemError::Certificate(error.to_string()))?;
    if all.is_empty() { Err(PemError::NoCertificate) } else { Ok(all) }
}

/// Why a file holds neither certificates nor a key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PemError {
    /// There is no certificate.
    #[error("the file holds no certificate; name a PEM file with a `BEGIN CERTIFICATE` line")]
    NoCertificate,
    /// A certificate is damaged.
    #[error("a certificate cannot be read ({0}); export it as PEM again")]
    Certificate(String),
    /// The key is missing or damaged.
    #[error("the private key cannot be read ({0}); name an unencrypted PEM file with a `BEGIN … PRIVATE KEY` line")]
    Key(String),
}

/// An HTTP proxy that opens tunnels (CONNECT, RFC 9110 §9.3.6); as text `http://[user:password@]host:port`.
///
/// ```
/// use byway::HttpProxy;
///
/// assert!("http://alice:p%40ss@proxy.example:3128".parse::<HttpProxy>().is_ok()); // the password is `p@ss`
/// assert!("socks5://proxy.example:1080".parse::<HttpProxy>().is_err());
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct HttpProxy {
    pub(crate) host: HostAddr,
    /// `user:password`, decoded.
    pub(crate) login: Option<String>,
}

impl FromStr for HttpProxy {
    type Err = ParseProxyError;

    fn from_str(text: &str) -> Result<Self, ParseProxyError> {
        let rest = match text.trim().split_once("://") {
            Some(("http", rest)) => rest,
            Some((scheme, _)) => return Err(ParseProxyError::Scheme(scheme.chars().take(16).collect())),
            None => text.trim(),
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (login, host) = match rest.rsplit_once('@') {
            Some((login, host)) => (Some(login), host),
            None => (None, rest),
        };
        let login = login.map(|login| decode(login).filter(|login| login.len() <= MAX_LOGIN));
        Ok(HttpProxy {
            host: host.parse()?,
            login: login.map(|login| login.ok_or(ParseProxyError::Login)).transpose()?,
        })
    }
}

/// Undoes percent-encoding (RFC 3986 §2.1).
fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        let mut digit = || char::from(rest.next()?).to_digit(16);
        bytes.push(if byte == b'%' { (digit()? << 4 | digit()?) as u8 } else { byte });
    }
    String::from_utf8(bytes).ok().filter(|text| !text.chars().any(char::is_control))
}

impl fmt::Display for HttpProxy {
    /// Without the password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}", self.host)
    }
}

impl fmt::Debug for HttpProxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HttpProxy({})", self.host)
    }
}

/// Why a text is not an [`HttpProxy`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ParseProxyError {
    /// Another scheme than http.
    #[error("a proxy is reached over plain HTTP, not {0}; write http://host:port (what passes it is encrypted by TLS)")]
    Scheme(String),
    /// The user name or password is damaged.
    #[error("user name and password of the proxy are not valid; write user:password@ with special characters as %xx")]
    Login,
    /// The host is not valid.
    #[error(transparent)]
    Host(#[from] ParseHostAddrError),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proxies_are_read_with_their_login_and_shown_without_it() {
        let proxy: HttpProxy = "http://me:p%40ss@proxy.example:3128/".parse().unwrap();
        assert_eq!(proxy.login.as_deref(), Some("me:p@ss"));
        assert_eq!(proxy.to_string(), "http://proxy.example:3128");
        assert!(!format!("{proxy:?}").contains("ss"));
        assert_eq!("10.0.0.1:8080".parse::<HttpProxy>().unwrap().login, None);
    }

    #[test]
    fn what_is_no_proxy_is_refused_by_name() {
        let refused = |text: &str| text.parse::<HttpProxy>().unwrap_err();
        assert_eq!(refused("socks5://proxy:1080"), ParseProxyError::Scheme("socks5".into()));
        assert_eq!(refused("http://a%zz@proxy:1"), ParseProxyError::Login);
        assert!(matches!(refused("http://proxy"), ParseProxyError::Host(ParseHostAddrError::NoPort(_))));
    }

    #[test]
    fn a_file_without_a_certificate_is_refused() {
        assert_eq!(Roots::from_pem(b"nothing").unwrap_err(), PemError::NoCertificate);
        assert!(matches!(Certificate::from_pem(b"", b""), Err(PemError::NoCertificate)));
    }
}
