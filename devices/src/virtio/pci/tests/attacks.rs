//! What hostile guests have done to other transports, one test an attack.

use proptest::prelude::*;

use super::*;

#[test]
fn cve_2026_5747_common_configuration_rewritten_after_driver_ok_changes_no_queue() {
    let mut rig = rig(Shape::default());
    rig.start();
    let started = rig.runner.starts.lock().unwrap().clone();
    let before = rig.function.save();
    for queue in 0..2 {
        rig.set(field::SELECT, 2, queue);
        for (field, width) in [
            (field::DRIVER_FEATURE_SELECT, 4),
            (field::DRIVER_FEATURE, 4),
            (field::SIZE, 2),
            (field::ENABLE, 2),
            (field::DESC, 4),
            (field::DESC + 4, 4),
            (field::DRIVER, 8),
            (field::DEVICE, 8),
        ] {
            for value in [0, 1, 2, 3, 0x4000_0000, u64::MAX] {
                rig.set(field, width, value);
            }
        }
        assert_eq!(rig.get(field::DESC, 8), ring(queue).desc_table);
        assert_eq!(rig.get(field::DRIVER, 8), ring(queue).avail_ring);
        assert_eq!(rig.get(field::DEVICE, 8), ring(queue).used_ring);
        assert_eq!((rig.get(field::SIZE, 2), rig.get(field::ENABLE, 2)), (64, 1));
    }
    let base = rig.bar(0);
    rig.outp(base + 4, 4, 0);
    rig.outp(base + 8, 4, 0x1234);
    rig.outp(base + 8, 4, 0);
    rig.set(field::STATUS, 1, 4);
    rig.set(field::STATUS, 1, 15);
    rig.set(field::SELECT, 2, 0);
    rig.set(field::DRIVER_FEATURE_SELECT, 4, 1);
    assert_eq!(rig.get(field::DRIVER_FEATURE, 4), 1);
    assert_eq!(rig.status(), 15);
    assert_eq!(*rig.runner.starts.lock().unwrap(), started, "nothing started again");
    assert_ne!(before, super::rig(Shape::default()).function.save());
}

#[test]
fn cve_2026_5747_an_enabled_queue_is_frozen_before_driver_ok() {
    let mut rig = rig(Shape::default());
    rig.enable();
    rig.negotiate(VERSION_1);
    rig.set_up_queue(0, 1);
    rig.set(field::DESC, 8, 0xdead_0000);
    rig.set(field::SIZE, 2, 2);
    rig.set(field::ENABLE, 2, 0);
    rig.set(field::STATUS, 1, 15);
    assert_eq!(*rig.runner.starts.lock().unwrap(), [vec![(0, ring(0))]]);
}

#[test]
fn cloud_hypervisor_7918_queue_select_out_of_range_reads_size_0_and_reaches_no_vector() {
    let mut rig = rig(Shape::default());
    rig.start();
    rig.enable_msix();
    let before = rig.function.save();
    for select in [2, 3, 0x7fff, 0x8000, 0xffff] {
        rig.set(field::SELECT, 2, select);
        for (field, width) in [(field::SIZE, 2), (field::ENABLE, 2), (field::NOTIFY_OFF, 2), (field::DESC, 8)] {
            assert_eq!(rig.get(field, width), 0);
            rig.set(field, width, 1);
        }
        assert_eq!(rig.get(field::VECTOR, 2), 0xffff);
        rig.set(field::VECTOR, 2, 1);
        assert_eq!(rig.get(field::VECTOR, 2), 0xffff);
        let base = rig.bar(0);
        rig.outp(base + 8, 4, 1);
        rig.outp(base + 22, 2, 1);
        assert_eq!((rig.inp(base + 8, 4), rig.inp(base + 12, 2), rig.inp(base + 22, 2)), (0, 0, 0xffff));
        rig.runner.interrupt().queue_used(select as u16);
    }
    rig.set(field::SELECT, 2, 1);
    assert_eq!((rig.sent(), rig.function.save()), (vec![0, 0, 0], before));
}

