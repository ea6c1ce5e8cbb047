//! State of what the kernel emulates, and of the vCPUs, as one value.
//!
//! The kernel hands out most of its state in classes, each in a layout with a version, and says which it knows. They are
//! kept as the kernel wrote them: nobody but a kernel reads them again.

use serde::{Deserialize, Serialize};
use zerocopy::FromBytes;

use super::abi;
use super::error::CallResult;
use super::vmfd::{VmFd, WHOLE_VM};
use crate::hypervisor::HypervisorError;

/// Layout of [`KernelState`] itself.
const STATE_VERSION: u32 = 1;

/// Classes of the whole VM in the order in which they can be written: timers are told in the VM's time, so time is
/// first.
const VM_CLASSES: [u16; 7] = [
    abi::VDC_VMM_TIME,
    abi::VDC_IOAPIC,
    abi::VDC_ATPIC,
    abi::VDC_ATPIT,
    abi::VDC_HPET,
    abi::VDC_PM_TIMER,
    abi::VDC_RTC,
];

/// Classes of a vCPU.
const VCPU_CLASSES: [u16; 4] = [abi::VDC_MSR, abi::VDC_LAPIC, abi::VDC_VMM_ARCH, abi::VDC_PMU_AMD];

/// Registers that are nowhere else. The PDPTEs are read again from memory by every load of CR3, the interrupt shadow
/// cannot be set, and the length of an injected instruction belongs to an entry.
const REGISTERS: [i32; 38] = [
    abi::VM_REG_GUEST_XCR0,
    abi::VM_REG_GUEST_EFER,
    abi::VM_REG_GUEST_CR4,
    abi::VM_REG_GUEST_CR3,
    abi::VM_REG_GUEST_CR2,
    abi::VM_REG_GUEST_CR0,
    abi::VM_REG_GUEST_DR0,
    abi::VM_REG_GUEST_DR1,
    abi::VM_REG_GUEST_DR2,
    abi::VM_REG_GUEST_DR3,
    abi::VM_REG_GUEST_DR6,
    abi::VM_REG_GUEST_DR7,
    abi::VM_REG_GUEST_RAX,
    abi::VM_REG_GUEST_RBX,
    abi::VM_REG_GUEST_RCX,
    abi::VM_REG_GUEST_RDX,
    abi::VM_REG_GUEST_RSI,
    abi::VM_REG_GUEST_RDI,
    abi::VM_REG_GUEST_RBP,
    abi::VM_REG_GUEST_RSP,
    abi::VM_REG_GUEST_R8,
    abi::VM_REG_GUEST_R9,
    abi::VM_REG_GUEST_R10,
    abi::VM_REG_GUEST_R11,
    abi::VM_REG_GUEST_R12,
    abi::VM_REG_GUEST_R13,
    abi::VM_REG_GUEST_R14,
    abi::VM_REG_GUEST_R15,
    abi::VM_REG_GUEST_RIP,
    abi::VM_REG_GUEST_RFLAGS,
    abi::VM_REG_GUEST_ES,
    abi::VM_REG_GUEST_CS,
    abi::VM_REG_GUEST_SS,
    abi::VM_REG_GUEST_DS,
    abi::VM_REG_GUEST_FS,
    abi::VM_REG_GUEST_GS,
    abi::VM_REG_GUEST_LDTR,
    abi::VM_REG_GUEST_TR,
];

/// Registers with a hidden part.
const SEGMENTS: [i32; 10] = [
    abi::VM_REG_GUEST_ES,
    abi::VM_REG_GUEST_CS,
    abi::VM_REG_GUEST_SS,
    abi::VM_REG_GUEST_DS,
    abi::VM_REG_GUEST_FS,
    abi::VM_REG_GUEST_GS,
    abi::VM_REG_GUEST_LDTR,
    abi::VM_REG_GUEST_TR,
    abi::VM_REG_GUEST_IDTR,
    abi::VM_REG_GUEST_GDTR,
];

