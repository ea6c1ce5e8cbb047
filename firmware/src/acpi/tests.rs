//! The tables are read back by a decoder of the tests' own: headers, checksums and pointers as ACPI 6.5 §5.2 defines
//! them, AML as §20.2 does. Where `iasl` is installed it has to take the DSDT apart without complaint, too.

use std::collections::BTreeMap;
use std::process::Command;

use proptest::prelude::*;

use super::*;

mod aml;

use aml::{DEVICE, Namespace, Resource, Value, resources, u16_at, u32_at, u64_at};

const BASE: u64 = layout::ACPI_TABLES;

fn map() -> MemoryLayout {
    MemoryLayout::new(5 << 30, 40).unwrap()
}

fn profiles(vcpus: u8) -> [AcpiConfig; 3] {
    [AcpiConfig::i440fx(vcpus, &map()), AcpiConfig::micro(vcpus, &map()), AcpiConfig::bhyve(vcpus, &map())]
}

/// Guest memory as the tables see it.
struct Memory(Vec<(u64, Vec<u8>)>);

impl Memory {
    fn of(config: &AcpiConfig) -> Self {
        Self(build_acpi(config, BASE).blobs)
    }

    fn at(&self, address: u64) -> &[u8] {
        let (start, bytes) =
            self.0.iter().find(|(start, bytes)| (*start..start + bytes.len() as u64).contains(&address)).unwrap();
        &bytes[(address - start) as usize..]
    }

    fn tables(&self) -> BTreeMap<[u8; 4], &[u8]> {
        let rsdp = self.at(BASE);
        assert_eq!(&rsdp[..8], b"RSD PTR ");
        assert_eq!((sum(&rsdp[..20]), sum(&rsdp[..36])), (0, 0));
        assert_eq!(rsdp[15], 2, "revision");
        let xsdt = self.table(u64_at(rsdp, 24));
        assert_eq!(&xsdt[..4], b"XSDT");
        let mut tables: BTreeMap<_, _> = xsdt[36..]
            .chunks_exact(8)
            .map(|pointer| {
                let table = self.table(u64_at(pointer, 0));
                (table[..4].try_into().unwrap(), table)
            })
            .collect();
        let fadt = tables[b"FACP"];
        tables.insert(*b"DSDT", self.table(u64_at(fadt, 140)));
        tables
    }

