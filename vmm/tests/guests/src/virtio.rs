//! A virtio driver of one queue, small enough to see every step: for the guests that are about notifications and
//! interrupts, which `virtio-drivers` polls away (virtio 1.3 §2.7, §3.1.1, §4.1).

use core::sync::atomic::{Ordering, fence};

use virtio_drivers::transport::pci::bus::DeviceFunction;

use crate::machine::{load, store};
use crate::pci::{self, Access, command, register};
use crate::{interrupts, pool};

const VENDOR: u16 = 0x1af4;
/// Entries of the queue.
pub const QUEUE_SIZE: u16 = 8;
const NO_VECTOR: u16 = 0xffff;

/// Descriptor flags (§2.7.5).
pub mod flag {
    #![allow(missing_docs)]
    pub const NEXT: u16 = 1;
    pub const WRITE: u16 = 2;
    pub const INDIRECT: u16 = 4;
}
use flag::{NEXT as DESC_NEXT, WRITE as DESC_WRITE};

/// Offsets in the common configuration (§4.1.4.3).
pub mod common {
    #![allow(missing_docs)]
    pub const FEATURE_SELECT: u64 = 0x00;
    pub const FEATURE: u64 = 0x04;
    pub const DRIVER_FEATURE_SELECT: u64 = 0x08;
    pub const DRIVER_FEATURE: u64 = 0x0c;
    pub const CONFIG_VECTOR: u64 = 0x10;
    pub const NUM_QUEUES: u64 = 0x12;
    pub const STATUS: u64 = 0x14;
    pub const GENERATION: u64 = 0x15;
    pub const QUEUE_SELECT: u64 = 0x16;
    pub const QUEUE_SIZE: u64 = 0x18;
    pub const QUEUE_VECTOR: u64 = 0x1a;
    pub const QUEUE_ENABLE: u64 = 0x1c;
    pub const QUEUE_NOTIFY_OFF: u64 = 0x1e;
    pub const QUEUE_DESC: u64 = 0x20;
    pub const QUEUE_DRIVER: u64 = 0x28;
    pub const QUEUE_DEVICE: u64 = 0x30;
    pub const BYTES: u64 = 0x38;
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Entropy,
    Block,
}

/// An entropy or block device with one queue of 8 entries.
pub struct Device {
    access: Access,
    function: DeviceFunction,
    kind: Kind,
    common: u64,
    isr: u64,
    notify: u64,
    config: u64,
    /// Descriptors at 0, available ring at 0x100, used ring at 0x200, request header at 0x300, data from 0x400.
    page: u64,
    submitted: u16,
}

impl Device {
    /// Finds the first entropy device, or else the first block device (`dev=rng|blk` on the command line asks for one),
    /// and resets it.
    ///
    /// # Panics
    /// When there is none, or it has no modern interface.
    #[must_use]
    pub fn find(access: Access) -> Self {
        let find = |ids: [u16; 2]| {
            pci::functions(access).find(|(_, vendor, id)| *vendor == VENDOR && ids.contains(id)).map(|found| found.0)
        };
        let wanted = crate::pvh::option("dev");
        let entropy = (wanted != Some("blk")).then(|| find([0x1005, 0x1044])).flatten();
        let block = || (wanted != Some("rng")).then(|| find([0x1001, 0x1042])).flatten();
        let (function, kind) = entropy
            .map(|function| (function, Kind::Entropy))
            .or_else(|| block().map(|function| (function, Kind::Block)))
            .expect("there is no virtio entropy or block device");
        let (mut at, [mut common, mut notify, mut isr, mut config]) = (0, [0; 4]);
        let mut multiplier = 0;
        while let Some(capability) = access.capability(function, 9, at) {
            let bar = access.read(function, capability + 4) as u8;
            let place = || access.bar(function, bar) + u64::from(access.read(function, capability + 8));
            match access.read(function, capability) >> 24 {
                1 => common = place(),
                2 => {
                    notify = place();
                    multiplier = access.read(function, capability + 16);
                }
                3 => isr = place(),
                4 => config = place(),
                _ => {}
            }
            at = capability;
        }
        assert!(common != 0 && notify != 0 && isr != 0, "{function} has no modern virtio interface");
        let page = pool::take(4096, 4096).as_ptr() as u64;
        let mut device = Self { access, function, kind, common, isr, notify, config, page, submitted: 0 };
        device.reset();
        store(common + common::QUEUE_SELECT, 0_u16);
        device.notify += u64::from(load::<u16>(common + common::QUEUE_NOTIFY_OFF)) * u64::from(multiplier);
        device
    }

