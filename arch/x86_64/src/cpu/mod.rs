//! What CPUID answers, one table a vCPU, the same on every hypervisor.
//!
//! [`build_cpuid`] starts from what the hypervisor says it can virtualize, applies a [`CpuModel`], and writes the leaves
//! that describe *this* machine: topology (1, 4, 0xB, 0x1F, 0x8000_0008, 0x8000_001D, 0x8000_001E), hypervisor (from
//! 0x4000_0000), TSC frequency (0x15, 0x16, 0x4000_0010) and address width. The ACPI MADT and SMBIOS are made from the
//! same [`Topology`], so what the guest reads in one place it reads in all.

mod features;
mod leaves;
mod model;
#[cfg(test)]
mod tests;
mod topology;

use std::collections::BTreeMap;

pub use self::model::CpuModel;
pub use self::topology::{MAX_VCPUS, Topology};
use crate::msr::Vendor;

/// One CPUID answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "the registers' names are the architecture's")]
pub struct CpuidEntry {
    /// Leaf (EAX on input).
    pub function: u32,
    /// Sub-leaf (ECX on input); 0 when not significant.
    pub index: u32,
    /// The leaf has sub-leaves, so `index` must match.
    pub index_significant: bool,
    pub eax: u32,
    pub ebx: u32,
    pub ecx: u32,
    pub edx: u32,
}

/// The hypervisor leaves from 0x4000_0000.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HypervisorLeaves {
    /// "KVMKVMKVM": paravirtual features of Linux KVM.
    Kvm {
        /// 0x4000_0001 EAX as the kernel supports it (see [`kvm_features`]); flags of the model can mask it.
        features: u32,
        /// 0x4000_0001 EDX, KVM_HINTS_*.
        hints: u32,
    },
    /// "bhyve bhyve ", as the kernel's own table has it.
    Bhyve,
    /// No leaves and no hypervisor bit: the guest believes to run on hardware.
    None,
}

/// What the machine and the hypervisor decide, not the CPU model.
#[derive(Clone, Copy, Debug)]
pub struct CpuidOptions {
    /// TSC frequency of the guest; fills the frequency leaves. Leave `None` if the hypervisor does not know it exactly.
    pub tsc_khz: Option<u32>,
    /// Frequency of the local APIC timer: 1 GHz on KVM, 2^27 Hz on bhyve. Guests that learn the TSC frequency from leaf
    /// 0x15 take the crystal for the APIC timer's clock.
    pub apic_timer_hz: u32,
    /// Hypervisor leaves.
    pub hypervisor: HypervisorLeaves,
    /// The local APIC has x2APIC mode.
    pub x2apic: bool,
    /// The local APIC timer has TSC-deadline mode.
    pub tsc_deadline: bool,
    /// Physical address bits the guest is told; that of its [`crate::layout::MemoryLayout`].
    pub phys_bits: u8,
}

