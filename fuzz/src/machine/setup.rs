//! What a guest's driver does: discovery, negotiation, queues (virtio 1.3 §3.1.1).

use devices::virtio::queue::{F_EVENT_IDX, F_IN_ORDER, F_INDIRECT_DESC, F_RING_PACKED};

use super::{Bar, Machine};

const VERSION_1: u64 = 1 << 32;
/// Where the guest wants BARs: legacy, MSI-X, modern.
pub(crate) const PLACES: [u64; 3] = [0xc100, 0xe010_0000, 0xe020_0000];

/// How a driver sets its device up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Setup {
    /// Through the legacy interface.
    pub legacy: bool,
    /// The packed format.
    pub packed: bool,
    /// Without event indices.
    pub no_event_idx: bool,
    /// Without indirect tables.
    pub no_indirect: bool,
    /// Buffers come back in order.
    pub in_order: bool,
    /// Drops this of the device's own features.
    pub without: u64,
    /// Queue size, as far as the device has it.
    pub size: u16,
    /// Uses MSI-X.
    pub msix: bool,
    /// Only the first queue.
    pub one_queue: bool,
}

/// How far a set-up went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Driven {
    /// The features that were accepted.
    pub features: u64,
    /// The device runs.
    pub running: bool,
}

impl Machine {
    /// The guest's firmware: places BARs and lets them decode.
    pub(super) fn place_bars(&mut self) {
        let [io, msix, modern] = PLACES;
        // Nothing decodes before the last of them: one look is enough.
        for (at, width, value) in [(0x04, 2, 0), (0x10, 4, io), (0x14, 4, msix), (0x20, 4, modern), (0x24, 4, 0)] {
            self.store_config(at, width, value);
        }
        self.set_config(0x04, 2, 7);
    }

    /// Places BARs where what a driver needs of them is not as firmware has left it.
    pub(super) fn keep_bars(&mut self) {
        let [.., modern] = PLACES;
        // Decodes, may reach memory, may use its line.
        if self.bar(Bar::Modern) != Some(modern) || self.config(0x04, 2) & 0x407 != 7 {
            self.place_bars();
        }
    }

    fn word(&mut self, offset: u64, width: usize, value: u64) {
        self.write(Bar::Modern, offset, &value.to_le_bytes()[..width]);
    }

    fn port(&mut self, offset: u64, width: usize, value: u64) {
        self.write(Bar::Legacy, offset, &value.to_le_bytes()[..width]);
    }

    /// Writes status 0 and waits, as the vCPU would. `false` where the reset is not complete.
    pub fn reset(&mut self, rounds: usize) -> bool {
        self.word(0x14, 1, 0);
        for _ in 0..rounds {
            if self.parked.is_empty() {
                return true;
            }
            self.run(usize::MAX);
            self.look();
        }
        self.parked.is_empty()
    }

    /// Takes the device from whatever it is doing to DRIVER_OK.
    pub fn set_up(&mut self, setup: Setup) -> Driven {
        if self.bars[Bar::Modern as usize] != Some(PLACES[2]) || self.config(4, 2) & 3 != 3 {
            self.place_bars();
        }
        if !self.reset(1) {
            return Driven { features: 0, running: false };
        }
        let legacy = setup.legacy && self.shape.transitional;
        self.set_up_interrupts(setup.msix);
        let offered = self.vmm.device.features();
        let mut wanted = offered & !setup.without;
        for (off, bit) in [(setup.no_event_idx || legacy, F_EVENT_IDX), (setup.no_indirect, F_INDIRECT_DESC)] {
            if off {
                wanted &= !bit;
            }
        }
        if legacy {
            return self.set_up_legacy(wanted & 0xffff_ffff);
        }
        let rings =
            [(setup.packed, F_RING_PACKED), (setup.in_order, F_IN_ORDER), (true, devices::virtio::F_RING_RESET)];
        wanted |= rings.iter().filter(|(on, _)| *on).fold(VERSION_1, |all, (_, bit)| all | bit);
        self.word(0x14, 1, 1);
        self.word(0x14, 1, 3);
        for select in 0..2 {
            self.word(0x08, 4, select);
            self.word(0x0c, 4, wanted >> (32 * select) & 0xffff_ffff);
        }
        self.word(0x14, 1, 11);
        for queue in 0..self.driven(setup) {
            self.enable(queue, setup, wanted);
        }
        self.word(0x14, 1, 15);
        self.started(wanted)
    }

    fn driven(&self, setup: Setup) -> u16 {
        if setup.one_queue { 1 } else { self.queues() }
    }

    fn started(&self, features: u64) -> Driven {
        Driven { features, running: self.transport.running() }
    }

    /// Sets one queue up through the modern interface and enables it.
    pub fn enable(&mut self, queue: u16, setup: Setup, features: u64) {
        self.word(0x16, 2, queue.into());
        let max = self.vmm.device.queue_max_sizes().get(usize::from(queue)).copied().unwrap_or(1);
        let size = setup.size.clamp(1, max);
        let size = if setup.packed || size.is_power_of_two() { size } else { size.next_power_of_two() / 2 };
        let Some(driver) = self.drivers.get_mut(usize::from(queue)) else { return };
        driver.set_up(&self.ram, size, features);
        let areas = [(0x20, driver.desc), (0x28, driver.avail), (0x30, driver.used)];
        self.word(0x18, 2, size.into());
        for (field, area) in areas {
            self.word(field, 4, area & 0xffff_ffff);
            self.word(field + 4, 4, area >> 32);
        }
        if self.transport.msix() {
            self.word(0x1a, 2, u64::from(queue + 1).min(2));
        }
        self.word(0x1c, 2, 1);
    }

    fn set_up_legacy(&mut self, wanted: u64) -> Driven {
        self.port(0x12, 1, 1);
        self.port(0x12, 1, 3);
        self.port(0x04, 4, wanted);
        for queue in 0..self.queues() {
            self.port(0x0e, 2, queue.into());
            let size = self.transport.queue_size(queue).unwrap_or(1).min(super::driver::MAX_SIZE as u16);
            let driver = &mut self.drivers[usize::from(queue)];
            let base = super::WINDOWS + u64::from(queue) * super::Driver::WINDOW;
            let (desc, avail) = (base, base + 16 * u64::from(size));
            // §2.7.2: the used ring begins on the next page.
            let used = (avail + 6 + 2 * u64::from(size)).next_multiple_of(4096);
            (driver.desc, driver.avail, driver.used) = (desc, avail, used);
            driver.set_up(&self.ram, size, wanted);
            self.port(0x08, 4, base >> 12);
            if self.transport.msix() {
                self.port(0x16, 2, u64::from(queue + 1).min(2));
            }
        }
        self.port(0x12, 1, 7);
        self.started(wanted)
    }

    fn set_up_interrupts(&mut self, msix: bool) {
        let at = self.capabilities.0;
        if at == 0 {
            return;
        }
        if !msix {
            self.set_config(at + 2, 2, 0);
            return;
        }
        self.set_config(at + 2, 2, 0x8000);
        for vector in 0..self.shape.vectors as u64 {
            for (field, value) in [(0, 0xfee0_0000), (8, 0x4041 + vector)] {
                self.write(Bar::Msix, 16 * vector + field, &u64::to_le_bytes(value));
            }
        }
        self.word(0x10, 2, 0);
    }

    /// Puts the drivers' rings back where their windows say.
    pub(super) fn forget_rings(&mut self) {
        for (queue, driver) in (0u64..).zip(&mut self.drivers) {
            *driver = super::Driver::new(super::WINDOWS + queue * super::Driver::WINDOW);
        }
    }
}
