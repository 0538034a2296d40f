//! Measuring what the line to a peer carries.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use byway::{PeerId, Ticket};
use tokio::time::Instant;

use super::{Daemon, attend::Report, dial_failure, lock, status};
use crate::{
    bench::{Claim, Measurement, Word},
    control::{
        Event,
        event::{Delay, Direction, Measured, milliseconds},
    },
    failure::{Exit, Failure, printable},
    grants::Verdict,
    store::Secret,
    target::Destination,
};

/// How long the idle line is measured: a hundred echoes.
const IDLE: Duration = Duration::from_secs(2);

/// How long a peer may take to say what it owes: longer than a failover, and than a full queue takes to drain.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long what is still on its way may take at the end: the queues of both sides over a line of 1 Mbit/s.
const REST: Duration = Duration::from_secs(60);

/// How often progress is told.
const PROGRESS: Duration = Duration::from_secs(1);

/// Measures the idle line, then each direction under load for `seconds`.
pub(super) async fn run(daemon: Arc<Daemon>, to: Destination, seconds: u64, report: Report) -> Result<(), Failure> {
    let ticket = daemon.find(&to)?;
    let peer = ticket.peer;
    if !daemon.node.peers().contains(&peer) {
        report.tell(Event::Dialling { peer: peer.to_string() });
    }
    daemon.node.dial(&ticket).await.map_err(|error| dial_failure(&error))?;
    let short = peer.short();
    if !daemon.bench.is_spoken_by(peer) {
        let why = format!("{short} does not answer measurements: it is no `byway` command, or an older one");
        return Err(Failure::new(Exit::Refused, why));
    }
    let Some(mut line) = daemon.bench.measure(peer) else {
        return Err(Failure::here("another `byway bench` runs on this node; wait until it is done"));
    };
    line.say(&Word::Ask(claim(&ticket)));
    match line.hear(Instant::now() + PATIENCE).await {
        Some(Word::Ready) => {}
        Some(Word::Refused(why)) => return Err(Failure::new(Exit::Refused, format!("{short}: {}", printable(&why)))),
        _ => return Err(silent(&peer)),
    }
    line.hear(Instant::now() + IDLE).await;
    let idle = delay(&line.take_echoes());
    let lasts = Duration::from_secs(seconds);
    let up = send(&mut line, &peer, lasts, &report).await?;
    let down = receive(&mut line, &peer, lasts, &report).await?;
    let routes = status::read(&daemon).await.peers.into_iter().find(|status| status.id == peer.to_string());
    let (path, routes) = routes.map_or_else(|| (None, Vec::new()), |peer| (peer.path, peer.routes));
    report.tell(Event::Measured(Box::new(Measured { peer: peer.to_string(), path, seconds, idle, up, down, routes })));
    Ok(())
}

/// The ticket that makes this node known there, if it is to be used.
fn claim(ticket: &Ticket) -> Option<Claim> {
    Some(Claim { service: ticket.service.clone()?, secret: Secret(ticket.secret?) })
}

fn silent(peer: &PeerId) -> Failure {
    let peer = peer.short();
    Failure::new(Exit::Unreachable, format!("{peer} fell silent; `byway status` tells the state of the routes to it"))
}

async fn send(
    line: &mut Measurement<'_>,
    peer: &PeerId,
    lasts: Duration,
    report: &Report,
) -> Result<Direction, Failure> {
    line.say(&Word::Up);
    if line.hear(Instant::now() + PATIENCE).await != Some(Word::Ready) {
        return Err(silent(peer));
    }
    let (load, sent, began) = (line.load(), AtomicU64::new(0), Instant::now());
    {
        let mut loading = std::pin::pin!(load.send(lasts, &sent));
        let mut progress = Progress::new("up", peer);
        loop {
            tokio::select! {
                biased;
                () = &mut loading => break,
                word = line.hear(progress.next()) => match word {
                    None => progress.tell(sent.load(Ordering::Relaxed), report),
                    Some(word) => tracing::debug!(?word, "word out of place"),
                },
            }
        }
    }
    let sent = sent.into_inner();
    line.say(&Word::Sent(sent));
    let deadline = Instant::now() + REST;
    loop {
        match line.hear(deadline).await {
            Some(Word::Received(bytes)) if bytes == sent => break,
            Some(_) => {}
            None => return Err(silent(peer)),
        }
    }
    Ok(direction(sent, began.elapsed(), line))
}

