use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::PathBuf;

use devices::GuestRam;
use devices::virtio::blk::BlkConfig;
use devices::virtio::testing::{Buf, DriverQueue, MemoryDisk, Posted, RecordingInterrupt, guest_ram};
use devices::virtio::{Activation, QueueRunner};
use devices_host::disk::DiskOptions;
use devices_host::event::Event;
use devices_host::poll::{PollFd, poll};

use super::*;
use crate::control::{Inbox, Notice};
use crate::worker::{Rings, WorkerSpec};

const MIB: u64 = 1 << 20;
const VERSION_1: u64 = 1 << 32;
const SHORT_NS: u64 = 50_000_000;

/// A disk of 1 MiB whose requests a memory disk serves, and whose file only has a length.
struct Rig {
    file: PathBuf,
    memory: MemoryDisk,
    device: BlkDevice,
    workers: Arc<DeviceWorkers>,
    interrupt: Arc<RecordingInterrupt>,
    ram: GuestRam,
    driver: DriverQueue,
    inbox: Inbox,
    resizer: Resizer,
    tickets: u64,
    _dir: tempfile::TempDir,
}

impl Rig {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("disk");
        File::create(&file).unwrap().set_len(MIB).unwrap();
        Self::on(dir, file, false)
    }

    fn on(dir: tempfile::TempDir, file: PathBuf, read_only: bool) -> Self {
        let disk = Arc::new(Disk::open("disk0", &file, DiskOptions { read_only, ..DiskOptions::default() }).unwrap());
        let device =
            BlkDevice::new(BlkConfig { capacity_sectors: MIB / 512, read_only, queues: 2, ..Default::default() });
        let (memory, ram) = (MemoryDisk::new(2 * MIB as usize), guest_ram(4 * MIB as usize));
        let spec = |queue| WorkerSpec {
            name: format!("disk0-q{queue}"),
            // The second queue's worker has nothing to do, but to be held as well.
            worker: Box::new(device.worker(
                queue,
                if queue == 0 { memory.clone() } else { MemoryDisk::default() },
                Arc::default(),
            )),
            wake: Arc::new(Event::new().unwrap()),
            backend_fd: None,
            counters: Vec::new(),
            poll_ns: 0,
        };
        let workers = DeviceWorkers::spawn(&ram, Rings::default(), vec![spec(0), spec(1)]).unwrap();
        let (inbox, interrupt) = (Inbox::new().unwrap(), RecordingInterrupt::new());
        let resizable = ResizableDisk {
            id: "disk0".into(),
            device: device.clone(),
            disk,
            block_bytes: 512,
            workers: workers.clone(),
            interrupt: interrupt.clone(),
        };
        let resizer = Resizer::new(vec![resizable], inbox.sender());
        let driver = DriverQueue::new(&ram, 0, 16, VERSION_1);
        Self { file, memory, device, workers, interrupt, ram, driver, inbox, resizer, tickets: 0, _dir: dir }
    }

    fn started() -> Self {
        let mut rig = Self::new();
        rig.start();
        rig
    }

    fn start(&mut self) {
        self.driver = DriverQueue::new(&self.ram, 0, 16, VERSION_1);
        let queues = vec![(0, self.driver.state())];
        let (features, legacy, interrupt) = (VERSION_1, false, self.interrupt.clone());
        self.workers.start(Activation { features, legacy, queues, interrupt });
    }

    fn begin(&mut self, size_bytes: impl Into<Option<u64>>) -> Ticket {
        self.tickets += 1;
        let ticket = Ticket(self.tickets);
        self.resizer.begin(&DiskResize { disk: "disk0".into(), size_bytes: size_bytes.into() }, ticket);
        ticket
    }

    /// A turn of the main loop; the answer that came in it.
    fn turn(&self, limit_ns: u64) -> Option<(Ticket, Result<(), String>)> {
        let now_ns = clock::monotonic_ns();
        let wait_ns = self.resizer.deadline_ns().map_or(limit_ns, |at_ns| at_ns.saturating_sub(now_ns).min(limit_ns));
        poll(&mut [PollFd::new(self.inbox.as_raw_fd()).readable(true)], Some(wait_ns)).unwrap();
        self.inbox.clear();
        let now_ns = clock::monotonic_ns();
        if self.resizer.deadline_ns().is_some_and(|at_ns| at_ns <= now_ns) {
            self.resizer.tick(now_ns);
        }
        match self.inbox.next() {
            Some(Notice::Answer(ticket, result)) => Some((ticket, result)),
            Some(other) => panic!("{other:?}"),
            None => None,
        }
    }

    fn answer(&self, ticket: Ticket) -> Result<(), String> {
        let end_ns = clock::monotonic_ns() + 10_000_000_000;
        loop {
            if let Some((answered, result)) = self.turn(100_000_000) {
                assert_eq!(answered, ticket);
                return result;
            }
            assert!(clock::monotonic_ns() < end_ns, "no answer");
        }
    }

    fn resize(&mut self, size_bytes: impl Into<Option<u64>>) -> Result<(), String> {
        let ticket = self.begin(size_bytes);
        self.answer(ticket)
    }

    /// No answer comes for a while.
    fn nothing_happens(&self) {
        for _ in 0..5 {
            assert_eq!(self.turn(5_000_000), None);
        }
    }

    fn file_bytes(&self) -> u64 {
        self.file.metadata().unwrap().len()
    }

    fn shown_bytes(&self) -> u64 {
        self.device.capacity_sectors() * 512
    }

    fn post(&mut self, sector: u64) -> Posted {
        let header = [[0; 8], sector.to_le_bytes()].concat();
        let posted = self.driver.post(&[Buf::Read(header), Buf::Write(512), Buf::Write(1)]);
        self.driver.publish();
        self.workers.kick(0);
        posted
    }

    /// The status of each of the requests in flight, when all are over.
    fn statuses<const N: usize>(&mut self, posted: [Posted; N]) -> [u8; N] {
        let end_ns = clock::monotonic_ns() + 10_000_000_000;
        let mut used = 0;
        while used < N {
            assert!(clock::monotonic_ns() < end_ns, "{used} of {N} requests came back");
            used += self.driver.used().len();
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        posted.map(|posted| self.driver.read(posted.buffers[2])[0])
    }

    fn status(&mut self, posted: Posted) -> u8 {
        self.statuses([posted])[0]
    }

    fn read(&mut self, sector: u64) -> u8 {
        let posted = self.post(sector);
        self.status(posted)
    }

    /// Lets what is held complete.
    fn complete(&self) {
        self.memory.hold(false);
        while self.memory.complete(0) {}
        self.workers.kick(0);
    }

    /// Has a request in flight at the end of the disk.
    fn busy() -> (Self, Posted) {
        let mut rig = Self::started();
        rig.memory.hold(true);
        let posted = rig.post(MIB / 512 - 1);
        while rig.memory.take_log().is_empty() {
            std::thread::yield_now();
        }
        (rig, posted)
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.complete();
        self.workers.join();
    }
}

