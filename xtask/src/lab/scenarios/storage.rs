//! Disks put to the proof: what is given back, names, resets under load, and verified load at length.

use anyhow::{Context as _, ensure};

use super::super::content::at;
use super::super::vmm::Profile;
use super::script::BOOT_S;
use super::{Scenario, Script, output, outputs};

/// The scenarios of this file that take seconds.
pub fn all() -> Vec<Scenario> {
    vec![erase("erase", false), erase("erase-io-uring", true), by_id(), resize(), resets("modern"), resets("legacy")]
}

/// Seconds that each layout is under verified load.
pub const LOAD_S: u64 = 120;

/// The scenarios that take minutes: `load_s` seconds of verified load for each engine and layout of queues.
pub fn long(load_s: u64) -> Vec<Scenario> {
    let mut list = Vec::new();
    for io_uring in [false, true] {
        for queues in [1, 4] {
            for packed in [false, true] {
                list.push(verified_load(io_uring, queues, packed, load_s));
            }
        }
    }
    list
}

/// On a real file system, which gives back what is punched out of a file.
const IMAGE: &str = "/tools/disk.img";
const IMAGE_MIB: u64 = 128;

/// The guest's disk is a fresh image there.
fn with_image(script: Script, mib: u64) -> Script {
    let mut script = script.before(&format!("rm -f {IMAGE}; truncate -s {mib}M {IMAGE}"));
    script.machine.disks.push(IMAGE.to_owned());
    script.after(&format!("rm -f {IMAGE}"))
}

/// Half-KiB blocks that the host has given to the image.
const BLOCKS: &str = "sync; stat -c %b /tools/disk.img";
const FILLED_MIB: u64 = 96;
const SERIAL: &str = "cat /sys/block/vda/serial";

fn erase(name: &str, io_uring: bool) -> Scenario {
    const FILES_MIB: u64 = 64;
    Scenario::new(
        name,
        "blkdiscard and fstrim in the guest give the host's file system its blocks back; the disk has its serial number",
        move |_| {
            let script = with_image(Script::new(), IMAGE_MIB).with(|machine| {
                machine.io_uring = io_uring;
                machine.serials = vec!["LAB-0001".to_owned()];
            });
            script
                .limit(240)
                .ready()
                .guest(SERIAL)
                .guest_within(&format!("dd if=/dev/zero of=/dev/vda bs=1M count={FILLED_MIB} oflag=direct 2>&1"), 60)
                .shell(BLOCKS)
                .guest_within("blkdiscard /dev/vda", 60)
                .shell(BLOCKS)
                .guest_within("mke2fs -I 256 /dev/vda > /dev/null && mkdir /mnt && mount -t ext4 /dev/vda /mnt", 60)
                .guest_within(&format!("dd if=/dev/zero of=/mnt/f bs=1M count={FILES_MIB} 2>&1; sync"), 60)
                .shell(BLOCKS)
                .guest_within("rm /mnt/f && sync && fstrim /mnt && umount /mnt", 60)
                .shell(BLOCKS)
                .power_off()
        },
        |outcome, _| {
            let serial = output(outcome, SERIAL)?.trim();
            ensure!(serial == "LAB-0001", "the guest reads the serial number `{serial}`");
            let blocks: Vec<u64> =
                outputs(outcome, BLOCKS).into_iter().map(|text| text.trim().parse()).collect::<Result<_, _>>()?;
            let [full, discarded, used, trimmed] = blocks[..] else {
                anyhow::bail!("{} times counted, not 4", blocks.len())
            };
            let mib = |blocks: u64| blocks / 2048;
            // What a file system keeps of its own is a few MiB.
            let said = format!(
                "{} MiB filled, {} discarded, {} used, {} trimmed",
                mib(full),
                mib(discarded),
                mib(used),
                mib(trimmed)
            );
            ensure!(mib(full) >= FILLED_MIB && mib(used) >= FILES_MIB, "the disk did not fill: {said}");
            ensure!(
                mib(discarded) == 0 && mib(trimmed) < 16,
                "the host's file system has not got its blocks back: {said}"
            );
            Ok(())
        },
    )
}

