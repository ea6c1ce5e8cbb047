//! Kernel files from anywhere: bzImage, ELF and PVH, through the two functions the machine uses.
//!
//! Oracles: no panic; a bounded amount is read before anything is decided; a plan lies inside RAM, the initrd beside the
//! kernel; and what a second, much simpler reader of the same file expects in memory is there, byte for byte, with zeroes
//! behind it, and nothing else outside the structures below 1 MiB was written.

mod file;
mod memory;

use std::io::{Cursor, Read, Seek, SeekFrom};

use arch::boot::{self, Placement, Protocol};
use arch::layout::{CMDLINE, LEGACY_HOLE_END, PAGE_BYTES, PVH_START_INFO, ZERO_PAGE};

use file::Input;

use crate::stats;
use memory::Ram;

/// Most bytes of headers that are read of a file: notes are the largest part, and bounded.
const MOST_READ: u64 = 128 * (56 + (64 << 10)) + 4096;

/// Counts what is read.
struct Counting<'a> {
    file: Cursor<&'a [u8]>,
    read: u64,
}

impl Read for Counting<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> std::io::Result<usize> {
        let read = self.file.read(bytes)?;
        self.read += read as u64;
        Ok(read)
    }
}

impl Seek for Counting<'_> {
    fn seek(&mut self, to: SeekFrom) -> std::io::Result<u64> {
        self.file.seek(to)
    }
}

/// Loads the file the input describes.
///
/// # Panics
/// On a finding.
pub fn run(data: &[u8]) {
    let Ok(input) = Input::read(data) else { return };
    stats::operations(1);
    memory::with(|ram| load(&input, ram));
}

fn load(input: &Input, ram: &Ram) {
    let mut counting = Counting { file: Cursor::new(&input.file), read: 0 };
    let plan = boot::inspect(&mut counting, input.initrd_bytes, &input.cmdline, &ram.layout, input.wanted);
    assert!(counting.read <= MOST_READ, "{} bytes were read of headers", counting.read);
    let plan = match plan {
        Ok(plan) => plan,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    let low_end = ram.layout.low_ram_end();
    assert!((LEGACY_HOLE_END..=low_end).contains(&plan.kernel_end()), "the kernel ends at {:#x}", plan.kernel_end());
    assert!((LEGACY_HOLE_END..plan.kernel_end()).contains(&plan.entry()), "entry at {:#x}", plan.entry());
    if let Some(initrd) = plan.initrd() {
        assert!(initrd.start.is_multiple_of(PAGE_BYTES));
        let low = initrd.start >= plan.kernel_end() && initrd.end() <= low_end;
        let high =
            ram.layout.high_ram().is_some_and(|high| initrd.start >= high.gpa && initrd.end() <= high.gpa + high.len);
        assert!(low || high, "initrd at {:#x} to {:#x}", initrd.start, initrd.end());
    }

    let initrd: Vec<u8> = (0..input.initrd_file_bytes).map(|at| (at * 7 + 3) as u8).collect();
    let mut initrd_file = input.initrd_bytes.map(|_| Cursor::new(&initrd));
    let placement = Placement { rsdp: Some(0xe_0000), ecam: input.ecam, reused_memory: true };
    let placed = boot::place(&plan, placement, &ram.memory, &mut Cursor::new(&input.file), initrd_file.as_mut());
    // Whatever came of it: nothing is written outside of what was planned.
    let kernel = LEGACY_HOLE_END..plan.kernel_end();
    let initrd_range = plan.initrd().map_or(0..0, |range| range.start..range.end());
    ram.check_written(|page| {
        let meets = |range: &std::ops::Range<u64>| page < range.end && range.start < page + PAGE_BYTES;
        page < LEGACY_HOLE_END || meets(&kernel) || meets(&initrd_range)
    });
    let Ok(loaded) = placed else {
        // The only reason there is: an initrd that is shorter than it was.
        return assert!(input.initrd_bytes.is_some_and(|planned| planned > initrd.len() as u64), "{placed:?}");
    };
    assert_eq!((loaded.entry, loaded.protocol), (plan.entry(), plan.protocol()));
    let params = if loaded.protocol == Protocol::Pvh { PVH_START_INFO } else { ZERO_PAGE };
    assert_eq!(loaded.params, params);
    for (gpa, expected, zeroes) in file::segments(&input.file) {
        ram.check_content(gpa, expected, zeroes);
    }
    if let Some(range) = plan.initrd() {
        ram.check_content(range.start, &initrd[..range.len as usize], 0);
    }
    let mut cmdline = input.cmdline.as_bytes().to_vec();
    cmdline.push(0);
    ram.check_content(CMDLINE, &cmdline, 0);
    let _ = loaded.boot_cpu();
}

/// What the file is.
#[must_use]
pub fn explain(data: &[u8]) -> String {
    match Input::read(data) {
        Ok(input) => input.explain(),
        Err(_) => "too short to describe a file".to_owned(),
    }
}
