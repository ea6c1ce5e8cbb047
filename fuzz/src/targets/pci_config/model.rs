//! What a guest may expect of the bus: registers as bytes and masks, BARs as intervals, MSI-X as its specification has it
//! (PCI Local Bus 3.0 §6.1, §6.2.5, §6.8.2).

use std::sync::OnceLock;

use devices::interrupt::MsiMessage;

use devices::virtio::pci::Interfaces;

use super::machine::{ECAM, Function, Machine, Profile, SHAPES, features, windows};
use super::program::Way;

/// Offsets of the common configuration and the interrupt status in BAR 4 (virtio 1.3 §4.1.4.3, §4.1.4.5): where our
/// layout puts them.
const NUM_QUEUES: u64 = 0x12;
const STATUS: u16 = 0x14;
const QUEUE_SELECT: u64 = 0x16;
const QUEUE_VECTOR: u64 = 0x1a;
const ISR: u16 = 0x1000;
const MODERN_BYTES: u64 = 0x4000;
const PBA: u64 = 0x1000;

/// Configuration space of one function.
#[derive(Clone)]
struct Registers {
    devfn: u8,
    value: [u8; 256],
    /// Bits that keep what is written; all others keep their power-on value.
    writable: [u8; 256],
    power_on: [u8; 256],
    /// Which virtio function it is.
    virtio: Option<usize>,
    msix: Option<u8>,
    /// The configuration-access capability: reads and writes of its data go somewhere else.
    access: Option<u8>,
}

impl Registers {
    /// A function as it reads at power-on, and what a guest may change of it.
    fn read(machine: &mut Machine, (device, function): (u8, u8), virtio: Option<usize>) -> Self {
        let devfn = device << 3 | function;
        let mut value = [0; 256];
        for (offset, byte) in value.iter_mut().enumerate() {
            machine.memory_read(ECAM | u64::from(devfn) << 12 | offset as u64, std::slice::from_mut(byte));
        }
        let mut registers =
            Self { devfn, value, writable: [0; 256], power_on: value, virtio, msix: None, access: None };
        registers.allow(0x04, &[0x07, 0x04]);
        registers.allow(0x0c, &[0xff]);
        registers.allow(0x3c, &[0xff]);
        let mut at = value[0x34];
        while at != 0 {
            let [id, next] = [value[usize::from(at)], value[usize::from(at) + 1]];
            match (id, value[usize::from(at) + 3]) {
                (0x11, _) => registers.msix = Some(at),
                (0x09, 5) => registers.access = Some(at),
                _ => {}
            }
            at = next;
        }
        registers
    }

    fn allow(&mut self, offset: u8, mask: &[u8]) {
        self.writable[usize::from(offset)..][..mask.len()].copy_from_slice(mask);
    }

    fn get(&self, offset: u8, width: usize) -> u32 {
        let mut bytes = [0; 4];
        bytes[..width].copy_from_slice(&self.value[usize::from(offset)..][..width]);
        u32::from_le_bytes(bytes)
    }

    fn write(&mut self, offset: u16, data: &[u8]) {
        for (at, byte) in (usize::from(offset)..256).zip(data) {
            self.value[at] = self.value[at] & !self.writable[at] | byte & self.writable[at];
        }
    }

    fn touches_window(&self, offset: u16, len: usize) -> bool {
        self.access.is_some_and(|access| {
            let data = usize::from(access) + 16;
            usize::from(offset) < data + 4 && data < usize::from(offset) + len
        })
    }
}

/// A BAR of a virtio function.
struct Bar {
    function: usize,
    register: u8,
    len: u64,
    placed: Option<u64>,
    /// Not looked at since.
    moved: bool,
    /// Where it was before: nobody may answer there, unless somebody else has come.
    left: Option<u64>,
}

impl Bar {
    fn is_ports(&self) -> bool {
        self.register == 0
    }
}

#[derive(Clone, Copy, Default)]
struct Vector {
    message: MsiMessage,
    open: bool,
    unmasked: bool,
    pending: bool,
    told: Option<MsiMessage>,
    sent: u32,
}

