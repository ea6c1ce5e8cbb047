//! Model-specific registers: the few a vCPU must start with, and what to answer for those nobody emulates.

/// One register and its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Msr {
    /// Register number (ECX of RDMSR).
    pub index: u32,
    /// Value (EDX:EAX).
    pub value: u64,
}

/// Whose CPU the guest sees; decides what an unknown register means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vendor {
    /// GenuineIntel.
    Intel,
    /// AuthenticAMD and HygonGenuine.
    Amd,
    /// Anything else: no vendor registers are answered.
    Other,
}

/// IA32_MISC_ENABLE (Intel SDM vol. 4, table 2-2).
pub const IA32_MISC_ENABLE: u32 = 0x1a0;
/// IA32_MTRR_DEF_TYPE (Intel SDM vol. 3 §12.11.2.1).
pub const IA32_MTRR_DEF_TYPE: u32 = 0x2ff;

const MISC_ENABLE_FAST_STRING: u64 = 1;
const MTRR_ENABLE: u64 = 1 << 11;
const MTRR_WRITE_BACK: u64 = 6;

/// Registers to set on **every** vCPU before its first entry when no firmware runs.
///
/// A PC's firmware enables the MTRRs with write-back as the default; without it Linux maps all memory uncached or
/// complains that the CPUs disagree, hence also on the secondary CPUs. Fast strings are on as after firmware.
pub fn boot_msrs() -> [Msr; 2] {
    [
        Msr { index: IA32_MISC_ENABLE, value: MISC_ENABLE_FAST_STRING },
        Msr { index: IA32_MTRR_DEF_TYPE, value: MTRR_ENABLE | MTRR_WRITE_BACK },
    ]
}

/// What to do with a write to a register nobody emulates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MsrVerdict {
    /// The write succeeds and changes nothing.
    Ignore,
    /// The guest gets #GP, as on a CPU without the register.
    Fault,
}

/// Answer for reading a register that neither the kernel nor a device emulates; `None` means #GP.
///
/// The list is what Linux and other stock guests read at boot on bhyve (propolis issue 448, bhyve `xmsr.c`). Everything
/// else faults, which guests expect of an absent register and probe for; a blanket zero would make them believe in
/// hardware that is not there.
pub fn unknown_rdmsr(index: u32, vendor: Vendor) -> Option<u64> {
    match vendor {
        Vendor::Intel => match index {
            // Platform id, microcode revision, SMI count, MSR_OFFCORE_RSP-era controls, feature enables, LBR select.
            0x17 | 0x8b | 0x34 | 0x4e | 0x140 | 0x17f => Some(0),
            // IA32_FEATURE_CONTROL: locked, nothing enabled.
            0x3a => Some(1),
            // RAPL units as a real CPU reports them; the energy counters stand still.
            0x606 => Some(0xa_1003),
            0x611 | 0x619 | 0x639 | 0x641 => Some(0),
            _ => None,
        },
        Vendor::Amd => match index {
            0x8b => Some(0),
            // HWCR: TscFreqSel (24), the TSC runs at the P0 frequency; INVDWBINVD (4); MonMwaitDis (9), MONITOR is off.
            0xc001_0015 => Some(0x0100_0010 | 1 << 9),
            // Legacy performance counters, NB_CFG, LS_CFG, IC_CFG, P-states, SMM base and mask.
            0xc001_0000..=0xc001_0007
            | 0xc001_001f
            | 0xc001_1020
            | 0xc001_1021
            | 0xc001_0061..=0xc001_0064
            | 0xc001_0112
            | 0xc001_0113 => Some(0),
            // VM_CR: SVM disabled.
            0xc001_0114 => Some(1 << 4),
            // DE_CFG.
            0xc001_1029 => Some(1),
            _ => None,
        },
        Vendor::Other => None,
    }
}

/// What happens on writing `value` to a register that neither the kernel nor a device emulates. `_value` is part of the
/// contract so that later rules can refuse reserved bits.
pub fn unknown_wrmsr(index: u32, _value: u64, vendor: Vendor) -> MsrVerdict {
    let ignored = match vendor {
        // Microcode update trigger and revision, feature control, and the readable ones Linux writes back.
        Vendor::Intel => matches!(index, 0x79 | 0x8b | 0x34 | 0x140 | 0x17f),
        Vendor::Amd => {
            matches!(
                index,
                0x8b | 0xc001_0000
                    ..=0xc001_0007 | 0xc001_0015 | 0xc001_001f | 0xc001_1020 | 0xc001_1021 | 0xc001_1029 | 0xc001_0114
            )
        }
        Vendor::Other => false,
    };
    if ignored { MsrVerdict::Ignore } else { MsrVerdict::Fault }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_register_of_the_other_vendor_faults() {
        assert_eq!(unknown_rdmsr(0xc001_0015, Vendor::Intel), None);
        assert_eq!(unknown_rdmsr(0x606, Vendor::Amd), None);
        assert_eq!(unknown_wrmsr(0x79, 0, Vendor::Amd), MsrVerdict::Fault);
    }

    #[test]
    fn what_linux_reads_at_boot_is_answered() {
        assert_eq!(unknown_rdmsr(0x3a, Vendor::Intel), Some(1), "VMX must be locked off");
        assert_eq!(unknown_rdmsr(0xc001_0114, Vendor::Amd), Some(0x10), "SVM must be disabled");
        assert_eq!(unknown_rdmsr(0xc001_0015, Vendor::Amd), Some(0x0100_0210));
    }

    #[test]
    fn memory_is_write_back_by_default_and_the_mtrrs_are_on() {
        let def_type = boot_msrs().iter().find(|msr| msr.index == IA32_MTRR_DEF_TYPE).unwrap().value;
        assert_eq!(def_type & 0xff, 6);
        assert_ne!(def_type & (1 << 11), 0);
    }
}
