//! What a card's configuration space shows that changes while a driver looks at it (virtio 1.3 §5.1.4).

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};

use super::device::feature;
use super::filter::{Mac, packed};
use crate::virtio::generation::Generation;

/// Why a link is down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reason {
    /// The operator has pulled the cable.
    Unplugged = 1,
    /// What is behind the card carries nothing.
    NoCarrier = 2,
}

/// Address, link state and announcement, shared by the registers and the workers.
#[derive(Debug)]
pub(super) struct Link {
    /// Bits of [`Reason`]: up where there is none.
    down: AtomicU8,
    /// `VIRTIO_NET_S_ANNOUNCE`: the driver is asked to tell the network where it is.
    announce: AtomicBool,
    /// There is a driver that would.
    announces: AtomicBool,
    /// The address now, in the lower six bytes.
    mac: AtomicU64,
    first_mac: Mac,
    generation: Generation,
}

impl Link {
    /// The link of a card with this address, up.
    pub fn new(mac: Mac) -> Self {
        Self {
            down: AtomicU8::new(0),
            announce: AtomicBool::new(false),
            announces: AtomicBool::new(false),
            mac: AtomicU64::new(packed(mac)),
            first_mac: mac,
            generation: Generation::default(),
        }
    }

    /// What counts the changes.
    pub fn generation(&self) -> &Generation {
        &self.generation
    }

    /// Whether frames go through.
    pub fn is_up(&self) -> bool {
        self.down.load(Ordering::Acquire) == 0
    }

    /// Whether it is down for this reason, and maybe for another one.
    pub fn is_down_for(&self, reason: Reason) -> bool {
        self.down.load(Ordering::Acquire) & reason as u8 != 0
    }

    /// Sets one reason to be down; whether the link is another one for the driver now. One that comes up asks for an
    /// announcement, as the network may be another one.
    pub fn set_down(&self, reason: Reason, down: bool) -> bool {
        let bit = reason as u8;
        let changed = self.generation.change(|| {
            let (before, after) = match down {
                true => {
                    let before = self.down.fetch_or(bit, Ordering::AcqRel);
                    (before, before | bit)
                }
                false => {
                    let before = self.down.fetch_and(!bit, Ordering::AcqRel);
                    (before, before & !bit)
                }
            };
            (before == 0) != (after == 0)
        });
        if changed && !down {
            self.ask_to_announce();
        }
        changed
    }

    /// The address now.
    pub fn mac(&self) -> u64 {
        self.mac.load(Ordering::Acquire)
    }

    /// The address after a reset.
    pub fn first_mac(&self) -> Mac {
        self.first_mac
    }

    /// The driver, or who restores one, sets the address (§5.1.6.5.2).
    pub fn set_mac(&self, mac: Mac) {
        self.generation.change(|| self.mac.swap(packed(mac), Ordering::AcqRel) != packed(mac));
    }

    /// A driver with these features begins.
    pub fn accepted(&self, features: u64) {
        let needed = feature::STATUS | feature::CTRL_VQ | feature::GUEST_ANNOUNCE;
        self.announces.store(features & needed == needed, Ordering::Release);
    }

    /// The driver has announced itself (§5.1.6.5.4).
    pub fn announced(&self) {
        self.generation.change(|| self.announce.swap(false, Ordering::AcqRel));
    }

    /// Whether an announcement is due.
    pub fn is_announcing(&self) -> bool {
        self.announce.load(Ordering::Acquire)
    }

    /// Asks for an announcement, where there is a driver to make it and a network to hear it; whether it is a new wish.
    pub fn ask_to_announce(&self) -> bool {
        let due = self.announces.load(Ordering::Acquire) && self.is_up();
        due && self.generation.change(|| !self.announce.swap(true, Ordering::AcqRel))
    }

    /// Goes on where a saved card stopped. Whether there is a carrier is not the saved one's to say.
    pub fn restore(&self, mac: Mac, announce: bool, unplugged: bool) {
        self.set_mac(mac);
        self.set_down(Reason::Unplugged, unplugged);
        self.set_announce(announce);
    }

    /// As after a reset: what the driver has set is gone.
    pub fn reset(&self) {
        self.announces.store(false, Ordering::Release);
        self.set_mac(self.first_mac);
        self.set_announce(false);
    }

    fn set_announce(&self, announce: bool) {
        self.generation.change(|| self.announce.swap(announce, Ordering::AcqRel) != announce);
    }
}
