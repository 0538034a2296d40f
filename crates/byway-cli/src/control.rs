//! How a command speaks with the node of its data directory: JSON, one object a line, over a local socket.
//!
//! The command says who it is ([`Greeting`]), the node answers whether it may attach ([`Answer`]), the command sends
//! one [`Request`], and the node sends [`Event`]s until the work is done. Closing the socket ends the work. After
//! [`Event::Piping`] both sides send [`frame`]s instead of lines.

pub(crate) mod event;
pub(crate) mod frame;
pub(crate) mod local;

use std::{io, net::SocketAddr};

use byway_proto::{PeerAddr, addr::HostAddr};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader};

use crate::{
    args::ServerChoice,
    failure::{Exit, Failure},
    store::text,
    target::{Destination, Upstream},
};

pub(crate) use event::Event;

/// The version of this protocol; both sides must have the same.
pub(crate) const PROTOCOL: u32 = 5;

/// The longest line in bytes: the status of 10,000 peers with three routes and four channels each takes half of it, and so
/// does an address book of 20,000 peers of whom several others have told.
pub(crate) const MAX_LINE: usize = 64 << 20;

/// The longest answer to a greeting, which comes from a process that may not be a node.
const MAX_ANSWER: usize = 4_096;

/// What a command says first. All later versions keep `version` and `protocol`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Greeting {
    /// The command's version of byway.
    pub(crate) version: String,
    /// The command's version of this protocol.
    pub(crate) protocol: u32,
    /// Its process.
    pub(crate) pid: u32,
    /// Its name, such as `serve`.
    pub(crate) command: String,
    /// What it needs the node to be.
    pub(crate) needs: Needs,
}

/// Settings that a command was given and that a node has from its start or not at all.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Needs {
    /// Relays, as text.
    pub(crate) relays: Vec<String>,
    /// STUN servers, as text.
    pub(crate) stun: Vec<String>,
    /// Never to reach a peer directly.
    pub(crate) relay_only: bool,
    /// To be the first process of the data directory: it decides how the node listens.
    pub(crate) own_node: bool,
}

/// What the node says to a greeting. All later versions keep these fields.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Answer {
    /// The node's version of byway.
    pub(crate) version: String,
    /// The node's version of this protocol.
    pub(crate) protocol: u32,
    /// The process that runs the node.
    pub(crate) pid: u32,
    /// The command that this process was started as.
    pub(crate) command: String,
    /// Why the command may not attach.
    pub(crate) refused: Option<Failure>,
}

/// What a command asks the node to do until it is done or the command closes the socket.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case")]
pub(crate) enum Request {
    /// Tell what happens.
    Watch,
    /// Offer a service.
    Serve {
        /// Its name.
        name: String,
        /// Where it leads.
        #[serde(with = "text")]
        to: Upstream,
        /// Let in whoever knows the ticket.
        open: bool,
        /// Leave the node's addresses out of the ticket.
        hide_addresses: bool,
    },
    /// Open a local port that leads to a peer's service.
    Reach {
        /// Whom, and which service.
        #[serde(with = "text")]
        to: Destination,
        /// The local address.
        listen: Option<SocketAddr>,
    },
    /// Open one byte stream to a service, and carry it over this socket.
    PipeTo {
        /// Whom, and which service.
        #[serde(with = "text")]
        to: Destination,
    },
    /// Take one byte stream, and carry it over this socket.
    PipeFrom {
        /// Leave the node's addresses out of the ticket.
        hide_addresses: bool,
    },
    /// Measure the way to a peer.
    Ping {
        /// Whom.
        #[serde(with = "text")]
        to: Destination,
        /// How often.
        count: u32,
    },
    /// Measure what the line to a peer carries.
    Bench {
        /// Whom.
        #[serde(with = "text")]
        to: Destination,
        /// How long in each direction.
        seconds: u64,
    },
    /// Tell how the NATs behave.
    Check {
        /// How long the survey may take.
        wait_s: u64,
    },
    /// Tell why a connected peer is reached as it is.
    Why {
        /// Whom.
        #[serde(with = "text")]
        to: Destination,
    },
    /// Tell once what the node knows and does.
    Status,
    /// Read the configuration again.
    Reload,
    /// Do something with the address book.
    Peers {
        /// What.
        ask: event::book::PeersAsk,
    },
}

