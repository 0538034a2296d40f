//! `byway demo`: the main job on one machine, each part a process of its own.

mod child;
mod story;

use std::{
    io,
    net::SocketAddr,
    path::Path,
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressStyle};
use ring::digest;
use serde::Serialize;
use tokio::time;

use self::{
    child::{Child, Scratch},
    story::Story,
};
use super::{Shell, interrupted};
use crate::{
    args::DemoArgs,
    control::{
        Event, Request,
        event::{Path as Way, Status},
    },
    datadir::DataDir,
    failure::Failure,
    http::{self, Download, FileBytes},
    session::Session,
};

/// How long the two nodes may take to find each other directly; it takes them a fraction of a second.
const DIRECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long the page, and then the file, may take: the relay carries 12 MB a second.
const PAGE_TIMEOUT: Duration = Duration::from_secs(15);
const FILE_TIMEOUT: Duration = Duration::from_secs(60);

/// The result, as `--json` prints it.
#[derive(Debug, Serialize)]
struct Row {
    ok: bool,
    bytes: u64,
    sha256_match: bool,
    first_byte_ms: f64,
    direct_ms: Option<f64>,
    path: Option<Way>,
    relay_bytes: u64,
    pids: Pids,
}

#[derive(Debug, Serialize)]
struct Pids {
    relay: u32,
    serve: u32,
    reach: u32,
    http: u32,
}

/// The four processes.
struct Cast {
    relay: Child,
    serve: Child,
    reach: Child,
    http: Child,
    /// Where `reach` listens.
    address: SocketAddr,
    /// When `reach` began to dial.
    dialled: Instant,
}

/// What the parts are started with.
struct Stage<'a> {
    shell: &'a Shell,
    scratch: &'a Path,
    relay_only: bool,
}

/// Runs the demo; without `--once` it stays up for a browser.
pub(super) async fn run(mut shell: Shell, args: &DemoArgs) -> Result<(), Failure> {
    let scratch = Scratch::new()?;
    let mut stop = shell.stop.clone();
    let stage = Stage { shell: &shell, scratch: scratch.path(), relay_only: args.relay_only };
    let (row, mut cast) = tokio::select! {
        biased;
        () = stop.requested() => return Err(interrupted()), // dropping the children ends them
        result = perform(&stage) => result?,
    };
    if shell.output.is_json() {
        shell.output.result(&serde_json::to_string(&row).unwrap_or_default());
    }
    let lasting = if args.once { Ok(()) } else { stay(&mut shell, &mut cast).await };
    for child in [&mut cast.reach, &mut cast.serve, &mut cast.relay, &mut cast.http] {
        child.end().await;
    }
    lasting?;
    match row.ok {
        true => Ok(()),
        false => Err(Failure::here("the demo did not do all that it should; run it with -v to see why")),
    }
}

/// Keeps everything up until the user has seen enough.
async fn stay(shell: &mut Shell, cast: &mut Cast) -> Result<(), Failure> {
    shell.output.note(&format!("\nopen http://{}/ in a browser; Ctrl-C ends it all", cast.address));
    tokio::select! {
        biased;
        () = shell.stop.requested() => Ok(()),
        failure = cast.relay.ended() => Err(failure),
        failure = cast.serve.ended() => Err(failure),
        failure = cast.reach.ended() => Err(failure),
        failure = cast.http.ended() => Err(failure),
    }
}

/// Starts the parts, downloads the page and the file, and asks everybody what happened.
async fn perform(stage: &Stage<'_>) -> Result<(Row, Cast), Failure> {
    let story = Story(stage.shell.output);
    let seed = u64::from(std::process::id());
    let mut cast = stage.start(seed).await?;
    story.cast(&cast, stage.relay_only);
    let first_byte_ms = time::timeout(PAGE_TIMEOUT, page(&cast)).await.map_err(|_| late("the page"))??;
    let connected = cast.reach.wait_for(|event| match event {
        Event::Connected { path, ms, .. } => Some((*path, *ms)),
        _ => None,
    });
    let connected = connected.await?.1;
    let direct_ms = match connected {
        _ if stage.relay_only => None,
        (Way::Direct, ms) => Some(ms),
        (Way::Relay, _) => direct(&mut cast).await,
    };
    story.meeting(connected, first_byte_ms, direct_ms, stage.relay_only);
    let began = Instant::now();
    let file = time::timeout(FILE_TIMEOUT, file(stage.shell, &cast));
    let (bytes, hash) = file.await.map_err(|_| late("the file"))??;
    let took = began.elapsed();
    let sha256_match = bytes == http::FILE_LEN && hash.as_ref() == expected(seed).as_ref();
    let relay_bytes = status(&cast.relay.dir).await?.relaying.map_or(0, |relaying| relaying.bytes);
    let path = status(&cast.reach.dir).await?.peers.first().and_then(|peer| peer.path);
    story.downloaded(took, sha256_match, relay_bytes);
    let wanted = if stage.relay_only { Way::Relay } else { Way::Direct };
    let found = stage.relay_only || direct_ms.is_some();
    let ok = sha256_match && path == Some(wanted) && relay_bytes > 0 && found;
    let pids = Pids { relay: cast.relay.pid, serve: cast.serve.pid, reach: cast.reach.pid, http: cast.http.pid };
    Ok((Row { ok, bytes, sha256_match, first_byte_ms, direct_ms, path, relay_bytes, pids }, cast))
}

