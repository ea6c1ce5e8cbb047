//! Type-0 configuration space as data: every register is a field with a value and the bits a guest may change
//! (PCI Local Bus 3.0 §6.1).

use serde::{Deserialize, Serialize};

use super::bar::{BarKind, BarSpec};
use super::{PciError, bytes};

const SIZE: usize = 256;
const STATUS: u8 = 0x06;
const STATUS_CAPABILITIES: u32 = 1 << 4;
const CAPABILITIES: u8 = 0x34;
const FIRST_CAPABILITY: u8 = 0x40;

/// Bits of the command register (PCI Local Bus 3.0 §6.2.2).
pub mod command {
    /// Offset of the register.
    pub const OFFSET: u16 = 0x04;
    /// Port BARs decode.
    pub const IO: u16 = 1 << 0;
    /// Memory BARs decode.
    pub const MEMORY: u16 = 1 << 1;
    /// The function may write to memory.
    pub const BUS_MASTER: u16 = 1 << 2;
    /// INTx stays deasserted.
    pub const INTX_DISABLE: u16 = 1 << 10;
}

/// One register or part of one.
#[derive(Clone, Copy, Debug)]
pub struct Field {
    /// Offset in configuration space.
    pub offset: u8,
    /// Bytes: 1, 2 or 4.
    pub width: u8,
    /// Value after power-on.
    pub value: u32,
    /// Bits a guest may set and clear.
    pub writable: u32,
}

impl Field {
    /// A register that never changes.
    pub const fn fixed(offset: u8, width: u8, value: u32) -> Self {
        Self { offset, width, value, writable: 0 }
    }

    /// A register whose `writable` bits keep what is written.
    pub const fn writable(offset: u8, width: u8, value: u32, writable: u32) -> Self {
        Self { offset, width, value, writable }
    }
}

/// Who a function says it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// Vendor id.
    pub vendor: u16,
    /// Device id.
    pub device: u16,
    /// Revision.
    pub revision: u8,
    /// Class code: base class, subclass, programming interface. Never zero: Linux assigns class-0 functions no BARs.
    pub class: u32,
    /// Subsystem vendor id.
    pub subsystem_vendor: u16,
    /// Subsystem id.
    pub subsystem: u16,
    /// INTx pin: 0 none, 1 INTA# … 4 INTD#.
    pub pin: u8,
    /// Power-on value of the interrupt line register: what firmware would have written.
    pub line: u8,
}

/// The registers of one function: 256 bytes, each bit fixed or writable.
#[derive(Clone)]
pub struct ConfigSpace {
    value: [u8; SIZE],
    writable: [u8; SIZE],
    power_on: [u8; SIZE],
    bars: [Option<BarSpec>; 6],
    next_capability: u8,
    /// Where the offset of the next capability is written.
    link: u8,
}

/// What a guest can have changed in a [`ConfigSpace`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigState {
    version: u16,
    value: Vec<u8>,
}

/// Why a saved state does not fit the object it is restored into.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("saved state of {what} does not fit this machine: {why}")]
pub struct StateError {
    /// The object.
    pub what: &'static str,
    /// What differs.
    pub why: &'static str,
}

impl ConfigSpace {
    /// The header of a function: ids fixed, command and interrupt line writable.
    pub fn new(id: Identity) -> Self {
        let mut space = Self {
            value: [0; SIZE],
            writable: [0; SIZE],
            power_on: [0; SIZE],
            bars: [None; 6],
            next_capability: FIRST_CAPABILITY,
            link: CAPABILITIES,
        };
        let command = command::IO | command::MEMORY | command::BUS_MASTER | command::INTX_DISABLE;
        space.define(&[
            Field::fixed(0x00, 2, u32::from(id.vendor)),
            Field::fixed(0x02, 2, u32::from(id.device)),
            Field::writable(0x04, 2, 0, u32::from(command)),
            Field::fixed(0x08, 1, u32::from(id.revision)),
            Field::fixed(0x09, 1, id.class),
            Field::fixed(0x0a, 2, id.class >> 8),
            Field::writable(0x0c, 1, 0, 0xff),
            Field::fixed(0x2c, 2, u32::from(id.subsystem_vendor)),
            Field::fixed(0x2e, 2, u32::from(id.subsystem)),
            Field::writable(0x3c, 1, u32::from(id.line), 0xff),
            Field::fixed(0x3d, 1, u32::from(id.pin)),
        ]);
        space
    }

