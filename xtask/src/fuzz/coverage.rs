//! Line coverage of a target's modules by its corpus, seeds and regressions.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::Context as _;
use serde::Deserialize;

use super::{Build, Target, build, files, folder, sources};
use crate::{debian, paths};

#[derive(Deserialize)]
struct Export {
    data: Vec<Data>,
}

#[derive(Deserialize)]
struct Data {
    files: Vec<FileCoverage>,
}

#[derive(Deserialize)]
struct FileCoverage {
    filename: PathBuf,
    summary: Summary,
}

#[derive(Deserialize)]
struct Summary {
    lines: Count,
}

#[derive(Deserialize)]
struct Count {
    count: u64,
    covered: u64,
}

/// Runs every input once in a build that counts lines, and prints a table. The lines themselves go to a file.
///
/// # Errors
/// When the build or the tools cannot be had, or an input has a finding.
pub fn report(target: &Target) -> anyhow::Result<()> {
    let program = Build::Coverage.programs(&[target])?.join(&target.name);
    let into = folder().join("coverage").join(&target.name);
    fs::create_dir_all(&into).with_context(|| format!("cannot create {}", into.display()))?;
    let raw = into.join("run.profraw");
    let profile = into.join("run.profdata");
    let inputs = [folder().join("corpus"), sources().join("seeds"), sources().join("regressions")]
        .map(|kind| kind.join(&target.name))
        .into_iter()
        .filter(|folder| !files(folder).is_empty());
    let status = Command::new(&program)
        .arg("--quiet")
        .args(inputs)
        .env("LLVM_PROFILE_FILE", &raw)
        .env_remove("LD_LIBRARY_PATH")
        .stdin(Stdio::null())
        .status()
        .with_context(|| format!("cannot start {}", program.display()))?;
    anyhow::ensure!(status.success(), "an input of the corpus has a finding");

    let tools = Tools::find()?;
    run(tools.command("llvm-profdata")?.args(["merge", "--sparse"]).arg(&raw).arg("-o").arg(&profile))?;
    let view = |verb: &str| -> anyhow::Result<Command> {
        let mut command = tools.command("llvm-cov")?;
        command.arg(verb).arg(&program).arg(format!("--instr-profile={}", profile.display()));
        Ok(command)
    };
    let export = run(view("export")?.arg("--summary-only"))?;
    let export: Export = serde_json::from_slice(&export).context("llvm-cov export")?;
    let covered: Vec<PathBuf> = target.covers.iter().map(|source| paths::workspace().join(source)).collect();
    let mut counted: Vec<FileCoverage> = export.data.into_iter().flat_map(|data| data.files).collect();
    counted.retain(|file| covered.iter().any(|source| file.filename.starts_with(source)));
    counted.sort_by(|a, b| a.filename.cmp(&b.filename));
    anyhow::ensure!(!counted.is_empty(), "the program has no line of {}", target.covers.join(", "));

    println!("{:<14} line coverage", target.name);
    let (mut lines, mut hit) = (0, 0);
    for FileCoverage { filename, summary: Summary { lines: Count { count, covered } } } in &counted {
        let name = filename.strip_prefix(paths::workspace()).unwrap_or(filename);
        println!("  {:<44} {covered:>5} of {count:>5}  {:>5.1} %", name.display(), percent(*covered, *count));
        lines += count;
        hit += covered;
    }
    println!("  {:<44} {hit:>5} of {lines:>5}  {:>5.1} %", "all", percent(hit, lines));
    let text = run(view("show")?.arg("--sources").args(counted.iter().map(|file| &file.filename)))?;
    let listing = into.join("lines.txt");
    fs::write(&listing, text).with_context(|| format!("cannot write {}", listing.display()))?;
    println!("  every line with its count: {}", listing.display());
    Ok(())
}

fn percent(part: u64, whole: u64) -> f64 {
    part as f64 * 100.0 / whole.max(1) as f64
}

/// LLVM's tools for coverage.
enum Tools {
    /// The tool chain's own.
    Toolchain(PathBuf),
    /// Debian's, unpacked.
    Debian(PathBuf),
}

impl Tools {
    fn find() -> anyhow::Result<Self> {
        let sysroot = Command::new("rustc").args(["--print", "sysroot"]).output().context("cannot run rustc")?;
        let sysroot = PathBuf::from(String::from_utf8(sysroot.stdout)?.trim_end());
        let own = sysroot.join("lib/rustlib").join(build::TRIPLE).join("bin");
        if own.join("llvm-cov").is_file() && own.join("llvm-profdata").is_file() {
            return Ok(Self::Toolchain(own));
        }
        // The oldest LLVM that reads what today's rustc writes, and the newest Debian 12 has.
        Ok(Self::Debian(debian::unpack("llvm", &["llvm-19"])?))
    }

    fn command(&self, program: &str) -> anyhow::Result<Command> {
        match self {
            Self::Toolchain(bin) => Ok(Command::new(bin.join(program))),
            Self::Debian(root) => debian::command(root, &format!("usr/lib/llvm-19/bin/{program}")),
        }
    }
}

/// Runs a command to its end; returns its standard output.
fn run(command: &mut Command) -> anyhow::Result<Vec<u8>> {
    let output = command
        .env_remove("LD_LIBRARY_PATH")
        .output()
        .with_context(|| format!("cannot start {}", command.get_program().display()))?;
    anyhow::ensure!(
        output.status.success(),
        "{command:?} ended with {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr).trim_end()
    );
    Ok(output.stdout)
}
