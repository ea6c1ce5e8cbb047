//! The 16550A serial port of COM1 to COM4 (National PC16550D datasheet, June 1995).
//!
//! Time does not pass here: a byte the guest writes is sent at once, into a ring that the console's owner drains, and a
//! byte the owner pushes is received at once. vm-superio's serial port is not used: it has no FIFO control register,
//! and it writes each byte to its sink on the vCPU's thread.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};

use crate::bus::{Access, BusDevice};
use crate::interrupt::IrqLine;
use crate::legacy::{lock, read_bytes, write_bytes};
use crate::pci::StateError;
use crate::wake::Wake;

/// Ports of one UART.
pub const UART_PORTS: u64 = 8;

/// The one layout of [`UartState`] there is.
const VERSION: u32 = 1;

/// Bytes each way between guest and owner.
const RING_BYTES: usize = 256;

/// What a 16550A takes after one "transmitter empty": a driver writes so many bytes without looking again.
const FIFO_BYTES: usize = 16;

/// Marks a received zero byte as a break.
const BREAK: u16 = 0x100;

/// Interrupt enable register.
mod ier {
    pub const RECEIVED: u8 = 0x01;
    pub const TRANSMITTER_EMPTY: u8 = 0x02;
    pub const LINE_STATUS: u8 = 0x04;
    pub const MODEM_STATUS: u8 = 0x08;
    pub const ALL: u8 = 0x0f;
}

/// Interrupt identification register.
mod iir {
    pub const NONE: u8 = 0x01;
    pub const MODEM_STATUS: u8 = 0x00;
    pub const TRANSMITTER_EMPTY: u8 = 0x02;
    pub const RECEIVED: u8 = 0x04;
    pub const LINE_STATUS: u8 = 0x06;
    pub const TIMEOUT: u8 = 0x0c;
    pub const FIFOS_ENABLED: u8 = 0xc0;
}

/// FIFO control register.
mod fcr {
    pub const ENABLE: u8 = 0x01;
    pub const CLEAR_RECEIVER: u8 = 0x02;
    pub const CLEAR_TRANSMITTER: u8 = 0x04;
    pub const TRIGGER_SHIFT: u8 = 6;
}

/// Line control register: access to the divisor.
const LCR_DIVISOR: u8 = 0x80;

/// Modem control register.
mod mcr {
    pub const DTR: u8 = 0x01;
    pub const RTS: u8 = 0x02;
    pub const OUT1: u8 = 0x04;
    pub const OUT2: u8 = 0x08;
    pub const LOOPBACK: u8 = 0x10;
    pub const ALL: u8 = 0x1f;
}

/// Line status register.
mod lsr {
    pub const DATA_READY: u8 = 0x01;
    pub const OVERRUN: u8 = 0x02;
    pub const BREAK: u8 = 0x10;
    pub const HOLDING_EMPTY: u8 = 0x20;
    pub const TRANSMITTER_EMPTY: u8 = 0x40;
}

/// Modem status register: the lower half says which line of the upper half has changed.
mod msr {
    pub const CTS: u8 = 0x10;
    pub const DSR: u8 = 0x20;
    pub const RING: u8 = 0x40;
    pub const CARRIER: u8 = 0x80;
    pub const RING_TRAILING_EDGE: u8 = 0x04;
    pub const DELTAS: u8 = 0x0f;
}

/// Registers and bytes under way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UartState {
    version: u32,
    divisor: u16,
    ier: u8,
    fcr: u8,
    lcr: u8,
    mcr: u8,
    msr: u8,
    scratch: u8,
    overrun: bool,
    /// "Transmitter empty" has happened and was neither read nor answered by a write.
    transmitter_interrupt: bool,
    carrier: bool,
    /// Bytes, and [`BREAK`] beside those that stand for one.
    received: VecDeque<u16>,
    sent: VecDeque<u8>,
}

struct Inner {
    state: UartState,
    /// What the interrupt line was last set to.
    line: bool,
    /// The owner was refused input and waits for room.
    input_refused: bool,
    dropped_bytes: u64,
}

/// One serial port. The guest's side is its [`BusDevice`]; the owner of the console calls the other methods from its
/// own thread.
pub struct Uart {
    inner: Mutex<Inner>,
    line: Arc<dyn IrqLine>,
    owner: Arc<dyn Wake>,
}

