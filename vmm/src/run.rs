//! Runs one guest from its configuration to its end.

use std::io;

use crate::config::{Note, VmConfig, system_text};
use crate::control::{
    self, BindError, Built, Ends, EventSender, Inbox, LineError, Listener, MainLoop, PidFile, PidFileError, Policy,
    QmpServer, Signals, provisioning, restore_terminals,
};
use crate::exit::{Exit, ExitConvention};
use crate::hypervisor::OpenHypervisor;
use crate::logging;
use crate::machine::{self, StartError};
use crate::sandbox::{self, SandboxError, ThreadKind};

/// Why there is no guest, or no more.
#[derive(Debug, thiserror::Error)]
enum RunError {
    #[error("{what}: {}", system_text(.error))]
    System { what: &'static str, error: io::Error },
    #[error("qmp: {0}")]
    Qmp(#[from] BindError),
    #[error("pid_file: {0}")]
    PidFile(#[from] PidFileError),
    #[error("{0}")]
    Line(#[from] LineError),
    #[error("{0}")]
    Start(#[from] StartError),
    #[error("sandbox: {0}")]
    Sandbox(#[from] SandboxError),
}

impl RunError {
    fn exit(&self) -> Exit {
        match self {
            Self::System { .. } => Exit::HostFailed,
            Self::Qmp(error) => error.exit(),
            Self::PidFile(error) => error.exit(),
            Self::Line(error) => error.exit(),
            Self::Start(error) => error.exit(),
            Self::Sandbox(error) => error.exit(),
        }
    }
}

fn system(what: &'static str) -> impl FnOnce(io::Error) -> RunError {
    move |error| RunError::System { what, error }
}

/// Runs the guest of a configuration that was checked, until it ends. Says in one line on stderr why it could not.
pub fn run(config: &VmConfig, open: OpenHypervisor<'_>) -> Exit {
    run_as(config, &[], ExitConvention::Own, open)
}

/// As [`run`], for the front end of a brand: says once in the log what of the command line has no effect, as far as an
/// operator should know, and leaves as the starter expects it.
pub fn run_as(config: &VmConfig, notes: &[Note], convention: ExitConvention, open: OpenHypervisor<'_>) -> Exit {
    devices_host::heap::share_one();
    logging::init(&config.log);
    for note in notes.iter().filter(|note| note.is_logged()) {
        log::warn!("{note}");
    }
    let policy = Policy {
        restarted: convention.restarts(),
        stop_wins: convention.stop_wins(),
        ends_halted: convention.ends_halted(),
        ..Policy::from(config)
    };
    match start_and_serve(config, policy, convention, open) {
        Ok(exit) => {
            if convention.restarts() && exit == Exit::GuestReset {
                control::die_of_termination();
            }
            exit
        }
        Err(error) => {
            logging::say(&error);
            error.exit()
        }
    }
}

/// The order matters: signals and sandbox before the first thread; everything that can be refused before there is guest
/// memory; the terminal late, so that no error is said in raw mode; the main thread's own confinement last, as the zone's
/// mark is renamed with rights that it gives up.
fn start_and_serve(
    config: &VmConfig,
    policy: Policy,
    convention: ExitConvention,
    open: OpenHypervisor<'_>,
) -> Result<Exit, RunError> {
    let signals = Signals::block().map_err(system("cannot block signals"))?;
    std::panic::set_hook(Box::new(|bug| {
        restore_terminals();
        logging::say(format_args!("this is a bug: {bug}"));
        std::process::abort();
    }));
    sandbox::prepare(config, convention)?;
    let inbox = Inbox::new().map_err(system("cannot create a wake-up"))?;
    let qmp = config.qmp.as_deref().map(Listener::bind).transpose()?.map(QmpServer::new);
    let pid_file = config.pid_file.as_deref().map(PidFile::write).transpose()?;
    let mut ends = Ends::open(config)?;
    if convention.turns_second_clients_away() {
        ends.turn_second_clients_away();
    }
    let signals = signals
        .start(inbox.sender(), convention, restore_terminals)
        .map_err(system("cannot start the thread 'signals'"))?;

    let built = build(config, open, inbox.sender())?;

    let raw_mode = ends.enter_raw_mode().map_err(system("cannot set up the terminal"))?;
    let lines = ends.join(&built)?;
    if convention.marks_provisioned() {
        provisioning::succeeded();
    }
    let main_loop = MainLoop::new(inbox, policy, config.cpus.count, built, lines, qmp).with_signals(signals);
    sandbox::enter(ThreadKind::Main);
    let exit = main_loop.run();
    drop(raw_mode);
    drop(pid_file);
    Ok(exit)
}

fn build(config: &VmConfig, open: OpenHypervisor<'_>, events: EventSender) -> Result<Built, StartError> {
    let hypervisor = open(config)?;
    machine::start(&*hypervisor, config, events)
}
