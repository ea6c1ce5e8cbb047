//! The machine of a configuration, as a table for people.

use std::fmt::Write;

use crate::config::{
    Carrier, DiskConfig, NetConfig, OnReset, OnTripleFault, Slot, Translation, VirtioInterfaces, VmConfig, format_size,
};
use crate::logging;

/// The machine that a command line comes to, what is wrong with it, and what of the command line has no effect.
pub(crate) fn table(translation: &Translation) -> String {
    let Translation { config, notes } = translation;
    let mut text = String::new();
    let mut row = |name: &str, what: String| {
        // What somebody called a guest or a disk must neither look like a row of its own nor reach the terminal as it is.
        // A String takes whatever is written.
        let _ = writeln!(text, "{name:<10} {}", logging::line(what));
    };
    row("name", config.name.clone());
    if let Some(uuid) = config.uuid {
        row("uuid", uuid.to_string());
    }
    row("profile", word(&config.profile));
    let topology = config.cpus.topology();
    let (sockets, cores, threads) = (topology.sockets, topology.cores, topology.threads);
    row("cpus", format!("{}: {sockets} sockets × {cores} cores × {threads} threads", config.cpus.count));
    row("memory", memory(config));
    row("boot", boot(config));
    for (name, value) in smbios(config) {
        row("smbios", format!("{name} {value}"));
    }
    for (name, backend) in config.backends() {
        row(name, backend.to_string());
    }
    devices(config, &mut row);
    match config.virtio {
        VirtioInterfaces::Both => {}
        VirtioInterfaces::Legacy => row("virtio", "for drivers of virtio 0.9 alone".to_owned()),
        VirtioInterfaces::Modern => row("virtio", "for drivers of virtio 1 alone".to_owned()),
    }
    row(
        "reset",
        match config.on_reset {
            OnReset::Exit => "ends the process".to_owned(),
            OnReset::Restart => "starts the guest again in this process".to_owned(),
        },
    );
    row(
        "fault",
        match config.on_triple_fault {
            OnTripleFault::Exit => "a triple fault ends the process".to_owned(),
            OnTripleFault::Reset => "a triple fault is a reset".to_owned(),
        },
    );
    for problem in config.problems() {
        row("problem", problem.to_string());
    }
    for note in notes {
        row("note", note.to_string());
    }
    text
}

/// What JSON calls it.
fn word(value: &impl serde::Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        other => format!("{other:?}"),
    }
}

fn memory(config: &VmConfig) -> String {
    let memory = &config.memory;
    let mut text = format_size(memory.size_bytes);
    for (is_so, how) in [(memory.lock, ", locked"), (memory.reservoir, ", from the reservoir")] {
        if is_so {
            text.push_str(how);
        }
    }
    text
}

fn boot(config: &VmConfig) -> String {
    let boot = &config.boot;
    if boot.kernel.as_os_str().is_empty() {
        return "nothing".to_owned();
    }
    let mut text = boot.kernel.display().to_string();
    if let Some(initrd) = &boot.initrd {
        text.push_str(&format!(" initrd {}", initrd.display()));
    }
    if !boot.cmdline.is_empty() {
        text.push_str(&format!(" cmdline {}", boot.cmdline));
    }
    text
}

fn smbios(config: &VmConfig) -> impl Iterator<Item = (&'static str, &String)> {
    let smbios = &config.smbios;
    [
        ("manufacturer", &smbios.manufacturer),
        ("product", &smbios.product),
        ("version", &smbios.version),
        ("serial", &smbios.serial),
        ("sku", &smbios.sku),
        ("family", &smbios.family),
    ]
    .into_iter()
    .filter_map(|(name, value)| Some((name, value.as_ref()?)))
}

/// Every PCI device in the order of its slot. Where two are in each other's way there is no plan, and a problem says so.
fn devices(config: &VmConfig, row: &mut impl FnMut(&str, String)) {
    let Ok(plan) = config.slot_plan() else { return };
    let mut devices: Vec<(Slot, String)> = Vec::new();
    devices.extend(plan.disks.iter().copied().zip(config.disks.iter().map(|each| disk(each, config.cpus.count))));
    devices.extend(plan.nets.iter().copied().zip(config.nets.iter().map(net)));
    devices.extend(plan.console.map(|slot| (slot, "console virtio-console".to_owned())));
    devices.extend(plan.rng.map(|slot| (slot, "rng virtio-rng".to_owned())));
    devices.sort_by_key(|(slot, _)| *slot);
    for (slot, device) in devices {
        row(&format!("slot {slot}"), device);
    }
}

