//! Bus 0 and the two ways to its configuration space: ports 0xCF8/0xCFC (PCI Local Bus 3.0 §3.2.2.3.2) and the
//! enhanced configuration window (PCI Express 3.0 §7.2.2).

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

use super::{FUNCTIONS_PER_BUS, PciAddress, PciError, PciFunction, bytes};
use crate::bus::{Access, BusDevice};
use crate::park::Parked;

const HEADER_TYPE: u64 = 0x0e;
const MULTIFUNCTION: u8 = 0x80;

struct Slot {
    name: String,
    function: Arc<dyn PciFunction>,
}

/// Bus 0. All other buses read as all ones: illumos guests go wrong where they answer.
///
/// Functions are added while the machine is built and stay; looking one up takes no lock.
pub struct PciBus {
    slots: Box<[OnceLock<Slot>]>,
    /// Devices with a function beside function 0: function 0's header says so.
    multifunction: [AtomicBool; 32],
}

impl Default for PciBus {
    fn default() -> Self {
        let slots = std::iter::repeat_with(OnceLock::new).take(FUNCTIONS_PER_BUS).collect();
        Self { slots, multifunction: Default::default() }
    }
}

impl PciBus {
    /// An empty bus.
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts `function` at `address`; `name` is how messages speak of it.
    pub fn add(&self, address: PciAddress, name: &str, function: Arc<dyn PciFunction>) -> Result<(), PciError> {
        let missing = PciError::NoSuchSlot { device: address.device(), function: address.function() };
        let slot = self.slots.get(usize::from(address.devfn())).ok_or(missing)?;
        if let Err(refused) = slot.set(Slot { name: name.to_owned(), function }) {
            let by = slot.get().map(|slot| slot.name.clone()).unwrap_or_default();
            return Err(PciError::SlotTaken { address, name: refused.name, by });
        }
        if let Some(device) = self.multifunction.get(usize::from(address.device())).filter(|_| address.function() != 0)
        {
            device.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    /// The functions on the bus, with their names.
    pub fn functions(&self) -> impl Iterator<Item = (PciAddress, &str, &Arc<dyn PciFunction>)> {
        (0u8..=255).zip(&self.slots).filter_map(|(devfn, slot)| {
            slot.get().map(|slot| (PciAddress::from_devfn(devfn), &*slot.name, &slot.function))
        })
    }

    /// Resets every function, with all vCPUs outside the guest. The tokens are those of functions whose engines still
    /// have to let go of guest memory.
    pub fn reset(&self) -> Vec<Parked> {
        let resets = self.functions().map(|(_, _, function)| function.reset());
        resets
            .filter_map(|access| match access {
                Access::Done => None,
                Access::Parked(token) => Some(token),
            })
            .collect()
    }

    fn read(&self, bus: u8, devfn: u8, offset: u64, data: &mut [u8]) {
        let Some(slot) = self.slot(bus, devfn) else { return data.fill(0xff) };
        let address = PciAddress::from_devfn(devfn);
        for (at, range) in bytes::dwords(offset, data.len()) {
            let Some(part) = data.get_mut(range) else { continue };
            slot.function.read_config(at as u16 & 0xfff, part);
            let siblings = self.multifunction.get(usize::from(address.device()));
            if address.function() == 0 && siblings.is_some_and(|siblings| siblings.load(Ordering::Relaxed)) {
                let header = HEADER_TYPE.checked_sub(at).and_then(|index| part.get_mut(index as usize));
                if let Some(header) = header {
                    *header |= MULTIFUNCTION;
                }
            }
        }
    }

    fn write(&self, bus: u8, devfn: u8, offset: u64, data: &[u8]) -> Access {
        let Some(slot) = self.slot(bus, devfn) else { return Access::Done };
        let mut result = Access::Done;
        for (at, range) in bytes::dwords(offset, data.len()) {
            let Some(part) = data.get(range) else { continue };
            if let parked @ Access::Parked(_) = slot.function.write_config(at as u16 & 0xfff, part) {
                result = parked;
            }
        }
        result
    }

    fn slot(&self, bus: u8, devfn: u8) -> Option<&Slot> {
        self.slots.get(usize::from(devfn)).filter(|_| bus == 0)?.get()
    }
}

/// Configuration mechanism #1 on ports 0xCF8–0xCFF: insert it at 0xCF8, 8 bytes long.
///
/// The address register takes dwords only. Byte accesses to 0xCF9 belong to the reset control register, which lies in
/// the middle of it.
pub struct ConfigPorts {
    bus: Arc<PciBus>,
    address: AtomicU32,
    reset_control: Arc<dyn BusDevice>,
}

impl ConfigPorts {
    /// First port.
    pub const BASE: u64 = 0xcf8;
    /// Number of ports.
    pub const LEN: u64 = 8;

    /// Ports over `bus`; `reset_control` gets byte accesses to 0xCF9 at offset 0.
    pub fn new(bus: Arc<PciBus>, reset_control: Arc<dyn BusDevice>) -> Self {
        Self { bus, address: AtomicU32::new(0), reset_control }
    }

    /// The address register: part of the machine's saved state.
    pub fn address(&self) -> u32 {
        self.address.load(Ordering::Relaxed)
    }

    /// Sets the address register, for restore and reset. Bits 30–24 and 1–0 read zero.
    pub fn set_address(&self, address: u32) {
        self.address.store(address & 0x80ff_fffc, Ordering::Relaxed);
    }

    /// Bus, devfn and register offset of a data access at 0xCFC + `byte`; `None` while the window is closed.
    fn target(&self, byte: u64) -> Option<(u8, u8, u64)> {
        let address = self.address();
        let offset = u64::from(address & 0xfc) | byte;
        (address >> 31 != 0).then_some(((address >> 16) as u8, (address >> 8) as u8, offset))
    }
}

impl BusDevice for ConfigPorts {
    fn read(&self, offset: u64, data: &mut [u8]) -> Access {
        match (offset, data.len()) {
            (0, 4) => bytes::put(data, self.address().into()),
            (1, 1) => return self.reset_control.read(0, data),
            (4..=7, 1..=4) => match self.target(offset & 3) {
                Some((bus, devfn, offset)) => self.bus.read(bus, devfn, offset, data),
                None => data.fill(0xff),
            },
            _ => data.fill(0xff),
        }
        Access::Done
    }

    fn write(&self, offset: u64, data: &[u8]) -> Access {
        match (offset, data.len()) {
            (0, 4) => self.set_address(bytes::get(data) as u32),
            (1, 1) => return self.reset_control.write(0, data),
            (4..=7, 1..=4) => {
                if let Some((bus, devfn, offset)) = self.target(offset & 3) {
                    return self.bus.write(bus, devfn, offset, data);
                }
            }
            _ => {}
        }
        Access::Done
    }
}

/// The enhanced configuration window: 4096 bytes a function, 1 MiB a bus.
pub struct Ecam {
    bus: Arc<PciBus>,
}

impl Ecam {
    /// Bytes a bus takes. A window for bus 0 alone is as good as one for 256: other buses are empty.
    pub const BYTES_PER_BUS: u64 = 1 << 20;

    /// A window onto `bus`, which is the first in it.
    pub fn new(bus: Arc<PciBus>) -> Self {
        Self { bus }
    }

    fn target(offset: u64) -> (u8, u8, u64) {
        ((offset >> 20) as u8, (offset >> 12) as u8, offset & 0xfff)
    }
}

impl BusDevice for Ecam {
    fn read(&self, offset: u64, data: &mut [u8]) -> Access {
        let (bus, devfn, register) = Self::target(offset);
        self.bus.read(bus, devfn, register, data);
        Access::Done
    }

    fn write(&self, offset: u64, data: &[u8]) -> Access {
        let (bus, devfn, register) = Self::target(offset);
        self.bus.write(bus, devfn, register, data)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::bus::{Bus, BusView};
    use crate::pci::{ConfigSpace, Field, FixedFunction, Identity};

    #[derive(Default)]
    struct ResetControl(Mutex<Vec<u8>>);

    impl BusDevice for ResetControl {
        fn read(&self, _offset: u64, data: &mut [u8]) -> Access {
            data.fill(0x0e);
            Access::Done
        }
        fn write(&self, _offset: u64, data: &[u8]) -> Access {
            self.0.lock().unwrap().extend(data);
            Access::Done
        }
    }

    struct Machine {
        bus: Arc<PciBus>,
        reset: Arc<ResetControl>,
        ports: BusView,
        memory: BusView,
    }

    const ECAM: u64 = 0xb000_0000;

    fn machine() -> Machine {
        let bus = Arc::new(PciBus::new());
        let reset = Arc::new(ResetControl::default());
        let (ports, memory) = (Arc::new(Bus::new()), Arc::new(Bus::new()));
        let config = Arc::new(ConfigPorts::new(bus.clone(), reset.clone()));
        ports.insert(ConfigPorts::BASE, ConfigPorts::LEN, config).unwrap();
        memory.insert(ECAM, 256 * Ecam::BYTES_PER_BUS, Arc::new(Ecam::new(bus.clone()))).unwrap();
        Machine { bus, reset, ports: BusView::new(ports), memory: BusView::new(memory) }
    }

    fn function(device: u16) -> Arc<FixedFunction> {
        let mut space = ConfigSpace::new(Identity { vendor: 0x1234, device, class: 0xff_0000, ..Default::default() });
        space.define(&[Field::writable(0x40, 4, 0x4433_2211, 0xffff_ffff)]);
        Arc::new(FixedFunction::new(space))
    }

    impl Machine {
        fn add(&self, device: u8, function_number: u8, id: u16) {
            let address = PciAddress::new(device, function_number).unwrap();
            self.bus.add(address, "test", function(id)).unwrap();
        }
        fn inp(&mut self, port: u64, width: usize) -> u64 {
            let mut data = [0; 8];
            let _ = self.ports.read(port, &mut data[..width]);
            u64::from_le_bytes(data)
        }
        fn outp(&mut self, port: u64, width: usize, value: u64) {
            let _ = self.ports.write(port, &value.to_le_bytes()[..width]);
        }
        fn ecam(&mut self, offset: u64, width: usize) -> u64 {
            let mut data = [0; 8];
            let _ = self.memory.read(ECAM + offset, &mut data[..width]);
            u64::from_le_bytes(data)
        }
    }

    #[test]
    fn both_mechanisms_reach_every_byte_of_a_register_at_every_width() {
        let mut m = machine();
        m.add(3, 2, 0x5678);
        m.outp(0xcf8, 4, 0x8000_0000 | 3 << 11 | 2 << 8 | 0x40);
        assert_eq!(m.inp(0xcfc, 4), 0x4433_2211);
        assert_eq!((m.inp(0xcfd, 1), m.inp(0xcfd, 2), m.inp(0xcfe, 2)), (0x22, 0x3322, 0x4433));
        m.outp(0xcff, 1, 0xaa);
        m.outp(0xcfc, 2, 0xccbb);
        let base = 3 << 15 | 2 << 12;
        assert_eq!(m.ecam(base | 0x40, 4), 0xaa33_ccbb);
        assert_eq!((m.ecam(base | 0x41, 2), m.ecam(base, 8)), (0x33cc, 0x5678_1234));
        assert_eq!(m.ecam(base | 0x3e, 4), 0xccbb_0000, "across a dword");
    }

    #[test]
    fn absent_functions_other_buses_and_extended_space_read_all_ones() {
        let mut m = machine();
        m.add(0, 0, 1);
        for address in [0x8001_0000u64, 0x80ff_0000, 0x8000_0800, 0x8000_0100, 0] {
            m.outp(0xcf8, 4, address);
            assert_eq!(m.inp(0xcfc, 4), 0xffff_ffff, "{address:#x}");
            m.outp(0xcfc, 4, 0);
        }
        assert_eq!((m.ecam(1 << 20, 4), m.ecam(0x100, 4), m.ecam(0xffc, 4)), (0xffff_ffff, 0xffff_ffff, 0xffff_ffff));
        assert_eq!(m.ecam(255 << 20 | 0xff << 12, 4), 0xffff_ffff);
    }

    #[test]
    fn the_address_port_takes_dwords_only_and_0xcf9_belongs_to_the_reset_register() {
        let mut m = machine();
        m.outp(0xcf8, 4, 0xffff_ffff);
        assert_eq!(m.inp(0xcf8, 4), 0x80ff_fffc);
        m.outp(0xcf8, 1, 0);
        m.outp(0xcf8, 2, 0);
        m.outp(0xcfa, 2, 0);
        m.outp(0xcfb, 1, 1);
        m.outp(0xcfa, 4, 0);
        assert_eq!(m.inp(0xcf8, 4), 0x80ff_fffc);
        assert_eq!((m.inp(0xcf8, 1), m.inp(0xcf9, 2), m.inp(0xcfe, 4)), (0xff, 0xffff, 0xffff_ffff));
        m.outp(0xcf9, 1, 0x06);
        assert_eq!(*m.reset.0.lock().unwrap(), [6]);
        assert_eq!(m.inp(0xcf9, 1), 0x0e);
    }

    #[test]
    fn function_0_says_multifunction_exactly_where_it_has_siblings() {
        let mut m = machine();
        m.add(1, 0, 1);
        m.add(1, 3, 2);
        m.add(2, 0, 3);
        assert_eq!((m.ecam(1 << 15 | 0x0e, 1), m.ecam(1 << 15 | 0x0c, 4)), (0x80, 0x80_0000));
        assert_eq!((m.ecam(1 << 15 | 0x0f, 1), m.ecam(1 << 15 | 3 << 12 | 0x0e, 1)), (0, 0));
        assert_eq!(m.ecam(2 << 15 | 0x0e, 1), 0);
    }

    #[test]
    fn two_devices_in_one_slot_and_slots_that_do_not_exist_are_refused_by_name() {
        let m = machine();
        let slot = PciAddress::new(4, 0).unwrap();
        m.bus.add(slot, "disk root.img", function(1)).unwrap();
        assert_eq!(
            m.bus.add(slot, "net tap0", function(2)).unwrap_err().to_string(),
            "pci slot 00:04.0 is taken by disk root.img: choose another slot for net tap0"
        );
        assert_eq!(
            PciAddress::new(32, 0).unwrap_err().to_string(),
            "pci slot 32.0 does not exist: devices are 0 to 31, functions 0 to 7"
        );
        assert!(PciAddress::new(0, 8).is_err());
    }

    proptest::proptest! {
        #[test]
        fn random_configuration_accesses_never_panic(
            accesses in proptest::collection::vec((0u64..8, 0u64..(256 << 20), 0usize..4, 0u64..), 0..64),
        ) {
            let mut m = machine();
            m.add(0, 0, 1);
            m.add(31, 7, 2);
            for (port, ecam, width, value) in accesses {
                m.outp(0xcf8 + port, 1 << width, value | 0x8000_0000);
                m.inp(0xcf8 + port, 1 << width);
                let _ = m.memory.write(ECAM + ecam, &value.to_le_bytes()[..1 << width]);
                m.ecam(ecam, 1 << width);
            }
        }
    }
}
