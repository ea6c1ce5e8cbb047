//! `zvmm-double [OPTIONS] ARGUMENTS OF zvmm…`: the whole VMM on a double of an illumos kernel.
//!
//! Options, all before the arguments of zvmm:
//!
//! * `--hypervisor bhyve|illumos-kvm`: which kernel interface; bhyve if nothing is said.
//! * `--zone brand|global`: whether the process lives in a zone of the brand that goes with the interface, as it does if
//!   nothing is said, or in the global zone.
//! * `--volume FILE[,read-only][,cached][,block=BYTES]`: the file is a volume, as it stands on stable storage, and its path
//!   is the volume's raw device. What the guest has not flushed when the process ends is not in the file. Repeatable.
//! * `--link NAME[,mac=ADDRESS][,mtu=BYTES]`: a data link of the zone, for interfaces in the kernel (`--net viona=NAME`). Its
//!   other end is the TAP device of that name; its address is, if nothing is said, that of the TAP device with another bit,
//!   and its MTU 1500. Repeatable.
//! * `--inject CALL:MOMENT:ERRNO`: makes calls fail, `VM_RUN:3:EBUSY`, `VM_RUN:3+:EBUSY`, `VM_RUN:3x5:EBUSY`. Repeatable.
//! * `--mutate DAMAGE:CALL:MOMENT`: damages calls, `drop:VM_PAUSE:1`, `resize=-8:VM_RUN:2`. Repeatable.
//! * `--bhyvectl SOCKET`: whoever connects there is an operator in the global zone, as `zvmm_double::bhyvectl` says.
//! * `--privileges FILE`: writes in which order the process gave up its privileges, opened the first device and entered the
//!   guest, a step a line.
//! * `--calls FILE`: writes how often each call was made.
//! * `--record FILE`: writes what the guest does to its machine, as `zvmm_double::record` says.
//!
//! Every TAP interface of this machine is a data link of the zone, by its name, with the address that `--link` would give it:
//! `--net viona=tap0`, `--net vnd=tap0`, `--net dlpi=tap0`. It is opened when the guest's interface is.
//!
//! The process is not confined as on Linux, as it does a kernel's work: with `--sandbox strict` it gives up the privileges of
//! the system that it is the kernel of.
//!
//! Ends as zvmm does; or, where a rule of the interface was broken or something was left behind, with status 70, after one
//! line a violation on stderr.

use std::process::ExitCode;

/// As in zvmm itself.
#[cfg(target_env = "musl")]
#[global_allocator]
static HEAP: dlmalloc::GlobalDlmalloc = dlmalloc::GlobalDlmalloc;

#[cfg(target_os = "linux")]
fn main() -> ExitCode {
    double::main()
}

#[cfg(not(target_os = "linux"))]
fn main() -> ExitCode {
    eprintln!("zvmm-double: runs on Linux only, where it stands in for an illumos kernel");
    ExitCode::from(64)
}

#[cfg(target_os = "linux")]
mod double {
    use std::ffi::OsString;
    use std::fs::File;
    use std::io::{BufWriter, Write as _};
    use std::path::Path;
    use std::process::ExitCode;
    use std::sync::Arc;

    use devices_host::sys::{Link, Sys};
    use devices_host::tap::Tap;
    use zvmm::config::Mac;
    use zvmm::exit::{Exit, ExitConvention};
    use zvmm::hypervisor::bhyve::{BhyveConfig, BhyveHypervisor};
    use zvmm::hypervisor::illumos_kvm::IllumosKvmHypervisor;
    use zvmm::hypervisor::{Hypervisor, OpenHypervisor};
    use zvmm_double::links::Links;
    use zvmm_double::privileges::OfProcess;
    use zvmm_double::record::{Record, Recording};
    use zvmm_double::viona::{self, Viona, Wire};
    use zvmm_double::zvol::{VolumeSpec, Zvols};
    use zvmm_double::{
        DoubleSys, Driver, Host, Injecting, Injection, Mutating, Mutation, Zone, bhyve, bhyvectl, illumos_kvm,
    };

    /// A rule was broken.
    const BROKEN: u8 = 70;
    /// The options before zvmm's are wrong (EX_USAGE).
    const USAGE: u8 = 64;

    /// The options before zvmm's.
    const OWN: [&str; 10] = [
        "--hypervisor",
        "--zone",
        "--volume",
        "--link",
        "--inject",
        "--mutate",
        "--bhyvectl",
        "--privileges",
        "--calls",
        "--record",
    ];
    /// The first id of a link that was given: the others have the number of their TAP interface.
    const LINK_IDS: u32 = 1 << 24;

    #[derive(Clone, Copy, PartialEq, Eq)]
    enum Interface {
        Bhyve,
        IllumosKvm,
    }

    struct Options {
        interface: Interface,
        global: bool,
        volumes: Vec<(String, VolumeOptions)>,
        links: Vec<(String, Link)>,
        injections: Vec<Injection>,
        mutations: Vec<Mutation>,
        bhyvectl: Option<OsString>,
        privileges: Option<OsString>,
        calls: Option<OsString>,
        record: Option<OsString>,
        rest: Vec<OsString>,
    }

