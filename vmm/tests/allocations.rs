//! Once a disk runs, neither its worker nor its engine allocates anything. A program of its own, because it counts what
//! the whole process allocates.

#![cfg(target_os = "linux")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use devices::virtio::blk::{BlkConfig, BlkDevice};
use devices::virtio::queue::{F_EVENT_IDX, F_INDIRECT_DESC, F_RING_PACKED};
use devices::virtio::testing::{Buf, DriverQueue, guest_ram};
use devices::virtio::{NeedsReset, VirtioInterrupt, VirtioWorker, WorkerActivation};
use devices_host::Event;
use devices_host::disk::{Disk, DiskOptions};
use devices_host::engine::{Engine, EngineOptions, Kind};
use zvmm::machine::EngineDisk;

struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system's allocator unchanged; the counter needs no allocation of its own.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promises are passed on.
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

/// An interrupt as KVM takes it.
struct Line(Event);

impl VirtioInterrupt for Line {
    fn queue_used(&self, _queue: u16) {
        self.0.wake();
    }
    fn config_changed(&self) {}
    fn needs_reset(&self, why: &NeedsReset) {
        panic!("{}", why.reason);
    }
}

#[test]
fn a_disk_that_has_seen_its_largest_requests_allocates_nothing() {
    for kind in [Kind::Threads, Kind::IoUring] {
        for rings in [0, F_RING_PACKED] {
            let allocations = steady_state(kind, rings);
            assert_eq!(allocations, 0, "{kind:?}, rings {rings:#x}");
        }
    }
}

/// Allocations of the rounds behind the first ones.
fn steady_state(kind: Kind, rings: u64) -> usize {
    let file = tempfile::NamedTempFile::new().unwrap();
    File::create(file.path()).unwrap().set_len(4 << 20).unwrap();
    let disk = Arc::new(Disk::open("d0", file.path(), DiskOptions::default()).unwrap());
    let mem = guest_ram(0x40_0000);
    let wake = Arc::new(Event::new().unwrap());
    let options = EngineOptions { kind, inline_single: true, ..EngineOptions::default() };
    let engine = Engine::start("d0", disk, Arc::new(mem.clone()), wake.clone(), &options).unwrap();
    let device = BlkDevice::new(BlkConfig { capacity_sectors: 8192, ..BlkConfig::default() });
    let mut worker = device.worker(0, EngineDisk(engine), Arc::default());
    let features = 1 << 32 | 1 << 9 | F_INDIRECT_DESC | F_EVENT_IDX | rings;
    let mut driver = DriverQueue::new(&mem, 0x10_0000, 256, features);
    let activation = WorkerActivation { features, legacy: false, interrupt: Arc::new(Line(Event::new().unwrap())) };
    worker.start(&mem, 0, driver.state(), &activation);

    let mut allocations = 0;
    for round in 0..60u64 {
        // One alone, too: some engines do that themselves.
        let requests = if round % 2 == 0 { 32 } else { 1 };
        for n in 0..requests {
            let write = (round / 2 + n) % 3 == 0;
            let mut header = vec![0; 16];
            header[0] = u8::from(write);
            header[8..].copy_from_slice(&(8 * n).to_le_bytes());
            let data = if write { Buf::Read(vec![7; 4096]) } else { Buf::Write(4096) };
            driver.post_indirect(&[Buf::Read(header), data, Buf::Write(1)]);
        }
        driver.publish();
        let before = ALLOCATIONS.load(Ordering::Relaxed);
        loop {
            while worker.step(&mem).again {}
            if worker.backend().0.in_flight() == 0 {
                break;
            }
            wake.wait();
        }
        if round >= 20 {
            allocations += ALLOCATIONS.load(Ordering::Relaxed) - before;
        }
        assert_eq!(driver.used().len() as u64, requests);
    }
    allocations
}
