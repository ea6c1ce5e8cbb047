//! Each rule, broken once: it is noticed under its name, with the errno of the kernel where the kernel notices.

use super::*;
use crate::bhyve::rules::{self, *};
use crate::rules::{Rule, system};
use crate::zone::Privilege;

/// Code: `in al, 0x10`.
const IN: Option<&[u8]> = Some(&[0xe4, 0x10]);
/// Code: `mov ecx, 0x8b; rdmsr`.
const RDMSR: Option<&[u8]> = Some(&[0x66, 0xb9, 0x8b, 0, 0, 0, 0x0f, 0x32, 0xe4, 0x10]);
/// No code and no memory.
const BARE: Option<&[u8]> = None;

type Breaker = (&'static Rule, fn());

/// A VM of this code, what is done to it, and the rules that broke.
fn broken_by(code: Option<&[u8]>, act: impl FnOnce(&Rig)) -> Vec<&'static str> {
    let rig = code.map_or_else(Rig::bare, Rig::with_code);
    act(&rig);
    rig.broken()
}

#[track_caller]
fn only(broken: &[&str], rule: &Rule) {
    assert!(!broken.is_empty() && broken.iter().all(|name| *name == rule.name), "{} wanted: {broken:?}", rule.name);
}

macro_rules! breakers {
    ($($rule:path: $code:ident(|$rig:ident| $act:block);)*) => {
        &[$((&$rule, || only(&broken_by($code, |$rig: &Rig| $act), &$rule))),*]
    };
}

static CONTROL_AND_LIFE: &[Breaker] = breakers! {
    CTL_EXCL: BARE(|rig| { refused(rig.sys.open("/dev/vmmctl", OpenFlags::READ_WRITE), Errno::EINVAL) });
    CTL_WRITE: BARE(|rig| {
        let reader = OpenFlags { access: OpenAccess::Read, ..CONTROL };
        let control = rig.sys.open("/dev/vmmctl", reader).unwrap();
        refused(rig.call_at(control, VMM_CREATE_VM, &mut vm_create_req { name: name("b"), flags: 0 }), Errno::EPERM);
    });
    ARGUMENT: BARE(|rig| {
        refused(rig.call(VM_ACTIVATE_CPU, &mut 0_u64), Errno::EFAULT);
        refused(rig.number(VM_ACTIVATE_CPU, 0), Errno::EFAULT);
        refused(rig.call(VM_PAUSE, &mut 0_u64), Errno::EINVAL);
        refused(rig.number_at(rig.control, VMM_INTERFACE_VERSION, 7), Errno::EINVAL);
    });
    POINTER: BARE(|rig| {
        refused(rig.call(VM_SET_REGISTER_SET, &mut vm_register_set { cpuid: 0, count: 1, regnums: 8, regvals: 8 }), Errno::EFAULT);
    });
    COMMAND: BARE(|rig| {
        refused(rig.number(0x76_6dee, 0), Errno::ENOTTY);
        refused(rig.number(VMM_CHECK_IOMMU, 0), Errno::ENOTTY);
        refused(rig.number_at(rig.control, VM_PAUSE, 0), Errno::ENOTTY);
    });
    NOT_MODELLED: BARE(|rig| {
        refused(rig.call(VM_LAPIC_LOCAL_IRQ, &mut vm_lapic_irq { cpuid: 0, vector: 0 }), Errno::EINVAL);
        refused(rig.call(VM_BIND_PPTDEV, &mut vm_pptdev { pptfd: 0 }), Errno::ENOTTY);
        refused(rig.call(VM_IOAPIC_ASSERT_IRQ, &mut 24_i32), Errno::EINVAL);
    });
    VM_NAME: BARE(|rig| {
        refused(rig.create(""), Errno::EINVAL);
        refused(rig.create("a/b"), Errno::EINVAL);
        let mut endless = vm_create_req { name: [b'a'; 128], flags: 0 };
        refused(rig.call_at(rig.control, VMM_CREATE_VM, &mut endless), Errno::ENAMETOOLONG);
    });
    CREATE_FLAGS: BARE(|rig| {
        let mut arg = vm_create_req { name: name("b"), flags: 4 };
        refused(rig.call_at(rig.control, VMM_CREATE_VM, &mut arg), Errno::EINVAL);
    });
    ONE_VM: BARE(|rig| { refused(rig.create("second"), Errno::EINVAL) });
    DESTROY_OPEN: BARE(|rig| {
        refused(rig.call_at(rig.control, VMM_DESTROY_VM, &mut vm_destroy_req { name: name("guest") }), Errno::EINTR);
    });
    RESV_PRIVILEGE: BARE(|rig| {
        let mut arg = vmm_resv_target { vrt_target_sz: 0, vrt_chunk_sz: 0, vrt_result_sz: 0 };
        refused(rig.call_at(rig.control, VMM_RESV_SET_TARGET, &mut arg), Errno::EPERM);
    });
    DYING: BARE(|rig| {
        rig.number(VM_DESTROY_SELF, 0).unwrap();
        assert_eq!(rig.number(VM_DESTROY_PENDING, 0), Ok(1));
        refused(rig.number(VM_PAUSE, 0), Errno::ENXIO);
    });
};

