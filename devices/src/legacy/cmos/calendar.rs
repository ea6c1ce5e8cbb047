//! Seconds since 1970 to and from the registers of time and date.

use super::reg;

const S_PER_DAY: i64 = 86_400;

/// How the registers hold numbers (bits of register B).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Format {
    /// Binary numbers, not BCD.
    pub is_binary: bool,
    /// Hours 0 to 23, not 1 to 12 with bit 7 for the afternoon.
    pub is_24_hours: bool,
}

impl Format {
    fn number(self, value: u8) -> Option<u8> {
        let (tens, units) = (value >> 4, value & 0x0f);
        match self.is_binary {
            true => Some(value),
            false if tens < 10 && units < 10 => Some(tens.saturating_mul(10).saturating_add(units)),
            false => None,
        }
    }

    fn register(self, number: i64) -> u8 {
        // Callers pass 0 to 99.
        let number = u8::try_from(number).unwrap_or(0);
        if self.is_binary { number } else { ((number / 10) << 4) | (number % 10) }
    }

    fn hour(self, value: u8) -> Option<u8> {
        if self.is_24_hours {
            return self.number(value).filter(|hour| *hour < 24);
        }
        let of_half_day = self.number(value & 0x7f).filter(|hour| (1..=12).contains(hour))? % 12;
        Some(if value & 0x80 != 0 { of_half_day.saturating_add(12) } else { of_half_day })
    }

    fn hour_register(self, hour: i64) -> u8 {
        if self.is_24_hours {
            return self.register(hour);
        }
        let of_half_day = if hour % 12 == 0 { 12 } else { hour % 12 };
        self.register(of_half_day) | if hour >= 12 { 0x80 } else { 0 }
    }
}

/// The registers of time and date at `time_s`; years beyond four digits show their last four.
pub fn encode(time_s: i64, format: Format) -> [(usize, u8); 8] {
    let (days, of_day) = (time_s.div_euclid(S_PER_DAY), time_s.rem_euclid(S_PER_DAY));
    let (year, month, day) = civil_from_days(days);
    let year = year.rem_euclid(10_000);
    // 1970 began on a Thursday, the fifth day.
    let weekday = days.saturating_add(4).rem_euclid(7).saturating_add(1);
    [
        (reg::SECONDS, format.register(of_day % 60)),
        (reg::MINUTES, format.register(of_day / 60 % 60)),
        (reg::HOURS, format.hour_register(of_day / 3600)),
        (reg::WEEKDAY, format.register(weekday)),
        (reg::DAY, format.register(day)),
        (reg::MONTH, format.register(month)),
        (reg::YEAR, format.register(year % 100)),
        (reg::CENTURY, format.register(year / 100)),
    ]
}

/// The time that the registers, read by `get`, show; `None` where they show none. The day of the week is not looked at.
pub fn decode(get: impl Fn(usize) -> u8, format: Format) -> Option<i64> {
    let number = |register: usize, last: u8| format.number(get(register)).filter(|number| *number <= last);
    let second = number(reg::SECONDS, 59)?;
    let minute = number(reg::MINUTES, 59)?;
    let hour = format.hour(get(reg::HOURS))?;
    let (day, month) = (number(reg::DAY, 31)?, number(reg::MONTH, 12)?);
    let year =
        i64::from(number(reg::CENTURY, 99)?).saturating_mul(100).saturating_add(i64::from(number(reg::YEAR, 99)?));
    let days = days_from_civil(year, i64::from(month), i64::from(day));
    // Only a date of the calendar comes back as it went in.
    if civil_from_days(days) != (year, i64::from(month), i64::from(day)) {
        return None;
    }
    Some(days.saturating_mul(S_PER_DAY).saturating_add(of_day(hour, minute, second)))
}

