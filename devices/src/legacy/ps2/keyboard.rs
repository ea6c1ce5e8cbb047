//! The keyboard (IBM PS/2 Hardware Interface Technical Reference, 1988, "Keyboards": commands, scan code sets 1 and 2).

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::MAX_REPLIES;

/// Codes of keys that wait for the guest.
const MAX_EVENT_BYTES: usize = 64;

/// Prefix of a release in set 2.
pub const RELEASE: u8 = 0xf0;

/// Prefix of the keys the first PC did not have.
const EXTENDED: u8 = 0xe0;

/// The typematic rate after reset: 10.9 a second after half a second.
const DEFAULT_TYPEMATIC: u8 = 0x2b;

/// Commands.
mod command {
    pub const SET_LEDS: u8 = 0xed;
    pub const ECHO: u8 = 0xee;
    pub const SCAN_CODE_SET: u8 = 0xf0;
    pub const IDENTIFY: u8 = 0xf2;
    pub const SET_TYPEMATIC: u8 = 0xf3;
    pub const ENABLE: u8 = 0xf4;
    pub const DISABLE: u8 = 0xf5;
    pub const SET_DEFAULTS: u8 = 0xf6;
    /// Of set 3 only: which keys repeat.
    pub const SET_ALL_FIRST: u8 = 0xf7;
    pub const SET_ALL_LAST: u8 = 0xfa;
    pub const RESEND: u8 = 0xfe;
    pub const RESET: u8 = 0xff;
}

/// Answers.
mod answer {
    pub const ACKNOWLEDGE: u8 = 0xfa;
    pub const RESEND: u8 = 0xfe;
    pub const ECHO: u8 = 0xee;
    pub const TEST_PASSED: u8 = 0xaa;
    /// A keyboard with 101 or 102 keys.
    pub const IDENTITY: [u8; 2] = [0xab, 0x83];
}

/// A key by its code of set 1, as the first PC had it and remote consoles send it (the RFB protocol's extended key
/// event): bit 7 stands for the prefix 0xE0. Pause is 0xC6, print screen 0xB7.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct KeyCode(pub u8);

impl KeyCode {
    /// The key that sends a sequence of its own, and nothing on release.
    const PAUSE: Self = Self(0xc6);

    fn is_extended(self) -> bool {
        self.0 & 0x80 != 0
    }
}

/// Set 1 codes by set 2 code: what the controller's program makes of them (the table of its translation).
#[rustfmt::skip]
const SET_1: [u8; 128] = [
    0xff, 0x43, 0x41, 0x3f, 0x3d, 0x3b, 0x3c, 0x58, 0x64, 0x44, 0x42, 0x40, 0x3e, 0x0f, 0x29, 0x59,
    0x65, 0x38, 0x2a, 0x70, 0x1d, 0x10, 0x02, 0x5a, 0x66, 0x71, 0x2c, 0x1f, 0x1e, 0x11, 0x03, 0x5b,
    0x67, 0x2e, 0x2d, 0x20, 0x12, 0x05, 0x04, 0x5c, 0x68, 0x39, 0x2f, 0x21, 0x14, 0x13, 0x06, 0x5d,
    0x69, 0x31, 0x30, 0x23, 0x22, 0x15, 0x07, 0x5e, 0x6a, 0x72, 0x32, 0x24, 0x16, 0x08, 0x09, 0x5f,
    0x6b, 0x33, 0x25, 0x17, 0x18, 0x0b, 0x0a, 0x60, 0x6c, 0x34, 0x35, 0x26, 0x27, 0x19, 0x0c, 0x61,
    0x6d, 0x73, 0x28, 0x74, 0x1a, 0x0d, 0x62, 0x6e, 0x3a, 0x36, 0x1c, 0x1b, 0x75, 0x2b, 0x63, 0x76,
    0x55, 0x56, 0x77, 0x78, 0x79, 0x7a, 0x0e, 0x7b, 0x7c, 0x4f, 0x7d, 0x4b, 0x47, 0x7e, 0x7f, 0x6f,
    0x52, 0x53, 0x50, 0x4c, 0x4d, 0x48, 0x01, 0x45, 0x57, 0x4e, 0x51, 0x4a, 0x37, 0x49, 0x46, 0x54,
];

