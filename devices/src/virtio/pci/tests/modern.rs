//! The modern interface, BARs and the configuration-access capability, as a well-behaved driver sees them.

use super::*;

#[test]
fn a_transitional_device_has_the_ids_bars_and_capabilities_a_driver_looks_for() {
    let mut rig = rig(Shape::default());
    assert_eq!((rig.config_read(0, 4), rig.config_read(8, 4)), (0x1001_1af4, 0x0100_0000));
    assert_eq!((rig.config_read(0x2c, 4), rig.config_read(0x3c, 2)), (0x0002_1af4, 0x010b));
    let bars: Vec<_> = rig.size_bars().into_iter().map(|(index, _, size)| (index, size)).collect();
    assert_eq!(bars, [(0, 0x80), (1, 0x2000), (4, 0x4000)]);
    let kinds: Vec<_> = rig.capabilities(9).into_iter().map(|at| rig.config_read(at + 3, 1)).collect();
    assert_eq!(kinds, [1, 3, 2, 4, 5]);
    let (notify, ..) = rig.structure(2).unwrap();
    assert_eq!((rig.config_read(notify + 2, 1), rig.config_read(notify + 16, 4)), (20, 4));
    assert_eq!(rig.structure(4).unwrap().2, 60);
}

#[test]
fn a_modern_only_device_has_no_ports_and_ids_from_0x1040() {
    let mut rig = rig(Shape {
        device_type: 4,
        config_len: 0,
        interfaces: Interfaces::Modern,
        queues: vec![8],
        vectors: 2,
        ..Default::default()
    });
    assert_eq!((rig.config_read(0, 4), rig.config_read(8, 4)), (0x1044_1af4, 0xff00_0001));
    assert!(rig.config_read(0x2e, 2) >= 0x40);
    assert_eq!(rig.size_bars().iter().map(|bar| bar.0).collect::<Vec<_>>(), [1, 4]);
}

#[test]
fn a_device_without_configuration_has_no_capability_of_length_zero() {
    let mut rig = rig(Shape { device_type: 4, config_len: 0, queues: vec![8], ..Default::default() });
    assert_eq!(rig.config_read(2, 2), 0x1005);
    assert_eq!(rig.structure(4), None);
}

#[test]
fn a_device_without_vectors_has_no_msix() {
    let mut rig = rig(Shape { vectors: 0, ..Default::default() });
    assert!(rig.capabilities(0x11).is_empty());
    assert_eq!(rig.size_bars().iter().map(|bar| bar.0).collect::<Vec<_>>(), [0, 4]);
}

#[test]
fn a_modern_driver_starts_the_enabled_queues_and_rings_them() {
    let mut rig = rig(Shape::default());
    rig.start();
    assert_eq!(rig.status(), 15);
    let active = rig.runner.active.lock().unwrap();
    let activation = active.as_ref().unwrap();
    assert_eq!((activation.features, activation.legacy), (VERSION_1 | INDIRECT, false));
    assert_eq!(activation.queues, [(0, ring(0)), (1, ring(1))]);
    drop(active);
    let (_, notify, len) = rig.structure(2).unwrap();
    assert_eq!((notify & 0xfff, len), (0, 8));
    rig.store(notify + 4, 2, 1);
    rig.store(notify, 4, 0);
    assert_eq!(rig.runner.kicks(), [1, 0]);
}

#[test]
fn only_enabled_queues_start() {
    let mut rig = rig(Shape::default());
    rig.enable();
    assert!(rig.negotiate(VERSION_1));
    rig.set_up_queue(1, 0);
    rig.set(field::STATUS, 1, 15);
    assert_eq!(*rig.runner.starts.lock().unwrap(), [vec![(1, ring(1))]]);
    assert_eq!(rig.doorbells().len(), 1);
}

