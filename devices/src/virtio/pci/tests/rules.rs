//! What virtio 1.3 §4.1 says of capabilities, features, resets and vectors, a rule a test.

use proptest::prelude::*;

use super::*;
use crate::pci::PciFunction;
use crate::virtio::F_RING_RESET;
use crate::virtio::queue::{F_IN_ORDER, F_RING_PACKED};

const NO_VECTOR: u64 = 0xffff;
const KINDS: [u64; 5] = [1, 2, 3, 4, 5];

#[test]
fn every_type_has_the_ids_of_its_kind() {
    for (device_type, transitional) in [(1, 0x1000), (2, 0x1001), (3, 0x1003), (4, 0x1005)] {
        let mut old = rig(Shape { device_type, ..Default::default() });
        assert_eq!((old.config_read(0, 2), old.config_read(2, 2)), (0x1af4, transitional));
        assert_eq!((old.config_read(8, 1), old.config_read(0x2e, 2)), (0, device_type.into()), "revision, subsystem");
        let mut new = rig(Shape { device_type, interfaces: Interfaces::Modern, ..Default::default() });
        assert_eq!((new.config_read(0, 2), new.config_read(2, 2)), (0x1af4, 0x1040 + u64::from(device_type)));
        assert!(new.config_read(8, 1) >= 1 && new.config_read(0x2e, 2) >= 0x40);
    }
}

#[test]
fn every_structure_is_there_aligned_and_inside_its_bar() {
    for queues in [1, 2, 3, 17, 64, 1024] {
        let mut rig = rig(Shape { queues: vec![8; queues], ..Default::default() });
        let bars = rig.size_bars();
        for kind in KINDS {
            let (at, ..) = rig.structure(kind).unwrap_or_else(|| panic!("no structure of kind {kind}"));
            let (bar, offset, length) =
                (rig.config_read(at + 4, 1), rig.config_read(at + 8, 4), rig.config_read(at + 12, 4));
            // Kind and length: the notification and the access capability have four bytes more.
            assert_eq!(rig.config_read(at + 2, 1), if kind == 2 || kind == 5 { 20 } else { 16 });
            assert!(offset.is_multiple_of(4), "kind {kind} at {offset:#x}");
            if kind != 5 {
                let (.., size) = bars.iter().find(|found| found.0 == bar).expect("a BAR that is there");
                assert!(length > 0 && offset + length <= *size, "kind {kind}, {queues} queues");
            }
        }
    }
}

#[test]
fn the_notification_structure_reaches_the_doorbell_of_every_queue() {
    for queues in [1, 2, 3, 17, 64] {
        let mut rig = rig(Shape { queues: vec![8; queues], ..Default::default() });
        rig.start();
        let (at, notify, length) = rig.structure(2).unwrap();
        let multiplier = rig.config_read(at + 16, 4);
        assert!(multiplier.is_power_of_two() && multiplier.is_multiple_of(2));
        for queue in 0..queues as u64 {
            rig.set(field::SELECT, 2, queue);
            let offset = rig.get(field::NOTIFY_OFF, 2) * multiplier;
            assert!(length >= offset + 2);
            rig.store(notify + offset, 2, queue);
            assert_eq!(rig.runner.kicks(), [queue as u16]);
        }
    }
}

