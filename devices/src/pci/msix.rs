//! MSI-X (PCI Local Bus 3.0 §6.8.2): table, pending bits and the masks that decide whether a message goes out.

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use super::bar::{BarKind, BarSpec};
use super::config::StateError;
use super::{PciError, bytes};
use crate::bus::{Access, BusDevice};
use crate::interrupt::{MsiMessage, MsiSource};

/// Vectors one function can have.
pub const MAX_VECTORS: usize = 2048;

const ENTRY_BYTES: u64 = 16;
const PAGE_BYTES: u64 = 4096;
const ENABLE: u16 = 1 << 15;
const FUNCTION_MASK: u16 = 1 << 14;

/// The MSI-X state of one function, and the device behind its MSI-X BAR: the table at 0, the pending bits in a page of
/// their own behind it (Windows' NVMe driver fails where they share a page).
pub struct Msix {
    vectors: Box<[Vector]>,
    enabled: AtomicBool,
    table: Mutex<Table>,
    pba_offset: u64,
}

struct Vector {
    source: Arc<dyn MsiSource>,
    /// Nothing may be sent: MSI-X disabled, the function or the vector masked.
    masked: AtomicBool,
    pending: AtomicBool,
}

#[derive(Default)]
struct Table {
    control: u16,
    entries: Vec<Entry>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    message: MsiMessage,
    masked: bool,
    /// What the source was told last.
    #[serde(skip)]
    programmed: Option<MsiMessage>,
}

impl Entry {
    /// After reset every vector is masked (§6.8.2.9).
    const POWER_ON: Self = Self { message: MsiMessage { address: 0, data: 0 }, masked: true, programmed: None };
}

/// What a guest can have changed in an [`Msix`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MsixState {
    version: u16,
    control: u16,
    entries: Vec<Entry>,
    pending: Vec<bool>,
}

impl Msix {
    /// One vector per source.
    pub fn new(sources: Vec<Arc<dyn MsiSource>>) -> Result<Self, PciError> {
        if sources.len() > MAX_VECTORS {
            return Err(PciError::TooManyVectors { vectors: sources.len() });
        }
        let entries = vec![Entry::POWER_ON; sources.len()];
        let vectors: Box<[Vector]> = sources
            .into_iter()
            .map(|source| Vector { source, masked: AtomicBool::new(true), pending: AtomicBool::new(false) })
            .collect();
        let table_bytes = (vectors.len() as u64).saturating_mul(ENTRY_BYTES);
        Ok(Self {
            vectors,
            enabled: AtomicBool::new(false),
            table: Mutex::new(Table { control: 0, entries }),
            pba_offset: table_bytes.max(1).next_multiple_of(PAGE_BYTES),
        })
    }

    /// Number of vectors.
    pub fn len(&self) -> usize {
        self.vectors.len()
    }

    /// Whether the function has no vector, hence no MSI-X.
    pub fn is_empty(&self) -> bool {
        self.vectors.is_empty()
    }

    /// The BAR that holds table and pending bits.
    pub fn bar(&self, index: u8) -> BarSpec {
        let len = self.pba_offset.saturating_add(PAGE_BYTES).next_power_of_two();
        BarSpec { index, kind: BarKind::Memory32, len }
    }

    /// Capability id, body and writable bits of the capability for a table in BAR `index`.
    pub fn capability(&self, index: u8) -> (u8, [u8; 10], [u8; 2]) {
        let last = u16::try_from(self.vectors.len()).unwrap_or(0).saturating_sub(1);
        let mut body = [0; 10];
        let pba = self.pba_offset | u64::from(index);
        let fields = (u128::from(last)) | u128::from(index) << 16 | u128::from(pba) << 48;
        bytes::put(&mut body, fields as u64);
        if let Some(rest) = body.get_mut(8..) {
            bytes::put(rest, (fields >> 64) as u64);
        }
        (0x11, body, (ENABLE | FUNCTION_MASK).to_le_bytes())
    }

    /// Whether the guest uses MSI-X: INTx is silent then.
    pub fn enabled(&self) -> bool {
        self.enabled.load(SeqCst)
    }

    /// Takes over the message control register of the capability.
    pub fn set_control(&self, control: u16) {
        let control = control & (ENABLE | FUNCTION_MASK);
        let mut table = self.lock();
        if table.control != control {
            table.control = control;
            self.enabled.store(control & ENABLE != 0, SeqCst);
            self.update_all(&mut table);
        }
    }

