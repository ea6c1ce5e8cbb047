//! Getting a kernel into memory: bzImage and ELF, by the Linux 64-bit protocol or PVH.
//!
//! [`inspect`] checks everything (headers, sizes, entry, initrd, command line) against the memory map before any guest
//! memory exists and returns a [`BootPlan`]; [`place`] then streams the files straight into guest memory, without a copy
//! on the heap, and writes the structures the kernel is handed. A bad file is refused, with the reason, before a VM is
//! created.
//!
//! | File | Protocol |
//! |---|---|
//! | bzImage | Linux 64-bit entry, at the kernel's preferred address |
//! | ELF with a PVH note | PVH |
//! | ELF without | Linux 64-bit entry at `e_entry` |

mod bzimage;
mod elf;
mod error;
mod params;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io::{Read, Seek, SeekFrom};

use linux_loader::bootparam::setup_header;
use vm_memory::{Bytes, GuestAddress, GuestMemory, ReadVolatile};

pub use self::error::BootError;
use self::params::Handover;
use crate::layout::{self, AddressRange, HIGH_RAM_START, MemoryLayout, PAGE_BYTES};
use crate::regs::{self, BootCpu};

/// How the boot CPU enters the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// Long mode, RSI = `boot_params`.
    Linux64,
    /// 32-bit protected mode, EBX = `hvm_start_info`.
    Pvh,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Linux64 => "64-bit Linux",
            Self::Pvh => "PVH",
        })
    }
}

/// One piece of the kernel file and where it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Segment {
    file_offset: u64,
    file_bytes: u64,
    gpa: u64,
    /// At least `file_bytes`; the rest is zero when the kernel starts.
    mem_bytes: u64,
}

impl Segment {
    fn end(&self) -> u64 {
        self.gpa.saturating_add(self.mem_bytes)
    }
}

/// What a kernel file says about itself, checked against the file but not yet against memory.
struct Image {
    protocol: Protocol,
    entry: u64,
    /// Sorted, disjoint, at or above 1 MiB.
    segments: Vec<Segment>,
    initrd_addr_max: u64,
    initrd_above_4g: bool,
    cmdline_max: usize,
    header: Option<setup_header>,
}

/// A kernel, initrd and command line that fit each other and the memory map. Holds addresses and the command line, no
/// file content; it can be placed again after a guest reset.
#[derive(Clone, Debug)]
pub struct BootPlan {
    protocol: Protocol,
    entry: u64,
    segments: Vec<Segment>,
    kernel_end: u64,
    initrd: Option<AddressRange>,
    cmdline: Vec<u8>,
    header: Option<setup_header>,
    layout: MemoryLayout,
}

impl BootPlan {
    /// How the kernel is entered.
    pub fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// Physical address of the entry point.
    pub fn entry(&self) -> u64 {
        self.entry
    }

    /// One past the last byte the kernel uses while it starts.
    pub fn kernel_end(&self) -> u64 {
        self.kernel_end
    }

    /// Where the initrd goes.
    pub fn initrd(&self) -> Option<AddressRange> {
        self.initrd
    }
}

/// What the machine adds to the hand-over; known only when the machine is built.
#[derive(Clone, Copy, Debug, Default)]
pub struct Placement {
    /// Guest physical address of the ACPI RSDP.
    pub rsdp: Option<u64>,
    /// The machine has an ECAM window: reserve it in the memory map.
    pub ecam: bool,
    /// Guest memory was used before (a reset): clear what the kernel expects to be zero. Fresh memory is zero already
    /// and stays untouched.
    pub reused_memory: bool,
}

/// A kernel in memory, ready to be entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoadedKernel {
    /// Physical address of the entry point.
    pub entry: u64,
    /// How it is entered.
    pub protocol: Protocol,
    /// Address of the structure handed over: zero page or PVH start info.
    pub params: u64,
}

impl LoadedKernel {
    /// Registers of the boot CPU.
    pub fn boot_cpu(&self) -> BootCpu {
        match self.protocol {
            Protocol::Linux64 => regs::long_mode_boot(self.entry, self.params),
            Protocol::Pvh => regs::pvh_boot(self.entry, self.params),
        }
    }
}

