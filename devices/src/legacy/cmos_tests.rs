use proptest::prelude::*;

use super::*;
use crate::legacy::clock::ManualClock;
use crate::legacy::testing::{Line, any_access, perform, read, write};
use crate::wake::WakeCounter;

/// 2024-02-29 23:59:50, a Thursday.
const START_S: i64 = 1_709_251_190;
const MS: u64 = 1_000_000;

struct Machine {
    cmos: Cmos,
    clock: Arc<ManualClock>,
    line: Arc<Line>,
    timers: Arc<WakeCounter>,
}

fn machine_at(start_s: i64) -> Machine {
    let (clock, line, timers) = (Arc::new(ManualClock::new(start_s)), Line::new(), Arc::new(WakeCounter::default()));
    let cmos = Cmos::new(clock.clone(), line.clone(), timers.clone(), 0xc000_0000, 0x1_4000_0000);
    Machine { cmos, clock, line, timers }
}

fn machine() -> Machine {
    machine_at(START_S)
}

impl Machine {
    fn get(&self, register: usize) -> u8 {
        write(&self.cmos, 0, register as u8);
        read(&self.cmos, 1)
    }

    fn set(&self, register: usize, value: u8) {
        write(&self.cmos, 0, register as u8);
        write(&self.cmos, 1, value);
    }

    fn time(&self) -> [u8; 8] {
        [reg::CENTURY, reg::YEAR, reg::MONTH, reg::DAY, reg::WEEKDAY, reg::HOURS, reg::MINUTES, reg::SECONDS]
            .map(|register| self.get(register))
    }

    /// As a driver sets the time: hold, write, let go.
    fn set_time(&self, [century, year, month, day, hours, minutes, seconds]: [u8; 7]) {
        let control = self.get(reg::B);
        self.set(reg::B, control | b::SET);
        for (register, value) in [
            (reg::CENTURY, century),
            (reg::YEAR, year),
            (reg::MONTH, month),
            (reg::DAY, day),
            (reg::HOURS, hours),
            (reg::MINUTES, minutes),
            (reg::SECONDS, seconds),
        ] {
            self.set(register, value);
        }
        self.set(reg::B, control);
    }

    /// What the main loop does, until `end_ns`; how often it woke.
    fn run_until(&self, end_ns: u64) -> usize {
        let mut wakes = 0;
        while let Some(deadline_ns) = self.cmos.next_deadline_ns().filter(|at_ns| *at_ns <= end_ns) {
            assert!(deadline_ns > self.clock.monotonic_ns(), "a deadline that never comes nearer spins");
            self.clock.advance_ns(deadline_ns - self.clock.monotonic_ns());
            self.cmos.tick();
            wakes += 1;
        }
        self.clock.advance_ns(end_ns - self.clock.monotonic_ns());
        wakes
    }
}

#[test]
fn a_guest_reads_the_hosts_utc_in_bcd_and_24_hours() {
    let m = machine();
    assert_eq!(m.time(), [0x20, 0x24, 0x02, 0x29, 5, 0x23, 0x59, 0x50]);
    m.clock.advance_ns(10_000 * MS);
    assert_eq!(m.time(), [0x20, 0x24, 0x03, 0x01, 6, 0x00, 0x00, 0x00]);
    assert_eq!((m.get(reg::A), m.get(reg::B), m.get(reg::D)), (0x26, 0x02, 0x80));
}

#[test]
fn linux_reads_the_time_at_the_first_try() {
    let m = machine();
    // mc146818_avoid_UIP: the seconds, no update in progress, and the seconds again.
    let seconds = m.get(reg::SECONDS);
    assert_eq!(m.get(reg::A) & 0x80, 0);
    assert_eq!(m.get(reg::SECONDS), seconds);
    assert_eq!(m.get(reg::D) & 0x40, 0, "mc146818_does_rtc_work");
}

