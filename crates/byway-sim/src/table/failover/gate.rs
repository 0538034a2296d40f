//! What a row has to reach.

use super::{Case, Row};

/// What the runs of one case have to reach; milliseconds where nothing else is said.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
#[non_exhaustive]
pub struct Gate {
    /// The median stall.
    pub p50: Option<u64>,
    /// Its 99th percentile.
    pub p99: Option<u64>,
    /// How soon the new line is filled.
    pub settle: Option<u64>,
    /// The largest share of copies, in percent; then no switch is allowed either.
    pub copied_pct: Option<f64>,
    /// The least goodput, in percent of that without hedging.
    pub goodput_pct: Option<f64>,
    /// Most switches a minute.
    pub switches_per_min: Option<f64>,
}

impl Gate {
    /// The gate of a case.
    pub fn of(case: Case) -> Self {
        let any = Gate::default();
        let within = |p99| Gate { p99: Some(p99), ..any };
        match case {
            Case::DeathUp
            | Case::DeathDown
            | Case::DeathBoth
            | Case::DeathPingpong
            | Case::OneWayUp
            | Case::OneWayDown
            | Case::MappingLost => Gate { p50: Some(500), p99: Some(900), ..any },
            Case::RelayDeath | Case::Blackout | Case::IdleDeath => within(1_000),
            Case::OnlyRelayRestarts => within(3_000),
            Case::NetworkChange => within(1_500),
            Case::NoDeathLoss1
            | Case::NoDeathLoss3
            | Case::NoDeathJitter5
            | Case::NoDeathBloat
            | Case::NoDeathBurst
            | Case::NoDeathIdle => Gate { copied_pct: Some(2.0), goodput_pct: Some(95.0), ..any },
            Case::Flap => Gate { switches_per_min: Some(6.0), ..any },
            Case::Upgrade | Case::Downgrade => Gate { settle: Some(500), ..any },
            Case::Mtu => Gate { settle: Some(1_000), ..any },
        }
    }

    /// In what `row` falls short if times, copies and switches may be `leave` times what the gate says.
    pub(super) fn shortfalls(&self, row: &Row, leave: u64) -> Vec<String> {
        let mut shortfalls = Vec::new();
        for (name, count) in [
            ("bytes lost", row.lost_bytes),
            ("bytes doubled", row.duplicated_bytes),
            ("errors", row.errors),
            ("connections lost", row.lost_connections),
            ("datagrams lost without a reason", row.unexplained_datagrams()),
        ] {
            if let Some(count) = count.filter(|count| *count > 0) {
                shortfalls.push(format!("{count} {name}"));
            }
        }
        for (name, figure, most) in
            [("p50", row.p50_ms, self.p50), ("p99", row.p99_ms, self.p99), ("settle", row.settle_ms, self.settle)]
        {
            if let Some(most) = most.map(|most| most * leave)
                && figure.is_none_or(|figure| figure > most)
            {
                shortfalls.push(format!("{name} > {most} ms"));
            }
        }
        for (name, figure, most) in [
            ("copied", row.copied_pct, self.copied_pct),
            ("switches a minute", row.switches_per_min, self.switches_per_min),
        ] {
            if let Some(most) = most.map(|most| most * leave as f64)
                && figure.is_none_or(|figure| figure > most)
            {
                shortfalls.push(format!("{name} > {most}"));
            }
        }
        if let Some(least) = self.goodput_pct.map(|least| least / leave as f64)
            && row.goodput_pct.is_none_or(|figure| figure < least)
        {
            shortfalls.push(format!("goodput < {least} %"));
        }
        if let Some(switches) = row.false_switches.filter(|switches| *switches > 0) {
            shortfalls.push(format!("{switches} false switches"));
        }
        shortfalls
    }
}
