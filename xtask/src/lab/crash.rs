//! `cargo xtask lab --crash`: the outer machine dies while guests write, and comes back. What a guest's file systems said
//! was on stable storage must be there, the file systems must be clean, and the disk below must have seen no
//! acknowledgement that was not true.
//!
//! The guest has two disks, one with ext4 and one with XFS, and a journaled writer on each; their images are files on the
//! outer machine's own disk, which keeps what was flushed and forgets the rest ([`PowerDisk`]). Each boot looks at what the
//! last one left and then goes on writing until it is killed.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};

use super::content::at;
use super::images;
use super::job::{Job, Run};
use super::kernel::Which;
use super::outer::{Outer, Report, Shape};
use super::power::{PowerDisk, Trace};
use super::scenarios::Script;
use super::vmm::Vmm;
use super::{Lab, OUTER_CPUS};
use crate::{debian, paths};

/// Rounds of the full lane.
pub const ROUNDS: u32 = 20;

/// The writers: stream, file system, disk, and how the file system is looked at without a change.
const STREAMS: [Stream; 2] = [
    Stream { name: 'e', kind: "ext4", device: "/dev/vda", check: "/tools/bin/e2fsck -f -n" },
    Stream { name: 'x', kind: "xfs", device: "/dev/vdb", check: "/xfs/bin/xfs_repair -n -f" },
];

struct Stream {
    name: char,
    kind: &'static str,
    device: &'static str,
    check: &'static str,
}

impl Stream {
    /// Its image in the outer machine.
    fn image(&self) -> String {
        format!("/data/{}.img", self.kind)
    }

    fn mount(&self) -> String {
        format!("mount -t {} {} /mnt/{}", self.kind, self.device, self.name)
    }
}

/// Longer than any boot that goes well takes, kill included.
const LIMIT: Duration = Duration::from_secs(240);

/// What differs from round to round: who does the disks' work, with which queues, and whether the outer machine's page
/// cache is in between.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Layout {
    io_uring: bool,
    packed: bool,
    queues: u16,
    buffered: bool,
}

impl Layout {
    fn of(round: u32) -> Self {
        let bit = |n: u32| round >> n & 1 == 1;
        Self { io_uring: bit(0), packed: bit(2), queues: if bit(3) { 2 } else { 1 }, buffered: bit(1) }
    }
}

/// Runs `rounds` power failures of the VMM as it is, which it must survive, and some with its data syncs taken away, which
/// must be noticed in both ways: by what is missing, and by the order in which things reached the disk.
///
/// # Errors
/// When something cannot be built or started, when anything was lost, or when nothing would have been noticed.
pub fn run(rounds: u32) -> anyhow::Result<()> {
    let mut lab = Lab::prepare(&[Vmm::ZVMM])?;
    lab.add_what_guests_need([Script::new().with(|machine| machine.initrd = at::STORAGE.to_owned()).machine])?;
    lab.programs.extend(xfs_repair()?);
    println!("lab: {rounds} power failures of an emulated outer machine under guests that write");
    let machine = Crashing::new(&lab, "crash", false)?;
    let mut acknowledged = BTreeMap::new();
    for round in 0..rounds {
        acknowledged = machine.round(round, &acknowledged)?;
    }
    machine.last(rounds, &acknowledged)?;
    drop(machine);

    PLANTED.into_iter().try_for_each(|round| planted(&lab, round))
}

/// Rounds that are run without data syncs: each engine, once around the outer machine's page cache and once through it. All
/// that was not flushed is lost in them.
const PLANTED: [u32; 4] = [0, 2, 5, 7];

/// One power failure of a VMM without data syncs: it must be noticed in both ways.
fn planted(lab: &Lab, round: u32) -> anyhow::Result<()> {
    let machine = Crashing::new(lab, "crash-planted", true)?;
    let (acknowledged, order) = machine.crash(round, &BTreeMap::new())?;
    ensure!(!order.is_empty(), "without data syncs nothing was wrong with the order on the disk");
    println!("planted  noticed by the order on the disk: {}", order[0]);
    match machine.last(round + 1, &acknowledged) {
        Err(error) if format!("{error:#}").contains("LOST") => {
            println!("planted  noticed by what is missing: {error:#}");
            Ok(())
        }
        Err(error) => Err(error.context("without data syncs something else went wrong")),
        Ok(()) => bail!("without data syncs nothing was missing"),
    }
}

