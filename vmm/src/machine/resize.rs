//! Disks that get another size while their guest runs.
//!
//! The main thread decides and waits for nothing: what may block (the file's length, the device's size) is done by the
//! thread of the disk's first worker, and every step that has ended wakes the main loop, which ticks the [`Resizer`] like
//! a timer. A disk that becomes larger gets its space first and shows it then. One that becomes smaller has its queues
//! held until nothing is in flight any more, shows the new size, loses the space, and goes on: a request is either over
//! before, or is checked against the new size. Whatever fails leaves file and guest as they were.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use devices::park::Parked;
use devices::virtio::VirtioInterrupt;
use devices::virtio::blk::{BlkDevice, SECTOR_BYTES};
use devices::wake::Wake;
use devices_host::clock;
use devices_host::disk::Disk;

use crate::config::{nearest, system_text};
use crate::control::{DiskResize, EventSender, Ticket, Timed};
use crate::worker::{DeviceWorkers, Holder};

/// How long requests in flight, or a worker that does something else, may keep a change waiting: longer than a disk takes
/// that works, and shorter than a client's patience.
const PATIENCE_NS: u64 = 5_000_000_000;

/// What is said where that was too long.
const TOO_SLOW: &str = "its requests in flight do not end within 5 seconds, so it stays as it was";

/// What is said to those who still wait when the guest ends.
const ENDED: &str = "the guest has ended";

/// A disk of the machine.
pub struct ResizableDisk {
    /// Its name in the configuration.
    pub id: String,
    /// What its guest sees.
    pub device: BlkDevice,
    /// What is behind it.
    pub disk: Arc<Disk>,
    /// Its size is a multiple of this.
    pub block_bytes: u32,
    /// Its queues.
    pub workers: Arc<DeviceWorkers>,
    /// How its driver is told.
    pub interrupt: Arc<dyn VirtioInterrupt>,
}

/// All disks, and what is being done to them.
pub struct Resizer {
    disks: Vec<ResizableDisk>,
    changes: Mutex<Vec<Change>>,
    main: EventSender,
    patience_ns: u64,
}

struct Change {
    disk: usize,
    /// `None`: whatever the file or device has.
    wanted_bytes: Option<u64>,
    ticket: Ticket,
    /// The moment from which on it is given up, if what it waits for has not begun.
    deadline_ns: Option<u64>,
    step: Step,
}

enum Step {
    /// How much is there?
    Looking(Task<u64>),
    /// It becomes smaller: requests in flight end, and no more are taken.
    Draining { held: Parked, to_bytes: u64 },
    /// The file gets its length. `shown_bytes`: what the guest saw before, if it is held and sees the new size already.
    Setting { task: Task<()>, to_bytes: u64, shown_bytes: Option<u64> },
}

impl Resizer {
    /// A resizer that reports to `main`.
    pub fn new(disks: Vec<ResizableDisk>, main: EventSender) -> Self {
        Self { disks, changes: Mutex::default(), main, patience_ns: PATIENCE_NS }
    }

    /// See [`Machine::resize_disk`](crate::control::Machine::resize_disk).
    pub fn begin(&self, resize: &DiskResize, ticket: Ticket) {
        match self.first_step(resize, ticket) {
            Ok(change) => self.changes().push(change),
            Err(problem) => self.main.answer(ticket, Err(problem)),
        }
    }

    /// The workers have ended, so nothing goes on: whoever waits is told what became of it.
    pub fn end(&self) {
        for change in self.changes().drain(..) {
            let result = match change.step {
                Step::Setting { task, .. } => match task.result() {
                    Some(Ok(())) => Ok(()),
                    Some(Err(error)) => Err(self.disks[change.disk].says(&system_text(&error))),
                    None => Err(ENDED.to_owned()),
                },
                Step::Looking(_) | Step::Draining { .. } => Err(ENDED.to_owned()),
            };
            self.main.answer(change.ticket, result);
        }
    }

