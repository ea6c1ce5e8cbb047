//! Disk engines: a request is submitted and committed, somebody does it, and it is collected.
//!
//! One [`Engine`] a virtqueue, so that queues share no lock. Requests, completions and their lists of ranges are recycled:
//! nothing is allocated once the largest request has been seen.

use std::io;
use std::sync::Arc;

use crate::Event;
use crate::disk::Disk;
use crate::iovec::GuestRange;
use crate::os::ring::Ring;
use crate::pool::{self, Pool};
use crate::ram::SharedRam;

/// The most threads an engine starts.
pub const MAX_THREADS: usize = 16;

/// Has every thread of engines that are started from now on do something before its first request: the process may want to
/// confine it. Said once; what is said later is not heard.
pub fn at_thread_start(what: fn()) {
    pool::at_thread_start(what);
}

/// What a request does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Op {
    /// Disk to guest memory.
    #[default]
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

impl Op {
    /// How a request ends whose data could not be put on stable storage. That there was no space is said of a write of which
    /// nothing was taken, and here the system took it, with others that may be lost as well.
    pub(crate) fn unsynced(self, error: EngineError) -> EngineError {
        match error {
            EngineError::Host(libc::ENOSPC) if self != Self::Flush => EngineError::Host(libc::EIO),
            error => error,
        }
    }
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
    /// Bytes from which on a request that goes through the page cache is done by the engine's threads or, with io_uring, by
    /// the kernel's, and never by the committing thread. `u64::MAX` for none.
    pub apart_bytes: u64,
    /// CPUs the threads may run on; empty means any.
    pub cpus: Vec<usize>,
    /// Who does the work.
    pub kind: Kind,
    /// Bytes of bounce buffers at most, where the disk asks for aligned memory; they are taken as they are needed.
    pub bounce_bytes: usize,
}

/// Who does an engine's work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kind {
    /// Threads that block in system calls: on every system.
    #[default]
    Threads,
    /// The kernel, by io_uring(7): Linux only.
    IoUring,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self {
            threads: 4,
            depth: 256,
            inline_single: false,
            apart_bytes: u64::MAX,
            cpus: Vec::new(),
            kind: Kind::Threads,
            bounce_bytes: 16 << 20,
        }
    }
}

impl EngineOptions {
    /// [`apart_bytes`](Self::apart_bytes) of a disk: what goes around the page cache is copied by nobody.
    pub(crate) fn apart_bytes_on(&self, disk: &Disk) -> u64 {
        if disk.alignment().is_some() { u64::MAX } else { self.apart_bytes }
    }
}

/// Runs the requests of one queue on one disk. Owned by the queue's worker.
#[derive(Debug)]
pub struct Engine(Inner);

#[derive(Debug)]
enum Inner {
    Pool(Pool),
    Ring(Box<Ring>),
}

/// The same call of whichever engine it is.
macro_rules! each {
    ($engine:expr, $inner:ident => $call:expr) => {
        match $engine {
            Inner::Pool($inner) => $call,
            Inner::Ring($inner) => $call,
        }
    };
}

impl Engine {
    /// Starts the engine; its threads are named `name` and a number. `wake` is signalled when [`poll`](Self::poll) has
    /// something to report that the last [`commit`](Self::commit) has not left; clear it before polling.
    ///
    /// # Errors
    /// When a thread cannot be started or bound; when the system has no io_uring or refuses it, and that is what is to do
    /// the work.
    pub fn start(
        name: &str,
        disk: Arc<Disk>,
        mem: SharedRam,
        wake: Arc<Event>,
        options: &EngineOptions,
    ) -> io::Result<Self> {
        Ok(Self(match options.kind {
            Kind::Threads => Inner::Pool(Pool::start(name, disk, mem, wake, options)?),
            Kind::IoUring => Inner::Ring(Box::new(Ring::start(name, disk, mem, wake, options)?)),
        }))
    }

    /// Whether another request may be staged.
    #[must_use]
    pub fn has_room(&self) -> bool {
        each!(&self.0, engine => engine.has_room())
    }

    /// Requests staged or committed and not yet reported by [`poll`](Self::poll). At zero, nobody touches guest memory.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        each!(&self.0, engine => engine.in_flight())
    }

    /// Says whether writes may stay in a volatile cache of the disk: see [`Disk::set_write_cache`]. Costs an atomic load
    /// where nothing changes; where something does, it returns when the disk has done it.
    pub fn set_write_cache(&self, write_back: bool) {
        match &self.0 {
            Inner::Pool(pool) => pool.set_write_cache(write_back),
            // No volume is worked on by one.
            Inner::Ring(_) => {}
        }
    }

    /// Takes a request; it starts with the next [`commit`](Self::commit) at the latest. `ranges` are copied; for a read or
    /// write their length is what is moved, for the others `len_bytes` counts. Staging more than the depth allows works,
    /// and allocates.
    #[inline(always)]
    pub fn submit(
        &mut self,
        token: u64,
        op: Op,
        offset_bytes: u64,
        len_bytes: u64,
        ranges: impl IntoIterator<Item = GuestRange, IntoIter: Clone>,
    ) {
        each!(&mut self.0, engine => engine.submit(token, op, offset_bytes, len_bytes, ranges));
    }

    /// Starts everything staged. What has ended by the time this returns need not signal anybody: [`poll`](Self::poll)
    /// after it, before sleeping.
    pub fn commit(&mut self) {
        each!(&mut self.0, engine => engine.commit());
    }

    /// Reports what has completed, each request once and in any order. What completes later signals.
    #[inline(always)]
    pub fn poll(&mut self, done: impl FnMut(u64, Result<(), EngineError>)) {
        each!(&mut self.0, engine => engine.poll(done));
    }

    /// Cancels what has not begun, and asks what runs to end early where it can. Each request still completes through
    /// [`poll`](Self::poll).
    pub fn cancel_all(&mut self) {
        each!(&mut self.0, engine => engine.cancel_all());
    }
}

#[cfg(test)]
#[path = "engine_tests.rs"]
mod tests;
