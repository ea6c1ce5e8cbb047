//! The devices on a port bus, with clocks that stand still until time is let pass.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use devices::bus::{Access, Bus, BusView};
use devices::interrupt::IrqLine;
use devices::legacy::clock::{Clock as _, ManualClock};
use devices::legacy::cmos::{CMOS_PORTS, Cmos};
use devices::legacy::debug_port::{DEBUG_PORTS, DebugConsole, PostCode};
use devices::legacy::pm::{PM_PORTS, Pm, PmConfig, SMI_PORTS, SmiCommands};
use devices::legacy::power::PowerLog;
use devices::legacy::ps2::{PS2_DATA_PORT, PS2_PORTS, PS2_STATUS_PORT, Ps2};
use devices::legacy::pvpanic::{PVPANIC_PORT, PVPANIC_PORTS, PvPanic};
use devices::legacy::reset::{Port92, ResetControl};
use devices::legacy::uart::{UART_PORTS, Uart};
use devices::pci::{ConfigPorts, PciBus, SmbusHost};
use devices::wake::WakeCounter;

pub const COM: [u64; 2] = [0x3f8, 0x2f8];
pub const CMOS: u64 = 0x70;
pub const PM: u64 = 0x600;
pub const SMI: u64 = 0xb2;
pub const SMBUS: u64 = 0x700;
pub const DEBUG: u64 = 0x402;
pub const POST: u64 = 0x80;
pub const PORT_92: u64 = 0x92;
pub const RESET: u64 = 0xcf9;

const NS_PER_S: u64 = 1_000_000_000;

/// What machines differ in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind {
    pub timer_32_bits: bool,
    pub wide_gpe: bool,
    pub smi: bool,
}

/// An interrupt line that remembers its level.
#[derive(Default)]
struct Line(AtomicBool);

impl IrqLine for Line {
    fn set(&self, asserted: bool) {
        self.0.store(asserted, Relaxed);
    }
}

/// Somebody who waits: woken or not since the last look.
#[derive(Default)]
pub struct Owner {
    wakes: Arc<WakeCounter>,
    /// Woken since it last took all output.
    pub for_output: bool,
    /// Woken since its input was refused.
    pub for_input: bool,
    /// The device had no room for what it was offered.
    pub refused: bool,
}

impl Owner {
    /// Looks whether it was woken: it does not know what for.
    pub fn look(&mut self) {
        let woken = self.wakes.take() > 0;
        self.for_output |= woken;
        self.for_input |= woken;
    }
}

/// The machine.
pub struct Machine {
    pub kind: Kind,
    pub clock: Arc<ManualClock>,
    pub power: Arc<PowerLog>,
    pub uarts: [Arc<Uart>; 2],
    pub owners: [Owner; 2],
    pub cmos: Arc<Cmos>,
    pub ps2: Arc<Ps2>,
    pub pm: Arc<Pm>,
    pub debug: Arc<DebugConsole>,
    pub debug_owner: Owner,
    pub post: Arc<PostCode>,
    port_92: Arc<Port92>,
    reset_control: Arc<ResetControl>,
    config_ports: Arc<ConfigPorts>,
    pub smbus: Arc<SmbusHost>,
    lines: [Arc<Line>; 6],
    ports: BusView,
}

impl Machine {
    /// A machine after power-on, at the beginning of its time.
    pub fn new(kind: Kind) -> Self {
        Self::at(kind, Arc::new(ManualClock::new(1_600_000_000)))
    }