impl Uart {
    /// A serial port after reset, with somebody at the other end. `owner` is woken when output appears where there was
    /// none, and when input that was refused may be offered again.
    pub fn new(line: Arc<dyn IrqLine>, owner: Arc<dyn Wake>) -> Self {
        let inner = Inner { state: power_on_state(), line: false, input_refused: false, dropped_bytes: 0 };
        Self { inner: Mutex::new(inner), line, owner }
    }

    /// Takes up to `buffer.len()` bytes the guest has sent; how many. The owner is not woken again before it has taken
    /// everything: call until it returns 0. Where nobody listens, the owner takes and throws away, or the guest waits.
    pub fn take_output(&self, buffer: &mut [u8]) -> usize {
        let mut inner = lock(&self.inner);
        let had_room = inner.has_room_to_send();
        let mut taken = 0usize;
        for to in buffer.iter_mut() {
            let Some(byte) = inner.state.sent.pop_front() else { break };
            *to = byte;
            taken = taken.saturating_add(1);
        }
        if !had_room && inner.has_room_to_send() {
            inner.state.transmitter_interrupt = true;
            inner.update_line(&self.line);
        }
        taken
    }

    /// Gives the guest bytes; how many it has room for. The rest stays with the caller, who is woken when there is room
    /// again.
    pub fn push_input(&self, bytes: &[u8]) -> usize {
        let mut inner = lock(&self.inner);
        // In loopback, the receiver hears the transmitter only (§8.6.7).
        let room = if inner.is_loopback() { 0 } else { RING_BYTES.saturating_sub(inner.state.received.len()) };
        let accepted = room.min(bytes.len());
        inner.state.received.extend(bytes.iter().take(accepted).copied().map(u16::from));
        inner.input_refused = accepted < bytes.len();
        inner.update_line(&self.line);
        accepted
    }

    /// Sends the guest a break, after what it has not read yet; `false` where there is no room.
    pub fn push_break(&self) -> bool {
        let mut inner = lock(&self.inner);
        let has_room = !inner.is_loopback() && inner.state.received.len() < RING_BYTES;
        if has_room {
            inner.state.received.push_back(BREAK);
            inner.update_line(&self.line);
        }
        has_room
    }

    /// Says whether somebody is at the other end: drives carrier detect, data set ready and clear to send.
    pub fn set_carrier(&self, carrier: bool) {
        let mut inner = lock(&self.inner);
        inner.state.carrier = carrier;
        inner.update_modem_lines();
        inner.update_line(&self.line);
    }

    /// Bytes the guest wrote although told that there is no room.
    pub fn dropped_bytes(&self) -> u64 {
        lock(&self.inner).dropped_bytes
    }

    /// The state, to be restored into another port.
    pub fn save(&self) -> UartState {
        lock(&self.inner).state.clone()
    }

    /// Goes on from `state`. The interrupt line is driven to what the state says; the owner is woken if there is
    /// output.
    ///
    /// # Errors
    /// Where `state` is not one of this version or of these sizes; nothing has changed then.
    pub fn restore(&self, state: &UartState) -> Result<(), StateError> {
        let refuse = |why| Err(StateError { what: "a serial port", why });
        if state.version != VERSION {
            return refuse("its version is not 1");
        }
        if state.received.len() > RING_BYTES || state.sent.len() > RING_BYTES {
            return refuse("more bytes are under way than the port holds");
        }
        if state.ier & !ier::ALL != 0 || state.mcr & !mcr::ALL != 0 {
            return refuse("a register has bits that do not exist");
        }
        self.replace(state.clone());
        Ok(())
    }

    fn replace(&self, state: UartState) {
        let mut inner = lock(&self.inner);
        inner.state = state;
        inner.line = inner.wants_interrupt();
        self.line.set(inner.line);
        let has_output = !inner.state.sent.is_empty();
        drop(inner);
        if has_output {
            self.owner.wake();
        }
    }

    /// Back to the state after power-on; output not yet taken stays.
    pub fn reset(&self) {
        let before = self.save();
        let mut fresh = power_on_state();
        fresh.carrier = before.carrier;
        fresh.msr = lines_of(before.carrier);
        fresh.sent = before.sent;
        self.replace(fresh);
        // Whoever was refused may try again: the receiver is empty.
        self.owner.wake();
    }
}

