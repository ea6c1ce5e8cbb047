//! A disk engine of threads: works on every system and every disk.
//!
//! One [`Engine`] a virtqueue, so that queues share no lock. The worker stages requests and commits them as a batch;
//! the engine's threads do the blocking system calls; completions collect in a list, and the worker is woken when that
//! list stops being empty. Requests, completions and their lists of ranges are recycled: nothing is allocated once the
//! largest request has been seen.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use crate::Event;
use crate::disk::Disk;
use crate::iovec::{GuestRange, VectorBuffer};
use crate::ram::SharedRam;
use crate::thread;

/// The most threads an engine starts.
pub const MAX_THREADS: usize = 16;

/// What a request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Disk to guest memory.
    Read,
    /// Guest memory to disk.
    Write {
        /// It is on stable storage before it completes.
        durable: bool,
    },
    /// All that completed before is on stable storage before this completes.
    Flush,
    /// The range's content may be forgotten.
    Discard,
    /// The range reads as zeroes afterwards.
    WriteZeroes {
        /// Its blocks may be given back.
        unmap: bool,
        /// As for [`Write`](Self::Write).
        durable: bool,
    },
}

/// How a request failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EngineError {
    /// The disk, file system or system cannot do it.
    #[error("the disk cannot do this")]
    Unsupported,
    /// The system refused, with this `errno`.
    #[error("errno {0}")]
    Host(i32),
    /// The disk ended before the request.
    #[error("the disk ended before the request")]
    Short,
    /// A range is not guest memory.
    #[error("not guest memory")]
    Memory,
    /// It was cancelled before it began.
    #[error("cancelled")]
    Cancelled,
}

/// How an engine is set up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineOptions {
    /// Threads, 1 to [`MAX_THREADS`].
    pub threads: usize,
    /// Requests in flight at most; the engine says [`Engine::has_room`] until then.
    pub depth: usize,
    /// Let the committing thread do a request itself when it is the only one in flight: saves two switches of thread,
    /// and costs that the worker hears nothing meanwhile.
    pub inline_single: bool,
    /// CPUs the threads may run on; empty means any.
    pub cpus: Vec<usize>,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self { threads: 4, depth: 256, inline_single: false, cpus: Vec::new() }
    }
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
    wake: Arc<Event>,
    /// Counts cancellations.
    epoch: AtomicU64,
}

/// Runs the requests of one queue on one disk. Owned by the queue's worker.
pub struct Engine {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    staged: Vec<Job>,
    collected: Vec<Completion>,
    free: Vec<Vec<GuestRange>>,
    in_flight: usize,
    depth: usize,
    /// Room for requests done by the committing thread, where that is wanted.
    inline: Option<VectorBuffer>,
}

impl Engine {
    /// Starts the engine's threads, named `name` and a number. `wake` is signalled when [`poll`](Self::poll) has
    /// something to report; clear it before polling.
    ///
    /// # Errors
    /// When a thread cannot be started or bound.
    pub fn start(
        name: &str,
        disk: Arc<Disk>,
        mem: SharedRam,
        wake: Arc<Event>,
        options: &EngineOptions,
    ) -> io::Result<Self> {
        let depth = options.depth.max(1);
        let shared = Arc::new(Shared {
            disk,
            mem,
            queue: Mutex::new(Queue { jobs: VecDeque::with_capacity(depth), idle: 0, stop: false }),
            work: Condvar::new(),
            done: Mutex::new(Vec::with_capacity(depth)),
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
        };
        for number in 0..options.threads.clamp(1, MAX_THREADS) {
            let shared = engine.shared.clone();
            let name = format!("{name}-{number}");
            // Where this fails, dropping the engine ends the threads that run already.
            engine.threads.push(thread::spawn(&name, &options.cpus, move || shared.run())?);
        }
        Ok(engine)
    }

    /// Whether another request may be staged.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.in_flight < self.depth
    }

    /// Requests staged or committed and not yet reported by [`poll`](Self::poll). At zero, no thread touches guest
    /// memory.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Takes a request; it starts with the next [`commit`](Self::commit). `ranges` are copied; for a read or write
    /// their length is what is moved, for the others `len_bytes` counts. Staging more than the depth allows works, and
    /// allocates.
    pub fn submit(
        &mut self,
        token: u64,
        op: Op,
        offset_bytes: u64,
        len_bytes: u64,
        ranges: impl IntoIterator<Item = GuestRange>,
    ) {
        let mut list = self.free.pop().unwrap_or_default();
        list.extend(ranges);
        let epoch = self.shared.epoch.load(Ordering::Relaxed);
        self.staged.push(Job { token, op, offset_bytes, len_bytes, ranges: list, epoch });
        self.in_flight += 1;
    }

