//! The real-time clock and its memory, ports 0x70 and 0x71 (Motorola MC146818A data sheet, 1984; century byte 0x32 and
//! memory sizes as PC firmware lays them out).
//!
//! No thread ticks here. Time is the host's UTC plus the distance the guest put between it and its own clock; whatever
//! should have happened since the last look (updates, alarms, periodic ticks) is worked out at the next look: an access
//! of the guest, or [`Cmos::tick`] from the main loop at the moment [`Cmos::next_deadline_ns`] names.

use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};

use super::clock::Clock;
use super::{lock, read_bytes, write_bytes};
use crate::bus::{Access, BusDevice};
use crate::interrupt::IrqLine;
use crate::pci::StateError;
use crate::wake::Wake;

mod calendar;

use calendar::Format;

/// Ports of the device: index and data.
pub const CMOS_PORTS: u64 = 2;

/// Registers and memory behind the index port.
const CMOS_BYTES: usize = 128;

const NS_PER_S: u64 = 1_000_000_000;

/// Further from 1970 than any date the registers show, and than any guest lives on from one.
const LAST_TIME_S: u64 = 1 << 40;

/// The divider chain's crystal, and a second, as tick arithmetic needs them.
const CRYSTAL_HZ: u128 = 32_768;
const TICK_NS_PER_S: u128 = NS_PER_S as u128;

/// How long before an update register A announces it (data sheet, "Update cycle", tBUC).
const UPDATE_WARNING_NS: u64 = 244_000;

/// Where a second begins after the divider chain was held in reset: the first update comes half a second later.
const DIVIDER_RELEASE_NS: u64 = NS_PER_S / 2;

/// Register numbers.
mod reg {
    pub const SECONDS: usize = 0x00;
    pub const SECONDS_ALARM: usize = 0x01;
    pub const MINUTES: usize = 0x02;
    pub const MINUTES_ALARM: usize = 0x03;
    pub const HOURS: usize = 0x04;
    pub const HOURS_ALARM: usize = 0x05;
    pub const WEEKDAY: usize = 0x06;
    pub const DAY: usize = 0x07;
    pub const MONTH: usize = 0x08;
    pub const YEAR: usize = 0x09;
    pub const A: usize = 0x0a;
    pub const B: usize = 0x0b;
    pub const C: usize = 0x0c;
    pub const D: usize = 0x0d;
    pub const CENTURY: usize = 0x32;
}

/// Register A.
mod a {
    pub const UPDATE_IN_PROGRESS: u8 = 0x80;
    pub const DIVIDER: u8 = 0x70;
    pub const DIVIDER_RESET: u8 = 0x60;
    pub const RATE: u8 = 0x0f;
    /// The 32 kHz divider, and a tick every 976 µs where one is enabled.
    pub const FIRMWARE: u8 = 0x26;
}

/// Register B.
mod b {
    pub const SET: u8 = 0x80;
    pub const PERIODIC: u8 = 0x40;
    pub const ALARM: u8 = 0x20;
    pub const UPDATE_ENDED: u8 = 0x10;
    pub const INTERRUPTS: u8 = PERIODIC | ALARM | UPDATE_ENDED;
    pub const BINARY: u8 = 0x04;
    pub const HOURS_24: u8 = 0x02;
}

/// Register C: the interrupt's request, and its causes at the places of their enable bits in register B.
const C_REQUEST: u8 = 0x80;

/// Register D: the time is valid.
const D_VALID: u8 = 0x80;

/// Clock and memory, and how far the clock is from the host's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CmosState {
    version: u16,
    index: u8,
    nmi_masked: bool,
    /// All registers; those of time and date hold the last update.
    bytes: Vec<u8>,
    /// The guest's clock minus the host's, as seconds and nanoseconds below 10^9.
    ahead_s: i64,
    ahead_ns: u32,
    /// The guest's second the registers of time and date show.
    shown_s: i64,
    /// The guest wrote time or date while the clock stood.
    time_written: bool,
}

struct Inner {
    state: CmosState,
    /// Periodic ticks since the monotonic clock's origin, at the rate of register A.
    periodic_ticks: u128,
    /// What the interrupt line was last set to.
    line: bool,
    /// The deadline the main loop knows of.
    announced_ns: Option<u64>,
}

/// One moment on the host's clocks.
#[derive(Clone, Copy)]
struct Now {
    host_s: i64,
    host_ns: u32,
    monotonic_ns: u64,
}

