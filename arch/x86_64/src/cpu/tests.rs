//! CPUID tables are judged by a decoder of the tests' own, written from the vendors' manuals.

use proptest::prelude::*;

use super::*;

fn leaf(function: u32, registers: [u32; 4]) -> CpuidEntry {
    let [eax, ebx, ecx, edx] = registers;
    CpuidEntry { function, eax, ebx, ecx, edx, ..CpuidEntry::default() }
}

fn sub(function: u32, index: u32, registers: [u32; 4]) -> CpuidEntry {
    CpuidEntry { index, index_significant: true, ..leaf(function, registers) }
}

/// Leaf 0xD of a CPU with AVX, MPX, AVX-512, PKRU and AMX, as Sapphire Rapids lays it out.
fn xsave_leaves() -> Vec<CpuidEntry> {
    vec![
        sub(0xd, 0, [0x602ff, 2696, 11008, 0]),
        sub(0xd, 1, [0x1f, 2696, 0x1900, 0]),
        sub(0xd, 2, [256, 576, 0, 0]),
        sub(0xd, 3, [64, 960, 0, 0]),
        sub(0xd, 4, [64, 1024, 0, 0]),
        sub(0xd, 5, [64, 1088, 0, 0]),
        sub(0xd, 6, [512, 1152, 0, 0]),
        sub(0xd, 7, [1024, 1664, 0, 0]),
        sub(0xd, 8, [128, 0, 1, 0]),
        sub(0xd, 9, [8, 2688, 0, 0]),
        sub(0xd, 11, [16, 0, 1, 0]),
        sub(0xd, 12, [24, 0, 1, 0]),
        sub(0xd, 17, [64, 2752, 2, 0]),
        sub(0xd, 18, [8192, 2816, 6, 0]),
    ]
}

/// A host with every feature bit set: whatever a step forgets to mask shows.
fn host(vendor: Vendor) -> Vec<CpuidEntry> {
    let ones = u32::MAX;
    let name: [u32; 3] = match vendor {
        Vendor::Intel => [0x756e_6547, 0x6c65_746e, 0x4965_6e69],
        _ => [0x6874_7541, 0x444d_4163, 0x6974_6e65],
    };
    let mut host = vec![
        leaf(0, [0x20, name[0], name[1], name[2]]),
        leaf(1, [0x000c_06f2, 0x2a40_0800, ones, ones]),
        leaf(5, [0x40, 0x40, 3, 0x2020]),
        leaf(6, [ones; 4]),
        sub(7, 0, [2, ones, ones, ones]),
        sub(7, 1, [ones; 4]),
        sub(7, 2, [0, 0, 0, 0x3f]),
        leaf(0xa, [0x0830_0802, 0, 0xf, 0x8604]),
        sub(0xb, 0, [1, 2, 0x100, 42]),
        sub(0xb, 1, [7, 96, 0x201, 42]),
        sub(0x10, 0, [0, 2, 0, 0]),
        sub(0x12, 0, [3, 0, 0, 0]),
        sub(0x14, 0, [1, 0xf, 7, 0]),
        leaf(0x15, [2, 200, 25_000_000, 0]),
        leaf(0x16, [2000, 3800, 100, 0]),
        leaf(0x4000_0000, [0x4000_0001, 1, 2, 3]),
        leaf(0x4000_0001, [0x0100_7efb, 0, 0, 0]),
        leaf(0x8000_0000, [0x8000_0028, 0, 0, 0]),
        leaf(0x8000_0001, [0x000c_06f2, 0, ones, ones]),
        leaf(0x8000_0002, [0x6574_6e49; 4]),
        leaf(0x8000_0007, [ones; 4]),
        leaf(0x8000_0008, [0x0034_3934, ones, 0x705f, 0]),
        leaf(0x8000_000a, [1, 8, 0, ones]),
        leaf(0x8000_0021, [ones, 0, 0, 0]),
        leaf(0x8000_0022, [ones, 6, 0, 0]),
        leaf(0x8000_0026, [ones; 4]),
    ];
    host.extend(xsave_leaves());
    match vendor {
        Vendor::Intel => host.extend([
            // L1d, L1i, L2 of a core with two threads; L3 of a package of 128 ids.
            sub(4, 0, [0x7c00_4121, 0x2c0_003f, 63, 0]),
            sub(4, 1, [0x7c00_4122, 0x1c0_003f, 63, 0]),
            sub(4, 2, [0x7c00_4143, 0x3c0_003f, 2047, 0]),
            sub(4, 3, [0x7c1f_c163, 0x380_003f, 0x1_bfff, 4]),
            sub(4, 4, [0, 0, 0, 0]),
            sub(0x1f, 0, [1, 2, 0x100, 42]),
            sub(0x1f, 1, [7, 96, 0x201, 42]),
        ]),
        _ => host.extend([
            sub(0x8000_001d, 0, [0x4121, 0x1c0_003f, 63, 0]),
            sub(0x8000_001d, 1, [0x4122, 0x1c0_003f, 63, 0]),
            sub(0x8000_001d, 2, [0x4143, 0x1c0_003f, 2047, 2]),
            sub(0x8000_001d, 3, [0x3_c163, 0x3c0_003f, 0x7fff, 1]),
            sub(0x8000_001d, 4, [0, 0, 0, 0]),
            leaf(0x8000_001e, [42, 0x115, 1, 0]),
        ]),
    }
    host
}

