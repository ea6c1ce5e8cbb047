//! Programs: port accesses of a guest, and what the world does meanwhile.

use arbitrary::Unstructured;
use devices::legacy::clock::Clock as _;
use devices::legacy::ps2::{KeyCode, MouseEvent, PS2_DATA_PORT, PS2_STATUS_PORT};
use devices::legacy::pvpanic::PVPANIC_PORT;

use super::machine::{CMOS, COM, DEBUG, Kind, Machine, PM, PORT_92, POST, RESET, SMBUS, SMI};

/// Longer programs find no more than their halves.
pub const MAX_STEPS: usize = 30;

/// One thing that happens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    Read {
        port: u16,
        width: u8,
    },
    Write {
        port: u16,
        width: u8,
        value: u64,
    },
    /// Index, then data.
    CmosWrite {
        register: u8,
        value: u8,
    },
    CmosRead {
        register: u8,
    },
    /// A byte for the mouse.
    ToMouse {
        byte: u8,
    },
    /// Somebody types on a serial line.
    Input {
        com: bool,
        bytes: u16,
    },
    Output {
        com: bool,
        bytes: u16,
    },
    DebugOutput {
        bytes: u16,
    },
    Carrier {
        com: bool,
        carrier: bool,
    },
    Break {
        com: bool,
    },
    Key {
        code: u8,
        is_pressed: bool,
    },
    Mouse {
        right: i8,
        down: i8,
        wheel: i8,
        buttons: u8,
    },
    PowerButton,
    Gpe {
        bit: u8,
    },
    Pass {
        ns: u64,
    },
    Reset,
    SaveAndRestore,
}

/// A program, and the machine it runs on.
pub struct Program {
    pub kind: Kind,
    pub steps: Vec<Step>,
}

impl Program {
    /// Every input is a program: where it ends, so does the program.
    pub fn read(data: &[u8]) -> Self {
        let mut input = Unstructured::new(data);
        let kind = input.arbitrary::<u8>().unwrap_or(0);
        let kind = Kind { timer_32_bits: kind & 1 != 0, wide_gpe: kind & 2 != 0, smi: kind & 4 != 0 };
        let mut steps = Vec::new();
        while !input.is_empty() && steps.len() < MAX_STEPS {
            let Ok(step) = step(&mut input) else { break };
            steps.push(step);
        }
        Self { kind, steps }
    }

    /// An input that [reads](Self::read) as this program, as far as its numbers are ones an input can say.
    pub fn bytes(&self) -> Vec<u8> {
        let Kind { timer_32_bits, wide_gpe, smi } = self.kind;
        let mut out = vec![u8::from(timer_32_bits) | u8::from(wide_gpe) << 1 | u8::from(smi) << 2];
        self.steps.iter().for_each(|step| put_step(step, &mut out));
        out
    }
}

fn step(input: &mut Unstructured) -> arbitrary::Result<Step> {
    let kind: u8 = input.arbitrary()?;
    let com = kind & 0x80 != 0;
    Ok(match kind & 0x7f {
        0..=31 => Step::Read { port: port(input)?, width: width(input)? },
        32..=71 => Step::Write { port: port(input)?, width: width(input)?, value: value(input)? },
        72..=83 => Step::CmosWrite { register: input.arbitrary()?, value: input.arbitrary()? },
        84..=87 => Step::CmosRead { register: input.arbitrary()? },
        88..=91 => Step::ToMouse { byte: input.arbitrary()? },
        92..=95 => Step::Input { com, bytes: input.arbitrary::<u16>()? & 0x1ff },
        96..=99 => Step::Output { com, bytes: input.arbitrary::<u16>()? & 0x1ff },
        100 => Step::DebugOutput { bytes: input.arbitrary::<u16>()? & 0x1ff },
        101 => Step::Carrier { com, carrier: input.arbitrary()? },
        102 => Step::Break { com },
        103..=106 => Step::Key { code: input.arbitrary()?, is_pressed: input.arbitrary()? },
        107..=110 => Step::Mouse {
            right: input.arbitrary()?,
            down: input.arbitrary()?,
            wheel: input.arbitrary()?,
            buttons: input.arbitrary()?,
        },
        111 => Step::PowerButton,
        112 => Step::Gpe { bit: input.arbitrary()? },
        113..=120 => Step::Pass { ns: time(input)? },
        121..=122 => Step::Reset,
        _ => Step::SaveAndRestore,
    })
}

fn port(input: &mut Unstructured) -> arbitrary::Result<u16> {
    let [device, offset]: [u8; 2] = input.arbitrary()?;
    let (base, len) = match device % 16 {
        0..=2 => (COM[0], 8),
        3 => (COM[1], 8),
        4 => (CMOS, 2),
        5..=6 => (PS2_DATA_PORT, 1),
        7..=8 => (PS2_STATUS_PORT, 1),
        9..=10 => (PM, 16),
        11 => (SMI, 2),
        12 => (SMBUS, 16),
        13 => ([DEBUG, POST, PORT_92, RESET, PVPANIC_PORT][usize::from(offset % 5)], 1),
        14 => ([DEBUG, POST, PORT_92, RESET, PVPANIC_PORT, PM, COM[0]][usize::from(offset % 7)] - 1, 2),
        _ => (input.arbitrary::<u16>()?.into(), 1),
    };
    Ok(base.wrapping_add(u64::from(offset) % len) as u16)
}