    /// What vector `index` sends now: nothing while it is masked, and where there is no such vector.
    pub fn message(&self, index: u16) -> Option<MsiMessage> {
        self.lock().entries.get(usize::from(index)).and_then(|entry| entry.programmed)
    }

    /// Sends vector `index`, or sets its pending bit while it is masked. Takes no lock. An index without a vector is
    /// ignored.
    pub fn trigger(&self, index: u16) {
        if let Some(vector) = self.vectors.get(usize::from(index)) {
            vector.trigger();
        }
    }

    /// Power-on state: everything masked, nothing pending, no message.
    pub fn reset(&self) {
        let mut table = self.lock();
        self.enabled.store(false, SeqCst);
        table.control = 0;
        for (entry, vector) in table.entries.iter_mut().zip(&self.vectors) {
            *entry = Entry { programmed: entry.programmed, ..Entry::POWER_ON };
            vector.pending.store(false, SeqCst);
        }
        self.update_all(&mut table);
    }

    /// What a guest can have changed.
    pub fn save(&self) -> MsixState {
        let table = self.lock();
        let pending = self.vectors.iter().map(|vector| vector.pending.load(SeqCst)).collect();
        let entries = table.entries.iter().map(|entry| Entry { programmed: None, ..*entry }).collect();
        MsixState { version: 1, control: table.control, entries, pending }
    }

    /// Whether [`restore`](Self::restore) takes this state.
    pub(crate) fn check(&self, state: &MsixState) -> Result<(), StateError> {
        let what = "an msi-x table";
        if state.version != 1 {
            return Err(StateError { what, why: "its version is not 1" });
        }
        if state.entries.len() != self.len() || state.pending.len() != self.len() {
            return Err(StateError { what, why: "the number of vectors differs" });
        }
        Ok(())
    }

    /// Takes back a saved state and tells the sources; pending vectors that are not masked are sent. Nothing has changed
    /// where it is refused.
    pub fn restore(&self, state: &MsixState) -> Result<(), StateError> {
        self.check(state)?;
        let mut table = self.lock();
        table.control = state.control & (ENABLE | FUNCTION_MASK);
        self.enabled.store(table.control & ENABLE != 0, SeqCst);
        for (entry, saved) in table.entries.iter_mut().zip(&state.entries) {
            *entry = Entry { programmed: entry.programmed, ..*saved };
        }
        for (vector, pending) in self.vectors.iter().zip(&state.pending) {
            vector.pending.store(*pending, SeqCst);
        }
        self.update_all(&mut table);
        Ok(())
    }

