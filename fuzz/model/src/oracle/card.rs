//! What virtio 1.3 §5.1.6.5 makes of a card's commands, and which frames its driver gets after them.

use std::collections::BTreeSet;

use super::blk::gather;
use super::ring::Flying;
use crate::ram::Ram;

/// An Ethernet address.
pub type Mac = [u8; 6];

/// What the card says its address is.
pub const MAC: Mac = [2, 0, 0, 0, 0, 1];

const CTRL_VQ: u64 = 1 << 17;
const CTRL_RX: u64 = 1 << 18;
const CTRL_VLAN: u64 = 1 << 19;
const CTRL_RX_EXTRA: u64 = 1 << 20;
const CTRL_GUEST_OFFLOADS: u64 = 1 << 2;
/// Checksums, segments of both versions of IP, and of congested ones.
const OFFLOADS: u64 = 1 << 1 | 1 << 7 | 1 << 8 | 1 << 9 | 1 << 54 | 1 << 55;
const GUEST_ANNOUNCE: u64 = 1 << 21;
const MQ: u64 = 1 << 22;
const CTRL_MAC_ADDR: u64 = 1 << 23;
/// Addresses of one kind that are told apart; who names more gets all of them.
const TABLE: u64 = 64;

/// What a driver has told its card.
#[derive(Debug)]
pub struct Card {
    /// Promiscuous, all multicast, all unicast, no multicast, no unicast, no broadcast.
    modes: [bool; 6],
    /// The address now.
    pub mac: Mac,
    /// Unicast and multicast addresses; `None`: all of them.
    tables: [Option<BTreeSet<Mac>>; 2],
    vlans: BTreeSet<u16>,
    /// Its choice of the offloads it has accepted.
    offloads: Option<u64>,
    /// Queue pairs that received frames go to.
    pub pairs: u16,
    /// What the last command changed that the link has a say in.
    before: Option<Before>,
    /// Commands may have been missed: until the next reset nobody knows.
    pub lost: bool,
}

/// What was there before a command.
#[derive(Debug)]
enum Before {
    Offloads(Option<u64>),
    Pairs(u16),
}

impl Card {
    /// After a reset.
    #[must_use]
    pub fn new() -> Self {
        let modes = [true, false, false, false, false, false];
        Self {
            modes,
            mac: MAC,
            tables: [Some(BTreeSet::new()), Some(BTreeSet::new())],
            vlans: BTreeSet::new(),
            offloads: None,
            pairs: 1,
            before: None,
            lost: false,
        }
    }

    /// Carries out the command in a chain, of a driver with these features whose card has so many queue pairs; its answer.
    pub fn obey(&mut self, ram: &Ram, chain: &Flying, features: u64, pairs: u16) -> u8 {
        self.before = None;
        u8::from(self.carry_out(ram, chain, features, pairs).is_none())
    }

