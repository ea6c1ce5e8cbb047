//! The south bridge of the `i440fx` profile: PIIX3 ISA bridge at 00:01.0 and PIIX4 power management at 00:01.3
//! (Intel 82371SB and 82371AB datasheets).

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use serde::{Deserialize, Serialize};

use super::config::{ConfigSpace, Field, Identity, StateError};
use super::host_bridge::{FixedFunction, SUBSYSTEM};
use super::intx::{IntxRouter, PIRQ_LINKS};
use super::pirq::with_pirq_registers;
use crate::bus::{Access, BusDevice};

const PIRQ_ROUTES: [u8; PIRQ_LINKS] = [0x60, 0x61, 0x62, 0x63];

/// The PIIX3 ISA bridge. Its PIRQ route registers (0x60–0x63) start with what the router has, as firmware would have
/// left them, and reroute it when the guest writes them.
pub fn piix3_isa_bridge(router: Arc<IntxRouter>) -> FixedFunction {
    let mut space = ConfigSpace::new(Identity { device: 0x7000, class: 0x06_01_00, ..SUBSYSTEM });
    space.define(&[
        // I/O, memory and bus master are always on and DEVSEL# is medium.
        Field::fixed(0x04, 2, 0x0007),
        Field::fixed(0x06, 2, 0x0200),
        // Function 0 of a multifunction device.
        Field::fixed(0x0e, 1, 0x80),
        Field::writable(0x4c, 1, 0x4d, 0xff),
        Field::writable(0x4e, 2, 0x0003, 0xffff),
        // Passive release is on: Linux would otherwise print that it switches it on.
        Field::writable(0x82, 1, 0x02, 0x02),
    ]);
    with_pirq_registers(space, &PIRQ_ROUTES, router)
}

/// Where the power-management function finds its blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piix4Pm {
    /// First port of the 64-byte power-management block, 64-aligned: what the FADT says, too.
    pub pm_base: u16,
    /// First port of the 16-byte SMBus host ([`SmbusHost`]), 16-aligned.
    pub smbus_base: u16,
}

/// The PIIX4 power-management function. The blocks do not move: firmware and operating systems write the bases they
/// read from the tables, and a base elsewhere would leave the FADT wrong.
pub fn piix4_pm(bases: Piix4Pm) -> FixedFunction {
    let mut space = ConfigSpace::new(Identity {
        device: 0x7113,
        revision: 3,
        class: 0x06_80_00,
        // The SCI, hardwired (82371AB §7.1.13).
        pin: 1,
        line: 9,
        ..SUBSYSTEM
    });
    space.define(&[
        Field::fixed(0x06, 2, 0x0280),
        // Bit 0 of the bases says "ports".
        Field::fixed(0x40, 4, u32::from(bases.pm_base) | 1),
        // PMIOSE: the power-management block decodes.
        Field::writable(0x80, 1, 0x01, 0x01),
        Field::fixed(0x90, 4, u32::from(bases.smbus_base) | 1),
        // SMBus host enabled, interrupt IRQ9: Linux complains about a base of zero or a disabled host.
        Field::writable(0xd2, 1, 0x09, 0x0f),
        // Device activity and resource enables (0x58, 0x5c …) stay zero: no further ports are decoded.
    ]);
    FixedFunction::new(space)
}

/// Registers of an [`SmbusHost`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SmbusState {
    version: u16,
    status: u8,
    registers: [u8; 5],
}

/// The SMBus host of the PIIX4: a bus without devices. Every transaction ends at once with "no answer", so a driver
/// that probes for memory modules finds none instead of a hung controller. 16 ports.
#[derive(Default)]
pub struct SmbusHost {
    status: AtomicU8,
    /// Control, command, address, data 0 and 1 (offsets 2 to 6).
    registers: [AtomicU8; 5],
}

impl SmbusHost {
    /// Number of ports.
    pub const LEN: u64 = 16;
    const START: u8 = 1 << 6;
    const DEVICE_ERROR: u8 = 1 << 2;

    /// An idle host.
    pub fn new() -> Self {
        Self::default()
    }

    /// The machine's reset: idle, all registers zero.
    pub fn reset(&self) {
        self.set(0, [0; 5]);
    }

    /// The state, to be restored into another host.
    pub fn save(&self) -> SmbusState {
        let registers = self.registers.each_ref().map(|register| register.load(Ordering::Relaxed));
        SmbusState { version: 1, status: self.status.load(Ordering::Relaxed), registers }
    }

    /// Goes on from `state`.
    ///
    /// # Errors
    /// Where `state` is not one of this version or has bits that no guest can have set; nothing has changed then.
    pub fn restore(&self, state: &SmbusState) -> Result<(), StateError> {
        let refuse = |why| Err(StateError { what: "the smbus host", why });
        let [control, ..] = state.registers;
        if state.version != 1 {
            return refuse("its version is not 1");
        }
        if state.status & !Self::DEVICE_ERROR != 0 || control & Self::START != 0 {
            return refuse("a transaction is under way");
        }
        self.set(state.status, state.registers);
        Ok(())
    }

    fn set(&self, status: u8, registers: [u8; 5]) {
        self.status.store(status, Ordering::Relaxed);
        for (register, value) in self.registers.iter().zip(registers) {
            register.store(value, Ordering::Relaxed);
        }
    }

