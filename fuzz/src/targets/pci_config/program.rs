//! Programs: what a driver, or an attacker, does to a bus. Every value has a meaning, so that no input is wasted.

use arbitrary::{Arbitrary, Unstructured};

use super::machine::{ECAM, Machine, Profile, SHAPES};
use super::model::Model;

/// Steps are cheap and bounded: longer programs find no more than their halves.
pub const MAX_STEPS: usize = 28;

/// The way to configuration space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Arbitrary)]
pub enum Way {
    Ports,
    Ecam,
}

/// One thing that is done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Reads and compares.
    Read {
        way: Way,
        devfn: u8,
        offset: u16,
        width: u8,
    },
    Write {
        way: Way,
        devfn: u8,
        offset: u16,
        width: u8,
        value: u64,
    },
    /// Ports 0xCF8 to 0xCFF as they are, at any width: none of these may disturb what the model knows.
    RawPorts {
        offset: u8,
        width: u8,
        value: Option<u64>,
    },
    /// The command register of a virtio function.
    Command {
        function: u8,
        value: u16,
    },
    /// Asks a BAR for its size, as drivers do: all ones, read, back.
    Size {
        function: u8,
        bar: u8,
    },
    /// Moves a BAR, low half first.
    Move {
        function: u8,
        bar: u8,
        address: u64,
    },
    /// Message control of the MSI-X capability.
    Control {
        function: u8,
        value: u16,
    },
    /// A write into the MSI-X table, where it decodes.
    Table {
        function: u8,
        offset: u16,
        width: u8,
        value: u64,
    },
    /// Programs a vector with a message a local APIC takes.
    Program {
        function: u8,
        vector: u8,
        data: u8,
        masked: bool,
    },
    /// The driver gives queue 0 a vector, then a used buffer is announced.
    Used {
        function: u8,
        vector: u8,
    },
    /// The driver reads the interrupt status.
    TakeIsr {
        function: u8,
    },
    /// The driver sets the window of the configuration-access capability and goes through it.
    Window {
        function: u8,
        bar: u8,
        offset: u16,
        length: u8,
        value: Option<u32>,
    },
    Reset,
    SaveAndRestore,
}

/// A program, and the machine it runs on.
pub struct Program {
    pub profile: Profile,
    pub steps: Vec<Step>,
}

impl Program {
    /// Every input is a program: where it ends, so does the program.
    pub fn read(data: &[u8]) -> Self {
        let mut input = Unstructured::new(data);
        let profile = match input.arbitrary::<u8>().unwrap_or(0) % 4 {
            0 | 1 => Profile::I440fx,
            2 => Profile::Bhyve,
            _ => Profile::Micro,
        };
        let mut steps = Vec::new();
        while !input.is_empty() && steps.len() < MAX_STEPS {
            let Ok(step) = step(&mut input) else { break };
            steps.push(step);
        }
        Self { profile, steps }
    }

    /// An input that [reads](Self::read) as this program, as far as its numbers are ones an input can say: of others it
    /// says the nearest.
    pub fn bytes(&self) -> Vec<u8> {
        let mut out = vec![match self.profile {
            Profile::I440fx => 0,
            Profile::Bhyve => 2,
            Profile::Micro => 3,
        }];
        self.steps.iter().for_each(|step| put_step(step, &mut out));
        out
    }
}

