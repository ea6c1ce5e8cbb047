//! `cargo xtask illumos-check`: everything that ships must type-check, lint and link for illumos, without an illumos.
//!
//! `std` is built from its sources, because no package brings one for illumos. The release binary is linked against stub
//! libraries ([`link`]), and what it imports is held against a committed list and the rules of the zone ([`imports`]).

mod elf;
mod imports;
pub mod link;
#[cfg(test)]
mod sources;

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, bail};

use self::elf::Binary;
use self::imports::{LIST, List, Problem};
use crate::paths;
use crate::toolchain::Toolchain;

const TARGET: &str = "x86_64-unknown-illumos";

/// What runs on illumos. `xtask`, the benches and the kernel doubles drive Linux machines.
const PACKAGES: [&str; 5] = ["zvmm", "devices", "devices-host", "arch-x86_64", "firmware"];

/// Options of `cargo xtask illumos-check`.
#[derive(clap::Args, Default)]
pub struct Options {
    /// Skip clippy
    #[arg(long)]
    no_clippy: bool,
    /// Skip building and linking the release binary
    #[arg(long)]
    no_link: bool,
}

/// Checks and lints every package that ships for illumos, and links the binary; warnings are errors.
///
/// # Errors
/// When the tool chain cannot be had, or something does not check or link.
pub fn run(options: Options) -> anyhow::Result<()> {
    let toolchain = Toolchain::unpack()?;
    // Beside each other: the last step of a release build takes one core a minute.
    std::thread::scope(|scope| {
        let link = (!options.no_link).then(|| scope.spawn(|| check_link(&toolchain)));
        check_sources(&toolchain, &options)?;
        link.map_or(Ok(()), |link| link.join().expect("a check that links does not panic"))
    })
}

/// Checks and lints the sources.
fn check_sources(toolchain: &Toolchain, options: &Options) -> anyhow::Result<()> {
    let mut check = cargo(toolchain, "check");
    for package in PACKAGES {
        check.args(["--package", package]);
    }
    run_to_end("check", &mut check)?;
    if !options.no_clippy {
        // Cargo keeps the two apart by the wrapper.
        check
            .env("RUSTC_WORKSPACE_WRAPPER", toolchain.clippy_driver())
            .env("CLIPPY_ARGS", "-Dwarnings__CLIPPY_HACKERY__");
        run_to_end("clippy", &mut check)?;
    }
    println!("{TARGET}: {} pass", PACKAGES.join(", "));
    Ok(())
}

/// Links the release binary and judges what it asks of the system.
fn check_link(toolchain: &Toolchain) -> anyhow::Result<()> {
    let path = paths::workspace().join(LIST);
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let list = List::parse(&text).or_else(|problems| refuse(&problems))?;
    let binary = release_binary();
    let compiler = link::prepare(&list, &text, &target_folder(), &binary)?;
    let mut build = cargo(toolchain, "build");
    build
        .args(["--release", "--package", "zvmm", "--bin", "zvmm"])
        .env("CARGO_TARGET_X86_64_UNKNOWN_ILLUMOS_LINKER", compiler);
    run_to_end("link", &mut build)?;
    let bytes = fs::read(&binary).with_context(|| format!("cannot read {}", binary.display()))?;
    let found = Binary::read(&bytes).with_context(|| format!("{}", binary.display()))?;
    let problems = list.problems(&found);
    if !problems.is_empty() {
        refuse(&problems)?;
    }
    println!(
        "{TARGET}: zvmm links: {} names from {}, all known to illumos and allowed in the zone",
        found.imports.len(),
        found.needed.join(", ")
    );
    Ok(())
}

fn refuse<T>(problems: &[Problem]) -> anyhow::Result<T> {
    for problem in problems {
        eprintln!("error: {problem}");
    }
    bail!("zvmm asks for what illumos or its zone does not have: {} problems, see above", problems.len())
}

fn target_folder() -> PathBuf {
    paths::target().join("illumos")
}

fn release_binary() -> PathBuf {
    target_folder().join(TARGET).join("release/zvmm")
}

fn cargo(toolchain: &Toolchain, verb: &str) -> Command {
    let mut command = toolchain.cargo();
    command
        .args([verb, "-Zbuild-std=std,panic_abort", "--target", TARGET, "--target-dir"])
        .arg(target_folder())
        .env("RUSTFLAGS", "-Dwarnings");
    command
}

fn run_to_end(what: &str, command: &mut Command) -> anyhow::Result<()> {
    let status = command.status().with_context(|| format!("cannot start {what}"))?;
    if !status.success() {
        bail!("{what} for {TARGET} failed");
    }
    Ok(())
}