static MEMORY_RULES: &[Breaker] = breakers! {
    SEG_ID: BARE(|rig| {
        refused(rig.segment(5, 4096, ""), Errno::EINVAL);
        refused(rig.segment(-1, 4096, ""), Errno::EINVAL);
    });
    SEG_LENGTH: BARE(|rig| {
        refused(rig.segment(0, 0, ""), Errno::EINVAL);
        refused(rig.segment(0, 4097, ""), Errno::EINVAL);
    });
    SEG_SAME: BARE(|rig| {
        rig.segment(0, 4096, "").unwrap();
        refused(rig.segment(0, 4096, ""), Errno::EEXIST);
        refused(rig.segment(0, 8192, ""), Errno::EINVAL);
    });
    MAP_PAGES: BARE(|rig| {
        rig.segment(0, 8192, "").unwrap();
        refused(rig.map(0, 1, 4096), Errno::EINVAL);
        refused(rig.map(0, 0, 100), Errno::EINVAL);
    });
    MAP_INSIDE: BARE(|rig| {
        rig.segment(0, 8192, "").unwrap();
        refused(rig.map(0, 0, 12288), Errno::EINVAL);
        refused(rig.map(1, 0, 4096), Errno::EINVAL);
    });
    MAP_PROT: BARE(|rig| {
        rig.segment(0, 4096, "").unwrap();
        for prot in [0, 8] {
            let map = vm_memmap { gpa: 0, segid: 0, _pad0: [0; 4], segoff: 0, len: 4096, prot, flags: 0 };
            refused(rig.map_as(map), Errno::EINVAL);
        }
    });
    MAP_FLAGS: BARE(|rig| {
        rig.segment(0, 4096, "").unwrap();
        let map = vm_memmap { gpa: 0, segid: 0, _pad0: [0; 4], segoff: 0, len: 4096, prot: 7, flags: VM_MEMMAP_F_IOMMU };
        refused(rig.map_as(map), Errno::EINVAL);
    });
    MAP_COUNT: BARE(|rig| {
        rig.segment(0, 4096, "").unwrap();
        for at in 0..8 {
            rig.map(0, at << 20, 4096).unwrap();
        }
        refused(rig.map(0, 8 << 20, 4096), Errno::ENOSPC);
    });
    MAP_OVERLAP: BARE(|rig| {
        rig.segment(0, 8192, "").unwrap();
        rig.map(0, 0, 8192).unwrap();
        refused(rig.map(0, 4096, 4096), Errno::EFAULT);
    });
    UNMAP_EXACT: BARE(|rig| {
        rig.memory();
        refused(rig.call(VM_MUNMAP_MEMSEG, &mut vm_munmap { gpa: 0, len: 4096 }), Errno::EINVAL);
        rig.call(VM_MUNMAP_MEMSEG, &mut vm_munmap { gpa: 0, len: MEMORY }).unwrap();
    });
    MMAP_HOLE: BARE(|rig| {
        rig.memory();
        rig.view(0, 2 * MEMORY).unwrap();
    });
    MMAP_DEVMEM: BARE(|rig| { refused(rig.view(VM_DEVMEM_START, 4096), Errno::ENODEV) });
    MMAP_WRITE: BARE(|rig| {
        rig.segment(2, 4096, "rom").unwrap();
        rig.map_as(vm_memmap { gpa: 0, segid: 2, _pad0: [0; 4], segoff: 0, len: 4096, prot: 5, flags: 0 }).unwrap();
        rig.view(0, 4096).unwrap();
    });
    KERNEL_REGION: BARE(|rig| {
        rig.segment(0, 4096, "").unwrap();
        rig.map(0, IOAPIC_BASE, 4096).unwrap();
    });
};