/// An outer machine's disk through its power failures.
struct Crashing<'a> {
    lab: &'a Lab,
    name: &'a str,
    folder: PathBuf,
    /// Take the data syncs away from the VMM.
    planted: bool,
}

impl<'a> Crashing<'a> {
    fn new(lab: &'a Lab, name: &'a str, planted: bool) -> anyhow::Result<Self> {
        let folder = paths::lab().join("runs").join(format!("{name}-disk-{}", std::process::id()));
        debian::remove_tree(&folder)?;
        make_disk(&folder)?;
        Ok(Self { lab, name, folder, planted })
    }

    /// One boot that ends with a power failure; nothing may be wrong. Returns what was acknowledged by then.
    fn round(&self, round: u32, before: &BTreeMap<char, u64>) -> anyhow::Result<BTreeMap<char, u64>> {
        let (acknowledged, order) = self.crash(round, before).with_context(|| format!("power failure {round}"))?;
        ensure!(order.is_empty(), "power failure {round}: {}", order.join("; "));
        Ok(acknowledged)
    }

    /// One boot that looks at what the last one left and ends with a power failure. Returns what was acknowledged by then
    /// and what was wrong with the order in which it came to the disk.
    fn crash(&self, round: u32, before: &BTreeMap<char, u64>) -> anyhow::Result<(BTreeMap<char, u64>, Vec<String>)> {
        let disk = PowerDisk::serve(&self.image(), &self.socket(), before)?;
        let mut outer = self.boot(round, before, false)?;
        // Not always after as many records: each time something else is under way.
        let records = 12 + u64::from(round) * 7 % 23;
        let start = std::time::Instant::now();
        let acknowledged = loop {
            std::thread::sleep(Duration::from_millis(20));
            let acknowledged = acknowledged(&outer.console());
            let enough = |stream: &Stream| {
                let first = before.get(&stream.name).copied().unwrap_or(0);
                acknowledged.get(&stream.name).is_some_and(|last| *last >= first + records)
            };
            if STREAMS.iter().all(enough) {
                break acknowledged;
            }
            if outer.has_ended()? || start.elapsed() > LIMIT {
                let report = outer.kill()?;
                disk.cut_power(|_| true)?;
                bail!("no {records} records of each stream: {}", why(&report));
            }
        };
        let report = outer.kill()?;
        // More may have been said between the last look and the end.
        let console = fs::read_to_string(&report.log).unwrap_or_default();
        let acknowledged = self::acknowledged(&console).into_iter().chain(acknowledged).fold(
            BTreeMap::new(),
            |mut all: BTreeMap<char, u64>, (stream, number)| {
                let last = all.entry(stream).or_default();
                *last = number.max(*last);
                all
            },
        );
        let trace = disk.cut_power(|block| !all_is_lost(round) && is_kept(round, block))?;
        let order = self.judge(round, &trace, &acknowledged, report.wall);
        Ok((acknowledged, order))
    }

    fn judge(&self, round: u32, trace: &Trace, acknowledged: &BTreeMap<char, u64>, wall: Duration) -> Vec<String> {
        let problems: Vec<String> = trace.problems(acknowledged).iter().map(ToString::to_string).collect();
        let (records, flushes) = trace.counts();
        println!(
            "{}      {} {round}: {:?}, {acknowledged:?} acknowledged, {records} records and {flushes} flushes on the disk, {:.0} s",
            if problems.is_empty() { "ok" } else { "??" },
            self.name,
            Layout::of(round),
            wall.as_secs_f64(),
        );
        problems
    }

    /// A boot that looks at what the last one left, and ends as it should.
    fn last(&self, round: u32, before: &BTreeMap<char, u64>) -> anyhow::Result<()> {
        let disk = PowerDisk::serve(&self.image(), &self.socket(), before)?;
        let report = self.boot(round, before, true)?.finish(&self.shape())?;
        disk.cut_power(|_| true)?;
        let outcome = report.outcomes.first().with_context(|| why(&report))?;
        ensure!(outcome.failure.is_none(), "{}", why(&report));
        println!("ok      {} {round}: everything is there, {:.0} s", self.name, report.wall.as_secs_f64());
        Ok(())
    }

