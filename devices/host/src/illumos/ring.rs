//! illumos has no io_uring.

use std::io;
use std::sync::Arc;

use crate::Event;
use crate::disk::Disk;
use crate::engine::{EngineError, EngineOptions, Op};
use crate::iovec::GuestRange;
use crate::ram::SharedRam;

/// An engine that there is none of.
#[derive(Debug)]
pub(crate) enum Ring {}

impl Ring {
    pub(crate) fn start(
        _name: &str,
        _disk: Arc<Disk>,
        _mem: SharedRam,
        _wake: Arc<Event>,
        _options: &EngineOptions,
    ) -> io::Result<Self> {
        Err(io::Error::new(io::ErrorKind::Unsupported, "this system has no io_uring"))
    }

    pub(crate) fn has_room(&self) -> bool {
        match *self {}
    }

    pub(crate) fn in_flight(&self) -> usize {
        match *self {}
    }

    pub(crate) fn submit(
        &mut self,
        _token: u64,
        _op: Op,
        _offset_bytes: u64,
        _len_bytes: u64,
        _ranges: impl IntoIterator<Item = GuestRange, IntoIter: Clone>,
    ) {
        match *self {}
    }

    pub(crate) fn commit(&mut self) {
        match *self {}
    }

    pub(crate) fn poll(&mut self, _done: impl FnMut(u64, Result<(), EngineError>)) {
        match *self {}
    }

    pub(crate) fn cancel_all(&mut self) {
        match *self {}
    }
}