static RUN_RULES: &[Breaker] = breakers! {
    VCPU_ID: BARE(|rig| {
        for mut id in [-1, 64] {
            refused(rig.call(VM_ACTIVATE_CPU, &mut id), Errno::EINVAL);
        }
    });
    VCPU_ACTIVE: BARE(|rig| { refused(rig.enter(VEC_DEFAULT, |_| ()), Errno::EINVAL) });
    ACTIVATE_ONCE: BARE(|rig| {
        rig.call(VM_ACTIVATE_CPU, &mut 0_i32).unwrap();
        refused(rig.call(VM_ACTIVATE_CPU, &mut 0_i32), Errno::EBUSY);
        rig.call(VM_SUSPEND, &mut vm_suspend { how: VM_SUSPEND_RESET, source: -1 }).unwrap();
        refused(rig.call(VM_ACTIVATE_CPU, &mut 1_i32), Errno::EBUSY);
    });
    ENTRY_COMMAND: IN(|rig| { refused(rig.enter(4, |_| ()), Errno::EINVAL) });
    EXIT_BUFFER: IN(|rig| { refused(rig.enter(VEC_DEFAULT, |entry| entry.exit_data = 0), Errno::EFAULT) });
    EXIT_ANSWERED: IN(|rig| {
        let first = rig.run();
        let again = rig.run();
        assert_eq!((first.exitcode, again.exitcode), (VM_EXITCODE_INOUT, VM_EXITCODE_INOUT));
    });
    FULFIL_PENDING: IN(|rig| { refused(rig.enter(VEC_FULFILL_INOUT, |_| ()), Errno::EINVAL) });
    FULFIL_MATCH: IN(|rig| {
        let exit = rig.run();
        // SAFETY: a port exit.
        let inout = unsafe { exit.u.inout };
        for wrong in [
            vm_inout { bytes: 2, ..inout },
            vm_inout { port: 0x11, ..inout },
            vm_inout { flags: 0, ..inout },
        ] {
            refused(rig.enter(VEC_FULFILL_INOUT, |entry| entry.u.inout = wrong), Errno::EINVAL);
        }
        refused(rig.enter(VEC_FULFILL_MMIO, |entry| entry.u.inout = inout), Errno::EINVAL);
        rig.enter(VEC_FULFILL_INOUT | VEC_FLAG_EXIT_CONSISTENT, |entry| entry.u.inout = inout).unwrap();
    });
    RDMSR_ANSWERED: RDMSR(|rig| {
        assert_eq!(rig.run().exitcode, VM_EXITCODE_RDMSR);
        rig.register(VM_REG_GUEST_RAX, 1).unwrap();
        rig.run();
    });
    BOOT_CPU_RUNS: BARE(|rig| {
        rig.memory();
        rig.set_up_cpu();
        rig.run_state(VRS_HALT).unwrap();
        rig.enter(VEC_FLAG_EXIT_CONSISTENT, |_| ()).unwrap();
    });
    RESET_BEFORE_RUN: BARE(|rig| {
        rig.memory();
        rig.call(VM_ACTIVATE_CPU, &mut 0_i32).unwrap();
        rig.run_state(VRS_RUN).unwrap();
        rig.enter(VEC_FLAG_EXIT_CONSISTENT, |_| ()).unwrap();
    });
    RUN_STATE: BARE(|rig| {
        for state in [3, VRS_RUN | VRS_PEND_INIT, VRS_PEND_SIPI] {
            refused(rig.run_state(state), Errno::EINVAL);
        }
    });
    RESET_KIND: BARE(|rig| {
        refused(rig.call(VM_RESET_CPU, &mut vm_vcpu_reset { vcpuid: 0, kind: 2 }), Errno::EINVAL);
    });
    X2APIC_STATE: BARE(|rig| {
        refused(rig.call(VM_SET_X2APIC_STATE, &mut vm_x2apic { cpuid: 0, state: 2 }), Errno::EINVAL);
    });
    CAPABILITY: BARE(|rig| {
        let mut arg = vm_capability { cpuid: 0, captype: VM_CAP_BPT_EXIT, capval: 1, allcpus: 0 };
        refused(rig.call(VM_SET_CAPABILITY, &mut arg), Errno::ENOENT);
    });
    HALT_EXIT: BARE(|rig| {
        let mut arg = vm_capability { cpuid: 0, captype: VM_CAP_HALT_EXIT, capval: 0, allcpus: 0 };
        rig.call(VM_SET_CAPABILITY, &mut arg).unwrap();
    });
    TOPOLOGY: BARE(|rig| {
        for (sockets, maxcpus) in [(0, 0), (65, 0), (1, 1)] {
            let mut arg = vm_cpu_topology { sockets, cores: 1, threads: 1, maxcpus };
            refused(rig.call(VM_SET_TOPOLOGY, &mut arg), Errno::EINVAL);
        }
    });
    CPUSET: BARE(|rig| {
        let mut set = 0_u64;
        let cpus = std::ptr::from_mut(&mut set) as usize;
        refused(rig.call(VM_GET_CPUS, &mut vm_cpuset { which: VM_ACTIVE_CPUS, cpusetsize: 4, cpus }), Errno::EINVAL);
        refused(rig.call(VM_GET_CPUS, &mut vm_cpuset { which: 1, cpusetsize: 8, cpus }), Errno::EINVAL);
    });
    BARRIER_ID: BARE(|rig| { rig.number(VM_VCPU_BARRIER, usize::MAX).unwrap(); });
    SUSPEND_HOW: BARE(|rig| {
        for (how, source) in [(0, -1), (5, -1), (1, 64), (1, -2)] {
            refused(rig.call(VM_SUSPEND, &mut vm_suspend { how, source }), Errno::EINVAL);
        }
    });
    PAUSE_ONCE: BARE(|rig| {
        rig.number(VM_PAUSE, 0).unwrap();
        refused(rig.number(VM_PAUSE, 0), Errno::EALREADY);
    });
    RESUME_PAUSED: BARE(|rig| { refused(rig.number(VM_RESUME, 0), Errno::EALREADY) });
    REINIT_FLAGS: BARE(|rig| { refused(rig.call(VM_REINIT, &mut vm_reinit { flags: 2 }), Errno::EINVAL) });
    REINIT_HOOKS: BARE(|rig| {
        let node = rig.sys.node(rig.vm).unwrap();
        let any: &dyn std::any::Any = &*node;
        let hold = any.downcast_ref::<crate::bhyve::VmNode>().unwrap().attach().unwrap();
        let hook = hold.hook(crate::bhyve::Place::Port(0xc010), Box::new(|_| true)).unwrap();
        refused(rig.call(VM_REINIT, &mut vm_reinit { flags: 0 }), Errno::EBUSY);
        hold.unhook(hook);
        rig.call(VM_REINIT, &mut vm_reinit { flags: 0 }).unwrap();
    });
};