impl BusDevice for Uart {
    fn read(&self, offset: u64, data: &mut [u8]) -> Access {
        let mut inner = lock(&self.inner);
        read_bytes(offset, data, |register| inner.read(register));
        inner.update_line(&self.line);
        // Half empty, not the first free byte: the owner's way here costs more than a byte.
        let wake = inner.input_refused && inner.state.received.len() <= RING_BYTES / 2 && !inner.is_loopback();
        if wake {
            inner.input_refused = false;
        }
        drop(inner);
        if wake {
            self.owner.wake();
        }
        Access::Done
    }

    fn write(&self, offset: u64, data: &[u8]) -> Access {
        let mut inner = lock(&self.inner);
        let was_empty = inner.state.sent.is_empty();
        let was_loopback = inner.is_loopback();
        write_bytes(offset, data, |register, value| inner.write(register, value));
        inner.update_line(&self.line);
        let may_offer =
            inner.input_refused && !inner.is_loopback() && (was_loopback || inner.state.received.is_empty());
        if may_offer {
            inner.input_refused = false;
        }
        let wake = may_offer || (was_empty && !inner.state.sent.is_empty());
        drop(inner);
        if wake {
            self.owner.wake();
        }
        Access::Done
    }
}

fn power_on_state() -> UartState {
    UartState {
        version: VERSION,
        // 9600 baud.
        divisor: 12,
        ier: 0,
        fcr: 0,
        lcr: 0x03,
        mcr: mcr::OUT2,
        msr: lines_of(true),
        scratch: 0,
        overrun: false,
        transmitter_interrupt: false,
        carrier: true,
        received: VecDeque::with_capacity(RING_BYTES),
        sent: VecDeque::with_capacity(RING_BYTES),
    }
}

/// The modem's lines with or without somebody at the other end.
fn lines_of(carrier: bool) -> u8 {
    if carrier { msr::CTS | msr::DSR | msr::CARRIER } else { 0 }
}

impl Inner {
    fn read(&mut self, register: u64) -> u8 {
        let [divisor_low, divisor_high] = self.state.divisor.to_le_bytes();
        match register {
            0 if self.is_divisor_open() => divisor_low,
            0 => self.state.received.pop_front().map_or(0, |byte| byte.to_le_bytes()[0]),
            1 if self.is_divisor_open() => divisor_high,
            1 => self.state.ier,
            2 => {
                let source = self.interrupt_source();
                if source == iir::TRANSMITTER_EMPTY {
                    self.state.transmitter_interrupt = false;
                }
                if self.has_fifos() { source | iir::FIFOS_ENABLED } else { source }
            }
            3 => self.state.lcr,
            4 => self.state.mcr,
            5 => {
                let status = self.line_status();
                self.state.overrun = false;
                // A break is reported with its byte at the front, once (§8.4).
                if let Some(byte) = self.state.received.front_mut() {
                    *byte &= !BREAK;
                }
                status
            }
            6 => {
                let status = self.state.msr;
                self.state.msr &= !msr::DELTAS;
                status
            }
            7 => self.state.scratch,
            _ => 0xff,
        }
    }

    fn write(&mut self, register: u64, value: u8) {
        let [divisor_low, divisor_high] = self.state.divisor.to_le_bytes();
        match register {
            0 if self.is_divisor_open() => self.state.divisor = u16::from_le_bytes([value, divisor_high]),
            0 => self.send(value),
            1 if self.is_divisor_open() => self.state.divisor = u16::from_le_bytes([divisor_low, value]),
            1 => {
                let value = value & ier::ALL;
                // Enabling the interrupt while the transmitter is empty raises it: drivers start sending that way.
                if value & !self.state.ier & ier::TRANSMITTER_EMPTY != 0 && self.has_room_to_send() {
                    self.state.transmitter_interrupt = true;
                }
                self.state.ier = value;
            }
            2 => self.write_fifo_control(value),
            3 => self.state.lcr = value,
            4 => {
                self.state.mcr = value & mcr::ALL;
                self.update_modem_lines();
            }
            7 => self.state.scratch = value,
            _ => {}
        }
    }

