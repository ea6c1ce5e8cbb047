//! The steps of building a CPUID table, in the order [`super::CpuidTemplate::new`] takes them.

use super::features::{self, Feature, WORDS, single};
use super::model::{Base, HOST_MASKED, NEVER, OF_THE_MACHINE, PMU_FLAGS};
use super::{CpuError, CpuModel, CpuidEntry, CpuidOptions, HypervisorLeaves, Table, Topology};
use crate::msr::Vendor;

const HYPERVISOR_BASE: u32 = 0x4000_0000;
const KVM_FEATURES: u32 = 0x4000_0001;
/// TSC and APIC bus frequency in kHz: VMware's leaf, which KVM and bhyve guests read too.
const HYPERVISOR_FREQUENCY: u32 = 0x4000_0010;
const EXTENDED_BASE: u32 = 0x8000_0000;

/// Size of the legacy XSAVE area and header: what XCR0 = 1 needs.
const XSAVE_MIN_BYTES: u32 = 576;

fn has(table: &Table, feature: Feature) -> bool {
    let word = feature.word();
    table.get(&(word.function, word.index)).is_some_and(|entry| word.reg.of(entry) & feature.mask() != 0)
}

fn set(table: &mut Table, feature: Feature, on: bool) {
    let word = feature.word();
    let Some(entry) = table.get_mut(&(word.function, word.index)) else { return };
    let register = word.reg.of_mut(entry);
    if on {
        *register |= feature.mask();
    } else {
        *register &= !feature.mask();
    }
}

fn plain(function: u32, registers: [u32; 4]) -> CpuidEntry {
    let [eax, ebx, ecx, edx] = registers;
    CpuidEntry { function, eax, ebx, ecx, edx, ..CpuidEntry::default() }
}

fn indexed(function: u32, index: u32, registers: [u32; 4]) -> CpuidEntry {
    CpuidEntry { index, index_significant: true, ..plain(function, registers) }
}

fn put(table: &mut Table, entry: CpuidEntry) {
    table.insert((entry.function, entry.index), entry);
}

/// Replaces what depends on the machine, not the CPU, before any flag is looked at: so flags can name it.
pub(super) fn offer_machine(table: &mut Table, options: &CpuidOptions) {
    table.retain(|(function, _), _| !(HYPERVISOR_BASE..EXTENDED_BASE).contains(function));
    if let HypervisorLeaves::Kvm { features, hints } = options.hypervisor {
        put(table, plain(KVM_FEATURES, [features, 0, 0, hints]));
    }
    table.entry((6, 0)).or_insert_with(|| plain(6, [0; 4]));
    // Both hypervisors' APIC timers run in every idle state.
    set(table, const { single("arat") }, true);
    set(table, const { single("x2apic") }, options.x2apic);
    set(table, const { single("tsc_deadline_timer") }, options.tsc_deadline);
    set(table, const { single("hypervisor") }, options.hypervisor != HypervisorLeaves::None);
    // Follows CR4.OSXSAVE at run time.
    set(table, const { single("osxsave") }, false);
    set(table, const { single("ospke") }, false);
}

/// Feature flags: base, then additions, then removals, then whatever lost what it needs.
pub(super) fn apply_model(table: &mut Table, model: &CpuModel, vendor: Vendor) -> Result<(), CpuError> {
    for feature in NEVER {
        set(table, *feature, false);
    }
    let offered = table.clone();
    match model.base.required() {
        None => {
            for feature in HOST_MASKED {
                set(table, *feature, false);
            }
        }
        Some(required) => baseline(table, model.base, required.collect(), vendor)?,
    }
    if model.pmu && !pmu_offered(&offered) {
        return Err(CpuError::NotOffered(features::PMU));
    }
    for feature in PMU_FLAGS {
        let keep = model.pmu && has(&offered, *feature);
        set(table, *feature, keep);
    }
    for feature in &model.add {
        if !has(&offered, *feature) {
            return Err(CpuError::NotOffered(feature.name()));
        }
        let word = feature.word();
        if let Some(entry) = offered.get(&(word.function, word.index)) {
            // The leaf may have gone with the baseline; it comes back with this flag only.
            table.entry((word.function, word.index)).or_insert_with(|| CpuidEntry {
                eax: 0,
                ebx: 0,
                ecx: 0,
                edx: 0,
                ..*entry
            });
        }
        set(table, *feature, true);
    }
    for feature in &model.remove {
        set(table, *feature, false);
    }
    for (needs, dependant) in features::dependencies() {
        if has(table, dependant) && !has(table, needs) {
            if model.add.contains(&dependant) {
                return Err(CpuError::Needs { flag: dependant.name(), needs: needs.name() });
            }
            set(table, dependant, false);
        }
    }
    Ok(())
}

