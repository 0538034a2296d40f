//! The route machine of one peer: which real routes QUIC's datagrams take.
//!
//! QUIC knows one address for the peer; below it there are several routes, one of them *selected*. Both sides run
//! this machine, each selects its own route. The machine never sees a packet: the packet path keeps a small track,
//! of which the agent task feeds in a [`Sample`] at the machine's timers, and pings travel through the agent.
//!
//! ```text
//! loop {
//!     while let Some(output) = paths.poll_output() { carry it out }
//!     tell the mux whether paths.watching(), then read the track once more if it is not
//!     wait for: paths.poll_timeout() or the mux's wake-up → Input::Sample(read the track)
//!               a probe → Input::Ping, Input::Pong;  the agent → Input::Add, Input::Remove
//! }
//! ```

mod event;

use alloc::{collections::VecDeque, string::String, vec::Vec};
use core::time::Duration;

pub use event::{DropWhy, HedgeWhy, Input, Output, Plan, RouteId, RouteKind, RouteSet, SMALL, Sample, Why};

use crate::{Instant, Rng};

/// The most routes a peer may have: four addresses of each of two socket families and two relays, with room for NATs
/// that show a new address now and then; a hedge copies to all of them, hence no more.
pub const MAX_ROUTES: usize = 16;

/// What an operator may change about the route machine.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct PathsConfig {
    /// How often the selected route and one standby are pinged while the connection is idle: below the 30 s after
    /// which home routers begin to forget UDP mappings, with two pings to lose.
    pub warm: Duration,
}

impl Default for PathsConfig {
    fn default() -> Self {
        PathsConfig { warm: Duration::from_secs(10) }
    }
}

/// What `byway why` tells of one route.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct RouteStatus {
    /// The route.
    pub route: RouteId,
    /// What it goes through.
    pub kind: RouteKind,
    /// The smoothed round-trip time of its pings.
    pub srtt: Option<Duration>,
    /// The share of its pings that was lost of late, in thousandths.
    pub loss: u16,
    /// When it first answered.
    pub proven_since: Option<Instant>,
    /// When the latest of its pings that was answered had left.
    pub last_proof: Option<Instant>,
    /// Whether it answers, as far as is known.
    pub alive: bool,
    /// Whether a full datagram has come through.
    pub mtu_proven: bool,
    /// Whether it carries the connection.
    pub selected: bool,
    /// Why it is, or is not, the selected one.
    pub why: String,
}

/// The route machine of one peer.
#[derive(Debug)]
pub struct Paths {
    config: PathsConfig,
    rng: Rng,
    routes: Vec<RouteId>,
    selected: Option<RouteId>,
    established: bool,
    outputs: VecDeque<Output>,
}

impl Paths {
    /// A machine without routes, in dialling mode; `seed` is the source of its transaction ids.
    pub fn new(config: PathsConfig, seed: &[u8; 32], now: Instant) -> Self {
        let _ = now;
        let rng = Rng::new(seed, "paths");
        Paths { config, rng, routes: Vec::new(), selected: None, established: false, outputs: VecDeque::new() }
    }

    /// Takes in what happened; drain [`poll_output`](Self::poll_output) to `None` after every input.
    pub fn handle_input(&mut self, input: Input, now: Instant) {
        match input {
            Input::Add { route, .. } if !self.routes.contains(&route) => {
                self.routes.push(route);
                let txid = self.rng.next_u64();
                if self.established {
                    self.outputs.push_back(Output::Ping { route, txid, doubt: false, padded: false });
                }
            }
            Input::Remove { route } => self.routes.retain(|known| *known != route),
            Input::Established { heard } => {
                self.established = true;
                self.selected = Some(heard);
                self.outputs.push_back(Output::Selected {
                    from: None,
                    to: heard,
                    why: Why::Handshake,
                    hedge_began: None,
                });
                self.outputs.push_back(Output::Plan(Plan::One(heard)));
            }
            Input::Add { .. } | Input::Sample(_) | Input::Pong { .. } | Input::Ping { .. } => {}
        }
        let _ = (now, self.config.warm);
    }

    /// The next decision, in the order in which they are to be carried out.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When the machine wants its next [`Input::Sample`], and why.
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        None
    }

    /// Whether the machine will look at the track by itself; if not, the mux must wake the agent (for an
    /// [`Input::Sample`]) as soon as a datagram leaves while both marks of the track are empty.
    pub fn watching(&self) -> bool {
        !self.established
    }

    /// What the mux does with each datagram, as last told by [`Output::Plan`]; [`Plan::All`] at first.
    pub fn plan(&self) -> Plan {
        self.selected.map_or(Plan::All, Plan::One)
    }

    /// The route that carries the connection; `None` while dialling and when there is no route at all.
    pub fn selected(&self) -> Option<RouteId> {
        self.selected
    }

    /// One entry per route, in order of their ids.
    pub fn status(&self, now: Instant) -> Vec<RouteStatus> {
        let _ = now;
        Vec::new()
    }
}
