//! Model-specific registers that bhyve's kernel answers by itself, where KVM would answer otherwise or not at all.
//!
//! No machine-check banks on any processor; on AMD's also what the kernel's SVM part knows (illumos-gate
//! `usr/src/uts/intel/io/vmm/amd/svm_msr.c`). Writes to them are ignored.

use super::machine::Machine;

const MCG_CAP: u32 = 0x179;
const MCG_STATUS: u32 = 0x17a;
const AMD_UCODE_UPDATE: u32 = 0xc001_0020;
const AMD_SYSCFG: u32 = 0xc001_0010;
const AMD_INTERRUPT_PENDING: u32 = 0xc001_0055;
const AMD_EXTENDED_FEATURES: u32 = 0xc001_1005;
const AMD_DE_CFG: u32 = 0xc001_1029;
/// LFENCE serializes.
const DE_CFG_LFENCE: u64 = 1 << 1;

/// "Auth", the beginning of AMD's name in CPUID leaf 0.
const AUTH: u32 = u32::from_le_bytes(*b"Auth");

/// What reading the register gives; `None` where the exit goes to the process.
pub fn kernel_read(machine: &Machine, code: u32) -> Option<u64> {
    match code {
        MCG_CAP | MCG_STATUS => Some(0),
        AMD_SYSCFG | AMD_INTERRUPT_PENDING | AMD_EXTENDED_FEATURES if is_amd(machine) => Some(0),
        AMD_DE_CFG if is_amd(machine) => Some(DE_CFG_LFENCE),
        _ => None,
    }
}

/// Whether the kernel swallows a write to the register.
pub fn kernel_ignores_write(machine: &Machine, code: u32) -> bool {
    kernel_read(machine, code).is_some() || code == AMD_UCODE_UPDATE && is_amd(machine)
}

fn is_amd(machine: &Machine) -> bool {
    machine.supported.iter().any(|leaf| leaf.function == 0 && leaf.ebx == AUTH)
}