/// The two codes of set 2 beyond 0x7f: F7, and print screen with Alt.
const SET_1_ABOVE: [(u8, u8); 2] = [(0x83, 0x41), (0x84, 0x54)];

/// What the controller makes of a byte from the keyboard; answers and prefixes stay as they are.
pub fn set_1_code(byte: u8) -> u8 {
    let above = SET_1_ABOVE.iter().find(|(set_2, _)| *set_2 == byte).map(|(_, set_1)| *set_1);
    above.or_else(|| SET_1.get(usize::from(byte)).copied()).unwrap_or(byte)
}

/// The set 2 code of the key with a set 1 code; `None` where no key has it.
fn set_2_code(set_1: u8) -> Option<u8> {
    let above = SET_1_ABOVE.iter().find(|(_, code)| *code == set_1).map(|(set_2, _)| *set_2);
    above.or_else(|| SET_1.iter().zip(0..).find(|(code, _)| **code == set_1).map(|(_, set_2)| set_2))
}

/// The keyboard's registers and bytes under way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Keyboard {
    replies: VecDeque<u8>,
    /// Bytes of keys, and whether each is its key's last.
    events: VecDeque<(u8, bool)>,
    /// A key's codes have begun to go out: an answer may not come between them.
    is_mid_event: bool,
    /// The command whose data byte is next.
    awaits_data: Option<u8>,
    is_scanning: bool,
    scan_code_set: u8,
    leds: u8,
    typematic: u8,
    /// What is sent again on request.
    last: u8,
}

impl Keyboard {
    /// A keyboard that has passed its test, with scanning on.
    pub fn new() -> Self {
        Self {
            replies: VecDeque::new(),
            events: VecDeque::new(),
            is_mid_event: false,
            awaits_data: None,
            is_scanning: true,
            scan_code_set: 2,
            leds: 0,
            typematic: DEFAULT_TYPEMATIC,
            last: 0,
        }
    }

    pub fn leds(&self) -> u8 {
        self.leds
    }

    /// Whether no more waits than ever can.
    pub fn is_bounded(&self) -> bool {
        self.replies.len() <= MAX_REPLIES && self.events.len() <= MAX_EVENT_BYTES
    }

    /// Presses or releases a key; `false` without room.
    pub fn press(&mut self, key: KeyCode, is_pressed: bool) -> bool {
        if !self.is_scanning {
            return true;
        }
        let codes = self.codes(key, is_pressed);
        if self.events.len().saturating_add(codes.len()) > MAX_EVENT_BYTES {
            return false;
        }
        let last = codes.len().saturating_sub(1);
        self.events.extend(codes.into_iter().zip(0..).map(|(code, at)| (code, at == last)));
        true
    }

    /// The bytes of a key in the set the guest chose; none where no key has the code.
    fn codes(&self, key: KeyCode, is_pressed: bool) -> Vec<u8> {
        let is_set_1 = self.scan_code_set == 1;
        if key == KeyCode::PAUSE {
            return match (is_pressed, is_set_1) {
                (true, true) => vec![0xe1, 0x1d, 0x45, 0xe1, 0x9d, 0xc5],
                (true, false) => vec![0xe1, 0x14, 0x77, 0xe1, RELEASE, 0x14, RELEASE, 0x77],
                (false, _) => Vec::new(),
            };
        }
        let Some(set_2) = set_2_code(key.0 & 0x7f) else { return Vec::new() };
        let mut codes = Vec::with_capacity(3);
        if key.is_extended() {
            codes.push(EXTENDED);
        }
        match (is_set_1, is_pressed) {
            (true, true) => codes.push(key.0 & 0x7f),
            (true, false) => codes.push(key.0 | 0x80),
            (false, true) => codes.push(set_2),
            (false, false) => codes.extend([RELEASE, set_2]),
        }
        codes
    }

    /// The next byte for the controller.
    pub fn send(&mut self) -> Option<u8> {
        let reply = if self.is_mid_event { None } else { self.replies.pop_front() };
        let byte = match reply {
            Some(byte) => byte,
            None => {
                let (byte, is_last) = self.events.pop_front()?;
                self.is_mid_event = !is_last;
                byte
            }
        };
        self.last = byte;
        Some(byte)
    }

