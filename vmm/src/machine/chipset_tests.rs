use std::sync::{Mutex, PoisonError};

use devices::bus::BusView;
use devices::interrupt::{IrqLine, MsiSource};
use devices::legacy::power::PowerLog;
use devices::wake::WakeCounter;

use super::*;
use crate::hypervisor::{HardwareDoorbells, Vcpu};

/// The links of `routes`, which agree with every route.
fn links_of<const LINKS: usize>(routes: Vec<IntxRoute>, link: fn(PciAddress, InterruptPin) -> usize) -> [u32; LINKS] {
    let links = intx_links(&routes, link);
    for route in routes {
        let pin = [InterruptPin::A, InterruptPin::B, InterruptPin::C, InterruptPin::D][usize::from(route.pin)];
        let slot = PciAddress::new(route.device, 0).unwrap();
        assert_eq!(links[link(slot, pin)], route.gsi, "device {} pin {}", route.device, route.pin);
    }
    links
}

#[test]
fn the_wiring_follows_the_routing_table_for_every_device_and_pin() {
    assert_eq!(links_of(IntxRoute::i440fx([10, 10, 11, 11]), i440fx_link), [10, 10, 11, 11]);
    assert_eq!(links_of(IntxRoute::bhyve(), bhyve_link), [16, 17, 18, 19, 20, 21, 22, 23]);
}

/// A VM that remembers what the chipset asks of it.
#[derive(Default)]
struct FakeVm {
    has_hpet: bool,
    kernel_devices: Mutex<Vec<KernelDevices>>,
    level: Mutex<Vec<u32>>,
    /// Every change of a line: its number and level.
    lines: Arc<Mutex<Vec<(u32, bool)>>>,
}

struct FakeLine(u32, Arc<Mutex<Vec<(u32, bool)>>>);

impl IrqLine for FakeLine {
    fn set(&self, asserted: bool) {
        self.1.lock().unwrap_or_else(PoisonError::into_inner).push((self.0, asserted));
    }
}

impl Vm for FakeVm {
    fn ram(&self) -> &devices::GuestRam {
        unreachable!("the chipset does not look into memory")
    }
    fn tsc_khz(&self) -> Option<u32> {
        None
    }
    fn create_vcpu(&self, _: u8, _: &[arch::cpu::CpuidEntry]) -> Result<Box<dyn Vcpu>, HypervisorError> {
        unreachable!("the chipset has no vCPU")
    }
    fn irq_line(&self, gsi: u32) -> Arc<dyn IrqLine> {
        Arc::new(FakeLine(gsi, self.lines.clone()))
    }
    fn line_is_level(&self, gsi: u32) -> Result<(), HypervisorError> {
        self.level.lock().unwrap().push(gsi);
        Ok(())
    }
    fn msi_source(&self) -> Arc<dyn MsiSource> {
        unreachable!("the chipset sends no messages")
    }
    fn doorbells(&self) -> Option<Arc<dyn HardwareDoorbells>> {
        None
    }
    fn map_rom(&self, _: u64, _: &[u8]) -> Result<(), HypervisorError> {
        Ok(())
    }
    fn has_hpet(&self) -> bool {
        self.has_hpet
    }
    fn set_up_kernel_devices(&self, devices: &KernelDevices) -> Result<(), HypervisorError> {
        self.kernel_devices.lock().unwrap().push(devices.clone());
        Ok(())
    }
    fn reset(&self) -> Result<(), HypervisorError> {
        Ok(())
    }
    fn leave(&self, _: bool) {}
}

/// Linux KVM, and a hypervisor that emulates clock and timer as bhyve does.
fn hosts() -> [HostCapabilities; 2] {
    let kvm = HostCapabilities {
        name: "kvm",
        max_vcpus: 1,
        phys_bits: 40,
        apic_timer_hz: 1,
        x2apic: true,
        tsc_deadline: true,
        hypervisor_leaves: HypervisorLeaves::Kvm { features: 0x0100_7efb, hints: 0 },
        rtc_in_kernel: false,
        pm_timer_in_kernel: false,
    };
    let bhyve = HostCapabilities {
        name: "bhyve",
        hypervisor_leaves: HypervisorLeaves::Bhyve,
        rtc_in_kernel: true,
        pm_timer_in_kernel: true,
        ..kvm.clone()
    };
    [kvm, bhyve]
}

struct Board {
    acpi: AcpiConfig,
    chipset: Chipset,
    vm: FakeVm,
}

fn board(profile: Profile, host: &HostCapabilities) -> Board {
    let vm = FakeVm { has_hpet: host.rtc_in_kernel, ..FakeVm::default() };
    let config = VmConfig { profile, ..VmConfig::default() };
    let layout = MemoryLayout::new(5 << 30, 40).unwrap();
    let acpi = acpi_config(&config, &layout, host, &vm);
    let (power, main): (Arc<dyn PowerSink>, Arc<dyn Wake>) =
        (Arc::new(PowerLog::default()), Arc::new(WakeCounter::default()));
    let chipset = Chipset::build(&config, &acpi, &layout, host, &vm, &power, &main).unwrap();
    Board { acpi, chipset, vm }
}

impl Board {
    fn inp(&self, port: u64, width: usize) -> u32 {
        let mut data = [0; 4];
        let _ = BusView::new(self.chipset.ports.clone()).read(port, &mut data[..width]);
        u32::from_le_bytes(data)
    }