/// The whole bus.
pub struct Model {
    registers: Vec<Registers>,
    bars: Vec<Bar>,
    vectors: [Vec<Vector>; 3],
    isr: [bool; 3],
    address: u32,
    steps: usize,
}

/// What bridges let a guest change, from the datasheets their sources name.
fn bridge_masks(profile: Profile, place: (u8, u8)) -> &'static [(u8, &'static [u8])] {
    match (profile, place) {
        (Profile::I440fx, (0, 0)) => {
            &[(0x04, &[0; 2]), (0x50, &[0xff; 2]), (0x59, &[0x30, 0x33, 0x33, 0x33, 0x33, 0x33, 0x33]), (0x72, &[0x78])]
        }
        (Profile::I440fx, (1, 0)) => {
            &[(0x04, &[0; 2]), (0x4c, &[0xff]), (0x4e, &[0xff; 2]), (0x60, &[0x8f; 4]), (0x82, &[0x02])]
        }
        (Profile::I440fx, _) => &[(0x80, &[0x01]), (0xd2, &[0x0f])],
        (Profile::Bhyve, (0, 0)) => &[(0x48, &[0xff; 2]), (0x59, &[0xff; 7]), (0x72, &[0xff])],
        (Profile::Bhyve, _) => &[(0x60, &[0x8f; 4]), (0x68, &[0x8f; 4]), (0x82, &[0x02])],
        (Profile::Micro, _) => &[],
    }
}

impl Model {
    /// The model of a machine after power-on. What it reads of it is read once a profile.
    pub fn of(machine: &mut Machine) -> Self {
        static POWER_ON: [OnceLock<Vec<Registers>>; 3] = [const { OnceLock::new() }; 3];
        let registers = POWER_ON[machine.profile as usize].get_or_init(|| power_on(machine)).clone();
        let bar = |function, register, len| Bar { function, register, len, placed: None, moved: false, left: None };
        // In the order in which the functions were built: of two BARs at one address the first has it.
        let bars = vec![
            bar(0, 0, 0x20),
            bar(0, 1, 0x2000),
            bar(0, 4, MODERN_BYTES),
            bar(1, 1, 0x2000),
            bar(1, 4, MODERN_BYTES),
            bar(2, 0, 0x40),
            bar(2, 4, MODERN_BYTES),
        ];
        let vectors = std::array::from_fn(|which| vec![Vector::default(); SHAPES[which].vectors]);
        Self { registers, bars, vectors, isr: [false; 3], address: 0, steps: 0 }
    }

    /// Everything as built.
    pub fn reset(&mut self) {
        for registers in &mut self.registers {
            registers.value = registers.power_on;
        }
        for vector in self.vectors.iter_mut().flatten() {
            *vector = Vector { sent: vector.sent, ..Vector::default() };
        }
        self.isr = [false; 3];
        self.address = 0;
        self.settle();
    }

    /// The machine is another one now, with the same state; what was sent, was sent to others.
    pub fn restored(&mut self) {
        for vector in self.vectors.iter_mut().flatten() {
            vector.sent = 0;
        }
    }

    fn of_devfn(&mut self, devfn: u8) -> Option<&mut Registers> {
        self.registers.iter_mut().find(|registers| registers.devfn == devfn)
    }

    fn of_function(&mut self, function: u8) -> &mut Registers {
        let which = Some(usize::from(function));
        self.registers.iter_mut().find(|registers| registers.virtio == which).unwrap()
    }

    /// A write to configuration space.
    pub fn write(&mut self, machine: &mut Machine, way: Way, devfn: u8, offset: u16, width: u8, value: u64) {
        let (offset, width) = fit(way, offset, width);
        let touches = self.of_devfn(devfn).is_some_and(|registers| registers.touches_window(offset, width));
        if touches {
            return;
        }
        let data = &value.to_le_bytes()[..width];
        match way {
            Way::Ports => {
                self.select(machine, devfn, offset);
                machine.port_write(0xcfc + u64::from(offset & 3), data);
            }
            Way::Ecam => machine.memory_write(ECAM | u64::from(devfn) << 12 | u64::from(offset), data),
        }
        if reaches(way, offset, width)
            && let Some(registers) = self.of_devfn(devfn)
        {
            registers.write(offset, data);
            if let Some(function) = registers.virtio {
                self.follow(function);
            }
        }
        self.check_read(machine, Way::Ecam, devfn, offset & !3, 4);
    }

