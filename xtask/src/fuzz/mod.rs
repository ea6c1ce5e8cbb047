//! `cargo xtask fuzz`: campaigns of the fuzz targets, without cargo-fuzz.

mod build;
mod campaign;
mod coverage;
mod finding;
mod job;
mod package;
mod seeds;
mod teeth;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};

use crate::paths;

pub use build::Build;
pub use campaign::Campaign;
pub use package::{Target, targets};

/// Options of `cargo xtask fuzz`.
#[derive(clap::Args)]
pub struct Options {
    /// Which target; --list names them
    #[arg(required_unless_present_any = ["list", "teeth", "seeds"])]
    target: Option<String>,
    /// Name the targets
    #[arg(long)]
    list: bool,
    /// Minutes to fuzz, on top of --seconds [default: 10, when neither is given]
    #[arg(long)]
    minutes: Option<u64>,
    /// Seconds to fuzz
    #[arg(long)]
    seconds: Option<u64>,
    /// Processes at a time, which share one corpus
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=256))]
    jobs: u32,
    /// Build with AddressSanitizer: finds leaks and what `unsafe` code gets wrong, at a third of the speed
    #[arg(long)]
    asan: bool,
    /// Say what this input means, a line a step, and run it: no campaign
    #[arg(long, value_name = "FILE", conflicts_with_all = ["minutes", "seconds", "coverage"])]
    replay: Option<PathBuf>,
    /// Line coverage of the target's modules by the corpus, after the campaign (which --seconds 0 leaves out)
    #[arg(long)]
    coverage: bool,
    /// Plant every bug that the target (or any target) is to find, one at a time, and see how long it stays unfound
    #[arg(long, conflicts_with_all = ["minutes", "seconds", "coverage", "replay", "asan"])]
    teeth: bool,
    /// Make the seeds anew that come from a Linux boot: record one in the lab, or take this record of one
    #[arg(long, value_name = "RECORD", num_args = 0..=1, exclusive = true)]
    seeds: Option<Option<PathBuf>>,
}

/// Runs a campaign, or what was asked for in its place.
///
/// # Errors
/// When there is no such target, it does not build, or the campaign has a finding.
pub fn run(options: Options) -> anyhow::Result<()> {
    let all = targets()?;
    if options.list {
        for Target { name, covers, .. } in &all {
            println!("{name:<16} {}", covers.join(" "));
        }
        return Ok(());
    }
    if let Some(record) = options.seeds {
        return seeds::make(record.as_deref());
    }
    if options.teeth {
        return try_teeth(&all, options.target.as_deref(), options.jobs as usize);
    }
    let name = options.target.context("no target is named")?;
    let Some(target) = all.iter().find(|target| target.name == name) else {
        let names: Vec<_> = all.iter().map(|target| target.name.as_str()).collect();
        bail!("there is no target {name}; the targets are {}", names.join(", "));
    };
    let build = if options.asan { Build::Asan } else { Build::Fuzz };
    if let Some(file) = options.replay {
        let programs = build.programs(&[target])?;
        return finding::replay(&programs.join(&target.name), &file);
    }
    let time = match (options.minutes, options.seconds) {
        (None, None) => Duration::from_secs(600),
        (minutes, seconds) => Duration::from_secs(minutes.unwrap_or(0) * 60 + seconds.unwrap_or(0)),
    };
    let campaign = match time.is_zero() {
        true => Ok(()),
        false => build.programs(&[target]).and_then(|programs| {
            Campaign { programs: &programs, time, jobs: options.jobs, repeatable: false }.run(target)
        }),
    };
    if options.coverage {
        coverage::report(target)?;
    }
    campaign
}

/// Hunts the planted bugs of one target, or of all.
fn try_teeth(all: &[Target], target: Option<&str>, at_once: usize) -> anyhow::Result<()> {
    let targets: Vec<&Target> = all.iter().filter(|each| target.is_none_or(|name| each.name == name)).collect();
    anyhow::ensure!(!targets.is_empty(), "there is no target {}", target.unwrap_or_default());
    let programs = Build::Fuzz.programs(&targets)?;
    let planted: Vec<_> = targets.into_iter().flat_map(|target| teeth::every(std::slice::from_ref(target))).collect();
    teeth::run(&programs, &planted, teeth::LIMIT, at_once)
}

/// Plants a few bugs, others each time: each is to be found in the gate's time.
///
/// # Errors
/// When one is not found.
pub fn some_teeth() -> anyhow::Result<()> {
    let targets = targets()?;
    let planted = teeth::some(teeth::every(&targets), teeth::IN_GATE);
    let programs = Build::Fuzz.programs(&targets.iter().collect::<Vec<_>>())?;
    teeth::run(&programs, &planted, teeth::GATE_LIMIT, 2)
}

/// Every planted bug, at length.
///
/// # Errors
/// When one is not found.
pub fn all_teeth() -> anyhow::Result<()> {
    try_teeth(&targets()?, None, 2)
}

/// Replays every seed and regression, then runs every target for `time`, as many at once as there are cores to share. What
/// the gate runs is `repeatable`: no change is held up by what another one left behind.
///
/// # Errors
/// When something does not build or has a finding; all targets had their time before.
pub fn all(time: Duration, build: Build, repeatable: bool) -> anyhow::Result<()> {
    const AT_ONCE: usize = 2;
    build::test()?;
    let targets = targets()?;
    let programs = build.programs(&targets.iter().collect::<Vec<_>>())?;
    let campaign = Campaign { programs: &programs, time, jobs: 1, repeatable };
    let mut failures = campaign.run_all(&targets, AT_ONCE);
    failures.sort();
    anyhow::ensure!(failures.is_empty(), "{}", failures.join("; "));
    Ok(())
}

/// Where campaigns keep what they make: builds, corpora, findings, logs.
fn folder() -> PathBuf {
    paths::target().join("fuzz")
}

/// The fuzz package.
fn sources() -> PathBuf {
    paths::workspace().join("fuzz")
}

/// The files of a folder, sorted; none where there is no such folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(|path| path.is_file()).collect();
    files.sort();
    files
}
