//! `cargo xtask demo`: a stock Debian guest with its root on virtio-blk and a network, on the console of whoever asks.

use crate::lab::Lab;
use crate::lab::job::{Job, Outcome};
use crate::lab::scenarios;
use crate::lab::vmm::Vmm;

/// Options of `cargo xtask demo`.
#[derive(clap::Args)]
pub struct Options {
    #[command(flatten)]
    vmm: Vmm,
}

/// Boots the guest, shows its console, and says what was seen.
///
/// # Errors
/// When one of the four things the demo is about was not seen.
pub fn run(options: Options) -> anyhow::Result<()> {
    options.vmm.check()?;
    let lab = Lab::prepare(&[options.vmm])?;
    println!("demo: {} runs a Debian guest {}", options.vmm.name(), lab.place.describe());
    let scenario = scenarios::demo();
    let job = Job { runs: vec![scenario.run(options.vmm)] };
    let report = lab.run(
        &format!("demo-{}", options.vmm.name()),
        (crate::lab::OUTER_CPUS, scenario.outer_memory_mib),
        &job,
        true,
    )?;
    let nothing = Outcome::default();
    let outcome = report.outcomes.first().unwrap_or(&nothing);
    let mut missing = Vec::new();
    println!();
    for (what, seen) in scenarios::demo_sights(outcome) {
        match seen {
            Some(evidence) => println!("demo: {what}: {evidence}"),
            None => {
                println!("demo: {what}: NOT SEEN");
                missing.push(what);
            }
        }
    }
    println!("demo: {:.0} s; console log: {}", report.wall.as_secs_f64(), report.log.display());
    if let Some(failure) = &outcome.failure {
        anyhow::bail!("the demo failed: {failure}");
    }
    anyhow::ensure!(missing.is_empty(), "the demo did not show: {}", missing.join(", "));
    Ok(())
}