    /// Adds or replaces registers. Bytes outside the space are dropped.
    pub fn define(&mut self, fields: &[Field]) {
        for field in fields {
            let bytes = field.value.to_le_bytes().into_iter().zip(field.writable.to_le_bytes());
            let targets = self.value.iter_mut().zip(&mut self.writable).zip(&mut self.power_on);
            for ((value, writable), ((to, mask), power_on)) in
                bytes.take(field.width.into()).zip(targets.skip(field.offset.into()))
            {
                (*to, *mask, *power_on) = (value, writable, value);
            }
        }
    }

    /// Adds a BAR that powers on at `address`.
    pub fn add_bar(&mut self, bar: BarSpec, address: u64) -> Result<(), PciError> {
        bar.check()?;
        let taken = PciError::BadBar { index: bar.index, len: bar.len };
        let slots = if bar.kind == BarKind::Memory64 { 2 } else { 1 };
        let registers = || (0u8..6).filter(|register| register.wrapping_sub(bar.index) < slots);
        if registers().any(|register| self.register_owner(register).is_some()) {
            return Err(taken);
        }
        *self.bars.get_mut(usize::from(bar.index)).ok_or(taken)? = Some(bar);
        let size_mask = !bar.len.wrapping_sub(1);
        let [low_mask, high_mask] = [size_mask as u32 & bar.kind.address_mask(), (size_mask >> 32) as u32];
        let low = address as u32 & low_mask | bar.kind.flags();
        self.define(&[Field::writable(bar.offset(), 4, low, low_mask)]);
        if bar.kind == BarKind::Memory64 {
            let high = (address >> 32) as u32 & high_mask;
            self.define(&[Field::writable(bar.offset().wrapping_add(4), 4, high, high_mask)]);
        }
        Ok(())
    }

    /// The BAR that register `0..6` belongs to.
    fn register_owner(&self, register: u8) -> Option<&BarSpec> {
        self.bars.iter().flatten().find(|bar| {
            let distance = register.wrapping_sub(bar.index);
            distance == 0 || (distance == 1 && bar.kind == BarKind::Memory64)
        })
    }

    /// Adds a capability and gives its offset. `body` follows the two bytes of id and link; `writable` are its bits
    /// that keep what is written (missing bytes are read-only).
    pub fn add_capability(&mut self, id: u8, body: &[u8], writable: &[u8]) -> Result<u8, PciError> {
        let full = || PciError::NoCapabilityRoom { id, len: body.len().saturating_add(2) };
        let at = self.next_capability;
        let end = body.len().checked_add(usize::from(at)).and_then(|end| end.checked_add(2)).ok_or_else(full)?;
        // The link is one byte, so nothing may start behind 0xfc; 256 stands for "full".
        if at < FIRST_CAPABILITY || end > SIZE {
            return Err(full());
        }
        let link = self.link;
        self.define(&[
            Field::fixed(STATUS, 2, STATUS_CAPABILITIES),
            Field::fixed(link, 1, u32::from(at)),
            Field::fixed(at, 1, u32::from(id)),
        ]);
        self.link = at.wrapping_add(1);
        let mut offset = at.wrapping_add(2);
        let masks = writable.iter().copied().chain(std::iter::repeat(0));
        for (byte, mask) in body.iter().zip(masks) {
            self.define(&[Field::writable(offset, 1, u32::from(*byte), u32::from(mask))]);
            offset = offset.wrapping_add(1);
        }
        self.next_capability = u8::try_from(end.next_multiple_of(4)).unwrap_or(0);
        Ok(at)
    }

    /// Reads any width at any offset; all ones beyond the 256 bytes.
    pub fn read(&self, offset: u16, data: &mut [u8]) {
        bytes::copy_at(&self.value, u64::from(offset), data, 0xff);
    }

    /// Writes any width at any offset: writable bits take the value, all others keep theirs.
    pub fn write(&mut self, offset: u16, data: &[u8]) {
        let targets = self.value.iter_mut().zip(&self.writable).skip(offset.into());
        for ((value, mask), byte) in targets.zip(data) {
            *value = *value & !mask | byte & mask;
        }
    }

    /// Puts a value where the guest cannot write: a status bit, the data of an access window.
    pub fn set(&mut self, offset: u8, data: &[u8]) {
        for (value, byte) in self.value.iter_mut().skip(offset.into()).zip(data) {
            *value = *byte;
        }
    }

