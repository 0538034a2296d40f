//! `byway pipe`: standard input and output, connected to a peer.

use super::{Shell, interrupted};
use crate::{
    args::PipeArgs,
    control::{
        self, Connection, Event, Request,
        frame::{self, Ending, Stuck},
    },
    failure::{Exit, Failure, printable},
    output::Output,
    session::Session,
};

/// Connects, and ends when both directions have ended.
pub(super) async fn run(mut shell: Shell, args: PipeArgs) -> Result<(), Failure> {
    let request = match args.to {
        Some(to) => Request::PipeTo { to: to.parse().map_err(Failure::usage)? },
        None => Request::PipeFrom { hide_addresses: args.hide_addresses },
    };
    let mut session = shell.open("pipe", &args.servers).await?;
    if let Err(failure) = connect(&mut shell, &mut session, &request).await {
        session.end().await;
        return Err(failure);
    }
    let (connection, ending) = session.into_parts();
    let result = tokio::select! {
        biased;
        () = shell.stop.requested() => Err(interrupted()),
        result = carry(connection) => result,
    };
    ending.end().await;
    result
}

/// Waits until the pipe is open.
async fn connect(shell: &mut Shell, session: &mut Session, request: &Request) -> Result<(), Failure> {
    session.request(request).await?;
    loop {
        let event = tokio::select! {
            biased;
            () = shell.stop.requested() => return Err(interrupted()),
            event = session.next() => event?.ok_or_else(|| control::lost(None))?,
        };
        tell(shell.output, &event);
        if matches!(event, Event::Piping { .. }) {
            return Ok(());
        }
    }
}

/// Standard output belongs to the peer's bytes, so that all words go to standard error, JSON too.
fn tell(output: Output, event: &Event) {
    match (event, output.is_json()) {
        (event, true) => output.note(&serde_json::to_string(event).unwrap_or_default()),
        (Event::Ticket { ticket, .. }, false) => {
            output.note(
                "the first machine that uses this ticket is connected to this pipe, by `byway pipe` and the ticket:",
            );
            output.note(ticket);
        }
        (event, false) => output.event(event),
    }
}

fn broke(why: &str) -> Failure {
    let why = printable(why);
    Failure::new(Exit::Unreachable, format!("the pipe broke: {why}; what was sent may not have arrived"))
}

async fn carry(connection: Connection) -> Result<(), Failure> {
    // The writer outlives its last frame: closing it would tell the node that this command is gone.
    let (reader, mut writer) = connection.into_parts();
    let outward = async {
        match frame::send_all(tokio::io::stdin(), &mut writer).await {
            Ok(Ending::Whole) => Ok(()),
            Ok(Ending::Broken(why)) => Err(Failure::here(format!("cannot read standard input: {why}"))),
            // The node takes no more; what it sent last, or did not, says why.
            Err(_) => Ok(()),
        }
    };
    let inward = async {
        match frame::recv_all(reader, tokio::io::stdout()).await {
            // The node hangs up once the peer has everything, or says that it has not.
            Ok((Ending::Whole, reader)) => match frame::recv_all(reader, tokio::io::sink()).await {
                Ok((Ending::Broken(why), _)) => Err(broke(&why)),
                _ => Ok(()),
            },
            Ok((Ending::Broken(why), _)) => Err(broke(&why)),
            Err(Stuck::Output(error)) => Err(Failure::here(format!("cannot write standard output: {error}"))),
            Err(Stuck::Socket(error)) => Err(control::lost(Some(&error))),
        }
    };
    tokio::select! {
        biased;
        result = inward => result,
        Err(failure) = outward => Err(failure),
    }
}
