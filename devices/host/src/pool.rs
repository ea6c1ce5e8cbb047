//! A disk engine of threads: works on every system and every disk. The worker stages requests and commits them as a batch;
//! the engine's threads do the blocking system calls; completions collect in a list, and the worker is woken when that
//! list stops being empty. Requests, completions and their lists of ranges are recycled: nothing is allocated once the
//! largest request has been seen.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;

use crate::Event;
use crate::bounce::{Bounce, MAX_ALIGNMENT_BYTES, Room};
use crate::disk::Disk;
use crate::engine::{EngineError, EngineOptions, MAX_THREADS, Op};
use crate::iovec::{GuestRange, VectorBuffer, Vectors};
use crate::ram::SharedRam;
use crate::syncs::Syncs;
use crate::thread;

/// What every thread does first, if anything.
static AT_START: OnceLock<fn()> = OnceLock::new();

/// See [`crate::engine::at_thread_start`].
pub(crate) fn at_thread_start(what: fn()) {
    // The first one stays: threads that run already have done it.
    let _ = AT_START.set(what);
}

#[derive(Debug)]
struct Job {
    token: u64,
    op: Op,
    offset_bytes: u64,
    len_bytes: u64,
    ranges: Vec<GuestRange>,
    /// [`Shared::epoch`] at commit: a job of an older epoch is cancelled.
    epoch: u64,
}

struct Completion {
    token: u64,
    result: Result<(), EngineError>,
    /// Given back for the next request.
    ranges: Vec<GuestRange>,
}

struct Queue {
    jobs: VecDeque<Job>,
    /// Threads that sleep.
    idle: usize,
    stop: bool,
}

struct Shared {
    disk: Arc<Disk>,
    /// Held until the last thread is gone, so that guest memory outlives every system call on it.
    mem: SharedRam,
    queue: Mutex<Queue>,
    work: Condvar,
    done: Mutex<Vec<Completion>>,
    /// Jobs that end when what is written is on stable storage.
    syncs: Mutex<Syncs<Job>>,
    wake: Arc<Event>,
    /// Counts cancellations.
    epoch: AtomicU64,
    /// Where the disk asks for aligned memory: a part for each thread, and one for the committing thread.
    bounce: Option<Bounce>,
    threads: usize,
}

/// Threads that run the requests of one queue on one disk.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    staged: Vec<Job>,
    collected: Vec<Completion>,
    free: Vec<Vec<GuestRange>>,
    in_flight: usize,
    depth: usize,
    /// Room for requests done by the committing thread, where that is wanted.
    inline: Option<VectorBuffer>,
    /// What it leaves to the others.
    apart_bytes: u64,
}

impl Pool {
    /// Starts the engine's threads, named `name` and a number. `wake` is signalled when [`poll`](Self::poll) has
    /// something to report; clear it before polling.
    ///
    /// # Errors
    /// When a thread cannot be started or bound.
    pub(crate) fn start(
        name: &str,
        disk: Arc<Disk>,
        mem: SharedRam,
        wake: Arc<Event>,
        options: &EngineOptions,
    ) -> io::Result<Self> {
        let depth = options.depth.max(1);
        let disk = disk.opened_again()?;
        let threads = options.threads.clamp(1, MAX_THREADS);
        let bounce_bytes = options.bounce_bytes.max((threads + 1) * MAX_ALIGNMENT_BYTES as usize);
        let bounce = disk.alignment().map(|_| Bounce::map(bounce_bytes)).transpose()?;
        let apart_bytes = options.apart_bytes_on(&disk);
        let shared = Arc::new(Shared {
            bounce,
            threads,
            disk,
            mem,
            queue: Mutex::new(Queue { jobs: VecDeque::with_capacity(depth), idle: 0, stop: false }),
            work: Condvar::new(),
            done: Mutex::new(Vec::with_capacity(depth)),
            syncs: Mutex::new(Syncs::with_capacity(threads)),
            wake,
            epoch: AtomicU64::new(0),
        });
        let mut engine = Self {
            shared,
            threads: Vec::new(),
            staged: Vec::with_capacity(depth),
            collected: Vec::with_capacity(depth),
            free: Vec::with_capacity(depth),
            in_flight: 0,
            depth,
            inline: options.inline_single.then(VectorBuffer::default),
            apart_bytes,
        };
        for number in 0..threads {
            let shared = engine.shared.clone();
            let name = format!("{name}-{number}");
            // Where this fails, dropping the engine ends the threads that run already.
            engine.threads.push(thread::spawn(&name, &options.cpus, move || shared.run(number))?);
        }
        Ok(engine)
    }

