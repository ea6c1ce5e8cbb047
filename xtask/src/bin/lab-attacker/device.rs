//! A virtio device under attack: taken through its initialization, given requests, and judged.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};

use crate::arena::{Arena, DATA, QUEUE};
use crate::attacks_list::{Kind, Way};
use crate::machine::{sleep_ms, wait};
use crate::pci::{Function, command, register};
use crate::queue::{Queue, Raw, Used, flag};
use crate::registers::{Modern, Registers, common, legacy, places, status};

/// How long anything may take before the device counts as wedged.
pub const LIMIT: Duration = Duration::from_secs(15);

/// How long a device is watched that is to do nothing.
pub const SILENCE_MS: u64 = 15;

/// Entries of queues, where the driver may choose.
pub const QUEUE_SIZE: u16 = 16;

/// Feature bits (virtio 1.3 §6, §5.1.3).
pub mod feature {
    pub const NET_MRG_RXBUF: u64 = 1 << 15;
    pub const INDIRECT: u64 = 1 << 28;
    pub const EVENT_IDX: u64 = 1 << 29;
    pub const VERSION_1: u64 = 1 << 32;
    pub const RING_PACKED: u64 = 1 << 34;
    pub const RING_RESET: u64 = 1 << 40;
}

/// What an attack came to when it did not pass.
#[derive(Debug)]
pub enum Trouble {
    /// The device reacted wrongly.
    Fail(String),
    /// The device does not work any more.
    Wedged(String),
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Fail(why) => write!(f, "FAIL {why}"),
            Self::Wedged(why) => write!(f, "WEDGED {why}"),
        }
    }
}

/// The outcome of an attack.
pub type Verdict<T = ()> = Result<T, Trouble>;

/// Fails the attack unless something holds.
#[macro_export]
macro_rules! check {
    ($what:expr, $($why:tt)*) => {
        if !$what {
            return Err($crate::device::Trouble::Fail(format!($($why)*)));
        }
    };
}

/// The device.
pub struct Device<'a> {
    pub kind: Kind,
    pub way: Way,
    pub function: &'a Function,
    pub registers: Arc<Registers>,
    pub arena: &'a mut Arena,
    pub queues: Vec<Queue>,
    /// Largest size of each queue.
    pub maximum: Vec<u16>,
    pub offered: u64,
    /// Configuration space as it is to be.
    saved: Vec<u32>,
    /// Requests so far: makes their contents differ.
    pub serial: u32,
    /// What was accepted last.
    pub accepted: u64,
    /// Receive buffers of [`request`](Self::request) that are the device's: id and place.
    pub receiving: Vec<(u16, usize)>,
}

/// The kind of a function, if it is a virtio device that is attacked: by its id, or by the subsystem id of transitional
/// devices (virtio 1.3 §4.1.2).
pub fn kind_of(function: &Function) -> Option<Kind> {
    let number = match function.id() {
        (0x1af4, 0x1000..=0x103f) => function.read(register::SUBSYSTEM) >> 16,
        (0x1af4, id @ 0x1040..=0x107f) => u32::from(id) - 0x1040,
        _ => return None,
    };
    match number {
        1 => Some(Kind::Net),
        2 => Some(Kind::Blk),
        3 => Some(Kind::Console),
        4 => Some(Kind::Rng),
        _ => None,
    }
}

