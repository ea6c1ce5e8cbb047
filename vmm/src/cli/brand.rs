//! The front ends of the zone brands: started in another VMM's place, the process reads its command line.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Read;
use std::path::Path;

use clap::Args;

use super::explain;
use crate::config::bhyve::{self, Request};
use crate::config::{ConfigError, Translation, nearest, qemu, system_text};
use crate::exit::{Exit, ExitConvention};
use crate::hypervisor::OpenHypervisor;
use crate::{logging, run};

/// Where the boot hook of the bhyve brand leaves the command line for the zone's init.
const CMD_FILE: &str = "/var/run/bhyve/zhyve.cmd";

/// A `zhyve.cmd` is far smaller: a hundred arguments.
const MAX_CMD_FILE_BYTES: u64 = 1 << 20;

/// What the process was started as, where that is none of our own commands.
#[derive(Debug)]
pub(super) enum Start {
    /// bhyve, with its arguments.
    Bhyve(Vec<OsString>),
    /// The init of a zone of the bhyve brand, which finds them in a file.
    Zhyve,
    /// The kvm brand's qemu, with its arguments.
    Qemu(Vec<OsString>),
}

/// Tells by the name the program was called, and by the first argument: `zvmm bhyve ARGS…`, `zvmm qemu ARGS…`.
pub(super) fn started_as(args: &[OsString]) -> Option<Start> {
    let (program, args) = args.split_first()?;
    match Path::new(program).file_name()?.to_str()? {
        "bhyve" | "bhyve.zone" => Some(Start::bhyve(args.to_vec())),
        "zhyve" => Some(Start::Zhyve),
        "startvm.zone" | "qemu-system-x86_64" => Some(Start::qemu(args.to_vec())),
        _ => match args.split_first() {
            Some((command, args)) if command == "bhyve" => Some(Start::bhyve(args.to_vec())),
            Some((command, args)) if command == "qemu" => Some(Start::qemu(args.to_vec())),
            _ => None,
        },
    }
}

impl Start {
    /// bhyve, with these arguments.
    pub(super) fn bhyve(args: Vec<OsString>) -> Self {
        Self::Bhyve(args)
    }

    /// qemu, with these arguments.
    pub(super) fn qemu(args: Vec<OsString>) -> Self {
        Self::Qemu(args)
    }

    /// The exit statuses that the starter reads.
    pub(super) fn convention(&self) -> ExitConvention {
        match self {
            Self::Bhyve(_) | Self::Zhyve => ExitConvention::Bhyve,
            Self::Qemu(_) => ExitConvention::Qemu,
        }
    }

    /// Runs what the arguments ask for.
    ///
    /// # Errors
    /// One line that says what is wrong with them.
    pub(super) fn run(self, open: OpenHypervisor<'_>) -> Result<Exit, ConfigError> {
        let convention = self.convention();
        let args = match self {
            Self::Bhyve(args) => texts(args)?,
            Self::Zhyve => of_cmd_file(Path::new(CMD_FILE))?,
            Self::Qemu(args) => {
                let translation = qemu::translate(&texts(args)?)?;
                return guest(&translation, "-kernel", convention, open);
            }
        };
        match bhyve::translate(&args)? {
            Request::Help => logging::print(bhyve::help()),
            Request::Dump(translation) => logging::print(translation.config.to_json()),
            Request::Run(translation) => return guest(&translation, "-o zvmm.kernel", convention, open),
        }
        Ok(Exit::Done)
    }
}

/// Runs the guest of a command line, which gives its kernel with `option`.
fn guest(
    translation: &Translation,
    option: &str,
    convention: ExitConvention,
    open: OpenHypervisor<'_>,
) -> Result<Exit, ConfigError> {
    let Translation { config, notes } = translation;
    if config.boot.kernel.as_os_str().is_empty() {
        let problem = "firmware is not built yet, and no kernel is given in its place";
        return Err(ConfigError::setting(option, problem));
    }
    config.check()?;
    config.check_host()?;
    Ok(run::run_as(config, notes, convention, open))
}

