//! CPU feature flags by name.
//!
//! Names are those of Linux `/proc/cpuinfo` and qemu; where the two differ, both work. A few names stand for several
//! bits (`pmu`), for a paravirtual feature (`kvmclock`), or for a bit outside the feature words (`invtsc`).

use super::{CpuError, CpuidEntry};

/// A constant list of features by name.
macro_rules! features {
    ($($name:literal),* $(,)?) => { &[$(crate::cpu::features::single($name)),*] };
}
pub(super) use features;

/// A CPUID output register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reg {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

impl Reg {
    pub(super) fn of(self, entry: &CpuidEntry) -> u32 {
        match self {
            Self::Eax => entry.eax,
            Self::Ebx => entry.ebx,
            Self::Ecx => entry.ecx,
            Self::Edx => entry.edx,
        }
    }

    pub(super) fn of_mut(self, entry: &mut CpuidEntry) -> &mut u32 {
        match self {
            Self::Eax => &mut entry.eax,
            Self::Ebx => &mut entry.ebx,
            Self::Ecx => &mut entry.ecx,
            Self::Edx => &mut entry.edx,
        }
    }
}

/// A register of a leaf that holds feature bits, and the names of its bits.
pub(super) struct Word {
    pub function: u32,
    pub index: u32,
    pub reg: Reg,
    /// `(bit, names)`; the first name is the one messages use.
    pub bits: &'static [(u8, &'static [&'static str])],
}

/// One named bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Feature {
    word: u8,
    bit: u8,
}

impl Feature {
    pub(super) fn word(self) -> &'static Word {
        &WORDS[usize::from(self.word)]
    }

    /// Whether it lies in `word`.
    pub(super) fn is_of(self, word: &Word) -> bool {
        let own = self.word();
        (own.function, own.index, own.reg) == (word.function, word.index, word.reg)
    }

    pub(super) fn mask(self) -> u32 {
        1 << self.bit
    }

    pub(super) fn name(self) -> &'static str {
        let names = self.word().bits.iter().find(|(bit, _)| *bit == self.bit);
        names.and_then(|(_, names)| names.first()).copied().unwrap_or("?")
    }

    /// Every feature there is a name for.
    pub(super) fn all() -> impl Iterator<Item = Self> {
        (0u8..).zip(WORDS).flat_map(|(word, table)| table.bits.iter().map(move |(bit, _)| Self { word, bit: *bit }))
    }
}

/// The features one name stands for.
///
/// # Errors
/// An unknown name, with the nearest known one.
pub(super) fn by_name(name: &str) -> Result<Vec<Feature>, CpuError> {
    let wanted = normalise(name);
    if let Some((_, members)) = GROUPS.iter().find(|(group, _)| *group == wanted) {
        return Ok(members.to_vec());
    }
    find(&wanted)
        .map(|feature| vec![feature])
        .ok_or_else(|| CpuError::UnknownFlag { name: name.to_owned(), nearest: nearest(&wanted) })
}

/// A feature by its exact name; see [`single`] for names in code.
fn find(name: &str) -> Option<Feature> {
    Feature::all()
        .find(|feature| feature.word().bits.iter().any(|(bit, names)| *bit == feature.bit && names.contains(&name)))
}

/// A feature by its exact name, looked up by the compiler: a list in code costs nothing at start, and a name that does
/// not exist does not compile.
pub(super) const fn single(name: &str) -> Feature {
    let mut word = 0;
    while word < WORDS.len() {
        let bits = WORDS[word].bits;
        let mut at = 0;
        while at < bits.len() {
            let (bit, names) = bits[at];
            let mut alias = 0;
            while alias < names.len() {
                if same(names[alias].as_bytes(), name.as_bytes()) {
                    return Feature { word: word as u8, bit };
                }
                alias += 1;
            }
            at += 1;
        }
        word += 1;
    }
    panic!("no such CPU feature")
}

const fn same(a: &[u8], b: &[u8]) -> bool {
    if a.len() != b.len() {
        return false;
    }
    let mut at = 0;
    while at < a.len() {
        if a[at] != b[at] {
            return false;
        }
        at += 1;
    }
    true
}