impl Now {
    fn of(clock: &dyn Clock) -> Self {
        let (host_s, host_ns) = clock.realtime();
        Self { host_s, host_ns: host_ns.min(999_999_999), monotonic_ns: clock.monotonic_ns() }
    }
}

/// The clock and its memory: one [`BusDevice`] of [`CMOS_PORTS`] ports. The main loop calls
/// [`tick`](Self::tick) and [`next_deadline_ns`](Self::next_deadline_ns).
pub struct Cmos {
    inner: Mutex<Inner>,
    clock: Arc<dyn Clock>,
    line: Arc<dyn IrqLine>,
    timers: Arc<dyn Wake>,
}

impl Cmos {
    /// A clock that shows the host's UTC, and memory that tells firmware the RAM's size: `low_ram_bytes` below 4 GiB,
    /// `high_ram_bytes` above. `line` is IRQ 8. `timers` is woken when
    /// [`next_deadline_ns`](Self::next_deadline_ns) has come nearer than it last said.
    pub fn new(
        clock: Arc<dyn Clock>,
        line: Arc<dyn IrqLine>,
        timers: Arc<dyn Wake>,
        low_ram_bytes: u64,
        high_ram_bytes: u64,
    ) -> Self {
        let state = CmosState {
            version: 1,
            index: 0,
            nmi_masked: false,
            bytes: vec![0; CMOS_BYTES],
            ahead_s: 0,
            ahead_ns: 0,
            shown_s: 0,
            time_written: false,
        };
        let mut inner = Inner { state, periodic_ticks: 0, line: false, announced_ns: None };
        inner.put(reg::A, a::FIRMWARE);
        inner.put(reg::B, b::HOURS_24);
        for (register, byte) in memory_sizes(low_ram_bytes, high_ram_bytes) {
            inner.put(register.into(), byte);
        }
        inner.begin(Now::of(&*clock));
        Self { inner: Mutex::new(inner), clock, line, timers }
    }

    /// Sets a byte of memory, as firmware's settings expect it; `false` where `index` is a register of the clock or
    /// beyond the end.
    pub fn set_nvram(&self, index: u8, value: u8) -> bool {
        let index = usize::from(index);
        let is_memory = index > reg::D && index < CMOS_BYTES && index != reg::CENTURY;
        if is_memory {
            lock(&self.inner).put(index, value);
        }
        is_memory
    }

    /// Whether the guest asked that non-maskable interrupts be held back (bit 7 of port 0x70).
    pub fn nmi_masked(&self) -> bool {
        lock(&self.inner).state.nmi_masked
    }

    /// Raises what is due.
    pub fn tick(&self) {
        let mut inner = lock(&self.inner);
        inner.catch_up(self.now());
        inner.update_line(&self.line);
    }

    /// When to call [`tick`](Self::tick), on the monotonic clock; `None` while no enabled interrupt can come, or while
    /// one waits for the guest, so that a guest that does not listen costs nothing.
    pub fn next_deadline_ns(&self) -> Option<u64> {
        let mut inner = lock(&self.inner);
        let now = self.now();
        inner.catch_up(now);
        inner.update_line(&self.line);
        inner.announced_ns = inner.deadline_ns(now);
        inner.announced_ns
    }

    /// The state, to be restored into another machine.
    pub fn save(&self) -> CmosState {
        let mut inner = lock(&self.inner);
        inner.catch_up(self.now());
        inner.update_line(&self.line);
        inner.state.clone()
    }

    /// Goes on from `state`: as far from the host's clock as it was, with the updates and alarms that fell in between.
    pub fn restore(&self, state: &CmosState) -> Result<(), StateError> {
        let refuse = |why| Err(StateError { what: "the real-time clock", why });
        if state.version != 1 {
            return refuse("its version is not 1");
        }
        if state.bytes.len() != CMOS_BYTES {
            return refuse("it has not 128 bytes");
        }
        if state.ahead_ns >= NS_PER_S as u32 {
            return refuse("its nanoseconds make a second");
        }
        let now = self.now();
        let time_s = now.host_s.checked_add(state.ahead_s).map(i64::unsigned_abs);
        // Near the end of numbers the clock would stand, and no reset sets it. A host that is there itself is the host's
        // matter.
        if time_s.is_none_or(|time_s| time_s > LAST_TIME_S.max(now.host_s.unsigned_abs())) {
            return refuse("its time is none of a calendar");
        }
        let mut inner = lock(&self.inner);
        inner.state = state.clone();
        inner.periodic_ticks = inner.periodic_ticks_at(now.monotonic_ns);
        inner.catch_up(now);
        inner.line = inner.wants_interrupt();
        self.line.set(inner.line);
        drop(inner);
        self.timers.wake();
        Ok(())
    }

