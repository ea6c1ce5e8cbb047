//! Below the LPC bridge of bhyve's board: the interrupt links with their route registers, the interrupt controllers and
//! the timer; and the choice between the two ways a PCI interrupt can take.
//!
//! A guest that uses the IOAPIC finds each pin's input of it. One that does not finds a link device, which it routes to
//! an interrupt of the PIC (ACPI 6.5 §6.2.13): the device reads and writes the bridge's PIRQ registers.

use acpi_tables::aml::{
    And, Arg, CreateDWordField, EISAName, Else, Field, FieldAccessType, FieldEntry, FieldLockRule, FieldUpdateRule, IO,
    If, Interrupt, Method, Name, OpRegion, OpRegionSpace, PackageBuilder, Path, ResourceTemplate, Return, Store, ZERO,
};
use acpi_tables::{Aml, AmlSink};

use super::dsdt::{device, isa_interrupt, pnp_device};
use super::{BHYVE_FIRST_PIN, IntxRoute, PirqLinks, bytes};

/// Configuration registers of links A to D, and of E to H.
const PIRQ_A: u8 = 0x60;
const PIRQ_E: u8 = 0x68;

/// In a PIRQ register: the link goes nowhere.
const DISABLED: u8 = 0x80;

/// Where the interrupt's number is in a resource template that holds one extended interrupt descriptor and begins with
/// it (ACPI 6.5 §6.4.3.6).
const INTERRUPT_NUMBER: u8 = 5;

/// Whether the guest uses the IOAPIC, as it says through `\_PIC` (ACPI 6.5 §5.8.1).
const USES_IOAPIC: &str = "\\PICM";

/// At the root of the namespace: what the guest says about its interrupt controllers.
pub(super) fn interrupt_mode() -> Vec<u8> {
    let mut aml = bytes(&Name::new(USES_IOAPIC.into(), &0u8));
    let uses_ioapic = Path::new(USES_IOAPIC);
    let store = Store::new(&uses_ioapic, &Arg(0));
    Method::new("\\_PIC".into(), 1, false, vec![&store]).to_aml_bytes(&mut aml);
    aml
}

/// In the PCI root: one routing table for each kind of interrupt controller.
pub(super) fn routing(by_link: &PackageBuilder, by_gsi: &PackageBuilder) -> Vec<u8> {
    let mut aml = bytes(&Name::new("PPRT".into(), by_link));
    Name::new("APRT".into(), by_gsi).to_aml_bytes(&mut aml);
    let (uses_ioapic, by_gsi, by_link) = (Path::new(USES_IOAPIC), Path::new("APRT"), Path::new("PPRT"));
    let (by_gsi, by_link) = (Return::new(&by_gsi), Return::new(&by_link));
    let choice = If::new(&uses_ioapic, vec![&by_gsi]);
    Method::new("_PRT".into(), 0, false, vec![&choice, &by_link]).to_aml_bytes(&mut aml);
    aml
}

/// The link device of a route, by its full name.
pub(super) fn link(root: &str, route: &IntxRoute) -> Path {
    let link = route.gsi.saturating_sub(BHYVE_FIRST_PIN) as u8 & 7;
    Path::new(&format!("\\_SB_.{root}.LPC_.LNK{}", letter(link)))
}

/// The letter of link 0 to 7.
fn letter(link: u8) -> char {
    (b'A' + link).into()
}

/// Below the bridge: the route registers, and a device for each link.
pub(super) fn link_devices(links: &PirqLinks) -> Vec<u8> {
    let region = OpRegion::new("LPCR".into(), OpRegionSpace::PCIConfig, &PIRQ_A, &0x0cu8);
    let mut aml = bytes(&region);
    let register = |link: u8| FieldEntry::Named([b'P', b'I', b'R', b'A' + link], 8);
    let between = 8 * usize::from(PIRQ_E - PIRQ_A - 4);
    let fields = (0..4).map(register).chain([FieldEntry::Reserved(between)]).chain((4..8).map(register)).collect();
    let (bytewise, unlocked) = (FieldAccessType::Byte, FieldLockRule::NoLock);
    Field::new("LPCR".into(), bytewise, unlocked, FieldUpdateRule::Preserve, fields).to_aml_bytes(&mut aml);
    for link in 0..8 {
        aml.extend(link_device(link, &links.choices));
    }
    aml
}

fn link_device(link: u8, choices: &[u8]) -> Vec<u8> {
    let register = Path::new(&format!("PIR{}", letter(link)));
    let is_disabled = And::new(&ZERO, &register, &DISABLED);

    let (present, working) = (Return::new(&0x09u8), Return::new(&0x0bu8));
    let if_disabled = If::new(&is_disabled, vec![&present]);
    let status = Method::new("_STA".into(), 0, false, vec![&if_disabled, &working]);

    let number = Path::new("IRQN");
    let current = Interrupt::new(true, false, true, true, 0);
    let buffer = Name::new("IRQB".into(), &ResourceTemplate::new(vec![&current]));
    let buffer_path = Path::new("IRQB");
    let number_in_buffer = CreateDWordField::new(&number, &buffer_path, &INTERRUPT_NUMBER);
    let none = Store::new(&number, &ZERO);
    let from_register = And::new(&number, &register, &0x0fu8);
    let (if_disabled, otherwise) = (If::new(&is_disabled, vec![&none]), Else::new(vec![&from_register]));
    let result = Return::new(&buffer_path);
    let resources = Method::new("_CRS".into(), 0, true, vec![&number_in_buffer, &if_disabled, &otherwise, &result]);

    let number_in_argument = CreateDWordField::new(&number, &Arg(0), &INTERRUPT_NUMBER);
    let route = Store::new(&register, &number);
    let set = Method::new("_SRS".into(), 1, true, vec![&number_in_argument, &route]);

    let disable = Store::new(&register, &DISABLED);
    let disable = Method::new("_DIS".into(), 0, false, vec![&disable]);

    let choices = Choices(choices);
    device(
        &format!("LNK{}", letter(link)),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0C0F")),
            &Name::new("_UID".into(), &(link + 1)),
            &Name::new("_PRS".into(), &ResourceTemplate::new(vec![&choices])),
            &buffer,
            &status,
            &resources,
            &set,
            &disable,
        ],
    )
}

/// An extended interrupt descriptor with a choice of interrupts, level-triggered, active low, shared (ACPI 6.5
/// §6.4.3.6); the crate's has one interrupt only.
struct Choices<'a>(&'a [u8]);

impl Aml for Choices<'_> {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        const EXTENDED_INTERRUPT: u8 = 0x89;
        const CONSUMER_LEVEL_LOW_SHARED: u8 = 0b1101;
        sink.byte(EXTENDED_INTERRUPT);
        sink.word(2 + 4 * self.0.len() as u16);
        sink.byte(CONSUMER_LEVEL_LOW_SHARED);
        sink.byte(self.0.len() as u8);
        for interrupt in self.0 {
            sink.dword((*interrupt).into());
        }
    }
}

/// Below the bridge: interrupt controllers and timer, which every PC has and bhyve's tables name.
pub(super) fn board_devices() -> Vec<u8> {
    let ports = |port: u16, len: u8| IO::new(port, port, 1, len);
    let (first, second) = (ports(0x20, 2), ports(0xa0, 2));
    let mut aml = pnp_device("PIC_", "PNP0000", 0, vec![&first, &second, &isa_interrupt(2, false)]);
    aml.extend(pnp_device("TIMR", "PNP0100", 0, vec![&ports(0x40, 4), &isa_interrupt(0, false)]));
    aml
}
