//! What must hold whatever a guest does, as executable models beside the machine.
//!
//! | Oracle | Here |
//! |---|---|
//! | double fetch | [`fetch`]: a second read within one pop is answered differently; the models go by the first answer |
//! | spec model | [`ring`] (both formats), one file a device, [`transport`] (registers and status) |
//! | wedge | `Machine::revive`: a reset and one valid request after every program |
//! | resources | [`resources`], [`limit`] |
//! | restore equivalence, two wirings | `program::pairs`: the same program in two machines |
//!
//! Panics and overflows are their own oracle. A finding is a panic whose message starts with the oracle's name.

pub mod blk;
pub mod card;
pub mod console;
pub mod dhcp;
pub mod fetch;
pub mod limit;
pub mod metadata;
pub mod net;
pub mod packed;
pub mod resources;
pub mod ring;
pub mod rng;
pub mod split;
pub mod times;
pub mod transport;

use std::sync::Arc;

use crate::lone::Lone;
use crate::ram::Ram;
use fetch::Fetches;
use ring::{Flying, Rings};

/// What is behind the queues, for those oracles that know more than rings.
#[derive(Debug, Default)]
pub enum Device {
    /// Nothing is known: rings only.
    #[default]
    Any,
    /// A disk.
    Blk(blk::Blk),
    /// A network card.
    Net(net::Net),
    /// A console.
    Console(console::Console),
    /// A random generator.
    Rng(rng::Rng),
}

/// All models of one machine.
#[derive(Debug, Default)]
pub struct Oracles {
    /// The memory they look into.
    pub ram: Option<Ram>,
    /// The virtqueues.
    pub rings: Rings,
    /// What was read in this pop.
    pub fetches: Fetches,
    /// The device.
    pub device: Device,
    /// Counts the guest's operations: it may write over anything between two of them.
    pub moment: u64,
}

impl Oracles {
    /// The model of a machine without queues, before anything has happened.
    pub fn reset(&mut self, device: Device) {
        self.rings.reset();
        self.fetches.reset();
        self.device = device;
    }

    /// The device model asks for `len` bytes at `addr`, to read or to write. What every byte of the answer is to be
    /// altered with, where the guest has "changed" it meanwhile.
    #[inline]
    pub fn touched(cell: &Arc<Lone<Self>>, addr: u64, len: usize) -> Option<u8> {
        let _quiet = resources::Quiet::begin();
        let this = &mut *cell.open();
        let Self { ram: Some(ram), rings, fetches, device, .. } = this else { return None };
        rings.read(ram, fetches, device, addr, len);
        if let (Device::Net(net), true) = (&mut *device, rings.blind()) {
            net.look_away();
        }
        if let Device::Console(console) = device {
            console.read(ram, rings, addr, len);
        }
        // Where the models are blind, nobody knows which reads are repeated by right.
        if rings.blind() { None } else { fetches.again(addr, len) }
    }

    /// The device model has written `len` bytes at `addr`.
    #[inline]
    pub fn written(cell: &Arc<Lone<Self>>, addr: u64, len: usize) {
        let _quiet = resources::Quiet::begin();
        let this = &mut *cell.open();
        let Self { ram: Some(ram), rings, device, .. } = this else { return };
        rings.wrote(ram, device, addr, len);
    }
}

impl Device {
    /// Whether a chain of `queue` is done with before the next one is taken.
    pub fn is_serial(&self, queue: u16) -> bool {
        match self {
            Self::Console(_) => true,
            Self::Net(net) => !matches!(net.role(queue), net::Role::Receive(_)),
            Self::Any | Self::Blk(_) | Self::Rng(_) => false,
        }
    }

    /// Whether chains of `queue` go back in ways only their used elements tell.
    pub fn gives_back_unseen(&self, queue: u16) -> bool {
        matches!(self, Self::Net(net) if matches!(net.role(queue), net::Role::Receive(_)))
    }

    /// A chain was popped.
    pub fn popped(&mut self, ram: &Ram, queue: u16, chain: &mut Flying) {
        match self {
            Self::Any => {}
            Self::Blk(blk) => blk.popped(ram, queue, chain),
            Self::Net(net) => net.popped(ram, queue, chain),
            Self::Console(_) => chain.leaving = queue == 1 && chain.readable_bytes == 0,
            Self::Rng(rng) => rng.popped(chain),
        }
    }

    /// A chain is given back with `len` bytes written.
    pub fn used(&mut self, ram: &Ram, queue: u16, chain: &mut Flying, len: u32) {
        match self {
            Self::Any => {}
            Self::Blk(blk) => {
                blk.passed_over(queue, chain);
                blk.used(ram, chain, len);
            }
            Self::Net(net) => net.used(ram, queue, chain, len),
            Self::Console(console) => console.used(ram, queue, chain, len),
            Self::Rng(rng) => rng.used(ram, chain, len),
        }
    }

    /// A driver starts `queue`.
    pub fn started(&mut self, queue: u16, features: u64, legacy: bool) {
        match self {
            Self::Blk(blk) => (blk.features, blk.legacy) = (features, legacy),
            Self::Net(net) => net.started(queue, features, legacy),
            Self::Any | Self::Console(_) | Self::Rng(_) => {}
        }
    }

    /// A queue that was paused with requests in flight goes on with them.
    pub fn goes_on(&mut self, chains: &mut [Flying]) {
        if let Self::Blk(blk) = self {
            blk.goes_on(chains);
        }
    }

    /// It has gone on.
    pub fn went_on(&mut self, queue: u16, chains: &mut [Flying]) {
        if let Self::Blk(blk) = self {
            chains.iter_mut().for_each(|chain| blk.passed_over(queue, chain));
        }
    }

    /// Whether requests may be kept over a pause.
    pub fn may_hold(&self) -> bool {
        matches!(self, Self::Blk(blk) if blk.may_hold())
    }

    /// A worker's step has ended, which the models did not see all of where they are `blind`.
    pub fn step_ended(&mut self, blind: bool) {
        match self {
            Self::Blk(blk) if blind => blk.forget(),
            Self::Blk(blk) => blk.step_ended(),
            _ => {}
        }
    }

    /// The drivers of `queues` are shown all that was given back to them.
    pub fn published(&mut self, queues: &[u16]) {
        if let Self::Blk(blk) = self
            && let Some(times) = &mut blk.times
        {
            times.told(queues);
        }
    }

    /// `queue` was reset.
    pub fn stopped(&mut self, queue: u16) {
        match self {
            Self::Net(net) => net.reset(queue),
            Self::Blk(blk) => blk.times.iter_mut().for_each(|times| times.reset(queue)),
            _ => {}
        }
    }
}
