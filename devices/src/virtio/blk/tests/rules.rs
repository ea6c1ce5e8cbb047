//! What virtio 1.3 §5.2 says of features, statuses and the cache, a rule a test.

use super::*;
use crate::virtio::queue::F_RING_PACKED;

const RO: u64 = 1 << 5;
const DISCARD: u64 = 1 << 13;
const WRITE_ZEROES: u64 = 1 << 14;
const ERASE: EraseLimits = EraseLimits { max_sectors: 8, max_segments: 1, alignment_sectors: 1 };
const IOERR: u8 = 1;
const UNSUPP: u8 = 2;

/// Every disk that configuration can make, as far as features go.
fn every_config() -> impl Iterator<Item = BlkConfig> {
    (0..32u8).map(|choice| {
        let chosen = |bit: u8| choice & 1 << bit != 0;
        BlkConfig {
            read_only: chosen(0),
            config_wce: chosen(1),
            queues: if chosen(2) { 4 } else { 1 },
            discard: chosen(3).then_some(ERASE),
            write_zeroes: chosen(4).then_some(ERASE),
            ..Default::default()
        }
    })
}

#[test]
fn flush_is_always_offered_and_so_with_it_the_choice_of_the_cache() {
    for config in every_config() {
        assert_ne!(BlkDevice::new(config.clone()).features() & FLUSH, 0, "{config:?}");
    }
}

#[test]
fn nothing_of_zones_lifetimes_secure_erasure_barriers_or_scsi_is_offered() {
    for config in every_config() {
        let device = BlkDevice::new(config);
        // BARRIER, SIZE_MAX, GEOMETRY, SCSI, LIFETIME, SECURE_ERASE, ZONED.
        for bit in [0, 1, 4, 7, 15, 16, 17] {
            assert_eq!(device.features() & 1 << bit, 0, "bit {bit}");
        }
    }
}

#[test]
fn padding_in_the_configuration_space_is_zero() {
    for config in every_config() {
        let device = BlkDevice::new(config);
        let mut space = [0xff; 60];
        device.read_config(0, &mut space);
        assert_eq!(space[33], 0, "unused0");
        assert_eq!(space[57..60], [0; 3], "unused1");
    }
}

#[test]
fn write_zeroes_may_unmap_exactly_where_write_zeroes_is_offered() {
    for config in every_config() {
        let offered = config.write_zeroes.is_some();
        let mut field = [0xff];
        BlkDevice::new(config).read_config(56, &mut field);
        assert_eq!(field, [u8::from(offered)]);
    }
}

#[test]
fn requests_about_zones_are_unsupported() {
    let mut rig = rig(BlkConfig::default(), MODERN | FLUSH);
    for kind in [15, 16, 18, 20, 22, 24, 26] {
        assert_eq!(rig.status(&[header(kind, 0), Buf::Write(512), Buf::Write(1)]), UNSUPP, "{kind}");
        assert_eq!(rig.status(&[header(kind, 0), Buf::Read(vec![0; 512]), Buf::Write(1)]), UNSUPP, "{kind}");
    }
    assert_eq!(rig.disk.take_log(), []);
}

#[test]
fn unknown_flags_in_any_request_that_erases_are_unsupported() {
    let config = BlkConfig { discard: Some(ERASE), write_zeroes: Some(ERASE), ..Default::default() };
    let mut rig = rig(config, MODERN | FLUSH | DISCARD | WRITE_ZEROES);
    for bit in 0..32 {
        let flags = 1 << bit;
        // Secure erasure, which is not offered, is so with any flags.
        for kind in [11, 14] {
            let status = rig.status(&[header(kind, 0), segment(0, 1, flags), Buf::Write(1)]);
            assert_eq!(status, UNSUPP, "type {kind}, flags {flags:#x}");
        }
        let expected = if flags == 1 { 0 } else { UNSUPP };
        assert_eq!(rig.status(&[header(13, 0), segment(0, 1, flags), Buf::Write(1)]), expected, "{flags:#x}");
    }
    assert_eq!(rig.disk.take_log().len(), 1);
}

#[test]
fn sectors_of_zeroes_read_as_zeroes_whether_or_not_they_may_be_unmapped() {
    for unmap in [0, 1] {
        let config = BlkConfig { write_zeroes: Some(ERASE), ..Default::default() };
        let mut rig = rig(config, MODERN | FLUSH | WRITE_ZEROES);
        rig.disk.fill(0, &[5; 2048]);
        assert_eq!(rig.status(&[header(13, 0), segment(1, 2, unmap), Buf::Write(1)]), 0);
        let (posted, status, _) = rig.request(&[header(0, 0), Buf::Write(2048), Buf::Write(1)]);
        assert_eq!(status, 0);
        let read = rig.driver.read(posted.buffers[1]);
        assert_eq!(
            (&read[..512], &read[512..1536], &read[1536..]),
            ([5; 512].as_slice(), [0; 1024].as_slice(), [5; 512].as_slice())
        );
    }
}