/// Everything the kernel knows about a VM but its memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KernelState {
    version: u32,
    vm: Vec<Class>,
    vcpus: Vec<VcpuState>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Class {
    class: u16,
    version: u16,
    bytes: Vec<u8>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct VcpuState {
    registers: Vec<(i32, u64)>,
    /// Base, limit, access.
    segments: Vec<(i32, u64, u32, u32)>,
    run_state: u32,
    sipi_vector: u8,
    fpu: Vec<u8>,
    classes: Vec<Class>,
}

/// Layout of each class that the kernel knows: class and version.
fn versions(fd: &VmFd) -> CallResult<Vec<(u16, u16)>> {
    let bytes = fd.read_data(WHOLE_VM, abi::VDC_VERSION, 1)?;
    let rows = bytes.chunks_exact(size_of::<abi::vdi_version_entry_v1>());
    Ok(rows
        .filter_map(|row| abi::vdi_version_entry_v1::read_from_bytes(row).ok())
        .map(|row| (row.vve_class, row.vve_version))
        .collect())
}

fn read_classes(fd: &VmFd, vcpu: i32, wanted: &[u16], known: &[(u16, u16)]) -> CallResult<Vec<Class>> {
    let of_kernel = |class: &u16| known.iter().find(|(there, _)| there == class);
    wanted
        .iter()
        .filter_map(of_kernel)
        .map(|&(class, version)| Ok(Class { class, version, bytes: fd.read_data(vcpu, class, version)? }))
        .collect()
}

/// Reads everything. The VM is paused, and every vCPU is quiescent.
///
/// # Errors
/// What the calls say.
pub fn save(fd: &VmFd, vcpus: u8) -> CallResult<KernelState> {
    let known = versions(fd)?;
    let vm = read_classes(fd, WHOLE_VM, &VM_CLASSES, &known)?;
    let fpu_bytes = fd.fpu_bytes()?;
    let vcpus = (0..vcpus).map(|id| save_vcpu(fd, id.into(), fpu_bytes, &known)).collect::<CallResult<_>>()?;
    Ok(KernelState { version: STATE_VERSION, vm, vcpus })
}

fn save_vcpu(fd: &VmFd, vcpu: i32, fpu_bytes: usize, known: &[(u16, u16)]) -> CallResult<VcpuState> {
    let values = fd.registers(vcpu, &REGISTERS)?;
    let segment = |number: i32| -> CallResult<_> {
        let segment = fd.segment_descriptor(vcpu, number)?;
        Ok((number, segment.base, segment.limit, segment.access))
    };
    let (run_state, sipi_vector) = fd.run_state(vcpu)?;
    Ok(VcpuState {
        registers: REGISTERS.into_iter().zip(values).collect(),
        segments: SEGMENTS.into_iter().map(segment).collect::<CallResult<_>>()?,
        run_state,
        sipi_vector,
        fpu: fd.fpu(vcpu, fpu_bytes)?,
        classes: read_classes(fd, vcpu, &VCPU_CLASSES, known)?,
    })
}

/// Writes everything into a VM with the same vCPUs, none of which has run. The VM is paused.
///
/// # Errors
/// A state of another layout or another number of vCPUs, and what the calls say.
pub fn restore(fd: &VmFd, vcpus: u8, state: &KernelState) -> Result<(), HypervisorError> {
    let refuse = |line: String| Err(HypervisorError::Unavailable(line));
    if state.version != STATE_VERSION {
        return refuse(format!("saved state of layout {}, need {STATE_VERSION}", state.version));
    }
    if state.vcpus.len() != usize::from(vcpus) {
        return refuse(format!("saved state of {} vCPUs for a VM with {vcpus}", state.vcpus.len()));
    }
    write_classes(fd, WHOLE_VM, &state.vm)?;
    for (id, vcpu) in (0i32..).zip(&state.vcpus) {
        restore_vcpu(fd, id, vcpu)?;
    }
    Ok(())
}

fn write_classes(fd: &VmFd, vcpu: i32, classes: &[Class]) -> CallResult<()> {
    classes.iter().try_for_each(|class| fd.write_data(vcpu, class.class, class.version, &class.bytes))
}

fn restore_vcpu(fd: &VmFd, vcpu: i32, state: &VcpuState) -> CallResult<()> {
    for &(number, base, limit, access) in &state.segments {
        fd.set_segment(vcpu, number, abi::seg_desc { base, limit, access })?;
    }
    fd.set_registers(vcpu, &state.registers)?;
    // After XCR0, which says what of it counts.
    fd.set_fpu(vcpu, &state.fpu)?;
    write_classes(fd, vcpu, &state.classes)?;
    fd.set_run_state(vcpu, state.run_state, state.sipi_vector)
}

/// Whether the VM is paused, by whomever.
///
/// # Errors
/// What the call says.
pub fn is_paused(fd: &VmFd) -> CallResult<bool> {
    let bytes = fd.read_data(WHOLE_VM, abi::VDC_VMM_ARCH, 1)?;
    let fields = bytes.chunks_exact(size_of::<abi::vdi_field_entry_v1>());
    let mut fields = fields.filter_map(|field| abi::vdi_field_entry_v1::read_from_bytes(field).ok());
    Ok(fields.any(|field| field.vfe_ident == abi::VAI_VM_IS_PAUSED && field.vfe_value != 0))
}

/// Frequency of the guest's time-stamp counter in kHz, as the kernel has it.
///
/// # Errors
/// What the call says.
pub fn guest_tsc_khz(fd: &VmFd) -> CallResult<Option<u32>> {
    let bytes = fd.read_data(WHOLE_VM, abi::VDC_VMM_TIME, 1)?;
    let time = abi::vdi_time_info_v1::read_from_prefix(&bytes).ok();
    Ok(time.and_then(|(time, _)| u32::try_from(time.vt_guest_freq / 1000).ok()).filter(|&khz| khz > 0))
}
