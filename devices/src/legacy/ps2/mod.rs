//! The keyboard controller with a keyboard and a mouse, ports 0x60 and 0x64 (Intel UPI-41AH/8042 with the program of the
//! IBM PS/2 Hardware Interface Technical Reference, 1988, "Keyboard and Auxiliary Device Controller").
//!
//! Nothing takes time here: a command is answered before the write that gives it returns, so no driver waits. Bytes
//! leave through one output buffer. What is in it stays until the guest reads it: status, interrupt and data always
//! speak of the same byte.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};

use super::power::{PowerSink, ResetSource};
use super::{lock, read_bytes, write_bytes};
use crate::bus::{Access, BusDevice};
use crate::interrupt::IrqLine;
use crate::pci::StateError;

mod keyboard;
mod mouse;

use keyboard::Keyboard;
use mouse::Mouse;

pub use keyboard::KeyCode;
pub use mouse::MouseEvent;

/// The data port.
pub const PS2_DATA_PORT: u64 = 0x60;

/// The status and command port.
pub const PS2_STATUS_PORT: u64 = 0x64;

/// Ports of each of the two: the ones between belong to others.
pub const PS2_PORTS: u64 = 1;

/// The controller's memory; byte 0 is the command byte.
const RAM_BYTES: usize = 32;

/// Answers of the controller, or of a device, that wait for the guest. Drivers read each before they ask again; what a
/// guest asks beyond this stays unanswered.
const MAX_REPLIES: usize = 16;

/// Status register.
mod status {
    pub const OUTPUT_FULL: u8 = 0x01;
    pub const SYSTEM: u8 = 0x04;
    pub const LAST_WAS_COMMAND: u8 = 0x08;
    pub const NOT_LOCKED: u8 = 0x10;
    pub const OUTPUT_IS_AUX: u8 = 0x20;
}

/// Command byte.
mod ctr {
    pub const KEYBOARD_INTERRUPT: u8 = 0x01;
    pub const AUX_INTERRUPT: u8 = 0x02;
    pub const SYSTEM: u8 = 0x04;
    pub const KEYBOARD_DISABLED: u8 = 0x10;
    pub const AUX_DISABLED: u8 = 0x20;
    pub const TRANSLATE: u8 = 0x40;
    /// As a PC's firmware leaves it, for guests that are started without one.
    pub const FIRMWARE: u8 = KEYBOARD_INTERRUPT | AUX_INTERRUPT | SYSTEM | TRANSLATE;
}

/// Output port.
mod output_port {
    /// Low resets the processor.
    pub const NOT_RESET: u8 = 0x01;
    pub const A20: u8 = 0x02;
    pub const KEYBOARD_FULL: u8 = 0x10;
    pub const AUX_FULL: u8 = 0x20;
    /// Lines to the devices, at rest.
    pub const AT_REST: u8 = NOT_RESET | A20 | 0xcc;
}

/// Commands to the controller.
mod command {
    pub const READ_RAM: u8 = 0x20;
    pub const READ_RAM_LAST: u8 = 0x3f;
    pub const WRITE_RAM: u8 = 0x60;
    pub const WRITE_RAM_LAST: u8 = 0x7f;
    pub const TEST_PASSWORD: u8 = 0xa4;
    pub const DISABLE_AUX: u8 = 0xa7;
    pub const ENABLE_AUX: u8 = 0xa8;
    pub const TEST_AUX: u8 = 0xa9;
    pub const SELF_TEST: u8 = 0xaa;
    pub const TEST_KEYBOARD: u8 = 0xab;
    pub const DISABLE_KEYBOARD: u8 = 0xad;
    pub const ENABLE_KEYBOARD: u8 = 0xae;
    pub const READ_INPUT_PORT: u8 = 0xc0;
    pub const READ_OUTPUT_PORT: u8 = 0xd0;
    pub const WRITE_OUTPUT_PORT: u8 = 0xd1;
    pub const WRITE_KEYBOARD_OUTPUT: u8 = 0xd2;
    pub const WRITE_AUX_OUTPUT: u8 = 0xd3;
    pub const WRITE_AUX: u8 = 0xd4;
    pub const READ_TEST_INPUTS: u8 = 0xe0;
    pub const PULSE: u8 = 0xf0;
}

/// Answers of the controller.
mod answer {
    pub const NO_PASSWORD: u8 = 0xf1;
    pub const SELF_TEST_PASSED: u8 = 0x55;
    pub const INTERFACE_GOOD: u8 = 0x00;
    /// The keyboard is not locked.
    pub const INPUT_PORT: u8 = 0x80;
    pub const TEST_INPUTS: u8 = 0x00;
}

