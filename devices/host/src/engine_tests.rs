//! What every engine does alike.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::AsRawFd;

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::tempdir::TempDir;

use super::*;
use crate::disk::{Cache, DiskOptions};
use crate::poll::{PollFd, poll};
use crate::ram::{RamOptions, allocate};

/// Everybody who does an engine's work.
const KINDS: [Kind; 2] = [Kind::Threads, Kind::IoUring];

/// Whether a disk goes through the page cache: both are tested wherever the disk's temporary folder has both.
const CACHES: [Cache; 2] = [Cache::Auto, Cache::Buffered];

/// Every engine with every cache.
fn ways() -> impl Iterator<Item = (Kind, Cache)> {
    KINDS.into_iter().flat_map(|kind| CACHES.map(|cache| (kind, cache)))
}

fn options(kind: Kind) -> EngineOptions {
    EngineOptions { kind, ..EngineOptions::default() }
}

struct Bench {
    engine: Engine,
    wake: Arc<Event>,
    mem: SharedRam,
    dir: TempDir,
}

fn bench(disk_bytes: u64, options: &EngineOptions) -> Bench {
    bench_with(disk_bytes, options, Cache::Auto)
}

fn bench_with(disk_bytes: u64, options: &EngineOptions, cache: Cache) -> Bench {
    bench_in(TempDir::new().unwrap(), disk_bytes, options, cache)
}

fn bench_in(dir: TempDir, disk_bytes: u64, options: &EngineOptions, cache: Cache) -> Bench {
    let path = dir.as_path().join("disk");
    File::create(&path).unwrap().set_len(disk_bytes).unwrap();
    let disk = Arc::new(Disk::open("d0", &path, DiskOptions { cache, ..DiskOptions::default() }).unwrap());
    let mem: SharedRam = Arc::new(allocate(&[(0, 8 << 20)], &RamOptions::default()).unwrap());
    let wake = Arc::new(Event::new().unwrap());
    let engine = Engine::start("disk", disk, mem.clone(), wake.clone(), options).unwrap();
    Bench { engine, wake, mem, dir }
}

impl Bench {
    fn one(&mut self, op: Op, offset_bytes: u64, len: u32) -> Result<(), EngineError> {
        let has_data = matches!(op, Op::Read | Op::Write { .. });
        let range = has_data.then_some(GuestRange { address: 0, len });
        self.engine.submit(1, op, offset_bytes, len.into(), range);
        self.engine.commit();
        self.collect(1).remove(&1).unwrap()
    }

    /// Sleeps as a worker does until `count` requests have completed.
    fn collect(&mut self, count: usize) -> HashMap<u64, Result<(), EngineError>> {
        let mut results = HashMap::new();
        loop {
            self.engine.poll(|token, result| assert!(results.insert(token, result).is_none(), "reported twice"));
            if results.len() >= count {
                return results;
            }
            let mut fds = [PollFd::new(self.wake.as_raw_fd()).readable(true)];
            assert_eq!(poll(&mut fds, Some(20_000_000_000)).unwrap(), 1, "a completion without its wake-up");
            self.wake.clear();
        }
    }
}

