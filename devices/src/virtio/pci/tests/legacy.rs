//! The legacy interface, as Linux before 3.18 and `force_legacy=1` use it.

use super::*;

const HOST_FEATURES: u64 = 0;
const GUEST_FEATURES: u64 = 4;
const PFN: u64 = 8;
const SIZE: u64 = 12;
const SELECT: u64 = 14;
const NOTIFY: u64 = 16;
const STATUS: u64 = 18;
const ISR: u64 = 19;

fn started() -> (Rig, u64) {
    let mut rig = rig(Shape::default());
    rig.enable();
    let base = rig.bar(0);
    set_up(&mut rig, base);
    rig.outp(base + STATUS, 1, 7);
    (rig, base)
}

/// Everything up to DRIVER_OK: queue 0 at page 0x100, queue 1 at page 0x200.
fn set_up(rig: &mut Rig, base: u64) {
    rig.outp(base + STATUS, 1, 0);
    rig.outp(base + STATUS, 1, 1);
    rig.outp(base + STATUS, 1, 3);
    let features = rig.inp(base + HOST_FEATURES, 4);
    rig.outp(base + GUEST_FEATURES, 4, features);
    for queue in 0..2 {
        rig.outp(base + SELECT, 2, queue);
        assert_eq!(rig.inp(base + PFN, 4), 0);
        rig.outp(base + PFN, 4, 0x100 * (queue + 1));
    }
}

#[test]
fn a_legacy_driver_starts_queues_laid_out_from_one_page_number() {
    let (rig, _) = started();
    let active = rig.runner.active.lock().unwrap();
    let activation = active.as_ref().unwrap();
    assert!(activation.legacy);
    // 16 * 128 bytes of descriptors, 6 + 2 * 128 of available ring, then the next page.
    let small = QueueState { size: 128, desc_table: 0x10_0000, avail_ring: 0x10_0800, used_ring: 0x10_1000, ..ring(0) };
    let large = QueueState { size: 256, desc_table: 0x20_0000, avail_ring: 0x20_1000, used_ring: 0x20_2000, ..ring(0) };
    assert_eq!(activation.queues, [(0, small), (1, large)]);
}

#[test]
fn a_legacy_driver_is_offered_neither_event_idx_nor_version_1() {
    let (mut rig, base) = started();
    let offered = rig.inp(base + HOST_FEATURES, 4);
    assert_eq!(offered, INDIRECT | 1 << 24 | 0b101);
    assert_eq!(rig.runner.active.lock().unwrap().as_ref().unwrap().features, offered);
    let (_, common, _) = rig.structure(1).unwrap();
    rig.store(common + field::DEVICE_FEATURE_SELECT, 4, 0);
    assert_ne!(rig.load(common + field::DEVICE_FEATURE, 4) & EVENT_IDX, 0, "modern drivers are");
}

#[test]
fn a_legacy_driver_cannot_accept_what_it_was_not_offered() {
    let mut rig = rig(Shape::default());
    rig.enable();
    let base = rig.bar(0);
    rig.outp(base + STATUS, 1, 3);
    rig.outp(base + GUEST_FEATURES, 4, 0xffff_ffff);
    assert_eq!(rig.inp(base + GUEST_FEATURES, 4), INDIRECT | 1 << 24 | 0b101);
}

#[test]
fn legacy_kicks_name_the_queue_in_the_value_and_doorbells_are_port_writes() {
    let (mut rig, base) = started();
    rig.outp(base + NOTIFY, 2, 1);
    rig.outp(base + NOTIFY, 2, 0);
    assert_eq!(rig.runner.kicks(), [1, 0]);
    let pio = |queue| (queue, Doorbell::Pio { port: base as u16 + 16, datamatch: queue });
    assert_eq!(rig.doorbells(), [pio(0), pio(1)]);
    rig.config_write(0x10, 4, 0xd000);
    assert_eq!(rig.doorbells()[1].1, Doorbell::Pio { port: 0xd010, datamatch: 1 });
    rig.outp(0xd000 + STATUS, 1, 0);
    assert!(rig.doorbells().is_empty());
}