#[test]
fn the_common_configuration_reads_back_as_the_driver_left_it() {
    let mut rig = rig(Shape::default());
    rig.enable();
    assert!(rig.negotiate(VERSION_1 | EVENT_IDX));
    rig.set_up_queue(1, 2);
    for (field, width, value) in [
        (field::DRIVER_FEATURE_SELECT, 4, 1),
        (field::DRIVER_FEATURE, 4, 1),
        (field::CONFIG_VECTOR, 2, 0xffff),
        (field::NUM_QUEUES, 2, 2),
        (field::GENERATION, 1, 0x5a),
        (field::SELECT, 2, 1),
        (field::SIZE, 2, 64),
        (field::VECTOR, 2, 2),
        (field::ENABLE, 2, 1),
        (field::NOTIFY_OFF, 2, 1),
        (field::DESC, 8, 0x1_0001_0000),
        (field::DRIVER, 8, 0x1_0001_4000),
        (field::DEVICE, 8, 0x1_0001_8000),
        (field::STATUS, 4, 0x0001_5a0b),
    ] {
        assert_eq!(rig.get(field, width), value, "{field:#x}");
    }
    rig.set(field::SELECT, 2, 0);
    assert_eq!((rig.get(field::SIZE, 2), rig.get(field::ENABLE, 2)), (128, 0));
}

#[test]
fn features_are_offered_in_words_of_32_and_none_beyond_the_second() {
    let mut rig = rig(Shape::default());
    rig.enable();
    // NOTIFY_ON_EMPTY is legacy only; NOTIFICATION_DATA and RING_RESET are not of this transport.
    assert_eq!(rig.device_features(), INDIRECT | EVENT_IDX | VERSION_1 | 0b101);
    for select in [2, 3, 0x8000_0000, 0xffff_ffff] {
        rig.set(field::DEVICE_FEATURE_SELECT, 4, select);
        assert_eq!(rig.get(field::DEVICE_FEATURE, 4), 0);
    }
}

#[test]
fn features_ok_is_refused_for_what_was_not_offered_and_without_version_1() {
    let mut rig = rig(Shape::default());
    rig.enable();
    assert!(!rig.negotiate(INDIRECT), "no VERSION_1");
    assert!(!rig.negotiate(VERSION_1 | 0b10), "not offered");
    assert!(!rig.negotiate(VERSION_1 | 1 << 40), "not of this transport");
    rig.set(field::STATUS, 1, 15);
    assert!(!rig.runner.is_active(), "DRIVER_OK without FEATURES_OK");

    rig.set(field::STATUS, 1, 0);
    rig.set(field::DRIVER_FEATURE_SELECT, 4, 2);
    rig.set(field::DRIVER_FEATURE, 4, 1);
    rig.set(field::STATUS, 1, 3);
    rig.accept(VERSION_1);
    rig.set(field::STATUS, 1, 11);
    assert_eq!(rig.status() & 8, 0, "a feature beyond bit 63");
    assert!(rig.negotiate(VERSION_1 | 0b101));
}

#[test]
fn status_bits_are_only_added_each_after_the_one_it_depends_on() {
    let mut rig = rig(Shape::default());
    rig.enable();
    rig.accept(VERSION_1);
    for (write, read) in [(2, 0), (8, 0), (4, 0), (0x40, 0), (0x30, 0), (1, 1), (8, 1), (5, 1), (2, 3), (1, 3), (4, 3)]
    {
        rig.set(field::STATUS, 1, write);
        assert_eq!(rig.status(), read, "after writing {write:#x}");
    }
    rig.set(field::STATUS, 1, 8);
    assert_eq!(rig.status(), 11);
    rig.set(field::STATUS, 1, 0x80);
    rig.set(field::STATUS, 1, 4);
    assert_eq!((rig.status(), rig.runner.is_active()), (0x8b, false), "a failed driver does not start");
    rig.set(field::STATUS, 1, 0);
    rig.accept(VERSION_1);
    rig.set(field::STATUS, 1, 15);
    assert_eq!((rig.status(), rig.runner.is_active()), (15, true), "all at once, in order");
}

