//! Attacks on consoles.

use devices::virtio::VirtioDevice;
use devices::virtio::testing::Buf;

use super::rig::{SIZE, console, formats};

#[test]
fn cve_2020_27174_output_nobody_reads_stays_in_the_ring() {
    for features in formats() {
        let mut rig = console(features);
        for _ in 0..SIZE {
            rig.tx.post(&[Buf::Read(vec![b'x'; 0x1_0000])]);
        }
        rig.tx.publish();
        for _ in 0..50 {
            rig.step();
        }
        assert!(rig.tx.used().len() <= 1, "what the terminal does not take is not taken from the driver");
        assert_eq!(rig.terminal.0.lock().unwrap().shown, 0);
        rig.terminal.0.lock().unwrap().room = usize::MAX;
        rig.step();
        assert_eq!(rig.terminal.0.lock().unwrap().shown, usize::from(SIZE) * 0x1_0000);
        rig.revive();
    }
}

#[test]
fn cve_2023_3494_no_text_of_the_guest_is_longer_than_its_place() {
    // The pattern is a string copied into a fixed buffer. Here: output in pieces of every size around the chunk.
    for features in formats() {
        let mut rig = console(features);
        rig.terminal.0.lock().unwrap().room = usize::MAX;
        let mut total = 0;
        for len in [1, 4095, 4096, 4097, 8191, 8193, 65535, 65537] {
            rig.tx.post(&[Buf::Read(vec![b'y'; len])]);
            rig.tx.publish();
            rig.step();
            total += len;
            assert_eq!((rig.tx.used().len(), rig.terminal.0.lock().unwrap().shown), (1, total));
        }
        rig.revive();
    }
}

#[test]
fn cve_2024_7730_console_configuration_cannot_be_written() {
    let rig = console(formats()[0]);
    let mut before = [0; 16];
    rig.device.read_config(0, &mut before);
    for offset in (0..32u32).chain([u32::MAX - 1, u32::MAX]) {
        rig.device.write_config(offset, &[0xff; 8]);
    }
    let mut after = [0; 16];
    rig.device.read_config(0, &mut after);
    assert_eq!(before, after);
}
