//! Guest memory: segments, their maps into guest space, and the process's view of both.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;

use devices::GuestRam;
use devices_host::sys::{Errno, MapRequest, SysResult};
use kvm_bindings::{KVM_MEM_READONLY, kvm_userspace_memory_region};
use kvm_ioctls::VmFd;
use vm_memory::{GuestAddress, GuestRegionMmap, MmapRegion};
use zvmm::hypervisor::bhyve::abi::{
    HPET_BASE, IOAPIC_BASE, LAPIC_BASE, VM_DEVMEM_START, VM_MAX_MEMMAPS_observed, VM_MAX_MEMSEGS, VM_MEMMAP_F_WIRED,
    VM_PROT_EXECUTE, VM_PROT_READ, VM_PROT_WRITE, vm_devmem_offset, vm_memmap, vm_memseg, vm_munmap,
};

use super::rules;
use crate::node::Call;
use crate::sys::translate;

const PAGE: u64 = 4096;

/// What the kernel emulates at fixed guest addresses: start and length.
const KERNEL_REGIONS: [(u64, u64); 3] = [(LAPIC_BASE, PAGE), (IOAPIC_BASE, PAGE), (HPET_BASE, 1024)];

struct Segment {
    len: u64,
    name: [u8; 128],
    file: OwnedFd,
    /// The whole segment in this process: where KVM finds it.
    host: NonNull<u8>,
    offset: u64,
}

// SAFETY: the address is that of a mapping the segment owns; nothing here dereferences it.
unsafe impl Send for Segment {}
// SAFETY: as above.
unsafe impl Sync for Segment {}

impl Segment {
    fn new(len: u64, name: [u8; 128], offset: u64) -> SysResult<Self> {
        // SAFETY: the name is a C string.
        let file = unsafe { libc::memfd_create(c"guest".as_ptr(), libc::MFD_CLOEXEC) };
        if file < 0 {
            return Err(Errno::ENOMEM);
        }
        // SAFETY: just opened, and nobody else's.
        let file = unsafe { OwnedFd::from_raw_fd(file) };
        // SAFETY: no pointers.
        if unsafe { libc::ftruncate(file.as_raw_fd(), len.cast_signed()) } != 0 {
            return Err(Errno::ENOMEM);
        }
        let host = map_file(None, &file, 0, len as usize, libc::PROT_READ | libc::PROT_WRITE)?;
        Ok(Self { len, name, file, host, offset })
    }
}

impl Drop for Segment {
    fn drop(&mut self) {
        // SAFETY: the segment's own mapping; its slots in KVM are gone, or the VM is with it.
        unsafe { libc::munmap(self.host.as_ptr().cast(), self.len as usize) };
    }
}

fn map_file(at: Option<usize>, file: &OwnedFd, offset: u64, len: usize, prot: libc::c_int) -> SysResult<NonNull<u8>> {
    let flags = libc::MAP_SHARED | libc::MAP_NORESERVE | if at.is_some() { libc::MAP_FIXED } else { 0 };
    let place = at.unwrap_or(0) as *mut libc::c_void;
    // SAFETY: a fixed place lies inside a reservation of the caller.
    let start = unsafe { libc::mmap(place, len, prot, flags, file.as_raw_fd(), offset.cast_signed()) };
    if start == libc::MAP_FAILED {
        return Err(translate(&std::io::Error::last_os_error()));
    }
    NonNull::new(start.cast()).ok_or(Errno::ENOMEM)
}

#[derive(Clone, Copy)]
struct Map {
    gpa: u64,
    segid: i32,
    segoff: u64,
    len: u64,
    prot: i32,
    flags: i32,
    slot: u32,
}

impl Map {
    fn end(&self) -> u64 {
        self.gpa + self.len
    }
}

/// The memory of one VM.
#[derive(Default)]
pub struct Memory {
    segments: [Option<Segment>; VM_MAX_MEMSEGS as usize],
    /// Sorted by guest address.
    maps: Vec<Map>,
    next_offset: u64,
}

impl Memory {
    fn segment(&self, segid: i32) -> Option<&Segment> {
        self.segments.get(usize::try_from(segid).ok()?)?.as_ref()
    }

    /// Bytes of all segments.
    pub fn bytes(&self) -> u64 {
        self.segments.iter().flatten().map(|segment| segment.len).sum()
    }

    /// VM_ALLOC_MEMSEG.
    pub fn alloc(&mut self, call: &Call<'_>, arg: &vm_memseg, free_bytes: u64) -> SysResult<i32> {
        let len = arg.len as u64;
        let Some(place) = usize::try_from(arg.segid).ok().filter(|&id| id < self.segments.len()) else {
            return Err(call.refuse(&rules::SEG_ID, Errno::EINVAL, format!("segment {}", arg.segid)));
        };
        if len == 0 || !len.is_multiple_of(PAGE) {
            return Err(call.refuse(&rules::SEG_LENGTH, Errno::EINVAL, format!("{len:#x} bytes")));
        }
        if !arg.name.contains(&0) {
            return Err(call.refuse(&rules::VM_NAME, Errno::EINVAL, "a segment's name without its NUL"));
        }
        if let Some(segment) = &self.segments[place] {
            if segment.len == len {
                return Err(Errno::EEXIST);
            }
            let detail = format!("segment {place}: {len:#x} bytes in place of {:#x}", segment.len);
            return Err(call.refuse(&rules::SEG_SAME, Errno::EINVAL, detail));
        }
        if len > free_bytes {
            return Err(Errno::ENOMEM);
        }
        let offset = VM_DEVMEM_START + self.next_offset;
        self.segments[place] = Some(Segment::new(len, arg.name, offset)?);
        self.next_offset += len;
        Ok(0)
    }

