//! How the process ends.

use std::process::ExitCode;

/// Why the process ended, as its exit status tells.
///
/// Each reason has a status of its own, so that a supervisor never has to read stderr.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// The guest powered itself off, the operator ordered an end (`quit`, Ctrl-A x), or there was no guest to run
    /// (`--help`, `check-config`).
    Done,
    /// The command line or the configuration is wrong, or names what cannot be used: missing, of another kind, not
    /// permitted, taken by another process. Who starts it again unchanged gets the same answer.
    Config,
    /// The host lacks something that every guest, or a kind of device, needs: `/dev/kvm`, a capability of it,
    /// `/dev/net/tun`.
    HostLacks,
    /// The guest could not be started, or a call of the host failed while it ran.
    HostFailed,
    /// The guest reset itself, and the configuration says to leave then.
    GuestReset,
    /// A triple fault, and the configuration says to leave then.
    TripleFault,
    /// The guest reported a panic, and the configuration says to leave then.
    GuestPanic,
    /// Stopped at once by an interrupt (SIGINT) that came again.
    Interrupted,
}

impl Exit {
    /// Every way out, in the order of the exit status.
    pub const ALL: [Self; 8] = [
        Self::Done,
        Self::Config,
        Self::HostLacks,
        Self::HostFailed,
        Self::GuestReset,
        Self::TripleFault,
        Self::GuestPanic,
        Self::Interrupted,
    ];

    /// The exit status. 1 and 101 are left free: they are what a program ends with that knows no reason.
    pub const fn status(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Config => 2,
            Self::HostLacks => 3,
            Self::HostFailed => 4,
            Self::GuestReset => 5,
            Self::TripleFault => 6,
            Self::GuestPanic => 7,
            // 128 + SIGINT, as shells report it.
            Self::Interrupted => 130,
        }
    }

    /// What the status means, for `--help`.
    pub const fn meaning(self) -> &'static str {
        match self {
            Self::Done => "the guest powered off, or the operator ordered the end (quit, Ctrl-A x)",
            Self::Config => {
                "the command line or the configuration is wrong, or names what is missing, forbidden or taken"
            }
            Self::HostLacks => "the host lacks something, such as /dev/kvm or a capability of it",
            Self::HostFailed => "the guest could not be started, or the host failed while it ran",
            Self::GuestReset => "the guest reset itself and --on-reset is exit",
            Self::TripleFault => "a triple fault and --on-triple-fault is exit",
            Self::GuestPanic => "the guest reported a panic and --on-panic is exit",
            Self::Interrupted => "stopped at once by a second SIGINT",
        }
    }

    /// The table of all statuses, one a line.
    pub fn table() -> String {
        let line = |exit: Self| format!("  {:3}  {}\n", exit.status(), exit.meaning());
        Self::ALL.into_iter().map(line).collect()
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.status())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_its_own_status() {
        let statuses = Exit::ALL.map(Exit::status);
        assert_eq!(statuses, [0, 2, 3, 4, 5, 6, 7, 130]);
    }

    #[test]
    fn the_table_names_every_status_and_its_meaning() {
        let table = Exit::table();
        for exit in Exit::ALL {
            assert!(table.contains(&format!("{:3}  {}", exit.status(), exit.meaning())));
        }
    }
}