const UDEV: &str = "/lib/systemd/systemd-udevd --daemon && udevadm trigger --action=add --subsystem-match=block && \
    udevadm settle && cd /dev/disk/by-id && for n in *; do echo $n $(readlink -f $n); done; cd /root";

fn by_id() -> Scenario {
    Scenario::new(
        "by-id",
        "udev in a Debian guest names disks by their serial numbers, given or not",
        |_| {
            Script::new()
                .debian_root()
                .disk(8)
                .disk(8)
                .with(|machine| machine.serials = vec!["LAB-ROOT".to_owned(), "LAB-DATA-0123456789A".to_owned()])
                .limit(240)
                .ready_within(150)
                .guest_within(UDEV, 60)
                .guest("pkill udevd; true")
                .warnings()
                .send("shutdown -h -P now\n")
                .expect("LAB-DOWN poweroff", 60)
                .exit(30, Some(0))
        },
        |outcome, _| {
            let names = output(outcome, UDEV)?;
            for line in ["virtio-LAB-ROOT /dev/vda", "virtio-LAB-DATA-0123456789A /dev/vdb"] {
                ensure!(names.lines().any(|name| name == line), "no `{line}` among {names}");
            }
            let own = names.lines().any(|name| name.starts_with("virtio-") && name.ends_with(" /dev/vdc"));
            ensure!(own, "the disk without a serial number of its configuration has no name among {names}");
            Ok(())
        },
    )
}

const SMALL_MIB: u64 = 64;
const GROWN_MIB: u64 = 96;
const SIZE: &str = "blockdev --getsize64 /dev/vda";
/// The last of them are written and read past the page cache, and compared.
const NEW_SECTORS: &str = "dd if=/dev/urandom of=/tmp/new bs=1M count=8 2>&1 && \
    dd if=/tmp/new of=/dev/vda bs=1M seek=88 oflag=direct 2>&1 && \
    dd if=/dev/vda bs=1M skip=88 iflag=direct 2>&1 >/tmp/read && cmp /tmp/new /tmp/read && echo the same";
const FILE_SIZE: &str = "stat -c %s /tools/disk.img";

fn resize() -> Scenario {
    let grown = GROWN_MIB << 20;
    Scenario::new(
        "resize",
        "a disk that grows while it is written to is seen by the guest, which uses its new sectors",
        move |_| {
            let seen =
                format!("timeout 25 sh -c 'until [ $(blockdev --getsize64 /dev/vda) = {grown} ]; do sleep 0.2; done'");
            with_image(Script::new(), SMALL_MIB)
                .limit(240)
                .ready()
                .guest(SIZE)
                .guest("{ (while [ ! -e /tmp/stop ]; do dd if=/dev/zero of=/dev/vda bs=64k count=256 oflag=direct; done) > /dev/null 2>&1 & }")
                .qmp_with("block_resize", serde_json::json!({ "device": "disk0", "size": grown }))
                .guest(&seen)
                .guest_within("touch /tmp/stop; wait", 60)
                .guest(SIZE)
                .guest_within(NEW_SECTORS, 100)
                .shell(FILE_SIZE)
                .power_off()
        },
        move |outcome, _| {
            let sizes: Vec<&str> = outputs(outcome, SIZE).into_iter().map(str::trim).collect();
            let wanted = [SMALL_MIB << 20, grown].map(|bytes| bytes.to_string());
            ensure!(sizes == wanted, "the guest sees {sizes:?}, not {wanted:?}");
            ensure!(output(outcome, NEW_SECTORS)?.contains("the same"), "the new sectors do not keep what is written");
            let size = output(outcome, FILE_SIZE)?.trim();
            ensure!(size == wanted[1], "the image has {size} bytes");
            Ok(())
        },
    )
}

