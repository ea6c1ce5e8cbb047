//! Guest memory: the kernel's, mapped into the process through the VM's descriptor.
//!
//! The kernel refuses to unmap or protect a part of such a mapping, loads it page by page on first touch, and leaves it
//! out of core dumps.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use devices::GuestRam;
use devices_host::ram::{Pages, RamError, RamOptions, physical_memory_bytes};
use devices_host::sys::{Errno, Mapping};
use vm_memory::{GuestAddress, GuestRegionMmap, MmapRegion};

use super::abi;
use super::error::{CallError, CallResult};
use super::vmfd::VmFd;
use crate::hypervisor::HypervisorError;

const PAGE_BYTES: u64 = 4096;

/// Segments of RAM, low and high; those above are ROMs.
const MAX_RAM_SEGMENTS: usize = 2;

const RAM_PROTECTION: i32 = abi::VM_PROT_READ | abi::VM_PROT_WRITE | abi::VM_PROT_EXECUTE;
const ROM_PROTECTION: i32 = abi::VM_PROT_READ | abi::VM_PROT_EXECUTE;

/// Ranges of guest RAM as segments: number, guest address, length in bytes.
fn segments(ranges: &[(u64, u64)]) -> impl Iterator<Item = (i32, u64, u64)> + '_ {
    (0..).zip(ranges).map(|(segid, &(gpa, len_bytes))| (segid, gpa, len_bytes))
}

fn wants_pages_now(options: &RamOptions) -> bool {
    options.lock || options.prealloc_threads > 0
}

/// WIRED has the kernel fill the guest's page tables at once; else every page costs an exit on its first touch.
fn map_flags(options: &RamOptions) -> i32 {
    if wants_pages_now(options) { abi::VM_MEMMAP_F_WIRED } else { 0 }
}

/// Refuses what the kernel's memory cannot be.
///
/// # Errors
/// One line that names the option.
pub fn check(ranges: &[(u64, u64)], options: &RamOptions) -> Result<(), HypervisorError> {
    let cannot = |what: &str| Err(HypervisorError::Memory(format!("{what}: on bhyve guest memory is the kernel's")));
    if options.shared {
        return cannot("shared memory is not to be had");
    }
    if matches!(options.pages, Pages::Huge2M | Pages::Huge1G) {
        return cannot("huge pages cannot be chosen");
    }
    if options.numa_node.is_some() {
        return cannot("the NUMA node cannot be chosen");
    }
    if ranges.is_empty() || ranges.iter().any(|&(_, len_bytes)| len_bytes == 0) {
        return Err(HypervisorError::Memory(RamError::Empty.to_string()));
    }
    let unaligned = |&&(gpa, len_bytes): &&(u64, u64)| !(gpa | len_bytes).is_multiple_of(PAGE_BYTES);
    if ranges.len() > MAX_RAM_SEGMENTS || ranges.iter().find(unaligned).is_some() {
        return Err(HypervisorError::Memory("guest memory must be one or two ranges of whole pages".to_owned()));
    }
    let (wanted_bytes, host_bytes) = (ranges.iter().map(|&(_, len)| len).sum(), physical_memory_bytes());
    if wanted_bytes > host_bytes {
        let error = RamError::MoreThanHost { wanted_bytes, host_bytes };
        return Err(HypervisorError::Memory(error.to_string()));
    }
    Ok(())
}

/// How long to wait for memory that the host has not given back yet.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// Between the first two attempts; twice as long each time, up to `longest_pause`.
    pub first_pause: Duration,
    /// Between two attempts at most.
    pub longest_pause: Duration,
    /// Attempts for one segment.
    pub attempts: u32,
}

/// Two minutes: less than whoever makes a zone waits for its guest.
pub const PATIENCE: Patience =
    Patience { first_pause: Duration::from_millis(10), longest_pause: Duration::from_secs(1), attempts: 125 };