const OK: u8 = 0;
const IO_ERROR: u8 = 1;

#[test]
fn a_disk_that_grows_has_its_space_before_its_driver_is_told_and_can_be_used_to_its_end() {
    let mut rig = Rig::started();
    assert_eq!(rig.read(MIB / 512), IO_ERROR);
    assert_eq!(rig.resize(2 * MIB), Ok(()));
    assert_eq!((rig.file_bytes(), rig.shown_bytes()), (2 * MIB, 2 * MIB));
    assert_eq!((rig.interrupt.take_config_changes(), rig.read(2 * MIB / 512 - 1)), (1, OK));
    assert_eq!(rig.resize(2 * MIB), Ok(()));
    assert_eq!(rig.interrupt.take_config_changes(), 0, "nothing is new");
}

#[test]
fn a_disk_shrinks_when_what_is_in_flight_is_over_and_nothing_is_taken_meanwhile() {
    let (mut rig, first) = Rig::busy();
    let ticket = rig.begin(MIB / 2);
    let (inside, beyond) = (rig.post(0), rig.post(MIB / 512 - 1));
    rig.nothing_happens();
    assert_eq!((rig.file_bytes(), rig.shown_bytes(), rig.interrupt.take_config_changes()), (MIB, MIB, 0));
    assert!(rig.memory.take_log().is_empty(), "taken while the disk shrinks");
    rig.complete();
    assert_eq!(rig.answer(ticket), Ok(()));
    assert_eq!((rig.file_bytes(), rig.shown_bytes(), rig.interrupt.take_config_changes()), (MIB / 2, MIB / 2, 1));
    assert_eq!(rig.statuses([first, inside, beyond]), [OK, OK, IO_ERROR]);
}