    fn outp(&self, port: u64, bytes: &[u8]) {
        let _ = BusView::new(self.chipset.ports.clone()).write(port, bytes);
    }

    fn identity(&self, device: u8) -> u32 {
        self.outp(0xcf8, &(1u32 << 31 | u32::from(device) << 11).to_le_bytes());
        self.inp(0xcfc, 4)
    }
}

#[test]
fn what_the_kernel_emulates_is_placed_there_and_absent_here() {
    let [kvm, bhyve] = hosts();
    for (profile, port) in
        [(Profile::I440fx, Some(0x608)), (Profile::Bhyve, Some(0x408)), (Profile::Micro, Some(0x608))]
    {
        let board = board(profile, &bhyve);
        let asked = board.vm.kernel_devices.lock().unwrap().clone();
        let [asked] = &asked[..] else { panic!("{profile:?}: {asked:?}") };
        assert_eq!(asked.pm_timer_port, port, "{profile:?}");
        // 2 GiB above 4 GiB, in units of 64 KiB.
        assert!(asked.nvram.contains(&(0x5c, 0x80)), "{asked:?}");
        let timer = board.acpi.pm.timer.unwrap();
        assert!(timer.wide && Some(timer.port) == port, "the kernel's timer has 32 bits");
        assert_eq!(board.inp(0x71, 1), 0xff, "the clock");
        let event_port = u64::from(board.acpi.pm.event_port);
        board.outp(event_port + 2, &1u16.to_le_bytes());
        assert_eq!(board.inp(event_port + 2, 2), 0, "the timer's event");
    }
    for profile in [Profile::I440fx, Profile::Bhyve] {
        let board = board(profile, &kvm);
        let asked = board.vm.kernel_devices.lock().unwrap();
        assert_eq!((asked[0].pm_timer_port, asked[0].nvram.len()), (None, 0), "{profile:?}");
        board.outp(0x70, &[0x5c]);
        assert_eq!(board.inp(0x71, 1), 0x80);
    }
}

#[test]
fn a_guest_without_a_clock_of_its_hypervisor_gets_a_timer_and_the_date() {
    let [kvm, bhyve] = hosts();
    let clocks = |host: &HostCapabilities| {
        let acpi = board(Profile::Micro, host).acpi;
        (acpi.pm.timer.is_some(), acpi.rtc)
    };
    assert_eq!(clocks(&kvm), (false, false));
    assert_eq!(clocks(&bhyve), (true, true));
    let clockless = HostCapabilities { hypervisor_leaves: HypervisorLeaves::Kvm { features: 0, hints: 0 }, ..kvm };
    assert_eq!(clocks(&clockless), (true, true));
}

#[test]
fn the_hpet_is_told_under_bhyve_where_the_kernel_has_one() {
    let [kvm, bhyve] = hosts();
    let told = |profile, host| board(profile, host).acpi.hpet;
    assert_eq!([&kvm, &bhyve].map(|host| told(Profile::Bhyve, host)), [false, true]);
    assert!(!told(Profile::I440fx, &bhyve));
}

#[test]
fn the_bhyve_board_has_its_bridges_ports_and_commands() {
    for host in hosts() {
        let board = board(Profile::Bhyve, &host);
        assert_eq!([0, 1, 31].map(|device| board.identity(device)), [0x1237_8086, 0xffff_ffff, 0x7000_8086]);
        assert_eq!(board.acpi.com, [true; 4]);
        for com in [0x3f8, 0x2f8, 0x3e8, 0x2e8] {
            board.outp(com + 7, &[0x5a]);
            assert_eq!(board.inp(com + 7, 1), 0x5a, "scratch register at {com:#x}");
        }
        assert_eq!(board.inp(0x64, 1) & 0x80, 0, "keyboard controller");
        assert_eq!(board.inp(0x404, 2), 0, "ACPI is off");
        board.outp(0xb2, &[0xa0]);
        assert_eq!(board.inp(0x404, 2), 1);
        board.outp(0xb2, &[0xa1]);
        assert_eq!(board.inp(0x404, 2), 0);
    }
}

#[test]
fn an_interrupt_of_the_bhyve_board_reaches_its_pin_and_the_routed_interrupt() {
    let [kvm, _] = hosts();
    let board = board(Profile::Bhyve, &kvm);
    assert_eq!(*board.vm.level.lock().unwrap(), [9, 10, 11], "power management, and what the links are routed to");
    // INTA# of device 4 is the second link.
    let (pin, input, line) = board.chipset.interrupt_pin(PciAddress::new(4, 0).unwrap());
    assert_eq!((pin, line), (InterruptPin::A, 11));
    input.set(true);
    input.set(false);
    assert_eq!(*board.vm.lines.lock().unwrap(), [(11, true), (17, true), (11, false), (17, false)]);
}

#[test]
fn the_i440fx_board_drives_its_pci_interrupts_as_levels() {
    let [kvm, _] = hosts();
    assert_eq!(*board(Profile::I440fx, &kvm).vm.level.lock().unwrap(), [9, 10, 11]);
    assert_eq!(*board(Profile::Micro, &kvm).vm.level.lock().unwrap(), [9]);
}
