//! `byway up`: run the node, and serve what the configuration lists.

use tokio::{sync::mpsc, task::JoinSet};

use super::Shell;
use crate::{
    args::{ServerChoice, UpArgs},
    config::{Served, Settings},
    control::{Event, Needs, Request},
    datadir::DataDir,
    failure::Failure,
    session::{self, Session},
};

/// Events of all services that wait to be printed; a terminal that stands still holds them up.
const EVENTS: usize = 64;

/// Runs the node until it is stopped.
pub(super) async fn run(mut shell: Shell, args: &UpArgs) -> Result<(), Failure> {
    let dir = session::data_dir(&shell.global)?;
    let config = session::config(&shell.global)?;
    let settings = Settings::new(&config, &ServerChoice::default()).metrics_at(args.metrics);
    let mut node = Session::open(&dir, "up", &settings, Needs::default()).await?;
    let result = serve_all(&mut shell, &mut node, &dir, config.serve).await;
    node.end().await;
    result
}

async fn serve_all(shell: &mut Shell, node: &mut Session, dir: &DataDir, services: Vec<Served>) -> Result<(), Failure> {
    node.request(&Request::Watch).await?;
    let (events, mut told) = mpsc::channel(EVENTS);
    let mut serving = JoinSet::new();
    for service in services {
        let mut session = tokio::select! {
            biased;
            () = shell.stop.requested() => return Ok(()),
            session = offer(dir, service) => session?,
        };
        // Its ticket: tickets come in the order of the configuration. One without relays may wait for a STUN server.
        tokio::select! {
            biased;
            () = shell.stop.requested() => return Ok(()),
            event = session.next() => if let Some(event) = event? {
                print(shell, &event);
            },
        }
        let events = events.clone();
        serving.spawn(async move {
            while let Some(event) = session.next().await? {
                let _ = events.send(event).await; // the end of the channel is the end of this task
            }
            Ok(())
        });
    }
    loop {
        tokio::select! {
            biased;
            () = shell.stop.requested() => return Ok(()),
            Some(ended) = serving.join_next() => if let Ok(Err(failure)) = ended { return Err(failure) },
            event = node.next() => match event? {
                Some(event) => shell.output.event(&event),
                None => return Ok(()),
            },
            Some(event) = told.recv() => print(shell, &event),
        }
    }
}

/// Has the node offer a service.
async fn offer(dir: &DataDir, Served { name, to, open, hide_addresses }: Served) -> Result<Session, Failure> {
    let mut session = Session::attach(dir, &format!("serve {name}")).await?;
    session.request(&Request::Serve { name, to, open, hide_addresses }).await?;
    Ok(session)
}

/// Prints a service's event; the node tells of the relays itself.
fn print(shell: &Shell, event: &Event) {
    if !matches!(event, Event::RelayUp { .. } | Event::RelayDown { .. }) {
        shell.output.event(event);
    }
}
