//! Where each PCI device goes.

use super::values::Slot;
use super::{ConfigError, Profile, VmConfig};

/// First device number of network interfaces without a slot of their own.
const NETS: std::ops::Range<u8> = 3..11;
/// First device number of disks without a slot of their own.
const DISKS: std::ops::Range<u8> = 11..27;
const CONSOLE: Slot = Slot::device(28);
const RNG: Slot = Slot::device(29);

/// The slot of every configured PCI device.
///
/// A device without `slot=` goes to the place of its kind and position: interface *n* to device 3 + *n* (8 of them),
/// disk *n* to device 11 + *n* (16 of them), the console to 28 and the entropy source to 29. No device's place depends
/// on a device of another kind, so adding a disk never renames the guest's network interfaces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotPlan {
    /// Slots of [`VmConfig::disks`], in the same order.
    pub disks: Vec<Slot>,
    /// Slots of [`VmConfig::nets`], in the same order.
    pub nets: Vec<Slot>,
    /// Slot of [`VmConfig::console`].
    pub console: Option<Slot>,
    /// Slot of [`VmConfig::rng`].
    pub rng: Option<Slot>,
}

impl VmConfig {
    /// Places every PCI device, or says which two are in each other's way.
    pub fn slot_plan(&self) -> Result<SlotPlan, ConfigError> {
        let plan = SlotPlan {
            disks: place("disk", self.disks.iter().map(|disk| disk.slot), DISKS)?,
            nets: place("net", self.nets.iter().map(|net| net.slot), NETS)?,
            console: self.console.as_ref().map(|console| console.slot.unwrap_or(CONSOLE)),
            rng: self.rng.as_ref().map(|rng| rng.slot.unwrap_or(RNG)),
        };
        self.check_plan(&plan)?;
        Ok(plan)
    }

    fn check_plan(&self, plan: &SlotPlan) -> Result<(), ConfigError> {
        let disks = self.disks.iter().map(|disk| disk.id.as_str()).zip(plan.disks.iter().copied());
        let nets = self.nets.iter().map(|net| net.id.as_str()).zip(plan.nets.iter().copied());
        let console = plan.console.map(|slot| ("console", slot));
        let rng = plan.rng.map(|slot| ("rng", slot));
        let placed: Vec<(&str, Slot)> = disks.chain(nets).chain(console).chain(rng).collect();
        for (index, (name, slot)) in placed.iter().enumerate() {
            if let Some(owner) = self.profile.owner_of(*slot) {
                return Err(ConfigError::setting(name, format!("slot {slot} belongs to {owner}; choose another slot")));
            }
            if let Some((other, _)) = placed[..index].iter().find(|(_, taken)| taken == slot) {
                let problem = format!("slot {slot} is already taken by {other}; give one of them another slot");
                return Err(ConfigError::setting(name, problem));
            }
            // A guest looks for functions 1 to 7 only where function 0 answers (PCI 3.0 §3.2.2.3.4).
            if slot.function != 0 && !placed.iter().any(|(_, taken)| *taken == Slot::device(slot.device)) {
                let first = slot.device;
                let problem =
                    format!("slot {slot} stays invisible while slot {first} is empty; use slot {first} first");
                return Err(ConfigError::setting(name, problem));
            }
        }
        Ok(())
    }
}

fn place(
    kind: &str,
    wanted: impl Iterator<Item = Option<Slot>>,
    range: std::ops::Range<u8>,
) -> Result<Vec<Slot>, ConfigError> {
    let most = range.len();
    let mut defaults = range.map(Slot::device);
    wanted
        .enumerate()
        .map(|(index, slot)| match (slot, defaults.next()) {
            (Some(slot), _) | (None, Some(slot)) => Ok(slot),
            (None, None) => {
                let name = format!("{kind}{index}");
                Err(ConfigError::setting(&name, format!("only the first {most} have a place of their own; give slot=")))
            }
        })
        .collect()
}

