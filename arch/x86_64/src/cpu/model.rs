//! Which CPU the guest sees: `host`, a named baseline, and flags added or taken away.

use std::fmt;
use std::str::FromStr;

use super::CpuError;
use super::features::{self, Feature, features};

/// What the flags start from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Base {
    /// All the hypervisor offers, less what [`HOST_MASKED`] lists.
    Host,
    /// The psABI level x86-64-v2.
    V2,
    /// The psABI level x86-64-v3.
    V3,
}

const BASES: &[(&str, Base)] = &[("host", Base::Host), ("x86-64-v2", Base::V2), ("x86-64-v3", Base::V3)];

/// A CPU model: parsed from `host`, `host,-avx512f,+pmu`, `x86-64-v2`, `x86-64-v3,-rdrand`.
///
/// * `host` is everything the hypervisor offers except nested virtualization (`vmx`, `svm`), the performance counters
///   (`pmu`) and the invariant TSC (`invtsc`): each of them ties a guest to its host or costs exits, so it must be asked
///   for.
/// * `x86-64-v2` and `x86-64-v3` are the levels of the System V psABI with nothing of the host beside them but its
///   caches, so that a guest can move between hosts of one vendor. A host that lacks a flag of the level is refused.
/// * `-flag` takes a flag away together with everything that needs it; `+flag` adds one the host offers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpuModel {
    pub(super) base: Base,
    pub(super) add: Vec<Feature>,
    pub(super) remove: Vec<Feature>,
    pub(super) pmu: bool,
    text: String,
}

impl CpuModel {
    /// Physical address bits the guest should be given on a host that has `host_bits`: the host's own with `host`, and at
    /// most 40 (1 TiB) with a baseline, so that the memory map and CPUID do not name the host either.
    pub fn phys_bits(&self, host_bits: u8) -> u8 {
        const BASELINE_BITS: u8 = 40;
        match self.base {
            Base::Host => host_bits,
            Base::V2 | Base::V3 => host_bits.min(BASELINE_BITS),
        }
    }
}

impl Default for CpuModel {
    fn default() -> Self {
        Self { base: Base::Host, add: Vec::new(), remove: Vec::new(), pmu: false, text: "host".to_owned() }
    }
}

impl fmt::Display for CpuModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for CpuModel {
    type Err = CpuError;

    fn from_str(text: &str) -> Result<Self, CpuError> {
        let mut parts = text.split(',').map(str::trim);
        let base_name = parts.next().unwrap_or_default();
        let wanted = base_name.to_ascii_lowercase().replace('_', "-");
        let base =
            BASES.iter().find(|(name, _)| *name == wanted).map(|(_, base)| *base).ok_or_else(|| {
                CpuError::UnknownModel { name: base_name.to_owned(), nearest: nearest_model(&wanted) }
            })?;
        let mut model = Self { base, text: text.to_owned(), ..Self::default() };
        for part in parts {
            let (add, name) = match (part.strip_prefix('+'), part.strip_prefix('-')) {
                (Some(name), _) => (true, name),
                (_, Some(name)) => (false, name),
                _ => return Err(CpuError::FlagWithoutSign(part.to_owned())),
            };
            if features::normalise(name) == features::PMU {
                model.pmu = add;
                continue;
            }
            let list = if add { &mut model.add } else { &mut model.remove };
            list.extend(features::by_name(name)?);
        }
        if let Some(feature) = model.add.iter().find(|feature| model.remove.contains(feature)) {
            return Err(CpuError::FlagBothWays(feature.name()));
        }
        Ok(model)
    }
}

fn nearest_model(name: &str) -> &'static str {
    let score = |candidate: &str| strsim::jaro_winkler(candidate, name);
    BASES.iter().map(|(base, _)| *base).max_by(|a, b| score(a).total_cmp(&score(b))).unwrap_or("host")
}

impl Base {
    pub(super) fn name(self) -> &'static str {
        BASES.iter().find(|(_, base)| *base == self).map_or("?", |(name, _)| name)
    }

    /// Flags the host must have and the guest gets; `None` for `host`.
    pub(super) fn required(self) -> Option<impl Iterator<Item = Feature>> {
        let level: &[Feature] = match self {
            Self::Host => return None,
            Self::V2 => &[],
            Self::V3 => V3,
        };
        Some(V2.iter().chain(level).copied())
    }

    /// Leaf 1 EAX: a fixed model of the vendor, so that moving a guest does not change it. `None` keeps the host's.
    pub(super) fn signature(self, vendor: crate::msr::Vendor) -> Option<u32> {
        use crate::msr::Vendor;
        match (self, vendor) {
            (Self::Host, _) | (_, Vendor::Other) => None,
            // Family 6 model 26 stepping 3 (Nehalem) and model 60 stepping 4 (Haswell).
            (Self::V2, Vendor::Intel) => Some(0x0001_06a3),
            (Self::V3, Vendor::Intel) => Some(0x0003_06c4),
            // Family 15 model 107 stepping 1, what qemu's generic models report: later families make Linux look for
            // their northbridges on absent buses (144 exits) or warn of missing microcode (SRSO).
            (_, Vendor::Amd) => Some(0x0006_0fb1),
        }
    }
}