    fn changes(&self) -> MutexGuard<'_, Vec<Change>> {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn first_step(&self, resize: &DiskResize, ticket: Ticket) -> Result<Change, String> {
        let index = self.find(&resize.disk)?;
        let disk = &self.disks[index];
        if self.changes().iter().any(|change| change.disk == index) {
            return Err(disk.says("another change of its size is not over yet"));
        }
        let wanted_bytes = resize.size_bytes;
        if let Some(bytes) = wanted_bytes {
            disk.check(bytes)?;
        }
        let deadline_ns = Some(clock::monotonic_ns().saturating_add(self.patience_ns));
        let step = match wanted_bytes {
            Some(bytes) if !disk.disk.is_block_device() => self.towards(disk, bytes),
            _ => Step::Looking(self.task(disk, Disk::bytes_now)),
        };
        Ok(Change { disk: index, wanted_bytes, ticket, deadline_ns, step })
    }

    fn find(&self, id: &str) -> Result<usize, String> {
        if self.disks.is_empty() {
            return Err(format!("unknown disk '{id}'; the guest has none"));
        }
        let ids = || self.disks.iter().map(|disk| disk.id.as_str());
        ids().position(|known| known == id).ok_or_else(|| nearest::unknown("disk", id, ids()))
    }

    fn task<T: Send + 'static>(
        &self,
        disk: &ResizableDisk,
        job: impl FnOnce(&Disk) -> io::Result<T> + Send + 'static,
    ) -> Task<T> {
        let (task, disk_file) = (Task::new(), disk.disk.clone());
        disk.workers.run(task.job(move || job(&disk_file), Arc::new(self.main.clone())));
        task
    }

    /// The next step of a file on its way to `to_bytes`.
    fn towards(&self, disk: &ResizableDisk, to_bytes: u64) -> Step {
        if to_bytes < disk.device.capacity_sectors().saturating_mul(SECTOR_BYTES) {
            return self.hold(disk, to_bytes);
        }
        Step::Setting { task: self.set(disk, to_bytes), to_bytes, shown_bytes: None }
    }

    fn set(&self, disk: &ResizableDisk, to_bytes: u64) -> Task<()> {
        self.task(disk, move |disk| disk.set_file_bytes(to_bytes))
    }

    fn hold(&self, disk: &ResizableDisk, to_bytes: u64) -> Step {
        let held = Parked::new();
        disk.workers.pause(Holder::Change, held.clone());
        held.wake_on_complete(Arc::new(self.main.clone()));
        Step::Draining { held, to_bytes }
    }

    /// Goes on as far as it can without waiting; the result where it is over.
    fn advance(&self, change: &mut Change, now_ns: u64) -> Option<Result<(), String>> {
        let disk = &self.disks[change.disk];
        let is_late = change.deadline_ns.is_some_and(|deadline_ns| deadline_ns <= now_ns);
        loop {
            change.step = match &change.step {
                Step::Looking(task) => match task.result() {
                    None if is_late && task.give_up() => return Some(Err(disk.says(TOO_SLOW))),
                    None => break,
                    Some(Err(error)) => {
                        return Some(Err(disk.says(&format!("cannot read its size: {}", system_text(&error)))));
                    }
                    Some(Ok(there_bytes)) => match disk.seen(change.wanted_bytes, there_bytes) {
                        Err(problem) => return Some(Err(problem)),
                        Ok(bytes) if bytes < disk.shown_bytes() => self.hold(disk, bytes),
                        Ok(bytes) => {
                            disk.show(bytes);
                            return Some(Ok(()));
                        }
                    },
                },
                Step::Draining { held, to_bytes } if held.is_complete() => {
                    let (to_bytes, shown_bytes) = (*to_bytes, disk.shown_bytes());
                    disk.device.set_capacity(to_bytes / SECTOR_BYTES);
                    // A size that was found is the file's already; a device has its own.
                    if change.wanted_bytes.is_none() || disk.disk.is_block_device() {
                        disk.let_go();
                        return Some(Ok(()));
                    }
                    Step::Setting { task: self.set(disk, to_bytes), to_bytes, shown_bytes: Some(shown_bytes) }
                }
                Step::Draining { .. } if is_late => {
                    disk.workers.resume(Holder::Change);
                    return Some(Err(disk.says(TOO_SLOW)));
                }
                Step::Draining { .. } => break,
                Step::Setting { task, to_bytes, shown_bytes } => {
                    let problem = match task.result() {
                        None if is_late && task.give_up() => TOO_SLOW.to_owned(),
                        None => break,
                        Some(Ok(())) => {
                            match shown_bytes {
                                Some(_) => disk.let_go(),
                                None => disk.show(*to_bytes),
                            }
                            return Some(Ok(()));
                        }
                        Some(Err(error)) => {
                            format!("its file cannot have {to_bytes} bytes: {}", system_text(&error))
                        }
                    };
                    if let Some(shown_bytes) = shown_bytes {
                        disk.device.set_capacity(shown_bytes / SECTOR_BYTES);
                        disk.let_go();
                    }
                    return Some(Err(disk.says(&problem)));
                }
            };
        }
        if is_late {
            // What has begun cannot be given up any more.
            change.deadline_ns = None;
        }
        None
    }
}

