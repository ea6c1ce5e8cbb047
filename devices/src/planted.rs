//! Bugs that device models really had, one of which can be put back into this one: the fuzz campaign has to find it, or it
//! has no teeth.
//!
//! Without the feature `planted-defects`, which nothing that ships turns on, [`is_planted`] is a constant and every bug is
//! compiled away. With it, one bug at a time is chosen while the program runs.

/// A bug somebody had: each line ends with whose it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Defect {
    /// An available index that jumps by more than the ring is followed, and old entries are served again
    /// (vm-virtio#196, Firecracker#3149).
    IndexJump = 1,
    /// A head beyond the ring ends the process (propolis).
    HeadAsserted,
    /// A head that is in flight is taken a second time (Cloud Hypervisor, CVE-2026-45782).
    DuplicateHead,
    /// A chain with a bad link counts as ended there, and its beginning is served (vm-virtio).
    ChainCutShort,
    /// A readable descriptor behind a writable one is written to (vm-virtio).
    OrderUnchecked,
    /// A buffer whose end wraps past the address space is taken (QEMU, CVE-2016-7422).
    AddressWraps,
    /// Only the first byte of a buffer is checked (Firecracker, CVE-2019-18960).
    FirstByteChecked,
    /// A descriptor is read again between the check of its flags and its use (bhyve, CVE-2024-51563).
    DescriptorReadTwice,
    /// A ring that was refused is looked at again, for ever (OpenVMM#4045).
    RefusedRingSpins,
    /// A request that cannot be answered is not given back, and the queue runs dry (Cloud Hypervisor#8401).
    HeadLeaks,
    /// A chain without a byte keeps its worker busy for ever (QEMU, CVE-2016-6490).
    EmptyChainSpins,
    /// The end of a range of sectors wraps (Cloud Hypervisor#8388).
    SectorsWrap,
    /// The status byte goes to the first writable byte where the last descriptor is not the status alone (bhyve's
    /// `iov_base[iov_len - 1]`, taken at the wrong descriptor).
    StatusMisplaced,
    /// A frame that is larger than the buffer is given to the driver as if it fitted (QEMU, CVE-2015-7295).
    FrameTooLarge,
    /// A link that was full once is never tried again (Firecracker, CVE-2020-16843).
    StalledForGood,
    /// The answer to a request for entropy is as large as the guest asks, in memory of the host (Firecracker#5762).
    EntropyUnbounded,
    /// Console output that nobody takes is kept without bound (Firecracker, CVE-2020-27174).
    OutputUnbounded,
    /// A write beyond the configuration space ends the process (QEMU, CVE-2024-7730: it wrote out of bounds).
    ConfigWriteUnchecked,
    /// Queue registers stay open after the start (Firecracker, CVE-2026-5747).
    RegistersStayOpen,
    /// A vector for a queue that does not exist ends the process (Cloud Hypervisor#7918).
    QueueSelectUnchecked,
    /// A narrow access to a wide register ends the process (Cloud Hypervisor#8506).
    NarrowAccess,
    /// Any order of status bits will do (Firecracker#5818).
    StatusUnchecked,
    /// A reset is over before requests in flight are, whose completions reach a ring that is gone (propolis).
    ResetDoesNotWait,
    /// A BAR that moves leaves its doorbells behind (Cloud Hypervisor#7950: a move out of range).
    DoorbellsStay,
    /// Saved state is trusted about its own lengths (QEMU, CVE-2013-4149 and those after it).
    StateTrusted,
    /// A table of addresses that claims more of them than its command holds ends the process (QEMU, CVE-2014-0150: it read
    /// beyond).
    AddressTableTrusted,
    /// Frames go through a link that is down (libvirt#55).
    DownLinkCarries,
}

impl Defect {
    /// All of them.
    pub const ALL: [Self; 27] = [
        Self::IndexJump,
        Self::HeadAsserted,
        Self::DuplicateHead,
        Self::ChainCutShort,
        Self::OrderUnchecked,
        Self::AddressWraps,
        Self::FirstByteChecked,
        Self::DescriptorReadTwice,
        Self::RefusedRingSpins,
        Self::HeadLeaks,
        Self::EmptyChainSpins,
        Self::SectorsWrap,
        Self::StatusMisplaced,
        Self::FrameTooLarge,
        Self::StalledForGood,
        Self::EntropyUnbounded,
        Self::OutputUnbounded,
        Self::ConfigWriteUnchecked,
        Self::RegistersStayOpen,
        Self::QueueSelectUnchecked,
        Self::NarrowAccess,
        Self::StatusUnchecked,
        Self::ResetDoesNotWait,
        Self::DoorbellsStay,
        Self::StateTrusted,
        Self::AddressTableTrusted,
        Self::DownLinkCarries,
    ];
}

/// Whether bugs can be planted in this build: the binary that ships refuses to be built with it.
pub const CAN_PLANT: bool = cfg!(feature = "planted-defects");

#[cfg(feature = "planted-defects")]
mod chosen {
    use std::sync::atomic::{AtomicU8, Ordering};

    use super::Defect;

    static CHOSEN: AtomicU8 = AtomicU8::new(0);

    /// Puts `defect` into every device of the process, or with `None` takes it out again.
    pub fn plant(defect: Option<Defect>) {
        CHOSEN.store(defect.map_or(0, |defect| defect as u8), Ordering::Relaxed);
    }

    /// Whether `defect` is in.
    #[inline]
    pub fn is_planted(defect: Defect) -> bool {
        CHOSEN.load(Ordering::Relaxed) == defect as u8
    }

    /// Panics where `defect` is in.
    ///
    /// # Panics
    /// As it says.
    pub(crate) fn panic_if_planted(defect: Defect) {
        assert!(!is_planted(defect), "planted: {defect:?}");
    }
}

#[cfg(not(feature = "planted-defects"))]
mod chosen {
    use super::Defect;

    /// Nothing is.
    #[inline(always)]
    pub const fn is_planted(_defect: Defect) -> bool {
        false
    }

    /// Nothing is planted.
    #[inline(always)]
    pub(crate) const fn panic_if_planted(_defect: Defect) {}
}

pub use chosen::is_planted;
pub(crate) use chosen::panic_if_planted;
#[cfg(feature = "planted-defects")]
pub use chosen::plant;
