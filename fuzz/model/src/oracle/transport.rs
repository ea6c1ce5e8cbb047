//! The registers of virtio over PCI and the status they lead to, as virtio 1.3 §2.1, §2.6.1, §3.1 and §4.1 have them.
//!
//! Every register access of a program goes to the model as well, which says what a read has to give, whether the queues
//! may run, and which interrupts the guest gets for what the workers tell.

use devices::interrupt::MsiMessage;
use devices::virtio::pci::Doorbell;
use devices::virtio::queue::{F_EVENT_IDX, F_IN_ORDER, F_RING_PACKED};
use devices::virtio::{F_RING_RESET, VirtioDevice};

use crate::finding;

const ACKNOWLEDGE: u8 = 1;
const DRIVER: u8 = 2;
const DRIVER_OK: u8 = 4;
const FEATURES_OK: u8 = 8;
const NEEDS_RESET: u8 = 64;
const FAILED: u8 = 128;
const VERSION_1: u64 = 1 << 32;
const NO_VECTOR: u16 = 0xffff;
/// `VIRTIO_NET_F_MQ`.
const NET_MQ: u64 = 1 << 22;
const OF_RINGS: u64 = F_RING_PACKED | F_IN_ORDER | F_RING_RESET;

/// What workers told the transport.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// Buffers of this queue were used.
    Used(u16),
    /// This queue's ring is broken.
    NeedsReset(u16),
}

