//! Where BARs lie: addresses given out at start, and the port and memory ranges that follow when the guest moves them.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use vm_allocator::{AddressAllocator, AllocPolicy};

use super::bar::{BarKind, BarSpec};
use super::{PciAddress, PciError};
use crate::bus::{Bus, BusDevice};

/// The address ranges that belong to PCI. A BAR outside them is never decoded, so it can shadow neither RAM nor ROM
/// nor an interrupt controller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Windows {
    /// Ports.
    pub io: Range<u64>,
    /// Memory below 4 GiB.
    pub mem32: Range<u64>,
    /// Memory above 4 GiB, inside the guest's physical address width.
    pub mem64: Option<Range<u64>>,
    /// Whether 64-bit BARs start in `mem64`; guests may move them to either window in any case.
    pub prefer_mem64: bool,
}

/// Told where a BAR decodes, whenever that changes. Called with the mapper locked: it may not call the mapper.
pub trait BarListener: Send + Sync {
    /// BAR `index` decodes at `at` now, or nowhere.
    fn bar_placed(&self, index: u8, at: Option<u64>);
}

/// One BAR known to a [`BarMapper`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BarId(usize);

struct Region {
    name: String,
    bar: BarSpec,
    device: Arc<dyn BusDevice>,
    listener: Arc<dyn BarListener>,
    /// Where the registers say it should decode.
    wanted: Option<u64>,
    /// Where it does.
    placed: Option<u64>,
    /// A guest may write nonsense for ever; the operator reads about each BAR once.
    warned: bool,
}

struct Pool {
    window: &'static str,
    base: u64,
    /// Share of each device number, a power of two: what makes an address depend on the slot alone.
    share: u64,
    free: AddressAllocator,
}

struct Pools {
    io: Pool,
    mem32: Pool,
    mem64: Option<Pool>,
}

/// Places BARs on the port and memory buses.
pub struct BarMapper {
    /// Weak: the functions on a bus know their mapper, and whoever lets go of a machine's buses lets go of all of it.
    ports: Weak<Bus>,
    memory: Weak<Bus>,
    windows: Windows,
    pools: Mutex<Pools>,
    regions: Mutex<Vec<Region>>,
}

impl BarMapper {
    /// A mapper over `windows` of the two buses. It places nothing on a bus that is gone.
    pub fn new(ports: &Arc<Bus>, memory: &Arc<Bus>, windows: Windows) -> Result<Self, PciError> {
        let pools = Pools {
            io: Pool::new("i/o port", &windows.io, 1 << 16)?,
            mem32: Pool::new("32-bit memory", &windows.mem32, 1 << 32)?,
            mem64: windows.mem64.as_ref().map(|window| Pool::new("64-bit memory", window, 1 << 63)).transpose()?,
        };
        let (ports, memory) = (Arc::downgrade(ports), Arc::downgrade(memory));
        Ok(Self { ports, memory, windows, pools: Mutex::new(pools), regions: Mutex::default() })
    }

    /// The windows this mapper places BARs in: what the firmware tables have to describe.
    pub fn windows(&self) -> &Windows {
        &self.windows
    }

    /// A power-on address for `bar` of the function at `slot`. It depends on the slot and the function's earlier BARs,
    /// not on other devices, as long as a device's BARs fit its share (1/32) of the window.
    pub fn allocate(&self, slot: PciAddress, bar: &BarSpec) -> Result<u64, PciError> {
        bar.check()?;
        let mut pools = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
        let Pools { io, mem32, mem64 } = &mut *pools;
        match (bar.kind, mem64) {
            (BarKind::Io, _) => io.take(slot, bar.len),
            (BarKind::Memory64, Some(mem64)) if self.windows.prefer_mem64 => mem64.take(slot, bar.len),
            (BarKind::Memory64, Some(mem64)) => mem32.take(slot, bar.len).or_else(|_| mem64.take(slot, bar.len)),
            _ => mem32.take(slot, bar.len),
        }
    }

    /// Makes a BAR known; it decodes nowhere until [`place`](Self::place).
    pub fn register(
        &self,
        name: &str,
        bar: BarSpec,
        device: Arc<dyn BusDevice>,
        listener: Arc<dyn BarListener>,
    ) -> BarId {
        let mut regions = self.lock();
        let id = BarId(regions.len());
        let name = name.to_owned();
        regions.push(Region { name, bar, device, listener, wanted: None, placed: None, warned: false });
        id
    }

