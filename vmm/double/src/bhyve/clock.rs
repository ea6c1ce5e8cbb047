//! The clocks that the kernel emulates: RTC with its memory, PM timer, HPET (reference section 2.12).

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use devices_host::sys::{Errno, SysResult};
use zvmm::hypervisor::bhyve::abi::{
    HPET_BASE, HPET_BLOCK_ID, HPET_FREQ_HZ, HPET_PERIOD_FS, HPET_TIMERS, PMTMR_HZ, vm_rtc_data, vm_rtc_timespec,
};

use super::rules;
use crate::node::Call;

const CENTURY: u8 = 0x32;
const STATUS_A: u8 = 0x0a;
const STATUS_B: u8 = 0x0b;
const STATUS_C: u8 = 0x0c;
const STATUS_D: u8 = 0x0d;

/// Ports of the kernel's own devices, always there (reference section 3).
const KERNEL_PORTS: [std::ops::RangeInclusive<u16>; 6] =
    [0x20..=0x21, 0x40..=0x43, 0x61..=0x61, 0x70..=0x71, 0xa0..=0xa1, 0x4d0..=0x4d1];

/// The MC146818 and its 128 bytes.
pub struct Rtc {
    memory: [u8; 128],
    index: u8,
    /// What its clock showed, in nanoseconds since 1970, at an instant.
    base: (i128, Instant),
    set_by_host: bool,
}

impl Default for Rtc {
    fn default() -> Self {
        let mut memory = [0; 128];
        memory[usize::from(STATUS_A)] = 0x26;
        memory[usize::from(STATUS_B)] = 0x02;
        memory[usize::from(STATUS_D)] = 0x80;
        Self { memory, index: 0, base: (0, Instant::now()), set_by_host: false }
    }
}