impl<'a> Device<'a> {
    /// The device on a function, reset. `None` where it is not to be had this way.
    ///
    /// # Errors
    /// When it should be and is not.
    pub fn open(function: &'a Function, kind: Kind, way: Way, arena: &'a mut Arena) -> anyhow::Result<Option<Self>> {
        function.set_command(command::IO | command::MEMORY | command::MASTER | command::INTX_OFF, 0);
        let registers = match way {
            Way::Legacy if (0x1040..).contains(&function.id().1) => return Ok(None),
            Way::Legacy => {
                let (ports, len) = function.ports(0)?;
                Registers::Legacy { ports, len }
            }
            Way::Split | Way::Packed => Registers::Modern(Modern::find(function)?),
        };
        registers.set_status(0);
        // A disk has as many queues as there are CPUs, the others two or one that matter here.
        let queues = if kind == Kind::Rng { 1 } else { 2 };
        let sizes = (0..queues).map(|queue| registers.queue_size(queue));
        let maximum: Vec<u16> = sizes
            .enumerate()
            .filter(|(n, size)| kind != Kind::Blk || *n == 0 || *size != 0)
            .map(|(_, size)| size)
            .collect();
        let offered = registers.offered();
        if way == Way::Packed && offered & feature::RING_PACKED == 0 {
            return Ok(None);
        }
        if let Some(size) = maximum.iter().find(|size| **size == 0) {
            bail!("a queue has {size} entries");
        }
        let saved = function.save(0x100);
        let (queues, receiving) = (Vec::new(), Vec::new());
        let (serial, accepted) = (0, 0);
        let mut device = Self {
            kind,
            way,
            function,
            registers: Arc::new(registers),
            arena,
            queues,
            maximum,
            offered,
            saved,
            serial,
            accepted,
            receiving,
        };
        device.prove().map_err(|trouble| anyhow::anyhow!("{trouble}")).context("before any attack")?;
        Ok(Some(device))
    }

    /// Its name in verdicts.
    pub fn name(&self) -> String {
        format!("{}/{}", self.kind, self.way)
    }

    /// Whether its rings are packed.
    pub fn packed(&self) -> bool {
        self.way == Way::Packed
    }

    /// Whether its interface is the legacy one.
    pub fn is_legacy(&self) -> bool {
        self.way == Way::Legacy
    }

    /// The modern registers.
    pub fn modern(&self) -> &Modern {
        match &*self.registers {
            Registers::Modern(modern) => modern,
            Registers::Legacy { .. } => panic!("the attack is not for the legacy interface"),
        }
    }

    /// The queue that ring attacks go to: the one that the device empties by itself.
    pub fn target(&self) -> u16 {
        match self.kind {
            Kind::Blk | Kind::Rng => 0,
            Kind::Net | Kind::Console => 1,
        }
    }

    /// The flags of a buffer that belongs into that queue.
    pub fn direction(&self) -> u16 {
        if self.target() == 0 { flag::WRITE } else { 0 }
    }

    /// What a plain driver accepts.
    pub fn features(&self) -> u64 {
        let ring = match self.way {
            Way::Split => feature::VERSION_1,
            Way::Packed => feature::VERSION_1 | feature::RING_PACKED,
            Way::Legacy => 0,
        };
        self.offered & (ring | feature::INDIRECT | feature::RING_RESET)
    }

    /// Resets the device; done when the status reads 0.
    ///
    /// # Errors
    /// When it never does.
    pub fn reset(&mut self) -> Verdict {
        self.registers.set_status(0);
        if !wait(LIMIT, || self.registers.status() == 0) {
            return Err(Trouble::Wedged(format!("after a reset the status stays {:#x}", self.registers.status())));
        }
        self.queues.clear();
        self.receiving.clear();
        Ok(())
    }

    /// Takes the device from reset to FEATURES_OK.
    ///
    /// # Errors
    /// When it refuses features that it offers.
    pub fn begin(&mut self, features: u64) -> Verdict {
        self.reset()?;
        self.registers.set_status(status::ACKNOWLEDGE);
        self.registers.set_status(status::ACKNOWLEDGE | status::DRIVER);
        self.registers.accept(features);
        self.accepted = features;
        if !self.is_legacy() {
            self.registers.set_status(status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK);
            let now = self.registers.status();
            check!(now & status::FEATURES_OK != 0, "features {features:#x} are refused: status {now:#x}");
        }
        Ok(())
    }

    /// Lays out and enables all queues.
    pub fn set_up_queues(&mut self, size: u16) {
        self.queues.clear();
        for index in 0..self.maximum.len() as u16 {
            self.set_up_queue(index, size);
        }
    }

    /// Lays out and enables one queue, in place of an earlier one or behind all others.
    pub fn set_up_queue(&mut self, index: u16, size: u16) {
        let maximum = self.maximum[usize::from(index)];
        let size = if self.is_legacy() { maximum } else { size.min(maximum) };
        let queue = Queue::new(self.arena, index, size, self.way);
        if !self.is_legacy() {
            self.registers.set_queue_size(index, size);
        }
        self.registers.place_queue(index, places(self.arena, &queue));
        if index == 0 {
            self.receiving.clear();
        }
        match self.queues.get_mut(usize::from(index)) {
            Some(place) => *place = queue,
            None => self.queues.push(queue),
        }
    }

