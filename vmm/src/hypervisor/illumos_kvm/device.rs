//! The ioctls of `/dev/kvm` that are used, one typed call each. What is absent here is absent on purpose: see the
//! folder's description.

use std::sync::Arc;

use devices_host::sys::{DeviceNumber, Errno, Handle, IoctlArg, MapRequest, Mapping, OpenFlags, Sys, SysResult};

use super::abi::*;
use super::plain::{Plain, bytes_of, bytes_of_mut, from_bytes, zeroed};

/// Path of the device.
pub const PATH: &str = "/dev/kvm";

/// One open descriptor of the device. What it stands for depends on what was created or cloned on it.
pub struct Device(Handle);

/// A table of routes or CPUID entries as the driver takes it: header and entries in one piece. The words keep it aligned.
fn with_header(header: [u32; 2], entries: impl Iterator<Item = u8>) -> Vec<u64> {
    let bytes: Vec<u8> = header.into_iter().flat_map(u32::to_ne_bytes).chain(entries).collect();
    bytes
        .chunks(8)
        .map(|chunk| {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            u64::from_ne_bytes(word)
        })
        .collect()
}

fn words_as_bytes(words: &mut [u64]) -> &mut [u8] {
    // SAFETY: the bytes of the words; any of them make words.
    unsafe { std::slice::from_raw_parts_mut(words.as_mut_ptr().cast(), size_of_val(words)) }
}

impl Device {
    /// Opens the device: read and write and nothing else, since the driver refuses O_EXCL and O_NONBLOCK.
    pub fn open(sys: &Arc<dyn Sys>) -> SysResult<Self> {
        Handle::open(sys, PATH, OpenFlags::READ_WRITE).map(Self)
    }

    /// The system it belongs to.
    pub fn sys(&self) -> &Arc<dyn Sys> {
        self.0.sys()
    }

    fn none(&self, request: i32) -> SysResult<i32> {
        // SAFETY: the command takes no argument.
        unsafe { self.0.ioctl(request, IoctlArg::None) }
    }

    fn value(&self, request: i32, value: usize) -> SysResult<i32> {
        // SAFETY: the command takes a number.
        unsafe { self.0.ioctl(request, IoctlArg::Value(value)) }
    }

    /// Calls with a structure the driver may write to.
    ///
    /// # Safety
    /// `T` is what the driver copies for `request`, and pointers in it are good.
    unsafe fn exchange<T: Plain>(&self, request: i32, value: &mut T) -> SysResult<i32> {
        // SAFETY: the caller's promise.
        unsafe { self.0.ioctl(request, IoctlArg::Buffer(bytes_of_mut(value))) }
    }

    /// # Safety
    /// As for [`exchange`](Self::exchange).
    unsafe fn give<T: Plain>(&self, request: i32, value: &T) -> SysResult<()> {
        let mut copy = *value;
        // SAFETY: the caller's promise.
        unsafe { self.exchange(request, &mut copy) }.map(drop)
    }

    // ---- any descriptor ----

    pub fn api_version(&self) -> SysResult<i32> {
        self.none(KVM_GET_API_VERSION)
    }

    /// The value of a capability. The driver answers EINVAL for one it does not know, where Linux answers 0.
    pub fn check_extension(&self, cap: usize) -> SysResult<i32> {
        self.value(KVM_CHECK_EXTENSION, cap)
    }

    pub fn vcpu_mmap_size(&self) -> SysResult<i32> {
        self.none(KVM_GET_VCPU_MMAP_SIZE)
    }

    /// At most [`KVM_MAX_CPUID_ENTRIES`]: the driver has no more, and says E2BIG where they do not suffice.
    pub fn supported_cpuid(&self) -> SysResult<Vec<kvm_cpuid_entry2>> {
        let room = std::iter::repeat_n(0, KVM_MAX_CPUID_ENTRIES * size_of::<kvm_cpuid_entry2>());
        let mut table = with_header([KVM_MAX_CPUID_ENTRIES as u32, 0], room);
        let bytes = words_as_bytes(&mut table);
        // SAFETY: the buffer has the header and as many entries as the header says.
        unsafe { self.0.ioctl(KVM_GET_SUPPORTED_CPUID, IoctlArg::Buffer(bytes)) }?;
        let header: kvm_cpuid2 = from_bytes(bytes).ok_or(Errno::EFAULT)?;
        let entries = bytes[size_of::<kvm_cpuid2>()..].chunks_exact(size_of::<kvm_cpuid_entry2>());
        Ok(entries.take(header.nent as usize).filter_map(from_bytes).collect())
    }

