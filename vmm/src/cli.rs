//! The command line: what is typed becomes a [`VmConfig`](crate::config::VmConfig).

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::config::{ConfigError, HostFacts, nearest};
use crate::exit::{Exit, ExitConvention};
use crate::hypervisor::OpenHypervisor;
use crate::logging;
use crate::machine;
use crate::sandbox::secrets;

mod brand;
mod disk_info;
mod explain;
mod from_vmadm;
mod guest;

use brand::ExplainArgs;
use disk_info::DiskInfoArgs;
pub(crate) use explain::table as machine_table;
use from_vmadm::FromVmadmArgs;
pub use guest::GuestArgs;

/// Runs one virtual machine.
#[derive(Debug, Parser)]
#[command(
    name = "zvmm",
    version,
    disable_help_subcommand = true,
    after_help = "'zvmm run --help' explains every option, with examples and exit statuses."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// Deferred: only the options of the command that is given are put together.
#[derive(Debug, Subcommand)]
#[command(defer = true)]
enum Command {
    /// Run a guest until it powers off
    #[command(long_about = RUN_ABOUT)]
    Run {
        #[command(flatten)]
        guest: Box<GuestArgs>,
    },
    /// Say what is wrong with a configuration, and where, without running it
    CheckConfig(CheckArgs),
    /// Say what a guest would see of its disks: size, blocks, serial, features; and how the host would use them
    DiskInfo(DiskInfoArgs),
    /// Run a guest that bhyve's command line describes, as the bhyve brand of SmartOS starts it; -h explains it
    #[command(disable_help_flag = true)]
    Bhyve(BrandArgs),
    /// Run a guest that qemu's command line describes, as the kvm brand of SmartOS starts it
    #[command(disable_help_flag = true)]
    Qemu(BrandArgs),
    /// Show the machine that another VMM's command line describes, and what of it has no effect, without running it
    Explain(ExplainArgs),
    /// Show the command line that SmartOS starts a guest with, and its machine, by what 'vmadm get' prints of it
    #[command(after_help = from_vmadm::EXAMPLES)]
    FromVmadm(FromVmadmArgs),
}

/// Taken off the command line before the others: their letters are not ours to read.
#[derive(Debug, Args)]
struct BrandArgs {
    #[arg(value_name = "ARGS", trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<OsString>,
}

#[derive(Debug, Args)]
struct CheckArgs {
    /// The JSON file to check (the same as --config)
    #[arg(value_name = "FILE", conflicts_with = "config")]
    file: Option<PathBuf>,
    /// Do not look at this host: whether files exist, kernel and initrd fit, memory suffices, paths are free
    #[arg(long)]
    no_host: bool,
    /// Print the complete configuration as JSON: from options to a file for --config
    #[arg(long)]
    print: bool,
    #[command(flatten)]
    guest: Box<GuestArgs>,
}

const COMMANDS: [&str; 7] = ["run", "check-config", "disk-info", "bhyve", "qemu", "explain", "from-vmadm"];

const RUN_ABOUT: &str = "\
Run a guest until it powers off.

Everything can be said with options, or in a JSON file (--config), or both: options beside a file override its \
values; --disk, --limit-group, --net and --log add to its lists. 'zvmm check-config --print OPTIONS' writes the file for you.

Sizes are bytes, or have a suffix K, M, G or T. In option values with keys, a comma inside a value is written twice. \
Relative paths start at the working directory.";

const EXAMPLES: &str = "\
Examples:
  A Debian guest on this terminal (Ctrl-A x leaves, Ctrl-A h helps):
    zvmm run --cpus 2 --memory 512M --kernel vmlinuz --initrd initrd.img \\
      --cmdline 'root=/dev/vda1 console=ttyS0' --disk root.img \\
      --net tap=tap0,mac=52:54:00:12:34:56 --serial stdio

  The same from a file, and once more with more memory:
    zvmm check-config --print OPTIONS… > vm.json
    zvmm run --config vm.json
    zvmm run --config vm.json --memory 2G

  In the background, controlled through a socket (QMP: one JSON object a line):
    zvmm run --config vm.json --serial socket:vm.com1 --qmp vm.qmp &
    echo '{\"execute\":\"qmp_capabilities\"} {\"execute\":\"system_powerdown\"}' | nc -U vm.qmp

