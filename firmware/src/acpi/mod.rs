//! ACPI 6.5 tables: RSDP, XSDT, FADT, FACS, MADT, MCFG, HPET and DSDT.
//!
//! Everything a stock Linux guest would otherwise find out by trying costs exits, so the tables say it: one PCI bus
//! (bus range 0 in `_CRS`, MCFG ending with bus 0), no CMOS RTC, i8042 or VGA where there is none (FADT
//! IAPC_BOOT_ARCH), ACPI mode already on (no SMI command), a reset register, so that a reboot does not poke the keyboard
//! controller. There is no `_OSC` and the root is a conventional one (PNP0A03): nothing is negotiated that would be
//! refused.

mod dsdt;
mod lpc;
#[cfg(test)]
mod tests;

use acpi_tables::Aml;
use acpi_tables::facs::FACS;
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, ProcessorLocalApic};
use acpi_tables::mcfg::MCFG;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use arch::layout::{self, AddressRange, MemoryLayout};
use zerocopy::IntoBytes;

const OEM_ID: [u8; 6] = *b"ZVMM  ";
const OEM_TABLE_ID: [u8; 8] = *b"ZVMMACPI";
const OEM_REVISION: u32 = 1;

/// Where the tables name devices: the profiles differ in the bridge the legacy devices sit behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// PIIX3 ISA bridge at 00:01.0.
    I440fx,
    /// No bridge: legacy devices hang off `\_SB`.
    Micro,
    /// LPC bridge at 00:1f.0.
    Bhyve,
}

/// ACPI power management hardware (ACPI 6.5 §4.8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PowerManagement {
    /// PM1a event block, 4 ports: status and enable.
    pub event_port: u16,
    /// PM1a control block, 2 ports.
    pub control_port: u16,
    /// PM timer. Guests that learn their TSC frequency from the hypervisor (kvmclock, CPUID) do without; others have
    /// nothing else to measure it against, so give them one.
    pub timer: Option<PmTimer>,
    /// General-purpose event block 0.
    pub gpe0: Option<Gpe>,
    /// SMI command port; `None` declares ACPI mode always on, which saves the switch.
    pub smi: Option<SmiCommand>,
    /// SLP_TYP of S5.
    pub s5_type: u8,
    /// Interrupt of power management events, an ISA interrupt number.
    pub sci_irq: u8,
}

/// The 3.579545 MHz timer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PmTimer {
    /// Its four ports.
    pub port: u16,
    /// 32 bits wide rather than 24.
    pub wide: bool,
}

/// General-purpose event block: `len` ports, half status, half enable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gpe {
    /// First port.
    pub port: u16,
    /// Number of ports, even.
    pub len: u8,
}

/// How the guest switches between legacy and ACPI mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SmiCommand {
    /// The port.
    pub port: u16,
    /// Value that enables ACPI mode.
    pub enable: u8,
    /// Value that disables it.
    pub disable: u8,
}

/// Writing `value` to `port` resets the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResetRegister {
    /// I/O port.
    pub port: u16,
    /// Value.
    pub value: u8,
}

/// Pin of the IOAPIC of the first link of bhyve's board.
const BHYVE_FIRST_PIN: u32 = 16;

/// Which interrupt a pin of a PCI device asserts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IntxRoute {
    /// Device (slot) number on bus 0, up to 31.
    pub device: u8,
    /// 0 for INTA# to 3 for INTD#.
    pub pin: u8,
    /// Global system interrupt. Below 16 it is an ISA interrupt, which the MADT then declares level-triggered.
    pub gsi: u32,
}

impl IntxRoute {
    /// All pins of all 32 devices on the eight links of bhyve's board under firmware: pins rotate with the device number,
    /// INTA# of device 3 is link 0, and link *n* is pin 16 + *n* of the IOAPIC (illumos-gate
    /// `usr/src/cmd/bhyve/common/pci_irq.c`, `amd64/ioapic.c`).
    pub fn bhyve() -> Vec<Self> {
        let of = |device: u8, pin: u8| Self { device, pin, gsi: BHYVE_FIRST_PIN + u32::from((device + pin + 5) % 8) };
        (0..32).flat_map(|device| (0..4).map(move |pin| of(device, pin))).collect()
    }

    /// All pins of all 32 devices on the four links of a 440FX board: pins rotate with the device number, and INTA# of
    /// device 1 is link 0.
    pub fn i440fx(links: [u32; 4]) -> Vec<Self> {
        let of = |device: u8, pin: u8| Self { device, pin, gsi: links[usize::from((device + pin + 3) % 4)] };
        (0..32).flat_map(|device| (0..4).map(move |pin| of(device, pin))).collect()
    }
}