    fn at(kind: Kind, clock: Arc<ManualClock>) -> Self {
        let lines: [Arc<Line>; 6] = Default::default();
        let [com1, com2, rtc, keyboard, mouse, sci] = lines.clone();
        let power = Arc::new(PowerLog::default());
        let owners: [Owner; 2] = Default::default();
        let debug_owner = Owner::default();
        let timers = Arc::new(WakeCounter::default());
        let uarts = [(com1, &owners[0]), (com2, &owners[1])]
            .map(|(line, owner)| Arc::new(Uart::new(line, owner.wakes.clone())));
        let cmos = Arc::new(Cmos::new(clock.clone(), rtc, timers.clone(), 3 << 30, 1 << 30));
        let ps2 = Ps2::new(keyboard, mouse, power.clone());
        let config = PmConfig {
            timer_32_bits: kind.timer_32_bits,
            timer_event: true,
            s5_sleep_type: 5,
            gpe0_bytes: if kind.wide_gpe { 4 } else { 2 },
            smi: kind.smi.then_some(SmiCommands { acpi_enable: 0xa0, acpi_disable: 0xa1 }),
        };
        let pm = Arc::new(Pm::new(config, clock.clone(), sci, power.clone(), timers));
        let debug = Arc::new(DebugConsole::new(debug_owner.wakes.clone()));
        let (post, port_92) = (Arc::new(PostCode::new()), Arc::new(Port92::new(power.clone())));
        let reset_control = Arc::new(ResetControl::new(power.clone()));
        let smbus = Arc::new(SmbusHost::new());

        let bus = Arc::new(Bus::new());
        let config_ports = Arc::new(ConfigPorts::new(Arc::new(PciBus::new()), reset_control.clone()));
        for (base, uart) in COM.iter().zip(&uarts) {
            bus.insert(*base, UART_PORTS, uart.clone()).unwrap();
        }
        bus.insert(CMOS, CMOS_PORTS, cmos.clone()).unwrap();
        bus.insert(PS2_DATA_PORT, PS2_PORTS, ps2.data_port()).unwrap();
        bus.insert(PS2_STATUS_PORT, PS2_PORTS, ps2.status_port()).unwrap();
        bus.insert(PM, PM_PORTS, pm.clone()).unwrap();
        bus.insert(SMI, SMI_PORTS, pm.smi_ports()).unwrap();
        bus.insert(SMBUS, SmbusHost::LEN, smbus.clone()).unwrap();
        bus.insert(DEBUG, DEBUG_PORTS, debug.clone()).unwrap();
        bus.insert(POST, 1, post.clone()).unwrap();
        bus.insert(PORT_92, 1, port_92.clone()).unwrap();
        bus.insert(PVPANIC_PORT, PVPANIC_PORTS, Arc::new(PvPanic::new(power.clone()))).unwrap();
        bus.insert(ConfigPorts::BASE, ConfigPorts::LEN, config_ports.clone()).unwrap();
        let ports = BusView::new(bus);
        Self {
            kind,
            clock,
            power,
            uarts,
            owners,
            cmos,
            ps2,
            pm,
            debug,
            debug_owner,
            post,
            port_92,
            reset_control,
            config_ports,
            smbus,
            lines,
            ports,
        }
    }

    /// A machine that goes on from the state of this one. The clock is the host's: it goes on by itself.
    pub fn restored(&self) -> Self {
        let other = Self::at(self.kind, self.clock.clone());
        for (from, to) in self.uarts.iter().zip(&other.uarts) {
            to.restore(&from.save()).unwrap();
        }
        other.cmos.restore(&self.cmos.save()).unwrap();
        other.ps2.restore(&self.ps2.save()).unwrap();
        other.pm.restore(&self.pm.save()).unwrap();
        other.debug.restore(&self.debug.save()).unwrap();
        other.post.restore(&self.post.save()).unwrap();
        other.port_92.restore(self.port_92.save());
        other.reset_control.restore(self.reset_control.save());
        other.config_ports.set_address(self.config_ports.address());
        other.smbus.restore(&self.smbus.save()).unwrap();
        other
    }

    /// The machine's reset.
    pub fn reset(&mut self) {
        self.uarts.iter().for_each(|uart| uart.reset());
        self.cmos.reset();
        self.ps2.reset();
        self.pm.reset();
        self.debug.reset();
        self.post.reset();
        self.port_92.reset();
        self.reset_control.reset();
        self.config_ports.set_address(0);
        self.smbus.reset();
    }