Signals:
  SIGTERM  presses the power button, however often it comes
  SIGINT   presses the power button; a second one stops at once
           (with a serial line on the terminal Ctrl-C goes to the guest)

Exit statuses:
";

fn command() -> clap::Command {
    let after =
        format!("{EXAMPLES}{}A bug ends it with SIGABRT (134 in shells), and is worth a report.", Exit::table());
    Cli::command().mut_subcommand("run", |run| run.after_long_help(after))
}

/// Whose exit statuses the process ends with that is started with this command line, the program's name included.
pub fn convention(args: &[OsString]) -> ExitConvention {
    brand::started_as(args).map_or(ExitConvention::Own, |start| start.convention())
}

/// Runs the process with this command line, the program's name included, and this way to a hypervisor.
pub fn main_with(args: impl IntoIterator<Item = OsString>, open: OpenHypervisor<'_>) -> ExitCode {
    let args: Vec<OsString> = args.into_iter().collect();
    let (convention, outcome) = match brand::started_as(&args) {
        Some(start) => {
            secrets::wipe(args.iter().any(|arg| secrets::is_in(arg.as_encoded_bytes())));
            (start.convention(), start.run(open))
        }
        None => (ExitConvention::Own, dispatch(args, open)),
    };
    let exit = outcome.unwrap_or_else(|error| {
        logging::say(error);
        Exit::Config
    });
    convention.status(exit).into()
}

fn dispatch(args: impl IntoIterator<Item = OsString>, open: OpenHypervisor<'_>) -> Result<Exit, ConfigError> {
    let cli = match parse(args)? {
        Ok(cli) => cli,
        Err(help) => {
            // Help that nobody reads (a closed pipe) is no failure.
            let _ = help.print();
            return Ok(Exit::Done);
        }
    };
    match cli.command {
        Command::Run { guest } => {
            let config = guest.into_config()?;
            config.check()?;
            config.check_host()?;
            Ok(crate::run::run(&config, open))
        }
        Command::CheckConfig(check) => check_config(check),
        Command::DiskInfo(disks) => disk_info::run(disks),
        Command::Bhyve(BrandArgs { args }) => brand::Start::bhyve(args).run(open),
        Command::Qemu(BrandArgs { args }) => brand::Start::qemu(args).run(open),
        Command::Explain(args) => brand::explain(args),
        Command::FromVmadm(args) => from_vmadm::run(args),
    }
}

/// What was typed, or the help that was asked for.
fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Result<Cli, clap::Error>, ConfigError> {
    let args: Vec<OsString> = args.into_iter().collect();
    match command().try_get_matches_from(&args).and_then(|matches| Cli::from_arg_matches(&matches)) {
        Ok(cli) => Ok(Ok(cli)),
        Err(error) if !error.use_stderr() => Ok(Err(error)),
        Err(error) if error.kind() == ErrorKind::InvalidUtf8 => {
            let wrong = args.iter().find(|arg| arg.to_str().is_none()).cloned().unwrap_or_default();
            Err(ConfigError::Usage(format!("'{}' is not UTF-8 text", wrong.display())))
        }
        Err(error) => Err(ConfigError::Usage(one_line(&error))),
    }
}

