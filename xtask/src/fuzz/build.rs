//! Builds of the fuzz package. Each has its own folder, so that none evicts another.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::Context as _;

use super::{Target, folder, sources};
use crate::paths;

/// Flags are for what is built for this target only: with it named, cargo builds build scripts and macros without them.
pub(super) const TRIPLE: &str = "x86_64-unknown-linux-gnu";

/// What libFuzzer sees of a program. Unlike cargo-fuzz's builds, these do not report comparisons: programs are typed, so
/// that there are no magic numbers to be guessed, text has dictionaries, and the reports took two fifths of the time. Nor do
/// they bring a table of the counters' addresses, by which libFuzzer looks up every counter of each new input to count edges:
/// it is guided by the counters alone.
const COVERAGE_GUIDED: [&str; 3] =
    ["--cfg=fuzzing", "-Cpasses=sancov-module", "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters"];

/// Beside it: AddressSanitizer keeps the stack of each allocation, and walks it by frame pointers.
const ADDRESS_SANITIZER: [&str; 2] = ["-Zsanitizer=address", "-Cforce-frame-pointers=yes"];

/// Which packages get counters: all but the models, which judge what others do. Without a level the pass above adds none.
const COUNTED: [&str; 5] = [
    "-Zprofile-rustflags",
    "--config",
    "profile.release.rustflags=['-Cllvm-args=-sanitizer-coverage-level=3']",
    "--config",
    "profile.release.package.zvmm-fuzz-model.rustflags=[]",
];

/// How the targets are built.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Build {
    /// For campaigns: optimised, with the checks of a debug build.
    Fuzz,
    /// The same with AddressSanitizer.
    Asan,
    /// Counts what ran by line; without a fuzzer.
    Coverage,
}

impl Build {
    /// Builds the targets; returns the folder of their programs.
    ///
    /// # Errors
    /// When they do not build.
    pub fn programs(self, targets: &[&Target]) -> anyhow::Result<PathBuf> {
        let (name, flags): (_, Vec<&str>) = match self {
            Self::Fuzz => ("fuzz", COVERAGE_GUIDED.to_vec()),
            Self::Asan => ("asan", COVERAGE_GUIDED.into_iter().chain(ADDRESS_SANITIZER).collect()),
            Self::Coverage => ("coverage", vec!["-Cinstrument-coverage"]),
        };
        let into = folder().join("build").join(name);
        let mut command = Command::new(cargo());
        command
            .args(["build", "--quiet", "--release", "--locked", "--target", TRIPLE, "--manifest-path"])
            .arg(sources().join("Cargo.toml"))
            .arg("--target-dir")
            .arg(&into)
            .args(if self == Self::Coverage { &[] } else { COUNTED.as_slice() })
            .args(targets.iter().flat_map(|target| ["--bin", target.name.as_str()]))
            // One build for campaigns and for planted bugs: what finds those is what fuzzes.
            .args((self != Self::Coverage).then_some("--features=planted-defects"))
            .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
            // Sanitizers are there in every tool chain, as are flags by package, and unlocked in a nightly one only.
            .env("RUSTC_BOOTSTRAP", "1")
            .current_dir(paths::workspace())
            .stdin(Stdio::null());
        let status = command.status().context("cannot start cargo")?;
        anyhow::ensure!(status.success(), "the fuzz targets do not build (libFuzzer needs a C++ compiler: g++)");
        Ok(into.join(TRIPLE).join("release"))
    }
}

/// The tests of the fuzz package: among them the replay of every seed and regression, without a fuzzer.
///
/// # Errors
/// When one fails.
pub fn test() -> anyhow::Result<()> {
    let status = Command::new(cargo())
        .args(["test", "--quiet", "--locked", "--workspace", "--manifest-path"])
        .arg(sources().join("Cargo.toml"))
        // The same folder as the workspace's: most of what it needs is built there.
        .arg("--target-dir")
        .arg(paths::target())
        .current_dir(paths::workspace())
        .stdin(Stdio::null())
        .status()
        .context("cannot start cargo")?;
    anyhow::ensure!(status.success(), "a seed or regression has a finding, or a test of the fuzz package fails");
    Ok(())
}

pub(super) fn cargo() -> OsString {
    std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}
