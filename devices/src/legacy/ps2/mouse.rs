//! The mouse (IBM PS/2 Hardware Interface Technical Reference, 1988, "Auxiliary Device"; wheel as Microsoft's
//! IntelliMouse has it, after the sample rates 200, 100, 80).
//!
//! Scaling 2:1, resolution and sample rate are kept and reported but change nothing: motion comes from a pointer that is
//! already scaled.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::MAX_REPLIES;

/// Motions that wait for the guest, each with buttons other than the one before.
const MAX_MOTIONS: usize = 16;

/// Bytes of a packet with a wheel.
const MAX_PACKET_BYTES: usize = 4;

/// Most motion of one packet: with the sign's bit, but away from the overflow bits, which some drivers take for errors.
const MAX_STEP: i32 = 127;

/// Most turn of the wheel of one packet: other mice use the upper half of the byte.
const MAX_WHEEL_STEP: i32 = 7;

/// Sample rates that turn the wheel on.
const WHEEL_KNOCK: [u8; 3] = [200, 100, 80];

/// Identities.
const STANDARD: u8 = 0;
const WITH_WHEEL: u8 = 3;

const ALL_BUTTONS: u8 = 0x07;

/// Commands.
mod command {
    /// The lowest; no data byte is as high.
    pub const SCALE_1: u8 = 0xe6;
    pub const SCALE_2: u8 = 0xe7;
    pub const SET_RESOLUTION: u8 = 0xe8;
    pub const STATUS: u8 = 0xe9;
    pub const STREAM: u8 = 0xea;
    pub const READ: u8 = 0xeb;
    pub const END_WRAP: u8 = 0xec;
    pub const WRAP: u8 = 0xee;
    pub const REMOTE: u8 = 0xf0;
    pub const IDENTIFY: u8 = 0xf2;
    pub const SET_RATE: u8 = 0xf3;
    pub const ENABLE: u8 = 0xf4;
    pub const DISABLE: u8 = 0xf5;
    pub const SET_DEFAULTS: u8 = 0xf6;
    pub const RESEND: u8 = 0xfe;
    pub const RESET: u8 = 0xff;
}

/// Answers.
mod answer {
    pub const ACKNOWLEDGE: u8 = 0xfa;
    pub const RESEND: u8 = 0xfe;
    pub const TEST_PASSED: u8 = 0xaa;
}

/// What a hand does to the mouse.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MouseEvent {
    /// Motion to the right.
    pub right: i32,
    /// Motion down, towards the hand.
    pub down: i32,
    /// Turn of the wheel towards the hand.
    pub wheel: i32,
    /// Buttons held after it: bit 0 left, 1 right, 2 middle.
    pub buttons: u8,
}

impl MouseEvent {
    fn add(&mut self, other: Self) {
        self.right = self.right.saturating_add(other.right);
        self.down = self.down.saturating_add(other.down);
        self.wheel = self.wheel.saturating_add(other.wheel);
        self.buttons = other.buttons;
    }

    fn is_at_rest(&self) -> bool {
        self.right == 0 && self.down == 0 && self.wheel == 0
    }
}

/// The mouse's registers and bytes under way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mouse {
    replies: VecDeque<u8>,
    /// The rest of the packet that goes out; an answer may not come into it once it has begun.
    packet: VecDeque<u8>,
    motions: VecDeque<MouseEvent>,
    /// Buttons that the last packet showed, or the last motion nobody wanted.
    buttons: u8,
    /// The command whose data byte is next.
    awaits_data: Option<u8>,
    is_reporting: bool,
    is_remote: bool,
    is_wrapping: bool,
    is_scaling: bool,
    resolution: u8,
    rate: u8,
    /// Sample rates that followed each other as in the knock.
    knocks: u8,
    identity: u8,
    /// What is sent again on request.
    last: u8,
}

impl Mouse {
    /// A mouse that has passed its test, and reports nothing until it is told to.
    pub fn new() -> Self {
        Self {
            replies: VecDeque::new(),
            packet: VecDeque::new(),
            motions: VecDeque::new(),
            buttons: 0,
            awaits_data: None,
            is_reporting: false,
            is_remote: false,
            is_wrapping: false,
            is_scaling: false,
            resolution: 2,
            rate: 100,
            knocks: 0,
            identity: STANDARD,
            last: 0,
        }
    }

    /// Whether no more waits than ever can.
    pub fn is_bounded(&self) -> bool {
        self.replies.len() <= MAX_REPLIES && self.packet.len() <= MAX_PACKET_BYTES && self.motions.len() <= MAX_MOTIONS
    }

    /// Moves the mouse.
    pub fn move_by(&mut self, event: MouseEvent) {
        let event = MouseEvent { buttons: event.buttons & ALL_BUTTONS, ..event };
        if !self.is_reporting && !self.is_remote {
            self.buttons = event.buttons;
            return;
        }
        let is_full = self.motions.len() >= MAX_MOTIONS;
        match self.motions.back_mut() {
            Some(last) if is_full || last.buttons == event.buttons => last.add(event),
            None if event.is_at_rest() && event.buttons == self.buttons => {}
            _ => self.motions.push_back(event),
        }
    }

    /// The next byte for the controller.
    pub fn send(&mut self) -> Option<u8> {
        let byte = match self.packet.pop_front() {
            Some(byte) => byte,
            None => match self.replies.pop_front() {
                Some(byte) => byte,
                None => self.begin_packet()?,
            },
        };
        self.last = byte;
        Some(byte)
    }