    fn carry_out(&mut self, ram: &Ram, chain: &Flying, features: u64, pairs: u16) -> Option<()> {
        let total = chain.readable_bytes;
        let has = |feature: u64| (features & CTRL_VQ != 0 && features & feature != 0).then_some(());
        let whole = |len: u64| (total == len).then_some(());
        let [class, number] = bytes(ram, chain, 0)?;
        match (class, number) {
            (0, 0..=5) => {
                has(if number < 2 { CTRL_RX } else { CTRL_RX_EXTRA })?;
                whole(3)?;
                let [on] = bytes(ram, chain, 2)?;
                self.modes[usize::from(number)] = match on {
                    0 => false,
                    1 => true,
                    _ => return None,
                };
            }
            (1, 0) => {
                has(CTRL_RX)?;
                let mut at = 2;
                let mut tables = [const { None }; 2];
                for table in &mut tables {
                    let count = u64::from(u32::from_le_bytes(bytes(ram, chain, at)?));
                    at += 4;
                    if at + 6 * count > total {
                        return None;
                    }
                    if count <= TABLE {
                        *table = Some((0..count).filter_map(|nth| bytes(ram, chain, at + 6 * nth)).collect());
                    }
                    at += 6 * count;
                }
                whole(at)?;
                self.tables = tables;
            }
            (1, 1) => {
                has(CTRL_MAC_ADDR)?;
                whole(8)?;
                let mac: Mac = bytes(ram, chain, 2)?;
                if mac[0] & 1 != 0 || mac == [0; 6] {
                    return None;
                }
                self.mac = mac;
            }
            (2, 0 | 1) => {
                has(CTRL_VLAN)?;
                whole(4)?;
                let vlan = u16::from_le_bytes(bytes(ram, chain, 2)?);
                match (vlan, number) {
                    (4096.., _) => return None,
                    (_, 0) => self.vlans.insert(vlan),
                    _ => self.vlans.remove(&vlan),
                };
            }
            (3, 0) => {
                has(GUEST_ANNOUNCE)?;
                whole(2)?;
            }
            (4, 0) => {
                has(MQ)?;
                whole(4)?;
                let wanted = u16::from_le_bytes(bytes(ram, chain, 2)?);
                if !(1..=pairs).contains(&wanted) {
                    return None;
                }
                self.before = Some(Before::Pairs(std::mem::replace(&mut self.pairs, wanted)));
            }
            (5, 0) => {
                has(CTRL_GUEST_OFFLOADS)?;
                whole(10)?;
                let bits = u64::from_le_bytes(bytes(ram, chain, 2)?);
                if bits & !(features & OFFLOADS) != 0 {
                    return None;
                }
                self.before = Some(Before::Offloads(self.offloads.replace(bits)));
            }
            _ => return None,
        }
        Some(())
    }

    /// The link does what it was asked for.
    pub fn link_takes(&mut self) {
        self.before = None;
    }

    /// The link does not do what the last command asks of it; `true` where it was asked for that.
    pub fn link_refuses(&mut self) -> bool {
        match self.before.take() {
            Some(Before::Offloads(before)) => self.offloads = before,
            Some(Before::Pairs(before)) => self.pairs = before,
            None => return false,
        }
        true
    }

    /// Whether the link has not yet done, or refused, what the last command asks of it.
    #[must_use]
    pub fn asks_the_link(&self) -> bool {
        self.before.is_some()
    }

    /// The offloads a driver with these features has now, as feature bits.
    #[must_use]
    pub fn offloads(&self, features: u64) -> u64 {
        features & self.offloads.unwrap_or(OFFLOADS)
    }

    /// Whether the frame that begins with `head` is one the driver gets.
    #[must_use]
    pub fn wants(&self, features: u64, head: &[u8; 18]) -> bool {
        let [promiscuous, all_multicast, all_unicast, no_multicast, no_unicast, no_broadcast] = self.modes;
        let named = features & CTRL_RX != 0;
        if named && promiscuous {
            return true;
        }
        let mut to: Mac = [0; 6];
        to.copy_from_slice(&head[..6]);
        let vlan = u16::from_be_bytes([head[14], head[15]]) & 0xfff;
        let tagged = head[12..14] == [0x81, 0];
        if features & CTRL_VLAN != 0 && tagged && vlan != 0 && !self.vlans.contains(&vlan) {
            return false;
        }
        let listed = |table: &Option<BTreeSet<Mac>>| table.as_ref().is_none_or(|table| table.contains(&to));
        if to == [0xff; 6] {
            !no_broadcast
        } else if to[0] & 1 == 1 {
            !no_multicast && (!named || all_multicast || listed(&self.tables[1]))
        } else {
            !no_unicast && (!named || all_unicast || to == self.mac || listed(&self.tables[0]))
        }
    }
}

impl Default for Card {
    fn default() -> Self {
        Self::new()
    }
}

fn bytes<const N: usize>(ram: &Ram, chain: &Flying, at: u64) -> Option<[u8; N]> {
    let mut found = [0; N];
    (at + N as u64 <= chain.readable_bytes && gather(ram, &chain.readable, at, &mut found)).then_some(found)
}
