//! Calls on one vCPU. From another thread each of them takes the vCPU out of the guest first.

use devices_host::sys::IoctlArg;
use zerocopy::{FromZeros, IntoBytes};

use super::{VmFd, commands, named, uninterrupted};
use crate::hypervisor::bhyve::abi;
use crate::hypervisor::bhyve::error::CallResult;

/// Vector of the general-protection exception.
const GENERAL_PROTECTION: i32 = 13;

impl VmFd {
    /// Makes the vCPU part of the VM: interrupts and INIT reach it from now on. EBUSY where it is already.
    pub fn activate(&self, vcpu: i32) -> CallResult<()> {
        self.pass(commands::VM_ACTIVATE_CPU, &mut abi::vm_activate_cpu { vcpuid: vcpu }).map(drop)
    }

    /// Puts the vCPU into its power-on state.
    pub fn reset_vcpu(&self, vcpu: i32) -> CallResult<()> {
        let mut reset = abi::vm_vcpu_reset { vcpuid: vcpu, kind: abi::VRK_RESET };
        self.pass(commands::VM_RESET_CPU, &mut reset).map(drop)
    }

    /// Sets whether the vCPU runs or waits: `VRS_*`.
    pub fn set_run_state(&self, vcpu: i32, state: u32, sipi_vector: u8) -> CallResult<()> {
        let mut run_state = abi::vm_run_state { vcpuid: vcpu, state, sipi_vector, _pad: [0; 3] };
        self.pass(commands::VM_SET_RUN_STATE, &mut run_state).map(drop)
    }

    /// The run state and the vector of a pending SIPI.
    pub fn run_state(&self, vcpu: i32) -> CallResult<(u32, u8)> {
        let mut run_state = abi::vm_run_state::new_zeroed();
        run_state.vcpuid = vcpu;
        self.pass(commands::VM_GET_RUN_STATE, &mut run_state)?;
        Ok((run_state.state, run_state.sipi_vector))
    }

    /// Sets one register: `VM_REG_*`.
    pub fn set_register(&self, vcpu: i32, register: i32, value: u64) -> CallResult<()> {
        let mut argument = abi::vm_register { cpuid: vcpu, regnum: register, regval: value };
        self.pass(commands::VM_SET_REGISTER, &mut argument).map(drop)
    }

    /// Sets several registers, in their order.
    pub fn set_registers(&self, vcpu: i32, registers: &[(i32, u64)]) -> CallResult<()> {
        let (mut numbers, mut values): (Vec<i32>, Vec<u64>) = registers.iter().copied().unzip();
        self.register_set("VM_SET_REGISTER_SET", abi::VM_SET_REGISTER_SET, vcpu, &mut numbers, &mut values)
    }

    /// Reads several registers.
    pub fn registers(&self, vcpu: i32, numbers: &[i32]) -> CallResult<Vec<u64>> {
        let (mut numbers, mut values) = (numbers.to_vec(), vec![0; numbers.len()]);
        self.register_set("VM_GET_REGISTER_SET", abi::VM_GET_REGISTER_SET, vcpu, &mut numbers, &mut values)?;
        Ok(values)
    }

    fn register_set(
        &self,
        call: &'static str,
        request: i32,
        vcpu: i32,
        numbers: &mut [i32],
        values: &mut [u64],
    ) -> CallResult<()> {
        let count = u32::try_from(numbers.len().min(values.len())).unwrap_or(u32::MAX);
        let mut set = abi::vm_register_set {
            cpuid: vcpu,
            count,
            regnums: numbers.as_mut_ptr().expose_provenance(),
            regvals: values.as_mut_ptr().expose_provenance(),
        };
        // SAFETY: both requests take this structure; the two arrays have `count` elements and outlive the call.
        uninterrupted(|| unsafe { self.0.ioctl(request, IoctlArg::Buffer(set.as_mut_bytes())) })
            .map(drop)
            .map_err(named(call))
    }

    /// Sets the hidden part of a segment register, or GDTR or IDTR.
    pub fn set_segment(&self, vcpu: i32, register: i32, desc: abi::seg_desc) -> CallResult<()> {
        let mut argument = abi::vm_seg_desc { cpuid: vcpu, regnum: register, desc };
        self.pass(commands::VM_SET_SEGMENT_DESCRIPTOR, &mut argument).map(drop)
    }

