//! Memory of the process as guest memory.
//!
//! The driver neither locks nor faults pages: at a guest's first touch it takes whatever page frame the process' address
//! has at that moment, for good, and no frame is a frame of somebody else's. So every page is locked and touched before
//! its slot is set, and never given back before the VM is gone.

use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arch::layout;
use devices::GuestRam;
use devices_host::ram::{Pages, RamOptions};
use devices_host::sys::{Errno, Sys};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::abi::{KVM_MEMORY_SLOTS, kvm_userspace_memory_region};
use super::device::Device;
use super::{HypervisorError, call};

const PAGE_BYTES: usize = 4096;

/// How much is locked with one call at first: a refused call is repeated with half as much, so that what the host can
/// spare now is taken now. One call for everything would fail without ever pressing the ARC to give memory back.
const FIRST_PIECE_BYTES: usize = 128 << 20;

/// How long to wait for memory that the host has not given back yet.
#[derive(Clone, Copy)]
pub struct Patience {
    /// Between two attempts for the smallest piece.
    pub pause: Duration,
    /// Attempts without any success before giving up.
    pub attempts: u32,
}

/// Half a minute: the ARC gives memory back within seconds, a zone's limit never.
pub const PATIENCE: Patience = Patience { pause: Duration::from_millis(10), attempts: 3000 };

/// Allocates, locks and touches guest RAM.
///
/// # Errors
/// Options that the driver's 4 KiB private pages cannot give, and a host without that much memory.
pub fn allocate(
    sys: &Arc<dyn Sys>,
    ranges: &[(u64, u64)],
    options: &RamOptions,
    patience: Patience,
) -> Result<GuestRam, HypervisorError> {
    let refuse = |what| Err(HypervisorError::Memory(format!("{what} is not possible with illumos KVM")));
    if options.shared {
        return refuse("shared guest memory");
    }
    if matches!(options.pages, Pages::Huge2M | Pages::Huge1G) {
        return refuse("a pool of huge pages");
    }
    if options.numa_node.is_some() {
        return refuse("binding guest memory to a NUMA node");
    }
    // The driver maps 4 KiB pages whatever they lie in.
    let private = RamOptions { pages: Pages::Small, dump: options.dump, ..RamOptions::default() };
    let ram =
        devices_host::ram::allocate(ranges, &private).map_err(|error| HypervisorError::Memory(error.to_string()))?;
    for region in ram.iter() {
        let start = NonNull::new(region.as_ptr())
            .ok_or_else(|| HypervisorError::Memory("guest memory at address 0".to_owned()))?;
        // SAFETY: one live mapping that nobody else knows yet.
        unsafe { make_resident(&**sys, start, region.size(), patience) }
            .map_err(|(locked, error)| lock_error(locked, region.size(), error))?;
    }
    Ok(ram)
}

/// Locks and touches a range; on failure says how many bytes were locked until then.
///
/// # Safety
/// The range is a live private mapping that nobody else uses.
unsafe fn make_resident(
    sys: &dyn Sys,
    start: NonNull<u8>,
    len_bytes: usize,
    patience: Patience,
) -> Result<(), (usize, Errno)> {
    let (mut locked, mut piece, mut refused, mut told) = (0, FIRST_PIECE_BYTES, 0, false);
    while locked < len_bytes {
        piece = piece.min(len_bytes - locked);
        // SAFETY: the piece lies inside the range.
        match unsafe { sys.mlock(start.add(locked), piece) } {
            Ok(()) => {
                locked += piece;
                refused = 0;
                piece = piece.saturating_mul(2).min(FIRST_PIECE_BYTES);
            }
            Err(Errno::EAGAIN) if piece > PAGE_BYTES => piece = (piece / 2).next_multiple_of(PAGE_BYTES),
            Err(Errno::EAGAIN) if refused < patience.attempts => {
                if !std::mem::replace(&mut told, true) {
                    let (locked, wanted) = (locked >> 20, len_bytes >> 20);
                    log::warn!("locked {locked} of {wanted} MiB of guest memory so far; waiting for the rest");
                }
                refused += 1;
                std::thread::sleep(patience.pause);
            }
            Err(error) => return Err((locked, error)),
        }
    }
    for offset in (0..len_bytes).step_by(PAGE_BYTES) {
        // SAFETY: inside the range; the zero written is the zero that is there.
        unsafe { start.add(offset).write_volatile(0) };
    }
    Ok(())
}

fn lock_error(locked: usize, wanted: usize, error: Errno) -> HypervisorError {
    let hint = match error {
        Errno::EAGAIN => "the host has no more free memory, or zone.max-locked-memory is too small",
        Errno::EPERM => "the zone needs the privilege proc_lock_memory",
        _ => "it must stay in memory for as long as the guest runs",
    };
    let (locked, wanted) = (locked >> 20, wanted >> 20);
    HypervisorError::Memory(format!("locked {locked} of {wanted} MiB of guest memory, then: {error}: {hint}"))
}

