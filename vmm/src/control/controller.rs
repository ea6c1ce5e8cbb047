//! What follows from what: the state machine of the guest's life.

use crate::config::{OnPanic, OnReset, OnTripleFault, VmConfig};
use crate::exit::Exit;

use super::signals::Signal;
use super::{Command, Event, Machine, MachineEvent};

/// Where the guest is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Built, not started.
    Starting,
    /// vCPUs run.
    Running,
    /// vCPUs are held.
    Paused,
    /// vCPUs are held because a disk failed a request, which is tried again when they go on.
    DiskFailed,
    /// A reset is in progress; `paused`: the guest will be paused after it.
    Resetting {
        /// Whether vCPUs stay held when the reset is through.
        paused: bool,
    },
    /// The guest has ended; nothing can change that or the reason any more.
    Stopped(Exit),
}

/// What the configuration says about the guest's own doings.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Policy {
    /// After a reset by the guest.
    pub on_reset: OnReset,
    /// After a triple fault.
    pub on_triple_fault: OnTripleFault,
    /// After a reported panic.
    pub on_panic: OnPanic,
    /// Whoever started the process starts it again when it ends with [`Exit::GuestReset`], as the bhyve brand does.
    pub restarted: bool,
    /// A guest that resets itself within 180 s after somebody ordered its end has ended: whoever stops a zone waits for
    /// the end of its VMM, and a guest that came back would be waited for in vain, and then be cut off.
    pub stop_wins: bool,
    /// A guest whose vCPUs are all halted for ever has ended, as the bhyve brand has it. Otherwise it waits for a reset.
    pub ends_halted: bool,
}

impl From<&VmConfig> for Policy {
    fn from(config: &VmConfig) -> Self {
        let (on_reset, on_triple_fault, on_panic) = (config.on_reset, config.on_triple_fault, config.on_panic);
        Self { on_reset, on_triple_fault, on_panic, restarted: false, stop_wins: false, ends_halted: false }
    }
}

/// Why a command has no effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// The guest has ended.
    #[error("the guest has ended")]
    Stopped,
    /// There is no such vCPU.
    #[error("the guest has no vCPU {0}")]
    NoSuchVcpu(u8),
}

/// How long an ordered end stays ordered, in nanoseconds: vmadm's time-out, after which it cuts the guest off anyway.
pub const STOP_NS: u64 = 180_000_000_000;

/// Decides about the guest. Pure: it knows no clock, thread or descriptor, only the [`Machine`] it is handed.
#[derive(Debug)]
pub struct Controller {
    state: State,
    policy: Policy,
    vcpus: u8,
    interrupts: u32,
    /// What time it is, in nanoseconds of any clock that does not jump.
    now_ns: u64,
    /// Until when a reset by the guest is the end.
    stop_until_ns: Option<u64>,
    /// The guest has reported a panic since it last started: it can do so a million times a second.
    panicked: bool,
}

impl Controller {
    /// A controller of a machine that is built and not started.
    pub fn new(policy: Policy, vcpus: u8) -> Self {
        Self { state: State::Starting, policy, vcpus, interrupts: 0, now_ns: 0, stop_until_ns: None, panicked: false }
    }

    /// Where the guest is in its life.
    pub fn state(&self) -> State {
        self.state
    }

    /// Says what time it is, before anything else is told.
    pub fn set_now_ns(&mut self, now_ns: u64) {
        self.now_ns = now_ns;
    }

    /// Lets the guest start, unless something ended it before.
    pub fn start(&mut self, machine: &dyn Machine) {
        if self.state == State::Starting {
            self.state = State::Running;
            machine.resume();
        }
    }

    /// Carries out an order.
    ///
    /// An order that is already fulfilled (pause a paused guest) is no error and tells nobody.
    pub fn command(&mut self, command: Command, machine: &dyn Machine) -> Result<Vec<Event>, CommandError> {
        if let State::Stopped(_) = self.state {
            // Asking twice for the end is no mistake.
            return if command == Command::Quit { Ok(Vec::new()) } else { Err(CommandError::Stopped) };
        }
        match command {
            Command::Pause => Ok(self.pause(machine)),
            Command::Resume => {
                machine.trust_disks();
                Ok(self.resume(machine))
            }
            Command::PowerButton => Ok(self.press(machine)),
            Command::Reset => Ok(self.reset(false, machine)),
            Command::Quit => Ok(self.stop(Exit::Done, false, "host-qmp-quit", machine)),
            Command::Nmi { vcpu } if vcpu >= self.vcpus => Err(CommandError::NoSuchVcpu(vcpu)),
            Command::Nmi { vcpu } => {
                machine.inject_nmi(vcpu);
                Ok(Vec::new())
            }
        }
    }

