//! Memory, vCPUs, and what else is one for the whole machine.

use crate::options::Options;
use crate::{
    ConfigError, CpuConfig, MAX_VCPUS, SandboxMode, Topology, Uuid, VmConfig, nearest, parse_size, vcpu_limits,
};

/// Guest memory without `-m`, in bytes.
pub(super) const DEFAULT_MEMORY: u64 = 128 << 20;

/// The CPU model that stands for qemu64: the lowest baseline that has a name. It has all of qemu64 that a guest on a
/// processor with EPT saw (SSE3, CMPXCHG16B, POPCNT), and SSSE3 and SSE4 beside it, so what was installed on qemu64 runs;
/// and unlike `host` it stays the same on every host, as qemu64 does.
const QEMU64: &str = "x86-64-v2";

/// The vCPUs of a command line without `-cpu` and `-smp`.
pub(super) fn default_cpus(cpus: &mut CpuConfig) {
    QEMU64.clone_into(&mut cpus.model);
    cpus.topology = Some(Topology { sockets: 1, cores: 1, threads: 1 });
}

/// `-m`: MiB unless there is a suffix; 0 is the default.
pub(super) fn memory(text: &str) -> Result<u64, ConfigError> {
    let problem = |problem| ConfigError::setting("-m", problem);
    let bytes = match text.parse::<u64>() {
        Ok(mib) => mib.checked_mul(1 << 20).ok_or_else(|| problem(format!("{text} MiB do not fit in 64 bits")))?,
        Err(_) => {
            // qemu writes bytes with B, where a plain number is MiB.
            let digits = text.strip_suffix(['b', 'B']).filter(|digits| digits.bytes().all(|b| b.is_ascii_digit()));
            parse_size(digits.unwrap_or(text)).map_err(|_| {
                problem(format!("'{text}' is not a size; write a number of MiB, or a number with K, M, G or T"))
            })?
        }
    };
    Ok(if bytes == 0 { DEFAULT_MEMORY } else { bytes })
}

/// `-name`: the name of a process is Linux' own and goes by.
pub(super) fn name(text: &str) -> Result<String, ConfigError> {
    match text.split_once(',') {
        None => Ok(text.to_owned()),
        Some((name, rest)) if rest.starts_with("process=") => Ok(name.to_owned()),
        Some((_, rest)) => {
            Err(ConfigError::setting("-name", format!("unknown key '{rest}'; the valid one is process")))
        }
    }
}

pub(super) fn uuid(option: &str, text: &str) -> Result<Uuid, ConfigError> {
    text.parse().map_err(|error| ConfigError::setting(option, format!("{error}")))
}

/// `-cpu`: a model, and flags to add and take away.
pub(super) fn cpu_model(text: &str) -> Result<String, ConfigError> {
    let (model, flags) = match text.split_once(',') {
        Some((model, flags)) => (model, Some(flags)),
        None => (text, None),
    };
    let ours = match model {
        "qemu64" | "kvm64" => QEMU64,
        "host" => "host",
        _ => {
            let models = ["qemu64", "kvm64", "host"];
            return Err(ConfigError::setting("-cpu", nearest::unknown("CPU model", model, models.into_iter())));
        }
    };
    let Some(flags) = flags else { return Ok(ours.to_owned()) };
    for flag in flags.split(',') {
        if !flag.starts_with(['+', '-']) {
            let problem = format!("'{flag}' is not built; after the model come +FEATURE and -FEATURE");
            return Err(ConfigError::setting("-cpu", problem));
        }
    }
    let model = format!("{ours},{flags}");
    match model.parse::<arch::cpu::CpuModel>() {
        Ok(_) => Ok(model),
        Err(error) => Err(ConfigError::setting("-cpu", error.to_string())),
    }
}

