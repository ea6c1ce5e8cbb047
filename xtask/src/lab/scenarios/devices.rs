//! Disks, network interfaces and the serial port.

use anyhow::{bail, ensure};

use super::super::job::{Step, pattern};
use super::super::vmm::Profile;
use super::script::BOOT_S;
use super::{Scenario, Script, output, outputs};

/// The scenarios of this file.
pub fn all() -> Vec<Scenario> {
    vec![
        disk_root("disk-root", false),
        disk_root("disk-root-io-uring", true),
        tcp(10),
        tcp(100),
        packed_rings(),
        legacy_devices(),
        names(),
        serial_input(),
    ]
}

const ROOT: &str = "findmnt -n -o SOURCE,FSTYPE,OPTIONS /";

fn disk_root(name: &str, io_uring: bool) -> Scenario {
    Scenario::new(
        name,
        "a Debian root on virtio-blk reaches a shell, is written to, and is clean after power-off",
        move |_| {
            Script::new()
                .with(|machine| machine.io_uring = io_uring)
                .debian_root()
                .limit(240)
                .ready_within(150)
                .guest(ROOT)
                .guest("cat /etc/debian_version; lscpu; lsblk")
                .guest_within("dd if=/dev/urandom of=/var/tmp/data bs=64k count=256 conv=fsync 2>&1", 60)
                .guest_within("sha256sum /var/tmp/data | tee /var/tmp/sum; echo 3 > /proc/sys/vm/drop_caches", 60)
                .guest_within("sha256sum -c /var/tmp/sum && rm -r /usr/share/perl*", 60)
                .warnings()
                .send("shutdown -h -P now\n")
                .expect("LAB-DOWN poweroff", 60)
                .exit(30, Some(0))
        },
        |outcome, _| {
            let root = output(outcome, ROOT)?;
            let columns: Vec<&str> = root.split_whitespace().collect();
            let [source, kind, options] = columns[..] else { bail!("the root file system is {root}") };
            let writable = options.split(',').any(|option| option == "rw");
            ensure!(source == "/dev/vda" && kind == "ext4" && writable, "the root file system is {root}");
            Ok(())
        },
    )
}

const SERVED: &str = "timeout 20 sh -c 'until grep received /tmp/served; do sleep 0.2; done'";

fn tcp(megabytes: u64) -> Scenario {
    let bytes = megabytes * 1_000_000;
    let call = format!("lab-peer call 10.0.0.1:5001 {bytes}");
    let called = call.clone();
    Scenario::new(
        format!("tcp-{megabytes}mb"),
        format!("{megabytes} MB each way over TCP arrive as they were sent"),
        move |_| {
            Script::new()
                .nic()
                .limit(300)
                .before(&format!("lab-peer serve 10.0.0.1:5001 {bytes} > /tmp/served 2>&1 &"))
                .ready()
                .guest("ip addr add 10.0.0.2/24 dev eth0 && ip link set eth0 up && ping -c 3 10.0.0.1")
                .guest_within(&call, 200)
                .shell(SERVED)
                .power_off()
        },
        move |outcome, _| {
            for command in [called.as_str(), SERVED] {
                let text = output(outcome, command)?;
                ensure!(text.contains(&format!("received {bytes} bytes")), "not everything arrived: {text}");
            }
            Ok(())
        },
    )
}

/// Bit 34 of what each driver accepted is `VIRTIO_F_RING_PACKED`.
const ACCEPTED: &str = "cut -c35 /sys/bus/virtio/devices/*/features";
const FILL_DISK: &str = "lab-peer pattern /dev/vda 16777216";

fn packed_rings() -> Scenario {
    const BYTES: u64 = 10_000_000;
    let call = format!("lab-peer call 10.0.0.1:5001 {BYTES}");
    let called = call.clone();
    Scenario::new(
        "packed-rings",
        "drivers that are offered packed rings use them, for 16 MiB each way on a disk and 10 MB each way over TCP",
        move |_| {
            Script::new()
                .with(|machine| machine.packed = true)
                .nic()
                .disk(16)
                .limit(240)
                .before(&format!("lab-peer serve 10.0.0.1:5001 {BYTES} > /tmp/served 2>&1 &"))
                .ready()
                .guest(ACCEPTED)
                .guest_within(FILL_DISK, 60)
                .guest("ip addr add 10.0.0.2/24 dev eth0 && ip link set eth0 up && ping -c 3 10.0.0.1")
                .guest_within(&call, 100)
                .shell(SERVED)
                .power_off()
        },
        move |outcome, _| {
            let accepted = output(outcome, ACCEPTED)?;
            let bits: Vec<&str> = accepted.split_whitespace().collect();
            ensure!(bits == ["1", "1"], "the drivers of disk and network accepted packed rings: {bits:?}");
            ensure!(output(outcome, FILL_DISK)?.contains("as it was written"), "the disk was not filled");
            for command in [called.as_str(), SERVED] {
                let text = output(outcome, command)?;
                ensure!(text.contains(&format!("received {BYTES} bytes")), "not everything arrived: {text}");
            }
            Ok(())
        },
    )
}