#[test]
fn a_kick_before_driver_ok_starts_an_old_driver_once() {
    let mut rig = rig(Shape::default());
    rig.enable();
    let base = rig.bar(0);
    rig.outp(base + NOTIFY, 2, 0);
    set_up(&mut rig, base);
    assert!(!rig.runner.is_active());
    rig.outp(base + NOTIFY, 2, 9);
    assert!(!rig.runner.is_active(), "no such queue");
    rig.outp(base + NOTIFY, 2, 0);
    assert_eq!(rig.runner.kicks(), [0]);
    rig.outp(base + GUEST_FEATURES, 4, 0);
    assert_ne!(rig.inp(base + GUEST_FEATURES, 4), 0, "frozen");
    rig.outp(base + STATUS, 1, 7);
    assert_eq!((rig.inp(base + STATUS, 1), rig.runner.starts.lock().unwrap().len()), (7, 1));
    rig.outp(base + STATUS, 1, 0);
    assert!(!rig.runner.is_active());
}

#[test]
fn a_legacy_interrupt_is_a_line_that_falls_when_the_isr_is_read() {
    let (mut rig, base) = started();
    rig.runner.interrupt().queue_used(0);
    assert!(rig.line());
    assert_eq!((rig.inp(base + ISR, 1), rig.line(), rig.inp(base + ISR, 1)), (1, false, 0));
    rig.runner.interrupt().config_changed();
    assert_eq!((rig.line(), rig.inp(base + 16, 4) >> 24, rig.line()), (true, 2, false), "inside a wider read");
}

#[test]
fn device_configuration_moves_behind_the_vectors_while_msix_is_enabled() {
    let mut rig = rig(Shape::default());
    rig.enable();
    let base = rig.bar(0);
    assert_eq!((rig.inp(base + 20, 4), rig.inp(base + 18, 4) >> 16), (0x0302_0100, 0));
    rig.enable_msix();
    assert_eq!((rig.inp(base + 20, 4), rig.inp(base + 24, 4)), (0xffff_ffff, 0x0302_0100));
    rig.outp(base + 20, 2, 2);
    rig.outp(base + 22, 2, 1);
    assert_eq!(rig.inp(base + 20, 4), 0x0001_0002);
    rig.outp(base + 20, 2, 3);
    assert_eq!(rig.inp(base + 20, 2), 0xffff, "no such vector");
    rig.outp(base + 24, 1, 0xaa);
    assert_eq!(rig.device.config.lock().unwrap()[0], 0xaa);
}

#[test]
fn a_legacy_driver_with_msix_gets_its_vectors() {
    let (mut rig, base) = started();
    rig.enable_msix();
    rig.outp(base + SELECT, 2, 1);
    rig.outp(base + 22, 2, 2);
    rig.runner.interrupt().queue_used(1);
    assert_eq!((rig.sent(), rig.line()), (vec![0, 0, 1], false));
}

#[test]
fn a_legacy_reset_waits_and_the_page_number_reads_zero_after() {
    let (mut rig, base) = started();
    *rig.runner.slow.lock().unwrap() = true;
    rig.outp(base + STATUS, 1, 0);
    let parked = rig.parked.take().unwrap();
    assert!(!parked.is_complete());
    rig.runner.stop();
    assert!(parked.is_complete());
    assert_eq!((rig.inp(base + STATUS, 1), rig.inp(base + PFN, 4), rig.inp(base + SIZE, 2)), (0, 0, 128));
    *rig.runner.slow.lock().unwrap() = false;
    set_up(&mut rig, base);
    rig.outp(base + STATUS, 1, 7);
    assert!(rig.runner.is_active());
}

#[test]
fn a_broken_ring_is_silence_until_status_0() {
    let (mut rig, base) = started();
    rig.needs_reset(0);
    assert_eq!((rig.inp(base + STATUS, 1), rig.line(), rig.inp(base + ISR, 1)), (7, false, 0));
    rig.outp(base + STATUS, 1, 0);
    assert!(!rig.runner.is_active());
}