    /// Starts everything staged.
    pub fn commit(&mut self) {
        if let (Some(buffer), [_], 1) = (&mut self.inline, &self.staged[..], self.in_flight) {
            if let Some(job) = self.staged.pop() {
                let result = self.shared.execute(&job, buffer);
                self.shared.complete(job, result);
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
    pub fn poll(&mut self, mut done: impl FnMut(u64, Result<(), EngineError>)) {
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
    pub fn cancel_all(&mut self) {
        self.shared.epoch.fetch_add(1, Ordering::Relaxed);
        let mut queue = lock(&self.shared.queue);
        queue.jobs.extend(self.staged.drain(..));
        let cancelled = std::mem::take(&mut queue.jobs);
        drop(queue);
        for job in cancelled {
            self.shared.complete(job, Err(EngineError::Cancelled));
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.cancel_all();
        lock(&self.shared.queue).stop = true;
        self.shared.work.notify_all();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").field("threads", &self.threads.len()).field("in_flight", &self.in_flight).finish()
    }
}

impl Shared {
    /// The body of the engine's threads.
    fn run(&self) {
        let mut buffer = VectorBuffer::with_capacity(64);
        while let Some(job) = self.next() {
            let result = self.execute(&job, &mut buffer);
            self.complete(job, result);
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

    fn execute(&self, job: &Job, buffer: &mut VectorBuffer) -> Result<(), EngineError> {
        let go_on = || self.epoch.load(Ordering::Relaxed) == job.epoch;
        if !go_on() {
            return Err(EngineError::Cancelled);
        }
        let result = match job.op {
            Op::Read | Op::Write { .. } => {
                let vectors = buffer.fill(&self.mem, job.ranges.iter().copied()).map_err(|_| EngineError::Memory)?;
                match job.op {
                    Op::Write { durable } => self.disk.write(vectors, job.offset_bytes, durable),
                    _ => self.disk.read(vectors, job.offset_bytes),
                }
            }
            Op::Flush => self.disk.flush(),
            Op::Discard => self.disk.discard(job.offset_bytes, job.len_bytes),
            Op::WriteZeroes { unmap, durable } => {
                self.disk.write_zeroes(job.offset_bytes, job.len_bytes, unmap, durable, &go_on)
            }
        };
        result.map_err(|error| match error.kind() {
            io::ErrorKind::Unsupported => EngineError::Unsupported,
            io::ErrorKind::UnexpectedEof => EngineError::Short,
            io::ErrorKind::Interrupted => EngineError::Cancelled,
            _ => EngineError::Host(error.raw_os_error().unwrap_or(libc::EIO)),
        })
    }

    fn complete(&self, job: Job, result: Result<(), EngineError>) {
        let mut done = lock(&self.done);
        let first = done.is_empty();
        done.push(Completion { token: job.token, result, ranges: job.ranges });
        drop(done);
        // The rest of a batch rides on the first one's wake-up: the worker takes the whole list.
        if first {
            self.wake.wake();
        }
    }
}

/// A panic elsewhere must not stop the disk: the data is consistent at every step.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::fs::File;
    use std::os::fd::AsRawFd;

    use vm_memory::{Bytes, GuestAddress};
    use vmm_sys_util::tempdir::TempDir;

    use super::*;
    use crate::poll::{PollFd, poll};
    use crate::ram::{RamOptions, allocate};

    struct Bench {
        engine: Engine,
        wake: Arc<Event>,
        mem: SharedRam,
        _dir: TempDir,
    }

    fn bench(disk_bytes: u64, options: &EngineOptions) -> Bench {
        let dir = TempDir::new().unwrap();
        let path = dir.as_path().join("disk");
        File::create(&path).unwrap().set_len(disk_bytes).unwrap();
        let disk = Arc::new(Disk::open("d0", &path, false).unwrap());
        let mem: SharedRam = Arc::new(allocate(&[(0, 8 << 20)], &RamOptions::default()).unwrap());
        let wake = Arc::new(Event::new().unwrap());
        let engine = Engine::start("disk", disk, mem.clone(), wake.clone(), options).unwrap();
        Bench { engine, wake, mem, _dir: dir }
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
            while results.len() < count {
                let mut fds = [PollFd::new(self.wake.as_raw_fd()).readable(true)];
                assert_eq!(poll(&mut fds, Some(20_000_000_000)).unwrap(), 1, "a completion without its wake-up");
                self.wake.clear();
                self.engine.poll(|token, result| assert!(results.insert(token, result).is_none(), "reported twice"));
            }
            results
        }
    }

    #[test]
    fn every_operation_does_what_it_says_inline_and_on_threads() {
        for inline_single in [false, true] {
            let mut bench = bench(1 << 20, &EngineOptions { inline_single, ..Default::default() });
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
    fn failures_say_what_failed() {
        let mut bench = bench(4096, &EngineOptions::default());
        assert_eq!(bench.one(Op::Read, 3584, 1024), Err(EngineError::Short));
        bench.engine.submit(9, Op::Read, 0, 512, [GuestRange { address: 8 << 20, len: 512 }]);
        bench.engine.commit();
        assert_eq!(bench.collect(1)[&9], Err(EngineError::Memory));
        assert_eq!(bench.one(Op::Write { durable: false }, u64::MAX, 512), Err(EngineError::Host(libc::EIO)));
    }

    #[test]
    fn batches_of_more_requests_than_threads_all_complete_with_their_own_data() {
        let mut bench = bench(8 << 20, &EngineOptions { threads: 3, depth: 64, ..Default::default() });
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
        let mut bench = bench(8 << 20, &EngineOptions { threads: 1, depth: 128, ..Default::default() });
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
        assert!(cancelled > 1000, "{cancelled}");
    }

    #[test]
    fn memory_outlives_requests_whose_engine_goes_away() {
        for _ in 0..20 {
            let Bench { mut engine, mem, .. } = bench(8 << 20, &EngineOptions::default());
            for n in 0..8 {
                engine.submit(n, Op::Read, 0, 1 << 20, [GuestRange { address: n << 20, len: 1 << 20 }]);
            }
            engine.commit();
            drop(mem);
            drop(engine);
        }
    }
}