    pub(crate) fn set_write_cache(&self, write_back: bool) {
        self.shared.disk.set_write_cache(write_back);
    }

    /// Whether another request may be staged.
    pub(crate) fn has_room(&self) -> bool {
        self.in_flight < self.depth
    }

    /// Requests staged or committed and not yet reported by [`poll`](Self::poll). At zero, no thread touches guest
    /// memory.
    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Takes a request; it starts with the next [`commit`](Self::commit). `ranges` are copied; for a read or write
    /// their length is what is moved, for the others `len_bytes` counts. Staging more than the depth allows works, and
    /// allocates.
    pub(crate) fn submit(
        &mut self,
        token: u64,
        op: Op,
        offset_bytes: u64,
        len_bytes: u64,
        ranges: impl IntoIterator<Item = GuestRange, IntoIter: Clone>,
    ) {
        let mut list = self.free.pop().unwrap_or_default();
        list.extend(ranges);
        let epoch = self.shared.epoch.load(Ordering::Relaxed);
        self.staged.push(Job { token, op, offset_bytes, len_bytes, ranges: list, epoch });
        self.in_flight += 1;
    }

    /// Starts everything staged.
    pub(crate) fn commit(&mut self) {
        if let (Some(buffer), [job], 1) = (&mut self.inline, &self.staged[..], self.in_flight)
            && job.len_bytes < self.apart_bytes
        {
            if let Some(job) = self.staged.pop() {
                let result = self.shared.execute(&job, buffer, self.shared.threads);
                let result = match self.shared.ends_with_a_sync(&job) {
                    true => result.and_then(|()| self.shared.flush().map_err(|error| job.op.unsynced(error))),
                    false => result,
                };
                // Nobody sleeps who would have to be woken: the caller polls next.
                self.shared.add(job, result);
            }
            return;
        }
        if self.staged.is_empty() {
            return;
        }
        let mut queue = lock(&self.shared.queue);
        let wanted = queue.idle.min(self.staged.len());
        queue.jobs.extend(self.staged.drain(..));
        drop(queue);
        for _ in 0..wanted {
            self.shared.work.notify_one();
        }
    }

    /// Reports what has completed, each request once and in any order.
    pub(crate) fn poll(&mut self, mut done: impl FnMut(u64, Result<(), EngineError>)) {
        // Swapped, not drained: the lock is held for a moment however much there is.
        std::mem::swap(&mut *lock(&self.shared.done), &mut self.collected);
        for Completion { token, result, mut ranges } in self.collected.drain(..) {
            self.in_flight -= 1;
            ranges.clear();
            self.free.push(ranges);
            done(token, result);
        }
    }

    /// Cancels what has not begun, and asks what runs to end early where it can. Each request still completes through
    /// [`poll`](Self::poll).
    pub(crate) fn cancel_all(&mut self) {
        self.shared.epoch.fetch_add(1, Ordering::Relaxed);
        let mut queue = lock(&self.shared.queue);
        queue.jobs.extend(self.staged.drain(..));
        let cancelled = std::mem::take(&mut queue.jobs);
        drop(queue);
        let unsynced: Vec<Job> = lock(&self.shared.syncs).cancel().collect();
        for job in cancelled.into_iter().chain(unsynced) {
            self.shared.complete(job, Err(EngineError::Cancelled));
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.cancel_all();
        lock(&self.shared.queue).stop = true;
        self.shared.work.notify_all();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").field("threads", &self.threads.len()).field("in_flight", &self.in_flight).finish()
    }
}

impl Shared {
    /// The body of the engine's threads, by their number.
    fn run(&self, number: usize) {
        if let Some(what) = AT_START.get() {
            what();
        }
        let mut buffer = VectorBuffer::with_capacity(64);
        while let Some(job) = self.next() {
            match self.execute(&job, &mut buffer, number) {
                Ok(()) if self.ends_with_a_sync(&job) => self.sync(job),
                result => self.complete(job, result),
            }
        }
    }

