//! The memory that the system's tools show as a process's arguments.

use std::ffi::{CStr, c_char};

/// Where psinfo_t (proc(5)) of a 64-bit process has the number of its arguments, and the address of their vector.
const COUNT_AT: usize = 236;
const VECTOR_AT: usize = 240;

/// Does something with each argument of the process where it lies. With none where the zone has no /proc.
///
/// Call it while the process has one thread, and when nothing refers to its arguments any more.
pub fn each_argument(what: &mut dyn FnMut(&mut [u8])) {
    let Ok(info) = std::fs::read("/proc/self/psinfo") else { return };
    let word = |at: usize| info.get(at..at + 8).and_then(|bytes| bytes.try_into().ok()).map(usize::from_ne_bytes);
    let count = info.get(COUNT_AT..COUNT_AT + 4).and_then(|bytes| bytes.try_into().ok()).map(i32::from_ne_bytes);
    let (Some(count), Some(vector)) = (count, word(VECTOR_AT)) else { return };
    let vector = vector as *const *mut c_char;
    if vector.is_null() {
        return;
    }
    for index in 0..usize::try_from(count).unwrap_or(0) {
        // SAFETY: the system put the vector there with as many pointers, each to a text with its end, for this process to
        // use as it likes. The process has one thread, and Rust hands out copies only.
        unsafe {
            let argument = *vector.add(index);
            if argument.is_null() {
                return;
            }
            let len = CStr::from_ptr(argument).count_bytes();
            what(std::slice::from_raw_parts_mut(argument.cast(), len));
        }
    }
}