#[test]
fn a_disk_that_grows_does_not_wait_for_what_is_in_flight() {
    let (mut rig, first) = Rig::busy();
    assert_eq!(rig.resize(2 * MIB), Ok(()));
    rig.complete();
    assert_eq!(rig.status(first), OK);
}

#[test]
fn a_back_end_that_hangs_is_an_error_in_time_and_leaves_all_as_it_was() {
    let (mut rig, first) = Rig::busy();
    rig.resizer.patience_ns = SHORT_NS;
    let before_ns = clock::monotonic_ns();
    assert_eq!(rig.resize(512), Err(format!("disk0: {TOO_SLOW}")));
    assert!(clock::monotonic_ns() - before_ns < 20 * SHORT_NS);
    assert_eq!((rig.file_bytes(), rig.shown_bytes(), rig.interrupt.take_config_changes()), (MIB, MIB, 0));
    assert_eq!(rig.resizer.deadline_ns(), None, "the main loop is left alone");
    let second = rig.post(7);
    rig.complete();
    assert_eq!(rig.statuses([first, second]), [OK, OK]);
    assert_eq!(rig.resize(512), Ok(()));
    assert_eq!(rig.file_bytes(), 512);
}

#[test]
fn a_worker_that_hangs_before_the_file_is_touched_leaves_it_alone_for_ever() {
    let mut rig = Rig::started();
    rig.resizer.patience_ns = SHORT_NS;
    let (sender, receiver) = std::sync::mpsc::channel::<()>();
    for size in [Some(2 * MIB), None] {
        let (hang, begun) = (Arc::new(Mutex::new(())), std::sync::mpsc::channel());
        let guard = hang.lock().unwrap();
        rig.workers.run(Box::new({
            let hang = hang.clone();
            move || {
                begun.0.send(()).unwrap();
                drop(hang.lock());
            }
        }));
        begun.1.recv().unwrap();
        assert_eq!(rig.resize(size), Err(format!("disk0: {TOO_SLOW}")), "{size:?}");
        drop(guard);
        let sender = sender.clone();
        rig.workers.run(Box::new(move || sender.send(()).unwrap()));
        receiver.recv().unwrap();
        assert_eq!((rig.file_bytes(), rig.shown_bytes()), (MIB, MIB));
    }
    assert_eq!(rig.resize(2 * MIB), Ok(()));
}

#[test]
fn what_has_begun_is_waited_for_without_waking_the_main_loop() {
    let task = Task::new();
    let (begun, go_on) = (std::sync::mpsc::channel(), std::sync::mpsc::channel::<()>());
    let inbox = Inbox::new().unwrap();
    let job = task.job(
        move || {
            begun.0.send(()).unwrap();
            go_on.1.recv().unwrap();
            Ok(())
        },
        Arc::new(inbox.sender()),
    );
    let thread = std::thread::spawn(job);
    begun.1.recv().unwrap();
    let mut rig = Rig::new();
    let ticket = rig.begin(2 * MIB);
    assert_eq!(rig.answer(ticket), Ok(()));
    let step = Step::Setting { task, to_bytes: MIB, shown_bytes: None };
    let change = Change { disk: 0, wanted_bytes: Some(MIB), ticket, deadline_ns: Some(1), step };
    rig.resizer.changes().push(change);
    assert_eq!(rig.resizer.deadline_ns(), Some(1));
    rig.resizer.tick(2);
    assert_eq!(rig.resizer.deadline_ns(), None);
    go_on.0.send(()).unwrap();
    thread.join().unwrap();
    assert_eq!(rig.answer(ticket), Ok(()));
}

#[test]
fn a_disk_of_a_paused_machine_changes_at_once_and_its_queues_wait_for_the_machine() {
    let mut rig = Rig::started();
    let paused = Parked::new();
    rig.workers.pause(Holder::Machine, paused.clone());
    while !paused.is_complete() {
        std::thread::yield_now();
    }
    let posted = rig.post(MIB / 512 - 1);
    for (bytes, changes) in [(MIB / 2, 1), (2 * MIB, 1)] {
        assert_eq!(rig.resize(bytes), Ok(()));
        assert_eq!((rig.shown_bytes(), rig.interrupt.take_config_changes()), (bytes, changes));
    }
    assert!(rig.driver.used().is_empty() && rig.memory.take_log().is_empty());
    rig.workers.resume(Holder::Machine);
    assert_eq!(rig.status(posted), OK);
}

