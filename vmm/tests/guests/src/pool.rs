//! Memory for drivers: a fixed pool, handed out from its start and never taken back. Addresses are physical, because
//! memory is mapped onto itself.

use core::alloc::{GlobalAlloc, Layout};
use core::cell::UnsafeCell;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicUsize, Ordering};

use virtio_drivers::{BufferDirection, Hal, PAGE_SIZE, PhysAddr};

const SIZE: usize = 4 << 20;

#[repr(C, align(4096))]
struct Memory(UnsafeCell<[u8; SIZE]>);

// SAFETY: the bytes are only reached through pointers that `take` hands out once.
unsafe impl Sync for Memory {}

// Outside `.bss`, so that nobody spends a millisecond on zeroing it.
#[unsafe(link_section = ".noinit.pool")]
static MEMORY: Memory = Memory(UnsafeCell::new([0; SIZE]));
static USED: AtomicUsize = AtomicUsize::new(0);

/// Takes zeroed memory from the pool.
#[must_use]
pub fn take(size: usize, align: usize) -> NonNull<u8> {
    let base = MEMORY.0.get() as usize;
    let start = (base + USED.load(Ordering::Relaxed)).next_multiple_of(align);
    let end = start + size;
    assert!(end <= base + SIZE, "the pool is empty");
    USED.store(end - base, Ordering::Relaxed);
    let start = start as *mut u8;
    // SAFETY: the range lies in the pool and was never handed out.
    unsafe { start.write_bytes(0, size) };
    NonNull::new(start).expect("the pool is not at address 0")
}

struct Heap;

// SAFETY: `take` returns memory of the size and alignment asked for, never twice.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        take(layout.size(), layout.align()).as_ptr()
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        take(layout.size(), layout.align()).as_ptr()
    }

    unsafe fn dealloc(&self, _: *mut u8, _: Layout) {}
}

#[global_allocator]
static HEAP: Heap = Heap;

/// What `virtio-drivers` needs from its machine.
pub struct Identity;

// SAFETY: `take` gives zeroed pages once; memory and device memory are mapped onto themselves, so physical addresses are
// virtual ones and nothing is shared or copied.
unsafe impl Hal for Identity {
    fn dma_alloc(pages: usize, _: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        let memory = take(pages * PAGE_SIZE, PAGE_SIZE);
        (memory.as_ptr() as PhysAddr, memory)
    }

    unsafe fn dma_dealloc(_: PhysAddr, _: NonNull<u8>, _: usize) -> i32 {
        0
    }

    unsafe fn mmio_phys_to_virt(address: PhysAddr, size: usize) -> NonNull<u8> {
        assert!(address + size as u64 <= 1 << 32, "device memory at {address:#x} is not mapped");
        NonNull::new(address as *mut u8).expect("a BAR is at address 0")
    }

    unsafe fn share(buffer: NonNull<[u8]>, _: BufferDirection) -> PhysAddr {
        buffer.cast::<u8>().as_ptr() as PhysAddr
    }

    unsafe fn unshare(_: PhysAddr, _: NonNull<[u8]>, _: BufferDirection) {}
}
