//! Resets a disk under load: while threads write to it, its driver is taken away and given back, again and again. No write
//! that was acknowledged may be lost, and none that failed may arrive later.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};

const DRIVER: &str = "/sys/bus/virtio/drivers/virtio_blk";
const DEVICES: &str = "/sys/bus/virtio/devices";

const SECTOR: usize = 512;
/// Sectors of a thread's own part of the disk.
const PART_SECTORS: usize = 4096;
const THREADS: usize = 4;
/// Sectors of a write at most.
const WRITE_SECTORS: usize = 128;
/// Writes that must have been acknowledged between two resets, so that each is one under load.
const WRITES_A_RESET: u64 = 8;
/// The device must come back within this time.
const PATIENCE: Duration = Duration::from_secs(30);

/// What everybody shares.
#[derive(Default)]
struct Load {
    stop: AtomicBool,
    acknowledged: AtomicU64,
    failed: AtomicU64,
    /// Descriptors of the disk that are open: with one left the disk would come back under another name.
    open: AtomicUsize,
    /// Resets begun, and what of the last one is under way.
    resets: AtomicUsize,
    stage: AtomicUsize,
}

const STAGES: [&str; 5] =
    ["the load", "taking the driver away", "the last writes", "giving the driver back", "the end"];

/// Resets the virtio device `device` (as `virtio0`), a disk, `resets` times under load.
///
/// # Errors
/// When a sector holds what it must not, or the device does not come back.
pub fn run(device: &str, resets: u32) -> anyhow::Result<()> {
    let load = Arc::new(Load::default());
    let watched = load.clone();
    std::thread::spawn(move || watch(&watched));
    std::thread::scope(|scope| -> anyhow::Result<()> {
        let load = &*load;
        let threads: Vec<_> = (0..THREADS).map(|part| scope.spawn(move || work(device, part, load))).collect();
        let result = reset_often(device, resets, load);
        load.enter(4);
        load.stop.store(true, Ordering::Relaxed);
        for thread in threads {
            thread.join().map_err(|_| anyhow::anyhow!("a thread panicked"))??;
        }
        result
    })?;
    println!(
        "{resets} resets, {} writes acknowledged, {} failed, {} sectors as they were written",
        load.acknowledged.load(Ordering::Relaxed),
        load.failed.load(Ordering::Relaxed),
        THREADS * PART_SECTORS,
    );
    Ok(())
}

fn reset_often(device: &str, resets: u32, load: &Load) -> anyhow::Result<()> {
    for number in 1..=resets {
        load.enter(0);
        let wanted = load.acknowledged.load(Ordering::Relaxed) + WRITES_A_RESET;
        wait(|| load.acknowledged.load(Ordering::Relaxed) >= wanted)
            .with_context(|| format!("nothing was written before reset {number}"))?;
        load.enter(1);
        fs::write(Path::new(DRIVER).join("unbind"), device).context("cannot take the driver away")?;
        load.enter(2);
        wait(|| load.open.load(Ordering::SeqCst) == 0).context("a write to a disk that is gone does not end")?;
        load.enter(3);
        fs::write(Path::new(DRIVER).join("bind"), device).context("cannot give the driver back")?;
    }
    Ok(())
}

impl Load {
    fn enter(&self, stage: usize) {
        self.stage.store(stage, Ordering::Relaxed);
        self.resets.fetch_add(usize::from(stage == 0), Ordering::Relaxed);
    }
}

/// Ends everything when a stage does not end: threads that the kernel holds cannot be joined. Says where they are.
fn watch(load: &Load) {
    let now = || (load.resets.load(Ordering::Relaxed), load.stage.load(Ordering::Relaxed));
    let (mut last, mut since) = (now(), Instant::now());
    while since.elapsed() < 2 * PATIENCE {
        std::thread::sleep(Duration::from_secs(1));
        if now() != last {
            (last, since) = (now(), Instant::now());
        }
    }
    println!(
        "reset {}: {} does not end; {} writes acknowledged",
        last.0,
        STAGES[last.1],
        load.acknowledged.load(Ordering::Relaxed)
    );
    for task in fs::read_dir("/proc/self/task").into_iter().flatten().flatten() {
        let stack = fs::read_to_string(task.path().join("stack")).unwrap_or_default();
        println!("{}: {}", task.path().display(), stack.trim().replace('\n', ", "));
    }
    std::process::exit(1);
}