/// Gives a new VM its RAM. The host's file system cache is asked to make room first, and given time for it; the reservoir has
/// what it has.
///
/// # Errors
/// What the kernel says.
pub fn allocate(
    fd: &VmFd,
    ranges: &[(u64, u64)],
    options: &RamOptions,
    reservoir: bool,
    patience: Patience,
) -> Result<(), HypervisorError> {
    if !reservoir {
        let bytes = ranges.iter().map(|&(_, len_bytes)| len_bytes).sum();
        if let Err(error) = fd.make_room(bytes) {
            log::debug!("bhyve: the host is not asked to make room for the guest: {error}");
        }
    }
    let patience = if reservoir { Patience { attempts: 1, ..patience } } else { patience };
    for (segid, gpa, len_bytes) in segments(ranges) {
        wait_for_room(patience, len_bytes, || fd.alloc_segment(segid, len_bytes, ""))
            .map_err(|error| no_memory(error, len_bytes, reservoir))?;
        fd.map_segment(gpa, segid, len_bytes, RAM_PROTECTION, map_flags(options))?;
    }
    Ok(())
}

fn wait_for_room(patience: Patience, len_bytes: u64, mut call: impl FnMut() -> CallResult<()>) -> CallResult<()> {
    let (mut pause, mut refused) = (patience.first_pause, 0);
    loop {
        match call() {
            Err(error) if error.errno == Errno::ENOMEM && refused + 1 < patience.attempts => {
                if refused == 0 {
                    log::warn!("the host has no {} MiB for the guest yet; waiting for them", len_bytes >> 20);
                }
                refused += 1;
                std::thread::sleep(pause);
                pause = pause.saturating_mul(2).min(patience.longest_pause);
            }
            other => return other,
        }
    }
}

fn no_memory(error: CallError, len_bytes: u64, reservoir: bool) -> HypervisorError {
    let (mib, place) = (len_bytes >> 20, if reservoir { "the reservoir" } else { "the host" });
    match error.errno {
        Errno::ENOMEM => HypervisorError::Memory(format!("{place} has no {mib} MiB left for the guest")),
        _ => error.into(),
    }
}

/// Whether a VM that was there before has exactly the RAM that is wanted; its ROMs do not matter, since they are not
/// mapped after a reset.
///
/// # Errors
/// What the kernel says.
pub fn is_as_wanted(fd: &VmFd, ranges: &[(u64, u64)], options: &RamOptions) -> CallResult<bool> {
    for segid in 0..abi::VM_MAX_MEMSEGS {
        let wanted = usize::try_from(segid).ok().and_then(|index| ranges.get(index)).map(|&(_, len)| (len, true));
        let is_system = fd.segment(segid)?;
        let rom = is_system.is_none_or(|(_, system)| !system) && segid as usize >= MAX_RAM_SEGMENTS;
        if is_system != wanted && !rom {
            return Ok(false);
        }
    }
    let mut next = 0;
    for (segid, gpa, len_bytes) in segments(ranges) {
        let Some(map) = fd.next_map(next)? else { return Ok(false) };
        let flags = map.flags & abi::VM_MEMMAP_F_WIRED;
        let found = (map.gpa, map.segid, map.segoff, map.len as u64, map.prot, flags);
        if found != (gpa, segid, 0, len_bytes, RAM_PROTECTION, map_flags(options)) {
            return Ok(false);
        }
        next = gpa.saturating_add(1);
    }
    Ok(fd.next_map(next)?.is_none())
}

/// A VM's RAM as the process sees it.
pub struct Ram {
    guest: Option<GuestRam>,
    mapped: Vec<(Arc<GuestRegionMmap<()>>, Mapping)>,
}

impl Ram {
    /// Maps the RAM of a VM; takes every page now where the options say so.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn map(fd: &VmFd, ranges: &[(u64, u64)], options: &RamOptions) -> Result<Self, HypervisorError> {
        let odd = |error: &dyn std::fmt::Display| HypervisorError::Memory(error.to_string());
        let mut mapped = Vec::with_capacity(ranges.len());
        for (_, gpa, len_bytes) in segments(ranges) {
            let len = usize::try_from(len_bytes).map_err(|error| odd(&error))?;
            let mapping = fd.map(gpa, len)?;
            if wants_pages_now(options) {
                touch(&mapping);
            }
            let (start, prot) = (mapping.start().as_ptr(), libc::PROT_READ | libc::PROT_WRITE);
            // SAFETY: the mapping is that long, readable and writable, and `Drop` below keeps it mapped for as long as
            // anybody holds the region.
            let region =
                unsafe { MmapRegion::build_raw(start, len, prot, libc::MAP_SHARED) }.map_err(|error| odd(&error))?;
            let region = GuestRegionMmap::new(region, GuestAddress(gpa)).ok_or_else(|| odd(&RamError::Overlap))?;
            mapped.push((Arc::new(region), mapping));
        }
        let regions = mapped.iter().map(|(region, _)| region.clone()).collect();
        let guest = GuestRam::from_arc_regions(regions).map_err(|error| odd(&error))?;
        Ok(Self { guest: Some(guest), mapped })
    }

    /// The RAM.
    pub fn guest(&self) -> &GuestRam {
        self.guest.as_ref().unwrap_or_else(|| unreachable!("taken away by drop alone"))
    }
}

