//! The program's segments on Linux.

use std::ffi::{c_int, c_void};

/// Bytes of a page of x86-64.
const PAGE_BYTES: usize = 4096;

/// Linux maps sixteen pages around each that is touched, so that after its start most of a program is in memory, and most
/// of that for nothing.
pub(crate) fn give_back() {
    // SAFETY: the function keeps to the contract of one that is called with each object of the process.
    unsafe { libc::dl_iterate_phdr(Some(give_back_first), std::ptr::null_mut()) };
}

/// Gives back what the first object, which is the program, never writes to.
unsafe extern "C" fn give_back_first(info: *mut libc::dl_phdr_info, _size: usize, _data: *mut c_void) -> c_int {
    // SAFETY: valid during the call, and so are the headers it counts.
    let (base, headers) = unsafe {
        let info = &*info;
        (info.dlpi_addr as usize, std::slice::from_raw_parts(info.dlpi_phdr, usize::from(info.dlpi_phnum)))
    };
    for header in headers {
        if header.p_type == libc::PT_LOAD && header.p_flags & libc::PF_W == 0 {
            let start = base.wrapping_add(header.p_vaddr as usize);
            let first = start & !(PAGE_BYTES - 1);
            let len = start.wrapping_add(header.p_memsz as usize).next_multiple_of(PAGE_BYTES) - first;
            // SAFETY: no page of the segment was ever written to, and it has its pages for itself, as its protection is
            // another one than its neighbours': an access finds what the file has, which is what was there.
            unsafe { libc::madvise(first as *mut c_void, len, libc::MADV_DONTNEED) };
        }
    }
    1
}

#[cfg(test)]
mod tests {
    /// Something in each kind of segment, and what its relocations and the process itself have written to others.
    static TEXT: &str = "constant";
    static TABLE: [&str; 2] = ["with", "relocations"];
    static WRITTEN: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(1);

    /// KiB of this program's file in the mappings it never writes to that are in memory.
    fn resident_kib() -> u64 {
        let program = std::env::current_exe().unwrap().display().to_string();
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let (mut ours, mut sum) = (false, 0);
        for line in maps.lines() {
            match line.split_whitespace().collect::<Vec<_>>()[..] {
                [range, access, .., path] if range.contains('-') => ours = path == program && !access.contains('w'),
                ["Rss:", kib, "kB"] if ours => sum += kib.parse::<u64>().unwrap(),
                _ => {}
            }
        }
        sum
    }

    #[test]
    fn a_program_that_gives_itself_back_has_less_of_it_in_memory_and_runs_on_as_it_was() {
        WRITTEN.store(7, std::sync::atomic::Ordering::Relaxed);
        let before = resident_kib();
        super::give_back();
        let after = resident_kib();
        assert!(after < before, "{after} KiB of {before} are still there");
        let written = WRITTEN.load(std::sync::atomic::Ordering::Relaxed);
        assert_eq!((TEXT, TABLE, written), ("constant", ["with", "relocations"], 7));
    }
}