fn options() -> CpuidOptions {
    CpuidOptions {
        tsc_khz: Some(2_494_140),
        apic_timer_hz: 1_000_000_000,
        hypervisor: HypervisorLeaves::Kvm { features: 0x0100_7efb, hints: 0 },
        x2apic: true,
        tsc_deadline: true,
        phys_bits: 46,
    }
}

fn build(vendor: Vendor, model: &str, topology: Topology, vcpu: u8) -> Vec<CpuidEntry> {
    build_cpuid(&host(vendor), &model.parse().unwrap(), &topology, vcpu, &options()).unwrap()
}

fn simple(vendor: Vendor, model: &str) -> Vec<CpuidEntry> {
    build(vendor, model, Topology::new(1).unwrap(), 0)
}

/// What a guest's CPUID instruction returns: zeros where the table has nothing.
fn cpuid(table: &[CpuidEntry], function: u32, index: u32) -> [u32; 4] {
    let entry = table.iter().find(|e| e.function == function && (!e.index_significant || e.index == index));
    entry.map_or([0; 4], |e| [e.eax, e.ebx, e.ecx, e.edx])
}

/// Flags of a table by name, as a guest would list them.
fn flags(table: &[CpuidEntry]) -> Vec<&'static str> {
    features::Feature::all()
        .filter(|feature| {
            let word = feature.word();
            let found = table.iter().find(|e| (e.function, e.index) == (word.function, word.index));
            found.is_some_and(|entry| word.reg.of(entry) & feature.mask() != 0)
        })
        .map(features::Feature::name)
        .collect()
}

/// APIC id, threads, vCPUs of a socket, and the two shifts, from leaf 0xB or 0x1F (Intel SDM vol. 3, example 9-2).
fn decode_x2apic_leaf(table: &[CpuidEntry], function: u32) -> (u32, u32, u32, u32, u32) {
    let [thread_shift, threads, kind, id] = cpuid(table, function, 0);
    assert_eq!(kind, 0x100, "level 0 is threads");
    let [socket_shift, in_socket, kind, id_again] = cpuid(table, function, 1);
    assert_eq!(kind, 0x201, "level 1 is cores");
    assert_eq!(id, id_again);
    let [end, none, kind, _] = cpuid(table, function, 2);
    assert_eq!((end, none, kind >> 8), (0, 0, 0), "level 2 ends the list");
    (id, threads, in_socket, thread_shift, socket_shift)
}

fn any_topology() -> impl Strategy<Value = Topology> {
    (1u32..=8, 1u32..=64, 1u32..=4)
        .prop_filter_map("ids must be dense", |(sockets, cores, threads)| Topology::with(sockets, cores, threads).ok())
}