    fn update_all(&self, table: &mut Table) {
        let control = table.control;
        for (entry, vector) in table.entries.iter_mut().zip(&self.vectors) {
            vector.update(entry, control);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Vector {
    fn trigger(&self) {
        // The guest may mask between the look and the send, and a source without a message drops what it is sent; it
        // may unmask between the look and the pending bit. Both are seen by looking again, so no interrupt is lost; one
        // may be sent twice, which drivers bear. The bound keeps a guest that flips the mask from holding a worker; the
        // pending bit stays set then.
        for _ in 0..16 {
            if !self.masked.load(SeqCst) {
                self.source.trigger();
                if !self.masked.load(SeqCst) {
                    return;
                }
            }
            self.pending.store(true, SeqCst);
            if self.masked.load(SeqCst) || !self.pending.swap(false, SeqCst) {
                return;
            }
        }
        self.pending.store(true, SeqCst);
    }

    /// Brings source and mask in line with the table. Called with the table locked.
    fn update(&self, entry: &mut Entry, control: u16) {
        let open = control & ENABLE != 0 && control & FUNCTION_MASK == 0 && !entry.masked;
        let wanted = open.then_some(entry.message).filter(MsiMessage::is_interrupt);
        if !open {
            self.masked.store(true, SeqCst);
        }
        let changed = wanted != entry.programmed;
        if changed {
            entry.programmed = wanted;
            self.source.set_message(wanted);
        }
        if open && (self.masked.swap(false, SeqCst) || changed) && self.pending.swap(false, SeqCst) {
            self.source.trigger();
        }
    }
}

impl Entry {
    fn bytes(&self) -> [u8; 16] {
        let control = u128::from(self.masked) << 96;
        (u128::from(self.message.address) | u128::from(self.message.data) << 64 | control).to_le_bytes()
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let mut image = self.bytes();
        for (to, from) in image.iter_mut().skip(offset as usize & 15).zip(data) {
            *to = *from;
        }
        let value = u128::from_le_bytes(image);
        // The two low address bits are always zero (§6.8.2.6).
        self.message = MsiMessage { address: value as u64 & !3, data: (value >> 64) as u32 };
        self.masked = value >> 96 & 1 != 0;
    }
}

impl BusDevice for Msix {
    fn read(&self, offset: u64, data: &mut [u8]) -> Access {
        data.fill(0);
        if let Some(offset) = offset.checked_sub(self.pba_offset) {
            let first = usize::try_from(offset.saturating_mul(8)).unwrap_or(usize::MAX);
            for (byte, vectors) in data.iter_mut().zip(self.vectors.get(first..).unwrap_or_default().chunks(8)) {
                let pending = vectors.iter().rev().map(|vector| vector.pending.load(SeqCst));
                *byte = pending.fold(0, |bits, bit| bits << 1 | u8::from(bit));
            }
        } else if let Some(entry) = self.lock().entries.get((offset / ENTRY_BYTES) as usize) {
            bytes::copy_at(&entry.bytes(), offset % ENTRY_BYTES, data, 0);
        }
        Access::Done
    }

    fn write(&self, offset: u64, data: &[u8]) -> Access {
        // Aligned dwords and qwords only (§6.8.2): anything else would write half a field.
        let aligned = matches!(data.len(), 4 | 8) && offset.is_multiple_of(data.len() as u64);
        let mut table = self.lock();
        let control = table.control;
        let index = (offset / ENTRY_BYTES) as usize;
        if let Some((entry, vector)) = table.entries.get_mut(index).zip(self.vectors.get(index)).filter(|_| aligned) {
            entry.write(offset, data);
            vector.update(entry, control);
        }
        Access::Done
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Remembers every call, as a strict backend would see it.
    #[derive(Default)]
    pub(crate) struct FakeMsi {
        pub(crate) messages: Mutex<Vec<Option<MsiMessage>>>,
        pub(crate) sent: Mutex<Vec<MsiMessage>>,
    }

    impl MsiSource for FakeMsi {
        fn set_message(&self, message: Option<MsiMessage>) {
            self.messages.lock().unwrap().push(message);
        }
        fn trigger(&self) {
            if let Some(Some(message)) = self.messages.lock().unwrap().last() {
                self.sent.lock().unwrap().push(*message);
            }
        }
    }

    fn msix(vectors: usize) -> (Msix, Vec<Arc<FakeMsi>>) {
        let sources: Vec<_> = (0..vectors).map(|_| Arc::new(FakeMsi::default())).collect();
        let dynamic = sources.iter().map(|source| source.clone() as Arc<dyn MsiSource>).collect();
        (Msix::new(dynamic).unwrap(), sources)
    }

    fn write32(msix: &Msix, offset: u64, value: u32) {
        let _ = msix.write(offset, &value.to_le_bytes());
    }

    fn read(msix: &Msix, offset: u64, width: usize) -> u64 {
        let mut data = [0; 8];
        let _ = msix.read(offset, &mut data[..width]);
        u64::from_le_bytes(data)
    }

    fn program(msix: &Msix, vector: u64, data: u32) {
        write32(msix, vector * 16, 0xfee0_1000);
        write32(msix, vector * 16 + 4, 0);
        write32(msix, vector * 16 + 8, data);
        write32(msix, vector * 16 + 12, 0);
    }

    const MESSAGE: MsiMessage = MsiMessage { address: 0xfee0_1000, data: 0x4041 };

    #[test]
    fn the_capability_names_table_and_pending_bits_in_pages_of_their_own() {
        let (msix, _) = msix(3);
        let (id, body, writable) = msix.capability(1);
        assert_eq!((id, writable), (0x11, [0, 0xc0]));
        assert_eq!(body, [2, 0, 1, 0, 0, 0, 0x01, 0x10, 0, 0]);
        assert_eq!(msix.bar(1).len, 0x2000);
        let (large, _) = super::tests::msix(300);
        assert_eq!(large.capability(1).1[6..], [0x01, 0x20, 0, 0]);
        assert_eq!(large.bar(1).len, 0x4000);
    }

    #[test]
    fn more_vectors_than_msix_has_are_refused() {
        let source: Arc<dyn MsiSource> = Arc::new(FakeMsi::default());
        let error = Msix::new(vec![source; 2049]).err().unwrap();
        assert_eq!(error.to_string(), "2049 msi-x vectors are more than the 2048 that one function can have");
    }

    #[test]
    fn a_source_hears_a_message_once_enabled_and_unmasked_and_nothing_twice() {
        let (msix, sources) = msix(2);
        program(&msix, 0, 0x4041);
        assert!(sources[0].messages.lock().unwrap().is_empty(), "disabled");
        msix.set_control(0xc000);
        assert!(sources[0].messages.lock().unwrap().is_empty(), "function masked");
        msix.set_control(0x8000);
        msix.set_control(0x8000);
        program(&msix, 0, 0x4041);
        assert_eq!(*sources[0].messages.lock().unwrap(), [Some(MESSAGE)]);
        msix.set_control(0);
        assert_eq!(*sources[0].messages.lock().unwrap(), [Some(MESSAGE), None]);
        assert!(sources[1].messages.lock().unwrap().is_empty());
    }

    #[test]
    fn a_message_to_any_other_address_than_a_local_apics_is_dropped() {
        let (msix, sources) = msix(1);
        msix.set_control(0x8000);
        for address in [0u64, 0xfec0_0000, 0xfed0_0000, 0xfef0_0000, 0x1_fee0_0000, u64::MAX] {
            write32(&msix, 12, 1);
            write32(&msix, 0, address as u32);
            write32(&msix, 4, (address >> 32) as u32);
            write32(&msix, 8, 0x4041);
            write32(&msix, 12, 0);
            msix.trigger(0);
        }
        assert_eq!(sources[0].sent.lock().unwrap().len(), 0);
        program(&msix, 0, 0x4041);
        msix.trigger(0);
        assert_eq!(*sources[0].sent.lock().unwrap(), [MESSAGE]);
    }

    #[test]
    fn a_source_without_a_message_is_not_told_again_that_it_has_none() {
        let (msix, sources) = msix(1);
        write32(&msix, 12, 0);
        msix.set_control(0x8000);
        write32(&msix, 0, 0xfec0_0000);
        msix.set_control(0);
        assert_eq!(*sources[0].messages.lock().unwrap(), []);
        program(&msix, 0, 0x4041);
        msix.set_control(0x8000);
        write32(&msix, 0, 0xfec0_0000);
        msix.set_control(0);
        assert_eq!(*sources[0].messages.lock().unwrap(), [Some(MESSAGE), None]);
    }

    #[test]
    fn an_interrupt_under_each_mask_is_pending_and_goes_out_once_on_unmask() {
        let (msix, sources) = msix(10);
        msix.set_control(0x8000);
        program(&msix, 9, 0x4041);
        let sent = || sources[9].sent.lock().unwrap().len();
        msix.trigger(9);
        assert_eq!((sent(), read(&msix, 0x1000, 8)), (1, 0));

        write32(&msix, 9 * 16 + 12, 1);
        msix.trigger(9);
        msix.trigger(9);
        assert_eq!((sent(), read(&msix, 0x1000, 8)), (1, 1 << 9));
        assert_eq!(read(&msix, 0x1001, 1), 2);
        write32(&msix, 9 * 16 + 12, 0);
        assert_eq!((sent(), read(&msix, 0x1000, 8)), (2, 0));

        msix.set_control(0xc000);
        msix.trigger(9);
        assert_eq!((sent(), read(&msix, 0x1000, 4)), (2, 1 << 9));
        msix.set_control(0x8000);
        assert_eq!((sent(), read(&msix, 0x1000, 4)), (3, 0));
    }

    /// A source at which the guest masks the vector just before the message goes out.
    #[derive(Default)]
    struct MaskedUnderway {
        msix: std::sync::OnceLock<std::sync::Weak<Msix>>,
        inner: FakeMsi,
        masks: std::sync::atomic::AtomicBool,
    }

    impl MsiSource for MaskedUnderway {
        fn set_message(&self, message: Option<MsiMessage>) {
            self.inner.set_message(message);
        }
        fn trigger(&self) {
            if self.masks.swap(false, SeqCst) {
                write32(&self.msix.get().unwrap().upgrade().unwrap(), 12, 1);
            }
            self.inner.trigger();
        }
    }

    #[test]
    fn an_interrupt_masked_on_its_way_out_is_pending_instead_of_lost() {
        let source = Arc::new(MaskedUnderway::default());
        let msix = Arc::new(Msix::new(vec![source.clone()]).unwrap());
        source.msix.set(Arc::downgrade(&msix)).unwrap();
        msix.set_control(0x8000);
        program(&msix, 0, 0x4041);
        source.masks.store(true, SeqCst);
        msix.trigger(0);
        assert_eq!((source.inner.sent.lock().unwrap().len(), read(&msix, 0x1000, 4)), (0, 1));
        write32(&msix, 12, 0);
        assert_eq!(*source.inner.sent.lock().unwrap(), [MESSAGE]);
    }

    #[test]
    fn an_interrupt_that_meets_an_unmask_is_sent() {
        const ROUNDS: u32 = 20_000;
        let (msix, sources) = msix(1);
        msix.set_control(0x8000);
        program(&msix, 0, 0x4041);
        let mut wrong = None;
        let round = std::sync::atomic::AtomicU32::new(0);
        let finished = std::sync::atomic::AtomicU32::new(0);
        let wait = |counter: &std::sync::atomic::AtomicU32, value| {
            while counter.load(SeqCst) < value {
                std::thread::yield_now();
            }
        };
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for number in 1..=ROUNDS {
                    wait(&round, number);
                    // Different distances between the two threads, so that every pair of steps meets some time.
                    (0..number % 64).for_each(|_| std::hint::spin_loop());
                    msix.trigger(0);
                    finished.store(number, SeqCst);
                }
            });
            for number in 1..=ROUNDS {
                write32(&msix, 12, 1);
                sources[0].sent.lock().unwrap().clear();
                round.store(number, SeqCst);
                (0..number % 61).for_each(|_| std::hint::spin_loop());
                write32(&msix, 12, 0);
                wait(&finished, number);
                if sources[0].sent.lock().unwrap().len() != 1 {
                    wrong.get_or_insert(number);
                }
            }
        });
        assert_eq!(wrong, None, "the first round in which not exactly one message was sent");
    }

