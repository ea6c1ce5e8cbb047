//! `vmm/mem_*`: segments of memory, their place in the guest and in the process.

use zvmm::hypervisor::bhyve::VmFd;
use zvmm::hypervisor::bhyve::abi::*;

use crate::machine::*;

const PAGE: u64 = 4096;
/// Where the segments of these tests lie, out of the way of the guest's RAM.
const PLACE: u64 = 0x1000_0000;
const ALL: i32 = VM_PROT_READ | VM_PROT_WRITE | VM_PROT_EXECUTE;
const FIRST: i32 = 2;
const SECOND: i32 = 3;

fn unmap(fd: &VmFd, gpa: u64, len: u64) -> Result<i32, devices_host::sys::Errno> {
    raw(fd, VM_MUNMAP_MEMSEG, &mut vm_munmap { gpa, len: len as usize })
}

/// Reads, or writes, the first word of every page of a mapping.
struct Pages(devices_host::sys::Mapping);

impl Pages {
    fn of_guest(fd: &VmFd, gpa: u64, len: u64) -> Self {
        Self(fd.map(gpa, len as usize).unwrap())
    }

    fn of_segment(fd: &VmFd, segid: i32, len: u64) -> Self {
        Self(fd.map(fd.segment_offset(segid).unwrap(), len as usize).unwrap())
    }

    fn word(&self, page: u64) -> *mut u64 {
        assert!((page * PAGE) < self.0.len_bytes() as u64);
        // SAFETY: inside the mapping.
        unsafe { self.0.start().as_ptr().add((page * PAGE) as usize).cast() }
    }

    fn get(&self, page: u64) -> u64 {
        // SAFETY: a page of the mapping; no guest runs.
        unsafe { self.word(page).read_volatile() }
    }

    fn set(&self, page: u64, value: u64) {
        // SAFETY: as above.
        unsafe { self.word(page).write_volatile(value) }
    }
}

#[test]
fn a_segment_and_its_place_in_the_guest_are_the_same_memory() {
    const COUNT: u64 = 1024;
    let guest = Guest::bare();
    let fd = guest.fd();
    fd.alloc_segment(FIRST, COUNT * PAGE, "test").unwrap();
    let segment = Pages::of_segment(fd, FIRST, COUNT * PAGE);
    (0..COUNT).for_each(|page| segment.set(page, page));
    fd.map_segment(PLACE, FIRST, COUNT * PAGE, ALL, 0).unwrap();
    let place = Pages::of_guest(fd, PLACE, COUNT * PAGE);
    for page in 0..COUNT {
        assert_eq!(place.get(page), page);
        place.set(page, 2 * page);
    }
    assert!((0..COUNT).all(|page| segment.get(page) == 2 * page));
    drop((segment, place));
    guest.finish(&[]);
}

#[test]
fn ram_and_device_memory_side_by_side_are_seen_as_one_by_the_process() {
    let guest = Guest::bare();
    let fd = guest.fd();
    fd.alloc_segment(FIRST, 2 * PAGE, "").unwrap();
    fd.alloc_segment(SECOND, 2 * PAGE, "bootrom").unwrap();
    assert_eq!(fd.segment(FIRST).unwrap(), Some((2 * PAGE, true)));
    assert_eq!(fd.segment(SECOND).unwrap(), Some((2 * PAGE, false)));
    fd.map_segment(PLACE, FIRST, 2 * PAGE, ALL, 0).unwrap();
    fd.map_segment(PLACE + 2 * PAGE, SECOND, 2 * PAGE, VM_PROT_READ, 0).unwrap();
    let (ram, rom) = (Pages::of_segment(fd, FIRST, 2 * PAGE), Pages::of_segment(fd, SECOND, 2 * PAGE));
    ram.set(1, 0x1111);
    rom.set(0, 0x2222);
    rom.set(1, 0x3333);
    let whole = Pages::of_guest(fd, PLACE, 4 * PAGE);
    assert_eq!([whole.get(0), whole.get(1), whole.get(2), whole.get(3)], [0, 0x1111, 0x2222, 0x3333]);
    drop((ram, rom, whole));
    // The backend maps for writing, which a ROM's place in the guest is not for.
    guest.finish(&["bhyve-mmap-write"]);
}

#[test]
fn memory_is_mapped_and_unmapped_across_the_edge_of_the_first_512_gib() {
    const EDGE: u64 = 512 << 30;
    let guest = Guest::bare();
    let fd = guest.fd();
    fd.alloc_segment(FIRST, 4 << 20, "test").unwrap();
    fd.map_segment(EDGE - PAGE, FIRST, 4 << 20, ALL, 0).unwrap();
    let place = Pages::of_guest(fd, EDGE - PAGE, 4 << 20);
    place.set(0, 1);
    place.set(1, 2);
    let segment = Pages::of_segment(fd, FIRST, 4 << 20);
    assert_eq!([segment.get(0), segment.get(1)], [1, 2]);
    drop((place, segment));
    unmap(fd, EDGE - PAGE, 4 << 20).unwrap();
    assert!(fd.next_map(EDGE - PAGE).unwrap().is_none());
    guest.finish(&[]);
}

#[test]
fn a_segment_that_is_unmapped_takes_its_neighbour_nothing() {
    const HALF: u64 = 256 * PAGE;
    // mov eax, [PLACE + HALF]; out eax; mov eax, [PLACE]; out eax
    let mut guest = Guest::with_code(&[&[0xa1, 0, 0, 0x10, 0x10, 0xe7, 0x80, 0xa1, 0, 0, 0, 0x10, 0xe7, 0x80]]);
    let fd = guest.vm.fd().clone();
    for (segid, gpa) in [(FIRST, PLACE), (SECOND, PLACE + HALF)] {
        fd.alloc_segment(segid, HALF, "test").unwrap();
        fd.map_segment(gpa, segid, HALF, ALL, 0).unwrap();
    }
    let whole = Pages::of_guest(&fd, PLACE, 2 * HALF);
    (0..512).for_each(|page| whole.set(page, 0xff));
    drop(whole);
    unmap(&fd, PLACE, HALF).unwrap();
    let upper = Pages::of_guest(&fd, PLACE + HALF, HALF);
    assert!((0..256).all(|page| upper.get(page) == 0xff));
    upper.set(0, 0xee);
    drop(upper);
    // And for the guest there is nothing where the lower one was.
    let mut devices = Devices { memory: [0x7777].into(), ..Devices::default() };
    assert_eq!(guest.told(&mut devices), [0xee, 0x7777]);
    assert_eq!(devices.reads, [(PLACE, 4)]);
    unmap(&fd, PLACE + HALF, HALF).unwrap();
    assert!(unmap(&fd, PLACE + HALF, HALF).is_err(), "twice");
    drop(fd);
    guest.finish(&["bhyve-unmap-exact"]);
}
