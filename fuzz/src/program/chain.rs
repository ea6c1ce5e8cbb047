//! Chains: what a driver of each device posts, and what a hostile one does to it.

use devices::virtio::queue::Descriptor;

use super::ops::{Op, edge};
use crate::machine::Machine;
use crate::machine::ram::{HIGH_BYTES, HIGH_START, LOW_BYTES};
use crate::machine::vmm::{ECAM, Kind, SECTORS};

/// Descriptors of the longest chain.
const MAX: usize = 40;

/// A chain on its way into a ring.
pub struct Chain {
    descs: [Descriptor; MAX],
    len: usize,
}

impl Chain {
    fn new() -> Self {
        Self { descs: [Descriptor::default(); MAX], len: 0 }
    }

    fn push(&mut self, desc: Descriptor) {
        if self.len < MAX {
            self.descs[self.len] = desc;
            self.len += 1;
        }
    }

    fn insert(&mut self, at: usize, desc: Descriptor) {
        if self.len < MAX && at <= self.len {
            self.descs.copy_within(at..self.len, at + 1);
            self.descs[at] = desc;
            self.len += 1;
        }
    }

    /// Its descriptors.
    #[must_use]
    pub fn descs(&self) -> &[Descriptor] {
        &self.descs[..self.len]
    }

    fn pick(&mut self, at: u8) -> Option<&mut Descriptor> {
        let at = usize::from(at).checked_rem(self.len)?;
        self.descs.get_mut(at)
    }
}

/// An address that is inside memory, at its edge, outside, or something else than memory.
fn address(machine: &Machine, queue: u16, v: u32) -> u64 {
    let driver = &machine.drivers[usize::from(queue) % machine.drivers.len()];
    let bar = machine.bar(crate::machine::Bar::Modern).unwrap_or(0xe020_0000);
    let places = [
        driver.desc,
        driver.avail,
        driver.used,
        driver.used + 4,
        LOW_BYTES,
        LOW_BYTES - 1,
        LOW_BYTES - 16,
        LOW_BYTES - 256,
        HIGH_START,
        HIGH_START + HIGH_BYTES - 8,
        HIGH_START + HIGH_BYTES,
        HIGH_START - 8,
        u64::MAX,
        u64::MAX - 255,
        1 << 63,
        ECAM,
        bar,
        bar + 0x3000,
        0xfee0_0000,
        0,
    ];
    match v & 3 {
        0 => places[(v >> 2) as usize % places.len()],
        1 => (u64::from(v >> 2) % LOW_BYTES) & !15,
        2 => driver.desc + 0x4000 + u64::from(v >> 2 & 0xff) * 16,
        _ => HIGH_START + u64::from(v >> 2) % HIGH_BYTES,
    }
}

fn device_buffer(machine: &mut Machine, queue: u16, len: u32) -> u64 {
    let at = usize::from(queue) % machine.drivers.len();
    machine.drivers[at].buffer(len)
}

/// A device-readable buffer with this content.
fn readable(machine: &mut Machine, queue: u16, content: &[u8]) -> Descriptor {
    let addr = device_buffer(machine, queue, content.len() as u32);
    machine.ram.poke(addr, content);
    Descriptor { addr, len: content.len() as u32, flags: 0, next: 0 }
}

fn writable(machine: &mut Machine, queue: u16, len: u32) -> Descriptor {
    let addr = device_buffer(machine, queue, len);
    Descriptor { addr, len, flags: Descriptor::WRITE, next: 0 }
}