static REGISTER_RULES: &[Breaker] = breakers! {
    REGISTER_KNOWN: BARE(|rig| {
        refused(rig.register(VM_REG_LAST, 0), Errno::EINVAL);
        refused(rig.register(VM_REG_GUEST_GDTR, 0), Errno::EINVAL);
    });
    REGISTER_VALUE: BARE(|rig| {
        refused(rig.register(VM_REG_GUEST_XCR0, 2), Errno::EINVAL);
        refused(rig.register(VM_REG_GUEST_CR0, 1 << 32), Errno::EINVAL);
        refused(rig.register(VM_REG_GUEST_CS, 0x10000), Errno::EINVAL);
    });
    REGISTER_COUNT: BARE(|rig| {
        for count in [0, 47] {
            refused(rig.call(VM_GET_REGISTER_SET, &mut vm_register_set { cpuid: 0, count, regnums: 0, regvals: 0 }), Errno::EINVAL);
        }
    });
    SEGMENT_KNOWN: BARE(|rig| {
        refused(rig.descriptor(VM_REG_GUEST_RAX, seg_desc { base: 0, limit: 0, access: 0 }), Errno::EINVAL);
    });
    SEGMENT_ACCESS: BARE(|rig| {
        rig.descriptor(VM_REG_GUEST_DS, seg_desc { base: 0, limit: 0xffff, access: 0x1_0093 << 1 }).unwrap();
    });
    SEGMENT_GRANULARITY: BARE(|rig| {
        rig.descriptor(VM_REG_GUEST_DS, seg_desc { base: 0, limit: 0xffff_ffff, access: 0x93 }).unwrap();
    });
    TR_BUSY: IN(|rig| {
        rig.descriptor(VM_REG_GUEST_TR, seg_desc { base: 0, limit: 0x67, access: 0x89 }).unwrap();
        let _ = rig.enter(VEC_DEFAULT, |_| ());
    });
    GUEST_STATE: IN(|rig| {
        rig.register(VM_REG_GUEST_EFER, 0x500).unwrap();
        refused(rig.enter(VEC_DEFAULT, |_| ()), Errno::EIO);
    });
    EXCEPTION_VECTOR: BARE(|rig| {
        for vector in [2, 8, 32, -1] {
            let mut arg = vm_exception { cpuid: 0, vector, error_code: 0, error_code_valid: 0, restart_instruction: 0 };
            refused(rig.call(VM_INJECT_EXCEPTION, &mut arg), Errno::EINVAL);
        }
    });
    EXCEPTION_FREE: IN(|rig| {
        let mut arg = vm_exception { cpuid: 0, vector: 6, error_code: 0, error_code_valid: 0, restart_instruction: 1 };
        rig.call(VM_INJECT_EXCEPTION, &mut arg).unwrap();
        refused(rig.call(VM_INJECT_EXCEPTION, &mut arg), Errno::EBUSY);
    });
    INTINFO: BARE(|rig| {
        let mut arg = vm_intinfo { vcpuid: 0, _pad0: [0; 4], info1: VM_INTINFO_VALID | 1 << 20, info2: 0 };
        refused(rig.call(VM_SET_INTINFO, &mut arg), Errno::EINVAL);
    });
    TRANSLATE: BARE(|rig| {
        let mut arg = vm_gla2gpa::new_zeroed();
        arg.prot = 8;
        refused(rig.call(VM_GLA2GPA_NOFAULT, &mut arg), Errno::EINVAL);
    });
    KERNEMU_PLACE: BARE(|rig| {
        let mut arg = vm_readwrite_kernemu_device { vcpuid: 0, access_width_bitfield: 2, gpa: 0x1000, value: 0 };
        refused(rig.call(VM_GET_KERNEMU_DEV, &mut arg), Errno::ESRCH);
    });
    FPU_LENGTH: BARE(|rig| {
        let mut buffer = [0_u8; 64];
        let buf = buffer.as_mut_ptr() as usize;
        refused(rig.call(VM_GET_FPU, &mut vm_fpu_state { vcpuid: 0, _pad0: [0; 4], buf, len: 64 }), Errno::ENOSPC);
        refused(rig.call(VM_GET_FPU, &mut vm_fpu_state { vcpuid: 0, _pad0: [0; 4], buf, len: 0 }), Errno::EINVAL);
        refused(rig.call(VM_SET_FPU, &mut vm_fpu_state { vcpuid: 0, _pad0: [0; 4], buf, len: 8193 }), Errno::EINVAL);
    });
};

