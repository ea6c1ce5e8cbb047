//! Seeds from what real guests did: reads a record of a boot (`zvmm-double --record`, whose module `record` says what is in
//! it) and turns it into programs of the targets.
//!
//! An access becomes the operation that does the same to the machine of a target: registers, configuration space, MSI-X
//! tables and ports as they are, with addresses of BARs and rings moved to where that machine has them; a chain becomes the
//! request of the nearest type and size. What a record cannot show is put where a driver or a host does it: a driver takes
//! used buffers back after its kicks, a frame arrives after one that was sent, and a serial port is read empty.
//!
//! Of all pieces of the record a few are chosen for each target: those with pairs of operations that no other has.

mod chains;
mod choose;
mod legacy;
mod pci;
mod virtio;

#[cfg(test)]
mod tests;

use std::num::ParseIntError;

/// One access, by whom it was for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A port.
    Port(u16, Access),
    /// Memory that is no RAM.
    Memory(u64, Access),
    /// Configuration space of a function of bus 0.
    Config {
        /// Through the window in memory instead of ports.
        ecam: bool,
        /// Device and function as one byte.
        devfn: u8,
        /// The register.
        offset: u16,
        /// What was done.
        access: Access,
    },
    /// A BAR of a virtio function.
    Bar {
        /// Device and function as one byte.
        devfn: u8,
        /// Its number.
        bar: u8,
        /// Where in it.
        offset: u64,
        /// What was done.
        access: Access,
    },
    /// A driver has made a chain available.
    Chain {
        /// Device and function as one byte.
        devfn: u8,
        /// The queue.
        queue: u16,
        /// How it looks.
        chain: Chain,
    },
}

/// What was read or written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// The guest wrote.
    pub is_write: bool,
    /// Bytes.
    pub width: u8,
    /// The value.
    pub value: u64,
}

/// A chain of descriptors.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    /// It is in a table of its own.
    pub indirect: bool,
    /// The first bytes the device reads.
    pub head: Vec<u8>,
    /// Bytes of each descriptor, and whether the device writes it.
    pub descs: Vec<(u32, bool)>,
}

/// Reads a record.
///
/// # Errors
/// Names the first line that is none of a record.
pub fn parse(text: &str) -> Result<Vec<Event>, String> {
    let mut lines = (1..).zip(text.lines());
    if lines.next().map(|(_, title)| title) != Some("zvmm record 1") {
        return Err("the first line is not `zvmm record 1`".to_owned());
    }
    lines.map(|(number, line)| event(line).ok_or_else(|| format!("line {number} is no access: `{line}`"))).collect()
}

fn event(line: &str) -> Option<Event> {
    let words: Vec<&str> = line.split_ascii_whitespace().collect();
    Some(match words[..] {
        ["port", way, port, width, value] => Event::Port(hex(port)?.try_into().ok()?, access(way, width, value)?),
        ["memory", way, address, width, value] => Event::Memory(hex(address)?, access(way, width, value)?),
        ["config", through, way, function, offset, width, value] => Event::Config {
            ecam: match through {
                "ports" => false,
                "ecam" => true,
                _ => return None,
            },
            devfn: devfn(function)?,
            offset: hex(offset)?.try_into().ok()?,
            access: access(way, width, value)?,
        },
        ["bar", way, function, bar, offset, width, value] => Event::Bar {
            devfn: devfn(function)?,
            bar: hex(bar)?.try_into().ok()?,
            offset: hex(offset)?,
            access: access(way, width, value)?,
        },
        ["chain", function, queue, layout, head, ref descs @ ..] => Event::Chain {
            devfn: devfn(function)?,
            queue: hex(queue)?.try_into().ok()?,
            chain: Chain {
                indirect: match layout {
                    "direct" => false,
                    "indirect" => true,
                    _ => return None,
                },
                head: if head == "-" { Vec::new() } else { bytes(head)? },
                descs: descs.iter().map(|desc| descriptor(desc)).collect::<Option<_>>()?,
            },
        },
        _ => return None,
    })
}

fn hex(word: &str) -> Option<u64> {
    let number: Result<u64, ParseIntError> = u64::from_str_radix(word, 16);
    number.ok()
}

fn access(way: &str, width: &str, value: &str) -> Option<Access> {
    let is_write = match way {
        "r" => false,
        "w" => true,
        _ => return None,
    };
    let width = hex(width).filter(|width| matches!(width, 1 | 2 | 4 | 8))?;
    Some(Access { is_write, width: width as u8, value: hex(value)? })
}

fn devfn(word: &str) -> Option<u8> {
    let (slot, function) = word.split_once('.')?;
    let (slot, function) = (hex(slot)?, hex(function)?);
    (slot < 32 && function < 8).then_some((slot << 3 | function) as u8)
}

fn bytes(word: &str) -> Option<Vec<u8>> {
    let pairs = word.as_bytes().chunks(2).map(|pair| Some(hex(std::str::from_utf8(pair).ok()?)? as u8));
    pairs.collect()
}

fn descriptor(word: &str) -> Option<(u32, bool)> {
    let (is_writable, len) = match word.split_at_checked(1)? {
        ("r", len) => (false, len),
        ("w", len) => (true, len),
        _ => return None,
    };
    Some((hex(len)?.try_into().ok()?, is_writable))
}

/// A piece of a record as a program of a target.
struct Piece {
    /// The input.
    data: Vec<u8>,
    /// What its steps are, as far as two steps are to count as the same.
    steps: Vec<String>,
}

/// Seeds of every target that a record says something about: the target's name and its inputs.
#[must_use]
pub fn seeds(events: &[Event]) -> Vec<(&'static str, Vec<Vec<u8>>)> {
    let machines = virtio::pieces(events);
    let mut transport = choose::some(machines.set_ups, 4);
    transport.extend(choose::some(machines.transport, 6));
    vec![
        ("transport", transport),
        ("blk", choose::some(machines.blk, 6)),
        ("net", choose::some(machines.net, 4)),
        ("console", choose::some(machines.console, 2)),
        ("rng", choose::some(machines.rng, 2)),
        ("queue_split", choose::some(machines.split, 3)),
        ("pci_config", choose::some(pci::pieces(events), 7)),
        ("legacy", choose::some(legacy::pieces(events), 7)),
    ]
}
