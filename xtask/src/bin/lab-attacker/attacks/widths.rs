//! Every access width at every offset of every region of registers.

use crate::check;
use crate::device::{Device, Verdict};
use crate::machine::{Mapping, read_port, write_port};
use crate::registers::{Registers, common, status};

const WIDTHS: [usize; 4] = [1, 2, 4, 8];

/// Values that reset nothing: the status, wherever it is, gets no zero.
const VALUES: [u64; 2] = [u64::MAX, 0x5a5a_5a5a_5a5a_5a5a];

fn piece(image: &[u8], at: usize, width: usize) -> u64 {
    let mut bytes = [0; 8];
    bytes[..width].copy_from_slice(&image[at..at + width]);
    u64::from_le_bytes(bytes)
}

fn ones(width: usize) -> u64 {
    u64::MAX >> (64 - 8 * width)
}

/// Reads of any width are pieces of the same registers, or nothing.
fn reads_agree(bar: &Mapping, start: usize, len: usize) -> Verdict {
    let image: Vec<u8> = (0..len).map(|at| bar.read(start + at, 1) as u8).collect();
    for width in WIDTHS {
        for at in 0..=len.saturating_sub(width) {
            let (read, expected) = (bar.read(start + at, width), piece(&image, at, width));
            let nothing = read == 0 || read == ones(width);
            check!(read == expected || nothing, "{width} bytes at {at:#x} read {read:#x}, not {expected:#x}");
        }
    }
    Ok(())
}

fn writes(bar: &Mapping, start: usize, len: usize) {
    for width in WIDTHS {
        for at in 0..=len.saturating_sub(width) {
            for value in VALUES {
                bar.write(start + at, width, value);
            }
        }
    }
}

/// The same with a queue selected before each write, so that the fields of a queue that exists are written to.
fn writes_to_queue(device: &Device, queue: u16, len: usize) {
    for width in WIDTHS {
        for at in 0..=len.saturating_sub(width) {
            for value in VALUES {
                device.modern().write(common::QUEUE_SELECT, 2, queue.into());
                device.modern().write(at, width, value);
            }
        }
    }
}

/// The common configuration, of a device that is reset, of one that has queues and of one that runs.
pub fn common(device: &mut Device) -> Verdict {
    let (start, len) = (device.modern().common, device.modern().common_len.max(common::BYTES) + 4);
    reads_agree(&device.modern().bar, start, len)?;
    writes(&device.modern().bar, start, len);
    writes_to_queue(device, 0, len);
    device.start(device.features())?;
    let queue = device.target();
    let fields = |device: &Device| {
        [common::QUEUE_SIZE, common::QUEUE_ENABLE, common::QUEUE_DESC, common::QUEUE_DRIVER, common::QUEUE_DEVICE]
            .map(|field| device.modern().read_queue(queue, field, if field < common::QUEUE_DESC { 2 } else { 8 }))
    };
    let before = fields(device);
    reads_agree(&device.modern().bar, start, len)?;
    writes(&device.modern().bar, start, len);
    writes_to_queue(device, queue, len);
    let after = fields(device);
    check!(before == after, "the running queue's fields changed from {before:x?} to {after:x?}");
    Ok(())
}

/// The doorbells and what is behind them.
pub fn notify(device: &mut Device) -> Verdict {
    device.start(device.features())?;
    let (start, len) = (device.modern().notify, device.modern().notify_len);
    let len = (len + 16).min(device.modern().bar.len() - start);
    for width in WIDTHS {
        for at in 0..=len - width {
            device.modern().bar.read(start + at, width);
        }
    }
    writes(&device.modern().bar, start, len);
    device.request()
}

/// The ISR status: reads clear it, writes do nothing.
pub fn isr(device: &mut Device) -> Verdict {
    device.start(device.features())?;
    let start = device.modern().isr;
    writes(&device.modern().bar, start, 16);
    for width in WIDTHS {
        for at in 0..16 {
            device.modern().bar.read(start + at, width);
        }
    }
    device.request()?;
    let isr = device.modern().bar.read(start, 1);
    check!(isr & !3 == 0, "the ISR status is {isr:#x}");
    check!(device.modern().bar.read(start, 1) == 0, "the ISR status is not cleared by reading it");
    Ok(())
}

/// Offset of `writeback`, the only field of a device's configuration that its driver may write (§5.2.4).
const BLK_WRITEBACK: usize = 32;

