//! `cargo xtask illumos-check`: everything that ships must type-check and lint for illumos, from the first commit on.
//!
//! `std` is built from its sources, because no package brings one for illumos. Nothing is linked: that is a later
//! check, with stub libraries.

use std::process::Command;

use anyhow::{Context as _, bail};

use crate::paths;
use crate::toolchain::Toolchain;

const TARGET: &str = "x86_64-unknown-illumos";

/// What runs on illumos. `xtask` and the benches drive Linux machines.
const PACKAGES: [&str; 5] = ["zvmm", "devices", "devices-host", "arch-x86_64", "firmware"];

/// Options of `cargo xtask illumos-check`.
#[derive(clap::Args, Default)]
pub struct Options {
    /// Only type-check: skip clippy
    #[arg(long)]
    no_clippy: bool,
}

/// Checks and lints every package that ships for illumos; warnings are errors.
///
/// # Errors
/// When the tool chain cannot be had, or a package does not check.
pub fn run(options: Options) -> anyhow::Result<()> {
    let toolchain = Toolchain::unpack()?;
    run_to_end("check", &mut check(&toolchain))?;
    if !options.no_clippy {
        let mut clippy = check(&toolchain);
        clippy
            .env("RUSTC_WORKSPACE_WRAPPER", toolchain.clippy_driver())
            .env("CLIPPY_ARGS", "-Dwarnings__CLIPPY_HACKERY__");
        run_to_end("clippy", &mut clippy)?;
    }
    println!("{TARGET}: {} pass", PACKAGES.join(", "));
    Ok(())
}

fn check(toolchain: &Toolchain) -> Command {
    let mut command = toolchain.cargo();
    command
        .args(["check", "-Zbuild-std=std,panic_abort", "--target", TARGET, "--target-dir"])
        .arg(paths::target().join("illumos"))
        .env("RUSTFLAGS", "-Dwarnings");
    for package in PACKAGES {
        command.args(["--package", package]);
    }
    command
}

fn run_to_end(what: &str, command: &mut Command) -> anyhow::Result<()> {
    let status = command.status().with_context(|| format!("cannot start {what}"))?;
    if !status.success() {
        bail!("{what} for {TARGET} failed");
    }
    Ok(())
}
