//! Keys that an operator has pressed on the guest's keyboard.
//!
//! The main thread presses them at once and releases them when their time has come, like a timer. A guest that does not
//! read its keyboard soon has no room for more: what it has not been told then waits, for a while.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use devices::legacy::ps2::{KeyCode, Ps2};
use devices_host::clock;

use crate::control::{Chord, Timed};

/// Chords that may wait for those before them.
const MAX_CHORDS: usize = 16;

/// How soon a keyboard without room is offered its key again.
const AGAIN_NS: u64 = 20_000_000;

/// How often it is offered one. Afterwards nothing is pressed any more, and what is held down is offered for release
/// every second: a guest that looks at last must not find Control held down for ever.
const PATIENCE: u32 = 250;
const SELDOM_NS: u64 = 1_000_000_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Press(KeyCode),
    HoldNs(u64),
    Release(KeyCode),
}

#[derive(Default)]
struct State {
    steps: VecDeque<Step>,
    /// Keys that are down, in the order in which they were pressed.
    down: Vec<KeyCode>,
    deadline_ns: Option<u64>,
    /// How often the step at the front has found no room.
    refused: u32,
}

/// Whoever presses keys for the operator.
pub struct Typist {
    keyboard: Arc<Ps2>,
    state: Mutex<State>,
}

impl Typist {
    /// Presses keys of `keyboard`.
    pub fn new(keyboard: Arc<Ps2>) -> Self {
        Self { keyboard, state: Mutex::default() }
    }

    /// See [`Machine::press_keys`](crate::control::Machine::press_keys).
    pub fn press(&self, chord: &Chord) -> Result<(), String> {
        self.press_at(chord, clock::monotonic_ns())
    }

    fn press_at(&self, chord: &Chord, now_ns: u64) -> Result<(), String> {
        let mut state = self.state();
        let chords = state.steps.iter().filter(|step| matches!(step, Step::HoldNs(_))).count();
        if chords >= MAX_CHORDS || state.refused > PATIENCE {
            return Err("too many keys wait for the guest to read its keyboard".to_owned());
        }
        let was_idle = state.deadline_ns.is_none();
        state.steps.extend(chord.keys.iter().copied().map(Step::Press));
        state.steps.push_back(Step::HoldNs(u64::from(chord.hold_ms) * 1_000_000));
        state.steps.extend(chord.keys.iter().rev().copied().map(Step::Release));
        if was_idle {
            self.go_on(&mut state, now_ns);
        }
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn go_on(&self, state: &mut State, now_ns: u64) {
        state.deadline_ns = None;
        while let Some(step) = state.steps.front().copied() {
            let taken = match step {
                Step::HoldNs(hold_ns) => {
                    state.steps.pop_front();
                    state.deadline_ns = Some(now_ns.saturating_add(hold_ns));
                    return;
                }
                Step::Press(key) => self.keyboard.key_event(key, true),
                Step::Release(key) => self.keyboard.key_event(key, false),
            };
            if !taken {
                return self.wait_for_room(state, now_ns);
            }
            state.refused = 0;
            state.steps.pop_front();
            match step {
                Step::Press(key) => state.down.push(key),
                Step::Release(key) => state.down.retain(|down| *down != key),
                Step::HoldNs(_) => {}
            }
        }
    }

    fn wait_for_room(&self, state: &mut State, now_ns: u64) {
        state.refused = state.refused.saturating_add(1);
        if state.refused == PATIENCE {
            log::warn!("the guest does not read its keyboard: keys that wait are not pressed any more");
        }
        if state.refused < PATIENCE {
            state.deadline_ns = Some(now_ns.saturating_add(AGAIN_NS));
            return;
        }
        state.steps = state.down.iter().rev().copied().map(Step::Release).collect();
        state.deadline_ns = (!state.steps.is_empty()).then(|| now_ns.saturating_add(SELDOM_NS));
        if state.steps.is_empty() {
            state.refused = 0;
        }
    }
}

impl Timed for Typist {
    fn deadline_ns(&self) -> Option<u64> {
        self.state().deadline_ns
    }