    fn next(&self) -> Option<Job> {
        let mut queue = lock(&self.queue);
        loop {
            if let Some(job) = queue.jobs.pop_front() {
                return Some(job);
            }
            if queue.stop {
                return None;
            }
            queue.idle += 1;
            queue = self.work.wait(queue).unwrap_or_else(PoisonError::into_inner);
            queue.idle -= 1;
        }
    }

    /// Whether a job is done only once what is written is on stable storage, which its own call does not see to.
    fn ends_with_a_sync(&self, job: &Job) -> bool {
        self.disk.volume().is_none()
            && match job.op {
                Op::Flush | Op::WriteZeroes { durable: true, .. } => true,
                Op::Write { durable } => durable && !self.disk.tells_of_each_write(),
                Op::Read | Op::Discard | Op::WriteZeroes { .. } => false,
            }
    }

    fn flush(&self) -> Result<(), EngineError> {
        outcome(self.disk.flush())
    }

    /// Puts what is written on stable storage, for this job and those that come meanwhile, or leaves it to whoever does so.
    fn sync(&self, job: Job) {
        let mut is_next = lock(&self.syncs).ask(job);
        while is_next {
            let result = self.flush();
            let mut is_first = false;
            is_next = lock(&self.syncs).end(|job| {
                let result = result.map_err(|error| job.op.unsynced(error));
                is_first |= self.add(job, result);
            });
            if is_first {
                self.wake.wake();
            }
        }
    }

    /// Does a job on the thread with this number, but for the sync it may end with; the committing thread's follows those
    /// of the engine's.
    fn execute(&self, job: &Job, buffer: &mut VectorBuffer, number: usize) -> Result<(), EngineError> {
        let go_on = || self.epoch.load(Ordering::Relaxed) == job.epoch;
        if !go_on() {
            return Err(EngineError::Cancelled);
        }
        let room = |bounce| Room::new(bounce, number, self.threads + 1);
        if let (Some(volume), Some(bounce)) = (self.disk.volume(), &self.bounce) {
            let vectors = buffer.fill(&self.mem, job.ranges.iter().copied()).map_err(|_| EngineError::Memory)?;
            let place = (job.offset_bytes, job.len_bytes);
            return outcome(volume.run(job.op, place, vectors, &mut room(bounce), &go_on));
        }
        outcome(match job.op {
            Op::Read | Op::Write { .. } => {
                let vectors = buffer.fill(&self.mem, job.ranges.iter().copied()).map_err(|_| EngineError::Memory)?;
                let step = |vectors: Vectors<'_>, at| match job.op {
                    Op::Write { durable } => self.disk.write(vectors, at, durable),
                    _ => self.disk.read(vectors, at),
                };
                match &self.bounce {
                    Some(bounce) if !self.disk.takes(&vectors) => {
                        room(bounce).carry(vectors, job.offset_bytes, job.op == Op::Read, &go_on, step)
                    }
                    _ => step(vectors, job.offset_bytes),
                }
            }
            Op::Flush => Ok(()),
            Op::Discard => self.disk.discard(job.offset_bytes, job.len_bytes),
            Op::WriteZeroes { unmap, .. } => self.disk.write_zeroes(job.offset_bytes, job.len_bytes, unmap, &go_on),
        })
    }

    fn complete(&self, job: Job, result: Result<(), EngineError>) {
        // The rest of a batch rides on the first one's wake-up: the worker takes the whole list.
        if self.add(job, result) {
            self.wake.wake();
        }
    }

    /// Adds to the list of what has completed; whether it was empty.
    fn add(&self, job: Job, result: Result<(), EngineError>) -> bool {
        let mut done = lock(&self.done);
        let first = done.is_empty();
        done.push(Completion { token: job.token, result, ranges: job.ranges });
        first
    }
}

fn outcome(result: io::Result<()>) -> Result<(), EngineError> {
    result.map_err(|error| match error.kind() {
        io::ErrorKind::Unsupported => EngineError::Unsupported,
        io::ErrorKind::UnexpectedEof => EngineError::Short,
        io::ErrorKind::Interrupted => EngineError::Cancelled,
        _ => EngineError::Host(error.raw_os_error().unwrap_or(libc::EIO)),
    })
}

/// A panic elsewhere must not stop the disk: the data is consistent at every step.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
