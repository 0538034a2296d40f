//! The data directory: what makes two runs of `byway` the same node, and two processes one.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Read, Seek, Write},
    path::{Path, PathBuf},
};

use etcetera::{AppStrategy, AppStrategyArgs, app_strategy::choose_native_strategy};

use crate::failure::Failure;

/// The longest path of a control socket in bytes: what `sockaddr_un` holds on macOS and the BSDs, with its final zero; Linux has four more.
pub(crate) const MAX_SOCKET_PATH: usize = 103;

/// Where this program keeps its files unless it is told otherwise.
#[derive(Debug)]
pub(crate) struct Places {
    /// The configuration file.
    pub(crate) config: PathBuf,
    /// The data directory.
    pub(crate) data: PathBuf,
}

impl Places {
    /// The usual places of this platform (XDG on Linux).
    pub(crate) fn usual() -> Result<Self, Failure> {
        let args = AppStrategyArgs { top_level_domain: "net".into(), author: "byway".into(), app_name: "byway".into() };
        let strategy = choose_native_strategy(args).map_err(|error| {
            Failure::here(format!("cannot find the home directory ({error}); name places with --data-dir and --config"))
        })?;
        Ok(Places { config: strategy.config_dir().join("byway.toml"), data: strategy.data_dir() })
    }
}

/// A data directory that exists.
#[derive(Debug, Clone)]
pub(crate) struct DataDir(PathBuf);

/// The right to run the node of a data directory; the system takes it back when the process ends, however it ends.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
}

impl DataDir {
    /// Opens the directory and creates what is missing, closed to other users.
    pub(crate) fn open(path: PathBuf) -> Result<Self, Failure> {
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true);
        #[cfg(unix)]
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        let absolute = builder.create(&path).and_then(|()| path.canonicalize());
        absolute.map(DataDir).map_err(|error| {
            let path = path.display();
            Failure::here(format!("cannot use the data directory {path}: {error}; choose another with --data-dir"))
        })
    }

    /// The directory itself.
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// The node's key.
    pub(crate) fn key_file(&self) -> PathBuf {
        self.0.join("identity.key")
    }

    /// The address book.
    pub(crate) fn book_file(&self) -> PathBuf {
        self.0.join("book.rows")
    }

    /// The control socket; an error if the system could not hold its path.
    pub(crate) fn socket(&self) -> Result<PathBuf, Failure> {
        let path = self.0.join("control.sock");
        let length = path.as_os_str().len();
        if cfg!(unix) && length > MAX_SOCKET_PATH {
            return Err(Failure::here(format!(
                "the path of the control socket, {}, has {length} bytes and the system takes {MAX_SOCKET_PATH}; \
                 choose a shorter --data-dir",
                path.display()
            )));
        }
        Ok(path)
    }

    /// Takes the right to run the node here; `None` if another process has it.
    pub(crate) fn try_lock(&self) -> Result<Option<Lock>, Failure> {
        let path = self.0.join("lock");
        let open = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let mut file = open.map_err(|error| io_failure("open", &path, &error))?;
        match file.try_lock() {
            Ok(()) => {
                // Only for messages: a reader may see an old number, which a missing process gives away.
                let _ = file.set_len(0).and_then(|()| write!(file, "{}", std::process::id()));
                Ok(Some(Lock { _file: file }))
            }
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(io_failure("lock", &path, &error)),
        }
    }

    /// The process that holds the lock, as far as its file says.
    pub(crate) fn lock_holder(&self) -> Option<u32> {
        let mut text = String::new();
        let mut file = File::open(self.0.join("lock")).ok()?;
        file.rewind().and_then(|()| file.take(16).read_to_string(&mut text)).ok()?;
        text.trim().parse().ok()
    }

    /// The UDP port that this node had when it ran last.
    pub(crate) fn remembered_port(&self) -> Option<u16> {
        fs::read_to_string(self.0.join("port")).ok()?.trim().parse().ok().filter(|port| *port != 0)
    }

    /// Remembers the UDP port, so that a restarted node is found where it was.
    pub(crate) fn remember_port(&self, port: u16) -> Result<(), Failure> {
        if self.remembered_port() == Some(port) {
            return Ok(());
        }
        self.write("port", format!("{port}\n").as_bytes())
    }

    /// Reads a file of this directory; `None` if there is none.
    pub(crate) fn read(&self, name: &str) -> Result<Option<Vec<u8>>, Failure> {
        let path = self.0.join(name);
        match fs::read(&path) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(io_failure("read", &path, &error)),
        }
    }

    /// Replaces a file of this directory, readable by its owner alone: a crash leaves the old one or the new one.
    pub(crate) fn write(&self, name: &str, bytes: &[u8]) -> Result<(), Failure> {
        let path = self.0.join(name);
        replace(&path, bytes).map_err(|error| io_failure("write", &path, &error))
    }
}

fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let sibling = path.with_extension("new");
    // One that a crash left may have other permissions than a new one gets.
    let _ = fs::remove_file(&sibling);
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(&sibling)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&sibling, path)
}

fn io_failure(action: &str, path: &Path, error: &io::Error) -> Failure {
    Failure::here(format!("cannot {action} {}: {error}; check the disk and the directory's owner", path.display()))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A data directory of its own for each test, removed at the end.
    pub(crate) struct Scratch(pub(crate) DataDir);

    impl Scratch {
        pub(crate) fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("byway-cli-{}-{name}", std::process::id()));
            let _ = fs::remove_dir_all(&path);
            Scratch(DataDir::open(path).unwrap())
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(self.0.path());
        }
    }

    #[test]
    fn only_one_holds_the_lock_and_its_end_frees_it() {
        let Scratch(dir) = &Scratch::new("lock");
        let held = dir.try_lock().unwrap().unwrap();
        assert!(dir.try_lock().unwrap().is_none());
        assert_eq!(dir.lock_holder(), Some(std::process::id()));
        drop(held);
        assert!(dir.try_lock().unwrap().is_some());
    }

    #[test]
    fn the_port_is_remembered() {
        let Scratch(dir) = &Scratch::new("port");
        assert_eq!(dir.remembered_port(), None);
        dir.remember_port(4433).unwrap();
        assert_eq!(dir.remembered_port(), Some(4433));
        fs::write(dir.path().join("port"), "nonsense").unwrap();
        assert_eq!(dir.remembered_port(), None);
    }

    #[cfg(unix)]
    #[test]
    fn other_users_can_read_nothing() {
        use std::os::unix::fs::PermissionsExt;
        let Scratch(dir) = &Scratch::new("mode");
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        dir.write("tickets.json", b"{}").unwrap();
        assert_eq!(mode(dir.path()), 0o700);
        assert_eq!(mode(&dir.path().join("tickets.json")), 0o600);
    }

    #[test]
    fn a_path_that_no_socket_can_have_is_named() {
        let Scratch(dir) = &Scratch::new("socket");
        assert!(dir.socket().is_ok());
        let long = DataDir(dir.path().join("x".repeat(MAX_SOCKET_PATH)));
        let failure = long.socket().unwrap_err();
        assert!(failure.message.contains("--data-dir"), "{failure}");
    }

    #[test]
    fn a_crash_while_writing_leaves_the_old_file() {
        let Scratch(dir) = &Scratch::new("replace");
        dir.write("peers.json", b"old").unwrap();
        fs::write(dir.path().join("peers.new"), "half").unwrap();
        assert_eq!(dir.read("peers.json").unwrap().unwrap(), b"old");
        dir.write("peers.json", b"new").unwrap();
        assert_eq!(dir.read("peers.json").unwrap().unwrap(), b"new");
        assert_eq!(dir.read("none").unwrap(), None);
    }
}
