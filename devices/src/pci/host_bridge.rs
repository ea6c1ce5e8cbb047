//! Functions that are configuration space and nothing else, and the host bridges among them.

use std::sync::{Mutex, PoisonError};

use super::PciFunction;
use super::config::{ConfigSpace, ConfigState, Field, Identity, StateError};
use crate::bus::Access;

type Hook = Box<dyn Fn(&ConfigSpace) + Send + Sync>;

/// A function without BARs: reads and writes its registers, and calls a hook after each write.
pub struct FixedFunction {
    space: Mutex<ConfigSpace>,
    after_write: Option<Hook>,
}

impl FixedFunction {
    /// A function of these registers.
    pub fn new(space: ConfigSpace) -> Self {
        Self { space: Mutex::new(space), after_write: None }
    }

    /// A function whose registers do something: `hook` sees them after every write, reset and restore. It may not call
    /// back into the function.
    pub fn with_hook(space: ConfigSpace, hook: impl Fn(&ConfigSpace) + Send + Sync + 'static) -> Self {
        hook(&space);
        Self { space: Mutex::new(space), after_write: Some(Box::new(hook)) }
    }

    /// What a guest can have changed.
    pub fn save(&self) -> ConfigState {
        self.space.lock().unwrap_or_else(PoisonError::into_inner).save()
    }

    /// Takes back a saved state.
    pub fn restore(&self, state: &ConfigState) -> Result<(), StateError> {
        self.change(|space| space.restore(state))
    }

    fn change<R>(&self, edit: impl FnOnce(&mut ConfigSpace) -> R) -> R {
        let mut space = self.space.lock().unwrap_or_else(PoisonError::into_inner);
        let result = edit(&mut space);
        if let Some(hook) = &self.after_write {
            hook(&space);
        }
        result
    }
}

impl PciFunction for FixedFunction {
    fn read_config(&self, offset: u16, data: &mut [u8]) {
        self.space.lock().unwrap_or_else(PoisonError::into_inner).read(offset, data);
    }

    fn write_config(&self, offset: u16, data: &[u8]) -> Access {
        self.change(|space| space.write(offset, data));
        Access::Done
    }

    fn reset(&self) -> Access {
        self.change(ConfigSpace::reset);
        Access::Done
    }
}

/// Subsystem ids of the chipset functions, as qemu's have them: guests bind drivers by them.
pub(super) const SUBSYSTEM: Identity = Identity {
    vendor: 0x8086,
    device: 0,
    revision: 0,
    class: 0,
    subsystem_vendor: 0x1af4,
    subsystem: 0x1100,
    pin: 0,
    line: 0,
};

const HOST_BRIDGE: u32 = 0x06_00_00;

/// The 440FX host bridge at 00:00.0 (Intel 82441FX datasheet).
///
/// The attribute registers PAM0–6 (0x59–0x5f) and SMRAMC (0x72) keep what firmware writes, which is how firmware finds
/// them; shadow RAM is always writable, so nothing else follows. Linux prints one line for this id ("Limiting direct
/// PCI/PCI transfers"), under every VMM that has it.
pub fn i440fx_host_bridge() -> FixedFunction {
    let mut space = ConfigSpace::new(Identity { device: 0x1237, revision: 2, class: HOST_BRIDGE, ..SUBSYSTEM });
    space.define(&[
        // Memory space and bus master are always on and DEVSEL# is medium (§3.2.3, §3.2.4).
        Field::fixed(0x04, 2, 0x0006),
        Field::fixed(0x06, 2, 0x0280),
        Field::writable(0x50, 2, 0, 0xffff),
        // PAM0 governs one range, in its high half; PAM1–6 two each.
        Field::writable(0x59, 1, 0, 0x30),
        Field::writable(0x5a, 2, 0, 0x3333),
        Field::writable(0x5c, 4, 0, 0x3333_3333),
        // SMRAM is closed and SMM reads compatible segment A.
        Field::writable(0x72, 1, 0x02, 0x78),
    ]);
    FixedFunction::new(space)
}

/// The host bridge of the `micro` profile at 00:00.0: just its presence, which Linux checks for before it believes
/// ports 0xCF8/0xCFC.
///
/// The id is that of qemu's generic PCI Express host (1b36:0008), for which Linux has no quirk: nothing is printed and
/// no register behind the header is read.
pub fn micro_host_bridge() -> FixedFunction {
    FixedFunction::new(ConfigSpace::new(Identity { vendor: 0x1b36, device: 0x0008, class: HOST_BRIDGE, ..SUBSYSTEM }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dword(function: &FixedFunction, offset: u16) -> u32 {
        let mut data = [0; 4];
        function.read_config(offset, &mut data);
        u32::from_le_bytes(data)
    }

    #[test]
    fn the_host_bridges_say_who_they_are() {
        let i440fx = i440fx_host_bridge();
        assert_eq!(
            (dword(&i440fx, 0), dword(&i440fx, 8), dword(&i440fx, 0x2c)),
            (0x1237_8086, 0x0600_0002, 0x1100_1af4)
        );
        let micro = micro_host_bridge();
        assert_eq!((dword(&micro, 0), dword(&micro, 8), dword(&micro, 0x10)), (0x0008_1b36, 0x0600_0000, 0));
    }

    #[test]
    fn shadow_attributes_keep_what_firmware_writes_and_return_to_zero_on_reset() {
        let bridge = i440fx_host_bridge();
        let _ = bridge.write_config(0x58, &[0xff; 4]);
        let _ = bridge.write_config(0x5c, &[0xff; 4]);
        assert_eq!((dword(&bridge, 0x58), dword(&bridge, 0x5c)), (0x3333_3000, 0x3333_3333));
        let saved = bridge.save();
        let _ = bridge.reset();
        assert_eq!(dword(&bridge, 0x5c), 0);
        bridge.restore(&saved).unwrap();
        assert_eq!(dword(&bridge, 0x5c), 0x3333_3333);
    }
}