impl Stage<'_> {
    async fn start(&self, seed: u64) -> Result<Cast, Failure> {
        let mut http = self.spawn("demo-http", &["--seed", &seed.to_string()])?;
        let mut relay = self.spawn("relay", &["--listen", "127.0.0.1:0"])?;
        let web = http.wait_for(|event| match event {
            Event::Http { address } => Some(address.to_string()),
            _ => None,
        });
        let to = format!("tcp:{}", web.await?.1);
        let meeting_point = relay.wait_for(|event| match event {
            Event::Relay { address } => Some(address.clone()),
            _ => None,
        });
        let meeting_point = meeting_point.await?.1;
        // The ticket names the relay alone, so that the first bytes have no other way.
        let mut serve = self.spawn("serve", &["demo", &to, "--relay", &meeting_point, "--hide-addresses"])?;
        let ticket = serve.wait_for(|event| match event {
            Event::Ticket { ticket, .. } => Some(ticket.clone()),
            _ => None,
        });
        let ticket = ticket.await?.1;
        serve.wait_for(|event| matches!(event, Event::RelayUp { .. }).then_some(())).await?;
        let mut reach = self.spawn("reach", &[&ticket])?;
        let address = reach.wait_for(|event| match event {
            Event::Listening { address, .. } => Some(*address),
            _ => None,
        });
        let address = address.await?.1;
        let dialling = reach.wait_for(|event| matches!(event, Event::Dialling { .. }).then_some(()));
        let dialled = dialling.await?.0;
        Ok(Cast { relay, serve, reach, http, address, dialled })
    }

    /// Starts a part on loopback alone, with nothing of the user's own configuration.
    fn spawn(&self, name: &'static str, args: &[&str]) -> Result<Child, Failure> {
        let dir = DataDir::open(self.scratch.join(name))?;
        let relay_only = self.relay_only && matches!(name, "serve" | "reach");
        let config = format!("ipv4 = \"127.0.0.1\"\nipv6 = false\nrelay_only = {relay_only}\n");
        dir.write("byway.toml", config.as_bytes())?;
        Child::spawn(self.shell, name, dir, args)
    }
}

/// Fetches the page; returns how long after the dial its first byte came.
async fn page(cast: &Cast) -> Result<f64, Failure> {
    let mut page = Download::begin(cast.address, "/").await.map_err(cut_off)?;
    let first_byte = cast.dialled.elapsed();
    while !page.next().await.map_err(cut_off)?.is_empty() {}
    Ok(first_byte.as_micros() as f64 / 1e3)
}

/// Waits until the connection has left the relay; returns how long after the dial it did.
async fn direct(cast: &mut Cast) -> Option<f64> {
    let moved = cast.reach.wait_for(|event| match event {
        Event::Path { path: Way::Direct, ms, .. } => Some(*ms),
        _ => None,
    });
    time::timeout(DIRECT_TIMEOUT, moved).await.ok()?.ok().map(|(_, ms)| ms)
}

/// Downloads the file; returns its length and hash.
async fn file(shell: &Shell, cast: &Cast) -> Result<(u64, digest::Digest), Failure> {
    let bar = if shell.output.shows_progress() { ProgressBar::new(http::FILE_LEN) } else { ProgressBar::hidden() };
    if let Ok(style) = ProgressStyle::with_template("  {bar:40} {bytes} of {total_bytes}, {bytes_per_sec}") {
        bar.set_style(style);
    }
    let mut file = Download::begin(cast.address, http::FILE_PATH).await.map_err(cut_off)?;
    let mut hash = digest::Context::new(&digest::SHA256);
    let mut total = 0;
    loop {
        let bytes = file.next().await.map_err(cut_off)?;
        if bytes.is_empty() {
            break;
        }
        hash.update(bytes);
        total += bytes.len() as u64;
        bar.set_position(total);
    }
    bar.finish_and_clear();
    Ok((total, hash.finish()))
}

/// The hash that the file must have, without asking anybody.
fn expected(seed: u64) -> digest::Digest {
    let (mut file, mut buffer) = (FileBytes::new(seed), vec![0; 64 << 10]);
    let mut hash = digest::Context::new(&digest::SHA256);
    loop {
        let bytes = file.fill(&mut buffer);
        if bytes.is_empty() {
            return hash.finish();
        }
        hash.update(bytes);
    }
}

/// Asks a part what it knows, as `byway status` does.
async fn status(dir: &DataDir) -> Result<Status, Failure> {
    let mut session = Session::attach(dir, "demo").await?;
    session.request(&Request::Status).await?;
    loop {
        match session.next().await? {
            Some(Event::Status(status)) => return Ok(*status),
            Some(_) => {}
            None => return Err(Failure::here("a part of the demo does not tell its state")),
        }
    }
}

fn cut_off(error: io::Error) -> Failure {
    Failure::here(format!("the download through `reach` broke: {error}; run the demo with -v to see why"))
}

fn late(what: &str) -> Failure {
    Failure::here(format!("{what} did not come in time; run the demo with -v to see why"))
}
