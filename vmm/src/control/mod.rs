//! The life cycle of a running guest, and everything outside that can act on it.
//!
//! Orders come as [`Command`]s (control socket, terminal), as signals, and as [`MachineEvent`]s from vCPUs and devices.
//! All of them end in the one [`Controller`] on the main thread, which alone decides, drives the [`Machine`] and tells
//! everybody who listens with [`Event`]s. Whatever arrives at the same time, there is one order of decisions.

mod console;
mod controller;
mod device;
mod ends;
mod inbox;
pub mod inventory;
mod line;
mod main_loop;
mod metadata;
pub(crate) mod orders;
mod pid_file;
pub mod provisioning;
pub(crate) mod qmp;
mod signals;
mod socket;

use std::os::fd::AsRawFd;
use std::sync::Arc;

use devices::legacy::ps2::KeyCode;

pub use console::{Escape, Typed};
pub use controller::{CommandError, Controller, Policy, State};
pub(crate) use device::restore as restore_terminals;
pub use ends::{Ends, LineError};
pub use inbox::{EventSender, Inbox, Notice};
use inventory::Inventory;
pub use line::Lines;
pub use main_loop::MainLoop;
pub use metadata::Responder;
pub use pid_file::{PidFile, PidFileError};
pub use qmp::QmpServer;
pub use signals::{SignalThread, Signals, die_of_termination};
pub use socket::{BindError, Listener};

/// What the controller asks of the machine. Every method returns soon and may be called in any state of the guest.
pub trait Machine: Send + Sync {
    /// Holds all vCPUs; returns when none of them runs guest code any more.
    fn pause(&self);

    /// Lets the vCPUs run. The first call starts the guest.
    fn resume(&self);

    /// Presses the ACPI power button.
    fn press_power_button(&self);

    /// Begins a reset: all vCPUs leave the guest, devices are reset, the guest starts again. The machine sends
    /// [`MachineEvent::ResetDone`] when it is through, before any vCPU runs again. A paused guest stays paused.
    fn reset(&self);

    /// Ends the guest for good, whatever it is doing: overtakes a pause and a reset in progress.
    fn stop(&self);

    /// Waits until every thread of the machine has ended. Called once, after [`Machine::stop`].
    fn join(&self);

    /// The process is about to end. `restart`: its exit status has the guest started again, so what another process can
    /// go on with may stay. Called once, after [`Machine::join`].
    fn leave(&self, _restart: bool) {}

    /// The operator says to go on: disks that promise nothing since a flush failed try again. Comes before
    /// [`Machine::resume`], if the guest is held.
    fn trust_disks(&self) {}

    /// Gives a vCPU a non-maskable interrupt.
    fn inject_nmi(&self, vcpu: u8);

    /// Counters of vCPUs, queues and devices, as `query-stats` shows them.
    fn stats(&self) -> serde_json::Value;

    /// What the machine is made of, and how it is now.
    fn inventory(&self) -> Inventory {
        Inventory::default()
    }

    /// Has keys pressed together on the guest's keyboard, and released after a while.
    ///
    /// # Errors
    /// One line where there is no keyboard, or where too many wait; nothing is pressed then.
    fn press_keys(&self, _chord: &Chord) -> Result<(), String> {
        Err("the guest has no keyboard".to_owned())
    }

    /// Plugs the cable of a network interface, or pulls it: its guest sees the link go up or down, and no frame passes
    /// while it is down.
    ///
    /// # Errors
    /// One line where there is no interface of that name; nothing has changed then.
    fn set_link(&self, change: &LinkChange) -> Result<(), String>;

    /// Begins to give a disk another size. What became of it is told by [`EventSender::answer`], once, before
    /// [`Machine::join`] returns at the latest.
    fn resize_disk(&self, resize: &DiskResize, ticket: Ticket);
}

/// Another size for a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskResize {
    /// Id of the disk.
    pub disk: String,
    /// Bytes it is to have; `None`: what its file or device has by now.
    pub size_bytes: Option<u64>,
}

/// Another state for the link of a network interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkChange {
    /// Id of the interface.
    pub name: String,
    /// Whether its cable is to be plugged in.
    pub up: bool,
}