    /// A write to a register of a virtio function.
    pub fn write_register(&mut self, machine: &mut Machine, function: u8, offset: u8, width: u8, value: u64) {
        let devfn = self.of_function(function).devfn;
        self.write(machine, Way::Ecam, devfn, offset.into(), width, value);
    }

    /// Ports as they are: only a dword at 0xCF8 changes what the model knows; accesses to the data that the model does not
    /// follow are left out.
    pub fn raw_ports(&mut self, machine: &mut Machine, offset: u8, width: u8, value: Option<u64>) {
        let (port, width) = (0xcf8 + u64::from(offset), usize::from(width));
        match value {
            Some(value) if offset == 0 && width == 4 => {
                machine.port_write(port, &value.to_le_bytes()[..4]);
                self.address = value as u32 & 0x80ff_fffc;
            }
            // What reaches the data registers is `write`'s matter.
            Some(_) if (4..8).contains(&offset) && usize::from(offset) + width <= 8 => {}
            Some(value) => machine.port_write(port, &value.to_le_bytes()[..width]),
            None if offset >= 4 => {}
            None => {
                let mut data = [0; 8];
                machine.port_read(port, &mut data[..width]);
                match (offset, width) {
                    (0, 4) => assert_eq!(u64::from_le_bytes(data), u64::from(self.address)),
                    (1, 1) => {}
                    _ => assert!(data[..width].iter().all(|byte| *byte == 0xff), "{port:#x} width {width}: {data:x?}"),
                }
            }
        }
    }

    fn select(&mut self, machine: &mut Machine, devfn: u8, offset: u16) {
        self.address = 0x8000_0000 | u32::from(devfn) << 8 | u32::from(offset & 0xfc);
        machine.port_write(0xcf8, &self.address.to_le_bytes());
    }

    /// Reads, and compares with what the guest may expect.
    pub fn check_read(&mut self, machine: &mut Machine, way: Way, devfn: u8, offset: u16, width: u8) {
        let (offset, width) = fit(way, offset, width);
        let isr = self.isr;
        let mut expected = [0xff; 8];
        if reaches(way, offset, width)
            && let Some(registers) = self.of_devfn(devfn)
        {
            if registers.touches_window(offset, width) {
                return;
            }
            for (at, byte) in (usize::from(offset)..256).zip(&mut expected[..width]) {
                *byte = registers.value[at];
                if at == 6 && registers.virtio.is_some_and(|function| isr[function]) {
                    *byte |= 1 << 3;
                }
            }
        }
        let mut data = [0; 8];
        match way {
            Way::Ports => {
                self.select(machine, devfn, offset);
                machine.port_read(0xcfc + u64::from(offset & 3), &mut data[..width]);
            }
            Way::Ecam => machine.memory_read(ECAM | u64::from(devfn) << 12 | u64::from(offset), &mut data[..width]),
        }
        assert_eq!(data[..width], expected[..width], "{way:?} {devfn:#x} offset {offset:#x}");
    }

    /// What drivers do to learn a BAR's size.
    pub fn size_bar(&mut self, machine: &mut Machine, function: u8, bar: u8) {
        let Some((register, len)) = self.bar(function, bar) else { return };
        let offset = 0x10 + register * 4;
        let before = self.of_function(function).get(offset, 4);
        self.write_register(machine, function, offset, 4, u32::MAX.into());
        let sized = self.of_function(function).get(offset, 4);
        let mask = if register == 0 { !3 } else { !15 };
        assert_eq!(u64::from(!(sized & mask)) + 1, len, "bar {register} has another size");
        self.write_register(machine, function, offset, 4, before.into());
    }