impl Needs {
    /// The needs of a command with these servers.
    pub(crate) fn new(choice: &ServerChoice) -> Self {
        let relays = choice.servers.relays.iter().map(PeerAddr::to_string).collect();
        let stun = choice.servers.stun.iter().map(HostAddr::to_string).collect();
        Needs { relays, stun, relay_only: choice.relay_only, own_node: false }
    }
}

impl Greeting {
    /// This process.
    pub(crate) fn new(command: &str, needs: Needs) -> Self {
        Greeting {
            version: env!("CARGO_PKG_VERSION").into(),
            protocol: PROTOCOL,
            pid: std::process::id(),
            command: command.into(),
            needs,
        }
    }
}

impl Answer {
    /// Whether the command can go on, and why not.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        if self.protocol != PROTOCOL {
            let (theirs, pid, ours) = (&self.version, self.pid, env!("CARGO_PKG_VERSION"));
            return Err(Failure::here(format!(
                "the node of this data directory is byway {theirs} (process {pid}) and this is byway {ours}, which speaks \
                 another control protocol; stop that process and start it again with this version"
            )));
        }
        self.refused.clone().map_or(Ok(()), Err)
    }
}

/// One side of a control socket.
pub(crate) struct Connection {
    reader: Box<dyn AsyncBufRead + Send + Unpin>,
    writer: Box<dyn AsyncWrite + Send + Unpin>,
    /// The beginning of a line whose end has not come; kept here so that a cancelled read loses nothing.
    line: Vec<u8>,
}

impl Connection {
    /// Takes both directions of a socket.
    pub(crate) fn new(
        reader: impl AsyncRead + Send + Unpin + 'static,
        writer: impl AsyncWrite + Send + Unpin + 'static,
    ) -> Self {
        Connection { reader: Box::new(BufReader::new(reader)), writer: Box::new(writer), line: Vec::new() }
    }

    /// Sends one object.
    pub(crate) async fn send(&mut self, message: &(impl Serialize + Sync)) -> io::Result<()> {
        let mut line = serde_json::to_vec(message)?;
        line.push(b'\n');
        self.writer.write_all(&line).await?;
        self.writer.flush().await
    }

    /// Receives one object; `None` at the end. Nothing is lost if this is cancelled.
    pub(crate) async fn recv<T: DeserializeOwned>(&mut self) -> io::Result<Option<T>> {
        self.recv_line(MAX_LINE).await
    }

    /// Receives the answer to a greeting.
    pub(crate) async fn recv_answer(&mut self) -> io::Result<Option<Answer>> {
        self.recv_line(MAX_ANSWER).await
    }

    /// Both directions, for [`frame`]s; what was read ahead stays in the reader.
    pub(crate) fn into_parts(self) -> (Box<dyn AsyncBufRead + Send + Unpin>, Box<dyn AsyncWrite + Send + Unpin>) {
        (self.reader, self.writer)
    }

    async fn recv_line<T: DeserializeOwned>(&mut self, limit: usize) -> io::Result<Option<T>> {
        loop {
            let read = self.reader.fill_buf().await?;
            if read.is_empty() {
                return match self.line.is_empty() {
                    true => Ok(None),
                    false => Err(io::ErrorKind::UnexpectedEof.into()),
                };
            }
            let end = read.iter().position(|byte| *byte == b'\n');
            let taken = end.map_or(read.len(), |end| end + 1);
            if self.line.len() + taken > limit {
                return Err(io::Error::new(io::ErrorKind::InvalidData, format!("it has more than {limit} bytes")));
            }
            self.line.extend_from_slice(&read[..taken]);
            self.reader.consume(taken);
            if end.is_some() {
                return Ok(Some(serde_json::from_slice(&std::mem::take(&mut self.line))?));
            }
        }
    }
}