    fn table(&self, address: u64) -> &[u8] {
        let bytes = self.at(address);
        let table = &bytes[..u32_at(bytes, 4) as usize];
        assert_eq!(sum(table), 0, "checksum of {:?}", String::from_utf8_lossy(&table[..4]));
        assert_eq!(table.len(), bytes.len(), "the length covers the table and nothing else");
        table
    }
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

#[test]
fn every_pointer_leads_to_a_table_with_a_good_checksum() {
    for config in profiles(2) {
        let memory = Memory::of(&config);
        let tables = memory.tables();
        let mut expected = vec![*b"APIC", *b"DSDT", *b"FACP", *b"MCFG"];
        if config.hpet {
            expected.push(*b"HPET");
        }
        expected.sort();
        assert_eq!(tables.keys().copied().collect::<Vec<_>>(), expected, "{:?}", config.profile);
        let fadt = tables[b"FACP"];
        assert_eq!((fadt.len(), fadt[8], fadt[131]), (276, 6, 5));
        assert_eq!(u64::from(u32_at(fadt, 40)), u64_at(fadt, 140), "both DSDT pointers agree");
        let facs = u64::from(u32_at(fadt, 36));
        assert_eq!(facs % 64, 0, "ACPI 6.5 §5.2.10");
        assert_eq!(&memory.at(facs)[..4], b"FACS");
        assert_eq!(u64_at(fadt, 132), 0, "one FACS pointer only");
    }
}

#[test]
fn the_rsdp_lies_where_a_scan_finds_it() {
    assert_eq!(BASE % 16, 0);
    assert!((0xe_0000..0x10_0000).contains(&BASE));
}

#[test]
fn absent_devices_are_declared_absent() {
    let boot_arch = |config: &AcpiConfig| u16_at(Memory::of(config).tables()[b"FACP"], 109);
    let [i440fx, mut micro, _] = profiles(1);
    assert_eq!(boot_arch(&i440fx), 0b00_0111, "legacy devices, i8042, no VGA");
    assert_eq!(boot_arch(&micro), 0b10_0101, "COM1, no VGA, no RTC");
    micro.com = [false; 4];
    micro.vga = true;
    assert_eq!(boot_arch(&micro), 0b10_0000);
    let century = |config: &AcpiConfig| Memory::of(config).tables()[b"FACP"][108];
    assert_eq!((century(&i440fx), century(&micro)), (0x32, 0));
}

#[test]
fn the_fadt_names_the_power_management_ports_twice_and_alike() {
    for config in profiles(1) {
        let memory = Memory::of(&config);
        let fadt = memory.tables()[b"FACP"];
        let register = |at: usize| (fadt[at], fadt[at + 1], u64_at(fadt, at + 4));
        let both = |legacy: usize, length: usize, extended: usize, port: u16, bytes: u8| {
            assert_eq!(u32_at(fadt, legacy), u32::from(port));
            assert_eq!(fadt[length], bytes);
            let expected = if port == 0 { (0, 0, 0) } else { (1, bytes * 8, u64::from(port)) };
            assert_eq!(register(extended), expected);
        };
        both(56, 88, 148, config.pm.event_port, 4);
        both(64, 89, 172, config.pm.control_port, 2);
        both(76, 91, 208, config.pm.timer.map_or(0, |timer| timer.port), config.pm.timer.map_or(0, |_| 4));
        both(80, 92, 220, config.pm.gpe0.map_or(0, |gpe| gpe.port), config.pm.gpe0.map_or(0, |gpe| gpe.len));
        assert_eq!(u16_at(fadt, 46), 9, "SCI");

        let flags = u32_at(fadt, 112);
        assert_eq!(register(116), (1, 8, 0xcf9));
        assert_eq!((fadt[128], flags >> 10 & 1), (6, 1), "reset by register, not by keyboard controller");
        assert_eq!(flags >> 4 & 0b111, 0b110, "fixed power button, no sleep button, no fixed RTC");
        assert_eq!(flags >> 20 & 1, 0, "not hardware-reduced");
        assert_eq!(flags >> 8 & 1 == 1, config.pm.timer.is_some_and(|timer| timer.wide));
        let smi = config.pm.smi.map_or((0, 0, 0), |smi| (u32::from(smi.port), smi.enable, smi.disable));
        assert_eq!((u32_at(fadt, 48), fadt[52], fadt[53]), smi);
    }
}

#[test]
fn a_general_purpose_event_block_appears_when_there_is_one() {
    let mut config = AcpiConfig::i440fx(1, &map());
    config.pm.gpe0 = Some(Gpe { port: 0xafe0, len: 4 });
    let memory = Memory::of(&config);
    let fadt = memory.tables()[b"FACP"];
    assert_eq!((u32_at(fadt, 80), fadt[92], fadt[221], u64_at(fadt, 224)), (0xafe0, 4, 32, 0xafe0));
}

/// Entries of the MADT by type.
fn madt_entries(madt: &[u8]) -> Vec<(u8, &[u8])> {
    let mut rest = &madt[44..];
    let mut entries = Vec::new();
    while !rest.is_empty() {
        let (entry, after) = rest.split_at(usize::from(rest[1]));
        entries.push((entry[0], &entry[2..]));
        rest = after;
    }
    entries
}

proptest! {
    #[test]
    fn every_vcpu_has_an_enabled_apic_and_a_processor_of_its_number(vcpus in 1u8..=254, pick in 0usize..3) {
        let config = &profiles(vcpus)[pick];
        let memory = Memory::of(config);
        let tables = memory.tables();
        let apics: Vec<_> = madt_entries(tables[b"APIC"]).into_iter().filter(|(kind, _)| *kind == 0).collect();
        prop_assert_eq!(apics.len(), usize::from(vcpus));
        for (vcpu, (_, apic)) in (0u8..).zip(apics) {
            prop_assert_eq!(apic, &[vcpu, vcpu, 1, 0, 0, 0][..]);
        }
        let names = Namespace::of(tables[b"DSDT"]);
        for vcpu in 0..vcpus {
            let path = format!("_SB_.C{vcpu:03X}._UID");
            prop_assert_eq!(names.get(&path), Some(&Value::Int(vcpu.into())));
        }
        let end = memory.0.iter().map(|(at, bytes)| at + bytes.len() as u64).max().unwrap();
        prop_assert!(end <= BASE + layout::ACPI_TABLES_MAX);
        for pair in memory.0.windows(2) {
            prop_assert!(pair[0].0 + pair[0].1.len() as u64 <= pair[1].0);
        }
    }
}

#[test]
fn the_madt_routes_the_timer_the_sci_and_isa_interrupts_of_pci() {
    let overrides = |config: &AcpiConfig| -> Vec<(u8, u32, u16)> {
        let memory = Memory::of(config);
        let madt = memory.tables()[b"APIC"];
        assert_eq!((u32_at(madt, 36), u32_at(madt, 40)), (0xfee0_0000, 1));
        let entries = madt_entries(madt);
        let ioapics: Vec<_> = entries.iter().filter(|(kind, _)| *kind == 1).collect();
        assert_eq!(ioapics, [&(1, &[0, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0][..])]);
        assert!(entries.contains(&(4, &[0xff, 0, 0, 1])), "NMI on LINT1 of all");
        let of_isa = entries.iter().filter(|(kind, _)| *kind == 2);
        of_isa.map(|(_, entry)| (entry[1], u32_at(entry, 2), u16_at(entry, 6))).collect()
    };
    let [i440fx, micro, bhyve] = profiles(1);
    assert_eq!(overrides(&i440fx), [(0, 2, 0), (9, 9, 0xf), (10, 10, 0xf), (11, 11, 0xf)]);
    assert_eq!(overrides(&micro), [(0, 2, 0), (9, 9, 0xf)]);
    assert_eq!(overrides(&bhyve), overrides(&micro));
}

#[test]
fn the_pci_root_has_bus_zero_only_and_windows_that_miss_ram_and_ecam() {
    for config in profiles(1) {
        let memory = Memory::of(&config);
        let tables = memory.tables();
        let names = Namespace::of(tables[b"DSDT"]);
        let root = if config.profile == Profile::Bhyve { "_SB_.PC00" } else { "_SB_.PCI0" };
        let windows = resources(&names, root);
        assert_eq!(
            windows,
            [
                Resource::Bus(0, 0),
                Resource::Port(0xcf8, 8),
                Resource::PortWindow(0, 0xcf7),
                Resource::PortWindow(0xd00, 0xffff),
                Resource::MemoryWindow(0xc000_0000, 0xdfff_ffff),
                Resource::MemoryWindow(6 << 30, (6 << 30) + (512 << 30) - 1),
            ]
        );
        let mcfg = tables[b"MCFG"];
        assert_eq!((u64_at(mcfg, 44), mcfg[54], mcfg[55]), (0xe000_0000, 0, 0), "bus 0 to 0");
        assert!(
            resources(&names, "_SB_.MBRD").contains(&Resource::Memory(0xe000_0000, 1 << 20)),
            "Linux uses the window only if the board claims it"
        );
        assert_eq!(names.get(&format!("{root}._HID")), Some(&Value::Int(0x030a_d041)), "PNP0A03");
        assert_eq!(names.get(&format!("{root}._BBN")), Some(&Value::Int(0)));
    }
}

#[test]
fn the_board_claims_power_management_ports_unless_a_pci_function_does() {
    let [i440fx, micro, bhyve] = profiles(1).map(|config| {
        let memory = Memory::of(&config);
        resources(&Namespace::of(memory.tables()[b"DSDT"]), "_SB_.MBRD")
    });
    let ecam = Resource::Memory(0xe000_0000, 1 << 20);
    assert_eq!(i440fx, std::slice::from_ref(&ecam), "the PIIX4 function has the ports");
    assert_eq!(micro, [Resource::Port(0x600, 4), Resource::Port(0x604, 2), ecam.clone()]);
    let ports = [(0x4d0, 2), (0x61, 1), (0x400, 4), (0x404, 2), (0x408, 4), (0x40c, 2), (0xb2, 1)];
    assert_eq!(bhyve[..7], ports.map(|(port, len)| Resource::Port(port, len)));
    assert_eq!(bhyve[7..], [ecam]);
}

#[test]
fn a_machine_without_ecam_has_no_mcfg() {
    let mut config = AcpiConfig::i440fx(1, &map());
    config.ecam = None;
    let memory = Memory::of(&config);
    let tables = memory.tables();
    assert!(!tables.contains_key(b"MCFG"));
    let names = Namespace::of(tables[b"DSDT"]);
    assert_eq!(names.get("_SB_.MBRD"), None, "nothing is left for the board to claim");
}

#[test]
fn interrupt_routing_says_what_it_was_given() {
    let mut config = AcpiConfig::micro(1, &map());
    let routing = |config: &AcpiConfig| {
        let memory = Memory::of(config);
        let Some(Value::Package(routes)) = Namespace::of(memory.tables()[b"DSDT"]).get("_SB_.PCI0._PRT").cloned()
        else {
            panic!("no _PRT")
        };
        routes
    };
    let entry =
        |device: u64, pin: u64, gsi: u64| Value::Package([device << 16 | 0xffff, pin, 0, gsi].map(Value::Int).to_vec());
    let all = routing(&config);
    assert_eq!(all.len(), 128);
    assert_eq!(all[4], entry(1, 0, 16), "INTA# of device 1 is the first link");
    assert_eq!(all[9], entry(2, 1, 18), "pins rotate");
    config.intx = vec![IntxRoute { device: 31, pin: 3, gsi: 23 }];
    assert_eq!(routing(&config), [entry(31, 3, 23)]);
}

#[test]
fn only_devices_the_machine_has_are_named() {
    let devices = |config: &AcpiConfig| -> Vec<String> {
        let memory = Memory::of(config);
        Namespace::of(memory.tables()[b"DSDT"]).devices().iter().map(|name| (*name).to_owned()).collect()
    };
    let [mut i440fx, micro, mut bhyve] = profiles(1);
    assert_eq!(devices(&micro), ["_SB_.C000", "_SB_.COM1", "_SB_.MBRD", "_SB_.PCI0"]);
    let below_lpc: Vec<String> =
        devices(&bhyve).iter().filter_map(|name| name.strip_prefix("_SB_.PC00.LPC_.").map(str::to_owned)).collect();
    let expected = "COM1 COM2 COM3 COM4 KBD_ LNKA LNKB LNKC LNKD LNKE LNKF LNKG LNKH MOU_ PIC_ RTC_ TIMR";
    assert_eq!(below_lpc.join(" "), expected);
    assert!(!devices(&bhyve).contains(&"_SB_.PC00.HPET".to_owned()));
    bhyve.hpet = true;
    assert!(devices(&bhyve).contains(&"_SB_.PC00.HPET".to_owned()));
    i440fx.com = [true; 4];
    i440fx.pvpanic = Some(0x505);
    let all = devices(&i440fx);
    for name in ["COM1", "COM2", "COM3", "COM4", "RTC_", "KBD_", "MOU_", "PEVT"] {
        assert!(all.contains(&format!("_SB_.PCI0.ISA_.{name}")), "{name}");
    }
}

#[test]
fn legacy_devices_have_the_resources_of_a_pc() {
    let mut config = AcpiConfig::i440fx(1, &map());
    config.com = [true, true, false, true];
    config.pvpanic = Some(0x505);
    let memory = Memory::of(&config);
    let names = Namespace::of(memory.tables()[b"DSDT"]);
    let of = |device: &str| resources(&names, &format!("_SB_.PCI0.ISA_.{device}"));
    assert_eq!(of("COM1"), [Resource::Port(0x3f8, 8), Resource::Irq(4)]);
    assert_eq!(of("COM2"), [Resource::Port(0x2f8, 8), Resource::Irq(3)]);
    assert_eq!(of("COM4"), [Resource::Port(0x2e8, 8), Resource::Irq(3)]);
    assert_eq!(of("RTC_"), [Resource::Port(0x70, 2), Resource::Irq(8)]);
    assert_eq!(of("KBD_"), [Resource::Port(0x60, 1), Resource::Port(0x64, 1), Resource::Irq(1)]);
    assert_eq!(of("MOU_"), [Resource::Irq(12)]);
    assert_eq!(of("PEVT"), [Resource::Port(0x505, 1)]);
    assert_eq!(names.get("_SB_.PCI0.ISA_.PEVT._HID"), Some(&Value::Text("QEMU0001".to_owned())));
    assert_eq!(names.get("_SB_.PCI0.ISA_.COM1._HID"), Some(&Value::Int(0x0105_d041)), "PNP0501");
    assert_eq!(names.get("_SB_.PCI0.ISA_._ADR"), Some(&Value::Int(0x1_0000)), "00:01.0");
}

#[test]
fn soft_off_uses_the_sleep_type_of_the_profile() {
    for (config, sleep_type) in profiles(1).iter().zip([0, 0, 5]) {
        let memory = Memory::of(config);
        let names = Namespace::of(memory.tables()[b"DSDT"]);
        let package = [sleep_type, sleep_type, 0, 0].map(Value::Int).to_vec();
        assert_eq!(names.get("_S5_"), Some(&Value::Package(package)));
    }
}

#[test]
fn the_hpet_is_the_one_of_the_kernel_of_bhyve() {
    let mut config = AcpiConfig::bhyve(1, &map());
    assert!(!Memory::of(&config).tables().contains_key(b"HPET"), "no kernel, no HPET");
    config.hpet = true;
    let memory = Memory::of(&config);
    let tables = memory.tables();
    let hpet = tables[b"HPET"];
    assert_eq!((u32_at(hpet, 36), u64_at(hpet, 44)), (0x8086_0701, 0xfed0_0000));
    let names = Namespace::of(tables[b"DSDT"]);
    assert_eq!(resources(&names, "_SB_.PC00.HPET"), [Resource::Memory(0xfed0_0000, 0x400)]);
}

#[test]
fn under_bhyve_windows_finds_the_root_by_the_name_it_knows() {
    let memory = Memory::of(&AcpiConfig::bhyve(1, &map()));
    let names = Namespace::of(memory.tables()[b"DSDT"]);
    assert_eq!(names.get("_SB_.PC00._UID"), None);
    assert_eq!(names.get("_SB_.PC00.LPC_._ADR"), Some(&Value::Int(0x1f_0000)), "00:1f.0");
}

#[test]
fn bhyve_has_a_routing_table_for_each_kind_of_interrupt_controller() {
    let memory = Memory::of(&AcpiConfig::bhyve(1, &map()));
    let names = Namespace::of(memory.tables()[b"DSDT"]);
    let table = |name: &str| -> Vec<Vec<Value>> {
        let Some(Value::Package(routes)) = names.get(&format!("_SB_.PC00.{name}")) else { panic!("no {name}") };
        let entry = |route: &Value| if let Value::Package(entry) = route { entry.clone() } else { panic!("{route:?}") };
        routes.iter().map(entry).collect()
    };
    let (by_link, by_gsi) = (table("PPRT"), table("APRT"));
    assert_eq!((by_link.len(), by_gsi.len()), (128, 128));
    for (index, (link, gsi)) in by_link.iter().zip(&by_gsi).enumerate() {
        let (device, pin) = (index as u64 / 4, index as u64 % 4);
        // INTA# of device 3 is the first link, and the first pin behind the ISA interrupts.
        let number = (device + pin + 5) % 8;
        let head = [device << 16 | 0xffff, pin].map(Value::Int);
        assert_eq!((&link[..2], &gsi[..2]), (&head[..], &head[..]));
        let name = format!("_SB_.PC00.LPC_.LNK{}", (b'A' + number as u8) as char);
        assert_eq!(names.get(&name), Some(&DEVICE));
        assert_eq!(link[2..], [Value::Reference(name), Value::Int(0)]);
        assert_eq!(gsi[2..], [Value::Int(0), Value::Int(16 + number)]);
    }
    // If the guest said IOAPIC, one table, else the other.
    let Some(Value::Method(0, choice)) = names.get("_SB_.PC00._PRT") else { panic!("no _PRT") };
    assert_eq!(choice, b"\xa0\x0b\\PICM\xa4APRT\xa4PPRT");
    assert_eq!(names.get("PICM"), Some(&Value::Int(0)));
    assert_eq!(names.get("_PIC"), Some(&Value::Method(1, b"\x70\x68\\PICM".to_vec())));
}

#[test]
fn each_link_has_its_route_register_and_the_interrupts_nobody_else_uses() {
    let memory = Memory::of(&AcpiConfig::bhyve(1, &map()));
    let names = Namespace::of(memory.tables()[b"DSDT"]);
    let lpc = "_SB_.PC00.LPC_";
    assert_eq!(names.get(&format!("{lpc}.LPCR")), Some(&Value::Region(2, 0x60, 0x0c)), "PCI configuration space");
    for (link, register) in ('A'..='H').zip([0, 1, 2, 3, 8, 9, 10, 11]) {
        let field = Value::Field(format!("{lpc}.LPCR"), 8 * register, 8);
        assert_eq!(names.get(&format!("{lpc}.PIR{link}")), Some(&field));
        let of = |object: &str| names.get(&format!("{lpc}.LNK{link}.{object}")).unwrap();
        assert_eq!((of("_HID"), of("_UID")), (&Value::Int(0x0f0c_d041), &Value::Int(link as u64 - 0x40)), "PNP0C0F");
        let Value::Buffer(choices) = of("_PRS") else { panic!("no _PRS") };
        assert_eq!(choices[..5], [0x89, 30, 0, 0b1101, 7], "extended, level, active low, shared");
        let numbers: Vec<u32> = (0..7).map(|at| u32_at(choices, 5 + 4 * at)).collect();
        assert_eq!(numbers, [5, 6, 7, 10, 11, 14, 15]);
        assert_eq!(of("_DIS"), &Value::Method(0, [&[0x70, 0x0a, 0x80][..], format!("PIR{link}").as_bytes()].concat()));
        for (method, arguments) in [("_STA", 0), ("_CRS", 0), ("_SRS", 1)] {
            assert!(matches!(of(method), Value::Method(count, _) if *count == arguments), "{method}");
        }
    }
}

#[test]
fn iasl_takes_every_table_apart_without_complaint() {
    if Command::new("iasl").arg("-v").output().is_err() {
        println!("skipped: iasl (Debian package acpica-tools) is not installed");
        return;
    }
    let folder = std::env::temp_dir().join(format!("zvmm-acpi-{}", std::process::id()));
    let with_hpet = AcpiConfig { hpet: true, ..AcpiConfig::bhyve(1, &map()) };
    for (index, config) in profiles(3).into_iter().chain([with_hpet]).enumerate() {
        let folder = folder.join(index.to_string());
        std::fs::create_dir_all(&folder).unwrap();
        for (name, table) in Memory::of(&config).tables() {
            let name = String::from_utf8(name.to_vec()).unwrap();
            let path = folder.join(format!("{name}.aml"));
            std::fs::write(&path, table).unwrap();
            let run = |arguments: &[&str]| {
                let output = Command::new("iasl").args(arguments).current_dir(&folder).output().unwrap();
                let text =
                    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
                assert!(output.status.success(), "{name}: {text}");
                text
            };
            let text = run(&["-d", &format!("{name}.aml")]);
            assert!(!text.contains("Warning") && !text.contains("Error"), "{name}: {text}");
            // What was taken apart must compile again: the compiler checks what the disassembler only prints.
            let text = run(&["-vr", "-p", "again", &format!("{name}.dsl")]);
            assert!(text.contains("0 Errors, 0 Warnings"), "{name}: {text}");
        }
    }
    std::fs::remove_dir_all(&folder).unwrap();
}
