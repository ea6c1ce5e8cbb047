//! Ports that firmware and kernels print to while they have nothing better: the debug console (0x402, or 0xE9 as Bochs
//! has it) and the power-on self-test code (0x80).

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};

use super::{lock, read_bytes, write_bytes};
use crate::bus::{Access, BusDevice};
use crate::pci::StateError;
use crate::wake::Wake;

/// Ports of each of these devices.
pub const DEBUG_PORTS: u64 = 1;

/// What a guest reads to find the debug console.
const SIGNATURE: u8 = 0xe9;

/// Bytes that wait for the owner. A guest's burst fits; the memory is taken only when it is used.
const RING_BYTES: usize = 16 << 10;

/// Bytes under way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DebugConsoleState {
    version: u16,
    output: VecDeque<u8>,
}

struct Inner {
    output: VecDeque<u8>,
    dropped_bytes: u64,
}

/// The debug console. A guest cannot wait for it, so what does not fit into the ring is dropped and counted: the newest
/// bytes, so that what was printed first, and what leads up to the gap, stays whole.
pub struct DebugConsole {
    inner: Mutex<Inner>,
    owner: Arc<dyn Wake>,
}

impl DebugConsole {
    /// An empty console. `owner` is woken when output appears where there was none.
    pub fn new(owner: Arc<dyn Wake>) -> Self {
        Self { inner: Mutex::new(Inner { output: VecDeque::new(), dropped_bytes: 0 }), owner }
    }

    /// Takes up to `buffer.len()` bytes the guest has printed; how many. The owner is not woken again before it has
    /// taken everything: call until it returns 0.
    pub fn take_output(&self, buffer: &mut [u8]) -> usize {
        let mut inner = lock(&self.inner);
        let taken = buffer.len().min(inner.output.len());
        for (to, byte) in buffer.iter_mut().zip(inner.output.drain(..taken)) {
            *to = byte;
        }
        taken
    }

    /// Bytes that did not fit.
    pub fn dropped_bytes(&self) -> u64 {
        lock(&self.inner).dropped_bytes
    }

    /// The state, to be restored into another console.
    pub fn save(&self) -> DebugConsoleState {
        DebugConsoleState { version: 1, output: lock(&self.inner).output.clone() }
    }

    /// Goes on from `state`; the owner is woken if there is output.
    pub fn restore(&self, state: &DebugConsoleState) -> Result<(), StateError> {
        let refuse = |why| Err(StateError { what: "the debug console", why });
        if state.version != 1 {
            return refuse("its version is not 1");
        }
        if state.output.len() > RING_BYTES {
            return refuse("it has more output than the ring holds");
        }
        lock(&self.inner).output = state.output.clone();
        if !state.output.is_empty() {
            self.owner.wake();
        }
        Ok(())
    }

    /// The machine's reset: output not yet taken stays.
    pub fn reset(&self) {}
}

impl BusDevice for DebugConsole {
    fn read(&self, offset: u64, data: &mut [u8]) -> Access {
        read_bytes(offset, data, |port| if port == 0 { SIGNATURE } else { 0xff })
    }

    fn write(&self, offset: u64, data: &[u8]) -> Access {
        let mut inner = lock(&self.inner);
        let was_empty = inner.output.is_empty();
        write_bytes(offset, data, |port, byte| match port {
            0 if inner.output.len() < RING_BYTES => inner.output.push_back(byte),
            0 => inner.dropped_bytes = inner.dropped_bytes.saturating_add(1),
            _ => {}
        });
        let wake = was_empty && !inner.output.is_empty();
        drop(inner);
        if wake {
            self.owner.wake();
        }
        Access::Done
    }
}

/// The self-test code as a saved state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PostCodeState {
    version: u16,
    code: u8,
}

/// Port 0x80: holds the last code written, by which firmware tells how far it is. Kernels write it to pass a
/// microsecond, so it takes no lock.
#[derive(Default)]
pub struct PostCode(AtomicU8);

impl PostCode {
    /// A port that holds 0.
    pub fn new() -> Self {
        Self::default()
    }

    /// The last code written.
    pub fn code(&self) -> u8 {
        self.0.load(Ordering::Relaxed)
    }

    /// The state, to be restored into another port.
    pub fn save(&self) -> PostCodeState {
        PostCodeState { version: 1, code: self.code() }
    }

