//! The local socket of a data directory: a file in it on Unix, a named pipe on Windows.

use std::io;

use interprocess::local_socket::{
    ListenerOptions, Name,
    tokio::{Listener, Stream, prelude::*},
};

use super::Connection;
use crate::{datadir::DataDir, failure::Failure};

/// Opens the control socket. Only the holder of the data directory's lock may: a socket that is there already is a dead
/// process's.
pub(crate) fn bind(dir: &DataDir) -> Result<Listener, Failure> {
    let path = dir.socket()?;
    if cfg!(unix) {
        let _ = std::fs::remove_file(&path);
    }
    let listener = name(dir)?.and_then(|name| ListenerOptions::new().name(name).create_tokio());
    #[cfg(unix)]
    let listener = listener.and_then(|listener| {
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
        Ok(listener)
    });
    listener.map_err(|error| {
        let path = path.display();
        Failure::here(format!("cannot open the control socket {path}: {error}; choose another --data-dir"))
    })
}

/// Waits for the next command.
pub(crate) async fn accept(listener: &Listener) -> io::Result<Connection> {
    listener.accept().await.map(split)
}

/// Opens a connection to the node of a data directory.
pub(crate) async fn connect(dir: &DataDir) -> Result<io::Result<Connection>, Failure> {
    Ok(match name(dir)? {
        Ok(name) => Stream::connect(name).await.map(split),
        Err(error) => Err(error),
    })
}

fn split(stream: Stream) -> Connection {
    let (reader, writer) = tokio::io::split(stream);
    Connection::new(reader, writer)
}

#[cfg(unix)]
fn name(dir: &DataDir) -> Result<io::Result<Name<'static>>, Failure> {
    use interprocess::local_socket::{GenericFilePath, ToFsName};
    Ok(dir.socket()?.to_fs_name::<GenericFilePath>())
}

#[cfg(windows)]
fn name(dir: &DataDir) -> Result<io::Result<Name<'static>>, Failure> {
    use interprocess::local_socket::{GenericNamespaced, ToNsName};
    let digest = blake3::hash(dir.path().as_os_str().as_encoded_bytes());
    Ok(format!("byway-{}", digest.to_hex()).to_ns_name::<GenericNamespaced>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{control::Greeting, datadir::tests::Scratch};

    #[cfg(unix)]
    #[tokio::test]
    async fn a_dead_process_socket_is_replaced() {
        let Scratch(dir) = &Scratch::new("stale");
        // Dropping a std listener leaves its file, as a killed process does.
        drop(std::os::unix::net::UnixListener::bind(dir.socket().unwrap()).unwrap());
        assert!(connect(dir).await.unwrap().is_err());
        let listener = bind(dir).unwrap();
        let (command, node) = tokio::join!(connect(dir), accept(&listener));
        command.unwrap().unwrap().send(&Greeting::new("status", Default::default())).await.unwrap();
        let greeting: Greeting = node.unwrap().recv().await.unwrap().unwrap();
        assert_eq!(greeting.command, "status");
    }

    #[cfg(unix)]
    #[tokio::test]
    async fn only_the_owner_may_command_the_node() {
        use std::os::unix::fs::PermissionsExt;
        let Scratch(dir) = &Scratch::new("socket-mode");
        let _listener = bind(dir).unwrap();
        assert_eq!(std::fs::metadata(dir.socket().unwrap()).unwrap().permissions().mode() & 0o777, 0o600);
    }
}
