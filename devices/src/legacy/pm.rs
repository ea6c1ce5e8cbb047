//! ACPI fixed hardware: PM1 event and control registers, power management timer, general-purpose events, and the
//! command port that turns ACPI on and off (ACPI 6.5 §4.8.3, §4.8.4).

use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};

use crate::bus::{Access, BusDevice};
use crate::interrupt::IrqLine;
use crate::legacy::clock::Clock;
use crate::legacy::power::PowerSink;
use crate::legacy::{lock, read_bytes, write_bytes};
use crate::pci::StateError;
use crate::wake::Wake;

/// Ports of the register block: events at 0, control at 4, timer at 8, general-purpose events at 12. The PIIX4 and
/// bhyve's machine agree on this.
pub const PM_PORTS: u64 = 16;

/// Where the PM1a control block is in the register block.
pub const PM_CONTROL_OFFSET: u64 = 4;

/// Where the timer is in the register block.
pub const PM_TIMER_OFFSET: u64 = 8;

/// Where the general-purpose events are in the register block.
pub const PM_GPE0_OFFSET: u64 = 12;

/// Frequency of the timer (ACPI 6.5 §4.8.3.3).
pub const PM_TIMER_HZ: u64 = 3_579_545;

/// The one layout of [`PmState`] there is.
const VERSION: u32 = 1;

/// Bits of PM1 status and enable.
mod event {
    pub const TIMER: u16 = 1 << 0;
    pub const GLOBAL: u16 = 1 << 5;
    pub const POWER_BUTTON: u16 = 1 << 8;
    pub const SLEEP_BUTTON: u16 = 1 << 9;
    pub const RTC: u16 = 1 << 10;
    pub const ALL: u16 = TIMER | GLOBAL | POWER_BUTTON | SLEEP_BUTTON | RTC;
}

/// Bits of PM1 control.
mod control {
    pub const SCI_ENABLED: u16 = 1 << 0;
    pub const GLOBAL_RELEASE: u16 = 1 << 2;
    pub const SLEEP_TYPE_SHIFT: u32 = 10;
    pub const SLEEP_TYPE: u16 = 7 << SLEEP_TYPE_SHIFT;
    pub const SLEEP_ENABLE: u16 = 1 << 13;
    /// What reads back as written.
    pub const KEPT: u16 = SCI_ENABLED | 1 << 1 | SLEEP_TYPE;
}

/// What a machine decides about its power management.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PmConfig {
    /// Whether the timer has 32 bits and not 24; the FADT must say the same (TMR_VAL_EXT).
    pub timer_32_bits: bool,
    /// The sleep type that means S5; the DSDT's `_S5` must say the same.
    pub s5_sleep_type: u8,
    /// Bytes of general-purpose status plus enable: 2 or 4.
    pub gpe0_bytes: u8,
    /// How ACPI is turned on; `None`: it is always on, and the FADT names no command port.
    pub smi: Option<SmiCommands>,
}

/// Values the guest writes to the command port, as in the FADT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SmiCommands {
    /// ACPI_ENABLE.
    pub acpi_enable: u8,
    /// ACPI_DISABLE.
    pub acpi_disable: u8,
}

/// Registers, and where the timer stood.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PmState {
    version: u32,
    status: u16,
    enable: u16,
    control: u16,
    gpe_status: u16,
    gpe_enable: u16,
    /// Timer ticks since the machine began, wider than the guest sees.
    timer_ticks: u64,
    /// Command and data port.
    smi: [u8; 2],
}

struct Inner {
    state: PmState,
    /// Clock value that belongs to `state.timer_ticks`.
    timer_base_ns: u64,
    /// Ticks up to which a change of the timer's top bit is in `state.status`.
    seen_ticks: u64,
    /// What the interrupt line was last set to.
    line: bool,
}

/// The fixed hardware of one machine. Its [`BusDevice`] is the register block.
pub struct Pm {
    config: PmConfig,
    inner: Mutex<Inner>,
    clock: Arc<dyn Clock>,
    sci: Arc<dyn IrqLine>,
    power: Arc<dyn PowerSink>,
    timers: Arc<dyn Wake>,
}