    /// Goes on from `state`.
    pub fn restore(&self, state: &PostCodeState) -> Result<(), StateError> {
        if state.version != 1 {
            return Err(StateError { what: "the self-test port", why: "its version is not 1" });
        }
        self.0.store(state.code, Ordering::Relaxed);
        Ok(())
    }

    /// The machine's reset: the code is 0.
    pub fn reset(&self) {
        self.0.store(0, Ordering::Relaxed);
    }
}

impl BusDevice for PostCode {
    fn read(&self, offset: u64, data: &mut [u8]) -> Access {
        read_bytes(offset, data, |port| if port == 0 { self.code() } else { 0xff })
    }

    fn write(&self, offset: u64, data: &[u8]) -> Access {
        write_bytes(offset, data, |port, code| {
            if port == 0 {
                self.0.store(code, Ordering::Relaxed);
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::legacy::testing::{any_access, perform, read, write};
    use crate::wake::WakeCounter;

    fn console() -> (DebugConsole, Arc<WakeCounter>) {
        let owner = Arc::new(WakeCounter::default());
        (DebugConsole::new(owner.clone()), owner)
    }

    fn output(console: &DebugConsole) -> Vec<u8> {
        let mut all = Vec::new();
        let mut buffer = [0; 1000];
        loop {
            match console.take_output(&mut buffer) {
                0 => return all,
                taken => all.extend_from_slice(&buffer[..taken]),
            }
        }
    }

    #[test]
    fn firmware_finds_the_console_by_its_signature_and_prints_with_one_wake_up() {
        let (console, owner) = console();
        assert_eq!(read(&console, 0), 0xe9);
        for byte in b"SeaBIOS" {
            write(&console, 0, *byte);
        }
        assert_eq!(owner.take(), 1);
        assert_eq!(output(&console), b"SeaBIOS");
        write(&console, 0, b'!');
        assert_eq!(owner.take(), 1, "the next output is announced again");
    }

    #[test]
    fn a_full_ring_keeps_the_oldest_bytes_and_counts_the_others() {
        let (console, owner) = console();
        for n in 0..RING_BYTES + 10 {
            write(&console, 0, n as u8);
        }
        assert_eq!((owner.take(), console.dropped_bytes()), (1, 10));
        assert_eq!(output(&console), (0..RING_BYTES).map(|n| n as u8).collect::<Vec<_>>());
        write(&console, 0, b'x');
        assert_eq!((output(&console), console.dropped_bytes()), (b"x".to_vec(), 10));
    }

    #[test]
    fn output_survives_a_reset_and_a_restore() {
        let (first, _) = console();
        write(&first, 0, b'a');
        first.reset();
        let (second, owner) = console();
        second.restore(&first.save()).unwrap();
        assert_eq!(owner.take(), 1);
        assert_eq!(output(&second), b"a");
    }

    #[test]
    fn a_state_that_does_not_fit_is_refused_with_its_reason() {
        let (console, _) = console();
        let too_long = DebugConsoleState { version: 1, output: vec![0; RING_BYTES + 1].into() };
        assert_eq!(console.restore(&too_long).unwrap_err().why, "it has more output than the ring holds");
        let later = DebugConsoleState { version: 2, output: VecDeque::new() };
        assert_eq!(console.restore(&later).unwrap_err().why, "its version is not 1");
        let later = PostCodeState { version: 2, code: 1 };
        assert_eq!(PostCode::new().restore(&later).unwrap_err().why, "its version is not 1");
    }

    #[test]
    fn the_self_test_port_holds_the_last_code_until_a_reset() {
        let post = PostCode::new();
        write(&post, 0, 0x12);
        write(&post, 0, 0xab);
        assert_eq!((read(&post, 0), post.code()), (0xab, 0xab));
        let other = PostCode::new();
        other.restore(&post.save()).unwrap();
        assert_eq!(other.code(), 0xab);
        other.reset();
        assert_eq!(read(&other, 0), 0);
    }

    proptest! {
        #[test]
        fn any_accesses_print_each_byte_of_the_port_once(
            accesses in prop::collection::vec(any_access(), 0..200),
        ) {
            let ((console, _), post) = (console(), PostCode::new());
            let mut expected = Vec::new();
            for access in accesses {
                perform(&console, access);
                perform(&post, access);
                if access.0 && access.1 == 0 {
                    expected.push(access.3 as u8);
                }
            }
            prop_assert_eq!(post.code(), expected.last().copied().unwrap_or(0));
            prop_assert_eq!(output(&console), expected);
        }
    }
}
