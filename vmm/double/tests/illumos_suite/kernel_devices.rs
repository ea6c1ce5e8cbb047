//! `kdev`: timers, clocks and interrupt controllers that the kernel emulates.

use std::time::Duration;

use zerocopy::{FromBytes, IntoBytes};
use zvmm::hypervisor::bhyve::abi::*;
use zvmm::hypervisor::{Hypervisor, KernelDevices, Stop, Vm};

use crate::machine::*;

/// Says that a measurement begins: `out 0x81, al`.
const BEGIN: [u8; 2] = [0xe6, 0x81];
const PIT_HZ: f64 = 1_193_182.0;
const PM_TIMER_HZ: f64 = 3_579_545.0;

/// How often a measurement is repeated that took longer than its counter lasts.
const ATTEMPTS: usize = 50;

/// What a guest told, and how long it was between its first two counts at least and at most, in seconds.
struct Measurement {
    told: Vec<u32>,
    least: f64,
    most: f64,
}

/// Runs a guest that says [`BEGIN`] and then tells a count, twice, with `wait` between.
fn measure(guest: &mut Guest, wait: Duration) -> Measurement {
    let mut devices = Devices { wait, ..Devices::default() };
    let told = guest.told(&mut devices);
    let at = devices.out.iter().position(|out| out.port == 0x81).unwrap();
    let [begin, first, second] = devices.out[at..at + 3] else { panic!("{:?}", devices.out) };
    // The first count is of a moment between the guest's way in and its way out, and so is the second.
    let least = first.left.duration_since(first.came).as_secs_f64();
    let most = second.came.duration_since(begin.left).as_secs_f64();
    Measurement { told, least, most }
}

#[track_caller]
fn assert_rate(measurement: &Measurement, ticks: u32, hz: f64, tolerance: f64) {
    let (least, most) = (measurement.least * hz * (1.0 - tolerance), measurement.most * hz * (1.0 + tolerance));
    assert!((least..=most + 2.0).contains(&f64::from(ticks)), "{ticks} ticks, not {least:.0} to {most:.0}");
}

/// `mov dword [at], value`.
fn store(at: u32, value: u32) -> Vec<u8> {
    [&[0xc7, 5][..], &at.to_le_bytes(), &value.to_le_bytes()].concat()
}

/// `mov eax, [at]; out 0x80, eax`.
fn tell(at: u32) -> Vec<u8> {
    [&[0xa1][..], &at.to_le_bytes(), &TELL].concat()
}

/// The local APIC on, its timer masked and counting from `initial` at its full rate.
fn apic_timer(entry: u32, initial: u32) -> Vec<u8> {
    let writes = [(0xf0, 0x1ff), (0x3e0, 0xb), (0x320, entry), (0x380, initial)];
    writes.into_iter().flat_map(|(offset, value)| store(0xfee0_0000 + offset, value)).collect()
}

#[test]
fn the_timer_chip_counts_down_at_its_rate() {
    // mov al, 0x34; out 0x43; mov al, 0; out 0x40; out 0x40: rate generator, from 65536
    let program = [0xb0, 0x34, 0xe6, 0x43, 0xb0, 0, 0xe6, 0x40, 0xe6, 0x40];
    // mov al, 0; out 0x43 (latch); in al, 0x40; mov bl, al; in al, 0x40; mov bh, al; movzx eax, bx; out eax
    let latch = [0xb0, 0, 0xe6, 0x43, 0xe4, 0x40, 0x88, 0xc3, 0xe4, 0x40, 0x88, 0xc7, 0x0f, 0xb7, 0xc3, 0xe7, 0x80];
    for _ in 0..ATTEMPTS {
        let mut guest = Guest::with_code(&[&program, &BEGIN, &latch, &latch]);
        let measurement = measure(&mut guest, Duration::from_millis(10));
        guest.finish(&[]);
        if measurement.most * PIT_HZ < 60_000.0 {
            let ticks = (measurement.told[0].wrapping_sub(measurement.told[1])) & 0xffff;
            return assert_rate(&measurement, ticks, PIT_HZ, 0.02);
        }
    }
    panic!("no measurement was shorter than the counter");
}

#[test]
fn the_hpet_counts_at_the_rate_it_tells() {
    let count = tell(0xfed0_00f0);
    let mut guest = Guest::with_code(&[&store(0xfed0_0010, 1), &BEGIN, &count, &count, &tell(0xfed0_0004)]);
    let measurement = measure(&mut guest, Duration::from_millis(20));
    let hz = 1e15 / f64::from(measurement.told[2]);
    assert!((hz / f64::from(HPET_FREQ_HZ) - 1.0).abs() < 1e-6, "{hz} Hz");
    assert_rate(&measurement, measurement.told[1].wrapping_sub(measurement.told[0]), hz, 0.02);
    guest.finish(&[]);
}