    /// A register of up to four bytes.
    pub fn get(&self, offset: u8, width: usize) -> u32 {
        let mut data = [0; 4];
        self.read(offset.into(), data.get_mut(..width).unwrap_or_default());
        u32::from_le_bytes(data)
    }

    /// The command register.
    pub fn command(&self) -> u16 {
        self.get(0x04, 2) as u16
    }

    /// The BARs of the function.
    pub fn bars(&self) -> impl Iterator<Item = &BarSpec> {
        self.bars.iter().flatten()
    }

    /// Where `bar` decodes now: `None` while the command register does not let it.
    pub fn bar_address(&self, bar: &BarSpec) -> Option<u64> {
        let low = u64::from(self.get(bar.offset(), 4) & bar.kind.address_mask());
        let (address, enable) = match bar.kind {
            BarKind::Io => (low, command::IO),
            BarKind::Memory32 => (low, command::MEMORY),
            BarKind::Memory64 => (low | u64::from(self.get(bar.offset().wrapping_add(4), 4)) << 32, command::MEMORY),
        };
        (self.command() & enable != 0).then_some(address)
    }

    /// Everything as built.
    pub fn reset(&mut self) {
        self.value = self.power_on;
    }

    /// What a guest can have changed.
    pub fn save(&self) -> ConfigState {
        ConfigState { version: 1, value: self.value.to_vec() }
    }

    /// Whether [`restore`](Self::restore) takes this state.
    pub(crate) fn check(state: &ConfigState) -> Result<(), StateError> {
        let what = "a pci configuration space";
        if state.version != 1 {
            return Err(StateError { what, why: "its version is not 1" });
        }
        if state.value.len() != SIZE {
            return Err(StateError { what, why: "it is not 256 bytes long" });
        }
        Ok(())
    }