fn texts(args: Vec<OsString>) -> Result<Vec<String>, ConfigError> {
    let text = |arg: OsString| {
        arg.into_string().map_err(|arg| ConfigError::Usage(format!("'{}' is not UTF-8 text", arg.display())))
    };
    args.into_iter().map(text).collect()
}

/// The arguments in a `zhyve.cmd`, without the program's name.
fn of_cmd_file(path: &Path) -> Result<Vec<String>, ConfigError> {
    let wrong = |problem: String| ConfigError::setting(&path.display().to_string(), problem);
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(MAX_CMD_FILE_BYTES + 1).read_to_end(&mut bytes));
    read.map_err(|error| wrong(format!("cannot read the command line: {}", system_text(&error))))?;
    let mut args = bhyve::decode_cmd_file(&bytes).map_err(|error| wrong(error.to_string()))?;
    args.remove(0);
    Ok(args)
}

/// Options of `explain`.
#[derive(Debug, Args)]
pub(super) struct ExplainArgs {
    /// Print the machine as JSON, as --config of 'zvmm run' takes it
    #[arg(long)]
    json: bool,
    /// Read the arguments from a zhyve.cmd
    #[arg(long, value_name = "FILE", conflicts_with = "args")]
    cmd_file: Option<std::path::PathBuf>,
    /// Whose command line it is: bhyve or qemu
    #[arg(value_name = "VMM")]
    vmm: OsString,
    /// The command line
    #[arg(value_name = "ARGS", trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<OsString>,
}

/// Shows the machine of a command line. Looks at nothing of this host: its links and disks may not be there yet.
pub(super) fn explain(given: ExplainArgs) -> Result<Exit, ConfigError> {
    let ExplainArgs { json, cmd_file, vmm, args } = given;
    let args = match cmd_file {
        Some(file) => of_cmd_file(&file)?,
        None => texts(args)?,
    };
    let translation = translate(&vmm, &args)?;
    match (translation, json) {
        (None, _) => logging::print(bhyve::help()),
        (Some(translation), true) => logging::print(translation.config.to_json()),
        (Some(translation), false) => logging::print(explain::table(&translation).trim_end()),
    }
    Ok(Exit::Done)
}

/// What the command line comes to; `None` where it asks for help.
fn translate(vmm: &OsStr, args: &[String]) -> Result<Option<Translation>, ConfigError> {
    match vmm.to_str() {
        Some("bhyve") => Ok(match bhyve::translate(args)? {
            Request::Run(translation) | Request::Dump(translation) => Some(translation),
            Request::Help => None,
        }),
        Some("qemu") => qemu::translate(args).map(Some),
        _ => Err(ConfigError::Usage(nearest::unknown("VMM", &vmm.to_string_lossy(), ["bhyve", "qemu"].into_iter()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(args: &[&str]) -> Option<Start> {
        started_as(&args.iter().map(OsString::from).collect::<Vec<_>>())
    }

    #[test]
    fn the_program_is_what_it_was_called() {
        for program in ["bhyve", "/usr/sbin/bhyve", "/bhyve.zone", "bhyve.zone"] {
            let Some(Start::Bhyve(args)) = start(&[program, "-H", "vm"]) else { panic!("{program}") };
            assert_eq!(args, ["-H", "vm"]);
        }
        assert!(matches!(start(&["/usr/lib/brand/bhyve/zhyve"]), Some(Start::Zhyve)));
        for program in ["/startvm.zone", "/smartdc/bin/qemu-system-x86_64"] {
            let Some(Start::Qemu(args)) = start(&[program, "-m", "64"]) else { panic!("{program}") };
            assert_eq!(args, ["-m", "64"]);
        }
        assert!(matches!(start(&["zvmm", "qemu"]), Some(Start::Qemu(_))));
        let Some(Start::Bhyve(args)) = start(&["zvmm", "bhyve", "-h"]) else { panic!() };
        assert_eq!(args, ["-h"]);
        for own in [&["zvmm", "run"][..], &["zvmm"], &["zvmm", "explain", "bhyve"], &["/opt/bhyve/zvmm"], &[]] {
            assert!(start(own).is_none(), "{own:?}");
        }
    }
}
