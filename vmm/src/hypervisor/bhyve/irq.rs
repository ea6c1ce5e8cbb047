//! Interrupt lines and message-signalled interrupts.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use devices::interrupt::{IrqLine, MsiMessage, MsiSource};

use super::error::CallError;
use super::vmfd::{LineChange, VmFd};

/// Lines of the two PICs.
const PIC_LINES: u32 = 16;

/// The timer chip raises GSI 0, which the MADT says is IOAPIC pin 2.
const TIMER_PIN: i32 = 2;

/// Where messages go: the local APICs' addresses (Intel SDM vol. 3 §11.11.1).
const MESSAGE_ADDRESSES: std::ops::Range<u64> = 0xfee0_0000..0xfef0_0000;

/// Whether the kernel sends it: a message to any other address is a write to memory that no interrupt comes from, and the
/// kernel refuses it.
pub fn is_deliverable(message: &MsiMessage) -> bool {
    MESSAGE_ADDRESSES.contains(&message.address)
}

fn complain(what: &str, error: CallError) {
    log::error!("bhyve: {what}: {error}");
}

/// How often the kernel has forgotten every line's count: each reset of the VM makes new interrupt controllers.
#[derive(Clone, Default)]
pub struct Resets(Arc<AtomicU64>);

impl Resets {
    /// Counts one.
    pub fn count(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }

    /// How many there were.
    pub fn now(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }
}

/// One device's end of a line. The kernel counts assertions, so that a shared line stays up while anybody asserts it:
/// every end remembers its own level and only ever calls in pairs. One assertion too many leaves a line stuck.
pub struct BhyveIrqLine {
    fd: Arc<VmFd>,
    gsi: u32,
    resets: Resets,
    /// In which life of the interrupt controllers this end asserted the line, if it does.
    asserted: Mutex<Option<u64>>,
}

impl BhyveIrqLine {
    /// An end of the line `gsi`.
    pub fn new(fd: Arc<VmFd>, gsi: u32, resets: Resets) -> Self {
        Self { fd, gsi, resets, asserted: Mutex::new(None) }
    }

    fn change(&self, change: LineChange) -> Result<(), CallError> {
        let pin = i32::try_from(self.gsi).unwrap_or(i32::MAX);
        match self.gsi {
            0 => self.fd.isa_line(0, TIMER_PIN, change),
            1..PIC_LINES => self.fd.isa_line(pin, pin, change),
            _ => self.fd.ioapic_line(pin, change),
        }
    }
}

impl IrqLine for BhyveIrqLine {
    fn set(&self, asserted: bool) {
        let mut since = self.asserted.lock().unwrap_or_else(PoisonError::into_inner);
        let now = self.resets.now();
        // What was asserted before a reset is no more, and there is nothing to take back.
        let is_asserted = *since == Some(now);
        if is_asserted == asserted {
            return;
        }
        let (change, after) = if asserted { (LineChange::Assert, Some(now)) } else { (LineChange::Deassert, None) };
        match self.change(change) {
            Ok(()) => *since = after,
            // The kernel's count is as it was, and so is what this end remembers.
            Err(error) => complain(&format!("line {}", self.gsi), error),
        }
    }

    fn pulse(&self) {
        let since = self.asserted.lock().unwrap_or_else(PoisonError::into_inner);
        if *since == Some(self.resets.now()) {
            drop(since);
            self.set(false);
        } else if let Err(error) = self.change(LineChange::Pulse) {
            complain(&format!("line {}", self.gsi), error);
        }
    }
}

/// One MSI: its message in one word, address below data, 0 for none.
pub struct BhyveMsiSource {
    fd: Arc<VmFd>,
    message: AtomicU64,
}

impl BhyveMsiSource {
    /// A source without a message.
    pub fn new(fd: Arc<VmFd>) -> Self {
        Self { fd, message: AtomicU64::new(0) }
    }
}

impl MsiSource for BhyveMsiSource {
    fn set_message(&self, message: Option<MsiMessage>) {
        let word = message.filter(is_deliverable).map_or(0, |message| message.address | u64::from(message.data) << 32);
        self.message.store(word, Ordering::Release);
    }

    fn trigger(&self) {
        let word = self.message.load(Ordering::Acquire);
        if word != 0
            && let Err(error) = self.fd.send_msi(word & 0xffff_ffff, (word >> 32) as u32)
        {
            complain("msi", error);
        }
    }
}