/// Offsets in the memory BAR.
pub const ISR: u64 = 0x1000;
/// Device configuration.
pub const DEVICE: u64 = 0x2000;
/// Doorbells.
pub const NOTIFY: u64 = 0x3000;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Reset {
    #[default]
    None,
    Pending,
    Done,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Queue {
    size: u16,
    areas: [u64; 3],
    enabled: bool,
    pfn: u32,
    reset: Reset,
}

#[derive(Clone, Copy, Debug)]
struct Vector {
    message: MsiMessage,
    masked: bool,
    pending: bool,
}

/// The model of one function.
#[derive(Debug, Default)]
pub struct Transport {
    max_sizes: Vec<u16>,
    /// Queue pairs of a network card that has several.
    pairs: Option<u16>,
    device_features: u64,
    rings: u64,
    status: u8,
    device_select: u32,
    driver_select: u32,
    features: u64,
    beyond: bool,
    select: u16,
    queues: Vec<Queue>,
    config_vector: u16,
    queue_vectors: Vec<u16>,
    isr: u8,
    running: bool,
    legacy: bool,
    resetting: bool,
    msix: bool,
    function_mask: bool,
    intx_disabled: bool,
    vectors: Vec<Vector>,
    /// Messages the guest has to get.
    expected: Vec<(u16, MsiMessage)>,
}

const POWER_ON: Vector = Vector { message: MsiMessage { address: 0, data: 0 }, masked: true, pending: false };

impl Transport {
    /// After power-on.
    pub fn power_on(&mut self, device: &dyn VirtioDevice, rings: u64, vectors: usize) {
        self.max_sizes.clear();
        self.max_sizes.extend_from_slice(device.queue_max_sizes());
        let pairs = self.max_sizes.len() as u16 / 2;
        self.pairs = (device.device_type() == 1 && pairs > 1).then_some(pairs);
        self.device_features = device.features();
        self.rings = rings;
        self.vectors.clear();
        self.vectors.resize(vectors, POWER_ON);
        (self.msix, self.function_mask, self.intx_disabled) = (false, false, false);
        self.expected.clear();
        self.running = false;
        self.forget();
    }

    /// The function was put back into its power-on state.
    pub fn pci_reset(&mut self) {
        self.vectors.fill(POWER_ON);
        (self.msix, self.function_mask, self.intx_disabled) = (false, false, false);
    }

    fn forget(&mut self) {
        self.status = 0;
        (self.device_select, self.driver_select, self.features, self.beyond) = (0, 0, 0, false);
        self.select = 0;
        self.queues.clear();
        self.queues.extend(self.max_sizes.iter().map(|&size| Queue { size, ..Queue::default() }));
        self.config_vector = NO_VECTOR;
        self.queue_vectors.clear();
        self.queue_vectors.resize(self.max_sizes.len(), NO_VECTOR);
        self.isr = 0;
        self.legacy = false;
        self.resetting = false;
    }

    fn offered(&self, legacy: bool) -> u64 {
        let features = self.device_features & !OF_RINGS | self.rings;
        if legacy { features & 0xffff_ffff & !F_EVENT_IDX } else { features | VERSION_1 }
    }

    /// Whether queues run.
    #[must_use]
    pub fn running(&self) -> bool {
        self.running
    }

    /// Whether a device reset waits.
    #[must_use]
    pub fn resetting(&self) -> bool {
        self.resetting
    }

    /// Device status.
    #[must_use]
    pub fn status(&self) -> u8 {
        self.status
    }

    /// The selected queue and its size, where it exists.
    #[must_use]
    pub fn queue_size(&self, queue: u16) -> Option<u16> {
        self.queues.get(usize::from(queue)).map(|queue| queue.size)
    }

    /// The device's queue that the driver means by `queue`: where it knows of one pair of queues, the third one is the
    /// control queue, which is behind all of them (§5.1.2).
    #[must_use]
    pub fn place(&self, queue: u16) -> Option<u16> {
        match (self.pairs.filter(|_| self.features & NET_MQ == 0), queue) {
            (None, _) | (_, 0 | 1) => Some(queue),
            (Some(pairs), 2) => Some(2 * pairs),
            (Some(_), _) => None,
        }
    }

    /// What the driver calls a queue of the device, where it knows it.
    fn called(&self, queue: u16) -> Option<u16> {
        (0..self.queues.len() as u16).find(|called| self.place(*called) == Some(queue))
    }

    /// Where the driver rings the device's queue `queue`, with the legacy header at `ports` and the modern registers at `modern` (§4.1.4.4,
    /// §4.1.4.10); `None` while it does not run, or has no place to ring.
    #[must_use]
    pub fn doorbell(&self, queue: u16, ports: Option<u64>, modern: Option<u64>) -> Option<Doorbell> {
        let enabled = |queue: &&Queue| queue.enabled && queue.reset != Reset::Pending;
        let queue = self.called(queue)?;
        self.queues.get(usize::from(queue)).filter(|_| self.running).filter(enabled)?;
        if self.legacy {
            ports.map(|at| Doorbell::Pio { port: at as u16 + 0x10, datamatch: queue })
        } else {
            modern.map(|at| Doorbell::Mmio { address: at + NOTIFY + 4 * u64::from(queue), len: 2 })
        }
    }

    /// What a write to the common configuration does.
    pub fn write_common(&mut self, offset: u64, data: &[u8]) {
        let mut bytes = [0; 8];
        bytes[..data.len()].copy_from_slice(data);
        let value = u64::from_le_bytes(bytes);
        if (offset, data.len()) == (0x14, 1) {
            return self.write_status(value as u8, false);
        }
        if self.resetting {
            return;
        }
        match (offset, data.len()) {
            (0x00, 4) => self.device_select = value as u32,
            (0x08, 4) => self.driver_select = value as u32,
            (0x0c, 4) => self.write_features(value as u32, false),
            (0x10, 2) => self.config_vector = self.vector(value as u16),
            (0x16, 2) => self.select = value as u16,
            (0x18, 2) => {
                let packed = self.features & F_RING_PACKED != 0;
                let maximum = self.max_sizes.get(usize::from(self.select)).copied().unwrap_or(0);
                let size = value as u16;
                if size != 0
                    && size <= maximum
                    && (packed || size.is_power_of_two())
                    && let Some(queue) = self.open()
                {
                    queue.size = size;
                }
            }
            (0x1a, 2) => self.set_queue_vector(value as u16),
            (0x1c, 2) => {
                let ready = self.status & FEATURES_OK != 0 && value == 1;
                let running = self.running;
                if let Some(queue) = self.open().filter(|queue| ready && queue.size != 0) {
                    queue.enabled = true;
                    if running {
                        queue.reset = Reset::None;
                    }
                }
            }
            (0x3a, 2) => self.reset_queue(value as u16),
            (0x20..0x38, 8) if offset.is_multiple_of(8) => self.write_area(offset, u64::MAX, value),
            (0x20..0x38, 4) if offset.is_multiple_of(8) => self.write_area(offset, 0xffff_ffff, value),
            (0x20..0x38, 4) if offset.is_multiple_of(4) => self.write_area(offset - 4, !0xffff_ffff, value << 32),
            _ => {}
        }
    }

    fn vector(&self, vector: u16) -> u16 {
        if usize::from(vector) < self.vectors.len() { vector } else { NO_VECTOR }
    }

    fn set_queue_vector(&mut self, vector: u16) {
        let vector = self.vector(vector);
        if let Some(slot) = self.queue_vectors.get_mut(usize::from(self.select)) {
            *slot = vector;
        }
    }

    /// The selected queue, where it can be set up (§4.1.4.3.2): before it is enabled and before the device runs, or
    /// after its own reset.
    fn open(&mut self) -> Option<&mut Queue> {
        let running = self.running;
        let queue = self.queues.get_mut(usize::from(self.select))?;
        (!queue.enabled && (!running || queue.reset == Reset::Done)).then_some(queue)
    }

    fn write_area(&mut self, field: u64, mask: u64, value: u64) {
        if let Some(queue) = self.open() {
            let area = &mut queue.areas[((field - 0x20) / 8) as usize];
            *area = *area & !mask | value & mask;
        }
    }

    fn reset_queue(&mut self, value: u16) {
        let negotiated = self.status & FEATURES_OK != 0 && self.features & F_RING_RESET & self.rings != 0;
        let running = self.running;
        let select = usize::from(self.select);
        let maximum = self.max_sizes.get(select).copied().unwrap_or(0);
        let Some(queue) = self.queues.get_mut(select) else { return };
        if value != 1 || !negotiated || !queue.enabled || queue.reset == Reset::Pending {
            return;
        }
        if running {
            queue.reset = Reset::Pending;
        } else {
            *queue = Queue { size: maximum, ..Queue::default() };
            self.queue_vectors[select] = NO_VECTOR;
        }
    }

    /// The workers have let go of a queue's memory.
    pub fn queue_reset_done(&mut self, index: u16) {
        let select = usize::from(index);
        if self.queues.get(select).is_some_and(|queue| queue.reset == Reset::Pending) && !self.resetting {
            self.queues[select] = Queue { size: self.max_sizes[select], reset: Reset::Done, ..Queue::default() };
            self.queue_vectors[select] = NO_VECTOR;
        }
    }

    /// Queues whose own reset waits.
    pub fn resetting_queues(&self) -> impl Iterator<Item = u16> + '_ {
        (0u16..).zip(&self.queues).filter(|(_, queue)| queue.reset == Reset::Pending).map(|(index, _)| index)
    }

    fn write_features(&mut self, value: u32, legacy: bool) {
        if self.status & FEATURES_OK != 0 || self.running {
            return;
        }
        match (legacy, self.driver_select) {
            (true, _) => self.features = u64::from(value) & self.offered(true),
            (false, 0) => self.features = self.features & !0xffff_ffff | u64::from(value),
            (false, 1) => self.features = self.features & 0xffff_ffff | u64::from(value) << 32,
            (false, _) => self.beyond |= value != 0,
        }
    }

    /// What a write of the device status does (§2.1.2, §3.1.1).
    pub fn write_status(&mut self, value: u8, legacy: bool) {
        if value == 0 {
            if self.resetting {
                return;
            }
            if self.running {
                self.running = false;
                self.resetting = true;
            } else {
                self.forget();
            }
            return;
        }
        if self.resetting {
            return;
        }
        let mut new = self.status | value & (ACKNOWLEDGE | FAILED);
        if new & ACKNOWLEDGE != 0 {
            new |= value & DRIVER;
        }
        let acceptable = !self.beyond && self.features & !self.offered(false) == 0 && self.features & VERSION_1 != 0;
        if !legacy && new & DRIVER != 0 && !self.running && acceptable {
            new |= value & FEATURES_OK;
        }
        let negotiated = new & FEATURES_OK != 0 || legacy;
        // FAILED ends it, whether it was there before or comes now.
        if new & DRIVER != 0 && negotiated && new & FAILED == 0 {
            new |= value & DRIVER_OK;
        }
        let starts = new & !self.status & DRIVER_OK != 0;
        self.status = new;
        if starts && !self.running {
            self.start(new & FEATURES_OK == 0);
        }
    }

    /// The queues have stopped: the reset is complete.
    pub fn reset_done(&mut self) {
        if self.resetting {
            self.forget();
        }
    }

    /// What a write to the legacy header does; `false` where it goes to the device's configuration.
    pub fn write_legacy(&mut self, offset: u64, data: &[u8]) -> bool {
        if offset >= self.legacy_header() {
            return false;
        }
        let mut bytes = [0; 8];
        bytes[..data.len()].copy_from_slice(data);
        let value = u64::from_le_bytes(bytes);
        match (offset, data.len()) {
            (0x12, 1) => self.write_status(value as u8, true),
            (0x10, 2) => self.kick_legacy(value as u16),
            _ if self.resetting => {}
            (0x04, 4) => self.write_features(value as u32, true),
            (0x08, 4) => self.write_pfn(value as u32),
            (0x0e, 2) => self.select = value as u16,
            (0x14, 2) => self.config_vector = self.vector(value as u16),
            (0x16, 2) => self.set_queue_vector(value as u16),
            _ => {}
        }
        true
    }

    /// Bytes of the legacy header.
    #[must_use]
    pub fn legacy_header(&self) -> u64 {
        if self.msix { 0x18 } else { 0x14 }
    }

    /// Old drivers kick before DRIVER_OK, which starts the device.
    fn kick_legacy(&mut self, queue: u16) {
        let early = self.status & (DRIVER | FEATURES_OK | DRIVER_OK | FAILED) == DRIVER;
        let ready = self.queues.get(usize::from(queue)).is_some_and(|queue| queue.enabled);
        if early && ready && !self.running && !self.resetting {
            self.start(true);
        }
    }

    fn start(&mut self, legacy: bool) {
        self.running = true;
        self.legacy = legacy;
        // Nobody has asked a driver that starts the legacy way whether it takes only what is offered.
        self.features &= self.offered(legacy);
    }

    fn write_pfn(&mut self, pfn: u32) {
        let select = usize::from(self.select);
        let maximum = self.max_sizes.get(select).copied().unwrap_or(0);
        let running = self.running;
        let Some(queue) = self.queues.get_mut(select).filter(|_| !running) else { return };
        if pfn == 0 {
            *queue = Queue { size: maximum, ..Queue::default() };
        } else if queue.size != 0 && (!queue.enabled || queue.pfn != 0) {
            let size = u64::from(queue.size);
            let desc = u64::from(pfn) << 12;
            let avail = desc + 16 * size;
            let used = (avail + 6 + 2 * size).next_multiple_of(4096);
            queue.areas = [desc, avail, used];
            (queue.enabled, queue.pfn) = (true, pfn);
        }
    }

    /// What the common configuration reads; the generation is the device's.
    #[must_use]
    pub fn common(&self, generation: u8) -> [u8; 0x3c] {
        let mut image = [0; 0x3c];
        let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
        let word = |features: u64, select: u32| match select {
            0 => features as u32,
            1 => (features >> 32) as u32,
            _ => 0,
        };
        put(0x00, &self.device_select.to_le_bytes());
        put(0x04, &word(self.offered(false), self.device_select).to_le_bytes());
        put(0x08, &self.driver_select.to_le_bytes());
        put(0x0c, &word(self.features, self.driver_select).to_le_bytes());
        put(0x10, &self.config_vector.to_le_bytes());
        put(0x12, &(self.max_sizes.len() as u16).to_le_bytes());
        put(0x14, &[self.status, generation]);
        put(0x16, &self.select.to_le_bytes());
        let vector = self.queue_vectors.get(usize::from(self.select)).copied().unwrap_or(NO_VECTOR);
        put(0x1a, &vector.to_le_bytes());
        if let Some(queue) = self.queues.get(usize::from(self.select)) {
            put(0x18, &queue.size.to_le_bytes());
            put(0x1c, &u16::from(queue.enabled).to_le_bytes());
            put(0x1e, &self.select.to_le_bytes());
            for (field, area) in [0x20, 0x28, 0x30].into_iter().zip(queue.areas) {
                put(field, &area.to_le_bytes());
            }
            put(0x3a, &u16::from(queue.reset == Reset::Pending).to_le_bytes());
        }
        image
    }

    /// What the legacy header reads, its ISR left out.
    #[must_use]
    pub fn legacy(&self) -> [u8; 0x18] {
        let mut image = [0; 0x18];
        let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
        let queue = self.queues.get(usize::from(self.select)).copied().unwrap_or_default();
        let vector = self.queue_vectors.get(usize::from(self.select)).copied().unwrap_or(NO_VECTOR);
        put(0x00, &(self.offered(true) as u32).to_le_bytes());
        put(0x04, &(self.features as u32).to_le_bytes());
        put(0x08, &queue.pfn.to_le_bytes());
        put(0x0c, &queue.size.to_le_bytes());
        put(0x0e, &self.select.to_le_bytes());
        put(0x12, &[self.status]);
        put(0x14, &self.config_vector.to_le_bytes());
        put(0x16, &vector.to_le_bytes());
        image
    }

    /// A read of the ISR status, which clears it (§4.1.4.5).
    pub fn take_isr(&mut self) -> u8 {
        std::mem::take(&mut self.isr)
    }

    /// The level of the interrupt line.
    #[must_use]
    pub fn line(&self) -> bool {
        self.isr != 0 && !self.intx_disabled && !self.msix
    }

    /// Configuration space says this about interrupts now.
    pub fn interrupts(&mut self, msix_control: u16, intx_disabled: bool) {
        self.intx_disabled = intx_disabled;
        self.msix = msix_control & 0x8000 != 0;
        self.function_mask = msix_control & 0x4000 != 0;
        for index in 0..self.vectors.len() {
            self.flush(index);
        }
    }

    /// Whether MSI-X is enabled.
    #[must_use]
    pub fn msix(&self) -> bool {
        self.msix
    }

    /// What a write to the MSI-X table does.
    pub fn write_table(&mut self, offset: u64, data: &[u8]) {
        let aligned = matches!(data.len(), 4 | 8) && offset.is_multiple_of(data.len() as u64);
        let Some(vector) = self.vectors.get_mut((offset / 16) as usize).filter(|_| aligned) else { return };
        let mut image = vector_bytes(vector);
        let at = (offset % 16) as usize;
        image[at..at + data.len()].copy_from_slice(data);
        let value = u128::from_le_bytes(image);
        vector.message = MsiMessage { address: value as u64 & !3, data: (value >> 64) as u32 };
        vector.masked = value >> 96 & 1 != 0;
        self.flush((offset / 16) as usize);
    }

    /// What the MSI-X table and the pending bits read.
    #[must_use]
    pub fn table(&self, offset: u64, data: &mut [u8]) -> bool {
        data.fill(0);
        if offset < 0x1000 {
            if let Some(vector) = self.vectors.get((offset / 16) as usize) {
                let image = vector_bytes(vector);
                let from = image[(offset % 16) as usize..].iter();
                data.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
            }
        } else if offset == 0x1000 {
            data[0] = self.vectors.iter().rev().fold(0, |bits, vector| bits << 1 | u8::from(vector.pending));
        }
        true
    }

    fn is_open(&self, index: usize) -> bool {
        self.msix && !self.function_mask && !self.vectors[index].masked
    }

    /// A pending vector goes out as soon as nothing masks it.
    fn flush(&mut self, index: usize) {
        if self.is_open(index) && std::mem::take(&mut self.vectors[index].pending) {
            self.send(index);
        }
    }

    fn send(&mut self, index: usize) {
        let message = self.vectors[index].message;
        if message.is_interrupt() {
            self.expected.push((index as u16, message));
        }
    }

    fn trigger(&mut self, vector: u16) {
        let index = usize::from(vector);
        if index >= self.vectors.len() {
            return;
        }
        if self.is_open(index) {
            self.send(index);
        } else {
            self.vectors[index].pending = true;
        }
    }

    /// The device's configuration has changed.
    pub fn config_changed(&mut self) {
        if self.status & DRIVER_OK == 0 {
            return;
        }
        self.isr |= 2;
        if self.msix {
            self.trigger(self.config_vector);
        }
    }

    /// A worker has told the transport something.
    pub fn told(&mut self, what: Told) {
        match what {
            Told::Used(queue) if self.msix => {
                let vector = self.called(queue).and_then(|queue| self.queue_vectors.get(usize::from(queue)).copied());
                self.trigger(vector.unwrap_or(NO_VECTOR));
            }
            Told::Used(_) => self.isr |= 1,
            Told::NeedsReset(_) if self.legacy => {}
            Told::NeedsReset(_) => {
                self.status |= NEEDS_RESET;
                self.config_changed();
            }
        }
    }

    /// Compares what the guest got with what it has to get.
    pub fn check(&mut self, sent: &[(u16, MsiMessage)], line: bool) {
        if sent != self.expected {
            finding!("spec", "messages {sent:x?} reach the guest where {:x?} are due", self.expected);
        }
        self.expected.clear();
        if line != self.line() {
            finding!("spec", "the line is {line} with isr {:#x}, msi-x {}", self.isr, self.msix);
        }
    }
}

fn vector_bytes(vector: &Vector) -> [u8; 16] {
    let control = u128::from(vector.masked) << 96;
    (u128::from(vector.message.address) | u128::from(vector.message.data) << 64 | control).to_le_bytes()
}