/// Links between PCI interrupts and interrupts of the PIC, which a guest without the IOAPIC routes through registers of
/// the ISA bridge. Link *n* is also pin 16 + *n* of the IOAPIC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PirqLinks {
    /// ISA interrupts a link can be routed to.
    pub choices: Vec<u8>,
    /// What each link is routed to at the start.
    pub start: [u8; 8],
}

/// Everything the tables say about a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AcpiConfig {
    /// Decides where legacy devices appear.
    pub profile: Profile,
    /// Number of vCPUs; APIC id and processor UID are the vCPU number.
    pub vcpus: u8,
    /// Power management.
    pub pm: PowerManagement,
    /// Reset register.
    pub reset: ResetRegister,
    /// Window for 32-bit BARs.
    pub mmio32: AddressRange,
    /// Window for 64-bit BARs.
    pub mmio64: Option<AddressRange>,
    /// ECAM window, one MiB a bus from bus 0.
    pub ecam: Option<AddressRange>,
    /// PCI interrupt routing (`_PRT`).
    pub intx: Vec<IntxRoute>,
    /// Links of the ISA bridge to the PIC, for guests that do not use the IOAPIC; `None`: they take the routes above, too.
    pub pirq: Option<PirqLinks>,
    /// Which of COM1 to COM4 exist.
    pub com: [bool; 4],
    /// A PS/2 controller with keyboard and mouse exists.
    pub ps2: bool,
    /// A CMOS RTC exists.
    pub rtc: bool,
    /// A VGA-compatible adapter exists.
    pub vga: bool,
    /// Port of the pvpanic device.
    pub pvpanic: Option<u16>,
    /// An HPET exists at [`layout::HPET`].
    pub hpet: bool,
}

impl AcpiConfig {
    /// The `i440fx` profile: PIIX4 power management at 0x600, RTC, PS/2 and COM1, PCI interrupts on ISA 10 and 11. It
    /// has an ECAM window, which no real 440FX has: Linux warns about every machine without one.
    pub fn i440fx(vcpus: u8, map: &MemoryLayout) -> Self {
        Self {
            profile: Profile::I440fx,
            vcpus,
            pm: PowerManagement {
                event_port: 0x600,
                control_port: 0x604,
                timer: Some(PmTimer { port: 0x608, wide: false }),
                gpe0: None,
                smi: None,
                s5_type: 0,
                sci_irq: 9,
            },
            reset: ResetRegister { port: 0xcf9, value: 0x06 },
            mmio32: map.mmio32(),
            mmio64: map.mmio64(),
            ecam: Some(map.ecam()),
            intx: IntxRoute::i440fx([10, 10, 11, 11]),
            pirq: None,
            com: [true, false, false, false],
            ps2: true,
            rtc: true,
            vga: false,
            pvpanic: None,
            hpet: false,
        }
    }

    /// The `micro` profile: ECAM and COM1; no RTC, no i8042, no PM timer. PCI interrupts on IOAPIC pins 16 to 19.
    pub fn micro(vcpus: u8, map: &MemoryLayout) -> Self {
        let base = Self::i440fx(vcpus, map);
        Self {
            profile: Profile::Micro,
            pm: PowerManagement { timer: None, ..base.pm },
            intx: IntxRoute::i440fx([16, 17, 18, 19]),
            ps2: false,
            rtc: false,
            ..base
        }
    }

    /// The `bhyve` profile: power management at 0x400 behind SMI command 0xB2, 32-bit PM timer, RTC, PS/2 and all four COM
    /// ports, PCI interrupts on IOAPIC pins 16 to 23 and on eight links to the PIC. Its HPET is the kernel's; where there
    /// is none, there is none.
    ///
    /// Links start on interrupts 10 and 11 and can go to those that no other device has; bhyve's own list also has 3, 4, 9
    /// and 12, which its serial ports, power management and mouse use.
    pub fn bhyve(vcpus: u8, map: &MemoryLayout) -> Self {
        let base = Self::i440fx(vcpus, map);
        Self {
            profile: Profile::Bhyve,
            pm: PowerManagement {
                event_port: 0x400,
                control_port: 0x404,
                timer: Some(PmTimer { port: 0x408, wide: true }),
                gpe0: Some(Gpe { port: 0x40c, len: 2 }),
                smi: Some(SmiCommand { port: 0xb2, enable: 0xa0, disable: 0xa1 }),
                s5_type: 5,
                ..base.pm
            },
            intx: IntxRoute::bhyve(),
            pirq: Some(PirqLinks { choices: vec![5, 6, 7, 10, 11, 14, 15], start: [10, 11, 10, 11, 10, 11, 10, 11] }),
            com: [true; 4],
            ..base
        }
    }
}