proptest! {
    #[test]
    fn topology_leaves_decode_back_to_the_topology(topology in any_topology(), amd: bool, pick: u8) {
        let vendor = if amd { Vendor::Amd } else { Vendor::Intel };
        let vcpu = pick % topology.vcpus();
        let table = build(vendor, "host", topology, vcpu);
        let (threads, cores) = (u32::from(topology.threads()), u32::from(topology.cores()));
        let in_socket = threads * cores;

        let (id, got_threads, got_in_socket, thread_shift, socket_shift) = decode_x2apic_leaf(&table, 0xb);
        prop_assert_eq!(id, u32::from(vcpu));
        prop_assert_eq!((got_threads, got_in_socket), (threads, in_socket));
        let vcpu = u32::from(vcpu);
        prop_assert_eq!(id >> socket_shift, vcpu / in_socket);
        prop_assert_eq!((id & ((1 << socket_shift) - 1)) >> thread_shift, vcpu % in_socket / threads);
        prop_assert_eq!(id & ((1 << thread_shift) - 1), vcpu % threads);

        let [_, ebx, _, edx] = cpuid(&table, 1, 0);
        prop_assert_eq!(ebx >> 24, vcpu);
        prop_assert_eq!(edx >> 28 & 1 == 1, in_socket > 1);
        prop_assert!((ebx >> 16 & 0xff) >= in_socket.min(255));
        if amd {
            let [_, _, sizes, _] = cpuid(&table, 0x8000_0008, 0);
            prop_assert_eq!((sizes & 0xff) + 1, in_socket);
            prop_assert_eq!(sizes >> 12 & 0xf, socket_shift);
            let [ext_id, core, node, _] = cpuid(&table, 0x8000_001e, 0);
            prop_assert_eq!(ext_id, vcpu);
            prop_assert_eq!(core & 0xff, vcpu % in_socket / threads);
            prop_assert_eq!((core >> 8 & 0xff) + 1, threads);
            prop_assert_eq!(node, vcpu / in_socket);
            let [l3, _, _, _] = cpuid(&table, 0x8000_001d, 3);
            prop_assert_eq!((l3 >> 14 & 0xfff) + 1, in_socket);
        } else {
            prop_assert_eq!(decode_x2apic_leaf(&table, 0x1f), decode_x2apic_leaf(&table, 0xb));
            for (index, shift) in [(0, thread_shift), (1, thread_shift), (2, thread_shift), (3, socket_shift)] {
                let [cache, ..] = cpuid(&table, 4, index);
                prop_assert_eq!((cache >> 14 & 0xfff) + 1, 1 << shift);
            }
        }
    }

    #[test]
    fn masked_flags_stay_masked_and_everything_that_needs_them_goes(
        amd: bool, base in prop::sample::select(vec!["host", "x86-64-v2", "x86-64-v3"]),
        removed in prop::collection::vec(0usize..400, 0..6)
    ) {
        let names: Vec<_> = features::Feature::all().map(features::Feature::name).collect();
        let removed: Vec<_> = removed.iter().map(|at| names[at % names.len()]).collect();
        let mut model = base.to_owned();
        removed.iter().for_each(|name| model.push_str(&format!(",-{name}")));
        let vendor = if amd { Vendor::Amd } else { Vendor::Intel };
        let flags = flags(&simple(vendor, &model));
        for name in &removed {
            // These two describe the topology, which the model cannot contradict.
            prop_assert!(["ht", "cmp_legacy"].contains(name) || !flags.contains(name), "{name} in {model}");
        }
        for (needs, dependant) in features::dependencies() {
            prop_assert!(
                !flags.contains(&dependant.name()) || flags.contains(&needs.name()),
                "{} without {} in {}", dependant.name(), needs.name(), model
            );
        }
    }

    #[test]
    fn tables_are_sorted_free_of_duplicates_and_within_their_own_limits(
        topology in any_topology(), amd: bool, base in prop::sample::select(vec!["host", "x86-64-v2", "host,-xsave"])
    ) {
        let vendor = if amd { Vendor::Amd } else { Vendor::Intel };
        let table = build(vendor, base, topology, 0);
        for pair in table.windows(2) {
            prop_assert!((pair[0].function, pair[0].index) < (pair[1].function, pair[1].index));
            prop_assert!(pair[0].function != pair[1].function || pair[0].index_significant);
        }
        for entry in &table {
            let limit = cpuid(&table, entry.function & 0xf000_0000, 0)[0];
            prop_assert!(entry.function <= limit, "{:#x} beyond {:#x}", entry.function, limit);
        }
        prop_assert!(table.len() <= 256, "bhyve takes 256 entries");
    }
}

