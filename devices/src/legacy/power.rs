//! Where a guest's wish to end or begin anew goes.

/// How a guest asked for a reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ResetSource {
    /// Port 0xCF9, which is also the ACPI reset register.
    Port0Cf9,
    /// Port 0x92.
    Port92,
    /// The keyboard controller.
    Keyboard,
}

/// Told by devices on vCPU threads; never blocks, so the access that asked still completes.
pub trait PowerSink: Send + Sync {
    /// The guest entered ACPI S5.
    fn power_off(&self);

    /// The guest wants to be reset.
    fn reset(&self, source: ResetSource);

    /// The guest's kernel panicked; it may still go on for ever, or reset.
    fn panicked(&self);

    /// The guest's kernel panicked and starts its crash kernel: the guest goes on to write its dump.
    fn crash_kernel_loaded(&self) {}
}

/// Remembers what it was told: for tests and the fuzzer.
#[derive(Debug, Default)]
pub struct PowerLog {
    events: std::sync::Mutex<Vec<Option<ResetSource>>>,
    panics: std::sync::atomic::AtomicUsize,
    crash_kernels: std::sync::atomic::AtomicUsize,
}

impl PowerLog {
    /// What it was told since the last call: resets by source, `None` for power-off.
    pub fn take(&self) -> Vec<Option<ResetSource>> {
        std::mem::take(&mut super::lock(&self.events))
    }

    /// Panics, and crash kernels started, since the last call.
    pub fn take_panics(&self) -> (usize, usize) {
        use std::sync::atomic::Ordering::Relaxed;
        (self.panics.swap(0, Relaxed), self.crash_kernels.swap(0, Relaxed))
    }
}

impl PowerSink for PowerLog {
    fn power_off(&self) {
        super::lock(&self.events).push(None);
    }

    fn reset(&self, source: ResetSource) {
        super::lock(&self.events).push(Some(source));
    }

    fn panicked(&self) {
        self.panics.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    }

    fn crash_kernel_loaded(&self) {
        self.crash_kernels.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    }
}