impl Change {
    /// Whether there is something to do at once.
    fn is_ready(&self) -> bool {
        match &self.step {
            Step::Looking(task) => task.is_over(),
            Step::Draining { held, .. } => held.is_complete(),
            Step::Setting { task, .. } => task.is_over(),
        }
    }
}

impl Timed for Resizer {
    fn deadline_ns(&self) -> Option<u64> {
        let changes = self.changes();
        changes.iter().filter_map(|change| if change.is_ready() { Some(0) } else { change.deadline_ns }).min()
    }

    fn tick(&self, now_ns: u64) {
        self.changes().retain_mut(|change| match self.advance(change, now_ns) {
            None => true,
            Some(result) => {
                self.main.answer(change.ticket, result);
                false
            }
        });
    }
}

impl ResizableDisk {
    fn says(&self, problem: &str) -> String {
        format!("{}: {problem}", self.id)
    }

    fn shown_bytes(&self) -> u64 {
        self.device.capacity_sectors().saturating_mul(SECTOR_BYTES)
    }

    /// Whether somebody may ask for this size.
    fn check(&self, bytes: u64) -> Result<(), String> {
        let block = u64::from(self.block_bytes);
        if self.disk.is_read_only() {
            return Err(self.says("it is read-only; without a size its file or device is looked at again"));
        }
        if bytes == 0 {
            return Err(self.says(&format!("a disk has at least one block, here of {block} bytes")));
        }
        if !bytes.is_multiple_of(block) {
            let down = bytes - bytes % block;
            let up = down.saturating_add(block);
            let nearest = if down == 0 { format!("{up}") } else { format!("{down} or {up}") };
            return Err(self.says(&format!("{bytes} bytes are no multiple of its block of {block}; use {nearest}")));
        }
        Ok(())
    }

    /// The size it gets where its file or device has `there_bytes`.
    fn seen(&self, wanted_bytes: Option<u64>, there_bytes: u64) -> Result<u64, String> {
        match wanted_bytes {
            Some(bytes) if bytes > there_bytes => {
                Err(self.says(&format!("its device has {there_bytes} bytes, so it cannot have {bytes}")))
            }
            Some(bytes) => Ok(bytes),
            None => {
                let block = u64::from(self.block_bytes);
                let left_out = there_bytes % block;
                if there_bytes < block {
                    return Err(self.says(&format!("{there_bytes} bytes are not even one block of {block}")));
                }
                if left_out > 0 {
                    log::warn!("{}: its last {left_out} bytes are no block of {block} and left out", self.id);
                }
                Ok(there_bytes - left_out)
            }
        }
    }

    /// Shows the guest a size, and tells it where that is another one.
    fn show(&self, bytes: u64) {
        if self.shown_bytes() != bytes {
            self.device.set_capacity(bytes / SECTOR_BYTES);
            self.interrupt.config_changed();
        }
    }

    /// Has held queues go on, with whatever size is shown now.
    fn let_go(&self) {
        self.workers.resume(Holder::Change);
        self.interrupt.config_changed();
    }
}

/// Something that another thread does, unless it is given up before it begins.
struct Task<T>(Arc<Mutex<Progress<T>>>);

enum Progress<T> {
    Waiting,
    Running,
    Over(Option<io::Result<T>>),
    GivenUp,
}

impl<T: Send + 'static> Task<T> {
    fn new() -> Self {
        Self(Arc::new(Mutex::new(Progress::Waiting)))
    }

    /// For the other thread; `wake` is woken when it is over.
    fn job(
        &self,
        job: impl FnOnce() -> io::Result<T> + Send + 'static,
        wake: Arc<dyn Wake>,
    ) -> Box<dyn FnOnce() + Send> {
        let progress = self.0.clone();
        Box::new(move || {
            match &mut *lock(&progress) {
                waits @ Progress::Waiting => *waits = Progress::Running,
                _ => return,
            }
            let result = job();
            *lock(&progress) = Progress::Over(Some(result));
            wake.wake();
        })
    }

    fn is_over(&self) -> bool {
        matches!(*lock(&self.0), Progress::Over(Some(_)))
    }

    /// What became of it, once.
    fn result(&self) -> Option<io::Result<T>> {
        match &mut *lock(&self.0) {
            Progress::Over(result) => result.take(),
            _ => None,
        }
    }

    /// Whether it will not begin any more.
    fn give_up(&self) -> bool {
        let mut progress = lock(&self.0);
        if matches!(*progress, Progress::Waiting) {
            *progress = Progress::GivenUp;
        }
        matches!(*progress, Progress::GivenUp)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
#[path = "resize_tests.rs"]
mod tests;