/// Checks that `kernel` can be booted with an initrd of `initrd_bytes` and `cmdline` in the memory of `layout`.
///
/// Reads headers only. `wanted` forces a protocol; `None` takes PVH where an ELF offers it.
///
/// # Errors
/// The first thing that is wrong, see [`BootError`].
pub fn inspect<K: Read + Seek>(
    kernel: &mut K,
    initrd_bytes: Option<u64>,
    cmdline: &str,
    layout: &MemoryLayout,
    wanted: Option<Protocol>,
) -> Result<BootPlan, BootError> {
    let image = read_image(kernel, wanted)?;
    let kernel_end = image.segments.iter().map(Segment::end).max().unwrap_or(0);
    if kernel_end > layout::LOW_RAM_END {
        return Err(BootError::KernelTooHigh(kernel_end));
    }
    if kernel_end > layout.low_ram_end() {
        return Err(BootError::KernelTooLarge {
            end: kernel_end,
            ram_end: layout.low_ram_end(),
            need_mib: kernel_end.div_ceil(1 << 20),
        });
    }
    let initrd = initrd_bytes.map(|bytes| initrd_range(bytes, kernel_end, &image, layout)).transpose()?;
    let cmdline = checked_cmdline(cmdline, image.cmdline_max)?;
    Ok(BootPlan {
        protocol: image.protocol,
        entry: image.entry,
        segments: image.segments,
        kernel_end,
        initrd,
        cmdline,
        header: image.header,
        layout: layout.clone(),
    })
}

/// Loads what `plan` describes into `mem`, which must have the plan's layout, and writes GDT, page tables, command line
/// and hand-over structure.
///
/// # Errors
/// A file that changed since [`inspect`], a read error, or memory of another layout.
pub fn place<M, K, I>(
    plan: &BootPlan,
    placement: Placement,
    mem: &M,
    kernel: &mut K,
    initrd: Option<&mut I>,
) -> Result<LoadedKernel, BootError>
where
    M: GuestMemory + ?Sized,
    K: ReadVolatile + Seek,
    I: ReadVolatile + Seek,
{
    for segment in &plan.segments {
        seek(kernel, segment.file_offset).map_err(BootError::ReadKernel)?;
        read_into(mem, segment.gpa, kernel, segment.file_bytes, "the kernel")?;
        // A bzImage's memory beyond the file is scratch space, which the kernel clears itself.
        if placement.reused_memory && plan.header.is_none() {
            zero(mem, segment.gpa + segment.file_bytes, segment.mem_bytes - segment.file_bytes)?;
        }
    }
    match (plan.initrd, initrd) {
        (Some(range), Some(file)) => {
            seek(file, 0).map_err(BootError::ReadInitrd)?;
            read_into(mem, range.start, file, range.len, "the initrd")?;
        }
        (None, None) => {}
        (planned, given) => {
            let with = |yes: bool| if yes { "with" } else { "without" };
            return Err(BootError::InitrdMismatch { planned: with(planned.is_some()), given: with(given.is_some()) });
        }
    }

    let e820 = plan.layout.e820(placement.ecam);
    let handover = Handover { initrd: plan.initrd, rsdp: placement.rsdp, e820: &e820 };
    let write = |what, bytes: &[u8], at: u64| {
        mem.write_slice(bytes, GuestAddress(at)).map_err(|source| BootError::Memory { what, source })
    };
    write("the command line", &plan.cmdline, layout::CMDLINE)?;
    let long_mode = plan.protocol == Protocol::Linux64;
    regs::write_gdt(mem, long_mode).map_err(|source| BootError::Memory { what: "the GDT", source })?;
    let params = if long_mode {
        regs::write_identity_map(mem).map_err(|source| BootError::Memory { what: "the page tables", source })?;
        write("the zero page", &params::zero_page(plan.header.as_ref(), &handover), layout::ZERO_PAGE)?;
        layout::ZERO_PAGE
    } else {
        write("the PVH start info", &params::pvh_page(&handover), layout::PVH_START_INFO)?;
        layout::PVH_START_INFO
    };
    Ok(LoadedKernel { entry: plan.entry, protocol: plan.protocol, params })
}

