//! A command's way to the node of its data directory, which it starts if no other process runs it.

use std::time::Duration;

use tokio::time::{self, Instant};

use crate::{
    args::Global,
    config::{FileConfig, Settings},
    control::{self, Connection, Event, Greeting, Needs, Request, local},
    daemon::Running,
    datadir::{DataDir, Places},
    failure::{Exit, Failure},
};

/// How long a process that holds the lock may take to open its control socket, or to let the lock go.
const ATTACH_TIMEOUT: Duration = Duration::from_secs(5);

/// How often a command tries meanwhile.
const ATTACH_RETRY: Duration = Duration::from_millis(50);

/// One request to the node, and the events that answer it.
pub(crate) struct Session {
    connection: Connection,
    /// The node, if this process runs it.
    running: Option<Running>,
    command: String,
}

/// The data directory that the command line names, or the usual one.
pub(crate) fn data_dir(global: &Global) -> Result<DataDir, Failure> {
    match &global.data_dir {
        Some(path) => DataDir::open(path.clone()),
        None => DataDir::open(Places::usual()?.data),
    }
}

/// The configuration that the command line names, or the usual one.
pub(crate) fn config(global: &Global) -> Result<FileConfig, Failure> {
    FileConfig::load(global.config.as_deref(), || Places::usual().map(|places| places.config))
}

impl Session {
    /// Attaches to the node of `dir`, which is started with `settings` if no process runs it.
    pub(crate) async fn open(
        dir: &DataDir,
        command: &str,
        settings: &Settings,
        mut needs: Needs,
    ) -> Result<Self, Failure> {
        needs.own_node = settings.relay || command == "up";
        let deadline = Instant::now() + ATTACH_TIMEOUT;
        loop {
            if let Some(lock) = dir.try_lock()? {
                let running = Running::start(dir.clone(), lock, settings.clone(), command).await?;
                let greeted = greet(dir, command, needs).await;
                let failure = match greeted {
                    Ok(Ok(connection)) => {
                        return Ok(Session { connection, running: Some(running), command: command.into() });
                    }
                    Ok(Err(why)) => Failure::here(format!("this process cannot reach its own control socket: {why}")),
                    Err(failure) => failure,
                };
                running.stop(command).await;
                return Err(failure);
            }
            match greet(dir, command, needs.clone()).await? {
                Ok(connection) => return Ok(Session { connection, running: None, command: command.into() }),
                Err(_) if Instant::now() < deadline => time::sleep(ATTACH_RETRY).await,
                Err(why) => return Err(mute(dir, &why)),
            }
        }
    }

    /// Attaches to the node of `dir` only if some process runs it.
    pub(crate) async fn attach(dir: &DataDir, command: &str) -> Result<Self, Failure> {
        let deadline = Instant::now() + ATTACH_TIMEOUT;
        loop {
            let is_free = dir.try_lock()?.is_some();
            if is_free {
                let path = dir.path().display();
                let why = format!("no node runs in {path}; start one with `byway up`, `serve`, `reach` or `relay`");
                return Err(Failure::new(Exit::NoNode, why));
            }
            match greet(dir, command, Needs::default()).await? {
                Ok(connection) => return Ok(Session { connection, running: None, command: command.into() }),
                Err(_) if Instant::now() < deadline => time::sleep(ATTACH_RETRY).await,
                Err(why) => return Err(mute(dir, &why)),
            }
        }
    }

    /// Asks the node for something.
    pub(crate) async fn request(&mut self, request: &Request) -> Result<(), Failure> {
        self.connection.send(request).await.map_err(|error| control::lost(Some(&error)))
    }

    /// Waits for the next event; `None` once the work is done.
    pub(crate) async fn next(&mut self) -> Result<Option<Event>, Failure> {
        match self.connection.recv().await {
            Ok(Some(Event::Done)) => Ok(None),
            Ok(Some(Event::Error(failure))) => Err(failure),
            Ok(Some(event)) => Ok(Some(event)),
            Ok(None) => Err(control::lost(None)),
            Err(error) => Err(control::lost(Some(&error))),
        }
    }

    /// The socket itself, and what to end when it is no longer needed.
    pub(crate) fn into_parts(self) -> (Connection, Ending) {
        (self.connection, Ending { running: self.running, command: self.command })
    }

    /// Ends the work, and the node if this process runs it.
    pub(crate) async fn end(self) {
        let (connection, ending) = self.into_parts();
        drop(connection);
        ending.end().await;
    }
}

/// What has to end with a command.
pub(crate) struct Ending {
    running: Option<Running>,
    command: String,
}

impl Ending {
    /// Ends the node if this process runs it.
    pub(crate) async fn end(self) {
        if let Some(running) = self.running {
            running.stop(&self.command).await;
        }
    }
}

/// Greets the node; the inner error says that nobody answered, which may change.
async fn greet(dir: &DataDir, command: &str, needs: Needs) -> Result<Result<Connection, String>, Failure> {
    let mut connection = match local::connect(dir).await? {
        Ok(connection) => connection,
        Err(error) => return Ok(Err(error.to_string())),
    };
    let answered = time::timeout(ATTACH_TIMEOUT, async {
        connection.send(&Greeting::new(command, needs)).await?;
        connection.recv_answer().await
    });
    match answered.await {
        Ok(Ok(Some(answer))) => answer.check().map(|()| Ok(connection)),
        Ok(Ok(None)) => Ok(Err("it hung up".into())),
        Ok(Err(error)) => Ok(Err(error.to_string())),
        Err(_) => Ok(Err("it is silent".into())),
    }
}

fn mute(dir: &DataDir, why: &str) -> Failure {
    let who = dir.lock_holder().map_or_else(|| "another process".into(), |pid| format!("process {pid}"));
    let dir = dir.path().display();
    Failure::here(format!("{who} holds the data directory {dir} and does not answer ({why}); end it, and try again"))
}
