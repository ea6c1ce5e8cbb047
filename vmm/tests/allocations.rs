//! Once a disk or a network interface runs, neither its workers nor what is behind them allocate anything. A program of its
//! own, because it counts what the whole process allocates.

#![cfg(target_os = "linux")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use devices::virtio::blk::{BlkConfig, BlkDevice};
use devices::virtio::net::{NetConfig, NetDevice, RX_QUEUE, TX_QUEUE};
use devices::virtio::queue::{F_EVENT_IDX, F_INDIRECT_DESC, F_RING_PACKED};
use devices::virtio::testing::{Buf, DriverQueue, guest_ram};
use devices::virtio::{NeedsReset, VirtioInterrupt, VirtioWorker, WorkerActivation};
use devices_host::Event;
use devices_host::disk::{Disk, DiskOptions};
use devices_host::engine::{Engine, EngineOptions, Kind};
use devices_host::tap::Tap;
use zvmm::machine::{EngineDisk, TapLink};

#[path = "p0/tap.rs"]
#[expect(dead_code, reason = "nobody talks to the host's address here")]
mod tap;

struct Counting;

/// One test at a time: all are counted together.
static TURN: Mutex<()> = Mutex::new(());

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
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
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

#[test]
fn an_interface_that_has_seen_its_largest_frames_allocates_nothing() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Err(error) = tap::enter() {
        eprintln!("skipped: a network namespace of its own: {error}");
        return;
    }
    for rings in [0, F_RING_PACKED] {
        let allocations = moving_frames(rings);
        assert_eq!(allocations, 0, "rings {rings:#x}");
    }
}

/// Allocations of the rounds behind the first ones, of frames of all lengths each way.
fn moving_frames(rings: u64) -> usize {
    const ROUNDS: usize = 60;
    let mem = guest_ram(0x80_0000);
    let tap = Tap::open(tap::NAME).unwrap();
    let host = host_side().unwrap();
    let config = NetConfig { mac: [2; 6], mtu: None, offloads: true, queue_size: 256, speed_mbits: None, duplex: None };
    let mut worker = NetDevice::new(config).worker(TapLink::new(tap), Default::default());
    // CSUM, GUEST_CSUM, both TSO4 and MRG_RXBUF.
    let features = 1 << 32 | 1 | 1 << 1 | 1 << 7 | 1 << 11 | 1 << 15 | F_INDIRECT_DESC | F_EVENT_IDX | rings;
    let mut rx = DriverQueue::new(&mem, 0x10_0000, 256, features);
    let mut tx = DriverQueue::new(&mem, 0x40_0000, 256, features);
    let activation = WorkerActivation { features, legacy: false, interrupt: Arc::new(Line(Event::new().unwrap())) };
    worker.start(&mem, RX_QUEUE, rx.state(), &activation);
    worker.start(&mem, TX_QUEUE, tx.state(), &activation);

    let mut allocations = 0;
    let post = |rx: &mut DriverQueue| {
        while rx.free() > 0 {
            rx.post(&[Buf::Write(1536)]);
        }
        rx.publish();
    };
    // The host gives a device frames from some time after it was opened.
    let opened = Instant::now();
    loop {
        post(&mut rx);
        host.send(&frame(60));
        while worker.step(&mem).again {}
        if !rx.used().is_empty() {
            break;
        }
        assert!(opened.elapsed() < Duration::from_secs(10), "the host sends nothing");
        std::thread::sleep(Duration::from_millis(1));
    }
    for round in 0..ROUNDS {
        post(&mut rx);
        for n in 0..8 {
            // A large segment goes in pieces of a page, as Linux has them.
            let len = [60, 1514, 40_000][(round + n) % 3];
            let mut bufs = vec![Buf::Read(vec![0; 12])];
            let data = frame(len);
            bufs.extend(data.chunks(4096).map(|piece| Buf::Read(piece.to_vec())));
            tx.post_indirect(&bufs);
            // The host's end takes no longer ones.
            host.send(&data[..len.min(1514)]);
        }
        tx.publish();
        let before = ALLOCATIONS.load(Ordering::Relaxed);
        while worker.step(&mem).again {}
        if round >= ROUNDS / 2 {
            allocations += ALLOCATIONS.load(Ordering::Relaxed) - before;
        }
        assert_eq!(tx.used().len(), 8);
        // With what the host's stack says by itself.
        assert!(rx.used().len() >= 8, "round {round}");
    }
    allocations
}

/// A frame to everybody, of a type that nobody's stack answers.
fn frame(len: usize) -> Vec<u8> {
    let mut frame = vec![7; len];
    frame[..12].copy_from_slice(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 1]);
    frame[12..14].copy_from_slice(&[0x88, 0xb5]);
    frame
}

/// The host's side of the device.
struct HostSide(OwnedFd);

fn host_side() -> io::Result<HostSide> {
    let check = |result: libc::c_int| if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) };
    // SAFETY: valid arguments; the address is a whole sockaddr_ll.
    unsafe {
        let socket = OwnedFd::from_raw_fd(check(libc::socket(libc::AF_PACKET, libc::SOCK_RAW, 0))?);
        let mut address: libc::sockaddr_ll = std::mem::zeroed();
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_ifindex = libc::if_nametoindex(c"tap0".as_ptr()) as i32;
        check(libc::bind(socket.as_raw_fd(), (&raw const address).cast(), size_of_val(&address) as u32))?;
        Ok(HostSide(socket))
    }
}

impl HostSide {
    fn send(&self, frame: &[u8]) {
        // SAFETY: the buffer has the length given.
        let sent = unsafe { libc::send(self.0.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
        assert_eq!(usize::try_from(sent), Ok(frame.len()), "{}", io::Error::last_os_error());
    }
}