    /// The function it is on.
    #[must_use]
    pub fn function(&self) -> DeviceFunction {
        self.function
    }

    /// The address of its ISR register.
    #[must_use]
    pub fn isr(&self) -> u64 {
        self.isr
    }

    /// The address of its common configuration.
    #[must_use]
    pub fn common(&self) -> u64 {
        self.common
    }

    /// The address of its own configuration.
    #[must_use]
    pub fn config(&self) -> u64 {
        self.config
    }

    /// A block device's size in sectors, read in halves as §2.5.1 says.
    #[must_use]
    pub fn sectors(&self) -> u64 {
        loop {
            let before: u8 = load(self.common + common::GENERATION);
            let (low, high): (u32, u32) = (load(self.config), load(self.config + 4));
            if load::<u8>(self.common + common::GENERATION) == before {
                return u64::from(high) << 32 | u64::from(low);
            }
        }
    }

    /// Sends changes of its configuration to an MSI-X table entry.
    pub fn set_config_vector(&self, entry: u16) {
        store(self.common + common::CONFIG_VECTOR, entry);
    }

    /// The address of its doorbell.
    #[must_use]
    pub fn doorbell(&self) -> u64 {
        self.notify
    }

    /// The address of its queue's page.
    #[must_use]
    pub fn page(&self) -> u64 {
        self.page
    }

    /// Whether it wants to be reset (§2.1).
    #[must_use]
    pub fn needs_reset(&self) -> bool {
        load::<u8>(self.common + common::STATUS) & 0x40 != 0
    }

    /// Takes it back to its first state.
    pub fn reset(&mut self) {
        store(self.common + common::STATUS, 0_u8);
        while load::<u8>(self.common + common::STATUS) != 0 {
            core::hint::spin_loop();
        }
    }