    fn image(&self) -> PathBuf {
        self.folder.join("data.img")
    }

    fn socket(&self) -> PathBuf {
        self.folder.join("nbd")
    }

    fn shape(&self) -> Shape {
        let socket = self.socket();
        Shape {
            name: self.name.to_owned(),
            kernel: Which::Stable,
            cpus: OUTER_CPUS,
            memory_mib: 2048,
            limit: LIMIT,
            show: false,
            drives: vec![format!("file=nbd+unix:///?socket={},if=virtio,format=raw,cache=writeback", socket.display())],
        }
    }

    fn boot(&self, round: u32, before: &BTreeMap<char, u64>, last: bool) -> anyhow::Result<Outer> {
        let run = script(round, before, last, self.planted && !last);
        let lab = self.lab;
        Outer::start(&self.shape(), &lab.content, &Job { runs: vec![run] }, &lab.runner, &lab.programs)
    }
}

impl Drop for Crashing<'_> {
    fn drop(&mut self) {
        let _ = debian::remove_tree(&self.folder);
    }
}

/// Whether nothing that was in the disk's cache has come onto it, or half of it: each with both engines.
fn all_is_lost(round: u32) -> bool {
    (round ^ round >> 2) & 1 == 0
}

/// Whether a block that was in the disk's cache has come onto it: by chance.
fn is_kept(round: u32, block: u64) -> bool {
    (block ^ u64::from(round) << 40).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 63 == 1
}

/// Why a boot did not do what it should.
fn why(report: &Report) -> String {
    let failure = report.outcomes.first().and_then(|outcome| outcome.failure.clone());
    let log = report.log.display();
    format!("{}; console log: {log}", failure.unwrap_or_else(|| format!("the outer machine ended ({:?})", report.end)))
}

/// The last record of each stream that the console has seen acknowledged, in whole lines.
fn acknowledged(console: &str) -> BTreeMap<char, u64> {
    let mut last = BTreeMap::new();
    for line in console.split_inclusive('\n').filter(|line| line.ends_with('\n')) {
        let Some((_, said)) = line.trim_end().split_once("LAB-ACK ") else { continue };
        let Some((stream, number)) = said.split_once(' ') else { continue };
        if let (Ok(stream), Ok(number)) = (stream.parse(), number.parse::<u64>()) {
            let seen = last.entry(stream).or_insert(0);
            *seen = number.max(*seen);
        }
    }
    last
}

/// What is done in one boot: what was left is looked at, with the journals replayed; then, unless it is the last, the
/// writers go on until the power fails.
fn script(round: u32, before: &BTreeMap<char, u64>, last: bool, planted: bool) -> Run {
    let layout = Layout::of(round);
    let mut script = Script::new().limit(LIMIT.as_secs()).before("mkdir -p /data && mount -t ext4 /dev/vdb /data");
    script = script.with(|machine| {
        machine.initrd = at::STORAGE.to_owned();
        machine.disks = STREAMS.iter().map(Stream::image).collect();
        machine.io_uring = layout.io_uring;
        machine.packed = layout.packed;
        machine.buffered = Some(layout.buffered);
        // A driver uses no more queues than it has CPUs.
        machine.cpus = layout.queues.into();
        machine.queues = Some(layout.queues);
    });
    script = script.ready().guest("mkdir -p /mnt/e /mnt/x");
    for stream in &STREAMS {
        let sequence = before.get(&stream.name).copied().unwrap_or(0);
        let (mount, name) = (stream.mount(), stream.name);
        script = script
            .guest_within(&mount, 60)
            .guest_within(&format!("lab-peer journal check {name} /mnt/{name} {sequence} 2>&1"), 60)
            .guest_within(&format!("umount /mnt/{name}"), 60)
            .shell(&format!("{} {} > /tmp/fsck 2>&1 || {{ cat /tmp/fsck; exit 1; }}", stream.check, stream.image()));
        if !last {
            script = script.guest_within(&mount, 60);
        }
    }
    let mut run = if last {
        script.send("poweroff -f\n").exit(30, Some(0)).after("umount /data").finish("crash", Vmm::ZVMM)
    } else {
        let writers: Vec<String> =
            STREAMS.iter().map(|s| format!("lab-peer journal write {0} /mnt/{0} 0 &", s.name)).collect();
        script
            .send(&format!("{}\n", writers.join(" ")))
            .expect("the power comes before this", LIMIT.as_secs())
            .finish("crash", Vmm::ZVMM)
    };
    if planted {
        run.command.splice(0..0, ["lab-peer".to_owned(), "no-sync".to_owned()]);
    }
    run
}