/// `-smp`: what is not said follows as it does in qemu 0.14, where every vCPU is a socket unless cores or threads are named.
pub(super) fn smp(text: &str, cpus: &mut CpuConfig) -> Result<(), ConfigError> {
    let given = Options::read("-smp", text, Some("cpus"), &["sockets", "cores", "threads", "maxcpus"])?;
    let part = |key| match given.number::<u32>(key)? {
        Some(0) => Err(given.problem(format!("{key}=0 is not possible"))),
        number => Ok(number.map(u64::from)),
    };
    let (count, sockets, most) = (part("cpus")?, part("sockets")?, part("maxcpus")?);
    let (cores, threads) = (part("cores")?, part("threads")?);
    let (count, cores, threads) = match (count, sockets) {
        (None, _) | (_, None) => {
            let (cores, threads) = (cores.unwrap_or(1), threads.unwrap_or(1));
            let product = cores.saturating_mul(threads).saturating_mul(sockets.unwrap_or(1));
            (count.unwrap_or(product), cores, threads)
        }
        (Some(count), Some(sockets)) => match cores {
            None => {
                let threads = threads.unwrap_or(1);
                (count, (count / sockets.saturating_mul(threads)).max(1), threads)
            }
            Some(cores) => (count, cores, (count / cores.saturating_mul(sockets)).max(1)),
        },
    };
    if !(1..=u64::from(MAX_VCPUS)).contains(&count) {
        return Err(given.problem(vcpu_limits(count)));
    }
    if let Some(most) = most.filter(|most| !(count..=255).contains(most)) {
        return Err(given.problem(format!("maxcpus={most} is not between the {count} vCPUs and 255")));
    }
    let socket = cores.saturating_mul(threads);
    if !count.is_multiple_of(socket) {
        let problem = format!("{count} vCPUs do not fill sockets of {cores} cores × {threads} threads");
        return Err(given.problem(problem));
    }
    // All are divisors of a count that fits.
    let small = |number: u64| u8::try_from(number).unwrap_or(u8::MAX);
    cpus.count = small(count);
    cpus.topology = Some(Topology { sockets: small(count / socket), cores: small(cores), threads: small(threads) });
    Ok(())
}

/// `-M` and `-machine`: there is one, whatever its version.
pub(super) fn machine(option: &'static str, text: &str) -> Result<(), ConfigError> {
    let given = Options::read(option, text, Some("type"), &["accel"])?;
    let machine = given.text("type")?.unwrap_or_else(|| "pc".to_owned());
    if machine != "pc" && !machine.starts_with("pc-0.") {
        return Err(given.problem(format!("'{machine}' is not built; the machine is pc")));
    }
    match given.text("accel")?.as_deref() {
        None | Some("kvm") => Ok(()),
        Some(other) => Err(given.problem(format!("accel={other} is not built; a guest runs on the hypervisor"))),
    }
}

/// `-smbios`; false for a table that firmware makes.
pub(super) fn smbios(text: &str, config: &mut VmConfig) -> Result<bool, ConfigError> {
    const KEYS: &[&str] = &[
        "file",
        "type",
        "manufacturer",
        "product",
        "version",
        "serial",
        "uuid",
        "sku",
        "family",
        "vendor",
        "date",
        "release",
    ];
    let given = Options::read("-smbios", text, None, KEYS)?;
    if given.text("file")?.is_some() {
        return Err(given.problem("tables from files are not built; use type=1 with its keys"));
    }
    match given.number::<u8>("type")? {
        Some(0) => return Ok(false),
        Some(1) => {}
        Some(other) => return Err(given.problem(format!("type={other} is not built; the type is 1"))),
        None => return Err(given.problem("type is missing; write for example type=1,manufacturer=Joyent")),
    }
    for key in ["vendor", "date", "release"] {
        if given.text(key)?.is_some() {
            return Err(given.problem(format!("{key} is no key of type 1")));
        }
    }
    if let Some(uuid) = given.value("uuid")? {
        config.uuid = Some(uuid);
    }
    let strings = &mut config.smbios;
    for (key, string) in [
        ("manufacturer", &mut strings.manufacturer),
        ("product", &mut strings.product),
        ("version", &mut strings.version),
        ("serial", &mut strings.serial),
        ("sku", &mut strings.sku),
        ("family", &mut strings.family),
    ] {
        if let Some(text) = given.text(key)? {
            *string = Some(text);
        }
    }
    Ok(true)
}