#[test]
fn a_read_only_disk_answers_writes_with_an_error_though_the_driver_did_not_accept_the_feature() {
    for accepted in [0, RO] {
        let mut rig = rig(BlkConfig { read_only: true, ..Default::default() }, MODERN | FLUSH | accepted);
        rig.disk.fill(0, &[5; 512]);
        assert_eq!(rig.status(&[header(1, 0), Buf::Read(vec![1; 512]), Buf::Write(1)]), IOERR);
        assert_eq!(rig.disk.bytes()[..512], [5; 512]);
        assert_eq!(rig.disk.take_log(), []);
    }
}

#[test]
fn a_flush_is_one_whatever_sector_and_data_come_with_it() {
    let mut rig = rig(BlkConfig::default(), MODERN | FLUSH);
    rig.disk.fill(0, &[5; 512]);
    assert_eq!(rig.status(&[header(4, 7), Buf::Write(1)]), 0);
    assert_eq!(rig.status(&[header(4, u64::MAX), Buf::Read(vec![1; 512]), Buf::Write(1)]), 0);
    assert_eq!(rig.disk.take_log(), [BlkOp::Flush; 2]);
    assert_eq!(rig.disk.bytes()[..512], [5; 512]);
}

#[test]
fn a_write_takes_nothing_out_of_a_buffer_the_driver_marked_writable() {
    for format in [0, F_RING_PACKED] {
        let mut rig = rig(BlkConfig::default(), MODERN | FLUSH | format);
        let before = rig.disk.bytes();
        rig.request(&[header(1, 0), Buf::Write(512), Buf::Write(1)]);
        // The header itself.
        rig.request(&[Buf::Write(16), Buf::Write(512), Buf::Write(1)]);
        assert_eq!((rig.disk.take_log(), rig.disk.bytes()), (vec![], before));
    }
}

#[test]
fn a_read_puts_nothing_into_a_buffer_the_driver_marked_readable() {
    for format in [0, F_RING_PACKED] {
        let mut rig = rig(BlkConfig::default(), MODERN | FLUSH | format);
        rig.disk.fill(0, &[5; 1024]);
        let (posted, status, len) =
            rig.request(&[header(0, 0), Buf::Read(vec![0xaa; 512]), Buf::Write(512), Buf::Write(1)]);
        assert_eq!((status, len), (0, 513));
        assert_eq!(rig.driver.read(posted.buffers[1]), [0xaa; 512]);
        assert_eq!(rig.driver.read(posted.buffers[2]), [5; 512]);
    }
}

#[test]
fn a_legacy_request_may_be_framed_in_any_way() {
    let mut rig = rig(BlkConfig::default(), FLUSH);
    rig.disk.fill(512, &[7; 512]);
    let Buf::Read(head) = header(0, 1) else { unreachable!() };
    for cut in [1, 8, 15] {
        let (a, b) = head.split_at(cut);
        let bufs = [Buf::Read(a.into()), Buf::Read(b.into()), Buf::Write(500), Buf::Write(13)];
        let (posted, _, len) = rig.request(&bufs);
        assert_eq!((len, rig.driver.read(posted.buffers[2])), (513, vec![7; 500]));
        assert_eq!(rig.driver.read(posted.buffers[3])[11..], [7, 0], "the last byte is the status");
    }
}

#[test]
fn a_write_is_stable_when_it_completes_while_the_cache_is_switched_off() {
    let mut rig = rig(BlkConfig { config_wce: true, ..Default::default() }, MODERN | FLUSH | CONFIG_WCE);
    for (writeback, durable) in [(1, false), (0, true), (1, false)] {
        rig.device.write_config(32, &[writeback]);
        assert_eq!(rig.status(&[header(1, 0), Buf::Read(vec![1; 512]), Buf::Write(1)]), 0);
        assert_eq!(rig.disk.take_log(), [BlkOp::Write { durable }]);
    }
}

#[test]
fn a_flush_completes_after_the_disk_has_flushed_what_was_completed_before() {
    let mut rig = rig(BlkConfig::default(), MODERN | FLUSH);
    assert_eq!(rig.status(&[header(1, 0), Buf::Read(vec![1; 512]), Buf::Write(1)]), 0);
    rig.disk.hold(true);
    let flush = rig.driver.post(&[header(4, 0), Buf::Write(1)]);
    rig.driver.publish();
    rig.step();
    assert_eq!(rig.disk.take_log(), [BlkOp::Write { durable: false }, BlkOp::Flush]);
    assert_eq!((rig.driver.used(), rig.driver.read(flush.buffers[1])), (vec![], vec![0xee]));
    assert!(rig.disk.complete(0));
    rig.step();
    assert_eq!(rig.driver.used(), [Used { head: flush.head.into(), len: 1 }]);
}

#[test]
fn a_kick_without_a_new_buffer_does_nothing() {
    for format in [0, F_RING_PACKED] {
        let mut rig = rig(BlkConfig::default(), MODERN | FLUSH | format);
        let before = rig.counters.snapshot();
        for _ in 0..10 {
            rig.step();
        }
        assert_eq!((rig.driver.used(), rig.interrupt.take_used()), (vec![], vec![]));
        assert_eq!(rig.counters.snapshot(), before);
        assert_eq!(rig.status(&[header(4, 0), Buf::Write(1)]), 0);
        rig.interrupt.take_used();
        rig.step();
        assert!(rig.interrupt.take_used().is_empty());
    }
}