static CPUID_RULES: &[Breaker] = breakers! {
    CPUID_FLAGS: BARE(|rig| { refused(rig.cpuid(4, &[]), Errno::EINVAL) });
    CPUID_COUNT: BARE(|rig| { refused(rig.cpuid(0, &vec![leaf(0, [0; 4]); 257]), Errno::EFBIG) });
    CPUID_ORDER: BARE(|rig| {
        refused(rig.cpuid(0, &[leaf(1, [0; 4]), leaf(0, [0; 4])]), Errno::EINVAL);
        refused(rig.cpuid(0, &[leaf(0, [0; 4]), leaf(0, [0; 4])]), Errno::EINVAL);
    });
    CPUID_LEGACY_EMPTY: BARE(|rig| { refused(rig.cpuid(VCC_FLAG_LEGACY_HANDLING, &whole_table()), Errno::EINVAL) });
    CPUID_WHOLE: BARE(|rig| { rig.cpuid(0, &whole_table()[..2]).unwrap(); });
    CPUID_APIC_ID: BARE(|rig| {
        let mut table = whole_table();
        table[1].vce_ebx = 1 << 24;
        rig.cpuid(0, &table).unwrap();
    });
    CPUID_IMPOSSIBLE: BARE(|rig| {
        let mut table = whole_table();
        table[1].vce_ecx = 1 << 24;
        rig.cpuid(0, &table).unwrap();
    });
    CPUID_X2APIC: IN(|rig| {
        let mut table = whole_table();
        table[1].vce_ecx = 1 << 21;
        rig.cpuid(0, &table).unwrap();
        rig.run();
    });
};

