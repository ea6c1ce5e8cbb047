//! `zvmm from-vmadm`: what SmartOS makes of a guest, and what zvmm makes of that.

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use crate::config::vmadm::{Argv, Document};
use crate::config::{ConfigError, Translation, VmConfig};
use crate::exit::Exit;
use crate::logging;

pub(super) const EXAMPLES: &str = "\
Examples:
  What is a guest started with, and which machine is that?
    vmadm get UUID > vm.json
    zvmm from-vmadm vm.json

  Its machine as a file for 'zvmm run', with a kernel, as there is no firmware yet:
    zvmm from-vmadm --config-only vm.json > guest.json
    zvmm run --config guest.json --kernel vmlinuz --cmdline 'root=/dev/vda1 console=ttyS0'

  Its command line, a property a line:
    vmadm get UUID | zvmm from-vmadm --argv-only /dev/stdin

The exit status is 2 where the document is no guest's, SmartOS would not start it, or it has a device that zvmm has not.";

#[derive(Debug, Args)]
pub(super) struct FromVmadmArgs {
    /// What 'vmadm get' printed of a guest
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Print the configuration alone, as --config of 'zvmm run' takes it
    #[arg(long)]
    config_only: bool,
    /// Print the command line alone, quoted for a shell, whether zvmm has all that it asks for or not
    #[arg(long, conflicts_with = "config_only")]
    argv_only: bool,
}

/// All there is to say of a guest.
#[derive(Debug, Serialize)]
struct Guest<'a> {
    /// What the process in the zone is given, the program's name included.
    argv: Vec<&'a str>,
    /// What the front end of the brand makes of it.
    config: &'a VmConfig,
    /// What is wrong with that, as far as this host does not matter.
    problems: Vec<String>,
    /// Which arguments have no effect, and why.
    notes: Vec<String>,
}

impl<'a> Guest<'a> {
    fn new(argv: &'a Argv, translation: &'a Translation) -> Self {
        let Translation { config, notes } = translation;
        Self {
            argv: std::iter::once(argv.program()).chain(argv.args()).collect(),
            config,
            problems: config.problems().iter().map(ToString::to_string).collect(),
            notes: notes.iter().map(ToString::to_string).collect(),
        }
    }
}

/// Prints what was asked for. Looks at nothing of this host, which may be another one than the guest's.
pub(super) fn run(args: FromVmadmArgs) -> Result<Exit, ConfigError> {
    let FromVmadmArgs { file, config_only, argv_only } = args;
    let document = Document::read(&file)?;
    let in_file = |error: ConfigError| ConfigError::setting(&file.display().to_string(), error.to_string());
    let argv = document.argv().map_err(in_file)?;
    if argv_only {
        logging::print(argv);
        return Ok(Exit::Done);
    }
    let translation = argv.translate().map_err(in_file)?;
    if config_only {
        logging::print(translation.config.to_json());
    } else {
        let guest = Guest::new(&argv, &translation);
        logging::print(serde_json::to_string_pretty(&guest).unwrap_or_else(|error| error.to_string()));
    }
    Ok(Exit::Done)
}