    // ---- the VM ----

    /// Makes this descriptor the descriptor of a new VM. The result of the call is a number nobody needs, not a
    /// descriptor.
    pub fn create_vm(&self) -> SysResult<()> {
        self.none(KVM_CREATE_VM).map(drop)
    }

    /// Which minor this descriptor is: what others [clone](Self::clone_of) it by.
    pub fn number(&self) -> SysResult<DeviceNumber> {
        self.sys().device_number(self.0.raw())
    }

    /// A fresh descriptor attached to the VM of `vm`.
    pub fn clone_of(vm: &Self) -> SysResult<Self> {
        let fresh = Self::open(vm.sys())?;
        let number = usize::try_from(vm.number()?.0).map_err(|_| Errno::EOVERFLOW)?;
        fresh.value(KVM_CLONE, number)?;
        Ok(fresh)
    }

    /// # Safety
    /// The memory at `userspace_addr` is locked and resident, and stays mapped, locked and in place as long as any
    /// descriptor of the VM is open.
    pub unsafe fn set_user_memory_region(&self, region: &kvm_userspace_memory_region) -> SysResult<()> {
        // SAFETY: the caller's promise.
        unsafe { self.give(KVM_SET_USER_MEMORY_REGION, region) }
    }

    pub fn set_tss_addr(&self, gpa: u64) -> SysResult<()> {
        self.value(KVM_SET_TSS_ADDR, gpa as usize).map(drop)
    }

    pub fn set_identity_map_addr(&self, gpa: u64) -> SysResult<()> {
        let mut word = [gpa];
        // SAFETY: the command takes a pointer to 8 bytes.
        unsafe { self.0.ioctl(KVM_SET_IDENTITY_MAP_ADDR, IoctlArg::Buffer(words_as_bytes(&mut word))) }.map(drop)
    }

    pub fn create_irqchip(&self) -> SysResult<()> {
        self.none(KVM_CREATE_IRQCHIP).map(drop)
    }

    pub fn create_pit2(&self, config: &kvm_pit_config) -> SysResult<()> {
        // SAFETY: the command's structure.
        unsafe { self.give(KVM_CREATE_PIT2, config) }
    }

    /// After [`create_pit2`](Self::create_pit2): the driver does not look whether there is a PIT.
    pub fn set_pit2(&self, state: &kvm_pit_state2) -> SysResult<()> {
        // SAFETY: the command's structure.
        unsafe { self.give(KVM_SET_PIT2, state) }
    }

    pub fn set_irqchip(&self, chip: &kvm_irqchip) -> SysResult<()> {
        // SAFETY: the command's structure.
        unsafe { self.give(KVM_SET_IRQCHIP, chip) }
    }

    /// Replaces the routing table. The driver copies the entries before it checks their number, so the number is checked
    /// here.
    pub fn set_gsi_routing(&self, entries: &[kvm_irq_routing_entry]) -> SysResult<()> {
        if entries.is_empty() || entries.len() >= KVM_MAX_IRQ_ROUTES {
            return Err(Errno::EINVAL);
        }
        let mut table =
            with_header([entries.len() as u32, 0], entries.iter().flat_map(|entry| bytes_of(entry).iter().copied()));
        // SAFETY: the buffer has the header and as many entries as the header says.
        unsafe { self.0.ioctl(KVM_SET_GSI_ROUTING, IoctlArg::Buffer(words_as_bytes(&mut table))) }.map(drop)
    }

    pub fn irq_line(&self, gsi: u32, level: bool) -> SysResult<()> {
        let level = kvm_irq_level { u: kvm_irq_level_u { irq: gsi }, level: level.into() };
        // SAFETY: the command's structure.
        unsafe { self.give(KVM_IRQ_LINE, &level) }
    }

