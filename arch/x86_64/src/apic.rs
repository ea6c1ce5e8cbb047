//! The local APIC as a reset leaves it.

use crate::layout::LAPIC;

/// IA32_APIC_BASE after reset: enabled at the architectural address, with the BSP flag on the boot processor (Intel SDM
/// vol. 3 §11.4.4).
#[must_use]
pub const fn base_after_reset(boot: bool) -> u64 {
    LAPIC | 1 << 11 | (boot as u64) << 8
}

/// Where a local APIC has entries of its local vector table (Intel SDM vol. 3 table 11-1).
pub const LOCAL_VECTORS: [usize; 6] = [0x320, 0x330, 0x340, 0x350, 0x360, 0x370];

/// The entry for corrected machine checks, which younger local APICs have besides (Intel SDM vol. 3 §11.5.1).
pub const LOCAL_VECTOR_CMCI: usize = 0x2f0;

/// The page of registers of local APIC `id` after reset (Intel SDM vol. 3 §11.4.7.1): software-disabled, every local vector
/// masked, but LINT0 of the boot processor passes the PIC through, as firmware leaves it. `cmci` says whether this APIC has
/// the entry of [`LOCAL_VECTOR_CMCI`].
#[must_use]
pub fn registers_after_reset(id: u8, boot: bool, cmci: bool) -> [u8; 1024] {
    const LINT0: usize = 0x350;
    const MASKED: u32 = 1 << 16;
    const EXTINT: u32 = 7 << 8;
    let mut registers = [0; 1024];
    let mut set = |offset: usize, value: u32| registers[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
    set(0x20, u32::from(id) << 24);
    set(0x30, 0x0005_0014);
    set(0xe0, u32::MAX);
    set(0xf0, 0xff);
    for local_vector in LOCAL_VECTORS.into_iter().chain(cmci.then_some(LOCAL_VECTOR_CMCI)) {
        set(local_vector, MASKED);
    }
    if boot {
        set(LINT0, EXTINT);
    }
    registers
}

#[cfg(test)]
mod tests {
    use super::*;

    fn register(registers: &[u8; 1024], offset: usize) -> u32 {
        u32::from_le_bytes(std::array::from_fn(|byte| registers[offset + byte]))
    }

    #[test]
    fn a_secondary_cpu_masks_lint0_and_the_boot_cpu_passes_the_pic() {
        assert_eq!(register(&registers_after_reset(0, true, false), 0x350), 0x700);
        assert_eq!(register(&registers_after_reset(3, false, false), 0x350), 0x1_0000);
        assert_eq!(register(&registers_after_reset(3, false, false), 0x20), 3 << 24);
    }

    #[test]
    fn only_an_apic_that_has_the_entry_for_corrected_machine_checks_masks_it() {
        assert_eq!(register(&registers_after_reset(0, true, true), LOCAL_VECTOR_CMCI), 0x1_0000);
        assert_eq!(register(&registers_after_reset(0, true, false), LOCAL_VECTOR_CMCI), 0);
    }

    #[test]
    fn only_the_boot_cpu_has_the_bsp_flag() {
        assert_eq!(base_after_reset(true), 0xfee0_0900);
        assert_eq!(base_after_reset(false), 0xfee0_0800);
    }
}