    /// VM_GET_MEMSEG.
    pub fn get(&self, call: &Call<'_>, arg: &mut vm_memseg) -> SysResult<i32> {
        if !(0..VM_MAX_MEMSEGS).contains(&arg.segid) {
            return Err(call.refuse(&rules::SEG_ID, Errno::EINVAL, format!("segment {}", arg.segid)));
        }
        let segment = self.segment(arg.segid);
        arg.len = segment.map_or(0, |segment| segment.len as usize);
        arg.name = segment.map_or([0; 128], |segment| segment.name);
        Ok(0)
    }

    /// VM_DEVMEM_GETOFFSET.
    pub fn offset(&self, arg: &mut vm_devmem_offset) -> SysResult<i32> {
        arg.offset = self.segment(arg.segid).ok_or(Errno::ENOENT)?.offset.cast_signed();
        Ok(0)
    }

    /// VM_MMAP_MEMSEG.
    pub fn map(&mut self, call: &Call<'_>, vm: &VmFd, arg: &vm_memmap) -> SysResult<i32> {
        let (gpa, len) = (arg.gpa, arg.len as u64);
        let what = format!("segment {} at {gpa:#x}, {len:#x} bytes from {:#x}", arg.segid, arg.segoff);
        if len == 0 || [gpa, len, arg.segoff.cast_unsigned()].iter().any(|value| !value.is_multiple_of(PAGE)) {
            return Err(call.refuse(&rules::MAP_PAGES, Errno::EINVAL, what));
        }
        if arg.prot == 0 || arg.prot & !(VM_PROT_READ | VM_PROT_WRITE | VM_PROT_EXECUTE) != 0 {
            return Err(call.refuse(&rules::MAP_PROT, Errno::EINVAL, format!("{:#x} for {what}", arg.prot)));
        }
        if arg.flags & !VM_MEMMAP_F_WIRED != 0 {
            return Err(call.refuse(&rules::MAP_FLAGS, Errno::EINVAL, format!("{:#x} for {what}", arg.flags)));
        }
        let inside = |segment: &Segment| {
            u64::try_from(arg.segoff).ok()?.checked_add(len).filter(|&end| end <= segment.len)?;
            gpa.checked_add(len)
        };
        let (Some(segment), Some(end)) = (self.segment(arg.segid), self.segment(arg.segid).and_then(inside)) else {
            return Err(call.refuse(&rules::MAP_INSIDE, Errno::EINVAL, what));
        };
        if self.maps.len() >= VM_MAX_MEMMAPS_observed {
            return Err(call.refuse(&rules::MAP_COUNT, Errno::ENOSPC, what));
        }
        if self.maps.iter().any(|map| gpa < map.end() && map.gpa < end) {
            return Err(call.refuse(&rules::MAP_OVERLAP, Errno::EFAULT, what));
        }
        if KERNEL_REGIONS.iter().any(|&(start, bytes)| gpa < start + bytes && start < end) {
            call.note(&rules::KERNEL_REGION, what);
        }
        let slot = (0..).find(|slot| self.maps.iter().all(|map| map.slot != *slot)).unwrap_or_default();
        let segoff = arg.segoff.cast_unsigned();
        let region = kvm_userspace_memory_region {
            slot,
            flags: if arg.prot & VM_PROT_WRITE == 0 { KVM_MEM_READONLY } else { 0 },
            guest_phys_addr: gpa,
            memory_size: len,
            userspace_addr: segment.host.as_ptr() as u64 + segoff,
        };
        // SAFETY: the segment's mapping lives until the slot or the VM is gone.
        unsafe { vm.set_user_memory_region(region) }.map_err(|_| Errno::EFAULT)?;
        self.maps.push(Map { gpa, segid: arg.segid, segoff, len, prot: arg.prot, flags: arg.flags, slot });
        self.maps.sort_unstable_by_key(|map| map.gpa);
        Ok(0)
    }

    /// VM_MUNMAP_MEMSEG.
    pub fn unmap(&mut self, call: &Call<'_>, vm: &VmFd, arg: &vm_munmap) -> SysResult<i32> {
        let exact = |map: &Map| map.gpa == arg.gpa && map.len == arg.len as u64;
        let Some(at) = self.maps.iter().position(exact) else {
            let detail = format!("{:#x} bytes at {:#x}", arg.len, arg.gpa);
            return Err(call.refuse(&rules::UNMAP_EXACT, Errno::EINVAL, detail));
        };
        self.take_away(vm, at);
        Ok(0)
    }

