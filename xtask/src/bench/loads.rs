//! Loads that a stock guest runs under several VMMs in turn, in one boot of the outer machine, with the counters read before
//! and after each: what disk and network figures have in common.

use std::collections::BTreeMap;

use anyhow::Context as _;

use crate::lab::job::{Outcome, Sample, Step};
use crate::lab::outer::Report;
use crate::lab::scenarios::Script;

/// One figure of a load.
pub struct Figure {
    /// What it is called.
    pub name: &'static str,
    /// What it comes to.
    pub of: fn(&Part<'_>) -> Option<f64>,
    /// Digits behind its point.
    pub digits: usize,
}

/// What was done between two readings of the counters.
pub struct Part<'a> {
    /// Operations that were done.
    pub operations: f64,
    /// How long they took the guest.
    pub time_us: f64,
    before: &'a Sample,
    after: &'a Sample,
}

impl<'a> Part<'a> {
    /// The load of that name, as its guest and the VMM's counters tell of it.
    ///
    /// # Errors
    /// Where one of them does not.
    pub fn of(outcome: &'a Outcome, name: &str) -> anyhow::Result<Self> {
        let missing = || format!("{}: nothing was measured of {name}", outcome.name);
        let (operations, time_us) = measured(outcome, name).with_context(missing)?;
        let sample = |when| outcome.samples.get(&format!("{name} {when}"));
        let (before, after) = sample("before").zip(sample("after")).with_context(missing)?;
        Ok(Self { operations, time_us, before, after })
    }

    /// How much one of KVM's counters grew in an operation.
    pub fn counter(&self, name: &str) -> Option<f64> {
        let grown = self.after.kvm.get(name)?.checked_sub(*self.before.kvm.get(name)?)?;
        Some(grown as f64 / self.operations)
    }

    /// CPU time of the VMM's process an operation.
    pub fn cpu_us(&self) -> Option<f64> {
        Some(self.after.cpu_ms.checked_sub(self.before.cpu_ms)? as f64 * 1e3 / self.operations)
    }

    /// Operations a second.
    pub fn rate(&self) -> Option<f64> {
        Some(self.operations / self.time_us * 1e6)
    }
}

/// Operations of a load and the time it took, from the line that the guest printed when all were over.
fn measured(outcome: &Outcome, name: &str) -> Option<(f64, f64)> {
    let start = format!("LOAD {name} ");
    let rest = outcome.lines.iter().find_map(|(_, line)| line.strip_prefix(&start))?;
    let words: Vec<&str> = rest.split(' ').collect();
    let [operations, _, "in", time, "us"] = words[..] else { return None };
    Some((operations.parse().ok()?, time.parse().ok()?))
}

/// A load's name, without how much of it there is.
pub fn name_of(load: &str) -> &str {
    load.split_once(':').map_or(load, |(name, _)| name)
}

/// Runs the loads of a program that waits for a line before each, and reads the counters around them.
pub fn with_counters(mut script: Script, loads: &[String], within_s: u64) -> Script {
    for load in loads {
        let name = name_of(load);
        script = script
            .expect(&format!("GO {name}\n"), 30)
            .sample(&format!("{name} before"))
            .step(Step::Send { text: "\n".to_owned() })
            .expect(&format!("END {name}\n"), within_s)
            .sample(&format!("{name} after"));
    }
    script
}

/// How a run of that name went.
///
/// # Errors
/// Where it failed, or there was none.
pub fn outcome_of<'a>(report: &'a Report, name: &str) -> anyhow::Result<&'a Outcome> {
    let found = report.outcomes.iter().find(|outcome| outcome.name == name);
    let why = || found.and_then(|outcome| outcome.failure.clone()).unwrap_or_else(|| "not run".to_owned());
    let outcome = found.filter(|outcome| outcome.failure.is_none());
    outcome.with_context(|| format!("{name}: {}; log: {}", why(), report.log.display()))
}

/// Values by load, side and figure.
#[derive(Default)]
pub struct Values(BTreeMap<(usize, usize, usize), Vec<f64>>);

impl Values {
    /// One more value.
    pub fn add(&mut self, (load, side, figure): (usize, usize, usize), value: f64) {
        self.0.entry((load, side, figure)).or_default().push(value);
    }

    /// One more value of each figure of a load.
    pub fn add_all(&mut self, (load, side): (usize, usize), figures: &[Figure], part: &Part<'_>) {
        for (figure, Figure { of, .. }) in figures.iter().enumerate() {
            if let Some(value) = of(part) {
                self.add((load, side, figure), value);
            }
        }
    }

    fn sorted(&self, key: (usize, usize, usize)) -> Vec<f64> {
        let mut values = self.0.get(&key).cloned().unwrap_or_default();
        values.sort_by(f64::total_cmp);
        values
    }

    /// The one in the middle; `NaN` of none.
    pub fn median(&self, key: (usize, usize, usize)) -> f64 {
        let values = self.sorted(key);
        values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
    }

    /// `median (least–most)`.
    pub fn spread(&self, key: (usize, usize, usize), digits: usize) -> String {
        match &self.sorted(key)[..] {
            [] => "–".to_owned(),
            all @ [least, .., most] => format!("{:.digits$} ({least:.digits$}–{most:.digits$})", all[all.len() / 2]),
            [one] => format!("{one:.digits$}"),
        }
    }

    /// Prints a load's figures, a column a side.
    pub fn print(&self, title: &str, load: usize, sides: &[&str], figures: &[Figure]) {
        println!("\n| {title} | {} |", sides.join(" | "));
        println!("|---|{}", "---|".repeat(sides.len()));
        for (figure, Figure { name, digits, .. }) in figures.iter().enumerate() {
            let cells: Vec<_> = (0..sides.len()).map(|side| self.spread((load, side, figure), *digits)).collect();
            println!("| {name} | {} |", cells.join(" | "));
        }
    }
}

/// Whether a figure is beyond the most it may be. One that nobody measured is beyond its limit, too.
pub fn is_beyond(value: f64, limit: f64) -> bool {
    !matches!(value.partial_cmp(&limit), Some(std::cmp::Ordering::Less | std::cmp::Ordering::Equal))
}
