//! What is done with a finding: made smaller, explained, kept.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, anyhow, bail};

use super::Target;
use super::job::Said;
use crate::paths;

/// How long a finding is made smaller.
const MINIMISE_SECONDS: u32 = 20;

/// A command that runs the program of a target.
pub fn command(program: &Path) -> Command {
    let mut command = Command::new(program);
    command
        .env("RUST_BACKTRACE", "1")
        // Rust's standard library is one object with and one without the sanitizer's redzones.
        .env("ASAN_OPTIONS", "detect_odr_violation=0")
        .env_remove("LD_LIBRARY_PATH");
    command
}

/// Says what an input means and runs it.
///
/// # Errors
/// When it has a finding, or cannot be read.
pub fn replay(program: &Path, file: &Path) -> anyhow::Result<()> {
    // The program's own working directory is the caller's, as the path is.
    let file = fs::canonicalize(file).with_context(|| format!("cannot read {}", file.display()))?;
    let status = command(program).env("ZVMM_FUZZ_REPLAY", &file).status()?;
    if !status.success() {
        bail!("{}: a finding ({status})", file.display());
    }
    Ok(())
}

/// Prints all there is to know about a finding; returns the line that stands for it.
pub fn report(program: &Path, target: &Target, said: Said) -> anyhow::Error {
    for line in &said.tail {
        println!("{line}");
    }
    let Some(file) = said.finding else {
        return anyhow!("ended without a word on any input: target/fuzz/logs/{} has the rest", target.name);
    };
    let file = minimise(program, &file).unwrap_or(file);
    println!("== what the input means");
    if let Err(error) = replay(program, &file) {
        println!("{error:#}");
    }
    let shown = file.strip_prefix(paths::workspace()).unwrap_or(&file).display();
    println!("== to see it again: cargo xtask fuzz {} --replay {shown}", target.name);
    println!("== when it is mended: git mv into fuzz/regressions/{}/, under a name that says what it was", target.name);
    anyhow!("a finding: {shown}")
}

/// A smaller input with the same end. Only for crashes: what is slow or large takes its time each try.
fn minimise(program: &Path, file: &Path) -> Option<PathBuf> {
    let name = file.file_name()?.to_str()?;
    if !name.starts_with("crash-") {
        return None;
    }
    let smaller = file.with_file_name(format!("{name}.small"));
    let end = command(program)
        .args(["-minimize_crash=1", &format!("-max_total_time={MINIMISE_SECONDS}")])
        .arg(format!("-exact_artifact_path={}", smaller.display()))
        .arg(file)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    // Its exit status says nothing of use: running out of time is how it ends.
    end.ok()?;
    let len = |path: &Path| fs::metadata(path).map(|metadata| metadata.len()).ok();
    (len(&smaller)? < len(file)?).then_some(smaller)
}
