//! An attempt under way: what had been spent when it began.

use crate::{
    Instant,
    nat::{Attempt, Means, Outcome, agent::Flight},
};

#[derive(Debug)]
pub(super) struct Trial {
    means: Means,
    began: Instant,
    mappings: u32,
    probes: u32,
    packets: u32,
}

impl Trial {
    pub(super) fn new(means: Means, flight: &Flight, now: Instant) -> Self {
        let (mappings, probes) = (flight.allowance.mappings(), flight.allowance.probes());
        Trial { means, began: now, mappings, probes, packets: packets(means, flight) }
    }

    pub(super) fn attempt(&self, flight: &Flight, outcome: Outcome, now: Instant) -> Attempt {
        let pings = self.means == Means::Pings;
        let spent = |now: u32, then: u32| if pings { 0 } else { now.saturating_sub(then) };
        Attempt {
            means: self.means,
            began: self.began,
            took: now.since(self.began),
            mappings: spent(flight.allowance.mappings(), self.mappings),
            probes: spent(flight.allowance.probes(), self.probes),
            packets: packets(self.means, flight).saturating_sub(self.packets),
            outcome,
        }
    }
}

fn packets(means: Means, flight: &Flight) -> u32 {
    if means == Means::Pings { flight.pings } else { flight.others }
}
