//! Measuring the way to a peer.

use std::{sync::Arc, time::Duration};

use tokio::time;

use super::{Daemon, attend::Report, dial_failure};
use crate::{
    control::{Event, event::milliseconds},
    failure::{Exit, Failure},
    target::Destination,
};

/// From one ping to the next, as `ping` has it.
const INTERVAL: Duration = Duration::from_secs(1);

/// Pings a peer `count` times.
pub(super) async fn run(daemon: Arc<Daemon>, to: Destination, count: u32, report: Report) -> Result<(), Failure> {
    let ticket = daemon.find(&to)?;
    let peer = ticket.peer.to_string();
    if ticket.peer != daemon.node.id() && !daemon.node.peers().contains(&ticket.peer) {
        report.tell(Event::Dialling { peer: peer.clone() });
    }
    daemon.node.dial(&ticket).await.map_err(|error| dial_failure(&error))?;
    let mut times = Vec::new();
    let mut ticks = time::interval(INTERVAL);
    for seq in 1..=count {
        ticks.tick().await;
        let peer = peer.clone();
        report.tell(match daemon.node.ping(ticket.peer).await {
            Ok(pong) => {
                let rtt_ms = milliseconds(pong.rtt);
                times.push(rtt_ms);
                Event::Pong { peer, seq, rtt_ms, path: pong.path.into() }
            }
            Err(error) => Event::NoPong { peer, seq, message: error.to_string() },
        });
    }
    report.tell(summary(peer, count, &times));
    match times.is_empty() {
        true => {
            Err(Failure::new(Exit::Unreachable, "no ping was answered; `byway status` tells the state of the routes"))
        }
        false => Ok(()),
    }
}

fn summary(peer: String, sent: u32, times: &[f64]) -> Event {
    let answered = times.len() as u32;
    let mean_ms = (answered > 0).then(|| times.iter().sum::<f64>() / f64::from(answered));
    let min_ms = times.iter().copied().reduce(f64::min);
    Event::Pinged { peer, sent, answered, min_ms, mean_ms, max_ms: times.iter().copied().reduce(f64::max) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_answer_has_no_times() {
        let none = summary("p".into(), 3, &[]);
        let Event::Pinged { sent: 3, answered: 0, min_ms: None, mean_ms: None, max_ms: None, .. } = none else {
            panic!("{none:?}");
        };
        let some = summary("p".into(), 3, &[1.0, 3.0]);
        assert!(matches!(some, Event::Pinged { answered: 2, mean_ms: Some(mean), .. } if mean == 2.0), "{some:?}");
    }
}
