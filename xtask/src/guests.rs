//! `cargo xtask guests`: builds the bare-metal guests of `vmm/tests/guests`, which run on any `/dev/kvm`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};

use crate::paths;
use crate::toolchain::Toolchain;

/// Options of `cargo xtask guests`.
#[derive(clap::Args)]
pub struct Options {
    /// Lint them too
    #[arg(long)]
    clippy: bool,
}

/// Builds the guests and prints where they are.
///
/// # Errors
/// When the tool chain cannot be had, or a guest does not build or lint.
pub fn run(options: Options) -> anyhow::Result<()> {
    if options.clippy {
        let toolchain = Toolchain::unpack()?;
        let mut clippy = cargo(&toolchain, "check");
        clippy
            .env("RUSTC_WORKSPACE_WRAPPER", toolchain.clippy_driver())
            .env("CLIPPY_ARGS", "-Dwarnings__CLIPPY_HACKERY__");
        run_to_end("clippy", &mut clippy)?;
    }
    let folder = build()?;
    for name in names()? {
        println!("{}", folder.join(name).display());
    }
    Ok(())
}

/// Builds every guest and returns the folder that holds one ELF file for each, under its name. Cheap when nothing
/// changed.
///
/// # Errors
/// As [`run`].
pub fn build() -> anyhow::Result<PathBuf> {
    let toolchain = Toolchain::unpack()?;
    run_to_end("build", cargo(&toolchain, "build").arg("--quiet"))?;
    let built = build_folder().join("x86_64-unknown-none/release");
    let folder = paths::target().join("guests");
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    for name in names()? {
        copy_if_changed(&built.join(&name), &folder.join(&name))?;
    }
    Ok(folder)
}

fn sources() -> PathBuf {
    paths::workspace().join("vmm/tests/guests")
}

fn build_folder() -> PathBuf {
    paths::target().join("guests-build")
}

/// The guests: every file in `src/bin`.
fn names() -> anyhow::Result<Vec<String>> {
    let folder = sources().join("src/bin");
    let mut names = Vec::new();
    for entry in fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let path = entry?.path();
        if let (Some("rs"), Some(name)) =
            (path.extension().and_then(|end| end.to_str()), path.file_stem().and_then(|name| name.to_str()))
        {
            names.push(name.to_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// A command for the guests, which are a workspace of their own with a `.cargo/config.toml` that names target and flags:
/// cargo reads it from the folder it runs in.
fn cargo(toolchain: &Toolchain, verb: &str) -> Command {
    let mut command = toolchain.cargo();
    command.current_dir(sources()).args([verb, "--release", "--locked", "--target-dir"]).arg(build_folder());
    command
}

fn run_to_end(what: &str, command: &mut Command) -> anyhow::Result<()> {
    let status = command.status().with_context(|| format!("cannot start {what} of the guests"))?;
    if !status.success() {
        bail!("{what} of the guests failed");
    }
    Ok(())
}

/// Copies a file whose content differs, through a rename: a test that runs the old one keeps it whole.
fn copy_if_changed(from: &Path, to: &Path) -> anyhow::Result<()> {
    let content = fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
    if fs::read(to).is_ok_and(|old| old == content) {
        return Ok(());
    }
    let fresh = to.with_extension("new");
    fs::write(&fresh, content).with_context(|| format!("cannot write {}", fresh.display()))?;
    fs::rename(&fresh, to).with_context(|| format!("cannot write {}", to.display()))
}