impl Pm {
    /// Power management after power-on. `sci` is the ACPI interrupt; `timers` is woken when
    /// [`deadline_ns`](Self::deadline_ns) may have become earlier.
    pub fn new(
        config: PmConfig,
        clock: Arc<dyn Clock>,
        sci: Arc<dyn IrqLine>,
        power: Arc<dyn PowerSink>,
        timers: Arc<dyn Wake>,
    ) -> Self {
        let timer_base_ns = clock.monotonic_ns();
        let inner = Inner { state: power_on_state(config), timer_base_ns, seen_ticks: 0, line: false };
        Self { config, inner: Mutex::new(inner), clock, sci, power, timers }
    }

    /// Presses the power button. `true` where the guest has asked to be told; a guest that has not will see it when it
    /// asks later, or never.
    pub fn press_power_button(&self) -> bool {
        let mut inner = lock(&self.inner);
        inner.state.status |= event::POWER_BUTTON;
        let is_heard = inner.state.enable & event::POWER_BUTTON != 0 && inner.state.control & control::SCI_ENABLED != 0;
        self.update_line(&mut inner);
        is_heard
    }

    /// Raises general-purpose event `bit` (0 to 15, as many as there are).
    pub fn raise_gpe(&self, bit: u8) {
        let mut inner = lock(&self.inner);
        inner.state.gpe_status |= 1u16.checked_shl(bit.into()).unwrap_or(0) & self.gpe_mask();
        self.update_line(&mut inner);
    }

    /// When [`tick`](Self::tick) is to be called at the latest, on the monotonic clock.
    pub fn deadline_ns(&self) -> Option<u64> {
        let inner = lock(&self.inner);
        let wants_timer = inner.state.enable & event::TIMER != 0 && inner.state.control & control::SCI_ENABLED != 0;
        if !wants_timer || inner.state.status & event::TIMER != 0 {
            return None;
        }
        let half = self.half_ticks();
        let next = inner.seen_ticks.checked_div(half)?.checked_add(1)?.checked_mul(half)?;
        let ticks_left = next.saturating_sub(inner.state.timer_ticks);
        // Rounded up: a nanosecond early would find nothing to do, and be called again at once.
        let ns = u128::from(ticks_left).saturating_mul(1_000_000_000).div_ceil(PM_TIMER_HZ.into());
        Some(inner.timer_base_ns.saturating_add(u64::try_from(ns).unwrap_or(u64::MAX)))
    }

    /// Lets time pass up to `now_ns` on the monotonic clock: raises what is due.
    pub fn tick(&self, now_ns: u64) {
        let mut inner = lock(&self.inner);
        self.see_timer(&mut inner, now_ns);
        self.update_line(&mut inner);
    }

    /// The command port 0xB2 and its data port 0xB3, for machines that have them: two ports.
    pub fn smi_ports(self: &Arc<Self>) -> Arc<dyn BusDevice> {
        Arc::new(SmiPorts(self.clone()))
    }

    /// Back to the state after power-on. The timer goes on.
    pub fn reset(&self) {
        let mut inner = lock(&self.inner);
        let timer_ticks = inner.state.timer_ticks;
        inner.state = PmState { timer_ticks, ..power_on_state(self.config) };
        self.update_line(&mut inner);
    }

    /// The state, to be restored into another machine.
    pub fn save(&self) -> PmState {
        let mut inner = lock(&self.inner);
        self.see_timer(&mut inner, self.clock.monotonic_ns());
        PmState { timer_ticks: inner.seen_ticks, ..inner.state.clone() }
    }

    /// Goes on from `state`: the timer continues where it stood.
    ///
    /// # Errors
    /// Where `state` is not one of this version or has bits that do not exist; nothing has changed then.
    pub fn restore(&self, state: &PmState) -> Result<(), StateError> {
        let refuse = |why| Err(StateError { what: "power management", why });
        if state.version != VERSION {
            return refuse("its version is not 1");
        }
        let has_strange_bits = (state.enable | state.status) & !event::ALL != 0
            || state.control & !control::KEPT != 0
            || (state.gpe_enable | state.gpe_status) & !self.gpe_mask() != 0;
        if has_strange_bits {
            return refuse("a register has bits that do not exist");
        }
        let mut inner = lock(&self.inner);
        inner.timer_base_ns = self.clock.monotonic_ns();
        inner.seen_ticks = state.timer_ticks;
        inner.state = state.clone();
        inner.line = wants_sci(&inner.state);
        self.sci.set(inner.line);
        drop(inner);
        self.timers.wake();
        Ok(())
    }

