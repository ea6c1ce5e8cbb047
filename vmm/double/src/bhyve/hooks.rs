//! Ports and addresses of the guest that another driver watches (reference section 4.5).

use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// What is watched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// Writes to a port.
    Port(u16),
    /// Writes to guest-physical addresses.
    Memory(Range<u64>),
}

/// Takes what was written, or leaves it to the process.
pub type Notify = Box<dyn Fn(u64) -> bool + Send + Sync>;

struct Hook {
    id: u64,
    place: Place,
    notify: Notify,
}

/// All hooks of a VM.
#[derive(Default)]
pub struct Hooks(Mutex<(u64, Vec<Hook>)>);

impl Hooks {
    fn lock(&self) -> MutexGuard<'_, (u64, Vec<Hook>)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.lock().1.len()
    }

    /// Adds one; `None` where another one is.
    pub fn add(&self, place: Place, notify: Notify) -> Option<u64> {
        let (last, hooks) = &mut *self.lock();
        let taken = hooks.iter().any(|hook| match (&hook.place, &place) {
            (Place::Port(a), Place::Port(b)) => a == b,
            (Place::Memory(a), Place::Memory(b)) => a.start < b.end && b.start < a.end,
            _ => false,
        });
        if taken {
            return None;
        }
        *last += 1;
        hooks.push(Hook { id: *last, place, notify });
        Some(*last)
    }

    /// Takes one away.
    pub fn remove(&self, id: u64) {
        self.lock().1.retain(|hook| hook.id != id);
    }

    /// The guest wrote `value` to a port; whether a driver took it.
    pub fn port(&self, port: u16, value: u32) -> bool {
        self.lock().1.iter().any(|hook| hook.place == Place::Port(port) && (hook.notify)(value.into()))
    }

    /// The same for an address.
    pub fn memory(&self, gpa: u64, value: u64) -> bool {
        let at = |place: &Place| matches!(place, Place::Memory(range) if range.contains(&gpa));
        self.lock().1.iter().any(|hook| at(&hook.place) && (hook.notify)(value))
    }
}