#[test]
fn every_operation_does_what_it_says_inline_and_elsewhere() {
    for (kind, inline_single, cache) in [
        (Kind::Threads, false, Cache::Auto),
        (Kind::Threads, true, Cache::Auto),
        (Kind::Threads, true, Cache::Buffered),
        (Kind::IoUring, false, Cache::Auto),
        (Kind::IoUring, false, Cache::Buffered),
    ] {
        let mut bench = bench_with(1 << 20, &EngineOptions { inline_single, ..options(kind) }, cache);
        bench.mem.write_slice(&[0xa5; 8192], GuestAddress(0)).unwrap();
        bench.one(Op::Write { durable: false }, 4096, 4096).unwrap();
        bench.one(Op::Write { durable: true }, 8192, 4096).unwrap();
        bench.one(Op::Flush, 0, 0).unwrap();
        bench.one(Op::WriteZeroes { unmap: false, durable: true }, 8192, 2048).unwrap();
        bench.one(Op::WriteZeroes { unmap: true, durable: false }, 4096, 512).unwrap();
        bench.one(Op::Read, 4096, 8192).unwrap();
        let mut bytes = vec![0; 8192];
        bench.mem.read_slice(&mut bytes, GuestAddress(0)).unwrap();
        let expected = |at: usize| if at < 512 || (4096..4096 + 2048).contains(&at) { 0 } else { 0xa5 };
        assert!(bytes.iter().enumerate().all(|(at, &byte)| byte == expected(at)));
        assert!(matches!(bench.one(Op::Discard, 4096, 4096), Ok(()) | Err(EngineError::Unsupported)));
        assert_eq!(bench.engine.in_flight(), 0);
    }
}

#[test]
fn what_ends_while_it_is_committed_wakes_nobody() {
    for (kind, inline_single) in [(Kind::Threads, true), (Kind::IoUring, false)] {
        let mut bench = bench(1 << 20, &EngineOptions { inline_single, ..options(kind) });
        // Now the page cache has it.
        bench.one(Op::Write { durable: false }, 0, 4096).unwrap();
        bench.wake.clear();
        for _ in 0..100 {
            bench.one(Op::Read, 0, 4096).unwrap();
            assert!(!bench.wake.clear(), "{kind:?} woke its worker for what the worker had already");
        }
    }
}

/// Whether the kernel has started threads for the rings of this one.
fn has_workers_of_the_kernel() -> bool {
    let this = std::fs::read_link("/proc/thread-self").unwrap();
    let name = format!("iou-wrk-{}", this.file_name().unwrap().to_str().unwrap());
    std::fs::read_dir("/proc/self/task").unwrap().any(|task| {
        // One that ends meanwhile is none of these.
        std::fs::read_to_string(task.unwrap().path().join("comm")).is_ok_and(|comm| comm.trim() == name)
    })
}

#[test]
fn a_long_request_is_done_by_others_than_the_committing_thread() {
    for kind in KINDS {
        let options = EngineOptions { inline_single: true, apart_bytes: 8192, ..options(kind) };
        let mut bench = bench_with(1 << 20, &options, Cache::Buffered);
        // Now the page cache has it.
        std::fs::write(bench.dir.as_path().join("disk"), vec![0x5a; 1 << 20]).unwrap();
        for len in [512, 4096, 8191] {
            bench.one(Op::Read, 0, len).unwrap();
            assert!(!bench.wake.clear(), "{kind:?}: {len} bytes");
        }
        assert!(!has_workers_of_the_kernel(), "{kind:?}");
        for (ranges, len) in [(1, 8192), (2, 16384)] {
            let ranges = (0..ranges).map(|at| GuestRange { address: at << 20, len: len / ranges as u32 });
            bench.mem.write_slice(&[0; 8192], GuestAddress(0)).unwrap();
            bench.engine.submit(1, Op::Read, 4096, len.into(), ranges);
            bench.engine.commit();
            if kind == Kind::Threads {
                let mut fds = [PollFd::new(bench.wake.as_raw_fd()).readable(true)];
                assert_eq!(poll(&mut fds, Some(20_000_000_000)).unwrap(), 1, "{len} bytes woke nobody");
            }
            bench.collect(1)[&1].unwrap();
            bench.wake.clear();
            assert_eq!(bench.mem.read_obj::<u32>(GuestAddress(4096)).unwrap(), 0x5a5a_5a5a);
        }
        assert_eq!(has_workers_of_the_kernel(), kind == Kind::IoUring);
    }
}

