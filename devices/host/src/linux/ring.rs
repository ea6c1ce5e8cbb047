//! A disk engine on io_uring(7): the kernel does the work, straight from and to guest memory, and a batch costs one system
//! call.
//!
//! Why it is not the default: ext4 writes through the page cache in the kernel's threads only, one switch a write, and past
//! it random writes come less often, too. Beside the pool of eight threads (`disk-file` of the benches, Linux 6.18, a virtual
//! disk) random writes of 4 KiB past the cache come 0.9 times as often with one in flight and 0.6 times with 32, and through it
//! 0.8 times with one. Reads with 32 in flight come 1.3 times as often past the cache and 2.0 times from it; where other work
//! kept both CPUs busy they took 3.9 µs of CPU in place of 17.2, and 1.8 in place of 5.3, and writes came 0.2 to 0.3 times as
//! often. So it is for those who know their load.
//!
//! Its buffers are not registered with the kernel. That would save it 0.4 of 3.4 µs of CPU a 4 KiB read and 1.0 of 5.8 a read
//! of 128 KiB, with 32 in flight; but it takes and pins all of a guest's memory at once (512 MiB in 0.3 s or more), counts
//! against the limit of locked memory, and for requests of several pieces needs Linux 6.15 and all pieces in one buffer of at
//! most 1 GiB.
//!
//! What takes long by its nature and is rare (discard, write zeroes) goes to a thread: there the host's file system may need
//! a second way, and the ring's order of completion says nothing about it anyway.

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use io_uring::types::{CancelBuilder, Fixed, FsyncFlags};
use io_uring::{IoUring, opcode, squeue};

use super::restricted;
use crate::Event;
use crate::disk::Disk;
use crate::engine::{EngineError, EngineOptions, Op};
use crate::iovec::{GuestRange, OutsideMemory};
use crate::pool::Pool;
use crate::ram::SharedRam;
use crate::syncs::Syncs;

mod slots;

use slots::{Bouncing, Slot, Slots};

/// The disk among the ring's files.
const DISK: Fixed = Fixed(0);
/// Names the call that cancels the others, which nobody waits for.
const CANCEL: u64 = u64::MAX;
/// Names the call that puts what is written on stable storage.
const SYNC: u64 = u64::MAX - 1;
/// How often in a row a call may be interrupted or put off before its request fails. The kernel does so for moments; a
/// file system that does it always would have the worker ask for ever.
const MAX_RETRIES: u8 = 100;