    /// Takes back a saved state: writable bits only, so that a hostile state cannot change what a function is. Nothing has
    /// changed where it is refused.
    pub fn restore(&mut self, state: &ConfigState) -> Result<(), StateError> {
        Self::check(state)?;
        self.reset();
        self.write(0, &state.value);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn space() -> ConfigSpace {
        let mut space = ConfigSpace::new(Identity {
            vendor: 0x1af4,
            device: 0x1001,
            class: 0x01_80_20,
            subsystem_vendor: 0x1af4,
            subsystem: 2,
            pin: 1,
            line: 11,
            ..Default::default()
        });
        space.add_bar(BarSpec { index: 0, kind: BarKind::Io, len: 0x80 }, 0xc000).unwrap();
        space.add_bar(BarSpec { index: 1, kind: BarKind::Memory32, len: 0x2000 }, 0xe000_0000).unwrap();
        space.add_bar(BarSpec { index: 4, kind: BarKind::Memory64, len: 0x4000 }, 0x80_0000_0000).unwrap();
        space
    }

    fn dword(space: &ConfigSpace, offset: u8) -> u32 {
        space.get(offset, 4)
    }

    #[test]
    fn ids_class_and_pins_read_back_at_their_offsets_and_cannot_be_written() {
        let mut space = space();
        for offset in [0x00, 0x08, 0x2c] {
            space.write(offset, &[0xff; 4]);
        }
        space.write(0x3d, &[0xff]);
        assert_eq!(dword(&space, 0x00), 0x1001_1af4);
        assert_eq!(dword(&space, 0x08), 0x0180_2000);
        assert_eq!(dword(&space, 0x2c), 0x0002_1af4);
        assert_eq!(space.get(0x3c, 2), 0x010b);
    }

    #[test]
    fn writing_all_ones_to_a_bar_reads_back_its_size_and_kind() {
        let mut space = space();
        for offset in [0x10, 0x14, 0x18, 0x20, 0x24] {
            space.write(offset, &[0xff; 4]);
        }
        assert_eq!(dword(&space, 0x10), 0xffff_ff81);
        assert_eq!(dword(&space, 0x14), 0xffff_e000);
        assert_eq!(dword(&space, 0x18), 0, "an absent bar");
        assert_eq!(dword(&space, 0x20), 0xffff_c00c);
        assert_eq!(dword(&space, 0x24), 0xffff_ffff);
    }

    #[test]
    fn a_bar_decodes_only_while_the_command_register_lets_its_kind() {
        let mut space = space();
        let bars: Vec<BarSpec> = space.bars().copied().collect();
        let decoded = |space: &ConfigSpace| bars.iter().map(|bar| space.bar_address(bar)).collect::<Vec<_>>();
        assert_eq!(decoded(&space), [None; 3]);
        space.write(0x04, &[1]);
        assert_eq!(decoded(&space), [Some(0xc000), None, None]);
        space.write(0x04, &[2]);
        assert_eq!(decoded(&space), [None, Some(0xe000_0000), Some(0x80_0000_0000)]);
    }

    #[test]
    fn a_bar_takes_bytes_and_words_like_dwords() {
        let mut space = space();
        space.write(0x04, &[2]);
        space.write(0x16, &[0x34, 0xe1]);
        space.write(0x15, &[0xff]);
        let bar = *space.bars().nth(1).unwrap();
        assert_eq!(space.bar_address(&bar), Some(0xe134_e000));
    }

    #[test]
    fn capabilities_form_a_list_from_the_pointer_to_zero() {
        let mut space = space();
        assert_eq!(space.get(0x06, 2) & 0x10, 0);
        assert_eq!(space.add_capability(0x11, &[0xaa; 10], &[0, 0xc0]).unwrap(), 0x40);
        assert_eq!(space.add_capability(0x09, &[0xbb; 15], &[]).unwrap(), 0x4c);
        assert_eq!(space.add_capability(0x09, &[0xcc; 2], &[]).unwrap(), 0x60);
        assert_eq!(space.get(0x06, 2) & 0x10, 0x10);
        assert_eq!(space.get(0x34, 1), 0x40);
        assert_eq!(space.get(0x40, 2), 0x4c11);
        assert_eq!(space.get(0x4c, 2), 0x6009);
        assert_eq!(space.get(0x60, 2), 0x0009);
        space.write(0x42, &[0xff, 0xff]);
        assert_eq!(space.get(0x42, 2), 0xeaaa);
    }

    #[test]
    fn a_capability_that_does_not_fit_is_refused_by_name() {
        let mut space = space();
        space.add_capability(0x09, &[0; 0xbe], &[]).unwrap();
        let error = space.add_capability(0x11, &[0; 10], &[]).unwrap_err();
        assert_eq!(error.to_string(), "capability 0x11 of 12 bytes does not fit into the configuration space");
    }

    #[test]
    fn bars_that_pci_does_not_have_are_refused() {
        let mut space = space();
        for (index, kind, len) in [
            (6, BarKind::Io, 0x10),
            (5, BarKind::Memory64, 0x1000),
            (2, BarKind::Memory32, 0x1800),
            (2, BarKind::Memory32, 8),
            (5, BarKind::Memory32, 0x1000),
            (3, BarKind::Memory64, 0x1000),
        ] {
            let error = space.add_bar(BarSpec { index, kind, len }, 0).unwrap_err();
            assert_eq!(error, PciError::BadBar { index, len });
        }
        space.add_bar(BarSpec { index: 2, kind: BarKind::Memory64, len: 0x1000 }, 0).unwrap();
    }

    #[test]
    fn a_restored_space_equals_the_saved_one_and_a_hostile_one_changes_no_fixed_bit() {
        let mut saved = space();
        saved.write(0x10, &[0x80, 0xd0]);
        saved.write(0x04, &[7]);
        let mut other = space();
        other.restore(&saved.save()).unwrap();
        assert_eq!(other.save(), saved.save());
        other.restore(&ConfigState { version: 1, value: vec![0xff; 256] }).unwrap();
        assert_eq!(dword(&other, 0), 0x1001_1af4);
        assert!(other.restore(&ConfigState { version: 2, value: vec![0; 256] }).is_err());
        assert!(other.restore(&ConfigState { version: 1, value: vec![0; 255] }).is_err());
    }

    proptest::proptest! {
        #[test]
        fn random_writes_keep_fixed_bits_and_never_panic(
            writes in proptest::collection::vec((0u16..0x1100, proptest::collection::vec(0u8.., 1..9)), 0..64),
        ) {
            let mut space = space();
            for (offset, data) in &writes {
                space.write(*offset, data);
                let mut back = [0; 8];
                space.read(*offset, &mut back);
            }
            proptest::prop_assert_eq!(dword(&space, 0), 0x1001_1af4);
            proptest::prop_assert_eq!(space.get(0x10, 1) & 0x7f, 1);
            proptest::prop_assert_eq!(space.get(0x20, 2) & 0x3fff, 0xc);
        }
    }
}