    /// Takes over what a function's registers say about its BARs. An address outside the windows does not decode, and of
    /// BARs that overlap only the one that was registered first; the others do as soon as it has left. So where BARs
    /// decode follows from all registers together, whatever was written before: a restored machine comes out the same.
    pub fn place(&self, wanted: &[(BarId, Option<u64>)]) {
        let mut regions = self.lock();
        let mut changed = false;
        for (id, address) in wanted {
            if let Some(region) = regions.get_mut(id.0).filter(|region| region.wanted != *address) {
                region.wanted = *address;
                changed = true;
            }
        }
        if changed {
            self.settle(&mut regions);
        }
    }

    /// Where the BAR decodes now.
    pub fn placed(&self, id: BarId) -> Option<u64> {
        self.lock().get(id.0).and_then(|region| region.placed)
    }

    fn settle(&self, regions: &mut [Region]) {
        let before: Vec<Option<u64>> = regions.iter().map(|region| region.placed).collect();
        let decided = self.decide(regions);
        // First everything leaves, so that two BARs can swap places.
        let leaving = regions.iter_mut().zip(&decided).filter(|(region, decided)| region.placed != **decided);
        for (region, _) in leaving {
            if let (Some(address), Some(bus)) = (region.placed.take(), self.bus(region.bar.kind)) {
                bus.remove(address);
            }
        }
        for (region, decided) in regions.iter_mut().zip(decided).filter(|(region, _)| region.placed.is_none()) {
            let (Some(address), Some(bus)) = (decided, self.bus(region.bar.kind)) else { continue };
            match bus.insert(address, region.bar.len, region.device.clone()) {
                Ok(()) => region.placed = Some(address),
                Err(error) => region.warn(address, &error.to_string()),
            }
        }
        for (region, before) in regions.iter().zip(before) {
            if region.placed != before {
                region.listener.bar_placed(region.bar.index, region.placed);
            }
        }
    }

    /// Where each BAR is to decode, by the registers alone.
    fn decide(&self, regions: &mut [Region]) -> Vec<Option<u64>> {
        let mut decided: Vec<Option<u64>> = Vec::with_capacity(regions.len());
        for which in 0..regions.len() {
            let Some((before, [region, ..])) = regions.split_at_mut_checked(which) else { break };
            let Some(address) = region.wanted else {
                decided.push(None);
                continue;
            };
            if !self.allowed(&region.bar, address) {
                region.warn(address, "it lies outside the windows of pci");
                decided.push(None);
                continue;
            }
            let first = before.iter().zip(&decided).find(|(other, at)| {
                let same_bus = (other.bar.kind == BarKind::Io) == (region.bar.kind == BarKind::Io);
                same_bus && at.is_some_and(|at| overlap((at, other.bar.len), (address, region.bar.len)))
            });
            if let Some((other, _)) = first {
                let why = format!("bar {} of {} is there", other.bar.index, other.name);
                region.warn(address, &why);
            }
            decided.push(first.is_none().then_some(address));
        }
        decided
    }

    fn allowed(&self, bar: &BarSpec, address: u64) -> bool {
        let Some(end) = address.checked_add(bar.len) else { return false };
        let inside = |window: &Range<u64>| window.start <= address && end <= window.end;
        match bar.kind {
            BarKind::Io => inside(&self.windows.io),
            BarKind::Memory32 | BarKind::Memory64 => {
                inside(&self.windows.mem32) || self.windows.mem64.as_ref().is_some_and(inside)
            }
        }
    }