/// Tables as they go into guest memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AcpiTables {
    /// Address of the RSDP: what the boot protocols hand over.
    pub rsdp_gpa: u64,
    /// Guest physical address and bytes of each table, ascending and disjoint.
    pub blobs: Vec<(u64, Vec<u8>)>,
}

/// Builds all tables from `base_gpa` (64-byte aligned, below 4 GiB) upwards; the RSDP comes first. At most
/// [`layout::ACPI_TABLES_MAX`] bytes for any machine.
#[inline(never)]
pub fn build_acpi(config: &AcpiConfig, base_gpa: u64) -> AcpiTables {
    let mut placer = Placer { next: base_gpa + RSDP_ROOM, blobs: Vec::new() };
    let facs = placer.put(&FACS::new());
    let dsdt = placer.put(&dsdt::dsdt(config));
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    xsdt.add_entry(placer.put(&fadt(config, facs, dsdt)));
    xsdt.add_entry(placer.put(&madt(config)));
    if let Some(ecam) = config.ecam {
        xsdt.add_entry(placer.put(&mcfg(ecam)));
    }
    if config.hpet {
        xsdt.add_entry(placer.put(&hpet()));
    }
    let xsdt = placer.put(&xsdt);
    placer.blobs.insert(0, (base_gpa, bytes(&Rsdp::new(OEM_ID, xsdt))));
    AcpiTables { rsdp_gpa: base_gpa, blobs: placer.blobs }
}

/// The RSDP has 36 bytes; the FACS after it wants 64-byte alignment.
const RSDP_ROOM: u64 = 64;

struct Placer {
    next: u64,
    blobs: Vec<(u64, Vec<u8>)>,
}

impl Placer {
    fn put(&mut self, table: &dyn Aml) -> u64 {
        let at = self.next;
        let bytes = bytes(table);
        // The FACS comes first and is the only table that needs more than 16.
        self.next = (at + bytes.len() as u64).next_multiple_of(16);
        self.blobs.push((at, bytes));
        at
    }
}

fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