/// Year, month, day of a day since 1970 (the proleptic Gregorian calendar; eras of 400 years).
fn civil(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

/// The other way round.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = year - i64::from(month <= 2);
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * (month + if month > 2 { -3 } else { 9 }) + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

impl Rtc {
    fn now_ns(&self) -> i128 {
        self.base.0 + self.base.1.elapsed().as_nanos().cast_signed()
    }

    fn shown(&self, value: i64) -> u8 {
        let value = value as u8;
        if self.memory[usize::from(STATUS_B)] & 4 != 0 { value } else { ((value / 10) << 4) | (value % 10) }
    }

    fn meant(&self, byte: u8) -> i64 {
        if self.memory[usize::from(STATUS_B)] & 4 != 0 {
            byte.into()
        } else {
            i64::from(byte >> 4) * 10 + i64::from(byte & 15)
        }
    }

    fn byte(&self, offset: u8) -> u8 {
        let ns = self.now_ns();
        let seconds = ns.div_euclid(1_000_000_000) as i64;
        let (year, month, day) = civil(seconds.div_euclid(86_400));
        let of_day = seconds.rem_euclid(86_400);
        let hour = of_day / 3600;
        match offset {
            0 => self.shown(of_day % 60),
            2 => self.shown(of_day / 60 % 60),
            4 if self.memory[usize::from(STATUS_B)] & 2 != 0 => self.shown(hour),
            4 => self.shown((hour + 11) % 12 + 1) | if hour >= 12 { 0x80 } else { 0 },
            6 => self.shown((seconds.div_euclid(86_400) + 4).rem_euclid(7) + 1),
            7 => self.shown(day),
            8 => self.shown(month),
            9 => self.shown(year % 100),
            CENTURY => self.shown(year / 100),
            // An update is in progress in the last 244 µs of a second.
            STATUS_A => {
                let soon = ns.rem_euclid(1_000_000_000) >= 1_000_000_000 - 244_000;
                self.memory[usize::from(STATUS_A)] & 0x7f | u8::from(soon) << 7
            }
            _ => self.memory[usize::from(offset & 0x7f)],
        }
    }

    fn set_byte(&mut self, offset: u8, value: u8) {
        match offset {
            0 | 2 | 4 | 7 | 8 | 9 | CENTURY => {
                let ns = self.now_ns();
                let seconds = ns.div_euclid(1_000_000_000) as i64;
                let (mut year, mut month, mut day) = civil(seconds.div_euclid(86_400));
                let of_day = seconds.rem_euclid(86_400);
                let (mut hour, mut minute, mut second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
                let meant = self.meant(value);
                match offset {
                    0 => second = meant,
                    2 => minute = meant,
                    4 => hour = meant,
                    7 => day = meant,
                    8 => month = meant.clamp(1, 12),
                    9 => year = year / 100 * 100 + meant,
                    _ => year = meant * 100 + year % 100,
                }
                let seconds = days(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second;
                self.base = (i128::from(seconds) * 1_000_000_000 + ns.rem_euclid(1_000_000_000), Instant::now());
            }
            6 | STATUS_C | STATUS_D => {}
            STATUS_A => self.memory[usize::from(STATUS_A)] = value & 0x7f,
            _ => self.memory[usize::from(offset & 0x7f)] = value,
        }
    }

    /// What VM_REINIT does: time and memory stay, interrupts are off.
    pub fn reset(&mut self) {
        self.memory[usize::from(STATUS_B)] &= !0x78;
        self.memory[usize::from(STATUS_C)] = 0;
    }

    /// Ports 0x70 and 0x71: the answer to a read, and anything to a write.
    pub fn port(&mut self, port: u16, write: Option<u8>) -> u8 {
        match (port, write) {
            (0x70, Some(value)) => self.index = value & 0x7f,
            (0x70, None) => return 0xff,
            (_, Some(value)) => self.set_byte(self.index, value),
            (_, None) => return self.byte(self.index),
        }
        0
    }

    fn place(call: &Call<'_>, arg: &vm_rtc_data) -> SysResult<u8> {
        u8::try_from(arg.offset)
            .ok()
            .filter(|offset| *offset < 128)
            .ok_or_else(|| call.refuse(&rules::RTC_OFFSET, Errno::EINVAL, format!("offset {:#x}", arg.offset)))
    }

    /// VM_RTC_WRITE.
    pub fn write(&mut self, call: &Call<'_>, arg: &vm_rtc_data) -> SysResult<i32> {
        let offset = Self::place(call, arg)?;
        if offset < 0x0e || offset == CENTURY {
            return Err(call.refuse(&rules::RTC_OFFSET, Errno::EINVAL, format!("offset {offset:#x}")));
        }
        self.memory[usize::from(offset)] = arg.value;
        Ok(0)
    }

    /// VM_RTC_READ.
    pub fn read(&self, call: &Call<'_>, arg: &mut vm_rtc_data) -> SysResult<i32> {
        arg.value = self.byte(Self::place(call, arg)?);
        Ok(0)
    }

    /// VM_RTC_SETTIME.
    pub fn set_time(&mut self, call: &Call<'_>, arg: &vm_rtc_timespec) -> SysResult<i32> {
        if arg.tv_sec < 0 || !(0..1_000_000_000).contains(&arg.tv_nsec) {
            return Err(call.refuse(&rules::RTC_TIME, Errno::EINVAL, format!("{} s {} ns", arg.tv_sec, arg.tv_nsec)));
        }
        self.base = (i128::from(arg.tv_sec) * 1_000_000_000 + i128::from(arg.tv_nsec), Instant::now());
        self.set_by_host = true;
        Ok(0)
    }

    /// VM_RTC_GETTIME.
    pub fn time(&self) -> vm_rtc_timespec {
        let ns = self.now_ns();
        vm_rtc_timespec { tv_sec: ns.div_euclid(1_000_000_000) as i64, tv_nsec: ns.rem_euclid(1_000_000_000) as i64 }
    }

    /// Its bytes and the selected one, for vmm-data.
    pub fn content(&self) -> ([u8; 128], u8) {
        (std::array::from_fn(|offset| self.byte(offset as u8)), self.index)
    }

    /// The other way round.
    pub fn set_content(&mut self, content: &[u8; 128], index: u8, clock_ns: i64) {
        self.memory = *content;
        self.index = index & 0x7f;
        self.base = (clock_ns.into(), Instant::now());
    }
}

/// The ACPI PM timer, once it has a place.
#[derive(Default)]
pub struct PmTimer {
    port: Option<u16>,
}

impl PmTimer {
    /// VM_PMTMR_LOCATE.
    pub fn locate(&mut self, call: &Call<'_>, port: usize) -> SysResult<i32> {
        let Ok(wanted) = u16::try_from(port) else {
            return Err(call.refuse(&rules::PMTMR_PORT, Errno::EINVAL, format!("port {port:#x}")));
        };
        // Where it is already it may stay, and elsewhere it may go.
        if KERNEL_PORTS.iter().any(|taken| taken.contains(&wanted)) {
            return Err(call.refuse(&rules::PMTMR_PLACE, Errno::EEXIST, format!("port {wanted:#x}")));
        }
        self.port = Some(wanted);
        Ok(0)
    }

    /// What VM_REINIT does.
    pub fn forget(&mut self) {
        self.port = None;
    }

    /// Moves it, for vmm-data.
    pub fn set_port(&mut self, port: u16) {
        self.port = Some(port).filter(|port| *port != 0);
    }

    /// Where it is; 0 is nowhere.
    pub fn port(&self) -> u16 {
        self.port.unwrap_or(0)
    }

    /// Its value, for an IN of four bytes at its port.
    pub fn read(&self, port: u16, size: u8, since: Instant) -> Option<u32> {
        (self.port == Some(port) && size == 4).then(|| ticks(since.elapsed(), PMTMR_HZ) as u32)
    }
}

fn ticks(time: Duration, hz: u32) -> u128 {
    time.as_nanos() * u128::from(hz) / 1_000_000_000
}

/// The HPET, without interrupts: they would go to IOAPIC inputs that KVM has not.
#[derive(Default)]
pub struct Hpet {
    config: u64,
    count: u64,
    running_since: Option<Instant>,
    timers: [(u64, u64); HPET_TIMERS as usize],
}

impl Hpet {
    fn counter(&self) -> u64 {
        let run = self.running_since.map_or(0, |since| ticks(since.elapsed(), HPET_FREQ_HZ) as u64);
        (self.count + run) & 0xffff_ffff
    }

    fn register(&self, offset: u64) -> u64 {
        match offset {
            0x000 => u64::from(HPET_PERIOD_FS) << 32 | u64::from(HPET_BLOCK_ID),
            0x010 => self.config,
            0x0f0 => self.counter(),
            _ => match self.timer(offset) {
                // Inputs 24 to 31, periodic, no FSB delivery.
                Some((at, 0)) => 0xff00_0000 << 32 | 1 << 4 | self.timers[at].0,
                Some((at, 8)) => self.timers[at].1,
                _ => 0,
            },
        }
    }

    fn timer(&self, offset: u64) -> Option<(usize, u64)> {
        let at = offset.checked_sub(0x100)? / 0x20;
        (at < self.timers.len() as u64).then_some((at as usize, offset % 0x20))
    }

    fn set_register(&mut self, offset: u64, value: u64) {
        match offset {
            0x010 => {
                let count = self.counter();
                self.config = value & 1;
                self.count = count;
                self.running_since = (value & 1 != 0).then(Instant::now);
            }
            0x0f0 if self.running_since.is_none() => self.count = value & 0xffff_ffff,
            _ => match self.timer(offset) {
                Some((at, 0)) => self.timers[at].0 = value & 0x3e4e,
                Some((at, 8)) => self.timers[at].1 = value & 0xffff_ffff,
                _ => {}
            },
        }
    }

    /// Configuration and count, for vmm-data.
    pub fn state(&self) -> (u64, u32) {
        (self.config, self.counter() as u32)
    }

    /// The other way round.
    pub fn set_state(&mut self, config: u64, count: u32) {
        *self = Self { count: count.into(), ..Self::default() };
        self.set_register(0x010, config);
    }

    /// An access of 4 or 8 bytes to its KiB; `None` if it is elsewhere.
    pub fn access(&mut self, gpa: u64, len: u8, write: Option<u64>) -> Option<u64> {
        let offset = gpa.checked_sub(HPET_BASE).filter(|offset| *offset < 1024)?;
        let (at, shift) = (offset & !7, (offset & 4) * 8);
        let old = self.register(at);
        let Some(value) = write else { return Some(old >> shift) };
        let new = if len == 8 { value } else { old & !(0xffff_ffff << shift) | (value & 0xffff_ffff) << shift };
        self.set_register(at, new);
        Some(0)
    }
}

/// Wall-clock time in seconds and nanoseconds.
pub fn wall_clock() -> (u64, u64) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    (now.as_secs(), now.subsec_nanos().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_calendar_goes_both_ways() {
        for (day, civil_day) in
            [(0, (1970, 1, 1)), (-1, (1969, 12, 31)), (11_016, (2000, 2, 29)), (20_778, (2026, 11, 21))]
        {
            assert_eq!(civil(day), civil_day);
            assert_eq!(days(civil_day.0, civil_day.1, civil_day.2), day);
        }
    }

    #[test]
    fn the_rtc_shows_the_time_it_was_set_to_in_bcd_and_24_hours() {
        let mut rtc = Rtc { base: (1_795_243_994_000_000_000, Instant::now()), ..Rtc::default() };
        let mut read = |index| {
            rtc.port(0x70, Some(index));
            rtc.port(0x71, None)
        };
        assert_eq!([read(0x32), read(9), read(8), read(7), read(6)], [0x20, 0x26, 0x11, 0x21, 0x07]);
        assert_eq!([read(4), read(2)], [0x06, 0x53]);
        for (index, byte) in
            [(0x0b, 0x86), (9, 30), (0x32, 20), (8, 2), (7, 28), (4, 23), (2, 59), (0, 58), (0x0b, 0x06)]
        {
            rtc.port(0x70, Some(index));
            rtc.port(0x71, Some(byte));
        }
        let mut read = |index| {
            rtc.port(0x70, Some(index));
            rtc.port(0x71, None)
        };
        assert_eq!([read(0x32), read(9), read(8), read(7), read(4), read(2)], [20, 30, 2, 28, 23, 59]);
    }

    #[test]
    fn the_hpet_counts_when_it_is_enabled_and_tells_its_period() {
        let mut hpet = Hpet::default();
        assert_eq!(hpet.access(HPET_BASE, 8, None), Some(u64::from(HPET_PERIOD_FS) << 32 | u64::from(HPET_BLOCK_ID)));
        assert_eq!(hpet.access(HPET_BASE + 4, 4, None), Some(u64::from(HPET_PERIOD_FS)));
        assert_eq!(hpet.access(HPET_BASE + 0xf0, 4, None), Some(0));
        hpet.access(HPET_BASE + 0x10, 4, Some(1));
        std::thread::sleep(Duration::from_millis(2));
        assert!(hpet.access(HPET_BASE + 0xf0, 4, None) >= Some(2 << 14));
        assert_eq!(hpet.access(HPET_BASE + 1024, 4, None), None);
    }
}