    fn ticks(inner: &Inner, now_ns: u64) -> u64 {
        let passed_ns = u128::from(now_ns.saturating_sub(inner.timer_base_ns));
        let ticks = passed_ns.saturating_mul(PM_TIMER_HZ.into()) / 1_000_000_000;
        inner.state.timer_ticks.saturating_add(u64::try_from(ticks).unwrap_or(u64::MAX))
    }

    /// Half a turn of the timer: so often its top bit changes, which is the timer event.
    fn half_ticks(&self) -> u64 {
        if self.config.timer_32_bits { 1 << 31 } else { 1 << 23 }
    }

    /// Notices whether the top bit has changed since the last look; the timer's value.
    fn see_timer(&self, inner: &mut Inner, now_ns: u64) -> u64 {
        let ticks = Self::ticks(inner, now_ns).max(inner.seen_ticks);
        let half = self.half_ticks();
        if ticks.checked_div(half) != inner.seen_ticks.checked_div(half) {
            inner.state.status |= event::TIMER;
        }
        inner.seen_ticks = ticks;
        ticks & half.saturating_mul(2).saturating_sub(1)
    }

    fn gpe_mask(&self) -> u16 {
        if self.config.gpe0_bytes >= 4 { 0xffff } else { 0x00ff }
    }

    fn update_line(&self, inner: &mut Inner) {
        let level = wants_sci(&inner.state);
        if level != inner.line {
            inner.line = level;
            self.sci.set(level);
        }
    }

    /// All registers as they read at one moment, so that a wide read of the timer is one value.
    fn image(&self, inner: &mut Inner) -> [u8; PM_PORTS as usize] {
        let timer = self.see_timer(inner, self.clock.monotonic_ns());
        let state = &inner.state;
        let [s0, s1] = state.status.to_le_bytes();
        let [e0, e1] = state.enable.to_le_bytes();
        let [c0, c1] = state.control.to_le_bytes();
        let [t0, t1, t2, t3, ..] = timer.to_le_bytes();
        let [gs0, gs1] = state.gpe_status.to_le_bytes();
        let [ge0, ge1] = state.gpe_enable.to_le_bytes();
        let gpe = if self.config.gpe0_bytes >= 4 { [gs0, gs1, ge0, ge1] } else { [gs0, ge0, 0, 0] };
        let [g0, g1, g2, g3] = gpe;
        [s0, s1, e0, e1, c0, c1, 0, 0, t0, t1, t2, t3, g0, g1, g2, g3]
    }

    /// Writes one byte; whether the guest went to S5 with it.
    fn write_byte(&self, inner: &mut Inner, offset: u64, value: u8) -> bool {
        let state = &mut inner.state;
        let (low, high) = (u16::from(value), u16::from(value) << 8);
        let is_wide = self.config.gpe0_bytes >= 4;
        match offset {
            0 => state.status &= !low,
            1 => state.status &= !high,
            2 => state.enable = (state.enable & 0xff00 | low) & event::ALL,
            3 => state.enable = (state.enable & 0x00ff | high) & event::ALL,
            4 => state.control = (state.control & 0xff00 | low & !control::GLOBAL_RELEASE) & control::KEPT,
            5 => {
                state.control = (state.control & 0x00ff | high) & control::KEPT;
                let sleep_type = (state.control & control::SLEEP_TYPE) >> control::SLEEP_TYPE_SHIFT;
                return high & control::SLEEP_ENABLE != 0 && sleep_type == u16::from(self.config.s5_sleep_type);
            }
            12 => state.gpe_status &= !low,
            13 if is_wide => state.gpe_status &= !high,
            14 if is_wide => state.gpe_enable = state.gpe_enable & 0xff00 | low,
            15 if is_wide => state.gpe_enable = state.gpe_enable & 0x00ff | high,
            13 => state.gpe_enable = low,
            _ => {}
        }
        false
    }
}

