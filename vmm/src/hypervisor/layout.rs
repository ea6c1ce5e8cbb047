//! Every size, offset and number of the illumos interfaces, asserted at compile time.
//!
//! `layout.json` of a backend was printed by a C compiler from the kernel's headers; `layout-names.txt` beside it says
//! where each of its names is found here, and which are left out and why. The build script makes one assertion of each
//! fact: where either side changes, the build is red on every target.

#![allow(
    clippy::unnecessary_cast,
    clippy::undocumented_unsafe_blocks,
    clippy::cast_lossless,
    unused_parens,
    reason = "generated: the pointers are taken, never read, and stay inside a `Room`"
)]

use std::mem::{MaybeUninit, align_of, size_of};

include!(concat!(env!("OUT_DIR"), "/layout.rs"));

/// Room for a structure, and for what an array at its end has beyond it.
#[repr(C)]
struct Room<T> {
    structure: MaybeUninit<T>,
    beyond: MaybeUninit<[u8; 4096]>,
}

impl<T> Room<T> {
    const fn new() -> Self {
        Self { structure: MaybeUninit::uninit(), beyond: MaybeUninit::uninit() }
    }

    const fn start(&self) -> *const T {
        (&raw const *self).cast()
    }
}

/// An element of an array that may be declared shorter than it is.
const fn element<E, const N: usize>(array: *const [E; N], index: usize) -> *const E {
    array.cast::<E>().wrapping_add(index)
}

const fn field_at<T, F>(name: &str, it: *const T, field: *const F, offset: isize, size: usize) {
    // SAFETY: both lie in one `Room`.
    if unsafe { field.cast::<u8>().offset_from(it.cast::<u8>()) } != offset {
        panic!("{}", name);
    }
    if size_of::<F>() != size {
        panic!("{}", name);
    }
}

const fn size<T>(name: &str, size: usize) {
    if size_of::<T>() != size {
        panic!("{}", name);
    }
}

const fn align<T>(name: &str, align: usize) {
    if align_of::<T>() != align {
        panic!("{}", name);
    }
}

const fn number(name: &str, ours: i128, theirs: i128) {
    if ours != theirs {
        panic!("{}", name);
    }
}

const fn same_bits(name: &str, ours: i128, theirs: i128) {
    if ours as u32 != theirs as u32 {
        panic!("{}", name);
    }
}

#[cfg(test)]
#[path = "layout_tests.rs"]
mod tests;
