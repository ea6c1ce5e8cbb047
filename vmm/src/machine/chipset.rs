//! The parts every guest finds: PCI with its host bridge, power management, serial ports, clock, keyboard controller.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

use arch::cpu::HypervisorLeaves;
use arch::layout::{AddressRange, MemoryLayout};
use devices::bus::{Bus, BusError};
use devices::legacy::cmos::{CMOS_PORTS, Cmos, memory_sizes};
use devices::legacy::debug_port::{DEBUG_PORTS, DebugConsole, PostCode};
use devices::legacy::pm::{PM_PORTS, PM_TIMER_OFFSET, Pm, PmConfig, SMI_PORTS, SmiCommands};
use devices::legacy::power::PowerSink;
use devices::legacy::ps2::{PS2_DATA_PORT, PS2_PORTS, PS2_STATUS_PORT, Ps2};
use devices::legacy::pvpanic::{PVPANIC_PORT, PVPANIC_PORTS, PvPanic};
use devices::legacy::reset::{Port92, ResetControl};
use devices::legacy::uart::{UART_PORTS, Uart};
use devices::pci::{
    BHYVE_LINKS, BarMapper, ConfigPorts, Ecam, InterruptPin, IntxPin, IntxRouter, PIRQ_LINKS, PciAddress, PciBus,
    PciError, PciFunction, Piix4Pm, SmbusHost, Windows, bhyve_host_bridge, bhyve_link, bhyve_lpc_bridge,
    i440fx_host_bridge, i440fx_link, micro_host_bridge, piix3_isa_bridge, piix4_pm,
};
use devices::wake::Wake;
use firmware::acpi::{AcpiConfig, IntxRoute, PmTimer};

use super::adapters::HostClock;
use super::collected::CollectedAddress;
use crate::config::{DebugPortConfig, Profile, VmConfig};
use crate::control::Timed;
use crate::hypervisor::{HostCapabilities, HypervisorError, KernelDevices, Vm};

/// First port and interrupt of COM1 to COM4.
const COM: [(u64, u32); 4] = [(0x3f8, 4), (0x2f8, 3), (0x3e8, 4), (0x2e8, 3)];

/// Ports that BARs may take: above everything legacy, as qemu's machines do it.
const PCI_PORTS: Range<u64> = 0xc000..0x1_0000;

/// First port of the SMBus host of the PIIX4, where qemu has it.
const SMBUS_BASE: u16 = 0x700;

/// Interrupts of the real-time clock, the keyboard and the mouse.
const RTC_GSI: u32 = 8;
const KEYBOARD_GSI: u32 = 1;
const MOUSE_GSI: u32 = 12;

const CMOS_PORT: u16 = 0x70;
const PORT_92: u64 = 0x92;
const POST_PORT: u64 = 0x80;