/// A ring that runs the requests of one queue on one disk.
pub(crate) struct Ring {
    ring: IoUring,
    slots: Slots,
    /// Calls that the kernel has or will be given with the next one, [`CANCEL`] included.
    calls: usize,
    /// Some of them it does not have yet.
    staged: bool,
    /// Calls for which the ring has no room, as more was staged than the depth allows.
    backlog: VecDeque<squeue::Entry>,
    /// Ended without the kernel.
    over: Vec<(u64, Result<(), EngineError>)>,
    /// Kept for its room: the kernel's completions that take a closer look.
    come: Vec<(u64, i32)>,
    in_flight: usize,
    depth: usize,
    /// Bytes from which on a request is for the kernel's threads.
    apart_bytes: u64,
    /// Requests that end when what is written is on stable storage.
    syncs: Syncs<usize>,
    /// Times in a row that the call for it has come to nothing.
    sync_retries: u8,
    eraser: Pool,
    wake: Arc<Event>,
    mem: SharedRam,
    bouncing: Option<Bouncing>,
    _disk: Arc<Disk>,
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
        let own = disk.opened_again()?;
        // And the one that has the lock: the kernel may still be at work for a process that was killed, and until it has done
        // nobody else is to have the disk.
        let files = [own.file()?.as_raw_fd(), disk.file()?.as_raw_fd()];
        let entries = u32::try_from(depth.next_power_of_two()).unwrap_or(u32::MAX);
        let ring = restricted::ring(entries, &files, wake.as_raw_fd())?;
        let eraser = Pool::start(
            name,
            disk.clone(),
            mem.clone(),
            wake.clone(),
            &EngineOptions { threads: 1, bounce_bytes: 0, ..options.clone() },
        )?;
        let bouncing = disk.alignment().map(|asked| Bouncing::new(asked, options.bounce_bytes, depth)).transpose()?;
        Ok(Self {
            ring,
            slots: Slots::with_capacity(depth),
            calls: 0,
            staged: false,
            backlog: VecDeque::new(),
            over: Vec::with_capacity(depth),
            come: Vec::with_capacity(depth.next_power_of_two().saturating_mul(2)),
            in_flight: 0,
            depth,
            apart_bytes: options.apart_bytes_on(&disk),
            syncs: Syncs::with_capacity(depth),
            sync_retries: 0,
            eraser,
            wake,
            mem,
            bouncing,
            _disk: own,
        })
    }

    pub(crate) fn has_room(&self) -> bool {
        self.in_flight() < self.depth
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight + self.eraser.in_flight()
    }

    #[inline(always)]
    pub(crate) fn submit(
        &mut self,
        token: u64,
        op: Op,
        offset_bytes: u64,
        len_bytes: u64,
        ranges: impl IntoIterator<Item = GuestRange, IntoIter: Clone>,
    ) {
        match op {
            Op::Read => self.read(token, offset_bytes, ranges),
            _ => self.submit_other(token, op, offset_bytes, len_bytes, ranges),
        }
    }

    /// Takes a read: apart, as most requests are, so that what is known of one does not have to be found out again.
    #[inline(always)]
    fn read(&mut self, token: u64, offset_bytes: u64, ranges: impl IntoIterator<Item = GuestRange, IntoIter: Clone>) {
        self.in_flight += 1;
        let (number, slot) = self.slots.begin(token, Op::Read, offset_bytes);
        let filled = slot.vectors.extend(&self.mem, ranges);
        match (filled, slot.vectors.vectors.as_slice()) {
            (Ok(len_bytes), [vector])
                if self.bouncing.is_none()
                    && (len_bytes as u64) < self.apart_bytes
                    && i64::try_from(offset_bytes).is_ok() =>
            {
                let entry = read_call(vector, offset_bytes, number);
                slot.whole_bytes = len_bytes;
                self.push(&entry);
            }
            (filled, _) => self.move_data(number, filled),
        }
    }

    /// As [`submit`](Self::submit), of anything but a read.
    #[inline(never)]
    fn submit_other(
        &mut self,
        token: u64,
        op: Op,
        offset_bytes: u64,
        len_bytes: u64,
        ranges: impl IntoIterator<Item = GuestRange, IntoIter: Clone>,
    ) {
        if matches!(op, Op::Discard | Op::WriteZeroes { .. }) {
            return self.eraser.submit(token, op, offset_bytes, len_bytes, ranges);
        }
        self.in_flight += 1;
        let (number, slot) = self.slots.begin(token, op, offset_bytes);
        if op == Op::Flush {
            return self.sync(number);
        }
        let filled = slot.vectors.extend(&self.mem, ranges);
        self.move_data(number, filled);
    }

    /// Begins with a read or write, whose vectors were filled if they could be.
    #[inline(never)]
    fn move_data(&mut self, number: usize, filled: Result<usize, OutsideMemory>) {
        let slot = &mut self.slots[number];
        match filled {
            Err(_) => self.end(number, Err(EngineError::Memory)),
            Ok(0) => self.end(number, Ok(())),
            // No file has such a place, and the ring takes -1 for wherever the file was left.
            Ok(_) if i64::try_from(slot.offset_bytes).is_err() => self.end(number, Err(EngineError::Host(libc::EIO))),
            Ok(len_bytes) => {
                slot.apart = len_bytes as u64 >= self.apart_bytes;
                let bounces = self.bouncing.as_ref().is_some_and(|it| !it.alignment.is_met_by(&slot.vectors.vectors));
                if bounces {
                    return self.bounce(number);
                }
                if !slot.ends_with_a_sync(self.bouncing.is_some()) {
                    slot.whole_bytes = len_bytes;
                }
                self.call(number);
            }
        }
    }

    /// Stages the first call of a read or write that needs bounce buffers, or has it wait for some.
    #[cold]
    fn bounce(&mut self, number: usize) {
        let slot = &mut self.slots[number];
        if let Some(bouncing) = &mut self.bouncing {
            if !bouncing.waiting.is_empty() || !bouncing.give_chunks(slot) {
                return bouncing.waiting.push_back(number);
            }
            bouncing.fill(slot);
        }
        self.call(number);
    }

    /// Stages the next call of a read or write that was done in part.
    fn go_on(&mut self, number: usize) {
        let slot = &mut self.slots[number];
        if let Some(bouncing) = &self.bouncing
            && !slot.chunks.is_empty()
        {
            bouncing.fill(slot);
        }
        self.call(number);
    }

    /// Has a request end when what is written is on stable storage.
    #[cold]
    fn sync(&mut self, number: usize) {
        if self.syncs.ask(number) {
            self.begin_sync();
        }
    }

    fn begin_sync(&mut self) {
        self.sync_retries = 0;
        self.call_sync();
    }

    fn call_sync(&mut self) {
        self.push(&opcode::Fsync::new(DISK).flags(FsyncFlags::DATASYNC).build().user_data(SYNC));
    }

    /// Takes what the call for that has come to.
    fn synced(&mut self, result: i32) {
        if is_passing(result) && self.sync_retries < MAX_RETRIES {
            self.sync_retries += 1;
            return self.call_sync();
        }
        let mut syncs = std::mem::take(&mut self.syncs);
        let is_next = syncs.end(|number| {
            let Slot { op, cancelled, .. } = self.slots[number];
            let result = match result {
                0.. => Ok(()),
                errno if cancelled && is_passing(errno) => Err(EngineError::Cancelled),
                errno => Err(op.unsynced(failure(errno))),
            };
            self.end(number, result);
        });
        self.syncs = syncs;
        if is_next {
            self.begin_sync();
        }
    }

    /// Stages the next call of a request.
    #[inline(never)]
    fn call(&mut self, number: usize) {
        let slot = &self.slots[number];
        let vectors = slot.vectors();
        let flags = if slot.apart { squeue::Flags::ASYNC } else { squeue::Flags::empty() };
        if let (Op::Read, [vector]) = (slot.op, vectors) {
            return self.push(&read_call(vector, slot.offset_bytes, number).flags(flags));
        }
        let count = slot.vectors_of_a_call() as u32;
        let entry = match slot.op {
            Op::Read => opcode::Readv::new(DISK, vectors.as_ptr(), count).offset(slot.offset_bytes).build(),
            _ => {
                let durable = slot.op == Op::Write { durable: true } && self.bouncing.is_some();
                opcode::Writev::new(DISK, vectors.as_ptr(), count)
                    .offset(slot.offset_bytes)
                    .rw_flags(if durable { libc::RWF_DSYNC as _ } else { 0 })
                    .build()
            }
        };
        self.push(&entry.user_data(number as u64).flags(flags));
    }

    #[inline(always)]
    fn push(&mut self, entry: &squeue::Entry) {
        self.calls += 1;
        self.staged = true;
        if !self.backlog.is_empty() || !self.has_taken(entry) {
            self.backlog.push_back(entry.clone());
        }
    }

    /// Whether the ring had room for a call.
    #[inline]
    fn has_taken(&mut self, entry: &squeue::Entry) -> bool {
        // SAFETY: the vectors are a slot's, which leaves them alone until the call's completion has been taken; the memory
        // they point to is guest memory or bounce buffers, mapped for as long as `mem` and `bouncing` are, and `drop`
        // waits for every call. Nobody in this process holds a reference to it.
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
            self.reap(&mut done);
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
        // Rarely: it has a lock.
        if self.eraser.in_flight() > 0 {
            self.eraser.poll(done);
        }
    }

    /// Takes the kernel's completions. What is done with its only call is reported here, without a way round.
    #[inline]
    fn reap(&mut self, mut done: impl FnMut(u64, Result<(), EngineError>)) {
        loop {
            let (mut taken, mut ended) = (0, 0);
            for entry in self.ring.completion() {
                taken += 1;
                let (number, result) = (entry.user_data(), entry.result());
                match self.slots.get(number as usize) {
                    Some(slot) if slot.is_done_by(result) => {
                        ended += 1;
                        let token = slot.token;
                        self.slots.end(number as usize);
                        done(token, Ok(()));
                    }
                    _ => self.come.push((number, result)),
                }
            }
            if taken == 0 {
                break;
            }
            self.calls -= taken;
            self.in_flight -= ended;
            self.look_closer();
        }
    }

    /// Goes on with requests whose calls have come to something else than all of them.
    fn look_closer(&mut self) {
        while let Some((number, result)) = self.come.pop() {
            match number {
                CANCEL => {}
                SYNC => self.synced(result),
                _ => self.take(number as usize, result),
            }
        }
    }

    /// Takes what a request's call has come to.
    #[cold]
    fn take(&mut self, number: usize, result: i32) {
        let slot = &mut self.slots[number];
        let result = match (slot.op, result) {
            (_, errno) if is_passing(errno) && slot.retries < MAX_RETRIES => {
                slot.retries += 1;
                if !slot.cancelled {
                    return self.call(number);
                }
                Err(EngineError::Cancelled)
            }
            (Op::Read, 0) => Err(EngineError::Short),
            (_, 0) => Err(EngineError::Host(libc::EIO)),
            (_, moved @ 1..) => {
                let moved = moved as usize;
                slot.advance(moved);
                // Only the disk's end leaves direct I/O in the middle of a block.
                let has_ended = self.bouncing.as_ref().is_some_and(|it| !it.alignment.is_met_after(moved));
                match slot.first < slot.vectors.vectors.len() {
                    false if slot.ends_with_a_sync(self.bouncing.is_some()) => return self.sync(number),
                    false => Ok(()),
                    true if slot.cancelled => Err(EngineError::Cancelled),
                    true if has_ended => Err(EngineError::Short),
                    true => return self.go_on(number),
                }
            }
            (_, errno) => Err(failure(errno)),
        };
        self.end(number, result);
    }

    fn end(&mut self, number: usize, result: Result<(), EngineError>) {
        self.over.push((self.slots[number].token, result));
        self.slots.end(number);
        if self.bouncing.is_some() {
            self.pass_on_chunks(number);
        }
    }

    /// Gives the bounce buffers of a request that has ended to those that wait for some.
    fn pass_on_chunks(&mut self, number: usize) {
        if let Some(bouncing) = &mut self.bouncing {
            bouncing.free.append(&mut self.slots[number].chunks);
        }
        while let Some(next) = self.next_of_waiting() {
            self.call(next);
        }
    }

    /// The request that has waited longest, with the bounce buffers it waited for.
    fn next_of_waiting(&mut self) -> Option<usize> {
        let bouncing = self.bouncing.as_mut()?;
        let next = *bouncing.waiting.front()?;
        let slot = &mut self.slots[next];
        if !bouncing.give_chunks(slot) {
            return None;
        }
        bouncing.waiting.pop_front();
        bouncing.fill(slot);
        Some(next)
    }

    pub(crate) fn cancel_all(&mut self) {
        self.eraser.cancel_all();
        while let Some(number) = self.bouncing.as_mut().and_then(|bouncing| bouncing.waiting.pop_front()) {
            self.end(number, Err(EngineError::Cancelled));
        }
        let mut syncs = std::mem::take(&mut self.syncs);
        syncs.cancel().for_each(|number| self.end(number, Err(EngineError::Cancelled)));
        self.syncs = syncs;
        self.slots.cancel_all();
        // The call for them, if there is one, is not made again.
        self.sync_retries = MAX_RETRIES;
        if self.calls > 0 {
            // A kernel before 5.19 does not know it, and then everything takes its time.
            self.push(&opcode::AsyncCancel2::new(CancelBuilder::any()).build().user_data(CANCEL));
        }
        self.commit();
    }
}