/// Only the flags of the level, those of the machine, and the leaves every CPU of the level has.
fn baseline(table: &mut Table, base: Base, required: Vec<Feature>, vendor: Vendor) -> Result<(), CpuError> {
    let missing: Vec<_> = required.iter().filter(|f| !has(table, **f)).map(|f| f.name()).collect();
    if !missing.is_empty() {
        return Err(CpuError::BelowBaseline { model: base.name(), missing });
    }
    table.retain(|(function, index), _| match function {
        7 => *index == 0,
        0..=2 | 4 | 6 | 0xd | 0x8000_0000..=0x8000_0008 | 0x8000_001d | 0x8000_001e => true,
        function => (HYPERVISOR_BASE..EXTENDED_BASE).contains(function),
    });
    for word in WORDS.iter().filter(|word| word.function != KVM_FEATURES) {
        let Some(entry) = table.get_mut(&(word.function, word.index)) else { continue };
        let of_this_word = |f: &&Feature| f.is_of(word);
        let allowed = required.iter().chain(OF_THE_MACHINE).filter(of_this_word).fold(0, |mask, f| mask | f.mask());
        *word.reg.of_mut(entry) &= allowed;
    }
    if let Some(signature) = base.signature(vendor) {
        for function in [1, 0x8000_0001] {
            if let Some(entry) = table.get_mut(&(function, 0))
                && (function == 1 || vendor == Vendor::Amd)
            {
                entry.eax = signature;
            }
        }
    }
    let brand = format!("Virtual CPU {}", base.name());
    let mut bytes = [0u8; 48];
    bytes.iter_mut().zip(brand.bytes()).for_each(|(slot, byte)| *slot = byte);
    for (function, text) in (0x8000_0002..).zip(bytes.chunks_exact(16)) {
        let word = |at: usize| u32::from_le_bytes([text[at], text[at + 1], text[at + 2], text[at + 3]]);
        put(table, plain(function, [word(0), word(4), word(8), word(12)]));
    }
    Ok(())
}

fn pmu_offered(offered: &Table) -> bool {
    let architectural = offered.get(&(0xa, 0)).is_some_and(|entry| entry.eax & 0xff != 0);
    architectural || has(offered, const { single("perfctr_core") })
}

/// Leaves of features the guest does not have, and leaves that describe the host rather than the guest.
pub(super) fn drop_unsupported(table: &mut Table, pmu: bool) {
    let svm = has(table, const { single("svm") });
    let amx = has(table, const { single("amx_tile") });
    table.retain(|(function, _), _| match function {
        // Serial number, MONITOR, DCA, RDT, SGX, processor trace, key locker, hybrid, arch LBR.
        3 | 5 | 9 | 0xf | 0x10 | 0x12 | 0x14 | 0x17 | 0x19 | 0x1a | 0x1b | 0x1c => false,
        0xa => pmu,
        0x1d | 0x1e => amx,
        // Frequency leaves are written anew.
        0x15 | 0x16 => false,
        0x8000_000a => svm,
        // IBS, LWP, SEV, AMD's QoS, multi-key, extended topology (guests fall back to 0xB).
        0x8000_001b | 0x8000_001c | 0x8000_001f | 0x8000_0020 | 0x8000_0023 | 0x8000_0026 => false,
        0x8000_0022 => pmu,
        0x8000_0027..=0x8fff_ffff | 0x8086_0000.. => false,
        _ => true,
    });
    if let Some(power) = table.get_mut(&(6, 0)) {
        // Nothing of the host's thermal and power management but ARAT.
        *power = plain(6, [power.eax & (1 << 2), 0, 0, 0]);
    }
    if let Some(power) = table.get_mut(&(0x8000_0007, 0)) {
        *power = plain(0x8000_0007, [0, 0, 0, power.edx & (1 << 8)]);
    }
}