#[test]
fn a_reset_that_completes_at_once_returns_every_register_to_its_default() {
    let mut rig = rig(Shape::default());
    rig.enable();
    let before = rig.function.save();
    rig.start();
    rig.set(field::STATUS, 1, 0);
    assert!(rig.parked.is_none());
    assert_eq!((rig.status(), rig.runner.is_active()), (0, false));
    assert_eq!(rig.function.save(), before);
    rig.start();
    assert_eq!((rig.status(), rig.runner.starts.lock().unwrap().len()), (15, 2));
}

#[test]
fn a_slow_reset_parks_the_writer_and_shows_the_old_status_until_the_queues_have_stopped() {
    let mut rig = rig(Shape::default());
    rig.start();
    *rig.runner.slow.lock().unwrap() = true;
    rig.set(field::STATUS, 1, 0);
    let first = rig.parked.take().expect("the write waits");
    assert!(!first.is_complete());
    assert_eq!(rig.status(), 15);
    assert!(rig.doorbells().is_empty());

    // Whatever other vCPUs write meanwhile is lost with the rest.
    rig.set(field::STATUS, 1, 1);
    rig.set(field::SELECT, 2, 1);
    rig.set(field::CONFIG_VECTOR, 2, 2);
    let (_, notify, _) = rig.structure(2).unwrap();
    rig.store(notify, 2, 0);
    assert!(rig.parked.is_none() && rig.runner.kicks().is_empty());
    rig.set(field::STATUS, 1, 0);
    let second = rig.parked.take().expect("a second reset waits for the first");

    assert!(rig.function.save() != super::rig(Shape::default()).function.save());
    rig.runner.stop();
    assert!(first.is_complete() && second.is_complete());
    assert_eq!((rig.status(), rig.get(field::SELECT, 2), rig.get(field::CONFIG_VECTOR, 2)), (0, 0, 0xffff));
    *rig.runner.slow.lock().unwrap() = false;
    rig.start();
    assert_eq!(rig.status(), 15);
}

#[test]
fn a_machine_reset_stops_the_queues_and_returns_the_bars() {
    let mut rig = rig(Shape::default());
    rig.enable();
    let pristine = super::rig(Shape::default());
    rig.start();
    rig.enable_msix();
    rig.config_write(0x10, 4, 0xd001);
    *rig.runner.slow.lock().unwrap() = true;
    let tokens = rig.pci.reset();
    assert_eq!(tokens.len(), 1);
    rig.runner.stop();
    assert!(tokens[0].is_complete());
    assert_eq!(rig.function.save(), pristine.function.save());
    assert!(rig.doorbells().is_empty());
    assert!(rig.pci.reset().is_empty());
}

#[test]
fn interrupts_go_to_the_vector_of_their_queue_and_wait_while_it_is_masked() {
    let mut rig = rig(Shape::default());
    rig.start();
    rig.enable_msix();
    let interrupt = rig.runner.interrupt();
    interrupt.queue_used(0);
    interrupt.queue_used(1);
    interrupt.queue_used(1);
    interrupt.config_changed();
    interrupt.queue_used(77);
    assert_eq!((rig.sent(), rig.line()), (vec![1, 1, 2], false));
    let table = rig.bar(1);
    rig.store(table + 16 + 12, 4, 1);
    interrupt.queue_used(0);
    assert_eq!((rig.sent(), rig.load(table + 0x1000, 8)), (vec![1, 1, 2], 2));
    rig.store(table + 16 + 12, 4, 0);
    assert_eq!((rig.sent(), rig.load(table + 0x1000, 8)), (vec![1, 2, 2], 0));
}

#[test]
fn a_queue_without_a_vector_is_silent() {
    let mut rig = rig(Shape::default());
    rig.start();
    rig.enable_msix();
    rig.set(field::SELECT, 2, 0);
    rig.set(field::VECTOR, 2, 0xffff);
    rig.runner.interrupt().queue_used(0);
    assert_eq!((rig.sent(), rig.line()), (vec![0, 0, 0], false));
}

