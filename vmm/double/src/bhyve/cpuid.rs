//! CPUID: the kernel's own answers, and explicit tables (reference section 2.8).

use devices_host::sys::{Errno, SysResult};
use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};
use zvmm::hypervisor::bhyve::abi::*;

use super::machine::Machine;
use super::rules;
use crate::node::Call;

/// What bhyve's kernel has not, so that CPUID must not promise it: leaf, register (0 EAX … 3 EDX), bit, name.
const IMPOSSIBLE: [(u32, usize, u32, &str); 6] = [
    (1, 2, 3, "MONITOR"),
    (1, 2, 5, "VMX"),
    (1, 2, 24, "TSC deadline timer"),
    (0x8000_0001, 2, 2, "SVM"),
    (0x4000_0001, 0, 0, "kvmclock"),
    (0x4000_0001, 0, 3, "kvmclock"),
];

const X2APIC: u32 = 1 << 21;

/// What a vCPU's CPUID comes from.
#[derive(Clone, Debug, Default)]
pub enum Table {
    /// The kernel's own.
    #[default]
    Legacy,
    /// These entries, and zeros for all others.
    Explicit {
        /// `VCC_FLAG_INTEL_FALLBACK`.
        fallback: bool,
        /// The entries.
        entries: Vec<vcpu_cpuid_entry>,
    },
}

fn registers(entry: &vcpu_cpuid_entry) -> [u32; 4] {
    [entry.vce_eax, entry.vce_ebx, entry.vce_ecx, entry.vce_edx]
}

/// Checks an explicit table: what the kernel refuses, and what a guest would stumble over.
///
/// # Errors
/// EINVAL, EFBIG.
pub fn check(
    call: &Call<'_>,
    config: &vm_vcpu_cpuid_config,
    entries: impl FnOnce(usize) -> SysResult<Vec<vcpu_cpuid_entry>>,
) -> SysResult<Table> {
    let (flags, count) = (config.vvcc_flags, config.vvcc_nent as usize);
    if flags & !(VCC_FLAG_LEGACY_HANDLING | VCC_FLAG_INTEL_FALLBACK) != 0 {
        return Err(call.refuse(&rules::CPUID_FLAGS, Errno::EINVAL, format!("{flags:#x}")));
    }
    if flags & VCC_FLAG_LEGACY_HANDLING != 0 {
        if count != 0 {
            return Err(call.refuse(&rules::CPUID_LEGACY_EMPTY, Errno::EINVAL, format!("{count} entries")));
        }
        return Ok(Table::Legacy);
    }
    if count > VMM_MAX_CPUID_ENTRIES {
        return Err(call.refuse(&rules::CPUID_COUNT, Errno::EFBIG, format!("{count} entries")));
    }
    let entries = entries(count)?;
    let id = config.vvcc_vcpuid as u32;
    let key = |entry: &vcpu_cpuid_entry| (entry.vce_function, entry.vce_index);
    for pair in entries.windows(2) {
        if key(&pair[0]) >= key(&pair[1]) {
            let detail = format!("{:x?} before {:x?}", key(&pair[0]), key(&pair[1]));
            return Err(call.refuse(&rules::CPUID_ORDER, Errno::EINVAL, detail));
        }
    }
    if let Some(entry) = entries.iter().find(|entry| entry.vce_flags & !VCE_FLAG_MATCH_INDEX != 0) {
        let detail = format!("entry {:#x} has flags {:#x}", entry.vce_function, entry.vce_flags);
        return Err(call.refuse(&rules::CPUID_FLAGS, Errno::EINVAL, detail));
    }
    for leaf in [0, 1, 0x8000_0000] {
        if !entries.iter().any(|entry| entry.vce_function == leaf) {
            call.note(&rules::CPUID_WHOLE, format!("vCPU {id}: no leaf {leaf:#x}"));
        }
    }
    for entry in &entries {
        promises(call, entry);
        if let Some(told) = apic_id(entry)
            && told != id
        {
            call.note(&rules::CPUID_APIC_ID, format!("vCPU {id}: leaf {:#x} says {told}", entry.vce_function));
        }
    }
    Ok(Table::Explicit { fallback: flags & VCC_FLAG_INTEL_FALLBACK != 0, entries })
}

fn promises(call: &Call<'_>, entry: &vcpu_cpuid_entry) {
    for (leaf, register, bit, name) in IMPOSSIBLE {
        if entry.vce_function == leaf && registers(entry)[register] & 1 << bit != 0 {
            call.note(&rules::CPUID_IMPOSSIBLE, format!("{name} in leaf {leaf:#x}"));
        }
    }
}

fn apic_id(entry: &vcpu_cpuid_entry) -> Option<u32> {
    match entry.vce_function {
        1 => Some(entry.vce_ebx >> 24),
        0xb | 0x1f => Some(entry.vce_edx),
        // Zero where the leaf is not offered.
        0x8000_001e if registers(entry) != [0; 4] => Some(entry.vce_eax),
        _ => None,
    }
}