    fn write_fifo_control(&mut self, value: u8) {
        let enable = value & fcr::ENABLE != 0;
        // Switching the FIFOs on or off clears them (§8.2); the other bits count only together with the switch.
        let switched = enable != self.has_fifos();
        if switched || (enable && value & fcr::CLEAR_RECEIVER != 0) {
            self.state.received.clear();
        }
        // Bytes in the ring have left the transmitter's FIFO already: clearing it loses no output.
        self.state.fcr = if enable { value & !(fcr::CLEAR_RECEIVER | fcr::CLEAR_TRANSMITTER) } else { 0 };
    }

    fn send(&mut self, byte: u8) {
        if self.is_loopback() {
            if self.state.received.len() < RING_BYTES {
                self.state.received.push_back(byte.into());
            } else {
                self.state.overrun = true;
            }
        } else if self.state.sent.len() < RING_BYTES {
            self.state.sent.push_back(byte);
        } else {
            self.dropped_bytes = self.dropped_bytes.saturating_add(1);
        }
        self.state.transmitter_interrupt = self.has_room_to_send();
    }

    fn line_status(&self) -> u8 {
        let mut status = 0;
        if !self.state.received.is_empty() {
            status |= lsr::DATA_READY;
        }
        if self.state.overrun {
            status |= lsr::OVERRUN;
        }
        if self.has_break() {
            status |= lsr::BREAK;
        }
        if self.has_room_to_send() {
            status |= lsr::HOLDING_EMPTY | lsr::TRANSMITTER_EMPTY;
        }
        status
    }

    /// The interrupt of the highest priority (datasheet table IV).
    fn interrupt_source(&self) -> u8 {
        let state = &self.state;
        if state.ier & ier::LINE_STATUS != 0 && (state.overrun || self.has_break()) {
            iir::LINE_STATUS
        } else if state.ier & ier::RECEIVED != 0 && !state.received.is_empty() {
            // No later byte is ever on its way, so a FIFO below its trigger level has timed out.
            if self.has_fifos() && state.received.len() < self.trigger_bytes() { iir::TIMEOUT } else { iir::RECEIVED }
        } else if state.ier & ier::TRANSMITTER_EMPTY != 0 && state.transmitter_interrupt {
            iir::TRANSMITTER_EMPTY
        } else if state.ier & ier::MODEM_STATUS != 0 && state.msr & msr::DELTAS != 0 {
            iir::MODEM_STATUS
        } else {
            iir::NONE
        }
    }

    fn wants_interrupt(&self) -> bool {
        self.interrupt_source() != iir::NONE
    }

    fn update_line(&mut self, line: &Arc<dyn IrqLine>) {
        let level = self.wants_interrupt();
        if level != self.line {
            self.line = level;
            line.set(level);
        }
    }

    fn update_modem_lines(&mut self) {
        let modem_control = self.state.mcr;
        let lines = if self.is_loopback() {
            [(mcr::RTS, msr::CTS), (mcr::DTR, msr::DSR), (mcr::OUT1, msr::RING), (mcr::OUT2, msr::CARRIER)]
                .into_iter()
                .filter(|(output, _)| modem_control & output != 0)
                .fold(0, |lines, (_, input)| lines | input)
        } else {
            lines_of(self.state.carrier)
        };
        let before = self.state.msr;
        let mut changed = (before ^ lines) >> 4;
        // The ring indicator reports only its end.
        if lines & msr::RING != 0 {
            changed &= !msr::RING_TRAILING_EDGE;
        }
        self.state.msr = lines | ((before | changed) & msr::DELTAS);
    }

    fn has_room_to_send(&self) -> bool {
        self.is_loopback() || RING_BYTES.saturating_sub(self.state.sent.len()) >= FIFO_BYTES
    }

    fn trigger_bytes(&self) -> usize {
        match self.state.fcr >> fcr::TRIGGER_SHIFT {
            0 => 1,
            1 => 4,
            2 => 8,
            _ => 14,
        }
    }

    fn has_break(&self) -> bool {
        self.state.received.front().is_some_and(|byte| byte & BREAK != 0)
    }

    fn has_fifos(&self) -> bool {
        self.state.fcr & fcr::ENABLE != 0
    }

    fn is_divisor_open(&self) -> bool {
        self.state.lcr & LCR_DIVISOR != 0
    }

    fn is_loopback(&self) -> bool {
        self.state.mcr & mcr::LOOPBACK != 0
    }
}

#[cfg(test)]
#[path = "uart_tests.rs"]
mod tests;