/// A byte for the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Output {
    byte: u8,
    is_aux: bool,
}

/// Registers and bytes under way of the controller, the keyboard and the mouse.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ps2State {
    version: u16,
    ram: [u8; RAM_BYTES],
    output_port: u8,
    last_was_command: bool,
    /// The command whose data byte is next.
    awaits_data: Option<u8>,
    replies: VecDeque<Output>,
    /// The output buffer.
    output: Option<Output>,
    /// What an empty output buffer reads as.
    last: u8,
    /// The keyboard has sent the prefix of a release, which becomes bit 7 of the next code.
    is_release: bool,
    keyboard: Keyboard,
    mouse: Mouse,
}

struct Inner {
    state: Ps2State,
    /// What the lines were last set to.
    keyboard_level: bool,
    aux_level: bool,
}

/// The controller. The guest's side is [`data_port`](Self::data_port) and [`status_port`](Self::status_port); whoever
/// has a keyboard and a mouse to give calls [`key_event`](Self::key_event) and [`mouse_event`](Self::mouse_event).
pub struct Ps2 {
    inner: Mutex<Inner>,
    keyboard_line: Arc<dyn IrqLine>,
    aux_line: Arc<dyn IrqLine>,
    power: Arc<dyn PowerSink>,
}

impl Ps2 {
    /// A controller as firmware leaves it: interrupts (`keyboard_line` is IRQ 1, `aux_line` IRQ 12) and translation on.
    /// `power` is told when the guest resets itself through it.
    pub fn new(keyboard_line: Arc<dyn IrqLine>, aux_line: Arc<dyn IrqLine>, power: Arc<dyn PowerSink>) -> Arc<Self> {
        let inner = Inner { state: Ps2State::new(), keyboard_level: false, aux_level: false };
        Arc::new(Self { inner: Mutex::new(inner), keyboard_line, aux_line, power })
    }

    /// The device at [`PS2_DATA_PORT`].
    pub fn data_port(self: &Arc<Self>) -> Arc<dyn BusDevice> {
        Arc::new(DataPort(self.clone()))
    }

    /// The device at [`PS2_STATUS_PORT`].
    pub fn status_port(self: &Arc<Self>) -> Arc<dyn BusDevice> {
        Arc::new(StatusPort(self.clone()))
    }

    /// Presses or releases a key; `false` where the keyboard's buffer has no room: nothing was pressed, offer it again.
    /// Keys held down repeat only as often as the caller presses them.
    pub fn key_event(&self, key: KeyCode, is_pressed: bool) -> bool {
        self.with(|state| state.keyboard.press(key, is_pressed))
    }

    /// Moves the mouse and sets its buttons. Motion the guest is too slow for adds up; of more than 16 changes of the
    /// buttons that wait for the guest, the last ones become one.
    pub fn mouse_event(&self, event: MouseEvent) {
        self.with(|state| state.mouse.move_by(event));
    }

    /// The keyboard's lights: bit 0 scroll lock, 1 num lock, 2 caps lock.
    pub fn leds(&self) -> u8 {
        lock(&self.inner).state.keyboard.leds()
    }

    /// The state, to be restored into another controller.
    pub fn save(&self) -> Ps2State {
        lock(&self.inner).state.clone()
    }

    /// Goes on from `state`; the lines are driven to what it says.
    pub fn restore(&self, state: &Ps2State) -> Result<(), StateError> {
        let refuse = |why| Err(StateError { what: "the keyboard controller", why });
        if state.version != 1 {
            return refuse("its version is not 1");
        }
        if state.replies.len() > MAX_REPLIES || !state.keyboard.is_bounded() || !state.mouse.is_bounded() {
            return refuse("more bytes wait than its buffers hold");
        }
        let mut inner = lock(&self.inner);
        inner.state = state.clone();
        (inner.keyboard_level, inner.aux_level) = inner.state.levels();
        self.keyboard_line.set(inner.keyboard_level);
        self.aux_line.set(inner.aux_level);
        Ok(())
    }

    /// Back to the state after power-on.
    pub fn reset(&self) {
        let mut inner = lock(&self.inner);
        inner.state = Ps2State::new();
        self.drive(&mut inner);
    }

    /// Does `change`, fills the output buffer and drives the lines.
    fn with<R>(&self, change: impl FnOnce(&mut Ps2State) -> R) -> R {
        let mut inner = lock(&self.inner);
        let result = change(&mut inner.state);
        inner.state.fill_output();
        self.drive(&mut inner);
        result
    }

