//! The runtime of zvmm's tiny guests: bare-metal programs of integer code that run on any `/dev/kvm`, software backends
//! without SSE included.
//!
//! A guest is a binary with `guests::guest!(main);`. It prints `PASS <what>` for everything it proved, or one line
//! `FAIL: <why>`, and ends by turning the machine off.

#![no_std]

extern crate alloc;

pub mod acpi;
mod boot;
pub mod interrupts;
pub mod machine;
pub mod pci;
pub mod pool;
pub mod pvh;
pub mod serial;
pub mod virtio;

use core::panic::PanicInfo;
use core::sync::atomic::{AtomicBool, Ordering};

/// Prints why the guest failed and turns the machine off.
#[macro_export]
macro_rules! fail {
    ($($argument:tt)*) => {
        $crate::fail_with(format_args!($($argument)*))
    };
}

/// See [`fail!`].
pub fn fail_with(why: core::fmt::Arguments) -> ! {
    static FAILED: AtomicBool = AtomicBool::new(false);
    machine::interrupts_off();
    // Turning off reads tables: where those are what is wrong, it would fail again, for ever.
    if FAILED.swap(true, Ordering::Relaxed) {
        machine::stop();
    }
    println!("FAIL: {why}");
    acpi::power_off()
}

#[panic_handler]
fn panic(info: &PanicInfo) -> ! {
    match info.location() {
        Some(location) => fail!("{} ({}:{})", info.message(), location.file(), location.line()),
        None => fail!("{}", info.message()),
    }
}

/// Prepares the machine, runs a guest and turns the machine off. Called by what [`guest!`] makes.
pub fn run(start_info: u64, main: fn()) -> ! {
    serial::init();
    interrupts::init();
    pvh::init(start_info);
    main();
    acpi::power_off()
}

/// Makes `main` the guest's entry.
#[macro_export]
macro_rules! guest {
    ($main:path) => {
        /// Called by the entry code with the address of the PVH start info.
        #[unsafe(no_mangle)]
        extern "C" fn guest_start(start_info: u64) -> ! {
            $crate::run(start_info, $main)
        }
    };
}