impl BusDevice for Pm {
    fn read(&self, offset: u64, data: &mut [u8]) -> Access {
        let image = self.image(&mut lock(&self.inner));
        read_bytes(offset, data, |at| usize::try_from(at).ok().and_then(|at| image.get(at)).copied().unwrap_or(0xff))
    }

    fn write(&self, offset: u64, data: &[u8]) -> Access {
        let mut inner = lock(&self.inner);
        // What was due before the write is not cleared or missed by it.
        self.see_timer(&mut inner, self.clock.monotonic_ns());
        let before = inner.state.enable;
        let mut powers_off = false;
        write_bytes(offset, data, |at, value| powers_off |= self.write_byte(&mut inner, at, value));
        self.update_line(&mut inner);
        let wants_timer = inner.state.enable & event::TIMER != 0
            && (before & event::TIMER == 0 || inner.state.status & event::TIMER == 0);
        drop(inner);
        if wants_timer {
            self.timers.wake();
        }
        if powers_off {
            self.power.power_off();
        }
        Access::Done
    }
}

fn power_on_state(config: PmConfig) -> PmState {
    PmState {
        version: VERSION,
        status: 0,
        enable: 0,
        control: if config.smi.is_none() { control::SCI_ENABLED } else { 0 },
        gpe_status: 0,
        gpe_enable: 0,
        timer_ticks: 0,
        smi: [0; 2],
    }
}

fn wants_sci(state: &PmState) -> bool {
    let is_on = state.control & control::SCI_ENABLED != 0;
    is_on && (state.status & state.enable & event::ALL != 0 || state.gpe_status & state.gpe_enable != 0)
}

/// The command port: there is no system management mode behind it, so the two commands take effect at once.
struct SmiPorts(Arc<Pm>);

impl BusDevice for SmiPorts {
    fn read(&self, offset: u64, data: &mut [u8]) -> Access {
        let [command, value] = lock(&self.0.inner).state.smi;
        read_bytes(offset, data, |at| match at {
            0 => command,
            1 => value,
            _ => 0xff,
        })
    }