/// The first second after `time_s` at which hour, minute and second match `alarm`; a register of 0xC0 and up matches
/// all. `None` where none ever does.
pub fn alarm_after(time_s: i64, [hour, minute, second]: [u8; 3], format: Format) -> Option<i64> {
    const ANY: u8 = 0xc0;
    let of = |value: u8, number: Option<u8>, last: u8| match number {
        _ if value >= ANY => Some(None),
        Some(number) if number <= last => Some(Some(i64::from(number))),
        _ => None,
    };
    let hour = of(hour, format.hour(hour), 23)?;
    let minute = of(minute, format.number(minute), 59)?;
    let second = of(second, format.number(second), 59)?;
    let differs = |wanted: Option<i64>, is: i64| wanted.is_some_and(|wanted| wanted != is);

    let mut at_s = time_s.checked_add(1)?;
    // Steps of seconds to a whole minute, of minutes to a whole hour, of hours, and then again down to the second.
    for _ in 0..2 * (60 + 60) + 24 {
        let of_day = at_s.rem_euclid(S_PER_DAY);
        let step = if differs(hour, of_day / 3600) {
            3600_i64.saturating_sub(of_day % 3600)
        } else if differs(minute, of_day / 60 % 60) {
            60_i64.saturating_sub(of_day % 60)
        } else if differs(second, of_day % 60) {
            1
        } else {
            return Some(at_s);
        };
        at_s = at_s.checked_add(step)?;
    }
    None
}

fn of_day(hour: u8, minute: u8, second: u8) -> i64 {
    i64::from(hour)
        .saturating_mul(3600)
        .saturating_add(i64::from(minute).saturating_mul(60))
        .saturating_add(i64::from(second))
}

/// Days since 1970-01-01 of a date of the proleptic Gregorian calendar, year 0 to 9999, month 0 to 12, day 0 to 31. The
/// year is taken to begin in March, so that the leap day is its last.
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year.saturating_sub(1) } else { year };
    let (era, of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let from_march = month.saturating_add(9) % 12;
    let of_year = from_march.saturating_mul(153).saturating_add(2) / 5;
    let day_of_era = of_era
        .saturating_mul(365)
        .saturating_add(of_era / 4)
        .saturating_sub(of_era / 100)
        .saturating_add(of_year)
        .saturating_add(day)
        .saturating_sub(1);
    era.saturating_mul(DAYS_PER_ERA).saturating_add(day_of_era).saturating_sub(DAYS_TO_1970)
}

/// The date of a day: year, month 1 to 12, day 1 to 31.
fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let days = days.saturating_add(DAYS_TO_1970);
    let (era, of_era) = (days.div_euclid(DAYS_PER_ERA), days.rem_euclid(DAYS_PER_ERA));
    // Leap days taken out: one every 4 years, not every 100, but every 400.
    let year_of_era =
        of_era.saturating_sub(of_era / 1460).saturating_add(of_era / 36_524).saturating_sub(of_era / 146_096) / 365;
    let before_year = year_of_era.saturating_mul(365).saturating_add(year_of_era / 4).saturating_sub(year_of_era / 100);
    let of_year = of_era.saturating_sub(before_year);
    let from_march = of_year.saturating_mul(5).saturating_add(2) / 153;
    let day = of_year.saturating_sub(from_march.saturating_mul(153).saturating_add(2) / 5).saturating_add(1);
    let month = if from_march < 10 { from_march.saturating_add(3) } else { from_march.saturating_sub(9) };
    let year = era.saturating_mul(400).saturating_add(year_of_era);
    (if month <= 2 { year.saturating_add(1) } else { year }, month, day)
}

/// Days of 400 years, after which the calendar repeats.
const DAYS_PER_ERA: i64 = 146_097;

/// Days from 0000-03-01 to 1970-01-01.
const DAYS_TO_1970: i64 = 719_468;

#[cfg(test)]
mod tests {
    use super::*;

    const ALL_FORMATS: [Format; 4] = [
        Format { is_binary: false, is_24_hours: false },
        Format { is_binary: false, is_24_hours: true },
        Format { is_binary: true, is_24_hours: false },
        Format { is_binary: true, is_24_hours: true },
    ];
    const BCD_24: Format = ALL_FORMATS[1];

    fn bytes(time_s: i64, format: Format) -> [u8; 128] {
        let mut bytes = [0; 128];
        for (register, value) in encode(time_s, format) {
            bytes[register] = value;
        }
        bytes
    }