    /// Moves a BAR, low half first: in between it may be anywhere.
    pub fn move_bar(&mut self, machine: &mut Machine, function: u8, bar: u8, address: u64) {
        let Some((register, _)) = self.bar(function, bar) else { return };
        let offset = 0x10 + register * 4;
        self.write_register(machine, function, offset, 4, address & 0xffff_ffff);
        if register == 4 {
            self.write_register(machine, function, offset + 4, 4, address >> 32);
        }
    }

    fn bar(&self, function: u8, bar: u8) -> Option<(u8, u64)> {
        let mut bars = self.bars.iter().filter(|bar| bar.function == usize::from(function));
        bars.nth(bar.into()).map(|bar| (bar.register, bar.len))
    }

    /// Message control.
    pub fn write_control(&mut self, machine: &mut Machine, function: u8, value: u16) {
        if let Some(msix) = self.of_function(function).msix {
            self.write_register(machine, function, msix + 2, 2, value.into());
        }
    }

    fn placed(&self, function: u8, register: u8) -> Option<u64> {
        self.bars.iter().find(|bar| bar.function == usize::from(function) && bar.register == register)?.placed
    }

    /// A write into the MSI-X BAR. Only whole aligned dwords and qwords are writes to the table (§6.8.2).
    pub fn write_table(&mut self, machine: &mut Machine, function: u8, offset: u16, width: u8, value: u64) {
        let Some(base) = self.placed(function, 1) else { return };
        let data = value.to_le_bytes();
        machine.memory_write(base + u64::from(offset), &data[..usize::from(width)]);
        let aligned = matches!(width, 4 | 8) && offset.is_multiple_of(width.into());
        // The last bytes of a BAR are its own; an access that crosses them reaches nobody.
        if !aligned || u64::from(offset) + u64::from(width) > 0x2000 {
            return;
        }
        for (at, dword) in (offset..).step_by(4).zip(data[..usize::from(width)].chunks(4)) {
            let dword = u32::from_le_bytes(dword.try_into().unwrap());
            let Some(vector) = self.vectors[usize::from(function)].get_mut(usize::from(at / 16)) else { continue };
            let address = vector.message.address;
            match at % 16 {
                0 => vector.message.address = address & !0xffff_ffff | u64::from(dword & !3),
                4 => vector.message.address = address & 0xffff_ffff | u64::from(dword) << 32,
                8 => vector.message.data = dword,
                _ => vector.unmasked = dword & 1 == 0,
            }
        }
        self.update_vectors(function.into());
    }

    /// A driver programs a vector the way operating systems do.
    pub fn program(&mut self, machine: &mut Machine, function: u8, vector: u8, data: u8, masked: bool) {
        let count = SHAPES[usize::from(function)].vectors;
        if count == 0 {
            return;
        }
        let entry = (usize::from(vector) % count * 16) as u16;
        self.write_table(machine, function, entry, 4, 0xfee0_0000 | u64::from(data) << 12);
        self.write_table(machine, function, entry + 4, 4, 0);
        self.write_table(machine, function, entry + 8, 4, data.into());
        self.write_table(machine, function, entry + 12, 4, masked.into());
    }

    /// The device announces used buffers on queue 0, for which the driver chose a vector before.
    pub fn used(&mut self, machine: &mut Machine, function: u8, vector: u8) {
        let Some(base) = self.placed(function, 4) else { return };
        machine.memory_write(base + QUEUE_SELECT, &[0, 0]);
        machine.memory_write(base + QUEUE_VECTOR, &[vector, 0]);
        let mut mapped = [0; 2];
        machine.memory_read(base + QUEUE_VECTOR, &mut mapped);
        let which = usize::from(function);
        let exists = usize::from(vector) < self.vectors[which].len();
        assert_eq!(u16::from_le_bytes(mapped), if exists { vector.into() } else { 0xffff }, "vector {vector:#x}");
        machine.functions[which].pci.interrupt().queue_used(0);
        if self.control(which) & 0x8000 == 0 {
            self.isr[which] = true;
        } else if let Some(vector) = self.vectors[which].get_mut(usize::from(vector)) {
            match vector.open {
                true => vector.sent += u32::from(vector.told.is_some()),
                false => vector.pending = true,
            }
        }
    }