    /// What a volume is like beside what its file says.
    #[derive(Default)]
    struct VolumeOptions {
        read_only: bool,
        cached: bool,
        block_bytes: Option<u32>,
    }

    fn volume(text: &str) -> Result<(String, VolumeOptions), String> {
        let mut parts = text.split(',');
        let path = parts.next().unwrap_or_default().to_owned();
        let mut options = VolumeOptions::default();
        for part in parts {
            match part.split_once('=') {
                None if part == "read-only" => options.read_only = true,
                None if part == "cached" => options.cached = true,
                Some(("block", bytes)) => {
                    options.block_bytes = Some(bytes.parse().map_err(|_| format!("--volume: '{part}'"))?);
                }
                _ => return Err(format!("--volume: '{part}' is unknown")),
            }
        }
        Ok((path, options))
    }

    /// The driver of these volumes.
    fn zvols(volumes: &[(String, VolumeOptions)]) -> Result<Arc<Zvols>, String> {
        let zvols = Zvols::new();
        for (path, options) in volumes {
            let open = || {
                let stable = File::options().read(true).write(true).open(path)?;
                let size_bytes = stable.metadata()?.len();
                Ok((stable, size_bytes))
            };
            let (stable, size_bytes) = open().map_err(|error: std::io::Error| format!("{path}: {error}"))?;
            let VolumeOptions { read_only, cached: write_cache, block_bytes } = *options;
            let usual = VolumeSpec::new(size_bytes);
            let block_bytes = block_bytes.unwrap_or(usual.block_bytes);
            zvols.add(path, stable, VolumeSpec { read_only, write_cache, block_bytes, ..usual });
        }
        Ok(zvols)
    }

    /// A data link, and what its id is.
    fn link(id: u32, text: &str) -> Result<(String, Link), String> {
        let mut parts = text.split(',');
        let name = parts.next().unwrap_or_default().to_owned();
        let (mut mac, mut mtu) = (None, 1500);
        for part in parts {
            match part.split_once('=') {
                Some(("mac", text)) => mac = Some(text.parse::<Mac>().map_err(|error| format!("--link: {error}"))?),
                Some(("mtu", text)) => mtu = text.parse().map_err(|_| format!("--link: '{part}'"))?,
                _ => return Err(format!("--link: '{part}' is unknown")),
            }
        }
        let of_tap = || -> Result<Mac, String> {
            let text = std::fs::read_to_string(format!("/sys/class/net/{name}/address"));
            let text = text.map_err(|error| format!("--link: {name}: {error}"))?;
            let own: Mac = text.trim_end().parse().map_err(|error| format!("--link: {name}: {error}"))?;
            Ok(own.of_other_end())
        };
        let mac = mac.map_or_else(of_tap, Ok)?.0;
        Ok((name, Link { id, mac, mtu }))
    }

    /// The driver of the kernel's network queues, with these links.
    fn connect(host: &Host, driver: &Viona, links: &[(String, Link)]) -> Result<(), String> {
        for (name, link) in links {
            host.add_link(name, *link);
            driver.connect(name, Wire::Tap(Tap::open(name).map_err(|error| format!("--link: {error}"))?));
        }
        Ok(())
    }

    impl Options {
        fn parse(mut args: impl Iterator<Item = OsString>) -> Result<Self, String> {
            let mut options = Self {
                interface: Interface::Bhyve,
                global: false,
                volumes: Vec::new(),
                links: Vec::new(),
                injections: Vec::new(),
                mutations: Vec::new(),
                bhyvectl: None,
                privileges: None,
                calls: None,
                record: None,
                rest: args.next().into_iter().collect(),
            };
            while let Some(arg) = args.next() {
                let name = arg.to_str().unwrap_or_default();
                if !OWN.contains(&name) {
                    options.rest.push(arg);
                    break;
                }
                let value = args.next().ok_or_else(|| format!("{name}: no value is given"))?;
                let text = value.to_str().ok_or_else(|| format!("{name}: no text"))?;
                match (name, text) {
                    ("--hypervisor", "bhyve") => options.interface = Interface::Bhyve,
                    ("--hypervisor", "illumos-kvm") => options.interface = Interface::IllumosKvm,
                    ("--zone", "brand") => options.global = false,
                    ("--zone", "global") => options.global = true,
                    ("--volume", text) => options.volumes.push(volume(text)?),
                    ("--link", text) => {
                        let id = LINK_IDS + u32::try_from(options.links.len()).unwrap_or_default();
                        options.links.push(link(id, text)?);
                    }
                    ("--inject", text) => options.injections.push(text.parse()?),
                    ("--mutate", text) => options.mutations.push(text.parse()?),
                    ("--bhyvectl", _) => options.bhyvectl = Some(value),
                    ("--privileges", _) => options.privileges = Some(value),
                    ("--calls", _) => options.calls = Some(value),
                    ("--record", _) => options.record = Some(value),
                    (name, text) => return Err(format!("{name}: '{text}' is unknown")),
                }
            }
            options.rest.extend(args);
            Ok(options)
        }
    }