#[test]
fn what_goes_around_the_page_cache_is_long_nowhere() {
    let dir = TempDir::new().unwrap();
    let path = dir.as_path().join("disk");
    File::create(&path).unwrap().set_len(1 << 20).unwrap();
    let options = EngineOptions { apart_bytes: 8192, ..EngineOptions::default() };
    for cache in CACHES {
        let disk = Disk::open("d0", &path, DiskOptions { cache, ..DiskOptions::default() }).unwrap();
        let expected = if disk.alignment().is_some() { u64::MAX } else { 8192 };
        assert_eq!(options.apart_bytes_on(&disk), expected);
        assert!(cache == Cache::Auto || expected == 8192);
    }
}

#[test]
fn failures_say_what_failed() {
    for (kind, cache) in ways() {
        let mut bench = bench_with(4096, &options(kind), cache);
        assert_eq!(bench.one(Op::Read, 3584, 1024), Err(EngineError::Short));
        bench.engine.submit(9, Op::Read, 0, 512, [GuestRange { address: 8 << 20, len: 512 }]);
        bench.engine.commit();
        assert_eq!(bench.collect(1)[&9], Err(EngineError::Memory));
        assert_eq!(bench.one(Op::Write { durable: false }, u64::MAX, 512), Err(EngineError::Host(libc::EIO)));
        assert_eq!(bench.engine.in_flight(), 0);
    }
}

#[test]
fn batches_of_more_requests_than_threads_all_complete_with_their_own_data() {
    for kind in KINDS {
        batches(bench(8 << 20, &EngineOptions { threads: 3, depth: 64, ..options(kind) }));
    }
}

fn batches(mut bench: Bench) {
    for round in 0u64..50 {
        for n in 0..64u64 {
            assert!(bench.engine.has_room());
            bench.mem.write_obj(round * 1000 + n, GuestAddress(n * 4096)).unwrap();
            let range = GuestRange { address: n * 4096, len: 4096 };
            bench.engine.submit(n, Op::Write { durable: false }, n * 8192, 4096, [range]);
        }
        assert!(!bench.engine.has_room());
        bench.engine.commit();
        assert!(bench.collect(64).values().all(Result::is_ok));
        for n in 0..64u64 {
            let range = GuestRange { address: (4 << 20) + n * 4096, len: 4096 };
            bench.engine.submit(n, Op::Read, n * 8192, 4096, [range]);
        }
        bench.engine.commit();
        assert!(bench.collect(64).values().all(Result::is_ok));
        for n in 0..64u64 {
            let value: u64 = bench.mem.read_obj(GuestAddress((4 << 20) + n * 4096)).unwrap();
            assert_eq!(value, round * 1000 + n);
        }
    }
}

#[test]
fn cancelling_completes_every_request_exactly_once_and_the_engine_goes_on() {
    // What the kernel has begun it ends, and how much that is depends on its file systems.
    for (kind, least) in [(Kind::Threads, 1000), (Kind::IoUring, 0)] {
        let cancelled = cancelling(bench(8 << 20, &EngineOptions { threads: 1, depth: 128, ..options(kind) }));
        assert!(cancelled >= least, "{kind:?}: {cancelled}");
    }
}

fn cancelling(mut bench: Bench) -> usize {
    let mut cancelled = 0;
    for _ in 0..20 {
        for n in 0..100u64 {
            let range = GuestRange { address: 0, len: 1 << 20 };
            bench.engine.submit(n, Op::Write { durable: true }, 0, 1 << 20, [range]);
            if n == 80 {
                bench.engine.commit();
            }
        }
        bench.engine.cancel_all();
        let results = bench.collect(100);
        assert!(results.values().all(|result| matches!(result, Ok(()) | Err(EngineError::Cancelled))));
        cancelled += results.values().filter(|result| result.is_err()).count();
        assert_eq!(bench.engine.in_flight(), 0);
        bench.one(Op::Read, 0, 512).unwrap();
    }
    cancelled
}

