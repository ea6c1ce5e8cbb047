//! `cargo xtask fuzz --teeth`: every planted bug against the target that is to find it.

use std::fmt;
use std::fs;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::campaign::Campaign;
use super::job::Job;
use super::{Target, folder};

/// How long a bug may stay unfound.
pub const LIMIT: Duration = Duration::from_secs(300);
/// The same in the gate.
pub const GATE_LIMIT: Duration = Duration::from_secs(60);
/// How many bugs the gate plants.
pub const IN_GATE: usize = 3;

/// Found within [`LIMIT`], and now and then not within [`GATE_LIMIT`]: the full lane's alone.
const TOO_RARE_FOR_THE_GATE: [&str; 1] = ["StateTrusted"];

const POLL: Duration = Duration::from_millis(50);

/// A bug, and the target that is to find it.
#[derive(Clone, Copy)]
pub struct Planted<'a> {
    target: &'a Target,
    defect: &'a str,
}

/// What a campaign against a planted bug came to.
struct Hunt {
    took: Duration,
    programs: u64,
    /// What said that something was wrong; `None` where nothing did.
    oracle: Option<String>,
}

/// Every bug there is.
pub fn every(targets: &[Target]) -> Vec<Planted<'_>> {
    targets.iter().flat_map(|target| target.finds.iter().map(move |defect| Planted { target, defect })).collect()
}

/// `count` bugs that differ from run to run, of those that are found soon.
pub fn some(mut all: Vec<Planted<'_>>, count: usize) -> Vec<Planted<'_>> {
    all.retain(|bug| !TOO_RARE_FOR_THE_GATE.contains(&bug.defect));
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut chosen = Vec::new();
    let mut random = now.as_nanos() as u64 | 1;
    while chosen.len() < count && !all.is_empty() {
        // xorshift: any choice will do that is not always the same.
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        chosen.push(all.swap_remove((random % all.len() as u64) as usize));
    }
    chosen
}

/// Hunts each bug for at most `limit`, `at_once` at a time, and prints a row for each.
///
/// # Errors
/// When a bug is not found, or a campaign cannot be run.
pub fn run(programs: &Path, planted: &[Planted<'_>], limit: Duration, at_once: usize) -> anyhow::Result<()> {
    println!("| planted | target | found by | s | programs |\n|---|---|---|---|---|");
    let (queue, failures) = (Mutex::new(planted.iter()), Mutex::new(Vec::new()));
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).next();
    let fail = |line: String| failures.lock().unwrap_or_else(PoisonError::into_inner).push(line);
    std::thread::scope(|scope| {
        for _ in 0..at_once {
            scope.spawn(|| {
                while let Some(bug) = next() {
                    match bug.hunt(programs, limit) {
                        Ok(hunt) => {
                            println!("| {} | {} | {hunt} |", bug.defect, bug.target.name);
                            if hunt.oracle.is_none() {
                                fail(format!("{} is not found", bug.defect));
                            }
                        }
                        Err(error) => fail(format!("{}: {error:#}", bug.defect)),
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().unwrap_or_else(PoisonError::into_inner);
    anyhow::ensure!(failures.is_empty(), "{}", failures.join("; "));
    Ok(())
}

impl Planted<'_> {
    /// A campaign that begins with the committed inputs alone: what earlier ones found would be half the way.
    fn hunt(&self, programs: &Path, limit: Duration) -> anyhow::Result<Hunt> {
        let place = folder().join("teeth").join(self.defect);
        if place.exists() {
            fs::remove_dir_all(&place)?;
        }
        let mut command =
            Campaign { programs, time: limit, jobs: 1, repeatable: false }.command(&self.target.name, &place)?;
        command.env("ZVMM_FUZZ_PLANT", self.defect);
        let start = Instant::now();
        let mut job = Job::start(&mut command, &place.join("log"))?;
        let status = loop {
            if let Some(status) = job.ended()? {
                break status;
            }
            sleep(POLL);
        };
        let took = start.elapsed();
        let said = job.take_said();
        anyhow::ensure!(status.success() || said.finding.is_some(), "ended without a word on any input");
        // The whole log: a long backtrace pushes the panic out of the last lines.
        let log = String::from_utf8_lossy(&fs::read(place.join("log"))?).into_owned();
        let oracle = said.finding.is_some().then(|| oracle(log.lines()));
        Ok(Hunt { took, programs: said.programs, oracle })
    }
}

/// Which oracle spoke: the one a panic names in brackets, else what kind of end it was.
fn oracle<'a>(lines: impl Iterator<Item = &'a str>) -> String {
    let mut after_panic = false;
    let mut found = None;
    for line in lines {
        if after_panic {
            let named = line.strip_prefix('[').and_then(|rest| rest.split_once(']')).map(|(name, _)| name);
            found.get_or_insert_with(|| named.unwrap_or("no panic").to_owned());
        }
        after_panic = line.starts_with("thread '") && line.contains("panicked at");
        for (sign, name) in [("ERROR: libFuzzer: timeout", "time"), ("ERROR: libFuzzer: out-of-memory", "memory")] {
            if line.contains(sign) {
                found.get_or_insert_with(|| name.to_owned());
            }
        }
    }
    found.unwrap_or_else(|| "crash".to_owned())
}

impl fmt::Display for Hunt {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { took, programs, oracle } = self;
        let oracle = oracle.as_deref().unwrap_or("**nobody**");
        write!(formatter, "{oracle} | {:.1} | {programs}", took.as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oracle_is_the_one_that_the_panic_names() {
        let named = ["thread '<unnamed>' (7) panicked at fuzz/src/oracle/ring.rs:1:2:", "[spec model] used twice", "x"];
        assert_eq!(oracle(named.into_iter()), "spec model");
        let unnamed = ["thread 'main' (7) panicked at a.rs:1:2:", "attempt to add with overflow"];
        assert_eq!(oracle(unnamed.into_iter()), "no panic");
        assert_eq!(oracle(["==7== ERROR: libFuzzer: timeout after 10 seconds"].into_iter()), "time");
        assert_eq!(oracle([].into_iter()), "crash");
    }

    #[test]
    fn the_gate_plants_different_bugs_each_once() {
        let target = Target {
            name: "t".to_owned(),
            covers: Vec::new(),
            gate_programs: 1,
            finds: ["A", "B", "C"].map(str::to_owned).into(),
        };
        let targets = [target];
        for count in 0..5 {
            let mut names: Vec<_> = some(every(&targets), count).into_iter().map(|bug| bug.defect).collect();
            names.sort_unstable();
            names.dedup();
            assert_eq!(names.len(), count.min(3));
        }
    }
}