#[test]
fn a_vector_that_does_not_exist_reads_back_as_none() {
    let mut rig = rig(Shape::default());
    rig.enable();
    for (vector, back) in [(2, 2), (3, 0xffff), (1, 1), (0x7ff, 0xffff), (0xfffe, 0xffff)] {
        rig.set(field::CONFIG_VECTOR, 2, vector);
        rig.set(field::VECTOR, 2, vector);
        assert_eq!((rig.get(field::CONFIG_VECTOR, 2), rig.get(field::VECTOR, 2)), (back, back));
    }
}

#[test]
fn without_msix_the_line_rises_with_the_isr_and_falls_when_the_driver_reads_it() {
    let mut rig = rig(Shape::default());
    rig.start();
    let (_, isr, _) = rig.structure(3).unwrap();
    let interrupt = rig.runner.interrupt();
    interrupt.queue_used(0);
    interrupt.queue_used(1);
    assert!(rig.line());
    assert_eq!(rig.config_read(6, 2) & 8, 8, "interrupt status");
    assert_eq!((rig.load(isr, 1), rig.line(), rig.load(isr, 1)), (1, false, 0));
    interrupt.config_changed();
    interrupt.queue_used(0);
    assert_eq!((rig.line(), rig.load(isr, 1), rig.line()), (true, 3, false));
    assert_eq!(rig.config_read(6, 2) & 8, 0);

    rig.config_write(4, 2, 0x407);
    interrupt.queue_used(0);
    assert!(!rig.line(), "INTx disabled");
    rig.config_write(4, 2, 7);
    assert!(rig.line());
    rig.enable_msix();
    assert!(!rig.line(), "MSI-X enabled");
}

#[test]
fn no_configuration_interrupt_before_driver_ok() {
    let mut rig = rig(Shape::default());
    rig.enable();
    rig.function.interrupt().config_changed();
    let (_, isr, _) = rig.structure(3).unwrap();
    assert_eq!((rig.line(), rig.load(isr, 1)), (false, 0));
}

#[test]
fn a_broken_ring_shows_needs_reset_with_a_configuration_interrupt_and_the_device_works_after_reset() {
    let mut rig = rig(Shape::default());
    rig.start();
    rig.enable_msix();
    rig.needs_reset(1);
    assert_eq!((rig.status(), rig.sent()), (0x4f, vec![1, 0, 0]));
    rig.set(field::STATUS, 1, 0);
    assert_eq!(rig.status(), 0);
    rig.start();
    assert_eq!(rig.status(), 15);
}

#[test]
fn device_configuration_reads_and_writes_pass_through_and_end_at_its_length() {
    let mut rig = rig(Shape::default());
    rig.enable();
    let (_, config, len) = rig.structure(4).unwrap();
    assert_eq!(
        (rig.load(config, 4), rig.load(config + 57, 1), rig.load(config + 56, 8)),
        (0x0302_0100, 57, 0x3b3a_3938)
    );
    assert_eq!((rig.load(config + len, 4), rig.load(config + 0xff8, 8)), (0, 0));
    rig.store(config + 58, 4, 0xffff_ffff);
    rig.store(config + len, 4, 0xffff_ffff);
    assert_eq!(rig.device.config.lock().unwrap()[56..], [56, 57, 0xff, 0xff]);
}

