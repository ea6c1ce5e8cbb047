//! Ports and device memory, in single accesses of any width at any alignment, and time.

use std::arch::asm;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};

/// Lets this process use all ports.
///
/// # Errors
/// Where the kernel does not.
pub fn open_ports() -> anyhow::Result<()> {
    // SAFETY: changes this process's privileges only.
    ensure!(unsafe { libc::iopl(3) } == 0, "iopl: {}", std::io::Error::last_os_error());
    Ok(())
}

/// Reads from a port in one access of 1, 2 or 4 bytes.
pub fn read_port(port: u16, width: usize) -> u32 {
    let value: u32;
    // SAFETY: port input touches no memory of this program.
    unsafe {
        match width {
            1 => asm!("xor eax, eax", "in al, dx", out("eax") value, in("dx") port, options(nostack)),
            2 => asm!("xor eax, eax", "in ax, dx", out("eax") value, in("dx") port, options(nostack)),
            _ => asm!("in eax, dx", out("eax") value, in("dx") port, options(nostack)),
        }
    }
    value
}

/// Writes to a port in one access of 1, 2 or 4 bytes.
pub fn write_port(port: u16, width: usize, value: u32) {
    // SAFETY: whoever writes to a device's port is about to attack it; what the device may write to are this program's
    // huge pages, which nothing of Rust's lives in.
    unsafe {
        match width {
            1 => asm!("out dx, al", in("dx") port, in("eax") value, options(nostack)),
            2 => asm!("out dx, ax", in("dx") port, in("eax") value, options(nostack)),
            _ => asm!("out dx, eax", in("dx") port, in("eax") value, options(nostack)),
        }
    }
}

/// Device memory mapped into this process.
pub struct Mapping {
    base: *mut u8,
    len: usize,
}

// SAFETY: every access is one instruction on memory that no Rust object lies in; what two CPUs at once do to a device is
// the point.
unsafe impl Sync for Mapping {}
// SAFETY: the mapping belongs to the process, not to a thread.
unsafe impl Send for Mapping {}

impl Mapping {
    /// Maps `len` bytes of a file from `offset` on.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn new(path: &str, offset: u64, len: usize) -> anyhow::Result<Self> {
        use std::os::fd::AsRawFd as _;
        use std::os::unix::fs::OpenOptionsExt as _;
        let mut options = std::fs::OpenOptions::new();
        let file = options.read(true).write(true).custom_flags(libc::O_SYNC).open(path);
        let file = file.with_context(|| format!("cannot open {path}"))?;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a fresh mapping that no Rust object lies in.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                protection,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                i64::try_from(offset)?,
            )
        };
        ensure!(base != libc::MAP_FAILED, "cannot map {path}: {}", std::io::Error::last_os_error());
        Ok(Self { base: base.cast(), len })
    }

    /// Its length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    fn at(&self, offset: usize, width: usize) -> *mut u8 {
        assert!(offset + width <= self.len, "an access of {width} bytes at {offset:#x} leaves the mapping");
        // SAFETY: inside the mapping, as was just checked.
        unsafe { self.base.add(offset) }
    }

    /// Reads 1, 2, 4 or 8 bytes in one instruction.
    pub fn read(&self, offset: usize, width: usize) -> u64 {
        let from = self.at(offset, width);
        let value: u64;
        // SAFETY: the bytes are mapped.
        unsafe {
            match width {
                1 => asm!("movzx eax, byte ptr [{from}]", from = in(reg) from, out("rax") value, options(nostack)),
                2 => asm!("movzx eax, word ptr [{from}]", from = in(reg) from, out("rax") value, options(nostack)),
                4 => asm!("mov eax, dword ptr [{from}]", from = in(reg) from, out("rax") value, options(nostack)),
                _ => asm!("mov rax, qword ptr [{from}]", from = in(reg) from, out("rax") value, options(nostack)),
            }
        }
        value
    }

    /// Writes 1, 2, 4 or 8 bytes in one instruction.
    pub fn write(&self, offset: usize, width: usize, value: u64) {
        let to = self.at(offset, width);
        // SAFETY: the bytes are mapped; see `write_port` for what a device may do then.
        unsafe {
            match width {
                1 => asm!("mov byte ptr [{to}], al", to = in(reg) to, in("rax") value, options(nostack)),
                2 => asm!("mov word ptr [{to}], ax", to = in(reg) to, in("rax") value, options(nostack)),
                4 => asm!("mov dword ptr [{to}], eax", to = in(reg) to, in("rax") value, options(nostack)),
                _ => asm!("mov qword ptr [{to}], rax", to = in(reg) to, in("rax") value, options(nostack)),
            }
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is this object's own.
        unsafe { libc::munmap(self.base.cast(), self.len) };
    }
}

/// Waits until something is true, asleep in between: the device may need this CPU. `false` when it did not become so in time.
pub fn wait(limit: Duration, mut ready: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    loop {
        if ready() {
            return true;
        }
        if start.elapsed() > limit {
            return false;
        }
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// Passes time without sleeping.
pub fn spin(time: Duration) {
    let start = Instant::now();
    while start.elapsed() < time {
        std::hint::spin_loop();
    }
}

/// Sleeps.
pub fn sleep_ms(ms: u64) {
    std::thread::sleep(Duration::from_millis(ms));
}
