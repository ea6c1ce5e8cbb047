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

/// The command port and its data port.
pub const SMI_PORTS: u64 = 2;

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

/// The most a saved timer may have counted, 80000 years: beyond lies the end of counting, where it would stand for ever.
const MAX_RESTORED_TICKS: u64 = 1 << 63;

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
    /// Whether each turn of the timer can raise the interrupt. Not where the kernel answers the timer's port: the count
    /// the guest reads is another than the one kept here.
    pub timer_event: bool,
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

    /// The command port 0xB2 and its data port 0xB3, for machines that have them: [`SMI_PORTS`] ports.
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
        let has_strange_bits = (state.enable | state.status) & !self.events() != 0
            || state.control & !control::KEPT != 0
            || (state.gpe_enable | state.gpe_status) & !self.gpe_mask() != 0;
        if has_strange_bits {
            return refuse("a register has bits that do not exist");
        }
        if state.timer_ticks > MAX_RESTORED_TICKS {
            return refuse("its timer is at its end");
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
        if self.config.timer_event && ticks.checked_div(half) != inner.seen_ticks.checked_div(half) {
            inner.state.status |= event::TIMER;
        }
        inner.seen_ticks = ticks;
        ticks & half.saturating_mul(2).saturating_sub(1)
    }

    fn events(&self) -> u16 {
        if self.config.timer_event { event::ALL } else { event::ALL & !event::TIMER }
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
        let events = self.events();
        match offset {
            0 => state.status &= !low,
            1 => state.status &= !high,
            2 => state.enable = (state.enable & 0xff00 | low) & events,
            3 => state.enable = (state.enable & 0x00ff | high) & events,
            4 => {
                // Where a command turns ACPI on and off, nothing else does.
                let kept = if self.config.smi.is_some() { 0xff00 | control::SCI_ENABLED } else { 0xff00 };
                let written = low & !control::GLOBAL_RELEASE;
                state.control = (state.control & kept | written & !kept) & control::KEPT;
            }
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
#[path = "pm_tests.rs"]
mod tests;
