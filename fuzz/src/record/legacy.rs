//! What a guest did to the devices behind ports.

use super::{Access, Event, Piece};
use crate::targets::legacy::machine::{CMOS, COM, Kind};
use crate::targets::legacy::program::{MAX_STEPS, Program, Step};
use devices::legacy::ps2::{PS2_DATA_PORT, PS2_STATUS_PORT};
use devices::pci::ConfigPorts;

/// Characters in a row that are worth a step each.
const MAX_TEXT: usize = 3;
/// What is typed where a guest reads a character.
const TYPED: u16 = 16;
/// Command of the keyboard controller: the next byte goes to the mouse.
const TO_MOUSE: u64 = 0xd4;

/// All pieces of a record.
pub fn pieces(events: &[Event]) -> Vec<Piece> {
    // As the default machine is.
    let kind = Kind { timer_32_bits: true, wide_gpe: false, smi: true };
    let pieces = steps(events);
    let pieces = pieces.chunks(MAX_STEPS).map(|steps| {
        let program = Program { kind, steps: steps.to_vec() };
        Piece { data: program.bytes(), steps: steps.iter().map(label).collect() }
    });
    pieces.collect()
}

fn steps(events: &[Event]) -> Vec<Step> {
    let (mut steps, mut text) = (Vec::new(), [0usize; 2]);
    let mut accesses = events.iter().filter_map(port).peekable();
    while let Some((port, access)) = accesses.next() {
        let next = accesses.peek().copied();
        let (step, used) = step(port, access, next);
        if used {
            accesses.next();
        }
        let com = COM.iter().position(|base| *base == u64::from(port)).filter(|_| access.is_write);
        match com {
            Some(com) => {
                text[com] += 1;
                if text[com] > MAX_TEXT {
                    continue;
                }
            }
            // Between two characters a driver looks whether there is room.
            None if COM.iter().any(|base| base + 5 == u64::from(port)) => {}
            None => {
                for (com, said) in text.iter_mut().enumerate().filter(|(_, said)| **said > 0) {
                    // The process takes what was said.
                    steps.push(Step::Output { com: com == 1, bytes: 0x100 });
                    *said = 0;
                }
            }
        }
        if com.is_none() && steps.iter().rev().take(2).any(|last| *last == step) {
            continue;
        }
        let typed =
            COM.iter().position(|base| *base == u64::from(port)).filter(|_| !access.is_write && access.value != 0);
        steps.extend(typed.map(|com| Step::Input { com: com == 1, bytes: TYPED }));
        steps.push(step);
    }
    steps
}

/// A port access, unless it is for configuration space.
fn port(event: &Event) -> Option<(u16, Access)> {
    let Event::Port(port, access) = *event else { return None };
    let config = u64::from(port).checked_sub(ConfigPorts::BASE).is_some_and(|at| at < ConfigPorts::LEN);
    // The reset register lies among them.
    (!config || (port == 0xcf9 && access.width == 1)).then_some((port, access))
}

/// What an access does, and whether the one after it belongs to it.
fn step(port: u16, access: Access, next: Option<(u16, Access)>) -> (Step, bool) {
    let Access { is_write, width, value } = access;
    let wide = u64::from(port);
    let byte = value as u8;
    match next {
        Some((data, then)) if is_write && wide == CMOS && u64::from(data) == CMOS + 1 && then.width == 1 => {
            let step = match then.is_write {
                true => Step::CmosWrite { register: byte, value: then.value as u8 },
                false => Step::CmosRead { register: byte },
            };
            (step, true)
        }
        Some((data, then))
            if is_write
                && (wide, value) == (PS2_STATUS_PORT, TO_MOUSE)
                && u64::from(data) == PS2_DATA_PORT
                && then.is_write =>
        {
            (Step::ToMouse { byte: then.value as u8 }, true)
        }
        _ if is_write => (Step::Write { port, width, value }, false),
        _ => (Step::Read { port, width }, false),
    }
}

fn label(step: &Step) -> String {
    match step {
        Step::Write { port, width, .. } => format!("write {port:x} {width}"),
        step => format!("{step:x?}"),
    }
}
