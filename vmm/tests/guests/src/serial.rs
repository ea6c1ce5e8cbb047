//! Serial ports, polled, and output on COM1 (PC16550D datasheet, table II).

use core::fmt;

use crate::machine::{in8, out8};

/// The first serial port.
pub const COM1: u16 = 0x3f8;
/// The second one.
pub const COM2: u16 = 0x2f8;
const LINE_STATUS: u16 = 5;
const DATA_READY: u8 = 0x01;
const TRANSMITTER_EMPTY: u8 = 0x20;

/// Sets COM1 to 8 bits without parity, FIFO on, no interrupts.
pub fn init() {
    set_up(COM1);
}

/// As [`init`], for any port.
pub fn set_up(port: u16) {
    out8(port + 1, 0);
    out8(port + 3, 3);
    out8(port + 2, 7);
    out8(port + 4, 3);
}

/// The next byte that somebody sent to a port, if there is one.
#[must_use]
pub fn read(port: u16) -> Option<u8> {
    // Where there is no such port, every register reads so.
    const NOBODY: u8 = 0xff;
    let status = in8(port + LINE_STATUS);
    (status != NOBODY && status & DATA_READY != 0).then(|| in8(port))
}

/// Writes a byte to a port.
pub fn write(port: u16, byte: u8) {
    while in8(port + LINE_STATUS) & TRANSMITTER_EMPTY == 0 {
        core::hint::spin_loop();
    }
    out8(port, byte);
}

/// COM1 as a formatter's target.
pub struct Serial;

impl fmt::Write for Serial {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        text.bytes().for_each(|byte| write(COM1, byte));
        Ok(())
    }
}

/// Prints a line on COM1.
#[macro_export]
macro_rules! println {
    ($($argument:tt)*) => {{
        use core::fmt::Write as _;
        // The port never fails: the error type is the formatter's.
        let _ = writeln!($crate::serial::Serial, $($argument)*);
    }};
}
