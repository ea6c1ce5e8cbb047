//! Which I/O ports are free for a device with a port of the operator's choice.

use super::{Profile, VmConfig};

/// First port of COM1 to COM4, each with eight ports.
const COM: [(u16, &str); 4] = [(0x3f8, "com1"), (0x2f8, "com2"), (0x3e8, "com3"), (0x2e8, "com4")];

impl VmConfig {
    /// Who answers at an I/O port, the debug port aside.
    ///
    /// Found out here, because the buses on which two devices would meet are built when there is guest memory already,
    /// and the ports that a hypervisor answers by itself are on no bus at all.
    pub(super) fn port_owner(&self, port: u16) -> Option<&'static str> {
        let com =
            COM.iter().zip(self.com_ports()).find(|((base, _), exists)| *exists && (*base..*base + 8).contains(&port));
        if let Some(((_, name), _)) = com {
            return Some(name);
        }
        match port {
            0x20..=0x21 | 0xa0..=0xa1 | 0x4d0..=0x4d1 => Some("the interrupt controllers"),
            0x40..=0x43 | 0x61 => Some("the timer chip"),
            0x60 | 0x64 if self.has_ps2() => Some("the keyboard controller"),
            0x505 if self.pvpanic => Some("pvpanic"),
            0x400..=0x40f | 0xb2..=0xb3 if self.profile == Profile::Bhyve => Some("power management"),
            0x600..=0x60f if self.profile != Profile::Bhyve => Some("power management"),
            0xcf8..=0xcff => Some("the configuration ports of PCI"),
            0xc000..=0xffff => Some("PCI devices"),
            _ if self.profile == Profile::Micro => None,
            0x70..=0x71 => Some("the real-time clock"),
            0x80 => Some("the POST code"),
            0x92 => Some("system control port A"),
            0x700..=0x70f if self.profile == Profile::I440fx => Some("the SMBus"),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SerialBackend;

    #[test]
    fn the_ports_of_debug_consoles_are_free_and_those_of_devices_are_not() {
        for profile in [Profile::I440fx, Profile::Micro] {
            let config = VmConfig { profile, pvpanic: true, ..VmConfig::default() };
            assert_eq!([0x402, 0xe9, 0x500, 0x506].map(|port| config.port_owner(port)), [None; 4]);
            for port in [0x20, 0x43, 0x61, 0x505, 0x600, 0x60f, 0xcf8, 0xcff, 0xc000, 0xffff] {
                assert!(config.port_owner(port).is_some(), "{profile:?} {port:#x}");
            }
        }
    }

    #[test]
    fn a_com_port_takes_its_eight_ports_only_when_there_is_one() {
        let mut config = VmConfig::default();
        assert_eq!(config.port_owner(0x2ff), None);
        config.serials[1] = Some(SerialBackend::Null);
        assert_eq!(
            [0x2f7, 0x2f8, 0x2ff, 0x300].map(|port| config.port_owner(port)),
            [None, Some("com2"), Some("com2"), None]
        );
    }

    #[test]
    fn bhyves_board_has_its_power_management_elsewhere_and_all_com_ports() {
        let config = VmConfig { profile: Profile::Bhyve, ..VmConfig::default() };
        for port in [0x400, 0x402, 0x40f, 0xb2, 0xb3, 0x60, 0x80, 0x92, 0x3f8, 0x2f8, 0x3e8, 0x2ef] {
            assert!(config.port_owner(port).is_some(), "{port:#x}");
        }
        assert_eq!([0xe9, 0x600, 0x700, 0x410].map(|port| config.port_owner(port)), [None; 4]);
    }

    #[test]
    fn what_a_profile_lacks_takes_no_port() {
        let owners = |profile| {
            let config = VmConfig { profile, ..VmConfig::default() };
            [0x60, 0x64, 0x70, 0x80, 0x92, 0x700].map(|port| config.port_owner(port).is_some())
        };
        assert_eq!((owners(Profile::I440fx), owners(Profile::Micro)), ([true; 6], [false; 6]));
    }
}