pub(super) fn normalise(name: &str) -> String {
    name.trim().to_ascii_lowercase().replace(['-', '.'], "_")
}

fn nearest(name: &str) -> &'static str {
    let known = WORDS.iter().flat_map(|word| word.bits).flat_map(|(_, names)| names.iter().copied());
    known
        .chain(GROUPS.iter().map(|(group, _)| *group))
        .chain([PMU])
        .max_by(|a, b| strsim::jaro_winkler(a, name).total_cmp(&strsim::jaro_winkler(b, name)))
        .unwrap_or("host")
}

/// Names for several bits at once.
const GROUPS: &[(&str, &[Feature])] = &[("kvmclock", features!["kvmclock_old", "kvmclock_new", "kvmclock_stable_bit"])];

/// The performance monitoring unit: a flag of the model, not a bit, as its size is a leaf of its own.
pub(super) const PMU: &str = "pmu";

/// `(needs, dependants)`: masking the first masks the others (Intel SDM vol. 1 §13 for what XSAVE manages; the AVX chain as
/// Linux `arch/x86/kernel/cpu/cpuid-deps.c` states it).
const DEPENDENCIES: &[(Feature, &[Feature])] = &[
    (single("fxsr"), features!["sse", "fxsr_opt"]),
    (single("sse"), features!["sse2"]),
    (single("sse2"), features!["pni", "aes", "pclmulqdq", "sha_ni", "gfni"]),
    (single("pni"), features!["ssse3", "sse4a"]),
    (single("ssse3"), features!["sse4_1"]),
    (single("sse4_1"), features!["sse4_2"]),
    (single("sse4_2"), features!["avx"]),
    (
        single("xsave"),
        features!["xsaveopt", "xsavec", "xgetbv1", "xsaves", "xfd", "avx", "pku", "mpx", "amx_tile", "user_shstk"],
    ),
    (single("xsavec"), features!["xsaves"]),
    (
        single("avx"),
        features!["avx2", "fma", "f16c", "fma4", "xop", "vaes", "vpclmulqdq", "avx512f", "avx_vnni", "avx_ifma"],
    ),
    (single("avx2"), features!["avx512f", "avx_vnni", "avx_vnni_int8", "avx_ne_convert", "avx_ifma"]),
    (
        single("avx512f"),
        features![
            "avx512dq",
            "avx512ifma",
            "avx512pf",
            "avx512er",
            "avx512cd",
            "avx512bw",
            "avx512vl",
            "avx512vbmi",
            "avx512_vbmi2",
            "avx512_vnni",
            "avx512_bitalg",
            "avx512_vpopcntdq",
            "avx512_4vnniw",
            "avx512_4fmaps",
            "avx512_vp2intersect",
            "avx512_fp16",
            "avx512_bf16",
        ],
    ),
    (single("amx_tile"), features!["amx_int8", "amx_bf16", "amx_fp16"]),
    (single("pku"), features!["ospke"]),
    (single("svm"), features!["npt", "lbrv", "nrip_save"]),
    // Without this bit Windows Server 2022 loops at boot when it sees core performance counters.
    (single("topoext"), features!["perfctr_core"]),
];

/// `(needed, dependant)` pairs in an order in which one pass that clears the dependants of absent features is enough.
pub(super) fn dependencies() -> impl Iterator<Item = (Feature, Feature)> {
    DEPENDENCIES.iter().flat_map(|(needs, list)| list.iter().map(|dependant| (*needs, *dependant)))
}