/// Leaf 0xD: state components of the features that are left (Intel SDM vol. 1 §13.2).
pub(super) fn shape_xsave(table: &mut Table) {
    let components = user_components(table);
    if components == 0 {
        table.retain(|(function, _), _| *function != 0xd);
        return;
    }
    let supervisor = supervisor_components(table);
    let xsaves = has(table, const { single("xsaves") });
    table.retain(|(function, index), entry| match (*function, *index) {
        (0xd, 0 | 1) => true,
        (0xd, component @ 2..=62) => {
            // ECX bit 0: managed by XSS, not XCR0.
            let wanted = if entry.ecx & 1 == 0 { components } else { supervisor };
            wanted & 1 << component != 0
        }
        (0xd, _) => false,
        _ => true,
    });
    let largest = table
        .range((0xd, 2)..=(0xd, 62))
        .filter(|(_, entry)| entry.ecx & 1 == 0)
        .map(|(_, entry)| entry.eax.saturating_add(entry.ebx))
        .max()
        .unwrap_or(0)
        .max(XSAVE_MIN_BYTES);
    if let Some(entry) = table.get_mut(&(0xd, 0)) {
        entry.eax &= components as u32;
        entry.edx &= (components >> 32) as u32;
        entry.ecx = largest;
        // The size for the current XCR0, which starts as 1. KVM and recent bhyve kernels follow it at run time.
        entry.ebx = XSAVE_MIN_BYTES;
    }
    if let Some(entry) = table.get_mut(&(0xd, 1)) {
        entry.ebx = if xsaves { XSAVE_MIN_BYTES } else { 0 };
        entry.ecx &= supervisor as u32;
        entry.edx &= (supervisor >> 32) as u32;
    }
}

/// XCR0 bits the guest's features allow; 0 without XSAVE.
fn user_components(table: &Table) -> u64 {
    if !has(table, const { single("xsave") }) {
        return 0;
    }
    let of = |feature, bits: u64| if has(table, feature) { bits } else { 0 };
    0b11 | of(const { single("avx") }, 1 << 2)
        | of(const { single("mpx") }, 0b11 << 3)
        | of(const { single("avx512f") }, 0b111 << 5)
        | of(const { single("pku") }, 1 << 9)
        | of(const { single("amx_tile") }, 0b11 << 17)
}

/// XSS bits: the shadow stacks' state.
fn supervisor_components(table: &Table) -> u64 {
    let cet = has(table, const { single("user_shstk") }) || has(table, const { single("ibt") });
    if has(table, const { single("xsaves") }) && cet { 0b11 << 11 } else { 0 }
}

