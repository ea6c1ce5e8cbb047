//! The bridges of the `bhyve` profile: host bridge at 00:00.0 and LPC bridge at 00:1f.0, with the ids and registers that
//! guests installed under bhyve on SmartOS have seen (illumos-gate `usr/src/cmd/bhyve`: `pci_hostbridge.c`, `pci_lpc.c`,
//! `pci_irq.c`).

use std::sync::Arc;

use super::config::{ConfigSpace, Field, Identity};
use super::host_bridge::FixedFunction;
use super::intx::{InterruptPin, IntxRouter};
use super::pirq::with_pirq_registers;
use super::{PciAddress, PciError};

/// Links of the LPC bridge, PIRQA to PIRQH.
pub const BHYVE_LINKS: usize = 8;

/// The route registers of the links (Intel ICH10 datasheet §13.1.9, §13.1.11: the router bhyve follows).
const PIRQ_ROUTES: [u8; BHYVE_LINKS] = [0x60, 0x61, 0x62, 0x63, 0x68, 0x69, 0x6a, 0x6b];

/// What bhyve gives its bridges: no subsystem, no interrupt pin, and the line that says "not connected".
const BRIDGE: Identity = Identity {
    vendor: 0x8086,
    device: 0,
    revision: 0,
    class: 0,
    subsystem_vendor: 0,
    subsystem: 0,
    pin: 0,
    line: 0xff,
};

/// The command register: all functions start as bus masters.
const COMMAND: Field = Field::writable(0x04, 2, 0x0004, 0x0407);

/// The link (0 is PIRQA) that `pin` of `slot` is wired to under firmware. The same number counts the pins of the IOAPIC
/// from 16. The firmware tables have to say the same.
pub const fn bhyve_link(slot: PciAddress, pin: InterruptPin) -> usize {
    (slot.device() as usize).wrapping_add(pin.register() as usize).wrapping_add(4) & 7
}

/// The host bridge: the ids of a 440FX, as SmartOS configures it, and a PCI Express capability, without which FreeBSD uses
/// no MSI-X on boards it does not know.
///
/// The shadow attribute registers PAM0–6 (0x59–0x5f) and SMRAMC (0x72) keep what a 440FX's firmware writes, though under
/// bhyve they lie inside the capability; shadow RAM is always writable, so nothing else follows.
///
/// # Errors
/// Never: the capability fits.
pub fn bhyve_host_bridge() -> Result<FixedFunction, PciError> {
    const PCI_EXPRESS: u8 = 0x10;
    /// Version 2, root port (PCI Express 3.0 §7.8.2).
    const TYPE: u32 = 0x0042;
    /// Bytes behind id and link (§7.8).
    const BODY_BYTES: usize = 0x3c - 2;
    /// 2.5 GT/s, one lane, and the same negotiated (§7.8.6, §7.8.8).
    const LINK_CAPABILITIES: u32 = 0x0411;
    const LINK_STATUS: u32 = 0x0011;

    let mut space = ConfigSpace::new(Identity { device: 0x1237, class: 0x06_00_00, ..BRIDGE });
    let at = space.add_capability(PCI_EXPRESS, &[0; BODY_BYTES], &[])?;
    space.define(&[
        COMMAND,
        Field::fixed(at.wrapping_add(0x02), 2, TYPE),
        // Device control keeps what is written.
        Field::writable(at.wrapping_add(0x08), 2, 0, 0xffff),
        Field::fixed(at.wrapping_add(0x0c), 4, LINK_CAPABILITIES),
        Field::fixed(at.wrapping_add(0x12), 2, LINK_STATUS),
        Field::writable(0x59, 1, 0, 0xff),
        Field::writable(0x5a, 2, 0, 0xffff),
        Field::writable(0x5c, 4, 0, 0xffff_ffff),
        Field::writable(0x72, 1, 0, 0xff),
    ]);
    Ok(FixedFunction::new(space))
}

