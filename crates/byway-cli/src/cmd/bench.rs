//! `byway bench`: what the line to a peer carries, and how long it makes others wait meanwhile.

use super::{
    Followed, Shell, interrupted,
    status::{ROUTE_COLUMNS, bytes, route_row, table},
};
use crate::{
    args::BenchArgs,
    control::{
        Request,
        event::{Delay, Direction, Measured},
    },
    failure::Failure,
    output::{short, way},
};

/// Measures the line to a peer.
pub(super) async fn run(mut shell: Shell, args: BenchArgs) -> Result<(), Failure> {
    let to = args.to.parse().map_err(Failure::usage)?;
    let session = shell.open("bench", &args.servers).await?;
    match shell.follow(session, &Request::Bench { to, seconds: args.seconds }).await? {
        Followed::Done => Ok(()),
        Followed::Stopped => Err(interrupted()),
    }
}

/// The whole result in words.
pub(crate) fn describe(measured: &Measured) -> String {
    let Measured { peer, path, seconds, idle, up, down, routes } = measured;
    let way = path.map_or("", way);
    let rows = vec![row("idle", None, idle.as_ref()), direction_row("up", up), direction_row("down", down)];
    let head = format!("{} is reached {way}; {seconds} s each way", short(peer));
    let lines = table(&["", "throughput", "bytes", "round trip, median", "99 %"], rows);
    let routes = routes.iter().map(|route| route_row(short(peer).to_owned(), route)).collect();
    format!("{head}\n\n{lines}\n\npaths\n{}", table(&ROUTE_COLUMNS, routes))
}

fn direction_row(name: &str, direction: &Direction) -> Vec<String> {
    row(name, Some(direction), direction.delay.as_ref())
}

fn row(name: &str, direction: Option<&Direction>, delay: Option<&Delay>) -> Vec<String> {
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".into());
    vec![
        name.into(),
        or_dash(direction.map(|direction| format!("{:.1} Mbit/s", direction.mbit_s))),
        or_dash(direction.map(|direction| bytes(direction.bytes))),
        or_dash(delay.map(|delay| format!("{:.1} ms", delay.p50_ms))),
        or_dash(delay.map(|delay| format!("{:.1} ms", delay.p99_ms))),
    ]
}