    /// Takes a byte from the controller.
    pub fn receive(&mut self, byte: u8) {
        match self.awaits_data.take() {
            // No data byte is as high as a command: the guest has thought better of it.
            Some(command) if byte < command::SET_LEDS => self.take_data(command, byte),
            _ => self.obey(byte),
        }
    }

    fn take_data(&mut self, command: u8, data: u8) {
        match command {
            command::SET_LEDS => self.leds = data & 0x07,
            command::SET_TYPEMATIC => self.typematic = data & 0x7f,
            command::SCAN_CODE_SET => match data {
                0 => {
                    self.reply(&[answer::ACKNOWLEDGE, self.scan_code_set]);
                    return;
                }
                1..=2 => self.scan_code_set = data,
                // Set 3 is not there, as on many keyboards.
                _ => {
                    self.reply(&[answer::RESEND]);
                    return;
                }
            },
            _ => {}
        }
        self.reply(&[answer::ACKNOWLEDGE]);
    }

    fn obey(&mut self, command: u8) {
        match command {
            command::SET_LEDS | command::SCAN_CODE_SET | command::SET_TYPEMATIC => {
                self.awaits_data = Some(command);
                self.reply(&[answer::ACKNOWLEDGE]);
            }
            command::ECHO => self.reply(&[answer::ECHO]),
            command::IDENTIFY => {
                let [high, low] = answer::IDENTITY;
                self.reply(&[answer::ACKNOWLEDGE, high, low]);
            }
            command::ENABLE => {
                self.is_scanning = true;
                self.reply(&[answer::ACKNOWLEDGE]);
            }
            command::DISABLE | command::SET_DEFAULTS => {
                self.set_defaults();
                self.is_scanning = command == command::SET_DEFAULTS;
                self.reply(&[answer::ACKNOWLEDGE]);
            }
            command::SET_ALL_FIRST..=command::SET_ALL_LAST => self.reply(&[answer::ACKNOWLEDGE]),
            command::RESEND => self.reply(&[self.last]),
            command::RESET => {
                *self = Self::new();
                self.reply(&[answer::ACKNOWLEDGE, answer::TEST_PASSED]);
            }
            _ => self.reply(&[answer::RESEND]),
        }
    }

    fn set_defaults(&mut self) {
        self.events.clear();
        self.is_mid_event = false;
        self.scan_code_set = 2;
        self.typematic = DEFAULT_TYPEMATIC;
    }

    /// Queues an answer, whole or not at all.
    fn reply(&mut self, bytes: &[u8]) {
        if self.replies.len().saturating_add(bytes.len()) <= MAX_REPLIES {
            self.replies.extend(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_translation_has_each_key_of_the_first_pc_once() {
        let mut seen = [0; 256];
        for set_2 in 1..128 {
            seen[usize::from(set_1_code(set_2))] += 1;
        }
        assert_eq!(seen[1..128], [1; 127]);
    }

    #[test]
    fn known_keys_have_their_codes_in_both_sets() {
        // Escape, 1, Q, A, Enter, left Ctrl, left Shift, space, F1, F7, F11, F12, keypad 0 and minus, num lock, Alt+SysRq.
        for (set_1, set_2) in [
            (0x01, 0x76),
            (0x02, 0x16),
            (0x10, 0x15),
            (0x1e, 0x1c),
            (0x1c, 0x5a),
            (0x1d, 0x14),
            (0x2a, 0x12),
            (0x39, 0x29),
            (0x3b, 0x05),
            (0x41, 0x83),
            (0x57, 0x78),
            (0x58, 0x07),
            (0x52, 0x70),
            (0x4a, 0x7b),
            (0x45, 0x77),
            (0x54, 0x84),
        ] {
            assert_eq!((set_2_code(set_1), set_1_code(set_2)), (Some(set_2), set_1), "{set_1:#x}");
        }
    }

    #[test]
    fn answers_and_prefixes_are_not_translated() {
        for byte in [0xaa, 0xab, 0xe0, 0xe1, 0xee, 0xfa, 0xfe] {
            assert_eq!(set_1_code(byte), byte);
        }
    }
}