#[test]
fn doorbells_follow_bars_decoding_start_and_reset() {
    let mut rig = rig(Shape::default());
    rig.enable();
    assert!(rig.doorbells().is_empty(), "no driver yet");
    rig.start();
    let at = |base: u64| -> Vec<(u16, Doorbell)> {
        (0..2).map(|queue| (queue, Doorbell::Mmio { address: base + 0x3000 + u64::from(queue) * 4, len: 2 })).collect()
    };
    let base = rig.bar(4);
    assert_eq!(rig.doorbells(), at(base));
    rig.config_write(0x20, 4, 0xe010_0000);
    rig.config_write(0x24, 4, 0);
    assert_eq!(rig.doorbells(), at(0xe010_0000));
    rig.config_write(4, 2, 4);
    assert!(rig.doorbells().is_empty(), "decoding disabled");
    rig.config_write(4, 2, 6);
    assert_eq!(rig.doorbells(), at(0xe010_0000));
    rig.set(field::STATUS, 1, 0);
    assert!(rig.doorbells().is_empty(), "reset");
}

#[test]
fn a_64_bit_bar_moved_half_by_half_while_decoding_ends_in_one_place_only() {
    let mut rig = rig(Shape::default());
    rig.start();
    let old = rig.bar(4);
    rig.config_write(0x24, 4, 0x81);
    let half = rig.bar(4);
    rig.config_write(0x20, 4, 0x4_0000);
    let new = rig.bar(4);
    assert_eq!(new, 0x81_0004_0000);
    for (address, value) in [(old, 0xff), (half, 0xff), (new, 15)] {
        assert_eq!(rig.load(address + field::STATUS, 1), value, "{address:#x}");
    }
}

#[test]
fn the_configuration_access_capability_reaches_the_modern_structures_with_all_bars_off() {
    let mut rig = rig(Shape::default());
    let (access, ..) = rig.structure(5).unwrap();
    let window = |rig: &mut Rig, offset: u64, width: u64, write: Option<u64>| {
        rig.config_write(access + 4, 1, 4);
        rig.config_write(access + 8, 4, offset);
        rig.config_write(access + 12, 4, width);
        match write {
            Some(value) => {
                rig.config_write(access + 16, 4, value);
                0
            }
            None => rig.config_read(access + 16, 4) & (u64::MAX >> (64 - 8 * width)),
        }
    };
    for (offset, width, value) in [
        (field::STATUS, 1, 1),
        (field::STATUS, 1, 3),
        (field::DRIVER_FEATURE_SELECT, 4, 1),
        (field::DRIVER_FEATURE, 4, 1),
        (field::STATUS, 1, 11),
        (field::SELECT, 2, 1),
        (field::SIZE, 2, 64),
        (field::DESC, 4, 0x8000),
        (field::ENABLE, 2, 1),
        (field::STATUS, 1, 15),
    ] {
        window(&mut rig, offset, width, Some(value));
        assert_eq!(window(&mut rig, offset, width, None), value, "{offset:#x}");
    }
    assert!(rig.runner.is_active());
    window(&mut rig, 0x3004, 2, Some(1));
    assert_eq!(rig.runner.kicks(), [1]);
    assert_eq!(window(&mut rig, 0x2004, 4, None), 0x0706_0504);

    *rig.runner.slow.lock().unwrap() = true;
    window(&mut rig, field::STATUS, 1, Some(0));
    let parked = rig.parked.take().expect("a reset through the window waits, too");
    rig.runner.stop();
    assert!(parked.is_complete());
}

#[test]
fn a_saved_device_continues_in_another_machine() {
    let mut one = rig(Shape::default());
    one.start();
    one.enable_msix();
    let mut two = rig(Shape::default());
    let queues = [(0, QueueState { next_avail: 7, next_used: 5, ..ring(0) }), (1, ring(1))];
    two.function.restore(&one.function.save(), &queues).unwrap();
    assert_eq!(*two.runner.starts.lock().unwrap(), [queues.to_vec()]);
    assert_eq!((two.status(), two.doorbells()), (15, one.doorbells()));
    two.runner.interrupt().queue_used(1);
    assert_eq!(two.sent(), [0, 0, 1]);
    assert_eq!(two.function.save(), one.function.save());
    assert!(two.function.restore(&one.function.save(), &queues).is_err(), "it is running");
}