    pub fn read(&mut self, port: u64, width: usize) -> u64 {
        let mut data = [0; 8];
        assert!(matches!(self.ports.read(port, &mut data[..width]), Access::Done), "nothing here has to be waited for");
        u64::from_le_bytes(data)
    }

    pub fn write(&mut self, port: u64, width: usize, value: u64) {
        let data = value.to_le_bytes();
        assert!(matches!(self.ports.write(port, &data[..width]), Access::Done), "nothing here has to be waited for");
    }

    /// Lets time pass as the main loop does: devices are called when they asked to be.
    pub fn pass(&mut self, ns: u64) {
        let end = self.clock.monotonic_ns().saturating_add(ns);
        // An interrupt waits for the guest, so each timer asks a few times at the most, however much time passes.
        for _ in 0..8 {
            let now = self.clock.monotonic_ns();
            let due = [self.pm.deadline_ns(), self.cmos.next_deadline_ns()].into_iter().flatten().min();
            let Some(due) = due.filter(|due| *due <= end) else { break };
            assert!(due >= now, "a deadline in the past: the main loop would not sleep");
            self.clock.advance_ns(due - now);
            self.pm.tick(due);
            self.cmos.tick();
            assert!(self.pm.deadline_ns().is_none_or(|next| next > due), "the timer asks for the same moment again");
            assert!(
                self.cmos.next_deadline_ns().is_none_or(|next| next > due),
                "the clock asks for the same moment again"
            );
        }
        let now = self.clock.monotonic_ns();
        self.clock.advance_ns(end - now);
        self.pm.tick(end);
        self.cmos.tick();
    }

    /// Lets time pass up to a whole second: there the timer's ticks are whole, too, and a restored one stands where the
    /// other does.
    pub fn pass_to_whole_second(&mut self) {
        let into = self.clock.monotonic_ns() % NS_PER_S;
        self.pass((NS_PER_S - into) % NS_PER_S);
    }

    /// Levels of all lines.
    pub fn lines(&self) -> [bool; 6] {
        self.lines.each_ref().map(|line| line.0.load(Relaxed))
    }

    /// Lines follow from registers that can be read without harm.
    pub fn check(&mut self) {
        let [.., keyboard, mouse, sci] = self.lines();
        let status = self.read(PS2_STATUS_PORT, 1);
        assert!(!keyboard || status & 0x21 == 0x01, "IRQ 1 without a byte of the keyboard: {status:#x}");
        assert!(!mouse || status & 0x21 == 0x21, "IRQ 12 without a byte of the mouse: {status:#x}");
        let [block, gpe] = [self.read(PM, 8), self.read(PM + 12, 4)];
        let (events, enabled, control) = (block as u16, (block >> 16) as u16, (block >> 32) as u16);
        let (gpe, gpe_enabled) = match self.kind.wide_gpe {
            true => (gpe as u16, (gpe >> 16) as u16),
            false => (gpe as u16 & 0xff, (gpe >> 8) as u16 & 0xff),
        };
        let wanted = control & 1 != 0 && (events & enabled != 0 || gpe & gpe_enabled != 0);
        // Reading let time be seen; the line follows at the next tick.
        let now = self.clock.monotonic_ns();
        self.pm.tick(now);
        let [.., after] = self.lines();
        assert_eq!(after, wanted, "the ACPI interrupt (before the look: {sci})");
    }

    /// Nothing a guest does makes a state large.
    pub fn check_bounds(&self) {
        let len = |state: Result<String, serde_json::Error>| state.unwrap().len();
        for uart in &self.uarts {
            assert!(len(serde_json::to_string(&uart.save())) < 5000);
        }
        assert!(len(serde_json::to_string(&self.ps2.save())) < 5000);
        assert!(len(serde_json::to_string(&self.cmos.save())) < 2000);
        assert!(len(serde_json::to_string(&self.pm.save())) < 1000);
    }
}