    /// The machine's reset: time, alarm and memory stay, interrupts are off. The clock goes on where the guest held it,
    /// in the format a PC's firmware sets, for guests that are started without one.
    pub fn reset(&self) {
        let mut inner = lock(&self.inner);
        let now = self.now();
        inner.catch_up(now);
        inner.state.index = 0;
        inner.state.nmi_masked = false;
        // A time written only in part would be wrong; the one before was not.
        inner.state.time_written = false;
        inner.put(reg::A, a::FIRMWARE);
        inner.put(reg::B, b::HOURS_24);
        inner.begin(now);
        inner.update_line(&self.line);
    }

    fn now(&self) -> Now {
        Now::of(&*self.clock)
    }
}

impl BusDevice for Cmos {
    fn read(&self, offset: u64, data: &mut [u8]) -> Access {
        let now = self.now();
        let mut inner = lock(&self.inner);
        let mut changes = false;
        read_bytes(offset, data, |port| match port {
            1 => {
                inner.catch_up(now);
                changes |= usize::from(inner.state.index) == reg::C;
                inner.read(now)
            }
            // The index cannot be read on a PIIX.
            _ => 0xff,
        });
        inner.update_line(&self.line);
        let wake = changes && inner.comes_nearer(now);
        drop(inner);
        if wake {
            self.timers.wake();
        }
        Access::Done
    }

    fn write(&self, offset: u64, data: &[u8]) -> Access {
        let now = self.now();
        let mut inner = lock(&self.inner);
        let mut changes = false;
        write_bytes(offset, data, |port, value| match port {
            0 => {
                inner.state.index = value & 0x7f;
                inner.state.nmi_masked = value & 0x80 != 0;
            }
            1 => {
                inner.catch_up(now);
                changes = true;
                inner.write(value, now);
            }
            _ => {}
        });
        inner.update_line(&self.line);
        let wake = changes && inner.comes_nearer(now);
        drop(inner);
        if wake {
            self.timers.wake();
        }
        Access::Done
    }
}

impl Inner {
    /// Shows the time and forgets all interrupts.
    fn begin(&mut self, now: Now) {
        self.show(self.guest_time(now).0);
        self.periodic_ticks = self.periodic_ticks_at(now.monotonic_ns);
        self.put(reg::C, 0);
    }

    fn get(&self, register: usize) -> u8 {
        self.state.bytes.get(register).copied().unwrap_or(0xff)
    }

    fn put(&mut self, register: usize, value: u8) {
        if let Some(byte) = self.state.bytes.get_mut(register) {
            *byte = value;
        }
    }

    fn read(&mut self, now: Now) -> u8 {
        let register = usize::from(self.state.index);
        let value = self.get(register);
        match register {
            reg::A if self.is_update_near(now) => value | a::UPDATE_IN_PROGRESS,
            reg::C => {
                self.put(reg::C, 0);
                if value & self.get(reg::B) & b::INTERRUPTS != 0 { value | C_REQUEST } else { value }
            }
            reg::D => D_VALID,
            _ => value,
        }
    }

    fn write(&mut self, value: u8, now: Now) {
        let register = usize::from(self.state.index);
        match register {
            reg::A => {
                let was_held = self.is_divider_held();
                self.put(reg::A, value & !a::UPDATE_IN_PROGRESS);
                self.change_run(was_held, self.is_set(), now);
                self.periodic_ticks = self.periodic_ticks_at(now.monotonic_ns);
            }
            reg::B => {
                let was_set = self.is_set();
                // Setting the time ends interrupts of an update that will not come.
                let value = if value & b::SET != 0 { value & !b::UPDATE_ENDED } else { value };
                // What the clock shows is in the format of before.
                let format_changes = (value ^ self.get(reg::B)) & (b::BINARY | b::HOURS_24) != 0;
                self.put(reg::B, value);
                self.change_run(self.is_divider_held(), was_set, now);
                if format_changes && !self.state.time_written {
                    self.show(self.state.shown_s);
                }
            }
            reg::C | reg::D => {}
            reg::SECONDS
            | reg::MINUTES
            | reg::HOURS
            | reg::WEEKDAY
            | reg::DAY
            | reg::MONTH
            | reg::YEAR
            | reg::CENTURY => {
                self.put(register, value);
                if self.is_standing() {
                    self.state.time_written = true;
                } else {
                    // Taken at once where it is a date; else the other registers may still make it one.
                    self.take_time(self.guest_time(now).1, now);
                }
            }
            _ => self.put(register, value),
        }
    }

