//! The double itself: every rule is noticed when it is broken, and what is allowed is not.

mod allowed;
mod backend;
mod broken;

use std::ptr::NonNull;
use std::sync::Arc;

use devices_host::sys::{Errno, IoctlArg, MapRequest, OpenAccess, OpenFlags, RawHandle, Sys, SysResult};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};
use zvmm::hypervisor::bhyve::abi::*;

use super::{Config, Vmm};
use crate::{DoubleSys, Host, Zone};

/// Where a guest's code lies.
const CODE: u64 = 0x1000;
/// Bytes of guest memory, from 0.
const MEMORY: usize = 0x10000;

const CONTROL: OpenFlags = OpenFlags { access: OpenAccess::ReadWrite, exclusive: true, nonblocking: false };

/// A name in a field of 128 bytes.
fn name(text: &str) -> [u8; 128] {
    let mut field = [0; 128];
    field[..text.len()].copy_from_slice(text.as_bytes());
    field
}

/// A process with a VM.
struct Rig {
    sys: Arc<DoubleSys>,
    control: RawHandle,
    vm: RawHandle,
}

impl Rig {
    /// A VM without memory, made in a zone of the brand.
    fn bare() -> Self {
        Self::on(&Host::new(vec![Vmm::new()]), Zone::bhyve(1))
    }

    /// The same on another kernel.
    fn with(config: Config) -> Self {
        Self::on(&Host::new(vec![Vmm::with(config)]), Zone::bhyve(1))
    }

    fn on(host: &Arc<Host>, zone: Zone) -> Self {
        let sys = DoubleSys::new(host, zone);
        let control = sys.open("/dev/vmmctl", CONTROL).unwrap();
        let rig = Self { sys, control, vm: RawHandle(-1) };
        rig.create("guest").unwrap();
        let vm = rig.sys.open("/dev/vmm/guest", OpenFlags::READ_WRITE).unwrap();
        rig.number_at(vm, VM_SET_AUTODESTRUCT, 1).unwrap();
        Self { vm, ..rig }
    }

    /// A VM with 64 KiB of memory and a vCPU in real mode at this code.
    fn with_code(code: &[u8]) -> Self {
        let rig = Self::bare();
        rig.memory();
        rig.write(CODE, code);
        rig.set_up_cpu();
        rig
    }

    /// 64 KiB of memory at 0.
    fn memory(&self) {
        self.segment(0, MEMORY, "").unwrap();
        self.map(0, 0, MEMORY).unwrap();
    }

    fn set_up_cpu(&self) {
        self.call(VM_ACTIVATE_CPU, &mut 0_i32).unwrap();
        self.call(VM_RESET_CPU, &mut vm_vcpu_reset { vcpuid: 0, kind: VRK_RESET }).unwrap();
        let desc = seg_desc { base: 0, limit: 0xffff, access: 0x93 };
        self.descriptor(VM_REG_GUEST_CS, desc).unwrap();
        self.register(VM_REG_GUEST_CS, 0).unwrap();
        self.register(VM_REG_GUEST_RIP, CODE).unwrap();
        self.run_state(VRS_RUN).unwrap();
    }

    fn run_state(&self, state: u32) -> SysResult<i32> {
        self.call(VM_SET_RUN_STATE, &mut vm_run_state { vcpuid: 0, state, sipi_vector: 0, _pad: [0; 3] })
    }

    fn register(&self, regnum: i32, regval: u64) -> SysResult<i32> {
        self.call(VM_SET_REGISTER, &mut vm_register { cpuid: 0, regnum, regval })
    }

    fn registered(&self, regnum: i32) -> u64 {
        let mut arg = vm_register { cpuid: 0, regnum, regval: 0 };
        self.call(VM_GET_REGISTER, &mut arg).unwrap();
        arg.regval
    }

    fn descriptor(&self, regnum: i32, desc: seg_desc) -> SysResult<i32> {
        self.call(VM_SET_SEGMENT_DESCRIPTOR, &mut vm_seg_desc { cpuid: 0, regnum, desc })
    }

    fn create(&self, text: &str) -> SysResult<i32> {
        self.call_at(self.control, VMM_CREATE_VM, &mut vm_create_req { name: name(text), flags: 0 })
    }

    fn segment(&self, segid: i32, len: usize, text: &str) -> SysResult<i32> {
        self.call(VM_ALLOC_MEMSEG, &mut vm_memseg { segid, _pad0: [0; 4], len, name: name(text) })
    }

    fn map(&self, segid: i32, gpa: u64, len: usize) -> SysResult<i32> {
        self.map_as(vm_memmap { gpa, segid, _pad0: [0; 4], segoff: 0, len, prot: 7, flags: 0 })
    }

    fn map_as(&self, mut arg: vm_memmap) -> SysResult<i32> {
        self.call(VM_MMAP_MEMSEG, &mut arg)
    }

    fn view(&self, offset: u64, len_bytes: usize) -> SysResult<NonNull<u8>> {
        self.sys.mmap(self.vm, MapRequest { len_bytes, offset, write: true })
    }