#[test]
fn host_hides_nested_virtualization_counters_and_the_invariant_tsc() {
    for vendor in [Vendor::Intel, Vendor::Amd] {
        let table = simple(vendor, "host");
        let flags = flags(&table);
        for hidden in ["vmx", "svm", "npt", "pdcm", "perfctr_core", "perfmon_v2", "invtsc", "monitor", "intel_pt"] {
            assert!(!flags.contains(&hidden), "{hidden}");
        }
        assert_eq!(cpuid(&table, 0xa, 0), [0; 4], "no counters");
        assert_eq!(cpuid(&table, 0x8000_0007, 0), [0; 4]);
        for shown in ["avx512f", "amx_tile", "x2apic", "hypervisor", "tsc_deadline_timer", "arat"] {
            assert!(flags.contains(&shown), "{shown}");
        }
    }
}

#[test]
fn what_host_hides_can_be_asked_for() {
    let table = simple(Vendor::Amd, "host,+svm,+pmu,+invtsc");
    let flags = flags(&table);
    for shown in ["svm", "perfctr_core", "perfmon_v2", "invtsc"] {
        assert!(flags.contains(&shown), "{shown}");
    }
    assert!(flags.contains(&"npt") || cpuid(&table, 0x8000_000a, 0)[3] != 0);
    assert_ne!(cpuid(&table, 0xa, 0), [0; 4]);
}

#[test]
fn masking_xsave_leaves_no_trace_of_it() {
    let table = simple(Vendor::Intel, "host,-xsave");
    assert_eq!(cpuid(&table, 0xd, 0), [0; 4]);
    assert_eq!(cpuid(&table, 0xd, 1), [0; 4]);
    let flags = flags(&table);
    for gone in ["xsave", "avx", "avx2", "avx512f", "avx512_fp16", "fma", "f16c", "pku", "mpx", "amx_tile", "vaes"] {
        assert!(!flags.contains(&gone), "{gone}");
    }
    assert!(flags.contains(&"sse4_2"));
}

#[test]
fn the_xsave_area_shrinks_with_the_features() {
    let components = |model: &str| {
        let table = simple(Vendor::Intel, model);
        let [low, now, largest, high] = cpuid(&table, 0xd, 0);
        assert_eq!((now, high), (576, 0));
        for component in 2..63 {
            let size = cpuid(&table, 0xd, component)[0];
            let user = u64::from(low) >> component & 1 == 1;
            let supervisor = cpuid(&table, 0xd, 1)[2] >> component.min(31) & 1 == 1 && component < 32;
            assert_eq!(size != 0, user || supervisor, "component {component} of {model}");
        }
        (low, largest)
    };
    assert_eq!(components("host"), (0x602ff, 11008));
    assert_eq!(components("host,-amx-tile"), (0x2ff, 2696));
    assert_eq!(components("host,-amx-tile,-avx512f,-mpx,-pku"), (0x7, 832));
    assert_eq!(components("host,-amx-tile,-avx,-mpx,-pku"), (0x3, 576));
}

#[test]
fn baselines_show_their_level_and_nothing_of_the_host() {
    let v2 = simple(Vendor::Intel, "x86-64-v2");
    let names = flags(&v2);
    assert!(names.contains(&"sse4_2") && names.contains(&"popcnt"));
    for hidden in ["avx", "xsave", "aes", "rdrand", "spec_ctrl", "erms", "vmx"] {
        assert!(!names.contains(&hidden), "{hidden}");
    }
    assert_eq!(cpuid(&v2, 1, 0)[0], 0x0001_06a3);
    assert_eq!(cpuid(&v2, 7, 1), [0; 4]);
    let v3 = flags(&simple(Vendor::Intel, "x86-64-v3,+aes,-movbe"));
    assert!(v3.contains(&"avx2") && v3.contains(&"aes") && !v3.contains(&"movbe"));
    assert_eq!(cpuid(&simple(Vendor::Intel, "x86-64-v3"), 0xd, 0)[0], 7);
}