    fn drive(&self, inner: &mut Inner) {
        let (keyboard_level, aux_level) = inner.state.levels();
        if keyboard_level != inner.keyboard_level {
            inner.keyboard_level = keyboard_level;
            self.keyboard_line.set(keyboard_level);
        }
        if aux_level != inner.aux_level {
            inner.aux_level = aux_level;
            self.aux_line.set(aux_level);
        }
    }

    fn read_data(&self) -> u8 {
        let mut inner = lock(&self.inner);
        if let Some(output) = inner.state.output.take() {
            inner.state.last = output.byte;
            // The lines fall between two bytes: the interrupt controller counts edges.
            self.drive(&mut inner);
            inner.state.fill_output();
            self.drive(&mut inner);
        }
        inner.state.last
    }

    fn write(&self, change: impl FnOnce(&mut Ps2State) -> Reset) {
        if self.with(change) == Reset::Wanted {
            self.power.reset(ResetSource::Keyboard);
        }
    }
}

/// Whether a write asked for a reset of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reset {
    No,
    Wanted,
}

struct DataPort(Arc<Ps2>);

impl BusDevice for DataPort {
    fn read(&self, offset: u64, data: &mut [u8]) -> Access {
        read_bytes(offset, data, |port| if port == 0 { self.0.read_data() } else { 0xff })
    }

    fn write(&self, offset: u64, data: &[u8]) -> Access {
        write_bytes(offset, data, |port, byte| {
            if port == 0 {
                self.0.write(|state| state.write_data(byte));
            }
        })
    }
}

struct StatusPort(Arc<Ps2>);

impl BusDevice for StatusPort {
    fn read(&self, offset: u64, data: &mut [u8]) -> Access {
        read_bytes(offset, data, |port| if port == 0 { lock(&self.0.inner).state.status() } else { 0xff })
    }

    fn write(&self, offset: u64, data: &[u8]) -> Access {
        write_bytes(offset, data, |port, byte| {
            if port == 0 {
                self.0.write(|state| state.write_command(byte));
            }
        })
    }
}

impl Ps2State {
    fn new() -> Self {
        let mut state = Self {
            version: 1,
            ram: [0; RAM_BYTES],
            output_port: output_port::AT_REST,
            last_was_command: false,
            awaits_data: None,
            replies: VecDeque::new(),
            output: None,
            last: 0,
            is_release: false,
            keyboard: Keyboard::new(),
            mouse: Mouse::new(),
        };
        state.write_ram(0, ctr::FIRMWARE);
        state
    }

    fn status(&self) -> u8 {
        let mut status = status::NOT_LOCKED;
        if self.has_ctr(ctr::SYSTEM) {
            status |= status::SYSTEM;
        }
        if self.last_was_command {
            status |= status::LAST_WAS_COMMAND;
        }
        match self.output {
            Some(Output { is_aux: true, .. }) => status | status::OUTPUT_FULL | status::OUTPUT_IS_AUX,
            Some(Output { is_aux: false, .. }) => status | status::OUTPUT_FULL,
            None => status,
        }
    }

    /// Levels of the keyboard's and the mouse's line.
    fn levels(&self) -> (bool, bool) {
        let Some(output) = self.output else { return (false, false) };
        // Answers to commands given while the keyboard is off are polled for, by drivers that do not expect IRQ 1.
        let keyboard = self.has_ctr(ctr::KEYBOARD_INTERRUPT) && !self.has_ctr(ctr::KEYBOARD_DISABLED);
        (!output.is_aux && keyboard, output.is_aux && self.has_ctr(ctr::AUX_INTERRUPT))
    }

    /// Puts the next byte into an empty output buffer: the controller's own first, then the keyboard's.
    fn fill_output(&mut self) {
        // A release's prefix gives no byte, so the keyboard may be asked more than once.
        while self.output.is_none() {
            if let Some(reply) = self.replies.pop_front() {
                self.output = Some(reply);
            } else if let Some(byte) = self.next_of_keyboard() {
                self.output = self.translate(byte).map(|byte| Output { byte, is_aux: false });
            } else if let Some(byte) = self.next_of_mouse() {
                self.output = Some(Output { byte, is_aux: true });
            } else {
                return;
            }
        }
    }

    fn next_of_keyboard(&mut self) -> Option<u8> {
        if self.has_ctr(ctr::KEYBOARD_DISABLED) { None } else { self.keyboard.send() }
    }

    fn next_of_mouse(&mut self) -> Option<u8> {
        if self.has_ctr(ctr::AUX_DISABLED) { None } else { self.mouse.send() }
    }

