//! Interrupts as devices see them: a level line, and a message-signalled source.
//!
//! The hypervisor backends implement both: an irqfd or an ioctl behind one call.

use serde::{Deserialize, Serialize};

/// An interrupt line with a level. Implementations remember the level, so that setting it twice is harmless even where
/// the hypervisor counts assertions (bhyve).
pub trait IrqLine: Send + Sync {
    /// Drives the line: `true` asserts it.
    fn set(&self, asserted: bool);

    /// Asserts and deasserts: one edge.
    fn pulse(&self) {
        self.set(true);
        self.set(false);
    }
}

/// The address and data of a message-signalled interrupt (Intel SDM vol. 3 §11.11).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MsiMessage {
    /// Address, 0xFEE0_0000 and up on x86.
    pub address: u64,
    /// Data: vector and delivery mode.
    pub data: u32,
}

impl MsiMessage {
    /// Whether a local APIC takes it as an interrupt (Intel SDM vol. 3 §11.11.1: address bits 31 to 20 are 0xFEE). To
    /// any other address the write goes to memory, yet hypervisors deliver it all the same: Linux KVM looks at the low
    /// bits only, and a wild message becomes an NMI.
    #[must_use]
    pub fn is_interrupt(&self) -> bool {
        self.address >> 20 == 0xfee
    }
}

/// One message-signalled interrupt: one MSI-X vector of one device.
pub trait MsiSource: Send + Sync {
    /// Says where the interrupt goes; `None` means masked or disabled. Called on vCPU threads when the guest programs
    /// the vector, before the first [`trigger`](Self::trigger) that may use the message.
    fn set_message(&self, message: Option<MsiMessage>);

    /// Sends the interrupt; without a message it is dropped (the caller keeps the pending bit). Never blocks.
    fn trigger(&self);
}
