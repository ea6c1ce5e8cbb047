//! What a driver can do wrong to a ring.

use super::mem::OutsideMemory;

/// Why a queue cannot be started or has stopped taking chains. Each is the driver's fault and ends in
/// DEVICE_NEEDS_RESET; nothing here is a request's own error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QueueError {
    /// The size is zero, no power of two or above the device's maximum (virtio 1.3 §2.7).
    #[error("queue size {size} is not a power of two between 1 and {max}")]
    BadSize {
        /// The driver's choice.
        size: u16,
        /// The device's maximum.
        max: u16,
    },
    /// The size of a packed ring is zero or above the device's maximum (virtio 1.3 §2.8.10.1).
    #[error("packed queue size {size} is not between 1 and {max}")]
    BadPackedSize {
        /// The driver's choice.
        size: u16,
        /// The device's maximum.
        max: u16,
    },
    /// A saved position lies outside the ring.
    #[error("saved ring position {index} is outside a ring of {size} descriptors")]
    BadPosition {
        /// The position, its wrap counter aside.
        index: u16,
        /// Entries in the ring.
        size: u16,
    },
    /// A ring is not aligned as virtio 1.3 §2.7 demands.
    #[error("the {area} at {addr:#x} is not aligned to {align} bytes")]
    Misaligned {
        /// Which of the three areas.
        area: &'static str,
        /// Where the driver put it.
        addr: u64,
        /// The alignment it needs.
        align: u64,
    },
    /// A ring, an indirect table or a buffer lies outside guest memory.
    #[error(transparent)]
    OutsideMemory(#[from] OutsideMemory),
    /// The available index ran further ahead than the ring has entries (virtio 1.3 §2.7.13.3).
    #[error("available index {index} is more than {size} entries ahead of {next}")]
    IndexJump {
        /// The driver's index.
        index: u16,
        /// The entry the device looks at next.
        next: u16,
        /// Entries in the ring.
        size: u16,
    },
    /// A head index names no descriptor.
    #[error("available head {head} is outside the table of {size} descriptors")]
    BadHead {
        /// The head.
        head: u16,
        /// Entries in the table.
        size: u16,
    },
    /// A head was made available again before the device returned it: two requests would share one slot.
    #[error("head {head} is made available while it is still in flight")]
    HeadInFlight {
        /// The head.
        head: u16,
    },
    /// A chain continues outside its table.
    #[error("a chain continues at descriptor {next}, outside a table of {entries}")]
    BadNext {
        /// The index it continues at.
        next: u16,
        /// Entries in the table.
        entries: u16,
    },
    /// A chain visits a descriptor twice.
    #[error("a chain visits descriptor {index} twice")]
    Cycle {
        /// The descriptor.
        index: u16,
    },
    /// A chain has more descriptors than the queue has entries (virtio 1.3 §2.7.5.3.1).
    #[error("a chain has more than {size} descriptors")]
    ChainTooLong {
        /// Entries in the queue.
        size: u16,
    },
    /// A device-readable descriptor follows a device-writable one (virtio 1.3 §2.7.4.2).
    #[error("a readable descriptor follows a writable one")]
    ReadableAfterWritable,
    /// A chain describes more than 2³² bytes (virtio 1.3 §2.7.5.2).
    #[error("a chain describes more than 4 GiB")]
    TooManyBytes,
    /// An indirect descriptor without `VIRTIO_F_INDIRECT_DESC` (virtio 1.3 §2.7.5.3.1).
    #[error("an indirect descriptor was used without negotiating indirect descriptors")]
    IndirectNotNegotiated,
    /// An indirect descriptor inside an indirect table (virtio 1.3 §2.7.5.3.1).
    #[error("an indirect table contains an indirect descriptor")]
    IndirectNested,
    /// An indirect descriptor with `VIRTQ_DESC_F_NEXT` (virtio 1.3 §2.7.5.3.1).
    #[error("an indirect descriptor has a successor")]
    IndirectWithNext,
    /// An indirect table that is empty, not a whole number of descriptors, or longer than the queue.
    #[error("an indirect table of {len} bytes is not between 1 and {size} descriptors")]
    IndirectLength {
        /// Its length in bytes.
        len: u32,
        /// Entries in the queue.
        size: u16,
    },
    /// A chain of a packed ring runs into descriptors that are still in flight.
    #[error("a chain of at least {slots} descriptors was made available where {free} are not in flight")]
    Overrun {
        /// Descriptors of the chain, as far as it was read.
        slots: u16,
        /// Descriptors not in flight.
        free: u16,
    },
    /// A chain of a packed ring continues at a descriptor that is not available (virtio 1.3 §2.8.6).
    #[error("a chain continues at descriptor {index}, which is not available")]
    NotAvailable {
        /// The descriptor.
        index: u16,
    },
    /// An indirect descriptor of a packed ring is part of a chain (virtio 1.3 §2.8.19).
    #[error("an indirect descriptor is linked to direct ones")]
    IndirectLinked,
    /// A chain was returned that this queue did not hand out.
    #[error("head {head} was returned without being in flight")]
    NotInFlight {
        /// The head.
        head: u16,
    },
    /// Chains that were saved in flight cannot all be.
    #[error("chains that were saved in flight cannot be: {why}")]
    BadFlight {
        /// What is wrong with them.
        why: &'static str,
    },
}