/// Every leaf that says how many CPUs there are and which one this is, except the APIC ids.
pub(super) fn shape_topology(table: &mut Table, topology: &Topology, vendor: Vendor) {
    let per_socket = u32::from(topology.vcpus_per_socket());
    let threads = u32::from(topology.threads());
    let socket_ids = 1u32 << topology.socket_shift();
    let thread_ids = 1u32 << topology.thread_bits();
    let cores_in_ids = socket_ids / thread_ids;

    if let Some(leaf1) = table.get_mut(&(1, 0)) {
        // EBX 23:16: ids of a socket rounded up to a power of two; CLFLUSH size stays, APIC id comes later.
        leaf1.ebx = leaf1.ebx & 0x0000_ff00 | socket_ids.min(255) << 16;
    }
    set(table, const { single("ht") }, per_socket > 1);
    set(table, const { single("cmp_legacy") }, vendor == Vendor::Amd && per_socket > 1);

    for ((function, _), entry) in table.iter_mut() {
        let cache_type = entry.eax & 0x1f;
        let level = entry.eax >> 5 & 7;
        // Ids that share the cache, minus one: a core's own up to level 2, the socket's above.
        let (shared_ids, shared) = if level >= 3 { (socket_ids, per_socket) } else { (thread_ids, threads) };
        match function {
            4 if cache_type != 0 => {
                entry.eax = entry.eax & 0x3fff | (shared_ids - 1) << 14 | (cores_in_ids - 1).min(63) << 26;
            }
            // AMD counts the logical processors themselves here, not their ids.
            0x8000_001d if cache_type != 0 => {
                entry.eax = entry.eax & 0x3fff | (shared - 1) << 14;
            }
            _ => {}
        }
    }

    // Level 0 threads, level 1 cores, level 2 the end (Intel SDM vol. 2, CPUID leaf 0BH). Written even where the host
    // has no such leaf: it is the only one that states the id layout outright, for both vendors.
    let has_v2 = table.contains_key(&(0x1f, 0));
    table.retain(|(function, _), _| *function != 0xb && *function != 0x1f);
    for function in [Some(0xb), has_v2.then_some(0x1f)].into_iter().flatten() {
        put(table, indexed(function, 0, [topology.thread_bits(), threads, 1 << 8, 0]));
        put(table, indexed(function, 1, [topology.socket_shift(), per_socket, 2 << 8 | 1, 0]));
        put(table, indexed(function, 2, [0, 0, 2, 0]));
    }

    if let Some(sizes) = table.get_mut(&(0x8000_0008, 0)) {
        sizes.ecx = match vendor {
            Vendor::Amd => (per_socket - 1) | topology.socket_shift() << 12,
            _ => 0,
        };
    }
    if has(table, const { single("topoext") }) {
        // EBX: threads a core minus one above the core number; ECX: one node a socket. Both get the vCPU's numbers
        // later, from the shifts kept in EDX until then.
        let shifts = topology.thread_bits() << 8 | topology.socket_shift();
        put(table, plain(0x8000_001e, [0, (threads - 1) << 8, 0, shifts]));
    } else {
        table.retain(|(function, _), _| !matches!(function, 0x8000_001d | 0x8000_001e));
    }
}

/// Completes leaf 0x8000_001E of [`shape_topology`] for one vCPU (AMD APM vol. 3, Fn8000_001E).
pub(super) fn set_amd_apic_id(entry: &mut CpuidEntry, apic_id: u32) {
    let (thread_bits, socket_shift) = (entry.edx >> 8, entry.edx & 0xff);
    let in_socket = apic_id & ((1 << socket_shift) - 1);
    entry.eax = apic_id;
    entry.ebx |= in_socket >> thread_bits;
    entry.ecx = apic_id >> socket_shift;
    entry.edx = 0;
}

/// Leaves 0x15 and 0x16 for Intel guests that know the TSC frequency.
pub(super) fn shape_frequency(table: &mut Table, options: &CpuidOptions, vendor: Vendor) {
    let (Some(tsc_khz), Vendor::Intel) = (options.tsc_khz, vendor) else { return };
    if let Some((numerator, denominator)) = crystal_ratio(tsc_khz, options.apic_timer_hz / 1000) {
        put(table, plain(0x15, [denominator, numerator, options.apic_timer_hz, 0]));
        let mhz = (tsc_khz / 1000).min(0xffff);
        put(table, plain(0x16, [mhz, mhz, 100, 0]));
    }
}

