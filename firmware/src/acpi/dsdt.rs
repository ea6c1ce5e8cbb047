//! The DSDT: processors, the PCI root with its windows and interrupt routing, legacy devices, S5.

use acpi_tables::Aml;
use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, Device, EISAName, IO, Interrupt, Memory32Fixed, Name, PackageBuilder, Path,
    ResourceTemplate, Scope,
};
use acpi_tables::sdt::Sdt;
use arch::layout;

use super::{AcpiConfig, IntxRoute, Profile, lpc};

/// Ports of COM1 to COM4 and their ISA interrupts.
const COM: [(u16, u32); 4] = [(0x3f8, 4), (0x2f8, 3), (0x3e8, 4), (0x2e8, 3)];

/// The PCI configuration ports, a hole in the root's I/O window.
const PCI_CONFIG: u16 = 0xcf8;

/// Builds the DSDT.
pub(super) fn dsdt(config: &AcpiConfig) -> Sdt {
    let mut body = Vec::new();
    let mut system_bus = Vec::new();
    for vcpu in 0..config.vcpus {
        system_bus.extend(processor(vcpu));
    }
    let mut legacy = legacy_devices(config);
    let bridge = match config.profile {
        Profile::I440fx => Some(("ISA_", 0x0001_0000)),
        Profile::Bhyve => Some(("LPC_", 0x001f_0000)),
        Profile::Micro => None,
    };
    if let Some(links) = &config.pirq {
        body.extend(lpc::interrupt_mode());
        legacy.extend(lpc::link_devices(links));
    }
    if config.profile == Profile::Bhyve {
        legacy.extend(lpc::board_devices());
    }
    let mut in_root = bridge.map(|(name, address)| isa_bridge(name, address, &legacy)).unwrap_or_default();
    if config.hpet {
        let window = Memory32Fixed::new(true, layout::HPET as u32, layout::HPET_BYTES as u32);
        in_root.extend(pnp_device("HPET", "PNP0103", 0, vec![&window]));
    }
    system_bus.extend(pci_root(config, &in_root));
    system_bus.extend(motherboard(config));
    if bridge.is_none() {
        system_bus.extend(&legacy);
    }
    body.extend(Scope::raw("\\_SB_".into(), system_bus));

    // SLP_TYPa, SLP_TYPb, two reserved (ACPI 6.5 §7.4.2.6).
    let mut s5 = PackageBuilder::new();
    for element in [config.pm.s5_type, config.pm.s5_type, 0, 0] {
        s5.add_element(&element);
    }
    Name::new("\\_S5_".into(), &s5).to_aml_bytes(&mut body);
    super::table(*b"DSDT", 2, &body)
}

/// AML that is bytes already.
pub(super) struct Raw<'a>(pub(super) &'a [u8]);

impl Aml for Raw<'_> {
    fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
        sink.vec(self.0);
    }
}

pub(super) fn device(name: &str, children: Vec<&dyn Aml>) -> Vec<u8> {
    super::bytes(&Device::new(name.into(), children))
}

/// A device with a PNP id, a unique number and resources.
pub(super) fn pnp_device(name: &str, id: &str, uid: u8, resources: Vec<&dyn Aml>) -> Vec<u8> {
    device(
        name,
        vec![
            &Name::new("_HID".into(), &EISAName::new(id)),
            &Name::new("_UID".into(), &uid),
            &Name::new("_CRS".into(), &ResourceTemplate::new(resources)),
        ],
    )
}

/// A processor device (ACPI 6.5 §8.4); the MADT finds it by its UID.
fn processor(vcpu: u8) -> Vec<u8> {
    let name = format!("C{vcpu:03X}");
    device(&name, vec![&Name::new("_HID".into(), &"ACPI0007"), &Name::new("_UID".into(), &vcpu)])
}

fn pci_root(config: &AcpiConfig, children: &[u8]) -> Vec<u8> {
    // Bus 0 and no other: a wider range makes the guest probe 32 slots of every bus it names.
    let bus = AddressSpace::new_bus_number(0u16, 0u16);
    let config_ports = IO::new(PCI_CONFIG, PCI_CONFIG, 1, 8);
    let low_ports = AddressSpace::new_io(0u16, PCI_CONFIG - 1, None);
    let high_ports = AddressSpace::new_io(PCI_CONFIG + 8, 0xffff, None);
    let not_cacheable = AddressSpaceCacheable::NotCacheable;
    let mmio32 = AddressSpace::new_memory(
        not_cacheable,
        true,
        config.mmio32.start as u32,
        (config.mmio32.end() - 1) as u32,
        None,
    );
    let mmio64 =
        config.mmio64.map(|range| AddressSpace::new_memory(not_cacheable, true, range.start, range.end() - 1, None));
    let mut windows: Vec<&dyn Aml> = vec![&bus, &config_ports, &low_ports, &high_ports, &mmio32];
    if let Some(window) = &mmio64 {
        windows.push(window);
    }

    let root = root_name(config.profile);
    let (id, uid, bus_number) = (EISAName::new("PNP0A03"), Name::new("_UID".into(), &0u8), 0u8);
    let (id, bus_number) = (Name::new("_HID".into(), &id), Name::new("_BBN".into(), &bus_number));
    let windows = Name::new("_CRS".into(), &ResourceTemplate::new(windows));
    let routing = match &config.pirq {
        None => super::bytes(&Name::new("_PRT".into(), &routes(config, by_gsi))),
        Some(_) => {
            let by_link = |route: &IntxRoute| (super::bytes(&lpc::link(root, route)), 0);
            lpc::routing(&routes(config, by_link), &routes(config, by_gsi))
        }
    };
    let mut inside: Vec<&dyn Aml> = vec![&id];
    // Under bhyve the root has no number, and Windows knows everything below it by the root's name and number.
    if config.profile != Profile::Bhyve {
        inside.push(&uid);
    }
    let (routing, children) = (Raw(&routing), Raw(children));
    inside.extend([&bus_number as &dyn Aml, &windows, &routing, &children]);
    device(root, inside)
}