#[test]
fn memory_outlives_requests_whose_engine_goes_away() {
    for kind in KINDS {
        for _ in 0..20 {
            let Bench { mut engine, mem, .. } = bench(8 << 20, &options(kind));
            for n in 0..8 {
                engine.submit(n, Op::Read, 0, 1 << 20, [GuestRange { address: n << 20, len: 1 << 20 }]);
            }
            engine.commit();
            drop(mem);
            drop(engine);
        }
    }
}

#[test]
fn more_than_the_depth_and_more_pieces_than_a_call_takes_are_done_all_the_same() {
    for (kind, cache) in ways() {
        // With direct I/O no piece of 64 bytes is taken as it is, and there is one chunk of bounce buffers for all.
        let mut bench = bench_with(8 << 20, &EngineOptions { depth: 4, bounce_bytes: 1 << 16, ..options(kind) }, cache);
        let bytes: Vec<u8> = (0..1 << 20).map(|n: u32| (n % 251) as u8).collect();
        bench.mem.write_slice(&bytes, GuestAddress(0)).unwrap();
        for n in 0..40u64 {
            // 2048 pieces of 64 bytes, in two calls.
            let start = n * 0x2000;
            let pieces = (0..2048).map(|piece| GuestRange { address: start + piece * 64, len: 64 });
            bench.engine.submit(n, Op::Write { durable: false }, n * 0x2_0000, 0x2_0000, pieces);
        }
        bench.engine.commit();
        assert!(bench.collect(40).values().all(Result::is_ok), "{kind:?} {cache:?}");
        for n in 0..40u64 {
            let into = GuestRange { address: 4 << 20, len: 0x2_0000 };
            bench.engine.submit(n, Op::Read, n * 0x2_0000, 0x2_0000, [into]);
            bench.engine.commit();
            bench.collect(1)[&n].unwrap();
            let mut found = vec![0; 0x2_0000];
            bench.mem.read_slice(&mut found, GuestAddress(4 << 20)).unwrap();
            let start = (n * 0x2000) as usize;
            assert!(found == bytes[start..start + 0x2_0000], "{kind:?} {cache:?}, request {n}");
        }
    }
}

#[test]
fn a_disk_is_free_for_others_as_soon_as_its_engine_is_gone() {
    for kind in KINDS {
        let dir = TempDir::new().unwrap();
        let path = dir.as_path().join("disk");
        File::create(&path).unwrap().set_len(1 << 20).unwrap();
        for round in 0..50 {
            let disk = Disk::open("d0", &path, DiskOptions::default());
            let disk = Arc::new(disk.unwrap_or_else(|error| panic!("{kind:?}, round {round}: {error}")));
            let mem: SharedRam = Arc::new(allocate(&[(0, 1 << 20)], &RamOptions::default()).unwrap());
            let wake = Arc::new(Event::new().unwrap());
            let mut engine = Engine::start("disk", disk, mem, wake, &options(kind)).unwrap();
            engine.submit(1, Op::Read, 0, 512, [GuestRange { address: 0, len: 512 }]);
            engine.commit();
        }
    }
}

#[test]
fn a_disk_that_shrinks_while_it_is_used_ends_early() {
    for (kind, cache) in ways() {
        let mut bench = bench_with(1 << 20, &options(kind), cache);
        let file = File::options().write(true).open(bench.dir.as_path().join("disk")).unwrap();
        // In the middle of a sector, between sectors, and before what is read.
        for (end, at) in [(0x9000 + 100, 0x8000), (0x8200, 0x8000), (0x4000, 0x8000)] {
            file.set_len(end).unwrap();
            for (address, len) in [(0, 0x4000), (3, 0x4000), (4096, 512)] {
                let is_beyond = at + u64::from(len) > end;
                bench.engine.submit(1, Op::Read, at, len.into(), [GuestRange { address, len }]);
                bench.engine.commit();
                let expected = if is_beyond { Err(EngineError::Short) } else { Ok(()) };
                assert_eq!(bench.collect(1)[&1], expected, "{kind:?} {cache:?} {end:#x} {address} {len}");
            }
        }
        bench.one(Op::Read, 0, 0x4000).unwrap();
    }
}