/// The options of a guest in a command line, the program's name included; `None` where help was asked for, or
/// a command that has none of them.
///
/// # Errors
/// As [`main_with`] says them.
pub fn guest_arguments(args: impl IntoIterator<Item = OsString>) -> Result<Option<GuestArgs>, ConfigError> {
    let Ok(cli) = parse(args)? else { return Ok(None) };
    Ok(match cli.command {
        Command::Run { guest } => Some(*guest),
        Command::CheckConfig(check) => Some(*check.guest),
        Command::DiskInfo(disks) => Some(*disks.guest),
        Command::Bhyve(_) | Command::Qemu(_) | Command::Explain(_) | Command::FromVmadm(_) => None,
    })
}

fn check_config(check: CheckArgs) -> Result<Exit, ConfigError> {
    let mut guest = check.guest;
    guest.config = guest.config.or(check.file);
    let name = guest.config.as_deref().unwrap_or(Path::new("configuration")).display().to_string();
    let config = guest.into_config()?;
    let mut problems = config.problems();
    if problems.is_empty() && !check.no_host {
        problems.extend(config.check_host().err());
    }
    let mut problems: Vec<String> = problems.iter().map(ToString::to_string).collect();
    if problems.is_empty() && !check.no_host {
        let phys_bits = HostFacts::read().phys_addr_bits;
        problems.extend(machine::check_boot(&config, phys_bits).err().map(|error| error.to_string()));
        problems.extend(
            config.disks.iter().filter_map(|disk| machine::disk::check(disk).err()).map(|error| error.to_string()),
        );
    }
    for problem in &problems {
        logging::say(format_args!("{name}: {problem}"));
    }
    if !problems.is_empty() {
        return Ok(Exit::Config);
    }
    if check.print {
        logging::print(config.to_json());
    } else {
        logging::print(format_args!("{name}: good"));
    }
    Ok(Exit::Done)
}

/// clap's errors are paragraphs; ours are one line with the nearest valid name.
fn one_line(error: &clap::Error) -> String {
    let text = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.clone()),
        Some(ContextValue::Strings(texts)) => texts.first().cloned(),
        _ => None,
    };
    let suggest = |kind| text(kind).map(|name| format!("; did you mean '{name}'?")).unwrap_or_default();
    let name = |arg: &str| arg.split_whitespace().next().unwrap_or_default().to_owned();
    let wrong = text(ContextKind::InvalidArg).unwrap_or_default();
    let rendered = error.render().to_string();
    let first_line = rendered.lines().next().unwrap_or_default();
    match error.kind() {
        ErrorKind::UnknownArgument if wrong.starts_with('-') => {
            format!("unknown option '{wrong}'{}", suggest(ContextKind::SuggestedArg))
        }
        ErrorKind::UnknownArgument => format!("'{wrong}' belongs to no option"),
        ErrorKind::InvalidSubcommand => {
            let wrong = text(ContextKind::InvalidSubcommand).unwrap_or_default();
            nearest::unknown("command", &wrong, COMMANDS.into_iter())
        }
        ErrorKind::MissingSubcommand | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            "no command; the commands are run, check-config, disk-info, bhyve, qemu, explain and from-vmadm, and --help \
             explains them"
                .to_owned()
        }
        ErrorKind::InvalidValue if text(ContextKind::InvalidValue).unwrap_or_default().is_empty() => {
            format!("{}: no value is given", name(&wrong))
        }
        ErrorKind::TooManyValues => format!("{}: it takes no value", name(&wrong)),
        ErrorKind::ArgumentConflict => match text(ContextKind::PriorArg) {
            Some(other) if other != wrong => format!("{} and {} cannot both be given", name(&wrong), name(&other)),
            _ => format!("{}: it is given more than once", name(&wrong)),
        },
        _ => first_line.trim_start_matches("error: ").to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        command().debug_assert();
    }

    #[test]
    fn run_help_names_every_exit_status_and_the_way_out_of_the_console() {
        let mut command = command();
        let run = command.find_subcommand_mut("run").unwrap();
        let help = run.render_long_help().to_string();
        for exit in Exit::ALL {
            assert!(help.contains(exit.meaning()), "{exit:?}");
        }
        assert!(help.contains("Ctrl-A x"));
    }
}