/// Why a CPU cannot be built.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CpuError {
    /// 0 or too many vCPUs.
    #[error("a guest cannot have {0} vCPUs: the number must be between 1 and 254")]
    VcpuCount(u64),
    /// A topology whose APIC ids would have gaps.
    #[error(
        "a topology of {sockets} sockets, {cores} cores, {threads} threads leaves gaps in the APIC ids: \
         use 1 socket, {fit_cores} cores, {fit_threads} threads"
    )]
    SparseApicIds {
        /// As asked.
        sockets: u32,
        /// As asked.
        cores: u32,
        /// As asked.
        threads: u32,
        /// Cores of one socket that give the same number of vCPUs.
        fit_cores: u32,
        /// Threads of such a core.
        fit_threads: u32,
    },
    /// No such model.
    #[error("unknown CPU model '{name}': did you mean '{nearest}'? (models: host, x86-64-v2, x86-64-v3)")]
    UnknownModel {
        /// As written.
        name: String,
        /// Nearest valid name.
        nearest: &'static str,
    },
    /// No such flag.
    #[error("unknown CPU flag '{name}': did you mean '{nearest}'?")]
    UnknownFlag {
        /// As written.
        name: String,
        /// Nearest valid name.
        nearest: &'static str,
    },
    /// Neither + nor -.
    #[error("CPU flag '{0}' has no sign: write '+{0}' to add it or '-{0}' to take it away")]
    FlagWithoutSign(String),
    /// Added and removed.
    #[error("CPU flag '{0}' is both added and taken away")]
    FlagBothWays(&'static str),
    /// `+flag`, but the hypervisor does not offer it.
    #[error("CPU flag '{0}' is not offered by this host: its CPU or hypervisor does not support it for guests")]
    NotOffered(&'static str),
    /// `+flag`, but what it builds on is not there.
    #[error("CPU flag '{flag}' needs '{needs}', which this CPU model does not have: add '+{needs}'")]
    Needs {
        /// The added flag.
        flag: &'static str,
        /// What is missing.
        needs: &'static str,
    },
    /// The host is below the named level.
    #[error("this host cannot run CPU model {model}: it lacks {}", missing.join(", "))]
    BelowBaseline {
        /// The level.
        model: &'static str,
        /// Flags the host lacks.
        missing: Vec<&'static str>,
    },
    /// The hypervisor's table is unusable.
    #[error("the hypervisor offers no CPUID leaf {0:#x}, without which no guest boots")]
    NoLeaf(u32),
}

/// Leaves by function and sub-leaf.
type Table = BTreeMap<(u32, u32), CpuidEntry>;

/// The CPUID table of all vCPUs but for their APIC ids. Built once a guest.
#[derive(Clone, Debug)]
pub struct CpuidTemplate {
    entries: Vec<CpuidEntry>,
    vendor: Vendor,
}

impl CpuidTemplate {
    /// Applies `model` to what `host` offers (KVM_GET_SUPPORTED_CPUID or bhyve's VM_LEGACY_CPUID) for a machine with
    /// `topology`.
    ///
    /// # Errors
    /// A flag or level the host does not have; see [`CpuError`].
    pub fn new(
        host: &[CpuidEntry],
        model: &CpuModel,
        topology: &Topology,
        options: &CpuidOptions,
    ) -> Result<Self, CpuError> {
        let mut table: Table = host.iter().map(|entry| (key(entry), *entry)).collect();
        let Some(leaf0) = table.get(&(0, 0)) else { return Err(CpuError::NoLeaf(0)) };
        let vendor = vendor_of(leaf0);
        for needed in [1, 0x8000_0000, 0x8000_0001] {
            if !table.contains_key(&(needed, 0)) {
                return Err(CpuError::NoLeaf(needed));
            }
        }
        leaves::offer_machine(&mut table, options);
        leaves::apply_model(&mut table, model, vendor)?;
        leaves::drop_unsupported(&mut table, model.pmu);
        leaves::shape_xsave(&mut table);
        leaves::shape_topology(&mut table, topology, vendor);
        leaves::shape_amd_caches(&mut table, vendor);
        leaves::shape_frequency(&mut table, options, vendor);
        leaves::shape_hypervisor(&mut table, options);
        leaves::shape_limits(&mut table, options.phys_bits);
        Ok(Self { entries: table.into_values().collect(), vendor })
    }

    /// The table of one vCPU: sorted by function, then sub-leaf, without duplicates.
    pub fn for_vcpu(&self, vcpu: u8) -> Vec<CpuidEntry> {
        let apic_id = u32::from(vcpu);
        let mut entries = self.entries.clone();
        for entry in &mut entries {
            match entry.function {
                1 => entry.ebx = entry.ebx & 0x00ff_ffff | apic_id << 24,
                0xb | 0x1f => entry.edx = apic_id,
                0x8000_001e => leaves::set_amd_apic_id(entry, apic_id),
                _ => {}
            }
        }
        entries
    }

    /// Whose CPU it is.
    pub fn vendor(&self) -> Vendor {
        self.vendor
    }
}

/// [`CpuidTemplate::new`] and [`CpuidTemplate::for_vcpu`] in one.
///
/// # Errors
/// As [`CpuidTemplate::new`].
pub fn build_cpuid(
    host: &[CpuidEntry],
    model: &CpuModel,
    topology: &Topology,
    vcpu: u8,
    options: &CpuidOptions,
) -> Result<Vec<CpuidEntry>, CpuError> {
    Ok(CpuidTemplate::new(host, model, topology, options)?.for_vcpu(vcpu))
}

/// Physical address bits the host offers (0x8000_0008 EAX 7:0); 36 where it does not say.
pub fn phys_bits(host: &[CpuidEntry]) -> u8 {
    let leaf = host.iter().find(|entry| entry.function == 0x8000_0008);
    leaf.map_or(36, |entry| entry.eax as u8)
}

/// Paravirtual features KVM offers: 0x4000_0001 EAX of KVM_GET_SUPPORTED_CPUID.
pub fn kvm_features(host: &[CpuidEntry]) -> u32 {
    host.iter().find(|entry| entry.function == 0x4000_0001).map_or(0, |entry| entry.eax)
}

/// Vendor of the host's CPU from leaf 0.
pub fn vendor(host: &[CpuidEntry]) -> Vendor {
    host.iter().find(|entry| entry.function == 0).map_or(Vendor::Other, vendor_of)
}

fn vendor_of(leaf0: &CpuidEntry) -> Vendor {
    let mut name = [0u8; 12];
    for (bytes, register) in name.chunks_exact_mut(4).zip([leaf0.ebx, leaf0.edx, leaf0.ecx]) {
        bytes.copy_from_slice(&register.to_le_bytes());
    }
    match &name {
        b"GenuineIntel" => Vendor::Intel,
        b"AuthenticAMD" | b"HygonGenuine" => Vendor::Amd,
        _ => Vendor::Other,
    }
}

fn key(entry: &CpuidEntry) -> (u32, u32) {
    (entry.function, if entry.index_significant { entry.index } else { 0 })
}
