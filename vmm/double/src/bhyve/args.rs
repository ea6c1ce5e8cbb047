//! What every ioctl takes as its argument, how it locks, and since which interface version it exists.

use std::mem::size_of;

use devices_host::sys::{Errno, IoctlArg, SysResult};
use zvmm::hypervisor::bhyve::abi::*;

use super::rules;
use crate::names;
use crate::node::Call;

/// SmartOS' private ioctl that shrinks the ZFS cache; a kernel without it says ENOTTY, and who asks must live with that.
pub const VM_ARC_RESV: i32 = 0x76_6dfe;

/// How an ioctl locks the VM (reference section 2.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Of the control node.
    Control,
    /// Takes the vCPU that its argument begins with.
    Vcpu,
    /// Freezes all vCPUs.
    WriteLock,
    /// Disturbs none.
    Other,
}

/// The third parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// None.
    Nothing,
    /// A number by value.
    Number,
    /// A pointer to a structure of this size.
    Structure(usize),
}

/// One ioctl.
#[derive(Clone, Copy, Debug)]
pub struct Spec {
    /// Its number.
    pub request: i32,
    /// How it locks.
    pub class: Class,
    /// What it takes.
    pub kind: Kind,
    /// The interface version that brought it, or its present argument.
    pub since: i32,
}

const fn spec(request: i32, class: Class, kind: Kind, since: i32) -> Spec {
    Spec { request, class, kind, since }
}

/// The size that an argument has.
const fn of<T>() -> Kind {
    Kind::Structure(size_of::<T>())
}

use Class::{Control, Other, Vcpu, WriteLock};
use Kind::{Nothing, Number, Structure};

