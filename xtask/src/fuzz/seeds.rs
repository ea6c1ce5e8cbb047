//! Seeds from a real boot: a stock guest in the lab on the recording double, and the converter of the fuzz package.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, ensure};

use super::build::cargo;
use super::{folder, sources};
use crate::lab::job::{Job, Run};
use crate::lab::scenarios::Script;
use crate::lab::vmm::{Profile, Program, Vmm};
use crate::lab::{Lab, OUTER_CPUS};
use crate::paths;

/// Who records: no backend's kernel doorbells are in the way of any double, and this one's guests have KVM's clock.
const RECORDER: Vmm = Vmm { program: Program::ZvmmDoubleIllumosKvm, profile: Profile::I440fx };
/// Where the record is in the outer machine.
const RECORD: &str = "/tmp/record";
/// What brings it out: the runner reports text.
const BRING: &str = "gzip -9 -c /tmp/record | base64 -w 0";
const MEMORY_MIB: u64 = 2048;
/// What goes over TCP, each way.
const TCP_BYTES: u64 = 500_000;

/// Records a boot, or takes the record that is given, and makes the seeds anew from it.
///
/// # Errors
/// When the guest does not do what it is told, or the record cannot be converted.
pub fn make(given: Option<&Path>) -> anyhow::Result<()> {
    let record = match given {
        Some(record) => fs::canonicalize(record).with_context(|| format!("cannot read {}", record.display()))?,
        None => boot()?,
    };
    let status = Command::new(cargo())
        .args(["run", "--quiet", "--locked", "--example", "seeds", "--manifest-path"])
        .arg(sources().join("Cargo.toml"))
        .arg("--target-dir")
        .arg(paths::target())
        .arg("--")
        .args([&record, &sources().join("seeds")])
        .current_dir(paths::workspace())
        .stdin(Stdio::null())
        .status()
        .context("cannot start cargo")?;
    ensure!(status.success(), "{} gives no seeds", record.display());
    Ok(())
}

/// Boots the guest; returns its record.
fn boot() -> anyhow::Result<PathBuf> {
    let lab = Lab::prepare(&[RECORDER])?;
    println!("seeds: a guest is recorded {}", lab.place.describe());
    let report = lab.run("seeds", (OUTER_CPUS, MEMORY_MIB), &Job { runs: vec![run()] }, false)?;
    let log = report.log.display();
    let outcome = report.outcomes.first().with_context(|| format!("the outer machine ended early: {log}"))?;
    ensure!(outcome.failure.is_none(), "the guest: {}: {log}", outcome.failure.as_deref().unwrap_or_default());
    let brought = outcome.outputs.iter().find(|(command, _)| command == BRING);
    let packed = brought.map(|(_, output)| output.as_str()).context("no record came out")?;
    let file = folder().join("linux-boot.record");
    fs::create_dir_all(folder())?;
    unpack(packed, &file)?;
    println!("seeds: {} after {:.0} s", file.display(), report.wall.as_secs_f64());
    Ok(file)
}

/// A guest with one of every device, each of which is used.
fn run() -> Run {
    let script = Script::new()
        .with(|machine| (machine.console, machine.rng) = (true, true))
        .disk(8)
        .nic()
        .before(&format!("lab-peer serve 10.0.0.1:5001 {TCP_BYTES} > /tmp/served 2>&1 &"))
        .limit(600)
        .ready_within(300)
        .guest_within("dd if=/dev/zero of=/dev/vda bs=4k count=16 conv=fsync 2>&1", 60)
        .guest_within("echo 3 > /proc/sys/vm/drop_caches; dd if=/dev/vda of=/dev/null bs=64k count=4 2>&1", 60)
        .guest("cat /sys/block/vda/serial /sys/block/vda/cache_type /sys/block/vda/size")
        .guest("blkdiscard -o 0 -l 65536 /dev/vda 2>&1; true")
        // Many requests at a time, in segments.
        .guest_within(
            "mkdir -p /mnt; mke2fs /dev/vda 2>&1 && mount -t ext4 /dev/vda /mnt 2>&1 && cp -a /bin /mnt 2>&1; sync; true",
            90,
        )
        .guest_within(
            "umount /mnt 2>&1; for n in 1 2 3 4; do dd if=/dev/vda of=/dev/null bs=64k skip=$n 2>&- & done; wait",
            60,
        )
        .guest_within("ip addr add 10.0.0.2/24 dev eth0 && ip link set eth0 up && ping -c 3 10.0.0.1", 60)
        .guest_within(&format!("lab-peer call 10.0.0.1:5001 {TCP_BYTES}"), 100)
        .guest("dd if=/dev/hwrng of=/dev/null bs=64 count=4 2>&1")
        .guest("echo some words > /dev/hvc0")
        .guest("hwclock -u 2>&1; cat /proc/driver/rtc 2>&1; true")
        .power_off();
    let mut run = script.finish("seeds", RECORDER);
    // Behind the program's name: the double's own options come first.
    run.command.splice(1..1, ["--record", RECORD].map(str::to_owned));
    run.after.push(BRING.to_owned());
    run
}

fn unpack(packed: &str, file: &Path) -> anyhow::Result<()> {
    let mut child = Command::new("sh")
        .args(["-c", "base64 -d | gunzip"])
        .stdin(Stdio::piped())
        .stdout(fs::File::create(file)?)
        .spawn()
        .context("cannot run sh")?;
    // Dropped at the end of the statement, which closes it.
    child.stdin.take().context("no pipe")?.write_all(packed.trim().as_bytes())?;
    ensure!(child.wait()?.success(), "the record did not come out whole");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_recorded_guest_has_every_device_and_its_record_is_asked_for_before_its_options() {
        let run = run();
        let words = run.command.join(" ");
        let start = "zvmm-double --record /tmp/record --hypervisor illumos-kvm run ";
        assert!(words.starts_with(start), "{words}");
        for device in ["--disk ", "--net ", "--rng", "--console ", "--serial "] {
            assert!(words.contains(device), "no {device}: {words}");
        }
        assert_eq!(run.after.last().map(String::as_str), Some(BRING));
    }

    #[test]
    fn a_record_comes_out_as_it_went_in_and_half_of_one_does_not() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("record");
        // `printf 'zvmm record 1\n' | gzip -n | base64 -w 0`
        let packed = "H4sIAAAAAAAAA6sqy81VKEpNzi9KUTDkAgCF0yO9DgAAAA==";
        unpack(packed, &file).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "zvmm record 1\n");
        assert!(unpack(&packed[..packed.len() / 2], &file).is_err());
    }
}
