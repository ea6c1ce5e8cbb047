//! What a VMM needs of the host's memory beside its guest's.

use std::{fs, io};

/// Mappings of at least this size are guest memory.
const GUEST_KIB: u64 = 100 * 1024;

/// Memory of a process by whose it is, KiB.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Memory {
    /// In nobody else's use: what would be free without the process.
    pub private_kib: u64,
    /// The part of it that is no file's.
    pub anonymous_kib: u64,
    /// With its share of what others use, too.
    pub proportional_kib: u64,
    /// The guest's (mappings of at least 100 MiB), with its share of what others use.
    pub guest_kib: u64,
}

impl Memory {
    /// That of a process.
    ///
    /// # Errors
    /// When it is gone.
    pub fn of(pid: u32) -> io::Result<Self> {
        fs::read_to_string(format!("/proc/{pid}/smaps")).map(|maps| Self::of_maps(&maps))
    }

    fn of_maps(maps: &str) -> Self {
        let (mut sum, mut size_kib) = (Self::default(), 0);
        for line in maps.lines() {
            let mut words = line.split_whitespace();
            let (Some(key), Some(value)) = (words.next(), words.next()) else { continue };
            let Ok(kib) = value.parse::<u64>() else { continue };
            let is_guest = size_kib >= GUEST_KIB;
            match key {
                "Size:" => size_kib = kib,
                "Pss:" if is_guest => sum.guest_kib += kib,
                "Pss:" => sum.proportional_kib += kib,
                "Private_Clean:" | "Private_Dirty:" if !is_guest => sum.private_kib += kib,
                "Anonymous:" if !is_guest => sum.anonymous_kib += kib,
                _ => {}
            }
        }
        sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAPS: &str = "\
7f00-7f10 rw-p 00000000 00:00 0
Size:             262144 kB
Pss:                4096 kB
Private_Dirty:      4096 kB
Anonymous:          4096 kB
5500-5510 r-xp 00001000 08:01 77 /bin/zvmm
Size:                800 kB
Pss:                 300 kB
Private_Clean:       200 kB
Private_Dirty:         4 kB
Anonymous:             4 kB
7f20-7f30 rw-p 00000000 00:00 0 [stack]
Size:                132 kB
Pss:                  24 kB
Private_Dirty:        24 kB
Anonymous:            24 kB
";

    #[test]
    fn guest_memory_is_counted_apart() {
        let memory = Memory { private_kib: 228, anonymous_kib: 28, proportional_kib: 324, guest_kib: 4096 };
        assert_eq!(Memory::of_maps(MAPS), memory);
    }
}