    fn tick(&self, now_ns: u64) {
        let mut state = self.state();
        if state.deadline_ns.is_some_and(|deadline_ns| deadline_ns <= now_ns) {
            self.go_on(&mut state, now_ns);
        }
    }
}

#[cfg(test)]
mod tests {
    use devices::bus::{Access, BusDevice};
    use devices::interrupt::IrqLine;
    use devices::legacy::power::PowerLog;

    use super::*;

    const MS: u64 = 1_000_000;
    const SHIFT: KeyCode = KeyCode(0x2a);
    const A: KeyCode = KeyCode(0x1e);

    struct NoLine;

    impl IrqLine for NoLine {
        fn set(&self, _asserted: bool) {}
    }

    fn typist() -> Typist {
        Typist::new(Ps2::new(Arc::new(NoLine), Arc::new(NoLine), Arc::new(PowerLog::default())))
    }

    fn chord(keys: &[KeyCode], hold_ms: u32) -> Chord {
        Chord { keys: keys.to_vec(), hold_ms }
    }

    /// What a guest reads from its keyboard, as far as there is something.
    fn read(typist: &Typist) -> Vec<u8> {
        let (data, status) = (typist.keyboard.data_port(), typist.keyboard.status_port());
        let byte = |port: &Arc<dyn BusDevice>| {
            let mut byte = [0];
            assert!(matches!(port.read(0, &mut byte), Access::Done));
            byte[0]
        };
        std::iter::from_fn(|| (byte(&status) & 1 != 0).then(|| byte(&data))).collect()
    }

    #[test]
    fn keys_go_down_at_once_and_up_the_other_way_round_when_their_time_has_come() {
        let typist = typist();
        typist.press_at(&chord(&[SHIFT, A], 100), 5 * MS).unwrap();
        assert_eq!((read(&typist), typist.deadline_ns()), (vec![0x2a, 0x1e], Some(105 * MS)));
        typist.tick(104 * MS);
        assert!(read(&typist).is_empty());
        typist.tick(105 * MS);
        assert_eq!((read(&typist), typist.deadline_ns()), (vec![0x9e, 0xaa], None));
    }

    #[test]
    fn a_second_chord_waits_for_the_first_and_too_many_are_refused() {
        let typist = typist();
        typist.press_at(&chord(&[SHIFT], 100), 0).unwrap();
        for _ in 0..MAX_CHORDS {
            typist.press_at(&chord(&[A], 10), 0).unwrap();
        }
        assert!(typist.press_at(&chord(&[A], 10), 0).unwrap_err().starts_with("too many keys"));
        assert_eq!(read(&typist), [0x2a]);
        typist.tick(100 * MS);
        assert_eq!((read(&typist), typist.deadline_ns()), (vec![0xaa, 0x1e], Some(110 * MS)));
        for time_ms in 11..=11 + MAX_CHORDS as u64 {
            typist.tick(time_ms * 10 * MS);
        }
        assert_eq!((read(&typist).len(), typist.deadline_ns()), (2 * MAX_CHORDS - 1, None));
    }

    #[test]
    fn a_guest_that_does_not_read_is_offered_keys_for_a_while_and_finds_none_held_down() {
        let typist = typist();
        let mut now_ns = 0;
        let mut pressed = 0;
        while typist.state().refused < PATIENCE {
            pressed += usize::from(typist.press_at(&chord(&[SHIFT, A], 0), now_ns).is_ok());
            now_ns = typist.deadline_ns().unwrap();
            typist.tick(now_ns);
        }
        assert!(pressed > MAX_CHORDS, "{pressed}");
        let waits = |typist: &Typist| typist.state().steps.iter().any(|step| matches!(step, Step::Press(_)));
        assert!(!waits(&typist));
        if let Some(deadline_ns) = typist.deadline_ns() {
            assert_eq!(deadline_ns, now_ns + SELDOM_NS);
            now_ns = deadline_ns;
        }
        // It looks at last.
        let mut down = std::collections::BTreeSet::new();
        for _ in 0..2 {
            for code in read(&typist) {
                if code & 0x80 == 0 {
                    down.insert(code)
                } else {
                    down.remove(&(code & 0x7f))
                };
            }
            typist.tick(now_ns);
        }
        assert_eq!((down.len(), typist.deadline_ns()), (0, None));
        typist.press_at(&chord(&[A], 0), now_ns).unwrap();
        assert_eq!(read(&typist), [0x1e]);
    }
}
