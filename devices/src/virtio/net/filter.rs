//! Which received frames a driver wants (virtio 1.3 §5.1.6.5.1 to §5.1.6.5.3).
//!
//! Each receiver has a filter of its own, a copy of what the driver has set: no lock and no shared word lies on a frame's way.
//! It saves the guest work, it protects nobody: a driver can ask for everything.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::device::feature;

/// An Ethernet address.
pub(super) type Mac = [u8; 6];

/// Bytes at the start of a frame that decide: an Ethernet header and a VLAN tag.
pub(super) const HEAD_BYTES: usize = 18;

/// Addresses each of the two tables holds, as many as a driver is known to send without counting on them all. With more
/// the table passes every address of its kind: to filter is a service, to lose frames is not.
pub(super) const TABLE_ENTRIES: usize = 64;
/// VLAN ids there are.
const VLANS: u16 = 4096;

/// A mode of §5.1.6.5.1, by the number of its command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Mode {
    Promiscuous = 0,
    AllMulticast = 1,
    AllUnicast = 2,
    NoMulticast = 3,
    NoUnicast = 4,
    NoBroadcast = 5,
}

/// One half of the MAC table.
#[derive(Clone, Debug)]
pub(super) struct Table {
    entries: [u64; TABLE_ENTRIES],
    len: usize,
    /// The driver named more than fit.
    overflowed: bool,
}

impl Table {
    const EMPTY: Self = Self { entries: [0; TABLE_ENTRIES], len: 0, overflowed: false };

    pub fn clear(&mut self) {
        (self.len, self.overflowed) = (0, false);
    }

    pub fn add(&mut self, mac: Mac) {
        match self.entries.get_mut(self.len) {
            Some(entry) => {
                *entry = packed(mac);
                self.len = self.len.saturating_add(1);
            }
            None => self.overflowed = true,
        }
    }

    /// Whether the driver named no address.
    fn is_empty(&self) -> bool {
        self.len == 0 && !self.overflowed
    }

    /// Whether there is no room for another address: what follows need not be read.
    pub fn is_full(&self) -> bool {
        self.len == TABLE_ENTRIES
    }

    fn entries(&self) -> &[u64] {
        self.entries.get(..self.len).unwrap_or_default()
    }

    fn passes(&self, mac: Mac) -> bool {
        self.overflowed || self.entries().contains(&packed(mac))
    }

    fn save(&self) -> SavedTable {
        SavedTable {
            entries: self.entries().iter().map(|entry| unpacked(*entry)).collect(),
            overflowed: self.overflowed,
        }
    }

    fn restore(&mut self, saved: &SavedTable) -> bool {
        self.clear();
        saved.entries.iter().for_each(|mac| self.add(*mac));
        let fits = !self.overflowed;
        self.overflowed |= saved.overflowed;
        fits
    }
}

/// Unicast and multicast addresses a driver asked for.
#[derive(Clone, Debug)]
pub(super) struct Tables {
    pub unicast: Table,
    pub multicast: Table,
}

impl Tables {
    pub const EMPTY: Self = Self { unicast: Table::EMPTY, multicast: Table::EMPTY };
}

/// What the driver of a card wants to receive.
#[derive(Clone, Debug)]
pub(super) struct Filter {
    features: u64,
    /// Bit *n* is the mode of command *n*.
    modes: u8,
    mac: Mac,
    tables: Tables,
    vlans: [u64; VLANS as usize / 64],
    /// Every frame passes: nobody has to look at it.
    open: bool,
}

/// Modes of a driver that has set none. Drivers know a card as promiscuous until they say otherwise.
const POWER_ON_MODES: u8 = 1 << Mode::Promiscuous as u8;

impl Filter {
    /// The filter of a card with this address after a reset: everything passes.
    pub fn new(mac: Mac) -> Self {
        let vlans = [0; VLANS as usize / 64];
        Self { features: 0, modes: POWER_ON_MODES, mac, tables: Tables::EMPTY, vlans, open: true }
    }

    /// A driver has accepted these features.
    pub fn accept(&mut self, features: u64) {
        self.features = features;
        self.settle();
    }

    /// As after a reset, with the card's first address (§5.1.6.5.2.1).
    pub fn reset(&mut self, mac: Mac) {
        (self.modes, self.mac) = (POWER_ON_MODES, mac);
        self.tables.unicast.clear();
        self.tables.multicast.clear();
        self.vlans.fill(0);
        self.settle();
    }

    /// Whether every frame passes, so that nobody has to look at it.
    pub fn is_open(&self) -> bool {
        self.open
    }

    pub fn set_mode(&mut self, mode: Mode, on: bool) {
        let bit = 1 << mode as u8;
        self.modes = if on { self.modes | bit } else { self.modes & !bit };
        self.settle();
    }

    /// Whether the driver, which has accepted these features, has asked for frames to other stations than its card: for links
    /// that know only that and its opposite.
    pub fn wants_others(&self, features: u64) -> bool {
        let asked = self.is(Mode::Promiscuous) || self.is(Mode::AllUnicast) || !self.tables.unicast.is_empty();
        features & feature::CTRL_RX != 0 && asked
    }