fn step(input: &mut Unstructured) -> arbitrary::Result<Step> {
    let kind: u8 = input.arbitrary()?;
    // Three of four go to a function that is there.
    let function = (kind >> 5) % SHAPES.len() as u8;
    Ok(match kind & 0x1f {
        0..=2 => {
            Step::Read { way: input.arbitrary()?, devfn: devfn(input)?, offset: offset(input)?, width: width(input)? }
        }
        3..=6 => Step::Write {
            way: input.arbitrary()?,
            devfn: devfn(input)?,
            offset: offset(input)?,
            width: width(input)?,
            value: value(input)?,
        },
        7 => {
            let value = if input.arbitrary()? { Some(value(input)?) } else { None };
            Step::RawPorts { offset: input.arbitrary::<u8>()? & 7, width: width(input)?, value }
        }
        8..=10 => Step::Command { function, value: input.arbitrary::<u8>()? as u16 | (u16::from(kind & 1) << 10) },
        11 => Step::Size { function, bar: input.arbitrary::<u8>()? % 3 },
        12..=16 => Step::Move { function, bar: input.arbitrary::<u8>()? % 3, address: address(input)? },
        17..=18 => Step::Control { function, value: u16::from(input.arbitrary::<u8>()?) << 8 },
        19..=20 => Step::Table {
            function,
            offset: input.arbitrary::<u16>()? & 0x1fff,
            width: width(input)?,
            value: value(input)?,
        },
        21..=23 => {
            let vector = input.arbitrary()?;
            Step::Program { function, vector, data: input.arbitrary()?, masked: input.arbitrary()? }
        }
        24..=26 => Step::Used { function, vector: input.arbitrary()? },
        27 => Step::TakeIsr { function },
        28..=29 => {
            let (bar, offset) = (input.arbitrary::<u8>()?, input.arbitrary()?);
            let bar = if bar < 0xe0 { 4 } else { bar };
            let value = if kind & 1 == 0 { None } else { Some(value(input)? as u32) };
            Step::Window { function, bar, offset, length: width(input)?, value }
        }
        // Building a machine costs as much as a program.
        31 if function == 0 => Step::SaveAndRestore,
        _ => Step::Reset,
    })
}

const KNOWN: [u8; 7] = [0, 1 << 3, 1 << 3 | 3, 3 << 3, 3 << 3 | 1, 5 << 3, 31 << 3];

fn devfn(input: &mut Unstructured) -> arbitrary::Result<u8> {
    let which: u8 = input.arbitrary()?;
    Ok(KNOWN.get(usize::from(which & 7)).copied().unwrap_or(which))
}

fn offset(input: &mut Unstructured) -> arbitrary::Result<u16> {
    let [low, high]: [u8; 2] = input.arbitrary()?;
    // One of eight lies beyond the first 256 bytes.
    Ok(u16::from(low) | if high < 0x20 { u16::from(high & 0xf) << 8 } else { 0 })
}

fn width(input: &mut Unstructured) -> arbitrary::Result<u8> {
    Ok(1 << (input.arbitrary::<u8>()? & 3))
}

fn value(input: &mut Unstructured) -> arbitrary::Result<u64> {
    Ok(match input.arbitrary::<u8>()? {
        0..=63 => 0,
        64..=127 => u64::MAX,
        128..=191 => input.arbitrary::<u8>()?.into(),
        _ => input.arbitrary()?,
    })
}

/// Places that matter: window borders, other BARs, RAM, other windows, the ends of the address space.
const BASES: [u64; 12] = [
    0xe000_0000,
    0xe001_0000,
    0xefff_0000,
    0xf000_0000,
    0xdfff_f000,
    0x80_0000_0000,
    0x8f_ffff_0000,
    0,
    0xc000,
    0xfe00,
    ECAM,
    u64::MAX - 0xfff,
];

fn address(input: &mut Unstructured) -> arbitrary::Result<u64> {
    let [base, page]: [u8; 2] = input.arbitrary()?;
    Ok(place(base % 12, page & 0xf))
}

fn place(base: u8, page: u8) -> u64 {
    let step = if matches!(base, 8 | 9) { 0x20 } else { 0x1000 };
    BASES[usize::from(base)].wrapping_add(u64::from(page) * step)
}