const RESETS: u32 = 200;
/// Bit 32 of what the driver accepted is `VIRTIO_F_VERSION_1`.
const MODERN: &str = "cut -c33 /sys/bus/virtio/devices/virtio0/features";
/// The modules are not the kernel's: it does not give them the options of its command line.
const LEGACY: &str =
    "rmmod virtio_blk virtio_pci && insmod /modules/virtio_pci.ko force_legacy=1 && insmod /modules/virtio_blk.ko";
/// A disk that is taken away fails its requests, and a name in `/dev` may stay for a moment: the kernel says both.
const OTHER_WARNINGS: &str = "dmesg -r | grep '^<[0-4]>' | grep -v -e 'I/O error' -e 'block device autoloading' \
    -e 'callbacks suppressed' -e 'interrupt took'; true";

fn resets(transport: &'static str) -> Scenario {
    let command = format!("lab-peer resets virtio0 {RESETS}");
    let run = command.clone();
    Scenario::new(
        format!("resets-{transport}"),
        format!("{RESETS} resets of a disk that four threads write to ({transport} interface): no acknowledged write is lost"),
        move |_| {
            let mut script = with_image(Script::new(), 64).with(|machine| machine.cpus = 2).limit(BOOT_S + 330);
            script = script.ready().warnings().guest("dmesg -n 1; dmesg -c > /dev/null");
            if transport == "legacy" {
                script = script.guest(LEGACY);
            }
            script
                .guest(MODERN)
                .guest_within(&run, 300)
                .guest(OTHER_WARNINGS)
                .send("poweroff -f\n")
                .exit(30, Some(0))
        },
        move |outcome, _| {
            let modern = output(outcome, MODERN)?.trim() == "1";
            ensure!(modern == (transport == "modern"), "the driver uses another interface than the {transport} one");
            let said = output(outcome, &command)?;
            ensure!(said.contains(&format!("{RESETS} resets,")) && said.contains("as they were written"), "{said}");
            let others = output(outcome, OTHER_WARNINGS)?.trim();
            ensure!(others.is_empty(), "the guest warns: {others}");
            Ok(())
        },
    )
    // The smallest machine has no legacy interface.
    .only_where(if transport == "legacy" { |vmm| vmm.profile != Profile::Micro } else { |_| true })
}

/// Requests in flight of the four jobs.
const DEPTHS: [u32; 4] = [1, 4, 16, 64];
const PART_MIB: u64 = 48;
/// Their sizes, with how many of a hundred have each.
const SIZES: &str = "512/20:1536/10:4k/20:20k/10:64k/20:256k/10:1m/10";
/// Writes after which a job reads them back. (What it wrote last it does not, when its time is over.)
const BACKLOG: u32 = 16;
/// Queues of the disk, and bit 34 of what its driver accepted: `VIRTIO_F_RING_PACKED`.
const LAYOUT: &str = "ls /sys/block/vdb/mq | wc -l; cut -c35 /sys/block/vdb/device/features";
const SUMMARY: &str = "grep -E 'err=|issued rwts' /tmp/fio.log";

fn verified_load(io_uring: bool, queues: u16, packed: bool, load_s: u64) -> Scenario {
    let engine = if io_uring { "io-uring" } else { "threads" };
    let ring = if packed { "packed" } else { "split" };
    Scenario::new(
        format!("fio-{engine}-{queues}-{ring}"),
        format!("fio verifies all it writes (engine {engine}, {queues} queues, {ring} rings): random, 512 B to 1 MiB, 4 jobs"),
        move |_| {
            let mut script = Script::new().with(|machine| machine.disks.push(at::FIO.to_owned()));
            script = with_image(script, DEPTHS.len() as u64 * PART_MIB).with(|machine| {
                machine.cpus = 4;
                machine.memory_mib = 1024;
                machine.queues = Some(queues);
                machine.io_uring = io_uring;
                machine.packed = packed;
            });
            script
                .limit(2 * BOOT_S + 3 * load_s + 300)
                .ready_within(2 * BOOT_S)
                .guest("mkdir /fio && mount -t ext4 -o ro,noload /dev/vda /fio")
                .guest(LAYOUT)
                .guest(&jobs(load_s))
                .guest_within("/fio/bin/fio --eta=never --output=/tmp/fio.log /tmp/jobs || { cat /tmp/fio.log; false; }", 3 * load_s + 200)
                .guest(SUMMARY)
                .power_off()
        },
        move |outcome, _| {
            check_layout(output(outcome, LAYOUT)?, queues, packed)?;
            check_load(output(outcome, SUMMARY)?)
        },
    )
    .outer_memory(3072)
}

