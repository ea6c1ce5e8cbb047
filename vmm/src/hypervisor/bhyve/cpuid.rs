//! CPUID: what the kernel offers for guests, and the table each vCPU gets.

use arch::cpu::CpuidEntry;
use arch::msr::Vendor;

use super::abi;
use super::error::CallResult;
use super::vmfd::VmFd;

/// More sub-leaves than any leaf has: a bound for lists that end by what they say.
const MAX_SUB_LEAVES: u32 = 64;

/// More leaves than any processor has, in either range.
const MAX_LEAVES: u32 = 0x100;

const EXTENDED: u32 = 0x8000_0000;

/// Reads what the kernel would answer by itself: the host's leaves without what it cannot virtualize. The machine's own
/// table is made from this.
///
/// The host's own CPUID instruction would not do: it also tells what the kernel does not virtualize, and on a double of
/// the kernel it is another kernel's.
///
/// # Errors
/// What the call says.
pub fn offered(fd: &VmFd) -> CallResult<Vec<CpuidEntry>> {
    let ask = |leaf, sub_leaf| fd.legacy_cpuid(0, leaf, sub_leaf);
    let mut entries = Vec::new();
    for first in [0, EXTENDED] {
        let [last, ..] = ask(first, 0)?;
        // A processor without the range answers something else.
        if last < first || last - first > MAX_LEAVES {
            continue;
        }
        for function in first..=last {
            let Some(ends) = sub_leaves(function) else {
                entries.push(entry(function, None, ask(function, 0)?));
                continue;
            };
            let first = ask(function, 0)?;
            entries.push(entry(function, Some(0), first));
            for index in 1..MAX_SUB_LEAVES {
                if ends.before(index, first) {
                    break;
                }
                if !ends.has(index, first) {
                    continue;
                }
                let registers = ask(function, index)?;
                if ends.with(registers) {
                    break;
                }
                entries.push(entry(function, Some(index), registers));
            }
        }
    }
    Ok(entries)
}

/// How the sub-leaves of a leaf end (Intel SDM vol. 2A, CPUID; AMD APM vol. 3, appendix E).
#[derive(Clone, Copy)]
enum End {
    /// EAX of sub-leaf 0 is the last one's number.
    Count,
    /// With a cache of type 0.
    Cache,
    /// With a topology level of type 0.
    Level,
    /// Sub-leaf 1, and one for every bit of EDX:EAX of sub-leaf 0, the state components.
    Components,
    /// With this number.
    At(u32),
}

impl End {
    /// Whether sub-leaf `index` and all behind it do not exist, by what sub-leaf 0 says.
    fn before(self, index: u32, [eax, _, ecx, _]: [u32; 4]) -> bool {
        match self {
            Self::Count => index > eax,
            Self::Cache => eax & 0x1f == 0,
            Self::Level => ecx & 0xff00 == 0,
            Self::Components => false,
            Self::At(end) => index >= end,
        }
    }

    /// Whether sub-leaf `index` exists, by what sub-leaf 0 says.
    fn has(self, index: u32, [eax, _, _, edx]: [u32; 4]) -> bool {
        match self {
            Self::Components => index == 1 || (u64::from(edx) << 32 | u64::from(eax)) >> index & 1 != 0,
            _ => true,
        }
    }

    /// Whether a sub-leaf says of itself that it is none.
    fn with(self, [eax, _, ecx, _]: [u32; 4]) -> bool {
        match self {
            Self::Cache => eax & 0x1f == 0,
            Self::Level => ecx & 0xff00 == 0,
            Self::Count | Self::Components | Self::At(_) => false,
        }
    }
}

fn sub_leaves(function: u32) -> Option<End> {
    match function {
        4 | 0x8000_001d => Some(End::Cache),
        7 | 0x14 => Some(End::Count),
        0xb | 0x1f | 0x8000_0026 => Some(End::Level),
        0xd => Some(End::Components),
        0xf | 0x10 | 0x8000_0020 => Some(End::At(4)),
        _ => None,
    }
}

fn entry(function: u32, index: Option<u32>, [eax, ebx, ecx, edx]: [u32; 4]) -> CpuidEntry {
    CpuidEntry { function, index: index.unwrap_or(0), index_significant: index.is_some(), eax, ebx, ecx, edx }
}

/// Gives a vCPU its table, which replaces the kernel's own whole: a leaf that is not in it reads as zero.
///
/// # Errors
/// What the call says.
pub fn install(fd: &VmFd, vcpu: i32, table: &[CpuidEntry]) -> CallResult<()> {
    let mut entries: Vec<abi::vcpu_cpuid_entry> = table.iter().map(to_kernel).collect();
    // The kernel refuses a table that is not in this order.
    entries.sort_by_key(|entry| (entry.vce_function, entry.vce_index));
    let flags = match arch::cpu::vendor(table) {
        // A leaf beyond the last answers like the last, as Intel's processors do.
        Vendor::Intel => abi::VCC_FLAG_INTEL_FALLBACK,
        Vendor::Amd | Vendor::Other => 0,
    };
    fd.set_cpuid(vcpu, flags, &mut entries)
}

fn to_kernel(entry: &CpuidEntry) -> abi::vcpu_cpuid_entry {
    abi::vcpu_cpuid_entry {
        vce_function: entry.function,
        vce_index: if entry.index_significant { entry.index } else { 0 },
        vce_flags: if entry.index_significant { abi::VCE_FLAG_MATCH_INDEX } else { 0 },
        vce_eax: entry.eax,
        vce_ebx: entry.ebx,
        vce_ecx: entry.ecx,
        vce_edx: entry.edx,
        _pad: 0,
    }
}