    fn begin_packet(&mut self) -> Option<u8> {
        if !self.is_reporting || self.is_remote || self.is_wrapping || self.motions.is_empty() {
            return None;
        }
        self.packet = self.take_motion();
        self.packet.pop_front()
    }

    /// The packet of what is next of the motions; where there is none, one that says so.
    fn take_motion(&mut self) -> VecDeque<u8> {
        let mut motion = self.motions.pop_front().unwrap_or(MouseEvent { buttons: self.buttons, ..Default::default() });
        let right = motion.right.clamp(-MAX_STEP, MAX_STEP);
        let down = motion.down.clamp(-MAX_STEP, MAX_STEP);
        let wheel = motion.wheel.clamp(-MAX_WHEEL_STEP, MAX_WHEEL_STEP);
        self.buttons = motion.buttons;

        motion.right = motion.right.saturating_sub(right);
        motion.down = motion.down.saturating_sub(down);
        motion.wheel = if self.identity == WITH_WHEEL { motion.wheel.saturating_sub(wheel) } else { 0 };
        if !motion.is_at_rest() {
            self.motions.push_front(motion);
        }

        // Up is positive on this wire.
        let up = down.saturating_neg();
        let signs = if right < 0 { 0x10 } else { 0 } | if up < 0 { 0x20 } else { 0 };
        let mut packet = VecDeque::with_capacity(MAX_PACKET_BYTES);
        packet.extend([self.buttons | 0x08 | signs, low_byte(right), low_byte(up)]);
        if self.identity == WITH_WHEEL {
            packet.push_back(low_byte(wheel));
        }
        packet
    }

    /// Takes a byte from the controller.
    pub fn receive(&mut self, byte: u8) {
        if self.is_wrapping && !matches!(byte, command::END_WRAP | command::RESET) {
            self.reply(&[byte]);
            return;
        }
        match self.awaits_data.take() {
            Some(command) if byte < command::SCALE_1 => {
                self.take_data(command, byte);
                self.reply(&[answer::ACKNOWLEDGE]);
            }
            _ => self.obey(byte),
        }
    }

    fn take_data(&mut self, command: u8, data: u8) {
        if command == command::SET_RESOLUTION {
            self.resolution = data & 0x03;
            return;
        }
        self.rate = data;
        let [first, second, third] = WHEEL_KNOCK;
        self.knocks = match (self.knocks, data) {
            (1, rate) if rate == second => 2,
            (2, rate) if rate == third => {
                self.identity = WITH_WHEEL;
                0
            }
            (_, rate) if rate == first => 1,
            _ => 0,
        };
    }

    fn obey(&mut self, command: u8) {
        match command {
            command::SCALE_1 | command::SCALE_2 => self.is_scaling = command == command::SCALE_2,
            command::SET_RESOLUTION | command::SET_RATE => self.awaits_data = Some(command),
            command::STATUS => {
                let bit = |on: bool, bit: u8| if on { bit } else { 0 };
                let buttons = bit(self.buttons & 0x01 != 0, 0x04)
                    | bit(self.buttons & 0x04 != 0, 0x02)
                    | bit(self.buttons & 0x02 != 0, 0x01);
                let modes = bit(self.is_remote, 0x40) | bit(self.is_reporting, 0x20) | bit(self.is_scaling, 0x10);
                self.reply(&[answer::ACKNOWLEDGE, modes | buttons, self.resolution, self.rate]);
                return;
            }
            command::STREAM | command::REMOTE => {
                self.drop_motions();
                self.is_remote = command == command::REMOTE;
            }
            command::READ => {
                let mut packet = self.take_motion();
                packet.push_front(answer::ACKNOWLEDGE);
                self.reply(packet.make_contiguous());
                return;
            }
            command::END_WRAP | command::WRAP => {
                self.drop_motions();
                self.is_wrapping = command == command::WRAP;
            }
            command::IDENTIFY => {
                self.reply(&[answer::ACKNOWLEDGE, self.identity]);
                return;
            }
            command::ENABLE => self.is_reporting = true,
            command::DISABLE => {
                self.drop_motions();
                self.is_reporting = false;
            }
            command::SET_DEFAULTS => {
                let (replies, identity) = (std::mem::take(&mut self.replies), self.identity);
                *self = Self { replies, identity, buttons: self.buttons, last: self.last, ..Self::new() };
            }
            command::RESEND => {
                self.reply(&[self.last]);
                return;
            }
            command::RESET => {
                *self = Self { buttons: self.buttons, ..Self::new() };
                self.reply(&[answer::ACKNOWLEDGE, answer::TEST_PASSED, STANDARD]);
                return;
            }
            // Other makers' commands: a driver that tries one moves on at once, where silence would cost it a time-out.
            _ => {
                self.reply(&[answer::RESEND]);
                return;
            }
        }
        self.reply(&[answer::ACKNOWLEDGE]);
    }

    /// Forgets motion not yet sent, but not what the buttons are.
    fn drop_motions(&mut self) {
        if let Some(motion) = self.motions.back() {
            self.buttons = motion.buttons;
        }
        self.motions.clear();
        self.packet.clear();
    }

    /// Queues an answer, whole or not at all.
    fn reply(&mut self, bytes: &[u8]) {
        if self.replies.len().saturating_add(bytes.len()) <= MAX_REPLIES {
            self.replies.extend(bytes);
        }
    }
}

/// A step of at most ±127 in two's complement.
fn low_byte(step: i32) -> u8 {
    let [low, ..] = step.to_le_bytes();
    low
}