/// What a broken control socket means to a command.
pub(crate) fn lost(error: Option<&io::Error>) -> Failure {
    if let Some(error) = error.filter(|error| error.kind() == io::ErrorKind::InvalidData) {
        return Failure::here(format!(
            "the node runs, but this command cannot read its answer ({error}); take the `byway` that the node was started with"
        ));
    }
    let why = error.map_or_else(String::new, |error| format!(" ({error})"));
    Failure::new(Exit::NoNode, format!("the process that ran the node is gone{why}; start this command again"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (Connection, Connection) {
        let (a, b) = tokio::io::duplex(64);
        let ((a_in, a_out), (b_in, b_out)) = (tokio::io::split(a), tokio::io::split(b));
        (Connection::new(a_in, a_out), Connection::new(b_in, b_out))
    }

    #[tokio::test]
    async fn requests_arrive_as_they_were_sent() {
        let (mut command, mut node) = pair();
        let id = byway_proto::PeerId::ed25519([7; 32]);
        let requests = [
            Request::Watch,
            Request::Serve {
                name: "web".into(),
                to: "tcp:[::1]:80".parse().unwrap(),
                open: true,
                hide_addresses: false,
            },
            Request::Reach { to: format!("{id}/web").parse().unwrap(), listen: Some("127.0.0.1:80".parse().unwrap()) },
            Request::Ping { to: id.to_string().parse().unwrap(), count: 3 },
        ];
        let sent = requests.clone();
        let sender = tokio::spawn(async move {
            for request in &sent {
                command.send(request).await.unwrap();
            }
        });
        for request in &requests {
            assert_eq!(node.recv().await.unwrap().as_ref(), Some(request));
        }
        sender.await.unwrap();
        assert_eq!(node.recv::<Request>().await.unwrap(), None);
    }

    #[tokio::test]
    async fn a_cancelled_read_loses_nothing() {
        let (mut command, mut node) = pair();
        command.writer.write_all(b"{\"request\":").await.unwrap();
        let cancelled = tokio::time::timeout(std::time::Duration::from_millis(20), node.recv::<Request>()).await;
        assert!(cancelled.is_err());
        command.writer.write_all(b"\"status\"}\n").await.unwrap();
        assert_eq!(node.recv().await.unwrap(), Some(Request::Status));
    }

    #[tokio::test]
    async fn an_endless_line_is_cut_off() {
        let (mut command, mut node) = pair();
        let sender = tokio::spawn(async move { command.writer.write_all(&[b'x'; 2 * MAX_ANSWER]).await });
        assert_eq!(node.recv_answer().await.unwrap_err().kind(), io::ErrorKind::InvalidData);
        drop(node);
        let _ = sender.await;
    }

    #[test]
    fn an_answer_that_cannot_be_read_is_no_sign_that_the_node_is_gone() {
        let error = io::Error::from(serde_json::from_str::<Request>("{}").unwrap_err());
        let failure = lost(Some(&error));
        assert!(failure.code == Exit::Failed && failure.message.contains("the node runs"), "{failure}");
        let failure = lost(Some(&io::ErrorKind::BrokenPipe.into()));
        assert!(failure.code == Exit::NoNode && failure.message.contains("is gone"), "{failure}");
    }

    #[tokio::test]
    async fn a_line_as_long_as_the_status_of_ten_thousand_peers_arrives() {
        let (near, far) = tokio::io::duplex(1 << 20);
        let (mut node, mut command) =
            (Connection::new(tokio::io::empty(), near), Connection::new(far, tokio::io::sink()));
        let text = "x".repeat(32 << 20);
        // The first error ends it: whoever sends would wait for a reader that has given up.
        let ((), told) = tokio::try_join!(node.send(&text), command.recv::<String>()).expect("it is not too long");
        assert!(told == Some(text));
    }

    #[test]
    fn another_version_is_told_what_to_do() {
        let future = r#"{"version":"9.9.9","protocol":7,"pid":12,"news":[1]}"#;
        let answer: Answer = serde_json::from_str(future).unwrap();
        let failure = answer.check().unwrap_err();
        assert!(failure.message.contains("9.9.9") && failure.message.contains("stop that process"), "{failure}");
    }
}