/// Keys that are pressed one after the other, held together and released the other way round.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chord {
    /// The keys.
    pub keys: Vec<KeyCode>,
    /// How long they are held down, in milliseconds.
    pub hold_ms: u32,
}

/// Stands for an order that is answered later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket(pub u64);

/// The guest's side of a serial line: a UART, a virtio console port, the debug port.
pub trait SerialPort: Send + Sync {
    /// Takes bytes that the guest has written; how many.
    fn take_output(&self, bytes: &mut [u8]) -> usize;

    /// Hands bytes to the guest; how many of them it has room for now.
    fn push_input(&self, bytes: &[u8]) -> usize;

    /// The other side sent a break; lines that know none ignore it.
    fn push_break(&self) {}
}

/// A device that wants to be looked at when a moment has come, such as the alarm of a clock.
///
/// A device whose deadline moves closer wakes the main loop (see [`EventSender`]).
pub trait Timed: Send + Sync {
    /// The next moment, in nanoseconds of [`devices_host::clock::monotonic_ns`].
    fn deadline_ns(&self) -> Option<u64>;

    /// The moment may have come.
    fn tick(&self, now_ns: u64);
}

/// Something of the host that the main loop waits for: it is ready when its descriptor is readable.
pub trait Watched: AsRawFd + Send + Sync {
    /// The descriptor was readable. Afterwards it is not, unless there is more to do.
    fn ready(&self);
}

/// A machine that is built and waits for [`Machine::resume`].
pub struct Built {
    /// The machine.
    pub machine: Arc<dyn Machine>,
    /// The guest's serial lines by name: `com1` to `com4`, `console`, `debug port`. The machine wakes the main loop
    /// (see [`EventSender`]) when a line has output where it had none, and when it has room again for input.
    pub ports: Vec<(&'static str, Arc<dyn SerialPort>)>,
    /// Devices with timers.
    pub timers: Vec<Arc<dyn Timed>>,
    /// What devices hear of the host.
    pub watches: Vec<Arc<dyn Watched>>,
}

/// What an operator can order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Hold all vCPUs.
    Pause,
    /// Let the vCPUs go on.
    Resume,
    /// Press the ACPI power button.
    PowerButton,
    /// Reset the guest as the reset button does.
    Reset,
    /// End the guest at once and leave.
    Quit,
    /// Give a vCPU a non-maskable interrupt.
    Nmi {
        /// Number of the vCPU.
        vcpu: u8,
    },
}

/// What vCPUs and devices report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MachineEvent {
    /// The guest powered itself off (ACPI S5).
    GuestPowerOff,
    /// The guest reset itself.
    GuestReset {
        /// Where: `port 0xcf9`, `ACPI reset register`, `keyboard controller`, …
        source: &'static str,
    },
    /// A vCPU shut down by triple fault.
    TripleFault {
        /// Number of the vCPU.
        vcpu: u8,
    },
    /// All vCPUs are halted for ever.
    AllHalted,
    /// The guest reported a panic (pvpanic).
    GuestPanicked,
    /// A disk failed a request.
    DiskFailed(DiskFailure),
    /// A reset is through; sent before any vCPU runs again.
    ResetDone,
    /// A call of the host failed and the guest cannot go on.
    HostError {
        /// The call and what it said.
        what: String,
    },
}

/// A request that a disk failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskFailure {
    /// The disk's name.
    pub disk: String,
    /// It was no read.
    pub write: bool,
    /// Because there is no space.
    pub no_space: bool,
    /// The request is kept for the operator, and the guest has to be held; otherwise the guest was told.
    pub held: bool,
    /// What the disk said.
    pub reason: String,
}

/// What listeners are told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The vCPUs are held.
    Stopped,
    /// The vCPUs go on.
    Resumed,
    /// The power button was pressed.
    PowerButton,
    /// The guest is being reset; `guest`: it asked for it itself.
    Reset {
        /// Whether the guest asked for it.
        guest: bool,
    },
    /// The guest ends; `guest`: it asked for it itself.
    Shutdown {
        /// Whether the guest asked for it.
        guest: bool,
        /// Why, in the words of QMP: `guest-shutdown`, `host-qmp-quit`, …
        reason: &'static str,
    },
    /// The guest reported a panic.
    GuestPanicked,
    /// A disk failed a request.
    DiskFailed(DiskFailure),
}
