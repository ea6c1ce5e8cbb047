//! The scenarios: what each guest is, what is done with it, and what must be seen.

mod attacker;
mod boots;
mod demo;
mod devices;
mod life_cycle;
mod link;
mod network;
mod script;
mod shapes;
mod storage;
mod zones;

pub use demo::{demo, demo_sights};
pub use script::{CPU, Script, WARNINGS};
pub use shapes::{LSCPU, shows_topology};
pub use storage::{LOAD_S, long};
pub use zones::PLAYER;

use anyhow::Context as _;

use super::job::{Outcome, Run};
use super::kernel::Which;
use super::vmm::{Machine, Vmm};

/// One test of the lab.
pub struct Scenario {
    /// Its name.
    pub name: String,
    /// What it shows.
    pub about: String,
    /// Memory the outer machine needs, MiB.
    pub outer_memory_mib: u64,
    /// The outer machine's kernel.
    pub outer_kernel: Which,
    fits: fn(Vmm) -> bool,
    build: Box<dyn Fn(Vmm) -> Script + Send + Sync>,
    check: Check,
}

type Check = Box<dyn Fn(&Outcome, Vmm) -> anyhow::Result<()> + Send + Sync>;

impl Scenario {
    fn new(
        name: impl Into<String>,
        about: impl Into<String>,
        build: impl Fn(Vmm) -> Script + Send + Sync + 'static,
        check: impl Fn(&Outcome, Vmm) -> anyhow::Result<()> + Send + Sync + 'static,
    ) -> Self {
        Self {
            name: name.into(),
            about: about.into(),
            outer_memory_mib: 2048,
            outer_kernel: Which::Stable,
            fits: |_| true,
            build: Box::new(build),
            check: Box::new(check),
        }
    }

    /// Only with machines that have what it is about.
    fn only_where(self, fits: fn(Vmm) -> bool) -> Self {
        Self { fits, ..self }
    }

    /// Whether a VMM's machine has what this is about.
    #[must_use]
    pub fn fits(&self, vmm: Vmm) -> bool {
        (self.fits)(vmm)
    }

    /// In an outer machine with so much memory.
    fn outer_memory(self, mib: u64) -> Self {
        Self { outer_memory_mib: mib, ..self }
    }

    /// In an outer machine with another kernel. Where guests run directly it is the machine's own.
    fn outer_kernel(self, outer_kernel: Which) -> Self {
        Self { outer_kernel, ..self }
    }

    /// The run of this scenario with a VMM.
    #[must_use]
    pub fn run(&self, vmm: Vmm) -> Run {
        self.run_with(vmm, |_| ())
    }

    /// The same with something about the guest changed.
    #[must_use]
    pub fn run_with(&self, vmm: Vmm, change: impl FnOnce(&mut Machine)) -> Run {
        let mut script = (self.build)(vmm);
        change(&mut script.machine);
        script.finish(&self.name, vmm)
    }

    /// The guest that a VMM gets.
    #[must_use]
    pub fn machine(&self, vmm: Vmm) -> Machine {
        (self.build)(vmm).machine
    }

    /// What must be true after a run that took all its steps.
    ///
    /// # Errors
    /// Says what is not.
    pub fn check(&self, outcome: &Outcome, vmm: Vmm) -> anyhow::Result<()> {
        (self.check)(outcome, vmm)
    }
}

/// All scenarios that take seconds, in the order they run; [`long`] and [`networks`] have the others.
#[must_use]
pub fn all() -> Vec<Scenario> {
    [
        boots::all(),
        shapes::all(),
        devices::all(),
        network::all(),
        link::all(),
        storage::all(),
        life_cycle::all(),
        attacker::all(),
        zones::all(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Networks under load, each in a minute or several.
#[must_use]
pub fn networks() -> Vec<Scenario> {
    network::long()
}

/// For scenarios whose steps prove everything.
fn nothing_more(_outcome: &Outcome, _vmm: Vmm) -> anyhow::Result<()> {
    Ok(())
}

/// The outputs of a command that ran several times.
fn outputs<'a>(outcome: &'a Outcome, command: &str) -> Vec<&'a str> {
    outcome.outputs.iter().filter(|(c, _)| c == command).map(|(_, output)| output.as_str()).collect()
}

fn output<'a>(outcome: &'a Outcome, command: &str) -> anyhow::Result<&'a str> {
    outputs(outcome, command).first().copied().with_context(|| format!("`{command}` was not run"))
}

#[cfg(test)]
mod tests {
    use super::super::job::Step;
    use super::super::vmm::{Profile, Program};
    use super::*;

    const VMMS: [Vmm; 6] = [
        Vmm::ZVMM,
        Vmm::MICRO,
        Vmm { program: Program::ZvmmDoubleBhyve, profile: Profile::Bhyve },
        Vmm { program: Program::ZvmmDoubleIllumosKvm, profile: Profile::I440fx },
        Vmm::Q35,
        Vmm::MICROVM,
    ];

    fn everything() -> Vec<Scenario> {
        all().into_iter().chain(long(LOAD_S)).chain(networks()).collect()
    }

    #[test]
    fn every_scenario_has_a_time() {
        let times = crate::times::Times::read().unwrap();
        for scenario in everything() {
            assert!(times.seconds(&format!("lab/{}", scenario.name)).is_some(), "{}", scenario.name);
        }
    }

    #[test]
    fn every_scenario_has_a_name_of_its_own() {
        let all = everything();
        let mut names: Vec<&str> = all.iter().map(|s| s.name.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all.len());
    }

    #[test]
    fn every_scenario_ends_its_guest_whoever_runs_it() {
        for scenario in everything() {
            for vmm in VMMS {
                let run = scenario.run(vmm);
                assert!(matches!(run.steps.last(), Some(Step::Exit { .. })), "{} ends nothing", scenario.name);
            }
        }
    }

    /// Where a guest ends with its power it has a shell that can be asked for its log.
    #[test]
    fn every_guest_that_ends_with_its_power_is_asked_for_its_warnings() {
        for scenario in everything() {
            let run = scenario.run(Vmm::ZVMM);
            // The attacker is init itself, and a player speaks with its guest alone.
            if scenario.name == attacker::NAME || run.command[0] == zones::PLAYER {
                continue;
            }
            let asked = run.steps.iter().any(|s| matches!(s, Step::Guest { command, .. } if command == WARNINGS));
            let powered_off = matches!(run.steps.last(), Some(Step::Exit { status: Some(0), .. }));
            assert!(asked || !powered_off, "{} does not look at its warnings", scenario.name);
        }
    }

    #[test]
    fn a_run_that_shows_nothing_passes_no_check_that_looks_at_something() {
        let blind = ["reboot-5", "sigterm", "panic-exit"];
        for scenario in everything().into_iter().filter(|scenario| !blind.contains(&scenario.name.as_str())) {
            let checked = scenario.check(&Outcome::default(), Vmm::ZVMM);
            assert!(checked.is_err(), "{} passes with nothing seen", scenario.name);
        }
    }
}
