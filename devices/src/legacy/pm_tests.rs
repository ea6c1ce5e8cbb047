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

const PIIX4: PmConfig =
    PmConfig { timer_32_bits: false, timer_event: true, s5_sleep_type: 0, gpe0_bytes: 4, smi: None };
const BHYVE: PmConfig = PmConfig {
    timer_32_bits: true,
    timer_event: true,
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
    let Machine { pm, power, .. } = machine(PmConfig { smi: None, ..BHYVE });
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
    pm.write(4, &0u16.to_le_bytes());
    assert_eq!(read16(&*pm, 4), 1, "a guest that forgets the bit does not turn ACPI off");
    write(&*ports, 0, 0xa1);
    assert!(!sci.level());
    pm.write(4, &1u16.to_le_bytes());
    assert_eq!(read16(&*pm, 4), 0);
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
fn a_timer_that_the_kernel_answers_raises_nothing_here() {
    let Machine { pm, clock, sci, .. } = machine(PmConfig { timer_event: false, smi: None, ..BHYVE });
    pm.write(2, &0x0121u16.to_le_bytes());
    assert_eq!(read16(&*pm, 2), 0x0120, "there is no timer event to enable");
    clock.advance_ns(3600 * 1_000_000_000);
    pm.tick(clock.monotonic_ns());
    assert_eq!((read16(&*pm, 0), sci.level(), pm.deadline_ns()), (0, false, None));
    assert!(pm.restore(&PmState { enable: 1, ..pm.save() }).is_err());
}

#[test]
fn general_purpose_events_have_two_widths() {
    for (config, enable_at) in [(PIIX4, 14), (BHYVE, 13)] {
        let Machine { pm, sci, .. } = machine(config);
        write(&*pm.smi_ports(), 0, 0xa0);
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
        // A timer that far has no next tick: it would stand for ever, and no reset sets it back.
        PmState { timer_ticks: u64::MAX, ..good.clone() },
    ] {
        assert!(pm.restore(&bad).is_err(), "{bad:?}");
    }
    assert_eq!(pm.save(), good);
    // Time beyond any machine's life must not overflow anything.
    pm.restore(&PmState { timer_ticks: 1 << 63, ..good }).unwrap();
    pm.write(2, &1u16.to_le_bytes());
    write(&*pm.smi_ports(), 0, 0xa0);
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
