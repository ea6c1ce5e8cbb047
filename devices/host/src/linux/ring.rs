//! A disk engine on io_uring(7): the kernel does the work, straight from and to guest memory, and a batch costs one system
//! call.
//!
//! What takes long by its nature and is rare (discard, write zeroes) goes to a thread: there the host's file system may need
//! a second way, and the ring's order of completion says nothing about it anyway.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;

use io_uring::types::{CancelBuilder, Fixed, FsyncFlags};
use io_uring::{IoUring, opcode, squeue};

use crate::Event;
use crate::disk::Disk;
use crate::engine::{EngineError, EngineOptions, Op};
use crate::iovec::{self, GuestRange, VectorBuffer};
use crate::pool::Pool;
use crate::ram::SharedRam;

/// The disk among the ring's files.
const DISK: Fixed = Fixed(0);
/// Names the call that cancels the others, which nobody waits for.
const CANCEL: u64 = u64::MAX;

/// A ring that runs the requests of one queue on one disk.
pub(crate) struct Ring {
    ring: IoUring,
    /// Every request of the kernel's, and free ones.
    slots: Vec<Slot>,
    free: Vec<usize>,
    /// Calls that the kernel has or will be given with the next one, [`CANCEL`] included.
    calls: usize,
    /// Some of them it does not have yet.
    staged: bool,
    /// Calls for which the ring has no room, as more was staged than the depth allows.
    backlog: VecDeque<squeue::Entry>,
    /// Ended without the kernel.
    over: Vec<(u64, Result<(), EngineError>)>,
    in_flight: usize,
    depth: usize,
    eraser: Pool,
    wake: Arc<Event>,
    mem: SharedRam,
    _disk: Arc<Disk>,
}

#[derive(Debug)]
struct Slot {
    token: u64,
    op: Op,
    offset_bytes: u64,
    vectors: VectorBuffer,
    /// Vectors that are done.
    first: usize,
}

impl Ring {
    pub(crate) fn start(
        name: &str,
        disk: Arc<Disk>,
        mem: SharedRam,
        wake: Arc<Event>,
        options: &EngineOptions,
    ) -> io::Result<Self> {
        let depth = options.depth.max(1);
        let ring = IoUring::new(u32::try_from(depth.next_power_of_two()).unwrap_or(u32::MAX))?;
        ring.submitter().register_files(&[disk.as_fd().as_raw_fd()])?;
        ring.submitter().register_eventfd(wake.as_raw_fd())?;
        let eraser = Pool::start(
            name,
            disk.clone(),
            mem.clone(),
            wake.clone(),
            &EngineOptions { threads: 1, ..options.clone() },
        )?;
        Ok(Self {
            ring,
            slots: Vec::with_capacity(depth),
            free: Vec::with_capacity(depth),
            calls: 0,
            staged: false,
            backlog: VecDeque::new(),
            over: Vec::with_capacity(depth),
            in_flight: 0,
            depth,
            eraser,
            wake,
            mem,
            _disk: disk,
        })
    }

    pub(crate) fn has_room(&self) -> bool {
        self.in_flight() < self.depth
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight + self.eraser.in_flight()
    }

    pub(crate) fn submit(
        &mut self,
        token: u64,
        op: Op,
        offset_bytes: u64,
        len_bytes: u64,
        ranges: impl IntoIterator<Item = GuestRange>,
    ) {
        if matches!(op, Op::Discard | Op::WriteZeroes { .. }) {
            return self.eraser.submit(token, op, offset_bytes, len_bytes, ranges);
        }
        self.in_flight += 1;
        let number = self.free.pop().unwrap_or_else(|| {
            let vectors = VectorBuffer::default();
            self.slots.push(Slot { token, op, offset_bytes, vectors, first: 0 });
            self.slots.len() - 1
        });
        let slot = &mut self.slots[number];
        (slot.token, slot.op, slot.offset_bytes, slot.first) = (token, op, offset_bytes, 0);
        slot.vectors.vectors.clear();
        if op == Op::Flush {
            return self.call(number);
        }
        match slot.vectors.extend(&self.mem, ranges) {
            Err(_) => self.end(number, Err(EngineError::Memory)),
            Ok(0) => self.end(number, Ok(())),
            // No file has such a place, and the ring takes -1 for wherever the file was left.
            Ok(_) if i64::try_from(offset_bytes).is_err() => self.end(number, Err(EngineError::Host(libc::EIO))),
            Ok(_) => self.call(number),
        }
    }

    /// Stages the next call of a request.
    fn call(&mut self, number: usize) {
        let slot = &self.slots[number];
        let vectors = &slot.vectors.vectors[slot.first..];
        let count = iovec::vectors_of_a_call(vectors) as u32;
        let entry = match slot.op {
            Op::Read => opcode::Readv::new(DISK, vectors.as_ptr(), count).offset(slot.offset_bytes).build(),
            Op::Write { durable } => opcode::Writev::new(DISK, vectors.as_ptr(), count)
                .offset(slot.offset_bytes)
                .rw_flags(if durable { libc::RWF_DSYNC as _ } else { 0 })
                .build(),
            _ => opcode::Fsync::new(DISK).flags(FsyncFlags::DATASYNC).build(),
        };
        self.push(&entry.user_data(number as u64));
    }

