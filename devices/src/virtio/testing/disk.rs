//! A disk in memory.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use vm_memory::{Bytes, GuestAddress, GuestMemory};

use crate::virtio::blk::{BlkBackend, BlkError, BlkOp, BlkRequest, RequestToken};

/// A disk in memory. Clones share it. Requests take effect at once and complete at the next poll after the commit they wait
/// for, or, held back, when the test says so and in the order it says.
#[derive(Clone, Debug, Default)]
pub struct MemoryDisk(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    bytes: Vec<u8>,
    hold: bool,
    room: Option<usize>,
    fail_next: VecDeque<BlkError>,
    log: Vec<BlkOp>,
    write_cache: Option<bool>,
    cache_log: Vec<bool>,
    staged: Vec<(RequestToken, Result<(), BlkError>)>,
    waiting: Vec<(RequestToken, Result<(), BlkError>)>,
    ready: VecDeque<(RequestToken, Result<(), BlkError>)>,
}

impl MemoryDisk {
    /// A disk of `len` zeroes.
    pub fn new(len: usize) -> Self {
        Self(Arc::new(Mutex::new(Inner { bytes: vec![0; len], ..Inner::default() })))
    }

    /// The disk's content.
    pub fn bytes(&self) -> Vec<u8> {
        self.0.lock().unwrap().bytes.clone()
    }

    /// Overwrites the disk at `offset`.
    pub fn fill(&self, offset: usize, content: &[u8]) {
        self.0.lock().unwrap().bytes[offset..offset + content.len()].copy_from_slice(content);
    }

    /// From now on requests wait for [`complete`](Self::complete).
    pub fn hold(&self, hold: bool) {
        self.0.lock().unwrap().hold = hold;
    }

    /// Lets the `nth` of the held requests complete; `false` where there is none.
    pub fn complete(&self, nth: usize) -> bool {
        let mut inner = self.0.lock().unwrap();
        if nth >= inner.waiting.len() {
            return false;
        }
        let done = inner.waiting.remove(nth);
        inner.ready.push_back(done);
        true
    }

    /// Takes at most this many requests at a time.
    pub fn limit(&self, room: usize) {
        self.0.lock().unwrap().room = Some(room);
    }

    /// The next request that would start fails with `error` instead, when it completes.
    pub fn fail_next(&self, error: BlkError) {
        self.0.lock().unwrap().fail_next.push_back(error);
    }

    /// Operations submitted since the last call.
    pub fn take_log(&self) -> Vec<BlkOp> {
        std::mem::take(&mut self.0.lock().unwrap().log)
    }

    /// How the write cache was switched since the last call.
    pub fn take_cache_log(&self) -> Vec<bool> {
        std::mem::take(&mut self.0.lock().unwrap().cache_log)
    }
}

impl Inner {
    fn in_flight(&self) -> usize {
        self.staged.len() + self.waiting.len() + self.ready.len()
    }

    fn run<M: GuestMemory + ?Sized>(&mut self, mem: &M, request: &BlkRequest<'_>) -> Result<(), BlkError> {
        let start = usize::try_from(request.offset_bytes).map_err(|_| BlkError::Short)?;
        let len = usize::try_from(request.len_bytes).map_err(|_| BlkError::Short)?;
        let end = start.checked_add(len).ok_or(BlkError::Short)?;
        let mut area = self.bytes.get_mut(start..end).ok_or(BlkError::Short)?;
        match request.op {
            BlkOp::Flush => {}
            BlkOp::Discard | BlkOp::WriteZeroes { .. } => area.fill(0),
            BlkOp::Read | BlkOp::Write { .. } => {
                for range in request.ranges {
                    let (here, rest) = area.split_at_mut(range.len as usize);
                    let addr = GuestAddress(range.addr);
                    match request.op {
                        BlkOp::Read => mem.write_slice(here, addr),
                        _ => mem.read_slice(here, addr),
                    }
                    .map_err(|_| BlkError::Memory)?;
                    area = rest;
                }
                assert!(area.is_empty(), "the ranges of a request add up to its length");
            }
        }
        Ok(())
    }
}

impl<M: GuestMemory + ?Sized> BlkBackend<M> for MemoryDisk {
    fn has_room(&self) -> bool {
        let inner = self.0.lock().unwrap();
        inner.room.is_none_or(|room| inner.in_flight() < room)
    }

    fn set_write_cache(&mut self, write_back: bool) {
        let inner = &mut *self.0.lock().unwrap();
        if inner.write_cache.replace(write_back) != Some(write_back) {
            inner.cache_log.push(write_back);
        }
    }

    fn submit(&mut self, mem: &M, request: BlkRequest<'_>) -> Result<(), BlkError> {
        let inner = &mut *self.0.lock().unwrap();
        inner.log.push(request.op);
        let result = match inner.fail_next.pop_front() {
            Some(error) => Err(error),
            None => inner.run(mem, &request),
        };
        inner.staged.push((request.token, result));
        Ok(())
    }

    fn commit(&mut self) {
        let inner = &mut *self.0.lock().unwrap();
        match inner.hold {
            true => inner.waiting.append(&mut inner.staged),
            false => inner.ready.extend(inner.staged.drain(..)),
        }
    }

    fn poll(&mut self, _mem: &M, done: &mut dyn FnMut(RequestToken, Result<(), BlkError>)) {
        loop {
            let next = self.0.lock().unwrap().ready.pop_front();
            match next {
                Some((token, result)) => done(token, result),
                None => break,
            }
        }
    }

    fn cancel_all(&mut self) {
        let inner = &mut *self.0.lock().unwrap();
        let ended = inner.waiting.drain(..).chain(inner.staged.drain(..));
        inner.ready.extend(ended.map(|(token, _)| (token, Err(BlkError::Cancelled))));
    }

    fn in_flight(&self) -> usize {
        self.0.lock().unwrap().in_flight()
    }
}