    #[test]
    fn known_moments_show_as_the_calendar_has_them() {
        // `date -u -d @N`: seconds, minutes, hours, weekday, day, month, year, century.
        for (time_s, expected) in [
            (0, [0x00, 0x00, 0x00, 5, 0x01, 0x01, 0x70, 0x19]),
            (951_782_400, [0x00, 0x00, 0x00, 3, 0x29, 0x02, 0x00, 0x20]),
            (1_709_251_199, [0x59, 0x59, 0x23, 5, 0x29, 0x02, 0x24, 0x20]),
            (1_709_251_200, [0x00, 0x00, 0x00, 6, 0x01, 0x03, 0x24, 0x20]),
            (4_107_542_399, [0x59, 0x59, 0x23, 1, 0x28, 0x02, 0x00, 0x21]),
            (4_107_542_400, [0x00, 0x00, 0x00, 2, 0x01, 0x03, 0x00, 0x21]),
            (-1, [0x59, 0x59, 0x23, 4, 0x31, 0x12, 0x69, 0x19]),
        ] {
            assert_eq!(encode(time_s, BCD_24).map(|(_, value)| value), expected, "{time_s}");
        }
    }

    #[test]
    fn the_days_of_four_hundred_years_and_every_hour_survive_each_format() {
        for format in ALL_FORMATS {
            for day in (-135_000..146_097_i64 - 135_000).step_by(if format == BCD_24 { 1 } else { 11 }) {
                let time_s = day * S_PER_DAY + (day.rem_euclid(24)) * 3600 + 59;
                let bytes = bytes(time_s, format);
                assert_eq!(decode(|register| bytes[register], format), Some(time_s), "{format:?}");
            }
        }
    }

    #[test]
    fn dates_that_do_not_exist_are_none() {
        let good = bytes(1_709_251_199, BCD_24);
        for (register, value) in [
            (reg::SECONDS, 0x60),
            (reg::SECONDS, 0x0a),
            (reg::MINUTES, 0x60),
            (reg::HOURS, 0x24),
            (reg::DAY, 0x30),
            (reg::DAY, 0x00),
            (reg::MONTH, 0x13),
            (reg::MONTH, 0x00),
            (reg::YEAR, 0xa0),
            (reg::CENTURY, 0xff),
        ] {
            let mut bytes = good;
            bytes[register] = value;
            assert_eq!(decode(|register| bytes[register], BCD_24), None, "{register:#x} {value:#x}");
        }
    }

    #[test]
    fn noon_and_midnight_are_twelve_in_half_days() {
        let format = ALL_FORMATS[0];
        for (hour, value) in [(0, 0x12), (1, 0x01), (11, 0x11), (12, 0x92), (13, 0x81), (23, 0x91)] {
            assert_eq!(format.hour_register(hour), value);
            assert_eq!(format.hour(value).map(i64::from), Some(hour));
        }
    }

    #[test]
    fn an_alarm_is_the_next_second_that_matches_each_register_that_is_not_any() {
        let noon = 1_709_208_000;
        let day: Vec<(i64, [u8; 3])> = (noon + 1..=noon + S_PER_DAY)
            .map(|at_s| (at_s, bytes(at_s, BCD_24)))
            .map(|(at_s, bytes)| (at_s, [reg::HOURS, reg::MINUTES, reg::SECONDS].map(|register| bytes[register])))
            .collect();
        let matching = |alarm: [u8; 3]| {
            let fits = |shown: &[u8; 3]| alarm.iter().zip(shown).all(|(wanted, is)| *wanted >= 0xc0 || wanted == is);
            day.iter().find(|(_, shown)| fits(shown)).map(|(at_s, _)| *at_s)
        };
        for hour in [0x00, 0x11, 0x12, 0x13, 0x23, 0x24, 0x9a, 0xc0] {
            for minute in [0x00, 0x01, 0x59, 0x60, 0xff] {
                for second in [0x00, 0x01, 0x59, 0xaa, 0xc1] {
                    let expected = matching([hour, minute, second]);
                    assert_eq!(
                        alarm_after(noon, [hour, minute, second], BCD_24),
                        expected,
                        "{hour:x} {minute:x} {second:x}"
                    );
                }
            }
        }
    }

    #[test]
    fn the_ends_of_time_neither_panic_nor_alarm() {
        for format in ALL_FORMATS {
            for time_s in [i64::MIN, i64::MIN + 1, i64::MAX - 1, i64::MAX] {
                let bytes = bytes(time_s, format);
                decode(|register| bytes[register], format);
            }
            assert_eq!(alarm_after(i64::MAX, [0xff; 3], format), None);
        }
    }
}