    fn push(&mut self, entry: &squeue::Entry) {
        self.calls += 1;
        self.staged = true;
        if !self.backlog.is_empty() || !self.has_taken(entry) {
            self.backlog.push_back(entry.clone());
        }
    }

    /// Whether the ring had room for a call.
    fn has_taken(&mut self, entry: &squeue::Entry) -> bool {
        // SAFETY: the vectors are a slot's, which leaves them alone until the call's completion has been taken; the memory
        // they point to is guest memory, mapped for as long as `mem` is, and `drop` waits for every call. Nobody in this
        // process holds a reference to it.
        unsafe { self.ring.submission().push(entry) }.is_ok()
    }

    /// Gives the kernel what is staged. It takes all of it, or says that it must be rid of completions first.
    fn give(&mut self) {
        loop {
            match self.ring.submit() {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => return,
                Ok(_) => {}
            }
            if self.ring.submission().is_full() {
                return;
            }
            let Some(entry) = self.backlog.pop_front() else { break };
            let mut next = Some(entry);
            while let Some(entry) = next.take() {
                match self.has_taken(&entry) {
                    true => next = self.backlog.pop_front(),
                    false => self.backlog.push_front(entry),
                }
            }
        }
        self.staged = !self.ring.submission().is_empty();
    }

    pub(crate) fn commit(&mut self) {
        self.eraser.commit();
        if self.staged {
            // What the kernel ends at once (the page cache has it) is there when the caller polls, which is next: a
            // wake-up for it would cost a write, and a round that finds nothing.
            self.ring.completion().disable_eventfd();
            self.give();
        }
        if self.staged || !self.over.is_empty() {
            // Nobody else would.
            self.wake.wake();
        }
    }

    pub(crate) fn poll(&mut self, mut done: impl FnMut(u64, Result<(), EngineError>)) {
        loop {
            // Enabled before looking: what ends after the look signals, and what ended before it is seen.
            if self.ring.completion().eventfd_disabled() {
                self.ring.completion().enable_eventfd();
                std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
            }
            self.reap();
            self.in_flight -= self.over.len();
            self.over.drain(..).for_each(|(token, result)| done(token, result));
            // Completions beyond the ring's room wait in the kernel to be asked for.
            let has_more = self.ring.submission().cq_overflow();
            if !self.staged && !has_more {
                break;
            }
            // The rest of a request that the kernel did in part, or what it would not take before.
            self.give();
            if self.staged {
                self.wake.wake();
                break;
            }
        }
        self.eraser.poll(done);
    }

    /// Takes the kernel's completions.
    fn reap(&mut self) {
        while let Some(entry) = { self.ring.completion().next() } {
            self.calls -= 1;
            if entry.user_data() == CANCEL {
                continue;
            }
            let number = entry.user_data() as usize;
            let slot = &mut self.slots[number];
            let result = match (slot.op, entry.result()) {
                (_, errno) if [-libc::EINTR, -libc::EAGAIN].contains(&errno) => {
                    self.call(number);
                    continue;
                }
                (_, errno) if errno == -libc::ECANCELED => Err(EngineError::Cancelled),
                (_, errno @ ..0) => Err(EngineError::Host(-errno)),
                (Op::Read, 0) => Err(EngineError::Short),
                (Op::Write { .. }, 0) => Err(EngineError::Host(libc::EIO)),
                (Op::Read | Op::Write { .. }, moved) => {
                    slot.offset_bytes += moved as u64;
                    slot.first += iovec::take_off(&mut slot.vectors.vectors[slot.first..], moved as usize);
                    if slot.first < slot.vectors.vectors.len() {
                        self.call(number);
                        continue;
                    }
                    Ok(())
                }
                _ => Ok(()),
            };
            self.end(number, result);
        }
    }

    fn end(&mut self, number: usize, result: Result<(), EngineError>) {
        self.over.push((self.slots[number].token, result));
        self.free.push(number);
    }

    pub(crate) fn cancel_all(&mut self) {
        self.eraser.cancel_all();
        if self.calls > 0 {
            // A kernel before 5.19 does not know it, and then everything takes its time.
            self.push(&opcode::AsyncCancel2::new(CancelBuilder::any()).build().user_data(CANCEL));
        }
        self.commit();
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        self.cancel_all();
        while self.calls > 0 {
            if self.staged {
                self.give();
            }
            // Fails for moments only: with `calls` the kernel has something to end.
            let _ = self.ring.submit_and_wait(1);
            while self.ring.completion().next().is_some() {
                self.calls -= 1;
            }
        }
    }
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ring").field("in_flight", &self.in_flight()).finish_non_exhaustive()
    }
}