    fn bus(&self, kind: BarKind) -> Option<Arc<Bus>> {
        match kind {
            BarKind::Io => self.ports.upgrade(),
            BarKind::Memory32 | BarKind::Memory64 => self.memory.upgrade(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Region>> {
        self.regions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether two ranges, by start and length, share an address. Both end inside a window, so no end wraps.
fn overlap((a, a_len): (u64, u64), (b, b_len): (u64, u64)) -> bool {
    a < b.saturating_add(b_len) && b < a.saturating_add(a_len)
}

impl Region {
    fn warn(&mut self, address: u64, why: &str) {
        // All address bits set, and nothing but them, is how a guest asks for the size: no placement at all.
        let sizing = address | self.bar.len.wrapping_sub(1);
        if self.warned || address == 0 || sizing == u64::MAX || sizing == u64::from(u32::MAX) {
            return;
        }
        self.warned = true;
        log::warn!("{}: bar {} is not decoded at {address:#x}: {why}", self.name, self.bar.index);
    }
}

impl Pool {
    fn new(window: &'static str, range: &Range<u64>, limit: u64) -> Result<Self, PciError> {
        let bad = PciError::BadWindow { window, start: range.start, end: range.end };
        let len = range.end.checked_sub(range.start).filter(|len| *len > 0 && range.end <= limit);
        let Some(len) = len else { return Err(bad) };
        let free = AddressAllocator::new(range.start, len).map_err(|_| bad)?;
        // Rounded down to a power of two, so that a share's start is aligned for every BAR that fits into it.
        let share = (len >> 5).checked_ilog2().map_or(1, |bits| 1 << bits);
        Ok(Self { window, base: range.start, share, free })
    }

    fn take(&mut self, slot: PciAddress, len: u64) -> Result<u64, PciError> {
        let full = PciError::NoRoom { len, window: self.window };
        let in_share = || {
            let start = self.share.checked_mul(slot.device().into())?.checked_add(self.base)?;
            let end = start.checked_add(self.share)?;
            Some((start.checked_next_multiple_of(len)?, end))
        };
        if let Some((mut address, end)) = in_share() {
            while address.checked_add(len).is_some_and(|last| last <= end) {
                if self.free.allocate(len, len, AllocPolicy::ExactMatch(address)).is_ok() {
                    return Ok(address);
                }
                address = address.saturating_add(len);
            }
        }
        // Too large for its share: from the far end, where the shares of high device numbers are mostly empty.
        self.free.allocate(len, len, AllocPolicy::LastMatch).map(|range| range.start()).map_err(|_| full)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::{Access, BusView};

    struct Fill(u8);

    impl BusDevice for Fill {
        fn read(&self, _offset: u64, data: &mut [u8]) -> Access {
            data.fill(self.0);
            Access::Done
        }
        fn write(&self, _offset: u64, _data: &[u8]) -> Access {
            Access::Done
        }
    }

    #[derive(Default)]
    struct Seen(Mutex<Vec<Option<u64>>>);

    impl BarListener for Seen {
        fn bar_placed(&self, _index: u8, at: Option<u64>) {
            self.0.lock().unwrap().push(at);
        }
    }

    const BAR: BarSpec = BarSpec { index: 4, kind: BarKind::Memory64, len: 0x4000 };

    fn windows() -> Windows {
        Windows {
            io: 0xc000..0x1_0000,
            mem32: 0xe000_0000..0xf000_0000,
            mem64: Some(0x80_0000_0000..0x90_0000_0000),
            prefer_mem64: true,
        }
    }

    fn mapper(windows: Windows) -> (BarMapper, BusView) {
        let (ports, memory) = (Arc::new(Bus::new()), Arc::new(Bus::new()));
        let view = BusView::new(memory.clone());
        let mapper = BarMapper::new(&ports, &memory, windows).unwrap();
        (mapper, view)
    }

    fn peek(view: &mut BusView, address: u64) -> u8 {
        let mut data = [0];
        let _ = view.read(address, &mut data);
        data[0]
    }

    #[test]
    fn an_address_depends_on_the_slot_and_not_on_other_devices() {
        let slot = |device| PciAddress::new(device, 0).unwrap();
        let (alone, _) = mapper(windows());
        let five = alone.allocate(slot(5), &BAR).unwrap();
        let (crowded, _) = mapper(windows());
        for device in [1, 2, 3, 4, 6, 7] {
            crowded.allocate(slot(device), &BAR).unwrap();
        }
        assert_eq!(crowded.allocate(slot(5), &BAR).unwrap(), five);
        assert_eq!(five % BAR.len, 0);
        assert_ne!(crowded.allocate(slot(5), &BAR).unwrap(), five);
    }

    #[test]
    fn a_bar_larger_than_its_share_still_finds_room_and_a_full_window_says_so() {
        let (mapper, _) = mapper(windows());
        let slot = PciAddress::new(3, 0).unwrap();
        let bar = BarSpec { index: 0, kind: BarKind::Io, len: 0x2000 };
        assert_eq!(mapper.allocate(slot, &bar).unwrap(), 0xe000);
        assert_eq!(mapper.allocate(slot, &bar).unwrap(), 0xc000);
        let error = mapper.allocate(slot, &bar).unwrap_err();
        assert_eq!(
            error.to_string(),
            "no room for a bar of 0x2000 bytes in the i/o port window: enlarge the window or remove a device"
        );
    }

    #[test]
    fn a_bus_that_is_let_go_takes_what_is_on_it_along_though_that_knows_the_mapper() {
        struct KnowsMapper(#[expect(dead_code)] Arc<BarMapper>);
        impl BusDevice for KnowsMapper {
            fn read(&self, _offset: u64, _data: &mut [u8]) -> crate::bus::Access {
                crate::bus::Access::Done
            }
            fn write(&self, _offset: u64, _data: &[u8]) -> crate::bus::Access {
                crate::bus::Access::Done
            }
        }
        let (ports, memory) = (Arc::new(Bus::new()), Arc::new(Bus::new()));
        let mapper = Arc::new(BarMapper::new(&ports, &memory, windows()).unwrap());
        memory.insert(0, 0x1000, Arc::new(KnowsMapper(mapper.clone()))).unwrap();
        let gone = Arc::downgrade(&memory);
        drop((ports, memory));
        assert!(gone.upgrade().is_none());
        assert_eq!(Arc::strong_count(&mapper), 1);
    }

    #[test]
    fn unusable_windows_are_refused_by_name() {
        let new = |windows| BarMapper::new(&Arc::default(), &Arc::default(), windows).err().unwrap().to_string();
        assert_eq!(
            new(Windows { io: 0xc000..0x1_0001, ..windows() }),
            "pci i/o port window 0xc000..0x10001 is not usable"
        );
        #[expect(clippy::reversed_empty_ranges)]
        let reversed = 5..4;
        assert_eq!(new(Windows { mem32: reversed, ..windows() }), "pci 32-bit memory window 0x5..0x4 is not usable");
        assert_eq!(new(Windows { mem64: Some(0..0), ..windows() }), "pci 64-bit memory window 0x0..0x0 is not usable");
    }

    #[test]
    fn a_moved_bar_leaves_nothing_behind_and_tells_its_listener() {
        let (mapper, mut view) = mapper(windows());
        let seen = Arc::new(Seen::default());
        let id = mapper.register("d", BAR, Arc::new(Fill(7)), seen.clone());
        mapper.place(&[(id, Some(0xe000_0000))]);
        assert_eq!(peek(&mut view, 0xe000_3fff), 7);
        mapper.place(&[(id, Some(0xe010_0000))]);
        assert_eq!([peek(&mut view, 0xe000_0000), peek(&mut view, 0xe010_0000)], [0xff, 7]);
        mapper.place(&[(id, None)]);
        assert_eq!(peek(&mut view, 0xe010_0000), 0xff);
        assert_eq!(*seen.0.lock().unwrap(), [Some(0xe000_0000), Some(0xe010_0000), None]);
    }

    #[test]
    fn a_bar_outside_the_windows_is_not_decoded() {
        let (mapper, mut view) = mapper(windows());
        let seen = Arc::new(Seen::default());
        let id = mapper.register("d", BAR, Arc::new(Fill(7)), seen.clone());
        for address in [0, 0x10_0000, 0xdfff_c000, 0xefff_e000, 0xfee0_0000, 0x90_0000_0000, !0x3fff] {
            mapper.place(&[(id, Some(address))]);
            assert_eq!((peek(&mut view, address), mapper.placed(id)), (0xff, None), "{address:#x}");
        }
        assert!(seen.0.lock().unwrap().is_empty());
    }

    #[test]
    fn where_bars_decode_follows_from_their_registers_and_not_from_the_order_of_writes() {
        let (mapper, mut view) = mapper(windows());
        let seen = Arc::new(Seen::default());
        let one = mapper.register("one", BAR, Arc::new(Fill(1)), seen.clone());
        let two = mapper.register("two", BAR, Arc::new(Fill(2)), seen);
        mapper.place(&[(two, Some(0xe000_0000))]);
        mapper.place(&[(one, Some(0xe000_2000))]);
        // A machine restored from the registers, which hears of all at once, has to come out the same.
        assert_eq!((mapper.placed(one), mapper.placed(two)), (Some(0xe000_2000), None));
        assert_eq!([0xe000_0000, 0xe000_2000].map(|at| peek(&mut view, at)), [0xff, 1]);
        mapper.place(&[(one, None)]);
        assert_eq!((peek(&mut view, 0xe000_0000), mapper.placed(two)), (2, Some(0xe000_0000)));
    }

    #[test]
    fn of_two_bars_at_one_address_the_first_stays_and_the_second_follows_when_it_leaves() {
        let (mapper, mut view) = mapper(windows());
        let seen = Arc::new(Seen::default());
        let one = mapper.register("one", BAR, Arc::new(Fill(1)), seen.clone());
        let two = mapper.register("two", BAR, Arc::new(Fill(2)), seen);
        mapper.place(&[(one, Some(0xe000_0000))]);
        mapper.place(&[(two, Some(0xe000_0000))]);
        assert_eq!((peek(&mut view, 0xe000_0000), mapper.placed(two)), (1, None));
        mapper.place(&[(one, Some(0xe100_0000))]);
        assert_eq!((peek(&mut view, 0xe000_0000), peek(&mut view, 0xe100_0000)), (2, 1));
        mapper.place(&[(one, Some(0xe000_0000)), (two, Some(0xe100_0000))]);
        assert_eq!((peek(&mut view, 0xe000_0000), peek(&mut view, 0xe100_0000)), (1, 2), "swapped at once");
    }
}
