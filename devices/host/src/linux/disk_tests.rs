//! Files and real block devices: what they say of themselves, and what is left of ranges that were given back or zeroed.

use std::fs::File;
use std::io;
use std::path::Path;

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::tempdir::TempDir;

use super::*;
use crate::Event;
use crate::disk::{Cache, Disk, DiskOptions};
use crate::engine::{Engine, EngineError, EngineOptions, Kind, Op};
use crate::iovec::{GuestRange, VectorBuffer};
use crate::os::loop_device::LoopDevice;
use crate::poll::{PollFd, poll};
use crate::ram::{RamOptions, SharedRam, allocate};

const BYTES: u64 = 8 << 20;
/// Used of the disk by a test.
const PART: usize = 1 << 20;

fn open(path: &Path, cache: Cache) -> Disk {
    Disk::open("d0", path, DiskOptions { cache, ..DiskOptions::default() }).unwrap()
}

struct Rig {
    mem: GuestMemoryMmap<()>,
    buffer: VectorBuffer,
}

impl Rig {
    fn new() -> Self {
        let mem = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), PART)]).unwrap();
        Self { mem, buffer: VectorBuffer::default() }
    }

    fn fill(&mut self, disk: &Disk, byte: u8) {
        self.mem.write_slice(&vec![byte; PART], GuestAddress(0)).unwrap();
        let vectors = self.buffer.fill(&self.mem, [GuestRange { address: 0, len: PART as u32 }]).unwrap();
        disk.write(vectors, 0, false).unwrap();
        disk.flush().unwrap();
    }

    fn read(&mut self, disk: &Disk) -> Vec<u8> {
        let vectors = self.buffer.fill(&self.mem, [GuestRange { address: 0, len: PART as u32 }]).unwrap();
        disk.read(vectors, 0).unwrap();
        let mut bytes = vec![0; PART];
        self.mem.read_slice(&mut bytes, GuestAddress(0)).unwrap();
        bytes
    }
}

/// Bytes of the file that take space.
fn held_bytes(file: &Path) -> u64 {
    std::fs::metadata(file).unwrap().blocks() * 512
}

#[test]
fn a_block_device_says_its_blocks_and_shows_them() {
    for block_bytes in [512u32, 4096] {
        let Some(device) = LoopDevice::new(BYTES, block_bytes) else { return };
        let disk = open(&device.path, Cache::Auto);
        let sizes = disk.io_sizes();
        assert!(disk.is_block_device() && disk.size_bytes() == BYTES);
        assert_eq!(disk.logical_block_bytes(), block_bytes);
        assert!(sizes.physical_block_bytes >= block_bytes && sizes.physical_block_bytes.is_power_of_two());
        assert!(sizes.minimum_bytes >= block_bytes, "{sizes:?}");
        assert!(sizes.discard_bytes.is_multiple_of(512), "{sizes:?}");
        // Its file has holes, and so the device discards.
        assert!(disk.can_discard() && sizes.discard_bytes > 0, "{sizes:?}");
    }
}

#[test]
fn a_block_device_gives_back_what_is_discarded_and_zeroes_what_is_to_be_zero() {
    for (block_bytes, cache) in [(512, Cache::Auto), (512, Cache::Buffered), (4096, Cache::Auto)] {
        let Some(device) = LoopDevice::new(BYTES, block_bytes) else { return };
        let disk = open(&device.path, cache);
        let mut rig = Rig::new();
        for unmap in [false, true] {
            rig.fill(&disk, 0x5a);
            disk.write_zeroes(65536, 131_072, unmap, &|| true).unwrap();
            let bytes = rig.read(&disk);
            let expected = |at| if (65536..65536 + 131_072).contains(&at) { 0 } else { 0x5a };
            assert!(
                bytes.iter().enumerate().all(|(at, &byte)| byte == expected(at)),
                "{block_bytes} {cache:?} {unmap}"
            );
        }
        rig.fill(&disk, 0x5a);
        let held = held_bytes(&device.file);
        disk.discard(0, PART as u64).unwrap();
        disk.flush().unwrap();
        assert!(held_bytes(&device.file) + (PART as u64) <= held, "{held} and {} bytes", held_bytes(&device.file));
    }
}

#[test]
fn a_file_gives_its_space_back_around_the_cache_and_through_it() {
    for cache in [Cache::Auto, Cache::Buffered] {
        let dir = TempDir::new().unwrap();
        let path = dir.as_path().join("disk");
        File::create(&path).unwrap().set_len(BYTES).unwrap();
        let disk = open(&path, cache);
        if !disk.can_discard() {
            println!("SKIP: {} has no files with holes", dir.as_path().display());
            return;
        }
        let mut rig = Rig::new();
        rig.fill(&disk, 0x5a);
        let held = held_bytes(&path);
        disk.discard(0, PART as u64 / 2).unwrap();
        disk.write_zeroes(PART as u64 / 2, PART as u64 / 2, true, &|| true).unwrap();
        assert!(held_bytes(&path) + (PART as u64) <= held, "{held} and {} bytes", held_bytes(&path));
        assert!(rig.read(&disk)[PART / 2..].iter().all(|&byte| byte == 0));
    }
}

#[test]
fn asking_whether_a_disk_discards_changes_nothing_of_it() {
    let dir = TempDir::new().unwrap();
    // Its last bytes are no whole sector, and lie in a block that could be given back.
    let path = dir.as_path().join("disk");
    std::fs::write(&path, vec![0x5a; PART + 100]).unwrap();
    let disk = open(&path, Cache::Auto);
    assert_eq!(disk.size_bytes(), PART as u64);
    drop(disk);
    assert!(std::fs::read(&path).unwrap() == vec![0x5a; PART + 100]);
    let Some(device) = LoopDevice::new(BYTES, 512) else { return };
    let mut rig = Rig::new();
    rig.fill(&open(&device.path, Cache::Auto), 0x5a);
    assert!(rig.read(&open(&device.path, Cache::Auto)).iter().all(|&byte| byte == 0x5a));
}

