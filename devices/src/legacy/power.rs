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

/// Told by devices on vCPU threads; never blocks. The vCPU that asked goes on for a moment.
pub trait PowerSink: Send + Sync {
    /// The guest entered ACPI S5.
    fn power_off(&self);

    /// The guest wants to be reset.
    fn reset(&self, source: ResetSource);
}

/// Remembers what it was told: for tests and the fuzzer.
#[derive(Debug, Default)]
pub struct PowerLog(std::sync::Mutex<Vec<Option<ResetSource>>>);

impl PowerLog {
    /// What it was told since the last call: resets by source, `None` for power-off.
    pub fn take(&self) -> Vec<Option<ResetSource>> {
        std::mem::take(&mut super::lock(&self.0))
    }
}

impl PowerSink for PowerLog {
    fn power_off(&self) {
        super::lock(&self.0).push(None);
    }

    fn reset(&self, source: ResetSource) {
        super::lock(&self.0).push(Some(source));
    }
}