/// What a driver's requests are made of; operands choose from these.
pub(crate) mod palette {
    /// Types of disk requests (§5.2.6).
    pub const DISK: [u32; 16] = [0, 1, 0, 1, 4, 8, 11, 13, 0, 1, 0, 1, 5, 13, 2, 0xffff];
    /// Bytes of data of a read or write.
    pub const DISK_BYTES: [u32; 8] = [512, 1024, 512, 1536, 4096, 512, 513, 0];
    /// Sectors to discard or to write zeroes to.
    pub const ERASE_SECTORS: [u32; 6] = [1, 2, 8, 0, 33, u32::MAX];
    /// Bytes of a buffer for a frame.
    pub const RECEIVE_BYTES: [u32; 16] =
        [1526, 72, 256, 2048, 1526, 4096, 12, 10, 1, 32768, 65562, 100, 13, 64, 1526, 1526];
    /// Bytes of a frame to be sent.
    pub const FRAME_BYTES: [u32; 8] = [60, 1, 500, 1514, 0, 60, 60, 3000];
    /// Addresses frames go to and drivers name: the card's, those of other stations, of groups, and everybody's.
    pub const ADDRESSES: [[u8; 6]; 8] = [
        [2, 0, 0, 0, 0, 1],
        [2, 0, 0, 0, 0, 2],
        [0x33, 0x33, 0, 0, 0, 1],
        [0xff; 6],
        [1, 0, 0x5e, 0, 0, 1],
        [2, 7, 7, 7, 7, 7],
        [0; 6],
        [3, 7, 7, 7, 7, 7],
    ];
    /// VLANs, and what is none.
    pub const VLANS: [u16; 8] = [0, 1, 5, 4095, 4096, 0xffff, 63, 64];
    /// Queue pairs that a driver asks for.
    pub const PAIRS: [u16; 8] = [1, 2, 2, 1, 2, 0, 3, 0x200];
    /// Addresses in a half of a MAC table.
    pub const TABLE: [usize; 8] = [0, 1, 2, 3, 64, 65, 70, 5];
    /// Bytes of a buffer of a console.
    pub const TEXT_BYTES: [u32; 8] = [5, 64, 1, 300, 4096, 4097, 40000, 16];
    /// Random bytes that are asked for.
    pub const RANDOM_BYTES: [u32; 6] = [8, 64, 4096, 5000, 1, 20000];
}

/// A request the driver of the device would make.
#[must_use]
pub fn request(machine: &mut Machine, queue: u16, op: &Op) -> Chain {
    let mut chain = Chain::new();
    match machine.shape.kind {
        Kind::Blk => disk(machine, queue, op, &mut chain),
        Kind::Net if queue == machine.control() => command(machine, queue, op, &mut chain),
        Kind::Net => frame(machine, queue, op, &mut chain),
        Kind::Console => text(machine, queue, op, &mut chain),
        Kind::Rng => chain.push(writable(machine, queue, palette::RANDOM_BYTES[usize::from(op.b % 6)])),
    }
    chain
}

fn disk(machine: &mut Machine, queue: u16, op: &Op, chain: &mut Chain) {
    let kind = palette::DISK[usize::from(op.b & 15)];
    let sector = match op.b >> 4 {
        0..=11 => u64::from(op.v) % SECTORS,
        12 => SECTORS - 1,
        13 => SECTORS,
        14 => u64::MAX - u64::from(op.v & 3),
        _ => u64::MAX / 512,
    };
    let mut header = [0; 16];
    header[..4].copy_from_slice(&kind.to_le_bytes());
    header[8..].copy_from_slice(&sector.to_le_bytes());
    chain.push(readable(machine, queue, &header));
    let data = palette::DISK_BYTES[(op.v >> 8 & 7) as usize];
    match kind {
        0 => chain.push(writable(machine, queue, data)),
        1 => {
            let content = [(op.v >> 16) as u8 ^ op.a; 4096];
            chain.push(readable(machine, queue, &content[..data as usize]));
        }
        8 => chain.push(writable(machine, queue, [20, 4, 30][usize::from(op.v as u8 % 3)])),
        11 | 13 => {
            let sectors = palette::ERASE_SECTORS[(op.v >> 8) as usize % 6];
            let flags = [0, 0, 1, 2][(op.v >> 16) as usize % 4];
            let mut segments = [0; 48];
            for (nth, segment) in segments.chunks_exact_mut(16).enumerate() {
                let sector = sector.wrapping_add(nth as u64);
                segment[..8].copy_from_slice(&sector.to_le_bytes());
                segment[8..12].copy_from_slice(&sectors.to_le_bytes());
                segment[12..].copy_from_slice(&u32::to_le_bytes(flags));
            }
            let bytes = [16, 16, 16, 32, 16, 16, 16, 48][(op.v >> 20) as usize % 8];
            chain.push(readable(machine, queue, &segments[..bytes]));
        }
        _ => {}
    }
    let status = writable(machine, queue, 1);
    machine.ram.set_word(status.addr, 1, 0xee);
    chain.push(status);
}

fn frame(machine: &mut Machine, queue: u16, op: &Op, chain: &mut Chain) {
    if queue.is_multiple_of(2) {
        chain.push(writable(machine, queue, palette::RECEIVE_BYTES[usize::from(op.b & 15)]));
        return;
    }
    let mut header = [0; 12];
    header[..4].copy_from_slice(&op.v.to_le_bytes());
    if op.b & 0x40 != 0 {
        header[0] = 0;
        header[1] = 0;
    }
    let len = palette::FRAME_BYTES[usize::from(op.b & 7)] as usize;
    let content = [op.v as u8; 3000];
    if op.b & 0x30 == 0x30 {
        // Header and payload in one buffer, as modern drivers may.
        let mut both = [op.v as u8; 3012];
        both[..12].copy_from_slice(&header);
        chain.push(readable(machine, queue, &both[..12 + len]));
    } else {
        let bytes = if op.b & 0x80 == 0 { 12 } else { 10 };
        chain.push(readable(machine, queue, &header[..bytes]));
        chain.push(readable(machine, queue, &content[..len]));
    }
    if op.b & 0x0f == 0x0f {
        // Longer than any frame: the same memory over and over.
        for _ in 0..3 {
            chain.push(Descriptor { addr: 0xc_0000, len: 0x8000, flags: 0, next: 0 });
        }
    }
}

