//! The configuration's part about each peer's connection: how fast, how much memory, and how long it may take nothing.

use std::time::Duration;

use byway::{LinkConfig, Rate};
use serde::Deserialize;

use super::Within;

/// Bytes a second of one Mbit/s.
const MBIT: f64 = 125_000.0;

/// The range of rates in Mbit/s: the least is 1,250 bytes a second, one packet.
const MBIT_RANGE: (f64, f64) = (0.01, 1_000_000.0);

/// The table `[link]`; what is left out has the library's default.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct LinkTable {
    /// What is sent to each peer in all.
    send_mbit_s: Option<Mbit>,
    /// What is taken from each peer in all.
    receive_mbit_s: Option<Mbit>,
    /// Memory of one peer's messages that are not read yet.
    peer_memory_mib: Option<Within<24, 1_048_576>>,
    /// The same of all peers.
    memory_mib: Option<Within<24, 1_048_576>>,
    /// What may wait to be sent to all peers.
    send_memory_mib: Option<Within<4, 1_048_576>>,
    /// How long a peer may take for one message while somebody waits for its memory.
    unfinished_after_s: Option<Within<1, 3_600>>,
    /// How long a peer may take nothing of what waits for it.
    evict_after_s: Option<Patience>,
    /// How long the end of a connection waits for what is queued.
    flush_ms: Option<Within<0, 60_000>>,
}

/// A rate, which may be a part of one Mbit/s.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(try_from = "f64")]
struct Mbit(f64);

impl TryFrom<f64> for Mbit {
    type Error = String;

    fn try_from(found: f64) -> Result<Self, String> {
        let (least, most) = MBIT_RANGE;
        match (least..=most).contains(&found) {
            true => Ok(Mbit(found)),
            false => Err(format!("{found} is out of its range, {least} to {most}")),
        }
    }
}

impl From<Mbit> for Rate {
    fn from(Mbit(rate): Mbit) -> Rate {
        Rate::new((rate * MBIT) as u64)
    }
}

/// Seconds, or never.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "toml::Value")]
enum Patience {
    Never,
    Seconds(u64),
}

impl TryFrom<toml::Value> for Patience {
    type Error = String;

    fn try_from(found: toml::Value) -> Result<Self, String> {
        match found {
            toml::Value::Boolean(false) => Ok(Patience::Never),
            toml::Value::Integer(found) => {
                Within::<10, 3_600>::try_from(found).map(|within| Patience::Seconds(within.0))
            }
            _ => Err("expected seconds, 10 to 3600, or false for never".into()),
        }
    }
}

impl LinkTable {
    /// What makes no sense, by the names that it has in the file.
    pub(super) fn check(&self) -> Result<(), String> {
        let link = self.config();
        match link.memory < link.peer_memory {
            true => Err(format!(
                "link.memory_mib is {}, less than link.peer_memory_mib, {}; raise the one or lower the other",
                link.memory >> 20,
                link.peer_memory >> 20
            )),
            false => Ok(()),
        }
    }

    /// What the library is told.
    pub(super) fn config(&self) -> LinkConfig {
        let mut config = LinkConfig::default();
        config.send_rate = self.send_mbit_s.map(Rate::from);
        config.receive_rate = self.receive_mbit_s.map(Rate::from);
        set_mib(&mut config.peer_memory, self.peer_memory_mib);
        set_mib(&mut config.memory, self.memory_mib);
        set_mib(&mut config.send_memory, self.send_memory_mib);
        if let Some(Within(seconds)) = self.unfinished_after_s {
            config.unfinished_after = Duration::from_secs(seconds);
        }
        match self.evict_after_s {
            Some(Patience::Never) => config.evict_after = None,
            Some(Patience::Seconds(seconds)) => config.evict_after = Some(Duration::from_secs(seconds)),
            None => {}
        }
        if let Some(Within(ms)) = self.flush_ms {
            config.flush = Duration::from_millis(ms);
        }
        config
    }
}

fn set_mib<const LEAST: u64, const MOST: u64>(limit: &mut usize, told: Option<Within<LEAST, MOST>>) {
    if let Some(Within(mib)) = told {
        *limit = usize::try_from(mib << 20).unwrap_or(usize::MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<LinkTable, String> {
        let table: LinkTable = toml::from_str(text).map_err(|error| error.to_string())?;
        table.check()?;
        Ok(table)
    }

    #[test]
    fn every_key_reaches_the_library() {
        let table = parse(
            "send_mbit_s = 8\nreceive_mbit_s = 0.5\npeer_memory_mib = 32\nmemory_mib = 100\nsend_memory_mib = 10\n\
             unfinished_after_s = 60\nevict_after_s = 300\nflush_ms = 500",
        );
        let found = table.unwrap().config();
        let mut expected = LinkConfig::default();
        (expected.send_rate, expected.receive_rate) = (Some(Rate::new(1_000_000)), Some(Rate::new(62_500)));
        (expected.peer_memory, expected.memory, expected.send_memory) = (32 << 20, 100 << 20, 10 << 20);
        (expected.unfinished_after, expected.flush) = (Duration::from_secs(60), Duration::from_millis(500));
        expected.evict_after = Some(Duration::from_secs(300));
        assert_eq!(found, expected);
        assert_eq!(parse("evict_after_s = false").unwrap().config().evict_after, None);
        assert_eq!(parse("").unwrap().config(), LinkConfig::default());
    }

    #[test]
    fn wrong_values_are_told_by_the_names_of_the_file() {
        for (text, hint) in [
            ("send_mbit_s = 0", "out of its range, 0.01 to 1000000"),
            ("receive_mbit_s = -1.5", "out of its range"),
            ("receive_mbit_s = nan", "out of its range"),
            ("peer_memory_mib = 23", "out of its range, 24 to 1048576"),
            ("memory_mib = 32", "link.memory_mib is 32, less than link.peer_memory_mib, 64"),
            ("send_memory_mib = 3", "out of its range, 4 to 1048576"),
            ("evict_after_s = 9", "9 is out of its range, 10 to 3600"),
            ("evict_after_s = true", "or false for never"),
            ("unfinished_after_s = 0", "out of its range, 1 to 3600"),
            ("flush_ms = 60001", "out of its range, 0 to 60000"),
            ("evict_after = 9", "unknown field `evict_after`"),
        ] {
            let why = parse(text).unwrap_err();
            assert!(why.contains(hint), "{text}: {why}");
        }
    }
}