#[test]
fn features_of_queues_and_notifications_that_are_not_here_are_never_offered() {
    let mut rig = rig(Shape { rings: u64::MAX, ..Default::default() });
    rig.enable();
    // NOTIFICATION_DATA, NOTIF_CONFIG_DATA, SR_IOV, ADMIN_VQ, and beyond what 1.3 defines.
    for bit in [38, 39, 37, 41].into_iter().chain(42..50) {
        assert_eq!(rig.device_features() & 1 << bit, 0, "bit {bit}");
    }
    // No shared memory region and no vendor data.
    let kinds: Vec<_> = rig.capabilities(9).into_iter().map(|at| rig.config_read(at + 3, 1)).collect();
    assert!(kinds.iter().all(|kind| KINDS.contains(kind)), "{kinds:?}");
    // Where the admin queues' registers would be, the structure has ended.
    assert_eq!(rig.structure(1).unwrap().2, 0x3c);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn any_subset_of_what_is_offered_is_accepted_and_accepted_again_after_a_reset(choice: u64) {
        let mut rig = rig(Shape { rings: F_RING_PACKED | F_IN_ORDER | F_RING_RESET, ..Default::default() });
        rig.enable();
        let features = rig.device_features() & choice | VERSION_1;
        for _ in 0..3 {
            prop_assert!(rig.negotiate(features));
            for select in 0..2 {
                rig.set(field::DRIVER_FEATURE_SELECT, 4, select);
                prop_assert_eq!(rig.get(field::DRIVER_FEATURE, 4), features >> (32 * select) & 0xffff_ffff);
            }
            rig.set(field::STATUS, 1, 15);
            prop_assert_eq!(rig.runner.active.lock().unwrap().as_ref().unwrap().features, features);
        }
        // And with one bit that is not offered, it is not.
        for bit in (0..64).filter(|bit| rig_features() & 1 << bit == 0 && ![34, 35, 40].contains(bit)) {
            prop_assert!(!rig.negotiate(features | 1 << bit), "bit {}", bit);
        }
    }
}

#[test]
fn before_driver_ok_no_kick_reaches_a_queue_and_no_interrupt_the_driver() {
    let mut rig = rig(Shape::default());
    rig.enable();
    rig.enable_msix();
    let (_, notify, _) = rig.structure(2).unwrap();
    let interrupt = rig.function.interrupt();
    let kick = |rig: &mut Rig| {
        // The runner fails the test where it is kicked while stopped.
        rig.store(notify, 2, 0);
        rig.store(notify + 4, 2, 1);
        interrupt.config_changed();
        assert_eq!((rig.sent(), rig.runner.starts.lock().unwrap().len()), (vec![0, 0, 0], 0));
    };
    kick(&mut rig);
    rig.set(field::STATUS, 1, 3);
    kick(&mut rig);
    assert!(rig.negotiate(VERSION_1));
    rig.set(field::CONFIG_VECTOR, 2, 0);
    for queue in 0..2 {
        rig.set_up_queue(queue, queue + 1);
        kick(&mut rig);
    }
    rig.set(field::STATUS, 1, 15);
    rig.store(notify, 2, 0);
    assert_eq!(rig.runner.kicks(), [0]);
}

#[test]
fn after_a_reset_the_device_is_silent_until_it_is_set_up_again() {
    let mut rig = rig(Shape::default());
    rig.start();
    rig.enable_msix();
    let interrupt = rig.runner.interrupt();
    let (_, notify, _) = rig.structure(2).unwrap();
    rig.set(field::STATUS, 1, 0);
    assert_eq!(rig.status(), 0);
    interrupt.queue_used(0);
    interrupt.config_changed();
    rig.store(notify, 2, 0);
    assert_eq!((rig.sent(), rig.line(), rig.runner.is_active()), (vec![0, 0, 0], false, false));
}

#[test]
fn a_reset_leaves_no_queue_enabled_resetting_or_mapped_to_a_vector() {
    let rings = F_RING_RESET;
    for slow in [false, true] {
        let mut rig = rig(Shape { rings, ..Default::default() });
        rig.enable();
        assert!(rig.negotiate(VERSION_1 | rings));
        for queue in 0..2 {
            rig.set_up_queue(queue, queue + 1);
        }
        rig.set(field::CONFIG_VECTOR, 2, 0);
        rig.set(field::STATUS, 1, 15);
        *rig.runner.slow.lock().unwrap() = slow;
        rig.set(field::SELECT, 2, 1);
        rig.set(field::RESET, 2, 1);
        assert_eq!(rig.get(field::RESET, 2), u64::from(slow));
        rig.set(field::STATUS, 1, 0);
        rig.runner.stop();
        assert_eq!((rig.status(), rig.get(field::CONFIG_VECTOR, 2)), (0, NO_VECTOR));
        for queue in 0..2 {
            rig.set(field::SELECT, 2, queue);
            let registers = (rig.get(field::ENABLE, 2), rig.get(field::RESET, 2), rig.get(field::VECTOR, 2));
            assert_eq!(registers, (0, 0, NO_VECTOR), "queue {queue}, slow {slow}");
        }
    }
}