/// To whom a frame goes, and behind which tag; nothing where it is just any bytes.
#[must_use]
pub fn destination(b: u8, v: u32) -> Option<([u8; 6], Option<u16>)> {
    let vlan = palette::VLANS[(v >> 20 & 7) as usize] | (v >> 16) as u16 & 0xe000;
    let mac = palette::ADDRESSES[usize::from(b & 7)];
    (b > 0).then_some((mac, (b & 0x18 == 0x18).then_some(vlan)))
}

/// A command of a card's driver (§5.1.6.5).
fn command(machine: &mut Machine, queue: u16, op: &Op, chain: &mut Chain) {
    let mut bytes = [0; 1024];
    let mut len = 2;
    let mut add = |more: &[u8]| {
        bytes[len..len + more.len()].copy_from_slice(more);
        len += more.len();
    };
    let (v, kind) = (op.v, op.b & 15);
    let header = match kind {
        10..=12 if machine.shape.pairs > 1 => [4, 0],
        // Promiscuous mode is the one without which the others show.
        0..=2 => [0, 0],
        3..=5 => [0, (v % 7) as u8],
        6..=8 => [1, 0],
        9 => [1, 1],
        10 | 11 => [2, (v >> 8 & 1) as u8],
        12 => [2, 0],
        13 if v & 1 == 0 => [3, 0],
        13 | 14 => [5, 0],
        _ => [v as u8 & 7, (v >> 8) as u8 & 7],
    };
    match header {
        [0, _] => add(&[[0, 0, 0, 1, 0, 1, 0, 2][(v >> 12 & 7) as usize] ^ u8::from(header[1] != 0)]),
        [1, 0] => {
            for shift in [4, 8] {
                let count = palette::TABLE[(v >> shift & 7) as usize];
                let claimed = if v >> 28 == 0xf { edge(v) as u32 } else { count as u32 };
                add(&claimed.to_le_bytes());
                for nth in 0..count {
                    add(&palette::ADDRESSES[(v as usize + nth) % 8]);
                }
            }
        }
        [1, 1] => add(&palette::ADDRESSES[(v & 7) as usize]),
        [2, _] => add(&palette::VLANS[(v & 7) as usize].to_le_bytes()),
        [3, _] => {}
        [4, 0] => add(&palette::PAIRS[(v & 7) as usize].to_le_bytes()),
        [5, _] => {
            let known = u64::from(v) & 0x382;
            let bits = if v >> 29 == 7 { 1 << (v >> 10 & 63) } else { known };
            add(&bits.to_le_bytes());
        }
        _ => add(&v.to_le_bytes()),
    }
    bytes[..2].copy_from_slice(&header);
    if op.b & 0x10 == 0 {
        chain.push(readable(machine, queue, &bytes[..2]));
        if len > 2 {
            chain.push(readable(machine, queue, &bytes[2..len]));
        }
    } else {
        chain.push(readable(machine, queue, &bytes[..len]));
    }
    let answer = writable(machine, queue, 1);
    machine.ram.set_word(answer.addr, 1, 0xee);
    chain.push(answer);
}

fn text(machine: &mut Machine, queue: u16, op: &Op, chain: &mut Chain) {
    let len = palette::TEXT_BYTES[usize::from(op.b & 7)];
    if queue == 0 {
        chain.push(writable(machine, queue, len));
    } else {
        let word = op.v.to_le_bytes();
        let mut desc = writable(machine, queue, len);
        machine.ram.poke(desc.addr, &word);
        machine.ram.poke(desc.addr + u64::from(len) - 1, &word[1..2]);
        desc.flags = 0;
        chain.push(desc);
    }
}

