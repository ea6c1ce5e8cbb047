//! Guest memory that watches whoever reads it.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::Ordering;

use crate::GuestRam;
use crate::virtio::queue::{Descriptor, OutsideMemory, RingMem};

/// Memory that answers a second read of the same word with something else: whoever reads twice is found out, either by
/// the count or by a result that no snapshot explains. It counts stores, too.
///
/// What counts as the same is up to [`snapshot`](Self::snapshot): between two calls of it the guest is supposed to be
/// read once. Stores go to the memory behind it and make their word fresh again.
pub struct FickleMemory {
    mem: GuestRam,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    reads: HashMap<u64, usize>,
    stores: HashMap<u64, usize>,
}

impl FickleMemory {
    /// Over `mem`.
    pub fn new(mem: &GuestRam) -> Self {
        Self { mem: mem.clone(), seen: Mutex::default() }
    }

    /// Forgets what was read: from now on every word may be read once (again).
    pub fn snapshot(&self) {
        self.seen.lock().unwrap().reads.clear();
    }

    /// Words and descriptors read since the last [`snapshot`](Self::snapshot), and how often the most popular one.
    pub fn reads(&self) -> (usize, usize) {
        let seen = self.seen.lock().unwrap();
        (seen.reads.len(), seen.reads.values().copied().max().unwrap_or(0))
    }

    /// Stores per address since the start.
    pub fn stores(&self) -> HashMap<u64, usize> {
        self.seen.lock().unwrap().stores.clone()
    }

    /// Counts a read; `true` where it is not the first.
    fn read(&self, addr: u64) -> bool {
        let mut seen = self.seen.lock().unwrap();
        let count = seen.reads.entry(addr).or_default();
        *count += 1;
        *count > 1
    }

    fn store(&self, addr: u64) {
        let mut seen = self.seen.lock().unwrap();
        *seen.stores.entry(addr).or_default() += 1;
        seen.reads.remove(&addr);
    }
}

impl RingMem for FickleMemory {
    fn load_u16(&self, addr: u64, order: Ordering) -> Result<u16, OutsideMemory> {
        let value = self.mem.load_u16(addr, order)?;
        Ok(if self.read(addr) { value ^ 1 } else { value })
    }

    fn store_u16(&self, addr: u64, value: u16, order: Ordering) -> Result<(), OutsideMemory> {
        self.store(addr);
        self.mem.store_u16(addr, value, order)
    }

    fn load_u64(&self, addr: u64, order: Ordering) -> Result<u64, OutsideMemory> {
        let value = self.mem.load_u64(addr, order)?;
        // Length, write flag and address differ; the flags that say "available" do not, or nobody would go on.
        Ok(if self.read(addr) { value ^ 0x0002_0000_0000_0ff0 } else { value })
    }

    fn store_u64(&self, addr: u64, value: u64, order: Ordering) -> Result<(), OutsideMemory> {
        self.store(addr);
        self.mem.store_u64(addr, value, order)
    }

    fn read_descriptor(&self, addr: u64) -> Result<Descriptor, OutsideMemory> {
        let desc = self.mem.read_descriptor(addr)?;
        Ok(if self.read(addr) { Descriptor { addr: !desc.addr, flags: desc.flags ^ 3, ..desc } } else { desc })
    }

    fn write_used(&self, addr: u64, id: u32, len: u32) -> Result<(), OutsideMemory> {
        self.mem.write_used(addr, id, len)
    }

    fn contains(&self, addr: u64, len: u64) -> bool {
        self.mem.contains(addr, len)
    }
}
