//! Reboot, power button, panic, pause.

use anyhow::{Context as _, ensure};

use super::super::job::{Outcome, Step};
use super::script::BOOT_S;
use super::{Scenario, Script, nothing_more, output};

const SIGTERM: i32 = 15;
/// zvmm's exit status for a guest that reset itself, as `zvmm run --help` lists it.
const GUEST_RESET: i32 = 5;

/// The scenarios of this file.
pub fn all() -> Vec<Scenario> {
    vec![reboots(), sigterm(), panic(), panic_exit(), pause("pause", true), pause("pause-no-kvmclock", false)]
}

fn reboots() -> Scenario {
    Scenario::new(
        "reboot-5",
        "five reboots from inside the guest, then power-off",
        |_| {
            let mut script = Script::new().limit(60 + 6 * BOOT_S).ready();
            for _ in 0..5 {
                script = script.send("reboot -f\n").ready();
            }
            script.power_off()
        },
        nothing_more,
    )
}

fn sigterm() -> Scenario {
    Scenario::new(
        "sigterm",
        "SIGTERM is the power button: a Debian guest shuts down cleanly",
        |vmm| {
            let script =
                Script::new().debian_root().limit(240).ready_within(150).guest("touch /var/tmp/unsynced").warnings();
            // For qemu SIGTERM is the plug, not the button.
            let script = if vmm.is_zvmm() {
                script.step(Step::Signal { number: SIGTERM }).step(Step::Signal { number: SIGTERM })
            } else {
                script.qmp("system_powerdown")
            };
            script.expect("LAB-DOWN poweroff", 60).exit(30, Some(0))
        },
        nothing_more,
    )
}

const CRASH: &str = "echo c > /proc/sysrq-trigger\n";

fn panic() -> Scenario {
    Scenario::new(
        "panic",
        "after a kernel panic with panic=-1 the guest starts again in the same process, and the reset is counted",
        |vmm| {
            let script = Script::new().limit(60 + 2 * BOOT_S).ready().send(CRASH).expect("Kernel panic", 30).ready();
            // The command is zvmm's own.
            let script = if vmm.is_zvmm() { script.qmp("query-status").qmp("query-stats") } else { script };
            script.power_off()
        },
        |outcome, vmm| {
            ensure!(outcome.end.as_deref() == Some("exit 0"), "the VMM ended with {:?}", outcome.end);
            if !vmm.is_zvmm() {
                return Ok(());
            }
            let reply = |key: &str| outcome.replies.iter().find_map(|reply| reply["return"].get(key));
            let (status, resets) = (reply("status"), reply("resets"));
            ensure!(status == Some(&"running".into()), "after the panic the guest is {status:?}");
            ensure!(resets == Some(&1.into()), "resets counted: {resets:?}, not 1");
            Ok(())
        },
    )
}

fn panic_exit() -> Scenario {
    Scenario::new(
        "panic-exit",
        "with --on-reset exit the same panic ends the process with the status of a guest's reset",
        |vmm| {
            let status = if vmm.is_zvmm() { GUEST_RESET } else { 0 };
            Script::new()
                .with(|machine| machine.reset_ends = true)
                .ready()
                .send(CRASH)
                .expect("Kernel panic", 30)
                .exit(30, Some(status))
        },
        nothing_more,
    )
}

const CLOCKSOURCE: &str = "cat /sys/devices/system/clocksource/clocksource0/current_clocksource";

fn pause(name: &str, kvmclock: bool) -> Scenario {
    Scenario::new(
        name,
        "a second of pause leaves the guest's realtime within 50 ms of the host's",
        move |_| {
            Script::new()
                .with(|machine| machine.kvmclock = kvmclock)
                .ready()
                .guest(CLOCKSOURCE)
                .step(Step::ClockOffset { name: "before".to_owned() })
                .qmp("stop")
                .step(Step::Sleep { ms: 1000 })
                .qmp("cont")
                .step(Step::ClockOffset { name: "after".to_owned() })
                .power_off()
        },
        move |outcome, vmm| paused_well(outcome, kvmclock && vmm.has_kvmclock()),
    )
}

fn paused_well(outcome: &Outcome, kvmclock: bool) -> anyhow::Result<()> {
    let source = output(outcome, CLOCKSOURCE)?.trim();
    // A guest without a clock counts its timer's interrupts, and loses every pause; it was given something better.
    ensure!((source == "kvm-clock") == kvmclock && !source.contains("jiffies"), "the guest's clock is {source}");
    let offset = |name: &str| outcome.offsets_ms.get(name).copied().context("no clock reading");
    let moved = offset("after")? - offset("before")?;
    ensure!(moved.abs() < 50.0, "the guest's clock ({source}) is {moved:.0} ms off after the pause");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::super::vmm::Vmm;
    use super::*;

    fn paused(source: &str, after_ms: f64) -> Outcome {
        let mut outcome = Outcome::default();
        outcome.outputs.push((CLOCKSOURCE.to_owned(), format!("{source}\n")));
        outcome.offsets_ms.insert("before".to_owned(), 5.0);
        outcome.offsets_ms.insert("after".to_owned(), after_ms);
        outcome
    }

    #[test]
    fn a_clock_that_lost_or_won_time_over_a_pause_is_told_from_one_that_kept_it() {
        assert!(paused_well(&paused("kvm-clock", 40.0), true).is_ok());
        assert!(paused_well(&paused("acpi_pm", -40.0), false).is_ok());
        assert!(paused_well(&paused("kvm-clock", 1005.0), true).is_err());
        assert!(paused_well(&paused("tsc", -50.0), false).is_err());
    }

    #[test]
    fn a_guest_with_the_wrong_clock_shows_nothing() {
        for (source, kvmclock) in [("tsc", true), ("kvm-clock", false), ("refined-jiffies", false), ("", true)] {
            assert!(paused_well(&paused(source, 5.0), kvmclock).is_err(), "{source}");
        }
    }

    #[test]
    fn a_panic_that_was_not_counted_or_ended_the_process_is_noticed() {
        let panic = panic();
        let mut outcome = Outcome { end: Some("exit 0".to_owned()), ..Outcome::default() };
        for (status, resets, right) in [("running", 1, true), ("running", 0, false), ("paused", 1, false)] {
            outcome.replies = vec![
                serde_json::json!({"return": {"status": status}}),
                serde_json::json!({"return": {"resets": resets, "vcpus": []}}),
            ];
            assert_eq!(panic.check(&outcome, Vmm::ZVMM).is_ok(), right, "{status} {resets}");
        }
        outcome.end = Some("exit 5".to_owned());
        assert!(panic.check(&outcome, Vmm::ZVMM).is_err());
    }
}
