//! virtio-net whose data queues a kernel runs, as viona of illumos and vhost-net of Linux do.
//!
//! The kernel reads the driver's rings, moves the frames and interrupts the guest, so that a running queue costs the process
//! nothing. What is left is here: registers and configuration space ([`KernelNet`]), the control queue and the life of the
//! rings ([`KernelWorker`]), and what the kernel has to follow while they run ([`Carried`]): where the driver rings, and
//! which message its interrupt is.

mod carried;
mod device;
#[cfg(test)]
mod tests;
mod worker;

pub use carried::Carried;
pub use device::KernelNet;
pub use worker::KernelWorker;

use crate::interrupt::MsiMessage;
use crate::virtio::QueueState;

/// Guest addresses whose writes say that a data queue has new buffers. The value written is the queue's index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Window {
    /// The doorbells of a modern driver (virtio 1.3 §4.1.4.4), from that of queue 0 to that of the last data queue.
    Mmio {
        /// Guest-physical address of the first.
        address: u64,
        /// Length in bytes.
        len_bytes: u32,
    },
    /// The queue notify port of a legacy driver (virtio 1.3 §4.1.4.10).
    Port(u16),
}

/// Which frames of the network the queues get, beside those to the card's own address and to all stations.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reception {
    /// Those to every other station, too.
    pub others: bool,
    /// Those to groups. Of no matter where it is all frames.
    pub groups: Groups,
}

/// Groups whose frames are received (virtio 1.3 §5.1.6.5.1 and §5.1.6.5.2).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Groups {
    /// Every one.
    #[default]
    All,
    /// Those with these addresses, up to [`MOST_GROUPS`](Self::MOST_GROUPS): in order, none twice, and none of them that of all
    /// stations.
    Only(Vec<[u8; 6]>),
}

impl Groups {
    /// The most there are to tell apart: who asks for more gets all.
    pub const MOST_GROUPS: usize = super::filter::TABLE_ENTRIES;
}

/// What a kernel said. The variant decides what becomes of the queue.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KernelError {
    /// It does not take such a ring: the driver has to reset the device.
    #[error("the kernel does not take the ring: {0}")]
    Ring(String),
    /// It cannot do what it is there for: the link is down until a driver begins anew.
    #[error("{0}")]
    Failed(String),
}

/// The data queues of one card in a kernel, by their index in the device (virtio 1.3 §5.1.2).
///
/// A ring is reset, or initialised, or runs. All rings are reset at first. Calls may come from any thread; those about one
/// ring's life come one after the other. [`set_msi`](Self::set_msi) and [`notify_window`](Self::notify_window) come on vCPU
/// threads too, beside all others, and do not block; all others may wait for frames on their way.
pub trait KernelQueues: Send + Sync {
    /// Feature bits of virtio-net and of its rings that it carries.
    fn features(&self) -> u64;

    /// A driver has settled its features: `VIRTIO_NET_F_MQ` among them where it knows of the further pairs. All rings are
    /// reset. One pair is in use after that.
    ///
    /// # Errors
    /// What the kernel says.
    fn accept(&self, features: u64) -> Result<(), KernelError>;

    /// Gives received frames to the first `pairs` queue pairs from now on, those of one flow to one of them, and to the other
    /// pairs none (virtio 1.3 §5.1.6.5.6). Of a card with several, whose driver has settled `VIRTIO_NET_F_MQ`; 1 to as many
    /// as it has. May come while rings run.
    ///
    /// # Errors
    /// What the kernel says; it is as before then.
    fn use_pairs(&self, pairs: u16) -> Result<(), KernelError>;

    /// Initialises a ring that is reset, at the indices that `ring` has. Sizes and alignments are as the standard asks, and
    /// all of it lies in guest memory: kernels trust that. It has no message after that.
    ///
    /// # Errors
    /// What the kernel says; the ring is reset then.
    fn init(&self, queue: u16, ring: &QueueState, legacy: bool) -> Result<(), KernelError>;

    /// Has an initialised ring run, or a running one look for new buffers. A ring that is reset is not kicked: a kernel was
    /// seen to crash by that.
    fn kick(&self, queue: u16);

    /// What an initialised ring interrupts with; with nothing its interrupts wait for [`poll`](Self::poll).
    fn set_msi(&self, queue: u16, message: Option<MsiMessage>);

    /// Stops a ring between two frames, without an end to it.
    ///
    /// # Errors
    /// What the kernel says.
    fn pause(&self, queue: u16) -> Result<(), KernelError>;

    /// Where a paused ring stands: the index of the next available entry, and of the next used one.
    ///
    /// # Errors
    /// What the kernel says.
    fn state(&self, queue: u16) -> Result<(u16, u16), KernelError>;

    /// Resets a ring, wherever it is. Once this returns nothing of it touches guest memory.
    fn reset(&self, queue: u16);

    /// Where the running rings' doorbells are, or that they are nowhere. A kernel that cannot watch them leaves them to
    /// [`kick`](Self::kick).
    fn notify_window(&self, window: Option<Window>);

    /// Takes the interrupts that wait away, and names each one's queue after that.
    fn poll(&self, raised: &mut dyn FnMut(u16));

    /// Whether it says by its descriptor, too, that it has given a ring up, and may have interrupts that wait of a ring which
    /// has just begun: while a ring runs its descriptor is looked at, whatever messages there are.
    fn tells_of_broken(&self) -> bool {
        false
    }

    /// Names each ring that the kernel has given up since the last call, for what the driver put there. It is initialised
    /// still; nothing of it moves.
    fn take_broken(&self, _broken: &mut dyn FnMut(u16)) {}

    /// Which frames the queues get. A kernel that cannot tell them apart so finely gives more of them.
    fn set_reception(&self, reception: &Reception);

    /// The card's own address is another one from now on. Asked only of one that has `VIRTIO_NET_F_CTRL_MAC_ADDR` among its
    /// [features](Self::features), while the queues get every frame ([`Reception::others`]).
    ///
    /// # Errors
    /// What the kernel says; it is as before then.
    fn set_address(&self, _mac: [u8; 6]) -> Result<(), KernelError> {
        Ok(())
    }

    /// What a call that gives no answer has met since this was asked last, where the rings cannot go on after that: the link
    /// is down then until a driver begins anew. Asked often, and after every call of [`set_msi`](Self::set_msi).
    fn failure(&self) -> Option<String> {
        None
    }
}