    /// Sets DRIVER_OK.
    pub fn go(&self) {
        let negotiated = if self.is_legacy() { 0 } else { status::FEATURES_OK };
        self.registers.set_status(status::ACKNOWLEDGE | status::DRIVER | negotiated | status::DRIVER_OK);
    }

    /// From reset to DRIVER_OK with all queues.
    ///
    /// # Errors
    /// As [`begin`](Self::begin).
    pub fn start(&mut self, features: u64) -> Verdict {
        self.begin(features)?;
        self.set_up_queues(QUEUE_SIZE);
        self.go();
        Ok(())
    }

    /// Makes a chain available in a queue, with its descriptors as they are.
    pub fn post_raw(&mut self, queue: u16, chain: &[Raw]) -> u16 {
        self.queues[usize::from(queue)].post_raw(self.arena, chain)
    }

    /// Makes a well-formed chain available: place in the arena, length, flags.
    pub fn post(&mut self, queue: u16, buffers: &[(usize, u32, u16)]) -> u16 {
        let last = buffers.len() - 1;
        let raw = |(n, &(at, len, flags)): (usize, &(usize, u32, u16))| {
            Raw::one(self.arena.physical(at), len, flags | if n == last { 0 } else { flag::NEXT })
        };
        let chain: Vec<Raw> = buffers.iter().enumerate().map(raw).collect();
        self.post_raw(queue, &chain)
    }

    /// The next thing a queue returned.
    pub fn used(&mut self, queue: u16) -> Option<Used> {
        self.queues[usize::from(queue)].used(self.arena)
    }

    /// Waits for a queue to return something.
    pub fn wait_used(&mut self, queue: u16) -> Option<Used> {
        let mut found = None;
        wait(LIMIT, || {
            found = self.used(queue);
            found.is_some()
        });
        found
    }

    /// The parts of the arena that the device may write to at any time: where its queues' parts of the rings are.
    pub fn ring_areas(&self) -> Vec<Range<usize>> {
        let from = |queue: &Queue| if self.packed() { 0 } else { queue.device };
        self.queues.iter().map(|queue| queue.base + from(queue)..queue.base + QUEUE).collect()
    }

    /// Nothing but the rings and what was offered may have changed.
    ///
    /// # Errors
    /// When something has.
    pub fn check_memory(&self, offered: &[Range<usize>]) -> Verdict {
        let allowed: Vec<_> = self.ring_areas().into_iter().chain(offered.iter().cloned()).collect();
        match self.arena.first_change(&allowed) {
            None => Ok(()),
            Some(at) => Err(Trouble::Fail(format!("memory at {at:#x} changed, which was not offered"))),
        }
    }

    /// The ring is broken: the device asks to be reset, or keeps silent over the legacy interface, and takes nothing from
    /// the ring.
    ///
    /// # Errors
    /// When it does anything else.
    pub fn expect_refused(&mut self) -> Verdict {
        let needs_reset = || self.registers.status() & status::NEEDS_RESET != 0;
        if self.is_legacy() {
            sleep_ms(SILENCE_MS);
            check!(!needs_reset(), "a legacy driver is shown DEVICE_NEEDS_RESET");
        } else {
            check!(wait(LIMIT, needs_reset), "no DEVICE_NEEDS_RESET: status {:#x}", self.registers.status());
        }
        let used = self.used(self.target());
        check!(used.is_none(), "what cannot be understood was used: {used:?}");
        self.check_memory(&[])
    }

    /// A queue returns one chain, with this length, once.
    ///
    /// # Errors
    /// When it returns another, or none.
    pub fn expect_returned(&mut self, queue: u16, id: u16, len: u32) -> Verdict {
        let used = self.wait_used(queue);
        check!(used == Some(Used { id, len }), "{used:?} came back, not id {id} with length {len}");
        sleep_ms(1);
        let again = self.used(queue);
        check!(again.is_none(), "{again:?} came back after the only request");
        let now = self.registers.status();
        check!(now & status::NEEDS_RESET == 0, "a request's own error asks for a reset: status {now:#x}");
        Ok(())
    }