impl Drop for Ram {
    fn drop(&mut self) {
        self.guest = None;
        for (region, mapping) in self.mapped.drain(..) {
            // Clones of the guest's memory share the region, and they are safe to use: then it stays mapped.
            if Arc::into_inner(region).is_none() {
                log::error!("bhyve: guest memory is still in use when the VM goes, and stays mapped");
                std::mem::forget(mapping);
            }
        }
    }
}

/// Loads the process's own translation of every page: done later it would hold up everything that changes the process's
/// address space.
fn touch(mapping: &Mapping) {
    for offset in (0..mapping.len_bytes()).step_by(PAGE_BYTES as usize) {
        // SAFETY: inside the mapping, which is readable and writable and which nobody else uses yet: what is written is
        // what was there.
        unsafe {
            let byte = mapping.start().as_ptr().add(offset);
            byte.write_volatile(byte.read_volatile());
        }
    }
}

/// Read-only memory, by what has to be mapped again after every reset.
#[derive(Default)]
pub struct Roms(Mutex<Vec<Rom>>);

#[derive(Clone, Copy)]
struct Rom {
    segid: i32,
    gpa: u64,
    len_bytes: u64,
}

impl Roms {
    /// Puts a ROM with the contents of `image` at `gpa`.
    ///
    /// # Errors
    /// What the kernel says, or that there are too many ROMs.
    pub fn add(&self, fd: &VmFd, gpa: u64, image: &[u8]) -> Result<(), HypervisorError> {
        let len_bytes = image.len() as u64;
        if len_bytes == 0 || !(gpa | len_bytes).is_multiple_of(PAGE_BYTES) {
            return Err(HypervisorError::Memory(format!("a ROM of {len_bytes} bytes at {gpa:#x} is not whole pages")));
        }
        let mut roms = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let used: Vec<i32> = roms.iter().map(|rom| rom.segid).collect();
        let segid = Self::segment_for(fd, &used, len_bytes)?;
        let contents = fd.map(fd.segment_offset(segid)?, image.len())?;
        // SAFETY: the mapping is as long as the image and nobody else knows it.
        unsafe { contents.start().as_ptr().copy_from_nonoverlapping(image.as_ptr(), image.len()) };
        let rom = Rom { segid, gpa, len_bytes };
        rom.map(fd)?;
        roms.push(rom);
        Ok(())
    }

    /// A segment of device memory of this length: one that a VM taken over has left, or a new one.
    fn segment_for(fd: &VmFd, used: &[i32], len_bytes: u64) -> Result<i32, HypervisorError> {
        let mut free = None;
        for segid in (MAX_RAM_SEGMENTS as i32..abi::VM_MAX_MEMSEGS).filter(|segid| !used.contains(segid)) {
            match fd.segment(segid)? {
                Some((there, _)) if there == len_bytes => return Ok(segid),
                None if free.is_none() => free = Some(segid),
                _ => {}
            }
        }
        let segid = free.ok_or_else(|| HypervisorError::Memory("the VM has no segment left for a ROM".to_owned()))?;
        fd.alloc_segment(segid, len_bytes, if used.is_empty() { "bootrom" } else { "rom" })?;
        Ok(segid)
    }

    /// Maps all of them again.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn map_again(&self, fd: &VmFd) -> CallResult<()> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().try_for_each(|rom| rom.map(fd))
    }
}

impl Rom {
    fn map(&self, fd: &VmFd) -> CallResult<()> {
        fd.map_segment(self.gpa, self.segid, self.len_bytes, ROM_PROTECTION, 0)
    }
}