    /// The groups whose frames the driver, which has accepted these features, wants: in order, none twice, and not that of all
    /// stations. `None`: those of all, which it has asked for, or which nobody could tell apart.
    pub fn wanted_groups(&self, features: u64) -> Option<Vec<Mac>> {
        let Table { overflowed, .. } = self.tables.multicast;
        if features & feature::CTRL_RX == 0 || self.is(Mode::AllMulticast) || overflowed {
            return None;
        }
        // The driver may have put anything there.
        let is_group = |mac: &Mac| matches!(mac, [first, ..] if first & 1 != 0) && *mac != [0xff; 6];
        let groups: BTreeSet<Mac> = self.tables.multicast.entries().iter().map(|word| unpacked(*word)).collect();
        Some(groups.into_iter().filter(is_group).collect())
    }

    pub fn set_mac(&mut self, mac: Mac) {
        self.mac = mac;
    }

    /// The card's address.
    pub fn mac(&self) -> Mac {
        self.mac
    }

    /// Replaces the table of addresses.
    pub fn set_tables(&mut self, tables: &Tables) {
        self.tables.clone_from(tables);
    }

    /// Puts a VLAN into the table or takes it out; `false` where there is no such VLAN.
    pub fn set_vlan(&mut self, vlan: u16, on: bool) -> bool {
        let Some(word) = self.vlans.get_mut(usize::from(vlan / 64)) else { return false };
        let bit = 1u64 << (vlan % 64);
        *word = if on { *word | bit } else { *word & !bit };
        true
    }

    fn has(&self, feature: u64) -> bool {
        self.features & feature != 0
    }

    fn is(&self, mode: Mode) -> bool {
        self.modes & 1 << mode as u8 != 0
    }

    fn settle(&mut self) {
        let promiscuous = self.has(feature::CTRL_RX) && self.is(Mode::Promiscuous);
        let excludes = [Mode::NoMulticast, Mode::NoUnicast, Mode::NoBroadcast].iter().any(|mode| self.is(*mode));
        self.open = promiscuous || !self.has(feature::CTRL_RX | feature::CTRL_VLAN) && !excludes;
    }

    /// Whether the frame that begins with `head` passes; bytes a short frame does not have are zero.
    pub fn passes(&self, head: &[u8; HEAD_BYTES]) -> bool {
        if self.open {
            return true;
        }
        let [m0, m1, m2, m3, m4, m5, _, _, _, _, _, _, type_high, type_low, tag_high, tag_low, _, _] = *head;
        let to = [m0, m1, m2, m3, m4, m5];
        if self.has(feature::CTRL_VLAN) && [type_high, type_low] == [0x81, 0x00] {
            let vlan = u16::from_be_bytes([tag_high, tag_low]) & 0x0fff;
            let word = self.vlans.get(usize::from(vlan / 64)).copied().unwrap_or_default();
            // VLAN 0 is none: such a tag has a priority only.
            if vlan != 0 && word & 1 << (vlan % 64) == 0 {
                return false;
            }
        }
        // Without CTRL_RX a driver cannot name addresses, and is not to miss any.
        let any = !self.has(feature::CTRL_RX);
        if to == [0xff; 6] {
            !self.is(Mode::NoBroadcast)
        } else if m0 & 1 != 0 {
            let all = any || self.is(Mode::AllMulticast);
            !self.is(Mode::NoMulticast) && (all || self.tables.multicast.passes(to))
        } else {
            let all = any || self.is(Mode::AllUnicast);
            !self.is(Mode::NoUnicast) && (all || to == self.mac || self.tables.unicast.passes(to))
        }
    }

    /// What a driver has set, where it has set something.
    pub fn save(&self) -> FilterState {
        // Nearly every word is zero.
        let words = (0..VLANS).step_by(64).zip(self.vlans).filter(|(_, word)| *word != 0);
        let vlans = words.flat_map(|(first, word)| (first..).take(64).filter(move |vlan| word & 1 << (vlan % 64) != 0));
        FilterState {
            modes: self.modes,
            mac: self.mac,
            unicast: self.tables.unicast.save(),
            multicast: self.tables.multicast.save(),
            vlans: vlans.collect(),
        }
    }

    /// Takes back what [`save`](Self::save) gave; `false` where that is nothing a driver can have set.
    pub fn restore(&mut self, saved: &FilterState) -> bool {
        let FilterState { modes, mac, unicast, multicast, vlans } = saved;
        self.reset(*mac);
        self.modes = *modes;
        let mut good = *modes < 1 << 6 && is_an_address(*mac);
        good &= self.tables.unicast.restore(unicast) && self.tables.multicast.restore(multicast);
        for vlan in vlans {
            good &= self.set_vlan(*vlan, true);
        }
        self.settle();
        good
    }
}

/// Whether there is such a VLAN.
pub(super) fn is_a_vlan(vlan: u16) -> bool {
    vlan < VLANS
}

/// Whether a card can have this address: one of a single station.
pub(super) fn is_an_address(mac: Mac) -> bool {
    let [first, ..] = mac;
    first & 1 == 0 && mac != [0; 6]
}

pub(super) fn packed(mac: Mac) -> u64 {
    let [m0, m1, m2, m3, m4, m5] = mac;
    u64::from_le_bytes([m0, m1, m2, m3, m4, m5, 0, 0])
}

pub(super) fn unpacked(word: u64) -> Mac {
    let [m0, m1, m2, m3, m4, m5, _, _] = word.to_le_bytes();
    [m0, m1, m2, m3, m4, m5]
}

/// A saved [`Filter`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FilterState {
    pub(super) modes: u8,
    pub(super) mac: [u8; 6],
    pub(super) unicast: SavedTable,
    pub(super) multicast: SavedTable,
    pub(super) vlans: Vec<u16>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SavedTable {
    pub entries: Vec<[u8; 6]>,
    overflowed: bool,
}