    /// After whatever was done: the function's registers are put back, then the oracle.
    ///
    /// # Errors
    /// When the device does not reset, is not as after reset, touches memory, or does not work.
    pub fn recover(&mut self) -> Verdict {
        self.function.restore(&self.saved);
        self.prove()
    }

    /// The oracle: after a reset the registers are as they were first, no memory changes any more, and after a valid
    /// initialization a valid request succeeds.
    fn prove(&mut self) -> Verdict {
        self.reset()?;
        self.check_is_reset()?;
        self.check_is_quiet(2)?;
        let wedged = |trouble| match trouble {
            Trouble::Fail(why) | Trouble::Wedged(why) => Trouble::Wedged(why),
        };
        self.start(self.features()).map_err(wedged)?;
        self.request().map_err(wedged)?;
        self.reset()
    }

    /// Reset means all of it.
    fn check_is_reset(&self) -> Verdict {
        let accepted = self.registers.accepted();
        check!(accepted == 0, "after reset features {accepted:#x} are accepted");
        for (queue, maximum) in (0..).zip(&self.maximum) {
            check!(!self.registers.is_enabled(queue), "after reset queue {queue} is enabled");
            let size = self.registers.queue_size(queue);
            check!(size == *maximum, "after reset queue {queue} has {size} entries, not {maximum}");
        }
        match &*self.registers {
            Registers::Modern(modern) => {
                for queue in 0..self.maximum.len() as u16 {
                    for field in [common::QUEUE_DESC, common::QUEUE_DRIVER, common::QUEUE_DEVICE] {
                        let address = modern.read_queue(queue, field, 8);
                        check!(address == 0, "after reset field {field:#x} of queue {queue} is {address:#x}");
                    }
                    let vector = modern.read_queue(queue, common::QUEUE_VECTOR, 2);
                    check!(vector == 0xffff, "after reset queue {queue} has vector {vector:#x}");
                }
                let vector = modern.read(common::CONFIG_VECTOR, 2);
                check!(vector == 0xffff, "after reset the configuration has vector {vector:#x}");
                let isr = modern.bar.read(modern.isr, 1);
                check!(isr == 0, "after reset the ISR status is {isr:#x}");
            }
            Registers::Legacy { ports, .. } => {
                let isr = crate::machine::read_port(ports + legacy::ISR, 1);
                check!(isr == 0, "after reset the ISR status is {isr:#x}");
            }
        }
        Ok(())
    }

    /// With the device reset the memory is the driver's: it is used for something else at once, and nobody else writes to
    /// it.
    ///
    /// # Errors
    /// When somebody does.
    pub fn check_is_quiet(&mut self, ms: u64) -> Verdict {
        self.arena.fill();
        self.arena.watch();
        sleep_ms(ms);
        match self.arena.first_change(&[]) {
            None => Ok(()),
            Some(at) => Err(Trouble::Fail(format!("memory at {at:#x} changed after the reset was complete"))),
        }
    }

    /// Rings the doorbell of a queue.
    pub fn notify(&self, queue: u16) {
        self.registers.notify(queue);
    }

    /// Starts the device, lets `prepare` break a ring, notifies, and expects the ring to be refused.
    ///
    /// # Errors
    /// When it is not.
    pub fn refuses(&mut self, features: u64, prepare: impl FnOnce(&mut Self)) -> Verdict {
        self.arena.fill();
        self.start(features)?;
        prepare(self);
        self.arena.watch();
        self.notify(self.target());
        self.expect_refused()
    }

    /// A guest-physical address in the device's own registers, or where ports have none, at the local APIC's.
    pub fn own_registers(&self) -> u64 {
        match &*self.registers {
            Registers::Modern(modern) => self.function.bar(modern.bar_index),
            Registers::Legacy { .. } => self
                .function
                .capabilities(9)
                .first()
                .map_or(0xfee0_0000, |at| self.function.bar(self.function.read(at + 4) as u8)),
        }
    }
}

/// Place of the n-th block of buffers.
pub fn block(n: usize) -> usize {
    DATA + n * 0x3000
}