    fn write(&self, offset: u64, data: &[u8]) -> Access {
        let mut inner = lock(&self.0.inner);
        write_bytes(offset, data, |at, value| {
            let [command, parameter] = &mut inner.state.smi;
            match at {
                0 => *command = value,
                1 => *parameter = value,
                _ => {}
            }
            if let (0, Some(smi)) = (at, self.0.config.smi) {
                if value == smi.acpi_enable {
                    inner.state.control |= control::SCI_ENABLED;
                } else if value == smi.acpi_disable {
                    inner.state.control &= !control::SCI_ENABLED;
                }
            }
        });
        self.0.update_line(&mut inner);
        Access::Done
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::legacy::clock::ManualClock;
    use crate::legacy::power::PowerLog;
    use crate::legacy::testing::{Line, any_access, perform, read, write};
    use crate::wake::WakeCounter;

    struct Machine {
        pm: Arc<Pm>,
        clock: Arc<ManualClock>,
        sci: Arc<Line>,
        power: Arc<PowerLog>,
        timers: Arc<WakeCounter>,
    }

    const PIIX4: PmConfig = PmConfig { timer_32_bits: false, s5_sleep_type: 0, gpe0_bytes: 4, smi: None };
    const BHYVE: PmConfig = PmConfig {
        timer_32_bits: true,
        s5_sleep_type: 5,
        gpe0_bytes: 2,
        smi: Some(SmiCommands { acpi_enable: 0xa0, acpi_disable: 0xa1 }),
    };

    fn machine(config: PmConfig) -> Machine {
        let (clock, sci) = (Arc::new(ManualClock::new(0)), Line::new());
        let (power, timers) = (Arc::new(PowerLog::default()), Arc::new(WakeCounter::default()));
        let pm = Arc::new(Pm::new(config, clock.clone(), sci.clone(), power.clone(), timers.clone()));
        Machine { pm, clock, sci, power, timers }
    }

    fn read16(device: &dyn BusDevice, offset: u64) -> u16 {
        let mut data = [0; 2];
        device.read(offset, &mut data);
        u16::from_le_bytes(data)
    }

    fn timer(pm: &Pm) -> u32 {
        let mut data = [0; 4];
        pm.read(PM_TIMER_OFFSET, &mut data);
        u32::from_le_bytes(data)
    }

    #[test]
    fn only_the_s5_sleep_type_powers_off() {
        let Machine { pm, power, .. } = machine(BHYVE);
        for sleep_type in 0..8u16 {
            pm.write(4, &(sleep_type << 10 | 1 << 13 | 1).to_le_bytes());
            let expected: &[Option<_>] = if sleep_type == 5 { &[None] } else { &[] };
            assert_eq!(power.take(), expected, "{sleep_type}");
            assert_eq!(read16(&*pm, 4), sleep_type << 10 | 1, "SLP_EN reads as zero");
        }
        pm.write(4, &(5u16 << 10).to_le_bytes());
        assert_eq!(power.take(), []);
    }

    #[test]
    fn the_power_button_interrupts_until_its_status_is_cleared() {
        let Machine { pm, sci, .. } = machine(PIIX4);
        assert!(!pm.press_power_button(), "the guest has not asked yet");
        assert!(!sci.level());
        pm.write(2, &0x0100u16.to_le_bytes());
        assert!(sci.level(), "a press before enabling is seen after");
        pm.write(0, &0x0001u16.to_le_bytes());
        assert!(sci.level());
        pm.write(0, &0x0100u16.to_le_bytes());
        assert!(!sci.level());
        assert_eq!(read16(&*pm, 0), 0);
        assert!(pm.press_power_button());
        assert!(sci.level());
    }

    #[test]
    fn acpi_is_on_from_the_start_without_a_command_port_and_by_command_with_one() {
        assert_eq!(read16(&*machine(PIIX4).pm, 4), 1);
        let Machine { pm, sci, .. } = machine(BHYVE);
        let ports = pm.smi_ports();
        assert_eq!(read16(&*pm, 4), 0);
        pm.write(2, &0x0100u16.to_le_bytes());
        assert!(!pm.press_power_button());
        write(&*ports, 1, 0x77);
        write(&*ports, 0, 0xa0);
        assert_eq!(read16(&*pm, 4), 1);
        assert!(sci.level());
        write(&*ports, 0, 0xa1);
        assert!(!sci.level());
        assert_eq!((read(&*ports, 0), read(&*ports, 1)), (0xa1, 0x77));
    }

    #[test]
    fn the_timer_counts_at_its_frequency_and_wraps_at_its_width() {
        let Machine { pm, clock, .. } = machine(PIIX4);
        assert_eq!(timer(&pm), 0);
        clock.advance_ns(1_000_000_000);
        assert_eq!(timer(&pm), 3_579_545);
        clock.advance_ns(4_000_000_000);
        assert_eq!(timer(&pm), 5 * 3_579_545 - (1 << 24));
        let Machine { pm, clock, .. } = machine(BHYVE);
        clock.advance_ns(1200 * 1_000_000_000);
        assert_eq!(u64::from(timer(&pm)), 1200 * 3_579_545 - (1 << 32));
    }

    #[test]
    fn the_timer_event_comes_with_each_change_of_the_top_bit() {
        let Machine { pm, clock, sci, timers, .. } = machine(PIIX4);
        assert_eq!(pm.deadline_ns(), None);
        pm.write(2, &1u16.to_le_bytes());
        assert!(timers.take() > 0);
        let due_ns = pm.deadline_ns().unwrap();
        assert_eq!(due_ns, (1u64 << 23) * 1_000_000_000 / 3_579_545 + 1);
        clock.advance_ns(due_ns - 1);
        pm.tick(due_ns - 1);
        assert!(!sci.level());
        clock.advance_ns(1);
        pm.tick(due_ns);
        assert!(sci.level());
        assert_eq!(pm.deadline_ns(), None, "nothing is due until the guest clears the status");
        timers.take();
        pm.write(0, &1u16.to_le_bytes());
        assert!(!sci.level());
        assert!(timers.take() > 0);
        assert_eq!(pm.deadline_ns().unwrap(), (1u64 << 24) * 1_000_000_000 / 3_579_545 + 1);
    }

    #[test]
    fn general_purpose_events_have_two_widths() {
        for (config, enable_at) in [(PIIX4, 14), (BHYVE, 13)] {
            let Machine { pm, sci, .. } = machine(config);
            pm.write(4, &1u16.to_le_bytes());
            write(&*pm, enable_at, 0x04);
            pm.raise_gpe(1);
            assert!(!sci.level());
            pm.raise_gpe(2);
            assert!(sci.level());
            assert_eq!(read(&*pm, 12), 0x06);
            write(&*pm, 12, 0x04);
            assert!(!sci.level());
            pm.raise_gpe(200);
            assert_eq!(read(&*pm, 12), 0x02);
        }
        let Machine { pm, sci, .. } = machine(PIIX4);
        write(&*pm, 15, 0x80);
        pm.raise_gpe(15);
        assert!(sci.level());
    }

    #[test]
    fn a_restored_machine_goes_on_where_the_saved_one_stopped() {
        let first = machine(PIIX4);
        first.pm.write(2, &0x0101u16.to_le_bytes());
        first.pm.press_power_button();
        first.clock.advance_ns(123_456_789);
        let second = machine(PIIX4);
        second.clock.advance_ns(999_999_999_999);
        second.pm.restore(&first.pm.save()).unwrap();
        assert!(second.sci.level());
        assert_eq!(timer(&second.pm), timer(&first.pm));
        second.clock.advance_ns(1_000_000_000);
        assert_eq!(timer(&second.pm), timer(&first.pm) + 3_579_545);
        assert_eq!(read16(&*second.pm, 2), 0x0101);
        second.pm.reset();
        assert!(!second.sci.level());
        assert_eq!(read16(&*second.pm, 2), 0);
    }

    #[test]
    fn a_state_no_machine_can_have_is_refused() {
        let Machine { pm, .. } = machine(BHYVE);
        let good = pm.save();
        for bad in [
            PmState { version: 0, ..good.clone() },
            PmState { enable: 0x8000, ..good.clone() },
            PmState { status: 0x0002, ..good.clone() },
            PmState { control: 1 << 13, ..good.clone() },
            PmState { gpe_enable: 0x100, ..good.clone() },
        ] {
            assert!(pm.restore(&bad).is_err(), "{bad:?}");
        }
        assert_eq!(pm.save(), good);
        // Time beyond any machine's life must not overflow anything.
        pm.restore(&PmState { timer_ticks: u64::MAX, ..good }).unwrap();
        pm.write(2, &1u16.to_le_bytes());
        pm.write(4, &1u16.to_le_bytes());
        let _ = (pm.deadline_ns(), timer(&pm));
        pm.tick(u64::MAX);
    }

    proptest! {
        #[test]
        fn any_accesses_leave_a_line_that_matches_the_registers(
            accesses in prop::collection::vec((any_access(), any::<u32>()), 0..60),
            is_piix4 in any::<bool>(),
        ) {
            let Machine { pm, clock, sci, .. } = machine(if is_piix4 { PIIX4 } else { BHYVE });
            let ports = pm.smi_ports();
            for (access, ns) in accesses {
                perform(&*pm, access);
                perform(&*ports, access);
                clock.advance_ns(ns.into());
                pm.tick(clock.monotonic_ns());
                let gpe = if is_piix4 {
                    read16(&*pm, 12) & read16(&*pm, 14) != 0
                } else {
                    read(&*pm, 12) & read(&*pm, 13) != 0
                };
                let expected = read16(&*pm, 4) & 1 != 0 && (read16(&*pm, 0) & read16(&*pm, 2) != 0 || gpe);
                prop_assert_eq!(sci.level(), expected);
                prop_assert!(pm.deadline_ns().is_none_or(|due_ns| due_ns >= clock.monotonic_ns()));
            }
        }
    }
}