/// Bit 32 of what each driver accepted is `VIRTIO_F_VERSION_1`.
const VERSIONS: &str = "cut -c33 /sys/bus/virtio/devices/*/features";

fn legacy_devices() -> Scenario {
    const BYTES: u64 = 10_000_000;
    let call = format!("lab-peer call 10.0.0.1:5001 {BYTES}");
    let called = call.clone();
    Scenario::new(
        "legacy-devices",
        "drivers that find virtio 0.9 alone fill 16 MiB of a disk and send and receive 10 MB over TCP",
        move |_| {
            Script::new()
                .with(|machine| machine.virtio = Some("legacy"))
                .nic()
                .disk(16)
                .limit(240)
                .before(&format!("lab-peer serve 10.0.0.1:5001 {BYTES} > /tmp/served 2>&1 &"))
                .ready()
                .guest(VERSIONS)
                .guest_within(FILL_DISK, 60)
                .guest("ip addr add 10.0.0.2/24 dev eth0 && ip link set eth0 up && ping -c 3 10.0.0.1")
                .guest_within(&call, 100)
                .shell(SERVED)
                .power_off()
        },
        move |outcome, _| {
            let accepted = output(outcome, VERSIONS)?;
            let bits: Vec<&str> = accepted.split_whitespace().collect();
            ensure!(bits == ["0", "0"], "the drivers of disk and network are of virtio 1: {bits:?}");
            ensure!(output(outcome, FILL_DISK)?.contains("as it was written"), "the disk was not filled");
            for command in [called.as_str(), SERVED] {
                let text = output(outcome, command)?;
                ensure!(text.contains(&format!("received {BYTES} bytes")), "not everything arrived: {text}");
            }
            Ok(())
        },
    )
    .only_where(|vmm| vmm.is_zvmm() && vmm.profile != Profile::Micro)
}

const SIZES: &str = "cat /sys/block/vda/size /sys/block/vdb/size";
const PLACES: &str = "for d in block/vda block/vdb net/eth0 net/eth1; do readlink -f /sys/class/$d/device; done";
const ADDRESSES: &str = "cat /sys/class/net/eth0/address /sys/class/net/eth1/address";

fn names() -> Scenario {
    Scenario::new(
        "two-disks-two-nics",
        "two disks and two network interfaces keep their names over a reboot",
        |_| {
            let look = |script: Script| script.ready().guest(SIZES).guest(ADDRESSES).guest(PLACES);
            let script = Script::new().nic().nic().disk(8).disk(16).limit(60 + 2 * BOOT_S);
            look(look(script).send("reboot -f\n")).power_off()
        },
        |outcome, _| {
            for (command, want) in [(SIZES, "16384 32768"), (ADDRESSES, "52:54:00:12:34:56 52:54:00:12:34:57")] {
                let found = outputs(outcome, command);
                ensure!(found.len() == 2, "`{command}` was run {} times", found.len());
                for found in found {
                    let found = found.split_whitespace().collect::<Vec<_>>().join(" ");
                    ensure!(found == want, "`{command}` shows {found}, not {want}");
                }
            }
            let places = outputs(outcome, PLACES);
            ensure!(places.len() == 2 && places[0] == places[1], "devices moved over the reboot: {places:?}");
            Ok(())
        },
    )
}

/// Lines of 64 bytes that are typed into the serial port: twice what the guest's terminal layer buffers.
const TYPED_LINES: u32 = 128;
const CHECKSUM: &str = "crc32 /tmp/in; wc -c < /tmp/in";

fn serial_input() -> Scenario {
    Scenario::new(
        "serial-input",
        "8 KiB typed at full speed arrive without loss",
        |_| {
            Script::new()
                .ready()
                .send(&format!(
                    "stty raw -echo; (timeout 50 cat <&3 > /tmp/in & echo LAB\"\"-GO; for n in $(seq 50); do \
                     [ $(wc -c < /tmp/in) -ge {} ] && break; sleep 1; done; kill $! 2>&-) 3<&0; \
                     stty sane -echo; echo LAB\"\"-GOT\n",
                    64 * TYPED_LINES
                ))
                .expect("LAB-GO\n", 20)
                .step(Step::SendPattern { lines: TYPED_LINES })
                .expect("LAB-GOT\n", 60)
                .guest(CHECKSUM)
                .power_off()
        },
        |outcome, _| {
            let text: String = (0..TYPED_LINES).map(pattern).collect();
            let want = format!("{:08x}", crc32fast::hash(text.as_bytes()));
            let got = output(outcome, CHECKSUM)?.trim();
            ensure!(got.starts_with(&want), "what arrived has the checksum {got}, not {want}");
            Ok(())
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_typed_has_lines_of_64_bytes_and_no_two_alike() {
        assert!([0, 1, 127, u32::MAX].iter().all(|&n| pattern(n).len() == 64));
        assert_ne!(pattern(1), pattern(2));
    }
}