#[test]
fn cve_2011_2512_a_queue_index_out_of_range_rings_nothing_at_any_width() {
    let mut rig = rig(Shape::default());
    rig.start();
    let (_, notify, _) = rig.structure(2).unwrap();
    let base = rig.bar(0);
    for value in [2, 0xff, 0xffff, 0x8000_0000, u64::MAX] {
        for width in [1, 2, 4] {
            if width != 2 || value as u16 > 1 {
                rig.outp(base + 16, width, value);
            }
        }
        for offset in [8, 1, 2, 3, 0xffc, 0x7f8] {
            for width in [1, 2, 4, 8] {
                rig.store(notify + offset, width, value);
            }
        }
    }
    assert!(rig.runner.kicks().is_empty());
    rig.store(notify, 2, 0xffff);
    assert_eq!(rig.runner.kicks(), [0], "the address says which queue, not the value");
}

#[test]
fn cve_2017_17381_queue_sizes_that_no_ring_has_are_ignored() {
    let mut rig = rig(Shape::default());
    rig.enable();
    rig.negotiate(VERSION_1);
    for size in [0, 3, 127, 256, 0x8000, 0xffff] {
        rig.set(field::SIZE, 2, size);
        assert_eq!(rig.get(field::SIZE, 2), 128, "{size}");
    }
    rig.set(field::SIZE, 2, 1);
    assert_eq!(rig.get(field::SIZE, 2), 1);
}

#[test]
fn cloud_hypervisor_7950_a_bar_moved_out_of_range_decodes_nowhere_and_comes_back() {
    let mut rig = rig(Shape::default());
    rig.start();
    let good = rig.bar(4);
    for (high, low) in [(0, 0), (0, 0x10_0000), (0, 0xfee0_0000), (0, ECAM), (0x90, 0), (0xffff_ffff, 0xffff_c000)] {
        rig.config_write(0x24, 4, high);
        rig.config_write(0x20, 4, low);
        assert!(rig.doorbells().is_empty(), "{high:#x} {low:#x}");
        let status = rig.load((high << 32 | low).wrapping_add(field::STATUS), 1);
        assert_ne!(status, 15, "{high:#x} {low:#x}");
    }
    assert_eq!(rig.load(ECAM, 4), 0x1237_8086, "the window it was moved onto still answers");
    for port in [0, 0xcf8, 0x60, 0xfffc, 0x1_0000] {
        rig.config_write(0x10, 4, port);
    }
    rig.outp(0xcf8, 4, 0x8000_0000);
    assert_eq!(rig.inp(0xcfc, 4), 0x1237_8086);
    rig.config_write(0x24, 4, good >> 32);
    rig.config_write(0x20, 4, good);
    assert_eq!((rig.status(), rig.doorbells().len()), (15, 2));
}

#[test]
fn cloud_hypervisor_8506_short_and_odd_accesses_to_every_register_are_pieces_or_nothing() {
    let mut rig = rig(Shape::default());
    rig.enable();
    rig.negotiate(VERSION_1);
    let common = rig.common();
    let image: Vec<u8> = (0..0x38).map(|offset| rig.load(common + offset, 1) as u8).collect();
    for offset in 0..0x38u64 {
        for width in [1usize, 2, 4, 8] {
            let mut bytes = [0; 8];
            for (index, byte) in bytes.iter_mut().enumerate().take(width) {
                *byte = image.get(offset as usize + index).copied().unwrap_or(0);
            }
            assert_eq!(rig.load(common + offset, width), u64::from_le_bytes(bytes), "{offset:#x}/{width}");
        }
    }
    let natural = |offset: u64, width: usize| {
        [(0, 4), (8, 4), (12, 4), (0x10, 2), (0x14, 1), (0x16, 2), (0x18, 2), (0x1a, 2), (0x1c, 2)]
            .contains(&(offset, width))
            || (0x20..0x38).contains(&offset)
                && (width == 4 && offset.is_multiple_of(4) || width == 8 && offset.is_multiple_of(8))
    };
    for offset in 0..0x38u64 {
        for width in [1usize, 2, 4, 8] {
            if !natural(offset, width) {
                rig.store(common + offset, width, u64::MAX);
            }
        }
    }
    let after: Vec<u8> = (0..0x38).map(|offset| rig.load(common + offset, 1) as u8).collect();
    assert_eq!(after, image);
}