    pub fn main() -> ExitCode {
        let options = match Options::parse(std::env::args_os()) {
            Ok(options) => options,
            Err(error) => {
                eprintln!("zvmm-double: {error}");
                return USAGE.into();
            }
        };
        // Before there is a guest whose record would be lost, and before the process may open no more files.
        let record = match options.record.as_ref().map(|file| File::create(file).map_err(|error| (file, error))) {
            None => None,
            Some(Ok(file)) => Some(Record::new(BufWriter::new(file))),
            Some(Err((file, error))) => {
                eprintln!("zvmm-double: {}: {error}", file.display());
                return USAGE.into();
            }
        };
        let (driver, zone): (Arc<dyn Driver>, _) = match options.interface {
            Interface::Bhyve => (bhyve::Vmm::new(), Zone::bhyve(1)),
            Interface::IllumosKvm => (illumos_kvm::Kvm::new(), Zone::kvm(1)),
        };
        let mut zone = if options.global { Zone::global() } else { zone };
        zone.nodes.extend(options.volumes.iter().map(|(path, _)| path.clone()));
        let zvols = match zvols(&options.volumes) {
            Ok(zvols) => zvols,
            Err(error) => {
                eprintln!("zvmm-double: {error}");
                return USAGE.into();
            }
        };
        // What is recorded rings where it is seen: a kernel that watched doorbells would miss them.
        let kernel = viona::Config { notify_mmio: record.is_none(), ..viona::Config::default() };
        let (links, queues) = (Links::new(), Viona::with(kernel));
        let drivers = vec![driver, zvols as Arc<dyn Driver>, queues.clone()];
        let host = Host::new([drivers, links.drivers()].concat());
        match links.add_taps(&host) {
            Ok(taps) => taps.iter().for_each(|tap| queues.connect_tap(tap)),
            Err(error) => {
                eprintln!("zvmm-double: the TAP interfaces of this machine: {error}");
                return USAGE.into();
            }
        }
        if let Err(error) = connect(&host, &queues, &options.links) {
            eprintln!("zvmm-double: {error}");
            return USAGE.into();
        }
        let process = DoubleSys::new(&host, zone);
        process.ledger().echo();
        let mutating = Mutating::new(process.clone(), options.mutations);
        let injecting = Injecting::new(mutating, options.injections);

        let convention = zvmm::cli::convention(&options.rest);
        let privileges = OfProcess(process.clone());
        if convention.marks_provisioned() {
            privileges.marks("/var/svc/provisioning");
        }
        zvmm::sandbox::play(Box::new(privileges));
        if let Some(socket) = &options.bhyvectl
            && let Err(error) = bhyvectl::serve(&host, Path::new(socket))
        {
            eprintln!("zvmm-double: {}: {error}", socket.display());
            return USAGE.into();
        }
        // What the status of a guest that has reset itself is, where somebody starts it again then.
        let restart = match convention {
            ExitConvention::Qemu => None,
            convention => Some(ExitCode::from(convention.status(Exit::GuestReset))),
        };
        let sys: Arc<dyn Sys> = injecting.clone();
        let open: OpenHypervisor<'_> = match options.interface {
            Interface::Bhyve => &|config| {
                let hypervisor = BhyveHypervisor::open(sys.clone(), BhyveConfig::from(config))?;
                Ok(Box::new(hypervisor) as Box<dyn Hypervisor>)
            },
            Interface::IllumosKvm => &|_| Ok(Box::new(IllumosKvmHypervisor::open(sys.clone())?)),
        };
        let exit = match &record {
            None => zvmm::main_with(options.rest, open),
            Some(record) => zvmm::main_with(options.rest, &|config| {
                Ok(Box::new(Recording::new(open(config)?, record.clone())) as Box<dyn Hypervisor>)
            }),
        };

        if let Some(Err(error)) = record.map(|record| record.finish()) {
            eprintln!("zvmm-double: {}: {error}", options.record.unwrap_or_default().display());
            return USAGE.into();
        }

        if let Some(file) = options.privileges
            && let Err(error) = std::fs::write(&file, OfProcess(process.clone()).steps().join("\n") + "\n")
        {
            eprintln!("zvmm-double: {}: {error}", file.display());
            return USAGE.into();
        }
        if let Some(file) = options.calls
            && let Err(error) = write_calls(&file, &injecting)
        {
            eprintln!("zvmm-double: {}: {error}", file.display());
            return USAGE.into();
        }
        process.end();
        for leak in process.leaks() {
            // Who asks for the guest to be started again by another process leaves the VM to it.
            if restart != Some(exit) {
                process.note_leak(leak);
            }
        }
        if process.violations().is_empty() { exit } else { BROKEN.into() }
    }

    fn write_calls(file: &OsString, calls: &Injecting) -> std::io::Result<()> {
        let mut file = std::fs::File::create(file)?;
        for (call, count) in calls.counts() {
            writeln!(file, "{call} {count}")?;
        }
        Ok(())
    }
}