    /// What the guest sees of a byte from the keyboard; `None` while it is only half a code.
    fn translate(&mut self, byte: u8) -> Option<u8> {
        if !self.has_ctr(ctr::TRANSLATE) {
            self.is_release = false;
            return Some(byte);
        }
        if byte == keyboard::RELEASE {
            self.is_release = true;
            return None;
        }
        let release = if std::mem::take(&mut self.is_release) { 0x80 } else { 0 };
        Some(keyboard::set_1_code(byte) | release)
    }

    fn write_command(&mut self, byte: u8) -> Reset {
        self.last_was_command = true;
        self.awaits_data = None;
        match byte {
            command::READ_RAM..=command::READ_RAM_LAST => {
                let value = self.ram.get(Self::ram_index(byte)).copied().unwrap_or(0);
                self.reply(value);
            }
            command::WRITE_RAM..=command::WRITE_RAM_LAST
            | command::WRITE_OUTPUT_PORT
            | command::WRITE_KEYBOARD_OUTPUT
            | command::WRITE_AUX_OUTPUT
            | command::WRITE_AUX => self.awaits_data = Some(byte),
            command::TEST_PASSWORD => self.reply(answer::NO_PASSWORD),
            command::DISABLE_AUX => self.set_ctr(ctr::AUX_DISABLED, true),
            command::ENABLE_AUX => self.set_ctr(ctr::AUX_DISABLED, false),
            command::TEST_AUX | command::TEST_KEYBOARD => self.reply(answer::INTERFACE_GOOD),
            command::SELF_TEST => {
                self.set_ctr(ctr::SYSTEM, true);
                self.reply(answer::SELF_TEST_PASSED);
            }
            command::DISABLE_KEYBOARD => self.set_ctr(ctr::KEYBOARD_DISABLED, true),
            command::ENABLE_KEYBOARD => self.set_ctr(ctr::KEYBOARD_DISABLED, false),
            command::READ_INPUT_PORT => self.reply(answer::INPUT_PORT),
            command::READ_OUTPUT_PORT => {
                let full = match self.output {
                    Some(Output { is_aux: true, .. }) => output_port::AUX_FULL,
                    Some(Output { is_aux: false, .. }) => output_port::KEYBOARD_FULL,
                    None => 0,
                };
                self.reply(self.output_port & !(output_port::KEYBOARD_FULL | output_port::AUX_FULL) | full);
            }
            command::READ_TEST_INPUTS => self.reply(answer::TEST_INPUTS),
            // A pulse of the lines whose bits are low; only the reset line leads anywhere.
            command::PULSE.. if byte & output_port::NOT_RESET == 0 => return Reset::Wanted,
            _ => {}
        }
        Reset::No
    }

    fn write_data(&mut self, byte: u8) -> Reset {
        self.last_was_command = false;
        match self.awaits_data.take() {
            Some(command @ command::WRITE_RAM..=command::WRITE_RAM_LAST) => {
                self.write_ram(Self::ram_index(command), byte);
            }
            Some(command::WRITE_OUTPUT_PORT) => {
                // The reset line is not held: the guest that wakes up finds it at rest.
                self.output_port = byte | output_port::NOT_RESET;
                if byte & output_port::NOT_RESET == 0 {
                    return Reset::Wanted;
                }
            }
            Some(command::WRITE_KEYBOARD_OUTPUT) => self.reply(byte),
            Some(command::WRITE_AUX_OUTPUT) => self.reply_as(Output { byte, is_aux: true }),
            Some(command::WRITE_AUX) => {
                // Talking to a device turns its interface on.
                self.set_ctr(ctr::AUX_DISABLED, false);
                self.mouse.receive(byte);
            }
            _ => {
                self.set_ctr(ctr::KEYBOARD_DISABLED, false);
                self.keyboard.receive(byte);
            }
        }
        Reset::No
    }

    fn reply(&mut self, byte: u8) {
        self.reply_as(Output { byte, is_aux: false });
    }

    fn reply_as(&mut self, output: Output) {
        if self.replies.len() < MAX_REPLIES {
            self.replies.push_back(output);
        }
    }

    /// The byte of memory that a command to read or write it names: never beyond the end.
    fn ram_index(command: u8) -> usize {
        usize::from(command & 0x1f)
    }

    fn write_ram(&mut self, index: usize, value: u8) {
        if let Some(byte) = self.ram.get_mut(index) {
            *byte = value;
        }
    }

    fn has_ctr(&self, bit: u8) -> bool {
        self.ram.first().is_some_and(|ctr| ctr & bit != 0)
    }

    fn set_ctr(&mut self, bit: u8, on: bool) {
        if let Some(ctr) = self.ram.first_mut() {
            *ctr = if on { *ctr | bit } else { *ctr & !bit };
        }
    }
}

#[cfg(test)]
mod tests;