/// `-rtc`: the clock there is, and no other.
pub(super) fn rtc(text: &str) -> Result<(), ConfigError> {
    let given = Options::read("-rtc", text, None, &["base", "clock", "driftfix"])?;
    for (key, built, others) in
        [("base", "utc", "localtime or a date"), ("clock", "host", "vm"), ("driftfix", "none", "slew")]
    {
        // Who misses what slew does has a hypervisor that sees to ticks by itself.
        match given.text(key)?.as_deref() {
            None => {}
            Some(value) if value == built || value == "slew" && key == "driftfix" => {}
            Some(value) => {
                let problem = format!("{key}={value} is not built; the clock has {key}={built} (not {others})");
                return Err(given.problem(problem));
            }
        }
    }
    Ok(())
}

/// `-boot`: judged as qemu does, though nobody but firmware obeys it.
pub(super) fn boot_order(text: &str) -> Result<(), ConfigError> {
    if !text.contains('=') {
        return letters("order", text);
    }
    let given = Options::read("-boot", text, None, &["order", "once", "menu"])?;
    for key in ["order", "once"] {
        if let Some(order) = given.text(key)? {
            letters(key, &order)?;
        }
    }
    given.flag("menu").map(drop)
}

fn letters(key: &str, order: &str) -> Result<(), ConfigError> {
    for (index, letter) in order.char_indices() {
        let problem = match letter {
            'a'..='p' if !order[..index].contains(letter) => continue,
            'a'..='p' => format!("{key}={order} has '{letter}' twice"),
            _ => format!(
                "{key}={order}: '{letter}' is no boot device; they are a (floppy), c (disk), d (CD), n (network)"
            ),
        };
        return Err(ConfigError::setting("-boot", problem));
    }
    Ok(())
}

/// `-sandbox`, as later versions of qemu have it: the keys take more away there, and everything is taken away here.
pub(super) fn sandbox(text: &str) -> Result<SandboxMode, ConfigError> {
    let keys = ["obsolete", "elevateprivileges", "spawn", "resourcecontrol"];
    let given = Options::read("-sandbox", text, Some("enable"), &keys)?;
    for key in keys {
        if let Some(word) = given.text(key)?.filter(|word| !["allow", "deny", "children"].contains(&word.as_str())) {
            return Err(given.problem(format!("{key}={word} is neither allow nor deny")));
        }
    }
    Ok(if given.flag("enable")? { SandboxMode::Strict } else { SandboxMode::Off })
}

pub(super) fn balloon(text: &str) -> Result<(), ConfigError> {
    match text {
        "none" => Ok(()),
        _ => Err(ConfigError::setting("-balloon", format!("'{text}' is not built; write none"))),
    }
}

/// `-vga`: whether the card is a PCI device.
pub(super) fn vga_has_slot(text: &str) -> Result<bool, ConfigError> {
    match text.split(',').next().unwrap_or_default() {
        "std" | "cirrus" | "vmware" | "qxl" => Ok(true),
        "xenfb" | "none" => Ok(false),
        model => {
            let models = ["std", "cirrus", "vmware", "qxl", "xenfb", "none"];
            Err(ConfigError::setting("-vga", nearest::unknown("graphics card", model, models.into_iter())))
        }
    }
}

/// `-usbdevice`: what a guest only has for a display goes by; a disk or a network card would be missed.
pub(super) fn usb_device(text: &str) -> Result<(), ConfigError> {
    match text.split([':', ',']).next().unwrap_or_default() {
        "tablet" | "mouse" | "keyboard" | "wacom-tablet" => Ok(()),
        kind => {
            let problem =
                format!("'{kind}' is not built; tablet, mouse, keyboard and wacom-tablet come with the display");
            Err(ConfigError::setting("-usbdevice", problem))
        }
    }
}