/// Words of CPUID that hold named features. Sources: Intel SDM vol. 2 CPUID, AMD APM vol. 3 appendix E, Linux
/// `arch/x86/include/asm/cpufeatures.h`, and for 0x4000_0001 `Documentation/virt/kvm/x86/cpuid.rst`.
pub(super) const WORDS: &[Word] = &[
    Word {
        function: 1,
        index: 0,
        reg: Reg::Edx,
        bits: &[
            (0, &["fpu"]),
            (1, &["vme"]),
            (2, &["de"]),
            (3, &["pse"]),
            (4, &["tsc"]),
            (5, &["msr"]),
            (6, &["pae"]),
            (7, &["mce"]),
            (8, &["cx8"]),
            (9, &["apic"]),
            (11, &["sep"]),
            (12, &["mtrr"]),
            (13, &["pge"]),
            (14, &["mca"]),
            (15, &["cmov"]),
            (16, &["pat"]),
            (17, &["pse36"]),
            (18, &["pn"]),
            (19, &["clflush"]),
            (21, &["dts", "ds"]),
            (22, &["acpi"]),
            (23, &["mmx"]),
            (24, &["fxsr"]),
            (25, &["sse"]),
            (26, &["sse2"]),
            (27, &["ss"]),
            (28, &["ht"]),
            (29, &["tm"]),
            (31, &["pbe"]),
        ],
    },
    Word {
        function: 1,
        index: 0,
        reg: Reg::Ecx,
        bits: &[
            (0, &["pni", "sse3"]),
            (1, &["pclmulqdq"]),
            (2, &["dtes64"]),
            (3, &["monitor"]),
            (4, &["ds_cpl"]),
            (5, &["vmx"]),
            (6, &["smx"]),
            (7, &["est"]),
            (8, &["tm2"]),
            (9, &["ssse3"]),
            (12, &["fma"]),
            (13, &["cx16"]),
            (14, &["xtpr"]),
            (15, &["pdcm"]),
            (17, &["pcid"]),
            (18, &["dca"]),
            (19, &["sse4_1"]),
            (20, &["sse4_2"]),
            (21, &["x2apic"]),
            (22, &["movbe"]),
            (23, &["popcnt"]),
            (24, &["tsc_deadline_timer", "tsc_deadline"]),
            (25, &["aes"]),
            (26, &["xsave"]),
            (27, &["osxsave"]),
            (28, &["avx"]),
            (29, &["f16c"]),
            (30, &["rdrand"]),
            (31, &["hypervisor"]),
        ],
    },
    Word { function: 6, index: 0, reg: Reg::Eax, bits: &[(2, &["arat"])] },
    Word {
        function: 7,
        index: 0,
        reg: Reg::Ebx,
        bits: &[
            (0, &["fsgsbase"]),
            (1, &["tsc_adjust"]),
            (2, &["sgx"]),
            (3, &["bmi1"]),
            (4, &["hle"]),
            (5, &["avx2"]),
            (6, &["fdp_excptn_only"]),
            (7, &["smep"]),
            (8, &["bmi2"]),
            (9, &["erms"]),
            (10, &["invpcid"]),
            (11, &["rtm"]),
            (12, &["cqm"]),
            (13, &["zero_fcs_fds"]),
            (14, &["mpx"]),
            (15, &["rdt_a"]),
            (16, &["avx512f"]),
            (17, &["avx512dq"]),
            (18, &["rdseed"]),
            (19, &["adx"]),
            (20, &["smap"]),
            (21, &["avx512ifma"]),
            (22, &["pcommit"]),
            (23, &["clflushopt"]),
            (24, &["clwb"]),
            (25, &["intel_pt"]),
            (26, &["avx512pf"]),
            (27, &["avx512er"]),
            (28, &["avx512cd"]),
            (29, &["sha_ni", "sha"]),
            (30, &["avx512bw"]),
            (31, &["avx512vl"]),
        ],
    },
    Word {
        function: 7,
        index: 0,
        reg: Reg::Ecx,
        bits: &[
            (1, &["avx512vbmi"]),
            (2, &["umip"]),
            (3, &["pku"]),
            (4, &["ospke"]),
            (5, &["waitpkg"]),
            (6, &["avx512_vbmi2"]),
            (7, &["user_shstk", "shstk"]),
            (8, &["gfni"]),
            (9, &["vaes"]),
            (10, &["vpclmulqdq"]),
            (11, &["avx512_vnni"]),
            (12, &["avx512_bitalg"]),
            (13, &["tme"]),
            (14, &["avx512_vpopcntdq"]),
            (16, &["la57"]),
            (22, &["rdpid"]),
            (23, &["kl"]),
            (24, &["bus_lock_detect"]),
            (25, &["cldemote"]),
            (27, &["movdiri"]),
            (28, &["movdir64b"]),
            (29, &["enqcmd"]),
            (30, &["sgx_lc"]),
            (31, &["pks"]),
        ],
    },
    Word {
        function: 7,
        index: 0,
        reg: Reg::Edx,
        bits: &[
            (2, &["avx512_4vnniw"]),
            (3, &["avx512_4fmaps"]),
            (4, &["fsrm"]),
            (5, &["uintr"]),
            (8, &["avx512_vp2intersect"]),
            (9, &["srbds_ctrl"]),
            (10, &["md_clear"]),
            (11, &["rtm_always_abort"]),
            (14, &["serialize"]),
            (15, &["hybrid_cpu"]),
            (16, &["tsxldtrk"]),
            (18, &["pconfig"]),
            (19, &["arch_lbr"]),
            (20, &["ibt"]),
            (22, &["amx_bf16"]),
            (23, &["avx512_fp16"]),
            (24, &["amx_tile"]),
            (25, &["amx_int8"]),
            (26, &["spec_ctrl"]),
            (27, &["intel_stibp", "stibp"]),
            (28, &["flush_l1d"]),
            (29, &["arch_capabilities"]),
            (30, &["core_capability", "core_capabilities"]),
            (31, &["spec_ctrl_ssbd", "ssbd"]),
        ],
    },
    Word {
        function: 7,
        index: 1,
        reg: Reg::Eax,
        bits: &[
            (4, &["avx_vnni"]),
            (5, &["avx512_bf16"]),
            (7, &["cmpccxadd"]),
            (10, &["fzrm"]),
            (11, &["fsrs"]),
            (12, &["fsrc"]),
            (17, &["fred"]),
            (18, &["lkgs"]),
            (19, &["wrmsrns"]),
            (21, &["amx_fp16"]),
            (23, &["avx_ifma"]),
            (26, &["lam"]),
        ],
    },
    Word {
        function: 7,
        index: 1,
        reg: Reg::Edx,
        bits: &[(4, &["avx_vnni_int8"]), (5, &["avx_ne_convert"]), (14, &["prefetchiti"])],
    },
    Word {
        function: 0xd,
        index: 1,
        reg: Reg::Eax,
        bits: &[(0, &["xsaveopt"]), (1, &["xsavec"]), (2, &["xgetbv1"]), (3, &["xsaves"]), (4, &["xfd"])],
    },
    Word {
        function: 0x4000_0001,
        index: 0,
        reg: Reg::Eax,
        bits: &[
            (0, &["kvmclock_old"]),
            (1, &["kvm_nopiodelay"]),
            (3, &["kvmclock_new"]),
            (4, &["kvm_asyncpf"]),
            (5, &["kvm_steal_time"]),
            (6, &["kvm_pv_eoi"]),
            (7, &["kvm_pv_unhalt"]),
            (9, &["kvm_pv_tlb_flush"]),
            (10, &["kvm_asyncpf_vmexit"]),
            (11, &["kvm_pv_ipi"]),
            (12, &["kvm_poll_control"]),
            (13, &["kvm_pv_sched_yield"]),
            (14, &["kvm_asyncpf_int"]),
            (15, &["kvm_msi_ext_dest_id"]),
            (24, &["kvmclock_stable_bit"]),
        ],
    },
    Word {
        function: 0x8000_0001,
        index: 0,
        reg: Reg::Edx,
        bits: &[
            (11, &["syscall"]),
            (19, &["mp"]),
            (20, &["nx"]),
            (22, &["mmxext"]),
            (25, &["fxsr_opt"]),
            (26, &["pdpe1gb"]),
            (27, &["rdtscp"]),
            (29, &["lm"]),
            (30, &["3dnowext"]),
            (31, &["3dnow"]),
        ],
    },
    Word {
        function: 0x8000_0001,
        index: 0,
        reg: Reg::Ecx,
        bits: &[
            (0, &["lahf_lm"]),
            (1, &["cmp_legacy"]),
            (2, &["svm"]),
            (3, &["extapic"]),
            (4, &["cr8_legacy"]),
            (5, &["abm", "lzcnt"]),
            (6, &["sse4a"]),
            (7, &["misalignsse"]),
            (8, &["3dnowprefetch"]),
            (9, &["osvw"]),
            (10, &["ibs"]),
            (11, &["xop"]),
            (12, &["skinit"]),
            (13, &["wdt"]),
            (15, &["lwp"]),
            (16, &["fma4"]),
            (17, &["tce"]),
            (19, &["nodeid_msr"]),
            (21, &["tbm"]),
            (22, &["topoext"]),
            (23, &["perfctr_core"]),
            (24, &["perfctr_nb"]),
            (26, &["bpext"]),
            (27, &["ptsc"]),
            (28, &["perfctr_l2", "perfctr_llc"]),
            (29, &["mwaitx"]),
        ],
    },
    Word { function: 0x8000_0007, index: 0, reg: Reg::Edx, bits: &[(8, &["invtsc", "nonstop_tsc"])] },
    Word {
        function: 0x8000_0008,
        index: 0,
        reg: Reg::Ebx,
        bits: &[
            (0, &["clzero"]),
            (1, &["irperf"]),
            (2, &["xsaveerptr"]),
            (4, &["rdpru"]),
            (9, &["wbnoinvd"]),
            (12, &["ibpb", "amd_ibpb"]),
            (14, &["ibrs", "amd_ibrs"]),
            (15, &["amd_stibp"]),
            (17, &["stibp_always_on"]),
            (23, &["amd_ppin"]),
            (24, &["amd_ssbd"]),
            (25, &["virt_ssbd"]),
            (26, &["amd_ssb_no"]),
            (27, &["cppc"]),
            (28, &["amd_psfd"]),
            (29, &["btc_no"]),
        ],
    },
    Word {
        function: 0x8000_000a,
        index: 0,
        reg: Reg::Edx,
        bits: &[(0, &["npt"]), (1, &["lbrv"]), (3, &["nrip_save"])],
    },
    Word {
        function: 0x8000_0021,
        index: 0,
        reg: Reg::Eax,
        bits: &[
            (0, &["no_nested_data_bp"]),
            (2, &["lfence_always_serializing"]),
            (6, &["null_sel_clr_base"]),
            (8, &["autoibrs"]),
            (9, &["no_smm_ctl_msr"]),
            (17, &["cpuid_user_dis"]),
        ],
    },
    Word { function: 0x8000_0022, index: 0, reg: Reg::Eax, bits: &[(0, &["perfmon_v2"])] },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_and_no_bit_is_listed_twice() {
        let mut names = Vec::new();
        let mut bits = Vec::new();
        for word in WORDS {
            for (bit, list) in word.bits {
                names.extend(list.iter().copied());
                bits.push((word.function, word.index, word.reg as u8, *bit));
            }
        }
        names.extend(GROUPS.iter().map(|(group, _)| *group));
        names.push(PMU);
        assert!(bits.len() > 200);
        let (name_count, bit_count) = (names.len(), bits.len());
        names.sort_unstable();
        names.dedup();
        bits.sort_unstable();
        bits.dedup();
        assert_eq!((names.len(), bits.len()), (name_count, bit_count));
    }

    #[test]
    fn a_feature_is_listed_as_needed_only_after_everything_it_needs() {
        for (position, (_, list)) in DEPENDENCIES.iter().enumerate() {
            for (needs, _) in &DEPENDENCIES[..position] {
                assert!(!list.contains(needs), "{} is cleared after its dependants were looked at", needs.name());
            }
        }
    }

    #[test]
    fn names_of_qemu_and_of_linux_mean_the_same_bit() {
        for (a, b) in [("sse3", "pni"), ("sse4.2", "sse4_2"), ("lzcnt", "abm"), ("SHA-NI", "sha_ni")] {
            assert_eq!(by_name(a).unwrap(), by_name(b).unwrap());
        }
    }

    #[test]
    fn an_unknown_name_is_answered_with_the_nearest() {
        let message = by_name("avx512").unwrap_err().to_string();
        assert!(message.starts_with("unknown CPU flag 'avx512': did you mean 'avx512"), "{message}");
        assert_eq!(by_name("rdrnd").unwrap_err().to_string(), "unknown CPU flag 'rdrnd': did you mean 'rdrand'?");
    }
}