    // ---- a vCPU ----

    /// Makes this clone the descriptor of vCPU `id`. The driver looks the new vCPU up by `id` but files it under the
    /// next free number, so any other id than the next one would hand out somebody else's vCPU.
    pub fn create_vcpu(&self, id: u8) -> SysResult<i32> {
        self.value(KVM_CREATE_VCPU, id.into())
    }

    /// Maps what the driver shares of a vCPU: exactly this much, from the start.
    pub fn map_vcpu(&self) -> SysResult<Mapping> {
        Mapping::new(&self.0, MapRequest { len_bytes: KVM_VCPU_MMAP_BYTES, offset: 0, write: true })
    }

    pub fn run(&self) -> SysResult<()> {
        self.none(KVM_RUN).map(drop)
    }

    pub fn set_cpuid2(&self, entries: &[kvm_cpuid_entry2]) -> SysResult<()> {
        if entries.len() > KVM_MAX_CPUID_ENTRIES {
            return Err(Errno::E2BIG);
        }
        let mut table =
            with_header([entries.len() as u32, 0], entries.iter().flat_map(|entry| bytes_of(entry).iter().copied()));
        // SAFETY: the buffer has the header and as many entries as the header says.
        unsafe { self.0.ioctl(KVM_SET_CPUID2, IoctlArg::Buffer(words_as_bytes(&mut table))) }.map(drop)
    }

    /// Sets up to 100 registers; the result says how many were set before one was refused. More would make the driver
    /// read past its copy, which it does not check below 256.
    pub fn set_msrs(&self, entries: &[kvm_msr_entry]) -> SysResult<usize> {
        let mut msrs: kvm_msrs = zeroed();
        if entries.len() > msrs.entries.len() {
            return Err(Errno::E2BIG);
        }
        msrs.nmsrs = entries.len() as u32;
        msrs.entries[..entries.len()].copy_from_slice(entries);
        // SAFETY: the command's structure, all 1608 bytes of it.
        let done = unsafe { self.exchange(KVM_SET_MSRS, &mut msrs) }?;
        Ok(usize::try_from(done).unwrap_or(0))
    }

    /// The signals that are blocked while the guest runs, in place of the thread's own.
    pub fn set_signal_mask(&self, blocked: &illumos_sigset) -> SysResult<()> {
        let len = size_of::<illumos_sigset>() as u32;
        // The structure is declared with one byte of mask; all 16 follow `len` without padding.
        let mut mask = [len, blocked.__sigbits[0], blocked.__sigbits[1], blocked.__sigbits[2], blocked.__sigbits[3]];
        // SAFETY: the bytes of the words; any of them make words.
        let bytes = unsafe { std::slice::from_raw_parts_mut(mask.as_mut_ptr().cast(), size_of_val(&mask)) };
        // SAFETY: `len` and as many bytes as it says.
        unsafe { self.0.ioctl(KVM_SET_SIGNAL_MASK, IoctlArg::Buffer(bytes)) }.map(drop)
    }

    pub fn regs(&self) -> SysResult<kvm_regs> {
        let mut regs = zeroed();
        // SAFETY: the command's structure.
        unsafe { self.exchange(KVM_GET_REGS, &mut regs) }?;
        Ok(regs)
    }

    pub fn nmi(&self) -> SysResult<()> {
        self.none(KVM_NMI).map(drop)
    }
}

macro_rules! state {
    ($($set:ident $request:ident $ty:ident;)*) => {
        impl Device {
            $(
                pub fn $set(&self, value: &$ty) -> SysResult<()> {
                    // SAFETY: the command's structure.
                    unsafe { self.give($request, value) }
                }
            )*
        }
    };
}

state! {
    set_regs KVM_SET_REGS kvm_regs;
    set_sregs KVM_SET_SREGS kvm_sregs;
    set_fpu KVM_SET_FPU kvm_fpu;
    set_lapic KVM_SET_LAPIC kvm_lapic_state;
    set_vcpu_events KVM_SET_VCPU_EVENTS kvm_vcpu_events;
    set_mp_state KVM_SET_MP_STATE kvm_mp_state;
}