#[test]
fn a_pause_that_begins_or_ends_while_a_disk_shrinks_is_one_and_is_over_after() {
    for pause_first in [true, false] {
        let (mut rig, first) = Rig::busy();
        let paused = Parked::new();
        if pause_first {
            rig.workers.pause(Holder::Machine, paused.clone());
        }
        let ticket = rig.begin(MIB / 2);
        if !pause_first {
            rig.workers.pause(Holder::Machine, paused.clone());
        }
        rig.complete();
        assert_eq!(rig.answer(ticket), Ok(()));
        assert!(paused.is_complete());
        assert_eq!(rig.status(first), OK);
        let second = rig.post(0);
        rig.nothing_happens();
        assert!(rig.driver.used().is_empty(), "the machine stands still");
        rig.workers.resume(Holder::Machine);
        assert_eq!(rig.status(second), OK);
    }
}

#[test]
fn a_device_that_is_reset_and_started_while_it_shrinks_begins_with_the_new_size() {
    let (mut rig, _) = Rig::busy();
    let ticket = rig.begin(MIB / 2);
    let reset = Parked::new();
    rig.workers.reset(reset.clone());
    assert_eq!(rig.answer(ticket), Ok(()), "a reset cancels what is in flight");
    assert!(reset.is_complete());
    rig.memory.hold(false);
    rig.start();
    assert_eq!((rig.read(MIB / 512 - 1), rig.read(0)), (IO_ERROR, OK));
}

#[test]
fn a_file_that_refuses_to_shrink_leaves_the_guest_its_size() {
    // SAFETY: the name is a C string; the descriptor is this test's.
    let fd = unsafe { libc::memfd_create(c"disk".as_ptr(), libc::MFD_ALLOW_SEALING) };
    assert!(fd >= 0);
    let dir = tempfile::tempdir().unwrap();
    let file = PathBuf::from(format!("/proc/self/fd/{fd}"));
    File::options().write(true).open(&file).unwrap().set_len(MIB).unwrap();
    // SAFETY: takes numbers only.
    assert_eq!(unsafe { libc::fcntl(fd, libc::F_ADD_SEALS, libc::F_SEAL_SHRINK | libc::F_SEAL_GROW) }, 0);
    let mut rig = Rig::on(dir, file, false);
    rig.start();
    for bytes in [512, 2 * MIB] {
        let problem = format!("disk0: its file cannot have {bytes} bytes: Operation not permitted");
        assert_eq!(rig.resize(bytes), Err(problem));
        assert_eq!((rig.file_bytes(), rig.shown_bytes(), rig.read(MIB / 512 - 1)), (MIB, MIB, OK));
    }
    // It may have looked meanwhile.
    assert_eq!(rig.interrupt.take_config_changes(), 1);
    drop(rig);
    // SAFETY: it is open and nobody else's.
    unsafe { libc::close(fd) };
}

#[test]
fn without_a_size_the_disk_gets_what_its_file_has_by_now() {
    let mut rig = Rig::started();
    let file = File::options().write(true).open(&rig.file).unwrap();
    for (bytes, shown) in [(2 * MIB, 2 * MIB), (MIB + 511, MIB), (512, 512), (MIB, MIB)] {
        file.set_len(bytes).unwrap();
        assert_eq!(rig.resize(None), Ok(()), "{bytes}");
        assert_eq!((rig.shown_bytes(), rig.file_bytes(), rig.interrupt.take_config_changes()), (shown, bytes, 1));
    }
    file.set_len(511).unwrap();
    assert_eq!(rig.resize(None), Err("disk0: 511 bytes are not even one block of 512".to_owned()));
    assert_eq!((rig.shown_bytes(), rig.interrupt.take_config_changes()), (MIB, 0));
}