    fn write(&self, gpa: u64, bytes: &[u8]) {
        let start = self.view(0, MEMORY).unwrap();
        // SAFETY: a mapping of 64 KiB, which nobody else uses yet; then it is unmapped as a whole.
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), start.as_ptr().add(gpa as usize), bytes.len());
            self.sys.munmap(start, MEMORY);
        }
    }

    fn call<T: IntoBytes + FromBytes + Immutable + KnownLayout>(&self, request: i32, arg: &mut T) -> SysResult<i32> {
        self.call_at(self.vm, request, arg)
    }

    fn call_at<T: IntoBytes + FromBytes + Immutable + KnownLayout>(
        &self,
        handle: RawHandle,
        request: i32,
        arg: &mut T,
    ) -> SysResult<i32> {
        // SAFETY: the argument is a structure of the interface; pointers in it are good or wrong on purpose, and then
        // only looked up.
        unsafe { self.sys.ioctl(handle, request, IoctlArg::Buffer(arg.as_mut_bytes())) }
    }

    fn number(&self, request: i32, value: usize) -> SysResult<i32> {
        self.number_at(self.vm, request, value)
    }

    fn number_at(&self, handle: RawHandle, request: i32, value: usize) -> SysResult<i32> {
        // SAFETY: no pointers.
        unsafe { self.sys.ioctl(handle, request, IoctlArg::Value(value)) }
    }

    /// VM_RUN with a command and what it fulfils.
    fn enter(&self, cmd: u32, fulfil: impl FnOnce(&mut vm_entry)) -> SysResult<vm_exit> {
        // SAFETY: all-zero is a valid exit.
        let mut exit: vm_exit = unsafe { std::mem::zeroed() };
        let mut entry = vm_entry::new_zeroed();
        entry.cmd = cmd;
        entry.exit_data = std::ptr::from_mut(&mut exit) as usize;
        fulfil(&mut entry);
        self.enter_as(&mut entry)?;
        Ok(exit)
    }

    fn enter_as(&self, entry: &mut vm_entry) -> SysResult<i32> {
        // SAFETY: an entry has no byte that is not initialised: it was made from zeros.
        let bytes =
            unsafe { std::slice::from_raw_parts_mut(std::ptr::from_mut(entry).cast::<u8>(), size_of::<vm_entry>()) };
        // SAFETY: the exit's place is good, or wrong on purpose and then only looked up.
        unsafe { self.sys.ioctl(self.vm, VM_RUN, IoctlArg::Buffer(bytes)) }
    }

    /// Runs to the next exit.
    fn run(&self) -> vm_exit {
        self.enter(VEC_DEFAULT, |_| ()).unwrap()
    }

    /// Answers a port exit.
    fn answer_port(&self, exit: &vm_exit, eax: u32) -> SysResult<vm_exit> {
        // SAFETY: the exit code says which member it is.
        let mut inout = unsafe { exit.u.inout };
        inout.eax = eax;
        self.enter(VEC_FULFILL_INOUT, |entry| entry.u.inout = inout)
    }

    /// Names of the rules that were broken.
    fn broken(&self) -> Vec<&'static str> {
        self.sys.violations().iter().map(|violation| violation.rule.name).collect()
    }

    /// A vCPU's CPUID table.
    fn cpuid(&self, flags: u32, entries: &[vcpu_cpuid_entry]) -> SysResult<i32> {
        self.call(
            VM_SET_CPUID,
            &mut vm_vcpu_cpuid_config {
                vvcc_vcpuid: 0,
                vvcc_flags: flags,
                vvcc_nent: entries.len() as u32,
                _pad: 0,
                vvcc_entries: entries.as_ptr() as usize,
            },
        )
    }

    fn data(&self, request: i32, class: u16, vcpu: i32, content: &mut [u8]) -> SysResult<vm_data_xfer> {
        let mut arg = vm_data_xfer {
            vdx_vcpuid: vcpu,
            vdx_class: class,
            vdx_version: if class == VDC_RTC { 2 } else { 1 },
            vdx_flags: 0,
            vdx_len: content.len() as u32,
            vdx_result_len: 0,
            _pad0: [0; 4],
            vdx_data: content.as_mut_ptr() as usize,
        };
        self.call(request, &mut arg).map(|_| arg)
    }
}

/// One entry of a CPUID table.
fn leaf(function: u32, registers: [u32; 4]) -> vcpu_cpuid_entry {
    let [vce_eax, vce_ebx, vce_ecx, vce_edx] = registers;
    vcpu_cpuid_entry { vce_function: function, vce_index: 0, vce_flags: 0, vce_eax, vce_ebx, vce_ecx, vce_edx, _pad: 0 }
}

/// The smallest table without a fault.
fn whole_table() -> Vec<vcpu_cpuid_entry> {
    vec![leaf(0, [1, 0, 0, 0]), leaf(1, [0; 4]), leaf(0x8000_0000, [0x8000_0000, 0, 0, 0])]
}

#[track_caller]
fn refused<T>(result: SysResult<T>, errno: Errno) {
    assert_eq!(result.map(drop), Err(errno));
}