#[test]
fn an_update_is_in_progress_for_the_last_244_microseconds_of_a_second_unless_the_clock_stands() {
    let m = machine();
    m.clock.advance_ns(NS_PER_S - UPDATE_WARNING_NS - 1);
    assert_eq!(m.get(reg::A), 0x26);
    m.clock.advance_ns(1);
    assert_eq!(m.get(reg::A), 0xa6);
    m.set(reg::B, 0x82);
    assert_eq!(m.get(reg::A), 0x26);
    m.set(reg::B, 0x02);
    m.clock.advance_ns(UPDATE_WARNING_NS);
    assert_eq!(m.get(reg::A), 0x26);
}

#[test]
fn the_format_bits_change_how_the_time_reads() {
    let m = machine();
    m.set(reg::B, b::BINARY | b::HOURS_24);
    assert_eq!(m.time(), [20, 24, 2, 29, 5, 23, 59, 50]);
    m.set(reg::B, 0);
    assert_eq!(m.get(reg::HOURS), 0x91);
    m.set(reg::B, b::BINARY);
    assert_eq!(m.get(reg::HOURS), 0x80 | 11);
}

#[test]
fn a_time_the_guest_sets_goes_on_from_there_across_resets_and_the_hosts_is_untouched() {
    let m = machine();
    m.clock.advance_ns(300 * MS);
    m.set_time([0x19, 0x99, 0x12, 0x31, 0x23, 0x59, 0x58]);
    assert_eq!(m.time(), [0x19, 0x99, 0x12, 0x31, 6, 0x23, 0x59, 0x58]);
    m.clock.advance_ns(1_699 * MS);
    assert_eq!(m.get(reg::SECONDS), 0x59, "the second goes on where it was");
    m.clock.advance_ns(MS);
    assert_eq!(m.time(), [0x20, 0x00, 0x01, 0x01, 7, 0x00, 0x00, 0x00]);
    m.cmos.reset();
    m.clock.advance_ns(60_000 * MS);
    assert_eq!(m.time(), [0x20, 0x00, 0x01, 0x01, 7, 0x00, 0x01, 0x00]);
}

#[test]
fn a_divider_let_go_begins_in_the_middle_of_a_second() {
    let m = machine();
    m.clock.advance_ns(123 * MS);
    // As Linux sets the time: both holds, and the divider last.
    let control = m.get(reg::B);
    m.set(reg::B, control | b::SET);
    m.set(reg::A, 0x76);
    m.set(reg::SECONDS, 0x07);
    m.set(reg::B, control);
    m.clock.advance_ns(5_000 * MS);
    assert_eq!(m.get(reg::SECONDS), 0x07);
    m.set(reg::A, 0x26);
    m.clock.advance_ns(499 * MS);
    assert_eq!(m.get(reg::SECONDS), 0x07);
    m.clock.advance_ns(MS);
    assert_eq!(m.get(reg::SECONDS), 0x08);
}

#[test]
fn a_held_clock_stands_and_one_that_was_not_written_has_lost_nothing() {
    let m = machine();
    m.set(reg::B, 0x82);
    m.clock.advance_ns(5_000 * MS);
    assert_eq!(m.get(reg::SECONDS), 0x50);
    m.set(reg::B, 0x02);
    assert_eq!(m.get(reg::SECONDS), 0x55);
}

#[test]
fn a_date_that_does_not_exist_is_not_taken_over() {
    let m = machine();
    m.set_time([0x20, 0x23, 0x02, 0x29, 0x00, 0x00, 0x00]);
    assert_eq!(m.time(), [0x20, 0x24, 0x02, 0x29, 5, 0x23, 0x59, 0x50]);
}

#[test]
fn registers_written_while_the_clock_runs_take_effect_once_they_are_a_date() {
    let m = machine_at(1_706_659_200);
    assert_eq!(m.time()[..4], [0x20, 0x24, 0x01, 0x31]);
    m.set(reg::MONTH, 0x02);
    m.set(reg::DAY, 0x15);
    m.clock.advance_ns(1_000 * MS);
    assert_eq!(m.time(), [0x20, 0x24, 0x02, 0x15, 5, 0x00, 0x00, 0x01]);
}

