//! What devices and the process need from the operating system: wake-ups, polling, clocks, threads and signals, guest
//! RAM, disk engines, TAP devices, terminals.
//!
//! One leaf crate, so that everything above it is the same code on every system. What differs between systems sits in
//! `linux/` and `illumos/`, behind the one switch below; both offer the same items. Nothing here knows a device or a
//! hypervisor.

#[cfg(target_os = "linux")]
#[path = "linux/mod.rs"]
mod os;

#[cfg(target_os = "illumos")]
#[path = "illumos/mod.rs"]
mod os;

#[cfg(not(any(target_os = "linux", target_os = "illumos")))]
compile_error!("devices-host supports Linux and illumos");

pub mod bounce;
pub mod clock;
pub mod disk;
pub mod engine;
pub mod event;
pub mod heap;
pub mod image;
pub mod iovec;
#[cfg(any(target_os = "illumos", test))]
mod pipe;
pub mod poll;
mod pool;
pub mod ram;
pub mod random;
pub mod socket;
mod syncs;
pub mod sys;
pub mod tap;
pub mod thread;
pub mod tty;
pub mod zvol;

pub use event::Event;

/// Turns the `-1` of a libc call into the error it left in `errno`.
fn check<T: From<i8> + PartialEq>(result: T) -> std::io::Result<T> {
    if result == T::from(-1) { Err(std::io::Error::last_os_error()) } else { Ok(result) }
}

/// Like [`check`], and calls again while a signal interrupts the call.
fn retry<T: From<i8> + PartialEq>(mut call: impl FnMut() -> T) -> std::io::Result<T> {
    loop {
        match check(call()) {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}
