//! What an operator may change about the agent, and within which limits.

use alloc::{format, string::String};
use core::time::Duration;

/// How far the agent may go; [`AgentConfig::check`] says whether the values make sense.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct AgentConfig {
    /// The most that a punch may cost.
    pub budget: BudgetConfig,
    /// How a peer's addresses are pinged.
    pub challenge: ChallengeConfig,
    /// The port scan at the end of the ladder; `None`, the default, leaves it out.
    pub scan: Option<ScanConfig>,
    /// The lowest port that is guessed, at least 1; by default 1,024, for NATs give out no lower ones.
    pub lowest_port: u16,
    /// The highest port that is guessed, not below the lowest; by default 65,535.
    pub highest_port: u16,
}

impl Default for AgentConfig {
    fn default() -> Self {
        AgentConfig {
            budget: BudgetConfig::default(),
            challenge: ChallengeConfig::default(),
            scan: None,
            lowest_port: 1_024,
            highest_port: u16::MAX,
        }
    }
}

impl AgentConfig {
    /// Says whether every value lies in its range.
    pub fn check(&self) -> Result<(), AgentConfigError> {
        self.budget.check()?;
        self.challenge.check()?;
        in_range("lowest_port", "at least 1", self.lowest_port, self.lowest_port >= 1)?;
        let ordered = self.highest_port >= self.lowest_port;
        in_range("highest_port", "not below lowest_port", self.highest_port, ordered)?;
        self.scan.as_ref().map_or(Ok(()), ScanConfig::check)
    }
}

/// The most that a punch may cost; each limit can be lowered, and 0 switches off what it limits.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct BudgetConfig {
    /// Sockets, and so NAT mappings, that one dial may open: 0 to 256, the default, which a home router's table of 1,024 holds
    /// beside what else it carries.
    pub mappings: u32,
    /// Packets of one dial to ports that nobody reported or observed: 0 to 1,200, the default. No more than that leave this host in
    /// any 20 s either.
    pub probes: u32,
    /// Guesses, openers and candidate pings of this host in any second: 0 to 250, the default. 0 leaves only what others
    /// begin.
    pub per_second: u32,
}

/// See [`BudgetConfig::mappings`].
pub(super) const MAX_MAPPINGS: u32 = 256;
/// See [`BudgetConfig::probes`].
pub(super) const MAX_PROBES: u32 = 1_200;
/// See [`BudgetConfig::per_second`].
pub(super) const MAX_PER_SECOND: u32 = 250;

impl Default for BudgetConfig {
    fn default() -> Self {
        BudgetConfig { mappings: MAX_MAPPINGS, probes: MAX_PROBES, per_second: MAX_PER_SECOND }
    }
}

impl BudgetConfig {
    fn check(&self) -> Result<(), AgentConfigError> {
        in_range("nat_budget.mappings", "0 to 256", self.mappings, self.mappings <= MAX_MAPPINGS)?;
        in_range("nat_budget.probes", "0 to 1200", self.probes, self.probes <= MAX_PROBES)?;
        in_range("nat_budget.per_second", "0 to 250", self.per_second, self.per_second <= MAX_PER_SECOND)
    }
}

/// How each of a peer's addresses is pinged: by default at 0, 0.20, 0.53, 1.07, 1.97 and 3.46 s, stretched by up to a quarter
/// at random, so that two sides do not stay in step.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct ChallengeConfig {
    /// Pings after the first one: 0 to 8, by default 5.
    pub retries: u32,
    /// The time from the first ping to the second: 10 ms to 10 s, by default 200 ms.
    pub interval: Duration,
    /// What each further time is multiplied by: 1 to 4, by default 1.65.
    pub backoff: f64,
}

impl Default for ChallengeConfig {
    fn default() -> Self {
        ChallengeConfig { retries: 5, interval: Duration::from_millis(200), backoff: 1.65 }
    }
}