/// Mostly bytes, as these devices were made for.
fn width(input: &mut Unstructured) -> arbitrary::Result<u8> {
    Ok(match input.arbitrary::<u8>()? {
        0..=191 => 1,
        192..=223 => 2,
        224..=247 => 4,
        _ => 8,
    })
}

fn value(input: &mut Unstructured) -> arbitrary::Result<u64> {
    Ok(match input.arbitrary::<u8>()? {
        0..=215 => input.arbitrary::<u8>()?.into(),
        216..=231 => u64::MAX,
        _ => input.arbitrary()?,
    })
}

/// From less than a tick to years.
fn time(input: &mut Unstructured) -> arbitrary::Result<u64> {
    let [scale, count]: [u8; 2] = input.arbitrary()?;
    Ok(UNITS_NS[usize::from(scale % 8)].saturating_mul(count.into()))
}

const UNITS_NS: [u64; 8] =
    [1, 1000, 122_070, 10_000_000, 500_000_000, 1_000_000_000, 3_600_000_000_000, 40_000_000_000_000_000];

/// Writes what [`step`] reads.
fn put_step(step: &Step, out: &mut Vec<u8>) {
    let com_bit = |com: bool| if com { 0x80 } else { 0 };
    match *step {
        Step::Read { port, width } => {
            out.push(0);
            put_port(port, out);
            put_width(width, out);
        }
        Step::Write { port, width, value } => {
            out.push(32);
            put_port(port, out);
            put_width(width, out);
            match value {
                u64::MAX => out.push(216),
                0..=0xff => out.extend([0, value as u8]),
                _ => {
                    out.push(232);
                    out.extend(value.to_le_bytes());
                }
            }
        }
        Step::CmosWrite { register, value } => out.extend([72, register, value]),
        Step::CmosRead { register } => out.extend([84, register]),
        Step::ToMouse { byte } => out.extend([88, byte]),
        Step::Input { com, bytes } => put_bytes(92 | com_bit(com), bytes, out),
        Step::Output { com, bytes } => put_bytes(96 | com_bit(com), bytes, out),
        Step::DebugOutput { bytes } => put_bytes(100, bytes, out),
        Step::Carrier { com, carrier } => out.extend([101 | com_bit(com), carrier.into()]),
        Step::Break { com } => out.push(102 | com_bit(com)),
        Step::Key { code, is_pressed } => out.extend([103, code, is_pressed.into()]),
        Step::Mouse { right, down, wheel, buttons } => {
            out.extend([107, right as u8, down as u8, wheel as u8, buttons]);
        }
        Step::PowerButton => out.push(111),
        Step::Gpe { bit } => out.extend([112, bit]),
        Step::Pass { ns } => {
            // The largest unit it is a multiple of, or as many of the smallest one that reaches as far.
            let units = || (0..8u8).zip(UNITS_NS);
            let exact = units().rev().find(|(_, unit)| ns.is_multiple_of(*unit) && ns / unit <= 0xff);
            let (scale, unit) =
                exact.or_else(|| units().find(|(_, unit)| ns / unit <= 0xff)).unwrap_or((7, UNITS_NS[7]));
            out.extend([113, scale, (ns / unit).min(0xff) as u8]);
        }
        Step::Reset => out.push(121),
        Step::SaveAndRestore => out.push(123),
    }
}

fn put_bytes(kind: u8, bytes: u16, out: &mut Vec<u8>) {
    out.push(kind);
    out.extend(bytes.to_le_bytes());
}

/// As a device's port where it is one: there a mutation finds the device's other ports.
fn put_port(port: u16, out: &mut Vec<u8>) {
    let wide = u64::from(port);
    let ranges = [
        (0, COM[0], 8),
        (3, COM[1], 8),
        (4, CMOS, 2),
        (5, PS2_DATA_PORT, 1),
        (7, PS2_STATUS_PORT, 1),
        (9, PM, 16),
        (11, SMI, 2),
        (12, SMBUS, 16),
    ];
    let singles = [DEBUG, POST, PORT_92, RESET, PVPANIC_PORT];
    if let Some((device, base, _)) = ranges.iter().find(|(_, base, len)| (*base..base + len).contains(&wide)) {
        out.extend([*device, (wide - base) as u8]);
    } else if let Some(which) = singles.iter().position(|single| *single == wide) {
        out.extend([13, which as u8]);
    } else {
        out.extend([15, 0]);
        out.extend(port.to_le_bytes());
    }
}

fn put_width(width: u8, out: &mut Vec<u8>) {
    out.push(match width {
        0 | 1 => 0,
        2 => 192,
        3 | 4 => 224,
        _ => 248,
    });
}

/// What a step showed to the guest or to the world.
#[derive(Debug, PartialEq, Eq)]
pub enum Seen {
    Nothing,
    Value(u64),
    Bytes(Vec<u8>),
    Power(Vec<Option<devices::legacy::power::ResetSource>>, (usize, usize)),
}

