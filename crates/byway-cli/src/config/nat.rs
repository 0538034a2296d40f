//! The configuration's part about direct paths: how they are looked for, and what that may cost.

use std::time::Duration;

use byway::nat::{AgentConfig, AgentConfigError, ScanConfig};
use serde::Deserialize;

/// `nat_budget`: how much of the table's limits is used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum NatBudget {
    /// All.
    #[default]
    Normal,
    /// A quarter.
    Low,
    /// Nothing but pings to addresses that the peer itself has told.
    Off,
}

/// The table `[nat]`; what is left out has the library's default.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct NatTable {
    challenge_retries: Option<u32>,
    challenge_interval_ms: Option<u64>,
    challenge_backoff: Option<f64>,
    mappings: Option<u32>,
    probes: Option<u32>,
    per_second: Option<u32>,
    scan: Option<ScanTable>,
}

/// The table `[nat.scan]`, which switches the port scan on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct ScanTable {
    offset: Option<i32>,
    count: Option<u32>,
    duration_s: Option<u64>,
}

impl NatTable {
    /// What the library is told.
    pub(crate) fn agent(&self, budget: NatBudget) -> AgentConfig {
        let mut config = self.whole();
        let limits = &mut config.budget;
        match budget {
            NatBudget::Normal => {}
            NatBudget::Low => {
                for limit in [&mut limits.mappings, &mut limits.probes, &mut limits.per_second] {
                    *limit /= 4;
                }
            }
            NatBudget::Off => {
                (limits.mappings, limits.probes) = (0, 0);
                config.scan = None;
            }
        }
        config
    }

    /// Which value makes no sense, by the name that it has in the file.
    pub(super) fn check(&self) -> Result<(), String> {
        self.whole().check().map_err(|AgentConfigError { key, found, range }| {
            let key = match key {
                "nat_budget.mappings" => "mappings",
                "nat_budget.probes" => "probes",
                "nat_budget.per_second" => "per_second",
                "challenge.retries" => "challenge_retries",
                "challenge.interval" => "challenge_interval_ms",
                "challenge.backoff" => "challenge_backoff",
                "scan.duration" => "scan.duration_s",
                other => other,
            };
            format!("nat.{key} is {found}, but its range is {range}")
        })
    }

    fn whole(&self) -> AgentConfig {
        let mut config = AgentConfig::default();
        set(&mut config.challenge.retries, self.challenge_retries);
        set(&mut config.challenge.interval, self.challenge_interval_ms.map(Duration::from_millis));
        set(&mut config.challenge.backoff, self.challenge_backoff);
        set(&mut config.budget.mappings, self.mappings);
        set(&mut config.budget.probes, self.probes);
        set(&mut config.budget.per_second, self.per_second);
        config.scan = self.scan.as_ref().map(|table| {
            let mut scan = ScanConfig::default();
            set(&mut scan.offset, table.offset);
            set(&mut scan.count, table.count);
            set(&mut scan.duration, table.duration_s.map(Duration::from_secs));
            scan
        });
        config
    }
}

fn set<T>(value: &mut T, told: Option<T>) {
    if let Some(told) = told {
        *value = told;
    }
}