/// A table of `body` behind a standard header; the body goes in at once, as the crate sums the whole table each time.
fn table(signature: [u8; 4], revision: u8, body: &[u8]) -> Sdt {
    let mut table = Sdt::new(signature, 36, revision, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    table.append_slice(body);
    table
}

/// FADT, ACPI 6.5 §5.2.9.
fn fadt(config: &AcpiConfig, facs: u64, dsdt: u64) -> acpi_tables::fadt::FADT {
    /// IAPC_BOOT_ARCH, ACPI 6.5 table 5.10.
    const LEGACY_DEVICES: u16 = 1 << 0;
    const I8042: u16 = 1 << 1;
    const VGA_NOT_PRESENT: u16 = 1 << 2;
    const CMOS_RTC_NOT_PRESENT: u16 = 1 << 5;
    /// Worse than any limit: C2 and C3 by the P_LVL registers do not exist.
    const NO_C_STATE_US: u16 = 0xfff;
    /// Where RTCs keep the century.
    const CMOS_CENTURY: u8 = 0x32;

    let port = |port: u16, bits: u8, access| GAS::new(AddressSpace::SystemIo, bits, 0, access, port.into());
    let pm = &config.pm;
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .flag(Flags::Wbinvd)
        .flag(Flags::ProcC1)
        // Set means absent: there is a fixed power button, and no sleep button or wake-up by RTC.
        .flag(Flags::SlpButton)
        .flag(Flags::FixRtc)
        .flag(Flags::ResetRegSup);
    if config.profile == Profile::Bhyve {
        fadt = fadt.flag(Flags::ForceApicPhysicalDestinationMode);
    }
    // The FACS by its 32-bit field only: with both, ACPICA complains about two. The DSDT by both, for old systems.
    fadt.firmware_ctrl = (facs as u32).into();
    fadt.dsdt = (dsdt as u32).into();
    fadt.x_dsdt = dsdt.into();

    fadt.sci_int = u16::from(pm.sci_irq).into();
    if let Some(smi) = pm.smi {
        fadt.smi_cmd = u32::from(smi.port).into();
        fadt.acpi_enable = smi.enable;
        fadt.acpi_disable = smi.disable;
    }
    fadt.pm1a_evt_blk = u32::from(pm.event_port).into();
    fadt.pm1_evt_len = 4;
    fadt.x_pm1a_evt_blk = port(pm.event_port, 32, AccessSize::WordAccess);
    fadt.pm1a_cnt_blk = u32::from(pm.control_port).into();
    fadt.pm1_cnt_len = 2;
    fadt.x_pm1a_cnt_blk = port(pm.control_port, 16, AccessSize::WordAccess);
    if let Some(timer) = pm.timer {
        fadt.pm_tmr_blk = u32::from(timer.port).into();
        fadt.pm_tmr_len = 4;
        fadt.x_pm_tmr_blk = port(timer.port, 32, AccessSize::DwordAccess);
        if timer.wide {
            fadt = fadt.flag(Flags::TmrValExt);
        }
    }
    if let Some(gpe) = pm.gpe0 {
        fadt.gpe0_blk = u32::from(gpe.port).into();
        fadt.gpe0_blk_len = gpe.len;
        fadt.x_gpe0_blk = port(gpe.port, gpe.len * 8, AccessSize::ByteAccess);
    }
    fadt.p_lvl2_lat = NO_C_STATE_US.into();
    fadt.p_lvl3_lat = NO_C_STATE_US.into();
    if config.rtc {
        fadt.century = CMOS_CENTURY;
    }
    fadt.reset_reg = port(config.reset.port, 8, AccessSize::ByteAccess);
    fadt.reset_value = config.reset.value;

    let has_legacy = config.ps2 || config.com.contains(&true);
    let bit = |set: bool, bit: u16| if set { bit } else { 0 };
    let boot_arch = bit(has_legacy, LEGACY_DEVICES)
        | bit(config.ps2, I8042)
        | bit(!config.vga, VGA_NOT_PRESENT)
        | bit(!config.rtc, CMOS_RTC_NOT_PRESENT);
    fadt.iapc_boot_arch = boot_arch.into();
    fadt.finalize()
}

/// MADT, ACPI 6.5 §5.2.12. The crate's builder knows no interrupt source overrides, so the entries are put together
/// here, those it knows from its types.
fn madt(config: &AcpiConfig) -> Sdt {
    const PCAT_COMPAT: u32 = 1;
    /// MPS INTI flags, ACPI 6.5 table 5.26.
    const LEVEL_ACTIVE_LOW: u16 = 0b1111;
    const CONFORMS_TO_BUS: u16 = 0;
    const ALL_PROCESSORS: u8 = 0xff;

    let source_override = |irq: u8, gsi: u32, flags: u16| -> Vec<u8> {
        let mut entry = vec![2, 10, 0, irq];
        entry.extend_from_slice(&gsi.to_le_bytes());
        entry.extend_from_slice(&flags.to_le_bytes());
        entry
    };
    let mut body = Vec::new();
    body.extend_from_slice(&(layout::LAPIC as u32).to_le_bytes());
    body.extend_from_slice(&PCAT_COMPAT.to_le_bytes());
    for vcpu in 0..config.vcpus {
        body.extend_from_slice(ProcessorLocalApic::new(vcpu, vcpu, EnabledStatus::Enabled).as_bytes());
    }
    body.extend_from_slice(IoApic::new(0, layout::IOAPIC as u32, 0).as_bytes());
    // The PIT is wired to pin 2, as on every PC with an IOAPIC and in both kernels.
    body.extend(source_override(0, 2, CONFORMS_TO_BUS));
    let mut level: Vec<u8> = config.intx.iter().filter_map(|route| u8::try_from(route.gsi).ok()).collect();
    level.push(config.pm.sci_irq);
    level.retain(|irq| *irq < 16);
    level.sort_unstable();
    level.dedup();
    for irq in level {
        body.extend(source_override(irq, irq.into(), LEVEL_ACTIVE_LOW));
    }
    // Local APIC NMI on LINT1.
    body.extend_from_slice(&[4, 6, ALL_PROCESSORS, 0, 0, 1]);
    table(*b"APIC", 5, &body)
}

/// MCFG, PCI Firmware Specification 3.3 §4.1.2.
fn mcfg(ecam: AddressRange) -> MCFG {
    let mut mcfg = MCFG::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    let buses = (ecam.len >> 20).clamp(1, 256);
    mcfg.add_ecam(ecam.start, 0, 0, (buses - 1) as u8);
    mcfg
}

/// HPET, IA-PC HPET specification 1.0a §3.2.4: what bhyve's kernel implements (vendor 0x8086, 32-bit counter, 8
/// comparators, no legacy routes), as its `VM_GET_HPET_CAPABILITIES` tells it.
fn hpet() -> Sdt {
    const EVENT_TIMER_BLOCK: u32 = 0x8086_0701;
    /// Nothing else is in its 4 KiB page.
    const PAGE_PROTECTION_4K: u8 = 1;
    let mut body = Vec::new();
    body.extend_from_slice(&EVENT_TIMER_BLOCK.to_le_bytes());
    body.extend(bytes(&GAS::new(AddressSpace::SystemMemory, 0, 0, AccessSize::Undefined, layout::HPET)));
    // Number 0, no minimum tick.
    body.extend_from_slice(&[0, 0, 0, PAGE_PROTECTION_4K]);
    table(*b"HPET", 1, &body)
}