/// The root's name: bhyve's firmware calls it PC00.
fn root_name(profile: Profile) -> &'static str {
    match profile {
        Profile::Bhyve => "PC00",
        Profile::I440fx | Profile::Micro => "PCI0",
    }
}

/// A routing table (ACPI 6.5 §6.2.13): for each pin, any function of the device, and the source and source index that
/// `target` says.
fn routes(config: &AcpiConfig, target: impl Fn(&IntxRoute) -> (Vec<u8>, u32)) -> PackageBuilder {
    let mut table = PackageBuilder::new();
    for route in &config.intx {
        let (source, index) = target(route);
        let mut entry = PackageBuilder::new();
        entry.add_element(&(u32::from(route.device) << 16 | 0xffff));
        entry.add_element(&route.pin);
        entry.add_element(&Raw(&source));
        entry.add_element(&index);
        table.add_element(&entry);
    }
    table
}

/// A source of 0 means that the index is a global system interrupt.
fn by_gsi(route: &IntxRoute) -> (Vec<u8>, u32) {
    (super::bytes(&0u8), route.gsi)
}

fn isa_bridge(name: &str, address: u32, children: &[u8]) -> Vec<u8> {
    device(name, vec![&Name::new("_ADR".into(), &address), &Raw(children)])
}

/// Ranges that belong to the board: without them Linux neither trusts the ECAM window nor keeps devices off the ports.
fn motherboard(config: &AcpiConfig) -> Vec<u8> {
    let ports = |port: u16, len: u8| IO::new(port, port, 1, len);
    let pm = &config.pm;
    let mut ranges = Vec::new();
    if config.profile == Profile::Bhyve {
        // The trigger mode of the PIC, and the speaker's gate.
        ranges.extend([ports(0x4d0, 2), ports(0x61, 1)]);
    }
    // The PIIX4 function owns its power-management ports; naming them a second time makes Linux warn of an overlap.
    if config.profile != Profile::I440fx {
        ranges.extend([ports(pm.event_port, 4), ports(pm.control_port, 2)]);
        ranges.extend(pm.timer.map(|timer| ports(timer.port, 4)));
    }
    ranges.extend(pm.gpe0.map(|gpe| ports(gpe.port, gpe.len)));
    ranges.extend(pm.smi.map(|smi| ports(smi.port, 1)));
    let ecam = config.ecam.map(|range| Memory32Fixed::new(true, range.start as u32, range.len as u32));
    let mut resources: Vec<&dyn Aml> = ranges.iter().map(|range| range as &dyn Aml).collect();
    resources.extend(ecam.iter().map(|window| window as &dyn Aml));
    if resources.is_empty() { Vec::new() } else { pnp_device("MBRD", "PNP0C02", 0, resources) }
}

fn legacy_devices(config: &AcpiConfig) -> Vec<u8> {
    let mut devices = Vec::new();
    for (index, (port, irq)) in (0u8..).zip(COM).filter(|(index, _)| config.com[usize::from(*index)]) {
        let sharers = COM.iter().zip(config.com).filter(|((_, other), there)| *there && *other == irq).count();
        let interrupt = isa_interrupt(irq, sharers > 1);
        let name = format!("COM{}", index + 1);
        devices.extend(pnp_device(&name, "PNP0501", index + 1, vec![&IO::new(port, port, 1, 8), &interrupt]));
    }
    if config.rtc {
        devices.extend(pnp_device("RTC_", "PNP0B00", 0, vec![&IO::new(0x70, 0x70, 1, 2), &isa_interrupt(8, false)]));
    }
    if config.ps2 {
        let (data, command) = (IO::new(0x60, 0x60, 1, 1), IO::new(0x64, 0x64, 1, 1));
        devices.extend(pnp_device("KBD_", "PNP0303", 0, vec![&data, &command, &isa_interrupt(1, false)]));
        devices.extend(pnp_device("MOU_", "PNP0F13", 0, vec![&isa_interrupt(12, false)]));
    }
    if let Some(port) = config.pvpanic {
        let resources = IO::new(port, port, 1, 1);
        devices.extend(device(
            "PEVT",
            vec![
                &Name::new(Path::new("_HID"), &"QEMU0001"),
                &Name::new("_UID".into(), &0u8),
                &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&resources])),
                // Present, enabled, functioning, but not shown.
                &Name::new("_STA".into(), &0xbu8),
            ],
        ));
    }
    devices
}

/// An ISA interrupt: edge-triggered, active high.
pub(super) fn isa_interrupt(irq: u32, shared: bool) -> Interrupt {
    Interrupt::new(true, true, false, shared, irq)
}