async fn receive(
    line: &mut Measurement<'_>,
    peer: &PeerId,
    lasts: Duration,
    report: &Report,
) -> Result<Direction, Failure> {
    line.forget_received();
    line.say(&Word::Down(lasts.as_secs()));
    let (began, mut owed) = (Instant::now(), None);
    let deadline = began + lasts + REST;
    let mut progress = Progress::new("down", peer);
    while owed.is_none_or(|owed| line.received() < owed) {
        if Instant::now() >= deadline {
            return Err(silent(peer));
        }
        // Once everything was sent, the rest is a matter of milliseconds.
        let next = if owed.is_some() { Instant::now() + crate::bench::ECHO_INTERVAL } else { progress.next() };
        match line.hear(next).await {
            Some(Word::Sent(bytes)) => owed = Some(bytes),
            Some(word) => tracing::debug!(?word, "word out of place"),
            None if owed.is_none() => progress.tell(line.received(), report),
            None => {}
        }
    }
    Ok(direction(line.received(), began.elapsed(), line))
}

fn direction(bytes: u64, took: Duration, line: &mut Measurement<'_>) -> Direction {
    Direction { bytes, mbit_s: mbit_s(bytes, took), delay: delay(&line.take_echoes()) }
}

fn mbit_s(bytes: u64, took: Duration) -> f64 {
    (bytes as f64 * 8.0 / took.as_secs_f64().max(1e-3) / 1e4).round() / 100.0
}

/// What sorted round trips come to; `None` if there are none.
fn delay(sorted: &[Duration]) -> Option<Delay> {
    let at = |share: f64| sorted.get(((sorted.len() as f64 * share) as usize).min(sorted.len().saturating_sub(1)));
    Some(Delay { p50_ms: milliseconds(*at(0.5)?), p99_ms: milliseconds(*at(0.99)?) })
}

/// Tells once a second how fast it goes.
struct Progress {
    direction: &'static str,
    peer: String,
    told: (Instant, u64),
}

impl Progress {
    fn new(direction: &'static str, peer: &PeerId) -> Self {
        Progress { direction, peer: peer.to_string(), told: (Instant::now(), 0) }
    }

    fn next(&self) -> Instant {
        self.told.0 + PROGRESS
    }

    fn tell(&mut self, bytes: u64, report: &Report) {
        let now = Instant::now();
        let mbit_s = mbit_s(bytes - self.told.1, now - self.told.0);
        self.told = (now, bytes);
        report.tell(Event::Measuring { peer: self.peer.clone(), direction: self.direction.into(), mbit_s });
    }
}

/// Whether a peer may measure this node: it holds a ticket, or this node holds one of its.
pub(super) fn may_ask(daemon: &Daemon, peer: PeerId, claim: Option<Claim>) -> bool {
    let mut grants = lock(&daemon.grants);
    if grants.is_holder(peer) || lock(&daemon.known).is_known(peer) {
        return true;
    }
    claim.is_some_and(|claim| match grants.redeem(&claim.service, peer, Some(claim.secret.0)) {
        Ok(verdict) => verdict != Verdict::Refused,
        Err(error) => {
            tracing::warn!(%error, "a ticket cannot be redeemed");
            false
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_are_percentiles_and_rates_are_in_megabits() {
        let took: Vec<Duration> = (1..=200).map(Duration::from_millis).collect();
        assert_eq!(delay(&took), Some(Delay { p50_ms: 101.0, p99_ms: 199.0 }));
        assert_eq!(delay(&took[..1]), Some(Delay { p50_ms: 1.0, p99_ms: 1.0 }));
        assert_eq!(delay(&[]), None);
        assert_eq!(mbit_s(12_500_000, Duration::from_secs(1)), 100.0);
    }
}