#[test]
fn the_pm_timer_counts_at_its_rate_where_it_was_placed() {
    // mov dx, 0x408; in eax, dx; out eax
    let count = [0x66, 0xba, 8, 4, 0xed, 0xe7, 0x80];
    let mut guest = Guest::with_code(&[&BEGIN, &count, &count]);
    let devices = KernelDevices { pm_timer_port: Some(0x408), nvram: Vec::new() };
    guest.vm.set_up_kernel_devices(&devices).unwrap();
    let measurement = measure(&mut guest, Duration::from_millis(20));
    assert_rate(&measurement, measurement.told[1].wrapping_sub(measurement.told[0]), PM_TIMER_HZ, 0.02);
    guest.finish(&[]);
}

#[test]
fn the_local_apics_timer_counts_down_at_the_rate_the_backend_tells() {
    let count = tell(0xfee0_0390);
    let mut guest = Guest::with_code(&[&apic_timer(0x1_0000, u32::MAX), &BEGIN, &count, &count]);
    let measurement = measure(&mut guest, Duration::from_millis(20));
    let hz = f64::from(guest.hypervisor.capabilities().apic_timer_hz);
    // KVM's takes whole nanoseconds a tick, 8 for bhyve's 7.45.
    assert_rate(&measurement, measurement.told[0] - measurement.told[1], hz, 0.09);
    guest.finish(&[]);
}

#[test]
fn the_local_apics_timer_starts_again_by_itself_in_periodic_mode_alone() {
    const INITIAL: u32 = 0x10_0000;
    let count = tell(0xfee0_0390);
    for (entry, goes_on) in [(0x3_0000, true), (0x1_0000, false)] {
        let mut guest = Guest::with_code(&[&apic_timer(entry, INITIAL), &BEGIN, &count, &count]);
        // More than one period of 8 ms.
        let told = measure(&mut guest, Duration::from_millis(21)).told;
        assert!((1..=INITIAL).contains(&told[0]) && told[1] <= INITIAL, "{told:x?}");
        assert_eq!(told[1] != 0, goes_on, "{told:x?}");
        guest.finish(&[]);
    }
}

#[test]
fn every_register_of_the_local_apic_can_be_touched_in_its_page_without_a_fault() {
    // mov esi, 0xfee00000; again: mov eax, [esi]; mov [esi], eax; add esi, 16; cmp esi, 0xfee01000; jne again
    let words = [0xbe, 0, 0, 0xe0, 0xfe, 0x8b, 6, 0x89, 6, 0x83, 0xc6, 16, 0x81, 0xfe, 0, 0x10, 0xe0, 0xfe, 0x75, 0xf1];
    // mov esi, 0xfee00000; again: mov al, [esi]; mov [esi], al; inc esi; cmp esi, 0xfee01000; jne again
    let bytes = [0xbe, 0, 0, 0xe0, 0xfe, 0x8a, 6, 0x88, 6, 0x46, 0x81, 0xfe, 0, 0x10, 0xe0, 0xfe, 0x75, 0xf3];
    let mut guest = Guest::with_code(&[&words, &bytes, &[0x89, 0xf0], &TELL]);
    let mut devices = Devices::default();
    assert_eq!(guest.told(&mut devices), [0xfee0_1000]);
    assert_eq!((devices.reads.len(), devices.writes.len()), (0, 0), "all is served in the kernel");
    guest.finish(&[]);
}

/// `mov ecx, 0x1b; rdmsr; or ah, 0x0c; wrmsr`: x2APIC mode.
const X2APIC: &[u8] = &[0xb9, 0x1b, 0, 0, 0, 0x0f, 0x32, 0x80, 0xcc, 0x0c, 0x0f, 0x30];

#[test]
fn registers_of_an_x2apic_are_msrs_and_those_it_has_not_fault() {
    // mov ecx, 0x802; rdmsr; out eax; mov ecx, 0x803; rdmsr; out eax
    let ask = [0xb9, 2, 8, 0, 0, 0x0f, 0x32, 0xe7, 0x80, 0xb9, 3, 8, 0, 0, 0x0f, 0x32, 0xe7, 0x80];
    // mov ecx, 0x832; mov eax, 0x10033; xor edx, edx; wrmsr; xor eax, eax; rdmsr; out eax
    let set = [0xb9, 0x32, 8, 0, 0, 0xb8, 0x33, 0, 1, 0, 0x31, 0xd2, 0x0f, 0x30, 0x31, 0xc0, 0x0f, 0x32, 0xe7, 0x80];
    let mut guest = Guest::with_code(&[X2APIC, &ask, &set]);
    let told = guest.told(&mut Devices::default());
    assert_eq!((told[0], told[1] & 0xf0, told[2]), (0, 0x10, 0x1_0033), "{told:x?}");
    guest.finish(&[]);
    // mov ecx, 0x80e; rdmsr
    let mut guest = Guest::with_code(&[X2APIC, &[0xb9, 0x0e, 8, 0, 0, 0x0f, 0x32]]);
    assert!(matches!(guest.run(&mut Devices::default()), Ok(Stop::TripleFault)));
    guest.finish(&[]);
}