    /// Reading the interrupt status takes it.
    pub fn take_isr(&mut self, machine: &mut Machine, function: u8) {
        let Some(base) = self.placed(function, 4) else { return };
        let mut isr = [0];
        machine.memory_read(base + u64::from(ISR), &mut isr);
        assert_eq!(isr[0], u8::from(std::mem::take(&mut self.isr[usize::from(function)])), "interrupt status");
    }

    /// An access through the configuration-access capability (virtio 1.3 §4.1.4.9): to BAR 4, aligned, or nowhere.
    pub fn window(
        &mut self,
        machine: &mut Machine,
        function: u8,
        bar: u8,
        offset: u16,
        length: u8,
        value: Option<u32>,
    ) {
        let Some(access) = self.of_function(function).access else { return };
        self.write_register(machine, function, access + 4, 1, bar.into());
        self.write_register(machine, function, access + 8, 4, offset.into());
        self.write_register(machine, function, access + 12, 4, length.into());
        let valid = bar == 4
            && matches!(length, 1 | 2 | 4)
            && offset.is_multiple_of(length.into())
            && u64::from(offset) + u64::from(length) <= MODERN_BYTES;
        let which = usize::from(function);
        let data = ECAM | u64::from(self.of_function(function).devfn) << 12 | u64::from(access + 16);
        match value {
            Some(value) => {
                machine.memory_write(data, &value.to_le_bytes());
                if valid && offset == STATUS && length == 1 && value as u8 == 0 {
                    self.isr[which] = false;
                }
            }
            None => {
                let mut read = [0; 4];
                machine.memory_read(data, &mut read);
                if valid && offset == ISR {
                    assert_eq!(read[0], u8::from(std::mem::take(&mut self.isr[which])), "interrupt status by window");
                } else if valid && (u64::from(offset), length) == (NUM_QUEUES, 2) {
                    assert_eq!(read[..2], (SHAPES[which].queues.len() as u16).to_le_bytes(), "by window");
                }
            }
        }
    }

    fn control(&self, function: usize) -> u16 {
        let registers = self.registers.iter().find(|registers| registers.virtio == Some(function)).unwrap();
        registers.msix.map_or(0, |msix| registers.get(msix + 2, 2) as u16)
    }

    fn command(&self, function: usize) -> u16 {
        self.registers.iter().find(|registers| registers.virtio == Some(function)).unwrap().get(4, 2) as u16
    }

    /// BARs and vectors follow the registers.
    fn follow(&mut self, function: usize) {
        self.settle();
        self.update_vectors(function);
    }

    /// A BAR decodes where its registers say, if that is inside a window of PCI and no BAR before it is there.
    fn settle(&mut self) {
        let windows = windows();
        for which in 0..self.bars.len() {
            let bar = &self.bars[which];
            let registers = self.registers.iter().find(|registers| registers.virtio == Some(bar.function)).unwrap();
            let low = u64::from(registers.get(0x10 + bar.register * 4, 4));
            let command = registers.get(4, 2);
            let (enabled, start) = match bar.register {
                0 => (command & 1 != 0, low & !3),
                1 => (command & 2 != 0, low & !15),
                _ => (command & 2 != 0, low & !15 | u64::from(registers.get(0x24, 4)) << 32),
            };
            let end = start.checked_add(bar.len);
            let inside =
                |window: &std::ops::Range<u64>| window.start <= start && end.is_some_and(|end| end <= window.end);
            let allowed = if bar.is_ports() {
                inside(&windows.io)
            } else {
                inside(&windows.mem32) || windows.mem64.as_ref().is_some_and(inside)
            };
            let meets = |other: &Bar| {
                other.is_ports() == bar.is_ports()
                    && other.placed.is_some_and(|at| at < start + bar.len && start < at + other.len)
            };
            let placed = (enabled && allowed && !self.bars[..which].iter().any(meets)).then_some(start);
            let bar = &mut self.bars[which];
            if bar.placed != placed {
                bar.moved = true;
                bar.left = bar.placed;
                bar.placed = placed;
            }
        }
    }