#[test]
fn a_reset_lets_a_held_clock_go_and_drops_half_a_time() {
    let m = machine();
    m.set(reg::B, 0xf4);
    m.set(reg::YEAR, 0x38);
    m.set(reg::A, 0x7f);
    m.cmos.reset();
    assert_eq!((m.get(reg::A), m.get(reg::B), m.get(reg::C)), (0x26, 0x02, 0x00));
    assert_eq!(m.time(), [0x20, 0x24, 0x02, 0x29, 5, 0x23, 0x59, 0x50]);
}

#[test]
fn memory_keeps_what_is_written_and_the_size_of_the_ram_is_in_it() {
    let m = machine();
    let word = |at: usize| u16::from_le_bytes([m.get(at), m.get(at + 1)]);
    assert_eq!((word(0x15), word(0x17), word(0x30), word(0x34)), (640, 0xffff, 0xffff, 0xbf00));
    assert_eq!([m.get(0x5b), m.get(0x5c), m.get(0x5d)], [0x00, 0x40, 0x01]);
    for register in 0x0e..128 {
        if register != reg::CENTURY {
            m.set(register, register as u8 ^ 0x5a);
        }
    }
    m.cmos.reset();
    for register in 0x0e..128 {
        if register != reg::CENTURY {
            assert_eq!(m.get(register), register as u8 ^ 0x5a);
        }
    }
}

#[test]
fn the_owner_sets_memory_but_not_the_clock() {
    let m = machine();
    assert!(m.cmos.set_nvram(0x3d, 0x23));
    assert_eq!(m.get(0x3d), 0x23);
    for register in [0x00, 0x0a, 0x0d, 0x32, 0x80, 0xff] {
        assert!(!m.cmos.set_nvram(register, 0xee));
    }
    assert_eq!(m.time(), [0x20, 0x24, 0x02, 0x29, 5, 0x23, 0x59, 0x50]);
}

#[test]
fn the_index_keeps_the_nmi_mask_apart_and_reads_as_nothing() {
    let m = machine();
    write(&m.cmos, 0, 0x80 | reg::D as u8);
    assert!(m.cmos.nmi_masked());
    assert_eq!(read(&m.cmos, 1), 0x80);
    assert_eq!(read(&m.cmos, 0), 0xff);
    write(&m.cmos, 0, 0x00);
    assert!(!m.cmos.nmi_masked());
}

#[test]
fn index_and_data_may_come_in_one_access() {
    let m = machine();
    m.cmos.write(0, &[0x40, 0xab]);
    let mut data = [0; 4];
    m.cmos.read(0, &mut data);
    assert_eq!(data, [0xff, 0xab, 0xff, 0xff]);
}

#[test]
fn update_ended_interrupts_come_each_second_and_wait_for_register_c() {
    let m = machine();
    assert_eq!(m.cmos.next_deadline_ns(), None);
    m.set(reg::B, 0x12);
    assert_eq!(m.timers.take(), 1);
    assert_eq!(m.cmos.next_deadline_ns(), Some(NS_PER_S));
    assert_eq!(m.run_until(5_500 * MS), 1, "no wake-up while the guest does not listen");
    assert!(m.line.level());
    assert_eq!(m.get(reg::C), 0xd0, "the cause, and the periodic one that is not enabled");
    assert!(!m.line.level());
    assert_eq!(m.timers.take(), 1, "the main loop is told that it sleeps too long");
    assert_eq!(m.cmos.next_deadline_ns(), Some(6_000 * MS));
    assert_eq!(m.get(reg::C), 0);
}

#[test]
fn a_polled_clock_shows_its_causes_without_an_interrupt() {
    let m = machine();
    m.clock.advance_ns(1_000 * MS);
    assert_eq!(m.get(reg::C), 0x50);
    assert_eq!(m.get(reg::C), 0x00);
    assert_eq!(m.line.take_rises(), 0);
    assert_eq!((m.timers.take(), m.cmos.next_deadline_ns()), (0, None));
}