fn wait(condition: impl Fn() -> bool) -> anyhow::Result<()> {
    let start = Instant::now();
    while !condition() {
        ensure!(start.elapsed() < PATIENCE, "not within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// What a sector may hold.
#[derive(Clone, Default)]
struct Allowed {
    /// The write that was acknowledged last.
    acknowledged: u64,
    /// Writes since then that failed: each may have arrived.
    failed: Vec<u64>,
}

/// Writes to one part of the disk until told to stop, then reads all of it.
fn work(device: &str, part: usize, load: &Load) -> anyhow::Result<()> {
    let first = part * PART_SECTORS;
    let mut allowed = vec![Allowed::default(); PART_SECTORS];
    let mut buffer = Buffer::new(WRITE_SECTORS * SECTOR);
    let mut chance = Chance(0x9e37_79b9_7f4a_7c15 ^ part as u64);
    // Stamp 0 is an untouched sector, full of zeroes.
    let mut stamp = 0;
    while !load.stop.load(Ordering::Relaxed) {
        let Some(disk) = Disk::open(device, load) else {
            std::thread::sleep(Duration::from_millis(1));
            continue;
        };
        while !load.stop.load(Ordering::Relaxed) {
            let sectors = 1 + chance.below(WRITE_SECTORS);
            let at = chance.below(PART_SECTORS - sectors);
            stamp += 1;
            let bytes = &mut buffer.bytes()[..sectors * SECTOR];
            for (n, sector) in bytes.chunks_mut(SECTOR).enumerate() {
                fill(sector, stamp, first + at + n);
            }
            let result = disk.file.write_all_at(bytes, ((first + at) * SECTOR) as u64);
            for sector in &mut allowed[at..at + sectors] {
                match result {
                    Ok(()) => *sector = Allowed { acknowledged: stamp, failed: Vec::new() },
                    Err(_) => sector.failed.push(stamp),
                }
            }
            if result.is_err() {
                load.failed.fetch_add(1, Ordering::Relaxed);
                break;
            }
            load.acknowledged.fetch_add(1, Ordering::Relaxed);
            // What was just written, and something from before.
            check(&disk.file, first, at, sectors, &mut allowed, &mut buffer).map_or_else(not_gone, Ok)?;
            let at = chance.below(PART_SECTORS - WRITE_SECTORS);
            check(&disk.file, first, at, WRITE_SECTORS, &mut allowed, &mut buffer).map_or_else(not_gone, Ok)?;
        }
    }
    let start = Instant::now();
    let disk = loop {
        match Disk::open(device, load) {
            Some(disk) => break disk,
            None => ensure!(start.elapsed() < PATIENCE, "the disk is gone for good"),
        }
    };
    for at in (0..PART_SECTORS).step_by(WRITE_SECTORS) {
        check(&disk.file, first, at, WRITE_SECTORS, &mut allowed, &mut buffer)?;
    }
    Ok(())
}

/// A read that failed says nothing: the disk is gone. One that brought something wrong does.
fn not_gone(error: anyhow::Error) -> anyhow::Result<()> {
    if error.downcast_ref::<io::Error>().is_some() { Ok(()) } else { Err(error) }
}

fn check(
    disk: &File,
    first: usize,
    at: usize,
    sectors: usize,
    allowed: &mut [Allowed],
    buffer: &mut Buffer,
) -> anyhow::Result<()> {
    let bytes = &mut buffer.bytes()[..sectors * SECTOR];
    disk.read_exact_at(bytes, ((first + at) * SECTOR) as u64)?;
    let mut want = [0; SECTOR];
    for (n, sector) in bytes.chunks(SECTOR).enumerate() {
        let number = first + at + n;
        let stamp = u64::from_le_bytes(sector[..8].try_into()?);
        let may = &mut allowed[at + n];
        ensure!(
            stamp == may.acknowledged || may.failed.contains(&stamp),
            "sector {number} holds write {stamp}, after {} was acknowledged and {:?} failed",
            may.acknowledged,
            may.failed,
        );
        fill(&mut want, stamp, number);
        ensure!(sector == want, "sector {number} holds part of write {stamp} only");
    }
    Ok(())
}

/// The content of a sector: its own, so that one that went to another place shows.
fn fill(sector: &mut [u8], stamp: u64, number: usize) {
    if stamp == 0 {
        return sector.fill(0);
    }
    let mut chance = Chance(stamp << 20 ^ number as u64);
    for word in sector.chunks_mut(8) {
        word.copy_from_slice(&chance.next().to_le_bytes()[..word.len()]);
    }
    sector[..8].copy_from_slice(&stamp.to_le_bytes());
}

/// The disk while it is there, past the page cache.
struct Disk<'a> {
    file: File,
    /// Behind the file, so that it is closed before it counts as such.
    _open: Open<'a>,
}

impl<'a> Disk<'a> {
    fn open(device: &str, load: &'a Load) -> Option<Self> {
        // Counted first: a reset waits for what may be open.
        let open = Open::new(load);
        let path = node(device)?;
        let file = OpenOptions::new().read(true).write(true).custom_flags(libc::O_DIRECT).open(path).ok()?;
        Some(Self { file, _open: open })
    }
}

/// One more open descriptor.
struct Open<'a>(&'a Load);

impl<'a> Open<'a> {
    fn new(load: &'a Load) -> Self {
        load.open.fetch_add(1, Ordering::SeqCst);
        Self(load)
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::SeqCst);
    }
}