/// Every ioctl this double serves.
static SPECS: &[Spec] = &[
    spec(VMM_CREATE_VM, Control, of::<vm_create_req>(), 0),
    spec(VMM_DESTROY_VM, Control, of::<vm_destroy_req>(), 0),
    spec(VMM_VM_SUPPORTED, Control, Structure(128), 0),
    spec(VMM_INTERFACE_VERSION, Control, Nothing, 0),
    spec(VMM_CHECK_IOMMU, Control, Nothing, 0),
    spec(VMM_RESV_QUERY, Control, of::<vmm_resv_query>(), 0),
    spec(VMM_RESV_SET_TARGET, Control, of::<vmm_resv_target>(), 9),
    spec(VM_RUN, Vcpu, of::<vm_entry>(), 0),
    spec(VM_SET_REGISTER, Vcpu, of::<vm_register>(), 0),
    spec(VM_GET_REGISTER, Vcpu, of::<vm_register>(), 0),
    spec(VM_SET_SEGMENT_DESCRIPTOR, Vcpu, of::<vm_seg_desc>(), 0),
    spec(VM_GET_SEGMENT_DESCRIPTOR, Vcpu, of::<vm_seg_desc>(), 0),
    spec(VM_SET_REGISTER_SET, Vcpu, of::<vm_register_set>(), 0),
    spec(VM_GET_REGISTER_SET, Vcpu, of::<vm_register_set>(), 0),
    spec(VM_INJECT_EXCEPTION, Vcpu, of::<vm_exception>(), 0),
    spec(VM_SET_CAPABILITY, Vcpu, of::<vm_capability>(), 0),
    spec(VM_GET_CAPABILITY, Vcpu, of::<vm_capability>(), 0),
    spec(VM_SET_X2APIC_STATE, Vcpu, of::<vm_x2apic>(), 0),
    spec(VM_GLA2GPA, Vcpu, of::<vm_gla2gpa>(), 0),
    spec(VM_GLA2GPA_NOFAULT, Vcpu, of::<vm_gla2gpa>(), 0),
    spec(VM_ACTIVATE_CPU, Vcpu, of::<vm_activate_cpu>(), 0),
    spec(VM_SET_INTINFO, Vcpu, of::<vm_intinfo>(), 0),
    spec(VM_GET_INTINFO, Vcpu, of::<vm_intinfo>(), 0),
    spec(VM_RESTART_INSTRUCTION, Vcpu, Structure(4), 0),
    spec(VM_SET_KERNEMU_DEV, Vcpu, of::<vm_readwrite_kernemu_device>(), 0),
    spec(VM_GET_KERNEMU_DEV, Vcpu, of::<vm_readwrite_kernemu_device>(), 0),
    spec(VM_RESET_CPU, Vcpu, of::<vm_vcpu_reset>(), 0),
    spec(VM_GET_RUN_STATE, Vcpu, of::<vm_run_state>(), 0),
    spec(VM_SET_RUN_STATE, Vcpu, of::<vm_run_state>(), 0),
    spec(VM_GET_FPU, Vcpu, of::<vm_fpu_state>(), 0),
    spec(VM_SET_FPU, Vcpu, of::<vm_fpu_state>(), 0),
    spec(VM_GET_CPUID, Vcpu, of::<vm_vcpu_cpuid_config>(), 5),
    spec(VM_SET_CPUID, Vcpu, of::<vm_vcpu_cpuid_config>(), 5),
    spec(VM_LEGACY_CPUID, Vcpu, of::<vm_legacy_cpuid>(), 5),
    spec(VM_REINIT, WriteLock, of::<vm_reinit>(), 0),
    spec(VM_ALLOC_MEMSEG, WriteLock, of::<vm_memseg>(), 0),
    spec(VM_MMAP_MEMSEG, WriteLock, of::<vm_memmap>(), 0),
    spec(VM_PMTMR_LOCATE, WriteLock, Number, 0),
    spec(VM_MUNMAP_MEMSEG, WriteLock, of::<vm_munmap>(), 0),
    spec(VM_PAUSE, WriteLock, Number, 7),
    spec(VM_RESUME, WriteLock, Number, 7),
    spec(VM_WRLOCK_CYCLE, WriteLock, Number, 0),
    spec(VM_GET_GPA_PMAP, Other, of::<vm_gpa_pte>(), 0),
    spec(VM_GET_MEMSEG, Other, of::<vm_memseg>(), 0),
    spec(VM_MMAP_GETNEXT, Other, of::<vm_memmap>(), 0),
    spec(VM_LAPIC_IRQ, Other, of::<vm_lapic_irq>(), 0),
    spec(VM_LAPIC_LOCAL_IRQ, Other, of::<vm_lapic_irq>(), 0),
    spec(VM_LAPIC_MSI, Other, of::<vm_lapic_msi>(), 0),
    spec(VM_IOAPIC_ASSERT_IRQ, Other, of::<vm_ioapic_irq>(), 0),
    spec(VM_IOAPIC_DEASSERT_IRQ, Other, of::<vm_ioapic_irq>(), 0),
    spec(VM_IOAPIC_PULSE_IRQ, Other, of::<vm_ioapic_irq>(), 0),
    spec(VM_ISA_ASSERT_IRQ, Other, of::<vm_isa_irq>(), 0),
    spec(VM_ISA_DEASSERT_IRQ, Other, of::<vm_isa_irq>(), 0),
    spec(VM_ISA_PULSE_IRQ, Other, of::<vm_isa_irq>(), 0),
    spec(VM_ISA_SET_IRQ_TRIGGER, Other, of::<vm_isa_irq_trigger>(), 0),
    spec(VM_RTC_WRITE, Other, of::<vm_rtc_data>(), 0),
    spec(VM_RTC_READ, Other, of::<vm_rtc_data>(), 0),
    spec(VM_RTC_SETTIME, Other, of::<vm_rtc_timespec>(), 12),
    spec(VM_RTC_GETTIME, Other, of::<vm_rtc_timespec>(), 12),
    spec(VM_SUSPEND, Other, of::<vm_suspend>(), 16),
    spec(VM_IOAPIC_PINCOUNT, Other, Structure(4), 0),
    spec(VM_GET_HPET_CAPABILITIES, Other, of::<vm_hpet_cap>(), 0),
    spec(VM_STATS_IOC, Other, of::<vm_stats>(), 0),
    spec(VM_STAT_DESC, Other, of::<vm_stat_desc>(), 0),
    spec(VM_INJECT_NMI, Other, of::<vm_nmi>(), 0),
    spec(VM_GET_X2APIC_STATE, Other, of::<vm_x2apic>(), 0),
    spec(VM_SET_TOPOLOGY, Other, of::<vm_cpu_topology>(), 0),
    spec(VM_GET_TOPOLOGY, Other, of::<vm_cpu_topology>(), 0),
    spec(VM_GET_CPUS, Other, of::<vm_cpuset>(), 0),
    spec(VM_SUSPEND_CPU, Other, Structure(4), 0),
    spec(VM_RESUME_CPU, Other, Structure(4), 0),
    spec(VM_TRACK_DIRTY_PAGES, Other, of::<vmm_dirty_tracker>(), 8),
    spec(VM_DESC_FPU_AREA, Other, of::<vm_fpu_desc>(), 0),
    spec(VM_DATA_READ, Other, of::<vm_data_xfer>(), 0),
    spec(VM_DATA_WRITE, Other, of::<vm_data_xfer>(), 13),
    spec(VM_SET_AUTODESTRUCT, Other, Number, 0),
    spec(VM_DESTROY_SELF, Other, Number, 0),
    spec(VM_DESTROY_PENDING, Other, Number, 0),
    spec(VM_VCPU_BARRIER, Other, Number, 16),
    spec(VM_NPT_OPERATION, Other, of::<vm_npt_operation>(), 17),
    spec(VM_DEVMEM_GETOFFSET, Other, of::<vm_devmem_offset>(), 0),
];