/// What a hostile driver does to a chain: chosen by the upper half of `c`.
pub fn spoil(machine: &Machine, queue: u16, op: &Op, chain: &mut Chain) {
    let at = (op.v >> 24) as u8;
    match op.c >> 4 {
        9 => {
            let flags = if chain.len > 0 { chain.descs[usize::from(at) % chain.len].flags } else { 0 };
            let empty = Descriptor { addr: address(machine, queue, op.v >> 8), len: 0, flags, next: 0 };
            let place = usize::from(at) % (chain.len + 1);
            chain.insert(place, empty);
        }
        10 => {
            if let Some(desc) = chain.pick(at) {
                desc.len = edge(op.v) as u32;
            }
        }
        11 => {
            let addr = address(machine, queue, op.v);
            if let Some(desc) = chain.pick(at) {
                desc.addr = addr;
            }
        }
        12 => {
            if let Some(desc) = chain.pick(at) {
                desc.flags ^= [2, 4, 2, 6][usize::from(op.b >> 6)];
            }
        }
        13 => {
            // The last descriptor goes on somewhere.
            if let Some(desc) = chain.len.checked_sub(1).and_then(|last| chain.descs.get_mut(last)) {
                desc.flags |= Descriptor::NEXT;
                desc.next = edge(op.v) as u16;
            }
        }
        14 => {
            // In small pieces.
            let mut pieces = Chain::new();
            for desc in chain.descs() {
                let piece = 1 + u32::from(at & 31);
                let mut done = 0;
                while done < desc.len && pieces.len + chain.len < MAX {
                    let len = piece.min(desc.len - done);
                    pieces.push(Descriptor { addr: desc.addr.wrapping_add(u64::from(done)), len, ..*desc });
                    done += len;
                }
                if done < desc.len {
                    pieces.push(Descriptor {
                        addr: desc.addr.wrapping_add(u64::from(done)),
                        len: desc.len - done,
                        ..*desc
                    });
                }
            }
            *chain = pieces;
        }
        15 => chain.len = chain.len.saturating_sub(1 + usize::from(at & 1)),
        _ => {}
    }
}

/// Descriptors of any kind.
#[must_use]
pub fn hostile(machine: &Machine, queue: u16, op: &Op) -> Chain {
    let mut chain = Chain::new();
    let mut state = op.v ^ u32::from(op.c) << 16 | 1;
    let mut next = || {
        // xorshift: every bit of the operation decides something.
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state
    };
    let count = [1, 2, 3, 4, 5, 9, 17, 33][usize::from(op.b & 7)];
    let mut write = 0;
    for _ in 0..count {
        let (what, place, len) = (next(), next(), next());
        if what & 3 == 0 {
            write = Descriptor::WRITE;
        }
        let odd = if what >> 8 & 15 == 0 { what as u16 >> 12 } else { 0 };
        let addr = if what >> 4 & 7 == 0 { address(machine, queue, place) } else { address(machine, queue, place | 3) };
        let len = if what >> 16 & 7 == 0 { edge(len) as u32 } else { len & 0x1ff };
        chain.push(Descriptor { addr, len, flags: write ^ odd, next: (what >> 20) as u16 & 15 });
    }
    chain
}

/// Puts a chain into the ring, through the layout the lower bits of `c` choose; `false` where there is no room.
pub fn place(machine: &mut Machine, queue: u16, op: &Op, chain: &Chain) -> bool {
    let at = usize::from(queue) % machine.drivers.len();
    let packed = machine.drivers[at].packed;
    let direct = match op.c & 3 {
        1 => 0,
        2 if !packed => chain.len / 2,
        _ => chain.len,
    };
    if direct == chain.len {
        return machine.drivers[at].place(&machine.ram, chain.descs());
    }
    let (head, table) = chain.descs().split_at(direct);
    let mut bytes = [0; 16 * MAX];
    for (i, desc) in table.iter().enumerate() {
        let last = i + 1 == table.len();
        let desc = match packed {
            // §2.8.7: the flags stand where a split ring has the next index.
            true => Descriptor { flags: 0, next: desc.flags, ..*desc },
            false if last => *desc,
            false => Descriptor { flags: desc.flags | Descriptor::NEXT, next: i as u16 + 1, ..*desc },
        };
        bytes[16 * i..16 * (i + 1)].copy_from_slice(&desc.to_bytes());
    }
    let mut whole = readable(machine, queue, &bytes[..16 * table.len()]);
    whole.flags = Descriptor::INDIRECT;
    if op.c & 0x0c == 0x0c {
        // Longer than it is, or not a whole number of descriptors.
        whole.len = [whole.len + 8, 16 * 17, 16 * 129, 0][(op.v >> 30) as usize];
    }
    let mut outer = Chain::new();
    head.iter().for_each(|desc| outer.push(*desc));
    outer.push(whole);
    machine.drivers[at].place(&machine.ram, outer.descs())
}