    #[test]
    fn the_table_takes_dwords_and_qwords_and_ignores_other_widths() {
        let (msix, _) = msix(1);
        let _ = msix.write(0, &0x1122_3344_fee0_1003u64.to_le_bytes());
        let _ = msix.write(8, &0x5566u64.to_le_bytes());
        assert_eq!(read(&msix, 0, 8), 0x1122_3344_fee0_1000);
        assert_eq!(read(&msix, 8, 8), 0x5566);
        for (offset, width) in [(0, 1), (0, 2), (2, 4), (4, 8), (1, 8), (15, 1)] {
            let _ = msix.write(offset, &[0xff; 8][..width]);
        }
        assert_eq!(read(&msix, 0, 8), 0x1122_3344_fee0_1000);
        assert_eq!(read(&msix, 8, 8), 0x5566);
        assert_eq!(read(&msix, 12, 8), 0, "a read across an entry's end");
    }

    #[test]
    fn accesses_outside_table_and_pending_bits_read_zero_and_change_nothing() {
        let (msix, _) = msix(1);
        for offset in [16, 0xff8, 0x1000, 0x1008, 0x1ff8, u64::MAX - 7] {
            let _ = msix.write(offset, &[0xff; 8]);
            assert_eq!(read(&msix, offset, 8), 0, "{offset:#x}");
        }
        msix.trigger(1);
        msix.trigger(0xffff);
    }