/// Does one step. Only the machine under `restores` is saved and restored.
pub fn perform(step: &Step, machine: &mut Machine, restores: bool) -> (Seen, Seen) {
    let seen = match *step {
        Step::Read { port, width } => Seen::Value(machine.read(port.into(), width.into())),
        Step::Write { port, width, value } => {
            machine.write(port.into(), width.into(), value);
            Seen::Nothing
        }
        Step::CmosWrite { register, value } => {
            machine.write(CMOS, 1, register.into());
            machine.write(CMOS + 1, 1, value.into());
            Seen::Nothing
        }
        Step::CmosRead { register } => {
            machine.write(CMOS, 1, register.into());
            Seen::Value(machine.read(CMOS + 1, 1))
        }
        Step::ToMouse { byte } => {
            machine.write(PS2_STATUS_PORT, 1, 0xd4);
            machine.write(PS2_DATA_PORT, 1, byte.into());
            Seen::Nothing
        }
        Step::Input { com, bytes } => {
            let text: Vec<u8> = (0..bytes).map(|byte| byte as u8).collect();
            let accepted = machine.uarts[usize::from(com)].push_input(&text);
            let owner = &mut machine.owners[usize::from(com)];
            owner.look();
            owner.refused = accepted < text.len();
            owner.for_input &= !owner.refused;
            Seen::Value(accepted as u64)
        }
        Step::Output { com, bytes } => Seen::Bytes(output(machine, com, bytes)),
        Step::DebugOutput { bytes } => {
            let mut buffer = vec![0; bytes.into()];
            let taken = machine.debug.take_output(&mut buffer);
            let owner = &mut machine.debug_owner;
            owner.look();
            assert!(taken == 0 || owner.for_output, "debug output that nobody was told of");
            owner.for_output &= taken == buffer.len();
            buffer.truncate(taken);
            Seen::Bytes(buffer)
        }
        Step::Carrier { com, carrier } => {
            machine.uarts[usize::from(com)].set_carrier(carrier);
            Seen::Nothing
        }
        Step::Break { com } => Seen::Value(machine.uarts[usize::from(com)].push_break().into()),
        Step::Key { code, is_pressed } => Seen::Value(machine.ps2.key_event(KeyCode(code), is_pressed).into()),
        Step::Mouse { right, down, wheel, buttons } => {
            let [right, down, wheel] = [right, down, wheel].map(|way| i32::from(way) * 40);
            machine.ps2.mouse_event(MouseEvent { right, down, wheel, buttons });
            Seen::Value(machine.ps2.leds().into())
        }
        Step::PowerButton => Seen::Value(machine.pm.press_power_button().into()),
        Step::Gpe { bit } => {
            machine.pm.raise_gpe(bit);
            Seen::Nothing
        }
        Step::Pass { ns } => {
            // The host's clock does not end while anybody looks.
            let left = (1 << 62) - machine.clock.monotonic_ns().min(1 << 62);
            machine.pass(ns.min(left));
            Seen::Nothing
        }
        Step::Reset => {
            machine.reset();
            Seen::Nothing
        }
        Step::SaveAndRestore => {
            machine.pass_to_whole_second();
            if restores {
                *machine = machine.restored();
            }
            Seen::Nothing
        }
    };
    (seen, Seen::Power(machine.power.take(), machine.power.take_panics()))
}

/// Output is there only for who was woken; who has taken all of it is woken again for more.
pub fn output(machine: &mut Machine, com: bool, bytes: u16) -> Vec<u8> {
    let mut buffer = vec![0; bytes.into()];
    let taken = machine.uarts[usize::from(com)].take_output(&mut buffer);
    let owner = &mut machine.owners[usize::from(com)];
    owner.look();
    assert!(taken == 0 || owner.for_output, "serial output that nobody was told of");
    owner.for_output &= taken == buffer.len();
    buffer.truncate(taken);
    buffer
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::program::mutate::Random;

    #[test]
    fn a_program_that_is_encoded_decodes_to_the_same_steps() {
        let mut random = Random::new(1);
        for _ in 0..500 {
            let data: Vec<u8> = (0..200).map(|_| random.draw() as u8).collect();
            let program = Program::read(&data);
            let again = Program::read(&program.bytes());
            assert_eq!((again.kind, again.steps), (program.kind, program.steps));
        }
    }

    #[test]
    fn any_port_and_width_of_a_guest_can_be_said() {
        for port in [0x3f8, 0x2ff, 0x70, 0x60, 0x64, 0x608, 0xb2, 0x70f, 0x402, 0x80, 0xcf9, 0x1234, 0xffff] {
            for (width, value) in [(1, 0xff), (2, 0xffff), (4, 0xffff_ffff)] {
                let steps = vec![Step::Write { port, width, value }, Step::Read { port, width }];
                let kind = Kind { timer_32_bits: true, wide_gpe: false, smi: true };
                let again = Program::read(&Program { kind, steps: steps.clone() }.bytes());
                assert_eq!((again.kind, again.steps), (kind, steps));
            }
        }
    }
}