fn disk(disk: &DiskConfig, vcpus: u8) -> String {
    let mut text = format!("{} virtio-blk {}", disk.id, disk.path.display());
    if let Some(serial) = &disk.serial {
        text.push_str(&format!(" serial {serial}"));
    }
    text.push_str(&format!(" queues {}×{}", disk.queue_count(vcpus), disk.queue_size));
    let sizes = [("block", disk.block_size), ("physical block", disk.physical_block_size)];
    for (name, bytes) in sizes.into_iter().filter_map(|(name, bytes)| Some((name, bytes?))) {
        text.push_str(&format!(" {name} {bytes}"));
    }
    if let Some(cache) = &disk.cache {
        text.push_str(&format!(" cache {}", word(cache)));
    }
    for (is_so, what) in
        [(disk.read_only, " read-only"), (!disk.discard, " no discard"), (disk.write_through, " write-through")]
    {
        if is_so {
            text.push_str(what);
        }
    }
    text
}

fn net(net: &NetConfig) -> String {
    let mac = net.mac.map_or("of the link".to_owned(), |mac| mac.to_string());
    let carrier = match net.carrier {
        Carrier::Tap | Carrier::Vnic if net.vhost => " by vhost".to_owned(),
        Carrier::Tap | Carrier::Vnic => String::new(),
        other => format!(" by {}", other.key()),
    };
    let pairs = match net.queue_count() {
        1 => String::new(),
        pairs => format!("{pairs}×"),
    };
    format!("{} virtio-net {}{carrier} mac {mac} queues {pairs}{}", net.id, net.link_name(), net.queue_size)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::bhyve::{Request, translate};

    #[test]
    fn a_machine_is_shown_with_its_problems_and_what_has_no_effect() {
        let args = [
            "-HS",
            "-U",
            "6e2b1f0a-2c55-4b63-9a53-0d6f3a1f7c11",
            "-B",
            "1,product=SmartDC HVM",
            "-c",
            "2",
            "-m",
            "1g",
            "-l",
            "com1,/dev/zconsole",
            "-s",
            "31,lpc",
            "-s",
            "6:0,virtio-net-viona,net0",
            "-s",
            "0:4:0,virtio-blk,/dev/zvol/rdsk/d,nodelete,sectorsize=4096,ser=S",
            "-s",
            "7,virtio-rnd",
            "-s",
            "30,fbuf",
            "SYSbhyve-7",
        ];
        let Ok(Request::Run(translation)) = translate(&args.map(str::to_owned)) else { panic!() };
        assert_eq!(
            table(&translation),
            "name       SYSbhyve-7\n\
             uuid       6e2b1f0a-2c55-4b63-9a53-0d6f3a1f7c11\n\
             profile    bhyve\n\
             cpus       2: 2 sockets × 1 cores × 1 threads\n\
             memory     1G, locked\n\
             boot       nothing\n\
             smbios     product SmartDC HVM\n\
             com1       device:/dev/zconsole\n\
             slot 4     disk0 virtio-blk /dev/zvol/rdsk/d serial S queues 2×256 block 4096 physical block 4096 no discard\n\
             slot 6     net0 virtio-net net0 mac of the link queues 1024\n\
             slot 7     rng virtio-rng\n\
             reset      ends the process\n\
             fault      a triple fault ends the process\n\
             problem    boot.kernel (--kernel): no kernel is given, and there is nothing else to boot\n\
             note       -H: ignored: a halted vCPU always gives its host CPU away\n\
             note       -s 30,fbuf: not built yet; the guest runs without it\n"
        );
    }

    #[test]
    fn no_text_of_a_command_line_is_more_than_a_part_of_its_row() {
        let args = ["-B", "1,product=a\nslot 9     b", "-s", "4,virtio-blk,/d\x1b[2J,serial=s", "vm\nproblem    none"];
        let Ok(Request::Run(translation)) = translate(&args.map(str::to_owned)) else { panic!() };
        let table = table(&translation);
        assert!(!table.replace('\n', "").contains(char::is_control), "{table}");
        for row in [
            "name       vm problem    none",
            "smbios     product a slot 9     b",
            "slot 4     disk0 virtio-blk /d\\u{1b}[2J serial s queues 1×256",
        ] {
            assert!(table.lines().any(|line| line == row), "{row} is not in {table}");
        }
    }
}