    /// Takes the device through its initialization; completions use MSI-X table entry `entry`, or INTx.
    ///
    /// # Panics
    /// When the device refuses a step.
    pub fn start(&mut self, entry: Option<u16>) {
        const ACKNOWLEDGE: u8 = 1;
        const DRIVER: u8 = 2;
        const DRIVER_OK: u8 = 4;
        const FEATURES_OK: u8 = 8;
        let status = self.common + common::STATUS;
        self.reset();
        store(status, ACKNOWLEDGE);
        store(status, ACKNOWLEDGE | DRIVER);
        store(self.common + common::FEATURE_SELECT, 1_u32);
        assert!(load::<u32>(self.common + common::FEATURE) & 1 != 0, "VIRTIO_F_VERSION_1 is not offered");
        store(self.common + common::DRIVER_FEATURE_SELECT, 0_u32);
        store(self.common + common::DRIVER_FEATURE, 0_u32);
        store(self.common + common::DRIVER_FEATURE_SELECT, 1_u32);
        store(self.common + common::DRIVER_FEATURE, 1_u32);
        store(status, ACKNOWLEDGE | DRIVER | FEATURES_OK);
        assert!(load::<u8>(status) & FEATURES_OK != 0, "the device refuses VIRTIO_F_VERSION_1");

        let vector = entry.unwrap_or(NO_VECTOR);
        store(self.common + common::CONFIG_VECTOR, NO_VECTOR);
        store(self.common + common::QUEUE_SELECT, 0_u16);
        let size: u16 = load(self.common + common::QUEUE_SIZE);
        assert!(size >= QUEUE_SIZE, "the queue has only {size} entries");
        store(self.common + common::QUEUE_SIZE, QUEUE_SIZE);
        store(self.common + common::QUEUE_VECTOR, vector);
        let read: u16 = load(self.common + common::QUEUE_VECTOR);
        assert!(read == vector, "the queue's vector reads {read:#x} after {vector:#x} was written");
        // SAFETY: the page is this device's own, and a device after reset does not touch it.
        unsafe { (self.page as *mut u8).write_bytes(0, 4096) };
        for (offset, part) in [(common::QUEUE_DESC, 0), (common::QUEUE_DRIVER, 0x100), (common::QUEUE_DEVICE, 0x200)] {
            store(self.common + offset, (self.page + part) as u32);
            store(self.common + offset + 4, 0_u32);
        }
        store(self.common + common::QUEUE_ENABLE, 1_u16);
        store(status, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
        self.submitted = 0;
    }

    /// How many requests may be in flight.
    #[must_use]
    pub fn capacity(&self) -> u16 {
        match self.kind {
            Kind::Entropy => QUEUE_SIZE,
            Kind::Block => QUEUE_SIZE / 3,
        }
    }

    /// Makes one request available: 16 random bytes, or a read of sector 0. Does not notify.
    pub fn submit(&mut self) {
        let slot = self.submitted % self.capacity();
        let data = self.page + 0x400 + 0x300 * u64::from(slot);
        let head = match self.kind {
            Kind::Entropy => {
                self.describe(slot, data, 16, DESC_WRITE, 0);
                slot
            }
            Kind::Block => {
                let first = slot * 3;
                self.describe(first, self.page + 0x300, 16, DESC_NEXT, first + 1);
                self.describe(first + 1, data, 512, DESC_NEXT | DESC_WRITE, first + 2);
                self.describe(first + 2, data + 512, 1, DESC_WRITE, 0);
                store(data + 512, 0xff_u8);
                first
            }
        };
        self.publish(head);
    }

    /// Reads or writes (`write`) one sector of a block device and waits for it; data lies at [`Self::data`]. The status
    /// it ends with: 0, or 1 for an error.
    ///
    /// # Panics
    /// When it does not come back.
    pub fn transfer(&mut self, sector: u64, write: bool) -> u8 {
        let (header, data, status) = (self.page + 0x300, self.data(), self.page + 0xf00);
        store(header, u32::from(write));
        store(header + 4, 0_u32);
        store(header + 8, sector);
        store(status, 0xff_u8);
        self.describe(0, header, 16, DESC_NEXT, 1);
        self.describe(1, data, 512, if write { DESC_NEXT } else { DESC_NEXT | DESC_WRITE }, 2);
        self.describe(2, status, 1, DESC_WRITE, 0);
        self.publish(0);
        self.notify();
        assert!(interrupts::wait(20_000, || self.is_idle()), "sector {sector}: a request does not complete");
        load(status)
    }

    /// Where [`Self::transfer`] has its 512 bytes.
    #[must_use]
    pub fn data(&self) -> u64 {
        self.page + 0x400
    }

    /// Makes a chain available.
    pub fn publish(&mut self, head: u16) {
        store(self.page + 0x104 + 2 * u64::from(self.submitted % QUEUE_SIZE), head);
        fence(Ordering::SeqCst);
        self.submitted = self.submitted.wrapping_add(1);
        store(self.page + 0x102, self.submitted);
    }

    /// Writes a descriptor.
    pub fn describe(&self, index: u16, address: u64, length: u32, flags: u16, next: u16) {
        let descriptor = self.page + 16 * u64::from(index);
        store(descriptor, address);
        store(descriptor + 8, length);
        store(descriptor + 12, flags);
        store(descriptor + 14, next);
    }

    /// How many queues it has.
    #[must_use]
    pub fn queues(&self) -> u16 {
        load(self.common + common::NUM_QUEUES)
    }

    /// Rings the doorbell.
    pub fn notify(&self) {
        fence(Ordering::SeqCst);
        store(self.notify, 0_u16);
    }

    /// Whether every request has come back.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        load::<u16>(self.page + 0x202) == self.submitted
    }