#[test]
fn what_cannot_be_is_refused_in_one_line() {
    let mut rig = Rig::new();
    for (bytes, problem) in [
        (0, "a disk has at least one block, here of 512 bytes"),
        (511, "511 bytes are no multiple of its block of 512; use 512"),
        (MIB + 1, "1048577 bytes are no multiple of its block of 512; use 1048576 or 1049088"),
        (1 << 63, "its file cannot have 9223372036854775808 bytes: File too large"),
    ] {
        assert_eq!(rig.resize(bytes), Err(format!("disk0: {problem}")));
    }
    let resize = DiskResize { disk: "dsk0".into(), size_bytes: None };
    rig.resizer.begin(&resize, Ticket(99));
    assert_eq!(rig.answer(Ticket(99)), Err("unknown disk 'dsk0'; did you mean 'disk0'?".to_owned()));
    let none = Resizer::new(Vec::new(), rig.inbox.sender());
    none.begin(&resize, Ticket(100));
    assert_eq!(rig.answer(Ticket(100)), Err("unknown disk 'dsk0'; the guest has none".to_owned()));
    assert_eq!((rig.file_bytes(), rig.shown_bytes()), (MIB, MIB));
}

#[test]
fn a_read_only_disk_is_looked_at_again_and_not_changed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    let file = File::create(&path).unwrap();
    file.set_len(MIB).unwrap();
    let mut rig = Rig::on(dir, path, true);
    let problem = "disk0: it is read-only; without a size its file or device is looked at again";
    assert_eq!(rig.resize(2 * MIB), Err(problem.to_owned()));
    file.set_len(2 * MIB).unwrap();
    assert_eq!((rig.resize(None), rig.shown_bytes()), (Ok(()), 2 * MIB));
}

#[test]
fn a_device_is_given_no_more_than_it_has() {
    let rig = Rig::new();
    let disk = &rig.resizer.disks[0];
    assert_eq!((disk.seen(Some(4096), 8192), disk.seen(Some(8192), 8192)), (Ok(4096), Ok(8192)));
    assert_eq!(disk.seen(Some(8192), 4096), Err("disk0: its device has 4096 bytes, so it cannot have 8192".into()));
}

#[test]
fn a_second_change_waits_for_nobody() {
    let (mut rig, _) = Rig::busy();
    let first = rig.begin(MIB / 2);
    let second = rig.begin(2 * MIB);
    let problem = "disk0: another change of its size is not over yet";
    assert_eq!(rig.answer(second), Err(problem.to_owned()));
    rig.complete();
    assert_eq!(rig.answer(first), Ok(()));
    assert_eq!(rig.resize(2 * MIB), Ok(()));
}

#[test]
fn whoever_waits_at_the_end_of_the_guest_is_told() {
    let (mut rig, _) = Rig::busy();
    let ticket = rig.begin(MIB / 2);
    rig.complete();
    rig.workers.join();
    rig.resizer.end();
    assert_eq!((rig.answer(ticket), rig.file_bytes()), (Err(ENDED.to_owned()), MIB));

    let mut rig = Rig::started();
    let ticket = rig.begin(2 * MIB);
    rig.workers.join();
    rig.resizer.end();
    assert_eq!((rig.answer(ticket), rig.file_bytes()), (Ok(()), 2 * MIB));
}

#[test]
fn changes_resets_and_pauses_in_any_order_leave_a_disk_that_works() {
    let mut rig = Rig::started();
    let mut seed = 1_u64;
    let mut next = |below: u64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) % below
    };
    let (mut is_paused, mut waiting) = (false, 0);
    for _ in 0..3_000 {
        match next(6) {
            0 | 1 => {
                rig.begin(512 * (1 + next(4096)));
                waiting += 1;
            }
            2 => {
                is_paused = !is_paused;
                match is_paused {
                    true => rig.workers.pause(Holder::Machine, Parked::new()),
                    false => rig.workers.resume(Holder::Machine),
                }
            }
            3 => {
                let done = Parked::new();
                rig.workers.reset(done.clone());
                while !done.is_complete() {
                    std::thread::yield_now();
                }
                rig.start();
            }
            4 if rig.driver.free() >= 3 => drop(rig.post(next(4096))),
            _ => {
                rig.driver.used();
                waiting -= u32::from(rig.turn(0).is_some());
            }
        }
    }
    while waiting > 0 {
        waiting -= u32::from(rig.turn(100_000_000).is_some());
    }
    if is_paused {
        rig.workers.resume(Holder::Machine);
    }
    assert_eq!(rig.resize(MIB), Ok(()));
    assert_eq!((rig.file_bytes(), rig.shown_bytes()), (MIB, MIB));
    let done = Parked::new();
    rig.workers.reset(done.clone());
    while !done.is_complete() {
        std::thread::yield_now();
    }
    rig.start();
    assert_eq!((rig.read(MIB / 512 - 1), rig.read(MIB / 512)), (OK, IO_ERROR));
}
