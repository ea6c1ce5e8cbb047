//! What a guest does to its machine, written down: a hypervisor around another one.
//!
//! [`Recording`] delegates everything to the hypervisor it wraps, and writes a line for every port and memory access a
//! vCPU leaves the guest for, in the order in which devices saw them. It offers neither doorbells in the kernel nor
//! collected port writes, so that every kick and every index register comes to the process, where it is seen. Before a
//! doorbell it also writes the descriptor chains that the driver of a split ring has made available since the last one.
//!
//! # The record
//!
//! Text; all numbers are hexadecimal without a prefix, widths and lengths in bytes, `r` or `w` what the guest does. The
//! value of a read is what the device gave.
//!
//! ```text
//! zvmm record 1                                   the first line
//! port r|w PORT WIDTH VALUE
//! memory r|w ADDRESS WIDTH VALUE
//! config ports|ecam r|w SLOT.FUNCTION OFFSET WIDTH VALUE     instead of the port or memory access it was
//! bar r|w SLOT.FUNCTION BAR OFFSET WIDTH VALUE               the same, of a virtio function
//! chain SLOT.FUNCTION QUEUE direct|indirect HEAD r10 w200 w1
//! ```
//!
//! `HEAD` is the first (at most) 16 bytes of the first device-readable descriptor, which is the header of a virtio-blk
//! request (virtio 1.3 §5.2.6), or `-`; after it come the descriptors in order, as length and whether the device reads or
//! writes it. Chains of packed rings are not followed.
//!
//! A chain that the driver shows without a doorbell is found at the next one. If it has come back by then, its descriptors
//! may already be those of another chain.

mod bars;
mod kernel;
mod queues;
mod vm;

#[cfg(test)]
mod tests;

use std::fmt::Write as _;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arch::cpu::CpuidEntry;
use devices::GuestRam;
use devices_host::sys::{Link, Sys, SysResult};
use zvmm::hypervisor::{HostCapabilities, Hypervisor, HypervisorError, Vm, VmSpec};

use bars::{Bars, Place};
use queues::Queues;

/// First line of a record.
const TITLE: &str = "zvmm record 1";

/// Where a record is written to. Clones write to the same one.
#[derive(Clone)]
pub struct Record(Arc<Mutex<State>>);

struct State {
    out: Box<dyn Write + Send>,
    /// What went wrong first: nothing is written after it.
    failed: Option<io::Error>,
    bars: Bars,
    queues: Queues,
    line: String,
}

/// Which address space an access is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Space {
    Port,
    Memory,
}

/// One access of the guest.
#[derive(Clone, Copy, Debug)]
struct Seen {
    space: Space,
    address: u64,
    is_write: bool,
    width: usize,
    value: u64,
}

impl Seen {
    fn new(space: Space, address: u64, is_write: bool, data: &[u8]) -> Self {
        let value = data.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte));
        Self { space, address, is_write, width: data.len(), value }
    }
}

impl Record {
    /// A record that goes to `out`, which is best buffered.
    pub fn new(out: impl Write + Send + 'static) -> Self {
        let mut state = State {
            out: Box::new(out),
            failed: None,
            bars: Bars::default(),
            queues: Queues::default(),
            line: format!("{TITLE}\n"),
        };
        state.write();
        Self(Arc::new(Mutex::new(state)))
    }

    /// Writes out what is buffered.
    ///
    /// # Errors
    /// The first one that writing met, now or earlier: the record ends before that access.
    pub fn finish(&self) -> io::Result<()> {
        let mut state = self.lock();
        match state.failed.take() {
            Some(error) => Err(error),
            None => state.out.flush(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes an access: a read after the device has answered it, a write before the device gets it, so that what `ram`
    /// holds for a doorbell is still as the driver left it.
    fn note(&self, seen: Seen, ram: &GuestRam) {
        self.lock().note(seen, ram);
    }
}

impl State {
    fn note(&mut self, seen: Seen, ram: &GuestRam) {
        let way = if seen.is_write { 'w' } else { 'r' };
        let Seen { width, value, address, .. } = seen;
        let place = self.bars.place(seen);
        self.line.clear();
        // Writing to a string does not fail.
        let _ = match &place {
            Place::Plain if seen.space == Space::Port => {
                writeln!(self.line, "port {way} {address:x} {width:x} {value:x}")
            }
            Place::Plain => writeln!(self.line, "memory {way} {address:x} {width:x} {value:x}"),
            Place::Config { function, offset, through } => {
                writeln!(self.line, "config {through} {way} {function} {offset:x} {width:x} {value:x}")
            }
            Place::Bar { function, bar, offset } => {
                if let Some(queue) = self.queues.note(*function, *bar, *offset, seen) {
                    self.queues.write_chains(*function, queue, ram, &mut self.line);
                }
                writeln!(self.line, "bar {way} {function} {bar:x} {offset:x} {width:x} {value:x}")
            }
        };
        if let Place::Config { function, offset, .. } = place {
            self.bars.note_config(function, offset, seen);
        }
        self.write();
    }

    fn write(&mut self) {
        if self.failed.is_none()
            && let Err(error) = self.out.write_all(self.line.as_bytes())
        {
            self.failed = Some(error);
        }
    }
}

/// A hypervisor whose guests are recorded.
pub struct Recording {
    inner: Box<dyn Hypervisor>,
    record: Record,
}

impl Recording {
    /// Records what guests of `inner` do. A record follows one VM at a time.
    #[must_use]
    pub fn new(inner: Box<dyn Hypervisor>, record: Record) -> Self {
        Self { inner, record }
    }
}

impl Hypervisor for Recording {
    fn capabilities(&self) -> &HostCapabilities {
        self.inner.capabilities()
    }

    fn supported_cpuid(&self) -> Result<Vec<CpuidEntry>, HypervisorError> {
        self.inner.supported_cpuid()
    }

    fn create_vm(&self, spec: &VmSpec) -> Result<Arc<dyn Vm>, HypervisorError> {
        let inner = self.inner.create_vm(spec)?;
        Ok(Arc::new(vm::RecordingVm { inner, record: self.record.clone() }))
    }

    fn sys(&self) -> Option<&Arc<dyn Sys>> {
        self.inner.sys()
    }

    fn kernel_link(&self, name: &str) -> Option<SysResult<Link>> {
        self.inner.kernel_link(name)
    }

    fn tap_carrier(&self) -> Option<Result<(), HypervisorError>> {
        self.inner.tap_carrier()
    }
}