/// Writes what [`step`] reads.
fn put_step(step: &Step, out: &mut Vec<u8>) {
    match *step {
        Step::Read { way, devfn, offset, width } => {
            out.push(0);
            put_register(way, devfn, offset, width, out);
        }
        Step::Write { way, devfn, offset, width, value } => {
            out.push(3);
            put_register(way, devfn, offset, width, out);
            put_value(value, out);
        }
        Step::RawPorts { offset, width, value } => {
            out.extend([7, value.is_some().into()]);
            if let Some(value) = value {
                put_value(value, out);
            }
            // The value comes first.
            out.push(offset);
            put_width(width, out);
        }
        Step::Command { function, value } => out.extend([kind(function, 8 | (value >> 10 & 1) as u8), value as u8]),
        Step::Size { function, bar } => out.extend([kind(function, 11), bar]),
        Step::Move { function, bar, address } => {
            let places = (0..12).flat_map(|base| (0..16).map(move |page| (base, page)));
            let (base, page) =
                places.min_by_key(|(base, page)| place(*base, *page).abs_diff(address)).unwrap_or((0, 0));
            out.extend([kind(function, 12), bar, base, page]);
        }
        Step::Control { function, value } => out.extend([kind(function, 17), (value >> 8) as u8]),
        Step::Table { function, offset, width, value } => {
            out.push(kind(function, 19));
            out.extend(offset.to_le_bytes());
            put_width(width, out);
            put_value(value, out);
        }
        Step::Program { function, vector, data, masked } => {
            out.extend([kind(function, 21), vector, data, masked.into()]);
        }
        Step::Used { function, vector } => out.extend([kind(function, 24), vector]),
        Step::TakeIsr { function } => out.push(kind(function, 27)),
        Step::Window { function, bar, offset, length, value } => {
            // Below 0xe0 every byte is the modern BAR.
            out.extend([kind(function, if value.is_some() { 29 } else { 28 }), bar]);
            out.extend(offset.to_le_bytes());
            if let Some(value) = value {
                put_value(value.into(), out);
            }
            put_width(length, out);
        }
        Step::Reset => out.push(30),
        Step::SaveAndRestore => out.push(31),
    }
}

fn kind(function: u8, kind: u8) -> u8 {
    function << 5 | kind
}

fn put_register(way: Way, devfn: u8, offset: u16, width: u8, out: &mut Vec<u8>) {
    // As the derived reader has it: the number of the variant by the upper bits of 32.
    let variant: u32 = match way {
        Way::Ports => 0,
        Way::Ecam => 1 << 31,
    };
    out.extend(variant.to_le_bytes());
    // Where nobody is, any function 7 stands for the others.
    let known = KNOWN.iter().position(|known| *known == devfn);
    out.push(known.map_or(devfn | 7, |known| known as u8));
    let [low, high] = offset.to_le_bytes();
    out.extend([low, high & 0xf]);
    put_width(width, out);
}

fn put_width(width: u8, out: &mut Vec<u8>) {
    out.push(width.max(1).ilog2() as u8 & 3);
}

fn put_value(value: u64, out: &mut Vec<u8>) {
    match value {
        0 => out.push(0),
        u64::MAX => out.push(64),
        1..=0xff => out.extend([128, value as u8]),
        _ => {
            out.push(192);
            out.extend(value.to_le_bytes());
        }
    }
}

/// Does one step to machine and model, and compares.
pub fn perform(step: &Step, machine: &mut Machine, model: &mut Model) {
    match *step {
        Step::Read { way, devfn, offset, width } => model.check_read(machine, way, devfn, offset, width),
        Step::Write { way, devfn, offset, width, value } => model.write(machine, way, devfn, offset, width, value),
        Step::RawPorts { offset, width, value } => model.raw_ports(machine, offset, width, value),
        Step::Command { function, value } => model.write_register(machine, function, 0x04, 2, value.into()),
        Step::Size { function, bar } => model.size_bar(machine, function, bar),
        Step::Move { function, bar, address } => model.move_bar(machine, function, bar, address),
        Step::Control { function, value } => model.write_control(machine, function, value),
        Step::Table { function, offset, width, value } => model.write_table(machine, function, offset, width, value),
        Step::Program { function, vector, data, masked } => {
            model.program(machine, function, vector, data, masked);
        }
        Step::Used { function, vector } => model.used(machine, function, vector),
        Step::TakeIsr { function } => model.take_isr(machine, function),
        Step::Window { function, bar, offset, length, value } => {
            model.window(machine, function, bar, offset, length, value);
        }
        Step::Reset => {
            machine.reset();
            model.reset();
        }
        Step::SaveAndRestore => {
            *machine = machine.restored();
            model.restored();
        }
    }
    model.check_interrupts(machine);
    model.check_bars(machine);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::program::mutate::Random;

    #[test]
    fn a_program_that_is_encoded_decodes_to_the_same_steps() {
        let mut random = Random::new(1);
        for _ in 0..500 {
            let data: Vec<u8> = (0..300).map(|_| random.draw() as u8).collect();
            let program = Program::read(&data);
            let again = Program::read(&program.bytes());
            assert_eq!((again.profile, again.steps), (program.profile, program.steps));
        }
    }
}