#[test]
fn files_in_memory_are_read_and_written_by_every_engine() {
    for kind in KINDS {
        let dir = TempDir::new_in(std::path::Path::new("/dev/shm")).unwrap();
        let mut bench = bench_in(dir, 1 << 20, &options(kind), Cache::Auto);
        bench.mem.write_obj(0x0123_4567_89ab_cdefu64, GuestAddress(0)).unwrap();
        bench.one(Op::Write { durable: false }, 4096, 4096).unwrap();
        bench.mem.write_obj(0u64, GuestAddress(0)).unwrap();
        bench.one(Op::Read, 4096, 4096).unwrap();
        assert_eq!(bench.mem.read_obj::<u64>(GuestAddress(0)).unwrap(), 0x0123_4567_89ab_cdef);
    }
}

/// Runs `test` with a file system of 64 KiB in a folder, that nobody else sees and that goes with it.
fn on_a_small_file_system(test: impl FnOnce(TempDir) + Send + 'static) {
    let mounted = |path: &std::path::Path| -> io::Result<()> {
        let path = std::ffi::CString::new(path.to_str().unwrap()).unwrap();
        let none = std::ptr::null();
        let private = libc::MS_REC | libc::MS_PRIVATE;
        // SAFETY: each takes C strings or nothing, and changes only what this thread and its children see.
        unsafe {
            crate::check(libc::unshare(libc::CLONE_NEWNS))?;
            crate::check(libc::mount(none, c"/".as_ptr(), none, private, none.cast()))?;
            let (tmpfs, size) = (c"tmpfs".as_ptr(), c"size=64k".as_ptr());
            crate::check(libc::mount(tmpfs, path.as_ptr(), tmpfs, 0, size.cast())).map(drop)
        }
    };
    let thread = std::thread::spawn(move || {
        let dir = TempDir::new().unwrap();
        match mounted(dir.as_path()) {
            Ok(()) => test(dir),
            Err(error) => println!("SKIP: no file system can be mounted: {error}"),
        }
    });
    thread.join().unwrap();
}

#[test]
fn a_full_file_system_fails_the_requests_that_need_space_and_no_others() {
    on_a_small_file_system(|dir| {
        for kind in KINDS {
            let dir = TempDir::new_in(dir.as_path()).unwrap();
            let mut bench = bench_in(dir, 1 << 20, &options(kind), Cache::Auto);
            bench.mem.write_slice(&[0x5a; 4096], GuestAddress(0)).unwrap();
            bench.one(Op::Write { durable: true }, 0, 16384).unwrap();
            let full = Err(EngineError::Host(libc::ENOSPC));
            assert_eq!(bench.one(Op::Write { durable: false }, 16384, 65536), full, "{kind:?}");
            // What found no hole to be had is written, and finds no space either.
            assert_eq!(bench.one(Op::WriteZeroes { unmap: false, durable: false }, 131_072, 131_072), full, "{kind:?}");
            bench.one(Op::Flush, 0, 0).unwrap();
            bench.one(Op::Read, 0, 4096).unwrap();
            assert_eq!(bench.mem.read_obj::<u8>(GuestAddress(4095)).unwrap(), 0x5a);
            // The guest makes room, and goes on.
            bench.one(Op::Discard, 0, 1 << 20).unwrap();
            bench.one(Op::Write { durable: true }, 131_072, 32768).unwrap();
        }
    });
}

