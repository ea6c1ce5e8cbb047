//! `cargo xtask ...`: how people drive zvmm.

mod bench;
#[cfg(test)]
mod brand;
mod clients;
mod debian;
mod demo;
mod fuzz;
mod guests;
mod illumos;
mod lab;
mod paths;
mod spec;
mod test;
mod times;
mod toolchain;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Builds, runs and checks zvmm")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Boot a stock Debian guest with disk and network and show its console
    Demo(demo::Options),
    /// Run the tests: the gate lane, or with --full everything
    Test(test::Options),
    /// Run lab scenarios: real guests under an emulated machine with nested virtualization
    Lab(lab::Options),
    /// Fuzz a target: a campaign with progress, the replay of a finding, line coverage
    Fuzz(fuzz::Options),
    /// Build the bare-metal guests that run on any /dev/kvm
    Guests(guests::Options),
    /// Measure: start-up against its floor, system calls, memory
    Bench(bench::Options),
    /// Say which rules of virtio 1.3 are shown to be kept, and by what
    SpecReport(spec::Options),
    /// Type-check, lint and link the workspace for x86_64-unknown-illumos
    IllumosCheck(illumos::Options),
    /// What illumos-check has rustc link with
    #[command(hide = true)]
    IllumosLink(illumos::link::Options),
}

fn main() -> std::process::ExitCode {
    let result = match Cli::parse().command {
        Command::Demo(options) => demo::run(options),
        Command::Test(options) => test::run(options),
        Command::Lab(options) => lab::run(options),
        Command::Fuzz(options) => fuzz::run(options),
        Command::Guests(options) => guests::run(options),
        Command::Bench(options) => bench::run(options),
        Command::SpecReport(options) => spec::run(options),
        Command::IllumosCheck(options) => illumos::run(options),
        Command::IllumosLink(options) => illumos::link::run(options),
    };
    match result {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            std::process::ExitCode::FAILURE
        }
    }
}
