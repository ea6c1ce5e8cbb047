//! Programs: port accesses of a guest, and what the world does meanwhile.

use arbitrary::Unstructured;
use devices::legacy::clock::Clock as _;
use devices::legacy::ps2::{KeyCode, MouseEvent, PS2_DATA_PORT, PS2_STATUS_PORT};
use devices::legacy::pvpanic::PVPANIC_PORT;

use super::machine::{CMOS, COM, DEBUG, Kind, Machine, PM, PORT_92, POST, RESET, SMBUS, SMI};

/// Longer programs find no more than their halves.
const MAX_STEPS: usize = 30;

/// One thing that happens.
#[derive(Debug)]
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
    const UNITS: [u64; 8] =
        [1, 1000, 122_070, 10_000_000, 500_000_000, 1_000_000_000, 3_600_000_000_000, 40_000_000_000_000_000];
    Ok(UNITS[usize::from(scale % 8)].saturating_mul(count.into()))
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
