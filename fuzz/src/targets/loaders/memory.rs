//! Guest memory that knows which of its pages were written, full of what a guest left behind.

use std::cell::OnceCell;

use arch::layout::{MemoryLayout, PAGE_BYTES};
use vm_memory::bitmap::{AtomicBitmap, Bitmap as _};
use vm_memory::{
    Bytes as _, GuestAddress, GuestMemoryBackend as _, GuestMemoryMmap, GuestMemoryRegion as _, MmapRegion,
};

/// What memory is full of before.
const LEFT: [u8; PAGE_BYTES as usize] = [0xa5; PAGE_BYTES as usize];

/// 4 MiB below and 2 MiB above 4 GiB.
pub struct Ram {
    pub layout: MemoryLayout,
    pub memory: GuestMemoryMmap<AtomicBitmap>,
}

thread_local! {
    static RAM: OnceCell<Ram> = const { OnceCell::new() };
}

/// Runs with memory as a guest that is being reset left it; the same each time.
pub fn with(run: impl FnOnce(&Ram)) {
    RAM.with(|ram| {
        let ram = ram.get_or_init(Ram::new);
        run(ram);
        ram.forget();
    });
}

impl Ram {
    fn new() -> Self {
        let layout = MemoryLayout::with_split(6 << 20, 46, 4 << 20).unwrap();
        let ranges: Vec<_> = layout.ram().iter().map(|range| (GuestAddress(range.gpa), range.len as usize)).collect();
        let ram = Self { layout, memory: GuestMemoryMmap::from_ranges(&ranges).unwrap() };
        for (start, len) in ranges {
            (0..len as u64).step_by(LEFT.len()).for_each(|at| ram.fill(GuestAddress(start.0 + at)));
        }
        ram.forget();
        ram
    }

    fn fill(&self, page: GuestAddress) {
        self.memory.write_slice(&LEFT, page).unwrap();
    }

    fn written(&self) -> Vec<u64> {
        let mut written = Vec::new();
        for region in self.memory.iter() {
            let pages = (0..region.len()).step_by(PAGE_BYTES as usize);
            written
                .extend(pages.filter(|at| region.bitmap().dirty_at(*at as usize)).map(|at| region.start_addr().0 + at));
        }
        written
    }

    /// Every page that was written may have been.
    pub fn check_written(&self, allowed: impl Fn(u64) -> bool) {
        for page in self.written() {
            assert!(allowed(page), "the page at {page:#x} was written");
        }
    }

    /// Memory at `gpa` is `content`, with zeroes behind it.
    pub fn check_content(&self, gpa: u64, content: &[u8], zeroes: u64) {
        let mut found = vec![0; content.len() + zeroes as usize];
        self.memory.read_slice(&mut found, GuestAddress(gpa)).unwrap();
        let (start, behind) = found.split_at(content.len());
        assert!(start == content, "what is at {gpa:#x} is not what is in the file");
        assert!(behind.iter().all(|byte| *byte == 0), "what is behind {gpa:#x} is not zero");
    }

    /// Back to how it was.
    fn forget(&self) {
        for page in self.written() {
            self.fill(GuestAddress(page));
        }
        for region in self.memory.iter() {
            let mapping: &MmapRegion<AtomicBitmap> = region;
            mapping.bitmap().reset();
        }
    }
}