/// Finds an ioctl, and checks that this kernel has it.
///
/// # Errors
/// ENOTTY, as the kernel says.
pub fn find(call: &Call<'_>, request: i32, version: i32) -> SysResult<&'static Spec> {
    let Some(spec) = SPECS.iter().find(|spec| spec.request == request) else {
        if request == VM_ARC_RESV {
            return Err(Errno::ENOTTY);
        }
        let known = names::BHYVE.iter().any(|(number, _)| *number == request);
        let rule = if known { &rules::NOT_MODELLED } else { &rules::COMMAND };
        return Err(call.refuse(rule, Errno::ENOTTY, names::ioctl(request)));
    };
    if version < spec.since {
        let detail = format!("{} needs version {}, the kernel has {version}", names::ioctl(request), spec.since);
        return Err(call.refuse(&rules::VERSION, Errno::ENOTTY, detail));
    }
    Ok(spec)
}

/// An argument of the right kind and size.
pub enum Arg<'a> {
    /// None, or a number.
    Number(usize),
    /// A structure.
    Structure(&'a mut [u8]),
}

impl Spec {
    /// Checks the argument's kind and size.
    ///
    /// # Errors
    /// EFAULT, where the kernel would follow a bad pointer; EINVAL, where it would take a pointer for a number.
    pub fn argument<'a>(&self, call: &Call<'_>, arg: IoctlArg<'a>) -> SysResult<Arg<'a>> {
        let wrong = |given: &str, errno| {
            Err(call.refuse(&rules::ARGUMENT, errno, format!("{} got {given}", names::ioctl(self.request))))
        };
        match (self.kind, arg) {
            (Nothing | Number, IoctlArg::None) | (Nothing, IoctlArg::Value(0)) => Ok(Arg::Number(0)),
            (Number, IoctlArg::Value(value)) => Ok(Arg::Number(value)),
            (Nothing | Number, given @ IoctlArg::Buffer(_)) => wrong(&format!("a pointer to {given:?}"), Errno::EINVAL),
            (Nothing, given) => wrong(&format!("{given:?} in place of nothing"), Errno::EINVAL),
            (Structure(size), IoctlArg::Buffer(bytes)) if bytes.len() == size => Ok(Arg::Structure(bytes)),
            (Structure(size), given) => wrong(&format!("{given:?} in place of {size} bytes"), Errno::EFAULT),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_named_ioctl_is_served_or_is_about_passed_through_devices() {
        for (request, name) in names::BHYVE {
            let served = SPECS.iter().filter(|spec| spec.request == *request).count();
            assert_eq!(served, usize::from(!name.contains("PPTDEV")), "{name}");
        }
    }

    #[test]
    fn the_number_of_an_ioctl_tells_its_class() {
        for spec in SPECS {
            let class = match spec.request >> 8 {
                0x564d => Control,
                0x7670 => Vcpu,
                0x766c => WriteLock,
                _ => Other,
            };
            assert_eq!(spec.class, class, "{}", names::ioctl(spec.request));
        }
    }
}