impl ChallengeConfig {
    fn check(&self) -> Result<(), AgentConfigError> {
        in_range("challenge.retries", "0 to 8", self.retries, self.retries <= 8)?;
        let interval = (Duration::from_millis(10)..=Duration::from_secs(10)).contains(&self.interval);
        in_range("challenge.interval", "10 ms to 10 s", format!("{:?}", self.interval), interval)?;
        in_range("challenge.backoff", "1 to 4", self.backoff, (1.0..=4.0).contains(&self.backoff))
    }
}

/// The last rung: pings to the ports around the one that the peer's NAT showed to a STUN server.
///
/// It is no part of [`BudgetConfig::probes`], but of the packets in a second: 250 of them, so 3,000 ports take 12 s.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ScanConfig {
    /// The first port, seen from the known one: −65,535 to 65,535, by default −1,000.
    pub offset: i32,
    /// How many ports, counted upwards and from the lowest one again after the highest: 32 to 64,511, by default 3,000.
    pub count: u32,
    /// Over how much time the scan is spread at least: 1 s to 60 s, by default 12 s: what the packets of a second allow.
    pub duration: Duration,
}

impl Default for ScanConfig {
    fn default() -> Self {
        ScanConfig { offset: -1_000, count: 3_000, duration: Duration::from_secs(12) }
    }
}

impl ScanConfig {
    fn check(&self) -> Result<(), AgentConfigError> {
        in_range("scan.offset", "-65535 to 65535", self.offset, self.offset.unsigned_abs() <= 65_535)?;
        in_range("scan.count", "32 to 64511", self.count, (32..=64_511).contains(&self.count))?;
        let duration = (Duration::from_secs(1)..=Duration::from_secs(60)).contains(&self.duration);
        in_range("scan.duration", "1 s to 60 s", format!("{:?}", self.duration), duration)
    }
}

/// A value of the configuration lies outside its range.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key} is {found}, but its range is {range}; correct it in the configuration")]
pub struct AgentConfigError {
    /// The key.
    pub key: &'static str,
    /// Its value, as text.
    pub found: String,
    /// What it may be.
    pub range: &'static str,
}

fn in_range(
    key: &'static str,
    range: &'static str,
    found: impl core::fmt::Display,
    holds: bool,
) -> Result<(), AgentConfigError> {
    if holds { Ok(()) } else { Err(AgentConfigError { key, found: format!("{found}"), range }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_in_range() {
        AgentConfig { scan: Some(ScanConfig::default()), ..AgentConfig::default() }.check().unwrap();
    }

    #[test]
    fn a_value_out_of_range_is_told_with_its_key_and_its_range() {
        type Change = fn(&mut AgentConfig);
        let changes: [(&str, Change); 12] = [
            ("nat_budget.mappings", |it| it.budget.mappings = 257),
            ("nat_budget.probes", |it| it.budget.probes = 1_201),
            ("nat_budget.per_second", |it| it.budget.per_second = 251),
            ("challenge.retries", |it| it.challenge.retries = 9),
            ("challenge.interval", |it| it.challenge.interval = Duration::from_millis(9)),
            ("challenge.backoff", |it| it.challenge.backoff = 0.99),
            ("challenge.backoff", |it| it.challenge.backoff = f64::NAN),
            ("scan.offset", |it| it.scan = Some(ScanConfig { offset: i32::MIN, ..ScanConfig::default() })),
            ("scan.count", |it| it.scan = Some(ScanConfig { count: 31, ..ScanConfig::default() })),
            ("scan.duration", |it| it.scan = Some(ScanConfig { duration: Duration::ZERO, ..ScanConfig::default() })),
            ("lowest_port", |it| it.lowest_port = 0),
            ("highest_port", |it| it.highest_port = 1_023),
        ];
        for (key, change) in changes {
            let mut config = AgentConfig::default();
            change(&mut config);
            assert_eq!(config.check().unwrap_err().key, key);
        }
        let mut config = AgentConfig::default();
        config.budget.per_second = 300;
        let told = std::string::ToString::to_string(&config.check().unwrap_err());
        assert_eq!(told, "nat_budget.per_second is 300, but its range is 0 to 250; correct it in the configuration");
    }
}
