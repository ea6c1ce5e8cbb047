//! Once a queue runs, its engine allocates nothing. A program of its own, because it counts what the whole process
//! allocates.

use std::alloc::{GlobalAlloc, Layout, System};
use std::fs::File;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use devices_host::Event;
use devices_host::disk::{Cache, Disk, DiskOptions};
use devices_host::engine::{Engine, EngineOptions, Kind, Op};
use devices_host::iovec::GuestRange;
use devices_host::poll::{PollFd, poll};
use devices_host::ram::{RamOptions, allocate};

struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: everything is handed on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promises are the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, len: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.realloc(pointer, layout, len) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// `shift_bytes`: where the guest's buffers begin, so that direct I/O refuses them or takes them.
fn rounds(engine: &mut Engine, wake: &Event, count: u64, shift_bytes: u64) {
    const DEPTH: u64 = 32;
    for round in 0..count {
        for n in 0..DEPTH {
            let op = if (round + n) % 3 == 0 { Op::Read } else { Op::Write { durable: false } };
            let ranges = (0..16).map(|piece| GuestRange { address: shift_bytes + n * 65536 + piece * 4096, len: 4096 });
            engine.submit(n, op, n * 65536, 65536, ranges);
        }
        engine.commit();
        engine.poll(|_, result| result.unwrap());
        while engine.in_flight() > 0 {
            poll(&mut [PollFd::new(wake.as_raw_fd()).readable(true)], Some(10_000_000_000)).unwrap();
            wake.clear();
            engine.poll(|_, result| result.unwrap());
        }
    }
}

#[test]
fn an_engine_that_has_seen_its_largest_requests_allocates_nothing() {
    let path = std::env::temp_dir().join(format!("allocations-{}", std::process::id()));
    File::create(&path).unwrap().set_len(4 << 20).unwrap();
    let mem = Arc::new(allocate(&[(0, 5 << 20)], &RamOptions::default()).unwrap());
    let wake = Arc::new(Event::new().unwrap());
    for cache in [Cache::Buffered, Cache::Auto] {
        let disk = Arc::new(Disk::open("d0", &path, DiskOptions { cache, ..DiskOptions::default() }).unwrap());
        for kind in [Kind::Threads, Kind::IoUring] {
            // Bounce buffers for half of the requests in flight: the others wait.
            let options = EngineOptions { kind, bounce_bytes: 1 << 20, ..EngineOptions::default() };
            let mut engine = Engine::start("disk", disk.clone(), mem.clone(), wake.clone(), &options).unwrap();
            for shift_bytes in [0, 2] {
                rounds(&mut engine, &wake, 20, shift_bytes);
                let before = ALLOCATIONS.load(Ordering::Relaxed);
                rounds(&mut engine, &wake, 50, shift_bytes);
                assert_eq!(ALLOCATIONS.load(Ordering::Relaxed) - before, 0, "{cache:?} {kind:?} {shift_bytes}");
            }
        }
    }
    std::fs::remove_file(&path).unwrap();
}