#[test]
fn a_page_number_of_zero_takes_a_queue_away_before_the_start() {
    let mut rig = rig(Shape::default());
    rig.enable();
    let base = rig.bar(0);
    set_up(&mut rig, base);
    rig.outp(base + SELECT, 2, 0);
    rig.outp(base + PFN, 4, 0);
    rig.outp(base + STATUS, 1, 7);
    assert_eq!(rig.runner.starts.lock().unwrap()[0].iter().map(|queue| queue.0).collect::<Vec<_>>(), [1]);
}

#[test]
fn a_legacy_drivers_features_and_status_leave_the_device_configuration_as_the_driver_wrote_it() {
    // §5.2.5.3: a legacy driver may switch a disk's cache before it writes its features, and finds it as it left it.
    let mut rig = rig(Shape::default());
    rig.enable();
    let base = rig.bar(0);
    rig.outp(base + STATUS, 1, 0);
    rig.device.accepted.lock().unwrap().clear();
    rig.outp(base + 20 + 32, 1, 0);
    for (register, width, value) in
        [(STATUS, 1, 1), (STATUS, 1, 3), (GUEST_FEATURES, 4, INDIRECT), (GUEST_FEATURES, 4, 0), (STATUS, 1, 7)]
    {
        rig.outp(base + register, width, value);
        assert!(rig.device.accepted.lock().unwrap().is_empty(), "told by {register:#x}");
    }
    assert_eq!(rig.inp(base + 20 + 32, 1), 0);
    rig.outp(base + STATUS, 1, 0);
    assert_eq!(*rig.device.accepted.lock().unwrap(), [0], "a reset is one");
}

#[test]
fn features_written_by_the_modern_way_do_not_stick_to_a_device_that_starts_the_legacy_way() {
    let mut one = rig(Shape::default());
    one.enable();
    let (_, common, _) = one.structure(1).unwrap();
    // The legacy interface offers neither of them, and nobody checks them before FEATURES_OK.
    one.store(common + field::DRIVER_FEATURE, 4, EVENT_IDX | 1 << 1);
    let base = one.bar(0);
    one.outp(base + STATUS, 1, 3);
    one.outp(base + STATUS, 1, 7);
    assert_eq!(one.runner.active.lock().unwrap().as_ref().unwrap().features, 0);
    assert_eq!(one.inp(base + GUEST_FEATURES, 4), 0, "what the driver reads is what it gets");
    // A state that was saved has to come back.
    let mut two = rig(Shape::default());
    two.enable();
    two.function.restore(&one.function.save(), &[]).unwrap();
    assert!(two.runner.is_active());
}

#[test]
fn a_device_for_legacy_drivers_alone_has_nothing_of_the_other_interface() {
    let mut old = rig(Shape { interfaces: Interfaces::Legacy, ..Default::default() });
    assert_eq!((old.config_read(2, 2), old.config_read(8, 1), old.config_read(0x2e, 2)), (0x1001, 0, 2));
    assert!((1..=5).all(|kind| old.structure(kind).is_none()));
    let bars: Vec<u64> = old.size_bars().into_iter().map(|(bar, ..)| bar).collect();
    assert_eq!(bars, [0, 1], "ports and the table of messages");
    old.enable();
    let base = old.bar(0);
    set_up(&mut old, base);
    old.outp(base + STATUS, 1, 7);
    assert!(old.runner.active.lock().unwrap().as_ref().is_some_and(|activation| activation.legacy));
    old.outp(base + NOTIFY, 2, 1);
    assert_eq!(old.runner.kicks(), [1]);
    // The vendor's part of configuration space is no window, wherever it would be.
    for offset in (0x40..0x100).step_by(4) {
        old.config_write(offset, 4, 0xffff_ffff);
        old.config_read(offset, 4);
    }
    assert_eq!(old.inp(base + STATUS, 1), 7);

    let mut without = rig(Shape { device_type: 26, interfaces: Interfaces::Legacy, ..Default::default() });
    assert!(without.structure(1).is_some(), "a type that only virtio 1 knows");
}
