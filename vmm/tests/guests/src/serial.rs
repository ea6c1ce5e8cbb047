//! Output on COM1, polled (PC16550D datasheet, table II).

use core::fmt;

use crate::machine::{in8, out8};

const COM1: u16 = 0x3f8;
const LINE_STATUS: u16 = COM1 + 5;
const TRANSMITTER_EMPTY: u8 = 0x20;

/// Sets COM1 to 8 bits without parity, FIFO on, no interrupts.
pub fn init() {
    out8(COM1 + 1, 0);
    out8(COM1 + 3, 3);
    out8(COM1 + 2, 7);
    out8(COM1 + 4, 3);
}

/// COM1 as a formatter's target.
pub struct Serial;

impl fmt::Write for Serial {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for &byte in text.as_bytes() {
            while in8(LINE_STATUS) & TRANSMITTER_EMPTY == 0 {
                core::hint::spin_loop();
            }
            out8(COM1, byte);
        }
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