impl Profile {
    /// The fixed device of this profile that sits in `slot`.
    fn owner_of(self, slot: Slot) -> Option<&'static str> {
        match (self, slot.device) {
            (_, 0) => Some("the host bridge"),
            (Self::I440fx, 1) => Some("the PIIX of profile i440fx"),
            (Self::Bhyve, 31) => Some("the LPC bridge of profile bhyve"),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ConsoleConfig, DiskConfig, Mac, NetConfig, RngConfig, SerialBackend};

    fn net(tap: &str) -> NetConfig {
        NetConfig { mac: Some(Mac([2, 0, 0, 0, 0, 1])), id: tap.into(), ..NetConfig::new(tap) }
    }

    fn with_disks(slots: &[Option<&str>]) -> VmConfig {
        let disk = |slot: &Option<&str>| DiskConfig { slot: slot.map(|s| s.parse().unwrap()), ..DiskConfig::new("d") };
        let mut config = VmConfig { disks: slots.iter().map(disk).collect(), ..VmConfig::default() };
        config.name_devices();
        config
    }

    #[test]
    fn adding_a_disk_moves_no_other_device() {
        let mut config = with_disks(&[None]);
        config.nets = vec![net("tap0"), net("tap1")];
        config.rng = Some(RngConfig::default());
        config.console = Some(ConsoleConfig { backend: SerialBackend::Null, slot: None });
        let before = config.slot_plan().unwrap();
        config.disks.push(DiskConfig { id: "new".into(), ..DiskConfig::new("new") });
        let after = config.slot_plan().unwrap();
        assert_eq!(before, SlotPlan { disks: before.disks.clone(), ..after.clone() });
        assert_eq!(before.disks[0], after.disks[0]);
    }

    #[test]
    fn two_devices_in_one_slot_are_both_named() {
        let mut config = with_disks(&[Some("6")]);
        config.nets = vec![NetConfig { slot: Some(Slot::device(6)), ..net("net0") }];
        let error = config.slot_plan().unwrap_err().to_string();
        assert_eq!(error, "net0: slot 6 is already taken by disk0; give one of them another slot");
    }

    #[test]
    fn an_explicit_slot_that_is_the_default_of_another_device_is_refused() {
        let error = with_disks(&[Some("12"), None]).slot_plan().unwrap_err().to_string();
        assert!(error.starts_with("disk1: slot 12 is already taken by disk0"), "{error}");
    }

    #[test]
    fn slots_of_the_profile_are_refused_only_under_that_profile() {
        let mut config = with_disks(&[Some("1")]);
        assert!(config.slot_plan().unwrap_err().to_string().contains("belongs to the PIIX"));
        for profile in [Profile::Micro, Profile::Bhyve] {
            config.profile = profile;
            assert_eq!(config.slot_plan().map(|plan| plan.disks), Ok(vec![Slot::device(1)]));
        }
        let mut config = with_disks(&[Some("31.1")]);
        assert!(config.slot_plan().unwrap_err().to_string().contains("slot 31 is empty"), "no bridge is there");
        config.profile = Profile::Bhyve;
        let error = config.slot_plan().unwrap_err().to_string();
        assert_eq!(error, "disk0: slot 31.1 belongs to the LPC bridge of profile bhyve; choose another slot");
        assert!(with_disks(&[Some("0.3")]).slot_plan().unwrap_err().to_string().contains("the host bridge"));
    }

    #[test]
    fn a_function_without_function_zero_is_refused() {
        assert!(with_disks(&[Some("5.1")]).slot_plan().unwrap_err().to_string().contains("slot 5 is empty"));
        assert!(with_disks(&[Some("5.1"), Some("5")]).slot_plan().is_ok());
    }

    #[test]
    fn more_disks_than_default_places_need_slots() {
        let error = with_disks(&[None; 17]).slot_plan().unwrap_err().to_string();
        assert!(error.starts_with("disk16: only the first 16"), "{error}");
    }
}
