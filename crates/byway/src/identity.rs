//! A node's own key, and the file that keeps it.

use std::{
    fmt, fs,
    io::{self, Write},
    path::{Path, PathBuf},
};

use byway_proto::PeerId;
use ring::signature::{Ed25519KeyPair, KeyPair};

/// What the key file begins with; the seed follows in hexadecimal, then a checksum.
const FILE_HEADER: &str = "byway-key-1 ed25519";

/// Hexadecimal digits of BLAKE3 over the seed that guard it against damage.
const CHECKSUM_DIGITS: usize = 8;

/// A node's Ed25519 key pair.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use byway::Identity;
///
/// # let path = std::env::temp_dir().join(format!("byway-doc-identity-{}.key", std::process::id()));
/// let identity = Identity::load_or_create(&path)?; // the first time it makes one
/// println!("peers know this machine as {}", identity.id());
/// assert_eq!(Identity::load_or_create(&path)?.id(), identity.id());
/// # std::fs::remove_file(path)?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Identity {
    seed: [u8; 32],
    id: PeerId,
}

/// Why a key file cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// The file's content is not a key.
    #[error(
        "the key file {path} is damaged ({what}); restore it from a backup, or move it away to start with a new identity, \
         under which your peers do not know this machine"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: &'static str,
    },
    /// The operating system refused to read or write the file.
    #[error("cannot {action} the key file {path}: {source}; check the directory's permissions")]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
}

impl Identity {
    /// A new identity from the operating system's randomness.
    ///
    /// # Panics
    /// If the operating system has no randomness to give.
    pub fn generate() -> Self {
        let mut seed = [0; 32];
        getrandom::fill(&mut seed).expect("the operating system gives randomness");
        Identity::from_seed(seed)
    }

    /// The identity whose private key is `seed` (RFC 8032 §5.1.5).
    pub fn from_seed(seed: [u8; 32]) -> Self {
        let pair = Ed25519KeyPair::from_seed_unchecked(&seed).expect("any 32 bytes are an Ed25519 seed");
        let key = pair.public_key().as_ref().try_into().expect("an Ed25519 public key has 32 bytes");
        Identity { seed, id: PeerId::ed25519(key) }
    }

    /// Reads the identity from `path`, or makes one and writes it there, readable by its owner alone.
    pub fn load_or_create(path: &Path) -> Result<Self, IdentityError> {
        match fs::read_to_string(path) {
            Ok(text) => {
                let damaged = |what| IdentityError::Damaged { path: path.to_owned(), what };
                Ok(Identity::from_seed(parse(&text).map_err(damaged)?))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let identity = Identity::generate();
                identity.write(path).map_err(|source| io_error("write", path, source))?;
                Ok(identity)
            }
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                Err(IdentityError::Damaged { path: path.to_owned(), what: "it is not text" })
            }
            Err(source) => Err(io_error("read", path, source)),
        }
    }

    /// The public key, which is the peer's name.
    pub fn id(&self) -> PeerId {
        self.id
    }

    /// The private key, for deriving others.
    pub(crate) fn seed(&self) -> &[u8; 32] {
        &self.seed
    }

    /// A key for one purpose that only this identity can know.
    pub(crate) fn derive(&self, purpose: &str) -> [u8; 32] {
        blake3::derive_key(purpose, &self.seed)
    }

    /// Writes a sibling first and renames it, so that a crash leaves the old file or the new one, never half of one.
    fn write(&self, path: &Path) -> io::Result<()> {
        let sibling = path.with_extension("new");
        let mut options = fs::OpenOptions::new();
        options.write(true).create(true).truncate(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let mut file = options.open(&sibling)?;
        writeln!(file, "{FILE_HEADER}\n{} {}", hex(&self.seed), checksum(&self.seed))?;
        file.sync_all()?;
        fs::rename(&sibling, path)
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({:?})", self.id) // never the private key
    }
}

fn io_error(action: &'static str, path: &Path, source: io::Error) -> IdentityError {
    IdentityError::Io { action, path: path.to_owned(), source }
}

fn parse(text: &str) -> Result<[u8; 32], &'static str> {
    let rest = text.strip_prefix(FILE_HEADER).ok_or("it does not begin as a key file of this version does")?;
    let mut words = rest.split_whitespace();
    let seed = words.next().ok_or("the key is missing")?;
    if seed.len() != 64 {
        return Err("the key has the wrong length");
    }
    let mut bytes = [0; 32];
    for (byte, digits) in bytes.iter_mut().zip(seed.as_bytes().chunks(2)) {
        let digits = std::str::from_utf8(digits).map_err(|_| "the key is not hexadecimal")?;
        *byte = u8::from_str_radix(digits, 16).map_err(|_| "the key is not hexadecimal")?;
    }
    match words.next() {
        Some(sum) if sum == checksum(&bytes) => Ok(bytes),
        Some(_) => Err("its checksum does not match"),
        None => Err("its checksum is missing"),
    }
}

fn checksum(seed: &[u8]) -> String {
    let mut digits = hex(blake3::hash(seed).as_bytes());
    digits.truncate(CHECKSUM_DIGITS);
    digits
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("byway-identity-{}-{name}", std::process::id()));
        let _ = fs::remove_file(&path);
        path
    }

    #[test]
    fn the_same_file_gives_the_same_identity() {
        let path = scratch("same");
        let first = Identity::load_or_create(&path).unwrap();
        let second = Identity::load_or_create(&path).unwrap();
        assert_eq!(first.id(), second.id());
        fs::remove_file(path).unwrap();
    }

    #[cfg(unix)]
    #[test]
    fn only_the_owner_can_read_the_key() {
        use std::os::unix::fs::PermissionsExt;
        let path = scratch("mode");
        Identity::load_or_create(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        fs::remove_file(path).unwrap();
    }

    #[test]
    fn a_damaged_key_file_stops_the_start_and_is_left_as_it_was() {
        let path = scratch("damaged");
        Identity::load_or_create(&path).unwrap();
        let good = fs::read_to_string(&path).unwrap();
        let flipped = if good.contains('7') { good.replacen('7', "8", 1) } else { good.replacen('a', "b", 1) };
        for bad in [&good[..good.len() / 2], "", "hello", flipped.as_str()] {
            fs::write(&path, bad).unwrap();
            let error = Identity::load_or_create(&path).unwrap_err();
            assert!(matches!(error, IdentityError::Damaged { .. }), "{error}");
            assert!(error.to_string().contains("backup"), "{error}");
            assert_eq!(fs::read_to_string(&path).unwrap(), bad);
        }
        fs::remove_file(path).unwrap();
    }
}