fn read_image<K: Read + Seek>(kernel: &mut K, wanted: Option<Protocol>) -> Result<Image, BootError> {
    let file_len = kernel.seek(SeekFrom::End(0)).map_err(BootError::ReadKernel)?;
    let mut start = [0u8; 8];
    let start_len = start.len().min(usize::try_from(file_len).unwrap_or(usize::MAX));
    read_at(kernel, 0, &mut start[..start_len])?;
    if elf::matches(&start) {
        return elf::inspect(kernel, file_len, wanted);
    }
    if bzimage::matches(kernel, file_len)? {
        if wanted == Some(Protocol::Pvh) {
            return Err(BootError::NoSuchEntry(Protocol::Pvh));
        }
        return bzimage::inspect(kernel, file_len);
    }
    let hint = match start {
        [0x1f, 0x8b, ..] => ": it is gzip data, decompress it first",
        [0x28, 0xb5, 0x2f, 0xfd, ..] => ": it is zstd data, decompress it first",
        [0xfd, b'7', b'z', b'X', b'Z', ..] => ": it is xz data, decompress it first",
        [b'0', b'7', b'0', b'7', b'0', ..] => ": it is a cpio archive, perhaps the initrd",
        _ if file_len == 0 => ": it is empty",
        _ if file_len < 1024 => ": it is too short to be a kernel",
        _ => "",
    };
    Err(BootError::UnknownFormat { hint })
}

/// The highest page-aligned place the kernel accepts: kernels decompress and allocate from the bottom. Above 4 GiB only
/// when the kernel says it can and nothing below fits.
fn initrd_range(bytes: u64, kernel_end: u64, image: &Image, layout: &MemoryLayout) -> Result<AddressRange, BootError> {
    if bytes == 0 {
        return Err(BootError::InitrdEmpty);
    }
    let limit = layout.low_ram_end().min(image.initrd_addr_max.saturating_add(1));
    let floor = kernel_end.next_multiple_of(PAGE_BYTES);
    let fit = |floor: u64, limit: u64| {
        let start = limit.checked_sub(bytes)? & !(PAGE_BYTES - 1);
        (start >= floor).then_some(AddressRange { start, len: bytes })
    };
    let above_4g = || {
        layout.high_ram().filter(|_| image.initrd_above_4g).and_then(|high| fit(HIGH_RAM_START, high.gpa + high.len))
    };
    fit(floor, limit).or_else(above_4g).ok_or(BootError::InitrdTooLarge {
        len: bytes,
        room: limit.saturating_sub(floor),
        limit,
    })
}

fn checked_cmdline(cmdline: &str, kernel_max: usize) -> Result<Vec<u8>, BootError> {
    let max = kernel_max.min(layout::CMDLINE_MAX as usize - 1);
    if cmdline.len() > max {
        return Err(BootError::CmdlineTooLong { len: cmdline.len(), max });
    }
    if let Some(position) = cmdline.bytes().position(|byte| byte == 0) {
        return Err(BootError::CmdlineZeroByte(position));
    }
    let mut bytes = cmdline.as_bytes().to_vec();
    bytes.push(0);
    Ok(bytes)
}

fn seek<F: Seek>(file: &mut F, offset: u64) -> std::io::Result<()> {
    file.seek(SeekFrom::Start(offset)).map(|_| ())
}

fn read_at<K: Read + Seek>(kernel: &mut K, offset: u64, bytes: &mut [u8]) -> Result<(), BootError> {
    seek(kernel, offset).and_then(|()| kernel.read_exact(bytes)).map_err(BootError::ReadKernel)
}

/// Streams `bytes` from the file's position to `gpa`. Loops, as one read(2) returns at most 2 GiB and may return less.
fn read_into<M, F>(mem: &M, gpa: u64, file: &mut F, bytes: u64, what: &'static str) -> Result<(), BootError>
where
    M: GuestMemory + ?Sized,
    F: ReadVolatile,
{
    let mut done = 0;
    while done < bytes {
        let count = usize::try_from(bytes - done).unwrap_or(usize::MAX);
        let read = mem
            .read_volatile_from(GuestAddress(gpa + done), file, count)
            .map_err(|source| BootError::Memory { what, source })?;
        if read == 0 {
            return Err(BootError::Shrunk { what, missing: bytes - done });
        }
        done += read as u64;
    }
    Ok(())
}

fn zero<M: GuestMemory + ?Sized>(mem: &M, gpa: u64, bytes: u64) -> Result<(), BootError> {
    // They are bytes of the program: a longer run of them is in memory as long as the process.
    static ZEROS: [u8; 4 << 10] = [0; 4 << 10];
    let mut done = 0;
    while done < bytes {
        let count = (bytes - done).min(ZEROS.len() as u64);
        mem.write_slice(&ZEROS[..count as usize], GuestAddress(gpa + done))
            .map_err(|source| BootError::Memory { what: "zeroed memory", source })?;
        done += count;
    }
    Ok(())
}