    /// Starts or stops the clock after a write to register A or B.
    fn change_run(&mut self, was_held: bool, was_set: bool, now: Now) {
        let was_standing = was_held || was_set;
        if self.is_standing() || !was_standing {
            return;
        }
        // A clock that was stopped but not set goes on as if it had run: losing time is no use to anybody.
        if std::mem::take(&mut self.state.time_written) {
            let into_second_ns = if was_held { DIVIDER_RELEASE_NS } else { self.guest_time(now).1 };
            self.take_time(into_second_ns, now);
        }
        self.show(self.guest_time(now).0);
    }

    /// Makes what the registers show the guest's time, `into_second_ns` after that second's begin; does nothing where
    /// they show no date.
    fn take_time(&mut self, into_second_ns: u64, now: Now) {
        let Some(time_s) = calendar::decode(|register| self.get(register), self.format()) else { return };
        let host_ns = i64::from(now.host_ns);
        let into_second_ns = i64::try_from(into_second_ns).unwrap_or(0);
        let difference_ns = into_second_ns.saturating_sub(host_ns);
        let borrowed_s = difference_ns.div_euclid(NS_PER_S as i64);
        self.state.ahead_s = time_s.saturating_sub(now.host_s).saturating_add(borrowed_s);
        self.state.ahead_ns = u32::try_from(difference_ns.rem_euclid(NS_PER_S as i64)).unwrap_or(0);
        self.state.shown_s = time_s;
    }

    /// The guest's second, and nanoseconds into it.
    fn guest_time(&self, now: Now) -> (i64, u64) {
        let ns = u64::from(now.host_ns).saturating_add(u64::from(self.state.ahead_ns));
        let carry_s = i64::from(ns >= NS_PER_S);
        let seconds = now.host_s.saturating_add(self.state.ahead_s).saturating_add(carry_s);
        (seconds, ns % NS_PER_S)
    }

    /// Puts `time_s` into the registers.
    fn show(&mut self, time_s: i64) {
        self.state.shown_s = time_s;
        for (register, value) in calendar::encode(time_s, self.format()) {
            self.put(register, value);
        }
    }

    /// Does what time has done since the last look.
    fn catch_up(&mut self, now: Now) {
        if !self.is_standing() {
            let (time_s, shown_s) = (self.guest_time(now).0, self.state.shown_s);
            if time_s != shown_s {
                let mut causes = b::UPDATE_ENDED;
                // The host's clock may be set back; then no moment has passed.
                if time_s > shown_s && self.alarm_after(shown_s).is_some_and(|alarm_s| alarm_s <= time_s) {
                    causes |= b::ALARM;
                }
                self.put(reg::C, self.get(reg::C) | causes);
                self.show(time_s);
            }
        }
        let ticks = self.periodic_ticks_at(now.monotonic_ns);
        if ticks != self.periodic_ticks {
            self.periodic_ticks = ticks;
            self.put(reg::C, self.get(reg::C) | b::PERIODIC);
        }
    }

    /// The first second after `time_s` that the alarm registers match.
    fn alarm_after(&self, time_s: i64) -> Option<i64> {
        let alarm = [reg::HOURS_ALARM, reg::MINUTES_ALARM, reg::SECONDS_ALARM].map(|register| self.get(register));
        calendar::alarm_after(time_s, alarm, self.format())
    }

    /// When an enabled interrupt is due next, on the monotonic clock.
    fn deadline_ns(&self, now: Now) -> Option<u64> {
        if self.wants_interrupt() {
            return None;
        }
        let enabled = self.get(reg::B);
        let (time_s, into_second_ns) = self.guest_time(now);
        let due_at_second = |second_s: i64| {
            let whole_s = u64::try_from(second_s.saturating_sub(time_s)).unwrap_or(0);
            let wait_ns = whole_s.saturating_mul(NS_PER_S).saturating_sub(into_second_ns);
            now.monotonic_ns.saturating_add(wait_ns)
        };
        let update = (enabled & b::UPDATE_ENDED != 0 && !self.is_standing()).then(|| time_s.saturating_add(1));
        let alarm =
            if enabled & b::ALARM != 0 && !self.is_standing() { self.alarm_after(self.state.shown_s) } else { None };
        let periodic = if enabled & b::PERIODIC != 0 { self.periodic_deadline_ns() } else { None };
        update.map(due_at_second).into_iter().chain(alarm.map(due_at_second)).chain(periodic).min()
    }

