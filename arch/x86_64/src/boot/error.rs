//! Everything that can be wrong with a kernel, an initrd or a command line.

/// Why a guest cannot be booted from the given files. Every variant but [`BootError::Memory`], [`BootError::ReadKernel`]
/// and [`BootError::ReadInitrd`] is found by [`super::inspect`], before guest memory exists.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The file holds neither an ELF nor a bzImage.
    #[error("the kernel is neither a bzImage nor an ELF file{hint}")]
    UnknownFormat {
        /// What it looks like instead, starting with a colon, or empty.
        hint: &'static str,
    },
    /// Reading or seeking failed.
    #[error("cannot read the kernel: {0}")]
    ReadKernel(#[source] std::io::Error),
    /// Reading or seeking failed.
    #[error("cannot read the initrd: {0}")]
    ReadInitrd(#[source] std::io::Error),
    /// A header names bytes past the end of the file.
    #[error("the kernel file is truncated: {what} ends at byte {end}, the file has {file_len}")]
    Truncated {
        /// Which part.
        what: &'static str,
        /// Offset of the first byte after that part.
        end: u64,
        /// Length of the file.
        file_len: u64,
    },
    /// An offset plus a length does not fit 64 bits.
    #[error("the kernel file is corrupt: offset and size of {0} wrap around")]
    Wraps(&'static str),
    /// A header field has a value no valid kernel has.
    #[error("the kernel file is corrupt: {0}")]
    Corrupt(&'static str),
    /// A kernel for another machine or mode.
    #[error("the kernel cannot run on this machine: {0}")]
    Unsupported(&'static str),
    /// The kernel starts outside what is loaded.
    #[error("the kernel's entry point {entry:#x} lies outside its loaded segments")]
    EntryOutside {
        /// Physical address of the entry.
        entry: u64,
    },
    /// Two ELF segments claim the same memory.
    #[error("the kernel's segments overlap at physical address {0:#x}")]
    SegmentsOverlap(u64),
    /// A segment would overwrite the boot structures, tables or legacy hole.
    #[error("the kernel wants to be loaded at {0:#x}: nothing can be loaded below 1 MiB")]
    SegmentTooLow(u64),
    /// RAM below 3 GiB does not hold the kernel.
    #[error(
        "the kernel needs memory up to {end:#x}, but low memory ends at {ram_end:#x}: give the guest at least {need_mib}M"
    )]
    KernelTooLarge {
        /// One past the last byte the kernel needs while it starts.
        end: u64,
        /// End of low RAM.
        ram_end: u64,
        /// The memory size, in MiB, that would do.
        need_mib: u64,
    },
    /// No memory size would do: low RAM ends at 3 GiB.
    #[error("the kernel needs memory up to {0:#x}, but kernels have to fit below 3 GiB")]
    KernelTooHigh(u64),
    /// A PVH note that cannot be used.
    #[error("the kernel's PVH note is invalid: {0}")]
    PvhNote(&'static str),
    /// The caller asked for a protocol the kernel does not offer.
    #[error("the kernel has no {0} entry point")]
    NoSuchEntry(super::Protocol),
    /// No room between the kernel and the highest address the kernel accepts.
    #[error(
        "the initrd of {len} bytes does not fit: {room} bytes are free between the kernel and {limit:#x}, the end of memory the kernel can take it from"
    )]
    InitrdTooLarge {
        /// Size of the initrd.
        len: u64,
        /// Bytes free.
        room: u64,
        /// Upper limit of the search.
        limit: u64,
    },
    /// The initrd file is empty.
    #[error("the initrd is empty")]
    InitrdEmpty,
    /// Longer than the kernel or the boot area takes.
    #[error("the kernel command line has {len} bytes, this kernel takes at most {max}")]
    CmdlineTooLong {
        /// Length without the terminating zero.
        len: usize,
        /// Most the kernel takes, without the terminating zero.
        max: usize,
    },
    /// A zero byte would end the command line early.
    #[error("the kernel command line holds a zero byte at position {0}")]
    CmdlineZeroByte(usize),
    /// The file changed between the check and the load.
    #[error("{what} became shorter while it was loaded: {missing} bytes are missing")]
    Shrunk {
        /// Which file.
        what: &'static str,
        /// Bytes that were not there.
        missing: u64,
    },
    /// `place` was called with an initrd that was not planned, or without one that was.
    #[error("the boot plan was made {planned} an initrd, but it is loaded {given} one")]
    InitrdMismatch {
        /// "with" or "without".
        planned: &'static str,
        /// "with" or "without".
        given: &'static str,
    },
    /// Guest memory does not have the layout the plan was made for.
    #[error("cannot write {what} into guest memory: {source}")]
    Memory {
        /// Which structure.
        what: &'static str,
        /// What the memory said.
        source: vm_memory::GuestMemoryError,
    },
}