#[test]
fn a_queue_that_was_reset_reads_no_reset_once_it_is_enabled_again() {
    let rings = F_RING_RESET;
    let mut rig = rig(Shape { rings, ..Default::default() });
    rig.enable();
    assert!(rig.negotiate(VERSION_1 | rings));
    rig.set_up_queue(0, 1);
    assert_eq!((rig.get(field::RESET, 2), rig.get(field::ENABLE, 2)), (0, 1));
    rig.set(field::STATUS, 1, 15);
    for size in [8, 128] {
        rig.set(field::RESET, 2, 1);
        assert_eq!((rig.get(field::RESET, 2), rig.get(field::ENABLE, 2)), (0, 0));
        rig.set(field::SIZE, 2, size);
        rig.set(field::ENABLE, 2, 1);
        assert_eq!((rig.get(field::RESET, 2), rig.get(field::ENABLE, 2)), (0, 1));
        let started = rig.runner.starts.lock().unwrap().last().unwrap()[0].1.size;
        assert_eq!(u64::from(started), size, "what the driver changed is what is used");
    }
}

#[test]
fn any_event_can_be_mapped_to_any_vector_and_to_none() {
    let mut rig = rig(Shape::default());
    rig.start();
    rig.enable_msix();
    let interrupt = rig.runner.interrupt();
    for config in [0, 1, 2, NO_VECTOR] {
        for first in [0, 1, 2, NO_VECTOR] {
            for second in [0, 1, 2, NO_VECTOR] {
                rig.set(field::CONFIG_VECTOR, 2, config);
                for (queue, vector) in [(0, first), (1, second)] {
                    rig.set(field::SELECT, 2, queue);
                    rig.set(field::VECTOR, 2, vector);
                    assert_eq!(rig.get(field::VECTOR, 2), vector);
                }
                assert_eq!(rig.get(field::CONFIG_VECTOR, 2), config);
                let before = rig.sent();
                interrupt.config_changed();
                interrupt.queue_used(0);
                interrupt.queue_used(1);
                let expected: Vec<u32> = (0..3u64)
                    .zip(before)
                    .map(|(vector, sent)| {
                        sent + [config, first, second].map(|it| u32::from(it == vector)).iter().sum::<u32>()
                    })
                    .collect();
                assert_eq!((rig.sent(), rig.line()), (expected, false), "{config:#x} {first:#x} {second:#x}");
            }
        }
    }
}

#[test]
fn the_table_size_is_the_number_of_vectors() {
    for vectors in [1, 2, 3, 64] {
        let mut rig = rig(Shape { vectors, ..Default::default() });
        let at = rig.capabilities(0x11)[0];
        assert_eq!(rig.config_read(at + 2, 2) & 0x7ff, vectors as u64 - 1);
    }
}

#[test]
fn the_interrupt_status_is_set_before_the_interrupt_is_sent() {
    for msix in [false, true] {
        let mut rig = rig(Shape::default());
        rig.start();
        if msix {
            rig.enable_msix();
        }
        let function = rig.function.clone();
        let seen: Arc<Mutex<Vec<bool>>> = Arc::default();
        let look: Arc<dyn Fn() + Send + Sync> = {
            let seen = seen.clone();
            Arc::new(move || {
                // The PCI status register shows whether the ISR status is set, without clearing it.
                let mut status = [0; 2];
                function.read_config(6, &mut status);
                seen.lock().unwrap().push(status[0] & 8 != 0);
            })
        };
        *rig.line.1.lock().unwrap() = Some(look.clone());
        rig.msis.iter().for_each(|msi| *msi.1.lock().unwrap() = Some(look.clone()));
        let (_, isr, _) = rig.structure(3).unwrap();
        rig.runner.interrupt().config_changed();
        assert_eq!((*seen.lock().unwrap()).clone(), [true], "configuration change, MSI-X {msix}");
        assert_eq!(rig.load(isr, 1), 2);
        seen.lock().unwrap().clear();
        rig.runner.interrupt().queue_used(0);
        assert_eq!((*seen.lock().unwrap()).clone(), [!msix], "used buffers, MSI-X {msix}");
        assert_eq!(rig.load(isr, 1), u64::from(!msix));
        *rig.line.1.lock().unwrap() = None;
        rig.msis.iter().for_each(|msi| *msi.1.lock().unwrap() = None);
    }
}

