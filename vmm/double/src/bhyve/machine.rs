//! The KVM virtual machine behind a VM.

use std::sync::{Mutex, PoisonError};

use devices_host::sys::{Errno, SysResult};
use kvm_bindings::{
    KVM_CAP_X86_APIC_BUS_CYCLES_NS, KVM_CAP_X86_USER_SPACE_MSR, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE, KVM_MAX_CPUID_ENTRIES, KVM_MSR_EXIT_REASON_FILTER, KVM_MSR_EXIT_REASON_INVAL,
    KVM_MSR_EXIT_REASON_UNKNOWN, KVM_PIT_SPEAKER_DUMMY, kvm_cpuid_entry2, kvm_enable_cap, kvm_irqchip, kvm_pit_config,
    kvm_pit_state2,
};
use kvm_ioctls::{Cap, Kvm, MsrFilterDefaultAction, MsrFilterRange, MsrFilterRangeFlags, VcpuFd, VmFd};
use zvmm::hypervisor::bhyve::abi::IOAPIC_BASE;

use super::irq::routes;

/// Where KVM puts pages of its own on Intel processors: below the 16 MiB that a ROM may take.
const IDENTITY_MAP: u64 = 0xfeff_c000;
const TASK_STATE: usize = 0xfeff_d000;

/// The local APIC timer of bhyve runs at 2^27 Hz, 7.45 ns a tick; KVM takes whole nanoseconds.
const APIC_TICK_NS: u64 = 8;

/// MSRs that bhyve's kernel answers itself (reference sections 2.5 and 2.13) as KVM does: first and count. All others
/// are exits, or answered as `super::msr` says.
const KERNEL_MSRS: [(u32, u32); 9] = [
    (0x10, 1),        // TSC
    (0x1b, 1),        // APIC base
    (0xfe, 1),        // MTRR capabilities
    (0x174, 3),       // SYSENTER
    (0x200, 20),      // ten variable MTRRs
    (0x250, 0x30),    // fixed MTRRs and PAT
    (0x2ff, 1),       // MTRR default type
    (0xc000_0080, 5), // EFER, STAR, LSTAR, CSTAR, SFMASK
    (0xc000_0100, 4), // FS, GS and kernel GS base, TSC_AUX
];

/// A VM of KVM, and what it can do.
pub struct Machine {
    /// The VM.
    pub vm: VmFd,
    /// CPUID leaves that KVM supports.
    pub supported: Vec<kvm_cpuid_entry2>,
    /// Whether interrupt controllers exist: they need memory first to be cheap, and must come before vCPUs.
    chips: Mutex<bool>,
}

impl Machine {
    /// # Errors
    /// ENXIO where there is no KVM: the VM cannot be had, as when another hypervisor holds the processor.
    pub fn new() -> SysResult<Self> {
        let kvm = Kvm::new().map_err(|_| Errno::ENXIO)?;
        let vm = kvm.create_vm().map_err(|_| Errno::ENXIO)?;
        let supported = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(|_| Errno::ENXIO)?;
        let _ = vm.set_identity_map_address(IDENTITY_MAP);
        let _ = vm.set_tss_address(TASK_STATE);
        let reasons = KVM_MSR_EXIT_REASON_INVAL | KVM_MSR_EXIT_REASON_UNKNOWN | KVM_MSR_EXIT_REASON_FILTER;
        let mut cap = kvm_enable_cap { cap: KVM_CAP_X86_USER_SPACE_MSR, ..Default::default() };
        cap.args[0] = reasons.into();
        vm.enable_cap(&cap).map_err(|_| Errno::ENXIO)?;
        if vm.check_extension(Cap::X86MsrFilter) {
            let all = [0xff_u8; 8];
            let ranges = KERNEL_MSRS.map(|(base, msr_count)| MsrFilterRange {
                flags: MsrFilterRangeFlags::READ | MsrFilterRangeFlags::WRITE,
                base,
                msr_count,
                bitmap: &all,
            });
            vm.set_msr_filter(MsrFilterDefaultAction::DENY, &ranges).map_err(|_| Errno::ENXIO)?;
        }
        Ok(Self { vm, supported: supported.as_slice().to_vec(), chips: Mutex::new(false) })
    }

    /// Sees to it that there are interrupt controllers.
    ///
    /// # Errors
    /// ENXIO where KVM has none.
    pub fn chips(&self) -> SysResult<()> {
        let mut chips = self.chips.lock().unwrap_or_else(PoisonError::into_inner);
        if *chips {
            return Ok(());
        }
        self.vm.create_irq_chip().map_err(|_| Errno::ENXIO)?;
        let config = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
        self.vm.create_pit2(config).map_err(|_| Errno::ENXIO)?;
        self.vm.set_gsi_routing(&routes()).map_err(|_| Errno::ENXIO)?;
        let mut cap = kvm_enable_cap { cap: KVM_CAP_X86_APIC_BUS_CYCLES_NS, ..Default::default() };
        cap.args[0] = APIC_TICK_NS;
        // Kernels before 6.11 keep their 1 GHz.
        let _ = self.vm.enable_cap(&cap);
        *chips = true;
        Ok(())
    }

    /// What VM_REINIT does to the interrupt controllers and the timer chip.
    ///
    /// # Errors
    /// EIO where KVM refuses.
    pub fn reset_chips(&self) -> SysResult<()> {
        self.chips()?;
        for chip_id in [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_IRQCHIP_IOAPIC] {
            let mut chip = kvm_irqchip { chip_id, ..Default::default() };
            match chip_id {
                KVM_IRQCHIP_IOAPIC => {
                    chip.chip.ioapic.base_address = IOAPIC_BASE;
                    // SAFETY: the chip id says that this is the union's member.
                    for entry in unsafe { &mut chip.chip.ioapic.redirtbl } {
                        entry.bits = 1 << 16;
                    }
                }
                KVM_IRQCHIP_PIC_MASTER => chip.chip.pic.elcr_mask = 0xf8,
                _ => chip.chip.pic.elcr_mask = 0xde,
            }
            self.vm.set_irqchip(&chip).map_err(|_| Errno::EIO)?;
        }
        // No flags: here bit 0 is KVM_PIT_FLAGS_HPET_LEGACY, with which channel 0 raises no interrupt.
        let mut pit = kvm_pit_state2::default();
        for (index, channel) in pit.channels.iter_mut().enumerate() {
            channel.count = 0x10000;
            channel.mode = 0xff;
            channel.gate = u8::from(index != 2);
        }
        self.vm.set_pit2(&pit).map_err(|_| Errno::EIO)
    }

    /// Creates a vCPU.
    ///
    /// # Errors
    /// ENOMEM where KVM refuses.
    pub fn vcpu(&self, id: i32) -> SysResult<VcpuFd> {
        self.chips()?;
        self.vm.create_vcpu(id as u64).map_err(|_| Errno::ENOMEM)
    }
}
