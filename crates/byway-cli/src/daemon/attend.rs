//! One attached command, from its greeting to the end of its work.

use std::{future::pending, pin::pin, sync::Arc, time::Duration};

use byway::net::BoxFuture;
use serde_json::Value;
use tokio::{sync::mpsc, time};

use super::{Daemon, bench, check, peers, ping, pipe, reach, serve, status, why};
use crate::{
    control::{Answer, Connection, Event, Greeting, Needs, PROTOCOL, Request, event::Process},
    failure::{Exit, Failure},
};

/// How long a command may take to greet and to ask; it has nothing else to do then.
const GREETING_TIMEOUT: Duration = Duration::from_secs(5);

/// Events that a command has not read yet; a command that was suspended misses what comes then.
const EVENTS: usize = 256;

/// Tells a command what happens.
#[derive(Debug, Clone)]
pub(super) struct Report(mpsc::Sender<Event>);

impl Report {
    /// Tells an event; lost if the command does not read.
    pub(super) fn tell(&self, event: Event) {
        if self.0.try_send(event).is_err() {
            tracing::debug!("an attached command does not read its events");
        }
    }
}

/// Attends to a command until its work is done or it is gone.
pub(super) async fn attend(daemon: Arc<Daemon>, mut connection: Connection, owner: String) {
    let met = time::timeout(GREETING_TIMEOUT, meet(&daemon, &mut connection, &owner)).await;
    let Ok(Some((process, request))) = met else { return };
    let _entry = daemon.processes.put(process);
    match request {
        Request::PipeTo { to } => pipe::run(&daemon, connection, pipe::End::To(to)).await,
        Request::PipeFrom { hide_addresses } => {
            pipe::run(&daemon, connection, pipe::End::From { hide_addresses }).await;
        }
        request => {
            let (events, told) = mpsc::channel(EVENTS);
            let report = Report(events.clone());
            let job = job(&daemon, request, report);
            converse(&daemon, &mut connection, job, events, told).await;
        }
    }
}

async fn meet(daemon: &Daemon, connection: &mut Connection, owner: &str) -> Option<(Process, Request)> {
    let greeting: Greeting = connection.recv().await.ok()??;
    let refused = if greeting.protocol == PROTOCOL { check(daemon, &greeting, owner).await.err() } else { None };
    let accepted = refused.is_none() && greeting.protocol == PROTOCOL;
    let answer = Answer {
        version: env!("CARGO_PKG_VERSION").into(),
        protocol: PROTOCOL,
        pid: std::process::id(),
        command: owner.into(),
        refused,
    };
    connection.send(&answer).await.ok()?;
    if !accepted {
        return None;
    }
    let request = connection.recv().await.ok()??;
    Some((Process { pid: greeting.pid, command: greeting.command }, request))
}

/// Whether the node is what the command needs.
async fn check(daemon: &Daemon, greeting: &Greeting, owner: &str) -> Result<(), Failure> {
    let Needs { relays, stun, relay_only, own_node } = &greeting.needs;
    let pid = std::process::id();
    if *own_node && greeting.pid != pid {
        let dir = daemon.dir.path().display();
        return Err(Failure::here(format!(
            "a node runs in {dir} already (`byway {owner}`, process {pid}); stop it, or choose another --data-dir"
        )));
    }
    if *relay_only && !daemon.settings.relay_only {
        return Err(Failure::here(format!(
            "the running node (`byway {owner}`, process {pid}) may reach peers directly, and --relay-only cannot change \
             that; stop it, or choose another --data-dir"
        )));
    }
    daemon.use_relays(relays)?;
    daemon.use_stun(stun).await
}

fn job(daemon: &Arc<Daemon>, request: Request, report: Report) -> BoxFuture<'static, Result<(), Failure>> {
    let daemon = Arc::clone(daemon);
    match request {
        Request::Watch => Box::pin(status::watch(daemon, report)),
        Request::Status => Box::pin(async move {
            report.tell(Event::Status(Box::new(status::read(&daemon).await)));
            Ok(())
        }),
        Request::Reload => Box::pin(async move {
            report.tell(Event::Reloaded(daemon.reload()?));
            Ok(())
        }),
        Request::Serve { name, to, open, hide_addresses } => {
            let offer = serve::Offer { name, to, open, hide_addresses };
            Box::pin(serve::run(daemon, offer, report))
        }
        Request::Reach { to, listen } => Box::pin(reach::run(daemon, to, listen, report)),
        Request::Ping { to, count } => Box::pin(ping::run(daemon, to, count, report)),
        Request::Bench { to, seconds } => Box::pin(bench::run(daemon, to, seconds, report)),
        Request::Check { wait_s } => Box::pin(check::run(daemon, Duration::from_secs(wait_s), report)),
        Request::Peers { ask } => Box::pin(peers::run(daemon, ask, report)),
        Request::Why { to } => Box::pin(why::run(daemon, to, report)),
        Request::PipeTo { .. } | Request::PipeFrom { .. } => {
            Box::pin(async { Err(Failure::here("a pipe is no job")) }) // the caller has taken it
        }
    }
}

/// Runs a job and tells the command of it. A command that goes away ends its job; one that does not read does not.
async fn converse(
    daemon: &Daemon,
    connection: &mut Connection,
    job: BoxFuture<'_, Result<(), Failure>>,
    events: mpsc::Sender<Event>,
    mut told: mpsc::Receiver<Event>,
) {
    let work = async {
        let result = tokio::select! {
            biased;
            why = daemon.ended() => Err(why),
            result = job => result,
        };
        let last = result.map_or_else(Event::Error, |()| Event::Done);
        let _ = events.send(last).await; // nobody to tell it to
        pending::<()>().await;
    };
    let mut work = pin!(work);
    tokio::select! {
        biased;
        () = tell(connection, &mut told) => {}
        () = &mut work => {}
    }
}

/// Tells events until the last one, or until the command is gone.
async fn tell(connection: &mut Connection, told: &mut mpsc::Receiver<Event>) {
    loop {
        let event = tokio::select! {
            biased;
            event = told.recv() => event,
            // A command that has asked says no more, so this is its end.
            _ = connection.recv::<Value>() => return,
        };
        let Some(event) = event else { return };
        let is_last = matches!(event, Event::Done | Event::Error(_));
        if connection.send(&event).await.is_err() || is_last {
            return;
        }
    }
}

/// Why a command without the right words cannot go on.
pub(super) fn no_service() -> Failure {
    Failure::new(Exit::Usage, "which service? the ticket names none; write PEER/NAME, or ask for another ticket")
}