#[test]
fn a_file_that_cannot_have_holes_is_not_said_to_discard() {
    // Sealed against being written to, which holes are.
    // SAFETY: the name is a C string.
    let fd = crate::check(unsafe { libc::memfd_create(c"disk".as_ptr(), libc::MFD_ALLOW_SEALING) }).unwrap();
    // SAFETY: the descriptor is new and nobody else's.
    let file = unsafe { <File as std::os::fd::FromRawFd>::from_raw_fd(fd) };
    file.set_len(1 << 20).unwrap();
    assert!(can_discard(&file, false, 1 << 20));
    // SAFETY: takes numbers only.
    crate::check(unsafe { libc::fcntl(fd, libc::F_ADD_SEALS, libc::F_SEAL_WRITE) }).unwrap();
    assert!(!can_discard(&file, false, 1 << 20));
    let reader = File::open("/dev/null").unwrap();
    assert!(!can_discard(&reader, true, 0) && !can_discard(&reader, false, 0));
}

#[test]
fn a_range_that_no_device_has_is_refused() {
    let Some(device) = LoopDevice::new(BYTES, 512) else { return };
    let disk = open(&device.path, Cache::Auto);
    for (offset, len) in [(BYTES, 512), (BYTES - 512, 1024), (u64::MAX - 511, 512)] {
        assert!(disk.discard(offset, len).is_err());
        assert!(disk.write_zeroes(offset, len, false, &|| true).is_err(), "{offset} {len}");
    }
    assert_eq!(disk.discard(0, 0).map_err(|error: io::Error| error.kind()), Ok(()));
}

/// What an engine reports of requests with the numbers 0 to `count` - 1, in the order in which it does.
fn reports(engine: &mut Engine, wake: &Event, count: usize) -> Vec<(u64, Result<(), EngineError>)> {
    let mut reports = Vec::new();
    engine.commit();
    loop {
        wake.clear();
        engine.poll(|token, result| reports.push((token, result)));
        if reports.len() == count {
            return reports;
        }
        poll(&mut [PollFd::new(wake.as_raw_fd()).readable(true)], None).unwrap();
    }
}

/// Two engines on one disk, as a device of two queues has them, on a device that holds what was written to it by one and
/// cannot write it any more.
fn with_a_lost_write(kind: Kind, test: impl FnOnce([(Engine, Arc<Event>); 2])) {
    let Some(device) = LoopDevice::in_memory(BYTES, 512) else { return };
    let disk = Arc::new(open(&device.path, Cache::Buffered));
    let mem: SharedRam = Arc::new(allocate(&[(0, PART as u64)], &RamOptions::default()).unwrap());
    let mut engines = [(); 2].map(|()| {
        let wake = Arc::new(Event::new().unwrap());
        let options = EngineOptions { kind, ..EngineOptions::default() };
        (Engine::start("disk", disk.clone(), mem.clone(), wake.clone(), &options).unwrap(), wake)
    });
    let (engine, wake) = &mut engines[0];
    engine.submit(0, Op::Write { durable: false }, 0, 4096, [GuestRange { address: 0, len: 4096 }]);
    assert_eq!(reports(engine, wake, 1), [(0, Ok(()))]);
    // SAFETY: takes numbers only.
    crate::check(unsafe { libc::fcntl(device.backing.as_raw_fd(), libc::F_ADD_SEALS, libc::F_SEAL_WRITE) }).unwrap();
    test(engines);
}

/// Linux says it once for each open file. A queue whose flush comes second would tell its guest that all is well.
#[test]
fn a_write_that_is_lost_fails_the_next_flush_of_each_queue() {
    for kind in [Kind::Threads, Kind::IoUring] {
        with_a_lost_write(kind, |engines| {
            for (mut engine, wake) in engines {
                engine.submit(0, Op::Flush, 0, 0, []);
                assert_eq!(reports(&mut engine, &wake, 1), [(0, Err(EngineError::Host(libc::EIO)))], "{kind:?}");
            }
        });
    }
}

/// And to one of the calls that wait for it.
#[test]
fn a_write_that_is_lost_is_reported_before_any_flush_succeeds_of_those_made_at_once() {
    for kind in [Kind::Threads, Kind::IoUring] {
        for flushes in 2..=16 {
            with_a_lost_write(kind, |[(mut engine, wake), _]| {
                (0..flushes).for_each(|n| engine.submit(n, Op::Flush, 0, 0, []));
                let reports = reports(&mut engine, &wake, flushes as usize);
                assert_eq!(reports[0].1, Err(EngineError::Host(libc::EIO)), "{kind:?}: {reports:?}");
            });
        }
    }
}

#[test]
fn a_write_that_is_to_be_durable_and_is_lost_is_reported_before_any_that_may_be_lost_with_it() {
    for kind in [Kind::Threads, Kind::IoUring] {
        with_a_lost_write(kind, |engines| {
            for (mut engine, wake) in engines {
                for n in 0..8 {
                    let place = GuestRange { address: 0, len: 4096 };
                    engine.submit(n, Op::Write { durable: true }, (n + 1) * 8192, 4096, [place]);
                }
                let reports = reports(&mut engine, &wake, 8);
                assert!(reports[0].1.is_err(), "{kind:?}: {reports:?}");
            }
        });
    }
}
