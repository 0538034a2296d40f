//! The commands, one file each.

pub(crate) mod bench;
pub(crate) mod check;
pub(crate) mod demo;
pub(crate) mod demo_http;
pub(crate) mod id;
pub(crate) mod peers;
pub(crate) mod ping;
pub(crate) mod pipe;
pub(crate) mod reach;
pub(crate) mod relay;
pub(crate) mod reload;
pub(crate) mod serve;
pub(crate) mod status;
pub(crate) mod up;
pub(crate) mod watch;
pub(crate) mod why;

use crate::{
    args::{Cli, Command, Global, ServerChoice},
    config::Settings,
    control::{Needs, Request},
    failure::{Exit, Failure},
    output::Output,
    session::{self, Session},
    signals::Stop,
};

/// What every command has.
pub(crate) struct Shell {
    pub(crate) global: Global,
    pub(crate) output: Output,
    pub(crate) stop: Stop,
}

/// How following a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Followed {
    /// The work is done.
    Done,
    /// The user has stopped it.
    Stopped,
}

/// Runs the command of the command line.
pub(crate) async fn run(cli: Cli) -> Result<(), Failure> {
    let output = Output::new(cli.global.json);
    let stop = Stop::listen(cli.global.until_stdin_closes);
    let shell = Shell { global: cli.global, output, stop };
    match cli.command {
        Command::Demo(args) => demo::run(shell, &args).await,
        Command::Up(args) => up::run(shell, &args).await,
        Command::Id => unless_stopped(shell.stop.clone(), id::run(&shell)).await,
        Command::Serve(args) => serve::run(shell, args).await,
        Command::Reach(args) => reach::run(shell, args).await,
        Command::Pipe(args) => pipe::run(shell, args).await,
        Command::Ping(args) => ping::run(shell, args).await,
        Command::Bench(args) => bench::run(shell, args).await,
        Command::Check(args) => check::run(shell, args).await,
        Command::Why(args) => unless_stopped(shell.stop.clone(), why::run(shell, args)).await,
        Command::Status(args) if args.watch => watch::run(shell).await,
        Command::Status(_) => unless_stopped(shell.stop.clone(), status::run(shell)).await,
        Command::Peers(command) => unless_stopped(shell.stop.clone(), peers::run(shell, command)).await,
        Command::Reload => unless_stopped(shell.stop.clone(), reload::run(shell)).await,
        Command::Relay(args) => relay::run(shell, &args).await,
        Command::DemoHttp(args) => demo_http::run(shell, args.seed).await,
    }
}

impl Shell {
    /// Attaches to the node, and starts it if need be.
    async fn open(&self, command: &str, choice: &ServerChoice) -> Result<Session, Failure> {
        let dir = session::data_dir(&self.global)?;
        let settings = Settings::new(&session::config(&self.global)?, choice);
        Session::open(&dir, command, &settings, Needs::new(choice)).await
    }

    /// Makes a request and prints its events until it is done or the user stops it, then ends the session.
    async fn follow(&mut self, mut session: Session, request: &Request) -> Result<Followed, Failure> {
        let result = self.print(&mut session, request).await;
        session.end().await;
        result
    }

    async fn print(&mut self, session: &mut Session, request: &Request) -> Result<Followed, Failure> {
        session.request(request).await?;
        loop {
            tokio::select! {
                biased;
                () = self.stop.requested() => return Ok(Followed::Stopped),
                event = session.next() => match event? {
                    Some(event) => self.output.event(&event),
                    None => return Ok(Followed::Done),
                }
            }
        }
    }
}

/// Does what only asks a node that another process runs, and may be dropped wherever it waits, unless the user stops it.
async fn unless_stopped<T>(mut stop: Stop, work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    tokio::select! {
        biased;
        () = stop.requested() => Err(interrupted()),
        result = work => result,
    }
}

/// What a command that has work to finish says when the user stops it.
fn interrupted() -> Failure {
    Failure::new(Exit::Interrupted, "stopped before the work was done")
}
