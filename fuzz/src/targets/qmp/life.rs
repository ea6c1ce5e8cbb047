//! A guest's life as its clients see it: which events each order and each report leads to, what the machine is asked then,
//! and what `query-status` calls it.

use zvmm::config::{OnPanic, OnReset, OnTripleFault};
use zvmm::control::{Command, DiskFailure, Event, MachineEvent, Policy};

use super::board::Call;

/// Who holds the vCPUs.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Held {
    Nobody,
    Operator,
    /// A request that it failed is kept.
    Disk,
}

/// A guest so far.
pub struct Life {
    policy: Policy,
    vcpus: u8,
    has_started: bool,
    held: Held,
    is_resetting: bool,
    has_ended: bool,
    has_panicked: bool,
}

/// Policies by number: zero is what there is unless somebody says otherwise.
pub fn policy(knob: u8) -> Policy {
    Policy {
        on_reset: if knob & 1 == 0 { OnReset::Restart } else { OnReset::Exit },
        on_triple_fault: if knob & 2 == 0 { OnTripleFault::Reset } else { OnTripleFault::Exit },
        on_panic: if knob & 4 == 0 { OnPanic::Report } else { OnPanic::Exit },
        ends_halted: knob & 8 != 0,
        ..Policy::default()
    }
}

impl Life {
    /// A guest that was built and has not started.
    pub fn new(policy: Policy, vcpus: u8) -> Self {
        let (has_started, is_resetting, has_ended, has_panicked) = (false, false, false, false);
        Self { policy, vcpus, has_started, held: Held::Nobody, is_resetting, has_ended, has_panicked }
    }

    /// Whether it is over.
    pub fn has_ended(&self) -> bool {
        self.has_ended
    }

    /// What `query-status` calls it.
    pub fn status(&self) -> &'static str {
        match self.held {
            _ if self.has_ended => "shutdown",
            Held::Disk => "io-error",
            Held::Operator => "paused",
            Held::Nobody if !self.has_started => "prelaunch",
            Held::Nobody => "running",
        }
    }

    /// It starts by itself, which nobody is told of.
    pub fn start(&mut self) -> Vec<Call> {
        let starts = self.status() == "prelaunch";
        self.has_started = true;
        if starts { vec![Call::Resume] } else { Vec::new() }
    }

    /// An order: the events and calls that it leads to; `None` where it is refused.
    pub fn command(&mut self, command: Command) -> Option<(Vec<Event>, Vec<Call>)> {
        if self.has_ended {
            return (command == Command::Quit).then_some((Vec::new(), Vec::new()));
        }
        let events = match command {
            Command::Pause => self.hold(Held::Operator),
            Command::Resume => {
                let events = self.go_on();
                let calls = [Call::TrustDisks].into_iter().chain(calls(&events)).collect();
                return Some((events, calls));
            }
            Command::PowerButton => vec![Event::PowerButton],
            Command::Reset => self.reset(false),
            Command::Quit => self.end(false, "host-qmp-quit"),
            Command::Nmi { vcpu } => return (vcpu < self.vcpus).then(|| (Vec::new(), vec![Call::Nmi(vcpu)])),
        };
        let calls = calls(&events).collect();
        Some((events, calls))
    }

    /// A report of the machine's: the events and calls that it leads to.
    pub fn report(&mut self, report: &MachineEvent) -> (Vec<Event>, Vec<Call>) {
        let events = if self.has_ended { Vec::new() } else { self.events(report) };
        let calls = calls(&events).collect();
        (events, calls)
    }

    fn events(&mut self, report: &MachineEvent) -> Vec<Event> {
        match report {
            MachineEvent::GuestPowerOff => self.end(true, "guest-shutdown"),
            MachineEvent::TripleFault { .. } if self.policy.on_triple_fault == OnTripleFault::Exit => {
                self.end(true, "guest-reset")
            }
            MachineEvent::GuestReset { .. } | MachineEvent::TripleFault { .. } => match self.policy.on_reset {
                OnReset::Restart => self.reset(true),
                OnReset::Exit => self.end(true, "guest-reset"),
            },
            MachineEvent::AllHalted if self.policy.ends_halted => self.end(true, "guest-shutdown"),
            MachineEvent::GuestPanicked if !self.has_panicked => {
                self.has_panicked = true;
                let mut events = vec![Event::GuestPanicked];
                if self.policy.on_panic == OnPanic::Exit {
                    events.extend(self.end(true, "guest-panic"));
                }
                events
            }
            MachineEvent::DiskFailed(failure) => {
                let mut events = vec![Event::DiskFailed(failure.clone())];
                if failure.held && self.status() == "running" && !self.is_resetting {
                    events.extend(self.hold(Held::Disk));
                }
                events
            }
            MachineEvent::ResetDone if self.is_resetting => {
                (self.is_resetting, self.has_panicked) = (false, false);
                Vec::new()
            }
            MachineEvent::HostError { .. } => self.end(false, "host-error"),
            MachineEvent::AllHalted | MachineEvent::GuestPanicked | MachineEvent::ResetDone => Vec::new(),
        }
    }

    fn hold(&mut self, held: Held) -> Vec<Event> {
        if self.held != Held::Nobody {
            return Vec::new();
        }
        (self.held, self.has_started) = (held, true);
        vec![Event::Stopped]
    }

    fn go_on(&mut self) -> Vec<Event> {
        if self.status() == "running" {
            return Vec::new();
        }
        (self.held, self.has_started) = (Held::Nobody, true);
        vec![Event::Resumed]
    }

    fn reset(&mut self, guest: bool) -> Vec<Event> {
        if self.is_resetting {
            return Vec::new();
        }
        (self.is_resetting, self.has_started) = (true, true);
        if self.held == Held::Disk {
            // What it had kept is gone, and the operator still has to say that it may go on.
            self.held = Held::Operator;
        }
        vec![Event::Reset { guest }]
    }

    fn end(&mut self, guest: bool, reason: &'static str) -> Vec<Event> {
        self.has_ended = true;
        vec![Event::Shutdown { guest, reason }]
    }
}

/// What the machine is asked beside the events that clients are told.
fn calls(events: &[Event]) -> impl Iterator<Item = Call> + '_ {
    events.iter().filter_map(|event| match event {
        Event::Stopped => Some(Call::Pause),
        Event::Resumed => Some(Call::Resume),
        Event::PowerButton => Some(Call::PowerButton),
        Event::Reset { .. } => Some(Call::Reset),
        Event::Shutdown { .. } => Some(Call::Stop),
        Event::GuestPanicked | Event::DiskFailed(_) => None,
    })
}

/// What happens to a guest by itself, by number; `None`: it starts.
pub fn report(which: u8) -> Option<MachineEvent> {
    let failure = |held, no_space| {
        let (disk, reason) = (if no_space { "\0\"}]" } else { "disk0" }.to_owned(), "\u{1b}[2J".to_owned());
        MachineEvent::DiskFailed(DiskFailure { disk, write: which & 0x10 != 0, no_space, held, reason })
    };
    Some(match which & 0xf {
        0 => return None,
        1 => MachineEvent::GuestPanicked,
        2 => failure(false, false),
        3 => failure(true, false),
        4 => MachineEvent::GuestReset { source: "port 0xcf9" },
        6 => MachineEvent::TripleFault { vcpu: 1 },
        7 => MachineEvent::AllHalted,
        9 => failure(true, true),
        15 => MachineEvent::GuestPowerOff,
        _ => MachineEvent::ResetDone,
    })
}