/// The VM's descriptor, with the memory behind its slots: the memory goes when nobody has the descriptor any more. What
/// else holds a descriptor of the VM (a vCPU) holds this, too.
pub struct VmFd {
    // Closed first: the VM must be gone before its memory is.
    device: Device,
    patience: Patience,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    used: usize,
    ram: Vec<GuestRam>,
    roms: Vec<Rom>,
}

struct Rom {
    gpa: u64,
    image: Box<[u8]>,
    memory: GuestRam,
}

impl std::ops::Deref for VmFd {
    type Target = Device;

    fn deref(&self) -> &Device {
        &self.device
    }
}

impl VmFd {
    /// A new VM on a descriptor of its own: a second KVM_CREATE_VM on one descriptor would lose the first VM.
    pub fn create(sys: &Arc<dyn Sys>, patience: Patience) -> Result<Self, HypervisorError> {
        let device = Device::open(sys).map_err(|error| call("open of /dev/kvm", error))?;
        device.create_vm().map_err(|error| call("KVM_CREATE_VM", error))?;
        Ok(Self { device, patience, inner: Mutex::default() })
    }

    /// Allocates guest RAM and puts every range into a slot of its own.
    pub fn add_ram(&self, ranges: &[(u64, u64)], options: &RamOptions) -> Result<GuestRam, HypervisorError> {
        let ram = allocate(self.sys(), ranges, options, self.patience)?;
        let mut inner = self.lock();
        inner.ram.push(ram.clone());
        self.set_slots(&mut inner, &ram)?;
        Ok(ram)
    }

    /// Puts a copy of `image` at `gpa`. The driver has no read-only memory, so it is RAM that
    /// [`restore_roms`](Self::restore_roms) restores.
    pub fn add_rom(&self, gpa: u64, image: &[u8]) -> Result<(), HypervisorError> {
        let memory = allocate(self.sys(), &[(gpa, image.len() as u64)], &RamOptions::default(), self.patience)?;
        let rom = Rom { gpa, image: image.into(), memory: memory.clone() };
        rom.restore()?;
        let mut inner = self.lock();
        inner.roms.push(rom);
        self.set_slots(&mut inner, &memory)
    }

    /// Undoes what the guest wrote to ROMs. No vCPU runs.
    pub fn restore_roms(&self) -> Result<(), HypervisorError> {
        self.lock().roms.iter().try_for_each(Rom::restore)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_slots(&self, inner: &mut Inner, memory: &GuestRam) -> Result<(), HypervisorError> {
        for region in memory.iter() {
            let (gpa, len_bytes) = (region.start_addr().raw_value(), region.len());
            check_private(gpa, len_bytes)?;
            if inner.used == KVM_MEMORY_SLOTS {
                return Err(HypervisorError::Memory(format!("more than {KVM_MEMORY_SLOTS} ranges of memory and ROM")));
            }
            let slot = kvm_userspace_memory_region {
                slot: inner.used as u32,
                flags: 0,
                guest_phys_addr: gpa,
                memory_size: len_bytes,
                userspace_addr: region.as_ptr() as u64,
            };
            // SAFETY: locked and resident since `allocate`, and kept by `inner` until the descriptor is closed.
            unsafe { self.device.set_user_memory_region(&slot) }
                .map_err(|error| call("KVM_SET_USER_MEMORY_REGION", error))?;
            inner.used += 1;
        }
        Ok(())
    }
}

impl Rom {
    fn restore(&self) -> Result<(), HypervisorError> {
        let written = self.memory.write_slice(&self.image, GuestAddress(self.gpa));
        written.map_err(|error| HypervisorError::Memory(format!("ROM: {error}")))
    }
}

/// Refuses memory over the pages the driver itself maps (task state segment, identity map, APIC access page): it checks
/// only user slots against each other, and the guest would run on with one of the two.
fn check_private(gpa: u64, len_bytes: u64) -> Result<(), HypervisorError> {
    let private = [
        (layout::KVM_IDENTITY_MAP, layout::KVM_IDENTITY_MAP + layout::PAGE_BYTES),
        (layout::KVM_TSS, layout::KVM_TSS + 3 * layout::PAGE_BYTES),
        (layout::LAPIC, layout::LAPIC + layout::PAGE_BYTES),
    ];
    let end = gpa.saturating_add(len_bytes);
    match private.iter().find(|(start, private_end)| gpa < *private_end && *start < end) {
        None => Ok(()),
        Some((start, _)) => Err(HypervisorError::Memory(format!(
            "memory at {gpa:#x}+{len_bytes:#x} lies over {start:#x}, which illumos KVM takes for itself"
        ))),
    }
}