/// Makes the outer machine's disk: ext4, with an image of each file system on it.
fn make_disk(folder: &Path) -> anyhow::Result<()> {
    let stage = folder.join("stage");
    fs::create_dir_all(&stage)?;
    let e2fsprogs = debian::unpack("e2fsprogs", &["e2fsprogs"])?;
    let xfsprogs = debian::unpack("xfsprogs", &["xfsprogs"])?;
    // XFS takes no less than 300 MB.
    for (stream, mib, root, program, options) in [
        (
            &STREAMS[0],
            160,
            &e2fsprogs,
            "mke2fs",
            &["-q", "-t", "ext4", "-F", "-b", "4096", "-E", "lazy_itable_init=0"][..],
        ),
        (&STREAMS[1], 320, &xfsprogs, "mkfs.xfs", &["-q", "-f"][..]),
    ] {
        let image = stage.join(format!("{}.img", stream.kind));
        fs::File::create(&image)?.set_len(mib << 20)?;
        let output = debian::command(root, program)?
            .args(options)
            .arg(&image)
            .env("MKE2FS_CONFIG", e2fsprogs.join("etc/mke2fs.conf"))
            .stdin(Stdio::null())
            .output()?;
        ensure!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr).trim_end());
    }
    images::ext4(&stage, &folder.join("data.img"), 640)?;
    debian::remove_tree(&stage)
}

/// The program that checks XFS, with what it needs, where it runs in the outer machine.
fn xfs_repair() -> anyhow::Result<Vec<(String, PathBuf)>> {
    let stage = paths::lab().join("xfs.stage");
    debian::remove_tree(&stage)?;
    images::stage_program(&debian::unpack("xfsprogs", &["xfsprogs"])?, "xfs_repair", &stage, "/xfs")?;
    let mut files = Vec::new();
    for part in ["bin", "lib"] {
        for entry in fs::read_dir(stage.join(part))? {
            let entry = entry?;
            files.push((format!("xfs/{part}/{}", entry.file_name().to_string_lossy()), entry.path()));
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_lines_of_the_console_acknowledge_something() {
        let console = "   10 LAB-ACK e 1\r\n   11 LAB-ACK x 9\n[ 1.0] noise\n   12 LAB-ACK e 2\n   13 LAB-ACK x 1";
        assert_eq!(acknowledged(console), BTreeMap::from([('e', 2), ('x', 9)]));
    }

    #[test]
    fn rounds_go_through_all_layouts() {
        let layouts: Vec<Layout> = (0..16).map(Layout::of).collect();
        assert!((0..16).all(|n| layouts.iter().filter(|layout| **layout == layouts[n]).count() == 1));
    }

    #[test]
    fn each_engine_is_without_syncs_once_around_the_page_cache_and_once_through_it() {
        let kinds = PLANTED.map(|round| (Layout::of(round).io_uring, Layout::of(round).buffered));
        assert_eq!(kinds, [(false, false), (false, true), (true, false), (true, true)]);
        assert!(PLANTED.into_iter().all(all_is_lost));
    }

    #[test]
    fn the_vmm_that_is_put_to_the_proof_is_the_one_that_ships_and_the_planted_one_is_not() {
        let none = BTreeMap::new();
        assert_eq!(script(0, &none, false, false).command[0], "zvmm");
        assert_eq!(script(0, &none, false, true).command[..3], ["lab-peer", "no-sync", "zvmm"]);
    }

    #[test]
    fn each_boot_asks_for_all_that_was_acknowledged_and_checks_both_file_systems() {
        let run = script(3, &BTreeMap::from([('e', 41), ('x', 17)]), true, false);
        let text = serde_json::to_string(&run).unwrap();
        for part in
            ["check e /mnt/e 41", "check x /mnt/x 17", "e2fsck -f -n /data/ext4.img", "xfs_repair -n -f /data/xfs.img"]
        {
            assert!(text.contains(part), "{part}");
        }
    }
}