    /// Reads the hidden part of a segment register, or GDTR or IDTR.
    pub fn segment_descriptor(&self, vcpu: i32, register: i32) -> CallResult<abi::seg_desc> {
        let mut argument = abi::vm_seg_desc::new_zeroed();
        (argument.cpuid, argument.regnum) = (vcpu, register);
        self.pass(commands::VM_GET_SEGMENT_DESCRIPTOR, &mut argument)?;
        Ok(argument.desc)
    }

    /// Whether the guest can switch the local APIC to x2APIC mode.
    pub fn offer_x2apic(&self, vcpu: i32) -> CallResult<()> {
        let mut argument = abi::vm_x2apic { cpuid: vcpu, state: abi::X2APIC_ENABLED };
        self.pass(commands::VM_SET_X2APIC_STATE, &mut argument).map(drop)
    }

    /// What CPUID answers where no table is set: EAX, EBX, ECX, EDX.
    pub fn legacy_cpuid(&self, vcpu: i32, leaf: u32, sub_leaf: u32) -> CallResult<[u32; 4]> {
        let mut argument = abi::vm_legacy_cpuid::new_zeroed();
        (argument.vlc_vcpuid, argument.vlc_eax, argument.vlc_ecx) = (vcpu, leaf, sub_leaf);
        self.pass(commands::VM_LEGACY_CPUID, &mut argument)?;
        Ok([argument.vlc_eax, argument.vlc_ebx, argument.vlc_ecx, argument.vlc_edx])
    }

    /// Replaces the vCPU's CPUID table.
    pub fn set_cpuid(&self, vcpu: i32, flags: u32, entries: &mut [abi::vcpu_cpuid_entry]) -> CallResult<()> {
        let mut config = abi::vm_vcpu_cpuid_config {
            vvcc_vcpuid: vcpu,
            vvcc_flags: flags,
            vvcc_nent: u32::try_from(entries.len()).unwrap_or(u32::MAX),
            _pad: 0,
            vvcc_entries: entries.as_mut_ptr().expose_provenance(),
        };
        // SAFETY: the request takes this structure; the array has as many entries as it says and outlives the call.
        uninterrupted(|| unsafe { self.0.ioctl(abi::VM_SET_CPUID, IoctlArg::Buffer(config.as_mut_bytes())) })
            .map(drop)
            .map_err(named("VM_SET_CPUID"))
    }

    /// Enters the guest with `command` (`VEC_*`, and what it answers) and says how it left. Not repeated when a signal
    /// interrupts it: that is for the caller to see.
    pub fn run(&self, vcpu: i32, command: u32, answer: abi::vm_entry_union) -> CallResult<abi::vm_exit> {
        let mut exit = abi::vm_exit::new_zeroed();
        let mut entry =
            abi::vm_entry { cpuid: vcpu, cmd: command, exit_data: (&raw mut exit).expose_provenance(), u: answer };
        // SAFETY: the structure is plain integers without implicit padding, and its union was made from zeroes, so all
        // of its bytes are initialised.
        let bytes =
            unsafe { std::slice::from_raw_parts_mut((&raw mut entry).cast::<u8>(), size_of::<abi::vm_entry>()) };
        // SAFETY: the request takes this structure, and `exit_data` points to the whole of a live `vm_exit`, which is
        // not looked at before the call is over.
        unsafe { self.0.ioctl(abi::VM_RUN, IoctlArg::Buffer(bytes)) }.map_err(named("VM_RUN"))?;
        Ok(exit)
    }

    /// Makes the vCPU leave the guest, or not enter it: its present or next entry comes back.
    pub fn barrier(&self, vcpu: i32) -> CallResult<()> {
        self.value(commands::VM_VCPU_BARRIER, usize::try_from(vcpu).unwrap_or_default())
    }

    /// Has the vCPU take #GP(0) for the instruction it left the guest at.
    pub fn inject_general_protection(&self, vcpu: i32) -> CallResult<()> {
        let mut exception = abi::vm_exception {
            cpuid: vcpu,
            vector: GENERAL_PROTECTION,
            error_code: 0,
            error_code_valid: 1,
            restart_instruction: 1,
        };
        self.pass(commands::VM_INJECT_EXCEPTION, &mut exception).map(drop)
    }

    /// Has the vCPU take a non-maskable interrupt.
    pub fn inject_nmi(&self, vcpu: i32) -> CallResult<()> {
        self.pass(commands::VM_INJECT_NMI, &mut abi::vm_nmi { cpuid: vcpu }).map(drop)
    }
}
