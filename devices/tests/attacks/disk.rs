//! Attacks on disks.

use devices::virtio::VirtioDevice;
use devices::virtio::testing::Buf;

use super::rig::{DISK_BYTES, disk, formats, header, segment};

const IN: u32 = 0;
const OUT: u32 = 1;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;
const SECTORS: u64 = DISK_BYTES as u64 / 512;

#[test]
fn cve_2023_3180_lengths_that_must_agree_and_do_not_are_an_error_of_the_request() {
    for features in formats() {
        let mut rig = disk(features);
        let before = rig.disk.bytes();
        for len in [1, 511, 513, 1023] {
            assert_eq!(rig.request(&[header(IN, 0), Buf::Write(len), Buf::Write(1)]).0, 1);
            assert_eq!(rig.request(&[header(OUT, 0), Buf::Read(vec![1; len as usize]), Buf::Write(1)]).0, 1);
        }
        for (kind, len) in [(DISCARD, 0), (DISCARD, 15), (WRITE_ZEROES, 17), (WRITE_ZEROES, 32)] {
            assert_eq!(rig.request(&[header(kind, 0), Buf::Read(vec![0; len]), Buf::Write(1)]).0, 1);
        }
        assert!(rig.disk.take_log().is_empty());
        assert_eq!(rig.disk.bytes(), before);
        rig.revive();
    }
}

#[test]
fn cloud_hypervisor_8388_sector_ranges_that_overflow_touch_nothing() {
    for features in formats() {
        let mut rig = disk(features);
        let before = rig.disk.bytes();
        for (sector, sectors) in [
            (u64::MAX, 1),
            (u64::MAX, u32::MAX),
            (u64::MAX / 512, 1),
            (u64::MAX / 512 + 1, 1),
            (1 << 55, 1),
            (0, u32::MAX),
            (SECTORS, 1),
            (SECTORS - 1, 2),
            (0, SECTORS as u32 + 1),
        ] {
            for kind in [DISCARD, WRITE_ZEROES] {
                assert_eq!(rig.request(&[header(kind, 0), segment(sector, sectors, 0), Buf::Write(1)]).0, 1);
            }
            if sectors <= 2 {
                let data = vec![1; 512 * sectors as usize];
                assert_eq!(rig.request(&[header(OUT, sector), Buf::Read(data), Buf::Write(1)]).0, 1);
                assert_eq!(rig.request(&[header(IN, sector), Buf::Write(512 * sectors), Buf::Write(1)]).0, 1);
            }
        }
        assert!(rig.disk.take_log().is_empty());
        assert_eq!(rig.disk.bytes(), before);
        rig.revive();
    }
}

#[test]
fn bhyve_the_status_is_the_last_byte_there_is_not_the_last_descriptors() {
    for features in formats() {
        let mut rig = disk(features);
        let posted = rig.driver.post(&[header(IN, 0), Buf::Write(512), Buf::Write(1), Buf::Write(0), Buf::Write(0)]);
        rig.driver.publish();
        rig.step();
        assert_eq!(rig.driver.used().len(), 1);
        assert_eq!(rig.driver.read(posted.buffers[2]), [0]);
        // All of it empty: no byte to answer with, but the buffer comes back.
        rig.driver.post(&[header(IN, 0), Buf::Write(0), Buf::Write(0)]);
        rig.driver.publish();
        rig.step();
        assert_eq!((rig.driver.used().len(), rig.disk.take_log().len()), (1, 1));
        rig.revive();
    }
}

#[test]
fn bhyve_the_length_of_an_ident_request_is_not_the_size_of_an_allocation() {
    for features in formats() {
        let mut rig = disk(features);
        for len in [1u32, 19, 20, 21, 0x4_0000] {
            let (status, used) = rig.request(&[header(GET_ID, 0), Buf::Write(len), Buf::Write(1)]);
            assert_eq!((status, used), (0, if len <= 20 { len + 1 } else { 20 }), "{len}");
        }
        rig.revive();
    }
}

#[test]
fn cve_2024_7730_configuration_writes_of_any_place_and_length_change_nothing_they_may_not() {
    let rig = disk(formats()[0]);
    let read = |rig: &super::rig::Disk| {
        let mut all = [0; 128];
        rig.device.read_config(0, &mut all);
        all
    };
    let before = read(&rig);
    for offset in (0..128u32).chain([0xfff, 0x1000, 0x7fff_ffff, u32::MAX - 3, u32::MAX]) {
        for len in 0..=8 {
            rig.device.write_config(offset, &[0xff; 8][..len]);
            let mut data = [0xee; 8];
            rig.device.read_config(offset, &mut data[..len]);
        }
    }
    assert_eq!(read(&rig), before);
}

#[test]
fn ghsa_jmr4_g2hv_mjj6_an_image_header_written_by_the_guest_is_data() {
    for features in formats() {
        let mut rig = disk(features);
        // qcow2 with a backing file.
        let mut sector = vec![0; 512];
        sector[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
        sector[8..20].copy_from_slice(&[0, 0, 0, 0, 0, 0, 0, 0x70, 0, 0, 0, 11]);
        sector[0x70..0x7b].copy_from_slice(b"/etc/shadow");
        assert_eq!(rig.request(&[header(OUT, 0), Buf::Read(sector.clone()), Buf::Write(1)]).0, 0);
        rig.stop(true);
        rig.start();
        let posted = rig.driver.post(&[header(IN, 0), Buf::Write(512), Buf::Write(1)]);
        rig.driver.publish();
        rig.step();
        assert_eq!(rig.driver.used().len(), 1);
        assert_eq!(rig.driver.read(posted.buffers[1]), sector);
        let mut capacity = [0; 8];
        rig.device.read_config(0, &mut capacity);
        assert_eq!(u64::from_le_bytes(capacity), SECTORS);
    }
}