    /// A vector that opens sends what waited for it; so does one that gets another message.
    fn update_vectors(&mut self, function: usize) {
        let control = self.control(function);
        for vector in &mut self.vectors[function] {
            let open = control & 0xc000 == 0x8000 && vector.unmasked;
            let told = (open && vector.message.address >> 20 == 0xfee).then_some(vector.message);
            let news = !vector.open || told != vector.told;
            (vector.open, vector.told) = (open, told);
            if open && news && std::mem::take(&mut vector.pending) {
                vector.sent += u32::from(told.is_some());
            }
        }
    }

    /// Messages, what was sent, and lines: of one function after the other.
    pub fn check_interrupts(&self, machine: &Machine) {
        self.check_interrupts_of(machine, self.steps % SHAPES.len());
    }

    fn check_interrupts_of(&self, machine: &Machine, function: usize) {
        for (which, Function { sources, line, .. }) in machine.functions.iter().enumerate().skip(function).take(1) {
            for (number, (source, vector)) in sources.iter().zip(&self.vectors[which]).enumerate() {
                assert_eq!(source.seen(), (vector.told, vector.sent), "function {which} vector {number}");
            }
            let silent = self.command(which) & 1 << 10 != 0 || self.control(which) & 0x8000 != 0;
            assert_eq!(line.level(), self.isr[which] && !silent, "line of function {which}");
        }
    }

    /// Who answers where: those that have moved, and one after the other of those that have not.
    pub fn check_bars(&mut self, machine: &mut Machine) {
        self.steps += 1;
        for which in 0..self.bars.len() {
            if std::mem::take(&mut self.bars[which].moved) || which == self.steps % self.bars.len() {
                self.check_bar(machine, which);
            }
        }
    }

    fn check_bar(&self, machine: &mut Machine, which: usize) {
        let bar = &self.bars[which];
        if let Some(at) = bar.placed {
            self.check_answer(machine, bar, at);
        }
        let Some(left) = bar.left else { return };
        let covered = |other: &Bar| {
            other.is_ports() == bar.is_ports() && other.placed.is_some_and(|at| at < left + 4 && left < at + other.len)
        };
        if !self.bars.iter().any(covered) {
            let mut data = [0; 4];
            match bar.is_ports() {
                true => machine.port_read(left, &mut data),
                false => machine.memory_read(left, &mut data),
            }
            assert_eq!(data, [0xff; 4], "bar {} left {left:#x}, and answers there", bar.register);
        }
    }

    fn check_answer(&self, machine: &mut Machine, bar: &Bar, at: u64) {
        let shape = &SHAPES[bar.function];
        match bar.register {
            0 => {
                let mut data = [0; 4];
                machine.port_read(at, &mut data);
                assert_eq!(u64::from(u32::from_le_bytes(data)), features(bar.function), "ports at {at:#x}");
            }
            1 => self.check_vector(machine, bar.function, at, self.steps % shape.vectors),
            _ => {
                let mut data = [0; 2];
                machine.memory_read(at + NUM_QUEUES, &mut data);
                assert_eq!(usize::from(u16::from_le_bytes(data)), shape.queues.len(), "memory at {at:#x}");
            }
        }
    }

    fn check_vector(&self, machine: &mut Machine, function: usize, at: u64, number: usize) {
        let vector = self.vectors[function][number];
        let mut entry = [0; 16];
        let (low, high) = entry.split_at_mut(8);
        machine.memory_read(at + number as u64 * 16, low);
        machine.memory_read(at + number as u64 * 16 + 8, high);
        let expected = u128::from(vector.message.address)
            | u128::from(vector.message.data) << 64
            | u128::from(!vector.unmasked) << 96;
        assert_eq!(u128::from_le_bytes(entry), expected, "function {function} vector {number} in the table");
        let mut pending = [0];
        machine.memory_read(at + PBA + number as u64 / 8, &mut pending);
        assert_eq!(pending[0] >> (number % 8) & 1 != 0, vector.pending, "function {function} vector {number} pending");
    }

