//! What the configuration says of TLS: files, read once at the start.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use byway::{Certificate, HttpProxy, Roots, TlsConfig};
use serde::Deserialize;

/// Where programs look for a proxy that nobody has told them of otherwise.
const PROXY_VARIABLES: [&str; 2] = ["HTTPS_PROXY", "https_proxy"];

/// `[tls]`; `docs/cli.md` explains each key.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct TlsTable {
    /// A relay's public certificate chain.
    cert: Option<PathBuf>,
    /// Its private key.
    key: Option<PathBuf>,
    /// Further authorities that may sign relays' certificates.
    roots: Option<PathBuf>,
    /// The proxy through which relays are reached; unset, the environment's.
    proxy: Option<String>,
    /// What the others lead to.
    #[serde(skip)]
    pub(super) config: TlsConfig,
}

impl TlsTable {
    /// Reads the files; names that are not absolute begin at `dir`.
    pub(super) fn read(&mut self, dir: &Path) -> Result<(), String> {
        let read = |key: &str, path: &Path| {
            let path = dir.join(path);
            fs::read(&path).map_err(|error| format!("tls.{key}: cannot read {}: {error}", path.display()))
        };
        let mut config = TlsConfig::default();
        config.certificate = match (&self.cert, &self.key) {
            (Some(cert), Some(key)) => {
                let certificate = Certificate::from_pem(&read("cert", cert)?, &read("key", key)?);
                Some(certificate.map_err(|error| format!("tls.cert and tls.key: {error}"))?)
            }
            (None, None) => None,
            _ => return Err("tls.cert and tls.key go together; name both or neither".into()),
        };
        if let Some(roots) = &self.roots {
            config.roots = Roots::from_pem(&read("roots", roots)?).map_err(|error| format!("tls.roots: {error}"))?;
        }
        let named = self.proxy.as_deref().map(|proxy| parse("tls.proxy", proxy));
        config.proxy = named.or_else(of_environment).transpose()?;
        self.config = config;
        Ok(())
    }
}

fn of_environment() -> Option<Result<HttpProxy, String>> {
    let set = |name: &str| env::var(name).ok().filter(|value| !value.is_empty()).map(|value| parse(name, &value));
    PROXY_VARIABLES.into_iter().find_map(set)
}

fn parse(name: &str, value: &str) -> Result<HttpProxy, String> {
    value.parse().map_err(|error| format!("{name}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_without_its_key_and_a_file_that_is_none_are_named() {
        let mut half = TlsTable { cert: Some("a.pem".into()), ..TlsTable::default() };
        assert!(half.read(Path::new("/nowhere")).unwrap_err().contains("go together"));
        let mut missing = TlsTable { roots: Some("a.pem".into()), ..TlsTable::default() };
        assert!(missing.read(Path::new("/nowhere")).unwrap_err().contains("tls.roots: cannot read /nowhere/a.pem"));
    }

    #[test]
    fn the_configured_proxy_is_used_and_a_wrong_one_is_refused() {
        let read = |proxy: &str| {
            let mut table = TlsTable { proxy: Some(proxy.into()), ..TlsTable::default() };
            table.read(Path::new("/")).map(|()| table.config)
        };
        assert_eq!(read("http://proxy:3128").unwrap().proxy.unwrap().to_string(), "http://proxy:3128");
        assert!(read("socks5://proxy:1").unwrap_err().starts_with("tls.proxy: a proxy is reached over plain HTTP"));
    }
}