/// The LPC bridge, with the ids of a PIIX3. Its route registers connect links to interrupts of the PIC only; the links'
/// pins of the IOAPIC are wired for good.
pub fn bhyve_lpc_bridge(router: Arc<IntxRouter>) -> FixedFunction {
    let mut space = ConfigSpace::new(Identity { device: 0x7000, class: 0x06_01_00, ..BRIDGE });
    space.define(&[
        COMMAND,
        // Passive release is on: Linux would otherwise print that it switches it on.
        Field::writable(0x82, 1, 0x02, 0x02),
    ]);
    with_pirq_registers(space, &PIRQ_ROUTES, router)
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

    struct Board {
        router: Arc<IntxRouter>,
        /// Interrupts 5, 10 and 11 of the PIC.
        isa: [Arc<FakeLine>; 3],
        /// Pins 16 to 23 of the IOAPIC.
        ioapic: [Arc<FakeLine>; BHYVE_LINKS],
    }

    fn board() -> Board {
        let isa: [Arc<FakeLine>; 3] = Default::default();
        let ioapic: [Arc<FakeLine>; BHYVE_LINKS] = Default::default();
        let lines = [5, 10, 11].into_iter().zip(&isa).map(|(gsi, line)| (gsi, line.clone() as Arc<dyn IrqLine>));
        let fixed = ioapic.clone().map(|line| line as Arc<dyn IrqLine>);
        let router = IntxRouter::with_fixed(lines.collect(), [10, 11, 10, 11, 10, 11, 10, 11], fixed);
        Board { router, isa, ioapic }
    }

    #[test]
    fn the_host_bridge_says_it_is_a_440fx_on_pci_express() {
        let bridge = bhyve_host_bridge().unwrap();
        assert_eq!([0, 8, 0x2c, 0x3c].map(|at| dword(&bridge, at)), [0x1237_8086, 0x0600_0000, 0, 0xff]);
        assert_eq!(dword(&bridge, 4), 0x0010_0004, "bus master, capabilities");
        assert_eq!([0x34, 0x40, 0x4c, 0x50].map(|at| dword(&bridge, at)), [0x40, 0x0042_0010, 0x411, 0x11_0000]);
        let _ = bridge.write_config(0x58, &[0x33; 8]);
        assert_eq!((dword(&bridge, 0x58), dword(&bridge, 0x5c)), (0x3333_3300, 0x3333_3333), "shadow attributes");
    }

    #[test]
    fn the_lpc_bridge_says_it_is_a_piix3_and_starts_with_the_routes_of_the_machine() {
        let bridge = bhyve_lpc_bridge(board().router);
        assert_eq!([0, 4, 8, 0xc, 0x2c].map(|at| dword(&bridge, at)), [0x7000_8086, 4, 0x0601_0000, 0, 0]);
        assert_eq!([0x60, 0x64, 0x68].map(|at| dword(&bridge, at)), [0x0b0a_0b0a, 0, 0x0b0a_0b0a]);
    }

    #[test]
    fn a_route_register_moves_its_link_between_interrupts_of_the_pic_and_leaves_the_ioapic_alone() {
        let Board { router, isa: [five, ten, eleven], ioapic } = board();
        let bridge = bhyve_lpc_bridge(router.clone());
        let slot = PciAddress::new(4, 0).unwrap();
        // INTA# of device 4 is PIRQB; PIRQH is the last register.
        assert_eq!(bhyve_link(slot, InterruptPin::A), 1);
        let (b, h) = (router.input(1), router.input(7));
        b.set(true);
        assert_eq!((five.level(), ten.level(), eleven.level(), ioapic[1].level()), (false, false, true, true));
        let _ = bridge.write_config(0x61, &[0x45]);
        assert_eq!((five.level(), eleven.level(), dword(&bridge, 0x60)), (true, false, 0x0b0a_050a));
        h.set(true);
        assert!(eleven.level() && ioapic[7].level());
        let _ = bridge.write_config(0x68, &[0x80, 0x80, 0x80, 0x80]);
        assert_eq!((eleven.level(), ioapic[7].level()), (false, true), "disabled");
        // 13 is the coprocessor's: no link gets there.
        let _ = bridge.write_config(0x61, &[13]);
        assert_eq!((five.level(), router.gsi(1), ioapic[1].level()), (false, None, true));
        let _ = bridge.reset();
        assert_eq!((eleven.level(), router.gsi(1), router.gsi(7)), (true, Some(11), Some(11)));
    }

    #[test]
    fn pins_rotate_over_eight_links() {
        let link = |device, pin| bhyve_link(PciAddress::new(device, 0).unwrap(), pin);
        // The first rows of the table in bhyve's own firmware: LNKF…LNKA for device 0, LNKA…LNKD for device 3.
        let pins = [InterruptPin::A, InterruptPin::B, InterruptPin::C, InterruptPin::D];
        assert_eq!(pins.map(|pin| link(0, pin)), [5, 6, 7, 0]);
        assert_eq!(pins.map(|pin| link(3, pin)), [0, 1, 2, 3]);
        assert_eq!(pins.map(|pin| link(31, pin)), [4, 5, 6, 7]);
    }
}