    #[test]
    fn reset_and_restore_reproduce_masks_messages_and_pending_bits() {
        let (msix, sources) = msix(2);
        msix.set_control(0x8000);
        program(&msix, 0, 0x4041);
        msix.trigger(1);
        let saved = msix.save();
        msix.reset();
        assert_eq!(sources[0].messages.lock().unwrap().last(), Some(&None));
        assert_eq!((read(&msix, 12, 4), read(&msix, 0x1000, 4), msix.enabled()), (1, 0, false));
        msix.restore(&saved).unwrap();
        assert_eq!(sources[0].messages.lock().unwrap().last(), Some(&Some(MESSAGE)));
        assert_eq!((msix.save(), read(&msix, 0x1000, 4)), (saved.clone(), 2));
        let (other, _) = super::tests::msix(3);
        assert!(other.restore(&saved).is_err());
    }

    proptest::proptest! {
        #[test]
        fn random_table_accesses_never_panic_and_sources_hear_only_changes(
            writes in proptest::collection::vec((0u64..0x3000, 0usize..4, 0u64.., 0u16..), 0..64),
        ) {
            let (msix, sources) = msix(5);
            for (offset, width, value, control) in writes {
                let _ = msix.write(offset, &value.to_le_bytes()[..1 << width]);
                msix.set_control(control);
                msix.trigger(control % 7);
                read(&msix, offset, 1 << width);
            }
            for source in sources {
                let messages = source.messages.lock().unwrap();
                proptest::prop_assert!(messages.first() != Some(&None));
                proptest::prop_assert!(messages.windows(2).all(|pair| pair[0] != pair[1]));
            }
        }
    }
}