#[test]
fn firecracker_5818_no_sequence_of_status_writes_skips_a_step() {
    for legacy in [false, true] {
        for (first, second) in
            (0..=255u64).flat_map(|first| [0, 1, 2, 3, 4, 7, 8, 11, 15, 64, 128].map(|next| (first, next)))
        {
            let mut rig = rig(Shape::default());
            rig.enable();
            rig.accept(VERSION_1);
            let status = if legacy { rig.bar(0) + 18 } else { rig.common() + field::STATUS };
            let mut last = 0;
            for value in [first, second] {
                if legacy {
                    rig.outp(status, 1, value)
                } else {
                    rig.store(status, 1, value)
                }
                let now = if legacy { rig.inp(status, 1) } else { rig.load(status, 1) };
                let sequence = format!("{first:#x} {second:#x} legacy {legacy}: {now:#x}");
                assert_eq!(now & 0x70, 0, "{sequence}");
                assert!(now & 2 == 0 || now & 1 != 0, "DRIVER without ACKNOWLEDGE: {sequence}");
                assert!(now & 8 == 0 || now & 2 != 0 && !legacy, "FEATURES_OK without DRIVER: {sequence}");
                assert!(now & 4 == 0 || now & 2 != 0 && (legacy || now & 8 != 0), "DRIVER_OK too early: {sequence}");
                assert!(value == 0 && now == 0 || now & last == last, "a bit was cleared: {sequence}");
                assert_eq!(rig.runner.is_active(), now & 4 != 0, "{sequence}");
                last = now;
            }
        }
    }
}

#[test]
fn the_configuration_access_capability_reaches_nothing_but_the_modern_bar() {
    let mut rig = rig(Shape::default());
    rig.start();
    let (access, ..) = rig.structure(5).unwrap();
    let before = rig.function.save();
    for (bar, offset, length) in [
        (0, 0x12, 1),
        (1, 12, 4),
        (2, 0, 4),
        (5, 0, 4),
        (255, 0, 4),
        (4, 0x14, 0),
        (4, 0x14, 3),
        (4, 0x14, 8),
        (4, 0x14, 0xffff_ffff),
        (4, 0x16, 4),
        (4, 0x3ffd, 4),
        (4, 0x4000, 4),
        (4, 0xffff_fffc, 4),
    ] {
        rig.config_write(access + 4, 1, bar);
        rig.config_write(access + 8, 4, offset);
        rig.config_write(access + 12, 4, length);
        rig.config_write(access + 16, 4, 0);
        rig.config_read(access + 16, 4);
        assert_eq!(rig.status(), 15, "{bar} {offset:#x} {length}");
    }
    rig.config_write(access + 4, 1, 0);
    rig.config_write(access + 8, 4, 0);
    rig.config_write(access + 12, 4, 0);
    assert_eq!(rig.function.save(), before);
}

#[test]
fn a_restored_state_that_does_not_fit_is_refused() {
    let mut other = rig(Shape { queues: vec![128, 128], ..Default::default() });
    other.start();
    let target = rig(Shape { queues: vec![32, 32], ..Default::default() });
    let error = target.function.restore(&other.function.save(), &[]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "saved state of a virtio transport does not fit this machine: a queue is larger than the device has it"
    );
    let one = rig(Shape { queues: vec![128], ..Default::default() });
    assert!(one.function.restore(&other.function.save(), &[]).is_err());
    let same = rig(Shape { queues: vec![128, 128], ..Default::default() });
    let stranger = [(2, ring(0))];
    assert!(same.function.restore(&other.function.save(), &stranger).is_err());
}

#[test]
fn a_function_whose_saved_state_is_refused_is_left_as_it_was() {
    let mut other = rig(Shape { queues: vec![128, 128], ..Default::default() });
    other.start();
    // Configuration space and MSI-X fit, the transport does not: nothing of it may be taken.
    let target = rig(Shape { queues: vec![32, 32], ..Default::default() });
    let before = target.function.save();
    assert!(target.function.restore(&other.function.save(), &[]).is_err());
    assert_eq!(target.function.save(), before);
}

#[derive(Clone, Debug)]
enum Op {
    Config(u64, usize, u64),
    Modern(u64, usize, u64),
    Legacy(u64, usize, u64),
    Table(u64, usize, u64),
    Memory(u64, usize, u64),
    Interrupt(u16),
    Stop,
    Dance,
}

