//! What holds for every configuration that a front end makes, and for whatever is said about one that it does not.

use std::fmt::Display;
use std::path::Path;

use zvmm::config::{Fate, Note, Translation, VirtioInterfaces, VmConfig};

/// What a configuration file is called.
pub const FILE: &str = "vm.json";

/// A configuration that was accepted reads back as itself, and everything that is said about it is well said.
///
/// # Panics
/// On a finding.
pub fn configuration(config: &VmConfig) {
    // JSON is text: a path that is not can be typed, but not printed.
    let paths = [Some(&config.boot.kernel), config.boot.initrd.as_ref(), config.qmp.as_ref(), config.pid_file.as_ref()];
    let disks = config.disks.iter().map(|disk| &disk.path);
    if paths.into_iter().flatten().chain(disks).all(|path| path.to_str().is_some()) {
        let printed = config.to_json();
        let again = VmConfig::from_json(Path::new(FILE), &printed);
        assert_eq!(again.as_ref().ok(), Some(config), "{again:?} from {printed}");
    }
    for problem in config.problems() {
        message(&problem);
    }
    assert_eq!(config.check().is_ok(), config.problems().is_empty());
    if config.check().is_ok() {
        let topology = config.cpus.topology();
        assert_eq!(
            u16::from(topology.sockets) * u16::from(topology.cores) * u16::from(topology.threads),
            u16::from(config.cpus.count)
        );
        let _ = (config.cpu_model(), config.com_ports(), config.has_ps2(), config.memory.end_of_ram());
        config.slot_plan().expect("a good configuration has a place for every device");
    }
}

/// A message is one line that does nothing to a terminal, and says something. Returns it.
///
/// # Panics
/// On a finding.
pub fn message(what: impl Display) -> String {
    let line = zvmm::fuzzing::said(what);
    assert!(!line.contains(char::is_control), "{line:?} is no plain line");
    assert!(!line.trim().is_empty());
    line
}

/// What another VMM's command line came to: a configuration, notes that are plain lines without a password, every device in
/// the place that guests remember it in, and a table for people in which no text pretends to be more than one row.
///
/// # Panics
/// On a finding.
pub fn translation(translation: &Translation) {
    let Translation { config, notes } = translation;
    configuration(config);
    notes.iter().for_each(note);

    let disks = config.disks.iter().map(|disk| disk.slot);
    let nets = config.nets.iter().map(|net| net.slot);
    let others = [config.rng.as_ref().map(|rng| rng.slot), config.console.as_ref().map(|console| console.slot)];
    let mut slots: Vec<_> = disks.chain(nets).chain(others.into_iter().flatten()).collect();
    assert!(!slots.contains(&None), "a device has no place of its own: {config:?}");
    let devices = slots.len();
    slots.sort();
    slots.dedup();
    assert!(slots.len() == devices || config.check().is_err(), "two devices have one place: {config:?}");

    let smbios = &config.smbios;
    let strings = [&smbios.manufacturer, &smbios.product, &smbios.version, &smbios.serial, &smbios.sku, &smbios.family];
    let shown = if config.slot_plan().is_ok() { devices } else { 0 };
    let rows = ["name", "profile", "cpus", "memory", "boot", "reset", "fault"].len()
        + config.uuid.iter().count()
        + strings.into_iter().flatten().count()
        + config.serials.iter().flatten().count()
        + usize::from(config.virtio != VirtioInterfaces::Both)
        + config.console.iter().count()
        + config.debug_port.iter().count()
        + shown
        + config.problems().len()
        + notes.len();
    let table = zvmm::fuzzing::machine_table(translation);
    assert!(!table.replace('\n', "").contains(char::is_control), "{table:?} is no plain table");
    assert_eq!(table.lines().count(), rows, "rows of\n{table}");
}

fn note(note: &Note) {
    let line = message(note);
    // A display's password: nothing else that a guest is started with is a secret.
    let is_device = ["-s ", "-vnc ", "-spice "].iter().any(|option| line.starts_with(option));
    if note.fate == Fate::NotBuilt
        && is_device
        && let Some((_, secret)) = line.split_once(",password=")
    {
        assert!(secret.starts_with('…'), "'{line}' tells a password");
    }
}