static DEVICE_RULES: &[Breaker] = breakers! {
    MSI_ADDRESS: BARE(|rig| {
        refused(rig.call(VM_LAPIC_MSI, &mut vm_lapic_msi { msg: 0x31, addr: 0xfed0_0000 }), Errno::EINVAL);
        refused(rig.call(VM_LAPIC_MSI, &mut vm_lapic_msi { msg: 0xfee0_0000, addr: 0x31 }), Errno::EINVAL);
    });
    MSI_EDGE: BARE(|rig| {
        rig.call(VM_LAPIC_MSI, &mut vm_lapic_msi { msg: 0x8031, addr: 0xfee0_0000 }).unwrap();
    });
    LAPIC_VECTOR: BARE(|rig| {
        refused(rig.call(VM_LAPIC_IRQ, &mut vm_lapic_irq { cpuid: 0, vector: 15 }), Errno::EINVAL);
    });
    LINE_PIN: BARE(|rig| {
        refused(rig.call(VM_IOAPIC_ASSERT_IRQ, &mut 32_i32), Errno::EINVAL);
        refused(rig.call(VM_ISA_ASSERT_IRQ, &mut vm_isa_irq { atpic_irq: 16, ioapic_irq: -1 }), Errno::EINVAL);
    });
    LINE_BALANCED: BARE(|rig| {
        let mut line = vm_isa_irq { atpic_irq: 4, ioapic_irq: 4 };
        rig.call(VM_ISA_ASSERT_IRQ, &mut line).unwrap();
        rig.call(VM_ISA_DEASSERT_IRQ, &mut line).unwrap();
        refused(rig.call(VM_ISA_DEASSERT_IRQ, &mut line), Errno::E2BIG);
    });
    LINE_SATURATED: BARE(|rig| {
        for _ in 0..64 {
            rig.call(VM_IOAPIC_ASSERT_IRQ, &mut 5_i32).unwrap();
        }
        refused(rig.call(VM_IOAPIC_ASSERT_IRQ, &mut 5_i32), Errno::E2BIG);
    });
    LINE_TRIGGER: BARE(|rig| {
        let mut arg = vm_isa_irq_trigger { atpic_irq: 8, trigger: LEVEL_TRIGGER };
        refused(rig.call(VM_ISA_SET_IRQ_TRIGGER, &mut arg), Errno::EINVAL);
    });
    RTC_OFFSET: BARE(|rig| {
        for offset in [-1, 0, 0x0b, 0x32, 128] {
            refused(rig.call(VM_RTC_WRITE, &mut vm_rtc_data { offset, value: 0, _pad0: [0; 3] }), Errno::EINVAL);
        }
    });
    RTC_TIME: BARE(|rig| {
        refused(rig.call(VM_RTC_SETTIME, &mut vm_rtc_timespec { tv_sec: -1, tv_nsec: 0 }), Errno::EINVAL);
    });
    PMTMR_PLACE: BARE(|rig| {
        rig.number(VM_PMTMR_LOCATE, 0x408).unwrap();
        refused(rig.number(VM_PMTMR_LOCATE, 0x70), Errno::EEXIST);
    });
    PMTMR_PORT: BARE(|rig| { refused(rig.number(VM_PMTMR_LOCATE, 0x10000), Errno::EINVAL) });
    DATA_CLASS: BARE(|rig| {
        refused(rig.data(VM_DATA_READ, 99, -1, &mut [0; 64]), Errno::EINVAL);
        refused(rig.data(VM_DATA_READ, VDC_LAPIC, -1, &mut [0; 256]), Errno::EINVAL);
        refused(rig.data(VM_DATA_READ, VDC_VMM_TIME, 0, &mut [0; 64]), Errno::EINVAL);
    });
    DATA_LENGTH: BARE(|rig| { refused(rig.data(VM_DATA_READ, VDC_VERSION, -1, &mut [0; 8193]), Errno::EFBIG) });
    DATA_CONTENT: BARE(|rig| {
        rig.number(VM_PAUSE, 0).unwrap();
        refused(rig.data(VM_DATA_WRITE, VDC_IOAPIC, -1, &mut [0; 8]), Errno::ENOSPC);
        let mut field = vdi_field_entry_v1 { vfe_ident: 0x1234, _pad: 0, vfe_value: 0 };
        refused(rig.data(VM_DATA_WRITE, VDC_MSR, 0, field.as_mut_bytes()), Errno::EINVAL);
    });
    DATA_PAUSED: BARE(|rig| { rig.data(VM_DATA_READ, VDC_IOAPIC, -1, &mut [0; 392]).unwrap(); });
    DATA_TIME: BARE(|rig| {
        rig.number(VM_PAUSE, 0).unwrap();
        let mut time = vdi_time_info_v1::new_zeroed();
        rig.data(VM_DATA_READ, VDC_VMM_TIME, -1, time.as_mut_bytes()).unwrap();
        time.vt_boot_hrtime = i64::MAX;
        refused(rig.data(VM_DATA_WRITE, VDC_VMM_TIME, -1, time.as_mut_bytes()), Errno::EINVAL);
    });
    DIRTY_TRACKED: BARE(|rig| {
        let mut arg = vmm_dirty_tracker { vdt_start_gpa: 0, vdt_len: 4096, vdt_pfns: 0 };
        refused(rig.call(VM_TRACK_DIRTY_PAGES, &mut arg), Errno::EPERM);
    });
};

