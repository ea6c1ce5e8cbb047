//! The machine as the guest sees it: ports and physical addresses.
//!
//! These functions are safe to call because a guest owns its whole machine: the first 4 GiB are mapped onto themselves
//! and nobody else runs on it. What a wrong address breaks is this guest.

use core::arch::asm;

macro_rules! port_access {
    ($read:ident, $write:ident, $type:ty, $register:tt) => {
        /// Reads from a port.
        #[must_use]
        pub fn $read(port: u16) -> $type {
            let value: $type;
            // SAFETY: port input touches no memory of this program (see the module's text).
            unsafe {
                asm!(concat!("in ", $register, ", dx"), out($register) value, in("dx") port, options(nostack, preserves_flags));
            }
            value
        }

        /// Writes to a port.
        pub fn $write(port: u16, value: $type) {
            // SAFETY: as above; devices that write to memory get addresses of the pool only.
            unsafe {
                asm!(concat!("out dx, ", $register), in("dx") port, in($register) value, options(nostack, preserves_flags));
            }
        }
    };
}

port_access!(in8, out8, u8, "al");
port_access!(in16, out16, u16, "ax");
port_access!(in32, out32, u32, "eax");

/// Reads `count` bytes from a port with one string instruction.
pub fn in8_string(port: u16, into: &mut [u8]) {
    // SAFETY: the instruction writes exactly the slice.
    unsafe {
        asm!("rep insb", in("dx") port, inout("rdi") into.as_mut_ptr() => _, inout("rcx") into.len() => _, options(nostack, preserves_flags));
    }
}

/// Writes bytes to a port with one string instruction.
pub fn out8_string(port: u16, from: &[u8]) {
    // SAFETY: the instruction reads exactly the slice.
    unsafe {
        asm!("rep outsb", in("dx") port, inout("rsi") from.as_ptr() => _, inout("rcx") from.len() => _, options(nostack, preserves_flags, readonly));
    }
}

/// Loads a value from a physical address below 4 GiB, in one access of its width.
#[must_use]
pub fn load<T: Copy>(address: u64) -> T {
    assert!(address < 1 << 32, "address {address:#x} is not mapped");
    // SAFETY: the address is mapped (checked), and every caller uses an integer type.
    unsafe { (address as *const T).read_volatile() }
}

/// Loads a value that may not be aligned: firmware tables promise nothing.
#[must_use]
pub fn load_unaligned<T: Copy>(address: u64) -> T {
    assert!(address < 1 << 32, "address {address:#x} is not mapped");
    // SAFETY: the address is mapped (checked), and every caller uses an integer type.
    unsafe { (address as *const T).read_unaligned() }
}

/// Stores a value to a physical address below 4 GiB, in one access of its width.
pub fn store<T: Copy>(address: u64, value: T) {
    assert!(address < 1 << 32, "address {address:#x} is not mapped");
    // SAFETY: the address is mapped (checked); callers use device memory or the pool.
    unsafe { (address as *mut T).write_volatile(value) }
}

/// Reads a model-specific register.
#[must_use]
pub fn rdmsr(register: u32) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: reading a register this CPU has changes nothing.
    unsafe {
        asm!("rdmsr", in("ecx") register, out("eax") low, out("edx") high, options(nomem, nostack, preserves_flags));
    }
    u64::from(high) << 32 | u64::from(low)
}

/// Lets interrupts in.
pub fn interrupts_on() {
    // SAFETY: every vector that can fire has a gate before this is called.
    unsafe { asm!("sti", options(nostack)) }
}

/// Keeps interrupts out.
pub fn interrupts_off() {
    // SAFETY: only delays interrupts.
    unsafe { asm!("cli", options(nostack)) }
}

/// Lets interrupts in and sleeps until one comes. Interrupts must be off before: then none can slip in between the check
/// of a condition and the sleep, because `sti` holds them back for one more instruction.
pub fn interrupts_on_and_halt() {
    // SAFETY: as `interrupts_on`.
    unsafe { asm!("sti", "hlt", options(nostack)) }
}

/// Stops this CPU for ever.
pub fn stop() -> ! {
    loop {
        // SAFETY: nothing runs after it.
        unsafe { asm!("cli", "hlt", options(nostack)) }
    }
}

/// Shuts the CPU down by a fault that has no handler.
pub fn triple_fault() -> ! {
    let empty = [0_u8; 10];
    // SAFETY: an interrupt table without entries is the point.
    unsafe { asm!("cli", "lidt [{}]", "ud2", in(reg) &raw const empty, options(noreturn)) }
}
