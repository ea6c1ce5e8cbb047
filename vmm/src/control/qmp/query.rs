//! Answers about the machine, in the shapes of qemu 0.14 (its `qmp-commands.hx`) with what later versions (its `qapi`
//! schema) added and we know. What is not known is left out.

use serde_json::{Map, Value, json};

use crate::control::inventory::{BarFacts, CharacterFacts, DiskFacts, Inventory, PciFacts, VcpuFacts};

/// What can be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Query {
    /// `query-name`.
    Name,
    /// `query-uuid`.
    Uuid,
    /// `query-kvm`.
    Kvm,
    /// `query-block`.
    Block,
    /// `query-blockstats`.
    BlockStats,
    /// `query-cpus`, which newer clients no longer know.
    Cpus,
    /// `query-cpus-fast`.
    CpusFast,
    /// `query-chardev`.
    Characters,
    /// `query-pci`.
    Pci,
    /// `query-vnc` and `query-spice`.
    Display,
}

/// The answer to a question.
#[cold]
pub fn answer(query: Query, machine: &Inventory) -> Value {
    match query {
        Query::Name => json!({"name": machine.name}),
        Query::Uuid => json!({"UUID": uuid(machine)}),
        Query::Kvm => json!({"enabled": machine.is_kvm, "present": machine.is_kvm}),
        Query::Block => machine.disks.iter().map(block).collect(),
        Query::BlockStats => machine.disks.iter().map(block_stats).collect(),
        Query::Cpus => (0_u32..).zip(&machine.vcpus).map(|(index, vcpu)| cpu(index, vcpu)).collect(),
        Query::CpusFast => (0_u32..).zip(&machine.vcpus).map(|(index, vcpu)| cpu_fast(index, vcpu)).collect(),
        Query::Characters => machine.characters.iter().map(character).collect(),
        Query::Pci => json!([{"bus": 0, "devices": machine.functions.iter().map(function).collect::<Vec<_>>()}]),
        Query::Display => json!({"enabled": false}),
    }
}

/// qemu says zeroes where there is none.
pub fn uuid(machine: &Inventory) -> &str {
    machine.uuid.as_deref().unwrap_or("00000000-0000-0000-0000-000000000000")
}

fn block(disk: &DiskFacts) -> Value {
    let DiskFacts { id, path, read_only, size_bytes, limit_ops, limit_bytes, .. } = disk;
    json!({
        "device": id, "type": "hd", "removable": false, "locked": false,
        "inserted": {
            "file": path, "node-name": id, "ro": read_only, "drv": "raw", "encrypted": false,
            "backing_file_depth": 0, "image": {"filename": path, "format": "raw", "virtual-size": size_bytes},
            "bps": limit_bytes.unwrap_or(0), "bps_rd": 0, "bps_wr": 0,
            "iops": limit_ops.unwrap_or(0), "iops_rd": 0, "iops_wr": 0,
        },
    })
}

fn block_stats(disk: &DiskFacts) -> Value {
    let stats = json!({
        "rd_bytes": disk.read_bytes, "rd_operations": disk.ops.read,
        "wr_bytes": disk.written_bytes, "wr_operations": disk.ops.write,
        "flush_operations": disk.ops.flush, "unmap_operations": disk.ops.discard,
    });
    json!({"device": disk.id, "node-name": disk.id, "stats": stats})
}

/// With interrupts in the kernel a sleeping vCPU is in there, and the process does not know it: `halted` is what qemu says
/// of such vCPUs too.
fn cpu(index: u32, vcpu: &VcpuFacts) -> Value {
    json!({
        "CPU": index, "current": index == 0, "halted": false, "thread_id": vcpu.thread_id, "arch": "x86",
        "qom_path": qom_path(index), "props": topology(vcpu),
    })
}

fn cpu_fast(index: u32, vcpu: &VcpuFacts) -> Value {
    json!({
        "cpu-index": index, "thread-id": vcpu.thread_id, "target": "x86_64", "qom-path": qom_path(index),
        "props": topology(vcpu),
    })
}

fn qom_path(index: u32) -> String {
    format!("/machine/unattached/device[{index}]")
}

fn topology(vcpu: &VcpuFacts) -> Value {
    json!({"socket-id": vcpu.socket, "core-id": vcpu.core, "thread-id": vcpu.thread})
}

fn character(line: &CharacterFacts) -> Value {
    json!({"label": line.label, "filename": line.filename, "frontend-open": true})
}

fn function(function: &PciFacts) -> Value {
    let mut class = Map::new();
    class.insert("class".to_owned(), function.class.into());
    if let Some(desc) = class_name(function.class) {
        class.insert("desc".to_owned(), desc.into());
    }
    let mut shown = json!({
        "bus": 0, "slot": function.slot, "function": function.function, "qdev_id": function.id,
        "class_info": class, "id": {"vendor": function.vendor, "device": function.device},
        "regions": function.bars.iter().map(region).collect::<Vec<_>>(),
    });
    if let Some(irq) = function.irq {
        shown["irq"] = irq.into();
    }
    shown
}

fn region(bar: &BarFacts) -> Value {
    let BarFacts { index, is_io, is_prefetchable, is_64_bit, address, len } = *bar;
    if is_io {
        return json!({"type": "io", "bar": index, "address": address, "size": len});
    }
    json!({
        "type": "memory", "bar": index, "address": address, "size": len, "prefetch": is_prefetchable,
        "mem_type_64": is_64_bit,
    })
}

/// What a class (base class and subclass) is called, of those a machine has.
pub fn class_name(class: u16) -> Option<&'static str> {
    Some(match class {
        0x0100 => "SCSI controller",
        0x0200 => "Ethernet controller",
        0x0500 => "RAM controller",
        0x0600 => "Host bridge",
        0x0601 => "ISA bridge",
        0x0680 => "Bridge",
        0x0780 => "Communication controller",
        _ => return None,
    })
}

#[cfg(test)]
#[path = "query_tests.rs"]
pub(super) mod tests;
