//! What the configuration says of TLS: files, read once at the start.

use std::{
    env, fmt, fs,
    path::{Path, PathBuf},
    str::FromStr,
};

use byway::{Certificate, Roots, TlsConfig};
use serde::Deserialize;

/// Where programs look for a proxy that nobody has told them of otherwise.
const PROXY_VARIABLES: [&str; 2] = ["HTTPS_PROXY", "https_proxy"];

/// Where they look for hosts that need none.
const NO_PROXY_VARIABLES: [&str; 2] = ["NO_PROXY", "no_proxy"];

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
    /// Relays that are reached without it; unset, the environment's.
    no_proxy: Option<String>,
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
        config.proxy = setting("tls.proxy", self.proxy.as_deref(), PROXY_VARIABLES)?;
        if config.proxy.is_some() {
            let no_proxy = setting("tls.no_proxy", self.no_proxy.as_deref(), NO_PROXY_VARIABLES)?;
            config.no_proxy = no_proxy.unwrap_or_default();
        }
        self.config = config;
        Ok(())
    }
}

/// What the file says of `key`, or else the first of the variables that is set.
fn setting<T>(key: &str, told: Option<&str>, variables: [&str; 2]) -> Result<Option<T>, String>
where
    T: FromStr<Err: fmt::Display>,
{
    let told = told.map(|value| (key.to_owned(), value.to_owned()));
    let set = |name: &str| Some((name.to_owned(), env::var(name).ok().filter(|value| !value.is_empty())?));
    let found = told.or_else(|| variables.into_iter().find_map(set));
    found.map(|(name, value)| value.parse().map_err(|error| format!("{name}: {error}"))).transpose()
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
    fn relays_without_the_proxy_are_told_by_the_file_too() {
        let read = |no_proxy: &str| {
            let (proxy, no_proxy) = (Some("http://proxy:1".into()), Some(no_proxy.into()));
            let mut table = TlsTable { proxy, no_proxy, ..TlsTable::default() };
            table.read(Path::new("/")).map(|()| table.config.no_proxy)
        };
        assert_eq!(read("relay.example, 10.0.0.0/8").unwrap(), "relay.example,10.0.0.0/8".parse().unwrap());
        assert!(read("10.0.0.0/99").unwrap_err().starts_with("tls.no_proxy: \"10.0.0.0/99\" names no host"));
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