    /// Follows what a vCPU or device reports.
    pub fn machine_event(&mut self, event: MachineEvent, machine: &dyn Machine) -> Vec<Event> {
        match (event, self.state) {
            // Reports of a guest that has ended mean nothing: a stop always wins.
            (_, State::Stopped(_)) => Vec::new(),
            (MachineEvent::ResetDone, State::Resetting { paused }) => {
                self.state = if paused { State::Paused } else { State::Running };
                self.panicked = false;
                Vec::new()
            }
            (MachineEvent::ResetDone, _) => Vec::new(),
            (MachineEvent::GuestPowerOff, _) => self.stop(Exit::Done, true, "guest-shutdown", machine),
            (MachineEvent::GuestReset { source }, _) => {
                log::info!("the guest reset itself ({source})");
                self.guest_reset(machine)
            }
            (MachineEvent::TripleFault { vcpu }, _) => {
                // No warning: it is the way in which kernels reboot when no other has worked.
                log::info!("triple fault on vCPU {vcpu}");
                match self.policy.on_triple_fault {
                    OnTripleFault::Reset => self.guest_reset(machine),
                    OnTripleFault::Exit => self.stop(Exit::TripleFault, true, "guest-reset", machine),
                }
            }
            (MachineEvent::AllHalted, _) if !self.policy.ends_halted => Vec::new(),
            (MachineEvent::AllHalted, _) => {
                log::info!("all vCPUs are halted for ever");
                self.stop(Exit::Halted, true, "guest-shutdown", machine)
            }
            (MachineEvent::GuestPanicked, _) if self.panicked => Vec::new(),
            (MachineEvent::GuestPanicked, _) => {
                self.panicked = true;
                log::warn!("the guest panicked");
                let mut events = vec![Event::GuestPanicked];
                if self.policy.on_panic == OnPanic::Exit {
                    events.extend(self.stop(Exit::GuestPanic, true, "guest-panic", machine));
                }
                events
            }
            (MachineEvent::DiskFailed(failure), state) => {
                // In any other state the vCPUs stand still, or a reset has made an end of the request.
                let hold = failure.held && state == State::Running;
                let mut events = vec![Event::DiskFailed(failure)];
                if hold {
                    events.extend(self.pause(machine));
                    self.state = State::DiskFailed;
                }
                events
            }
            (MachineEvent::HostError { what }, _) => {
                crate::logging::say(what);
                self.stop(Exit::HostFailed, false, "host-error", machine)
            }
        }
    }

    /// Follows a signal.
    pub fn signal(&mut self, signal: Signal, machine: &dyn Machine) -> Vec<Event> {
        if let State::Stopped(exit) = self.state {
            // A guest that has reset itself would be started again, with the order unheard.
            if exit == Exit::GuestReset && self.policy.stop_wins {
                self.state = State::Stopped(Exit::Done);
            }
            return Vec::new();
        }
        match signal {
            Signal::Terminate => self.press(machine),
            Signal::Interrupt => {
                self.interrupts = self.interrupts.saturating_add(1);
                match self.interrupts {
                    1 => self.press(machine),
                    _ => self.stop(Exit::Interrupted, false, "host-signal", machine),
                }
            }
            Signal::Quit => self.stop(Exit::Interrupted, false, "host-signal", machine),
        }
    }

    fn pause(&mut self, machine: &dyn Machine) -> Vec<Event> {
        let paused = match self.state {
            State::Starting | State::Running => State::Paused,
            State::Resetting { paused: false } => State::Resetting { paused: true },
            State::Paused | State::DiskFailed | State::Resetting { paused: true } | State::Stopped(_) => {
                return Vec::new();
            }
        };
        self.state = paused;
        machine.pause();
        vec![Event::Stopped]
    }

    fn resume(&mut self, machine: &dyn Machine) -> Vec<Event> {
        let running = match self.state {
            State::Starting | State::Paused | State::DiskFailed => State::Running,
            State::Resetting { paused: true } => State::Resetting { paused: false },
            State::Running | State::Resetting { paused: false } | State::Stopped(_) => return Vec::new(),
        };
        self.state = running;
        machine.resume();
        vec![Event::Resumed]
    }

    fn press(&mut self, machine: &dyn Machine) -> Vec<Event> {
        if self.policy.stop_wins && matches!(self.state, State::Resetting { .. }) {
            // The guest that starts again would not know of it.
            return [vec![Event::PowerButton], self.stop(Exit::Done, true, "guest-reset", machine)].concat();
        }
        machine.press_power_button();
        self.stop_until_ns = Some(self.now_ns.saturating_add(STOP_NS));
        vec![Event::PowerButton]
    }

    fn guest_reset(&mut self, machine: &dyn Machine) -> Vec<Event> {
        if self.policy.stop_wins && self.stop_until_ns.is_some_and(|until_ns| self.now_ns < until_ns) {
            log::info!("the guest reset itself, but was to end");
            return self.stop(Exit::Done, true, "guest-reset", machine);
        }
        match self.policy.on_reset {
            OnReset::Restart => self.reset(true, machine),
            OnReset::Exit => self.stop(Exit::GuestReset, true, "guest-reset", machine),
        }
    }

    fn reset(&mut self, guest: bool, machine: &dyn Machine) -> Vec<Event> {
        let paused = match self.state {
            // Two vCPUs can ask at once, and one reset serves both.
            State::Resetting { .. } | State::Stopped(_) => return Vec::new(),
            State::Paused | State::DiskFailed => true,
            State::Starting | State::Running => false,
        };
        self.state = State::Resetting { paused };
        machine.reset();
        vec![Event::Reset { guest }]
    }

    fn stop(&mut self, exit: Exit, guest: bool, reason: &'static str, machine: &dyn Machine) -> Vec<Event> {
        self.state = State::Stopped(exit);
        machine.stop();
        vec![Event::Shutdown { guest, reason }]
    }
}

#[cfg(test)]
#[path = "controller_tests.rs"]
mod tests;
