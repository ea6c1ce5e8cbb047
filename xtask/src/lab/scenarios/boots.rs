//! Boots of each kernel in each form, and the boot that figures are taken from.

use anyhow::ensure;

use super::super::kernel::Which;
use super::script::BOOT_S;
use super::{Scenario, Script, output};

const BANNER: &str = "dmesg | head -n 1";

/// The scenarios of this file.
pub fn all() -> Vec<Scenario> {
    let mut list = Vec::new();
    for which in Which::ALL {
        for elf in [false, true] {
            list.push(boot(which, elf));
        }
    }
    list.push(figures());
    list
}

fn boot(which: Which, elf: bool) -> Scenario {
    let form = if elf { "elf" } else { "bzimage" };
    Scenario::new(
        format!("boot-{}-{form}", which.name()),
        format!("Debian's {} cloud kernel as {form} reaches a shell and powers off", which.name()),
        move |_| Script::new().kernel(which, elf).ready().sample("ready").guest(BANNER).power_off(),
        |outcome, _| {
            let banner = output(outcome, BANNER)?.contains("Linux version");
            ensure!(banner, "no kernel banner in the guest's log");
            Ok(())
        },
    )
}

/// What the boot figures are taken from: 1 vCPU, 256 MiB, ELF kernel, a disk and an interface, read when the guest's init
/// starts and when its drivers are loaded.
fn figures() -> Scenario {
    Scenario::new(
        "figures",
        "exits, page faults and memory of a boot with a disk and an interface",
        |_| {
            Script::new()
                .kernel(Which::Stable, true)
                .nic()
                .disk(8)
                .expect("LAB-INIT", BOOT_S)
                .sample("init")
                .ready()
                .sample("ready")
                .power_off()
        },
        |outcome, _| {
            ensure!(outcome.samples.contains_key("init"), "no counters were read when init started");
            Ok(())
        },
    )
}
