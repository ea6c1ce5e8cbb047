//! The guest's CPUID table, made so that the driver's lookup finds what is meant.
//!
//! The driver answers a leaf or sub-leaf it has no entry for with the entry of the highest leaf of the same half (a
//! hypervisor leaf counts to the basic half), not with zeros. So no gap is left: every leaf up to the highest has an
//! entry, and every leaf with sub-leaves ends with one that answers for the rest.

use std::collections::BTreeMap;

use arch::cpu::CpuidEntry;

use super::HypervisorError;
use super::abi::{KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use super::plain::zeroed;

/// Highest basic leaf of the driver: it hands out no later one, so what it knows nothing of is not told to a guest.
const HIGHEST_BASIC: u32 = 0xb;
const HYPERVISOR: u32 = 0x4000_0000;
const EXTENDED: u32 = 0x8000_0000;
/// Highest extended leaf of the driver.
const HIGHEST_EXTENDED: u32 = 0x8000_001a;
/// Structured features: the driver returns the host's own, although it virtualizes none of them.
const STRUCTURED_FEATURES: u32 = 7;

/// What the driver says it supports, without what it passes through unseen: leaf 7 is cleared.
pub fn supported(entries: &[kvm_cpuid_entry2]) -> Vec<CpuidEntry> {
    let entry = |entry: &kvm_cpuid_entry2| CpuidEntry {
        function: entry.function,
        index: entry.index,
        index_significant: entry.flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX != 0,
        eax: entry.eax,
        ebx: entry.ebx,
        ecx: entry.ecx,
        edx: entry.edx,
    };
    entries.iter().filter(|entry| entry.function != STRUCTURED_FEATURES).map(entry).collect()
}

/// The table for KVM_SET_CPUID2.
///
/// # Errors
/// More leaves than the driver has room for.
pub fn table(entries: &[CpuidEntry]) -> Result<Vec<kvm_cpuid_entry2>, HypervisorError> {
    let known = |function: u32| function <= HIGHEST_BASIC || (HYPERVISOR..=HIGHEST_EXTENDED).contains(&function);
    let mut leaves: BTreeMap<u32, Vec<CpuidEntry>> = BTreeMap::new();
    for entry in entries.iter().filter(|entry| known(entry.function) && entry.function != STRUCTURED_FEATURES) {
        leaves.entry(entry.function).or_default().push(*entry);
    }
    if let Some(first) = leaves.get_mut(&0).and_then(|leaf| leaf.first_mut()) {
        first.eax = first.eax.min(HIGHEST_BASIC);
    }
    for (start, end) in [(0, HIGHEST_BASIC), (EXTENDED, HIGHEST_EXTENDED)] {
        // Up to what the first leaf says and what there is, whichever is more.
        let said = leaves.get(&start).and_then(|leaf| leaf.first()).map_or(start, |entry| entry.eax.min(end));
        let highest = leaves.range(start..=end).next_back().map_or(start, |(&function, _)| function.max(said));
        for function in start..=highest {
            leaves.entry(function).or_insert_with(|| vec![CpuidEntry { function, ..CpuidEntry::default() }]);
        }
    }
    for (&function, leaf) in &mut leaves {
        if leaf.iter().all(|entry| entry.index_significant) {
            leaf.push(CpuidEntry { function, ..CpuidEntry::default() });
        }
    }
    let table: Vec<_> = leaves.values().flatten().map(to_kvm).collect();
    if table.len() > KVM_MAX_CPUID_ENTRIES {
        let what = format!("the CPU has {} CPUID leaves, illumos KVM takes {KVM_MAX_CPUID_ENTRIES}", table.len());
        return Err(HypervisorError::Unavailable(what));
    }
    Ok(table)
}

fn to_kvm(entry: &CpuidEntry) -> kvm_cpuid_entry2 {
    kvm_cpuid_entry2 {
        function: entry.function,
        index: entry.index,
        flags: if entry.index_significant { KVM_CPUID_FLAG_SIGNIFCANT_INDEX } else { 0 },
        eax: entry.eax,
        ebx: entry.ebx,
        ecx: entry.ecx,
        edx: entry.edx,
        ..zeroed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(function: u32, eax: u32) -> CpuidEntry {
        CpuidEntry { function, eax, ..CpuidEntry::default() }
    }

    fn sub_leaf(function: u32, index: u32, eax: u32) -> CpuidEntry {
        CpuidEntry { index, index_significant: true, ..leaf(function, eax) }
    }

    /// The driver's own lookup (`kvm_find_cpuid_entry` of illumos-kvm), as its behaviour is described above.
    fn lookup(table: &[kvm_cpuid_entry2], function: u32, index: u32) -> u32 {
        let matches =
            |entry: &&kvm_cpuid_entry2| entry.function == function && (entry.flags == 0 || entry.index == index);
        let fallback = || {
            let half = table.iter().filter(|entry| (entry.function ^ function) & EXTENDED == 0);
            half.max_by_key(|entry| entry.function)
        };
        table.iter().find(matches).or_else(fallback).map_or(0, |entry| entry.eax)
    }

    #[test]
    fn a_leaf_or_sub_leaf_without_an_entry_reads_as_zero_and_not_as_the_highest_leaf() {
        let table = table(&[
            leaf(0, 0xb),
            leaf(1, 0x1234),
            sub_leaf(4, 0, 0x121),
            sub_leaf(4, 1, 0x122),
            sub_leaf(0xb, 0, 1),
            leaf(0x4000_0000, 0x4000_0001),
            leaf(0x4000_0001, 0xff),
            leaf(0x8000_0000, 0x8000_0008),
            leaf(0x8000_0008, 0x3030),
        ])
        .unwrap();
        for (function, index, eax) in [
            (0, 0, 0xb),
            (1, 0, 0x1234),
            (1, 7, 0x1234),
            (2, 0, 0),
            (4, 1, 0x122),
            (4, 2, 0),
            (0xa, 0, 0),
            (0xb, 5, 0),
            (0x4000_0001, 0, 0xff),
            (0x8000_0003, 0, 0),
            (0x8000_0008, 0, 0x3030),
        ] {
            assert_eq!(lookup(&table, function, index), eax, "leaf {function:#x}.{index}");
        }
    }

    #[test]
    fn structured_features_are_cleared_whoever_offers_them() {
        let offered: Vec<_> = [leaf(0, 0xb), sub_leaf(7, 0, u32::MAX)].iter().map(to_kvm).collect();
        assert!(supported(&offered).iter().all(|entry| entry.function != 7));
        let table = table(&[leaf(0, 0xd), sub_leaf(7, 0, u32::MAX), sub_leaf(7, 1, u32::MAX)]).unwrap();
        assert_eq!((lookup(&table, 7, 0), lookup(&table, 7, 1)), (0, 0));
    }

    #[test]
    fn leaves_above_the_drivers_highest_are_left_out_and_leaf_0_says_so() {
        let table = table(&[leaf(0, 0x1f), leaf(0xd, 7), sub_leaf(0x1f, 0, 1), leaf(0x15, 1)]).unwrap();
        assert_eq!(lookup(&table, 0, 0), 0xb);
        assert!(table.iter().all(|entry| entry.function <= 0xb || entry.function >= HYPERVISOR));
    }

    #[test]
    fn more_than_forty_entries_are_refused_with_the_number() {
        let many: Vec<_> = (0..41).map(|index| sub_leaf(4, index, 1)).collect();
        let error = table(&many).unwrap_err().to_string();
        assert!(error.contains("CPUID leaves, illumos KVM takes 40"), "{error}");
    }
}