/// Rules whose breaking takes another kernel or zone.
static ELSEWHERE: &[Breaker] = &[
    (&VERSION, || {
        let rig = Rig::with(Config { version: 15, ..Config::default() });
        refused(rig.number(VM_VCPU_BARRIER, 0), Errno::ENOTTY);
        only(&rig.broken(), &VERSION);
    }),
    (&DESTROY_ROOT, || {
        let rig = Rig::on(&Host::new(vec![Vmm::new()]), Zone::bhyve(1).without(Privilege::Root));
        refused(rig.call_at(rig.control, VMM_DESTROY_VM, &mut vm_destroy_req { name: name("guest") }), Errno::EPERM);
        only(&rig.broken(), &DESTROY_ROOT);
    }),
    (&DESTROY_ZONE, || {
        let rig = Rig::bare();
        let other = DoubleSys::new(rig.sys.host(), Zone::bhyve(2));
        let control = other.open("/dev/vmmctl", CONTROL).unwrap();
        let other = Rig { sys: other, control, vm: control };
        refused(other.call_at(control, VMM_DESTROY_VM, &mut vm_destroy_req { name: name("guest") }), Errno::EPERM);
        only(&rig.broken(), &DESTROY_ZONE);
    }),
];

static SYSTEM: &[Breaker] = breakers! {
    system::HANDLE_OPEN: BARE(|rig| {
        rig.sys.close(rig.vm);
        refused(rig.number(VM_PAUSE, 0), Errno::EBADF);
    });
    system::CLOSE_ONCE: BARE(|rig| {
        rig.sys.close(rig.vm);
        rig.sys.close(rig.vm);
    });
    system::MUNMAP_WHOLE: BARE(|rig| {
        rig.memory();
        let start = rig.view(0, MEMORY).unwrap();
        // SAFETY: a part of a mapping that nobody uses; the double unmaps nothing.
        unsafe { rig.sys.munmap(start, 4096) };
    });
    system::MMAP_PAGES: BARE(|rig| {
        rig.memory();
        refused(rig.view(1, 4096), Errno::EINVAL);
        refused(rig.view(0, 0), Errno::EINVAL);
    });
    system::MLOCK_MAPPED: BARE(|rig| {
        // SAFETY: nothing is done with the address but to look whether it is mapped.
        let result = unsafe { rig.sys.mlock(NonNull::new(0x1000 as *mut u8).unwrap(), 4096) };
        refused(result, Errno::ENOMEM);
    });
    system::KICK_ALIVE: BARE(|rig| {
        let sys = rig.sys.clone();
        let gone = std::thread::spawn(move || sys.current_thread()).join().unwrap();
        // Linux says that a thread has ended a moment before it is gone.
        while std::fs::exists(format!("/proc/self/task/{}", gone.0)).unwrap() {
            std::thread::yield_now();
        }
        rig.sys.signal_thread(gone);
    });
    system::NODE_IN_ZONE: BARE(|rig| { refused(rig.sys.open("/dev/kvm", OpenFlags::READ_WRITE), Errno::ENOENT) });
};