    /// Checks that the last request did what it should.
    ///
    /// # Panics
    /// When it did not.
    pub fn check(&self) {
        let last = self.submitted.wrapping_sub(1);
        let element = self.page + 0x204 + 8 * u64::from(last % QUEUE_SIZE);
        let (head, length): (u32, u32) = (load(element), load(element + 4));
        let data = self.page + 0x400 + 0x300 * u64::from(last % self.capacity());
        match self.kind {
            Kind::Entropy => {
                assert!((1..=16).contains(&length), "used element {head} has length {length}, not 1 to 16")
            }
            Kind::Block => {
                let status: u8 = load(data + 512);
                assert!(status == 0 && length == 513, "a read ended with status {status}, length {length}");
            }
        }
    }

    /// Waits for every request.
    ///
    /// # Panics
    /// When they do not come back in a second.
    pub fn finish(&self) {
        assert!(interrupts::wait(1000, || self.is_idle()), "a request does not complete");
        self.check();
    }

    /// Its MSI-X table.
    ///
    /// # Panics
    /// When it has none.
    #[must_use]
    pub fn msix(&self) -> Msix {
        let capability = self.access.capability(self.function, 0x11, 0).expect("the device has no MSI-X");
        let place = |register| {
            let value = self.access.read(self.function, capability + register);
            self.access.bar(self.function, (value & 7) as u8) + u64::from(value & !7)
        };
        Msix { access: self.access, function: self.function, capability, table: place(4), pending: place(8) }
    }

    /// Sets or clears a bit of the command register.
    pub fn set_command(&self, bit: u32, on: bool) {
        let before = self.access.read(self.function, register::COMMAND) & 0xffff;
        self.access.write(self.function, register::COMMAND, if on { before | bit } else { before & !bit });
    }

    /// Whether the status register says that INTx is asserted (or would be, were it not off).
    #[must_use]
    pub fn intx_status(&self) -> bool {
        self.access.read(self.function, register::COMMAND) & command::STATUS_INTERRUPT != 0
    }
}

/// The MSI-X table of a device (PCI Local Bus 3.0 §6.8.2).
pub struct Msix {
    access: Access,
    function: DeviceFunction,
    capability: u8,
    table: u64,
    pending: u64,
}

impl Msix {
    /// Turns MSI-X on or off.
    pub fn enable(&self, on: bool) {
        const ENABLE: u32 = 1 << 31;
        const MASK_ALL: u32 = 1 << 30;
        let before = self.access.read(self.function, self.capability) & !(ENABLE | MASK_ALL);
        self.access.write(self.function, self.capability, before | if on { ENABLE } else { 0 });
    }

    /// Entries of the table.
    #[must_use]
    pub fn entries(&self) -> u16 {
        (self.access.read(self.function, self.capability) >> 16) as u16 % 0x800 + 1
    }

    /// Sends an entry to a vector of this CPU, unmasked.
    pub fn set(&self, entry: u64, vector: u8) {
        let at = self.table + 16 * entry;
        store(at, 0xfee0_0000 | u32::from(interrupts::apic_id()) << 12);
        store(at + 4, 0_u32);
        store(at + 8, u32::from(vector));
        store(at + 12, 0_u32);
    }

    /// Sends an entry to any address, which may be no interrupt at all.
    pub fn garble(&self, entry: u64, address: u64, data: u32) {
        let at = self.table + 16 * entry;
        store(at, address as u32);
        store(at + 4, (address >> 32) as u32);
        store(at + 8, data);
    }

    /// Masks or unmasks an entry.
    pub fn mask(&self, entry: u64, on: bool) {
        store(self.table + 16 * entry + 12, u32::from(on));
    }

    /// Whether an entry waits to be unmasked.
    #[must_use]
    pub fn is_pending(&self, entry: u64) -> bool {
        load::<u32>(self.pending + entry / 32 * 4) >> (entry % 32) & 1 != 0
    }
}