    /// All there is, at the end.
    pub fn check_everything(&mut self, machine: &mut Machine) {
        let places: Vec<u8> = self.registers.iter().map(|registers| registers.devfn).chain([2 << 3]).collect();
        let by_ports = self.steps % places.len();
        for (number, devfn) in places.into_iter().enumerate() {
            for offset in (0..256).step_by(8) {
                self.check_read(machine, Way::Ecam, devfn, offset, 8);
            }
            // The other way leads to the same place: one function of all, another for each program.
            for offset in (0..256).step_by(4).filter(|_| number == by_ports) {
                self.check_read(machine, Way::Ports, devfn, offset, 4);
            }
        }
        for bar in self.bars.iter().filter(|bar| bar.register == 1) {
            if let Some(at) = bar.placed {
                (0..SHAPES[bar.function].vectors)
                    .for_each(|number| self.check_vector(machine, bar.function, at, number));
            }
        }
        (0..SHAPES.len()).for_each(|which| self.check_interrupts_of(machine, which));
        (0..self.bars.len()).for_each(|which| self.check_bar(machine, which));
        self.check_routes(machine);
    }

    /// The links are routed as the route registers say, where an interrupt of that number is wired.
    fn check_routes(&self, machine: &Machine) {
        let (place, first): ((u8, u8), &[u8]) = match machine.profile {
            Profile::I440fx => ((1, 0), &[0x60, 0x61, 0x62, 0x63]),
            Profile::Bhyve => ((31, 0), &[0x60, 0x61, 0x62, 0x63, 0x68, 0x69, 0x6a, 0x6b]),
            Profile::Micro => return,
        };
        let registers = self.registers.iter().find(|registers| registers.devfn == place.0 << 3 | place.1).unwrap();
        for (link, offset) in first.iter().enumerate() {
            let route = registers.value[usize::from(*offset)];
            let expected = Some(u32::from(route)).filter(|gsi| [5, 10, 11].contains(gsi));
            assert_eq!(machine.router.gsi(link), expected, "link {link} by {route:#x}");
        }
    }
}

/// Ports reach 256 bytes, a dword at a time; accesses to the enhanced window stay inside one function.
fn fit(way: Way, offset: u16, width: u8) -> (u16, usize) {
    match way {
        Way::Ports => (offset & 0xff, usize::from(width.min(4))),
        Way::Ecam => (offset.min(0x1000 - u16::from(width)), width.into()),
    }
}

/// Whether an access reaches a function: through the ports not, where it crosses their end.
fn reaches(way: Way, offset: u16, width: usize) -> bool {
    match way {
        Way::Ports => usize::from(offset & 3) + width <= 4,
        Way::Ecam => true,
    }
}

fn power_on(machine: &mut Machine) -> Vec<Registers> {
    let bridges: Vec<(u8, u8)> = machine.bridges.iter().map(|(place, _)| *place).collect();
    let mut all = Vec::new();
    for place in bridges {
        let mut registers = Registers::read(machine, place, None);
        for (offset, mask) in bridge_masks(machine.profile, place) {
            registers.allow(*offset, mask);
        }
        all.push(registers);
    }
    for (which, shape) in SHAPES.iter().enumerate() {
        let mut registers = Registers::read(machine, shape.slot, Some(which));
        if shape.interfaces == Interfaces::Both {
            registers.allow(0x10, &if which == 0 { [0xe0, 0xff, 0xff, 0xff] } else { [0xc0, 0xff, 0xff, 0xff] });
        }
        if let Some(msix) = registers.msix {
            registers.allow(0x14, &[0, 0xe0, 0xff, 0xff]);
            registers.allow(msix + 3, &[0xc0]);
        }
        registers.allow(0x20, &[0, 0xc0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]);
        let access = registers.access.unwrap();
        registers.allow(access + 4, &[0xff]);
        registers.allow(access + 8, &[0xff; 8]);
        all.push(registers);
    }
    all
}