static SYSTEM_ELSEWHERE: &[Breaker] = &[
    (&system::MLOCK_PRIVILEGE, || {
        let host = Host::new(vec![Vmm::new()]);
        let sys = DoubleSys::new(&host, Zone::bhyve(1).without(Privilege::ProcLockMemory));
        let mut byte = 0_u8;
        // SAFETY: memory of this test.
        let result = unsafe { sys.mlock(NonNull::from(&mut byte), 1) };
        refused(result, Errno::EPERM);
        only(&[sys.violations()[0].rule.name], &system::MLOCK_PRIVILEGE);
    }),
    (&system::LEAK_HANDLE, || leaks(&system::LEAK_HANDLE)),
    (&system::LEAK_MAPPING, || leaks(&system::LEAK_MAPPING)),
    (&system::LEAK_OBJECT, || leaks(&system::LEAK_OBJECT)),
];

fn leaks(rule: &Rule) {
    let rig = Rig::bare();
    rig.memory();
    rig.view(0, MEMORY).unwrap();
    rig.sys.leaks().into_iter().for_each(|leak| rig.sys.note_leak(leak));
    assert!(rig.broken().contains(&rule.name), "{:?}", rig.broken());
}

fn all() -> impl Iterator<Item = &'static Breaker> {
    [
        CONTROL_AND_LIFE,
        MEMORY_RULES,
        RUN_RULES,
        REGISTER_RULES,
        CPUID_RULES,
        DEVICE_RULES,
        ELSEWHERE,
        SYSTEM,
        SYSTEM_ELSEWHERE,
    ]
    .into_iter()
    .flatten()
}

#[test]
fn every_rule_is_noticed_under_its_name_when_it_is_broken() {
    for rule in rules::ALL.iter().chain(system::ALL) {
        let breakers: Vec<_> = all().filter(|(breaks, _)| breaks.name == rule.name).collect();
        assert_eq!(breakers.len(), 1, "one test breaks {}", rule.name);
        println!("{}", rule.name);
        breakers[0].1();
    }
}