#[test]
fn each_half_of_a_64_bit_device_field_is_read_on_its_own_and_before_any_feature_is_settled() {
    let mut rig = rig(Shape::default());
    rig.enable();
    let (_, config, len) = rig.structure(4).unwrap();
    assert_eq!(rig.status(), 0);
    for field in (0..len - 4).step_by(8) {
        let byte = |at: u64| at & 0xff;
        let word = |at: u64| byte(at) | byte(at + 1) << 8 | byte(at + 2) << 16 | byte(at + 3) << 24;
        assert_eq!(rig.load(config + field + 4, 4), word(field + 4));
        assert_eq!(rig.load(config + field, 4), word(field));
    }
    for at in 0..len {
        assert_eq!(rig.load(config + at, 1), at);
    }
}

#[test]
fn device_configuration_through_ports_is_the_same_by_any_width_and_follows_the_header() {
    let mut rig = rig(Shape { config_len: 24, ..Default::default() });
    rig.enable();
    let base = rig.bar(0) + 20;
    let (_, config, _) = rig.structure(4).unwrap();
    for width in [1, 2, 4] {
        for at in 0..=(24 - width as u64) {
            assert_eq!(rig.inp(base + at, width), rig.load(config + at, width), "{at}/{width}");
        }
    }
    assert_eq!(rig.bar(0) & 3, 0);
    assert_eq!(rig.config_read(0x10, 1) & 1, 1, "BAR 0 is the first I/O region");
}

#[test]
fn no_capability_can_be_written_but_the_window_of_the_configuration_access_and_the_control_of_msix() {
    let mut rig = rig(Shape::default());
    let (access, ..) = rig.structure(5).unwrap();
    let msix = rig.capabilities(0x11)[0];
    let writable = |at: u64| at == access + 4 || (access + 8..access + 20).contains(&at) || at == msix + 3;
    for at in (0x40..0x100).filter(|at| !writable(*at)) {
        let before = rig.config_read(at, 1);
        for value in [0, 0xff] {
            rig.config_write(at, 1, value);
            assert_eq!(rig.config_read(at, 1), before, "{at:#x}");
        }
    }
}

#[test]
fn a_packed_queue_may_have_any_size_but_none() {
    let mut rig = rig(Shape { rings: F_RING_PACKED, ..Default::default() });
    rig.enable();
    assert!(rig.negotiate(VERSION_1 | F_RING_PACKED));
    for (size, reads) in [(100, 100), (0, 100), (129, 100), (1, 1), (0, 1), (128, 128)] {
        rig.set(field::SIZE, 2, size);
        assert_eq!(rig.get(field::SIZE, 2), reads, "{size}");
    }
}

#[test]
fn fields_that_are_the_devices_cannot_be_written() {
    let mut rig = rig(Shape::default());
    rig.start();
    rig.set(field::SELECT, 2, 1);
    let image = |rig: &mut Rig| (0..0x3c).map(|at| rig.get(at, 1)).collect::<Vec<_>>();
    let before = image(&mut rig);
    let config_data = 0x38;
    for (field, width) in [
        (field::DEVICE_FEATURE, 4),
        (field::NUM_QUEUES, 2),
        (field::GENERATION, 1),
        (field::NOTIFY_OFF, 2),
        (config_data, 2),
    ] {
        for value in [0, 1, 2, 3, 4, 8, 64, 0x80, 0xffff_ffff] {
            rig.set(field, width, value);
            assert_eq!(image(&mut rig), before, "{field:#x} = {value:#x}");
        }
    }
}