#[test]
fn two_different_hosts_give_the_same_baseline_guest() {
    let mut other = host(Vendor::Amd);
    for entry in &mut other {
        match entry.function {
            // An older CPU: other model, no AVX-512, smaller XSAVE area.
            1 => entry.eax = 0x00a2_0f10,
            7 if entry.index == 0 => entry.ebx &= 0xffff,
            0xd if entry.index == 0 => (entry.eax, entry.ecx) = (0x207, 2440),
            0x8000_0001 => entry.eax = 0x00a2_0f10,
            0x8000_0002 => entry.eax = 7,
            _ => {}
        }
    }
    for model in ["x86-64-v2", "x86-64-v3"] {
        let on = |host: &[CpuidEntry]| {
            build_cpuid(host, &model.parse().unwrap(), &Topology::new(2).unwrap(), 1, &options()).unwrap()
        };
        assert_eq!(on(&host(Vendor::Amd)), on(&other), "{model}");
    }
}

#[test]
fn hosts_below_a_baseline_are_refused_with_the_missing_flags() {
    let mut old = host(Vendor::Intel);
    old.iter_mut().filter(|e| (e.function, e.index) == (7, 0)).for_each(|e| e.ebx &= !(1 << 5 | 1 << 8));
    let model = "x86-64-v3".parse().unwrap();
    assert_eq!(
        build_cpuid(&old, &model, &Topology::new(1).unwrap(), 0, &options()).unwrap_err().to_string(),
        "this host cannot run CPU model x86-64-v3: it lacks avx2, bmi2"
    );
}

#[test]
fn flags_the_host_does_not_offer_are_refused() {
    let refuse = |host: &[CpuidEntry], model: &str| {
        build_cpuid(host, &model.parse().unwrap(), &Topology::new(1).unwrap(), 0, &options()).unwrap_err().to_string()
    };
    let mut plain = host(Vendor::Intel);
    plain.retain(|entry| entry.function != 7 && entry.function != 0xa);
    plain.iter_mut().filter(|e| e.function == 0x8000_0001).for_each(|e| e.ecx = 0);
    let not_offered = |flag| {
        format!("CPU flag '{flag}' is not offered by this host: its CPU or hypervisor does not support it for guests")
    };
    assert_eq!(refuse(&plain, "host,+avx2"), not_offered("avx2"));
    assert_eq!(refuse(&plain, "host,+pmu"), not_offered("pmu"));
    assert_eq!(refuse(&host(Vendor::Intel), "host,+intel-pt"), not_offered("intel_pt"));
    assert_eq!(
        refuse(&host(Vendor::Intel), "x86-64-v2,+avx"),
        "CPU flag 'avx' needs 'xsave', which this CPU model does not have: add '+xsave'"
    );
}

#[test]
fn hosts_without_the_leaves_every_guest_needs_are_refused() {
    let without = |function| {
        let mut host = host(Vendor::Intel);
        host.retain(|entry| entry.function != function);
        build_cpuid(&host, &CpuModel::default(), &Topology::new(1).unwrap(), 0, &options()).unwrap_err()
    };
    for function in [0, 1, 0x8000_0000, 0x8000_0001] {
        assert_eq!(without(function), CpuError::NoLeaf(function));
    }
}

#[test]
fn hypervisor_leaves_are_those_of_the_hypervisor() {
    let with = |hypervisor, model: &str| {
        let options = CpuidOptions { hypervisor, ..options() };
        build_cpuid(&host(Vendor::Intel), &model.parse().unwrap(), &Topology::new(1).unwrap(), 0, &options).unwrap()
    };
    let kvm = with(HypervisorLeaves::Kvm { features: 0x0100_7efb, hints: 1 }, "host");
    assert_eq!(cpuid(&kvm, 0x4000_0000, 0), [0x4000_0010, 0x4b4d_564b, 0x564b_4d56, 0x4d]);
    assert_eq!(cpuid(&kvm, 0x4000_0001, 0), [0x0100_7efb, 0, 0, 1]);
    assert_eq!(cpuid(&kvm, 0x4000_0010, 0), [2_494_140, 1_000_000, 0, 0]);
    let no_clock = with(HypervisorLeaves::Kvm { features: 0x0100_7efb, hints: 1 }, "host,-kvmclock");
    assert_eq!(cpuid(&no_clock, 0x4000_0001, 0)[0], 0x7ef2);

    let bhyve = with(HypervisorLeaves::Bhyve, "host");
    let [b0, b1, b2] = [b"bhyv", b"e bh", b"yve "].map(|text| u32::from_le_bytes(*text));
    assert_eq!(cpuid(&bhyve, 0x4000_0000, 0), [0x4000_0000, b0, b1, b2]);
    assert_eq!(cpuid(&bhyve, 0x4000_0001, 0), [0; 4]);
    assert!(flags(&bhyve).contains(&"hypervisor"));

    let none = with(HypervisorLeaves::None, "host");
    assert_eq!(cpuid(&none, 0x4000_0000, 0), [0; 4]);
    assert!(!flags(&none).contains(&"hypervisor"));
}