    /// Whether the main loop sleeps too long now.
    fn comes_nearer(&mut self, now: Now) -> bool {
        let deadline_ns = self.deadline_ns(now);
        let is_nearer = match (deadline_ns, self.announced_ns) {
            (Some(deadline_ns), Some(announced_ns)) => deadline_ns < announced_ns,
            (Some(_), None) => true,
            (None, _) => false,
        };
        if is_nearer {
            self.announced_ns = deadline_ns;
        }
        is_nearer
    }

    /// Crystal periods of one periodic tick; `None` while there is none (data sheet, table 5).
    fn periodic_divider(&self) -> Option<u128> {
        let shift = match self.get(reg::A) & a::RATE {
            _ if self.is_divider_held() => return None,
            0 => return None,
            // The first two select the rates of the eighth and ninth.
            rate @ 1..=2 => rate.saturating_add(6),
            rate => rate.saturating_sub(1),
        };
        1u128.checked_shl(u32::from(shift))
    }

    fn periodic_ticks_at(&self, monotonic_ns: u64) -> u128 {
        let crystal = u128::from(monotonic_ns).saturating_mul(CRYSTAL_HZ) / TICK_NS_PER_S;
        self.periodic_divider().and_then(|divider| crystal.checked_div(divider)).unwrap_or(0)
    }

    fn periodic_deadline_ns(&self) -> Option<u64> {
        let crystal = self.periodic_ticks.saturating_add(1).saturating_mul(self.periodic_divider()?);
        u64::try_from(crystal.saturating_mul(TICK_NS_PER_S).div_ceil(CRYSTAL_HZ)).ok()
    }

    fn is_update_near(&self, now: Now) -> bool {
        !self.is_standing() && self.guest_time(now).1 >= NS_PER_S.saturating_sub(UPDATE_WARNING_NS)
    }

    fn is_set(&self) -> bool {
        self.get(reg::B) & b::SET != 0
    }

    fn is_divider_held(&self) -> bool {
        self.get(reg::A) & a::DIVIDER >= a::DIVIDER_RESET
    }

    /// Whether time and date stand still for the guest to write them.
    fn is_standing(&self) -> bool {
        self.is_set() || self.is_divider_held()
    }

    fn format(&self) -> Format {
        let control = self.get(reg::B);
        Format { is_binary: control & b::BINARY != 0, is_24_hours: control & b::HOURS_24 != 0 }
    }

    fn wants_interrupt(&self) -> bool {
        self.get(reg::C) & self.get(reg::B) & b::INTERRUPTS != 0
    }

    fn update_line(&mut self, line: &Arc<dyn IrqLine>) {
        let level = self.wants_interrupt();
        if level != self.line {
            self.line = level;
            line.set(level);
        }
    }
}

/// The bytes of memory, index and value, that tell firmware the RAM's size: `low_ram_bytes` below 4 GiB,
/// `high_ram_bytes` above. For a clock that the kernel emulates; [`Cmos::new`] has them already.
pub fn memory_sizes(low_ram_bytes: u64, high_ram_bytes: u64) -> Vec<(u8, u8)> {
    const KIB: u64 = 1 << 10;
    const MIB: u64 = 1 << 20;
    let base_kib = (low_ram_bytes / KIB).min(640);
    let extended_kib = (low_ram_bytes.saturating_sub(MIB) / KIB).min(0xffff);
    let above_16_mib = (low_ram_bytes.saturating_sub(MIB.saturating_mul(16)) >> 16).min(0xffff);
    let high = (high_ram_bytes >> 16).min(0xff_ffff);
    [(0x15u8, base_kib, 2), (0x17, extended_kib, 2), (0x30, extended_kib, 2), (0x34, above_16_mib, 2), (0x5b, high, 3)]
        .into_iter()
        .flat_map(|(at, value, len)| (at..=u8::MAX).zip(value.to_le_bytes()).take(len))
        .collect()
}

#[cfg(test)]
#[path = "cmos_tests.rs"]
mod tests;