/// Device configuration, and what is behind it.
pub fn config(device: &mut Device) -> Verdict {
    device.start(device.features())?;
    let (start, len) = device.modern().config;
    if start != 0 {
        let image =
            |device: &Device| -> Vec<u8> { (0..len).map(|at| device.modern().bar.read(start + at, 1) as u8).collect() };
        let before = image(device);
        reads_agree(&device.modern().bar, start, len + 16)?;
        writes(&device.modern().bar, start, len + 16);
        let after = image(device);
        let changed = (0..len).find(|at| before[*at] != after[*at] && *at != BLK_WRITEBACK);
        check!(changed.is_none(), "byte {changed:?} of the configuration could be written");
    }
    device.request()
}

/// The configuration-access capability (§4.1.4.9) pointed at everything there is and is not.
pub fn window(device: &mut Device) -> Verdict {
    device.start(device.features())?;
    let function = device.function;
    let windows = function.capabilities(9);
    let window = windows.into_iter().find(|at| function.read(*at) >> 24 == 5);
    let Some(window) = window else {
        check!(false, "there is no configuration-access capability");
        return Ok(());
    };
    for bar in 0..8 {
        for offset in [0, 1, 0x10, 0x14, 0x38, 0x1000, 0x2000, 0x3000, 0x3ffc, 0x4000, 0x7fff_fffc, u32::MAX] {
            for len in [0, 1, 2, 3, 4, 8, u32::MAX] {
                function.write(window + 4, bar);
                function.write(window + 8, offset);
                function.write(window + 12, len);
                function.read(window + 16);
                // Not where it would be the status: that is known to take it.
                if offset != common::STATUS as u32 {
                    function.write(window + 16, u32::MAX);
                }
            }
        }
    }
    Ok(())
}

/// The MSI-X table and its pending bits, with MSI-X off.
pub fn msix(device: &mut Device) -> Verdict {
    device.start(device.features())?;
    let function = device.function;
    let Some(capability) = function.capabilities(0x11).first().copied() else { return device.request() };
    let entries = (function.read(capability) >> 16 & 0x7ff) as usize + 1;
    let place = |register| {
        let value = function.read(capability + register);
        ((value & 7) as u8, (value & !7) as usize)
    };
    let ((table_bar, table), (pending_bar, pending)) = (place(4), place(8));
    for (bar, start, len) in [(table_bar, table, 16 * entries + 16), (pending_bar, pending, 16)] {
        let Ok(mapping) = function.map(bar) else {
            check!(false, "BAR {bar} cannot be mapped");
            continue;
        };
        let len = len.min(mapping.len() - start);
        reads_agree(&mapping, start, len)?;
        writes(&mapping, start, len);
        // Its last bytes.
        let end = mapping.len() - 16;
        writes(&mapping, end, 16);
    }
    device.request()
}

/// The legacy header and the device configuration behind it.
pub fn legacy_header(device: &mut Device) -> Verdict {
    let Registers::Legacy { ports, len } = *device.registers else { return Ok(()) };
    for running in [false, true] {
        if running {
            device.start(device.features())?;
        } else {
            device.reset()?;
        }
        for width in [1, 2, 4] {
            for at in 0..=len - width as u16 {
                read_port(ports + at, width);
                for value in VALUES {
                    write_port(ports + at, width, value as u32);
                }
                read_port(ports + at, width);
            }
        }
        let now = device.registers.status();
        check!(now & status::NEEDS_RESET == 0, "a legacy driver is shown DEVICE_NEEDS_RESET: {now:#x}");
    }
    Ok(())
}

/// The function's configuration space. Its BARs are wherever that leaves them, meanwhile.
pub fn pci_config(device: &mut Device) -> Verdict {
    device.start(device.features())?;
    for value in [u32::MAX, 0, 0x5a5a_5a5a] {
        for width in [1, 2, 4] {
            for offset in (0..0x100).step_by(width) {
                device.function.read_by_port(offset, width);
                device.function.write_by_port(offset, width, value);
            }
            // Misaligned, also across the window's end.
            for offset in [1, 2, 3] {
                device.function.read_by_port(0x10 | offset, width);
                device.function.write_by_port(0x10 | offset, width, value);
            }
        }
    }
    let id = device.function.id();
    check!(id.0 == 0x1af4, "the function's id could be written: {id:x?}");
    Ok(())
}
