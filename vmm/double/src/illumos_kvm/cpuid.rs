//! The driver's view of CPUID: what it offers, and what it may be given.

use zvmm::hypervisor::illumos_kvm::abi::{KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use zvmm::hypervisor::illumos_kvm::plain::{Plain, bytes_of, from_bytes};

use super::linux::{Fd, GET_SUPPORTED_CPUID};
use super::rules;
use crate::node::Call;

/// Features of leaf 1 the driver passes on: ECX and EDX.
const LEAF_1: (u32, u32) = (0x02f8_2201, 0x0f8b_fbff);
/// Features of leaf 0x80000001 the driver passes on.
const EXTENDED_1: (u32, u32) = (0x0000_09f7, 0xebd3_fbff);
/// Features of leaf 1 that no guest of this driver may be promised: MONITOR, VMX, PCID, TSC deadline, XSAVE, OSXSAVE, AVX.
const NEVER: u32 = 1 << 3 | 1 << 5 | 1 << 17 | 1 << 24 | 1 << 26 | 1 << 27 | 1 << 28;
const X2APIC: u32 = 1 << 21;
const EXTENDED: u32 = 0x8000_0000;
const HYPERVISOR: u32 = 0x4000_0000;

fn entries<T: Plain>(bytes: &[u8]) -> Vec<T> {
    bytes.chunks_exact(size_of::<T>()).filter_map(from_bytes).collect()
}

/// What KVM_GET_SUPPORTED_CPUID gives: this machine's leaves, as far as the driver knows leaves, one entry after another.
/// The driver goes to leaf 0x8000001a; the machine's tables beyond 0x80000008 are AMD's, whose processors it does not
/// run on.
pub fn supported(system: &Fd) -> Vec<u8> {
    const MOST: usize = 256;
    let mut buffer = vec![0_u8; 8 + MOST * size_of::<kvm_cpuid_entry2>()];
    buffer[..4].copy_from_slice(&(MOST as u32).to_ne_bytes());
    // SAFETY: the buffer has the header and as many entries as the header says.
    if unsafe { system.bytes(GET_SUPPORTED_CPUID, &mut buffer) }.is_err() {
        return Vec::new();
    }
    let count = u32::from_ne_bytes([buffer[0], buffer[1], buffer[2], buffer[3]]) as usize;
    let offered = entries::<kvm_cpuid_entry2>(&buffer[8..8 + count * size_of::<kvm_cpuid_entry2>()]);
    let mut kept = Vec::new();
    for mut entry in offered {
        match entry.function {
            0 => entry.eax = entry.eax.min(0xb),
            1 => {
                entry.ecx = entry.ecx & LEAF_1.0 | X2APIC;
                entry.edx &= LEAF_1.1;
            }
            0x8000_0001 => {
                entry.ecx &= EXTENDED_1.0;
                entry.edx &= EXTENDED_1.1;
            }
            EXTENDED => entry.eax = entry.eax.min(EXTENDED + 8),
            2..=0xb => {}
            function if function > EXTENDED && function <= EXTENDED + 8 => {}
            _ => continue,
        }
        kept.extend_from_slice(bytes_of(&entry));
    }
    kept
}

/// KVM_SET_CPUID2: `table` has as many entries as its count says.
pub fn check(call: &Call<'_>, table: &[u8]) {
    let table: Vec<kvm_cpuid_entry2> = entries(table);
    let answers = |function: u32| table.iter().filter(move |entry| entry.function == function);
    if answers(7).any(|entry| entry.eax | entry.ebx | entry.ecx | entry.edx != 0) {
        call.note(&rules::CPUID_LEAF_7, "structured features are set");
    }
    if let Some(promised) = answers(1).map(|entry| entry.ecx & NEVER).find(|&ecx| ecx != 0) {
        call.note(&rules::CPUID_NOT_OFFERED, format!("leaf 1 ECX has {promised:#x}"));
    }
    for (start, end) in [(0, HYPERVISOR), (EXTENDED, u32::MAX)] {
        let Some(highest) = answers(start).next().map(|entry| entry.eax) else { continue };
        for function in (start..=highest.min(start + 0x40)).filter(|&function| function < end) {
            // An entry that answers for any sub-leaf.
            if !answers(function).any(|entry| entry.flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX == 0) {
                call.note(&rules::CPUID_GAPS, format!("leaf {function:#x}"));
            }
        }
    }
}

/// Most entries of a table.
pub const MOST: usize = KVM_MAX_CPUID_ENTRIES;