    fn take_away(&mut self, vm: &VmFd, at: usize) {
        let map = self.maps.remove(at);
        let region = kvm_userspace_memory_region { slot: map.slot, guest_phys_addr: map.gpa, ..Default::default() };
        // SAFETY: an empty slot refers to no memory.
        let _ = unsafe { vm.set_user_memory_region(region) };
    }

    /// What VM_REINIT does: device memory loses its place in the guest.
    pub fn unmap_devices(&mut self, vm: &VmFd) {
        while let Some(at) =
            self.maps.iter().position(|map| self.segment(map.segid).is_some_and(|segment| segment.name[0] != 0))
        {
            self.take_away(vm, at);
        }
    }

    /// VM_MMAP_GETNEXT.
    pub fn next(&self, arg: &mut vm_memmap) -> SysResult<i32> {
        let map = self.maps.iter().find(|map| map.gpa >= arg.gpa).ok_or(Errno::ENOENT)?;
        *arg = vm_memmap {
            gpa: map.gpa,
            segid: map.segid,
            _pad0: [0; 4],
            segoff: map.segoff.cast_signed(),
            len: map.len as usize,
            prot: map.prot,
            flags: map.flags,
        };
        Ok(0)
    }

    /// Whether there is memory at an address, and if so, what the guest may do with it.
    pub fn protection(&self, gpa: u64) -> Option<i32> {
        self.maps.iter().find(|map| (map.gpa..map.end()).contains(&gpa)).map(|map| map.prot)
    }

    /// The guest's system memory, for drivers that read and write it.
    ///
    /// # Errors
    /// ENOMEM where there is none.
    pub fn guest(&self) -> SysResult<GuestRam> {
        let mut regions = Vec::new();
        for map in &self.maps {
            let Some(segment) = self.segment(map.segid).filter(|segment| segment.name[0] == 0) else { continue };
            let start = segment.host.as_ptr().wrapping_add(map.segoff as usize);
            let prot = libc::PROT_READ | libc::PROT_WRITE;
            // SAFETY: a part of the segment's own mapping, as `map` has checked; segments stay until the VM ends, and who
            // gets this holds the VM.
            let region = unsafe { MmapRegion::build_raw(start, map.len as usize, prot, libc::MAP_SHARED) };
            let region = region.map_err(|_| Errno::ENOMEM)?;
            let region = GuestRegionMmap::new(region, GuestAddress(map.gpa)).ok_or(Errno::ENOMEM)?;
            regions.push(Arc::new(region));
        }
        GuestRam::from_arc_regions(regions).map_err(|_| Errno::ENOMEM)
    }

    /// mmap(2) of the VM's descriptor.
    pub fn view(&self, call: &Call<'_>, request: MapRequest) -> SysResult<NonNull<u8>> {
        if request.offset >= VM_DEVMEM_START {
            self.view_segment(call, request)
        } else {
            self.view_guest(call, request)
        }
    }

    fn view_segment(&self, call: &Call<'_>, request: MapRequest) -> SysResult<NonNull<u8>> {
        let len = request.len_bytes as u64;
        let inside = |segment: &&Segment| {
            request.offset >= segment.offset && request.offset + len <= segment.offset + segment.len
        };
        let Some(segment) = self.segments.iter().flatten().find(inside) else {
            let detail = format!("{len:#x} bytes at {:#x}", request.offset);
            return Err(call.refuse(&rules::MMAP_DEVMEM, Errno::ENODEV, detail));
        };
        let prot = libc::PROT_READ | if request.write { libc::PROT_WRITE } else { 0 };
        map_file(None, &segment.file, request.offset - segment.offset, request.len_bytes, prot)
    }

    fn view_guest(&self, call: &Call<'_>, request: MapRequest) -> SysResult<NonNull<u8>> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new reservation at a place of the system's choice.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), request.len_bytes, libc::PROT_NONE, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            return Err(Errno::ENOMEM);
        }
        let end = request.offset + request.len_bytes as u64;
        let mut covered = request.offset;
        for map in self.maps.iter().filter(|map| map.gpa < end && map.end() > request.offset) {
            let (from, to) = (map.gpa.max(request.offset), map.end().min(end));
            if from == covered {
                covered = to;
            }
            let Some(segment) = self.segment(map.segid) else { continue };
            let may_write = map.prot & VM_PROT_WRITE != 0;
            if request.write && !may_write {
                call.note(&rules::MMAP_WRITE, format!("{from:#x} to {to:#x}"));
            }
            let prot = libc::PROT_READ | if request.write && may_write { libc::PROT_WRITE } else { 0 };
            let place = start as usize + (from - request.offset) as usize;
            let offset = map.segoff + (from - map.gpa);
            map_file(Some(place), &segment.file, offset, (to - from) as usize, prot)?;
        }
        if covered < end {
            call.note(&rules::MMAP_HOLE, format!("nothing at {covered:#x} of {:#x} to {end:#x}", request.offset));
        }
        NonNull::new(start.cast()).ok_or(Errno::ENOMEM)
    }
}