/// The fraction nearest to `tsc_khz / crystal_khz` whose numerator times the crystal stays below 2^32: Linux multiplies
/// the two in 32 bits. Continued fraction; exact within 1 ppm for every real frequency.
fn crystal_ratio(tsc_khz: u32, crystal_khz: u32) -> Option<(u32, u32)> {
    let limit = u64::from(u32::MAX) / u64::from(crystal_khz.max(1));
    let (mut a, mut b) = (u64::from(tsc_khz), u64::from(crystal_khz));
    let (mut previous, mut best) = ((0u64, 1u64), (1u64, 0u64));
    while b != 0 {
        let quotient = a / b;
        let next = (quotient * best.0 + previous.0, quotient * best.1 + previous.1);
        if next.0 > limit {
            break;
        }
        (previous, best) = (best, next);
        (a, b) = (b, a % b);
    }
    (best.0 > 0 && best.1 > 0).then_some((best.0 as u32, best.1 as u32))
}

/// Leaves from 0x4000_0000.
pub(super) fn shape_hypervisor(table: &mut Table, options: &CpuidOptions) {
    let signature = |last: u32, name: &[u8; 12]| {
        let word = |at: usize| u32::from_le_bytes([name[at], name[at + 1], name[at + 2], name[at + 3]]);
        plain(HYPERVISOR_BASE, [last, word(0), word(4), word(8)])
    };
    match options.hypervisor {
        HypervisorLeaves::Kvm { .. } => {
            let mut last = KVM_FEATURES;
            if let Some(tsc_khz) = options.tsc_khz {
                last = HYPERVISOR_FREQUENCY;
                put(table, plain(last, [tsc_khz, options.apic_timer_hz / 1000, 0, 0]));
            }
            put(table, signature(last, b"KVMKVMKVM\0\0\0"));
        }
        // The kernel's own table ends with its first leaf; guests know it so.
        HypervisorLeaves::Bhyve => put(table, signature(HYPERVISOR_BASE, b"bhyve bhyve ")),
        HypervisorLeaves::None => {}
    }
}

/// AMD's first-level caches. KVM does not report the leaf, and a guest that finds no cache there has no cache
/// information at all; on family 15h Linux even divides by the associativity before it can print anything.
pub(super) fn shape_amd_caches(table: &mut Table, vendor: Vendor) {
    const L1: u32 = 0x8000_0005;
    /// 64 KiB, 2-way, one line a tag, 64-byte lines.
    const CACHE: u32 = 64 << 24 | 2 << 16 | 1 << 8 | 64;
    /// 512 entries, fully associative, for data and instructions.
    const TLB: u32 = 0x01ff_01ff;
    let unknown = table.get(&(L1, 0)).is_none_or(|entry| entry.ecx == 0 || entry.edx == 0);
    if vendor == Vendor::Amd && unknown {
        put(table, plain(L1, [TLB, TLB, CACHE, CACHE]));
    }
}

/// Address width and the numbers of the highest leaves.
pub(super) fn shape_limits(table: &mut Table, phys_bits: u8) {
    let sizes = table.entry((0x8000_0008, 0)).or_insert_with(|| plain(0x8000_0008, [48 << 8, 0, 0, 0]));
    // 23:16, the guest's own physical width for nested paging, is not the guest's business.
    sizes.eax = sizes.eax & 0xff00 | u32::from(phys_bits);
    let highest =
        |end: u32, table: &Table| table.range(..(end, 0)).next_back().map_or(0, |((function, _), _)| *function);
    let (basic, extended) = (highest(HYPERVISOR_BASE, table), highest(u32::MAX, table));
    if let Some(entry) = table.get_mut(&(0, 0)) {
        entry.eax = basic;
    }
    if let Some(entry) = table.get_mut(&(EXTENDED_BASE, 0)) {
        entry.eax = extended;
    }
    let sub_leaves = table.range((7, 0)..=(7, u32::MAX)).next_back().map_or(0, |((_, index), _)| *index);
    if let Some(entry) = table.get_mut(&(7, 0)) {
        entry.eax = sub_leaves;
    }
    // A function has sub-leaves or has none: bhyve refuses a table that mixes the two.
    let split: Vec<u32> = table.values().filter(|entry| entry.index_significant).map(|entry| entry.function).collect();
    for entry in table.values_mut().filter(|entry| split.contains(&entry.function)) {
        entry.index_significant = true;
    }
}