#[test]
fn intel_guests_compute_the_tsc_frequency_from_leaf_15_with_32_bit_arithmetic() {
    for tsc_khz in [1_000_000, 2_494_140, 2_600_000, 3_399_999, 4_200_003, 800_000, 1_995_382] {
        for apic_timer_hz in [1_000_000_000, 1 << 27] {
            let options = CpuidOptions { tsc_khz: Some(tsc_khz), apic_timer_hz, ..options() };
            let topology = Topology::new(1).unwrap();
            let table = build_cpuid(&host(Vendor::Intel), &CpuModel::default(), &topology, 0, &options).unwrap();
            let [denominator, numerator, crystal_hz, _] = cpuid(&table, 0x15, 0);
            assert_eq!(crystal_hz, apic_timer_hz, "Linux clocks the APIC timer by the crystal");
            let product = (crystal_hz / 1000).checked_mul(numerator).expect("Linux multiplies in 32 bits");
            let error_ppm = (f64::from(product / denominator) / f64::from(tsc_khz) - 1.0).abs() * 1e6;
            assert!(error_ppm < 5.0, "{tsc_khz} kHz with a crystal of {apic_timer_hz} Hz: {error_ppm} ppm off");
        }
    }
    assert_eq!(cpuid(&simple(Vendor::Amd, "host"), 0x15, 0), [0; 4], "AMD does not define the leaf");
}

#[test]
fn amd_guests_always_find_first_level_caches() {
    let caches = |l1: Option<CpuidEntry>| {
        let mut host = host(Vendor::Amd);
        host.extend(l1);
        let table = build_cpuid(&host, &CpuModel::default(), &Topology::new(1).unwrap(), 0, &options()).unwrap();
        cpuid(&table, 0x8000_0005, 0)
    };
    // Size in KiB, ways, lines a tag, line size (AMD APM vol. 3, Fn8000_0005).
    let decode = |register: u32| register.to_be_bytes();
    for unknown in [None, Some(leaf(0x8000_0005, [0; 4]))] {
        let [_, _, data, code] = caches(unknown);
        assert_eq!((decode(data), decode(code)), ([64, 2, 1, 64], [64, 2, 1, 64]));
    }
    let real = [0xff40_ff40, 0xff40_ff40, 0x2008_0140, 0x2008_0140];
    assert_eq!(caches(Some(leaf(0x8000_0005, real))), real, "what the host says stays");
    assert_eq!(cpuid(&simple(Vendor::Intel, "host"), 0x8000_0005, 0), [0; 4]);
}

#[test]
fn the_address_width_is_the_one_given_and_the_linear_width_the_hosts() {
    assert_eq!(cpuid(&simple(Vendor::Intel, "host"), 0x8000_0008, 0)[0], 46 | 0x39 << 8);
}

#[test]
fn the_helpers_read_the_hosts_table() {
    assert_eq!(phys_bits(&host(Vendor::Intel)), 52);
    assert_eq!(kvm_features(&host(Vendor::Amd)), 0x0100_7efb);
    assert_eq!(vendor(&host(Vendor::Amd)), Vendor::Amd);
    assert_eq!(vendor(&[]), Vendor::Other);
}

#[test]
fn the_bit_test_host_has_every_flag_the_tables_name() {
    let known = features::Feature::all().count();
    let kvm_bits = 15;
    assert!(flags(&host(Vendor::Amd)).len() >= known - kvm_bits, "a flag without a leaf proves nothing");
}