/// The call of a read into one piece of memory: without a vector for the kernel to fetch. A length is a descriptor's, or
/// less.
#[inline(always)]
fn read_call(into: &libc::iovec, offset_bytes: u64, number: usize) -> squeue::Entry {
    let call = opcode::Read::new(DISK, into.iov_base.cast(), into.iov_len as u32).offset(offset_bytes);
    call.build().user_data(number as u64)
}

/// Whether a call has come to nothing that it may come to when it is made again.
fn is_passing(result: i32) -> bool {
    [-libc::EINTR, -libc::EAGAIN].contains(&result)
}

/// How a call has failed that has come to this, a negative number.
fn failure(errno: i32) -> EngineError {
    match -errno {
        libc::ECANCELED => EngineError::Cancelled,
        errno => EngineError::Host(errno),
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
        // The kernel takes the ring down when it finds the time, and until then the disk would be open and locked.
        let _ = self.ring.submitter().unregister_files();
    }
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ring").field("in_flight", &self.in_flight()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use vmm_sys_util::tempfile::TempFile;

    use super::*;
    use crate::ram::{RamOptions, allocate};

    #[test]
    fn a_disk_that_always_puts_off_ends_its_request_with_an_error_after_many_calls() {
        let mut file = TempFile::new().unwrap().into_file();
        std::io::Write::write_all(&mut file, &[1; 4096]).unwrap();
        let mem: SharedRam = Arc::new(allocate(&[(0, 1 << 20)], &RamOptions::default()).unwrap());
        let wake = Arc::new(Event::new().unwrap());
        let disk = Arc::new(Disk::of_file(file, 4096));
        let mut ring = Ring::start("disk", disk, mem, wake, &EngineOptions::default()).unwrap();
        for (round, errno) in [libc::EAGAIN, libc::EINTR].into_iter().enumerate() {
            ring.submit(7, Op::Read, 0, 0, [GuestRange { address: 0, len: 1024 }]);
            for _ in 0..MAX_RETRIES {
                ring.take(0, -errno);
                assert_eq!((ring.over.len(), ring.in_flight), (round, round + 1));
            }
            // What moves something starts to count anew.
            ring.take(0, 512);
            for _ in 0..MAX_RETRIES {
                ring.take(0, -errno);
            }
            assert_eq!(ring.over.len(), round);
            ring.take(0, -errno);
            assert_eq!(ring.over.last(), Some(&(7, Err(EngineError::Host(errno)))));
        }
    }

    #[test]
    fn a_call_that_is_put_off_is_not_made_again_once_its_request_is_cancelled() {
        let mem: SharedRam = Arc::new(allocate(&[(0, 1 << 20)], &RamOptions::default()).unwrap());
        let wake = Arc::new(Event::new().unwrap());
        let disk = Arc::new(Disk::of_file(TempFile::new().unwrap().into_file(), 4096));
        let mut ring = Ring::start("disk", disk, mem, wake, &EngineOptions::default()).unwrap();
        for (at, come_to) in [-libc::EAGAIN, 512].into_iter().enumerate() {
            ring.submit(7, Op::Write { durable: false }, 0, 0, [GuestRange { address: 0, len: 1024 }]);
            ring.slots[0].cancelled = true;
            ring.take(0, come_to);
            assert_eq!((ring.over.len(), ring.over.last()), (at + 1, Some(&(7, Err(EngineError::Cancelled)))));
        }
    }
}
