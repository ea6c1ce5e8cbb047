//! The process's own program, as it lies in memory.

use crate::os;

/// Has the system take the program's code and constants out of the process's memory. What is needed again is back from
/// the system's file cache with the next access, one that starts a process and is never run again is not. To be called once
/// everything has been set up: it changes nothing but how much memory the process has, and what the next accesses cost.
pub fn give_back() {
    os::image::give_back();
}