#[test]
fn cancelling_ends_requests_that_wait_for_a_bounce_buffer() {
    for kind in KINDS {
        let mut bench = bench(8 << 20, &EngineOptions { threads: 1, bounce_bytes: 1, ..options(kind) });
        for round in 0..20 {
            for n in 0..50u64 {
                let range = GuestRange { address: 1 + n, len: 1 << 20 };
                bench.engine.submit(n, Op::Write { durable: false }, 0, 1 << 20, [range]);
            }
            bench.engine.commit();
            bench.engine.cancel_all();
            let results = bench.collect(50);
            let done = results.values().filter(|result| result.is_ok()).count();
            assert!(results.values().all(|result| matches!(result, Ok(()) | Err(EngineError::Cancelled))));
            assert!(bench.engine.in_flight() == 0 && done < 50, "{kind:?}, round {round}: {done}");
            bench.engine.submit(1, Op::Read, 0, 512, [GuestRange { address: 7, len: 512 }]);
            bench.engine.commit();
            bench.collect(1)[&1].unwrap();
        }
    }
}

/// A request over any pieces of guest memory: where it starts on the disk, and each piece's distance from the end of the
/// one before and its length.
fn any_request() -> impl Strategy<Value = (u64, Vec<(u64, u32)>)> {
    // Lengths that are blocks, and any others; what is missing to a whole sector comes as a last piece.
    let len = prop_oneof![Just(512u32), Just(4096), Just(65536), 0u32..9000, 1u32..4];
    let gap = prop_oneof![Just(0u64), Just(512), Just(4096), 1u64..2000];
    (0u64..64, prop::collection::vec((gap, len), 1..12)).prop_map(|(sector, mut pieces)| {
        let sum: u32 = pieces.iter().map(|piece| piece.1).sum();
        pieces.push((1, sum.next_multiple_of(512) - sum));
        (sector * 512, pieces)
    })
}

fn ranges_of(pieces: &[(u64, u32)]) -> Vec<GuestRange> {
    let mut address = 0;
    let piece = |&(gap, len): &(u64, u32)| {
        let start = address + gap;
        address = start + u64::from(len);
        GuestRange { address: start, len }
    };
    pieces.iter().map(piece).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, ..ProptestConfig::default() })]

    /// What the engine moves is what a plain copy moves, and nothing else changes: neither on the disk nor in memory.
    #[test]
    fn any_pieces_of_memory_are_moved_as_a_plain_copy_would(
        requests in prop::collection::vec((any::<bool>(), any_request()), 1..8),
        bounce_bytes in prop_oneof![Just(1usize), Just(100_000), Just(16 << 20)],
    ) {
        const DISK_BYTES: usize = 1 << 20;
        for (kind, cache) in ways() {
            let mut bench = bench_with(DISK_BYTES as u64, &EngineOptions { bounce_bytes, ..options(kind) }, cache);
            let mut memory: Vec<u8> = (0..1u32 << 20).map(|n| (n.wrapping_mul(0x9e37_79b1) >> 24) as u8).collect();
            let mut disk = vec![0u8; DISK_BYTES];
            bench.mem.write_slice(&memory, GuestAddress(0)).unwrap();
            for (is_write, (offset, pieces)) in &requests {
                let ranges = ranges_of(pieces);
                let op = if *is_write { Op::Write { durable: false } } else { Op::Read };
                bench.engine.submit(1, op, *offset, 0, ranges.iter().copied());
                bench.engine.commit();
                prop_assert_eq!(bench.collect(1)[&1], Ok(()), "{:?} {:?}", kind, cache);
                let mut at = *offset as usize;
                for range in ranges {
                    let (start, len) = (range.address as usize, range.len as usize);
                    let (there, here) = (&mut disk[at..at + len], &mut memory[start..start + len]);
                    if *is_write { there.copy_from_slice(here) } else { here.copy_from_slice(there) }
                    at += len;
                }
            }
            let mut found = vec![0; memory.len()];
            bench.mem.read_slice(&mut found, GuestAddress(0)).unwrap();
            prop_assert!(found == memory, "memory, {:?} {:?}", kind, cache);
            prop_assert!(std::fs::read(bench.dir.as_path().join("disk")).unwrap() == disk, "disk, {:?} {:?}", kind, cache);
        }
    }
}
