//! The committed table of how long each part of the tests takes, `xtask/times.json`: what gets slow fails.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context as _;

/// Seconds on two cores that do nothing else.
const TABLE: &str = include_str!("../times.json");
/// How much longer something may take: other machines are slower and busier.
const GENEROSITY: u64 = 4;

/// The table.
pub struct Times(BTreeMap<String, u64>);

impl Times {
    /// Reads it.
    ///
    /// # Errors
    /// When it is no table of names and seconds.
    pub fn read() -> anyhow::Result<Self> {
        Ok(Self(serde_json::from_str(TABLE).context("xtask/times.json")?))
    }

    /// The seconds something takes, when it has a line.
    #[must_use]
    pub fn seconds(&self, name: &str) -> Option<u64> {
        self.0.get(name).copied()
    }

    /// Why something took longer than its line allows, if it did.
    #[must_use]
    pub fn too_long(&self, name: &str, took: Duration) -> Option<String> {
        let Some(seconds) = self.seconds(name) else {
            return Some(format!("xtask/times.json has no line for {name}"));
        };
        let allowed = Duration::from_secs(seconds * GENEROSITY);
        (took > allowed).then(|| format!("took {:.0} s, where {} s are allowed", took.as_secs_f64(), allowed.as_secs()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_takes_four_times_its_time_fails_and_what_has_no_line_too() {
        let times = Times(BTreeMap::from([("a".to_owned(), 10)]));
        assert!(times.too_long("a", Duration::from_secs(39)).is_none());
        assert!(times.too_long("a", Duration::from_secs(41)).is_some());
        assert!(times.too_long("b", Duration::ZERO).is_some());
    }
}