/// Writes the description of the jobs.
fn jobs(load_s: u64) -> String {
    let mut file = format!(
        "[global]\\nfilename=/dev/vdb\\nioengine=libaio\\ndirect=1\\nthread\\nrw=randrw\\nbssplit={SIZES}\\nsize={PART_MIB}m\\n\
         time_based\\nruntime={load_s}\\nverify=crc32c\\nverify_fatal=1\\nverify_backlog={BACKLOG}\\n"
    );
    for (n, depth) in DEPTHS.iter().enumerate() {
        file += &format!("[depth-{depth}]\\niodepth={depth}\\noffset={}m\\n", n as u64 * PART_MIB);
    }
    format!("printf '{file}' > /tmp/jobs")
}

/// The guest uses as many queues as it is to, and such rings.
fn check_layout(said: &str, queues: u16, packed: bool) -> anyhow::Result<()> {
    let wanted = format!("{queues} {}", u8::from(packed));
    let found = said.split_whitespace().collect::<Vec<_>>().join(" ");
    ensure!(found == wanted, "queues and packed rings are {found}, not {wanted}");
    Ok(())
}

/// Four jobs, each without an error and with reads and writes.
fn check_load(summary: &str) -> anyhow::Result<()> {
    let jobs = summary.lines().filter(|line| line.contains("err= 0")).count();
    ensure!(jobs == DEPTHS.len() && summary.matches("err=").count() == jobs, "fio says: {summary}");
    let totals = summary.lines().filter_map(|line| line.split_once("issued rwts: total=")?.1.split_once(' '));
    let mut moved = 0;
    for (total, _) in totals {
        let mut counts = total.split(',').map(str::parse::<u64>);
        let mut next = || counts.next().context("no count")?.context("no number");
        let (reads, writes) = (next()?, next()?);
        // As many as writes, and each write read back.
        ensure!(writes > 4 * u64::from(BACKLOG) && reads > writes + writes / 2, "a job verified too little: {summary}");
        moved += 1;
    }
    ensure!(moved == jobs, "fio says: {summary}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: &str = "depth-1: (groupid=0, jobs=1): err= 0: pid=70: Thu Nov 26\n\
        \x20    issued rwts: total=433,220,0,0 short=0,0,0,0 dropped=0,0,0,0\n";

    #[test]
    fn four_jobs_without_an_error_that_moved_something_pass_and_nothing_else() {
        assert!(check_load(&SAID.repeat(4)).is_ok());
        assert!(check_load(&SAID.repeat(3)).is_err());
        assert!(check_load(&(SAID.repeat(3) + &SAID.replace("err= 0", "err=84"))).is_err());
        assert!(check_load(&(SAID.repeat(3) + &SAID.replace("433,220", "233,220"))).is_err());
        assert!(check_load(&(SAID.repeat(3) + &SAID.replace("433,220", "9,4"))).is_err());
        assert!(check_load("").is_err());
    }

    #[test]
    fn a_load_in_another_layout_than_it_is_named_for_does_not_pass() {
        assert!(check_layout("4\n1\n", 4, true).is_ok());
        for other in ["1\n1\n", "4\n0\n", "4\n", ""] {
            assert!(check_layout(other, 4, true).is_err(), "{other}");
        }
    }

    #[test]
    fn the_jobs_parts_of_the_disk_do_not_overlap() {
        let text = jobs(7);
        assert!(text.contains("runtime=7") && text.contains("offset=0m") && text.contains("offset=144m"));
    }
}
