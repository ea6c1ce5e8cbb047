//! What the disk is told of its write cache.

use super::*;

const WRITEBACK: u32 = 32;

fn switchable() -> BlkConfig {
    BlkConfig { config_wce: true, ..Default::default() }
}

fn write(rig: &mut Rig) {
    assert_eq!(rig.status(&[header(1, 0), Buf::Read(vec![1; 512]), Buf::Write(1)]), 0);
}

#[test]
fn the_cache_is_on_only_for_a_driver_that_can_flush_and_wants_it() {
    for (features, written, on) in [
        (0, None, false),
        (CONFIG_WCE, None, false),
        (FLUSH, None, true),
        (FLUSH | CONFIG_WCE, None, true),
        (FLUSH | CONFIG_WCE, Some(0), false),
        (FLUSH | CONFIG_WCE, Some(1), true),
        // Without the feature the field says nothing.
        (FLUSH, Some(0), true),
    ] {
        let mut rig = rig(switchable(), MODERN | features);
        rig.device.features_accepted(MODERN | features);
        if let Some(byte) = written {
            rig.device.write_config(WRITEBACK, &[byte]);
        }
        write(&mut rig);
        assert_eq!(rig.disk.take_cache_log(), [on], "{features:#x} {written:?}");
        assert_eq!(rig.disk.take_log(), [BlkOp::Write { durable: !on }], "{features:#x} {written:?}");
    }
}

#[test]
fn a_switch_reaches_the_disk_before_the_next_request_and_once() {
    let mut rig = rig(switchable(), MODERN | FLUSH | CONFIG_WCE);
    write(&mut rig);
    for byte in [0, 0, 1, 0] {
        rig.device.write_config(WRITEBACK, &[byte]);
        write(&mut rig);
        write(&mut rig);
    }
    assert_eq!(rig.disk.take_cache_log(), [true, false, true, false]);
    let durable: Vec<_> = [false, true, true, true, true, false, false, true, true].into();
    assert_eq!(rig.disk.take_log(), durable.iter().map(|&durable| BlkOp::Write { durable }).collect::<Vec<_>>()[..]);
}

#[test]
fn a_reset_switches_the_cache_off_when_nothing_is_in_flight_and_a_pause_leaves_it() {
    let mut rig = rig(switchable(), MODERN | FLUSH);
    rig.disk.hold(true);
    rig.driver.post(&[header(1, 0), Buf::Read(vec![1; 512]), Buf::Write(1)]);
    rig.driver.publish();
    rig.step();
    assert_eq!(rig.disk.take_cache_log(), [true]);
    rig.worker.begin_stop(&rig.mem);
    assert!(!rig.worker.poll_stopped(&rig.mem, false));
    rig.disk.complete(0);
    assert!(rig.worker.poll_stopped(&rig.mem, false));
    assert_eq!(rig.disk.take_cache_log(), [false; 0], "a pause");

    rig.start(MODERN | FLUSH);
    rig.disk.hold(false);
    write(&mut rig);
    rig.worker.begin_stop(&rig.mem);
    assert!(rig.worker.poll_stopped(&rig.mem, true));
    assert_eq!(rig.disk.take_cache_log(), [false]);
}

#[test]
fn a_reset_during_a_pause_switches_the_cache_off() {
    let mut rig = rig(switchable(), MODERN | FLUSH);
    write(&mut rig);
    rig.worker.begin_stop(&rig.mem);
    assert!(rig.worker.poll_stopped(&rig.mem, false));
    rig.worker.take_state(0);
    assert_eq!(rig.disk.take_cache_log(), [true]);
    rig.worker.forget(0);
    assert_eq!(rig.disk.take_cache_log(), [false]);
}