fn op() -> impl Strategy<Value = Op> {
    let width = prop::sample::select(vec![1usize, 2, 4, 8]);
    // Small values are what registers mean something by.
    let value = prop_oneof![0u64..16, any::<u64>()];
    let access = |top: u64| (0..top, width.clone(), value.clone());
    prop_oneof![
        4 => access(0x100).prop_map(|(at, width, value)| Op::Config(at, width.min(4), value)),
        8 => access(0x40).prop_map(|(at, width, value)| Op::Modern(at, width, value)),
        2 => access(0x4000).prop_map(|(at, width, value)| Op::Modern(at, width, value)),
        4 => access(0x20).prop_map(|(at, width, value)| Op::Legacy(at, width.min(4), value)),
        2 => access(0x2000).prop_map(|(at, width, value)| Op::Table(at, width, value)),
        1 => (any::<u64>(), width.clone(), value.clone()).prop_map(|(at, width, value)| Op::Memory(at, width, value)),
        1 => any::<u16>().prop_map(Op::Interrupt),
        1 => Just(Op::Stop),
        1 => Just(Op::Dance),
    ]
}

proptest! {
    #[test]
    fn after_any_accesses_the_device_still_resets_and_starts(
        ops in prop::collection::vec(op(), 0..96),
        slow: bool,
        restore_at in 0usize..96,
        rings in prop::sample::select(vec![0, 1 << 34 | 1 << 35 | 1 << 40]),
    ) {
        let mut rig = rig(Shape { rings, ..Default::default() });
        *rig.runner.slow.lock().unwrap() = slow;
        let mut parked: Vec<Parked> = Vec::new();
        for (step, op) in ops.into_iter().enumerate() {
            match op {
                Op::Config(at, width, value) => {
                    rig.config_read(at, width);
                    rig.config_write(at, width, value);
                }
                Op::Modern(at, width, value) => {
                    let base = rig.bar(4);
                    rig.load(base.wrapping_add(at), width);
                    rig.store(base.wrapping_add(at), width, value);
                }
                Op::Legacy(at, width, value) => {
                    let base = rig.bar(0);
                    rig.inp(base + at, width);
                    rig.outp(base + at, width, value);
                }
                Op::Table(at, width, value) => {
                    let base = rig.bar(1);
                    rig.load(base + at, width);
                    rig.store(base + at, width, value);
                }
                Op::Memory(at, width, value) => {
                    rig.load(at, width);
                    rig.store(at, width, value);
                }
                Op::Interrupt(queue) => {
                    let interrupt = rig.function.interrupt();
                    interrupt.queue_used(queue % 4);
                    interrupt.config_changed();
                }
                Op::Stop if !rig.runner.stopping_queues.lock().unwrap().is_empty() => rig.runner.stop_queues(),
                Op::Stop if !rig.runner.stopping.lock().unwrap().is_empty() => rig.runner.stop(),
                Op::Stop => {}
                Op::Dance => {
                    rig.enable();
                    let base = rig.common();
                    let high = 1 | rings >> 32;
                    for (offset, width, value) in [
                        (0x14, 1, 3), (8, 4, 1), (0xc, 4, high), (0x14, 1, 11), (0x1c, 2, 1), (0x14, 1, 15), (0x3a, 2, 1),
                    ] {
                        rig.store(base + offset, width, value);
                    }
                }
            }
            parked.extend(rig.parked.take());
            if step == restore_at {
                let saved = rig.function.save();
                let other = super::rig(Shape { rings, ..Default::default() });
                let queues: Vec<_> = rig.runner.active.lock().unwrap().as_ref().map(|active| active.queues.clone()).unwrap_or_default();
                other.function.restore(&saved, &queues).unwrap();
            }
        }
        if !rig.runner.stopping.lock().unwrap().is_empty() {
            rig.runner.stop();
        }
        rig.runner.stop_queues();
        prop_assert!(parked.iter().all(Parked::is_complete), "an access waits for ever");
        *rig.runner.slow.lock().unwrap() = false;
        rig.config_write(0x10, 4, 0xc100);
        rig.config_write(0x14, 4, 0xe000_0000);
        rig.config_write(0x20, 4, 0xe100_0000);
        rig.config_write(0x24, 4, 0);
        rig.start();
        prop_assert_eq!(rig.status(), 15);
        prop_assert!(rig.runner.is_active());
        prop_assert_eq!(rig.doorbells().len(), 2);
    }
}