/// The node of a disk, whatever the kernel calls it this time.
fn node(device: &str) -> Option<PathBuf> {
    let entry = fs::read_dir(Path::new(DEVICES).join(device).join("block")).ok()?.flatten().next()?;
    Some(Path::new("/dev").join(entry.file_name()))
}

/// Memory aligned as a disk wants it.
struct Buffer {
    start: *mut u8,
    layout: Layout,
}

impl Buffer {
    fn new(len: usize) -> Self {
        let layout = Layout::from_size_align(len.max(1), 4096).unwrap_or(Layout::new::<u64>());
        // SAFETY: the layout's size is not zero.
        Self { start: unsafe { alloc_zeroed(layout) }, layout }
    }

    fn bytes(&mut self) -> &mut [u8] {
        assert!(!self.start.is_null(), "out of memory");
        // SAFETY: allocated with this size, zeroed, and borrowed as `self` is.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.layout.size()) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout.
        unsafe { dealloc(self.start, self.layout) };
    }
}

/// A linear congruential sequence.
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0
    }

    fn below(&mut self, bound: usize) -> usize {
        ((self.next() >> 33) as usize) % bound.max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(dir: &tempfile::TempDir, change: impl Fn(&mut Vec<u8>)) -> anyhow::Result<()> {
        let mut bytes = vec![0; 8 * SECTOR];
        for (number, sector) in bytes.chunks_mut(SECTOR).enumerate() {
            fill(sector, 7, number);
        }
        change(&mut bytes);
        let path = dir.path().join("disk");
        fs::write(&path, bytes)?;
        let mut allowed = vec![Allowed { acknowledged: 7, failed: vec![8] }; 8];
        check(&File::open(path)?, 0, 0, 8, &mut allowed, &mut Buffer::new(8 * SECTOR))
    }

    #[test]
    fn a_sector_holds_the_last_acknowledged_write_or_a_later_one_that_failed() {
        let dir = tempfile::tempdir().unwrap();
        assert!(part(&dir, |_| ()).is_ok());
        assert!(part(&dir, |bytes| fill(&mut bytes[SECTOR..2 * SECTOR], 8, 1)).is_ok());
        assert!(part(&dir, |bytes| fill(&mut bytes[SECTOR..2 * SECTOR], 6, 1)).is_err(), "one before");
        assert!(part(&dir, |bytes| fill(&mut bytes[SECTOR..2 * SECTOR], 7, 2)).is_err(), "another place's");
        assert!(part(&dir, |bytes| bytes[SECTOR + 100] ^= 1).is_err());
        assert!(part(&dir, |bytes| bytes[..SECTOR].fill(0)).is_err(), "nothing at all");
    }

    #[test]
    fn only_a_disk_that_is_gone_is_no_error() {
        assert!(not_gone(io::Error::from_raw_os_error(libc::EIO).into()).is_ok());
        assert!(not_gone(anyhow::anyhow!("sector 7 holds nothing")).is_err());
    }
}
