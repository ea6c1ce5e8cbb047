//! `cargo xtask bench`: figures, each with the floor it is measured against, taken in one loop.

mod boot;
mod disk;
mod loads;
mod memory;
mod net;
mod start;
mod syscalls;
mod zone;

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, bail};

use crate::{guests, paths};

/// Options of `cargo xtask bench`.
#[derive(clap::Args)]
pub struct Options {
    #[command(subcommand)]
    bench: Bench,
}

#[derive(clap::Subcommand)]
enum Bench {
    /// Process start to first guest instruction, against the KVM calls that cannot be avoided; system calls; memory
    Start(start::Options),
    /// A stock guest's boot under zvmm and qemu in turn: time, CPU time, exits, page faults, memory
    Boot(boot::Options),
    /// A stock guest's reads of a disk under zvmm and qemu in turn: exits, CPU time and operations a second
    Disk(disk::Options),
    /// A stock guest's TCP with its host under zvmm and qemu in turn: exits, CPU time, round trips and MiB a second
    Net(net::Options),
    /// An idle stock guest of the kvm brand's example under zvmm and under qemu in turn: memory, CPU time and wake-ups
    Zone(zone::Options),
}

/// Runs a bench and prints its tables.
///
/// # Errors
/// When something does not build or run, or a figure is beyond its limit and `--check` was given.
pub fn run(options: Options) -> anyhow::Result<()> {
    match options.bench {
        Bench::Start(options) => start::run(&options),
        Bench::Boot(options) => boot::run(&options),
        Bench::Disk(options) => disk::run(&options),
        Bench::Net(options) => net::run(&options),
        Bench::Zone(options) => zone::run(&options),
    }
}

const TARGET: &str = "x86_64-unknown-linux-musl";

/// The programs under test: as `cargo dist` builds them, static and stripped.
struct Programs {
    zvmm: PathBuf,
    floor: PathBuf,
    guests: PathBuf,
}

impl Programs {
    fn build() -> anyhow::Result<Self> {
        // The floor is built like zvmm, or a dynamic linker would be in one of them only.
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let status = Command::new(cargo)
            .current_dir(paths::workspace())
            .args(["build", "--quiet", "--profile", "dist", "--target", TARGET, "--config", ".cargo/dist.toml"])
            .args(["--package", "zvmm", "--package", "benches", "--bins"])
            .status()
            .context("cannot start cargo")?;
        if !status.success() {
            bail!("the programs under test do not build (is there a `rustup target add {TARGET}`?)");
        }
        let folder = paths::target().join(TARGET).join("dist");
        Ok(Self { zvmm: folder.join("zvmm"), floor: folder.join("start-floor"), guests: guests::build()? })
    }

    /// `zvmm run` with a guest, one vCPU and its serial port on standard output.
    fn zvmm(&self, guest: &str, memory_mib: u32, more: &[&str]) -> Vec<String> {
        let memory = format!("{memory_mib}M");
        let kernel = self.guests.join(guest).display().to_string();
        let run = ["run", "--cpus", "1", "--memory", &memory, "--serial", "stdio", "--kernel", &kernel];
        let zvmm = self.zvmm.display().to_string();
        [zvmm.as_str()].iter().chain(&run).chain(more).map(|word| (*word).to_owned()).collect()
    }
}

/// A process that is killed when the bench is done with it: a guest that resets for ever ends in no other way.
struct Running(Child);

impl Running {
    fn start(command: &mut Command) -> anyhow::Result<Self> {
        // cargo's own makes the dynamic linker look for every library in a dozen folders.
        let child = command
            .env_remove("LD_LIBRARY_PATH")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("cannot start {}", command.get_program().display()))?;
        Ok(Self(child))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