/// Why the chipset cannot be put together: only a defect leads here, or two settings that claim one port.
#[derive(Debug, thiserror::Error)]
pub enum ChipsetError {
    /// Two devices claim one address.
    #[error("{0}")]
    Bus(#[from] BusError),
    /// PCI refused something.
    #[error("{0}")]
    Pci(#[from] PciError),
    /// The kernel's own devices could not be set up.
    #[error("{0}")]
    Hypervisor(#[from] HypervisorError),
}

/// The chipset, wired to its buses.
pub struct Chipset {
    /// Port I/O.
    pub ports: Arc<Bus>,
    /// Memory-mapped I/O.
    pub memory: Arc<Bus>,
    /// PCI bus 0.
    pub pci: Arc<PciBus>,
    /// Places BARs.
    pub mapper: Arc<BarMapper>,
    /// The UARTs of COM1 to COM4.
    pub com: [Option<Arc<Uart>>; 4],
    /// The debug port.
    pub debug_port: Option<Arc<DebugConsole>>,
    /// The SMBus host, where the profile has one.
    smbus: Option<Arc<SmbusHost>>,
    /// What has deadlines.
    pub timers: Vec<Arc<dyn Timed>>,
    pm: Arc<Pm>,
    cmos: Option<Arc<Cmos>>,
    /// The keyboard controller.
    pub ps2: Option<Arc<Ps2>>,
    port_92: Arc<Port92>,
    config_ports: Option<Arc<ConfigPorts>>,
    collected_address: Option<Arc<CollectedAddress>>,
    reset_control: Arc<ResetControl>,
    intx: Arc<IntxRouter>,
    /// How the board wires pins to links.
    link: fn(PciAddress, InterruptPin) -> usize,
}

/// What the tables have to say about the machine: the one description both they and the wiring below follow.
pub fn acpi_config(config: &VmConfig, layout: &MemoryLayout, host: &HostCapabilities, vm: &dyn Vm) -> AcpiConfig {
    let vcpus = config.cpus.count;
    let mut base = match config.profile {
        Profile::I440fx => AcpiConfig::i440fx(vcpus, layout),
        Profile::Bhyve => AcpiConfig::bhyve(vcpus, layout),
        Profile::Micro => AcpiConfig::micro(vcpus, layout),
    };
    if !(config.kvmclock && has_kvmclock(host)) {
        // Without any other clock a guest has nothing to find its TSC's frequency with: it hangs at start, or counts its
        // timer's interrupts and loses every pause. And without the RTC it believes to be in 1970.
        let port = base.pm.event_port + PM_TIMER_OFFSET as u16;
        base.pm.timer.get_or_insert(PmTimer { port, wide: false });
        base.rtc = true;
    }
    if let Some(timer) = base.pm.timer.as_mut().filter(|_| host.pm_timer_in_kernel) {
        timer.wide = true;
    }
    AcpiConfig {
        com: config.com_ports(),
        ps2: config.has_ps2(),
        pvpanic: config.pvpanic.then_some(PVPANIC_PORT as u16),
        // The other machines have none, and a guest that trusts it leaves the kernel for every look at the time.
        hpet: config.profile == Profile::Bhyve && vm.has_hpet(),
        ..base
    }
}

/// Whether the host has a clock for guests that need no timer of the machine.
fn has_kvmclock(host: &HostCapabilities) -> bool {
    /// KVM_FEATURE_CLOCKSOURCE and KVM_FEATURE_CLOCKSOURCE2 (Linux, virt/kvm/x86/cpuid.rst).
    const CLOCK: u32 = 1 << 0 | 1 << 3;
    match host.hypervisor_leaves {
        HypervisorLeaves::Kvm { features, .. } => features & CLOCK != 0,
        HypervisorLeaves::Bhyve | HypervisorLeaves::None => false,
    }
}

impl Chipset {
    /// Builds the chipset that `acpi` describes.
    pub fn build(
        config: &VmConfig,
        acpi: &AcpiConfig,
        layout: &MemoryLayout,
        host: &HostCapabilities,
        vm: &dyn Vm,
        power: &Arc<dyn PowerSink>,
        main: &Arc<dyn Wake>,
    ) -> Result<Self, ChipsetError> {
        let (ports, memory) = (Arc::new(Bus::new()), Arc::new(Bus::new()));
        let pci = Arc::new(PciBus::new());
        let range = |range: AddressRange| range.start..range.end();
        let windows =
            Windows { io: PCI_PORTS, mem32: range(acpi.mmio32), mem64: acpi.mmio64.map(range), prefer_mem64: false };
        let mapper = Arc::new(BarMapper::new(&ports, &memory, windows)?);

        let (intx, link) = intx_router(acpi, vm);

        let reset_control = Arc::new(ResetControl::new(power.clone()));
        let pm = Arc::new(Pm::new(
            PmConfig {
                timer_32_bits: acpi.pm.timer.is_some_and(|timer| timer.wide),
                timer_event: !host.pm_timer_in_kernel,
                s5_sleep_type: acpi.pm.s5_type,
                gpe0_bytes: acpi.pm.gpe0.map_or(4, |gpe| gpe.len),
                smi: acpi.pm.smi.map(|smi| SmiCommands { acpi_enable: smi.enable, acpi_disable: smi.disable }),
            },
            Arc::new(HostClock),
            vm.irq_line(acpi.pm.sci_irq.into()),
            power.clone(),
            main.clone(),
        ));
        ports.insert(acpi.pm.event_port.into(), PM_PORTS, pm.clone())?;
        if let Some(smi) = acpi.pm.smi {
            ports.insert(smi.port.into(), SMI_PORTS, pm.smi_ports())?;
        }

        let mut chipset = Self {
            ports,
            memory,
            pci,
            mapper,
            com: Default::default(),
            timers: vec![pm.clone()],
            pm,
            cmos: None,
            ps2: None,
            port_92: Arc::new(Port92::new(power.clone())),
            debug_port: None,
            smbus: None,
            config_ports: None,
            collected_address: None,
            reset_control,
            intx,
            link,
        };
        chipset.add_pci(config.profile, acpi, vm, main)?;
        chipset.add_com(config, vm, main)?;
        if acpi.rtc && !host.rtc_in_kernel {
            chipset.add_cmos(layout, vm, main)?;
        }
        if acpi.ps2 {
            chipset.add_ps2(vm, power)?;
        }
        if config.profile != Profile::Micro {
            chipset.ports.insert(PORT_92, 1, chipset.port_92.clone())?;
            chipset.ports.insert(POST_PORT, 1, Arc::new(PostCode::new()))?;
        }
        if acpi.pvpanic.is_some() {
            chipset.ports.insert(PVPANIC_PORT, PVPANIC_PORTS, Arc::new(PvPanic::new(power.clone())))?;
        }
        if let Some(debug_port) = &config.debug_port {
            chipset.add_debug_port(debug_port, main)?;
        }
        for gsi in level_isa_interrupts(acpi) {
            vm.line_is_level(gsi)?;
        }
        vm.set_up_kernel_devices(&KernelDevices {
            pm_timer_port: acpi.pm.timer.filter(|_| host.pm_timer_in_kernel).map(|timer| timer.port),
            nvram: if host.rtc_in_kernel { ram_sizes(layout) } else { Vec::new() },
        })?;
        Ok(chipset)
    }

    fn add_pci(
        &mut self,
        profile: Profile,
        acpi: &AcpiConfig,
        vm: &dyn Vm,
        main: &Arc<dyn Wake>,
    ) -> Result<(), ChipsetError> {
        if let Some(ecam) = acpi.ecam {
            self.memory.insert(ecam.start, ecam.len, Arc::new(Ecam::new(self.pci.clone())))?;
        }
        let config_ports = Arc::new(ConfigPorts::new(self.pci.clone(), self.reset_control.clone()));
        self.config_ports = Some(config_ports.clone());
        if let Some(collector) = vm.port_collector() {
            let clock = Arc::new(HostClock);
            let collected = CollectedAddress::new(config_ports, &self.ports, collector, clock, main.clone());
            let collected = Arc::new(collected);
            self.ports.insert(ConfigPorts::BASE, ConfigPorts::LEN, collected.clone())?;
            self.timers.push(collected.clone());
            self.collected_address = Some(collected);
        } else {
            self.ports.insert(ConfigPorts::BASE, ConfigPorts::LEN, config_ports)?;
        }
        match profile {
            Profile::I440fx => {
                let bases = Piix4Pm { pm_base: acpi.pm.event_port, smbus_base: SMBUS_BASE };
                let smbus = Arc::new(SmbusHost::new());
                self.ports.insert(SMBUS_BASE.into(), SmbusHost::LEN, smbus.clone())?;
                self.smbus = Some(smbus);
                self.add_function(0, 0, "host bridge", Arc::new(i440fx_host_bridge()))?;
                self.add_function(1, 0, "isa bridge", Arc::new(piix3_isa_bridge(self.intx.clone())))?;
                self.add_function(1, 3, "power management", Arc::new(piix4_pm(bases)))?;
            }
            Profile::Bhyve => {
                self.add_function(0, 0, "host bridge", Arc::new(bhyve_host_bridge()?))?;
                self.add_function(31, 0, "lpc bridge", Arc::new(bhyve_lpc_bridge(self.intx.clone())))?;
            }
            Profile::Micro => {
                self.add_function(0, 0, "host bridge", Arc::new(micro_host_bridge()))?;
            }
        }
        Ok(())
    }

    fn add_function(
        &self,
        device: u8,
        function: u8,
        name: &str,
        what: Arc<dyn PciFunction>,
    ) -> Result<(), ChipsetError> {
        Ok(self.pci.add(PciAddress::new(device, function)?, name, what)?)
    }

    fn add_com(&mut self, config: &VmConfig, vm: &dyn Vm, main: &Arc<dyn Wake>) -> Result<(), ChipsetError> {
        for (index, (base, gsi)) in COM.into_iter().enumerate() {
            if config.com_ports()[index] {
                let uart = Arc::new(Uart::new(vm.irq_line(gsi), main.clone()));
                self.ports.insert(base, UART_PORTS, uart.clone())?;
                self.com[index] = Some(uart);
            }
        }
        Ok(())
    }

    fn add_ps2(&mut self, vm: &dyn Vm, power: &Arc<dyn PowerSink>) -> Result<(), ChipsetError> {
        let ps2 = Ps2::new(vm.irq_line(KEYBOARD_GSI), vm.irq_line(MOUSE_GSI), power.clone());
        self.ports.insert(PS2_DATA_PORT, PS2_PORTS, ps2.data_port())?;
        self.ports.insert(PS2_STATUS_PORT, PS2_PORTS, ps2.status_port())?;
        self.ps2 = Some(ps2);
        Ok(())
    }

    fn add_debug_port(&mut self, config: &DebugPortConfig, main: &Arc<dyn Wake>) -> Result<(), ChipsetError> {
        let console = Arc::new(DebugConsole::new(main.clone()));
        self.ports.insert(config.port.into(), DEBUG_PORTS, console.clone())?;
        self.debug_port = Some(console);
        Ok(())
    }

    fn add_cmos(&mut self, layout: &MemoryLayout, vm: &dyn Vm, main: &Arc<dyn Wake>) -> Result<(), ChipsetError> {
        let high = layout.high_ram().map_or(0, |range| range.len);
        let line = vm.irq_line(RTC_GSI);
        let cmos = Arc::new(Cmos::new(Arc::new(HostClock), line, main.clone(), layout.low_ram_end(), high));
        self.ports.insert(CMOS_PORT.into(), CMOS_PORTS, cmos.clone())?;
        // A guest writes the index for nothing but the data access behind it: half of the clock's exits.
        if let Some(collector) = vm.port_collector() {
            collector.collect(CMOS_PORT, 1);
        }
        self.timers.push(cmos.clone());
        self.cmos = Some(cmos);
        Ok(())
    }

    /// INTA# of the device in `slot`: its input, and the GSI that guests find in its interrupt line register.
    pub fn interrupt_pin(&self, slot: PciAddress) -> (InterruptPin, IntxPin, u8) {
        let pin = InterruptPin::A;
        let link = (self.link)(slot, pin);
        let gsi = self.intx.gsi(link).and_then(|gsi| u8::try_from(gsi).ok()).unwrap_or(u8::MAX);
        (pin, self.intx.input(link), gsi)
    }

    /// Presses the power button.
    pub fn press_power_button(&self) {
        if !self.pm.press_power_button() {
            log::info!("the guest does not listen to its power button yet");
        }
    }

    /// Back to the state after power-on, PCI aside. All vCPUs are out.
    pub fn reset_legacy(&self) {
        self.pm.reset();
        self.reset_control.reset();
        if let Some(collected) = &self.collected_address {
            collected.reset();
        }
        if let Some(ports) = &self.config_ports {
            ports.set_address(0);
        }
        self.port_92.reset();
        if let Some(cmos) = &self.cmos {
            cmos.reset();
        }
        if let Some(ps2) = &self.ps2 {
            ps2.reset();
        }
        if let Some(smbus) = &self.smbus {
            smbus.reset();
        }
        for uart in self.com.iter().flatten() {
            uart.reset();
        }
    }
}

/// What firmware's power-on test leaves in a clock's memory.
fn ram_sizes(layout: &MemoryLayout) -> Vec<(u8, u8)> {
    memory_sizes(layout.low_ram_end(), layout.high_ram().map_or(0, |range| range.len))
}

/// ISA interrupts that power management and PCI devices drive, as levels.
fn level_isa_interrupts(acpi: &AcpiConfig) -> BTreeSet<u32> {
    let of_links = acpi.pirq.iter().flat_map(|pirq| pirq.start.map(u32::from));
    let of_pci = acpi.intx.iter().map(|route| route.gsi).filter(|gsi| *gsi < 16);
    of_pci.chain(of_links).chain([acpi.pm.sci_irq.into()]).collect()
}

/// The board's interrupt links: routed to the lines the tables name, or, on bhyve's board, fixed to their pins of the
/// IOAPIC and routed to the PIC.
fn intx_router(acpi: &AcpiConfig, vm: &dyn Vm) -> (Arc<IntxRouter>, fn(PciAddress, InterruptPin) -> usize) {
    let line = |gsi: u32| (gsi, vm.irq_line(gsi));
    if let Some(pirq) = &acpi.pirq {
        let to_pic = pirq.choices.iter().map(|irq| line((*irq).into())).collect();
        let pins: [u32; BHYVE_LINKS] = intx_links(&acpi.intx, bhyve_link);
        let fixed = pins.map(|pin| vm.irq_line(pin));
        return (IntxRouter::with_fixed(to_pic, pirq.start.map(u32::from), fixed), bhyve_link);
    }
    let links: [u32; PIRQ_LINKS] = intx_links(&acpi.intx, i440fx_link);
    let lines = links.iter().copied().collect::<BTreeSet<u32>>();
    (IntxRouter::new(lines.into_iter().map(line).collect(), links), i440fx_link)
}

/// The GSI of each PIRQ link, read back from the routing table the guest gets.
fn intx_links<const LINKS: usize>(routes: &[IntxRoute], link: fn(PciAddress, InterruptPin) -> usize) -> [u32; LINKS] {
    let mut links = [0; LINKS];
    for route in routes {
        let pin = [InterruptPin::A, InterruptPin::B, InterruptPin::C, InterruptPin::D][usize::from(route.pin & 3)];
        if let Ok(slot) = PciAddress::new(route.device, 0) {
            links[link(slot, pin)] = route.gsi;
        }
    }
    links
}

#[cfg(test)]
#[path = "chipset_tests.rs"]
mod tests;