#[test]
fn the_tsc_is_a_register_that_the_kernel_serves_and_that_grows() {
    // mov ecx, 0x10; rdmsr; out eax; out edx
    let read: [u8; 7] = [0xb9, 0x10, 0, 0, 0, 0x0f, 0x32];
    let mut guest = Guest::with_code(&[&read, &TELL, &TELL_EDX, &read, &TELL, &TELL_EDX]);
    // A register that came out to the process would fault.
    let told = guest.told(&mut Devices { wait: Duration::from_millis(5), ..Devices::default() });
    let [first, second] = [0, 2].map(|at| u64::from(told[at + 1]) << 32 | u64::from(told[at]));
    let least = u64::from(guest.vm.tsc_khz().unwrap()) * 5;
    assert!(second - first >= least, "{first:#x}, {second:#x}, {least} ticks");
    guest.finish(&[]);
}

/// Whether this host's KVM gives a guest a TSC of its own: emulators of it give the host's, whatever is written.
fn kvm_keeps_a_tsc() -> bool {
    const TSC: u64 = 1 << 59;
    let guest = Guest::with_code(&[]);
    guest.vm.pause().unwrap();
    let field = vdi_field_entry_v1 { vfe_ident: 0x10, _pad: 0, vfe_value: TSC };
    guest.fd().write_data(0, VDC_MSR, 1, field.as_bytes()).unwrap();
    let time = vdi_time_info_v1::read_from_bytes(&guest.fd().read_data(-1, VDC_VMM_TIME, 1).unwrap()).unwrap();
    guest.finish(&[]);
    time.vt_guest_tsc >= TSC
}

#[test]
fn a_guest_that_sets_its_tsc_goes_on_from_there() {
    if !kvm_keeps_a_tsc() {
        println!("SKIP: this machine's KVM gives a guest no TSC of its own");
        return;
    }
    // mov ecx, 0x10; mov eax, 0; mov edx, 0x1000; wrmsr; rdmsr; out edx
    let code = [0xb9, 0x10, 0, 0, 0, 0xb8, 0, 0, 0, 0, 0xba, 0, 0x10, 0, 0, 0x0f, 0x30, 0x0f, 0x32];
    let mut guest = Guest::with_code(&[&code, &TELL_EDX]);
    let told = guest.told(&mut Devices::default());
    assert!((0x1000..0x1010).contains(&told[0]), "{told:x?}");
    guest.finish(&[]);
}

#[test]
fn a_tsc_given_with_the_vms_time_is_the_guests() {
    const TSC: u64 = 1 << 60;
    if !kvm_keeps_a_tsc() {
        println!("SKIP: this machine's KVM gives a guest no TSC of its own");
        return;
    }
    // mov ecx, 0x10; rdmsr; out eax; out edx
    let mut guest = Guest::with_code(&[&[0xb9, 0x10, 0, 0, 0, 0x0f, 0x32], &TELL, &TELL_EDX]);
    guest.vm.pause().unwrap();
    let mut time = vdi_time_info_v1::read_from_bytes(&guest.fd().read_data(-1, VDC_VMM_TIME, 1).unwrap()).unwrap();
    assert!(time.vt_guest_tsc < TSC);
    time.vt_guest_tsc = TSC;
    guest.fd().write_data(-1, VDC_VMM_TIME, 1, time.as_bytes()).unwrap();
    guest.vm.resume().unwrap();
    let told = guest.told(&mut Devices::default());
    let tsc = u64::from(told[1]) << 32 | u64::from(told[0]);
    assert!((TSC..2 * TSC).contains(&tsc), "{tsc}");
    guest.finish(&[]);
}

/// `mov al, register; out 0x70; mov al, value; out 0x71`.
fn rtc(register: u8, value: u8) -> [u8; 8] {
    [0xb0, register, 0xe6, 0x70, 0xb0, value, 0xe6, 0x71]
}

#[test]
fn the_clock_takes_the_guests_time_and_rolls_over_to_noon() {
    // In 12 hours and BCD: one second to noon.
    let set = [rtc(0x0b, 0), rtc(4, 0x11), rtc(2, 0x59), rtc(0, 0x59)].concat();
    // again: mov al, 4; out 0x70; in al, 0x71; cmp al, 0x11; je again, which a slow host cannot miss
    let wait = [0xb0, 4, 0xe6, 0x70, 0xe4, 0x71, 0x3c, 0x11, 0x74, 0xf6];
    // mov al, register; out 0x70; in al, 0x71; out 0x80, al
    let tell = |register| [0xb0, register, 0xe6, 0x70, 0xe4, 0x71, 0xe6, 0x80];
    let mut guest = Guest::with_code(&[&set, &wait, &tell(2), &tell(4)]);
    assert_eq!(guest.told(&mut Devices::default()), [0, 0x92]);
    guest.finish(&[]);
    // In 24 hours and binary: the days of an epoch.
    let set = [rtc(0x0b, 6), rtc(0x32, 19), rtc(9, 70), rtc(8, 1), rtc(7, 1), rtc(4, 0), rtc(2, 0), rtc(0, 0)].concat();
    let mut guest = Guest::with_code(&[&set, &tell(0x32), &tell(9), &tell(8), &tell(7), &tell(4), &tell(2)]);
    assert_eq!(guest.told(&mut Devices::default()), [19, 70, 1, 1, 0, 0]);
    guest.finish(&[]);
}