/// x86-64-v2 of the psABI ("Micro-Architecture Levels"), its x86-64 part spelled out, with what any 64-bit kernel
/// expects of the system side.
const V2: &[Feature] = features![
    "fpu", "de", "pse", "tsc", "msr", "pae", "mce", "cx8", "apic", "sep", "mtrr", "pge", "mca", "cmov", "pat", "pse36",
    "clflush", "mmx", "fxsr", "sse", "sse2", "syscall", "nx", "lm", "cx16", "lahf_lm", "popcnt", "pni", "ssse3",
    "sse4_1", "sse4_2",
];

/// What x86-64-v3 adds.
const V3: &[Feature] = features!["avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe", "xsave"];

/// Flags that describe the virtual machine rather than the CPU: a baseline keeps them where the machine has them.
pub(super) const OF_THE_MACHINE: &[Feature] =
    features!["ht", "cmp_legacy", "topoext", "arat", "x2apic", "tsc_deadline_timer", "hypervisor"];

/// Off in `host` unless asked for.
pub(super) const HOST_MASKED: &[Feature] = features!["vmx", "svm", "invtsc"];

/// Part of the performance monitoring unit.
pub(super) const PMU_FLAGS: &[Feature] = features!["pdcm", "perfctr_core", "perfctr_nb", "perfctr_l2", "perfmon_v2"];

/// Never offered: their state or their leaves are not carried by this VMM, whatever the hypervisor says it could do.
pub(super) const NEVER: &[Feature] = features![
    "pn",
    "dts",
    "acpi",
    "tm",
    "pbe",
    "dtes64",
    "monitor",
    "ds_cpl",
    "smx",
    "est",
    "tm2",
    "xtpr",
    "dca",
    "sgx",
    "sgx_lc",
    "cqm",
    "rdt_a",
    "intel_pt",
    "tme",
    "kl",
    "enqcmd",
    "uintr",
    "hybrid_cpu",
    "pconfig",
    "arch_lbr",
    "extapic",
    "ibs",
    "skinit",
    "wdt",
    "lwp",
    "nodeid_msr",
    "ptsc",
    "mwaitx",
    "irperf",
    "amd_ppin",
    "cppc",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_parse_with_their_flags() {
        let model: CpuModel = "host,-avx512f,+pmu".parse().unwrap();
        assert_eq!(model.remove, features::by_name("avx512f").unwrap());
        assert!(model.pmu);
        assert_eq!(model.to_string(), "host,-avx512f,+pmu");
        assert_eq!("X86-64-V3".parse::<CpuModel>().unwrap().base, Base::V3);
    }

    #[test]
    fn a_baseline_has_the_same_address_width_on_every_server() {
        let bits = |model: &str, host| model.parse::<CpuModel>().unwrap().phys_bits(host);
        assert_eq!([bits("x86-64-v2", 46), bits("x86-64-v3", 52), bits("x86-64-v2", 36)], [40, 40, 36]);
        assert_eq!(bits("host,-avx", 46), 46);
    }

    #[test]
    fn wrong_models_and_flags_are_answered_with_the_nearest() {
        let message = |text: &str| text.parse::<CpuModel>().unwrap_err().to_string();
        assert_eq!(
            message("x86-64-v4"),
            "unknown CPU model 'x86-64-v4': did you mean 'x86-64-v3'? (models: host, x86-64-v2, x86-64-v3)"
        );
        assert_eq!(
            message("hots"),
            "unknown CPU model 'hots': did you mean 'host'? (models: host, x86-64-v2, x86-64-v3)"
        );
        assert_eq!(message("host,-avx512g"), "unknown CPU flag 'avx512g': did you mean 'avx512f'?");
        assert_eq!(message("host,avx"), "CPU flag 'avx' has no sign: write '+avx' to add it or '-avx' to take it away");
        assert_eq!(message("host,+avx,-avx"), "CPU flag 'avx' is both added and taken away");
    }
}