    fn register(&self, offset: u64) -> Option<&AtomicU8> {
        self.registers.get(usize::try_from(offset).ok()?.checked_sub(2)?)
    }
}

impl BusDevice for SmbusHost {
    fn read(&self, offset: u64, data: &mut [u8]) -> Access {
        for (at, byte) in (offset..=u64::MAX).zip(data) {
            *byte = match at {
                0 => self.status.load(Ordering::Relaxed),
                _ => self.register(at).map_or(0, |register| register.load(Ordering::Relaxed)),
            };
        }
        Access::Done
    }

    fn write(&self, offset: u64, data: &[u8]) -> Access {
        for (at, byte) in (offset..=u64::MAX).zip(data) {
            if at == 0 {
                // Status bits are cleared by writing ones (82371AB §7.2.1).
                self.status.fetch_and(!byte, Ordering::Relaxed);
            } else if let Some(register) = self.register(at) {
                register.store(if at == 2 { byte & !Self::START } else { *byte }, Ordering::Relaxed);
                if at == 2 && byte & Self::START != 0 {
                    self.status.fetch_or(Self::DEVICE_ERROR, Ordering::Relaxed);
                }
            }
        }
        Access::Done
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::interrupt::IrqLine;
    use crate::pci::PciFunction;
    use crate::pci::intx::tests::FakeLine;

    fn dword(function: &FixedFunction, offset: u16) -> u32 {
        let mut data = [0; 4];
        function.read_config(offset, &mut data);
        u32::from_le_bytes(data)
    }

    fn router(table: [u32; 4]) -> Arc<IntxRouter> {
        let lines = [5, 10, 11, 16].map(|gsi| (gsi, Arc::new(FakeLine::default()) as Arc<dyn IrqLine>));
        IntxRouter::new(lines.to_vec(), table)
    }

    #[test]
    fn the_isa_bridge_starts_with_the_routes_of_the_machine_and_reroutes_them() {
        let router = router([10, 10, 11, 11]);
        let bridge = piix3_isa_bridge(router.clone());
        assert_eq!((dword(&bridge, 0), dword(&bridge, 8), dword(&bridge, 0xc)), (0x7000_8086, 0x0601_0000, 0x80_0000));
        assert_eq!(dword(&bridge, 0x60), 0x0b0b_0a0a);
        let _ = bridge.write_config(0x61, &[5]);
        assert_eq!([0, 1, 2, 3].map(|link| router.gsi(link)), [Some(10), Some(5), Some(11), Some(11)]);
        let _ = bridge.write_config(0x60, &[0x80]);
        assert_eq!(router.gsi(0), None);
        let _ = bridge.reset();
        assert_eq!([0, 1].map(|link| router.gsi(link)), [Some(10); 2]);
    }

    #[test]
    fn a_link_routed_beyond_the_isa_interrupts_stays_there() {
        let router = router([16, 10, 11, 11]);
        let bridge = piix3_isa_bridge(router.clone());
        assert_eq!(dword(&bridge, 0x60) & 0xff, 0x80);
        let _ = bridge.write_config(0x60, &[10]);
        assert_eq!(router.gsi(0), Some(16));
    }

    #[test]
    fn the_power_management_function_shows_its_bases_enabled_and_immovable() {
        let pm = piix4_pm(Piix4Pm { pm_base: 0x600, smbus_base: 0x700 });
        let _ = pm.write_config(0x40, &[0xff; 4]);
        let _ = pm.write_config(0x90, &[0xff; 4]);
        assert_eq!((dword(&pm, 0), dword(&pm, 0x40), dword(&pm, 0x90)), (0x7113_8086, 0x601, 0x701));
        assert_eq!((dword(&pm, 0x80), dword(&pm, 0xd0), dword(&pm, 0x3c)), (1, 0x9_0000, 0x109));
    }

    #[test]
    fn an_smbus_transaction_ends_with_no_answer_and_the_status_can_be_cleared() {
        let host = SmbusHost::new();
        let read = |offset| {
            let mut data = [0xaa];
            let _ = host.read(offset, &mut data);
            data[0]
        };
        let _ = host.write(4, &[0xa1]);
        let _ = host.write(2, &[0x48]);
        assert_eq!((read(0), read(2), read(4)), (0x04, 0x08, 0xa1));
        let _ = host.write(0, &[0xff]);
        assert_eq!(read(0), 0);
        let _ = host.write(12, &[1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!((read(15), read(u64::MAX)), (0, 0));
    }

    #[test]
    fn the_smbus_host_goes_on_from_a_saved_state_and_starts_anew_at_reset() {
        let (first, second) = (SmbusHost::new(), SmbusHost::new());
        let _ = first.write(2, &[0x48, 0x77, 0xa1]);
        second.restore(&first.save()).unwrap();
        assert_eq!((second.save(), second.save().status), (first.save(), 0x04));
        second.reset();
        assert_eq!(second.save(), SmbusHost::new().save());
        for (state, why) in [
            (SmbusState { version: 2, ..first.save() }, "its version is not 1"),
            (SmbusState { status: 1, ..first.save() }, "a transaction is under way"),
            (SmbusState { registers: [0x40; 5], ..first.save() }, "a transaction is under way"),
        ] {
            assert_eq!(second.restore(&state).unwrap_err().why, why);
        }
        assert_eq!(second.save(), SmbusHost::new().save(), "refused");
    }
}