#[test]
fn a_cause_that_is_enabled_late_interrupts_at_once() {
    let m = machine();
    m.clock.advance_ns(1_000 * MS);
    m.set(reg::B, 0x12);
    assert!(m.line.level());
    m.set(reg::B, 0x02);
    assert!(!m.line.level());
}

#[test]
fn an_alarm_comes_at_its_second_and_once_a_day() {
    let m = machine();
    for (register, value) in [(reg::HOURS_ALARM, 0x00), (reg::MINUTES_ALARM, 0x00), (reg::SECONDS_ALARM, 0x05)] {
        m.set(register, value);
    }
    m.set(reg::B, 0x22);
    assert!(m.timers.take() > 0);
    assert_eq!(m.cmos.next_deadline_ns(), Some(15_000 * MS));
    m.clock.advance_ns(14_999 * MS);
    m.cmos.tick();
    assert!(!m.line.level());
    m.clock.advance_ns(MS);
    m.cmos.tick();
    assert!(m.line.level());
    assert_eq!(m.get(reg::C) & 0xa0, 0xa0);
    assert_eq!(m.cmos.next_deadline_ns(), Some((86_400 + 15) * NS_PER_S));
}

#[test]
fn an_alarm_that_nobody_looked_for_in_time_still_comes() {
    let m = machine();
    for register in [reg::HOURS_ALARM, reg::MINUTES_ALARM] {
        m.set(register, 0xff);
    }
    m.set(reg::SECONDS_ALARM, 0x00);
    m.set(reg::B, 0x22);
    m.clock.advance_ns(86_400_000 * MS);
    m.cmos.tick();
    assert_eq!(m.line.take_rises(), 1);
}

#[test]
fn setting_the_time_over_an_alarm_does_not_raise_it() {
    let m = machine();
    for (register, value) in [(reg::HOURS_ALARM, 0x12), (reg::MINUTES_ALARM, 0x00), (reg::SECONDS_ALARM, 0x00)] {
        m.set(register, value);
    }
    m.set(reg::B, 0x22);
    m.set_time([0x20, 0x24, 0x03, 0x01, 0x11, 0x59, 0x59]);
    m.set_time([0x20, 0x24, 0x03, 0x01, 0x12, 0x00, 0x01]);
    assert_eq!(m.get(reg::C) & b::ALARM, 0);
    assert!(!m.line.level());
}

#[test]
fn periodic_interrupts_come_at_the_rate_of_register_a() {
    for (rate, hz) in [(1, 256), (2, 128), (3, 8192), (6, 1024), (15, 2)] {
        let m = machine();
        m.set(reg::A, 0x20 | rate);
        m.set(reg::B, 0x42);
        let mut ticks = 0;
        while let Some(deadline_ns) = m.cmos.next_deadline_ns().filter(|at_ns| *at_ns <= NS_PER_S) {
            m.clock.advance_ns(deadline_ns - m.clock.monotonic_ns());
            m.cmos.tick();
            ticks += usize::from(m.get(reg::C) & 0xc0 == 0xc0);
        }
        assert_eq!((ticks, m.line.take_rises()), (hz, hz), "rate {rate}");
    }
}

#[test]
fn no_rate_or_a_held_divider_has_no_periodic_interrupt() {
    for register_a in [0x20, 0x66, 0x76] {
        let m = machine();
        m.set(reg::A, register_a);
        m.set(reg::B, 0x42);
        m.clock.advance_ns(10_000 * MS);
        assert_eq!((m.cmos.next_deadline_ns(), m.get(reg::C) & 0xc0), (None, 0), "{register_a:#x}");
    }
}

#[test]
fn holding_the_clock_takes_the_update_interrupt_away() {
    let m = machine();
    m.set(reg::B, 0x12);
    m.set(reg::B, 0x92);
    assert_eq!(m.get(reg::B), 0x82);
    assert_eq!(m.cmos.next_deadline_ns(), None);
}

