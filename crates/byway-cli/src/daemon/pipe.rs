//! One byte stream carried over the control socket of a command.

use std::sync::{Arc, Mutex};

use byway::{PeerId, Stream, WriteHalf, tunnel::Access};
use serde_json::Value;
use tokio::{
    io::AsyncRead,
    sync::{Notify, mpsc},
};

use super::{Daemon, attend::no_service, dial_failure, lock, tunnel_failure};
use crate::{
    control::{
        Connection, Event,
        frame::{self, Ending, Stuck},
    },
    failure::Failure,
    store::Secret,
    target::Destination,
};

/// Events before the stream is open: a ticket, a dial, a connection.
const EVENTS: usize = 8;

/// The code with which a pipe whose command is gone is reset.
const COMMAND_GONE: u32 = 3;

/// Who begins.
#[derive(Debug)]
pub(super) enum End {
    /// This side dials.
    To(Destination),
    /// The other side dials, with a ticket that is printed here.
    From { hide_addresses: bool },
}

/// Opens the stream and carries it until both directions have ended.
pub(super) async fn run(daemon: &Arc<Daemon>, mut connection: Connection, end: End) {
    let (events, mut told) = mpsc::channel(EVENTS);
    let opened = {
        let mut open = std::pin::pin!(open(daemon, end, events));
        loop {
            tokio::select! {
                biased;
                why = daemon.ended() => break Err(why),
                Some(event) = told.recv() => if connection.send(&event).await.is_err() { return },
                opened = &mut open => break opened,
                _ = connection.recv::<Value>() => return, // the command is gone
            }
        }
    };
    while let Ok(event) = told.try_recv() {
        if connection.send(&event).await.is_err() {
            return;
        }
    }
    match opened {
        Ok((peer, stream)) => {
            if connection.send(&Event::Piping { peer: peer.to_string() }).await.is_ok() {
                tokio::select! {
                    biased;
                    _ = daemon.ended() => {}
                    () = carry(connection, stream) => {}
                }
            }
        }
        Err(failure) => drop(connection.send(&Event::Error(failure)).await),
    }
}

async fn open(daemon: &Arc<Daemon>, end: End, events: mpsc::Sender<Event>) -> Result<(PeerId, Stream), Failure> {
    match end {
        End::To(to) => dial(daemon, &to, &events).await,
        End::From { hide_addresses } => take_one(daemon, hide_addresses, &events).await,
    }
}

async fn dial(
    daemon: &Arc<Daemon>,
    to: &Destination,
    events: &mpsc::Sender<Event>,
) -> Result<(PeerId, Stream), Failure> {
    let ticket = daemon.find(to)?;
    let service = ticket.service.clone().ok_or_else(no_service)?;
    let _ = events.try_send(Event::Dialling { peer: ticket.peer.to_string() });
    daemon.node.dial(&ticket).await.map_err(|error| dial_failure(&error))?;
    let dialled = daemon.tunnel.dial(ticket.peer, &service, ticket.secret).await;
    Ok((ticket.peer, dialled.map_err(|error| tunnel_failure(&error))?))
}

/// Offers a service for one session of one peer.
async fn take_one(
    daemon: &Arc<Daemon>,
    hide_addresses: bool,
    events: &mpsc::Sender<Event>,
) -> Result<(PeerId, Stream), Failure> {
    let (secret, number) = (Secret::random()?, Secret::random()?);
    let name = format!("pipe-{:08x}", u128::from_be_bytes(number.0) as u32);
    let holder: Mutex<Option<PeerId>> = Mutex::new(None);
    let access = Access::Granted(Arc::new(move |peer, brought| {
        brought == Some(secret.0) && *lock(&holder).get_or_insert(peer) == peer
    }));
    let mut listener = daemon.tunnel.listen(&name, access).map_err(Failure::here)?;
    daemon.wait_until_seen().await;
    let ticket = daemon.ticket(&name, Some(secret.0), hide_addresses)?;
    let _ = events.try_send(Event::Ticket { service: name, ticket: ticket.to_string(), open: false });
    let session = listener.accept().await.ok_or_else(|| Failure::here("the node is closed"))?;
    Ok((session.peer, session.stream))
}

/// Carries bytes both ways; the end of one direction leaves the other open. Hangs up when nothing is left to say.
async fn carry(connection: Connection, stream: Stream) {
    let (from_command, mut to_command) = connection.into_parts();
    let (mut from_peer, mut to_peer) = stream.into_split();
    let all_received = Notify::new();
    let inward = async {
        let ending = frame::send_all(&mut from_peer, &mut to_command).await;
        all_received.notify_one();
        ending.map_err(|_| CommandGone)
    };
    let outward = send_on(from_command, &mut to_peer, &all_received);
    match tokio::try_join!(inward, outward) {
        // The end of what the peer sent has been told already; that it took less is told after it.
        Ok((Ending::Whole, Ending::Broken(why))) => drop(frame::send_broken(&mut to_command, &why).await),
        Ok(_) => {}
        Err(CommandGone) => {
            to_peer.reset(COMMAND_GONE);
            from_peer.stop(COMMAND_GONE);
        }
    }
}

/// Sends the command's bytes to the peer, and waits until it has them all.
async fn send_on(
    from_command: impl AsyncRead + Unpin,
    to_peer: &mut WriteHalf,
    all_received: &Notify,
) -> Result<Ending, CommandGone> {
    let mut from_command = match frame::recv_all(from_command, &mut *to_peer).await {
        Ok((Ending::Whole, from_command)) => from_command,
        Ok((Ending::Broken(_), _)) | Err(Stuck::Socket(_)) => return Err(CommandGone),
        Err(Stuck::Output(error)) => return Ok(Ending::Broken(error.to_string())),
    };
    // Once this is over the command may end its process, and with it the node that still has bytes to send.
    let both = async {
        let whole = to_peer.acknowledged().await;
        all_received.notified().await;
        whole
    };
    let mut nowhere = tokio::io::sink();
    tokio::select! {
        biased;
        whole = both => Ok(if whole { Ending::Whole } else { Ending::Broken("the peer did not take everything".into()) }),
        _ = tokio::io::copy(&mut from_command, &mut nowhere) => Err(CommandGone),
    }
}

/// The command has closed its socket, or cannot go on.
#[derive(Debug)]
struct CommandGone;