impl Table {
    /// What KVM gets. Checks what can only be checked when the guest is entered.
    pub fn for_kvm(
        &self,
        call: &Call<'_>,
        machine: &Machine,
        id: i32,
        x2apic: bool,
        topology: &vm_cpu_topology,
    ) -> CpuId {
        let entries: Vec<kvm_cpuid_entry2> = match self {
            Self::Legacy => legacy(machine, id, x2apic, topology),
            Self::Explicit { entries, .. } => {
                let promised = entries.iter().any(|entry| entry.vce_function == 1 && entry.vce_ecx & X2APIC != 0);
                if promised != x2apic {
                    let detail = format!("vCPU {id}: CPUID says {promised}, the state {x2apic}");
                    call.note(&rules::CPUID_X2APIC, detail);
                }
                entries.iter().map(to_kvm).collect()
            }
        };
        CpuId::from_entries(&entries).unwrap_or_else(|_| unreachable!("at most 256 entries"))
    }
}

fn to_kvm(entry: &vcpu_cpuid_entry) -> kvm_cpuid_entry2 {
    let by_index = entry.vce_flags & VCE_FLAG_MATCH_INDEX != 0;
    kvm_cpuid_entry2 {
        function: entry.vce_function,
        index: entry.vce_index,
        flags: if by_index { KVM_CPUID_FLAG_SIGNIFCANT_INDEX } else { 0 },
        eax: entry.vce_eax,
        ebx: entry.vce_ebx,
        ecx: entry.vce_ecx,
        edx: entry.vce_edx,
        ..Default::default()
    }
}

/// The kernel's own answers for a vCPU: the host's, filtered.
pub fn legacy(machine: &Machine, id: i32, x2apic: bool, topology: &vm_cpu_topology) -> Vec<kvm_cpuid_entry2> {
    let id = id as u32;
    let threads = u32::from(topology.threads).max(1);
    let cpus = threads * u32::from(topology.cores).max(1);
    let shift = |count: u32| count.next_power_of_two().trailing_zeros();
    let mut entries = Vec::new();
    for entry in &machine.supported {
        let mut entry = *entry;
        match entry.function {
            1 => {
                entry.ebx = entry.ebx & 0xffff | cpus.min(255) << 16 | id << 24;
                // No MONITOR, debug store, VMX, thermal control, PDCM, TSC deadline.
                entry.ecx &= !(1 << 2 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 7 | 1 << 8 | 1 << 15 | X2APIC | 1 << 24);
                entry.ecx |= 1 << 31 | if x2apic { X2APIC } else { 0 };
                entry.edx = if cpus > 1 { entry.edx | 1 << 28 } else { entry.edx & !(1 << 28) };
            }
            4 => entry.eax = entry.eax & 0x3ff | (cpus - 1).min(63) << 26 | (threads - 1) << 14,
            7 => {
                let known = entry.index == 0;
                let of = |list: &[u32]| list.iter().fold(0, |mask, bit| mask | u32::from(known) << bit);
                entry.eax = 0;
                // FSGSBASE, BMI1, HLE, AVX2, SMEP, BMI2, ERMS, RTM, AVX512F and DQ, RDSEED, SMAP, AVX512PF, ER and CD, SHA,
                // AVX512BW and VL; VAES, VPCLMULQDQ; MD_CLEAR. Nothing whose MSRs the kernel does not have.
                entry.ebx &= of(&[0, 3, 4, 5, 7, 8, 9, 11, 16, 17, 18, 20, 26, 27, 28, 29, 30, 31]);
                entry.ecx &= of(&[9, 10]);
                entry.edx &= of(&[10]);
            }
            6 => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (1 << 2, 0, 0, 0),
            0xa | 0x15 | 0x1f => continue,
            0xb => {
                let (bits, count, kind) = match entry.index {
                    0 => (shift(threads), threads, 1),
                    1 => (shift(threads) + shift(cpus / threads), cpus, 2),
                    _ => (0, 0, 0),
                };
                (entry.eax, entry.ebx, entry.ecx, entry.edx) = (bits, count, entry.index | kind << 8, id);
            }
            0xd if entry.index == 1 => entry.eax &= 1,
            0x4000_0000 => {
                // "bhyve bhyve ", and no leaf behind it.
                (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0x4000_0000, 0x7679_6862, 0x6862_2065, 0x2065_7679);
            }
            0x4000_0001..=0x4000_ffff => continue,
            0x8000_0001 => entry.ecx &= !(1 << 2),
            0x8000_001e => entry.eax = id,
            _ => {}
        }
        entries.push(entry);
    }
    entries
}

/// VM_LEGACY_CPUID: what the kernel's own table answers.
pub fn ask(entries: &[kvm_cpuid_entry2], arg: &mut vm_legacy_cpuid) {
    let (leaf, index) = (arg.vlc_eax, arg.vlc_ecx);
    let top = entries.iter().filter(|entry| entry.function < 0x4000_0000).map(|entry| entry.function).max();
    let extended_top = entries.iter().map(|entry| entry.function).max();
    let beyond = (leaf < 0x4000_0000 && Some(leaf) > top) || (leaf >= 0x8000_0000 && Some(leaf) > extended_top);
    let leaf = if beyond { top.unwrap_or(0) } else { leaf };
    let answer = entries.iter().find(|entry| {
        entry.function == leaf && (entry.flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX == 0 || entry.index == index)
    });
    let none = kvm_cpuid_entry2::default();
    let answer = answer.unwrap_or(&none);
    (arg.vlc_eax, arg.vlc_ebx, arg.vlc_ecx, arg.vlc_edx) = (answer.eax, answer.ebx, answer.ecx, answer.edx);
}