#[test]
fn registers_c_and_d_cannot_be_written() {
    let m = machine();
    m.set(reg::C, 0xff);
    m.set(reg::D, 0x00);
    assert_eq!((m.get(reg::C), m.get(reg::D)), (0x00, 0x80));
}

#[test]
fn a_reset_takes_a_waiting_interrupt_away() {
    let m = machine();
    m.set(reg::B, 0x12);
    m.run_until(1_000 * MS);
    assert!(m.line.level());
    m.cmos.reset();
    assert!(!m.line.level());
    assert_eq!(m.cmos.next_deadline_ns(), None);
}

#[test]
fn a_restored_clock_is_as_far_from_the_hosts_as_the_saved_one_and_has_its_alarm() {
    let first = machine();
    first.set_time([0x20, 0x30, 0x01, 0x01, 0x00, 0x00, 0x00]);
    for (register, value) in [(reg::HOURS_ALARM, 0x00), (reg::MINUTES_ALARM, 0x01), (reg::SECONDS_ALARM, 0x00)] {
        first.set(register, value);
    }
    first.set(reg::B, 0x22);
    first.set(0x70, 0x77);
    let state = first.cmos.save();
    // Another host, 100 s later, with another monotonic clock.
    let second = machine_at(START_S + 100);
    second.cmos.restore(&state).unwrap();
    assert!(second.timers.take() > 0);
    assert_eq!(second.time()[4..], [3, 0x00, 0x01, 0x40]);
    assert!(second.line.level(), "the alarm fell into the pause");
    assert_eq!((second.get(0x70), second.get(reg::B)), (0x77, 0x22));
    first.clock.advance_ns(100_000 * MS);
    assert_eq!(first.time(), second.time());
}

#[test]
fn a_state_that_does_not_fit_is_refused_with_its_reason() {
    let m = machine();
    let good = m.cmos.save();
    for (bad, why) in [
        (CmosState { version: 2, ..good.clone() }, "its version is not 1"),
        (CmosState { bytes: vec![0; 127], ..good.clone() }, "it has not 128 bytes"),
        (CmosState { ahead_ns: 1_000_000_000, ..good.clone() }, "its nanoseconds make a second"),
        // A clock that far ahead has no next second, and no reset sets it back.
        (CmosState { ahead_s: i64::MAX, ..good.clone() }, "its time is none of a calendar"),
        (CmosState { ahead_s: i64::MIN, ..good.clone() }, "its time is none of a calendar"),
        (CmosState { ahead_s: 1 << 41, ..good.clone() }, "its time is none of a calendar"),
    ] {
        assert_eq!(m.cmos.restore(&bad).unwrap_err().why, why);
        assert_eq!(m.cmos.save(), good);
    }
}

proptest! {
    #[test]
    fn any_accesses_at_any_time_leave_a_line_that_matches_and_a_deadline_ahead(
        start_s in prop_oneof![8 => 0i64..1 << 33, 1 => any::<i64>()],
        steps in prop::collection::vec(
            (any_access(), (any::<u8>(), prop_oneof![Just(0u8), Just(0x42), Just(0x72), any::<u8>()]),
             prop_oneof![Just(0u64), 0u64..3_000_000_000, any::<u64>().prop_map(|ns| ns >> 8)]),
            0..100,
        ),
    ) {
        let m = machine_at(start_s);
        for (access, (register, value), passed_ns) in steps {
            perform(&m.cmos, access);
            m.set(usize::from(register % 0x10), value);
            m.clock.advance_ns(passed_ns);
            let deadline_ns = m.cmos.next_deadline_ns();
            prop_assert!(deadline_ns.is_none_or(|at_ns| at_ns > m.clock.monotonic_ns() || at_ns == u64::MAX));
            let level = m.line.level();
            prop_assert!(!(level && deadline_ns.is_some()));
            let state = m.cmos.save();
            m.cmos.restore(&state).unwrap();
            prop_assert_eq!(m.line.level(), level);
            prop_assert_eq!(m.get(reg::C) & 0x80 != 0, level);
            prop_assert!(!m.line.level());
        }
    }
}
